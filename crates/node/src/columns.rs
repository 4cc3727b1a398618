//! Columns of the pool: served directly when the device lives on this reactor, by a call when it lives on
//! another, over the peer protocol when it is another node's. The shard sees none of this.

use crate::devices::{DeviceTable, Home, SharedDevice, Wish};
use crate::message::{ColumnAnswer, ColumnRequest, NodeBus, Reply, Request};
use crate::peer::Peers;
use crate::probe;
use crate::stats::{Leg, LegSnapshot};
use peristyle_base::stage::Stage;
use peristyle_base::{
    BLOCK_BYTES, COLUMN_ROWS, ColumnName, ColumnPlace, DeviceId, Epoch, Instant, NodeId, RecentP99, RowIndex,
    Scheme, ShardId, SlotIndex,
};
use peristyle_cluster::DeviceView;
use peristyle_column::{AllocClass, Allocate, ColumnError, RowRange, Seal, Server, SlotState};
use peristyle_rt::{Buf, Duration, IoVec, ReactorId, View, join_all, timeout};
use peristyle_shard as shard;
use peristyle_shard::{ColumnFault, Columns, Fate, ListedSlot, WriteClass};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

/// A reactor that does not list a device's columns in this time: the device counts as away.
const LIST_LIMIT: Duration = Duration::from_secs(1);

/// A request to a device of another node that is under way. Dropped unanswered, it counts as failed: its caller gave up.
struct Asked<'a> {
    columns: &'a NodeColumns,
    device: DeviceId,
    stage: fn(&mut Leg) -> &mut Stage,
    at: Instant,
    ok: bool,
}

impl<'a> Asked<'a> {
    /// Of an append or a read.
    fn of(columns: &'a NodeColumns, device: DeviceId, request: &ColumnRequest) -> Option<Asked<'a>> {
        let stage: fn(&mut Leg) -> &mut Stage = match request {
            ColumnRequest::Append { .. } => |leg| &mut leg.append,
            ColumnRequest::Read { .. } => |leg| &mut leg.read,
            _ => return None,
        };
        let at = peristyle_rt::now();
        stage(columns.legs.borrow_mut().entry(device).or_default()).enter(at);
        Some(Asked { columns, device, stage, at, ok: false })
    }

    fn answered(mut self, answer: &ColumnAnswer) {
        self.ok = matches!(answer, ColumnAnswer::Done(Ok(())) | ColumnAnswer::Read(Ok(()), _));
    }
}

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        let mut legs = self.columns.legs.borrow_mut();
        let Some(leg) = legs.get_mut(&self.device) else { return };
        let (stage, now) = ((self.stage)(leg), peristyle_rt::now());
        match self.ok {
            true => stage.leave(self.at, now),
            false => stage.leave_failed(self.at, now),
        }
    }
}

/// The pool's columns, as one reactor reaches them.
pub struct NodeColumns {
    devices: DeviceTable,
    /// In an order of their own: what is asked of all is asked in it.
    servers: RefCell<BTreeMap<DeviceId, Server>>,
    /// Recent append latency of each device, as this reactor sees it.
    latencies: RefCell<BTreeMap<DeviceId, RecentP99>>,
    /// What requests to devices of other nodes take.
    legs: RefCell<BTreeMap<DeviceId, Leg>>,
    /// A device that has not served for so long does not come back.
    rebuild_after: Duration,
    bus: Rc<NodeBus>,
    peers: Rc<Peers>,
    /// Nobody else can own the shards.
    is_alone: bool,
    /// Shards of the pool.
    shards: usize,
}

impl NodeColumns {
    /// Of a node that knows no other.
    pub fn new(devices: DeviceTable, rebuild_after: Duration, bus: Rc<NodeBus>) -> NodeColumns {
        NodeColumns::with_peers(devices, rebuild_after, bus, (Peers::none(), true), 1)
    }

