//! What a device was asked to do, by purpose, and how long it took: counters of one reactor, copied out on request.

use crate::slot::Usage;
use peristyle_base::stage::{Stage, StageSnapshot};
use peristyle_base::{DeviceId, Instant};

/// On whose behalf rows are appended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(u8)]
pub enum WriteClass {
    /// Frames with a host's writes.
    #[default]
    User = 0,
    /// Checkpoints, map blocks, events.
    Meta = 1,
    /// Blocks that collection moves.
    Collection = 2,
    /// Rebuild, rebalance, re-append.
    Repair = 3,
}

/// Why a device was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum WritePurpose {
    AppendUser = 0,
    AppendMeta = 1,
    AppendCollection = 2,
    AppendRepair = 3,
    /// Slot table pages, both copies.
    Table = 4,
    /// Row checksums at seal.
    Seal = 5,
    /// Zeros into slots and holes.
    Zero = 6,
    Label = 7,
}

impl WritePurpose {
    pub const ALL: [WritePurpose; 8] = [
        WritePurpose::AppendUser,
        WritePurpose::AppendMeta,
        WritePurpose::AppendCollection,
        WritePurpose::AppendRepair,
        WritePurpose::Table,
        WritePurpose::Seal,
        WritePurpose::Zero,
        WritePurpose::Label,
    ];
    pub fn name(self) -> &'static str {
        match self {
            WritePurpose::AppendUser => "append user",
            WritePurpose::AppendMeta => "append meta",
            WritePurpose::AppendCollection => "append collection",
            WritePurpose::AppendRepair => "append repair",
            WritePurpose::Table => "slot table",
            WritePurpose::Seal => "seal",
            WritePurpose::Zero => "zero",
            WritePurpose::Label => "label",
        }
    }
}

impl From<WriteClass> for WritePurpose {
    fn from(class: WriteClass) -> Self {
        match class {
            WriteClass::User => WritePurpose::AppendUser,
            WriteClass::Meta => WritePurpose::AppendMeta,
            WriteClass::Collection => WritePurpose::AppendCollection,
            WriteClass::Repair => WritePurpose::AppendRepair,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Counter {
    pub ops: u64,
    pub bytes: u64,
}

impl Counter {
    fn add(&mut self, bytes: u64) {
        self.ops += 1;
        self.bytes += bytes;
    }
}

#[derive(Default)]
pub(crate) struct Stats {
    writes: [Counter; WritePurpose::ALL.len()],
    reads: Counter,
    flushes: u64,
    at_once: u64,
    refused: u64,
    device_errors: u64,
    repaired_pages: u64,
    discards: Counter,
    discarded_bytes: u64,
    pub append_queue: Stage,
    pub append_service: Stage,
    pub read_queue: Stage,
    pub read_service: Stage,
    pub control: Stage,
}

impl Stats {
    pub fn wrote(&mut self, purpose: WritePurpose, bytes: u64) {
        self.writes[purpose as usize].add(bytes);
    }
    pub fn read(&mut self, bytes: u64) {
        self.reads.add(bytes);
    }
    pub fn appended_at_once(&mut self) {
        self.at_once += 1;
    }
    pub fn flushed(&mut self) {
        self.flushes += 1;
    }
    pub fn refused(&mut self) {
        self.refused += 1;
    }
    pub fn device_error(&mut self) {
        self.device_errors += 1;
    }
    pub fn discarded(&mut self, bytes: u64) {
        self.discards.add(bytes);
    }
    /// A freed slot was zeroed or discarded.
    pub fn returned(&mut self, bytes: u64) {
        self.discarded_bytes += bytes;
    }
    pub fn repaired(&mut self, pages: u64) {
        self.repaired_pages += pages;
    }

    pub fn snapshot(&self, device: DeviceId, usage: Usage, now: Instant) -> DeviceStats {
        DeviceStats {
            device,
            usage,
            writes: self.writes,
            reads: self.reads,
            flushes: self.flushes,
            at_once: self.at_once,
            refused: self.refused,
            device_errors: self.device_errors,
            repaired_pages: self.repaired_pages,
            discards: self.discards,
            discarded_bytes: self.discarded_bytes,
            append_queue: self.append_queue.snapshot(now),
            append_service: self.append_service.snapshot(now),
            read_queue: self.read_queue.snapshot(now),
            read_service: self.read_service.snapshot(now),
            control: self.control.snapshot(now),
        }
    }
}

/// A copy of one device's figures.
#[derive(Clone)]
pub struct DeviceStats {
    pub device: DeviceId,
    pub usage: Usage,
    /// By [`WritePurpose`].
    pub writes: [Counter; WritePurpose::ALL.len()],
    pub reads: Counter,
    pub flushes: u64,
    /// Appends that waited for nothing.
    pub at_once: u64,
    /// Requests that the comparison of name, epoch, state or rows refused.
    pub refused: u64,
    pub device_errors: u64,
    /// Pages of the slot table and labels whose copies differed when the device was opened.
    pub repaired_pages: u64,
    /// Of freed slots, those that the device could not zero by itself and was told to forget.
    pub discards: Counter,
    /// Of freed slots, given back to the medium: holes were punched, the device zeroed them by itself, or it was told to
    /// forget them.
    pub discarded_bytes: u64,
    /// Appends and reads: waiting for a place among those in flight, and at the device.
    pub append_queue: StageSnapshot,
    pub append_service: StageSnapshot,
    pub read_queue: StageSnapshot,
    pub read_service: StageSnapshot,
    /// Allocate, fence, seal and free, from request to answer.
    pub control: StageSnapshot,
}

impl DeviceStats {
    pub fn written(&self, purpose: WritePurpose) -> Counter {
        self.writes[purpose as usize]
    }
    /// All appends together.
    pub fn appended(&self) -> Counter {
        self.writes[..4]
            .iter()
            .fold(Counter::default(), |sum, c| Counter { ops: sum.ops + c.ops, bytes: sum.bytes + c.bytes })
    }
}
