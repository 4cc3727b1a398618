//! Which blocks of a range hold data, told in runs: what NBD's BLOCK_STATUS asks for.

use super::{Away, FANOUT, LEAF, Lookup, Map, NONE, PAGE_BLOCKS, Slot, split};
use peristyle_base::LayerId;

/// Pointers that one question looks at; what is zero or absent as a whole costs one step. So the longest answer takes
/// the reactor as long as a frame does.
const POINTERS_MAX: usize = 64 * 1024;
/// A look at a chain of layers takes as long as so many at one layer.
const CHAIN_COST: usize = 8;

/// Consecutive blocks that hold data, or read as zeros without holding any.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Run {
    pub blocks: u64,
    pub data: bool,
}

impl Map {
    /// The first runs of a range, `runs_max` at most: they may end before the range does, and the last may go on
    /// behind what is told of it. Neighbours differ. A leaf that has to be read ends what is told, and is the answer when
    /// it is the first.
    pub fn runs(
        &mut self,
        layer: LayerId,
        block: u64,
        count: u64,
        runs_max: usize,
    ) -> Result<Vec<Run>, Away> {
        let (mut runs, mut looked_at) = (Vec::<Run>::with_capacity(runs_max), 0);
        let end = self.layer_blocks(layer).map_or(0, |blocks| blocks.min(block.saturating_add(count)));
        let is_chain = self.parent(layer).is_some();
        let cost = if is_chain { CHAIN_COST } else { 1 };
        let mut at = block;
        while at < end && looked_at < POINTERS_MAX {
            let run = match is_chain {
                true => self.run_of_chain(layer, at),
                false => self.run_at(layer, at),
            };
            let (blocks, data) = match run {
                Ok(run) => run,
                Err(away) if at == block => return Err(away),
                Err(_) => break,
            };
            let blocks = blocks.min(end - at);
            looked_at += if blocks <= FANOUT as u64 { blocks as usize * cost } else { 1 };
            let told = runs.len();
            match runs.last_mut() {
                Some(last) if last.data == data => last.blocks += blocks,
                _ if told == runs_max => break,
                _ => runs.push(Run { blocks, data }),
            }
            at += blocks;
        }
        Ok(runs)
    }

    /// As [`run_at`](Self::run_at), of a layer with ancestors.
    fn run_of_chain(&mut self, layer: LayerId, block: u64) -> Result<(u64, bool), Away> {
        if self.is_bare_page(layer, block) {
            return Ok((PAGE_BLOCKS - block % PAGE_BLOCKS, false));
        }
        let data = matches!(self.find(layer, block)?, Lookup::Data(_));
        let (_, _, slot) = split(block);
        let mut blocks = 1;
        for next in block + 1..block + (FANOUT - slot) as u64 {
            if matches!(self.find(layer, next)?, Lookup::Data(_)) != data {
                break;
            }
            blocks += 1;
        }
        Ok((blocks, data))
    }

    /// What a block is, and how many from it on are the same within its leaf, or its page when that has none.
    fn run_at(&self, layer: LayerId, block: u64) -> Result<(u64, bool), Away> {
        let (page, child, slot) = split(block);
        let (away, key) = (Away::of(layer, block), (layer, block / LEAF));
        let to_end = (FANOUT - slot) as u64;
        let leaf = match self.layers[&layer].pages[page] {
            Slot::Home(_) => return Err(away),
            Slot::Absent | Slot::Zero => {
                if self.changes.leaves(layer, page as u64 * LEAF, LEAF).is_empty() {
                    return Ok((PAGE_BLOCKS - block % PAGE_BLOCKS, false));
                }
                NONE
            }
            Slot::At(at) => match self.pages[at as usize].children[child].lookup() {
                Lookup::Data(_) if self.pages[at as usize].at[child] == NONE => return Err(away),
                _ => self.pages[at as usize].at[child],
            },
        };
        if leaf == NONE && !self.changes.has(key) {
            return Ok((to_end, false));
        }
        let is_data = |slot: &usize| {
            let ptr = match leaf {
                NONE => self.changes.get(key, *slot as u8).unwrap_or_default(),
                leaf => self.leaves[leaf as usize].ptrs[*slot],
            };
            matches!(ptr.lookup(), Lookup::Data(_))
        };
        let data = is_data(&slot);
        Ok(((slot..FANOUT).take_while(|slot| is_data(slot) == data).count() as u64, data))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::map::{Limits, Ptr};
    use peristyle_base::{ColumnIndex, ExtentId, RowIndex};
    use proptest::prelude::*;

    const L: LayerId = LayerId(1);

    proptest! {
        #[test]
        fn runs_tell_what_a_look_at_each_block_tells(
            ops in proptest::collection::vec((any::<bool>(), 0u64..200_000, 1u64..70_000), 0..12),
            block in 0u64..200_000, count in 1u64..200_000, runs_max in 1usize..20,
        ) {
            let mut map = Map::new(Limits::of(64 << 20));
            map.create_layer(L, 200_000).unwrap();
            for (write, at, count) in ops {
                match write {
                    true => for block in at..at + count % 700 {
                        map.set(L, block, Ptr::new(ExtentId(1), ColumnIndex(0), RowIndex(1), 1));
                    },
                    false => map.zero(L, at, count, |_| {}),
                }
            }
            let runs = map.runs(L, block, count, runs_max).unwrap();
            let end = (block + count).min(200_000);
            let mut at = block;
            for run in &runs {
                for block in at..at + run.blocks {
                    prop_assert_eq!(run.data, matches!(map.lookup(L, block), Lookup::Data(_)), "{}", block);
                }
                at += run.blocks;
            }
            prop_assert!(!runs.is_empty() && runs.len() <= runs_max && at <= end);
            prop_assert!(runs.windows(2).all(|two| two[0].data != two[1].data));
            prop_assert!(at == end || runs.len() == runs_max || at - block >= POINTERS_MAX as u64 / 2);
        }
    }

    #[test]
    fn a_question_looks_at_so_many_pointers_and_no_more() {
        let mut map = Map::new(Limits::of(64 << 20));
        map.create_layer(L, 1 << 20).unwrap();
        (0..1 << 17)
            .for_each(|block| _ = map.set(L, block, Ptr::new(ExtentId(1), ColumnIndex(0), RowIndex(1), 1)));
        let data = |blocks| Run { blocks, data: true };
        assert_eq!(map.runs(L, 0, 1 << 20, 16).unwrap(), [data(POINTERS_MAX as u64)]);
        let hole = Run { blocks: (1 << 20) - (1 << 17), data: false };
        assert_eq!(map.runs(L, (1 << 17) - 5, u64::MAX, 16).unwrap(), [data(5), hole]);
        assert_eq!(map.runs(L, 1 << 20, 5, 16).unwrap(), []);
        assert_eq!(map.runs(LayerId(9), 0, 5, 16), Ok(vec![]));
    }
}
