//! An extent's slots, and its frames as its columns have them.

use super::Resting;
use crate::columns::{ColumnFault, ListedSlot, SlotState};
use crate::find::header_columns;
use crate::frame::{Entry, Header, NotHeader};
use peristyle_base::{
    BLOCK_BYTES, COLUMN_ROWS, ColumnIndex, ColumnName, DeviceId, ExtentId, Nonce, RowIndex, Scheme, ShardId,
};
use peristyle_rt::Buf;
use std::collections::BTreeMap;

/// Rows that are read at once.
const CHUNK_ROWS: u16 = 16;

/// The slots that say that they hold a column of an extent.
#[derive(Clone, Debug)]
pub struct ExtentSlots {
    pub shard: ShardId,
    pub id: ExtentId,
    /// What most of the slots say.
    pub scheme: Scheme,
    pub nonce: Nonce,
    /// By column; more than one slot is one too many.
    pub columns: Vec<Vec<ListedSlot>>,
    /// Slots that say otherwise.
    pub strays: Vec<ListedSlot>,
}

impl ExtentSlots {
    pub fn name(&self, column: usize) -> ColumnName {
        let (shard, extent, nonce) = (self.shard, self.id, self.nonce);
        ColumnName { shard, extent, column: ColumnIndex(column as u8), nonce }
    }
    /// The slot that counts: a sealed one rather than another.
    pub fn slot(&self, column: usize) -> Option<&ListedSlot> {
        let slots = self.columns.get(column)?;
        let readable = slots.iter().filter(|s| s.state != SlotState::Filling);
        readable.min_by_key(|s| s.state != SlotState::Sealed)
    }
    /// Rows at which it was sealed; `None` while no column is. A takeover that a column was away from may have given up frames
    /// at the end that another one had kept: what lies beyond the shortest column is void.
    pub fn sealed_rows(&self) -> Option<u16> {
        self.rows_of_sealed().min()
    }
    /// Those of the longest column.
    pub fn longest_rows(&self) -> Option<u16> {
        self.rows_of_sealed().max()
    }
    fn rows_of_sealed(&self) -> impl Iterator<Item = u16> + '_ {
        self.columns.iter().flatten().filter(|s| s.state == SlotState::Sealed).map(|s| s.rows)
    }
    pub fn header_columns(&self) -> impl Iterator<Item = usize> + use<> {
        header_columns(self.scheme)
    }
}

/// Slots by the extent that they name.
pub fn extents_of(
    shard: ShardId,
    lists: &[(DeviceId, Result<Vec<ListedSlot>, ColumnFault>)],
) -> BTreeMap<ExtentId, ExtentSlots> {
    let mut by_extent: BTreeMap<ExtentId, Vec<ListedSlot>> = BTreeMap::new();
    for slot in lists.iter().filter_map(|(_, list)| list.as_ref().ok()).flatten() {
        by_extent.entry(slot.name.extent).or_default().push(*slot);
    }
    by_extent.into_iter().map(|(id, slots)| (id, of_slots(shard, id, slots))).collect()
}

fn of_slots(shard: ShardId, id: ExtentId, slots: Vec<ListedSlot>) -> ExtentSlots {
    let says = |s: &ListedSlot| (s.name.nonce, s.scheme);
    let votes = |of: &ListedSlot| slots.iter().filter(|s| says(s) == says(of)).count();
    let most = slots.iter().max_by_key(|s| votes(s)).expect("an extent is known by a slot");
    let (nonce, scheme) = says(most);
    let mut extent = ExtentSlots {
        shard,
        id,
        scheme,
        nonce,
        columns: vec![Vec::new(); scheme.width()],
        strays: Vec::new(),
    };
    for slot in slots {
        match extent.columns.get_mut(slot.name.column.0 as usize) {
            Some(column) if says(&slot) == (nonce, scheme) => column.push(slot),
            _ => extent.strays.push(slot),
        }
    }
    extent
}

/// What a column has where a frame's header has to be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CopyState {
    Good,
    /// A header of this extent that says something else.
    Differs,
    /// The extent's nonce, and a wrong checksum.
    Damaged,
    /// Something that is no header.
    Absent,
    Unreadable,
    /// No device has the column.
    NoColumn,
}

/// One frame, as its header says.
#[derive(Clone, Debug)]
pub struct FrameAtRest {
    pub header: Header,
    pub entries: Vec<Entry>,
    /// What each column that has to has of the header.
    pub copies: Vec<(usize, CopyState)>,
}

