//! Layers that change their size while they are used, and when their owner dies meanwhile.

use crate::pool::*;
use peristyle_rt::{Duration, sim};
use peristyle_shard::{ResizeError, ShardError, WriteClass};
use std::cell::Cell;
use std::rc::Rc;

/// Blocks of the layer that [`Home::start`] makes.
const BLOCKS: u64 = 4096;
const DISCARD: bool = true;
const KEEP: bool = false;

fn blocks(shard: &TestShard) -> u64 {
    shard.layers()[0].1
}

async fn zeros(shard: &TestShard, block: u64, count: usize) {
    assert!(read(shard, block, count).await.unwrap().iter().all(|b| *b == 0), "block {block}");
}

/// Appends of users take so long from now on.
fn slow(home: &Home, time: Duration) {
    home.pool.rule(move |a| match a.class {
        Some(WriteClass::User) => Do::Late(time),
        _ => Do::It,
    });
}

#[test]
fn a_layer_grows_and_a_restart_finds_it_grown() {
    sim::run(1, |_| async {
        let home = Home::new("2+1", 4);
        let shard = home.start().await;
        write(&shard, BLOCKS - 1, 1, 1).await.unwrap();
        assert_eq!(write(&shard, BLOCKS, 1, 2).await, Err(ShardError::OutOfRange));
        shard.resize_layer(L, 70_001, KEEP).await.unwrap();
        zeros(&shard, BLOCKS, 8).await;
        write(&shard, 70_000, 1, 3).await.unwrap();
        assert_eq!(write(&shard, 70_001, 1, 4).await, Err(ShardError::OutOfRange));
        home.kill(shard);
        let shard = home.recover().await.unwrap();
        assert_eq!(blocks(&shard), 70_001);
        expect(&shard, BLOCKS - 1, 1, 1).await;
        expect(&shard, 70_000, 1, 3).await;
        assert_eq!(shard.resize_layer(L, u64::MAX, KEEP).await, Err(ShardError::MapFull.into()));
        assert_eq!(shard.resize_layer(L, 70_001, KEEP).await, Ok(()), "it has that size");
    });
}

#[test]
fn a_smaller_end_before_the_last_data_is_refused_and_names_its_last_byte() {
    sim::run(2, |_| async {
        let home = Home::new("2+1", 4);
        let shard = home.start().await;
        write(&shard, 1000, 8, 1).await.unwrap();
        let refused = Err(ResizeError::DataBehind(1008 * 4096 - 1));
        assert_eq!(shard.resize_layer(L, 1000, KEEP).await, refused);
        assert_eq!(shard.resize_layer(L, 1007, KEEP).await, refused);
        expect(&shard, 1000, 8, 1).await;
        assert_eq!(shard.resize_layer(L, 1008, KEEP).await, Ok(()));
        assert_eq!(read(&shard, 1008, 1).await, Err(ShardError::OutOfRange));
        // What was zeroed is no data.
        shard.zero(L, 1004 * 4096, 4 * 4096).await.unwrap();
        assert_eq!(shard.resize_layer(L, 1004, KEEP).await, Ok(()));
        expect(&shard, 1000, 4, 1).await;
    });
}

#[test]
fn what_was_cut_off_never_comes_back_wherever_checkpoints_and_restarts_fall() {
    for story in 0..64u32 {
        sim::run(3, move |_| async move {
            let home = Home::new("2+1", 4);
            let mut shard = home.start().await;
            let mut step = 0;
            // After each step a checkpoint, a restart, or neither, as the bits say.
            let mut between = async |shard: TestShard| {
                step += 1;
                if story >> (step - 1) & 1 == 1 {
                    shard.checkpoint().await.unwrap();
                }
                if story >> (step + 2) & 1 == 0 {
                    return shard;
                }
                home.kill(shard);
                home.recover().await.unwrap()
            };
            shard.resize_layer(L, 200_000, KEEP).await.unwrap();
            for block in [100, 1000, 66_000, 140_000, 199_999] {
                write(&shard, block, 1, block).await.unwrap();
            }
            shard = between(shard).await;
            shard.resize_layer(L, 1000, DISCARD).await.unwrap();
            shard = between(shard).await;
            assert_eq!(blocks(&shard), 1000);
            shard.resize_layer(L, 200_000, KEEP).await.unwrap();
            shard = between(shard).await;
            expect(&shard, 100, 1, 100).await;
            for block in [1000, 66_000, 140_000, 199_999] {
                zeros(&shard, block, 1).await;
            }
            assert_eq!(shard.mapped_blocks(), 1);
            write(&shard, 140_000, 1, 5).await.unwrap();
            shard.checkpoint().await.unwrap();
            home.kill(shard);
            let shard = home.recover().await.unwrap();
            expect(&shard, 140_000, 1, 5).await;
            zeros(&shard, 66_000, 1).await;
            zeros(&shard, 140_001, 1).await;
            assert_eq!(shard.mapped_blocks(), 2);
        });
    }
}

