//! Nodes and devices that come while the node runs. Called on the first reactor; all reactors see what it does.

use crate::Node;
use crate::config::PeerDevice;
use crate::devices::{Home, SharedDevice};
use crate::peer::PeerConfig;
use peristyle_base::{DeviceId, Instant, NodeId};
use peristyle_cluster::lease::LEASE_OVER;

impl Node {
    /// Another node has joined the cluster, or is reached elsewhere. One that is known there stays as it is.
    pub fn add_peer(&self, peer: PeerConfig) {
        self.peers.add(peer, self.devices());
    }

    /// A node has left the cluster: what it grants counts no more, and it is granted nothing from now on. Says when what it was granted before
    /// is over.
    pub fn remove_peer(&self, node: NodeId) -> Instant {
        self.peers.remove(node, self.devices());
        peristyle_rt::now() + LEASE_OVER
    }

    /// All others have heard that a node has left: a majority is one of fewer.
    pub fn forget_peer(&self, node: NodeId) {
        self.peers.forget(node);
    }

    /// The other members.
    pub fn peer_nodes(&self) -> Vec<NodeId> {
        self.peers.nodes()
    }

    /// For faults in development: from now on what another node says is lost on its way here, or is not any more. False: the node is
    /// no development node.
    pub fn set_heard(&self, node: NodeId, heard: bool) -> bool {
        if self.config().development {
            self.peers.set_heard(node, heard);
        }
        self.config().development
    }

    /// Nodes that have left, and count for majorities still.
    pub fn leaving_peers(&self) -> Vec<NodeId> {
        self.peers.leaving()
    }

    /// Another node serves a device, which is new or was this node's, or a third one's. False: there are too many devices.
    pub fn add_peer_device(&self, device: &PeerDevice) -> bool {
        let home = Home::Peer(device.node);
        match self.devices().get(device.id) {
            Some(there) if there.home() == home => {}
            Some(there) => {
                let watched = there.is_peers();
                there.set_closed();
                there.set_home(home);
                if !watched {
                    self.watch_peer_device(device.id);
                }
            }
            None => {
                let shared = SharedDevice::of_peer(device.id, device.domain, device.node);
                if !self.devices().add(shared.wishing(device.wish)) {
                    return false;
                }
                self.watch_peer_device(device.id);
            }
        }
        true
    }

    fn watch_peer_device(&self, device: DeviceId) {
        peristyle_rt::spawn_background(self.peers.clone().watch_device(device, self.devices().clone()));
    }

    /// When another node answered last; `None`: it never has.
    pub fn last_heard(&self, node: NodeId) -> Option<Instant> {
        self.peers.last_heard(node)
    }
}
