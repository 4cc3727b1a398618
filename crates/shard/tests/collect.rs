//! Collection: space comes back from extents that still hold something (DESIGN §4, §11 "Collection and layers").

use crate::pool::*;
use peristyle_base::ExtentId;
use peristyle_rt::sim::{self, Rng};
use peristyle_rt::{Duration, timeout};
use peristyle_shard::frame::FrameKind;
use peristyle_shard::{CollectionState, ColumnFault, Pace, Policy, ShardError, WriteClass};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};

const BLOCK: u64 = 4096;
/// Blocks of the layer that are written: four fifths of what a pool of 30 slots holds.
const BLOCKS: u64 = 120 * 160;

fn counter(shard: &TestShard, name: &str) -> u64 {
    let snapshot = shard.stats_snapshot(peristyle_rt::now());
    snapshot.counters.iter().find(|c| c.0 == name).expect("a counter").1
}

/// A small pool and what its one layer holds: the salt of each block.
struct World {
    home: Home,
    blocks: RefCell<BTreeMap<u64, u64>>,
    salt: Cell<u64>,
}

impl World {
    /// Of so many slots per device; 2+1 on four devices.
    fn new(slots: u32) -> World {
        let home = Home::new("2+1", 4);
        home.pool.slots(slots);
        World { home, blocks: RefCell::default(), salt: Cell::new(0) }
    }

    async fn start(&self, blocks: u64) -> TestShard {
        let shard = self.home.recover().await.unwrap();
        shard.ensure_layer(L, blocks).await.unwrap();
        shard
    }

    async fn write(&self, shard: &TestShard, block: u64, count: u64) -> Result<(), ShardError> {
        self.salt.set(self.salt.get() + 1);
        let salt = self.salt.get() << 8;
        let mut data = Vec::new();
        (0..count).for_each(|i| data.extend(fill(1, salt + i)));
        shard.write(L, block * BLOCK, view(&data).await).await?;
        self.blocks.borrow_mut().extend((0..count).map(|i| (block + i, salt + i)));
        Ok(())
    }

    /// Blocks here and there, in commands of their own that share frames.
    async fn scatter(&self, shard: &TestShard, blocks: impl Iterator<Item = u64>) {
        let blocks: BTreeSet<u64> = blocks.collect();
        let writes = blocks.into_iter().map(|block| async move {
            self.salt.set(self.salt.get() + 1);
            let salt = self.salt.get() << 8;
            shard.write(L, block * BLOCK, view(&fill(1, salt)).await).await.unwrap();
            self.blocks.borrow_mut().insert(block, salt);
        });
        peristyle_rt::join_all(writes).await;
    }

    async fn expect_all(&self, shard: &TestShard) {
        let blocks = self.blocks.borrow().clone();
        let blocks: Vec<(u64, u64)> = blocks.into_iter().collect();
        for run in blocks.chunk_by(|a, b| a.0 + 1 == b.0).flat_map(|run| run.chunks(128)) {
            let found = read(shard, run[0].0, run.len()).await.unwrap();
            for (i, (block, salt)) in run.iter().enumerate() {
                assert!(found[i * 4096..(i + 1) * 4096] == fill(1, *salt), "block {block}");
            }
        }
        shard.check_counts().await.unwrap();
    }
}

/// Fills a pool of 4 x 30 slots to four fifths and writes single blocks of it anew, so often that collection is at work.
async fn collecting(world: &World, rounds: u64) -> TestShard {
    let shard = world.start(1 << 15).await;
    for i in 0..BLOCKS / 120 {
        world.write(&shard, i * 120, 120).await.unwrap();
    }
    let mut rng = Rng::new(7);
    for _ in 0..rounds {
        world.scatter(&shard, (0..100).map(|_| rng.below(BLOCKS))).await;
    }
    shard
}

/// Writes single blocks anew until something is being moved.
async fn until_moved(world: &World, shard: &TestShard, rng: &mut Rng) {
    let before = counter(shard, "moved_blocks");
    for _ in 0..1000 {
        world.scatter(shard, (0..100).map(|_| rng.below(BLOCKS))).await;
        if counter(shard, "moved_blocks") > before {
            return;
        }
    }
    panic!("nothing was moved");
}

#[test]
fn a_pool_is_written_several_times_over_and_nothing_is_lost() {
    sim::run(1, |_| async {
        let world = World::new(30);
        let shard = collecting(&world, 500).await;
        assert!(counter(&shard, "victims") > 20 && counter(&shard, "moved_blocks") > 5000);
        world.expect_all(&shard).await;
        world.home.kill(shard);
        let shard = world.home.recover().await.unwrap();
        world.expect_all(&shard).await;
    });
}

