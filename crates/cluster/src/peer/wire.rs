//! The bytes of heads and of what lists are made of (`docs/peer-protocol.md`). Little-endian.

use super::message::*;
use super::{
    APPEND_ROWS_MAX, FORWARD_BYTES_MAX, HEAD_BYTES_MAX, PAYLOAD_BYTES_MAX, Payload, RENEWALS_MAX,
    REQUESTS_MAX, Violation, WANTS_MAX,
};
use crate::bytes::{Reader, Short};
use crate::column::{AllocClass, ColumnFault, ListedSlot, SlotState, WriteClass};
use crate::lease::Claimed;
use crate::pass::Want;
use core::time::Duration;
use peristyle_base::{BLOCK_BYTES, COLUMN_ROWS, ColumnIndex, ColumnName, ColumnPlace, DeviceId, Epoch};
use peristyle_base::{ExtentId, LayerId, NodeId, Nonce, RowIndex, Scheme, ShardId, SlotIndex, Uuid, crc32c};

/// Offsets and lengths of forwarded commands are multiples of this.
const SECTOR: u64 = 512;
/// Kind, zero, length of the head, payload's length, number, payload's checksum.
pub(super) const COMMON_BYTES: usize = 16;
pub(super) const CRC_BYTES: usize = 4;
/// No head is shorter than this.
pub(super) const HEAD_BYTES_MIN: usize = COMMON_BYTES + CRC_BYTES;
const MAGIC: [u8; 8] = *b"PERIPEER";
/// An answer's kind is its request's with this bit.
const ANSWER: u8 = 0x80;

pub const DEVICE_ENTRY_BYTES: usize = 40;
pub const LIST_ENTRY_BYTES: usize = 48;

/// Kinds of messages.
pub(super) mod kind {
    pub const HELLO: u8 = 1;
    pub const WELCOME: u8 = 2;
    pub const REFUSED: u8 = 3;
    pub const ALLOCATE: u8 = 0x10;
    pub const APPEND: u8 = 0x11;
    pub const FENCE: u8 = 0x12;
    pub const READ: u8 = 0x13;
    pub const SEAL: u8 = 0x14;
    pub const FREE: u8 = 0x15;
    pub const LIST: u8 = 0x16;
    pub const ROW_CRCS: u8 = 0x17;
    pub const PING: u8 = 0x18;
    pub const PROBE: u8 = 0x19;
    pub const CLAIM: u8 = 0x1a;
    pub const RENEW: u8 = 0x1b;
    pub const RELEASE: u8 = 0x1c;
    pub const PASSES: u8 = 0x1d;
    pub const FORWARD: u8 = 0x1e;
}

impl From<Short> for Violation {
    fn from(_: Short) -> Violation {
        Violation::Length
    }
}

/// What stands first in every head.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Common {
    pub kind: u8,
    pub head_bytes: usize,
    pub payload: Payload,
    /// Of the request; 0 where there is none.
    pub number: u32,
}

impl Common {
    pub fn decode(bytes: &[u8; COMMON_BYTES]) -> Result<Common, Violation> {
        let mut r = Reader(bytes);
        let (kind, zero, head_bytes) = (r.u8()?, r.u8()?, usize::from(r.u16()?));
        let (payload, number, crc) = (r.u32()?, r.u32()?, r.u32()?);
        if !(HEAD_BYTES_MIN..=HEAD_BYTES_MAX).contains(&head_bytes) {
            return Err(Violation::Length);
        }
        if zero != 0 {
            return Err(Violation::Field("zero"));
        }
        if payload > PAYLOAD_BYTES_MAX || payload == 0 && crc != 0 {
            return Err(Violation::Payload);
        }
        Ok(Common { kind, head_bytes, payload: Payload { bytes: payload, crc }, number })
    }
}

/// Writes one head.
struct Head<'a> {
    out: &'a mut [u8],
    at: usize,
}

