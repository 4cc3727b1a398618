//! Rows 60 to 101 of the malformed-input table, where the controllers answer: input, exact answer, section. Rows
//! below 60 and those that end a connection are the queue pair's.

mod authentication;
mod commands;
mod connect;
#[path = "../target/mod.rs"]
mod target;

use peristyle_nvme::controller::AdminOutcome;
use peristyle_nvme::io_command::{self, IoQueueFabrics};
use peristyle_nvme::registry::{Refused, RegistryConfig};
use peristyle_nvme::subsystem::{ControllerModel, Hosts, LbaSize, Namespace, Subsystem};
use peristyle_nvme::wire::fabrics::{ConnectData, invalid_in_command, invalid_in_data};
use peristyle_nvme::wire::log_page::AnaState;
use peristyle_nvme::wire::opcode::{admin, fctype, nvm};
use peristyle_nvme::wire::{Cid, Fuse, Sgl, Sqe, Status};
use std::collections::BTreeSet;
use target::*;
use zerocopy::IntoBytes;

const INVALID_FIELD: Status = Status::INVALID_FIELD.with_dnr();
const INVALID_OPCODE: Status = Status::INVALID_OPCODE.with_dnr();
const INVALID_PARAMETERS: Status = Status::CONNECT_INVALID_PARAMETERS.with_dnr();
const SEQUENCE: Status = Status::COMMAND_SEQUENCE_ERROR.with_dnr();
const OUT_OF_RANGE: Status = Status::LBA_OUT_OF_RANGE.with_dnr();
const TOO_SHORT: Status = Status::DATA_SGL_LENGTH_INVALID.with_dnr();

/// Status and dword 0.
type Answer = (Status, u32);
struct Row {
    row: u32,
    input: &'static str,
    reference: &'static str,
    run: fn(&mut Target) -> Vec<Answer>,
    expect: Answer,
}

fn row(
    row: u32,
    input: &'static str,
    reference: &'static str,
    run: fn(&mut Target) -> Vec<Answer>,
    expect: impl Into<Expect>,
) -> Row {
    Row { row, input, reference, run, expect: expect.into().0 }
}

struct Expect(Answer);
impl From<Status> for Expect {
    fn from(status: Status) -> Expect {
        Expect((status, 0))
    }
}
impl From<Answer> for Expect {
    fn from(answer: Answer) -> Expect {
        Expect(answer)
    }
}

/// Blocks of namespace 1 (4096 bytes) and 2 (512 bytes).
const LBAS: [u64; 2] = [1 << 18, 1 << 21];

fn io(opcode: u8, nsid: u32, slba: u64, blocks: u32, sgl: u32) -> Sqe {
    let mut sqe = Sqe::new(opcode, Cid(1));
    sqe.set_nsid(nsid);
    sqe.set_lbas(slba, blocks);
    sqe.set_sgl(Sgl::transport(sgl));
    sqe
}

/// Another target, reached the same way.
fn replace(t: &mut Target, config: RegistryConfig, subsystem: Subsystem) {
    let wired = t.wired;
    *t = Target::with(config, subsystem);
    t.wired = wired;
}

/// Decodes I/O commands as an I/O queue does.
fn decode(t: &mut Target, commands: &[Sqe]) -> Vec<Answer> {
    if t.wired.is_some() {
        return t.on_io_queue(commands);
    }
    let table = t.registry.namespace_table(t.subsystem);
    let one = |sqe| io_command::decode(sqe, &table).map_or_else(|s| (s, 0), |_| (Status::SUCCESS, 0));
    commands.iter().map(one).collect()
}

fn admins(t: &mut Target, commands: &[Sqe]) -> Vec<Answer> {
    let c = t.ready().controller;
    commands.iter().map(|sqe| t.admin(c, sqe)).collect()
}

fn on_io_queue(t: &mut Target, fctypes: &[u8]) -> Vec<Answer> {
    let command = |fctype: &u8| {
        let mut sqe = Sqe::fabrics(*fctype, Cid(1));
        sqe.set_sgl(Sgl::transport(0));
        sqe
    };
    if t.wired.is_some() {
        return t.on_io_queue(&fctypes.iter().map(command).collect::<Vec<_>>());
    }
    let one = |fctype: &u8| match io_command::fabrics_on_io_queue(&command(fctype)) {
        IoQueueFabrics::Disconnect => (Status::SUCCESS, 0),
        IoQueueFabrics::Refuse(status) => (status, 0),
    };
    fctypes.iter().map(one).collect()
}

/// An admin Connect, changed before it is sent.
fn connect_changed(t: &mut Target, change: impl Fn(&mut Sqe, &mut ConnectData)) -> Answer {
    let (mut sqe, mut data) = (connect_sqe(0, 32, 0), connect_data(0xffff, SUBSYSTEM, HOST));
    change(&mut sqe, &mut data);
    answer(t.connect(&sqe, data.as_bytes()).map(|c| u32::from(c.cntlid)))
}

