//! One controller: its properties, admin commands, features, logs, events and keep alive timer. Base 3.
//!
//! Pure: time is handed in, data goes into a buffer that the caller owns, and what happens later (an asynchronous
//! event, an expired timer) is asked for with `poll_*`.

mod event;
mod feature;
mod identify;
mod log;

pub use event::EventKind;
use event::Events;
use feature::Features;
pub use log::ErrorReport;
use log::{ChangedNamespaces, ErrorLog};

use crate::discovery::Discovery;
use crate::subsystem::{ANA_GROUPS_MAX, Subsystem, TRANSFER_BYTES_MAX};
use crate::wire::fabrics::Nqn;
use crate::wire::feature::{GetFeatures, fid};
use crate::wire::identify::IDENTIFY_BYTES;
use crate::wire::log_page::{AnaState, GetLogPage};
use crate::wire::opcode::{admin, fctype};
use crate::wire::property::{Cc, PropertyCommand, csts, offset};
use crate::wire::{Cid, Fuse, Sqe, Status};
use peristyle_base::{Duration, Instant};

/// NVM Express 2.0, VS and VER. Base 3.1.4.2.
pub const VERSION: u32 = 0x0002_0000;
/// Abort command limit and asynchronous event request limit, as counts. Base 5.1.13.2.1 ACL, AERL.
pub const ABORTS_MAX: usize = 4;
pub const AERS_MAX: usize = 4;
/// KAS: granularity of the keep alive timer. Base 3.9.
pub const KEEP_ALIVE_GRANULARITY_MS: u32 = 1000;
/// A longer timeout is refused (Keep Alive Timeout Invalid): a lost host would hold its controller that long.
pub const KEEP_ALIVE_MS_MAX: u32 = 3_600_000;
/// A host that connects and does not enable its controller within this time has gone. Our choice.
pub const ENABLE_TIMEOUT: Duration = Duration::from_secs(120);
/// Worst time from CC.EN = 1 to ready, in units of 500 ms: CAP.TO and CRTO.CRWMT. We are ready at once.
const READY_TIMEOUT: u64 = 20;

/// What all controllers of one target have in common. From the configuration, then frozen.
#[derive(Clone, Debug)]
pub struct ControllerConfig {
    /// I/O queues of one controller: identifiers 1..=io_queues_max.
    pub io_queues_max: u16,
    /// Largest number of entries of an I/O queue; CAP.MQES and MAXCMD.
    pub queue_entries_max: u16,
    /// In-capsule data of I/O commands; IOCCSZ. A multiple of 16.
    pub in_capsule_bytes: u32,
    /// More than one port leads to the subsystem; CMIC bit 0.
    pub several_ports: bool,
    /// ASCII.
    pub model: &'static str,
    pub firmware: &'static str,
}

impl Default for ControllerConfig {
    fn default() -> Self {
        ControllerConfig {
            io_queues_max: 64,
            queue_entries_max: 128,
            in_capsule_bytes: crate::qpair::IO_IN_CAPSULE_BYTES,
            several_ports: true,
            model: "Peristyle",
            firmware: env!("CARGO_PKG_VERSION"),
        }
    }
}

/// What kind of controller it is, with what it serves. Base 3.1.3.
#[derive(Clone, Copy)]
pub(crate) enum Scope<'a> {
    Io(&'a Subsystem),
    Discovery(&'a Discovery, &'a [Option<Subsystem>]),
}

/// What an admin command came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub enum AdminOutcome {
    /// Answer with these completion dwords, preceded by the first `data_bytes` of the buffer.
    Complete { status: Status, dw0: u32, dw1: u32, data_bytes: usize },
    /// An asynchronous event request: its completion comes later.
    Pending,
}

impl AdminOutcome {
    pub fn status(status: Status) -> AdminOutcome {
        AdminOutcome::Complete { status, dw0: 0, dw1: 0, data_bytes: 0 }
    }
    pub(crate) fn value(dw0: u32) -> AdminOutcome {
        AdminOutcome::Complete { status: Status::SUCCESS, dw0, dw1: 0, data_bytes: 0 }
    }
    pub(crate) fn data(data_bytes: usize) -> AdminOutcome {
        AdminOutcome::Complete { status: Status::SUCCESS, dw0: 0, dw1: 0, data_bytes }
    }
}

/// What a command changed that the registry must act on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Effect {
    None,
    /// CC.EN went from 1 to 0: its I/O queues are gone. Base 3.7.2.
    Reset,
}