    pub(crate) fn with_peers(
        devices: DeviceTable,
        rebuild_after: Duration,
        bus: Rc<NodeBus>,
        (peers, is_alone): (Rc<Peers>, bool),
        shards: usize,
    ) -> NodeColumns {
        let latencies = RefCell::new(devices.all().map(|d| (d.id, RecentP99::default())).collect());
        NodeColumns {
            devices,
            servers: RefCell::default(),
            latencies,
            legs: RefCell::default(),
            rebuild_after,
            bus,
            peers,
            is_alone,
            shards,
        }
    }
    pub fn add_server(&self, server: Server) {
        self.servers.borrow_mut().insert(server.id(), server);
    }
    pub fn drop_server(&self, id: DeviceId) {
        self.servers.borrow_mut().remove(&id);
    }
    pub fn servers(&self) -> Vec<Server> {
        self.servers.borrow().values().cloned().collect()
    }
    pub fn server(&self, id: DeviceId) -> Option<Server> {
        self.servers.borrow().get(&id).cloned()
    }
    pub fn table(&self) -> &DeviceTable {
        &self.devices
    }

    /// Carries out a request on a device of this reactor.
    pub async fn serve(&self, device: DeviceId, request: ColumnRequest) -> ColumnAnswer {
        let Some(server) = self.server(device) else { return request.failed(ColumnFault::Device) };
        match request {
            ColumnRequest::Allocate { name, scheme, epoch, class, filling } => {
                let class = match class {
                    shard::AllocClass::User => AllocClass::User,
                    shard::AllocClass::Collection => AllocClass::Collection,
                    shard::AllocClass::Meta => AllocClass::Meta,
                    shard::AllocClass::Reappend => AllocClass::Reappend,
                };
                let allocate = Allocate { name, scheme, epoch, class, filling };
                let result = server.allocate(allocate).await.map_err(fault);
                self.publish_usage(&server);
                ColumnAnswer::Slot(result)
            }
            ColumnRequest::Append { slot, name, epoch, row, data, crcs, class } => {
                let mut rows = ROWS;
                let crcs = row_crcs(&mut rows, &crcs);
                ColumnAnswer::Done(
                    server.append(slot, &name, epoch, row, data, crcs, class_of(class)).await.map_err(fault),
                )
            }
            ColumnRequest::Fence { slot, name, epoch } => {
                ColumnAnswer::Done(server.fence(slot, &name, epoch).await.map(|_| ()).map_err(fault))
            }
            ColumnRequest::Read { slot, name, row, buf } => {
                let (result, buf) = server.read(slot, &name, row, buf).await;
                ColumnAnswer::Read(result.map_err(fault), buf)
            }
            ColumnRequest::Seal { slot, name, epoch, rows, holes, crcs } => {
                let holes: Vec<RowRange> = holes.iter().map(|h| RowRange::new(h.0, h.1)).collect();
                let crcs = (!crcs.is_empty()).then_some(&crcs[..]);
                let seal = Seal { rows: RowIndex(rows), holes: &holes, crcs };
                ColumnAnswer::Done(server.seal(slot, &name, epoch, seal).await.map_err(fault))
            }
            ColumnRequest::Free { slot, name, epoch } => {
                let result = server.free(slot, &name, epoch).await.map_err(fault);
                self.publish_usage(&server);
                ColumnAnswer::Done(result)
            }
            ColumnRequest::List { shard } => {
                ColumnAnswer::List(Ok(server.list(shard).iter().filter_map(listed).collect()))
            }
            ColumnRequest::RowCrcs { slot, name } => {
                let table = server.row_table(slot, &name).await;
                ColumnAnswer::Crcs(table.map(|t| t.crcs[..t.rows.0 as usize].to_vec()).map_err(fault))
            }
        }
    }

    pub fn publish_usage(&self, server: &Server) {
        let usage = server.usage();
        if let Some(shared) = self.devices.get(server.id()) {
            shared.set_usage(usage.total, usage.total - usage.free, (usage.reserved, usage.kept));
        }
    }

    fn note_latency(&self, device: DeviceId, started: Instant, now: Instant) {
        // What a device answers while it is known to stall is not what it usually takes.
        if !self.devices.is_bad(device) {
            let mut latencies = self.latencies.borrow_mut();
            latencies.entry(device).or_default().record(now, now.nanos_since(started));
        }
    }

