//! What chains of layers say, leaf by leaf: a layer may have sixty-four ancestors, and a read looks at its own leaf and at
//! one of these. Frozen layers never change, so what was found stays true; only places do (collection, merges).
//!
//! A leaf is filled from the top of its chain down, as far as somebody has asked: what has to be read for it is read once,
//! and what was found is kept.
//!
//! The pointers of these leaves lie in the same memory as those of leaves of the tree, and both go when others have to come.
//! A share of the memory is theirs alone (`Limits::resolved`).

use super::{Away, FANOUT, LEAF, Lookup, Map, Missing, NONE, PAGE_BLOCKS, Ptr, split};
use peristyle_base::LayerId;

const WAYS: usize = 4;

struct Chain {
    /// The top of the chain.
    layer: LayerId,
    leaf: u64,
    /// The next layer to ask; `None` at the chain's end.
    next: Option<LayerId>,
    used: u64,
    /// The leaf that has the pointers.
    at: u32,
}

/// Leaves of chains, in bounded memory.
pub(super) struct Resolved {
    chains: Vec<Option<Chain>>,
    sets: usize,
    clock: u64,
    count: usize,
}

impl Resolved {
    /// With room for so many.
    pub fn new(limit: usize) -> Resolved {
        Resolved { chains: Vec::new(), sets: (limit / WAYS).max(1), clock: 0, count: 0 }
    }

    pub fn count(&self) -> usize {
        self.count
    }

    fn set_of(&self, leaf: u64) -> std::ops::Range<usize> {
        // By the leaf alone: what moves in one layer is found in all chains that it is part of.
        let hash = leaf.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32;
        let set = (hash * self.sets as u64 >> 32) as usize;
        if self.chains.is_empty() { 0..0 } else { set * WAYS..(set + 1) * WAYS }
    }

    fn find(&mut self, layer: LayerId, leaf: u64) -> Option<usize> {
        self.clock += 1;
        let is_it = |c: &Option<Chain>| c.as_ref().is_some_and(|c| (c.layer, c.leaf) == (layer, leaf));
        let at = self.set_of(leaf).find(|&at| is_it(&self.chains[at]))?;
        self.chains[at].as_mut().expect("just found").used = self.clock;
        Some(at)
    }

    /// A place for one more, and the one that is there: the least used of its set.
    fn place(&mut self, leaf: u64) -> (usize, Option<Chain>) {
        let used = |at: &usize| self.chains[*at].as_ref().map_or(0, |c| c.used);
        let at = self.set_of(leaf).min_by_key(used).expect("a set has places");
        (at, self.chains[at].take())
    }
}

impl Map {
    /// Index of a chain's leaf; `None` when there is no memory for it.
    fn chain_at(&mut self, layer: LayerId, leaf: u64) -> Option<usize> {
        if let Some(at) = self.resolved.find(layer, leaf) {
            let chain = self.resolved.chains[at].as_ref().expect("just found");
            self.leaves[chain.at as usize].used.set(true);
            return Some(at);
        }
        if self.resolved.chains.is_empty() {
            let places = self.resolved.sets * WAYS;
            self.resolved.chains.resize_with(places, || None);
        }
        let full = self.resolved.set_of(leaf).all(|at| self.resolved.chains[at].is_some());
        let more = !full && (self.resolved.count < self.limits.resolved || self.room_for_leaf());
        let (place, former) = self.resolved.place(leaf);
        let at = match (former, more) {
            (Some(chain), _) => chain.at,
            (None, true) => {
                self.resolved.count += 1;
                self.free_leaf_place()
            }
            (None, false) => return None,
        };
        let l = &mut self.leaves[at as usize];
        l.reset();
        l.ptrs.fill(Ptr::ABSENT);
        l.chain = place as u32;
        let used = self.resolved.clock;
        self.resolved.chains[place] = Some(Chain { layer, leaf, next: Some(layer), used, at });
        Some(place)
    }

