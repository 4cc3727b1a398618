//! A layer that nobody names merges into its only child, leaf by leaf, beside the I/O path: what the child does not have it
//! gets, the rest is given up. A step changes nothing that anybody sees, so it is no event of the log. A checkpoint has the
//! state between two steps, and a restart goes on from there. Only when a durable checkpoint has nothing of the layer
//! any more an event takes it out of the table; headers that name it lead to the child from then on.

use super::{Away, FANOUT, LEAF, Lookup, Map, Missing, NONE, PAGE_BLOCKS, Ptr, Slot};
use peristyle_base::LayerId;

/// Leaves that are merged in one step at most.
const STEP_LEAVES: usize = 16;

/// What merging has to do next.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Merge {
    Nothing,
    /// There is more, and nothing to wait for.
    More,
    /// A checkpoint is writing what comes next.
    Busy,
    /// There is no room in memory before a checkpoint has been taken.
    Full,
    /// To be brought.
    Leaf(Away),
    Page(Away),
    /// These hold nothing any more. Once a checkpoint that begins from now on is durable, they may go.
    Bare(Vec<LayerId>),
}

/// A page of a layer, and of its child.
#[derive(Clone, Copy)]
struct Pair {
    from: LayerId,
    into: LayerId,
    page: usize,
}

impl Map {
    pub fn is_merging(&self) -> bool {
        !self.merging.is_empty()
    }

    /// Its parent merges into a layer.
    pub fn is_gaining(&self, layer: LayerId) -> bool {
        self.merging.values().any(|into| *into == layer)
    }

    /// Nothing is in a layer.
    pub(super) fn is_bare(&self, layer: LayerId) -> bool {
        let absent = self.layers.get(&layer).is_none_or(|l| l.pages.iter().all(|slot| *slot == Slot::Absent));
        absent && self.changes.leaves(layer, 0, u64::MAX).is_empty()
    }

    /// Merges a little, and says what is to be done next.
    pub fn merge(&mut self, mut old: impl FnMut(Ptr)) -> Merge {
        if self.merging.is_empty() {
            return Merge::Nothing;
        }
        let merging: Vec<(LayerId, LayerId)> =
            self.merging.iter().map(|(from, into)| (*from, *into)).collect();
        // What comes from above has to be there first.
        let waits = |from| {
            let parent = self.layers[&from].parent;
            parent.is_some_and(|parent| self.merging.contains_key(&parent) && !self.is_bare(parent))
        };
        let next = merging.iter().find(|(from, _)| !waits(*from) && !self.is_bare(*from));
        let Some(&(from, into)) = next else {
            return Merge::Bare(merging.into_iter().map(|(from, _)| from).collect());
        };
        let absent = |slot: &Slot| *slot == Slot::Absent;
        let page = match self.layers[&from].pages.iter().position(|slot| !absent(slot)) {
            Some(page) => page,
            None => (self.changes.leaves(from, 0, u64::MAX)[0] / LEAF) as usize,
        };
        self.merge_page(Pair { from, into, page }, &mut old)
    }

    fn merge_page(&mut self, pair: Pair, old: &mut impl FnMut(Ptr)) -> Merge {
        let Pair { from, into, page } = pair;
        let first = page as u64 * LEAF;
        let child = &self.layers[&into];
        let (child_blocks, child_slot) = (child.blocks, child.pages.get(page).copied());
        let unchanged = self.changes.leaves(into, first, LEAF).is_empty();
        let end = ((page as u64 + 1) * PAGE_BLOCKS).min(self.layers[&from].blocks);
        self.forget_page(page as u64);
        match child_slot {
            None => self.give_up_page(pair, old),
            Some(Slot::Zero) if unchanged => self.give_up_page(pair, old),
            Some(Slot::Absent) if unchanged && child_blocks >= end => self.move_page(pair),
            _ => return self.merge_leaves(pair, old),
        }
        Merge::More
    }

