//! The shard's extents: which are open, ready, sealed, and what the unsealed ones hold. Pure.

use crate::frame::Layout;
use crate::map::Ptr;
use crate::stream::Stream;
use peristyle_base::{
    COLUMN_ROWS, ColumnIndex, ColumnName, ColumnPlace, DeviceId, Epoch, ExtentId, Instant, Nonce, RowIndex,
    Scheme, ShardId,
};
use peristyle_cluster::ColumnPlaces;
use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};

/// Life of an extent as its owner sees it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ExtentPhase {
    /// In the open set, nothing appended.
    Ready,
    /// Frames are being appended.
    Open,
    /// No more frames are appended: it is full, or one of its columns failed. Waits to be sealed.
    Closed,
    /// Its columns are being sealed.
    Sealing,
    /// Opened under an earlier epoch; what it holds is decided, sealing is due.
    Old,
    /// Immutable.
    Sealed,
}

/// One extent.
pub struct Extent {
    pub id: ExtentId,
    pub scheme: Scheme,
    pub nonce: Nonce,
    pub epoch: Epoch,
    pub phase: ExtentPhase,
    pub places: ColumnPlaces,
    /// Row of the next frame.
    pub next_row: u16,
    /// Rows whose frames are committed (or finished, for checkpoint frames): where the extent is cut.
    pub committed_rows: u16,
    /// Frames of an unsealed extent, by row: holes are known from here, never from the device.
    pub frames: Vec<(u16, u16)>,
    /// In-flight frames in row order (indices of the frame slab).
    pub in_flight: VecDeque<u16>,
    /// Listed in the control store's record.
    pub in_record: bool,
    /// Columns that failed, could not be sealed, or that no device lists (their place is nil): bit per column.
    pub missing: u32,
    /// Columns that can never be sealed as they are, because they lack rows: a rebuild's work. Bit per column.
    pub lost: u32,
    /// Somebody is at work on its columns: one that missed its seal gets it, one is made anew, or all are freed. These
    /// exclude each other.
    pub completing: bool,
    /// Sealed columns in which rows were found that are not what they were: to be made anew. Bit per column.
    pub damaged: u32,
    /// Sealed columns from which a read got something else than it should have: to be looked at. Bit per column.
    pub suspected: u32,
    /// When all its columns were seen to be sound, or were sealed; for a scrub.
    pub verified_at: Instant,
    /// No column of it is made anew before: the last attempt failed.
    pub remake_at: Instant,
    /// Found with fewer columns than the devices that do not answer can explain.
    pub suspect: bool,
    /// Columns that no device lists although all that could answer did: given back, or replaced with their device.
    pub columns_gone: u8,
    /// No frame of it that counts holds a block. Known once it is sealed, or will be sealed without rows.
    pub empty: bool,
    /// Nothing refers to it: what is left of an extent that was never used, or that was being given back when
    /// its owner stopped.
    pub leftover: bool,
    /// Blocks of it that the map points at. A hint: before an extent is freed, its headers are asked (`space.rs`).
    pub live: u32,
    /// Map blocks of it that the durable checkpoint refers to, or the one that is being written.
    pub meta: u32,
    /// It takes no user frames: replay does without it, and it does not hold a checkpoint's mark back.
    pub aside: bool,
    /// Collection has moved what it held, or is at it.
    pub victim: bool,
    /// It holds what users wrote, and what soon dies: how long it lives is the measure of ages.
    pub hot: bool,
    /// When its blocks were written.
    pub birth: Birth,
}

/// When the blocks of an extent were written, on the clock of users' blocks (`collect.rs`): the mean over all of them says as
/// much as one time for each would.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Birth {
    sum: u64,
    blocks: u64,
    filled: u64,
}

impl Birth {
    /// So many blocks more, of this time, that lie here from now on.
    pub fn add(&mut self, blocks: u64, at: u64, now: u64) {
        self.sum = self.sum.saturating_add(at.saturating_mul(blocks));
        self.blocks += blocks;
        self.filled = now;
    }
    /// It has held blocks of volumes.
    pub fn is_known(&self) -> bool {
        self.blocks > 0
    }
    /// When its last blocks came: since then it has only lost some.
    pub fn filled(&self) -> u64 {
        self.filled
    }
    pub fn mean(&self) -> u64 {
        self.sum / self.blocks.max(1)
    }
}

