//! The desired state: what may be asked for, and that it is kept.

use crate::common::{TempDir, ready};
use peristyle_base::*;
use peristyle_cluster::TooFewPolicy;
use peristyle_control::desired::*;
use peristyle_control::{MemoryStore, MetaError, MetaFault, MetaStore, Txn};
use std::rc::Rc;

const NQN: &str = "nqn.2014-08.org.nvmexpress:uuid:6c6c6f77-6f72-4c64-a000-000000000001";

fn spec(name: &str, n: u8) -> VolumeSpec {
    let (uuid, nguid) = (Uuid::from_random([n; 16]), Uuid::from_random([n ^ 0x80; 16]));
    VolumeSpec { name: name.into(), bytes: 64 * MIB, lba_bytes: 4096, uuid, nguid }
}

fn pool() -> Pool {
    let scheme = Scheme::new(4, 2).unwrap();
    let (too_few_domains, failure_domain) = (TooFewPolicy::Refuse, FailureDomain::Device);
    Pool { id: PoolId(0), name: "main".into(), scheme, too_few_domains, failure_domain }
}

fn device(n: u8) -> Device {
    Device {
        id: Uuid([n; 16]),
        pool: PoolId(0),
        domain: n as u32,
        path: format!("/dev/{n}"),
        state: DeviceState::Active,
        node: None,
    }
}

/// A pool of six devices and two shards.
fn complete<S: MetaStore>(store: S) -> Control<S> {
    let control = ready(Control::create(store, Uuid([9; 16]), NQN)).unwrap();
    apply(&control, Change::CreatePool(pool())).unwrap();
    (1..=6).for_each(|n| drop(apply(&control, Change::AddDevice(device(n))).unwrap()));
    apply(&control, Change::AddShards { pool: PoolId(0), count: 2 }).unwrap();
    control
}

fn apply<S: MetaStore>(control: &Control<S>, change: Change) -> Result<State, ControlError> {
    ready(control.apply(&change))
}

fn create<S: MetaStore>(control: &Control<S>, name: &str, n: u8) -> Result<Volume, ControlError> {
    apply(control, Change::CreateVolume(spec(name, n))).map(|s| s.volume(name).unwrap().clone())
}

#[test]
fn everything_is_there_after_a_restart() {
    let folder = TempDir::new();
    let before = {
        let control = complete(folder.store());
        create(&control, "demo", 1).unwrap();
        control.state().clone()
    };
    let control = ready(Control::open(folder.store())).unwrap().expect("it was created");
    assert_eq!(*control.state(), before);
    assert_eq!(before.cluster.generation, 1 + 1 + 6 + 1 + 1, "one per change");
    assert_eq!(before.volume("demo").unwrap().id, VolumeId(1));
}

#[test]
fn an_empty_store_holds_no_state_and_is_created_once() {
    let store = MemoryStore::default();
    assert!(ready(Control::open(store.clone())).unwrap().is_none());
    ready(Control::create(store.clone(), Uuid([1; 16]), NQN)).unwrap();
    let again = ready(Control::create(store, Uuid([2; 16]), NQN));
    assert_eq!(again.err(), Some(ControlError::AlreadyThere("the control store")));
}

#[test]
fn volumes_spread_over_the_shards_and_have_layers_of_their_own() {
    let control = complete(MemoryStore::default());
    let volumes: Vec<_> = (1..=4).map(|n| create(&control, &format!("v{n}"), n).unwrap()).collect();
    let shards: Vec<_> = volumes.iter().map(|v| v.shard.0).collect();
    assert_eq!(shards, [0, 1, 0, 1]);
    assert!(volumes.windows(2).all(|w| w[0].layer < w[1].layer && w[0].id < w[1].id));
}

