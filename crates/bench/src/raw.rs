//! The floor of a device: the same requests, without anything of ours between but `rt`.

use crate::load::Length;
use crate::pattern::{Pattern, Places};
use crate::random::Random;
use crate::report::Report;
use peristyle_base::{Duration, Instant};
use peristyle_nvme::wire::Status;
use peristyle_rt::{Buf, BufConfig, Device, IoError, IoVec, View, join_all};
use std::cell::{Cell, RefCell};
use std::rc::Rc;

/// What is asked of a device.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RawLoad {
    /// A multiple of 4096, 1 MiB at most.
    pub block_bytes: u32,
    pub pattern: Pattern,
    pub write: bool,
    /// Writes are durable when they are answered.
    pub durable: bool,
    pub depth: u32,
    pub length: Length,
    pub warmup: Duration,
    /// Bytes at the front of the device that are used; all of it, if it has fewer.
    pub span: u64,
    pub seed: u64,
}

impl RawLoad {
    /// Buffers that it needs at most.
    pub fn buffers(&self) -> BufConfig {
        crate::load::buffers_for(self.block_bytes, u64::from(self.depth))
    }
}

struct Run {
    device: Device,
    load: RawLoad,
    places: Places,
    from: Instant,
    until: Instant,
    left: Cell<u64>,
    last: Cell<Instant>,
    report: RefCell<Report>,
}

/// Does it, and reports it as `bench run` reports a volume's. The first error ends it.
pub async fn measure(device: &Device, load: RawLoad) -> Result<Report, IoError> {
    let count = device.bytes().min(load.span) / u64::from(load.block_bytes);
    if count == 0 {
        return Err(IoError::OutOfRange);
    }
    let (time, left) = match load.length {
        Length::Time(time) => (time, u64::MAX),
        Length::Count(count) => (Duration::MAX, count),
    };
    let (now, busy) = (peristyle_rt::now(), peristyle_rt::busy_nanos());
    let from = now + load.warmup;
    let run = Rc::new(Run {
        device: device.clone(),
        places: Places::new(load.pattern, count, load.block_bytes),
        from,
        until: from + time,
        left: Cell::new(left),
        last: Cell::new(from),
        report: RefCell::default(),
        load,
    });
    let workers: Vec<_> = (0..load.depth).map(|worker| run.clone().work(u64::from(worker))).collect();
    join_all(workers).await.into_iter().collect::<Result<Vec<()>, IoError>>()?;
    let mut report = run.report.take();
    report.elapsed = run.last.get().since(from);
    report.finish(busy, peristyle_rt::busy_nanos());
    Ok(report)
}

impl Run {
    async fn work(self: Rc<Self>, worker: u64) -> Result<(), IoError> {
        let mut random = Random::of_worker(self.load.seed, worker);
        let mut buf = Buf::alloc(self.load.block_bytes as usize).await;
        buf.chunks_exact_mut(8).for_each(|word| word.copy_from_slice(&random.next_u64().to_le_bytes()));
        // Reads take the buffer, and give it back; writes share it.
        let (mut free, data) = match self.load.write {
            true => (None, Some(buf.freeze())),
            false => (Some(buf), None),
        };
        while let Some(counts) = self.admit() {
            let offset = self.places.next(&mut random) * u64::from(self.load.block_bytes);
            let started = peristyle_rt::now();
            match (&data, free.take()) {
                (Some(data), _) => self.write(offset, data).await?,
                (None, Some(buf)) => {
                    let (result, buf) = self.device.read(offset, buf).await;
                    result?;
                    free = Some(buf);
                }
                (None, None) => unreachable!("a read gives its buffer back"),
            }
            let now = peristyle_rt::now();
            if counts {
                self.last.set(now);
                let (reads, bytes) = (!self.load.write, self.load.block_bytes);
                self.report.borrow_mut().record(reads, bytes, now.nanos_since(started), Status::SUCCESS);
            }
        }
        Ok(())
    }

    async fn write(&self, offset: u64, data: &View) -> Result<(), IoError> {
        self.device.write(offset, IoVec::from(data.clone()), self.load.durable).await
    }

    fn admit(&self) -> Option<bool> {
        let now = peristyle_rt::now();
        if now < self.from {
            return Some(false);
        }
        let left = self.left.get();
        if left == 0 || now >= self.until {
            return None;
        }
        self.left.set(left - 1);
        Some(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use peristyle_rt::DeviceSpec;

    fn load(write: bool, depth: u32) -> RawLoad {
        RawLoad {
            block_bytes: 4096,
            pattern: Pattern::Random,
            write,
            durable: true,
            depth,
            length: Length::Count(500),
            warmup: Duration::ZERO,
            span: u64::MAX,
            seed: 1,
        }
    }

    #[test]
    fn requests_of_a_device_are_counted_and_small_ones_are_refused() {
        peristyle_rt::sim::run(1, |_| async {
            let device = Device::open(&DeviceSpec::Memory { bytes: 1 << 20 }).await.unwrap();
            for (write, depth) in [(false, 1), (true, 8)] {
                let report = measure(&device, load(write, depth)).await.unwrap();
                let counts = (report.reads.latency.count(), report.writes.latency.count());
                assert_eq!(counts, if write { (0, 500) } else { (500, 0) });
            }
            let mut block = Buf::alloc(4096).await;
            block.fill(0);
            let (result, block) = device.read(0, block).await;
            assert!(result.is_ok() && block.iter().any(|b| *b != 0), "it was written");
            let span = RawLoad { span: 4095, ..load(false, 1) };
            assert_eq!(measure(&device, span).await.err(), Some(IoError::OutOfRange));
        });
    }

    #[test]
    fn what_is_deeper_is_faster_as_long_as_the_device_is() {
        peristyle_rt::sim::run(2, |env| async move {
            let disk = env.node.add_disk("d", 64 << 20, peristyle_rt::sim::DiskConfig::default());
            let device = Device::open(&disk.spec()).await.unwrap();
            let mut rates = Vec::new();
            for depth in [1, 8] {
                let report = measure(&device, load(false, depth)).await.unwrap();
                rates.push(report.reads.per_second(report.elapsed));
            }
            assert!(rates[1] > 4.0 * rates[0], "{rates:?}");
        });
    }
}
