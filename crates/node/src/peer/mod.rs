//! Other nodes: their columns, reached over the peer protocol, and this node's columns for them.
//!
//! Each reactor has a connection of its own to each reactor of another node whose devices it uses ([`link`]), and serves the devices
//! of its own ([`serve`]). The first reactor watches the other nodes (`watch`): how full their devices are, and whether they
//! answer. It also keeps this node's part in who owns which shard (`leases`).

mod forward;
mod incoming;
mod leases;
mod link;
mod outbox;
mod serve;
mod table;
mod tls;
mod traffic;
mod watch;

pub(crate) use forward::{Carried, Carrier, Forwards, Handed, Outcome};
pub use leases::LeaseTable;
pub use link::LinkState;
pub(crate) use link::With;
use table::Peer;
pub(crate) use table::{Identity, PeerTable};
pub use table::{PeerConfig, PeersConfig};
pub use tls::{Security, Tls, TlsError};
use traffic::Traffic;
pub use traffic::{RequestCount, RequestCounts, RequestKind};

use crate::columns::NodeColumns;
use crate::devices::{DeviceState, DeviceTable, Home, SharedDevice};
use crate::message::{ColumnAnswer, ColumnRequest};
use leases::Leases;
use link::Link;
use peristyle_base::{BLOCK_BYTES, ColumnPlace, DeviceId, Instant, NodeId, ShardId, SlotIndex};
use peristyle_cluster::peer::{Answer, DeviceReport, Hello, PeerDeviceState, Request, Target, read_list};
use peristyle_cluster::{ColumnFault, ListedSlot};
use peristyle_rt::sync::Event;
use peristyle_rt::{Addr, Buf, Duration, NetError};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::rc::Rc;

/// Bytes of one page of a list.
const LIST_BYTES: u32 = 64 << 10;

/// How often is looked whether a node is heard again.
const UNHEARD_PERIOD: Duration = Duration::from_millis(10);

/// A connection, and the version of the node to which it was made.
type Linked = (u32, Rc<Link>);

/// What a connection to another node carries.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Lane {
    /// Requests to one of its reactors.
    Columns(u16),
    /// Commands of hosts to its first reactor. They may have to wait for memory there, behind which no column may wait: memory
    /// comes free when columns are answered.
    Forward,
}

/// One reactor's connections to other nodes.
pub struct Peers {
    who: Identity,
    /// Where the first reactor listens for other nodes.
    listen: Option<SocketAddr>,
    security: Security,
    table: PeerTable,
    links: RefCell<BTreeMap<(NodeId, Lane), Linked>>,
    traffic: Rc<Traffic>,
    /// On the first reactor of a node that has others.
    leases: RefCell<Option<Rc<Leases>>>,
    /// When each node answered last, on the first reactor.
    heard: RefCell<BTreeMap<NodeId, Instant>>,
    forwards: Forwards,
    stopping: Event,
}

impl Peers {
    pub(crate) fn new(who: Identity, config: &PeersConfig, table: PeerTable) -> Rc<Peers> {
        let (listen, security) = (config.listen, config.security.clone());
        let (links, traffic, leases, heard, stopping) = Default::default();
        Rc::new(Peers {
            who,
            listen,
            security,
            table,
            links,
            traffic,
            leases,
            heard,
            forwards: Forwards::new(),
            stopping,
        })
    }

    /// Of a node that is alone.
    pub(crate) fn none() -> Rc<Peers> {
        let who = Identity { reactors: 1, ..Identity::default() };
        Peers::new(who, &PeersConfig::default(), PeerTable::new(&[]))
    }

    /// Listens for other nodes, if the configuration says so.
    pub(crate) async fn serve(
        self: &Rc<Self>,
        columns: Rc<NodeColumns>,
        reactor: u16,
    ) -> Result<(), NetError> {
        let Some(mut addr) = self.listen else { return Ok(()) };
        addr.set_port(addr.port() + reactor);
        serve::Service::start(&Addr::Tcp(addr), columns, self.clone()).await.map(drop)
    }

    /// For faults in development: what comes from a node is lost, or arrives again.
    pub(crate) fn set_heard(&self, node: NodeId, heard: bool) {
        self.table.set_heard(node, heard);
    }

    pub(crate) fn stop(&self) {
        self.stopping.set();
    }

