//! Rows 60 to 101 of the malformed-input table, where the controllers answer: input, exact answer, section. Rows
//! below 60 and those that end a connection are the queue pair's.

mod target;

use peristyle_nvme::controller::AdminOutcome;
use peristyle_nvme::io_command::{self, IoQueueFabrics};
use peristyle_nvme::registry::{Refused, RegistryConfig};
use peristyle_nvme::subsystem::{ControllerModel, Hosts, Namespace, Subsystem};
use peristyle_nvme::wire::fabrics::{ConnectData, invalid_in_command, invalid_in_data};
use peristyle_nvme::wire::log_page::AnaState;
use peristyle_nvme::wire::opcode::{admin, fctype, nvm};
use peristyle_nvme::wire::{Cid, Fuse, Sgl, Sqe, Status};
use target::*;
use zerocopy::IntoBytes;

const INVALID_FIELD: Status = Status::INVALID_FIELD.with_dnr();
const INVALID_OPCODE: Status = Status::INVALID_OPCODE.with_dnr();
const INVALID_PARAMETERS: Status = Status::CONNECT_INVALID_PARAMETERS.with_dnr();
const SEQUENCE: Status = Status::COMMAND_SEQUENCE_ERROR.with_dnr();
const OUT_OF_RANGE: Status = Status::LBA_OUT_OF_RANGE.with_dnr();
const TOO_SHORT: Status = Status::DATA_SGL_LENGTH_INVALID.with_dnr();

/// Status and dword 0.
type Answer = (Status, u32);
struct Row {
    row: u32,
    input: &'static str,
    reference: &'static str,
    run: fn(&mut Target) -> Vec<Answer>,
    expect: Answer,
}

fn row(
    row: u32,
    input: &'static str,
    reference: &'static str,
    run: fn(&mut Target) -> Vec<Answer>,
    expect: impl Into<Expect>,
) -> Row {
    Row { row, input, reference, run, expect: expect.into().0 }
}

struct Expect(Answer);
impl From<Status> for Expect {
    fn from(status: Status) -> Expect {
        Expect((status, 0))
    }
}
impl From<Answer> for Expect {
    fn from(answer: Answer) -> Expect {
        Expect(answer)
    }
}

/// Blocks of namespace 1 (4096 bytes) and 2 (512 bytes).
const LBAS: [u64; 2] = [1 << 18, 1 << 21];

fn io(opcode: u8, nsid: u32, slba: u64, blocks: u32, sgl: u32) -> Sqe {
    let mut sqe = Sqe::new(opcode, Cid(1));
    sqe.set_nsid(nsid);
    sqe.set_lbas(slba, blocks);
    sqe.set_sgl(Sgl::transport(sgl));
    sqe
}

/// Decodes I/O commands as an I/O queue does.
fn decode(t: &Target, commands: &[Sqe]) -> Vec<Answer> {
    let table = t.registry.namespace_table(t.subsystem);
    let one = |sqe| io_command::decode(sqe, &table).map_or_else(|s| (s, 0), |_| (Status::SUCCESS, 0));
    commands.iter().map(one).collect()
}

fn admins(t: &mut Target, commands: &[Sqe]) -> Vec<Answer> {
    let c = t.ready().controller;
    commands.iter().map(|sqe| t.admin(c, sqe)).collect()
}

fn on_io_queue(fctypes: &[u8]) -> Vec<Answer> {
    let one = |fctype: &u8| match io_command::fabrics_on_io_queue(&Sqe::fabrics(*fctype, Cid(1))) {
        IoQueueFabrics::Disconnect => (Status::SUCCESS, 0),
        IoQueueFabrics::Refuse(status) => (status, 0),
    };
    fctypes.iter().map(one).collect()
}

/// An admin Connect, changed before it is sent.
fn connect(t: &mut Target, change: impl Fn(&mut Sqe, &mut ConnectData)) -> Answer {
    let (mut sqe, mut data) = (connect_sqe(0, 32, 0), connect_data(0xffff, SUBSYSTEM, HOST));
    change(&mut sqe, &mut data);
    answer(t.connect(&sqe, data.as_bytes()).map(|c| u32::from(c.cntlid)))
}

/// An I/O Connect to a controller that is ready, changed before it is sent.
fn connect_queue(t: &mut Target, change: impl Fn(&mut Sqe, &mut ConnectData)) -> Answer {
    let c = t.ready();
    let (mut sqe, mut data) = (connect_sqe(1, 32, 0), connect_data(c.cntlid, SUBSYSTEM, HOST));
    change(&mut sqe, &mut data);
    answer(t.connect(&sqe, data.as_bytes()).map(|c| u32::from(c.cntlid)))
}

fn answer(result: Result<u32, Refused>) -> Answer {
    match result {
        Ok(dw0) => (Status::SUCCESS, dw0),
        Err(Refused { status, dw0 }) => (status, dw0),
    }
}

