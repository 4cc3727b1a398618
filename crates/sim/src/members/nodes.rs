//! The nodes: each a process on a machine of its own that joins the cluster, follows it as a program does (`member`), and has hosts inside
//! that use whatever is served there.

use super::Plan;
use super::store::{FarStore, Reach};
use crate::cluster::hosts::{BLOCKS, Host, VOLUME_BLOCKS};
use crate::cluster::machines::{device_id, machines};
use crate::cluster::register::Registers;
use peristyle_base::{BLOCK_BYTES, ColumnPlace, NodeId, ShardId, Uuid};
use peristyle_cluster::{ShardStore, TooFewPolicy};
use peristyle_column::Discard;
use peristyle_control::desired::{self, FailureDomain, NodeState, State};
use peristyle_control::member::{NewCluster, create_cluster, remove};
use peristyle_control::setup::{FoundDevice, VolumeWish};
use peristyle_control::{Change, Control, ControlError, MemoryStore, ShardRecords};
use peristyle_member::{Member, enter, peer_config, peer_devices, portals, spec_of};
use peristyle_node::{
    DeviceConfig, Node, NodeConfig, NodeSeed, PeersConfig, ShardPhase, TargetConfig, VolumeSpec, Wish, seeds,
};
use peristyle_nvme::QpairLimits;
use peristyle_nvme::subsystem::Hosts;
use peristyle_nvme::wire::fabrics::Nqn;
use peristyle_rt::sim::{DiskHandle, NodeHandle, World, WorldHandle};
use peristyle_rt::sync::Semaphore;
use peristyle_rt::{Addr, Duration, Instant, ReactorId, sleep};
use peristyle_shard::{Columns, RepairFigures, Shard, ShardConfig};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::rc::Rc;

type Store = ShardRecords<FarStore>;

const CLUSTER: Uuid = Uuid([0xC3; 16]);
const NQN: &str = "nqn.2026-01.io.peristyle:members";
const NETWORK: u8 = 2;
const PEER_PORT: u16 = 7400;
const HOST_PORT: u16 = 4420;

/// What the world tells a node, and what it sees of it.
#[derive(Default)]
pub struct Seen {
    /// It is to stop in order.
    pub leave: Cell<bool>,
    pub left: Cell<bool>,
    /// By shard: it is served here, none of its columns is missing, and each of an extent is in a rack of its own.
    pub whole: Vec<Cell<bool>>,
    /// For people.
    pub phases: RefCell<Vec<(ShardId, ShardPhase)>>,
}

pub struct Nodes {
    pub machines: Vec<NodeHandle>,
    /// Where somebody gives orders.
    pub operator: NodeHandle,
    disks: Vec<DiskHandle>,
    pub seen: Vec<Rc<Seen>>,
    pub registers: Rc<RefCell<Registers>>,
    store: MemoryStore,
    pub reach: Vec<Reach>,
    /// Nodes that join, and what the state was when they had.
    joining: RefCell<BTreeMap<usize, Rc<RefCell<Option<State>>>>>,
    clock: WorldHandle,
    plan: Plan,
}

fn number(node: usize) -> NodeId {
    NodeId(node as u32 + 1)
}
fn addr(node: usize, port: u16) -> SocketAddr {
    SocketAddr::from(([10, 0, NETWORK, node as u8 + 1], port))
}

impl Nodes {
    /// Formats all devices and makes the cluster; nobody runs yet.
    pub fn new(world: &World, plan: &Plan) -> Nodes {
        let shape = (plan.nodes, plan.shards, plan.volatile_cache);
        let (machines, disks) = machines(world, NETWORK, CLUSTER, shape);
        let clock = world.handle();
        let operator = clock.add_node([10, 0, NETWORK, 250].into());
        let now = clock.clone();
        let store = MemoryStore::with_clock(move || Instant(now.now_nanos()));
        let (store_away, made, shape) = (Rc::new(Cell::new(false)), store.clone(), plan.clone());
        machines[0].start(vec![()], move |()| found(made.clone(), shape.clone()));
        assert!(world.run_until(|| !machines[0].is_running(), Duration::from_secs(10)));
        let whole = || (0..plan.shards).map(|_| Cell::new(false)).collect();
        let reach = |_| Reach { store_away: store_away.clone(), ..Reach::default() };
        Nodes {
            seen: (0..plan.nodes).map(|_| Rc::new(Seen { whole: whole(), ..Seen::default() })).collect(),
            registers: Rc::new(RefCell::new(Registers::new(BLOCKS * plan.shards))),
            reach: (0..plan.nodes).map(reach).collect(),
            joining: RefCell::default(),
            plan: plan.clone(),
            machines,
            operator,
            disks,
            store,
            clock,
        }
    }

    /// The node joins, and starts when it has: see `tend`.
    pub fn boot(&self, i: usize) {
        let (store, joined) = (self.far_store(i), Rc::default());
        self.joining.borrow_mut().insert(i, Rc::clone(&joined));
        let rack = self.plan.racks.as_ref().map(|racks| racks[i]);
        self.machines[i].start(vec![()], move |()| join(store.clone(), i, rack, joined.clone()));
    }

