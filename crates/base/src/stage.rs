//! Stage statistics: what is in flight, how many passed, how long each took, and the proof by Little's law.
//!
//! One owner (a reactor) writes; a snapshot is a copy that travels by message. No locks, no atomics.

use crate::{Histogram, Instant, RecentSums};

/// One stage of a path, or one device's or peer's part in it.
#[derive(Clone, Default)]
pub struct Stage {
    in_flight: u64,
    entered: u64,
    latency: Histogram,
    /// Integral of `in_flight` over time, in nanoseconds: the L of Little's law without sampling.
    area: u128,
    since: Instant,
    changed: Instant,
    /// How many left, and how long they took.
    recent: RecentSums<2>,
    errors: u64,
}

impl Stage {
    fn advance(&mut self, now: Instant) {
        if self.entered == 0 {
            (self.since, self.changed) = (now, now);
        }
        self.area += self.in_flight as u128 * now.nanos_since(self.changed) as u128;
        self.changed = self.changed.max(now);
    }

    /// One more request is in this stage.
    pub fn enter(&mut self, now: Instant) {
        self.advance(now);
        self.entered += 1;
        self.in_flight += 1;
    }

    /// A request that came in at `entered` leaves.
    pub fn leave(&mut self, entered: Instant, now: Instant) {
        self.advance(now);
        assert!(self.in_flight > 0, "a request left a stage that it had not entered");
        self.in_flight -= 1;
        let took = now.nanos_since(entered);
        self.latency.record(took);
        self.recent.add(now, [1, took]);
    }

    /// A request came in at `entered` and has left at `left`, and nobody else came or went in between.
    pub fn pass(&mut self, entered: Instant, left: Instant) {
        self.enter(entered);
        self.leave(entered, left);
    }

    /// A request leaves by failing: counted apart, and its time counts too.
    pub fn leave_failed(&mut self, entered: Instant, now: Instant) {
        self.errors += 1;
        self.leave(entered, now);
    }

    pub fn snapshot(&self, now: Instant) -> StageSnapshot {
        let mut me = self.clone();
        me.advance(now);
        let elapsed = now.nanos_since(me.since);
        let [count_3s, sum_3s] = me.recent.sums(now);
        StageSnapshot {
            in_flight: me.in_flight,
            completed: me.latency.count(),
            errors: me.errors,
            elapsed_ns: elapsed,
            in_flight_area: me.area,
            count_3s,
            sum_3s_ns: sum_3s,
            latency: me.latency,
        }
    }
}

/// A copy of one stage's figures at one moment. Those of several reactors add up with [`merge`](Self::merge).
#[derive(Clone, Default)]
pub struct StageSnapshot {
    pub in_flight: u64,
    pub completed: u64,
    pub errors: u64,
    pub elapsed_ns: u64,
    pub in_flight_area: u128,
    pub count_3s: u64,
    pub sum_3s_ns: u64,
    pub latency: Histogram,
}

impl StageSnapshot {
    pub fn merge(&mut self, other: &StageSnapshot) {
        self.in_flight += other.in_flight;
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
    /// |L - lambda W| / L: how far Little's law is off. Exact when nothing is in flight.
    pub fn little_error(&self) -> f64 {
        let l = self.mean_in_flight();
        if l == 0.0 { 0.0 } else { (l - self.rate() * self.latency.mean() / 1e9).abs() / l }
    }
}

#[cfg(test)]
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
}
