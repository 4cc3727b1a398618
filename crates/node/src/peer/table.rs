//! Which other nodes there are, as all reactors know it. Nodes join and leave while others run, and come to other addresses.

use super::tls::Security;
use peristyle_base::{NodeId, Uuid};
use peristyle_cluster::lease::NODES_MAX;
use std::net::SocketAddr;
use std::sync::atomic::Ordering::{Acquire, Release};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// Another node, and where its first reactor listens; the others follow on the next ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerConfig {
    pub node: NodeId,
    pub addr: SocketAddr,
    /// It has not left the cluster.
    pub is_member: bool,
}

/// What the node is to others.
#[derive(Clone, Debug, Default)]
pub struct PeersConfig {
    /// Where the first reactor listens for other nodes; `None` only where there can be no others, or they need nothing of this one.
    pub listen: Option<SocketAddr>,
    /// Those that are known at the start.
    pub peers: Vec<PeerConfig>,
    /// What connections to them are.
    pub security: Security,
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

/// A node that is, or was, another member.
pub(crate) struct Peer {
    pub node: NodeId,
    /// Off the I/O path: who makes a connection looks at it.
    addr: Mutex<SocketAddr>,
    /// Joins and leaves, in turn: it is a member while this is odd.
    terms: AtomicU32,
    /// Since it has left for the last time, all others have heard of that.
    forgotten: AtomicBool,
    /// Of its address and its membership: a connection of another version is not used.
    version: AtomicU32,
}

/// What has become of a node that is to be in the table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Added {
    /// It votes from now on, under this number.
    Joined(usize),
    /// It is reached elsewhere.
    Moved,
    Known,
    /// There are too many.
    Full,
}

/// Nodes are numbered from 1 to [`NODES_MAX`].
fn bit(node: NodeId) -> u64 {
    1 << (node.0.saturating_sub(1) % 64)
}

impl Peer {
    pub fn is_member(&self) -> bool {
        self.term() % 2 == 1
    }
    /// The time for which it is a member: another one when it comes back.
    pub fn term(&self) -> u32 {
        self.terms.load(Acquire)
    }
    pub fn version(&self) -> u32 {
        self.version.load(Acquire)
    }
    pub fn addr(&self) -> SocketAddr {
        *self.addr.lock().unwrap_or_else(PoisonError::into_inner)
    }
    fn move_to(&self, addr: SocketAddr) {
        *self.addr.lock().unwrap_or_else(PoisonError::into_inner) = addr;
    }
    fn change(counter: &AtomicU32) {
        // One reactor writes.
        counter.store(counter.load(Acquire) + 1, Release);
    }
}

/// The other nodes, in the order in which they first came. Their places are their numbers among those who vote, behind this node's
/// own; one that has left keeps its place, and counts for majorities until all others have heard of it.
#[derive(Clone)]
pub(crate) struct PeerTable {
    peers: Arc<[OnceLock<Peer>]>,
    /// A bit for each node that is not heard (development mode).
    unheard: Arc<AtomicU64>,
}

