//! The memory store behaves as every shard store must, and misbehaves when it is told to.

use core::future::Future;
use core::pin::pin;
use core::task::{Context, Poll, Waker};
use peristyle_base::{Epoch, Seq, ShardId};
use peristyle_cluster::*;

/// The memory store never waits, so one poll is enough.
fn ready<F: Future>(future: F) -> F::Output {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => output,
        Poll::Pending => panic!("the memory store waited"),
    }
}

const SHARD: ShardId = ShardId(3);

fn record(epoch: u64, committed: u64) -> ShardRecord {
    ShardRecord { shard: SHARD, epoch: Epoch(epoch), committed: Seq(committed), ..Default::default() }
}

#[test]
fn a_put_needs_the_version_that_was_loaded() {
    let store = MemoryShardStore::default();
    assert_eq!(ready(store.load(SHARD)), Ok(None));
    let first = ready(store.put(SHARD, Version::ABSENT, &record(1, 0))).unwrap();
    assert_eq!(ready(store.put(SHARD, Version::ABSENT, &record(1, 1))), Err(StoreError::Conflict));
    let second = ready(store.put(SHARD, first, &record(1, 2))).unwrap();
    assert_eq!(ready(store.put(SHARD, first, &record(9, 3))), Err(StoreError::Conflict));
    assert_eq!(ready(store.load(SHARD)), Ok(Some((record(1, 2), second))));
    assert_eq!(ready(store.load(ShardId(4))), Ok(None));
}

#[test]
fn an_epoch_never_falls() {
    let store = MemoryShardStore::default();
    let version = ready(store.put(SHARD, Version::ABSENT, &record(5, 0))).unwrap();
    assert_eq!(ready(store.put(SHARD, version, &record(4, 0))), Err(StoreError::Conflict));
}

#[test]
fn an_unknown_put_may_have_happened_or_not_and_only_loading_tells() {
    let store = MemoryShardStore::default();
    store.inject(Fault::UnknownApplied);
    assert_eq!(ready(store.put(SHARD, Version::ABSENT, &record(1, 7))), Err(StoreError::Unknown));
    let (there, version) = ready(store.load(SHARD)).unwrap().unwrap();
    assert_eq!(there, record(1, 7));
    store.inject(Fault::UnknownLost);
    assert_eq!(ready(store.put(SHARD, version, &record(1, 8))), Err(StoreError::Unknown));
    assert_eq!(ready(store.load(SHARD)), Ok(Some((record(1, 7), version))));
    assert_eq!(store.puts(), 1);
}

#[test]
fn injected_faults_come_in_order_and_end() {
    let store = MemoryShardStore::default();
    [Fault::Unavailable, Fault::Conflict, Fault::Unavailable].iter().for_each(|&f| store.inject(f));
    assert_eq!(ready(store.load(SHARD)), Err(StoreError::Unavailable));
    assert_eq!(ready(store.put(SHARD, Version::ABSENT, &record(1, 0))), Err(StoreError::Conflict));
    assert_eq!(ready(store.put(SHARD, Version::ABSENT, &record(1, 0))), Err(StoreError::Unavailable));
    assert_eq!(store.peek(SHARD), None);
    assert!(ready(store.clone().put(SHARD, Version::ABSENT, &record(1, 0))).is_ok());
    assert!(store.peek(SHARD).is_some(), "clones share the records");
}
