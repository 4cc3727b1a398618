//! The series: 42 tests one after the other, each at the depth up to which latency stays near that of depth 1. Pure.

use crate::load::Workload;
use crate::pattern::{Jump, Pattern};
use crate::report::Figures;
use std::fmt::{Display, Formatter};

/// Sizes of a request, bytes.
pub const SIZES: [u32; 7] = [4 << 10, 8 << 10, 16 << 10, 32 << 10, 64 << 10, 128 << 10, 1 << 20];
/// Latencies at a depth may be so many times those at depth 1.
pub const LATENCY_FACTOR: f64 = 1.5;
/// Bytes on their way at once, at most: above it is only a queue that grows.
const IN_FLIGHT_BYTES_MAX: u32 = 64 << 20;
/// Requests of a semi-random test that go on behind the last one.
const SEMI_STEP: f64 = 0.5;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    Random,
    SemiRandom,
    Sequential,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Test {
    pub write: bool,
    pub order: Order,
    pub bytes: u32,
}

/// All of them: reads first, so that they find the data set as it was prepared.
pub fn tests() -> impl Iterator<Item = Test> {
    let orders = [Order::Random, Order::SemiRandom, Order::Sequential];
    let of = move |write| {
        orders
            .into_iter()
            .flat_map(move |order| SIZES.into_iter().map(move |bytes| Test { write, order, bytes }))
    };
    of(false).chain(of(true))
}

impl Test {
    /// What it does, for as long as `base` says and on its part of the volume.
    pub fn workload(self, base: &Workload, depth: u32) -> Workload {
        let pattern = match self.order {
            Order::Random => Pattern::Random,
            Order::SemiRandom => Pattern::SemiRandom { step: SEMI_STEP, jump: Jump::Anywhere },
            Order::Sequential => Pattern::Sequential,
        };
        let read_share = if self.write { 0 } else { 100 };
        Workload { block_bytes: self.bytes, pattern, read_share, depth, ..base.clone() }
    }

    /// The largest depth that is tried.
    pub fn depth_max(self, most: u32) -> u32 {
        most.min(IN_FLIGHT_BYTES_MAX / self.bytes).max(1)
    }
}

impl Display for Test {
    /// `randread-4k`, `semiwrite-128k`, `read-1m`.
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        let order = match self.order {
            Order::Random => "rand",
            Order::SemiRandom => "semi",
            Order::Sequential => "",
        };
        let what = if self.write { "write" } else { "read" };
        match self.bytes >> 20 {
            0 => write!(f, "{order}{what}-{}k", self.bytes >> 10),
            mib => write!(f, "{order}{what}-{mib}m"),
        }
    }
}

/// Latencies that decide whether a depth is good, in nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Sample {
    pub mean: f64,
    pub p99: f64,
    pub p99_5: f64,
}

impl Sample {
    pub fn of(figures: &Figures) -> Sample {
        let q = |share| figures.latency.quantile(share) as f64;
        Sample { mean: figures.latency.mean(), p99: q(0.99), p99_5: q(0.995) }
    }
    /// Each figure by itself in the middle.
    fn median(samples: &[Sample]) -> Sample {
        let middle = |of: fn(&Sample) -> f64| {
            let mut values: Vec<f64> = samples.iter().map(of).collect();
            values.sort_by(f64::total_cmp);
            values[values.len() / 2]
        };
        Sample { mean: middle(|s| s.mean), p99: middle(|s| s.p99), p99_5: middle(|s| s.p99_5) }
    }
    fn within(&self, base: &Sample) -> bool {
        let near = |mine: f64, theirs: f64| mine <= theirs * LATENCY_FACTOR;
        near(self.mean, base.mean) && near(self.p99, base.p99) && near(self.p99_5, base.p99_5)
    }
}

/// Looks for the highest depth whose latencies are near those of depth 1: doubles, then halves the distance. A depth that
/// is found too deep is measured once more before that is believed: noise makes latencies longer, never shorter.
#[derive(Clone, Debug)]
pub struct Search {
    /// Measurements of depth 1 before the first other one.
    base_turns: usize,
    base: Vec<Sample>,
    most: u32,
    good: u32,
    bad: Option<u32>,
    /// Failed once.
    doubtful: Option<u32>,
    /// The distance between good and bad may be such a share of good.
    resolution: f64,
}

impl Search {
    /// With a `resolution` of 0 the depth is exact.
    pub fn new(most: u32, base_turns: usize, resolution: f64) -> Search {
        Search {
            base_turns: base_turns.max(1),
            base: Vec::new(),
            most,
            good: 1,
            bad: None,
            doubtful: None,
            resolution,
        }
    }

