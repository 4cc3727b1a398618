//! `check` finds every damage that is planted, says what and where it is, and changes nothing.

mod common;
use common::*;
use peristyle_base::{BLOCK_BYTES, ColumnIndex, Epoch, RowIndex, SlotIndex, Uuid};
use peristyle_column::finding::EntryFault::{Blank, Garbled, OtherSlot};
use peristyle_column::format::{ENTRY_BYTES, Entry, RowTableFault};
use peristyle_column::{
    Finding, Geometry, Label, LabelError, OpenError, RowRange, RowTable, Seal, Severity, check,
};
use peristyle_rt::Device;
use peristyle_rt::sim::DiskHandle;

/// Slots of the device that is damaged: two sealed columns, the second with holes, an open one, and one that was freed and
/// reads as zeros. The others were never used.
const SEALED: SlotIndex = SlotIndex(0);
const HOLED: SlotIndex = SlotIndex(1);
const OPEN: SlotIndex = SlotIndex(2);
const FREED: SlotIndex = SlotIndex(3);
const UNUSED: SlotIndex = SlotIndex(70);
const SLOTS: u32 = 80;

async fn device(env: peristyle_rt::sim::Env) -> (DiskHandle, Geometry) {
    let bed = Bed::new(env, SLOTS).await;
    let slots = [bed.open(1).await, bed.open(2).await, bed.open(3).await, bed.open(4).await];
    assert_eq!(slots, [SEALED, HOLED, OPEN, FREED]);
    bed.append(SEALED, 1, 0, &[1; 20]).await;
    bed.s().seal(SEALED, &name(1), E1, Seal { rows: RowIndex(20), holes: &[], crcs: None }).await.unwrap();
    bed.append(HOLED, 2, 0, &[2; 4]).await;
    bed.append(HOLED, 2, 8, &[3; 2]).await;
    let holes = [RowRange::new(4, 4)];
    bed.s().seal(HOLED, &name(2), E1, Seal { rows: RowIndex(10), holes: &holes, crcs: None }).await.unwrap();
    bed.append(OPEN, 3, 0, &[4]).await;
    bed.s().free(FREED, &name(4), E1).await.unwrap();
    // It is zeroed some time; that it was reaches the disk with the next change of its page.
    peristyle_rt::sleep(AT_LEISURE).await;
    bed.s().fence(OPEN, &name(3), E2).await.unwrap();
    (bed.disk.clone(), bed.geometry())
}

struct Patient<'a> {
    disk: &'a DiskHandle,
    g: Geometry,
}

impl Patient<'_> {
    fn entry_at(&self, copy: usize, slot: SlotIndex) -> u64 {
        self.g.page_offset(copy, slot.0 / 64) + (slot.0 % 64) as u64 * ENTRY_BYTES as u64
    }
    fn bytes(&self, offset: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.disk.read_raw(offset, &mut bytes);
        bytes
    }
    fn entry(&self, slot: SlotIndex) -> Entry {
        Entry::decode(DEVICE, slot, &self.bytes(self.entry_at(0, slot), ENTRY_BYTES)).expect("a good entry")
    }
    /// Changes an entry in the given copies, its checksum made right.
    fn change(&self, slot: SlotIndex, copies: &[usize], change: impl Fn(&mut Entry)) {
        let (mut entry, mut bytes) = (self.entry(slot), [0; ENTRY_BYTES]);
        change(&mut entry);
        entry.encode(DEVICE, slot, &mut bytes);
        copies.iter().for_each(|&copy| self.disk.write_raw(self.entry_at(copy, slot), &bytes));
    }
    fn copy(&self, from: u64, to: u64, len: usize) {
        self.disk.write_raw(to, &self.bytes(from, len));
    }
    fn label(&self, copy: usize, change: impl Fn(&mut Label)) {
        let mut label = Label::decode(copy, &self.bytes(self.g.label_offset(copy), BLOCK_BYTES)).unwrap();
        let mut block = vec![0; BLOCK_BYTES];
        change(&mut label);
        label.encode(copy, &mut block);
        self.disk.write_raw(self.g.label_offset(copy), &block);
    }
    fn row_table(&self, slot: SlotIndex, change: impl Fn(&mut RowTable)) {
        let at = self.g.checksum_block_offset(slot);
        let mut block = self.bytes(at, BLOCK_BYTES);
        let mut table = RowTable::decode(DEVICE, slot, &self.entry(slot), &block).expect("good checksums");
        change(&mut table);
        table.encode(DEVICE, slot, &mut block);
        self.disk.write_raw(at, &block);
    }
}

