//! What happens to the shard, and what its hosts do.

use super::watch::{Watch, WatchedColumns, WatchedStore};
use super::{Plan, Remains};
use crate::model::{Model, SECTOR, fill};
use crate::node::{device_id, flat};
use crate::operation::Operation;
use peristyle_base::{BLOCK_BYTES, LayerId, NodeId, ShardId, Uuid};
use peristyle_cluster::{DomainId, MemoryShardStore, StoreError};
use peristyle_column::{FormatOptions, Reserve, Server, ServerConfig, format};
use peristyle_node::columns::NodeColumns;
use peristyle_node::devices::{DeviceTable, SharedDevice};
use peristyle_node::message::NodeBus;
use peristyle_rt::sim::{CrashState, DiskHandle, Rng};
use peristyle_rt::{Buf, Device, Duration, ReactorId, join_all};
use peristyle_shard::{RecoverError, Shard, ShardConfig, ShardError};
use std::rc::Rc;
use std::sync::Arc;

const CLUSTER: Uuid = Uuid([0xC1; 16]);
const SHARD: ShardId = ShardId(1);
const LAYER: LayerId = LayerId(1);
const BLOCK: u64 = BLOCK_BYTES as u64 / SECTOR;
/// Blocks of the largest write: atomic all the same.
const LARGE: u64 = 128;
/// What one life has to do with, besides its disks.
#[derive(Clone)]
pub struct Rig {
    pub plan: Plan,
    pub seed: u64,
    pub model: Model,
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
        self.model.acknowledged() << 40 | self.store.puts() << 16 | u64::from(self.watch.under_way.bits())
    }

    pub fn remains(&self, disks: &CrashState) -> Remains {
        let record = self.store.peek(SHARD).map(|(record, _)| record);
        Remains { disks: disks.clone(), record, model: self.model.crashed_copy() }
    }

    async fn columns(&self, disks: &[DiskHandle]) -> Rc<WatchedColumns> {
        let here = ReactorId(0);
        let shared = |i: usize| SharedDevice::new(device_id(i), DomainId(i as u32), here, String::new());
        let table = DeviceTable(Arc::new((0..disks.len()).map(shared).collect()));
        let port = peristyle_rt::mesh(1, 16).pop().expect("one");
        let columns = NodeColumns::new(table, Rc::new(NodeBus::new(port.attach())));
        for (i, disk) in disks.iter().enumerate() {
            let device = Device::open(&disk.spec()).await.expect("there");
            let server = Server::open(device, CLUSTER, ServerConfig::default()).await.expect("was formatted");
            server.set_reserve(SHARD, Reserve { collection: 0, meta: 2, reappend: 2 });
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
        owner.decide().await;
        owner.write_some(&mut rng, 4).await;
        owner.checkpoint().await;
        // One that begins while extents are being made: replay from it has to look at them, also once they are full.
        join_two(owner.checkpoint_during_refill(), owner.fill_extents(&mut rng.fork(), 1)).await;
        owner.fill_extents(&mut rng, 1 + self.plan.ready_extents).await;
        join_two(owner.checkpoint(), owner.write_some(&mut rng.fork(), 3)).await;
        if let Some(failing) = self.plan.failing {
            owner.write_while_failing(&disks[failing], failing, &mut rng).await;
        }
        // Somebody takes over while this one, who does not know of it, goes on.
        let (former, mut again) = (owner.clone(), rng.fork());
        let writing = async {
            for _ in 0..6 {
                former.write(&mut again, 1).await;
            }
        };
        let taking = async {
            peristyle_rt::sleep(Duration::from_micros(rng.below(300))).await;
            owner.take_over().await
        };
        let (owner, ()) = join_two(taking, writing).await;
        owner.decide().await;
        owner.compare_all().await;
        owner.write_some(&mut rng, 2).await;
        owner.settle_old().await;
        owner.compare_all().await;
    }
}

/// Both at once.
async fn join_two<A, B>(a: impl Future<Output = A>, b: impl Future<Output = B>) -> (A, B) {
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
    rig: Rig,
    columns: Rc<WatchedColumns>,
    shard: Rc<Shard<WatchedColumns, WatchedStore>>,
}

impl Owner {
    /// Opens the devices and takes the shard up: all are sound, so the first attempt is enough.
    pub async fn take(rig: &Rig, disks: &[DiskHandle]) -> Owner {
        let columns = rig.columns(disks).await;
        Owner::recover(rig, columns).await
    }

    pub async fn take_over(&self) -> Owner {
        Owner::recover(&self.rig, self.columns.clone()).await
    }