    /// The child has zeros there.
    fn give_up_page(&mut self, Pair { from, page, .. }: Pair, old: &mut impl FnMut(Ptr)) {
        let slot = std::mem::take(self.slot_mut(from, page));
        self.bury_page(from, page as u32, slot, old);
    }

    /// The child has nothing there: it gets the page as it is.
    fn move_page(&mut self, Pair { from, into, page }: Pair) {
        let first = page as u64 * LEAF;
        let slot = std::mem::take(self.slot_mut(from, page));
        *self.slot_mut(into, page) = slot;
        let changed = self.changes.leaves(from, first, LEAF);
        let has_leaves = matches!(slot, Slot::At(at) if self.pages[at as usize].resident > 0);
        if has_leaves || !changed.is_empty() {
            self.voided.push((from, first, FANOUT as u32));
        }
        for leaf in changed {
            self.changes.rename((from, leaf), (into, leaf));
        }
        if let Slot::At(at) = slot {
            self.move_leaves(at, into, page as u32);
        }
    }

    fn merge_leaves(&mut self, pair: Pair, old: &mut impl FnMut(Ptr)) -> Merge {
        let Pair { from, into, page } = pair;
        let first = page as u64 * LEAF;
        if self.is_full_of_pages() {
            return Merge::Full;
        }
        for layer in [from, into] {
            if matches!(self.layers[&layer].pages[page], Slot::Home(_)) {
                return Merge::Page(Away { layer, leaf: first });
            }
        }
        let (a, b) = (self.page_for_change(into, page), self.page_for_change(from, page));
        let (Some(into_at), Some(from_at)) = (a, b) else { return Merge::Full };
        // The second may have taken the place of the first.
        if self.layers[&into].pages[page] != Slot::At(into_at) {
            return Merge::Page(Away { layer: into, leaf: first });
        }
        for at in [from_at, into_at] {
            let page = &self.pages[at as usize];
            page.used.set(true);
            if page.captured {
                return Merge::Busy;
            }
        }
        let mut done = 0;
        for child in 0..FANOUT {
            if self.has_nothing(from_at, child) {
                continue;
            }
            if done == STEP_LEAVES {
                return Merge::More;
            }
            done += 1;
            if let Err(stop) = self.merge_leaf(pair, (from_at, into_at), child, old) {
                return stop;
            }
        }
        self.retire_page(pair, from_at);
        Merge::More
    }

    /// A page's leaf is absent.
    fn has_nothing(&self, at: u32, child: usize) -> bool {
        let page = &self.pages[at as usize];
        let absent = page.at[child] == NONE && page.children[child] == Ptr::ABSENT;
        absent && !self.changes.has(self.key_of(at, child))
    }

    fn merge_leaf(
        &mut self,
        Pair { from, into, page }: Pair,
        (from_at, into_at): (u32, u32),
        child: usize,
        old: &mut impl FnMut(Ptr),
    ) -> Result<(), Merge> {
        let leaf = page as u64 * LEAF + child as u64;
        let child_blocks = self.layers[&into].blocks;
        let end = ((leaf + 1) * LEAF).min(self.layers[&from].blocks);
        let there = &self.pages[into_at as usize];
        let is_zero = there.at[child] == NONE
            && there.children[child] == Ptr::ZERO
            && !self.changes.has(self.key_of(into_at, child));
        if is_zero || leaf * LEAF >= child_blocks {
            self.give_up_leaf(from_at, child, old);
            return Ok(());
        }
        if self.has_nothing(into_at, child) && child_blocks >= end {
            self.move_leaf(from_at, into_at, child);
            return Ok(());
        }
        for layer in [into, from] {
            let away = Away { layer, leaf };
            if self.missing(away) != Missing::Nothing {
                return Err(Merge::Leaf(away));
            }
        }
        if self.is_crowded(FANOUT) {
            return Err(Merge::Full);
        }
        let Some(target) = self.leaf_for_change(into, page, child) else { return Err(Merge::Full) };
        // It may have taken the place of the other.
        let away = Away { layer: from, leaf };
        if self.missing(away) != Missing::Nothing {
            return Err(Merge::Leaf(away));
        }
        let mut ptrs = [Ptr::ABSENT; FANOUT];
        self.each_pointer(away, |slot, ptr| ptrs[slot] = ptr);
        self.take_leaf(from_at, child);
        let mut dead = 0;
        for (slot, ptr) in ptrs.into_iter().enumerate().filter(|(_, ptr)| *ptr != Ptr::ABSENT) {
            let inside = leaf * LEAF + (slot as u64) < child_blocks;
            if inside && self.leaves[target as usize].ptrs[slot] == Ptr::ABSENT {
                self.mark(target, slot);
                self.leaves[target as usize].ptrs.put(slot, ptr);
            } else if let Lookup::Data(ptr) = ptr.lookup() {
                dead += 1;
                old(ptr);
            }
        }
        self.tally((from, leaf), -dead);
        Ok(())
    }

