//! A shard's world, and how it is taken up and killed.

use super::{L, Pool};
use peristyle_base::{NodeId, ShardId};
use peristyle_cluster::MemoryShardStore;
use peristyle_shard::{RecoverError, RecoveryReport, Shard, ShardConfig, StopReason};
use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};

pub type TestShard = Rc<Shard<Pool, MemoryShardStore>>;

/// A shard, and how its process is cut off.
type Process = (Weak<Shard<Pool, MemoryShardStore>>, Rc<Cell<bool>>);

/// A shard's world: its pool, its record, its settings.
pub struct Home {
    pub pool: Pool,
    pub store: MemoryShardStore,
    pub config: ShardConfig,
    processes: RefCell<Vec<Process>>,
    /// What the last recovery found.
    pub report: Cell<RecoveryReport>,
}

impl Home {
    pub fn new(scheme: &str, devices: usize) -> Home {
        let config = ShardConfig { ready_extents: 2, ..ShardConfig::new(scheme.parse().unwrap()) };
        Home {
            pool: Pool::new(devices),
            store: MemoryShardStore::default(),
            config,
            processes: RefCell::default(),
            report: Cell::default(),
        }
    }
    pub async fn recover(&self) -> Result<TestShard, RecoverError> {
        self.recover_on(NodeId(0)).await
    }
    /// On a node that takes the shard from another while that serves it: it reads what it can before.
    pub async fn recover_on(&self, node: NodeId) -> Result<TestShard, RecoverError> {
        let (pool, store) = (Rc::new(self.pool.of_a_process()), Rc::new(self.store.clone()));
        let killed = pool.killed.clone();
        let recovered = Shard::recover(ShardId(0), node, self.config.clone(), pool, store).await;
        let (shard, report) = recovered?;
        self.report.set(report);
        self.processes.borrow_mut().push((Rc::downgrade(&shard), killed));
        Ok(shard)
    }
    /// Takes the shard up, with a layer of 4096 blocks.
    pub async fn start(&self) -> TestShard {
        let shard = self.recover().await.unwrap();
        shard.ensure_layer(L, 4096).await.unwrap();
        shard
    }
    /// The owner's process ends here and now; what it asked for and has not got never comes.
    pub fn kill(&self, shard: TestShard) {
        shard.stop(StopReason::Shutdown);
        let processes = self.processes.borrow();
        let (_, killed) = processes.iter().find(|p| p.0.as_ptr() == Rc::as_ptr(&shard)).expect("ours");
        killed.set(true);
        self.pool.no_rule();
    }
    pub fn record(&self) -> peristyle_cluster::ShardRecord {
        self.store.peek(ShardId(0)).unwrap().0
    }
}