fn command_rows() -> Vec<Row> {
    vec![
        row(
            60,
            "reserved opcode, I/O queue",
            "NVM 3.2",
            |t| {
                let ours = [nvm::FLUSH, nvm::READ, nvm::WRITE, nvm::COMPARE, nvm::VERIFY, nvm::WRITE_ZEROES];
                let others = (0..=255u8).filter(|o| !ours.contains(o) && *o != nvm::DATASET_MANAGEMENT);
                decode(t, &others.map(|o| io(o, 1, 0, 1, 4096)).collect::<Vec<_>>())
            },
            INVALID_OPCODE,
        ),
        row(
            60,
            "reserved opcode, admin queue",
            "Base 5",
            |t| {
                admins(
                    t,
                    &[0x00, 0x01, 0x04, 0x05, 0x0d, 0x10, 0x14, 0x80, 0x81, 0x84, 0xc0, 0xff].map(admin_sqe),
                )
            },
            INVALID_OPCODE,
        ),
        row(
            61,
            "NSID 0, unattached, FFFFFFFFh",
            "Base 3.2.1",
            |t| {
                decode(t, &[0, 3, 1025, 0xffff_fffe, 0xffff_ffff].map(|nsid| io(nvm::READ, nsid, 0, 1, 4096)))
            },
            Status::INVALID_NAMESPACE_OR_FORMAT.with_dnr(),
        ),
        row(
            61,
            "Flush of NSID FFFFFFFFh is valid (VWC bits 2:1 are 11b)",
            "Base 7.2",
            |t| decode(t, &[io(nvm::FLUSH, 0xffff_ffff, 0, 1, 0)]),
            Status::SUCCESS,
        ),
        row(
            62,
            "SLBA 2^64-1 and other ranges past the end",
            "NVM 3.1.2.2",
            |t| {
                let mut commands = Vec::new();
                for (nsid, lbas) in [(1, LBAS[0]), (2, LBAS[1])] {
                    let bytes = if nsid == 1 { 4096 } else { 512 };
                    for opcode in [nvm::READ, nvm::WRITE, nvm::COMPARE] {
                        commands.push(io(opcode, nsid, u64::MAX, 1, bytes));
                        commands.push(io(opcode, nsid, u64::MAX, 2, 2 * bytes));
                        commands.push(io(opcode, nsid, lbas, 1, bytes));
                        commands.push(io(opcode, nsid, lbas - 1, 2, 2 * bytes));
                    }
                }
                decode(t, &commands)
            },
            OUT_OF_RANGE,
        ),
        row(
            63,
            "transfer above MDTS",
            "Base 5.1.13.2.1 MDTS",
            |t| {
                let over = |(opcode, nsid, blocks)| io(opcode, nsid, 0, blocks, 512 * 1024);
                decode(
                    t,
                    &[
                        (nvm::READ, 1, 129),
                        (nvm::READ, 2, 1025),
                        (nvm::WRITE, 1, 129),
                        (nvm::WRITE, 2, 65536),
                        (nvm::COMPARE, 1, 65536),
                        (nvm::VERIFY, 1, 129),
                    ]
                    .map(over),
                )
            },
            INVALID_FIELD,
        ),
        row(
            63,
            "transfer of exactly MDTS",
            "Base 5.1.13.2.1 MDTS",
            |t| {
                let full = |(opcode, nsid, blocks)| io(opcode, nsid, 0, blocks, 512 * 1024);
                decode(t, &[(nvm::READ, 1, 128), (nvm::WRITE, 2, 1024), (nvm::VERIFY, 1, 128)].map(full))
            },
            Status::SUCCESS,
        ),
        row(
            64,
            "DSM range past the end: nothing is deallocated",
            "NVM 3.3.3",
            |t| {
                let table = t.registry.namespace_table(t.subsystem);
                let lists: [&[(u64, u32)]; 4] = [
                    &[(LBAS[0], 1)],
                    &[(0, 8), (LBAS[0] - 1, 2)],
                    &[(u64::MAX, 1)],
                    &[(0, 1), (1, u32::MAX)],
                ];
                lists
                    .iter()
                    .map(|list| {
                        let bytes: Vec<u8> = list
                            .iter()
                            .flat_map(|(slba, blocks)| {
                                [&[0; 4][..], &blocks.to_le_bytes(), &slba.to_le_bytes()].concat()
                            })
                            .collect();
                        let ns = table.get(1).unwrap();
                        (io_command::check_ranges(&bytes, list.len() as u16, ns).unwrap_err(), 0)
                    })
                    .collect()
            },
            OUT_OF_RANGE,
        ),
        row(
            65,
            "DSM of 256 ranges with 16 bytes",
            "NVM 3.3.3",
            |t| {
                let mut sqe = io(nvm::DATASET_MANAGEMENT, 1, 255, 1, 16);
                sqe.set_cdw(11, 4);
                let mut answers = decode(t, &[sqe]);
                let table = t.registry.namespace_table(t.subsystem);
                answers
                    .push((io_command::check_ranges(&[0; 16], 256, table.get(1).unwrap()).unwrap_err(), 0));
                answers
            },
            TOO_SHORT,
        ),
        row(
            66,
            "Write Zeroes and Verify past the end",
            "NVM 3.3",
            |t| {
                decode(
                    t,
                    &[
                        io(nvm::WRITE_ZEROES, 1, LBAS[0], 1, 0),
                        io(nvm::WRITE_ZEROES, 1, u64::MAX, 65536, 0),
                        io(nvm::VERIFY, 2, LBAS[1] - 1, 2, 0),
                        io(nvm::VERIFY, 1, u64::MAX, 1, 0),
                    ],
                )
            },
            OUT_OF_RANGE,
        ),
        row(
            66,
            "Copy (ONCS bit 8 is 0)",
            "NVM 3.3.2",
            |t| decode(t, &[io(nvm::COPY, 1, 0, 1, 32)]),
            INVALID_OPCODE,
        ),
        row(
            67,
            "reservations (ONCS bit 5 is 0)",
            "Base 7.5 to 7.8",
            |t| {
                let all = [
                    nvm::RESERVATION_REGISTER,
                    nvm::RESERVATION_REPORT,
                    nvm::RESERVATION_ACQUIRE,
                    nvm::RESERVATION_RELEASE,
                ];
                decode(t, &all.map(|o| io(o, 1, 0, 1, 8)))
            },
            INVALID_OPCODE,
        ),
        row(
            68,
            "Abort of nonsense SQID and CID",
            "Base 5.1.1",
            |t| {
                let abort = |target| {
                    let mut sqe = admin_sqe(admin::ABORT);
                    sqe.set_cdw(10, target);
                    sqe
                };
                admins(t, &[abort(0), abort(0xffff_ffff), abort(0x1234_0001), abort(0x0001_ffff)])
            },
            (Status::SUCCESS, 1),
        ),
        row(
            69,
            "one event request more than AERL + 1",
            "Base 5.1.2",
            |t| {
                let c = t.ready().controller;
                (0..4).for_each(|cid| t.listen(c, cid));
                vec![t.admin(c, &Sqe::new(admin::ASYNC_EVENT_REQUEST, Cid(4)))]
            },
            Status::AER_LIMIT_EXCEEDED.with_dnr(),
        ),
        row(
            70,
            "Get Log Page with NUMD max, offset past the end or odd, unknown page",
            "Base 5.1.12",
            |t| {
                let mut huge = log_sqe(0x02, 512, 0);
                huge.set_cdw(10, 0x02 | 0xffff << 16);
                huge.set_cdw(11, 0xffff);
                let mut index = log_sqe(0x02, 512, 0);
                index.set_cdw(14, 1 << 23);
                let commands = [
                    huge,
                    index,
                    log_sqe(0x02, 512, 516),
                    log_sqe(0x02, 512, u64::MAX - 3),
                    log_sqe(0x02, 512, 2),
                    log_sqe(0x06, 512, 0),
                    log_sqe(0x70, 1024, 0),
                    log_sqe(0xc0, 4, 0),
                ];
                let mut answers = admins(t, &commands);
                let c = t.connect_discovery().controller;
                let mut huge = log_sqe(0x70, 1024, 0);
                huge.set_cdw(10, 0x70 | 0xffff << 16);
                huge.set_cdw(11, 0xffff);
                for sqe in [
                    huge,
                    log_sqe(0x70, 1024, 2052),
                    log_sqe(0x70, 1024, u64::MAX - 3),
                    log_sqe(0x02, 512, 0),
                ] {
                    answers.push(t.admin(c, &sqe));
                }
                answers
            },
            INVALID_FIELD,
        ),
        row(
            70,
            "Get Log Page that reaches past the end reads zeroes there",
            "Base 5.1.12",
            |t| {
                let c = t.connect_discovery().controller;
                let log = t.data(c, &log_sqe(0x70, 4096, 2044));
                assert_eq!(log.len(), 4096);
                assert!(log[4..].iter().all(|b| *b == 0));
                vec![t.admin(c, &log_sqe(0x70, 4096, 2048))]
            },
            Status::SUCCESS,
        ),
        row(
            70,
            "Get Log Page and Identify with a shorter SGL",
            "Base 4.2.3.1",
            |t| {
                let mut commands = [log_sqe(0x02, 512, 0), identify_sqe(1, 0), get_feature_sqe(0x81, 0)];
                commands[2].set_cdw(11, 1);
                for (sqe, bytes) in commands.iter_mut().zip([508, 4092, 8]) {
                    sqe.set_sgl(Sgl::transport(bytes));
                }
                admins(t, &commands)
            },
            TOO_SHORT,
        ),
        row(
            71,
            "Identify with unknown CNS, other command sets, foreign CNTID",
            "Base 5.1.13",
            |t| {
                let mut commands: Vec<Sqe> =
                    [0x04, 0x09, 0x10, 0x11, 0x12, 0x13, 0x14, 0x15, 0x1d, 0x80, 0xff]
                        .map(|c| identify_sqe(c, 1))
                        .into();
                for cns in [0x05, 0x06, 0x07] {
                    let mut sqe = identify_sqe(cns, 1);
                    sqe.set_cdw(11, 2 << 24);
                    commands.push(sqe);
                }
                let mut sqe = identify_sqe(0x1c, 0);
                sqe.set_cdw(10, 0x1c | 0x7777 << 16);
                commands.push(sqe);
                admins(t, &commands)
            },
            INVALID_FIELD,
        ),
        row(
            71,
            "Identify of namespaces that cannot be",
            "Base 5.1.13.1",
            |t| {
                let ids = [
                    (0x00, 0),
                    (0x00, 1025),
                    (0x00, u32::MAX),
                    (0x03, 3),
                    (0x03, 0),
                    (0x08, 0),
                    (0x02, u32::MAX),
                ];
                admins(t, &ids.map(|(cns, nsid)| identify_sqe(cns, nsid)))
            },
            Status::INVALID_NAMESPACE_OR_FORMAT.with_dnr(),
        ),
        row(
            72,
            "Number of Queues after I/O queues exist",
            "Base 5.1.25.1.4",
            |t| {
                let c = t.ready();
                t.connect_io(c.cntlid, 1).unwrap();
                vec![t.admin(c.controller, &set_feature_sqe(0x07, 1 | 1 << 16))]
            },
            SEQUENCE,
        ),
        row(
            72,
            "reserved and absent features, impossible values",
            "Base 5.1.25",
            |t| {
                admins(
                    t,
                    &[
                        set_feature_sqe(0x00, 0),
                        set_feature_sqe(0x06, 1),
                        set_feature_sqe(0x08, 0),
                        set_feature_sqe(0x16, 0),
                        set_feature_sqe(0xff, 0),
                        set_feature_sqe(0x07, 0xffff),
                        set_feature_sqe(0x07, 0xffff << 16),
                        set_feature_sqe(0x02, 1),
                        set_feature_sqe(0x04, 1 << 16),
                        set_feature_sqe(0x04, 2 << 20),
                        set_feature_sqe(0x0b, 1 << 31),
                        set_feature_sqe(0x0b, 1 << 14),
                        get_feature_sqe(0x06, 0),
                    ],
                )
            },
            INVALID_FIELD,
        ),
        row(
            72,
            "bad KATO",
            "Base 5.1.25.1.8",
            |t| admins(t, &[set_feature_sqe(0x0f, 3_600_001), set_feature_sqe(0x0f, u32::MAX)]),
            Status::KEEP_ALIVE_TIMEOUT_INVALID.with_dnr(),
        ),
        row(
            73,
            "Keep Alive on an I/O queue",
            "Base 5.1.14",
            |t| decode(t, &[io(admin::KEEP_ALIVE, 0, 0, 1, 0)]),
            INVALID_OPCODE,
        ),
        row(
            74,
            "Property Get and Set on an I/O queue",
            "Base 6, note 3",
            |_| on_io_queue(&[fctype::PROPERTY_GET, fctype::PROPERTY_SET]),
            INVALID_FIELD,
        ),
        row(
            75,
            "Property Get and Set with an invalid offset or size",
            "Base 6.5, 6.6",
            |t| {
                let mut reserved_size = property_sqe(false, 0x14, 4, 0);
                reserved_size.set_cdw(10, 2);
                admins(
                    t,
                    &[
                        property_sqe(false, 0x04, 4, 0),
                        property_sqe(false, 0x00, 4, 0),
                        property_sqe(false, 0x14, 8, 0),
                        property_sqe(false, 0x1000, 4, 0),
                        property_sqe(false, u32::MAX, 8, 0),
                        reserved_size,
                        property_sqe(true, 0x1c, 4, 0),
                        property_sqe(true, 0x20, 4, 0x4e56_4d65),
                        property_sqe(true, 0x14, 8, 0),
                        property_sqe(true, 0x00, 8, 1),
                    ],
                )
            },
            INVALID_FIELD,
        ),
        row(
            76,
            "Disconnect on the admin queue",
            "Base 6.4",
            |t| admins(t, &[Sqe::fabrics(fctype::DISCONNECT, Cid(1))]),
            Status::INVALID_QUEUE_TYPE.with_dnr(),
        ),
        row(
            76,
            "Disconnect on an I/O queue is valid",
            "Base 6.4",
            |_| on_io_queue(&[fctype::DISCONNECT]),
            Status::SUCCESS,
        ),
    ]
}

