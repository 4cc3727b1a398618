//! Snapshots, clones, what becomes of them, and what they take (DESIGN §4, §11 "Collection and layers").

use crate::pool::*;
use peristyle_base::LayerId;
use peristyle_rt::sim::{self, Rng};
use peristyle_rt::{Duration, timeout};
use peristyle_shard::{ResizeError, ShardError, Usage, WriteClass};
use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

const BLOCK: u64 = 4096;
const S: LayerId = LayerId(101);
const T: LayerId = LayerId(102);
const CLONE: LayerId = LayerId(201);

async fn write_to(shard: &TestShard, of: LayerId, block: u64, salt: u64) -> Result<(), ShardError> {
    shard.write(of, block * BLOCK, view(&fill(1, salt)).await).await
}

/// Salt 0: zeros.
async fn expect_of(shard: &TestShard, of: LayerId, block: u64, salt: u64) {
    let pieces = shard.read(of, block * BLOCK, BLOCK).await.unwrap();
    let found: Vec<u8> = pieces.to_vec();
    let wanted = if salt == 0 { vec![0; BLOCK as usize] } else { fill(1, salt) };
    assert!(found == wanted, "block {block} of {of:?}");
}

/// Nothing merges any more, and all that died is counted.
async fn at_rest(shard: &TestShard) {
    for _ in 0..20_000 {
        if shard.is_at_rest() {
            return;
        }
        ms(1).await;
    }
    panic!("merging never ends");
}

/// Every live block is of one volume or snapshot, or of nobody; returns what is nobody's.
fn accounts_agree(shard: &TestShard) -> u64 {
    let accounts = shard.accounts();
    let own: u64 = accounts.usage.iter().map(|(_, usage)| usage.own).sum();
    assert_eq!(own + accounts.nobodys, accounts.live, "{accounts:?}");
    accounts.nobodys
}

#[test]
fn a_snapshot_keeps_what_was_there_and_the_volume_goes_on() {
    sim::run(1, |_| async {
        let home = Home::new("2+1", 4);
        let mut shard = home.start().await;
        write_to(&shard, L, 5, 1).await.unwrap();
        write_to(&shard, L, 6, 2).await.unwrap();
        write_to(&shard, L, 7, 7).await.unwrap();
        shard.snapshot(&[(L, S)]).await.unwrap();
        write_to(&shard, L, 6, 3).await.unwrap();
        shard.zero(L, 7 * BLOCK, BLOCK).await.unwrap();
        for restart in 0..3 {
            for (block, then, now) in [(5, 1, 1), (6, 2, 3), (7, 7, 0), (8, 0, 0)] {
                expect_of(&shard, S, block, then).await;
                expect_of(&shard, L, block, now).await;
            }
            assert_eq!(write_to(&shard, S, 5, 9).await, Err(ShardError::ReadOnly));
            assert_eq!(shard.zero(S, 0, BLOCK).await, Err(ShardError::ReadOnly));
            assert_eq!(shard.resize_layer(S, 1, true).await, Err(ResizeError::Shard(ShardError::ReadOnly)));
            let snapshot = Usage { blocks: 4096, own: 3, unique: 0, shared: 3, depth: 1, writable: false };
            assert_eq!(shard.usage(S), Some(snapshot));
            let volume = Usage { blocks: 4096, own: 1, unique: 1, shared: 3, depth: 2, writable: true };
            assert_eq!(shard.usage(L), Some(volume));
            assert_eq!(accounts_agree(&shard), 0);
            if restart == 1 {
                shard.checkpoint().await.unwrap();
            }
            home.kill(shard);
            shard = home.recover().await.unwrap();
        }
    });
}

