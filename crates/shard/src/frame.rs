//! Frames: the header block's bytes, and where a frame's blocks lie. Pure.
//!
//! A frame of n blocks takes one header row and R = ceil(n/k) data rows. Data blocks fill the rows column-major
//! (the first R in column 0, …); the header stands in column 0 and in every parity column, so that any m losses
//! leave one. `docs/disk-format.md`, "Frame header", has the byte table.

use peristyle_base::{
    BLOCK_BYTES, COLUMN_ROWS, ColumnIndex, Epoch, ExtentId, LayerId, Nonce, RowIndex, Scheme, Seq, ShardId,
    crc32c,
};

/// Data blocks of one frame at most. DESIGN §2.
pub const FRAME_BLOCKS_MAX: usize = 240;
/// A frame is made smaller to fit the rest of an extent when that has room for so many blocks at least.
pub const FITTING_MIN: usize = 16;
/// Entries of one header at most: data blocks, ranges and events.
pub const ENTRIES_MAX: usize = (BLOCK_BYTES - ENTRIES_AT) / ENTRY_BYTES;

const MAGIC: u64 = u64::from_le_bytes(*b"PERIFRM1");
const VERSION: u16 = 1;
const ENTRIES_AT: usize = 96;
const ENTRY_BYTES: usize = 16;
const CRC_AT: usize = 12;
const NONCE_AT: usize = 16;

const _: () = assert!(ENTRIES_MAX >= FRAME_BLOCKS_MAX + 8, "a full frame has room for ranges and events");

/// What a frame is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FrameKind {
    /// Stands in the user sequence: replay applies it.
    User,
    /// Blocks of a checkpoint: the control store's record points at them, replay passes over them.
    Meta,
    /// Relocated blocks of a victim extent (collection).
    Relocation,
}

/// One effect of a frame. Ranges and events come before data (DESIGN §11).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Entry {
    /// Block `block` of `layer` has the frame's next data block, with this CRC32C.
    Data { layer: LayerId, block: u64, crc: u32 },
    /// `count` blocks read as zeros from now on.
    Zero { layer: LayerId, block: u64, count: u32 },
    /// The layer exists, with so many blocks.
    LayerCreated { layer: LayerId, blocks: u64 },
    /// The layer and its blocks are gone.
    LayerDropped { layer: LayerId },
    /// The layer has so many blocks now.
    LayerResized { layer: LayerId, blocks: u64 },
    /// The volume's layer is frozen as a snapshot, and layer `new` lies on top of it.
    SnapshotTaken { volume: LayerId, snapshot: LayerId, new: LayerId },
    /// A volume whose layer `new` lies on a snapshot's.
    SnapshotCloned { volume: LayerId, snapshot: LayerId, new: LayerId },
    /// The volume has layer `new`, on top of the snapshot's, instead of the one that it had.
    RolledBack { volume: LayerId, snapshot: LayerId, new: LayerId },
    /// Nothing of a layer is left in the checkpoint: it has merged into its only child.
    LayerMerged { layer: LayerId },
    /// The volume's layer has all that it shows, and no parent any more.
    LayerParted { volume: LayerId },
    /// A block of a checkpoint: level 0 is a leaf, 1 a page of leaves, 2 the root stream, 3 a list of changed pointers,
    /// 4 the directory of the stream.
    Map { layer: LayerId, level: u8, first: u64, crc: u32 },
}

const KIND_DATA: u8 = 1;
const KIND_ZERO: u8 = 2;
const KIND_CREATED: u8 = 3;
const KIND_DROPPED: u8 = 4;
const KIND_RESIZED: u8 = 5;
const KIND_SNAPSHOT: u8 = 6;
const KIND_CLONED: u8 = 7;
const KIND_ROLLED_BACK: u8 = 8;
const KIND_MERGED: u8 = 9;
const KIND_PARTED: u8 = 10;
const KIND_MAP: u8 = 16; // + level
const MAP_LEVELS: u8 = 5;

