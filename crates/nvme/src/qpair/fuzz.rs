//! Any bytes to a target's connection: nothing panics, at most one C2HTermReq leaves and nothing after it,
//! every command ends once, no buffer is lost. For fuzzers and for the random runs of the test suite.

use peristyle_base::Instant;

use super::{Accept, Action, Command, Completion, Input, Qpair, QpairLimits, TRANSMIT_HEADER_BYTES, Tag};
use crate::wire::digest::{DIGEST_BYTES, data_digest};
use crate::wire::opcode::{Transfer, fctype, nvm};
use crate::wire::pdu::{self, Common, Format, Ic, hlen, kind};
use crate::wire::{Cid, Fuse, Sgl, Sqe, Status};

/// Small, so that limits are met often.
const ENTRIES: u32 = 8;
const LIMITS: QpairLimits = QpairLimits {
    io_in_capsule_bytes: 8192,
    maxh2cdata_bytes: 4096,
    transfer_bytes_max: 16384,
    c2h_bytes_max: 4096,
    header_digest: true,
    data_digest: true,
    setup_timeout: super::SETUP_TIMEOUT,
    term_timeout: super::TERM_TIMEOUT,
};
const CONNECT_BYTES: usize = 1024;

/// First byte of every input: how the connection is set up and driven.
#[derive(Clone, Copy, Debug)]
struct Mode(u8);

impl Mode {
    fn format(self) -> Format {
        Format { header_digest: self.0 & 1 != 0, data_digest: self.0 & 2 != 0, alignment: 0 }
    }
    /// 0 nothing, 1 ICReq, 2 Connect to the admin queue, 3 Connect to an I/O queue.
    fn start(self) -> u8 {
        self.0 >> 2 & 3
    }
    fn piece(self) -> usize {
        [1, 13, 100, usize::MAX][usize::from(self.0 >> 4 & 3)]
    }
    /// Commands are executed late, buffers are given late.
    fn late(self) -> bool {
        self.0 & 0x40 != 0
    }
}

struct Driver {
    qpair: Qpair,
    mode: Mode,
    inbox: Vec<u8>,
    buffers: Vec<Option<(Tag, Vec<u8>)>>,
    wanting: Vec<(Tag, u32)>,
    executing: Vec<Command>,
    /// CCCID, TTAG, length and progress of the R2Ts that were seen.
    r2ts: Vec<(u16, u16, u32, u32)>,
    terms: usize,
    closed: bool,
}

/// Bytes as they are: the first says how, the others are the stream.
pub fn stream(data: &[u8]) {
    let [mode, rest @ ..] = data else { return };
    let mut driver = Driver::new(Mode(*mode));
    driver.input(rest);
    driver.finish();
}

/// A submission queue entry on a live I/O queue, with or without a second one behind it.
pub fn sqe(data: &[u8]) {
    let mut driver = Driver::new(Mode(0b0011_1100));
    for chunk in data.chunks_exact(Sqe::BYTES).take(64) {
        let mut sqe = Sqe::default();
        sqe.0.copy_from_slice(chunk);
        let len = if sqe.sgl().kind() == crate::wire::SglKind::InCapsule { sqe.sgl().length() } else { 0 };
        driver.capsule(&sqe, len.min(8192), |_| ());
    }
    driver.finish();
}

/// Instructions of eight bytes, each a right PDU or one with a byte changed: gets deep with digests on.
pub fn pdus(data: &[u8]) {
    let [mode, rest @ ..] = data else { return };
    let mut driver = Driver::new(Mode(*mode | 0b1100));
    for step in rest.chunks_exact(8).take(256) {
        driver.step(step);
    }
    driver.finish();
}

