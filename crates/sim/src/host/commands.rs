//! What a host asks for, and what it makes of the answers.

use super::client::{Client, Disk, Reading, Writing};
use crate::model::{SECTOR, fill, fill_each};
use peristyle_bench::host::{Host, HostError};
use peristyle_nvme::wire::Status;
use peristyle_rt::sim::Rng;
use peristyle_rt::{Buf, View};
use std::rc::Rc;

/// A status that a host may be told, and what it means for the operation.
fn judge(status: Status) -> Result<(), HostError> {
    let full = status.is(Status::CAPACITY_EXCEEDED);
    // The shard does not serve yet, or does not any more; the node has just started; the queue is being closed.
    let later = status.is(Status::ANA_TRANSITION)
        || status.is(Status::INVALID_NAMESPACE_OR_FORMAT)
        || status.is(Status::ABORTED_SQ_DELETION);
    assert!(full || later, "with at most m devices bad no host may be told {status:?}");
    // A full pool is an answer; for the others it asks again.
    if full { Ok(()) } else { Err(HostError::Status(status)) }
}

async fn view(bytes: u64, filler: impl FnOnce(&mut [u8])) -> View {
    let mut buf = Buf::alloc(bytes as usize).await;
    filler(&mut buf);
    buf.freeze()
}

/// A range of a disk in logical blocks.
struct Range {
    disk: usize,
    nsid: u32,
    first: u64,
    count: u64,
    slba: u64,
    blocks: u32,
}

impl Range {
    fn draw(disks: &[Disk], rng: &mut Rng) -> Range {
        let at = rng.below(disks.len() as u64) as usize;
        let disk = &disks[at];
        let (first, count) = disk.habits.range(rng);
        let (slba, blocks) = (first / disk.lba_sectors, (count / disk.lba_sectors) as u32);
        Range { disk: at, nsid: disk.nsid, first, count, slba, blocks }
    }
    fn bytes(&self) -> u64 {
        self.count * SECTOR
    }
}

impl Client {
    /// One operation. An error means that it is to be done again, maybe on another connection.
    pub async fn operate(self: &Rc<Self>, host: &Host, queue: usize, rng: &mut Rng) -> Result<(), HostError> {
        let range = Range::draw(self.disks(), rng);
        let habits = self.disks()[range.disk].habits;
        let what = rng.below(100);
        if what < habits.reads {
            return self.read(host, queue, &range).await;
        }
        if what < habits.reads + habits.zeroes {
            return self.zero(host, queue, &range, rng.coin()).await;
        }
        match rng.below(20) {
            0 => self.limited(host, host.io[queue].flush(range.nsid)).await.or_else(told),
            1 => self
                .limited(host, host.io[queue].verify(range.nsid, range.slba, range.blocks))
                .await
                .or_else(told),
            2 => self.compare(host, queue, &range, rng.coin()).await,
            3..=5 => self.swap(host, queue, &range, rng.below(3) > 0).await,
            _ => self.write(host, queue, &range).await,
        }
    }

    async fn read(&self, host: &Host, queue: usize, range: &Range) -> Result<(), HostError> {
        let model = &self.disks()[range.disk].model;
        let buf = Buf::alloc(range.bytes() as usize).await;
        let mut reading = Reading(model, Some(model.begin_read(range.first, range.count)));
        let read = host.io[queue].read(range.nsid, range.slba, range.blocks, buf);
        match self.limited(host, read).await {
            Ok(bytes) => {
                let same = model.end_read(reading.1.take().expect("just begun"), &bytes);
                same.unwrap_or_else(|wrong| {
                    panic!("nsid {}, {} sectors at {}: {wrong}", range.nsid, range.count, range.first)
                });
                Ok(())
            }
            Err(error) => told(error),
        }
    }

    async fn write(self: &Rc<Self>, host: &Host, queue: usize, range: &Range) -> Result<(), HostError> {
        let model = &self.disks()[range.disk].model;
        let mut buf = Buf::alloc(range.bytes() as usize).await;
        let Some((id, tag)) = model.begin_write(range.first, range.count, false) else { return Ok(()) };
        let writing = Writing::new(self, range.disk, id, range.first, range.count);
        fill(tag, range.first, &mut buf);
        let write = host.io[queue].write(range.nsid, range.slba, range.blocks, buf.freeze());
        self.limited(host, write).await.map(|()| writing.acknowledge()).or_else(told)
    }