#[test]
fn a_write_that_is_under_way_counts_and_one_that_comes_too_late_is_told() {
    sim::run(4, |_| async {
        let home = Home::new("2+1", 4);
        let shard = home.start().await;
        slow(&home, Duration::from_millis(2));
        let wrote = Rc::new(Cell::new(None));
        peristyle_rt::spawn({
            let (shard, wrote) = (shard.clone(), wrote.clone());
            async move { wrote.set(Some(write(&shard, 3000, 1, 1).await)) }
        });
        ms(1).await;
        assert_eq!(
            shard.resize_layer(L, 2000, KEEP).await,
            Err(ResizeError::DataBehind(3001 * 4096 - 1)),
            "its frame was on the way"
        );
        assert_eq!(wrote.get(), Some(Ok(())));
        // Now a layer that does become smaller, and commands that come while it does.
        let late = Rc::new(Cell::new(0));
        for block in [1999, 2500] {
            let (shard, late) = (shard.clone(), late.clone());
            peristyle_rt::spawn(async move {
                peristyle_rt::sleep(Duration::from_micros(500)).await;
                let whole = write(&shard, block, 2, 9).await;
                let part = shard.write(L, block * 4096 + 4608, view(&[7; 512]).await).await;
                let zeroed = shard.zero(L, (block + 1) * 4096, 4096).await;
                assert_eq!([whole, part, zeroed], [Err(ShardError::OutOfRange); 3]);
                late.set(late.get() + 1);
            });
        }
        shard.resize_layer(L, 2000, DISCARD).await.unwrap();
        ms(10).await;
        assert_eq!(late.get(), 2, "none was answered as if it had been done");
        write(&shard, 1999, 1, 3).await.unwrap();
        shard.resize_layer(L, BLOCKS, KEEP).await.unwrap();
        zeros(&shard, 2000, 1).await;
        zeros(&shard, 2500, 2).await;
        zeros(&shard, 3000, 1).await;
    });
}

#[test]
fn a_kill_at_any_moment_of_a_resize_leaves_the_old_size_with_its_data_or_the_new_one() {
    let (mut old, mut new) = (0, 0);
    for moment in 0..60u64 {
        let found = Rc::new(Cell::new(0));
        let told = found.clone();
        sim::run(5, move |_| async move {
            let home = Home::new("2+1", 4);
            let shard = home.start().await;
            write(&shard, 10, 1, 10).await.unwrap();
            write(&shard, 3000, 1, 30).await.unwrap();
            slow(&home, Duration::from_micros(500));
            peristyle_rt::spawn({
                let shard = shard.clone();
                async move { _ = shard.resize_layer(L, 1000, DISCARD).await }
            });
            peristyle_rt::sleep(Duration::from_micros(moment * 20)).await;
            home.kill(shard);
            let shard = home.recover().await.unwrap();
            expect(&shard, 10, 1, 10).await;
            match blocks(&shard) {
                BLOCKS => expect(&shard, 3000, 1, 30).await,
                1000 => {
                    assert_eq!(read(&shard, 3000, 1).await, Err(ShardError::OutOfRange));
                    shard.resize_layer(L, BLOCKS, KEEP).await.unwrap();
                    zeros(&shard, 3000, 1).await;
                }
                other => panic!("{other} blocks"),
            }
            told.set(shard.mapped_blocks());
        });
        *(if found.get() == 2 { &mut old } else { &mut new }) += 1;
    }
    assert!(old > 5 && new > 5, "{old} and {new}");
}

#[test]
fn a_full_pool_still_makes_a_layer_smaller() {
    sim::run(6, |_| async {
        let home = Home::new("2+1", 4);
        let shard = home.start().await;
        write(&shard, 3000, 1, 30).await.unwrap();
        home.pool.full(true);
        let mut block = 0;
        while write(&shard, block, 128, 1).await.is_ok() {
            block = (block + 128) % 2048;
        }
        assert_eq!(shard.resize_layer(L, 2048, DISCARD).await, Ok(()));
        home.kill(shard);
        assert_eq!(blocks(&home.recover().await.unwrap()), 2048);
    });
}
