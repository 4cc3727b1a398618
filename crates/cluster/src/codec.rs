//! The bytes of a shard record, format version 1. Little-endian.
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 8 | magic `PERISHRD` |
//! | 8 | 2 | format version, 1 |
//! | 10 | 2 | flags: bit 0 = there is a checkpoint; others 0 |
//! | 12 | 4 | length of the record in bytes, checksum included |
//! | 16 | 4 | shard |
//! | 20 | 4 | owner |
//! | 24 | 8 | epoch |
//! | 32 | 8 | committed sequence number known |
//! | 40 | 8 | next extent |
//! | 48 | 8 | checkpoint: sequence number (0 without one, like the next four) |
//! | 56 | 8 | checkpoint: mark |
//! | 64 | 4 | checkpoint: blocks |
//! | 68 | 2 | checkpoint: root blocks r, at most 256 |
//! | 70 | 2 | open extents n, at most 128 |
//! | 72 | 12 r | root blocks: extent u48, index u16, CRC32C u32 |
//! | | | n open extents of 40 + 20 (k+m) bytes: extent u64, epoch u64, nonce 16, k u8, m u8, state u8 (0 open, 1 ready), 0 u8, 0 u32, then k+m times device 16, slot u32 |
//! | length - 4 | 4 | CRC32C of all before |

use crate::bytes::{Reader, Short};
use crate::record::*;
use core::fmt;
use peristyle_base::crc32c;
use peristyle_base::{ColumnPlace, Epoch, ExtentId, NodeId, Nonce, Scheme, Seq, ShardId, SlotIndex, Uuid};

const MAGIC: [u8; 8] = *b"PERISHRD";
const VERSION: u16 = 1;
const HEAD_BYTES: usize = 72;
const ROOT_BYTES: usize = 12;
const EXTENT_BYTES: usize = 40;
const COLUMN_PLACE_BYTES: usize = 20;
const CRC_BYTES: usize = 4;
const HAS_CHECKPOINT: u16 = 1;

// The widest record that the counts allow fits: so a count is the only thing that can be too large.
const _: () = assert!(
    HEAD_BYTES
        + ROOT_BYTES * ROOT_BLOCKS_MAX
        + OPEN_EXTENTS_MAX * (EXTENT_BYTES + COLUMN_PLACE_BYTES * Scheme::WIDTH_MAX)
        + CRC_BYTES
        <= RECORD_BYTES_MAX
);

/// Why bytes are not a shard record, or a record cannot be written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RecordError {
    /// More open extents or root blocks than a record may have.
    TooLarge,
    /// Cut short, too long, or its length field disagrees.
    Length,
    Magic,
    /// Written by a newer version of the program.
    Version(u16),
    Checksum,
    /// A field, named here, holds what no record may hold.
    Field(&'static str),
}

impl fmt::Display for RecordError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RecordError::TooLarge => {
                f.write_str("more open extents or root blocks than a shard record may have")
            }
            RecordError::Length => f.write_str("the shard record's length is wrong"),
            RecordError::Magic => f.write_str("these bytes are not a shard record"),
            RecordError::Version(v) => {
                write!(f, "the shard record has format version {v}, this program reads version {VERSION}")
            }
            RecordError::Checksum => f.write_str("the shard record's checksum is wrong"),
            RecordError::Field(name) => {
                write!(f, "the shard record's field `{name}` holds an impossible value")
            }
        }
    }
}
impl core::error::Error for RecordError {}

impl ShardRecord {
    /// Appends the record's bytes to `out`.
    ///
    /// # Panics — when the record breaks a rule that [`ShardRecord::validate`] checks, counts excepted: whoever
    /// made it has a bug, and a record that cannot be read back is a lost shard.
    pub fn encode(&self, out: &mut Vec<u8>) -> Result<(), RecordError> {
        match self.validate() {
            Ok(()) => {}
            Err(RecordError::TooLarge) => return Err(RecordError::TooLarge),
            Err(e) => panic!("{e}"),
        }
        let start = out.len();
        let empty = CheckpointPtr::default();
        let checkpoint = self.checkpoint.as_ref().unwrap_or(&empty);
        out.extend(MAGIC);
        out.extend(VERSION.to_le_bytes());
        out.extend(if self.checkpoint.is_some() { HAS_CHECKPOINT } else { 0 }.to_le_bytes());
        out.extend((self.encoded_bytes() as u32).to_le_bytes());
        out.extend(self.shard.0.to_le_bytes());
        out.extend(self.owner.0.to_le_bytes());
        out.extend(self.epoch.0.to_le_bytes());
        out.extend(self.committed.0.to_le_bytes());
        out.extend(self.next_extent.0.to_le_bytes());
        out.extend(checkpoint.seq.0.to_le_bytes());
        out.extend(checkpoint.mark.0.to_le_bytes());
        out.extend(checkpoint.blocks.to_le_bytes());
        out.extend((checkpoint.root.len() as u16).to_le_bytes());
        out.extend((self.open_set.len() as u16).to_le_bytes());
        for place in &checkpoint.root {
            out.extend(&place.extent.0.to_le_bytes()[..6]);
            out.extend(place.index.to_le_bytes());
            out.extend(place.crc.to_le_bytes());
        }
        self.open_set.iter().for_each(|e| encode_extent(e, out));
        let crc = crc32c(&out[start..]);
        out.extend(crc.to_le_bytes());
        assert_eq!(out.len() - start, self.encoded_bytes());
        Ok(())
    }

