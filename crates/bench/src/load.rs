//! Load: each job is one connection. In a closed loop it keeps as many commands in flight as its depth says. With a rate the
//! loop is open: each command has a moment at which it should begin, and its latency counts from then on, however long it had to
//! wait for one of the others to end. A trace has such moments of its own.

mod gate;
mod path;
mod state;
mod worker;

pub use gate::{Gate, Part, Progress};
use path::Path;
pub(crate) use state::{Plan, State};
use worker::{Source, Worker};

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;

use peristyle_base::{BLOCK_BYTES, Duration};
use peristyle_nvme::host::Traffic;
use peristyle_rt::BufConfig;
use peristyle_rt::buf::CLASS_BYTES;
use peristyle_rt::sync::Notify;

use crate::contents::Contents;
use crate::host::Queue;
use crate::pattern::Pattern;
use crate::report::Report;
use crate::session::{Digests, Namespace, Session, SessionError};
use crate::trace::Trace;

/// Largest `block_bytes`.
pub const IO_BYTES_MAX: u32 = 1 << 20;
pub const DEPTH_MAX: u32 = 1024;
/// Commands per second.
const RATE_MIN: f64 = 0.1;
const RATE_MAX: f64 = 1e8;
/// Places whose last write a verifying run can remember.
const PLACES_MAX: u64 = 1 << 26;

/// What to do, and for how long. The default is random reads of 4 KiB at depth 1 for five seconds.
#[derive(Clone, Debug, PartialEq)]
pub struct Workload {
    /// Bytes of a command; of a trace's largest one.
    pub block_bytes: u32,
    pub pattern: Pattern,
    /// Reads among the commands, percent.
    pub read_share: u8,
    /// Commands in flight of each job; with a rate at most so many.
    pub depth: u32,
    /// Commands that begin in a second, over all jobs.
    pub rate: Option<Rate>,
    /// Connections of each volume.
    pub jobs: u16,
    pub length: Length,
    /// Load that is not measured, before.
    pub warmup: Duration,
    pub region: Region,
    pub contents: Contents,
    /// Every block says what it is, and reads are compared.
    pub verify: bool,
    pub seed: u64,
    pub digests: Digests,
    /// Requests of a trace, in place of pattern, read share and rate.
    pub replay: Option<Arc<Replay>>,
}

impl Default for Workload {
    fn default() -> Workload {
        Workload {
            block_bytes: 4096,
            pattern: Pattern::Random,
            read_share: 100,
            depth: 1,
            rate: None,
            jobs: 1,
            length: Length::Time(Duration::from_secs(5)),
            warmup: Duration::ZERO,
            region: Region::default(),
            contents: Contents::default(),
            verify: false,
            seed: 1,
            digests: Digests::default(),
            replay: None,
        }
    }
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

/// The part of each volume that is used, in bytes; what lies behind the volume's end is left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    pub offset: u64,
    pub bytes: u64,
}

impl Default for Region {
    fn default() -> Region {
        Region { offset: 0, bytes: u64::MAX }
    }
}

impl Region {
    /// Requests of so many bytes that have a place of their own in it.
    fn places(&self, namespace: &Namespace, block_bytes: u32) -> u64 {
        namespace.bytes.saturating_sub(self.offset).min(self.bytes) / u64::from(block_bytes.max(1))
    }
}

/// A trace, and how it is replayed.
#[derive(Clone, Debug, PartialEq)]
pub struct Replay {
    pub trace: Trace,
    /// So many times as fast as it was recorded. Without: each command begins when another ends.
    pub speed: Option<f64>,
}

/// Requests of so many bytes that may be on their way on one connection to a target with such limits.
pub fn depth_max(bytes: u32, transfer_bytes_max: u32, entries_max: u32) -> u32 {
    DEPTH_MAX.min((entries_max - 1) / parts(bytes, transfer_bytes_max))
}

/// Commands that a request of so many bytes is made of: a target takes only so much in one (MDTS).
fn parts(bytes: u32, transfer_bytes_max: u32) -> u32 {
    bytes.div_ceil(transfer_bytes_max.max(1)).max(1)
}