impl PeerTable {
    /// # Panics — when there are more than [`NODES_MAX`]: the desired state has no more.
    pub fn new(peers: &[PeerConfig]) -> PeerTable {
        let places = (1..NODES_MAX).map(|_| OnceLock::new()).collect();
        let table = PeerTable { peers: places, unheard: Arc::default() };
        for peer in peers {
            let added = table.add(peer.clone());
            assert!(matches!(added, Added::Joined(_)), "a node twice, or too many nodes");
            if !peer.is_member {
                table.leave(peer.node);
            }
        }
        table
    }
    fn known(&self) -> impl Iterator<Item = &Peer> {
        self.peers.iter().map_while(OnceLock::get)
    }
    /// Members, with their numbers.
    pub fn numbered(&self) -> impl Iterator<Item = (usize, &Peer)> {
        (1..).zip(self.known()).filter(|(_, peer)| peer.is_member())
    }
    pub fn all(&self) -> impl Iterator<Item = &Peer> {
        self.known().filter(|peer| peer.is_member())
    }
    pub fn get(&self, node: NodeId) -> Option<&Peer> {
        self.all().find(|peer| peer.node == node)
    }
    /// Numbers that were given: those of members, of those that have left, and this node's own.
    pub fn numbers(&self) -> usize {
        1 + self.known().count()
    }
    /// Numbers of nodes that have left, and whether all others have heard of it.
    pub fn left(&self) -> impl Iterator<Item = (usize, bool)> {
        let left = (1..).zip(self.known()).filter(|(_, peer)| !peer.is_member());
        left.map(|(number, peer)| (number, peer.forgotten.load(Acquire)))
    }
    /// How many a majority is one of, with this node.
    pub fn voters(&self) -> usize {
        self.numbers() - self.left().filter(|(_, forgotten)| *forgotten).count()
    }
    /// Nodes that have left, of which not all others have heard.
    pub fn leaving(&self) -> impl Iterator<Item = NodeId> {
        self.known().filter(|p| !p.is_member() && !p.forgotten.load(Acquire)).map(|p| p.node)
    }
    /// Another one whenever a node has joined, left, or was forgotten.
    pub fn membership(&self) -> (u64, usize) {
        (self.known().map(|peer| u64::from(peer.term())).sum(), self.voters())
    }
    /// From now on what comes from a node does not arrive, as if the network lost it; or it does again.
    pub fn set_heard(&self, node: NodeId, heard: bool) {
        match heard {
            true => self.unheard.fetch_and(!bit(node), Release),
            false => self.unheard.fetch_or(bit(node), Release),
        };
    }
    pub fn is_heard(&self, node: NodeId) -> bool {
        self.unheard.load(Acquire) & bit(node) == 0
    }
    /// Called by one reactor.
    pub fn add(&self, peer: PeerConfig) -> Added {
        let PeerConfig { node, addr, .. } = peer;
        for (number, place) in (1..).zip(self.peers.iter()) {
            let Some(known) = place.get() else {
                let (addr, terms, version) = (Mutex::new(addr), AtomicU32::new(1), AtomicU32::new(0));
                return match place.set(Peer { node, addr, terms, version, forgotten: AtomicBool::new(false) })
                {
                    Ok(()) => Added::Joined(number),
                    Err(_) => Added::Full,
                };
            };
            if known.node != node {
                continue;
            }
            let (is_member, moved) = (known.is_member(), known.addr() != addr);
            if moved {
                known.move_to(addr);
            }
            if moved || !is_member {
                Peer::change(&known.version);
            }
            if is_member {
                return if moved { Added::Moved } else { Added::Known };
            }
            known.forgotten.store(false, Release);
            Peer::change(&known.terms);
            return Added::Joined(number);
        }
        Added::Full
    }
    /// A node is no member any more; its number. Called by one reactor.
    pub fn leave(&self, node: NodeId) -> Option<usize> {
        let (number, peer) = self.numbered().find(|(_, peer)| peer.node == node)?;
        Peer::change(&peer.version);
        Peer::change(&peer.terms);
        Some(number)
    }
    /// All have heard that a node has left; its number. Called by one reactor.
    pub fn forget(&self, node: NodeId) -> Option<usize> {
        let is_leaving = |peer: &Peer| peer.node == node && !peer.is_member();
        let (number, peer) = (1..).zip(self.known()).find(|(_, peer)| is_leaving(peer))?;
        (!peer.forgotten.swap(true, Release)).then_some(number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(node: u32, port: u16) -> PeerConfig {
        let addr = SocketAddr::from(([10, 0, 0, node as u8], port));
        PeerConfig { node: NodeId(node), addr, is_member: true }
    }

    #[test]
    fn a_node_keeps_its_number_when_it_leaves_and_comes_back_elsewhere() {
        let table = PeerTable::new(&[peer(2, 1), peer(3, 1)]);
        let members = || table.numbered().map(|(number, p)| (number, p.node.0)).collect::<Vec<_>>();
        let before = table.membership();
        assert_eq!((table.add(peer(2, 1)), table.add(peer(4, 1))), (Added::Known, Added::Joined(3)));
        assert_ne!(table.membership(), before);
        let (before, version) = (table.membership(), table.get(NodeId(3)).unwrap().version());
        assert_eq!(
            (table.leave(NodeId(3)), table.leave(NodeId(3)), table.leave(NodeId(9))),
            (Some(2), None, None)
        );
        assert_eq!((members(), table.left().collect::<Vec<_>>()), (vec![(1, 2), (3, 4)], vec![(2, false)]));
        assert_eq!((table.voters(), table.leaving().collect::<Vec<_>>()), (4, vec![NodeId(3)]));
        assert_eq!(
            (table.forget(NodeId(3)), table.forget(NodeId(3)), table.forget(NodeId(2))),
            (Some(2), None, None)
        );
        assert_eq!((table.voters(), table.leaving().count()), (3, 0));
        assert!(table.get(NodeId(3)).is_none() && table.numbers() == 4 && table.membership() != before);
        let before = table.membership();
        assert_eq!(table.add(peer(3, 7)), Added::Joined(2));
        let back = table.get(NodeId(3)).unwrap();
        assert_eq!((back.addr().port(), members().len(), table.voters()), (7, 3, 4));
        assert!(back.version() != version && table.membership() != before);
        let (before, version) = (table.membership(), back.version());
        assert_eq!(table.add(peer(3, 8)), Added::Moved);
        assert_eq!((back.addr().port(), table.membership()), (8, before));
        assert_ne!(back.version(), version);
    }

    #[test]
    fn there_is_room_for_all_nodes_of_a_cluster_and_no_more() {
        let table = PeerTable::new(&[]);
        for node in 1..NODES_MAX as u32 {
            assert_eq!(table.add(peer(node, 1)), Added::Joined(node as usize));
        }
        assert_eq!(table.add(peer(NODES_MAX as u32, 1)), Added::Full);
    }

    #[test]
    fn one_that_leaves_while_this_node_starts_counts_and_is_no_member() {
        let table = PeerTable::new(&[peer(2, 1), PeerConfig { is_member: false, ..peer(3, 1) }]);
        assert_eq!((table.all().count(), table.voters()), (1, 3));
        assert_eq!((table.forget(NodeId(3)), table.voters()), (Some(2), 2));
    }
}
