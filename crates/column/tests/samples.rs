//! One sample of each structure of each format version, decoded for ever; and decoders that nothing can make panic.

use peristyle_base::{
    BLOCK_BYTES, ColumnIndex, ColumnName, Epoch, ExtentId, Nonce, RowIndex, Scheme, ShardId, SlotIndex, Uuid,
};
use peristyle_column::format::{
    ATOMIC_BYTES, ENTRY_BYTES, Entry, PAGE_ENTRIES, column_crc, fuzz_label, fuzz_page, fuzz_row_table,
};
use peristyle_column::{AllocClass, Geometry, Label, LabelError, RowSet, RowTable, SlotState};
use proptest::prelude::*;

const LABEL: &[u8] = include_bytes!("../testdata/label-v1.bin");
const PAGE: &[u8] = include_bytes!("../testdata/table-page-v1.bin");
const ROW_TABLE: &[u8] = include_bytes!("../testdata/row-checksums-v1.bin");

const DEVICE: Uuid = Uuid([0xd1; 16]);

fn label() -> Label {
    let geometry = Geometry::of(4 << 30).unwrap();
    Label { cluster: Uuid([0xc1; 16]), device: DEVICE, generation: 3, geometry }
}

fn name() -> ColumnName {
    ColumnName {
        shard: ShardId(0x0102_0304),
        extent: ExtentId(0x0a0b_0c0d_0e0f),
        column: ColumnIndex(5),
        nonce: Nonce(*b"sixteen secrets!"),
    }
}

/// The first entries of the sample page; the rest are free and never used.
fn entries() -> Vec<Entry> {
    let sealed = Entry {
        state: SlotState::Sealed,
        class: AllocClass::Collection,
        zeroed: true,
        fenced: true,
        name: name(),
        scheme: Scheme::new(4, 2),
        epoch: Epoch(0x1122_3344_5566_7788),
        rows: RowIndex(300),
        column_crc: row_table().column_crc(),
        version: 9,
    };
    let open = Entry { state: SlotState::Open, rows: RowIndex(0), column_crc: 0, ..sealed };
    vec![
        sealed,
        Entry { fenced: false, class: AllocClass::User, ..open },
        Entry { state: SlotState::Filling, zeroed: false, class: AllocClass::Reappend, ..open },
        Entry { zeroed: true, version: 12, ..Entry::default() },
    ]
}

fn row_table() -> RowTable {
    let mut crcs = [0; 512];
    let mut holes = RowSet::default();
    (0..300).for_each(|r| crcs[r] = (r as u32).wrapping_mul(0x9e37_79b9));
    [0, 7, 8, 299].into_iter().for_each(|r| holes.insert(r));
    RowTable { name: name(), rows: RowIndex(300), holes, crcs }
}

fn encoded_page() -> Vec<u8> {
    let mut out = vec![0; BLOCK_BYTES];
    let mut entries = entries();
    entries.resize(PAGE_ENTRIES, Entry { version: 1, ..Entry::default() });
    for (slot, bytes) in out.chunks_exact_mut(ENTRY_BYTES).enumerate() {
        entries[slot].encode(DEVICE, SlotIndex(slot as u32), bytes);
    }
    out
}

#[test]
fn the_label_of_version_1_is_read_and_written_as_it_always_was() {
    assert_eq!(Label::decode(1, LABEL), Ok(label()));
    let mut out = vec![0xff; BLOCK_BYTES];
    label().encode(1, &mut out);
    assert!(out == LABEL);
    assert_eq!(
        Label::decode(0, LABEL),
        Err(LabelError::Geometry),
        "the last block in the place of the first"
    );
}

#[test]
fn a_table_page_of_version_1_is_read_and_written_as_it_always_was() {
    for (slot, entry) in entries().into_iter().enumerate() {
        let bytes = &PAGE[slot * ENTRY_BYTES..][..ENTRY_BYTES];
        assert_eq!(Entry::decode(DEVICE, SlotIndex(slot as u32), bytes), Some(entry));
        assert_eq!(Entry::decode(DEVICE, SlotIndex(slot as u32 + 1), bytes), None, "misdirected");
        assert_eq!(Entry::decode(Uuid([2; 16]), SlotIndex(slot as u32), bytes), None, "another device's");
    }
    assert!(encoded_page() == PAGE);
}

#[test]
fn the_row_checksums_of_version_1_are_read_and_written_as_they_always_were() {
    let table = RowTable::decode(DEVICE, SlotIndex(0), &entries()[0], ROW_TABLE);
    assert_eq!(table, Some(row_table()));
    let mut out = vec![0xff; BLOCK_BYTES];
    row_table().encode(DEVICE, SlotIndex(0), &mut out);
    assert!(out == ROW_TABLE);
    let other = Entry { column_crc: 1, ..entries()[0] };
    assert_eq!(RowTable::decode(DEVICE, SlotIndex(0), &other, ROW_TABLE), None);
    assert_eq!(column_crc(&[]), 0);
}

