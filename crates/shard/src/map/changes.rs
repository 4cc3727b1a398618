//! Pointers of leaves that are not in memory: what was changed since the leaf was written. A commit leaves its pointer
//! here and waits for no read; whoever brings the leaf into memory takes them along.

use super::Ptr;
use peristyle_base::LayerId;
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

const NONE: u32 = u32::MAX;

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

#[derive(Clone, Copy)]
struct Head {
    first: u32,
    count: u16,
}

/// Changes by leaf. Nothing is allocated while there are no more of them than there ever were.
#[derive(Default)]
pub(crate) struct Changes {
    items: Vec<Item>,
    free: Vec<u32>,
    heads: HashMap<LeafKey, Head, BuildHasherDefault<KeyHasher>>,
    len: usize,
}

impl Changes {
    pub fn len(&self) -> usize {
        self.len
    }
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
    pub fn has(&self, key: LeafKey) -> bool {
        !self.heads.is_empty() && self.heads.contains_key(&key)
    }
    pub fn get(&self, key: LeafKey, slot: u8) -> Option<Ptr> {
        self.find(key, slot).map(|change| change.ptr)
    }

    pub fn find(&self, key: LeafKey, slot: u8) -> Option<&Change> {
        let mut at = self.heads.get(&key)?.first;
        while at != NONE {
            let item = &self.items[at as usize];
            if item.change.slot == slot {
                return Some(&item.change);
            }
            at = item.next;
        }
        None
    }

    /// Points a slot somewhere, and returns where it pointed by an earlier change. `counted` holds when there was none.
    pub fn set(&mut self, key: LeafKey, slot: u8, ptr: Ptr, counted: bool) -> Option<Ptr> {
        let mut at = self.heads.get(&key).map_or(NONE, |head| head.first);
        while at != NONE {
            let Item { change, next } = &mut self.items[at as usize];
            if change.slot == slot {
                change.fresh = true;
                return Some(std::mem::replace(&mut change.ptr, ptr));
            }
            at = *next;
        }
        self.add(key, Change { ptr, slot, counted, fresh: true });
        None
    }

    /// Adds a change in place of an earlier one of its slot.
    pub fn replace(&mut self, key: LeafKey, change: Change) {
        let mut at = self.heads.get(&key).map_or(NONE, |head| head.first);
        while at != NONE {
            let item = &mut self.items[at as usize];
            if item.change.slot == change.slot {
                item.change = change;
                return;
            }
            at = item.next;
        }
        self.add(key, change);
    }

    /// Adds a change of a slot that has none.
    pub fn add(&mut self, key: LeafKey, change: Change) {
        let head = self.heads.entry(key).or_insert(Head { first: NONE, count: 0 });
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

    /// Takes the changes of a leaf out. True when there were any.
    pub fn take(&mut self, key: LeafKey, mut each: impl FnMut(Change)) -> bool {
        let Some(head) = self.heads.remove(&key) else { return false };
        let mut at = head.first;
        while at != NONE {
            let item = self.items[at as usize];
            self.free.push(at);
            self.len -= 1;
            each(item.change);
            at = item.next;
        }
        true
    }

    /// The changes belong to another leaf from now on, and no checkpoint knows that. True when there were any.
    pub fn rename(&mut self, from: LeafKey, to: LeafKey) -> bool {
        let Some(head) = self.heads.remove(&from) else { return false };
        let mut at = head.first;
        while at != NONE {
            let item = &mut self.items[at as usize];
            item.change.fresh = true;
            at = item.next;
        }
        let there = self.heads.insert(to, head);
        assert!(there.is_none(), "a leaf moves where none was");
        true
    }

    /// Numbers of a layer's leaves from `first` on that have changes, in order.
    pub fn leaves(&self, layer: LayerId, first: u64, count: u64) -> Vec<u64> {
        let end = first.saturating_add(count);
        if count < self.heads.len() as u64 {
            return (first..end).filter(|&leaf| self.heads.contains_key(&(layer, leaf))).collect();
        }
        let there = |key: &&LeafKey| key.0 == layer && (first..end).contains(&key.1);
        let mut leaves: Vec<u64> = self.heads.keys().filter(there).map(|key| key.1).collect();
        leaves.sort_unstable();
        leaves
    }

    /// The changes of a leaf.
    pub fn of(&self, key: LeafKey, mut each: impl FnMut(Change)) {
        let mut at = self.heads.get(&key).map_or(NONE, |head| head.first);
        while at != NONE {
            let item = &self.items[at as usize];
            each(item.change);
            at = item.next;
        }
    }

    pub fn for_each(&mut self, mut each: impl FnMut(LeafKey, &mut Change)) {
        for (&key, head) in &self.heads {
            let mut at = head.first;
            while at != NONE {
                let item = &mut self.items[at as usize];
                each(key, &mut item.change);
                at = item.next;
            }
        }
    }

    /// The leaves with most changes, those with most first.
    pub fn heaviest(&self, leaves: usize) -> Vec<LeafKey> {
        let mut all: Vec<(u16, LeafKey)> = self.heads.iter().map(|(&key, head)| (head.count, key)).collect();
        all.sort_unstable_by_key(|&(count, key)| (std::cmp::Reverse(count), key));
        all.truncate(leaves);
        all.into_iter().map(|(_, key)| key).collect()
    }
}

/// The same every time: what follows from an order of iteration must follow from the seed in simulation.
#[derive(Default)]
pub(crate) struct KeyHasher(u64);

impl Hasher for KeyHasher {
    fn finish(&self) -> u64 {
        let mixed = (self.0 ^ self.0 >> 32).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        mixed ^ mixed >> 29
    }
    fn write_u32(&mut self, number: u32) {
        self.0 ^= u64::from(number) << 40;
    }
    fn write_u64(&mut self, number: u64) {
        self.0 ^= number;
    }
    fn write(&mut self, _: &[u8]) {
        unreachable!("a key is two numbers")
    }
}
