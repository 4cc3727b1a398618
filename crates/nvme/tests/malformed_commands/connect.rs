//! Rows 78 to 92: Connect.

use super::*;

pub fn rows() -> Vec<Row> {
    vec![
        row(
            78,
            "Connect twice on a queue",
            "Base 6.3",
            |t| {
                let mut answers = admins(t, &[connect_sqe(0, 32, 0)]);
                answers.extend(on_io_queue(t, &[fctype::CONNECT]));
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
            |t| [1, 0xffff].map(|recfmt| connect_changed(t, |sqe, _| sqe.set_cdw(10, recfmt))).into(),
            Status::INCOMPATIBLE_FORMAT.with_dnr(),
        ),
        row(
            81,
            "SQSIZE 0, 65535, above the limit",
            "Base 6.3",
            |t| {
                let mut answers: Vec<_> =
                    [0, 65535, 128].map(|sqsize| connect_changed(t, |sqe, _| sqe.set_cdw(11, sqsize))).into();
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
                    connect_changed(t, |_, data| data.subnqn = [b'n'; 256]),
                    connect_changed(t, |_, data| data.subnqn[..224].fill(b'n')),
                    connect_changed(t, |_, data| data.subnqn = [0; 256]),
                    connect_changed(t, |_, data| {
                        data.subnqn = nqn("nqn.2026-11.io.peristyle:other").padded()
                    }),
                ]
            },
            (INVALID_PARAMETERS, invalid_in_data(256)),
        ),
        row(
            86,
            "HOSTNQN without NUL, empty, not an NQN",
            "Base 6.3, 4.7",
            |t| {
                let mut answers = vec![connect_changed(t, |_, data| data.hostnqn = [b'n'; 256])];
                for text in
                    ["", "nqn", "host", "nqn.2014-08.", "nqn.14-08.org", "nqn.2014-08.:x", "nqn.2014-08.o g"]
                {
                    answers.push(connect_changed(t, |_, data| {
                        data.hostnqn = [0; 256];
                        data.hostnqn[..text.len()].copy_from_slice(text.as_bytes());
                    }));
                }
                answers.push(connect_changed(t, |_, data| data.hostnqn[12] = 0xff));
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
                let mut answers = vec![connect_changed(t, |_, _| {})];
                t.registry.set_hosts(t.subsystem, Hosts::Listed(vec![])).unwrap();
                answers.push(connect_changed(t, |_, _| {}));
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
                    .map(|id| connect_changed(t, |_, data| data.cntlid.set(id)))
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
                replace(t, RegistryConfig::default(), fixed);
                [0, 0xfff0, 0xfffd, 0xffff].map(|id| connect_changed(t, |_, data| data.cntlid.set(id))).into()
            },
            (INVALID_PARAMETERS, invalid_in_data(16)),
        ),
        row(
            91,
            "HOSTID 0 on an admin Connect",
            "Base 2.0 5.27.1.25",
            |t| vec![connect_changed(t, |_, data| data.hostid = [0; 16])],
            (INVALID_PARAMETERS, invalid_in_data(0)),
        ),
        row(
            92,
            "one host asks for more than its share",
            "Base 6.3",
            |t| {
                let few = RegistryConfig { host_controllers_max: 2, ..RegistryConfig::default() };
                replace(t, few, Subsystem::new(nqn(SUBSYSTEM), "s"));
                t.ready();
                t.connect_discovery();
                let answers = vec![connect_changed(t, |_, _| {})];
                t.connect_admin_as(OTHER_HOST);
                answers
            },
            Status::CONTROLLER_BUSY,
        ),
        row(
            92,
            "no controller left",
            "Base 6.3",
            |t| {
                let few = RegistryConfig { controllers_max: 2, ..RegistryConfig::default() };
                replace(t, few, Subsystem::new(nqn(SUBSYSTEM), "s"));
                let first = t.ready();
                t.connect_admin_as(OTHER_HOST);
                let answers = vec![connect_changed(t, |_, _| {})];
                t.connect_io(first.cntlid, 1).unwrap();
                answers
            },
            Status::CONTROLLER_BUSY,
        ),
    ]
}
