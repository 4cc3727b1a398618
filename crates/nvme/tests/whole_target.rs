//! Queue pairs and controllers together, byte for byte as a Linux host would use them.

mod common;

use std::cell::RefCell;
use std::rc::Rc;

use common::*;
use peristyle_base::{Instant, Uuid};
use peristyle_nvme::controller::{AdminOutcome, admin_data_bytes};
use peristyle_nvme::host::setup::{CNTLID_ANY, Connect, Next, Setup};
use peristyle_nvme::host::{Data, HostConfig};
use peristyle_nvme::io_command::{self, IoCommand, IoQueueFabrics};
use peristyle_nvme::qpair::{Accept, CloseReason, Command, Completion, QpairLimits};
use peristyle_nvme::registry::{ConnId, Connected, Registry, RegistryConfig, TargetEvent};
use peristyle_nvme::subsystem::{LbaSize, Namespace, Subsystem};
use peristyle_nvme::wire::fabrics::Nqn;
use peristyle_nvme::wire::opcode::{admin, nvm};
use peristyle_nvme::wire::{Cid, Sqe, Status, get_u16, get_u32, get_u64};

const NQN: &str = "nqn.2026-11.io.peristyle:demo";
const HOST: &str = "nqn.2014-08.org.nvmexpress:uuid:00000000-0000-4000-8000-000000000001";
const LBAS: u64 = 1024;

/// What all connections share.
struct Shared {
    registry: Registry,
    bytes: Vec<u8>,
}

/// One connection's view of it.
struct Side {
    shared: Rc<RefCell<Shared>>,
    conn: ConnId,
    connected: Option<Connected>,
}

fn namespace(nsid: u32) -> Namespace {
    Namespace {
        nsid,
        uuid: Uuid([nsid as u8 | 0x40; 16]),
        nguid: [nsid as u8; 16],
        lba_size: LbaSize::B4096,
        lbas: LBAS,
        lbas_used: 0,
        read_only: false,
        ana_group: 1,
    }
}

fn shared() -> Rc<RefCell<Shared>> {
    let mut registry = Registry::new(RegistryConfig::default());
    let id = registry.add_subsystem(Subsystem::new(Nqn::new(NQN).unwrap(), "0123456789")).unwrap();
    registry.put_namespace(id, namespace(1)).unwrap();
    Rc::new(RefCell::new(Shared { registry, bytes: vec![0; LBAS as usize * 4096] }))
}

fn target(shared: &Rc<RefCell<Shared>>, conn: u64) -> Target<Side> {
    let side = Side { shared: shared.clone(), conn: ConnId(conn), connected: None };
    Target::new(QpairLimits::default(), side)
}

impl Responder for Side {
    fn connect(&mut self, command: &Command, data: &[u8]) -> Result<Accept, Completion> {
        let registry = &mut self.shared.borrow_mut().registry;
        match registry.connect(Instant(1), self.conn, &command.sqe, data) {
            Ok(connected) => {
                self.connected = Some(connected);
                Ok(Accept {
                    qid: connected.qid,
                    entries: connected.entries.into(),
                    flow_control: !connected.flow_control_disabled,
                    dw0: connected.cntlid.into(),
                })
            }
            Err(refused) => Err(Completion { status: refused.status, dw0: refused.dw0, dw1: 0 }),
        }
    }
    fn execute(&mut self, command: &Command, data: &mut Vec<u8>) -> Answer {
        let connected = self.connected.expect("connected");
        let mut shared = self.shared.borrow_mut();
        if connected.qid == 0 {
            data.resize(data.len().max(admin_data_bytes(&command.sqe)), 0);
            let outcome = shared.registry.handle_admin(Instant(1), connected.controller, &command.sqe, data);
            return match outcome {
                AdminOutcome::Pending => Answer::Held,
                AdminOutcome::Complete { status, dw0, dw1, data_bytes: 0 } => {
                    data.clear();
                    Answer::Complete(Completion { status, dw0, dw1 })
                }
                AdminOutcome::Complete { status, dw0, dw1, data_bytes } => {
                    data.truncate(data_bytes);
                    Answer::Data(Completion { status, dw0, dw1 })
                }
            };
        }
        if command.sqe.is_fabrics() {
            return match io_command::fabrics_on_io_queue(&command.sqe) {
                IoQueueFabrics::Disconnect => Status::SUCCESS.into(),
                IoQueueFabrics::Refuse(status) => status.into(),
            };
        }
        let table = shared.registry.namespace_table(connected.subsystem.expect("an I/O controller"));
        let (io, ns) = match io_command::decode(&command.sqe, &table) {
            Ok(decoded) => decoded,
            Err(status) => return status.into(),
        };
        let at = |range: io_command::LbaRange| {
            let (offset, len) = range.bytes(ns.unwrap());
            offset as usize..(offset + len) as usize
        };
        match io {
            IoCommand::Read { range, .. } => {
                data.clear();
                data.extend_from_slice(&shared.bytes[at(range)]);
                Answer::Data(Completion::default())
            }
            IoCommand::Write { range, .. } => {
                let range = at(range);
                let len = range.len();
                shared.bytes[range].copy_from_slice(&data[..len]);
                Status::SUCCESS.into()
            }
            IoCommand::WriteZeroes { range, .. } => {
                shared.bytes[at(range)].fill(0);
                Status::SUCCESS.into()
            }
            _ => Status::SUCCESS.into(),
        }
    }
    fn compare_and_write(&mut self, _: &[u8], _: &[u8], _: &Command) -> [Completion; 2] {
        [Status::INVALID_OPCODE.into(), Status::INVALID_OPCODE.into()]
    }
}