/// Bytes of data that an admin command may return: the size of the buffer to hand to it. 0 when it returns none or
/// will be refused; never more than MDTS.
pub fn admin_data_bytes(sqe: &Sqe) -> usize {
    match sqe.opcode() {
        admin::IDENTIFY => IDENTIFY_BYTES,
        admin::GET_LOG_PAGE => match GetLogPage::parse(sqe).bytes {
            bytes if bytes <= u64::from(TRANSFER_BYTES_MAX) => bytes as usize,
            _ => 0,
        },
        admin::GET_FEATURES if GetFeatures::parse(sqe).fid == fid::HOST_IDENTIFIER => 16,
        _ => 0,
    }
}

/// An ANA group as one controller tells of it.
struct OwnState {
    group: u32,
    /// `None`: the subsystem's again.
    state: Option<AnaState>,
    /// Times that it changed here alone.
    changes: u64,
}

pub struct Controller {
    cntlid: u16,
    hostnqn: Nqn,
    hostid: [u8; 16],
    cc: Cc,
    csts: u32,
    keep_alive_ms: u32,
    /// When the keep alive timer runs out, or the wait for CC.EN.
    deadline: Option<Instant>,
    features: Features,
    events: Events,
    changed: ChangedNamespaces,
    errors: ErrorLog,
    /// ANA groups whose state is, or was, another here than elsewhere in the subsystem.
    own_states: Vec<OwnState>,
    /// I/O queues exist: Number of Queues is settled.
    pub(crate) has_io_queues: bool,
}

impl Controller {
    pub(crate) fn new(
        now: Instant,
        cntlid: u16,
        hostnqn: Nqn,
        hostid: [u8; 16],
        keep_alive_ms: u32,
        config: &ControllerConfig,
    ) -> Controller {
        Controller {
            cntlid,
            hostnqn,
            hostid,
            cc: Cc::default(),
            csts: 0,
            keep_alive_ms: rounded(keep_alive_ms),
            deadline: Some(now + ENABLE_TIMEOUT),
            features: Features::new(config.io_queues_max),
            events: Events::default(),
            changed: ChangedNamespaces::default(),
            errors: ErrorLog::default(),
            own_states: Vec::new(),
            has_io_queues: false,
        }
    }
    pub fn cntlid(&self) -> u16 {
        self.cntlid
    }
    pub fn hostnqn(&self) -> &Nqn {
        &self.hostnqn
    }
    pub fn hostid(&self) -> &[u8; 16] {
        &self.hostid
    }
    pub fn keep_alive_ms(&self) -> u32 {
        self.keep_alive_ms
    }
    /// CC.EN and CSTS.RDY are set, and no shutdown has begun.
    pub fn is_ready(&self) -> bool {
        self.csts & (csts::RDY | csts::CFS) == csts::RDY && self.cc.shn() == 0
    }
    /// I/O queues that the host may connect: 1..= this.
    pub fn io_queues(&self) -> u16 {
        self.features.queues
    }
    /// Says whether the group's state is another than before. A group that cannot exist has none.
    pub(crate) fn set_ana_state(&mut self, group: u32, state: Option<AnaState>) -> bool {
        match self.own_states.iter_mut().find(|own| own.group == group) {
            Some(own) if own.state == state => false,
            Some(own) => {
                (own.state, own.changes) = (state, own.changes + 1);
                true
            }
            None if state.is_none() || !(1..=ANA_GROUPS_MAX).contains(&group) => false,
            None => {
                self.own_states.push(OwnState { group, state, changes: 1 });
                true
            }
        }
    }
    pub fn record_error(&mut self, report: &ErrorReport) {
        self.errors.record(report);
    }

    /// Executes one command of the admin queue (Connect excepted: that is the registry's). `out` has at least
    /// [`admin_data_bytes`] bytes.
    pub(crate) fn handle_admin(
        &mut self,
        now: Instant,
        config: &ControllerConfig,
        scope: Scope<'_>,
        sqe: &Sqe,
        out: &mut [u8],
    ) -> (AdminOutcome, Effect) {
        let mut effect = Effect::None;
        let result = if sqe.is_fabrics() {
            self.fabrics(now, config, scope, sqe, &mut effect)
        } else {
            self.admin(now, config, scope, sqe, out)
        };
        let outcome = result.unwrap_or_else(|status| {
            self.errors.record(&ErrorReport::of(sqe, 0, status));
            AdminOutcome::status(status)
        });
        (outcome, effect)
    }

