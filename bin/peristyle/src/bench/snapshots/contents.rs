//! What volumes, snapshots and clones must hold, and how much they must take.

use peristyle_base::{BLOCK_BYTES, LayerId};
use peristyle_bench::random::Random;
use peristyle_rt::{Buf, View};

/// Each block says which it is and which write it is of.
const STAMP: usize = 16;

/// What was written: to the volume with snapshots and the one without the same.
pub struct Contents {
    pub blocks: u64,
    /// Blocks that were overwritten after each snapshot; ascending.
    pub rounds: Vec<Vec<u64>>,
    /// Blocks that each clone has of its own; ascending.
    pub clones: Vec<Vec<u64>>,
    template: View,
}

impl Contents {
    pub fn new(blocks: u64, template: View) -> Contents {
        Contents { blocks, rounds: Vec::new(), clones: Vec::new(), template }
    }

    /// One write's data.
    pub async fn data(&self, at: u64, count: u64, write: u64) -> View {
        let mut buf = Buf::alloc(count as usize * BLOCK_BYTES).await;
        for (block, number) in buf.chunks_exact_mut(BLOCK_BYTES).zip(at..) {
            block.copy_from_slice(&self.template[..BLOCK_BYTES]);
            block[..8].copy_from_slice(&number.to_le_bytes());
            block[8..STAMP].copy_from_slice(&write.to_le_bytes());
        }
        buf.freeze()
    }

    /// The write that a block must be of, `rounds` rounds after the volume was filled. Writes of rounds count from 1.
    pub fn write_after(&self, rounds: usize, block: u64) -> u64 {
        let has = |round: &Vec<u64>| round.binary_search(&block).is_ok();
        self.rounds[..rounds].iter().rposition(has).map_or(0, |round| round as u64 + 1)
    }

    pub fn clone_write(&self, clone: usize, block: u64) -> u64 {
        match self.clones[clone].binary_search(&block) {
            Ok(_) => clone_number(clone),
            Err(_) => self.write_after(self.rounds.len(), block),
        }
    }

    pub fn is(&self, data: &[u8], block: u64, write: u64) -> bool {
        stamp(data) == (block, write) && data[STAMP..] == self.template[STAMP..BLOCK_BYTES]
    }

    /// Blocks that were overwritten in the first rounds, each as often as it was.
    pub fn overwritten(&self, rounds: usize) -> u64 {
        self.rounds[..rounds].iter().map(|round| round.len() as u64).sum()
    }

    /// Blocks that the pool must hold: both volumes, what snapshots keep of one of them, and what clones wrote.
    pub fn live(&self) -> u64 {
        let cloned: u64 = self.clones.iter().map(|own| own.len() as u64).sum();
        2 * self.blocks + self.overwritten(self.rounds.len()) + cloned
    }
}

/// The number of a clone's writes; far from those of rounds.
pub fn clone_number(clone: usize) -> u64 {
    1 << 32 | clone as u64
}

/// Which block it is, and of which write.
pub fn stamp(data: &[u8]) -> (u64, u64) {
    let word = |at: usize| u64::from_le_bytes(data[at..at + 8].try_into().expect("eight bytes"));
    (word(0), word(8))
}

/// So many different blocks, ascending.
pub fn draw(random: &mut Random, blocks: u64, count: u64) -> Vec<u64> {
    let mut drawn = std::collections::BTreeSet::new();
    while (drawn.len() as u64) < count.min(blocks) {
        drawn.insert(random.below(blocks));
    }
    drawn.into_iter().collect()
}

/// Volumes, snapshots and clones, numbered as a node numbers them: one after the other.
pub const PLAIN: LayerId = LayerId(1);
pub const DEEP: LayerId = LayerId(2);
pub const IMAGE: LayerId = LayerId(3);

pub fn snapshot(number: usize) -> LayerId {
    LayerId(4 + number as u32)
}

pub fn clone(number: usize, snapshots: usize) -> LayerId {
    LayerId(4 + (snapshots + number) as u32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use peristyle_rt::sim;

    #[test]
    fn contents_know_what_each_snapshot_and_clone_holds() {
        sim::run(1, |_| async {
            let template = Buf::alloc(BLOCK_BYTES).await.freeze();
            let mut contents = Contents::new(100, template);
            contents.rounds = vec![vec![3, 5], vec![5, 9]];
            contents.clones = vec![vec![], vec![7]];
            let after = |rounds| [3, 5, 9, 7].map(|block| contents.write_after(rounds, block));
            assert_eq!([after(0), after(1), after(2)], [[0; 4], [1, 1, 0, 0], [1, 2, 2, 0]]);
            assert_eq!([0, 1].map(|clone| contents.clone_write(clone, 7)), [0, clone_number(1)]);
            assert_eq!((contents.overwritten(1), contents.live()), (2, 205));
            let data = contents.data(8, 2, 2).await;
            assert!(contents.is(&data[BLOCK_BYTES..], 9, 2) && !contents.is(&data[BLOCK_BYTES..], 9, 1));
        });
        let drawn = draw(&mut Random::new(1), 50, 20);
        assert!(drawn.len() == 20 && drawn.is_sorted() && *drawn.last().unwrap() < 50);
        assert_eq!(draw(&mut Random::new(1), 5, 20).len(), 5);
    }
}
