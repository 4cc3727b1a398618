//! Log-linear latency histogram: fixed memory, 3 % resolution, no allocation after creation.

/// Counts values in nanoseconds. 32 linear steps per power of two: a percentile is at most 1/32 too high.
#[derive(Clone)]
pub struct Histogram {
    counts: Box<[u64]>,
    count: u64,
    sum: u128,
    max: u64,
}

const STEP_BITS: u32 = 5;
const STEPS: usize = 1 << STEP_BITS;
const BUCKETS: usize = (64 - STEP_BITS as usize + 1) * STEPS;

impl Default for Histogram {
    fn default() -> Self {
        Histogram { counts: vec![0; BUCKETS].into_boxed_slice(), count: 0, sum: 0, max: 0 }
    }
}

impl Histogram {
    fn bucket(value: u64) -> usize {
        if value < STEPS as u64 {
            return value as usize;
        }
        let exponent = 63 - value.leading_zeros();
        let step = (value >> (exponent - STEP_BITS)) as usize & (STEPS - 1);
        ((exponent - STEP_BITS + 1) as usize) * STEPS + step
    }

    /// Largest value that falls into bucket `i`.
    fn upper(i: usize) -> u64 {
        let (row, step) = (i / STEPS, (i % STEPS) as u64);
        if row == 0 {
            return step;
        }
        let shift = row as u32 - 1;
        (((STEPS as u64 + step + 1) as u128) << shift).min(1 << 64).wrapping_sub(1) as u64
    }

    pub fn record(&mut self, value: u64) {
        self.record_n(value, 1);
    }
    /// The same value, `n` times.
    pub fn record_n(&mut self, value: u64, n: u64) {
        if n == 0 {
            return;
        }
        self.counts[Self::bucket(value)] += n;
        self.count += n;
        self.sum += value as u128 * n as u128;
        self.max = self.max.max(value);
    }
    /// The largest value of each bucket that is not empty, and how many values are in it, in ascending order.
    pub fn buckets(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.counts
            .iter()
            .enumerate()
            .filter(|(_, n)| **n > 0)
            .map(|(i, &n)| (Self::upper(i).min(self.max), n))
    }
    pub fn count(&self) -> u64 {
        self.count
    }
    pub fn sum(&self) -> u128 {
        self.sum
    }
    pub fn max(&self) -> u64 {
        self.max
    }
    pub fn mean(&self) -> f64 {
        if self.count == 0 { 0.0 } else { self.sum as f64 / self.count as f64 }
    }
    /// The value that `share` (0.0..=1.0) of the recorded values do not exceed; 0 when nothing was recorded.
    pub fn quantile(&self, share: f64) -> u64 {
        let want = ((share * self.count as f64).ceil() as u64).clamp(1, self.count.max(1));
        let mut seen = 0;
        for (i, &n) in self.counts.iter().enumerate() {
            seen += n;
            if seen >= want {
                return Self::upper(i).min(self.max);
            }
        }
        0
    }
    pub fn merge(&mut self, other: &Histogram) {
        for (mine, theirs) in self.counts.iter_mut().zip(other.counts.iter()) {
            *mine += theirs;
        }
        self.count += other.count;
        self.sum += other.sum;
        self.max = self.max.max(other.max);
    }
    pub fn clear(&mut self) {
        self.counts.fill(0);
        (self.count, self.sum, self.max) = (0, 0, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_lies_at_most_a_thirtysecond_below_its_bucket() {
        for value in (0..100_000).chain([u32::MAX as u64, 1 << 50, u64::MAX - 1, u64::MAX]) {
            let upper = Histogram::upper(Histogram::bucket(value));
            assert!(upper >= value && upper - value <= value / 32, "{value} {upper}");
        }
    }

    #[test]
    fn quantiles_of_a_ramp() {
        let mut h = Histogram::default();
        (1..=1000).for_each(|v| h.record(v));
        assert_eq!(h.quantile(1.0), 1000);
        assert!((500..=516).contains(&h.quantile(0.5)));
        assert_eq!(h.mean(), 500.5);
        assert_eq!(h.buckets().map(|(_, n)| n).sum::<u64>(), 1000);
        let mut again = Histogram::default();
        h.buckets().for_each(|(value, n)| again.record_n(value, n));
        assert_eq!((again.quantile(0.5), again.max()), (h.quantile(0.5), 1000));
        let mut twice = h.clone();
        twice.merge(&h);
        assert_eq!((twice.count(), twice.sum()), (2000, 2 * h.sum()));
    }
}
