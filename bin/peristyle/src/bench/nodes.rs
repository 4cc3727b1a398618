//! `peristyle dev --nodes` of this same program, a process for each node, started and stopped by measurements.

use super::daemon::{Spawn, ready};
use crate::client::Client;
use crate::devcluster;
use crate::failure::Failure;
use peristyle_bench::session::Target;
use peristyle_control::api::{ClusterInfo, Request, Response};
use serde_json::Value;
use std::fs::File;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// First ports that are looked at, below those that the kernel gives to connections.
const PORTS: std::ops::Range<u16> = 28_000..30_000;
/// Before that it says by itself what it waits for, and stops.
const READY_LIMIT: Duration = Duration::from_secs(150);
/// A shard that nobody serves by then stays without an owner.
const OWNER_LIMIT: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(50);

/// One device and one reactor each, on this machine.
pub struct Nodes {
    child: Child,
    nqn: String,
    nodes: Vec<(SocketAddr, PathBuf)>,
}

impl Nodes {
    /// Starts them and waits until they serve. Of `spawn`, its devices are files: one a node.
    pub fn spawn(spawn: &Spawn, count: u16, dir: &Path) -> Result<Nodes, Failure> {
        let program = std::env::current_exe().map_err(Failure::failed)?;
        let log = dir.with_extension("log");
        let errors = File::options().create(true).append(true).open(&log).map_err(Failure::failed)?;
        let listen = free_ports(count).ok_or_else(|| Failure::failed("no ports are free for a cluster"))?;
        let mut command = Command::new(program);
        // etcd's own writes would share the disk with the devices.
        command.args(["dev", "--json", "--without-etcd", "--nodes", &count.to_string(), "--dir"]).arg(dir);
        command.args(["--listen", &format!("127.0.0.1:{listen}"), "--reactors", "1"]);
        command.args(["--device-size", &spawn.device_bytes.to_string()]);
        command.args(["--scheme", &spawn.scheme.to_string()]);
        command.args(["--volume", &format!("{}={}", spawn.volume.0, spawn.volume.1)]);
        command.args(&spawn.more);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(errors);
        let mut child = command.spawn().map_err(Failure::failed)?;
        match ready(&mut child, READY_LIMIT, parse) {
            Some((nqn, nodes)) => Ok(Nodes { child, nqn, nodes }),
            None => {
                stop(&mut child);
                let said = std::fs::read_to_string(&log).unwrap_or_default();
                Err(Failure::failed(format!("the cluster did not become ready; it said:\n{said}")))
            }
        }
    }

    /// Their admin sockets.
    pub fn admins(&self) -> impl Iterator<Item = &Path> {
        self.nodes.iter().map(|(_, admin)| admin.as_path())
    }

    /// The node that serves the shard of the first volume: there a host's commands need no other one but for columns.
    pub fn owner(&self) -> Result<Target, Failure> {
        let start = Instant::now();
        loop {
            for (addr, admin) in &self.nodes {
                if serves_first_volume(&show(admin)?) {
                    return Ok(Target { addr: *addr, nqn: Some(self.nqn.clone()) });
                }
            }
            if start.elapsed() > OWNER_LIMIT {
                return Err(Failure::failed("no node serves the volume"));
            }
            std::thread::sleep(PAUSE);
        }
    }
}

impl Drop for Nodes {
    fn drop(&mut self) {
        stop(&mut self.child);
    }
}

/// SIGTERM: killed, it would leave its nodes behind.
fn stop(child: &mut Child) {
    let _ = Command::new("sh").arg("-c").arg(format!("kill -s TERM {}", child.id())).status();
    let _ = child.wait();
}

fn show(admin: &Path) -> Result<ClusterInfo, Failure> {
    match Client::connect(Some(admin.into()))?.call(&Request::ClusterShow)? {
        Response::Cluster(info) => Ok(info),
        _ => Err(Failure::failed("a node answered something else than its cluster")),
    }
}

fn serves_first_volume(info: &ClusterInfo) -> bool {
    let Some(volume) = info.volumes.first() else { return false };
    let is_mine = |owner: Option<u32>| owner == Some(info.told_by);
    info.shards.iter().any(|s| s.shard == volume.shard && s.serving && is_mine(s.owner))
}

/// The first of the ports of a cluster that nobody listens at.
fn free_ports(nodes: u16) -> Option<u16> {
    let first = |attempt: u32| {
        PORTS.start + ((std::process::id() * 13 + attempt * 101) % u32::from(PORTS.end - PORTS.start)) as u16
    };
    let is_free = |port: &u16| {
        devcluster::ports(nodes).all(|behind| TcpListener::bind(("127.0.0.1", port + behind)).is_ok())
    };
    (0..100).map(first).find(is_free)
}

fn parse(line: &str) -> Option<(String, Vec<(SocketAddr, PathBuf)>)> {
    let value: Value = serde_json::from_str(line).ok()?;
    if value["ready"] != true {
        return None;
    }
    let node = |node: &Value| Some((node["listen"].as_str()?.parse().ok()?, node["admin"].as_str()?.into()));
    let nodes: Option<Vec<_>> = value["nodes"].as_array()?.iter().map(node).collect();
    Some((value["nqn"].as_str()?.to_owned(), nodes?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use peristyle_control::api::{OwnerInfo, PlaceInfo};

    #[test]
    fn the_ready_line_names_every_node() {
        let line = r#"{"ready":true,"nqn":"nqn.a","nodes":[{"node":1,"listen":"127.0.0.1:7","admin":"/a"},{"node":2,"listen":"127.0.0.1:8","admin":"/b"}]}"#;
        let (nqn, nodes) = parse(line).unwrap();
        assert_eq!((nqn.as_str(), nodes.len(), nodes[1].0.port()), ("nqn.a", 2, 8));
        assert_eq!(nodes[0].1, Path::new("/a"));
        for other in ["", r#"{"ready":false}"#, r#"{"ready":true,"nqn":"nqn.a","nodes":[{"node":1}]}"#] {
            assert!(parse(other).is_none(), "{other}");
        }
    }

    #[test]
    fn who_serves_the_volumes_shard_and_is_to_own_it_is_the_owner() {
        let shard = |shard, owner, serving| OwnerInfo { shard, owner: Some(owner), serving };
        let info = |shards| ClusterInfo {
            uuid: String::new(),
            told_by: 2,
            manager: None,
            nodes: Vec::new(),
            shards,
            volumes: vec![PlaceInfo { name: "v".into(), nsid: 1, bytes: 1, shard: 5 }],
        };
        assert!(serves_first_volume(&info(vec![shard(4, 1, false), shard(5, 2, true)])));
        // It gives the shard away, has not taken it yet, or serves another one.
        for shards in [vec![shard(5, 1, true)], vec![shard(5, 2, false)], vec![shard(4, 2, true)]] {
            assert!(!serves_first_volume(&info(shards)));
        }
    }
}
