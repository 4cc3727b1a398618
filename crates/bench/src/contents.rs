//! What is written where nothing is verified.

use crate::random::Random;
use std::str::FromStr;

/// A compressible block is made of pieces of so many bytes, each random at its front and zero behind: a compressor finds
/// the share in whatever unit it works.
const PIECE: usize = 512;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Contents {
    /// Does not compress. Each command in flight has its own bytes, which it writes again and again: a target that looks
    /// for equal blocks finds them.
    #[default]
    Random,
    Zero,
    /// So many percent can be left out by a compressor.
    Compressible(u8),
}

impl Contents {
    pub fn fill(self, random: &mut Random, out: &mut [u8]) {
        let keep = match self {
            Contents::Random => PIECE,
            Contents::Zero => 0,
            Contents::Compressible(percent) => PIECE - PIECE * usize::from(percent.min(100)) / 100,
        };
        for piece in out.chunks_mut(PIECE) {
            let (data, zeros) = piece.split_at_mut(keep.min(piece.len()));
            for word in data.chunks_mut(8) {
                let bytes = random.next_u64().to_le_bytes();
                word.copy_from_slice(&bytes[..word.len()]);
            }
            zeros.fill(0);
        }
    }
}

impl FromStr for Contents {
    type Err = String;

    /// `random`, `zero`, `compressible:PERCENT`.
    fn from_str(text: &str) -> Result<Contents, String> {
        let percent = |text: &str| text.parse().ok().filter(|n| *n <= 100);
        match text.split_once(':') {
            None if text == "random" => Ok(Contents::Random),
            None if text == "zero" => Ok(Contents::Zero),
            Some(("compressible", share)) => percent(share)
                .map(Contents::Compressible)
                .ok_or_else(|| format!("'{share}' is no percentage from 0 to 100")),
            _ => Err(format!("'{text}' is none of random, zero, compressible:PERCENT")),
        }
    }
}

impl std::fmt::Display for Contents {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Contents::Random => f.write_str("random"),
            Contents::Zero => f.write_str("zero"),
            Contents::Compressible(percent) => write!(f, "compressible:{percent}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_much_of_a_block_is_zero() {
        for (text, zeros) in
            [("random", 0), ("zero", 4096), ("compressible:75", 3072), ("compressible:100", 4096)]
        {
            let contents: Contents = text.parse().unwrap();
            assert_eq!(contents.to_string(), text);
            let mut block = vec![7; 4096];
            contents.fill(&mut Random::new(1), &mut block);
            let found = block.chunks(8).filter(|word| *word == [0; 8]).count() * 8;
            assert_eq!(found, zeros, "{text}");
        }
        for text in ["", "compressible", "compressible:101", "zero:1"] {
            assert!(text.parse::<Contents>().is_err(), "{text}");
        }
    }
}
