//! Reads: look up, read each contiguous piece, verify. What is damaged, late or out of reach: `degraded.rs`.

use crate::columns::{ColumnFault, Columns};
use crate::degraded::Answer;
use crate::error::ShardError;
use crate::map::{Away, Lookup, Ptr};
use crate::shard::Shard;
use peristyle_base::{BLOCK_BYTES, ColumnName, ColumnPlace, LayerId, crc32c};
use peristyle_cluster::ShardStore;
use peristyle_rt::{Buf, IoVec, View, sync::Notify};
use std::cell::RefCell;
use std::pin::pin;
use std::rc::Rc;

/// Blocks of one read at most (MDTS: 512 KiB).
pub const READ_BLOCKS_MAX: usize = 128;

/// A run of blocks that lies in consecutive rows of one column, or of zeros.
#[derive(Clone, Copy)]
pub(crate) struct Piece {
    /// First block, counted from the start of the read.
    pub at: u16,
    pub count: u16,
    /// `None`: zeros.
    ptr: Option<Ptr>,
}

/// State of a read of several pieces, used again without allocation.
pub(crate) struct Gather {
    pieces: Vec<(Piece, Option<View>)>,
    pub crcs: Vec<u32>,
    left: usize,
    failed: Option<ShardError>,
}

pub(crate) type SharedGather = Rc<(RefCell<Gather>, Notify)>;

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
        // All of it at once: reads that hold some memory while they wait for more could wait for each other.
        let memory = Buf::alloc(count * BLOCK_BYTES).await;
        self.read_into(layer, block, memory).await
    }

    /// Reads as many blocks as `memory` has room for.
    pub(crate) async fn read_into(
        self: &Rc<Self>,
        layer: LayerId,
        block: u64,
        memory: Buf,
    ) -> Result<IoVec, ShardError> {
        let _reading = self.readers.enter();
        let gather = new_gather();
        loop {
            let found = self.look_up(layer, block, memory.len() / BLOCK_BYTES, &mut gather.0.borrow_mut())?;
            match found {
                None => break,
                Some(away) => self.bring(away).await?,
            }
        }
        let began = peristyle_rt::now();
        self.state.borrow_mut().stats.read_columns.enter(began);
        let result = self.read_pieces(memory, gather).await;
        let (stats, ended) = (&mut self.state.borrow_mut().stats, peristyle_rt::now());
        match result {
            Ok(_) => stats.read_columns.leave(began, ended),
            Err(_) => stats.read_columns.leave_failed(began, ended),
        }
        result
    }

    /// All pieces that were found, side by side.
    async fn read_pieces(
        self: &Rc<Self>,
        mut memory: Buf,
        gather: SharedGather,
    ) -> Result<IoVec, ShardError> {
        let pieces = gather.0.borrow().pieces.len();
        if pieces == 1 {
            // The common case needs no task.
            let piece = gather.0.borrow().pieces[0].0;
            let view = self.read_piece(piece, memory, &gather).await;
            recycle(gather);
            return view.map(IoVec::from);
        }
        gather.0.borrow_mut().left = pieces;
        for i in 0..pieces {
            let (me, shared) = (self.clone(), gather.clone());
            let piece = gather.0.borrow().pieces[i].0;
            let buf = memory.split_to(piece.count as usize * BLOCK_BYTES);
            peristyle_rt::spawn(async move {
                let result = me.read_piece(piece, buf, &shared).await;
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

    /// Where the blocks lie; or a leaf that has to be read first.
    fn look_up(
        &self,
        layer: LayerId,
        block: u64,
        count: usize,
        gather: &mut Gather,
    ) -> Result<Option<Away>, ShardError> {
        let now = peristyle_rt::now();
        if !self.may_read(now) {
            return Err(ShardError::Stopped);
        }
        let state = &mut *self.state.borrow_mut();
        if state.stopped.is_some() {
            return Err(ShardError::Stopped);
        }
        state.stats.lookup.enter(now);
        gather.pieces.clear();
        gather.crcs.clear();
        gather.failed = None;
        let layer = state.map.view(layer).map_or(layer, |view| view.layer);
        for i in 0..count {
            let ptr = match state.map.find(layer, block + i as u64) {
                Ok(Lookup::Data(ptr)) => Some(ptr),
                Ok(_) => None,
                Err(away) => {
                    state.stats.lookup.leave(now, peristyle_rt::now());
                    return Ok(Some(away));
                }
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
        Ok(None)
    }

    /// One block by its pointer, read as hosts' blocks are.
    pub(crate) async fn read_pointer(self: &Rc<Self>, ptr: Ptr) -> Result<View, ShardError> {
        let gather = new_gather();
        {
            let g = &mut *gather.0.borrow_mut();
            g.crcs.clear();
            g.crcs.push(ptr.crc());
        }
        let memory = self.kept().map.alloc(BLOCK_BYTES).await;
        let view = self.read_piece(Piece { at: 0, count: 1, ptr: Some(ptr) }, memory, &gather).await;
        recycle(gather);
        view
    }

    async fn read_piece(
        self: &Rc<Self>,
        piece: Piece,
        mut buf: Buf,
        gather: &SharedGather,
    ) -> Result<View, ShardError> {
        let Some(ptr) = piece.ptr else {
            buf.fill(0);
            return Ok(buf.freeze());
        };
        let (place, name) = {
            let state = self.state.borrow();
            let Some(extent) = state.extents.get(ptr.extent()) else { return Err(ShardError::Unreadable) };
            (extent.place(ptr.column().0 as usize), extent.name(self.id, ptr.column().0 as usize))
        };
        let (result, mut buf, read) = match self.read_column(place, name, ptr, piece, buf, gather).await {
            Answer::Column(result, buf, at) => (result, buf, at),
            Answer::Others(blocks) => return blocks.map(Buf::freeze),
        };
        self.state.borrow_mut().stats.verify.enter(read);
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
            // In memory of its own: it is rare, and would make the future of every read several times as long.
            Box::pin(self.repair(ptr, piece, bad, &mut buf, gather, result.is_ok())).await?;
        }
        Ok(buf.freeze())
    }

    /// Reads a column's rows, for as long as its device usually takes; then the other columns are read as well.
    async fn read_column(
        self: &Rc<Self>,
        place: ColumnPlace,
        name: ColumnName,
        ptr: Ptr,
        piece: Piece,
        buf: Buf,
        gather: &SharedGather,
    ) -> Answer {
        let started = peristyle_rt::now();
        if self.columns.is_away(place.device) {
            return Answer::Column(Err(ColumnFault::Device), buf, started); // nobody waits for it again
        }
        self.state.borrow_mut().stats.column_read.enter(started);
        let watched = self.reads.watch(place.device, started);
        self.sent.notify_all();
        let mut read = pin!(self.columns.read(place, name, ptr.row(), buf));
        let answer = match watched.answer(read.as_mut()).await {
            Some((result, buf)) => Answer::Column(result, buf, peristyle_rt::now()),
            None => Box::pin(self.hedge(ptr, piece, gather, read.as_mut())).await,
        };
        let stats = &mut self.state.borrow_mut().stats;
        match &answer {
            Answer::Column(Ok(()), _, at) => {
                stats.column_read.leave(started, *at);
                if !self.columns.is_away(place.device) {
                    self.reads.answered(place.device, *at, at.nanos_since(started));
                }
            }
            Answer::Column(_, _, at) => stats.column_read.leave_failed(started, *at),
            Answer::Others(_) => stats.column_read.leave_failed(started, peristyle_rt::now()),
        }
        answer
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