impl Entry {
    fn encode(&self) -> [u8; ENTRY_BYTES] {
        let (kind, layer, block, value) = match *self {
            Entry::Data { layer, block, crc } => (KIND_DATA, layer, block, crc),
            Entry::Zero { layer, block, count } => (KIND_ZERO, layer, block, count),
            Entry::LayerCreated { layer, blocks } => (KIND_CREATED, layer, blocks, 0),
            Entry::LayerDropped { layer } => (KIND_DROPPED, layer, 0, 0),
            Entry::LayerResized { layer, blocks } => (KIND_RESIZED, layer, blocks, 0),
            Entry::SnapshotTaken { volume, snapshot, new } => {
                (KIND_SNAPSHOT, volume, snapshot.0.into(), new.0)
            }
            Entry::SnapshotCloned { volume, snapshot, new } => {
                (KIND_CLONED, volume, snapshot.0.into(), new.0)
            }
            Entry::RolledBack { volume, snapshot, new } => {
                (KIND_ROLLED_BACK, volume, snapshot.0.into(), new.0)
            }
            Entry::LayerMerged { layer } => (KIND_MERGED, layer, 0, 0),
            Entry::LayerParted { volume } => (KIND_PARTED, volume, 0, 0),
            Entry::Map { layer, level, first, crc } => (KIND_MAP + level, layer, first, crc),
        };
        assert!(block < 1 << 48, "block numbers have 48 bits");
        let mut out = [0; ENTRY_BYTES];
        out[..4].copy_from_slice(&layer.0.to_le_bytes());
        out[4..12].copy_from_slice(&(block | (kind as u64) << 56).to_le_bytes());
        out[12..].copy_from_slice(&value.to_le_bytes());
        out
    }

    fn decode(bytes: &[u8]) -> Option<Entry> {
        let layer = LayerId(u32_at(bytes, 0));
        let word = u64_at(bytes, 4);
        let (kind, block, value) = ((word >> 56) as u8, word & ((1 << 48) - 1), u32_at(bytes, 12));
        if word >> 48 & 0xff != 0 {
            return None;
        }
        let (snapshot, new) = (LayerId(block as u32), LayerId(value));
        Some(match kind {
            KIND_DATA => Entry::Data { layer, block, crc: value },
            KIND_ZERO if value > 0 => Entry::Zero { layer, block, count: value },
            KIND_CREATED if value == 0 => Entry::LayerCreated { layer, blocks: block },
            KIND_DROPPED if (block, value) == (0, 0) => Entry::LayerDropped { layer },
            KIND_RESIZED if value == 0 => Entry::LayerResized { layer, blocks: block },
            KIND_SNAPSHOT | KIND_CLONED | KIND_ROLLED_BACK
                if block > u32::MAX.into() || value == u32::MAX =>
            {
                return None;
            }
            KIND_SNAPSHOT => Entry::SnapshotTaken { volume: layer, snapshot, new },
            KIND_CLONED => Entry::SnapshotCloned { volume: layer, snapshot, new },
            KIND_ROLLED_BACK => Entry::RolledBack { volume: layer, snapshot, new },
            KIND_MERGED if (block, value) == (0, 0) => Entry::LayerMerged { layer },
            KIND_PARTED if (block, value) == (0, 0) => Entry::LayerParted { volume: layer },
            k if (KIND_MAP..KIND_MAP + MAP_LEVELS).contains(&k) => {
                Entry::Map { layer, level: k - KIND_MAP, first: block, crc: value }
            }
            _ => return None,
        })
    }

    /// Checksum of the data block that this entry stands for; `None` for ranges and events.
    pub fn data_crc(&self) -> Option<u32> {
        match *self {
            Entry::Data { crc, .. } | Entry::Map { crc, .. } => Some(crc),
            _ => None,
        }
    }
}

/// Everything in a header block but its entries.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    pub kind: FrameKind,
    pub nonce: Nonce,
    pub shard: ShardId,
    pub epoch: Epoch,
    pub extent: ExtentId,
    pub seq: Seq,
    /// Every frame up to this one was committed when the frame was built.
    pub committed: Seq,
    /// What this epoch's owner kept at its takeover: frames of lower epochs beyond it are void for ever.
    pub cut: Seq,
    pub first_row: RowIndex,
    pub scheme: Scheme,
    /// Data blocks.
    pub blocks: u16,
    pub entries: u16,
}

/// Why a block is no header of this extent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NotHeader {
    /// It does not carry the extent's nonce: no frame was written here.
    Absent,
    /// It carries the nonce, and its checksum or contents are wrong: damage, or a torn write.
    Damaged,
}

/// Whether a block, sound or not, was written as a header of the extent with this nonce.
pub fn has_nonce(block: &[u8], nonce: &Nonce) -> bool {
    block.get(NONCE_AT..32) == Some(&nonce.0[..])
}

