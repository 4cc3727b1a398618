//! The engine of the malformed-input table: a row is an input and the exact answer to it.

use super::*;
use peristyle_nvme::qpair::CloseReason;

/// How far the connection is when the row's input comes.
#[derive(Clone, Copy, Debug)]
pub enum Start {
    Fresh,
    /// ICReq and ICResp are through; header and data digest as said.
    Negotiated(bool, bool),
    /// Connect to the admin queue has been accepted.
    Admin(bool, bool),
    /// Connect to I/O queue 1 has been accepted, 32 entries.
    Io(bool, bool),
}

#[derive(Clone, Debug)]
pub enum Expect {
    /// C2HTermReq with this FES and FEI, nothing else, then silence.
    Term(u16, u32),
    /// The connection is closed without a C2HTermReq.
    Close(CloseReason),
    /// The last PDU sent is a response with exactly this status, and the connection lives.
    Status(Status),
    /// The connection lives, and the row has checked the rest itself.
    Lives,
}

pub struct Row<R> {
    pub row: u32,
    pub input: &'static str,
    pub reference: &'static str,
    pub start: Start,
    /// The row is run once for each value of the second argument below this.
    pub variants: usize,
    pub send: fn(&mut Probe<R>, usize),
    pub expect: Expect,
}

/// A connection under attack.
pub struct Probe<R> {
    pub raw: Raw,
    pub target: Target<R>,
    /// All PDUs sent in answer to the row's input.
    pub answers: Vec<Vec<u8>>,
}

impl<R: Responder> Probe<R> {
    pub fn start(target: Target<R>, start: Start) -> Probe<R> {
        let mut probe = Probe { raw: Raw::default(), target, answers: Vec::new() };
        let (digests, qid) = match start {
            Start::Fresh => return probe,
            Start::Negotiated(header, data) => ((header, data), None),
            Start::Admin(header, data) => ((header, data), Some(0)),
            Start::Io(header, data) => ((header, data), Some(1)),
        };
        probe.raw = Raw::digests(digests.0, digests.1);
        let ic_req = probe.raw.ic_req();
        probe.target.input(&ic_req);
        if let Some(qid) = qid {
            let connect = probe.raw.connect(qid, 32);
            probe.target.input(&connect);
            assert!(probe.target.qpair.is_live());
        }
        probe.target.executed.clear();
        probe.target.sent();
        probe
    }
    pub fn send(&mut self, bytes: &[u8]) {
        self.target.input(bytes);
        let sent = self.target.sent();
        self.answers.extend(sent);
    }
    pub fn command(&mut self, sqe: &Sqe, data: &[u8]) {
        let capsule = self.raw.capsule(sqe, data);
        self.send(&capsule);
    }
    /// Starts a write by R2T and returns the R2T's tag.
    pub fn write(&mut self, cid: u16, lba: u64, blocks: u32) -> u16 {
        let capsule = self.raw.capsule(&write(cid, lba, blocks), &[]);
        self.target.input(&capsule);
        let sent = self.target.sent();
        assert_eq!((sent.len(), sent[0][0]), (1, pdu::kind::R2T), "an R2T comes");
        get_u16(&sent[0], 10)
    }
    /// `len` bytes of data for an R2T, right in every way but what the arguments say.
    pub fn data(&mut self, cid: u16, ttag: u16, offset: u32, len: usize, last: bool) {
        let data = self.raw.h2c(cid, ttag, offset, &vec![0xaa; len], last);
        self.send(&data);
    }
    fn check(&mut self, row: &Row<R>) {
        let what = format!("row {} ({}, {}): {:02x?}", row.row, row.input, row.reference, self.answers);
        match &row.expect {
            Expect::Term(fes, fei) => {
                assert_eq!(self.target.terms, 1, "{what}");
                let term = self.answers.last().unwrap();
                assert_eq!(pdu::decode_term(term), (*fes, *fei), "{what}");
                assert!(term[2] == 24 && term[1] == 0 && (32..=152).contains(&term.len()), "{what}");
                assert!(!self.target.qpair.is_open(), "{what}");
            }
            Expect::Close(reason) => {
                assert_eq!((self.target.terms, self.target.closed), (0, Some(*reason)), "{what}");
            }
            Expect::Status(status) => {
                let answer = self.answers.last().unwrap_or_else(|| panic!("no answer, {what}"));
                assert_eq!(cqe(answer).status(), *status, "{what}");
                self.lives(&what);
            }
            Expect::Lives => self.lives(&what),
        }
    }
    fn lives(&mut self, what: &str) {
        assert!(
            self.target.terms == 0 && self.target.closed.is_none() && self.target.qpair.is_open(),
            "{what}"
        );
    }
    /// The host goes away: whatever was in flight, nothing is left and nothing more is said.
    fn leave(mut self, row: &Row<R>) {
        let terms = self.target.terms;
        self.send(&[0; 300]);
        self.target.qpair.handle_eof(self.target.now);
        self.target.pump();
        assert!(self.target.closed.is_some(), "row {}", row.row);
        assert!(self.target.terms <= 1.max(terms), "row {}", row.row);
        assert_eq!(self.target.buffers_out(), 0, "row {}: a buffer is lost", row.row);
    }
}

/// Runs every row on a target of its own. `bystander` is asked after each whether it still works.
pub fn run<R: Responder>(
    rows: &[Row<R>],
    mut make: impl FnMut() -> Target<R>,
    mut bystander: impl FnMut(&Row<R>),
) {
    for row in rows {
        for variant in 0..row.variants {
            let mut probe = Probe::start(make(), row.start);
            (row.send)(&mut probe, variant);
            probe.check(row);
            probe.leave(row);
            bystander(row);
        }
    }
}
