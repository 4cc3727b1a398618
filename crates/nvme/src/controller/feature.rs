//! Get Features and Set Features. Base 5.1.11 and 5.1.25; NVM 4.1.3 and 4.1.4.
//!
//! No feature is saveable: a controller lives as long as its association.

use super::identify::offered_events;
use super::{AdminOutcome, Controller, ControllerConfig, EventKind, KEEP_ALIVE_MS_MAX, Scope, rounded};
use crate::subsystem::{NSID_ALL, TEMPERATURE_WARNING_KELVIN};
use crate::wire::feature::{GetFeatures, Select, SetFeatures, capability, event_bit, fid};
use crate::wire::{Sqe, Status};
use peristyle_base::Instant;

/// Arbitration burst 111b: no limit. NVM 4.1.4.1.
const ARBITRATION_DEFAULT: u32 = 7;

/// Current values. Those that never change are not kept.
#[derive(Clone, Copy, Debug)]
pub(super) struct Features {
    arbitration: u32,
    temperature_over: u16,
    temperature_under: u16,
    atomicity: u32,
    events: u32,
    /// I/O queues granted.
    pub queues: u16,
    pub queues_max: u16,
}

impl Features {
    pub fn new(queues_max: u16) -> Features {
        Features {
            arbitration: ARBITRATION_DEFAULT,
            temperature_over: TEMPERATURE_WARNING_KELVIN,
            temperature_under: 0,
            atomicity: 0,
            events: 0,
            queues: queues_max,
            queues_max,
        }
    }
    pub fn wants(&self, event: EventKind) -> bool {
        let bit = match event {
            EventKind::NamespaceAttribute { .. } => event_bit::NAMESPACE_ATTRIBUTE,
            EventKind::AnaChange => event_bit::ANA_CHANGE,
            EventKind::DiscoveryChange => event_bit::DISCOVERY_CHANGE,
            EventKind::Health { warning } => 1 << warning, // The bits of the critical warnings. Base 5.1.25.1.5.
        };
        self.events & bit != 0
    }
    /// The value of a feature in dword 0; `None` for one that is not there.
    fn value(&self, fid: u8, cdw11: u32) -> Result<u32, Status> {
        let queues = u32::from(self.queues - 1);
        match fid {
            fid::ARBITRATION => Ok(self.arbitration),
            fid::POWER_MANAGEMENT | fid::ERROR_RECOVERY => Ok(0),
            fid::TEMPERATURE_THRESHOLD => Ok(u32::from(*if threshold(cdw11)? {
                &self.temperature_under
            } else {
                &self.temperature_over
            })),
            fid::NUMBER_OF_QUEUES => Ok(queues | queues << 16),
            fid::WRITE_ATOMICITY_NORMAL => Ok(self.atomicity),
            fid::ASYNC_EVENT_CONFIG => Ok(self.events),
            _ => Err(Status::INVALID_FIELD.with_dnr()),
        }
    }
}

/// TMPSEL 19:16 must be the composite temperature, THSEL 21:20 over (`false`) or under (`true`). Base 5.1.25.1.3.
fn threshold(cdw11: u32) -> Result<bool, Status> {
    match (cdw11 >> 16 & 0xf, cdw11 >> 20 & 3) {
        (0, 0) => Ok(false),
        (0, 1) => Ok(true),
        _ => Err(Status::INVALID_FIELD.with_dnr()),
    }
}

/// Features of each kind of controller. Base 3.1.3 figures of feature support.
pub(super) fn is_supported(scope: Scope<'_>, fid: u8) -> bool {
    match fid {
        fid::ASYNC_EVENT_CONFIG | fid::KEEP_ALIVE_TIMER => true,
        fid::ARBITRATION
        | fid::POWER_MANAGEMENT
        | fid::TEMPERATURE_THRESHOLD
        | fid::ERROR_RECOVERY
        | fid::NUMBER_OF_QUEUES
        | fid::WRITE_ATOMICITY_NORMAL
        | fid::HOST_IDENTIFIER => matches!(scope, Scope::Io(_)),
        _ => false,
    }
}

/// Scope and changeability. Base 5.1.11 figure of "Supported Capabilities".
fn capabilities(fid: u8) -> u32 {
    match fid {
        fid::ERROR_RECOVERY => capability::NAMESPACE_SPECIFIC,
        fid::HOST_IDENTIFIER => 0,
        _ => capability::CHANGEABLE,
    }
}

impl Controller {
    pub(super) fn get_features(
        &self,
        config: &ControllerConfig,
        scope: Scope<'_>,
        sqe: &Sqe,
        out: &mut [u8],
    ) -> Result<AdminOutcome, Status> {
        let command = GetFeatures::parse(sqe);
        if !is_supported(scope, command.fid) {
            return Err(Status::INVALID_FIELD.with_dnr());
        }
        if command.fid == fid::ERROR_RECOVERY {
            check_namespace(scope, command.nsid)?;
        }
        let features = match command.select {
            Select::Current => self.features,
            // Nothing is saved, so "saved" is the default. Base 5.1.11.
            Select::Default | Select::Saved => Features::new(config.io_queues_max),
            Select::Capabilities => return Ok(AdminOutcome::value(capabilities(command.fid))),
            Select::Reserved => return Err(Status::INVALID_FIELD.with_dnr()),
        };
        match command.fid {
            fid::KEEP_ALIVE_TIMER if command.select == Select::Current => {
                Ok(AdminOutcome::value(self.keep_alive_ms))
            }
            fid::KEEP_ALIVE_TIMER => Ok(AdminOutcome::value(0)),
            fid::HOST_IDENTIFIER => self.host_identifier(&command, sqe, out),
            other => features.value(other, command.cdw11).map(AdminOutcome::value),
        }
    }

