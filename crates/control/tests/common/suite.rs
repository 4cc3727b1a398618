//! The suite that every store passes.

use super::common::ready;
use peristyle_base::{Duration, Epoch, Seq, ShardId};
use peristyle_cluster::{ShardRecord, ShardStore, StoreError, Version};
use peristyle_control::*;

/// An empty store, and what a test does to its world.
pub struct Subject<S> {
    pub store: S,
    /// Lets time pass on the clock by which leases end.
    pub pass: Box<dyn Fn(Duration)>,
    /// Does what makes it forget the changes up to now.
    pub forget: fn(&S),
}

const SECOND: Duration = Duration::from_secs(1);

/// Each case gets an empty store.
pub fn conforms<S: ClusterStore>(fresh: impl Fn() -> Subject<S>) {
    what_is_committed_is_read_back(&fresh().store);
    a_range_is_in_order_and_within_its_limit(&fresh().store);
    a_transaction_with_a_stale_compare_changes_nothing(&fresh().store);
    revisions_only_grow_even_over_deletion(&fresh().store);
    what_is_too_large_is_refused_and_the_largest_is_not(&fresh().store);
    shard_records_follow_the_rules(&ShardRecords(fresh().store));
    a_list_has_the_revision_of_its_moment(&fresh().store);
    a_watch_tells_every_change_once_and_in_order(&fresh().store);
    a_watch_from_what_is_forgotten_says_read_anew(&fresh());
    a_watch_that_is_not_read_ends_and_one_that_begins_anew_goes_on(&fresh());
    keys_go_when_their_lease_ends_and_nothing_is_put_under_it_any_more(&fresh());
    a_lease_that_is_kept_alive_lasts(&fresh());
    a_revoked_lease_takes_its_keys_and_no_others(&fresh().store);
}

/// Many changes, of 128 keys each time.
pub fn churn(store: &impl MetaStore, rounds: usize) {
    for round in 0..rounds {
        let txn = (0..OPS_MAX).fold(Txn::default(), |txn, i| txn.put(format!("churn/{i}"), [round as u8]));
        ready(store.commit(txn)).unwrap();
    }
}

pub fn put(key: &str, value: &str) -> Txn {
    Txn::default().put(key, value)
}

fn what_is_committed_is_read_back(store: &impl MetaStore) {
    assert_eq!(ready(store.get("a")), Ok(None));
    let revision = ready(store.commit(put("a", "1").put("b", "2"))).unwrap();
    let item = |value: &str| Some(Item { value: value.into(), revision });
    assert_eq!(ready(store.get("a")), Ok(item("1")));
    assert_eq!(ready(store.get("b")), Ok(item("2")));
    ready(store.commit(Txn::default().delete("a").delete("never was"))).unwrap();
    assert_eq!(ready(store.get("a")), Ok(None));
    assert_eq!(ready(store.get("b")), Ok(item("2")));
}

fn a_range_is_in_order_and_within_its_limit(store: &impl MetaStore) {
    for key in ["v/2", "v/1", "v/10", "u/9", "w/0", "v"] {
        ready(store.commit(put(key, key))).unwrap();
    }
    let keys = |prefix, limit| -> Vec<String> {
        ready(store.range(prefix, limit)).unwrap().into_iter().map(|(key, _)| key).collect()
    };
    assert_eq!(keys("v/", 99), ["v/1", "v/10", "v/2"]);
    assert_eq!(keys("v/", 2), ["v/1", "v/10"]);
    assert_eq!(keys("", 99).len(), 6);
    assert_eq!(keys("x", 99), [""; 0]);
}

