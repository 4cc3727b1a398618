//! DESIGN §11 "Columns and slots", and §6 "The column server compares, always": one test per rule.

mod common;
use common::*;
use peristyle_base::{
    BLOCK_BYTES, ColumnIndex, Duration, Epoch, ExtentId, Nonce, RowIndex, ShardId, SlotIndex,
};
use peristyle_column::{
    AllocClass, Allocate, ColumnError, Reserve, RowRange, Seal, ServerConfig, SlotState, WritePurpose,
    ZERO_ROW_CRC,
};
use peristyle_rt::sim::DiskFaults;
use peristyle_rt::{Buf, join_all, now, sleep, spawn, timeout};
use std::cell::Cell;
use std::rc::Rc;

fn seal(rows: u16) -> Seal<'static> {
    Seal { rows: RowIndex(rows), holes: &[], crcs: None }
}

#[test]
fn every_request_is_compared_with_what_the_slot_holds() {
    test(|env| async move {
        let bed = Bed::new(env, 4).await;
        let slot = bed.open(1).await;
        bed.append(slot, 1, 0, &[5]).await;
        let right = name(1);
        let wrong = [
            common_name(right, |n| n.shard = ShardId(8)),
            common_name(right, |n| n.extent = ExtentId(2)),
            common_name(right, |n| n.column = ColumnIndex(0)),
            common_name(right, |n| n.nonce = Nonce([9; 16])),
        ];
        for other in wrong {
            let s = bed.s();
            let refused = ColumnError::WrongName;
            let data = rows(&[6]).await;
            let class = peristyle_column::WriteClass::User;
            assert_eq!(
                s.append(slot, &other, E1, RowIndex(1), data, &[crc_of(6)], class).await,
                Err(refused)
            );
            let buf = Buf::alloc(BLOCK_BYTES).await;
            assert_eq!(s.read(slot, &other, RowIndex(0), buf).await.0, Err(refused));
            assert_eq!(s.fence(slot, &other, E2).await, Err(refused));
            assert_eq!(s.seal(slot, &other, E1, seal(1)).await, Err(refused));
            assert_eq!(s.row_crcs(slot, &other).await, Err(refused));
            assert_eq!(s.free(slot, &other, E1).await, Ok(()), "as wanted: the slot does not hold it");
        }
        assert_eq!(bed.s().usage().open, 1, "none of these did anything");
        for nowhere in [SlotIndex(1), SlotIndex(99), SlotIndex(u32::MAX)] {
            assert_eq!(bed.append_at(nowhere, 1, E1, 0, &[5]).await, Err(ColumnError::NotFound));
            assert_eq!(bed.s().fence(nowhere, &right, E1).await, Err(ColumnError::NotFound));
        }
        assert_eq!(bed.read(slot, 1, 0, 1).await, Ok(vec![5]));
    });
}

fn common_name(
    mut name: peristyle_base::ColumnName,
    change: impl Fn(&mut peristyle_base::ColumnName),
) -> peristyle_base::ColumnName {
    change(&mut name);
    name
}

#[test]
fn a_delayed_append_to_a_slot_that_was_freed_and_given_again_is_refused() {
    test(|env| async move {
        let bed = Bed::new(env, 1).await;
        let slot = bed.open(1).await;
        bed.s().free(slot, &name(1), E1).await.unwrap();
        assert_eq!(bed.open(2).await, slot, "there is only one");
        assert_eq!(bed.append_at(slot, 1, E1, 0, &[1]).await, Err(ColumnError::WrongName));
        // Also one that was let in and waits in the queue while this happens.
        bed.append(slot, 2, 0, &[2]).await;
        assert_eq!(bed.read(slot, 2, 0, 1).await, Ok(vec![2]));
    });
}

