//! The NVMe/TCP target: connections on every reactor, controllers on one, the home reactor.
//!
//! A connection is served where it was accepted ([`conn`]): one task receives and starts a task per command, one
//! sends. What all connections share (subsystems, controllers, keep alive) is the home reactor's ([`home`]); others
//! ask it by message. Every reactor has its own copy of the namespace table.

mod at_once;
mod conn;
mod counted;
mod execute;
mod forward;
mod home;
mod transmit;

pub use counted::COUNT_PERIOD;
pub(crate) use forward::Way;
pub use home::{HomeReply, HomeRequest};

use crate::LocalBoxed;
use crate::reactor::Node;
use crate::volume::{Volume, VolumeSpec};
use conn::Conn;
use home::Home;
use peristyle_base::{LayerId, ShardId};
use peristyle_nvme::QpairLimits;
use peristyle_nvme::discovery::Portal;
use peristyle_nvme::registry::{ConnId, ControllerRef};
use peristyle_nvme::subsystem::{Hosts, NamespaceTable, NamespaceView};
use peristyle_nvme::wire::fabrics::Nqn;
use peristyle_nvme::wire::log_page::AnaState;
use peristyle_rt::sync::{Event, Notify};
use peristyle_rt::{Addr, Duration, Either, Listener, NetError, ReactorId, select};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::{Rc, Weak};

/// The reactor that has the controllers.
pub const HOME: ReactorId = ReactorId(0);
/// Connections that one reactor serves; more are accepted and closed.
pub const CONNECTIONS_MAX: usize = 1024;
/// Commands in flight get so long to be answered when the target stops.
pub const DRAIN_LIMIT: Duration = Duration::from_secs(2);
/// Pause after an accept that failed (no descriptors, say).
const ACCEPT_PAUSE: Duration = Duration::from_millis(10);

/// What the target listens on and what it exports.
#[derive(Clone, Debug)]
pub struct TargetConfig {
    pub listen: Addr,
    /// What the discovery log says.
    pub portals: Vec<Portal>,
    pub nqn: Nqn,
    /// At most 20 ASCII characters.
    pub serial: String,
    pub hosts: Hosts,
    pub volumes: Vec<VolumeSpec>,
    pub limits: QpairLimits,
    /// Hosts that have no connection to a shard's owner reach its volumes here as well: their commands are handed on.
    pub forwards: bool,
}

/// Where a namespace's data is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Place {
    shard: ShardId,
    layer: LayerId,
    home: ReactorId,
    /// It is another node's, and commands are handed on to that.
    way: Option<Way>,
}

impl Place {
    /// This reactor has its shard, if the node has.
    fn is_of(&self, reactor: ReactorId) -> bool {
        self.way.is_none() && self.home == reactor
    }
}

/// The namespaces as one reactor sees them.
#[derive(Clone, Default)]
pub struct Namespaces {
    table: NamespaceTable,
    /// By namespace ID, in its order.
    places: Vec<(u32, Place)>,
}

impl Namespaces {
    fn place(&self, nsid: u32) -> Option<Place> {
        self.places.binary_search_by_key(&nsid, |p| p.0).ok().map(|i| self.places[i].1)
    }

    /// As they are for an association with these ways.
    fn by(&self, ways: &[(ShardId, Way)]) -> Namespaces {
        let way = |place: &Place| ways.iter().find(|way| way.0 == place.shard).map(|way| way.1);
        let state = |view: &NamespaceView| match self.place(view.nsid).and_then(|place| way(&place)) {
            Some(_) if view.ana == AnaState::Inaccessible => AnaState::NonOptimized,
            _ => view.ana,
        };
        let places = self.places.iter().map(|(nsid, place)| (*nsid, Place { way: way(place), ..*place }));
        Namespaces { table: self.table.with_states(state), places: places.collect() }
    }
}

/// A connection's place here, and how often it was used.
struct Slot {
    generation: u32,
    conn: Weak<Conn>,
}

/// What this reactor's part of the target knows.
pub struct TargetState {
    /// The connections' tasks own them; here they are found by name.
    conns: RefCell<Vec<Slot>>,
    count: Cell<usize>,
    gone: Notify,
    stopping: Event,
    namespaces: RefCell<Rc<Namespaces>>,
    /// What is handed on, and for each association with such ways the namespaces as they are for that, by its number.
    ways: RefCell<Vec<(ShardId, Way)>>,
    by_way: RefCell<BTreeMap<u64, Rc<Namespaces>>>,
    home: RefCell<Option<Rc<Home>>>,
    counting: RefCell<counted::Counting>,
    /// The task that tells home what was counted runs.
    tells: Cell<bool>,
}

impl Default for TargetState {
    fn default() -> Self {
        TargetState {
            conns: RefCell::default(),
            count: Cell::new(0),
            gone: Notify::default(),
            stopping: Event::default(),
            namespaces: RefCell::default(),
            ways: RefCell::default(),
            by_way: RefCell::default(),
            home: RefCell::default(),
            counting: RefCell::default(),
            tells: Cell::new(false),
        }
    }
}