fn connect_rows() -> Vec<Row> {
    vec![
        row(
            78,
            "Connect twice on a queue",
            "Base 6.3",
            |t| {
                let mut answers = admins(t, &[connect_sqe(0, 32, 0)]);
                answers.extend(on_io_queue(&[fctype::CONNECT]));
                answers
            },
            SEQUENCE,
        ),
        row(
            79,
            "Connect data shorter than 1024 bytes",
            "Base 6.3",
            |t| {
                let data = connect_data(0xffff, SUBSYSTEM, HOST);
                [0, 1, 512, 1023]
                    .map(|n| answer(t.connect(&connect_sqe(0, 32, 0), &data.as_bytes()[..n]).map(|_| 0)))
                    .into()
            },
            (INVALID_PARAMETERS, invalid_in_command(32)),
        ),
        row(
            80,
            "RECFMT is not 0",
            "Base 6.3",
            |t| [1, 0xffff].map(|recfmt| connect(t, |sqe, _| sqe.set_cdw(10, recfmt))).into(),
            Status::INCOMPATIBLE_FORMAT.with_dnr(),
        ),
        row(
            81,
            "SQSIZE 0, 65535, above the limit",
            "Base 6.3",
            |t| {
                let mut answers: Vec<_> =
                    [0, 65535, 128].map(|sqsize| connect(t, |sqe, _| sqe.set_cdw(11, sqsize))).into();
                answers
                    .extend([0, 65535, 128].map(|sqsize| connect_queue(t, |sqe, _| sqe.set_cdw(11, sqsize))));
                answers
            },
            (INVALID_PARAMETERS, invalid_in_command(44)),
        ),
        row(
            82,
            "I/O Connect to an unknown controller",
            "Base 6.3",
            |t| [0, 99, 0xfff0, 0xffff].map(|id| connect_queue(t, |_, data| data.cntlid.set(id))).into(),
            (INVALID_PARAMETERS, invalid_in_data(16)),
        ),
        row(
            83,
            "QID exists already",
            "Base 6.3",
            |t| {
                let c = t.ready();
                t.connect_io(c.cntlid, 1).unwrap();
                vec![answer(t.connect_io(c.cntlid, 1).map(|_| 0))]
            },
            SEQUENCE,
        ),
        row(
            84,
            "QID FFFFh, above what Number of Queues granted, on discovery",
            "Base 6.3",
            |t| {
                let mut answers: Vec<_> =
                    [0xffff, 65].map(|qid: u32| connect_queue(t, |sqe, _| sqe.set_cdw(10, qid << 16))).into();
                let c = t.ready();
                t.admin(c.controller, &set_feature_sqe(0x07, 3 | 3 << 16));
                answers.push(answer(t.connect_io(c.cntlid, 5).map(|_| 0)));
                let discovery = t.connect_discovery().cntlid;
                let data = connect_data(discovery, "nqn.2014-08.org.nvmexpress.discovery", HOST);
                answers.push(answer(t.connect(&connect_sqe(1, 32, 0), data.as_bytes()).map(|_| 0)));
                answers
            },
            (INVALID_PARAMETERS, invalid_in_command(42)),
        ),
        row(
            85,
            "SUBNQN without NUL, empty, unknown",
            "Base 6.3, 4.7",
            |t| {
                vec![
                    connect(t, |_, data| data.subnqn = [b'n'; 256]),
                    connect(t, |_, data| data.subnqn[..224].fill(b'n')),
                    connect(t, |_, data| data.subnqn = [0; 256]),
                    connect(t, |_, data| data.subnqn = nqn("nqn.2026-11.io.peristyle:other").padded()),
                ]
            },
            (INVALID_PARAMETERS, invalid_in_data(256)),
        ),
        row(
            86,
            "HOSTNQN without NUL, empty, not an NQN",
            "Base 6.3, 4.7",
            |t| {
                let mut answers = vec![connect(t, |_, data| data.hostnqn = [b'n'; 256])];
                for text in
                    ["", "nqn", "host", "nqn.2014-08.", "nqn.14-08.org", "nqn.2014-08.:x", "nqn.2014-08.o g"]
                {
                    answers.push(connect(t, |_, data| {
                        data.hostnqn = [0; 256];
                        data.hostnqn[..text.len()].copy_from_slice(text.as_bytes());
                    }));
                }
                answers.push(connect(t, |_, data| data.hostnqn[12] = 0xff));
                answers
            },
            (INVALID_PARAMETERS, invalid_in_data(512)),
        ),
        row(
            87,
            "host that is not allowed",
            "Base 6.3",
            |t| {
                t.registry.set_hosts(t.subsystem, Hosts::Listed(vec![nqn(OTHER_HOST)])).unwrap();
                let mut answers = vec![connect(t, |_, _| {})];
                t.registry.set_hosts(t.subsystem, Hosts::Listed(vec![])).unwrap();
                answers.push(connect(t, |_, _| {}));
                answers
            },
            Status::CONNECT_INVALID_HOST.with_dnr(),
        ),
        row(
            88,
            "I/O Connect to another host's controller",
            "Base 6.3",
            |t| vec![connect_queue(t, |_, data| data.hostnqn = nqn(OTHER_HOST).padded())],
            (INVALID_PARAMETERS, invalid_in_data(512)),
        ),
        row(
            88,
            "I/O Connect with another host identifier",
            "Base 6.3",
            |t| {
                vec![
                    connect_queue(t, |_, data| data.hostid = [8; 16]),
                    connect_queue(t, |_, data| data.hostid = [0; 16]),
                ]
            },
            (INVALID_PARAMETERS, invalid_in_data(0)),
        ),
        row(
            89,
            "I/O Connect while CC.EN is 0 or during shutdown",
            "Base 6.3",
            |t| {
                let c = t.connect_admin();
                let mut answers = vec![answer(t.connect_io(c.cntlid, 1).map(|_| 0))];
                t.set_cc(c.controller, ENABLE);
                t.set_cc(c.controller, ENABLE | 1 << 14);
                answers.push(answer(t.connect_io(c.cntlid, 1).map(|_| 0)));
                answers
            },
            (INVALID_PARAMETERS, invalid_in_data(16)),
        ),
        row(
            90,
            "admin Connect to a dynamic subsystem with CNTLID other than FFFFh",
            "Base 6.3",
            |t| {
                [0, 1, 0xffef, 0xfff0, 0xfffd, 0xfffe]
                    .map(|id| connect(t, |_, data| data.cntlid.set(id)))
                    .into()
            },
            (INVALID_PARAMETERS, invalid_in_data(16)),
        ),
        row(
            90,
            "admin Connect to a static subsystem with FFFFh, FFF0h to FFFDh, 0",
            "Base 6.3",
            |t| {
                let fixed = Subsystem::new(nqn(SUBSYSTEM), "s").with_model(ControllerModel::Static);
                *t = Target::with(RegistryConfig::default(), fixed);
                [0, 0xfff0, 0xfffd, 0xffff].map(|id| connect(t, |_, data| data.cntlid.set(id))).into()
            },
            (INVALID_PARAMETERS, invalid_in_data(16)),
        ),
        row(
            91,
            "HOSTID 0 on an admin Connect",
            "Base 2.0 5.27.1.25",
            |t| vec![connect(t, |_, data| data.hostid = [0; 16])],
            (INVALID_PARAMETERS, invalid_in_data(0)),
        ),
        row(
            92,
            "no controller left",
            "Base 6.3",
            |t| {
                let few = RegistryConfig { controllers_max: 2, ..RegistryConfig::default() };
                *t = Target::with(few, Subsystem::new(nqn(SUBSYSTEM), "s"));
                let first = t.ready();
                t.connect_admin_as(OTHER_HOST);
                let answers = vec![connect(t, |_, _| {})];
                t.connect_io(first.cntlid, 1).unwrap();
                answers
            },
            Status::CONTROLLER_BUSY,
        ),
    ]
}

