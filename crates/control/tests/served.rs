//! The store of another process, on io_uring: the suite over TCP and over a Unix socket, several reactors at once, and a server that is
//! killed.

use crate::common::TempDir;
use crate::rig::{CLUSTER, Counter, loopback, serve, until_it_works};
use crate::suite::{Clock, conforms, subject};
use peristyle_base::Duration;
use peristyle_control::*;
use peristyle_rt::sync::Event;
use peristyle_rt::{Addr, Listener, RuntimeConfig, block_on, sleep, spawn, timeout};
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;

/// A commit of the process before may still be under way: it has the file open for a moment longer.
async fn open(file: PathBuf) -> EmbeddedStore {
    loop {
        let file = file.clone();
        match peristyle_rt::blocking(move || EmbeddedStore::open(&file)).await {
            Err(OpenError::InUse(_)) => sleep(Duration::from_millis(5)).await,
            opened => return opened.unwrap(),
        }
    }
}

/// The embedded store, served at an address that is made from the name of its folder.
fn the_embedded_store_conforms_at(addr: impl Fn(&TempDir) -> Addr + 'static) {
    block_on(RuntimeConfig::small(), async move {
        let (folders, stops) = (RefCell::new(Vec::new()), RefCell::new(Vec::new()));
        conforms(async || {
            let (folder, clock) = (TempDir::new(), Clock::default());
            let its = clock.clone();
            let store = open(folder.file()).await.with_clock(move || its.now());
            let (served, stop) = serve(&addr(&folder), store).await;
            folders.borrow_mut().push(folder);
            stops.borrow_mut().push(stop);
            subject(clock, AnyStore::Served(served))
        })
        .await;
        stops.borrow().iter().for_each(Event::set);
    });
}

#[test]
fn the_served_store_conforms_over_tcp() {
    the_embedded_store_conforms_at(|_| loopback());
}

#[test]
fn the_served_store_conforms_over_a_unix_socket() {
    the_embedded_store_conforms_at(|folder| Addr::Unix(folder.0.join("store.sock")));
}

