//! Watches other nodes and their devices from one reactor: a node that does not answer has no devices for anybody here.

use super::link::With;
use super::table::{Added, Peer};
use super::{Link, PeerConfig, Peers};
use crate::devices::{DeviceTable, Home, SharedDevice};
use crate::probe;
use peristyle_base::{DeviceId, NodeId};
use peristyle_cluster::DEVICES_MAX;
use peristyle_cluster::peer::{
    Answer, DEVICE_ENTRY_BYTES, DeviceReport, PeerDeviceState, Request, read_devices,
};
use peristyle_rt::{Buf, Duration, KeptBufs, timeout};
use std::rc::Rc;

/// A node is asked so often.
const PERIOD: Duration = Duration::from_millis(100);
/// A node that does not answer in this time is away.
const LIMIT: Duration = Duration::from_millis(300);

/// Room for the devices of a node, as far as is known: one buffer of the smallest size is kept back for each node, on the reactor that
/// asks them all.
const PING_BYTES: usize = 4 << 10;
/// Room for the devices of any.
const PING_BYTES_MAX: usize = DEVICES_MAX * DEVICE_ENTRY_BYTES;

impl Peers {
    /// Watches all other nodes until the end. Called on one reactor.
    pub(crate) fn watch(self: &Rc<Self>, devices: &DeviceTable) {
        for peer in self.table.all() {
            peristyle_rt::spawn(self.clone().watch_node(peer.node, devices.clone()));
        }
        for device in devices.all().filter(|d| d.is_peers()) {
            peristyle_rt::spawn_background(self.clone().watch_device(device.id, devices.clone()));
        }
    }

    /// A node has joined the cluster: its devices may be used, and it votes; or it is at another address. On the first reactor; all others
    /// see it.
    pub(crate) fn add(self: &Rc<Self>, peer: PeerConfig, devices: &DeviceTable) {
        let node = peer.node;
        if let Added::Joined(number) = self.table.add(peer) {
            self.begin_voting(number, node);
            peristyle_rt::spawn(self.clone().watch_node(node, devices.clone()));
        }
    }

    /// A node has left the cluster: it does not vote, and its devices are not there. On the first reactor.
    pub(crate) fn remove(&self, node: NodeId, devices: &DeviceTable) {
        let Some(number) = self.table.leave(node) else { return };
        self.end_voting(number, false);
        self.unlink(node);
        self.heard.borrow_mut().remove(&node);
        of_node(devices, node).for_each(SharedDevice::set_closed);
    }

    /// All others have heard that a node has left. On the first reactor.
    pub(crate) fn forget(&self, node: NodeId) {
        if let Some(number) = self.table.forget(node) {
            self.end_voting(number, true);
        }
    }

    async fn watch_node(self: Rc<Self>, node: NodeId, devices: DeviceTable) {
        let Some(term) = self.table.get(node).map(Peer::term) else { return };
        // Whoever waits for this node may hold all other memory.
        let kept = KeptBufs::take(1, PING_BYTES).await;
        let mut room = PING_BYTES;
        while !self.stopping.is_set() {
            let Some(link) = self.link_in(node, term) else { return };
            let asked = peristyle_rt::now();
            let answer = timeout(LIMIT, async { ping(&link, kept.alloc_up_to(room).await).await }).await;
            if self.link_in(node, term).is_none() {
                return;
            }
            match answer {
                Some(Ok(told)) => {
                    self.heard.borrow_mut().insert(node, peristyle_rt::now());
                    heard(&devices, node, &told);
                    if !told.all {
                        room = PING_BYTES_MAX;
                    }
                }
                _ => silent(&devices, node),
            }
            let pause = PERIOD.saturating_sub(peristyle_rt::now().since(asked));
            peristyle_rt::sleep(pause).await;
        }
    }

    /// While a device is bad, has its node read from it until it answers, quickly and several times in a row.
    pub(crate) async fn watch_device(self: Rc<Self>, id: DeviceId, devices: DeviceTable) {
        let Some(device) = devices.get(id) else { return };
        let mut good = 0;
        while !self.stopping.is_set() && device.is_peers() {
            peristyle_rt::sleep(probe::PERIOD).await;
            if !device.is_bad() || !device.is_served() {
                good = 0;
                continue;
            }
            let answered = timeout(probe::LIMIT, self.probe(device)).await == Some(true);
            good = if answered && !device.is_reported_bad() { good + 1 } else { 0 };
            if answered {
                devices.set_back(id);
            }
            if good >= probe::GOOD {
                good = 0;
                devices.set_good(id);
            }
        }
    }

    /// A device was late. When it does not answer now either, nobody reads from it until it does.
    pub(crate) async fn check(self: Rc<Self>, id: DeviceId, devices: DeviceTable) {
        let Some(device) = devices.get(id) else { return };
        if timeout(probe::CHECK_LIMIT, self.probe(device)).await != Some(true) {
            devices.set_bad(id, false);
            devices.set_away(id);
        }
        device.clear_suspicion();
    }
}

/// What a node has said of its devices.
struct Told {
    reports: Vec<DeviceReport>,
    /// There was room for more.
    all: bool,
}

async fn ping(link: &Link, into: Buf) -> Result<Told, ()> {
    let room = into.len() / DEVICE_ENTRY_BYTES;
    let request = Request::Ping { bytes: into.len() as u32 };
    match link.call(&request, With { payload: None, into: Some(into) }).await {
        (Ok(Answer::Pong), Some(buf)) => {
            let reports = read_devices(&buf).map_err(drop)?;
            Ok(Told { all: reports.len() < room, reports })
        }
        _ => Err(()),
    }
}

fn of_node(devices: &DeviceTable, node: NodeId) -> impl Iterator<Item = &SharedDevice> {
    devices.all().filter(move |d| d.home() == Home::Peer(node))
}

/// The node has told how its devices are. What it does not tell of is not there, if it could tell of all.
fn heard(devices: &DeviceTable, node: NodeId, told: &Told) {
    for device in of_node(devices, node) {
        let report = told.reports.iter().find(|r| r.device == device.id);
        if report.is_none() && !told.all {
            continue;
        }
        let Some(report) = report.filter(|r| r.state != PeerDeviceState::Closed) else {
            device.set_closed();
            continue;
        };
        device.set_peer_reactor(report.reactor);
        device.set_usage(report.slots_total, report.slots_used, (report.slots_reserved, report.slots_kept));
        let bad = report.state != PeerDeviceState::Healthy;
        device.set_reported_bad(bad);
        if bad {
            devices.set_bad(device.id, report.state == PeerDeviceState::Failed);
        }
        device.set_open();
    }
}

fn silent(devices: &DeviceTable, node: NodeId) {
    for device in of_node(devices, node).filter(|d| d.is_open()) {
        devices.set_bad(device.id, true);
        devices.set_away(device.id);
    }
}
