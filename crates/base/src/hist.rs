//! Log-linear latency histogram: fixed memory, 3 % resolution, no allocation after creation.

/// Counts values in nanoseconds. 32 linear steps per power of two: a percentile is at most 1/32 too high.
#[derive(Clone)]
pub struct Histogram {
    /// Of the buckets from `first` on; those outside are empty. One that is recorded into has all of them.
    counts: Box<[u64]>,
    first: usize,
    count: u64,
    sum: u128,
    /// Of their squares, for the variance.
    squares: u128,
    max: u64,
}

const STEP_BITS: u32 = 5;
const STEPS: usize = 1 << STEP_BITS;
const BUCKETS: usize = (64 - STEP_BITS as usize + 1) * STEPS;

impl Default for Histogram {
    fn default() -> Self {
        Histogram { counts: vec![0; BUCKETS].into_boxed_slice(), ..Histogram::none() }
    }
}

impl Histogram {
    /// Without memory until something comes in: for sums of others.
    pub fn none() -> Histogram {
        Histogram { counts: Box::default(), first: 0, count: 0, sum: 0, squares: 0, max: 0 }
    }

    /// A copy with no more memory than it needs.
    pub fn trimmed(&self) -> Histogram {
        let used = |n: &u64| *n > 0;
        let start = self.counts.iter().position(used).unwrap_or(0);
        let end = self.counts.iter().rposition(used).map_or(start, |last| last + 1);
        Histogram { counts: self.counts[start..end].into(), first: self.first + start, ..*self }
    }

