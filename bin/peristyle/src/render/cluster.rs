//! A cluster, for people.

use super::table;
use peristyle_control::api::{ClusterInfo, NodeInfo, OwnerInfo};
use peristyle_control::desired::NodeState;

fn state(node: &NodeInfo) -> String {
    let word = match (node.alive, node.state) {
        (_, NodeState::Left) => "removed",
        (false, _) => "silent",
        (true, NodeState::Active) => "alive",
        (true, NodeState::Stopping) => "stopping",
    };
    let word = match node.maintenance {
        Some(left) => format!("{word}, in maintenance for {} min", left.div_ceil(60)),
        None => word.into(),
    };
    match (node.draining, node.columns) {
        (false, _) if !node.alive => match &node.link {
            Some(link) => format!("{word}: {link}"),
            None => word,
        },
        (false, _) => word,
        (true, 0) => format!("{word}, empty"),
        (true, left) => format!("{word}, draining: {left} columns left"),
    }
}

pub fn cluster(info: &ClusterInfo) -> String {
    let manager = |node: u32| if info.manager == Some(node) { "manager" } else { "" };
    let row = |n: &NodeInfo| {
        let labels = [&n.rack, &n.zone].into_iter().flatten().cloned().collect::<Vec<_>>().join(" ");
        let shards = info.shards.iter().filter(|s| s.owner == Some(n.node));
        vec![
            n.node.to_string(),
            state(n),
            manager(n.node).into(),
            n.devices.to_string(),
            numbers(shards),
            n.portals.join(" "),
            labels,
        ]
    };
    let header = ["node", "state", "", "devices", "shards", "hosts reach it at", "labels"];
    let mut out = format!("cluster {}, as node {} sees it\n\n", info.uuid, info.told_by);
    out += &table(&header, &[0, 3], info.nodes.iter().map(row));
    let orphans = numbers(info.shards.iter().filter(|s| s.owner.is_none()));
    if !orphans.is_empty() {
        out += &format!("\nnobody is to own the shards {orphans}\n");
    }
    out
}

fn numbers<'a>(shards: impl Iterator<Item = &'a OwnerInfo>) -> String {
    shards.map(|s| s.shard.to_string()).collect::<Vec<_>>().join(" ")
}
