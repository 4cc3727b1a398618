//! The host's side of one NVMe/TCP connection: the initiator of the load generator, the crash tester, the
//! simulator. Driven like [`crate::qpair::Qpair`]: receive where [`HostQpair::next_input`] says, drain
//! [`HostQpair::poll_event`], drain [`HostQpair::poll_transmit`].
//!
//! It trusts the target with nothing: data and R2Ts must belong to a command in flight, stay within its
//! buffer and come in order; a read that is short is never reported as success.

pub mod fuzz;
mod receive;
pub mod setup;
mod transmit;

use std::collections::VecDeque;

use peristyle_base::{Duration, Instant};

use crate::framing::Framer;
pub use crate::qpair::{Fatal, Fes, Input, Payload, SLOTS_MAX, TRANSMIT_HEADER_BYTES, Tag, Transmit};
use crate::wire::pdu::{self, Format};
use crate::wire::{Cid, Cqe, Sgl, Sqe, Status};

/// A target that does not answer ICReq in this time is given up.
pub const SETUP_TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HostConfig {
    /// Entries of the submission queue as Connect says it (SQSIZE + 1), 2 to [`SLOTS_MAX`]; one fewer
    /// command can be in flight.
    pub entries: u32,
    /// In-capsule data that this queue may use: 8192 on the admin queue; (IOCCSZ - 4) * 16 on I/O queues.
    pub in_capsule_bytes: u32,
    pub header_digest: bool,
    pub data_digest: bool,
    /// HPDA: where we want C2H data to start, dwords less one.
    pub alignment: u8,
    pub setup_timeout: Duration,
    pub term_timeout: Duration,
}

impl Default for HostConfig {
    fn default() -> Self {
        HostConfig {
            entries: 128,
            in_capsule_bytes: pdu::ADMIN_IN_CAPSULE_BYTES,
            header_digest: false,
            data_digest: false,
            alignment: 0,
            setup_timeout: SETUP_TIMEOUT,
            term_timeout: crate::qpair::TERM_TIMEOUT,
        }
    }
}

/// Data of a command, in the driver's buffer for its tag.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Data {
    None,
    ToTarget(u32),
    FromTarget(u32),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Event {
    /// ICResp is there: commands may be submitted.
    Ready,
    /// A command is over. `received` bytes of its buffer are the target's.
    Complete { tag: Tag, cqe: Cqe, received: u32 },
    /// Close the socket; what was in flight has no answer. Comes once, as the last event.
    Close(HostClose),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HostClose {
    SetupTimeout,
    PeerClosed,
    /// C2HTermReq.
    PeerTerminated {
        fes: u16,
        fei: u32,
    },
    /// We sent H2CTermReq.
    Terminated(Fatal),
    /// ICResp enables other digests than we asked for.
    DigestRefused,
    Asked,
}

/// All of the queue's entries are in flight, or as many events wait to be polled, or the connection is not
/// ready (any more).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NotNow;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    IcWait,
    Ready,
    Terminated(Fatal),
    Closed(HostClose),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Slot {
    generation: u16,
    busy: bool,
    sqe: Sqe,
    data: Data,
    in_capsule: bool,
    /// The capsule has been handed out: an answer can come.
    submitted: bool,
    /// Bytes from the target, in order.
    received: u32,
    /// LAST_PDU of C2HData was seen.
    last_seen: bool,
    /// The R2T that is being served.
    r2t: Option<pdu::Data>,
    /// Bytes that left (of what R2Ts asked for, or in the capsule).
    sent: u32,
    /// What the machine found wrong; it overrides a successful status.
    fault: Option<Status>,
}

const EMPTY: Slot = Slot {
    generation: 0,
    busy: false,
    sqe: Sqe([0; Sqe::BYTES]),
    data: Data::None,
    in_capsule: false,
    submitted: false,
    received: 0,
    last_seen: false,
    r2t: None,
    sent: 0,
    fault: None,
};

/// CIDs carry the slot in the low bits and a generation above, so that an answer to the slot's last
/// command is not taken for the next one's.
const CID_INDEX_BITS: u32 = 11;
const _: () = assert!(SLOTS_MAX < 1 << CID_INDEX_BITS);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Out {
    IcReq,
    Command(u16),
    /// The next H2CData of the slot's R2T.
    Data(u16),
}

pub struct HostQpair {
    config: HostConfig,
    phase: Phase,
    deadline: Option<Instant>,
    /// Of what we send. The target's PDUs have the same digests and our own alignment.
    format: Format,
    maxh2cdata_bytes: u32,
    framer: Framer,
    current: Option<Current>,
    slots: Vec<Slot>,
    free: Vec<u16>,
    events: VecDeque<Event>,
    out: VecDeque<Out>,
    term: Option<(Fatal, [u8; pdu::HEADER_BYTES_MAX], usize)>,
    close_told: bool,
    traffic: Traffic,
}

/// PDUs and their bytes, headers and digests included, since the connection was made.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Traffic {
    pub sent_pdus: u64,
    pub sent_bytes: u64,
    pub received_pdus: u64,
    pub received_bytes: u64,
}