/// What a target without in-band authentication answers: its Connect said AUTHREQ 0, so there is none to do.
fn authentication_rows() -> Vec<Row> {
    const AUTHENTICATION: [u8; 2] = [fctype::AUTHENTICATION_SEND, fctype::AUTHENTICATION_RECEIVE];
    vec![
        row(
            93,
            "Connect says AUTHREQ 0, so other commands are not held back",
            "Base 6.3, 8.3.4",
            |t| {
                let c = t.connect_admin();
                let answer = connect(t, |_, data| data.hostnqn = nqn(OTHER_HOST).padded());
                assert_eq!(answer.1 >> 16, 0, "AUTHREQ");
                t.property(c.controller, 0, 8);
                vec![(answer.0, 0)]
            },
            Status::SUCCESS,
        ),
        row(
            94,
            "Authentication Send and Receive of any length, admin queue",
            "Base 6.1, 6.2",
            |t| {
                let mut commands = Vec::new();
                for fctype in AUTHENTICATION {
                    for bytes in [0, 1, 16, 4096, u32::MAX] {
                        let mut sqe = Sqe::fabrics(fctype, Cid(1));
                        sqe.set_cdw(11, bytes);
                        sqe.set_sgl(Sgl::transport(bytes));
                        commands.push(sqe);
                    }
                }
                admins(t, &commands)
            },
            INVALID_OPCODE,
        ),
        row(
            95,
            "the same on an I/O queue, and other Fabrics commands",
            "Base 6.1, 6.2",
            |_| on_io_queue(&[AUTHENTICATION[0], AUTHENTICATION[1], 0x02, 0x09, 0xc0, 0xff]),
            INVALID_OPCODE,
        ),
        row(
            96,
            "Authentication before the controller is enabled",
            "Base 6.1",
            |t| {
                let c = t.connect_admin().controller;
                AUTHENTICATION.map(|fctype| t.admin(c, &Sqe::fabrics(fctype, Cid(1)))).into()
            },
            INVALID_OPCODE,
        ),
        row(
            97,
            "HOSTNQN that is not on the list, whatever it could prove",
            "Base 6.3",
            |t| {
                t.registry.set_hosts(t.subsystem, Hosts::Listed(vec![nqn(OTHER_HOST)])).unwrap();
                vec![connect(t, |_, data| data.hostnqn = nqn(SUBSYSTEM).padded())]
            },
            Status::CONNECT_INVALID_HOST.with_dnr(),
        ),
        row(
            98,
            "Disconnect after a refused authentication leaves nothing behind",
            "Base 6.4",
            |t| {
                let c = t.ready();
                t.admin(c.controller, &Sqe::fabrics(AUTHENTICATION[0], Cid(1)));
                t.registry.disconnected(c.controller, 0);
                assert!(t.registry.poll_timeout().is_none());
                vec![t.admin(c.controller, &identify_sqe(1, 0))]
            },
            Status::ABORTED_SQ_DELETION,
        ),
        row(
            99,
            "authentication offers of any hash or group",
            "Base 6.1",
            |t| {
                let mut negotiate = Sqe::fabrics(AUTHENTICATION[0], Cid(1));
                negotiate.set_cdw(10, 1 << 8 | 1 << 16 | 0xe9 << 24);
                admins(t, &[negotiate])
            },
            INVALID_OPCODE,
        ),
        row(
            101,
            "a host that is allowed does not pass for another on its I/O queues",
            "TCP 3.6.1.3",
            |t| {
                t.registry.set_hosts(t.subsystem, Hosts::Listed(vec![nqn(HOST), nqn(OTHER_HOST)])).unwrap();
                vec![connect_queue(t, |_, data| data.hostnqn = nqn(OTHER_HOST).padded())]
            },
            (INVALID_PARAMETERS, invalid_in_data(512)),
        ),
    ]
}

