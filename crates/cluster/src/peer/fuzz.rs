//! Entries for fuzzers: bytes of the other end.

use super::*;
use crate::lease::Claimed;
use crate::pass::Want;
use peristyle_base::{LayerId, NodeId, RowIndex, ShardId, SlotIndex, Uuid, crc32c};

fn offer() -> Welcome {
    let credits = Credits { requests: 8, bytes: 64 << 10 };
    Welcome { version: VERSION, node: NodeId(2), boot: 7, reactors: 1, credits }
}

fn greeting() -> Hello {
    let versions = (VERSION_MIN, VERSION);
    Hello { versions, cluster: Uuid([9; 16]), from: NodeId(1), to: NodeId(2) }
}

/// Corrects the checksums of heads, without which nearly nothing would be read, unless the first byte is odd.
fn corrected(input: &[u8]) -> Vec<u8> {
    let Some((&mode, rest)) = input.split_first() else { return Vec::new() };
    let mut bytes = rest.to_vec();
    let mut at = 0;
    while mode & 1 == 0 && at + wire::HEAD_BYTES_MIN <= bytes.len() {
        let head = usize::from(u16::from_le_bytes([bytes[at + 2], bytes[at + 3]]));
        let payload =
            u32::from_le_bytes([bytes[at + 4], bytes[at + 5], bytes[at + 6], bytes[at + 7]]) as usize;
        if head < wire::HEAD_BYTES_MIN || at + head > bytes.len() {
            break;
        }
        let end = at + head + payload.min(bytes.len());
        if payload > 0 && end <= bytes.len() {
            let crc = crc32c(&bytes[at + head..end]);
            bytes[at + 12..at + 16].copy_from_slice(&crc.to_le_bytes());
        }
        let crc = crc32c(&bytes[at..at + head - wire::CRC_BYTES]);
        bytes[at + head - wire::CRC_BYTES..at + head].copy_from_slice(&crc.to_le_bytes());
        at = end;
    }
    bytes
}

/// A client that says anything to a server which answers everything at once.
pub fn server(input: &[u8]) {
    let bytes = corrected(input);
    let mut server = Server::new(Uuid([9; 16]), offer());
    let (mut rest, mut out, mut waiting) = (&bytes[..], vec![0; HEAD_BYTES_MAX], None);
    loop {
        let step = match server.next_input() {
            Input::Head { .. } if rest.is_empty() => return,
            Input::Head { .. } => server.handle_bytes(rest).map(|used| rest = &rest[used..]),
            Input::Message => heard(&mut server, &mut out, &mut waiting),
            Input::Payload { bytes } => {
                let n = rest.len().min(bytes as usize);
                if n == 0 {
                    return;
                }
                let (now, later) = rest.split_at(n);
                rest = later;
                server.handle_payload(now).map(|_| ())
            }
        };
        if step.is_err() {
            return;
        }
        if let (Input::Head { .. }, Some(ticket)) = (server.next_input(), waiting.take()) {
            server.answer(ticket, &Answer::Done, Payload::NONE, &mut out);
            assert_eq!(server.in_flight(), 0);
        }
    }
}

fn heard(server: &mut Server, out: &mut [u8], waiting: &mut Option<Ticket>) -> Result<(), Violation> {
    let hello = match server.message()?.expect("a message is there") {
        ServerEvent::Hello(hello) => Some(hello),
        ServerEvent::Request(asked) => {
            // What was read is written again as it was.
            let payload = Payload { bytes: asked.payload, crc: 0 };
            let bytes = wire::request(1, &asked.request, payload, out);
            let again = out[..bytes].to_vec();
            let common =
                wire::Common::decode(again.first_chunk().expect("a head")).unwrap_or_else(|e| panic!("{e}"));
            let body = &again[wire::COMMON_BYTES..bytes - wire::CRC_BYTES];
            assert_eq!(wire::read_request(&common, body).as_ref(), Ok(&asked.request));
            *waiting = Some(asked.ticket);
            None
        }
    };
    server.taken();
    match hello.map(|hello| server.welcome(&hello, false, out).1) {
        Some(Err(_)) => Err(Violation::Kind(0)), // refused: it closes
        _ => Ok(()),
    }
}

/// A server that says anything to a client with one request of each kind in flight.
pub fn client(input: &[u8]) {
    let bytes = corrected(input);
    let mut client = Client::new(greeting());
    let mut out = vec![0; HEAD_BYTES_MAX];
    let n = wire::welcome(&offer(), &mut out);
    client.handle_bytes(&out[..n]).expect("our own welcome is right");
    client.take().expect("our own welcome is right");
    for request in [
        Request::Read { at: Target::default(), row: RowIndex(3), rows: 2 },
        Request::List { device: Uuid([1; 16]), shard: ShardId(0), from: SlotIndex(0), bytes: 4096 },
        Request::RowCrcs { at: Target::default() },
        Request::Ping { bytes: 4096 },
        Request::Claim { shard: ShardId(0), epoch: peristyle_base::Epoch(1) },
        Request::Renew { shards: vec![(ShardId(0), peristyle_base::Epoch(1))] },
        Request::Passes {
            wants: vec![Want { shard: ShardId(0), host: [1; 16], association: 1, take: true }],
        },
        forward(Forwarded::Read),
    ] {
        client.begin(&request, Payload::NONE, &mut out).expect("it may ask eight times");
    }
    let mut rest = &bytes[..];
    loop {
        let step = match client.next_input() {
            Input::Head { .. } if rest.is_empty() => return,
            Input::Head { .. } => client.handle_bytes(rest).map(|used| rest = &rest[used..]),
            Input::Message => client.take().map(|_| ()),
            Input::Payload { bytes } => {
                let n = rest.len().min(bytes as usize);
                if n == 0 {
                    return;
                }
                let (now, later) = rest.split_at(n);
                let _ = (read_devices(now), read_list(Uuid([1; 16]), ShardId(0), SlotIndex(0), now));
                rest = later;
                client.handle_payload(now).map(|_| ())
            }
        };
        if step.is_err() {
            return;
        }
    }
}

