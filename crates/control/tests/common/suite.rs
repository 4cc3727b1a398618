//! The suite that every store passes.
#![allow(dead_code)]

use peristyle_base::{Duration, Epoch, Instant, Seq, ShardId};
use peristyle_cluster::{ShardRecord, ShardStore, StoreError, Version};
use peristyle_control::*;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// An empty store, and what a test does to its world.
pub struct Subject<S> {
    pub store: S,
    /// Lets time pass on the clock by which leases end.
    pub pass: Box<dyn Fn(Duration)>,
    /// Does what makes it forget the changes up to now.
    pub forget: Forget<S>,
}

pub type Forget<S> = Box<dyn for<'a> Fn(&'a S) -> Pin<Box<dyn Future<Output = ()> + 'a>>>;

/// A clock that stands still until it is moved.
#[derive(Clone, Default)]
pub struct Clock(Arc<AtomicU64>);

impl Clock {
    pub fn now(&self) -> Instant {
        Instant(self.0.load(Relaxed))
    }
    pub fn pass(&self, time: Duration) {
        self.0.fetch_add(time.as_nanos() as u64, Relaxed);
    }
}

/// A store whose leases end by this clock, and which keeps as many changes as a watch may be behind.
pub fn subject<S: ClusterStore>(clock: Clock, store: S) -> Subject<S> {
    let forget: Forget<S> = Box::new(|store| Box::pin(churn(store, WATCH_CHANGES_MAX.div_ceil(OPS_MAX))));
    Subject { store, pass: Box::new(move |time| clock.pass(time)), forget }
}

const SECOND: Duration = Duration::from_secs(1);

/// Each case gets an empty store.
pub async fn conforms<S: ClusterStore>(fresh: impl AsyncFn() -> Subject<S>) {
    what_is_committed_is_read_back(&fresh().await.store).await;
    a_range_is_in_order_and_within_its_limit(&fresh().await.store).await;
    a_transaction_with_a_stale_compare_changes_nothing(&fresh().await.store).await;
    revisions_only_grow_even_over_deletion(&fresh().await.store).await;
    what_is_too_large_is_refused_and_the_largest_is_not(&fresh().await.store).await;
    shard_records_follow_the_rules(&ShardRecords(fresh().await.store)).await;
    a_list_has_the_revision_of_its_moment(&fresh().await.store).await;
    a_watch_tells_every_change_once_and_in_order(&fresh().await.store).await;
    a_watch_from_what_is_forgotten_says_read_anew(&fresh().await).await;
    a_watch_that_is_not_read_ends_and_one_that_begins_anew_goes_on(&fresh().await).await;
    keys_go_when_their_lease_ends_and_nothing_is_put_under_it_any_more(&fresh().await).await;
    a_lease_that_is_kept_alive_lasts(&fresh().await).await;
    a_revoked_lease_takes_its_keys_and_no_others(&fresh().await.store).await;
}

/// Many changes, of 128 keys each time.
pub async fn churn(store: &impl MetaStore, rounds: usize) {
    for round in 0..rounds {
        let txn = (0..OPS_MAX).fold(Txn::default(), |txn, i| txn.put(format!("churn/{i}"), [round as u8]));
        store.commit(txn).await.unwrap();
    }
}

pub fn put(key: &str, value: &str) -> Txn {
    Txn::default().put(key, value)
}

async fn what_is_committed_is_read_back(store: &impl MetaStore) {
    assert_eq!(store.get("a").await, Ok(None));
    let revision = store.commit(put("a", "1").put("b", "2")).await.unwrap();
    let item = |value: &str| Some(Item { value: value.into(), revision });
    assert_eq!(store.get("a").await, Ok(item("1")));
    assert_eq!(store.get("b").await, Ok(item("2")));
    store.commit(Txn::default().delete("a").delete("never was")).await.unwrap();
    assert_eq!(store.get("a").await, Ok(None));
    assert_eq!(store.get("b").await, Ok(item("2")));
}

async fn a_range_is_in_order_and_within_its_limit(store: &impl MetaStore) {
    for key in ["v/2", "v/1", "v/10", "u/9", "w/0", "v"] {
        store.commit(put(key, key)).await.unwrap();
    }
    let keys = async |prefix, limit| -> Vec<String> {
        store.range(prefix, limit).await.unwrap().into_iter().map(|(key, _)| key).collect()
    };
    assert_eq!(keys("v/", 99).await, ["v/1", "v/10", "v/2"]);
    assert_eq!(keys("v/", 2).await, ["v/1", "v/10"]);
    assert_eq!(keys("", 99).await.len(), 6);
    assert_eq!(keys("x", 99).await, [""; 0]);
}

