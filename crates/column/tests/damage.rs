//! Labels, table pages and devices that are damaged, swapped or not ours.

mod common;
use common::*;
use peristyle_base::{BLOCK_BYTES, Epoch, RowIndex, SlotIndex, Uuid};
use peristyle_column::{
    ColumnError, FormatError, FormatOptions, Geometry, LabelError, OpenError, Seal, Server, ServerConfig,
    check, format, inspect,
};
use peristyle_rt::sim::DiskConfig;
use peristyle_rt::{Device, IoError};

#[test]
fn either_copy_of_the_label_is_enough_and_the_other_is_written_again() {
    test(|env| async move {
        let mut bed = Bed::new(env, 3).await;
        let slot = bed.open(1).await;
        let g = bed.geometry();
        for copy in 0..2 {
            bed.server = None;
            bed.disk.write_raw(g.label_offset(copy), &[0; BLOCK_BYTES]);
            bed.restart().await;
            assert_eq!(bed.s().stats(peristyle_rt::now()).repaired_pages, 1);
            let report = inspect(bed.s().device()).await;
            assert_eq!((report.labels[0], report.labels[1]), (Ok(*bed.s().label()), Ok(*bed.s().label())));
        }
        bed.append(slot, 1, 0, &[1]).await;
        bed.server = None;
        bed.disk.write_raw(g.label_offset(0), &[0; BLOCK_BYTES]);
        bed.disk.write_raw(g.label_offset(1), b"something else");
        let device = Device::open(&bed.disk.spec()).await.unwrap();
        let error = Server::open(device, CLUSTER, bed.config).await.err();
        assert_eq!(error, Some(OpenError::NoLabel([LabelError::Blank, LabelError::Foreign])));
    });
}

#[test]
fn a_foreign_swapped_or_shrunk_device_is_refused_and_a_grown_one_is_not() {
    test(|env| async move {
        let bed = Bed::new(env, 3).await;
        let (image, bytes) = (bed.disk.image(), bed.disk.bytes());
        let device = bed.s().device().clone();
        let open = async |cluster, expect| {
            let config = ServerConfig { expect, ..ServerConfig::default() };
            Server::open(device.clone(), cluster, config).await.err()
        };
        let other = Uuid([1; 16]);
        assert_eq!(open(other, None).await, Some(OpenError::ForeignCluster { found: CLUSTER }));
        assert_eq!(open(CLUSTER, Some(other)).await, Some(OpenError::WrongDevice { found: DEVICE }));
        assert_eq!(open(CLUSTER, Some(DEVICE)).await, None);
        // The last block of another device under the first block of this one.
        let mut wrong = vec![0; BLOCK_BYTES];
        let label = peristyle_column::Label { device: other, ..*bed.s().label() };
        label.encode(1, &mut wrong);
        bed.disk.write_raw(bed.geometry().label_offset(1), &wrong);
        assert_eq!(open(CLUSTER, None).await, Some(OpenError::LabelsDisagree));
        for (name, size) in [("smaller", bytes - (2 << 20)), ("larger", bytes + (4 << 20))] {
            let mut copy = peristyle_rt::sim::Image::new(size);
            let mut block = vec![0; BLOCK_BYTES];
            for offset in (0..size.min(bytes)).step_by(BLOCK_BYTES) {
                image.read(offset, &mut block);
                copy.write(offset, &block);
            }
            let disk = bed.env.node.add_disk_image(name, copy, DiskConfig::default());
            let device = Device::open(&disk.spec()).await.unwrap();
            let error = Server::open(device, CLUSTER, ServerConfig::default()).await.err();
            let shrunk = Some(OpenError::Shrunk { was: bytes, is: size });
            assert_eq!(error, if size < bytes { shrunk } else { None }, "{name}");
        }
    });
}

#[test]
fn format_refuses_what_is_not_blank_unless_forced() {
    test(|env| async move {
        for (i, offset) in [0u64, 1080, 65_600, (1 << 20) - 1].into_iter().enumerate() {
            let disk = env.disk(&format!("{i}"), Geometry::bytes_for(2));
            disk.write_raw(offset / 4096 * 4096, &{
                let mut block = [0; BLOCK_BYTES];
                block[offset as usize % BLOCK_BYTES] = 1;
                block
            });
            let device = Device::open(&disk.spec()).await.unwrap();
            assert_eq!(format(&device, OPTIONS).await, Err(FormatError::NotBlank { offset }));
            format(&device, FormatOptions { force: true, ..OPTIONS }).await.unwrap();
            let again = Err(FormatError::Labelled { cluster: CLUSTER, device: DEVICE });
            assert_eq!(format(&device, OPTIONS).await, again);
            assert!(check(&device, |_, _| ()).await.is_clean());
        }
        let small = env.disk("small", Geometry::bytes_for(1) - 4096);
        let device = Device::open(&small.spec()).await.unwrap();
        assert_eq!(format(&device, OPTIONS).await, Err(FormatError::TooSmall));
    });
}

