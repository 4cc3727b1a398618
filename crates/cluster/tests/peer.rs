//! The peer protocol: golden bytes, conversations in any segments, credits, versions, and what is refused.

use peristyle_base::*;
use peristyle_cluster::lease::Claimed;
use peristyle_cluster::peer::*;
use peristyle_cluster::{ColumnFault, ListedSlot, SlotState};
use proptest::prelude::*;
use std::time::Duration;

macro_rules! golden {
    ($name:literal) => {
        golden!("v1", $name)
    };
    ($version:literal, $name:literal) => {
        parse(include_str!(concat!("../../../testdata/peer/", $version, "-", $name, ".hex")))
    };
}

fn parse(text: &str) -> Vec<u8> {
    let lines = text.lines().map(|line| line.split('#').next().unwrap());
    lines.flat_map(str::split_whitespace).map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect()
}

const CLUSTER: Uuid = Uuid([9; 16]);

fn hello() -> Hello {
    Hello { versions: (1, 1), cluster: CLUSTER, from: NodeId(1), to: NodeId(2) }
}

/// By a server of version 2 to a client of version 2.
fn offer() -> Welcome {
    let credits = Credits { requests: 64, bytes: 1 << 20 };
    Welcome { version: 2, node: NodeId(2), boot: 0x0807_0605_0403_0201, reactors: 4, credits }
}

/// Client and server that have greeted each other.
fn pair(credits: Credits) -> (Client, Server) {
    let mut client = Client::new(hello());
    let mut server = Server::new(CLUSTER, Welcome { credits, ..offer() });
    let mut out = vec![0; HEAD_BYTES_MAX];
    let n = client.hello(&mut out);
    assert_eq!(server.handle_bytes(&out[..n]), Ok(n));
    let Ok(Some(ServerEvent::Hello(hello))) = server.message() else { panic!("no hello") };
    server.taken();
    let (n, taken) = server.welcome(&hello, false, &mut out);
    assert_eq!(taken, Ok(()));
    client.handle_bytes(&out[..n]).unwrap();
    assert!(matches!(client.take(), Ok(Some(ClientEvent::Welcome(_)))));
    (client, server)
}

fn payload_of(bytes: &[u8]) -> Payload {
    Payload { bytes: bytes.len() as u32, crc: if bytes.is_empty() { 0 } else { crc32c(bytes) } }
}

/// What stands behind one of the examples.
fn behind(request: &Request<'_>) -> Vec<u8> {
    pattern(fuzz::payload_bytes(request))
}

fn pattern(bytes: usize) -> Vec<u8> {
    (0..bytes as u32).map(|i| (i * 7 + 3) as u8).collect()
}

/// What the server reads out of one whole message.
fn asked(server: &mut Server, bytes: &[u8]) -> (Ticket, Request<'static>, u32) {
    assert_eq!(server.handle_bytes(bytes), Ok(bytes.len()));
    let Ok(Some(ServerEvent::Request(Asked { ticket, request, payload }))) = server.message() else {
        panic!("no request")
    };
    let request = match request {
        Request::Append { at, row, class, crcs } => {
            Request::Append { at, row, class, crcs: Box::leak(crcs.to_vec().into()) }
        }
        Request::Seal { at, rows, holes, crcs } => Request::Seal { at, rows, holes, crcs },
        Request::Allocate { at, scheme, class, filling } => Request::Allocate { at, scheme, class, filling },
        Request::Fence { at } => Request::Fence { at },
        Request::Read { at, row, rows } => Request::Read { at, row, rows },
        Request::Free { at } => Request::Free { at },
        Request::List { device, shard, from, bytes } => Request::List { device, shard, from, bytes },
        Request::RowCrcs { at } => Request::RowCrcs { at },
        Request::Ping { bytes } => Request::Ping { bytes },
        Request::Probe { device } => Request::Probe { device },
        Request::Claim { shard, epoch } => Request::Claim { shard, epoch },
        Request::Renew { shards } => Request::Renew { shards },
        Request::Release { shard, epoch } => Request::Release { shard, epoch },
        Request::Passes { wants } => Request::Passes { wants },
        Request::Forward { pass, shard, layer, command, offset, bytes } => {
            Request::Forward { pass, shard, layer, command, offset, bytes }
        }
    };
    server.taken();
    (ticket, request, payload)
}