async fn a_transaction_with_a_stale_compare_changes_nothing(store: &impl MetaStore) {
    let first = store.commit(put("a", "1").compare("a", Revision::ABSENT)).await.unwrap();
    let second = store.commit(put("a", "2").compare("a", first)).await.unwrap();
    for stale in [Revision::ABSENT, first, Revision(second.0 + 1)] {
        let txn = put("other", "x").compare("a", stale).delete("a");
        assert_eq!(store.commit(txn).await, Err(MetaError::Conflict { key: "a".into() }));
    }
    assert_eq!(store.get("other").await, Ok(None));
    assert_eq!(store.get("a").await, Ok(Some(Item { value: b"2".into(), revision: second })));
    let absent = put("other", "y").compare("a", second).compare("other", Revision::ABSENT);
    assert!(store.commit(absent).await.is_ok());
}

async fn revisions_only_grow_even_over_deletion(store: &impl MetaStore) {
    let mut last = Revision::ABSENT;
    for i in 0..10 {
        let txn = if i % 2 == 0 { put("a", "x") } else { Txn::default().delete("a") };
        let revision = store.commit(txn).await.unwrap();
        assert!(revision > last);
        last = revision;
    }
}

async fn what_is_too_large_is_refused_and_the_largest_is_not(store: &impl MetaStore) {
    let (key, value) = ("k".repeat(KEY_BYTES_MAX), vec![7; VALUE_BYTES_MAX]);
    assert!(store.commit(Txn::default().put(key.clone(), value.clone())).await.is_ok());
    assert_eq!(store.get(&key).await.unwrap().unwrap().value, value);
    let too_large = Err(MetaError::TooLarge);
    assert_eq!(store.commit(put(&format!("{key}k"), "")).await, too_large);
    assert_eq!(store.commit(put("", "")).await, too_large);
    assert_eq!(store.commit(Txn::default().put("a", vec![7; VALUE_BYTES_MAX + 1])).await, too_large);
    let many = |n| (0..n).fold(Txn::default(), |txn, i| txn.put(format!("n/{i}"), "x"));
    assert_eq!(store.commit(many(OPS_MAX + 1)).await, too_large);
    assert!(store.commit(many(OPS_MAX)).await.is_ok());
    let full =
        |n| (0..n).fold(Txn::default(), |txn, i| txn.put(format!("{i:02}"), vec![7; VALUE_BYTES_MAX - 2]));
    let most = TXN_BYTES_MAX / VALUE_BYTES_MAX;
    assert!(store.commit(full(most)).await.is_ok());
    assert_eq!(store.commit(full(most).compare("a", Revision::ABSENT)).await, too_large);
    let compared =
        (0..OPS_MAX / 2).fold(many(OPS_MAX / 2), |txn, i| txn.compare(format!("c/{i}"), Revision::ABSENT));
    assert!(store.commit(compared).await.is_ok());
}

pub fn record(epoch: u64, committed: u64) -> ShardRecord {
    ShardRecord { shard: ShardId(3), epoch: Epoch(epoch), committed: Seq(committed), ..Default::default() }
}

async fn shard_records_follow_the_rules(store: &impl ShardStore) {
    let shard = ShardId(3);
    assert_eq!(store.load(shard).await, Ok(None));
    let first = store.put(shard, Version::ABSENT, &record(1, 0)).await.unwrap();
    assert_eq!(store.put(shard, Version::ABSENT, &record(1, 1)).await, Err(StoreError::Conflict));
    let second = store.put(shard, first, &record(2, 5)).await.unwrap();
    assert_eq!(store.put(shard, first, &record(9, 9)).await, Err(StoreError::Conflict));
    assert_eq!(store.put(shard, second, &record(1, 9)).await, Err(StoreError::Conflict), "the epoch fell");
    assert_eq!(store.load(shard).await, Ok(Some((record(2, 5), second))));
    assert_eq!(store.load(ShardId(4)).await, Ok(None));
}

