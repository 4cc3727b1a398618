//! Stage statistics: what is in flight, how many passed, how long each took, and the proof by Little's law.
//!
//! One owner (a reactor) writes; a snapshot is a copy that travels by message. No locks, no atomics.

use crate::{Histogram, Instant, RecentSums};

/// False: this program was built to count nothing (feature `stages-off`), so that the price of counting can be measured.
pub const COUNTED: bool = !cfg!(feature = "stages-off");

/// One stage of a path, or one device's or peer's part in it.
#[derive(Clone, Default)]
pub struct Stage {
    in_flight: u64,
    /// Integral of `in_flight` over time, in nanoseconds: the L of Little's law without sampling.
    area: u128,
    changed: Instant,
    /// When those in flight came in, all together, modulo 2^64: what they have waited follows from it.
    entered_at: u64,
    latency: Histogram,
    /// How many had left, and how long they took, when each of the last seconds began.
    recent: RecentSums<2>,
    since: Instant,
    errors: u64,
}

impl Stage {
    /// Nobody has come in yet.
    #[inline]
    fn is_new(&self) -> bool {
        self.in_flight == 0 && self.latency.count() == 0
    }

    #[inline]
    fn advance(&mut self, now: Instant) {
        self.area = self.area_until(now);
        self.changed = self.changed.max(now);
    }

    #[inline]
    fn area_until(&self, now: Instant) -> u128 {
        self.area + self.in_flight as u128 * now.nanos_since(self.changed) as u128
    }

    /// One more request is in this stage.
    #[inline]
    pub fn enter(&mut self, now: Instant) {
        self.enter_many(now, 1);
    }

    /// So many requests come in together.
    #[inline]
    pub fn enter_many(&mut self, now: Instant, requests: u64) {
        if !COUNTED {
            return;
        }
        if self.is_new() {
            self.since = now;
        }
        self.advance(now);
        self.in_flight += requests;
        self.entered_at = self.entered_at.wrapping_add(now.0.wrapping_mul(requests));
    }

    /// A request that came in at `entered` leaves.
    #[inline]
    pub fn leave(&mut self, entered: Instant, now: Instant) {
        self.leave_many(entered, now, 1);
    }

    /// So many requests that came in together leave together.
    #[inline]
    pub fn leave_many(&mut self, entered: Instant, now: Instant, requests: u64) {
        if !COUNTED {
            return;
        }
        self.advance(now);
        assert!(self.in_flight >= requests, "a request left a stage that it had not entered");
        self.in_flight -= requests;
        self.entered_at = self.entered_at.wrapping_sub(entered.0.wrapping_mul(requests));
        self.record(now, now.nanos_since(entered), requests);
    }

    #[inline]
    fn record(&mut self, now: Instant, took: u64, requests: u64) {
        let latency = &mut self.latency;
        self.recent.tick(now, || [latency.count(), latency.sum() as u64]);
        latency.record_many(took, requests);
    }

    /// A request came in at `entered` and has left at `left`; those who are here stay.
    #[inline]
    pub fn pass(&mut self, entered: Instant, left: Instant) {
        self.pass_many(entered, left, 1);
    }

    /// So many requests came in and have left together: as if they had entered and left, for less.
    #[inline]
    pub fn pass_many(&mut self, entered: Instant, left: Instant, requests: u64) {
        if !COUNTED {
            return;
        }
        if self.is_new() {
            self.since = entered;
        }
        let took = left.nanos_since(entered);
        self.advance(left);
        self.area += took as u128 * requests as u128;
        self.record(left, took, requests);
    }

    /// A request leaves by failing: counted apart, and its time counts too.
    pub fn leave_failed(&mut self, entered: Instant, now: Instant) {
        self.leave_failed_many(entered, now, 1);
    }

    /// So many requests that came in together leave by failing.
    pub fn leave_failed_many(&mut self, entered: Instant, now: Instant, requests: u64) {
        if COUNTED {
            self.errors += requests;
        }
        self.leave_many(entered, now, requests);
    }

    /// How many have left, and how long they took, all together.
    pub fn left(&self) -> (u64, u128) {
        (self.latency.count(), self.latency.sum())
    }

    pub fn snapshot(&self, now: Instant) -> StageSnapshot {
        let since = if self.is_new() { now } else { self.since };
        let [count_3s, sum_3s] = self.recent.lately(now, [self.latency.count(), self.latency.sum() as u64]);
        StageSnapshot {
            in_flight: self.in_flight,
            age_ns: self.in_flight.wrapping_mul(now.0).wrapping_sub(self.entered_at) as i64,
            in_flight_before: 0,
            age_before_ns: 0,
            completed: self.latency.count(),
            errors: self.errors,
            elapsed_ns: now.nanos_since(since),
            in_flight_area: self.area_until(now),
            count_3s,
            sum_3s_ns: sum_3s,
            latency: self.latency.trimmed(),
        }
    }
}

