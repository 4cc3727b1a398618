//! The simulator's generator: every choice of a run comes from one seed.

/// SplitMix64 (Steele, Lea, Flood 2014): small, fast, and two generators of different seeds are unrelated.
#[derive(Clone, Debug)]
pub struct Rng {
    state: u64,
}

impl Rng {
    pub fn new(seed: u64) -> Rng {
        Rng { state: seed }
    }
    pub fn next_u64(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.state ^ self.state >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ z >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ z >> 31
    }
    /// Uniform in 0..bound; 0 for a bound of 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        ((self.next_u64() as u128 * bound as u128) >> 64) as u64
    }
    /// Uniform in low..=high.
    pub fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high.saturating_sub(low).saturating_add(1))
    }
    /// True `ppm` times in a million. Draws nothing when the answer is known.
    pub fn ppm(&mut self, ppm: u32) -> bool {
        ppm > 0 && self.below(1_000_000) < u64::from(ppm)
    }
    pub fn coin(&mut self) -> bool {
        self.next_u64() >> 63 == 1
    }
    pub fn pick<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.below(items.len() as u64) as usize]
    }
    /// A generator of its own: what it draws does not shift what this one draws.
    pub fn fork(&mut self) -> Rng {
        Rng::new(self.next_u64() ^ 0xA5A5_5A5A_0F0F_F0F0)
    }
    /// A latency of `nanos` with a tail: mostly 0.9 to 1.1 of it, one in 64 up to four times as long.
    pub(crate) fn latency(&mut self, nanos: u64) -> u64 {
        let draw = self.next_u64();
        let tenth = nanos / 10;
        let base = nanos - tenth + (((draw >> 32) * (2 * tenth + 1)) >> 32);
        if draw & 63 == 0 { base + self.below(3 * nanos + 1) } else { base }
    }
}