#[test]
fn a_deleted_volumes_layer_never_comes_back_and_its_id_comes_back_last() {
    let control = complete(MemoryStore::default());
    let first = create(&control, "a", 1).unwrap();
    apply(&control, Change::BeginDelete { name: "a".into() }).unwrap();
    assert_eq!(control.state().active_volumes().count(), 0);
    assert_eq!(create(&control, "a", 2), Err(ControlError::Deleting("a".into())));
    apply(&control, Change::FinishDelete { volume: first.id }).unwrap();
    let second = create(&control, "a", 1).unwrap();
    assert!(second.layer > first.layer && second.id != first.id);
    for n in 3..=VOLUMES_MAX as u32 {
        let id = create(&control, "x", 3).unwrap().id;
        assert_eq!(id, VolumeId(n));
        apply(&control, Change::BeginDelete { name: "x".into() }).unwrap();
        apply(&control, Change::FinishDelete { volume: id }).unwrap();
    }
    assert_eq!(create(&control, "x", 3).unwrap().id, VolumeId(1), "the turn is over");
    assert_eq!(create(&control, "y", 4).unwrap().id, VolumeId(3), "2 is in use");
}

#[test]
fn deletion_goes_in_two_steps() {
    let control = complete(MemoryStore::default());
    let id = create(&control, "a", 1).unwrap().id;
    let finish = || apply(&control, Change::FinishDelete { volume: id });
    assert_eq!(finish(), Err(ControlError::NotDeleting("a".into())));
    let begin = || apply(&control, Change::BeginDelete { name: "a".into() });
    begin().unwrap();
    assert_eq!(begin(), Err(ControlError::Deleting("a".into())));
    finish().unwrap();
    assert!(matches!(begin(), Err(ControlError::NotFound { kind: "volume", .. })));
    assert!(matches!(finish(), Err(ControlError::NotFound { .. })));
}

#[test]
fn a_volume_has_its_new_size_after_a_restart_and_is_the_same_volume() {
    let folder = TempDir::new();
    let before = {
        let control = complete(folder.store());
        let before = create(&control, "a", 1).unwrap();
        for (bytes, shrink) in [(128 * MIB, false), (128 * MIB, false), (MIB, true), (96 * MIB + 4096, false)]
        {
            let state = apply(&control, Change::ResizeVolume { name: "a".into(), bytes, shrink }).unwrap();
            assert_eq!(state.volume("a").unwrap().bytes, bytes);
        }
        before
    };
    let control = ready(Control::open(folder.store())).unwrap().unwrap();
    assert_eq!(control.state().volume("a"), Some(&Volume { bytes: 96 * MIB + 4096, ..before }));
}

#[test]
fn a_smaller_size_has_to_be_allowed_and_sizes_are_checked_as_at_creation() {
    let control = complete(MemoryStore::default());
    create(&control, "a", 1).unwrap();
    let id = create(&control, "gone", 2).unwrap().id;
    apply(&control, Change::BeginDelete { name: "gone".into() }).unwrap();
    let before = control.state().clone();
    let resize = |name: &str, bytes, shrink| {
        apply(&control, Change::ResizeVolume { name: name.into(), bytes, shrink }).unwrap_err()
    };
    let smaller = ControlError::WouldShrink { name: "a".into(), bytes: 64 * MIB, wanted: 63 * MIB };
    assert_eq!(resize("a", 63 * MIB, false), smaller);
    for shrink in [false, true] {
        let uneven = ControlError::UnevenSize { bytes: 65 * MIB + 512, next: 65 * MIB + 4096 };
        assert_eq!(resize("a", 65 * MIB + 512, shrink), uneven);
        for bytes in [0, MIB - 4096, VOLUME_BYTES_MAX + 4096] {
            assert_eq!(resize("a", bytes, shrink), ControlError::SizeOutOfRange(bytes));
        }
        assert_eq!(resize("gone", 65 * MIB, shrink), ControlError::Deleting("gone".into()));
        let missing = ControlError::NotFound { kind: "volume", name: "b".into() };
        assert_eq!(resize("b", 65 * MIB, shrink), missing);
    }
    assert_eq!(*control.state(), before, "a refused change changes nothing");
    apply(&control, Change::FinishDelete { volume: id }).unwrap();
}