#[test]
fn every_message_has_its_golden_bytes_both_ways() {
    let mut out = vec![0; HEAD_BYTES_MAX];
    let n = Client::new(hello()).hello(&mut out);
    assert_eq!(out[..n], golden!("v2", "hello"));
    for (versions, bytes) in [((1, 2), golden!("v2", "welcome")), ((1, 1), golden!("welcome"))] {
        let mut server = Server::new(CLUSTER, offer());
        let (n, _) = server.welcome(&Hello { versions, ..hello() }, false, &mut out);
        assert_eq!(out[..n], bytes);
    }
    let other = Hello { cluster: Uuid([8; 16]), ..hello() };
    let (n, refused) = Server::new(CLUSTER, offer()).welcome(&other, false, &mut out);
    assert_eq!((&out[..n], refused), (&golden!("refused")[..], Err(Refusal::Cluster)));

    let (mut client, mut server) = pair(offer().credits);
    let requests = [
        golden!("allocate"),
        golden!("append"),
        golden!("fence"),
        golden!("read"),
        golden!("seal"),
        golden!("free"),
        golden!("list"),
        golden!("row-crcs"),
        golden!("ping"),
        golden!("probe"),
        golden!("claim"),
        golden!("renew"),
        golden!("release"),
        golden!("v2", "passes"),
        golden!("v2", "forward"),
    ];
    let mut tickets = Vec::new();
    for (request, bytes) in fuzz::examples().iter().zip(&requests) {
        let payload = behind(request);
        let (_, n) = client.begin(request, payload_of(&payload), &mut out).unwrap();
        assert_eq!(&out[..n], bytes, "{request:?}");
        let (ticket, read, behind) = asked(&mut server, bytes);
        assert_eq!((&read, behind as usize), (request, payload.len()));
        assert_eq!(server.handle_payload(&payload), Ok(!payload.is_empty()));
        tickets.push(ticket);
    }
    let listed = ListedSlot {
        place: ColumnPlace { device: Uuid([0x11; 16]), slot: SlotIndex(77) },
        name: ColumnName {
            shard: ShardId(3),
            extent: ExtentId(0x1234_5678_9abc),
            column: ColumnIndex(4),
            nonce: Nonce([0x5a; 16]),
        },
        scheme: "4+2".parse().unwrap(),
        state: SlotState::Sealed,
        epoch: Epoch(9),
        rows: 512,
    };
    let report = DeviceReport {
        device: Uuid([0x11; 16]),
        reactor: 3,
        state: PeerDeviceState::Slow,
        slots_total: 1000,
        slots_used: 600,
        slots_reserved: 16,
        slots_kept: 8,
    };
    let (mut list, mut devices) = ([0; LIST_ENTRY_BYTES], [0; DEVICE_ENTRY_BYTES]);
    write_listed(&listed, &mut list);
    write_device(&report, &mut devices);
    let answers = [
        (0, Answer::Slot(SlotIndex(77)), golden!("answer-slot"), Vec::new()),
        (1, Answer::Failed(ColumnFault::Fenced), golden!("answer-fenced"), Vec::new()),
        (6, Answer::Listed { next: None }, golden!("answer-list"), list.to_vec()),
        (7, Answer::RowCrcs(vec![1, 2]), golden!("answer-row-crcs"), Vec::new()),
        (8, Answer::Pong, golden!("answer-ping"), devices.to_vec()),
        (10, Answer::Claimed(Claimed::Wait(Duration::from_millis(506))), golden!("answer-wait"), Vec::new()),
        (11, Answer::Renewed(vec![true, false]), golden!("answer-renewed"), Vec::new()),
        (13, Answer::Passes(vec![0x0102_0304_0506_0708, 0]), golden!("v2", "answer-passes"), Vec::new()),
        (14, Answer::Forwarded(Err(NotDone::NoPass)), golden!("v2", "answer-forwarded"), Vec::new()),
    ];
    let mut tickets: Vec<_> = tickets.into_iter().map(Some).collect();
    for (of, answer, bytes, payload) in answers {
        let ticket = tickets[of].take().unwrap();
        let n = server.answer(ticket, &answer, payload_of(&payload), &mut out);
        let mut whole = out[..n].to_vec();
        whole.extend(&payload);
        assert_eq!(whole, bytes, "{answer:?}");
        assert_eq!(client.handle_bytes(&bytes), Ok(n));
        let Ok(Some(ClientEvent::Answer { call, answer: read, .. })) = client.take() else { panic!() };
        assert_eq!((call.index(), &read), (of, &answer));
        client.handle_payload(&payload).unwrap();
        match answer {
            Answer::Listed { .. } => {
                let slots = read_list(listed.place.device, listed.name.shard, SlotIndex(8), &payload);
                assert_eq!(slots, Ok(vec![listed]));
            }
            Answer::Pong => assert_eq!(read_devices(&payload), Ok(vec![report])),
            _ => {}
        }
    }
}

