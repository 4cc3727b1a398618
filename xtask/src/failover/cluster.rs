//! `peristyle dev --nodes` as a child, and what its nodes say.

use super::LIMIT;
use crate::{cmd, tools};
use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// What is needed of the line that says that all nodes serve.
#[derive(Deserialize, Debug)]
pub struct Ready {
    pub nqn: String,
    pub volumes: Vec<Volume>,
    pub nodes: Vec<Node>,
}

#[derive(Deserialize, Debug)]
pub struct Volume {
    pub nsid: u32,
}

#[derive(Deserialize, Debug)]
pub struct Node {
    pub listen: String,
    pub admin: PathBuf,
}

/// What is needed of `peristyle cluster show --json`.
#[derive(Deserialize, Debug)]
struct Shown {
    nodes: Vec<ShownNode>,
    shards: Vec<ShownShard>,
    volumes: Vec<ShownVolume>,
}

#[derive(Deserialize, Debug)]
struct ShownNode {
    node: u32,
    alive: bool,
}

#[derive(Deserialize, Debug)]
struct ShownShard {
    shard: u32,
    owner: Option<u32>,
}

#[derive(Deserialize, Debug)]
struct ShownVolume {
    nsid: u32,
    shard: u32,
}

impl Shown {
    fn owner(&self, nsid: u32) -> Option<u32> {
        let shard = self.volumes.iter().find(|volume| volume.nsid == nsid)?.shard;
        self.shards.iter().find(|s| s.shard == shard)?.owner
    }
    fn sees(&self, node: u32) -> bool {
        self.nodes.iter().any(|n| n.node == node && n.alive)
    }
}

/// A cluster starts in this time, and an answer comes in that.
const START_LIMIT: Duration = Duration::from_secs(180);
const ASK_LIMIT: Duration = Duration::from_secs(10);
/// Its nodes end in order when it is asked to.
const STOP_LIMIT: Duration = Duration::from_secs(30);

pub struct Cluster {
    child: Child,
    dir: PathBuf,
    /// Where answers are kept while they are read.
    said: PathBuf,
    pub ready: Ready,
}

impl Cluster {
    /// `options`: of `peristyle dev`.
    pub fn start(scratch: &Path, options: &[&str]) -> Result<Cluster> {
        let (dir, log) = (scratch.join("cluster"), scratch.join("cluster.log"));
        let mut command = Command::new(tools::daemon());
        command.args(["dev", "--json", "--dir"]).arg(&dir).args(options);
        let errors = File::options().create(true).append(true).open(&log)?;
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(errors.try_clone()?);
        let mut child = command.spawn().context("cannot start the cluster")?;
        let lines = cmd::follow(&mut child, errors);
        let wait = || loop {
            let line = lines.recv_timeout(START_LIMIT).context("no ready line")?;
            if let Some(ready) = parse(&line) {
                return anyhow::Ok(ready);
            }
        };
        match wait() {
            Ok(ready) => Ok(Cluster { child, dir, said: scratch.join("said"), ready }),
            Err(error) => {
                end(&mut child);
                let said = std::fs::read_to_string(&log).unwrap_or_default();
                Err(error.context(format!("the cluster did not become ready; it said:\n{said}")))
            }
        }
    }

    /// `peristyle dev kill` and the like.
    pub fn order(&self, word: &str, node: u32) -> Result<()> {
        self.tell(&[word, &node.to_string()])
    }

    /// `peristyle dev kill-store` and `start-store`.
    pub fn order_store(&self, word: &str) -> Result<()> {
        self.tell(&[word])
    }

    fn tell(&self, order: &[&str]) -> Result<()> {
        let dir = self.dir.display().to_string();
        self.ask(&[&["dev"][..], order, &["--dir", &dir]].concat()).map(drop)
    }

