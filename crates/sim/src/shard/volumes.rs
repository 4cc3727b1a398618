//! Volumes, snapshots and clones in the life of a shard, all of them used meanwhile: at every crash what happens to them is
//! done or not begun, at one point of the order.

use super::family::{Change, Held};
use super::life::{LAYER, Owner, join_two};
use crate::operation::Operation;
use peristyle_base::{BLOCK_BYTES, LayerId};
use peristyle_rt::sim::Rng;
use peristyle_rt::{Duration, join_all};
use std::fmt::Debug;

/// Two snapshots of the volume, a clone of the first with a snapshot of its own, and a clone of that.
const FIRST: LayerId = LayerId(2);
const CLONE: LayerId = LayerId(3);
const SECOND: LayerId = LayerId(4);
const OF_CLONE: LayerId = LayerId(5);
const CLONE_OF_CLONE: LayerId = LayerId(6);
/// A snapshot of what a crash has left.
const LATER: LayerId = LayerId(7);
/// Sectors of a block.
const BLOCK: u64 = BLOCK_BYTES as u64 / crate::model::SECTOR;
/// A few blocks are written again and again.
const HOT: u64 = 6;

impl Owner {
    /// All that happens to volumes, and the end of all but the first.
    pub async fn volumes_and_snapshots(&self, rng: &mut Rng) {
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
        self.drop_all(rng).await;
    }

    /// In any order; what nobody names merges meanwhile, and sometimes into what is made flat just then.
    async fn drop_all(&self, rng: &mut Rng) {
        let _step = self.rig.watch.under_way.begin(Operation::Snapshot);
        for view in shuffled(rng, vec![FIRST, CLONE, SECOND, OF_CLONE, CLONE_OF_CLONE]) {
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
    async fn change<E: Debug>(
        &self,
        change: Change,
        wait: Duration,
        act: impl Future<Output = Result<(), E>>,
        beside: impl Future<Output = ()>,
    ) {
        let (family, act, beside) = (&self.rig.family, Box::pin(act), Box::pin(beside));
        family.borrow_mut().begin(change);
        let acting = async {
            peristyle_rt::sleep(wait).await;
            family.borrow_mut().ask();
            act.await.expect("it is there, and so is room");
            family.borrow_mut().answer();
        };
        join_two(acting, beside).await;
        self.settle_change().await;
    }

    async fn take_snapshots(&self, group: &[(LayerId, LayerId)], rng: &mut Rng) {
        let operation = if group.len() > 1 { Operation::GroupSnapshot } else { Operation::Snapshot };
        let _step = self.rig.watch.under_way.begin(operation);
        let volumes: Vec<LayerId> = group.iter().map(|(volume, _)| *volume).collect();
        let change = Change::Snapshot(group.to_vec());
        self.change(change, any_time(rng), self.shard.snapshot(group), self.write_beside(&volumes, rng))
            .await;
    }

    async fn make_clone(&self, volume: LayerId, snapshot: LayerId) {
        let _step = self.rig.watch.under_way.begin(Operation::Clone);
        let cloned = self.shard.clone_snapshot(volume, snapshot);
        self.change(Change::Clone { volume, snapshot }, Duration::ZERO, cloned, async {}).await;
    }

    async fn roll_back(&self, volume: LayerId, snapshot: LayerId, rng: &mut Rng) {
        let _step = self.rig.watch.under_way.begin(Operation::RollBack);
        let rolled = self.shard.roll_back(volume, snapshot);
        // What is written has to be inside before and after.
        let smaller = [volume, snapshot].map(|id| self.rig.family.borrow().model(id).sectors() / BLOCK);
        let beside = self.write_beside_below(&[volume], smaller[0].min(smaller[1]), rng);
        self.change(Change::RollBack { volume, snapshot }, any_time(rng), rolled, beside).await;
    }

    /// Reads and writes of all kinds go on.
    async fn flatten(&self, volume: LayerId, rng: &mut Rng) {
        let _step = self.rig.watch.under_way.begin(Operation::Flatten);
        let (writing, reading) = (self.write_beside(&[volume], rng), self.read_some(volume, rng.fork(), 3));
        let zeroing = self.zero_some(volume, rng.fork());
        let beside = async { _ = join_two(writing, join_two(reading, zeroing)).await };
        self.change(Change::Flatten(volume), Duration::ZERO, self.shard.flatten(volume), beside).await;
    }

    /// Smaller or larger than its snapshot, and than what it was made from.
    async fn resize_clone(&self, rng: &mut Rng) {
        let _step = self.rig.watch.under_way.begin(Operation::Resize);
        for _ in 0..2 {
            let there = self.rig.family.borrow().model(CLONE).sectors() / BLOCK;
            let blocks = rng.between(100, 599);
            let blocks = blocks + u64::from(blocks >= there);
            let resized = self.shard.resize_layer(CLONE, blocks, true);
            self.change(Change::Resize(CLONE, blocks), Duration::ZERO, resized, async {}).await;
            // At its end.
            let written = self.write_to(CLONE, || blocks - 2, 2).await;
            written.expect("nobody took over");
        }
    }

    async fn drop_view(&self, view: LayerId) {
        self.change(Change::Drop(view), Duration::ZERO, self.shard.drop_layer(view), async {}).await;
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
