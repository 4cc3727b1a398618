//! Where the next request goes: wholly sequential, wholly random, and what lies between. Pure.

use crate::random::Random;
use peristyle_base::units::parse_bytes;
use std::cell::Cell;
use std::rc::Rc;
use std::str::FromStr;

/// Which places a job goes to. A place is as large as a request.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Pattern {
    /// From front to back, each job through its own part.
    Sequential,
    /// Every place is as likely.
    Random,
    /// With this probability the place behind the last one, else a jump.
    SemiRandom { step: f64, jump: Jump },
    /// The place of rank `i` with a probability that goes with `1 / i^theta`. Ranks are scattered over the volume.
    Zipf { theta: f64 },
    /// So many of the requests go to a share of the volume, at its front; both from 0 to 1.
    Hot { space: f64, load: f64 },
}

/// How far a jump goes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Jump {
    Anywhere,
    /// Forwards or backwards, exponentially distributed with this mean, in bytes: the other way where
    /// the volume ends.
    Near {
        mean: u64,
    },
}

impl FromStr for Pattern {
    type Err = String;

    /// `sequential`, `random`, `semi:P` or `semi:P,MEAN`, `zipf:THETA`, `hot:SPACE/LOAD` with both in percent.
    fn from_str(text: &str) -> Result<Pattern, String> {
        let number = |text: &str, below: f64| {
            let number = text.trim().parse().ok().filter(|n| (0.0..=below).contains(n));
            number.ok_or_else(|| format!("'{text}' is no number from 0 to {below}"))
        };
        let (name, rest) = text.split_once(':').unwrap_or((text, ""));
        match name {
            "sequential" if rest.is_empty() => Ok(Pattern::Sequential),
            "random" if rest.is_empty() => Ok(Pattern::Random),
            "semi" => {
                let (step, mean) = rest.split_once(',').map_or((rest, None), |(a, b)| (a, Some(b)));
                let jump = match mean {
                    None => Jump::Anywhere,
                    Some(mean) => {
                        Jump::Near { mean: parse_bytes(mean).ok_or_else(|| format!("'{mean}' is no size"))? }
                    }
                };
                Ok(Pattern::SemiRandom { step: number(step, 1.0)?, jump })
            }
            "zipf" => Ok(Pattern::Zipf { theta: number(rest, 10.0)? }),
            "hot" => {
                let (space, load) = rest.split_once('/').ok_or("hot:SPACE/LOAD, both in percent")?;
                Ok(Pattern::Hot { space: number(space, 100.0)? / 100.0, load: number(load, 100.0)? / 100.0 })
            }
            _ => Err(format!(
                "'{text}' is none of sequential, random, semi:P, semi:P,MEAN, zipf:THETA, hot:SPACE/LOAD"
            )),
        }
    }
}

impl core::fmt::Display for Pattern {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Pattern::Sequential => f.write_str("sequential"),
            Pattern::Random => f.write_str("random"),
            Pattern::SemiRandom { step, jump: Jump::Anywhere } => write!(f, "semi:{step}"),
            Pattern::SemiRandom { step, jump: Jump::Near { mean } } => write!(f, "semi:{step},{mean}"),
            Pattern::Zipf { theta } => write!(f, "zipf:{theta}"),
            Pattern::Hot { space, load } => write!(f, "hot:{}/{}", space * 100.0, load * 100.0),
        }
    }
}

/// Draws places `0..count` by a pattern. Clones go on together: they share where the last one was.
#[derive(Clone)]
pub struct Places {
    count: u64,
    draw: Draw,
    /// The place behind the last one.
    cursor: Rc<Cell<u64>>,
}

#[derive(Clone)]
enum Draw {
    Step,
    Uniform,
    Semi {
        step: f64,
        /// Mean of the jump in places; anywhere without.
        mean: Option<f64>,
    },
    Zipf(Zipf, u64),
    Hot {
        hot: u64,
        load: f64,
    },
}

