//! What the target sends, checked before it is believed.

use peristyle_base::Instant;

use super::{CID_INDEX_BITS, Current, Data, Event, HostClose, HostQpair, Out, Phase, Slot, Tag};
use crate::framing::{self, Body};
use crate::wire::pdu::{self, Common, Fatal, Format, Ic, flags, hlen, kind, offset};
use crate::wire::{Cid, Cqe, Status};

impl HostQpair {
    pub(super) fn drive(&mut self, now: Instant, input: &mut &[u8]) -> Result<(), Fatal> {
        loop {
            let step = match self.framer.feed(input) {
                framing::Event::More | framing::Event::Data => return Ok(()),
                framing::Event::Common => self.common(),
                framing::Event::Header => self.header(),
                framing::Event::HeaderDigestWrong { received } => Err(Fatal::digest(received)),
                framing::Event::End { digest_right } => {
                    self.end(digest_right);
                    Ok(())
                }
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

    /// The digests agreed on and the alignment that we asked for.
    fn incoming(&self) -> Format {
        Format { alignment: self.config.alignment, ..self.format }
    }

    fn common(&mut self) -> Result<(), Fatal> {
        let common = Common::decode(self.framer.header());
        let expected = match common.kind {
            kind::IC_RESP => hlen::IC,
            kind::C2H_TERM_REQ => hlen::TERM_REQ,
            kind::CAPSULE_RESP => hlen::CAPSULE_RESP,
            kind::C2H_DATA => hlen::DATA,
            kind::R2T => hlen::R2T,
            _ => return Err(Fatal::field(offset::TYPE)),
        };
        if common.kind == kind::C2H_TERM_REQ {
            let sound = usize::from(common.hlen) == expected
                && (hlen::TERM_REQ as u32..=pdu::TERM_PLEN_MAX).contains(&common.plen);
            if sound {
                self.framer.want_header(expected, false);
            } else {
                self.shut(HostClose::PeerTerminated { fes: 0, fei: 0 });
            }
            return Ok(());
        }
        if (common.kind == kind::IC_RESP) != (self.phase == Phase::IcWait) {
            return Err(Fatal::SEQUENCE);
        }
        self.check_common(common, expected)?;
        self.traffic.received_pdus += 1;
        self.traffic.received_bytes += u64::from(common.plen);
        self.framer.want_header(expected, self.format.header_digest);
        Ok(())
    }

    fn check_common(&self, common: Common, expected: usize) -> Result<(), Fatal> {
        let format = self.incoming();
        let start = (expected + format.hdgst_bytes()) as u32;
        let carries_data = common.kind == kind::C2H_DATA;
        let wrong_flags = common.has(flags::HDGST) != format.header_digest
            || common.has(flags::DDGST) != (format.data_digest && carries_data)
            || carries_data && common.has(flags::SUCCESS) && !common.has(flags::LAST);
        if wrong_flags {
            return Err(Fatal::field(offset::FLAGS));
        }
        if usize::from(common.hlen) != expected {
            return Err(Fatal::field(offset::HLEN));
        }
        let pdo = u32::from(common.pdo);
        if carries_data && (pdo < start || !pdo.is_multiple_of(format.alignment_bytes() as u32)) {
            return Err(Fatal::field(offset::PDO));
        }
        let least = if carries_data { pdo + format.ddgst_bytes() as u32 + 1 } else { start };
        if common.plen < least || !carries_data && common.plen != start {
            return Err(Fatal::field(offset::PLEN));
        }
        Ok(())
    }

    fn header(&mut self) -> Result<(), Fatal> {
        let common = Common::decode(self.framer.header());
        match common.kind {
            kind::IC_RESP => self.ic_resp(),
            kind::CAPSULE_RESP => self.response(),
            kind::C2H_DATA => self.c2h_data(common),
            kind::R2T => self.r2t(),
            _ => {
                let (fes, fei) = pdu::decode_term(self.framer.header());
                self.shut(HostClose::PeerTerminated { fes, fei });
                Ok(())
            }
        }
    }

    fn ic_resp(&mut self) -> Result<(), Fatal> {
        let ic = Ic::decode(self.framer.header());
        if ic.pfv != pdu::PFV_1_0 {
            return Err(Fatal::field(offset::PFV));
        }
        if ic.alignment > pdu::ALIGNMENT_MAX {
            return Err(Fatal::field(offset::HPDA));
        }
        if ic.max < pdu::MAXH2CDATA_MIN || !ic.max.is_multiple_of(4) {
            return Err(Fatal::field(offset::MAXH2CDATA));
        }
        if ic.header_digest() != self.config.header_digest || ic.data_digest() != self.config.data_digest {
            self.shut(HostClose::DigestRefused);
            return Ok(());
        }
        self.format = Format {
            header_digest: ic.header_digest(),
            data_digest: ic.data_digest(),
            alignment: ic.alignment,
        };
        self.maxh2cdata_bytes = ic.max;
        self.phase = Phase::Ready;
        self.deadline = None;
        self.events.push_back(Event::Ready);
        self.framer.next();
        Ok(())
    }

    /// The command in flight that the target calls by this CID.
    fn find(&self, cid: Cid) -> Option<u16> {
        let index = cid.0 & ((1 << CID_INDEX_BITS) - 1);
        let slot = self.slots.get(usize::from(index))?;
        // A command that has not left yet cannot be meant.
        (slot.busy && slot.submitted && slot.sqe.cid() == cid).then_some(index)
    }

    fn response(&mut self) -> Result<(), Fatal> {
        let mut cqe = Cqe::default();
        cqe.0.copy_from_slice(&self.framer.header()[pdu::COMMON_BYTES..hlen::CAPSULE_RESP]);
        // The CID stands in bytes 13:12 of the CQE.
        let index = self.find(cqe.cid()).ok_or(Fatal::field(pdu::COMMON_BYTES as u32 + 12))?;
        self.framer.next();
        self.complete(index, cqe);
        Ok(())
    }

    /// TCP 3.3.2.1, 3.6.2.9.
    fn c2h_data(&mut self, common: Common) -> Result<(), Fatal> {
        let data = pdu::Data::decode(self.framer.header());
        let format = self.incoming();
        let body = Body {
            pad: u32::from(common.pdo) - (hlen::DATA + format.hdgst_bytes()) as u32,
            data: common.plen - u32::from(common.pdo) - format.ddgst_bytes() as u32,
            digest: format.data_digest,
        };
        if data.length != body.data {
            return Err(Fatal::field(offset::PLEN));
        }
        let index = self.find(Cid(data.cccid)).ok_or(Fatal::field(offset::CCCID))?;
        let slot = &mut self.slots[usize::from(index)];
        let Data::FromTarget(len) = slot.data else { return Err(Fatal::field(offset::CCCID)) };
        if u64::from(data.offset) + u64::from(data.length) > u64::from(len) {
            return Err(Fatal::OUT_OF_RANGE);
        }
        if data.offset != slot.received || slot.last_seen {
            return Err(Fatal::SEQUENCE);
        }
        let last = common.has(flags::LAST);
        slot.last_seen = last;
        self.current =
            Some(Current { index, offset: data.offset, last, success: common.has(flags::SUCCESS) });
        self.framer.want_body(body);
        Ok(())
    }

    /// TCP 3.3.2.2, 3.6.2.10.
    fn r2t(&mut self) -> Result<(), Fatal> {
        let r2t = pdu::Data::decode(self.framer.header());
        let index = self.find(Cid(r2t.cccid)).ok_or(Fatal::field(offset::CCCID))?;
        let slot = &mut self.slots[usize::from(index)];
        let Data::ToTarget(len) = slot.data else { return Err(Fatal::field(offset::CCCID)) };
        if slot.r2t.is_some() {
            return Err(Fatal::LIMIT);
        }
        if r2t.length == 0 {
            return Err(Fatal::field(offset::DATAL));
        }
        if u64::from(r2t.offset) + u64::from(r2t.length) > u64::from(len) {
            return Err(Fatal::OUT_OF_RANGE);
        }
        // In order, so that nothing is sent twice; in-capsule data has been sent already.
        if r2t.offset != slot.sent {
            return Err(Fatal::SEQUENCE);
        }
        slot.r2t = Some(r2t);
        self.out.push_back(Out::Data(index));
        self.framer.next();
        Ok(())
    }

    fn end(&mut self, digest_right: bool) {
        self.framer.next();
        let Some(current) = self.current.take() else { return };
        let slot = &mut self.slots[usize::from(current.index)];
        if !digest_right {
            slot.fault.get_or_insert(Status::TRANSIENT_TRANSPORT_ERROR);
        }
        if current.last && current.success {
            let cqe = Cqe::new(slot.sqe.cid(), Status::SUCCESS, 0, 0, 0);
            self.complete(current.index, cqe);
        }
    }

    fn complete(&mut self, index: u16, cqe: Cqe) {
        let slot = &mut self.slots[usize::from(index)];
        let fault = slot.fault.or_else(|| missing_data(slot));
        let cqe = match fault {
            Some(status) if cqe.status().is_success() => {
                Cqe::new(cqe.cid(), status, cqe.dw0(), cqe.dw1(), cqe.sqhd())
            }
            _ => cqe,
        };
        slot.busy = false;
        let (tag, received) = (Tag::new(index, slot.generation), slot.received);
        if slot.r2t.take().is_some() {
            self.out.retain(|out| *out != Out::Data(index));
        }
        self.free.push(index);
        self.events.push_back(Event::Complete { tag, cqe, received });
    }
}

/// Success with data left out is no success.
fn missing_data(slot: &Slot) -> Option<Status> {
    let whole = match slot.data {
        Data::None => true,
        Data::FromTarget(len) => slot.received == len,
        Data::ToTarget(len) => slot.sent == len,
    };
    (!whole).then_some(Status::DATA_TRANSFER_ERROR)
}
