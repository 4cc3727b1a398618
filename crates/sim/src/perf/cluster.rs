//! The nodes.

use super::Setup;
use peristyle_base::{BLOCK_BYTES, DeviceId, LayerId, NodeId, Scheme, ShardId, Uuid};
use peristyle_cluster::{DomainId, MemoryShardStore};
use peristyle_column::{Discard, FormatOptions, Geometry, format};
use peristyle_node::{
    DeviceConfig, Node, NodeConfig, PeerConfig, PeerDevice, PeersConfig, ShardPhase, TargetConfig,
    VolumeSpec, Wish, seeds,
};
use peristyle_nvme::QpairLimits;
use peristyle_nvme::subsystem::Hosts;
use peristyle_nvme::wire::fabrics::Nqn;
use peristyle_rt::sim::{DiskConfig, DiskHandle, NodeHandle, World, WorldConfig};
use peristyle_rt::{Addr, BufConfig, Device, Duration, ReactorId};
use peristyle_shard::ShardConfig;
use std::cell::Cell;
use std::net::{Ipv4Addr, SocketAddr};
use std::rc::Rc;

pub const NQN: &str = "nqn.2026-01.io.peristyle:simulated";
/// Blocks of each volume.
pub const BLOCKS: u64 = 4096;
const CLUSTER: Uuid = Uuid([0xC3; 16]);
const PEER_PORT: u16 = 7400;
const PORT: u16 = 4420;
/// Everything that has to happen before a measurement has happened by then.
const LIMIT: Duration = Duration::from_secs(120);

/// What a node is told, and what it says.
#[derive(Default)]
struct Order {
    /// A shard to own.
    own: Cell<Option<usize>>,
    /// Of these it serves so many.
    serves: Cell<usize>,
}

pub struct Cluster {
    pub world: World,
    machines: Vec<NodeHandle>,
    orders: Vec<Rc<Order>>,
    /// The node that owns each shard.
    pub owners: Vec<usize>,
}

pub(super) fn ip(node: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 1, node as u8 + 1)
}

/// Where a node serves hosts.
pub fn portal(node: usize) -> Addr {
    Addr::Tcp((ip(node), PORT).into())
}

pub(super) fn device_id(node: usize) -> DeviceId {
    let mut id = [0xD0; 16];
    id[0] = node as u8;
    Uuid(id)
}

impl Cluster {
    /// Every shard is served when it returns.
    pub fn start(setup: &Setup) -> Cluster {
        // Each connection between nodes has two of the second size.
        let counts = [1024, 64 + 8 * setup.nodes, 32, 16, 16, 8];
        let buffers = BufConfig { counts, huge_pages: false };
        let config = WorldConfig { poll_ns: setup.poll_ns, buffers, ..WorldConfig::new(setup.seed) };
        let world = World::new(config);
        let machines: Vec<NodeHandle> = (0..setup.nodes).map(|i| world.add_node(ip(i))).collect();
        let bytes = Geometry::bytes_for(1024 + 16 * setup.nodes as u32);
        let formatted = |(i, machine)| formatted(&world, machine, i, bytes);
        let disks: Vec<DiskHandle> = machines.iter().enumerate().map(formatted).collect();
        let orders: Vec<Rc<Order>> = (0..setup.nodes).map(|_| Rc::default()).collect();
        let cluster = Cluster { world, machines, orders, owners: (0..setup.nodes).collect() };
        let store = MemoryShardStore::default();
        for (i, disk) in disks.iter().enumerate() {
            let others: Vec<usize> = (0..setup.nodes).filter(|&j| j != i).collect();
            let config = node_config(i, &others, disk, (setup.scheme, setup.nodes));
            cluster.boot(i, config, &store, cluster.orders[i].clone());
        }
        cluster.orders.iter().enumerate().for_each(|(i, order)| order.own.set(Some(i)));
        cluster.run_until(|| cluster.orders.iter().all(|order| order.serves.get() == 1));
        cluster
    }

    /// The last node goes, and the first one serves its shard.
    pub fn lose_one(&mut self) {
        let last = self.machines.len() - 1;
        self.machines[last].kill();
        self.owners[last] = 0;
        self.orders[0].own.set(Some(last));
        self.run_until(|| self.orders[0].serves.get() == 2);
    }

    fn boot(&self, i: usize, config: NodeConfig, store: &MemoryShardStore, order: Rc<Order>) {
        let nodes = self.machines.len();
        self.machines[i].start(seeds(&config, 1, store), move |seed| {
            let order = order.clone();
            async move {
                let node = Node::start(seed, false).await;
                node.start_target(target(i, nodes)).await.expect("the port is free");
                serve(node, order).await;
            }
        });
    }

