//! What arrives, byte by byte; every field of a request is checked here before anything depends on it.

use super::slots::SlotState;
use super::{CloseReason, Connection, Fatal, Pending, Phase, Request, State};
use crate::wire::{self, Errno, cmd, cmd_flags};

impl Connection {
    /// The next thing that arrives.
    pub(super) fn expect(&mut self, state: State) {
        self.state = state;
        self.filled = 0;
    }

    /// Bytes of the stream that [`Self::drive`] would take now.
    pub(super) fn wanted(&self) -> usize {
        match self.state {
            State::ClientFlags => wire::CLIENT_FLAGS_BYTES - self.filled,
            // An option waits until the answer to the last one has left: a client that does not read is not
            // read either.
            State::OptionHeader if !self.talk.is_empty() => 0,
            State::OptionHeader => wire::OPTION_HEADER_BYTES - self.filled,
            State::OptionData => self.negotiation.as_ref().map_or(0, |n| n.left as usize),
            State::OptionSkip { left, .. } => left as usize,
            State::Request => wire::REQUEST_BYTES - self.filled,
            State::Skip { left, .. } => left as usize,
            State::LookupWait | State::Payload { .. } => 0,
        }
    }

    /// Goes on until the input is used up or something has to be waited for.
    pub(super) fn drive(&mut self, input: &mut &[u8]) -> Result<(), Fatal> {
        while self.is_open() {
            let wanted = self.wanted();
            let data_is_over = matches!(
                self.state,
                State::OptionData | State::OptionSkip { left: 0, .. } | State::Skip { left: 0, .. }
            );
            if wanted == 0 && !data_is_over {
                return Ok(());
            }
            if wanted > 0 && input.is_empty() {
                return Ok(());
            }
            let (taken, rest) = input.split_at(wanted.min(input.len()));
            *input = rest;
            if let Err(fatal) = self.take(taken, taken.len() == wanted) {
                // What was said before, and what is in flight, has no claim to an answer; only the answer to
                // this very option has.
                match fatal {
                    Fatal::OptionTooLong => self.drain(CloseReason::Fatal(fatal)),
                    _ => self.shut(CloseReason::Fatal(fatal)),
                }
                return Err(fatal);
            }
        }
        Ok(())
    }

    /// Takes bytes of what is expected; `whole`: they complete it.
    fn take(&mut self, bytes: &[u8], whole: bool) -> Result<(), Fatal> {
        match &mut self.state {
            State::ClientFlags | State::OptionHeader | State::Request => {
                self.header[self.filled..self.filled + bytes.len()].copy_from_slice(bytes);
                self.filled += bytes.len();
            }
            State::OptionData => {
                let negotiation = self.negotiation.as_mut().expect("options come before the export");
                negotiation.data.extend_from_slice(bytes);
                negotiation.left -= bytes.len() as u32;
            }
            State::OptionSkip { left, .. } | State::Skip { left, .. } => *left -= bytes.len() as u32,
            State::LookupWait | State::Payload { .. } => unreachable!("nothing is wanted then"),
        }
        if !whole {
            return Ok(());
        }
        match self.state {
            State::ClientFlags => self.client_flags()?,
            State::OptionHeader => self.option_header()?,
            State::OptionData => self.option()?,
            State::OptionSkip { reply, .. } => self.option_skipped(reply),
            State::Request => self.request()?,
            State::Skip { head, .. } => {
                self.answer(head);
                self.expect(State::Request);
            }
            State::LookupWait | State::Payload { .. } => unreachable!("nothing is wanted then"),
        }
        Ok(())
    }

    fn parse_request(&self) -> Request {
        Request {
            flags: wire::get_u16(&self.header, 4),
            kind: wire::get_u16(&self.header, 6),
            cookie: wire::get_u64(&self.header, 8),
            offset: wire::get_u64(&self.header, 16),
            length: wire::get_u32(&self.header, 24),
        }
    }

    /// A whole request header. What cannot be answered ends the connection here.
    fn request(&mut self) -> Result<(), Fatal> {
        if wire::get_u32(&self.header, 0) != wire::REQUEST_MAGIC {
            return Err(Fatal::RequestMagic);
        }
        let request = self.parse_request();
        if request.kind == cmd::WRITE && request.length > self.limits.payload_bytes_max {
            return Err(Fatal::WriteTooLong);
        }
        self.stats.requests += 1;
        self.admit();
        Ok(())
    }

