//! Reads of what lies in one piece on a device that answers at once: no task, no future, one look at the clock per
//! stage. Whatever is out of the ordinary goes the general way (`read.rs`), which counts and repairs.

use crate::columns::Columns;
use crate::map::{Lookup, Ptr};
use crate::shard::Shard;
use peristyle_base::{BLOCK_BYTES, ColumnName, ColumnPlace, Instant, LayerId, RowIndex, crc32c};
use peristyle_cluster::ShardStore;
use peristyle_rt::{Buf, View};

/// Blocks that are read at once at most: the reactor does nothing else meanwhile.
const BLOCKS_MAX: usize = 32;
const BLOCK: u64 = BLOCK_BYTES as u64;

/// Where consecutive blocks of a layer lie in consecutive rows of one column.
struct Piece {
    place: ColumnPlace,
    name: ColumnName,
    row: RowIndex,
    count: usize,
    crcs: [u32; BLOCKS_MAX],
}

impl<C: Columns, S: ShardStore + 'static> Shard<C, S> {
    /// As [`read`](Self::read), begun at `started`, where nothing has to be waited for. Says when it was done. `None`, and
    /// the shard has counted nothing: ask `read`.
    pub fn try_read(
        &self,
        layer: LayerId,
        offset: u64,
        bytes: u64,
        started: Instant,
    ) -> Option<(View, Instant)> {
        if !self.may_read(started) {
            return None;
        }
        if offset % BLOCK != 0 || bytes % BLOCK != 0 || bytes > BLOCKS_MAX as u64 * BLOCK {
            return None;
        }
        let piece = self.find_piece(layer, offset / BLOCK, (bytes / BLOCK) as usize)?;
        let mut buf = Buf::try_alloc(piece.count * BLOCK_BYTES)?;
        let found = peristyle_rt::now();
        let read = self.columns.try_read(piece.place, piece.name, piece.row, &mut buf, found)?;
        let is_sound = buf.chunks_exact(BLOCK_BYTES).zip(piece.crcs).all(|(block, crc)| crc32c(block) == crc);
        if !is_sound {
            return None;
        }
        let verified = peristyle_rt::now();
        let stats = &mut self.state.borrow_mut().stats;
        stats.lookup.pass(started, found);
        stats.read_columns.pass(found, verified);
        stats.column_read.pass(found, read);
        stats.verify.pass(read, verified);
        Some((buf.freeze(), verified))
    }

    /// A block that will be read in a moment: looks at what the read will look at, so that it is in the caches then. Several
    /// of these wait for memory at the same time; reads wait one after the other.
    pub fn expect_read(&self, layer: LayerId, offset: u64) {
        let state = &*self.state.borrow();
        if let Some(ptr) = state.map.peek(layer, offset / BLOCK)
            && let Some(extent) = state.extents.get(ptr.extent())
        {
            std::hint::black_box(extent.place(ptr.column().0 as usize));
        }
    }

    fn find_piece(&self, layer: LayerId, block: u64, count: usize) -> Option<Piece> {
        let state = &mut *self.state.borrow_mut();
        if state.stopped.is_some() || count == 0 {
            return None;
        }
        let layer = state.map.view(layer)?.layer;
        let map = &mut state.map;
        let mut find = |i: usize| match map.find(layer, block.checked_add(i as u64)?) {
            Ok(Lookup::Data(ptr)) => Some(ptr),
            // Zeros, beyond the layer's end, or a leaf has to be read.
            Ok(_) | Err(_) => None,
        };
        let first = find(0)?;
        let mut crcs = [0; BLOCKS_MAX];
        crcs[0] = first.crc();
        for (i, crc) in crcs.iter_mut().enumerate().take(count).skip(1) {
            *crc = find(i).filter(|next| lies_behind(first, *next, i))?.crc();
        }
        let extent = state.extents.get(first.extent())?;
        let column = first.column().0 as usize;
        let (place, name) = (extent.place(column), extent.name(self.id, column));
        Some(Piece { place, name, row: first.row(), count, crcs })
    }
}

/// `next` lies `rows` rows behind `first` in the same column.
fn lies_behind(first: Ptr, next: Ptr, rows: usize) -> bool {
    let same = first.extent() == next.extent() && first.column() == next.column();
    same && first.row().0 as usize + rows == next.row().0 as usize
}
