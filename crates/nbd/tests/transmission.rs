//! Requests and their answers.

mod client;

use client::{Reply, attached, replies};
use peristyle_base::Instant;
use peristyle_nbd::testing::{Driver, fuzz, option, request, small_exports, small_limits, to_transmission};
use peristyle_nbd::wire::{cmd, cmd_flags as flags, opt};
use peristyle_nbd::{CloseReason, Command, Errno, Extent, Fatal, Input, StaleTag};
use proptest::prelude::*;

const BLOCK: u64 = 4096;

fn write(cookie: u64, flags: u16, offset: u64, data: &[u8]) -> Vec<u8> {
    [request(cmd::WRITE, flags, cookie, offset, data.len() as u32), data.to_vec()].concat()
}

fn noise(bytes: usize) -> Vec<u8> {
    (0..bytes as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect()
}

/// Everything the client got since it attached; reads are as long as `read` says.
fn answers(driver: &Driver, read: usize) -> Vec<Reply> {
    replies(&driver.sent, |cookie| if cookie >= 1000 { read } else { 0 })
}

#[test]
fn what_was_written_is_read_back_in_both_kinds_of_reply() {
    let data = noise(8192);
    for structured in [false, true] {
        let mut driver = attached("demo", structured);
        driver.push(&write(7, 0, BLOCK, &data));
        driver.push(&request(cmd::READ, 0, 1000, BLOCK, 4096));
        let data = data[..4096].to_vec();
        let written = Reply::Simple { cookie: 7, error: 0 };
        let want = match structured {
            true => vec![written, Reply::Data { cookie: 1000, offset: BLOCK, data, done: true }],
            false => vec![
                written,
                Reply::Simple { cookie: 1000, error: 0 },
                Reply::Data { cookie: 1000, offset: 0, data, done: true },
            ],
        };
        assert_eq!(answers(&driver, 4096), want);
    }
}

#[test]
fn a_long_request_is_executed_in_aligned_parts_and_answered_once() {
    let mut driver = attached("demo", false);
    driver.hold = true;
    driver.exports[0].export.block_bytes = 512;
    driver.push(&write(7, flags::FUA, 0, &noise(16 * 1024)));
    let parts: Vec<_> = driver.held.iter().map(|(_, command)| *command).collect();
    let part = |n: u64| Command::Write { offset: n * BLOCK, len: 4096, fua: true };
    assert_eq!(parts, [part(0), part(1), part(2), part(3)]);
    assert!(driver.sent.is_empty());
    driver.release_held(true);
    assert_eq!(answers(&driver, 0), [Reply::Simple { cookie: 7, error: 0 }]);
    assert!(driver.exports[0].bytes.starts_with(&noise(16 * 1024)));
}

#[test]
fn a_long_read_is_one_chunk_per_part_or_one_in_all_if_it_must_not_be_fragmented() {
    let whole = noise(12 * 1024);
    for (structured, df) in [(true, 0), (true, flags::DF), (false, 0)] {
        let mut driver = attached("demo", structured);
        driver.exports[0].bytes[..whole.len()].copy_from_slice(&whole);
        driver.hold = true;
        driver.push(&request(cmd::READ, df, 1000, 0, whole.len() as u32));
        assert_eq!(driver.held.len(), 3);
        driver.release_held(true);
        let got = answers(&driver, whole.len());
        let chunk = |n: usize, done| {
            let data = whole[n * 4096..][..4096].to_vec();
            Reply::Data { cookie: 1000, offset: n as u64 * BLOCK, data, done }
        };
        let all = Reply::Data { cookie: 1000, offset: 0, data: whole.clone(), done: true };
        match (structured, df) {
            (true, 0) => assert_eq!(got, [chunk(0, false), chunk(1, false), chunk(2, true)]),
            (true, _) => assert_eq!(got, [all]),
            (false, _) => assert_eq!(got, [Reply::Simple { cookie: 1000, error: 0 }, all]),
        }
        assert_eq!(driver.connection.in_flight(), 0);
    }
}

#[test]
fn one_failing_part_fails_the_read_and_gives_the_other_buffers_back() {
    for structured in [false, true] {
        let mut driver = attached("demo", structured);
        driver.fault = |command| matches!(command, Command::Read { offset: BLOCK, .. }).then_some(Errno::Io);
        driver.push(&request(cmd::READ, 0, 1000, 0, 16 * 1024));
        let want = match structured {
            true => Reply::Error { cookie: 1000, error: 5 },
            false => Reply::Simple { cookie: 1000, error: 5 },
        };
        assert_eq!(answers(&driver, 0), [want]);
        assert_eq!((driver.released, driver.connection.in_flight()), (3, 0));
    }
}

#[test]
fn commands_without_data_reach_the_layers_below_with_their_flags() {
    let mut driver = attached("demo", true);
    driver.push(&request(cmd::FLUSH, 0, 1, 0, 0));
    driver.push(&request(cmd::TRIM, flags::FUA, 2, BLOCK, 8192));
    driver.push(&request(cmd::WRITE_ZEROES, flags::NO_HOLE, 3, 0, 64 * 1024));
    driver.push(&request(cmd::WRITE_ZEROES, flags::FAST_ZERO | flags::FUA, 4, 0, 4096));
    let executed = [
        Command::Flush,
        Command::Trim { offset: BLOCK, len: 8192, fua: true },
        Command::WriteZeroes { offset: 0, len: 64 * 1024, fua: false, no_hole: true, fast: false },
        Command::WriteZeroes { offset: 0, len: 4096, fua: true, no_hole: false, fast: true },
    ];
    assert_eq!(driver.executed, executed);
    let answered = [1, 2, 3, 4].map(|cookie| Reply::Simple { cookie, error: 0 });
    assert_eq!(answers(&driver, 0), answered);
}

#[test]
fn block_status_tells_data_and_holes_within_the_range_and_one_if_one_will_do() {
    let mut driver = attached("demo", true);
    driver.push(&request(cmd::WRITE_ZEROES, 0, 1, BLOCK, 8192));
    driver.sent.clear();
    driver.push(&request(cmd::BLOCK_STATUS, 0, 2, 0, 16 * 1024));
    driver.push(&request(cmd::BLOCK_STATUS, flags::REQ_ONE, 3, BLOCK, 8192));
    // Row 0 of the memory export is 512 bytes of zeros, the only block that is not data at first.
    let want = [
        Reply::Status { cookie: 2, extents: vec![(512, 3), (3584, 0), (8192, 3), (4096, 0)] },
        Reply::Status { cookie: 3, extents: vec![(8192, 3)] },
    ];
    assert_eq!(answers(&driver, 0), want);
}

#[test]
fn extents_beyond_the_range_or_beyond_what_one_answer_holds_are_cut_off() {
    let mut driver = attached("demo", true);
    driver.hold = true;
    driver.push(&request(cmd::BLOCK_STATUS, 0, 1, 0, 8192));
    let (tag, _) = driver.held.remove(0);
    driver.connection.complete_block_status(tag, &[Extent { len: 1 << 20, flags: 0 }]).unwrap();
    driver.push(&request(cmd::BLOCK_STATUS, 0, 2, 0, 128 * 1024));
    let (tag, _) = driver.held.remove(0);
    let many: Vec<_> = (0..32).map(|i| Extent { len: 4096, flags: i % 2 }).collect();
    driver.connection.complete_block_status(tag, &many).unwrap();
    driver.run();
    let first_16 = (0..16).map(|i| (4096, i % 2)).collect();
    let want = [
        Reply::Status { cookie: 1, extents: vec![(8192, 0)] },
        Reply::Status { cookie: 2, extents: first_16 },
    ];
    assert_eq!(answers(&driver, 0), want);
}

#[test]
fn answers_come_in_the_order_in_which_requests_end() {
    let mut driver = attached("demo", false);
    driver.hold = true;
    for cookie in 0..4 {
        driver.push(&request(cmd::FLUSH, 0, cookie, 0, 0));
    }
    driver.release_held(true);
    let want = [3, 2, 1, 0].map(|cookie| Reply::Simple { cookie, error: 0 });
    assert_eq!(answers(&driver, 0), want);
}

#[test]
fn a_cookie_that_is_in_use_is_the_clients_own_affair() {
    let mut driver = attached("demo", false);
    driver.hold = true;
    driver.push(&request(cmd::FLUSH, 0, 5, 0, 0));
    driver.push(&request(cmd::FLUSH, 0, 5, 0, 0));
    driver.release_held(false);
    assert_eq!(answers(&driver, 0), [5, 5].map(|cookie| Reply::Simple { cookie, error: 0 }));
}

#[test]
fn a_request_waits_in_the_socket_until_there_are_slots_for_all_its_parts() {
    let mut driver = attached("demo", false);
    driver.hold = true;
    for cookie in 0..6 {
        driver.push(&request(cmd::FLUSH, 0, cookie, 0, 0));
    }
    driver.push(&request(cmd::READ, 0, 1000, 0, 12 * 1024)); // three parts, two slots are left
    driver.push(&request(cmd::FLUSH, 0, 6, 0, 0));
    assert_eq!(driver.held.len(), 6);
    assert_eq!(driver.connection.next_input(), Input::Wait);
    assert_eq!(driver.inbox.len(), 28, "the request behind it");

    let (tag, command) = driver.held.remove(0);
    driver.execute(tag, command);
    driver.run();
    assert_eq!(driver.held.len(), 8, "five, and the three parts");
    driver.release_held(false);
    driver.release_held(false);
    assert_eq!((driver.connection.in_flight(), driver.inbox.len()), (0, 0));
    assert_eq!(answers(&driver, 12 * 1024).len(), 9, "eight, and the data");
}

#[test]
fn payload_stands_in_the_socket_until_the_write_has_a_buffer() {
    let mut driver = attached("demo", false);
    driver.no_buffers = true;
    driver.push(&write(7, 0, 0, &noise(8192)));
    assert_eq!(driver.connection.next_input(), Input::Wait);
    assert_eq!(driver.inbox.len(), 8192);
    for part in 0..2 {
        let (tag, len) = driver.waiting.remove(0);
        assert_eq!(len, 4096);
        driver.give(tag, len);
        assert_eq!(driver.connection.next_input(), Input::Payload { tag, offset: 0, len: 4096 });
        driver.run();
        assert_eq!(driver.executed.len(), part + 1);
    }
    assert_eq!(answers(&driver, 0), [Reply::Simple { cookie: 7, error: 0 }]);
}

#[test]
fn disc_answers_what_is_in_flight_and_then_closes() {
    let mut driver = attached("demo", false);
    driver.hold = true;
    driver.push(&request(cmd::FLUSH, 0, 1, 0, 0));
    // Length and data of a DISC mean nothing.
    driver.push(&request(cmd::DISC, 0, 2, 0, 4096));
    driver.push(&noise(4096));
    assert_eq!((driver.closed, driver.inbox.len()), (None, 0));
    driver.release_held(false);
    assert_eq!(answers(&driver, 0), [Reply::Simple { cookie: 1, error: 0 }]);
    assert_eq!(driver.closed, Some(CloseReason::Disconnected));
}

#[test]
fn a_write_that_ends_early_is_not_executed() {
    let mut driver = attached("demo", false);
    let before = driver.exports[0].bytes.clone();
    let whole = write(1, 0, 0, &[0xee; 4096]);
    driver.push(&whole[..whole.len() - 1]);
    driver.eof();
    assert_eq!(driver.closed, Some(CloseReason::PeerClosed));
    assert!(driver.executed.is_empty() && driver.exports[0].bytes == before);
}

#[test]
fn a_completion_after_the_end_is_stale() {
    let mut driver = attached("demo", false);
    driver.hold = true;
    driver.push(&request(cmd::FLUSH, 0, 1, 0, 0));
    let (tag, _) = driver.held[0];
    assert_eq!(driver.connection.buffer_ready(tag), Err(StaleTag));
    driver.connection.close();
    driver.run();
    assert_eq!(driver.closed, Some(CloseReason::Asked));
    assert_eq!(driver.connection.complete(tag, Ok(())), Err(StaleTag));
    assert_eq!(driver.connection.next_input(), Input::Closed);
}

#[test]
fn a_part_completes_once() {
    let mut driver = attached("demo", false);
    driver.hold = true;
    driver.push(&request(cmd::FLUSH, 0, 1, 0, 0));
    let (tag, _) = driver.held.remove(0);
    assert_eq!(driver.connection.complete(tag, Ok(())), Ok(()));
    assert_eq!(driver.connection.complete(tag, Ok(())), Err(StaleTag));
    driver.run();
    assert_eq!(driver.connection.complete(tag, Ok(())), Err(StaleTag));
}

/// Sizes of the exports of the tests.
const DEMO: u64 = 256 * 1024;
const FROZEN: u64 = 64 * 1024;

/// RESEARCH: "NBD bad inputs, minimum set", the part in transmission. Everything that can be answered is
/// answered, its data is skipped, and the request behind it works.
#[test]
fn bad_requests_are_answered_exactly_and_the_next_one_works() {
    let data = noise(4096);
    let max = u32::MAX - 4095;
    let read = |flags, offset, length| request(cmd::READ, flags, 9, offset, length);
    let of = |kind, offset, length| request(kind, 0, 9, offset, length);
    const INVAL: u32 = 22;
    const NOSPC: u32 = 28;
    const PERM: u32 = 1;
    let table: Vec<(&str, &str, Vec<u8>, u32)> = vec![
        ("an unknown command", "demo", of(99, 0, 4096), INVAL),
        ("CACHE, which is not offered", "demo", of(cmd::CACHE, 0, 4096), INVAL),
        ("an unknown flag", "demo", read(1 << 9, 0, 4096), INVAL),
        ("PAYLOAD_LEN without extended headers", "demo", write(9, 1 << 5, 0, &data), INVAL),
        ("NO_HOLE on a write", "demo", write(9, flags::NO_HOLE, 0, &data), INVAL),
        ("DF on a write", "demo", write(9, flags::DF, 0, &data), INVAL),
        ("REQ_ONE on a read", "demo", read(flags::REQ_ONE, 0, 4096), INVAL),
        ("FAST_ZERO on a trim", "demo", request(cmd::TRIM, flags::FAST_ZERO, 9, 0, 4096), INVAL),
        ("offset and length of a read wrap", "demo", read(0, u64::MAX - 4095, 8192), INVAL),
        ("offset and length of a write wrap", "demo", write(9, 0, u64::MAX - 4095, &noise(8192)), NOSPC),
        ("offset and length of a trim wrap", "demo", of(cmd::TRIM, u64::MAX - 4095, 8192), INVAL),
        ("a read beyond the end", "demo", read(0, DEMO - BLOCK, 8192), INVAL),
        ("a read at the end", "demo", read(0, DEMO, 4096), INVAL),
        ("a write beyond the end", "demo", write(9, 0, DEMO, &data), NOSPC),
        ("a trim beyond the end", "demo", of(cmd::TRIM, DEMO, 4096), INVAL),
        ("zeroes beyond the end", "demo", of(cmd::WRITE_ZEROES, DEMO - BLOCK, 8192), NOSPC),
        ("a read of nothing", "demo", read(0, 0, 0), INVAL),
        ("a write of nothing", "demo", write(9, 0, 0, &[]), INVAL),
        ("a trim of nothing", "demo", of(cmd::TRIM, 0, 0), INVAL),
        ("zeroes of nothing", "demo", of(cmd::WRITE_ZEROES, 0, 0), INVAL),
        ("a read of 2^32-1", "demo", read(0, 0, u32::MAX), INVAL),
        ("a trim of 2^32-1", "demo", of(cmd::TRIM, 0, u32::MAX), INVAL),
        ("zeroes of 2^32-1", "demo", of(cmd::WRITE_ZEROES, 0, u32::MAX), NOSPC),
        ("a trim of nearly 2^32", "demo", of(cmd::TRIM, 0, max), INVAL),
        ("a read longer than the longest payload", "demo", read(0, 0, 32 * 1024), INVAL),
        ("an offset within a block", "demo", read(0, 512, 4096), INVAL),
        ("a length within a block", "demo", write(9, 0, 0, &noise(512)), INVAL),
        ("a length within a small block", "frozen", read(0, 512, 100), INVAL),
        ("a flush with an offset", "demo", of(cmd::FLUSH, 4096, 0), INVAL),
        ("a flush with a length", "demo", of(cmd::FLUSH, 0, 4096), INVAL),
        ("BLOCK_STATUS of nothing", "demo", of(cmd::BLOCK_STATUS, 0, 0), INVAL),
        ("BLOCK_STATUS beyond the end", "demo", of(cmd::BLOCK_STATUS, DEMO, 4096), INVAL),
        ("a write to what is read-only", "frozen", write(9, 0, 0, &data), PERM),
        ("a trim of what is read-only", "frozen", of(cmd::TRIM, 0, 4096), PERM),
        ("zeroes to what is read-only", "frozen", of(cmd::WRITE_ZEROES, 0, FROZEN as u32), PERM),
    ];
    for (what, export, input, error) in table {
        for structured in [false, true] {
            let mut driver = attached(export, structured);
            driver.push(&input);
            driver.push(&request(cmd::FLUSH, 0, 10, 0, 0));
            let kind = u16::from_be_bytes([input[6], input[7]]);
            let chunked = structured && matches!(kind, cmd::READ | cmd::BLOCK_STATUS);
            let refused = match chunked {
                true => Reply::Error { cookie: 9, error },
                false => Reply::Simple { cookie: 9, error },
            };
            assert_eq!(answers(&driver, 0), [refused, Reply::Simple { cookie: 10, error: 0 }], "{what}");
            assert_eq!(driver.executed, [Command::Flush], "{what}");
            assert_eq!(driver.connection.stats().refused, 1, "{what}");
        }
    }
}

#[test]
fn what_only_structured_replies_allow_is_refused_without_them() {
    let mut driver = attached("demo", false);
    driver.push(&request(cmd::READ, flags::DF, 1, 0, 4096));
    driver.push(&request(cmd::BLOCK_STATUS, 0, 2, 0, 4096));
    let mut no_context = Driver::new(small_limits(), small_exports());
    no_context.push(&3u32.to_be_bytes());
    no_context.push(&option(opt::STRUCTURED_REPLY, &[]));
    no_context.push(&to_transmission("demo", false)[4..]);
    no_context.sent.clear();
    no_context.push(&request(cmd::BLOCK_STATUS, 0, 3, 0, 4096));
    assert_eq!(answers(&driver, 0), [1, 2].map(|cookie| Reply::Simple { cookie, error: 22 }));
    assert_eq!(answers(&no_context, 0), [Reply::Error { cookie: 3, error: 22 }]);
}

#[test]
fn fua_is_accepted_where_it_means_nothing() {
    let mut driver = attached("demo", false);
    driver.push(&request(cmd::READ, flags::FUA, 1000, 0, 4096));
    driver.push(&request(cmd::FLUSH, flags::FUA, 1, 0, 0));
    assert_eq!(answers(&driver, 4096).len(), 3);
    assert_eq!(driver.connection.stats().refused, 0);
}

#[test]
fn requests_that_cannot_be_answered_end_the_connection() {
    let mut magic = request(cmd::READ, 0, 1, 0, 4096);
    magic[0] ^= 1;
    let long = |length| request(cmd::WRITE, 0, 1, 0, length);
    for (input, fatal) in [
        (magic, Fatal::RequestMagic),
        (long(16 * 1024 + 1), Fatal::WriteTooLong),
        (long(u32::MAX), Fatal::WriteTooLong),
        (option(opt::LIST, &[0; 12]), Fatal::RequestMagic),
    ] {
        let mut driver = attached("demo", false);
        driver.hold = true;
        driver.push(&request(cmd::FLUSH, 0, 1, 0, 0));
        driver.push(&input);
        assert_eq!(driver.closed, Some(CloseReason::Fatal(fatal)));
        assert!(driver.sent.is_empty());
    }
}

#[test]
fn the_error_of_a_driver_that_breaks_is_told_once() {
    let mut driver = attached("demo", false);
    let mut magic = request(cmd::READ, 0, 1, 0, 4096);
    magic[3] ^= 0x80;
    assert_eq!(driver.connection.handle_bytes(Instant::ZERO, &magic), Err(Fatal::RequestMagic));
    assert_eq!(driver.connection.handle_bytes(Instant::ZERO, &magic), Ok(28));
}

/// A request as a client might send it, good or bad. The lower half of its cookie tells the length of a read.
fn any_request() -> impl Strategy<Value = Vec<u8>> {
    let kind = prop_oneof![6 => 0..=1u16, 4 => 3..=8u16];
    let flags = prop_oneof![6 => Just(0u16), 2 => 0..32u16];
    let offset = prop_oneof![6 => (0..70u64).prop_map(|n| n * BLOCK), 1 => any::<u64>()];
    let length = prop_oneof![6 => (0..5u32).prop_map(|n| n * 4096), 1 => 0..20_000u32];
    (kind, flags, any::<u32>(), offset, length).prop_map(|(kind, flags, cookie, offset, length)| {
        let read = if kind == cmd::READ { length } else { 0 };
        let cookie = u64::from(cookie) << 32 | u64::from(read);
        let length = if kind == cmd::WRITE { length.min(16 * 1024) } else { length };
        let mut bytes = request(kind, flags, cookie, offset, length);
        if kind == cmd::WRITE {
            bytes.extend(noise(length as usize));
        }
        bytes
    })
}

/// All answers by cookie: a refusal may overtake what is still being executed.
fn sorted(driver: &Driver) -> Vec<Reply> {
    let (_, sent) = client::option_replies(&driver.sent);
    let mut replies = replies(sent, |cookie| cookie as u32 as usize);
    replies.sort_by_key(|reply| match reply {
        Reply::Simple { cookie, .. } | Reply::Data { cookie, .. } => *cookie,
        Reply::Status { cookie, .. } | Reply::Error { cookie, .. } => *cookie,
    });
    replies
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn however_the_stream_is_cut_the_answers_are_the_same(
        requests in prop::collection::vec(any_request(), 1..12),
        cuts in prop::collection::vec(1..3000usize, 1..40),
        structured: bool,
    ) {
        let stream = [to_transmission("demo", structured), requests.concat()].concat();
        let mut whole = Driver::new(small_limits(), small_exports());
        whole.push(&stream);
        let mut cut = Driver::new(small_limits(), small_exports());
        let (mut rest, mut turn) = (stream.as_slice(), 0);
        while !rest.is_empty() {
            let (head, tail) = rest.split_at(cuts[turn % cuts.len()].min(rest.len()));
            cut.push(head);
            (rest, turn) = (tail, turn + 1);
        }
        prop_assert_eq!(sorted(&whole), sorted(&cut));
        prop_assert_eq!(&whole.executed, &cut.executed);
        prop_assert!(whole.exports[0].bytes == cut.exports[0].bytes);
        prop_assert_eq!(whole.connection.stats(), cut.connection.stats());
        prop_assert_eq!(whole.connection.in_flight(), 0);
        prop_assert_eq!(whole.connection.stats().requests as usize, requests.len());
        prop_assert_eq!(whole.closed, None);
    }

    #[test]
    fn no_bytes_break_or_hang_it(mode: u8, requests in prop::collection::vec(any_request(), 0..6), flips in
        prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4), noise: Vec<u8>)
    {
        let mut input = [requests.concat(), noise].concat();
        if !input.is_empty() {
            for (at, to) in flips {
                *at.get_mut(&mut input) = to;
            }
        }
        input.insert(0, mode);
        fuzz(&input);
    }
}
