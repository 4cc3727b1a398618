//! What a checkpoint takes of the map: what changed, pointer by pointer (`listing.rs`), and leaves of which much changed
//! as a whole. Commits go on meanwhile: a leaf that is being written is copied before it changes.

use super::{Bits, Block256, FANOUT, LayerTable, Lookup, Map, NONE, Ptr, Slot};
use peristyle_base::LayerId;
use std::collections::BTreeMap;

/// A leaf of which more pointers have changed is written as a whole: a block costs less than to list them, again and
/// again until it is written.
const LISTED_MAX: usize = FANOUT / 2;

/// Leaves that one look for candidates goes through.
const LOOK_LEAVES: usize = 512;

/// Leaves that a checkpoint may write as a whole. They are looked for before it begins, some at a time: what changes
/// meanwhile may wait for the next one.
pub struct Candidates {
    looked_at: usize,
    /// By their changes when they were looked at; the last are those that have to lie elsewhere.
    by_count: [Vec<u32>; FANOUT + 2],
}

impl Default for Candidates {
    fn default() -> Candidates {
        Candidates { looked_at: 0, by_count: std::array::from_fn(|_| Vec::new()) }
    }
}

/// One thing that a checkpoint lists.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Logged {
    /// What was listed before of `count` leaves from `leaf` on is void. `u32::MAX`: of all behind it.
    Void { layer: LayerId, leaf: u64, count: u32 },
    /// A pointer. `counted`: what the leaf's block has in its place is not live any more.
    Set { layer: LayerId, block: u64, ptr: Ptr, counted: bool },
}

/// Where a page lies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PageAt {
    Zero,
    Home(Ptr),
    /// The checkpoint writes it: index in [`Capture::pages`].
    Written(usize),
}

/// A layer, its blocks, and where its pages are that are not absent, by number.
pub type LayerPages = (LayerId, u64, Vec<(u32, PageAt)>);

/// A page to write, once the places of its leaves that are written as well are known.
pub struct CapturedPage {
    at: u32,
    pub layer: LayerId,
    pub number: u32,
    pub children: Box<Block256>,
}

/// A leaf to write.
#[derive(Clone, Copy)]
pub struct CapturedLeaf {
    /// For [`Map::leaf`].
    pub leaf: u32,
    /// Index in [`Capture::pages`].
    pub page: usize,
    pub child: u8,
    changed: Bits,
}

/// What one checkpoint writes of the map, as it was at its number.
pub struct Capture {
    /// The remains are the last.
    pub layers: Vec<LayerPages>,
    pub table: LayerTable,
    pub pages: Vec<CapturedPage>,
    pub leaves: Vec<CapturedLeaf>,
    /// All changes are listed, and not only new ones: what earlier checkpoints listed is not needed.
    pub whole: bool,
    /// Map blocks that the checkpoint before refers to, and this one does not.
    pub replaced: Vec<Ptr>,
    retired: Vec<Ptr>,
}

impl Map {
    /// Looks for more candidates. False: there are no more.
    pub fn look_for_candidates(&self, found: &mut Candidates) -> bool {
        let from = found.looked_at;
        found.looked_at = self.leaves.len().min(from + LOOK_LEAVES);
        for leaf in (from..found.looked_at).filter(|leaf| self.is_candidate(*leaf)) {
            let l = &self.leaves[leaf];
            found.by_count[if l.rewrite { FANOUT + 1 } else { l.changed.count() }].push(leaf as u32);
        }
        found.looked_at < self.leaves.len()
    }

    fn is_candidate(&self, leaf: usize) -> bool {
        let l = &self.leaves[leaf];
        (l.rewrite || !l.changed.is_empty()) && self.is_in_tree(leaf)
    }

    /// Takes everything that changed since the last capture, as it is now; changes that are listed one by one come from
    /// [`list_some`](Self::list_some). Every capture ends with [`installed`](Self::installed), once all is listed, or
    /// [`failed`](Self::failed) before the next one begins.
    pub fn capture(&mut self, candidates: &Candidates, whole: bool) -> Capture {
        let whole = std::mem::take(&mut self.whole_next) || whole;
        let leaves = self.choose_leaves(candidates);
        let pages = self.capture_pages(&leaves);
        let index: BTreeMap<u32, usize> = pages.iter().enumerate().map(|(i, p)| (p.at, i)).collect();
        let mut capture = Capture {
            layers: self.capture_layers(&index),
            table: self.table(),
            leaves: Vec::with_capacity(leaves.len()),
            whole,
            replaced: Vec::new(),
            retired: std::mem::take(&mut self.retired),
            pages,
        };
        self.changes.listing.begin(whole);
        for (layer, leaf, count) in self.voided.drain(..).filter(|_| !whole) {
            self.changes.listing.push(Logged::Void { layer, leaf, count });
        }
        self.freeze(leaves, &index, &mut capture);
        let leaves = capture.leaves.iter().map(|leaf| capture.pages[leaf.page].children[leaf.child as usize]);
        let pages = capture.pages.iter().map(|page| self.pages[page.at as usize].home);
        let replaced = leaves.chain(pages).filter(|ptr| matches!(ptr.lookup(), Lookup::Data(_)));
        capture.replaced = replaced.chain(capture.retired.iter().copied()).collect();
        capture
    }

