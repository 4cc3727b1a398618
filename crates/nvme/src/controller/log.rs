//! Get Log Page. Base 5.1.12.

use super::{AdminOutcome, Controller, ControllerConfig, Scope, feature, is_supported};
use crate::io_command;
use crate::subsystem::{NSID_ALL, Subsystem, TRANSFER_BYTES_MAX};
use crate::wire::identify::{CSI_NVM, ascii};
use crate::wire::log_page::{
    AnaGroupDescriptor, AnaHeader, CHANGED_NAMESPACES_MAX, COMMAND_EFFECTS_BYTES, ErrorEntry,
    FEATURE_EFFECTS_BYTES, FirmwareSlotLog, GetLogPage, SUPPORTED_LOG_PAGES_BYTES, SmartLog, Window, lid,
};
use crate::wire::opcode::nvm;
use crate::wire::{Cid, Sqe, Status};
use zerocopy::little_endian::{U16, U64};
use zerocopy::{FromZeros, IntoBytes};

/// Entries of the error log; ELPE.
pub(super) const ERRORS_MAX: usize = 64;
/// Log page 13h, which is all zeroes here: no NVMe-MI commands. Base 5.1.12.1.19.
const LID_MI_EFFECTS: u8 = 0x13;
const MI_EFFECTS_BYTES: u64 = 4096;

/// An error for the error log: one of the admin queue is recorded by itself, those of I/O queues are reported.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ErrorReport {
    pub sqid: u16,
    pub cid: Cid,
    pub status: Status,
    pub opcode: u8,
    pub nsid: u32,
    pub lba: u64,
}

impl ErrorReport {
    pub fn of(sqe: &Sqe, sqid: u16, status: Status) -> ErrorReport {
        let lba = if sqid == 0 { 0 } else { sqe.slba() };
        ErrorReport { sqid, cid: sqe.cid(), status, opcode: sqe.opcode(), nsid: sqe.nsid(), lba }
    }
}

/// The last 64 errors.
pub(super) struct ErrorLog {
    entries: Box<[ErrorEntry; ERRORS_MAX]>,
    count: u64,
}

impl Default for ErrorLog {
    fn default() -> Self {
        ErrorLog { entries: Box::new([ErrorEntry::new_zeroed(); ERRORS_MAX]), count: 0 }
    }
}

impl ErrorLog {
    pub fn record(&mut self, report: &ErrorReport) {
        self.count += 1;
        let mut entry = ErrorEntry::new_zeroed();
        entry.error_count = U64::new(self.count);
        entry.sqid = U16::new(report.sqid);
        entry.cid = U16::new(report.cid.0);
        entry.status_field = U16::new(report.status.bits() << 1);
        entry.parameter_error_location = U16::new(u16::MAX);
        entry.lba = U64::new(report.lba);
        entry.nsid = report.nsid.into();
        entry.trtype = 3;
        entry.csi = CSI_NVM;
        entry.opcode = report.opcode;
        entry.version = 1;
        self.entries[(self.count % ERRORS_MAX as u64) as usize] = entry;
    }
    /// Newest first, then unused ones. Base 5.1.12.1.2.
    fn put(&self, window: &mut Window<'_>) {
        for age in 0..ERRORS_MAX as u64 {
            match self.count.checked_sub(age) {
                Some(n) if n > 0 => window.put(self.entries[(n % ERRORS_MAX as u64) as usize].as_bytes()),
                _ => window.put(ErrorEntry::new_zeroed().as_bytes()),
            }
        }
    }
}

/// Namespaces that changed since the list was last read. Base 5.1.12.1.5.
#[derive(Default)]
pub(super) struct ChangedNamespaces {
    /// In ascending order, at most 1024; allocated on the first change, which is no I/O.
    nsids: Vec<u32>,
    overflow: bool,
}

impl ChangedNamespaces {
    pub fn add(&mut self, nsid: u32) {
        if let Err(at) = self.nsids.binary_search(&nsid) {
            if self.nsids.len() == CHANGED_NAMESPACES_MAX {
                self.overflow = true;
            } else {
                self.nsids.insert(at, nsid);
            }
        }
    }
    fn put(&self, window: &mut Window<'_>) {
        if self.overflow {
            window.put_u32(NSID_ALL);
        } else {
            self.nsids.iter().for_each(|nsid| window.put_u32(*nsid));
        }
    }
    fn clear(&mut self) {
        self.nsids.clear();
        self.overflow = false;
    }
}

