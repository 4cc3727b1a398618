//! The map: which block of which layer lies where. Pure.
//!
//! A radix tree of fixed height: a leaf is one block of 256 pointers (1 MiB of the volume), a page is one block of 256
//! leaf pointers (256 MiB), a layer is the list of its pages. Leaves and pages that checkpoints have written may be
//! dropped from memory and read back (`cache.rs`); what changes in a leaf that is not in memory is kept beside the tree
//! (`changes.rs`), so that a commit never waits for a read. A checkpoint takes the map as it is at one sequence number
//! and copies what is changed, or leaves as they are (`capture.rs`). What is given up by whole pages is counted later
//! (`remains.rs`).

mod bits;
mod cache;
mod capture;
mod changes;
mod layers;
mod listing;
mod merge;
mod pointers;
mod ptr;
mod remains;
mod resize;
mod resolved;
mod restore;
mod runs;
mod walk;
mod zero;

pub use bits::Bits;
pub use cache::{Away, Limits, Missing};
pub use capture::{Candidates, Capture, CapturedLeaf, CapturedPage, LayerPages, Logged, PageAt};
use changes::{Changes, LeafKey};
pub use layers::{CHAIN_MAX, LayerTable, NOBODY, Usage, View};
pub use merge::Merge;
use peristyle_base::{BLOCK_BYTES, ExtentId, LayerId};
use pointers::Pointers;
pub use ptr::{Block256, Lookup, Ptr, decode_block, encode_block};
pub use remains::Left;
use resolved::Resolved;
pub use runs::Run;
use std::cell::Cell;
use std::collections::BTreeMap;
pub use walk::Walk;

/// Pointers of a leaf, and leaves of a page.
pub const FANOUT: usize = 256;
/// Bytes of a pointer in a map block.
pub const PTR_BYTES: usize = 16;
/// Blocks of a volume that one page covers.
pub const PAGE_BLOCKS: u64 = (FANOUT * FANOUT) as u64;
/// Not a layer of anybody: what layers have lost and is not counted yet.
pub(crate) const REMAINS: LayerId = LayerId(u32::MAX);

const NONE: u32 = u32::MAX;
const LEAF: u64 = FANOUT as u64;

const _: () = assert!(FANOUT * PTR_BYTES == BLOCK_BYTES);

/// One page's place in its layer.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
enum Slot {
    #[default]
    Absent,
    Zero,
    /// Where a checkpoint has written it; it is not in memory.
    Home(Ptr),
    At(u32),
}

struct Layer {
    blocks: u64,
    pages: Vec<Slot>,
    /// The layer that is asked where this one is absent.
    parent: Option<LayerId>,
    children: u32,
    /// A volume or a snapshot is this layer.
    named: bool,
    /// Pointers to data that count as live, those of it included that wait among the remains. Below zero for a while
    /// when its parent merges into it: the sum of both is what counts.
    live: i64,
}

impl Layer {
    fn new(blocks: u64, parent: Option<LayerId>) -> Layer {
        let pages = vec![Slot::Absent; pages_of(blocks)];
        Layer { blocks, pages, parent, children: 0, named: false, live: 0 }
    }
}

/// A page in memory.
struct Page {
    layer: LayerId,
    number: u32,
    /// Where it was written last; absent when it was not, and zero when all of it was zero before.
    home: Ptr,
    /// Where its leaves were written last: absent, zero, or a place.
    children: Box<Block256>,
    /// Its leaves that are in memory.
    at: Box<[u32; FANOUT]>,
    resident: u16,
    /// `children` are not those of the block at `home`.
    dirty: bool,
    /// A checkpoint is writing it, and the leaves whose bits are set.
    captured: bool,
    writing: Bits,
    used: Cell<bool>,
}

/// A leaf in memory, as commits have left it.
struct Leaf {
    ptrs: Pointers,
    page: u32,
    child: u8,
    /// Pointers that are not those of the block at its home. What that has in their place is not live any more.
    changed: Bits,
    /// Those of them that no checkpoint has yet.
    fresh: Bits,
    /// The last checkpoint that has listed its changes, or need not.
    listed: u32,
    /// A checkpoint reads it: copy before changing.
    frozen: bool,
    /// No longer in the tree; free when the checkpoint lets go of it.
    orphan: bool,
    /// The next checkpoint writes it, however little has changed.
    rewrite: bool,
    /// It is not of the tree, but what this chain says.
    chain: u32,
    used: Cell<bool>,
}

