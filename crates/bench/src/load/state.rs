//! When the commands of one reactor begin, and what is reported of them.

use super::{Length, Part};
use crate::random::Random;
use crate::report::{Kind, Report};
use peristyle_base::{Duration, Instant};
use peristyle_nvme::wire::Status;
use std::cell::{Cell, RefCell};

/// Whoever waits for a command's turn looks so often whether the run is to end.
const LOOK_PERIOD: Duration = Duration::from_millis(100);

/// What commands begin when, on one reactor.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub length: Length,
    /// Not measured, before.
    pub warmup: Duration,
    /// With a rate: nanoseconds between two commands of this reactor on average.
    pub gap_ns: Option<f64>,
    /// One command does not know of the other. Else gaps are all alike.
    pub poisson: bool,
}

/// What the workers of one reactor share.
pub(crate) struct State {
    plan: Plan,
    part: Part,
    /// Measured is what starts from then on, and what starts until then.
    from: Cell<Instant>,
    until: Cell<Instant>,
    /// When the warm-up began.
    began: Cell<Instant>,
    /// Commands that may still be started.
    left: Cell<u64>,
    /// When the next command of an open loop should begin.
    next_ns: Cell<f64>,
    last: Cell<Instant>,
    busy_before: Cell<u64>,
    pub report: RefCell<Report>,
}

impl State {
    pub fn new(plan: Plan, part: &Part) -> State {
        let left = match plan.length {
            Length::Time(_) => u64::MAX,
            // The first parts do what does not divide.
            Length::Count(n) => {
                let of = u64::from(part.of);
                n / of + u64::from(u64::from(part.index) < n % of)
            }
        };
        State {
            plan,
            part: part.clone(),
            from: Cell::new(Instant::ZERO),
            until: Cell::new(Instant::FAR),
            began: Cell::new(Instant::ZERO),
            left: Cell::new(left),
            next_ns: Cell::new(0.0),
            last: Cell::new(Instant::ZERO),
            busy_before: Cell::new(0),
            report: RefCell::new(Report::default()),
        }
    }

    pub fn start(&self) {
        let now = peristyle_rt::now();
        self.from.set(now + self.plan.warmup);
        self.until.set(match self.plan.length {
            Length::Time(time) => self.from.get() + time,
            Length::Count(_) => Instant::FAR,
        });
        self.last.set(self.from.get());
        self.began.set(now);
        self.busy_before.set(peristyle_rt::busy_nanos());
    }

    /// Waits for the next command's turn: when it should have begun, in an open loop, and whether it counts. `None`: there
    /// is no next one.
    pub async fn next(&self, random: &mut Random) -> Option<(Option<Instant>, bool)> {
        let due = match self.plan.gap_ns {
            None => None,
            Some(gap_ns) => {
                let at = self.next_ns.get();
                let gap = if self.plan.poisson { -(1.0 - random.unit()).ln() * gap_ns } else { gap_ns };
                self.next_ns.set(at + gap);
                Some(self.began.get() + Duration::from_nanos(at as u64))
            }
        };
        self.turn(due).await
    }

    /// The same of a command that should begin so long after the warm-up's beginning.
    pub async fn next_at(&self, after: Duration) -> Option<(Option<Instant>, bool)> {
        self.turn(Some(self.began.get() + after)).await
    }