impl Extent {
    pub fn new(
        id: ExtentId,
        scheme: Scheme,
        nonce: Nonce,
        epoch: Epoch,
        places: ColumnPlaces,
        phase: ExtentPhase,
    ) -> Extent {
        Extent {
            id,
            scheme,
            nonce,
            epoch,
            phase,
            places,
            next_row: 0,
            committed_rows: 0,
            frames: Vec::new(),
            in_flight: VecDeque::new(),
            in_record: false,
            missing: 0,
            lost: 0,
            completing: false,
            damaged: 0,
            suspected: 0,
            verified_at: Instant::ZERO,
            remake_at: Instant::ZERO,
            suspect: false,
            columns_gone: 0,
            empty: false,
            leftover: false,
            live: 0,
            meta: 0,
            aside: false,
            victim: false,
            hot: false,
            birth: Birth::default(),
        }
    }

    /// Takes the memory that appending frames will need: that itself allocates nothing.
    pub fn make_room(&mut self, in_flight_max: usize) {
        self.frames.reserve_exact(COLUMN_ROWS as usize);
        self.in_flight.reserve(in_flight_max + 4);
    }

    pub fn name(&self, shard: ShardId, column: usize) -> ColumnName {
        ColumnName { shard, extent: self.id, column: ColumnIndex(column as u8), nonce: self.nonce }
    }
    pub fn place(&self, column: usize) -> ColumnPlace {
        self.places[column]
    }
    pub fn set_place(&mut self, column: usize, place: ColumnPlace) {
        let mut places = self.places.to_vec();
        places[column] = place;
        self.places = ColumnPlaces::new(&places);
    }
    /// Bits of the columns that are sealed, on whatever device.
    pub fn sealed_columns(&self) -> u32 {
        ((1 << self.scheme.width()) - 1) & !self.missing
    }
    /// It is sealed, and the map does not point at it.
    pub fn is_dead(&self) -> bool {
        self.phase == ExtentPhase::Sealed && self.live == 0 && !self.leftover
    }
    /// It is dead, and has no block of the map either: the next checkpoint lets go of it.
    pub fn holds_nothing(&self) -> bool {
        self.is_dead() && self.meta == 0
    }
    /// One of its columns is on the device.
    pub fn is_on(&self, device: DeviceId) -> bool {
        self.places.iter().any(|place| place.device == device)
    }
    /// It is sealed, but a column that a device still has missed its seal.
    pub fn seal_is_due(&self) -> bool {
        self.phase == ExtentPhase::Sealed
            && !self.leftover
            && (0..self.scheme.width()).any(|c| self.missed_its_seal(c))
    }
    /// The column is not sealed, some device has it, and it may have all its rows.
    pub fn missed_its_seal(&self, column: usize) -> bool {
        (self.missing & !self.lost) >> column & 1 == 1 && !self.places[column].device.is_nil()
    }
    /// Bits of the columns that hold headers: column 0 and the parity columns.
    pub fn header_columns(&self) -> u32 {
        1 | (((1 << self.scheme.width()) - 1) & !((1 << self.scheme.k()) - 1))
    }
    pub fn layout_of(&self, frame: (u16, u16)) -> Layout {
        Layout { scheme: self.scheme, first_row: RowIndex(frame.0), blocks: frame.1 }
    }
    /// Its frames are known from first to last, and none of them holds a block.
    pub fn holds_no_block(&self) -> bool {
        let mut row = 0;
        for &frame in &self.frames {
            if frame != (row, 0) {
                return false;
            }
            row = self.layout_of(frame).end_row();
        }
        row > 0 && row == self.committed_rows
    }
    /// Blocks of the largest frame that still fits.
    pub fn blocks_left(&self) -> usize {
        let rows = (COLUMN_ROWS - self.next_row) as usize;
        rows.saturating_sub(1) * self.scheme.k()
    }
    /// The frame of an unsealed extent that covers a row.
    pub fn frame_at(&self, row: u16) -> Option<Layout> {
        let i = self.frames.partition_point(|f| f.0 <= row).checked_sub(1)?;
        let layout = self.layout_of(self.frames[i]);
        (row < layout.end_row()).then_some(layout)
    }
    /// Whether a column holds nothing at a row. `None`: the device is asked, because the column is sealed, so that
    /// its holes are zeros, or because the extent's frames are not known (then only checksums tell).
    pub fn is_hole(&self, column: usize, row: u16) -> Option<bool> {
        let sealed = self.phase == ExtentPhase::Sealed && self.missing >> column & 1 == 0;
        if sealed || self.frames.is_empty() {
            return None;
        }
        let Some(layout) = self.frame_at(row) else { return Some(true) };
        let written = layout.written(column).is_some_and(|(first, n)| (first..first + n).contains(&row));
        Some(!written)
    }
    /// Rows below the cut that a column was not given: `(first, count)`, ascending.
    pub fn holes(&self, column: usize) -> Vec<(u16, u16)> {
        let mut holes: Vec<(u16, u16)> = Vec::new();
        let mut expect = 0;
        let mut add = |first: u16, end: u16| {
            if first < end {
                match holes.last_mut() {
                    Some(last) if last.0 + last.1 == first => last.1 += end - first,
                    _ => holes.push((first, end - first)),
                }
            }
        };
        for &frame in self.frames.iter().take_while(|f| f.0 < self.committed_rows) {
            let layout = self.layout_of(frame);
            let (first, count) = layout.written(column).unwrap_or((layout.end_row(), 0));
            add(expect, first);
            expect = first + count;
            add(expect, layout.end_row());
            expect = layout.end_row();
        }
        add(expect, self.committed_rows);
        holes
    }
}

