//! Pointers of leaves that are not in memory: what was changed since the leaf was written. A commit leaves its pointer
//! here and waits for no read; whoever brings the leaf into memory takes them along.

use super::listing::Listing;
use super::{LEAF, Logged, Ptr};
use hashbrown::HashTable;
use peristyle_base::LayerId;

const NONE: u32 = u32::MAX;
/// Changes that there is room for from the beginning: more than `map_cache` has by default.
const ROOM_MAX: usize = 1 << 20;

/// A leaf: its layer, and its number there.
pub(crate) type LeafKey = (LayerId, u64);

/// One pointer that is not the one in its leaf's block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Change {
    pub ptr: Ptr,
    pub slot: u8,
    /// What the leaf's block has there counts as live no more. Else that is still to be found out.
    pub counted: bool,
    /// No checkpoint has it yet.
    pub fresh: bool,
}

#[derive(Clone, Copy)]
struct Item {
    change: Change,
    next: u32,
}

/// A leaf that has changes.
struct Head {
    key: LeafKey,
    first: u32,
    /// None: it is free.
    count: u16,
    /// The last checkpoint that has listed its changes, or need not.
    listed: u32,
}

/// Changes by leaf. Nothing is allocated, and nothing hashed anew, while there are no more of them than was said.
#[derive(Default)]
pub(crate) struct Changes {
    items: Vec<Item>,
    free: Vec<u32>,
    heads: Vec<Head>,
    free_heads: Vec<u32>,
    /// Places of heads, by their keys.
    by_key: HashTable<u32>,
    len: usize,
    /// What a checkpoint lists, of leaves in memory as well.
    pub listing: Listing,
}

/// Memory of a change, the only one of its leaf, with places that are free and a hash table that is half empty.
pub(crate) const BYTES_MAX: u64 = (size_of::<Item>() + size_of::<Head>() + 2 * size_of::<u32>()) as u64
    + (size_of::<u32>() as u64 + 1) * 16 / 7;

impl Changes {
    /// With room for so many, or for a million. Memory that is not used yet is only reserved.
    pub fn with_room(changes: usize) -> Changes {
        let changes = changes.min(ROOM_MAX);
        Changes {
            items: Vec::with_capacity(changes),
            free: Vec::with_capacity(changes),
            heads: Vec::with_capacity(changes),
            free_heads: Vec::with_capacity(changes),
            by_key: HashTable::with_capacity(changes),
            ..Changes::default()
        }
    }
    pub fn len(&self) -> usize {
        self.len
    }
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
    pub fn has(&self, key: LeafKey) -> bool {
        self.head(key).is_some()
    }
    fn head(&self, key: LeafKey) -> Option<u32> {
        self.by_key.find(hash(key), |head| self.heads[*head as usize].key == key).copied()
    }
    fn first(&self, key: LeafKey) -> u32 {
        self.head(key).map_or(NONE, |head| self.heads[head as usize].first)
    }
    pub fn get(&self, key: LeafKey, slot: u8) -> Option<Ptr> {
        self.find(key, slot).map(|change| change.ptr)
    }

    pub fn find(&self, key: LeafKey, slot: u8) -> Option<&Change> {
        let mut at = self.first(key);
        while at != NONE {
            let item = &self.items[at as usize];
            if item.change.slot == slot {
                return Some(&item.change);
            }
            at = item.next;
        }
        None
    }

    fn find_mut(&mut self, key: LeafKey, slot: u8) -> Option<&mut Change> {
        let mut at = self.first_to_change(key);
        while at != NONE && self.items[at as usize].change.slot != slot {
            at = self.items[at as usize].next;
        }
        self.items.get_mut(at as usize).map(|item| &mut item.change)
    }

    /// Points a slot somewhere, and returns where it pointed by an earlier change. `counted` holds when there was none.
    pub fn set(&mut self, key: LeafKey, slot: u8, ptr: Ptr, counted: bool) -> Option<Ptr> {
        if let Some(change) = self.find_mut(key, slot) {
            change.fresh = true;
            return Some(std::mem::replace(&mut change.ptr, ptr));
        }
        self.add(key, Change { ptr, slot, counted, fresh: true });
        None
    }

    /// Adds a change in place of an earlier one of its slot.
    pub fn replace(&mut self, key: LeafKey, change: Change) {
        match self.find_mut(key, change.slot) {
            Some(there) => *there = change,
            None => self.add(key, change),
        }
    }

    /// Adds a change of a slot that has none.
    pub fn add(&mut self, key: LeafKey, change: Change) {
        let head = match self.head(key) {
            Some(head) => head,
            None => self.new_head(key),
        };
        self.list_before_change(head);
        let head = &mut self.heads[head as usize];
        let item = Item { change, next: head.first };
        let at = match self.free.pop() {
            Some(at) => {
                self.items[at as usize] = item;
                at
            }
            None => {
                self.items.push(item);
                self.items.len() as u32 - 1
            }
        };
        (head.first, head.count) = (at, head.count + 1);
        self.len += 1;
    }

