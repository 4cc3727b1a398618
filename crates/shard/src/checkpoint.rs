//! Checkpoints: the map as it was at one sequence number, written to the log like data, so that replay need not
//! start at the beginning. Commits go on meanwhile; nothing is copied unless they touch a captured leaf.
//!
//! Leaves first, then the pages that point at them, then the root stream (the layer table and every layer's
//! page pointers); last the control store's record points at the root.

use crate::columns::Columns;
use crate::error::ShardError;
use crate::extent::ExtentPhase;
use crate::frame::{Entry, FrameKind, Layout};
use crate::map::{
    Block256, Captured, CapturedState, FANOUT, Lookup, PTR_BYTES, Ptr, decode_block, encode_block, pages_of,
};
use crate::retire::retire_below;
use crate::shard::{Shard, State};
use crate::space::{move_map_blocks, unused};
use peristyle_base::{BLOCK_BYTES, ExtentId, LayerId, Seq, crc32c};
use peristyle_cluster::{BlockPlace, CheckpointPtr, ShardStore};
use peristyle_rt::{Buf, Duration, View};
use std::collections::BTreeMap;
use std::rc::Rc;

/// Map blocks of one checkpoint frame: small frames, so that users' frames do not wait behind long ones.
const FRAME_MAP_BLOCKS: usize = 48;
/// Leaves that are ready when a checkpoint begins, for the copies that writes make of what it reads: 1 MiB.
const COPIES_READY: usize = 256;
/// A checkpoint that failed is tried again after the first pause; each further pause is twice as long, up to the last.
const RETRY_MIN: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(30);
const ROOT_MAGIC: u64 = u64::from_le_bytes(*b"PERIROOT");
const ROOT_VERSION: u32 = 1;
const ROOT_HEADER_BYTES: usize = 32;
const LAYER_HEADER_BYTES: usize = 16;

/// The tree as the last checkpoint has it: where each leaf and page was written.
#[derive(Default)]
pub(crate) struct Homes {
    layers: BTreeMap<LayerId, Vec<HomePage>>,
    root: Vec<Ptr>,
    /// What was replaced: the durable checkpoint may refer to it until the next one's record is durable.
    retired: Vec<Ptr>,
}

#[derive(Default, Clone)]
struct HomePage {
    /// Pointers to the page's leaves; `None` while the page is absent or zero as a whole.
    leaves: Option<Box<Block256>>,
    /// Where the page block is, or [`Ptr::ZERO`], or [`Ptr::ABSENT`].
    home: Ptr,
}

impl HomePage {
    /// Where it and its leaves lie.
    fn blocks(&self) -> impl Iterator<Item = Ptr> + '_ {
        let leaves = self.leaves.iter().flat_map(|leaves| leaves.iter());
        std::iter::once(&self.home).chain(leaves).filter_map(|p| data_ptr(*p))
    }
}

/// Why a checkpoint root is refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BadRoot;

/// A parsed root stream: layers with their size and page pointers.
pub type Root = (Seq, Vec<(LayerId, u64, Vec<Ptr>)>);

fn encode_root(seq: Seq, layers: &[(LayerId, u64)], homes: &Homes) -> Vec<u8> {
    let mut out = Vec::new();
    out.extend(ROOT_MAGIC.to_le_bytes());
    out.extend(ROOT_VERSION.to_le_bytes());
    out.extend((layers.len() as u32).to_le_bytes());
    out.extend(seq.0.to_le_bytes());
    out.extend([0; 8]);
    for &(id, blocks) in layers {
        let pages = pages_of(blocks);
        out.extend(id.0.to_le_bytes());
        out.extend((pages as u32).to_le_bytes());
        out.extend(blocks.to_le_bytes());
        let known = homes.layers.get(&id);
        for page in 0..pages {
            let home = known.and_then(|k| k.get(page)).map_or(Ptr::ABSENT, |p| p.home);
            out.extend(home.encode());
        }
    }
    out.resize(out.len().next_multiple_of(BLOCK_BYTES), 0);
    out
}

