//! What each block may hold while commands overlap: one register per block, with one writer at a time and any readers.
//!
//! A block's versions are the numbers of its writes, from 1. A read must not return less than what was acknowledged or
//! returned by a read before it began, and nothing that no write has made: with one writer that is all of linearizability.

use peristyle_base::Instant;
use std::fmt;

use crate::stamp::{Found, Stamp};

/// Violations that are told in words.
const TOLD_MAX: usize = 10;

/// A read that returned what it must not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Violation {
    /// Older than what the block was known to hold before the read began.
    Stale { block: u64, version: u64, found: u64 },
    /// No such write was sent yet.
    Unwritten { block: u64, sent: u64, found: u64 },
    /// No block of ours, though the place was written, or one of another place.
    Foreign { block: u64, version: u64, found: Found },
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Violation::Stale { block, version, found } => {
                write!(
                    f,
                    "block {block}: version {version} was there before the read, which returned {found}"
                )
            }
            Violation::Unwritten { block, sent, found } => {
                write!(f, "block {block}: versions up to {sent} were written, and {found} was read")
            }
            Violation::Foreign { block, version, found } => {
                write!(f, "block {block}: version {version} was there, and {found:?} was read")
            }
        }
    }
}

#[derive(Clone, Copy, Default)]
struct Register {
    /// Acknowledged, or returned by a read; 0: what was there before is there still, whatever that is.
    known: u64,
    /// The version of the last write that was sent.
    sent: u64,
    /// No write before this.
    free_at: Instant,
}

/// A write that is under way. Nobody else writes its block.
#[must_use]
#[derive(Debug)]
pub struct Writing {
    pub block: u64,
    pub version: u64,
}

/// A read that is under way, and what it must not fall behind.
#[derive(Debug)]
pub struct Reading {
    pub block: u64,
    known: u64,
}

/// All blocks of one run, and what was wrong with them.
pub struct Registers {
    /// Blocks of another run are not taken for ours.
    seed: u64,
    registers: Vec<Register>,
    violations: u64,
    told: Vec<Violation>,
}

impl Registers {
    pub fn new(seed: u64, blocks: u64) -> Registers {
        Registers {
            seed,
            registers: vec![Register::default(); blocks as usize],
            violations: 0,
            told: Vec::with_capacity(TOLD_MAX),
        }
    }

    pub fn blocks(&self) -> u64 {
        self.registers.len() as u64
    }

    /// Takes the block for a write with new contents; `None` while another write has it, or may come again.
    pub fn begin_write(&mut self, block: u64, now: Instant, out: &mut [u8]) -> Option<Writing> {
        let register = &mut self.registers[block as usize];
        if now < register.free_at {
            return None;
        }
        register.sent += 1;
        register.free_at = Instant::FAR;
        let version = register.sent;
        Stamp { seed: self.seed, block, write: version }.fill(out);
        Some(Writing { block, version })
    }

    pub fn acknowledged(&mut self, writing: &Writing) {
        let known = &mut self.registers[writing.block as usize].known;
        *known = (*known).max(writing.version);
    }

    /// Lets the block go to other writes from then on: acknowledged or not, the write is over.
    pub fn end_write(&mut self, writing: Writing, free_at: Instant) {
        self.registers[writing.block as usize].free_at = free_at;
    }

    pub fn begin_read(&self, block: u64) -> Reading {
        Reading { block, known: self.registers[block as usize].known }
    }

    pub fn end_read(&mut self, reading: Reading, data: &[u8]) {
        match self.version(&reading, Stamp::find(data)) {
            Ok(version) => {
                let known = &mut self.registers[reading.block as usize].known;
                *known = (*known).max(version);
            }
            Err(violation) => {
                self.violations += 1;
                if self.told.len() < TOLD_MAX {
                    self.told.push(violation);
                }
            }
        }
    }

    fn version(&self, reading: &Reading, found: Found) -> Result<u64, Violation> {
        let Reading { block, known } = *reading;
        let sent = self.registers[block as usize].sent;
        let foreign = Violation::Foreign { block, version: known, found };
        let version = match found {
            Found::Stamp(stamp) if stamp.seed != self.seed => 0,
            Found::Stamp(stamp) if stamp.block != block || stamp.write == 0 => return Err(foreign),
            Found::Stamp(stamp) => stamp.write,
            Found::Zeros | Found::Garbage => 0,
        };
        match version {
            0 if known > 0 => Err(foreign),
            found if found < known => Err(Violation::Stale { block, version: known, found }),
            found if found > sent => Err(Violation::Unwritten { block, sent, found }),
            found => Ok(found),
        }
    }

