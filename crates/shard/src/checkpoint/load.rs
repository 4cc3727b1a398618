//! What a restart reads of a checkpoint: neither leaves nor pages, which are read when they are needed. So it takes as
//! long as the changes and the root stream are large, however much the volumes hold.

use super::Roots;
use super::root::{Counts, Root, decode_changes, decode_directory};
use crate::columns::Columns;
use crate::error::ShardError;
use crate::map::{Away, Block256, FANOUT, Limits, Lookup, Map, Ptr, Walk, decode_block};
use crate::shard::{Shard, State};
use peristyle_base::{BLOCK_BYTES, ExtentId, LayerId, crc32c};
use peristyle_cluster::{BlockPlace, CheckpointPtr, ShardStore};
use peristyle_rt::{Buf, Duration, join_all};
use std::collections::BTreeMap;
use std::rc::Rc;

/// Reads at the same time …
const READS_MAX: usize = 8;
/// … and blocks of each: a checkpoint writes what belongs together one behind the other.
const RUN_MAX: usize = 16;
/// How long a check rests while layers' remains are being counted.
const COUNTING: Duration = Duration::from_millis(1);
/// A comparison that a checkpoint came into is made again, so often at most.
const CHECKS_MAX: usize = 20;

/// A checkpoint as it was read: what there is of the map without its leaves and pages.
pub(crate) struct Loaded {
    of: CheckpointPtr,
    roots: Roots,
    /// What each extent holds; `None`: that has to be counted.
    extents: Option<Vec<(ExtentId, Counts)>>,
    /// It says what each layer holds.
    counts_layers: bool,
    map: Map,
}

/// Where map blocks are read from.
pub(crate) trait MapBlocks {
    /// The bytes of blocks of one column that lie one behind the other, which were checked.
    async fn read_run(&self, run: &[Ptr]) -> Result<Vec<Vec<u8>>, ShardError>;

    async fn read_map_blocks(&self, ptrs: &[Ptr]) -> Result<Vec<Vec<u8>>, ShardError> {
        let mut blocks = Vec::with_capacity(ptrs.len());
        let runs: Vec<&[Ptr]> = ptrs.chunk_by(follows).flat_map(|run| run.chunks(RUN_MAX)).collect();
        for some in runs.chunks(READS_MAX) {
            for read in join_all(some.iter().map(|run| self.read_run(run))).await {
                blocks.append(&mut read?);
            }
        }
        Ok(blocks)
    }
}

impl Loaded {
    pub async fn read(
        from: &impl MapBlocks,
        checkpoint: &CheckpointPtr,
        limits: Limits,
    ) -> Result<Loaded, ShardError> {
        let ptr = |place: &BlockPlace| Ptr::new(place.extent, place.column(), place.row(), place.crc);
        let (mut roots, root) = read_root(from, checkpoint.root.iter().map(ptr).collect()).await?;
        if root.seq != checkpoint.seq {
            return Err(ShardError::Unreadable);
        }
        let mut map = Map::new(limits);
        for (id, blocks, pages) in &root.layers {
            map.restore_layer(*id, *blocks, pages).map_err(|_| ShardError::MapFull)?;
        }
        for blocks in root.changes.chunks(READS_MAX * RUN_MAX) {
            for block in from.read_map_blocks(blocks).await? {
                let changes = decode_changes(&block).map_err(|_| ShardError::Unreadable)?;
                changes.iter().for_each(|change| map.restore_change(change));
            }
        }
        map.restore_table(root.table.as_ref());
        (roots.changes, roots.listed) = (root.changes, root.listed);
        let counts_layers = root.table.is_some();
        Ok(Loaded { of: checkpoint.clone(), roots, extents: root.extents, counts_layers, map })
    }

    pub fn is_of(&self, checkpoint: &CheckpointPtr) -> bool {
        self.of == *checkpoint
    }
}

/// The root stream: its blocks themselves in version 1, or those of its directory.
async fn read_root(from: &impl MapBlocks, named: Vec<Ptr>) -> Result<(Roots, Root), ShardError> {
    let bad = |_| ShardError::Unreadable;
    let mut roots = Roots { stream: named, ..Roots::default() };
    let mut blocks = from.read_map_blocks(&roots.stream).await?;
    if !blocks.first().is_some_and(|block| Root::begins_in(block)) {
        roots.directory = std::mem::take(&mut roots.stream);
        for (number, block) in blocks.iter().enumerate() {
            roots.stream.extend(decode_directory(number as u32, block).map_err(bad)?);
        }
        blocks = from.read_map_blocks(&roots.stream).await?;
    }
    let root = Root::decode(&blocks.concat()).map_err(bad)?;
    Ok((roots, root))
}

