//! The host machine against the target machine, in memory: every way data can travel.

mod common;

use common::*;
use peristyle_nvme::host::setup::{CNTLID_ANY, CONNECT_DATA_BYTES, Connect, Next, Setup};
use peristyle_nvme::host::{Data, Event, HostClose, HostConfig};
use peristyle_nvme::qpair::{CloseReason, QpairLimits};
use peristyle_nvme::wire::opcode::nvm;
use peristyle_nvme::wire::{Cid, Fuse, Sgl, Sqe, Status};
use proptest::prelude::*;

const ENTRIES: u32 = 32;

fn connect(qid: u16, flow_control: bool) -> Connect<'static> {
    Connect {
        host_id: [7; 16],
        host_nqn: "nqn.2014-08.org.nvmexpress:uuid:00000000-0000-0000-0000-000000000007",
        subsystem_nqn: "nqn.2026-01.io.peristyle:demo",
        cntlid: CNTLID_ANY,
        qid,
        entries: ENTRIES,
        keep_alive_ms: 0,
        flow_control,
    }
}

/// Connects an I/O queue and returns both ends.
fn pair(config: HostConfig, flow_control: bool) -> (Host, Target<Memory>) {
    let mut host = Host::new(HostConfig { entries: ENTRIES, ..config });
    let mut target = Target::memory();
    exchange(&mut host, &mut target, &mut || usize::MAX);
    assert_eq!(host.events, [Event::Ready]);
    host.events.clear();
    let connect = connect(1, flow_control);
    let mut setup = Setup::io();
    let mut data = [0; CONNECT_DATA_BYTES];
    let Next::Submit(sqe, shape) = setup.next(&connect, &mut data) else { panic!("connect first") };
    host.submit(sqe, shape, &data).unwrap();
    exchange(&mut host, &mut target, &mut || usize::MAX);
    let done = host.completions();
    assert_eq!(done.len(), 1);
    assert_eq!(done[0].1.sqhd(), if flow_control { 1 } else { 0xffff });
    setup.handle(&done[0].1);
    assert_eq!(setup.next(&connect, &mut data), Next::Ready);
    assert!(target.qpair.is_live());
    (host, target)
}

fn pattern(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|i| (i as u8).wrapping_mul(31).wrapping_add(seed).wrapping_add((i >> 8) as u8)).collect()
}

fn command(opcode: u8, lba: u64, blocks: u32) -> Sqe {
    rw(opcode, 0, lba, blocks, Sgl::default())
}

#[test]
fn a_host_enables_a_controller_through_the_admin_queue() {
    let mut host = Host::new(HostConfig { entries: ENTRIES, ..HostConfig::default() });
    let mut target = Target::memory();
    let connect = connect(0, true);
    let mut setup = Setup::admin();
    let mut data = [0; CONNECT_DATA_BYTES];
    for _ in 0..10 {
        exchange(&mut host, &mut target, &mut || 7);
        for (_, cqe, _) in host.completions() {
            setup.handle(&cqe);
        }
        match setup.next(&connect, &mut data) {
            Next::Submit(sqe, shape) | Next::SubmitLater(sqe, shape) => {
                host.submit(sqe, shape, &data).map(|_| ()).unwrap();
            }
            Next::Ready => {
                assert_eq!(setup.cntlid(), 1);
                return;
            }
            Next::Failed(status) => panic!("{status:?}"),
        }
    }
    panic!("never ready");
}