#[test]
fn a_deleted_snapshot_gives_its_own_blocks_back_and_its_child_keeps_the_rest() {
    sim::run(2, |_| async {
        let home = Home::new("2+1", 4);
        let shard = home.start().await;
        for block in 0..100 {
            write_to(&shard, L, block, 1 + block).await.unwrap();
        }
        shard.snapshot(&[(L, S)]).await.unwrap();
        for block in 0..40 {
            write_to(&shard, L, block, 1001 + block).await.unwrap();
        }
        shard.zero(L, 90 * BLOCK, 10 * BLOCK).await.unwrap();
        assert_eq!(shard.mapped_blocks(), 140);
        shard.drop_layer(S).await.unwrap();
        assert_eq!(shard.read(S, 0, BLOCK).await.map(drop), Err(ShardError::OutOfRange));
        at_rest(&shard).await;
        assert_eq!(shard.mapped_blocks(), 90);
        let volume = Usage { blocks: 4096, own: 90, unique: 90, shared: 0, depth: 1, writable: true };
        assert_eq!(shard.usage(L), Some(volume));
        home.kill(shard);
        let shard = home.recover().await.unwrap();
        at_rest(&shard).await;
        for block in 0..100 {
            let salt = if block < 40 { 1001 + block } else { 1 + block };
            expect_of(&shard, L, block, if block < 90 { salt } else { 0 }).await;
        }
        shard.check_counts().await.unwrap();
        assert_eq!(shard.usage(L), Some(volume));
    });
}

#[test]
fn a_clone_is_written_apart_and_outlives_its_snapshot_and_its_volume() {
    sim::run(3, |_| async {
        let home = Home::new("2+1", 4);
        let shard = home.start().await;
        write_to(&shard, L, 1, 1).await.unwrap();
        write_to(&shard, L, 2, 2).await.unwrap();
        shard.snapshot(&[(L, S)]).await.unwrap();
        shard.clone_snapshot(CLONE, S).await.unwrap();
        assert_eq!(shard.clone_snapshot(CLONE, S).await, Err(ShardError::NoSuchLayer), "it is there");
        assert_eq!(shard.clone_snapshot(LayerId(202), L).await, Err(ShardError::NoSuchLayer), "no snapshot");
        write_to(&shard, CLONE, 2, 22).await.unwrap();
        write_to(&shard, L, 1, 11).await.unwrap();
        // A clone of the clone.
        shard.snapshot(&[(CLONE, T)]).await.unwrap();
        shard.clone_snapshot(LayerId(202), T).await.unwrap();
        write_to(&shard, CLONE, 3, 3).await.unwrap();
        shard.drop_layer(S).await.unwrap();
        shard.drop_layer(L).await.unwrap();
        shard.drop_layer(T).await.unwrap();
        shard.drop_layer(CLONE).await.unwrap();
        at_rest(&shard).await;
        for (block, salt) in [(1, 1), (2, 22), (3, 0)] {
            expect_of(&shard, LayerId(202), block, salt).await;
        }
        let last = Usage { blocks: 4096, own: 2, unique: 2, shared: 0, depth: 1, writable: true };
        assert_eq!(shard.usage(LayerId(202)), Some(last));
        assert_eq!((shard.mapped_blocks(), accounts_agree(&shard)), (2, 0));
    });
}

