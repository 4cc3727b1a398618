//! An NVM subsystem as one node exports it: who may use it, which namespaces it has, and how it is doing.

use crate::wire::fabrics::Nqn;
use crate::wire::log_page::AnaState;
use peristyle_base::{MIB, Uuid};

/// Largest transfer of one command: MDTS 7 of 4 KiB pages. DESIGN §3: also the atomic write unit.
pub const TRANSFER_BYTES_MAX: u32 = crate::qpair::TRANSFER_BYTES_MAX;
/// Largest NSID and largest number of namespaces of a subsystem.
pub const NAMESPACES_MAX: u32 = 1024;
/// ANA groups of a subsystem: group g of 1..=ANA_GROUPS_MAX.
pub const ANA_GROUPS_MAX: u32 = 64;
/// Hosts that one subsystem's list can name.
pub const HOSTS_MAX: usize = 1024;
/// WCTEMP: 70 °C.
pub const TEMPERATURE_WARNING_KELVIN: u16 = 343;
/// NSID that means all namespaces. Base 3.2.1.4.
pub const NSID_ALL: u32 = 0xffff_ffff;

/// The LBA sizes on offer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LbaSize {
    B512,
    B4096,
}

impl LbaSize {
    /// LBADS: the size is 2^shift.
    pub const fn shift(self) -> u8 {
        match self {
            LbaSize::B512 => 9,
            LbaSize::B4096 => 12,
        }
    }
    pub const fn bytes(self) -> u32 {
        1 << self.shift()
    }
}

/// What hosts are told of a namespace. Plain values: copies of it live on every reactor.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Namespace {
    /// 1..=[`NAMESPACES_MAX`].
    pub nsid: u32,
    pub uuid: Uuid,
    pub nguid: [u8; 16],
    pub lba_size: LbaSize,
    /// Size in logical blocks.
    pub lbas: u64,
    /// Logical blocks in use, for NUSE; never above `lbas`.
    pub lbas_used: u64,
    pub read_only: bool,
    /// 1..=[`ANA_GROUPS_MAX`].
    pub ana_group: u32,
}

/// A namespace as an I/O queue sees it: with the state of its ANA group on this node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NamespaceView {
    pub nsid: u32,
    pub lba_size: LbaSize,
    pub lbas: u64,
    pub read_only: bool,
    pub ana: AnaState,
}

/// The namespaces of one subsystem, in NSID order: what a reactor keeps to decode I/O commands. It travels by
/// message whenever something changes.
#[derive(Clone, Debug, Default)]
pub struct NamespaceTable {
    views: Vec<NamespaceView>,
}

impl NamespaceTable {
    pub fn get(&self, nsid: u32) -> Option<&NamespaceView> {
        self.views.binary_search_by_key(&nsid, |v| v.nsid).ok().map(|i| &self.views[i])
    }
    pub fn iter(&self) -> impl Iterator<Item = &NamespaceView> {
        self.views.iter()
    }
    /// The table for connections that reach these namespaces in another state.
    pub fn with_states(&self, state: impl Fn(&NamespaceView) -> AnaState) -> NamespaceTable {
        NamespaceTable { views: self.views.iter().map(|v| NamespaceView { ana: state(v), ..*v }).collect() }
    }
}

/// Which hosts may connect. Base 6.3 "Connect Invalid Host".
#[derive(Clone, Debug, Default)]
pub enum Hosts {
    /// Any host: for development only.
    #[default]
    Any,
    /// These and no others; an empty list refuses everybody.
    Listed(Vec<Nqn>),
}

impl Hosts {
    pub fn allows(&self, host: &Nqn) -> bool {
        match self {
            Hosts::Any => true,
            Hosts::Listed(list) => list.contains(host),
        }
    }
}

/// How controller identifiers are given. Base 3.1.1.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum ControllerModel {
    /// The subsystem gives a free one on demand.
    #[default]
    Dynamic,
    /// The host may ask for a certain one.
    Static,
}