#[test]
fn done_has_its_golden_bytes() {
    let (mut client, mut server) = pair(offer().credits);
    let mut out = vec![0; HEAD_BYTES_MAX];
    let begun: Vec<_> = fuzz::examples()
        .iter()
        .take(2)
        .map(|r| {
            let payload = behind(r);
            let (_, n) = client.begin(r, payload_of(&payload), &mut out).unwrap();
            let ticket = asked(&mut server, &out[..n]).0;
            server.handle_payload(&payload).unwrap();
            ticket
        })
        .collect();
    let n = server.answer(begun.into_iter().nth(1).unwrap(), &Answer::Done, Payload::NONE, &mut out);
    assert_eq!(out[..n], golden!("answer-done"));
}

#[test]
fn a_newer_client_and_an_older_server_speak_the_version_that_both_know() {
    let mut out = vec![0; HEAD_BYTES_MAX];
    for (versions, expected) in
        [((1, 1), Ok(1)), ((1, 9), Ok(2)), ((2, 3), Ok(2)), ((3, 9), Err(Refusal::Version))]
    {
        let mut server = Server::new(CLUSTER, offer());
        let (n, taken) = server.welcome(&Hello { versions, ..hello() }, false, &mut out);
        assert_eq!(taken, expected.map(drop), "{versions:?}");
        let mut client = Client::new(hello());
        client.handle_bytes(&out[..n]).unwrap();
        match expected {
            Ok(version) => {
                let welcome = Welcome { version, ..offer() };
                assert_eq!(client.take(), Ok(Some(ClientEvent::Welcome(welcome))));
            }
            Err(why) => assert_eq!(client.take(), Ok(Some(ClientEvent::Refused(why)))),
        }
    }
    // What a later Hello says behind today's fields is passed over.
    let mut longer = golden!("hello");
    longer.truncate(longer.len() - 4);
    longer.extend([1, 2, 3, 4, 5]);
    let bytes = longer.len() as u16 + 4;
    longer[2..4].copy_from_slice(&bytes.to_le_bytes());
    let crc = crc32c(&longer);
    longer.extend(crc.to_le_bytes());
    let mut server = Server::new(CLUSTER, offer());
    server.handle_bytes(&longer).unwrap();
    assert_eq!(server.message(), Ok(Some(ServerEvent::Hello(hello()))));
}

#[test]
fn what_version_1_does_not_have_is_neither_asked_nor_taken() {
    let (mut new, _) = pair(offer().credits);
    let mut out = vec![0; HEAD_BYTES_MAX];
    // An old server welcomes a new client.
    let mut client = Client::new(hello());
    client.handle_bytes(&golden!("welcome")).unwrap();
    assert!(matches!(client.take(), Ok(Some(ClientEvent::Welcome(welcome))) if welcome.version == 1));
    for request in fuzz::examples() {
        let payload = payload_of(&behind(&request));
        let begun = client.begin(&request, payload, &mut out).map(drop);
        let is_old = request.version() == 1;
        assert_eq!(begun, if is_old { Ok(()) } else { Err(Begin::NotSpoken) }, "{request:?}");
        // An old client said hello to a new server.
        let mut server = Server::new(CLUSTER, offer());
        server.handle_bytes(&golden!("hello")).unwrap();
        let Ok(Some(ServerEvent::Hello(old))) = server.message() else { panic!("no hello") };
        server.taken();
        assert_eq!(server.welcome(&old, false, &mut out).1, Ok(()));
        let (_, n) = new.begin(&request, payload, &mut out).unwrap();
        server.handle_bytes(&out[..n]).unwrap();
        assert_eq!(server.message().is_ok(), is_old, "{request:?}");
    }
}

#[test]
fn hellos_of_others_are_refused_with_the_reason() {
    let mut out = vec![0; HEAD_BYTES_MAX];
    let mut ask = |hello: Hello, busy| Server::new(CLUSTER, offer()).welcome(&hello, busy, &mut out).1;
    assert_eq!(ask(hello(), false), Ok(()));
    assert_eq!(ask(Hello { cluster: Uuid([1; 16]), ..hello() }, false), Err(Refusal::Cluster));
    assert_eq!(ask(Hello { to: NodeId(3), ..hello() }, false), Err(Refusal::Node));
    assert_eq!(ask(hello(), true), Err(Refusal::Busy));
}

