//! Changed pointers, listed for a checkpoint some at a time while commits go on: each leaf's as they were at the
//! checkpoint's number, because whoever changes a leaf, or moves what belongs to it elsewhere, lists it before.

use super::{LEAF, Logged, Map};

/// A step of listing looks at so many leaves, and lists so many pointers or a leaf's more.
const STEP_LEAVES: usize = 512;
const STEP_POINTERS: usize = 256;

/// What one checkpoint lists.
#[derive(Default)]
pub(super) struct Listing {
    /// Of the checkpoint. A leaf that is made meanwhile has it: nothing of it has to be listed.
    number: u32,
    under_way: bool,
    /// All changed pointers are listed, and not only those that no checkpoint has.
    whole: bool,
    /// The next place to look at: of leaves in memory, and of others.
    leaf_at: usize,
    head_at: usize,
    out: Vec<Logged>,
}

impl Listing {
    pub fn begin(&mut self, whole: bool) {
        assert!(!self.under_way && self.out.is_empty(), "one checkpoint at a time");
        self.number = self.number.wrapping_add(1);
        (self.under_way, self.whole, self.leaf_at, self.head_at) = (true, whole, 0, 0);
    }
    pub fn give_up(&mut self) {
        (self.under_way, self.out) = (false, Vec::new());
    }
    pub fn number(&self) -> u32 {
        self.number
    }
    pub fn is_whole(&self) -> bool {
        self.whole
    }
    /// A leaf that was listed last by that checkpoint has to be listed before it changes.
    pub fn is_due(&self, listed: u32) -> bool {
        self.under_way && listed != self.number
    }
    pub fn push(&mut self, logged: Logged) {
        self.out.push(logged);
    }
}

impl Map {
    /// Lists some more. False: so many are listed, or all.
    pub fn list_some(&mut self, wanted: usize) -> bool {
        let before = self.changes.listing.out.len();
        for _ in 0..STEP_LEAVES {
            let listing = &mut self.changes.listing;
            let listed = listing.out.len();
            if !listing.under_way || listed >= wanted {
                return false;
            }
            if listed >= before + STEP_POINTERS {
                break;
            }
            if listing.leaf_at < self.leaves.len() {
                listing.leaf_at += 1;
                let leaf = listing.leaf_at - 1;
                if self.is_in_tree(leaf) {
                    self.list_before_change(leaf as u32);
                }
            } else {
                let place = listing.head_at;
                listing.head_at += 1;
                let there = self.changes.list_at(place);
                self.changes.listing.under_way = there;
            }
        }
        true
    }

    /// Takes what is listed, the oldest first: so many at most.
    pub fn take_listed(&mut self, most: usize) -> Vec<Logged> {
        let out = &mut self.changes.listing.out;
        out.drain(..out.len().min(most)).collect()
    }

    /// A leaf in memory is about to change, to belong to another one, or to go.
    pub(super) fn list_before_change(&mut self, leaf: u32) {
        let l = &self.leaves[leaf as usize];
        if !self.changes.listing.is_due(l.listed) {
            return;
        }
        let (layer, number) = self.key_of(l.page, l.child as usize);
        let (l, listing) = (&mut self.leaves[leaf as usize], &mut self.changes.listing);
        l.listed = listing.number;
        let fresh = std::mem::take(&mut l.fresh);
        for slot in if listing.whole { l.changed } else { fresh }.iter() {
            let block = number * LEAF + slot as u64;
            listing.push(Logged::Set { layer, block, ptr: l.ptrs[slot], counted: true });
        }
    }
}
