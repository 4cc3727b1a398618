//! Reads: look up, read each contiguous piece, verify, and reconstruct what is damaged or out of reach.

use crate::columns::Columns;
use crate::error::ShardError;
use crate::map::{Lookup, Ptr};
use crate::shard::Shard;
use peristyle_base::{BLOCK_BYTES, ColumnIndex, LayerId, RowIndex, Scheme, crc32c};
use peristyle_cluster::ShardStore;
use peristyle_ec::ColumnSet;
use peristyle_rt::{Buf, IoVec, View, sync::Notify};
use std::cell::RefCell;
use std::rc::Rc;

/// Blocks of one read at most (MDTS: 512 KiB).
pub const READ_BLOCKS_MAX: usize = 128;

/// A run of blocks that lies in consecutive rows of one column, or of zeros.
#[derive(Clone, Copy)]
struct Piece {
    /// First block, counted from the start of the read.
    at: u16,
    count: u16,
    /// `None`: zeros.
    ptr: Option<Ptr>,
}

/// State of a read of several pieces, used again without allocation.
pub(crate) struct Gather {
    pieces: Vec<(Piece, Option<View>)>,
    crcs: Vec<u32>,
    left: usize,
    failed: Option<ShardError>,
}

type SharedGather = Rc<(RefCell<Gather>, Notify)>;

thread_local! {
    static SPARE: RefCell<Vec<SharedGather>> = const { RefCell::new(Vec::new()) };
}

fn new_gather() -> SharedGather {
    SPARE.with(|s| s.borrow_mut().pop()).unwrap_or_else(|| {
        let gather = Gather {
            pieces: Vec::with_capacity(READ_BLOCKS_MAX),
            crcs: Vec::with_capacity(READ_BLOCKS_MAX),
            left: 0,
            failed: None,
        };
        Rc::new((RefCell::new(gather), Notify::default()))
    })
}

