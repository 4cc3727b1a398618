//! What arrives: every field is checked here, lowest offset first, before anything depends on it.

use peristyle_base::Instant;

use super::{Completion, Current, Pending, Phase, Qpair, SlotState, transmit};
use crate::framing::{Body, Event};
use crate::wire::digest::DIGEST_BYTES;
use crate::wire::opcode::{Transfer, fctype};
use crate::wire::pdu::{self, Common, Data, Fatal, Ic, flags, hlen, kind, offset};
use crate::wire::{SglKind, Sqe, Status};

/// Where a command's data comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Source {
    /// No data, or data to the host of at most this length.
    Nowhere(u32),
    Capsule(u32),
    /// By R2T.
    Host(u32),
}

impl Qpair {
    /// Feeds the framer until the input is used up, data comes next, or the connection is over.
    pub(super) fn drive(&mut self, now: Instant, input: &mut &[u8]) -> Result<(), Fatal> {
        loop {
            let step = match self.framer.feed(input) {
                Event::More | Event::Data => return Ok(()),
                Event::Common => self.common(),
                Event::Header => self.header(),
                Event::HeaderDigestWrong { received } => Err(Fatal::digest(received)),
                Event::End { digest_right } => self.end(digest_right),
            };
            if let Err(fatal) = step {
                self.terminate(now, fatal);
                return Err(fatal);
            }
            if !self.is_open() {
                return Ok(());
            }
        }
    }

    /// The eight common bytes. What they say is bounded before any more is read. TCP 3.6.1.
    fn common(&mut self) -> Result<(), Fatal> {
        let common = Common::decode(self.framer.header());
        let expected = match common.kind {
            kind::IC_REQ => hlen::IC,
            kind::H2C_TERM_REQ => return self.term_common(common),
            kind::CAPSULE_CMD => hlen::CAPSULE_CMD,
            kind::H2C_DATA => hlen::DATA,
            // A controller's PDUs from a host, and reserved types. TCP 3.3 figure 10.
            _ => return Err(Fatal::field(offset::TYPE)),
        };
        // ICReq comes first and only once. TCP 3.1.
        if (common.kind == kind::IC_REQ) != (self.phase == Phase::IcWait) {
            return Err(Fatal::SEQUENCE);
        }
        if common.kind == kind::IC_REQ {
            if usize::from(common.hlen) != expected {
                return Err(Fatal::field(offset::HLEN));
            }
            if common.plen as usize != expected {
                return Err(Fatal::field(offset::PLEN));
            }
            self.framer.want_header(hlen::IC, false);
            return Ok(());
        }
        self.check_common(common, expected)?;
        self.framer.want_header(expected, self.format.header_digest);
        Ok(())
    }

    /// CapsuleCmd and H2CData. TCP 3.3.1.1 (digest flags), figures 26 and 27.
    fn check_common(&self, common: Common, expected: usize) -> Result<(), Fatal> {
        let start = (expected + self.format.hdgst_bytes()) as u32;
        let has_data = common.plen > start;
        if common.has(flags::HDGST) != self.format.header_digest {
            return Err(Fatal::field(offset::FLAGS));
        }
        let data_digest = self.format.data_digest && has_data;
        if common.has(flags::DDGST) != data_digest && (has_data || !self.format.data_digest) {
            return Err(Fatal::field(offset::FLAGS));
        }
        if usize::from(common.hlen) != expected {
            return Err(Fatal::field(offset::HLEN));
        }
        let pdo = u32::from(common.pdo);
        if has_data
            && (pdo < start || pdo > common.plen || !pdo.is_multiple_of(self.format.alignment_bytes() as u32))
        {
            return Err(Fatal::field(offset::PDO));
        }
        if !has_data && pdo > common.plen {
            return Err(Fatal::field(offset::PDO));
        }
        if common.plen < start {
            return Err(Fatal::field(offset::PLEN));
        }
        if common.kind == kind::CAPSULE_CMD && has_data {
            let trailer = if data_digest { DIGEST_BYTES as u32 } else { 0 };
            // Before any buffer is asked for: a capsule is as long as we said it may be. TCP 3.3.1.
            let data = (common.plen - pdo).saturating_sub(trailer);
            if data == 0 || data > self.in_capsule_bytes_max() {
                return Err(Fatal::field(offset::PLEN));
            }
        }
        Ok(())
    }

    fn in_capsule_bytes_max(&self) -> u32 {
        if self.qid == 0 { pdu::ADMIN_IN_CAPSULE_BYTES } else { self.limits.io_in_capsule_bytes }
    }

    /// H2CTermReq. A malformed one is ignored and the connection closed all the same. TCP 3.5.
    fn term_common(&mut self, common: Common) -> Result<(), Fatal> {
        let sound = usize::from(common.hlen) == hlen::TERM_REQ
            && (hlen::TERM_REQ as u32..=pdu::TERM_PLEN_MAX).contains(&common.plen);
        if sound {
            self.framer.want_header(hlen::TERM_REQ, false);
        } else {
            self.shut(super::CloseReason::PeerTerminated { fes: 0, fei: 0 });
        }
        Ok(())
    }

