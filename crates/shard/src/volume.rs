//! Volumes: byte ranges on a layer. Partial blocks, compare, and compare-and-write act on the newest accepted
//! version (DESIGN §11): they take their blocks for themselves until they are done; later commands queue behind.

use crate::builder::{Effect, Pending, overlap};
use crate::columns::Columns;
use crate::error::ShardError;
use crate::frame::{Entry, FRAME_BLOCKS_MAX};
use crate::ops::Told;
use crate::read::READ_BLOCKS_MAX;
use crate::shard::Shard;
use peristyle_base::{BLOCK_BYTES, Instant, LayerId};
use peristyle_cluster::ShardStore;
use peristyle_rt::{Buf, IoVec, View};
use std::rc::{Rc, Weak};

const BLOCK: u64 = BLOCK_BYTES as u64;
/// Blocks of one zero effect at most: what an entry's count holds.
const ZERO_BLOCKS_MAX: u64 = u32::MAX as u64;

/// Block ranges that are taken or waited for, in order of arrival. Empty unless somebody works on part of a block.
#[derive(Default)]
pub(crate) struct Locks {
    ranges: Vec<Range>,
    next: u64,
}

#[derive(Clone, Copy)]
struct Range {
    id: u64,
    layer: LayerId,
    block: u64,
    count: u64,
}

impl Locks {
    fn enter(&mut self, layer: LayerId, block: u64, count: u64) -> u64 {
        self.next += 1;
        self.ranges.push(Range { id: self.next, layer, block, count });
        self.next
    }
    fn leave(&mut self, id: u64) {
        self.ranges.retain(|r| r.id != id);
    }
    /// Nobody earlier has any of the blocks.
    fn is_first(&self, id: u64) -> bool {
        let Some(me) = self.ranges.iter().find(|r| r.id == id) else { return true };
        !self
            .ranges
            .iter()
            .take_while(|r| r.id != id)
            .any(|r| r.layer == me.layer && overlap(r.block, r.count, me.block, me.count))
    }
}

pub(crate) struct Locked<'a, C: Columns, S: ShardStore + 'static> {
    shard: &'a Shard<C, S>,
    id: u64,
}

impl<C: Columns, S: ShardStore + 'static> Drop for Locked<'_, C, S> {
    fn drop(&mut self) {
        self.shard.state.borrow_mut().locks.leave(self.id);
        self.shard.progress.notify_all();
    }
}

