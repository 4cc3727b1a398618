//! A cluster, as one of its nodes sees it.

use crate::desired::{NodeState, State};
use peristyle_base::NodeId;
use serde::{Deserialize, Serialize};

#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct ClusterInfo {
    pub uuid: String,
    /// The node that tells this.
    pub told_by: u32,
    /// The node that decides who owns what, as far as is known.
    pub manager: Option<u32>,
    pub nodes: Vec<NodeInfo>,
    pub shards: Vec<OwnerInfo>,
    pub volumes: Vec<PlaceInfo>,
}

#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct NodeInfo {
    pub node: u32,
    /// "active", "stopping", or "left": it was removed, and not all others have heard of that.
    pub state: NodeState,
    /// It answers the node that tells this.
    pub alive: bool,
    /// What is wrong with the connection to it, as the node that tells this sees it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub link: Option<String>,
    /// It is to be emptied.
    #[serde(default)]
    pub draining: bool,
    /// Seconds for which it may still be away without anything being rebuilt for it; a few may have passed already.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub maintenance: Option<u32>,
    /// On its devices, as far as is known.
    #[serde(default)]
    pub columns: u64,
    pub peers: String,
    pub portals: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rack: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
    /// Shards that it is to own.
    pub shards: usize,
    pub devices: usize,
}

#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct OwnerInfo {
    pub shard: u32,
    /// The node that is to own it.
    pub owner: Option<u32>,
    /// The node that tells this serves it.
    pub serving: bool,
}

/// Where a volume is.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct PlaceInfo {
    pub name: String,
    pub nsid: u32,
    pub bytes: u64,
    pub shard: u32,
}

impl ClusterInfo {
    /// From what is wanted, which nodes answer, what is served here, and how many columns devices have.
    pub fn of(
        state: &State,
        told_by: NodeId,
        manager: Option<NodeId>,
        alive: impl Fn(NodeId) -> bool,
        serves: impl Fn(peristyle_base::ShardId) -> bool,
        columns: impl Fn(peristyle_base::DeviceId) -> u64,
    ) -> ClusterInfo {
        let of = |node| state.devices.values().filter(move |d| d.node == Some(node));
        let nodes = state.nodes.values().map(|n| NodeInfo {
            node: n.id.0,
            state: n.state,
            alive: alive(n.id),
            link: None,
            draining: n.draining,
            maintenance: n.maintenance,
            columns: of(n.id).map(|d| columns(d.id)).sum(),
            peers: n.peers.to_string(),
            portals: n.portals.iter().map(|p| p.to_string()).collect(),
            rack: n.rack.clone(),
            zone: n.zone.clone(),
            shards: state.owned_by(n.id).count(),
            devices: of(n.id).count(),
        });
        let shards = state.shards.values().map(|s| OwnerInfo {
            shard: s.id.0,
            owner: s.owner.map(|owner| owner.0),
            serving: serves(s.id),
        });
        let volumes = state.volumes.values().map(|v| PlaceInfo {
            name: v.name.clone(),
            nsid: v.id.0,
            bytes: v.bytes,
            shard: v.shard.0,
        });
        ClusterInfo {
            uuid: state.cluster.uuid.to_string(),
            told_by: told_by.0,
            manager: manager.map(|node| node.0),
            nodes: nodes.collect(),
            shards: shards.collect(),
            volumes: volumes.collect(),
        }
    }
}
