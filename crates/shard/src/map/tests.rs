//! The map over a disk of its own, against a tree: whatever is evicted, read back, written by checkpoints that succeed
//! or fail, given up as a whole, and restored after a crash, every pointer is the one that was set last, every pointer
//! that died was told of once, and every map block is let go of when nothing refers to it.

use super::capture::LayerPages;
use super::*;
use peristyle_base::{ColumnIndex, ExtentId, RowIndex};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet, HashMap};

const A: LayerId = LayerId(1);
const B: LayerId = LayerId(2);
const BLOCKS: u64 = 200_000;

/// A data pointer of which there is one.
fn ptr(n: u64) -> Ptr {
    Ptr::new(ExtentId(n % 40 + 1), ColumnIndex((n % 6) as u8), RowIndex((n / 40 % 512) as u16), n as u32)
}

fn small() -> Limits {
    Limits { leaves: 12, pages: 4, changes: 900, layer_pages: 64, resolved: 8 }
}

#[derive(Clone, Debug)]
enum Op {
    Set(LayerId, u64),
    Fill(LayerId, u64, u64),
    Zero(LayerId, u64, u64),
    Resize(LayerId, u64),
    DropAndMake(LayerId),
    Forget,
    Bring(LayerId, u64),
    Count,
    /// Begun, and ended by `Installed` or `Failed` some steps later.
    /// Lists so many leaves' changes for a checkpoint.
    List(u8),
    Checkpoint {
        whole: bool,
    },
    End {
        good: bool,
    },
    Rewrite(LayerId, u64),
    Crash,
}

fn op() -> impl Strategy<Value = Op> {
    let layer = || prop_oneof![3 => Just(A), 1 => Just(B)];
    let block = || prop_oneof![2 => 0..BLOCKS, 2 => 0..3000u64, 1 => 65_000..66_000u64];
    let count = prop_oneof![2 => 1u64..600, 1 => 1..BLOCKS, 1 => (1u64..4).prop_map(|n| n * PAGE_BLOCKS)];
    let zero = (block(), any::<u8>()).prop_map(|(block, how)| match how % 3 {
        0 => block,
        1 => block / LEAF * LEAF,
        _ => block / PAGE_BLOCKS * PAGE_BLOCKS,
    });
    let size = prop_oneof![1..BLOCKS, (1..5u64).prop_map(|pages| pages * PAGE_BLOCKS), Just(BLOCKS)];
    prop_oneof![
        12 => (layer(), block()).prop_map(|(l, b)| Op::Set(l, b)),
        4 => (layer(), block(), 1u64..400).prop_map(|(l, b, n)| Op::Fill(l, b, n)),
        4 => (layer(), zero, count).prop_map(|(l, b, n)| Op::Zero(l, b, n)),
        2 => (layer(), size).prop_map(|(l, b)| Op::Resize(l, b)),
        1 => layer().prop_map(Op::DropAndMake),
        3 => Just(Op::Forget),
        4 => (layer(), block()).prop_map(|(l, b)| Op::Bring(l, b)),
        4 => Just(Op::Count),
        4 => any::<bool>().prop_map(|whole| Op::Checkpoint { whole }),
        5 => (0u8..8).prop_map(Op::List),
        5 => prop_oneof![4 => Just(true), 1 => Just(false)].prop_map(|good| Op::End { good }),
        1 => (layer(), block()).prop_map(|(l, b)| Op::Rewrite(l, b)),
        1 => Just(Op::Crash),
    ]
}

/// What changes the map in the order of the log.
#[derive(Clone, Debug)]
enum Logged1 {
    Set(LayerId, u64, Ptr),
    Zero(LayerId, u64, u64),
    Resize(LayerId, u64),
    Drop(LayerId),
    Make(LayerId),
}

#[derive(Clone, Default)]
struct Durable {
    layers: Vec<LayerPages>,
    table: LayerTable,
    changes: Vec<Logged>,
    live: BTreeMap<ExtentId, u64>,
}