impl Places {
    /// `count` places of so many bytes.
    pub fn new(pattern: Pattern, count: u64, bytes: u32) -> Places {
        let draw = match pattern {
            Pattern::Sequential => Draw::Step,
            Pattern::Random => Draw::Uniform,
            Pattern::SemiRandom { step, jump } => {
                let mean = match jump {
                    Jump::Anywhere => None,
                    Jump::Near { mean } => Some(mean as f64 / f64::from(bytes)),
                };
                Draw::Semi { step, mean }
            }
            Pattern::Zipf { theta } => Draw::Zipf(Zipf::new(count, theta), coprime(count)),
            Pattern::Hot { space, load } => {
                Draw::Hot { hot: ((count as f64 * space) as u64).clamp(1, count.max(1)), load }
            }
        };
        Places { count, draw, cursor: Rc::default() }
    }

    pub fn count(&self) -> u64 {
        self.count
    }

    pub fn next(&self, random: &mut Random) -> u64 {
        let place = match &self.draw {
            Draw::Step => self.cursor.get(),
            Draw::Uniform => return random.below(self.count),
            Draw::Semi { step, .. } if random.unit() < *step => self.cursor.get(),
            Draw::Semi { mean: None, .. } => random.below(self.count),
            Draw::Semi { mean: Some(mean), .. } => {
                // At least one place away.
                let far = (-mean * (1.0 - random.unit()).ln()).ceil().max(1.0) as u64;
                let at = self.cursor.get();
                let (back, on) =
                    (at.checked_sub(far), Some(at.saturating_add(far)).filter(|p| *p < self.count));
                let place = if random.below(2) == 1 { on.or(back) } else { back.or(on) };
                place.unwrap_or_else(|| random.below(self.count))
            }
            Draw::Zipf(zipf, factor) => {
                let rank = zipf.draw(random) - 1;
                return (u128::from(rank) * u128::from(*factor) % u128::from(self.count)) as u64;
            }
            Draw::Hot { hot, load } => {
                let cold = self.count - hot;
                let is_hot = cold == 0 || random.unit() < *load;
                return if is_hot { random.below(*hot) } else { hot + random.below(cold) };
            }
        };
        self.cursor.set(if place + 1 >= self.count { 0 } else { place + 1 });
        place
    }
}

/// A factor that makes of `0..count` a permutation.
fn coprime(count: u64) -> u64 {
    const PRIMES: [u64; 3] = [2_654_435_761, 11_400_714_819_323_198_549, 4_294_967_291];
    PRIMES.into_iter().find(|prime| count % prime != 0).unwrap_or(1)
}

/// Ranks `1..=count`, by rejection-inversion: Hörmann and Derflinger, "Rejection-inversion to generate variates from monotone
/// discrete distributions", 1996. No table, whatever the count; 1.0 to 1.3 draws for each.
#[derive(Clone, Copy, Debug)]
struct Zipf {
    count: f64,
    theta: f64,
    first: f64,
    last: f64,
    sure: f64,
}

impl Zipf {
    fn new(count: u64, theta: f64) -> Zipf {
        let mut zipf = Zipf { count: count.max(1) as f64, theta, first: 0.0, last: 0.0, sure: 0.0 };
        zipf.first = zipf.integral(1.5) - 1.0;
        zipf.last = zipf.integral(zipf.count + 0.5);
        zipf.sure = 2.0 - zipf.inverse(zipf.integral(2.5) - zipf.weight(2.0));
        zipf
    }

    fn draw(&self, random: &mut Random) -> u64 {
        loop {
            let u = self.last + random.unit() * (self.first - self.last);
            let x = self.inverse(u);
            let rank = x.round().clamp(1.0, self.count);
            if rank - x <= self.sure || u >= self.integral(rank + 0.5) - self.weight(rank) {
                return rank as u64;
            }
        }
    }