#[test]
fn a_pool_with_hardly_anything_in_it_is_never_full_however_fast_it_is_written() {
    sim::run(4, |_| async {
        let world = World::new(12);
        let shard = world.start(1 << 10).await;
        let mut rng = Rng::new(9);
        // Five times the pool: each round is a frame for itself.
        for _ in 0..20_000 {
            let block = rng.below(256);
            world.scatter(&shard, block..block + 1).await;
        }
        assert!(counter(&shard, "freed_extents") > 50);
        world.expect_all(&shard).await;
    });
}

#[test]
fn a_block_that_is_overwritten_while_it_is_moved_keeps_the_newer_version() {
    sim::run(2, |_| async {
        let world = World::new(30);
        let shard = collecting(&world, 100).await;
        // What is moved takes long, so that whatever is written meanwhile comes before it.
        world.home.pool.rule(|a| match a.class {
            Some(WriteClass::Collection) => Do::Late(Duration::from_millis(15)),
            _ => Do::It,
        });
        let mut rng = Rng::new(8);
        for _ in 0..10 {
            until_moved(&world, &shard, &mut rng).await;
            for block in (0..BLOCKS).step_by(100) {
                world.scatter(&shard, block..block + 100).await;
            }
            shard.check_counts().await.unwrap();
        }
        world.expect_all(&shard).await;
    });
}

#[test]
fn a_restart_finds_what_was_moved_before_the_checkpoint_and_what_was_moved_after_it() {
    for seed in 0..3 {
        sim::run(10 + seed, move |_| async move {
            let world = World::new(30);
            let mut shard = collecting(&world, 100).await;
            let mut rng = Rng::new(seed);
            for _ in 0..4 {
                until_moved(&world, &shard, &mut rng).await;
                if rng.below(2) == 0 {
                    shard.checkpoint().await.unwrap();
                    until_moved(&world, &shard, &mut rng).await;
                }
                if rng.below(2) == 0 {
                    // In the middle of a frame: some of its columns never come. Those of one extent: with every move like
                    // that a pool has no room some day, and hosts wait.
                    let extent = Cell::new(None);
                    world.home.pool.rule(move |a| match a.class {
                        Some(WriteClass::Collection) if a.column != 1 => {
                            let first = extent.get().unwrap_or(a.extent);
                            extent.set(Some(first));
                            if a.extent == first { Do::Hang } else { Do::It }
                        }
                        _ => Do::It,
                    });
                    world.scatter(&shard, (0..100).map(|_| rng.below(BLOCKS))).await;
                }
                world.home.kill(shard);
                shard = world.home.recover().await.unwrap();
                world.expect_all(&shard).await;
            }
        });
    }
}

#[test]
fn extents_with_moved_blocks_do_not_hold_the_mark_back() {
    sim::run(3, |_| async {
        let world = World::new(30);
        let shard = collecting(&world, 100).await;
        let moved = |e: &ExtentId| {
            world.home.pool.header(*e, 0, 0).is_some_and(|(h, _)| h.kind == FrameKind::Relocation)
        };
        // Much is given back, so that collection ends and leaves its last extent half full.
        let end = BLOCKS * 3 / 4;
        shard.zero(L, 0, end * BLOCK).await.unwrap();
        world.blocks.borrow_mut().retain(|block, _| *block >= end);
        let held_back = || {
            let record = world.home.record();
            let mark = record.checkpoint.expect("one was taken").mark;
            record.open_set.iter().any(|e| moved(&e.extent) && e.extent < mark)
        };
        let mut rounds = 0;
        while rounds < 4 || !held_back() {
            for i in 0..40 {
                world.write(&shard, i * 120, 120).await.unwrap();
            }
            shard.checkpoint().await.unwrap();
            ms(500).await;
            rounds += 1;
            assert!(rounds < 40, "no mark is beyond an extent that takes moved blocks");
        }
        world.home.kill(shard);
        world.expect_all(&world.home.recover().await.unwrap()).await;
    });
}

#[test]
fn a_full_pool_refuses_writes_still_serves_and_recovers_when_every_other_block_is_given_back() {
    sim::run(4, |_| async {
        let world = World::new(20);
        let shard = world.start(1 << 16).await;
        let mut written = 0;
        while world.write(&shard, written * 128, 128).await.is_ok() {
            written += 1;
        }
        assert!(written > 60, "{written}");
        assert_eq!(world.write(&shard, 0, 128).await, Err(ShardError::NoSpace));
        world.expect_all(&shard).await;
        // No extent dies as a whole: what is left has to be moved.
        for block in (0..written * 128).step_by(2) {
            shard.zero(L, block * BLOCK, BLOCK).await.unwrap();
            world.blocks.borrow_mut().remove(&block);
        }
        ms(2000).await;
        for i in 0..written / 4 {
            let wrote = timeout(Duration::from_secs(20), world.write(&shard, (1 << 15) + i * 128, 128)).await;
            assert_eq!(wrote, Some(Ok(())), "{i} of {written}");
        }
        world.expect_all(&shard).await;
        world.home.kill(shard);
        world.expect_all(&world.home.recover().await.unwrap()).await;
    });
}