/// Parses a root stream. The bytes were verified by their checksums; counts are validated all the same.
pub fn decode_root(bytes: &[u8]) -> Result<Root, BadRoot> {
    let u32_at = |at: usize| {
        bytes.get(at..at + 4).map(|b| u32::from_le_bytes(b.try_into().expect("4"))).ok_or(BadRoot)
    };
    let u64_at = |at: usize| {
        bytes.get(at..at + 8).map(|b| u64::from_le_bytes(b.try_into().expect("8"))).ok_or(BadRoot)
    };
    if u64_at(0)? != ROOT_MAGIC || u32_at(8)? != ROOT_VERSION || u64_at(24)? != 0 {
        return Err(BadRoot);
    }
    let (count, seq) = (u32_at(12)? as usize, Seq(u64_at(16)?));
    let mut layers = Vec::new();
    let mut at = ROOT_HEADER_BYTES;
    for _ in 0..count {
        let (id, pages, blocks) = (LayerId(u32_at(at)?), u32_at(at + 4)? as usize, u64_at(at + 8)?);
        at += LAYER_HEADER_BYTES;
        if pages_of(blocks) != pages || bytes.len() < at + pages * PTR_BYTES {
            return Err(BadRoot);
        }
        let ptrs = bytes[at..at + pages * PTR_BYTES].chunks_exact(PTR_BYTES).map(Ptr::decode).collect();
        at += pages * PTR_BYTES;
        layers.push((id, blocks, ptrs));
    }
    if bytes[at..].iter().any(|&b| b != 0) {
        return Err(BadRoot);
    }
    Ok((seq, layers))
}

/// For the fuzzer.
pub fn fuzz_root(input: &[u8]) {
    if let Ok((_, layers)) = decode_root(input) {
        assert!(layers.iter().all(|(_, blocks, pages)| pages.len() as u64 == blocks.div_ceil(65_536)));
    }
}

/// One map block to write.
struct MapBlock {
    layer: LayerId,
    level: u8,
    first: u64,
    data: View,
}

