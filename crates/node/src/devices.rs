//! What all reactors know of the pool's devices, of this node and of others: where each is served, how full it is, whether
//! it can be trusted. Gauges only, written by one reactor and read by all.

use peristyle_base::{DeviceId, Instant, NodeId, Scheme};
use peristyle_cluster::{DEVICES_MAX, DeviceView, DomainId};
use peristyle_column::Reserve;
use peristyle_rt::{Duration, ReactorId};
use peristyle_shard::{AllocClass, Fate};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU16, AtomicU32, AtomicU64, AtomicUsize};
use std::sync::{Arc, OnceLock};

/// Who serves a device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Home {
    /// A reactor of this node.
    Here(ReactorId),
    Peer(NodeId),
}

impl Home {
    const PEER: u64 = 1 << 32;

    fn code(self) -> u64 {
        match self {
            Home::Here(reactor) => reactor.0.into(),
            Home::Peer(node) => Home::PEER | u64::from(node.0),
        }
    }
    fn of_code(code: u64) -> Home {
        match code & Home::PEER {
            0 => Home::Here(ReactorId(code as u16)),
            _ => Home::Peer(NodeId(code as u32)),
        }
    }
}

/// One device, as every reactor sees it.
pub struct SharedDevice {
    pub id: DeviceId,
    /// A [`DomainId`]: it changes with the labels of nodes, and when the device is plugged in elsewhere.
    domain: AtomicU32,
    /// A [`Home`]: it moves when the device is plugged in elsewhere.
    home: AtomicU64,
    /// For people.
    pub path: String,
    slots_total: AtomicU32,
    slots_used: AtomicU32,
    /// Free slots that are kept back from user data.
    slots_reserved: AtomicU32,
    /// … and of these, from what collection moves.
    slots_kept: AtomicU32,
    /// Its label and slot table were read.
    open: AtomicBool,
    /// [`FAILED`] and [`SLOW`], until it has passed its probes; [`AWAY`].
    bad: AtomicU8,
    /// It was late, and is being probed for it.
    suspected: AtomicBool,
    /// What the operator wants of it: a [`Wish`].
    wish: AtomicU8,
    /// Since when it has not served, in nanoseconds; 0: it serves, or nobody has looked since.
    gone_since: AtomicU64,
    /// The reactor that serves it, of the other node.
    peer_reactor: AtomicU16,
    /// The other node says that it is slow, or has failed.
    reported_bad: AtomicBool,
}

/// What the operator wants of a device.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(u8)]
pub enum Wish {
    /// To serve.
    #[default]
    Active = 0,
    /// To leave: its columns move to others, and it serves them meanwhile.
    Draining = 1,
    /// It is given up: its columns are made anew elsewhere, and nobody asks it any more.
    Failed = 2,
    /// It has left.
    Removed = 3,
    /// To be away for a while, soon: nothing new comes to it, and what it has stays.
    Leaving = 4,
    /// As [`Wish::Leaving`], and however long it is away, nothing is made anew for it: its node is in maintenance.
    Spared = 5,
}

impl Wish {
    const ALL: [Wish; 6] =
        [Wish::Active, Wish::Draining, Wish::Failed, Wish::Removed, Wish::Leaving, Wish::Spared];
    /// Its columns count.
    pub fn serves(self) -> bool {
        !matches!(self, Wish::Failed | Wish::Removed)
    }
    /// Nothing new comes to it.
    fn is_ending(self) -> bool {
        matches!(self, Wish::Draining | Wish::Leaving | Wish::Spared)
    }
}

/// It failed requests.
const FAILED: u8 = 1;
/// It stalled, or took too long for something: new extents avoid it.
const SLOW: u8 = 2;
/// It did not answer a probe, and has not answered since: nobody reads from it.
const AWAY: u8 = 4;

/// State of a device in a word, for tables.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DeviceState {
    Closed,
    Healthy,
    Slow,
    Failed,
}