    async fn ask(&self, device: DeviceId, request: ColumnRequest) -> ColumnAnswer {
        match self.devices.get(device) {
            Some(shared) if shared.is_peers() && shared.is_served() => {
                let asked = Asked::of(self, device, &request);
                let answer = self.peers.ask(shared, request).await;
                asked.into_iter().for_each(|asked| asked.answered(&answer));
                answer
            }
            _ => self.ask_here(device, request).await,
        }
    }

    /// Devices of other nodes, and what requests to them took.
    pub(crate) fn legs(&self, now: Instant) -> Vec<LegSnapshot> {
        let legs = self.legs.borrow();
        let node_of = |device| match self.devices.get(device)?.home() {
            Home::Peer(node) => Some(node),
            Home::Here(_) => None,
        };
        let snapshot = |(&device, leg): (&DeviceId, &Leg)| LegSnapshot {
            device,
            node: node_of(device),
            append: leg.append.snapshot(now),
            read: leg.read.snapshot(now),
        };
        legs.iter().map(snapshot).collect()
    }

    /// Carries out a request on a device of this node.
    pub(crate) async fn ask_here(&self, device: DeviceId, request: ColumnRequest) -> ColumnAnswer {
        let Some(shared) = self.devices.get(device).filter(|d| d.wish().serves()) else {
            return request.failed(ColumnFault::Device);
        };
        match shared.home() {
            Home::Here(home) if home != self.bus.me() && shared.is_open() => {
                match self.bus.call(home, Request::Column { device, request }).await {
                    Reply::Column(answer) => answer,
                    _ => ColumnAnswer::Done(Err(ColumnFault::Device)),
                }
            }
            Home::Here(_) => self.serve(device, request).await,
            Home::Peer(_) => request.failed(ColumnFault::Device),
        }
    }

    /// Whether a device of this reactor answers now.
    pub(crate) async fn probe_here(&self, device: DeviceId) -> bool {
        let Some(server) = self.server(device) else { return false };
        let buf = Buf::alloc(BLOCK_BYTES).await;
        server.device().read(0, buf).await.0.is_ok()
    }
}

const ROWS: [u32; COLUMN_ROWS as usize] = [0; COLUMN_ROWS as usize];

/// The checksums of an append, as numbers.
fn row_crcs<'a>(rows: &'a mut [u32; COLUMN_ROWS as usize], crcs: &[u8]) -> &'a [u32] {
    let n = crcs.len() / 4;
    for (row, bytes) in rows.iter_mut().zip(crcs.chunks_exact(4)) {
        *row = u32::from_le_bytes(bytes.try_into().expect("4 bytes"));
    }
    &rows[..n]
}

fn class_of(class: WriteClass) -> peristyle_column::WriteClass {
    match class {
        WriteClass::User => peristyle_column::WriteClass::User,
        WriteClass::Meta => peristyle_column::WriteClass::Meta,
        WriteClass::Reappend | WriteClass::Repair => peristyle_column::WriteClass::Repair,
        WriteClass::Collection => peristyle_column::WriteClass::Collection,
    }
}

fn fault(error: ColumnError) -> ColumnFault {
    match error {
        ColumnError::Stale { .. } => ColumnFault::Fenced,
        ColumnError::WrongName | ColumnError::NotFound => ColumnFault::Missing,
        ColumnError::Full | ColumnError::TooManyOpen => ColumnFault::Full,
        ColumnError::Device(_) => ColumnFault::Device,
        _ => ColumnFault::Refused,
    }
}

pub(crate) fn listed(info: &peristyle_column::SlotInfo) -> Option<ListedSlot> {
    Some(ListedSlot {
        place: ColumnPlace { device: info.device, slot: info.slot },
        name: info.name,
        scheme: info.scheme,
        state: match info.state {
            SlotState::Open => shard::SlotState::Open,
            SlotState::Sealed => shard::SlotState::Sealed,
            SlotState::Filling => shard::SlotState::Filling,
            _ => return None,
        },
        epoch: info.epoch,
        rows: info.rows.0,
    })
}

