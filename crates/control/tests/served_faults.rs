//! The store of another process, among simulated nodes: the suite, and what happens when its process is killed, stopped or cut off.

use crate::common::TempDir;
use crate::rig::{CLUSTER, Counter, until_it_works};
use crate::suite::{Clock, conforms, subject};
use peristyle_base::Duration;
use peristyle_control::election::campaign;
use peristyle_control::*;
use peristyle_rt::sim::{NodeHandle, World, WorldConfig};
use peristyle_rt::sync::Event;
use peristyle_rt::{Addr, Listener, sleep, timeout};
use std::cell::{Cell, RefCell};
use std::rc::Rc;

const SECOND: Duration = Duration::from_secs(1);
const MS: Duration = Duration::from_millis(1);

fn address(node: &NodeHandle) -> Addr {
    Addr::Tcp((node.ip(), 4433).into())
}

/// Boots a process that serves what `open` gives.
fn start_serving<S: ClusterStore + 'static>(node: &NodeHandle, open: impl Fn() -> S + 'static) {
    let (addr, open) = (address(node), Rc::new(open));
    node.start(vec![()], move |()| {
        let (addr, open) = (addr.clone(), open.clone());
        async move {
            let store = open();
            let listener = Listener::bind(&addr, false).await.unwrap();
            serve_store(listener, CLUSTER.into(), store, Event::default()).await;
        }
    });
}

/// Boots a process that does this; what it came to, once it has.
fn start<T: 'static, F: Future<Output = T> + 'static>(
    node: &NodeHandle,
    future: F,
) -> Rc<RefCell<Option<T>>> {
    let result = Rc::new(RefCell::new(None));
    let (into, future) = (result.clone(), RefCell::new(Some(future)));
    node.start(vec![()], move |()| {
        let (into, future) = (into.clone(), future.take().expect("started once"));
        async move {
            let value = future.await;
            *into.borrow_mut() = Some(value);
        }
    });
    result
}

/// One process that has the store in a file, and some that use it.
struct Cluster {
    world: World,
    server: NodeHandle,
    folder: TempDir,
}

impl Cluster {
    fn new(seed: u64) -> Cluster {
        let world = World::new(WorldConfig::new(seed));
        let server = world.add_node([10, 0, 0, 1].into());
        let cluster = Cluster { world, server, folder: TempDir::new() };
        cluster.start();
        cluster
    }
    fn start(&self) {
        let file = self.folder.file();
        start_serving(&self.server, move || EmbeddedStore::open(&file).unwrap());
    }
    fn store(&self) -> ServedStore {
        ServedStore::new(address(&self.server), CLUSTER)
    }
    fn node(&self, number: u8) -> NodeHandle {
        self.world.add_node([10, 0, 0, number].into())
    }
    fn wait<T>(&self, result: &Rc<RefCell<Option<T>>>) -> T {
        let there = self.world.run_until(|| result.borrow().is_some(), 120 * SECOND);
        assert!(there, "it waits for ever");
        result.take().unwrap()
    }
}

#[test]
fn the_served_store_conforms_between_two_nodes() {
    let world = World::new(WorldConfig::new(7));
    let (its_world, next) = (world.handle(), Cell::new(10));
    let client = world.add_node([10, 0, 0, 1].into());
    let result = start(&client, async move {
        conforms(async || {
            next.set(next.get() + 1);
            let node = its_world.add_node([10, 0, 0, next.get()].into());
            let clock = Clock::default();
            let its = clock.clone();
            let store = MemoryStore::with_clock(move || its.now());
            start_serving(&node, move || store.clone());
            let served = ServedStore::new(address(&node), CLUSTER);
            until_it_works(async || served.get("a").await).await;
            subject(clock, served)
        })
        .await;
    });
    assert!(world.run_until(|| result.borrow().is_some(), 600 * SECOND));
}

/// What somebody who only follows gets to know.
#[derive(Clone, Default)]
struct Seen(Rc<RefCell<Vec<(usize, Revision)>>>);

impl Seen {
    async fn follow(self, store: ServedStore) {
        let see = |value: Vec<u8>, revision| {
            let n = String::from_utf8(value).unwrap().parse().unwrap();
            self.0.borrow_mut().push((n, revision));
        };
        loop {
            let (items, now) = until_it_works(async || store.list("counter", 9).await).await;
            items.into_iter().for_each(|(_, item)| see(item.value, item.revision));
            let mut watch = store.watch("counter", now);
            while let Ok(change) = watch.next().await {
                see(change.value.expect("nobody deletes it"), change.revision);
            }
        }
    }
}