/// A process that serves a store, as a thread with a reactor of its own.
struct Process {
    over: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Process {
    fn start(file: PathBuf, socket: PathBuf) -> Process {
        let over = Arc::new(AtomicBool::new(false));
        let its = over.clone();
        let thread = std::thread::spawn(move || {
            block_on(RuntimeConfig::small(), async move {
                let store = open(file).await;
                let listener = Listener::bind(&Addr::Unix(socket), false).await.unwrap();
                spawn(serve_store(listener, CLUSTER.into(), store, Event::default()));
                while !its.load(Ordering::Relaxed) {
                    sleep(Duration::from_millis(1)).await;
                }
            });
        });
        Process { over, thread }
    }

    /// Its tasks are dropped wherever they are, and its sockets closed.
    fn kill(self) {
        self.over.store(true, Ordering::Relaxed);
        self.thread.join().unwrap();
    }
}

#[test]
fn a_store_whose_process_is_killed_again_and_again_loses_nothing_and_does_nothing_twice() {
    let folder = TempDir::new();
    let (file, socket) = (folder.file(), folder.0.join("store.sock"));
    let store = ServedStore::new(Addr::Unix(socket.clone()), CLUSTER);
    let (over, steps) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let (its, done) = (over.clone(), steps.clone());
    let client = std::thread::spawn(move || {
        block_on(RuntimeConfig::small(), async move {
            let mut counter = Counter::new(store);
            while !its.load(Ordering::Relaxed) {
                counter.step().await;
                done.fetch_add(1, Ordering::Relaxed);
            }
            (counter.failures, counter.missed)
        })
    });
    for _ in 0..5 {
        let enough = steps.load(Ordering::Relaxed) + 10;
        let process = Process::start(file.clone(), socket.clone());
        while steps.load(Ordering::Relaxed) < enough {
            assert!(!client.is_finished() && !process.thread.is_finished(), "it has failed");
            std::thread::sleep(Duration::from_millis(5));
        }
        process.kill();
        std::thread::sleep(Duration::from_millis(50));
    }
    let last = Process::start(file, socket);
    over.store(true, Ordering::Relaxed);
    let (failures, missed) = client.join().unwrap();
    last.kill();
    assert!(failures > 0 && missed > 0, "{failures} failures, {missed} missed");
}

#[test]
fn reactors_of_several_threads_use_one_value_at_the_same_time() {
    const STEPS: usize = 40;
    let folder = TempDir::new();
    let socket = folder.0.join("store.sock");
    let process = Process::start(folder.file(), socket.clone());
    let store = ServedStore::new(Addr::Unix(socket), CLUSTER);
    let count = |store: ServedStore| async move {
        let mut done = 0;
        while done < STEPS {
            let there = until_it_works(async || store.get("n").await).await;
            let (n, at) = there.map_or((0, Revision::ABSENT), |item| (item.value[0], item.revision));
            match store.commit(Txn::default().put("n", [n + 1]).compare("n", at)).await {
                Ok(_) => done += 1,
                Err(error) => assert!(matches!(error, MetaError::Conflict { .. }), "{error}"),
            }
        }
    };
    let threads = [store.clone(), store.clone()]
        .map(|store| std::thread::spawn(move || block_on(RuntimeConfig::small(), count(store))));
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    block_on(RuntimeConfig::small(), async move {
        assert_eq!(store.get("n").await.unwrap().unwrap().value, [2 * STEPS as u8]);
    });
    process.kill();
}

#[test]
fn a_list_of_many_pages_is_of_one_moment() {
    const ITEMS: usize = 100;
    block_on(RuntimeConfig::small(), async {
        let folder = TempDir::new();
        let (store, stop) = serve(&loopback(), open(folder.file()).await).await;
        for i in 0..ITEMS {
            let txn = Txn::default().put(format!("i/{i:03}"), vec![i as u8; VALUE_BYTES_MAX]);
            until_it_works(async || store.commit(txn.clone()).await).await;
        }
        // The first and the last key always change together.
        let (first, last) = ("i/000".to_owned(), format!("i/{:03}", ITEMS - 1));
        let both = move |n: u8| Txn::default().put(first.clone(), [n]).put(last.clone(), [n]);
        until_it_works(async || store.commit(both(0)).await).await;
        let writer = store.clone();
        let writing = spawn(async move {
            for n in (0..=u8::MAX).cycle() {
                until_it_works(async || writer.commit(both(n)).await).await;
            }
        });
        let mut revisions = BTreeSet::new();
        while revisions.len() < 5 {
            let (items, revision) = until_it_works(async || store.list("i/", 1000).await).await;
            assert_eq!(items.len(), ITEMS);
            assert!(items.is_sorted_by_key(|(key, _)| key.clone()));
            assert!(items[0].1 == items[ITEMS - 1].1, "a list of two moments");
            assert!(
                items[1..ITEMS - 1].iter().enumerate().all(|(i, (_, item))| item.value[0] == i as u8 + 1)
            );
            assert!(revisions.last().is_none_or(|last| *last <= revision));
            revisions.insert(revision);
        }
        writing.abort();
        stop.set();
    });
}

#[test]
fn a_wait_for_a_change_that_is_given_up_loses_nothing_also_before_the_server_is_there() {
    block_on(RuntimeConfig::small(), async {
        let folder = TempDir::new();
        let addr = Addr::Unix(folder.0.join("store.sock"));
        let store = ServedStore::new(addr.clone(), CLUSTER);
        let mut watch = store.watch("", Revision::ABSENT);
        let patience = Duration::from_micros(300);
        assert_eq!(timeout(patience, watch.next()).await, None);
        let (_, stop) = serve(&addr, open(folder.file()).await).await;
        let writer = store.clone();
        spawn(async move {
            for n in 0..200 {
                writer.commit(Txn::default().put(format!("{n:03}"), "")).await.unwrap();
            }
        });
        let mut told = Vec::new();
        while told.len() < 200 {
            if let Some(change) = timeout(patience, watch.next()).await {
                told.push(change.unwrap().key);
            }
        }
        assert!(told.iter().enumerate().all(|(n, key)| *key == format!("{n:03}")), "{told:?}");
        stop.set();
    });
}