    fn header(&mut self) -> Result<(), Fatal> {
        let common = Common::decode(self.framer.header());
        match common.kind {
            kind::IC_REQ => self.ic_req(),
            kind::CAPSULE_CMD => self.capsule(common),
            kind::H2C_DATA => self.h2c_data(common),
            _ => {
                let (fes, fei) = pdu::decode_term(self.framer.header());
                self.shut(super::CloseReason::PeerTerminated { fes, fei });
                Ok(())
            }
        }
    }

    /// TCP 3.6.2.1. Reserved bits are ignored; MAXR2T needs no memory, since one R2T per command is enough.
    fn ic_req(&mut self) -> Result<(), Fatal> {
        let ic = Ic::decode(self.framer.header());
        if ic.pfv != pdu::PFV_1_0 {
            return Err(Fatal::field(offset::PFV));
        }
        if ic.alignment > pdu::ALIGNMENT_MAX {
            return Err(Fatal::field(offset::HPDA));
        }
        self.format.header_digest = ic.header_digest() && self.limits.header_digest;
        self.format.data_digest = ic.data_digest() && self.limits.data_digest;
        self.host_alignment = ic.alignment;
        self.phase = Phase::ConnectWait;
        self.out.push_back(transmit::Out::IcResp);
        self.framer.next();
        Ok(())
    }

    fn capsule(&mut self, common: Common) -> Result<(), Fatal> {
        let mut sqe = Sqe::default();
        sqe.0.copy_from_slice(&self.framer.header()[pdu::COMMON_BYTES..hlen::CAPSULE_CMD]);
        let body = self.body(common, hlen::CAPSULE_CMD);
        // A host that has more commands out than its queue holds has broken flow control. Base 6.3.
        let Some((index, fresh)) = self.slots.take(&sqe) else { return Err(Fatal::SEQUENCE) };
        self.stats.commands += 1;
        self.slots.get_mut(index).state = SlotState::FuseWait;
        match self.admit(index, fresh, body.data) {
            Ok(Source::Capsule(len)) => {
                self.ask_buffer(index, len, true);
                self.current = Some(Current { index, offset: 0 });
                self.framer.want_body(body);
            }
            Ok(Source::Host(len)) => {
                self.ask_buffer(index, len, false);
                self.framer.next();
            }
            Ok(Source::Nowhere(len)) => {
                self.slots.get_mut(index).data_len = len;
                self.framer.next();
                self.received(index);
            }
            Err(status) => {
                self.skip_body(body);
                self.slots.get_mut(index).failed.get_or_insert(status);
                self.received(index);
            }
        }
        Ok(())
    }

    fn skip_body(&mut self, body: Body) {
        let trailer = if body.digest { DIGEST_BYTES as u32 } else { 0 };
        match body.pad + body.data + trailer {
            0 => self.framer.next(),
            bytes => self.framer.skip(bytes),
        }
    }

    fn ask_buffer(&mut self, index: u16, len: u32, in_capsule: bool) {
        let slot = self.slots.get_mut(index);
        slot.data_len = len;
        slot.in_capsule = in_capsule;
        slot.buffer_asked = true;
        slot.state = SlotState::BufferWait;
        let tag = self.slots.tag(index);
        self.push_action(Pending::Buffer(tag));
    }

    /// Pad, data and digest behind a header; the common header was checked.
    fn body(&self, common: Common, hlen: usize) -> Body {
        let start = (hlen + self.format.hdgst_bytes()) as u32;
        if common.plen <= start {
            return Body::default();
        }
        let pdo = u32::from(common.pdo);
        let data = (common.plen - pdo).saturating_sub(self.format.ddgst_bytes() as u32);
        Body { pad: pdo - start, data, digest: self.format.data_digest }
    }

    /// Is this command welcome now, and where is its data? An error is the command's status.
    fn admit(&mut self, index: u16, fresh: bool, in_capsule: u32) -> Result<Source, Status> {
        let sqe = self.slots.get(index).sqe;
        let connect = sqe.is_fabrics() && sqe.fctype() == fctype::CONNECT;
        if !fresh {
            return Err(Status::COMMAND_ID_CONFLICT);
        }
        // Connect comes first, once. Base 3.3.2.2, 6.3.
        if connect == (self.phase == Phase::Live) || connect && self.connect_pending.is_some() {
            return Err(Status::COMMAND_SEQUENCE_ERROR.with_dnr());
        }
        self.fuse(index)?;
        // PSDT 01b: a message transport knows SGLs only, and there is no metadata. Base 4.2.1.
        if sqe.psdt() != Sqe::PSDT_SGL {
            return Err(self.invalid_field(index, connect, 1));
        }
        let source = self.source(&sqe, in_capsule);
        if source == Err(Status::INVALID_FIELD) {
            return Err(self.invalid_field(index, connect, SGL_OFFSET));
        }
        if connect && source.is_ok() {
            self.connect_pending = Some(index);
        }
        source.map_err(Status::with_dnr)
    }

