//! What checkpoints do for later starts, and what becomes of those that are cut short or fail.

use crate::pool::*;
use peristyle_base::{ExtentId, ShardId};
use peristyle_rt::{Duration, sim};
use peristyle_shard::{ColumnFault, ShardError, WriteClass};
use std::cell::RefCell;
use std::rc::Rc;

fn mark(home: &Home) -> ExtentId {
    home.record().checkpoint.expect("a checkpoint").mark
}

/// Fills about so many wide extents of 2+1.
async fn fill_extents(shard: &TestShard, extents: u64) {
    for i in 0..extents * 8 {
        write(shard, i % 16 * 128, 128, i).await.unwrap();
    }
}

#[test]
fn a_checkpoint_that_nobody_waits_for_any_more_loses_nothing() {
    sim::run(1, |_| async {
        let home = Home::new("2+1", 4);
        let shard = home.start().await;
        write(&shard, 0, 2, 1).await.unwrap();
        home.pool.rule(|a| match a.class {
            Some(WriteClass::Meta) => Do::Late(Duration::from_millis(5)),
            _ => Do::It,
        });
        // Given up at each of its stages in turn, while writes change what it has captured.
        for i in 0..8u64 {
            let given_up = peristyle_rt::timeout(Duration::from_millis(1 + 3 * i), shard.checkpoint()).await;
            assert!(given_up.is_none() || i > 3);
            write(&shard, 256 * (1 + i), 2, 2 + i).await.unwrap();
        }
        home.pool.no_rule();
        shard.checkpoint().await.unwrap();
        home.kill(shard);
        let shard = home.recover().await.unwrap();
        expect(&shard, 0, 2, 1).await;
        for i in 0..8u64 {
            expect(&shard, 256 * (1 + i), 2, 2 + i).await;
        }
    });
}

#[test]
fn a_checkpoint_that_failed_is_tried_again_soon() {
    sim::run(2, |_| async {
        let mut home = Home::new("2+1", 4);
        home.config.checkpoint_log_bytes = 4 << 20;
        let shard = home.start().await;
        // Each extent that its first frame is sent to fails, until none is left.
        home.pool.full_to_the_last(true);
        home.pool.rule(|a| match a.class {
            Some(WriteClass::Meta) => Do::Fail(ColumnFault::Device),
            _ => Do::It,
        });
        for i in 0..6u64 {
            write(&shard, i * 128, 128, i).await.unwrap();
        }
        ms(3000).await;
        assert!(home.record().checkpoint.is_none());
        assert_eq!(shard.checkpoint().await, Err(ShardError::NoSpace));
        home.pool.no_rule();
        home.pool.full_to_the_last(false);
        ms(31_000).await;
        assert!(home.record().checkpoint.is_some(), "without another write");
        home.kill(shard);
        let shard = home.recover().await.unwrap();
        for i in 0..6u64 {
            expect(&shard, i * 128, 128, i).await;
        }
    });
}

#[test]
fn the_mark_advances_beyond_extents_that_are_rarely_used() {
    sim::run(3, |_| async {
        let mut home = Home::new("2+1", 4);
        home.config.ready_extents = 1;
        let shard = home.start().await;
        home.pool.take_log();
        write(&shard, 4000, 1, 77).await.unwrap();
        let log = home.pool.take_log();
        let narrow = log.iter().rev().find(|(a, _)| a.what == What::Append).expect("a frame").0.extent;
        let mut marks = Vec::new();
        for _ in 0..5 {
            fill_extents(&shard, 10).await;
            shard.checkpoint().await.unwrap();
            ms(100).await;
            marks.push(mark(&home));
        }
        assert!(marks[1] > narrow, "closed by the first, left behind by the second: {narrow}, {marks:?}");
        assert!(marks[1..].windows(2).all(|two| two[0] < two[1]), "{marks:?}");
        // What is appended now goes to extents that the last mark covers.
        write(&shard, 4001, 1, 78).await.unwrap();
        home.kill(shard);
        let shard = home.recover().await.unwrap();
        let report = home.report.get();
        assert!(report.scanned < 30 && mark(&home) > ExtentId(50), "{report:?}");
        expect(&shard, 4000, 1, 77).await;
        expect(&shard, 4001, 1, 78).await;
    });
}