    /// The depth to measure next; `None`: it is found.
    pub fn next(&self) -> Option<u32> {
        if self.base.len() < self.base_turns {
            return Some(1);
        }
        if let Some(depth) = self.doubtful {
            return Some(depth);
        }
        let Some(bad) = self.bad else {
            return (self.good < self.most).then(|| (self.good * 2).min(self.most));
        };
        let gap = bad - self.good;
        let near = (f64::from(self.good) * self.resolution).max(1.0);
        (f64::from(gap) > near).then(|| self.good + gap / 2)
    }

    /// What was measured at the depth that [`next`](Self::next) named.
    pub fn handle(&mut self, depth: u32, sample: Sample) {
        if self.base.len() < self.base_turns {
            self.base.push(sample);
            return;
        }
        if sample.within(&Sample::median(&self.base)) {
            self.good = depth;
            self.doubtful = None;
        } else if self.doubtful.take().is_none() {
            self.doubtful = Some(depth);
        } else {
            self.bad = Some(depth);
        }
    }

    /// The highest good depth so far.
    pub fn depth(&self) -> u32 {
        self.good
    }
    /// Latencies at depth 1.
    pub fn base(&self) -> Sample {
        Sample::median(&self.base)
    }
    /// Nothing was too deep: the depth is that of the limit, not of the target.
    pub fn is_limited(&self) -> bool {
        self.good == self.most
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    #[test]
    fn there_are_42_tests_with_names_of_their_own() {
        let names: BTreeSet<String> = tests().map(|test| test.to_string()).collect();
        assert_eq!((tests().count(), names.len()), (42, 42));
        for name in ["randread-4k", "semiwrite-128k", "read-1m", "write-64k"] {
            assert!(names.contains(name), "{name}");
        }
        let first_write = tests().position(|test| test.write).unwrap();
        assert!(tests().skip(first_write).all(|test| test.write));
    }

    #[test]
    fn a_test_is_a_workload() {
        let test = Test { write: true, order: Order::SemiRandom, bytes: 1 << 20 };
        let w = test.workload(&Workload::default(), 7);
        assert_eq!((w.block_bytes, w.read_share, w.depth), (1 << 20, 0, 7));
        assert_eq!(w.pattern.to_string(), "semi:0.5");
        assert_eq!((test.depth_max(256), Test { bytes: 4096, ..test }.depth_max(256)), (64, 256));
    }

    /// A target whose latency does not change up to a depth, and then grows with it.
    fn run(knee: u32, most: u32, resolution: f64, mut noise: impl FnMut() -> bool) -> (Search, u32) {
        let mut search = Search::new(most, 3, resolution);
        let mut turns = 0;
        while let Some(depth) = search.next() {
            turns += 1;
            assert!(turns < 100, "it ends");
            let slow = if depth > knee || noise() { 2.0 } else { 1.0 };
            search.handle(depth, Sample { mean: 1000.0, p99: 2000.0 * slow, p99_5: 3000.0 });
        }
        (search, turns)
    }

    proptest! {
        #[test]
        fn the_depth_is_found_exactly_or_as_near_as_was_asked(knee in 1u32..300, most in 1u32..257) {
            let (search, _) = run(knee, most, 0.0, || false);
            prop_assert_eq!(search.depth(), knee.min(most));
            prop_assert_eq!(search.is_limited(), knee >= most);
            let (rough, turns) = run(knee, most, 0.25, || false);
            let depth = rough.depth();
            prop_assert!(depth <= knee.min(most) && f64::from(depth) * 1.25 + 1.0 >= f64::from(knee.min(most)));
            prop_assert!(turns <= 3 + 9 + 2 * 3);
        }
    }

    #[test]
    fn one_bad_measurement_is_not_believed() {
        let mut calls = 0;
        // The fifth measurement, the second beyond depth 1, is slow.
        let (search, _) = run(64, 256, 0.0, || {
            calls += 1;
            calls == 5
        });
        assert_eq!(search.depth(), 64);
    }

    #[test]
    fn any_of_the_three_latencies_decides() {
        let base = Sample { mean: 10.0, p99: 20.0, p99_5: 30.0 };
        assert!(Sample { mean: 15.0, p99: 30.0, p99_5: 45.0 }.within(&base));
        for slow in
            [Sample { mean: 15.1, ..base }, Sample { p99: 30.1, ..base }, Sample { p99_5: 45.1, ..base }]
        {
            assert!(!slow.within(&base));
        }
    }
}
