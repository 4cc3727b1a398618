//! Rows 1 to 10: ICReq and the time before it.

use super::*;

pub fn rows() -> Vec<Row<Memory>> {
    vec![
        row(
            1,
            "CapsuleCmd before ICReq",
            "TCP 3.1",
            Fresh,
            1,
            |p, _| p.command(&flush(1), &[]),
            Term(SEQUENCE, 0),
        ),
        row(2, "ICReq PFV not 0", "TCP 3.6.2.1", Fresh, 1, |p, _| ic(p, |b| b[8] = 1), Term(FIELD, 8)),
        row(3, "ICReq HPDA 32", "TCP 3.6.2.1", Fresh, 1, |p, _| ic(p, |b| b[10] = 32), Term(FIELD, 10)),
        row(
            4,
            "ICReq HLEN 127, 0, 255",
            "TCP 3.6.2.1",
            Fresh,
            3,
            |p, v| {
                let mut pdu = p.raw.ic_req();
                pdu[2] = [127, 0, 255][v];
                p.send(&pdu);
            },
            Term(FIELD, 2),
        ),
        row(
            5,
            "ICReq PLEN 127, 129, 0, FFFFFFFFh",
            "TCP 3.6.2.1",
            Fresh,
            4,
            |p, v| {
                let mut pdu = p.raw.ic_req();
                put32(&mut pdu, 4, [127, 129, 0, u32::MAX][v]);
                p.send(&pdu);
            },
            Term(FIELD, 4),
        ),
        row(6, "a second ICReq", "TCP 3.1", PLAIN, 1, |p, _| ic(p, |_| ()), Term(SEQUENCE, 0)),
        row(
            6,
            "a second ICReq before Connect",
            "TCP 3.1",
            Negotiated(true, true),
            1,
            |p, _| ic(p, |_| ()),
            Term(SEQUENCE, 0),
        ),
        row(
            7,
            "half an ICReq, then FIN",
            "TCP 3.1",
            Fresh,
            1,
            |p, _| {
                let pdu = p.raw.ic_req();
                p.send(&pdu[..64]);
                p.target.qpair.handle_eof(p.target.now);
                p.send(&[]);
                assert!(p.answers.is_empty());
            },
            Close(CloseReason::PeerClosed),
        ),
        row(
            8,
            "ICReq one byte per second; a silent connection; ICReq and no Connect",
            "TCP 3.1",
            Fresh,
            3,
            |p, v| {
                let pdu = p.raw.ic_req();
                if v == 2 {
                    p.send(&pdu);
                }
                for second in 0..=10usize {
                    assert!(p.target.closed.is_none(), "closed at {second} s");
                    if v == 0 {
                        p.send(&pdu[second..second + 1]);
                    }
                    p.target.now += Duration::from_secs(1);
                    p.target.qpair.handle_timeout(p.target.now);
                    p.target.pump();
                    if second == 9 {
                        break;
                    }
                }
            },
            Close(CloseReason::SetupTimeout),
        ),
        row(
            9,
            "MAXR2T FFFFFFFFh",
            "TCP 3.6.2.1",
            Fresh,
            1,
            |p, _| {
                ic(p, |b| put32(b, 12, u32::MAX));
                assert_eq!(p.answers[0][0], 1, "ICResp");
            },
            Lives,
        ),
        row(
            10,
            "reserved bits and bytes of ICReq set",
            "TCP 3.6.2.1",
            Fresh,
            1,
            |p, _| {
                ic(p, |b| {
                    b[1] = 0xff;
                    b[3] = 0xff;
                    b[11] = 0xfc;
                    b[16..].fill(0xff);
                });
                assert_eq!((p.answers[0][0], p.answers[0][11]), (1, 0), "ICResp without digests");
            },
            Lives,
        ),
    ]
}
