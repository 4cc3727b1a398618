//! Rows 51 to 59 and 63: SQE and SGL.

use super::*;

/// A one-block write whose SGL is this one, with `data` in the capsule.
fn write_sgl(p: P, sgl: Sgl, data: &[u8]) {
    p.command(&rw(nvm::WRITE, 5, 0, 1, sgl), data);
    assert!(p.target.executed.is_empty() && p.target.buffers_out() == 0, "no buffer was spent");
}

pub fn rows() -> Vec<Row<Memory>> {
    let status = |status: Status| Expect::Status(status.with_dnr());
    vec![
        row(
            51,
            "keyed, segment, bit bucket, address SGLs",
            "TCP 3.3.2",
            PLAIN,
            9,
            |p, v| {
                let identifier = [0x00, 0x10, 0x20, 0x21, 0x30, 0x31, 0x40, 0x4f, 0xf0][v];
                write_sgl(p, Sgl::new(identifier, 0, 512), &[]);
            },
            status(Status::SGL_DESCRIPTOR_TYPE_INVALID),
        ),
        row(
            51,
            "a keyed SGL with in-capsule data",
            "TCP 3.3.2",
            DIGESTS,
            1,
            |p, _| write_sgl(p, Sgl::new(0x40, 0, 512), &[1; 512]),
            status(Status::SGL_DESCRIPTOR_TYPE_INVALID),
        ),
        row(
            52,
            "in-capsule SGL with an offset",
            "TCP 3.3.1",
            PLAIN,
            3,
            |p, v| write_sgl(p, Sgl::new(0x01, [1, 512, u64::MAX][v], 512), &[1; 512]),
            status(Status::SGL_OFFSET_INVALID),
        ),
        row(
            53,
            "in-capsule SGL length is not the bytes present",
            "Base 4.2.3",
            PLAIN,
            4,
            |p, v| write_sgl(p, Sgl::in_capsule([0, 511, 1024, u32::MAX][v]), &[1; 512]),
            status(Status::DATA_SGL_LENGTH_INVALID),
        ),
        row(
            53,
            "in-capsule SGL and nothing in the capsule",
            "Base 4.2.3",
            PLAIN,
            1,
            |p, _| write_sgl(p, Sgl::in_capsule(512), &[]),
            status(Status::DATA_SGL_LENGTH_INVALID),
        ),
        row(
            53,
            "transport SGL and data in the capsule",
            "Base 4.2.3",
            DIGESTS,
            1,
            |p, _| write_sgl(p, Sgl::transport(512), &[1; 512]),
            status(Status::DATA_SGL_LENGTH_INVALID),
        ),
        row(
            54,
            "transport SGL shorter than NLB",
            "Base 4.2.3",
            PLAIN,
            1,
            |p, _| {
                p.command(&rw(nvm::READ, 5, 0, 2, Sgl::transport(512)), &[]);
            },
            status(Status::DATA_SGL_LENGTH_INVALID),
        ),
        row(
            55,
            "SGL length 4 GiB - 4 on a write",
            "Base MDTS",
            PLAIN,
            1,
            |p, _| write_sgl(p, Sgl::transport(0xffff_fffc), &[]),
            status(Status::INVALID_FIELD),
        ),
        row(
            56,
            "PSDT 00b, 10b, 11b",
            "Base 4.2.1",
            PLAIN,
            3,
            |p, v| {
                let mut sqe = flush(5);
                sqe.set_psdt([0, 2, 3][v]);
                p.command(&sqe, &[]);
            },
            status(Status::INVALID_FIELD),
        ),
        row(
            57,
            "FUSE 11b",
            "Base 4.2.1",
            PLAIN,
            1,
            |p, _| {
                let mut sqe = flush(5);
                sqe.0[1] |= 3;
                p.command(&sqe, &[]);
            },
            status(Status::INVALID_FIELD),
        ),
        row(
            57,
            "FUSE 01b on something else than Compare",
            "NVM 2.1.5",
            PLAIN,
            1,
            |p, _| {
                let mut sqe = flush(5);
                sqe.0[1] |= 1;
                p.command(&sqe, &[]);
            },
            status(Status::INVALID_FIELD),
        ),
        row(
            58,
            "a CID that is outstanding",
            "Base 4.2.3",
            PLAIN,
            1,
            |p, _| {
                p.target.responder.hold = true;
                p.command(&flush(5), &[]);
                p.command(&write_in_capsule(5, 0, 1), &[1; 512]);
                assert_eq!(p.target.executed.len(), 1);
            },
            Expect::Status(Status::COMMAND_ID_CONFLICT),
        ),
        row(
            58,
            "the CID of a write that waits for its data, three times",
            "Base 4.2.3",
            PLAIN,
            1,
            |p, _| {
                let ttag = p.write(5, 0, 32);
                for _ in 0..3 {
                    p.command(&flush(5), &[]);
                }
                assert!(p.answers.iter().all(|pdu| cqe(pdu).status() == Status::COMMAND_ID_CONFLICT));
                p.data(5, ttag, 0, 16384, true);
            },
            Expect::Status(Status::SUCCESS),
        ),
        row(
            59,
            "more commands than SQSIZE",
            "Base 6.3",
            PLAIN,
            1,
            |p, _| {
                p.target.responder.hold = true;
                for cid in 0..33 {
                    p.command(&flush(cid), &[]);
                }
                assert_eq!(p.target.executed.len(), 32);
            },
            Term(SEQUENCE, 0),
        ),
        row(
            63,
            "a write above MDTS",
            "Base MDTS",
            PLAIN,
            1,
            |p, _| p.command(&write(5, 0, 1025), &[]),
            status(Status::INVALID_FIELD),
        ),
    ]
}