#[test]
fn writes_of_every_size_are_read_back_with_any_digests_and_alignment() {
    for (header_digest, data_digest) in [(false, false), (true, false), (false, true), (true, true)] {
        for (flow_control, alignment) in [(true, 0), (false, 0), (false, 31), (true, 3)] {
            let config = HostConfig { header_digest, data_digest, alignment, ..HostConfig::default() };
            let (mut host, mut target) = pair(config, flow_control);
            for (n, blocks) in [1u32, 8, 16, 17, 64, 256, 257, 1024].into_iter().enumerate() {
                let len = blocks * LBA as u32;
                let bytes = pattern(len as usize, n as u8);
                host.submit(command(nvm::WRITE, 3, blocks), Data::ToTarget(len), &bytes).unwrap();
                exchange(&mut host, &mut target, &mut || 1500);
                let done = host.completions();
                assert!(done.len() == 1 && done[0].1.status().is_success(), "{blocks} blocks: {done:?}");
                let tag = host.submit(command(nvm::READ, 3, blocks), Data::FromTarget(len), &[]).unwrap();
                exchange(&mut host, &mut target, &mut || 9000);
                let done = host.completions();
                assert!(done.len() == 1 && done[0].1.status().is_success() && done[0].2 == len, "{done:?}");
                assert_eq!(host.buffers[tag.index()], bytes);
            }
            assert_eq!(target.qpair.stats().r2ts, 5, "up to 8 KiB travels in the capsule");
            assert_eq!((target.buffers_out(), target.qpair.in_flight()), (0, 0));
        }
    }
}

#[test]
fn success_in_the_data_pdu_spares_the_response_only_without_flow_control() {
    for (flow_control, pdus) in [(true, 2), (false, 1)] {
        let (mut host, mut target) = pair(HostConfig::default(), flow_control);
        host.submit(command(nvm::READ, 0, 8), Data::FromTarget(4096), &[]).unwrap();
        host.pump();
        target.input(&std::mem::take(&mut host.out));
        let sent = target.sent();
        assert_eq!(sent.len(), pdus);
        assert_eq!(sent[0][1], if flow_control { 0x04 } else { 0x0c }, "LAST_PDU, and SUCCESS if it may");
    }
}

#[test]
fn large_reads_are_cut_into_data_pdus_of_the_configured_size() {
    let limits = QpairLimits { c2h_bytes_max: 128 * 1024, ..QpairLimits::default() };
    let mut target = Target::new(limits, Memory::new(4096));
    let raw = Raw::default();
    target.input(&raw.ic_req()).input(&raw.connect(1, 32)).sent();
    target.input(&raw.capsule(&read(9, 0, 1024), &[]));
    let sent = target.sent();
    let flags: Vec<_> = sent.iter().map(|pdu| (pdu[0], pdu[1])).collect();
    assert_eq!(flags, [(7, 0), (7, 0), (7, 0), (7, 4), (5, 0)]);
    assert_eq!(cqe(&sent[4]).sqhd(), 2);
}

#[test]
fn the_queue_head_wraps_at_the_queues_size() {
    let mut target = Target::memory();
    let raw = Raw::default();
    target.input(&raw.ic_req()).input(&raw.connect(1, 3)).sent();
    for expected in [2, 0, 1, 2, 0] {
        target.input(&raw.capsule(&flush(1), &[]));
        assert_eq!(cqe(&target.sent()[0]).sqhd(), expected);
    }
}

#[test]
fn without_buffers_the_socket_is_left_alone_and_no_r2t_is_sent() {
    let (mut host, mut target) = pair(HostConfig::default(), true);
    target.starve = true;
    let (large, small) = (pattern(65536, 1), pattern(4096, 2));
    host.submit(command(nvm::WRITE, 0, 128), Data::ToTarget(65536), &large).unwrap();
    host.submit(command(nvm::WRITE, 200, 8), Data::ToTarget(4096), &small).unwrap();
    host.submit(command(nvm::READ, 300, 8), Data::FromTarget(4096), &[]).unwrap();
    exchange(&mut host, &mut target, &mut || 100);
    assert_eq!(target.starved.len(), 2);
    assert_eq!(host.completions(), [], "the read stands behind data that has no place");
    target.feed_starved();
    exchange(&mut host, &mut target, &mut || 100);
    assert_eq!(host.completions().len(), 3);
    assert_eq!(target.responder.bytes[..65536], large);
    assert_eq!(target.responder.bytes[200 * LBA..200 * LBA + 4096], small);
}