impl Controller {
    pub(super) fn get_log_page(
        &mut self,
        config: &ControllerConfig,
        scope: Scope<'_>,
        sqe: &Sqe,
        out: &mut [u8],
    ) -> Result<AdminOutcome, Status> {
        let invalid = Status::INVALID_FIELD.with_dnr();
        let command = GetLogPage::parse(sqe);
        let page_bytes = self.page_bytes(scope, &command).ok_or(invalid)?;
        let misplaced =
            !command.offset.is_multiple_of(4) || command.offset > page_bytes || command.offset_is_index;
        if misplaced || command.bytes > u64::from(TRANSFER_BYTES_MAX) {
            return Err(invalid);
        }
        check_nsid(scope, &command)?;
        let bytes = command.bytes as usize;
        let mut window = Window::new(super::identify::buffer(sqe, out, bytes)?, command.offset);
        self.put_page(config, scope, &command, &mut window);
        if !command.rae {
            self.events.clear(command.lid);
            if command.lid == lid::CHANGED_NAMESPACES {
                self.changed.clear();
            }
        }
        Ok(AdminOutcome::data(bytes))
    }

    /// Size of a page, `None` for one that is not there. Offsets beyond it are refused; what a request reaches past
    /// it reads as zeroes.
    fn page_bytes(&self, scope: Scope<'_>, command: &GetLogPage) -> Option<u64> {
        match (scope, command.lid) {
            (_, lid::SUPPORTED_LOG_PAGES) => Some(SUPPORTED_LOG_PAGES_BYTES),
            (_, lid::ERROR_INFORMATION) => Some((ERRORS_MAX * size_of::<ErrorEntry>()) as u64),
            (Scope::Discovery(discovery, subsystems), lid::DISCOVERY) => {
                Some(discovery.log_bytes(subsystems, &self.hostnqn))
            }
            (Scope::Discovery(..), _) => None,
            (_, lid::SMART | lid::FIRMWARE_SLOT) => Some(512),
            (_, lid::CHANGED_NAMESPACES) => Some(4 * CHANGED_NAMESPACES_MAX as u64),
            (_, lid::COMMAND_EFFECTS) if command.csi == CSI_NVM => Some(COMMAND_EFFECTS_BYTES),
            (Scope::Io(subsystem), lid::ANA) => Some(ana_bytes(subsystem)),
            (_, lid::FEATURE_EFFECTS) => Some(FEATURE_EFFECTS_BYTES),
            (_, LID_MI_EFFECTS) => Some(MI_EFFECTS_BYTES),
            _ => None,
        }
    }

    fn put_page(
        &self,
        config: &ControllerConfig,
        scope: Scope<'_>,
        command: &GetLogPage,
        window: &mut Window<'_>,
    ) {
        match (scope, command.lid) {
            (_, lid::SUPPORTED_LOG_PAGES) => {
                for lid in 0..=u8::MAX {
                    let is_there =
                        self.page_bytes(scope, &GetLogPage { lid, csi: CSI_NVM, ..*command }).is_some();
                    window.put_u32(u32::from(is_there)); // LSUPP; no page takes an index as offset.
                }
            }
            (_, lid::ERROR_INFORMATION) => self.errors.put(window),
            (Scope::Discovery(discovery, subsystems), _) => {
                discovery.put_log(subsystems, &self.hostnqn, window)
            }
            (Scope::Io(subsystem), lid::SMART) => window.put(self.smart(subsystem).as_bytes()),
            (_, lid::FIRMWARE_SLOT) => {
                let mut log = FirmwareSlotLog::new_zeroed();
                log.afi = 1;
                log.frs[0] = ascii(config.firmware);
                window.put(log.as_bytes());
            }
            (_, lid::CHANGED_NAMESPACES) => self.changed.put(window),
            (_, lid::COMMAND_EFFECTS) => put_command_effects(scope, window),
            (Scope::Io(subsystem), lid::ANA) => self.put_ana(subsystem, command.lsp & 1 != 0, window),
            (_, lid::FEATURE_EFFECTS) => {
                (0..=u8::MAX).for_each(|fid| window.put_u32(feature_effects(scope, fid)));
            }
            _ => {} // All zeroes.
        }
    }

