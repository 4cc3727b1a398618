//! Clusters in their store: nodes join one at a time, and only while all others run; owners and failure domains.

use peristyle_base::{Duration, Instant, NodeId, PoolId, ShardId, Uuid};
use peristyle_cluster::{DomainId, TooFewPolicy};
use peristyle_control::desired::{DeviceState, FailureDomain, Node, NodeState};
use peristyle_control::manager::{Countdown, balance, may_decide, new_owners};
use peristyle_control::member::{self, NewCluster};
use peristyle_control::presence::{self, HostHere, Presence};
use peristyle_control::*;
use peristyle_rt::{TaskHandle, sleep, spawn, timeout};
use std::cell::RefCell;
use std::rc::Rc;

fn on_a_node<F: Future<Output = ()> + 'static>(test: impl FnOnce(MemoryStore) -> F) {
    peristyle_rt::sim::run(7, |_| test(MemoryStore::default()));
}

async fn create(store: &MemoryStore) -> Control<MemoryStore> {
    let new = NewCluster {
        uuid: Uuid([7; 16]),
        nqn: None,
        pool_name: "main".into(),
        scheme: "2+1".parse().unwrap(),
        too_few_domains: TooFewPolicy::Refuse,
        failure_domain: FailureDomain::Node,
        shards: 4,
    };
    member::create_cluster(store.clone(), &new).await.unwrap()
}

fn node(id: u32) -> Node {
    let addr = |port: u16| ([10, 0, 0, id as u8], port).into();
    let (rack, zone) = (Some(format!("rack-{}", id / 2)), None);
    let state = NodeState::Active;
    Node {
        id: NodeId(id),
        uuid: Uuid([id as u8; 16]),
        peers: addr(7400),
        portals: vec![addr(4420)],
        rack,
        zone,
        state,
        draining: false,
        maintenance: None,
    }
}

async fn open(store: &MemoryStore) -> Control<MemoryStore> {
    Control::open(store.clone()).await.unwrap().unwrap()
}

/// A node that runs, and goes by the membership that it reads, until the task is aborted.
fn run(store: &MemoryStore, id: u32) -> [TaskHandle; 2] {
    let goes_by = Rc::new(Presence::default());
    let (a, b, by) = (store.clone(), store.clone(), goes_by.clone());
    let says = spawn(async move { presence::stay_present(&a, NodeId(id), &by).await });
    let follows = spawn(async move {
        let control = open(&b).await;
        let mut follower = control.follow();
        loop {
            goes_by.set_membership(control.state().cluster.membership);
            control.changed(&mut follower).await;
        }
    });
    [says, follows]
}

#[test]
fn a_cluster_is_made_once_and_completed_when_that_was_cut_short() {
    on_a_node(|store| async move {
        let first = create(&store).await;
        let generation = first.state().cluster.generation;
        let again = create(&store).await;
        assert_eq!((again.state().cluster.generation, again.state().shards.len()), (generation, 4));
        let other = NewCluster {
            uuid: Uuid([8; 16]),
            nqn: None,
            pool_name: "main".into(),
            scheme: "1+1".parse().unwrap(),
            too_few_domains: TooFewPolicy::Refuse,
            failure_domain: FailureDomain::Device,
            shards: 1,
        };
        assert!(member::create_cluster(store, &other).await.is_err());
    });
}

#[test]
fn who_is_connected_to_a_node_is_told_as_long_as_it_runs() {
    on_a_node(|store| async move {
        let presence = Rc::new(Presence::default());
        let (a, said) = (store.clone(), presence.clone());
        let says = spawn(async move { presence::stay_present(&a, NodeId(3), &said).await });
        let host = |id: &str| HostHere { nqn: "nqn.x:a".into(), id: id.into(), controllers: 1, io_queues: 2 };
        sleep(Duration::from_millis(50)).await;
        assert_eq!(presence::hosts(&store).await.unwrap(), []);
        // Somebody comes and goes all the time: the lease is kept alive all the same.
        for round in 0..40u32 {
            presence.set_hosts(
                vec![host("01"), host(&format!("{round:02x}"))][..1 + round as usize % 2].to_vec(),
            );
            sleep(Duration::from_millis(250)).await;
        }
        let expected = vec![(NodeId(3), vec![host("01"), host("27")])];
        assert_eq!(presence::hosts(&store).await.unwrap(), expected);
        says.abort();
        sleep(Duration::from_secs(5)).await;
        assert_eq!(presence::hosts(&store).await.unwrap(), []);
    });
}