    async fn turn(&self, due: Option<Instant>) -> Option<(Option<Instant>, bool)> {
        let now = peristyle_rt::now();
        if let Some(due) = due.filter(|due| *due > now && *due < self.until.get()) {
            self.sleep_until(due).await;
        }
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

    /// Not beyond an early end.
    async fn sleep_until(&self, due: Instant) {
        while !self.part.gate.is_ended() {
            let now = peristyle_rt::now();
            if due <= now {
                return;
            }
            peristyle_rt::sleep(due.since(now).min(LOOK_PERIOD)).await;
        }
    }

    /// Commands of an open loop that should have begun before the end, and that nobody came to.
    fn left_in_schedule(&self) -> u64 {
        let (Some(gap_ns), Length::Time(_)) = (self.plan.gap_ns, self.plan.length) else { return 0 };
        let end = self.until.get().since(self.began.get()).as_nanos() as f64;
        ((end - self.next_ns.get()) / gap_ns).max(0.0) as u64
    }

    /// Whether a command may start now, and whether it counts.
    fn admit(&self, now: Instant) -> Option<bool> {
        if self.part.gate.is_ended() && self.until.get() > peristyle_rt::now() {
            self.until.set(peristyle_rt::now());
            self.report.borrow_mut().interrupted = true;
        }
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

    /// A command that began or should have begun at `started` was answered at `ended`.
    pub fn answered(&self, kind: Kind, bytes: u32, started: Instant, (ended, status): (Instant, Status)) {
        self.last.set(self.last.get().max(ended));
        let mut report = self.report.borrow_mut();
        let nanos = ended.nanos_since(started);
        if !report.record(kind, bytes, nanos, status) {
            return;
        }
        let progress = self.part.progress();
        progress.add(u64::from(bytes));
        let at = ended.since(self.from.get());
        if let Some((p50, p99)) = report.timeline.record(kind, at, u64::from(bytes), nanos) {
            progress.interval(p50, p99);
        }
    }

    /// Everything has ended.
    pub fn finish(&self) -> Report {
        let mut report = self.report.take();
        report.unserved += self.left_in_schedule();
        report.elapsed = self.last.get().since(self.from.get());
        report.timeline.finish(report.elapsed);
        report.finish(self.busy_before.get(), peristyle_rt::busy_nanos());
        report
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::rc::Rc;

    /// Commands of two seconds, each of which takes so long, by so many workers: what was reported, and when they began.
    async fn open_loop(poisson: bool, service: Duration, workers: usize) -> (Report, Vec<Duration>) {
        let length = Length::Time(Duration::from_secs(2));
        let plan = Plan { length, warmup: Duration::ZERO, gap_ns: Some(1e6), poisson };
        let state = Rc::new(State::new(plan, &Part::alone()));
        state.start();
        let began = Rc::new(RefCell::new(Vec::new()));
        let work = (0..workers).map(|worker| {
            let (state, began, mut random) = (state.clone(), began.clone(), Random::new(worker as u64));
            async move {
                while let Some((Some(started), true)) = state.next(&mut random).await {
                    began.borrow_mut().push(started.since(state.began.get()));
                    peristyle_rt::sleep(service).await;
                    state.answered(Kind::Read, 4096, started, (peristyle_rt::now(), Status::SUCCESS));
                }
            }
        });
        peristyle_rt::join_all(work.collect::<Vec<_>>()).await;
        (state.finish(), began.take())
    }

    #[test]
    fn a_run_that_is_asked_to_end_begins_nothing_more_and_says_so() {
        peristyle_rt::sim::run(2, |_| async {
            for gap_ns in [None, Some(1e6), Some(1e11)] {
                let end = std::sync::Arc::default();
                let part =
                    Part { gate: super::super::Gate::until(1, std::sync::Arc::clone(&end)), ..Part::alone() };
                let length = Length::Time(Duration::from_secs(1000));
                let plan = Plan { length, warmup: Duration::ZERO, gap_ns, poisson: false };
                let state = Rc::new(State::new(plan, &part));
                state.start();
                let work = async {
                    let mut random = Random::new(1);
                    while state.next(&mut random).await.is_some() {
                        let started = peristyle_rt::now();
                        peristyle_rt::sleep(Duration::from_millis(1)).await;
                        state.answered(Kind::Read, 4096, started, (peristyle_rt::now(), Status::SUCCESS));
                    }
                };
                let ask = async {
                    peristyle_rt::sleep(Duration::from_secs(2)).await;
                    end.store(true, std::sync::atomic::Ordering::Relaxed);
                };
                peristyle_rt::join(work, ask).await;
                let report = state.finish();
                assert!(report.interrupted && report.unserved <= 1, "{} unserved", report.unserved);
                assert!(report.elapsed <= Duration::from_millis(2002), "{:?}", report.elapsed);
                let some = gap_ns.is_none_or(|gap_ns| gap_ns < 1e9);
                assert_eq!(report.reads.latency.count() > 1000, some);
            }
        });
    }

    #[test]
    fn latency_of_an_open_loop_counts_from_when_a_command_should_have_begun() {
        peristyle_rt::sim::run(1, |_| async {
            let (quick, began) = open_loop(false, Duration::from_micros(200), 4).await;
            assert!(began.iter().enumerate().all(|(n, at)| *at == Duration::from_millis(n as u64)));
            assert_eq!((began.len(), quick.late, quick.unserved), (2000, 0, 0));
            assert!(quick.reads.latency.max() < 300_000, "{}", quick.reads.latency.max());
            assert_eq!(quick.timeline.intervals().len(), 2);
            // One worker serves half of what comes: of the last it is told that they waited for a second.
            let (slow, _) = open_loop(false, Duration::from_millis(2), 1).await;
            assert!((900_000_000..1_100_000_000).contains(&slow.reads.latency.max()));
            assert!((990..1010).contains(&slow.unserved) && slow.late_share() > 0.99, "{}", slow.unserved);
            let (_, began) = open_loop(true, Duration::from_micros(200), 8).await;
            let gaps: Vec<f64> = began.windows(2).map(|two| (two[1] - two[0]).as_secs_f64() * 1e3).collect();
            let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
            let variance = gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / gaps.len() as f64;
            assert!((0.9..1.1).contains(&mean) && (0.8..1.2).contains(&variance), "{mean} ms, {variance}");
        });
    }
}
