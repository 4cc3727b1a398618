//! The disk format: bytes to values and back, nothing else. `docs/disk-format.md` is its description.
//!
//! What an encoder asserts, its decoder validates. No input makes a decoder panic (`fuzz_*`).

use crate::error::LabelError;
use peristyle_base::crc::Crc32c;
use peristyle_base::{
    BLOCK_BYTES, COLUMN_BYTES, COLUMN_ROWS, ColumnIndex, ColumnName, DeviceId, Epoch, ExtentId, MIB, Nonce,
    RowIndex, Scheme, ShardId, SlotIndex, Uuid, crc32c,
};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

pub const FORMAT_VERSION: u32 = 1;
pub const ENTRY_BYTES: usize = 64;
/// Entries in one page of the slot table.
pub const PAGE_ENTRIES: usize = BLOCK_BYTES / ENTRY_BYTES;
/// The unit that a device writes wholly or not at all, as far as the format relies on it.
pub const ATOMIC_BYTES: usize = 512;
/// Slots of one device at most: 32 TiB.
pub const SLOTS_MAX: u32 = 1 << 24;
const ROWS: usize = COLUMN_ROWS as usize;
const BLOCK: u64 = BLOCK_BYTES as u64;
const LABEL_MAGIC: [u8; 8] = *b"PRSTYLE\0";
const MARKER_MAGIC: [u8; 8] = *b"PRFORMAT";
const CRC_MAGIC: [u8; 8] = *b"PRROWCRC";

const _: () = assert!(ATOMIC_BYTES % ENTRY_BYTES == 0, "an entry never crosses an atomic unit");
const _: () = assert!(PAGE_ENTRIES == 64);

/// Where everything lies: a function of the device's size alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    pub device_bytes: u64,
    pub slots: u32,
    pub table_pages: u32,
    pub table_offset: [u64; 2],
    pub checksum_offset: u64,
    pub slots_offset: u64,
}

impl Geometry {
    /// `None` when not even one slot fits.
    pub fn of(device_bytes: u64) -> Option<Geometry> {
        let device_bytes = device_bytes / BLOCK * BLOCK;
        let mut slots = (device_bytes / (COLUMN_BYTES + BLOCK)).min(SLOTS_MAX as u64) as u32;
        // At most a few steps: the areas in front are a small share of one slot each, plus the padding.
        while slots > 0 {
            let g = Geometry::with_slots(device_bytes, slots);
            if g.slots_offset + slots as u64 * COLUMN_BYTES + BLOCK <= device_bytes {
                return Some(g);
            }
            slots -= 1;
        }
        None
    }

    fn with_slots(device_bytes: u64, slots: u32) -> Geometry {
        let table_pages = slots.div_ceil(PAGE_ENTRIES as u32);
        let table_bytes = table_pages as u64 * BLOCK;
        let checksum_offset = BLOCK + 2 * table_bytes;
        let slots_offset = (checksum_offset + slots as u64 * BLOCK).next_multiple_of(COLUMN_BYTES);
        let table_offset = [BLOCK, BLOCK + table_bytes];
        Geometry { device_bytes, slots, table_pages, table_offset, checksum_offset, slots_offset }
    }

    /// The smallest device that holds `slots` slots.
    pub fn bytes_for(slots: u32) -> u64 {
        Geometry::with_slots(0, slots).slots_offset + slots as u64 * COLUMN_BYTES + BLOCK
    }
    pub fn label_offset(&self, copy: usize) -> u64 {
        if copy == 0 { 0 } else { self.device_bytes - BLOCK }
    }
    pub fn page_offset(&self, copy: usize, page: u32) -> u64 {
        assert!(page < self.table_pages);
        self.table_offset[copy] + page as u64 * BLOCK
    }
    pub fn checksum_block_offset(&self, slot: SlotIndex) -> u64 {
        assert!(slot.0 < self.slots);
        self.checksum_offset + slot.0 as u64 * BLOCK
    }
    pub fn row_offset(&self, slot: SlotIndex, row: u16) -> u64 {
        assert!(slot.0 < self.slots && row <= COLUMN_ROWS);
        self.slots_offset + slot.0 as u64 * COLUMN_BYTES + row as u64 * BLOCK
    }
    /// Entries that page `page` really has (the last one may have fewer than 64).
    pub fn entries_in_page(&self, page: u32) -> u32 {
        (self.slots - page * PAGE_ENTRIES as u32).min(PAGE_ENTRIES as u32)
    }
}