#[test]
fn a_node_joins_only_while_every_member_runs_and_goes_by_the_membership_of_now() {
    on_a_node(|store| async move {
        create(&store).await;
        let waited = Rc::new(RefCell::new(Vec::new()));
        let join = async |id: u32| {
            let (control, waited) = (open(&store).await, waited.clone());
            let wait = |absent: NodeId| waited.borrow_mut().push((id, absent.0));
            timeout(Duration::from_secs(10), member::join(&control, &node(id), wait)).await
        };
        join(1).await.unwrap().unwrap();
        assert!(join(2).await.is_none() && *waited.borrow() == [(2, 1)], "node 1 does not run");
        let one = run(&store, 1);
        join(2).await.unwrap().unwrap();
        assert_eq!(open(&store).await.state().cluster.membership, 2);
        assert!(join(3).await.is_none(), "node 2 does not run");
        // One that runs and has not heard of node 2 is as if it did not run.
        let two = run(&store, 2);
        join(3).await.unwrap().unwrap();
        one.into_iter().for_each(|task| task.abort());
        sleep(Duration::from_secs(5)).await;
        assert!(join(4).await.is_none());
        // A member may come back whoever runs.
        join(1).await.unwrap().unwrap();
        assert_eq!(open(&store).await.state().cluster.membership, 3);
        let refused =
            member::join(&open(&store).await, &Node { uuid: Uuid([99; 16]), ..node(1) }, |_| ()).await;
        assert_eq!(refused, Err(ControlError::NodeTaken(1)));
        let wrong = member::join(&open(&store).await, &node(65), |_| ()).await;
        assert!(timeout(Duration::from_secs(1), async { wrong.is_err() }).await.unwrap());
        two.into_iter().for_each(|task| task.abort());
    });
}

#[test]
fn a_node_leaves_when_it_does_not_run_and_is_forgotten_when_all_others_have_heard_of_it() {
    on_a_node(|store| async move {
        let control = create(&store).await;
        for id in 1..=4 {
            control.apply(&Change::JoinNode(node(id))).await.unwrap();
        }
        let device = Uuid([7; 16]);
        let its = member::device_of(Some(NodeId(3)), device, "d".into(), 1);
        control.apply(&Change::AddDevice(its)).await.unwrap();
        let owners = new_owners(&control.state(), |_| true);
        control.apply(&Change::SetOwners(owners)).await.unwrap();
        let remove = |id: u32, emptied: Vec<Uuid>| {
            let control = &control;
            async move { member::remove(control, NodeId(id), &emptied).await }
        };
        assert_eq!(remove(3, vec![]).await, Err(ControlError::DeviceInUse(device.to_string())));
        assert!(matches!(remove(9, vec![]).await, Err(ControlError::NotFound { .. })));
        let (two, three) = (run(&store, 2), run(&store, 3));
        sleep(Duration::from_millis(100)).await;
        assert_eq!(remove(3, vec![device]).await, Err(ControlError::NodeRuns(3)));
        // It counts as running for a while after it has ended.
        three.into_iter().for_each(|task| task.abort());
        remove(3, vec![device]).await.unwrap();
        let state = || control.state().clone();
        assert_eq!((state().members().count(), state().nodes.len()), (3, 4));
        assert_eq!(state().devices[&device].state, DeviceState::Removed);
        assert!(state().owned_by(NodeId(3)).next().is_none());
        assert!(!may_decide(&state(), |id| id.0 < 3), "a majority is one of four still");
        // Neither its start nor its end makes it a member again.
        let back = member::join(&control, &node(3), |_| ()).await;
        assert_eq!(back, Err(ControlError::NodeLeaving(3)));
        let stops = Change::SetNodeState { node: NodeId(3), state: NodeState::Stopping };
        assert_eq!(control.apply(&stops).await.err(), Some(ControlError::NodeLeaving(3)));
        let too_few = ControlError::TooFewNodes { all: 4, left: 2, needed: 3 };
        assert_eq!(remove(4, vec![]).await, Err(too_few));
        // Nodes 1 and 4 do not run: they may not have heard of it.
        assert_eq!(member::forgettable(&store, &state()).await.unwrap(), None);
        let rest = [run(&store, 1), run(&store, 4)];
        sleep(Duration::from_millis(200)).await;
        let heard = member::forgettable(&store, &state()).await.unwrap();
        assert_eq!(heard.map(|guards| guards.len()), Some(3));
        let before = state().cluster.membership;
        control.apply(&Change::ForgetNodes).await.unwrap();
        assert_eq!((state().nodes.len(), state().cluster.membership), (3, before + 1));
        assert!(may_decide(&state(), |id| id.0 < 3));
        sleep(Duration::from_millis(200)).await;
        assert_eq!(member::forgettable(&store, &state()).await.unwrap(), None, "nobody leaves");
        // Another machine may have its number now.
        member::join(&control, &Node { uuid: Uuid([99; 16]), ..node(3) }, |_| ()).await.unwrap();
        rest.into_iter().flatten().chain(two).for_each(|task| task.abort());
    });
}