    /// The child has zeros there.
    fn give_up_leaf(&mut self, at: u32, child: usize, old: &mut impl FnMut(Ptr)) {
        let (key, leaf) = (self.key_of(at, child), self.pages[at as usize].at[child]);
        if leaf != NONE {
            self.count_resident(leaf, old);
            self.take_leaf(at, child);
        } else if matches!(self.pages[at as usize].children[child].lookup(), Lookup::Data(_)) {
            self.bury_leaf(at, child);
        } else {
            self.forget_changes(key, old);
        }
        let page = &mut self.pages[at as usize];
        (page.children[child], page.dirty) = (Ptr::ABSENT, true);
    }

    /// The child has nothing there: it gets the leaf as it is.
    fn move_leaf(&mut self, from: u32, into: u32, child: usize) {
        let (from_key, into_key) = (self.key_of(from, child), self.key_of(into, child));
        let leaf = self.pages[from as usize].at[child];
        if leaf != NONE {
            self.list_before_change(leaf);
            self.pages[from as usize].at[child] = NONE;
            self.pages[from as usize].resident -= 1;
            self.pages[into as usize].resident += 1;
            self.pages[into as usize].at[child] = leaf;
            let leaf = &mut self.leaves[leaf as usize];
            // Checkpoints know its changes by another number.
            (leaf.page, leaf.fresh) = (into, leaf.changed);
            if !leaf.changed.is_empty() {
                self.voided.push((from_key.0, from_key.1, 1));
            }
        } else if self.changes.rename(from_key, into_key) {
            self.voided.push((from_key.0, from_key.1, 1));
        }
        let page = &mut self.pages[from as usize];
        let home = std::mem::replace(&mut page.children[child], Ptr::ABSENT);
        page.dirty = true;
        let page = &mut self.pages[into as usize];
        (page.children[child], page.dirty) = (home, true);
    }

    /// Takes a leaf for which nothing has to be read out of its layer; what it points at is somebody else's.
    fn take_leaf(&mut self, at: u32, child: usize) {
        let (key, leaf) = (self.key_of(at, child), self.pages[at as usize].at[child]);
        let changed = match leaf {
            NONE => self.changes.take(key, |_| {}),
            leaf => {
                let changed = !self.leaves[leaf as usize].changed.is_empty();
                self.detach(leaf);
                self.retire_child(at, child);
                changed
            }
        };
        if changed {
            self.voided.push((key.0, key.1, 1));
        }
        let page = &mut self.pages[at as usize];
        (page.children[child], page.dirty) = (Ptr::ABSENT, true);
    }

    /// Nothing is left in a page.
    fn retire_page(&mut self, Pair { from, page, .. }: Pair, at: u32) {
        if let Lookup::Data(home) = self.pages[at as usize].home.lookup() {
            self.retired.push(home);
        }
        self.free_page(at);
        *self.slot_mut(from, page) = Slot::Absent;
    }
}