/// What a device says about itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Label {
    pub cluster: Uuid,
    pub device: DeviceId,
    pub generation: u64,
    pub geometry: Geometry,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct RawLabel {
    magic: [u8; 8],
    version: U32,
    copy: U32,
    cluster: [u8; 16],
    device: [u8; 16],
    generation: U64,
    device_bytes: U64,
    slots: U32,
    table_pages: U32,
    table_offset: [U64; 2],
    checksum_offset: U64,
    slots_offset: U64,
    block_bytes: U32,
    column_bytes: U32,
    flags: U64,
    zero: [u8; 3972],
    crc: U32,
}
const _: () = assert!(size_of::<RawLabel>() == BLOCK_BYTES);

impl Label {
    pub fn encode(&self, copy: usize, out: &mut [u8]) {
        assert!(copy < 2 && Geometry::of(self.geometry.device_bytes) == Some(self.geometry));
        let g = &self.geometry;
        let raw = RawLabel {
            magic: LABEL_MAGIC,
            version: FORMAT_VERSION.into(),
            copy: (copy as u32).into(),
            cluster: self.cluster.0,
            device: self.device.0,
            generation: self.generation.into(),
            device_bytes: g.device_bytes.into(),
            slots: g.slots.into(),
            table_pages: g.table_pages.into(),
            table_offset: [g.table_offset[0].into(), g.table_offset[1].into()],
            checksum_offset: g.checksum_offset.into(),
            slots_offset: g.slots_offset.into(),
            block_bytes: (BLOCK_BYTES as u32).into(),
            column_bytes: (COLUMN_BYTES as u32).into(),
            flags: 0.into(),
            zero: [0; 3972],
            crc: 0.into(),
        };
        out.copy_from_slice(raw.as_bytes());
        seal_crc(out, None);
    }

    pub fn decode(copy: usize, bytes: &[u8]) -> Result<Label, LabelError> {
        let raw = RawLabel::ref_from_bytes(bytes).map_err(|_| LabelError::Damaged)?;
        if raw.magic != LABEL_MAGIC {
            let blank = bytes.iter().all(|&b| b == 0);
            return Err(match blank {
                true => LabelError::Blank,
                false if is_format_marker(bytes) => LabelError::Formatting,
                false => LabelError::Foreign,
            });
        }
        if raw.crc.get() != block_crc(bytes, None) {
            return Err(LabelError::Damaged);
        }
        if raw.version.get() != FORMAT_VERSION {
            return Err(LabelError::Version(raw.version.get()));
        }
        let stated = Geometry {
            device_bytes: raw.device_bytes.get(),
            slots: raw.slots.get(),
            table_pages: raw.table_pages.get(),
            table_offset: [raw.table_offset[0].get(), raw.table_offset[1].get()],
            checksum_offset: raw.checksum_offset.get(),
            slots_offset: raw.slots_offset.get(),
        };
        if raw.copy.get() as usize != copy
            || Geometry::of(stated.device_bytes) != Some(stated)
            || raw.block_bytes.get() as usize != BLOCK_BYTES
            || raw.column_bytes.get() as u64 != COLUMN_BYTES
            || raw.flags.get() != 0
            || raw.zero.iter().any(|&b| b != 0)
        {
            return Err(LabelError::Geometry);
        }
        Ok(Label {
            cluster: Uuid(raw.cluster),
            device: Uuid(raw.device),
            generation: raw.generation.get(),
            geometry: stated,
        })
    }
}

/// The first block of a device that is being formatted: lies in one sector.
pub fn encode_format_marker(cluster: Uuid, out: &mut [u8]) {
    out.fill(0);
    out[..8].copy_from_slice(&MARKER_MAGIC);
    out[8..12].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
    out[16..32].copy_from_slice(&cluster.0);
    let crc = crc32c(&out[..508]);
    out[508..512].copy_from_slice(&crc.to_le_bytes());
}

fn is_format_marker(block: &[u8]) -> bool {
    block[..8] == MARKER_MAGIC && block[508..512] == crc32c(&block[..508]).to_le_bytes()
}

fn block_crc(block: &[u8], device: Option<DeviceId>) -> u32 {
    let mut crc = Crc32c::default();
    if let Some(device) = device {
        crc.update(&device.0);
    }
    crc.update(&block[..block.len() - 4]);
    crc.finish()
}

