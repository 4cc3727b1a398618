//! Layers that become larger or smaller.

use super::{FANOUT, Lookup, Map, MapFull, Node, Ptr, pages_of};
use peristyle_base::LayerId;

impl Map {
    /// Gives a layer another size; does nothing when it is not there. What lies behind a smaller end is given to `old`
    /// and forgotten. What a larger one gains is zero, not absent: neither the layer's own past nor a parent's data
    /// shows through, and a checkpoint writes over what an earlier one had there.
    pub fn resize_layer(
        &mut self,
        id: LayerId,
        blocks: u64,
        mut old: impl FnMut(Ptr),
    ) -> Result<(), MapFull> {
        let Some(there) = self.layer_blocks(id) else { return Ok(()) };
        if blocks < there {
            self.zero(id, blocks, there - blocks, &mut old);
        } else {
            self.fits(id, blocks)?;
        }
        let pages = pages_of(blocks);
        let layer = self.layers.get_mut(&id).expect("just seen");
        // Pages that go are zero as a whole: nothing of memory hangs on them.
        layer.pages.resize(pages, Node::Absent);
        layer.is_dirty.resize(pages, false);
        layer.dirty_pages.retain(|&page| (page as usize) < pages);
        layer.dirty_pages.reserve(pages - layer.dirty_pages.len());
        layer.blocks = blocks;
        if blocks > there {
            self.zero(id, there, blocks - there, |_| {});
        }
        Ok(())
    }

