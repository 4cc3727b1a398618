//! What keeps one command in flight.

use super::path::Path;
use super::{Part, Replay, State, Workload};
use crate::host::HostError;
use crate::pattern::{Pattern, Places};
use crate::random::{Random, mix};
use crate::report::Kind;
use crate::stamp::{Found, Stamp};
use crate::trace::{Op, Request};
use peristyle_base::{BLOCK_BYTES, Duration, Instant};
use peristyle_nvme::wire::Status;
use peristyle_rt::{Buf, View};
use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;

/// One connection: what its workers have in common.
pub(super) struct Job {
    path: Path,
    state: Rc<State>,
    source: Source,
    /// Where the last request ended.
    end: Rc<Cell<Option<u64>>>,
    index: u16,
}

/// Where requests come from. Clones go on together.
#[derive(Clone)]
pub(super) enum Source {
    Places { share: Share, read_share: u64, bytes: u32 },
    Trace { replay: Arc<Replay>, next: Rc<Cell<usize>>, step: usize },
}

impl Source {
    /// Of one reactor: every so many-th request of a trace.
    pub fn trace(replay: &Arc<Replay>, part: &Part) -> Source {
        let next = Rc::new(Cell::new(usize::from(part.index)));
        Source::Trace { replay: replay.clone(), next, step: usize::from(part.of) }
    }
    fn share(share: Share, load: &Workload) -> Source {
        Source::Places { share, read_share: u64::from(load.read_share), bytes: load.block_bytes }
    }
}

impl Job {
    /// `index` counts the jobs of one volume. `trace` is what all jobs replay together.
    pub fn new(path: &Path, load: &Workload, index: u16, state: &Rc<State>, trace: Option<Source>) -> Job {
        let places = load.region.places(&path.namespace, load.block_bytes);
        let source = trace.unwrap_or_else(|| Source::share(Share::of_job(load, places, index), load));
        Job { path: path.clone(), state: state.clone(), source, end: Rc::default(), index }
    }

    /// Takes the memory that it needs.
    pub async fn worker(&self, load: &Workload, slot: u32) -> Worker {
        let worker = u64::from(self.index) * u64::from(load.depth) + u64::from(slot);
        let (namespace, nsid) = (&self.path.namespace, u64::from(self.path.namespace.nsid));
        let mut random = Random::of_worker(load.seed, worker ^ nsid << 32);
        let (mut source, mut memory) = (self.source.clone(), None);
        if load.verify && load.replay.is_none() {
            let share = Share::of_worker(load, load.region.places(namespace, load.block_bytes), worker);
            memory = Some(Memory {
                // A block that got into another volume is not taken for right.
                seed: load.seed ^ mix(nsid),
                worker,
                writes: 0,
                last: vec![0; share.places.count() as usize],
            });
            source = Source::share(share, load);
        }
        let data = match load.read_share < 100 && memory.is_none() || load.replay.is_some() {
            true => {
                let mut data = Buf::alloc(load.block_bytes.max(1) as usize).await;
                load.contents.fill(&mut random, &mut data);
                Some(data.freeze())
            }
            false => None,
        };
        Worker {
            path: self.path.clone(),
            state: self.state.clone(),
            source,
            base: load.region.offset,
            end: self.end.clone(),
            random,
            memory,
            buf: None,
            data,
        }
    }
}

pub(super) struct Worker {
    path: Path,
    state: Rc<State>,
    source: Source,
    /// Bytes in front of the first place.
    base: u64,
    end: Rc<Cell<Option<u64>>>,
    random: Random,
    memory: Option<Memory>,
    /// Of the last read.
    buf: Option<Buf>,
    /// What is written when nothing is verified.
    data: Option<View>,
}

/// A command whose turn has come.
struct Next {
    op: Op,
    /// Of the place, among the worker's.
    index: u64,
    offset: u64,
    bytes: u32,
    due: Option<Instant>,
    counts: bool,
}

/// What a verifying worker knows of its own places: nobody else writes them.
struct Memory {
    seed: u64,
    worker: u64,
    writes: u64,
    /// The write that each place holds; 0 is not known.
    last: Vec<u64>,
}

/// Which places somebody goes to: the one of index `i` is `first + i * step`.
#[derive(Clone)]
pub(super) struct Share {
    places: Places,
    first: u64,
    step: u64,
}

