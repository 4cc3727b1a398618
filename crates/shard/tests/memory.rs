//! The map in bounded memory: what is not there is read back, and a start reads as much as the changes are, not as the
//! volumes hold.

use crate::pool::*;
use peristyle_base::{BLOCK_BYTES, LayerId};
use peristyle_rt::sim::{self, Rng};
use peristyle_shard::map::Limits;
use std::collections::BTreeMap;

const BLOCK: u64 = BLOCK_BYTES as u64;
/// Leaves of the volumes here: far more than the least memory holds.
const LEAVES: u64 = 16 * 16;
/// A volume of more pages than that.
const BLOCKS: u64 = 12 * 65_536;

fn reads(home: &Home) -> usize {
    home.pool.take_log().iter().filter(|(asked, _)| asked.what == What::Read).count()
}

/// A volume with data in each of its leaves, written by checkpoints.
async fn filled(home: &Home) -> TestShard {
    let shard = home.recover().await.unwrap();
    shard.ensure_layer(L, LEAVES * 256).await.unwrap();
    for leaf in 0..LEAVES {
        write(&shard, leaf * 256, 128, leaf).await.unwrap();
        write(&shard, leaf * 256 + 128, 1, leaf).await.unwrap();
    }
    shard.checkpoint().await.unwrap();
    shard
}

#[test]
fn with_a_sixteenth_of_the_map_in_memory_a_read_costs_one_more_device_read_at_most() {
    sim::run(1, |_| async {
        let mut home = Home::new("2+1", 4);
        home.config.map_cache_bytes = LEAVES * 4096 / 16;
        let limits = Limits::of(home.config.map_cache_bytes);
        assert!(limits.leaves <= LEAVES as usize / 16, "{limits:?}");
        let shard = filled(&home).await;
        let mut rng = Rng::new(1);
        for _ in 0..10 * LEAVES {
            let block = rng.below(LEAVES) * 256 + rng.below(128);
            reads(&home);
            shard.read(L, block * BLOCK, BLOCK).await.unwrap();
            let cost = reads(&home);
            assert!((1..=2).contains(&cost), "{cost} device reads for block {block}");
        }
        shard.check_counts().await.unwrap();
    });
}

#[test]
fn everything_is_as_it_was_whatever_of_the_map_is_in_memory() {
    for seed in 0..6u64 {
        sim::run(seed, move |_| async move {
            let mut home = Home::new(["2+1", "1+1", "2+2"][seed as usize % 3], 5);
            home.config.map_cache_bytes = 0; // the least there is
            let mut shard = home.recover().await.unwrap();
            shard.ensure_layer(L, BLOCKS).await.unwrap();
            let (mut rng, mut model) = (Rng::new(seed), BTreeMap::new());
            for step in 0..400u64 {
                let block = rng.below(BLOCKS - 70_000);
                match rng.below(40) {
                    0..32 => {
                        let count = 1 + rng.below(24);
                        write(&shard, block, count as usize, step).await.unwrap();
                        (block..block + count).for_each(|b| _ = model.insert(b, (step, b - block)));
                    }
                    32..35 => {
                        let count = [1, 300, 256, 70_000][rng.below(4) as usize];
                        let block = if rng.below(2) == 0 { block / 256 * 256 } else { block };
                        shard.zero(L, block * BLOCK, count * BLOCK).await.unwrap();
                        model.retain(|b, _| !(block..block + count).contains(b));
                    }
                    35 => shard.checkpoint().await.unwrap(),
                    36 => {
                        home.kill(shard);
                        shard = home.recover().await.unwrap();
                    }
                    37 => {
                        let other = LayerId(2 + step as u32);
                        shard.ensure_layer(other, 70_000).await.unwrap();
                        shard.write(other, 300 * BLOCK, view(&fill(20, step)).await).await.unwrap();
                        shard.drop_layer(other).await.unwrap();
                    }
                    _ => {
                        let Some((&b, &(step, i))) = model.range(block..).next() else { continue };
                        expect_block(&shard, b, step, i).await;
                    }
                }
            }
            for (&b, &(step, i)) in &model {
                expect_block(&shard, b, step, i).await;
            }
            shard.check_counts().await.unwrap();
            let mapped: u64 = model.len() as u64;
            assert_eq!(counted(&shard).await, mapped);
        });
    }
}

/// Blocks with data, once every leaf has been looked at.
async fn counted(shard: &TestShard) -> u64 {
    let mut data = 0;
    let mut at = 0;
    while at < BLOCKS {
        for run in shard.allocation(L, at * BLOCK, (BLOCKS - at) * BLOCK, 64).await.unwrap() {
            data += if run.data { run.blocks } else { 0 };
            at += run.blocks;
        }
    }
    assert_eq!(shard.mapped_blocks(), data, "nothing else counts as live");
    data
}

async fn expect_block(shard: &TestShard, block: u64, step: u64, i: u64) {
    let read = shard.read(L, block * BLOCK, BLOCK).await.unwrap();
    let expected = &fill(i as usize + 1, step)[i as usize * BLOCK_BYTES..];
    assert!(read.pieces()[0][..] == *expected, "block {block} of step {step}");
}

#[test]
fn a_start_reads_no_more_however_much_the_volumes_hold() {
    sim::run(3, |_| async {
        let mut costs = Vec::new();
        for leaves in [8, 128] {
            let home = Home::new("2+1", 4);
            let shard = home.recover().await.unwrap();
            shard.ensure_layer(L, LEAVES * 256).await.unwrap();
            for leaf in 0..leaves {
                write(&shard, leaf * 256, 128, leaf).await.unwrap();
                write(&shard, leaf * 256 + 128, 112, leaf).await.unwrap();
            }
            // The second one's mark is behind extents that the first one has had replaced.
            for _ in 0..2 {
                shard.checkpoint().await.unwrap();
                write(&shard, 0, 1, 1).await.unwrap();
                ms(2000).await;
            }
            // What replay has to look at is the same.
            write(&shard, 0, 1, 1).await.unwrap();
            home.kill(shard);
            reads(&home);
            let shard = home.recover().await.unwrap();
            costs.push(reads(&home));
            expect(&shard, 0, 1, 1).await;
        }
        // A hundred leaves more, and none of them is read.
        assert!(costs[1] <= costs[0] + 8, "{costs:?}");
    });
}

#[test]
fn too_many_changes_have_a_checkpoint_taken_and_writes_wait_for_it() {
    sim::run(4, |_| async {
        let mut home = Home::new("2+1", 4);
        home.config.map_cache_bytes = 0;
        let limits = Limits::of(0);
        let shard = home.recover().await.unwrap();
        shard.ensure_layer(L, 128 * 256).await.unwrap();
        // Spread over eight times as many leaves as are in memory, and more than may be listed at once.
        let place = |i: u64| i * 7919 % (128 * 32) * 8;
        let writes = limits.changes as u64 / 8 + 1000;
        for i in 0..writes {
            write(&shard, place(i), 8, i).await.unwrap();
        }
        let counters = shard.stats_snapshot(peristyle_rt::now()).counters;
        let checkpoints = counters.iter().find(|c| c.0 == "checkpoints").unwrap().1;
        assert!(checkpoints >= 1, "{checkpoints}");
        home.kill(shard);
        let shard = home.recover().await.unwrap();
        for i in (0..writes).step_by(37) {
            expect(&shard, place(i), 8, i).await;
        }
        shard.check_counts().await.unwrap();
    });
}
