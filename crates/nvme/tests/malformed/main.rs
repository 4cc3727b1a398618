//! Malformed input, row by row: what a broken or hostile host sends, and the exact answer.
//!
//! The rows are numbered as in the project's table of 101 (rows that need the transport only are here,
//! those that need a controller are in the controller's table, on the same engine). Answers: `Term(FES,
//! FEI)` is a C2HTermReq and then silence; `Status` a completion on a connection that lives; `Close` no
//! farewell. After each row the host leaves and no buffer may be missing, and another connection works.

#[path = "../common/mod.rs"]
mod common;
mod connect;
mod h2c_data;
mod header;
mod set_up;
mod submission;

use std::time::Duration;

use common::table::{Expect, Probe, Row, Start, run};
use common::*;
use peristyle_nvme::qpair::{CloseReason, Qpair, QpairLimits};
use peristyle_nvme::wire::opcode::{admin, fctype, nvm};
use peristyle_nvme::wire::{Cid, Sgl, Sqe, Status};

use Expect::{Close, Lives, Term};
use Start::{Admin, Fresh, Io, Negotiated};

type P<'a> = &'a mut Probe<Memory>;

/// FES values, TCP figure 25.
const FIELD: u16 = 1;
const SEQUENCE: u16 = 2;
const DIGEST: u16 = 3;
const RANGE: u16 = 4;
const LIMIT: u16 = 5;

const PLAIN: Start = Io(false, false);
const DIGESTS: Start = Io(true, true);

fn row(
    row: u32,
    input: &'static str,
    reference: &'static str,
    start: Start,
    variants: usize,
    send: fn(P, usize),
    expect: Expect,
) -> Row<Memory> {
    Row { row, input, reference, start, variants, send, expect }
}

/// An ICReq with one field changed.
fn ic(p: P, change: fn(&mut [u8])) {
    let pdu = p.raw.change(&p.raw.ic_req(), change);
    p.send(&pdu);
}
fn put32(pdu: &mut [u8], at: usize, value: u32) {
    pdu[at..at + 4].copy_from_slice(&value.to_le_bytes());
}
/// A Flush capsule with something changed (and the header digest right again).
fn flush_with(p: P, change: impl FnOnce(&mut [u8])) {
    let pdu = p.raw.change(&p.raw.capsule(&flush(5), &[]), change);
    p.send(&pdu);
}
/// A 512-byte in-capsule write with something changed.
fn write_with(p: P, change: impl FnOnce(&mut [u8])) {
    let pdu = p.raw.change(&p.raw.capsule(&write_in_capsule(5, 0, 1), &[0xaa; 512]), change);
    p.send(&pdu);
}
/// An R2T is out for `blocks` at LBA 0; then an H2CData of `len` bytes with something changed.
fn h2c_with(p: P, blocks: u32, len: usize, change: impl FnOnce(&mut [u8])) {
    let ttag = p.write(5, 0, blocks);
    let last = len as u32 == blocks * LBA as u32;
    let pdu = p.raw.change(&p.raw.h2c(5, ttag, 0, &vec![0xaa; len], last), change);
    p.send(&pdu);
}

#[test]
fn every_malformed_input_has_its_exact_answer() {
    let rows: Vec<_> =
        [set_up::rows(), header::rows(), h2c_data::rows(), submission::rows(), connect::rows()]
            .into_iter()
            .flatten()
            .collect();
    // A connection of another host, which must never notice.
    let mut other = Probe::start(Target::memory(), PLAIN);
    run(&rows, Target::memory, |row| {
        other.answers.clear();
        other.command(&read(7, 0, 8), &[]);
        assert_eq!(other.answers.len(), 2, "row {}", row.row);
    });
    let covered: std::collections::BTreeSet<u32> = rows.iter().map(|row| row.row).collect();
    // Row 11 is the test below; 60 to 62, 64 to 76 and 80 to 99 need a controller.
    let expected = (1..=59).filter(|row| *row != 11).chain([63, 77, 78, 79, 100]);
    assert!(covered.into_iter().eq(expected));
}

/// Row 11: the node caps connections; what the machine can do is to cost little until Connect.
#[test]
fn ten_thousand_silent_connections_cost_little_and_time_out() {
    let now = peristyle_base::Instant(5);
    let mut silent: Vec<Qpair> = (0..10_000).map(|_| Qpair::new(now, QpairLimits::default())).collect();
    assert!(std::mem::size_of::<Qpair>() < 2048);
    let mut other = Probe::start(Target::memory(), PLAIN);
    other.command(&flush(1), &[]);
    assert_eq!(other.answers.len(), 1);
    for qpair in &mut silent {
        let deadline = qpair.poll_timeout().unwrap();
        qpair.handle_timeout(deadline);
        assert!(matches!(
            qpair.poll_action(),
            Some(peristyle_nvme::qpair::Action::Close(CloseReason::SetupTimeout))
        ));
        assert_eq!((qpair.poll_action(), qpair.poll_timeout()), (None, None));
    }
}