#[test]
fn what_depends_on_a_state_is_not_done_to_another() {
    on_a_node(|store| async move {
        create(&store).await;
        let (first, second) = (open(&store).await, open(&store).await);
        // Both see a cluster without members, which each of them may join.
        let seen = second.state().clone();
        first.apply(&Change::JoinNode(node(1))).await.unwrap();
        for known in ["not yet", "by now"] {
            let joined = second.apply_if(&Change::JoinNode(node(2)), &seen, |txn| txn).await;
            let moved = matches!(&joined, Err(ControlError::Store(MetaError::Conflict { .. })));
            assert!(moved, "{joined:?}, although node 1 does not run; the state is known {known}");
        }
        assert_eq!(second.state().nodes.len(), 1);
    });
}

#[test]
fn shards_get_the_node_with_the_fewest_and_leave_one_that_is_dead_or_about_to_stop() {
    on_a_node(|store| async move {
        let control = create(&store).await;
        for id in 1..=3 {
            control.apply(&Change::JoinNode(node(id))).await.unwrap();
        }
        let all = |_: NodeId| true;
        let but = |dead: u32| move |id: NodeId| id != NodeId(dead);
        let owners = |pairs: &[(u32, u32)]| -> Vec<(ShardId, NodeId)> {
            pairs.iter().map(|&(shard, node)| (ShardId(shard), NodeId(node))).collect()
        };
        let first = new_owners(&control.state(), all);
        assert_eq!(first, owners(&[(0, 1), (1, 2), (2, 3), (3, 1)]));
        control.apply(&Change::SetOwners(first)).await.unwrap();
        assert_eq!(new_owners(&control.state(), all), []);
        assert_eq!(balance(&control.state(), all), None, "one more than others is even");
        assert_eq!(new_owners(&control.state(), but(1)), owners(&[(0, 2), (3, 3)]));
        let stopping = Change::SetNodeState { node: NodeId(2), state: NodeState::Stopping };
        control.apply(&stopping).await.unwrap();
        let moved = new_owners(&control.state(), all);
        assert_eq!(moved, owners(&[(1, 3)]));
        control.apply(&Change::SetOwners(moved)).await.unwrap();
        control.apply(&Change::JoinNode(node(2))).await.unwrap();
        assert_eq!(balance(&control.state(), all), Some((ShardId(2), NodeId(2))));
        assert_eq!(balance(&control.state(), but(2)), None);
        // Who is cut off decides nothing.
        assert!(may_decide(&control.state(), but(2)) && !may_decide(&control.state(), |id| id == NodeId(1)));
        let unknown = control.apply(&Change::SetOwners(owners(&[(0, 9)]))).await;
        assert!(matches!(unknown, Err(ControlError::NotFound { kind: "node", .. })));
    });
}