#[test]
fn compare_and_write_is_one_step_whatever_way_the_data_comes() {
    for blocks in [1u32, 64] {
        let (mut host, mut target) = pair(HostConfig::default(), true);
        let len = blocks * LBA as u32;
        let (old, new) = (vec![0; len as usize], pattern(len as usize, 5));
        for (expected_first, expected_second) in
            [(Status::SUCCESS, Status::SUCCESS), (Status::COMPARE_FAILURE, Status::ABORTED_FAILED_FUSED)]
        {
            let mut compare = command(nvm::COMPARE, 4, blocks);
            compare.set_fuse(Fuse::First);
            let mut write = command(nvm::WRITE, 4, blocks);
            write.set_fuse(Fuse::Second);
            let first = host.submit(compare, Data::ToTarget(len), &old).unwrap();
            host.submit(write, Data::ToTarget(len), &new).unwrap();
            exchange(&mut host, &mut target, &mut || 333);
            for (tag, cqe, _) in host.completions() {
                let expected = if tag == first { expected_first } else { expected_second };
                assert!(cqe.status().is(expected), "{:?}", cqe.status());
            }
            assert_eq!(target.responder.bytes[4 * LBA..4 * LBA + new.len()], new);
        }
        assert_eq!(target.buffers_out(), 0);
    }
}

#[test]
fn half_a_fused_pair_is_aborted() {
    let raw = Raw::default();
    let mut target = Target::memory();
    target.input(&raw.ic_req()).input(&raw.connect(1, 32)).sent();
    let mut first = rw(nvm::COMPARE, 1, 0, 1, Sgl::in_capsule(512));
    first.set_fuse(Fuse::First);
    let mut second = rw(nvm::WRITE, 2, 0, 1, Sgl::in_capsule(512));
    second.set_fuse(Fuse::Second);
    target.input(&raw.capsule(&second, &[1; 512]));
    assert!(cqe(&target.sent()[0]).status().is(Status::ABORTED_MISSING_FUSED));
    target.input(&raw.capsule(&first, &[0; 512]));
    assert!(target.sent().is_empty());
    target.input(&raw.capsule(&flush(3), &[]));
    let sent = target.sent();
    assert_eq!((cqe(&sent[0]).cid(), cqe(&sent[0]).status()), (Cid(1), Status::ABORTED_MISSING_FUSED));
    assert_eq!((cqe(&sent[1]).cid(), cqe(&sent[1]).status()), (Cid(3), Status::SUCCESS));
    assert_eq!((target.buffers_out(), target.qpair.in_flight()), (0, 0));
    // A digest error in one half fails both.
    assert_eq!(target.responder.bytes[..512], [0; 512]);
}

#[test]
fn a_late_completion_does_not_reach_the_slots_next_command() {
    let raw = Raw::default();
    let mut target = Target::memory();
    target.input(&raw.ic_req()).input(&raw.connect(1, 2)).sent();
    target.responder.hold = true;
    target.input(&raw.capsule(&flush(1), &[]));
    let old = target.held.pop().unwrap();
    assert_eq!(target.qpair.find_executing(Cid(1)), Some(old.tag));
    target.qpair.complete(old.tag, Status::SUCCESS.into()).unwrap();
    target.pump();
    for cid in 2..10 {
        target.input(&raw.capsule(&flush(cid), &[]));
        assert!(target.qpair.complete(old.tag, Status::SUCCESS.into()).is_err());
        let held = target.held.pop().unwrap();
        target.qpair.complete(held.tag, Status::SUCCESS.into()).unwrap();
        target.pump();
    }
    assert_eq!(target.qpair.find_executing(Cid(1)), None);
}

