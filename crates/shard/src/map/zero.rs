//! Ranges that read as zeros, and layers that go. What is whole is given up in one step, whatever its size.

use super::{FANOUT, LEAF, Leaf, Lookup, Map, NONE, PAGE_BLOCKS, Ptr, REMAINS, Slot, split};
use peristyle_base::LayerId;

impl Map {
    /// Makes a range read as zeros. Whole pages cost one step each, and so do whole leaves of pages in memory; what they
    /// held is counted later (`remains.rs`). `old` gets what is known at once.
    pub fn zero(&mut self, layer: LayerId, block: u64, count: u64, mut old: impl FnMut(Ptr)) {
        let Some(blocks) = self.layer_blocks(layer) else { return };
        let end = block.saturating_add(count).min(blocks);
        let mut at = block;
        while at < end {
            // The last page and leaf of a layer end where it does.
            let whole = |unit: u64| at % unit == 0 && (end - at >= unit || end == blocks);
            let (page, child, _) = split(at);
            if whole(PAGE_BLOCKS) {
                let slot = std::mem::replace(self.slot_mut(layer, page), Slot::Zero);
                self.bury_page(layer, page as u32, slot, &mut old);
                at += PAGE_BLOCKS;
            } else if whole(LEAF) && self.zero_leaf(layer, page, child, &mut old) {
                at += LEAF;
            } else {
                if let Some(Lookup::Data(ptr)) = self.set(layer, at, Ptr::ZERO) {
                    old(ptr);
                }
                at += 1;
            }
        }
    }

    /// A layer goes, in one step.
    pub(super) fn remove_layer(&mut self, id: LayerId, mut old: impl FnMut(Ptr)) {
        let Some(pages) =
            self.layers.get_mut(&id).filter(|_| id != REMAINS).map(|l| std::mem::take(&mut l.pages))
        else {
            return;
        };
        // Leaves beside pages that hold nothing: most pages of a large layer need not be looked through for them.
        for leaf in self.changes.leaves(id, 0, u64::MAX) {
            if matches!(pages[(leaf / LEAF) as usize], Slot::Absent | Slot::Zero) {
                self.forget_changes((id, leaf), &mut old);
            }
        }
        for (number, slot) in pages.into_iter().enumerate() {
            if matches!(slot, Slot::Home(_) | Slot::At(_)) {
                self.bury_page(id, number as u32, slot, &mut old);
            }
        }
        self.voided.push((id, 0, u32::MAX));
        self.freeing += self.layers.remove(&id).expect("just seen").live;
    }

    pub(super) fn slot_mut(&mut self, layer: LayerId, page: usize) -> &mut Slot {
        &mut self.layers.get_mut(&layer).expect("the caller looked").pages[page]
    }

    /// False when the page has to be read to do it as a whole.
    fn zero_leaf(&mut self, layer: LayerId, page: usize, child: usize, old: &mut impl FnMut(Ptr)) -> bool {
        let key = (layer, page as u64 * LEAF + child as u64);
        match self.layers[&layer].pages[page] {
            Slot::Home(_) => return false,
            Slot::Zero if !self.changes.has(key) => return true,
            _ => {}
        }
        let Some(at) = self.page_for_change(layer, page) else { return false };
        let leaf = self.pages[at as usize].at[child];
        if leaf != NONE {
            if !self.leaves[leaf as usize].changed.is_empty() {
                self.voided.push((key.0, key.1, 1));
            }
            self.count_resident(leaf, old);
            self.detach(leaf);
            self.retire_child(at, child);
        } else if matches!(self.pages[at as usize].children[child].lookup(), Lookup::Data(_)) {
            self.bury_leaf(at, child);
        } else {
            self.forget_changes(key, old);
        }
        let page = &mut self.pages[at as usize];
        if page.children[child] != Ptr::ZERO {
            (page.children[child], page.dirty) = (Ptr::ZERO, true);
        }
        true
    }

    /// Changes of a leaf whose block holds nothing.
    pub(super) fn forget_changes(&mut self, key: (LayerId, u64), old: &mut impl FnMut(Ptr)) {
        let mut dead = 0;
        let any = self.changes.take(key, |change| {
            if let Lookup::Data(ptr) = change.ptr.lookup() {
                dead += 1;
                old(ptr);
            }
        });
        self.tally(key, -dead);
        if any {
            self.voided.push((key.0, key.1, 1));
        }
    }

    /// What a leaf in memory points at is live no more.
    pub(super) fn count_resident(&mut self, leaf: u32, old: &mut impl FnMut(Ptr)) {
        let Leaf { ptrs, page, child, .. } = &self.leaves[leaf as usize];
        let (key, mut dead) = (self.key_of(*page, *child as usize), 0);
        for ptr in ptrs.iter() {
            if let Lookup::Data(ptr) = ptr.lookup() {
                dead += 1;
                old(ptr);
            }
        }
        self.tally(key, -dead);
    }

    /// A page does not refer to the block of one of its leaves any more; a checkpoint that is writing the leaf keeps
    /// what it writes to itself.
    pub(super) fn retire_child(&mut self, page: u32, child: usize) {
        let page = &mut self.pages[page as usize];
        // The block that is being written has the leaf, whatever `children` says: it has to be written once more.
        page.dirty |= page.writing.get(child);
        page.writing.clear(child);
        if let Lookup::Data(home) = page.children[child].lookup() {
            self.retired.push(home);
        }
    }
}

const _: () = assert!(PAGE_BLOCKS == (FANOUT * FANOUT) as u64);
