//! Everything that all connections of a target share: subsystems, the discovery log, controllers. It lives on one
//! reactor, its home; queues on other reactors ask it by message. So functions take and return plain values.
//!
//! Base 3.3 (associations), 6.3 (Connect).

use crate::controller::{
    AdminOutcome, Controller, ControllerConfig, Effect, ErrorReport, EventKind, KEEP_ALIVE_MS_MAX, Scope,
};
use crate::discovery::{Discovery, Portal};
use crate::subsystem::{
    ControllerModel, Hosts, IoCounters, Namespace, NamespaceTable, Subsystem, SubsystemError,
};
use crate::wire::fabrics::{
    CNTLID_DYNAMIC, CNTLID_MAX, CNTLID_STATIC_ANY, ConnectCommand, ConnectData, DISCOVERY_NQN, Nqn,
    invalid_in_command, invalid_in_data, ipo,
};
use crate::wire::log_page::AnaState;
use crate::wire::{Cid, Sqe, Status};
use peristyle_base::Instant;
use std::collections::VecDeque;
use zerocopy::FromBytes;

/// Subsystems of one target.
pub const SUBSYSTEMS_MAX: usize = 256;

/// A connection, by whatever number its reactor knows it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct ConnId(pub u64);

/// A subsystem's place here.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct SubsystemId(pub u16);

/// A controller. One that has gone is told from its successor in the same place.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct ControllerRef {
    index: u16,
    generation: u32,
}

impl ControllerRef {
    /// Another one for each controller that a registry ever had, until one place was used 2^32 times.
    pub fn number(self) -> u64 {
        u64::from(self.index) << 32 | u64::from(self.generation)
    }
}

#[derive(Clone, Debug)]
pub struct RegistryConfig {
    pub controller: ControllerConfig,
    /// Controllers at once, those of discovery included.
    pub controllers_max: u16,
    /// Of these at most so many for discovery: nobody needs an account to ask for one.
    pub discovery_controllers_max: u16,
    /// And at most so many of one host, over all subsystems.
    pub host_controllers_max: u16,
    /// Entries of an admin queue.
    pub admin_queue_entries_max: u16,
    /// Controller identifiers that this node may give, first and last: nodes that export the same subsystem must
    /// not give the same one.
    pub cntlids: (u16, u16),
}

impl Default for RegistryConfig {
    fn default() -> Self {
        RegistryConfig {
            controller: ControllerConfig::default(),
            controllers_max: 256,
            discovery_controllers_max: 64,
            host_controllers_max: 64,
            admin_queue_entries_max: 128,
            cntlids: (1, CNTLID_MAX),
        }
    }
}

/// A queue that is connected: what its reactor needs to know.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Connected {
    pub conn: ConnId,
    pub controller: ControllerRef,
    /// Dword 0 of the answer: CNTLID in 15:00; AUTHREQ 31:16 is 0.
    pub cntlid: u16,
    /// 0 is the admin queue.
    pub qid: u16,
    /// Submission queue entries, as a count.
    pub entries: u16,
    /// The host sends no more than fits and ignores SQHD, which is FFFFh from the answer on. Base 6.3 CATTR.
    pub flow_control_disabled: bool,
    /// `None` is discovery.
    pub subsystem: Option<SubsystemId>,
}

/// A Connect that failed: status and dword 0 (IPO and IATTR). The connection may try again. Base 6.3.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Refused {
    pub status: Status,
    pub dw0: u32,
}

impl Refused {
    fn because(status: Status) -> Refused {
        Refused { status: status.with_dnr(), dw0: 0 }
    }
    fn data(at: u16) -> Refused {
        Refused { status: Status::CONNECT_INVALID_PARAMETERS.with_dnr(), dw0: invalid_in_data(at) }
    }
    fn command(at: u16) -> Refused {
        Refused { status: Status::CONNECT_INVALID_PARAMETERS.with_dnr(), dw0: invalid_in_command(at) }
    }
}