impl<C: Columns, S: ShardStore + 'static> Shard<C, S> {
    /// Takes all checkpoints, one after the other. Nothing drops this task midway while the shard serves: what a
    /// checkpoint has captured is written, or dirty again.
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
                asked(&state) || state.log_bytes_since_checkpoint >= self.config.checkpoint_log_bytes
            };
            self.progress.wait_until(due).await;
            if self.stopped().is_some() {
                return;
            }
            let number = self.state.borrow().checkpoint_asked;
            let result = self.take_checkpoint().await;
            pause = match result {
                Ok(()) => Duration::ZERO,
                Err(_) => (pause * 2).clamp(RETRY_MIN, RETRY_MAX),
            };
            self.state.borrow_mut().checkpoint_done = (number, result);
            self.progress.notify_all();
        }
    }

    /// Has a checkpoint taken that begins from now on. Replay starts behind it once this returns. Whoever gives up
    /// waiting changes nothing: it goes on.
    pub async fn checkpoint(&self) -> Result<(), ShardError> {
        let number = {
            let state = &mut *self.state.borrow_mut();
            state.checkpoint_asked += 1;
            state.checkpoint_asked
        };
        self.progress.notify_all();
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
        let mut captured = Vec::new();
        let (seq, mark, layers, log_bytes, unused) = {
            let state = &mut *self.state.borrow_mut();
            let log_bytes = std::mem::take(&mut state.log_bytes_since_checkpoint);
            state.retire_below = retire_below(state, self.config.ready_extents);
            move_map_blocks(state);
            state.map.capture(&mut captured);
            // Writes copy what is being written out; the first copies find their memory here.
            state.map.make_room(captured.len().min(COPIES_READY));
            for layer in state.map.take_dropped() {
                state.homes.forget(layer);
            }
            let layers: Vec<(LayerId, u64)> = state.map.layers().collect();
            let mark = replay_mark(state);
            (state.committed, mark, layers, log_bytes, unused(state, mark))
        };
        self.supply_wanted.notify_all();
        let result = self.write_checkpoint(seq, mark, &layers, &captured).await;
        {
            let state = &mut *self.state.borrow_mut();
            for c in &captured {
                if let CapturedState::Leaf(handle) = c.state {
                    state.map.release(handle);
                }
            }
            if let Err(error) = result {
                state.map.recapture(&captured);
                state.log_bytes_since_checkpoint += log_bytes; // so that it is tried again soon
                return Err(error);
            }
            state.stats.checkpoints += 1;
        }
        self.let_go(unused);
        Ok(())
    }

    async fn write_checkpoint(
        self: &Rc<Self>,
        seq: Seq,
        mark: ExtentId,
        layers: &[(LayerId, u64)],
        captured: &[Captured],
    ) -> Result<(), ShardError> {
        let mut blocks = 0;
        for chunk in captured.chunks(FRAME_MAP_BLOCKS) {
            blocks += self.write_leaves(chunk).await?;
        }
        let mut pages: Vec<(LayerId, u32)> = captured.iter().map(|c| (c.layer, c.page)).collect();
        pages.dedup();
        for chunk in pages.chunks(FRAME_MAP_BLOCKS) {
            blocks += self.write_pages(chunk).await?;
        }
        let root = {
            let state = &mut *self.state.borrow_mut();
            state.homes.keep(layers);
            state.homes.forget_root();
            encode_root(seq, layers, &state.homes)
        };
        for (chunk, bytes) in root.chunks(FRAME_MAP_BLOCKS * BLOCK_BYTES).enumerate() {
            let mut out = Vec::new();
            for (i, block) in bytes.chunks(BLOCK_BYTES).enumerate() {
                let mut buf = Buf::alloc(BLOCK_BYTES).await;
                buf.copy_from_slice(block);
                let first = (chunk * FRAME_MAP_BLOCKS + i) as u64;
                out.push(MapBlock { layer: LayerId(0), level: 2, first, data: buf.freeze() });
            }
            let written = self.write_map_blocks(out).await?;
            self.state.borrow_mut().homes.root.extend(written);
        }
        let place = |ptr: &Ptr| BlockPlace::new(ptr.extent(), ptr.column(), ptr.row(), ptr.crc());
        let places: Vec<BlockPlace> = self.state.borrow().homes.root.iter().map(place).collect();
        if places.len() > peristyle_cluster::ROOT_BLOCKS_MAX {
            return Err(ShardError::MapFull);
        }
        blocks += places.len();
        let checkpoint = CheckpointPtr { seq, mark, blocks: blocks as u32, root: places };
        self.write_record(|record| record.checkpoint = Some(checkpoint))
            .await
            .map_err(|_| ShardError::Stopped)?;
        // From here on no restart looks at what the checkpoint before had elsewhere (invariant 9, Free late).
        let State { homes, extents, .. } = &mut *self.state.borrow_mut();
        homes.retired.drain(..).for_each(|ptr| extents.drop_meta(ptr));
        Ok(())
    }

    async fn write_leaves(self: &Rc<Self>, captured: &[Captured]) -> Result<usize, ShardError> {
        let mut out = Vec::new();
        for c in captured {
            if let (Some(child), CapturedState::Leaf(handle)) = (c.child, c.state) {
                let mut buf = Buf::alloc(BLOCK_BYTES).await;
                encode_block(self.state.borrow().map.leaf(handle), &mut buf);
                let first = (c.page as u64 * FANOUT as u64 + child as u64) * FANOUT as u64;
                out.push(MapBlock { layer: c.layer, level: 0, first, data: buf.freeze() });
            }
        }
        let count = out.len();
        let mut ptrs = self.write_map_blocks(out).await?.into_iter();
        let homes = &mut self.state.borrow_mut().homes;
        for c in captured {
            match (c.child, c.state) {
                (None, CapturedState::Zero) => homes.clear_page(c.layer, c.page, Ptr::ZERO),
                (None, _) => homes.clear_page(c.layer, c.page, Ptr::ABSENT),
                (Some(child), CapturedState::Absent) => homes.set_leaf(c.layer, c.page, child, Ptr::ABSENT),
                (Some(child), CapturedState::Zero) => homes.set_leaf(c.layer, c.page, child, Ptr::ZERO),
                (Some(child), CapturedState::Leaf(_)) => {
                    homes.set_leaf(c.layer, c.page, child, ptrs.next().expect("one for each leaf"));
                }
            }
        }
        Ok(count)
    }

    async fn write_pages(self: &Rc<Self>, pages: &[(LayerId, u32)]) -> Result<usize, ShardError> {
        let mut out = Vec::new();
        let mut written = Vec::new();
        for &(layer, page) in pages {
            let mut buf = Buf::alloc(BLOCK_BYTES).await;
            match &self.state.borrow_mut().homes.page(layer, page).leaves {
                Some(leaves) => encode_block(leaves, &mut buf),
                None => continue,
            }
            written.push((layer, page));
            let first = page as u64 * (FANOUT * FANOUT) as u64;
            out.push(MapBlock { layer, level: 1, first, data: buf.freeze() });
        }
        let ptrs = self.write_map_blocks(out).await?;
        let state = &mut *self.state.borrow_mut();
        for ((layer, page), ptr) in written.iter().zip(ptrs) {
            state.homes.set_page(*layer, *page, ptr);
        }
        Ok(written.len())
    }

    /// Appends map blocks as one checkpoint frame and tells where each of them lies.
    async fn write_map_blocks(self: &Rc<Self>, blocks: Vec<MapBlock>) -> Result<Vec<Ptr>, ShardError> {
        if blocks.is_empty() {
            return Ok(Vec::new());
        }
        let op = loop {
            let started = {
                let state = &mut *self.state.borrow_mut();
                if state.stopped.is_some() {
                    return Err(ShardError::Stopped);
                }
                let now = peristyle_rt::now();
                Self::frame_slot(state, FrameKind::Meta, Seq(0)).map(|index| {
                    let op = self.ops.start();
                    let contents = &mut state.frames[index as usize].contents;
                    for b in &blocks {
                        let crc = crc32c(&b.data);
                        contents.entries.push(Entry::Map {
                            layer: b.layer,
                            level: b.level,
                            first: b.first,
                            crc,
                        });
                        contents.data.push(b.data.clone());
                    }
                    contents.ops.push((op, now));
                    state.to_append.push_back(index);
                    op
                })
            };
            match started {
                Some(op) => break op,
                None => self.progress.notified().await,
            }
        };
        self.work.notify_all();
        self.ops.wait(op).await?;
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

    /// Loads the checkpoint that the record names: layers, pages and leaves, each block verified.
    pub(crate) async fn load_checkpoint(
        self: &Rc<Self>,
        checkpoint: &CheckpointPtr,
    ) -> Result<(), ShardError> {
        let mut root = Vec::new();
        for place in &checkpoint.root {
            let ptr = Ptr::new(place.extent, place.column(), place.row(), place.crc);
            self.state.borrow_mut().homes.root.push(ptr);
            root.extend_from_slice(&self.read_map_block(ptr).await?);
        }
        let (seq, layers) = decode_root(&root).map_err(|_| ShardError::Unreadable)?;
        if seq != checkpoint.seq {
            return Err(ShardError::Unreadable);
        }
        for (layer, blocks, pages) in layers {
            self.state.borrow_mut().map.create_layer(layer, blocks).map_err(|_| ShardError::MapFull)?;
            for (page, ptr) in pages.into_iter().enumerate() {
                self.load_page(layer, page as u32, ptr).await?;
            }
        }
        Ok(())
    }

    async fn load_page(self: &Rc<Self>, layer: LayerId, page: u32, ptr: Ptr) -> Result<(), ShardError> {
        match ptr.lookup() {
            Lookup::Absent => return Ok(()),
            Lookup::Zero => {
                let state = &mut *self.state.borrow_mut();
                *state.homes.page(layer, page) = HomePage { leaves: None, home: Ptr::ZERO };
                state.map.load_zero_page(layer, page);
                return Ok(());
            }
            Lookup::Data(_) => {}
        }
        let leaves = decode_block(&self.read_map_block(ptr).await?);
        *self.state.borrow_mut().homes.page(layer, page) =
            HomePage { leaves: Some(leaves.clone()), home: ptr };
        for (child, leaf) in leaves.iter().enumerate() {
            let content = match leaf.lookup() {
                Lookup::Absent => continue,
                Lookup::Zero => None,
                Lookup::Data(ptr) => Some(decode_block(&self.read_map_block(ptr).await?)),
            };
            self.state.borrow_mut().map.load_child(layer, page, child as u8, content);
        }
        Ok(())
    }

    async fn read_map_block(self: &Rc<Self>, ptr: Ptr) -> Result<Buf, ShardError> {
        let column = ptr.column().0 as usize;
        let (place, name) = {
            let state = self.state.borrow();
            let extent = state.extents.get(ptr.extent()).ok_or(ShardError::Unreadable)?;
            if column >= extent.scheme.k() {
                return Err(ShardError::Unreadable);
            }
            (extent.place(column), extent.name(self.id, column))
        };
        let answer = self.read_or_give_up(place, name, ptr.row(), BLOCK_BYTES).await;
        if let Some((Ok(()), buf)) = answer
            && crc32c(&buf) == ptr.crc()
        {
            return Ok(buf);
        }
        self.reconstruct(ptr.extent(), ptr.column(), ptr.row(), ptr.crc()).await
    }
}