    /// Starts those that have joined. False: others still do.
    pub fn tend(&self) -> bool {
        let has_joined = |i: &usize| !self.machines[*i].is_running();
        let done: Vec<usize> = self.joining.borrow().keys().copied().filter(has_joined).collect();
        for i in done {
            let joined = self.joining.borrow_mut().remove(&i).expect("just seen");
            match joined.take() {
                Some(state) => self.start(i, &state),
                // It was killed meanwhile.
                None => self.boot(i),
            }
        }
        self.joining.borrow().is_empty()
    }

    /// Somebody takes nodes out of the cluster, one after the other, and gives their devices up.
    pub fn remove(&self, nodes: &[usize]) {
        if nodes.is_empty() {
            return;
        }
        let (store, nodes) = (FarStore::new(self.store.clone(), Reach::default()), nodes.to_vec());
        self.operator.start(vec![()], move |()| remove_all(store.clone(), nodes.clone()));
    }

    pub fn kill(&self, i: usize) {
        self.machines[i].kill();
        self.seen[i].whole.iter().for_each(|whole| whole.set(false));
    }

    fn far_store(&self, i: usize) -> FarStore {
        FarStore::new(self.store.clone(), self.reach[i].clone())
    }

    fn start(&self, i: usize, state: &State) {
        let seen = self.seen[i].clone();
        seen.leave.set(false);
        seen.left.set(false);
        seen.whole.iter().for_each(|whole| whole.set(false));
        let config = config(&self.plan, state, i, &self.disks[i]);
        let volumes: Vec<VolumeSpec> = state.active_volumes().map(spec_of).collect();
        let store = self.far_store(i);
        let seeds = seeds(&config, self.plan.reactors, &ShardRecords(store.clone()));
        let process = Rc::new(Process {
            me: i,
            store,
            seen,
            registers: self.registers.clone(),
            clock: self.clock.clone(),
            plan: self.plan.clone(),
            target: target(i, state, &volumes),
            volumes,
        });
        let first = (0..seeds.len()).map(|reactor| reactor == 0);
        self.machines[i].start(seeds.into_iter().zip(first).collect(), move |(seed, is_first)| {
            process.clone().run(seed, is_first)
        });
    }
}

/// The cluster, without nodes, and a volume for each shard.
async fn found(store: MemoryStore, plan: Plan) {
    let new = NewCluster {
        uuid: CLUSTER,
        nqn: Some(NQN.into()),
        pool_name: "pool".into(),
        scheme: plan.scheme,
        too_few_domains: TooFewPolicy::Refuse,
        failure_domain: if plan.racks.is_some() { FailureDomain::Rack } else { FailureDomain::Node },
        shards: plan.shards,
    };
    let control = create_cluster(store, &new).await.expect("nothing is wrong yet");
    for i in 0..plan.shards {
        let bytes = VOLUME_BLOCKS * BLOCK_BYTES as u64;
        let wish = VolumeWish { name: format!("v{i}"), bytes, lba_bytes: 4096 };
        let change = Change::CreateVolume(wish.spec(peristyle_rt::fill_random));
        control.apply(&change).await.expect("nothing is wrong yet");
    }
}

async fn join(store: FarStore, i: usize, rack: Option<usize>, joined: Rc<RefCell<Option<State>>>) {
    let node = desired::Node {
        id: number(i),
        uuid: Uuid([0xE0 + i as u8; 16]),
        peers: addr(i, PEER_PORT),
        portals: vec![addr(i, HOST_PORT)],
        rack: rack.map(|rack| format!("r{rack}")),
        zone: None,
        state: NodeState::Active,
        draining: false,
        maintenance: None,
    };
    let device = FoundDevice { id: device_id(i), path: format!("d{i}"), domain: None };
    // A program ends when the store goes away in the middle, and is started again.
    loop {
        let Ok(control) = Control::open(store.clone()).await else { continue };
        let control = control.expect("the cluster was made");
        if enter(&control, &node, std::slice::from_ref(&device), |_| {}).await.is_ok() {
            let state = control.state().clone();
            joined.replace(Some(state));
            return;
        }
    }
}

async fn remove_all(store: FarStore, nodes: Vec<usize>) {
    let control = Control::open(store).await.expect("it is reached").expect("the cluster was made");
    for i in nodes {
        let given_up = Change::SetDeviceState { device: device_id(i), state: desired::DeviceState::Failed };
        while control.apply(&given_up).await.is_err() {}
        while let Err(why) = remove(&control, number(i), &[]).await {
            let waits = matches!(why, ControlError::NodeRuns(_) | ControlError::Store(_));
            assert!(waits, "{why}");
        }
    }
}

