//! What the manager decides: which node is to own which shard. Plain functions of the desired state and of who is alive.

use crate::desired::{NodeState, State};
use peristyle_base::{NodeId, ShardId};
use std::collections::BTreeMap;

/// Nodes that may own shards: alive, and neither about to stop nor to be emptied.
fn candidates(state: &State, alive: impl Fn(NodeId) -> bool) -> BTreeMap<NodeId, usize> {
    let may = state.nodes.values().filter(|n| n.state == NodeState::Active && !n.draining && alive(n.id));
    may.map(|n| (n.id, state.owned_by(n.id).count())).collect()
}

fn least(load: &BTreeMap<NodeId, usize>) -> Option<NodeId> {
    load.iter().min_by_key(|(id, shards)| (**shards, **id)).map(|(id, _)| *id)
}

/// Whether somebody who hears these nodes may decide: with fewer than a majority it is the one that is cut off.
pub fn may_decide(state: &State, alive: impl Fn(NodeId) -> bool) -> bool {
    let hears = state.nodes.keys().filter(|id| alive(**id)).count();
    hears >= peristyle_cluster::lease::majority(state.nodes.len())
}

/// New owners for shards that have none, or one that is not alive, or about to stop.
pub fn new_owners(state: &State, alive: impl Fn(NodeId) -> bool) -> Vec<(ShardId, NodeId)> {
    let mut load = candidates(state, alive);
    let lost = state.shards.values().filter(|s| s.owner.is_none_or(|owner| !load.contains_key(&owner)));
    let lost: Vec<ShardId> = lost.map(|s| s.id).collect();
    let mut owners = Vec::with_capacity(lost.len());
    for shard in lost {
        let Some(node) = least(&load) else { break };
        *load.get_mut(&node).expect("it was found there") += 1;
        owners.push((shard, node));
    }
    owners
}

/// One shard that goes from the node with the most to the one with the fewest, when they are two apart or more.
pub fn balance(state: &State, alive: impl Fn(NodeId) -> bool) -> Option<(ShardId, NodeId)> {
    let load = candidates(state, alive);
    let to = least(&load)?;
    let (from, most) = load.iter().max_by_key(|(id, shards)| (**shards, **id))?;
    if *most < load[&to] + 2 {
        return None;
    }
    state.owned_by(*from).last().map(|shard| (shard, to))
}
