//! Nodes of a cluster: how one is created, how nodes join it, and how they say that they run.
//!
//! **Invariant:** memberships that running members go by are neighbours: who votes changes only while every member runs and goes by the
//! membership of now. So any majority of what one node goes by and any of what another goes by have a node in common, and leases
//! stay exclusive (`cluster::lease`).
//!
//! **Invariant:** a node leaves in two steps. First nobody grants it anything, and a majority is one of as many as before; that needs no
//! more than a majority of others. Each member says that it goes by that when what it granted before is over. When all have said so,
//! the node holds nothing, whatever it goes by itself, and is forgotten: a majority is one of the members.

use crate::desired::{Change, Control, ControlError, Device, FailureDomain, Node, Pool, State};
use crate::meta::{ClusterStore, MetaError, MetaStore, Revision, Txn};
use crate::presence::{self, Member};
use crate::setup::{FoundDevice, POOL, nqn_of};
use peristyle_base::{DeviceId, Duration, NodeId, Scheme, Uuid};
use peristyle_cluster::TooFewPolicy;
use peristyle_rt::sleep;

/// Between two attempts.
const PAUSE: Duration = Duration::from_millis(100);

/// Looks at whether a node can be removed: for longer than one that has ended is taken for running.
const REMOVE_LOOKS: u32 = 50;

/// What a new cluster is made with.
#[derive(Clone, Debug)]
pub struct NewCluster {
    pub uuid: Uuid,
    pub nqn: Option<String>,
    pub pool_name: String,
    pub scheme: Scheme,
    pub too_few_domains: TooFewPolicy,
    pub failure_domain: FailureDomain,
    pub shards: usize,
}

/// Makes a cluster without nodes. Cut short, it is completed when it is called again with the same UUID.
pub async fn create_cluster<S: MetaStore + Clone>(
    store: S,
    new: &NewCluster,
) -> Result<Control<S>, ControlError> {
    let control = match Control::open(store.clone()).await? {
        Some(control) if control.state().cluster.uuid == new.uuid => control,
        Some(_) => return Err(ControlError::AlreadyThere("the control store")),
        None => {
            Control::create(store, new.uuid, &new.nqn.clone().unwrap_or_else(|| nqn_of(new.uuid))).await?
        }
    };
    if control.state().pools.is_empty() {
        let NewCluster { scheme, too_few_domains, failure_domain, .. } = *new;
        let pool = Pool { id: POOL, name: new.pool_name.clone(), scheme, too_few_domains, failure_domain };
        control.apply(&Change::CreatePool(pool)).await?;
    }
    if control.state().shards.is_empty() {
        control.apply(&Change::AddShards { pool: POOL, count: new.shards }).await?;
    }
    Ok(control)
}

/// Makes the node a member, or one again. Waits until it may; `waiting` hears for whom, each time that changes.
pub async fn join<S: ClusterStore>(
    control: &Control<S>,
    node: &Node,
    mut waiting: impl FnMut(NodeId),
) -> Result<(), ControlError> {
    let mut told = None;
    loop {
        control.refresh().await?;
        let state = control.state().clone();
        // What would be refused is not waited for.
        state.clone().apply(&Change::JoinNode(node.clone()))?;
        let guards = match missing(control.store(), &state).await? {
            _ if state.nodes.contains_key(&node.id) => Vec::new(),
            Ok(guards) => guards,
            Err(absent) => {
                if told.replace(absent) != Some(absent) {
                    waiting(absent);
                }
                sleep(PAUSE).await;
                continue;
            }
        };
        let guard = |txn| guards.iter().fold(txn, |txn: Txn, (key, at)| txn.compare(key.clone(), *at));
        match control.apply_if(&Change::JoinNode(node.clone()), &state, guard).await {
            Err(ControlError::Store(MetaError::Conflict { .. })) => sleep(PAUSE).await,
            result => return result.map(drop),
        }
    }
}

/// Takes a node that does not run out of the cluster; on the devices that `emptied` names there is nothing. A node that has just ended
/// counts as running for some seconds.
pub async fn remove<S: ClusterStore>(
    control: &Control<S>,
    node: NodeId,
    emptied: &[DeviceId],
) -> Result<(), ControlError> {
    let (change, key) = (Change::RemoveNode { node, emptied: emptied.to_vec() }, presence::member_key(node));
    let mut left = REMOVE_LOOKS;
    loop {
        control.refresh().await?;
        let state = control.state().clone();
        // What would be refused is not waited for.
        state.clone().apply(&change)?;
        let why = match control.apply_if(&change, &state, |txn| txn.compare(key.clone(), Revision(0))).await {
            Err(ControlError::Store(MetaError::Conflict { key: of })) if of == key => {
                ControlError::NodeRuns(node.0)
            }
            Err(ControlError::Store(why @ MetaError::Conflict { .. })) => why.into(),
            result => return result.map(drop),
        };
        left -= 1;
        if left == 0 {
            return Err(why);
        }
        sleep(PAUSE).await;
    }
}

/// What a change to nodes that have left into ones that are forgotten has to compare, beside the state; `None`: nobody has left, or not all
/// others have heard of it.
pub async fn forgettable<S: ClusterStore>(
    store: &S,
    state: &State,
) -> Result<Option<Vec<(String, Revision)>>, ControlError> {
    if state.members().count() == state.nodes.len() {
        return Ok(None);
    }
    Ok(missing(store, state).await?.ok())
}

/// The keys of all members, which run and go by the membership of now; or one that does not.
async fn missing<S: ClusterStore>(
    store: &S,
    state: &State,
) -> Result<Result<Vec<(String, Revision)>, NodeId>, ControlError> {
    let there = store.range(presence::MEMBERS, crate::desired::NODES_MAX).await?;
    let mut guards = Vec::with_capacity(state.nodes.len());
    for node in state.members().map(|n| n.id) {
        let key = presence::member_key(node);
        let current = |value: &[u8]| {
            serde_json::from_slice::<Member>(value).is_ok_and(|m| m.membership == state.cluster.membership)
        };
        match there.iter().find(|(k, item)| *k == key && current(&item.value)) {
            Some((_, item)) => guards.push((key, item.revision)),
            None => return Ok(Err(node)),
        }
    }
    Ok(Ok(guards))
}

/// Puts a node's devices into the state, with where they are now. One that another node had has moved.
pub async fn bring_devices<S: MetaStore>(
    control: &Control<S>,
    node: NodeId,
    found: &[FoundDevice],
) -> Result<(), ControlError> {
    crate::setup::devices(control, found, Some(node)).await
}

/// A device of a node, as it joins the pool.
pub fn device_of(node: Option<NodeId>, id: Uuid, path: String, domain: u32) -> Device {
    Device { id, pool: POOL, domain, path, state: Default::default(), node }
}