struct World {
    map: Map,
    model: BTreeMap<(LayerId, u64), Ptr>,
    sizes: BTreeMap<LayerId, u64>,
    live: BTreeMap<ExtentId, u64>,
    /// Map blocks, and those that something may refer to.
    disk: HashMap<u64, Box<Block256>>,
    kept: BTreeSet<u64>,
    next: u64,
    durable: Durable,
    log: Vec<Logged1>,
    /// A checkpoint under way, the counts at its number, and how long the log was then.
    under_way: Option<(Capture, BTreeMap<ExtentId, u64>, usize)>,
    /// What it has listed so far.
    listed: Vec<Logged>,
}

/// A capture, of all candidates that there are just then.
fn begin_capture(map: &mut Map, whole: bool) -> Capture {
    let mut candidates = Candidates::default();
    while map.look_for_candidates(&mut candidates) {}
    map.capture(&candidates, whole)
}

fn all_listed(map: &mut Map) -> Vec<Logged> {
    while map.list_some(usize::MAX) {}
    map.take_listed(usize::MAX)
}

impl World {
    fn new() -> World {
        let mut world = World {
            map: Map::new(small()),
            model: BTreeMap::new(),
            sizes: BTreeMap::new(),
            live: BTreeMap::new(),
            disk: HashMap::new(),
            kept: BTreeSet::new(),
            next: 0,
            durable: Durable::default(),
            log: Vec::new(),
            under_way: None,
            listed: Vec::new(),
        };
        [A, B].into_iter().for_each(|layer| world.does(Logged1::Make(layer)));
        world
    }

    /// The page in which a layer ends is in memory when the end moves: what lies behind it is found by nobody later.
    fn prepare(&mut self, what: &Logged1) {
        if let Logged1::Resize(layer, blocks) = *what
            && let Some(there) = self.map.layer_blocks(layer)
        {
            self.bring(Away::of(layer, blocks.min(there - 1)));
            self.bring(Away::of(layer, there - 1));
        }
    }

    fn does(&mut self, what: Logged1) {
        self.prepare(&what);
        Self::apply(&mut self.map, &mut self.live, &what);
        match what {
            Logged1::Set(layer, block, ptr) if block < self.sizes[&layer] => {
                self.model.insert((layer, block), ptr);
            }
            Logged1::Set(..) => {}
            Logged1::Zero(layer, block, count) => {
                self.model.retain(|&(l, b), _| l != layer || !(block..block + count).contains(&b));
            }
            Logged1::Resize(layer, blocks) => {
                self.sizes.insert(layer, blocks);
                self.model.retain(|&(l, b), _| l != layer || b < blocks);
            }
            Logged1::Drop(layer) => {
                self.sizes.remove(&layer);
                self.model.retain(|&(l, _), _| l != layer);
            }
            Logged1::Make(layer) => _ = self.sizes.insert(layer, BLOCKS),
        }
        self.log.push(what);
    }

    fn apply(map: &mut Map, live: &mut BTreeMap<ExtentId, u64>, what: &Logged1) {
        let mut dead = |ptr: Ptr| {
            let count = live.get_mut(&ptr.extent()).expect("only what lives dies");
            *count = count.checked_sub(1).expect("nothing dies twice");
        };
        match *what {
            Logged1::Set(layer, block, ptr) => {
                let old = map.set(layer, block, ptr);
                if let Some(Lookup::Data(old)) = old {
                    dead(old);
                }
                if old.is_some() {
                    *live.entry(ptr.extent()).or_default() += 1;
                }
            }
            Logged1::Zero(layer, block, count) => map.zero(layer, block, count, dead),
            Logged1::Resize(layer, blocks) => map.resize_layer(layer, blocks, dead).unwrap(),
            Logged1::Drop(layer) => map.drop_layer(layer, dead),
            Logged1::Make(layer) => map.create_layer(layer, BLOCKS).unwrap(),
        }
    }

    fn bring(&mut self, away: Away) {
        for _ in 0..20 {
            let World { map, disk, live, .. } = self;
            let died = |ptr: Ptr| *live.get_mut(&ptr.extent()).expect("it lives") -= 1;
            let fits = match map.missing(away) {
                Missing::Nothing => return,
                Missing::Page(home) => map.install_page(away, home, &bytes(&disk[&key(home)])),
                Missing::Leaf(home) => map.install_leaf(away, home, &bytes(&disk[&key(home)]), died),
            };
            if !fits {
                // A checkpoint has to come first, as for everybody.
                self.end(true);
                self.checkpoint(false);
                self.end(true);
            }
        }
        panic!("no room for {away:?}");
    }