    fn new_head(&mut self, key: LeafKey) -> u32 {
        let head = Head { key, first: NONE, count: 0, listed: self.listing.number() };
        let at = match self.free_heads.pop() {
            Some(at) => {
                self.heads[at as usize] = head;
                at
            }
            None => {
                self.heads.push(head);
                self.heads.len() as u32 - 1
            }
        };
        let Changes { heads, by_key, .. } = self;
        by_key.insert_unique(hash(key), at, |head| hash(heads[*head as usize].key));
        at
    }

    /// The key names no head any more.
    fn unname(&mut self, key: LeafKey) -> Option<u32> {
        let Changes { heads, by_key, .. } = self;
        let entry = by_key.find_entry(hash(key), |head| heads[*head as usize].key == key).ok()?;
        Some(entry.remove().0)
    }

    /// Takes the changes of a leaf out. True when there were any.
    pub fn take(&mut self, key: LeafKey, mut each: impl FnMut(Change)) -> bool {
        let Some(head) = self.unname(key) else { return false };
        self.list_before_change(head);
        let mut at = self.heads[head as usize].first;
        while at != NONE {
            let item = self.items[at as usize];
            self.free.push(at);
            self.len -= 1;
            each(item.change);
            at = item.next;
        }
        self.heads[head as usize].count = 0;
        self.free_heads.push(head);
        true
    }

    /// The changes belong to another leaf from now on, and no checkpoint knows that. True when there were any.
    pub fn rename(&mut self, from: LeafKey, to: LeafKey) -> bool {
        let Some(head) = self.unname(from) else { return false };
        assert!(!self.has(to), "a leaf moves where none was");
        self.list_before_change(head);
        let mut at = self.heads[head as usize].first;
        while at != NONE {
            let item = &mut self.items[at as usize];
            item.change.fresh = true;
            at = item.next;
        }
        self.heads[head as usize].key = to;
        let Changes { heads, by_key, .. } = self;
        by_key.insert_unique(hash(to), head, |head| hash(heads[*head as usize].key));
        true
    }

    /// Numbers of a layer's leaves from `first` on that have changes, in order.
    pub fn leaves(&self, layer: LayerId, first: u64, count: u64) -> Vec<u64> {
        let end = first.saturating_add(count);
        if count < self.by_key.len() as u64 {
            return (first..end).filter(|&leaf| self.has((layer, leaf))).collect();
        }
        let there =
            |head: &&Head| head.count > 0 && head.key.0 == layer && (first..end).contains(&head.key.1);
        let mut leaves: Vec<u64> = self.heads.iter().filter(there).map(|head| head.key.1).collect();
        leaves.sort_unstable();
        leaves
    }

    /// The changes of a leaf.
    pub fn of(&self, key: LeafKey, mut each: impl FnMut(Change)) {
        let mut at = self.first(key);
        while at != NONE {
            let item = &self.items[at as usize];
            each(item.change);
            at = item.next;
        }
    }

    /// As [`first`](Self::first), by somebody who changes what is there.
    fn first_to_change(&mut self, key: LeafKey) -> u32 {
        let Some(head) = self.head(key) else { return NONE };
        self.list_before_change(head);
        self.heads[head as usize].first
    }

    fn list_before_change(&mut self, head: u32) {
        if self.listing.is_due(self.heads[head as usize].listed) {
            self.list(head);
        }
    }

    fn list(&mut self, head: u32) {
        let Changes { heads, items, listing, .. } = self;
        let Head { key: (layer, leaf), first, listed, .. } = &mut heads[head as usize];
        *listed = listing.number();
        let mut at = *first;
        while at != NONE {
            let Item { change, next } = &mut items[at as usize];
            if std::mem::take(&mut change.fresh) || listing.is_whole() {
                let block = *leaf * LEAF + change.slot as u64;
                let (ptr, counted) = (change.ptr, change.counted);
                listing.push(Logged::Set { layer: *layer, block, ptr, counted });
            }
            at = *next;
        }
    }

    /// Lists what is due at a place of a head, if there is one. False: there are no places from here on.
    pub fn list_at(&mut self, place: usize) -> bool {
        if self.heads.get(place).is_some_and(|head| head.count > 0) {
            self.list_before_change(place as u32);
        }
        place < self.heads.len()
    }

    /// The leaves with most changes, those with most first.
    pub fn heaviest(&self, leaves: usize) -> Vec<LeafKey> {
        let there = self.heads.iter().filter(|head| head.count > 0);
        let mut all: Vec<(u16, LeafKey)> = there.map(|head| (head.count, head.key)).collect();
        all.sort_unstable_by_key(|&(count, key)| (std::cmp::Reverse(count), key));
        all.truncate(leaves);
        all.into_iter().map(|(_, key)| key).collect()
    }
}

/// The same every time: what follows from an order of iteration must follow from the seed in simulation.
fn hash((layer, leaf): LeafKey) -> u64 {
    let key = leaf ^ u64::from(layer.0) << 40;
    let mixed = (key ^ key >> 32).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    mixed ^ mixed >> 29
}
