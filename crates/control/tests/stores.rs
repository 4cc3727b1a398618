//! One suite for every store, and what is special about each.

use crate::common::{TempDir, ready};
use crate::suite::{Clock, conforms, put, record, subject};
use peristyle_base::{Duration, ShardId};
use peristyle_cluster::{ShardStore, StoreError, Version};
use peristyle_control::*;

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

#[test]
fn the_memory_store_conforms() {
    ready(conforms(async || {
        let clock = Clock::default();
        let its = clock.clone();
        subject(clock, MemoryStore::with_clock(move || its.now()))
    }));
}

#[test]
fn the_embedded_store_conforms() {
    let folders = std::cell::RefCell::new(Vec::new());
    ready(conforms(async || {
        let folder = TempDir::new();
        let (clock, store) = (Clock::default(), folder.store());
        folders.borrow_mut().push(folder);
        let its = clock.clone();
        subject(clock, store.with_clock(move || its.now()))
    }));
}

#[test]
fn a_store_that_may_be_any_conforms_as_the_embedded_one_and_is_for_all_threads() {
    fn is_for_all_threads(_: &(impl Clone + Send + 'static)) {}
    let folders = std::cell::RefCell::new(Vec::new());
    ready(conforms(async || {
        let folder = TempDir::new();
        let (clock, store) = (Clock::default(), folder.store());
        folders.borrow_mut().push(folder);
        let its = clock.clone();
        let store = AnyStore::Embedded(store.with_clock(move || its.now()));
        is_for_all_threads(&store);
        subject(clock, store)
    }));
}

#[test]
fn a_start_of_the_embedded_store_deletes_what_was_under_leases_of_the_process_before() {
    let folder = TempDir::new();
    let revision = {
        let store = folder.store();
        let lease = ready(store.grant(Duration::from_secs(600))).unwrap();
        let other = ready(store.grant(Duration::from_secs(600))).unwrap();
        let leased = put("a", "1").put_leased("b", "1", lease).put_leased("c", "1", lease);
        ready(store.commit(leased.put_leased("d", "1", other))).unwrap();
        ready(store.commit(put("c", "now without"))).unwrap()
    };
    let store = folder.store();
    let there = |key| ready(store.get(key)).unwrap().is_some();
    assert_eq!(["a", "b", "c", "d"].map(there), [true, false, true, false]);
    assert_eq!(ready(store.watch("", revision).next()), Err(ReadAnew), "nobody has kept what happened");
    let (_, now) = ready(store.list("", 9)).unwrap();
    assert!(now > revision);
    let mut watch = store.watch("", now);
    ready(store.commit(put("e", "1"))).unwrap();
    assert_eq!(ready(watch.next()).unwrap().key, "e");
}

#[test]
fn a_start_of_the_embedded_store_grants_no_lease_while_one_of_the_process_before_may_be_believed_in() {
    let folder = TempDir::new();
    let (short, long) = (Duration::from_secs(3), Duration::from_secs(9));
    let before = {
        let store = folder.store();
        let [short, long, unused] = [short, long, 2 * long].map(|ttl| ready(store.grant(ttl)).unwrap());
        ready(store.commit(Txn::default().put_leased("a", "1", long).put_leased("b", "1", short))).unwrap();
        ready(store.commit(Txn::default().put_leased("a", "1", short))).unwrap();
        [short, long, unused]
    };
    // Twice, since the first start may not last long enough.
    drop(folder.store());
    let clock = Clock::default();
    let its = clock.clone();
    let store = folder.store().with_clock(move || its.now());
    clock.pass(Duration::from_secs(1000));
    assert!(matches!(ready(store.grant(short)), Err(MetaError::Unavailable(_))));
    clock.pass(long - Duration::from_nanos(1));
    assert!(matches!(ready(store.grant(short)), Err(MetaError::Unavailable(_))));
    clock.pass(Duration::from_nanos(1));
    let granted: Vec<_> = (0..3).map(|_| ready(store.grant(short)).unwrap()).collect();
    assert!(granted.iter().all(|lease| !before.contains(lease)));
    for lease in before {
        assert_eq!(ready(store.keep_alive(lease)), Err(MetaError::NoLease), "it would keep another's alive");
    }
}

#[test]
fn leases_are_refused_above_a_limit_and_granted_again_below_it() {
    let store = MemoryStore::default();
    let grant = || ready(store.grant(Duration::from_secs(600)));
    let all: Vec<_> = std::iter::from_fn(|| grant().ok()).take(10_000).collect();
    assert_eq!(all.len(), 4096);
    assert!(matches!(grant(), Err(MetaError::Unavailable(_))));
    ready(store.revoke(all[7])).unwrap();
    assert!(grant().is_ok());
}

#[test]
#[should_panic(expected = "a transaction changes a key once")]
fn a_transaction_that_changes_a_key_twice_is_our_mistake() {
    let _ = ready(MemoryStore::default().commit(put("a", "1").delete("a")));
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