fn a_transaction_with_a_stale_compare_changes_nothing(store: &impl MetaStore) {
    let first = ready(store.commit(put("a", "1").compare("a", Revision::ABSENT))).unwrap();
    let second = ready(store.commit(put("a", "2").compare("a", first))).unwrap();
    for stale in [Revision::ABSENT, first, Revision(second.0 + 1)] {
        let txn = put("other", "x").compare("a", stale).delete("a");
        assert_eq!(ready(store.commit(txn)), Err(MetaError::Conflict { key: "a".into() }));
    }
    assert_eq!(ready(store.get("other")), Ok(None));
    assert_eq!(ready(store.get("a")), Ok(Some(Item { value: b"2".into(), revision: second })));
    let absent = put("other", "y").compare("a", second).compare("other", Revision::ABSENT);
    assert!(ready(store.commit(absent)).is_ok());
}

fn revisions_only_grow_even_over_deletion(store: &impl MetaStore) {
    let mut last = Revision::ABSENT;
    for i in 0..10 {
        let txn = if i % 2 == 0 { put("a", "x") } else { Txn::default().delete("a") };
        let revision = ready(store.commit(txn)).unwrap();
        assert!(revision > last);
        last = revision;
    }
}

fn what_is_too_large_is_refused_and_the_largest_is_not(store: &impl MetaStore) {
    let (key, value) = ("k".repeat(KEY_BYTES_MAX), vec![7; VALUE_BYTES_MAX]);
    assert!(ready(store.commit(Txn::default().put(key.clone(), value.clone()))).is_ok());
    assert_eq!(ready(store.get(&key)).unwrap().unwrap().value, value);
    let too_large = Err(MetaError::TooLarge);
    assert_eq!(ready(store.commit(put(&format!("{key}k"), ""))), too_large);
    assert_eq!(ready(store.commit(put("", ""))), too_large);
    assert_eq!(ready(store.commit(Txn::default().put("a", vec![7; VALUE_BYTES_MAX + 1]))), too_large);
    let many = |n| (0..n).fold(Txn::default(), |txn, i| txn.put(format!("n/{i}"), "x"));
    assert_eq!(ready(store.commit(many(OPS_MAX + 1))), too_large);
    assert!(ready(store.commit(many(OPS_MAX))).is_ok());
    let full =
        |n| (0..n).fold(Txn::default(), |txn, i| txn.put(format!("{i:02}"), vec![7; VALUE_BYTES_MAX - 2]));
    let most = TXN_BYTES_MAX / VALUE_BYTES_MAX;
    assert!(ready(store.commit(full(most))).is_ok());
    assert_eq!(ready(store.commit(full(most).compare("a", Revision::ABSENT))), too_large);
    let compared =
        (0..OPS_MAX / 2).fold(many(OPS_MAX / 2), |txn, i| txn.compare(format!("c/{i}"), Revision::ABSENT));
    assert!(ready(store.commit(compared)).is_ok());
}

pub fn record(epoch: u64, committed: u64) -> ShardRecord {
    ShardRecord { shard: ShardId(3), epoch: Epoch(epoch), committed: Seq(committed), ..Default::default() }
}

fn shard_records_follow_the_rules(store: &impl ShardStore) {
    let shard = ShardId(3);
    assert_eq!(ready(store.load(shard)), Ok(None));
    let first = ready(store.put(shard, Version::ABSENT, &record(1, 0))).unwrap();
    assert_eq!(ready(store.put(shard, Version::ABSENT, &record(1, 1))), Err(StoreError::Conflict));
    let second = ready(store.put(shard, first, &record(2, 5))).unwrap();
    assert_eq!(ready(store.put(shard, first, &record(9, 9))), Err(StoreError::Conflict));
    assert_eq!(ready(store.put(shard, second, &record(1, 9))), Err(StoreError::Conflict), "the epoch fell");
    assert_eq!(ready(store.load(shard)), Ok(Some((record(2, 5), second))));
    assert_eq!(ready(store.load(ShardId(4))), Ok(None));
}

fn next(watch: &mut impl Watch) -> (String, Option<String>, Revision) {
    let WatchChange { key, value, revision } = ready(watch.next()).unwrap();
    (key, value.map(|v| String::from_utf8(v).unwrap()), revision)
}

