//! Checkpoints: the map as it was at one sequence number, written to the log like data, so that replay need not
//! start at the beginning. Commits go on meanwhile; nothing is copied unless they touch a captured leaf.
//!
//! The changed pointers that are listed one by one first, then leaves, the pages that point at them, and the root stream
//! (the layer table, every layer's pages, what each extent holds) with its directory; last the control store's record
//! points at that.

mod load;
pub mod root;

use crate::columns::Columns;
use crate::error::ShardError;
use crate::extent::{ExtentPhase, Extents};
use crate::frame::{Entry, FrameKind, Layout};
use crate::map::{Candidates, Capture, FANOUT, PAGE_BLOCKS, PageAt, Ptr, encode_block};
use crate::retire::retire_below;
use crate::shard::{Shard, State};
use crate::space::unused;
use peristyle_base::{BLOCK_BYTES, ExtentId, LayerId, Seq, crc32c};
use peristyle_cluster::{BlockPlace, CheckpointPtr, ShardStore};
use peristyle_rt::{Buf, Duration, View};
use root::{CHANGES_MAX, Counts, DIRECTORY_MAX, Root, encode_changes, encode_directory};
use std::collections::BTreeMap;
use std::rc::Rc;

pub(crate) use load::{Loaded, MapBlocks};

/// Map blocks of one checkpoint frame: small frames, so that users' frames do not wait behind long ones.
const FRAME_MAP_BLOCKS: usize = 48;
/// Changes of one frame.
const FRAME_CHANGES: usize = CHANGES_MAX * FRAME_MAP_BLOCKS;
/// Leaves that are ready when a checkpoint begins, for the copies that writes make of what it reads: 1 MiB.
const COPIES_READY: usize = 256;
/// A checkpoint that failed is tried again after the first pause; each further pause is twice as long, up to the last.
const RETRY_MIN: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(30);
/// All changes are listed anew once so many times as many have been listed as there are, and some more.
const LISTED_FACTOR: u64 = 3;
const LISTED_SLACK: u64 = 4096;

/// What the durable checkpoint has beside leaves and pages.
#[derive(Default)]
pub(crate) struct Roots {
    stream: Vec<Ptr>,
    directory: Vec<Ptr>,
    /// Blocks that list changes, oldest first, and how many they list.
    changes: Vec<Ptr>,
    listed: u64,
}

impl Roots {
    fn blocks(&self) -> impl Iterator<Item = Ptr> + '_ {
        [&self.stream, &self.directory, &self.changes].into_iter().flatten().copied()
    }
    pub(crate) fn any_in(&self, extent: ExtentId) -> bool {
        self.blocks().any(|ptr| ptr.extent() == extent)
    }
    /// It lists changes in an extent: all of them have to be listed anew before that can go.
    pub(crate) fn lists_in(&self, extent: ExtentId) -> bool {
        self.changes.iter().any(|ptr| ptr.extent() == extent)
    }
    pub(crate) fn has(&self, ptr: Ptr) -> bool {
        self.blocks().any(|block| block == ptr)
    }
    pub(crate) fn for_each(&self, f: impl FnMut(Ptr)) {
        self.blocks().for_each(f);
    }
}

/// One map block to write.
struct MapBlock {
    layer: LayerId,
    level: u8,
    first: u64,
    data: View,
}

/// The state at a checkpoint's number, as far as it writes it.
struct Taken {
    seq: Seq,
    mark: ExtentId,
    capture: Capture,
    /// Live blocks of each extent that has any.
    live: Vec<(ExtentId, u32)>,
    log_bytes: u64,
    unused: Vec<ExtentId>,
}

/// Where a checkpoint's blocks were put, in the order of what they hold.
#[derive(Default)]
struct Written {
    leaves: Vec<Ptr>,
    pages: Vec<Ptr>,
    roots: Roots,
}

impl Written {
    /// Leaves, pages, lists of changes, roots.
    fn by_kind(&self) -> [u64; 4] {
        let Roots { stream, directory, changes, .. } = &self.roots;
        [self.leaves.len(), self.pages.len(), changes.len(), stream.len() + directory.len()].map(|n| n as u64)
    }
    fn blocks(&self) -> impl Iterator<Item = Ptr> + '_ {
        self.leaves.iter().chain(&self.pages).copied().chain(self.roots.blocks())
    }
}

