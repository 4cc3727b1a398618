//! From the greeting to an open export.

mod client;

use client::{OptionReply, option_replies};
use peristyle_base::{Duration, Instant};
use peristyle_nbd::testing::{
    Driver, go_data, option, request, small_exports, small_limits, to_transmission,
};
use peristyle_nbd::wire::{self, cmd, export_flags as flags, info, opt, rep};
use peristyle_nbd::{Action, CloseReason, Export, Fatal, Input, Limits};

const WRITABLE: u16 = flags::HAS_FLAGS
    | flags::SEND_FLUSH
    | flags::SEND_FUA
    | flags::CAN_MULTI_CONN
    | flags::SEND_TRIM
    | flags::SEND_WRITE_ZEROES
    | flags::SEND_FAST_ZERO;

/// A client that has said its flags.
fn met(client_flags: u32) -> Driver {
    let mut driver = Driver::new(small_limits(), small_exports());
    driver.push(&client_flags.to_be_bytes());
    driver
}

fn said(driver: &Driver) -> Vec<OptionReply> {
    let (replies, rest) = option_replies(&driver.sent);
    assert!(rest.is_empty(), "only option replies");
    replies
}

fn export_info(bytes: u64, flags: u16) -> Vec<u8> {
    let mut data = info::EXPORT.to_be_bytes().to_vec();
    data.extend(bytes.to_be_bytes());
    data.extend(flags.to_be_bytes());
    data
}

fn block_size_info(minimum: u32, maximum: u32) -> Vec<u8> {
    let mut data = info::BLOCK_SIZE.to_be_bytes().to_vec();
    [minimum, 4096, maximum].iter().for_each(|size| data.extend(size.to_be_bytes()));
    data
}

fn meta_data(name: &str, queries: &[&str]) -> Vec<u8> {
    let mut data = (name.len() as u32).to_be_bytes().to_vec();
    data.extend(name.as_bytes());
    data.extend((queries.len() as u32).to_be_bytes());
    for query in queries {
        data.extend((query.len() as u32).to_be_bytes());
        data.extend(query.as_bytes());
    }
    data
}

#[test]
fn go_tells_size_flags_and_block_size_and_opens_the_export() {
    let mut driver = met(3);
    driver.push(&option(opt::GO, &go_data("demo", &[info::BLOCK_SIZE])));
    let told = [
        OptionReply::new(opt::GO, rep::INFO, &export_info(256 * 1024, WRITABLE)),
        OptionReply::new(opt::GO, rep::INFO, &block_size_info(4096, 16 * 1024)),
        OptionReply::new(opt::GO, rep::ACK, &[]),
    ];
    assert_eq!(said(&driver), told);
    let export = Export { bytes: 256 * 1024, block_bytes: 4096, read_only: false };
    assert_eq!(driver.connection.export(), Some(&export));
    assert_eq!(driver.connection.poll_timeout(), None, "an idle client may stay");
}

#[test]
fn info_tells_the_same_and_opens_nothing() {
    let mut driver = met(3);
    driver.push(&option(opt::INFO, &go_data("", &[info::NAME, info::DESCRIPTION, 77])));
    let (name, description) = (b"\x00\x01demo", b"\x00\x02a volume");
    let told = [
        OptionReply::new(opt::INFO, rep::INFO, &export_info(256 * 1024, WRITABLE)),
        OptionReply::new(opt::INFO, rep::INFO, name),
        OptionReply::new(opt::INFO, rep::INFO, description),
        OptionReply::new(opt::INFO, rep::INFO, &block_size_info(4096, 16 * 1024)),
        OptionReply::new(opt::INFO, rep::ACK, &[]),
    ];
    assert_eq!(said(&driver), told);
    assert_eq!(driver.connection.export(), None);
}

#[test]
fn a_read_only_export_offers_nothing_that_writes_and_df_comes_with_structured_replies() {
    let mut driver = met(3);
    driver.push(&option(opt::STRUCTURED_REPLY, &[]));
    driver.push(&option(opt::GO, &go_data("frozen", &[])));
    let offered = flags::HAS_FLAGS
        | flags::SEND_FLUSH
        | flags::SEND_FUA
        | flags::CAN_MULTI_CONN
        | flags::READ_ONLY
        | flags::SEND_DF;
    let told = [
        OptionReply::new(opt::STRUCTURED_REPLY, rep::ACK, &[]),
        OptionReply::new(opt::GO, rep::INFO, &export_info(64 * 1024, offered)),
        OptionReply::new(opt::GO, rep::INFO, &block_size_info(512, 16 * 1024)),
        OptionReply::new(opt::GO, rep::ACK, &[]),
    ];
    assert_eq!(said(&driver), told);
}

