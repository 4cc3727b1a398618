//! What layers have lost and is not counted yet: pages and leaves that are moved here as they are, in one step. They
//! are looked through one after the other, beside the I/O path; until then their blocks count as live. A layer without
//! a number of anybody's, so that checkpoints and restarts know them.

use super::ptr::decode_into;
use super::{FANOUT, LEAF, Lookup, Map, NONE, PAGE_BLOCKS, Ptr, REMAINS, Slot};
use crate::map::Away;
use peristyle_base::LayerId;

/// Leaves that are counted in one step at most.
const STEP_LEAVES: usize = 32;

/// What counting the remains has to do next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Left {
    Nothing,
    /// There is more, and nothing to wait for.
    More,
    /// A checkpoint is writing what comes next.
    Busy,
    /// To be read, and given to [`Map::install_page`].
    Page(Away, Ptr),
    /// To be read, and given to [`Map::count_leaf`].
    Leaf(Away, Ptr),
}

impl Map {
    /// Nothing waits to be counted.
    pub fn all_counted(&self) -> bool {
        self.layers[&REMAINS].pages.is_empty()
    }

    /// Takes a page of a layer that no more refers to it. What is known without a look at its leaves goes to `old`.
    pub(super) fn bury_page(&mut self, layer: LayerId, number: u32, slot: Slot, old: &mut impl FnMut(Ptr)) {
        let first = number as u64 * LEAF;
        let changed = self.changes.leaves(layer, first, LEAF);
        let has_leaves = matches!(slot, Slot::At(at) if self.pages[at as usize].resident > 0);
        if layer != REMAINS && (has_leaves || !changed.is_empty()) {
            self.voided.push((layer, first, FANOUT as u32));
        }
        if matches!(slot, Slot::Absent | Slot::Zero) {
            changed.into_iter().for_each(|leaf| self.forget_changes((layer, leaf), old));
            return;
        }
        let place = self.push_remains(slot, layer);
        for leaf in changed {
            self.changes.rename((layer, leaf), (REMAINS, place as u64 * LEAF + leaf % LEAF));
        }
        if let Slot::At(at) = slot {
            self.move_leaves(at, REMAINS, place);
        }
    }

    /// A page becomes one of another layer. Checkpoints know the changes of its leaves by another number.
    pub(super) fn move_leaves(&mut self, at: u32, layer: LayerId, number: u32) {
        for child in 0..FANOUT {
            let leaf = self.pages[at as usize].at[child];
            if leaf != NONE {
                self.list_before_change(leaf);
                let leaf = &mut self.leaves[leaf as usize];
                leaf.fresh = leaf.changed;
            }
        }
        let page = &mut self.pages[at as usize];
        (page.layer, page.number) = (layer, number);
    }

    fn push_remains(&mut self, slot: Slot, of: LayerId) -> u32 {
        self.origins.push(of);
        let remains = self.layers.get_mut(&REMAINS).expect("always there");
        remains.pages.push(slot);
        remains.blocks += PAGE_BLOCKS;
        remains.pages.len() as u32 - 1
    }

    /// Takes a leaf that is not in memory from its page.
    pub(super) fn bury_leaf(&mut self, page: u32, child: usize) {
        let from = self.key_of(page, child);
        let is_of = |open: u32| self.origins[self.pages[open as usize].number as usize] == from.0;
        let (open, place) = match self.open_remains {
            // All leaves of one page were of one layer.
            Some((open, used)) if used < FANOUT && is_of(open) => (open, used),
            _ => {
                let number = self.push_remains(Slot::Absent, from.0);
                (self.new_page(REMAINS, number, Ptr::ABSENT, Ptr::ABSENT), 0)
            }
        };
        self.open_remains = Some((open, place + 1));
        let to = self.key_of(open, place);
        if self.changes.rename(from, to) {
            self.voided.push((from.0, from.1, 1));
        }
        let home = self.pages[page as usize].children[child];
        let open = &mut self.pages[open as usize];
        (open.children[place], open.dirty) = (home, true);
    }

