//! Drivers without I/O for both machines, and the bytes that a raw host would send.
#![allow(dead_code)]

pub mod table;

use peristyle_base::Instant;
use peristyle_nvme::host::{self, HostConfig, HostQpair};
use peristyle_nvme::qpair::{
    Accept, Action, CloseReason, Command, Completion, Input, Qpair, QpairLimits, TRANSMIT_HEADER_BYTES, Tag,
};
use peristyle_nvme::wire::digest::data_digest;
use peristyle_nvme::wire::opcode::{self, fctype, nvm};
use peristyle_nvme::wire::pdu::{self, Common, Format, Ic};
use peristyle_nvme::wire::{Cid, Cqe, Sgl, Sqe, Status, get_u16};

pub const LBA: usize = 512;
pub const CONNECT_DATA: usize = 1024;

/// What is behind a queue pair: a real controller or the small memory below.
pub trait Responder {
    fn connect(&mut self, command: &Command, data: &[u8]) -> Result<Accept, Completion>;
    /// `data` holds what the host sent, and takes what the host gets.
    fn execute(&mut self, command: &Command, data: &mut Vec<u8>) -> Answer;
    fn compare_and_write(&mut self, first: &[u8], second: &[u8], write: &Command) -> [Completion; 2];
}

pub enum Answer {
    Complete(Completion),
    Data(Completion),
    /// Nothing yet.
    Held,
}

impl From<Status> for Answer {
    fn from(status: Status) -> Answer {
        Answer::Complete(status.into())
    }
}

/// A namespace in memory with 512-byte blocks that knows Read, Write, Flush and Compare.
pub struct Memory {
    pub bytes: Vec<u8>,
    pub hold: bool,
}

impl Memory {
    pub fn new(blocks: usize) -> Memory {
        Memory { bytes: vec![0; blocks * LBA], hold: false }
    }
    fn range(&self, sqe: &Sqe) -> Result<std::ops::Range<usize>, Status> {
        let end = sqe.slba().checked_add(u64::from(sqe.blocks())).ok_or(Status::LBA_OUT_OF_RANGE)?;
        if end > (self.bytes.len() / LBA) as u64 {
            return Err(Status::LBA_OUT_OF_RANGE);
        }
        Ok(sqe.slba() as usize * LBA..end as usize * LBA)
    }
}

impl Responder for Memory {
    fn connect(&mut self, command: &Command, data: &[u8]) -> Result<Accept, Completion> {
        let entries = u32::from(get_u16(&command.sqe.0, 44)) + 1;
        if data.len() != CONNECT_DATA || !(2..=1024).contains(&entries) {
            return Err(Status::CONNECT_INVALID_PARAMETERS.with_dnr().into());
        }
        let flow_control = command.sqe.0[46] & 4 == 0;
        Ok(Accept { qid: get_u16(&command.sqe.0, 42), entries, flow_control, dw0: 1 })
    }
    fn execute(&mut self, command: &Command, data: &mut Vec<u8>) -> Answer {
        if self.hold {
            return Answer::Held;
        }
        let sqe = &command.sqe;
        if sqe.is_fabrics() {
            return match sqe.fctype() {
                fctype::PROPERTY_GET => Completion { status: Status::SUCCESS, dw0: 1, dw1: 0 }.into_answer(),
                fctype::PROPERTY_SET => Status::SUCCESS.into(),
                _ => Status::INVALID_FIELD.with_dnr().into(),
            };
        }
        match sqe.opcode() {
            nvm::FLUSH => Status::SUCCESS.into(),
            nvm::READ | nvm::WRITE | nvm::COMPARE => {
                let range = match self.range(sqe) {
                    Ok(range) => range,
                    Err(status) => return status.with_dnr().into(),
                };
                if command.data_len as usize != range.len() {
                    return Status::DATA_SGL_LENGTH_INVALID.with_dnr().into();
                }
                match sqe.opcode() {
                    nvm::READ => {
                        data.clear();
                        data.extend_from_slice(&self.bytes[range]);
                        Answer::Data(Status::SUCCESS.into())
                    }
                    nvm::WRITE => {
                        self.bytes[range].copy_from_slice(data);
                        Status::SUCCESS.into()
                    }
                    _ if self.bytes[range] == data[..] => Status::SUCCESS.into(),
                    _ => Status::COMPARE_FAILURE.with_dnr().into(),
                }
            }
            _ => Status::INVALID_OPCODE.with_dnr().into(),
        }
    }
    fn compare_and_write(&mut self, first: &[u8], second: &[u8], write: &Command) -> [Completion; 2] {
        let Ok(range) = self.range(&write.sqe) else {
            return [Status::LBA_OUT_OF_RANGE.into(), Status::ABORTED_FAILED_FUSED.into()];
        };
        if self.bytes[range.clone()] != *first {
            return [Status::COMPARE_FAILURE.into(), Status::ABORTED_FAILED_FUSED.into()];
        }
        self.bytes[range].copy_from_slice(second);
        [Completion::default(), Completion::default()]
    }
}

