//! The store on etcd: the suite, and what happens when members are killed. Debian's `etcd` runs on loopback, in folders of its own.
//! `cargo xtask test e2e-etcd` installs it and runs what needs it.

mod common;
#[path = "common/etcd.rs"]
mod etcd;
#[path = "common/suite.rs"]
mod suite;
use common::ready;
use etcd::Etcd;
use peristyle_base::Duration;
use peristyle_control::election::{Observer, campaign, observe};
use peristyle_control::*;
use peristyle_rt::{RuntimeConfig, block_on, join_all, sleep, spawn, timeout};
use std::cell::{Cell, RefCell};
use std::net::TcpListener;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;
use suite::{Forget, Subject, conforms, put};

/// Longer than anything takes that works.
const LONG: Duration = Duration::from_secs(60);
/// Long enough that something is under way.
const MOMENT: Duration = Duration::from_millis(300);

#[test]
#[ignore = "needs etcd: cargo xtask test e2e-etcd"]
fn the_etcd_store_conforms() {
    let etcd = Etcd::start(1);
    let next = Cell::new(0);
    ready(conforms(async || {
        // A cluster of its own for each case.
        next.set(next.get() + 1);
        let store = etcd.store(&format!("case-{}", next.get())).inline();
        let forget: Forget<EtcdStore> = Box::new(|store| {
            Box::pin(async {
                let (_, now) = store.list("", 0).await.unwrap();
                store.compact(now).await.unwrap();
            })
        });
        Subject { store, pass: Box::new(std::thread::sleep), forget }
    }));
}

#[test]
#[ignore = "needs etcd: cargo xtask test e2e-etcd"]
fn clusters_that_share_an_etcd_see_nothing_of_each_other() {
    let etcd = Etcd::start(1);
    let [one, two] = ["one", "two"].map(|cluster| etcd.store(cluster).inline());
    let revision = ready(one.commit(put("a", "1"))).unwrap();
    assert_eq!(ready(two.get("a")), Ok(None));
    assert_eq!(ready(two.range("", 9)), Ok(Vec::new()));
    let mut watch = two.watch("", revision);
    ready(one.commit(put("b", "1"))).unwrap();
    ready(two.commit(put("c", "1").compare("b", Revision::ABSENT))).unwrap();
    assert_eq!(ready(watch.next()).unwrap().key, "c");
}

#[test]
#[ignore = "needs etcd: cargo xtask test e2e-etcd"]
fn calls_from_a_reactor_are_under_way_at_the_same_time_and_hold_it_up_for_none() {
    let etcd = Etcd::start(1);
    let store = etcd.store("test");
    block_on(RuntimeConfig::small(), async move {
        let start = store.commit(put("start", "")).await.unwrap();
        let mut watch = store.watch("n/", start);
        let turns = Rc::new(Cell::new(0_u64));
        let counted = turns.clone();
        let counting = spawn(async move {
            loop {
                sleep(Duration::from_millis(1)).await;
                counted.set(counted.get() + 1);
            }
        });
        let commits = (0..64).map(|i| {
            let store = &store;
            async move {
                let txn = Txn::default().compare("one", Revision::ABSENT).put("one", [i]);
                let one = store.commit(txn.put(format!("n/{i}"), [i])).await;
                (i, one)
            }
        });
        let results = join_all(commits).await;
        let winners: Vec<_> = results.iter().filter(|(_, r)| r.is_ok()).collect();
        let conflict = Err(MetaError::Conflict { key: "one".into() });
        assert_eq!((winners.len(), results.iter().filter(|(_, r)| *r == conflict).count()), (1, 63));
        let told = watch.next().await.unwrap();
        assert_eq!(told.value, Some(vec![winners[0].0]));
        assert_eq!(Ok(told.revision), winners[0].1);
        // A watch that waits is no work for anybody.
        let nothing = timeout(Duration::from_millis(300), watch.next()).await;
        assert_eq!(nothing, None);
        assert!(turns.get() > 0, "the reactor stood still");
        let last = store.commit(put("n/last", "")).await.unwrap();
        assert_eq!(watch.next().await.unwrap().revision, last, "a wait that was given up loses nothing");
        counting.abort();
    });
}

