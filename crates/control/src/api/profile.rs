//! What `peristyle profile` asks: the stages as they are counted, histograms and all, so that two answers have a
//! difference.

use peristyle_base::Histogram;
use peristyle_base::stage::StageSnapshot;
use serde::{Deserialize, Serialize};

/// Devices of one page: with all of their histograms' buckets in use a page is still shorter than the longest line.
pub const PAGE_DEVICES: usize = 4;

/// Page 0 has the stages of the paths, the others have devices. Each is of its own moment.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct ProfilePage {
    /// By the node's clock.
    pub at_ns: u64,
    pub uptime_ms: u64,
    /// False: this node was built to count nothing.
    pub counted: bool,
    pub pages: u32,
    /// Bytes that hosts have read and written.
    pub read_bytes: u64,
    pub write_bytes: u64,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stages: Vec<RawStage>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub devices: Vec<RawDevice>,
}

#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct RawDevice {
    pub name: String,
    pub stages: Vec<RawStage>,
}

/// One stage since the start. What may exceed 2^64 is decimal text: few JSON readers keep larger numbers.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct RawStage {
    pub name: String,
    pub errors: u64,
    pub in_flight: u64,
    /// How long those in flight have been here, all together.
    pub age_ns: i64,
    /// Integral of what was in flight over time.
    pub area_ns: String,
    pub elapsed_ns: u64,
    /// Of the last three whole seconds.
    pub count_3s: u64,
    pub sum_3s_ns: u64,
    /// Of all latencies.
    pub sum_ns: String,
    pub squares_ns2: String,
    pub max_ns: u64,
    /// Of the histogram's buckets that are not empty: the step from the one before, and the count, in turns.
    pub buckets: Vec<u64>,
}

impl RawStage {
    pub fn new(name: &str, s: &StageSnapshot) -> RawStage {
        let mut last = 0;
        let steps = s.latency.buckets().flat_map(|(i, n)| {
            let step = i - last;
            last = i;
            [step as u64, n]
        });
        RawStage {
            name: name.into(),
            errors: s.errors,
            in_flight: s.in_flight,
            age_ns: s.age_ns,
            area_ns: s.in_flight_area.to_string(),
            elapsed_ns: s.elapsed_ns,
            count_3s: s.count_3s,
            sum_3s_ns: s.sum_3s_ns,
            sum_ns: s.latency.sum().to_string(),
            squares_ns2: s.latency.squares().to_string(),
            max_ns: s.latency.max(),
            buckets: steps.collect(),
        }
    }

    /// `None`: no node says that.
    pub fn snapshot(&self) -> Option<StageSnapshot> {
        let mut at = 0usize;
        let mut buckets = Vec::with_capacity(self.buckets.len() / 2);
        for pair in self.buckets.chunks(2) {
            let &[step, count] = pair else { return None };
            at = at.checked_add(usize::try_from(step).ok()?)?;
            buckets.push((at, count));
        }
        let sums = (self.sum_ns.parse().ok()?, self.squares_ns2.parse().ok()?, self.max_ns);
        let latency = Histogram::from_buckets(buckets, sums)?;
        Some(StageSnapshot {
            in_flight: self.in_flight,
            age_ns: self.age_ns,
            in_flight_before: 0,
            age_before_ns: 0,
            completed: latency.count(),
            errors: self.errors,
            elapsed_ns: self.elapsed_ns,
            in_flight_area: self.area_ns.parse().ok()?,
            count_3s: self.count_3s,
            sum_3s_ns: self.sum_3s_ns,
            latency,
        })
    }
}