impl Traffic {
    pub fn add(&mut self, other: &Traffic) {
        self.sent_pdus += other.sent_pdus;
        self.sent_bytes += other.sent_bytes;
        self.received_pdus += other.received_pdus;
        self.received_bytes += other.received_bytes;
    }
    pub fn since(&self, before: &Traffic) -> Traffic {
        Traffic {
            sent_pdus: self.sent_pdus - before.sent_pdus,
            sent_bytes: self.sent_bytes - before.sent_bytes,
            received_pdus: self.received_pdus - before.received_pdus,
            received_bytes: self.received_bytes - before.received_bytes,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Current {
    index: u16,
    offset: u32,
    last: bool,
    success: bool,
}

impl HostQpair {
    /// A connection that was just made: ICReq is ready to be sent.
    pub fn new(now: Instant, config: HostConfig) -> HostQpair {
        assert!((2..=SLOTS_MAX as u32).contains(&config.entries) && config.alignment <= pdu::ALIGNMENT_MAX);
        let count = config.entries as usize - 1;
        let mut out = VecDeque::with_capacity(2 * count + 1);
        out.push_back(Out::IcReq);
        HostQpair {
            config,
            phase: Phase::IcWait,
            deadline: Some(now + config.setup_timeout),
            format: Format::default(),
            maxh2cdata_bytes: pdu::MAXH2CDATA_MIN,
            framer: Framer::new(),
            current: None,
            slots: vec![EMPTY; count],
            free: (0..count as u16).rev().collect(),
            // Undrained ones at the last submission, and those of everything in flight then.
            events: VecDeque::with_capacity(2 * count + 1),
            out,
            term: None,
            close_told: false,
            traffic: Traffic::default(),
        }
    }

    pub fn traffic(&self) -> Traffic {
        self.traffic
    }

    /// Larger in-capsule data, once Identify has told IOCCSZ.
    pub fn set_in_capsule_bytes(&mut self, bytes: u32) {
        self.config.in_capsule_bytes = bytes;
    }

    /// Queues a command; PSDT, SGL1 and CID are filled in. The data lies (or will lie) in the driver's
    /// buffer for the returned tag, untouched until [`Event::Complete`].
    pub fn submit(&mut self, mut sqe: Sqe, data: Data) -> Result<Tag, NotNow> {
        if self.phase != Phase::Ready || self.events.len() >= self.slots.len() {
            return Err(NotNow);
        }
        let index = self.free.pop().ok_or(NotNow)?;
        let generation = self.slots[usize::from(index)].generation.wrapping_add(1);
        let mut in_capsule = false;
        let sgl = match data {
            Data::None => Sgl::transport(0),
            Data::FromTarget(len) => Sgl::transport(len),
            Data::ToTarget(len) => {
                in_capsule = len > 0 && len <= self.config.in_capsule_bytes;
                if in_capsule { Sgl::in_capsule(len) } else { Sgl::transport(len) }
            }
        };
        sqe.set_psdt(Sqe::PSDT_SGL);
        sqe.set_sgl(sgl);
        sqe.set_cid(cid(index, generation));
        self.slots[usize::from(index)] = Slot { generation, busy: true, sqe, data, in_capsule, ..EMPTY };
        self.out.push_back(Out::Command(index));
        Ok(Tag::new(index, generation))
    }

    /// The CID a command goes by on the wire, for Abort.
    pub fn cid(&self, tag: Tag) -> Cid {
        cid(tag.index() as u16, tag.generation())
    }

    pub fn next_input(&self) -> Input {
        if !self.is_open() {
            return Input::Closed;
        }
        let left = self.framer.data_left();
        match self.current {
            Some(current) if left > 0 => Input::Payload {
                tag: Tag::new(current.index, self.slots[usize::from(current.index)].generation),
                offset: current.offset + self.framer.data_done(),
                len: left,
            },
            _ => Input::Bytes { max: self.framer.wanted().max(1) },
        }
    }

    /// As [`crate::qpair::Qpair::handle_bytes`].
    pub fn handle_bytes(&mut self, now: Instant, input: &[u8]) -> Result<usize, Fatal> {
        if !self.is_open() {
            return Ok(input.len());
        }
        let mut rest = input;
        self.drive(now, &mut rest)?;
        Ok(if self.is_open() { input.len() - rest.len() } else { input.len() })
    }

    pub fn handle_payload(&mut self, now: Instant, placed: &[u8]) -> Result<(), Fatal> {
        let (true, Some(current)) = (self.is_open(), self.current) else { return Ok(()) };
        self.framer.placed(placed);
        self.slots[usize::from(current.index)].received += placed.len() as u32;
        if self.framer.data_left() > 0 {
            return Ok(());
        }
        self.drive(now, &mut &[][..])
    }

    pub fn handle_eof(&mut self, _now: Instant) {
        match self.phase {
            Phase::Closed(_) => {}
            Phase::Terminated(fatal) => self.shut(HostClose::Terminated(fatal)),
            _ => self.shut(HostClose::PeerClosed),
        }
    }

    pub fn close(&mut self) {
        if !matches!(self.phase, Phase::Closed(_)) {
            self.shut(HostClose::Asked);
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
            Phase::IcWait => self.shut(HostClose::SetupTimeout),
            Phase::Terminated(fatal) => self.shut(HostClose::Terminated(fatal)),
            Phase::Ready | Phase::Closed(_) => self.deadline = None,
        }
    }

    pub fn poll_event(&mut self) -> Option<Event> {
        if let Some(event) = self.events.pop_front() {
            return Some(event);
        }
        let Phase::Closed(reason) = self.phase else { return None };
        (!std::mem::replace(&mut self.close_told, true)).then_some(Event::Close(reason))
    }

    pub fn in_flight(&self) -> usize {
        self.slots.len() - self.free.len()
    }
    pub fn is_open(&self) -> bool {
        !matches!(self.phase, Phase::Terminated(_) | Phase::Closed(_))
    }
    pub fn is_ready(&self) -> bool {
        self.phase == Phase::Ready
    }
    pub fn has_transmit(&self) -> bool {
        self.term.is_some() || !self.out.is_empty()
    }

    fn terminate(&mut self, now: Instant, fatal: Fatal) {
        let mut header = [0; pdu::HEADER_BYTES_MAX];
        let seen = self.framer.header();
        header[..seen.len()].copy_from_slice(seen);
        self.term = Some((fatal, header, seen.len()));
        self.phase = Phase::Terminated(fatal);
        self.deadline = Some(now + self.config.term_timeout);
        self.out.clear();
    }

    fn shut(&mut self, reason: HostClose) {
        self.phase = Phase::Closed(reason);
        self.deadline = None;
        self.term = None;
        self.out.clear();
    }
}

fn cid(index: u16, generation: u16) -> Cid {
    Cid(index | generation << CID_INDEX_BITS)
}
