//! The nodes of a cluster, each a process on a machine of its own that may own any shard, with hosts inside that use whatever is served
//! there.

use super::Plan;
use super::hosts::{BLOCKS, Host, VOLUME_BLOCKS};
use super::machines::{device_id, machines};
use super::register::Registers;
use peristyle_base::{BLOCK_BYTES, LayerId, NodeId, ShardId, Uuid};
use peristyle_cluster::{DomainId, MemoryShardStore};
use peristyle_column::Discard;
use peristyle_node::{
    DeviceConfig, Node, NodeConfig, PeerConfig, PeerDevice, PeersConfig, ShardPhase, TargetConfig,
    VolumeSpec, Wish, seeds,
};
use peristyle_nvme::QpairLimits;
use peristyle_nvme::subsystem::Hosts;
use peristyle_nvme::wire::fabrics::Nqn;
use peristyle_rt::sim::{DiskHandle, NodeHandle, World, WorldHandle};
use peristyle_rt::{Addr, Duration, ReactorId};
use peristyle_shard::ShardConfig;
use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;

const CLUSTER: Uuid = Uuid([0xC2; 16]);
const NETWORK: u8 = 1;
const PORT: u16 = 7400;
const HOST_PORT: u16 = 4420;
pub(crate) const NQN: &str = "nqn.2026-01.io.peristyle:cluster";

/// What the world tells a node of one shard, and what it hears.
#[derive(Default)]
pub struct Order {
    pub own: Cell<Option<bool>>,
    /// It is served here, or taken up.
    pub serves: Cell<bool>,
    /// It is served here, and none of its columns is missing.
    pub whole: Cell<bool>,
    /// For people.
    pub phase: RefCell<String>,
}

pub struct Nodes {
    /// Who is to own each shard: whom nodes hand commands on to.
    pub owners: Rc<RefCell<Vec<usize>>>,
    pub machines: Vec<NodeHandle>,
    disks: Vec<DiskHandle>,
    pub orders: Vec<Rc<Vec<Order>>>,
    pub registers: Rc<RefCell<Registers>>,
    store: MemoryShardStore,
    clock: WorldHandle,
    plan: Plan,
}

fn addr(node: usize) -> SocketAddr {
    SocketAddr::from(([10, 0, NETWORK, node as u8 + 1], PORT))
}
/// Where hosts reach a node.
pub(crate) fn portal(node: usize) -> Addr {
    Addr::Tcp(SocketAddr::from(([10, 0, NETWORK, node as u8 + 1], HOST_PORT)))
}
fn number(node: usize) -> NodeId {
    NodeId(node as u32 + 1)
}
fn shard(i: usize) -> ShardId {
    ShardId(i as u32)
}

impl Nodes {
    /// Formats all devices; nobody runs yet.
    pub fn new(world: &World, plan: &Plan) -> Nodes {
        let shape = (plan.nodes, plan.shards, plan.volatile_cache);
        let (machines, disks) = machines(world, NETWORK, CLUSTER, shape);
        let orders = |_| Rc::new((0..plan.shards).map(|_| Order::default()).collect());
        Nodes {
            owners: Rc::new(RefCell::new((0..plan.shards).map(|s| s % plan.nodes).collect())),
            machines,
            disks,
            orders: (0..plan.nodes).map(orders).collect(),
            registers: Rc::new(RefCell::new(Registers::new(BLOCKS * plan.shards))),
            store: MemoryShardStore::default(),
            clock: world.handle(),
            plan: plan.clone(),
        }
    }

    pub fn boot(&self, i: usize) {
        let orders = self.orders[i].clone();
        for order in orders.iter() {
            order.own.set(None);
            order.serves.set(false);
            order.whole.set(false);
        }
        let (registers, clock, plan) = (self.registers.clone(), self.clock.clone(), self.plan.clone());
        let owners = self.owners.clone();
        // Made anew: nothing of a process outlives it.
        let seeds = seeds(&config(&plan, i, &self.disks[i]), plan.reactors, &self.store);
        self.machines[i].start(seeds, move |seed| {
            let (orders, registers, clock, plan) =
                (orders.clone(), registers.clone(), clock.clone(), plan.clone());
            let owners = owners.clone();
            async move {
                let node = Node::start(seed, false).await;
                if plan.exports {
                    node.start_target(target(&plan, i)).await.expect("its port is free");
                }
                for at in (0..plan.shards).filter(|&at| node.home_of(shard(at)) == Some(node.id())) {
                    for host in 0..plan.hosts {
                        let volume = node.volume(&volume(at)).expect("a shard of the pool");
                        let (registers, clock) = (registers.clone(), clock.clone());
                        let (first, rest_us) = (at * BLOCKS, plan.rest_us * (1 + host));
                        let host =
                            Host { volume, registers, clock, first, who: i, rest_us, writes: host == 0 };
                        peristyle_rt::spawn(host.run());
                    }
                }
                follow(node, orders, owners).await
            }
        });
    }

