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

#[cfg(test)]
mod tests {
    use super::*;

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
}