#[test]
fn of_sealed_extents_behind_the_mark_only_those_are_scanned_that_the_checkpoint_does_not_cover() {
    sim::run(3, |_| async {
        let home = Home::new("2+1", 4);
        let shard = home.start().await;
        // It stays open, and so the mark is before all that is filled meanwhile.
        write(&shard, 4000, 1, 77).await.unwrap();
        fill_extents(&shard, 8).await;
        shard.checkpoint().await.unwrap();
        let before = home.pool.extents();
        // Frames behind the checkpoint: in the open extents, which are sealed by then, and in new ones.
        fill_extents(&shard, 3).await;
        write(&shard, 4001, 1, 78).await.unwrap();
        ms(2000).await;
        let sealed = |e: &&ExtentId| home.pool.columns_of(**e).values().all(|rows| rows.is_some());
        let behind = before.iter().filter(|e| **e >= mark(&home)).filter(sealed).count();
        assert!(behind >= 8, "{behind} extents of before are sealed and behind the mark");
        home.kill(shard);
        let shard = home.recover().await.unwrap();
        let report = home.report.get();
        assert!((1..=6).contains(&report.scanned), "{report:?}");
        expect(&shard, 4000, 1, 77).await;
        expect(&shard, 4001, 1, 78).await;
        for j in 0..16u64 {
            expect(&shard, j * 128, 128, if j < 8 { 16 + j } else { j }).await;
        }
    });
}

#[test]
fn few_extents_behind_the_mark_are_kept_in_use() {
    sim::run(4, |_| async {
        let home = Home::new("2+1", 4);
        let shard = home.start().await;
        write(&shard, 0, 2, 1).await.unwrap();
        shard.checkpoint().await.unwrap(); // it takes an extent for checkpoints into use
        ms(100).await;
        let before = home.pool.extents();
        for i in 0..20u64 {
            write(&shard, i * 2, 1, i).await.unwrap();
            shard.checkpoint().await.unwrap();
            ms(100).await;
        }
        assert_eq!(
            home.pool.extents(),
            before,
            "checkpoints of a shard that writes little use up no extents"
        );
    });
}

#[test]
fn starts_do_not_eat_space() {
    sim::run(5, |_| async {
        let home = Home::new("2+1", 4);
        let shard = home.start().await;
        write(&shard, 0, 2, 1).await.unwrap();
        home.kill(shard);
        let (mut given_back, mut most, mut salt) = (0, 0, 1);
        for _ in 0..24 {
            let with_frames: Vec<ExtentId> =
                home.pool.extents().into_iter().filter(|&e| home.pool.header(e, 0, 0).is_some()).collect();
            let (store, freed) = (home.store.clone(), Rc::new(RefCell::new(Vec::new())));
            let seen = freed.clone();
            home.pool.rule(move |a| {
                if a.what == What::Free && a.column == 0 && with_frames.contains(&a.extent) {
                    seen.borrow_mut().push((a.extent, store.peek(ShardId(0)).unwrap().0));
                }
                Do::It
            });
            let shard = home.recover().await.unwrap();
            ms(3000).await;
            for (extent, record) in freed.take() {
                let mark = record.checkpoint.expect("nothing is freed before one").mark;
                assert!(extent < mark, "extent {extent} was freed, and replay began at {mark}");
                assert!(record.open_set.iter().all(|e| e.extent != extent));
                given_back += 1;
            }
            expect(&shard, 0, 2, salt).await;
            salt += 1;
            write(&shard, 0, 2, salt).await.unwrap();
            most = most.max(home.pool.extents().len());
            home.kill(shard);
        }
        assert!(given_back > 10 && most <= 16, "{given_back} given back, {most} held for two blocks");
        let shard = home.recover().await.unwrap();
        expect(&shard, 0, 2, salt).await;
    });
}

#[test]
fn what_holds_no_block_is_given_back_while_the_shard_serves_and_not_before_a_checkpoint() {
    sim::run(6, |_| async {
        let home = Home::new("2+1", 4);
        home.kill(home.start().await);
        let shard = home.recover().await.unwrap();
        ms(3000).await;
        let empty = |e: &ExtentId| {
            let all_sealed = home.pool.columns_of(*e).values().all(|rows| rows.is_some());
            all_sealed && home.pool.header(*e, 0, 0).is_some_and(|(h, _)| h.blocks == 0)
        };
        assert_eq!(home.pool.extents().iter().filter(|e| empty(e)).count(), 1, "of the first start");
        shard.checkpoint().await.unwrap();
        ms(100).await;
        assert_eq!(home.pool.extents().iter().filter(|e| empty(e)).count(), 0);
        home.kill(shard);
        let shard = home.recover().await.unwrap();
        write(&shard, 0, 2, 1).await.unwrap();
        expect(&shard, 0, 2, 1).await;
    });
}
