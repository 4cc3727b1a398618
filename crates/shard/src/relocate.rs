//! What collection does with one victim: its live blocks are read, verified, and appended to other extents.
//!
//! A relocation frame does not stand in the user sequence. At its commit each entry takes effect only if the map still has
//! the very pointer that was read: it never overtakes a newer write, and users' commits never wait for it.
//!
//! Replay needs no relocation frame. A victim is freed only behind a checkpoint whose map does not point at it any more
//! (invariant 9, Free late). So whatever the map says at a restart is there: what was moved before the checkpoint is where
//! the checkpoint says, in frames that were durable before it began; what was moved after it is still at its old place.

use crate::builder::Contents;
use crate::columns::Columns;
use crate::degraded::SILENCE_LIMIT;
use crate::error::ShardError;
use crate::extent::{Extents, Width};
use crate::frame::{Entry, FITTING_MIN, FrameKind};
use crate::map::{Map, Ptr};
use crate::shard::{Frame, Shard, State};
use crate::stream::Stream;
use peristyle_base::{BLOCK_BYTES, ExtentId, LayerId, crc32c};
use peristyle_cluster::ShardStore;
use peristyle_rt::{Buf, View, join_all, timeout};
use std::rc::Rc;

/// Blocks that are read at once: the longest piece that commands wait for.
const READ_AT_ONCE: usize = 8;

/// A live block of a victim, the pointer that the map has, and when it was written as far as is known.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Moving {
    pub layer: LayerId,
    pub block: u64,
    pub from: Ptr,
    pub birth: u64,
}

/// Blocks are being moved, until this is dropped.
struct Moves<'a, C: Columns, S: ShardStore>(&'a Shard<C, S>);

impl<'a, C: Columns, S: ShardStore> Moves<'a, C, S> {
    fn begin(shard: &'a Shard<C, S>) -> Self {
        shard.moves.set(shard.moves.get() + 1);
        Moves(shard)
    }
}

impl<C: Columns, S: ShardStore> Drop for Moves<'_, C, S> {
    fn drop(&mut self) {
        self.0.moves.set(self.0.moves.get() - 1);
    }
}

/// Takes a relocation frame into the map, entry by entry; tells how many of its blocks the map points at now.
pub(crate) fn apply_moved(map: &mut Map, extents: &mut Extents, frame: &Frame, now: u64) -> u32 {
    let contents = &frame.contents;
    let mut live = 0;
    for (i, (entry, &from)) in contents.entries.iter().zip(&contents.moved_from).enumerate() {
        let &Entry::Data { layer, block, crc } = entry else { unreachable!("only blocks are moved") };
        let (column, row) = frame.layout.place(i);
        if map.repoint(layer, block, from, Ptr::new(frame.extent, column, row, crc)) {
            extents.drop_live(from);
            live += 1;
        }
    }
    extents.add_live(frame.extent, live);
    extents.at(frame.extent).birth.add(live as u64, contents.birth, now);
    live
}

/// Blocks that find an extent at once, as one frame of so many at most.
pub(crate) fn room_for(state: &State, class: u8, blocks: usize) -> Option<usize> {
    let left = |stream: Stream| {
        let extent = state.extents.current(stream).and_then(|id| state.extents.get(id))?;
        // The rest of an extent is filled, unless it is less than is worth a header.
        let left = extent.blocks_left().min(blocks);
        (left == blocks || left >= FITTING_MIN).then_some(left)
    };
    let ready = !state.extents.ready[Width::Moved as usize].is_empty();
    // In need any of the streams will do.
    let other = || Stream::moved().find_map(left).filter(|_| state.collect.spent);
    left(Stream::Moved(class)).or(ready.then_some(blocks)).or_else(other)
}

