//! When the commands of one reactor begin, and what is reported of them.

use super::{Length, Part, Worker, Workload};
use crate::random::Random;
use crate::report::Report;
use peristyle_base::{Duration, Instant};
use peristyle_rt::sync::Notify;
use std::cell::{Cell, RefCell};

/// What the workers of one reactor share.
pub(super) struct State {
    /// Measured is what starts from then on.
    pub from: Cell<Instant>,
    pub until: Cell<Instant>,
    /// When the warm-up began.
    began: Cell<Instant>,
    /// Commands that may still be started.
    left: Cell<u64>,
    time: Duration,
    pub running: Cell<usize>,
    pub ended: Notify,
    pub last: Cell<Instant>,
    pub report: RefCell<Report>,
    pub workers: RefCell<Vec<Worker>>,
    warmup: Duration,
    /// With a rate: nanoseconds between two commands of this reactor on average, and when the next one should begin.
    gap_ns: Option<f64>,
    poisson: bool,
    next_ns: Cell<f64>,
}

impl State {
    pub fn new(load: &Workload, part: &Part) -> State {
        let (time, left) = match load.length {
            Length::Time(time) => (time, u64::MAX),
            // The first parts do what does not divide.
            Length::Count(n) => {
                let of = u64::from(part.of);
                (Duration::MAX, n / of + u64::from(u64::from(part.index) < n % of))
            }
        };
        State {
            from: Cell::new(Instant::ZERO),
            until: Cell::new(Instant::FAR),
            began: Cell::new(Instant::ZERO),
            left: Cell::new(left),
            time,
            running: Cell::new(0),
            ended: Notify::default(),
            last: Cell::new(Instant::ZERO),
            report: RefCell::new(Report::default()),
            workers: RefCell::new(Vec::new()),
            warmup: load.warmup,
            gap_ns: load.rate.map(|rate| {
                let mine = load.jobs_of(part).count() as f64 / f64::from(load.jobs);
                1e9 / (rate.per_second * mine)
            }),
            poisson: load.rate.is_some_and(|rate| rate.poisson),
            next_ns: Cell::new(0.0),
        }
    }

    pub fn start(&self) -> u64 {
        let now = peristyle_rt::now();
        self.from.set(now + self.warmup);
        self.until.set(self.from.get() + self.time);
        self.last.set(self.from.get());
        self.began.set(now);
        peristyle_rt::busy_nanos()
    }

    /// Waits for the next command's turn: when it should have begun, in an open loop, and whether it counts. `None`: there
    /// is no next one.
    pub async fn next(&self, random: &mut Random) -> Option<(Option<Instant>, bool)> {
        let due = self.turn(random).await;
        let now = peristyle_rt::now();
        let counts = self.admit(due.unwrap_or(now))?;
        if let (Some(due), true) = (due, counts) {
            let over = now >= self.until.get();
            self.report.borrow_mut().began(now.nanos_since(due), over);
            if over {
                return None;
            }
        }
        Some((due, counts))
    }

    /// In an open loop: waits until the next command should begin, and returns when that is, which may be past.
    async fn turn(&self, random: &mut Random) -> Option<Instant> {
        let gap_ns = self.gap_ns?;
        let at = self.next_ns.get();
        let gap = if self.poisson { -(1.0 - random.unit()).ln() * gap_ns } else { gap_ns };
        self.next_ns.set(at + gap);
        let due = self.began.get() + Duration::from_nanos(at as u64);
        let now = peristyle_rt::now();
        if due > now && due < self.until.get() {
            peristyle_rt::sleep(due.since(now)).await;
        }
        Some(due)
    }

    /// Commands of an open loop that should have begun before the end, and that nobody came to.
    pub fn left_in_schedule(&self) -> u64 {
        let (Some(gap_ns), true) = (self.gap_ns, self.time < Duration::MAX) else { return 0 };
        let end = self.until.get().since(self.began.get()).as_nanos() as f64;
        ((end - self.next_ns.get()) / gap_ns).max(0.0) as u64
    }

    /// Whether a command may start now, and whether it counts.
    fn admit(&self, now: Instant) -> Option<bool> {
        if now >= self.until.get() {
            return None;
        }
        if now < self.from.get() {
            return Some(false);
        }
        let left = self.left.get();
        if left == 0 {
            return None;
        }
        self.left.set(left - 1);
        Some(true)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::load;
    use super::super::{Gate, Rate};
    use super::*;
    use crate::pattern::Pattern;
    use peristyle_nvme::wire::Status;
    use std::rc::Rc;

    /// Commands of two seconds, each of which takes so long, by so many workers: what was reported, and when they began.
    async fn open_loop(rate: Rate, service: Duration, workers: usize) -> (Report, Vec<Duration>) {
        let load = Workload {
            rate: Some(rate),
            length: Length::Time(Duration::from_secs(2)),
            ..load(Pattern::Random, false, workers as u32, 1)
        };
        let state = Rc::new(State::new(&load, &Part { index: 0, of: 1, gate: Gate::new(1) }));
        state.start();
        let began = Rc::new(RefCell::new(Vec::new()));
        let work = (0..workers).map(|worker| {
            let (state, began, mut random) = (state.clone(), began.clone(), Random::new(worker as u64));
            async move {
                while let Some((Some(started), true)) = state.next(&mut random).await {
                    began.borrow_mut().push(started.since(state.began.get()));
                    peristyle_rt::sleep(service).await;
                    let nanos = peristyle_rt::now().nanos_since(started);
                    state.report.borrow_mut().record(true, 4096, nanos, Status::SUCCESS);
                }
            }
        });
        peristyle_rt::join_all(work.collect::<Vec<_>>()).await;
        let mut report = state.report.take();
        report.unserved += state.left_in_schedule();
        (report, began.take())
    }

    #[test]
    fn latency_of_an_open_loop_counts_from_when_a_command_should_have_begun() {
        peristyle_rt::sim::run(1, |_| async {
            let even = Rate { per_second: 1000.0, poisson: false };
            let (quick, began) = open_loop(even, Duration::from_micros(200), 4).await;
            assert!(began.iter().enumerate().all(|(n, at)| *at == Duration::from_millis(n as u64)));
            assert_eq!((began.len(), quick.late, quick.unserved), (2000, 0, 0));
            assert!(quick.reads.latency.max() < 300_000, "{}", quick.reads.latency.max());
            // One worker serves half of what comes: of the last it is told that they waited for a second.
            let (slow, _) = open_loop(even, Duration::from_millis(2), 1).await;
            assert!((900_000_000..1_100_000_000).contains(&slow.reads.latency.max()));
            assert!((990..1010).contains(&slow.unserved) && slow.late_share() > 0.99, "{}", slow.unserved);
            let poisson = Rate { per_second: 1000.0, poisson: true };
            let (_, began) = open_loop(poisson, Duration::from_micros(200), 8).await;
            let gaps: Vec<f64> = began.windows(2).map(|two| (two[1] - two[0]).as_secs_f64() * 1e3).collect();
            let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
            let variance = gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / gaps.len() as f64;
            assert!((0.9..1.1).contains(&mean) && (0.8..1.2).contains(&variance), "{mean} ms, {variance}");
        });
    }
}
