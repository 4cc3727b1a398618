//! The map: which block of which layer lies where. Pure.
//!
//! A radix tree of fixed height: a leaf is one block of 256 pointers (1 MiB of the volume), a page is one block
//! of 256 leaf pointers (256 MiB), a layer's root is the list of its pages. A checkpoint takes the dirty leaves
//! as they are at one sequence number without copying them: a commit that changes one of them meanwhile copies
//! it first ([`Map::capture`], [`Map::release`]).

mod capture;
mod ptr;
mod resize;
mod runs;

pub use capture::{Captured, CapturedState};
use peristyle_base::{BLOCK_BYTES, LayerId};
pub use ptr::{Block256, Lookup, Ptr, decode_block, encode_block};
pub use runs::Run;
use std::collections::BTreeMap;

/// Pointers of a leaf, and leaves of a page.
pub const FANOUT: usize = 256;
/// Bytes of a pointer in a map block.
pub const PTR_BYTES: usize = 16;

const _: () = assert!(FANOUT * PTR_BYTES == BLOCK_BYTES);

/// A child of a page, or a page of a layer.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
enum Node {
    #[default]
    Absent,
    Zero,
    At(u32),
}

struct Leaf {
    ptrs: Box<Block256>,
    /// Changed since the last capture.
    dirty: bool,
    /// A checkpoint still reads it: copy before changing.
    frozen: bool,
    /// No longer in the tree; freed when the checkpoint lets go of it.
    orphan: bool,
}

struct Page {
    children: [Node; FANOUT],
    /// Bit i: child i changed since the last capture.
    dirty: [u64; FANOUT / 64],
}

struct Layer {
    blocks: u64,
    pages: Vec<Node>,
    /// Pages that changed since the last capture, each once.
    dirty_pages: Vec<u32>,
    is_dirty: Vec<bool>,
}

/// Something of the map does not fit the memory that it may use.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MapFull;

/// All layers of one shard.
pub struct Map {
    layers: BTreeMap<LayerId, Layer>,
    /// Dropped since the last capture: what a checkpoint had of them is void, also when they were made again.
    dropped: Vec<LayerId>,
    leaves: Vec<Leaf>,
    free_leaves: Vec<u32>,
    pages: Vec<Page>,
    free_pages: Vec<u32>,
    leaves_max: usize,
    mapped: u64,
}

impl Map {
    /// `leaves_max`: leaves (4 KiB each) that may be in memory. Half as many again may be copies that a
    /// checkpoint holds.
    pub fn new(leaves_max: usize) -> Map {
        Map {
            layers: BTreeMap::new(),
            dropped: Vec::new(),
            leaves: Vec::with_capacity(leaves_max.min(4096)),
            free_leaves: Vec::with_capacity(leaves_max.min(4096)),
            pages: Vec::new(),
            free_pages: Vec::new(),
            leaves_max,
            mapped: 0,
        }
    }

    /// Adds a layer; does nothing when it is there (replay).
    pub fn create_layer(&mut self, id: LayerId, blocks: u64) -> Result<(), MapFull> {
        if self.layers.contains_key(&id) {
            return Ok(());
        }
        self.fits(id, blocks)?;
        let pages = pages_of(blocks);
        let layer = Layer {
            blocks,
            pages: vec![Node::Absent; pages],
            dirty_pages: Vec::with_capacity(pages),
            is_dirty: vec![false; pages],
        };
        self.layers.insert(id, layer);
        Ok(())
    }

    /// Whether the memory covers this layer with so many blocks beside the others.
    pub fn fits(&self, id: LayerId, blocks: u64) -> Result<(), MapFull> {
        let leaves = |blocks: u64| blocks.div_ceil(FANOUT as u64);
        let others = self.layers.iter().filter(|(other, _)| **other != id);
        let planned = others.fold(leaves(blocks), |sum, (_, l)| sum.saturating_add(leaves(l.blocks)));
        if planned > self.leaves_max as u64 { Err(MapFull) } else { Ok(()) }
    }

    /// Layers that were dropped since this was asked last.
    pub fn take_dropped(&mut self) -> Vec<LayerId> {
        std::mem::take(&mut self.dropped)
    }

    pub fn drop_layer(&mut self, id: LayerId, mut old: impl FnMut(Ptr)) {
        let Some(layer) = self.layers.remove(&id) else { return };
        self.dropped.push(id);
        for node in layer.pages {
            self.free_page(node, &mut old);
        }
    }

