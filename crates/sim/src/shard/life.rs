//! What happens to the shard, and what its hosts do.

use super::family::Family;
use super::watch::{Watch, WatchedColumns, WatchedStore};
use super::{Plan, Remains};
use crate::model::{Model, SECTOR, fill};
use crate::node::{device_id, flat};
use crate::operation::Operation;
use peristyle_base::{BLOCK_BYTES, LayerId, NodeId, Scheme, ShardId, Uuid};
use peristyle_cluster::{DomainId, MemoryShardStore, StoreError};
use peristyle_column::{FormatOptions, Reserve, Server, ServerConfig, format};
use peristyle_node::columns::NodeColumns;
use peristyle_node::devices::{DeviceTable, SharedDevice, Wish};
use peristyle_node::message::NodeBus;
use peristyle_rt::sim::{CrashState, DiskHandle, Rng};
use peristyle_rt::{Buf, Device, Duration, ReactorId, join_all};
use peristyle_shard::{RecoverError, Shard, ShardConfig, ShardError};
use std::cell::{Cell, RefCell};
use std::rc::Rc;

const CLUSTER: Uuid = Uuid([0xC1; 16]);
const SHARD: ShardId = ShardId(1);
pub(super) const LAYER: LayerId = LayerId(1);
const BLOCK: u64 = BLOCK_BYTES as u64 / SECTOR;
/// A pool with a few extents has another scheme by then.
const CONVERT_LIMIT: Duration = Duration::from_secs(300);
/// Blocks of the largest write: atomic all the same.
const LARGE: u64 = 128;
/// Another owner has taken the shard.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Stopped;

/// What one life has to do with, besides its disks.
#[derive(Clone)]
pub struct Rig {
    pub plan: Plan,
    pub seed: u64,
    /// The volume that is written all the time, and all volumes and snapshots: it is one of them.
    pub model: Model,
    pub family: Rc<RefCell<Family>>,
    pub store: MemoryShardStore,
    pub watch: Watch,
}

pub async fn format_all(disks: &[DiskHandle]) {
    for (i, disk) in disks.iter().enumerate() {
        let device = Device::open(&disk.spec()).await.expect("there");
        let options = FormatOptions { cluster: CLUSTER, device: device_id(i), force: false };
        format(&device, options).await.expect("blank");
    }
}

impl Rig {
    /// Changes when a crash is promised something else, or is one of something else.
    pub fn promise(&self) -> u64 {
        let under_way = u64::from(self.watch.under_way.bits());
        self.family.borrow().promise().rotate_left(40) ^ self.store.puts() << 24 ^ under_way
    }

    pub fn remains(&self, disks: &CrashState) -> Remains {
        let record = self.store.peek(SHARD).map(|(record, _)| record);
        Remains { disks: disks.clone(), record, family: self.family.borrow().crashed_copy() }
    }

    async fn columns(&self, disks: &[DiskHandle], away: &[usize]) -> Rc<WatchedColumns> {
        let here = ReactorId(0);
        let shared = |i: usize| SharedDevice::new(device_id(i), DomainId(i as u32), here, String::new());
        let table = DeviceTable::new((0..disks.len()).map(shared).collect());
        let port = peristyle_rt::mesh(1, 16).pop().expect("one");
        let columns = NodeColumns::new(table, Duration::from_secs(300), Rc::new(NodeBus::new(port.attach())));
        for (i, disk) in disks.iter().enumerate().filter(|(i, _)| !away.contains(i)) {
            let device = Device::open(&disk.spec()).await.expect("there");
            let server = Server::open(device, CLUSTER, ServerConfig::default()).await.expect("was formatted");
            server.set_reserve(SHARD, Reserve { collection: 2, meta: 2, reappend: 2 });
            columns.publish_usage(&server);
            columns.add_server(server);
            columns.table().get(device_id(i)).expect("listed").set_open();
        }
        Rc::new(WatchedColumns { columns, watch: self.watch.clone() })
    }