fn told(key: &str, value: Option<&str>, revision: Revision) -> (String, Option<String>, Revision) {
    (key.into(), value.map(str::to_owned), revision)
}

fn a_list_has_the_revision_of_its_moment(store: &impl ClusterStore) {
    let (none, before) = ready(store.list("a/", 9)).unwrap();
    assert_eq!(none, []);
    let first = ready(store.commit(put("a/1", "1"))).unwrap();
    let second = ready(store.commit(put("b/1", "1"))).unwrap();
    assert!(before < first);
    let (items, revision) = ready(store.list("a/", 9)).unwrap();
    assert_eq!(items, [("a/1".to_owned(), Item { value: b"1".into(), revision: first })]);
    assert_eq!(revision, second);
}

fn a_watch_tells_every_change_once_and_in_order(store: &impl ClusterStore) {
    ready(store.commit(put("a/0", "before"))).unwrap();
    let (_, start) = ready(store.list("", 99)).unwrap();
    let mut all = store.watch("", start);
    let mut some = store.watch("a/", start);
    let one = ready(store.commit(put("a/1", "1").put("b/1", "1").put("a/2", "2"))).unwrap();
    let two = ready(store.commit(put("a/1", "more").compare("a/1", one))).unwrap();
    assert!(ready(store.commit(put("a/1", "refused").compare("a/1", one))).is_err());
    let three = ready(store.commit(Txn::default().delete("a/1").delete("a/never was"))).unwrap();
    let four = ready(store.commit(put("b/2", "2"))).unwrap();
    let five = ready(store.commit(put("a/end", ""))).unwrap();
    let below_a = [
        told("a/1", Some("1"), one),
        told("a/2", Some("2"), one),
        told("a/1", Some("more"), two),
        told("a/1", None, three),
        told("a/end", Some(""), five),
    ];
    assert_eq!(below_a.clone().map(|_| next(&mut some)), below_a);
    let mut late = store.watch("a/", two);
    assert_eq!(next(&mut late), below_a[3]);
    assert_eq!(next(&mut late), below_a[4]);
    let last = ready(store.commit(put("b/3", "3"))).unwrap();
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
    assert_eq!(everything.clone().map(|_| next(&mut all)), everything);
}

fn a_watch_from_what_is_forgotten_says_read_anew(subject: &Subject<impl ClusterStore>) {
    let Subject { store, forget, .. } = subject;
    let before = ready(store.commit(put("a", "1"))).unwrap();
    ready(store.commit(put("a", "2"))).unwrap();
    forget(store);
    let mut watch = store.watch("a", before);
    assert_eq!(ready(watch.next()), Err(ReadAnew));
    assert_eq!(ready(watch.next()), Err(ReadAnew));
    let (_, now) = ready(store.list("a", 9)).unwrap();
    let mut watch = store.watch("a", now);
    let third = ready(store.commit(put("a", "3"))).unwrap();
    assert_eq!(next(&mut watch), told("a", Some("3"), third));
}

fn a_watch_that_is_not_read_ends_and_one_that_begins_anew_goes_on(subject: &Subject<impl ClusterStore>) {
    let Subject { store, pass, .. } = subject;
    // What has arrived at a watch when it is read is for the network to say, so it may take several attempts.
    let ends = (0..50).any(|_| {
        let (_, now) = ready(store.list("churn/", 0)).unwrap();
        let mut watch = store.watch("churn/", now);
        let changes = 16 * OPS_MAX;
        assert!(changes > WATCH_CHANGES_MAX);
        churn(store, 16);
        pass(SECOND / 5);
        (0..changes).any(|_| ready(watch.next()).is_err())
    });
    assert!(ends, "it grows without a limit");
    let (_, now) = ready(store.list("churn/", 999)).unwrap();
    let mut watch = store.watch("a", now);
    let revision = ready(store.commit(put("a", "1"))).unwrap();
    assert_eq!(next(&mut watch), told("a", Some("1"), revision));
}

