//! Blocks that say what they are: whoever reads one knows which write it came from, and whether it is whole.

use peristyle_base::{BLOCK_BYTES, crc32c};

use crate::random::mix;

/// What a block says of itself. `write` names one write command: all of its blocks carry the same number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// Of the whole test: blocks of another one are not taken for ours.
    pub seed: u64,
    /// The block's number in its volume.
    pub block: u64,
    pub write: u64,
}

/// What was found where a stamp should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    Stamp(Stamp),
    /// Never written.
    Zeros,
    /// Neither: damaged, or torn between two writes.
    Garbage,
}

const MAGIC: u64 = u64::from_le_bytes(*b"pstyblk1");
const HEAD_BYTES: usize = 32;
const SUM_BYTES: usize = 4;

impl Stamp {
    /// Fills a block: magic, seed, block, write; numbers that follow from them; at the end a CRC32C of it all, turned by
    /// the numbers. A plain one would give all blocks the same CRC32C, and a store that compares these could not tell them
    /// apart.
    pub fn fill(&self, out: &mut [u8]) {
        assert_eq!(out.len(), BLOCK_BYTES, "one block");
        for (at, value) in [MAGIC, self.seed, self.block, self.write].into_iter().enumerate() {
            out[at * 8..at * 8 + 8].copy_from_slice(&value.to_le_bytes());
        }
        let step = self.step();
        let mut x = step;
        for word in out[HEAD_BYTES..].chunks_exact_mut(8) {
            word.copy_from_slice(&x.to_le_bytes());
            x = x.wrapping_add(step).rotate_left(7);
        }
        let sum = self.sum(&out[..BLOCK_BYTES - SUM_BYTES]);
        out[BLOCK_BYTES - SUM_BYTES..].copy_from_slice(&sum.to_le_bytes());
    }

    fn step(&self) -> u64 {
        mix(self.seed ^ mix(self.block ^ mix(self.write))) | 1
    }

    fn sum(&self, body: &[u8]) -> u32 {
        crc32c(body) ^ (self.step() >> 32) as u32
    }

    /// Reads a block's stamp, whatever it says.
    pub fn find(block: &[u8]) -> Found {
        assert_eq!(block.len(), BLOCK_BYTES, "one block");
        let word = |at: usize| u64::from_le_bytes(block[at * 8..at * 8 + 8].try_into().expect("eight bytes"));
        if word(0) == MAGIC {
            let (body, sum) = block.split_at(BLOCK_BYTES - SUM_BYTES);
            let stamp = Stamp { seed: word(1), block: word(2), write: word(3) };
            if stamp.sum(body).to_le_bytes() == sum {
                return Found::Stamp(stamp);
            }
        } else if block.iter().all(|&b| b == 0) {
            return Found::Zeros;
        }
        Found::Garbage
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAMP: Stamp = Stamp { seed: 7, block: 1 << 40, write: 99 };

    fn block() -> Vec<u8> {
        let mut block = vec![0; BLOCK_BYTES];
        STAMP.fill(&mut block);
        block
    }

    #[test]
    fn a_block_tells_its_stamp() {
        assert_eq!(Stamp::find(&block()), Found::Stamp(STAMP));
        assert_eq!(Stamp::find(&[0; BLOCK_BYTES]), Found::Zeros);
    }

    #[test]
    fn blocks_have_different_checksums() {
        let mut crcs: Vec<u32> = (0..1000)
            .map(|n| {
                let mut block = vec![0; BLOCK_BYTES];
                Stamp { block: n % 10, write: n / 10, ..STAMP }.fill(&mut block);
                crc32c(&block)
            })
            .collect();
        crcs.sort_unstable();
        crcs.dedup();
        assert_eq!(crcs.len(), 1000, "a store must be able to tell them apart");
    }

    #[test]
    fn any_flipped_bit_and_any_tear_at_512_bytes_is_seen() {
        let good = block();
        for byte in 0..BLOCK_BYTES {
            let mut bad = good.clone();
            bad[byte] ^= 1 << (byte % 8);
            assert_eq!(Stamp::find(&bad), Found::Garbage, "byte {byte}");
        }
        let mut other = vec![0; BLOCK_BYTES];
        Stamp { write: 100, ..STAMP }.fill(&mut other);
        for cut in (512..BLOCK_BYTES).step_by(512) {
            let torn = [&good[..cut], &other[cut..]].concat();
            assert_eq!(Stamp::find(&torn), Found::Garbage, "cut {cut}");
        }
    }
}
