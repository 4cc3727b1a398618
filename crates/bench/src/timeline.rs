//! A run's figures interval by interval: what a mean over the whole run hides.

use crate::report::Kind;
use peristyle_base::{Duration, Histogram};

/// Length of an interval.
pub const INTERVAL: Duration = Duration::from_secs(1);
/// Later intervals are not kept apart: a day.
const INTERVALS_MAX: usize = 86_400;

/// What ended in one interval.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Interval {
    pub bytes: u64,
    pub reads: Sparse,
    pub writes: Sparse,
}

/// The buckets of a histogram that are not empty: their largest value in nanoseconds, and how many values they have.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sparse(pub Vec<(u64, u64)>);

impl Sparse {
    fn of(histogram: &Histogram) -> Sparse {
        Sparse(histogram.values().collect())
    }
    pub fn count(&self) -> u64 {
        self.0.iter().map(|(_, count)| count).sum()
    }
    /// As a histogram, in which every value is its bucket's largest.
    pub fn histogram(&self) -> Histogram {
        let mut histogram = Histogram::default();
        self.0.iter().for_each(|&(value, count)| histogram.record_many(value, count));
        histogram
    }
    fn merge(&mut self, other: &Sparse) {
        let mut sum = self.histogram();
        other.0.iter().for_each(|&(value, count)| sum.record_many(value, count));
        *self = Sparse::of(&sum);
    }
}

impl Interval {
    pub fn count(&self) -> u64 {
        self.reads.count() + self.writes.count()
    }
    /// Reads and writes together.
    pub fn latency(&self) -> Histogram {
        let mut all = self.reads.histogram();
        all.merge(&self.writes.histogram());
        all
    }
}

/// Intervals one behind the other, from the beginning of what is measured.
#[derive(Clone, Default)]
pub struct Timeline {
    done: Vec<Interval>,
    reads: Histogram,
    writes: Histogram,
    bytes: u64,
}

impl Timeline {
    /// A command ended so long after the beginning. When that is the first one behind an interval's end: that one's median
    /// and p99, in nanoseconds.
    pub fn record(&mut self, kind: Kind, at: Duration, bytes: u64, nanos: u64) -> Option<(u64, u64)> {
        let index = ((at.as_nanos() / INTERVAL.as_nanos()) as usize).min(INTERVALS_MAX - 1);
        let ended = (index > self.done.len()).then(|| {
            let mut all = self.reads.clone();
            all.merge(&self.writes);
            self.end_interval();
            self.done.resize(index, Interval::default());
            (all.quantile(0.5), all.quantile(0.99))
        });
        match kind {
            Kind::Read => self.reads.record(nanos),
            Kind::Write => self.writes.record(nanos),
            Kind::Other => return ended,
        }
        self.bytes += bytes;
        ended
    }

    fn end_interval(&mut self) {
        let (reads, writes) = (Sparse::of(&self.reads), Sparse::of(&self.writes));
        self.done.push(Interval { bytes: std::mem::take(&mut self.bytes), reads, writes });
        self.reads.clear();
        self.writes.clear();
    }

    /// The run has lasted so long: the last interval is over as well, and those in which nothing ended are there.
    pub fn finish(&mut self, elapsed: Duration) {
        let count = (elapsed.as_nanos().div_ceil(INTERVAL.as_nanos()) as usize).min(INTERVALS_MAX);
        if self.reads.count() + self.writes.count() > 0 {
            self.end_interval();
        }
        self.done.resize(count.max(self.done.len()), Interval::default());
    }

    pub fn intervals(&self) -> &[Interval] {
        &self.done
    }

    /// Adds another reactor's, which began at the same time. Both are finished.
    pub fn merge(&mut self, other: &Timeline) {
        self.done.resize(self.done.len().max(other.done.len()), Interval::default());
        for (mine, theirs) in self.done.iter_mut().zip(&other.done) {
            mine.bytes += theirs.bytes;
            mine.reads.merge(&theirs.reads);
            mine.writes.merge(&theirs.writes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interval_has_what_ended_in_it_and_a_pause_has_intervals_of_its_own() {
        let mut timeline = Timeline::default();
        let at = |ms| Duration::from_millis(ms);
        for ms in 0..1000 {
            assert_eq!(timeline.record(Kind::Read, at(ms), 4096, 1000), None);
        }
        // Nothing ends for two seconds.
        let (p50, p99) = timeline.record(Kind::Write, at(3500), 8192, 5000).unwrap();
        assert!((1000..1040).contains(&p50) && (1000..1040).contains(&p99));
        timeline.finish(at(4200));
        let counts: Vec<u64> = timeline.intervals().iter().map(Interval::count).collect();
        assert_eq!(counts, [1000, 0, 0, 1, 0]);
        assert_eq!((timeline.intervals()[0].bytes, timeline.intervals()[3].bytes), (4_096_000, 8192));
        let mut twice = timeline.clone();
        twice.merge(&timeline);
        assert_eq!(twice.intervals()[0].reads.count(), 2000);
        assert_eq!(twice.intervals()[3].latency().max(), timeline.intervals()[3].latency().max());
    }
}