impl<C: Columns, S: ShardStore + 'static> Shard<C, S> {
    /// Takes all checkpoints, one after the other. Nothing drops this task midway while the shard serves: what a
    /// checkpoint has captured is written, or changed as before.
    pub(crate) async fn run_checkpoints(self: Rc<Self>) {
        let mut pause = Duration::ZERO;
        loop {
            let asked =
                |state: &State| state.stopped.is_some() || state.checkpoint_asked > state.checkpoint_done.0;
            if pause > Duration::ZERO {
                // The pool is full, or devices fail: replay covers what the checkpoint would have.
                let asked = || asked(&self.state.borrow());
                peristyle_rt::timeout(pause, self.progress.wait_until(asked)).await;
            }
            let due = || {
                let state = self.state.borrow();
                asked(&state)
                    || self.crowded.get()
                    || state.log_bytes_since_checkpoint >= self.config.checkpoint_log_bytes
            };
            self.progress.wait_until(due).await;
            if self.stopped().is_some() {
                return;
            }
            let number = self.state.borrow().checkpoint_asked;
            self.checkpointing.set(true);
            let result = self.take_checkpoint().await;
            self.checkpointing.set(false);
            pause = match result {
                Ok(()) => Duration::ZERO,
                Err(_) => (pause * 2).clamp(RETRY_MIN, RETRY_MAX),
            };
            self.state.borrow_mut().checkpoint_done = (number, result);
            self.progress.notify_all();
        }
    }

    /// Has a checkpoint taken that begins from now on, without waiting for it.
    pub(crate) fn ask_for_checkpoint(&self) -> u64 {
        let number = {
            let state = &mut *self.state.borrow_mut();
            state.checkpoint_asked += 1;
            state.checkpoint_asked
        };
        self.progress.notify_all();
        number
    }

    /// Has a checkpoint taken that begins from now on. Replay starts behind it once this returns. Whoever gives up
    /// waiting changes nothing: it goes on.
    pub async fn checkpoint(&self) -> Result<(), ShardError> {
        let number = self.ask_for_checkpoint();
        let answered = || {
            let state = self.state.borrow();
            state.stopped.is_some() || state.checkpoint_done.0 >= number
        };
        self.progress.wait_until(answered).await;
        match self.state.borrow().checkpoint_done {
            (done, result) if done >= number => result,
            _ => Err(ShardError::Stopped),
        }
    }

    async fn take_checkpoint(self: &Rc<Self>) -> Result<(), ShardError> {
        self.crowded.set(false);
        self.bring_crowd().await;
        self.move_map_blocks().await;
        let mut candidates = Candidates::default();
        while self.state.borrow().map.look_for_candidates(&mut candidates) {
            peristyle_rt::breathe().await;
        }
        let mut taken = self.take_state(&candidates);
        self.supply_wanted.notify_all();
        let mut written = Written::default();
        let result = self.write_checkpoint(&mut taken, &mut written).await;
        let blocks = written.by_kind();
        {
            let State { map, extents, roots, stats, collect, log_bytes_since_checkpoint, .. } =
                &mut *self.state.borrow_mut();
            if let Err(error) = result {
                map.failed(taken.capture);
                written.blocks().for_each(|ptr| extents.drop_meta(ptr));
                *log_bytes_since_checkpoint += taken.log_bytes; // so that it is tried again soon
                return Err(error);
            }
            // From here on no restart looks at what the checkpoint before had elsewhere (invariant 9, Free late).
            let whole = taken.capture.whole;
            let gone = map.installed(taken.capture, &written.leaves, &written.pages);
            let before = std::mem::replace(roots, written.roots);
            let changes = before.changes.iter().filter(|_| whole);
            let gone = gone.iter().chain(&before.stream).chain(&before.directory).chain(changes);
            gone.for_each(|ptr| extents.drop_meta(*ptr));
            if !whole {
                roots.listed += before.listed;
                roots.changes.splice(0..0, before.changes);
            }
            stats.checkpoints += 1;
            stats.map_blocks.iter_mut().zip(blocks).for_each(|(sum, more)| *sum += more);
            collect.checkpoint_cost = blocks[1] + blocks[3];
        }
        self.let_go(taken.unused);
        Ok(())
    }

    /// The state as it is now. No await: it is that of one number.
    fn take_state(&self, candidates: &Candidates) -> Taken {
        let state = &mut *self.state.borrow_mut();
        let log_bytes = std::mem::take(&mut state.log_bytes_since_checkpoint);
        state.retire_below = retire_below(state);
        let listed = state.roots.listed;
        let moving =
            self.moves.get() > 0 || state.frames.iter().any(|f| f.busy && f.kind == FrameKind::Relocation);
        let first = state.extents.iter().map(|e| e.id).min().unwrap_or(state.next_extent);
        state.map.end_aliases(first, state.next_extent, moving);
        let whole = listed > LISTED_FACTOR * state.map.changes() as u64 + LISTED_SLACK;
        let capture = state.map.capture(candidates, whole);
        // Writes copy what is being written out; the first copies find their memory here.
        state.map.make_room(capture.leaves.len().min(COPIES_READY));
        let mark = replay_mark(state);
        let live = state.extents.iter().filter(|e| e.live > 0).map(|e| (e.id, e.live)).collect();
        Taken { seq: state.committed, mark, capture, live, log_bytes, unused: unused(state, mark) }
    }

    async fn write_checkpoint(
        self: &Rc<Self>,
        taken: &mut Taken,
        written: &mut Written,
    ) -> Result<(), ShardError> {
        self.write_changes(&mut written.roots).await?;
        self.write_leaves(&mut taken.capture, &mut written.leaves).await?;
        self.write_pages(&taken.capture, &mut written.pages).await?;
        let root = self.root_of(taken, written);
        self.write_stream(&root.encode(), &mut written.roots).await?;
        let place = |ptr: &Ptr| BlockPlace::new(ptr.extent(), ptr.column(), ptr.row(), ptr.crc());
        let root: Vec<BlockPlace> = written.roots.directory.iter().map(place).collect();
        if root.len() > peristyle_cluster::ROOT_BLOCKS_MAX {
            return Err(ShardError::MapFull);
        }
        let blocks = written.blocks().count() as u32;
        let checkpoint = CheckpointPtr { seq: taken.seq, mark: taken.mark, blocks, root };
        self.write_record(|record| record.checkpoint = Some(checkpoint))
            .await
            .map_err(|_| ShardError::Stopped)
    }

    async fn write_leaves(
        self: &Rc<Self>,
        capture: &mut Capture,
        written: &mut Vec<Ptr>,
    ) -> Result<(), ShardError> {
        for at in (0..capture.leaves.len()).step_by(FRAME_MAP_BLOCKS) {
            let mut out = Vec::new();
            for leaf in &capture.leaves[at..capture.leaves.len().min(at + FRAME_MAP_BLOCKS)] {
                let mut buf = Buf::alloc(BLOCK_BYTES).await;
                encode_block(self.state.borrow().map.leaf(leaf.leaf), &mut buf);
                peristyle_rt::breathe().await;
                let page = &capture.pages[leaf.page];
                let first = (page.number as u64 * FANOUT as u64 + leaf.child as u64) * FANOUT as u64;
                out.push(MapBlock { layer: page.layer, level: 0, first, data: buf.freeze() });
            }
            let ptrs = self.write_map_blocks(out).await?;
            for (leaf, &ptr) in capture.leaves[at..].iter().zip(&ptrs) {
                capture.pages[leaf.page].children[leaf.child as usize] = ptr;
            }
            written.extend(ptrs);
        }
        Ok(())
    }

    async fn write_pages(
        self: &Rc<Self>,
        capture: &Capture,
        written: &mut Vec<Ptr>,
    ) -> Result<(), ShardError> {
        for pages in capture.pages.chunks(FRAME_MAP_BLOCKS) {
            let mut out = Vec::new();
            for page in pages {
                let mut buf = Buf::alloc(BLOCK_BYTES).await;
                encode_block(&page.children, &mut buf);
                peristyle_rt::breathe().await;
                let first = page.number as u64 * PAGE_BLOCKS;
                out.push(MapBlock { layer: page.layer, level: 1, first, data: buf.freeze() });
            }
            written.extend(self.write_map_blocks(out).await?);
        }
        Ok(())
    }

    async fn write_changes(self: &Rc<Self>, written: &mut Roots) -> Result<(), ShardError> {
        loop {
            while self.state.borrow_mut().map.list_some(FRAME_CHANGES) {
                peristyle_rt::breathe().await;
            }
            let changes = self.state.borrow_mut().map.take_listed(FRAME_CHANGES);
            if changes.is_empty() {
                return Ok(());
            }
            let mut out = Vec::new();
            for changes in changes.chunks(CHANGES_MAX) {
                let mut buf = Buf::alloc(BLOCK_BYTES).await;
                encode_changes(changes, &mut buf);
                peristyle_rt::breathe().await;
                let first = (written.changes.len() + out.len()) as u64;
                out.push(MapBlock { layer: LayerId(0), level: 3, first, data: buf.freeze() });
            }
            written.listed += changes.len() as u64;
            written.changes.extend(self.write_map_blocks(out).await?);
        }
    }

    /// What the stream says: the checkpoint's own blocks have their places but for the stream's.
    fn root_of(&self, taken: &Taken, written: &Written) -> Root {
        let state = &*self.state.borrow();
        let place = |&(number, at): &(u32, PageAt)| match at {
            PageAt::Written(i) => (number, PageAt::Home(written.pages[i])),
            other => (number, other),
        };
        let layers = taken.capture.layers.iter();
        let layers = layers.map(|(id, blocks, pages)| (*id, *blocks, pages.iter().map(place).collect()));
        let before = if taken.capture.whole { &[][..] } else { &state.roots.changes[..] };
        Root {
            seq: taken.seq,
            layers: layers.collect(),
            table: Some(taken.capture.table.clone()),
            changes: before.iter().chain(&written.roots.changes).copied().collect(),
            listed: written.roots.listed + if taken.capture.whole { 0 } else { state.roots.listed },
            extents: Some(counts_of(&state.extents, &state.roots, taken)),
        }
    }

    async fn write_stream(self: &Rc<Self>, bytes: &[u8], written: &mut Roots) -> Result<(), ShardError> {
        for blocks in bytes.chunks(FRAME_MAP_BLOCKS * BLOCK_BYTES) {
            let mut out = Vec::new();
            for block in blocks.chunks(BLOCK_BYTES) {
                let mut buf = Buf::alloc(BLOCK_BYTES).await;
                buf.copy_from_slice(block);
                let first = (written.stream.len() + out.len()) as u64;
                out.push(MapBlock { layer: LayerId(0), level: 2, first, data: buf.freeze() });
            }
            written.stream.extend(self.write_map_blocks(out).await?);
        }
        for blocks in 0..written.stream.len().div_ceil(DIRECTORY_MAX) {
            let mut buf = Buf::alloc(BLOCK_BYTES).await;
            let stream = &written.stream[blocks * DIRECTORY_MAX..];
            encode_directory(blocks as u32, &stream[..stream.len().min(DIRECTORY_MAX)], &mut buf);
            let block = MapBlock { layer: LayerId(0), level: 4, first: blocks as u64, data: buf.freeze() };
            written.directory.extend(self.write_map_blocks(vec![block]).await?);
        }
        Ok(())
    }

    /// Appends map blocks as one checkpoint frame and tells where each of them lies.
    async fn write_map_blocks(self: &Rc<Self>, blocks: Vec<MapBlock>) -> Result<Vec<Ptr>, ShardError> {
        if blocks.is_empty() {
            return Ok(Vec::new());
        }
        let op = self
            .append_aside(FrameKind::Meta, |contents| {
                for b in &blocks {
                    let (layer, level, first, crc) = (b.layer, b.level, b.first, crc32c(&b.data));
                    contents.entries.push(Entry::Map { layer, level, first, crc });
                    contents.data.push(b.data.clone());
                }
            })
            .await?;
        let state = &mut *self.state.borrow_mut();
        let at = state
            .meta_done
            .iter()
            .position(|d| d.0 == op)
            .expect("a finished checkpoint frame left its place");
        let (_, extent, layout): (_, ExtentId, Layout) = state.meta_done.swap_remove(at);
        state.extents.at(extent).meta += blocks.len() as u32;
        Ok(blocks
            .iter()
            .enumerate()
            .map(|(i, b)| {
                let (column, row) = layout.place(i);
                Ptr::new(extent, column, row, crc32c(&b.data))
            })
            .collect())
    }
}

