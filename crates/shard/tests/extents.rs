//! Extents from allocation to seal, and what becomes of them when columns fail (DESIGN §5, §11).

use crate::pool::*;
use peristyle_base::{COLUMN_ROWS, ExtentId, ShardId};
use peristyle_cluster::{ExtentState, Fault};
use peristyle_rt::{Duration, join_all, sim};
use peristyle_shard::frame::Header;
use peristyle_shard::{ColumnFault, Fate, ShardError, WriteClass};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

const FAILED: Do = Do::Fail(ColumnFault::Device);

type Task<'a> = std::pin::Pin<Box<dyn Future<Output = Result<(), ShardError>> + 'a>>;

/// The extent that took the last frame in the given number of columns.
fn last_extent(home: &Home, columns: usize) -> ExtentId {
    let log = home.pool.take_log();
    let of = |a: &&Asked| a.what == What::Append && a.column == columns - 1;
    log.iter().rev().map(|(a, _)| a).find(of).expect("a frame").extent
}

#[test]
fn a_frame_that_is_appended_anew_keeps_its_number_and_its_entries() {
    sim::run(1, |_| async {
        let home = Home::new("2+1", 5);
        let shard = home.start().await;
        write(&shard, 0, 2, 1).await.unwrap();
        let first = last_extent(&home, 3);
        home.pool.rule(move |a| match a.what {
            What::Append if a.extent == first && a.column == 1 => FAILED,
            What::Seal => Do::Hang,
            _ => Do::It,
        });
        write(&shard, 10, 2, 2).await.unwrap();
        let again = last_extent(&home, 3);
        assert_ne!(first, again);
        let (old, old_entries) = home.pool.header(first, 0, 2).unwrap();
        let (new, new_entries) = home.pool.header(again, 0, 0).unwrap();
        let kept = |h: Header| (h.kind, h.shard, h.epoch, h.seq, h.blocks, h.entries, h.cut);
        assert_eq!((kept(old), old_entries), (kept(new), new_entries));
        assert!(new.extent > old.extent, "of several copies under one epoch the highest extent's counts");
    });
}

#[test]
fn a_column_append_is_given_up_after_20_ms_or_ten_times_what_its_device_needs() {
    for (p99, limit) in [(0, 20), (1, 20), (7, 70)] {
        sim::run(2, move |_| async move {
            let home = Home::new("2+1", 6);
            let shard = home.start().await;
            home.pool.p99(Duration::from_millis(p99));
            let mut hung = false;
            home.pool.rule(move |a| match a.what {
                What::Append if a.column == 1 && !std::mem::replace(&mut hung, true) => Do::Hang,
                _ => Do::It,
            });
            let before = peristyle_rt::now();
            write(&shard, 0, 2, 1).await.unwrap();
            let took = peristyle_rt::now().since(before);
            let limit = Duration::from_millis(limit);
            assert!(took >= limit && took < limit + Duration::from_millis(10), "{took:?} of {limit:?}");
        });
    }
}

#[test]
fn a_device_is_abandoned_once_a_second_at_most() {
    sim::run(14, |_| async {
        // Two devices for two columns: whatever is opened, the one that takes nothing is part of it.
        let home = Home::new("1+1", 2);
        let shard = home.start().await;
        home.pool.rule(|a| match a.what {
            What::Append if a.device == 0 => Do::Hang,
            _ => Do::It,
        });
        let writer = shard.clone();
        peristyle_rt::spawn(async move {
            let _ = write(&writer, 0, 2, 1).await;
        });
        ms(5500).await;
        let snapshot = shard.stats_snapshot(peristyle_rt::now());
        let abandoned = snapshot.counters.iter().find(|c| c.0 == "abandoned_extents").unwrap().1;
        assert!((4..=7).contains(&abandoned), "{abandoned} in 5.5 s");
    });
}