fn seal_crc(block: &mut [u8], device: Option<DeviceId>) {
    let crc = block_crc(block, device);
    let at = block.len() - 4;
    block[at..].copy_from_slice(&crc.to_le_bytes());
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(u8)]
pub enum SlotState {
    #[default]
    Free = 0,
    Open = 1,
    Sealed = 2,
    /// The target of a rebuild or move: never read.
    Filling = 3,
}

/// Whom a slot is given to. A class may use the reserves of those before it, never of those after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
#[repr(u8)]
pub enum AllocClass {
    #[default]
    User = 0,
    Collection = 1,
    /// Checkpoints and events.
    Meta = 2,
    /// Appending again what was in flight when an extent was abandoned.
    Reappend = 3,
}

impl AllocClass {
    pub const ALL: [AllocClass; 4] =
        [AllocClass::User, AllocClass::Collection, AllocClass::Meta, AllocClass::Reappend];
}

/// One entry of the slot table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Entry {
    pub state: SlotState,
    pub zeroed: bool,
    pub fenced: bool,
    pub class: AllocClass,
    pub name: ColumnName,
    /// `None` when free.
    pub scheme: Option<Scheme>,
    pub epoch: Epoch,
    pub rows: RowIndex,
    pub column_crc: u32,
    pub version: u64,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct RawEntry {
    state: u8,
    flags: u8,
    column: u8,
    k: u8,
    m: u8,
    class: u8,
    rows: U16,
    shard: U32,
    column_crc: U32,
    extent: U64,
    epoch: U64,
    nonce: [u8; 16],
    version: U64,
    slot: U32,
    crc: U32,
}
const _: () = assert!(size_of::<RawEntry>() == ENTRY_BYTES);

const FLAG_ZEROED: u8 = 1;
const FLAG_FENCED: u8 = 2;

impl Entry {
    pub fn encode(&self, device: DeviceId, slot: SlotIndex, out: &mut [u8]) {
        self.assert_valid();
        let raw = RawEntry {
            state: self.state as u8,
            flags: self.zeroed as u8 * FLAG_ZEROED | self.fenced as u8 * FLAG_FENCED,
            column: self.name.column.0,
            k: self.scheme.map_or(0, |s| s.k() as u8),
            m: self.scheme.map_or(0, |s| s.m() as u8),
            class: self.class as u8,
            rows: self.rows.0.into(),
            shard: self.name.shard.0.into(),
            column_crc: self.column_crc.into(),
            extent: self.name.extent.0.into(),
            epoch: self.epoch.0.into(),
            nonce: self.name.nonce.0,
            version: self.version.into(),
            slot: slot.0.into(),
            crc: 0.into(),
        };
        out.copy_from_slice(raw.as_bytes());
        seal_crc(out, Some(device));
    }

    /// `None` when this copy of the entry cannot be trusted.
    pub fn decode(device: DeviceId, slot: SlotIndex, bytes: &[u8]) -> Option<Entry> {
        let raw = RawEntry::ref_from_bytes(bytes).ok()?;
        if raw.crc.get() != block_crc(bytes, Some(device)) || raw.slot.get() != slot.0 {
            return None;
        }
        let entry = Entry {
            state: match raw.state {
                0 => SlotState::Free,
                1 => SlotState::Open,
                2 => SlotState::Sealed,
                3 => SlotState::Filling,
                _ => return None,
            },
            zeroed: raw.flags & FLAG_ZEROED != 0,
            fenced: raw.flags & FLAG_FENCED != 0,
            class: *AllocClass::ALL.get(raw.class as usize)?,
            name: ColumnName {
                shard: ShardId(raw.shard.get()),
                extent: ExtentId(raw.extent.get()),
                column: ColumnIndex(raw.column),
                nonce: Nonce(raw.nonce),
            },
            scheme: match (raw.k, raw.m) {
                (0, 0) => None,
                (k, m) => Some(Scheme::new(k, m)?),
            },
            epoch: Epoch(raw.epoch.get()),
            rows: RowIndex(raw.rows.get()),
            column_crc: raw.column_crc.get(),
            version: raw.version.get(),
        };
        (raw.flags & !(FLAG_ZEROED | FLAG_FENCED) == 0 && entry.is_valid()).then_some(entry)
    }

    fn assert_valid(&self) {
        assert!(self.is_valid(), "an entry that could not be read back: {self:?}");
    }