impl TargetState {
    fn namespaces(&self) -> Rc<Namespaces> {
        self.namespaces.borrow().clone()
    }
    /// As a controller's connections have them.
    fn namespaces_of(&self, controller: Option<ControllerRef>) -> Rc<Namespaces> {
        let by_way = self.by_way.borrow();
        let own = controller.filter(|_| !by_way.is_empty()).and_then(|c| by_way.get(&c.number()));
        own.cloned().unwrap_or_else(|| self.namespaces())
    }
    fn set_namespaces(&self, namespaces: Namespaces) {
        self.namespaces.replace(Rc::new(namespaces));
        self.follow_ways();
    }
    fn set_ways(&self, ways: Vec<(ShardId, Way)>) {
        self.ways.replace(ways);
        self.follow_ways();
    }
    fn follow_ways(&self) {
        let mut of: BTreeMap<u64, Vec<(ShardId, Way)>> = BTreeMap::new();
        for way in self.ways.borrow().iter() {
            of.entry(way.1.controller.number()).or_default().push(*way);
        }
        let all = self.namespaces();
        let by_way = of.into_iter().map(|(controller, ways)| (controller, Rc::new(all.by(&ways))));
        self.by_way.replace(by_way.collect());
    }
    fn conn(&self, id: ConnId) -> Option<Rc<Conn>> {
        let conns = self.conns.borrow();
        let slot = conns.get(id.0 as u16 as usize)?;
        (slot.generation == (id.0 >> 16) as u32).then(|| slot.conn.upgrade()).flatten()
    }
    fn all(&self) -> Vec<Rc<Conn>> {
        self.conns.borrow().iter().filter_map(|s| s.conn.upgrade()).collect()
    }
}

/// Reactor in the upper 16 bits, then 32 bits of generation, then the index.
fn reactor_of(conn: ConnId) -> ReactorId {
    ReactorId((conn.0 >> 48) as u16)
}

impl Node {
    /// Starts this reactor's part of the target: call it on every reactor with the same configuration. The home
    /// reactor's returns when the volumes whose shards serve are exported; the others follow.
    pub fn start_target(self: &Rc<Self>, config: TargetConfig) -> LocalBoxed<'_, Result<Addr, NetError>> {
        Box::pin(async move {
            let listener = Listener::bind(&config.listen, self.reactors() > 1).await?;
            let addr = listener.local_addr();
            // A further address of the same target shares the controllers.
            if self.id() == HOME && self.target.home.borrow().is_none() {
                let mut config = config.clone();
                for portal in config.portals.iter_mut().filter(|p| p.address.port() == 0) {
                    if let Addr::Tcp(bound) = &addr {
                        portal.address.set_port(bound.port()); // the system chose it
                    }
                }
                self.start_home(&config).await;
            }
            peristyle_rt::spawn(self.clone().accept(listener, config.limits));
            if !self.target.tells.replace(true) {
                peristyle_rt::spawn(self.clone().tell_counted());
            }
            Ok(addr)
        })
    }

    async fn accept(self: Rc<Self>, listener: Listener, limits: QpairLimits) {
        let stopping = self.target.stopping.clone();
        loop {
            match select(stopping.wait(), listener.accept()).await {
                Either::Left(()) => return,
                Either::Right(Ok(stream)) if self.target.count.get() < CONNECTIONS_MAX => {
                    self.begin_connection(stream, limits);
                }
                Either::Right(Ok(flood)) => drop(flood),
                Either::Right(Err(_)) => peristyle_rt::sleep(ACCEPT_PAUSE).await,
            }
        }
    }

    fn begin_connection(self: &Rc<Self>, stream: peristyle_rt::Stream, limits: QpairLimits) {
        let mut conns = self.target.conns.borrow_mut();
        let index = conns.iter().position(|s| s.conn.strong_count() == 0).unwrap_or_else(|| {
            conns.push(Slot { generation: 0, conn: Weak::new() });
            conns.len() - 1
        });
        let slot = &mut conns[index];
        slot.generation = slot.generation.wrapping_add(1);
        let id = u64::from(self.id().0) << 48 | u64::from(slot.generation) << 16 | index as u64;
        let conn = Conn::new(self.clone(), ConnId(id), limits);
        slot.conn = Rc::downgrade(&conn);
        drop(conns);
        self.target.count.set(self.target.count.get() + 1);
        self.stats.borrow_mut().connections += 1;
        conn.start(stream);
    }

    pub(super) fn connection_ended(&self) {
        self.target.count.set(self.target.count.get() - 1);
        self.stats.borrow_mut().connections -= 1;
        self.target.gone.notify_all();
    }

    /// Connections of this reactor.
    pub fn connections(&self) -> usize {
        self.target.count.get()
    }

    /// Ends this reactor's part of the target: nothing new is taken; commands in flight are answered, within
    /// [`DRAIN_LIMIT`]; then connections are closed. Call it before [`Node::stop`].
    pub async fn stop_target(&self) {
        self.target.stopping.set();
        self.target.all().iter().for_each(|c| c.drain());
        let all_gone = self.target.gone.wait_until(|| self.target.count.get() == 0);
        if peristyle_rt::timeout(DRAIN_LIMIT, all_gone).await.is_none() {
            self.target.all().iter().for_each(|c| c.close());
        }
    }

    /// [`Self::stop_target`] at once: for [`Node::stop`].
    pub(crate) fn close_target(&self) {
        self.target.stopping.set();
        self.target.all().iter().for_each(|c| c.drain());
    }

    fn volume_at(self: &Rc<Self>, place: Place) -> Volume {
        Volume::new(self.clone(), place.shard, place.layer, place.home).by(place.way)
    }
}
