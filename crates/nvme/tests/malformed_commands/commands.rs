//! Rows 60 to 76: commands on connected queues.

use super::*;

pub fn rows() -> Vec<Row> {
    vec![
        row(
            60,
            "reserved opcode, I/O queue",
            "NVM 3.2",
            |t| {
                let ours = [nvm::FLUSH, nvm::READ, nvm::WRITE, nvm::COMPARE, nvm::VERIFY, nvm::WRITE_ZEROES];
                let known = [nvm::DATASET_MANAGEMENT, peristyle_nvme::wire::opcode::FABRICS];
                let others = (0..=255u8).filter(|o| !ours.contains(o) && !known.contains(o));
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
            62,
            "ranges past an end that has come nearer",
            "NVM 3.1.2.2",
            |t| {
                let smaller = Namespace { lbas: 1000, ..namespace(1, LbaSize::B4096) };
                t.registry.put_namespace(t.subsystem, smaller).unwrap();
                let opcodes = [nvm::READ, nvm::WRITE, nvm::COMPARE];
                let both = |op| [io(op, 1, 1000, 1, 4096), io(op, 1, 999, 2, 8192)];
                let past: Vec<Sqe> = opcodes.into_iter().flat_map(both).collect();
                decode(t, &past)
            },
            OUT_OF_RANGE,
        ),
        row(
            62,
            "up to an end that has moved away",
            "NVM 3.1.2.2",
            |t| {
                let larger = Namespace { lbas: LBAS[0] + 8, ..namespace(1, LbaSize::B4096) };
                t.registry.put_namespace(t.subsystem, larger).unwrap();
                decode(t, &[nvm::READ, nvm::WRITE].map(|op| io(op, 1, LBAS[0], 8, 32768)))
            },
            Status::SUCCESS,
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
            |t| on_io_queue(t, &[fctype::PROPERTY_GET, fctype::PROPERTY_SET]),
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
            |t| on_io_queue(t, &[fctype::DISCONNECT]),
            Status::SUCCESS,
        ),
    ]
}