#[test]
fn malformed_commands_get_exactly_the_answer_that_the_specification_names() {
    for row in command_rows().into_iter().chain(connect_rows()).chain(authentication_rows()) {
        let mut t = Target::new();
        let answers = (row.run)(&mut t);
        assert!(!answers.is_empty());
        for (i, answer) in answers.iter().enumerate() {
            let what = format!("row {}.{i}: {} ({})", row.row, row.input, row.reference);
            assert_eq!(*answer, row.expect, "{what}");
        }
        // A fresh connection works whatever came before, unless the row has taken its place or its right.
        t.registry.set_hosts(t.subsystem, Hosts::Any).unwrap();
        if row.row != 92 && !row.input.contains("static") {
            let c = t.ready();
            assert!(t.connect_io(c.cntlid, 1).is_ok(), "row {}", row.row);
        }
    }
}

#[test]
fn fields_that_ask_for_what_is_not_there_are_refused() {
    let t = Target::new();
    // Command extension type, PRINFO (PRACT and each check), directive type of a write.
    let mut commands = Vec::new();
    for (opcode, bits) in [
        (nvm::READ, 1 << 16),
        (nvm::WRITE, 1 << 19),
        (nvm::READ, 1 << 29),
        (nvm::WRITE, 1 << 26),
        (nvm::WRITE_ZEROES, 1 << 28),
        (nvm::VERIFY, 1 << 27),
        (nvm::COMPARE, 1 << 29),
        (nvm::WRITE, 1 << 20),
    ] {
        let mut sqe = io(opcode, 1, 0, 1, 4096);
        sqe.set_cdw(12, sqe.cdw12() | bits);
        commands.push(sqe);
    }
    let mut fused = io(nvm::READ, 1, 0, 1, 4096);
    fused.set_fuse(Fuse::First);
    commands.push(fused);
    assert!(decode(&t, &commands).iter().all(|a| *a == (INVALID_FIELD, 0)));
}

