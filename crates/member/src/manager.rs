//! The manager's part: each member is ready to be it, one is. It decides who is to own which shard; I/O does not need it.

use crate::member::{DEAD_AFTER, Member};
use peristyle_base::NodeId;
use peristyle_control::desired::{Change, State};
use peristyle_control::election::{MANAGER, Mandate, campaign, depose, observe};
use peristyle_control::manager::{Countdown, balance, may_decide, new_owners};
use peristyle_control::member::forgettable;
use peristyle_control::{ClusterStore, ControlError, MetaError, Revision};
use peristyle_rt::{Duration, Instant, now, select, sleep, spawn};
use std::rc::Rc;

/// A manager that stops without a word is followed by another after this, unless the others see it before.
const MANDATE: Duration = Duration::from_secs(3);
/// How often the nodes are looked at.
const PERIOD: Duration = Duration::from_millis(20);
/// How often is looked whether all have heard of nodes that have left.
const FORGET_PERIOD: Duration = Duration::from_millis(200);
/// A cluster is given time before its first shards are given out, while nodes come, and before each move of a shard that only evens out.
const SETTLED: Duration = Duration::from_secs(1);

pub(crate) fn start<S: ClusterStore + Clone + 'static>(member: &Rc<Member<S>>) {
    spawn(follow_manager(member.clone()));
    spawn(watch_manager(member.clone()));
    spawn(stand(member.clone()));
}

fn name(node: NodeId) -> String {
    node.0.to_string()
}

/// Which node a manager is.
pub(crate) fn node_of(name: &str) -> Option<NodeId> {
    name.parse().ok().map(NodeId)
}

async fn follow_manager<S: ClusterStore + Clone + 'static>(member: Rc<Member<S>>) {
    let mut observer = observe(member.control.store().clone());
    loop {
        match observer.next().await {
            Ok(manager) => drop(member.manager.replace(manager)),
            Err(_) => sleep(PERIOD).await,
        }
    }
}

fn hears_majority<S: ClusterStore + Clone + 'static>(member: &Member<S>) -> bool {
    may_decide(&member.control.state(), |id| member.is_alive(id))
}

/// Of those who hear most of the cluster and not its manager, the first ends its mandate.
async fn watch_manager<S: ClusterStore + Clone + 'static>(member: Rc<Member<S>>) {
    loop {
        sleep(PERIOD).await;
        let Some(manager) = member.manager.borrow().clone() else { continue };
        let Some(node) = node_of(&manager.name) else { continue };
        let first = member.control.state().nodes.keys().copied().find(|id| member.is_alive(*id));
        if !member.is_alive(node) && first == Some(member.me) && hears_majority(&member) {
            let _ = depose(member.control.store(), &manager).await; // somebody else may have
            sleep(DEAD_AFTER).await;
        }
    }
}

/// Is the manager whenever there is no other, and this node can know how the others do.
async fn stand<S: ClusterStore + Clone + 'static>(member: Rc<Member<S>>) {
    let store = member.control.store().clone();
    while !member.leaving.get() {
        let cut_off = async {
            while hears_majority(&member) && !member.leaving.get() {
                sleep(PERIOD).await;
            }
        };
        let elected = select(cut_off, campaign(&store, &name(member.me), MANDATE)).await;
        let peristyle_rt::Either::Right(mut mandate) = elected else {
            sleep(PERIOD).await;
            continue;
        };
        let mine = mandate.clone();
        select(mandate.keep(&store), decide(&member, &mine)).await;
        let _ = mandate.resign(&store).await;
    }
}

/// Returns when somebody else is the manager, or should be.
async fn decide<S: ClusterStore + Clone + 'static>(member: &Member<S>, mandate: &Mandate) {
    let mut quiet_since = now();
    let mut before: Option<(u64, usize)> = None;
    let (mut maintenance, mut looked_at) = (Countdown::new(now()), now());
    while hears_majority(member) && !member.leaving.get() {
        let state = member.control.state().clone();
        let alive = |id: NodeId| member.is_alive(id);
        let seen = (state.cluster.membership, state.nodes.keys().filter(|id| alive(**id)).count());
        if before.replace(seen) != Some(seen) {
            quiet_since = now();
        }
        let owners = decision(&state, alive, quiet_since).map(Change::SetOwners);
        let passed = maintenance.passed(&state, now()).map(|seconds| Change::CountMaintenance { seconds });
        let (change, guards) = match owners.or(passed) {
            Some(change) => (change, Vec::new()),
            None => match forgotten(member, &state, &mut looked_at).await {
                Some(guards) => (Change::ForgetNodes, guards),
                None => {
                    sleep(PERIOD).await;
                    continue;
                }
            },
        };
        let guard =
            |txn| guards.iter().fold(mandate.fence(txn), |txn, (key, at)| txn.compare(key.clone(), *at));
        match member.control.apply_if(&change, &state, guard).await {
            Err(ControlError::Store(MetaError::Conflict { key })) if key == MANAGER => return,
            // Whatever it was, the next look decides anew.
            Err(_) => sleep(PERIOD).await,
            Ok(_) => match change {
                Change::CountMaintenance { seconds } => maintenance.count(seconds),
                _ => quiet_since = now(),
            },
        }
    }
}

/// Whether nodes have left and all others have heard of it, with what that is to be compared with. Now and then: it may take long.
async fn forgotten<S: ClusterStore + Clone + 'static>(
    member: &Member<S>,
    state: &State,
    looked_at: &mut Instant,
) -> Option<Vec<(String, Revision)>> {
    if now().since(*looked_at) < FORGET_PERIOD {
        return None;
    }
    *looked_at = now();
    // A store that is away is asked again.
    forgettable(member.control.store(), state).await.ok().flatten()
}

/// What to change now, if anything: shards without an owner at once, unless the cluster is just being made; then balance.
fn decision(
    state: &State,
    alive: impl Fn(NodeId) -> bool + Copy,
    quiet_since: Instant,
) -> Option<Vec<(peristyle_base::ShardId, NodeId)>> {
    let is_quiet = now().since(quiet_since) >= SETTLED;
    let is_new = state.shards.values().all(|s| s.owner.is_none());
    if is_new && !is_quiet {
        return None;
    }
    let owners = new_owners(state, alive);
    if !owners.is_empty() {
        return Some(owners);
    }
    balance(state, alive).filter(|_| is_quiet).map(|one| vec![one])
}