    /// A leaf is a chain's, and there are more of these than have memory of their own.
    pub(super) fn chain_can_go(&self, leaf: usize) -> bool {
        self.leaves[leaf].chain != NONE && self.resolved.count > self.limits.resolved
    }

    pub(super) fn drop_chain(&mut self, leaf: u32) {
        let l = &mut self.leaves[leaf as usize];
        let chain = self.resolved.chains[l.chain as usize].take().expect("it names a chain");
        assert_eq!(chain.at, leaf, "a chain has one leaf");
        l.chain = NONE;
        self.resolved.count -= 1;
        self.free_leaves.push(leaf);
    }

    /// A block lies elsewhere.
    pub(super) fn repoint_chains(&mut self, block: u64, from: Ptr, to: Ptr) {
        let set = self.resolved.set_of(block / LEAF);
        for chain in self.resolved.chains[set].iter().flatten().filter(|c| c.leaf == block / LEAF) {
            let (ptrs, slot) = (&mut self.leaves[chain.at as usize].ptrs, (block % LEAF) as usize);
            if ptrs[slot] == from {
                ptrs.put(slot, to);
            }
        }
    }

    fn forget(&mut self, is_void: impl Fn(&Chain) -> bool) {
        let void = |c: &&Chain| is_void(c);
        let leaves: Vec<u32> = self.resolved.chains.iter().flatten().filter(void).map(|c| c.at).collect();
        leaves.into_iter().for_each(|leaf| self.drop_chain(leaf));
    }
    pub(super) fn forget_layer(&mut self, layer: LayerId) {
        self.forget(|c| c.layer == layer || c.next == Some(layer));
    }
    pub(super) fn forget_page(&mut self, page: u64) {
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
        let Some(at) = self.chain_at(layer, leaf) else { return self.find_by_layer(layer, block) };
        loop {
            let chain = self.resolved.chains[at].as_ref().expect("just placed");
            let found = self.leaves[chain.at as usize].ptrs.lookup(slot);
            match chain.next {
                Some(next) if found == Lookup::Absent => self.pour(at, next, leaf)?,
                _ => return Ok(found),
            }
        }
    }

    /// All layers of a chain are asked, one after the other, and nothing is kept.
    fn find_by_layer(&self, layer: LayerId, block: u64) -> Result<Lookup, Away> {
        for layer in self.chain(layer) {
            match self.lookup(layer, block) {
                Lookup::Away => return Err(Away::of(layer, block)),
                Lookup::Absent if self.layer_blocks(layer).is_some_and(|blocks| block < blocks) => {}
                found => return Ok(found),
            }
        }
        Ok(Lookup::Absent)
    }