    /// The other nodes, and what is known of the connection to each.
    pub fn states(&self) -> Vec<(NodeId, LinkState)> {
        let state = |p: &Peer| {
            self.link(p.node, Lane::Columns(0)).map_or(LinkState::Unreachable, |link| link.state())
        };
        self.table.all().map(|p| (p.node, state(p))).collect()
    }

    /// What this reactor has asked other nodes.
    pub fn traffic(&self) -> RequestCounts {
        self.traffic.counts()
    }

    /// The other members.
    pub(crate) fn nodes(&self) -> Vec<NodeId> {
        self.table.all().map(|peer| peer.node).collect()
    }

    /// Nodes that have left, of which not all others are known to have heard.
    pub(crate) fn leaving(&self) -> Vec<NodeId> {
        self.table.leaving().collect()
    }

    /// When a node answered last; on the first reactor.
    pub fn last_heard(&self, node: NodeId) -> Option<Instant> {
        self.heard.borrow().get(&node).copied()
    }

    /// The connection to a reactor of another node; it is begun when it is first asked for, and anew when the node is reached elsewhere.
    /// `None`: no such node is a member.
    fn link(&self, node: NodeId, lane: Lane) -> Option<Rc<Link>> {
        let peer = self.table.get(node)?;
        let version = peer.version();
        let mut links = self.links.borrow_mut();
        match links.get(&(node, lane)) {
            Some((of, link)) if *of == version => return Some(link.clone()),
            Some((_, old)) => old.end(),
            None => {}
        }
        let reactor = if let Lane::Columns(reactor) = lane { reactor } else { 0 };
        let mut addr = peer.addr();
        addr.set_port(addr.port().checked_add(reactor)?);
        let hello = Hello { versions: (0, 0), cluster: self.who.cluster, from: self.who.me, to: node };
        let how = (self.security.clone(), self.table.clone());
        let link = Link::start(Addr::Tcp(addr), hello, how, self.traffic.clone(), self.stopping.clone());
        links.insert((node, lane), (version, link.clone()));
        Some(link)
    }

    /// To a node's first reactor, while it is a member without having left meanwhile.
    fn link_in(&self, node: NodeId, term: u32) -> Option<Rc<Link>> {
        self.table.get(node).filter(|peer| peer.term() == term)?;
        self.link(node, Lane::Columns(0))
    }

    /// Ends this reactor's connections to a node that has left. Those of others end with it.
    fn unlink(&self, node: NodeId) {
        let mut links = self.links.borrow_mut();
        links.iter().filter(|((to, _), _)| *to == node).for_each(|(_, (_, link))| link.end());
        links.retain(|(to, _), _| *to != node);
    }

    /// To the reactor that serves a device. `None`: the device has moved to this node.
    fn link_to(&self, device: &SharedDevice) -> Option<Rc<Link>> {
        let Home::Peer(node) = device.home() else { return None };
        self.link(node, Lane::Columns(device.peer_reactor()))
    }

    /// Carries out a request on a device of another node.
    pub(crate) async fn ask(&self, device: &SharedDevice, request: ColumnRequest) -> ColumnAnswer {
        let Some(link) = self.link_to(device) else { return request.failed(ColumnFault::Device) };
        carry(&link, device.id, request).await
    }

    /// Whether the device answers now; its node reads a block of it.
    pub(crate) async fn probe(&self, device: &SharedDevice) -> bool {
        let Some(link) = self.link_to(device) else { return false };
        link.call(&Request::Probe { device: device.id }, With::default()).await.0.is_ok()
    }
}

/// Returns when what comes from a node arrives; false when its connection is over before.
async fn hear(table: &PeerTable, node: NodeId, closed: &Event) -> bool {
    while !table.is_heard(node) {
        if closed.is_set() {
            return false;
        }
        peristyle_rt::sleep(UNHEARD_PERIOD).await;
    }
    true
}

