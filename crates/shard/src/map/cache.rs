//! What of the map is in memory: bounds, what goes when something else has to come, and what is read back.

use super::ptr::decode_into;
use super::{FANOUT, LEAF, Leaf, Lookup, Map, NONE, PTR_BYTES, Page, Ptr, Slot, split, take_along};
use crate::map::changes::Change;
use peristyle_base::LayerId;

/// Memory of a leaf with its place among the chains', of a page, of a change beside the tree, and of a page that is not in
/// memory, with what belongs to it. Rounded up: they bound what is used, they do not measure it.
const LEAF_BYTES: u64 = 4096 + 192;
const PAGE_BYTES: u64 = 2 * 4096 + 1024 + 160;
const CHANGE_BYTES: u64 = 96;
const SLOT_BYTES: u64 = 64;

const _: () = assert!(CHANGE_BYTES >= super::changes::BYTES_MAX);

/// How much of the map may be in memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Leaves, without the copies that commits make of what a checkpoint writes: a quarter as many.
    pub leaves: usize,
    pub pages: usize,
    /// Changed pointers.
    pub changes: usize,
    /// Pages of all layers, in memory or not.
    pub layer_pages: usize,
    /// Leaves of chains of layers; more of them take the memory of leaves that nobody asked for lately.
    pub resolved: usize,
}

impl Limits {
    /// The limits that keep the map within so many bytes.
    pub fn of(bytes: u64) -> Limits {
        let share = |eighths: u64, each: u64, least: u64| (bytes / 8 * eighths / each).max(least) as usize;
        Limits {
            // Three eighths, and a fourth part of that for copies.
            leaves: share(3, LEAF_BYTES, 16),
            pages: share(1, PAGE_BYTES, 8),
            changes: share(2, CHANGE_BYTES, 16_384),
            layer_pages: share(1, SLOT_BYTES, 1024),
            // What the copies leave of half an eighth.
            resolved: (bytes / 32 / LEAF_BYTES).max(64) as usize,
        }
    }

    /// Leaves that one checkpoint writes at most: they cannot go meanwhile.
    pub(super) fn captured_max(&self) -> usize {
        (self.leaves / 4).max(8)
    }

    /// What all that takes at most.
    pub fn bytes(&self) -> u64 {
        (self.leaves + self.captured_max()) as u64 * LEAF_BYTES
            + self.pages as u64 * PAGE_BYTES
            + self.changes as u64 * CHANGE_BYTES
            + self.layer_pages as u64 * SLOT_BYTES
            + self.resolved as u64 * LEAF_BYTES
    }
}

/// What has to be read before a leaf can be looked at.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Missing {
    Nothing,
    Page(Ptr),
    Leaf(Ptr),
}

/// A leaf that is not in memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Away {
    pub layer: LayerId,
    pub leaf: u64,
}

impl Away {
    pub fn of(layer: LayerId, block: u64) -> Away {
        Away { layer, leaf: block / LEAF }
    }
}

impl Map {
    /// What has to be read next before all pointers of a leaf are known.
    pub fn missing(&self, Away { layer, leaf }: Away) -> Missing {
        let (page, child, _) = split(leaf * LEAF);
        let Some(layer) = self.layers.get(&layer).filter(|l| page < l.pages.len()) else {
            return Missing::Nothing;
        };
        match layer.pages[page] {
            Slot::Absent | Slot::Zero => Missing::Nothing,
            Slot::Home(home) => Missing::Page(home),
            Slot::At(at) => {
                let page = &self.pages[at as usize];
                match page.children[child].lookup() {
                    Lookup::Data(home) if page.at[child] == NONE => Missing::Leaf(home),
                    _ => Missing::Nothing,
                }
            }
        }
    }

    /// As [`missing`](Self::missing), and pages only.
    pub fn missing_page(&self, away: Away) -> Missing {
        match self.missing(away) {
            Missing::Leaf(_) => Missing::Nothing,
            other => other,
        }
    }

    /// Takes a page that was read, unless things have changed meanwhile. False: there is no room.
    pub fn install_page(&mut self, away: Away, home: Ptr, bytes: &[u8]) -> bool {
        if self.missing(away) != Missing::Page(home) {
            return true;
        }
        if !self.room_for_page() {
            return false;
        }
        let at = self.new_page(away.layer, (away.leaf / LEAF) as u32, home, Ptr::ABSENT);
        decode_into(bytes, &mut self.pages[at as usize].children);
        true
    }