    fn lookup(&mut self, layer: LayerId, block: u64) -> Lookup {
        match self.map.lookup(layer, block) {
            Lookup::Away => {
                self.bring(Away::of(layer, block));
                self.map.lookup(layer, block)
            }
            known => known,
        }
    }

    fn count(&mut self) {
        for _ in 0..10_000 {
            let World { map, live, disk, .. } = self;
            let mut died = |ptr: Ptr| {
                let count = live.get_mut(&ptr.extent()).expect("it lives");
                *count = count.checked_sub(1).expect("nothing dies twice");
            };
            match map.count_remains(&mut died) {
                Left::Nothing => return,
                Left::More => {}
                Left::Busy => self.end(true),
                Left::Page(away, _) => self.bring(away),
                Left::Leaf(away, home) => map.count_leaf(away, home, &bytes(&disk[&key(home)]), died),
            }
        }
        panic!("counting never ends");
    }

    fn checkpoint(&mut self, whole: bool) {
        if self.under_way.is_none() {
            let capture = begin_capture(&mut self.map, whole);
            self.listed.clear();
            self.under_way = Some((capture, self.live.clone(), self.log.len()));
        }
    }

    fn write(&mut self, block: Box<Block256>) -> Ptr {
        self.next += 1;
        let ptr = Ptr::new(ExtentId(1_000_000 + self.next), ColumnIndex(0), RowIndex(0), self.next as u32);
        self.disk.insert(key(ptr), block);
        self.kept.insert(key(ptr));
        ptr
    }

    fn end(&mut self, good: bool) {
        let Some((mut capture, live, logged)) = self.under_way.take() else { return };
        if good {
            self.listed.extend(all_listed(&mut self.map));
        }
        let mut leaves = Vec::new();
        for i in 0..capture.leaves.len() {
            let leaf = capture.leaves[i];
            let ptr = self.write(Box::new(*self.map.leaf(leaf.leaf)));
            capture.pages[leaf.page].children[leaf.child as usize] = ptr;
            leaves.push(ptr);
        }
        let pages: Vec<Ptr> = (0..capture.pages.len())
            .map(|i| {
                let children = capture.pages[i].children.clone();
                self.write(children)
            })
            .collect();
        if !good {
            self.map.failed(capture);
            leaves.iter().chain(&pages).for_each(|ptr| assert!(self.kept.remove(&key(*ptr))));
            return;
        }
        let place = |at: PageAt| match at {
            PageAt::Written(i) => PageAt::Home(pages[i]),
            other => other,
        };
        let layers = capture.layers.iter().map(|(id, blocks, there)| {
            (*id, *blocks, there.iter().map(|(n, at)| (*n, place(*at))).collect())
        });
        let mut changes = if capture.whole { Vec::new() } else { self.durable.changes.clone() };
        changes.append(&mut self.listed);
        let table = capture.table.clone();
        self.durable = Durable { layers: layers.collect(), table, changes, live };
        self.log.drain(..logged);
        let replaced: BTreeSet<u64> = capture.replaced.iter().map(|ptr| key(*ptr)).collect();
        for gone in self.map.installed(capture, &leaves, &pages) {
            assert!(self.kept.remove(&key(gone)), "let go of twice");
            assert!(replaced.contains(&key(gone)), "the checkpoint's counts were made without it");
        }
    }

    /// Everything in memory is lost; blocks that the durable checkpoint does not have are not referred to any more.
    fn crash(&mut self) {
        self.under_way = None;
        let mut map = Map::new(small());
        let durable = self.durable.clone();
        for (id, blocks, pages) in &durable.layers {
            map.restore_layer(*id, *blocks, pages).unwrap();
        }
        durable.changes.iter().for_each(|change| map.restore_change(change));
        map.restore_table(Some(&durable.table));
        assert_eq!(map.mapped_blocks(), durable.live.values().sum::<u64>());
        self.live = durable.live;
        self.map = map;
        for what in self.log.clone() {
            self.prepare(&what);
            Self::apply(&mut self.map, &mut self.live, &what);
        }
        self.kept = self.referred();
    }

