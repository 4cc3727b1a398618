//! What the manager decides: which node is to own which shard. Plain functions of the desired state and of who is alive.

use crate::desired::State;
use peristyle_base::{Duration, Instant, NodeId, ShardId};
use std::collections::BTreeMap;

/// The time that is left of a maintenance is counted down in the store this often, and when it is over: another manager goes on
/// from there.
const COUNT_PERIOD: Duration = Duration::from_secs(10);

/// Nodes that may own shards: alive, and neither about to stop, nor in maintenance, nor to be emptied.
fn candidates(state: &State, alive: impl Fn(NodeId) -> bool) -> BTreeMap<NodeId, usize> {
    let may = state.nodes.values().filter(|n| n.may_own() && alive(n.id));
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

/// The time of nodes in maintenance that has passed and that the state does not know of.
pub struct Countdown {
    since: Instant,
    nodes: Vec<NodeId>,
}

impl Countdown {
    pub fn new(now: Instant) -> Countdown {
        Countdown { since: now, nodes: Vec::new() }
    }

    /// Seconds to take off what is left, once it is worth it.
    pub fn passed(&mut self, state: &State, now: Instant) -> Option<u32> {
        let maintained = || state.nodes.values().filter(|n| n.maintenance.is_some());
        if !maintained().map(|n| n.id).eq(self.nodes.iter().copied()) {
            // Some began or ended: it is counted from here, to the advantage of the others.
            *self = Countdown { since: now, nodes: maintained().map(|n| n.id).collect() };
        }
        let least = maintained().filter_map(|n| n.maintenance).min()?;
        let passed = now.since(self.since).as_secs() as u32;
        (passed >= least.min(COUNT_PERIOD.as_secs() as u32)).then_some(passed)
    }

    /// The state knows of these.
    pub fn count(&mut self, seconds: u32) {
        self.since += Duration::from_secs(seconds.into());
    }
}
