//! Load: each job is one connection. In a closed loop it keeps as many commands in flight as its depth says. With a rate the
//! loop is open: each command has a moment at which it should begin, and its latency counts from then on, however long it had to
//! wait for one of the others to end.

mod state;

use state::State;
use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use peristyle_base::{BLOCK_BYTES, Duration, Instant};
use peristyle_nvme::wire::Status;
use peristyle_rt::buf::CLASS_BYTES;
use peristyle_rt::{Buf, BufConfig, View};

use crate::host::{HostError, Payload, Queue};
use crate::pattern::{Pattern, Places};
use crate::random::Random;
use crate::report::Report;
use crate::session::{Digests, Namespace, Session, SessionError};
use crate::stamp::{Found, Stamp};

/// Largest `block_bytes`.
pub const IO_BYTES_MAX: u32 = 1 << 20;
pub const DEPTH_MAX: u32 = 1024;
/// Commands per second.
const RATE_MIN: f64 = 0.1;
const RATE_MAX: f64 = 1e8;
/// Places whose last write a verifying run can remember.
const PLACES_MAX: u64 = 1 << 26;

/// What to do, and for how long.
#[derive(Clone, Debug, PartialEq)]
pub struct Workload {
    pub block_bytes: u32,
    pub pattern: Pattern,
    /// Reads among the commands, percent.
    pub read_share: u8,
    /// Commands in flight of each job; with a rate at most so many.
    pub depth: u32,
    /// Commands that begin in a second, over all jobs.
    pub rate: Option<Rate>,
    /// Connections.
    pub jobs: u16,
    pub length: Length,
    /// Load that is not measured, before.
    pub warmup: Duration,
    /// Every block says what it is, and reads are compared.
    pub verify: bool,
    pub seed: u64,
    pub digests: Digests,
}

/// When commands should begin.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rate {
    /// Commands per second.
    pub per_second: f64,
    /// One does not know of the other (exponential gaps). Else gaps are all alike.
    pub poisson: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Length {
    Time(Duration),
    /// Commands of the whole run, without those of the warm-up.
    Count(u64),
}

/// The share of one reactor in a run over several.
#[derive(Clone, Debug)]
pub struct Part {
    pub index: u16,
    pub of: u16,
    pub gate: Arc<Gate>,
}

/// Reactors start to measure together.
#[derive(Debug)]
pub struct Gate {
    missing: AtomicU32,
    broken: AtomicU32,
}

impl Gate {
    pub fn new(parts: u16) -> Arc<Gate> {
        Arc::new(Gate { missing: AtomicU32::new(u32::from(parts)), broken: AtomicU32::new(0) })
    }
    /// This part will not come: the others need not wait.
    pub fn give_up(&self) {
        self.broken.store(1, Ordering::Release);
    }
    async fn pass(&self) {
        self.missing.fetch_sub(1, Ordering::AcqRel);
        while self.missing.load(Ordering::Acquire) > 0 && self.broken.load(Ordering::Acquire) == 0 {
            peristyle_rt::sleep(Duration::from_millis(1)).await;
        }
    }
}

impl Workload {
    /// What is wrong with it for this namespace, in words.
    pub fn check(&self, namespace: &Namespace, session: &Session) -> Result<(), String> {
        let bytes = self.block_bytes;
        if bytes == 0 || bytes % namespace.lba_bytes != 0 {
            return Err(format!(
                "--bs {bytes} is no multiple of the volume's block size {}",
                namespace.lba_bytes
            ));
        }
        let most = session.transfer_bytes_max.min(IO_BYTES_MAX);
        if bytes > most {
            return Err(format!("--bs {bytes}: the target takes at most {most} bytes in one command"));
        }
        if self.depth == 0 || self.depth > DEPTH_MAX || self.depth >= session.entries_max {
            return Err(format!("--qd {}: from 1 to {}", self.depth, DEPTH_MAX.min(session.entries_max - 1)));
        }
        if self.rate.is_some_and(|rate| !(RATE_MIN..=RATE_MAX).contains(&rate.per_second)) {
            return Err(format!("--rate: from {RATE_MIN} to {RATE_MAX} commands a second"));
        }
        let places = namespace.bytes / u64::from(bytes);
        if places < self.workers() {
            return Err(format!("the volume has fewer places ({places}) than commands in flight"));
        }
        if self.verify && (bytes as usize % BLOCK_BYTES != 0 || places > PLACES_MAX) {
            return Err(format!(
                "--verify needs a multiple of {BLOCK_BYTES} and at most {PLACES_MAX} places"
            ));
        }
        Ok(())
    }