    /// Map blocks that the tree refers to, or the durable checkpoint may.
    fn referred(&self) -> BTreeSet<u64> {
        let mut referred = BTreeSet::new();
        self.walk(|ptr, is_live| _ = (!is_live).then(|| referred.insert(key(ptr))));
        referred.extend(self.map.retired().iter().map(|ptr| key(*ptr)));
        referred
    }

    fn walk(&self, mut each: impl FnMut(Ptr, bool)) {
        for (layer, pages) in self.map.all_layers() {
            for page in 0..pages {
                let (home, children) = match self.map.walk_page(layer, page) {
                    Walk::Nothing => continue,
                    Walk::Home(home) => (home, self.disk[&key(home)].clone()),
                    Walk::Here(home, children) => (home, children),
                };
                let blocks = std::iter::once(home).chain(children.iter().copied());
                blocks.filter(|ptr| matches!(ptr.lookup(), Lookup::Data(_))).for_each(|ptr| each(ptr, false));
                for (child, home) in children.iter().enumerate() {
                    let away = Away { layer, leaf: page as u64 * LEAF + child as u64 };
                    let base = self.map.walk_needs(away, *home).then(|| self.disk[&key(*home)].clone());
                    self.map.live_pointers(away, base.as_deref(), |_, ptr| each(ptr, true));
                }
            }
        }
    }

    /// Counts are those of the pointers, at any time; and at most the sizes are exceeded by what a checkpoint copies.
    fn check_counts(&self) {
        let mut counted: BTreeMap<ExtentId, u64> = BTreeMap::new();
        self.walk(|ptr, is_live| *counted.entry(ptr.extent()).or_default() += is_live as u64);
        counted.retain(|_, count| *count > 0);
        let mut live = self.live.clone();
        live.retain(|_, count| *count > 0);
        assert_eq!(counted, live);
        assert_eq!(self.map.mapped_blocks(), live.values().sum::<u64>());
        let limits = self.map.limits;
        assert!(self.map.leaves_used() <= limits.leaves + limits.captured_max());
        if self.under_way.is_none() {
            assert_eq!(self.referred(), self.kept);
        }
    }

    /// Every pointer is the one that was set last, and once all is counted nothing else lives.
    fn check_all(&mut self) {
        self.count();
        let mut expected: BTreeMap<ExtentId, u64> = BTreeMap::new();
        for ((layer, block), ptr) in self.model.clone() {
            assert_eq!(self.lookup(layer, block), Lookup::Data(ptr), "block {block} of layer {layer}");
            *expected.entry(ptr.extent()).or_default() += 1;
        }
        // What was replaced in leaves that nobody has looked at since is counted when they come.
        for (layer, blocks) in self.sizes.clone() {
            (0..blocks).step_by(LEAF as usize).for_each(|block| self.bring(Away::of(layer, block)));
        }
        self.count();
        self.live.retain(|_, count| *count > 0);
        assert_eq!(self.live, expected);
        self.check_counts();
    }

    fn step(&mut self, n: u64, op: Op) {
        match op {
            Op::Set(layer, block) => self.does(Logged1::Set(layer, block, ptr(n * 1000))),
            Op::Fill(layer, block, count) => {
                (0..count).for_each(|i| self.does(Logged1::Set(layer, block + i, ptr(n * 1000 + i))));
            }
            Op::Zero(layer, block, count) => self.does(Logged1::Zero(layer, block, count)),
            Op::Resize(layer, blocks) => {
                let below = self.sizes[&layer];
                let last = self.last_data(layer, blocks, below);
                let in_range = self.model.range((layer, blocks)..(layer, below.max(blocks)));
                assert_eq!(last, in_range.last().map(|(at, _)| at.1));
                self.does(Logged1::Resize(layer, blocks));
                for block in (below..blocks).step_by(97) {
                    assert_eq!(self.lookup(layer, block), Lookup::Zero, "zero, not absent");
                }
            }
            Op::DropAndMake(layer) => {
                self.does(Logged1::Drop(layer));
                self.does(Logged1::Make(layer));
            }
            Op::Forget => self.map.forget_what_can_be_read(),
            Op::Bring(layer, block) => self.bring(Away::of(layer, block)),
            Op::Count => self.count(),
            Op::Checkpoint { whole } => self.checkpoint(whole),
            Op::List(leaves) => {
                (0..leaves).for_each(|_| {
                    self.map.list_some(1);
                    self.listed.extend(self.map.take_listed(usize::MAX));
                });
            }
            Op::End { good } => self.end(good),
            Op::Rewrite(layer, block) => {
                let away = Away::of(layer, block);
                self.bring(away);
                self.map.rewrite_leaf(away);
                self.map.rewrite_page(away);
            }
            Op::Crash => self.crash(),
        }
    }

