//! Space comes back while the shard serves (DESIGN §4, §5.9, §11 "Collection and layers").

use crate::pool::*;
use peristyle_base::{ExtentId, LayerId, Seq};
use peristyle_rt::sim::{self, Rng};
use peristyle_rt::{Duration, timeout};
use peristyle_shard::{ColumnFault, ShardError, WriteClass};
use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

const BLOCK: u64 = 4096;

/// Writes half of the layer again and again: about so many wide extents of 2+1.
async fn fill_extents(shard: &TestShard, extents: u64, salt: u64) {
    for i in 0..extents * 8 {
        write(shard, i % 16 * 128, 128, salt + i % 16).await.unwrap();
    }
}

async fn expect_filled(shard: &TestShard, salt: u64) {
    for i in 0..16 {
        expect(shard, i * 128, 128, salt + i).await;
    }
}

/// Extents that hold frames.
fn used(home: &Home) -> BTreeSet<ExtentId> {
    home.pool.extents().into_iter().filter(|&e| home.pool.header(e, 0, 0).is_some()).collect()
}

/// Which of them were given back since this was asked last.
fn freed(home: &Home, of: &BTreeSet<ExtentId>) -> BTreeSet<ExtentId> {
    let log = home.pool.take_log();
    let freed = log.iter().filter(|(a, r)| a.what == What::Free && r.is_ok()).map(|(a, _)| a.extent);
    freed.filter(|e| of.contains(e)).collect()
}

fn counter(shard: &TestShard, name: &str) -> u64 {
    let snapshot = shard.stats_snapshot(peristyle_rt::now());
    snapshot.counters.iter().find(|c| c.0 == name).expect("a counter").1
}

/// A shard whose log is some extents long, all but a few of them dead, and before the next checkpoint's mark.
async fn with_dead_extents(home: &Home) -> TestShard {
    let shard = home.start().await;
    fill_extents(&shard, 12, 0).await;
    shard.checkpoint().await.unwrap();
    ms(500).await;
    fill_extents(&shard, 12, 100).await;
    ms(500).await;
    shard
}

#[test]
fn an_extent_is_freed_while_the_shard_serves_and_not_before_a_checkpoint_without_it_is_durable() {
    sim::run(1, |_| async {
        let home = Home::new("2+1", 4);
        let shard = with_dead_extents(&home).await;
        home.pool.take_log();
        let used = used(&home);
        ms(5000).await;
        assert_eq!(freed(&home, &used), BTreeSet::new(), "without a checkpoint");
        home.pool.rule(|a| match a.class {
            Some(WriteClass::Meta) => Do::Late(Duration::from_millis(15)),
            _ => Do::It,
        });
        let record = home.record();
        let (done, me) = (Rc::new(Cell::new(false)), shard.clone());
        let seen = done.clone();
        peristyle_rt::spawn(async move {
            me.checkpoint().await.unwrap();
            seen.set(true);
        });
        while home.record().checkpoint == record.checkpoint {
            assert_eq!(freed(&home, &used), BTreeSet::new(), "while the checkpoint is written");
            peristyle_rt::sleep(Duration::from_micros(100)).await;
        }
        ms(500).await;
        assert!(done.get());
        let freed = freed(&home, &used);
        let mark = home.record().checkpoint.unwrap().mark;
        assert!(freed.len() > 8 && freed.iter().all(|e| *e < mark), "{freed:?} before {mark}");
        assert!(freed.iter().all(|e| home.pool.columns_of(*e).is_empty()));
        assert!(counter(&shard, "freed_extents") as usize >= freed.len());
        shard.check_counts().await.unwrap();
        expect_filled(&shard, 100).await;
        home.kill(shard);
        let shard = home.recover().await.unwrap();
        expect_filled(&shard, 100).await;
        shard.check_counts().await.unwrap();
    });
}

