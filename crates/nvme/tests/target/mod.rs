//! A target at the level of its controllers: what tests say to it, without a connection.
//!
//! With `wired` set, the same calls travel as PDUs through queue pairs, with or without digests.
#![allow(dead_code)]

#[path = "../common/mod.rs"]
mod common;
mod wire;

use peristyle_base::{Instant, Uuid};
use peristyle_nvme::controller::{AdminOutcome, admin_data_bytes};
use peristyle_nvme::discovery::Portal;
use peristyle_nvme::qpair::Completion;
use peristyle_nvme::registry::{
    ConnId, Connected, ControllerRef, Refused, Registry, RegistryConfig, SubsystemId, TargetEvent,
};
use peristyle_nvme::subsystem::{LbaSize, Namespace, Subsystem};
use peristyle_nvme::wire::fabrics::{CNTLID_DYNAMIC, ConnectData, Nqn};
use peristyle_nvme::wire::feature::event_bit;
use peristyle_nvme::wire::opcode::{admin, fctype};
use peristyle_nvme::wire::property::offset;
use peristyle_nvme::wire::{Cid, Sgl, Sqe, Status};
use zerocopy::IntoBytes;

pub const SUBSYSTEM: &str = "nqn.2026-11.io.peristyle:demo";
pub const HOST: &str = "nqn.2014-08.org.nvmexpress:uuid:00000000-0000-4000-8000-000000000001";
pub const OTHER_HOST: &str = "nqn.2014-08.org.nvmexpress:uuid:00000000-0000-4000-8000-000000000002";
pub const IO_HOST: &str = "nqn.2014-08.org.nvmexpress:uuid:00000000-0000-4000-8000-000000000003";
pub const HOSTID: [u8; 16] = [7; 16];
/// CC.EN with entry sizes of 64 and 16 bytes.
pub const ENABLE: u32 = 0x0046_0001;

pub fn nqn(text: &str) -> Nqn {
    Nqn::new(text).unwrap()
}

pub fn namespace(nsid: u32, lba_size: LbaSize) -> Namespace {
    Namespace {
        nsid,
        uuid: Uuid([nsid as u8 | 0x40; 16]),
        nguid: [nsid as u8; 16],
        lba_size,
        lbas: (1 << 30) >> lba_size.shift(),
        lbas_used: 5,
        read_only: false,
        ana_group: 1,
    }
}

pub struct Target {
    pub registry: Registry,
    pub subsystem: SubsystemId,
    pub now: Instant,
    conn: u64,
    pub out: Vec<u8>,
    pub wired: Option<Digests>,
    connections: Vec<wire::Connection>,
}

/// Whether the connections have digests.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Digests(pub bool);

/// A Connect command: `entries` as a count.
pub fn connect_sqe(qid: u16, entries: u16, kato_ms: u32) -> Sqe {
    let mut sqe = Sqe::fabrics(fctype::CONNECT, Cid(0));
    sqe.set_cdw(10, u32::from(qid) << 16);
    sqe.set_cdw(11, u32::from(entries.wrapping_sub(1)));
    sqe.set_cdw(12, kato_ms);
    sqe.set_sgl(Sgl::in_capsule(1024));
    sqe
}

pub fn connect_data(cntlid: u16, subsystem: &str, host: &str) -> ConnectData {
    ConnectData::new(HOSTID, cntlid, &nqn(subsystem), &nqn(host))
}

pub fn admin_sqe(opcode: u8) -> Sqe {
    let mut sqe = Sqe::new(opcode, Cid(1));
    // Room for any answer; nothing to send.
    sqe.set_sgl(Sgl::transport(if opcode & 3 == 1 { 0 } else { 512 * 1024 }));
    sqe
}

pub fn identify_sqe(cns: u8, nsid: u32) -> Sqe {
    let mut sqe = admin_sqe(admin::IDENTIFY);
    sqe.set_nsid(nsid);
    sqe.set_cdw(10, u32::from(cns));
    sqe
}