impl Workload {
    /// What is wrong with it for this namespace, in words.
    pub fn check(&self, namespace: &Namespace, session: &Session) -> Result<(), String> {
        let (bytes, most) = (self.block_bytes, IO_BYTES_MAX);
        let depth_max = depth_max(bytes, session.transfer_bytes_max, session.entries_max);
        if self.depth == 0 || self.depth > depth_max {
            return Err(format!("--qd {}: from 1 to {depth_max}", self.depth));
        }
        if let Some(replay) = &self.replay {
            return replay.trace.check(namespace.bytes, namespace.lba_bytes, most);
        }
        if bytes == 0 || bytes % namespace.lba_bytes != 0 {
            return Err(format!(
                "--bs {bytes} is no multiple of the volume's block size {}",
                namespace.lba_bytes
            ));
        }
        if bytes > most {
            return Err(format!("--bs {bytes}: at most {most}"));
        }
        if self.region.offset % u64::from(namespace.lba_bytes) != 0 {
            return Err(format!("--offset: no multiple of the volume's block size {}", namespace.lba_bytes));
        }
        if self.rate.is_some_and(|rate| !(RATE_MIN..=RATE_MAX).contains(&rate.per_second)) {
            return Err(format!("--rate: from {RATE_MIN} to {RATE_MAX} commands a second"));
        }
        let places = self.region.places(namespace, bytes);
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

    /// Requests in flight of each volume.
    fn workers(&self) -> u64 {
        u64::from(self.depth) * u64::from(self.jobs)
    }

    /// Buffers that a reactor of the generator needs at most, with a target that takes `part_bytes` in a command.
    pub fn buffers(&self, volumes: usize, part_bytes: u32) -> BufConfig {
        let workers = self.workers() * volumes as u64;
        let mut config = buffers_for(self.block_bytes, workers);
        let mut add = |bytes: u32, count: u64| {
            let more = buffers_for(bytes, count).counts;
            let small = BufConfig::small().counts;
            config
                .counts
                .iter_mut()
                .zip(more)
                .zip(small)
                .for_each(|((have, more), small)| *have += more - small);
        };
        if self.block_bytes > part_bytes {
            let whole = self.block_bytes / part_bytes;
            add(part_bytes, workers * u64::from(whole));
            add(self.block_bytes % part_bytes, workers);
        }
        if self.replay.is_some() {
            // Of every size, since requests are.
            CLASS_BYTES
                .iter()
                .filter(|size| **size < self.block_bytes as usize)
                .for_each(|size| add(*size as u32, workers));
        }
        config
    }

    /// Nanoseconds between two commands of one reactor.
    fn gap_ns(&self, jobs: usize, all_jobs: usize) -> Option<f64> {
        self.rate.map(|rate| 1e9 * all_jobs as f64 / (rate.per_second * jobs.max(1) as f64))
    }
}

/// For so many requests of this size at once.
pub(crate) fn buffers_for(block_bytes: u32, requests: u64) -> BufConfig {
    let mut config = BufConfig::small();
    let class = CLASS_BYTES.iter().position(|&size| size >= block_bytes as usize);
    config.counts[class.unwrap_or(CLASS_BYTES.len() - 1)] += 2 * requests as usize;
    config
}

/// Runs this reactor's jobs: those of all volumes are dealt out to reactors in turn. All of the memory is taken before the
/// first command.
pub async fn drive(
    session: &Session,
    volumes: &[Namespace],
    load: &Workload,
    part: &Part,
) -> Result<Report, SessionError> {
    let all_jobs = usize::from(load.jobs) * volumes.len();
    let jobs: Vec<usize> =
        (0..all_jobs).filter(|job| job % usize::from(part.of) == usize::from(part.index)).collect();
    session.request_queues(jobs.len() as u16).await?;
    let plan = Plan {
        length: load.length,
        warmup: load.warmup,
        gap_ns: load.gap_ns(jobs.len(), all_jobs),
        poisson: load.rate.is_some_and(|rate| rate.poisson),
    };
    let state = Rc::new(State::new(plan, part));
    let (mut queues, mut workers) = (Vec::new(), Vec::new());
    let sources = load.replay.as_ref().map(|replay| Source::trace(replay, part));
    for (n, job) in jobs.into_iter().enumerate() {
        let entries = load.depth * parts(load.block_bytes, session.transfer_bytes_max);
        let queue = session.ticket().queue(n as u16 + 1, entries).await?;
        let (volume, job) = (volumes[job % volumes.len()], (job / volumes.len()) as u16);
        queues.push(queue.clone());
        let path = Path { queue, namespace: volume, part_bytes: session.transfer_bytes_max };
        let job = worker::Job::new(&path, load, job, &state, sources.clone());
        for slot in 0..load.depth {
            workers.push(job.worker(load, slot).await);
        }
    }
    part.gate.pass().await;
    state.start();
    let before = traffic(&queues);
    together(workers.into_iter().map(Worker::run)).await;
    state.report.borrow_mut().traffic = traffic(&queues).since(&before);
    queues.iter().for_each(Queue::close);
    Ok(state.finish())
}

fn traffic(queues: &[Queue]) -> Traffic {
    let mut sum = Traffic::default();
    queues.iter().for_each(|queue| sum.add(&queue.traffic()));
    sum
}

/// Runs each as a task of its own until all have ended: one that goes on does not look at the others.
pub(crate) async fn together<F: Future<Output = ()> + 'static>(futures: impl Iterator<Item = F>) {
    let left = Rc::new((Cell::new(0usize), Notify::default()));
    for future in futures {
        left.0.set(left.0.get() + 1);
        let left = left.clone();
        peristyle_rt::spawn(async move {
            future.await;
            left.0.set(left.0.get() - 1);
            left.1.notify_all();
        });
    }
    left.1.wait_until(|| left.0.get() == 0).await;
}