async fn next(watch: &mut impl Watch) -> (String, Option<String>, Revision) {
    let WatchChange { key, value, revision } = watch.next().await.unwrap();
    (key, value.map(|v| String::from_utf8(v).unwrap()), revision)
}

async fn several(watch: &mut impl Watch, count: usize) -> Vec<(String, Option<String>, Revision)> {
    let mut told = Vec::new();
    for _ in 0..count {
        told.push(next(watch).await);
    }
    told
}

fn told(key: &str, value: Option<&str>, revision: Revision) -> (String, Option<String>, Revision) {
    (key.into(), value.map(str::to_owned), revision)
}

async fn a_list_has_the_revision_of_its_moment(store: &impl ClusterStore) {
    let (none, before) = store.list("a/", 9).await.unwrap();
    assert_eq!(none, []);
    let first = store.commit(put("a/1", "1")).await.unwrap();
    let second = store.commit(put("b/1", "1")).await.unwrap();
    assert!(before < first);
    let (items, revision) = store.list("a/", 9).await.unwrap();
    assert_eq!(items, [("a/1".to_owned(), Item { value: b"1".into(), revision: first })]);
    assert_eq!(revision, second);
}

async fn a_watch_tells_every_change_once_and_in_order(store: &impl ClusterStore) {
    store.commit(put("a/0", "before")).await.unwrap();
    let (_, start) = store.list("", 99).await.unwrap();
    let mut all = store.watch("", start);
    let mut some = store.watch("a/", start);
    let one = store.commit(put("a/1", "1").put("b/1", "1").put("a/2", "2")).await.unwrap();
    let two = store.commit(put("a/1", "more").compare("a/1", one)).await.unwrap();
    assert!(store.commit(put("a/1", "refused").compare("a/1", one)).await.is_err());
    let three = store.commit(Txn::default().delete("a/1").delete("a/never was")).await.unwrap();
    let four = store.commit(put("b/2", "2")).await.unwrap();
    let five = store.commit(put("a/end", "")).await.unwrap();
    let below_a = [
        told("a/1", Some("1"), one),
        told("a/2", Some("2"), one),
        told("a/1", Some("more"), two),
        told("a/1", None, three),
        told("a/end", Some(""), five),
    ];
    assert_eq!(several(&mut some, below_a.len()).await, below_a);
    let mut late = store.watch("a/", two);
    assert_eq!(next(&mut late).await, below_a[3]);
    assert_eq!(next(&mut late).await, below_a[4]);
    let last = store.commit(put("b/3", "3")).await.unwrap();
    let everything = [
        told("a/1", Some("1"), one),
        told("b/1", Some("1"), one),
        told("a/2", Some("2"), one),
        told("a/1", Some("more"), two),
        told("a/1", None, three),
        told("b/2", Some("2"), four),
        told("a/end", Some(""), five),
        told("b/3", Some("3"), last),
    ];
    assert_eq!(several(&mut all, everything.len()).await, everything);
}

async fn a_watch_from_what_is_forgotten_says_read_anew(subject: &Subject<impl ClusterStore>) {
    let Subject { store, forget, .. } = subject;
    let before = store.commit(put("a", "1")).await.unwrap();
    store.commit(put("a", "2")).await.unwrap();
    forget(store).await;
    let mut watch = store.watch("a", before);
    assert_eq!(watch.next().await, Err(ReadAnew));
    assert_eq!(watch.next().await, Err(ReadAnew));
    let (_, now) = store.list("a", 9).await.unwrap();
    let mut watch = store.watch("a", now);
    let third = store.commit(put("a", "3")).await.unwrap();
    assert_eq!(next(&mut watch).await, told("a", Some("3"), third));
}

async fn a_watch_that_is_not_read_ends_and_one_that_begins_anew_goes_on(
    subject: &Subject<impl ClusterStore>,
) {
    let Subject { store, pass, .. } = subject;
    // What has arrived at a watch when it is read is for the network to say, so it may take several attempts.
    let mut attempts = 0..50;
    loop {
        assert!(attempts.next().is_some(), "it grows without a limit");
        let (_, now) = store.list("churn/", 0).await.unwrap();
        let mut watch = store.watch("churn/", now);
        churn(store, 16).await;
        pass(SECOND / 5);
        if ends_within(&mut watch, 16 * OPS_MAX).await {
            break;
        }
    }
    let (_, now) = store.list("churn/", 999).await.unwrap();
    let mut watch = store.watch("a", now);
    let revision = store.commit(put("a", "1")).await.unwrap();
    assert_eq!(next(&mut watch).await, told("a", Some("1"), revision));
}