    /// The whole life.
    pub async fn live(self, disks: Vec<DiskHandle>) {
        let mut rng = Rng::new(self.seed ^ 0x11FE);
        let owner = Owner::take(&self, &disks).await;
        self.watch.settling.set(false); // a first start finds nothing
        owner.decide().await;
        owner.write_some(&mut rng, 4).await;
        owner.write_part_behind_whole(&mut rng).await;
        owner.checkpoint().await;
        // One that begins while extents are being made: replay from it has to look at them, also once they are full.
        let full = 1 + usize::from(self.plan.slow_store);
        join_two(owner.checkpoint_during_refill(), owner.fill_extents(&mut rng.fork(), full)).await;
        owner.fill_extents(&mut rng, 1 + self.plan.ready_extents).await;
        // Before any other checkpoint: replay still looks at the extents that were filled.
        owner.free_unused(&mut rng).await;
        owner.empty_a_device(&mut Rng::new(self.seed ^ 0xE4D)).await;
        owner.collect(&mut Rng::new(self.seed ^ 0xC011)).await;
        owner.convert(&mut Rng::new(self.seed ^ 0xC0DE)).await;
        owner.cut_off_and_grow(&mut Rng::new(self.seed ^ 0xC07)).await;
        let owner = Box::pin(owner.volumes_and_snapshots(&mut Rng::new(self.seed ^ 0x5A9))).await;
        join_two(owner.checkpoint(), owner.write_some(&mut rng.fork(), 3)).await;
        if let Some(failing) = self.plan.failing {
            owner.write_while_failing(&disks[failing], failing, &mut rng).await;
        }
        let owner = owner.take_over_from_writer(&mut rng).await;
        owner.decide().await;
        owner.compare_all().await;
        owner.write_some(&mut rng, 2).await;
        owner.settle_old().await;
        owner.compare_all().await;
    }
}

/// With more than m devices away nobody can say what was promised: the shard waits, or what it does leaves all of it
/// to be found when they are back. With no more than m, all of it is there as soon as the shard serves.
pub async fn take_up_with_devices_away(rig: &Rig, disks: &[DiskHandle], away: &[usize]) {
    let columns = rig.columns(disks, away).await;
    let Ok(owner) = Owner::try_to_recover(rig, columns).await else { return };
    if away.len() <= rig.plan.scheme.m() {
        owner.decide().await;
        owner.compare_all().await;
    }
    // What it makes of what it found.
    peristyle_rt::sleep(Duration::from_millis(5)).await;
}

