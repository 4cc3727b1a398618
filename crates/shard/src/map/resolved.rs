//! What chains of layers say, leaf by leaf: a layer may have sixty-four ancestors, and a read looks at its own leaf and at
//! one of these. Frozen layers never change, so what was found stays true; only places do (collection, merges).
//!
//! A leaf is filled from the top of its chain down, as far as somebody has asked: what has to be read for it is read once,
//! and what was found is kept.

use super::{Away, Block256, FANOUT, LEAF, Lookup, Map, Missing, PAGE_BLOCKS, Ptr, split};
use peristyle_base::LayerId;

const WAYS: usize = 4;

struct Chain {
    /// The top of the chain.
    layer: LayerId,
    leaf: u64,
    /// The next layer to ask; `None` at the chain's end.
    next: Option<LayerId>,
    used: u64,
    ptrs: Box<Block256>,
}

/// Leaves of chains, in bounded memory.
pub(super) struct Resolved {
    chains: Vec<Option<Chain>>,
    sets: usize,
    clock: u64,
}

impl Resolved {
    pub fn new(limit: usize) -> Resolved {
        Resolved { chains: Vec::new(), sets: (limit / WAYS).max(1), clock: 0 }
    }

    fn set_of(&self, leaf: u64) -> std::ops::Range<usize> {
        // By the leaf alone: what moves in one layer is found in all chains that it is part of.
        let hash = leaf.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32;
        let set = (hash * self.sets as u64 >> 32) as usize;
        if self.chains.is_empty() { 0..0 } else { set * WAYS..(set + 1) * WAYS }
    }

    /// Index of a chain's leaf. The least used one makes room for it.
    fn place(&mut self, layer: LayerId, leaf: u64) -> usize {
        if self.chains.is_empty() {
            self.chains.resize_with(self.sets * WAYS, || None);
        }
        self.clock += 1;
        let (set, clock) = (self.set_of(leaf), self.clock);
        let is_it = |c: &Option<Chain>| c.as_ref().is_some_and(|c| (c.layer, c.leaf) == (layer, leaf));
        if let Some(at) = set.clone().find(|&at| is_it(&self.chains[at])) {
            self.chains[at].as_mut().expect("just found").used = clock;
            return at;
        }
        let used = |at: &usize| self.chains[*at].as_ref().map_or(0, |c| c.used);
        let at = set.min_by_key(used).expect("a set has places");
        let mut ptrs = self.chains[at].take().map_or_else(|| Box::new([Ptr::ABSENT; FANOUT]), |c| c.ptrs);
        ptrs.fill(Ptr::ABSENT);
        self.chains[at] = Some(Chain { layer, leaf, next: Some(layer), used: clock, ptrs });
        at
    }

    /// A block lies elsewhere.
    pub fn repoint(&mut self, block: u64, from: Ptr, to: Ptr) {
        let set = self.set_of(block / LEAF);
        for chain in self.chains[set].iter_mut().flatten().filter(|c| c.leaf == block / LEAF) {
            let ptr = &mut chain.ptrs[(block % LEAF) as usize];
            if *ptr == from {
                *ptr = to;
            }
        }
    }

    fn forget(&mut self, is_void: impl Fn(&Chain) -> bool) {
        self.chains.iter_mut().filter(|c| c.as_ref().is_some_and(&is_void)).for_each(|c| *c = None);
    }
    pub fn forget_layer(&mut self, layer: LayerId) {
        self.forget(|c| c.layer == layer || c.next == Some(layer));
    }
    pub fn forget_page(&mut self, page: u64) {
        self.forget(|c| c.leaf / LEAF == page);
    }
}

impl Map {
    /// What a block of a layer is, its ancestors asked; or a leaf that has to be read first.
    pub fn find(&mut self, layer: LayerId, block: u64) -> Result<Lookup, Away> {
        let Some(top) = self.layers.get(&layer).filter(|l| block < l.blocks) else {
            return Ok(Lookup::Absent);
        };
        match (self.lookup_in(top, layer, block), top.parent) {
            (Lookup::Away, _) => Err(Away::of(layer, block)),
            (Lookup::Absent, Some(parent)) => self.find_below(parent, block),
            (found, _) => Ok(found),
        }
    }