#[test]
fn numbers_of_extents_are_never_given_twice() {
    sim::run(3, |_| async {
        let home = Home::new("1+1", 4);
        let given: Rc<RefCell<BTreeMap<ExtentId, usize>>> = Rc::default();
        for process in 0..3usize {
            let seen = given.clone();
            let refuses = Rc::new(Cell::new(false));
            let fails = refuses.clone();
            home.pool.rule(move |a| {
                if a.what == What::Allocate {
                    let owner = *seen.borrow_mut().entry(a.extent).or_insert(process);
                    assert_eq!(owner, process, "extent {} was given by process {owner}", a.extent);
                    if fails.get() && a.column == 1 {
                        return FAILED;
                    }
                }
                Do::It
            });
            let shard = home.start().await;
            // Hundreds of numbers are used up by allocations that fail, and no extent of them is ever listed.
            refuses.set(true);
            let writer = shard.clone();
            peristyle_rt::spawn(async move {
                for i in 0..20u64 {
                    let _ = write(&writer, i * 128, 128, i).await;
                }
            });
            ms(8000).await;
            assert!(given.borrow().values().filter(|p| **p == process).count() > 200);
            let listed: Vec<_> = home.record().open_set.iter().map(|e| e.extent).collect();
            home.kill(shard);
            // The devices that know of them are away at the next start, for ever.
            for extent in home.pool.extents().into_iter().filter(|e| !listed.contains(e)) {
                if home.pool.columns_of(extent).values().all(|sealed| sealed.is_none()) {
                    (0..2).for_each(|column| home.pool.lose_column(extent, column));
                }
            }
        }
    });
}

#[test]
fn an_extent_takes_frames_only_once_the_record_lists_it() {
    sim::run(4, |_| async {
        let home = Home::new("2+1", 5);
        let store = home.store.clone();
        home.pool.rule(move |a| {
            if a.what == What::Append {
                let record = store.peek(ShardId(0)).unwrap().0;
                let open = record.open_set.iter().find(|e| e.extent == a.extent);
                assert!(open.is_some_and(|e| e.epoch == record.epoch), "extent {}", a.extent);
            }
            Do::It
        });
        let shard = home.start().await;
        for i in 0..40u64 {
            write(&shard, i * 100, 1 + i as usize * 3, i).await.unwrap();
        }
    });
}

#[test]
fn an_extent_leaves_the_record_before_its_columns_are_given_back() {
    sim::run(5, |_| async {
        let home = Home::new("2+1", 5);
        let shard = home.start().await;
        let (store, freed) = (home.store.clone(), Rc::new(Cell::new(0)));
        let count = freed.clone();
        let mut failed = false;
        home.pool.rule(move |a| match a.what {
            What::Append if a.column == 1 && !failed => {
                failed = true;
                FAILED
            }
            What::Free => {
                let record = store.peek(ShardId(0)).unwrap().0;
                assert!(record.open_set.iter().all(|e| e.extent != a.extent), "extent {}", a.extent);
                count.set(count.get() + 1);
                Do::It
            }
            // New extents write the record as well: not before this one is given back.
            What::Allocate => Do::Late(Duration::from_millis(50)),
            _ => Do::It,
        });
        write(&shard, 0, 2, 1).await.unwrap();
        ms(2000).await;
        assert!(freed.get() >= 3, "nothing was committed in it: it is given back");
        expect(&shard, 0, 2, 1).await;
    });
}

#[test]
fn what_is_sealed_by_a_new_owner_has_the_checksums_that_its_data_must_have() {
    sim::run(6, |_| async {
        let home = Home::new("2+1", 4);
        let shard = home.start().await;
        for i in 0..10u64 {
            write(&shard, i * 10, 1 + i as usize, i).await.unwrap();
        }
        home.kill(shard);
        home.pool.take_log();
        let shard = home.recover().await.unwrap();
        ms(5000).await;
        let log = home.pool.take_log();
        let sealed: Vec<_> = log.iter().filter(|(a, r)| a.what == What::Seal && r.is_ok()).collect();
        assert!(sealed.len() >= 5);
        for (a, _) in sealed {
            let stated = home.pool.stated(a.extent, a.column);
            assert_eq!(
                stated.len(),
                a.rows as usize,
                "all of them: the column server may have restarted too"
            );
            assert!(stated.iter().all(|(stated, there)| stated == there), "{a:?}");
        }
        for i in 0..10u64 {
            expect(&shard, i * 10, 1 + i as usize, i).await;
        }
    });
}

