//! Nodes of a cluster, and what depends on which node is where: failure domains, and who is to own a shard.

use super::{Device, DeviceState, State};
use crate::desired::ControlError;
use crate::serial::{node_id, text};
use peristyle_base::{DeviceId, NodeId, ShardId, Uuid};
use peristyle_cluster::DomainId;
use peristyle_cluster::lease::majority;
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;

/// Numbers of nodes: 1 to this.
pub const NODES_MAX: usize = peristyle_cluster::lease::NODES_MAX;

/// One machine, or one process of a development cluster.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Node {
    #[serde(with = "node_id")]
    pub id: NodeId,
    /// Drawn when it first starts: two machines never take one number.
    #[serde(with = "text")]
    pub uuid: Uuid,
    /// Where its first reactor listens for other nodes; the others follow on the next ports.
    pub peers: SocketAddr,
    /// Where hosts reach it.
    pub portals: Vec<SocketAddr>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rack: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
    #[serde(default)]
    pub state: NodeState,
    /// It is to be emptied: it owns no shards, and its devices' columns move to others.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub draining: bool,
    /// Seconds for which it may still be away without anything being rebuilt for it; the manager counts them down. Until then it owns no
    /// shards, and nothing new comes to its devices.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub maintenance: Option<u32>,
}

impl Node {
    /// It has not left.
    pub fn is_member(&self) -> bool {
        self.state != NodeState::Left
    }
    /// What the state says of it lets it own shards.
    pub fn may_own(&self) -> bool {
        self.state == NodeState::Active && !self.draining && self.maintenance.is_none()
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NodeState {
    #[default]
    Active,
    /// It is about to stop: its shards go to others. Its next start makes it active.
    Stopping,
    /// It is no member any more. Majorities are of as many as before, until all others have heard of it; then it is forgotten.
    Left,
}

/// What must not be lost twice: an extent has at most one column in each.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FailureDomain {
    #[default]
    Device,
    Node,
    Rack,
    Zone,
}

/// Domains of nodes and of labels have numbers of their own, apart from those of devices.
const NODE_DOMAINS: u32 = 1 << 16;
const LABEL_DOMAINS: u32 = 2 << 16;

impl State {
    /// The failure domain that a device counts for. A device of no node, or of a node without the label, is in one of its own.
    pub fn domain_of(&self, device: &Device) -> DomainId {
        let kind = self.pools.get(&device.pool).map(|p| p.failure_domain).unwrap_or_default();
        let node = device.node.filter(|_| kind != FailureDomain::Device);
        let Some(node) = node else { return DomainId(device.domain) };
        let label = |id: NodeId| {
            let node = self.nodes.get(&id)?;
            if kind == FailureDomain::Rack { node.rack.as_ref() } else { node.zone.as_ref() }
        };
        match label(node).filter(|_| kind != FailureDomain::Node) {
            // All nodes name a label after the first of them that has it.
            Some(mine) => {
                let first = self.nodes.keys().find(|id| label(**id) == Some(mine)).copied();
                DomainId(LABEL_DOMAINS + first.unwrap_or(node).0)
            }
            None => DomainId(NODE_DOMAINS + node.0),
        }
    }

    /// Nodes that have not left.
    pub fn members(&self) -> impl Iterator<Item = &Node> {
        self.nodes.values().filter(|n| n.is_member())
    }

    /// Shards that a node is to own.
    pub fn owned_by(&self, node: NodeId) -> impl Iterator<Item = ShardId> {
        self.shards.values().filter(move |s| s.owner == Some(node)).map(|s| s.id)
    }

    fn node_mut(&mut self, node: NodeId) -> Result<&mut Node, ControlError> {
        let missing = || ControlError::NotFound { kind: "node", name: node.to_string() };
        self.nodes.get_mut(&node).ok_or_else(missing)
    }

    pub(super) fn join_node(&mut self, node: &Node) -> Result<(), ControlError> {
        if node.id.0 == 0 || node.id.0 as usize > NODES_MAX {
            return Err(ControlError::BadNode(node.id.0));
        }
        let (draining, maintenance) = match self.nodes.get(&node.id) {
            Some(there) if there.state == NodeState::Left => {
                return Err(ControlError::NodeLeaving(node.id.0));
            }
            Some(there) if there.uuid != node.uuid => return Err(ControlError::NodeTaken(node.id.0)),
            // That is the operator's to say, whoever starts.
            Some(there) => (there.draining, there.maintenance),
            // Who votes has changed.
            None => {
                self.cluster.membership += 1;
                (node.draining, node.maintenance)
            }
        };
        self.nodes.insert(node.id, Node { draining, maintenance, ..node.clone() });
        Ok(())
    }

    pub(super) fn set_node_state(&mut self, node: NodeId, state: NodeState) -> Result<(), ControlError> {
        match self.node_mut(node)? {
            there if there.state == NodeState::Left => Err(ControlError::NodeLeaving(node.0)),
            there => {
                there.state = state;
                Ok(())
            }
        }
    }

    pub(super) fn drain_node(&mut self, node: NodeId, draining: bool) -> Result<(), ControlError> {
        let there = self.node_mut(node)?;
        there.draining = draining;
        there.maintenance = there.maintenance.filter(|_| draining);
        Ok(())
    }

    pub(super) fn remove_node(&mut self, node: NodeId, emptied: &[DeviceId]) -> Result<(), ControlError> {
        if !self.node_mut(node)?.is_member() {
            return Ok(());
        }
        let (all, left) = (self.nodes.len(), self.members().count() - 1);
        let needed = majority(all);
        if left < needed {
            return Err(ControlError::TooFewNodes { all, left, needed });
        }
        let in_use = |d: &&mut Device| {
            d.node == Some(node) && matches!(d.state, DeviceState::Active | DeviceState::Draining)
        };
        if let Some(device) = self.devices.values_mut().filter(in_use).find(|d| !emptied.contains(&d.id)) {
            return Err(ControlError::DeviceInUse(device.id.to_string()));
        }
        self.devices.values_mut().filter(in_use).for_each(|d| d.state = DeviceState::Removed);
        self.shards.values_mut().filter(|s| s.owner == Some(node)).for_each(|s| s.owner = None);
        self.node_mut(node)?.state = NodeState::Left;
        self.cluster.membership += 1;
        Ok(())
    }

    /// Who votes has changed, if anybody had left.
    pub(super) fn forget_nodes(&mut self) {
        let before = self.nodes.len();
        self.nodes.retain(|_, node| node.is_member());
        self.cluster.membership += u64::from(self.nodes.len() < before);
    }

    pub(super) fn maintain_node(&mut self, node: NodeId, seconds: Option<u32>) -> Result<(), ControlError> {
        self.node_mut(node)?.maintenance = seconds.filter(|left| *left > 0);
        Ok(())
    }

    pub(super) fn count_maintenance(&mut self, seconds: u32) {
        for node in self.nodes.values_mut() {
            node.maintenance =
                node.maintenance.and_then(|left| left.checked_sub(seconds)).filter(|left| *left > 0);
        }
    }

    pub(super) fn set_owners(&mut self, owners: &[(ShardId, NodeId)]) -> Result<(), ControlError> {
        let missing = |kind, name: String| ControlError::NotFound { kind, name };
        for (shard, node) in owners {
            if !self.nodes.contains_key(node) {
                return Err(missing("node", node.to_string()));
            }
            if !self.shards.contains_key(shard) {
                return Err(missing("shard", shard.to_string()));
            }
        }
        for (shard, node) in owners {
            self.shards.get_mut(shard).expect("looked for above").owner = Some(*node);
        }
        Ok(())
    }
}