/// Get Log Page of `bytes` from `offset`.
pub fn log_sqe(lid: u8, bytes: u32, offset: u64) -> Sqe {
    let mut sqe = admin_sqe(admin::GET_LOG_PAGE);
    let numd = bytes / 4 - 1;
    sqe.set_nsid(0xffff_ffff);
    sqe.set_cdw(10, u32::from(lid) | numd << 16);
    sqe.set_cdw(11, numd >> 16);
    sqe.set_cdw(12, offset as u32);
    sqe.set_cdw(13, (offset >> 32) as u32);
    sqe
}

pub fn set_feature_sqe(fid: u8, value: u32) -> Sqe {
    let mut sqe = admin_sqe(admin::SET_FEATURES);
    sqe.set_cdw(10, u32::from(fid));
    sqe.set_cdw(11, value);
    sqe
}

pub fn get_feature_sqe(fid: u8, select: u32) -> Sqe {
    let mut sqe = admin_sqe(admin::GET_FEATURES);
    sqe.set_cdw(10, u32::from(fid) | select << 8);
    sqe
}

pub fn property_sqe(set: bool, offset: u32, bytes: u8, value: u64) -> Sqe {
    let mut sqe = Sqe::fabrics(if set { fctype::PROPERTY_SET } else { fctype::PROPERTY_GET }, Cid(2));
    sqe.set_cdw(10, u32::from(bytes == 8));
    sqe.set_cdw(11, offset);
    sqe.set_cdw(12, value as u32);
    sqe.set_cdw(13, (value >> 32) as u32);
    sqe
}