/// Something of the map does not fit the memory that it may use.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MapFull;

/// All layers of one shard.
pub struct Map {
    layers: BTreeMap<LayerId, Layer>,
    /// Volumes and snapshots, by the numbers that their owners know them by.
    views: BTreeMap<LayerId, View>,
    /// Layers that merge into their only child.
    merging: BTreeMap<LayerId, LayerId>,
    /// Where the blocks of layers went that have merged: headers still name those. With the first extent that none of
    /// its headers names the layer any more from, once that is known.
    aliases: BTreeMap<LayerId, (LayerId, Option<ExtentId>)>,
    /// Number of the next layer that is made by a snapshot, a clone, or a roll back.
    next_layer: u32,
    /// What chains of layers say.
    resolved: Resolved,
    limits: Limits,
    leaves: Vec<Leaf>,
    free_leaves: Vec<u32>,
    pages: Vec<Page>,
    free_pages: Vec<u32>,
    /// Of leaves that are not in memory.
    changes: Changes,
    /// Changed pointers of leaves that are.
    resident_changes: usize,
    /// Leaves whose earlier changes, which checkpoints have, mean nothing any more.
    voided: Vec<(LayerId, u64, u32)>,
    /// Map blocks that the tree refers to no more, and the durable checkpoint may.
    retired: Vec<Ptr>,
    /// The page of remains that takes single leaves, and how many it has.
    open_remains: Option<(u32, usize)>,
    /// Which layer each page of the remains was of.
    origins: Vec<LayerId>,
    /// Live pointers of layers that are gone.
    freeing: i64,
    /// The next checkpoint lists all changes: what earlier ones listed is not relied on.
    whole_next: bool,
    leaf_hand: usize,
    page_hand: usize,
    /// Pointers to data that count as live.
    mapped: u64,
}

impl Map {
    pub fn new(limits: Limits) -> Map {
        Map {
            layers: BTreeMap::from([(REMAINS, Layer::new(0, None))]),
            views: BTreeMap::new(),
            merging: BTreeMap::new(),
            aliases: BTreeMap::new(),
            next_layer: layers::OWN_LAYERS,
            resolved: Resolved::new(limits.resolved + limits.leaves),
            leaves: Vec::with_capacity(limits.leaves.min(4096)),
            free_leaves: Vec::with_capacity(limits.leaves.min(4096)),
            pages: Vec::new(),
            free_pages: Vec::new(),
            changes: Changes::with_room(limits.changes),
            resident_changes: 0,
            voided: Vec::new(),
            retired: Vec::new(),
            open_remains: None,
            origins: Vec::new(),
            freeing: 0,
            whole_next: false,
            leaf_hand: 0,
            page_hand: 0,
            mapped: 0,
            limits,
        }
    }

    /// Whether the memory covers this layer with so many blocks beside the others.
    pub fn fits(&self, id: LayerId, blocks: u64) -> Result<(), MapFull> {
        let pages = |blocks: u64| blocks.div_ceil(PAGE_BLOCKS);
        let others = self.layers.iter().filter(|(other, _)| **other != id && **other != REMAINS);
        let planned = others.fold(pages(blocks), |sum, (_, l)| sum.saturating_add(pages(l.blocks)));
        if planned > self.limits.layer_pages as u64 || id == REMAINS { Err(MapFull) } else { Ok(()) }
    }

