//! The target's side of one NVMe/TCP connection, which is one queue pair.
//!
//! The driver (a task that owns the socket and the buffers) does three things in a loop:
//!
//! 1. **Receive.** Ask [`Qpair::next_input`]. `Bytes`: hand the next bytes of the stream to
//!    [`Qpair::handle_bytes`]. `Payload`: put the next `len` bytes at `offset` of the buffer of command `tag`
//!    and show them to [`Qpair::handle_payload`]. `Wait`: leave the socket alone until
//!    [`Qpair::buffer_ready`]. `Closed`: nothing is read any more.
//! 2. **Act.** Drain [`Qpair::poll_action`]: give buffers, execute commands, close.
//! 3. **Send.** Drain [`Qpair::poll_transmit`]: headers are written where the driver wants them, payload is
//!    named by tag and sent from where it lies, a data digest is computed by
//!    [`crate::wire::digest::data_digest`].
//!
//! Backpressure: `Action::Buffer` may be answered as late as the driver likes. Until then data of a large
//! write stays with the host (its R2T is not sent), and in-capsule data stays in the socket.
//!
//! **Invariant:** after a fatal error nothing but one C2HTermReq leaves, and no command starts.

mod fuse;
pub mod fuzz;
mod receive;
mod slots;
mod transmit;

use std::collections::VecDeque;

use peristyle_base::{Duration, Instant};

use crate::framing::Framer;
pub use crate::tag::Tag;
use crate::wire::opcode::Transfer;
use crate::wire::pdu::{self, Format};
pub use crate::wire::pdu::{Fatal, Fes};
use crate::wire::{Cid, Sqe, Status};
use fuse::FuseRole;
pub use slots::SLOTS_MAX;
use slots::{SlotState, Slots};
pub use transmit::{Payload, TRANSMIT_HEADER_BYTES, Transmit};

/// ICReq and an accepted Connect must have come by then. TCP 3.1 leaves the time to us.
pub const SETUP_TIMEOUT: Duration = Duration::from_secs(10);
/// A host that does not close after our C2HTermReq is cut off. TCP 3.5.
pub const TERM_TIMEOUT: Duration = Duration::from_secs(30);
/// Largest payload of one H2CData PDU. TCP 3.6.2.2: whole dwords, at least 4096 bytes.
pub const MAXH2CDATA_BYTES: u32 = 128 * 1024;
/// Largest data of a command, what MDTS advertises.
pub const TRANSFER_BYTES_MAX: u32 = 512 * 1024;
/// In-capsule data of I/O commands, what IOCCSZ advertises: the same as TCP demands of admin queues.
pub const IO_IN_CAPSULE_BYTES: u32 = 8192;
/// Commands that are held before Connect has told the queue's size; only one of them can be of use.
const SLOTS_BEFORE_CONNECT: usize = 4;

const _: () = assert!(MAXH2CDATA_BYTES.is_multiple_of(4) && MAXH2CDATA_BYTES >= pdu::MAXH2CDATA_MIN);

/// Everything of a queue pair that has a size. Advertise the same through Identify and CAP.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct QpairLimits {
    /// In-capsule data of I/O queues, a multiple of 16 and at least [`pdu::ADMIN_IN_CAPSULE_BYTES`].
    pub io_in_capsule_bytes: u32,
    pub maxh2cdata_bytes: u32,
    /// MDTS in bytes.
    pub transfer_bytes_max: u32,
    /// Data of one C2HData PDU.
    pub c2h_bytes_max: u32,
    pub header_digest: bool,
    pub data_digest: bool,
    pub setup_timeout: Duration,
    pub term_timeout: Duration,
}

