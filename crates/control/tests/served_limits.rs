//! The store of another process: how much of it one server does at once, for whom, and when it ends.

use crate::raw::{Raw, addr, put};
use crate::rig::{CLUSTER, serve};
use peristyle_base::Duration;
use peristyle_control::served::wire::*;
use peristyle_control::*;
use peristyle_rt::sim::{Env, NodeHandle, run};
use peristyle_rt::sync::Event;
use peristyle_rt::{Listener, join_all, sleep, spawn, timeout};
use std::cell::{Cell, RefCell};
use std::rc::Rc;

const SECOND: Duration = Duration::from_secs(1);
const MS: Duration = Duration::from_millis(1);

#[test]
fn watches_leave_room_for_calls() {
    run(7, |_| async {
        let (good, stop) = serve(&addr(), MemoryStore::default()).await;
        let start = good.commit(put("b")).await.unwrap();
        let told = Rc::new(Cell::new(0));
        let waiting = (0..400).map(|_| {
            let (mut watch, told) = (good.watch("a", start), told.clone());
            spawn(async move {
                while watch.next().await.is_ok() {
                    told.set(told.get() + 1);
                }
            })
        });
        let waiting: Vec<_> = waiting.collect();
        sleep(SECOND).await;
        good.commit(put("a")).await.unwrap();
        sleep(SECOND).await;
        assert_eq!(told.get(), 384);
        // The others have their turn when some of these have gone.
        waiting[..50].iter().for_each(|task| task.abort());
        sleep(SECOND).await;
        assert!(told.get() > 384);
        stop.set();
    });
}

/// A store that counts what goes on in it, and takes its time.
#[derive(Clone, Default)]
struct Slow {
    store: MemoryStore,
    takes: Rc<Cell<Duration>>,
    at_once: Rc<Cell<usize>>,
    at_once_max: Rc<Cell<usize>>,
    watches: Rc<Cell<usize>>,
    lists: Rc<Cell<usize>>,
}

struct SlowWatch {
    watch: <MemoryStore as ClusterStore>::Watch,
    watches: Rc<Cell<usize>>,
}

impl Watch for SlowWatch {
    async fn next(&mut self) -> Result<WatchChange, ReadAnew> {
        self.watch.next().await
    }
}

impl Drop for SlowWatch {
    fn drop(&mut self) {
        self.watches.set(self.watches.get() - 1);
    }
}

impl MetaStore for Slow {
    async fn get(&self, key: &str) -> Result<Option<Item>, MetaError> {
        self.store.get(key).await
    }
    async fn range(&self, prefix: &str, limit: usize) -> Result<Vec<(String, Item)>, MetaError> {
        self.store.range(prefix, limit).await
    }
    async fn commit(&self, txn: Txn) -> Result<Revision, MetaError> {
        self.at_once.set(self.at_once.get() + 1);
        self.at_once_max.set(self.at_once_max.get().max(self.at_once.get()));
        sleep(self.takes.get()).await;
        self.at_once.set(self.at_once.get() - 1);
        self.store.commit(txn).await
    }
}

impl ClusterStore for Slow {
    type Watch = SlowWatch;

    async fn list(&self, prefix: &str, limit: usize) -> Result<(Vec<(String, Item)>, Revision), MetaError> {
        self.lists.set(self.lists.get() + 1);
        self.store.list(prefix, limit).await
    }
    fn watch(&self, prefix: &str, from: Revision) -> SlowWatch {
        self.watches.set(self.watches.get() + 1);
        SlowWatch { watch: self.store.watch(prefix, from), watches: self.watches.clone() }
    }
    async fn grant(&self, ttl: Duration) -> Result<LeaseId, MetaError> {
        self.store.grant(ttl).await
    }
    async fn keep_alive(&self, lease: LeaseId) -> Result<(), MetaError> {
        self.store.keep_alive(lease).await
    }
    async fn revoke(&self, lease: LeaseId) -> Result<(), MetaError> {
        self.store.revoke(lease).await
    }
}

#[test]
fn who_asks_on_and_on_and_takes_no_answer_waits_for_itself_alone() {
    run(7, |_| async {
        let slow = Slow::default();
        let (good, stop) = serve(&addr(), slow.clone()).await;
        for i in 0..20 {
            good.commit(Txn::default().put(format!("{i}"), vec![7; VALUE_BYTES_MAX])).await.unwrap();
        }
        let over = Rc::new(Cell::new(0));
        for _ in 0..20 {
            let (mut raw, over) = (Raw::welcomed().await, over.clone());
            spawn(async move {
                let list = Request::List { prefix: String::new(), limit: u32::MAX }.encode();
                // Until the connection is closed: then sending fails.
                let all = list.repeat(1_000_000);
                raw.say(&all).await;
                over.set(over.get() + 1);
            });
        }
        sleep(SECOND / 2).await;
        assert_eq!(slow.lists.get(), 4, "lists whose answers nobody takes");
        for _ in 0..5 {
            sleep(SECOND).await;
            good.commit(put("a")).await.unwrap();
        }
        // Lists come one after the other, so that it takes a while until all have been cut off.
        sleep(60 * SECOND).await;
        assert_eq!(over.get(), 20);
        assert_eq!(good.range("", 99).await.unwrap().len(), 21);
        stop.set();
    });
}