    /// Write Zeroes, or Deallocate of the same in two ranges.
    async fn zero(
        self: &Rc<Self>,
        host: &Host,
        queue: usize,
        range: &Range,
        deallocate: bool,
    ) -> Result<(), HostError> {
        let model = &self.disks()[range.disk].model;
        let whole = !deallocate || range.blocks < 2;
        let half = range.blocks / 2;
        let unit = range.count / u64::from(range.blocks);
        let parts = match whole {
            true => vec![(range.slba, range.blocks)],
            false => vec![(range.slba, half), (range.slba + u64::from(half), range.blocks - half)],
        };
        let mut writing = Vec::new();
        for &(slba, blocks) in &parts {
            let (first, count) = (slba * unit, u64::from(blocks) * unit);
            match model.begin_write(first, count, true) {
                Some((id, _)) => writing.push(Writing::new(self, range.disk, id, first, count)),
                None => {
                    writing.into_iter().for_each(Writing::cancel);
                    return Ok(());
                }
            }
        }
        let queue = &host.io[queue];
        let answer = match deallocate {
            true => self.limited(host, queue.deallocate(range.nsid, &parts)).await,
            false => self.limited(host, queue.write_zeroes(range.nsid, range.slba, range.blocks)).await,
        };
        answer.map(|()| writing.into_iter().for_each(Writing::acknowledge)).or_else(told)
    }

    /// Compare with what is there, or with something else.
    async fn compare(
        self: &Rc<Self>,
        host: &Host,
        queue: usize,
        range: &Range,
        same: bool,
    ) -> Result<(), HostError> {
        let model = &self.disks()[range.disk].model;
        let Some((id, tag, tags)) = model.begin_swap(range.first, range.count) else { return Ok(()) };
        let hold = Writing::new(self, range.disk, id, range.first, range.count);
        let data = view(range.bytes(), |buf| match same {
            true => fill_each(&tags, range.first, buf),
            false => fill(tag, range.first, buf),
        });
        let data = data.await;
        let answer =
            self.limited(host, host.io[queue].compare(range.nsid, range.slba, range.blocks, data)).await;
        hold.cancel();
        match (answer, same) {
            (Ok(()), true) => Ok(()),
            (Err(HostError::Status(s)), false) if s.is(Status::COMPARE_FAILURE) => Ok(()),
            (Ok(()), false) => {
                panic!("what differs compared equal: {} sectors at {}", range.count, range.first)
            }
            (Err(error), _) => told(error),
        }
    }

    /// Compare and Write, with what is there or with something else as the expectation.
    async fn swap(
        self: &Rc<Self>,
        host: &Host,
        queue: usize,
        range: &Range,
        same: bool,
    ) -> Result<(), HostError> {
        let model = &self.disks()[range.disk].model;
        let mut data = Buf::alloc(range.bytes() as usize).await;
        let mut expected = Buf::alloc(range.bytes() as usize).await;
        let Some((id, tag, tags)) = model.begin_swap(range.first, range.count) else { return Ok(()) };
        let writing = Writing::new(self, range.disk, id, range.first, range.count);
        fill(tag, range.first, &mut data);
        match same {
            true => fill_each(&tags, range.first, &mut expected),
            false => fill(!tag, range.first, &mut expected),
        }
        let (expected, data) = (expected.freeze(), data.freeze());
        let swap = host.io[queue].compare_and_write(range.nsid, range.slba, range.blocks, expected, data);
        let answer = self.limited(host, swap).await;
        if !same {
            writing.cancel(); // Whatever becomes of it, it must not write.
            return match answer {
                Ok((first, second)) if first.is(Status::COMPARE_FAILURE) => {
                    assert!(second.is(Status::ABORTED_FAILED_FUSED), "{second:?}");
                    Ok(())
                }
                Ok((first, second)) => fused_error(first, second),
                Err(error) => told(error),
            };
        }
        match answer {
            Ok((first, second)) if first.is_success() && second.is_success() => {
                writing.acknowledge();
                Ok(())
            }
            Ok((first, second)) => fused_error(first, second),
            Err(error) => told(error),
        }
    }
}

/// Neither half compared different: one says that it was aborted, the other why.
fn fused_error(first: Status, second: Status) -> Result<(), HostError> {
    let aborted = |s: Status| s.is(Status::ABORTED_FAILED_FUSED);
    match (aborted(first), aborted(second)) {
        (true, _) => judge(second),
        (_, true) => judge(first),
        _ => panic!("Compare and Write answered with {first:?} and {second:?}"),
    }
}

fn told(error: HostError) -> Result<(), HostError> {
    match error {
        HostError::Status(status) => judge(status),
        error => Err(error),
    }
}