    /// A failed Connect does not say Invalid Field but which parameter was wrong. Base 6.3 figure 547.
    fn invalid_field(&mut self, index: u16, connect: bool, parameter_offset: u32) -> Status {
        if !connect {
            return Status::INVALID_FIELD.with_dnr();
        }
        self.slots.get_mut(index).completion = Completion { dw0: parameter_offset, ..Completion::default() };
        Status::CONNECT_INVALID_PARAMETERS.with_dnr()
    }

    /// SGL1 against the opcode's direction. TCP 3.3.2, Base 4.3.2.
    fn source(&self, sqe: &Sqe, in_capsule: u32) -> Result<Source, Status> {
        let sgl = sqe.sgl();
        let transfer = sqe.transfer();
        if in_capsule == 0 && (transfer == Transfer::None || transfer == Transfer::Bidirectional) {
            return Ok(Source::Nowhere(0));
        }
        let to_controller = transfer == Transfer::HostToController;
        match sgl.kind() {
            SglKind::InCapsule if !to_controller => Err(Status::SGL_DESCRIPTOR_TYPE_INVALID),
            // ICDOFF is 0. TCP 3.3.1, Base 4.2.3.
            SglKind::InCapsule if sgl.address() != 0 => Err(Status::SGL_OFFSET_INVALID),
            SglKind::InCapsule if sgl.length() != in_capsule => Err(Status::DATA_SGL_LENGTH_INVALID),
            SglKind::InCapsule if in_capsule == 0 => Ok(Source::Nowhere(0)),
            SglKind::InCapsule => Ok(Source::Capsule(in_capsule)),
            SglKind::Transport if in_capsule != 0 => Err(Status::DATA_SGL_LENGTH_INVALID),
            SglKind::Transport if !to_controller => Ok(Source::Nowhere(sgl.length())),
            SglKind::Transport if sgl.length() == 0 => Ok(Source::Nowhere(0)),
            // MDTS: nothing is asked for that could not be kept.
            SglKind::Transport if sgl.length() > self.limits.transfer_bytes_max => Err(Status::INVALID_FIELD),
            SglKind::Transport if !sgl.length().is_multiple_of(4) => Err(Status::DATA_SGL_LENGTH_INVALID),
            SglKind::Transport => Ok(Source::Host(sgl.length())),
            SglKind::Address | SglKind::Other => Err(Status::SGL_DESCRIPTOR_TYPE_INVALID),
        }
    }

    /// TCP 3.3.2.2, 3.6.2.8.
    fn h2c_data(&mut self, common: Common) -> Result<(), Fatal> {
        let data = Data::decode(self.framer.header());
        let body = self.body(common, hlen::DATA);
        if data.length != body.data {
            return Err(Fatal::field(offset::PLEN));
        }
        let Some(index) = self.slots.find_ttag(data.ttag) else { return Err(Fatal::field(offset::TTAG)) };
        let slot = self.slots.get(index);
        if slot.sqe.cid().0 != data.cccid {
            return Err(Fatal::field(offset::CCCID));
        }
        if !data.offset.is_multiple_of(4) {
            return Err(Fatal::field(offset::DATAO));
        }
        if data.length == 0 || !data.length.is_multiple_of(4) {
            return Err(Fatal::field(offset::DATAL));
        }
        if data.length > self.limits.maxh2cdata_bytes {
            return Err(Fatal::LIMIT);
        }
        // The R2T was served to its end already: LAST_PDU was said.
        if slot.state != SlotState::Receiving {
            return Err(Fatal::SEQUENCE);
        }
        let end = u64::from(data.offset) + u64::from(data.length);
        if end > u64::from(slot.data_len) {
            return Err(Fatal::OUT_OF_RANGE);
        }
        if data.offset != slot.received {
            return Err(Fatal::SEQUENCE);
        }
        if common.has(flags::LAST) != (end == u64::from(slot.data_len)) {
            return Err(Fatal::SEQUENCE);
        }
        self.current = Some(Current { index, offset: data.offset });
        self.framer.want_body(body);
        Ok(())
    }

    /// A PDU is over, data and digest included.
    fn end(&mut self, digest_right: bool) -> Result<(), Fatal> {
        self.framer.next();
        let Some(current) = self.current.take() else { return Ok(()) };
        let slot = self.slots.get_mut(current.index);
        if !digest_right {
            // The command fails, the connection lives. TCP 3.5.
            slot.failed.get_or_insert(Status::TRANSIENT_TRANSPORT_ERROR);
            self.stats.data_digest_errors += 1;
        }
        if slot.received == slot.data_len {
            self.received(current.index);
        }
        Ok(())
    }
}

/// DPTR within the SQE. Base figure 93.
const SGL_OFFSET: u32 = 24;
