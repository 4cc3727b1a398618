//! One suite for every store, and what is special about each.

mod common;
use common::{TempDir, ready};
use peristyle_base::{Epoch, Seq, ShardId};
use peristyle_cluster::{ShardRecord, ShardStore, StoreError, Version};
use peristyle_control::*;

/// The suite. Each case gets an empty store.
fn conforms<S: MetaStore>(fresh: impl Fn() -> S) {
    what_is_committed_is_read_back(&fresh());
    a_range_is_in_order_and_within_its_limit(&fresh());
    a_transaction_with_a_stale_compare_changes_nothing(&fresh());
    revisions_only_grow_even_over_deletion(&fresh());
    what_is_too_large_is_refused_and_the_largest_is_not(&fresh());
    shard_records_follow_the_rules(&ShardRecords(fresh()));
}

#[test]
fn a_copy_of_a_files_bytes_has_what_the_file_has_also_when_it_was_not_closed_and_the_file_stays_as_it_is() {
    let dir = TempDir::new();
    let path = dir.file();
    let store = EmbeddedStore::open(&path).unwrap().inline();
    ready(store.commit(put("a", "1"))).unwrap();
    let bytes = std::fs::read(&path).unwrap(); // open, as a process that is killed leaves it
    let copy = EmbeddedStore::of_bytes("copy", &bytes).unwrap().inline();
    assert_eq!(ready(copy.get("a")).unwrap().unwrap().value, b"1");
    ready(copy.commit(put("a", "2"))).unwrap();
    assert_eq!(ready(store.get("a")).unwrap().unwrap().value, b"1");
    assert_eq!(std::fs::read(&path).unwrap(), bytes);
    assert!(matches!(EmbeddedStore::of_bytes("noise", &[7; 9000]), Err(OpenError::Damaged { .. })));
}

fn put(key: &str, value: &str) -> Txn {
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
}

fn record(epoch: u64, committed: u64) -> ShardRecord {
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

#[test]
fn the_memory_store_conforms() {
    conforms(MemoryStore::default);
}

#[test]
fn the_embedded_store_conforms() {
    let folders = std::cell::RefCell::new(Vec::new());
    conforms(|| {
        let folder = TempDir::new();
        let store = folder.store();
        folders.borrow_mut().push(folder);
        store
    });
}

#[test]
fn a_damaged_shard_record_is_called_damaged() {
    let store = MemoryStore::default();
    ready(store.commit(put("record/3", "not a record"))).unwrap();
    assert_eq!(ready(ShardRecords(store).load(ShardId(3))), Err(StoreError::Damaged));
}

#[test]
fn another_shards_record_under_a_shards_key_is_damage() {
    let store = MemoryStore::default();
    let mut bytes = Vec::new();
    record(1, 1).encode(&mut bytes).unwrap();
    ready(store.commit(Txn::default().put("record/4", bytes))).unwrap();
    assert_eq!(ready(ShardRecords(store).load(ShardId(4))), Err(StoreError::Damaged));
}

#[test]
fn faults_of_the_store_are_faults_of_the_shards_store() {
    let store = MemoryStore::default();
    let records = ShardRecords(store.clone());
    for (fault, error) in [
        (MetaFault::Unavailable, StoreError::Unavailable),
        (MetaFault::UnknownLost, StoreError::Unknown),
        (MetaFault::UnknownApplied, StoreError::Unknown),
    ] {
        store.inject(fault);
        assert_eq!(ready(records.put(ShardId(3), Version::ABSENT, &record(1, 1))), Err(error));
    }
    assert_eq!(ready(records.load(ShardId(3))).unwrap().unwrap().0, record(1, 1));
}

#[test]
fn the_embedded_store_keeps_what_it_acknowledged_over_a_stop_without_goodbye() {
    let folder = TempDir::new();
    let revision = {
        let store = folder.store();
        ready(store.commit(put("a", "1"))).unwrap() // dropped without close
    };
    let store = folder.store();
    assert!(!store.was_repaired(), "an unclean stop is no damage");
    assert_eq!(ready(store.get("a")), Ok(Some(Item { value: b"1".into(), revision })));
    let next = ready(store.commit(put("a", "2"))).unwrap();
    assert!(next > revision, "revisions go on after a restart");
    store.close().unwrap();
    assert_eq!(ready(folder.store().get("a")).unwrap().unwrap().value, b"2");
}

#[test]
fn a_store_that_is_open_cannot_be_opened_again() {
    let folder = TempDir::new();
    let _first = folder.store();
    let second = EmbeddedStore::open(&folder.file());
    assert!(matches!(second, Err(OpenError::InUse(_))));
}

#[test]
fn a_file_that_is_no_store_is_not_overwritten() {
    let folder = TempDir::new();
    let text = "precious notes, not a store".repeat(1000);
    std::fs::write(folder.file(), &text).unwrap();
    assert!(EmbeddedStore::open(&folder.file()).is_err());
    assert_eq!(std::fs::read_to_string(folder.file()).unwrap(), text);
}

#[test]
fn a_folder_that_is_missing_is_named_in_the_error() {
    let folder = TempDir::new();
    let Err(error) = EmbeddedStore::open(&folder.0.join("missing/state.redb")) else { panic!("it opened") };
    assert!(error.to_string().contains("missing/state.redb"), "{error}");
}
