//! Volumes, snapshots and clones in the life of a shard, all of them used meanwhile: at every crash what happens to them is
//! done or not begun, at one point of the order.

use super::family::{Change, Held};
use super::life::{LAYER, Owner, join_two};
use crate::operation::Operation;
use peristyle_base::{BLOCK_BYTES, LayerId};
use peristyle_rt::sim::Rng;
use peristyle_rt::{Duration, join_all};
use peristyle_shard::ShardError;
use std::cell::Cell;

/// Two snapshots of the volume, a clone of the first with a snapshot of its own, and a clone of that.
const FIRST: LayerId = LayerId(2);
const CLONE: LayerId = LayerId(3);
const SECOND: LayerId = LayerId(4);
const OF_CLONE: LayerId = LayerId(5);
const CLONE_OF_CLONE: LayerId = LayerId(6);
/// A snapshot of what a crash has left.
const LATER: LayerId = LayerId(7);
/// A snapshot, and a clone, that are made while another owner takes over.
const AT_TAKEOVER: LayerId = LayerId(8);
/// Sectors of a block.
const BLOCK: u64 = BLOCK_BYTES as u64 / crate::model::SECTOR;
/// A few blocks are written again and again.
const HOT: u64 = 6;

impl Owner {
    /// All that happens to volumes, and the end of all but the first. Returns who serves the shard then.
    pub async fn volumes_and_snapshots(self, rng: &mut Rng) -> Owner {
        self.take_snapshots(&[(LAYER, FIRST)], rng).await;
        self.write_some(rng, 2).await;
        self.make_clone(CLONE, FIRST).await;
        self.write_in_turn(&[CLONE], rng.fork(), 2).await;
        if rng.coin() {
            self.checkpoint().await;
        }
        self.take_snapshots(&[(LAYER, SECOND), (CLONE, OF_CLONE)], rng).await;
        if rng.coin() {
            self.cut_off_and_grow(rng).await;
        }
        self.make_clone(CLONE_OF_CLONE, OF_CLONE).await;
        for what in shuffled(rng, vec![0, 1, 2, 3]).into_iter().take(2) {
            match what {
                0 => self.resize_clone(rng).await,
                1 => {
                    let snapshot = *rng.pick(&[FIRST, SECOND]);
                    self.roll_back(LAYER, snapshot, rng).await;
                }
                2 => self.roll_back(CLONE, OF_CLONE, rng).await,
                _ => self.flatten(CLONE_OF_CLONE, rng).await,
            }
        }
        let owner = if rng.coin() { self.take_over_during_a_change(rng).await } else { self };
        owner.drop_all(rng).await;
        owner
    }

    /// Another owner takes over while this one, who does not know of it, begins one more change: the change is done or not
    /// begun, as after a crash, and one that is asked for afterwards is not acknowledged.
    async fn take_over_during_a_change(&self, rng: &mut Rng) -> Owner {
        let change = match rng.below(5) {
            0 => Change::Snapshot(vec![(LAYER, AT_TAKEOVER)]),
            1 => Change::Clone { volume: AT_TAKEOVER, snapshot: FIRST },
            2 => Change::RollBack { volume: LAYER, snapshot: SECOND },
            3 => Change::Flatten(CLONE),
            _ => Change::Drop(SECOND),
        };
        let operation = match change {
            Change::Clone { .. } => Operation::Clone,
            Change::RollBack { .. } => Operation::RollBack,
            Change::Flatten(_) => Operation::Flatten,
            _ => Operation::Snapshot,
        };
        let _step = self.rig.watch.under_way.begin(operation);
        let (family, wait) = (&self.rig.family, self.rig.watch.half_a_put * 4);
        let wait = Duration::from_nanos(rng.below(wait.as_nanos() as u64));
        family.borrow_mut().begin(change.clone());
        let changing = async |over: &Cell<bool>| {
            peristyle_rt::sleep(wait).await;
            family.borrow_mut().ask();
            let late = over.get();
            match self.act(&change).await {
                Ok(()) => {
                    assert!(!late, "a change was acknowledged by the owner before: {change:?}");
                    family.borrow_mut().answer();
                }
                Err(error) => assert_eq!(error, ShardError::Stopped, "{change:?}"),
            }
        };
        let owner = self.take_over_beside(rng, changing).await;
        owner.decide().await;
        owner.compare_all().await;
        owner.settle_old().await;
        owner
    }