    fn weight(&self, x: f64) -> f64 {
        (-self.theta * x.ln()).exp()
    }
    /// The integral of [`weight`](Self::weight), and its inverse; both also near a theta of 1.
    fn integral(&self, x: f64) -> f64 {
        let t = (1.0 - self.theta) * x.ln();
        let quotient = if t.abs() > 1e-8 { t.exp_m1() / t } else { 1.0 + t / 2.0 };
        quotient * x.ln()
    }
    fn inverse(&self, x: f64) -> f64 {
        let t = (x * (1.0 - self.theta)).max(-1.0);
        let quotient = if t.abs() > 1e-8 { t.ln_1p() / t } else { 1.0 - t / 2.0 };
        (quotient * x).exp()
    }
}

/// Mean and variance of what was told, without keeping it: Welford's recurrence, and Chan's for two that are merged.
#[derive(Clone, Copy, Default, Debug, PartialEq)]
pub struct Moments {
    count: u64,
    mean: f64,
    squares: f64,
}

impl Moments {
    pub fn add(&mut self, value: f64) {
        self.count += 1;
        let delta = value - self.mean;
        self.mean += delta / self.count as f64;
        self.squares += delta * (value - self.mean);
    }
    pub fn merge(&mut self, other: &Moments) {
        let count = self.count + other.count;
        if other.count == 0 {
            return;
        }
        let (delta, share) = (other.mean - self.mean, other.count as f64 / count as f64);
        self.squares += other.squares + delta * delta * share * self.count as f64;
        self.mean += delta * share;
        self.count = count;
    }
    pub fn count(&self) -> u64 {
        self.count
    }
    pub fn mean(&self) -> f64 {
        self.mean
    }
    /// Of the whole population; 0 of fewer than two.
    pub fn variance(&self) -> f64 {
        if self.count < 2 { 0.0 } else { self.squares / self.count as f64 }
    }
}

/// Where a workload stands between sequential and random: sizes of its requests, and how far each one begins from the end of the
/// one before on the same connection, forwards or backwards. Bytes.
#[derive(Clone, Copy, Default, Debug, PartialEq)]
pub struct Placement {
    pub size: Moments,
    pub distance: Moments,
    /// Requests that began where the one before had ended.
    pub sequential: u64,
}