    /// `groups_only`: RGO, LSP bit 0. Base 5.1.12.1.13.
    fn put_ana(&self, subsystem: &Subsystem, groups_only: bool, window: &mut Window<'_>) {
        let changes = subsystem.ana_change_count + self.own_states.iter().map(|own| own.changes).sum::<u64>();
        window.put(AnaHeader::new(changes, groups(subsystem).count() as u16).as_bytes());
        for (group, members) in groups(subsystem) {
            let Some(g) = subsystem.group(group) else { continue };
            let own = self.own_states.iter().find(|own| own.group == group);
            let state = own.and_then(|own| own.state).unwrap_or(g.state);
            let changes = g.change_count + own.map_or(0, |own| own.changes);
            let listed = if groups_only { 0 } else { members };
            window.put(AnaGroupDescriptor::new(group, listed, changes, state).as_bytes());
            if !groups_only {
                let of_group = subsystem.namespaces().iter().filter(|n| n.ana_group == group);
                of_group.for_each(|n| window.put_u32(n.nsid));
            }
        }
    }

    fn smart(&self, subsystem: &Subsystem) -> SmartLog {
        let (health, counters) = (&subsystem.health, &subsystem.counters);
        let mut log = SmartLog::new_zeroed();
        log.critical_warning = health.critical_warnings();
        log.composite_temperature = U16::new(health.temperature_kelvin);
        log.available_spare = health.spare_percent;
        log.available_spare_threshold = health.spare_threshold_percent;
        log.percentage_used = health.used_percent;
        log.data_units_read = wide(counters.bytes_read.div_ceil(512_000));
        log.data_units_written = wide(counters.bytes_written.div_ceil(512_000));
        log.host_read_commands = wide(counters.reads);
        log.host_write_commands = wide(counters.writes);
        log.controller_busy_time = wide(counters.busy_ms / 60_000);
        log.power_cycles = wide(health.power_cycles);
        log.power_on_hours = wide(health.power_on_hours);
        log.unsafe_shutdowns = wide(health.unsafe_shutdowns);
        log.media_errors = wide(counters.media_errors);
        log.error_log_entries = wide(self.errors.count);
        log
    }
}

fn wide(value: u64) -> [u8; 16] {
    u128::from(value).to_le_bytes()
}

/// Pages are per controller: an NSID other than 0 and FFFFFFFFh would ask for per-namespace ones (LPA bit 0 is 0).
fn check_nsid(scope: Scope<'_>, command: &GetLogPage) -> Result<(), Status> {
    match (scope, command.nsid) {
        (_, 0 | NSID_ALL) => Ok(()),
        (Scope::Io(subsystem), nsid) if subsystem.namespace(nsid).is_some() => {
            Err(Status::INVALID_FIELD.with_dnr())
        }
        _ => Err(Status::INVALID_NAMESPACE_OR_FORMAT.with_dnr()),
    }
}

/// Groups that have namespaces, in ascending order, each with how many.
fn groups(subsystem: &Subsystem) -> impl Iterator<Item = (u32, u32)> + '_ {
    (1..=crate::subsystem::ANA_GROUPS_MAX).filter_map(|group| {
        let members = subsystem.namespaces().iter().filter(|n| n.ana_group == group).count() as u32;
        (members > 0).then_some((group, members))
    })
}

fn ana_bytes(subsystem: &Subsystem) -> u64 {
    let lists = subsystem.namespaces().len() * 4;
    (size_of::<AnaHeader>() + groups(subsystem).count() * size_of::<AnaGroupDescriptor>() + lists) as u64
}

/// Command effects: bit 0 supported, bit 1 changes logical blocks; scope 20 namespace, 21 controller. Base 5.1.12.1.6.
fn put_command_effects(scope: Scope<'_>, window: &mut Window<'_>) {
    for opcode in 0..=u8::MAX {
        let fabrics = opcode == crate::wire::opcode::FABRICS;
        window.put_u32(if fabrics || is_supported(scope, opcode) { 1 | 1 << 21 } else { 0 });
    }
    for opcode in 0..=u8::MAX {
        let changes = matches!(opcode, nvm::WRITE | nvm::WRITE_ZEROES | nvm::DATASET_MANAGEMENT);
        window.put_u32(match io_command::SUPPORTED.contains(&opcode) {
            true => 1 | u32::from(changes) << 1 | 1 << 20,
            false => 0,
        });
    }
}

/// Bit 0 supported; scope 20 namespace, 21 controller. Base 5.1.12.1.18.
fn feature_effects(scope: Scope<'_>, fid: u8) -> u32 {
    let of_namespace = fid == crate::wire::feature::fid::ERROR_RECOVERY;
    match feature::is_supported(scope, fid) {
        true => 1 | if of_namespace { 1 << 20 } else { 1 << 21 },
        false => 0,
    }
}