impl Homes {
    /// Places of all map blocks that the last checkpoint refers to.
    pub(crate) fn for_each(&self, mut f: impl FnMut(Ptr)) {
        self.layers.values().flatten().flat_map(HomePage::blocks).for_each(&mut f);
        self.root.iter().copied().for_each(f);
    }

    /// What is replaced and may still be referred to by the durable checkpoint, as well.
    pub(crate) fn for_each_counted(&self, mut f: impl FnMut(Ptr)) {
        self.for_each(&mut f);
        self.retired.iter().copied().for_each(f);
    }

    /// Leaves, by layer, page and child, that lie, or whose page lies, where `there` says.
    pub(crate) fn leaves_at(&self, there: impl Fn(ExtentId) -> bool, mut f: impl FnMut(LayerId, u32, u8)) {
        for (&layer, pages) in &self.layers {
            for (number, page) in pages.iter().enumerate() {
                let at = |ptr: &Ptr| data_ptr(*ptr).is_some_and(|ptr| there(ptr.extent()));
                // Whoever writes one of its leaves writes the page.
                if at(&page.home) {
                    f(layer, number as u32, 0);
                }
                let leaves = page.leaves.iter().flat_map(|leaves| leaves.iter()).enumerate();
                leaves
                    .filter(|(_, leaf)| at(leaf))
                    .for_each(|(child, _)| f(layer, number as u32, child as u8));
            }
        }
    }