/// What each extent holds of the state that a checkpoint is of: live blocks as they were, and the map blocks that it
/// refers to, whatever has been given up since.
fn counts_of(extents: &Extents, roots: &Roots, taken: &Taken) -> Vec<(ExtentId, Counts)> {
    let mut counts: BTreeMap<ExtentId, Counts> = BTreeMap::new();
    for &(id, live) in &taken.live {
        counts.entry(id).or_default().live = live;
    }
    for extent in extents.iter().filter(|e| e.meta > 0) {
        counts.entry(extent.id).or_default().map = extent.meta;
    }
    let changes = roots.changes.iter().filter(|_| taken.capture.whole);
    let gone = taken.capture.replaced.iter().chain(&roots.stream).chain(&roots.directory).chain(changes);
    for ptr in gone {
        if let Some(count) = counts.get_mut(&ptr.extent()) {
            count.map = count.map.checked_sub(1).expect("counts follow the checkpoint");
        }
    }
    counts.retain(|_, count| *count != Counts::default());
    counts.into_iter().collect()
}

/// Lowest extent that replay from now on must look at: every extent that is not sealed, those included that are
/// being allocated right now. Those that take no user frames hold it back as little as sealed ones: replay passes over
/// their frames, and a start finds what is not sealed wherever it lies.
pub(crate) fn replay_mark(state: &State) -> ExtentId {
    let unsealed = state
        .extents
        .iter()
        .filter(|e| e.phase != ExtentPhase::Sealed && !e.leftover && !e.aside)
        .map(|e| e.id);
    let mark = unsealed.chain(state.creating).min().unwrap_or(state.next_extent);
    // What lay before it once has no part of the log for ever: columns of it that come back are not replayed. An unsealed extent of an
    // earlier epoch that lies there took what was moved aside.
    state.record.checkpoint.as_ref().map_or(mark, |c| c.mark.max(mark))
}