impl Placement {
    /// A request; `before` is where the one before it ended.
    pub fn add(&mut self, offset: u64, bytes: u32, before: Option<u64>) {
        self.size.add(f64::from(bytes));
        if let Some(before) = before {
            self.distance.add(offset.abs_diff(before) as f64);
            self.sequential += u64::from(offset == before);
        }
    }
    pub fn merge(&mut self, other: &Placement) {
        self.size.merge(&other.size);
        self.distance.merge(&other.distance);
        self.sequential += other.sequential;
    }
    /// Of all requests that had one before.
    pub fn sequential_share(&self) -> f64 {
        self.sequential as f64 / self.distance.count().max(1) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BYTES: u32 = 4096;

    fn draw(pattern: Pattern, count: u64, times: usize) -> Vec<u64> {
        let (places, mut random) = (Places::new(pattern, count, BYTES), Random::new(7));
        (0..times).map(|_| places.next(&mut random)).collect()
    }

    /// How far each place is from the one that would have been the next.
    fn placement(places: &[u64]) -> Placement {
        let (mut placement, mut before) = (Placement::default(), None);
        for place in places {
            placement.add(place * u64::from(BYTES), BYTES, before);
            before = Some((place + 1) * u64::from(BYTES));
        }
        placement
    }

    proptest! {
        #[test]
        fn places_lie_in_the_volume(count in 1u64..5000, seed: u64, which in 0usize..7) {
            let pattern = ["sequential", "random", "semi:0.5", "semi:0.5,1MiB", "zipf:0.99", "zipf:1", "hot:10/90"];
            let places = Places::new(pattern[which].parse().unwrap(), count, BYTES);
            let mut random = Random::new(seed);
            prop_assert!((0..200).all(|_| places.next(&mut random) < count));
        }

        #[test]
        fn moments_of_parts_are_those_of_the_whole(
            a in proptest::collection::vec(0.0..1e9f64, 0..40), b in proptest::collection::vec(0.0..1e9f64, 0..40),
        ) {
            let of = |values: &[f64]| {
                let mut moments = Moments::default();
                values.iter().for_each(|value| moments.add(*value));
                moments
            };
            let (mut merged, whole) = (of(&a), of(&[&a[..], &b].concat()));
            merged.merge(&of(&b));
            prop_assert_eq!(merged.count(), whole.count());
            prop_assert!((merged.mean() - whole.mean()).abs() <= 1e-6 * (1.0 + whole.mean()));
            prop_assert!((merged.variance() - whole.variance()).abs() <= 1e-6 * (1.0 + whole.variance()));
        }
    }

    #[test]
    fn patterns_are_read_and_written() {
        for text in ["sequential", "random", "semi:0.7", "semi:0.7,1048576", "zipf:0.99", "hot:10/90"] {
            assert_eq!(text.parse::<Pattern>().unwrap().to_string(), text);
        }
        for text in
            ["", "semi:2", "semi:x", "zipf:-1", "zipf:", "hot:10", "hot:200/1", "random:1", "semi:0.5,far"]
        {
            assert!(text.parse::<Pattern>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_step_comes_as_often_as_it_should_and_jumps_have_their_mean() {
        const COUNT: u64 = 1 << 20;
        assert_eq!(draw(Pattern::Sequential, 3, 7), [0, 1, 2, 0, 1, 2, 0]);
        let semi = placement(&draw("semi:0.7".parse().unwrap(), COUNT, 20_000));
        assert!((semi.sequential_share() - 0.7).abs() < 0.02, "{semi:?}");
        // Two places at random are a third of the volume apart; three requests of ten jump.
        let third = COUNT as f64 * f64::from(BYTES) / 3.0;
        assert!((semi.distance.mean() / (0.3 * third) - 1.0).abs() < 0.05, "{semi:?}");
        let near = placement(&draw("semi:0,1MiB".parse().unwrap(), COUNT, 20_000));
        assert!((near.distance.mean() / (1 << 20) as f64 - 1.0).abs() < 0.05, "{near:?}");
        assert!(near.sequential_share() < 0.001);
        let sequential = placement(&draw(Pattern::Sequential, COUNT, 1000));
        assert_eq!((sequential.distance.mean(), sequential.sequential_share()), (0.0, 1.0));
    }

    #[test]
    fn ranks_come_as_often_as_zipf_says() {
        for theta in [0.5, 0.99, 1.0, 1.2] {
            let (count, times) = (1000, 200_000);
            let (zipf, mut random) = (Zipf::new(count, theta), Random::new(3));
            let mut seen = vec![0u64; count as usize + 1];
            (0..times).for_each(|_| seen[zipf.draw(&mut random) as usize] += 1);
            let sum: f64 = (1..=count).map(|rank| (rank as f64).powf(-theta)).sum();
            for rank in [1usize, 2, 10, 100] {
                let expected = times as f64 * (rank as f64).powf(-theta) / sum;
                let off = (seen[rank] as f64 - expected).abs();
                assert!(
                    off < 5.0 * expected.sqrt(),
                    "theta {theta}, rank {rank}: {} of {expected}",
                    seen[rank]
                );
            }
        }
    }

    #[test]
    fn ranks_are_scattered_each_to_a_place_of_its_own() {
        for count in [1u64, 2, 1000, 4096, 99_991] {
            let factor = coprime(count);
            let mut places: Vec<u64> = (0..count)
                .map(|rank| (u128::from(rank) * u128::from(factor) % u128::from(count)) as u64)
                .collect();
            places.sort_unstable();
            assert!((0..count).eq(places));
        }
        assert!(coprime(2 * 2_654_435_761) != 2_654_435_761, "a prime that divides the count");
    }

    #[test]
    fn the_hot_part_gets_its_share() {
        let drawn = draw("hot:10/90".parse().unwrap(), 1000, 20_000);
        let hot = drawn.iter().filter(|place| **place < 100).count() as f64 / 20_000.0;
        assert!((hot - 0.9).abs() < 0.01, "{hot}");
        assert!(draw("hot:100/0".parse().unwrap(), 10, 100).iter().all(|place| *place < 10));
    }
}