    /// Starts the request that waits in the header, if there is one and there are slots for it.
    pub(super) fn admit(&mut self) {
        let waits = self.state == State::Request && self.filled == wire::REQUEST_BYTES;
        if !waits || self.phase != Phase::Live {
            return;
        }
        let request = self.parse_request();
        if request.kind == cmd::DISC {
            // Its other fields, and what comes behind it, mean nothing.
            return self.drain(CloseReason::Disconnected);
        }
        let refused = self.refusal(&request);
        let has_parts = refused.is_none() && matches!(request.kind, cmd::READ | cmd::WRITE);
        let part_bytes = has_parts.then_some(self.limits.part_bytes_max);
        let Some(head) = self.slots.take(request, part_bytes) else { return };
        match (refused, request.kind) {
            (Some(errno), _) => self.refuse(head, errno),
            (None, cmd::WRITE) => self.ask_buffer(head),
            _ => {
                let mut next = Some(head);
                while let Some(index) = next {
                    self.execute(index);
                    next = self.slots.get(index).next;
                }
                self.expect(State::Request);
            }
        }
    }

    fn refuse(&mut self, head: u16, errno: Errno) {
        self.stats.refused += 1;
        let slot = self.slots.get_mut(head);
        (slot.state, slot.error, slot.failed, slot.parts_left) = (SlotState::Done, Some(errno), true, 0);
        let (kind, length) = (slot.request.kind, slot.request.length);
        if kind == cmd::WRITE && length > 0 {
            return self.expect(State::Skip { head, left: length });
        }
        self.answer(head);
        self.expect(State::Request);
    }

    fn ask_buffer(&mut self, index: u16) {
        self.slots.get_mut(index).state = SlotState::BufferWait;
        self.actions.push_back(Pending::Buffer(index));
        self.expect(State::Payload { index, received: 0 });
    }

    fn execute(&mut self, index: u16) {
        self.stats.parts += 1;
        self.slots.get_mut(index).state = SlotState::Executing;
        self.actions.push_back(Pending::Execute(index));
    }

    /// A write part has all its data.
    pub(super) fn part_received(&mut self, index: u16) {
        self.execute(index);
        match self.slots.get(index).next {
            Some(next) => self.ask_buffer(next),
            None => self.expect(State::Request),
        }
    }

    /// Why a request cannot be done. Protocol, "Command flags", "Request types" and "Error values".
    fn refusal(&self, request: &Request) -> Option<Errno> {
        let Request { flags, kind, offset, length, .. } = *request;
        let Some(export) = self.export else { return Some(Errno::Inval) };
        let known = match kind {
            cmd::READ if self.structured => cmd_flags::DF,
            cmd::READ | cmd::WRITE | cmd::FLUSH | cmd::TRIM => 0,
            cmd::WRITE_ZEROES => cmd_flags::NO_HOLE | cmd_flags::FAST_ZERO,
            cmd::BLOCK_STATUS if self.block_status => cmd_flags::REQ_ONE,
            // CACHE, RESIZE and what is not known were not offered, BLOCK_STATUS was not selected.
            _ => return Some(Errno::Inval),
        };
        // FUA is accepted with every command, since we offer it.
        if flags & !(known | cmd_flags::FUA) != 0 {
            return Some(Errno::Inval);
        }
        if kind == cmd::FLUSH {
            return (offset != 0 || length != 0).then_some(Errno::Inval);
        }
        let writes = matches!(kind, cmd::WRITE | cmd::WRITE_ZEROES | cmd::TRIM);
        if writes && export.read_only {
            return Some(Errno::Perm);
        }
        if length == 0 {
            return Some(Errno::Inval);
        }
        let end = offset.checked_add(u64::from(length));
        if end.is_none_or(|end| end > export.bytes) {
            let full = matches!(kind, cmd::WRITE | cmd::WRITE_ZEROES);
            return Some(if full { Errno::NoSpc } else { Errno::Inval });
        }
        let block = u64::from(export.block_bytes);
        if !offset.is_multiple_of(block) || !u64::from(length).is_multiple_of(block) {
            return Some(Errno::Inval);
        }
        (kind == cmd::READ && length > self.limits.payload_bytes_max).then_some(Errno::Inval)
    }
}