/// Lets time pass until a key is gone.
fn wait_until_gone(subject: &Subject<impl ClusterStore>, key: &str) {
    let gone = (0..100).any(|_| {
        (subject.pass)(SECOND / 5);
        ready(subject.store.get(key)).unwrap().is_none()
    });
    assert!(gone, "`{key}` outlives its lease");
}

fn keys_go_when_their_lease_ends_and_nothing_is_put_under_it_any_more(subject: &Subject<impl ClusterStore>) {
    let Subject { store, .. } = subject;
    let lease = ready(store.grant(2 * SECOND)).unwrap();
    let put_both = put("stays", "1").put_leased("goes", "1", lease);
    let revision = ready(store.commit(put_both)).unwrap();
    let mut watch = store.watch("", revision);
    wait_until_gone(subject, "goes");
    let (key, value, ended) = next(&mut watch);
    assert_eq!((key.as_str(), value), ("goes", None));
    assert!(ended > revision);
    assert!(ready(store.get("stays")).unwrap().is_some());
    let late = put("other", "1").put_leased("goes", "2", lease);
    assert_eq!(ready(store.commit(late)), Err(MetaError::NoLease));
    assert_eq!(ready(store.get("other")), Ok(None));
    let refused = Txn::default().put_leased("goes", "2", lease).compare("stays", Revision::ABSENT);
    assert_eq!(ready(store.commit(refused)), Err(MetaError::Conflict { key: "stays".into() }));
    assert_eq!(ready(store.keep_alive(lease)), Err(MetaError::NoLease));
    assert_eq!(ready(store.revoke(lease)), Ok(()));
}

fn a_lease_that_is_kept_alive_lasts(subject: &Subject<impl ClusterStore>) {
    let Subject { store, pass, .. } = subject;
    let lease = ready(store.grant(4 * SECOND)).unwrap();
    ready(store.commit(Txn::default().put_leased("a", "1", lease))).unwrap();
    for _ in 0..6 {
        pass(SECOND);
        ready(store.keep_alive(lease)).unwrap();
    }
    assert!(ready(store.get("a")).unwrap().is_some());
    ready(store.commit(put("b", "1"))).unwrap();
    wait_until_gone(subject, "a");
    assert!(ready(store.get("b")).unwrap().is_some());
}

fn a_revoked_lease_takes_its_keys_and_no_others(store: &impl ClusterStore) {
    let one = ready(store.grant(600 * SECOND)).unwrap();
    let two = ready(store.grant(600 * SECOND)).unwrap();
    assert_ne!(one, two);
    let under = |key: &str, lease| Txn::default().put_leased(key, "1", lease);
    for key in ["a", "b", "c", "d"] {
        ready(store.commit(under(key, one))).unwrap();
    }
    ready(store.commit(put("a", "now without"))).unwrap();
    ready(store.commit(under("b", two))).unwrap();
    ready(store.commit(Txn::default().delete("c"))).unwrap();
    let made_anew = ready(store.commit(put("c", "now without"))).unwrap();
    let mut watch = store.watch("", made_anew);
    ready(store.revoke(one)).unwrap();
    let (key, value, revision) = next(&mut watch);
    assert_eq!((key.as_str(), value), ("d", None));
    let there = |key| ready(store.get(key)).unwrap().is_some();
    assert_eq!(["a", "b", "c", "d"].map(there), [true, true, true, false]);
    ready(store.revoke(two)).unwrap();
    assert_eq!(["a", "b", "c", "d"].map(there), [true, false, true, false]);
    let (key, _, second) = next(&mut watch);
    assert_eq!(key, "b");
    assert!(second > revision);
    assert_eq!(ready(store.keep_alive(one)), Err(MetaError::NoLease));
}
