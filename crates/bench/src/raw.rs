//! The floor of a device: the same requests, without anything of ours between but `rt`.

use crate::contents::Contents;
use crate::load::{Length, Part, Plan, State, together};
use crate::pattern::{Pattern, Places};
use crate::random::Random;
use crate::report::{Kind, Report};
use peristyle_base::Duration;
use peristyle_nvme::wire::Status;
use peristyle_rt::{Buf, BufConfig, Device, IoError, IoVec, View};
use std::cell::Cell;
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
    state: State,
    failed: Cell<Option<IoError>>,
}

/// Does it, and reports it as `bench run` reports a volume's. The first error ends it.
pub async fn measure(device: &Device, load: RawLoad) -> Result<Report, IoError> {
    let count = device.bytes().min(load.span) / u64::from(load.block_bytes);
    if count == 0 {
        return Err(IoError::OutOfRange);
    }
    let plan = Plan { length: load.length, warmup: load.warmup, gap_ns: None, poisson: false };
    let run = Rc::new(Run {
        device: device.clone(),
        places: Places::new(load.pattern, count, load.block_bytes),
        state: State::new(plan, &Part::alone()),
        failed: Cell::new(None),
        load,
    });
    let mut bufs = Vec::new();
    for worker in 0..load.depth {
        let mut random = Random::of_worker(load.seed, u64::from(worker));
        let mut buf = Buf::alloc(load.block_bytes as usize).await;
        Contents::Random.fill(&mut random, &mut buf);
        bufs.push((random, buf));
    }
    run.state.start();
    together(bufs.into_iter().map(|(random, buf)| {
        let run = run.clone();
        async move {
            if let Err(error) = run.work(random, buf).await {
                run.failed.set(Some(error));
            }
        }
    }))
    .await;
    match run.failed.take() {
        Some(error) => Err(error),
        None => Ok(run.state.finish()),
    }
}

impl Run {
    async fn work(&self, mut random: Random, buf: Buf) -> Result<(), IoError> {
        // Reads take the buffer, and give it back; writes share it.
        let (mut free, data) = match self.load.write {
            true => (None, Some(buf.freeze())),
            false => (Some(buf), None),
        };
        let kind = if self.load.write { Kind::Write } else { Kind::Read };
        while let Some((_, counts)) = self.state.next(&mut random).await {
            if self.failed.get().is_some() {
                break;
            }
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
            if counts {
                let ended = (peristyle_rt::now(), Status::SUCCESS);
                self.state.answered(kind, self.load.block_bytes, started, ended);
            }
        }
        Ok(())
    }

    async fn write(&self, offset: u64, data: &View) -> Result<(), IoError> {
        self.device.write(offset, IoVec::from(data.clone()), self.load.durable).await
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