impl<C: Columns, S: ShardStore + 'static> MapBlocks for Rc<Shard<C, S>> {
    async fn read_run(&self, run: &[Ptr]) -> Result<Vec<Vec<u8>>, ShardError> {
        let first = run[0];
        let column = usize::from(first.column().0);
        let is_known = self.state.borrow().extents.get(first.extent()).is_some_and(|e| column < e.scheme.k());
        let read = match run.len() {
            2.. if is_known => {
                let rows = run.len() as u16;
                self.read_rows(first.extent(), column, first.row().0, rows).await
            }
            _ => None,
        };
        let good = |(i, ptr): (usize, &Ptr)| {
            let block = read.as_ref()?.chunks_exact(BLOCK_BYTES).nth(i)?;
            (crc32c(block) == ptr.crc()).then(|| block.to_vec())
        };
        let found: Vec<Option<Vec<u8>>> = run.iter().enumerate().map(good).collect();
        drop(read); // before the wait for other memory
        let mut blocks = Vec::with_capacity(run.len());
        for (ptr, block) in run.iter().zip(found) {
            blocks.push(match block {
                Some(block) => block,
                None => self.read_map_block(*ptr).await?.to_vec(),
            });
        }
        Ok(blocks)
    }
}

impl<C: Columns, S: ShardStore + 'static> Shard<C, S> {
    /// Takes over the checkpoint that the record names: layers, changes, and what each extent holds. Returns an extent that holds
    /// something and that no device tells of, if there is one.
    pub(crate) async fn load_checkpoint(
        self: &Rc<Self>,
        checkpoint: &CheckpointPtr,
        foreseen: Option<Loaded>,
    ) -> Result<Option<ExtentId>, ShardError> {
        let loaded = match foreseen {
            Some(loaded) => loaded,
            None => Loaded::read(self, checkpoint, self.config.limits()).await?,
        };
        let Loaded { roots, extents: counts, counts_layers, map, .. } = loaded;
        let counted = counts.is_some();
        let mut absent = None;
        {
            let state = &mut *self.state.borrow_mut();
            state.map = map;
            for (id, counts) in counts.into_iter().flatten() {
                if !state.extents.restore_counts(id, counts.live, counts.map) {
                    absent.get_or_insert(id);
                }
            }
            let own = roots.stream.iter().chain(&roots.directory);
            own.for_each(|ptr| state.extents.add_meta(*ptr));
            state.roots = roots;
        }
        if !counts_layers {
            self.count_blocks(!counted).await?;
        }
        Ok(absent)
    }

    /// One block, as a recovery reads it: devices that do not answer are passed over.
    pub(crate) async fn read_map_block(self: &Rc<Self>, ptr: Ptr) -> Result<Buf, ShardError> {
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

    /// Counts each layer's blocks by a look at the whole map, for a checkpoint of version 2; and each extent's, for one of
    /// version 1.
    async fn count_blocks(self: &Rc<Self>, extents_too: bool) -> Result<(), ShardError> {
        let count = |state: &mut State, ptr: Ptr, of: Option<(LayerId, u64)>| match of {
            Some((layer, block)) => {
                state.map.restore_live(layer, block);
                if extents_too {
                    state.extents.add_live(ptr.extent(), 1);
                }
            }
            None if extents_too => state.extents.add_meta(ptr),
            None => {}
        };
        self.walk(count).await
    }

    /// Hands out every pointer that counts, of the tree as it is: live ones with their block, and those of map blocks. For
    /// when nobody commits.
    pub(crate) async fn walk(
        self: &Rc<Self>,
        mut each: impl FnMut(&mut State, Ptr, Option<(LayerId, u64)>),
    ) -> Result<(), ShardError> {
        let layers = self.state.borrow().map.all_layers();
        for (layer, pages) in layers {
            for page in 0..pages {
                let walk = self.state.borrow().map.walk_page(layer, page);
                let (home, children) = match walk {
                    Walk::Nothing => continue,
                    Walk::Home(home) => (home, decode_block(&self.read_map_block(home).await?)),
                    Walk::Here(home, children) => (home, children),
                };
                let map_blocks = std::iter::once(home).chain(children.iter().copied());
                for ptr in map_blocks.filter(|ptr| matches!(ptr.lookup(), Lookup::Data(_))) {
                    each(&mut self.state.borrow_mut(), ptr, None);
                }
                self.walk_leaves((layer, page), &children, &mut each).await?;
            }
        }
        Ok(())
    }

    async fn walk_leaves(
        self: &Rc<Self>,
        (layer, page): (LayerId, u32),
        children: &Block256,
        each: &mut impl FnMut(&mut State, Ptr, Option<(LayerId, u64)>),
    ) -> Result<(), ShardError> {
        for (child, home) in children.iter().enumerate() {
            let away = Away { layer, leaf: page as u64 * FANOUT as u64 + child as u64 };
            let base = match self.state.borrow().map.walk_needs(away, *home) {
                true => Some(*home),
                false => None,
            };
            let base = match base {
                Some(home) => Some(decode_block(&self.read_map_block(home).await?)),
                None => None,
            };
            let state = &mut *self.state.borrow_mut();
            let mut live = Vec::new();
            state.map.live_pointers(away, base.as_deref(), |block, ptr| live.push((block, ptr)));
            live.into_iter().for_each(|(block, ptr)| each(state, ptr, Some((layer, block))));
        }
        Ok(())
    }

    /// For tests and the simulator, while nobody commits: whether the counts are those of the map and of the checkpoint.
    pub async fn check_counts(self: &Rc<Self>) -> Result<(), String> {
        // What layers have lost is counted beside this, and merges have checkpoints taken.
        let mut found = Ok(());
        for _ in 0..CHECKS_MAX {
            while !self.is_at_rest() || self.checkpointing.get() {
                peristyle_rt::sleep(COUNTING).await;
            }
            let before = self.state.borrow().stats.checkpoints;
            found = self.compare_counts().await;
            // One that was taken meanwhile has put map blocks where nothing points at them yet.
            if !self.checkpointing.get() && self.state.borrow().stats.checkpoints == before {
                break;
            }
        }
        found
    }

    async fn compare_counts(self: &Rc<Self>) -> Result<(), String> {
        let mut counted: BTreeMap<ExtentId, (u32, u32)> = BTreeMap::new();
        let (mut live, mut of_layers) = (0, BTreeMap::new());
        let count = |_: &mut State, ptr: Ptr, of: Option<(LayerId, u64)>| {
            let is_live = of.is_some();
            of.into_iter().for_each(|(layer, _)| *of_layers.entry(layer).or_insert(0) += 1);
            let there = counted.entry(ptr.extent()).or_default();
            (there.0, there.1) = (there.0 + is_live as u32, there.1 + !is_live as u32);
            live += is_live as u64;
        };
        self.walk(count).await.map_err(|error| format!("the map cannot be read: {error}"))?;
        let State { map, roots, extents, .. } = &*self.state.borrow();
        let mut meta = |ptr: Ptr| counted.entry(ptr.extent()).or_default().1 += 1;
        roots.for_each(&mut meta);
        map.retired().iter().copied().for_each(meta);
        if live != map.mapped_blocks() {
            return Err(format!("{live} pointers are live and {} are counted", map.mapped_blocks()));
        }
        map.compare_live(&of_layers)?;
        for e in extents.iter() {
            let there = counted.remove(&e.id).unwrap_or_default();
            if there != (e.live, e.meta) {
                let counts = (e.live, e.meta);
                return Err(format!("extent {} has {there:?} blocks and counts {counts:?}", e.id));
            }
        }
        let dead = extents.iter().filter(|e| e.is_dead()).count();
        let gone = extents.iter().filter(|e| e.holds_nothing()).count();
        if (dead, gone) != (extents.dead, extents.gone) {
            let counts = (extents.dead, extents.gone);
            return Err(format!("{dead} extents are dead, {gone} hold nothing, and {counts:?} are counted"));
        }
        match counted.is_empty() {
            true => Ok(()),
            false => Err(format!("the map points at extents that are not there: {counted:?}")),
        }
    }
}

/// The second lies right behind the first.
fn follows(a: &Ptr, b: &Ptr) -> bool {
    (a.extent(), a.column()) == (b.extent(), b.column()) && a.row().0 + 1 == b.row().0
}