#[test]
fn lengths_of_sgls_may_exceed_the_data_but_never_fall_short() {
    let t = Target::new();
    let short = [io(nvm::READ, 1, 0, 2, 8191), io(nvm::WRITE, 2, 0, 1, 0), io(nvm::COMPARE, 1, 0, 128, 4096)];
    assert!(decode(&t, &short).iter().all(|a| *a == (TOO_SHORT, 0)));
    let mut discard = io(nvm::DATASET_MANAGEMENT, 1, 0, 1, 4096);
    discard.set_cdw(11, 4);
    let long = [io(nvm::READ, 1, 0, 1, 8192), discard];
    assert!(decode(&t, &long).iter().all(|a| a.0.is_success()));
    let huge = [io(nvm::READ, 1, 0, 1, u32::MAX), io(nvm::WRITE, 1, 0, 1, 512 * 1024 + 1)];
    assert!(decode(&t, &huge).iter().all(|a| *a == (INVALID_FIELD, 0)));
}

#[test]
fn paths_and_write_protection_answer_for_their_namespace_alone() {
    let mut t = Target::new();
    let protected = Namespace {
        read_only: true,
        ana_group: 2,
        ..*t.registry.subsystem(t.subsystem).unwrap().namespace(1).unwrap()
    };
    t.registry.put_namespace(t.subsystem, protected).unwrap();
    let mut deallocate = io(nvm::DATASET_MANAGEMENT, 1, 0, 1, 16);
    deallocate.set_cdw(11, 4);
    let writes = [io(nvm::WRITE, 1, 0, 1, 4096), io(nvm::WRITE_ZEROES, 1, 0, 1, 0), deallocate];
    let refused = (Status::NAMESPACE_WRITE_PROTECTED.with_dnr(), 0);
    assert!(decode(&t, &writes).iter().all(|a| *a == refused));
    assert!(
        decode(&t, &[io(nvm::READ, 1, 0, 1, 4096), io(nvm::WRITE, 2, 0, 1, 512)])
            .iter()
            .all(|a| a.0.is_success())
    );
    for (state, status) in [
        (AnaState::Inaccessible, Status::ANA_INACCESSIBLE),
        (AnaState::PersistentLoss, Status::ANA_PERSISTENT_LOSS),
        (AnaState::Change, Status::ANA_TRANSITION),
        (AnaState::NonOptimized, Status::SUCCESS),
    ] {
        t.registry.set_ana_state(t.subsystem, 2, state).unwrap();
        assert_eq!(
            decode(&t, &[io(nvm::READ, 1, 0, 1, 4096), io(nvm::READ, 2, 0, 1, 512)]),
            [(status, 0), (Status::SUCCESS, 0)]
        );
    }
}