impl Target {
    pub fn new() -> Target {
        Target::with(RegistryConfig::default(), Subsystem::new(nqn(SUBSYSTEM), "0123456789"))
    }
    /// With namespaces 1 (LBAs of 4096 bytes) and 2 (512), of 1 GiB each.
    pub fn with(config: RegistryConfig, subsystem: Subsystem) -> Target {
        let mut registry = Registry::new(config);
        registry.set_portals(vec![Portal {
            address: "192.0.2.1:4420".parse().unwrap(),
            id: 1,
            admin_queue_entries: 32,
        }]);
        let subsystem = registry.add_subsystem(subsystem).unwrap();
        registry.put_namespace(subsystem, namespace(1, LbaSize::B4096)).unwrap();
        registry.put_namespace(subsystem, namespace(2, LbaSize::B512)).unwrap();
        Target {
            registry,
            subsystem,
            now: Instant(1_000_000_000),
            conn: 0,
            out: Vec::new(),
            wired: None,
            connections: Vec::new(),
        }
    }
    pub fn connect(&mut self, sqe: &Sqe, data: &[u8]) -> Result<Connected, Refused> {
        self.conn += 1;
        if let Some(Digests(digests)) = self.wired {
            let mut connection = wire::Connection::open(ConnId(self.conn), self.now, digests);
            let result = connection.connect(&mut self.registry, sqe, data);
            self.connections.push(connection);
            return result;
        }
        self.registry.connect(self.now, ConnId(self.conn), sqe, data)
    }
    pub fn connect_admin_as(&mut self, host: &str) -> Connected {
        let data = connect_data(CNTLID_DYNAMIC, SUBSYSTEM, host);
        self.connect(&connect_sqe(0, 32, 0), data.as_bytes()).unwrap()
    }
    /// An admin queue, not yet enabled.
    pub fn connect_admin(&mut self) -> Connected {
        self.connect_admin_as(HOST)
    }
    pub fn connect_discovery(&mut self) -> Connected {
        let data = connect_data(CNTLID_DYNAMIC, "nqn.2014-08.org.nvmexpress.discovery", HOST);
        let connected = self.connect(&connect_sqe(0, 32, 0), data.as_bytes()).unwrap();
        self.set_cc(connected.controller, ENABLE);
        connected
    }
    pub fn connect_io(&mut self, cntlid: u16, qid: u16) -> Result<Connected, Refused> {
        let data = connect_data(cntlid, SUBSYSTEM, HOST);
        self.connect(&connect_sqe(qid, 128, 0), data.as_bytes())
    }
    /// An enabled controller.
    pub fn ready(&mut self) -> Connected {
        let connected = self.connect_admin();
        self.set_cc(connected.controller, ENABLE);
        connected
    }
    pub fn set_cc(&mut self, controller: ControllerRef, cc: u32) {
        let (status, ..) = self.admin(controller, &property_sqe(true, offset::CC, 4, u64::from(cc)));
        assert_eq!(status, Status::SUCCESS);
    }
    pub fn property(&mut self, controller: ControllerRef, offset: u32, bytes: u8) -> u64 {
        let sqe = property_sqe(false, offset, bytes, 0);
        match self.raw(controller, &sqe) {
            AdminOutcome::Complete { status, dw0, dw1, .. } => {
                assert_eq!(status, Status::SUCCESS);
                u64::from(dw0) | u64::from(dw1) << 32
            }
            AdminOutcome::Pending => panic!("Property Get does not wait"),
        }
    }
    pub fn raw(&mut self, controller: ControllerRef, sqe: &Sqe) -> AdminOutcome {
        if self.wired.is_some() {
            return self.raw_wired(controller, sqe);
        }
        self.out = vec![0xee; admin_data_bytes(sqe)];
        self.registry.handle_admin(self.now, controller, sqe, &mut self.out)
    }
    fn raw_wired(&mut self, controller: ControllerRef, sqe: &Sqe) -> AdminOutcome {
        let admin = |c: &Connected| c.controller == controller && c.qid == 0;
        let connection =
            self.connections.iter_mut().find(|c| c.connected().as_ref().is_some_and(admin)).unwrap();
        let keep_cid = sqe.opcode() == admin::ASYNC_EVENT_REQUEST;
        let reply = connection.command(&mut self.registry, self.now, *sqe, keep_cid);
        let Some(Completion { status, dw0, dw1 }) = reply.completion else { return AdminOutcome::Pending };
        self.out = reply.data;
        AdminOutcome::Complete { status, dw0, dw1, data_bytes: self.out.len() }
    }
    /// Sends commands on an I/O queue of a controller of its own; status and dword 0 of each.
    pub fn on_io_queue(&mut self, commands: &[Sqe]) -> Vec<(Status, u32)> {
        let c = self.connect_admin_as(IO_HOST);
        self.set_cc(c.controller, ENABLE);
        let data = connect_data(c.cntlid, SUBSYSTEM, IO_HOST);
        self.connect(&connect_sqe(1, 128, 0), data.as_bytes()).unwrap();
        let (now, registry) = (self.now, &mut self.registry);
        let connection = self.connections.last_mut().unwrap();
        let one = |sqe: &Sqe| connection.command(registry, now, *sqe, false).completion.unwrap();
        commands.iter().map(one).map(|completion| (completion.status, completion.dw0)).collect()
    }
    /// Status and dword 0; the data is in `self.out`.
    pub fn admin(&mut self, controller: ControllerRef, sqe: &Sqe) -> (Status, u32) {
        match self.raw(controller, sqe) {
            AdminOutcome::Complete { status, dw0, data_bytes, .. } => {
                self.out.truncate(data_bytes);
                (status, dw0)
            }
            AdminOutcome::Pending => panic!("{sqe:?} waits"),
        }
    }
    /// The data of a command that succeeds.
    pub fn data(&mut self, controller: ControllerRef, sqe: &Sqe) -> Vec<u8> {
        let (status, _) = self.admin(controller, sqe);
        assert_eq!(status, Status::SUCCESS, "{sqe:?}");
        self.out.clone()
    }
    /// Leaves an Asynchronous Event Request.
    pub fn listen(&mut self, controller: ControllerRef, cid: u16) {
        let outcome = self.raw(controller, &Sqe::new(admin::ASYNC_EVENT_REQUEST, Cid(cid)));
        assert_eq!(outcome, AdminOutcome::Pending);
    }
    pub fn enable_events(&mut self, controller: ControllerRef) {
        let bits = event_bit::NAMESPACE_ATTRIBUTE | event_bit::ANA_CHANGE;
        let (status, _) = self.admin(controller, &set_feature_sqe(0x0b, bits));
        assert_eq!(status, Status::SUCCESS);
    }
    pub fn events(&mut self) -> Vec<TargetEvent> {
        core::iter::from_fn(|| self.registry.poll_event()).collect()
    }
    pub fn wait(&mut self, ms: u64) {
        self.now += peristyle_base::Duration::from_millis(ms);
        self.registry.handle_timeout(self.now);
    }
}
