//! Any bytes to an initiator that has commands in flight: nothing panics, no byte lands outside a
//! command's buffer, every command ends at most once, at most one H2CTermReq leaves.

use peristyle_base::Instant;

use super::{Data, Event, HostConfig, HostQpair, Input, TRANSMIT_HEADER_BYTES, Tag};
use crate::wire::digest::DIGEST_BYTES;
use crate::wire::opcode::nvm;
use crate::wire::pdu::{self, Common, Format, Ic, flags, hlen, kind};
use crate::wire::{Cid, Cqe, Sqe, Status};

const ENTRIES: u32 = 8;

struct Driver {
    qpair: HostQpair,
    buffers: Vec<usize>,
    flying: Vec<Tag>,
    terms: usize,
    closed: bool,
}

fn ic_resp(format: Format) -> Vec<u8> {
    let dgst = u8::from(format.header_digest) | u8::from(format.data_digest) << 1;
    let mut out = vec![0; hlen::IC];
    Ic { dgst, max: 4096, ..Ic::default() }.encode(kind::IC_RESP, &mut out);
    out
}

fn format(mode: u8) -> Format {
    Format { header_digest: mode & 1 != 0, data_digest: mode & 2 != 0, alignment: 0 }
}

/// The first byte says how, the others are what the target sends. Bit 2: from ICResp on.
pub fn stream(data: &[u8]) {
    let [mode, rest @ ..] = data else { return };
    let format = format(*mode);
    let config = HostConfig {
        entries: ENTRIES,
        header_digest: format.header_digest,
        data_digest: format.data_digest,
        ..HostConfig::default()
    };
    let mut driver = Driver {
        qpair: HostQpair::new(Instant(1), config),
        buffers: vec![0; ENTRIES as usize],
        flying: Vec::new(),
        terms: 0,
        closed: false,
    };
    driver.pump();
    if mode & 4 == 0 {
        driver.input(&ic_resp(format));
    }
    driver.submit();
    let piece = [1, 13, 100, usize::MAX][usize::from(mode >> 4 & 3)];
    let least = if rest.len() > 400 { 64 } else { 1 };
    for piece in rest.chunks(piece.clamp(least, rest.len().max(least))) {
        driver.input(piece);
        driver.submit();
    }
    driver.qpair.handle_eof(Instant(3));
    driver.pump();
    assert!(driver.closed && driver.terms <= 1);
}

/// Right answers to the commands that [`stream`] submits.
pub fn seeds() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for mode in [0u8, 1, 2, 3, 0x30, 0x33] {
        let format = format(mode);
        let mut pdu = vec![0; TRANSMIT_HEADER_BYTES];
        let mut bytes = vec![mode];
        // Generation 1 of slots 0 to 2: a write, a read and a flush.
        let cid = |slot: u16| slot | 1 << super::CID_INDEX_BITS;
        let header = format.r2t(&mut pdu, &pdu::Data { cccid: cid(0), ttag: 9, offset: 0, length: 16384 });
        bytes.extend_from_slice(&pdu[..header]);
        let data = pdu::Data { cccid: cid(1), ttag: 0, offset: 0, length: 4096 };
        let header = format.c2h_data(&mut pdu, &data, flags::LAST | flags::SUCCESS);
        bytes.extend_from_slice(&pdu[..header]);
        bytes.extend_from_slice(&[7; 4096]);
        if format.data_digest {
            bytes.extend_from_slice(&crate::wire::digest::data_digest([&[7; 4096][..]]));
        }
        for slot in [2, 0] {
            let header = format.capsule_resp(&mut pdu, &Cqe::new(Cid(cid(slot)), Status::SUCCESS, 0, 0, 1));
            bytes.extend_from_slice(&pdu[..header]);
        }
        seeds.push(bytes);
    }
    seeds
}

impl Driver {
    fn submit(&mut self) {
        for n in 0.. {
            let (opcode, data, len) = match n % 3 {
                0 => (nvm::WRITE, Data::ToTarget(16384), 16384),
                1 => (nvm::READ, Data::FromTarget(4096), 4096),
                _ => (nvm::FLUSH, Data::None, 0),
            };
            let Ok(tag) = self.qpair.submit(Sqe::new(opcode, Cid(0)), data) else { break };
            self.buffers[tag.index()] = len;
            self.flying.push(tag);
        }
        self.pump();
    }

    fn input(&mut self, mut rest: &[u8]) {
        while !rest.is_empty() {
            match self.qpair.next_input() {
                Input::Closed => break,
                Input::Wait { .. } => unreachable!("a host's buffers are there"),
                Input::Bytes { .. } => {
                    let taken = self.qpair.handle_bytes(Instant(2), rest).unwrap_or(rest.len());
                    rest = &rest[taken..];
                }
                Input::Payload { tag, offset, len } => {
                    assert!(self.flying.contains(&tag) && len > 0);
                    assert!((offset + len) as usize <= self.buffers[tag.index()], "outside the buffer");
                    let take = rest.len().min(len as usize);
                    let _ = self.qpair.handle_payload(Instant(2), &rest[..take]);
                    rest = &rest[take..];
                }
            }
        }
        self.pump();
    }

    fn pump(&mut self) {
        while let Some(event) = self.qpair.poll_event() {
            match event {
                Event::Ready => assert!(self.flying.is_empty()),
                Event::Complete { tag, cqe, received } => {
                    let at = self.flying.iter().position(|flying| *flying == tag);
                    self.flying.swap_remove(at.expect("completed once"));
                    assert!(received as usize <= self.buffers[tag.index()] || !cqe.status().is_success());
                }
                Event::Close(_) => assert!(!std::mem::replace(&mut self.closed, true)),
            }
        }
        let mut out = [0; TRANSMIT_HEADER_BYTES];
        while let Some(transmit) = self.qpair.poll_transmit(&mut out) {
            assert_eq!(self.terms, 0, "nothing follows a TermReq");
            let common = Common::decode(&out);
            self.terms += usize::from(common.kind == kind::H2C_TERM_REQ);
            let payload = transmit.payload.map_or(0, |payload| payload.len as usize);
            let digest = if transmit.digest { DIGEST_BYTES } else { 0 };
            assert_eq!(common.plen as usize, transmit.header + payload + digest, "PLEN is true");
            if let Some(payload) = transmit.payload {
                assert!((payload.offset + payload.len) as usize <= self.buffers[payload.tag.index()]);
            }
        }
    }
}