/// Asks for a column over one connection.
async fn carry(link: &Link, device: DeviceId, request: ColumnRequest) -> ColumnAnswer {
    let at = |slot, name, epoch| Target { place: ColumnPlace { device, slot }, name, epoch };
    match request {
        ColumnRequest::Allocate { name, scheme, epoch, class, filling } => {
            let at = at(SlotIndex(0), name, epoch);
            let (answer, _) =
                link.call(&Request::Allocate { at, scheme, class, filling }, With::default()).await;
            ColumnAnswer::Slot(match answer {
                Ok(Answer::Slot(slot)) => Ok(slot),
                other => Err(fault(other)),
            })
        }
        ColumnRequest::Append { slot, name, epoch, row, data, crcs, class } => {
            let request = Request::Append { at: at(slot, name, epoch), row, class, crcs: &crcs };
            done(link.call(&request, With { payload: Some(data), into: None }).await.0)
        }
        ColumnRequest::Fence { slot, name, epoch } => {
            done(link.call(&Request::Fence { at: at(slot, name, epoch) }, With::default()).await.0)
        }
        ColumnRequest::Read { slot, name, row, buf } => {
            let (at, bytes) = (at(slot, name, Default::default()), buf.len());
            let request = Request::Read { at, row, rows: (bytes / BLOCK_BYTES) as u16 };
            let (answer, buf) = link.call(&request, With { payload: None, into: Some(buf) }).await;
            let result = answer.map(drop);
            match buf {
                Some(buf) => ColumnAnswer::Read(result, buf),
                // It went with the connection.
                None => ColumnAnswer::Done(Err(result.err().unwrap_or(ColumnFault::Device))),
            }
        }
        ColumnRequest::Seal { slot, name, epoch, rows, holes, crcs } => {
            let request = Request::Seal { at: at(slot, name, epoch), rows, holes, crcs };
            done(link.call(&request, With::default()).await.0)
        }
        ColumnRequest::Free { slot, name, epoch } => {
            done(link.call(&Request::Free { at: at(slot, name, epoch) }, With::default()).await.0)
        }
        ColumnRequest::List { shard } => ColumnAnswer::List(list(link, device, shard).await),
        ColumnRequest::RowCrcs { slot, name } => {
            let request = Request::RowCrcs { at: at(slot, name, Default::default()) };
            ColumnAnswer::Crcs(match link.call(&request, With::default()).await.0 {
                Ok(Answer::RowCrcs(crcs)) => Ok(crcs),
                other => Err(fault(other)),
            })
        }
    }
}

/// All slots of a shard, page by page.
async fn list(link: &Link, device: DeviceId, shard: ShardId) -> Result<Vec<ListedSlot>, ColumnFault> {
    let (mut all, mut from) = (Vec::new(), SlotIndex(0));
    loop {
        let into = Some(Buf::alloc(LIST_BYTES as usize).await);
        let request = Request::List { device, shard, from, bytes: LIST_BYTES };
        let (answer, page) = link.call(&request, With { payload: None, into }).await;
        let next = match answer {
            Ok(Answer::Listed { next }) => next,
            other => return Err(fault(other)),
        };
        let page = read_list(device, shard, from, &page.ok_or(ColumnFault::Device)?);
        all.extend(page.map_err(|_| ColumnFault::Device)?);
        match next {
            // It goes on behind what it has told.
            Some(next) if next > from && all.last().is_some_and(|l| l.place.slot < next) => from = next,
            Some(_) => return Err(ColumnFault::Device),
            None => return Ok(all),
        }
    }
}

fn done(answer: Result<Answer, ColumnFault>) -> ColumnAnswer {
    ColumnAnswer::Done(answer.map(drop))
}

fn fault(answer: Result<Answer, ColumnFault>) -> ColumnFault {
    answer.err().unwrap_or(ColumnFault::Device)
}

/// This node's devices, as others hear of them.
fn reports(devices: &DeviceTable) -> impl Iterator<Item = DeviceReport> + '_ {
    devices.all().filter_map(|d| {
        let Home::Here(reactor) = d.home() else { return None };
        let [slots_total, slots_used, slots_reserved, slots_kept] = d.gauges();
        let state = match d.state() {
            _ if !d.is_served() => PeerDeviceState::Closed,
            DeviceState::Closed => PeerDeviceState::Closed,
            DeviceState::Healthy => PeerDeviceState::Healthy,
            DeviceState::Slow => PeerDeviceState::Slow,
            DeviceState::Failed => PeerDeviceState::Failed,
        };
        Some(DeviceReport {
            device: d.id,
            reactor: reactor.0,
            state,
            slots_total,
            slots_used,
            slots_reserved,
            slots_kept,
        })
    })
}
