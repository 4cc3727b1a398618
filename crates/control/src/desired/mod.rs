//! What the operator asked for, of one machine or of a cluster. [`State`] is a plain value and [`State::apply`] a plain function;
//! [`Control`] keeps it in a store, one transaction per change.

mod change;
mod nodes;
mod rules;
mod store;

pub use change::{Change, VolumeSpec};
pub use nodes::{FailureDomain, NODES_MAX, Node, NodeState};
pub use rules::{
    ControlError, DEVICES_MAX, LAYER_FIRST, LBA_BYTES_DEFAULT, NAME_BYTES_MAX, NQN_BYTES_MAX, POOLS_MAX,
    SHARDS_MAX, VOLUME_BYTES_MAX, VOLUME_BYTES_MIN, VOLUMES_MAX, check_name, check_nqn, check_volume_bytes,
};
pub use store::{Control, Follower};

use crate::serial::{layer_id, maybe_node_id, pool_id, shard_id, text, volume_id};
use peristyle_base::{DeviceId, LayerId, NodeId, PoolId, Scheme, ShardId, Uuid, VolumeId};
use peristyle_cluster::TooFewPolicy;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Version of the JSON below; a program refuses a newer one.
pub const FORMAT: u32 = 1;

/// Everything, as of one generation.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct State {
    pub cluster: Cluster,
    /// None on a machine that is alone.
    pub nodes: BTreeMap<NodeId, Node>,
    pub pools: BTreeMap<PoolId, Pool>,
    pub devices: BTreeMap<DeviceId, Device>,
    pub shards: BTreeMap<ShardId, Shard>,
    pub volumes: BTreeMap<VolumeId, Volume>,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cluster {
    pub format: u32,
    #[serde(with = "text")]
    pub uuid: Uuid,
    /// The NVM subsystem that all volumes are namespaces of.
    pub nqn: String,
    /// Rises by one with every change.
    pub generation: u64,
    /// Where the search for a free namespace id starts: ids are used in turn, so that a deleted volume's id
    /// comes back as late as possible.
    #[serde(with = "volume_id")]
    pub next_volume: VolumeId,
    /// Layer ids are never used twice.
    #[serde(with = "layer_id")]
    pub next_layer: LayerId,
    /// Rises by one with every node that joins: who votes has changed.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub membership: u64,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pool {
    #[serde(with = "pool_id")]
    pub id: PoolId,
    pub name: String,
    #[serde(with = "text")]
    pub scheme: Scheme,
    #[serde(with = "text")]
    pub too_few_domains: TooFewPolicy,
    #[serde(default, skip_serializing_if = "is_default")]
    pub failure_domain: FailureDomain,
}

fn is_zero(n: &u64) -> bool {
    *n == 0
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Device {
    /// From the device's label: this is the device, wherever it is plugged in.
    #[serde(with = "text")]
    pub id: DeviceId,
    #[serde(with = "pool_id")]
    pub pool: PoolId,
    /// What it fails together with; by default each device is a failure domain of its own.
    pub domain: u32,
    /// Where it was last seen: a hint.
    pub path: String,
    /// What the operator wants of it.
    #[serde(default)]
    pub state: DeviceState,
    /// The node that has it; it moves with the device.
    #[serde(default, with = "maybe_node_id", skip_serializing_if = "Option::is_none")]
    pub node: Option<NodeId>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DeviceState {
    #[default]
    Active,
    /// Its columns move to others; then it is removed.
    Draining,
    /// Given up: its columns are rebuilt on the others. It is not used again unless it is formatted.
    Failed,
    /// It has left. It is not used again unless it is formatted.
    Removed,
}

/// One log. All are of the one pool for now.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shard {
    #[serde(with = "shard_id")]
    pub id: ShardId,
    #[serde(with = "pool_id")]
    pub pool: PoolId,
    /// The reactor that owns it, modulo the number of reactors there are.
    pub reactor: u32,
    /// The node that is to own it, where there are several.
    #[serde(default, with = "maybe_node_id", skip_serializing_if = "Option::is_none")]
    pub owner: Option<NodeId>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VolumeState {
    /// Served to hosts.
    Active,
    /// Kept and not served: a snapshot that is not exported.
    Kept,
    /// No longer served; its blocks are being given back.
    Deleting,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Volume {
    /// Also its namespace id.
    #[serde(with = "volume_id")]
    pub id: VolumeId,
    pub name: String,
    #[serde(with = "text")]
    pub uuid: Uuid,
    /// The namespace's globally unique identifier, written like a UUID.
    #[serde(with = "text")]
    pub nguid: Uuid,
    pub bytes: u64,
    /// 4096 or 512.
    pub lba_bytes: u32,
    #[serde(with = "shard_id")]
    pub shard: ShardId,
    /// Its first layer.
    #[serde(with = "layer_id")]
    pub layer: LayerId,
    pub state: VolumeState,
    /// A snapshot of this volume: never written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot_of: Option<String>,
    /// The snapshot's layer that it was made on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cloned_from: Option<u32>,
}

impl State {
    pub fn volume(&self, name: &str) -> Option<&Volume> {
        self.volumes.values().find(|v| v.name == name)
    }
    /// Snapshots of a volume.
    pub fn snapshots_of<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Volume> {
        self.volumes.values().filter(move |v| v.snapshot_of.as_deref() == Some(name))
    }
    /// Volumes, and snapshots, that hosts see.
    pub fn active_volumes(&self) -> impl Iterator<Item = &Volume> {
        self.volumes.values().filter(|v| v.state == VolumeState::Active)
    }
}