trait IntoAnswer {
    fn into_answer(self) -> Answer;
}
impl IntoAnswer for Completion {
    fn into_answer(self) -> Answer {
        Answer::Complete(self)
    }
}

/// A target connection with its driver. What the host would receive is in `out`.
pub struct Target<R> {
    pub qpair: Qpair,
    pub responder: R,
    pub now: Instant,
    pub out: Vec<u8>,
    /// Bytes that stand in the socket because a command waits for its buffer.
    inbox: Vec<u8>,
    buffers: Vec<Option<(Tag, Vec<u8>)>>,
    pub executed: Vec<Command>,
    pub held: Vec<Command>,
    pub starved: Vec<(Tag, u32)>,
    pub starve: bool,
    pub closed: Option<CloseReason>,
    pub terms: usize,
}

impl Target<Memory> {
    pub fn memory() -> Target<Memory> {
        Target::new(QpairLimits::default(), Memory::new(4096))
    }
}

impl<R: Responder> Target<R> {
    pub fn new(limits: QpairLimits, responder: R) -> Target<R> {
        let now = Instant(1_000_000_000);
        Target {
            qpair: Qpair::new(now, limits),
            responder,
            now,
            out: Vec::new(),
            inbox: Vec::new(),
            buffers: Vec::new(),
            executed: Vec::new(),
            held: Vec::new(),
            starved: Vec::new(),
            starve: false,
            closed: None,
            terms: 0,
        }
    }
    pub fn buffers_out(&self) -> usize {
        self.buffers.iter().flatten().count()
    }
    /// The stream goes on with `bytes`.
    pub fn input(&mut self, bytes: &[u8]) -> &mut Self {
        self.inbox.extend_from_slice(bytes);
        self.pump();
        self
    }
    pub fn pump(&mut self) {
        self.act();
        loop {
            let inbox = std::mem::take(&mut self.inbox);
            let mut rest = &inbox[..];
            while !rest.is_empty() && self.feed(&mut rest) {
                self.act();
            }
            self.inbox = rest.to_vec();
            self.act();
            let waiting = matches!(self.qpair.next_input(), Input::Wait { .. });
            if self.inbox.is_empty() || waiting {
                break;
            }
        }
        self.send();
    }
    fn feed(&mut self, rest: &mut &[u8]) -> bool {
        match self.qpair.next_input() {
            Input::Closed => {
                *rest = &[];
                false
            }
            Input::Wait { .. } => false,
            Input::Bytes { .. } => {
                let taken = self.qpair.handle_bytes(self.now, rest).unwrap_or(rest.len());
                *rest = &rest[taken..];
                true
            }
            Input::Payload { tag, offset, len } => {
                let take = rest.len().min(len as usize);
                let (owner, buffer) = self.buffers[tag.index()].as_mut().expect("a buffer was given");
                assert_eq!(*owner, tag);
                buffer[offset as usize..offset as usize + take].copy_from_slice(&rest[..take]);
                let placed = rest[..take].to_vec();
                *rest = &rest[take..];
                let _ = self.qpair.handle_payload(self.now, &placed);
                true
            }
        }
    }
    pub fn act(&mut self) {
        while let Some(action) = self.qpair.poll_action() {
            match action {
                Action::Buffer { tag, len } if self.starve => self.starved.push((tag, len)),
                Action::Buffer { tag, len } => self.give(tag, len),
                Action::Release { tag } => {
                    let (owner, _) = self.buffers[tag.index()].take().expect("released once");
                    assert_eq!(owner, tag);
                }
                Action::Connect(command) => self.connect(command),
                Action::Execute(command) => self.execute(command),
                Action::ExecuteFused { first, second } => {
                    let one = self.take(first.tag);
                    let two = self.take(second.tag);
                    self.executed.extend([first, second]);
                    let answers = self.responder.compare_and_write(&one, &two, &second);
                    for (tag, answer) in [first.tag, second.tag].into_iter().zip(answers) {
                        self.qpair.complete(tag, answer).unwrap();
                    }
                }
                Action::Close(reason) => {
                    assert!(self.closed.replace(reason).is_none(), "closed once");
                    self.buffers.clear();
                    self.starved.clear();
                    self.held.clear();
                }
            }
        }
    }
    fn give(&mut self, tag: Tag, len: u32) {
        if self.buffers.len() <= tag.index() {
            self.buffers.resize(tag.index() + 1, None);
        }
        assert!(self.buffers[tag.index()].is_none(), "one buffer per command");
        self.buffers[tag.index()] = Some((tag, vec![0xee; len as usize]));
        self.qpair.buffer_ready(tag).unwrap();
    }
    pub fn feed_starved(&mut self) {
        self.starve = false;
        for (tag, len) in std::mem::take(&mut self.starved) {
            self.give(tag, len);
        }
        self.pump();
    }
    fn take(&mut self, tag: Tag) -> Vec<u8> {
        match self.buffers.get_mut(tag.index()) {
            Some(slot) if slot.as_ref().is_some_and(|(owner, _)| *owner == tag) => slot.take().unwrap().1,
            _ => Vec::new(),
        }
    }
    fn connect(&mut self, command: Command) {
        let data = self.take(command.tag);
        self.executed.push(command);
        match self.responder.connect(&command, &data) {
            Ok(accept) => self.qpair.accept_connect(command.tag, accept).unwrap(),
            Err(completion) => self.qpair.complete(command.tag, completion).unwrap(),
        }
    }
    pub fn execute(&mut self, command: Command) {
        let mut data = self.take(command.tag);
        self.executed.push(command);
        match self.responder.execute(&command, &mut data) {
            Answer::Complete(completion) => self.qpair.complete(command.tag, completion).unwrap(),
            Answer::Held => self.held.push(command),
            Answer::Data(completion) => {
                let len = data.len() as u32;
                if self.buffers.len() <= command.tag.index() {
                    self.buffers.resize(command.tag.index() + 1, None);
                }
                self.buffers[command.tag.index()] = Some((command.tag, data));
                self.qpair.complete_with_data(command.tag, len, completion).unwrap();
            }
        }
    }
    pub fn send(&mut self) {
        let mut header = [0; TRANSMIT_HEADER_BYTES];
        while let Some(transmit) = self.qpair.poll_transmit(&mut header) {
            self.terms += usize::from(header[0] == pdu::kind::C2H_TERM_REQ);
            self.out.extend_from_slice(&header[..transmit.header]);
            if let Some(payload) = transmit.payload {
                let (owner, data) = self.buffers[payload.tag.index()].as_ref().unwrap();
                assert_eq!(*owner, payload.tag);
                let data = &data[payload.offset as usize..(payload.offset + payload.len) as usize];
                self.out.extend_from_slice(data);
                if transmit.digest {
                    self.out.extend_from_slice(&data_digest([data]));
                }
            }
            if let Some(tag) = transmit.done {
                self.take(tag);
            }
        }
    }
    /// PDUs that were sent since the last call.
    pub fn sent(&mut self) -> Vec<Vec<u8>> {
        split(&std::mem::take(&mut self.out))
    }
}

