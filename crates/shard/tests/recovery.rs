//! What a takeover decides, rule by rule (DESIGN §11, "Recovery"): the pool lets each single request be lost.

use crate::pool::*;
use peristyle_base::ExtentId;
use peristyle_cluster::Fault;
use peristyle_rt::sim;
use peristyle_shard::frame::{Entry, FrameKind};
use peristyle_shard::{ColumnFault, RecoverError, ShardError};
use std::cell::Cell;
use std::rc::Rc;

const FAILED: Do = Do::Fail(ColumnFault::Device);

/// A write whose answer nobody waits for.
fn begin(shard: &TestShard, block: u64, blocks: usize, salt: u64) {
    let shard = shard.clone();
    peristyle_rt::spawn(async move {
        let _ = write(&shard, block, blocks, salt).await;
    });
}

async fn is_zero(shard: &TestShard, block: u64, blocks: usize) -> bool {
    read(shard, block, blocks).await.unwrap().iter().all(|&b| b == 0)
}

/// The extent of the last append to a column with data.
fn last_wide(home: &Home) -> ExtentId {
    let log = home.pool.take_log();
    log.iter().rev().find(|(a, _)| a.what == What::Append && a.column == 2).expect("a wide frame").0.extent
}

#[test]
fn a_tail_frame_is_kept_when_it_can_be_decoded() {
    sim::run(1, |_| async {
        let home = Home::new("2+1", 4);
        let shard = home.start().await;
        // All columns but one have it, and no one was told.
        home.pool.rule(|a| match a.what {
            What::Append if a.column == 1 => Do::Hang,
            _ => Do::It,
        });
        begin(&shard, 0, 2, 7);
        ms(5).await;
        home.kill(shard);
        let shard = home.recover().await.unwrap();
        expect(&shard, 0, 2, 7).await;
        // It was appended anew before anything was read: now it survives the loss of any column.
        home.kill(shard);
        home.pool.away(0, true);
        expect(&home.recover().await.unwrap(), 0, 2, 7).await;
    });
}

#[test]
fn a_tail_frame_is_dropped_when_a_column_answers_that_it_does_not_have_its_piece() {
    sim::run(2, |_| async {
        let home = Home::new("2+1", 4);
        let shard = home.start().await;
        write(&shard, 0, 2, 1).await.unwrap();
        home.pool.rule(|a| match a.what {
            What::Append if a.column != 0 => Do::Hang,
            _ => Do::It,
        });
        begin(&shard, 0, 2, 2);
        begin(&shard, 10, 2, 3);
        ms(5).await;
        home.kill(shard);
        let shard = home.recover().await.unwrap();
        expect(&shard, 0, 2, 1).await;
        assert!(is_zero(&shard, 10, 2).await);
    });
}

#[test]
fn a_tail_frame_whose_columns_are_away_is_waited_for() {
    sim::run(3, |_| async {
        let home = Home::new("2+1", 4);
        let shard = home.start().await;
        home.pool.rule(|a| match a.what {
            What::Append if a.column == 1 => Do::Hang,
            _ => Do::It,
        });
        home.pool.take_log();
        begin(&shard, 0, 2, 2);
        ms(5).await;
        let parity = home.pool.take_log().into_iter().find(|(a, _)| a.what == What::Append && a.column == 2);
        let (parity, extent) = parity.map(|(a, _)| (a.device, a.extent)).unwrap();
        home.kill(shard);
        // Column 1 never got it, and parity, which has it, is away: with it the frame is kept, so it cannot be
        // dropped without it.
        home.pool.away(parity, true);
        home.pool.rule(move |a| match a.what {
            What::Read if a.column == 1 && a.extent == extent => FAILED,
            _ => Do::It,
        });
        assert!(matches!(home.recover().await.err(), Some(RecoverError::TailUndecided { .. })));
        home.pool.away(parity, false);
        expect(&home.recover().await.unwrap(), 0, 2, 2).await;
    });
}

#[test]
fn a_column_that_a_frame_did_not_have_to_write_proves_nothing() {
    sim::run(4, |_| async {
        let home = Home::new("4+2", 6);
        let shard = home.start().await;
        // Three blocks in one row of four columns: column 3 stays empty. It is in doubt what became of column 1.
        home.pool.rule(|a| match a.what {
            What::Append if a.column == 1 => Do::Hang,
            _ => Do::It,
        });
        begin(&shard, 0, 3, 5);
        ms(5).await;
        home.kill(shard);
        home.pool.rule(|a| match a.what {
            What::Read if [0, 1].contains(&a.column) => FAILED,
            _ => Do::It,
        });
        let shard = home.recover().await.unwrap();
        home.pool.no_rule();
        expect(&shard, 0, 3, 5).await;
    });
}