/// The error of a volume like `spec("new", 2)` with one thing changed.
fn refused(change: impl FnOnce(&mut VolumeSpec)) -> ControlError {
    let control = complete(MemoryStore::default());
    create(&control, "there", 1).unwrap();
    let before = control.state().clone();
    let mut spec = spec("new", 2);
    change(&mut spec);
    let error = apply(&control, Change::CreateVolume(spec)).unwrap_err();
    assert_eq!(*control.state(), before, "a refused change changes nothing");
    error
}

#[test]
fn impossible_volumes_are_refused_in_words() {
    for bad in ["", "-a", ".", "a b", "a/b", "é", "a\n", &"x".repeat(64)] {
        assert_eq!(refused(|s| s.name = bad.into()), ControlError::BadName(bad.into()));
    }
    let taken = ControlError::Exists { kind: "volume", name: "there".into() };
    assert_eq!(refused(|s| s.name = "there".into()), taken);
    let uneven = ControlError::UnevenSize { bytes: 2 * MIB + 512, next: 2 * MIB + 4096 };
    assert_eq!(refused(|s| s.bytes = 2 * MIB + 512), uneven);
    for bytes in [0, 4096, MIB - 4096, VOLUME_BYTES_MAX + 4096, u64::MAX] {
        assert_eq!(refused(|s| s.bytes = bytes), ControlError::SizeOutOfRange(bytes));
    }
    for lba in [0, 1, 1024, 8192] {
        assert_eq!(refused(|s| s.lba_bytes = lba), ControlError::BadLba(lba));
    }
    let there = super_identity(1);
    assert_eq!(refused(|s| s.uuid = there), ControlError::IdentityTaken(there.to_string()));
    assert_eq!(refused(|s| s.nguid = there), ControlError::IdentityTaken(there.to_string()));
    assert_eq!(refused(|s| s.nguid = s.uuid), ControlError::IdentityTaken(super_identity(2).to_string()));
    assert_eq!(
        refused(|s| s.uuid = Uuid::default()),
        ControlError::IdentityTaken(Uuid::default().to_string())
    );
}

fn super_identity(n: u8) -> Uuid {
    spec("", n).uuid
}

#[test]
fn sizes_at_the_limits_are_taken() {
    let control = complete(MemoryStore::default());
    for (n, bytes) in [(1, VOLUME_BYTES_MIN), (2, VOLUME_BYTES_MAX)] {
        let spec = VolumeSpec { bytes, lba_bytes: 512, ..spec(&format!("v{n}"), n) };
        apply(&control, Change::CreateVolume(spec)).unwrap();
    }
}

#[test]
fn there_are_limits_to_everything_and_they_are_named() {
    let mut state = complete(MemoryStore::default()).state().clone();
    for n in 0..VOLUMES_MAX as u128 {
        let id = |flip: u128| Uuid(((n + 1) | flip).to_be_bytes());
        let spec = VolumeSpec { uuid: id(1 << 100), nguid: id(1 << 101), ..spec(&format!("v{n}"), 1) };
        state.apply(&Change::CreateVolume(spec)).unwrap();
    }
    let too_many = ControlError::TooMany { kind: "volume", max: VOLUMES_MAX };
    assert_eq!(state.apply(&Change::CreateVolume(spec("more", 5))), Err(too_many));
    for n in 7..=DEVICES_MAX as u128 {
        let id = Uuid((n | 1 << 90).to_be_bytes());
        state.apply(&Change::AddDevice(Device { id, ..device(1) })).unwrap();
    }
    let too_many = ControlError::TooMany { kind: "device", max: DEVICES_MAX };
    assert_eq!(state.apply(&Change::AddDevice(device(200))), Err(too_many));
    let shards = |count| Change::AddShards { pool: PoolId(0), count };
    state.apply(&shards(SHARDS_MAX - 2)).unwrap();
    assert_eq!(state.apply(&shards(1)), Err(ControlError::TooMany { kind: "shard", max: SHARDS_MAX }));
    let second = Pool { id: PoolId(1), name: "second".into(), ..pool() };
    assert_eq!(
        state.apply(&Change::CreatePool(second)),
        Err(ControlError::TooMany { kind: "pool", max: POOLS_MAX })
    );
}