/// A copy of one stage's figures at one moment. Those of several reactors add up with [`merge`](Self::merge).
#[derive(Clone)]
pub struct StageSnapshot {
    pub in_flight: u64,
    /// How long those in flight have been here, all together, if they came in when they will say they did.
    pub age_ns: i64,
    /// Of a difference: the same two at its beginning.
    pub in_flight_before: u64,
    pub age_before_ns: i64,
    pub completed: u64,
    pub errors: u64,
    pub elapsed_ns: u64,
    pub in_flight_area: u128,
    pub count_3s: u64,
    pub sum_3s_ns: u64,
    pub latency: Histogram,
}

impl Default for StageSnapshot {
    fn default() -> StageSnapshot {
        StageSnapshot {
            in_flight: 0,
            age_ns: 0,
            in_flight_before: 0,
            age_before_ns: 0,
            completed: 0,
            errors: 0,
            elapsed_ns: 0,
            in_flight_area: 0,
            count_3s: 0,
            sum_3s_ns: 0,
            latency: Histogram::none(),
        }
    }
}

impl StageSnapshot {
    pub fn merge(&mut self, other: &StageSnapshot) {
        self.in_flight += other.in_flight;
        self.age_ns += other.age_ns;
        self.in_flight_before += other.in_flight_before;
        self.age_before_ns += other.age_before_ns;
        self.completed += other.completed;
        self.errors += other.errors;
        self.elapsed_ns = self.elapsed_ns.max(other.elapsed_ns);
        self.in_flight_area += other.in_flight_area;
        self.count_3s += other.count_3s;
        self.sum_3s_ns += other.sum_3s_ns;
        self.latency.merge(&other.latency);
    }
    /// Mean number in flight (L), from the integral over time.
    pub fn mean_in_flight(&self) -> f64 {
        if self.elapsed_ns == 0 { 0.0 } else { self.in_flight_area as f64 / self.elapsed_ns as f64 }
    }
    /// Completions per second (lambda).
    pub fn rate(&self) -> f64 {
        if self.elapsed_ns == 0 { 0.0 } else { self.completed as f64 * 1e9 / self.elapsed_ns as f64 }
    }
    /// Mean over the last three whole seconds, in nanoseconds; 0 when nothing completed in them.
    pub fn mean_3s_ns(&self) -> f64 {
        if self.count_3s == 0 { 0.0 } else { self.sum_3s_ns as f64 / self.count_3s as f64 }
    }
    /// How far Little's law is off: |L - lambda W| / the larger of both. W counts what was spent here in this time, so what
    /// those waited who are still here is added, and what those had waited before who were here at the beginning is
    /// taken off. Then the law holds exactly, of any time, unless somebody leaves as having come in when he did not.
    /// In a stage that is never empty that would look like ever older requests; hence those in flight are taken to be no older
    /// than any that came out. So it is off too while requests are stuck for longer than that, by their share of the time.
    pub fn little_error(&self) -> f64 {
        let credible =
            |age: i64, in_flight: u64| (age as i128).clamp(0, in_flight as i128 * self.latency.max() as i128);
        let ages =
            credible(self.age_ns, self.in_flight) - credible(self.age_before_ns, self.in_flight_before);
        let spent = self.latency.sum() as i128 + ages;
        let area = self.in_flight_area as i128;
        let larger = area.max(spent);
        if larger <= 0 { 0.0 } else { area.abs_diff(spent) as f64 / larger as f64 }
    }
    /// What happened since `earlier`, a copy of the same stage.
    pub fn minus(&self, earlier: &StageSnapshot) -> StageSnapshot {
        StageSnapshot {
            in_flight: self.in_flight,
            age_ns: self.age_ns,
            in_flight_before: earlier.in_flight,
            age_before_ns: earlier.age_ns,
            completed: self.completed.saturating_sub(earlier.completed),
            errors: self.errors.saturating_sub(earlier.errors),
            elapsed_ns: self.elapsed_ns.saturating_sub(earlier.elapsed_ns),
            in_flight_area: self.in_flight_area.saturating_sub(earlier.in_flight_area),
            count_3s: self.count_3s,
            sum_3s_ns: self.sum_3s_ns,
            latency: self.latency.minus(&earlier.latency),
        }
    }
}