    pub fn layers(&self) -> impl Iterator<Item = (LayerId, u64)> + '_ {
        self.layers.iter().map(|(&id, layer)| (id, layer.blocks))
    }
    pub fn layer_blocks(&self, id: LayerId) -> Option<u64> {
        self.layers.get(&id).map(|l| l.blocks)
    }
    /// Blocks with data, over all layers.
    pub fn mapped_blocks(&self) -> u64 {
        self.mapped
    }
    /// Leaves in memory, copies of a checkpoint included.
    pub fn leaves_used(&self) -> usize {
        self.leaves.len() - self.free_leaves.len()
    }

    pub fn lookup(&self, layer: LayerId, block: u64) -> Lookup {
        let Some(layer) = self.layers.get(&layer) else { return Lookup::Absent };
        if block >= layer.blocks {
            return Lookup::Absent;
        }
        let (page, child, slot) = split(block);
        let node = match layer.pages[page] {
            Node::At(page) => self.pages[page as usize].children[child],
            node => node,
        };
        match node {
            Node::Absent => Lookup::Absent,
            Node::Zero => Lookup::Zero,
            Node::At(leaf) => self.leaves[leaf as usize].ptrs[slot].lookup(),
        }
    }

    /// Points a block somewhere and returns what was there. Blocks outside of their layer are ignored (the layer
    /// was dropped or shrunk after the frame was built): `None`.
    pub fn set(&mut self, layer: LayerId, block: u64, ptr: Ptr) -> Option<Lookup> {
        if self.layer_blocks(layer).is_none_or(|blocks| block >= blocks) {
            return None;
        }
        let (page, child, slot) = split(block);
        let leaf = self.leaf_for_change(layer, page, child);
        let old = std::mem::replace(&mut self.leaves[leaf as usize].ptrs[slot], ptr).lookup();
        self.mapped -= matches!(old, Lookup::Data(_)) as u64;
        self.mapped += matches!(ptr.lookup(), Lookup::Data(_)) as u64;
        Some(old)
    }

    /// Makes a range read as zeros. Whole leaves and pages cost one step each.
    pub fn zero(&mut self, layer: LayerId, block: u64, count: u64, mut old: impl FnMut(Ptr)) {
        let Some(blocks) = self.layer_blocks(layer) else { return };
        let end = block.saturating_add(count).min(blocks);
        const LEAF: u64 = FANOUT as u64;
        const PAGE: u64 = LEAF * LEAF;
        let mut at = block;
        while at < end {
            let (page, child, _) = split(at);
            if at % PAGE == 0 && (end - at >= PAGE || end == blocks) {
                let l = self.layers.get_mut(&layer).expect("just seen");
                let node = std::mem::replace(&mut l.pages[page], Node::Zero);
                mark_page(l, page);
                self.free_page(node, &mut old);
                at += PAGE;
            } else if at % LEAF == 0 && (end - at >= LEAF || end == blocks) {
                let p = self.page_for_change(layer, page);
                let node = std::mem::replace(&mut self.pages[p as usize].children[child], Node::Zero);
                self.pages[p as usize].dirty[child / 64] |= 1 << (child % 64);
                if let Node::At(leaf) = node {
                    self.free_leaf(leaf, &mut old);
                }
                at += LEAF;
            } else {
                if let Some(Lookup::Data(ptr)) = self.set(layer, at, Ptr::ZERO) {
                    old(ptr);
                }
                at += 1;
            }
        }
    }

    fn page_for_change(&mut self, id: LayerId, page: usize) -> u32 {
        let layer = self.layers.get_mut(&id).expect("the caller looked");
        mark_page(layer, page);
        let fill = match layer.pages[page] {
            Node::At(at) => return at,
            node => node,
        };
        let new = Page { children: [fill; FANOUT], dirty: [0; FANOUT / 64] };
        let at = match self.free_pages.pop() {
            Some(at) => {
                self.pages[at as usize] = new;
                at
            }
            None => {
                self.pages.push(new);
                self.pages.len() as u32 - 1
            }
        };
        // Children of a page that was zero as a whole become zero one by one in the next checkpoint.
        if fill == Node::Zero {
            self.pages[at as usize].dirty = [u64::MAX; FANOUT / 64];
        }
        layer.pages[page] = Node::At(at);
        at
    }

    fn leaf_for_change(&mut self, id: LayerId, page: usize, child: usize) -> u32 {
        let at = self.page_for_change(id, page) as usize;
        self.pages[at].dirty[child / 64] |= 1 << (child % 64);
        let leaf = match self.pages[at].children[child] {
            Node::At(leaf) if !self.leaves[leaf as usize].frozen => leaf,
            Node::At(leaf) => {
                // A checkpoint reads this one: it keeps the old, the tree gets a copy.
                let copy = self.new_leaf(Ptr::ABSENT);
                let (old, new) = two(&mut self.leaves, leaf as usize, copy as usize);
                new.ptrs.copy_from_slice(&*old.ptrs);
                old.orphan = true;
                copy
            }
            Node::Zero => self.new_leaf(Ptr::ZERO),
            Node::Absent => self.new_leaf(Ptr::ABSENT),
        };
        self.leaves[leaf as usize].dirty = true;
        self.pages[at].children[child] = Node::At(leaf);
        leaf
    }

    fn new_leaf(&mut self, fill: Ptr) -> u32 {
        if let Some(leaf) = self.free_leaves.pop() {
            let l = &mut self.leaves[leaf as usize];
            l.ptrs.fill(fill);
            (l.dirty, l.frozen, l.orphan) = (true, false, false);
            return leaf;
        }
        self.leaves.push(Leaf { ptrs: Box::new([fill; FANOUT]), dirty: true, frozen: false, orphan: false });
        self.leaves.len() as u32 - 1
    }

    /// Makes so many leaves ready to be used, as far as the map may grow.
    pub fn make_room(&mut self, leaves: usize) {
        while self.free_leaves.len() < leaves && self.leaves.len() < self.leaves_max * 3 / 2 {
            let ptrs = Box::new([Ptr::ABSENT; FANOUT]);
            self.leaves.push(Leaf { ptrs, dirty: false, frozen: false, orphan: false });
            self.free_leaves.push(self.leaves.len() as u32 - 1);
        }
    }

    fn free_leaf(&mut self, leaf: u32, old: &mut impl FnMut(Ptr)) {
        let l = &mut self.leaves[leaf as usize];
        for ptr in l.ptrs.iter() {
            if let Lookup::Data(ptr) = ptr.lookup() {
                self.mapped -= 1;
                old(ptr);
            }
        }
        if l.frozen {
            l.orphan = true;
        } else {
            self.free_leaves.push(leaf);
        }
    }

    fn free_page(&mut self, node: Node, old: &mut impl FnMut(Ptr)) {
        let Node::At(at) = node else { return };
        for child in self.pages[at as usize].children {
            if let Node::At(leaf) = child {
                self.free_leaf(leaf, old);
            }
        }
        self.free_pages.push(at);
    }

    /// Every data pointer: `(layer, block, ptr)`.
    pub fn for_each(&self, mut f: impl FnMut(LayerId, u64, Ptr)) {
        for (&id, layer) in &self.layers {
            for (page, node) in layer.pages.iter().enumerate() {
                let Node::At(at) = node else { continue };
                for (child, node) in self.pages[*at as usize].children.iter().enumerate() {
                    let Node::At(leaf) = node else { continue };
                    for (slot, ptr) in self.leaves[*leaf as usize].ptrs.iter().enumerate() {
                        if let Lookup::Data(ptr) = ptr.lookup() {
                            f(id, ((page * FANOUT + child) * FANOUT + slot) as u64, ptr);
                        }
                    }
                }
            }
        }
    }
}