    fn is_valid(&self) -> bool {
        let free = Entry { zeroed: self.zeroed, version: self.version, ..Entry::default() };
        if self.state == SlotState::Free {
            return *self == free;
        }
        let Some(scheme) = self.scheme else { return false };
        self.name.extent <= ExtentId::MAX
            && (self.name.column.0 as usize) < scheme.width()
            && self.rows.0 <= COLUMN_ROWS
            && (self.state == SlotState::Sealed || (self.rows.0 == 0 && self.column_crc == 0))
    }
}

/// The slot that an entry with a good checksum is for.
pub(crate) fn slot_of_entry(device: DeviceId, bytes: &[u8]) -> Option<SlotIndex> {
    let raw = RawEntry::ref_from_bytes(bytes).ok()?;
    (raw.crc.get() == block_crc(bytes, Some(device))).then_some(SlotIndex(raw.slot.get()))
}

/// A contiguous run of rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowRange {
    pub first: RowIndex,
    pub count: u16,
}

impl RowRange {
    pub fn new(first: u16, count: u16) -> RowRange {
        RowRange { first: RowIndex(first), count }
    }
    /// One past the last row; may lie beyond a column.
    pub fn end(&self) -> u32 {
        self.first.0 as u32 + self.count as u32
    }
    /// The rows as indices. Only of ranges that lie in a column.
    pub fn rows(&self) -> std::ops::Range<usize> {
        self.first.0 as usize..self.end() as usize
    }
}

/// A set of rows: one bit per row of a column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowSet(pub [u8; ROWS / 8]);

impl Default for RowSet {
    fn default() -> Self {
        RowSet([0; ROWS / 8])
    }
}

impl RowSet {
    pub fn contains(&self, row: usize) -> bool {
        self.0[row / 8] >> (row % 8) & 1 == 1
    }
    pub fn insert(&mut self, row: usize) {
        self.0[row / 8] |= 1 << (row % 8);
    }
    pub fn count(&self) -> usize {
        self.0.iter().map(|b| b.count_ones() as usize).sum()
    }
}

/// Why row checksums are not those of a slot's column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowTableFault {
    /// Damaged, or never written.
    Garbled,
    OtherColumn,
    OtherRows,
    /// Whole, of this column, and not what its entry was sealed with.
    OtherCrc,
}

/// The CRCs of a sealed column's rows, as they are kept beside the slot.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RowTable {
    pub name: ColumnName,
    pub rows: RowIndex,
    pub holes: RowSet,
    pub crcs: [u32; ROWS],
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct RawRowTable {
    magic: [u8; 8],
    version: U32,
    slot: U32,
    extent: U64,
    shard: U32,
    column: u8,
    zero0: u8,
    rows: U16,
    nonce: [u8; 16],
    column_crc: U32,
    zero1: [u8; 12],
    holes: [u8; ROWS / 8],
    crcs: [U32; ROWS],
    zero2: [u8; 1916],
    crc: U32,
}
const _: () = assert!(size_of::<RawRowTable>() == BLOCK_BYTES);

/// The CRC over a column's row CRCs: what the slot table's entry holds.
pub fn column_crc(row_crcs: &[u32]) -> u32 {
    let mut crc = Crc32c::default();
    row_crcs.iter().for_each(|row| crc.update(&row.to_le_bytes()));
    crc.finish()
}

impl RowTable {
    pub fn column_crc(&self) -> u32 {
        column_crc(&self.crcs[..self.rows.0 as usize])
    }

    pub fn encode(&self, device: DeviceId, slot: SlotIndex, out: &mut [u8]) {
        assert!(self.rows.0 <= COLUMN_ROWS && self.crcs[self.rows.0 as usize..].iter().all(|&c| c == 0));
        assert!((self.rows.0 as usize..ROWS).all(|row| !self.holes.contains(row)));
        let raw = RawRowTable {
            magic: CRC_MAGIC,
            version: FORMAT_VERSION.into(),
            slot: slot.0.into(),
            extent: self.name.extent.0.into(),
            shard: self.name.shard.0.into(),
            column: self.name.column.0,
            zero0: 0,
            rows: self.rows.0.into(),
            nonce: self.name.nonce.0,
            column_crc: self.column_crc().into(),
            zero1: [0; 12],
            holes: self.holes.0,
            crcs: self.crcs.map(U32::from),
            zero2: [0; 1916],
            crc: 0.into(),
        };
        out.copy_from_slice(raw.as_bytes());
        seal_crc(out, Some(device));
    }