    fn last_data(&mut self, layer: LayerId, from: u64, mut below: u64) -> Option<u64> {
        loop {
            match self.map.last_data(layer, from, below) {
                Ok(last) => return last,
                Err(away) => {
                    self.bring(away);
                    below = below.min((away.leaf + 1) * LEAF);
                }
            }
        }
    }
}

fn bytes(block: &Block256) -> Vec<u8> {
    let mut bytes = vec![0; BLOCK_BYTES];
    encode_block(block, &mut bytes);
    bytes
}

fn key(ptr: Ptr) -> u64 {
    ptr.extent().0
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]
    #[test]
    fn the_map_agrees_with_a_tree_whatever_is_evicted_written_given_up_and_restored(
        ops in proptest::collection::vec(op(), 1..120)
    ) {
        let mut world = World::new();
        for (n, op) in ops.into_iter().enumerate() {
            world.step(n as u64, op);
            world.check_counts();
        }
        world.end(true);
        world.check_all();
        world.checkpoint(false);
        world.end(true);
        world.crash();
        world.check_all();
    }
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
    let mut map = Map::new(Limits::of(16 << 20));
    map.create_layer(A, 100_000).unwrap();
    (0..200).for_each(|block| _ = map.set(A, block, ptr(block)));
    let capture = begin_capture(&mut map, false);
    let leaf = capture.leaves[0].leaf;
    map.set(A, 5, ptr(1000));
    map.zero(A, 0, 512, |_| {});
    map.set(A, 6, ptr(1001));
    assert_eq!(map.leaf(leaf)[5], ptr(5));
    map.installed(capture, &[ptr(5000)], &[ptr(5001)]);
    assert_eq!(map.lookup(A, 5), Lookup::Zero);
    assert_eq!(map.lookup(A, 6), Lookup::Data(ptr(1001)));
    assert_eq!(map.retired(), [ptr(5000)], "the checkpoint has the leaf, and the next one has not");
}

#[test]
fn a_lone_change_is_listed_and_much_of_a_leaf_is_written_as_a_whole() {
    let mut map = Map::new(Limits::of(16 << 20));
    map.create_layer(A, 100_000).unwrap();
    map.set(A, 7, ptr(7));
    let capture = begin_capture(&mut map, false);
    let changed = Logged::Set { layer: A, block: 7, ptr: ptr(7), counted: true };
    assert_eq!(all_listed(&mut map), [changed]);
    assert!(capture.leaves.is_empty() && capture.pages.is_empty());
    map.installed(capture, &[], &[]);
    (0..200).for_each(|block| _ = map.set(A, block, ptr(block)));
    let capture = begin_capture(&mut map, false);
    assert_eq!((capture.leaves.len(), capture.pages.len()), (1, 1));
    let void = Logged::Void { layer: A, leaf: 0, count: 1 };
    assert_eq!(all_listed(&mut map), [void], "what was listed is void");
}

#[test]
fn giving_up_any_size_is_a_step_for_each_page() {
    let mut map = Map::new(Limits::of(64 << 20));
    map.create_layer(A, 1 << 20).unwrap();
    (0..1 << 20).step_by(64).for_each(|block| _ = map.set(A, block, ptr(block)));
    let mut told = 0;
    map.zero(A, 0, 1 << 20, |_| told += 1);
    assert_eq!(told, 0, "nothing is looked through");
    assert_eq!((map.lookup(A, 64), map.mapped_blocks()), (Lookup::Zero, 1 << 14));
    while map.count_remains(|_| told += 1) != Left::Nothing {}
    assert_eq!((told, map.mapped_blocks()), (1 << 14, 0));
    assert!(map.all_counted());
}