/// Cuts a well-formed stream at PLEN.
pub fn split(mut bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut pdus = Vec::new();
    while !bytes.is_empty() {
        let plen = Common::decode(bytes).plen as usize;
        assert!((8..=bytes.len()).contains(&plen), "our own PDUs are whole");
        pdus.push(bytes[..plen].to_vec());
        bytes = &bytes[plen..];
    }
    pdus
}

pub fn cqe(pdu: &[u8]) -> Cqe {
    assert_eq!(pdu[0], pdu::kind::CAPSULE_RESP, "a response: {pdu:02x?}");
    Cqe(pdu[8..24].try_into().unwrap())
}

/// A host that writes raw PDUs, right ones by default.
#[derive(Clone, Copy, Default)]
pub struct Raw {
    pub format: Format,
}

impl Raw {
    pub fn digests(header_digest: bool, data_digest: bool) -> Raw {
        Raw { format: Format { header_digest, data_digest, alignment: 0 } }
    }
    pub fn ic_req(&self) -> Vec<u8> {
        let dgst = u8::from(self.format.header_digest) | u8::from(self.format.data_digest) << 1;
        let mut out = vec![0; 128];
        Ic { dgst, ..Ic::default() }.encode(pdu::kind::IC_REQ, &mut out);
        out
    }
    /// A capsule with in-capsule data and a digest as negotiated.
    pub fn capsule(&self, sqe: &Sqe, data: &[u8]) -> Vec<u8> {
        let mut out = vec![0; 160];
        let len = self.format.capsule_cmd(&mut out, sqe, data.len() as u32);
        self.body(out, len, data)
    }
    pub fn h2c(&self, cccid: u16, ttag: u16, offset: u32, data: &[u8], last: bool) -> Vec<u8> {
        let mut out = vec![0; 160];
        let header = pdu::Data { cccid, ttag, offset, length: data.len() as u32 };
        let len = self.format.h2c_data(&mut out, &header, last);
        self.body(out, len, data)
    }
    fn body(&self, mut out: Vec<u8>, len: usize, data: &[u8]) -> Vec<u8> {
        out.truncate(len);
        out.extend_from_slice(data);
        if self.format.data_digest && !data.is_empty() {
            out.extend_from_slice(&data_digest([data]));
        }
        out
    }
    pub fn connect(&self, qid: u16, entries: u16) -> Vec<u8> {
        let sqe = connect_sqe(qid, entries);
        self.capsule(&sqe, &[0; CONNECT_DATA])
    }
    /// Recomputes the header digest after `change`.
    pub fn change(&self, pdu: &[u8], change: impl FnOnce(&mut [u8])) -> Vec<u8> {
        let hlen = usize::from(pdu[2]);
        let mut pdu = pdu.to_vec();
        change(&mut pdu);
        if self.format.header_digest && hlen < pdu.len() {
            let digest = peristyle_base::crc32c(&pdu[..hlen]);
            pdu[hlen..hlen + 4].copy_from_slice(&digest.to_le_bytes());
        }
        pdu
    }
}