#[cfg(all(test, not(feature = "stages-off")))]
mod tests {
    use super::*;

    #[test]
    fn littles_law_holds_when_all_have_left() {
        let mut stage = Stage::default();
        let mut entered = Vec::new();
        for i in 0..1000u64 {
            let now = Instant(i * 1_000);
            stage.enter(now);
            entered.push(now);
            if i >= 7 {
                stage.leave(entered.remove(0), Instant(i * 1_000 + 300));
            }
        }
        for at in entered {
            stage.leave(at, Instant(2_000_000));
        }
        let s = stage.snapshot(Instant(3_000_000));
        assert_eq!((s.in_flight, s.completed), (0, 1000));
        assert!(s.little_error() < 1e-9, "{}", s.little_error());
    }

    #[test]
    #[should_panic(expected = "had not entered")]
    fn leaving_without_entering_is_a_bug() {
        Stage::default().leave(Instant(1), Instant(2));
    }

    #[test]
    fn littles_law_holds_between_any_two_moments_and_a_wrong_area_breaks_it() {
        let mut stage = Stage::default();
        let at = |us: u64| Instant(7_000_000_000 + us * 1000);
        (0..100).for_each(|i| stage.enter(at(i)));
        (0..40).for_each(|i| stage.leave(at(i), at(300 + i)));
        let first = stage.snapshot(at(340));
        (40..90).for_each(|i| stage.leave(at(i), at(300 + i)));
        (400..500).for_each(|i| stage.pass(at(i), at(i + 1)));
        (90..100).for_each(|i| stage.leave(at(i), at(600)));
        (600..620).for_each(|i| stage.enter(at(i)));
        let second = stage.snapshot(at(700));
        let between = second.minus(&first);
        assert_eq!((first.in_flight, second.in_flight, between.completed), (60, 20, 160));
        for s in [&first, &second, &between] {
            assert!(s.little_error() < 1e-9, "{}", s.little_error());
        }
        let wrong = StageSnapshot { in_flight_area: between.in_flight_area * 9 / 10, ..between };
        assert!(wrong.little_error() > 0.05, "{}", wrong.little_error());
    }

    #[test]
    fn many_together_are_as_many_apart() {
        let (mut together, mut apart) = (Stage::default(), Stage::default());
        together.enter_many(Instant(1000), 5);
        together.leave_many(Instant(1000), Instant(1700), 5);
        (0..5).for_each(|_| apart.enter(Instant(1000)));
        (0..5).for_each(|_| apart.leave(Instant(1000), Instant(1700)));
        let [a, b] = [together, apart].map(|stage| stage.snapshot(Instant(2000)));
        assert_eq!(
            (a.completed, a.in_flight_area, a.sum_3s_ns),
            (b.completed, b.in_flight_area, b.sum_3s_ns)
        );
        assert_eq!((a.latency.sum(), a.latency.squares()), (b.latency.sum(), b.latency.squares()));
        assert!(a.little_error() < 1e-9);
    }

    /// A stage that is never empty, in which each spends 100 us and is booked with `booked`.
    fn busy(booked_us: u64) -> StageSnapshot {
        let at = |us: u64| Instant(us * 1000);
        let mut stage = Stage::default();
        (0..10).for_each(|i| stage.enter(at(i * 10)));
        for i in 0..10_000u64 {
            stage.leave(at((i * 10 + 100).saturating_sub(booked_us)), at(i * 10 + 100));
            stage.enter(at(i * 10 + 100));
        }
        stage.snapshot(at(10_000 * 10 + 95))
    }

    #[test]
    fn who_leaves_as_having_come_earlier_or_later_than_he_did_breaks_the_law() {
        assert!(busy(100).little_error() < 0.001, "{}", busy(100).little_error());
        for booked_us in [50, 90, 110, 200] {
            assert!(busy(booked_us).little_error() > 0.05, "{booked_us}: {}", busy(booked_us).little_error());
        }
        let mut stage = Stage::default();
        stage.enter(Instant(900));
        stage.leave(Instant(500), Instant(1000));
        assert!(stage.snapshot(Instant(1000)).little_error() > 0.5);
    }

    #[test]
    fn requests_that_are_stuck_show() {
        let mut stage = Stage::default();
        (0..1000).for_each(|i| stage.pass(Instant(i * 1000), Instant(i * 1000 + 500)));
        (0..8).for_each(|_| stage.enter(Instant(1_000_000)));
        assert!(stage.snapshot(Instant(1_000_400)).little_error() < 1e-9);
        assert!(stage.snapshot(Instant(9_000_000)).little_error() > 0.9);
    }
}