impl Default for QpairLimits {
    fn default() -> Self {
        QpairLimits {
            io_in_capsule_bytes: IO_IN_CAPSULE_BYTES,
            maxh2cdata_bytes: MAXH2CDATA_BYTES,
            transfer_bytes_max: TRANSFER_BYTES_MAX,
            c2h_bytes_max: TRANSFER_BYTES_MAX,
            header_digest: true,
            data_digest: true,
            setup_timeout: SETUP_TIMEOUT,
            term_timeout: TERM_TIMEOUT,
        }
    }
}

/// Where the next bytes of the stream belong.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Input {
    /// To the machine; it can use up to `max` of them, and more is no harm.
    Bytes { max: usize },
    /// To the buffer of a command.
    Payload { tag: Tag, offset: u32, len: u32 },
    /// Nowhere yet: `tag` has no buffer.
    Wait { tag: Tag },
    /// Nowhere any more.
    Closed,
}

/// A command as it is handed up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Command {
    pub tag: Tag,
    pub sqe: Sqe,
    /// Host to controller: bytes that are in the buffer. Controller to host: the most the host takes.
    pub data_len: u32,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Action {
    /// Give the command a buffer of `len` bytes and say [`Qpair::buffer_ready`]. Or look at the command
    /// ([`Qpair::command_of`]) and [`Qpair::refuse`] it before anything is spent on it.
    Buffer {
        tag: Tag,
        len: u32,
    },
    /// The buffer's command has failed and is answered: take the buffer back.
    Release {
        tag: Tag,
    },
    /// A Connect command: ask the controllers, then [`Qpair::accept_connect`] or [`Qpair::complete`].
    Connect(Command),
    Execute(Command),
    /// Compare and Write, to be executed as one. Each is completed on its own. Base 3.4.2, fused operations.
    ExecuteFused {
        first: Command,
        second: Command,
    },
    /// Close the socket and cancel what is executing. Comes once, as the last action.
    Close(CloseReason),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CloseReason {
    /// No ICReq or no Connect in time.
    SetupTimeout,
    /// The host closed its side.
    PeerClosed,
    /// The host sent H2CTermReq. FES and FEI as received.
    PeerTerminated { fes: u16, fei: u32 },
    /// We sent C2HTermReq, and the host has closed or its time is over.
    Terminated(Fatal),
    /// The driver asked for it with [`Qpair::close`].
    Asked,
}

/// Dwords 0 and 1 and status of a completion.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Completion {
    pub status: Status,
    pub dw0: u32,
    pub dw1: u32,
}

impl From<Status> for Completion {
    fn from(status: Status) -> Self {
        Completion { status, dw0: 0, dw1: 0 }
    }
}

/// What the controllers decided about a Connect command. Base 6.3.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Accept {
    /// 0 for the admin queue.
    pub qid: u16,
    /// SQSIZE + 1, at most [`SLOTS_MAX`].
    pub entries: u32,
    /// CATTR bit 2 was clear: SQ flow control is in use.
    pub flow_control: bool,
    /// CNTLID and AUTHREQ. Base figure 547.
    pub dw0: u32,
}

/// A completion for a command that is not executing (any more). The driver drops it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StaleTag;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    IcWait,
    /// ICResp is queued; nothing but Connect is welcome.
    ConnectWait,
    Live,
    /// C2HTermReq is queued or sent; we wait for the host to close.
    Terminated(Fatal),
    Closed(CloseReason),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Pending {
    Buffer(Tag),
    Release(Tag),
    Connect(Tag),
    Execute(Tag),
    Fused(Tag, Tag),
}

/// Counted, never logged.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct QpairStats {
    pub commands: u64,
    pub r2ts: u64,
    pub data_digest_errors: u64,
    /// Commands answered here, without reaching the controller.
    pub refused: u64,
}

