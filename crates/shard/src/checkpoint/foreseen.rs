//! A checkpoint that is read before its shard is taken: while the former owner still serves, or its lease runs out. Hosts wait for
//! neither.
//!
//! Nothing is relied on that may have changed since: every block is compared with the checksum in the pointer to it, and what was read is of use
//! only if the record names the same checkpoint when the shard is owned. What cannot be read at once is left to the takeover.

use super::load::{Loaded, MapBlocks};
use crate::columns::{Columns, SlotState};
use crate::error::ShardError;
use crate::map::{Limits, Ptr};
use peristyle_base::{BLOCK_BYTES, ColumnIndex, ColumnName, ColumnPlace, ExtentId, ShardId, crc32c};
use peristyle_cluster::ShardRecord;
use peristyle_rt::Buf;
use std::collections::HashMap;

/// Reads the checkpoint that the record names.
pub(crate) async fn foresee(record: &ShardRecord, columns: &impl Columns, limits: Limits) -> Option<Loaded> {
    let checkpoint = record.checkpoint.as_ref()?;
    let glance = Glance { places: places(record.shard, columns).await, columns };
    Loaded::read(&glance, checkpoint, limits).await.ok()
}

type Places = HashMap<(ExtentId, ColumnIndex), (ColumnPlace, ColumnName)>;

/// Where the shard's columns are. Of two copies of one either will do.
async fn places(shard: ShardId, columns: &impl Columns) -> Places {
    let listed = columns.list(shard).await.into_iter().filter_map(|(_, list)| list.ok()).flatten();
    let whole = listed.filter(|slot| slot.state != SlotState::Filling);
    whole.map(|slot| ((slot.name.extent, slot.name.column), (slot.place, slot.name))).collect()
}

/// The shard's columns as they are now, for somebody who does not own it.
struct Glance<'a, C> {
    columns: &'a C,
    places: Places,
}

impl<C: Columns> MapBlocks for Glance<'_, C> {
    async fn read_run(&self, run: &[Ptr]) -> Result<Vec<Vec<u8>>, ShardError> {
        let first = run[0];
        let (place, name) =
            *self.places.get(&(first.extent(), first.column())).ok_or(ShardError::Unreadable)?;
        let buf = Buf::alloc(run.len() * BLOCK_BYTES).await;
        let (Ok(()), buf) = self.columns.read(place, name, first.row(), buf).await else {
            return Err(ShardError::Unreadable);
        };
        let good = |(ptr, block): (&Ptr, &[u8])| {
            (crc32c(block) == ptr.crc()).then(|| block.to_vec()).ok_or(ShardError::Unreadable)
        };
        run.iter().zip(buf.chunks_exact(BLOCK_BYTES)).map(good).collect()
    }
}