#[test]
fn a_node_that_is_to_be_emptied_owns_nothing_and_its_restart_changes_nothing_about_it() {
    on_a_node(|store| async move {
        let control = create(&store).await;
        for id in 1..=2 {
            control.apply(&Change::JoinNode(node(id))).await.unwrap();
        }
        let owners = new_owners(&control.state(), |_| true);
        control.apply(&Change::SetOwners(owners)).await.unwrap();
        assert_eq!(control.state().owned_by(NodeId(2)).count(), 2);
        let drain = |draining| Change::DrainNode { node: NodeId(2), draining };
        control.apply(&drain(true)).await.unwrap();
        let owners = new_owners(&control.state(), |_| true);
        assert_eq!(owners.iter().map(|o| o.1).collect::<Vec<_>>(), [NodeId(1); 2]);
        control.apply(&Change::SetOwners(owners)).await.unwrap();
        control.apply(&Change::JoinNode(node(2))).await.unwrap();
        assert!(control.state().nodes[&NodeId(2)].draining);
        assert_eq!(balance(&control.state(), |_| true), None, "it gets none back");
        control.apply(&drain(false)).await.unwrap();
        assert!(balance(&control.state(), |_| true).is_some());
        let nobody = Change::DrainNode { node: NodeId(7), draining: true };
        assert!(control.apply(&nobody).await.is_err());
    });
}

#[test]
fn a_node_in_maintenance_owns_nothing_until_its_time_is_over_or_somebody_ends_it() {
    on_a_node(|store| async move {
        let control = create(&store).await;
        for id in 1..=2 {
            control.apply(&Change::JoinNode(node(id))).await.unwrap();
        }
        let left = || control.state().nodes[&NodeId(2)].maintenance;
        let maintain = |seconds| Change::MaintainNode { node: NodeId(2), seconds };
        control.apply(&maintain(Some(90))).await.unwrap();
        let owners = new_owners(&control.state(), |_| true);
        assert!(!owners.is_empty() && owners.iter().all(|o| o.1 == NodeId(1)));
        // It is started again meanwhile.
        control.apply(&Change::JoinNode(node(2))).await.unwrap();
        control.apply(&Change::CountMaintenance { seconds: 60 }).await.unwrap();
        assert_eq!(left(), Some(30));
        control.apply(&Change::CountMaintenance { seconds: 30 }).await.unwrap();
        assert_eq!((left(), new_owners(&control.state(), |_| true).len()), (None, owners.len()));
        control.apply(&maintain(Some(90))).await.unwrap();
        control.apply(&maintain(None)).await.unwrap();
        assert_eq!(left(), None);
        control.apply(&maintain(Some(90))).await.unwrap();
        control.apply(&Change::CountMaintenance { seconds: 91 }).await.unwrap();
        assert_eq!(left(), None);
        let nobody = Change::MaintainNode { node: NodeId(7), seconds: Some(1) };
        assert!(control.apply(&nobody).await.is_err());
    });
}

#[test]
fn the_time_of_a_maintenance_is_counted_in_steps_to_its_end_and_from_when_it_began() {
    on_a_node(|store| async move {
        let control = create(&store).await;
        for id in 1..=3 {
            control.apply(&Change::JoinNode(node(id))).await.unwrap();
        }
        let state = || control.state().clone();
        let maintain = |id, seconds| Change::MaintainNode { node: NodeId(id), seconds: Some(seconds) };
        let at = |seconds: u64| Instant(seconds * 1_000_000_000);
        let mut countdown = Countdown::new(at(0));
        assert_eq!(countdown.passed(&state(), at(100)), None, "nobody is in maintenance");
        control.apply(&maintain(2, 25)).await.unwrap();
        assert_eq!(countdown.passed(&state(), at(100)), None, "it has just begun");
        assert_eq!(countdown.passed(&state(), at(109)), None);
        for (now, passed, left) in [(110, 10, Some(15)), (121, 11, Some(4)), (125, 4, None)] {
            assert_eq!(countdown.passed(&state(), at(now)), Some(passed));
            control.apply(&Change::CountMaintenance { seconds: passed }).await.unwrap();
            countdown.count(passed);
            assert_eq!(state().nodes[&NodeId(2)].maintenance, left);
        }
        assert_eq!(countdown.passed(&state(), at(900)), None);
        // One that begins later is not charged for what was before, and another loses nothing by it.
        control.apply(&maintain(1, 30)).await.unwrap();
        assert_eq!(countdown.passed(&state(), at(1000)), None);
        control.apply(&maintain(3, 5)).await.unwrap();
        assert_eq!(countdown.passed(&state(), at(1009)), None);
        assert_eq!(countdown.passed(&state(), at(1014)), Some(5));
    });
}