pub struct Qpair {
    limits: QpairLimits,
    phase: Phase,
    /// When [`Self::handle_timeout`] has something to do.
    deadline: Option<Instant>,
    /// What the host's PDUs look like; ours differ in the alignment.
    format: Format,
    /// HPDA.
    host_alignment: u8,
    framer: Framer,
    /// The command whose data the present PDU carries.
    current: Option<Current>,
    slots: Slots,
    actions: VecDeque<Pending>,
    close_told: bool,
    out: VecDeque<transmit::Out>,
    term: Option<transmit::Term>,
    /// The first half of a fused pair, until the next command comes.
    fuse_first: Option<u16>,
    /// The Connect that waits for its data or its answer: at most one.
    connect_pending: Option<u16>,
    qid: u16,
    entries: u32,
    flow_control: bool,
    sq_head: u16,
    stats: QpairStats,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Current {
    index: u16,
    /// Where the PDU's data belongs in the command's buffer.
    offset: u32,
}

impl Qpair {
    /// A connection that was just accepted.
    pub fn new(now: Instant, limits: QpairLimits) -> Qpair {
        assert!(
            limits.io_in_capsule_bytes >= pdu::ADMIN_IN_CAPSULE_BYTES
                && limits.io_in_capsule_bytes.is_multiple_of(16)
        );
        assert!(limits.maxh2cdata_bytes >= pdu::MAXH2CDATA_MIN && limits.maxh2cdata_bytes.is_multiple_of(4));
        assert!(limits.c2h_bytes_max >= 4 && limits.c2h_bytes_max.is_multiple_of(4));
        let mut qpair = Qpair {
            limits,
            phase: Phase::IcWait,
            deadline: Some(now + limits.setup_timeout),
            format: Format::default(),
            host_alignment: 0,
            framer: Framer::new(),
            current: None,
            slots: Slots::new(SLOTS_BEFORE_CONNECT),
            actions: VecDeque::new(),
            close_told: false,
            out: VecDeque::new(),
            term: None,
            fuse_first: None,
            connect_pending: None,
            qid: 0,
            entries: 0,
            flow_control: true,
            sq_head: 0,
            stats: QpairStats::default(),
        };
        qpair.reserve();
        qpair
    }

    /// Each command stands at most twice among the actions (Release or Buffer, then Execute) and once in the
    /// transmit queue.
    fn reserve(&mut self) {
        let count = self.slots.count();
        self.actions.reserve(2 * count + 1 - self.actions.len());
        self.out.reserve(count + 1 - self.out.len());
    }

    pub fn next_input(&self) -> Input {
        if !self.is_open() {
            return Input::Closed;
        }
        let left = self.framer.data_left();
        match self.current {
            Some(current) if left > 0 => {
                let tag = self.slots.tag(current.index);
                if self.slots.get(current.index).state == SlotState::BufferWait {
                    return Input::Wait { tag };
                }
                Input::Payload { tag, offset: current.offset + self.framer.data_done(), len: left }
            }
            _ => Input::Bytes { max: self.framer.wanted().max(1) },
        }
    }

    /// Takes bytes from the stream and says how many. It stops short of `input.len()` only where data
    /// belongs into a command's buffer. An error is told once; the TermReq is then in [`Self::poll_transmit`].
    pub fn handle_bytes(&mut self, now: Instant, input: &[u8]) -> Result<usize, Fatal> {
        if !self.is_open() {
            return Ok(input.len());
        }
        let mut rest = input;
        self.drive(now, &mut rest)?;
        Ok(if self.is_open() { input.len() - rest.len() } else { input.len() })
    }

    /// The driver has put these bytes where [`Self::next_input`] said (the whole or a first part of it).
    pub fn handle_payload(&mut self, now: Instant, placed: &[u8]) -> Result<(), Fatal> {
        let (true, Some(current)) = (self.is_open(), self.current) else { return Ok(()) };
        self.framer.placed(placed);
        self.slots.get_mut(current.index).received += placed.len() as u32;
        if self.framer.data_left() > 0 {
            return Ok(());
        }
        self.drive(now, &mut &[][..])
    }