#[test]
fn compare_and_write_are_one_range_or_nothing() {
    let t = Target::new();
    let table = t.registry.namespace_table(t.subsystem);
    let pair = |compare: Sqe, write: Sqe| {
        io_command::decode_compare_write(&compare, &write, &table).map(|(c, _)| c.range.blocks)
    };
    let (compare, write) =
        (|n, l, b| io(nvm::COMPARE, n, l, b, b * 4096), |n, l, b| io(nvm::WRITE, n, l, b, b * 4096));
    assert_eq!(pair(compare(1, 4, 2), write(1, 4, 2)), Ok(2));
    let both = Err((INVALID_FIELD, INVALID_FIELD));
    assert_eq!(pair(compare(1, 4, 2), write(1, 4, 1)), both);
    assert_eq!(pair(compare(1, 4, 1), write(1, 5, 1)), both);
    assert_eq!(pair(write(1, 4, 1), write(1, 4, 1)), both);
    let failed = Status::ABORTED_FAILED_FUSED;
    assert_eq!(pair(compare(1, 4, 1), write(2, 4, 1)), Err((failed, INVALID_FIELD)));
    assert_eq!(pair(compare(1, u64::MAX, 1), write(1, 4, 1)), Err((OUT_OF_RANGE, failed)));
    assert_eq!(pair(compare(1, 4, 1), write(1, u64::MAX, 1)), Err((failed, OUT_OF_RANGE)));
    assert_eq!(
        pair(compare(3, 4, 1), write(3, 4, 1)),
        Err((Status::INVALID_NAMESPACE_OR_FORMAT.with_dnr(), failed))
    );
}