impl<C: Columns, S: ShardStore + 'static> Shard<C, S> {
    /// The layer that points at a block of a victim now: the one that the header names, or one that it has merged into.
    /// All of collection's questions to the map come through here. `Err`: some of the map cannot be read now.
    pub(crate) async fn holder_of(
        self: &Rc<Self>,
        layer: LayerId,
        block: u64,
        from: Ptr,
    ) -> Result<Option<LayerId>, ShardError> {
        loop {
            let missing = {
                let map = &self.state.borrow().map;
                // What was overwritten while its leaf was not in memory would keep the victim for ever.
                match map.missing_holder(layer, block, true) {
                    None => return Ok(map.holder(layer, block, from)),
                    Some(away) => away,
                }
            };
            self.bring(missing).await?;
        }
    }

    /// Those of the blocks that the map still points at, each of the layer that has it now.
    async fn still_alive(self: &Rc<Self>, blocks: &[Moving]) -> Option<Vec<Moving>> {
        let mut alive = Vec::with_capacity(blocks.len());
        for moving in blocks {
            let holder = self.holder_of(moving.layer, moving.block, moving.from).await.ok()?;
            alive.extend(holder.map(|layer| Moving { layer, ..*moving }));
            peristyle_rt::breathe().await;
        }
        Some(alive)
    }

    /// The blocks of an extent that the map points at, in the order in which they lie there. `None`: a header cannot be
    /// read now.
    pub(crate) async fn live_blocks(self: &Rc<Self>, id: ExtentId) -> Option<Vec<Moving>> {
        let birth = self.state.borrow().extents.get(id).map_or(0, |e| e.birth.mean());
        let mut live = Vec::new();
        let whole = self.each_header(id, async |layout, entries| {
            let data = entries.iter().filter(|e| e.data_crc().is_some()).enumerate();
            let here: Vec<Moving> = data
                .filter_map(|(i, entry)| match *entry {
                    Entry::Data { layer, block, crc } => {
                        let (column, row) = layout.place(i);
                        Some(Moving { layer, block, from: Ptr::new(id, column, row, crc), birth })
                    }
                    _ => None,
                })
                .collect();
            let alive = self.still_alive(&here).await;
            live.extend(alive.iter().flatten());
            alive.is_some()
        });
        whole.await.then_some(live)
    }

    /// Reads what is still alive of the blocks and appends it as one relocation frame. False: they are where they were.
    pub(crate) async fn move_blocks(self: &Rc<Self>, blocks: &[Moving], class: u8) -> bool {
        // Headers that are written until this is over may name layers that merge meanwhile.
        let _moving = Moves::begin(self);
        // Nobody frees the victim under the reads: its last blocks may die meanwhile.
        let reading = self.readers.enter();
        let Some(blocks) = self.still_alive(blocks).await else { return false };
        let blocks = &blocks[..];
        let Some(views) = self.read_moving(blocks).await else { return false };
        drop(reading);
        if blocks.is_empty() {
            return true;
        }
        let births: u128 = blocks.iter().map(|b| u128::from(b.birth)).sum();
        let birth = (births / blocks.len() as u128) as u64;
        let mut order: Vec<usize> = (0..blocks.len()).collect();
        // As in users' frames: a contiguous run lies in one column.
        order.sort_unstable_by_key(|&i| (blocks[i].layer, blocks[i].block));
        let fill = |contents: &mut Contents| {
            for &i in &order {
                let Moving { layer, block, from, .. } = blocks[i];
                contents.entries.push(Entry::Data { layer, block, crc: from.crc() });
                contents.data.push(views[i].clone());
                contents.moved_from.push(from);
            }
            (contents.class, contents.birth) = (class, birth);
        };
        self.append_aside(FrameKind::Relocation, fill).await.is_ok()
    }

    /// The blocks, verified (invariant 8, Never unverified); each contiguous run is one read.
    async fn read_moving(self: &Rc<Self>, blocks: &[Moving]) -> Option<Vec<View>> {
        let mut memory = self.kept().collection.alloc(blocks.len() * BLOCK_BYTES).await;
        let follows = |a: &Moving, b: &Moving| {
            let place = |m: &Moving| (m.from.extent(), m.from.column(), m.from.row().0);
            let (extent, column, row) = place(a);
            place(b) == (extent, column, row + 1)
        };
        let mut views = Vec::with_capacity(blocks.len());
        for part in blocks.chunks(READ_AT_ONCE) {
            let runs = part.chunk_by(follows).map(|run| {
                let buf = memory.split_to(run.len() * BLOCK_BYTES);
                self.read_run(run, buf)
            });
            for run in join_all(runs.collect::<Vec<_>>()).await {
                let run = run.ok()?;
                views.extend((0..run.len()).step_by(BLOCK_BYTES).map(|at| run.slice(at..at + BLOCK_BYTES)));
            }
            // Devices that answer at once leave no other pause: commands go first.
            peristyle_rt::breathe().await;
        }
        Some(views)
    }

    async fn read_run(self: &Rc<Self>, run: &[Moving], buf: Buf) -> Result<View, ShardError> {
        let from = run[0].from;
        let (place, name) = {
            let state = self.state.borrow();
            let e = state.extents.get(from.extent()).ok_or(ShardError::Unreadable)?;
            (e.place(from.column().0 as usize), e.name(self.id, from.column().0 as usize))
        };
        let bytes = buf.len();
        let there = !place.device.is_nil() && !self.columns.is_away(place.device);
        let (mut buf, good) = if there {
            match timeout(SILENCE_LIMIT, self.columns.read(place, name, from.row(), buf)).await {
                Some((result, buf)) => (buf, result.is_ok()),
                // The device may still write to the other one. Not waited for: who holds the pool's memory may wait for
                // the space that this makes.
                None => (Buf::try_alloc(bytes).ok_or(ShardError::Unreadable)?, false),
            }
        } else {
            (buf, false)
        };
        for (m, block) in run.iter().zip(buf.chunks_exact_mut(BLOCK_BYTES)) {
            if good && crc32c(block) == m.from.crc() {
                continue;
            }
            self.state.borrow_mut().stats.damaged_blocks += u64::from(good);
            let p = m.from;
            self.reconstruct_into(p.extent(), p.column(), p.row(), p.crc(), block).await?;
        }
        Ok(buf.freeze())
    }
}