    async fn act(&self, change: &Change) -> Result<(), ShardError> {
        match change {
            Change::Snapshot(group) => self.shard.snapshot(group).await,
            Change::Clone { volume, snapshot } => self.shard.clone_snapshot(*volume, *snapshot).await,
            Change::RollBack { volume, snapshot } => self.shard.roll_back(*volume, *snapshot).await,
            Change::Flatten(volume) => self.shard.flatten(*volume).await,
            Change::Drop(view) => self.shard.drop_layer(*view).await,
            Change::Resize(volume, blocks) => {
                let resized = self.shard.resize_layer(*volume, *blocks, true).await;
                resized.map_err(|error| panic!("{change:?}: {error:?}"))
            }
        }
    }

    /// In any order; what nobody names merges meanwhile, and sometimes into what is made flat just then.
    async fn drop_all(&self, rng: &mut Rng) {
        let _step = self.rig.watch.under_way.begin(Operation::Snapshot);
        for view in shuffled(rng, self.those(|_| true)).into_iter().filter(|id| *id != LAYER) {
            self.drop_view(view).await;
            if rng.below(4) == 0 {
                let volumes = self.those(|held| held.writable);
                self.flatten(*rng.pick(&volumes), rng).await;
            }
        }
        join_two(self.write_some(&mut rng.fork(), 3), self.merged()).await;
        let (usage, nobodys) = (self.shard.usage(LAYER).expect("it is there"), self.shard.accounts().nobodys);
        assert_eq!((usage.depth, usage.shared, nobodys), (1, 0, 0), "what nobody names is gone");
    }

    /// One change of what a crash has left.
    pub async fn change_once_more(&self, rng: &mut Rng) {
        let (volumes, snapshots) = (self.those(|held| held.writable), self.those(|held| !held.writable));
        let volume = *rng.pick(&volumes);
        let Some(_) = snapshots.first() else { return self.take_snapshots(&[(volume, LATER)], rng).await };
        let snapshot = *rng.pick(&snapshots);
        let sizes = |id| self.rig.family.borrow().model(id).sectors();
        match rng.below(4) {
            0 => self.flatten(volume, rng).await,
            1 => self.drop_view(snapshot).await,
            2 if volume != LAYER || sizes(volume) == sizes(snapshot) => {
                self.roll_back(volume, snapshot, rng).await;
            }
            _ => self.take_snapshots(&[(volume, LATER)], rng).await,
        }
    }

    fn those(&self, wanted: impl Fn(&Held) -> bool) -> Vec<LayerId> {
        let family = self.rig.family.borrow();
        family.held.iter().filter(|(_, held)| wanted(held)).map(|(id, _)| *id).collect()
    }

    /// One change, after some time and beside something else.
    async fn change(&self, change: Change, wait: Duration, beside: impl Future<Output = ()>) {
        let (family, beside) = (&self.rig.family, Box::pin(beside));
        family.borrow_mut().begin(change.clone());
        let acting = async {
            peristyle_rt::sleep(wait).await;
            family.borrow_mut().ask();
            self.act(&change).await.expect("it is there, and so is room");
            family.borrow_mut().answer();
        };
        join_two(Box::pin(acting), beside).await;
        self.settle_change().await;
    }

    async fn take_snapshots(&self, group: &[(LayerId, LayerId)], rng: &mut Rng) {
        let operation = if group.len() > 1 { Operation::GroupSnapshot } else { Operation::Snapshot };
        let _step = self.rig.watch.under_way.begin(operation);
        let volumes: Vec<LayerId> = group.iter().map(|(volume, _)| *volume).collect();
        let change = Change::Snapshot(group.to_vec());
        self.change(change, any_time(rng), self.write_beside(&volumes, rng)).await;
    }

    async fn make_clone(&self, volume: LayerId, snapshot: LayerId) {
        let _step = self.rig.watch.under_way.begin(Operation::Clone);
        self.change(Change::Clone { volume, snapshot }, Duration::ZERO, async {}).await;
    }

    async fn roll_back(&self, volume: LayerId, snapshot: LayerId, rng: &mut Rng) {
        let _step = self.rig.watch.under_way.begin(Operation::RollBack);
        // What is written has to be inside before and after.
        let smaller = [volume, snapshot].map(|id| self.rig.family.borrow().model(id).sectors() / BLOCK);
        let beside = self.write_beside_below(&[volume], smaller[0].min(smaller[1]), rng);
        self.change(Change::RollBack { volume, snapshot }, any_time(rng), beside).await;
    }