#[test]
fn controller_identifiers_come_back_as_late_as_possible() {
    let config = RegistryConfig { cntlids: (10, 12), ..RegistryConfig::default() };
    let mut t = Target::with(config, Subsystem::new(nqn(SUBSYSTEM), "s"));
    let first = t.connect_admin();
    t.registry.disconnected(first.controller, 0);
    let ids: Vec<u16> = (0..3).map(|_| t.connect_admin().cntlid).collect();
    assert_eq!((first.cntlid, ids), (10, vec![11, 12, 10]));
    assert_eq!(connect(&mut t, |_, _| {}), (Status::CONTROLLER_BUSY, 0));
    assert_eq!(
        t.raw(first.controller, &identify_sqe(1, 0)),
        AdminOutcome::status(Status::ABORTED_SQ_DELETION)
    );
}

#[test]
fn a_static_controller_is_given_by_its_identifier() {
    let fixed = Subsystem::new(nqn(SUBSYSTEM), "s").with_model(ControllerModel::Static);
    let mut t = Target::with(RegistryConfig::default(), fixed);
    assert_eq!(connect(&mut t, |_, data| data.cntlid.set(77)), (Status::SUCCESS, 77));
    assert_eq!(connect(&mut t, |_, data| data.cntlid.set(77)), (Status::CONTROLLER_BUSY, 0));
    assert_eq!(connect(&mut t, |_, data| data.cntlid.set(0xfffe)), (Status::SUCCESS, 1));
}