    /// Counts some of the remains, and says what is to be done next.
    pub fn count_remains(&mut self, mut old: impl FnMut(Ptr)) -> Left {
        for _ in 0..STEP_LEAVES {
            let Some((number, slot)) = self.last_remains() else { return Left::Nothing };
            let away = |leaf| Away { layer: REMAINS, leaf };
            let first = number as u64 * LEAF;
            let at = match slot {
                Slot::Absent | Slot::Zero => {
                    self.bury_page(REMAINS, number, slot, &mut old);
                    self.pop_remains();
                    continue;
                }
                Slot::Home(home) => return Left::Page(away(first), home),
                Slot::At(at) => at,
            };
            let page = &self.pages[at as usize];
            let is_data = |ptr: &Ptr| matches!(ptr.lookup(), Lookup::Data(_));
            let holds = |child: &usize| page.at[*child] != NONE || is_data(&page.children[*child]);
            match (0..FANOUT).rev().find(holds) {
                Some(child) if page.at[child] != NONE => {
                    let leaf = page.at[child];
                    self.count_resident(leaf, &mut old);
                    if !self.leaves[leaf as usize].changed.is_empty() {
                        self.voided.push((REMAINS, first + child as u64, 1));
                    }
                    self.detach(leaf);
                    self.leave(at, child);
                }
                Some(child) => return Left::Leaf(away(first + child as u64), page.children[child]),
                None if page.captured => return Left::Busy,
                None => self.end_remains_page(at, number, &mut old),
            }
        }
        Left::More
    }

    /// Counts a leaf of the remains that was read, unless things have changed meanwhile.
    pub fn count_leaf(&mut self, away: Away, home: Ptr, bytes: &[u8], mut old: impl FnMut(Ptr)) {
        if self.missing(away) != crate::map::Missing::Leaf(home) {
            return;
        }
        let (mut block, mut counted) = ([Ptr::ABSENT; FANOUT], [false; FANOUT]);
        decode_into(bytes, &mut block);
        let mut dead = 0;
        let mut died = |ptr: Ptr| {
            if let Lookup::Data(ptr) = ptr.lookup() {
                dead += 1;
                old(ptr);
            }
        };
        let any = self.changes.take((REMAINS, away.leaf), |change| {
            died(change.ptr);
            counted[change.slot as usize] = change.counted;
        });
        block.iter().zip(counted).filter(|(_, counted)| !counted).for_each(|(ptr, _)| died(*ptr));
        self.tally((REMAINS, away.leaf), -dead);
        if any {
            self.voided.push((REMAINS, away.leaf, 1));
        }
        let Slot::At(at) = self.layers[&REMAINS].pages[(away.leaf / LEAF) as usize] else { return };
        self.leave(at, (away.leaf % LEAF) as usize);
    }

    /// A leaf of the remains is counted.
    fn leave(&mut self, page: u32, child: usize) {
        self.retire_child(page, child);
        let page = &mut self.pages[page as usize];
        (page.children[child], page.dirty) = (Ptr::ABSENT, true);
    }

    fn last_remains(&self) -> Option<(u32, Slot)> {
        let pages = &self.layers[&REMAINS].pages;
        pages.last().map(|slot| (pages.len() as u32 - 1, *slot))
    }

    fn pop_remains(&mut self) {
        let remains = self.layers.get_mut(&REMAINS).expect("always there");
        remains.pages.pop();
        remains.blocks -= PAGE_BLOCKS;
        self.origins.pop();
    }

    /// Nothing is left in the tree of the last page.
    fn end_remains_page(&mut self, at: u32, number: u32, old: &mut impl FnMut(Ptr)) {
        for leaf in self.changes.leaves(REMAINS, number as u64 * LEAF, LEAF) {
            self.forget_changes((REMAINS, leaf), old);
        }
        if let Lookup::Data(home) = self.pages[at as usize].home.lookup() {
            self.retired.push(home);
        }
        if self.open_remains.is_some_and(|(open, _)| open == at) {
            self.open_remains = None;
        }
        self.free_page(at);
        self.pop_remains();
    }
}
