//! Volumes and snapshots of one shard, as their users know them, and what is being done to them: after a crash that is
//! done or not begun, and found out once.

use super::life::{LAYER, Owner};
use super::window::{Seen, Window};
use crate::model::{Model, SECTOR, Tag, holds};
use crate::node::flat;
use peristyle_base::{BLOCK_BYTES, LayerId};
use std::collections::BTreeMap;

const BLOCK: u64 = BLOCK_BYTES as u64 / SECTOR;
/// Sectors of one read.
const READ: u64 = 1024;

/// Something that happens to volumes and snapshots.
#[derive(Clone, Debug)]
pub enum Change {
    /// Volumes and their snapshots.
    Snapshot(Vec<(LayerId, LayerId)>),
    Clone {
        volume: LayerId,
        snapshot: LayerId,
    },
    RollBack {
        volume: LayerId,
        snapshot: LayerId,
    },
    Flatten(LayerId),
    Resize(LayerId, u64),
    Drop(LayerId),
}

/// A volume, or a snapshot.
pub struct Held {
    pub model: Model,
    pub writable: bool,
}

/// A change that is under way, and what its volumes held when nothing was.
#[derive(Clone)]
struct UnderWay {
    change: Change,
    before: BTreeMap<LayerId, Vec<Tag>>,
    window: Window,
}

#[derive(Default)]
pub struct Family {
    pub held: BTreeMap<LayerId, Held>,
    under_way: Option<UnderWay>,
    /// Counts what users were told.
    told: u64,
}

impl Family {
    /// One volume of zeros.
    pub fn new(bytes: u64) -> Family {
        let held = Held { model: Model::new(bytes), writable: true };
        Family { held: BTreeMap::from([(LAYER, held)]), ..Family::default() }
    }

    pub fn crashed_copy(&self) -> Family {
        let copy = |(id, held): (&LayerId, &Held)| {
            (*id, Held { model: held.model.crashed_copy(), writable: held.writable })
        };
        let held = self.held.iter().map(copy).collect();
        Family { held, under_way: self.under_way.clone(), told: self.told }
    }

    pub fn model(&self, id: LayerId) -> Model {
        self.held[&id].model.clone()
    }

    pub fn acknowledged(&self) -> u64 {
        self.held.values().map(|held| held.model.acknowledged()).sum()
    }
    pub fn verified(&self) -> u64 {
        self.held.values().map(|held| held.model.verified()).sum()
    }

    /// Changes with whatever is promised of volumes and snapshots.
    pub fn promise(&self) -> u64 {
        self.acknowledged() + (self.told << 32)
    }

    pub fn begin(&mut self, change: Change) {
        assert!(self.under_way.is_none(), "one at a time");
        let volumes: Vec<LayerId> = match &change {
            Change::Snapshot(group) => group.iter().map(|(volume, _)| *volume).collect(),
            Change::RollBack { volume, .. } => vec![*volume],
            _ => Vec::new(),
        };
        let before = volumes.into_iter().map(|volume| (volume, self.held[&volume].model.tags())).collect();
        self.under_way = Some(UnderWay { change, before, window: Window::default() });
        self.told += 1;
    }
    pub fn ask(&mut self) {
        self.window().expect("a change has begun").ask();
        self.told += 1;
    }
    pub fn answer(&mut self) {
        self.window().expect("a change has begun").answer();
        self.told += 1;
    }
    pub fn window(&mut self) -> Option<&mut Window> {
        self.under_way.as_mut().map(|under_way| &mut under_way.window)
    }

    fn hold(&mut self, id: LayerId, tags: Vec<Tag>, writable: bool) {
        self.held.insert(id, Held { model: Model::of(tags, id.0), writable });
    }
}

