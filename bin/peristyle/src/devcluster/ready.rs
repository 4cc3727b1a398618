//! A development cluster becomes ready: all nodes see each other, every shard is served, the volumes are there.

use super::Cluster;
use super::processes::{ASK_LIMIT, Node};
use crate::client::Client;
use crate::failure::Failure;
use crate::render::{self, ReadyVolume};
use peristyle_base::units::format_bytes;
use peristyle_control::api::{ClusterInfo, Request, Response, VolumeInfo};
use peristyle_rt::{Duration, Instant, now, sleep};
use serde::Serialize;
use std::cell::RefCell;
use std::net::SocketAddr;

/// A cluster that is not ready by then says why, and stops.
const LIMIT: Duration = Duration::from_secs(120);
const PERIOD: Duration = Duration::from_millis(100);
/// While it waits, it says for what.
const SPEAK_PERIOD: Duration = Duration::from_secs(5);

/// Everything a host needs to attach.
#[derive(Serialize)]
pub struct Ready {
    ready: bool,
    nqn: String,
    dir: String,
    nodes: Vec<ReadyNode>,
    volumes: Vec<ReadyVolume>,
}

#[derive(Serialize)]
struct ReadyNode {
    node: u16,
    pid: u32,
    listen: SocketAddr,
    admin: String,
}

impl Ready {
    pub fn json(&self) -> String {
        render::json(self)
    }

    pub fn text(&self) -> String {
        let mut out = String::new();
        for v in &self.volumes {
            out += &format!("volume     {} (namespace {}, {})\n", v.name, v.nsid, format_bytes(v.bytes));
        }
        out += &format!(
            "subsystem  {}\n\nattach by every path (as root, after `modprobe nvme-tcp`):\n",
            self.nqn
        );
        for node in &self.nodes {
            let (ip, port) = (node.listen.ip(), node.listen.port());
            out +=
                &format!("  nvme connect -t tcp -a {ip} -s {port} -n {}   # node {}\n", self.nqn, node.node);
        }
        out +=
            &format!("  nvme disconnect -n {}\n\nin another terminal, with --dir {}:\n", self.nqn, self.dir);
        out += "  peristyle dev kill 3      # kill -9; `start 3` brings it back\n";
        out += "  peristyle dev stop 3      # SIGSTOP; `cont 3` lets it go on\n";
        out += "  peristyle dev end 3       # SIGTERM: its shards go to others before it stops\n";
        out += &format!("  peristyle cluster show --admin {}\n", self.nodes[0].admin);
        out += "\nCtrl-C stops all nodes; the data stays.\n";
        out
    }
}

/// Asks a node; `None` when it does not answer in time, or refuses.
pub fn ask(node: &Node, request: &Request) -> Option<Response> {
    if !node.answers() {
        return None;
    }
    Client::connect_within(Some(node.admin.clone()), ASK_LIMIT).ok()?.call(request).ok()
}

pub fn show(node: &Node) -> Option<ClusterInfo> {
    match ask(node, &Request::ClusterShow)? {
        Response::Cluster(info) => Some(info),
        _ => None,
    }
}

/// What keeps the cluster from being ready.
fn missing(cluster: &Cluster) -> Option<String> {
    let infos: Vec<_> = cluster.nodes.iter().map(show).collect();
    if let Some(silent) = infos.iter().position(Option::is_none) {
        return Some(format!("node {} does not answer", silent + 1));
    }
    let infos: Vec<ClusterInfo> = infos.into_iter().flatten().collect();
    let blind = infos.iter().find(|i| i.nodes.len() < infos.len() || i.nodes.iter().any(|n| !n.alive));
    if let Some(blind) = blind {
        return Some(format!("node {} does not see all others", blind.told_by));
    }
    let serves = |shard: u32| infos.iter().any(|i| i.shards.iter().any(|s| s.shard == shard && s.serving));
    let waits = infos[0].shards.iter().find(|s| !serves(s.shard))?;
    Some(format!("shard {} is not served", waits.shard))
}