    /// The stream has ended.
    pub fn handle_eof(&mut self, _now: Instant) {
        let reason = match self.phase {
            Phase::Closed(_) => return,
            Phase::Terminated(fatal) => CloseReason::Terminated(fatal),
            _ => CloseReason::PeerClosed,
        };
        self.shut(reason);
    }

    /// The driver's own wish: shutdown, keep alive expired, the controller is gone.
    pub fn close(&mut self) {
        if !matches!(self.phase, Phase::Closed(_)) {
            self.shut(CloseReason::Asked);
        }
    }

    pub fn poll_timeout(&self) -> Option<Instant> {
        self.deadline
    }

    pub fn handle_timeout(&mut self, now: Instant) {
        if self.deadline.is_none_or(|deadline| now < deadline) {
            return;
        }
        match self.phase {
            Phase::IcWait | Phase::ConnectWait => self.shut(CloseReason::SetupTimeout),
            Phase::Terminated(fatal) => self.shut(CloseReason::Terminated(fatal)),
            Phase::Live | Phase::Closed(_) => self.deadline = None,
        }
    }

    /// The command has its buffer: its data may come.
    pub fn buffer_ready(&mut self, tag: Tag) -> Result<(), StaleTag> {
        let index = self.slots.find(tag).ok_or(StaleTag)?;
        let slot = self.slots.get_mut(index);
        if slot.state != SlotState::BufferWait || !matches!(self.phase, Phase::ConnectWait | Phase::Live) {
            return Err(StaleTag);
        }
        if slot.in_capsule {
            slot.state = SlotState::Receiving;
        } else {
            slot.state = SlotState::R2tQueued;
            self.out.push_back(transmit::Out::R2t(index));
        }
        Ok(())
    }

    pub fn poll_action(&mut self) -> Option<Action> {
        if let Phase::Closed(reason) = self.phase {
            return (!std::mem::replace(&mut self.close_told, true)).then_some(Action::Close(reason));
        }
        let action = match self.actions.pop_front()? {
            Pending::Buffer(tag) => Action::Buffer { tag, len: self.command(tag).data_len },
            Pending::Release(tag) => Action::Release { tag },
            Pending::Connect(tag) => Action::Connect(self.command(tag)),
            Pending::Execute(tag) => Action::Execute(self.command(tag)),
            Pending::Fused(first, second) => {
                Action::ExecuteFused { first: self.command(first), second: self.command(second) }
            }
        };
        Some(action)
    }

    /// Commands that [`poll_action`](Self::poll_action) will want executed, as far as that is known.
    pub fn queued(&self) -> impl Iterator<Item = &Sqe> + '_ {
        self.actions.iter().filter_map(|pending| match pending {
            Pending::Execute(tag) => Some(&self.slots.get(tag.index() as u16).sqe),
            _ => None,
        })
    }

    fn command(&self, tag: Tag) -> Command {
        let slot = self.slots.get(tag.index() as u16);
        Command { tag, sqe: slot.sqe, data_len: slot.data_len }
    }

    /// The answer to `Action::Connect` when the controllers agree.
    pub fn accept_connect(&mut self, tag: Tag, accept: Accept) -> Result<(), StaleTag> {
        let index = self.executing(tag)?;
        assert!(
            self.connect_pending == Some(index) && (2..=SLOTS_MAX as u32).contains(&accept.entries),
            "checked by Connect"
        );
        if self.phase == Phase::ConnectWait {
            self.phase = Phase::Live;
            self.deadline = None;
        }
        self.qid = accept.qid;
        self.entries = accept.entries;
        self.flow_control = accept.flow_control;
        self.slots.grow(accept.entries as usize);
        self.slots.index_cids();
        self.reserve();
        self.respond(index, Completion { status: Status::SUCCESS, dw0: accept.dw0, dw1: 0 });
        Ok(())
    }

    /// A command ends, with any status.
    pub fn complete(&mut self, tag: Tag, completion: Completion) -> Result<(), StaleTag> {
        let index = self.executing(tag)?;
        self.respond(index, completion);
        Ok(())
    }

