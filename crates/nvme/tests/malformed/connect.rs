//! Rows 77 to 79 and 100: Connect, as far as no controller is needed.

use super::*;

pub fn rows() -> Vec<Row<Memory>> {
    let status = |status: Status| Expect::Status(status.with_dnr());
    vec![
        row(
            77,
            "anything before Connect",
            "Base 3.3.2.2",
            Negotiated(false, false),
            4,
            |p, v| {
                let commands = [
                    flush(1),
                    read(1, 0, 1),
                    Sqe::fabrics(fctype::PROPERTY_GET, Cid(1)),
                    Sqe::fabrics(fctype::AUTHENTICATION_SEND, Cid(1)),
                ];
                p.command(&commands[v], &[]);
                assert!(p.target.executed.is_empty());
            },
            status(Status::COMMAND_SEQUENCE_ERROR),
        ),
        row(
            77,
            "a command right behind a Connect that is not answered yet",
            "Base 3.3.2.2",
            Negotiated(true, true),
            1,
            |p, _| {
                p.target.starve = true;
                let mut bytes = p.raw.connect(1, 32);
                bytes.extend(p.raw.capsule(&flush(9), &[]));
                p.send(&bytes);
                assert!(p.answers.is_empty());
                p.target.feed_starved();
                p.send(&[]);
                assert_eq!(cqe(&p.answers[0]).status(), Status::COMMAND_SEQUENCE_ERROR.with_dnr());
                assert_eq!(cqe(&p.answers[0]).cid(), Cid(9));
            },
            Expect::Status(Status::SUCCESS),
        ),
        row(
            78,
            "Connect twice on a queue",
            "Base 6.3",
            PLAIN,
            1,
            |p, _| p.command(&connect_sqe(1, 32), &[0; CONNECT_DATA]),
            status(Status::COMMAND_SEQUENCE_ERROR),
        ),
        row(
            78,
            "a second Connect right behind the first: refused alone, and the first still gets its answer",
            "Base 6.3",
            Negotiated(true, true),
            1,
            |p, _| {
                p.target.starve = true;
                let mut bytes = p.raw.connect(1, 32);
                let mut second = connect_sqe(1, 32);
                second.set_cid(Cid(9));
                bytes.extend(p.raw.capsule(&second, &[0; CONNECT_DATA]));
                p.send(&bytes);
                p.target.feed_starved();
                p.send(&[]);
                assert_eq!(cqe(&p.answers[0]).status(), Status::COMMAND_SEQUENCE_ERROR.with_dnr());
                assert_eq!(cqe(&p.answers[0]).cid(), Cid(9));
            },
            Expect::Status(Status::SUCCESS),
        ),
        row(
            79,
            "Connect data shorter than 1024 bytes",
            "Base 6.3",
            Negotiated(false, false),
            2,
            |p, v| {
                let len = [512, 1020][v];
                let mut sqe = connect_sqe(1, 32);
                sqe.set_sgl(Sgl::in_capsule(len));
                p.command(&sqe, &vec![0; len as usize]);
            },
            status(Status::CONNECT_INVALID_PARAMETERS),
        ),
        row(
            79,
            "Connect with PRPs says which parameter, not Invalid Field",
            "Base 6.3",
            Negotiated(false, false),
            1,
            |p, _| {
                let mut sqe = connect_sqe(1, 32);
                sqe.set_psdt(0);
                p.command(&sqe, &[0; CONNECT_DATA]);
                assert_eq!(cqe(&p.answers[0]).dw0(), 1, "IPO: byte 1 of the SQE");
            },
            status(Status::CONNECT_INVALID_PARAMETERS),
        ),
        // TLS is not supported: nobody listens for it, and a ClientHello is no PDU.
        row(
            100,
            "a TLS ClientHello on a plain port",
            "TCP 3.6.1",
            Fresh,
            1,
            |p, _| p.send(&[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3]),
            Term(FIELD, 0),
        ),
    ]
}