pub async fn wait(
    cluster: &RefCell<Cluster>,
    volumes: &[(String, u64)],
    lba_bytes: u32,
) -> Result<Ready, Failure> {
    let mut patience = Patience { until: now() + LIMIT, speak: now() + SPEAK_PERIOD };
    loop {
        let why = missing(&cluster.borrow());
        let Some(why) = why else { break };
        patience.wait(cluster, &why).await?;
    }
    make_volumes(&cluster.borrow(), volumes, lba_bytes)?;
    loop {
        let why = unserved(&cluster.borrow())?;
        let Some(name) = why else { return describe(&cluster.borrow()) };
        patience.wait(cluster, &format!("the volume `{name}` is not served")).await?;
    }
}

/// Waits, says for what when it takes long, and not for ever.
struct Patience {
    until: Instant,
    speak: Instant,
}

impl Patience {
    async fn wait(&mut self, cluster: &RefCell<Cluster>, why: &str) -> Result<(), Failure> {
        if let Some(told) = cluster.borrow_mut().nodes.iter_mut().find_map(Node::has_ended) {
            return Err(Failure::failed(told));
        }
        if now() >= self.until {
            let dir = cluster.borrow().layout.dir.display().to_string();
            let told = format!("the cluster does not become ready: {why}; the nodes' logs are below {dir}");
            return Err(Failure::failed(told));
        }
        if now() >= self.speak {
            self.speak = now() + SPEAK_PERIOD;
            eprintln!("peristyle: waiting: {why}");
        }
        sleep(PERIOD).await;
        Ok(())
    }
}

fn volumes_of(cluster: &Cluster) -> Result<Vec<VolumeInfo>, Failure> {
    match cluster.nodes.iter().find_map(|node| ask(node, &Request::VolumeList)) {
        Some(Response::Volumes { volumes }) => Ok(volumes),
        _ => Err(Failure::failed("no node tells which volumes there are")),
    }
}

fn make_volumes(cluster: &Cluster, volumes: &[(String, u64)], lba_bytes: u32) -> Result<(), Failure> {
    let there = volumes_of(cluster)?;
    for (name, bytes) in volumes.iter().filter(|(name, _)| there.iter().all(|v| v.name != *name)) {
        let (name, bytes, lba_bytes) = (name.clone(), *bytes, Some(lba_bytes));
        let admin = Some(cluster.nodes[0].admin.clone());
        Client::connect(admin)?.call(&Request::VolumeCreate { name, bytes, lba_bytes })?;
    }
    Ok(())
}

/// A volume that no node serves yet.
fn unserved(cluster: &Cluster) -> Result<Option<String>, Failure> {
    let is_served = |name: &str| {
        cluster.nodes.iter().any(|node| {
            let answer = ask(node, &Request::VolumeShow { name: name.into() });
            matches!(answer, Some(Response::Volume(volume)) if volume.usage.is_some())
        })
    };
    Ok(volumes_of(cluster)?.into_iter().map(|v| v.name).find(|name| !is_served(name)))
}

fn describe(cluster: &Cluster) -> Result<Ready, Failure> {
    let status = cluster.nodes.iter().find_map(|node| ask(node, &Request::Status));
    let Some(Response::Status(status)) = status else {
        return Err(Failure::failed("no node tells its subsystem's name"));
    };
    let nodes = cluster.nodes.iter().map(|node| ReadyNode {
        node: node.number,
        pid: node.pid().unwrap_or(0),
        listen: cluster.layout.advertised(node.number),
        admin: node.admin.display().to_string(),
    });
    let volume = |v: VolumeInfo| ReadyVolume { name: v.name, nsid: v.nsid, bytes: v.bytes, uuid: v.uuid };
    Ok(Ready {
        ready: true,
        nqn: status.nqn,
        dir: cluster.layout.dir.display().to_string(),
        nodes: nodes.collect(),
        volumes: volumes_of(cluster)?.into_iter().map(volume).collect(),
    })
}
