//! Random numbers of a workload: the same for one seed on every machine.

/// SplitMix64 (Steele, Lea, Flood 2014): one multiplication per number, any seed is good.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }
    /// A generator of its own for each worker of one seed.
    pub fn of_worker(seed: u64, worker: u64) -> Random {
        Random(mix(seed ^ mix(worker.wrapping_add(1))))
    }
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        mix(self.0)
    }
    /// Uniform from 0 up to 1.
    pub fn unit(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }
    /// Uniform in 0..bound; 0 when `bound` is 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.next_u64()) * u128::from(bound)) >> 64) as u64
    }
}

/// Mixes all bits of `x`.
pub fn mix(x: u64) -> u64 {
    let z = (x ^ x >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ z >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ z >> 31
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_seed_gives_one_sequence_and_workers_have_their_own() {
        let draw = |mut r: Random| [r.next_u64(), r.below(1000), r.below(7)];
        assert_eq!(draw(Random::of_worker(1, 2)), draw(Random::of_worker(1, 2)));
        assert_ne!(draw(Random::of_worker(1, 2)), draw(Random::of_worker(1, 3)));
        assert_ne!(draw(Random::of_worker(1, 2)), draw(Random::of_worker(2, 2)));
        assert_eq!(Random::new(5).below(0), 0);
    }
}
