//! Freed slots go back to the medium, and what that leaves behind is believed by nobody.

mod common;
use common::*;
use peristyle_base::{COLUMN_BYTES, Duration, RowIndex};
use peristyle_column::{Discard, RowRange, Seal, ServerConfig, WritePurpose};
use peristyle_rt::sim::{DiskConfig, Env};
use peristyle_rt::{join_all, now, sleep};

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
            sleep(AT_LEISURE).await;
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
        let bed = discarding(env, 1, Discard::Auto).await;
        for (extent, later_us) in (1..).zip((0..1500).step_by(100)) {
            let slot = bed.open(extent).await;
            bed.append(slot, extent, 0, &[7; 16]).await;
            bed.s().free(slot, &name(extent), E1).await.unwrap();
            // Before, while, and after it is discarded somebody takes it and writes.
            sleep(Duration::from_millis(500) + Duration::from_micros(later_us)).await;
            let next = bed.open(100 + extent).await;
            bed.append(next, 100 + extent, 0, &[9; 16]).await;
            sleep(Duration::from_millis(100)).await;
            assert_eq!(bed.read(next, 100 + extent, 0, 16).await, Ok(vec![9; 16]));
            bed.s().free(next, &name(100 + extent), E1).await.unwrap();
            sleep(AT_LEISURE).await;
        }
        assert!(bed.disk.stats().discards > 20);
    });
}

#[test]
fn a_slot_that_is_wanted_at_once_is_not_cleared_first_and_its_holes_are_filled() {
    test(|env| async move {
        for cheap_zeroes in [true, false] {
            let disk = DiskConfig { cheap_zeroes, ..DiskConfig::default() };
            let bed = Bed::on(env.clone(), 2 + u32::from(cheap_zeroes), ServerConfig::default(), disk).await;
            let every = bed.s().usage().free;
            for extent in 1..=u64::from(every) {
                let slot = bed.open(extent).await;
                bed.append(slot, extent, 0, &[7; 16]).await;
            }
            let cleared = |bed: &Bed| {
                let stats = bed.s().stats(now());
                (stats.discards.ops, stats.written(WritePurpose::Zero).ops, stats.discarded_bytes)
            };
            let before = cleared(&bed);
            for extent in 10..20 {
                let old = if extent == 10 { 1 } else { extent - 1 };
                let slot = bed.s().list_all().iter().find(|s| s.name == name(old)).unwrap().slot;
                bed.s().free(slot, &name(old), E1).await.unwrap();
                assert_eq!(bed.open(extent).await, slot);
                assert_eq!(cleared(&bed), before);
                bed.append(slot, extent, 0, &[extent as u8]).await;
                bed.append(slot, extent, 3, &[extent as u8]).await;
            }
            let slot = bed.s().list_all().iter().find(|s| s.name == name(19)).unwrap().slot;
            let seal = Seal { rows: RowIndex(4), holes: &[RowRange::new(1, 2)], crcs: None };
            bed.s().seal(slot, &name(19), E1, seal).await.unwrap();
            assert_eq!(bed.read_verified(slot, 19, 0, 4).await, Ok(vec![19, 0, 0, 19]));
        }
    });
}

#[test]
fn much_that_was_freed_is_cleared_before_long_and_what_is_closed_clears_no_more() {
    test(|env| async move {
        let mut bed = Bed::new(env, 400).await;
        let slots: Vec<_> = join_all((1..=300).map(|extent| bed.open(extent))).await;
        for (slot, extent) in slots.into_iter().zip(1..) {
            bed.s().free(slot, &name(extent), E1).await.unwrap();
        }
        let before = bed.s().stats(now()).written(WritePurpose::Zero).ops;
        sleep(Duration::from_secs(2)).await;
        let some = bed.s().stats(now()).discarded_bytes / COLUMN_BYTES;
        assert!((8..64).contains(&some), "a few at a time, {some}");
        sleep(Duration::from_secs(120)).await;
        let stats = bed.s().stats(now());
        assert_eq!(
            (stats.discarded_bytes, stats.written(WritePurpose::Zero).ops),
            (300 * COLUMN_BYTES, before + 300)
        );
        let slot = bed.open(1000).await;
        bed.s().free(slot, &name(1000), E1).await.unwrap();
        let zeroed = bed.disk.stats();
        bed.restart().await;
        sleep(AT_LEISURE).await;
        assert_eq!(bed.disk.stats().writes, zeroed.writes, "the next server may have given it to somebody");
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
            sleep(AT_LEISURE).await;
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
        sleep(AT_LEISURE).await;
        let stats = bed.s().stats(now());
        assert_eq!((stats.usage.free, stats.discards.ops, stats.device_errors), (5, 0, 1));
    });
}