pub fn connect_sqe(qid: u16, entries: u16) -> Sqe {
    let mut sqe = Sqe::fabrics(fctype::CONNECT, Cid(0));
    sqe.set_sgl(Sgl::in_capsule(CONNECT_DATA as u32));
    sqe.0[42..44].copy_from_slice(&qid.to_le_bytes());
    sqe.0[44..46].copy_from_slice(&(entries - 1).to_le_bytes());
    sqe
}

pub fn rw(opcode: u8, cid: u16, lba: u64, blocks: u32, sgl: Sgl) -> Sqe {
    let mut sqe = Sqe::new(opcode, Cid(cid));
    sqe.set_nsid(1);
    sqe.set_lbas(lba, blocks);
    sqe.set_sgl(sgl);
    sqe
}
pub fn read(cid: u16, lba: u64, blocks: u32) -> Sqe {
    rw(nvm::READ, cid, lba, blocks, Sgl::transport(blocks * LBA as u32))
}
pub fn write_in_capsule(cid: u16, lba: u64, blocks: u32) -> Sqe {
    rw(nvm::WRITE, cid, lba, blocks, Sgl::in_capsule(blocks * LBA as u32))
}
pub fn write(cid: u16, lba: u64, blocks: u32) -> Sqe {
    rw(nvm::WRITE, cid, lba, blocks, Sgl::transport(blocks * LBA as u32))
}
pub fn flush(cid: u16) -> Sqe {
    let mut sqe = Sqe::new(opcode::nvm::FLUSH, Cid(cid));
    sqe.set_sgl(Sgl::transport(0));
    sqe
}