/// Why a connection is to be closed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ending {
    /// The keep alive timer ran out, or the host never enabled its controller. Base 3.9.
    Silence,
    /// The host disabled its controller; this is one of its I/O queues. Base 3.7.2.
    Reset,
    /// The admin queue's connection has gone.
    AdminQueueLost,
    /// The host may not use the subsystem any more, or the subsystem has gone.
    Evicted,
    /// What the host had sent may not be carried out any more, and it cannot be told which of it was.
    Withdrawn,
}

/// What reactors must do. Drain with [`Registry::poll_event`] after every call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TargetEvent {
    /// Complete an Asynchronous Event Request on this admin queue.
    CompleteAer { conn: ConnId, cid: Cid, status: Status, dw0: u32 },
    /// Close this connection. It is already forgotten here.
    Close { conn: ConnId, ending: Ending },
}

/// An association: a controller and its queues' connections, by queue identifier.
pub(crate) struct Association {
    pub controller: Controller,
    pub subsystem: Option<SubsystemId>,
    pub queues: Vec<Option<ConnId>>,
}

#[derive(Default)]
struct Slot {
    generation: u32,
    association: Option<Association>,
}

pub struct Registry {
    config: RegistryConfig,
    subsystems: Vec<Option<Subsystem>>,
    discovery: Discovery,
    slots: Vec<Slot>,
    cntlid_next: u16,
    /// At most one entry per connection that was open: bounded by controllers × queues.
    events: VecDeque<TargetEvent>,
}

impl Registry {
    pub fn new(config: RegistryConfig) -> Registry {
        let cntlid_next = config.cntlids.0;
        let slots = (0..config.controllers_max).map(|_| Slot::default()).collect();
        Registry {
            config,
            subsystems: Vec::new(),
            discovery: Discovery::default(),
            slots,
            cntlid_next,
            events: VecDeque::new(),
        }
    }
    pub fn config(&self) -> &RegistryConfig {
        &self.config
    }
    pub fn subsystem(&self, id: SubsystemId) -> Option<&Subsystem> {
        self.subsystems.get(usize::from(id.0))?.as_ref()
    }
    pub fn controller(&self, controller: ControllerRef) -> Option<&Controller> {
        Some(&self.association(controller)?.controller)
    }
    /// What a reactor keeps to decode the subsystem's I/O commands; take it again after every change.
    pub fn namespace_table(&self, id: SubsystemId) -> NamespaceTable {
        self.subsystem(id).map(Subsystem::table).unwrap_or_default()
    }
    fn association(&self, c: ControllerRef) -> Option<&Association> {
        let slot = self.slots.get(usize::from(c.index)).filter(|s| s.generation == c.generation)?;
        slot.association.as_ref()
    }
    pub(crate) fn association_mut(&mut self, c: ControllerRef) -> Option<&mut Association> {
        let slot = self.slots.get_mut(usize::from(c.index)).filter(|s| s.generation == c.generation)?;
        slot.association.as_mut()
    }
    pub(crate) fn take_association(&mut self, c: ControllerRef) -> Option<Association> {
        let slot = self.slots.get_mut(usize::from(c.index)).filter(|s| s.generation == c.generation)?;
        slot.association.take()
    }
    pub(crate) fn events_mut(&mut self) -> &mut VecDeque<TargetEvent> {
        &mut self.events
    }
    pub(crate) fn slots(&self) -> impl Iterator<Item = (ControllerRef, &Association)> {
        self.slots.iter().enumerate().filter_map(|(i, slot)| {
            let controller = ControllerRef { index: i as u16, generation: slot.generation };
            Some((controller, slot.association.as_ref()?))
        })
    }
    pub(crate) fn associations(&self) -> impl Iterator<Item = (usize, &Association)> {
        self.slots.iter().enumerate().filter_map(|(i, s)| Some((i, s.association.as_ref()?)))
    }
}

