//! Changes to an input that tend to reach new code: bits, lengths, numbers at field boundaries, pieces moved,
//! repeated, dropped or taken from another input.

/// SplitMix64: one seed, one run, on every machine.
#[derive(Clone)]
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number below `limit`, which is not 0.
    pub fn below(&mut self, limit: usize) -> usize {
        ((self.draw() as u128 * limit as u128) >> 64) as usize
    }
}

/// Numbers at which parsers go wrong.
const EDGES: [u64; 22] = [
    0,
    1,
    2,
    7,
    8,
    16,
    24,
    63,
    64,
    72,
    127,
    128,
    255,
    511,
    512,
    4095,
    4096,
    0x7fff,
    0xffff,
    0x7fff_ffff,
    0xffff_ffff,
    u64::MAX,
];

/// Fills `out` with a changed copy of one of `inputs`; never longer than `bytes_max`. Allocates nothing once `out`
/// has grown to that.
pub fn mutate(random: &mut Random, inputs: &[Vec<u8>], bytes_max: usize, out: &mut Vec<u8>) {
    out.clear();
    out.extend_from_slice(&inputs[random.below(inputs.len())]);
    // Mostly few changes: an input with many is refused at its first field.
    let changes = 1 + random.below(4) * random.below(3);
    for _ in 0..changes {
        change(random, inputs, out);
    }
    out.truncate(bytes_max);
}

fn change(random: &mut Random, inputs: &[Vec<u8>], out: &mut Vec<u8>) {
    if out.is_empty() {
        out.extend((0..1 + random.below(128)).map(|_| random.draw() as u8));
        return;
    }
    let at = random.below(out.len());
    match random.below(12) {
        0..2 => out[at] ^= 1 << random.below(8),
        2 => out[at] = random.draw() as u8,
        3..5 => number(random, out, |random, _| EDGES[random.below(EDGES.len())]),
        5..7 => number(random, out, |random, old| old.wrapping_add(random.below(33) as u64).wrapping_sub(16)),
        7 => out.truncate(at),
        8 => drop(out.drain(at..(at + 1 + random.below(64)).min(out.len()))),
        9 => repeat(random, out),
        10 => copy_within(random, out),
        _ => splice(random, inputs, out),
    }
}

/// Replaces a little- or big-endian field of 1, 2, 4 or 8 bytes at any place.
fn number(random: &mut Random, out: &mut [u8], new: impl Fn(&mut Random, u64) -> u64) {
    let width = (1_usize << random.below(4)).min(out.len());
    let at = random.below(out.len() - width + 1);
    let field = &mut out[at..at + width];
    let big_endian = random.below(8) == 0;
    let mut old = [0; 8];
    old[..width].copy_from_slice(field);
    if big_endian {
        old[..width].reverse();
    }
    let mut bytes = new(random, u64::from_le_bytes(old)).to_le_bytes();
    if big_endian {
        bytes[..width].reverse();
    }
    field.copy_from_slice(&bytes[..width]);
}

/// Says a piece twice: a PDU, an entry, a range.
fn repeat(random: &mut Random, out: &mut Vec<u8>) {
    let from = random.below(out.len());
    let length = (1 + random.below(256)).min(out.len() - from);
    out.extend_from_within(from..from + length);
}

fn copy_within(random: &mut Random, out: &mut [u8]) {
    let (from, to) = (random.below(out.len()), random.below(out.len()));
    let length = (1 + random.below(64)).min(out.len() - from.max(to));
    out.copy_within(from..from + length, to);
}

/// Goes on with the rest of another input.
fn splice(random: &mut Random, inputs: &[Vec<u8>], out: &mut Vec<u8>) {
    let other = &inputs[random.below(inputs.len())];
    let keep = random.below(out.len() + 1);
    let from = random.below(other.len() + 1);
    out.truncate(keep);
    out.extend_from_slice(&other[from..]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_same_inputs_twice_and_none_too_long() {
        let inputs = vec![vec![], vec![1, 2, 3], (0..200).collect()];
        let draw = |seed| {
            let mut random = Random::new(seed);
            let mut out = Vec::new();
            let mut all = Vec::new();
            for _ in 0..5_000 {
                mutate(&mut random, &inputs, 256, &mut out);
                assert!(out.len() <= 256);
                all.push(out.clone());
            }
            all
        };
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(2));
    }
}