/// Pages of a layer of so many blocks.
pub(crate) fn pages_of(blocks: u64) -> usize {
    blocks.div_ceil((FANOUT * FANOUT) as u64) as usize
}

fn mark_page(layer: &mut Layer, page: usize) {
    if !std::mem::replace(&mut layer.is_dirty[page], true) {
        layer.dirty_pages.push(page as u32);
    }
}

fn split(block: u64) -> (usize, usize, usize) {
    let leaf = block / FANOUT as u64;
    ((leaf / FANOUT as u64) as usize, (leaf % FANOUT as u64) as usize, (block % FANOUT as u64) as usize)
}

fn two<T>(items: &mut [T], a: usize, b: usize) -> (&mut T, &mut T) {
    let [a, b] = items.get_disjoint_mut([a, b]).expect("two different items");
    (a, b)
}

#[cfg(test)]
mod tests {
    use super::*;
    use peristyle_base::{ColumnIndex, ExtentId, RowIndex};
    use proptest::prelude::*;
    use std::collections::HashMap;

    const L: LayerId = LayerId(1);

    fn ptr(n: u64) -> Ptr {
        Ptr::new(ExtentId(n + 1), ColumnIndex((n % 6) as u8), RowIndex((n % 512) as u16), n as u32)
    }

    #[test]
    fn a_pointer_keeps_its_parts_through_its_bytes() {
        let p = Ptr::new(ExtentId((1 << 48) - 2), ColumnIndex(19), RowIndex(511), 0xdead_beef);
        let q = Ptr::decode(&p.encode());
        assert_eq!(
            (q.extent(), q.column(), q.row(), q.crc()),
            (p.extent(), ColumnIndex(19), RowIndex(511), 0xdead_beef)
        );
        assert_eq!(Ptr::decode(&Ptr::ZERO.encode()).lookup(), Lookup::Zero);
        assert_eq!(Ptr::decode(&[0; 16]).lookup(), Lookup::Absent);
    }