impl Share {
    fn new(load: &Workload, first: u64, step: u64, count: u64) -> Share {
        Share { places: Places::new(load.pattern, count, load.block_bytes), first, step }
    }
    /// Jobs go through parts of their own from front to back; else everybody goes everywhere.
    fn of_job(load: &Workload, total: u64, job: u16) -> Share {
        let (job, jobs) = (u64::from(job), u64::from(load.jobs));
        match load.pattern {
            Pattern::Sequential => {
                let (first, end) = (total * job / jobs, total * (job + 1) / jobs);
                Share::new(load, first, 1, end - first)
            }
            _ => Share::new(load, 0, 1, total),
        }
    }
    /// A verifying worker has places of its own: every `workers`-th.
    fn of_worker(load: &Workload, total: u64, worker: u64) -> Share {
        let workers = load.workers();
        Share::new(load, worker, workers, (total - worker).div_ceil(workers))
    }
    /// The index of the next place, and the place.
    fn next(&self, random: &mut Random) -> (u64, u64) {
        let index = self.places.next(random);
        (index, self.first + index * self.step)
    }
}

impl Worker {
    pub async fn run(mut self) {
        while let Some(next) = self.next().await {
            self.place(&next);
            let result = match next.op {
                Op::Read => self.read(next).await,
                Op::Write => self.write(next).await,
                Op::Deallocate | Op::Flush => self.other(next).await,
            };
            if let Err(error) = result {
                self.state.report.borrow_mut().lost(error);
                break;
            }
        }
    }

    async fn next(&mut self) -> Option<Next> {
        match &self.source {
            Source::Places { share, read_share, bytes } => {
                let (due, counts) = self.state.next(&mut self.random).await?;
                let (index, place) = share.next(&mut self.random);
                let reads = *read_share == 100 || self.random.below(100) < *read_share;
                let (op, bytes) = (if reads { Op::Read } else { Op::Write }, *bytes);
                Some(Next { op, index, offset: self.base + place * u64::from(bytes), bytes, due, counts })
            }
            Source::Trace { replay, next, step } => {
                let Request { at_ns, offset, bytes, op } = *replay.trace.requests.get(next.get())?;
                next.set(next.get() + step);
                let (due, counts) = match replay.speed {
                    Some(speed) => {
                        self.state.next_at(Duration::from_nanos((at_ns as f64 / speed) as u64)).await?
                    }
                    None => self.state.next(&mut self.random).await?,
                };
                Some(Next { op, index: 0, offset, bytes, due, counts })
            }
        }
    }

    fn place(&self, next: &Next) {
        if !matches!(next.op, Op::Read | Op::Write) {
            return;
        }
        let before = self.end.replace(Some(next.offset + u64::from(next.bytes)));
        if next.counts {
            self.state.report.borrow_mut().placement.add(next.offset, next.bytes, before);
        }
    }

    fn answered(&self, kind: Kind, next: &Next, started: Instant, (ended, status): (Instant, Status)) {
        if next.counts {
            self.state.answered(kind, next.bytes, started, (ended, status));
        }
    }

    async fn read(&mut self, next: Next) -> Result<(), HostError> {
        let started = next.due.unwrap_or_else(peristyle_rt::now);
        let memory = self.memory.as_ref();
        let check = |at: u64, data: &[u8]| memory.is_none_or(|memory| memory.is_right(next.index, at, data));
        let read = self.path.read((next.offset, next.bytes), self.buf.take(), check).await?;
        self.answered(Kind::Read, &next, started, (read.ended, read.status));
        if !read.is_right {
            self.state.report.borrow_mut().mismatch(next.offset);
        }
        self.buf = read.buf;
        Ok(())
    }

    async fn write(&mut self, next: Next) -> Result<(), HostError> {
        let data = match &mut self.memory {
            None => self.data.as_ref().expect("made before the first command").slice(0..next.bytes as usize),
            Some(memory) => {
                let mut buf = Buf::alloc(next.bytes as usize).await;
                memory.write(next.index, next.offset, &mut buf);
                buf.freeze()
            }
        };
        let started = next.due.unwrap_or_else(peristyle_rt::now);
        let status = self.path.write(next.offset, data).await?;
        self.answered(Kind::Write, &next, started, (peristyle_rt::now(), status));
        if let Some(memory) = &mut self.memory
            && !status.is_success()
        {
            memory.last[next.index as usize] = 0;
        }
        Ok(())
    }

