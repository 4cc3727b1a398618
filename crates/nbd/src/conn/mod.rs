//! The server's side of one NBD connection.
//!
//! The driver (a task that owns the socket and the buffers) does three things in a loop:
//!
//! 1. **Receive.** Ask [`Connection::next_input`]. `Bytes`: hand the next bytes of the stream to
//!    [`Connection::handle_bytes`], which may take fewer than it gets. `Payload`: put the next `len` bytes at
//!    `offset` of the buffer of `tag` and show how many to [`Connection::handle_payload`]. `Wait`: leave the
//!    socket alone until something was acted on, completed or sent. `Closed`: nothing is read any more.
//! 2. **Act.** Drain [`Connection::poll_action`]: look exports up, give buffers, execute parts, close.
//! 3. **Send.** Drain [`Connection::poll_transmit`]: headers are written where the driver wants them, payload
//!    is named by tag and sent from where it lies.
//!
//! A request longer than [`Limits::part_bytes_max`] is executed in parts, each with a tag of its own; the
//! client gets one answer when all have ended. A write part's buffer is the driver's again when it completes
//! it; a read part's stays untouched until the [`Payload`] that names it is on the wire, or until
//! `Action::Release`.
//!
//! Backpressure: at most [`Limits::parts_max`] parts are in flight, and `Action::Buffer` may be answered as
//! late as the driver likes; meanwhile the socket is not read.
//!
//! **Invariant:** no command is executed before negotiation has opened an export, and none outside of it.

mod negotiate;
mod receive;
mod slots;
mod transmit;

use std::collections::VecDeque;

use peristyle_base::{Duration, Instant};

use crate::wire::{self, Errno};
use negotiate::Negotiation;
pub use negotiate::{Export, Found, Lookup};
pub use slots::EXTENTS_MAX;
use slots::{SlotState, Slots};
use transmit::Sending;
pub use transmit::{Payload, TRANSMIT_BYTES_MIN, Transmit};

/// Everything of a connection that has a size.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Parts in flight.
    pub parts_max: usize,
    /// The longest part: what the layers below take, and do atomically, at once.
    pub part_bytes_max: u32,
    /// Data of one read or write. Protocol, "Block size constraints": 32 MiB is what clients take for granted.
    pub payload_bytes_max: u32,
    /// From accept to the end of negotiation.
    pub negotiation_timeout: Duration,
    /// Options that a client may send.
    pub options_max: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            parts_max: 128,
            part_bytes_max: 512 * 1024,
            payload_bytes_max: 32 * 1024 * 1024,
            negotiation_timeout: Duration::from_secs(10),
            options_max: 64,
        }
    }
}

impl Limits {
    fn check(&self) {
        assert!(self.part_bytes_max.is_power_of_two() && self.part_bytes_max >= 4096, "parts stay aligned");
        // One more than the quotient: a request may begin in the middle of a part.
        let parts = self.payload_bytes_max.div_ceil(self.part_bytes_max) as usize + 1;
        assert!(self.payload_bytes_max >= 4096 && parts <= self.parts_max, "the longest request must fit");
    }
}

/// A part in flight: a slot and its generation, so that a completion that comes late is refused.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Tag {
    index: u16,
    generation: u16,
}

impl Tag {
    /// Below [`Limits::parts_max`]: the driver may keep an array beside the machine.
    pub const fn index(self) -> usize {
        self.index as usize
    }
}

/// Where the next bytes of the stream belong.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Input {
    /// To the machine; it can use up to `max` of them, and more is no harm.
    Bytes { max: usize },
    /// To the buffer of a write.
    Payload { tag: Tag, offset: u32, len: u32 },
    /// Nowhere yet.
    Wait,
    /// Nowhere any more.
    Closed,
}

/// What a part asks for. Offsets and lengths are within the export and multiples of its block size.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Command {
    /// Fill a buffer of the driver's with `len` bytes.
    Read {
        offset: u64,
        len: u32,
    },
    /// The data is in the buffer that was given for this tag.
    Write {
        offset: u64,
        len: u32,
        fua: bool,
    },
    Flush,
    /// A hint: the client has no use for the data.
    Trim {
        offset: u64,
        len: u32,
        fua: bool,
    },
    /// `no_hole`: space stays allocated. `fast`: refuse with [`Errno::NotSup`] unless it is fast.
    WriteZeroes {
        offset: u64,
        len: u32,
        fua: bool,
        no_hole: bool,
        fast: bool,
    },
    /// Answer with [`Connection::complete_block_status`]. `one`: one extent will do.
    BlockStatus {
        offset: u64,
        len: u32,
        one: bool,
    },
}