    /// Over Fabrics always the 128-bit form: EXHID must be 1. Base 5.1.25.1.28.
    fn host_identifier(
        &self,
        command: &GetFeatures,
        sqe: &Sqe,
        out: &mut [u8],
    ) -> Result<AdminOutcome, Status> {
        if command.cdw11 & 1 == 0 {
            return Err(Status::INVALID_FIELD.with_dnr());
        }
        let out = super::identify::buffer(sqe, out, self.hostid.len())?;
        out.copy_from_slice(&self.hostid);
        Ok(AdminOutcome::data(self.hostid.len()))
    }

    pub(super) fn set_features(
        &mut self,
        now: Instant,
        config: &ControllerConfig,
        scope: Scope<'_>,
        sqe: &Sqe,
    ) -> Result<AdminOutcome, Status> {
        let command = SetFeatures::parse(sqe);
        let invalid = Err(Status::INVALID_FIELD.with_dnr());
        if !is_supported(scope, command.fid) {
            return invalid;
        }
        if command.save {
            return Err(Status::FEATURE_NOT_SAVEABLE.with_dnr());
        }
        match (command.fid, command.nsid) {
            (fid::ERROR_RECOVERY, nsid) => check_namespace(scope, nsid)?,
            (_, 0 | NSID_ALL) => {}
            _ => return Err(Status::FEATURE_NOT_NAMESPACE_SPECIFIC.with_dnr()),
        }
        let value = command.cdw11;
        match command.fid {
            fid::ARBITRATION => self.features.arbitration = value & 7, // Round robin has no weights.
            fid::POWER_MANAGEMENT if value & 0x1f != 0 => return invalid, // NPSS is 0.
            fid::POWER_MANAGEMENT => {}
            fid::TEMPERATURE_THRESHOLD => {
                let sensor_all =
                    value & !(0xf << 16) | if value >> 16 & 0xf == 0xf { 0 } else { value & 0xf << 16 };
                match threshold(sensor_all)? {
                    false => self.features.temperature_over = value as u16,
                    true => self.features.temperature_under = value as u16,
                }
            }
            // No time limit and no unwritten-block errors: nothing to choose. NVM 4.1.4.2.
            fid::ERROR_RECOVERY => return Err(Status::FEATURE_NOT_CHANGEABLE.with_dnr()),
            fid::NUMBER_OF_QUEUES => return self.set_number_of_queues(config, value),
            fid::WRITE_ATOMICITY_NORMAL => self.features.atomicity = value & 1, // Always atomic, asked or not.
            fid::ASYNC_EVENT_CONFIG if value & !offered_events(scope) & !0xff != 0 => return invalid,
            fid::ASYNC_EVENT_CONFIG => self.features.events = value,
            fid::KEEP_ALIVE_TIMER if value > KEEP_ALIVE_MS_MAX => {
                return Err(Status::KEEP_ALIVE_TIMEOUT_INVALID.with_dnr());
            }
            fid::KEEP_ALIVE_TIMER => {
                self.keep_alive_ms = rounded(value);
                self.restart_keep_alive(now);
            }
            // Connect has set it. Base 5.1.25.1.28.
            fid::HOST_IDENTIFIER => return Err(Status::COMMAND_SEQUENCE_ERROR.with_dnr()),
            _ => return invalid,
        }
        Ok(AdminOutcome::value(0))
    }

    /// NSQR 15:00 and NCQR 31:16, zero's based; FFFFh is invalid. Base 5.1.25.1.4.
    fn set_number_of_queues(
        &mut self,
        config: &ControllerConfig,
        value: u32,
    ) -> Result<AdminOutcome, Status> {
        let (submission, completion) = (value as u16, (value >> 16) as u16);
        if submission == u16::MAX || completion == u16::MAX {
            return Err(Status::INVALID_FIELD.with_dnr());
        }
        if self.has_io_queues {
            return Err(Status::COMMAND_SEQUENCE_ERROR.with_dnr());
        }
        // A submission queue has its own completion queue over Fabrics: one number for both.
        self.features.queues = (submission.max(completion) + 1).min(config.io_queues_max);
        let granted = u32::from(self.features.queues - 1);
        Ok(AdminOutcome::value(granted | granted << 16))
    }
}

/// NSID of a namespace specific feature. Base 5.1.25.
fn check_namespace(scope: Scope<'_>, nsid: u32) -> Result<(), Status> {
    match scope {
        Scope::Io(subsystem) if nsid == NSID_ALL || subsystem.namespace(nsid).is_some() => Ok(()),
        _ => Err(Status::INVALID_NAMESPACE_OR_FORMAT.with_dnr()),
    }
}