    /// Has memory for some buckets, whatever it had before.
    fn widen(&mut self, first: usize, end: usize) {
        let mut counts = vec![0; end - first].into_boxed_slice();
        let had = self.first - first..self.first - first + self.counts.len();
        counts[had].copy_from_slice(&self.counts);
        (self.counts, self.first) = (counts, first);
    }

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
        self.record_many(value, 1);
    }
    /// So many times the same value, for the price of one.
    #[inline]
    pub fn record_many(&mut self, value: u64, times: u64) {
        if times == 0 {
            return;
        }
        let bucket = Self::bucket(value);
        if bucket.wrapping_sub(self.first) >= self.counts.len() {
            self.widen(0, BUCKETS);
        }
        self.counts[bucket - self.first] += times;
        self.count += times;
        self.sum += value as u128 * times as u128;
        // Of values below a quarter of an hour it takes 2^48 of them until this wraps.
        let square = (value as u128 * value as u128).wrapping_mul(times as u128);
        self.squares = self.squares.wrapping_add(square);
        self.max = self.max.max(value);
    }
    pub fn count(&self) -> u64 {
        self.count
    }
    pub fn sum(&self) -> u128 {
        self.sum
    }
    pub fn squares(&self) -> u128 {
        self.squares
    }
    pub fn max(&self) -> u64 {
        self.max
    }
    pub fn mean(&self) -> f64 {
        if self.count == 0 { 0.0 } else { self.sum as f64 / self.count as f64 }
    }
    /// Of all recorded values, not an estimate of more.
    pub fn variance(&self) -> f64 {
        let mean = self.mean();
        if self.count == 0 { 0.0 } else { (self.squares as f64 / self.count as f64 - mean * mean).max(0.0) }
    }
    /// The value that `share` (0.0..=1.0) of the recorded values do not exceed; 0 when nothing was recorded.
    pub fn quantile(&self, share: f64) -> u64 {
        let want = ((share * self.count as f64).ceil() as u64).clamp(1, self.count.max(1));
        let mut seen = 0;
        for (i, n) in self.buckets() {
            seen += n;
            if seen >= want {
                return Self::upper(i).min(self.max);
            }
        }
        0
    }
    pub fn merge(&mut self, other: &Histogram) {
        let (theirs, end) = (other.first, other.first + other.counts.len());
        if self.counts.is_empty() {
            self.first = theirs;
        }
        if theirs < self.first || end > self.first + self.counts.len() {
            self.widen(self.first.min(theirs), end.max(self.first + self.counts.len()));
        }
        let mine = self.counts[theirs - self.first..].iter_mut();
        mine.zip(&other.counts).for_each(|(mine, theirs)| *mine += theirs);
        self.count += other.count;
        self.sum += other.sum;
        self.squares = self.squares.wrapping_add(other.squares);
        self.max = self.max.max(other.max);
    }
    /// What was recorded since `earlier`, a copy of the same histogram. Its `max` is that of the highest bucket which
    /// something came into, hence at most 1/32 too high.
    pub fn minus(&self, earlier: &Histogram) -> Histogram {
        let then = |i: usize| i.checked_sub(earlier.first).and_then(|at| earlier.counts.get(at));
        let since = |(i, n): (usize, &u64)| n.saturating_sub(then(self.first + i).copied().unwrap_or(0));
        let counts: Box<[u64]> = self.counts.iter().enumerate().map(since).collect();
        let highest = counts.iter().rposition(|&n| n > 0).map(|i| self.first + i);
        Histogram {
            counts,
            first: self.first,
            count: self.count.saturating_sub(earlier.count),
            sum: self.sum.saturating_sub(earlier.sum),
            squares: self.squares.wrapping_sub(earlier.squares),
            max: highest.map_or(0, |i| Self::upper(i).min(self.max)),
        }
    }
    /// The largest value of each bucket that is not empty, and how many values are in it, in ascending order.
    pub fn values(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.buckets().map(|(i, n)| (Self::upper(i).min(self.max), n))
    }
    /// Buckets that are not empty, in order: number and count.
    pub fn buckets(&self) -> impl Iterator<Item = (usize, u64)> + '_ {
        let all = self.counts.iter().copied().enumerate();
        all.filter(|(_, n)| *n > 0).map(|(i, n)| (self.first + i, n))
    }
    /// What [`buckets`](Self::buckets), `sum`, `squares` and `max` of another one tell; `None` when a bucket does not exist
    /// or the counts are too many.
    pub fn from_buckets(
        buckets: impl IntoIterator<Item = (usize, u64)>,
        (sum, squares, max): (u128, u128, u64),
    ) -> Option<Histogram> {
        let mut me = Histogram { sum, squares, max, ..Histogram::default() };
        for (i, n) in buckets {
            let place = me.counts.get_mut(i)?;
            *place = place.checked_add(n)?;
            me.count = me.count.checked_add(n)?;
        }
        Some(me)
    }
    pub fn clear(&mut self) {
        self.counts.fill(0);
        (self.count, self.sum, self.squares, self.max) = (0, 0, 0, 0);
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
        let mut again = Histogram::default();
        h.values().for_each(|(value, n)| again.record_many(value, n));
        assert_eq!((again.quantile(0.5), again.max()), (h.quantile(0.5), 1000));
        let mut twice = h.clone();
        twice.merge(&h);
        assert_eq!((twice.count(), twice.sum()), (2000, 2 * h.sum()));
    }

    #[test]
    fn a_difference_holds_what_came_in_between() {
        let mut h = Histogram::default();
        (1..=1000).for_each(|v| h.record(v * 1000));
        let before = h.clone();
        h.record_many(500, 3);
        h.record(700);
        let between = h.minus(&before);
        assert_eq!((between.count(), between.sum()), (4, 2200));
        assert!((700..=721).contains(&between.max()), "{}: not that of all time", between.max());
        assert!((500..=516).contains(&between.quantile(0.75)));
        assert!((between.variance() - 7500.0).abs() < 1e-6, "{}", between.variance());
        assert_eq!(h.minus(&h).count(), 0);
        assert_eq!((h.minus(&h).max(), h.minus(&h).variance()), (0, 0.0));
    }

    #[test]
    fn one_without_memory_to_spare_is_as_good_as_the_whole() {
        let (mut low, mut high) = (Histogram::default(), Histogram::default());
        [700, 900, 900].into_iter().for_each(|v| low.record(v));
        [12_000, 5_000_000].into_iter().for_each(|v| high.record(v));
        let mut whole = low.clone();
        whole.merge(&high);
        for mut sum in [Histogram::none(), low.trimmed(), high.trimmed(), Histogram::default()] {
            let (has_low, has_high) = (sum.quantile(0.0) == low.quantile(0.0), sum.max() == high.max());
            [(has_low, &low), (has_high, &high)]
                .into_iter()
                .filter(|had| !had.0)
                .for_each(|(_, add)| sum.merge(&add.trimmed()));
            assert_eq!(sum.buckets().collect::<Vec<_>>(), whole.buckets().collect::<Vec<_>>());
            assert_eq!((sum.count(), sum.sum(), sum.max()), (whole.count(), whole.sum(), whole.max()));
            let since = sum.minus(&low.trimmed());
            assert_eq!(since.buckets().collect::<Vec<_>>(), high.buckets().collect::<Vec<_>>());
            assert_eq!(since.quantile(0.5), high.quantile(0.5));
            sum.record(3);
            assert_eq!((sum.count(), sum.quantile(0.0), sum.max()), (6, 3, 5_000_000));
        }
        assert_eq!(Histogram::none().trimmed().quantile(0.5), 0);
        assert!(low.trimmed().counts.len() < 20);
    }

    #[test]
    fn buckets_and_sums_tell_all_of_a_histogram() {
        let mut h = Histogram::default();
        [3, 77, 77, 12_345, u64::MAX].into_iter().for_each(|v| h.record(v));
        let again = Histogram::from_buckets(h.buckets(), (h.sum(), h.squares(), h.max())).unwrap();
        assert_eq!(again.buckets().collect::<Vec<_>>(), h.buckets().collect::<Vec<_>>());
        assert_eq!((again.count(), again.quantile(0.5)), (5, h.quantile(0.5)));
        assert_eq!((again.mean(), again.variance()), (h.mean(), h.variance()));
        assert!(Histogram::from_buckets([(BUCKETS, 1)], (0, 0, 0)).is_none());
        assert!(Histogram::from_buckets([(1, u64::MAX), (2, 1)], (0, 0, 0)).is_none());
    }
}