/// A buffer for a write.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Buffer {
    pub tag: Tag,
    pub len: u32,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Action {
    /// Look an export up and answer with [`Connection::lookup_done`] or, for a list,
    /// [`Connection::list_done`]. One at a time.
    Lookup(Lookup),
    /// Give the part a buffer and say [`Connection::buffer_ready`].
    Buffer(Buffer),
    Execute {
        tag: Tag,
        command: Command,
    },
    /// A read part that was completed will not be sent, because another part failed: take its buffer back.
    Release {
        tag: Tag,
    },
    /// Send what was polled, close the socket, and drop what is executing. Comes once, as the last action.
    Close(CloseReason),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CloseReason {
    /// The client sent DISC or ABORT, and everything it was owed has been answered.
    Disconnected,
    /// The client closed its side.
    PeerClosed,
    /// Negotiation took too long.
    NegotiationTimeout,
    /// The client broke the protocol.
    Fatal(Fatal),
    /// The driver asked for it with [`Connection::close`].
    Asked,
}

/// How a client breaks the protocol so that the only answer is the end of the connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fatal {
    /// Client flags that we did not offer.
    ClientFlags,
    /// An option without IHAVEOPT: for one, a command before negotiation has ended.
    OptionMagic,
    /// An option longer than anybody needs.
    OptionTooLong,
    TooManyOptions,
    /// EXPORT_NAME, whose answer cannot say no, with a name that is no name or names nothing.
    ExportName,
    RequestMagic,
    /// More data than [`Limits::payload_bytes_max`].
    WriteTooLong,
}

/// A request as it came.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Request {
    pub flags: u16,
    pub kind: u16,
    pub cookie: u64,
    pub offset: u64,
    pub length: u32,
}

/// A piece of the export and its [`wire::allocation`] flags.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Extent {
    pub len: u32,
    pub flags: u32,
}

/// A completion for a part that is not executing (any more). The driver drops it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StaleTag;

/// Counted, never logged.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Stats {
    pub requests: u64,
    pub parts: u64,
    /// Requests answered here with an error, without reaching the layers above.
    pub refused: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    Negotiating,
    Live,
    /// Nothing is read any more; what is in flight is answered, then the connection ends.
    Draining(CloseReason),
    Closed(CloseReason),
}

/// What the next bytes are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    ClientFlags,
    OptionHeader,
    OptionData,
    /// An option's data that nobody wants; the reply follows it.
    OptionSkip {
        left: u32,
        reply: u32,
    },
    /// The driver's answer to a lookup.
    LookupWait,
    /// Also while a whole request waits for slots.
    Request,
    /// Data of the part at `index`, of which `received` bytes are there.
    Payload {
        index: u16,
        received: u32,
    },
    /// Data of a refused write.
    Skip {
        head: u16,
        left: u32,
    },
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Pending {
    Lookup,
    Buffer(u16),
    Execute(u16),
    Release(Tag),
}

pub struct Connection {
    limits: Limits,
    phase: Phase,
    state: State,
    deadline: Option<Instant>,
    header: [u8; wire::REQUEST_BYTES],
    filled: usize,
    /// Gone once an export is open.
    negotiation: Option<Box<Negotiation>>,
    /// Bytes of negotiation that are to be sent.
    talk: VecDeque<u8>,
    export: Option<Export>,
    structured: bool,
    /// `base:allocation` was selected.
    block_status: bool,
    slots: Slots,
    actions: VecDeque<Pending>,
    close_told: bool,
    /// Heads of requests that are to be answered.
    out: VecDeque<u16>,
    /// A read whose answer has begun; it goes on before any other.
    sending: Option<Sending>,
    stats: Stats,
}