    /// Takes a leaf that was read, unless things have changed meanwhile: with what was changed beside the tree. What it
    /// has had in place of that goes to `old`, if it was not counted yet. False: there is no room.
    pub fn install_leaf(&mut self, away: Away, home: Ptr, bytes: &[u8], mut old: impl FnMut(Ptr)) -> bool {
        if self.missing(away) != Missing::Leaf(home) {
            return true;
        }
        if !self.room_for_leaf() {
            return false;
        }
        let (page, child, _) = split(away.leaf * LEAF);
        let Slot::At(at) = self.layers[&away.layer].pages[page] else { unreachable!("just seen") };
        let leaf = self.free_leaf_place();
        self.leaves[leaf as usize].ptrs.decode(bytes);
        self.attach(leaf, at, child);
        let Map { changes, leaves, resident_changes, .. } = self;
        let (l, mut dead) = (&mut leaves[leaf as usize], 0);
        changes.take((away.layer, away.leaf), |change| {
            if let (false, Lookup::Data(ptr)) = (change.counted, l.ptrs[change.slot as usize].lookup()) {
                dead += 1;
                old(ptr);
            }
            // That it is counted now has to be in the next checkpoint, as the counts are.
            let fresh = change.fresh || !change.counted;
            take_along(l, resident_changes, Change { fresh, ..change });
        });
        self.tally((away.layer, away.leaf), -dead);
        true
    }

    /// The leaf is in memory and is written by the next checkpoint, so that it lies elsewhere. One that has no block yet
    /// is made of its changes.
    pub fn rewrite_leaf(&mut self, away: Away) {
        let Away { layer, leaf } = away;
        if self.changes.has((layer, leaf))
            && self.missing(away) == Missing::Nothing
            && self.layers.get(&layer).is_some_and(|l| leaf / LEAF < l.pages.len() as u64)
        {
            self.leaf_for_change(layer, (leaf / LEAF) as usize, (leaf % LEAF) as usize);
        }
        if let Some(leaf) = self.resident(layer, leaf) {
            self.leaves[leaf as usize].rewrite = true;
        }
    }

    /// The next checkpoint lists all changes, so that what earlier ones have listed can go.
    pub fn list_all(&mut self) {
        self.whole_next = true;
    }

    /// As [`rewrite_leaf`](Self::rewrite_leaf), of a page.
    pub fn rewrite_page(&mut self, Away { layer, leaf }: Away) {
        let page = (leaf / LEAF) as usize;
        if let Some(Slot::At(at)) = self.layers.get(&layer).and_then(|l| l.pages.get(page)) {
            self.pages[*at as usize].dirty = true;
        }
    }

    /// What a block had before its last change does not count as live any more. Else it does until its leaf is brought.
    pub fn is_counted(&self, layer: LayerId, block: u64) -> bool {
        let change = self.changes.find((layer, block / LEAF), (block % LEAF) as u8);
        // Where no block has to be read for it there was nothing before.
        change.is_none_or(|change| change.counted || self.missing(Away::of(layer, block)) == Missing::Nothing)
    }

    /// Leaves that are not in memory and should be written by the next checkpoint, because there are too many changes:
    /// those with most of them.
    pub fn crowd(&self) -> Vec<Away> {
        if 2 * self.changes() <= self.limits.changes {
            return Vec::new();
        }
        let heaviest = self.changes.heaviest(self.limits.captured_max() / 2);
        heaviest.into_iter().map(|(layer, leaf)| Away { layer, leaf }).collect()
    }

    pub(super) fn resident(&self, layer: LayerId, leaf: u64) -> Option<u32> {
        let (page, child, _) = split(leaf * LEAF);
        match self.layers.get(&layer)?.pages.get(page)? {
            Slot::At(at) => Some(self.pages[*at as usize].at[child]).filter(|leaf| *leaf != NONE),
            _ => None,
        }
    }

    /// Where a checkpoint has put a page, and one of its leaves; `None` when the page has to be read to know that.
    pub fn homes(&self, Away { layer, leaf }: Away) -> Option<[Ptr; 2]> {
        let (page, child, _) = split(leaf * LEAF);
        match self.layers.get(&layer).and_then(|l| l.pages.get(page)).copied().unwrap_or_default() {
            Slot::Absent | Slot::Zero => Some([Ptr::ABSENT; 2]),
            Slot::Home(_) => None,
            Slot::At(at) => {
                let page = &self.pages[at as usize];
                Some([page.home, page.children[child]])
            }
        }
    }