#[test]
fn what_a_parity_column_happens_to_hold_is_not_blessed_by_a_seal() {
    sim::run(7, |_| async {
        let home = Home::new("2+1", 4);
        let shard = home.start().await;
        write(&shard, 0, 4, 1).await.unwrap();
        let extent = last_extent(&home, 3);
        write(&shard, 10, 1, 2).await.unwrap(); // its header says that the first is committed
        home.kill(shard);
        // A lost write: the parity row is not what it must be. The seal states what it must be.
        home.pool.change_row(extent, 2, 1, |block| block.fill(0));
        let _shard = home.recover().await.unwrap();
        ms(5000).await;
        let wrong: Vec<_> =
            home.pool.stated(extent, 2).into_iter().map(|(stated, there)| stated != there).collect();
        assert_eq!(wrong, [false, true, false]);
    });
}

/// Fills wide extents until the first is closed; says which that is.
async fn fill_extents(home: &Home, shard: &TestShard, writes: u64) -> ExtentId {
    home.pool.take_log();
    write(shard, 0, 128, 0).await.unwrap();
    let first = last_extent(home, 3);
    for i in 1..writes {
        write(shard, i * 128, 128, i).await.unwrap();
    }
    first
}

#[test]
fn a_column_that_cannot_be_sealed_is_left_to_a_rebuild_and_holds_nothing_up() {
    sim::run(8, |_| async {
        let home = Home::new("2+1", 5);
        let shard = home.start().await;
        let tries = Rc::new(Cell::new(0));
        let (seen, first) = (tries.clone(), Rc::new(Cell::new(None)));
        let of = first.clone();
        home.pool.rule(move |a| match a.what {
            What::Seal if a.column == 1 && *of.get().get_or_insert(a.extent) == a.extent => {
                of.set(Some(a.extent));
                seen.set(seen.get() + 1);
                Do::Fail(ColumnFault::Refused)
            }
            What::Fill => Do::Fail(ColumnFault::Full), // nowhere to rebuild it
            _ => Do::It,
        });
        fill_extents(&home, &shard, 20).await;
        ms(20_000).await;
        let first = first.get().expect("the first was closed");
        assert_eq!(tries.get(), 2, "once more with all checksums stated, and then no more");
        let columns = home.pool.columns_of(first);
        assert!(columns[&0].is_some() && columns[&1].is_none() && columns[&2].is_some());
        assert!(home.record().open_set.iter().all(|e| e.extent != first), "it does not stay open for it");
        for i in 0..20u64 {
            expect(&shard, i * 128, 128, i).await;
        }
        // A column without its seal still helps to read, because the result is verified.
        home.pool.rule(|a| match a.what {
            What::Read if a.column == 0 => FAILED,
            _ => Do::It,
        });
        expect(&shard, 0, 128, 0).await;
    });
}

#[test]
fn a_seal_that_a_device_missed_is_made_up_for_when_it_answers_again() {
    sim::run(9, |_| async {
        let home = Home::new("2+1", 5);
        let shard = home.start().await;
        let from = peristyle_rt::now();
        home.pool.rule(move |a| match a.what {
            What::Seal if a.column == 1 && peristyle_rt::now().since(from) < Duration::from_secs(6) => FAILED,
            _ => Do::It,
        });
        let first = fill_extents(&home, &shard, 20).await;
        ms(4000).await;
        let columns = home.pool.columns_of(first);
        assert!(columns[&0].is_some() && columns[&1].is_none(), "{columns:?}");
        ms(10_000).await;
        assert!(home.pool.columns_of(first)[&1].is_some());
    });
}

