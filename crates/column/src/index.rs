//! From a column's name to its slot: a hash table of fixed size, so that nothing is allocated when columns come and
//! go. Holds slot numbers only; the names are in the slot table.

use peristyle_base::{ColumnName, SlotIndex};

const EMPTY: u32 = u32::MAX;

/// The part of a name by which a slot is found (the nonce is compared, not looked up). Two slots of a device have the
/// same one only while a column is being filled anew beside its old self.
pub type Key = (u32, u64, u8);

pub fn key(name: &ColumnName) -> Key {
    (name.shard.0, name.extent.0, name.column.0)
}

pub struct NameIndex {
    cells: Box<[u32]>,
    mask: usize,
}

impl NameIndex {
    /// For at most `slots` names.
    pub fn new(slots: u32) -> NameIndex {
        let cells = (slots as usize * 2).next_power_of_two().max(2);
        NameIndex { cells: vec![EMPTY; cells].into_boxed_slice(), mask: cells - 1 }
    }

    fn home(&self, key: Key) -> usize {
        // Multiply and fold: neighbouring extents and columns land far apart.
        let mut x = key.1 ^ (key.0 as u64) << 40 ^ (key.2 as u64) << 56;
        x = (x ^ x >> 32).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (x ^ x >> 29) as usize & self.mask
    }

    /// The first slot under a key for which `is` says so: it compares the name, and what else the caller wants of it.
    pub fn find(&self, key: Key, is: impl Fn(u32) -> bool) -> Option<SlotIndex> {
        let mut at = self.home(key);
        while self.cells[at] != EMPTY {
            if is(self.cells[at]) {
                return Some(SlotIndex(self.cells[at]));
            }
            at = (at + 1) & self.mask;
        }
        None
    }

    pub fn insert(&mut self, key: Key, slot: SlotIndex) {
        let mut at = self.home(key);
        while self.cells[at] != EMPTY {
            at = (at + 1) & self.mask;
        }
        self.cells[at] = slot.0;
    }

    /// Takes `slot` out, whose name is `key`, and closes the gap (no tombstones, so it never fills up).
    pub fn remove(&mut self, key: Key, slot: SlotIndex, name_of: impl Fn(u32) -> Key) {
        let mut at = self.home(key);
        while self.cells[at] != slot.0 {
            if self.cells[at] == EMPTY {
                return;
            }
            at = (at + 1) & self.mask;
        }
        let mut next = (at + 1) & self.mask;
        while self.cells[next] != EMPTY {
            let home = self.home(name_of(self.cells[next]));
            // The one at `next` may move back to `at` only if its home does not lie behind `at`.
            if (next.wrapping_sub(home) & self.mask) >= (next.wrapping_sub(at) & self.mask) {
                self.cells[at] = self.cells[next];
                at = next;
            }
            next = (next + 1) & self.mask;
        }
        self.cells[at] = EMPTY;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    proptest! {
        #[test]
        fn the_index_agrees_with_an_ordered_map(
            steps in prop::collection::vec((any::<bool>(), 0u32..3, 0u64..12, 0u8..2), 1..300),
        ) {
            let mut index = NameIndex::new(64);
            let mut names: Vec<Key> = Vec::new();
            let mut model = BTreeMap::new();
            for (add, shard, extent, column) in steps {
                let key = (shard, extent, column);
                match (add, model.get(&key).copied()) {
                    (true, None) => {
                        let slot = names.len() as u32;
                        names.push(key);
                        index.insert(key, SlotIndex(slot));
                        model.insert(key, slot);
                        if model.len() > 60 { break; }
                    }
                    (false, Some(slot)) => {
                        index.remove(key, SlotIndex(slot), |s| names[s as usize]);
                        model.remove(&key);
                    }
                    _ => {}
                }
                for s in 0..3 { for e in 0..12 { for c in 0..2 {
                    let found = index.find((s, e, c), |slot| names[slot as usize] == (s, e, c)).map(|s| s.0);
                    prop_assert_eq!(found, model.get(&(s, e, c)).copied());
                }}}
            }
        }
    }
}