#[test]
fn what_dies_while_a_checkpoint_is_written_waits_for_the_next_one() {
    sim::run(2, |_| async {
        let home = Home::new("2+1", 4);
        let shard = home.start().await;
        // All that is left of the first extent.
        write(&shard, 3000, 128, 7).await.unwrap();
        for salt in [0, 100] {
            fill_extents(&shard, 12, salt).await;
            shard.checkpoint().await.unwrap();
            ms(500).await;
        }
        let first = BTreeSet::from([ExtentId(1)]);
        home.pool.take_log();
        home.pool.rule(|a| match a.class {
            Some(WriteClass::Meta) => Do::Late(Duration::from_millis(15)),
            _ => Do::It,
        });
        let me = shard.clone();
        let checkpoint = async move { me.checkpoint().await.unwrap() };
        let mut checkpoint = std::pin::pin!(checkpoint);
        assert!(timeout(Duration::from_millis(5), checkpoint.as_mut()).await.is_none());
        shard.zero(L, 3000 * BLOCK, 128 * BLOCK).await.unwrap();
        checkpoint.await;
        ms(500).await;
        assert!(freed(&home, &first).is_empty(), "the checkpoint's map points at it");
        shard.checkpoint().await.unwrap();
        ms(500).await;
        assert_eq!(freed(&home, &first), first);
    });
}

#[test]
fn nothing_is_freed_while_it_is_read() {
    sim::run(3, |_| async {
        let home = Home::new("2+1", 4);
        let shard = home.start().await;
        fill_extents(&shard, 2, 0).await;
        home.pool.rule(|a| match a.what {
            What::Read if a.extent == ExtentId(1) && a.rows > 1 => Do::Late(Duration::from_secs(2)),
            What::Read if a.extent == ExtentId(1) => Do::Late(Duration::from_secs(1)),
            _ => Do::It,
        });
        let me = shard.clone();
        let read = async move { read(&me, 0, 128).await };
        let mut read = std::pin::pin!(read);
        assert!(timeout(Duration::from_millis(1), read.as_mut()).await.is_none());
        let used = used(&home);
        fill_extents(&shard, 2, 100).await;
        ms(100).await;
        home.pool.take_log();
        shard.checkpoint().await.unwrap();
        assert!(timeout(Duration::from_millis(300), read.as_mut()).await.is_none());
        assert!(!freed(&home, &used).contains(&ExtentId(1)), "somebody reads it");
        assert!(read.await.unwrap() == fill(128, 0), "what was there when it began");
        home.pool.no_rule();
        ms(2500).await;
        assert!(freed(&home, &used).contains(&ExtentId(1)));
    });
}

#[test]
fn an_extent_that_the_map_points_at_is_not_freed_whatever_its_count_says() {
    sim::run(4, |_| async {
        let home = Home::new("2+1", 4);
        let shard = home.start().await;
        fill_extents(&shard, 2, 0).await;
        ms(100).await;
        shard.miscount(ExtentId(1));
        assert!(shard.check_counts().await.is_err());
        shard.checkpoint().await.unwrap();
        ms(1000).await;
        assert_eq!(counter(&shard, "unused_kept"), 1);
        expect_filled(&shard, 0).await;
    });
}

#[test]
fn counts_follow_the_map_whatever_happens() {
    for seed in 0..8 {
        sim::run(100 + seed, move |_| async move {
            let home = Home::new(["2+1", "1+1", "2+2"][seed as usize % 3], 5);
            let mut shard = home.start().await;
            let (mut rng, mut other) = (Rng::new(seed), LayerId(2));
            for step in 0..120u64 {
                let (block, count) = (rng.below(3900), 1 + rng.below(128));
                match rng.below(12) {
                    0..6 => write(&shard, block, count as usize, step).await.unwrap(),
                    6 => shard.zero(L, block * BLOCK, count * BLOCK).await.unwrap(),
                    7 => shard.zero(L, 0, 3000 * BLOCK).await.unwrap(),
                    8 => {
                        shard.checkpoint().await.unwrap();
                        shard.forget_map();
                    }
                    9 => {
                        shard.ensure_layer(other, 1000).await.unwrap();
                        shard.write(other, 0, view(&fill(20, step)).await).await.unwrap();
                    }
                    10 => {
                        shard.drop_layer(other).await.unwrap();
                        other = LayerId(other.0 + 1); // no number is given twice
                    }
                    _ => {
                        home.kill(shard);
                        shard = home.recover().await.unwrap();
                    }
                }
                shard.check_counts().await.unwrap();
            }
        });
    }
}