#[test]
fn after_the_end_completions_are_taken_and_nothing_is_sent() {
    let raw = Raw::default();
    let mut target = Target::memory();
    target.input(&raw.ic_req()).input(&raw.connect(1, 32)).sent();
    target.responder.hold = true;
    target.input(&raw.capsule(&flush(1), &[]));
    let held = target.held[0];
    target.qpair.handle_eof(target.now);
    target.pump();
    assert_eq!(target.closed, Some(CloseReason::PeerClosed));
    target.qpair.complete(held.tag, Status::SUCCESS.into()).unwrap();
    target.pump();
    assert_eq!((target.sent().len(), target.qpair.in_flight()), (0, 0));
}

#[test]
fn the_hosts_queue_has_one_command_less_than_entries() {
    let (mut host, mut target) = pair(HostConfig::default(), true);
    for _ in 0..ENTRIES - 1 {
        host.submit(flush(0), Data::None, &[]).unwrap();
    }
    assert!(host.submit(flush(0), Data::None, &[]).is_err());
    exchange(&mut host, &mut target, &mut || 72);
    assert_eq!(host.completions().len(), ENTRIES as usize - 1);
    host.submit(flush(0), Data::None, &[]).unwrap();
    host.qpair.close();
    host.pump();
    assert_eq!(host.events, [Event::Close(HostClose::Asked)]);
}

/// What was answered, in no order: a command that is refused at once may overtake one that is executed.
fn answers(target: &mut Target<Memory>) -> Vec<Vec<u8>> {
    let mut answers = target.sent();
    for pdu in &mut answers {
        if pdu[0] == 5 {
            // CID and status; SQHD counts in the order of answers, and the digest covers it.
            *pdu = pdu[20..24].to_vec();
        }
    }
    answers.sort();
    answers
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn any_segmentation_of_a_stream_gives_the_same_commands_and_the_same_answers(
        commands in prop::collection::vec((0u8..4, 0u64..64, 0u32..17), 1..32),
        cuts in prop::collection::vec(1usize..700, 1..16),
        digests in any::<(bool, bool)>(),
    ) {
        let raw = Raw::digests(digests.0, digests.1);
        let mut stream = raw.ic_req();
        stream.extend(raw.connect(1, 64));
        for (n, (kind, lba, blocks)) in commands.into_iter().enumerate() {
            let cid = n as u16;
            let data = pattern(blocks as usize * LBA, n as u8);
            stream.extend(match kind {
                0 => raw.capsule(&read(cid, lba, blocks.max(1)), &[]),
                1 => raw.capsule(&flush(cid), &[]),
                // Some lengths do not match: they are refused, and their data is thrown away.
                _ => raw.capsule(&write_in_capsule(cid, lba, blocks.max(1)), &data),
            });
        }
        // Connect is answered before more is sent, as a host does.
        let (setup, stream) = stream.split_at(raw.ic_req().len() + raw.connect(1, 64).len());
        let mut whole = Target::memory();
        whole.input(setup).input(stream);
        let mut cut = Target::memory();
        cut.input(setup);
        let mut rest = stream;
        for n in 0.. {
            if rest.is_empty() {
                break;
            }
            let (piece, tail) = rest.split_at(cuts[n % cuts.len()].min(rest.len()));
            cut.input(piece);
            rest = tail;
        }
        let commands = |target: &Target<Memory>| -> Vec<_> {
            target.executed.iter().map(|command| (command.sqe, command.data_len)).collect()
        };
        prop_assert_eq!(commands(&whole), commands(&cut));
        prop_assert_eq!(&whole.responder.bytes, &cut.responder.bytes);
        prop_assert_eq!(answers(&mut whole), answers(&mut cut));
    }

    #[test]
    fn any_segmentation_of_any_mix_of_commands_ends_in_the_same_bytes(
        commands in prop::collection::vec((0u8..3, 0u64..64, 1u32..80), 1..24),
        segments in prop::collection::vec(1usize..3000, 1..16),
        digests in any::<(bool, bool)>(),
        flow_control in any::<bool>(),
    ) {
        let config = HostConfig { header_digest: digests.0, data_digest: digests.1, ..HostConfig::default() };
        let (mut host, mut target) = pair(config, flow_control);
        let mut model = vec![0u8; 256 * LBA];
        let mut at = 0;
        let mut segment = || { at += 1; segments[at % segments.len()] };
        for (n, (kind, lba, blocks)) in commands.into_iter().enumerate() {
            let len = blocks * LBA as u32;
            let range = lba as usize * LBA..lba as usize * LBA + len as usize;
            match kind {
                0 => {
                    let tag = host.submit(command(nvm::READ, lba, blocks), Data::FromTarget(len), &[]).unwrap();
                    exchange(&mut host, &mut target, &mut segment);
                    prop_assert_eq!(&host.buffers[tag.index()][..], &model[range]);
                }
                _ => {
                    let bytes = pattern(len as usize, n as u8);
                    model[range].copy_from_slice(&bytes);
                    host.submit(command(nvm::WRITE, lba, blocks), Data::ToTarget(len), &bytes).unwrap();
                    exchange(&mut host, &mut target, &mut segment);
                }
            }
            let done = host.completions();
            prop_assert!(done.len() == 1 && done[0].1.status().is_success());
        }
        prop_assert_eq!(&target.responder.bytes[..model.len()], &model[..]);
        prop_assert_eq!((target.buffers_out(), target.qpair.in_flight(), host.qpair.in_flight()), (0, 0, 0));
    }
}