#[test]
fn an_append_that_waited_in_the_queue_is_compared_again() {
    test(|env| async move {
        let config = ServerConfig { appends: 1, ..ServerConfig::default() };
        let bed = Bed::with(env, 2, config).await;
        let (slow, slot) = (bed.open(1).await, bed.open(2).await);
        let queued: Rc<Cell<Option<Result<(), ColumnError>>>> = Rc::default();
        let (server, answer) = (bed.s().clone(), queued.clone());
        spawn(async move {
            append(&server, slow, 1, E1, 0, &[1]).await.unwrap();
        });
        let server = bed.s().clone();
        spawn(async move { answer.set(Some(append(&server, slot, 2, E1, 0, &[2]).await)) });
        sleep(Duration::from_micros(3)).await; // the first writes, the second waits for its place
        assert_eq!(bed.s().fence(slot, &name(2), E2).await.unwrap().rows, RowIndex(0));
        sleep(Duration::from_millis(5)).await;
        assert_eq!(queued.take(), Some(Err(ColumnError::Stale { have: E2 })));
        assert_eq!(bed.s().stats(now()).written(WritePurpose::AppendUser).ops, 1);
    });
}

#[test]
fn a_fence_refuses_lower_epochs_for_ever_restarts_included() {
    test(|env| async move {
        let mut bed = Bed::new(env, 2).await;
        let slot = bed.open(1).await;
        bed.append(slot, 1, 0, &[1]).await;
        let fenced = bed.s().fence(slot, &name(1), Epoch(5)).await.unwrap();
        assert_eq!((fenced.state, fenced.rows, fenced.complete), (SlotState::Open, RowIndex(1), true));
        for _ in 0..2 {
            let stale = ColumnError::Stale { have: Epoch(5) };
            for epoch in 1..5 {
                assert_eq!(bed.append_at(slot, 1, Epoch(epoch), 1, &[2]).await, Err(stale));
                assert_eq!(bed.s().fence(slot, &name(1), Epoch(epoch)).await, Err(stale));
                assert_eq!(bed.s().seal(slot, &name(1), Epoch(epoch), seal(1)).await, Err(stale));
                assert_eq!(bed.s().free(slot, &name(1), Epoch(epoch)).await, Err(stale));
            }
            // An extent that was opened under a lower epoch is never appended to, not even by the new owner.
            let not_opener = Err(ColumnError::NotOpener { have: Epoch(5) });
            assert_eq!(bed.append_at(slot, 1, Epoch(5), 1, &[2]).await, not_opener);
            assert_eq!(
                bed.s().allocate(Allocate { epoch: Epoch(5), ..wish(1) }).await.map(|_| ()),
                not_opener
            );
            bed.restart().await;
        }
        let again = bed.s().fence(slot, &name(1), Epoch(5)).await.unwrap();
        assert!(!again.complete, "after a restart nobody knows what was in flight");
    });
}

#[test]
fn fence_seal_and_free_are_confirmed_only_when_no_device_write_to_the_slot_is_in_flight() {
    test(|env| async move {
        for what in 0..3u32 {
            let bed = Bed::new(env.clone(), 2 + what).await;
            let slot = bed.open(1).await;
            bed.append(slot, 1, 0, &[1]).await;
            // The device takes its time over one write; the one who appends gives up; table writes are quick.
            bed.disk.set_faults(DiskFaults { slow: 2000, ..DiskFaults::default() });
            let given_up = timeout(Duration::from_micros(50), bed.append_at(slot, 1, E1, 1, &[2])).await;
            assert_eq!(given_up, None);
            bed.disk.set_faults(DiskFaults::default());
            let (s, n) = (bed.s(), name(1));
            match what {
                0 => assert_eq!(s.fence(slot, &n, E2).await.unwrap().rows, RowIndex(2)),
                1 => s.seal(slot, &n, E1, seal(2)).await.unwrap(),
                _ => s.free(slot, &n, E1).await.unwrap(),
            }
            let in_flight = s.stats(now()).append_service.in_flight;
            assert_eq!(in_flight, 0, "it was confirmed while the write was in flight");
            if what < 2 {
                assert_eq!(bed.read(slot, 1, 1, 1).await, Ok(vec![2]));
            }
            let offset = bed.geometry().row_offset(slot, 1);
            sleep(AT_LEISURE).await;
            drop(bed.server);
            let mut row = [9; 4];
            bed.disk.read_raw(offset, &mut row);
            assert_eq!(
                row,
                if what < 2 { [2; 4] } else { [0; 4] },
                "freed, the slot is zeroed after the write"
            );
        }
    });
}