    fn workers(&self) -> u64 {
        u64::from(self.depth) * u64::from(self.jobs)
    }

    /// Buffers that a reactor of the generator needs at most.
    pub fn buffers(&self) -> BufConfig {
        buffers_for(self.block_bytes, self.workers())
    }

    fn jobs_of(&self, part: &Part) -> impl Iterator<Item = u16> + use<> {
        let (index, of) = (part.index, part.of);
        (0..self.jobs).filter(move |job| job % of == index)
    }
}

/// For so many requests of this size at once.
pub(crate) fn buffers_for(block_bytes: u32, requests: u64) -> BufConfig {
    let mut config = BufConfig::small();
    let class = CLASS_BYTES.iter().position(|&size| size >= block_bytes as usize);
    config.counts[class.unwrap_or(CLASS_BYTES.len() - 1)] += 2 * requests as usize;
    config
}

/// Runs this reactor's jobs. All of the memory is taken before the first command.
pub async fn drive(
    session: &Session,
    namespace: Namespace,
    load: &Workload,
    part: &Part,
) -> Result<Report, SessionError> {
    let jobs: Vec<u16> = load.jobs_of(part).collect();
    session.request_queues(jobs.len() as u16).await?;
    let state = Rc::new(State::new(load, part));
    let mut queues = Vec::new();
    for (n, job) in jobs.into_iter().enumerate() {
        let queue = session.ticket().queue(n as u16 + 1, load.depth).await?;
        let stream = Stream::new(load, namespace.bytes / u64::from(load.block_bytes), job);
        for slot in 0..load.depth {
            let mut worker = Worker::new(queue.clone(), namespace, load, (job, slot), &state, &stream);
            worker.prepare().await;
            state.workers.borrow_mut().push(worker);
        }
        queues.push(queue);
    }
    part.gate.pass().await;
    let busy_before = state.start();
    let workers = std::mem::take(&mut *state.workers.borrow_mut());
    state.running.set(workers.len());
    for worker in workers {
        peristyle_rt::spawn(worker.run());
    }
    state.ended.wait_until(|| state.running.get() == 0).await;
    queues.iter().for_each(Queue::close);
    let mut report = state.report.take();
    report.unserved += state.left_in_schedule();
    report.elapsed = state.last.get().since(state.from.get());
    report.finish(busy_before, peristyle_rt::busy_nanos());
    Ok(report)
}

/// Keeps one command in flight.
struct Worker {
    queue: Queue,
    namespace: Namespace,
    state: Rc<State>,
    share: Share,
    /// Where the job's last request ended.
    end: Rc<Cell<Option<u64>>>,
    random: Random,
    read_share: u64,
    bytes: u32,
    memory: Option<Memory>,
    /// For reads.
    buf: Option<Buf>,
    /// What is written when nothing is verified.
    data: Option<View>,
}

/// What a verifying worker knows of its own places: nobody else writes them.
struct Memory {
    seed: u64,
    worker: u64,
    writes: u64,
    /// The write that each place holds; 0 is not known.
    last: Vec<u64>,
}

/// What the workers of one job share.
#[derive(Clone)]
struct Stream {
    share: Share,
    /// Where the last request ended.
    end: Rc<Cell<Option<u64>>>,
}

impl Stream {
    fn new(load: &Workload, total: u64, job: u16) -> Stream {
        let share = match load.pattern {
            Pattern::Sequential => {
                let jobs = u64::from(load.jobs);
                let first = total * u64::from(job) / jobs;
                let end = total * (u64::from(job) + 1) / jobs;
                Share::new(load, first, 1, end - first)
            }
            _ => Share::new(load, 0, 1, total),
        };
        Stream { share, end: Rc::default() }
    }
}

/// Which places somebody goes to: the one of index `i` is `first + i * step`.
#[derive(Clone)]
struct Share {
    places: Places,
    first: u64,
    step: u64,
}