    fn ask(&self, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new(tools::daemon());
        let what = arguments.join(" ");
        let said = cmd::answer(command.args(arguments), &self.said, ASK_LIMIT)?;
        let (status, text) = said.with_context(|| format!("no answer to {what}"))?;
        ensure!(status.success(), "{what}: {status}: {text}");
        Ok(text)
    }

    fn show(&self, node: &Node) -> Result<Shown> {
        let text = self.ask(&["cluster", "show", "--json", "--admin", &node.admin.display().to_string()])?;
        serde_json::from_str(&text).with_context(|| format!("cluster show: {text}"))
    }

    /// The node that owns the first volume's shard, by whichever node tells.
    pub fn owner(&self) -> Result<u32> {
        let nsid = self.ready.volumes.first().context("there is no volume")?.nsid;
        let until = Instant::now() + LIMIT;
        loop {
            let owner = self.ready.nodes.iter().find_map(|node| self.show(node).ok()?.owner(nsid));
            match owner {
                Some(owner) => return Ok(owner),
                None => ensure!(Instant::now() < until, "no node tells who owns the volume's shard"),
            }
            std::thread::sleep(super::PERIOD);
        }
    }

    /// What every node says, for whoever wants to know why nothing goes on.
    pub fn words(&self) -> String {
        let show = |node: &Node| {
            let admin = node.admin.display().to_string();
            let said = [["cluster", "show"].as_slice(), &["status"]].map(|what| {
                self.ask(&[what, &["--admin", &admin]].concat()).unwrap_or_else(|error| format!("{error:#}"))
            });
            said.join("\n")
        };
        let words = |node: &Node| format!("{} says:\n{}\n", node.admin.display(), show(node));
        self.ready.nodes.iter().map(words).collect()
    }

    /// Every node answers, and sees this one.
    pub fn all_see(&self, node: u32) -> bool {
        self.ready.nodes.iter().all(|n| self.show(n).is_ok_and(|shown| shown.sees(node)))
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        end(&mut self.child);
    }
}

/// SIGTERM first: the child has children of its own, which it ends.
fn end(child: &mut Child) {
    let asked = Command::new("kill").args(["-TERM", &child.id().to_string()]).status();
    let until = Instant::now() + STOP_LIMIT;
    while asked.is_ok() && Instant::now() < until && matches!(child.try_wait(), Ok(None)) {
        std::thread::sleep(super::PERIOD);
    }
    child.kill().ok();
    child.wait().ok();
}

fn parse(line: &str) -> Option<Ready> {
    serde_json::from_str(line).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ready_line_is_read_and_what_else_it_has_is_passed_over() {
        assert!(parse("Peristyle 0.1.0").is_none());
        let line = r#"{"ready":true,"nqn":"nqn.x","dir":"/d","volumes":[{"name":"demo","nsid":7,"bytes":4096}],
            "nodes":[{"node":1,"pid":123,"listen":"127.0.0.1:4421","admin":"/d/node-1/admin.sock"}]}"#;
        let ready = parse(line).unwrap();
        assert_eq!((ready.nqn.as_str(), ready.volumes[0].nsid, ready.nodes.len()), ("nqn.x", 7, 1));
        assert_eq!(ready.nodes[0].listen, "127.0.0.1:4421");
    }

    #[test]
    fn a_volumes_owner_is_that_of_its_shard() {
        let text = r#"{"manager":1,"nodes":[{"node":1,"state":"active","alive":true},{"node":2,"state":"active","alive":false}],
            "shards":[{"shard":0,"owner":2,"serving":false},{"shard":3,"owner":1,"serving":true},{"shard":4,"owner":null}],
            "volumes":[{"name":"a","nsid":1,"shard":3},{"name":"b","nsid":2,"shard":4}]}"#;
        let shown: Shown = serde_json::from_str(text).unwrap();
        assert_eq!([1, 2, 3].map(|nsid| shown.owner(nsid)), [Some(1), None, None]);
        assert_eq!([1, 2, 3].map(|node| shown.sees(node)), [true, false, false]);
    }
}