#[test]
fn free_is_idempotent_by_name() {
    test(|env| async move {
        let mut bed = Bed::new(env, 2).await;
        let slot = bed.open(1).await;
        for _ in 0..3 {
            assert_eq!(bed.s().free(slot, &name(1), E1).await, Ok(()));
            bed.restart().await;
        }
        let again = bed.open(2).await;
        assert_eq!(bed.s().free(slot, &name(1), E1).await, Ok(()));
        assert_eq!(bed.s().list(ShardId(7)).len(), 1, "the new column is not touched");
        assert_eq!(bed.s().list(ShardId(7))[0].slot, again);
        assert_eq!(bed.s().free(SlotIndex(2), &name(1), E1).await, Err(ColumnError::NotFound));
    });
}

#[test]
fn allocation_is_idempotent_by_name_also_when_asked_twice_at_once() {
    test(|env| async move {
        let mut bed = Bed::new(env, 4).await;
        let both = join_all((0..2).map(|_| bed.s().allocate(wish(1)))).await;
        assert_eq!(both[0], both[1]);
        bed.restart().await;
        assert_eq!(bed.s().allocate(wish(1)).await, both[0]);
        assert_eq!(bed.s().usage().open, 1);
        let other = Allocate { scheme: "3+1".parse().unwrap(), ..wish(1) };
        assert_eq!(bed.s().allocate(other).await, Err(ColumnError::WrongName));
        let slot = both[0].unwrap();
        bed.s().seal(slot, &name(1), E1, seal(0)).await.unwrap();
        assert_eq!(bed.s().allocate(wish(1)).await, Err(ColumnError::Sealed));
        let impossible = common_name(name(1), |n| n.column = ColumnIndex(3));
        assert_eq!(
            bed.s().allocate(Allocate { name: impossible, ..wish(1) }).await,
            Err(ColumnError::Invalid)
        );
    });
}

#[test]
fn an_append_is_idempotent_and_a_row_has_one_content() {
    test(|env| async move {
        let bed = Bed::new(env, 2).await;
        let slot = bed.open(1).await;
        bed.append(slot, 1, 3, &[1, 2]).await;
        bed.append(slot, 1, 3, &[1, 2]).await;
        bed.append(slot, 1, 4, &[2, 3]).await;
        let taken = Err(ColumnError::RowTaken { row: RowIndex(4) });
        assert_eq!(bed.append_at(slot, 1, E1, 3, &[1, 9]).await, taken);
        assert_eq!(bed.read(slot, 1, 3, 3).await, Ok(vec![1, 2, 3]));
        assert_eq!(
            bed.s().stats(now()).written(WritePurpose::AppendUser).ops,
            2,
            "known rows are not written again"
        );
        for (row, tags) in [(512, &[1u8][..]), (511, &[1, 2]), (u16::MAX, &[1]), (0, &[])] {
            assert_eq!(bed.append_at(slot, 1, E1, row, tags).await, Err(ColumnError::RowRange));
        }
    });
}

#[test]
fn an_append_that_the_device_failed_can_be_made_again_with_the_same_content_only() {
    test(|env| async move {
        let bed = Bed::new(env, 2).await;
        let slot = bed.open(1).await;
        bed.disk.update_faults(|f| f.write_error_ppm = 1_000_000);
        assert!(matches!(bed.append_at(slot, 1, E1, 0, &[1]).await, Err(ColumnError::Device(_))));
        bed.disk.update_faults(|f| f.write_error_ppm = 0);
        let missing = Err(ColumnError::RowMissing { row: RowIndex(0) });
        assert_eq!(bed.s().seal(slot, &name(1), E1, seal(1)).await, missing);
        assert!(bed.append_at(slot, 1, E1, 0, &[2]).await.is_err());
        bed.append(slot, 1, 0, &[1]).await;
        bed.s().seal(slot, &name(1), E1, seal(1)).await.unwrap();
    });
}

