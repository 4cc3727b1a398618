//! What the desired state says to one node's data plane.

use peristyle_base::NodeId;
use peristyle_control::desired::{self, DeviceState, NodeState, State};
use peristyle_control::member::{bring_devices, join};
use peristyle_control::presence::HostHere;
use peristyle_control::setup::FoundDevice;
use peristyle_control::{ClusterStore, Control, ControlError, MetaError};
use peristyle_node::{PeerConfig, PeerDevice, Wish};
use peristyle_nvme::discovery::Portal;
use peristyle_nvme::inventory::HostSeen;
use peristyle_rt::{Duration, sleep};
use std::net::SocketAddr;

/// ASQSZ that the discovery log advertises.
const ADMIN_QUEUE_ENTRIES: u16 = 32;
/// Two that change the same state at the same time try again after this at most.
const CONFLICT_PAUSE_MS: u64 = 50;

/// Makes the node a member, or one again, with these devices; `waiting` hears for whom it waits. The state says then what the node is.
pub async fn enter<S: ClusterStore>(
    control: &Control<S>,
    node: &desired::Node,
    devices: &[FoundDevice],
    waiting: impl FnMut(NodeId),
) -> Result<(), ControlError> {
    join(control, node, waiting).await?;
    // Others that start at the same time change the same state.
    while let Err(error) = bring_devices(control, node.id, devices).await {
        match error {
            ControlError::Store(MetaError::Conflict { .. }) => {
                sleep(Duration::from_millis(5 + peristyle_rt::random_below(CONFLICT_PAUSE_MS))).await;
            }
            other => return Err(other),
        }
    }
    Ok(())
}

/// What becomes of a device. One whose node is about to stop will be away for a while: that matters once others have its shards, who
/// have enough to do before.
pub fn wish_of(state: &State, device: &desired::Device) -> Wish {
    let node = device.node.and_then(|node| state.nodes.get(&node));
    let leaves = |n: &desired::Node| n.state == NodeState::Stopping && state.owned_by(n.id).next().is_none();
    match device.state {
        DeviceState::Active if node.is_some_and(|n| n.maintenance.is_some()) => Wish::Spared,
        DeviceState::Active if node.is_some_and(leaves) => Wish::Leaving,
        DeviceState::Active if node.is_some_and(|n| n.draining) => Wish::Draining,
        DeviceState::Active => Wish::Active,
        DeviceState::Draining => Wish::Draining,
        DeviceState::Failed => Wish::Failed,
        DeviceState::Removed => Wish::Removed,
    }
}

/// Hosts that have connected to a node, in the state's words.
pub fn hosts_here(seen: Vec<HostSeen>) -> Vec<HostHere> {
    let here = |HostSeen { nqn, id, controllers, io_queues }: HostSeen| {
        let id = id.iter().map(|byte| format!("{byte:02x}")).collect();
        HostHere { nqn: nqn.as_str().into(), id, controllers, io_queues }
    };
    seen.into_iter().map(here).collect()
}

/// Where others find a node.
pub fn peer_config(node: &desired::Node) -> PeerConfig {
    PeerConfig { node: node.id, addr: node.peers, is_member: node.is_member() }
}

/// Devices that other nodes have.
pub fn peer_devices(state: &State, me: NodeId) -> impl Iterator<Item = PeerDevice> {
    let theirs = state.devices.values().filter(|d| d.state != DeviceState::Removed);
    theirs.filter_map(move |d| {
        let node = d.node.filter(|node| *node != me)?;
        Some(PeerDevice { id: d.id, node, domain: state.domain_of(d), wish: wish_of(state, d) })
    })
}

/// As the discovery log names them, from a number on.
pub fn portals_of(addresses: Vec<SocketAddr>, first: u16) -> Vec<Portal> {
    let portal =
        |(i, address)| Portal { address, id: first + i as u16 + 1, admin_queue_entries: ADMIN_QUEUE_ENTRIES };
    addresses.into_iter().enumerate().map(portal).collect()
}

/// Addresses of one node at most.
const NODE_PORTALS: u16 = 16;

/// Where hosts reach the cluster: this node first, then the others.
pub fn portals(me: NodeId, state: &State) -> Vec<Portal> {
    let mut nodes: Vec<_> = state.members().collect();
    nodes.sort_by_key(|n| (n.id != me, n.id));
    nodes.iter().flat_map(|n| portals_of(n.portals.clone(), n.id.0 as u16 * NODE_PORTALS)).collect()
}