#[test]
#[ignore = "needs etcd: cargo xtask test e2e-etcd"]
fn without_any_member_nothing_happens_and_that_is_said_at_once() {
    let mut etcd = Etcd::start(1);
    let store = etcd.store("test").inline();
    ready(store.commit(put("a", "1"))).unwrap();
    etcd.kill(0);
    let read = ready(store.get("a"));
    assert!(matches!(read, Err(MetaError::Unavailable(_))), "{read:?}");
    // The connection is known to be gone by now, so that nothing was sent.
    let written = ready(store.commit(put("a", "2")));
    assert!(matches!(written, Err(MetaError::Unavailable(_))), "{written:?}");
    etcd.restart(0);
    assert_eq!(until_it_works(&store, |s| ready(s.get("a"))).unwrap().value, b"1");
}

/// A member that takes connections and says nothing, and how often it was connected to.
struct Silent(TcpListener);

impl Silent {
    fn new() -> Silent {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        Silent(listener)
    }
    fn address(&self) -> String {
        self.0.local_addr().unwrap().to_string()
    }
    fn connections(&self) -> usize {
        std::iter::from_fn(|| self.0.accept().ok()).count()
    }
}

fn store_at(endpoints: Vec<String>) -> EtcdStore {
    let config = EtcdConfig { deadline: 2 * MOMENT, ..EtcdConfig::new("test", endpoints) };
    EtcdStore::open(&config).unwrap().inline()
}

#[test]
fn a_transaction_that_may_have_arrived_is_not_sent_again_and_what_changes_nothing_is() {
    let (one, two) = (Silent::new(), Silent::new());
    let store = store_at(vec![one.address(), two.address()]);
    let written = ready(store.commit(put("a", "1")));
    assert!(matches!(written, Err(MetaError::Unknown(_))), "{written:?}");
    assert_eq!([&one, &two].map(Silent::connections), [1, 0]);
    let store = store_at(vec![one.address(), two.address()]);
    let read = ready(store.get("a"));
    assert!(matches!(read, Err(MetaError::Unavailable(_))), "{read:?}");
    assert_eq!([&one, &two].map(Silent::connections), [1, 1]);
    // Whoever did not take the connection has nothing of it.
    let nobody = Silent::new().address();
    let store = store_at(vec![nobody.clone(), two.address()]);
    let written = ready(store.commit(put("a", "1")));
    assert!(matches!(written, Err(MetaError::Unknown(_))), "{written:?}");
    assert_eq!(two.connections(), 1);
    let store = store_at(vec![nobody]);
    let written = ready(store.commit(put("a", "1")));
    assert!(matches!(written, Err(MetaError::Unavailable(_))), "{written:?}");
}

#[test]
fn what_is_no_address_of_etcd_is_refused_in_words() {
    for endpoints in [vec![], vec!["not an address"], vec!["https://127.0.0.1:2379"]] {
        let endpoints = endpoints.into_iter().map(str::to_owned).collect();
        let Err(error) = EtcdStore::open(&EtcdConfig::new("test", endpoints)) else { panic!("it opened") };
        assert!(error.contains("etcd"), "{error}");
    }
}

/// Tries until the store answers.
fn until_it_works<S, T>(store: &S, call: impl Fn(&S) -> Result<T, MetaError>) -> T {
    let start = Instant::now();
    loop {
        match call(store) {
            Ok(value) => return value,
            Err(MetaError::Unavailable(_) | MetaError::Unknown(_)) if start.elapsed() < LONG => {}
            Err(e) => panic!("{e}"),
        }
    }
}

/// Counts up under one key, remembers what was acknowledged, and compares it with what a watch tells: each step once, in order,
/// and nothing else.
struct Counter {
    store: EtcdStore,
    watch: EtcdWatch,
    revision: Revision,
    acknowledged: Vec<Revision>,
    /// Attempts of which nobody knows.
    unknown: usize,
}