#[test]
fn a_sealed_columns_rows_never_change() {
    test(|env| async move {
        let mut bed = Bed::new(env, 2).await;
        let slot = bed.open(1).await;
        bed.append(slot, 1, 0, &[1, 2]).await;
        bed.s().seal(slot, &name(1), E1, seal(2)).await.unwrap();
        for _ in 0..2 {
            assert_eq!(bed.append_at(slot, 1, E1, 0, &[1]).await, Err(ColumnError::Sealed));
            assert_eq!(bed.append_at(slot, 1, E1, 2, &[3]).await, Err(ColumnError::Sealed));
            assert_eq!(bed.s().seal(slot, &name(1), E1, seal(2)).await, Ok(()), "the same seal again");
            assert_eq!(bed.s().seal(slot, &name(1), E1, seal(1)).await, Err(ColumnError::Sealed));
            let other = Seal { crcs: Some(&[crc_of(1), crc_of(3)]), ..seal(2) };
            assert_eq!(bed.s().seal(slot, &name(1), E1, other).await, Err(ColumnError::Sealed));
            assert_eq!(bed.read(slot, 1, 0, 2).await, Ok(vec![1, 2]));
            assert_eq!(bed.read(slot, 1, 1, 2).await, Err(ColumnError::RowRange));
            bed.restart().await;
        }
    });
}

#[test]
fn a_column_keeps_its_row_checksums_and_a_flipped_bit_in_one_row_is_found() {
    test(|env| async move {
        let mut bed = Bed::new(env, 2).await;
        let slot = bed.open(1).await;
        bed.append(slot, 1, 0, &[1, 2, 3, 4]).await;
        bed.s().seal(slot, &name(1), E1, seal(4)).await.unwrap();
        bed.restart().await;
        let kept = bed.s().row_crcs(slot, &name(1)).await.unwrap();
        assert_eq!(kept.crcs, [1, 2, 3, 4].map(|tag| Some(crc_of(tag))));
        bed.disk.flip_bit(bed.geometry().row_offset(slot, 2) + 1000, 3);
        assert_eq!(bed.read_verified(slot, 1, 0, 2).await, Ok(vec![1, 2]));
        assert_eq!(bed.read_verified(slot, 1, 3, 1).await, Ok(vec![4]));
        let found = Err(ColumnError::CrcMismatch { row: RowIndex(2) });
        assert_eq!(bed.read_verified(slot, 1, 0, 4).await, found);
        bed.disk.flip_bit(bed.geometry().checksum_block_offset(slot) + 130, 0);
        assert_eq!(bed.s().row_crcs(slot, &name(1)).await, Err(ColumnError::CrcTableDamaged));
    });
}

#[test]
fn a_lost_write_is_never_blessed_by_reading_it_back() {
    test(|env| async move {
        let bed = Bed::new(env, 2).await;
        let slot = bed.open(1).await;
        bed.disk.update_faults(|f| f.lost_write_ppm = 1_000_000);
        bed.append(slot, 1, 0, &[1]).await;
        bed.disk.update_faults(|f| f.lost_write_ppm = 0);
        bed.s().seal(slot, &name(1), E1, seal(1)).await.unwrap();
        let found = Err(ColumnError::CrcMismatch { row: RowIndex(0) });
        assert_eq!(bed.read_verified(slot, 1, 0, 1).await, found);
    });
}