#[test]
fn whatever_happens_to_the_process_and_the_network_what_was_done_is_there_and_what_was_not_is_not() {
    let (mut failures, mut missed, mut acknowledged) = (0, 0, 0);
    for seed in 0..12 {
        let cluster = Cluster::new(seed);
        let (client, follower) = (cluster.node(2), cluster.node(3));
        let (seen, over) = (Seen::default(), Rc::new(Cell::new(false)));
        start(&follower, seen.clone().follow(cluster.store()));
        let (store, its) = (cluster.store(), over.clone());
        let counting = start(&client, async move {
            let mut counter = Counter::new(store);
            while !its.get() {
                counter.step().await;
            }
            counter.step().await;
            (counter.acknowledged, counter.failures, counter.missed)
        });
        let mut rng = cluster.world.rng();
        for _ in 0..8 {
            cluster.world.run_for(MS * (1 + rng.below(60) as u32));
            let time = MS * rng.below(4000) as u32;
            match rng.below(4) {
                0 => {
                    cluster.server.kill();
                    cluster.world.run_for(time);
                    cluster.start();
                }
                1 => {
                    cluster.world.partition(&cluster.server, &client, true);
                    cluster.world.run_for(time);
                    cluster.world.partition(&cluster.server, &client, false);
                }
                2 => cluster.server.pause(time),
                _ => [&client, &follower]
                    .map(|n| cluster.world.reset_connections(&cluster.server, n))
                    .into_iter()
                    .collect(),
            }
        }
        over.set(true);
        let (steps, its_failures, its_missed) = cluster.wait(&counting);
        let last = (steps.len() - 1, steps[steps.len() - 1]);
        let caught_up = || seen.0.borrow().last() == Some(&last);
        assert!(cluster.world.run_until(caught_up, 20 * SECOND), "seed {seed}: {last:?} was not told");
        let seen = seen.0.borrow();
        assert!(seen.is_sorted(), "seed {seed}: {seen:?}");
        assert!(seen.iter().all(|&(n, revision)| steps[n] == revision), "seed {seed}");
        failures += its_failures;
        missed += its_missed;
        acknowledged += steps.len();
    }
    assert!(failures > 20 && missed > 5 && acknowledged > 200, "{failures} {missed} {acknowledged}");
}

#[test]
fn a_watch_that_was_cut_off_goes_on_where_it_was_and_calls_meanwhile_end_in_time() {
    for seed in 0..10 {
        let cluster = Cluster::new(seed);
        let (near, far) = (cluster.node(2), cluster.node(3));
        let (cut, store) = (Rc::new(Cell::new(false)), cluster.store());
        let its_cut = cut.clone();
        let waiting = start(&far, async move {
            let mut watch = store.watch("a/", Revision::ABSENT);
            let mut told = vec![watch.next().await.unwrap().key];
            its_cut.set(true);
            sleep(SECOND).await;
            for call in 0..4 {
                let begun = peristyle_rt::now();
                let failed = match call {
                    0 => store.get("a/1").await.unwrap_err(),
                    1 => store.commit(Txn::default().put("b", "")).await.unwrap_err(),
                    2 => store.grant(SECOND).await.unwrap_err(),
                    _ => store.list("a/", 9).await.unwrap_err(),
                };
                assert!(matches!(failed, MetaError::Unavailable(_)), "nothing was sent: {failed}");
                assert!(peristyle_rt::now().since(begun) <= 2 * SECOND + 10 * MS);
            }
            while told.len() < 4 {
                told.push(watch.next().await.unwrap().key);
            }
            told
        });
        let store = cluster.store();
        let writing = start(&near, async move {
            let mut keys = (1..).map(|n| Txn::default().put(format!("a/{n}"), "").put(format!("a/{n}+"), ""));
            store.commit(keys.next().unwrap()).await.unwrap();
            sleep(15 * SECOND).await;
            store.commit(keys.next().unwrap()).await.unwrap();
        });
        assert!(cluster.world.run_until(|| cut.get(), SECOND));
        cluster.world.partition(&cluster.server, &far, true);
        cluster.wait(&writing);
        assert!(waiting.borrow().is_none());
        cluster.world.partition(&cluster.server, &far, false);
        let told = cluster.world.run_until(|| waiting.borrow().is_some(), 10 * SECOND);
        assert!(told, "seed {seed}: the watch does not come back");
        assert_eq!(waiting.take().unwrap(), ["a/1", "a/1+", "a/2", "a/2+"]);
    }
}

