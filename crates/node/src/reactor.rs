//! One reactor of a node: its devices, its shards, and the calls of its peers. It wires, routes and counts; what
//! storage does is decided in the parts.

use crate::bus::Bus;
use crate::columns::NodeColumns;
use crate::config::{DeviceConfig, NodeConfig, NodeSeed, Seed};
use crate::devices::{DeviceTable, Home};
use crate::message::{NodeBus, Reply, Request};
use crate::opening::OPEN_LIMIT;
use crate::peer::{Identity, LeaseTable, Peers};
use crate::probe;
use crate::stats::{FrontStats, IoTotals, ReactorStats, VolumeStats};
use crate::volume::{Volume, VolumeAnswer, VolumeRequest, VolumeSpec};
use peristyle_base::{DeviceId, Instant, LayerId, ShardId};
use peristyle_cluster::{BoxedStore, ShardStore};
use peristyle_column::{FormatError, OpenError};
use peristyle_rt::sync::Notify;
use peristyle_rt::{Duration, Fault, IoError, NetError, ReactorId, View};
use peristyle_shard::{RecoverError, RecoveryReport, Shard, ShardError, StopReason};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Between two attempts to listen for other nodes.
const LISTEN_PERIOD: Duration = Duration::from_millis(100);

/// State of one shard, for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShardPhase {
    Recovering(Option<RecoverError>),
    Serving(RecoveryReport),
    Stopped(StopReason),
}

/// What a node does for whoever asks, on one reactor. Boxed, so that it is compiled in this crate: an `async fn` is compiled
/// again, with all that it comes to, in each crate that awaits it.
pub type LocalBoxed<'a, T> = Pin<Box<dyn Future<Output = T> + 'a>>;

/// A shard on a node's columns.
pub type NodeShard = Rc<Shard<NodeColumns, BoxedStore>>;

/// One reactor of a node.
pub struct Node {
    pub(crate) config: NodeConfig,
    pub(crate) bus: Rc<NodeBus>,
    pub(crate) columns: Rc<NodeColumns>,
    pub(crate) peers: Rc<Peers>,
    pub(crate) leases: LeaseTable,
    pub(crate) store: Rc<BoxedStore>,
    pub(crate) shards: RefCell<BTreeMap<ShardId, NodeShard>>,
    /// Shards that this reactor is to own.
    pub(crate) owned: RefCell<BTreeSet<ShardId>>,
    /// Shards that a task takes up, keeps, or gives away.
    pub(crate) taking: RefCell<BTreeSet<ShardId>>,
    /// One of the two has changed.
    pub(crate) owning: Notify,
    /// Shards that the node serves or has served, on whichever reactor, with the number of what was told of it last: kept by the
    /// first.
    pub(crate) served: RefCell<BTreeMap<ShardId, (u64, bool)>>,
    /// How often this reactor has told.
    pub(crate) told: Cell<u64>,
    pub(crate) phases: RefCell<BTreeMap<ShardId, ShardPhase>>,
    pub(crate) open_errors: RefCell<Vec<(DeviceId, DeviceOpenError)>>,
    /// Devices of this reactor: those of the configuration, and those that came later.
    pub(crate) my_devices: RefCell<Vec<DeviceConfig>>,
    /// Why this reactor does not serve other nodes.
    peer_error: Cell<Option<NetError>>,
    pub(crate) stopping: Cell<bool>,
    devices_open: Arc<AtomicUsize>,
    pub(crate) shards_ready: Arc<AtomicUsize>,
    pub stats: RefCell<FrontStats>,
    pub volume_stats: RefCell<BTreeMap<u32, VolumeStats>>,
    pub nbd: crate::nbd::NbdState,
    pub qos: crate::qos::Qos,
    pub(crate) target: crate::target::TargetState,
}

/// Why a device is not served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeviceOpenError {
    Io(IoError),
    Label(OpenError),
    /// Memory that could not be made a device.
    Format(FormatError),
    /// Its label or slot table could not be read in [`OPEN_LIMIT`].
    NoAnswer,
}

