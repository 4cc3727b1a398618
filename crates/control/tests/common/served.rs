//! What tests of the served store have in common.
#![allow(dead_code)]

use peristyle_control::*;
use peristyle_rt::sync::Event;
use peristyle_rt::{Addr, Listener, sleep, spawn};
use std::time::Duration;

pub const CLUSTER: &str = "dev";

/// An address of this machine, with a port that the system chooses.
pub fn loopback() -> Addr {
    Addr::Tcp("127.0.0.1:0".parse().unwrap())
}

/// Serves a store on this reactor until the event; what others have in its place.
pub async fn serve<S: ClusterStore + 'static>(addr: &Addr, store: S) -> (ServedStore, Event) {
    let listener = Listener::bind(addr, false).await.unwrap();
    let (addr, stop) = (listener.local_addr(), Event::default());
    spawn(serve_store(listener, CLUSTER.into(), store, stop.clone()));
    (ServedStore::new(addr, CLUSTER), stop)
}

/// Counts up under one key, remembers what was acknowledged, and compares it with what a watch tells: each step once, in order,
/// and nothing else, unless the watch says that it missed some.
pub struct Counter<S: ClusterStore> {
    store: S,
    watch: S::Watch,
    revision: Revision,
    pub acknowledged: Vec<Revision>,
    /// Attempts of which nobody knows.
    unknown: usize,
    /// How often there was a failure, and how often the watch missed something.
    pub failures: usize,
    pub missed: usize,
}

impl<S: ClusterStore> Counter<S> {
    pub fn new(store: S) -> Counter<S> {
        let (watch, acknowledged) = (store.watch("counter", Revision::ABSENT), Vec::new());
        Counter { store, watch, revision: Revision::ABSENT, acknowledged, unknown: 0, failures: 0, missed: 0 }
    }

    /// One attempt, with a look at what is there when the one before has no outcome.
    async fn attempt(&mut self) -> Result<(), MetaError> {
        let n = self.acknowledged.len().to_string();
        let txn = Txn::default().put("counter", n.as_bytes()).compare("counter", self.revision);
        let revision = match self.store.commit(txn).await {
            Err(MetaError::Conflict { .. }) => {
                // Only an attempt of unknown outcome can have done it: nobody else writes.
                assert!(self.unknown > 0, "an attempt happened twice, or one that was said not to have");
                let there = self.store.get("counter").await?.expect("it was written");
                assert_eq!(there.value, n.as_bytes(), "an attempt happened late, or something else did");
                there.revision
            }
            answer => answer?,
        };
        assert!(revision > self.revision, "revisions only grow");
        self.told(revision).await;
        self.revision = revision;
        self.acknowledged.push(revision);
        self.unknown = 0;
        Ok(())
    }

    async fn told(&mut self, revision: Revision) {
        let n = self.acknowledged.len().to_string().into_bytes();
        match self.watch.next().await {
            Ok(change) => {
                assert_eq!(change, WatchChange { key: "counter".into(), value: Some(n), revision });
            }
            Err(ReadAnew) => {
                self.missed += 1;
                let (items, now) = until_it_works(async || self.store.list("counter", 9).await).await;
                assert_eq!(items, [("counter".to_owned(), Item { value: n, revision })], "it is lost");
                self.watch = self.store.watch("counter", now);
            }
        }
    }

    pub async fn step(&mut self) {
        while let Err(error) = self.attempt().await {
            match error {
                MetaError::Unknown(_) => self.unknown += 1,
                MetaError::Unavailable(_) => {}
                other => panic!("{other}"),
            }
            self.failures += 1;
            sleep(Duration::from_millis(20)).await;
        }
    }

    pub async fn steps(&mut self, count: usize) {
        for _ in 0..count {
            self.step().await;
        }
    }
}

/// Tries until the store answers.
pub async fn until_it_works<T>(call: impl AsyncFn() -> Result<T, MetaError>) -> T {
    loop {
        match call().await {
            Ok(value) => return value,
            Err(MetaError::Unavailable(_) | MetaError::Unknown(_)) => sleep(Duration::from_millis(20)).await,
            Err(e) => panic!("{e}"),
        }
    }
}