#[test]
fn a_copy_in_an_extent_that_was_half_given_back_holds_nothing_up() {
    sim::run(5, |_| async {
        let home = Home::new("2+1", 5);
        let shard = home.start().await;
        // The first extent fails at once and is given back, but for its column 0. The second gets the header alone.
        let first = Rc::new(Cell::new(None));
        let seen = first.clone();
        home.pool.rule(move |a| match a.what {
            What::Append if a.column == 1 && seen.get().is_none() => {
                seen.set(Some(a.extent));
                FAILED
            }
            What::Append if seen.get().is_some_and(|e| e != a.extent) && a.column != 0 => Do::Hang,
            What::Free if a.column == 0 => Do::Hang,
            _ => Do::It,
        });
        begin(&shard, 0, 2, 2);
        ms(10).await;
        let freed = first.get().expect("it failed");
        assert_eq!(home.pool.columns_of(freed).into_keys().collect::<Vec<_>>(), [0]);
        assert!(home.pool.header(freed, 0, 0).is_some(), "what is left of it is a frame's header");
        home.kill(shard);
        let shard = home.recover().await.unwrap();
        assert!(is_zero(&shard, 0, 2).await);
        write(&shard, 0, 2, 3).await.unwrap();
        expect(&shard, 0, 2, 3).await;
    });
}

#[test]
fn an_abandoned_copy_is_cut_off_where_it_was_abandoned() {
    sim::run(6, |_| async {
        let home = Home::new("2+1", 5);
        let shard = home.start().await;
        write(&shard, 0, 2, 1).await.unwrap();
        let first = last_wide(&home);
        home.pool.rule(move |a| match a.what {
            What::Append if a.extent == first && a.column == 1 => FAILED,
            What::Seal => Do::Hang,
            _ => Do::It,
        });
        write(&shard, 10, 2, 2).await.unwrap();
        write(&shard, 20, 1, 3).await.unwrap(); // its header says that the frames before are committed
        assert!(home.pool.header(first, 0, 2).is_some(), "its header is there in part");
        home.kill(shard);
        let shard = home.recover().await.unwrap();
        ms(5000).await;
        assert_eq!(home.pool.columns_of(first), [(0, Some(2)), (1, Some(2)), (2, Some(2))].into());
        expect(&shard, 0, 2, 1).await;
        expect(&shard, 10, 2, 2).await;
    });
}

#[test]
fn a_column_that_comes_back_is_sealed_at_the_cuts_rows() {
    sim::run(7, |_| async {
        let home = Home::new("2+1", 5);
        let shard = home.start().await;
        write(&shard, 0, 2, 1).await.unwrap();
        let first = last_wide(&home);
        // The second frame reaches parity alone; then parity is away while the shard is taken over.
        home.pool.rule(move |a| match a.what {
            What::Append if a.extent == first && a.column != 2 => Do::Hang,
            _ => Do::It,
        });
        begin(&shard, 10, 2, 2);
        ms(5).await;
        let parity = home.pool.take_log().into_iter().find(|(a, _)| a.what == What::Append).unwrap().0;
        assert_eq!((parity.column, parity.row), (2, 2));
        home.kill(shard);
        home.pool.away(parity.device, true);
        let shard = home.recover().await.unwrap();
        assert!(is_zero(&shard, 10, 2).await);
        write(&shard, 20, 2, 3).await.unwrap();
        ms(5000).await;
        assert_eq!(home.pool.columns_of(first), [(0, Some(2)), (1, Some(2)), (2, None)].into());
        home.kill(shard);
        home.pool.away(parity.device, false);
        let shard = home.recover().await.unwrap();
        ms(5000).await;
        assert_eq!(home.pool.columns_of(first), [(0, Some(2)), (1, Some(2)), (2, Some(2))].into());
        // What it had beyond the cut is void, whatever it was.
        assert!(is_zero(&shard, 10, 2).await);
        expect(&shard, 0, 2, 1).await;
        expect(&shard, 20, 2, 3).await;
    });
}