impl SharedDevice {
    /// A device of this node.
    pub fn new(id: DeviceId, domain: DomainId, home: ReactorId, path: String) -> SharedDevice {
        SharedDevice::at(id, domain, Home::Here(home), path)
    }
    /// A device of another node.
    pub fn of_peer(id: DeviceId, domain: DomainId, node: NodeId) -> SharedDevice {
        SharedDevice::at(id, domain, Home::Peer(node), format!("node {node}"))
    }
    fn at(id: DeviceId, domain: DomainId, home: Home, path: String) -> SharedDevice {
        SharedDevice {
            id,
            domain: AtomicU32::new(domain.0),
            home: AtomicU64::new(home.code()),
            path,
            slots_total: AtomicU32::new(0),
            slots_used: AtomicU32::new(0),
            slots_reserved: AtomicU32::new(0),
            slots_kept: AtomicU32::new(0),
            open: AtomicBool::new(false),
            bad: AtomicU8::new(0),
            suspected: AtomicBool::new(false),
            wish: AtomicU8::new(Wish::Active as u8),
            gone_since: AtomicU64::new(0),
            peer_reactor: AtomicU16::new(0),
            reported_bad: AtomicBool::new(false),
        }
    }
    pub fn home(&self) -> Home {
        Home::of_code(self.home.load(Relaxed))
    }
    pub(crate) fn set_home(&self, home: Home) {
        self.home.store(home.code(), Relaxed);
    }
    pub fn domain(&self) -> DomainId {
        DomainId(self.domain.load(Relaxed))
    }
    pub fn set_domain(&self, domain: DomainId) {
        self.domain.store(domain.0, Relaxed);
    }
    /// Another node has it.
    pub fn is_peers(&self) -> bool {
        matches!(self.home(), Home::Peer(_))
    }
    pub fn wishing(self, wish: Wish) -> SharedDevice {
        self.wish.store(wish as u8, Relaxed);
        self
    }
    pub fn is_draining(&self) -> bool {
        self.wish() == Wish::Draining
    }
    pub fn wish(&self) -> Wish {
        Wish::ALL[self.wish.load(Relaxed) as usize]
    }
    /// `reserved`: slots that users' data may not take, and those of them that collection may not take either.
    pub fn set_usage(&self, total: u32, used: u32, (reserved, kept): (u32, u32)) {
        self.slots_total.store(total, Relaxed);
        self.slots_reserved.store(reserved, Relaxed);
        self.slots_kept.store(kept, Relaxed);
        self.slots_used.store(used, Relaxed);
    }
    /// Slots that user data may fill, and slots in use.
    pub fn usage(&self) -> (u32, u32) {
        let total = self.slots_total.load(Relaxed);
        (total.saturating_sub(self.slots_reserved.load(Relaxed)), self.slots_used.load(Relaxed))
    }
    /// Slots, slots in use, free ones kept back from users' data, and of these, from what collection moves.
    pub(crate) fn gauges(&self) -> [u32; 4] {
        [&self.slots_total, &self.slots_used, &self.slots_reserved, &self.slots_kept].map(|g| g.load(Relaxed))
    }
    /// All its slots.
    pub fn slots(&self) -> u32 {
        self.slots_total.load(Relaxed)
    }
    pub fn set_open(&self) {
        self.open.store(true, Relaxed);
    }
    pub(crate) fn set_closed(&self) {
        self.open.store(false, Relaxed);
    }
    pub(crate) fn peer_reactor(&self) -> u16 {
        self.peer_reactor.load(Relaxed)
    }
    pub(crate) fn set_peer_reactor(&self, reactor: u16) {
        self.peer_reactor.store(reactor, Relaxed);
    }
    pub(crate) fn is_reported_bad(&self) -> bool {
        self.reported_bad.load(Relaxed)
    }
    pub(crate) fn set_reported_bad(&self, bad: bool) {
        self.reported_bad.store(bad, Relaxed);
    }
    pub fn is_open(&self) -> bool {
        self.open.load(Relaxed)
    }
    pub fn is_bad(&self) -> bool {
        self.bad.load(Relaxed) != 0
    }
    fn is_away(&self) -> bool {
        self.bad.load(Relaxed) & AWAY != 0 || !self.wish().serves()
    }
    /// It is open, and nobody has given it up.
    pub fn is_served(&self) -> bool {
        self.is_open() && self.wish().serves()
    }
    /// What becomes of its columns. A device that has not served for `patience` does not come back.
    pub fn fate(&self, now: Instant, patience: Duration) -> Fate {
        let serves = self.is_open() && self.bad.load(Relaxed) & (FAILED | AWAY) == 0;
        let since = match (serves, self.gone_since.load(Relaxed)) {
            (true, _) => 0,
            (false, 0) => now.0.max(1),
            (false, since) => since,
        };
        self.gone_since.store(since, Relaxed);
        match self.wish() {
            Wish::Failed | Wish::Removed => Fate::Lost,
            Wish::Draining if serves => Fate::Draining,
            Wish::Leaving | Wish::Spared if serves => Fate::Leaving,
            Wish::Active if serves => Fate::Here,
            Wish::Active | Wish::Draining | Wish::Leaving if now.since(Instant(since)) >= patience => {
                Fate::Lost
            }
            Wish::Active | Wish::Draining | Wish::Leaving | Wish::Spared => Fate::Away,
        }
    }
    /// Somebody waits for it longer than usual. True for the first who says so: it is to be probed.
    pub fn suspect(&self) -> bool {
        !self.is_away() && !self.suspected.swap(true, Relaxed)
    }
    pub fn clear_suspicion(&self) {
        self.suspected.store(false, Relaxed);
    }
    pub fn state(&self) -> DeviceState {
        match (self.is_open(), self.bad.load(Relaxed)) {
            (false, _) => DeviceState::Closed,
            (_, 0) => DeviceState::Healthy,
            (_, bad) if bad & FAILED != 0 => DeviceState::Failed,
            _ => DeviceState::Slow,
        }
    }
    pub fn view(&self, class: AllocClass) -> DeviceView {
        let (for_users, slots_used) = self.usage();
        let slots_total = match class {
            AllocClass::User => for_users,
            AllocClass::Collection => {
                self.slots_total.load(Relaxed).saturating_sub(self.slots_kept.load(Relaxed))
            }
            AllocClass::Meta | AllocClass::Reappend => self.slots_total.load(Relaxed),
        };
        let state = self.state();
        DeviceView {
            id: self.id,
            domain: self.domain(),
            slots_total,
            slots_used,
            healthy: self.wish().serves() && matches!(state, DeviceState::Healthy | DeviceState::Slow),
            avoid: state == DeviceState::Slow,
            away: self.bad.load(Relaxed) & AWAY != 0,
            draining: self.wish().is_ending(),
        }
    }
}