    fn fabrics(
        &mut self,
        now: Instant,
        config: &ControllerConfig,
        scope: Scope<'_>,
        sqe: &Sqe,
        effect: &mut Effect,
    ) -> Result<AdminOutcome, Status> {
        match sqe.fctype() {
            fctype::PROPERTY_GET => self.property_get(config, scope, sqe),
            fctype::PROPERTY_SET => self.property_set(now, scope, sqe, effect),
            // A queue is connected once. Base 6.3.
            fctype::CONNECT => Err(Status::COMMAND_SEQUENCE_ERROR.with_dnr()),
            // The admin queue ends with its connection. Base 6.4.
            fctype::DISCONNECT => Err(Status::INVALID_QUEUE_TYPE.with_dnr()),
            // AUTHREQ was 0: there is nothing to authenticate with. Base 6.1, 6.2.
            _ => Err(Status::INVALID_OPCODE.with_dnr()),
        }
    }

    fn admin(
        &mut self,
        now: Instant,
        config: &ControllerConfig,
        scope: Scope<'_>,
        sqe: &Sqe,
        out: &mut [u8],
    ) -> Result<AdminOutcome, Status> {
        if !is_supported(scope, sqe.opcode()) {
            return Err(Status::INVALID_OPCODE.with_dnr());
        }
        // Until CSTS.RDY only Fabrics commands are processed. Base 3.5.3, 3.6.
        if !self.is_ready() {
            return Err(Status::COMMAND_SEQUENCE_ERROR.with_dnr());
        }
        if sqe.fuse() != Fuse::Normal {
            return Err(Status::INVALID_FIELD.with_dnr());
        }
        match sqe.opcode() {
            admin::IDENTIFY => self.identify(config, scope, sqe, out),
            admin::GET_LOG_PAGE => self.get_log_page(config, scope, sqe, out),
            admin::GET_FEATURES => self.get_features(config, scope, sqe, out),
            admin::SET_FEATURES => self.set_features(now, config, scope, sqe),
            admin::ASYNC_EVENT_REQUEST => {
                self.events.push(sqe.cid())?;
                Ok(AdminOutcome::Pending)
            }
            admin::ABORT => Ok(AdminOutcome::value(self.abort(sqe))),
            admin::KEEP_ALIVE => {
                self.restart_keep_alive(now);
                Ok(AdminOutcome::value(0))
            }
            _ => Err(Status::INVALID_OPCODE.with_dnr()),
        }
    }

    /// Abort: bit 0 of dword 0 is 1 when the command was not aborted, whatever the reason. Base 5.1.1. Only
    /// waiting event requests can be: I/O commands finish in microseconds, or with their device's timeout.
    fn abort(&mut self, sqe: &Sqe) -> u32 {
        let (sqid, cid) = (sqe.cdw10() as u16, Cid((sqe.cdw10() >> 16) as u16));
        if sqid == 0 && self.events.abort(cid) { 0 } else { 1 }
    }

    fn property_get(
        &self,
        config: &ControllerConfig,
        scope: Scope<'_>,
        sqe: &Sqe,
    ) -> Result<AdminOutcome, Status> {
        let command = PropertyCommand::parse(sqe);
        let value = match (command.offset, command.bytes) {
            (offset::CAP, Some(8)) => capabilities(config, scope),
            (offset::VS, Some(4)) => u64::from(VERSION),
            (offset::CC, Some(4)) => u64::from(self.cc.0),
            (offset::CSTS, Some(4)) => u64::from(self.csts),
            (offset::NSSR, Some(4)) => 0,
            (offset::CRTO, Some(4)) => READY_TIMEOUT, // CRWMT 15:00; CRIMT 31:16 not offered.
            _ => return Err(Status::INVALID_FIELD.with_dnr()),
        };
        Ok(AdminOutcome::Complete {
            status: Status::SUCCESS,
            dw0: value as u32,
            dw1: (value >> 32) as u32,
            data_bytes: 0,
        })
    }

    /// CC is the one property that a host may write: NSSR needs CAP.NSSRS, which is 0. Base 6.6.
    fn property_set(
        &mut self,
        now: Instant,
        scope: Scope<'_>,
        sqe: &Sqe,
        effect: &mut Effect,
    ) -> Result<AdminOutcome, Status> {
        let command = PropertyCommand::parse(sqe);
        if (command.offset, command.bytes) != (offset::CC, Some(4)) {
            return Err(Status::INVALID_FIELD.with_dnr());
        }
        let (old, new) = (self.cc, Cc(command.value as u32));
        if new.enabled() && !old.enabled() {
            self.check_enable(scope, new)?;
        }
        self.cc = new;
        match (old.enabled(), new.enabled()) {
            (false, true) => {
                self.csts = csts::RDY;
                self.restart_keep_alive(now);
            }
            (true, false) => {
                self.reset(now);
                *effect = Effect::Reset;
            }
            _ => {}
        }
        // Nothing is cached, so a shutdown is complete when it is asked for. Base 3.6.2.
        if new.shn() != 0 {
            self.csts |= csts::SHST_COMPLETE;
            self.deadline = Some(now + ENABLE_TIMEOUT);
        } else if old.shn() != 0 {
            self.csts &= !csts::SHST_COMPLETE;
            self.restart_keep_alive(now);
        }
        Ok(AdminOutcome::value(0))
    }