impl<'a> Head<'a> {
    /// # Panics — like everything here, when `out` is shorter than [`HEAD_BYTES_MAX`] and the head does not fit.
    fn new(kind: u8, number: u32, payload: Payload, out: &'a mut [u8]) -> Head<'a> {
        let mut head = Head { out, at: 0 };
        head.put(&[kind, 0, 0, 0]).u32(payload.bytes).u32(number).u32(payload.crc);
        head
    }
    fn put(&mut self, bytes: &[u8]) -> &mut Self {
        self.out[self.at..self.at + bytes.len()].copy_from_slice(bytes);
        self.at += bytes.len();
        self
    }
    fn u16(&mut self, n: u16) -> &mut Self {
        self.put(&n.to_le_bytes())
    }
    fn u32(&mut self, n: u32) -> &mut Self {
        self.put(&n.to_le_bytes())
    }
    fn u64(&mut self, n: u64) -> &mut Self {
        self.put(&n.to_le_bytes())
    }
    fn words(&mut self, words: &[u32]) -> &mut Self {
        words.iter().fold(self, |head, word| head.u32(*word))
    }
    fn target(&mut self, at: &Target) -> &mut Self {
        self.put(&at.place.device.0).u32(at.place.slot.0).u32(at.name.shard.0).u64(at.name.extent.0);
        self.put(&[at.name.column.0, 0, 0, 0]).put(&at.name.nonce.0).u64(at.epoch.0)
    }
    /// The head's length; its length field and checksum are written.
    fn finish(&mut self) -> usize {
        let bytes = self.at + CRC_BYTES;
        self.out[2..4].copy_from_slice(&(bytes as u16).to_le_bytes());
        let crc = crc32c(&self.out[..self.at]);
        self.u32(crc).at
    }
}

pub(super) fn hello(hello: &Hello, out: &mut [u8]) -> usize {
    let mut head = Head::new(kind::HELLO, 0, Payload::NONE, out);
    head.put(&MAGIC).u16(hello.versions.0).u16(hello.versions.1).put(&hello.cluster.0);
    head.u32(hello.from.0).u32(hello.to.0).finish()
}

pub(super) fn read_hello(body: &[u8]) -> Result<Hello, Violation> {
    let mut r = Reader(body);
    if r.array()? != MAGIC {
        return Err(Violation::Field("magic"));
    }
    let versions = (r.u16()?, r.u16()?);
    let hello = Hello { versions, cluster: Uuid(r.array()?), from: NodeId(r.u32()?), to: NodeId(r.u32()?) };
    // A later version's Hello may say more; nothing in front of it ever changes.
    field(versions.0 >= 1 && versions.0 <= versions.1, "versions")?;
    Ok(hello)
}

pub(super) fn welcome(welcome: &Welcome, out: &mut [u8]) -> usize {
    let mut head = Head::new(kind::WELCOME, 0, Payload::NONE, out);
    head.u16(welcome.version).u16(welcome.reactors).u32(welcome.node.0).u64(welcome.boot);
    head.u16(welcome.credits.requests).u16(0).u32(welcome.credits.bytes).finish()
}

pub(super) fn read_welcome(body: &[u8]) -> Result<Welcome, Violation> {
    let mut r = Reader(body);
    let (version, reactors, node, boot) = (r.u16()?, r.u16()?, NodeId(r.u32()?), r.u64()?);
    let (requests, zero, bytes) = (r.u16()?, r.u16()?, r.u32()?);
    end(&r)?;
    field(zero == 0, "spare")?;
    field((1..=REQUESTS_MAX).contains(&requests), "requests")?;
    field(reactors >= 1, "reactors")?;
    Ok(Welcome { version, node, boot, reactors, credits: Credits { requests, bytes } })
}

pub(super) fn refused(why: Refusal, out: &mut [u8]) -> usize {
    Head::new(kind::REFUSED, 0, Payload::NONE, out).put(&[why as u8, 0, 0, 0]).finish()
}

pub(super) fn read_refused(body: &[u8]) -> Result<Refusal, Violation> {
    let why = Reader(body).u8()?;
    Refusal::ALL.into_iter().find(|r| *r as u8 == why).ok_or(Violation::Field("refusal"))
}

pub(super) fn request(number: u32, request: &Request<'_>, payload: Payload, out: &mut [u8]) -> usize {
    let mut head = Head::new(kind_of(request), number, payload, out);
    match request {
        Request::Allocate { at, scheme, class, filling } => {
            let class = code(&ALLOC_CLASSES, class);
            head.target(at).put(&[scheme.k() as u8, scheme.m() as u8, class, u8::from(*filling)])
        }
        Request::Append { at, row, class, crcs } => {
            head.target(at).u16(row.0).put(&[code(&WRITE_CLASSES, class), 0]).put(crcs)
        }
        Request::Fence { at } | Request::Free { at } | Request::RowCrcs { at } => head.target(at),
        Request::Read { at, row, rows } => head.target(at).u16(row.0).u16(*rows),
        Request::Seal { at, rows, holes, crcs } => {
            head.target(at).u16(*rows).u16(holes.len() as u16).u16(crcs.len() as u16).u16(0);
            for &(first, count) in holes {
                head.u16(first).u16(count);
            }
            head.words(crcs);
            &mut head
        }
        Request::List { device, shard, from, bytes } => {
            head.put(&device.0).u32(shard.0).u32(from.0).u32(*bytes)
        }
        Request::Ping { bytes } => head.u32(*bytes),
        Request::Probe { device } => head.put(&device.0),
        Request::Claim { shard, epoch } | Request::Release { shard, epoch } => head.u32(shard.0).u64(epoch.0),
        Request::Renew { shards } => shards
            .iter()
            .fold(head.u32(shards.len() as u32), |head, (shard, epoch)| head.u32(shard.0).u64(epoch.0)),
        Request::Passes { wants } => wants.iter().fold(head.u32(wants.len() as u32), |head, want| {
            head.u32(want.shard.0).put(&want.host).u64(want.association).put(&[u8::from(want.take), 0, 0, 0])
        }),
        Request::Forward { pass, shard, layer, command, offset, bytes } => {
            head.u64(*pass).u32(shard.0).u32(layer.0).put(&[code(&COMMANDS, command), 0, 0, 0]);
            head.u64(*offset).u64(*bytes)
        }
    };
    head.finish()
}

pub(super) fn kind_of(request: &Request<'_>) -> u8 {
    match request {
        Request::Allocate { .. } => kind::ALLOCATE,
        Request::Append { .. } => kind::APPEND,
        Request::Fence { .. } => kind::FENCE,
        Request::Read { .. } => kind::READ,
        Request::Seal { .. } => kind::SEAL,
        Request::Free { .. } => kind::FREE,
        Request::List { .. } => kind::LIST,
        Request::RowCrcs { .. } => kind::ROW_CRCS,
        Request::Ping { .. } => kind::PING,
        Request::Probe { .. } => kind::PROBE,
        Request::Claim { .. } => kind::CLAIM,
        Request::Renew { .. } => kind::RENEW,
        Request::Release { .. } => kind::RELEASE,
        Request::Passes { .. } => kind::PASSES,
        Request::Forward { .. } => kind::FORWARD,
    }
}

pub(super) fn read_request<'a>(common: &Common, body: &'a [u8]) -> Result<Request<'a>, Violation> {
    let mut r = Reader(body);
    let request = match common.kind {
        kind::ALLOCATE => {
            let (at, [k, m, class, filling]) = (target(&mut r)?, r.array()?);
            let scheme = Scheme::new(k, m).ok_or(Violation::Field("scheme"))?;
            field(filling <= 1, "filling")?;
            field(at.name.column.0 < k + m, "column")?;
            Request::Allocate {
                at,
                scheme,
                class: decode(&ALLOC_CLASSES, class, "class")?,
                filling: filling == 1,
            }
        }
        kind::APPEND => {
            let (at, row, [class, zero]) = (target(&mut r)?, RowIndex(r.u16()?), r.array()?);
            field(zero == 0, "spare")?;
            let rows = common.payload.bytes as usize / BLOCK_BYTES;
            if rows == 0 || !(common.payload.bytes as usize).is_multiple_of(BLOCK_BYTES) {
                return Err(Violation::Payload);
            }
            field(rows <= APPEND_ROWS_MAX.into(), "rows")?;
            within_column(row, rows)?;
            let class = decode(&WRITE_CLASSES, class, "class")?;
            Request::Append { at, row, class, crcs: r.slice(4 * rows)? }
        }
        kind::FENCE => Request::Fence { at: target(&mut r)? },
        kind::READ => {
            let (at, row, rows) = (target(&mut r)?, RowIndex(r.u16()?), r.u16()?);
            field(rows > 0, "rows")?;
            within_column(row, rows.into())?;
            Request::Read { at, row, rows }
        }
        kind::SEAL => {
            let (at, rows) = (target(&mut r)?, r.u16()?);
            let (holes, crcs, zero) = (usize::from(r.u16()?), usize::from(r.u16()?), r.u16()?);
            field(rows <= COLUMN_ROWS && zero == 0, "rows")?;
            field(holes <= usize::from(COLUMN_ROWS) / 2, "holes")?;
            field(crcs == 0 || crcs == usize::from(rows), "checksums")?;
            let holes = (0..holes).map(|_| Ok((r.u16()?, r.u16()?))).collect::<Result<Vec<_>, Short>>()?;
            let crcs = (0..crcs).map(|_| r.u32()).collect::<Result<Vec<_>, Short>>()?;
            ascending(&holes, rows)?;
            Request::Seal { at, rows, holes, crcs }
        }
        kind::FREE => Request::Free { at: target(&mut r)? },
        kind::LIST => {
            let (device, shard, from) = (Uuid(r.array()?), ShardId(r.u32()?), SlotIndex(r.u32()?));
            Request::List { device, shard, from, bytes: room(&mut r, LIST_ENTRY_BYTES)? }
        }
        kind::ROW_CRCS => Request::RowCrcs { at: target(&mut r)? },
        kind::PING => Request::Ping { bytes: room(&mut r, DEVICE_ENTRY_BYTES)? },
        kind::PROBE => Request::Probe { device: Uuid(r.array()?) },
        kind::CLAIM => Request::Claim { shard: ShardId(r.u32()?), epoch: Epoch(r.u64()?) },
        kind::RELEASE => Request::Release { shard: ShardId(r.u32()?), epoch: Epoch(r.u64()?) },
        kind::RENEW => {
            let count = r.u32()? as usize;
            field(count <= RENEWALS_MAX, "shards")?;
            let one = |r: &mut Reader<'_>| Ok((ShardId(r.u32()?), Epoch(r.u64()?)));
            Request::Renew { shards: (0..count).map(|_| one(&mut r)).collect::<Result<_, Short>>()? }
        }
        kind::PASSES => {
            let count = r.u32()? as usize;
            field(count <= WANTS_MAX, "wants")?;
            Request::Passes { wants: (0..count).map(|_| want(&mut r)).collect::<Result<_, Violation>>()? }
        }
        kind::FORWARD => forward(&mut r, common.payload.bytes)?,
        other => return Err(Violation::Kind(other)),
    };
    end(&r)?;
    match request {
        Request::Append { .. } | Request::Forward { .. } => Ok(request),
        _ if common.payload.bytes == 0 => Ok(request),
        _ => Err(Violation::Payload),
    }
}

