//! `peristyle dev --nodes N` as a child: started, asked how it does, its nodes killed and started again.

use super::daemon::Volume;
use crate::{cmd, tools};
use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// An answer takes this long at most; the machine may be busy with other things.
const ASK_LIMIT: Duration = Duration::from_secs(30);
/// A node that was killed is a sound member again by then.
const SOUND_LIMIT: Duration = Duration::from_secs(180);
const PERIOD: Duration = Duration::from_millis(200);

/// What `peristyle dev --nodes N --json` prints.
#[derive(Deserialize, Debug)]
pub struct Ready {
    pub nqn: String,
    pub nodes: Vec<Node>,
    pub volumes: Vec<Volume>,
}

#[derive(Deserialize, Debug, Clone)]
pub struct Node {
    pub node: u16,
    pub listen: String,
    pub admin: PathBuf,
}

impl Node {
    pub fn port(&self) -> Result<u16> {
        let (_, port) = self.listen.rsplit_once(':').context("no port")?;
        Ok(port.parse()?)
    }
}

/// What is looked at of `peristyle host show --json`.
#[derive(Deserialize, Debug)]
struct ShownHosts {
    hosts: Vec<ShownHost>,
}

#[derive(Deserialize, Debug)]
struct ShownHost {
    missing: Vec<u32>,
}

/// What is looked at of `peristyle cluster show --json`.
#[derive(Deserialize, Debug)]
pub struct Shown {
    nodes: Vec<ShownNode>,
    shards: Vec<Owner>,
    volumes: Vec<Place>,
}

#[derive(Deserialize, Debug)]
struct ShownNode {
    alive: bool,
}

#[derive(Deserialize, Debug)]
struct Owner {
    shard: u32,
    owner: Option<u16>,
    serving: bool,
}

#[derive(Deserialize, Debug)]
struct Place {
    name: String,
    shard: u32,
}

/// What is looked at of `peristyle pool show --json`.
#[derive(Deserialize)]
struct Pool {
    scheme: String,
    extents_to_convert: u64,
    repair: Repair,
}

#[derive(Deserialize)]
struct Repair {
    lost_columns: u64,
    away_columns: u64,
    draining_columns: u64,
}

/// … and of `peristyle status --json`.
#[derive(Deserialize)]
struct Status {
    devices: u32,
    devices_healthy: u32,
}

pub struct DevCluster {
    child: Child,
    dir: PathBuf,
    pub ready: Ready,
}

/// A port from which on a cluster finds its own free: nobody else uses that range for long.
fn free_ports() -> Result<u16> {
    for attempt in 0..50 {
        let first = 21_000 + ((std::process::id() * 7 + attempt * 97) % 8_000) as u16;
        let all = [0, 1, 2, 3, 4, 5, 900, 901, 1000, 1016, 1032, 1048, 1064, 1080];
        let is_free = |offset: &u16| TcpListener::bind(("127.0.0.1", first + offset)).is_ok();
        if all.iter().all(is_free) {
            return Ok(first);
        }
    }
    bail!("no ports are free");
}