    /// `None` when the block is damaged or speaks of another column.
    pub fn decode(device: DeviceId, slot: SlotIndex, entry: &Entry, bytes: &[u8]) -> Option<RowTable> {
        Self::examine(device, slot, entry, bytes).ok()
    }

    /// As [`decode`](Self::decode), with what is wrong.
    pub fn examine(
        device: DeviceId,
        slot: SlotIndex,
        entry: &Entry,
        bytes: &[u8],
    ) -> Result<RowTable, RowTableFault> {
        let table = Self::parse(device, slot, bytes).ok_or(RowTableFault::Garbled)?;
        match table {
            _ if table.name != entry.name => Err(RowTableFault::OtherColumn),
            _ if table.rows != entry.rows => Err(RowTableFault::OtherRows),
            _ if table.column_crc() != entry.column_crc => Err(RowTableFault::OtherCrc),
            table => Ok(table),
        }
    }

    fn parse(device: DeviceId, slot: SlotIndex, bytes: &[u8]) -> Option<RowTable> {
        let raw = RawRowTable::ref_from_bytes(bytes).ok()?;
        if raw.crc.get() != block_crc(bytes, Some(device))
            || raw.magic != CRC_MAGIC
            || raw.version.get() != FORMAT_VERSION
            || raw.slot.get() != slot.0
            || raw.rows.get() > COLUMN_ROWS
            || raw.zero0 != 0
            || raw.zero1.iter().chain(&raw.zero2).any(|&b| b != 0)
        {
            return None;
        }
        let table = RowTable {
            name: ColumnName {
                shard: ShardId(raw.shard.get()),
                extent: ExtentId(raw.extent.get()),
                column: ColumnIndex(raw.column),
                nonce: Nonce(raw.nonce),
            },
            rows: RowIndex(raw.rows.get()),
            holes: RowSet(raw.holes),
            crcs: raw.crcs.map(U32::get),
        };
        let rows = table.rows.0 as usize;
        let rest_is_zero = (rows..ROWS).all(|r| table.crcs[r] == 0 && !table.holes.contains(r));
        (rest_is_zero && table.column_crc() == raw.column_crc.get()).then_some(table)
    }
}

/// Fuzz entry: no label makes the decoder panic, and what it accepts it would write the same way.
pub fn fuzz_label(input: &[u8]) {
    for copy in 0..2 {
        if let Ok(label) = Label::decode(copy, input) {
            let mut out = vec![0; BLOCK_BYTES];
            label.encode(copy, &mut out);
            assert_eq!(out, input);
        }
    }
}

/// Fuzz entry for one page of the slot table. The CRC is made right, so that the checks behind it are reached.
pub fn fuzz_page(input: &[u8]) {
    let device = Uuid([7; 16]);
    for (slot, bytes) in input.chunks_exact(ENTRY_BYTES).take(PAGE_ENTRIES).enumerate() {
        let slot = SlotIndex(slot as u32);
        let mut fixed: [u8; ENTRY_BYTES] = bytes.try_into().expect("chunks are exact");
        seal_crc(&mut fixed, Some(device));
        for bytes in [bytes, &fixed[..]] {
            if let Some(entry) = Entry::decode(device, slot, bytes) {
                let mut out = [0; ENTRY_BYTES];
                entry.encode(device, slot, &mut out);
                assert_eq!(out, bytes);
            }
        }
    }
}

/// Fuzz entry for a block of row checksums.
pub fn fuzz_row_table(input: &[u8]) {
    let (device, slot) = (Uuid([7; 16]), SlotIndex(0));
    let Ok(raw) = RawRowTable::ref_from_bytes(input) else { return };
    let entry = Entry {
        state: SlotState::Sealed,
        name: ColumnName {
            shard: ShardId(raw.shard.get()),
            extent: ExtentId(raw.extent.get()),
            column: ColumnIndex(raw.column),
            nonce: Nonce(raw.nonce),
        },
        rows: RowIndex(raw.rows.get()),
        column_crc: raw.column_crc.get(),
        ..Entry::default()
    };
    let mut fixed = input.to_vec();
    seal_crc(&mut fixed, Some(device));
    for bytes in [input, &fixed] {
        if let Some(table) = RowTable::decode(device, slot, &entry, bytes) {
            let mut out = vec![0; BLOCK_BYTES];
            table.encode(device, slot, &mut out);
            assert_eq!(out, bytes);
        }
    }
}

/// What must be blank before a device is formatted without force: this much at either end.
pub const BLANK_BYTES: u64 = MIB;