impl std::fmt::Display for DeviceOpenError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            DeviceOpenError::Io(e) => e.fmt(f),
            DeviceOpenError::Label(e) => e.fmt(f),
            DeviceOpenError::Format(e) => e.fmt(f),
            DeviceOpenError::NoAnswer => {
                write!(f, "no answer in {OPEN_LIMIT:?}; it is away until it answers")
            }
        }
    }
}

impl Node {
    /// Opens this reactor's devices and, once all reactors have theirs, takes its shards up. Returns when they
    /// serve, or, with `wait` false, as soon as they have been started.
    pub fn start<S: ShardStore + 'static>(seed: NodeSeed<S>, wait: bool) -> LocalBoxed<'static, Rc<Node>> {
        Node::start_with(seed.seed, BoxedStore::new(seed.store), wait)
    }

    /// Nothing of it is generic: see [`LocalBoxed`].
    fn start_with(seed: Seed, store: BoxedStore, wait: bool) -> LocalBoxed<'static, Rc<Node>> {
        Box::pin(Node::begin(seed, store, wait))
    }

    async fn begin(seed: Seed, store: BoxedStore, wait: bool) -> Rc<Node> {
        let Seed { config, devices, port, boot, leases, peers, devices_open, shards_ready } = seed;
        let bus = Rc::new(Bus::new(port.attach()));
        // Whichever reactor comes first draws it.
        let drawn = peristyle_rt::random_u64().max(1);
        let boot = boot
            .compare_exchange(0, drawn, Ordering::AcqRel, Ordering::Acquire)
            .map_or_else(|b| b, |_| drawn);
        let who = Identity { me: config.node, cluster: config.cluster, boot, reactors: bus.reactors() };
        let peers = Peers::new(who, &config.peers, peers);
        let mine = config.devices.iter().filter(|d| d.home == bus.me()).cloned().collect();
        let shards = config.all_shards().count();
        let columns = Rc::new(NodeColumns::with_peers(
            devices,
            config.rebuild_after,
            bus.clone(),
            (peers.clone(), leases.is_alone()),
            shards,
        ));
        let node = Rc::new(Node {
            config,
            bus,
            columns,
            peers,
            leases,
            store: Rc::new(store),
            shards: RefCell::default(),
            owned: RefCell::default(),
            taking: RefCell::default(),
            owning: Notify::default(),
            served: RefCell::default(),
            told: Cell::new(0),
            phases: RefCell::default(),
            open_errors: RefCell::default(),
            my_devices: RefCell::new(mine),
            peer_error: Cell::new(None),
            stopping: Cell::new(false),
            devices_open,
            shards_ready,
            stats: RefCell::default(),
            volume_stats: RefCell::default(),
            qos: Default::default(),
            target: Default::default(),
            nbd: Default::default(),
        });
        peristyle_rt::spawn(node.clone().serve_calls());
        node.open_devices().await;
        node.devices_open.fetch_add(1, Ordering::Release);
        while node.devices_open.load(Ordering::Acquire) < node.bus.reactors() {
            peristyle_rt::sleep(Duration::from_micros(200)).await;
        }
        peristyle_rt::spawn_background(node.clone().run_reopener());
        if !node.serve_peers().await {
            // A former process of this node may not quite be gone.
            peristyle_rt::spawn(node.clone().serve_peers_later());
        }
        let reactor = node.id().0;
        if reactor == 0 {
            node.peers.watch(node.devices());
            if !node.leases.is_alone() {
                node.peers.start_leases(node.leases.clone());
            }
        }
        for &(shard, home) in &node.config.shards {
            if home == node.id() {
                node.own_here(shard);
            }
        }
        while wait && node.shards_ready.load(Ordering::Acquire) < node.config.shards.len() {
            peristyle_rt::sleep(Duration::from_micros(500)).await;
        }
        node
    }

    /// Begins to listen for other nodes. Says whether it does.
    async fn serve_peers(&self) -> bool {
        let served = self.peers.serve(self.columns.clone(), self.id().0).await;
        self.peer_error.set(served.err());
        served.is_ok()
    }

    async fn serve_peers_later(self: Rc<Self>) {
        while !self.is_stopping() {
            peristyle_rt::sleep(LISTEN_PERIOD).await;
            if self.serve_peers().await {
                return;
            }
        }
    }

    pub fn id(&self) -> ReactorId {
        self.bus.me()
    }
    pub fn reactors(&self) -> usize {
        self.bus.reactors()
    }
    pub fn config(&self) -> &NodeConfig {
        &self.config
    }
    pub fn bus(&self) -> &NodeBus {
        &self.bus
    }
    pub fn columns(&self) -> &NodeColumns {
        &self.columns
    }
    pub fn devices(&self) -> &DeviceTable {
        self.columns.table()
    }
    pub fn peers(&self) -> &Peers {
        &self.peers
    }
    /// Why this reactor does not serve other nodes, if it should.
    pub fn peer_error(&self) -> Option<NetError> {
        self.peer_error.get()
    }
    /// Devices of this reactor that could not be opened.
    pub fn open_errors(&self) -> Vec<(DeviceId, DeviceOpenError)> {
        self.open_errors.borrow().clone()
    }
    /// Shards of this reactor and what they are doing.
    pub fn shard_phases(&self) -> Vec<(ShardId, ShardPhase)> {
        self.phases.borrow().iter().map(|(&id, &phase)| (id, self.current_phase(id, phase))).collect()
    }
    fn current_phase(&self, id: ShardId, phase: ShardPhase) -> ShardPhase {
        match self.shards.borrow().get(&id).and_then(|s| s.stopped()) {
            Some(reason) => ShardPhase::Stopped(reason),
            None => phase,
        }
    }
    /// Every shard of the node serves.
    pub fn is_ready(&self) -> bool {
        self.shards_ready.load(Ordering::Acquire) >= self.config.shards.len()
    }
    pub fn shard(&self, id: ShardId) -> Option<NodeShard> {
        self.shards.borrow().get(&id).cloned()
    }
    /// The reactor that owns a shard, if this node does.
    pub fn home_of(&self, shard: ShardId) -> Option<ReactorId> {
        self.config.all_shards().find(|s| s.0 == shard).map(|s| s.1)
    }
    /// A volume's data, from this reactor.
    pub fn volume(self: &Rc<Self>, spec: &VolumeSpec) -> Option<Volume> {
        Some(Volume::new(self.clone(), spec.shard, spec.layer, self.home_of(spec.shard)?))
    }

    /// Stops this reactor's shards: commands that wait fail, what was acknowledged is durable.
    pub fn stop(&self) {
        self.stopping.set(true);
        self.close_target();
        self.peers.stop();
        self.shards.borrow().values().for_each(|s| s.stop(StopReason::Shutdown));
        self.owning.notify_all(); // leases are given back
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping.get()
    }

    async fn serve_calls(self: Rc<Self>) {
        loop {
            let (from, id, request) = self.bus.next_call().await;
            let me = self.clone();
            peristyle_rt::spawn(async move {
                let reply = me.serve(request).await;
                me.bus.answer(from, id, reply).await;
            });
        }
    }

    async fn serve(self: &Rc<Self>, request: Request) -> Reply {
        match request {
            Request::Column { device, request } => Reply::Column(self.columns.serve(device, request).await),
            Request::Volume { shard, layer, request } => {
                Reply::Volume(self.serve_volume(shard, layer, request).await)
            }
            Request::Stats => Reply::Stats(Box::new(self.reactor_stats())),
            Request::Checkpoint => Reply::Done(self.checkpoint_here().await),
            Request::Phases => Reply::Phases(self.shard_phases()),
            Request::Totals => Reply::Totals(self.io_totals()),
            Request::Check { device } => {
                if let Some(server) = self.columns.server(device) {
                    probe::check(server, self.devices().clone()).await;
                }
                Reply::Done(true)
            }
            Request::Extents(id) => Reply::Extents(self.extents_here(id)),
            Request::Scrub => {
                self.scrub_here();
                Reply::Done(true)
            }
            Request::Claim { shard, epoch } => Reply::Done(self.peers.claim(shard, epoch).await),
            Request::Release { shard } => {
                self.peers.release(shard).await;
                Reply::Done(true)
            }
            Request::Own { shard, own: true } => Reply::Done(self.own_here(shard)),
            Request::Own { shard, own: false } => {
                self.disown_here(shard).await;
                Reply::Done(true)
            }
            Request::Open(config) => Reply::Opened(self.open_new(*config).await),
            Request::Inject { device, fault } => Reply::Done(self.inject_here(device, fault)),
            Request::Target(request) => Reply::Target(self.serve_home(request).await),
        }
    }

    pub(crate) async fn serve_volume(
        &self,
        shard: ShardId,
        layer: LayerId,
        request: VolumeRequest,
    ) -> VolumeAnswer {
        let Some(shard) = self.shard(shard) else { return VolumeAnswer::Done(Err(ShardError::Stopped)) };
        VolumeAnswer::Done(match request {
            VolumeRequest::Read { offset, bytes } => {
                return VolumeAnswer::Data(shard.read(layer, offset, bytes).await);
            }
            VolumeRequest::Allocation { offset, bytes, runs_max } => {
                return VolumeAnswer::Allocation(shard.allocation(layer, offset, bytes, runs_max).await);
            }
            VolumeRequest::ResizeLayer { blocks, discard } => {
                return VolumeAnswer::Resized(shard.resize_layer(layer, blocks, discard).await);
            }
            VolumeRequest::Write { offset, data } => shard.write(layer, offset, data).await,
            VolumeRequest::Zero { offset, bytes } => shard.zero(layer, offset, bytes).await,
            VolumeRequest::Compare { offset, data } => shard.compare(layer, offset, &data).await,
            VolumeRequest::CompareAndWrite { offset, expected, data } => {
                shard.compare_and_write(layer, offset, &expected, data).await
            }
            VolumeRequest::Verify { offset, bytes } => shard.verify(layer, offset, bytes).await,
            VolumeRequest::Flush => shard.stopped().map_or(Ok(()), |_| Err(ShardError::Stopped)),
            VolumeRequest::EnsureLayer { blocks } => shard.ensure_layer(layer, blocks).await,
            VolumeRequest::DropLayer => shard.drop_layer(layer).await,
            VolumeRequest::Snapshot { group } => shard.snapshot(&group).await,
            VolumeRequest::CloneOf { snapshot } => shard.clone_snapshot(layer, snapshot).await,
            VolumeRequest::RollBack { snapshot } => shard.roll_back(layer, snapshot).await,
            VolumeRequest::Flatten => shard.flatten(layer).await,
            VolumeRequest::Usage => return VolumeAnswer::Usage(shard.usage(layer)),
        })
    }

    /// As [`Volume::read`], begun at `started`, of a shard of this reactor and where nothing has to be waited for; says
    /// when it was done.
    pub(crate) fn try_read(
        &self,
        shard: ShardId,
        layer: LayerId,
        (offset, bytes): (u64, u64),
        started: Instant,
    ) -> Option<(View, Instant)> {
        self.shards.borrow().get(&shard)?.try_read(layer, offset, bytes, started)
    }

    /// A volume of a shard of this reactor will be read there in a moment.
    pub(crate) fn expect_read(&self, shard: ShardId, layer: LayerId, offset: u64) {
        if let Some(shard) = self.shards.borrow().get(&shard) {
            shard.expect_read(layer, offset);
        }
    }

    /// What this reactor counts.
    pub fn reactor_stats(&self) -> ReactorStats {
        let now = peristyle_rt::now();
        let volumes: BTreeMap<_, _> =
            self.volume_stats.borrow().iter().map(|(&id, v)| (id, v.snapshot(now))).collect();
        ReactorStats {
            front: self.stats.borrow().snapshot(now, volumes.values()),
            volumes,
            shards: self.shards.borrow().iter().map(|(&id, s)| (id, s.stats_snapshot(now))).collect(),
            devices: self.columns.servers().iter().map(|s| s.stats(now)).collect(),
            legs: self.columns.legs(now),
            traffic: self.peers.traffic(),
            busy_ns: peristyle_rt::busy_nanos(),
            buffers_free: peristyle_rt::buf::free_counts(),
        }
    }

    fn io_totals(&self) -> IoTotals {
        let mut totals = IoTotals { connections: self.stats.borrow().connections, ..IoTotals::default() };
        self.volume_stats.borrow().values().for_each(|volume| totals.add_volume(volume));
        totals
    }

    async fn checkpoint_here(&self) -> bool {
        let shards: Vec<_> = self.shards.borrow().values().cloned().collect();
        let taken = shards.iter().map(|shard| shard.checkpoint());
        peristyle_rt::join_all(taken).await.into_iter().all(|result| result.is_ok())
    }

    /// Has all shards take checkpoints: whoever takes them next has little to read. Says whether all have.
    pub fn checkpoint_all(&self) -> LocalBoxed<'_, bool> {
        Box::pin(async move {
            let mut all = true;
            for reactor in (0..self.reactors() as u16).map(ReactorId) {
                all &= match reactor == self.id() {
                    true => self.checkpoint_here().await,
                    false => matches!(self.bus.call(reactor, Request::Checkpoint).await, Reply::Done(true)),
                };
            }
            all
        })
    }

    /// The shards of all reactors, and what they are doing.
    pub async fn all_phases(&self) -> Vec<(ShardId, ReactorId, ShardPhase)> {
        let mut all = Vec::new();
        for reactor in (0..self.reactors() as u16).map(ReactorId) {
            let phases = match reactor == self.id() {
                true => self.shard_phases(),
                false => match self.bus.call(reactor, Request::Phases).await {
                    Reply::Phases(phases) => phases,
                    _ => continue,
                },
            };
            all.extend(phases.into_iter().map(|(shard, phase)| (shard, reactor, phase)));
        }
        all
    }

    /// How much all reactors have read and written since the start.
    pub async fn all_totals(&self) -> IoTotals {
        let mut all = IoTotals::default();
        for reactor in (0..self.reactors() as u16).map(ReactorId) {
            if reactor == self.id() {
                all.merge(&self.io_totals());
            } else if let Reply::Totals(totals) = self.bus.call(reactor, Request::Totals).await {
                all.merge(&totals);
            }
        }
        all
    }

    /// The statistics of all reactors, in order.
    pub fn all_stats(&self) -> LocalBoxed<'_, Vec<ReactorStats>> {
        Box::pin(async move {
            let mut all = Vec::with_capacity(self.reactors());
            for reactor in (0..self.reactors() as u16).map(ReactorId) {
                if reactor == self.id() {
                    all.push(self.reactor_stats());
                } else if let Reply::Stats(stats) = self.bus.call(reactor, Request::Stats).await {
                    all.push(*stats);
                }
            }
            all
        })
    }

    fn scrub_here(&self) {
        self.shards.borrow().values().for_each(|shard| shard.scrub_now());
    }

    /// Has all shards read everything, and repair what is damaged.
    pub fn scrub_now(&self) -> LocalBoxed<'_, ()> {
        Box::pin(async move {
            for reactor in (0..self.reactors() as u16).map(ReactorId) {
                match reactor == self.id() {
                    true => self.scrub_here(),
                    false => drop(self.bus.call(reactor, Request::Scrub).await),
                }
            }
        })
    }

    fn inject_here(&self, device: DeviceId, fault: Fault) -> bool {
        match self.columns.server(device) {
            Some(server) if self.config.development => {
                server.device().inject(fault);
                true
            }
            _ => false,
        }
    }

    /// Makes a device fail or stall. False when the node is not in development mode, or has no such device.
    pub fn inject(&self, device: DeviceId, fault: Fault) -> LocalBoxed<'_, bool> {
        Box::pin(async move {
            let Some(Home::Here(home)) = self.devices().get(device).map(|d| d.home()) else { return false };
            if home == self.id() {
                return self.inject_here(device, fault);
            }
            matches!(self.bus.call(home, Request::Inject { device, fault }).await, Reply::Done(true))
        })
    }
}
