//! What leaves: R2Ts, data, responses, in the order in which they became ready.

use super::{Completion, Phase, Qpair, SlotState};
use crate::tag::Tag;
use crate::wire::pdu::{self, Data, Fatal, Format, flags};
use crate::wire::{Cqe, Status, opcode};

/// Room that [`Qpair::poll_transmit`] needs for one header: a C2HTermReq is the longest.
pub const TRANSMIT_HEADER_BYTES: usize = pdu::TERM_PLEN_MAX as usize;

/// SQHD of the Connect response when SQ flow control is off. Base 6.3.
const SQHD_DISABLED: u16 = 0xffff;

/// One PDU: `header` bytes were written; then the payload, if any; then, if `digest`, four bytes of
/// [`crate::wire::digest::data_digest`] over the payload.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Transmit {
    pub header: usize,
    pub payload: Option<Payload>,
    pub digest: bool,
    /// The command is over with this PDU: its buffer is free once these bytes are on the wire.
    pub done: Option<Tag>,
}

/// Bytes of a command's buffer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Payload {
    pub tag: Tag,
    pub offset: u32,
    pub len: u32,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Out {
    IcResp,
    R2t(u16),
    /// What is left of the data, then the response unless SUCCESS stood for it.
    Answer(u16),
}

/// A termination request with the header that caused it.
pub(super) struct Term {
    fatal: Fatal,
    header: [u8; pdu::TERM_DATA_BYTES_MAX],
    len: usize,
}

impl Term {
    pub fn new(fatal: Fatal, cause: &[u8]) -> Term {
        let mut header = [0; pdu::TERM_DATA_BYTES_MAX];
        let len = cause.len().min(header.len());
        header[..len].copy_from_slice(&cause[..len]);
        Term { fatal, header, len }
    }
}

impl Qpair {
    /// Writes the next PDU's header to the front of `out`. Call it again with the rest of a larger buffer
    /// to send several PDUs at once.
    /// # Panics — when `out` is shorter than [`TRANSMIT_HEADER_BYTES`].
    pub fn poll_transmit(&mut self, out: &mut [u8]) -> Option<Transmit> {
        assert!(out.len() >= TRANSMIT_HEADER_BYTES, "room for any header");
        if let Some(term) = self.term.take() {
            let header = pdu::encode_term(pdu::kind::C2H_TERM_REQ, term.fatal, &term.header[..term.len], out);
            return Some(Transmit { header, payload: None, digest: false, done: None });
        }
        match *self.out.front()? {
            Out::IcResp => {
                self.out.pop_front();
                Some(self.send_ic_resp(out))
            }
            Out::R2t(index) => {
                self.out.pop_front();
                Some(self.send_r2t(index, out))
            }
            Out::Answer(index) => {
                let slot = self.slots.get(index);
                if slot.sent < slot.send_len {
                    Some(self.send_data(index, out))
                } else {
                    Some(self.send_response(index, out))
                }
            }
        }
    }

    /// Something is to be sent.
    pub fn has_transmit(&self) -> bool {
        self.term.is_some() || !self.out.is_empty()
    }

    pub(super) fn respond(&mut self, index: u16, completion: Completion) {
        let slot = self.slots.get_mut(index);
        slot.completion = completion;
        slot.state = SlotState::Responding;
        // A second Connect that is refused says nothing about the first, which still waits for its answer.
        if self.connect_pending == Some(index) {
            self.connect_pending = None;
        }
        if self.is_open() {
            self.out.push_back(Out::Answer(index));
        } else {
            self.slots.release(index);
        }
    }

    /// TCP 3.6.2.2. The digests are exactly those the host asked for and we offer; CPDA is 0.
    fn send_ic_resp(&mut self, out: &mut [u8]) -> Transmit {
        let dgst = if self.format.header_digest { pdu::dgst::HEADER } else { 0 }
            | if self.format.data_digest { pdu::dgst::DATA } else { 0 };
        let ic = pdu::Ic { pfv: pdu::PFV_1_0, alignment: 0, dgst, max: self.limits.maxh2cdata_bytes };
        let header = ic.encode(pdu::kind::IC_RESP, out);
        Transmit { header, payload: None, digest: false, done: None }
    }

    /// One R2T per command, for all its data: within any MAXR2T. TCP 3.3.2.2, 3.6.2.10.
    fn send_r2t(&mut self, index: u16, out: &mut [u8]) -> Transmit {
        let ttag = self.slots.new_ttag(index);
        let slot = self.slots.get_mut(index);
        slot.ttag = ttag;
        slot.state = SlotState::Receiving;
        let data = Data { cccid: slot.sqe.cid().0, ttag, offset: 0, length: slot.data_len };
        self.stats.r2ts += 1;
        Transmit { header: self.format.r2t(out, &data), payload: None, digest: false, done: None }
    }

    fn send_data(&mut self, index: u16, out: &mut [u8]) -> Transmit {
        let success = !self.flow_control && self.phase == Phase::Live;
        let tag = self.slots.tag(index);
        let slot = self.slots.get_mut(index);
        let (offset, left) = (slot.sent, slot.send_len - slot.sent);
        let len = left.min(self.limits.c2h_bytes_max);
        slot.sent += len;
        let last = len == left;
        // SUCCESS stands for a response with nothing to say: status and dwords are 0, and no SQHD is
        // needed because flow control is off. TCP 3.3.2.1.
        let success = last && success && slot.completion == Completion::from(Status::SUCCESS);
        let extra = if last { flags::LAST } else { 0 } | if success { flags::SUCCESS } else { 0 };
        let data = Data { cccid: slot.sqe.cid().0, ttag: 0, offset, length: len };
        let format = Format { alignment: self.host_alignment, ..self.format };
        let header = format.c2h_data(out, &data, extra);
        if success {
            self.finish(index);
        }
        Transmit {
            header,
            payload: Some(Payload { tag, offset, len }),
            digest: self.format.data_digest,
            done: success.then_some(tag),
        }
    }

    fn send_response(&mut self, index: u16, out: &mut [u8]) -> Transmit {
        let tag = self.slots.tag(index);
        let slot = self.slots.get(index);
        let connect = slot.sqe.is_fabrics() && slot.sqe.fctype() == opcode::fctype::CONNECT;
        let (cid, completion) = (slot.sqe.cid(), slot.completion);
        let sqhd = self.advance_sq_head(connect);
        let cqe = Cqe::new(cid, completion.status, completion.dw0, completion.dw1, sqhd);
        let header = self.format.capsule_resp(out, &cqe);
        self.finish(index);
        Transmit { header, payload: None, digest: false, done: Some(tag) }
    }

    /// Each response frees one entry of the submission queue. Base 6.3; the field is reserved when flow
    /// control is off.
    fn advance_sq_head(&mut self, connect: bool) -> u16 {
        if self.entries == 0 {
            return 0;
        }
        if !self.flow_control {
            return if connect { SQHD_DISABLED } else { 0 };
        }
        self.sq_head = ((u32::from(self.sq_head) + 1) % self.entries) as u16;
        self.sq_head
    }

    fn finish(&mut self, index: u16) {
        self.out.pop_front();
        self.slots.release(index);
    }
}