/// Connect. Base 6.3.
impl Registry {
    /// Connects a queue, or says why not. The checks follow the fields: command, data, subsystem and host, queue.
    pub fn connect(
        &mut self,
        now: Instant,
        conn: ConnId,
        sqe: &Sqe,
        data: &[u8],
    ) -> Result<Connected, Refused> {
        let command = ConnectCommand::parse(sqe);
        if command.recfmt != 0 {
            return Err(Refused::because(Status::INCOMPATIBLE_FORMAT));
        }
        // Not Invalid Field: a failed Connect names the parameter instead. Base 6.3.
        let (data, _) = ConnectData::ref_from_prefix(data).map_err(|_| Refused::command(ipo::SGL_LENGTH))?;
        if command.sqsize == 0 || command.sqsize >= self.entries_max(command.qid) {
            return Err(Refused::command(ipo::SQSIZE));
        }
        let subnqn = Nqn::from_field(&data.subnqn).ok_or(Refused::data(ipo::SUBNQN))?;
        let hostnqn = Nqn::from_field(&data.hostnqn).ok_or(Refused::data(ipo::HOSTNQN))?;
        let subsystem = self.find_subsystem(&subnqn, &hostnqn)?;
        match command.qid {
            0 => self.connect_admin(now, conn, &command, data, hostnqn, subsystem),
            _ => self.connect_io(conn, &command, data, &hostnqn, subsystem),
        }
    }

    /// Limit of SQSIZE as a count; SQSIZE itself is zero's based.
    fn entries_max(&self, qid: u16) -> u16 {
        if qid == 0 { self.config.admin_queue_entries_max } else { self.config.controller.queue_entries_max }
    }

    /// `None` is discovery. A host that is not allowed and a subsystem that is not there cost the same time: every
    /// subsystem is looked at either way.
    fn find_subsystem(&self, subnqn: &Nqn, hostnqn: &Nqn) -> Result<Option<SubsystemId>, Refused> {
        if subnqn.as_str() == DISCOVERY_NQN {
            return Ok(None);
        }
        let mut found = Err(Refused::data(ipo::SUBNQN));
        for (i, subsystem) in self.subsystems.iter().enumerate() {
            let Some(subsystem) = subsystem else { continue };
            let allowed = subsystem.hosts.allows(hostnqn);
            if subsystem.nqn == *subnqn {
                found = match allowed {
                    true => Ok(Some(SubsystemId(i as u16))),
                    false => Err(Refused::because(Status::CONNECT_INVALID_HOST)),
                };
            }
        }
        found
    }

    fn connect_admin(
        &mut self,
        now: Instant,
        conn: ConnId,
        command: &ConnectCommand,
        data: &ConnectData,
        hostnqn: Nqn,
        subsystem: Option<SubsystemId>,
    ) -> Result<Connected, Refused> {
        if data.hostid == [0; 16] {
            return Err(Refused::data(ipo::HOSTID));
        }
        if command.kato_ms > KEEP_ALIVE_MS_MAX {
            return Err(Refused::because(Status::KEEP_ALIVE_TIMEOUT_INVALID));
        }
        let cntlid = self.choose_cntlid(subsystem, data.cntlid.get())?;
        // Without DNR: another controller may have gone a moment later.
        let busy = Refused { status: Status::CONTROLLER_BUSY, dw0: 0 };
        if subsystem.is_none() {
            let discovering = self.associations().filter(|(_, a)| a.subsystem.is_none()).count();
            if discovering >= usize::from(self.config.discovery_controllers_max) {
                return Err(busy);
            }
        }
        let of_host = self.associations().filter(|(_, a)| *a.controller.hostnqn() == hostnqn).count();
        if of_host >= usize::from(self.config.host_controllers_max) {
            return Err(busy);
        }
        let index = self.slots.iter().position(|s| s.association.is_none()).ok_or(busy)?;
        let config = &self.config.controller;
        let controller = Controller::new(now, cntlid, hostnqn, data.hostid, command.kato_ms, config);
        let io_queues = if subsystem.is_some() { usize::from(config.io_queues_max) } else { 0 };
        let mut queues = vec![None; 1 + io_queues];
        queues[0] = Some(conn);
        let slot = &mut self.slots[index];
        slot.generation = slot.generation.wrapping_add(1);
        slot.association = Some(Association { controller, subsystem, queues });
        let controller = ControllerRef { index: index as u16, generation: slot.generation };
        Ok(connected(conn, controller, cntlid, command, subsystem))
    }