fn read_request() -> Request<'static> {
    Request::Read { at: Target::default(), row: RowIndex(0), rows: 1 }
}

fn append(rows: usize) -> (Request<'static>, Payload) {
    let crcs = vec![0; 4 * rows].leak();
    let class = peristyle_cluster::WriteClass::User;
    let bytes = vec![0; rows * BLOCK_BYTES];
    (Request::Append { at: Target::default(), row: RowIndex(0), class, crcs }, payload_of(&bytes))
}

#[test]
fn a_client_keeps_to_its_credits_and_one_request_is_always_let_through() {
    let (mut client, mut server) = pair(Credits { requests: 2, bytes: 8192 });
    let mut out = vec![0; HEAD_BYTES_MAX];
    let (large, payload) = append(3);
    let (_, n) = client.begin(&large, payload, &mut out).unwrap();
    let (ticket, _, bytes) = asked(&mut server, &out[..n]);
    server.handle_payload(&vec![0; bytes as usize]).unwrap();
    let (small, one) = append(1);
    assert_eq!(client.begin(&small, one, &mut out).unwrap_err(), Begin::NoCredit, "bytes");
    client.begin(&read_request(), Payload::NONE, &mut out).unwrap();
    assert_eq!(
        client.begin(&read_request(), Payload::NONE, &mut out).unwrap_err(),
        Begin::NoCredit,
        "requests"
    );
    let n = server.answer(ticket, &Answer::Done, Payload::NONE, &mut out);
    client.handle_bytes(&out[..n]).unwrap();
    client.take().unwrap();
    assert!(client.begin(&small, one, &mut out).is_ok());
}

#[test]
fn a_server_cuts_off_who_takes_more_than_was_granted() {
    let mut out = vec![0; HEAD_BYTES_MAX];
    // Granted more by this welcome than the server knows of.
    let (mut client, _) = pair(Credits { requests: 8, bytes: 1 << 20 });
    let (_, mut server) = pair(Credits { requests: 2, bytes: 8192 });
    let mut tell = |server: &mut Server, request: &Request<'_>, payload: Payload| {
        let (_, n) = client.begin(request, payload, &mut out).unwrap();
        server.handle_bytes(&out[..n]).unwrap();
        let error = server.message().err();
        server.taken();
        if error.is_none() && payload.bytes > 0 {
            server.handle_payload(&vec![0; payload.bytes as usize]).unwrap();
        }
        error
    };
    let (two, payload) = append(2);
    assert_eq!(tell(&mut server, &two, payload), None);
    assert_eq!(tell(&mut server, &two, payload), Some(Violation::Credits), "bytes");
    let (_, mut server) = pair(Credits { requests: 2, bytes: 8192 });
    // The client's next places are 2 and on: such numbers were not granted.
    assert_eq!(tell(&mut server, &read_request(), Payload::NONE), Some(Violation::Credits), "requests");
}

#[test]
fn a_number_that_is_in_use_and_an_answer_to_nothing_are_violations() {
    let (mut client, mut server) = pair(offer().credits);
    let mut out = vec![0; HEAD_BYTES_MAX];
    let (_, n) = client.begin(&read_request(), Payload::NONE, &mut out).unwrap();
    let ticket = asked(&mut server, &out[..n]).0;
    server.handle_bytes(&out[..n]).unwrap();
    assert_eq!(server.message(), Err(Violation::Number));
    let n = server.answer(ticket, &Answer::Failed(ColumnFault::Missing), Payload::NONE, &mut out);
    for expected in [Ok(()), Err(Violation::Number)] {
        client.handle_bytes(&out[..n]).unwrap();
        assert_eq!(client.take().map(|_| ()), expected, "answered twice");
    }
}

#[test]
fn an_answer_of_another_kind_or_of_another_length_than_was_asked_for_is_a_violation() {
    let read_at = |rows| Request::Read { at: Target::default(), row: RowIndex(0), rows };
    for (request, violation) in
        [(read_at(2), Violation::Payload), (Request::Ping { bytes: 4096 }, Violation::Kind(0x93))]
    {
        let (mut client, _) = pair(offer().credits);
        let (mut same, mut server) = pair(offer().credits);
        let mut out = vec![0; HEAD_BYTES_MAX];
        client.begin(&request, Payload::NONE, &mut out).unwrap();
        // The server is asked for one row.
        let (_, n) = same.begin(&read_at(1), Payload::NONE, &mut out).unwrap();
        let ticket = asked(&mut server, &out[..n]).0;
        let n = server.answer(ticket, &Answer::Rows, payload_of(&[0; 4096]), &mut out);
        client.handle_bytes(&out[..n]).unwrap();
        assert_eq!(client.take(), Err(violation));
    }
}

