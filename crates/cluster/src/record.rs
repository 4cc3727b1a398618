//! What the control store knows of a shard (DESIGN §4, "Control store record of a shard").

use core::ops::Deref;
use peristyle_base::{COLUMN_ROWS, ColumnIndex, ColumnPlace, Epoch, ExtentId, NodeId, Nonce};
use peristyle_base::{RowIndex, Scheme, Seq, ShardId};

/// Bytes of an encoded record: etcd's and our own limit.
pub const RECORD_BYTES_MAX: usize = 64 * 1024;
/// Extents of an open set. DESIGN §6 asks for at least 64 ready ones.
pub const OPEN_EXTENTS_MAX: usize = 128;
/// Blocks that a checkpoint's root may list.
pub const ROOT_BLOCKS_MAX: usize = 256;

/// Everything that a shard's next owner must know before it asks a device. Replaced as a whole, conditionally.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ShardRecord {
    pub shard: ShardId,
    pub epoch: Epoch,
    pub owner: NodeId,
    /// `None` until the first checkpoint: replay starts with the log's first frame.
    pub checkpoint: Option<CheckpointPtr>,
    /// Highest committed sequence number known when this was written: replay must reach it.
    pub committed: Seq,
    /// Every extent number below this may have been used; none above has.
    pub next_extent: ExtentId,
    /// Extents whose frames may be acknowledged (invariant "One writer"), by ascending number.
    pub open_set: Vec<OpenExtent>,
}

/// Where the checkpoint at sequence number `seq` lies in the log.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct CheckpointPtr {
    /// The exact state after this frame; replay starts with the next.
    pub seq: Seq,
    /// Replay needs to look at no extent below this one.
    pub mark: ExtentId,
    /// Length of the checkpoint in blocks.
    pub blocks: u32,
    /// Its root blocks in order: either all of them, or those that list the others.
    pub root: Vec<BlockPlace>,
}

/// One block of the log and its checksum.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct BlockPlace {
    pub extent: ExtentId,
    /// `column * 512 + row`.
    pub index: u16,
    pub crc: u32,
}

impl BlockPlace {
    /// Values of `index` are below this.
    pub const INDEX_END: u16 = Scheme::WIDTH_MAX as u16 * COLUMN_ROWS;

    pub fn new(extent: ExtentId, column: ColumnIndex, row: RowIndex, crc: u32) -> BlockPlace {
        assert!((column.0 as usize) < Scheme::WIDTH_MAX && row.0 < COLUMN_ROWS);
        BlockPlace { extent, index: column.0 as u16 * COLUMN_ROWS + row.0, crc }
    }
    pub fn column(&self) -> ColumnIndex {
        ColumnIndex((self.index / COLUMN_ROWS) as u8)
    }
    pub fn row(&self) -> RowIndex {
        RowIndex(self.index % COLUMN_ROWS)
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum ExtentState {
    /// Frames are, or may have been, appended.
    Open,
    /// Slots are allocated and no frame has been appended yet, as far as this record knows.
    Ready,
}

/// An extent of the open set, with its columns' places.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OpenExtent {
    pub extent: ExtentId,
    pub scheme: Scheme,
    pub nonce: Nonce,
    /// Epoch under which it was opened; under a higher one nothing is ever appended to it.
    pub epoch: Epoch,
    pub state: ExtentState,
    /// As many as the scheme is wide, on different devices.
    pub columns: ColumnPlaces,
}

/// Places of up to 20 columns, without allocation; derefs to a slice.
#[derive(Clone, Copy)]
pub struct ColumnPlaces {
    len: u8,
    places: [ColumnPlace; Scheme::WIDTH_MAX],
}

impl ColumnPlaces {
    /// # Panics — with more than [`Scheme::WIDTH_MAX`] places.
    pub fn new(places: &[ColumnPlace]) -> ColumnPlaces {
        let mut out = ColumnPlaces { len: places.len() as u8, places: Default::default() };
        out.places[..places.len()].copy_from_slice(places);
        out
    }
    pub fn as_slice(&self) -> &[ColumnPlace] {
        &self.places[..self.len as usize]
    }
}

impl Deref for ColumnPlaces {
    type Target = [ColumnPlace];
    fn deref(&self) -> &[ColumnPlace] {
        self.as_slice()
    }
}
impl PartialEq for ColumnPlaces {
    fn eq(&self, other: &ColumnPlaces) -> bool {
        self.as_slice() == other.as_slice()
    }
}
impl Eq for ColumnPlaces {}
impl core::fmt::Debug for ColumnPlaces {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        self.as_slice().fmt(f)
    }
}
impl FromIterator<ColumnPlace> for ColumnPlaces {
    fn from_iter<I: IntoIterator<Item = ColumnPlace>>(iter: I) -> ColumnPlaces {
        let mut out = ColumnPlaces::new(&[]);
        for place in iter {
            out.places[out.len as usize] = place;
            out.len += 1;
        }
        out
    }
}
