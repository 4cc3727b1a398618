//! What latency has been usual lately.

use crate::{Histogram, Instant};

/// The time over which latencies are collected before their p99 counts.
const WINDOW_NS: u64 = 1_000_000_000;
/// So many of them, at least, say something about the hundredth.
const COUNT_MIN: u64 = 100;

/// p99 of the latencies of about the last second in which there were enough of them.
#[derive(Clone, Default)]
pub struct RecentP99 {
    window: Histogram,
    started: Instant,
    p99_ns: u64,
}

impl RecentP99 {
    pub fn record(&mut self, now: Instant, took_ns: u64) {
        if now.nanos_since(self.started) > WINDOW_NS {
            if self.window.count() >= COUNT_MIN {
                self.p99_ns = self.window.quantile(0.99);
            }
            self.window.clear();
            self.started = now;
        }
        self.window.record(took_ns);
    }
    /// In nanoseconds; 0 when unknown.
    pub fn get(&self) -> u64 {
        self.p99_ns
    }
}

/// Seconds that count, and one that goes on.
const SECONDS: u64 = 3;

/// Of N sums that only grow, what they were when each of the last seconds began in which something was added. For the
/// price of a comparison, except once a second.
#[derive(Clone, Copy)]
pub struct RecentSums<const N: usize> {
    /// Nothing is to be noted before.
    next: Instant,
    began: [(u64, [u64; N]); SECONDS as usize + 1],
}

impl<const N: usize> Default for RecentSums<N> {
    fn default() -> Self {
        RecentSums { next: Instant(0), began: [(0, [0; N]); SECONDS as usize + 1] }
    }
}

impl<const N: usize> RecentSums<N> {
    /// To be called before something is added; `sums`: what they are up to now.
    #[inline]
    pub fn tick(&mut self, now: Instant, sums: impl FnOnce() -> [u64; N]) {
        if now >= self.next {
            self.begin(now, sums());
        }
    }

    #[cold]
    fn begin(&mut self, now: Instant, sums: [u64; N]) {
        let second = now.0 / 1_000_000_000;
        self.began[(second % (SECONDS + 1)) as usize] = (second, sums);
        self.next = Instant((second + 1) * 1_000_000_000);
    }

    /// What came in the last 3 s that are over, wrapping; `sums`: what they are now.
    pub fn lately(&self, now: Instant, sums: [u64; N]) -> [u64; N] {
        let second = now.0 / 1_000_000_000;
        // Nothing came in a second that is not noted, so it began with what the next one began with.
        let at = |first: u64| {
            let noted =
                |second: u64| Some(self.began[(second % (SECONDS + 1)) as usize]).filter(|b| b.0 == second);
            (first..=second).find_map(noted).map_or(sums, |began| began.1)
        };
        let (then, until) = (at(second.saturating_sub(SECONDS)), at(second));
        std::array::from_fn(|i| until[i].wrapping_sub(then[i]))
    }
    /// On average over the last 3 s that are over.
    pub fn per_second(&self, now: Instant, sums: [u64; N]) -> [u64; N] {
        self.lately(now, sums).map(|sum| sum / SECONDS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn a_window_counts_once_it_is_over_and_only_when_it_holds_enough() {
        let mut recent = RecentP99::default();
        let at = |ms: u64| Instant(2_000_000_000 + ms * 1_000_000);
        (0..150).for_each(|i| recent.record(at(i), 1000));
        assert_eq!(recent.get(), 0);
        recent.record(at(1500), 9000);
        assert!((1000..1040).contains(&recent.get()), "{}", recent.get());
        recent.record(at(3000), 9000);
        assert!((1000..1040).contains(&recent.get()), "one sample is no figure");
    }

    /// The same, by adding up each second by itself.
    #[derive(Default)]
    struct BySecond(BTreeMap<u64, u64>);

    impl BySecond {
        fn add(&mut self, now: Instant, amount: u64) {
            *self.0.entry(now.0 / 1_000_000_000).or_default() += amount;
        }
        fn sum(&self, now: Instant) -> u64 {
            let second = now.0 / 1_000_000_000;
            self.0.range(second.saturating_sub(SECONDS)..second).map(|(_, sum)| sum).sum()
        }
    }

    #[test]
    fn a_sum_is_of_the_last_three_seconds_that_are_over() {
        let at = |ms: u64| Instant(ms * 1_000_000);
        let (mut recent, mut sum) = (RecentSums::default(), 0);
        let mut add = |recent: &mut RecentSums<1>, ms, amount| {
            recent.tick(at(ms), || [sum]);
            sum += amount;
            [sum]
        };
        for ms in (0..10_000).step_by(100) {
            add(&mut recent, ms, 30);
        }
        let sums = add(&mut recent, 9_999, 0);
        assert_eq!(recent.per_second(at(10_000), sums), [300]);
        let sums = add(&mut recent, 10_500, 1_000_000);
        assert_eq!(recent.per_second(at(10_900), sums), [300], "that second goes on");
        assert_eq!(recent.per_second(at(13_999), sums), [1_000_000 / 3]);
        assert_eq!(recent.per_second(at(60_000), sums), [0]);
    }

    #[test]
    fn sums_are_those_of_each_second_added_up() {
        let mut random = 7u64;
        let (mut by_second, mut recent, mut sum) = (BySecond::default(), RecentSums::default(), 0u64);
        let mut now = Instant(5_000_000_000);
        for _ in 0..5000 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            // Mostly close to each other, and seconds apart now and then.
            now = Instant(now.0 + (random >> 36) * if random % 61 == 0 { 40 } else { 1 });
            assert_eq!(recent.lately(now, [sum]), [by_second.sum(now)]);
            recent.tick(now, || [sum]);
            sum += random >> 40;
            by_second.add(now, random >> 40);
            assert_eq!(recent.lately(now, [sum]), [by_second.sum(now)]);
        }
        assert_eq!(recent.lately(Instant(now.0 + 5_000_000_000), [sum]), [0]);
    }
}