#[test]
fn after_a_restart_the_owner_states_the_checksums_that_are_missing() {
    test(|env| async move {
        let mut bed = Bed::new(env, 2).await;
        let slot = bed.open(1).await;
        bed.append(slot, 1, 0, &[1, 2]).await;
        bed.restart().await;
        let unknown = Err(ColumnError::CrcUnknown { row: RowIndex(0) });
        assert_eq!(bed.s().seal(slot, &name(1), E1, seal(2)).await, unknown);
        let stated = Seal { crcs: Some(&[crc_of(1), crc_of(2)]), ..seal(2) };
        assert_eq!(bed.s().seal(slot, &name(1), E2, stated).await, Err(ColumnError::NotOpener { have: E1 }));
        bed.s().fence(slot, &name(1), E2).await.unwrap();
        bed.s().seal(slot, &name(1), E2, stated).await.unwrap();
        assert_eq!(bed.read_verified(slot, 1, 0, 2).await, Ok(vec![1, 2]));
    });
}

#[test]
fn a_seal_that_contradicts_what_was_appended_is_refused() {
    test(|env| async move {
        let bed = Bed::new(env, 2).await;
        let slot = bed.open(1).await;
        bed.append(slot, 1, 0, &[1, 2]).await;
        let other = Seal { crcs: Some(&[crc_of(1), crc_of(7)]), ..seal(2) };
        let mismatch = Err(ColumnError::CrcMismatch { row: RowIndex(1) });
        assert_eq!(bed.s().seal(slot, &name(1), E1, other).await, mismatch);
        assert_eq!(
            bed.s().seal(slot, &name(1), E1, seal(3)).await,
            Err(ColumnError::RowMissing { row: RowIndex(2) })
        );
        for (rows, hole) in
            [(2, RowRange::new(1, 2)), (2, RowRange::new(u16::MAX, u16::MAX)), (513, RowRange::new(0, 1))]
        {
            let bad = Seal { holes: &[hole], ..seal(rows) };
            assert_eq!(bed.s().seal(slot, &name(1), E1, bad).await, Err(ColumnError::RowRange));
        }
        bed.append(slot, 1, 2, &[3]).await; // a refused seal leaves the column open
    });
}

#[test]
fn a_hole_is_left_unwritten_only_in_a_slot_that_was_zeroed_and_where_nothing_was_written() {
    test(|env| async move {
        let mut bed = Bed::new(env, 4).await;
        let holes = [RowRange::new(1, 2), RowRange::new(4, 1)];
        let with_holes = Seal { holes: &holes, ..seal(6) };
        let zeros = |bed: &Bed| bed.s().stats(now()).written(WritePurpose::Zero).ops;
        let slot = bed.open(1).await;
        bed.append(slot, 1, 0, &[1]).await;
        bed.append(slot, 1, 3, &[4]).await;
        bed.append(slot, 1, 5, &[6]).await;
        let before = zeros(&bed);
        bed.s().seal(slot, &name(1), E1, with_holes).await.unwrap();
        assert_eq!(zeros(&bed), before, "the slot was zeroed, and nobody touched these rows");
        assert_eq!(bed.read_verified(slot, 1, 0, 6).await, Ok(vec![1, 0, 0, 4, 0, 6]));
        let kept = bed.s().row_table(slot, &name(1)).await.unwrap();
        assert_eq!((kept.holes.count(), kept.crcs[2]), (3, ZERO_ROW_CRC));
        // A row that was written and is declared a hole: only that hole is written.
        let slot = bed.open(2).await;
        bed.append(slot, 2, 0, &[1, 2]).await;
        bed.append(slot, 2, 3, &[4]).await;
        bed.append(slot, 2, 5, &[6]).await;
        let before = zeros(&bed);
        bed.s().seal(slot, &name(2), E1, with_holes).await.unwrap();
        assert_eq!(zeros(&bed), before + 1);
        assert_eq!(bed.read_verified(slot, 2, 0, 6).await, Ok(vec![1, 0, 0, 4, 0, 6]));
        // After a restart nobody knows what was in flight: every hole is written.
        let slot = bed.open(3).await;
        bed.append(slot, 3, 0, &[1]).await;
        bed.disk.write_raw(bed.geometry().row_offset(slot, 2), &[0xee; BLOCK_BYTES]);
        bed.restart().await;
        let crcs = [1, 0, 0, 4, 0, 6].map(crc_of);
        let stated = Seal { crcs: Some(&crcs), holes: &[RowRange::new(1, 5)], ..seal(6) };
        bed.s().seal(slot, &name(3), E1, stated).await.unwrap();
        assert_eq!(bed.read_verified(slot, 3, 0, 6).await, Ok(vec![1, 0, 0, 0, 0, 0]));
    });
}