impl Header {
    /// Writes the header and its entries into a block.
    /// # Panics — when counts disagree: the builder's mistake.
    pub fn encode<'a>(&self, entries: impl Iterator<Item = &'a Entry>, out: &mut [u8]) {
        assert_eq!(out.len(), BLOCK_BYTES);
        out.fill(0);
        out[0..8].copy_from_slice(&MAGIC.to_le_bytes());
        out[8..10].copy_from_slice(&VERSION.to_le_bytes());
        out[10] = self.kind as u8;
        out[NONCE_AT..32].copy_from_slice(&self.nonce.0);
        out[32..36].copy_from_slice(&self.shard.0.to_le_bytes());
        out[36..38].copy_from_slice(&self.blocks.to_le_bytes());
        out[38..40].copy_from_slice(&self.entries.to_le_bytes());
        out[40..48].copy_from_slice(&self.epoch.0.to_le_bytes());
        out[48..56].copy_from_slice(&self.extent.0.to_le_bytes());
        out[56..64].copy_from_slice(&self.seq.0.to_le_bytes());
        out[64..72].copy_from_slice(&self.committed.0.to_le_bytes());
        out[72..74].copy_from_slice(&self.first_row.0.to_le_bytes());
        out[74] = self.scheme.k() as u8;
        out[75] = self.scheme.m() as u8;
        out[80..88].copy_from_slice(&self.cut.0.to_le_bytes());
        let mut count = 0;
        for entry in entries {
            let at = ENTRIES_AT + count * ENTRY_BYTES;
            out[at..at + ENTRY_BYTES].copy_from_slice(&entry.encode());
            count += 1;
        }
        assert_eq!(count, self.entries as usize);
        let crc = crc32c(out);
        out[CRC_AT..CRC_AT + 4].copy_from_slice(&crc.to_le_bytes());
    }

    /// Reads a header of the extent with `nonce`, and appends its entries to `entries`.
    ///
    /// Bytes are trusted only after nonce and checksum agree, and then still validated: counts, ranges, scheme.
    pub fn decode(block: &[u8], nonce: &Nonce, entries: &mut Vec<Entry>) -> Result<Header, NotHeader> {
        if block.len() != BLOCK_BYTES || !has_nonce(block, nonce) {
            return Err(NotHeader::Absent);
        }
        let start = entries.len();
        Self::decode_carrier(block, entries)
            .ok_or(NotHeader::Damaged)
            .inspect_err(|_| entries.truncate(start))
    }

    fn decode_carrier(block: &[u8], entries: &mut Vec<Entry>) -> Option<Header> {
        let stored = u32_at(block, CRC_AT);
        let mut crc = peristyle_base::crc::Crc32c::default();
        crc.update(&block[..CRC_AT]);
        crc.update(&[0; 4]);
        crc.update(&block[CRC_AT + 4..]);
        if crc.finish() != stored || u64_at(block, 0) != MAGIC || u16_at(block, 8) != VERSION {
            return None;
        }
        let header = Header {
            kind: match block[10] {
                0 => FrameKind::User,
                1 => FrameKind::Meta,
                2 => FrameKind::Relocation,
                _ => return None,
            },
            nonce: Nonce(block[NONCE_AT..32].try_into().ok()?),
            shard: ShardId(u32_at(block, 32)),
            blocks: u16_at(block, 36),
            entries: u16_at(block, 38),
            epoch: Epoch(u64_at(block, 40)),
            extent: ExtentId(u64_at(block, 48)),
            seq: Seq(u64_at(block, 56)),
            committed: Seq(u64_at(block, 64)),
            first_row: RowIndex(u16_at(block, 72)),
            scheme: Scheme::new(block[74], block[75])?,
            cut: Seq(u64_at(block, 80)),
        };
        let (n, count) = (header.blocks as usize, header.entries as usize);
        if n > FRAME_BLOCKS_MAX || count > ENTRIES_MAX || n > count {
            return None;
        }
        // What version 1 leaves zero must be: a meaning for it comes with another version.
        let rest = &block[ENTRIES_AT + count * ENTRY_BYTES..];
        if block[11] != 0 || u32_at(block, 76) != 0 || u64_at(block, 88) != 0 || rest.iter().any(|&b| b != 0)
        {
            return None;
        }
        if header.first_row.0 as usize + header.layout().rows() > COLUMN_ROWS as usize {
            return None;
        }
        let (mut data, mut after_data) = (0, false);
        for i in 0..count {
            let entry = Entry::decode(&block[ENTRIES_AT + i * ENTRY_BYTES..][..ENTRY_BYTES])?;
            match entry.data_crc() {
                Some(_) => (data, after_data) = (data + 1, true),
                None if after_data => return None, // ranges and events come first
                None => {}
            }
            entries.push(entry);
        }
        (data == n).then_some(header)
    }

    pub fn layout(&self) -> Layout {
        Layout { scheme: self.scheme, first_row: self.first_row, blocks: self.blocks }
    }
}

