//! Elections among simulated nodes, whose clocks differ, over one store in memory, which has a clock of its own.

use peristyle_base::{Duration, Instant};
use peristyle_control::election::{MANAGER, Manager, Mandate, campaign, depose, observe};
use peristyle_control::*;
use peristyle_rt::sim::{NodeHandle, World, WorldConfig};
use peristyle_rt::{sleep, spawn};
use std::cell::{Cell, RefCell};
use std::rc::Rc;

const SECOND: Duration = Duration::from_secs(1);
const TTL: Duration = Duration::from_secs(3);
/// The simulator's program has other seeds; these are for the order of things.
const SEEDS: u64 = 20;

/// How a node reaches the store.
#[derive(Clone, Copy, PartialEq, Default)]
enum Link {
    #[default]
    Works,
    Fails,
    Hangs,
}

/// The store as one node has it.
#[derive(Clone)]
struct Seen {
    store: MemoryStore,
    link: Rc<Cell<Link>>,
}

impl Seen {
    async fn reach(&self) -> Result<(), MetaError> {
        sleep(Duration::from_millis(2)).await;
        match self.link.get() {
            Link::Works => Ok(()),
            Link::Fails => Err(MetaError::Unavailable("cut off".into())),
            Link::Hangs => std::future::pending().await,
        }
    }
}

impl MetaStore for Seen {
    async fn get(&self, key: &str) -> Result<Option<Item>, MetaError> {
        self.reach().await?;
        self.store.get(key).await
    }
    async fn range(&self, prefix: &str, limit: usize) -> Result<Vec<(String, Item)>, MetaError> {
        self.reach().await?;
        self.store.range(prefix, limit).await
    }
    async fn commit(&self, txn: Txn) -> Result<Revision, MetaError> {
        self.reach().await?;
        self.store.commit(txn).await
    }
}

impl ClusterStore for Seen {
    type Watch = <MemoryStore as ClusterStore>::Watch;

    async fn list(&self, prefix: &str, limit: usize) -> Result<(Vec<(String, Item)>, Revision), MetaError> {
        self.reach().await?;
        self.store.list(prefix, limit).await
    }
    fn watch(&self, prefix: &str, from: Revision) -> Self::Watch {
        self.store.watch(prefix, from)
    }
    async fn grant(&self, ttl: Duration) -> Result<LeaseId, MetaError> {
        self.reach().await?;
        self.store.grant(ttl).await
    }
    async fn keep_alive(&self, lease: LeaseId) -> Result<(), MetaError> {
        self.reach().await?;
        self.store.keep_alive(lease).await
    }
    async fn revoke(&self, lease: LeaseId) -> Result<(), MetaError> {
        self.reach().await?;
        self.store.revoke(lease).await
    }
}

/// Three nodes that all want to be the manager.
struct Cluster {
    world: World,
    store: MemoryStore,
    nodes: Vec<(NodeHandle, Rc<Cell<Link>>)>,
    /// Who believes to be the manager; never two.
    manager: Rc<Cell<Option<usize>>>,
    /// Who was, one after the other.
    managers: Rc<RefCell<Vec<usize>>>,
}

impl Cluster {
    fn new(seed: u64) -> Cluster {
        let world = World::new(WorldConfig::new(seed));
        let clock = world.handle();
        let store = MemoryStore::with_clock(move || Instant(clock.now_nanos()));
        let nodes = (1..=3).map(|i| (world.add_node([10, 0, 0, i].into()), Rc::default())).collect();
        let cluster = Cluster { world, store, nodes, manager: Rc::default(), managers: Rc::default() };
        (0..3).for_each(|node| cluster.start(node));
        cluster
    }

    fn start(&self, node: usize) {
        let (handle, link) = &self.nodes[node];
        let seen = Seen { store: self.store.clone(), link: link.clone() };
        let (manager, managers) = (self.manager.clone(), self.managers.clone());
        handle.start(vec![()], move |()| {
            let (seen, manager, managers) = (seen.clone(), manager.clone(), managers.clone());
            async move {
                loop {
                    let mut mandate = campaign(&seen, &format!("node-{node}"), TTL).await;
                    if !mandate.holds() {
                        continue;
                    }
                    assert_eq!(manager.replace(Some(node)), None, "two managers");
                    managers.borrow_mut().push(node);
                    mandate.keep(&seen).await;
                    assert!(!mandate.holds());
                    manager.set(None);
                }
            }
        });
    }

    fn kill(&self, node: usize) {
        self.nodes[node].0.kill();
        if self.manager.get() == Some(node) {
            self.manager.set(None);
        }
    }

    /// Lets the nodes go on until one of them is the manager.
    fn elected(&self) -> usize {
        let manager = self.manager.clone();
        assert!(self.world.run_until(move || manager.get().is_some(), 60 * SECOND), "nobody is the manager");
        self.manager.get().unwrap()
    }
}

#[test]
fn of_three_nodes_one_is_the_manager_and_when_it_is_killed_another_one() {
    for seed in 0..SEEDS {
        let cluster = Cluster::new(seed);
        let first = cluster.elected();
        cluster.world.run_for(60 * SECOND);
        assert_eq!(*cluster.managers.borrow(), [first], "it stays the manager while it is well");
        cluster.kill(first);
        let second = cluster.elected();
        assert_ne!(first, second);
        cluster.start(first);
        cluster.world.run_for(60 * SECOND);
        assert_eq!(*cluster.managers.borrow(), [first, second]);
    }
}