    #[test]
    fn what_a_checkpoint_captured_does_not_change_under_it() {
        let mut map = Map::new(1024);
        map.create_layer(L, 100_000).unwrap();
        map.set(L, 5, ptr(1));
        let mut captured = Vec::new();
        map.capture(&mut captured);
        let CapturedState::Leaf(handle) = captured[0].state else { panic!("{captured:?}") };
        map.set(L, 5, ptr(2));
        map.zero(L, 0, 512, |_| {});
        map.set(L, 6, ptr(3));
        assert_eq!(map.leaf(handle)[5], ptr(1));
        map.release(handle);
        assert_eq!(map.lookup(L, 5), Lookup::Zero);
        assert_eq!(map.lookup(L, 6), Lookup::Data(ptr(3)));
        let mut second = Vec::new();
        map.capture(&mut second);
        assert_eq!(second.len(), 2, "leaf 0 changed, leaf 1 became zero: {second:?}");
    }

    #[test]
    fn layers_beyond_the_maps_memory_are_refused() {
        let mut map = Map::new(16);
        assert_eq!(map.create_layer(L, 16 * 256), Ok(()));
        assert_eq!(map.create_layer(LayerId(2), 1), Err(MapFull));
    }

    #[derive(Clone, Debug)]
    enum Op {
        Set(u64, u64),
        Zero(u64, u64),
        Capture,
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            6 => (0u64..200_000, 0u64..1000).prop_map(|(b, n)| Op::Set(b, n)),
            2 => (0u64..200_000, prop_oneof![1u64..600, 1u64..200_000]).prop_map(|(b, n)| Op::Zero(b, n)),
            1 => Just(Op::Capture),
        ]
    }

    proptest! {
        #[test]
        fn the_map_agrees_with_a_hash_map_and_checkpoints_rebuild_it(ops in proptest::collection::vec(op(), 1..60)) {
            let mut map = Map::new(4096);
            map.create_layer(L, 200_000).unwrap();
            let mut model: HashMap<u64, Ptr> = HashMap::new();
            // What all captures so far would restore: (page, child) -> content; a page entry clears its children.
            let mut saved: HashMap<(u32, u8), Option<Box<Block256>>> = HashMap::new();
            let mut ops = ops;
            ops.push(Op::Capture);
            for op in ops {
                match op {
                    Op::Set(b, n) => {
                        map.set(L, b, ptr(n));
                        model.insert(b, ptr(n));
                    }
                    Op::Zero(b, n) => {
                        let mut freed = 0;
                        map.zero(L, b, n, |_| freed += 1);
                        let before = model.len();
                        model.retain(|&k, _| !(b..b + n).contains(&k));
                        prop_assert_eq!(freed, before - model.len());
                    }
                    Op::Capture => {
                        let mut captured = Vec::new();
                        map.capture(&mut captured);
                        for c in captured {
                            match (c.child, c.state) {
                                (None, _) => saved.retain(|k, _| k.0 != c.page),
                                (Some(child), CapturedState::Leaf(h)) => {
                                    saved.insert((c.page, child), Some(Box::new(*map.leaf(h))));
                                    map.release(h);
                                }
                                (Some(child), _) => { saved.insert((c.page, child), None); }
                            }
                        }
                    }
                }
                prop_assert_eq!(map.mapped_blocks(), model.len() as u64);
            }
            let mut again = Map::new(4096);
            again.create_layer(L, 200_000).unwrap();
            for ((page, child), content) in saved {
                again.load_child(L, page, child, content);
            }
            for m in [&map, &again] {
                let mut found = HashMap::new();
                m.for_each(|_, b, p| { found.insert(b, p); });
                prop_assert_eq!(&found, &model);
            }
            prop_assert_eq!(again.mapped_blocks(), model.len() as u64);
        }
    }
}
