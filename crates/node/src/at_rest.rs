//! A pool whose devices no node has open, as offline tools reach it: every device is opened to be read only.

use crate::columns::listed;
use peristyle_base::{BLOCK_BYTES, COLUMN_ROWS, ColumnName, ColumnPlace, DeviceId, RowIndex, ShardId};
use peristyle_column::{Label, SlotInfo};
use peristyle_rt::{Buf, Device};
use peristyle_shard::at_rest::Resting;
use peristyle_shard::{ColumnFault, ListedSlot};
use std::collections::BTreeMap;

/// One device of the pool, looked at.
pub struct RestingDevice {
    pub device: Device,
    pub label: Label,
    pub columns: Vec<SlotInfo>,
}

/// The devices that were found, and those that the control store knows.
pub struct RestingPool {
    found: BTreeMap<DeviceId, RestingDevice>,
    /// Failure domains of the pool's devices, found or not.
    domains: BTreeMap<DeviceId, u32>,
}

impl RestingPool {
    pub fn new(domains: BTreeMap<DeviceId, u32>, devices: Vec<RestingDevice>) -> RestingPool {
        let found = devices.into_iter().map(|d| (d.label.device, d)).collect();
        RestingPool { found, domains }
    }

    /// The shards that have columns here.
    pub fn shards(&self) -> Vec<ShardId> {
        let mut shards: Vec<ShardId> =
            self.found.values().flat_map(|d| &d.columns).map(|c| c.name.shard).collect();
        shards.sort_unstable();
        shards.dedup();
        shards
    }
}

impl Resting for RestingPool {
    async fn list(&self, shard: ShardId) -> Vec<(DeviceId, Result<Vec<ListedSlot>, ColumnFault>)> {
        let columns_of = |d: &RestingDevice| {
            d.columns.iter().filter(|c| c.name.shard == shard).filter_map(listed).collect()
        };
        let there = self.found.iter().map(|(&id, device)| (id, Ok(columns_of(device))));
        let away = self.domains.keys().filter(|id| !self.found.contains_key(id));
        there.chain(away.map(|&id| (id, Err(ColumnFault::Device)))).collect()
    }

    async fn read(
        &self,
        place: ColumnPlace,
        name: ColumnName,
        row: RowIndex,
        buf: Buf,
    ) -> (Result<(), ColumnFault>, Buf) {
        let Some(found) = self.found.get(&place.device) else { return (Err(ColumnFault::Device), buf) };
        if !found.columns.iter().any(|c| (c.slot, c.name) == (place.slot, name)) {
            return (Err(ColumnFault::Missing), buf);
        }
        if row.0 as usize + buf.len() / BLOCK_BYTES > COLUMN_ROWS as usize {
            return (Err(ColumnFault::Refused), buf);
        }
        let offset = found.label.geometry.row_offset(place.slot, row.0);
        let (answer, buf) = found.device.read(offset, buf).await;
        (answer.map_err(|_| ColumnFault::Device), buf)
    }

    fn domain(&self, device: DeviceId) -> Option<u32> {
        self.domains.get(&device).copied()
    }
}