    /// Base 6.3 CNTLID of an admin queue: FFFFh of a dynamic subsystem; FFFEh, or a certain one, of a static one.
    fn choose_cntlid(&mut self, subsystem: Option<SubsystemId>, asked: u16) -> Result<u16, Refused> {
        let model = subsystem.and_then(|id| self.subsystem(id)).map(|s| s.model).unwrap_or_default();
        let (first, last) = self.config.cntlids;
        match (model, asked) {
            (ControllerModel::Dynamic, CNTLID_DYNAMIC) | (ControllerModel::Static, CNTLID_STATIC_ANY) => {
                // Round robin: an identifier comes back as late as possible, lest a late queue meet a new controller.
                for _ in first..=last {
                    let candidate = self.cntlid_next;
                    self.cntlid_next = if candidate == last { first } else { candidate + 1 };
                    if !self.is_taken(candidate) {
                        return Ok(candidate);
                    }
                }
                Err(Refused { status: Status::CONTROLLER_BUSY, dw0: 0 })
            }
            (ControllerModel::Static, asked) if (first..=last).contains(&asked) => match self.is_taken(asked)
            {
                true => Err(Refused { status: Status::CONTROLLER_BUSY, dw0: 0 }),
                false => Ok(asked),
            },
            _ => Err(Refused::data(ipo::CNTLID)),
        }
    }

    fn is_taken(&self, cntlid: u16) -> bool {
        self.associations().any(|(_, a)| a.controller.cntlid() == cntlid)
    }

    fn connect_io(
        &mut self,
        conn: ConnId,
        command: &ConnectCommand,
        data: &ConnectData,
        hostnqn: &Nqn,
        subsystem: Option<SubsystemId>,
    ) -> Result<Connected, Refused> {
        if subsystem.is_none() {
            return Err(Refused::command(ipo::QID)); // Discovery controllers have no I/O queues. Base 3.1.3.3.
        }
        let cntlid = data.cntlid.get();
        let found = self
            .associations()
            .find(|(_, a)| a.subsystem == subsystem && a.controller.cntlid() == cntlid)
            .map(|(i, _)| i);
        let index = found.ok_or(Refused::data(ipo::CNTLID))?;
        let slot = &mut self.slots[index];
        let Some(association) = &mut slot.association else { return Err(Refused::data(ipo::CNTLID)) };
        let controller = &mut association.controller;
        // Both must be those of the admin queue: nobody reaches into another host's controller.
        if controller.hostnqn() != hostnqn {
            return Err(Refused::data(ipo::HOSTNQN));
        }
        if *controller.hostid() != data.hostid {
            return Err(Refused::data(ipo::HOSTID));
        }
        if !controller.is_ready() {
            return Err(Refused::data(ipo::CNTLID)); // CC.EN is 0, or it is shutting down.
        }
        if command.qid > controller.io_queues() {
            return Err(Refused::command(ipo::QID));
        }
        let queue = association.queues.get_mut(usize::from(command.qid)).ok_or(Refused::command(ipo::QID))?;
        if queue.is_some() {
            return Err(Refused::because(Status::COMMAND_SEQUENCE_ERROR));
        }
        *queue = Some(conn);
        controller.has_io_queues = true;
        let reference = ControllerRef { index: index as u16, generation: slot.generation };
        Ok(connected(conn, reference, cntlid, command, subsystem))
    }
}

fn connected(
    conn: ConnId,
    controller: ControllerRef,
    cntlid: u16,
    command: &ConnectCommand,
    subsystem: Option<SubsystemId>,
) -> Connected {
    Connected {
        conn,
        controller,
        cntlid,
        qid: command.qid,
        entries: command.sqsize + 1,
        flow_control_disabled: command.flow_control_disabled(),
        subsystem,
    }
}

