//! Which other nodes there are, as all reactors know it. Nodes join while others run; none leaves a table.

use peristyle_base::{NodeId, Uuid};
use peristyle_cluster::lease::NODES_MAX;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};

/// Another node, and where its first reactor listens; the others follow on the next ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerConfig {
    pub node: NodeId,
    pub addr: SocketAddr,
}

/// What the node is to others.
#[derive(Clone, Debug, Default)]
pub struct PeersConfig {
    /// Where the first reactor listens for other nodes; `None` only where there can be no others, or they need nothing of this one.
    pub listen: Option<SocketAddr>,
    /// Those that are known at the start.
    pub peers: Vec<PeerConfig>,
}

impl PeersConfig {
    /// There are no other nodes, and none can come.
    pub fn is_alone(&self) -> bool {
        self.listen.is_none() && self.peers.is_empty()
    }
}

/// Who this process is to others.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Identity {
    pub me: NodeId,
    pub cluster: Uuid,
    /// Tells others that this process is another one than before.
    pub boot: u64,
    pub reactors: usize,
}

/// The other nodes, in the order in which they came. Their places are their numbers among those who vote, behind this node's own.
#[derive(Clone)]
pub(crate) struct PeerTable(Arc<[OnceLock<PeerConfig>]>);

impl PeerTable {
    /// # Panics — when there are more than [`NODES_MAX`]: the desired state has no more.
    pub fn new(peers: &[PeerConfig]) -> PeerTable {
        let table = PeerTable((1..NODES_MAX).map(|_| OnceLock::new()).collect());
        peers.iter().for_each(|peer| assert!(table.add(peer.clone()), "a node twice, or too many nodes"));
        table
    }
    pub fn all(&self) -> impl Iterator<Item = &PeerConfig> {
        self.0.iter().map_while(OnceLock::get)
    }
    pub fn get(&self, node: NodeId) -> Option<&PeerConfig> {
        self.all().find(|peer| peer.node == node)
    }
    pub fn count(&self) -> usize {
        self.all().count()
    }
    /// Called by one reactor. False: it is there already, or there are too many.
    pub fn add(&self, peer: PeerConfig) -> bool {
        self.get(peer.node).is_none()
            && self.0.iter().find(|place| place.get().is_none()).is_some_and(|place| place.set(peer).is_ok())
    }
}