    /// Bytes that [`encode`](Self::encode) will write.
    pub fn encoded_bytes(&self) -> usize {
        let roots = self.checkpoint.as_ref().map_or(0, |c| c.root.len());
        let extents = self.open_set.iter().map(|e| EXTENT_BYTES + COLUMN_PLACE_BYTES * e.columns.len());
        HEAD_BYTES + ROOT_BYTES * roots + extents.sum::<usize>() + CRC_BYTES
    }

    /// Reads a record; accepts exactly what [`encode`](Self::encode) writes, and nothing after it.
    pub fn decode(bytes: &[u8]) -> Result<ShardRecord, RecordError> {
        if bytes.len() > RECORD_BYTES_MAX || bytes.len() < HEAD_BYTES + CRC_BYTES {
            return Err(RecordError::Length);
        }
        let (body, crc) = bytes.split_at(bytes.len() - CRC_BYTES);
        let mut r = Reader(body);
        if r.array::<8>()? != MAGIC {
            return Err(RecordError::Magic);
        }
        match r.u16()? {
            VERSION => {}
            other => return Err(RecordError::Version(other)),
        }
        let flags = r.u16()?;
        if r.u32()? as usize != bytes.len() {
            return Err(RecordError::Length);
        }
        if crc != crc32c(body).to_le_bytes() {
            return Err(RecordError::Checksum);
        }
        let record = decode_body(flags, &mut r)?;
        record.validate()?;
        Ok(record)
    }

    /// The rules that every record keeps, written or read.
    pub fn validate(&self) -> Result<(), RecordError> {
        let field = |ok: bool, name: &'static str| if ok { Ok(()) } else { Err(RecordError::Field(name)) };
        let roots = self.checkpoint.as_ref().map_or(0, |c| c.root.len());
        if self.open_set.len() > OPEN_EXTENTS_MAX || roots > ROOT_BLOCKS_MAX {
            return Err(RecordError::TooLarge);
        }
        field(self.next_extent <= ExtentId::MAX, "next_extent")?;
        if let Some(checkpoint) = &self.checkpoint {
            field(checkpoint.seq <= self.committed, "checkpoint.seq")?;
            field(checkpoint.mark <= self.next_extent, "checkpoint.mark")?;
            field(checkpoint.blocks as usize >= roots, "checkpoint.blocks")?;
            for place in &checkpoint.root {
                field(place.extent < self.next_extent, "checkpoint.root.extent")?;
                field(place.index < BlockPlace::INDEX_END, "checkpoint.root.index")?;
            }
        }
        field(self.open_set.is_sorted_by(|a, b| a.extent < b.extent), "open_set order")?;
        for extent in &self.open_set {
            field(extent.extent < self.next_extent, "open_set.extent")?;
            field(extent.epoch <= self.epoch, "open_set.epoch")?;
            field(extent.columns.len() == extent.scheme.width(), "open_set.columns")?;
            for (i, place) in extent.columns.iter().enumerate() {
                let twice = extent.columns[..i].iter().any(|p| p.device == place.device);
                field(!twice && !place.device.is_nil(), "open_set.columns.device")?;
            }
        }
        field(!self.gives_a_slot_twice(), "open_set.columns.slot")
    }

    fn gives_a_slot_twice(&self) -> bool {
        let places = || self.open_set.iter().flat_map(|e| e.columns.iter().map(|p| (p.device, p.slot)));
        let mut sorted: Vec<_> = places().collect();
        sorted.sort_unstable();
        sorted.windows(2).any(|w| w[0] == w[1])
    }
}