    /// Whether the map block that an entry names lies in an extent.
    pub(crate) fn is_in(&self, layer: LayerId, level: u8, first: u64, extent: ExtentId) -> bool {
        const LEAF: u64 = FANOUT as u64;
        let page = self.layers.get(&layer).and_then(|pages| pages.get((first / LEAF / LEAF) as usize));
        let ptr = match level {
            0 => page.and_then(|p| p.leaves.as_ref()).map(|leaves| leaves[(first / LEAF % LEAF) as usize]),
            1 => page.map(|p| p.home),
            _ => return self.root.iter().any(|ptr| ptr.extent() == extent),
        };
        ptr.is_some_and(|ptr| ptr.extent() == extent)
    }

    fn retire(&mut self, ptr: Ptr) {
        self.retired.extend(data_ptr(ptr));
    }

    fn forget_root(&mut self) {
        self.retired.append(&mut self.root);
    }

    fn forget(&mut self, layer: LayerId) {
        let pages = self.layers.remove(&layer).unwrap_or_default();
        self.retired.extend(pages.iter().flat_map(HomePage::blocks));
    }

    /// A page without leaves: `home` says whether it is zero or absent.
    fn clear_page(&mut self, layer: LayerId, page: u32, home: Ptr) {
        let old = std::mem::replace(self.page(layer, page), HomePage { leaves: None, home });
        self.retired.extend(old.blocks());
    }

    fn set_leaf(&mut self, layer: LayerId, page: u32, child: u8, ptr: Ptr) {
        let leaves = self.page(layer, page).leaves.get_or_insert_with(|| Box::new([Ptr::ABSENT; FANOUT]));
        let old = std::mem::replace(&mut leaves[child as usize], ptr);
        self.retire(old);
    }

    fn set_page(&mut self, layer: LayerId, page: u32, ptr: Ptr) {
        let old = std::mem::replace(&mut self.page(layer, page).home, ptr);
        self.retire(old);
    }

    /// Forgets what lies outside of the layers.
    fn keep(&mut self, layers: &[(LayerId, u64)]) {
        let Homes { layers: all, retired, .. } = self;
        all.retain(|id, pages| {
            let size = layers.iter().find(|(layer, _)| layer == id);
            let kept = size.map_or(0, |&(_, blocks)| pages_of(blocks)).min(pages.len());
            pages.drain(kept..).for_each(|page| retired.extend(page.blocks()));
            size.is_some()
        });
    }

    fn page(&mut self, layer: LayerId, page: u32) -> &mut HomePage {
        let pages = self.layers.entry(layer).or_default();
        if pages.len() <= page as usize {
            pages.resize(page as usize + 1, HomePage::default());
        }
        &mut pages[page as usize]
    }
}

fn data_ptr(ptr: Ptr) -> Option<Ptr> {
    matches!(ptr.lookup(), Lookup::Data(_)).then_some(ptr)
}

/// Lowest extent that replay from now on must look at: every extent that is not sealed, those included that are
/// being allocated right now.
pub(crate) fn replay_mark(state: &State) -> ExtentId {
    let unsealed =
        state.extents.iter().filter(|e| e.phase != ExtentPhase::Sealed && !e.leftover).map(|e| e.id);
    unsealed.chain(state.creating).min().unwrap_or(state.next_extent)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_root_survives_its_bytes() {
        let mut homes = Homes::default();
        let sample = include_bytes!("../testdata/checkpoint-root-v1.bin");
        let (seq, layers) = decode_root(sample).unwrap();
        for (layer, _, pages) in &layers {
            for (page, &home) in pages.iter().enumerate() {
                homes.page(*layer, page as u32).home = home;
            }
        }
        let sizes: Vec<_> = layers.iter().map(|l| (l.0, l.1)).collect();
        let bytes = encode_root(seq, &sizes, &homes);
        assert!(bytes == sample, "format version 1 is written as it always was");
        assert_eq!(decode_root(&bytes[..40]), Err(BadRoot));
    }

    proptest! {
        #[test]
        fn any_bytes_are_parsed_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..9000)) {
            fuzz_root(&bytes);
        }
    }
}