#[test]
fn every_flipped_bit_of_a_head_and_of_a_payload_is_noticed() {
    let (mut client, _) = pair(offer().credits);
    let mut out = vec![0; HEAD_BYTES_MAX];
    let (request, payload) = append(1);
    let (_, n) = client.begin(&request, payload, &mut out).unwrap();
    for bit in 0..n * 8 {
        let (_, mut server) = pair(offer().credits);
        let mut bytes = out[..n].to_vec();
        bytes[bit / 8] ^= 1 << (bit % 8);
        // A head that claims to be longer waits for more and is checked then.
        bytes.resize(HEAD_BYTES_MAX, 0);
        assert!(server.handle_bytes(&bytes).is_err(), "bit {bit}");
    }
    for bit in [0, 12345, BLOCK_BYTES * 8 - 1] {
        let (_, mut server) = pair(offer().credits);
        asked(&mut server, &out[..n]);
        let mut bytes = vec![0; BLOCK_BYTES];
        bytes[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(server.handle_payload(&bytes), Err(Violation::PayloadChecksum));
    }
}

/// A message with a right checksum over wrong fields.
fn altered(golden: Vec<u8>, at: usize, value: &[u8]) -> Vec<u8> {
    let mut bytes = golden;
    bytes[at..at + value.len()].copy_from_slice(value);
    let body = bytes.len() - 4;
    let crc = crc32c(&bytes[..body]);
    bytes[body..].copy_from_slice(&crc.to_le_bytes());
    bytes
}

#[test]
fn fields_that_cannot_be_are_named() {
    // Fields of a request begin at byte 16, those behind the column's name at 76.
    for (bytes, violation) in [
        (altered(golden!("fence"), 0, &[0x7f]), Violation::Kind(0x7f)),
        (altered(golden!("fence"), 0, &[1]), Violation::Kind(1)),
        (altered(golden!("fence"), 46, &[1]), Violation::Field("extent")),
        (altered(golden!("fence"), 48, &[20]), Violation::Field("column")),
        (altered(golden!("allocate"), 76, &[0]), Violation::Field("scheme")),
        (altered(golden!("allocate"), 76, &[2, 2]), Violation::Field("column")),
        (altered(golden!("allocate"), 78, &[4]), Violation::Field("class")),
        (altered(golden!("allocate"), 79, &[2]), Violation::Field("filling")),
        (altered(golden!("append"), 76, &511u16.to_le_bytes()), Violation::Field("row")),
        (altered(golden!("append"), 4, &4096u32.to_le_bytes()), Violation::Length),
        (altered(golden!("append"), 4, &100u32.to_le_bytes()), Violation::Payload),
        (altered(golden!("read"), 78, &[0]), Violation::Field("rows")),
        (altered(golden!("read"), 78, &[3]), Violation::Field("row")),
        (altered(golden!("read"), 4, &[1]), Violation::Payload),
        (altered(golden!("seal"), 76, &513u16.to_le_bytes()), Violation::Field("rows")),
        (altered(golden!("seal"), 80, &[3]), Violation::Field("checksums")),
        (altered(golden!("seal"), 78, &[0]), Violation::Length),
        (altered(golden!("seal"), 84, &[3]), Violation::Field("holes")),
        (altered(golden!("seal"), 86, &[0]), Violation::Field("holes")),
        (altered(golden!("renew"), 16, &[1, 1]), Violation::Field("shards")),
        (altered(golden!("renew"), 16, &[3]), Violation::Length),
        (altered(golden!("list"), 40, &[1, 0, 0]), Violation::Field("bytes")),
    ] {
        let (_, mut server) = pair(offer().credits);
        server.handle_bytes(&bytes).unwrap();
        assert_eq!(server.message(), Err(violation));
    }
    for (at, value, violation) in [
        (2, &[10, 0][..], Violation::Length),
        (2, &[1, 0x10], Violation::Length),
        (1, &[1], Violation::Field("zero")),
        (4, &[0, 0, 0x21, 0], Violation::Payload),
        (12, &[1], Violation::Payload),
    ] {
        let (_, mut server) = pair(offer().credits);
        assert_eq!(server.handle_bytes(&altered(golden!("fence"), at, value)), Err(violation));
    }
}

#[test]
fn nothing_but_a_hello_comes_first() {
    let mut server = Server::new(CLUSTER, offer());
    server.handle_bytes(&golden!("read")).unwrap();
    assert_eq!(server.message(), Err(Violation::Kind(0x13)));
    let mut client = Client::new(hello());
    client.handle_bytes(&golden!("answer-done")).unwrap();
    assert_eq!(client.take(), Err(Violation::Kind(0x91)));
    let mut out = vec![0; HEAD_BYTES_MAX];
    assert_eq!(client.begin(&read_request(), Payload::NONE, &mut out).unwrap_err(), Begin::NotReady);
}

#[test]
fn the_largest_messages_fit() {
    let (mut client, mut server) = pair(Credits { requests: 4, bytes: 8 << 20 });
    let mut out = vec![0; HEAD_BYTES_MAX];
    let at = Target::default();
    let holes: Vec<_> = (0..256).map(|i| (2 * i, 1)).collect();
    let seal = Request::Seal { at, rows: 512, holes, crcs: (0..512).collect() };
    let (_, n) = client.begin(&seal, Payload::NONE, &mut out).unwrap();
    assert_eq!(asked(&mut server, &out[..n]).1, seal);
    let (column, payload) = append(APPEND_ROWS_MAX.into());
    assert!(payload.bytes as usize + 4 * usize::from(APPEND_ROWS_MAX) <= PAYLOAD_BYTES_MAX as usize);
    let (_, n) = client.begin(&column, payload, &mut out).unwrap();
    let (ticket, ..) = asked(&mut server, &out[..n]);
    server.handle_payload(&vec![0; payload.bytes as usize]).unwrap();
    server.answer(ticket, &Answer::Done, Payload::NONE, &mut out);
}

proptest! {
    #[test]
    fn a_conversation_is_the_same_in_any_segments(cuts in prop::collection::vec(1usize..300, 1..200)) {
        let (mut client, mut server) = pair(offer().credits);
        let mut out = vec![0; HEAD_BYTES_MAX];
        let mut stream = Vec::new();
        for request in fuzz::examples() {
            let payload = behind(&request);
            let (_, n) = client.begin(&request, payload_of(&payload), &mut out).unwrap();
            stream.extend(&out[..n]);
            stream.extend(&payload);
        }
        let (mut seen, mut placed) = (0, Vec::<u8>::new());
        let mut rest = &stream[..];
        for cut in cuts.iter().cycle() {
            let (mut segment, later) = rest.split_at((*cut).min(rest.len()));
            rest = later;
            while !segment.is_empty() || server.next_input() == Input::Message {
                let used = match server.next_input() {
                    Input::Head { .. } => server.handle_bytes(segment).unwrap(),
                    Input::Message => {
                        let Ok(Some(ServerEvent::Request(asked))) = server.message() else { panic!() };
                        prop_assert_eq!(&asked.request, &fuzz::examples()[seen]);
                        seen += 1;
                        server.taken();
                        0
                    }
                    Input::Payload { bytes } => {
                        let n = segment.len().min(bytes as usize);
                        placed.extend(&segment[..n]);
                        server.handle_payload(&segment[..n]).unwrap();
                        n
                    }
                };
                segment = &segment[used..];
            }
            if rest.is_empty() {
                break;
            }
        }
        prop_assert_eq!(seen, fuzz::examples().len());
        prop_assert!(placed == [pattern(8192), pattern(1024)].concat());
    }

    #[test]
    fn no_bytes_make_either_end_panic(bytes in prop::collection::vec(any::<u8>(), 0..600), which in 0usize..13, at in 0usize..400) {
        fuzz::server(&bytes);
        fuzz::client(&bytes);
        let (asked, told) = fuzz::seeds();
        for mut seed in [asked[which].clone(), told[which % told.len()].clone()] {
            for (i, byte) in bytes.iter().take(3).enumerate() {
                let place = (at + i) % seed.len();
                seed[place] = *byte;
            }
            fuzz::server(&seed);
            fuzz::client(&seed);
        }
    }
}

#[test]
fn our_own_conversations_reach_their_end() {
    let (asked, told) = fuzz::seeds();
    asked.iter().for_each(|seed| fuzz::server(seed));
    told.iter().for_each(|seed| fuzz::client(seed));
}