impl Counter {
    fn new(store: EtcdStore) -> Counter {
        let watch = store.watch("", Revision::ABSENT);
        Counter { store, watch, revision: Revision::ABSENT, acknowledged: Vec::new(), unknown: 0 }
    }

    /// One attempt, with a look at what is there when the one before has no outcome.
    fn step(&mut self) -> Result<(), MetaError> {
        let n = self.acknowledged.len().to_string();
        let txn = put("counter", &n).compare("counter", self.revision);
        match ready(self.store.commit(txn)) {
            Ok(revision) => self.learn(revision),
            Err(MetaError::Conflict { .. }) => {
                // Only an attempt of unknown outcome can have done it: nobody else writes.
                assert!(self.unknown > 0, "an attempt happened twice, or one that was said not to have");
                let there = ready(self.store.get("counter"))?.unwrap();
                assert_eq!(there.value, n.as_bytes());
                self.learn(there.revision);
            }
            Err(e) => {
                self.unknown += matches!(e, MetaError::Unknown(_)) as usize;
                return Err(e);
            }
        }
        Ok(())
    }

    fn learn(&mut self, revision: Revision) {
        assert!(revision > self.revision);
        let told = ready(self.watch.next());
        assert_eq!(told, Ok(counted(self.acknowledged.len(), revision)));
        self.revision = revision;
        self.acknowledged.push(revision);
        self.unknown = 0;
    }

    fn steps(&mut self, count: usize) {
        let mut steps = 0..count;
        self.steps_until(|| steps.next().is_none());
    }

    fn steps_until(&mut self, mut enough: impl FnMut() -> bool) {
        while !enough() {
            let start = Instant::now();
            while let Err(e) = self.step() {
                assert!(matches!(e, MetaError::Unavailable(_) | MetaError::Unknown(_)), "{e}");
                assert!(start.elapsed() < LONG, "{e}");
            }
        }
    }
}

fn counted(n: usize, revision: Revision) -> WatchChange {
    WatchChange { key: "counter".into(), value: Some(n.to_string().into_bytes()), revision }
}

#[test]
#[ignore = "needs etcd: cargo xtask test e2e-etcd"]
fn with_one_of_three_members_killed_work_goes_on_with_two_it_waits_and_afterwards_nothing_is_lost() {
    let mut etcd = Etcd::start(3);
    let store = etcd.store("test").inline();
    let mut counter = Counter::new(store.clone());
    counter.steps(20);

    // Each of them in turn, the leader among them, while steps are under way.
    for member in 0..3 {
        let over = AtomicBool::new(false);
        counter = std::thread::scope(|scope| {
            let counting = scope.spawn(|| {
                counter.steps_until(|| over.load(Ordering::Relaxed));
                counter
            });
            std::thread::sleep(MOMENT);
            etcd.kill(member);
            std::thread::sleep(4 * MOMENT);
            etcd.restart(member);
            etcd.wait(member);
            over.store(true, Ordering::Relaxed);
            counting.join().unwrap()
        });
        counter.steps(20);
    }

    etcd.kill(0);
    etcd.kill(1);
    let (mut answers, deadline) = (Vec::new(), Duration::from_secs(2));
    for _ in 0..3 {
        let start = Instant::now();
        answers.push(counter.step());
        answers.push(ready(store.get("counter")).map(drop));
        answers.push(ready(store.grant(deadline)).map(drop));
        // Three calls. How long a call takes is for the deadline; that it ends is what is asked.
        assert!(start.elapsed() < LONG, "it hangs");
    }
    let none = |r: &Result<(), _>| matches!(r, Err(MetaError::Unavailable(_) | MetaError::Unknown(_)));
    assert!(answers.iter().all(none), "{answers:?}");

    etcd.restart(0);
    etcd.restart(1);
    counter.steps(20);

    // All at once.
    (0..3).for_each(|member| etcd.kill(member));
    assert!(counter.step().is_err());
    (0..3).for_each(|member| etcd.restart(member));
    let there = until_it_works(&store, |s| ready(s.get("counter"))).unwrap();
    let at_least = counter.acknowledged.last().copied().unwrap();
    assert!(there.revision >= at_least, "what was acknowledged is lost");
    counter.steps(20);

    // The last steps are there for who reads the history.
    let first = counter.acknowledged.len() - 60;
    let mut watch = store.watch("", counter.acknowledged[first - 1]);
    for (n, revision) in counter.acknowledged.iter().enumerate().skip(first) {
        assert_eq!(ready(watch.next()), Ok(counted(n, *revision)));
    }
}