    /// Base 3.1.4.5: values that CAP does not offer. CSTS.CFS is not raised: the host reads the status.
    fn check_enable(&self, scope: Scope<'_>, cc: Cc) -> Result<(), Status> {
        let entry_sizes = match scope {
            Scope::Io(_) => cc.iosqes() == 6 && cc.iocqes() == 4,
            Scope::Discovery(..) => true, // It has no I/O queues.
        };
        let command_set = matches!(cc.css(), 0 | 6);
        if cc.mps() != 0 || cc.ams() != 0 || !command_set || !entry_sizes {
            return Err(Status::INVALID_FIELD.with_dnr());
        }
        Ok(())
    }

    /// Controller Level Reset. Base 3.7.2: features and events go back to their defaults; the host identifier and
    /// the keep alive timeout belong to the association and stay.
    fn reset(&mut self, now: Instant) {
        self.csts = 0;
        self.features = Features::new(self.features.queues_max);
        self.events = Events::default();
        self.changed = ChangedNamespaces::default();
        self.has_io_queues = false;
        self.deadline = Some(now + ENABLE_TIMEOUT);
    }

    fn restart_keep_alive(&mut self, now: Instant) {
        if self.csts & csts::SHST_COMPLETE != 0 {
            return;
        }
        self.deadline = match (self.cc.enabled(), self.keep_alive_ms) {
            (false, _) => Some(now + ENABLE_TIMEOUT),
            (true, 0) => None,
            (true, ms) => Some(now + Duration::from_millis(u64::from(ms))),
        };
    }

    /// When [`handle_timeout`](Self::handle_timeout) must be called.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        self.deadline
    }

    /// Says whether the association is over: the keep alive timer has run out. Base 3.9.
    pub(crate) fn handle_timeout(&mut self, now: Instant) -> bool {
        if self.deadline.is_none_or(|at| at > now) {
            return false;
        }
        self.deadline = None;
        self.csts |= csts::CFS;
        true
    }

    /// Something happened that hosts may want to hear of; whether this one does, its configuration says.
    pub(crate) fn notify(&mut self, event: EventKind) {
        if let EventKind::NamespaceAttribute { nsid } = event {
            self.changed.add(nsid);
        }
        if self.is_ready() && self.features.wants(event) {
            self.events.raise(event);
        }
    }

    /// The next event request to complete: its identifier, status and dword 0.
    pub(crate) fn poll_event(&mut self) -> Option<(Cid, Status, u32)> {
        self.events.poll()
    }
}

/// KATO is rounded up to the granularity. Base 5.1.25.1.8.
fn rounded(keep_alive_ms: u32) -> u32 {
    keep_alive_ms.div_ceil(KEEP_ALIVE_GRANULARITY_MS).saturating_mul(KEEP_ALIVE_GRANULARITY_MS)
}

/// Admin commands executed here; discovery controllers have their own, shorter list. Base 3.1.3.
fn is_supported(scope: Scope<'_>, opcode: u8) -> bool {
    match opcode {
        admin::GET_LOG_PAGE
        | admin::IDENTIFY
        | admin::SET_FEATURES
        | admin::GET_FEATURES
        | admin::ASYNC_EVENT_REQUEST
        | admin::KEEP_ALIVE => true,
        admin::ABORT => matches!(scope, Scope::Io(_)),
        _ => false,
    }
}

/// CAP. Base 3.1.4.1: MQES 15:00, CQR 16, TO 31:24, CSS 44:37 (bit 37 NVM, bit 43 CC.CSS 110b), CRMS 60:59 (CRWMS).
fn capabilities(config: &ControllerConfig, scope: Scope<'_>) -> u64 {
    let several_sets = match scope {
        Scope::Io(_) => 1 << 43,
        Scope::Discovery(..) => 0,
    };
    u64::from(config.queue_entries_max - 1) | 1 << 16 | READY_TIMEOUT << 24 | 1 << 37 | several_sets | 1 << 59
}