/// Life of an association.
impl Registry {
    /// Executes a command of an admin queue. `out` has at least
    /// [`admin_data_bytes`](crate::controller::admin_data_bytes) bytes. A command of a controller that has gone is
    /// aborted: its connection is about to close.
    pub fn handle_admin(
        &mut self,
        now: Instant,
        controller: ControllerRef,
        sqe: &Sqe,
        out: &mut [u8],
    ) -> AdminOutcome {
        let gone = AdminOutcome::status(Status::ABORTED_SQ_DELETION);
        let Some(slot) = self.slots.get_mut(usize::from(controller.index)) else { return gone };
        if slot.generation != controller.generation {
            return gone;
        }
        let Some(association) = &mut slot.association else { return gone };
        let scope = match association.subsystem {
            None => Scope::Discovery(&self.discovery, &self.subsystems),
            Some(id) => match self.subsystems.get(usize::from(id.0)).and_then(Option::as_ref) {
                Some(subsystem) => Scope::Io(subsystem),
                None => return gone,
            },
        };
        let config = &self.config.controller;
        let (outcome, effect) = association.controller.handle_admin(now, config, scope, sqe, out);
        if effect == Effect::Reset {
            close_queues(&mut association.queues[1..], Ending::Reset, &mut self.events);
        }
        outcome
    }

    /// A queue's connection has ended, or it was disconnected in order. Without its admin queue an association ends.
    /// The news may be old: after a reset the queue's place can belong to another connection by now.
    pub fn disconnected(&mut self, connected: &Connected) {
        let Connected { conn, controller, qid, .. } = *connected;
        let place = self.association(controller).and_then(|a| a.queues.get(usize::from(qid)));
        if place != Some(&Some(conn)) {
            return;
        }
        let slot = &mut self.slots[usize::from(controller.index)];
        let Some(association) = &mut slot.association else { return };
        if let Some(queue) = association.queues.get_mut(usize::from(qid)) {
            *queue = None;
        }
        if qid == 0 {
            close_queues(&mut association.queues, Ending::AdminQueueLost, &mut self.events);
            slot.association = None;
        } else {
            association.controller.has_io_queues = association.queues[1..].iter().any(Option::is_some);
        }
    }

    /// An I/O command failed in a way that the error log should tell.
    pub fn record_error(&mut self, controller: ControllerRef, report: &ErrorReport) {
        if let Some(association) = self.association_mut(controller) {
            association.controller.record_error(report);
        }
    }

    pub fn poll_timeout(&self) -> Option<Instant> {
        self.associations().filter_map(|(_, a)| a.controller.poll_timeout()).min()
    }

    pub fn handle_timeout(&mut self, now: Instant) {
        for slot in &mut self.slots {
            if let Some(association) = &mut slot.association
                && association.controller.handle_timeout(now)
            {
                close_queues(&mut association.queues, Ending::Silence, &mut self.events);
                slot.association = None;
            }
        }
    }

    pub fn poll_event(&mut self) -> Option<TargetEvent> {
        if let Some(event) = self.events.pop_front() {
            return Some(event);
        }
        self.slots.iter_mut().find_map(|slot| {
            let association = slot.association.as_mut()?;
            let conn = association.queues[0]?;
            let (cid, status, dw0) = association.controller.poll_event()?;
            Some(TargetEvent::CompleteAer { conn, cid, status, dw0 })
        })
    }
}

pub(crate) fn close_queues(
    queues: &mut [Option<ConnId>],
    ending: Ending,
    events: &mut VecDeque<TargetEvent>,
) {
    for queue in queues {
        if let Some(conn) = queue.take() {
            events.push_back(TargetEvent::Close { conn, ending });
        }
    }
}