    /// Reads and writes of all kinds go on.
    async fn flatten(&self, volume: LayerId, rng: &mut Rng) {
        let _step = self.rig.watch.under_way.begin(Operation::Flatten);
        let (writing, reading) = (self.write_beside(&[volume], rng), self.read_some(volume, rng.fork(), 3));
        let zeroing = self.zero_some(volume, rng.fork());
        let beside = async { _ = join_two(writing, join_two(reading, zeroing)).await };
        self.change(Change::Flatten(volume), Duration::ZERO, beside).await;
    }

    /// Smaller or larger than its snapshot, and than what it was made from.
    async fn resize_clone(&self, rng: &mut Rng) {
        let _step = self.rig.watch.under_way.begin(Operation::Resize);
        for _ in 0..2 {
            let there = self.rig.family.borrow().model(CLONE).sectors() / BLOCK;
            let blocks = rng.between(100, 599);
            let blocks = blocks + u64::from(blocks >= there);
            self.change(Change::Resize(CLONE, blocks), Duration::ZERO, async {}).await;
            // At its end.
            let written = self.write_to(CLONE, || blocks - 2, 2).await;
            written.expect("nobody took over");
        }
    }

    async fn drop_view(&self, view: LayerId) {
        self.change(Change::Drop(view), Duration::ZERO, async {}).await;
    }

    async fn merged(&self) {
        while !self.shard.is_at_rest() {
            peristyle_rt::sleep(Duration::from_micros(50)).await;
        }
    }

    fn write_beside(&self, volumes: &[LayerId], rng: &mut Rng) -> impl Future<Output = ()> + use<> {
        let sizes = volumes.iter().map(|id| self.rig.family.borrow().model(*id).sectors() / BLOCK);
        self.write_beside_below(volumes, sizes.min().expect("at least one"), rng)
    }

    /// Two who write, each one thing after the other, to any of the volumes.
    fn write_beside_below(
        &self,
        volumes: &[LayerId],
        below: u64,
        rng: &mut Rng,
    ) -> impl Future<Output = ()> + use<> {
        let (owner, volumes) = (self.clone(), volumes.to_vec());
        let (mut first, mut second) = (rng.fork(), rng.fork());
        async move {
            let first = owner.write_below(&volumes, below, &mut first, 3);
            join_two(first, owner.write_below(&volumes, below, &mut second, 3)).await;
        }
    }

    async fn write_in_turn(&self, volumes: &[LayerId], mut rng: Rng, count: usize) {
        let below = self.rig.family.borrow().model(volumes[0]).sectors() / BLOCK;
        self.write_below(volumes, below, &mut rng, count).await;
    }

    async fn write_below(&self, volumes: &[LayerId], below: u64, rng: &mut Rng, count: usize) {
        for _ in 0..count {
            let (volume, blocks) = (*rng.pick(volumes), rng.between(1, 3));
            let place = || {
                let hot = rng.below(3) > 0;
                rng.below(if hot { HOT } else { below - blocks + 1 })
            };
            self.write_to(volume, place, blocks).await.expect("nobody took over");
        }
    }

    /// Every volume is written to.
    pub async fn write_everywhere(&self, rng: &mut Rng) {
        let volumes = self.those(|held| held.writable);
        let all =
            volumes.iter().map(|volume| self.write_in_turn(std::slice::from_ref(volume), rng.fork(), 1));
        join_all(all.collect::<Vec<_>>()).await;
    }

    async fn read_some(&self, volume: LayerId, mut rng: Rng, count: usize) {
        let model = self.rig.family.borrow().model(volume);
        for _ in 0..count {
            let first = rng.below(model.sectors() / BLOCK - HOT) * BLOCK * rng.below(2);
            self.compare(volume, &model, first, HOT * BLOCK).await;
        }
    }

    async fn zero_some(&self, volume: LayerId, mut rng: Rng) {
        let model = self.rig.family.borrow().model(volume);
        let blocks = rng.between(1, 20);
        let first = rng.below(model.sectors() / BLOCK - blocks + 1);
        self.zero(volume, first, blocks).await;
    }
}

fn any_time(rng: &mut Rng) -> Duration {
    Duration::from_micros(rng.below(400))
}

fn shuffled<T>(rng: &mut Rng, mut items: Vec<T>) -> Vec<T> {
    for i in (1..items.len()).rev() {
        items.swap(i, rng.below(i as u64 + 1) as usize);
    }
    items
}