fn slot(answer: ColumnAnswer) -> Result<SlotIndex, ColumnFault> {
    match answer {
        ColumnAnswer::Slot(result) => result,
        _ => Err(ColumnFault::Device),
    }
}

fn done(answer: ColumnAnswer) -> Result<(), ColumnFault> {
    match answer {
        ColumnAnswer::Done(result) => result,
        _ => Err(ColumnFault::Device),
    }
}

impl Columns for NodeColumns {
    fn pool_scheme(&self) -> Option<Scheme> {
        self.devices.scheme()
    }

    fn devices(&self, class: shard::AllocClass, out: &mut Vec<DeviceView>) {
        out.extend(self.devices.all().filter(|d| d.wish() != Wish::Removed).map(|d| d.view(class)));
    }

    async fn allocate(
        &self,
        device: DeviceId,
        name: ColumnName,
        scheme: Scheme,
        epoch: Epoch,
        class: shard::AllocClass,
    ) -> Result<SlotIndex, ColumnFault> {
        let request = ColumnRequest::Allocate { name, scheme, epoch, class, filling: false };
        slot(self.ask(device, request).await)
    }

    async fn allocate_filling(
        &self,
        device: DeviceId,
        name: ColumnName,
        scheme: Scheme,
        epoch: Epoch,
    ) -> Result<SlotIndex, ColumnFault> {
        let class = shard::AllocClass::User;
        let request = ColumnRequest::Allocate { name, scheme, epoch, class, filling: true };
        slot(self.ask(device, request).await)
    }

    async fn append(
        &self,
        place: ColumnPlace,
        name: ColumnName,
        epoch: Epoch,
        row: RowIndex,
        data: IoVec,
        crcs: View,
        class: WriteClass,
    ) -> Result<(), ColumnFault> {
        let started = peristyle_rt::now();
        let request = ColumnRequest::Append { slot: place.slot, name, epoch, row, data, crcs, class };
        let result = done(self.ask(place.device, request).await);
        if result.is_ok() {
            self.note_latency(place.device, started, peristyle_rt::now());
        }
        result
    }

    fn try_append(
        &self,
        place: ColumnPlace,
        name: ColumnName,
        epoch: Epoch,
        row: RowIndex,
        data: &IoVec,
        crcs: &[u8],
        class: WriteClass,
        started: Instant,
    ) -> Option<Instant> {
        // Only devices of this reactor have a server here.
        let servers = self.servers.borrow();
        let (server, mut rows) = (servers.get(&place.device)?, ROWS);
        let (crcs, class) = (row_crcs(&mut rows, crcs), class_of(class));
        let done = server.try_append(place.slot, &name, epoch, row, data, crcs, class, started)?;
        self.note_latency(place.device, started, done);
        Some(done)
    }

    async fn fence(&self, place: ColumnPlace, name: ColumnName, epoch: Epoch) -> Result<(), ColumnFault> {
        done(self.ask(place.device, ColumnRequest::Fence { slot: place.slot, name, epoch }).await)
    }

    async fn read(
        &self,
        place: ColumnPlace,
        name: ColumnName,
        row: RowIndex,
        buf: Buf,
    ) -> (Result<(), ColumnFault>, Buf) {
        let bytes = buf.len();
        let read = ColumnRequest::Read { slot: place.slot, name, row, buf };
        let (result, buf) = match self.ask(place.device, read).await {
            ColumnAnswer::Read(result, buf) => (result, Some(buf)),
            _ => (Err(ColumnFault::Device), None),
        };
        if result == Err(ColumnFault::Device) {
            // One that is gone is found out also when nobody writes to it.
            self.report_late(place.device);
        }
        // The buffer went with the request; a fresh one takes its place beside the error.
        match buf {
            Some(buf) => (result, buf),
            None => (result, Buf::alloc(bytes).await),
        }
    }

    fn try_read(
        &self,
        place: ColumnPlace,
        name: ColumnName,
        row: RowIndex,
        into: &mut [u8],
        started: Instant,
    ) -> Option<Instant> {
        // Only devices of this reactor have a server here.
        self.servers.borrow().get(&place.device)?.try_read(place.slot, &name, row, into, started)
    }