/// I/O since the subsystem was created, for the SMART log. Reactors send what they have counted; it adds up here.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct IoCounters {
    pub reads: u64,
    pub writes: u64,
    pub bytes_read: u64,
    pub bytes_written: u64,
    pub busy_ms: u64,
    pub media_errors: u64,
}

impl IoCounters {
    pub fn add(&mut self, other: &IoCounters) {
        self.reads += other.reads;
        self.writes += other.writes;
        self.bytes_read += other.bytes_read;
        self.bytes_written += other.bytes_written;
        self.busy_ms += other.busy_ms;
        self.media_errors += other.media_errors;
    }
}

/// What the SMART log says besides counters; the node knows, hosts are told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Health {
    /// Percent of the pool's spare space that is left.
    pub spare_percent: u8,
    /// Below this the log warns.
    pub spare_threshold_percent: u8,
    /// Wear of the most worn device.
    pub used_percent: u8,
    /// The hottest device; a pool whose devices report none says 293 K, a room.
    pub temperature_kelvin: u16,
    /// The pool has lost redundancy: critical warning bit 2.
    pub degraded: bool,
    /// The pool takes no writes: critical warning bit 3.
    pub read_only: bool,
    pub power_cycles: u64,
    pub power_on_hours: u64,
    pub unsafe_shutdowns: u64,
}

impl Default for Health {
    fn default() -> Self {
        Health {
            spare_percent: 100,
            spare_threshold_percent: 10,
            used_percent: 0,
            temperature_kelvin: 293,
            degraded: false,
            read_only: false,
            power_cycles: 0,
            power_on_hours: 0,
            unsafe_shutdowns: 0,
        }
    }
}

impl Health {
    /// Critical warning byte of the SMART log. Base 5.1.12.1.3: bit 0 spare, 1 temperature, 2 reliability, 3 read only.
    pub fn critical_warnings(&self) -> u8 {
        u8::from(self.spare_percent < self.spare_threshold_percent)
            | u8::from(self.temperature_kelvin >= TEMPERATURE_WARNING_KELVIN) << 1
            | u8::from(self.degraded) << 2
            | u8::from(self.read_only) << 3
    }
}

/// What was wrong with a change of a subsystem.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SubsystemError {
    NsidOutOfRange,
    AnaGroupOutOfRange,
    TooManyHosts,
    NoSuchNamespace,
    NqnInUse,
    TooManySubsystems,
    NoSuchSubsystem,
}

/// What a new description of a namespace changed; utilization alone is nothing to tell.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NamespaceChange {
    pub attributes: bool,
    /// It has moved to another ANA group.
    pub ana: bool,
}

#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct AnaGroup {
    pub state: AnaState,
    pub change_count: u64,
}

/// One NVM subsystem.
#[derive(Clone, Debug)]
pub struct Subsystem {
    pub(crate) nqn: Nqn,
    pub(crate) serial: [u8; 20],
    pub(crate) model: ControllerModel,
    pub(crate) hosts: Hosts,
    /// In NSID order.
    namespaces: Vec<Namespace>,
    groups: Vec<AnaGroup>,
    pub(crate) ana_change_count: u64,
    pub counters: IoCounters,
    pub health: Health,
}