#[test]
fn the_store_has_so_many_requests_at_once_and_what_waits_too_long_was_not_done() {
    run(7, |_| async {
        let slow = Slow::default();
        let (store, stop) = serve(&addr(), slow.clone()).await;
        slow.takes.set(100 * MS);
        let all = |prefix: &'static str| {
            let store = &store;
            (0..120).map(move |i| async move { store.commit(put(&format!("{prefix}{i}"))).await })
        };
        let results = join_all(all("a")).await;
        let failed: Vec<_> = results.iter().filter_map(|r| r.as_ref().err()).collect();
        assert!(failed.is_empty(), "{failed:?}");
        assert_eq!(slow.at_once_max.get(), 64);
        slow.takes.set(1500 * MS);
        let results = join_all(all("b")).await;
        sleep(10 * SECOND).await;
        let there = slow.store.range("b", 999).await.unwrap().len();
        let not_done = |r: &&Result<_, _>| matches!(r, Err(MetaError::Unavailable(_)));
        assert_eq!(results.iter().filter(not_done).count(), 120 - 64);
        assert_eq!((results.iter().filter(|r| r.is_ok()).count(), there), (64, 64));
        stop.set();
    });
}

#[test]
fn a_server_that_is_stopped_answers_what_it_has_and_takes_no_more() {
    run(7, |_| async {
        let slow = Slow::default();
        let listener = Listener::bind(&addr(), false).await.unwrap();
        let (stop, ended) = (Event::default(), Event::default());
        let (its_stop, its_end, its_store) = (stop.clone(), ended.clone(), slow.clone());
        spawn(async move {
            serve_store(listener, CLUSTER.into(), its_store, its_stop).await;
            its_end.set();
        });
        let store = ServedStore::new(addr(), CLUSTER);
        let mut watch = store.watch("b", Revision::ABSENT);
        assert_eq!(timeout(SECOND, watch.next()).await, None);
        slow.takes.set(SECOND);
        let (under_way, done) = (store.clone(), Rc::new(RefCell::new(None)));
        let its = done.clone();
        spawn(async move {
            let result = under_way.commit(put("a")).await;
            its.borrow_mut().replace(result);
        });
        sleep(500 * MS).await;
        stop.set();
        let refused = store.commit(put("b")).await;
        assert!(matches!(refused, Err(MetaError::Unavailable(_))), "nobody listens: {refused:?}");
        assert!(!ended.is_set());
        ended.wait().await;
        sleep(MS).await;
        assert!(matches!(done.take(), Some(Ok(_))), "the answer is lost");
        assert_eq!(slow.watches.get(), 0);
        assert_eq!(slow.store.range("", 9).await.unwrap().len(), 1);
    });
}

/// A node, and a server on the first one that counts its watches.
fn with_watches<F: Future<Output = ()> + 'static>(
    test: impl FnOnce(Env, NodeHandle, Rc<Cell<usize>>) -> F + 'static,
) {
    run(7, |env| async {
        let slow = Slow::default();
        let (_, stop) = serve(&addr(), slow.clone()).await;
        let client = env.world.add_node([10, 0, 0, 2].into());
        test(env, client, slow.watches).await;
        stop.set();
    });
}

async fn watch_for_ever() {
    let store = ServedStore::new(addr(), CLUSTER);
    let _ = store.watch("", Revision::ABSENT).next().await;
}

#[test]
fn a_watch_that_is_dropped_ends_on_the_server_at_once() {
    with_watches(|env, client, watches| async move {
        client.start(vec![()], |()| async {
            assert!(timeout(17 * SECOND, watch_for_ever()).await.is_none());
            sleep(SECOND).await;
        });
        sleep(16 * SECOND).await;
        assert_eq!(watches.get(), 1, "nothing happens to it while it waits");
        sleep(SECOND + 100 * MS).await;
        assert_eq!(watches.get(), 0);
        assert_eq!(env.world.connections_between(&env.node, &client), 0);
    });
}

#[test]
fn a_watch_of_a_node_that_went_without_a_word_ends_on_the_server_before_long() {
    with_watches(|env, client, watches| async move {
        client.start(vec![()], |()| watch_for_ever());
        sleep(SECOND).await;
        assert_eq!(watches.get(), 1);
        env.world.partition(&env.node, &client, true);
        client.kill();
        sleep(20 * SECOND).await;
        assert_eq!(watches.get(), 0);
    });
}

#[test]
fn a_watch_from_a_revision_that_the_store_has_not_reached_says_read_anew() {
    run(7, |_| async {
        let (store, stop) = serve(&addr(), MemoryStore::default()).await;
        let now = store.commit(put("a")).await.unwrap();
        assert_eq!(store.watch("", Revision(now.0 + 1)).next().await, Err(ReadAnew));
        assert_eq!(timeout(SECOND, store.watch("", now).next()).await, None);
        stop.set();
    });
}

#[test]
fn keys_and_prefixes_that_no_store_has_are_not_there() {
    run(7, |_| async {
        let (store, stop) = serve(&addr(), MemoryStore::default()).await;
        let now = store.commit(put("a")).await.unwrap();
        let long = "a".repeat(KEY_BYTES_MAX + 1);
        assert_eq!(store.get(&long).await, Ok(None));
        assert_eq!(store.get("").await, Ok(None));
        assert_eq!(store.list(&long, 9).await, Ok((vec![], now)));
        assert_eq!(timeout(SECOND, store.watch(&long, Revision::ABSENT).next()).await, None);
        let years = store.grant(Duration::from_secs(1 << 40)).await;
        assert!(matches!(years, Err(MetaError::Unavailable(_))), "{years:?}");
        stop.set();
    });
}
