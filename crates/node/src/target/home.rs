//! The home reactor's part: the registry of subsystems and controllers, and what it has to tell the connections.

use super::forward::Forwarding;
use super::{HOME, Namespaces, Place, TargetConfig, Way, reactor_of};
use crate::LocalBoxed;
use crate::message::{Reply, Request};
use crate::reactor::Node;
use crate::volume::VolumeSpec;
use peristyle_base::{NodeId, ShardId};
use peristyle_nvme::controller::{AdminOutcome, ErrorReport, admin_data_bytes};
use peristyle_nvme::discovery::Portal;
use peristyle_nvme::inventory::HostSeen;
use peristyle_nvme::registry::{
    ConnId, Connected, ControllerRef, Refused, Registry, RegistryConfig, SubsystemId, TargetEvent,
};
use peristyle_nvme::subsystem::{ANA_GROUPS_MAX, IoCounters, LbaSize, Namespace, Subsystem};
use peristyle_nvme::wire::fabrics::{CNTLID_MAX, is_for_discovery};
use peristyle_nvme::wire::log_page::AnaState;
use peristyle_nvme::wire::{Sqe, Status};
use peristyle_rt::sync::Notify;
use peristyle_rt::{Buf, Duration, ReactorId, View, select, sleep_until, timeout};
use peristyle_shard::ShardError;
use std::cell::{Cell, RefCell};
use std::rc::Rc;

/// Pause between attempts to export a volume whose shard does not serve yet.
const EXPORT_PERIOD: Duration = Duration::from_millis(200);
/// A Connect waits so long for the host's commands of before; then the host is told that the controller is busy.
const DRAIN_LIMIT: Duration = Duration::from_secs(5);
/// Controller identifiers of one node; nodes that export the same subsystem give different ones.
const CNTLIDS: u16 = 1000;
/// Nodes with identifiers of their own.
const CNTLID_NODES: u16 = CNTLID_MAX / CNTLIDS;

/// What a connection asks of the home reactor, and what the home reactor tells others.
pub enum HomeRequest {
    Connect {
        conn: ConnId,
        sqe: Sqe,
        data: View,
    },
    Admin {
        controller: ControllerRef,
        sqe: Sqe,
    },
    /// The queue is over. With `draining` some of that host's commands are still being executed; until
    /// `Drained`, the host's next Connect waits, and is refused when it takes too long: an old write must not come after a
    /// new one.
    Disconnected {
        connected: Connected,
        draining: Option<[u8; 16]>,
    },
    Drained {
        conn: ConnId,
    },
    /// What a reactor has counted since it last told.
    Counted(IoCounters),
    /// A shard is served here from now on, or not any more. Its reactor numbers what it tells: the highest counts.
    Served {
        shard: ShardId,
        served: bool,
        number: u64,
    },
    /// A command of an I/O queue that the controller's error log is to tell of.
    Failed(ControllerRef, ErrorReport),
    /// Nobody knows what became of a command that this controller's host had sent, and that was handed on.
    Withdraw(ControllerRef),
    /// From home to every reactor.
    Namespaces(Namespaces),
    /// From home to every reactor: what is handed on.
    Ways(Vec<(ShardId, Way)>),
    /// From home to a connection's reactor.
    Event(TargetEvent),
}

/// What the home reactor answers.
pub enum HomeReply {
    Connect(Result<Connected, Refused>),
    Admin(AdminOutcome, Option<View>),
    Done,
}

pub(super) struct Home {
    pub registry: RefCell<Registry>,
    pub subsystem: SubsystemId,
    /// Exported, in the order of their NSID.
    pub volumes: RefCell<Vec<VolumeSpec>>,
    /// Connections whose last commands are still being executed, and their hosts.
    draining: RefCell<Vec<(ConnId, [u8; 16])>>,
    drained: Notify,
    /// Changes of which not every reactor knows yet: until then no host hears of them.
    telling: Cell<usize>,
    /// The registry may have events, or an earlier deadline.
    changed: Notify,
    is_changed: Cell<bool>,
    pub forwarding: RefCell<Forwarding>,
}

