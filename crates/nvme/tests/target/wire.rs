//! The same target behind real connections: commands travel as PDUs through a queue pair.

use super::common::{self, Answer, Raw, Responder};
use peristyle_base::Instant;
use peristyle_nvme::controller::{AdminOutcome, admin_data_bytes};
use peristyle_nvme::io_command::{self, IoQueueFabrics};
use peristyle_nvme::qpair::{Accept, Command, Completion, MAXH2CDATA_BYTES, QpairLimits};
use peristyle_nvme::registry::Registry;
use peristyle_nvme::registry::{ConnId, Connected, Refused, RegistryConfig};
use peristyle_nvme::wire::pdu::{Data, kind};
use peristyle_nvme::wire::{Cid, Sgl, Sqe, Status, get_u32};

/// One connection's side of the controllers. The registry is lent to it while bytes arrive.
pub struct Controllers {
    pub registry: Registry,
    pub now: Instant,
    conn: ConnId,
    pub connected: Option<Connected>,
}

impl Responder for Controllers {
    fn connect(&mut self, command: &Command, data: &[u8]) -> Result<Accept, Completion> {
        match self.registry.connect(self.now, self.conn, &command.sqe, data) {
            Ok(connected) => {
                self.connected = Some(connected);
                Ok(Accept {
                    qid: connected.qid,
                    entries: u32::from(connected.entries),
                    flow_control: !connected.flow_control_disabled,
                    dw0: u32::from(connected.cntlid),
                })
            }
            Err(Refused { status, dw0 }) => Err(Completion { status, dw0, dw1: 0 }),
        }
    }
    fn execute(&mut self, command: &Command, data: &mut Vec<u8>) -> Answer {
        let connected = self.connected.expect("the queue pair waits for Connect");
        if connected.qid != 0 {
            return self.execute_io(command, data, connected);
        }
        let mut out = vec![0; admin_data_bytes(&command.sqe)];
        match self.registry.handle_admin(self.now, connected.controller, &command.sqe, &mut out) {
            AdminOutcome::Pending => Answer::Held,
            AdminOutcome::Complete { status, dw0, dw1, data_bytes: 0 } => {
                Answer::Complete(Completion { status, dw0, dw1 })
            }
            AdminOutcome::Complete { status, dw0, dw1, data_bytes } => {
                out.truncate(data_bytes);
                *data = out;
                Answer::Data(Completion { status, dw0, dw1 })
            }
        }
    }
    fn compare_and_write(&mut self, _: &[u8], _: &[u8], _: &Command) -> [Completion; 2] {
        panic!("fused pairs are tested with the queue pair")
    }
}

impl Controllers {
    fn execute_io(&mut self, command: &Command, data: &mut Vec<u8>, connected: Connected) -> Answer {
        if command.sqe.is_fabrics() {
            return match io_command::fabrics_on_io_queue(&command.sqe) {
                IoQueueFabrics::Disconnect => Status::SUCCESS.into(),
                IoQueueFabrics::Refuse(status) => status.into(),
            };
        }
        let table = self.registry.namespace_table(connected.subsystem.expect("an I/O queue"));
        match io_command::decode(&command.sqe, &table) {
            Err(status) => status.into(),
            Ok((io_command::IoCommand::Read { range, .. }, Some(ns))) => {
                *data = vec![0; range.bytes(ns).1 as usize];
                Answer::Data(Completion::default())
            }
            Ok(_) => Status::SUCCESS.into(),
        }
    }
}

/// What came back for one command.
pub struct Reply {
    pub completion: Option<Completion>,
    pub data: Vec<u8>,
}

/// A connection and the host at its other end.
pub struct Connection {
    target: common::Target<Controllers>,
    raw: Raw,
    cid: u16,
}

impl Connection {
    pub fn open(conn: ConnId, now: Instant, digests: bool) -> Connection {
        let registry = Registry::new(RegistryConfig { controllers_max: 0, ..RegistryConfig::default() });
        let controllers = Controllers { registry, now, conn, connected: None };
        let mut target = common::Target::new(QpairLimits::default(), controllers);
        let raw = Raw::digests(digests, digests);
        target.input(&raw.ic_req());
        assert_eq!(target.sent().len(), 1, "ICResp");
        Connection { target, raw, cid: 1000 }
    }
    pub fn connected(&self) -> Option<Connected> {
        self.target.responder.connected
    }
    pub fn connect(&mut self, registry: &mut Registry, sqe: &Sqe, data: &[u8]) -> Result<Connected, Refused> {
        let mut sqe = *sqe;
        sqe.set_sgl(Sgl::in_capsule(data.len() as u32));
        let completion = self.exchange(registry, sqe, data).completion.expect("Connect is answered");
        assert!(self.target.qpair.is_open());
        match self.connected() {
            Some(connected) if completion.status == Status::SUCCESS => Ok(connected),
            _ => Err(Refused { status: completion.status, dw0: completion.dw0 }),
        }
    }
    /// Sends one command and serves its R2Ts with zeroes.
    pub fn command(&mut self, registry: &mut Registry, now: Instant, mut sqe: Sqe, keep_cid: bool) -> Reply {
        self.target.responder.now = now;
        if !keep_cid {
            self.cid += 1;
            sqe.set_cid(Cid(self.cid));
        }
        self.exchange(registry, sqe, &[])
    }
    fn exchange(&mut self, registry: &mut Registry, sqe: Sqe, data: &[u8]) -> Reply {
        let mut reply = Reply { completion: None, data: Vec::new() };
        let mut bytes = self.raw.capsule(&sqe, data);
        while !bytes.is_empty() {
            std::mem::swap(registry, &mut self.target.responder.registry);
            self.target.input(&std::mem::take(&mut bytes));
            std::mem::swap(registry, &mut self.target.responder.registry);
            for pdu in self.target.sent() {
                let trailer = self.raw.format.ddgst_bytes();
                match pdu[0] {
                    kind::R2T => bytes.extend(self.serve(&Data::decode(&pdu))),
                    kind::C2H_DATA => reply.data.extend(&pdu[usize::from(pdu[3])..pdu.len() - trailer]),
                    kind::CAPSULE_RESP => {
                        let cqe = common::cqe(&pdu);
                        assert_eq!(cqe.cid(), sqe.cid());
                        let (dw0, dw1) = (cqe.dw0(), get_u32(&cqe.0, 4));
                        reply.completion = Some(Completion { status: cqe.status(), dw0, dw1 });
                    }
                    other => panic!("PDU type {other:x} in answer to {sqe:?}"),
                }
            }
        }
        reply
    }
    fn serve(&self, r2t: &Data) -> Vec<u8> {
        let (mut bytes, mut at) = (Vec::new(), r2t.offset);
        while at < r2t.offset + r2t.length {
            let len = (r2t.offset + r2t.length - at).min(MAXH2CDATA_BYTES);
            let last = at + len == r2t.offset + r2t.length;
            bytes.extend(self.raw.h2c(r2t.cccid, r2t.ttag, at, &vec![0; len as usize], last));
            at += len;
        }
        bytes
    }
}