impl Connection {
    /// A connection that was just accepted. The greeting is there to be sent.
    pub fn new(now: Instant, limits: Limits) -> Connection {
        limits.check();
        let mut connection = Connection {
            limits,
            phase: Phase::Negotiating,
            state: State::ClientFlags,
            deadline: Some(now + limits.negotiation_timeout),
            header: [0; wire::REQUEST_BYTES],
            filled: 0,
            negotiation: Some(Box::default()),
            talk: VecDeque::new(),
            export: None,
            structured: false,
            block_status: false,
            // A client that never opens an export costs next to nothing.
            slots: Slots::none(),
            actions: VecDeque::new(),
            close_told: false,
            out: VecDeque::new(),
            sending: None,
            stats: Stats::default(),
        };
        connection.greet();
        connection
    }

    /// Everything that requests need, once.
    fn reserve(&mut self) {
        let parts = self.limits.parts_max;
        self.slots = Slots::new(parts);
        // Each part stands at most twice among the actions (Buffer, then Execute or Release).
        self.actions.reserve(2 * parts);
        self.out.reserve(parts);
    }

    pub fn next_input(&self) -> Input {
        if !self.is_open() {
            return Input::Closed;
        }
        if let State::Payload { index, received } = self.state {
            let slot = self.slots.get(index);
            return match slot.state {
                SlotState::Receiving => {
                    Input::Payload { tag: self.slots.tag(index), offset: received, len: slot.len - received }
                }
                _ => Input::Wait,
            };
        }
        match self.wanted() {
            0 => Input::Wait,
            max => Input::Bytes { max },
        }
    }

    /// Takes bytes from the stream and says how many: fewer than it gets where data belongs into a buffer, or
    /// where it has to wait. An error is told once; the connection is then closed.
    pub fn handle_bytes(&mut self, _now: Instant, input: &[u8]) -> Result<usize, Fatal> {
        let mut rest = input;
        self.drive(&mut rest)?;
        Ok(if self.is_open() { input.len() - rest.len() } else { input.len() })
    }

    /// The driver has put `len` bytes where [`Self::next_input`] said (the whole or a first part of it).
    /// # Panics — when that is more than was wanted.
    pub fn handle_payload(&mut self, _now: Instant, len: u32) {
        let (true, State::Payload { index, received }) = (self.is_open(), self.state) else { return };
        let slot = self.slots.get_mut(index);
        assert!(
            slot.state == SlotState::Receiving && len <= slot.len - received,
            "more payload than was wanted"
        );
        self.state = State::Payload { index, received: received + len };
        if received + len == slot.len {
            self.part_received(index);
        }
    }

    /// The stream has ended.
    pub fn handle_eof(&mut self, _now: Instant) {
        match self.phase {
            Phase::Draining(reason) => self.shut(reason),
            Phase::Closed(_) => {}
            _ => self.shut(CloseReason::PeerClosed),
        }
    }

    /// The driver's own wish: the node stops, the export is gone.
    pub fn close(&mut self) {
        if !matches!(self.phase, Phase::Closed(_)) {
            self.shut(CloseReason::Asked);
        }
    }