impl<C: Columns, S: ShardStore + 'static> Shard<C, S> {
    /// Reads `count` blocks of a layer, in order. The pieces are verified (invariant 8, Never unverified).
    pub async fn read_blocks(
        self: &Rc<Self>,
        layer: LayerId,
        block: u64,
        count: usize,
    ) -> Result<IoVec, ShardError> {
        assert!(count <= READ_BLOCKS_MAX, "the target cuts transfers at MDTS");
        let gather = new_gather();
        self.look_up(layer, block, count, &mut gather.0.borrow_mut())?;
        let pieces = gather.0.borrow().pieces.len();
        if pieces == 1 {
            // The common case needs no task.
            let piece = gather.0.borrow().pieces[0].0;
            let view = self.read_piece(piece, &gather).await;
            recycle(gather);
            return view.map(IoVec::from);
        }
        gather.0.borrow_mut().left = pieces;
        for i in 0..pieces {
            let (me, shared) = (self.clone(), gather.clone());
            peristyle_rt::spawn(async move {
                let piece = shared.0.borrow().pieces[i].0;
                let result = me.read_piece(piece, &shared).await;
                let g = &mut *shared.0.borrow_mut();
                match result {
                    Ok(view) => g.pieces[i].1 = Some(view),
                    Err(error) => g.failed = Some(error),
                }
                g.left -= 1;
                if g.left == 0 {
                    shared.1.notify_all();
                }
            });
        }
        gather.1.wait_until(|| gather.0.borrow().left == 0).await;
        let result = {
            let g = &mut *gather.0.borrow_mut();
            match g.failed {
                Some(error) => Err(error),
                None => {
                    let mut iov = IoVec::new();
                    g.pieces
                        .iter_mut()
                        .for_each(|(_, view)| iov.push(view.take().expect("all pieces have come")));
                    Ok(iov)
                }
            }
        };
        recycle(gather);
        result
    }

    fn look_up(
        &self,
        layer: LayerId,
        block: u64,
        count: usize,
        gather: &mut Gather,
    ) -> Result<(), ShardError> {
        let state = &mut *self.state.borrow_mut();
        if state.stopped.is_some() {
            return Err(ShardError::Stopped);
        }
        let now = peristyle_rt::now();
        state.stats.lookup.enter(now);
        gather.pieces.clear();
        gather.crcs.clear();
        gather.failed = None;
        for i in 0..count {
            let ptr = match state.map.lookup(layer, block + i as u64) {
                Lookup::Data(ptr) => Some(ptr),
                Lookup::Zero | Lookup::Absent => None,
            };
            gather.crcs.push(ptr.map_or(0, Ptr::crc));
            if let Some((last, _)) = gather.pieces.last_mut()
                && follows(last, ptr)
            {
                last.count += 1;
                continue;
            }
            gather.pieces.push((Piece { at: i as u16, count: 1, ptr }, None));
        }
        state.stats.lookup.leave(now, peristyle_rt::now());
        Ok(())
    }

    async fn read_piece(self: &Rc<Self>, piece: Piece, gather: &SharedGather) -> Result<View, ShardError> {
        let bytes = piece.count as usize * BLOCK_BYTES;
        let Some(ptr) = piece.ptr else { return Ok(Buf::zeroed(bytes).await.freeze()) };
        let buf = Buf::alloc(bytes).await;
        let (place, name) = {
            let state = self.state.borrow();
            let Some(extent) = state.extents.get(ptr.extent()) else { return Err(ShardError::Unreadable) };
            (extent.place(ptr.column().0 as usize), extent.name(self.id, ptr.column().0 as usize))
        };
        let started = peristyle_rt::now();
        self.state.borrow_mut().stats.column_read.enter(started);
        let (result, mut buf) = self.columns.read(place, name, ptr.row(), buf).await;
        let read = peristyle_rt::now();
        {
            let stats = &mut self.state.borrow_mut().stats;
            match result {
                Ok(()) => stats.column_read.leave(started, read),
                Err(_) => stats.column_read.leave_failed(started, read),
            }
            stats.verify.enter(read);
        }
        let good = |i: usize, block: &[u8]| {
            result.is_ok() && crc32c(block) == gather.0.borrow().crcs[piece.at as usize + i]
        };
        let bad: u128 = buf
            .chunks_exact(BLOCK_BYTES)
            .enumerate()
            .filter(|(i, block)| !good(*i, block))
            .fold(0, |set, (i, _)| set | 1 << i);
        self.state.borrow_mut().stats.verify.leave(read, peristyle_rt::now());
        if bad != 0 {
            self.repair(ptr, piece, bad, &mut buf, gather, result.is_ok()).await?;
        }
        Ok(buf.freeze())
    }

    /// Reconstructs the blocks of a piece whose bits are set in `bad`.
    async fn repair(
        self: &Rc<Self>,
        ptr: Ptr,
        piece: Piece,
        bad: u128,
        buf: &mut Buf,
        gather: &SharedGather,
        damaged: bool,
    ) -> Result<(), ShardError> {
        let started = peristyle_rt::now();
        {
            let stats = &mut self.state.borrow_mut().stats;
            stats.reconstruct.enter(started);
            match damaged {
                true => stats.damaged_blocks += bad.count_ones() as u64,
                false => stats.degraded_reads += 1,
            }
        }
        let mut result = Ok(());
        for i in (0..piece.count as usize).filter(|i| bad >> i & 1 == 1) {
            let crc = gather.0.borrow().crcs[piece.at as usize + i];
            let row = RowIndex(ptr.row().0 + i as u16);
            match self.reconstruct(ptr.extent(), ptr.column(), row, crc).await {
                Ok(block) => buf[i * BLOCK_BYTES..(i + 1) * BLOCK_BYTES].copy_from_slice(&block),
                Err(error) => {
                    result = Err(error);
                    break;
                }
            }
        }
        let now = peristyle_rt::now();
        let stats = &mut self.state.borrow_mut().stats;
        match result {
            Ok(()) => stats.reconstruct.leave(started, now),
            Err(_) => stats.reconstruct.leave_failed(started, now),
        }
        result
    }

    /// One block of a data column from the other columns of its row. The result is verified against `crc`, so a
    /// damaged source shows: then other sets of sources are tried, as long as there are any.
    pub(crate) async fn reconstruct(
        self: &Rc<Self>,
        id: peristyle_base::ExtentId,
        column: ColumnIndex,
        row: RowIndex,
        crc: u32,
    ) -> Result<Buf, ShardError> {
        let (code, scheme) = {
            let state = &mut *self.state.borrow_mut();
            let scheme = state.extents.get(id).ok_or(ShardError::Unreadable)?.scheme;
            (Self::code(state, scheme), scheme)
        };
        let mut row_of = RowSet::new(scheme);
        // Waited for here: an empty pool is no reason to call the block unreadable.
        let mut block = Buf::alloc(BLOCK_BYTES).await;
        let missing = self.state.borrow().extents.get(id).map_or(0, |e| e.missing);
        // Columns without their seal come last: what they give is believed only if the result has the checksum.
        let others = |seal_missed: u32| {
            (0..scheme.width()).filter(move |&c| c != column.0 as usize && missing >> c & 1 == seal_missed)
        };
        for c in others(0).chain(others(1)) {
            self.read_row(id, c, row, &mut row_of).await;
            // Only once the first k are there is it worth trying; after that, each further column widens the choice.
            if row_of.have.count() >= scheme.k() && row_of.solve(&code, column, crc, &mut block) {
                return Ok(block);
            }
        }
        Err(ShardError::Unreadable)
    }

    /// Adds one column's block of a row to the set: its bytes, or the knowledge that it is a hole.
    async fn read_row(&self, id: peristyle_base::ExtentId, c: usize, row: RowIndex, set: &mut RowSet) {
        let (place, name, hole) = {
            let state = self.state.borrow();
            let Some(extent) = state.extents.get(id) else { return };
            if extent.place(c).device.is_nil() {
                return;
            }
            (extent.place(c), extent.name(self.id, c), extent.is_hole(c, row.0) == Some(true))
        };
        if hole {
            set.have = set.have.with(ColumnIndex(c as u8));
            return;
        }
        let (result, buf) = self.columns.read(place, name, row, Buf::alloc(BLOCK_BYTES).await).await;
        if result.is_ok() {
            set.have = set.have.with(ColumnIndex(c as u8));
            set.blocks[c] = Some(buf.freeze());
        }
    }
}