impl Home {
    pub fn changed(&self) {
        self.is_changed.set(true);
        self.changed.notify_all();
    }
    /// Reactors are told of something from here on: no host hears of it …
    pub fn begin_telling(&self) {
        self.telling.set(self.telling.get() + 1);
    }
    /// … before they all know.
    pub fn end_telling(&self) {
        self.telling.set(self.telling.get() - 1);
        self.changed();
    }
}

fn namespace(spec: &VolumeSpec) -> Namespace {
    let lba_size = if spec.lba_bytes == 512 { LbaSize::B512 } else { LbaSize::B4096 };
    Namespace {
        nsid: spec.nsid,
        uuid: spec.uuid,
        nguid: spec.nguid,
        lba_size,
        lbas: spec.bytes >> lba_size.shift(),
        lbas_used: spec.bytes >> lba_size.shift(),
        read_only: spec.read_only,
        ana_group: ana_group(spec.shard),
    }
}

/// What moves together has one state: a shard's volumes.
pub(super) fn ana_group(shard: ShardId) -> u32 {
    shard.0 % ANA_GROUPS_MAX + 1
}

/// All there are on a node that is alone, else those of its number.
fn cntlids(node: NodeId, is_alone: bool) -> (u16, u16) {
    if is_alone {
        return (1, CNTLID_MAX);
    }
    let first = 1 + (node.0 % u32::from(CNTLID_NODES)) as u16 * CNTLIDS;
    (first, first + CNTLIDS - 1)
}

impl Node {
    pub(super) async fn start_home(self: &Rc<Self>, config: &TargetConfig) {
        let is_alone = self.leases.is_alone();
        let cntlids = cntlids(self.config().node, is_alone);
        let mut registry = Registry::new(RegistryConfig { cntlids, ..RegistryConfig::default() });
        let subsystem = Subsystem::new(config.nqn, &config.serial);
        let id = registry.add_subsystem(subsystem).expect("the first subsystem");
        registry.set_portals(config.portals.clone());
        // Of several nodes one serves a shard; until it is this one, hosts do not come here for it.
        for group in (1..=ANA_GROUPS_MAX).filter(|_| !is_alone) {
            registry.set_ana_state(id, group, AnaState::Inaccessible).expect("the group exists");
        }
        if registry.set_hosts(id, config.hosts.clone()).is_err() {
            // Too many hosts: nobody is safer than anybody.
            let nobody = peristyle_nvme::subsystem::Hosts::Listed(Vec::new());
            registry.set_hosts(id, nobody).expect("an empty list fits");
        }
        *self.target.home.borrow_mut() = Some(Rc::new(Home {
            registry: RefCell::new(registry),
            subsystem: id,
            volumes: RefCell::default(),
            draining: RefCell::default(),
            drained: Notify::default(),
            telling: Cell::new(0),
            changed: Notify::default(),
            is_changed: Cell::new(false),
            forwarding: RefCell::default(),
        }));
        peristyle_rt::spawn(self.clone().run_home());
        if !is_alone {
            let me = Rc::downgrade(self);
            self.peers.set_carrier(me);
        }
        if config.forwards && !is_alone {
            peristyle_rt::spawn(self.clone().run_forwarding());
        }
        let served: Vec<ShardId> = self.served.borrow().keys().copied().collect();
        for shard in served {
            self.show_shard(shard).await;
        }
        for spec in &config.volumes {
            if self.add_volume(spec.clone()).await.is_err_and(may_pass) {
                peristyle_rt::spawn(self.clone().export_later(spec.clone()));
            }
        }
    }

    async fn export_later(self: Rc<Self>, spec: VolumeSpec) {
        while !self.target.stopping.is_set() && self.add_volume(spec.clone()).await.is_err_and(may_pass) {
            peristyle_rt::sleep(EXPORT_PERIOD).await;
        }
    }