fn config(plan: &Plan, state: &State, i: usize, disk: &DiskHandle) -> NodeConfig {
    let me = number(i);
    let device = &state.devices[&device_id(i)];
    let home = |s: &desired::Shard| (s.id, ReactorId((s.reactor as usize % plan.reactors) as u16));
    let peers = state.nodes.values().filter(|n| n.id != me).map(peer_config).collect();
    NodeConfig {
        node: me,
        cluster: CLUSTER,
        devices: vec![DeviceConfig {
            id: device.id,
            spec: disk.spec(),
            domain: state.domain_of(device),
            home: ReactorId((i % plan.reactors) as u16),
            wish: Wish::Active,
            discard: Discard::Auto,
        }],
        peers: PeersConfig { listen: Some(addr(i, PEER_PORT)), peers, ..PeersConfig::default() },
        peer_devices: peer_devices(state, me).collect(),
        shards: Vec::new(),
        peer_shards: state.shards.values().map(home).collect(),
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

fn target(i: usize, state: &State, volumes: &[VolumeSpec]) -> TargetConfig {
    TargetConfig {
        listen: Addr::Tcp(addr(i, HOST_PORT)),
        portals: portals(number(i), state),
        nqn: Nqn::new(NQN).expect("a name"),
        serial: "1".into(),
        hosts: Hosts::Any,
        volumes: volumes.to_vec(),
        limits: QpairLimits::default(),
        forwards: false,
    }
}

/// What the reactors of one process have.
struct Process {
    me: usize,
    store: FarStore,
    seen: Rc<Seen>,
    registers: Rc<RefCell<Registers>>,
    clock: WorldHandle,
    plan: Plan,
    target: TargetConfig,
    volumes: Vec<VolumeSpec>,
}

impl Process {
    async fn run(self: Rc<Self>, seed: NodeSeed<Store>, is_first: bool) {
        let node = Node::start(seed, false).await;
        while !node.is_ready() {
            sleep(Duration::from_millis(1)).await;
        }
        node.start_target(self.target.clone()).await.expect("the port is free");
        let here = |v: &&VolumeSpec| node.home_of(v.shard) == Some(node.id());
        for spec in self.volumes.iter().filter(here) {
            for host in 0..self.plan.hosts {
                let volume = node.volume(spec).expect("a shard of the pool");
                let (registers, clock) = (self.registers.clone(), self.clock.clone());
                let (first, rest_us) = (spec.shard.0 as usize * BLOCKS, self.plan.rest_us * (1 + host));
                let host = Host { volume, registers, clock, first, who: self.me, rest_us, writes: host == 0 };
                peristyle_rt::spawn(host.run());
            }
        }
        if is_first {
            peristyle_rt::spawn(self.clone().follow_cluster(node.clone()));
        }
        self.look(node).await
    }

    /// As the program's first reactor does.
    async fn follow_cluster(self: Rc<Self>, node: Rc<Node>) {
        let control = loop {
            if let Ok(control) = Control::open(self.store.clone()).await {
                break Rc::new(control.expect("the cluster was made"));
            }
        };
        let turn = Semaphore::new(1);
        let member = Member::start(number(self.me), node, control, turn, Rc::new(|_| {}));
        loop {
            sleep(Duration::from_millis(10)).await;
            if self.seen.leave.take() {
                member.leave().await;
                self.seen.left.set(true);
            }
        }
    }

    /// No two columns of a sealed extent are in one rack, whatever the shard takes for its failure domains.
    fn is_apart(&self, shard: &Shard<impl Columns, impl ShardStore + 'static>) -> bool {
        let Some(racks) = &self.plan.racks else { return true };
        let rack =
            |place: ColumnPlace| (0..racks.len()).find(|i| device_id(*i) == place.device).map(|i| racks[i]);
        shard.extent_ids().into_iter().filter_map(|id| shard.extent_figures(id)).all(|extent| {
            let taken: Vec<usize> = extent.columns.iter().filter_map(|column| rack(column.place)).collect();
            let distinct: BTreeSet<usize> = taken.iter().copied().collect();
            extent.phase != "sealed" || distinct.len() == taken.len()
        })
    }

    /// Tells how this reactor's shards are.
    async fn look(&self, node: Rc<Node>) {
        loop {
            for (at, whole) in self.seen.whole.iter().enumerate() {
                let shard = ShardId(at as u32);
                if node.home_of(shard) != Some(node.id()) {
                    continue;
                }
                let served = node.shard(shard).filter(|s| s.stopped().is_none());
                let figures = served.as_ref().map(|s| s.repair_figures(peristyle_rt::now()));
                let sound = |f: RepairFigures| f.lost_columns + f.away_columns == 0 && f.working_ns == 0;
                let sound =
                    served.zip(figures).is_some_and(|(s, figures)| sound(figures) && self.is_apart(&s));
                whole.set(sound);
            }
            *self.seen.phases.borrow_mut() = node.shard_phases();
            sleep(Duration::from_millis(10)).await;
        }
    }
}