/// One queue of a host, connected.
struct Queue {
    host: Host,
    target: Target<Side>,
}

impl Queue {
    fn open(shared: &Rc<RefCell<Shared>>, qid: u16, cntlid: u16, digests: bool) -> (Queue, Setup) {
        // Linux: 32 admin entries, 128 I/O entries; flow control on.
        let entries = if qid == 0 { 32 } else { 128 };
        let config =
            HostConfig { entries, header_digest: digests, data_digest: digests, ..HostConfig::default() };
        let mut queue = Queue {
            host: Host::new(config),
            target: target(shared, u64::from(cntlid) << 16 | u64::from(qid)),
        };
        let connect = Connect {
            host_id: [7; 16],
            host_nqn: HOST,
            subsystem_nqn: NQN,
            cntlid,
            qid,
            entries,
            keep_alive_ms: if qid == 0 { 5000 } else { 0 },
            flow_control: true,
        };
        let mut setup = if qid == 0 { Setup::admin() } else { Setup::io() };
        let mut data = [0; 1024];
        queue.settle();
        for _ in 0..8 {
            match setup.next(&connect, &mut data) {
                Next::Submit(sqe, shape) | Next::SubmitLater(sqe, shape) => {
                    queue.host.submit(sqe, shape, &data).unwrap();
                }
                Next::Ready => return (queue, setup),
                Next::Failed(status) => panic!("{status:?}"),
            }
            queue.settle();
            for (_, cqe, _) in queue.host.completions() {
                setup.handle(&cqe);
            }
        }
        panic!("never ready");
    }
    fn settle(&mut self) {
        exchange(&mut self.host, &mut self.target, &mut || 1448);
    }
    fn run(&mut self, sqe: Sqe, shape: Data, bytes: &[u8]) -> (Status, u32, Vec<u8>) {
        let tag = self.host.submit(sqe, shape, bytes).unwrap();
        self.settle();
        let done = self.host.completions();
        assert_eq!(done.len(), 1);
        (done[0].1.status(), done[0].1.dw0(), self.host.buffers[tag.index()].clone())
    }
}

fn sqe(opcode: u8, nsid: u32, cdw10: u32, cdw11: u32) -> Sqe {
    let mut sqe = Sqe::new(opcode, Cid(0));
    sqe.set_nsid(nsid);
    sqe.set_cdw(10, cdw10);
    sqe.set_cdw(11, cdw11);
    sqe
}