#[test]
fn readers_of_unsealed_rows_take_holes_from_the_header() {
    sim::run(10, |_| async {
        let home = Home::new("4+2", 6);
        let shard = home.start().await;
        // Three blocks: columns 0 to 2 of one row. Column 3 was not written; its slot holds what it held before.
        write(&shard, 0, 3, 1).await.unwrap();
        let extent = last_extent(&home, 6);
        home.pool.change_row(extent, 3, 1, |block| block.fill(0xAB));
        home.pool.rule(|a| match a.what {
            What::Read if [0, 1].contains(&a.column) => FAILED,
            What::Read if a.column == 3 => panic!("a hole is known without reading"),
            _ => Do::It,
        });
        expect(&shard, 0, 3, 1).await;
    });
}

#[test]
fn a_checkpoints_mark_counts_extents_that_are_being_allocated() {
    sim::run(11, |_| async {
        let mut home = Home::new("1+1", 3);
        home.config.ready_extents = 1;
        let shard = home.start().await;
        // Every extent is full and sealed, and the next takes its time.
        home.pool.rule(|a| match a.what {
            What::Allocate => Do::Late(Duration::from_millis(200)),
            _ => Do::It,
        });
        home.pool.take_log();
        let writer = shard.clone();
        peristyle_rt::spawn(async move {
            for i in 0..12u64 {
                write(&writer, i * 128, 128, i).await.unwrap();
            }
        });
        let all_sealed = || {
            let sealed = |e: ExtentId| home.pool.columns_of(e).values().all(|rows| rows.is_some());
            home.pool.extents().into_iter().all(sealed)
        };
        while !all_sealed() {
            ms(1).await;
        }
        let before = home.pool.extents();
        shard.checkpoint().await.unwrap();
        let new = home.pool.extents().into_iter().find(|e| !before.contains(e)).expect("it was allocated");
        let mark = home.record().checkpoint.unwrap().mark;
        assert!(mark <= new, "replay would begin at {mark} and miss {new}");
        ms(3000).await;
        home.kill(shard);
        let shard = home.recover().await.unwrap();
        for i in 0..12u64 {
            expect(&shard, i * 128, 128, i).await;
        }
    });
}

#[test]
fn checkpoints_do_not_stand_in_the_sequence_of_users_frames() {
    sim::run(12, |_| async {
        let home = Home::new("2+1", 4);
        let shard = home.start().await;
        for i in 0..20u64 {
            let before = shard.committed();
            let (checkpoint, written) = (shard.checkpoint(), write(&shard, i * 8, 2, i));
            let both: [Task; 2] = [Box::pin(checkpoint), Box::pin(written)];
            assert_eq!(join_all(both).await, [Ok(()), Ok(())]);
            // The pool has looked at each header: a checkpoint's has no number.
            assert_eq!(shard.committed(), before.next());
        }
        let log = home.pool.take_log();
        assert!(log.iter().any(|(a, _)| a.class == Some(WriteClass::Meta)));
    });
}

#[test]
fn a_full_pool_refuses_writes_and_serves_reads_unmaps_and_deletes() {
    sim::run(13, |_| async {
        let home = Home::new("2+1", 4);
        let shard = home.start().await;
        write(&shard, 0, 2, 1).await.unwrap();
        home.pool.full(true);
        let mut refused = 0;
        for i in 0..200u64 {
            match write(&shard, 100 + i * 16 % 3000, 128, i).await {
                Ok(()) => assert_eq!(refused, 0, "room came from nowhere"),
                Err(error) => {
                    assert_eq!(error, ShardError::NoSpace);
                    refused += 1;
                }
            }
        }
        assert!(refused > 100);
        expect(&shard, 0, 2, 1).await;
        // What is refused takes no place in the log, and so nothing of the slots that are kept back.
        home.pool.take_log();
        for i in 0..100u64 {
            assert_eq!(write(&shard, i, 1, i).await, Err(ShardError::NoSpace));
        }
        assert!(home.pool.take_log().iter().all(|(a, _)| a.what != What::Append));
        // Unmaps and checkpoints go on when the last row of users' extents is used up.
        let before = home.pool.extents().len();
        for i in 0..3 * u64::from(COLUMN_ROWS) {
            shard.zero(L, i % 4096 * 4096, 4096).await.unwrap();
        }
        assert!(home.pool.extents().len() > before, "the claim is too small");
        shard.zero(L, 0, 4096 * 4096).await.unwrap();
        shard.checkpoint().await.unwrap();
        shard.drop_layer(L).await.unwrap();
        home.pool.full(false);
        shard.ensure_layer(L, 4096).await.unwrap();
        ms(500).await;
        write(&shard, 0, 2, 3).await.unwrap();
        expect(&shard, 0, 2, 3).await;
    });
}

