//! What leaves: words of negotiation first, then answers in the order in which requests ended.

use super::slots::EXTENTS_MAX;
use super::{Connection, Pending, Request, Tag};
use crate::wire::{self, Errno, Put, chunk, cmd, cmd_flags};

/// Room that [`Connection::poll_transmit`] needs: a BLOCK_STATUS answer is the longest header.
pub const TRANSMIT_BYTES_MIN: usize = wire::CHUNK_HEADER_BYTES + 4 + 8 * EXTENTS_MAX;

/// `header` bytes were written (0 where an answer goes on); then the payload, if any.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Transmit {
    pub header: usize,
    pub payload: Option<Payload>,
}

/// The first `len` bytes of a read part's buffer. The part is over: its tag is given to another one at once,
/// and the buffer is free when these bytes are on the wire.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Payload {
    pub tag: Tag,
    pub len: u32,
}

/// A read of several parts whose answer has begun.
#[derive(Clone, Copy)]
pub(super) struct Sending {
    next: u16,
    request: Request,
}

impl Connection {
    /// Writes what is to be sent next to the front of `out`. Call it again with the rest of a larger buffer to
    /// send several answers at once.
    /// # Panics — when `out` is shorter than [`TRANSMIT_BYTES_MIN`].
    pub fn poll_transmit(&mut self, out: &mut [u8]) -> Option<Transmit> {
        assert!(out.len() >= TRANSMIT_BYTES_MIN, "room for any header");
        if !self.talk.is_empty() {
            return Some(self.send_talk(out));
        }
        if let Some(Sending { next, request }) = self.sending {
            let header = self.part_header(next, &request, out);
            return Some(self.send_part(next, request, header));
        }
        let head = self.out.pop_front()?;
        let slot = self.slots.get(head);
        let (request, error) = (slot.request, slot.error);
        if request.kind == cmd::READ && error.is_none() {
            let header = self.first_header(head, &request, out);
            return Some(self.send_part(head, request, header));
        }
        let header = match error {
            Some(errno) if self.structured && matches!(request.kind, cmd::READ | cmd::BLOCK_STATUS) => {
                chunk_header(out, chunk::DONE, chunk::ERROR, &request, 6).u32(errno as u32).u16(0).done()
            }
            None if request.kind == cmd::BLOCK_STATUS => self.block_status_header(head, &request, out),
            _ => simple_header(out, error, &request).done(),
        };
        self.release_all(head, request.kind == cmd::READ);
        Some(Transmit { header, payload: None })
    }

    /// Something is to be sent.
    pub fn has_transmit(&self) -> bool {
        !self.talk.is_empty() || self.sending.is_some() || !self.out.is_empty()
    }

    /// All parts of the request have ended.
    pub(super) fn answer(&mut self, head: u16) {
        self.out.push_back(head);
    }

    fn send_talk(&mut self, out: &mut [u8]) -> Transmit {
        let header = self.talk.len().min(out.len());
        for (to, from) in out.iter_mut().zip(self.talk.drain(..header)) {
            *to = from;
        }
        if self.talk.is_empty() && self.negotiation.is_none() {
            self.talk.shrink_to_fit();
        }
        self.finish_draining();
        Transmit { header, payload: None }
    }

    /// One header for all parts, or, in structured replies that may be fragmented, for the first.
    fn first_header(&self, head: u16, request: &Request, out: &mut [u8]) -> usize {
        match (self.structured, request.flags & cmd_flags::DF != 0) {
            (false, _) => simple_header(out, None, request).done(),
            (true, false) => self.part_header(head, request, out),
            (true, true) => {
                chunk_header(out, chunk::DONE, chunk::OFFSET_DATA, request, u64::from(request.length) + 8)
                    .u64(request.offset)
                    .done()
            }
        }
    }

    fn part_header(&self, index: u16, request: &Request, out: &mut [u8]) -> usize {
        let slot = self.slots.get(index);
        if !self.structured || request.flags & cmd_flags::DF != 0 {
            return 0; // the first header counts these bytes
        }
        let done = if slot.next.is_none() { chunk::DONE } else { 0 };
        chunk_header(out, done, chunk::OFFSET_DATA, request, u64::from(slot.len) + 8).u64(slot.offset).done()
    }

    fn send_part(&mut self, index: u16, request: Request, header: usize) -> Transmit {
        let payload = Payload { tag: self.slots.tag(index), len: self.slots.get(index).len };
        self.sending = self.slots.release(index).map(|next| Sending { next, request });
        self.slots_freed();
        Transmit { header, payload: Some(payload) }
    }

    fn block_status_header(&self, head: u16, request: &Request, out: &mut [u8]) -> usize {
        let slot = self.slots.get(head);
        let extents = &slot.extents[..usize::from(slot.extent_count)];
        let length = 4 + 8 * extents.len() as u64;
        let put = chunk_header(out, chunk::DONE, chunk::BLOCK_STATUS, request, length)
            .u32(wire::BASE_ALLOCATION_ID);
        extents.iter().fold(put, |put, extent| put.u32(extent.len).u32(extent.flags)).done()
    }

    /// The request is over. Parts of a failed read that went well have buffers that nobody will send.
    fn release_all(&mut self, head: u16, read: bool) {
        let mut at = Some(head);
        while let Some(index) = at {
            if read && !self.slots.get(index).failed {
                self.actions.push_back(Pending::Release(self.slots.tag(index)));
            }
            at = self.slots.release(index);
        }
        self.slots_freed();
    }

    fn slots_freed(&mut self) {
        self.admit();
        self.finish_draining();
    }
}

fn simple_header<'a>(out: &'a mut [u8], error: Option<Errno>, request: &Request) -> Put<'a> {
    let error = error.map_or(0, |errno| errno as u32);
    Put::new(out).u32(wire::SIMPLE_REPLY_MAGIC).u32(error).u64(request.cookie)
}

/// The caller's length is at most that of the longest payload and a few bytes.
fn chunk_header<'a>(out: &'a mut [u8], flags: u16, kind: u16, request: &Request, length: u64) -> Put<'a> {
    Put::new(out)
        .u32(wire::STRUCTURED_REPLY_MAGIC)
        .u16(flags)
        .u16(kind)
        .u64(request.cookie)
        .u32(u32::try_from(length).expect("payload is bounded by the limits"))
}