/// Both at once.
pub(super) async fn join_two<A, B>(a: impl Future<Output = A>, b: impl Future<Output = B>) -> (A, B) {
    let (first, second) = (std::cell::RefCell::new(None), std::cell::RefCell::new(None));
    let a = async { *first.borrow_mut() = Some(a.await) };
    let b = async { *second.borrow_mut() = Some(b.await) };
    let both: [std::pin::Pin<Box<dyn Future<Output = ()> + '_>>; 2] = [Box::pin(a), Box::pin(b)];
    join_all(both).await;
    (first.take().expect("done"), second.take().expect("done"))
}

/// Who serves the shard, or thinks so.
#[derive(Clone)]
pub struct Owner {
    pub(super) rig: Rig,
    columns: Rc<WatchedColumns>,
    pub(super) shard: Rc<Shard<WatchedColumns, WatchedStore>>,
}

impl Owner {
    /// Opens the devices and takes the shard up: all are sound, so the first attempt is enough.
    pub async fn take(rig: &Rig, disks: &[DiskHandle]) -> Owner {
        let columns = rig.columns(disks, &[]).await;
        Owner::recover(rig, columns).await
    }

    /// Somebody takes over while this one, who does not know of it, goes on writing until it is told.
    async fn take_over_from_writer(&self, rng: &mut Rng) -> Owner {
        self.take_over_beside(rng, async |_| ()).await
    }

    /// The same, beside something else that it does; that learns whether the takeover is over.
    pub(super) async fn take_over_beside(
        &self,
        rng: &mut Rng,
        something: impl AsyncFnOnce(&Cell<bool>),
    ) -> Owner {
        let over = Cell::new(false);
        let (mut again, wait) = (rng.fork(), Duration::from_micros(rng.below(300)));
        // Some writes fall into each step of the takeover.
        let rest_ns = self.rig.watch.half_a_put.as_nanos() as u64;
        let writing = async {
            loop {
                let late = over.get();
                if self.write(&mut again, 1).await == Err(Stopped) {
                    return;
                }
                assert!(!late, "a write that began after the takeover was acknowledged by the owner before");
                peristyle_rt::sleep(Duration::from_nanos(again.below(rest_ns))).await;
            }
        };
        let taking = async {
            peristyle_rt::sleep(wait).await;
            let owner = Owner::recover(&self.rig, self.columns.clone()).await;
            over.set(true);
            owner
        };
        let something = Box::pin(something(&over));
        join_two(taking, join_two(writing, something)).await.0
    }

    async fn recover(rig: &Rig, columns: Rc<WatchedColumns>) -> Owner {
        loop {
            match Owner::try_to_recover(rig, columns.clone()).await {
                Ok(owner) => return owner,
                // The owner before was writing the record, too.
                Err(RecoverError::Store(StoreError::Conflict)) => {}
                Err(error) => panic!("all devices are sound: {error}"),
            }
        }
    }

    async fn try_to_recover(rig: &Rig, columns: Rc<WatchedColumns>) -> Result<Owner, RecoverError> {
        let config = ShardConfig {
            ready_extents: rig.plan.ready_extents,
            map_cache_bytes: 16 << 20,
            ..ShardConfig::new(rig.plan.scheme)
        };
        let store = Rc::new(WatchedStore { store: rig.store.clone(), watch: rig.watch.clone() });
        let recovery = rig.watch.under_way.begin(Operation::Recovery);
        let recover = Box::pin(Shard::recover(SHARD, NodeId(1), config, columns.clone(), store));
        let (shard, _) = recover.await?;
        drop(recovery);
        rig.watch.settling.set(true);
        let blocks = rig.plan.volume_bytes / BLOCK_BYTES as u64;
        let ready = match shard.ensure_layer(LAYER, blocks).await {
            // The owner before was about to let it grow back.
            Err(ShardError::OutOfRange) => shard.resize_layer(LAYER, blocks, false).await,
            ready => ready.map_err(Into::into),
        };
        assert_eq!(ready, Ok(()));
        Ok(Owner { rig: rig.clone(), columns, shard })
    }

    /// Waits until nothing of earlier epochs is left to be done.
    pub async fn settle_old(&self) {
        let done = || (self.rig.watch.sealed.get(), self.rig.watch.freed.get());
        let mut last = None;
        while last != Some(done()) {
            last = Some(done());
            peristyle_rt::sleep(self.rig.watch.half_a_put * 14).await;
        }
        self.rig.watch.settling.set(false);
    }

    pub async fn checkpoint(&self) {
        let _step = self.rig.watch.under_way.begin(Operation::Checkpoint);
        self.shard.checkpoint().await.expect("there is room");
        // What comes next has to read the map.
        self.shard.forget_map();
    }

    /// All is written anew. What held it before, and replay would look at, is freed behind a checkpoint while hosts go on.
    async fn free_unused(&self, rng: &mut Rng) {
        let blocks = self.rig.model.sectors() / BLOCK;
        for first in (0..blocks).step_by(LARGE as usize) {
            self.write_at(|| first, LARGE.min(blocks - first)).await.expect("nobody took over");
        }
        let freed = || self.rig.watch.unused.get();
        let before = freed();
        join_two(self.checkpoint(), self.write_some(&mut rng.fork(), 3)).await;
        // One extent at least; others go while something else is done.
        let end = peristyle_rt::now() + self.rig.watch.half_a_put * 14;
        while freed() < before + self.rig.plan.scheme.width() as u64 && peristyle_rt::now() < end {
            peristyle_rt::sleep(Duration::from_micros(50)).await;
        }
    }

    /// What is alive in an extent is moved while hosts overwrite some of it. A checkpoint lets go of the extent then.
    async fn collect(&self, rng: &mut Rng) {
        join_two(self.shard.collect_any(), self.write_some(&mut rng.fork(), 3)).await;
        join_two(self.checkpoint(), self.write_some(&mut rng.fork(), 2)).await;
    }

    /// Writes somewhere, unless another owner has put an end to this one.
    async fn write(&self, rng: &mut Rng, blocks: u64) -> Result<(), Stopped> {
        let places = self.rig.model.sectors() / BLOCK - blocks + 1;
        self.write_at(|| rng.below(places), blocks).await
    }

    async fn write_at(&self, place: impl FnMut() -> u64, blocks: u64) -> Result<(), Stopped> {
        self.write_to(LAYER, place, blocks).await
    }

    pub(super) async fn write_to(
        &self,
        volume: LayerId,
        mut place: impl FnMut() -> u64,
        blocks: u64,
    ) -> Result<(), Stopped> {
        let (model, family) = (&self.rig.family.borrow().model(volume), &self.rig.family);
        let count = blocks * BLOCK;
        let (first, id, tag) = loop {
            let first = place() * BLOCK;
            match model.begin_write(first, count, false) {
                Some((id, tag)) => break (first, id, tag),
                None => peristyle_rt::sleep(Duration::from_micros(30)).await,
            }
        };
        let mut buf = Buf::alloc((count * SECTOR) as usize).await;
        fill(tag, first, &mut buf);
        let in_window = family.borrow_mut().window().map(|window| window.begin(volume, first, count, tag));
        match self.shard.write(volume, first * SECTOR, buf.freeze()).await {
            Ok(()) => {
                model.acknowledge(id);
                in_window.into_iter().for_each(|write| {
                    family.borrow_mut().window().expect("it is settled later").end(write);
                });
            }
            Err(ShardError::Stopped) => {
                model.orphan(id);
                return Err(Stopped);
            }
            Err(error) => panic!("with m devices bad at most, and room: {error}"),
        }
        Ok(())
    }

    /// Small writes, some at once.
    pub async fn write_some(&self, rng: &mut Rng, count: usize) {
        let writes = (0..count).map(|_| {
            let mut rng = rng.fork();
            async move {
                let blocks = rng.between(1, 6);
                self.write(&mut rng, blocks).await.expect("nobody took over");
            }
        });
        join_all(writes.collect::<Vec<_>>()).await;
    }

    /// A whole block, and right behind it a part of the same block with the same content: whoever merges that part
    /// with what was there before takes the rest of the block back.
    async fn write_part_behind_whole(&self, rng: &mut Rng) {
        let model = &self.rig.model;
        let first = rng.below(model.sectors() / BLOCK) * BLOCK;
        let (id, tag) = model.begin_write(first, BLOCK, false).expect("nothing else is under way");
        let mut buf = Buf::alloc(BLOCK_BYTES).await;
        fill(tag, first, &mut buf);
        let whole = buf.freeze();
        let (sector, bytes) = (rng.below(BLOCK), SECTOR as usize);
        let part = whole.slice(sector as usize * bytes..(sector as usize + 1) * bytes);
        let all = async {
            assert_eq!(self.shard.write(LAYER, first * SECTOR, whole).await, Ok(()));
            model.acknowledge(id);
        };
        let some = async {
            assert_eq!(self.shard.write(LAYER, (first + sector) * SECTOR, part).await, Ok(()));
        };
        join_two(all, some).await;
    }

    /// The layer becomes smaller and grows back. To whoever looks at the end of it, that is one write of zeros: after
    /// a crash all of what was cut off is there, or nothing.
    pub(super) async fn cut_off_and_grow(&self, rng: &mut Rng) {
        let _step = self.rig.watch.under_way.begin(Operation::Resize);
        let model = &self.rig.model;
        let blocks = model.sectors() / BLOCK;
        let cut = rng.between(blocks / 2, blocks - 1);
        let (id, _) =
            model.begin_write(cut * BLOCK, (blocks - cut) * BLOCK, true).expect("nothing else is under way");
        assert_eq!(self.shard.resize_layer(LAYER, cut, true).await, Ok(()));
        assert_eq!(self.shard.resize_layer(LAYER, blocks, false).await, Ok(()));
        model.acknowledge(id);
    }

    /// A device is to leave, or is given up: its columns are made anew on the others, while hosts go on. Then it is back,
    /// with what it had.
    async fn empty_a_device(&self, rng: &mut Rng) {
        let Plan { devices, scheme, .. } = self.rig.plan;
        if devices == scheme.width() {
            return; // no other failure domain has room
        }
        let _step = self.rig.watch.under_way.begin(Operation::Rebuild);
        let (table, device) = (self.columns.columns.table(), device_id(rng.below(devices as u64) as usize));
        table.set_wish(device, if rng.coin() { Wish::Draining } else { Wish::Failed });
        let figures = || self.shard.repair_figures(peristyle_rt::now());
        let before = figures().remade_columns;
        self.shard.look_after_devices();
        let end = peristyle_rt::now() + Duration::from_millis(20);
        while figures().remade_columns < before + 2 && peristyle_rt::now() < end {
            peristyle_rt::sleep(Duration::from_micros(100)).await;
        }
        self.write_some(&mut rng.fork(), 2).await;
        table.set_wish(device, Wish::Active);
        self.shard.look_after_devices();
        peristyle_rt::sleep(Duration::from_millis(2)).await;
    }

    /// The pool gets another scheme, of which the extents that are there are not, and then its own again, while hosts go on.
    async fn convert(&self, rng: &mut Rng) {
        let Plan { devices, scheme, .. } = self.rig.plan;
        let (k, m) = (scheme.k() as u8, scheme.m() as u8);
        let other = match (k, m) {
            (1, 1) => Scheme::new(1, 2).filter(|other| other.width() <= devices),
            (1, _) => None, // what more parity takes is more than the memory of these nodes
            _ => Scheme::new(k - 1, m),
        };
        let Some(other) = other else { return };
        let _step = self.rig.watch.under_way.begin(Operation::Convert);
        let table = self.columns.columns.table();
        for scheme in [other, scheme] {
            table.set_scheme(scheme);
            let end = peristyle_rt::now() + CONVERT_LIMIT;
            while self.shard.space_figures().foreign_extents > 0 {
                assert!(
                    peristyle_rt::now() < end,
                    "never converted to {scheme}: {:?}",
                    self.shard.space_figures()
                );
                self.write_some(&mut rng.fork(), 1).await;
                peristyle_rt::sleep(Duration::from_millis(rng.between(1, 400))).await;
            }
        }
    }

    /// Large writes, until so many extents are full and their columns sealed.
    async fn fill_extents(&self, rng: &mut Rng, count: usize) {
        let sealed = self.rig.watch.sealed.get() + (count * self.rig.plan.scheme.width()) as u64;
        while self.rig.watch.sealed.get() < sealed {
            self.write(rng, LARGE).await.expect("nobody took over");
        }
    }

    async fn checkpoint_during_refill(&self) {
        let under_way = &self.rig.watch.under_way;
        // With a slow control store there comes a moment when no other extent is in use.
        let busy = || under_way.has(Operation::Frame) || under_way.has(Operation::SealExtent);
        while !under_way.has(Operation::Refill) || (self.rig.plan.slow_store && busy()) {
            peristyle_rt::sleep(Duration::from_micros(20)).await;
        }
        self.checkpoint().await;
    }

    /// A device fails: what it had is appended anew elsewhere. Then it is back.
    async fn write_while_failing(&self, disk: &DiskHandle, index: usize, rng: &mut Rng) {
        disk.update_faults(|faults| faults.write_error_ppm = 1_000_000);
        self.write_some(rng, 3).await;
        disk.update_faults(|faults| faults.write_error_ppm = 0);
        self.columns.columns.table().set_good(device_id(index));
        self.write_some(rng, 2).await;
    }

    /// Some blocks are given up.
    pub(super) async fn zero(&self, volume: LayerId, block: u64, blocks: u64) {
        let model = self.rig.family.borrow().model(volume);
        let id = loop {
            match model.begin_write(block * BLOCK, blocks * BLOCK, true) {
                Some((id, _)) => break id,
                None => peristyle_rt::sleep(Duration::from_micros(30)).await,
            }
        };
        let zeroed = self.shard.zero(volume, block * BLOCK_BYTES as u64, blocks * BLOCK_BYTES as u64).await;
        assert_eq!(zeroed, Ok(()));
        model.acknowledge(id);
    }

    /// A read returns what the volume may hold just then.
    pub(super) async fn compare(&self, volume: LayerId, model: &Model, first: u64, count: u64) {
        let id = model.begin_read(first, count);
        let data = self.shard.read(volume, first * SECTOR, count * SECTOR).await;
        let data = flat(&data.unwrap_or_else(|error| panic!("all devices are sound: {error}")));
        model.end_read(id, &data).unwrap_or_else(|wrong| panic!("of {volume:?}: {wrong}"));
    }

    /// Finds out what became of all that nobody answered.
    pub async fn decide(&self) {
        self.settle_change().await;
        self.decide_writes().await;
    }

    /// All that was promised is there, and what the shard counts is what its map says.
    pub async fn compare_all(&self) {
        self.compare_family().await;
        self.shard.check_counts().await.unwrap_or_else(|wrong| panic!("at rest: {wrong}"));
    }
}
