//! Hosts and their paths, for people.

use super::table;
use peristyle_control::api::{HostInfo, HostsInfo, PathNode};

pub fn hosts(info: &HostsInfo) -> String {
    if info.hosts.is_empty() {
        return "no host is connected\n".into();
    }
    let hosts: Vec<String> = info.hosts.iter().map(|host| one(info, host)).collect();
    let mut out = hosts.join("\n");
    let warnings: Vec<String> = info.hosts.iter().flat_map(|host| warnings(info, host)).collect();
    if !warnings.is_empty() {
        out += &format!("\n{}\n", warnings.join("\n"));
    }
    out
}

fn one(info: &HostsInfo, host: &HostInfo) -> String {
    let row = |node: &PathNode| {
        let path = host.paths.iter().find(|path| path.node == node.node);
        let (controllers, queues) = path
            .map_or((String::new(), String::new()), |p| (p.controllers.to_string(), p.io_queues.to_string()));
        let state = match (path, node.alive) {
            (Some(_), true) => "connected",
            (Some(_), false) => "connected; the node is silent, or stops",
            (None, true) => "MISSING",
            (None, false) => "the node is silent, or stops",
        };
        vec![node.node.to_string(), state.into(), controllers, queues, node.portals.join(" ")]
    };
    let header = ["node", "path", "controllers", "I/O queues", "hosts reach it at"];
    let alive = info.nodes.iter().filter(|node| node.alive).count();
    let head =
        format!("host {}\nid {}, {} of {alive} paths\n", host.nqn, host.id, alive - host.missing.len());
    head + &table(&header, &[0, 2, 3], info.nodes.iter().map(row))
}

fn warnings(info: &HostsInfo, host: &HostInfo) -> Vec<String> {
    let portals = |id: u32| {
        info.nodes
            .iter()
            .find(|node| node.node == id)
            .map(|node| node.portals.join(" or "))
            .unwrap_or_default()
    };
    let lacks = |&node: &u32| {
        format!("warning: {} has no path to node {node}: have it connect to {}", host.nqn, portals(node))
    };
    let mut warnings: Vec<String> = host.missing.iter().map(lacks).collect();
    if host.nqn_is_shared {
        warnings.push(format!(
            "warning: several hosts call themselves {}: give each its own (/etc/nvme/hostnqn, hostid); this is {}",
            host.nqn, host.id
        ));
    }
    warnings
}

#[cfg(test)]
mod tests {
    use super::*;
    use peristyle_control::api::PathInfo;

    #[test]
    fn what_a_host_lacks_is_said_where_it_would_be_and_at_the_end() {
        let node = |node, alive| PathNode { node, alive, portals: vec![format!("10.0.0.{node}:4420")] };
        let host = HostInfo {
            nqn: "nqn.x:a".into(),
            id: "0a".into(),
            paths: vec![PathInfo { node: 1, controllers: 1, io_queues: 4 }],
            missing: vec![2],
            nqn_is_shared: false,
        };
        let mut info =
            HostsInfo { nodes: vec![node(1, true), node(2, true), node(3, false)], hosts: vec![host] };
        let text = hosts(&info);
        assert!(text.starts_with("host nqn.x:a\nid 0a, 1 of 2 paths\n"), "{text}");
        assert!(text.contains("MISSING") && text.contains("the node is silent, or stops"), "{text}");
        assert!(
            text.ends_with("warning: nqn.x:a has no path to node 2: have it connect to 10.0.0.2:4420\n"),
            "{text}"
        );
        info.hosts[0].nqn_is_shared = true;
        assert!(hosts(&info).contains("several hosts call themselves nqn.x:a"));
        assert_eq!(hosts(&HostsInfo { nodes: Vec::new(), hosts: Vec::new() }), "no host is connected\n");
    }
}
