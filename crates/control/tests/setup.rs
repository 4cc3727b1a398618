//! Starts: the first one, the second one, one that was cut short, one that asks for something else.

use crate::common::ready;
use peristyle_base::{MIB, Scheme, Uuid};
use peristyle_cluster::TooFewPolicy;
use peristyle_control::desired::{State, check_nqn};
use peristyle_control::setup::*;
use peristyle_control::{ControlError, MemoryStore, MetaFault};
use std::cell::Cell;

const CLUSTER: Uuid = Uuid([7; 16]);

fn setup() -> Setup {
    let device = |n: u8| FoundDevice { id: Uuid([n; 16]), path: format!("/dev/{n}"), domain: None };
    Setup {
        nqn: None,
        shards: 4,
        pool_name: "main".into(),
        scheme: Scheme::new(4, 2).unwrap(),
        too_few_domains: TooFewPolicy::Refuse,
        devices: (1..=6).map(device).collect(),
        volumes: vec![VolumeWish { name: "demo".into(), bytes: 64 * MIB, lba_bytes: 4096 }],
        volumes_only_if_new: true,
    }
}

fn start(store: &MemoryStore, setup: &Setup) -> Result<State, ControlError> {
    let counter = Cell::new(1u8);
    let random = |bytes: &mut [u8]| {
        bytes.fill(counter.get());
        counter.set(counter.get() + 1);
    };
    ready(open_or_create(store.clone(), setup, CLUSTER, random)).map(|c| c.state().clone())
}

#[test]
fn a_first_start_makes_everything_and_a_second_changes_nothing() {
    let store = MemoryStore::default();
    let first = start(&store, &setup()).unwrap();
    assert_eq!(first.cluster.nqn, "nqn.2014-08.org.nvmexpress:uuid:07070707-0707-0707-0707-070707070707");
    assert_eq!(check_nqn(&first.cluster.nqn), Ok(()));
    assert_eq!((first.pools.len(), first.devices.len(), first.shards.len()), (1, 6, 4));
    assert_eq!(first.volume("demo").unwrap().bytes, 64 * MIB);
    let mut domains: Vec<u32> = first.devices.values().map(|d| d.domain).collect();
    domains.dedup();
    assert_eq!(domains.len(), 6, "each device is a failure domain of its own");
    assert_eq!(start(&store, &setup()), Ok(first));
}

#[test]
fn a_start_that_was_cut_short_is_completed_by_the_next() {
    let whole = start(&MemoryStore::default(), &setup()).unwrap();
    for calls in 0..40 {
        let store = MemoryStore::default();
        (0..calls).for_each(|_| store.inject_none());
        (0..40).for_each(|_| store.inject(MetaFault::Unavailable));
        if start(&store, &setup()).is_ok() {
            return assert!(calls > 10, "a start makes more calls than {calls}");
        }
        store.clear_faults();
        assert_eq!(start(&store, &setup()).unwrap(), whole, "cut after {calls} calls");
    }
    panic!("no start took fewer than 40 calls");
}

#[test]
fn default_volumes_are_for_new_stores_and_named_ones_for_all() {
    let store = MemoryStore::default();
    let other = VolumeWish { name: "other".into(), bytes: 64 * MIB, lba_bytes: 512 };
    let named = Setup { volumes: vec![other], volumes_only_if_new: false, ..setup() };
    start(&store, &named).unwrap();
    assert!(start(&store, &setup()).unwrap().volume("demo").is_none(), "the store is not new");
    let more =
        Setup { volumes: vec![VolumeWish { name: "more".into(), ..named.volumes[0].clone() }], ..named };
    // Random numbers start over in this test: the identity is taken, and that is noticed.
    assert!(matches!(start(&store, &more), Err(ControlError::IdentityTaken(_))));
    assert_eq!(start(&store, &setup()).unwrap().volumes.len(), 1);
}

#[test]
fn devices_move_and_missing_ones_stay_known() {
    let store = MemoryStore::default();
    let before = start(&store, &setup()).unwrap();
    let mut asked = setup();
    asked.devices[0].path = "/dev/moved".into();
    asked.devices[1].domain = Some(3);
    asked.devices.truncate(5);
    asked.scheme = Scheme::new(2, 2).unwrap();
    let after = start(&store, &asked).unwrap();
    assert_eq!(after.devices[&Uuid([1; 16])].path, "/dev/moved");
    assert_eq!(after.devices[&Uuid([1; 16])].domain, before.devices[&Uuid([1; 16])].domain);
    assert_eq!(after.devices[&Uuid([2; 16])].domain, 3);
    assert_eq!(after.devices[&Uuid([6; 16])], before.devices[&Uuid([6; 16])]);
    assert_eq!(after.pools[&POOL].scheme, asked.scheme);
    let own_again = start(&store, &setup()).unwrap().devices[&Uuid([2; 16])].domain;
    assert!(own_again > 3 && !after.devices.values().any(|d| d.domain == own_again && d.id != Uuid([2; 16])));
}