/// Wide extents hold frames of the pool's scheme, narrow ones those that would leave too many holes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Width {
    Wide = 0,
    Narrow = 1,
    /// From the slots that are kept back, while the pool is full: for frames that must not be refused.
    Reserve = 2,
    /// Wide ones for what collection moves, if need be from the slots that are kept back for it.
    Moved = 3,
}

/// All extents of the shard, by number.
#[derive(Default)]
pub struct Extents {
    /// Hashed the same way every time: the order of iteration must follow from the seed in simulation.
    items: HashMap<ExtentId, Extent, BuildHasherDefault<NumberHasher>>,
    /// What frames are appended to now, by [`Stream`].
    current: [Option<ExtentId>; Stream::COUNT],
    /// The stock, by [`Width`].
    pub ready: [VecDeque<ExtentId>; 4],
    /// Sealed extents without a block, and those of them that come back with the next checkpoint because they hold no
    /// block of the map either. Counted at a start, and kept from then on.
    pub dead: usize,
    pub gone: usize,
    /// Blocks that have died, over all extents: whoever found nothing to collect looks again when it has grown.
    pub deaths: u64,
    /// The last block of an extent that is sealed died, or an extent without one was sealed, since this was unset.
    pub died: bool,
}

/// Memory for so many extents at most: a hash table may be half empty, and a little more.
pub fn memory_bytes(extents: u64) -> u64 {
    extents * size_of::<(ExtentId, Extent)>() as u64 * 16 / 7
}

/// Numbers are given out one after the other, and looked up for each block that is overwritten.
#[derive(Default)]
pub struct NumberHasher(u64);

impl Hasher for NumberHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write_u64(&mut self, number: u64) {
        self.0 = number.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    }
    fn write(&mut self, _: &[u8]) {
        unreachable!("an extent's number is one u64")
    }
}