#[test]
fn a_manager_that_does_not_reach_the_store_stops_before_another_begins() {
    for (seed, link) in (0..SEEDS).flat_map(|seed| [Link::Fails, Link::Hangs].map(|link| (seed, link))) {
        let cluster = Cluster::new(seed);
        let first = cluster.elected();
        cluster.world.run_for(10 * SECOND);
        cluster.nodes[first].1.set(link);
        let manager = cluster.manager.clone();
        assert!(
            cluster.world.run_until(move || manager.get().is_none(), TTL),
            "it goes on without its lease"
        );
        let second = cluster.elected();
        assert_ne!(first, second);
        cluster.nodes[first].1.set(Link::Works);
        cluster.world.run_for(10 * SECOND);
        assert_eq!(*cluster.managers.borrow(), [first, second]);
    }
}

#[test]
fn a_short_absence_of_the_store_costs_nobody_the_mandate() {
    for seed in 0..SEEDS {
        let cluster = Cluster::new(seed);
        let first = cluster.elected();
        for _ in 0..10 {
            cluster.nodes.iter().for_each(|(_, link)| link.set(Link::Fails));
            cluster.world.run_for(SECOND);
            cluster.nodes.iter().for_each(|(_, link)| link.set(Link::Works));
            cluster.world.run_for(SECOND);
        }
        assert_eq!(*cluster.managers.borrow(), [first]);
    }
}

/// Runs on one simulated node, whose clock the store has.
fn on_a_node<F: Future<Output = ()> + 'static>(test: impl FnOnce(MemoryStore) -> F) {
    peristyle_rt::sim::run(7, |_| test(MemoryStore::default()));
}

fn name_of(seen: Result<Option<Manager>, MetaError>) -> Option<String> {
    seen.unwrap().map(|manager| manager.name)
}

#[test]
fn a_manager_that_was_deposed_writes_nothing_more_and_another_follows_before_its_lease_has_ended() {
    on_a_node(|store| async move {
        let first = campaign(&store, "a", TTL).await;
        let manager = observe(store.clone()).next().await.unwrap().unwrap();
        let before = peristyle_rt::now();
        depose(&store, &manager).await.unwrap();
        let second = campaign(&store, "b", TTL).await;
        assert!(peristyle_rt::now().since(before) < SECOND && first.holds());
        let refused = store.commit(first.fence(Txn::default().put("work", "a"))).await;
        assert_eq!(refused, Err(MetaError::Conflict { key: MANAGER.into() }));
        store.commit(second.fence(Txn::default().put("work", "b"))).await.unwrap();
        // Who comes late deposes nobody else.
        assert_eq!(depose(&store, &manager).await, Err(MetaError::Conflict { key: MANAGER.into() }));
    });
}

#[test]
fn who_observes_hears_of_every_manager_and_of_the_time_without() {
    on_a_node(|store| async move {
        let mut observer = observe(store.clone());
        assert_eq!(observer.next().await, Ok(None));
        for name in ["a", "b"] {
            let mandate = campaign(&store, name, TTL).await;
            assert_eq!(name_of(observer.next().await), Some(name.to_owned()));
            store.commit(Txn::default().put("manager of something else", "x")).await.unwrap();
            mandate.resign(&store).await.unwrap();
            assert_eq!(observer.next().await, Ok(None));
        }
        let _not_renewed = campaign(&store, "c", TTL).await;
        assert_eq!(name_of(observe(store.clone()).next().await), Some("c".to_owned()));
        assert_eq!(name_of(observer.next().await), Some("c".to_owned()));
        assert_eq!(observer.next().await, Ok(None));
    });
}

#[test]
fn what_a_former_manager_writes_is_refused_also_when_it_does_not_know() {
    on_a_node(|store| async move {
        let first = campaign(&store, "a", TTL).await;
        let work = |who: &str, mandate: &Mandate| mandate.fence(Txn::default().put("work", who));
        store.commit(work("a", &first)).await.unwrap();
        // Somebody deletes the key, whatever the clock says.
        store.commit(Txn::default().delete(MANAGER)).await.unwrap();
        let second = campaign(&store, "b", TTL).await;
        assert!(first.holds());
        let refused = store.commit(work("a", &first)).await;
        assert_eq!(refused, Err(MetaError::Conflict { key: MANAGER.into() }));
        store.commit(work("b", &second)).await.unwrap();
    });
}

#[test]
fn a_mandate_that_has_ended_does_not_begin_again() {
    on_a_node(|store| async move {
        let mut mandate = campaign(&store, "a", TTL).await;
        sleep(TTL - Duration::from_millis(10)).await; // the lease lives, but not by every clock
        assert!(!mandate.holds());
        assert_eq!(mandate.renew(&store).await, Err(MetaError::NoLease));
        assert!(!mandate.holds());
    });
}

#[test]
fn an_election_whose_outcome_is_not_known_is_taken_back_and_repeated() {
    for fault in [MetaFault::UnknownApplied, MetaFault::UnknownLost, MetaFault::Unavailable] {
        on_a_node(move |store| async move {
            store.inject_none(); // who is the manager
            store.inject_none(); // the lease
            store.inject(fault); // the key
            let follower = store.clone();
            let told = Rc::new(RefCell::new(Vec::new()));
            let seen = told.clone();
            let mut watch = follower.watch(MANAGER, Revision::ABSENT);
            spawn(async move {
                while let Ok(change) = watch.next().await {
                    seen.borrow_mut().push(change.value.is_some());
                }
            });
            let mandate = campaign(&store, "a", TTL).await;
            assert!(mandate.holds());
            sleep(2 * TTL).await; // the mandate is not renewed, and no other lease has the key
            let applied: &[bool] = &[true, false, true, false];
            let expected = if fault == MetaFault::UnknownApplied { applied } else { &applied[2..] };
            assert_eq!(*told.borrow(), expected);
        });
    }
}
