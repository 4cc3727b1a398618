//! One entry point per parser for fuzzers: any bytes go in, nothing panics, nothing is lost.

use crate::controller::{AdminOutcome, admin_data_bytes};
use crate::discovery::Portal;
use crate::io_command::{self, IoCommand};
use crate::registry::{ConnId, ControllerRef, Registry, RegistryConfig, SubsystemId};
use crate::subsystem::{LbaSize, Namespace, Subsystem, TRANSFER_BYTES_MAX};
use crate::wire::fabrics::{CNTLID_DYNAMIC, ConnectData, DISCOVERY_NQN, Nqn};
use crate::wire::log_page::AnaState;
use crate::wire::opcode::{admin, fctype};
use crate::wire::property::offset;
use crate::wire::{Cid, Sqe, dsm};
use peristyle_base::{Instant, Uuid};
use zerocopy::IntoBytes;

const NQN: &str = "nqn.2026-11.io.peristyle:fuzz";
const HOST: &str = "nqn.2026-11.io.peristyle:host";

/// A target with a namespace of each LBA size, and an enabled controller: of the subsystem or of discovery.
pub struct Target {
    pub registry: Registry,
    pub subsystem: SubsystemId,
    pub controller: ControllerRef,
}

fn nqn(text: &str) -> Nqn {
    Nqn::new(text).expect("a name written above")
}

fn namespace(nsid: u32, lba_size: LbaSize) -> Namespace {
    Namespace {
        nsid,
        uuid: Uuid([nsid as u8; 16]),
        nguid: [nsid as u8; 16],
        lba_size,
        lbas: 1 << 20,
        lbas_used: 0,
        read_only: false,
        ana_group: 1,
    }
}

impl Target {
    pub fn new(discovery: bool) -> Target {
        let mut registry = Registry::new(RegistryConfig { controllers_max: 8, ..RegistryConfig::default() });
        let address = core::net::SocketAddr::from(([127, 0, 0, 1], 4420));
        registry.set_portals(vec![Portal { address, id: 1, admin_queue_entries: 32 }]);
        let subsystem = registry.add_subsystem(Subsystem::new(nqn(NQN), "fuzz")).expect("the first one");
        for (nsid, size) in [(1, LbaSize::B4096), (2, LbaSize::B512)] {
            registry.put_namespace(subsystem, namespace(nsid, size)).expect("a valid namespace");
        }
        let name = if discovery { DISCOVERY_NQN } else { NQN };
        let data = ConnectData::new([1; 16], CNTLID_DYNAMIC, &nqn(name), &nqn(HOST));
        let mut sqe = Sqe::fabrics(fctype::CONNECT, Cid(0));
        sqe.set_cdw(11, 31);
        let connected = registry.connect(Instant(1), ConnId(1), &sqe, data.as_bytes());
        let controller = connected.expect("a valid Connect").controller;
        let mut target = Target { registry, subsystem, controller };
        let mut enable = Sqe::fabrics(fctype::PROPERTY_SET, Cid(1));
        enable.set_cdw(11, offset::CC);
        enable.set_cdw(12, 0x0046_0001);
        let _ = target.registry.handle_admin(Instant(2), controller, &enable, &mut []);
        target
    }
}

fn sqe(bytes: &[u8]) -> Sqe {
    let mut sqe = Sqe::default();
    let len = bytes.len().min(Sqe::BYTES);
    sqe.0[..len].copy_from_slice(&bytes[..len]);
    sqe
}

/// Connect: 64 bytes of command, the rest is its data.
pub fn connect(bytes: &[u8]) {
    let mut target = Target::new(false);
    let (command, data) = bytes.split_at(bytes.len().min(Sqe::BYTES));
    if let Ok(connected) = target.registry.connect(Instant(3), ConnId(2), &sqe(command), data) {
        target.registry.disconnected(&connected);
    }
}