/// Slots of a device that each shard keeps back for checkpoints, and again for re-appends, at most.
const RESERVE_SLOTS: u32 = 4;
/// Devices with fewer slots for each shard are too small to keep any back, but for checkpoints: without these nothing could be
/// freed any more.
const RESERVED_MIN: usize = 12;
const RESERVED_META_MIN: usize = 4;
/// … and for what collection moves: two extents.
const COLLECTION_SLOTS: u32 = 2;

/// What each of so many shards keeps back of a device with so many slots. Without any a full pool could not be started
/// again.
pub fn reserve(slots: u32, shards: usize) -> Reserve {
    let least = |min: usize| u32::from(slots as usize >= min * shards);
    let each = (slots / 32).clamp(least(RESERVED_MIN), RESERVE_SLOTS);
    Reserve {
        collection: each.min(COLLECTION_SLOTS),
        meta: each.max(least(RESERVED_META_MIN)),
        reappend: each,
    }
}

/// All devices of the node.
#[derive(Clone)]
pub struct DeviceTable(Arc<Table>);

struct Table {
    /// Those that are there come first; they stay where they are, and more may come behind them.
    devices: Box<[OnceLock<SharedDevice>]>,
    /// Devices that are away, or given up: usually none, and then nobody looks further.
    away: AtomicUsize,
    /// What the pool's scheme is by now: k * 256 + m; 0: what it was at the start.
    scheme: AtomicU32,
}