#[test]
fn a_full_pool_gets_its_space_back_by_itself() {
    for what in 0..3u64 {
        sim::run(5, move |_| async move {
            let home = Home::new("2+1", 4);
            home.pool.slots(16);
            let shard = home.recover().await.unwrap();
            // Four times what the pool holds, so that each block is written once.
            shard.ensure_layer(L, 1 << 16).await.unwrap();
            let mut written = 0;
            while write(&shard, written * 128, 128, written).await.is_ok() {
                written += 1;
            }
            assert!(written > 60, "{written}");
            assert_eq!(write(&shard, 0, 128, 9).await, Err(ShardError::NoSpace));
            match what {
                0 => shard.drop_layer(L).await.unwrap(),
                1 => shard.zero(L, 0, BLOCK << 16).await.unwrap(),
                // All but some blocks of the first MiB: its leaf stays.
                _ => shard.zero(L, 16 * BLOCK, (BLOCK << 16) - 16 * BLOCK).await.unwrap(),
            }
            ms(6000).await;
            shard.ensure_layer(L, 1 << 16).await.unwrap();
            for i in 0..written / 2 {
                assert_eq!(write(&shard, 1000 + i * 128, 128, i).await, Ok(()), "{what}: {i} of {written}");
            }
            shard.check_counts().await.unwrap();
            home.kill(shard);
            let shard = home.recover().await.unwrap();
            for i in 0..written / 2 {
                expect(&shard, 1000 + i * 128, 128, i).await;
            }
        });
    }
}

#[test]
fn a_pool_that_is_low_on_room_has_checkpoints_taken_early() {
    sim::run(6, |_| async {
        let home = Home::new("2+1", 4);
        home.pool.slots(64);
        let shard = home.start().await;
        // More than twice its capacity over the same blocks, and less than a gigabyte of log altogether.
        let began = peristyle_rt::now();
        for i in 0..8 * 200 {
            while write(&shard, i % 16 * 128, 128, i % 16).await == Err(ShardError::NoSpace) {
                ms(100).await;
            }
            ms(4).await;
        }
        assert!(counter(&shard, "early_checkpoints") > 2);
        let seconds = peristyle_rt::now().since(began).as_secs();
        assert!(counter(&shard, "early_checkpoints") <= seconds + 1, "once a second at most");
        expect_filled(&shard, 0).await;
        shard.check_counts().await.unwrap();
    });
}

#[test]
fn a_device_that_is_away_keeps_a_leftover_that_the_next_start_recognises() {
    sim::run(7, |_| async {
        let home = Home::new("2+1", 4);
        let shard = with_dead_extents(&home).await;
        let before: BTreeSet<ExtentId> = home.pool.extents().into_iter().collect();
        home.pool.away(0, true);
        shard.checkpoint().await.unwrap();
        ms(1000).await;
        home.pool.away(0, false);
        let partly = |e: &ExtentId| (1..3).contains(&home.pool.columns_of(*e).len());
        let left: Vec<ExtentId> = before.iter().copied().filter(partly).collect();
        assert!(left.len() > 4, "{left:?}");
        home.kill(shard);
        let shard = home.recover().await.unwrap();
        ms(3000).await;
        assert!(left.iter().all(|e| home.pool.columns_of(*e).is_empty()), "{left:?}");
        expect_filled(&shard, 100).await;
    });
}

#[test]
fn what_is_dead_is_freed_though_a_device_has_never_told_the_owner_what_it_has() {
    sim::run(10, |_| async {
        for back_while_it_runs in [true, false] {
            let home = Home::new("2+1", 4);
            let shard = with_dead_extents(&home).await;
            let before: BTreeSet<ExtentId> = home.pool.extents().into_iter().collect();
            home.kill(shard);
            home.pool.away(0, true);
            let mut shard = home.recover().await.unwrap();
            ms(500).await;
            fill_extents(&shard, 12, 200).await;
            shard.checkpoint().await.unwrap();
            ms(2000).await;
            let only_there = |e: &&ExtentId| {
                let columns = home.pool.columns_of(**e);
                columns.len() == 1 && columns.keys().all(|c| home.pool.device_of(**e, *c) == 0)
            };
            let left: Vec<ExtentId> = before.iter().filter(only_there).copied().collect();
            assert!(left.len() > 4, "{left:?} of {before:?}");
            home.pool.away(0, false);
            if !back_while_it_runs {
                home.kill(shard);
                shard = home.recover().await.unwrap();
            }
            ms(8000).await;
            let still: Vec<_> = left.iter().filter(|e| !home.pool.columns_of(**e).is_empty()).collect();
            assert!(still.is_empty(), "{still:?} of {left:?}, {back_while_it_runs}");
            expect_filled(&shard, 200).await;
            home.kill(shard);
        }
    });
}