#[test]
fn a_slot_that_nobody_wants_is_zeroed_before_it_is_given_again() {
    test(|env| async move {
        let mut bed = Bed::new(env, 1).await;
        for round in 0..4u64 {
            let slot = bed.open(round).await;
            assert_eq!(bed.read(slot, round, 0, 8).await, Ok(vec![0; 8]));
            bed.append(slot, round, 0, &[7; 8]).await;
            bed.s().free(slot, &name(round), E1).await.unwrap();
            match round % 2 {
                0 => sleep(AT_LEISURE).await,
                _ => bed.restart().await, // nobody knows any more that it has to be: it is zeroed when it is wanted
            }
        }
    });
}

#[test]
fn a_column_that_is_being_filled_is_never_read_and_is_sealed_only_when_it_matches() {
    test(|env| async move {
        let mut bed = Bed::new(env, 2).await;
        let filling = Allocate { filling: true, ..wish(1) };
        let slot = bed.s().allocate(filling).await.unwrap();
        assert_eq!(bed.s().allocate(filling).await, Ok(slot));
        assert_eq!(bed.s().allocate(wish(1)).await, Err(ColumnError::Sealed), "not open");
        bed.append(slot, 1, 0, &[1, 2]).await;
        assert_eq!(bed.read(slot, 1, 0, 1).await, Err(ColumnError::Filling));
        let wrong = Seal { crcs: Some(&[crc_of(1), crc_of(3)]), ..seal(2) };
        assert!(bed.s().seal(slot, &name(1), E1, wrong).await.is_err());
        assert_eq!(bed.read(slot, 1, 0, 1).await, Err(ColumnError::Filling));
        bed.restart().await;
        // Its memory of what arrived is gone: it must be filled again, whatever the owner says.
        let right = Seal { crcs: Some(&[crc_of(1), crc_of(2)]), ..seal(2) };
        let missing = Err(ColumnError::RowMissing { row: RowIndex(0) });
        assert_eq!(bed.s().seal(slot, &name(1), E1, right).await, missing);
        bed.append(slot, 1, 0, &[1, 2]).await;
        bed.s().seal(slot, &name(1), E1, right).await.unwrap();
        assert_eq!(bed.read_verified(slot, 1, 0, 2).await, Ok(vec![1, 2]));
    });
}

#[test]
fn a_column_is_made_anew_beside_its_old_self_also_on_the_same_device() {
    test(|env| async move {
        let mut bed = Bed::new(env, 3).await;
        let old = bed.open(1).await;
        bed.append(old, 1, 0, &[1, 2]).await;
        bed.s().seal(old, &name(1), E1, seal(2)).await.unwrap();
        let filling = Allocate { filling: true, ..wish(1) };
        let new = bed.s().allocate(filling).await.unwrap();
        assert!(new != old && bed.s().allocate(filling).await == Ok(new));
        bed.append(new, 1, 0, &[1, 2]).await;
        assert_eq!(bed.read_verified(old, 1, 0, 2).await, Ok(vec![1, 2]), "the old one serves meanwhile");
        assert_eq!(bed.read(new, 1, 0, 2).await, Err(ColumnError::Filling));
        bed.s().seal(new, &name(1), E1, seal(2)).await.unwrap();
        bed.restart().await;
        bed.s().free(old, &name(1), E1).await.unwrap();
        assert_eq!(bed.read_verified(new, 1, 0, 2).await, Ok(vec![1, 2]));
        assert_eq!(bed.s().list(ShardId(7)).len(), 1);
        assert_eq!(bed.s().allocate(wish(1)).await, Err(ColumnError::Sealed), "found under its name");
    });
}