impl DeviceTable {
    /// # Panics — when there are more than [`DEVICES_MAX`]: the desired state has no more.
    pub fn new(devices: Vec<SharedDevice>) -> DeviceTable {
        let places = (0..DEVICES_MAX).map(|_| OnceLock::new()).collect();
        let table = DeviceTable(Arc::new(Table {
            devices: places,
            away: AtomicUsize::new(0),
            scheme: AtomicU32::new(0),
        }));
        for device in devices {
            assert!(table.add(device), "more devices than a pool may have");
        }
        table
    }
    /// One more device, which all reactors see from now on. False: there are too many, or it is there already.
    pub fn add(&self, device: SharedDevice) -> bool {
        if self.get(device.id).is_some() {
            return false;
        }
        let gone = !device.wish().serves();
        let mut device = Some(device);
        let added = self.0.devices.iter().any(|place| {
            let Some(one) = device.take() else { return true };
            // Somebody else may have taken the place at this moment.
            place.set(one).map_err(|back| device = Some(back)).is_ok()
        });
        self.0.away.fetch_add(usize::from(added && gone), Relaxed);
        added
    }
    pub fn all(&self) -> impl Iterator<Item = &SharedDevice> + Clone {
        self.0.devices.iter().map_while(OnceLock::get)
    }
    pub fn get(&self, id: DeviceId) -> Option<&SharedDevice> {
        self.all().find(|d| d.id == id)
    }
    /// The pool's scheme from now on, for all reactors.
    pub fn set_scheme(&self, scheme: Scheme) {
        self.0.scheme.store(scheme.k() as u32 * 256 + scheme.m() as u32, Relaxed);
    }
    pub fn scheme(&self) -> Option<Scheme> {
        let scheme = self.0.scheme.load(Relaxed);
        Scheme::new((scheme / 256) as u8, (scheme % 256) as u8)
    }
    pub fn set_wish(&self, id: DeviceId, wish: Wish) {
        let Some(device) = self.get(id) else { return };
        let before = Wish::ALL[device.wish.swap(wish as u8, Relaxed) as usize];
        match (before.serves(), wish.serves()) {
            (true, false) => drop(self.0.away.fetch_add(1, Relaxed)),
            (false, true) => drop(self.0.away.fetch_sub(1, Relaxed)),
            _ => {}
        }
    }
    /// The device failed, or was slow: it is bad until it has passed its probes.
    pub fn set_bad(&self, id: DeviceId, failed: bool) {
        if let Some(device) = self.get(id) {
            device.bad.fetch_or(if failed { FAILED } else { SLOW }, Relaxed);
        }
    }
    /// It did not answer a probe.
    pub fn set_away(&self, id: DeviceId) {
        if self.get(id).is_some_and(|device| device.bad.fetch_or(AWAY, Relaxed) & AWAY == 0) {
            self.0.away.fetch_add(1, Relaxed);
        }
    }
    /// It has answered.
    pub fn set_back(&self, id: DeviceId) {
        if self.get(id).is_some_and(|device| device.bad.fetch_and(!AWAY, Relaxed) & AWAY != 0) {
            self.0.away.fetch_sub(1, Relaxed);
        }
    }
    /// It has passed its probes.
    pub fn set_good(&self, id: DeviceId) {
        self.set_back(id);
        if let Some(device) = self.get(id) {
            device.bad.fetch_and(AWAY, Relaxed);
        }
    }
    pub fn is_bad(&self, id: DeviceId) -> bool {
        self.get(id).is_some_and(SharedDevice::is_bad)
    }
    pub fn is_away(&self, id: DeviceId) -> bool {
        self.0.away.load(Relaxed) != 0 && self.get(id).is_some_and(SharedDevice::is_away)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use peristyle_base::Uuid;

    #[test]
    fn a_device_is_bad_until_it_is_good_and_away_is_counted_once() {
        let ids = [1, 2].map(|i| Uuid::from_random([i; 16]));
        let device = |id| SharedDevice::new(id, DomainId(0), ReactorId(0), "path".into());
        let table = DeviceTable::new(ids.map(device).into());
        table.all().for_each(SharedDevice::set_open);
        for (failed, state) in [(false, DeviceState::Slow), (true, DeviceState::Failed)] {
            table.set_bad(ids[0], failed);
            assert_eq!(table.get(ids[0]).unwrap().state(), state);
        }
        assert!(table.is_bad(ids[0]) && !table.is_bad(ids[1]));
        assert!(!table.is_away(ids[0]), "slow at something is not away");
        for _ in 0..2 {
            table.set_away(ids[0]);
        }
        assert!(table.is_away(ids[0]) && table.0.away.load(Relaxed) == 1);
        table.set_back(ids[0]);
        assert!(!table.is_away(ids[0]) && table.is_bad(ids[0]));
        table.set_away(ids[0]);
        ids.iter().for_each(|id| table.set_good(*id));
        assert!(!table.is_away(ids[0]) && table.0.away.load(Relaxed) == 0);
        assert_eq!(table.get(ids[0]).unwrap().state(), DeviceState::Healthy);
    }

    #[test]
    fn a_suspicion_is_followed_once_at_a_time_and_never_while_the_device_is_known_to_be_away() {
        let id = Uuid::from_random([1; 16]);
        let table = DeviceTable::new(vec![SharedDevice::new(id, DomainId(0), ReactorId(0), "path".into())]);
        let device = table.get(id).unwrap();
        assert!(device.suspect() && !device.suspect());
        device.clear_suspicion();
        table.set_away(id);
        assert!(!device.suspect());
        table.set_good(id);
        assert!(device.suspect());
    }

    #[test]
    fn a_device_that_does_not_serve_may_come_back_for_a_while_and_is_lost_then() {
        let id = Uuid::from_random([1; 16]);
        let table = DeviceTable::new(vec![SharedDevice::new(id, DomainId(0), ReactorId(0), "path".into())]);
        let device = table.get(id).unwrap();
        let fate = |s: u64| device.fate(Instant(s * 1_000_000_000), Duration::from_secs(60));
        assert_eq!((fate(10), fate(69), fate(70)), (Fate::Away, Fate::Away, Fate::Lost));
        device.set_open();
        assert_eq!(fate(71), Fate::Here);
        table.set_bad(id, false);
        assert_eq!(fate(72), Fate::Here, "slow is not gone");
        table.set_bad(id, true);
        assert_eq!((fate(100), fate(159), fate(160)), (Fate::Away, Fate::Away, Fate::Lost));
        table.set_good(id);
        table.set_wish(id, Wish::Draining);
        assert_eq!((fate(161), table.is_away(id)), (Fate::Draining, false));
        table.set_wish(id, Wish::Spared);
        assert_eq!((fate(161), device.view(AllocClass::User).draining), (Fate::Leaving, true));
        table.set_bad(id, true);
        assert_eq!((fate(161), fate(9000)), (Fate::Away, Fate::Away), "however long it takes");
        table.set_wish(id, Wish::Active);
        assert_eq!(fate(9000), Fate::Lost, "it has been away for long");
        table.set_good(id);
        table.set_wish(id, Wish::Failed);
        assert_eq!((fate(162), table.is_away(id)), (Fate::Lost, true), "at once");
        assert!(!device.view(AllocClass::User).healthy);
    }

    #[test]
    fn devices_come_behind_those_that_are_there() {
        let id = |i| Uuid::from_random([i; 16]);
        let device = |i| SharedDevice::new(id(i), DomainId(0), ReactorId(0), "path".into());
        let table = DeviceTable::new(vec![device(1)]);
        let seen = table.clone();
        assert!(table.add(device(2)) && !table.add(device(1)));
        assert!(seen.all().map(|d| d.id).eq([id(1), id(2)]));
    }

    #[test]
    fn a_tiny_device_keeps_back_a_slot_for_each_shards_checkpoints_and_a_large_one_more_for_each_purpose() {
        let kept = |slots, shards| {
            let kept = reserve(slots, shards);
            (kept.collection, kept.meta, kept.reappend)
        };
        assert_eq!(kept(1 << 20, 4), (2, 4, 4));
        assert_eq!(kept(64, 4), (2, 2, 2));
        assert_eq!(kept(48, 4), (1, 1, 1));
        assert_eq!(kept(31, 4), (0, 1, 0));
        assert_eq!(kept(15, 4), (0, 0, 0), "there would be nothing left");
    }
}
