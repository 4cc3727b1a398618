//! What is told of pools: their space, repair, collection and balance.

use serde::{Deserialize, Serialize};

/// How the pool's space is used.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct PoolInfo {
    pub name: String,
    pub scheme: String,
    /// Slots of 2 MiB on all devices: those that users' data may fill, and those in use.
    pub slots_total: u64,
    pub slots_used: u64,
    pub slots_free: u64,
    pub capacity_bytes: u64,
    pub used_bytes: u64,
    /// Blocks of volumes that hold data, and of the map in the log.
    pub live_blocks: u64,
    pub map_blocks: u64,
    /// Data blocks of extents behind which nothing is any more; headers and holes count.
    pub dead_blocks: u64,
    pub extents: Vec<ExtentCount>,
    /// Extents that hold nothing, and wait for a checkpoint or to be freed.
    pub waiting_extents: u64,
    /// Extents of another scheme, of which what they hold is converted to the pool's.
    #[serde(default)]
    pub extents_to_convert: u64,
    /// Extents that were freed since the start, without those that the start itself gave back.
    pub freed_extents: u64,
    /// Bytes of freed slots that were given back to the medium since the start.
    pub discarded_bytes: u64,
    #[serde(default)]
    pub repair: RepairInfo,
    #[serde(default)]
    pub collection: CollectionInfo,
}

/// What collection does, and what it and all else cost since the start.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct CollectionInfo {
    /// "off", "resting", "nothing to collect", "held back" (by the background pace), "running" or "in need" (no room for
    /// users: as fast as it goes).
    pub state: String,
    /// Blocks that it may move for each block that users write now.
    pub pace: f64,
    /// Blocks of volumes that it moved, and those of the last 3 s.
    pub moved_blocks: u64,
    pub moved_bytes: u64,
    pub moved_bytes_s: u64,
    /// Extents that it took, and the share of their space that was alive, on average.
    pub extents: u64,
    pub live_share: Option<f64>,
    /// Bytes that hosts wrote; that devices wrote for all purposes but zeroing slots; of these, for collection.
    pub user_bytes: u64,
    pub device_bytes: u64,
    pub collection_bytes: u64,
    /// `device_bytes` for each of `user_bytes`.
    pub write_amplification: Option<f64>,
    /// Space with its parity that users may fill, now or behind the next checkpoint. With less than the second, collection
    /// begins.
    pub room_bytes: u64,
    pub begins_below_bytes: u64,
}

/// What rebuild, rebalance and scrub have to do, and have done since the start.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct RepairInfo {
    /// Columns to rebuild or repair; those on devices that may come back; those on devices that are to leave.
    pub lost_columns: u64,
    pub away_columns: u64,
    pub draining_columns: u64,
    /// Columns that share a failure domain with another one of their extent, beyond one for each domain.
    #[serde(default)]
    pub crowded_columns: u64,
    /// Columns that were rebuilt or repaired or that left a draining device, and those that evened out use.
    pub remade_columns: u64,
    pub moved_columns: u64,
    /// Columns that were still there when their devices came back, and slots that were freed then.
    pub adopted_columns: u64,
    pub leftovers_freed: u64,
    /// Attempts that failed and are made again: devices that do not answer, or nowhere to go.
    pub failed_remakes: u64,
    /// Bytes per second of columns that are being made anew, and seconds until none is left at this rate.
    pub bytes_s: u64,
    pub remaining_s: Option<u64>,
    /// Damage that was found, and columns that were read for it.
    pub damaged_rows: u64,
    pub damaged_columns: u64,
    pub scrubbed_columns: u64,
    /// Extents that a scrub that was asked for has yet to read.
    pub scrub_left: u64,
    /// Seconds for which some column has not been verified; counted from the node's start at most.
    pub unverified_s: u64,
}

/// How even the devices' use is.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct BalanceInfo {
    pub devices: Vec<DeviceBalance>,
    /// The largest deviation of all devices, in percent of a device's capacity.
    pub deviation_percent: f64,
    pub repair: RepairInfo,
}

/// What would move if devices came or went.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct PlanInfo {
    pub scheme: String,
    /// Failure domains that would be left. With fewer than k+m of them new data gets a smaller k.
    pub domains: usize,
    pub devices: Vec<PlannedUse>,
    /// Bytes of columns that would be written to other devices, and what does not fit any.
    pub moved_bytes: u64,
    pub left_over_bytes: u64,
    /// At what the background class may take of every node.
    pub seconds_at_least: u64,
    /// Of columns, for users, now and then.
    pub capacity_bytes: u64,
    pub planned_capacity_bytes: u64,
}

#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct PlannedUse {
    pub path: String,
    pub node: Option<u32>,
    /// "stays", "comes" or "goes".
    pub fate: String,
    pub bytes: u64,
    pub used_bytes: u64,
    pub planned_bytes: u64,
}

#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct DeviceBalance {
    pub path: String,
    pub state: String,
    pub slots_total: u32,
    pub slots_used: u32,
    /// What it would hold if every device were as full as the pool.
    pub slots_share: u32,
    /// How much more it holds than that, in percent of its capacity.
    pub deviation_percent: f64,
}

/// Extents of one phase ("ready", "open", "closed", "sealed") and kind ("wide", "narrow", "other").
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct ExtentCount {
    pub phase: String,
    pub kind: String,
    pub extents: u64,
}