/// The initiator with its driver.
pub struct Host {
    pub qpair: HostQpair,
    pub now: Instant,
    pub out: Vec<u8>,
    pub buffers: Vec<Vec<u8>>,
    pub events: Vec<host::Event>,
}

impl Host {
    pub fn new(config: HostConfig) -> Host {
        let now = Instant(1_000_000_000);
        let count = config.entries as usize;
        Host {
            qpair: HostQpair::new(now, config),
            now,
            out: Vec::new(),
            buffers: vec![Vec::new(); count],
            events: Vec::new(),
        }
    }
    pub fn submit(&mut self, sqe: Sqe, data: host::Data, bytes: &[u8]) -> Result<Tag, host::NotNow> {
        let tag = self.qpair.submit(sqe, data)?;
        self.buffers[tag.index()] = match data {
            host::Data::FromTarget(len) => vec![0xdd; len as usize],
            _ => bytes.to_vec(),
        };
        Ok(tag)
    }
    pub fn input(&mut self, mut rest: &[u8]) {
        while !rest.is_empty() {
            match self.qpair.next_input() {
                Input::Closed | Input::Wait { .. } => break,
                Input::Bytes { .. } => {
                    let taken = self.qpair.handle_bytes(self.now, rest).unwrap_or(rest.len());
                    rest = &rest[taken..];
                }
                Input::Payload { tag, offset, len } => {
                    let take = rest.len().min(len as usize);
                    let at = offset as usize;
                    self.buffers[tag.index()][at..at + take].copy_from_slice(&rest[..take]);
                    let _ = self.qpair.handle_payload(self.now, &rest[..take]);
                    rest = &rest[take..];
                }
            }
        }
        self.pump();
    }
    pub fn pump(&mut self) {
        while let Some(event) = self.qpair.poll_event() {
            self.events.push(event);
        }
        let mut header = [0; TRANSMIT_HEADER_BYTES];
        while let Some(transmit) = self.qpair.poll_transmit(&mut header) {
            self.out.extend_from_slice(&header[..transmit.header]);
            if let Some(payload) = transmit.payload {
                let data = &self.buffers[payload.tag.index()];
                let data = &data[payload.offset as usize..(payload.offset + payload.len) as usize];
                self.out.extend_from_slice(data);
                if transmit.digest {
                    self.out.extend_from_slice(&data_digest([data]));
                }
            }
        }
    }
    /// Completions that came since the last call.
    pub fn completions(&mut self) -> Vec<(Tag, Cqe, u32)> {
        std::mem::take(&mut self.events)
            .into_iter()
            .filter_map(|event| match event {
                host::Event::Complete { tag, cqe, received } => Some((tag, cqe, received)),
                _ => None,
            })
            .collect()
    }
}

/// Carries bytes both ways in pieces of the sizes that `segment` gives, until both are silent.
pub fn exchange<R: Responder>(host: &mut Host, target: &mut Target<R>, segment: &mut dyn FnMut() -> usize) {
    loop {
        host.pump();
        target.pump();
        let (up, down) = (std::mem::take(&mut host.out), std::mem::take(&mut target.out));
        if up.is_empty() && down.is_empty() {
            return;
        }
        for (bytes, to_target) in [(up, true), (down, false)] {
            let mut rest = &bytes[..];
            while !rest.is_empty() {
                let (piece, tail) = rest.split_at(segment().clamp(1, rest.len()));
                rest = tail;
                if to_target {
                    target.input(piece);
                } else {
                    host.input(piece);
                }
            }
        }
    }
}