#[test]
fn layers_beyond_the_maps_memory_are_refused() {
    let mut map = Map::new(Limits { layer_pages: 16, ..Limits::of(0) });
    assert_eq!(map.create_layer(A, 12 * PAGE_BLOCKS), Ok(()));
    assert_eq!(map.create_layer(B, 4 * PAGE_BLOCKS + 1), Err(MapFull));
    assert_eq!(map.create_layer(B, 4 * PAGE_BLOCKS), Ok(()));
    assert_eq!(map.resize_layer(A, 12 * PAGE_BLOCKS + 1, |_| {}), Err(MapFull));
    assert_eq!(map.layer_blocks(A), Some(12 * PAGE_BLOCKS), "a refused one has changed nothing");
    assert_eq!(map.resize_layer(LayerId(9), 1 << 40, |_| {}), Ok(()), "it was dropped meanwhile");
    assert_eq!(map.create_layer(REMAINS, 1), Ok(()), "it is nobody's to make, and there");
    assert_eq!(map.layers().count(), 2);
}

#[test]
fn memory_follows_from_one_number() {
    for mib in [16u64, 256, 4096] {
        let limits = Limits::of(mib << 20);
        assert!(limits.bytes() <= mib << 20, "{mib} MiB: {limits:?}");
    }
}

#[test]
fn what_a_smaller_end_cuts_off_within_a_leaf_stays_cut_off_after_a_restart() {
    let mut world = World::new();
    let ops = [
        Op::Fill(A, 1, 255),
        Op::Checkpoint { whole: false },
        Op::End { good: true },
        Op::Resize(A, 1),
        Op::Checkpoint { whole: false },
        Op::End { good: true },
        Op::Crash,
        Op::Resize(A, 200),
    ];
    for (n, op) in ops.into_iter().enumerate() {
        world.step(n as u64, op);
        world.check_counts();
    }
    world.check_all();
}

#[test]
fn a_leaf_that_is_given_up_while_a_checkpoint_writes_it_is_given_up_in_the_next_one() {
    let mut world = World::new();
    for (n, op) in [
        Op::Zero(A, 0, 2 * PAGE_BLOCKS - 1),
        Op::Fill(A, PAGE_BLOCKS + 256, 200),
        Op::Checkpoint { whole: false },
        Op::Zero(A, PAGE_BLOCKS + 256, 256),
        Op::End { good: true },
        Op::Checkpoint { whole: false },
        Op::End { good: true },
        Op::Crash,
    ]
    .into_iter()
    .enumerate()
    {
        world.step(n as u64, op);
        world.check_counts();
    }
    world.check_all();
}

#[test]
fn what_was_overwritten_while_its_leaf_was_not_in_memory_does_not_keep_a_victim() {
    let mut map = Map::new(Limits::of(16 << 20));
    map.create_layer(A, 100_000).unwrap();
    (0..200).for_each(|block| _ = map.set(A, block, ptr(block)));
    let capture = begin_capture(&mut map, false);
    let leaf = *map.leaf(capture.leaves[0].leaf);
    let mut page = [Ptr::ABSENT; FANOUT];
    page[0] = ptr(5000);
    map.installed(capture, &[ptr(5000)], &[ptr(5001)]);
    map.forget_what_can_be_read();
    assert!(map.is_counted(A, 7) && map.lookup(A, 7) == Lookup::Away);
    assert_eq!(map.set(A, 7, ptr(1000)), Some(Lookup::Away));
    assert!(!map.is_counted(A, 7));
    let mut died = Vec::new();
    assert!(map.install_page(Away::of(A, 7), ptr(5001), &bytes(&page)));
    assert!(map.install_leaf(Away::of(A, 7), ptr(5000), &bytes(&leaf), |ptr| died.push(ptr)));
    assert!(map.is_counted(A, 7) && died == [ptr(7)] && map.lookup(A, 7) == Lookup::Data(ptr(1000)));
    // A change where nothing turns out to have been before waits for nobody.
    map.forget_what_can_be_read();
    map.set(A, 300, ptr(1001));
    assert!(!map.is_counted(A, 300));
    assert!(map.install_page(Away::of(A, 7), ptr(5001), &bytes(&page)));
    assert!(map.is_counted(A, 300));
}