#[test]
fn the_old_way_to_open_an_export_pads_with_zeros_unless_told_not_to() {
    for (client_flags, zeroes) in [(0, 124), (1, 124), (3, 0)] {
        let mut driver = met(client_flags);
        driver.push(&option(opt::EXPORT_NAME, b"demo"));
        let (replies, rest) = option_replies(&driver.sent);
        assert!(replies.is_empty());
        let mut want = (256u64 * 1024).to_be_bytes().to_vec();
        want.extend(WRITABLE.to_be_bytes());
        want.extend(vec![0; zeroes]);
        assert_eq!(rest, want);
        assert!(driver.connection.export().is_some());
    }
}

#[test]
fn list_names_all_exports() {
    let mut driver = met(3);
    driver.push(&option(opt::LIST, &[]));
    let told = [
        OptionReply::new(opt::LIST, rep::SERVER, b"\0\0\0\x04demoa volume"),
        OptionReply::new(opt::LIST, rep::SERVER, b"\0\0\0\x06frozen"),
        OptionReply::new(opt::LIST, rep::ACK, &[]),
    ];
    assert_eq!(said(&driver), told);
}

#[test]
fn abort_is_acknowledged_before_the_connection_ends() {
    let mut driver = met(3);
    driver.push(&option(opt::ABORT, b"bye"));
    assert_eq!(said(&driver), [OptionReply::new(opt::ABORT, rep::ACK, &[])]);
    assert_eq!(driver.closed, Some(CloseReason::Disconnected));
}

#[test]
fn contexts_are_listed_and_selected_by_query() {
    let context = |id: u32| [&id.to_be_bytes()[..], b"base:allocation"].concat();
    for (kind, queries, id) in [
        (opt::LIST_META_CONTEXT, &[][..], Some(0)),
        (opt::LIST_META_CONTEXT, &["base:"][..], Some(0)),
        (opt::LIST_META_CONTEXT, &["qemu:"][..], None),
        (opt::SET_META_CONTEXT, &["base:allocation"][..], Some(1)),
        (opt::SET_META_CONTEXT, &["x:y", "base:allocation", "base:allocation"][..], Some(1)),
        (opt::SET_META_CONTEXT, &["base:"][..], None),
        (opt::SET_META_CONTEXT, &[][..], None),
    ] {
        let mut driver = met(3);
        driver.push(&option(opt::STRUCTURED_REPLY, &[]));
        driver.push(&option(kind, &meta_data("demo", queries)));
        let mut want: Vec<_> =
            id.map(|id| OptionReply::new(kind, rep::META_CONTEXT, &context(id))).into_iter().collect();
        want.push(OptionReply::new(kind, rep::ACK, &[]));
        assert_eq!(said(&driver)[1..], want, "{kind} {queries:?}");
    }
}

#[test]
fn a_context_of_another_export_or_of_a_failed_selection_is_not_selected() {
    for (second, opened, works) in [
        (None, "demo", true),
        (None, "frozen", false),
        (Some(meta_data("nothing", &["base:allocation"])), "demo", false),
        (Some(b"?".to_vec()), "demo", false),
    ] {
        let mut driver = met(3);
        driver.push(&option(opt::STRUCTURED_REPLY, &[]));
        driver.push(&option(opt::SET_META_CONTEXT, &meta_data("demo", &["base:allocation"])));
        if let Some(second) = &second {
            driver.push(&option(opt::SET_META_CONTEXT, second));
        }
        driver.push(&option(opt::GO, &go_data(opened, &[])));
        driver.sent.clear();
        driver.push(&request(cmd::BLOCK_STATUS, 0, 1, 0, 4096));
        let refused = client::replies(&driver.sent, |_| 0) == [client::Reply::Error { cookie: 1, error: 22 }];
        assert_ne!(refused, works, "{second:?} {opened}");
    }
}

#[test]
fn a_client_that_does_not_read_our_answers_is_not_read_either() {
    let mut driver = met(3);
    let now = Instant::ZERO;
    let list = option(opt::LIST, &[]);
    assert_eq!(driver.connection.handle_bytes(now, &list), Ok(16));
    assert_eq!(driver.connection.next_input(), Input::Wait, "for the lookup");
    let Some(Action::Lookup(_)) = driver.connection.poll_action() else { panic!("a lookup") };
    driver.connection.list_done([("a", "b")].into_iter());
    assert_eq!(driver.connection.next_input(), Input::Wait, "for the answer to leave");
    assert_eq!(driver.connection.handle_bytes(now, &list), Ok(0));
    driver.run();
    assert_eq!(driver.connection.next_input(), Input::Bytes { max: 16 });
}