#[test]
fn a_volume_is_rolled_back_to_any_of_its_snapshots_and_to_their_size() {
    sim::run(4, |_| async {
        let home = Home::new("2+1", 4);
        let shard = home.start().await;
        write_to(&shard, L, 1, 1).await.unwrap();
        shard.snapshot(&[(L, S)]).await.unwrap();
        write_to(&shard, L, 1, 2).await.unwrap();
        shard.resize_layer(L, 8192, false).await.unwrap();
        write_to(&shard, L, 8000, 8).await.unwrap();
        shard.snapshot(&[(L, T)]).await.unwrap();
        write_to(&shard, L, 1, 3).await.unwrap();
        shard.roll_back(L, S).await.unwrap();
        expect_of(&shard, L, 1, 1).await;
        assert_eq!(write_to(&shard, L, 4096, 1).await, Err(ShardError::OutOfRange), "its size then");
        write_to(&shard, L, 2, 4).await.unwrap();
        shard.roll_back(L, T).await.unwrap();
        expect_of(&shard, L, 1, 2).await;
        expect_of(&shard, L, 2, 0).await;
        expect_of(&shard, L, 8000, 8).await;
        at_rest(&shard).await;
        assert_eq!((shard.mapped_blocks(), accounts_agree(&shard)), (3, 0));
        // What a larger volume gains is zero, whatever an ancestor has there.
        shard.resize_layer(L, 100, true).await.unwrap();
        shard.resize_layer(L, 8192, false).await.unwrap();
        expect_of(&shard, L, 8000, 0).await;
        expect_of(&shard, T, 8000, 8).await;
        assert_eq!(shard.roll_back(L, LayerId(9)).await, Err(ShardError::NoSuchLayer));
    });
}

#[test]
fn a_snapshot_of_several_volumes_is_one_point_and_has_all_that_was_acknowledged() {
    for seed in 0..40 {
        sim::run(100 + seed, move |_| async move {
            let home = Home::new("2+1", 4);
            let shard = home.start().await;
            let other = LayerId(2);
            shard.ensure_layer(other, 4096).await.unwrap();
            // One writer, first to one volume, then to the other: a later write never lies in the snapshot without the
            // earlier one.
            let (acknowledged, last) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(false)));
            peristyle_rt::spawn({
                let (shard, acknowledged, last) = (shard.clone(), acknowledged.clone(), last.clone());
                async move {
                    for n in 1.. {
                        write_to(&shard, if n % 2 == 0 { L } else { other }, 0, n).await.unwrap();
                        acknowledged.set(n);
                        if last.get() {
                            return;
                        }
                    }
                }
            });
            peristyle_rt::sleep(Duration::from_micros(200 + 37 * seed)).await;
            let before = acknowledged.get();
            shard.snapshot(&[(L, S), (other, T)]).await.unwrap();
            let after = acknowledged.get() + 1;
            last.set(true);
            ms(20).await;
            home.kill(shard);
            let shard = home.recover().await.unwrap();
            let mut fits = 0;
            for n in before..=after {
                let (even, odd) = if n % 2 == 0 { (n, n.max(1) - 1) } else { (n - 1, n) };
                let matches = async |of, salt| {
                    let found = shard.read(of, 0, BLOCK).await.unwrap();
                    let wanted = if salt == 0 { vec![0; BLOCK as usize] } else { fill(1, salt) };
                    found.pieces()[0][..] == wanted
                };
                fits += u32::from(matches(S, even).await && matches(T, odd).await);
            }
            assert_eq!(fits, 1, "the state after one of the writes {before} to {after}");
        });
    }
}

#[test]
fn a_flattened_clone_shares_nothing_and_holds_the_same() {
    sim::run(5, |_| async {
        let home = Home::new("2+1", 4);
        let shard = home.start().await;
        for block in [0, 1, 2, 300, 301, 4095] {
            write_to(&shard, L, block, 1 + block).await.unwrap();
        }
        shard.snapshot(&[(L, S)]).await.unwrap();
        shard.clone_snapshot(CLONE, S).await.unwrap();
        write_to(&shard, CLONE, 1, 77).await.unwrap();
        shard.zero(CLONE, 2 * BLOCK, BLOCK).await.unwrap();
        shard.flatten(CLONE).await.unwrap();
        let parted = Usage { blocks: 4096, own: 5, unique: 5, shared: 0, depth: 1, writable: true };
        assert_eq!(shard.usage(CLONE), Some(parted));
        home.kill(shard);
        let shard = home.recover().await.unwrap();
        for (block, salt) in [(0, 1), (1, 77), (2, 0), (300, 301), (301, 302), (4095, 4096), (5, 0)] {
            expect_of(&shard, CLONE, block, salt).await;
        }
        assert_eq!((shard.usage(CLONE), accounts_agree(&shard)), (Some(parted), 0));
    });
}