/// Blocks of one row of an extent.
pub(crate) struct RowSet {
    scheme: Scheme,
    pub have: ColumnSet,
    /// `None` in a column that `have` contains: a hole, zeros.
    pub blocks: [Option<View>; Scheme::WIDTH_MAX],
}

impl RowSet {
    pub fn new(scheme: Scheme) -> RowSet {
        RowSet { scheme, have: ColumnSet(0), blocks: [const { None }; Scheme::WIDTH_MAX] }
    }

    /// Makes `out` the wanted block, from whichever k columns give the right checksum. At most C(k+m-1, k) tries.
    pub fn solve(&self, code: &peristyle_ec::Code, wanted: ColumnIndex, crc: u32, out: &mut Buf) -> bool {
        let (k, all) = (self.scheme.k(), self.have.0);
        let mut subset = all;
        // Subsets of `all`, largest first; those with exactly k columns are tried.
        loop {
            if subset.count_ones() as usize == k
                && let Ok(plan) = code.plan(ColumnSet::default().with(wanted), ColumnSet(subset))
            {
                let mut sources: [Option<&[u8]>; Scheme::K_MAX as usize] = [None; Scheme::K_MAX as usize];
                for (slot, c) in sources.iter_mut().zip(plan.sources()) {
                    *slot = self.blocks[c.0 as usize].as_deref();
                }
                code.reconstruct(&plan, &sources[..plan.sources().len()], &mut [&mut out[..]]);
                if crc32c(out) == crc {
                    return true;
                }
            }
            if subset == 0 {
                return false;
            }
            subset = (subset - 1) & all;
        }
    }
}

fn follows(last: &Piece, next: Option<Ptr>) -> bool {
    match (last.ptr, next) {
        (None, None) => true,
        (Some(a), Some(b)) => {
            a.extent() == b.extent() && a.column() == b.column() && a.row().0 + last.count == b.row().0
        }
        _ => false,
    }
}

fn recycle(gather: SharedGather) {
    // A task that has not let go yet (it notified us a moment ago) keeps its own: then memory is taken anew once.
    if Rc::strong_count(&gather) == 1 {
        gather.0.borrow_mut().pieces.clear();
        let _ = SPARE.try_with(|s| {
            let mut spare = s.borrow_mut();
            if spare.len() < 256 {
                spare.push(gather);
            }
        });
    }
}
