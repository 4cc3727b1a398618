//! The way of a recovery through devices at rest: whatever would write is refused.

use super::Resting;
use crate::columns::{AllocClass, ColumnFault, Columns, Fate, ListedSlot, WriteClass};
use crate::commit::apply;
use crate::encode::Kept;
use crate::error::ShardError;
use crate::map::MapFull;
use crate::recover::{Rebuilt, RecoverError};
use crate::shard::{Shard, ShardConfig, State};
use peristyle_base::{ColumnName, ColumnPlace, DeviceId, Epoch, RowIndex, Scheme, ShardId, SlotIndex};
use peristyle_cluster::{DeviceView, ShardRecord, ShardStore, StoreError, Version};
use peristyle_rt::{Buf, IoVec, View};
use std::rc::Rc;

/// Memory of a map that is looked at: all of it fits.
const MAP_BYTES: u64 = 1 << 50;

pub(super) struct ReadOnly<R>(pub Rc<R>);

impl<R: Resting> Columns for ReadOnly<R> {
    fn devices(&self, _: AllocClass, _: &mut Vec<DeviceView>) {}

    async fn allocate(
        &self,
        _: DeviceId,
        _: ColumnName,
        _: Scheme,
        _: Epoch,
        _: AllocClass,
    ) -> Result<SlotIndex, ColumnFault> {
        Err(ColumnFault::Refused)
    }

    async fn allocate_filling(
        &self,
        _: DeviceId,
        _: ColumnName,
        _: Scheme,
        _: Epoch,
    ) -> Result<SlotIndex, ColumnFault> {
        Err(ColumnFault::Refused)
    }

    async fn append(
        &self,
        _: ColumnPlace,
        _: ColumnName,
        _: Epoch,
        _: RowIndex,
        _: IoVec,
        _: View,
        _: WriteClass,
    ) -> Result<(), ColumnFault> {
        Err(ColumnFault::Refused)
    }

    /// Nobody has these devices open, so there is nobody to keep out.
    async fn fence(&self, _: ColumnPlace, _: ColumnName, _: Epoch) -> Result<(), ColumnFault> {
        Ok(())
    }

    async fn read(
        &self,
        place: ColumnPlace,
        name: ColumnName,
        row: RowIndex,
        buf: Buf,
    ) -> (Result<(), ColumnFault>, Buf) {
        self.0.read(place, name, row, buf).await
    }

    /// Nothing is made anew here.
    async fn row_crcs(&self, _: ColumnPlace, _: ColumnName) -> Result<Vec<u32>, ColumnFault> {
        Err(ColumnFault::Refused)
    }

    async fn seal(
        &self,
        _: ColumnPlace,
        _: ColumnName,
        _: Epoch,
        _: u16,
        _: Vec<(u16, u16)>,
        _: Vec<u32>,
    ) -> Result<(), ColumnFault> {
        Err(ColumnFault::Refused)
    }

    async fn free(&self, _: ColumnPlace, _: ColumnName, _: Epoch) -> Result<(), ColumnFault> {
        Err(ColumnFault::Refused)
    }

    async fn list(&self, shard: ShardId) -> Vec<(DeviceId, Result<Vec<ListedSlot>, ColumnFault>)> {
        self.0.list(shard).await
    }

    /// Nor does any device come back.
    async fn list_device(&self, _: DeviceId, _: ShardId) -> Result<Vec<ListedSlot>, ColumnFault> {
        Err(ColumnFault::Refused)
    }

    fn fates(&self, _: &mut Vec<(DeviceId, Fate)>) {}

    fn report_bad(&self, _: DeviceId, _: Option<ColumnFault>) {}

    fn append_p99_ns(&self, _: DeviceId) -> u64 {
        0
    }
}

/// A control store that is never asked.
pub(super) struct NoStore;

impl ShardStore for NoStore {
    async fn load(&self, _: ShardId) -> Result<Option<(ShardRecord, Version)>, StoreError> {
        Err(StoreError::Unavailable)
    }
    async fn put(&self, _: ShardId, _: Version, _: &ShardRecord) -> Result<Version, StoreError> {
        Err(StoreError::Unavailable)
    }
}

impl<R: Resting> Shard<ReadOnly<R>, NoStore> {
    /// The shard as its next owner would find it: the checkpoint's map with the log applied, the tail that is kept included.
    pub(super) async fn look_at_rest(
        resting: Rc<R>,
        record: &ShardRecord,
        scheme: Scheme,
    ) -> Result<(Rc<Self>, Rebuilt), RecoverError> {
        let config = ShardConfig { map_cache_bytes: MAP_BYTES, ..ShardConfig::new(scheme) };
        let kept = Kept::take(scheme).await;
        let columns = Rc::new(ReadOnly(resting));
        let shard = Shard::new(record.shard, record.owner, config, columns, Rc::new(NoStore), kept);
        {
            let state = &mut *shard.state.borrow_mut();
            (state.next_extent, state.record) = (record.next_extent, record.clone());
        }
        shard.find_extents(record).await?;
        let rebuilt = shard.rebuild(record, Box::default()).await?;
        {
            let state = &mut *shard.state.borrow_mut();
            for &(seq, extent) in &rebuilt.kept {
                let mut copies = rebuilt.replay.candidates(seq);
                let found = copies.find(|f| f.header.extent == extent).expect("decided a moment ago");
                let (State { map, extents, .. }, layout) = (&mut *state, found.header.layout());
                apply(map, extents, extent, &layout, &found.entries)
                    .map_err(|MapFull| RecoverError::Checkpoint(ShardError::MapFull))?;
            }
        }
        Ok((shard, rebuilt))
    }
}