impl DevCluster {
    /// Starts the cluster and waits until it is ready. `host` is how hosts reach this machine.
    pub fn start(dir: &Path, nodes: u16, host: &str, options: &[&str]) -> Result<DevCluster> {
        let port = free_ports()?;
        let mut command = Command::new(tools::daemon());
        command.arg("dev").arg("--dir").arg(dir).args(["--nodes", &nodes.to_string(), "--json"]);
        command.args(["--listen", &format!("127.0.0.1:{port}"), "--advertise", &format!("{host}:{port}")]);
        let log = dir.with_extension("log");
        let errors = File::options().create(true).append(true).open(&log)?;
        command.args(options).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(errors);
        let mut child =
            command.spawn().with_context(|| format!("cannot start {}", tools::daemon().display()))?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("its output is piped")).read_line(&mut line)?;
        match serde_json::from_str(&line) {
            Ok(ready) => Ok(DevCluster { child, dir: dir.to_owned(), ready }),
            Err(error) => {
                child.wait().ok();
                let said = std::fs::read_to_string(&log).unwrap_or_default();
                bail!("the cluster did not become ready ({error}); it said:\n{said}")
            }
        }
    }

    /// `peristyle dev ORDER NODE`.
    pub fn order(&self, order: &str, node: u16) -> Result<()> {
        let mut command = Command::new(tools::daemon());
        command.args(["dev", order, &node.to_string(), "--dir"]).arg(&self.dir);
        cmd::run(&mut command, ASK_LIMIT)
    }

    /// Has a node do something.
    pub fn tell(&self, node: &Node, arguments: &[&str]) -> Result<()> {
        let mut command = Command::new(tools::daemon());
        cmd::run(command.arg("--admin").arg(&node.admin).args(arguments), ASK_LIMIT)
    }

    /// What a node answers; an error if it does not.
    fn ask<T: for<'a> Deserialize<'a>>(&self, node: &Node, arguments: &[&str]) -> Result<T> {
        let mut command = Command::new(tools::daemon());
        command.arg("--admin").arg(&node.admin).args(arguments).arg("--json");
        let said = cmd::answer(&mut command, &self.dir.with_extension("said"), ASK_LIMIT)?;
        let (status, text) = said.with_context(|| format!("no answer to {arguments:?}"))?;
        ensure!(status.success(), "{arguments:?}: {status}: {text}");
        serde_json::from_str(&text).with_context(|| format!("{arguments:?}: {text}"))
    }

    pub fn show(&self, node: &Node) -> Result<Shown> {
        self.ask(node, &["cluster", "show"])
    }

    /// The node that serves a volume.
    pub fn owner(&self, volume: &str) -> Result<Node> {
        for node in &self.ready.nodes {
            let Ok(shown) = self.show(node) else { continue };
            let place = shown.volumes.iter().find(|v| v.name == volume).context("no such volume")?;
            let shard = shown.shards.iter().find(|s| s.shard == place.shard).context("no such shard")?;
            if shard.serving {
                return Ok(node.clone());
            }
        }
        bail!("no node serves {volume}")
    }

    pub fn resize(&self, volume: &str, bytes: u64) -> Result<()> {
        let start = Instant::now();
        loop {
            // The shard may just be on its way to another node.
            let done = self.owner(volume).and_then(|owner| {
                self.ask::<Volume>(&owner, &["volume", "resize", volume, &bytes.to_string()])
            });
            match done {
                Ok(_) => return Ok(()),
                Err(error) if start.elapsed() > ASK_LIMIT => return Err(error),
                Err(_) => std::thread::sleep(PERIOD),
            }
        }
    }

    /// Gives the pool another scheme, and waits until all that there is has it.
    pub fn convert(&self, scheme: &str) -> Result<Duration> {
        let (start, node) = (Instant::now(), &self.ready.nodes[0]);
        let mut command = Command::new(tools::daemon());
        command.arg("--admin").arg(&node.admin).args(["pool", "set", "--scheme", scheme]);
        cmd::run(&mut command, ASK_LIMIT)?;
        loop {
            let mut left = 0;
            for node in &self.ready.nodes {
                let pool: Pool = self.ask(node, &["pool", "show"])?;
                left += if pool.scheme == scheme { pool.extents_to_convert } else { 1 };
            }
            match left {
                0 => return Ok(start.elapsed()),
                _ if start.elapsed() > SOUND_LIMIT => bail!("{left} extents are not converted to {scheme}"),
                _ => std::thread::sleep(PERIOD),
            }
        }
    }

    /// Waits until every node is alive for every other, every shard is served, and nothing is left to rebuild.
    pub fn wait_sound(&self) -> Result<Duration> {
        let start = Instant::now();
        loop {
            match self.unsound() {
                Ok(()) => return Ok(start.elapsed()),
                Err(why) if start.elapsed() > SOUND_LIMIT => {
                    return Err(why.context("the cluster does not become sound again"));
                }
                Err(_) => std::thread::sleep(PERIOD),
            }
        }
    }

    fn unsound(&self) -> Result<()> {
        let mut served = Vec::new();
        let mut owners = Vec::new();
        for node in &self.ready.nodes {
            let shown = self.show(node)?;
            ensure!(shown.nodes.iter().all(|n| n.alive), "node {} does not see all others", node.node);
            served.extend(shown.shards.iter().filter(|s| s.serving).map(|s| s.shard));
            owners = shown.shards.iter().map(|s| (s.shard, s.owner)).collect();
            let status: Status = self.ask(node, &["status"])?;
            ensure!(status.devices == status.devices_healthy, "node {} misses devices", node.node);
            let Pool { repair, .. } = self.ask(node, &["pool", "show"])?;
            let left = repair.lost_columns + repair.away_columns + repair.draining_columns;
            ensure!(left == 0, "node {} has {left} columns to rebuild", node.node);
        }
        let waits = owners.iter().find(|o| o.1.is_none() || !served.contains(&o.0));
        ensure!(waits.is_none(), "nobody serves {waits:?}");
        Ok(())
    }

    /// An error if it has ended by itself.
    pub fn alive(&mut self) -> Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => bail!("the cluster ended by itself: {status}"),
        }
    }

    /// Waits until the nodes tell of one host, and of no node that it has no path to.
    pub fn wait_paths(&self) -> Result<()> {
        let start = Instant::now();
        loop {
            let shown: Result<ShownHosts> = self.ask(&self.ready.nodes[0], &["host", "show"]);
            let whole = |shown: &ShownHosts| shown.hosts.len() == 1 && shown.hosts[0].missing.is_empty();
            match shown {
                Ok(shown) if whole(&shown) => return Ok(()),
                shown if start.elapsed() > SOUND_LIMIT => {
                    bail!("the host does not have all paths: {shown:?}")
                }
                _ => std::thread::sleep(PERIOD),
            }
        }
    }

    /// As Ctrl-C does.
    pub fn stop(mut self) -> Result<()> {
        let pid = self.child.id().to_string();
        cmd::run(Command::new("kill").args(["-s", "TERM", &pid]), ASK_LIMIT)?;
        let status = self.child.wait()?;
        ensure!(status.success(), "the cluster ended with {status}");
        Ok(())
    }
}

impl Drop for DevCluster {
    fn drop(&mut self) {
        // It takes its nodes with it.
        let pid = self.child.id().to_string();
        if matches!(self.child.try_wait(), Ok(None)) {
            Command::new("kill").args(["-s", "TERM", &pid]).status().ok();
            self.child.wait().ok();
        }
    }
}