    pub fn poll_timeout(&self) -> Option<Instant> {
        self.deadline
    }
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.deadline.is_some_and(|deadline| now >= deadline) {
            self.shut(CloseReason::NegotiationTimeout);
        }
    }

    /// The part has its buffer: its data may come.
    pub fn buffer_ready(&mut self, tag: Tag) -> Result<(), StaleTag> {
        let index = self.slots.find(tag).ok_or(StaleTag)?;
        let slot = self.slots.get(index);
        if slot.state != SlotState::BufferWait || !self.is_open() {
            return Err(StaleTag);
        }
        self.slots.get_mut(index).state = SlotState::Receiving;
        Ok(())
    }

    pub fn poll_action(&mut self) -> Option<Action> {
        if let Phase::Closed(reason) = self.phase {
            return (!std::mem::replace(&mut self.close_told, true)).then_some(Action::Close(reason));
        }
        Some(match self.actions.pop_front()? {
            Pending::Lookup => Action::Lookup(self.lookup()),
            Pending::Buffer(index) => {
                Action::Buffer(Buffer { tag: self.slots.tag(index), len: self.slots.get(index).len })
            }
            Pending::Execute(index) => {
                Action::Execute { tag: self.slots.tag(index), command: self.command(index) }
            }
            Pending::Release(tag) => Action::Release { tag },
        })
    }

    fn command(&self, index: u16) -> Command {
        let (offset, len, head) =
            (self.slots.get(index).offset, self.slots.get(index).len, self.slots.get(index).head);
        let Request { kind, flags, .. } = self.slots.get(head).request;
        let has = |flag| flags & flag != 0;
        let fua = has(wire::cmd_flags::FUA);
        match kind {
            wire::cmd::READ => Command::Read { offset, len },
            wire::cmd::WRITE => Command::Write { offset, len, fua },
            wire::cmd::FLUSH => Command::Flush,
            wire::cmd::TRIM => Command::Trim { offset, len, fua },
            wire::cmd::WRITE_ZEROES => {
                let (no_hole, fast) = (has(wire::cmd_flags::NO_HOLE), has(wire::cmd_flags::FAST_ZERO));
                Command::WriteZeroes { offset, len, fua, no_hole, fast }
            }
            wire::cmd::BLOCK_STATUS => {
                Command::BlockStatus { offset, len, one: has(wire::cmd_flags::REQ_ONE) }
            }
            _ => unreachable!("only known requests are admitted"),
        }
    }

    /// A part ends. A read part that ends well has its data in the driver's buffer.
    pub fn complete(&mut self, tag: Tag, result: Result<(), Errno>) -> Result<(), StaleTag> {
        let index = self.executing(tag)?;
        if let Err(errno) = result {
            self.slots.get_mut(index).failed = true;
            self.slots.head_of(index).error.get_or_insert(errno);
        }
        self.part_ended(index);
        Ok(())
    }

    /// A BLOCK_STATUS ends well: what lies from its offset on, in order. More extents than we tell, and what
    /// lies behind the range, are cut off.
    /// # Panics — when `extents` is empty or holds an empty one: the protocol has no words for it.
    pub fn complete_block_status(&mut self, tag: Tag, extents: &[Extent]) -> Result<(), StaleTag> {
        let index = self.executing(tag)?;
        let slot = self.slots.head_of(index);
        assert!(slot.request.kind == wire::cmd::BLOCK_STATUS, "not a BLOCK_STATUS");
        assert!(!extents.is_empty() && extents.iter().all(|e| e.len > 0), "extents cover something");
        let one = slot.request.flags & wire::cmd_flags::REQ_ONE != 0;
        let (mut left, mut count) = (slot.request.length, 0);
        for extent in extents.iter().take(if one { 1 } else { EXTENTS_MAX }) {
            if left == 0 {
                break;
            }
            slot.extents[count] = Extent { len: extent.len.min(left), ..*extent };
            left -= slot.extents[count].len;
            count += 1;
        }
        slot.extent_count = count as u8;
        self.part_ended(index);
        Ok(())
    }

    fn executing(&self, tag: Tag) -> Result<u16, StaleTag> {
        let index = self.slots.find(tag).ok_or(StaleTag)?;
        let executing = self.slots.get(index).state == SlotState::Executing;
        if executing && !matches!(self.phase, Phase::Closed(_)) { Ok(index) } else { Err(StaleTag) }
    }

    fn part_ended(&mut self, index: u16) {
        self.slots.get_mut(index).state = SlotState::Done;
        let head = self.slots.get(index).head;
        let slot = self.slots.get_mut(head);
        slot.parts_left -= 1;
        if slot.parts_left == 0 {
            self.answer(head);
        }
    }

    /// Parts between admission and the end of their request's answer.
    pub fn in_flight(&self) -> usize {
        self.slots.in_use()
    }
    pub fn stats(&self) -> Stats {
        self.stats
    }
    /// Bytes are still taken from the stream.
    pub fn is_open(&self) -> bool {
        matches!(self.phase, Phase::Negotiating | Phase::Live)
    }
    /// The export that is being served, once negotiation has ended.
    pub fn export(&self) -> Option<&Export> {
        self.export.as_ref()
    }

    fn shut(&mut self, reason: CloseReason) {
        self.phase = Phase::Closed(reason);
        self.deadline = None;
        self.negotiation = None;
        self.actions.clear();
        self.out.clear();
        self.talk.clear();
        self.sending = None;
    }

    /// Reads no more, answers what is in flight, then closes.
    fn drain(&mut self, reason: CloseReason) {
        self.phase = Phase::Draining(reason);
        self.deadline = None;
        self.finish_draining();
    }

    fn finish_draining(&mut self) {
        if let Phase::Draining(reason) = self.phase
            && !self.has_transmit()
            && self.slots.in_use() == 0
        {
            self.shut(reason);
        }
    }
}
