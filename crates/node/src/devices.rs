//! What all reactors know of the node's devices: where each is served, how full it is, whether it can be trusted.
//! Gauges only, written by one reactor and read by all.

use peristyle_base::DeviceId;
use peristyle_cluster::{DeviceView, DomainId};
use peristyle_column::Reserve;
use peristyle_rt::ReactorId;
use peristyle_shard::AllocClass;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicUsize, Ordering::Relaxed};

/// One device, as every reactor sees it.
pub struct SharedDevice {
    pub id: DeviceId,
    pub domain: DomainId,
    pub home: ReactorId,
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
    pub fn new(id: DeviceId, domain: DomainId, home: ReactorId, path: String) -> SharedDevice {
        SharedDevice {
            id,
            domain,
            home,
            path,
            slots_total: AtomicU32::new(0),
            slots_used: AtomicU32::new(0),
            slots_reserved: AtomicU32::new(0),
            slots_kept: AtomicU32::new(0),
            open: AtomicBool::new(false),
            bad: AtomicU8::new(0),
            suspected: AtomicBool::new(false),
        }
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
    /// All its slots.
    pub fn slots(&self) -> u32 {
        self.slots_total.load(Relaxed)
    }
    pub fn set_open(&self) {
        self.open.store(true, Relaxed);
    }
    pub fn is_open(&self) -> bool {
        self.open.load(Relaxed)
    }
    pub fn is_bad(&self) -> bool {
        self.bad.load(Relaxed) != 0
    }
    fn is_away(&self) -> bool {
        self.bad.load(Relaxed) & AWAY != 0
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
            domain: self.domain,
            slots_total,
            slots_used,
            healthy: matches!(state, DeviceState::Healthy | DeviceState::Slow),
            avoid: state == DeviceState::Slow,
        }
    }
}

/// Slots of a device that each shard keeps back for checkpoints, and again for re-appends, at most.
const RESERVE_SLOTS: u32 = 4;
/// Devices with fewer slots are too small to keep any back.
const RESERVED_MIN: u32 = 12;
/// … and for what collection moves: two extents.
const COLLECTION_SLOTS: u32 = 2;

/// What a shard keeps back of a device with so many slots. Without any a full pool could not be started again.
pub fn reserve(slots: u32) -> Reserve {
    let each = (slots / 32).clamp(u32::from(slots >= RESERVED_MIN), RESERVE_SLOTS);
    Reserve { collection: each.min(COLLECTION_SLOTS), meta: each, reappend: each }
}

/// All devices of the node.
#[derive(Clone)]
pub struct DeviceTable(Arc<Table>);

struct Table {
    devices: Vec<SharedDevice>,
    /// Devices that are away: usually none, and then nobody looks further.
    away: AtomicUsize,
}

impl DeviceTable {
    pub fn new(devices: Vec<SharedDevice>) -> DeviceTable {
        DeviceTable(Arc::new(Table { devices, away: AtomicUsize::new(0) }))
    }
    pub fn all(&self) -> &[SharedDevice] {
        &self.0.devices
    }
    pub fn get(&self, id: DeviceId) -> Option<&SharedDevice> {
        self.0.devices.iter().find(|d| d.id == id)
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
        table.all().iter().for_each(SharedDevice::set_open);
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
}