#[test]
fn a_clone_that_is_flattened_while_its_parent_merges_into_it_keeps_what_that_gave_it() {
    sim::run(5, |_| async {
        let home = Home::new("2+1", 4);
        let shard = home.start().await;
        for block in 0..20 {
            write_to(&shard, L, block, 1 + block).await.unwrap();
        }
        shard.snapshot(&[(L, S)]).await.unwrap();
        shard.clone_snapshot(CLONE, S).await.unwrap();
        shard.drop_layer(L).await.unwrap();
        shard.checkpoint().await.unwrap();
        // The snapshot's blocks become the clone's, which no log says: only the next checkpoint does, and that is slow.
        home.pool.rule(|asked| match asked.class {
            Some(WriteClass::Meta) => Do::Late(Duration::from_millis(5)),
            _ => Do::It,
        });
        shard.drop_layer(S).await.unwrap();
        peristyle_rt::sleep(Duration::from_micros(100)).await;
        shard.flatten(CLONE).await.unwrap();
        let alone = Usage { blocks: 4096, own: 20, unique: 20, shared: 0, depth: 1, writable: true };
        assert_eq!(shard.usage(CLONE), Some(alone), "nothing was copied, and it is the clone's");
        home.kill(shard);
        let shard = home.recover().await.unwrap();
        at_rest(&shard).await;
        for block in 0..20 {
            expect_of(&shard, CLONE, block, 1 + block).await;
        }
        assert_eq!((shard.usage(CLONE), accounts_agree(&shard)), (Some(alone), 0));
        shard.check_counts().await.unwrap();
    });
}

#[test]
fn an_allocation_question_and_a_smaller_size_see_through_the_chain() {
    sim::run(6, |_| async {
        let home = Home::new("2+1", 4);
        let shard = home.start().await;
        write_to(&shard, L, 10, 1).await.unwrap();
        write_to(&shard, L, 3000, 2).await.unwrap();
        for snapshot in [S, T] {
            shard.snapshot(&[(L, snapshot)]).await.unwrap();
        }
        write_to(&shard, L, 11, 3).await.unwrap();
        shard.zero(L, 3000 * BLOCK, BLOCK).await.unwrap();
        let runs = async |of| {
            let runs = shard.allocation(of, 0, 4096 * BLOCK, 9).await.unwrap();
            runs.into_iter().map(|run| (run.blocks, run.data)).collect::<Vec<_>>()
        };
        assert_eq!(runs(L).await, [(10, false), (2, true), (4084, false)]);
        assert_eq!(runs(T).await, [(10, false), (1, true), (2989, false), (1, true), (1095, false)]);
        let behind = ResizeError::DataBehind(12 * BLOCK - 1);
        assert_eq!(shard.resize_layer(L, 11, false).await, Err(behind));
        assert_eq!(shard.resize_layer(L, 12, false).await, Ok(()));
        expect_of(&shard, T, 3000, 2).await;
    });
}

#[test]
fn the_chain_and_the_group_have_limits() {
    sim::run(7, |_| async {
        let home = Home::new("2+1", 4);
        let shard = home.start().await;
        write_to(&shard, L, 0, 1).await.unwrap();
        assert_eq!(shard.snapshot(&[(L, S), (L, T)]).await, Err(ShardError::NoSuchLayer), "twice");
        for n in 0..255 {
            assert_eq!(shard.snapshot(&[(L, LayerId(1000 + n))]).await, Ok(()), "{n}");
        }
        assert_eq!(shard.snapshot(&[(L, S)]).await, Err(ShardError::MapFull));
        expect_of(&shard, L, 0, 1).await;
        let group: Vec<_> = (0..65).map(|n| (L, LayerId(2000 + n))).collect();
        assert_eq!(shard.snapshot(&group).await, Err(ShardError::OutOfRange));
        // All of them go, in one go.
        for n in 0..255 {
            shard.drop_layer(LayerId(1000 + n)).await.unwrap();
        }
        at_rest(&shard).await;
        let alone = Usage { blocks: 4096, own: 1, unique: 1, shared: 0, depth: 1, writable: true };
        assert_eq!(shard.usage(L), Some(alone));
        expect_of(&shard, L, 0, 1).await;
    });
}

