//! Rows 93 to 101 as a target without authentication and TLS meets them.

use super::*;

/// What a target without in-band authentication answers: its Connect said AUTHREQ 0, so there is none to do.
pub fn rows() -> Vec<Row> {
    const AUTHENTICATION: [u8; 2] = [fctype::AUTHENTICATION_SEND, fctype::AUTHENTICATION_RECEIVE];
    vec![
        row(
            93,
            "Connect says AUTHREQ 0, so other commands are not held back",
            "Base 6.3, 8.3.4",
            |t| {
                let c = t.connect_admin();
                let answer = connect_changed(t, |_, data| data.hostnqn = nqn(OTHER_HOST).padded());
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
                    for bytes in [0, 16, 4096, 512 * 1024] {
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
            |t| on_io_queue(t, &[AUTHENTICATION[0], AUTHENTICATION[1], 0x02, 0x09, 0xc0, 0xff]),
            INVALID_OPCODE,
        ),
        row(
            96,
            "Authentication before the controller is enabled",
            "Base 6.1",
            |t| {
                let c = t.connect_admin().controller;
                AUTHENTICATION.map(|fctype| t.admin(c, &authentication(fctype))).into()
            },
            INVALID_OPCODE,
        ),
        row(
            97,
            "HOSTNQN that is not on the list, whatever it could prove",
            "Base 6.3",
            |t| {
                t.registry.set_hosts(t.subsystem, Hosts::Listed(vec![nqn(OTHER_HOST)])).unwrap();
                vec![connect_changed(t, |_, data| data.hostnqn = nqn(SUBSYSTEM).padded())]
            },
            Status::CONNECT_INVALID_HOST.with_dnr(),
        ),
        row(
            98,
            "Disconnect after a refused authentication leaves nothing behind",
            "Base 6.4",
            |t| {
                let c = t.ready();
                t.admin(c.controller, &authentication(AUTHENTICATION[0]));
                t.registry.disconnected(&c);
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
                let mut negotiate = authentication(AUTHENTICATION[0]);
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
