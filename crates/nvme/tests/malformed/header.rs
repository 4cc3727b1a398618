//! Rows 12 to 33: common header, digests, termination, segments.

use super::*;

pub fn rows() -> Vec<Row<Memory>> {
    vec![
        row(
            12,
            "PDU types of a controller",
            "TCP 3.6.1",
            PLAIN,
            5,
            |p, v| flush_with(p, |b| b[0] = [1, 3, 5, 7, 9][v]),
            Term(FIELD, 0),
        ),
        row(
            12,
            "PDU types of a controller, first",
            "TCP 3.6.1",
            Fresh,
            5,
            |p, v| flush_with(p, |b| b[0] = [1, 3, 5, 7, 9][v]),
            Term(FIELD, 0),
        ),
        row(
            13,
            "reserved PDU types",
            "TCP 3.6.1",
            PLAIN,
            4,
            |p, v| flush_with(p, |b| b[0] = [0x08, 0x0a, 0x0c, 0xff][v]),
            Term(FIELD, 0),
        ),
        row(
            14,
            "CapsuleCmd HLEN 0, 71, 73, 255",
            "TCP 3.6.2.6",
            PLAIN,
            4,
            |p, v| flush_with(p, |b| b[2] = [0, 71, 73, 255][v]),
            Term(FIELD, 2),
        ),
        row(
            15,
            "CapsuleCmd PLEN 0, 7, 71",
            "TCP 3.6.2.6",
            PLAIN,
            3,
            |p, v| flush_with(p, |b| put32(b, 4, [0, 7, 71][v])),
            Term(FIELD, 4),
        ),
        row(
            16,
            "CapsuleCmd PLEN FFFFFFFFh or above the largest capsule",
            "TCP 3.3.1",
            PLAIN,
            2,
            |p, v| {
                let capsule = p.raw.capsule(&write_in_capsule(5, 0, 1), &[0; 512]);
                let mut common = capsule[..8].to_vec();
                put32(&mut common, 4, [u32::MAX, 72 + 8192 + 4][v]);
                p.send(&common);
            },
            Term(FIELD, 4),
        ),
        row(
            17,
            "in-capsule data above 8192 bytes, admin queue",
            "TCP 3.3.1",
            Admin(false, false),
            1,
            |p, _| {
                let mut sqe = Sqe::new(admin::SET_FEATURES, Cid(5));
                sqe.set_sgl(Sgl::in_capsule(8196));
                p.command(&sqe, &[0; 8196]);
            },
            Term(FIELD, 4),
        ),
        row(
            17,
            "in-capsule data above 8192 bytes, before Connect",
            "TCP 3.3.1",
            Negotiated(true, true),
            1,
            |p, _| {
                let mut sqe = connect_sqe(0, 32);
                sqe.set_sgl(Sgl::in_capsule(8196));
                p.command(&sqe, &[0; 8196]);
            },
            Term(FIELD, 4),
        ),
        row(
            17,
            "in-capsule data above IOCCSZ",
            "TCP 3.3.1",
            PLAIN,
            1,
            |p, _| p.command(&write_in_capsule(5, 0, 17), &[0; 8704]),
            Term(FIELD, 4),
        ),
        row(
            18,
            "PDO below HLEN",
            "TCP 3.6.2.6",
            PLAIN,
            3,
            |p, v| write_with(p, |b| b[3] = [0, 8, 68][v]),
            Term(FIELD, 3),
        ),
        row(
            18,
            "PDO below HLEN and digest",
            "TCP 3.6.2.6",
            DIGESTS,
            1,
            |p, _| write_with(p, |b| b[3] = 72),
            Term(FIELD, 3),
        ),
        row(
            19,
            "PDO not a multiple of CPDA",
            "TCP 3.6.2.2",
            PLAIN,
            3,
            |p, v| write_with(p, |b| b[3] = [73, 74, 75][v]),
            Term(FIELD, 3),
        ),
        row(
            19,
            "PDO beyond PLEN",
            "TCP 3.6.2.6",
            PLAIN,
            1,
            |p, _| {
                let pdu = p.raw.change(&p.raw.capsule(&write_in_capsule(5, 0, 1), &[0; 16]), |b| b[3] = 128);
                p.send(&pdu);
            },
            Term(FIELD, 3),
        ),
        row(
            20,
            "HDGSTF without a negotiated digest",
            "TCP 3.3.1.1",
            PLAIN,
            1,
            |p, _| flush_with(p, |b| b[1] |= 1),
            Term(FIELD, 1),
        ),
        row(
            21,
            "a negotiated header digest, HDGSTF clear",
            "TCP 3.3.1.1",
            DIGESTS,
            1,
            |p, _| flush_with(p, |b| b[1] &= !1),
            Term(FIELD, 1),
        ),
        row(
            22,
            "DDGSTF without a negotiated digest",
            "TCP 3.3.1.1",
            PLAIN,
            2,
            |p, v| if v == 0 { write_with(p, |b| b[1] |= 2) } else { flush_with(p, |b| b[1] |= 2) },
            Term(FIELD, 1),
        ),
        row(
            22,
            "a negotiated data digest, DDGSTF clear",
            "TCP 3.3.1.1",
            DIGESTS,
            2,
            |p, v| if v == 0 { write_with(p, |b| b[1] &= !2) } else { h2c_with(p, 32, 512, |b| b[1] &= !2) },
            Term(FIELD, 1),
        ),
        row(
            23,
            "wrong header digest",
            "TCP 3.5",
            Io(true, false),
            1,
            |p, _| {
                let mut pdu = p.raw.capsule(&flush(5), &[]);
                put32(&mut pdu, 72, 0xdead_beef);
                p.send(&pdu);
            },
            Term(DIGEST, 0xdead_beef),
        ),
        row(
            24,
            "HLEN 255 with header digest on",
            "TCP 3.6.1",
            DIGESTS,
            1,
            |p, _| {
                let mut pdu = p.raw.capsule(&flush(5), &[]);
                pdu[2] = 255;
                p.send(&pdu);
            },
            Term(FIELD, 2),
        ),
        row(
            25,
            "wrong data digest, in-capsule",
            "TCP 3.5",
            DIGESTS,
            1,
            |p, _| {
                let mut pdu = p.raw.capsule(&write_in_capsule(5, 0, 1), &[0xaa; 512]);
                *pdu.last_mut().unwrap() ^= 1;
                p.send(&pdu);
                assert_eq!(p.target.responder.bytes[..512], [0; 512]);
            },
            Expect::Status(Status::TRANSIENT_TRANSPORT_ERROR),
        ),
        row(
            26,
            "wrong data digest, H2CData",
            "TCP 3.5",
            DIGESTS,
            2,
            |p, v| {
                let ttag = p.write(5, 0, 32);
                for (n, last) in [(0, false), (1, true)] {
                    let mut pdu = p.raw.h2c(5, ttag, n * 8192, &[0xaa; 8192], last);
                    if n as usize == v {
                        *pdu.last_mut().unwrap() ^= 0x80;
                    }
                    p.send(&pdu);
                }
                assert_eq!(p.target.responder.bytes[..16384], [0; 16384]);
            },
            Expect::Status(Status::TRANSIENT_TRANSPORT_ERROR),
        ),
        row(
            27,
            "a valid H2CTermReq",
            "TCP 3.5",
            PLAIN,
            1,
            |p, _| p.send(&term(24, 2)),
            Close(CloseReason::PeerTerminated { fes: 2, fei: 0 }),
        ),
        row(
            27,
            "a valid H2CTermReq, digests on",
            "TCP 3.5",
            DIGESTS,
            1,
            |p, _| p.send(&term(152, 1)),
            Close(CloseReason::PeerTerminated { fes: 1, fei: 0 }),
        ),
        row(
            28,
            "H2CTermReq with PLEN 23 or 153, HLEN 25",
            "TCP 3.5",
            PLAIN,
            3,
            |p, v| {
                let mut pdu = term([23, 153, 24][v], 2);
                pdu[2] = [24, 24, 25][v];
                p.send(&pdu);
            },
            Close(CloseReason::PeerTerminated { fes: 0, fei: 0 }),
        ),
        row(
            29,
            "H2CTermReq with FES 0",
            "TCP 3.5",
            PLAIN,
            1,
            |p, _| p.send(&term(32, 0)),
            Close(CloseReason::PeerTerminated { fes: 0, fei: 0 }),
        ),
        row(
            29,
            "H2CTermReq with FES 7",
            "TCP 3.5",
            PLAIN,
            1,
            |p, _| p.send(&term(32, 7)),
            Close(CloseReason::PeerTerminated { fes: 7, fei: 0 }),
        ),
        row(
            29,
            "H2CTermReq with FES FFFFh",
            "TCP 3.5",
            PLAIN,
            1,
            |p, _| p.send(&term(32, 0xffff)),
            Close(CloseReason::PeerTerminated { fes: 0xffff, fei: 0 }),
        ),
        row(
            30,
            "a bad PDU and a valid write in one segment",
            "TCP 3.5",
            PLAIN,
            1,
            |p, _| {
                let mut bytes = p.raw.change(&p.raw.capsule(&flush(4), &[]), |b| b[0] = 8);
                bytes.extend(p.raw.capsule(&write_in_capsule(5, 0, 1), &[0xaa; 512]));
                p.send(&bytes);
                assert!(p.target.executed.is_empty());
                assert_eq!(p.target.responder.bytes[..512], [0; 512]);
            },
            Term(FIELD, 0),
        ),
        row(
            31,
            "our C2HTermReq is ignored",
            "TCP 3.5",
            PLAIN,
            1,
            |p, _| {
                flush_with(p, |b| b[0] = 8);
                p.target.now += Duration::from_secs(29);
                p.target.qpair.handle_timeout(p.target.now);
                p.send(&[0; 1000]);
                assert_eq!(p.target.closed, None);
                p.target.now += Duration::from_secs(1);
                p.target.qpair.handle_timeout(p.target.now);
                p.send(&[]);
                assert!(matches!(p.target.closed, Some(CloseReason::Terminated(_))));
            },
            Term(FIELD, 0),
        ),
        row(
            32,
            "FIN inside capsule data or H2CData",
            "TCP 3.3",
            PLAIN,
            2,
            |p, v| {
                let pdu = if v == 0 {
                    p.raw.capsule(&write_in_capsule(5, 0, 16), &[0xaa; 8192])
                } else {
                    let ttag = p.write(5, 0, 32);
                    p.raw.h2c(5, ttag, 0, &[0xaa; 16384], true)
                };
                p.send(&pdu[..pdu.len() - 100]);
                assert_eq!(p.target.buffers_out(), 1);
                p.target.qpair.handle_eof(p.target.now);
                p.send(&[]);
                assert!(p.answers.is_empty() && p.target.executed.is_empty());
            },
            Close(CloseReason::PeerClosed),
        ),
        row(
            33,
            "one-byte segments; 64 PDUs in one segment",
            "TCP 2",
            DIGESTS,
            2,
            |p, v| {
                let mut bytes = Vec::new();
                for n in 0..64u16 {
                    // At most 32 are in flight: those of one segment are answered as they come.
                    bytes.extend(
                        p.raw.capsule(&write_in_capsule(n % 16, u64::from(n), 1), &[n as u8 + 1; 512]),
                    );
                    if n % 16 == 15 {
                        let whole = std::mem::take(&mut bytes);
                        if v == 0 { whole.iter().for_each(|byte| p.send(&[*byte])) } else { p.send(&whole) }
                    }
                }
                assert_eq!(p.answers.len(), 64);
                assert!((0..64).all(|n| p.target.responder.bytes[n * LBA] == n as u8 + 1));
            },
            Expect::Status(Status::SUCCESS),
        ),
    ]
}

fn term(plen: u32, fes: u16) -> Vec<u8> {
    let mut pdu = vec![0; plen.max(24) as usize];
    pdu[0] = 2;
    pdu[2] = 24;
    put32(&mut pdu, 4, plen);
    pdu[8..10].copy_from_slice(&fes.to_le_bytes());
    pdu
}