#[test]
fn a_linux_host_attaches_writes_reads_and_leaves() {
    for digests in [false, true] {
        let shared = shared();
        let (mut admin, setup) = Queue::open(&shared, 0, CNTLID_ANY, digests);
        // CAP: contiguous queues, 128 entries.
        assert_eq!(setup.entries_max(), 128);

        // nvme_init_identify and what it leads to.
        let (status, _, id) = admin.run(sqe(admin::IDENTIFY, 0, 1, 0), Data::FromTarget(4096), &[]);
        assert!(status.is_success());
        let limits = *admin.target.qpair.limits();
        assert_eq!(get_u16(&id, 78), setup.cntlid(), "CNTLID");
        assert_eq!(4096u32 << id[77], limits.transfer_bytes_max, "MDTS is what the queue pair takes");
        assert_eq!(get_u32(&id, 1792) * 16 - 64, limits.io_in_capsule_bytes, "IOCCSZ likewise");
        assert_eq!((get_u32(&id, 1796), get_u16(&id, 1800)), (1, 0), "IORCSZ is a CQE, ICDOFF is 0");
        assert_ne!(get_u32(&id, 536) & 3, 0, "SGLS: a Fabrics host needs SGLs");
        assert_ne!(get_u16(&id, 320), 0, "KAS");

        let (status, queues, _) = admin.run(sqe(admin::SET_FEATURES, 0, 7, 0x0003_0003), Data::None, &[]);
        assert!(status.is_success());
        assert!((queues & 0xffff) >= 3 && queues >> 16 >= 3, "four queues and more: {queues:08x}");
        let oaes = get_u32(&id, 92);
        let (status, ..) = admin.run(sqe(admin::SET_FEATURES, 0, 0x0b, oaes), Data::None, &[]);
        assert!(status.is_success() && oaes & 1 << 8 != 0, "namespace notices are offered, then on");
        let aer = admin.host.submit(sqe(admin::ASYNC_EVENT_REQUEST, 0, 0, 0), Data::None, &[]).unwrap();
        let (status, ..) = admin.run(sqe(admin::KEEP_ALIVE, 0, 0, 0), Data::None, &[]);
        assert!(status.is_success());
        assert_eq!(
            (admin.host.qpair.in_flight(), admin.target.held.len()),
            (1, 1),
            "the event request waits"
        );

        let (status, _, list) = admin.run(sqe(admin::IDENTIFY, 0, 2, 0), Data::FromTarget(4096), &[]);
        assert!(status.is_success() && get_u32(&list, 0) == 1 && get_u32(&list, 4) == 0);
        let (status, _, ns) = admin.run(sqe(admin::IDENTIFY, 1, 0, 0), Data::FromTarget(4096), &[]);
        assert!(status.is_success() && get_u64(&ns, 0) == LBAS);

        let mut io: Vec<Queue> =
            (1..=4).map(|qid| Queue::open(&shared, qid, setup.cntlid(), digests).0).collect();
        for (n, blocks) in [1u32, 2, 3, 32, 128].into_iter().enumerate() {
            let len = blocks * 4096;
            let bytes: Vec<u8> = (0..len).map(|i| (i / 7) as u8 ^ n as u8).collect();
            let mut write = sqe(nvm::WRITE, 1, 0, 0);
            write.set_lbas(10, blocks);
            let (status, ..) = io[n % 4].run(write, Data::ToTarget(len), &bytes);
            assert!(status.is_success(), "{status:?}");
            let mut read = sqe(nvm::READ, 1, 0, 0);
            read.set_lbas(10, blocks);
            let (status, _, back) = io[(n + 1) % 4].run(read, Data::FromTarget(len), &[]);
            assert!(status.is_success() && back == bytes);
        }
        let mut past = sqe(nvm::READ, 1, 0, 0);
        past.set_lbas(LBAS - 1, 2);
        let (status, ..) = io[0].run(past, Data::FromTarget(8192), &[]);
        assert!(status.is(Status::LBA_OUT_OF_RANGE), "{status:?}");

        // A namespace is added: the waiting event request is answered.
        {
            let mut shared = shared.borrow_mut();
            let id = admin.target.responder.connected.unwrap().subsystem.unwrap();
            shared.registry.put_namespace(id, namespace(2)).unwrap();
        }
        let event = shared.borrow_mut().registry.poll_event();
        let Some(TargetEvent::CompleteAer { cid, status, dw0, .. }) = event else { panic!("{event:?}") };
        let tag = admin.target.qpair.find_executing(cid).unwrap();
        admin.target.qpair.complete(tag, Completion { status, dw0, dw1: 0 }).unwrap();
        admin.settle();
        let done = admin.host.completions();
        assert_eq!((done[0].0, done[0].1.dw0() & 7), (aer, 2), "a notice");

        // nvme disconnect: shutdown through CC, then the connections go.
        let mut shutdown = peristyle_nvme::host::setup::property_set(0x14, 0x0046_4001);
        shutdown.set_cid(Cid(0));
        let (status, ..) = admin.run(shutdown, Data::None, &[]);
        assert!(status.is_success());
        for mut queue in io.into_iter().chain([admin]) {
            queue.host.qpair.close();
            queue.target.qpair.handle_eof(queue.target.now);
            queue.target.pump();
            assert_eq!(queue.target.closed, Some(CloseReason::PeerClosed));
            assert_eq!((queue.target.buffers_out(), queue.target.qpair.in_flight()), (0, 0));
            let connected = queue.target.responder.connected.unwrap();
            shared.borrow_mut().registry.disconnected(&connected);
        }
    }
}

#[test]
fn a_short_sgl_on_an_admin_command_leaks_nothing() {
    let shared = shared();
    let (mut admin, _) = Queue::open(&shared, 0, CNTLID_ANY, false);
    for len in [0u32, 4, 4092] {
        let shape = if len == 0 { Data::None } else { Data::FromTarget(len) };
        let (status, ..) = admin.run(sqe(admin::IDENTIFY, 0, 1, 0), shape, &[]);
        assert!(status.is(Status::DATA_SGL_LENGTH_INVALID), "{len}: {status:?}");
    }
    assert!(admin.target.qpair.is_live());
}
