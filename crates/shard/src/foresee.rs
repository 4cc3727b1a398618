//! What a takeover has to know, read before the shard is taken: while the former owner still serves, or its lease runs out. Hosts
//! wait for neither.
//!
//! Nothing is relied on that may have changed since. Of the checkpoint every block is compared with the checksum in the pointer to it, and
//! what was read is of use only if the record names the same checkpoint when the shard is owned. Of the log whole frames' headers are
//! kept, which stay as they are: rows are written once, and the takeover reads on behind them, in fenced columns. What cannot be
//! read at once is left to it.

use crate::checkpoint::{Loaded, MapBlocks};
use crate::columns::{Columns, ListedSlot, SlotState};
use crate::error::ShardError;
use crate::find::{Ahead, LAST_ROWS, Last, Whose, header_columns};
use crate::map::{Limits, Ptr};
use crate::replay::Found;
use peristyle_base::{BLOCK_BYTES, ColumnIndex, ExtentId, Nonce, RowIndex, Seq, crc32c};
use peristyle_cluster::ShardRecord;
use peristyle_rt::{Buf, View};
use std::collections::BTreeMap;

/// Frames of the log that are read before a takeover at most.
const FRAMES_MAX: usize = 1 << 14;
/// Rows of a column that are read at a time.
const ROWS: u16 = 64;

/// What was read of a shard before it was taken.
#[derive(Default)]
pub(crate) struct Foreseen {
    pub checkpoint: Option<Loaded>,
    pub log: ForeseenLog,
}

/// What was read of a shard's log.
#[derive(Default)]
pub(crate) struct ForeseenLog {
    beginnings: BTreeMap<ExtentId, Beginning>,
    sealed: BTreeMap<ExtentId, Sealed>,
}

/// Frames at the beginning of an extent, without a gap.
struct Beginning {
    nonce: Nonce,
    frames: Vec<Found>,
}

/// A sealed extent: its rows, and its last frame.
struct Sealed {
    nonce: Nonce,
    rows: u16,
    last: Seq,
}

impl ForeseenLog {
    pub fn frames(&self) -> usize {
        self.beginnings.values().map(|b| b.frames.len()).sum()
    }

    /// Frames of an extent in its first `rows` rows, in order and without a gap from its first row on.
    pub fn take_beginning(&mut self, id: ExtentId, nonce: Nonce, rows: u16) -> Vec<Found> {
        let beginning = self.beginnings.remove(&id).filter(|b| b.nonce == nonce);
        let mut frames = beginning.map_or(Vec::new(), |b| b.frames);
        frames.truncate(frames.partition_point(|f| f.header.layout().end_row() <= rows));
        frames
    }

    /// Rows that an extent's frames take.
    pub fn rows_of(&self, id: ExtentId, nonce: Nonce) -> u16 {
        let beginning = self.beginnings.get(&id).filter(|b| b.nonce == nonce);
        beginning.and_then(|b| b.frames.last()).map_or(0, |last| last.header.layout().end_row())
    }

    /// The number of a sealed extent's last frame, a user's.
    pub fn last_of(&self, id: ExtentId, nonce: Nonce, rows: u16) -> Option<Seq> {
        self.sealed.get(&id).filter(|s| s.nonce == nonce && s.rows == rows).map(|s| s.last)
    }
}

impl Foreseen {
    /// Reads the checkpoint that the record names, and what there is of the log behind it. Whoever gives up waiting has
    /// what was read until then.
    pub async fn read(&mut self, record: &ShardRecord, columns: &impl Columns, limits: Limits) {
        let glance = Glance { slots: slots(record, columns).await, columns };
        if let Some(checkpoint) = &record.checkpoint {
            self.checkpoint = Loaded::read(&glance, checkpoint, limits).await.ok();
        }
        let (from, mark) = record.checkpoint.as_ref().map_or((Seq(0), ExtentId(0)), |c| (c.seq, c.mark));
        let is_open = |id: &ExtentId| record.open_set.iter().any(|open| open.extent == *id);
        for (&id, slots) in glance.slots.iter().filter(|(id, _)| **id >= mark || is_open(id)) {
            glance.look_into(id, slots, from, &mut self.log).await;
            if self.log.frames() >= FRAMES_MAX {
                return;
            }
        }
    }
}

type Slots = BTreeMap<ExtentId, Vec<ListedSlot>>;

