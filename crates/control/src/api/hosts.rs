//! Hosts, and the paths that each of them has and should have.

use crate::presence::HostHere;
use peristyle_base::NodeId;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct HostsInfo {
    /// Nodes to which every host should have a path.
    pub nodes: Vec<PathNode>,
    pub hosts: Vec<HostInfo>,
}

/// A node, as hosts should know it.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct PathNode {
    pub node: u32,
    /// It answers, and is not about to stop: a host that has no path to it lacks one.
    pub alive: bool,
    pub portals: Vec<String>,
}

#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct HostInfo {
    pub nqn: String,
    /// Host Identifier, as hexadecimal digits.
    pub id: String,
    /// That are there.
    pub paths: Vec<PathInfo>,
    /// Nodes that are alive, and that it has not connected to.
    pub missing: Vec<u32>,
    /// Others use its NQN with another Host Identifier: reservations and the order of late commands take them for different hosts.
    pub nqn_is_shared: bool,
}

#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct PathInfo {
    pub node: u32,
    pub controllers: u16,
    /// Over all its controllers.
    pub io_queues: u16,
}

impl HostsInfo {
    /// From the nodes that there should be paths to, and what each node says of who is connected.
    pub fn of(nodes: Vec<PathNode>, seen: &[(NodeId, Vec<HostHere>)]) -> HostsInfo {
        let mut hosts: BTreeMap<(&str, &str), Vec<PathInfo>> = BTreeMap::new();
        for (node, there) in seen {
            for HostHere { nqn, id, controllers, io_queues } in there {
                let (controllers, io_queues) = (*controllers, *io_queues);
                hosts.entry((nqn, id)).or_default().push(PathInfo { node: node.0, controllers, io_queues });
            }
        }
        let shared = |nqn: &str| hosts.keys().filter(|host| host.0 == nqn).count() > 1;
        let info = |(&(nqn, id), paths): (&(&str, &str), &Vec<PathInfo>)| HostInfo {
            nqn: nqn.into(),
            id: id.into(),
            missing: {
                let lacks = |n: &&PathNode| n.alive && paths.iter().all(|path| path.node != n.node);
                nodes.iter().filter(lacks).map(|n| n.node).collect()
            },
            paths: paths.clone(),
            nqn_is_shared: shared(nqn),
        };
        let hosts = hosts.iter().map(info).collect();
        HostsInfo { nodes, hosts }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_missing_to_each_node_that_is_alive_and_that_the_host_has_not_connected_to() {
        let node = |node, alive| PathNode { node, alive, portals: vec![format!("10.0.0.{node}:4420")] };
        let host =
            |nqn: &str, id: &str| HostHere { nqn: nqn.into(), id: id.into(), controllers: 1, io_queues: 4 };
        let nodes = vec![node(1, true), node(2, true), node(3, false), node(4, true)];
        let seen = [
            (NodeId(1), vec![host("a", "01"), host("b", "02")]),
            (NodeId(2), vec![host("a", "01"), host("b", "03")]),
            (NodeId(4), vec![host("a", "01")]),
        ];
        let info = HostsInfo::of(nodes, &seen);
        let told = |h: &HostInfo| {
            let paths: Vec<u32> = h.paths.iter().map(|p| p.node).collect();
            (h.nqn.clone(), h.id.clone(), paths, h.missing.clone(), h.nqn_is_shared)
        };
        let expected = [
            ("a".into(), "01".into(), vec![1, 2, 4], vec![], false),
            ("b".into(), "02".into(), vec![1], vec![2, 4], true),
            ("b".into(), "03".into(), vec![2], vec![1, 4], true),
        ];
        assert_eq!(info.hosts.iter().map(told).collect::<Vec<_>>(), expected);
        assert!(HostsInfo::of(Vec::new(), &[]).hosts.is_empty());
    }
}