#[test]
fn a_committed_frame_that_is_not_found_stops_the_takeover() {
    sim::run(8, |_| async {
        let home = Home::new("2+1", 4);
        let shard = home.start().await;
        write(&shard, 0, 2, 1).await.unwrap();
        let lost = last_wide(&home);
        // This one lies elsewhere (narrow) and tells in its header that the first is committed.
        write(&shard, 9, 1, 2).await.unwrap();
        home.kill(shard);
        for column in 0..3 {
            home.pool.change_row(lost, column, 0, |block| block.fill(0));
        }
        let found = home.recover().await.err();
        assert!(
            matches!(found, Some(RecoverError::LogIncomplete { missing, committed }) if missing <= committed),
            "{found:?}"
        );
    });
}

#[test]
fn a_header_that_cannot_be_read_is_not_the_end_of_the_log() {
    sim::run(9, |_| async {
        let home = Home::new("2+1", 4);
        let shard = home.start().await;
        write(&shard, 0, 2, 1).await.unwrap();
        let extent = last_wide(&home);
        home.kill(shard);
        // Both copies of the header: a read error on one, damage in the other. One answers: it is readable nowhere.
        home.pool.rule(move |a| match a.what {
            What::Read if a.extent == extent && a.row == 0 => FAILED,
            _ => Do::It,
        });
        let found = home.recover().await.err();
        assert_eq!(found, Some(RecoverError::HeadersUnreadable { extent, row: 0 }));
        // Damage to one copy is no reason to wait: the other serves.
        home.pool.no_rule();
        home.pool.change_row(extent, 0, 0, |block| block[100] ^= 1);
        expect(&home.recover().await.unwrap(), 0, 2, 1).await;
    });
}

#[test]
fn no_frame_of_an_extent_is_served_unless_a_header_column_was_fenced() {
    sim::run(10, |_| async {
        let home = Home::new("2+1", 4);
        let shard = home.start().await;
        write(&shard, 0, 2, 1).await.unwrap();
        let extent = last_wide(&home);
        home.kill(shard);
        home.pool.rule(move |a| match a.what {
            What::Fence if a.extent == extent && a.column != 1 => FAILED,
            _ => Do::It,
        });
        assert_eq!(home.recover().await.err(), Some(RecoverError::ExtentAway { extent }));
        home.pool.no_rule();
        expect(&home.recover().await.unwrap(), 0, 2, 1).await;
    });
}

/// A checkpoint that was cut short: its frames are the last of an open extent, and the record does not know it.
async fn with_half_a_checkpoint(home: &Home) -> (ExtentId, u16) {
    let shard = home.start().await;
    write(&shard, 0, 2, 1).await.unwrap();
    (0..1000).for_each(|_| home.store.inject(Fault::Unavailable));
    let taker = shard.clone();
    peristyle_rt::spawn(async move {
        let _ = taker.checkpoint().await;
    });
    ms(20).await;
    home.kill(shard);
    home.store.clear_faults();
    assert!(home.record().checkpoint.is_none());
    let is_meta = |e: &ExtentId| home.pool.header(*e, 0, 0).is_some_and(|(h, _)| h.kind == FrameKind::Meta);
    let extent = home.pool.extents().into_iter().find(is_meta).expect("frames of a checkpoint");
    let last = (0..512).rev().find(|&row| home.pool.header(extent, 0, row).is_some()).unwrap();
    assert!(last > 2, "several of them");
    (extent, last)
}

#[test]
fn a_checkpoints_frame_that_cannot_be_read_is_waited_for_and_not_cut_off() {
    sim::run(11, |_| async {
        let home = Home::new("2+1", 4);
        let (extent, last) = with_half_a_checkpoint(&home).await;
        home.pool.rule(move |a| match a.what {
            What::Read if a.extent == extent && (a.row..a.row + a.rows).contains(&(last + 1)) => FAILED,
            _ => Do::It,
        });
        let found = home.recover().await.err();
        assert_eq!(found, Some(RecoverError::HeadersUnreadable { extent, row: last }));
        home.pool.no_rule();
        let shard = home.recover().await.unwrap();
        ms(5000).await;
        assert!(home.pool.columns_of(extent).values().all(|rows| *rows == Some(last + 2)));
        expect(&shard, 0, 2, 1).await;
    });
}