/// Inputs that get everywhere, to begin a corpus with. For [`stream`], and (any bytes do) for [`pdus`].
pub fn seeds() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for digests in 0..4u8 {
        for piece in [1u8, 3] {
            let mode = digests | piece << 4;
            let format = Mode(mode).format();
            let mut bytes = vec![mode];
            bytes.extend(ic_req(format));
            bytes.extend(capsule(format, &connect_sqe(1), CONNECT_BYTES as u32));
            seeds.push(bytes);
            let mut bytes = vec![mode | 3 << 2];
            for (cid, opcode, sgl) in [
                (1, nvm::WRITE, Sgl::in_capsule(64)),
                (2, nvm::READ, Sgl::transport(4096)),
                (3, nvm::WRITE, Sgl::transport(8192)),
                (4, nvm::COMPARE, Sgl::in_capsule(128)),
            ] {
                let mut sqe = Sqe::new(opcode, Cid(cid));
                sqe.set_sgl(sgl);
                let in_capsule = if sgl.identifier() == Sgl::TYPE_IN_CAPSULE { sgl.length() } else { 0 };
                bytes.extend(capsule(format, &sqe, in_capsule));
            }
            seeds.push(bytes);
        }
    }
    seeds
}

fn ic_req(format: Format) -> Vec<u8> {
    let dgst = u8::from(format.header_digest) | u8::from(format.data_digest) << 1;
    let mut out = vec![0; hlen::IC];
    Ic { dgst, ..Ic::default() }.encode(kind::IC_REQ, &mut out);
    out
}

fn connect_sqe(qid: u8) -> Sqe {
    let mut sqe = Sqe::fabrics(fctype::CONNECT, Cid(0));
    sqe.set_sgl(Sgl::in_capsule(CONNECT_BYTES as u32));
    sqe.0[42] = qid;
    sqe.0[44] = ENTRIES as u8 - 1;
    sqe
}

fn with_body(format: Format, mut out: Vec<u8>, header: usize, len: u32) -> Vec<u8> {
    out.truncate(header);
    let body = vec![0x5a; len as usize];
    out.extend_from_slice(&body);
    if format.data_digest && len > 0 {
        out.extend_from_slice(&data_digest([&body[..]]));
    }
    out
}

fn capsule(format: Format, sqe: &Sqe, len: u32) -> Vec<u8> {
    let mut out = vec![0; TRANSMIT_HEADER_BYTES];
    let header = format.capsule_cmd(&mut out, sqe, len);
    with_body(format, out, header, len)
}

impl Driver {
    fn new(mode: Mode) -> Driver {
        let mut driver = Driver {
            qpair: Qpair::new(Instant(1), LIMITS),
            mode,
            inbox: Vec::new(),
            buffers: vec![None; ENTRIES as usize],
            wanting: Vec::new(),
            executing: Vec::new(),
            r2ts: Vec::new(),
            terms: 0,
            closed: false,
        };
        let (format, start) = (mode.format(), mode.start());
        if start > 0 {
            driver.input(&ic_req(format));
        }
        if start > 1 {
            driver.input(&capsule(format, &connect_sqe(start - 2), CONNECT_BYTES as u32));
            driver.settle();
            assert!(driver.qpair.is_live());
        }
        driver
    }

    fn input(&mut self, bytes: &[u8]) {
        // A byte at a time is for short inputs: long ones would take all the time there is.
        let least = if bytes.len() > 400 { 64 } else { 1 };
        for piece in bytes.chunks(self.mode.piece().clamp(least, bytes.len().max(least))) {
            self.inbox.extend_from_slice(piece);
            self.pump();
        }
    }

    fn pump(&mut self) {
        let inbox = std::mem::take(&mut self.inbox);
        let mut rest = &inbox[..];
        loop {
            self.act();
            match self.qpair.next_input() {
                Input::Closed => rest = &[],
                Input::Wait { tag } => {
                    assert!(self.wanting.iter().any(|(wanting, _)| *wanting == tag), "we owe it a buffer");
                    break;
                }
                Input::Bytes { max } => {
                    assert!(max > 0);
                    let taken = self.qpair.handle_bytes(Instant(2), rest).unwrap_or(rest.len());
                    rest = &rest[taken..];
                }
                Input::Payload { tag, offset, len } => {
                    let take = rest.len().min(len as usize);
                    let (owner, buffer) = self.buffers[tag.index()].as_mut().expect("a buffer was given");
                    assert!(*owner == tag && len > 0);
                    buffer[offset as usize..(offset + len) as usize][..take].copy_from_slice(&rest[..take]);
                    let _ = self.qpair.handle_payload(Instant(2), &rest[..take]);
                    rest = &rest[take..];
                }
            }
            if rest.is_empty() {
                break;
            }
        }
        self.inbox = rest.to_vec();
        self.act();
        self.send();
    }