#[test]
fn a_command_that_cannot_succeed_is_refused_before_a_buffer_is_spent() {
    for (data_digest, blocks) in [(false, 8u32), (true, 8), (false, 128), (true, 128)] {
        for piece in [1, 50, 100_000] {
            let (mut host, mut target) = pair(HostConfig { data_digest, ..HostConfig::default() }, true);
            target.starve = true;
            let len = blocks * LBA as u32;
            host.submit(command(nvm::WRITE, 0, blocks), Data::ToTarget(len), &pattern(len as usize, 1))
                .unwrap();
            host.submit(command(nvm::READ, 0, 8), Data::FromTarget(4096), &[]).unwrap();
            exchange(&mut host, &mut target, &mut || piece);
            let (tag, _) = target.starved.pop().unwrap();
            assert_eq!(target.qpair.command_of(tag).unwrap().data_len, len);
            target.qpair.refuse(tag, Status::LBA_OUT_OF_RANGE.into()).unwrap();
            assert!(target.qpair.refuse(tag, Status::LBA_OUT_OF_RANGE.into()).is_err());
            exchange(&mut host, &mut target, &mut || piece);
            let statuses: Vec<_> = host.completions().iter().map(|(_, cqe, _)| cqe.status()).collect();
            assert_eq!(statuses.len(), 2);
            assert!(statuses.contains(&Status::LBA_OUT_OF_RANGE) && statuses.contains(&Status::SUCCESS));
            assert_eq!(target.responder.bytes[..4096], [0; 4096]);
        }
    }
}

#[test]
fn a_host_that_takes_less_gets_an_error_and_not_a_byte_more() {
    let raw = Raw::default();
    let mut target = Target::memory();
    target.input(&raw.ic_req()).input(&raw.connect(1, 32)).sent();
    target.responder.hold = true;
    target.input(&raw.capsule(&rw(nvm::READ, 1, 0, 8, Sgl::transport(4092)), &[]));
    let held = target.held.pop().unwrap();
    target.qpair.complete_with_data(held.tag, 4096, Status::SUCCESS.into()).unwrap();
    target.pump();
    let sent = target.sent();
    assert_eq!((sent.len(), cqe(&sent[0]).status()), (1, Status::DATA_SGL_LENGTH_INVALID.with_dnr()));
}