/// Any admin commands, one after the other, to an enabled controller; the first byte chooses its kind and how near
/// to real opcodes they are. Time passes, too.
pub fn admin_commands(bytes: &[u8]) {
    const OPCODES: [u8; 8] = [
        admin::IDENTIFY,
        admin::GET_LOG_PAGE,
        admin::GET_FEATURES,
        admin::SET_FEATURES,
        admin::ASYNC_EVENT_REQUEST,
        admin::ABORT,
        admin::KEEP_ALIVE,
        crate::wire::opcode::FABRICS,
    ];
    let Some((mode, bytes)) = bytes.split_first() else { return };
    let mut target = Target::new(mode & 1 != 0);
    let mut out = vec![0; 8192];
    for (i, chunk) in bytes.chunks(Sqe::BYTES).enumerate() {
        let mut command = sqe(chunk);
        if mode & 2 != 0 {
            command.0[0] = OPCODES[usize::from(command.0[0]) % OPCODES.len()];
        }
        let wanted = admin_data_bytes(&command);
        assert!(wanted <= TRANSFER_BYTES_MAX as usize);
        out.resize(wanted.max(8192), 0);
        out.fill(0xee);
        let now = Instant(1_000_000_000 * (i as u64 + 3));
        if let AdminOutcome::Complete { data_bytes, status, .. } =
            target.registry.handle_admin(now, target.controller, &command, &mut out)
        {
            assert!(data_bytes <= wanted && (status.is_success() || data_bytes == 0));
            assert!(out[data_bytes..].iter().all(|b| *b == 0xee), "bytes behind the data were written");
        }
        let state = if i % 2 == 0 { AnaState::Inaccessible } else { AnaState::Optimized };
        let _ = target.registry.set_ana_state(target.subsystem, 1, state);
        target.registry.handle_timeout(now);
        while target.registry.poll_event().is_some() {}
    }
}

/// One I/O command with its data: what is accepted stays within the namespace and within MDTS.
pub fn io_command(bytes: &[u8]) {
    let target = Target::new(false);
    let table = target.registry.namespace_table(target.subsystem);
    let (command, data) = bytes.split_at(bytes.len().min(Sqe::BYTES));
    let mut command = sqe(command);
    let _ = io_command::fabrics_on_io_queue(&command);
    for nsid in [command.nsid(), 1, 2] {
        command.set_nsid(nsid);
        let _ = io_command::decode_compare_write(&command, &command, &table);
        let Ok((decoded, Some(ns))) = io_command::decode(&command, &table) else { continue };
        assert!(decoded.data_bytes(ns) <= TRANSFER_BYTES_MAX);
        match decoded {
            IoCommand::Read { range, .. }
            | IoCommand::Write { range, .. }
            | IoCommand::WriteZeroes { range, .. }
            | IoCommand::Compare { range }
            | IoCommand::Verify { range } => {
                assert!(range.slba + u64::from(range.blocks) <= ns.lbas && range.blocks > 0);
            }
            IoCommand::DatasetManagement { ranges, .. } => dataset_management(data, ranges, ns),
            IoCommand::Flush => {}
        }
    }
}

fn dataset_management(data: &[u8], ranges: u16, ns: &crate::subsystem::NamespaceView) {
    if io_command::check_ranges(data, ranges, ns).is_ok() {
        let list = &data[..usize::from(ranges) * dsm::RANGE_BYTES];
        assert!(dsm::parse_ranges(list).all(|r| r.slba + u64::from(r.blocks) <= ns.lbas));
    }
}

/// A Dataset Management command with any number of ranges, at most `data` of them there.
pub fn dsm_ranges(bytes: &[u8]) {
    let Some((ranges, data)) = bytes.split_first() else { return };
    let target = Target::new(false);
    let table = target.registry.namespace_table(target.subsystem);
    for ns in table.iter() {
        dataset_management(data, u16::from(*ranges) + 1, ns);
    }
}

/// A name of 256 bytes: what is accepted is printable and reads back as it was.
pub fn name(bytes: &[u8]) {
    let mut field = [0; 256];
    let len = bytes.len().min(256);
    field[..len].copy_from_slice(&bytes[..len]);
    if let Some(nqn) = Nqn::from_field(&field) {
        assert_eq!(Nqn::from_field(&nqn.padded()), Some(nqn));
        assert!(nqn.as_str().starts_with("nqn."));
    }
}
