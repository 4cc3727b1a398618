//! Rows 34 to 50: data that an R2T asked for, or did not.

use super::*;

pub fn rows() -> Vec<Row<Memory>> {
    vec![
        row(
            34,
            "H2CData with no R2T outstanding",
            "TCP 3.3.2.2",
            PLAIN,
            2,
            |p, v| p.data(5, [1, 0x0800][v], 0, 512, true),
            Term(FIELD, 10),
        ),
        row(
            35,
            "TTAG 0, 7FFFh, FFFFh",
            "TCP 3.3.2.2",
            PLAIN,
            3,
            |p, v| {
                p.write(5, 0, 32);
                p.data(5, [0, 0x7fff, 0xffff][v], 0, 512, false);
            },
            Term(FIELD, 10),
        ),
        row(
            36,
            "right TTAG, wrong CCCID",
            "TCP 3.6.2.8",
            PLAIN,
            1,
            |p, _| {
                let ttag = p.write(5, 0, 32);
                p.data(6, ttag, 0, 512, false);
            },
            Term(FIELD, 8),
        ),
        row(
            37,
            "DATAO skips ahead",
            "TCP 3.3.2.2",
            PLAIN,
            1,
            |p, _| {
                let ttag = p.write(5, 0, 32);
                p.data(5, ttag, 512, 512, false);
            },
            Term(SEQUENCE, 0),
        ),
        row(
            38,
            "DATAO repeated or backwards",
            "TCP 3.3.2.2",
            PLAIN,
            2,
            |p, v| {
                let ttag = p.write(5, 0, 32);
                p.data(5, ttag, 0, 1024, false);
                p.data(5, ttag, [0, 512][v], 512, false);
            },
            Term(SEQUENCE, 0),
        ),
        row(
            39,
            "range past R2TO + R2TL",
            "TCP 3.3.2.2",
            PLAIN,
            2,
            |p, v| {
                let ttag = p.write(5, 0, 32);
                let (offset, len) = [(0, 16388), (16384, 512)][v];
                p.data(5, ttag, offset, len, true);
            },
            Term(RANGE, 0),
        ),
        row(
            40,
            "DATAO + DATAL wraps",
            "TCP 3.3.2.2",
            PLAIN,
            1,
            |p, _| {
                let ttag = p.write(5, 0, 32);
                p.data(5, ttag, 0xffff_ff00, 512, false);
            },
            Term(RANGE, 0),
        ),
        row(
            41,
            "DATAL above MAXH2CDATA",
            "TCP 3.3.2.2",
            PLAIN,
            1,
            |p, _| {
                let ttag = p.write(5, 0, 1024);
                p.data(5, ttag, 0, 128 * 1024 + 4, false);
            },
            Term(LIMIT, 0),
        ),
        row(
            42,
            "DATAL not PLEN - PDO - digest",
            "TCP 3.6.2.8",
            PLAIN,
            3,
            |p, v| h2c_with(p, 32, 512, |b| put32(b, 16, [508, 516, 0xffff_fffc][v])),
            Term(FIELD, 4),
        ),
        row(
            42,
            "DATAL counts the digest",
            "TCP 3.6.2.8",
            DIGESTS,
            1,
            |p, _| h2c_with(p, 32, 512, |b| put32(b, 16, 516)),
            Term(FIELD, 4),
        ),
        row(
            43,
            "DATAL 0",
            "TCP 3.6.2.8",
            PLAIN,
            1,
            |p, _| {
                let ttag = p.write(5, 0, 32);
                p.data(5, ttag, 0, 0, false);
            },
            Term(FIELD, 16),
        ),
        row(
            44,
            "DATAL not whole dwords",
            "TCP 3.6.2.8",
            PLAIN,
            1,
            |p, _| {
                let ttag = p.write(5, 0, 32);
                p.data(5, ttag, 0, 510, false);
            },
            Term(FIELD, 16),
        ),
        row(
            44,
            "DATAO not whole dwords",
            "TCP 3.6.2.8",
            PLAIN,
            1,
            |p, _| {
                let ttag = p.write(5, 0, 32);
                p.data(5, ttag, 2, 512, false);
            },
            Term(FIELD, 12),
        ),
        row(
            45,
            "LAST_PDU before the range is complete",
            "TCP 3.3.2.2",
            PLAIN,
            1,
            |p, _| {
                let ttag = p.write(5, 0, 32);
                p.data(5, ttag, 0, 512, true);
            },
            Term(SEQUENCE, 0),
        ),
        row(
            46,
            "data after LAST_PDU of one R2T",
            "TCP 3.3.2.2",
            PLAIN,
            2,
            |p, v| {
                p.target.responder.hold = true;
                let ttag = p.write(5, 0, 32);
                p.data(5, ttag, 0, 16384, true);
                assert_eq!(p.target.held.len(), 1);
                p.data(5, ttag, 0, 512, v == 1);
            },
            Term(SEQUENCE, 0),
        ),
        row(
            47,
            "LAST_PDU missing at the end",
            "TCP 3.3.2.2",
            PLAIN,
            1,
            |p, _| {
                let ttag = p.write(5, 0, 32);
                p.data(5, ttag, 0, 16384, false);
            },
            Term(SEQUENCE, 0),
        ),
        row(
            48,
            "TTAG of a completed command",
            "TCP 3.3.2.2",
            PLAIN,
            2,
            |p, v| {
                let ttag = p.write(5, 0, 32);
                p.data(5, ttag, 0, 16384, true);
                if v == 1 {
                    // The slot has a new command, and that an R2T of its own.
                    assert_ne!(p.write(5, 64, 32), ttag);
                }
                p.data(5, ttag, 0, 512, false);
                assert!(p.target.responder.bytes[64 * LBA..].iter().all(|byte| *byte == 0));
            },
            Term(FIELD, 10),
        ),
        row(
            49,
            "an R2T that is never answered",
            "TCP 3.3.2.2",
            PLAIN,
            1,
            |p, _| {
                p.write(5, 0, 32);
                for cid in 10..100 {
                    p.command(&write_in_capsule(cid, 50, 1), &[cid as u8; 512]);
                }
                assert_eq!((p.answers.len(), p.target.qpair.in_flight()), (90, 1));
            },
            Expect::Status(Status::SUCCESS),
        ),
        row(
            50,
            "two R2Ts served in the other order and interleaved",
            "TCP 3.3.2.2",
            PLAIN,
            1,
            |p, _| {
                let (one, two) = (p.write(5, 0, 32), p.write(6, 32, 32));
                p.data(6, two, 0, 8192, false);
                p.data(5, one, 0, 4096, false);
                p.data(6, two, 8192, 8192, true);
                p.data(5, one, 4096, 12288, true);
                let cids: Vec<u16> = p.answers.iter().map(|pdu| cqe(pdu).cid().0).collect();
                assert_eq!(cids, [6, 5]);
                assert!(p.target.responder.bytes[..64 * LBA].iter().all(|byte| *byte == 0xaa));
            },
            Expect::Status(Status::SUCCESS),
        ),
    ]
}