#[test]
fn a_damaged_or_unreadable_copy_of_a_table_page_loses_nothing() {
    test(|env| async move {
        let mut bed = Bed::new(env, 70).await;
        let mut slots = Vec::new();
        for extent in 0..70 {
            slots.push(bed.open(extent).await);
        }
        bed.s().fence(slots[3], &name(3), Epoch(4)).await.unwrap();
        let (before, g) = (bed.s().list_all(), bed.geometry());
        for round in 0..8u64 {
            let (copy, page) = ((round % 2) as usize, (round / 2 % 2) as u32);
            bed.server = None;
            match round / 4 {
                0 => bed.disk.write_raw(g.page_offset(copy, page), &[round as u8; BLOCK_BYTES]),
                _ => bed.disk.add_latent_error(g.page_offset(copy, page), 4096),
            }
            bed.restart().await;
            assert_eq!(bed.s().list_all(), before, "round {round}");
            assert_eq!(bed.s().stats(peristyle_rt::now()).repaired_pages, 1);
        }
    });
}

#[test]
fn an_entry_that_is_lost_in_both_copies_costs_its_slot_and_no_other() {
    test(|env| async move {
        let mut bed = Bed::new(env, 10).await;
        for extent in 0..5 {
            bed.open(extent).await;
        }
        let (g, lost) = (bed.geometry(), SlotIndex(2));
        for copy in 0..2 {
            bed.disk.flip_bit(g.page_offset(copy, 0) + 64 * lost.0 as u64 + 9, 1);
        }
        for _ in 0..3 {
            bed.restart().await;
            assert_eq!(bed.s().damaged_slots(), [lost]);
            assert_eq!(bed.s().usage().damaged, 1);
            assert_eq!(bed.append_at(lost, 2, E1, 0, &[1]).await, Err(ColumnError::NotFound));
            // Its neighbours change, the page is written, and the slot is still not taken for a free one.
            let slot = bed.open(77).await;
            assert_ne!(slot, lost);
            bed.s().free(slot, &name(77), E1).await.unwrap();
        }
        let report = check(bed.s().device(), |_, _| ()).await;
        assert!(!report.is_clean() && report.inspection.damaged_slots == [lost]);
        for extent in 100.. {
            match bed.s().allocate(wish(extent)).await {
                Ok(slot) => assert_ne!(slot, lost),
                Err(error) => return assert_eq!((error, extent), (ColumnError::Full, 105)),
            }
        }
    });
}

#[test]
fn check_names_each_damaged_row_and_block_and_changes_nothing() {
    test(|env| async move {
        let bed = Bed::new(env, 4).await;
        let g = bed.geometry();
        let seal = Seal { rows: RowIndex(20), holes: &[], crcs: None };
        for extent in 0..3 {
            let slot = bed.open(extent).await;
            bed.append(slot, extent, 0, &[extent as u8 + 1; 20]).await;
            bed.s().seal(slot, &name(extent), E1, seal).await.unwrap();
        }
        let slots: Vec<_> = bed.s().list_all().iter().map(|c| c.slot).collect();
        let device = bed.s().device().clone();
        let report = check(&device, |_, _| ()).await;
        assert!(report.is_clean());
        assert_eq!((report.columns_checked, report.rows_checked), (3, 60));
        bed.disk.flip_bit(g.row_offset(slots[0], 7), 0);
        bed.disk.add_latent_error(g.row_offset(slots[1], 16), 4096);
        bed.disk.flip_bit(g.checksum_block_offset(slots[2]) + 4000, 0);
        let (image, mut told) = (bed.disk.stats().writes, Vec::new());
        let report = check(&device, |done, of| told.push((done, of))).await;
        assert_eq!(report.findings.total(), 3);
        assert_eq!(told, [(0, 3), (1, 3), (2, 3), (3, 3)]);
        assert_eq!(bed.disk.stats().writes, image);
    });
}

#[test]
fn a_device_that_fails_fails_the_request_and_not_the_server() {
    test(|env| async move {
        let bed = Bed::new(env, 2).await;
        let slot = bed.open(1).await;
        bed.append(slot, 1, 0, &[1]).await;
        bed.disk.update_faults(|f| f.read_error_ppm = 1_000_000);
        assert!(matches!(bed.read(slot, 1, 0, 1).await, Err(ColumnError::Device(IoError::Os(_)))));
        bed.disk.update_faults(|f| f.read_error_ppm = 0);
        assert_eq!(bed.read(slot, 1, 0, 1).await, Ok(vec![1]));
        assert_eq!(bed.s().stats(peristyle_rt::now()).device_errors, 1);
    });
}