impl Subsystem {
    /// `serial` is at most 20 ASCII characters, the same on every node and after every restart: hosts tell
    /// subsystems apart by it.
    pub fn new(nqn: Nqn, serial: &str) -> Subsystem {
        Subsystem {
            nqn,
            serial: crate::wire::identify::ascii(serial),
            model: ControllerModel::default(),
            hosts: Hosts::default(),
            namespaces: Vec::new(),
            groups: vec![AnaGroup::default(); ANA_GROUPS_MAX as usize],
            ana_change_count: 0,
            counters: IoCounters::default(),
            health: Health::default(),
        }
    }
    pub fn with_model(mut self, model: ControllerModel) -> Subsystem {
        self.model = model;
        self
    }
    pub fn nqn(&self) -> &Nqn {
        &self.nqn
    }
    pub fn hosts(&self) -> &Hosts {
        &self.hosts
    }
    pub fn namespaces(&self) -> &[Namespace] {
        &self.namespaces
    }
    pub fn namespace(&self, nsid: u32) -> Option<&Namespace> {
        self.namespaces.binary_search_by_key(&nsid, |n| n.nsid).ok().map(|i| &self.namespaces[i])
    }
    pub fn set_hosts(&mut self, hosts: Hosts) -> Result<(), SubsystemError> {
        if matches!(&hosts, Hosts::Listed(list) if list.len() > HOSTS_MAX) {
            return Err(SubsystemError::TooManyHosts);
        }
        self.hosts = hosts;
        Ok(())
    }
    /// Adds the namespace, or replaces the one with its NSID. Says what hosts must hear of.
    pub fn put_namespace(&mut self, namespace: Namespace) -> Result<NamespaceChange, SubsystemError> {
        if namespace.nsid == 0 || namespace.nsid > NAMESPACES_MAX {
            return Err(SubsystemError::NsidOutOfRange);
        }
        if namespace.ana_group == 0 || namespace.ana_group > ANA_GROUPS_MAX {
            return Err(SubsystemError::AnaGroupOutOfRange);
        }
        match self.namespaces.binary_search_by_key(&namespace.nsid, |n| n.nsid) {
            Ok(at) => {
                let old = core::mem::replace(&mut self.namespaces[at], namespace);
                let moved = old.ana_group != namespace.ana_group;
                if moved {
                    self.membership_changed(old.ana_group);
                    self.membership_changed(namespace.ana_group);
                }
                let attributes = Namespace { lbas_used: 0, ..old } != Namespace { lbas_used: 0, ..namespace };
                Ok(NamespaceChange { attributes, ana: moved })
            }
            Err(at) => {
                self.namespaces.insert(at, namespace);
                self.membership_changed(namespace.ana_group);
                Ok(NamespaceChange { attributes: true, ana: false })
            }
        }
    }
    pub fn remove_namespace(&mut self, nsid: u32) -> Result<(), SubsystemError> {
        match self.namespaces.binary_search_by_key(&nsid, |n| n.nsid) {
            Ok(at) => {
                let removed = self.namespaces.remove(at);
                self.membership_changed(removed.ana_group);
                Ok(())
            }
            Err(_) => Err(SubsystemError::NoSuchNamespace),
        }
    }
    /// A group's descriptor lists other namespaces than before: its change count says so. Base 5.1.12.1.13.
    fn membership_changed(&mut self, group: u32) {
        if let Some(g) = self.groups.get_mut(group as usize - 1) {
            g.change_count += 1;
            self.ana_change_count += 1;
        }
    }
    /// The state of a group on this node; `Inaccessible` for a group that cannot exist.
    pub fn ana_state(&self, group: u32) -> AnaState {
        self.group(group).map_or(AnaState::Inaccessible, |g| g.state)
    }
    pub(crate) fn group(&self, group: u32) -> Option<&AnaGroup> {
        self.groups.get((group as usize).checked_sub(1)?)
    }
    /// Sets a group's state; says whether it is another than before.
    pub fn set_ana_state(&mut self, group: u32, state: AnaState) -> Result<bool, SubsystemError> {
        let at = (group as usize).checked_sub(1).ok_or(SubsystemError::AnaGroupOutOfRange)?;
        let g = self.groups.get_mut(at).ok_or(SubsystemError::AnaGroupOutOfRange)?;
        if g.state == state {
            return Ok(false);
        }
        g.state = state;
        g.change_count += 1;
        self.ana_change_count += 1;
        Ok(true)
    }
    /// What every reactor keeps of this subsystem.
    pub fn table(&self) -> NamespaceTable {
        let view = |n: &Namespace| NamespaceView {
            nsid: n.nsid,
            lba_size: n.lba_size,
            lbas: n.lbas,
            read_only: n.read_only,
            ana: self.ana_state(n.ana_group),
        };
        NamespaceTable { views: self.namespaces.iter().map(view).collect() }
    }
}

const _: () = assert!(TRANSFER_BYTES_MAX as u64 * 2 == MIB);