#[test]
fn a_watch_notices_that_the_process_went_without_a_word_and_was_started_again() {
    for seed in 0..10 {
        let cluster = Cluster::new(seed);
        let (client, store) = (cluster.node(2), cluster.store());
        let waiting = start(&client, async move {
            let mut watch = store.watch("a", Revision::ABSENT);
            let put = until_it_works(async || store.commit(Txn::default().put("a", "")).await).await;
            let told = watch.next().await.unwrap();
            assert_eq!(told.revision, put);
            watch.next().await
        });
        cluster.world.run_for(SECOND);
        cluster.world.partition(&cluster.server, &client, true);
        cluster.server.kill();
        cluster.world.run_for(SECOND);
        cluster.start();
        // What the network still had of the old connection is given up.
        cluster.world.run_for(6 * SECOND);
        cluster.world.partition(&cluster.server, &client, false);
        let told = cluster.world.run_until(|| waiting.borrow().is_some(), 10 * SECOND);
        assert!(told, "seed {seed}: it waits for nobody");
        assert_eq!(waiting.take().unwrap(), Err(ReadAnew));
    }
}

#[test]
fn leases_end_with_the_process_that_granted_them_and_nobody_takes_anothers_for_its_own() {
    let cluster = Cluster::new(7);
    let client = cluster.node(2);
    let (store, restarted) = (cluster.store(), Event::default());
    let its = restarted.clone();
    let result = start(&client, async move {
        let ttl = 3 * SECOND;
        let lease = until_it_works(async || store.grant(ttl).await).await;
        let put = store.commit(Txn::default().put_leased("a", "1", lease)).await.unwrap();
        let mut watch = store.watch("a", put);
        assert_eq!(timeout(SECOND, watch.next()).await, None);
        its.wait().await;
        assert_eq!(watch.next().await, Err(ReadAnew), "nobody has kept what happened");
        assert_eq!(store.get("a").await, Ok(None));
        let begun = peristyle_rt::now();
        let another = until_it_works(async || store.grant(ttl).await).await;
        let waited = peristyle_rt::now().since(begun);
        assert!(waited > ttl - SECOND && waited < ttl + SECOND, "{waited:?}");
        assert_ne!(another, lease);
        assert_eq!(store.keep_alive(lease).await, Err(MetaError::NoLease));
        let late = Txn::default().put_leased("a", "2", lease);
        assert_eq!(store.commit(late).await, Err(MetaError::NoLease));
        assert_eq!(store.revoke(lease).await, Ok(()));
        assert_eq!(store.keep_alive(another).await, Ok(()));
    });
    cluster.world.run_for(2 * SECOND);
    cluster.server.kill();
    cluster.world.run_for(SECOND);
    cluster.start();
    restarted.set();
    cluster.wait(&result);
}

/// Three nodes that all want to be the manager.
struct Managers {
    now: Rc<Cell<Option<u8>>>,
    were: Rc<RefCell<Vec<u8>>>,
}

impl Managers {
    fn new(cluster: &Cluster) -> Managers {
        let managers = Managers { now: Rc::default(), were: Rc::default() };
        for number in 2..=4 {
            let (store, now, were) = (cluster.store(), managers.now.clone(), managers.were.clone());
            start(&cluster.node(number), async move {
                loop {
                    let mut mandate = campaign(&store, &format!("node-{number}"), 3 * SECOND).await;
                    if !mandate.holds() {
                        continue;
                    }
                    assert_eq!(now.replace(Some(number)), None, "two managers");
                    were.borrow_mut().push(number);
                    mandate.keep(&store).await;
                    assert!(!mandate.holds());
                    now.set(None);
                }
            });
        }
        managers
    }
}

#[test]
fn there_are_never_two_managers_however_often_the_process_with_the_store_is_killed() {
    for seed in 0..8 {
        let cluster = Cluster::new(seed);
        let managers = Managers::new(&cluster);
        let mut rng = cluster.world.rng();
        for kills in 0..6 {
            let elected = || managers.were.borrow().len() > kills;
            assert!(cluster.world.run_until(elected, 30 * SECOND), "seed {seed}: no manager");
            cluster.world.run_for(MS * rng.below(5000) as u32);
            cluster.server.kill();
            cluster.world.run_for(MS * rng.below(1500) as u32);
            cluster.start();
        }
    }
}