    async fn recover(rig: &Rig, columns: Rc<WatchedColumns>) -> Owner {
        let config = ShardConfig {
            ready_extents: rig.plan.ready_extents,
            map_leaves_max: 4096,
            ..ShardConfig::new(rig.plan.scheme)
        };
        let store = Rc::new(WatchedStore { store: rig.store.clone(), watch: rig.watch.clone() });
        let recovery = rig.watch.under_way.begin(Operation::Recovery);
        let shard = loop {
            let (config, columns, store) = (config.clone(), columns.clone(), store.clone());
            match Shard::recover(SHARD, NodeId(1), config, columns, store).await {
                Ok((shard, _)) => break shard,
                // The owner before was writing the record, too.
                Err(RecoverError::Store(StoreError::Conflict)) => {}
                Err(error) => panic!("all devices are sound: {error}"),
            }
        };
        drop(recovery);
        rig.watch.settling.set(true);
        let ready = shard.ensure_layer(LAYER, rig.plan.volume_bytes / BLOCK_BYTES as u64).await;
        assert_eq!(ready, Ok(()));
        Owner { rig: rig.clone(), columns, shard }
    }

    /// Waits until nothing of earlier epochs is left to be done.
    pub async fn settle_old(&self) {
        let done = || (self.rig.watch.sealed.get(), self.rig.watch.freed.get());
        let mut last = None;
        while last != Some(done()) {
            last = Some(done());
            peristyle_rt::sleep(Duration::from_millis(2)).await;
        }
        self.rig.watch.settling.set(false);
    }

    pub async fn checkpoint(&self) {
        let _step = self.rig.watch.under_way.begin(Operation::Checkpoint);
        self.shard.checkpoint().await.expect("there is room");
    }

    async fn write(&self, rng: &mut Rng, blocks: u64) {
        let model = &self.rig.model;
        let count = blocks * BLOCK;
        let first = rng.below((model.sectors() - count) / BLOCK + 1) * BLOCK;
        let Some((id, tag)) = model.begin_write(first, count, false) else {
            return peristyle_rt::sleep(Duration::from_micros(30)).await;
        };
        let mut buf = Buf::alloc((count * SECTOR) as usize).await;
        fill(tag, first, &mut buf);
        match self.shard.write(LAYER, first * SECTOR, buf.freeze()).await {
            Ok(()) => model.acknowledge(id),
            Err(ShardError::Stopped) => model.orphan(id),
            Err(error) => panic!("with m devices bad at most, and room: {error}"),
        }
    }

    /// Small writes, some at once.
    pub async fn write_some(&self, rng: &mut Rng, count: usize) {
        let writes = (0..count).map(|_| {
            let mut rng = rng.fork();
            async move {
                let blocks = rng.between(1, 6);
                self.write(&mut rng, blocks).await;
            }
        });
        join_all(writes.collect::<Vec<_>>()).await;
    }

    /// Large writes, until so many extents are full and their columns sealed.
    async fn fill_extents(&self, rng: &mut Rng, count: usize) {
        let sealed = self.rig.watch.sealed.get() + (count * self.rig.plan.scheme.width()) as u64;
        while self.rig.watch.sealed.get() < sealed {
            self.write(rng, LARGE).await;
        }
    }

    async fn checkpoint_during_refill(&self) {
        while !self.rig.watch.under_way.has(Operation::Refill) {
            peristyle_rt::sleep(Duration::from_micros(20)).await;
        }
        self.checkpoint().await;
    }

    /// A device fails: what it had is appended anew elsewhere. Then it is back.
    async fn write_while_failing(&self, disk: &DiskHandle, index: usize, rng: &mut Rng) {
        disk.update_faults(|faults| faults.write_error_ppm = 1_000_000);
        self.write_some(rng, 3).await;
        disk.update_faults(|faults| faults.write_error_ppm = 0);
        self.columns.columns.table().get(device_id(index)).expect("listed").set_good();
        self.write_some(rng, 2).await;
    }

    /// Finds out what became of writes that nobody answered.
    pub async fn decide(&self) {
        let model = &self.rig.model;
        for (id, first, count) in model.orphans() {
            let data = self.shard.read(LAYER, first * SECTOR, count * SECTOR).await;
            let data = flat(&data.unwrap_or_else(|error| panic!("all devices are sound: {error}")));
            model.decide(id, &data).unwrap_or_else(|wrong| panic!("after a crash: {wrong}"));
        }
    }

    pub async fn compare_all(&self) {
        let model = &self.rig.model;
        for first in (0..model.sectors()).step_by((LARGE * BLOCK) as usize) {
            let count = (LARGE * BLOCK).min(model.sectors() - first);
            let id = model.begin_read(first, count);
            let data = self.shard.read(LAYER, first * SECTOR, count * SECTOR).await;
            let data = flat(&data.unwrap_or_else(|error| panic!("all devices are sound: {error}")));
            model.end_read(id, &data).unwrap_or_else(|wrong| panic!("at rest: {wrong}"));
        }
    }
}