#[test]
fn user_writes_are_refused_before_the_reserve_is_touched() {
    test(|env| async move {
        let bed = Bed::new(env, 8).await;
        bed.s().set_reserve(ShardId(7), Reserve { collection: 2, meta: 1, reappend: 1 });
        bed.s().set_reserve(ShardId(8), Reserve { collection: 0, meta: 0, reappend: 1 });
        let mut extent = 0;
        for (class, may_have) in [
            (AllocClass::User, 3),
            (AllocClass::Collection, 2),
            (AllocClass::Meta, 1),
            (AllocClass::Reappend, 2),
        ] {
            for _ in 0..may_have {
                extent += 1;
                bed.s().allocate(Allocate { class, ..wish(extent) }).await.unwrap();
            }
            let refused = bed.s().allocate(Allocate { class, ..wish(99) }).await;
            assert_eq!(refused, Err(ColumnError::Full), "{class:?}");
        }
        assert_eq!(bed.s().usage().by_class, [3, 2, 1, 2]);
        let first = bed.s().list(ShardId(7))[0];
        bed.s().free(first.slot, &first.name, E1).await.unwrap();
        assert_eq!(bed.s().allocate(wish(99)).await, Err(ColumnError::Full), "the reserve is filled first");
    });
}

#[test]
fn there_are_never_more_open_columns_than_memory_for_them() {
    test(|env| async move {
        let config = ServerConfig { open_columns: 2, ..ServerConfig::default() };
        let mut bed = Bed::with(env, 5, config).await;
        let first = bed.open(1).await;
        bed.open(2).await;
        assert_eq!(bed.s().allocate(wish(3)).await, Err(ColumnError::TooManyOpen));
        bed.restart().await;
        assert_eq!(bed.s().allocate(wish(3)).await, Err(ColumnError::TooManyOpen));
        bed.s().seal(first, &name(1), E1, seal(0)).await.unwrap();
        bed.open(3).await;
        assert_eq!(bed.s().usage().free, 2, "a refused allocation takes no slot");
    });
}

#[test]
fn appends_beyond_the_limits_wait_and_none_is_lost() {
    test(|env| async move {
        let config = ServerConfig { appends: 3, appends_per_slot: 2, ..ServerConfig::default() };
        let bed = Bed::with(env, 4, config).await;
        let slots = [bed.open(1).await, bed.open(2).await, bed.open(3).await];
        let all = (0..60u16).map(|i| {
            let which = i as usize % 3;
            bed.append_at(slots[which], which as u64 + 1, E1, i / 3, std::slice::from_ref(&TAGS[i as usize]))
        });
        assert!(join_all(all).await.iter().all(|answer| answer.is_ok()));
        for which in 0..3usize {
            let wanted: Vec<u8> = (0..20).map(|row| TAGS[row * 3 + which]).collect();
            assert_eq!(bed.read(slots[which], which as u64 + 1, 0, 20).await, Ok(wanted));
        }
        let stats = bed.s().stats(now());
        assert_eq!(stats.append_service.completed, 60);
        assert!(stats.append_service.mean_in_flight() <= 3.0);
        for stage in [&stats.append_queue, &stats.append_service, &stats.read_service, &stats.control] {
            assert!(stage.in_flight == 0 && stage.little_error() < 1e-6, "Little's law");
        }
    });
}

#[test]
fn a_read_that_is_given_up_counts_the_time_that_it_took() {
    test(|env| async move {
        let bed = Bed::new(env, 2).await;
        let slot = bed.open(1).await;
        bed.append(slot, 1, 0, &[1]).await;
        bed.disk.set_faults(DiskFaults { slow: 2000, ..DiskFaults::default() });
        for _ in 0..10 {
            assert_eq!(timeout(Duration::from_micros(50), bed.read(slot, 1, 0, 1)).await, None);
        }
        let served = bed.s().stats(now()).read_service;
        assert_eq!((served.in_flight, served.errors), (0, 10));
        assert!(served.little_error() < 1e-6, "{}", served.little_error());
    });
}