#[test]
fn a_device_moves_and_keeps_its_identity() {
    let control = complete(MemoryStore::default());
    let moved = Change::SetDevice { device: Uuid([3; 16]), node: None, path: "/dev/new".into(), domain: 70 };
    let state = apply(&control, moved).unwrap();
    let now = &state.devices[&Uuid([3; 16])];
    assert_eq!((now.path.as_str(), now.domain), ("/dev/new", 70));
    assert_eq!(
        apply(&control, Change::AddDevice(device(3))),
        Err(ControlError::IdentityTaken(device(3).id.to_string()))
    );
    let unknown = Change::SetDevice { device: Uuid([99; 16]), node: None, path: String::new(), domain: 0 };
    assert!(matches!(apply(&control, unknown), Err(ControlError::NotFound { kind: "device", .. })));
}

#[test]
fn a_pools_scheme_can_change_at_any_time() {
    let folder = TempDir::new();
    let control = complete(folder.store());
    let scheme = Scheme::new(2, 1).unwrap();
    apply(&control, Change::SetPool { pool: PoolId(0), scheme, too_few_domains: TooFewPolicy::Continue })
        .unwrap();
    drop(control);
    let control = ready(Control::open(folder.store())).unwrap().unwrap();
    let pool = control.state().pools[&PoolId(0)].clone();
    assert_eq!((pool.scheme, pool.too_few_domains), (scheme, TooFewPolicy::Continue));
}

#[test]
fn two_programs_that_change_at_once_both_get_their_way() {
    let store = Rc::new(MemoryStore::default());
    let one = complete(store.clone());
    let other = ready(Control::open(store)).unwrap().unwrap();
    create(&one, "a", 1).unwrap();
    let b = create(&other, "b", 2).unwrap();
    assert_eq!(b.id, VolumeId(2), "it saw the first one's volume");
    let taken = ControlError::Exists { kind: "volume", name: "b".into() };
    assert_eq!(create(&one, "b", 3), Err(taken));
    assert_eq!(*one.state(), *other.state());
}

#[test]
fn a_change_of_unknown_outcome_is_looked_up() {
    let store = MemoryStore::default();
    let control = complete(store.clone());
    store.inject(MetaFault::UnknownApplied);
    assert_eq!(create(&control, "applied", 1).unwrap().id, VolumeId(1));
    store.inject(MetaFault::UnknownLost);
    assert_eq!(create(&control, "lost", 2).unwrap().id, VolumeId(2));
    store.inject(MetaFault::Unavailable);
    assert_eq!(create(&control, "away", 3), Err(MetaError::Unavailable("injected".into()).into()));
    assert_eq!(*ready(Control::open(store)).unwrap().unwrap().state(), *control.state());
}

#[test]
fn what_a_newer_version_wrote_is_not_touched() {
    let store = MemoryStore::default();
    complete(store.clone());
    let newer = r#"{"id":0,"name":"main","scheme":"4+2","too_few_domains":"refuse","compression":"on"}"#;
    ready(store.commit(Txn::default().put("pool/0", newer))).unwrap();
    let Err(ControlError::Unreadable { key, why }) = ready(Control::open(store)) else {
        panic!("it was read")
    };
    assert!(key == "pool/0" && why.contains("compression"), "{key}: {why}");
}

#[test]
fn names_of_subsystems_are_checked() {
    for good in [NQN, "nqn.2026-11.com.example:a", "nqn.2026-12.org.x:y:z"] {
        assert_eq!(check_nqn(good), Ok(()));
    }
    let long = format!("nqn.2026-11.com.example:{}", "x".repeat(200));
    for bad in [
        "",
        "nqn",
        "nqn.2026-13.com.x:y",
        "nqn.26-11.com.x:y",
        "nqn.2026-11.com.x",
        "nqn.2026-11.:y",
        "nqn.2026-11.com.x:",
        "nqn.2026-11.com.x:a b",
        "iqn.2026-11.com.x:y",
        &long,
    ] {
        assert_eq!(check_nqn(bad), Err(ControlError::BadNqn(bad.into())));
    }
}

