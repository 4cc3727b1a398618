//! What the reactors of one run share: they start to measure together, and whoever waits for them sees how far they are.

use peristyle_base::Duration;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

/// The share of one reactor in a run over several.
#[derive(Clone, Debug)]
pub struct Part {
    pub index: u16,
    pub of: u16,
    pub gate: Arc<Gate>,
}

impl Part {
    /// A run with one reactor.
    pub fn alone() -> Part {
        Part { index: 0, of: 1, gate: Gate::new(1) }
    }
    pub(crate) fn progress(&self) -> &Progress {
        &self.gate.progress[usize::from(self.index)]
    }
}

#[derive(Debug)]
pub struct Gate {
    missing: AtomicU32,
    broken: AtomicU32,
    /// Somebody does not want to wait for the end.
    end: Arc<AtomicBool>,
    progress: Box<[Progress]>,
}

/// How far one reactor is. It alone writes; figures of different moments may be seen together. On a cache line of its own.
#[derive(Debug, Default)]
#[repr(align(64))]
pub struct Progress {
    /// Commands that count, and their bytes.
    pub commands: AtomicU64,
    pub bytes: AtomicU64,
    /// Median and p99 of the last interval that is over, nanoseconds; 0: none is.
    pub p50_ns: AtomicU64,
    pub p99_ns: AtomicU64,
}

impl Gate {
    pub fn new(parts: u16) -> Arc<Gate> {
        Gate::until(parts, Arc::default())
    }
    /// Of a run that begins no more commands once `end` is set.
    pub fn until(parts: u16, end: Arc<AtomicBool>) -> Arc<Gate> {
        Arc::new(Gate {
            missing: AtomicU32::new(u32::from(parts)),
            broken: AtomicU32::new(0),
            end,
            progress: (0..parts).map(|_| Progress::default()).collect(),
        })
    }
    /// This part will not come: the others need not wait.
    pub fn give_up(&self) {
        self.broken.store(1, Ordering::Release);
    }
    pub(crate) async fn pass(&self) {
        self.missing.fetch_sub(1, Ordering::AcqRel);
        while !self.is_open() && self.broken.load(Ordering::Acquire) == 0 {
            peristyle_rt::sleep(Duration::from_millis(1)).await;
        }
    }
    pub(crate) fn is_ended(&self) -> bool {
        self.end.load(Ordering::Relaxed)
    }
    /// All have come: the load has begun.
    pub fn is_open(&self) -> bool {
        self.missing.load(Ordering::Acquire) == 0
    }
    /// Commands and bytes of all reactors so far, and the largest of their medians and p99s of the last interval, nanoseconds.
    pub fn progress(&self) -> [u64; 4] {
        let get = |of: fn(&Progress) -> &AtomicU64| {
            self.progress.iter().map(move |p| of(p).load(Ordering::Relaxed))
        };
        [
            get(|p| &p.commands).sum(),
            get(|p| &p.bytes).sum(),
            get(|p| &p.p50_ns).max().unwrap_or(0),
            get(|p| &p.p99_ns).max().unwrap_or(0),
        ]
    }
}

impl Progress {
    pub(crate) fn add(&self, bytes: u64) {
        // Nobody else writes: no need for a locked addition.
        self.commands.store(self.commands.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        self.bytes.store(self.bytes.load(Ordering::Relaxed) + bytes, Ordering::Relaxed);
    }
    pub(crate) fn interval(&self, p50_ns: u64, p99_ns: u64) {
        self.p50_ns.store(p50_ns, Ordering::Relaxed);
        self.p99_ns.store(p99_ns, Ordering::Relaxed);
    }
}