/// Where the blocks of one frame lie.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Layout {
    pub scheme: Scheme,
    pub first_row: RowIndex,
    pub blocks: u16,
}

impl Layout {
    /// R: rows of data.
    pub fn data_rows(&self) -> usize {
        (self.blocks as usize).div_ceil(self.scheme.k())
    }
    /// The header row and the data rows.
    pub fn rows(&self) -> usize {
        1 + self.data_rows()
    }
    /// Row after the frame.
    pub fn end_row(&self) -> u16 {
        self.first_row.0 + self.rows() as u16
    }
    /// Column and row of data block `i`.
    pub fn place(&self, i: usize) -> (ColumnIndex, RowIndex) {
        let rows = self.data_rows();
        (ColumnIndex((i / rows) as u8), RowIndex(self.first_row.0 + 1 + (i % rows) as u16))
    }
    /// Which data block lies in a data column at a row of this frame; `None` is a hole (or the header row).
    pub fn block_at(&self, column: usize, row: u16) -> Option<usize> {
        let rows = self.data_rows();
        let offset = row.checked_sub(self.first_row.0 + 1)? as usize;
        let i = column * rows + offset;
        (column < self.scheme.k() && offset < rows && i < self.blocks as usize).then_some(i)
    }
    /// Data blocks `first..end` of a data column.
    pub fn blocks_of(&self, column: usize) -> std::ops::Range<usize> {
        let (rows, n) = (self.data_rows(), self.blocks as usize);
        (column * rows).min(n)..((column + 1) * rows).min(n)
    }
    pub fn has_header(&self, column: usize) -> bool {
        column == 0 || column >= self.scheme.k()
    }
    /// First row and number of rows that the frame writes in a column; `None` when it writes nothing there.
    pub fn written(&self, column: usize) -> Option<(u16, u16)> {
        if column >= self.scheme.k() {
            return Some((self.first_row.0, self.rows() as u16));
        }
        let data = self.blocks_of(column).len() as u16;
        match (self.has_header(column), data) {
            (true, n) => Some((self.first_row.0, 1 + n)),
            (false, 0) => None,
            (false, n) => Some((self.first_row.0 + 1, n)),
        }
    }
    /// Blocks that the frame writes over all columns.
    pub fn device_blocks(&self) -> usize {
        (0..self.scheme.width()).filter_map(|c| self.written(c)).map(|(_, n)| n as usize).sum()
    }
    /// Space that the frame takes: its rows over the extent's whole width.
    pub fn space(blocks: usize, scheme: Scheme) -> usize {
        (1 + blocks.div_ceil(scheme.k())) * scheme.width()
    }
}

/// Whether `blocks` go to a narrow extent: whichever takes less space; a tie goes wide (DESIGN §1).
pub fn goes_narrow(blocks: usize, scheme: Scheme) -> bool {
    Layout::space(blocks, scheme.narrow()) < Layout::space(blocks, scheme)
}

fn u16_at(b: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([b[at], b[at + 1]])
}
fn u32_at(b: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([b[at], b[at + 1], b[at + 2], b[at + 3]])
}
fn u64_at(b: &[u8], at: usize) -> u64 {
    u32_at(b, at) as u64 | (u32_at(b, at + 4) as u64) << 32
}