    /// Layers and their sizes in blocks.
    pub fn layers(&self) -> impl Iterator<Item = (LayerId, u64)> + '_ {
        self.layers.iter().filter(|(id, _)| **id != REMAINS).map(|(&id, layer)| (id, layer.blocks))
    }
    pub fn layer_blocks(&self, id: LayerId) -> Option<u64> {
        self.layers.get(&id).map(|l| l.blocks).filter(|_| id != REMAINS)
    }
    /// Pointers to data over all layers: those included that were replaced, or given up, and are not counted yet.
    pub fn mapped_blocks(&self) -> u64 {
        self.mapped
    }
    /// Leaves in memory, copies of a checkpoint included, and of chains those that have no memory of their own.
    pub fn leaves_used(&self) -> usize {
        self.leaves.len() - self.free_leaves.len() - self.resolved.count().min(self.limits.resolved)
    }
    /// Changed pointers that the next checkpoint, or one before it, lists one by one.
    pub fn changes(&self) -> usize {
        self.changes.len() + self.resident_changes
    }
    /// There is no room for so many more changes: a checkpoint has to write leaves.
    pub fn is_crowded(&self, more: usize) -> bool {
        self.changes() + more > self.limits.changes
    }

    pub fn lookup(&self, layer: LayerId, block: u64) -> Lookup {
        self.layers.get(&layer).map_or(Lookup::Absent, |l| self.lookup_in(l, layer, block))
    }

    /// Where a block of this volume or snapshot lies, if its own layer has it in memory. Says nothing to the cache.
    pub fn peek(&self, view: LayerId, block: u64) -> Option<Ptr> {
        let layer = self.layers.get(&self.views.get(&view)?.layer).filter(|layer| block < layer.blocks)?;
        let (page, child, slot) = split(block);
        let Slot::At(at) = layer.pages[page] else { return None };
        match self.leaves.get(self.pages[at as usize].at[child] as usize)?.ptrs.lookup(slot) {
            Lookup::Data(ptr) => Some(ptr),
            _ => None,
        }
    }

    fn lookup_in(&self, l: &Layer, layer: LayerId, block: u64) -> Lookup {
        if block >= l.blocks {
            return Lookup::Absent;
        }
        let (page, child, slot) = split(block);
        let there = l.pages[page];
        if let Slot::At(at) = there {
            let page = &self.pages[at as usize];
            let leaf = page.at[child];
            if leaf != NONE {
                let leaf = &self.leaves[leaf as usize];
                leaf.used.set(true);
                return leaf.ptrs.lookup(slot);
            }
            page.used.set(true);
        }
        if !self.changes.is_empty()
            && let Some(ptr) = self.changes.get((layer, block / LEAF), slot as u8)
        {
            return ptr.lookup();
        }
        self.base(there, child)
    }

    /// Points a block somewhere and returns what was there, as far as that is known: what a leaf that is not in memory
    /// has counts as live until the leaf is read. Blocks outside of their layer are ignored (the layer was dropped or
    /// shrunk after the frame was built): `None`.
    pub fn set(&mut self, layer: LayerId, block: u64, ptr: Ptr) -> Option<Lookup> {
        if self.layer_blocks(layer).is_none_or(|blocks| block >= blocks) {
            return None;
        }
        let (page, child, slot) = split(block);
        let old = match self.leaf_for_change(layer, page, child) {
            Some(leaf) => {
                self.mark(leaf, slot);
                self.leaves[leaf as usize].ptrs.put(slot, ptr).lookup()
            }
            None => {
                let base = self.base(self.layers[&layer].pages[page], child);
                let key = (layer, block / LEAF);
                match self.changes.set(key, slot as u8, ptr, base != Lookup::Away) {
                    Some(old) => old.lookup(),
                    None => base,
                }
            }
        };
        let is_data = |lookup| i64::from(matches!(lookup, Lookup::Data(_)));
        self.tally((layer, block / LEAF), is_data(ptr.lookup()) - is_data(old));
        Some(old)
    }

    /// Points a block somewhere else if it is known to be where it was, in its layer or in the one that this has merged
    /// into.
    pub fn repoint(&mut self, layer: LayerId, block: u64, from: Ptr, to: Ptr) -> bool {
        let Some(layer) = self.holder(layer, block, from) else { return false };
        self.set(layer, block, to);
        self.repoint_chains(block, from, to);
        true
    }

    /// So many more pointers of a leaf count as live.
    fn tally(&mut self, (layer, leaf): LeafKey, by: i64) {
        if by == 0 {
            return;
        }
        self.mapped = self.mapped.checked_add_signed(by).expect("what dies was live");
        let of = if layer == REMAINS { self.origins[(leaf / LEAF) as usize] } else { layer };
        match self.layers.get_mut(&of).filter(|_| of != REMAINS) {
            Some(layer) => layer.live += by,
            None => self.freeing += by,
        }
    }

    /// What the tree, without changes beside it, says of a leaf that is not in memory.
    fn base(&self, page: Slot, child: usize) -> Lookup {
        match page {
            Slot::Absent => Lookup::Absent,
            Slot::Zero => Lookup::Zero,
            Slot::Home(_) => Lookup::Away,
            Slot::At(at) => match self.pages[at as usize].children[child].lookup() {
                Lookup::Data(_) => Lookup::Away,
                other => other,
            },
        }
    }

    /// A pointer of a leaf in memory changes.
    fn mark(&mut self, leaf: u32, slot: usize) {
        self.list_before_change(leaf);
        let leaf = &mut self.leaves[leaf as usize];
        self.resident_changes += leaf.changed.set(slot) as usize;
        leaf.fresh.set(slot);
        leaf.used.set(true);
    }

    /// The leaf, to be changed: it is in memory, or what it is based on is known and there is room for it.
    fn leaf_for_change(&mut self, layer: LayerId, page: usize, child: usize) -> Option<u32> {
        let at = self.page_for_change(layer, page)?;
        let there = self.pages[at as usize].at[child];
        if there != NONE {
            if !self.leaves[there as usize].frozen {
                return Some(there);
            }
            return Some(self.copy_frozen(there));
        }
        let fill = self.pages[at as usize].children[child];
        if matches!(fill.lookup(), Lookup::Data(_)) || !self.room_for_leaf() {
            return None;
        }
        Some(self.new_leaf(at, child, fill))
    }

    /// The page, if it is in memory, or nothing has to be read to have it there and there is room for it.
    fn page_for_change(&mut self, layer: LayerId, page: usize) -> Option<u32> {
        let home = match self.layers[&layer].pages[page] {
            Slot::At(at) => return Some(at),
            Slot::Home(_) => return None,
            Slot::Absent => Ptr::ABSENT,
            Slot::Zero => Ptr::ZERO,
        };
        self.room_for_page().then(|| self.new_page(layer, page as u32, home, home))
    }

    /// A checkpoint reads this one: it keeps the old, the tree gets a copy.
    fn copy_frozen(&mut self, old: u32) -> u32 {
        let (page, child) = (self.leaves[old as usize].page, self.leaves[old as usize].child);
        let new = self.free_leaf_place();
        let (from, to) = two(&mut self.leaves, old as usize, new as usize);
        to.ptrs.copy_from(&from.ptrs);
        (to.page, to.child, to.changed, to.fresh) = (page, child, from.changed, from.fresh);
        from.orphan = true;
        self.pages[page as usize].at[child as usize] = new;
        new
    }

    /// A leaf of whose block all pointers are `fill`, with what was changed beside the tree.
    fn new_leaf(&mut self, page: u32, child: usize, fill: Ptr) -> u32 {
        let leaf = self.free_leaf_place();
        self.leaves[leaf as usize].ptrs.fill(fill);
        self.attach(leaf, page, child);
        let key = self.key_of(page, child);
        let Map { changes, leaves, resident_changes, .. } = self;
        let l = &mut leaves[leaf as usize];
        changes.take(key, |change| take_along(l, resident_changes, change));
        leaf
    }

    fn attach(&mut self, leaf: u32, page: u32, child: usize) {
        let l = &mut self.leaves[leaf as usize];
        (l.page, l.child) = (page, child as u8);
        let page = &mut self.pages[page as usize];
        assert_eq!(std::mem::replace(&mut page.at[child], leaf), NONE, "a leaf is in memory once");
        page.resident += 1;
    }

    fn key_of(&self, page: u32, child: usize) -> LeafKey {
        let page = &self.pages[page as usize];
        (page.layer, page.number as u64 * LEAF + child as u64)
    }

    /// A leaf that is of no chain, and not the one of before that a checkpoint still reads.
    fn is_in_tree(&self, leaf: usize) -> bool {
        let l = &self.leaves[leaf];
        l.page != NONE && self.pages[l.page as usize].at[l.child as usize] == leaf as u32
    }

    /// Memory for a leaf that is nowhere in the tree yet.
    fn free_leaf_place(&mut self) -> u32 {
        let leaf = match self.free_leaves.pop() {
            Some(leaf) => {
                self.leaves[leaf as usize].reset();
                leaf
            }
            None => {
                self.leaves.push(Leaf::empty());
                self.leaves.len() as u32 - 1
            }
        };
        self.leaves[leaf as usize].listed = self.changes.listing.number();
        leaf
    }

    /// Makes so many leaves ready to be used, as far as the map may grow.
    pub fn make_room(&mut self, leaves: usize) {
        while self.free_leaves.len() < leaves && self.leaves.len() < self.limits.leaves {
            self.leaves.push(Leaf::empty());
            self.free_leaves.push(self.leaves.len() as u32 - 1);
        }
    }

    /// A page whose children all are `fill`.
    fn new_page(&mut self, layer: LayerId, number: u32, home: Ptr, fill: Ptr) -> u32 {
        let at = self.free_pages.pop().unwrap_or_else(|| {
            self.pages.push(Page {
                layer,
                number,
                home,
                children: Box::new([fill; FANOUT]),
                at: Box::new([NONE; FANOUT]),
                resident: 0,
                dirty: false,
                captured: false,
                writing: Bits::default(),
                used: Cell::new(true),
            });
            self.pages.len() as u32 - 1
        });
        let page = &mut self.pages[at as usize];
        (page.layer, page.number, page.home, page.dirty) = (layer, number, home, false);
        page.children.fill(fill);
        page.used.set(true);
        self.layers.get_mut(&layer).expect("the caller looked").pages[number as usize] = Slot::At(at);
        at
    }

    /// Takes a leaf out of the tree: nothing of it counts any more. Its memory is free once no checkpoint reads it.
    fn detach(&mut self, leaf: u32) {
        self.list_before_change(leaf);
        let l = &mut self.leaves[leaf as usize];
        self.resident_changes -= l.changed.count();
        let page = &mut self.pages[l.page as usize];
        page.at[l.child as usize] = NONE;
        page.resident -= 1;
        match l.frozen {
            true => l.orphan = true,
            false => self.free_leaves.push(leaf),
        }
    }
}