type Plant = fn(&Patient<'_>);

const fn row(slot: SlotIndex, row: u16) -> Finding {
    Finding::RowDamaged { slot, row: RowIndex(row) }
}

/// What is done to the device, and all that is to be found then.
#[rustfmt::skip]
const DAMAGES: &[(&str, Plant, &[Finding])] = &[
    ("nothing", |_| (), &[]),
    ("the first label is wiped", |p| p.disk.write_raw(0, &[0; BLOCK_BYTES]),
        &[Finding::LabelCopy { copy: 0, error: LabelError::Blank }]),
    ("the last label has a wrong bit", |p| p.disk.flip_bit(p.g.label_offset(1) + 20, 3),
        &[Finding::LabelCopy { copy: 1, error: LabelError::Damaged }]),
    ("the last label was missed by a rewrite", |p| p.label(0, |l| l.generation += 1),
        &[Finding::LabelOlder { copy: 1 }]),
    ("both labels are overwritten", |p| (0..2).for_each(|c| p.disk.write_raw(p.g.label_offset(c), b"ext4")),
        &[Finding::NotServed(OpenError::NoLabel([LabelError::Foreign, LabelError::Foreign]))]),
    ("the last label is another device's", |p| p.label(1, |l| l.device = Uuid([1; 16])),
        &[Finding::NotServed(OpenError::LabelsDisagree)]),
    ("a bit of one copy of an entry", |p| p.disk.flip_bit(p.entry_at(1, OPEN) + 25, 0),
        &[Finding::EntryDamaged { slot: OPEN, copy: 1, fault: Garbled }]),
    ("one copy of an entry is wiped", |p| p.disk.write_raw(p.entry_at(0, SEALED), &[0; ENTRY_BYTES]),
        &[Finding::EntryDamaged { slot: SEALED, copy: 0, fault: Blank }]),
    ("an entry stands in another one's place", |p| p.copy(p.entry_at(0, SEALED), p.entry_at(0, UNUSED), ENTRY_BYTES),
        &[Finding::EntryDamaged { slot: UNUSED, copy: 0, fault: OtherSlot(SEALED) }]),
    ("both copies of an entry", |p| (0..2).for_each(|c| p.disk.flip_bit(p.entry_at(c, OPEN) + 8, 1)),
        &[Finding::EntryDamaged { slot: OPEN, copy: 0, fault: Garbled },
          Finding::EntryDamaged { slot: OPEN, copy: 1, fault: Garbled },
          Finding::SlotLost { slot: OPEN }]),
    ("a page that cannot be read", |p| p.disk.add_latent_error(p.g.page_offset(1, 1), 4096),
        &[Finding::PageUnreadable { copy: 1, page: 1 }]),
    ("a crash between the two copies of a page", |p| p.change(OPEN, &[0], |e| { e.epoch = Epoch(9); e.version += 1; }),
        &[Finding::PageOlder { page: 0, copy: 1 }]),
    ("each copy went back for another entry", |p| {
            p.change(OPEN, &[0], |e| { e.epoch = Epoch(9); e.version += 1; });
            p.change(FREED, &[1], |e| e.version += 1);
        },
        &[Finding::PagesCross { page: 0 }]),
    ("two contents under one version", |p| p.change(OPEN, &[1], |e| e.epoch = Epoch(7)),
        &[Finding::EntriesDisagree { slot: OPEN }]),
    ("a column in two slots", |p| {
            let twin = p.entry(OPEN);
            p.change(UNUSED, &[0, 1], |e| *e = Entry { version: e.version, ..twin });
        },
        &[Finding::SlotsClash { slot: UNUSED, other: OPEN }]),
    ("two columns of one extent", |p| {
            let twin = p.entry(OPEN);
            p.change(UNUSED, &[0, 1], |e| {
                *e = Entry { version: e.version, ..twin };
                e.name.column = ColumnIndex(1);
            });
        },
        &[Finding::SlotsClash { slot: UNUSED, other: OPEN }]),
    ("a row has a wrong bit", |p| p.disk.flip_bit(p.g.row_offset(SEALED, 19) + 4095, 7), &[row(SEALED, 19)]),
    ("two rows were exchanged", |p| {
            let (a, b) = (p.g.row_offset(HOLED, 3), p.g.row_offset(HOLED, 9));
            let kept = p.bytes(a, BLOCK_BYTES);
            p.copy(b, a, BLOCK_BYTES);
            p.disk.write_raw(b, &kept);
        },
        &[row(HOLED, 3), row(HOLED, 9)]),
    ("a row was lost", |p| p.disk.write_raw(p.g.row_offset(SEALED, 0), &[0; BLOCK_BYTES]), &[row(SEALED, 0)]),
    ("a row cannot be read", |p| p.disk.add_latent_error(p.g.row_offset(SEALED, 16), 4096),
        &[Finding::RowUnreadable { slot: SEALED, row: RowIndex(16) }]),
    ("something in a hole", |p| p.disk.flip_bit(p.g.row_offset(HOLED, 5), 0),
        &[Finding::HoleNotZero { slot: HOLED, row: RowIndex(5) }]),
    ("a row that is called a hole", |p| p.row_table(HOLED, |t| t.holes.insert(2)),
        &[Finding::HoleNotZero { slot: HOLED, row: RowIndex(2) }]),
    ("row checksums cannot be read", |p| p.disk.add_latent_error(p.g.checksum_block_offset(SEALED), 4096),
        &[Finding::RowTableUnreadable { slot: SEALED }]),
    ("row checksums have a wrong bit", |p| p.disk.flip_bit(p.g.checksum_block_offset(SEALED) + 130, 0),
        &[Finding::RowTableDamaged { slot: SEALED, fault: RowTableFault::Garbled, rows_agree: true }]),
    ("row checksums and a row", |p| {
            p.disk.flip_bit(p.g.checksum_block_offset(SEALED) + 130, 0);
            p.disk.flip_bit(p.g.row_offset(SEALED, 1), 0);
        },
        &[Finding::RowTableDamaged { slot: SEALED, fault: RowTableFault::Garbled, rows_agree: false }]),
    ("row checksums of the slot's last column", |p| p.row_table(SEALED, |t| t.name = name(9)),
        &[Finding::RowTableDamaged { slot: SEALED, fault: RowTableFault::OtherColumn, rows_agree: true }]),
    ("row checksums of fewer rows", |p| p.row_table(SEALED, |t| {
            t.rows = RowIndex(19);
            t.crcs[19] = 0;
        }),
        &[Finding::RowTableDamaged { slot: SEALED, fault: RowTableFault::OtherRows, rows_agree: true }]),
    ("row checksums that bless a wrong row", |p| {
            p.disk.write_raw(p.g.row_offset(SEALED, 7), &[9; BLOCK_BYTES]);
            p.row_table(SEALED, |t| t.crcs[7] = crc_of(9));
        },
        &[Finding::RowTableDamaged { slot: SEALED, fault: RowTableFault::OtherCrc, rows_agree: false }]),
    ("something in a slot that counts as zeroed", |p| p.disk.write_raw(p.g.row_offset(FREED, 300), &[1; 512]),
        &[Finding::FreeSlotNotZero { slot: FREED, row: RowIndex(300) }]),
];

#[test]
fn every_planted_damage_is_found_and_nothing_else_and_nothing_is_written() {
    test(|env| async move {
        let (disk, g) = device(env).await;
        let sound = disk.image();
        for (damage, plant, expected) in DAMAGES {
            disk.set_image(sound.clone());
            plant(&Patient { disk: &disk, g });
            let (planted, writes) = (disk.image(), disk.stats().writes);
            let device = Device::open(&disk.spec()).await.unwrap();
            let report = check(&device, |_, _| ()).await;
            assert_eq!(report.findings.list(), *expected, "{damage}");
            let is_note = expected.iter().all(|f| f.severity() == Severity::Note);
            assert_eq!(report.is_clean(), is_note, "{damage}");
            assert_eq!(disk.stats().writes, writes);
            assert_eq!(disk.image().first_difference(&planted), None, "{damage}");
            disk.clear_latent_errors();
        }
    });
}

#[test]
fn all_that_a_device_can_have_is_planted() {
    let kinds: std::collections::BTreeSet<_> =
        DAMAGES.iter().flat_map(|(_, _, expected)| expected.iter()).map(Finding::kind).collect();
    assert_eq!(kinds.len(), 16, "{kinds:?}");
}