#[test]
fn a_thousand_clones_of_one_image_share_it() {
    sim::run(8, |_| async {
        let home = Home::new("2+1", 4);
        let shard = home.start().await;
        for block in 0..64 {
            write_to(&shard, L, block, 1 + block).await.unwrap();
        }
        shard.snapshot(&[(L, S)]).await.unwrap();
        for n in 0..1000 {
            let clone = LayerId(5000 + n);
            shard.clone_snapshot(clone, S).await.unwrap();
            write_to(&shard, clone, u64::from(n) % 64, 9000 + u64::from(n)).await.unwrap();
        }
        shard.checkpoint().await.unwrap();
        home.kill(shard);
        let shard = home.recover().await.unwrap();
        for n in (0..1000).step_by(37) {
            let (clone, mine) = (LayerId(5000 + n), u64::from(n) % 64);
            expect_of(&shard, clone, mine, 9000 + u64::from(n)).await;
            expect_of(&shard, clone, (mine + 1) % 64, 1 + (mine + 1) % 64).await;
            assert_eq!(shard.usage(clone).map(|u| (u.unique, u.shared)), Some((1, 64)));
        }
        assert_eq!((shard.mapped_blocks(), accounts_agree(&shard)), (1064, 0));
    });
}

/// What each volume and snapshot holds, by block; and its size.
#[derive(Clone, Default)]
struct Held {
    blocks: u64,
    salts: BTreeMap<u64, u64>,
    writable: bool,
}

struct World {
    home: Home,
    held: BTreeMap<LayerId, Held>,
    rng: Rng,
    next: u32,
    salt: u64,
    story: Vec<String>,
    /// Blocks were copied.
    flattened: bool,
}

/// Where the blocks are that are written: around the ends of leaves, of pages and of layers.
const SPOTS: [(u64, u64); 4] = [(0, 40), (240, 40), (65_520, 40), (69_960, 40)];
const BLOCKS: u64 = 70_000;

impl World {
    fn any(&mut self, writable: bool) -> Option<LayerId> {
        let all: Vec<LayerId> = self.held.iter().filter(|h| h.1.writable == writable).map(|h| *h.0).collect();
        if all.is_empty() { None } else { Some(all[self.rng.below(all.len() as u64) as usize]) }
    }
    fn spot(&mut self) -> u64 {
        let (first, count) = SPOTS[self.rng.below(SPOTS.len() as u64) as usize];
        first + self.rng.below(count)
    }
    fn number(&mut self) -> LayerId {
        self.next += 1;
        LayerId(self.next)
    }

