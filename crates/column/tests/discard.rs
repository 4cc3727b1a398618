//! Freed slots go back to the medium, and what that leaves behind is believed by nobody.

mod common;
use common::*;
use peristyle_base::{COLUMN_BYTES, Duration, RowIndex};
use peristyle_column::{ColumnError, Discard, RowRange, Seal, ServerConfig, WritePurpose};
use peristyle_rt::sim::{DiskConfig, Env};
use peristyle_rt::{now, sleep, spawn};
use std::cell::Cell;
use std::rc::Rc;

/// A device that cannot zero by itself.
async fn discarding(env: Env, slots: u32, discard: Discard) -> Bed {
    let config = ServerConfig { discard, ..ServerConfig::default() };
    Bed::on(env, slots, config, DiskConfig { cheap_zeroes: false, ..DiskConfig::default() }).await
}

#[test]
fn what_was_discarded_never_counts_as_zeroed() {
    test(|env| async move {
        let mut bed = discarding(env, 1, Discard::Auto).await;
        // A discard leaves anything behind: often enough that some of these holes are not zeros by themselves.
        for extent in 1..20 {
            let slot = bed.open(extent).await;
            bed.append(slot, extent, 0, &[1; 4]).await;
            bed.append(slot, extent, 8, &[2; 4]).await;
            let holes = [RowRange::new(4, 4)];
            let seal = Seal { rows: RowIndex(12), holes: &holes, crcs: None };
            bed.s().seal(slot, &name(extent), E1, seal).await.unwrap();
            let told = bed.read_verified(slot, extent, 0, 12).await;
            assert_eq!(told, Ok(vec![1, 1, 1, 1, 0, 0, 0, 0, 2, 2, 2, 2]), "column {extent}");
            bed.s().free(slot, &name(extent), E1).await.unwrap();
            if extent % 5 == 0 {
                bed.restart().await;
            }
        }
        assert!(bed.disk.stats().discards == 19, "each time it was freed");
    });
}

#[test]
fn a_slot_is_given_out_only_when_its_discard_is_over() {
    test(|env| async move {
        let bed = Rc::new(discarding(env, 1, Discard::Auto).await);
        for extent in 1..10 {
            let slot = bed.open(extent).await;
            bed.append(slot, extent, 0, &[7; 16]).await;
            let (me, freed) = (bed.clone(), Rc::new(Cell::new(false)));
            let told = freed.clone();
            spawn(async move {
                me.s().free(slot, &name(extent), E1).await.unwrap();
                told.set(true);
            });
            // As soon as there is room at all, somebody takes it and writes.
            let next = loop {
                match bed.s().allocate(wish(100 + extent)).await {
                    Ok(slot) => break slot,
                    Err(error) => assert_eq!(error, ColumnError::Full),
                }
                sleep(Duration::from_micros(1)).await;
            };
            bed.append(next, 100 + extent, 0, &[9; 16]).await;
            sleep(Duration::from_millis(100)).await;
            assert!(freed.get());
            assert_eq!(bed.read(next, 100 + extent, 0, 16).await, Ok(vec![9; 16]));
            bed.s().free(next, &name(100 + extent), E1).await.unwrap();
        }
    });
}

#[test]
fn freed_slots_are_discarded_where_that_is_wanted_and_until_the_device_fails_to() {
    test(|env| async move {
        for (slots, discard, expected) in [(2, Discard::Auto, 1), (3, Discard::On, 1), (4, Discard::Off, 0)] {
            let bed = discarding(env.clone(), slots, discard).await;
            let cycle = async |extent| {
                let slot = bed.open(extent).await;
                bed.s().free(slot, &name(extent), E1).await
            };
            cycle(1).await.unwrap();
            let stats = bed.s().stats(now());
            assert_eq!((stats.discards.ops, bed.disk.stats().discards), (expected, expected), "{discard:?}");
            assert_eq!(stats.discards.bytes, expected * COLUMN_BYTES);
            assert_eq!(stats.discarded_bytes, expected * COLUMN_BYTES);
            assert_eq!(stats.written(WritePurpose::Zero).ops, 0, "this device does not zero");
        }
        // A device that fails to is not asked again; the slots are free all the same.
        let bed = discarding(env.clone(), 5, Discard::Auto).await;
        let slots = [bed.open(1).await, bed.open(2).await];
        bed.disk.update_faults(|f| f.discard_error_ppm = 1_000_000);
        for (slot, extent) in slots.into_iter().zip(1..) {
            bed.s().free(slot, &name(extent), E1).await.unwrap();
        }
        let stats = bed.s().stats(now());
        assert_eq!((stats.usage.free, stats.discards.ops, stats.device_errors), (5, 0, 1));
    });
}