/// The highest number of users' frames in the log.
fn last_seq(home: &Home) -> Seq {
    let mut last = Seq(0);
    for extent in home.pool.extents() {
        let mut row = 0;
        while let Some((header, _)) = home.pool.header(extent, 0, row) {
            last = last.max(header.seq);
            row += 1 + header.blocks.div_ceil(header.scheme.k() as u16);
        }
    }
    last
}

#[test]
fn a_column_that_was_left_behind_unsealed_is_no_part_of_the_log_whatever_its_headers_say() {
    sim::run(11, |_| async {
        let home = Home::new("2+1", 5);
        let shard = with_dead_extents(&home).await;
        // One device keeps a column that never got its seal, of an extent that goes.
        let is_wide = |e: &ExtentId| home.pool.header(*e, 0, 0).is_some_and(|(h, _)| h.blocks > 2);
        let old = used(&home).into_iter().find(is_wide).unwrap();
        let there = home.pool.device_of(old, 0);
        let (keeper, other) = ((there + 1) % 5, (there + 2) % 5);
        home.pool.copy_column(old, 0, keeper, |_, sealed| *sealed = None);
        shard.checkpoint().await.unwrap();
        ms(2000).await;
        assert_eq!(home.pool.columns_of(old).len(), 1, "it is freed but for that");
        home.kill(shard);
        // Its last frame was dropped by an earlier takeover, and its number is the next one now.
        let (mut header, entries) = home.pool.header(old, 0, 0).unwrap();
        header.seq = last_seq(&home).next();
        home.pool.change_row(old, 0, 0, |block| header.encode(entries.iter(), block));
        // What a frame's other columns say cannot be known while a device is away that might have them.
        home.pool.away(other, true);
        let shard = home.recover().await.unwrap();
        expect_filled(&shard, 100).await;
        home.pool.away(other, false);
        ms(8000).await;
        assert!(home.pool.columns_of(old).is_empty());
    });
}

#[test]
fn an_extent_of_which_a_single_column_was_not_given_back_does_not_hold_back_what_can_be_freed() {
    sim::run(12, |_| async {
        let home = Home::new("2+1", 4);
        let shard = home.start().await;
        fill_extents(&shard, 2, 0).await;
        // A first frame that is written to some columns only; the extent is given back, but for a column with that frame's header.
        let given_up = Rc::new(Cell::new(None));
        let it = given_up.clone();
        home.pool.rule(move |a| match a.what {
            What::Append if (a.column, a.row) == (2, 0) && it.get().is_none() => {
                it.set(Some(a.extent));
                Do::Fail(ColumnFault::Device)
            }
            What::Free if a.column == 0 && it.get() == Some(a.extent) => Do::Fail(ColumnFault::Device),
            _ => Do::It,
        });
        fill_extents(&shard, 2, 0).await;
        ms(300).await;
        let old: ExtentId = given_up.get().unwrap();
        assert_eq!(home.pool.columns_of(old).len(), 1);
        assert!(home.pool.header(old, 0, 0).is_some());
        home.kill(shard);
        home.pool.no_rule();
        let shard = home.recover().await.unwrap();
        ms(500).await;
        for round in 1..4 {
            fill_extents(&shard, 12, round * 100).await;
            shard.checkpoint().await.unwrap();
            ms(500).await;
        }
        assert!(home.record().checkpoint.unwrap().mark > old, "it holds back the mark");
        assert!(home.pool.extents().len() < 24, "{:?}", home.pool.extents());
        expect_filled(&shard, 300).await;
    });
}

#[test]
fn what_is_left_of_an_extent_that_was_being_given_back_is_given_back_though_its_frames_count_as_committed() {
    sim::run(13, |_| async {
        let home = Home::new("2+1", 4);
        let shard = home.start().await;
        fill_extents(&shard, 3, 0).await;
        fill_extents(&shard, 3, 100).await;
        ms(500).await;
        shard.checkpoint().await.unwrap();
        home.kill(shard);
        // Of one that is dead, and not before the mark, a single column is left, without its seal.
        let mark = home.record().checkpoint.unwrap().mark;
        let is_sealed = |e: &ExtentId| home.pool.columns_of(*e).values().all(Option::is_some);
        let is_wide = |e: &ExtentId| home.pool.header(*e, 0, 0).is_some_and(|(h, _)| h.blocks > 2);
        let old = used(&home).into_iter().find(|e| *e > mark && is_sealed(e) && is_wide(e)).unwrap();
        let to = (home.pool.device_of(old, 0) + 1) % 4;
        home.pool.move_column(old, 0, to, |_, sealed| *sealed = None);
        [1, 2].into_iter().for_each(|column| home.pool.lose_column(old, column));
        let shard = home.recover().await.unwrap();
        ms(500).await;
        for round in 2..5 {
            fill_extents(&shard, 12, round * 100).await;
            shard.checkpoint().await.unwrap();
            ms(500).await;
        }
        assert!(home.record().checkpoint.unwrap().mark > old, "it holds back the mark");
        assert!(home.pool.columns_of(old).is_empty());
        expect_filled(&shard, 400).await;
    });
}