#[test]
fn a_list_that_is_too_long_is_an_error_not_a_flood() {
    let mut driver = met(3);
    driver.connection.handle_bytes(Instant::ZERO, &option(opt::LIST, &[])).unwrap();
    let name = "x".repeat(4000);
    driver.connection.list_done((0..100_000).map(|_| (name.as_str(), "")));
    driver.run();
    assert_eq!(said(&driver), [OptionReply::new(opt::LIST, rep::ERR_TOO_BIG, &[])]);
}

#[test]
fn ten_thousand_clients_that_stop_in_the_middle_are_cut_off_in_time() {
    let limits = Limits { negotiation_timeout: Duration::from_secs(10), ..small_limits() };
    let whole = to_transmission("demo", true);
    for n in 0..10_000 {
        let mut driver = Driver::new(limits, small_exports());
        driver.push(&whole[..n % whole.len()]);
        assert_eq!(driver.connection.poll_timeout(), Some(Instant(10_000_000_000)));
        driver.connection.handle_timeout(Instant(9_999_999_999));
        driver.run();
        assert_eq!(driver.closed, None);
        driver.connection.handle_timeout(Instant(10_000_000_000));
        driver.run();
        assert_eq!(driver.closed, Some(CloseReason::NegotiationTimeout));
    }
}

#[test]
fn an_answer_to_a_lookup_of_a_connection_that_is_gone_is_dropped() {
    let mut driver = met(3);
    driver.connection.handle_bytes(Instant::ZERO, &option(opt::GO, &go_data("demo", &[]))).unwrap();
    driver.connection.handle_eof(Instant::ZERO);
    driver.connection.lookup_done(None);
    driver.run();
    assert_eq!(driver.closed, Some(CloseReason::PeerClosed));
    assert_eq!(driver.sent.len(), 18, "the greeting was polled before");
}