    async fn step(&mut self, mut shard: TestShard) -> TestShard {
        let what = self.rng.below(100);
        self.story.push(format!("{what}"));
        match what {
            0..45 => {
                let Some(of) = self.any(true) else { return shard };
                for _ in 0..1 + self.rng.below(8) {
                    let block = self.spot();
                    if block < self.held[&of].blocks {
                        self.salt += 1;
                        write_to(&shard, of, block, self.salt).await.unwrap();
                        self.held.get_mut(&of).unwrap().salts.insert(block, self.salt);
                    }
                }
            }
            45..55 => {
                let Some(of) = self.any(true) else { return shard };
                let (block, held) = (self.spot(), self.held.get_mut(&of).unwrap());
                let count =
                    [3, 300, 66_000][self.rng.below(3) as usize].min(held.blocks.saturating_sub(block));
                if count > 0 {
                    shard.zero(of, block * BLOCK, count * BLOCK).await.unwrap();
                    held.salts.retain(|b, _| !(block..block + count).contains(b));
                }
            }
            55..65 if self.held.len() < 12 => {
                let Some(of) = self.any(true) else { return shard };
                let snapshot = self.number();
                let mut group = vec![(of, snapshot)];
                if let Some(other) = self.any(true).filter(|other| *other != of) {
                    group.push((other, self.number()));
                }
                shard.snapshot(&group).await.unwrap();
                for (of, snapshot) in group {
                    let held = Held { writable: false, ..self.held[&of].clone() };
                    self.held.insert(snapshot, held);
                }
            }
            65..70 if self.held.len() < 12 => {
                let Some(of) = self.any(false) else { return shard };
                let clone = self.number();
                shard.clone_snapshot(clone, of).await.unwrap();
                let held = Held { writable: true, ..self.held[&of].clone() };
                self.held.insert(clone, held);
            }
            70..79 if self.held.len() > 4 => {
                let writable = self.rng.below(4) == 0;
                let Some(gone) = self.any(writable) else { return shard };
                shard.drop_layer(gone).await.unwrap();
                self.held.remove(&gone);
            }
            79..82 => {
                let (Some(of), Some(to)) = (self.any(true), self.any(false)) else { return shard };
                shard.roll_back(of, to).await.unwrap();
                let held = Held { writable: true, ..self.held[&to].clone() };
                self.held.insert(of, held);
            }
            82..84 => {
                let Some(of) = self.any(true) else { return shard };
                shard.flatten(of).await.unwrap();
                self.flattened = true;
            }
            84..86 => {
                let Some(of) = self.any(true) else { return shard };
                let blocks = [BLOCKS, 65_530, 250, 69_980][self.rng.below(4) as usize];
                shard.resize_layer(of, blocks, true).await.unwrap();
                let held = self.held.get_mut(&of).unwrap();
                held.salts.retain(|b, _| *b < blocks);
                held.blocks = blocks;
            }
            86..90 => shard.checkpoint().await.unwrap(),
            90..93 => shard.forget_map(),
            93..95 => {
                self.home.kill(shard);
                shard = self.home.recover().await.unwrap();
            }
            95..97 => {
                at_rest(&shard).await;
                shard.check_counts().await.unwrap();
                accounts_agree(&shard);
            }
            97 => self.verify(&shard).await,
            _ => ms(self.rng.below(5)).await,
        }
        accounts_agree(&shard);
        shard
    }

    async fn verify(&self, shard: &TestShard) {
        for (of, held) in &self.held {
            for (first, count) in SPOTS {
                let count = count.min(held.blocks.saturating_sub(first));
                if count == 0 {
                    continue;
                }
                let pieces = shard.read(*of, first * BLOCK, count * BLOCK).await.unwrap();
                let found: Vec<u8> = pieces.to_vec();
                for (i, there) in found.chunks(BLOCK as usize).enumerate() {
                    let block = first + i as u64;
                    let wanted =
                        held.salts.get(&block).map_or(vec![0; BLOCK as usize], |salt| fill(1, *salt));
                    assert!(there == wanted, "block {block} of {of:?} after {:?}", self.story);
                }
            }
        }
    }

    /// Blocks that somebody sees: all others are given back, but for those of layers that nobody names.
    fn visible(&self) -> u64 {
        self.held.values().flat_map(|held| held.salts.values()).collect::<BTreeSet<_>>().len() as u64
    }
}