impl Extents {
    pub fn insert(&mut self, extent: Extent) {
        self.items.insert(extent.id, extent);
    }
    pub fn remove(&mut self, id: ExtentId) -> Option<Extent> {
        let extent = self.items.remove(&id);
        self.dead = self.dead.saturating_sub(usize::from(extent.as_ref().is_some_and(Extent::is_dead)));
        self.gone = self.gone.saturating_sub(usize::from(extent.as_ref().is_some_and(Extent::holds_nothing)));
        extent
    }
    pub fn get(&self, id: ExtentId) -> Option<&Extent> {
        self.items.get(&id)
    }
    pub fn get_mut(&mut self, id: ExtentId) -> Option<&mut Extent> {
        self.items.get_mut(&id)
    }
    pub fn count_dead(&mut self) {
        self.dead = self.items.values().filter(|e| e.is_dead()).count();
        self.gone = self.items.values().filter(|e| e.holds_nothing()).count();
    }
    /// # Panics — when the extent is not there: the caller holds its number from a live structure.
    pub fn at(&mut self, id: ExtentId) -> &mut Extent {
        self.items.get_mut(&id).expect("an extent that is referred to exists")
    }
    pub fn iter(&self) -> impl Iterator<Item = &Extent> {
        self.items.values()
    }
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Extent> {
        self.items.values_mut()
    }
    /// What a stream appends to now.
    pub fn current(&self, stream: Stream) -> Option<ExtentId> {
        self.current[stream.index()]
    }
    /// All that take frames now.
    pub fn all_current(&self) -> [Option<ExtentId>; Stream::COUNT] {
        self.current
    }
    pub fn set_current(&mut self, stream: Stream, id: ExtentId) {
        self.current[stream.index()] = Some(id);
    }
    /// The extent is no stream's any more.
    pub fn leave(&mut self, id: ExtentId) {
        self.current.iter_mut().filter(|current| **current == Some(id)).for_each(|current| *current = None);
    }
    pub fn len(&self) -> usize {
        self.items.len()
    }
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }
    pub fn reserve(&mut self, more: usize) {
        self.items.reserve(more);
    }
    /// The map points at so many more blocks of an extent. One that no device lists is not counted.
    pub fn add_live(&mut self, id: ExtentId, blocks: u32) {
        if let Some(extent) = self.items.get_mut(&id) {
            extent.live += blocks;
        }
    }
    /// A checkpoint has put one more map block there.
    pub fn add_meta(&mut self, ptr: Ptr) {
        if let Some(extent) = self.items.get_mut(&ptr.extent()) {
            self.gone = self.gone.saturating_sub(usize::from(extent.holds_nothing()));
            extent.meta += 1;
        }
    }
    /// What a checkpoint says of an extent. False when it is not there.
    pub fn restore_counts(&mut self, id: ExtentId, live: u32, meta: u32) -> bool {
        let extent = self.items.get_mut(&id);
        extent.map(|extent| (extent.live, extent.meta) = (live, meta)).is_some()
    }
    /// No durable checkpoint refers to a map block any more.
    pub fn drop_meta(&mut self, ptr: Ptr) {
        if let Some(extent) = self.items.get_mut(&ptr.extent()) {
            extent.meta = extent.meta.checked_sub(1).expect("counts follow the checkpoint");
            self.gone += usize::from(extent.holds_nothing());
        }
    }
    /// The map does not point at a block any more.
    pub fn drop_live(&mut self, ptr: Ptr) {
        self.bury(ptr);
    }
    /// The same, and when the blocks of its extent were written.
    pub fn bury(&mut self, ptr: Ptr) -> Option<Birth> {
        let extent = self.items.get_mut(&ptr.extent())?;
        extent.live = extent.live.checked_sub(1).expect("live counts follow the map");
        self.deaths += 1;
        if extent.is_dead() {
            self.died = true;
            self.dead += 1;
            self.gone += usize::from(extent.holds_nothing());
        }
        Some(extent.birth)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holes_are_what_frames_did_not_write() {
        let scheme = Scheme::new(4, 2).unwrap();
        let mut e = Extent::new(
            ExtentId(1),
            scheme,
            Nonce([0; 16]),
            Epoch(1),
            ColumnPlaces::new(&[]),
            ExtentPhase::Open,
        );
        // 5 blocks: 2 data rows, columns 2,2,1,0. 4 blocks: 1 data row, all columns.
        e.frames = vec![(0, 5), (3, 4)];
        e.committed_rows = 5;
        assert_eq!(e.holes(0), []);
        assert_eq!(e.holes(1), [(0, 1), (3, 1)]);
        assert_eq!(e.holes(2), [(0, 1), (2, 2)]);
        assert_eq!(e.holes(3), [(0, 4)]);
        assert_eq!(e.holes(4), []);
        assert_eq!(
            (e.is_hole(2, 1), e.is_hole(2, 2), e.is_hole(3, 4)),
            (Some(false), Some(true), Some(false))
        );
        // Cut after the first frame: the second is no part of the extent.
        e.committed_rows = 3;
        assert_eq!(e.holes(3), [(0, 3)]);
    }
}