/// What a bad input is answered with: option replies behind the greeting, and whether the connection ends.
type Answer = (&'static [(u32, u32)], Option<CloseReason>);

const fn fatal(reason: Fatal) -> Option<CloseReason> {
    Some(CloseReason::Fatal(reason))
}

/// RESEARCH: "NBD bad inputs, minimum set", the part before transmission.
#[test]
fn bad_inputs_of_negotiation_are_answered_exactly() {
    let header = |kind: u32, length: u32| {
        [&wire::OPTION_MAGIC.to_be_bytes()[..], &kind.to_be_bytes(), &length.to_be_bytes()].concat()
    };
    let hello = |flags: u32, rest: &[u8]| [&flags.to_be_bytes()[..], rest].concat();
    let name_4097 = "n".repeat(4097);
    let go = |data: &[u8]| hello(3, &option(opt::GO, data));
    let structured = |rest: &[u8]| hello(3, &[&option(opt::STRUCTURED_REPLY, &[]), rest].concat());
    let many = (0..65).flat_map(|_| option(opt::STARTTLS, &[])).collect::<Vec<_>>();
    const GO: u32 = opt::GO;
    const TLS: u32 = opt::STARTTLS;
    const SET: u32 = opt::SET_META_CONTEXT;
    const SR: u32 = opt::STRUCTURED_REPLY;

    let table: Vec<(&str, Vec<u8>, Answer)> = vec![
        ("client flags that were not offered", hello(4, &[]), (&[], fatal(Fatal::ClientFlags))),
        (
            "option length 2^32-1",
            hello(3, &header(GO, u32::MAX)),
            (&[(GO, rep::ERR_TOO_BIG)], fatal(Fatal::OptionTooLong)),
        ),
        (
            "unknown option with 1 GiB",
            hello(3, &header(99, 1 << 30)),
            (&[(99, rep::ERR_TOO_BIG)], fatal(Fatal::OptionTooLong)),
        ),
        (
            "unknown option with 64 KiB, then a known one",
            {
                let unknown = option(99, &vec![7; 64 * 1024]);
                hello(3, &[unknown, option(SR, &[])].concat())
            },
            (&[(99, rep::ERR_UNSUP), (SR, rep::ACK)], None),
        ),
        (
            "EXPORT_NAME of length 2^32-1",
            hello(3, &header(opt::EXPORT_NAME, u32::MAX)),
            (&[], fatal(Fatal::ExportName)),
        ),
        (
            "EXPORT_NAME of 4097 bytes",
            hello(3, &option(opt::EXPORT_NAME, name_4097.as_bytes())),
            (&[], fatal(Fatal::ExportName)),
        ),
        (
            "EXPORT_NAME of nothing",
            hello(3, &option(opt::EXPORT_NAME, b"nothing")),
            (&[], fatal(Fatal::ExportName)),
        ),
        (
            "EXPORT_NAME that is not UTF-8",
            hello(3, &option(opt::EXPORT_NAME, &[0xff, 0xfe])),
            (&[], fatal(Fatal::ExportName)),
        ),
        ("GO to a name of 4097 bytes", go(&go_data(&name_4097, &[])), (&[(GO, rep::ERR_INVALID)], None)),
        ("GO to a name with NUL", go(&go_data("de\0mo", &[])), (&[(GO, rep::ERR_INVALID)], None)),
        ("GO to nothing", go(&go_data("nothing", &[])), (&[(GO, rep::ERR_UNKNOWN)], None)),
        ("GO without data", go(&[]), (&[(GO, rep::ERR_INVALID)], None)),
        (
            "GO whose name is longer than the option",
            go(&[0xff, 0xff, 0xff, 0xff, b'd']),
            (&[(GO, rep::ERR_INVALID)], None),
        ),
        ("GO with a count and no infos", go(b"\0\0\0\x04demo\0\x05"), (&[(GO, rep::ERR_INVALID)], None)),
        ("GO with infos and no count", go(b"\0\0\0\x04demo\0\0\0\x03"), (&[(GO, rep::ERR_INVALID)], None)),
        (
            "INFO without a count",
            hello(3, &option(opt::INFO, b"\0\0\0\x04demo")),
            (&[(opt::INFO, rep::ERR_INVALID)], None),
        ),
        (
            "a command before negotiation",
            hello(3, &request(cmd::READ, 0, 1, 0, 4096)),
            (&[], fatal(Fatal::OptionMagic)),
        ),
        (
            "STARTTLS twice",
            hello(3, &[option(TLS, &[]), option(TLS, &[])].concat()),
            (&[(TLS, rep::ERR_UNSUP), (TLS, rep::ERR_UNSUP)], None),
        ),
        (
            "STARTTLS with plain text behind it",
            hello(3, &[option(TLS, &[]), option(SR, &[])].concat()),
            (&[(TLS, rep::ERR_UNSUP), (SR, rep::ACK)], None),
        ),
        ("65 options", hello(3, &many), (&[], fatal(Fatal::TooManyOptions))),
        ("LIST with data", hello(3, &option(opt::LIST, b"x")), (&[(opt::LIST, rep::ERR_INVALID)], None)),
        ("STRUCTURED_REPLY with data", hello(3, &option(SR, b"x")), (&[(SR, rep::ERR_INVALID)], None)),
        (
            "STRUCTURED_REPLY twice",
            structured(&option(SR, &[])),
            (&[(SR, rep::ACK), (SR, rep::ERR_INVALID)], None),
        ),
        (
            "contexts before structured replies",
            hello(3, &option(SET, &meta_data("demo", &[]))),
            (&[(SET, rep::ERR_INVALID)], None),
        ),
        (
            "contexts with 2^32-1 queries",
            structured(&option(SET, b"\0\0\0\x04demo\xff\xff\xff\xff")),
            (&[(SR, rep::ACK), (SET, rep::ERR_INVALID)], None),
        ),
        (
            "contexts of nothing",
            structured(&option(SET, &meta_data("nothing", &["base:allocation"]))),
            (&[(SR, rep::ACK), (SET, rep::ERR_UNKNOWN)], None),
        ),
        (
            "contexts with bytes left over",
            structured(&option(SET, b"\0\0\0\x04demo\0\0\0\0x")),
            (&[(SR, rep::ACK), (SET, rep::ERR_INVALID)], None),
        ),
        (
            "an option other than EXPORT_NAME without fixed newstyle",
            hello(0, &option(opt::LIST, &[])),
            (&[], fatal(Fatal::ClientFlags)),
        ),
        (
            "extended headers, which are not offered",
            hello(3, &option(opt::EXTENDED_HEADERS, &[])),
            (&[(opt::EXTENDED_HEADERS, rep::ERR_UNSUP)], None),
        ),
        ("the withdrawn PEEK_EXPORT", hello(3, &option(4, b"demo")), (&[(4, rep::ERR_UNSUP)], None)),
    ];
    for (what, input, (replies, closed)) in table {
        let mut driver = Driver::new(small_limits(), small_exports());
        driver.push(&input);
        let got: Vec<_> = said(&driver).iter().map(|reply| (reply.option, reply.kind)).collect();
        if closed != fatal(Fatal::TooManyOptions) {
            assert_eq!(got, replies, "{what}");
        }
        assert_eq!(driver.closed, closed, "{what}");
        assert!(driver.connection.export().is_none() && driver.executed.is_empty(), "{what}");
        if closed.is_none() {
            // The connection is none the worse for it.
            driver.push(&option(opt::GO, &go_data("demo", &[])));
            assert!(driver.connection.export().is_some(), "{what}");
        }
    }
}