impl FrameAtRest {
    /// The entry of the frame's data block `i`.
    pub fn data_entry(&self, i: usize) -> &Entry {
        &self.entries[self.entries.len() - self.header.blocks as usize + i]
    }
}

/// The frames of an extent, in row order.
#[derive(Clone, Debug, Default)]
pub struct Frames {
    pub list: Vec<FrameAtRest>,
    /// The row behind the last.
    pub end: u16,
    /// No copy of a header was good at `end`, although the extent's rows go on.
    pub broken: bool,
}

/// Reads all headers of an extent. Of an unsealed one, those behind its end may be frames that were never committed.
pub async fn read_frames<R: Resting>(resting: &R, extent: &ExtentSlots) -> Frames {
    read_frames_to(resting, extent, extent.sealed_rows()).await
}

/// Those in front of this row. `None`: up to where there are no more.
pub(super) async fn read_frames_to<R: Resting>(
    resting: &R,
    extent: &ExtentSlots,
    sealed_rows: Option<u16>,
) -> Frames {
    let limit = sealed_rows.unwrap_or(COLUMN_ROWS);
    let mut frames = Frames::default();
    while frames.end < limit {
        match read_frame(resting, extent, frames.end).await {
            Some(frame) => {
                frames.end = frame.header.layout().end_row();
                frames.list.push(frame);
            }
            None => {
                frames.broken = sealed_rows.is_some();
                break;
            }
        }
    }
    frames
}

async fn read_frame<R: Resting>(resting: &R, extent: &ExtentSlots, row: u16) -> Option<FrameAtRest> {
    let mut found: Option<(FrameAtRest, Buf)> = None;
    let mut copies = Vec::new();
    for column in extent.header_columns() {
        let block = match extent.slot(column) {
            None => {
                copies.push((column, CopyState::NoColumn));
                continue;
            }
            Some(_) => read(resting, extent, column, row, 1).await,
        };
        let Some(block) = block else {
            copies.push((column, CopyState::Unreadable));
            continue;
        };
        let mut entries = Vec::new();
        let state = match (Header::decode(&block, &extent.nonce, &mut entries), &found) {
            (Err(NotHeader::Absent), _) => CopyState::Absent,
            (Err(NotHeader::Damaged), _) => CopyState::Damaged,
            (Ok(h), _) if !is_here(&h, extent, row) => CopyState::Differs,
            (Ok(_), Some((_, first))) if first[..] == block[..] => CopyState::Good,
            (Ok(_), Some(_)) => CopyState::Differs,
            (Ok(header), None) => {
                found = Some((FrameAtRest { header, entries, copies: Vec::new() }, block));
                CopyState::Good
            }
        };
        copies.push((column, state));
    }
    found.map(|(frame, _)| FrameAtRest { copies, ..frame })
}

fn is_here(header: &Header, extent: &ExtentSlots, row: u16) -> bool {
    (header.shard, header.extent, header.first_row.0, header.scheme)
        == (extent.shard, extent.id, row, extent.scheme)
}

/// Some rows of a column, each `None` that cannot be read.
pub(super) async fn read_rows<R: Resting>(
    resting: &R,
    extent: &ExtentSlots,
    column: usize,
    row: u16,
    rows: u16,
) -> Vec<Option<Vec<u8>>> {
    let mut out = Vec::with_capacity(rows as usize);
    for first in (row..row + rows).step_by(CHUNK_ROWS as usize) {
        let count = CHUNK_ROWS.min(row + rows - first);
        match read(resting, extent, column, first, count).await {
            Some(chunk) => out.extend(chunk.chunks(BLOCK_BYTES).map(|block| Some(block.to_vec()))),
            // One bad sector fails the whole chunk: look at each row alone.
            None => {
                for row in first..first + count {
                    out.push(read(resting, extent, column, row, 1).await.map(|block| block.to_vec()));
                }
            }
        }
    }
    out
}

async fn read<R: Resting>(
    resting: &R,
    extent: &ExtentSlots,
    column: usize,
    row: u16,
    rows: u16,
) -> Option<Buf> {
    let place = extent.slot(column)?.place;
    let buf = Buf::alloc(rows as usize * BLOCK_BYTES).await;
    let (answer, buf) = resting.read(place, extent.name(column), RowIndex(row), buf).await;
    answer.ok().map(|()| buf)
}
