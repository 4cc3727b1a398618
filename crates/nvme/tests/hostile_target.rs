//! What a broken or hostile target sends to our initiator, and what becomes of it: H2CTermReq with FES and
//! FEI, a status, or a silent close. Among the rows are the mistakes that other initiators made.

mod common;

use common::*;
use peristyle_nvme::host::{Data, Event, HostClose, HostConfig};
use peristyle_nvme::wire::digest::data_digest;
use peristyle_nvme::wire::opcode::nvm;
use peristyle_nvme::wire::pdu::{self, Format, Ic, flags, kind};
use peristyle_nvme::wire::{Cid, Cqe, Sgl, Status};

use Expect::{Close, Is, Term};

const FIELD: u16 = 1;
const SEQUENCE: u16 = 2;
const DIGEST: u16 = 3;
const RANGE: u16 = 4;
const LIMIT: u16 = 5;

enum Expect {
    Term(u16, u32),
    Close(HostClose),
    /// The named command ends with this status, and the connection lives.
    Is(Command, Status),
}

#[derive(Clone, Copy, PartialEq)]
enum Command {
    Write,
    Read,
    Flush,
}

/// A host with a 16 KiB write, a 4 KiB read and a flush in flight.
struct Probe {
    host: Host,
    format: Format,
    write: u16,
    read: u16,
    flush: u16,
}

impl Probe {
    fn new(digests: bool) -> Probe {
        let config =
            HostConfig { entries: 8, header_digest: digests, data_digest: digests, ..HostConfig::default() };
        let mut host = Host::new(config);
        let format = Format { header_digest: digests, data_digest: digests, alignment: 0 };
        host.pump();
        host.input(&ic_resp(digests, |_| ()));
        assert_eq!(host.events, [Event::Ready]);
        host.events.clear();
        let command = |opcode| rw(opcode, 0, 0, 8, Sgl::default());
        let write = host.submit(command(nvm::WRITE), Data::ToTarget(16384), &[1; 16384]).unwrap();
        let read = host.submit(command(nvm::READ), Data::FromTarget(4096), &[]).unwrap();
        let flush = host.submit(flush(0), Data::None, &[]).unwrap();
        let [write, read, flush] = [write, read, flush].map(|tag| host.qpair.cid(tag).0);
        host.pump();
        host.out.clear();
        Probe { host, format, write, read, flush }
    }
    fn send(&mut self, pdu: &[u8]) {
        self.host.input(pdu);
    }
    fn r2t(&mut self, cccid: u16, offset: u32, length: u32) {
        let mut out = [0; 160];
        let len = self.format.r2t(&mut out, &pdu::Data { cccid, ttag: 77, offset, length });
        self.send(&out[..len]);
    }
    fn data_pdu(&self, cccid: u16, offset: u32, len: usize, extra: u8) -> Vec<u8> {
        let mut out = vec![0; 160];
        let header = pdu::Data { cccid, ttag: 0, offset, length: len as u32 };
        let start = self.format.c2h_data(&mut out, &header, extra);
        out.truncate(start);
        out.extend(vec![9; len]);
        if self.format.data_digest {
            out.extend(data_digest([&vec![9; len][..]]));
        }
        out
    }
    fn data(&mut self, cccid: u16, offset: u32, len: usize, extra: u8) {
        let pdu = self.data_pdu(cccid, offset, len, extra);
        self.send(&pdu);
    }
    fn response(&mut self, cid: u16, status: Status) {
        let pdu = self.response_pdu(cid, status);
        self.send(&pdu);
    }
    fn response_pdu(&self, cid: u16, status: Status) -> Vec<u8> {
        let mut out = vec![0; 160];
        let len = self.format.capsule_resp(&mut out, &Cqe::new(Cid(cid), status, 0, 0, 1));
        out.truncate(len);
        out
    }
}