/// Where the shard's columns are. Of two copies of one either will do.
async fn slots(record: &ShardRecord, columns: &impl Columns) -> Slots {
    let mut slots = Slots::new();
    let listed = columns.list(record.shard).await.into_iter().filter_map(|(_, list)| list.ok()).flatten();
    for slot in listed.filter(|slot| slot.state != SlotState::Filling) {
        slots.entry(slot.name.extent).or_default().push(slot);
    }
    slots
}

/// The shard's columns as they are now, for somebody who does not own it.
struct Glance<'a, C> {
    columns: &'a C,
    slots: Slots,
}

impl<C: Columns> Glance<'_, C> {
    /// Takes note of an extent's frames, as far as they can be read without a gap, unless it is sealed and the checkpoint up to
    /// `from` has all of them.
    async fn look_into(&self, id: ExtentId, slots: &[ListedSlot], from: Seq, log: &mut ForeseenLog) {
        let Some(slot) = first_with_headers(slots) else { return };
        let whose = Whose { shard: slot.name.shard, extent: id, nonce: slot.name.nonce, scheme: slot.scheme };
        // Where columns disagree, what is beyond the shortest is void.
        let sealed = slots.iter().filter(|s| s.state == SlotState::Sealed && s.name.nonce == whose.nonce);
        let rows = sealed.map(|s| s.rows).min();
        if let Some(rows) = rows {
            let first = rows.saturating_sub(LAST_ROWS);
            let Some(read) = self.read(slot, first, rows - first).await else { return };
            if let Last::User(last) = whose.last_in(&read, first) {
                log.sealed.insert(id, Sealed { nonce: whose.nonce, rows, last });
                if last <= from {
                    return;
                }
            }
        }
        let limit = rows.unwrap_or(peristyle_base::COLUMN_ROWS);
        let frames = self.frames(slot, &whose, limit, FRAMES_MAX - log.frames()).await;
        log.beginnings.insert(id, Beginning { nonce: whose.nonce, frames });
    }

    /// The first frames of an extent, as one of its columns has them.
    async fn frames(&self, slot: &ListedSlot, whose: &Whose, limit: u16, most: usize) -> Vec<Found> {
        let (mut frames, mut row) = (Vec::new(), 0);
        let column = usize::from(slot.name.column.0);
        let mut ahead: Option<Ahead> = None;
        while row < limit && frames.len() < most {
            let Some(block) = ahead.as_ref().and_then(|ahead| ahead.block(row)) else {
                // Most of what is not sealed was never written to.
                let rows = if row == 0 { 1 } else { ROWS.min(limit - row) };
                drop(ahead.take());
                match self.read(slot, row, rows).await {
                    Some(view) => ahead = Some(Ahead { column, row, view }),
                    None => break,
                }
                continue;
            };
            let mut entries = Vec::new();
            let Ok(header) = whose.header(block, row, &mut entries) else { break };
            row = header.layout().end_row();
            frames.push(Found { header, entries });
        }
        frames
    }

    async fn read(&self, slot: &ListedSlot, row: u16, rows: u16) -> Option<View> {
        if rows == 0 {
            return None;
        }
        let buf = Buf::alloc(rows as usize * BLOCK_BYTES).await;
        let (result, buf) = self.columns.read(slot.place, slot.name, RowIndex(row), buf).await;
        result.is_ok().then(|| buf.freeze())
    }
}

fn first_with_headers(slots: &[ListedSlot]) -> Option<&ListedSlot> {
    let scheme = slots.first()?.scheme;
    header_columns(scheme).find_map(|column| slot_of(slots, ColumnIndex(column as u8)))
}

fn slot_of(slots: &[ListedSlot], column: ColumnIndex) -> Option<&ListedSlot> {
    slots.iter().find(|slot| slot.name.column == column)
}

impl<C: Columns> MapBlocks for Glance<'_, C> {
    async fn read_run(&self, run: &[Ptr]) -> Result<Vec<Vec<u8>>, ShardError> {
        let first = run[0];
        let slots = self.slots.get(&first.extent()).ok_or(ShardError::Unreadable)?;
        let slot = slot_of(slots, first.column()).ok_or(ShardError::Unreadable)?;
        let read = self.read(slot, first.row().0, run.len() as u16).await.ok_or(ShardError::Unreadable)?;
        let good = |(ptr, block): (&Ptr, &[u8])| {
            (crc32c(block) == ptr.crc()).then(|| block.to_vec()).ok_or(ShardError::Unreadable)
        };
        run.iter().zip(read.chunks_exact(BLOCK_BYTES)).map(good).collect()
    }
}