    /// Has the node own the shard from now on, or not any more.
    pub fn tell(&self, node: usize, shard: usize, own: bool) {
        self.orders[node][shard].own.set(Some(own));
    }
}

fn config(plan: &Plan, i: usize, disk: &DiskHandle) -> NodeConfig {
    let others = || (0..plan.nodes).filter(|&j| j != i);
    let peer = |j| PeerConfig { node: number(j), addr: addr(j), is_member: true };
    let device =
        |j| PeerDevice { id: device_id(j), node: number(j), domain: DomainId(j as u32), wish: Wish::Active };
    let home = |s: usize| ReactorId((s % plan.reactors) as u16);
    NodeConfig {
        node: number(i),
        cluster: CLUSTER,
        devices: vec![DeviceConfig {
            id: device_id(i),
            spec: disk.spec(),
            domain: DomainId(i as u32),
            home: ReactorId((i % plan.reactors) as u16),
            wish: Wish::Active,
            discard: Discard::Auto,
        }],
        peers: PeersConfig {
            listen: Some(addr(i)),
            peers: others().map(peer).collect(),
            ..PeersConfig::default()
        },
        peer_devices: others().map(device).collect(),
        shards: Vec::new(),
        peer_shards: (0..plan.shards).map(|s| (shard(s), home(s))).collect(),
        shard: ShardConfig {
            ready_extents: 2,
            checkpoint_log_bytes: plan.checkpoint_log_bytes,
            map_cache_bytes: 16 << 20,
            ..ShardConfig::new(plan.scheme)
        },
        rebuild_after: Duration::from_secs(3600),
        development: false,
    }
}

fn target(plan: &Plan, i: usize) -> TargetConfig {
    TargetConfig {
        listen: portal(i),
        portals: Vec::new(),
        nqn: Nqn::new(NQN).expect("a name"),
        serial: "1".into(),
        hosts: Hosts::Any,
        volumes: (0..plan.shards).map(volume).collect(),
        limits: QpairLimits::default(),
        forwards: true,
    }
}

fn volume(at: usize) -> VolumeSpec {
    VolumeSpec {
        name: format!("v{at}"),
        nsid: 1 + at as u32,
        uuid: Uuid([1 + at as u8; 16]),
        nguid: [1 + at as u8; 16],
        bytes: VOLUME_BLOCKS * BLOCK_BYTES as u64,
        lba_bytes: 4096,
        shard: shard(at),
        layer: LayerId(1 + at as u32),
        read_only: false,
    }
}

/// Does what a reactor is told of its shards, and tells how they are.
async fn follow(node: Rc<Node>, orders: Rc<Vec<Order>>, owners: Rc<RefCell<Vec<usize>>>) {
    loop {
        if node.id() == ReactorId(0) {
            let owners = owners.borrow();
            node.set_owners(owners.iter().enumerate().map(|(s, &owner)| (shard(s), number(owner))));
        }
        for (at, order) in
            orders.iter().enumerate().filter(|(at, _)| node.home_of(shard(*at)) == Some(node.id()))
        {
            if let Some(own) = order.own.take() {
                assert!(node.own(shard(at), own).await);
            }
            let phase = node.shard_phases().into_iter().find(|p| p.0 == shard(at)).map(|p| p.1);
            let served = node.shard(shard(at)).filter(|s| s.stopped().is_none());
            let figures = served.map(|s| s.repair_figures(peristyle_rt::now()));
            let sound = figures.map(|f| f.lost_columns + f.away_columns == 0 && f.working_ns == 0);
            order.serves.set(matches!(phase, Some(ShardPhase::Serving(_) | ShardPhase::Recovering(_))));
            order.whole.set(sound == Some(true));
            *order.phase.borrow_mut() = format!("{phase:?}, {figures:?}");
        }
        peristyle_rt::sleep(Duration::from_millis(10)).await;
    }
}