fn want(r: &mut Reader<'_>) -> Result<Want, Violation> {
    let (shard, host, association) = (ShardId(r.u32()?), r.array()?, r.u64()?);
    let [take, zeros @ ..] = r.array::<4>()?;
    field(take <= 1 && zeros == [0; 3], "take")?;
    Ok(Want { shard, host, association, take: take == 1 })
}

fn forward(r: &mut Reader<'_>, payload: u32) -> Result<Request<'static>, Violation> {
    let (pass, shard, layer) = (r.u64()?, ShardId(r.u32()?), LayerId(r.u32()?));
    let [command, zeros @ ..] = r.array::<4>()?;
    let (offset, bytes) = (r.u64()?, r.u64()?);
    let command = decode(&COMMANDS, command, "command")?;
    field(zeros == [0; 3], "spare")?;
    field(offset % SECTOR == 0 && bytes % SECTOR == 0 && offset.checked_add(bytes).is_some(), "bytes")?;
    field(!command.moves_data() || (SECTOR..=FORWARD_BYTES_MAX).contains(&bytes), "bytes")?;
    if u64::from(payload) != command.payload_bytes(bytes) {
        return Err(Violation::Payload);
    }
    Ok(Request::Forward { pass, shard, layer, command, offset, bytes })
}

/// Space that an answer's payload may take.
fn room(r: &mut Reader<'_>, entry: usize) -> Result<u32, Violation> {
    let bytes = r.u32()?;
    field((entry as u32..=PAYLOAD_BYTES_MAX).contains(&bytes), "bytes")?;
    Ok(bytes)
}

fn within_column(row: RowIndex, rows: usize) -> Result<(), Violation> {
    field(usize::from(row.0) + rows <= usize::from(COLUMN_ROWS), "row")
}

fn ascending(holes: &[(u16, u16)], rows: u16) -> Result<(), Violation> {
    let mut behind = 0u32;
    for &(first, count) in holes {
        field(count > 0 && u32::from(first) >= behind, "holes")?;
        behind = u32::from(first) + u32::from(count);
    }
    field(behind <= u32::from(rows), "holes")
}

pub(super) fn answer(of: u8, number: u32, answer: &Answer, payload: Payload, out: &mut [u8]) -> usize {
    let mut head = Head::new(of | ANSWER, number, payload, out);
    let status = match answer {
        Answer::Failed(fault) => 1 + code(&FAULTS, fault),
        _ => 0,
    };
    head.put(&[status, 0, 0, 0]);
    match answer {
        Answer::Failed(_) | Answer::Done | Answer::Rows | Answer::Pong => &mut head,
        Answer::Slot(slot) => head.u32(slot.0),
        Answer::Listed { next } => head.u32(next.map_or(u32::MAX, |slot| slot.0)),
        Answer::RowCrcs(crcs) => head.words(crcs),
        Answer::Claimed(claimed) => {
            let (outcome, wait, epoch) = match claimed {
                Claimed::Accepted => (0, 0, 0),
                Claimed::Wait(time) => {
                    (1, u32::try_from(time.as_micros().div_ceil(1000)).unwrap_or(u32::MAX), 0)
                }
                Claimed::Stale(epoch) => (2, 0, epoch.0),
            };
            head.u32(outcome).u32(wait).u64(epoch)
        }
        Answer::Renewed(granted) => granted.iter().fold(&mut head, |head, one| head.put(&[u8::from(*one)])),
        Answer::Passes(numbers) => numbers.iter().fold(&mut head, |head, number| head.u64(*number)),
        Answer::Forwarded(done) => {
            head.put(&[done.as_ref().err().map_or(0, |why| 1 + code(&NOT_DONE, why)), 0, 0, 0])
        }
    }
    .finish()
}

/// The answer to a request of kind `of`.
pub(super) fn read_answer(of: u8, common: &Common, body: &[u8]) -> Result<Answer, Violation> {
    if common.kind != of | ANSWER {
        return Err(Violation::Kind(common.kind));
    }
    let mut r = Reader(body);
    let [status, zeros @ ..] = r.array::<4>()?;
    field(zeros == [0; 3], "spare")?;
    let answer = match (status, of) {
        (0, kind::ALLOCATE) => Answer::Slot(SlotIndex(r.u32()?)),
        (0, kind::APPEND | kind::FENCE | kind::SEAL | kind::FREE | kind::PROBE | kind::RELEASE) => {
            Answer::Done
        }
        (0, kind::READ) => Answer::Rows,
        (0, kind::LIST) => {
            let next = r.u32()?;
            Answer::Listed { next: (next != u32::MAX).then_some(SlotIndex(next)) }
        }
        (0, kind::ROW_CRCS) => {
            let crcs = r.0.len() / 4;
            field(crcs <= usize::from(COLUMN_ROWS), "checksums")?;
            Answer::RowCrcs((0..crcs).map(|_| r.u32()).collect::<Result<_, Short>>()?)
        }
        (0, kind::PING) => Answer::Pong,
        (0, kind::CLAIM) => {
            let (outcome, wait, epoch) = (r.u32()?, r.u32()?, Epoch(r.u64()?));
            Answer::Claimed(match outcome {
                0 => Claimed::Accepted,
                1 => Claimed::Wait(Duration::from_millis(wait.into())),
                2 => Claimed::Stale(epoch),
                _ => return Err(Violation::Field("outcome")),
            })
        }
        (0, kind::RENEW) => {
            let granted = r.slice(r.0.len())?;
            field(granted.len() <= RENEWALS_MAX && granted.iter().all(|one| *one <= 1), "granted")?;
            Answer::Renewed(granted.iter().map(|one| *one == 1).collect())
        }
        (0, kind::PASSES) => {
            let numbers = r.0.len() / 8;
            field(numbers <= WANTS_MAX, "wants")?;
            Answer::Passes((0..numbers).map(|_| r.u64()).collect::<Result<_, Short>>()?)
        }
        (0, kind::FORWARD) => {
            let [why, zeros @ ..] = r.array::<4>()?;
            field(zeros == [0; 3], "spare")?;
            Answer::Forwarded(match why {
                0 => Ok(()),
                why => Err(decode(&NOT_DONE, why - 1, "why")?),
            })
        }
        (0, other) => return Err(Violation::Kind(other)),
        (fault, _) => Answer::Failed(decode(&FAULTS, fault - 1, "status")?),
    };
    end(&r)?;
    let has_payload =
        matches!(answer, Answer::Rows | Answer::Listed { .. } | Answer::Pong | Answer::Forwarded(Ok(())));
    if !has_payload && common.payload.bytes != 0 {
        return Err(Violation::Payload);
    }
    Ok(answer)
}

fn target(r: &mut Reader<'_>) -> Result<Target, Violation> {
    let place = ColumnPlace { device: Uuid(r.array()?), slot: SlotIndex(r.u32()?) };
    let (shard, extent, [column, zeros @ ..]) = (ShardId(r.u32()?), ExtentId(r.u64()?), r.array::<4>()?);
    let (nonce, epoch) = (Nonce(r.array()?), Epoch(r.u64()?));
    field(extent <= ExtentId::MAX, "extent")?;
    field(usize::from(column) < Scheme::WIDTH_MAX && zeros == [0; 3], "column")?;
    Ok(Target { place, name: ColumnName { shard, extent, column: ColumnIndex(column), nonce }, epoch })
}

/// Appends one entry of a Ping's answer.
pub fn write_device(report: &DeviceReport, out: &mut [u8; DEVICE_ENTRY_BYTES]) {
    let DeviceReport { device, reactor, state, .. } = *report;
    out[..16].copy_from_slice(&device.0);
    out[16..18].copy_from_slice(&reactor.to_le_bytes());
    out[18..24].copy_from_slice(&[state as u8, 0, 0, 0, 0, 0]);
    let slots = [report.slots_total, report.slots_used, report.slots_reserved, report.slots_kept];
    for (place, n) in out[24..].chunks_exact_mut(4).zip(slots) {
        place.copy_from_slice(&n.to_le_bytes());
    }
}

/// The devices in a Ping's answer.
pub fn read_devices(payload: &[u8]) -> Result<Vec<DeviceReport>, Violation> {
    entries(payload, DEVICE_ENTRY_BYTES, |r| {
        let (device, reactor, [state, zeros @ ..]): (DeviceId, _, [u8; 6]) =
            (Uuid(r.array()?), r.u16()?, r.array()?);
        field(zeros == [0; 5], "spare")?;
        Ok(DeviceReport {
            device,
            reactor,
            state: decode(&DEVICE_STATES, state, "state")?,
            slots_total: r.u32()?,
            slots_used: r.u32()?,
            slots_reserved: r.u32()?,
            slots_kept: r.u32()?,
        })
    })
}

/// Appends one entry of a List's answer.
pub fn write_listed(listed: &ListedSlot, out: &mut [u8; LIST_ENTRY_BYTES]) {
    let mut head = Head { out, at: 0 };
    head.u32(listed.place.slot.0)
        .u16(listed.rows)
        .put(&[listed.name.column.0, code(&SLOT_STATES, &listed.state)]);
    head.put(&[listed.scheme.k() as u8, listed.scheme.m() as u8, 0, 0, 0, 0, 0, 0]);
    head.u64(listed.name.extent.0).u64(listed.epoch.0).put(&listed.name.nonce.0);
}

/// The slots in a List's answer: of this device and shard, from slot `from` on, ascending.
pub fn read_list(
    device: DeviceId,
    shard: ShardId,
    from: SlotIndex,
    payload: &[u8],
) -> Result<Vec<ListedSlot>, Violation> {
    let list = entries(payload, LIST_ENTRY_BYTES, |r| {
        let (slot, rows, [column, state]) = (SlotIndex(r.u32()?), r.u16()?, r.array()?);
        let [k, m, zeros @ ..] = r.array::<8>()?;
        let (extent, epoch, nonce) = (ExtentId(r.u64()?), Epoch(r.u64()?), Nonce(r.array()?));
        let scheme = Scheme::new(k, m).ok_or(Violation::Field("scheme"))?;
        field(rows <= COLUMN_ROWS && zeros == [0; 6], "rows")?;
        field(usize::from(column) < scheme.width(), "column")?;
        field(extent <= ExtentId::MAX, "extent")?;
        let name = ColumnName { shard, extent, column: ColumnIndex(column), nonce };
        let state = decode(&SLOT_STATES, state, "state")?;
        Ok(ListedSlot { place: ColumnPlace { device, slot }, name, scheme, state, epoch, rows })
    })?;
    field(list.first().is_none_or(|first| first.place.slot >= from), "slot")?;
    field(list.is_sorted_by(|a, b| a.place.slot < b.place.slot), "slot")?;
    Ok(list)
}

fn entries<T>(
    payload: &[u8],
    bytes: usize,
    one: impl Fn(&mut Reader<'_>) -> Result<T, Violation>,
) -> Result<Vec<T>, Violation> {
    if !payload.len().is_multiple_of(bytes) {
        return Err(Violation::Payload);
    }
    payload.chunks_exact(bytes).map(|entry| one(&mut Reader(entry))).collect()
}

const ALLOC_CLASSES: [AllocClass; 4] =
    [AllocClass::User, AllocClass::Collection, AllocClass::Meta, AllocClass::Reappend];
const WRITE_CLASSES: [WriteClass; 5] =
    [WriteClass::User, WriteClass::Meta, WriteClass::Reappend, WriteClass::Repair, WriteClass::Collection];
const FAULTS: [ColumnFault; 5] =
    [ColumnFault::Fenced, ColumnFault::Missing, ColumnFault::Refused, ColumnFault::Full, ColumnFault::Device];
const COMMANDS: [Forwarded; 7] = [
    Forwarded::Read,
    Forwarded::Write,
    Forwarded::Zero,
    Forwarded::Compare,
    Forwarded::CompareAndWrite,
    Forwarded::Verify,
    Forwarded::Flush,
];
const NOT_DONE: [NotDone; 10] = [
    NotDone::NoPass,
    NotDone::Stopped,
    NotDone::NoSpace,
    NotDone::Unreadable,
    NotDone::Different,
    NotDone::OutOfRange,
    NotDone::ReadOnly,
    NotDone::MapFull,
    NotDone::NoSuchLayer,
    NotDone::Changed,
];
const SLOT_STATES: [SlotState; 3] = [SlotState::Open, SlotState::Sealed, SlotState::Filling];
const DEVICE_STATES: [PeerDeviceState; 4] =
    [PeerDeviceState::Closed, PeerDeviceState::Healthy, PeerDeviceState::Slow, PeerDeviceState::Failed];

/// A word's number on the wire: its place in its table.
fn code<T: PartialEq>(table: &[T], value: &T) -> u8 {
    table.iter().position(|t| t == value).expect("the table has all of them") as u8
}
fn decode<T: Copy>(table: &[T], code: u8, name: &'static str) -> Result<T, Violation> {
    table.get(usize::from(code)).copied().ok_or(Violation::Field(name))
}
fn field(ok: bool, name: &'static str) -> Result<(), Violation> {
    if ok { Ok(()) } else { Err(Violation::Field(name)) }
}
fn end(r: &Reader<'_>) -> Result<(), Violation> {
    if r.0.is_empty() { Ok(()) } else { Err(Violation::Length) }
}
