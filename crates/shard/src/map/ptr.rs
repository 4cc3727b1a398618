//! A pointer of the map, and 256 of them as a map block.

use super::{FANOUT, PTR_BYTES};
use peristyle_base::{COLUMN_ROWS, ColumnIndex, ExtentId, RowIndex};

/// Where one block lies: 16 bytes in memory and in map blocks (DESIGN §4).
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct Ptr {
    /// extent u48 | index u16 (column × 512 + row)
    word: u64,
    crc: u32,
    spare: u32,
}

/// What a pointer says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Lookup {
    /// Never written in this layer: ask the parent, or read zeros when there is none.
    Absent,
    /// Zeros: stop here.
    Zero,
    Data(Ptr),
    /// Its leaf is not in memory, and it was not changed since. No pointer says this of itself.
    Away,
}

impl Ptr {
    pub const ABSENT: Ptr = Ptr { word: 0, crc: 0, spare: 0 };
    pub const ZERO: Ptr = Ptr { word: ExtentId::MAX.0 << 16, crc: 0, spare: 0 };

    pub fn new(extent: ExtentId, column: ColumnIndex, row: RowIndex, crc: u32) -> Ptr {
        assert!(extent.0 > 0 && extent < ExtentId::MAX && row.0 < COLUMN_ROWS);
        Ptr { word: extent.0 << 16 | (column.0 as u64 * COLUMN_ROWS as u64 + row.0 as u64), crc, spare: 0 }
    }
    pub fn lookup(self) -> Lookup {
        match self.extent() {
            ExtentId(0) => Lookup::Absent,
            ExtentId::MAX => Lookup::Zero,
            _ => Lookup::Data(self),
        }
    }
    pub fn extent(self) -> ExtentId {
        ExtentId(self.word >> 16)
    }
    pub fn column(self) -> ColumnIndex {
        ColumnIndex(((self.word as u16) / COLUMN_ROWS) as u8)
    }
    pub fn row(self) -> RowIndex {
        RowIndex(self.word as u16 % COLUMN_ROWS)
    }
    pub fn crc(self) -> u32 {
        self.crc
    }
    pub fn encode(self) -> [u8; PTR_BYTES] {
        let mut out = [0; PTR_BYTES];
        out[..8].copy_from_slice(&self.word.to_le_bytes());
        out[8..12].copy_from_slice(&self.crc.to_le_bytes());
        out[12..].copy_from_slice(&self.spare.to_le_bytes());
        out
    }
    pub fn decode(bytes: &[u8]) -> Ptr {
        let at = |i: usize| u32::from_le_bytes([bytes[i], bytes[i + 1], bytes[i + 2], bytes[i + 3]]);
        Ptr { word: at(0) as u64 | (at(4) as u64) << 32, crc: at(8), spare: at(12) }
    }
}

impl core::fmt::Debug for Ptr {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self.lookup() {
            Lookup::Absent => f.write_str("absent"),
            Lookup::Zero => f.write_str("zero"),
            _ => write!(f, "{}.{}.{}", self.extent(), self.column(), self.row()),
        }
    }
}

pub type Block256 = [Ptr; FANOUT];

/// Encodes a map block.
pub fn encode_block(ptrs: &Block256, out: &mut [u8]) {
    for (ptr, bytes) in ptrs.iter().zip(out.chunks_exact_mut(PTR_BYTES)) {
        bytes.copy_from_slice(&ptr.encode());
    }
}

/// Decodes a map block.
pub fn decode_block(bytes: &[u8]) -> Box<Block256> {
    let mut ptrs = Box::new([Ptr::ABSENT; FANOUT]);
    decode_into(bytes, &mut ptrs);
    ptrs
}

pub(super) fn decode_into(bytes: &[u8], ptrs: &mut Block256) {
    for (ptr, bytes) in ptrs.iter_mut().zip(bytes.chunks_exact(PTR_BYTES)) {
        *ptr = Ptr::decode(bytes);
    }
}