#[test]
#[ignore = "needs etcd: cargo xtask test e2e-etcd"]
fn a_member_that_hangs_is_left_for_another_by_calls_and_by_watches() {
    let etcd = Etcd::start(3);
    let store = etcd.store("test").inline();
    let mut counter = Counter::new(store);
    counter.steps(5);
    // The client asks the first member until that fails.
    etcd.signal(0, "STOP");
    counter.steps(5);
    etcd.signal(0, "CONT");
    counter.steps(5);
}

#[test]
#[ignore = "needs etcd: cargo xtask test e2e-etcd"]
fn a_lease_and_its_watch_outlive_the_leader() {
    let mut etcd = Etcd::start(3);
    let store = etcd.store("test");
    let kept = etcd.store("test");
    block_on(RuntimeConfig::small(), async move {
        let lease = store.grant(Duration::from_secs(6)).await.unwrap();
        let start = store.commit(Txn::default().put_leased("here", "1", lease)).await.unwrap();
        let mut watch = store.watch("here", start);
        let failures = Rc::new(RefCell::new(Vec::new()));
        let seen = failures.clone();
        let keeping = spawn(async move {
            loop {
                if let Err(e) = kept.keep_alive(lease).await {
                    seen.borrow_mut().push(e);
                }
                sleep(Duration::from_millis(500)).await;
            }
        });
        for member in 0..3 {
            etcd.kill(member);
            assert_eq!(timeout(Duration::from_secs(2), watch.next()).await, None, "the key has gone");
            etcd.restart(member);
            etcd.wait(member);
        }
        assert!(!failures.borrow().contains(&MetaError::NoLease), "{:?}", failures.borrow());
        keeping.abort();
        let ended = watch.next().await.unwrap();
        assert_eq!((ended.key.as_str(), ended.value), ("here", None));
    });
}

#[test]
#[ignore = "needs etcd: cargo xtask test e2e-etcd"]
fn there_is_one_manager_while_members_of_etcd_are_killed_and_another_when_it_is_gone() {
    let mut etcd = Etcd::start(3);
    let stores = ["one", "two"].map(|name| (name, etcd.store("test")));
    block_on(RuntimeConfig::small(), async move {
        let ttl = Duration::from_secs(6);
        let managers = Rc::new(RefCell::new(Vec::new()));
        let mut observer = observe(stores[0].1.clone());
        let [first, _second] = stores.map(|(name, store)| {
            let managers = managers.clone();
            let task = spawn(async move {
                loop {
                    let mut mandate = campaign(&store, name, ttl).await;
                    managers.borrow_mut().push(name);
                    mandate.keep(&store).await;
                }
            });
            (name, task)
        });
        let until = async |observer: &mut Observer<EtcdStore>, wanted: &dyn Fn(&str) -> bool| loop {
            match observer.next().await {
                Ok(Some(manager)) if wanted(&manager.name) => return manager.name,
                Ok(_) => {}
                Err(_) => sleep(Duration::from_millis(100)).await,
            }
        };
        let manager = until(&mut observer, &|_| true).await;
        for member in 0..3 {
            etcd.kill(member);
            sleep(Duration::from_secs(1)).await;
            etcd.restart(member);
            etcd.wait(member);
        }
        let before = managers.borrow().clone();
        assert_eq!(before.first().copied(), Some(manager.as_str()));
        // Only the first is told to go: if the other one is the manager by then, nothing has to happen.
        first.1.abort();
        if before.last() == Some(&first.0) {
            assert_eq!(until(&mut observer, &|name| name != first.0).await, "two");
        }
    });
}
