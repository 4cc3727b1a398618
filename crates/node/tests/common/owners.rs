//! Nodes that all export a volume, of whose shard whoever is told to becomes the owner, and a host beside them.

use super::cluster::Cluster;
use super::*;
use peristyle_bench::host::HostOptions;
use peristyle_bench::paths::{Paths, PathsOptions};
use peristyle_node::ShardPhase;
use std::cell::{Ref, RefCell};

const SHARD: ShardId = ShardId(0);
const PORT: u16 = 4420;
/// Nodes of the cluster.
pub const NODES: usize = 3;

/// What the test tells a node, and what it hears.
#[derive(Default)]
pub struct Orders {
    pub own: Cell<Option<bool>>,
    /// To give the shard away once another claims it.
    pub hand_over: Cell<bool>,
    pub serves: Cell<bool>,
    /// It had read the checkpoint, and some of the log, before it owned the shard.
    pub foreseen: Cell<bool>,
}

/// Three nodes, and a machine from which a host has a path to each.
pub struct Owners {
    pub cluster: Cluster,
    pub orders: Vec<Rc<Orders>>,
    client: NodeHandle,
    paths: Rc<RefCell<Option<Rc<Paths>>>>,
}

impl Owners {
    pub fn new(seed: u64, reactors: usize) -> Owners {
        let cluster = Cluster::with_owners(seed, "1+1", NODES, reactors);
        let client = cluster.world.handle().add_node([10, 0, 9, 9].into());
        Owners { cluster, orders: (0..NODES).map(|_| Rc::default()).collect(), client, paths: Rc::default() }
    }

    pub fn boot(&self, i: usize) {
        let orders = self.orders[i].clone();
        orders.own.set(None);
        orders.serves.set(false);
        let seeds =
            peristyle_node::seeds(&self.cluster.configs[i], self.cluster.reactors, &self.cluster.store);
        self.cluster.machines[i].start(seeds, move |seed| {
            let orders = orders.clone();
            async move {
                let node = Node::start(seed, false).await;
                let volumes = vec![spec()];
                node.start_target(target_config(addr(i), Hosts::Any, volumes)).await.unwrap();
                let is_serving = |p: &(ShardId, ShardPhase)| matches!(p.1, ShardPhase::Serving(_));
                let has_foreseen = |p: &(ShardId, ShardPhase)| matches!(p.1, ShardPhase::Serving(report) if report.foreseen && report.frames_foreseen > 0);
                loop {
                    if orders.hand_over.take() {
                        assert!(node.checkpoint_all().await);
                        let node = node.clone();
                        peristyle_rt::spawn(async move {
                            node.until_claimed(SHARD).await;
                            assert!(node.own(SHARD, false).await);
                        });
                    }
                    // Each reactor looks; the one whose shard it is has it.
                    if let Some(own) = orders.own.take() {
                        assert!(node.own(SHARD, own).await);
                    }
                    if node.home_of(SHARD) == Some(node.id()) {
                        orders.serves.set(node.shard_phases().iter().any(is_serving));
                        orders.foreseen.set(node.shard_phases().iter().any(has_foreseen));
                    }
                    peristyle_rt::sleep(Duration::from_millis(2)).await;
                }
            }
        });
    }

    /// Boots all nodes, and runs `host` on a machine of its own.
    pub fn begin<F, Fut>(&self, host: F)
    where
        F: Fn(Rc<Paths>) -> Fut + Clone + 'static,
        Fut: Future<Output = ()> + 'static,
    {
        (0..NODES).for_each(|i| self.boot(i));
        let shown = self.paths.clone();
        self.client.start(vec![()], move |()| {
            let portals = (0..NODES).map(addr).collect();
            let paths = Paths::start(PathsOptions::new(HostOptions::new(ALICE, NQN), portals));
            *shown.borrow_mut() = Some(paths.clone());
            host(paths)
        });
    }

    /// The host's paths, once it runs.
    pub fn paths(&self) -> Ref<'_, Paths> {
        Ref::map(self.paths.borrow(), |paths| &**paths.as_ref().expect("the host has begun"))
    }

    pub fn run(&self, time: Duration) {
        self.cluster.world.handle().run_for(time);
    }

    /// Has the node own the shard, and waits until `enough`.
    pub fn hand_to(&self, i: usize, enough: impl Fn() -> bool) {
        for _ in 0..5000 {
            if !self.orders[i].serves.get() {
                self.orders[i].own.set(Some(true));
            }
            self.run(Duration::from_millis(2));
            if self.orders[i].serves.get() && enough() {
                return;
            }
        }
        let states: Vec<_> = (0..NODES).map(|i| self.paths().state(i, 1)).collect();
        panic!("node {i} does not serve: {states:?}");
    }
}

/// Where a node listens for hosts.
pub fn addr(i: usize) -> Addr {
    Addr::Tcp(([10, 0, 0, i as u8 + 1], PORT).into())
}