    async fn seal(
        &self,
        place: ColumnPlace,
        name: ColumnName,
        epoch: Epoch,
        rows: u16,
        holes: Vec<(u16, u16)>,
        crcs: Vec<u32>,
    ) -> Result<(), ColumnFault> {
        done(
            self.ask(place.device, ColumnRequest::Seal { slot: place.slot, name, epoch, rows, holes, crcs })
                .await,
        )
    }

    async fn free(&self, place: ColumnPlace, name: ColumnName, epoch: Epoch) -> Result<(), ColumnFault> {
        done(self.ask(place.device, ColumnRequest::Free { slot: place.slot, name, epoch }).await)
    }

    async fn list(&self, shard: ShardId) -> Vec<(DeviceId, Result<Vec<ListedSlot>, ColumnFault>)> {
        // What was given up is gone for good, not away.
        let lists = self.devices.all().filter(|d| d.wish().serves()).map(|d| async move {
            // A node that is silent is not waited for: it has been, by its pings.
            if d.is_peers() && self.devices.is_away(d.id) {
                return (d.id, Err(ColumnFault::Device));
            }
            let list = timeout(LIST_LIMIT, self.list_device(d.id, shard)).await;
            (d.id, list.unwrap_or(Err(ColumnFault::Device)))
        });
        join_all(lists).await
    }

    async fn list_device(&self, device: DeviceId, shard: ShardId) -> Result<Vec<ListedSlot>, ColumnFault> {
        match self.ask(device, ColumnRequest::List { shard }).await {
            ColumnAnswer::List(list) => list,
            _ => Err(ColumnFault::Device),
        }
    }

    async fn row_crcs(&self, place: ColumnPlace, name: ColumnName) -> Result<Vec<u32>, ColumnFault> {
        match self.ask(place.device, ColumnRequest::RowCrcs { slot: place.slot, name }).await {
            ColumnAnswer::Crcs(crcs) => crcs,
            _ => Err(ColumnFault::Device),
        }
    }

    fn fates(&self, out: &mut Vec<(DeviceId, Fate)>) {
        let now = peristyle_rt::now();
        out.extend(self.devices.all().map(|d| (d.id, d.fate(now, self.rebuild_after))));
    }

    fn report_bad(&self, device: DeviceId, fault: Option<ColumnFault>) {
        self.devices.set_bad(device, fault.is_some());
    }

    fn is_away(&self, device: DeviceId) -> bool {
        self.devices.is_away(device)
    }

    fn report_late(&self, device: DeviceId) {
        let Some(shared) = self.devices.get(device).filter(|d| d.suspect()) else { return };
        let bus = self.bus.clone();
        match (self.server(device), shared.home()) {
            (Some(server), _) => peristyle_rt::spawn(probe::check(server, self.devices.clone())),
            (None, Home::Here(home)) => peristyle_rt::spawn(async move {
                bus.call(home, Request::Check { device }).await;
            }),
            (None, Home::Peer(_)) => {
                peristyle_rt::spawn(self.peers.clone().check(device, self.devices.clone()))
            }
        };
    }

    async fn claim(&self, shard: ShardId, epoch: Epoch) -> bool {
        match self.bus.me() {
            _ if self.is_alone => true,
            ReactorId(0) => self.peers.claim(shard, epoch).await,
            _ => matches!(
                self.bus.call(ReactorId(0), Request::Claim { shard, epoch }).await,
                Reply::Done(true)
            ),
        }
    }

    fn sees_late(&self) -> bool {
        !self.is_alone
    }

    fn answers(&self, node: NodeId) -> bool {
        let its = |d: &&SharedDevice| d.home() == Home::Peer(node);
        self.devices.all().filter(its).any(|d| d.is_open() && !self.devices.is_away(d.id))
    }

    fn sharers(&self) -> usize {
        if self.is_alone { 1 } else { self.shards }
    }

    fn append_p99_ns(&self, device: DeviceId) -> u64 {
        self.latencies.borrow().get(&device).map_or(0, RecentP99::get)
    }
}