    /// A command ends well and its first `len` bytes go to the host from the driver's buffer for `tag`,
    /// which stays untouched until the [`Transmit`] that says `done` is on the wire. A host that takes less
    /// gets Data SGL Length Invalid instead: not a byte more than its SGL says ever leaves.
    pub fn complete_with_data(&mut self, tag: Tag, len: u32, completion: Completion) -> Result<(), StaleTag> {
        assert!(completion.status.is_success(), "data comes with success only");
        let index = self.executing(tag)?;
        let slot = self.slots.get_mut(index);
        if slot.sqe.transfer() != Transfer::ControllerToHost || len > slot.data_len {
            self.respond(index, Status::DATA_SGL_LENGTH_INVALID.with_dnr().into());
            return Ok(());
        }
        slot.send_len = len;
        self.respond(index, completion);
        Ok(())
    }

    /// Answers a command that still waits for its buffer, instead of giving it one: its data is not asked
    /// for, or is thrown away as it comes. For commands that cannot succeed whatever their data is.
    pub fn refuse(&mut self, tag: Tag, completion: Completion) -> Result<(), StaleTag> {
        let index = self.slots.find(tag).ok_or(StaleTag)?;
        let slot = self.slots.get_mut(index);
        if slot.state != SlotState::BufferWait || slot.fuse != FuseRole::Alone {
            return Err(StaleTag);
        }
        slot.buffer_asked = false;
        if slot.in_capsule && self.is_open() {
            self.current = None;
            self.framer.skip_body();
        }
        self.respond(index, completion);
        Ok(())
    }

    /// The command that asks for a buffer or is executing.
    pub fn command_of(&self, tag: Tag) -> Result<Command, StaleTag> {
        self.slots.find(tag).map(|_| self.command(tag)).ok_or(StaleTag)
    }

    /// An executing command that the host calls by this CID: for Abort.
    pub fn find_executing(&self, cid: Cid) -> Option<Tag> {
        let tag = self.slots.find_cid(cid)?;
        self.executing(tag).ok().map(|_| tag)
    }

    fn executing(&self, tag: Tag) -> Result<u16, StaleTag> {
        let index = self.slots.find(tag).ok_or(StaleTag)?;
        if self.slots.get(index).state == SlotState::Executing { Ok(index) } else { Err(StaleTag) }
    }

    /// Commands between reception and the end of their answer.
    pub fn in_flight(&self) -> usize {
        self.slots.in_use()
    }
    pub fn qid(&self) -> u16 {
        self.qid
    }
    pub fn stats(&self) -> QpairStats {
        self.stats
    }
    pub fn limits(&self) -> &QpairLimits {
        &self.limits
    }
    /// Bytes are still taken from the stream.
    pub fn is_open(&self) -> bool {
        !matches!(self.phase, Phase::Terminated(_) | Phase::Closed(_))
    }
    /// Connect has been accepted and nothing has gone wrong since.
    pub fn is_live(&self) -> bool {
        self.phase == Phase::Live
    }
    pub fn data_digest(&self) -> bool {
        self.format.data_digest
    }

    fn push_action(&mut self, pending: Pending) {
        debug_assert!(self.actions.len() < self.actions.capacity());
        self.actions.push_back(pending);
    }

    /// TCP 3.5: stop processing, say why, wait for the host to close.
    fn terminate(&mut self, now: Instant, fatal: Fatal) {
        self.term = Some(transmit::Term::new(fatal, self.framer.header()));
        self.phase = Phase::Terminated(fatal);
        self.deadline = Some(now + self.limits.term_timeout);
        self.actions.clear();
        self.out.clear();
    }

    fn shut(&mut self, reason: CloseReason) {
        self.phase = Phase::Closed(reason);
        self.deadline = None;
        self.term = None;
        self.actions.clear();
        self.out.clear();
    }
}