    pub fn violations(&self) -> u64 {
        self.violations
    }
    /// The first of them.
    pub fn told(&self) -> &[Violation] {
        &self.told
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use peristyle_base::BLOCK_BYTES;

    const SEED: u64 = 7;
    const NOW: Instant = Instant(1000);

    fn contents(seed: u64, block: u64, version: u64) -> Vec<u8> {
        let mut data = vec![0; BLOCK_BYTES];
        Stamp { seed, block, write: version }.fill(&mut data);
        data
    }

    struct Story(Registers);

    impl Story {
        fn new() -> Story {
            Story(Registers::new(SEED, 8))
        }
        fn begin(&mut self, block: u64) -> Writing {
            self.0.begin_write(block, NOW, &mut [0; BLOCK_BYTES]).expect("nobody writes it")
        }
        fn end(&mut self, writing: Writing) {
            self.0.acknowledged(&writing);
            self.0.end_write(writing, NOW);
        }
        fn write(&mut self, block: u64) {
            let writing = self.begin(block);
            self.end(writing);
        }
        fn end_read(&mut self, reading: Reading, found: &[u8]) -> Option<Violation> {
            let before = self.0.told().len();
            self.0.end_read(reading, found);
            self.0.told().get(before).copied()
        }
        fn read(&mut self, block: u64, version: u64) -> Option<Violation> {
            let reading = self.0.begin_read(block);
            self.end_read(reading, &contents(SEED, block, version))
        }
    }

    #[test]
    fn an_acknowledged_write_is_read_and_nothing_older() {
        let mut s = Story::new();
        (0..3).for_each(|_| s.write(2));
        assert_eq!(s.read(2, 3), None);
        assert_eq!(s.read(2, 2), Some(Violation::Stale { block: 2, version: 3, found: 2 }));
        assert_eq!(s.read(2, 4), Some(Violation::Unwritten { block: 2, sent: 3, found: 4 }));
        assert_eq!(s.0.violations(), 2);
    }

    #[test]
    fn a_write_under_way_may_be_read_or_not_until_a_read_has_seen_it() {
        let mut s = Story::new();
        s.write(1);
        let (_writing, early) = (s.begin(1), s.0.begin_read(1));
        assert_eq!(s.read(1, 1), None);
        assert_eq!(s.read(1, 2), None);
        assert_eq!(s.read(1, 1), Some(Violation::Stale { block: 1, version: 2, found: 1 }));
        assert_eq!(
            s.end_read(early, &contents(SEED, 1, 1)),
            None,
            "it began before anybody had seen the other"
        );
    }

    #[test]
    fn a_write_in_doubt_may_be_there_until_the_next_one_is_acknowledged() {
        let mut s = Story::new();
        let doubtful = s.begin(0);
        s.0.end_write(doubtful, NOW);
        let reading = s.0.begin_read(0);
        assert_eq!(s.end_read(reading, &[0; BLOCK_BYTES]), None);
        s.write(0);
        assert_eq!(s.read(0, 1), Some(Violation::Stale { block: 0, version: 2, found: 1 }));
    }

    #[test]
    fn what_was_there_before_is_not_judged_until_it_is_overwritten() {
        let mut s = Story::new();
        for before in [vec![0; BLOCK_BYTES], vec![3; BLOCK_BYTES], contents(SEED + 1, 4, 9)] {
            let reading = s.0.begin_read(5);
            assert_eq!(s.end_read(reading, &before), None);
            let mut written = Story::new();
            written.write(5);
            let reading = written.0.begin_read(5);
            let violation = written.end_read(reading, &before);
            assert!(
                matches!(violation, Some(Violation::Foreign { block: 5, version: 1, .. })),
                "{violation:?}"
            );
        }
    }

    #[test]
    fn a_block_of_another_place_is_a_violation_also_where_nothing_was_written() {
        let mut s = Story::new();
        s.write(3);
        let reading = s.0.begin_read(4);
        let violation = s.end_read(reading, &contents(SEED, 3, 1));
        assert!(matches!(violation, Some(Violation::Foreign { block: 4, version: 0, .. })), "{violation:?}");
    }

    #[test]
    fn a_block_has_one_writer_and_none_while_a_write_may_come_again() {
        let mut s = Story::new();
        let writing = s.begin(6);
        let mut out = [0; BLOCK_BYTES];
        assert!(s.0.begin_write(6, NOW, &mut out).is_none());
        s.0.end_write(writing, Instant(2000));
        assert!(s.0.begin_write(6, Instant(1999), &mut out).is_none());
        assert_eq!(s.0.begin_write(6, Instant(2000), &mut out).map(|w| w.version), Some(2));
        assert_eq!(out[..], contents(SEED, 6, 2));
    }
}