#[test]
fn while_the_control_store_is_away_writes_go_on_until_no_ready_extent_of_any_width_is_left() {
    sim::run(20, |_| async {
        let mut home = Home::new("2+1", 4);
        home.config.ready_extents = 3;
        let shard = home.start().await;
        write(&shard, 0, 1, 0).await.unwrap();
        ms(100).await; // the stock is full
        let in_stock =
            |home: &Home| home.record().open_set.iter().filter(|e| e.state == ExtentState::Ready).count();
        assert_eq!(in_stock(&home), 6, "three of each width");
        let before = home.record();
        (0..100_000).for_each(|_| home.store.inject(Fault::Unavailable));
        // Full frames, which go to wide extents as long as there are any.
        let mut written = 0;
        let write_on = |n: u64| write(&shard, n % 31 * 128, 128, n);
        while peristyle_rt::timeout(Duration::from_secs(1), write_on(written)).await.is_some() {
            written += 1;
            assert!(written < 1000, "there is an end to it");
        }
        let used: Vec<_> =
            before.open_set.iter().filter(|e| home.pool.header(e.extent, 0, 0).is_some()).collect();
        assert_eq!(used.len(), before.open_set.len(), "all of what the record lists has taken frames");
        assert_eq!(home.record(), before);
        // Reads do not need it, and neither does what was acknowledged.
        for n in written.saturating_sub(31)..written {
            expect(&shard, n % 31 * 128, 128, n).await;
        }
        home.store.clear_faults();
        write_on(written).await.unwrap();
        ms(1000).await;
        assert_eq!(in_stock(&home), 6, "there is a stock again");
        home.kill(shard);
        let shard = home.recover().await.unwrap();
        expect(&shard, written % 31 * 128, 128, written).await;
    });
}

#[test]
fn nothing_waits_for_devices_that_were_said_to_leave_and_then_are_gone() {
    sim::run(21, |_| async {
        let home = Home::new("2+1", 5);
        let shard = home.start().await;
        for i in 0..24u64 {
            write(&shard, i * 128, 128, i).await.unwrap();
        }
        home.pool.fate(4, Fate::Leaving);
        ms(1000).await;
        let of_record = |home: &Home| {
            let record = home.record();
            let places = record.open_set.iter().flat_map(|e| e.columns.to_vec());
            places.filter(|p| home.pool.index_of(p.device) == Some(4)).count()
        };
        assert_eq!(of_record(&home), 0, "what takes frames is elsewhere");
        let used = home.pool.used()[4];
        assert!(used > 0, "and what the device has stays");
        // It is gone in the middle of writes, and none of them has to be appended anew.
        home.pool.take_log();
        home.pool.fate(4, Fate::Away);
        for i in 0..24u64 {
            write(&shard, i * 128, 128, 100 + i).await.unwrap();
        }
        let failed: Vec<_> = home.pool.take_log().into_iter().filter(|(_, result)| result.is_err()).collect();
        assert!(failed.is_empty(), "{failed:?}");
        for i in 0..24u64 {
            expect(&shard, i * 128, 128, 100 + i).await;
        }
    });
}
