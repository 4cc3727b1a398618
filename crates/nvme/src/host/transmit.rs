//! What the host sends: ICReq, capsules with or without data, H2CData as R2Ts ask for it.

use super::{Data, HostQpair, Out, Payload, TRANSMIT_HEADER_BYTES, Tag, Transmit};
use crate::wire::digest::DIGEST_BYTES;
use crate::wire::pdu;

impl HostQpair {
    /// As [`crate::qpair::Qpair::poll_transmit`]; `done` is never set: a command is over with its answer.
    pub fn poll_transmit(&mut self, out: &mut [u8]) -> Option<Transmit> {
        assert!(out.len() >= TRANSMIT_HEADER_BYTES, "room for any header");
        if let Some((fatal, header, len)) = self.term.take() {
            let header = pdu::encode_term(pdu::kind::H2C_TERM_REQ, fatal, &header[..len], out);
            return Some(Transmit { header, payload: None, digest: false, done: None });
        }
        let transmit = match self.out.pop_front()? {
            Out::IcReq => self.send_ic_req(out),
            Out::Command(index) => self.send_command(index, out),
            Out::Data(index) => self.send_data(index, out),
        };
        let payload = transmit.payload.map_or(0, |payload| u64::from(payload.len));
        let digest = if transmit.digest { DIGEST_BYTES as u64 } else { 0 };
        self.traffic.sent_pdus += 1;
        self.traffic.sent_bytes += transmit.header as u64 + payload + digest;
        Some(transmit)
    }

    /// MAXR2T 0: one R2T at a time per command, as the Linux host says too. TCP 3.6.2.1.
    fn send_ic_req(&mut self, out: &mut [u8]) -> Transmit {
        let dgst = if self.config.header_digest { pdu::dgst::HEADER } else { 0 }
            | if self.config.data_digest { pdu::dgst::DATA } else { 0 };
        let ic = pdu::Ic { pfv: pdu::PFV_1_0, alignment: self.config.alignment, dgst, max: 0 };
        let header = ic.encode(pdu::kind::IC_REQ, out);
        Transmit { header, payload: None, digest: false, done: None }
    }

    fn send_command(&mut self, index: u16, out: &mut [u8]) -> Transmit {
        let slot = &mut self.slots[usize::from(index)];
        let len = match slot.data {
            Data::ToTarget(len) if slot.in_capsule => len,
            _ => 0,
        };
        slot.sent = len;
        slot.submitted = true;
        let header = self.format.capsule_cmd(out, &slot.sqe, len);
        let payload = (len > 0).then_some(Payload { tag: Tag::new(index, slot.generation), offset: 0, len });
        Transmit { header, payload, digest: len > 0 && self.format.data_digest, done: None }
    }

    fn send_data(&mut self, index: u16, out: &mut [u8]) -> Transmit {
        let slot = &mut self.slots[usize::from(index)];
        let r2t = slot.r2t.expect("queued while an R2T is served");
        let left = r2t.offset + r2t.length - slot.sent;
        let len = left.min(self.maxh2cdata_bytes);
        let data = pdu::Data { offset: slot.sent, length: len, ..r2t };
        let header = self.format.h2c_data(out, &data, len == left);
        let payload = Payload { tag: Tag::new(index, slot.generation), offset: slot.sent, len };
        slot.sent += len;
        if len == left {
            slot.r2t = None;
        } else {
            // Behind the others: a large write does not hold up small ones.
            self.out.push_back(Out::Data(index));
        }
        Transmit { header, payload: Some(payload), digest: self.format.data_digest, done: None }
    }
}