    /// Leaves to write as a whole: those with many changes, those that have to lie elsewhere, and while there are too
    /// many changes those with most of them.
    fn choose_leaves(&self, candidates: &Candidates) -> Vec<u32> {
        let mut left = self.changes();
        let needed = |&leaf: &u32| {
            let l = &self.leaves[leaf as usize];
            let count = l.changed.count();
            let needed = l.rewrite || count > LISTED_MAX || left > self.limits.changes / 2;
            left -= count;
            needed
        };
        let there = candidates.by_count.iter().rev().flatten().copied();
        let there = there.filter(|leaf| self.is_candidate(*leaf as usize));
        there.take(self.limits.captured_max()).take_while(needed).collect()
    }

    fn capture_pages(&mut self, leaves: &[u32]) -> Vec<CapturedPage> {
        let mut with_leaves = vec![false; self.pages.len()];
        leaves.iter().for_each(|leaf| with_leaves[self.leaves[*leaf as usize].page as usize] = true);
        let mut captured = Vec::new();
        for (at, page) in self.pages.iter_mut().enumerate() {
            if page.number == NONE || !(page.dirty || with_leaves[at]) {
                continue;
            }
            assert!(!page.captured && page.writing.is_empty(), "one checkpoint at a time");
            (page.dirty, page.captured) = (false, true);
            let children = page.children.clone();
            captured.push(CapturedPage { at: at as u32, layer: page.layer, number: page.number, children });
        }
        captured.sort_unstable_by_key(|page| (page.layer, page.number));
        captured
    }

    fn capture_layers(&self, index: &BTreeMap<u32, usize>) -> Vec<LayerPages> {
        let place = |slot: &Slot| match *slot {
            Slot::Absent => None,
            Slot::Zero => Some(PageAt::Zero),
            Slot::Home(home) => Some(PageAt::Home(home)),
            Slot::At(at) => match (index.get(&at), self.pages[at as usize].home.lookup()) {
                (Some(&i), _) => Some(PageAt::Written(i)),
                (None, Lookup::Data(home)) => Some(PageAt::Home(home)),
                (None, Lookup::Zero) => Some(PageAt::Zero),
                (None, _) => None,
            },
        };
        let pages = |slots: &[Slot]| {
            let there = slots.iter().enumerate().filter_map(|(n, slot)| Some((n as u32, place(slot)?)));
            there.collect()
        };
        self.layers.iter().map(|(&id, layer)| (id, layer.blocks, pages(&layer.pages))).collect()
    }

    fn freeze(&mut self, leaves: Vec<u32>, index: &BTreeMap<u32, usize>, capture: &mut Capture) {
        for leaf in leaves {
            let l = &mut self.leaves[leaf as usize];
            self.resident_changes -= l.changed.count();
            let changed = std::mem::take(&mut l.changed);
            (l.fresh, l.rewrite, l.frozen) = (Bits::default(), false, true);
            l.listed = self.changes.listing.number();
            let (page, child) = (l.page, l.child);
            self.pages[page as usize].writing.set(child as usize);
            capture.leaves.push(CapturedLeaf { leaf, page: index[&page], child, changed });
            let (layer, leaf) = self.key_of(page, child as usize);
            if !capture.whole {
                self.changes.listing.push(Logged::Void { layer, leaf, count: 1 });
            }
        }
        capture.leaves.sort_unstable_by_key(|leaf| (leaf.page, leaf.child));
    }

    /// A leaf in memory; a captured one as it was at the capture.
    pub fn leaf(&self, leaf: u32) -> &Block256 {
        &self.leaves[leaf as usize].ptrs
    }

    /// The checkpoint is durable; its leaves and pages lie there. Returns map blocks that nothing refers to any more.
    pub fn installed(&mut self, capture: Capture, leaves: &[Ptr], pages: &[Ptr]) -> Vec<Ptr> {
        assert!(leaves.len() == capture.leaves.len() && pages.len() == capture.pages.len());
        let mut gone = capture.retired;
        let mut replaced = |old: Ptr| gone.extend(matches!(old.lookup(), Lookup::Data(_)).then_some(old));
        for (captured, &home) in capture.leaves.iter().zip(leaves) {
            let page = &mut self.pages[capture.pages[captured.page].at as usize];
            let child = captured.child as usize;
            match page.writing.get(child) {
                true => replaced(std::mem::replace(&mut page.children[child], home)),
                // It was given up meanwhile: the checkpoint refers to it, the next one does not.
                false => self.retired.push(home),
            }
            page.writing.clear(child);
            self.thaw(captured.leaf);
        }
        for (captured, &home) in capture.pages.iter().zip(pages) {
            let page = &mut self.pages[captured.at as usize];
            replaced(std::mem::replace(&mut page.home, home));
            page.captured = false;
        }
        gone
    }

    /// The checkpoint came to nothing: what it had taken is changed as before.
    pub fn failed(&mut self, capture: Capture) {
        self.changes.listing.give_up();
        for captured in &capture.leaves {
            let page = &mut self.pages[capture.pages[captured.page].at as usize];
            let child = captured.child as usize;
            if page.writing.get(child) {
                page.writing.clear(child);
                let leaf = &mut self.leaves[page.at[child] as usize];
                self.resident_changes -= leaf.changed.count();
                leaf.changed.add(captured.changed);
                self.resident_changes += leaf.changed.count();
            }
            self.thaw(captured.leaf);
        }
        for captured in &capture.pages {
            let page = &mut self.pages[captured.at as usize];
            (page.dirty, page.captured) = (true, false);
        }
        self.retired.extend(capture.retired);
        // Which changes it has listed, and what it has declared void, need not be known.
        self.whole_next = true;
    }

    fn thaw(&mut self, leaf: u32) {
        let l = &mut self.leaves[leaf as usize];
        assert!(l.frozen, "let go of twice");
        l.frozen = false;
        if l.orphan {
            l.orphan = false;
            self.free_leaves.push(leaf);
        }
    }
}