/// `small`: hardly anything of the map is in memory.
fn run_story(seed: u64, steps: usize, small: bool) {
    sim::run(seed, move |_| async move {
        let mut home = Home::new("2+1", 4);
        if small {
            home.config.map_cache_bytes = 1 << 16;
        }
        home.config.checkpoint_log_bytes = 2 << 20;
        let held = BTreeMap::from([(L, Held { blocks: BLOCKS, writable: true, ..Held::default() })]);
        let (rng, story) = (Rng::new(seed), Vec::new());
        let mut world = World { home, held, rng, next: 100, salt: 0, story, flattened: false };
        let mut shard = world.home.recover().await.unwrap();
        shard.ensure_layer(L, BLOCKS).await.unwrap();
        for _ in 0..steps {
            shard = world.step(shard).await;
        }
        world.verify(&shard).await;
        at_rest(&shard).await;
        world.verify(&shard).await;
        shard.check_counts().await.unwrap();
        let nobodys = accounts_agree(&shard);
        let (live, visible) = (shard.mapped_blocks(), world.visible());
        assert!(live >= visible, "{live} live and {visible} visible");
        if !small && nobodys == 0 && !world.flattened {
            assert_eq!(live, visible, "each block that nobody sees was given back: {:?}", world.story);
        }
        world.home.kill(shard);
        let shard = world.home.recover().await.unwrap();
        world.verify(&shard).await;
        shard.check_counts().await.unwrap();
        accounts_agree(&shard);
    });
}

#[test]
fn layers_agree_with_a_tree_for_each_whatever_happens_to_them() {
    (0..40).for_each(|seed| run_story(seed, 150, false));
}

#[test]
fn layers_agree_with_a_tree_for_each_while_hardly_anything_of_them_is_in_memory() {
    (0..40).for_each(|seed| run_story(1000 + seed, 150, true));
}

#[test]
fn what_is_collected_while_layers_merge_is_moved_once_and_found() {
    let moved = Rc::new(Cell::new(0));
    for seed in 0..6 {
        let all_moved = moved.clone();
        sim::run(50 + seed, move |_| async move {
            let home = Home::new("2+1", 4);
            home.pool.slots(24);
            let shard = home.recover().await.unwrap();
            let blocks = 8000;
            shard.ensure_layer(L, blocks).await.unwrap();
            let (mut rng, mut held, mut salt) = (Rng::new(seed), BTreeMap::new(), 0);
            let mut snapshots: Vec<(LayerId, BTreeMap<u64, u64>)> = Vec::new();
            for round in 0..400u64 {
                let writes = (0..40).map(|_| {
                    salt += 1;
                    (rng.below(blocks), salt)
                });
                let writes: BTreeMap<u64, u64> = writes.collect();
                let all = writes.iter().map(|(block, salt)| write_to(&shard, L, *block, *salt));
                let all = peristyle_rt::join_all(all.collect::<Vec<_>>());
                let all = timeout(Duration::from_secs(60), all).await.expect("the pool has room");
                all.into_iter().for_each(|result| result.unwrap());
                held.extend(writes);
                if round % 13 == 0 {
                    let snapshot = LayerId(100 + round as u32);
                    shard.snapshot(&[(L, snapshot)]).await.unwrap();
                    snapshots.push((snapshot, held.clone()));
                    if snapshots.len() > 3 {
                        let (gone, _) = snapshots.remove(rng.below(3) as usize);
                        shard.drop_layer(gone).await.unwrap();
                    }
                }
            }
            at_rest(&shard).await;
            let counters = shard.stats_snapshot(peristyle_rt::now()).counters;
            let moved = counters.iter().find(|c| c.0 == "moved_blocks").expect("a counter").1;
            all_moved.set(all_moved.get() + moved);
            home.kill(shard);
            let shard = home.recover().await.unwrap();
            for (of, held) in snapshots.iter().chain([&(L, held)]) {
                for (block, salt) in held {
                    expect_of(&shard, *of, *block, *salt).await;
                }
            }
            shard.check_counts().await.unwrap();
            assert_eq!(accounts_agree(&shard), 0);
        });
    }
    assert!(moved.get() > 0, "collection was at work");
}