#[test]
fn a_device_that_was_given_up_never_serves_again_under_its_old_name() {
    let mut state = complete(MemoryStore::default()).state().clone();
    let id = Uuid([1; 16]);
    let set = |state: &mut State, to| state.apply(&Change::SetDeviceState { device: id, state: to });
    set(&mut state, DeviceState::Draining).unwrap();
    set(&mut state, DeviceState::Active).unwrap();
    set(&mut state, DeviceState::Failed).unwrap();
    for back in [DeviceState::Active, DeviceState::Draining] {
        assert_eq!(set(&mut state, back), Err(ControlError::DeviceGone(id.to_string())));
    }
    set(&mut state, DeviceState::Removed).unwrap();
    assert!(set(&mut state, DeviceState::Active).is_err());
    assert_eq!(state.devices[&id].state, DeviceState::Removed);
    let old: Device = serde_json::from_str(
        "{\"id\":\"01010101-0101-0101-0101-010101010101\",\"pool\":0,\"domain\":1,\"path\":\"/dev/1\"}",
    )
    .unwrap();
    assert_eq!(old.state, DeviceState::Active, "a store of an earlier version");
}

#[test]
fn snapshots_are_of_their_volume_and_keep_it_and_a_group_is_made_as_a_whole() {
    let folder = TempDir::new();
    let control = complete(folder.store());
    let of = create(&control, "db", 1).unwrap();
    let group = |names: &[(&str, &str, u8)]| {
        let wish = |&(of, name, n): &(&str, &str, u8)| (of.to_string(), spec(name, n));
        Change::CreateSnapshots(names.iter().map(wish).collect())
    };
    let before = control.state().clone();
    let missing = apply(&control, group(&[("db", "a", 2), ("nothing", "b", 3)]));
    assert!(matches!(missing, Err(ControlError::NotFound { .. })), "{missing:?}");
    assert_eq!(*control.state(), before, "none of a group without one of them");
    apply(&control, group(&[("db", "a", 2)])).unwrap();
    let a = control.state().volume("a").unwrap().clone();
    assert_eq!((a.bytes, a.shard, a.state), (of.bytes, of.shard, VolumeState::Kept));
    assert_eq!(control.state().active_volumes().count(), 1, "hosts do not see it");
    assert!(a.layer > of.layer && a.snapshot_of.as_deref() == Some("db"));
    let refused = |change| apply(&control, change).unwrap_err();
    let name = || "a".to_string();
    assert_eq!(refused(group(&[("a", "b", 3)])), ControlError::IsSnapshot(name()));
    assert_eq!(refused(Change::BeginDelete { name: "db".into() }), ControlError::HasSnapshots("db".into()));
    let larger = Change::ResizeVolume { name: name(), bytes: 128 * MIB, shrink: false };
    assert_eq!(refused(larger), ControlError::IsSnapshot(name()));
    let no_snapshot = Change::ExportSnapshot { name: "db".into(), exported: true };
    assert_eq!(refused(no_snapshot), ControlError::NotSnapshot("db".into()));
    apply(&control, Change::CloneSnapshot { snapshot: name(), spec: spec("c", 4) }).unwrap();
    apply(&control, Change::ExportSnapshot { name: name(), exported: true }).unwrap();
    let state = control.state().clone();
    let clone = state.volume("c").unwrap();
    assert_eq!(
        (clone.cloned_from, clone.shard, clone.state),
        (Some(a.layer.0), of.shard, VolumeState::Active)
    );
    drop(control);
    let control = ready(Control::open(folder.store())).unwrap().expect("it was created");
    assert_eq!(*control.state(), state, "a restart knows all of it");
}