/// For the fuzzer: any block either decodes to a header that encodes to the same bytes, or is refused.
pub fn fuzz_header(input: &[u8]) {
    let mut block = [0u8; BLOCK_BYTES];
    let n = input.len().min(BLOCK_BYTES);
    block[..n].copy_from_slice(&input[..n]);
    let nonce = Nonce(block[NONCE_AT..32].try_into().expect("16 bytes"));
    let mut entries = Vec::new();
    // As it came, and once more with the checksum made right, so that what lies behind it is reached.
    for fix in [false, true] {
        if fix {
            block[CRC_AT..CRC_AT + 4].fill(0);
            let crc = crc32c(&block);
            block[CRC_AT..CRC_AT + 4].copy_from_slice(&crc.to_le_bytes());
        }
        entries.clear();
        if let Ok(header) = Header::decode(&block, &nonce, &mut entries) {
            let layout = header.layout();
            assert!(layout.end_row() <= COLUMN_ROWS);
            (0..header.blocks as usize).for_each(|i| {
                let (column, row) = layout.place(i);
                assert_eq!(layout.block_at(column.0 as usize, row.0), Some(i));
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn scheme(k: u8, m: u8) -> Scheme {
        Scheme::new(k, m).unwrap()
    }

    #[test]
    fn one_lone_block_goes_narrow_and_three_go_wide_on_4_2() {
        assert!(goes_narrow(1, scheme(4, 2)));
        assert!(goes_narrow(2, scheme(4, 2)));
        assert!(!goes_narrow(3, scheme(4, 2)), "a tie goes wide");
        assert!(!goes_narrow(1, scheme(1, 1)), "with k = 1 both are the same and one extent kind serves");
    }

    #[test]
    fn a_lone_write_costs_m_plus_one_device_writes() {
        let layout = Layout { scheme: scheme(1, 2), first_row: RowIndex(0), blocks: 1 };
        assert_eq!((0..3).filter_map(|c| layout.written(c)).count(), 3);
        assert_eq!(layout.device_blocks(), 6);
    }

    fn header(scheme: Scheme, first_row: u16, blocks: u16, entries: u16) -> Header {
        Header {
            kind: FrameKind::User,
            nonce: Nonce([7; 16]),
            shard: ShardId(3),
            epoch: Epoch(9),
            extent: ExtentId(77),
            seq: Seq(1000),
            committed: Seq(998),
            cut: Seq(500),
            first_row: RowIndex(first_row),
            scheme,
            blocks,
            entries,
        }
    }

    #[test]
    fn a_header_that_lost_any_byte_is_damaged_and_one_without_the_nonce_is_absent() {
        let entries: Vec<Entry> =
            (0..5).map(|i| Entry::Data { layer: LayerId(1), block: i, crc: i as u32 }).collect();
        let header = header(scheme(4, 2), 10, 5, 5);
        let mut block = vec![0; BLOCK_BYTES];
        header.encode(entries.iter(), &mut block);
        let mut parsed = Vec::new();
        assert_eq!(Header::decode(&block, &header.nonce, &mut parsed), Ok(header));
        assert_eq!(parsed, entries);
        assert_eq!(Header::decode(&block, &Nonce([8; 16]), &mut parsed), Err(NotHeader::Absent));
        for at in (0..BLOCK_BYTES).filter(|at| !(NONCE_AT..32).contains(at)) {
            block[at] ^= 0x40;
            assert_eq!(
                Header::decode(&block, &header.nonce, &mut parsed),
                Err(NotHeader::Damaged),
                "byte {at}"
            );
            block[at] ^= 0x40;
        }
        assert_eq!(parsed.len(), 5, "a refused header leaves no entries behind");
    }

    proptest! {
        #[test]
        fn every_block_has_one_place_and_every_place_its_block(
            k in 1u8..=16, m in 0u8..=4, n in 0u16..=240, first in 0u16..200
        ) {
            let layout = Layout { scheme: scheme(k, m), first_row: RowIndex(first), blocks: n };
            let mut seen = std::collections::HashSet::new();
            for i in 0..n as usize {
                let (column, row) = layout.place(i);
                prop_assert!(seen.insert((column, row)));
                prop_assert!(row.0 > first && row.0 < layout.end_row());
                prop_assert_eq!(layout.block_at(column.0 as usize, row.0), Some(i));
                prop_assert!(layout.blocks_of(column.0 as usize).contains(&i));
            }
            let blocks: usize = (0..k as usize).map(|c| layout.blocks_of(c).len()).sum();
            prop_assert_eq!(blocks, n as usize);
        }

        #[test]
        fn any_bytes_are_parsed_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..4096)) {
            fuzz_header(&bytes);
        }

        #[test]
        fn entries_survive_the_round_trip(raw in proptest::collection::vec((0u8..6, any::<u32>(), 0u64..1 << 48, 1u32..), 0..240)) {
            let mut entries: Vec<Entry> = raw.iter().map(|&(kind, layer, block, value)| {
                let layer = LayerId(layer);
                match kind {
                    0 => Entry::Zero { layer, block, count: value },
                    1 => Entry::LayerCreated { layer, blocks: block },
                    2 => Entry::LayerDropped { layer },
                    3 => Entry::LayerResized { layer, blocks: block },
                    4 => Entry::Map { layer, level: (value % 5) as u8, first: block, crc: value },
                    _ => Entry::Data { layer, block, crc: value },
                }
            }).collect();
            entries.sort_by_key(|e| e.data_crc().is_some());
            let data = entries.iter().filter(|e| e.data_crc().is_some()).count() as u16;
            let header = header(scheme(2, 1), 3, data, entries.len() as u16);
            let mut block = vec![0; BLOCK_BYTES];
            header.encode(entries.iter(), &mut block);
            let mut parsed = Vec::new();
            prop_assert_eq!(Header::decode(&block, &header.nonce, &mut parsed), Ok(header));
            prop_assert_eq!(parsed, entries);
        }
    }
}