impl<C: Columns, S: ShardStore + 'static> Shard<C, S> {
    /// Makes a layer of so many blocks; does nothing when it is there with that size, and refuses another size.
    pub async fn ensure_layer(&self, layer: LayerId, blocks: u64) -> Result<(), ShardError> {
        // One at a time, up to the commit: whether memory covers the layer must be known before its event is logged,
        // and whoever finds the layer must be able to rely on the log having it.
        let _turn = self.layer_turn.acquire(1).await;
        {
            let state = self.state.borrow();
            match state.map.view_blocks(layer) {
                Some(there) if there == blocks => return Ok(()),
                Some(_) => return Err(ShardError::OutOfRange),
                None => state.map.fits(layer, blocks).map_err(|_| ShardError::MapFull)?,
            }
        }
        self.commit(Effect::Event(Entry::LayerCreated { layer, blocks })).await
    }

    pub async fn drop_layer(&self, layer: LayerId) -> Result<(), ShardError> {
        let _turn = self.layer_turn.acquire(1).await;
        if self.state.borrow().map.view(layer).is_none() {
            return Ok(());
        }
        self.commit(Effect::Event(Entry::LayerDropped { layer })).await
    }

    /// Volumes and snapshots, and their sizes in blocks.
    pub fn layers(&self) -> Vec<(LayerId, u64)> {
        let map = &self.state.borrow().map;
        map.views().map(|(id, view)| (id, map.layer_blocks(view.layer).unwrap_or(0))).collect()
    }

    /// Blocks with data, over all layers.
    pub fn mapped_blocks(&self) -> u64 {
        self.state.borrow().map.mapped_blocks()
    }

    /// The layer that a volume or a snapshot is, as of the last commit.
    pub(crate) fn head(&self, layer: LayerId) -> Option<LayerId> {
        self.state.borrow().map.view(layer).map(|view| view.layer)
    }

    pub(crate) fn check(&self, layer: LayerId, offset: u64, bytes: u64) -> Result<(u64, u64), ShardError> {
        let blocks = self.state.borrow().map.view_blocks(layer).ok_or(ShardError::OutOfRange)?;
        let end = offset.checked_add(bytes).ok_or(ShardError::OutOfRange)?;
        if end.div_ceil(BLOCK) > blocks {
            return Err(ShardError::OutOfRange);
        }
        Ok((offset / BLOCK, end.div_ceil(BLOCK) - offset / BLOCK))
    }

    /// As [`check`](Self::check), of what is written.
    fn check_write(&self, layer: LayerId, offset: u64, bytes: u64) -> Result<(u64, u64), ShardError> {
        let range = self.check(layer, offset, bytes)?;
        let writable = self.state.borrow().map.view(layer).is_some_and(|view| view.writable);
        if writable { Ok(range) } else { Err(ShardError::ReadOnly) }
    }

    pub(crate) async fn lock(&self, layer: LayerId, block: u64, count: u64) -> Locked<'_, C, S> {
        let id = self.state.borrow_mut().locks.enter(layer, block, count);
        let locked = Locked { shard: self, id };
        self.progress.wait_until(|| self.state.borrow().locks.is_first(id)).await;
        locked
    }

    /// Accepts a whole-block effect, behind whoever works on part of its blocks.
    async fn accept_in_turn(
        &self,
        layer: LayerId,
        block: u64,
        count: u64,
        effect: Effect,
    ) -> Result<(), ShardError> {
        // Whoever has to wait for room does so with its blocks locked: else a partial write could read them before,
        // and write them back after it.
        let free = self.state.borrow().locks.ranges.is_empty();
        let effect = match free {
            true => match self.try_accept(effect)? {
                Ok(op) => return self.ops.wait(op).await,
                Err(back) => back,
            },
            false => effect,
        };
        let op = {
            let _turn = self.lock(layer, block, count).await;
            // The layer may have been made smaller before its turn came.
            self.check_write(layer, block * BLOCK, count * BLOCK)?;
            self.accept(effect).await?
        };
        self.ops.wait(op).await
    }

    /// Reads `bytes` from `offset`, both multiples of 512, at most 512 KiB.
    pub async fn read(self: &Rc<Self>, layer: LayerId, offset: u64, bytes: u64) -> Result<IoVec, ShardError> {
        let (block, count) = self.check(layer, offset, bytes)?;
        let skip = (offset % BLOCK) as usize;
        if skip == 0 && bytes % BLOCK == 0 && count <= READ_BLOCKS_MAX as u64 {
            return self.read_blocks(layer, block, count as usize).await;
        }
        let mut out = IoVec::new();
        let (mut at, mut left, mut skip) = (block, bytes as usize, skip);
        while left > 0 {
            let n = (count - (at - block)).min(READ_BLOCKS_MAX as u64);
            let whole = self.read_blocks(layer, at, n as usize).await?;
            for piece in whole.pieces() {
                let from = skip.min(piece.len());
                let take = left.min(piece.len() - from);
                out.push(piece.slice(from..from + take));
                (skip, left) = (skip - from, left - take);
            }
            at += n;
        }
        Ok(out)
    }

    /// Writes `data` at `offset`, atomically; durable when it returns.
    pub async fn write(self: &Rc<Self>, layer: LayerId, offset: u64, data: View) -> Result<(), ShardError> {
        let (block, count) = self.check_write(layer, offset, data.len() as u64)?;
        if count > FRAME_BLOCKS_MAX as u64 {
            return Err(ShardError::OutOfRange); // no frame has room for it: it could not be atomic
        }
        if offset % BLOCK == 0 && data.len() % BLOCK_BYTES == 0 {
            return self.accept_in_turn(layer, block, count, Effect::Write { layer, block, data }).await;
        }
        let _mine = self.lock(layer, block, count).await;
        let whole = self.merged(layer, offset, &data).await?;
        self.commit(Effect::Write { layer, block, data: whole }).await
    }

    /// As [`write`](Self::write), begun at `now`, of whole blocks that need not wait before they have their place in the
    /// order: `to` is told with `token` when they are durable. Else the data comes back, and nothing was counted.
    pub fn try_write(
        &self,
        layer: LayerId,
        offset: u64,
        data: View,
        (to, token): (Weak<dyn Told>, u32),
        now: Instant,
    ) -> Result<(), View> {
        let bytes = data.len();
        let whole = offset % BLOCK == 0 && bytes > 0 && bytes.is_multiple_of(BLOCK_BYTES);
        if !whole
            || bytes > FRAME_BLOCKS_MAX * BLOCK_BYTES
            || self.check_write(layer, offset, bytes as u64).is_err()
        {
            return Err(data);
        }
        let state = &mut *self.state.borrow_mut();
        let effect = Effect::Write { layer, block: offset / BLOCK, data };
        if !state.locks.ranges.is_empty() || self.has_room(state, &effect) != Ok(true) {
            let Effect::Write { data, .. } = effect else { unreachable!("just made") };
            return Err(data);
        }
        let op = self.ops.start_told(to, token);
        self.enqueue(state, Pending { effect, op, since: now, class: None });
        Ok(())
    }

    /// Whole blocks: the newest accepted version with `data` laid over it. The caller has locked the range.
    async fn merged(self: &Rc<Self>, layer: LayerId, offset: u64, data: &[u8]) -> Result<View, ShardError> {
        let (block, count) = self.check(layer, offset, data.len() as u64)?;
        self.settled(layer, block, count).await?;
        let mut memory = self.kept().commands.alloc((count as usize + 2) * BLOCK_BYTES).await;
        let mut buf = memory.split_to(count as usize * BLOCK_BYTES);
        let start = (offset % BLOCK) as usize;
        let end = start + data.len();
        let mut edges = [Some(0), None];
        if end % BLOCK_BYTES != 0 && count > 1 {
            edges[1] = Some(count as usize - 1);
        }
        if start == 0 && end >= BLOCK_BYTES {
            edges[0] = None;
        }
        for i in edges.into_iter().flatten() {
            let old = self.read_into(layer, block + i as u64, memory.split_to(BLOCK_BYTES)).await?;
            buf[i * BLOCK_BYTES..(i + 1) * BLOCK_BYTES].copy_from_slice(&old.pieces()[0]);
        }
        buf[start..end].copy_from_slice(data);
        Ok(buf.freeze())
    }

    /// Makes a range read as zeros (Write Zeroes, Deallocate, trim). Up to 512 KiB it is atomic.
    pub async fn zero(self: &Rc<Self>, layer: LayerId, offset: u64, bytes: u64) -> Result<(), ShardError> {
        self.check_write(layer, offset, bytes)?;
        let end = offset + bytes;
        let (first, last) = (offset.div_ceil(BLOCK), end / BLOCK);
        if offset % BLOCK == 0 && end % BLOCK == 0 {
            return self.zero_blocks(layer, first, last - first).await;
        }
        if bytes <= READ_BLOCKS_MAX as u64 * BLOCK {
            return self.write(layer, offset, Buf::zeroed(bytes as usize).await.freeze()).await;
        }
        // Long and ragged: the edges as writes, the rest as a range.
        if offset % BLOCK != 0 {
            let head = first * BLOCK - offset;
            self.write(layer, offset, Buf::zeroed(head as usize).await.freeze()).await?;
        }
        self.zero_blocks(layer, first, last - first).await?;
        if end % BLOCK != 0 {
            self.write(layer, last * BLOCK, Buf::zeroed((end % BLOCK) as usize).await.freeze()).await?;
        }
        Ok(())
    }

    async fn zero_blocks(
        self: &Rc<Self>,
        layer: LayerId,
        mut block: u64,
        mut count: u64,
    ) -> Result<(), ShardError> {
        while count > 0 {
            let n = count.min(ZERO_BLOCKS_MAX);
            // What cannot be read is written pointer by pointer.
            if let Some(head) = self.head(layer) {
                let _ = self.bring_edges(head, block, n).await;
            }
            self.accept_in_turn(layer, block, n, Effect::Zero { layer, block, count: n as u32 }).await?;
            (block, count) = (block + n, count - n);
        }
        Ok(())
    }

    /// [`ShardError::Different`] unless the newest accepted version equals `data`.
    pub async fn compare(
        self: &Rc<Self>,
        layer: LayerId,
        offset: u64,
        data: &View,
    ) -> Result<(), ShardError> {
        let (block, count) = self.check(layer, offset, data.len() as u64)?;
        let _mine = self.lock(layer, block, count).await;
        self.compare_locked(layer, offset, data).await
    }

    async fn compare_locked(
        self: &Rc<Self>,
        layer: LayerId,
        offset: u64,
        data: &View,
    ) -> Result<(), ShardError> {
        let (block, count) = self.check(layer, offset, data.len() as u64)?;
        self.settled(layer, block, count).await?;
        if count > FRAME_BLOCKS_MAX as u64 {
            return Err(ShardError::OutOfRange);
        }
        let mut memory = self.kept().commands.alloc(count as usize * BLOCK_BYTES).await;
        let (mut at, mut skip, mut block) = (0, (offset % BLOCK) as usize, block);
        while at < data.len() {
            let part = memory.split_to(memory.len().min(READ_BLOCKS_MAX * BLOCK_BYTES));
            let blocks = part.len() / BLOCK_BYTES;
            for piece in self.read_into(layer, block, part).await?.pieces() {
                let stored = &piece[skip..piece.len().min(skip + data.len() - at)];
                if *stored != data[at..at + stored.len()] {
                    return Err(ShardError::Different);
                }
                (at, skip) = (at + stored.len(), 0);
            }
            block += blocks as u64;
        }
        Ok(())
    }

    /// Fused Compare and Write: writes `data` if what is there equals `expected`, and nobody comes between.
    pub async fn compare_and_write(
        self: &Rc<Self>,
        layer: LayerId,
        offset: u64,
        expected: &View,
        data: View,
    ) -> Result<(), ShardError> {
        let (block, count) = self.check_write(layer, offset, data.len() as u64)?;
        let _mine = self.lock(layer, block, count).await;
        self.compare_locked(layer, offset, expected).await?;
        let whole = match offset % BLOCK == 0 && data.len() % BLOCK_BYTES == 0 {
            true => data,
            false => self.merged(layer, offset, &data).await?,
        };
        self.commit(Effect::Write { layer, block, data: whole }).await
    }

    /// Reads and verifies without handing the data out.
    pub async fn verify(self: &Rc<Self>, layer: LayerId, offset: u64, bytes: u64) -> Result<(), ShardError> {
        let (block, count) = self.check(layer, offset, bytes)?;
        let end = block + count;
        let mut at = block;
        while at < end {
            let n = (end - at).min(READ_BLOCKS_MAX as u64);
            self.read_blocks(layer, at, n as usize).await?;
            at += n;
        }
        Ok(())
    }
}