    /// Takes along what the next layer of a chain has of a leaf.
    fn pour(&mut self, at: usize, next: LayerId, leaf: u64) -> Result<(), Away> {
        let away = Away { layer: next, leaf };
        if self.missing(away) != Missing::Nothing {
            return Err(away);
        }
        let blocks = self.layer_blocks(next).unwrap_or(0);
        let mut poured = [Ptr::ABSENT; FANOUT];
        self.each_pointer(away, |slot, ptr| poured[slot] = ptr);
        // Ends at a smaller layer's end: what is behind it in this leaf is zero.
        poured[blocks.saturating_sub(leaf * LEAF).min(LEAF) as usize..].fill(Ptr::ZERO);
        let parent = self.parent(next);
        let chain = self.resolved.chains[at].as_mut().expect("just placed");
        chain.next = parent;
        let ptrs = &mut self.leaves[chain.at as usize].ptrs;
        for (slot, ptr) in poured.into_iter().enumerate().filter(|(_, ptr)| *ptr != Ptr::ABSENT) {
            if ptrs.lookup(slot) == Lookup::Absent {
                ptrs.put(slot, ptr);
            }
        }
        // Whoever asks for it again finds it in the chain: it goes first.
        if let Some(leaf) = self.resident(next, leaf) {
            self.leaves[leaf as usize].used.set(false);
        }
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

#[cfg(test)]
mod tests {
    use super::super::{Limits, Map};
    use super::*;
    use peristyle_base::{ColumnIndex, ExtentId, RowIndex};
    use std::collections::BTreeMap;

    const VOLUME: LayerId = LayerId(1);
    const OTHER: LayerId = LayerId(2);
    const BLOCKS: u64 = 60 * LEAF;
    const LIMITS: Limits = Limits { leaves: 48, pages: 16, changes: 50_000, layer_pages: 64, resolved: 4 };

    fn ptr(n: u64) -> Ptr {
        Ptr::new(ExtentId(n + 1), ColumnIndex(0), RowIndex(0), n as u32)
    }

    /// A volume with so many snapshots, of which each has a few blocks, and what it shows.
    fn deep(snapshots: u32) -> (Map, BTreeMap<u64, Ptr>) {
        let (mut map, mut shown) = (Map::new(LIMITS), BTreeMap::new());
        map.create_layer(VOLUME, BLOCKS).unwrap();
        map.create_layer(OTHER, BLOCKS).unwrap();
        for round in 0..=u64::from(snapshots) {
            let layer = map.view(VOLUME).unwrap().layer;
            for block in (0..BLOCKS).filter(|block| block.wrapping_mul(2_654_435_761 + round) >> 7 & 15 == 0)
            {
                map.set(layer, block, ptr(round * BLOCKS + block));
                shown.insert(block, ptr(round * BLOCKS + block));
            }
            if round < u64::from(snapshots) {
                let new = map.new_layer();
                map.take_snapshot(VOLUME, LayerId(10 + round as u32), new);
            }
        }
        (map, shown)
    }

    fn agree(map: &mut Map, shown: &BTreeMap<u64, Ptr>) {
        let layer = map.view(VOLUME).unwrap().layer;
        for block in 0..BLOCKS {
            let expected = shown.get(&block).map_or(Lookup::Absent, |ptr| Lookup::Data(*ptr));
            assert_eq!(map.find(layer, block), Ok(expected), "block {block}");
            assert!(map.leaves_used() <= LIMITS.leaves);
        }
    }

    #[test]
    fn chains_take_memory_that_leaves_do_not_need_and_give_it_back() {
        let (mut map, mut shown) = deep(20);
        agree(&mut map, &shown);
        let most = map.resolved.count();
        assert!(most > 3 * LIMITS.resolved, "{most} chains");
        // What is moved is found where it is now.
        let layer = map.view(VOLUME).unwrap().layer;
        for (n, (block, from)) in shown.clone().into_iter().enumerate().step_by(7) {
            let to = ptr(1_000_000_000 + n as u64);
            let holder = map.chain(layer).find(|l| map.holder(*l, block, from) == Some(*l)).unwrap();
            assert!(map.repoint(holder, block, from, to));
            shown.insert(block, to);
        }
        agree(&mut map, &shown);
        // Leaves that are asked for all the time take their place.
        for turn in 0..20 {
            for block in (0..44 * LEAF).step_by(LEAF as usize) {
                map.set(OTHER, block, ptr(2_000_000_000 + turn * BLOCKS + block));
            }
        }
        assert!(map.resolved.count() < most, "{} of {most} chains", map.resolved.count());
        agree(&mut map, &shown);
    }

    #[test]
    fn without_memory_for_a_chain_its_layers_are_asked() {
        let (map, shown) = deep(3);
        let layer = map.view(VOLUME).unwrap().layer;
        let parent = map.parent(layer).unwrap();
        for block in (0..BLOCKS).filter(|block| map.lookup(layer, *block) == Lookup::Absent) {
            let found = shown.get(&block).map_or(Lookup::Absent, |ptr| Lookup::Data(*ptr));
            assert_eq!(map.find_by_layer(parent, block), Ok(found));
        }
    }
}