/// An I/O Connect to a controller that is ready, changed before it is sent.
fn connect_queue(t: &mut Target, change: impl Fn(&mut Sqe, &mut ConnectData)) -> Answer {
    let c = t.ready();
    let (mut sqe, mut data) = (connect_sqe(1, 32, 0), connect_data(c.cntlid, SUBSYSTEM, HOST));
    change(&mut sqe, &mut data);
    answer(t.connect(&sqe, data.as_bytes()).map(|c| u32::from(c.cntlid)))
}

fn authentication(fctype: u8) -> Sqe {
    let mut sqe = Sqe::fabrics(fctype, Cid(1));
    sqe.set_sgl(Sgl::transport(64));
    sqe
}

fn answer(result: Result<u32, Refused>) -> Answer {
    match result {
        Ok(dw0) => (Status::SUCCESS, dw0),
        Err(Refused { status, dw0 }) => (status, dw0),
    }
}

/// Runs every row, each on a target of its own: at the controllers, or through connections.
fn run(wired: Option<Digests>) {
    let rows = [commands::rows(), connect::rows(), authentication::rows()];
    let covered: BTreeSet<u32> = rows.iter().flatten().map(|row| row.row).collect();
    // 77 and 100 are the queue pair's.
    assert!(covered.into_iter().eq((60..=76).chain(78..=99).chain([101])));
    for row in rows.into_iter().flatten() {
        let mut t = Target::new();
        t.wired = wired;
        let answers = (row.run)(&mut t);
        assert!(!answers.is_empty());
        for (i, answer) in answers.iter().enumerate() {
            let what = format!("row {}.{i}: {} ({})", row.row, row.input, row.reference);
            assert_eq!(*answer, row.expect, "{what}");
        }
        // A fresh connection works whatever came before, unless the row has taken its place or its right.
        t.registry.set_hosts(t.subsystem, Hosts::Any).unwrap();
        if row.row != 92 && !row.input.contains("static") {
            let c = t.ready();
            assert!(t.connect_io(c.cntlid, 1).is_ok(), "row {}", row.row);
        }
    }
}

#[test]
fn malformed_commands_get_exactly_the_answer_that_the_specification_names() {
    run(None);
}

#[test]
fn malformed_commands_get_the_same_answers_through_a_connection() {
    run(Some(Digests(false)));
}

#[test]
fn malformed_commands_get_the_same_answers_through_a_connection_with_digests() {
    run(Some(Digests(true)));
}

#[test]
fn fields_that_ask_for_what_is_not_there_are_refused() {
    let mut t = Target::new();
    // Command extension type, PRINFO (PRACT and each check), directive type of a write.
    let mut commands = Vec::new();
    for (opcode, bits) in [
        (nvm::READ, 1 << 16),
        (nvm::WRITE, 1 << 19),
        (nvm::READ, 1 << 29),
        (nvm::WRITE, 1 << 26),
        (nvm::WRITE_ZEROES, 1 << 28),
        (nvm::VERIFY, 1 << 27),
        (nvm::COMPARE, 1 << 29),
        (nvm::WRITE, 1 << 20),
    ] {
        let mut sqe = io(opcode, 1, 0, 1, 4096);
        sqe.set_cdw(12, sqe.cdw12() | bits);
        commands.push(sqe);
    }
    let mut fused = io(nvm::READ, 1, 0, 1, 4096);
    fused.set_fuse(Fuse::First);
    commands.push(fused);
    assert!(decode(&mut t, &commands).iter().all(|a| *a == (INVALID_FIELD, 0)));
}

#[test]
fn lengths_of_sgls_may_exceed_the_data_but_never_fall_short() {
    let mut t = Target::new();
    let short = [io(nvm::READ, 1, 0, 2, 8191), io(nvm::WRITE, 2, 0, 1, 0), io(nvm::COMPARE, 1, 0, 128, 4096)];
    assert!(decode(&mut t, &short).iter().all(|a| *a == (TOO_SHORT, 0)));
    let mut discard = io(nvm::DATASET_MANAGEMENT, 1, 0, 1, 4096);
    discard.set_cdw(11, 4);
    let long = [io(nvm::READ, 1, 0, 1, 8192), discard];
    assert!(decode(&mut t, &long).iter().all(|a| a.0.is_success()));
    let huge = [io(nvm::READ, 1, 0, 1, u32::MAX), io(nvm::WRITE, 1, 0, 1, 512 * 1024 + 1)];
    assert!(decode(&mut t, &huge).iter().all(|a| *a == (INVALID_FIELD, 0)));
}

