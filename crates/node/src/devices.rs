//! What all reactors know of the node's devices: where each is served, how full it is, whether it can be trusted.
//! Gauges only, written by one reactor and read by all.

use peristyle_base::{DeviceId, Instant};
use peristyle_cluster::{DeviceView, DomainId};
use peristyle_rt::ReactorId;
use peristyle_shard::AllocClass;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};

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
    /// Its label and slot table were read.
    open: AtomicBool,
    /// It failed requests, and has not passed a probe since.
    failed: AtomicBool,
    /// It stalled, and has not passed a probe since.
    slow: AtomicBool,
    bad_since_ns: AtomicU64,
}

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
            open: AtomicBool::new(false),
            failed: AtomicBool::new(false),
            slow: AtomicBool::new(false),
            bad_since_ns: AtomicU64::new(0),
        }
    }
    pub fn set_usage(&self, total: u32, used: u32, reserved: u32) {
        self.slots_total.store(total, Relaxed);
        self.slots_reserved.store(reserved, Relaxed);
        self.slots_used.store(used, Relaxed);
    }
    /// Slots that user data may fill, and slots in use.
    pub fn usage(&self) -> (u32, u32) {
        let total = self.slots_total.load(Relaxed);
        (total.saturating_sub(self.slots_reserved.load(Relaxed)), self.slots_used.load(Relaxed))
    }
    pub fn set_open(&self) {
        self.open.store(true, Relaxed);
    }
    pub fn is_open(&self) -> bool {
        self.open.load(Relaxed)
    }
    pub fn set_bad(&self, failed: bool, now: Instant) {
        if !self.is_bad() {
            self.bad_since_ns.store(now.0, Relaxed);
        }
        if failed { &self.failed } else { &self.slow }.store(true, Relaxed);
    }
    pub fn is_bad(&self) -> bool {
        self.failed.load(Relaxed) || self.slow.load(Relaxed)
    }
    pub fn set_good(&self) {
        self.failed.store(false, Relaxed);
        self.slow.store(false, Relaxed);
    }
    pub fn state(&self) -> DeviceState {
        match (self.is_open(), self.failed.load(Relaxed), self.slow.load(Relaxed)) {
            (false, ..) => DeviceState::Closed,
            (_, true, _) => DeviceState::Failed,
            (_, _, true) => DeviceState::Slow,
            _ => DeviceState::Healthy,
        }
    }
    pub fn view(&self, class: AllocClass) -> DeviceView {
        let (for_users, slots_used) = self.usage();
        let slots_total = match class {
            AllocClass::User => for_users,
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

/// All devices of the node.
#[derive(Clone)]
pub struct DeviceTable(pub Arc<Vec<SharedDevice>>);

impl DeviceTable {
    pub fn get(&self, id: DeviceId) -> Option<&SharedDevice> {
        self.0.iter().find(|d| d.id == id)
    }
}