async fn ends_within(watch: &mut impl Watch, changes: usize) -> bool {
    assert!(changes > WATCH_CHANGES_MAX);
    for _ in 0..changes {
        if watch.next().await.is_err() {
            return true;
        }
    }
    false
}

/// Lets time pass until a key is gone.
async fn wait_until_gone(subject: &Subject<impl ClusterStore>, key: &str) {
    for _ in 0..100 {
        (subject.pass)(SECOND / 5);
        if subject.store.get(key).await.unwrap().is_none() {
            return;
        }
    }
    panic!("`{key}` outlives its lease");
}

async fn keys_go_when_their_lease_ends_and_nothing_is_put_under_it_any_more(
    subject: &Subject<impl ClusterStore>,
) {
    let Subject { store, .. } = subject;
    let lease = store.grant(2 * SECOND).await.unwrap();
    let put_both = put("stays", "1").put_leased("goes", "1", lease);
    let revision = store.commit(put_both).await.unwrap();
    let mut watch = store.watch("", revision);
    wait_until_gone(subject, "goes").await;
    let (key, value, ended) = next(&mut watch).await;
    assert_eq!((key.as_str(), value), ("goes", None));
    assert!(ended > revision);
    assert!(store.get("stays").await.unwrap().is_some());
    let late = put("other", "1").put_leased("goes", "2", lease);
    assert_eq!(store.commit(late).await, Err(MetaError::NoLease));
    assert_eq!(store.get("other").await, Ok(None));
    let refused = Txn::default().put_leased("goes", "2", lease).compare("stays", Revision::ABSENT);
    assert_eq!(store.commit(refused).await, Err(MetaError::Conflict { key: "stays".into() }));
    assert_eq!(store.keep_alive(lease).await, Err(MetaError::NoLease));
    assert_eq!(store.revoke(lease).await, Ok(()));
}

async fn a_lease_that_is_kept_alive_lasts(subject: &Subject<impl ClusterStore>) {
    let Subject { store, pass, .. } = subject;
    let lease = store.grant(4 * SECOND).await.unwrap();
    store.commit(Txn::default().put_leased("a", "1", lease)).await.unwrap();
    for _ in 0..6 {
        pass(SECOND);
        store.keep_alive(lease).await.unwrap();
    }
    assert!(store.get("a").await.unwrap().is_some());
    store.commit(put("b", "1")).await.unwrap();
    wait_until_gone(subject, "a").await;
    assert!(store.get("b").await.unwrap().is_some());
}

/// Which of the four keys exist.
async fn there(store: &impl MetaStore) -> [bool; 4] {
    let mut there = [false; 4];
    for (key, there) in ["a", "b", "c", "d"].into_iter().zip(&mut there) {
        *there = store.get(key).await.unwrap().is_some();
    }
    there
}

async fn a_revoked_lease_takes_its_keys_and_no_others(store: &impl ClusterStore) {
    let one = store.grant(600 * SECOND).await.unwrap();
    let two = store.grant(600 * SECOND).await.unwrap();
    assert_ne!(one, two);
    let under = |key: &str, lease| Txn::default().put_leased(key, "1", lease);
    for key in ["a", "b", "c", "d"] {
        store.commit(under(key, one)).await.unwrap();
    }
    store.commit(put("a", "now without")).await.unwrap();
    store.commit(under("b", two)).await.unwrap();
    store.commit(Txn::default().delete("c")).await.unwrap();
    let made_anew = store.commit(put("c", "now without")).await.unwrap();
    let mut watch = store.watch("", made_anew);
    store.revoke(one).await.unwrap();
    let (key, value, revision) = next(&mut watch).await;
    assert_eq!((key.as_str(), value), ("d", None));
    assert_eq!(there(store).await, [true, true, true, false]);
    store.revoke(two).await.unwrap();
    assert_eq!(there(store).await, [true, false, true, false]);
    let (key, _, second) = next(&mut watch).await;
    assert_eq!(key, "b");
    assert!(second > revision);
    assert_eq!(store.keep_alive(one).await, Err(MetaError::NoLease));
}