#[test]
fn paths_and_write_protection_answer_for_their_namespace_alone() {
    let mut t = Target::new();
    let protected = Namespace {
        read_only: true,
        ana_group: 2,
        ..*t.registry.subsystem(t.subsystem).unwrap().namespace(1).unwrap()
    };
    t.registry.put_namespace(t.subsystem, protected).unwrap();
    let mut deallocate = io(nvm::DATASET_MANAGEMENT, 1, 0, 1, 16);
    deallocate.set_cdw(11, 4);
    let writes = [io(nvm::WRITE, 1, 0, 1, 4096), io(nvm::WRITE_ZEROES, 1, 0, 1, 0), deallocate];
    let refused = (Status::NAMESPACE_WRITE_PROTECTED.with_dnr(), 0);
    assert!(decode(&mut t, &writes).iter().all(|a| *a == refused));
    assert!(
        decode(&mut t, &[io(nvm::READ, 1, 0, 1, 4096), io(nvm::WRITE, 2, 0, 1, 512)])
            .iter()
            .all(|a| a.0.is_success())
    );
    for (state, status) in [
        (AnaState::Inaccessible, Status::ANA_INACCESSIBLE),
        (AnaState::PersistentLoss, Status::ANA_PERSISTENT_LOSS),
        (AnaState::Change, Status::ANA_TRANSITION),
        (AnaState::NonOptimized, Status::SUCCESS),
    ] {
        t.registry.set_ana_state(t.subsystem, 2, state).unwrap();
        assert_eq!(
            decode(&mut t, &[io(nvm::READ, 1, 0, 1, 4096), io(nvm::READ, 2, 0, 1, 512)]),
            [(status, 0), (Status::SUCCESS, 0)]
        );
    }
}

#[test]
fn compare_and_write_are_one_range_or_nothing() {
    let t = Target::new();
    let table = t.registry.namespace_table(t.subsystem);
    let pair = |compare: Sqe, write: Sqe| {
        io_command::decode_compare_write(&compare, &write, &table).map(|(c, _)| c.range.blocks)
    };
    let (compare, write) =
        (|n, l, b| io(nvm::COMPARE, n, l, b, b * 4096), |n, l, b| io(nvm::WRITE, n, l, b, b * 4096));
    assert_eq!(pair(compare(1, 4, 2), write(1, 4, 2)), Ok(2));
    let both = Err((INVALID_FIELD, INVALID_FIELD));
    assert_eq!(pair(compare(1, 4, 2), write(1, 4, 1)), both);
    assert_eq!(pair(compare(1, 4, 1), write(1, 5, 1)), both);
    assert_eq!(pair(write(1, 4, 1), write(1, 4, 1)), both);
    let failed = Status::ABORTED_FAILED_FUSED;
    assert_eq!(pair(compare(1, 4, 1), write(2, 4, 1)), Err((failed, INVALID_FIELD)));
    assert_eq!(pair(compare(1, u64::MAX, 1), write(1, 4, 1)), Err((OUT_OF_RANGE, failed)));
    assert_eq!(pair(compare(1, 4, 1), write(1, u64::MAX, 1)), Err((failed, OUT_OF_RANGE)));
    assert_eq!(
        pair(compare(3, 4, 1), write(3, 4, 1)),
        Err((Status::INVALID_NAMESPACE_OR_FORMAT.with_dnr(), failed))
    );
}

#[test]
fn controller_identifiers_come_back_as_late_as_possible() {
    let config = RegistryConfig { cntlids: (10, 12), ..RegistryConfig::default() };
    let mut t = Target::with(config, Subsystem::new(nqn(SUBSYSTEM), "s"));
    let first = t.connect_admin();
    t.registry.disconnected(&first);
    let ids: Vec<u16> = (0..3).map(|_| t.connect_admin().cntlid).collect();
    assert_eq!((first.cntlid, ids), (10, vec![11, 12, 10]));
    assert_eq!(connect_changed(&mut t, |_, _| {}), (Status::CONTROLLER_BUSY, 0));
    assert_eq!(
        t.raw(first.controller, &identify_sqe(1, 0)),
        AdminOutcome::status(Status::ABORTED_SQ_DELETION)
    );
}

#[test]
fn a_static_controller_is_given_by_its_identifier() {
    let fixed = Subsystem::new(nqn(SUBSYSTEM), "s").with_model(ControllerModel::Static);
    let mut t = Target::with(RegistryConfig::default(), fixed);
    assert_eq!(connect_changed(&mut t, |_, data| data.cntlid.set(77)), (Status::SUCCESS, 77));
    assert_eq!(connect_changed(&mut t, |_, data| data.cntlid.set(77)), (Status::CONTROLLER_BUSY, 0));
    assert_eq!(connect_changed(&mut t, |_, data| data.cntlid.set(0xfffe)), (Status::SUCCESS, 1));
}