    fn act(&mut self) {
        while let Some(action) = self.qpair.poll_action() {
            match action {
                Action::Buffer { tag, len } => {
                    assert!(len > 0 && len <= LIMITS.transfer_bytes_max);
                    self.wanting.push((tag, len));
                }
                Action::Release { tag } => assert!(self.take(tag).is_some(), "released what it had"),
                Action::Connect(command) => {
                    self.take(command.tag);
                    let accept = Accept {
                        qid: u16::from(command.sqe.0[42]),
                        entries: ENTRIES,
                        flow_control: command.sqe.0[46] & 4 == 0,
                        dw0: 1,
                    };
                    self.qpair.accept_connect(command.tag, accept).expect("it is executing");
                }
                Action::Execute(command) => self.executing.push(command),
                Action::ExecuteFused { first, second } => {
                    assert_eq!((first.sqe.fuse(), second.sqe.fuse()), (Fuse::First, Fuse::Second));
                    self.executing.extend([first, second]);
                }
                Action::Close(_) => {
                    assert!(!std::mem::replace(&mut self.closed, true), "closed once");
                    self.buffers.iter_mut().for_each(|buffer| *buffer = None);
                    self.wanting.clear();
                }
            }
            if !self.mode.late() {
                self.settle_actions();
            }
        }
    }

    /// Gives the buffers and answers the commands that were put off.
    fn settle(&mut self) {
        while !(self.wanting.is_empty() && self.executing.is_empty()) {
            self.settle_actions();
            self.pump();
        }
    }

    fn settle_actions(&mut self) {
        for (tag, len) in std::mem::take(&mut self.wanting) {
            // Some are refused before anything is spent on them.
            let refuse = self.qpair.command_of(tag).is_ok_and(|command| command.sqe.cdw12() & 7 == 7);
            if refuse && self.qpair.refuse(tag, Status::LBA_OUT_OF_RANGE.into()).is_ok() {
                continue;
            }
            let old = self.buffers[tag.index()].replace((tag, vec![0; len as usize]));
            assert!(old.is_none(), "one buffer per command");
            let _ = self.qpair.buffer_ready(tag);
        }
        for command in std::mem::take(&mut self.executing) {
            let data = self.take(command.tag);
            let sqe = command.sqe;
            if sqe.transfer() == Transfer::HostToController && command.data_len > 0 {
                assert!(data.is_some_and(|data| data.len() == command.data_len as usize) || self.closed);
            }
            let reads = sqe.transfer() == Transfer::ControllerToHost && command.data_len > 0;
            let result = if reads {
                let len = command.data_len.min(LIMITS.transfer_bytes_max);
                self.buffers[command.tag.index()] = Some((command.tag, vec![1; len as usize]));
                self.qpair.complete_with_data(command.tag, len, Completion::default())
            } else {
                self.qpair.complete(command.tag, Status::SUCCESS.into())
            };
            result.expect("it is executing");
            if self.closed {
                self.take(command.tag);
            }
        }
    }

    fn take(&mut self, tag: Tag) -> Option<Vec<u8>> {
        let slot = self.buffers.get_mut(tag.index())?;
        if slot.as_ref().is_some_and(|(owner, _)| *owner == tag) {
            slot.take().map(|(_, data)| data)
        } else {
            None
        }
    }

