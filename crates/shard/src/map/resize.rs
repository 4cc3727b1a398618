//! Layers that become larger or smaller.

use super::{Away, LEAF, Lookup, Map, MapFull, Missing, PAGE_BLOCKS, Ptr, Slot, pages_of};
use peristyle_base::LayerId;

/// Leaves that one step looks at, of layers with ancestors.
const STEP_LEAVES: usize = 64;

impl Map {
    /// Gives a layer another size; does nothing when it is not there. What lies behind a smaller end is given to `old`,
    /// or counted later, and forgotten. What a larger one gains is zero, not absent: neither the layer's own past nor a
    /// parent's data shows through, and a checkpoint writes over what an earlier one had there.
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
        assert!(
            layer.pages.iter().skip(pages).all(|slot| *slot == Slot::Zero),
            "what is cut off was given up"
        );
        layer.pages.resize(pages, Slot::Absent);
        layer.blocks = blocks;
        if blocks > there {
            self.zero(id, there, blocks - there, &mut old);
        }
        Ok(())
    }

    /// The last block that holds data, a layer's ancestors asked, from `from` on and before `below`; `None` when there is
    /// more to look at. What need not be looked at again is taken off `below`.
    pub fn last_found(
        &mut self,
        id: LayerId,
        from: u64,
        below: &mut u64,
    ) -> Result<Option<Option<u64>>, Away> {
        if self.parent(id).is_none() {
            let found = self.last_data(id, from, *below);
            // A leaf that was found to hold nothing may have gone since.
            return found.map(Some).inspect_err(|away| *below = (*below).min((away.leaf + 1) * LEAF));
        }
        for _ in 0..STEP_LEAVES {
            if *below <= from {
                return Ok(Some(None));
            }
            let last = *below - 1;
            if self.is_bare_page(id, last) {
                *below = last / PAGE_BLOCKS * PAGE_BLOCKS;
                continue;
            }
            for block in (from.max(last / LEAF * LEAF)..=last).rev() {
                if matches!(self.find(id, block)?, Lookup::Data(_)) {
                    return Ok(Some(Some(block)));
                }
            }
            *below = last / LEAF * LEAF;
        }
        Ok(None)
    }

    /// The last block that holds data, from `from` on and before `below`. A leaf that has to be read to know that is the
    /// answer.
    pub fn last_data(&self, id: LayerId, from: u64, below: u64) -> Result<Option<u64>, Away> {
        let Some(layer) = self.layers.get(&id).filter(|l| from < below.min(l.blocks)) else {
            return Ok(None);
        };
        let end = below.min(layer.blocks);
        let mut leaf = (end - 1) / LEAF;
        loop {
            let page = (leaf / LEAF) as usize;
            let nothing_there = matches!(layer.pages[page], Slot::Absent | Slot::Zero)
                && self.changes.leaves(id, page as u64 * LEAF, LEAF).is_empty();
            let first = match nothing_there {
                true => page as u64 * LEAF,
                false => leaf,
            };
            if !nothing_there {
                let away = Away { layer: id, leaf };
                if self.missing(away) != Missing::Nothing {
                    return Err(away);
                }
                let blocks = (leaf * LEAF).max(from)..((leaf + 1) * LEAF).min(end);
                let is_data = |block: &u64| matches!(self.lookup(id, *block), Lookup::Data(_));
                if let Some(block) = blocks.rev().find(is_data) {
                    return Ok(Some(block));
                }
            }
            if first * LEAF <= from {
                return Ok(None);
            }
            leaf = first - 1;
        }
    }
}
