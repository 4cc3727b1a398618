//! Snapshots and clones. Each is one event of the log, whatever the volume holds: the layer that a write goes to is chosen
//! when its frame is built, so a snapshot is one point of the order, for one volume or for several. What nobody needs any
//! more merges beside the I/O path (`map/merge.rs`).

use crate::builder::Effect;
use crate::columns::Columns;
use crate::error::ShardError;
use crate::frame::{ENTRIES_MAX, Entry};
use crate::map::{Lookup, Merge, Usage};
use crate::read::READ_BLOCKS_MAX;
use crate::shard::{Shard, State};
use peristyle_base::{BLOCK_BYTES, LayerId};
use peristyle_cluster::ShardStore;
use peristyle_rt::{Duration, timeout};
use std::rc::Rc;

/// Volumes that are snapshotted at one point at most.
pub const GROUP_MAX: usize = 64;
/// Pause before a step that could not be made is tried again.
const RETRY: Duration = Duration::from_millis(100);

const _: () = assert!(GROUP_MAX <= ENTRIES_MAX, "a group is one frame");

/// All live blocks of a shard, by whose they are.
#[derive(Clone, Debug, Default)]
pub struct Accounts {
    /// Of each volume and snapshot.
    pub usage: Vec<(LayerId, Usage)>,
    /// Of layers that several need and nobody names, and of what is gone and not counted yet.
    pub nobodys: u64,
    /// The sum.
    pub live: u64,
}