impl Owner {
    /// Finds out what has become of what was being done.
    /// # Panics — when it is neither done nor not begun, or not done although it was acknowledged.
    pub async fn settle_change(&self) {
        let Some(under_way) = self.rig.family.borrow().under_way.clone() else { return };
        let UnderWay { change, before, window } = under_way;
        let (may, must) = (window.is_asked(), window.is_answered());
        let check = |done: bool| {
            assert!(!done || may, "nobody asked for it: {change:?}");
            assert!(done || !must, "it was acknowledged, and is lost: {change:?}");
            done
        };
        match &change {
            Change::Snapshot(group) => {
                let there = group.iter().filter(|(_, snapshot)| self.blocks_of(*snapshot).is_some()).count();
                assert!(there == 0 || there == group.len(), "a group is there in part: {change:?}");
                if check(there > 0) {
                    self.settle_snapshots(group, &before, &window).await;
                }
            }
            Change::Clone { volume, snapshot } => {
                if check(self.blocks_of(*volume).is_some()) {
                    let family = &mut *self.rig.family.borrow_mut();
                    let tags = family.held[snapshot].model.tags();
                    family.hold(*volume, tags, true);
                }
            }
            Change::RollBack { volume, snapshot } => {
                let content = self.content_of(*volume).await;
                let seen = Seen { volume: *volume, before: &before[volume], content: &content };
                let (model, to) = {
                    let family = self.rig.family.borrow();
                    (family.model(*volume), family.held[snapshot].model.tags())
                };
                let tags = window.rolled_back(&seen, &to).or_else(|done| match must {
                    true => Err(done),
                    false => window.written(&seen).map_err(|not| format!("done: {done}; not done: {not}")),
                });
                model.become_tags(tags.unwrap_or_else(|wrong| panic!("{change:?}: {wrong}")));
            }
            Change::Flatten(volume) => {
                let usage = self.shard.usage(*volume).expect("it is there");
                check((usage.depth, usage.shared) == (1, 0));
            }
            Change::Resize(volume, blocks) => {
                let (model, there) = (self.rig.family.borrow().model(*volume), self.blocks_of(*volume));
                let before = Some(model.sectors() / BLOCK);
                assert!(there == before || there == Some(*blocks), "{change:?}: {there:?} blocks");
                check(there == Some(*blocks));
                model.resize(there.expect("just compared") * BLOCK);
            }
            Change::Drop(view) => {
                if check(self.blocks_of(*view).is_none()) {
                    self.rig.family.borrow_mut().held.remove(view);
                }
            }
        }
        // Only now: what is lost while this looks is looked at again.
        let family = &mut *self.rig.family.borrow_mut();
        (family.under_way, family.told) = (None, family.told + 1);
    }

    async fn settle_snapshots(
        &self,
        group: &[(LayerId, LayerId)],
        before: &BTreeMap<LayerId, Vec<Tag>>,
        window: &Window,
    ) {
        let mut contents = Vec::new();
        for (volume, snapshot) in group {
            contents.push((*volume, self.content_of(*snapshot).await));
        }
        let all: Vec<Seen<'_>> = contents
            .iter()
            .map(|(volume, content)| Seen { volume: *volume, before: &before[volume], content })
            .collect();
        let tags = window.snapshots(&all).unwrap_or_else(|wrong| panic!("snapshots {group:?}: {wrong}"));
        for seen in &all {
            for (first, count, tag) in window.unanswered_in(seen) {
                let data = self.read_of(seen.volume, first, count).await;
                let mut sectors = (first..).zip(data.chunks_exact(SECTOR as usize));
                let there = sectors.all(|(sector, chunk)| holds(tag, sector, chunk));
                assert!(there, "sector {first} of {:?} is in a snapshot, and lost", seen.volume);
            }
        }
        let family = &mut *self.rig.family.borrow_mut();
        group.iter().zip(tags).for_each(|((_, snapshot), tags)| family.hold(*snapshot, tags, false));
    }

    fn blocks_of(&self, id: LayerId) -> Option<u64> {
        self.shard.layers().into_iter().find(|(there, _)| *there == id).map(|(_, blocks)| blocks)
    }

    async fn read_of(&self, id: LayerId, first: u64, count: u64) -> Vec<u8> {
        let data = self.shard.read(id, first * SECTOR, count * SECTOR).await;
        flat(&data.unwrap_or_else(|error| panic!("all devices are sound: {error}")))
    }

    async fn content_of(&self, id: LayerId) -> Vec<u8> {
        let sectors = self.blocks_of(id).expect("just seen") * BLOCK;
        let mut content = Vec::with_capacity((sectors * SECTOR) as usize);
        for first in (0..sectors).step_by(READ as usize) {
            content.extend(self.read_of(id, first, READ.min(sectors - first)).await);
        }
        content
    }

    /// Finds out what became of writes to any volume that nobody answered.
    pub async fn decide_writes(&self) {
        for (id, model) in self.models() {
            for (write, first, count) in model.orphans() {
                let data = self.read_of(id, first, count).await;
                model.decide(write, &data).unwrap_or_else(|wrong| panic!("after a crash, {id:?}: {wrong}"));
            }
        }
    }

    /// Volumes and snapshots are those that there must be, each holds what it must, and each live block is somebody's.
    pub async fn compare_family(&self) {
        let accounts = self.shard.accounts();
        let own: u64 = accounts.usage.iter().map(|(_, usage)| usage.own).sum();
        assert_eq!(own + accounts.nobodys, accounts.live, "accounts: {accounts:?}");
        let mut there: Vec<LayerId> = self.shard.layers().into_iter().map(|(id, _)| id).collect();
        there.sort_unstable();
        let models = self.models();
        assert!(models.iter().map(|(id, _)| id).eq(&there), "volumes and snapshots: {there:?}");
        for (id, model) in models {
            assert_eq!(self.blocks_of(id), Some(model.sectors() / BLOCK), "size of {id:?}");
            for first in (0..model.sectors()).step_by(READ as usize) {
                let count = READ.min(model.sectors() - first);
                self.compare(id, &model, first, count).await;
            }
        }
    }

    fn models(&self) -> Vec<(LayerId, Model)> {
        self.rig.family.borrow().held.iter().map(|(id, held)| (*id, held.model.clone())).collect()
    }
}