    pub fn run_until(&self, done: impl FnMut() -> bool) {
        assert!(self.world.run_until(done, LIMIT), "it does not come that far in simulated {LIMIT:?}");
    }
    pub fn run_for(&self, time: Duration) {
        self.world.run_for(time);
    }
    pub fn now_nanos(&self) -> u64 {
        self.world.now_nanos()
    }
    pub fn turns(&self) -> Vec<u64> {
        self.machines.iter().map(NodeHandle::turns).collect()
    }
}

/// Owns what it is told to, and makes the volumes' layers.
async fn serve(node: Rc<Node>, order: Rc<Order>) {
    loop {
        if let Some(shard) = order.own.take() {
            assert!(node.own(ShardId(shard as u32), true).await);
        }
        let mut serves = 0;
        for (shard, phase) in node.shard_phases() {
            if !matches!(phase, ShardPhase::Serving(_)) {
                continue;
            }
            let volume = node.volume(&volume(shard.0 as usize)).expect("a shard of the pool");
            serves += usize::from(volume.ensure_layer(BLOCKS).await.is_ok());
        }
        order.serves.set(serves);
        peristyle_rt::sleep(Duration::from_millis(10)).await;
    }
}

/// A new disk in a machine, with a label. Its cache outlives a loss of power.
pub(super) fn formatted(world: &World, machine: &NodeHandle, i: usize, bytes: u64) -> DiskHandle {
    let disk = machine.add_disk("d", bytes, DiskConfig { volatile_cache: false, ..DiskConfig::default() });
    machine.start(vec![disk.spec()], move |spec| async move {
        let device = Device::open(&spec).await.expect("there");
        let options = FormatOptions { cluster: CLUSTER, device: device_id(i), force: false };
        format(&device, options).await.expect("blank");
    });
    assert!(world.run_until(|| !machine.is_running(), LIMIT), "a device is formatted");
    disk
}

fn number(node: usize) -> NodeId {
    NodeId(node as u32 + 1)
}

fn peer_addr(node: usize) -> SocketAddr {
    SocketAddr::from((ip(node), PEER_PORT))
}

/// A node as others know it.
pub(super) fn peer(node: usize) -> PeerConfig {
    PeerConfig { node: number(node), addr: peer_addr(node), is_member: true }
}

/// Its device.
pub(super) fn peer_device(node: usize) -> PeerDevice {
    PeerDevice { id: device_id(node), node: number(node), domain: domain(node), wish: Wish::Active }
}

pub(super) fn domain(node: usize) -> DomainId {
    DomainId(node as u32)
}

/// `others`: the nodes that it knows. `shards`: so many there are.
pub(super) fn node_config(
    i: usize,
    others: &[usize],
    disk: &DiskHandle,
    (scheme, shards): (Scheme, usize),
) -> NodeConfig {
    NodeConfig {
        node: number(i),
        cluster: CLUSTER,
        devices: vec![DeviceConfig {
            id: device_id(i),
            spec: disk.spec(),
            domain: domain(i),
            home: ReactorId(0),
            wish: Wish::Active,
            discard: Discard::Auto,
        }],
        peers: PeersConfig {
            listen: Some(peer_addr(i)),
            peers: others.iter().map(|&j| peer(j)).collect(),
            ..PeersConfig::default()
        },
        peer_devices: others.iter().map(|&j| peer_device(j)).collect(),
        shards: Vec::new(),
        peer_shards: (0..shards).map(|s| (ShardId(s as u32), ReactorId(0))).collect(),
        shard: ShardConfig {
            ready_extents: 2,
            shards,
            map_cache_bytes: 16 << 20,
            ..ShardConfig::new(scheme)
        },
        rebuild_after: Duration::from_secs(3600),
        development: false,
    }
}

pub(super) fn volume(at: usize) -> VolumeSpec {
    VolumeSpec {
        name: format!("v{at}"),
        nsid: 1 + at as u32,
        uuid: Uuid([1 + at as u8; 16]),
        nguid: [1 + at as u8; 16],
        bytes: BLOCKS * BLOCK_BYTES as u64,
        lba_bytes: 4096,
        shard: ShardId(at as u32),
        layer: LayerId(1 + at as u32),
        read_only: false,
    }
}

fn target(node: usize, nodes: usize) -> TargetConfig {
    TargetConfig {
        listen: portal(node),
        portals: Vec::new(),
        nqn: Nqn::new(NQN).expect("a name"),
        serial: "1".into(),
        hosts: Hosts::Any,
        volumes: (0..nodes).map(volume).collect(),
        limits: QpairLimits::default(),
        forwards: false,
    }
}