    fn send(&mut self) {
        let mut out = [0; TRANSMIT_HEADER_BYTES];
        while let Some(transmit) = self.qpair.poll_transmit(&mut out) {
            assert_eq!(self.terms, 0, "nothing follows a TermReq");
            let common = Common::decode(&out);
            let payload = transmit.payload.map_or(0, |payload| payload.len as usize);
            let digest = if transmit.digest { DIGEST_BYTES } else { 0 };
            assert_eq!(common.plen as usize, transmit.header + payload + digest, "PLEN is true");
            self.terms += usize::from(common.kind == kind::C2H_TERM_REQ);
            if common.kind == kind::R2T {
                let r2t = pdu::Data::decode(&out);
                self.r2ts.push((r2t.cccid, r2t.ttag, r2t.length, 0));
            }
            if let Some(payload) = transmit.payload {
                let (owner, data) = self.buffers[payload.tag.index()].as_ref().expect("data to send");
                assert!(*owner == payload.tag && (payload.offset + payload.len) as usize <= data.len());
            }
            if let Some(tag) = transmit.done {
                self.take(tag);
            }
        }
    }

    fn step(&mut self, step: &[u8]) {
        let len = u32::from(step[2]) * if step[7] < 32 { 64 } else { 4 };
        let sgl = if step[0] & 0x80 != 0 { Sgl::transport(len) } else { Sgl::in_capsule(len) };
        let patch = (usize::from(step[4]), step[5], step[6]);
        let change = move |bytes: &mut [u8]| {
            // One in four: the rest are right, so that the connection lives long.
            if patch.2 & 3 == 3 && patch.0 < bytes.len() {
                bytes[patch.0] ^= patch.1;
            }
        };
        let mut sqe = Sqe::new(
            [nvm::WRITE, nvm::READ, nvm::FLUSH, nvm::COMPARE][usize::from(step[0] & 3)],
            Cid(step[1].into()),
        );
        sqe.set_fuse([Fuse::Normal, Fuse::Normal, Fuse::First, Fuse::Second][usize::from(step[3] >> 6)]);
        match step[0] >> 2 & 3 {
            0 | 1 if sqe.transfer() == Transfer::HostToController => {
                sqe.set_sgl(sgl);
                let in_capsule = if step[0] & 0x80 != 0 { 0 } else { len };
                self.capsule(&sqe, in_capsule, change);
            }
            0 | 1 => {
                sqe.set_sgl(Sgl::transport(len));
                self.capsule(&sqe, 0, change);
            }
            2 => self.answer_r2t(step, change),
            _ => self.settle(),
        }
    }

    fn capsule(&mut self, sqe: &Sqe, len: u32, change: impl FnOnce(&mut [u8])) {
        let pdu = capsule(self.mode.format(), sqe, len);
        self.send_changed(pdu, change);
    }

    fn answer_r2t(&mut self, step: &[u8], change: impl FnOnce(&mut [u8])) {
        let format = self.mode.format();
        let count = self.r2ts.len();
        let Some(r2t) = self.r2ts.get_mut(usize::from(step[3] & 0x3f) % count.max(1)) else { return };
        let left = r2t.2.saturating_sub(r2t.3);
        let len =
            left.min(u32::from(step[2]) * if step[7] < 32 { 64 } else { 4 }).min(LIMITS.maxh2cdata_bytes);
        let data = pdu::Data { cccid: r2t.0, ttag: r2t.1, offset: r2t.3, length: len };
        r2t.3 += len;
        let mut out = vec![0; TRANSMIT_HEADER_BYTES];
        let header = format.h2c_data(&mut out, &data, len == left);
        self.send_changed(with_body(format, out, header, len), change);
    }

    /// The change is to the header; its digest is made right again.
    fn send_changed(&mut self, mut pdu: Vec<u8>, change: impl FnOnce(&mut [u8])) {
        let hlen = usize::from(pdu[2]);
        change(&mut pdu[..hlen]);
        if self.mode.format().header_digest {
            super::super::wire::digest::append(&mut pdu, hlen, true);
        }
        self.input(&pdu);
    }

    /// The host goes away in the middle of whatever it was doing.
    fn finish(mut self) {
        self.settle();
        if !self.closed {
            self.qpair.handle_eof(Instant(3));
            self.act();
            self.send();
        }
        self.settle();
        assert!(self.closed && self.terms <= 1);
        assert!(self.buffers.iter().all(Option::is_none), "a buffer is lost");
        assert_eq!(self.qpair.next_input(), Input::Closed);
    }
}