    /// A trace's flush or deallocation.
    async fn other(&mut self, next: Next) -> Result<(), HostError> {
        let Path { queue, namespace, .. } = &self.path;
        let (nsid, lba) = (namespace.nsid, namespace.lba_bytes);
        let started = next.due.unwrap_or_else(peristyle_rt::now);
        let result = match next.op {
            Op::Deallocate => {
                queue.deallocate(nsid, &[(next.offset / u64::from(lba), next.bytes / lba)]).await
            }
            _ => queue.flush(nsid).await,
        };
        let status = match result {
            Ok(()) => Status::SUCCESS,
            Err(HostError::Status(status)) => status,
            Err(error) => return Err(error),
        };
        self.answered(Kind::Other, &next, started, (peristyle_rt::now(), status));
        Ok(())
    }
}

impl Memory {
    fn stamp(&self, block: u64, write: u64) -> Stamp {
        Stamp { seed: self.seed, block, write: self.worker << 40 | write }
    }
    fn write(&mut self, index: u64, offset: u64, out: &mut [u8]) {
        self.writes += 1;
        self.last[index as usize] = self.writes;
        for (n, block) in out.chunks_exact_mut(BLOCK_BYTES).enumerate() {
            self.stamp(offset / BLOCK_BYTES as u64 + n as u64, self.writes).fill(block);
        }
    }
    fn is_right(&self, index: u64, offset: u64, data: &[u8]) -> bool {
        let write = self.last[index as usize];
        write == 0
            || data.chunks_exact(BLOCK_BYTES).enumerate().all(|(n, block)| {
                Stamp::find(block) == Found::Stamp(self.stamp(offset / BLOCK_BYTES as u64 + n as u64, write))
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn load(pattern: Pattern, verify: bool, depth: u32, jobs: u16) -> Workload {
        Workload { pattern, read_share: 50, depth, jobs, verify, ..Workload::default() }
    }

    proptest! {
        #[test]
        fn verifying_workers_never_share_a_place_and_leave_none_out(
            depth in 1u32..9, jobs in 1u16..5, total in 40u64..200, random: bool,
        ) {
            let load = load(if random { Pattern::Random } else { Pattern::Sequential }, true, depth, jobs);
            let mut owners = vec![0; total as usize];
            for worker in 0..load.workers() {
                let share = Share::of_worker(&load, total, worker);
                (0..share.places.count()).for_each(|i| owners[(share.first + i * share.step) as usize] += 1);
            }
            prop_assert!(owners.iter().all(|&n| n == 1), "{owners:?}");
        }

        #[test]
        fn sequential_jobs_run_through_their_parts_in_order(jobs in 1u16..7, total in 10u64..100) {
            let load = load(Pattern::Sequential, false, 2, jobs);
            let mut next = 0;
            for job in 0..jobs {
                let share = Share::of_job(&load, total, job);
                for _ in 0..share.places.count() {
                    prop_assert_eq!(share.next(&mut Random::new(1)).1, next);
                    next += 1;
                }
                prop_assert_eq!(share.next(&mut Random::new(1)).0, 0, "from the front again");
            }
            prop_assert_eq!(next, total);
        }
    }

    #[test]
    fn what_was_written_last_is_right_and_nothing_else() {
        let mut memory = Memory { seed: 3, worker: 2, writes: 0, last: vec![0; 4] };
        let (mut old, mut new) = (vec![0; 8192], vec![0; 8192]);
        assert!(memory.is_right(1, 8192, &old), "what nobody wrote is not judged");
        memory.write(1, 8192, &mut old);
        memory.write(1, 8192, &mut new);
        assert!(memory.is_right(1, 8192, &new) && !memory.is_right(1, 8192, &old));
        assert!(!memory.is_right(1, 8192, &[&new[..4096], &old[4096..]].concat()), "torn");
        memory.write(2, 16384, &mut old);
        assert!(!memory.is_right(1, 8192, &old), "misdirected");
    }
}