fn ic_resp(digests: bool, change: impl FnOnce(&mut [u8])) -> Vec<u8> {
    let mut out = vec![0; 128];
    Ic { dgst: if digests { 3 } else { 0 }, max: 8192, ..Ic::default() }.encode(kind::IC_RESP, &mut out);
    change(&mut out);
    out
}

type Row = (&'static str, bool, fn(&mut Probe), Expect);

fn rows() -> Vec<Row> {
    use Command::{Flush, Read, Write};
    const LAST: u8 = flags::LAST;
    const DONE: u8 = flags::LAST | flags::SUCCESS;
    let short = Status::DATA_TRANSFER_ERROR;
    vec![
        ("a second ICResp", false, |p| p.send(&ic_resp(false, |_| ())), Term(SEQUENCE, 0)),
        ("a host's PDU type", false, |p| p.send(&[4, 0, 72, 0, 72, 0, 0, 0]), Term(FIELD, 0)),
        ("a reserved PDU type", false, |p| p.send(&[8, 0, 24, 0, 24, 0, 0, 0]), Term(FIELD, 0)),
        ("HLEN 255 with a header digest", true, |p| p.send(&[5, 1, 255, 0, 24, 0, 0, 0]), Term(FIELD, 2)),
        ("HLEN 8", false, |p| p.send(&[7, 4, 8, 24, 255, 0, 0, 0]), Term(FIELD, 2)),
        ("PLEN 0", false, |p| p.send(&[5, 0, 24, 0, 0, 0, 0, 0]), Term(FIELD, 4)),
        ("PDO within the header", false, |p| p.send(&[7, 4, 24, 8, 255, 0, 0, 0]), Term(FIELD, 3)),
        ("PDO beyond PLEN", false, |p| p.send(&[7, 4, 24, 128, 32, 0, 0, 0]), Term(FIELD, 4)),
        ("no header digest though agreed", true, |p| p.send(&[5, 0, 24, 0, 28, 0, 0, 0]), Term(FIELD, 1)),
        ("no data digest though agreed", true, |p| p.send(&[7, 5, 24, 28, 255, 0, 0, 0]), Term(FIELD, 1)),
        ("SUCCESS without LAST_PDU", false, |p| p.data(p.read, 0, 4096, flags::SUCCESS), Term(FIELD, 1)),
        (
            "a wrong header digest",
            true,
            |p| {
                let mut pdu = p.response_pdu(p.flush, Status::SUCCESS);
                pdu[24..28].copy_from_slice(&[1, 2, 3, 4]);
                p.send(&pdu);
            },
            Term(DIGEST, 0x0403_0201),
        ),
        ("R2T for no command", false, |p| p.r2t(0x7777, 0, 4096), Term(FIELD, 8)),
        ("R2T for the slot's last generation", false, |p| p.r2t(p.write ^ 0x800, 0, 4096), Term(FIELD, 8)),
        ("R2T for a read: host memory would leave", false, |p| p.r2t(p.read, 0, 4096), Term(FIELD, 8)),
        ("R2T for a flush", false, |p| p.r2t(p.flush, 0, 4), Term(FIELD, 8)),
        ("R2T of nothing", false, |p| p.r2t(p.write, 0, 0), Term(FIELD, 16)),
        ("R2T past the data", false, |p| p.r2t(p.write, 0, 16388), Term(RANGE, 0)),
        ("R2T that wraps", false, |p| p.r2t(p.write, 0xffff_fffc, 8), Term(RANGE, 0)),
        ("R2T that skips", false, |p| p.r2t(p.write, 4096, 4096), Term(SEQUENCE, 0)),
        (
            "R2T for what was sent",
            false,
            |p| {
                p.r2t(p.write, 0, 4096);
                p.r2t(p.write, 0, 4096);
            },
            Term(SEQUENCE, 0),
        ),
        (
            "two R2Ts in one segment, one allowed",
            false,
            |p| {
                let mut out = vec![0; 160];
                let mut bytes = Vec::new();
                for offset in [0, 4096] {
                    let data = pdu::Data { cccid: p.write, ttag: 1, offset, length: 4096 };
                    let len = p.format.r2t(&mut out, &data);
                    bytes.extend_from_slice(&out[..len]);
                }
                p.send(&bytes);
            },
            Term(LIMIT, 0),
        ),
        ("data for no command", false, |p| p.data(0x7777, 0, 4096, DONE), Term(FIELD, 8)),
        ("data for a write", false, |p| p.data(p.write, 0, 4096, DONE), Term(FIELD, 8)),
        ("data for a flush", false, |p| p.data(p.flush, 0, 4, DONE), Term(FIELD, 8)),
        ("data past the buffer", false, |p| p.data(p.read, 0, 4100, DONE), Term(RANGE, 0)),
        ("data at an offset past the buffer", false, |p| p.data(p.read, 4096, 4, DONE), Term(RANGE, 0)),
        ("data whose end wraps", false, |p| p.data(p.read, 0xffff_fffc, 8, DONE), Term(RANGE, 0)),
        ("data that skips", false, |p| p.data(p.read, 512, 512, 0), Term(SEQUENCE, 0)),
        (
            "DATAL is not what PLEN says",
            false,
            |p| {
                let mut pdu = p.data_pdu(p.read, 0, 512, 0);
                pdu[16] = 4;
                p.send(&pdu);
            },
            Term(FIELD, 4),
        ),
        (
            "data after LAST_PDU",
            false,
            |p| {
                p.data(p.read, 0, 2048, LAST);
                p.data(p.read, 2048, 2048, LAST);
            },
            Term(SEQUENCE, 0),
        ),
        ("an answer to no command", false, |p| p.response(0x7777, Status::SUCCESS), Term(FIELD, 20)),
        (
            "two answers to one command",
            false,
            |p| {
                p.response(p.flush, Status::SUCCESS);
                p.response(p.flush, Status::SUCCESS);
            },
            Term(FIELD, 20),
        ),
        ("a short read by SUCCESS", false, |p| p.data(p.read, 0, 2048, DONE), Is(Read, short)),
        ("a read without data", false, |p| p.response(p.read, Status::SUCCESS), Is(Read, short)),
        ("a write nobody fetched", false, |p| p.response(p.write, Status::SUCCESS), Is(Write, short)),
        (
            "a read that fails keeps its own status",
            false,
            |p| {
                p.data(p.read, 0, 512, 0);
                p.response(p.read, Status::UNRECOVERED_READ_ERROR);
            },
            Is(Read, Status::UNRECOVERED_READ_ERROR),
        ),
        (
            "a wrong data digest",
            true,
            |p| {
                let mut pdu = p.data_pdu(p.read, 0, 4096, DONE);
                pdu[100] ^= 1;
                p.send(&pdu);
            },
            Is(Read, Status::TRANSIENT_TRANSPORT_ERROR),
        ),
        ("a good answer", true, |p| p.response(p.flush, Status::SUCCESS), Is(Flush, Status::SUCCESS)),
        (
            "C2HTermReq",
            true,
            |p| {
                let mut pdu = [0; 32];
                pdu[..9].copy_from_slice(&[3, 0, 24, 0, 32, 0, 0, 0, 4]);
                pdu[10] = 9;
                p.send(&pdu);
            },
            Close(HostClose::PeerTerminated { fes: 4, fei: 9 }),
        ),
        (
            "a malformed C2HTermReq",
            true,
            |p| p.send(&[3, 0, 24, 0, 200, 0, 0, 0]),
            Close(HostClose::PeerTerminated { fes: 0, fei: 0 }),
        ),
    ]
}

#[test]
fn a_hostile_target_gets_the_exact_answer_and_no_memory() {
    for (name, digests, send, expect) in rows() {
        let mut probe = Probe::new(digests);
        send(&mut probe);
        let write = probe.write;
        let (host, read, flush) = (&mut probe.host, probe.read, probe.flush);
        match expect {
            Term(fes, fei) => {
                let sent = split(&host.out);
                let term = sent.last().unwrap_or_else(|| panic!("{name}: nothing was said"));
                assert_eq!((term[0], pdu::decode_term(term)), (2, (fes, fei)), "{name}");
                assert!(!host.qpair.is_open(), "{name}");
                host.qpair.handle_eof(host.now);
                host.pump();
                assert!(matches!(host.events.last(), Some(Event::Close(HostClose::Terminated(_)))), "{name}");
            }
            Close(reason) => assert_eq!(host.events.last(), Some(&Event::Close(reason)), "{name}"),
            Is(command, status) => {
                let done = host.completions();
                let cid = match command {
                    Command::Write => write,
                    Command::Read => read,
                    Command::Flush => flush,
                };
                assert_eq!(done.len(), 1, "{name}");
                assert_eq!((done[0].1.cid(), done[0].1.status()), (Cid(cid), status), "{name}");
                assert!(host.qpair.is_open() && host.out.is_empty(), "{name}");
            }
        }
    }
}

#[test]
fn icresp_must_be_what_was_asked_for() {
    type Change = fn(&mut [u8]);
    let cases: [(Change, Option<(u16, u32)>); 8] = [
        (|b| b[2] = 127, Some((FIELD, 2))),
        (|b| b[4] = 127, Some((FIELD, 4))),
        (|b| b[8] = 1, Some((FIELD, 8))),
        (|b| b[10] = 32, Some((FIELD, 10))),
        (|b| b[12..16].copy_from_slice(&4092u32.to_le_bytes()), Some((FIELD, 12))),
        (|b| b[12..16].copy_from_slice(&8193u32.to_le_bytes()), Some((FIELD, 12))),
        (|b| b[11] = 1, None),
        (|b| b[11] = 0, None),
    ];
    for (change, expected) in cases {
        let config = HostConfig { header_digest: true, data_digest: true, ..HostConfig::default() };
        let mut host = Host::new(config);
        host.pump();
        host.out.clear();
        host.input(&ic_resp(true, change));
        match expected {
            Some(expected) => assert_eq!(pdu::decode_term(&host.out), expected),
            None => assert_eq!(host.events, [Event::Close(HostClose::DigestRefused)]),
        }
        assert!(!host.qpair.is_open());
    }
}

#[test]
fn a_silent_target_is_given_up() {
    let mut host = Host::new(HostConfig::default());
    host.pump();
    let deadline = host.qpair.poll_timeout().unwrap();
    host.qpair.handle_timeout(deadline);
    host.pump();
    assert_eq!(host.events, [Event::Close(HostClose::SetupTimeout)]);
}

#[test]
fn data_that_is_cut_to_maxh2cdata_goes_out_in_turn_with_other_writes() {
    let mut probe = Probe::new(false);
    let command = rw(nvm::WRITE, 0, 0, 8, Sgl::default());
    let second = probe.host.submit(command, Data::ToTarget(16384), &[2; 16384]).unwrap();
    let second = probe.host.qpair.cid(second).0;
    probe.host.pump();
    probe.host.out.clear();
    let mut bytes = Vec::new();
    for cccid in [probe.write, second] {
        let mut out = [0; 160];
        let len = probe.format.r2t(&mut out, &pdu::Data { cccid, ttag: cccid, offset: 0, length: 16384 });
        bytes.extend_from_slice(&out[..len]);
    }
    probe.send(&bytes);
    let sent: Vec<_> = split(&probe.host.out)
        .iter()
        .map(|pdu| {
            let data = pdu::Data::decode(pdu);
            (data.cccid == second, data.offset, data.length, pdu[1])
        })
        .collect();
    let last = flags::LAST;
    assert_eq!(
        sent,
        [(false, 0, 8192, 0), (true, 0, 8192, 0), (false, 8192, 8192, last), (true, 8192, 8192, last)]
    );
}