    /// There is memory for one more leaf; one that can be read back makes room for it.
    pub(super) fn room_for_leaf(&mut self) -> bool {
        if self.leaves_used() < self.limits.leaves {
            return true;
        }
        // Twice round: the first time those are passed over that were used lately.
        for _ in 0..2 * self.leaves.len() {
            let leaf = self.leaf_hand % self.leaves.len();
            self.leaf_hand = leaf + 1;
            let is_chain = self.chain_can_go(leaf);
            if (is_chain || self.can_go(leaf)) && !self.leaves[leaf].used.replace(false) {
                match is_chain {
                    true => self.drop_chain(leaf as u32),
                    false => self.evict_leaf(leaf as u32),
                }
                return true;
            }
        }
        false
    }

    pub(super) fn can_go(&self, leaf: usize) -> bool {
        let l = &self.leaves[leaf];
        !l.frozen
            && !l.rewrite
            && self.is_in_tree(leaf)
            && !self.pages[l.page as usize].writing.get(l.child as usize)
    }

    /// What it has that its block does not have stays beside the tree.
    pub(super) fn evict_leaf(&mut self, leaf: u32) {
        self.list_before_change(leaf);
        let Map { leaves, pages, changes, .. } = self;
        let Leaf { page, child, changed, fresh, ref ptrs, .. } = leaves[leaf as usize];
        let page = &pages[page as usize];
        let key = (page.layer, page.number as u64 * LEAF + child as u64);
        for slot in changed.iter() {
            let fresh = fresh.get(slot);
            changes.add(key, Change { ptr: ptrs[slot], slot: slot as u8, counted: true, fresh });
        }
        self.detach(leaf);
        self.leaves[leaf as usize].page = NONE;
    }

    /// There is memory for one more page; one that can be read back makes room for it, and its leaves do.
    pub(super) fn room_for_page(&mut self) -> bool {
        if self.pages.len() - self.free_pages.len() < self.limits.pages {
            return true;
        }
        for _ in 0..2 * self.pages.len() {
            let at = self.page_hand % self.pages.len();
            self.page_hand = at + 1;
            if self.page_can_go(at) && !self.pages[at].used.replace(false) {
                for child in 0..FANOUT {
                    let leaf = self.pages[at].at[child];
                    if leaf != NONE {
                        self.evict_leaf(leaf);
                    }
                }
                self.evict_page(at as u32);
                return true;
            }
        }
        false
    }

    /// A page and a leaf can be brought without a checkpoint that writes others first. Whoever is a part of that checkpoint
    /// asks, or it would wait for itself.
    pub fn can_take_more(&self) -> bool {
        let pages = self.pages.len() - self.free_pages.len() < self.limits.pages;
        let leaves = self.leaves_used() < self.limits.leaves;
        (pages || (0..self.pages.len()).any(|at| self.page_can_go(at)))
            && (leaves || (0..self.leaves.len()).any(|leaf| self.can_go(leaf) || self.chain_can_go(leaf)))
    }

    /// So many pages wait for a checkpoint that who can wait for it as well should.
    pub(super) fn is_full_of_pages(&self) -> bool {
        2 * self.pages.iter().filter(|page| page.number != NONE && page.dirty).count() > self.limits.pages
    }

    pub(super) fn page_can_go(&self, at: usize) -> bool {
        let page = &self.pages[at];
        let at_rest = page.number != NONE && !page.dirty && !page.captured;
        let leaves_can_go =
            || page.at.iter().filter(|leaf| **leaf != NONE).all(|leaf| self.can_go(*leaf as usize));
        at_rest && self.open_remains.is_none_or(|(open, _)| open != at as u32) && leaves_can_go()
    }

    pub(super) fn evict_page(&mut self, at: u32) {
        let Page { layer, number, home, .. } = self.pages[at as usize];
        let slot = match home.lookup() {
            Lookup::Data(home) => Slot::Home(home),
            Lookup::Zero => Slot::Zero,
            _ => Slot::Absent,
        };
        self.layers.get_mut(&layer).expect("a page in memory has a layer").pages[number as usize] = slot;
        self.free_page(at);
    }

    pub(super) fn free_page(&mut self, at: u32) {
        let page = &mut self.pages[at as usize];
        assert!(page.resident == 0 && !page.captured, "nobody needs a page that goes");
        page.number = NONE;
        self.free_pages.push(at);
    }
}

const _: () = assert!(LEAF_BYTES as usize > FANOUT * PTR_BYTES);