fn encode_extent(e: &OpenExtent, out: &mut Vec<u8>) {
    out.extend(e.extent.0.to_le_bytes());
    out.extend(e.epoch.0.to_le_bytes());
    out.extend(e.nonce.0);
    let state = match e.state {
        ExtentState::Open => 0,
        ExtentState::Ready => 1,
    };
    out.extend([e.scheme.k() as u8, e.scheme.m() as u8, state, 0, 0, 0, 0, 0]);
    for place in e.columns.iter() {
        out.extend(place.device.0);
        out.extend(place.slot.0.to_le_bytes());
    }
}

fn decode_body(flags: u16, r: &mut Reader) -> Result<ShardRecord, RecordError> {
    if flags & !HAS_CHECKPOINT != 0 {
        return Err(RecordError::Field("flags"));
    }
    let (shard, owner) = (ShardId(r.u32()?), NodeId(r.u32()?));
    let (epoch, committed, next_extent) = (Epoch(r.u64()?), Seq(r.u64()?), ExtentId(r.u64()?));
    let (seq, mark, blocks) = (Seq(r.u64()?), ExtentId(r.u64()?), r.u32()?);
    let (roots, extents) = (r.u16()? as usize, r.u16()? as usize);
    if roots > ROOT_BLOCKS_MAX || extents > OPEN_EXTENTS_MAX {
        return Err(RecordError::TooLarge);
    }
    let mut root = Vec::with_capacity(roots);
    for _ in 0..roots {
        let (extent, index, crc) = (r.u48()?, r.u16()?, r.u32()?);
        root.push(BlockPlace { extent: ExtentId(extent), index, crc });
    }
    let checkpoint = CheckpointPtr { seq, mark, blocks, root };
    if flags & HAS_CHECKPOINT == 0 && checkpoint != CheckpointPtr::default() {
        return Err(RecordError::Field("checkpoint"));
    }
    let checkpoint = (flags & HAS_CHECKPOINT != 0).then_some(checkpoint);
    let mut open_set = Vec::with_capacity(extents);
    for _ in 0..extents {
        open_set.push(decode_extent(r)?);
    }
    if !r.0.is_empty() {
        return Err(RecordError::Length);
    }
    Ok(ShardRecord { shard, epoch, owner, checkpoint, committed, next_extent, open_set })
}

fn decode_extent(r: &mut Reader) -> Result<OpenExtent, RecordError> {
    let (extent, epoch, nonce) = (ExtentId(r.u64()?), Epoch(r.u64()?), Nonce(r.array()?));
    let [k, m, state, zero] = r.array()?;
    let scheme = Scheme::new(k, m).ok_or(RecordError::Field("open_set.scheme"))?;
    let state = match state {
        0 => ExtentState::Open,
        1 => ExtentState::Ready,
        _ => return Err(RecordError::Field("open_set.state")),
    };
    if zero != 0 || r.u32()? != 0 {
        return Err(RecordError::Field("open_set spare"));
    }
    let mut places = [ColumnPlace::default(); Scheme::WIDTH_MAX];
    for place in &mut places[..scheme.width()] {
        *place = ColumnPlace { device: Uuid(r.array()?), slot: SlotIndex(r.u32()?) };
    }
    let columns = ColumnPlaces::new(&places[..scheme.width()]);
    Ok(OpenExtent { extent, scheme, nonce, epoch, state, columns })
}

impl From<Short> for RecordError {
    fn from(_: Short) -> RecordError {
        RecordError::Length
    }
}

/// Entry for a fuzzer: whatever decodes must encode to the same bytes. Without the right checksum nearly
/// nothing would decode, so the input's last four bytes and length field are corrected first.
pub fn fuzz_record(input: &[u8]) {
    let _ = ShardRecord::decode(input);
    if input.len() < HEAD_BYTES + CRC_BYTES || input.len() > RECORD_BYTES_MAX {
        return;
    }
    let mut bytes = input.to_vec();
    bytes[..8].copy_from_slice(&MAGIC);
    bytes[8..10].copy_from_slice(&VERSION.to_le_bytes());
    bytes[12..16].copy_from_slice(&(input.len() as u32).to_le_bytes());
    let body = bytes.len() - CRC_BYTES;
    let crc = crc32c(&bytes[..body]);
    bytes[body..].copy_from_slice(&crc.to_le_bytes());
    if let Ok(record) = ShardRecord::decode(&bytes) {
        let mut again = Vec::new();
        record.encode(&mut again).expect("what was decoded keeps the limits");
        assert_eq!(again, bytes);
    }
}