#[test]
fn an_entry_never_crosses_the_unit_that_is_assumed_atomic() {
    for entry in 0..PAGE_ENTRIES {
        let (first, last) = (entry * ENTRY_BYTES, (entry + 1) * ENTRY_BYTES - 1);
        assert_eq!(first / ATOMIC_BYTES, last / ATOMIC_BYTES);
    }
}

#[test]
fn the_areas_of_a_device_do_not_overlap_and_waste_less_than_a_slot() {
    let sizes = (1..3000u64).map(|i| i * 4096 * 601).chain([1 << 32, 1 << 40, 7 << 43, u64::MAX]);
    for bytes in sizes {
        let Some(g) = Geometry::of(bytes) else {
            assert!(bytes < Geometry::bytes_for(1));
            continue;
        };
        let page_bytes = g.table_pages as u64 * 4096;
        assert_eq!((g.table_offset[0], g.table_offset[1]), (4096, 4096 + page_bytes));
        assert_eq!(g.checksum_offset, g.table_offset[1] + page_bytes);
        assert!(g.checksum_offset + g.slots as u64 * 4096 <= g.slots_offset);
        assert_eq!(g.slots_offset % (2 << 20), 0);
        assert!(g.slots_offset + g.slots as u64 * (2 << 20) <= g.label_offset(1));
        assert!(g.label_offset(1) + 4096 <= bytes);
        let more = Geometry::bytes_for(g.slots + 1);
        assert!(more > g.device_bytes || g.slots == peristyle_column::format::SLOTS_MAX, "{bytes}");
    }
}

proptest! {
    #[test]
    fn no_input_makes_a_decoder_panic(input in prop::collection::vec(any::<u8>(), 0..5000)) {
        fuzz_label(&input);
        fuzz_page(&input);
        fuzz_row_table(&input);
    }

    #[test]
    fn no_change_of_a_sample_makes_a_decoder_panic_and_no_flipped_bit_is_accepted(
        at in 0..BLOCK_BYTES, bit in 0..8u8, value in any::<u8>(),
    ) {
        for sample in [LABEL, PAGE, ROW_TABLE] {
            let mut bytes = sample.to_vec();
            bytes[at] = value;
            fuzz_label(&bytes);
            fuzz_page(&bytes);
            fuzz_row_table(&bytes);
            let mut bytes = sample.to_vec();
            bytes[at] ^= 1 << bit;
            prop_assert!(Label::decode(1, &bytes).is_err());
            let slot = at / ENTRY_BYTES;
            let entry = &bytes[slot * ENTRY_BYTES..][..ENTRY_BYTES];
            prop_assert_eq!(Entry::decode(DEVICE, SlotIndex(slot as u32), entry), None);
            prop_assert_eq!(RowTable::decode(DEVICE, SlotIndex(0), &entries()[0], &bytes), None);
        }
    }

    #[test]
    fn an_entry_is_read_back_as_it_was_written(
        state in 0..4u8, flags in any::<(bool, bool)>(), class in 0..4usize, k in 1..=16u8, m in 0..=4u8,
        numbers in any::<(u32, u64, u64, u32, u64)>(), rows in 0..=512u16, nonce in any::<[u8; 16]>(),
        column in 0..16u8, slot in any::<u32>(),
    ) {
        let mut entry = Entry {
            state: [SlotState::Free, SlotState::Open, SlotState::Sealed, SlotState::Filling][state as usize],
            zeroed: flags.0,
            version: numbers.4,
            ..Entry::default()
        };
        if entry.state != SlotState::Free {
            entry.fenced = flags.1;
            entry.class = AllocClass::ALL[class];
            entry.name = ColumnName {
                shard: ShardId(numbers.0), extent: ExtentId(numbers.1 >> 16),
                column: ColumnIndex(column % (k + m)), nonce: Nonce(nonce),
            };
            entry.scheme = Scheme::new(k, m);
            entry.epoch = Epoch(numbers.2);
        }
        if entry.state == SlotState::Sealed {
            (entry.rows, entry.column_crc) = (RowIndex(rows), numbers.3);
        }
        let mut bytes = [0; ENTRY_BYTES];
        entry.encode(DEVICE, SlotIndex(slot), &mut bytes);
        prop_assert_eq!(Entry::decode(DEVICE, SlotIndex(slot), &bytes), Some(entry));
    }
}