static TAGS: [u8; 60] = {
    let mut tags = [0; 60];
    let mut i = 0;
    while i < 60 {
        tags[i] = i as u8 + 1;
        i += 1;
    }
    tags
};

#[test]
fn changes_of_one_table_page_that_wait_together_share_its_write() {
    test(|env| async move {
        let bed = Bed::new(env, 40).await;
        let table = |bed: &Bed| bed.s().stats(now()).written(WritePurpose::Table).ops;
        let slots: Vec<_> = join_all((0..30).map(|e| bed.s().allocate(wish(e)))).await;
        let before = table(&bed);
        let fences = (0..30).map(|e| {
            let (slot, server) = (slots[e as usize].unwrap(), bed.s());
            async move { server.fence(slot, &name(e), E2).await }
        });
        assert!(join_all(fences).await.iter().all(|answer| answer.is_ok()));
        assert!(table(&bed) - before <= 4, "{} page writes for 30 fences", table(&bed) - before);
    });
}

#[test]
fn a_change_that_could_not_be_made_durable_is_not_confirmed_until_it_is() {
    test(|env| async move {
        let mut bed = Bed::new(env, 2).await;
        let slot = bed.open(1).await;
        bed.disk.update_faults(|f| f.write_error_ppm = 1_000_000);
        for _ in 0..2 {
            assert!(matches!(bed.s().fence(slot, &name(1), E2).await, Err(ColumnError::Device(_))));
        }
        bed.disk.update_faults(|f| f.write_error_ppm = 0);
        assert_eq!(bed.append_at(slot, 1, E1, 0, &[1]).await, Err(ColumnError::Stale { have: E2 }));
        assert!(bed.s().fence(slot, &name(1), E2).await.is_ok());
        bed.restart().await;
        assert_eq!(bed.append_at(slot, 1, E1, 0, &[1]).await, Err(ColumnError::Stale { have: E2 }));
    });
}

#[test]
fn appended_data_is_checked_against_its_checksums_when_asked_to() {
    test(|env| async move {
        let config = ServerConfig { verify_appends: true, ..ServerConfig::default() };
        let bed = Bed::with(env, 2, config).await;
        let slot = bed.open(1).await;
        bed.append(slot, 1, 0, &[1, 2]).await;
        let (data, crcs) = (rows(&[3, 4]).await, [crc_of(3), crc_of(5)]);
        let class = peristyle_column::WriteClass::User;
        let answer = bed.s().append(slot, &name(1), E1, RowIndex(2), data, &crcs, class).await;
        assert_eq!(answer, Err(ColumnError::CrcMismatch { row: RowIndex(3) }));
    });
}

#[test]
fn a_seal_that_was_given_up_is_followed_by_a_seal_or_a_free_and_by_no_append() {
    test(|env| async move {
        let bed = Bed::new(env.clone(), 2).await;
        let slot = bed.open(1).await;
        bed.append(slot, 1, 0, &[1, 2, 3]).await;
        let until = env.world.now_nanos() + 50_000_000;
        bed.disk.set_faults(DiskFaults { stall_until: until, ..DiskFaults::default() });
        let holes = [RowRange::new(1, 1)];
        let with_hole = Seal { holes: &holes, ..seal(3) };
        let n = name(1);
        let given_up = bed.s().seal(slot, &n, E1, with_hole);
        assert!(timeout(Duration::from_millis(10), given_up).await.is_none());
        assert_eq!(bed.append_at(slot, 1, E1, 3, &[4]).await, Err(ColumnError::Sealed));
        // The row is zeros now, or will be: it cannot be kept after all.
        let missing = Err(ColumnError::RowMissing { row: RowIndex(1) });
        assert_eq!(bed.s().seal(slot, &name(1), E1, seal(3)).await, missing);
        bed.s().seal(slot, &name(1), E1, with_hole).await.unwrap();
        assert_eq!(bed.read_verified(slot, 1, 0, 3).await, Ok(vec![1, 0, 3]));
    });
}