    /// The last block from `from` on that holds data.
    pub fn last_data(&self, id: LayerId, from: u64) -> Option<u64> {
        let layer = self.layers.get(&id)?;
        let first = (from / (FANOUT * FANOUT) as u64) as usize;
        (first..layer.pages.len()).rev().find_map(|page| {
            let Node::At(at) = layer.pages[page] else { return None };
            (0..FANOUT).rev().find_map(|child| {
                let Node::At(leaf) = self.pages[at as usize].children[child] else { return None };
                let ptrs = &self.leaves[leaf as usize].ptrs;
                let slot = ptrs.iter().rposition(|ptr| matches!(ptr.lookup(), Lookup::Data(_)))?;
                Some(((page * FANOUT + child) * FANOUT + slot) as u64).filter(|block| *block >= from)
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::map::{Captured, CapturedState};
    use peristyle_base::{ColumnIndex, ExtentId, RowIndex};
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    const L: LayerId = LayerId(1);
    const BLOCKS_MAX: u64 = 300_000;

    fn ptr(n: u64) -> Ptr {
        Ptr::new(ExtentId(n + 1), ColumnIndex((n % 6) as u8), RowIndex((n % 512) as u16), n as u32)
    }

    #[derive(Clone, Debug)]
    enum Op {
        Set(u64, u64),
        Zero(u64, u64),
        Resize(u64),
        Checkpoint,
    }

    fn op() -> impl Strategy<Value = Op> {
        let size = prop_oneof![
            1..BLOCKS_MAX,
            (1..5u64).prop_map(|pages| pages * 65536),
            (1..9u64).prop_map(|leaves| 65536 + leaves * 256),
        ];
        prop_oneof![
            6 => (0..BLOCKS_MAX, 0u64..1000).prop_map(|(b, n)| Op::Set(b, n)),
            1 => (0..BLOCKS_MAX, prop_oneof![1u64..600, 1..BLOCKS_MAX]).prop_map(|(b, n)| Op::Zero(b, n)),
            3 => size.prop_map(Op::Resize),
            2 => Just(Op::Checkpoint),
        ]
    }

    /// What checkpoints have written of the layer, as their homes keep it: by page, then by child.
    #[derive(Default)]
    struct Written(BTreeMap<u32, BTreeMap<u8, Box<crate::map::Block256>>>);

    impl Written {
        fn take(&mut self, map: &mut Map) {
            let mut captured: Vec<Captured> = Vec::new();
            map.capture(&mut captured);
            for c in captured {
                let page = self.0.entry(c.page).or_default();
                match (c.child, c.state) {
                    (None, _) => page.clear(),
                    (Some(child), CapturedState::Leaf(leaf)) => {
                        page.insert(child, Box::new(*map.leaf(leaf)));
                        map.release(leaf);
                    }
                    (Some(child), _) => drop(page.remove(&child)),
                }
            }
        }
        /// As recovery reads it: what lies outside of the layer is not looked at.
        fn restore(self, blocks: u64) -> Map {
            let mut map = Map::new(4096);
            map.create_layer(L, blocks).unwrap();
            for (page, children) in self.0 {
                children.into_iter().for_each(|(child, leaf)| map.load_child(L, page, child, Some(leaf)));
            }
            map
        }
    }

    fn content(map: &Map) -> BTreeMap<u64, Ptr> {
        let mut found = BTreeMap::new();
        map.for_each(|_, block, ptr| _ = found.insert(block, ptr));
        found
    }

    proptest! {
        #[test]
        fn a_layer_of_changing_size_agrees_with_a_tree_and_old_data_never_comes_back(
            ops in proptest::collection::vec(op(), 1..60)
        ) {
            let mut map = Map::new(4096);
            let mut blocks = 200_000;
            map.create_layer(L, blocks).unwrap();
            let (mut model, mut written) = (BTreeMap::new(), Written::default());
            for op in ops {
                match op {
                    Op::Set(block, n) => {
                        map.set(L, block, ptr(n));
                        if block < blocks {
                            model.insert(block, ptr(n));
                        }
                    }
                    Op::Zero(block, n) => {
                        map.zero(L, block, n, |_| {});
                        model.retain(|at, _| !(block..block + n).contains(at));
                    }
                    Op::Resize(to) => {
                        prop_assert_eq!(
                            map.last_data(L, to),
                            model.range(to..).next_back().map(|(at, _)| *at)
                        );
                        let mut gone = 0;
                        map.resize_layer(L, to, |_| gone += 1).unwrap();
                        prop_assert_eq!(gone, model.split_off(&to).len());
                        let gained = (blocks..to).step_by(97).all(|b| map.lookup(L, b) == Lookup::Zero);
                        prop_assert!(gained, "zero, not absent");
                        blocks = to;
                    }
                    Op::Checkpoint => written.take(&mut map),
                }
                prop_assert_eq!(map.layer_blocks(L), Some(blocks));
                prop_assert_eq!(map.mapped_blocks(), model.len() as u64);
            }
            written.take(&mut map);
            prop_assert_eq!(&content(&map), &model);
            prop_assert_eq!(&content(&written.restore(blocks)), &model);
        }
    }

    #[test]
    fn a_layer_grows_as_far_as_the_memory_covers_it() {
        let mut map = Map::new(16);
        map.create_layer(L, 8 * 256).unwrap();
        map.create_layer(LayerId(2), 4 * 256).unwrap();
        assert_eq!(map.resize_layer(L, 12 * 256 + 1, |_| {}), Err(MapFull));
        assert_eq!(map.layer_blocks(L), Some(8 * 256), "a refused one has changed nothing");
        assert_eq!(map.resize_layer(L, 12 * 256, |_| {}), Ok(()));
        assert_eq!(map.resize_layer(LayerId(9), 1 << 40, |_| {}), Ok(()), "it was dropped meanwhile");
    }

    #[test]
    fn a_checkpoint_that_failed_over_a_page_that_is_gone_leaves_the_rest_dirty() {
        let mut map = Map::new(4096);
        map.create_layer(L, 3 * 65536).unwrap();
        [5, 2 * 65536 + 5].into_iter().for_each(|block| _ = map.set(L, block, ptr(block)));
        let mut captured = Vec::new();
        map.capture(&mut captured);
        map.resize_layer(L, 65536, |_| {}).unwrap();
        for c in &captured {
            let CapturedState::Leaf(leaf) = c.state else { panic!("{c:?}") };
            map.release(leaf);
        }
        map.recapture(&captured);
        captured.clear();
        map.capture(&mut captured);
        assert!(captured.len() == 1 && captured[0].page == 0, "{captured:?}");
        assert_eq!(map.leaves_used(), 1);
    }
}