#[test]
fn narrow_extents_become_wide_ones() {
    sim::run(5, |_| async {
        let mut world = World::new(40);
        world.home = Home::new("4+2", 7);
        world.home.pool.slots(24);
        let shard = world.start(1 << 14).await;
        // A lone writer: each block is a frame, three times its size and a header. All of it stays alive.
        let mut block = 0;
        while counter(&shard, "moved_blocks") < 800 && block < 10_000 {
            world.write(&shard, block, 1).await.unwrap();
            block += 1;
        }
        assert!(counter(&shard, "narrow_frames") > 1000);
        assert!(counter(&shard, "moved_blocks") > 500, "{block} blocks");
        let wide = |e: &ExtentId| {
            world.home.pool.header(*e, 0, 0).is_some_and(|(h, _)| {
                h.kind == FrameKind::Relocation && h.scheme.to_string() == "4+2" && h.blocks > 60
            })
        };
        assert!(world.home.pool.extents().iter().any(wide));
        world.expect_all(&shard).await;
    });
}

#[test]
fn damage_in_a_victim_is_reconstructed_and_not_moved() {
    sim::run(6, |_| async {
        let world = World::new(30);
        let shard = collecting(&world, 50).await;
        for extent in world.home.pool.extents() {
            if world.home.pool.columns_of(extent).values().all(|rows| rows.is_some()) {
                (1..200).for_each(|row| world.home.pool.change_row(extent, 0, row, |block| block[9] ^= 1));
            }
        }
        let mut rng = Rng::new(9);
        for _ in 0..10 {
            until_moved(&world, &shard, &mut rng).await;
        }
        assert!(counter(&shard, "damaged_blocks") > 10);
        world.expect_all(&shard).await;
    });
}

#[test]
fn what_cannot_be_read_now_stays_where_it_is() {
    sim::run(7, |_| async {
        let world = World::new(30);
        let shard = collecting(&world, 50).await;
        // Two columns of three do not answer to whoever reads long runs of blocks.
        world.home.pool.rule(|a| match a.what {
            What::Read if a.column > 0 => Do::Fail(ColumnFault::Device),
            _ => Do::It,
        });
        let mut rng = Rng::new(10);
        for _ in 0..20 {
            let blocks: BTreeSet<u64> = (0..100).map(|_| rng.below(BLOCKS)).collect();
            for block in blocks {
                let _ = timeout(Duration::from_secs(1), world.write(&shard, block, 1)).await;
            }
        }
        world.home.pool.no_rule();
        ms(500).await;
        shard.check_counts().await.unwrap();
        world.expect_all(&shard).await;
    });
}

#[test]
fn every_policy_keeps_what_was_written() {
    for policy in [Policy::OneStream, Policy::Greedy] {
        sim::run(20, move |_| async move {
            let mut world = World::new(30);
            world.home.config.collection = policy;
            let shard = collecting(&world, 200).await;
            assert!(counter(&shard, "moved_blocks") > 1000);
            world.expect_all(&shard).await;
        });
    }
}

#[test]
fn collection_keeps_to_the_background_pace_while_there_is_room_and_not_when_there_is_none() {
    sim::run(21, |_| async {
        let mut world = World::new(30);
        // Less than what users write makes necessary.
        world.home.config.background = Pace::new(256 << 10);
        let shard = collecting(&world, 0).await;
        let figures = || shard.stats_snapshot(peristyle_rt::now()).collection;
        let (mut rng, mut states) = (Rng::new(7), BTreeSet::new());
        let (mut held, mut since) = (0, None);
        for _ in 0..500 {
            world.scatter(&shard, (0..100).map(|_| rng.below(BLOCKS))).await;
            let f = figures();
            states.insert(f.state);
            // As long as it is held back, what is moved is paid for: 2 + 1 takes 2.5 bytes for each.
            if f.state == CollectionState::HeldBack {
                let (blocks, at) = *since.get_or_insert((f.moved_blocks, peristyle_rt::now()));
                let paid = peristyle_rt::now().since(at).as_secs_f64() * f64::from(256 << 10) / 2.5 / 4096.0;
                assert!((f.moved_blocks - blocks) as f64 <= paid + 2.0 * 240.0, "{f:?} {paid}");
                held += 1;
            } else {
                since = None;
            }
        }
        assert!(held > 0 && states.contains(&CollectionState::Running), "{states:?}, {held} times held back");
        assert!(figures().victims > 20 && !states.contains(&CollectionState::Off));
        world.expect_all(&shard).await;
    });
}