impl Share {
    fn new(load: &Workload, first: u64, step: u64, count: u64) -> Share {
        Share { places: Places::new(load.pattern, count, load.block_bytes), first, step }
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
    fn new(
        queue: Queue,
        namespace: Namespace,
        load: &Workload,
        (job, slot): (u16, u32),
        state: &Rc<State>,
        stream: &Stream,
    ) -> Worker {
        let worker = u64::from(job) * u64::from(load.depth) + u64::from(slot);
        let share = match load.verify {
            true => Share::of_worker(load, namespace.bytes / u64::from(load.block_bytes), worker),
            false => stream.share.clone(),
        };
        let memory = load.verify.then(|| Memory {
            seed: load.seed,
            worker,
            writes: 0,
            last: vec![0; share.places.count() as usize],
        });
        Worker {
            queue,
            namespace,
            state: state.clone(),
            share,
            end: stream.end.clone(),
            random: Random::of_worker(load.seed, worker),
            read_share: u64::from(load.read_share),
            bytes: load.block_bytes,
            memory,
            buf: None,
            data: None,
        }
    }

    async fn prepare(&mut self) {
        let bytes = self.bytes as usize;
        if self.read_share > 0 {
            self.buf = Some(Buf::alloc(bytes).await);
        }
        if self.read_share < 100 && self.memory.is_none() {
            let mut data = Buf::alloc(bytes).await;
            data.chunks_mut(8).for_each(|word| {
                let random = self.random.next_u64().to_le_bytes();
                word.copy_from_slice(&random[..word.len()]);
            });
            self.data = Some(data.freeze());
        }
    }

    async fn run(mut self) {
        while let Some((due, counts)) = self.state.next(&mut self.random).await {
            let next = self.share.next(&mut self.random);
            self.place(next.1, counts);
            let reads = self.read_share == 100 || self.random.below(100) < self.read_share;
            let result =
                if reads { self.read(next, due, counts).await } else { self.write(next, due, counts).await };
            if let Err(error) = result {
                self.state.report.borrow_mut().lost(error);
                break;
            }
        }
        self.state.running.set(self.state.running.get() - 1);
        self.state.ended.notify_all();
    }

    fn record(&self, read: bool, started: Instant, status: Status, counts: bool) {
        let now = peristyle_rt::now();
        if counts {
            self.state.last.set(now);
            self.state.report.borrow_mut().record(read, self.bytes, now.nanos_since(started), status);
        }
    }

    fn place(&self, place: u64, counts: bool) {
        let offset = place * u64::from(self.bytes);
        let before = self.end.replace(Some(offset + u64::from(self.bytes)));
        if counts {
            self.state.report.borrow_mut().placement.add(offset, self.bytes, before);
        }
    }

    async fn read(
        &mut self,
        (index, place): (u64, u64),
        due: Option<Instant>,
        counts: bool,
    ) -> Result<(), HostError> {
        let offset = place * u64::from(self.bytes);
        let sqe = self.namespace.read(offset, self.bytes);
        let buf = self.buf.take().expect("a worker has one command in flight");
        let started = due.unwrap_or_else(peristyle_rt::now);
        let answer = self.queue.command(sqe, Payload::FromTarget(buf)).await?;
        self.record(true, started, answer.status(), counts);
        let buf = answer.data.expect("a command with a buffer keeps it");
        if let Some(memory) = &self.memory
            && answer.cqe.status().is_success()
            && !memory.is_right(index, offset, &buf)
        {
            self.state.report.borrow_mut().mismatch(offset);
        }
        self.buf = Some(buf);
        Ok(())
    }

    async fn write(
        &mut self,
        (index, place): (u64, u64),
        due: Option<Instant>,
        counts: bool,
    ) -> Result<(), HostError> {
        let offset = place * u64::from(self.bytes);
        let data = match &mut self.memory {
            None => self.data.clone().expect("made before the first command"),
            Some(memory) => {
                let mut buf = Buf::alloc(self.bytes as usize).await;
                memory.write(index, offset, &mut buf);
                buf.freeze()
            }
        };
        let sqe = self.namespace.write(offset, self.bytes);
        let started = due.unwrap_or_else(peristyle_rt::now);
        let status = self.queue.command(sqe, Payload::ToTarget(data)).await?.status();
        self.record(false, started, status, counts);
        if let Some(memory) = &mut self.memory
            && !status.is_success()
        {
            memory.last[index as usize] = 0;
        }
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
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    pub fn load(pattern: Pattern, verify: bool, depth: u32, jobs: u16) -> Workload {
        Workload {
            block_bytes: 4096,
            pattern,
            rate: None,
            read_share: 50,
            depth,
            jobs,
            length: Length::Count(1),
            warmup: Duration::ZERO,
            verify,
            seed: 1,
            digests: Digests::default(),
        }
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
                let share = Stream::new(&load, total, job).share;
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