#[test]
fn a_checkpoints_frame_that_was_never_complete_is_cut_off() {
    sim::run(12, |_| async {
        let home = Home::new("2+1", 4);
        let (extent, last) = with_half_a_checkpoint(&home).await;
        for column in [0, 2] {
            home.pool.change_row(extent, column, last + 1, |block| block.fill(0));
        }
        let shard = home.recover().await.unwrap();
        ms(5000).await;
        assert!(home.pool.columns_of(extent).values().all(|rows| *rows == Some(last)));
        expect(&shard, 0, 2, 1).await;
    });
}

#[test]
fn a_checkpoints_frame_that_lacks_its_parity_is_cut_off_if_nothing_points_at_it() {
    sim::run(16, |_| async {
        let home = Home::new("2+1", 4);
        let (extent, last) = with_half_a_checkpoint(&home).await;
        for row in [last, last + 1] {
            home.pool.change_row(extent, 2, row, |block| block.fill(0));
        }
        let shard = home.recover().await.unwrap();
        ms(5000).await;
        assert!(home.pool.columns_of(extent).values().all(|rows| *rows == Some(last)));
        expect(&shard, 0, 2, 1).await;
    });
}

#[test]
fn a_frame_of_the_checkpoint_that_lost_its_parity_is_not_cut_off() {
    sim::run(17, |_| async {
        let home = Home::new("2+1", 4);
        let shard = home.start().await;
        // So many that their leaf is written.
        write(&shard, 0, 64, 1).await.unwrap();
        write(&shard, 64, 64, 1).await.unwrap();
        write(&shard, 128, 64, 1).await.unwrap();
        // Nothing points at some frames of the first one any more; they stay, as the second one's root lies behind them.
        shard.checkpoint().await.unwrap();
        shard.checkpoint().await.unwrap();
        home.kill(shard);
        let header =
            |e: ExtentId, row| home.pool.header(e, 0, row).filter(|(h, _)| h.kind == FrameKind::Meta);
        let extent = home.pool.extents().into_iter().find(|&e| header(e, 0).is_some()).expect("its frames");
        let frames: Vec<u16> = (0..512).filter(|&row| header(extent, row).is_some()).collect();
        let entries = frames.iter().flat_map(|&row| header(extent, row).unwrap().1);
        let mut levels: Vec<u8> = entries
            .map(|entry| match entry {
                Entry::Map { level, .. } => level,
                other => panic!("{other:?}"),
            })
            .collect();
        levels.sort_unstable();
        levels.dedup();
        assert_eq!(levels, [0, 1, 2, 3, 4], "leaves, pages, the root stream, changes, the directory");
        for &row in &frames {
            home.pool.change_row(extent, 2, row, |block| block.fill(0));
            home.pool.change_row(extent, 2, row + 1, |block| block.fill(0));
        }
        let shard = home.recover().await.unwrap();
        ms(5000).await;
        let end = frames.last().unwrap() + 2;
        assert!(home.pool.columns_of(extent).values().all(|rows| *rows == Some(end)));
        expect(&shard, 0, 2, 1).await;
        home.kill(shard);
        expect(&home.recover().await.unwrap(), 0, 2, 1).await;
    });
}

#[test]
fn moved_blocks_that_lost_their_parity_are_not_cut_off() {
    sim::run(18, |_| async {
        let home = Home::new("2+1", 4);
        let shard = home.start().await;
        write(&shard, 0, 64, 1).await.unwrap();
        assert!(shard.collect_any().await);
        shard.checkpoint().await.unwrap();
        home.kill(shard);
        let header = |e: ExtentId, row| home.pool.header(e, 0, row).map(|(h, _)| h);
        let moved = |e: &ExtentId| header(*e, 0).is_some_and(|h| h.kind == FrameKind::Relocation);
        let extent = home.pool.extents().into_iter().find(moved).expect("blocks were moved");
        let end = header(extent, 0).unwrap().layout().end_row();
        assert!(header(extent, end).is_none_or(|h| h.kind == FrameKind::Relocation), "nothing of roots");
        (0..end).for_each(|row| home.pool.change_row(extent, 2, row, |block| block.fill(0)));
        let shard = home.recover().await.unwrap();
        ms(5000).await;
        assert!(home.pool.columns_of(extent).values().all(|rows| *rows >= Some(end)));
        expect(&shard, 0, 64, 1).await;
    });
}

