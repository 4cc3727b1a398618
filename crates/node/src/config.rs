//! What a node is started with.

use crate::bus::Message;
use crate::devices::{DeviceTable, SharedDevice, Wish};
use crate::message::{Reply, Request};
use crate::peer::{LeaseTable, PeerTable, PeersConfig};
use peristyle_base::{DeviceId, NodeId, ShardId, Uuid};
use peristyle_cluster::DomainId;
use peristyle_column::Discard;
use peristyle_rt::mesh::PortSeed;
use peristyle_rt::{DeviceSpec, Duration, ReactorId};
use peristyle_shard::ShardConfig;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize};

/// Messages between two reactors at most; a full ring makes the sender wait.
const MESH_CAPACITY: usize = 1024;

/// One device of the node.
#[derive(Clone, Debug)]
pub struct DeviceConfig {
    pub id: DeviceId,
    pub spec: DeviceSpec,
    pub domain: DomainId,
    pub home: ReactorId,
    pub wish: Wish,
    pub discard: Discard,
}

impl DeviceConfig {
    pub(crate) fn shared(&self) -> SharedDevice {
        SharedDevice::new(self.id, self.domain, self.home, self.path()).wishing(self.wish)
    }
    fn path(&self) -> String {
        match &self.spec {
            DeviceSpec::Path { path, .. } => path.display().to_string(),
            DeviceSpec::Memory { .. } => "memory".into(),
        }
    }
}

/// A device of another node, in the same pool.
#[derive(Clone, Debug)]
pub struct PeerDevice {
    pub id: DeviceId,
    pub node: NodeId,
    pub domain: DomainId,
    pub wish: Wish,
}

/// Everything that a node's reactors are started with.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    pub node: NodeId,
    pub cluster: Uuid,
    pub devices: Vec<DeviceConfig>,
    /// Other nodes, and what this one is to them.
    pub peers: PeersConfig,
    pub peer_devices: Vec<PeerDevice>,
    /// Shards of this node and the reactor that owns each.
    pub shards: Vec<(ShardId, ReactorId)>,
    /// Shards that other nodes own, and the reactor here that would own each: this node's devices keep slots back for them as
    /// well.
    pub peer_shards: Vec<(ShardId, ReactorId)>,
    pub shard: ShardConfig,
    /// A device that has not served for so long is rebuilt on the others.
    pub rebuild_after: Duration,
    /// Fault injection is allowed.
    pub development: bool,
}

impl NodeConfig {
    /// All shards that have columns on this node's devices.
    pub(crate) fn pool_shards(&self) -> Vec<ShardId> {
        self.all_shards().map(|s| s.0).collect()
    }
    pub(crate) fn all_shards(&self) -> impl Iterator<Item = (ShardId, ReactorId)> {
        self.shards.iter().chain(&self.peer_shards).copied()
    }
}

/// What one reactor needs to start. `Send`.
pub struct NodeSeed<S> {
    pub(crate) store: S,
    pub(crate) seed: Seed,
}

/// The rest of it, whatever the store is.
pub(crate) struct Seed {
    pub(crate) config: NodeConfig,
    pub(crate) devices: DeviceTable,
    pub(crate) port: PortSeed<Message<Request, Reply>>,
    /// Drawn by the first reactor that comes: what others know this process by.
    pub(crate) boot: Arc<AtomicU64>,
    pub(crate) leases: LeaseTable,
    pub(crate) peers: PeerTable,
    pub(crate) devices_open: Arc<AtomicUsize>,
    pub(crate) shards_ready: Arc<AtomicUsize>,
}

/// Seeds for all reactors of a node, in order.
pub fn seeds<S: Clone>(config: &NodeConfig, reactors: usize, store: &S) -> Vec<NodeSeed<S>> {
    let here = config.devices.iter().map(DeviceConfig::shared);
    let elsewhere = config.peer_devices.iter();
    let elsewhere = elsewhere.map(|d| SharedDevice::of_peer(d.id, d.domain, d.node).wishing(d.wish));
    let devices = DeviceTable::new(here.chain(elsewhere).collect());
    let boot = Arc::new(AtomicU64::new(0));
    let leases = match config.peers.is_alone() {
        true => LeaseTable::alone(),
        false => LeaseTable::of(config.all_shards().map(|s| s.0)),
    };
    let peers = PeerTable::new(&config.peers.peers);
    let (devices_open, shards_ready) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    peristyle_rt::mesh(reactors, MESH_CAPACITY)
        .into_iter()
        .map(|port| Seed {
            config: config.clone(),
            devices: devices.clone(),
            port,
            boot: boot.clone(),
            leases: leases.clone(),
            peers: peers.clone(),
            devices_open: devices_open.clone(),
            shards_ready: shards_ready.clone(),
        })
        .map(|seed| NodeSeed { store: store.clone(), seed })
        .collect()
}