#[test]
fn columns_that_missed_their_seal_go_first() {
    sim::run(8, |_| async {
        let home = Home::new("2+1", 4);
        let shard = home.start().await;
        // Nothing of device 0 is ever sealed.
        home.pool.rule(|a| match a.what {
            What::Seal if a.device == 0 => Do::Fail(ColumnFault::Refused),
            _ => Do::It,
        });
        let mut unsealed = 0;
        for round in 0..3 {
            fill_extents(&shard, 12, round).await;
            let used = used(&home);
            home.pool.take_log();
            shard.checkpoint().await.unwrap();
            ms(2000).await;
            let mut order: BTreeMap<ExtentId, Vec<usize>> = BTreeMap::new();
            for (a, _) in home.pool.take_log().iter().filter(|(a, _)| a.what == What::Free) {
                order.entry(a.extent).or_default().push(a.device);
            }
            for devices in order.iter().filter(|o| used.contains(o.0) && o.1.contains(&0)).map(|o| o.1) {
                assert_eq!(devices[0], 0, "{order:?}");
                unsealed += 1;
            }
        }
        assert!(unsealed > 4, "{unsealed}");
        expect_filled(&shard, 2).await;
    });
}

#[test]
fn map_blocks_move_out_of_extents_that_hold_nothing_else() {
    sim::run(9, |_| async {
        let home = Home::new("2+1", 4);
        let shard = home.start().await;
        // A block whose leaf is written once, into the first extent, and not changed any more.
        write(&shard, 4000, 2, 7).await.unwrap();
        shard.zero(L, 4000 * BLOCK, 2 * BLOCK).await.unwrap();
        shard.checkpoint().await.unwrap();
        for round in 0..4 {
            fill_extents(&shard, 12, round).await;
            shard.checkpoint().await.unwrap();
            ms(500).await;
        }
        shard.checkpoint().await.unwrap();
        ms(500).await;
        assert!(home.pool.columns_of(ExtentId(1)).is_empty(), "its leaf lies elsewhere now");
        home.kill(shard);
        let shard = home.recover().await.unwrap();
        assert!(read(&shard, 4000, 2).await.unwrap() == vec![0; 2 * BLOCK as usize]);
        expect_filled(&shard, 3).await;
        shard.check_counts().await.unwrap();
    });
}

#[test]
fn blocks_of_zeros_need_no_space_unless_that_is_switched_off() {
    for detect in [true, false] {
        sim::run(10, move |_| async move {
            let mut home = Home::new("2+1", 4);
            home.config.detect_zeroes = detect;
            let shard = home.start().await;
            let mut mixed = fill(8, 1);
            mixed[BLOCK as usize..4 * BLOCK as usize].fill(0);
            mixed[7 * BLOCK as usize..].fill(0);
            // One byte makes it data.
            mixed[4 * BLOCK as usize..5 * BLOCK as usize].fill(0);
            mixed[5 * BLOCK as usize - 1] = 1;
            write(&shard, 0, 8, 2).await.unwrap();
            home.pool.take_log();
            shard.write(L, 0, view(&mixed).await).await.unwrap();
            let frames = home.pool.take_log().iter().filter(|(a, _)| a.what == What::Append).count();
            assert!(frames <= 3, "one frame, so that the command is atomic");
            assert_eq!(shard.mapped_blocks(), if detect { 4 } else { 8 });
            assert_eq!(counter(&shard, "zero_blocks"), if detect { 4 } else { 0 });
            shard.write(L, 100 * BLOCK, view(&vec![0; 128 * BLOCK as usize]).await).await.unwrap();
            assert_eq!(shard.mapped_blocks(), if detect { 4 } else { 136 });
            home.kill(shard);
            let shard = home.recover().await.unwrap();
            assert!(read(&shard, 0, 8).await.unwrap() == mixed);
            assert!(read(&shard, 100, 128).await.unwrap().iter().all(|&b| b == 0));
            shard.check_counts().await.unwrap();
        });
    }
}