#[test]
fn a_map_that_does_not_fit_its_memory_any_more_is_said_and_not_served_in_part() {
    sim::run(13, |_| async {
        let mut home = Home::new("2+1", 4);
        home.config.map_cache_bytes = 1 << 20; // covers 2048 pages of 65,536 blocks
        let shard = home.start().await;
        shard.ensure_layer(peristyle_base::LayerId(2), 1500 * 65_536).await.unwrap();
        write(&shard, 0, 2, 1).await.unwrap();
        home.kill(shard);
        for checkpoint in [false, true] {
            home.config.map_cache_bytes = 0; // the least there is: 1024
            let found = home.recover().await.err();
            assert_eq!(found, Some(RecoverError::Checkpoint(ShardError::MapFull)), "{checkpoint}");
            home.config.map_cache_bytes = 1 << 20;
            let shard = home.recover().await.unwrap();
            expect(&shard, 0, 2, 1).await;
            shard.checkpoint().await.unwrap();
            home.kill(shard);
        }
    });
}

#[test]
fn whoever_took_the_shard_stops_the_former_owner() {
    sim::run(14, |_| async {
        let home = Home::new("2+1", 4);
        let old = home.start().await;
        write(&old, 0, 2, 1).await.unwrap();
        // Both are at rest: what stops it is not a record that it writes.
        ms(500).await;
        let new = home.recover().await.unwrap();
        ms(500).await;
        assert!(old.stopped().is_none());
        home.pool.take_log();
        assert_eq!(write(&old, 0, 2, 2).await, Err(ShardError::Stopped));
        ms(100).await;
        // By the first columns that refuse it: it does not try elsewhere.
        let asked: Vec<What> = home.pool.take_log().iter().map(|(a, _)| a.what).collect();
        assert!(!asked.is_empty() && asked.iter().all(|what| *what == What::Append), "{asked:?}");
        assert!(old.stopped().is_some());
        expect(&new, 0, 2, 1).await;
    });
}

#[test]
fn the_first_frame_of_an_epoch_records_the_cut() {
    sim::run(15, |_| async {
        let home = Home::new("2+1", 4);
        let shard = home.start().await;
        write(&shard, 0, 2, 1).await.unwrap();
        let committed = shard.committed();
        home.kill(shard);
        home.pool.take_log();
        let shard = home.recover().await.unwrap();
        let log = home.pool.take_log();
        let appended = log.iter().filter(|(a, _)| a.what == What::Append);
        let headers: Vec<_> =
            appended.filter_map(|(a, _)| home.pool.header(a.extent, a.column, a.row)).collect();
        assert!(headers.iter().all(|(h, _)| (h.epoch, h.cut) == (shard.epoch(), committed)));
        // The tail anew, then one frame that says so and nothing else, before anything is served.
        let (last, entries) = headers.last().expect("frames before serving");
        assert!(last.seq > committed && entries.is_empty());
    });
}

/// Devices that are slow for a while never go away, so that none of them comes back.
#[test]
fn what_slow_devices_kept_from_being_sealed_at_a_start_is_sealed_when_they_answer() {
    let cases = [
        vec![(What::Read, [0, 1, 2])],
        vec![(What::Seal, [0, 1, 2])],
        vec![(What::Fence, [0; 3]), (What::Seal, [1; 3])],
    ];
    for slow in cases {
        sim::run(17, move |_| async move {
            let home = Home::new("2+1", 5);
            let shard = home.start().await;
            write(&shard, 0, 64, 1).await.unwrap();
            // Known to be committed by what came after it.
            write(&shard, 64, 64, 2).await.unwrap();
            let first = last_wide(&home);
            let device = home.pool.copies(first, 0)[0].0;
            home.kill(shard);
            // What a start has to read it reads before it appends.
            let (kept, mut appends) = (slow.clone(), false);
            home.pool.rule(move |a| {
                appends |= a.what == What::Append;
                let due = a.what != What::Read || appends;
                let kept = kept.iter().any(|(what, columns)| *what == a.what && columns.contains(&a.column));
                if kept && due && a.extent == first { Do::Hang } else { Do::It }
            });
            let shard = home.recover().await.unwrap();
            ms(12_000).await;
            let sealed = || home.pool.columns_of(first).values().filter(|rows| rows.is_some()).count();
            assert!(sealed() < 2, "{slow:?}: it was sealed all the same");
            home.pool.no_rule();
            ms(12_000).await;
            assert_eq!(sealed(), 3, "{slow:?}");
            home.pool.fate(device, peristyle_shard::Fate::Draining);
            ms(5000).await;
            assert_eq!(home.pool.used()[device], 0, "{slow:?}");
            expect(&shard, 0, 64, 1).await;
            expect(&shard, 64, 64, 2).await;
        });
    }
}