#[test]
fn devices_fail_with_their_node_or_its_rack_as_the_pool_says() {
    on_a_node(|store| async move {
        let control = create(&store).await;
        for id in 1..=4 {
            control.apply(&Change::JoinNode(node(id))).await.unwrap();
            let uuid = Uuid([id as u8 + 100; 16]);
            let device = member::device_of(Some(NodeId(id)), uuid, "/d".into(), id);
            control.apply(&Change::AddDevice(device)).await.unwrap();
        }
        let domains = |kind: FailureDomain| -> Vec<DomainId> {
            let mut state = control.state().clone();
            state.pools.get_mut(&PoolId(0)).unwrap().failure_domain = kind;
            state.devices.values().map(|d| state.domain_of(d)).collect()
        };
        assert_eq!(domains(FailureDomain::Device), [1, 2, 3, 4].map(DomainId));
        let nodes = domains(FailureDomain::Node);
        assert!((0..4).all(|i| !nodes[..i].contains(&nodes[i])), "{nodes:?}");
        let racks = domains(FailureDomain::Rack);
        assert!(racks[0] != racks[1] && racks[1] == racks[2] && racks[2] != racks[3], "{racks:?}");
        let zones = domains(FailureDomain::Zone);
        assert_eq!(zones, nodes, "no node has one");
    });
}

/// A store whose reads take a while.
#[derive(Clone)]
struct Slow(MemoryStore);

impl MetaStore for Slow {
    async fn get(&self, key: &str) -> Result<Option<Item>, MetaError> {
        sleep(Duration::from_millis(20)).await;
        self.0.get(key).await
    }
    async fn range(&self, prefix: &str, limit: usize) -> Result<Vec<(String, Item)>, MetaError> {
        self.0.range(prefix, limit).await
    }
    async fn commit(&self, txn: Txn) -> Result<Revision, MetaError> {
        self.0.commit(txn).await
    }
}

impl ClusterStore for Slow {
    type Watch = <MemoryStore as ClusterStore>::Watch;

    async fn list(&self, prefix: &str, limit: usize) -> Result<(Vec<(String, Item)>, Revision), MetaError> {
        self.0.list(prefix, limit).await
    }
    fn watch(&self, prefix: &str, from: Revision) -> Self::Watch {
        self.0.watch(prefix, from)
    }
    async fn grant(&self, ttl: Duration) -> Result<LeaseId, MetaError> {
        self.0.grant(ttl).await
    }
    async fn keep_alive(&self, lease: LeaseId) -> Result<(), MetaError> {
        self.0.keep_alive(lease).await
    }
    async fn revoke(&self, lease: LeaseId) -> Result<(), MetaError> {
        self.0.revoke(lease).await
    }
}

#[test]
fn who_follows_the_state_and_looks_at_other_things_meanwhile_misses_no_change() {
    on_a_node(|store| async move {
        let writer = create(&store).await;
        let reader = Control::open(Slow(store.clone())).await.unwrap().unwrap();
        let mut follower = reader.follow();
        let wait = async |follower: &mut _, time: u64| {
            timeout(Duration::from_millis(time), reader.changed(follower)).await.is_some()
        };
        assert!(!wait(&mut follower, 200).await);
        writer.apply(&Change::JoinNode(node(1))).await.unwrap();
        // Long enough to hear of the change, too short to read it.
        assert!(!wait(&mut follower, 10).await && reader.state().nodes.is_empty());
        assert!(wait(&mut follower, 200).await && reader.state().nodes.len() == 1);
        assert!(!wait(&mut follower, 200).await, "told once");
    });
}