impl Leaf {
    /// As new, with the memory that it has.
    fn reset(&mut self) {
        (self.page, self.child, self.chain) = (NONE, 0, NONE);
        (self.changed, self.fresh) = (Bits::default(), Bits::default());
        (self.frozen, self.orphan, self.rewrite) = (false, false, false);
        self.used.set(true);
    }

    fn empty() -> Leaf {
        Leaf {
            ptrs: Pointers::absent(),
            page: NONE,
            child: 0,
            changed: Bits::default(),
            fresh: Bits::default(),
            listed: 0,
            frozen: false,
            orphan: false,
            rewrite: false,
            chain: NONE,
            used: Cell::new(true),
        }
    }
}

/// A change beside the tree becomes one of a leaf in memory.
fn take_along(leaf: &mut Leaf, resident_changes: &mut usize, change: changes::Change) {
    let slot = change.slot as usize;
    leaf.ptrs.put(slot, change.ptr);
    *resident_changes += leaf.changed.set(slot) as usize;
    if change.fresh {
        leaf.fresh.set(slot);
    }
}

/// Pages of a layer of so many blocks.
pub(crate) fn pages_of(blocks: u64) -> usize {
    blocks.div_ceil(PAGE_BLOCKS) as usize
}

fn split(block: u64) -> (usize, usize, usize) {
    let leaf = block / LEAF;
    ((leaf / LEAF) as usize, (leaf % LEAF) as usize, (block % LEAF) as usize)
}

fn two<T>(items: &mut [T], a: usize, b: usize) -> (&mut T, &mut T) {
    let [a, b] = items.get_disjoint_mut([a, b]).expect("two different items");
    (a, b)
}

#[cfg(test)]
mod tests;