fn forward(command: Forwarded) -> Request<'static> {
    let (shard, layer) = (ShardId(3), LayerId(6));
    Request::Forward { pass: 0x0102_0304_0506_0708, shard, layer, command, offset: 4096, bytes: 512 }
}

/// Conversations of our own: whole, as the client says it and as the server does.
pub fn seeds() -> (Vec<Vec<u8>>, Vec<Vec<u8>>) {
    let mut out = vec![0; HEAD_BYTES_MAX];
    let mut said = vec![0];
    let n = wire::hello(&greeting(), &mut out);
    said.extend(&out[..n]);
    let hello = said.clone();
    let mut asked = vec![hello.clone()];
    for (number, request) in examples().iter().enumerate() {
        let payload = vec![7; payload_bytes(request)];
        let crc = if payload.is_empty() { 0 } else { crc32c(&payload) };
        let n =
            wire::request(number as u32 & 7, request, Payload { bytes: payload.len() as u32, crc }, &mut out);
        let mut one = hello.clone();
        one.extend(&out[..n]);
        one.extend(&payload);
        asked.push(one);
    }
    let mut told = Vec::new();
    for (of, number, answer, payload) in [
        (wire::kind::READ, 0x1_0000, Answer::Rows, 8192),
        (wire::kind::LIST, 0x1_0001, Answer::Listed { next: None }, LIST_ENTRY_BYTES as u32),
        (wire::kind::ROW_CRCS, 0x1_0002, Answer::RowCrcs(vec![1, 2, 3]), 0),
        (wire::kind::PING, 0x1_0003, Answer::Pong, DEVICE_ENTRY_BYTES as u32),
        (wire::kind::CLAIM, 0x1_0004, Answer::Claimed(Claimed::Stale(peristyle_base::Epoch(7))), 0),
        (wire::kind::RENEW, 0x1_0005, Answer::Renewed(vec![true, false]), 0),
        (wire::kind::PASSES, 0x1_0006, Answer::Passes(vec![5, 0]), 0),
        (wire::kind::FORWARD, 0x1_0007, Answer::Forwarded(Ok(())), 512),
        (wire::kind::FORWARD, 0x1_0007, Answer::Forwarded(Err(NotDone::Different)), 0),
        (wire::kind::READ, 0x1_0000, Answer::Failed(crate::ColumnFault::Missing), 0),
    ] {
        let n = wire::answer(of, number, &answer, Payload { bytes: payload, crc: 0 }, &mut out);
        let mut one = vec![0];
        one.extend(&out[..n]);
        one.resize(one.len() + payload as usize, 0);
        told.push(one);
    }
    (asked, told)
}

/// Bytes behind one of the [`examples`].
pub fn payload_bytes(request: &Request<'_>) -> usize {
    match request {
        Request::Append { crcs, .. } => crcs.len() * 1024,
        Request::Forward { command, bytes, .. } => command.payload_bytes(*bytes) as usize,
        _ => 0,
    }
}

/// One request of each kind.
pub fn examples() -> Vec<Request<'static>> {
    use crate::{AllocClass, WriteClass};
    use peristyle_base::{ColumnIndex, ColumnName, ColumnPlace, Epoch, ExtentId, Nonce, Scheme};
    let name = ColumnName {
        shard: ShardId(3),
        extent: ExtentId(0x1234_5678_9abc),
        column: ColumnIndex(4),
        nonce: Nonce([0x5a; 16]),
    };
    let place = ColumnPlace { device: Uuid([0x11; 16]), slot: SlotIndex(77) };
    let at = Target { place, name, epoch: Epoch(9) };
    let scheme = Scheme::new(4, 2).expect("4+2 is a scheme");
    vec![
        Request::Allocate { at, scheme, class: AllocClass::Collection, filling: true },
        Request::Append { at, row: RowIndex(5), class: WriteClass::Repair, crcs: &[1, 2, 3, 4, 5, 6, 7, 8] },
        Request::Fence { at },
        Request::Read { at, row: RowIndex(510), rows: 2 },
        Request::Seal { at, rows: 4, holes: vec![(1, 2)], crcs: vec![10, 11, 12, 13] },
        Request::Free { at },
        Request::List { device: place.device, shard: ShardId(3), from: SlotIndex(8), bytes: 65536 },
        Request::RowCrcs { at },
        Request::Ping { bytes: 4096 },
        Request::Probe { device: place.device },
        Request::Claim { shard: ShardId(3), epoch: Epoch(9) },
        Request::Renew { shards: vec![(ShardId(3), Epoch(9)), (ShardId(4), Epoch(1))] },
        Request::Release { shard: ShardId(3), epoch: Epoch(9) },
        Request::Passes {
            wants: vec![
                Want { shard: ShardId(3), host: [0x21; 16], association: 0x5_0000_0007, take: true },
                Want { shard: ShardId(4), host: [0x22; 16], association: 8, take: false },
            ],
        },
        forward(Forwarded::CompareAndWrite),
    ]
}