    /// Exports a volume to hosts, or exports it with other properties (home reactor): every reactor knows them before
    /// a host is told. Another size is one that its layer has been given before ([`crate::Volume::resize_layer`]).
    /// [`ShardError::Stopped`] when its shard does not serve, [`ShardError::OutOfRange`] when its NSID is none.
    pub fn add_volume(self: &Rc<Self>, spec: VolumeSpec) -> LocalBoxed<'_, Result<(), ShardError>> {
        Box::pin(async move {
            let home = self.home_part().ok_or(ShardError::Stopped)?;
            let volume = self.volume(&spec).ok_or(ShardError::OutOfRange)?;
            // Every node exports every volume, so that hosts know all paths; the one that serves it makes its layer.
            if self.serves(spec.shard) {
                volume.ensure_layer(blocks_of(&spec)).await?;
            }
            home.registry
                .borrow_mut()
                .put_namespace(home.subsystem, namespace(&spec))
                .map_err(|_| ShardError::OutOfRange)?;
            {
                let mut volumes = home.volumes.borrow_mut();
                volumes.retain(|v| v.nsid != spec.nsid);
                let at = volumes.partition_point(|v| v.nsid < spec.nsid);
                volumes.insert(at, spec);
            }
            self.tell_namespaces(&home).await;
            Ok(())
        })
    }

    /// A shard is served by this node from now on, or not any more (home reactor): hosts of its volumes come here, or go where it
    /// is.
    async fn serve_shard(self: &Rc<Self>, shard: ShardId, served: bool, number: u64) {
        let before = self.served.borrow().get(&shard).map_or(0, |told| told.0);
        if number > before {
            self.served.borrow_mut().insert(shard, (number, served));
            self.peers.set_served(shard, served);
            if let Some(home) = self.home_part() {
                self.end_ways(&home, shard);
                self.tell_ways(&home).await;
            }
            self.show_shard(shard).await;
        }
    }

    /// Shards that this node serves, each with the number of what was told of it last (home reactor): another number, and it was taken
    /// up anew.
    pub fn served_shards(&self) -> Vec<(ShardId, u64)> {
        let served = self.served.borrow();
        served.iter().filter(|(_, told)| told.1).map(|(&shard, told)| (shard, told.0)).collect()
    }

    /// Whether this node serves the shard (home reactor).
    pub fn serves(&self, shard: ShardId) -> bool {
        self.leases.is_alone() || self.is_served(shard)
    }

    fn is_served(&self, shard: ShardId) -> bool {
        self.served.borrow().get(&shard).is_some_and(|told| told.1)
    }

    /// The state of the shard's volumes becomes what it is. What is told meanwhile is shown by whoever heard it.
    async fn show_shard(self: &Rc<Self>, shard: ShardId) {
        let Some(home) = self.home_part() else { return };
        let volumes: Vec<_> = home.volumes.borrow().iter().filter(|v| v.shard == shard).cloned().collect();
        for spec in volumes.iter().filter(|_| self.is_served(shard)) {
            let Some(volume) = self.volume(spec) else { continue };
            while volume.ensure_layer(blocks_of(spec)).await.is_err_and(may_pass) {
                if !self.is_served(shard) {
                    return; // it has gone again
                }
                peristyle_rt::sleep(EXPORT_PERIOD).await;
            }
        }
        let state = if self.is_served(shard) { AnaState::Optimized } else { AnaState::Inaccessible };
        let set = home.registry.borrow_mut().set_ana_state(home.subsystem, ana_group(shard), state);
        set.expect("the group exists");
        self.tell_namespaces(&home).await;
    }

    /// Takes a volume away from hosts; its data stays (home reactor). Says whether it was there.
    pub fn remove_volume(self: &Rc<Self>, nsid: u32) -> LocalBoxed<'_, bool> {
        Box::pin(async move {
            let Some(home) = self.home_part() else { return false };
            let removed = home.registry.borrow_mut().remove_namespace(home.subsystem, nsid).is_ok();
            home.volumes.borrow_mut().retain(|v| v.nsid != nsid);
            self.tell_namespaces(&home).await;
            removed
        })
    }

    /// Where hosts reach the subsystem, as the discovery log tells (home reactor).
    pub fn set_portals(&self, portals: Vec<Portal>) {
        let Some(home) = self.home_part() else { return };
        if home.registry.borrow().portals() != portals {
            home.registry.borrow_mut().set_portals(portals);
            home.changed();
        }
    }

    /// Hosts that the new list does not allow lose their connections (home reactor). False when it is too long.
    pub fn set_hosts(&self, hosts: peristyle_nvme::subsystem::Hosts) -> bool {
        let Some(home) = self.home_part() else { return false };
        let done = home.registry.borrow_mut().set_hosts(home.subsystem, hosts).is_ok();
        home.changed();
        done
    }

    /// Hosts that have connected to the subsystem (home reactor).
    pub fn hosts_seen(&self) -> Vec<HostSeen> {
        self.home_part().map(|home| home.registry.borrow().hosts()).unwrap_or_default()
    }

    /// The volumes that are exported now (home reactor).
    pub fn exported(&self) -> Vec<VolumeSpec> {
        self.home_part().map(|home| home.volumes.borrow().clone()).unwrap_or_default()
    }

    pub(super) fn home_part(&self) -> Option<Rc<super::Home>> {
        self.target.home.borrow().clone()
    }

    /// All reactors get the table, then hosts are told.
    async fn tell_namespaces(self: &Rc<Self>, home: &Home) {
        home.begin_telling();
        let place = |v: &VolumeSpec| {
            let home = self.home_of(v.shard)?;
            Some((v.nsid, Place { shard: v.shard, layer: v.layer, home, way: None }))
        };
        let places = home.volumes.borrow().iter().filter_map(place).collect();
        let table = home.registry.borrow().namespace_table(home.subsystem);
        let namespaces = Namespaces { table, places };
        for reactor in (0..self.reactors() as u16).map(ReactorId) {
            let request = HomeRequest::Namespaces(namespaces.clone());
            self.tell(reactor, request).await;
        }
        home.end_telling();
    }

    pub(super) async fn tell(self: &Rc<Self>, reactor: ReactorId, request: HomeRequest) {
        if reactor == self.id() {
            self.hear(request);
        } else {
            self.bus().call(reactor, Request::Target(request)).await;
        }
    }

    /// Delivers what the registry has to say, and minds its timers.
    async fn run_home(self: Rc<Self>) {
        let Some(home) = self.home_part() else { return };
        loop {
            home.changed.wait_until(|| home.telling.get() == 0).await;
            home.is_changed.set(false);
            while let Some(event) = { home.registry.borrow_mut().poll_event() } {
                let (TargetEvent::CompleteAer { conn, .. } | TargetEvent::Close { conn, .. }) = event;
                self.tell(reactor_of(conn), HomeRequest::Event(event)).await;
            }
            let deadline = { home.registry.borrow().poll_timeout() };
            let changed = home.changed.wait_until(|| home.is_changed.get());
            match deadline {
                Some(deadline) => {
                    select(changed, sleep_until(deadline)).await;
                }
                None => changed.await,
            }
            home.registry.borrow_mut().handle_timeout(peristyle_rt::now());
        }
    }

    /// What home tells this reactor.
    fn hear(&self, request: HomeRequest) {
        match request {
            HomeRequest::Namespaces(namespaces) => self.target.set_namespaces(namespaces),
            HomeRequest::Ways(ways) => self.target.set_ways(ways),
            HomeRequest::Event(TargetEvent::CompleteAer { conn, cid, status, dw0 }) => {
                if let Some(conn) = self.target.conn(conn) {
                    conn.complete_event(cid, status, dw0);
                }
            }
            HomeRequest::Event(TargetEvent::Close { conn, .. }) => {
                if let Some(conn) = self.target.conn(conn) {
                    conn.close();
                }
            }
            _ => {}
        }
    }

    pub(crate) async fn serve_home(self: &Rc<Self>, request: HomeRequest) -> HomeReply {
        match request {
            HomeRequest::Connect { conn, sqe, data } => {
                HomeReply::Connect(self.serve_connect(conn, &sqe, &data).await)
            }
            HomeRequest::Admin { controller, sqe } => self.serve_admin(controller, &sqe).await,
            HomeRequest::Disconnected { connected, draining } => {
                if let Some(home) = self.home_part() {
                    home.registry.borrow_mut().disconnected(&connected);
                    if draining.is_none() {
                        self.peers.forwards().depart(connected.conn.0);
                    }
                    home.draining.borrow_mut().extend(draining.map(|host| (connected.conn, host)));
                    home.changed();
                }
                HomeReply::Done
            }
            HomeRequest::Drained { conn } => {
                if let Some(home) = self.home_part() {
                    self.peers.forwards().depart(conn.0);
                    home.draining.borrow_mut().retain(|d| d.0 != conn);
                    home.drained.notify_all();
                }
                HomeReply::Done
            }
            HomeRequest::Counted(counted) => {
                if let Some(home) = self.home_part() {
                    home.registry.borrow_mut().add_counters(home.subsystem, &counted);
                }
                HomeReply::Done
            }
            HomeRequest::Served { shard, served, number } => {
                self.serve_shard(shard, served, number).await;
                HomeReply::Done
            }
            HomeRequest::Failed(controller, report) => {
                if let Some(home) = self.home_part() {
                    home.registry.borrow_mut().record_error(controller, &report);
                }
                HomeReply::Done
            }
            HomeRequest::Withdraw(controller) => {
                self.withdraw(controller).await;
                HomeReply::Done
            }
            told => {
                self.hear(told);
                HomeReply::Done
            }
        }
    }

    async fn serve_connect(&self, conn: ConnId, sqe: &Sqe, data: &[u8]) -> Result<Connected, Refused> {
        // Not yet (or no more): the host may come again.
        let home = self.home_part().ok_or(Refused { status: Status::CONTROLLER_BUSY, dw0: 0 })?;
        let forwards = self.peers.forwards();
        if let Some(host) = data.first_chunk::<16>() {
            let alone = async {
                if !is_for_discovery(data) {
                    forwards.arrive(conn.0, *host).await;
                }
                home.drained.wait_until(|| !home.draining.borrow().iter().any(|d| d.1 == *host)).await;
            };
            // What is stuck may never end. A host that hears that it is to come again can tell its operator so.
            if timeout(DRAIN_LIMIT, alone).await.is_none() {
                forwards.depart(conn.0);
                return Err(Refused { status: Status::CONTROLLER_BUSY, dw0: 0 });
            }
        }
        let result = home.registry.borrow_mut().connect(peristyle_rt::now(), conn, sqe, data);
        if result.is_err() {
            forwards.depart(conn.0);
        }
        home.changed();
        result
    }

    async fn serve_admin(&self, controller: ControllerRef, sqe: &Sqe) -> HomeReply {
        let Some(home) = self.home_part() else {
            return HomeReply::Admin(AdminOutcome::status(Status::ABORTED_SQ_DELETION), None);
        };
        let bytes = admin_data_bytes(sqe);
        let mut buf = if bytes > 0 { Some(Buf::alloc(bytes).await) } else { None };
        let out = buf.as_deref_mut().unwrap_or_default();
        let outcome = home.registry.borrow_mut().handle_admin(peristyle_rt::now(), controller, sqe, out);
        home.changed();
        match outcome {
            AdminOutcome::Complete { data_bytes, .. } if data_bytes > 0 => {
                let data = buf.map(|buf| buf.freeze().slice(0..data_bytes));
                HomeReply::Admin(outcome, data)
            }
            _ => HomeReply::Admin(outcome, None),
        }
    }

    /// Asks the home reactor, wherever this is.
    pub(crate) async fn ask_home(self: &Rc<Self>, request: HomeRequest) -> HomeReply {
        if self.id() == HOME {
            return self.serve_home(request).await;
        }
        match self.bus().call(HOME, Request::Target(request)).await {
            Reply::Target(reply) => reply,
            _ => HomeReply::Done,
        }
    }
}

fn blocks_of(spec: &VolumeSpec) -> u64 {
    spec.bytes.div_ceil(peristyle_base::BLOCK_BYTES as u64)
}

/// Whether a volume that could not be exported now may be later: its shard comes up, a full pool gets room. Only a
/// layer of another size stays what it is.
fn may_pass(error: ShardError) -> bool {
    error != ShardError::OutOfRange
}