    fn find_below(&mut self, layer: LayerId, block: u64) -> Result<Lookup, Away> {
        let Some(top) = self.layers.get(&layer) else { return Ok(Lookup::Absent) };
        // What a layer never had, its parent does not show through it.
        if block >= top.blocks {
            return Ok(Lookup::Absent);
        }
        if top.parent.is_none() {
            let found = self.lookup_in(top, layer, block);
            return if found == Lookup::Away { Err(Away::of(layer, block)) } else { Ok(found) };
        }
        let (leaf, slot) = (block / LEAF, (block % LEAF) as usize);
        let at = self.resolved.place(layer, leaf);
        loop {
            let chain = self.resolved.chains[at].as_ref().expect("just placed");
            let found = chain.ptrs[slot].lookup();
            match chain.next {
                Some(next) if found == Lookup::Absent => self.pour(at, next, leaf)?,
                _ => return Ok(found),
            }
        }
    }

    /// Takes along what the next layer of a chain has of a leaf.
    fn pour(&mut self, at: usize, next: LayerId, leaf: u64) -> Result<(), Away> {
        let away = Away { layer: next, leaf };
        if self.missing(away) != Missing::Nothing {
            return Err(away);
        }
        let mut chain = self.resolved.chains[at].take().expect("just placed");
        let blocks = self.layer_blocks(next).unwrap_or(0);
        self.each_pointer(away, |slot, ptr| {
            let beyond = leaf * LEAF + slot as u64 >= blocks;
            let there = &mut chain.ptrs[slot];
            if *there == Ptr::ABSENT {
                *there = if beyond { Ptr::ZERO } else { ptr };
            }
        });
        // Ends at a smaller layer's end: what is behind it in this leaf is zero.
        for slot in blocks.saturating_sub(leaf * LEAF).min(LEAF) as usize..FANOUT {
            if chain.ptrs[slot] == Ptr::ABSENT {
                chain.ptrs[slot] = Ptr::ZERO;
            }
        }
        chain.next = self.parent(next);
        self.resolved.chains[at] = Some(chain);
        Ok(())
    }

    /// The pointers of a leaf for which nothing has to be read, but for those that are absent.
    pub(super) fn each_pointer(&self, away: Away, mut each: impl FnMut(usize, Ptr)) {
        let Away { layer, leaf } = away;
        if let Some(at) = self.resident(layer, leaf) {
            let leaf = &self.leaves[at as usize];
            leaf.used.set(true);
            let there = leaf.ptrs.iter().enumerate().filter(|(_, ptr)| **ptr != Ptr::ABSENT);
            there.for_each(|(slot, ptr)| each(slot, *ptr));
            return;
        }
        let (page, child, _) = split(leaf * LEAF);
        let Some(&slot) = self.layers.get(&layer).and_then(|l| l.pages.get(page)) else { return };
        let mut changed = [false; FANOUT];
        self.changes.of((layer, leaf), |change| {
            changed[change.slot as usize] = true;
            if change.ptr != Ptr::ABSENT {
                each(change.slot as usize, change.ptr);
            }
        });
        if self.base(slot, child) == Lookup::Zero {
            (0..FANOUT).filter(|slot| !changed[*slot]).for_each(|slot| each(slot, Ptr::ZERO));
        }
    }

    /// Nothing of a chain below its top is in a page: blocks of it that the top does not have are absent. For ranges
    /// that hold nothing, which need not be looked at block by block.
    pub fn is_bare_page(&self, layer: LayerId, block: u64) -> bool {
        let page = (block / PAGE_BLOCKS) as usize;
        let bare = |layer: LayerId| {
            let slot = self.layers[&layer].pages.get(page).copied().unwrap_or_default();
            matches!(slot, super::Slot::Absent | super::Slot::Zero)
                && self.changes.leaves(layer, page as u64 * LEAF, LEAF).is_empty()
        };
        self.chain(layer).all(bare)
    }
}