/// What operators change. Hosts that listen are told.
impl Registry {
    pub fn add_subsystem(&mut self, subsystem: Subsystem) -> Result<SubsystemId, SubsystemError> {
        let in_use = subsystem.nqn.as_str() == DISCOVERY_NQN
            || self.subsystems.iter().flatten().any(|s| s.nqn == subsystem.nqn);
        if in_use {
            return Err(SubsystemError::NqnInUse);
        }
        let at = match self.subsystems.iter().position(Option::is_none) {
            Some(at) => at,
            None if self.subsystems.len() == SUBSYSTEMS_MAX => return Err(SubsystemError::TooManySubsystems),
            None => {
                self.subsystems.push(None);
                self.subsystems.len() - 1
            }
        };
        self.subsystems[at] = Some(subsystem);
        self.discovery_changed();
        Ok(SubsystemId(at as u16))
    }
    pub fn remove_subsystem(&mut self, id: SubsystemId) -> Result<(), SubsystemError> {
        self.subsystem_mut(id)?;
        self.evict(id, |_| false);
        self.subsystems[usize::from(id.0)] = None;
        self.discovery_changed();
        Ok(())
    }
    /// Hosts that the new list does not allow lose their connections.
    pub fn set_hosts(&mut self, id: SubsystemId, hosts: Hosts) -> Result<(), SubsystemError> {
        self.subsystem_mut(id)?.set_hosts(hosts.clone())?;
        self.evict(id, |host| hosts.allows(host));
        self.discovery_changed();
        Ok(())
    }
    pub fn put_namespace(&mut self, id: SubsystemId, namespace: Namespace) -> Result<(), SubsystemError> {
        let change = self.subsystem_mut(id)?.put_namespace(namespace)?;
        if change.attributes {
            self.notify(Some(id), EventKind::NamespaceAttribute { nsid: namespace.nsid });
        }
        if change.ana {
            self.notify(Some(id), EventKind::AnaChange);
        }
        Ok(())
    }
    pub fn remove_namespace(&mut self, id: SubsystemId, nsid: u32) -> Result<(), SubsystemError> {
        self.subsystem_mut(id)?.remove_namespace(nsid)?;
        self.notify(Some(id), EventKind::NamespaceAttribute { nsid });
        Ok(())
    }
    pub fn set_ana_state(
        &mut self,
        id: SubsystemId,
        group: u32,
        state: AnaState,
    ) -> Result<(), SubsystemError> {
        if self.subsystem_mut(id)?.set_ana_state(group, state)? {
            self.notify(Some(id), EventKind::AnaChange);
        }
        Ok(())
    }
    pub fn portals(&self) -> &[Portal] {
        self.discovery.portals()
    }
    pub fn set_portals(&mut self, portals: Vec<Portal>) {
        self.discovery.set_portals(portals);
        self.discovery_changed();
    }
    /// What reactors have counted since they last sent it.
    pub fn add_counters(&mut self, id: SubsystemId, counters: &IoCounters) {
        if let Ok(subsystem) = self.subsystem_mut(id) {
            subsystem.counters.add(counters);
        }
    }
    /// Warnings that were not there before are told.
    pub fn set_health(&mut self, id: SubsystemId, health: crate::subsystem::Health) {
        let Ok(subsystem) = self.subsystem_mut(id) else { return };
        let before = core::mem::replace(&mut subsystem.health, health).critical_warnings();
        let appeared = health.critical_warnings() & !before;
        for bit in (0..4).filter(|bit| appeared & 1 << bit != 0) {
            self.notify(Some(id), EventKind::Health { warning: bit });
        }
    }

    fn subsystem_mut(&mut self, id: SubsystemId) -> Result<&mut Subsystem, SubsystemError> {
        let slot = self.subsystems.get_mut(usize::from(id.0));
        slot.and_then(Option::as_mut).ok_or(SubsystemError::NoSuchSubsystem)
    }
    fn notify(&mut self, subsystem: Option<SubsystemId>, event: EventKind) {
        for association in self.slots.iter_mut().filter_map(|s| s.association.as_mut()) {
            if association.subsystem == subsystem {
                association.controller.notify(event);
            }
        }
    }
    fn discovery_changed(&mut self) {
        self.discovery.advance();
        self.notify(None, EventKind::DiscoveryChange);
    }
    fn evict(&mut self, id: SubsystemId, stays: impl Fn(&Nqn) -> bool) {
        for slot in &mut self.slots {
            if let Some(association) = &mut slot.association
                && association.subsystem == Some(id)
                && !stays(association.controller.hostnqn())
            {
                close_queues(&mut association.queues, Ending::Evicted, &mut self.events);
                slot.association = None;
            }
        }
    }
}