impl<C: Columns, S: ShardStore + 'static> Shard<C, S> {
    /// Takes a snapshot of each volume, all at one point: each has every write that was acknowledged before, and none
    /// that begins after this returns. `group` is volumes, and the numbers that their snapshots get.
    pub async fn snapshot(&self, group: &[(LayerId, LayerId)]) -> Result<(), ShardError> {
        let _turn = self.layer_turn.acquire(1).await;
        if group.is_empty() || group.len() > GROUP_MAX {
            return Err(ShardError::OutOfRange);
        }
        let events = {
            let map = &mut self.state.borrow_mut().map;
            let mut events = Vec::with_capacity(group.len());
            for (i, &(volume, snapshot)) in group.iter().enumerate() {
                let twice = group[..i].iter().any(|other| other.0 == volume || other.1 == snapshot);
                let view = map.view(volume).filter(|view| view.writable && !twice);
                let free = map.view(snapshot).is_none();
                let view = view.filter(|_| free).ok_or(ShardError::NoSuchLayer)?;
                map.fits_more(view.layer, group.len()).map_err(|_| ShardError::MapFull)?;
                events.push(Entry::SnapshotTaken { volume, snapshot, new: map.new_layer() });
            }
            events
        };
        self.commit(Effect::Group(events)).await
    }

    /// Makes a volume that holds what a snapshot does. It is written from now on, and shares what it does not change.
    pub async fn clone_snapshot(&self, volume: LayerId, snapshot: LayerId) -> Result<(), ShardError> {
        let _turn = self.layer_turn.acquire(1).await;
        let new = {
            let map = &mut self.state.borrow_mut().map;
            let view = map.view(snapshot).filter(|view| !view.writable && map.view(volume).is_none());
            let view = view.ok_or(ShardError::NoSuchLayer)?;
            map.fits_more(view.layer, 1).map_err(|_| ShardError::MapFull)?;
            map.new_layer()
        };
        self.commit(Effect::Event(Entry::SnapshotCloned { volume, snapshot, new })).await
    }

    /// A volume becomes what a snapshot is, its size included. Commands that arrive meanwhile wait.
    pub async fn roll_back(&self, volume: LayerId, snapshot: LayerId) -> Result<(), ShardError> {
        let _turn = self.layer_turn.acquire(1).await;
        let _all = self.lock(volume, 0, u64::MAX).await;
        let new = {
            let map = &mut self.state.borrow_mut().map;
            let (from, to) = (map.view(volume), map.view(snapshot));
            let (Some(_), Some(to)) = (from.filter(|v| v.writable), to.filter(|v| !v.writable)) else {
                return Err(ShardError::NoSuchLayer);
            };
            map.fits_more(to.layer, 1).map_err(|_| ShardError::MapFull)?;
            map.new_layer()
        };
        self.commit(Effect::Event(Entry::RolledBack { volume, snapshot, new })).await
    }

    /// Copies into a volume what it shares with others, and parts it from them. It is used meanwhile.
    pub async fn flatten(self: &Rc<Self>, volume: LayerId) -> Result<(), ShardError> {
        let view = self.state.borrow().map.view(volume).filter(|view| view.writable);
        let top = view.ok_or(ShardError::NoSuchLayer)?.layer;
        let mut block = 0;
        while self.state.borrow().map.parent(top).is_some() {
            let blocks = self.state.borrow().map.view_blocks(volume).ok_or(ShardError::NoSuchLayer)?;
            if block >= blocks {
                break;
            }
            if self.state.borrow().map.is_bare_page(top, block) {
                block = (block / crate::map::PAGE_BLOCKS + 1) * crate::map::PAGE_BLOCKS;
                continue;
            }
            let count = (blocks - block).min(READ_BLOCKS_MAX as u64 / 2);
            self.copy_up(volume, top, block, count).await?;
            block += count;
        }
        loop {
            // What has merged into the layer is in no log before the end of the merge is: parted earlier, a restart
            // would not find it.
            let is_gaining = || self.state.borrow().map.is_gaining(top);
            self.progress.wait_until(|| !is_gaining() || self.stopped().is_some()).await;
            let _turn = self.layer_turn.acquire(1).await;
            if self.head(volume) != Some(top) {
                return Err(ShardError::Changed);
            }
            if !is_gaining() || self.stopped().is_some() {
                return self.commit(Effect::Event(Entry::LayerParted { volume })).await;
            }
        }
    }

    /// Writes what a volume's own layer does not have and its ancestors do. Nobody else writes these blocks meanwhile.
    async fn copy_up(
        self: &Rc<Self>,
        volume: LayerId,
        top: LayerId,
        block: u64,
        count: u64,
    ) -> Result<(), ShardError> {
        let _mine = self.lock(volume, block, count).await;
        self.settled(volume, block, count).await?;
        if self.head(volume) != Some(top) {
            return Err(ShardError::Changed);
        }
        let end = (block + count).min(self.state.borrow().map.view_blocks(volume).unwrap_or(0));
        let mut at = block;
        while at < end {
            let mut run = 0;
            while at + run < end && self.is_inherited(top, at + run).await? {
                run += 1;
            }
            if run > 0 {
                let mut buf = self.kept().commands.alloc((2 * run as usize) * BLOCK_BYTES).await;
                let mut whole = buf.split_to(run as usize * BLOCK_BYTES);
                let memory = buf.split_to(run as usize * BLOCK_BYTES);
                let mut filled = 0;
                for piece in self.read_into(volume, at, memory).await?.pieces() {
                    whole[filled..filled + piece.len()].copy_from_slice(piece);
                    filled += piece.len();
                }
                let data = whole.freeze();
                self.commit(Effect::Write { layer: volume, block: at, data }).await?;
            }
            at += run.max(1);
        }
        Ok(())
    }

    async fn is_inherited(self: &Rc<Self>, top: LayerId, block: u64) -> Result<bool, ShardError> {
        loop {
            let found = {
                let map = &mut self.state.borrow_mut().map;
                match map.lookup(top, block) {
                    Lookup::Absent => map.find(top, block).map(|found| matches!(found, Lookup::Data(_))),
                    Lookup::Away => Err(crate::map::Away::of(top, block)),
                    _ => Ok(false),
                }
            };
            match found {
                Ok(inherited) => return Ok(inherited),
                Err(away) => self.bring(away).await?,
            }
        }
    }

    /// What a volume or a snapshot takes.
    pub fn usage(&self, layer: LayerId) -> Option<Usage> {
        self.state.borrow().map.usage(layer)
    }

    pub fn accounts(&self) -> Accounts {
        let map = &self.state.borrow().map;
        let usage = map.views().filter_map(|(id, _)| Some((id, map.usage(id)?))).collect();
        Accounts { usage, nobodys: map.nobodys_blocks(), live: map.mapped_blocks() }
    }

    /// For tests and the simulator: nothing merges, and nothing waits to be counted.
    pub fn is_at_rest(&self) -> bool {
        let map = &self.state.borrow().map;
        !map.is_merging() && map.all_counted()
    }

    /// Merges layers that nobody names into their only children, one step after the other.
    pub(crate) async fn run_merges(self: Rc<Self>) {
        loop {
            let next = {
                let State { map, extents, stopped, recovering, .. } = &mut *self.state.borrow_mut();
                match (stopped.is_some(), *recovering) {
                    (true, _) => return,
                    (_, true) => Merge::Nothing,
                    _ => map.merge(|ptr| extents.drop_live(ptr)),
                }
            };
            self.tell_of_deaths();
            match next {
                Merge::Nothing => {
                    let due = || {
                        let state = self.state.borrow();
                        state.stopped.is_some() || (state.map.is_merging() && !state.recovering)
                    };
                    self.progress.wait_until(due).await;
                }
                Merge::More => peristyle_rt::end_of_turn().await,
                Merge::Busy => _ = timeout(RETRY, self.progress.notified()).await,
                Merge::Full => self.checkpoint_or_pause().await,
                Merge::Page(away) if self.bring_page(away).await.is_err() => peristyle_rt::sleep(RETRY).await,
                Merge::Leaf(away) if self.bring(away).await.is_err() => peristyle_rt::sleep(RETRY).await,
                Merge::Page(_) | Merge::Leaf(_) => {}
                Merge::Bare(layers) => self.end_merges(layers).await,
            }
        }
    }

    async fn checkpoint_or_pause(&self) {
        if self.checkpoint().await.is_err() {
            peristyle_rt::sleep(RETRY).await;
        }
    }

    /// Behind a checkpoint that has nothing of them layers go, and headers that name them lead to others.
    async fn end_merges(&self, layers: Vec<LayerId>) {
        if self.checkpoint().await.is_err() {
            return peristyle_rt::sleep(RETRY).await;
        }
        let _turn = self.layer_turn.acquire(1).await;
        for layers in layers.chunks(GROUP_MAX) {
            let events = layers.iter().map(|&layer| Entry::LayerMerged { layer }).collect();
            if self.commit(Effect::Group(events)).await.is_err() {
                return peristyle_rt::sleep(RETRY).await;
            }
        }
    }
}
