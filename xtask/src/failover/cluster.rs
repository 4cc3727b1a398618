//! `peristyle dev --nodes` as a child, and what its nodes say.

use super::LIMIT;
use crate::{cmd, tools};
use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
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
    pub bytes: u64,
}

#[derive(Deserialize, Debug)]
pub struct Node {
    pub node: u32,
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

/// What is needed of `peristyle stats --json`: a tree, somewhere in it what the shards have counted.
#[derive(Deserialize, Debug)]
struct Stats {
    root: StatsNode,
}

#[derive(Deserialize, Debug)]
struct StatsNode {
    name: String,
    #[serde(default)]
    counters: BTreeMap<String, u64>,
    #[serde(default)]
    children: Vec<StatsNode>,
}

impl StatsNode {
    fn named(&self, name: &str) -> Option<&StatsNode> {
        if self.name == name { Some(self) } else { self.children.iter().find_map(|child| child.named(name)) }
    }
}

/// What is needed of `peristyle pool show --json`.
#[derive(Deserialize, Debug)]
struct Pool {
    repair: Repair,
}

#[derive(Deserialize, Debug)]
struct Repair {
    lost_columns: u64,
    away_columns: u64,
    remade_columns: u64,
    moved_columns: u64,
}

impl Repair {
    fn changed(&self) -> u64 {
        self.remade_columns + self.moved_columns
    }
}

/// What nodes have counted since they run, together.
#[derive(Default, Debug, PartialEq)]
pub struct Counters {
    pub degraded_reads: u64,
    pub hedged_reads: u64,
    /// Columns that were made anew or moved.
    pub remade_columns: u64,
}

impl Counters {
    pub fn since(&self, before: &Counters) -> Counters {
        Counters {
            degraded_reads: self.degraded_reads.saturating_sub(before.degraded_reads),
            hedged_reads: self.hedged_reads.saturating_sub(before.hedged_reads),
            remade_columns: self.remade_columns.saturating_sub(before.remade_columns),
        }
    }
    fn add(&mut self, stats: &StatsNode, repair: &Repair) {
        let of =
            |name: &str| stats.named("shards").and_then(|node| node.counters.get(name)).copied().unwrap_or(0);
        self.degraded_reads += of("degraded_reads");
        self.hedged_reads += of("hedged_reads");
        self.remade_columns += repair.changed();
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
        self.ask(&[&["dev"][..], order, &["--dir", &dir]].concat(), ASK_LIMIT).map(drop)
    }

    /// What `peristyle` says to these arguments; an error when that is none, or takes longer.
    pub fn ask(&self, arguments: &[&str], limit: Duration) -> Result<String> {
        let mut command = Command::new(tools::daemon());
        let what = arguments.join(" ");
        let said = cmd::answer(command.args(arguments), &self.said, limit)?;
        let (status, text) = said.with_context(|| format!("no answer to {what}"))?;
        ensure!(status.success(), "{what}: {status}: {text}");
        Ok(text)
    }

    /// What a node says to a command that has `--json`.
    fn show_json<T: DeserializeOwned>(&self, node: &Node, command: &[&str]) -> Result<T> {
        let admin = node.admin.display().to_string();
        let text = self.ask(&[command, &["--json", "--admin", &admin]].concat(), ASK_LIMIT)?;
        serde_json::from_str(&text).with_context(|| format!("{}: {text}", command.join(" ")))
    }

    fn show(&self, node: &Node) -> Result<Shown> {
        self.show_json(node, &["cluster", "show"])
    }

    /// The first one.
    pub fn volume(&self) -> Result<&Volume> {
        self.ready.volumes.first().context("there is no volume")
    }

    /// Of all nodes.
    pub fn numbers(&self) -> Vec<u32> {
        self.ready.nodes.iter().map(|node| node.node).collect()
    }

    fn all_but(&self, away: Option<u32>) -> impl Iterator<Item = &Node> {
        self.ready.nodes.iter().filter(move |node| Some(node.node) != away)
    }

    /// Of all nodes but the one that is away.
    pub fn counters(&self, away: Option<u32>) -> Result<Counters> {
        let mut counters = Counters::default();
        for node in self.all_but(away) {
            let stats: Stats = self.show_json(node, &["stats"])?;
            let pool: Pool = self.show_json(node, &["pool", "show"])?;
            counters.add(&stats.root, &pool.repair);
        }
        Ok(counters)
    }

    /// Columns that the nodes have made anew or moved so far. `None`: some still have to be made anew, or not all nodes but the one that
    /// is away see who is there.
    pub fn at_rest(&self, away: Option<u32>) -> Option<u64> {
        let of_node = |node: &Node| {
            let shown = self.show(node).ok()?;
            let sees = |other: &Node| shown.sees(other.node) == (Some(other.node) != away);
            let repair = self.show_json::<Pool>(node, &["pool", "show"]).ok()?.repair;
            let whole = repair.lost_columns == 0 && (away.is_some() || repair.away_columns == 0);
            (whole && self.ready.nodes.iter().all(sees)).then(|| repair.changed())
        };
        self.all_but(away).map(of_node).sum()
    }

    /// The node that owns the first volume's shard, by whichever node tells.
    pub fn owner(&self) -> Result<u32> {
        let nsid = self.volume()?.nsid;
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
                self.ask(&[what, &["--admin", &admin]].concat(), ASK_LIMIT)
                    .unwrap_or_else(|error| format!("{error:#}"))
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
    fn counters_are_those_of_the_shards_wherever_they_stand() {
        let root = r#"{"name":"node","counters":{"degraded_reads":9},"children":[{"name":"reactor","children":
            [{"name":"shards","counters":{"degraded_reads":5,"hedged_reads":1,"victims":7}}]}]}"#;
        let repair = Repair { lost_columns: 0, away_columns: 8, remade_columns: 2, moved_columns: 1 };
        let mut counters = Counters::default();
        (0..2).for_each(|_| counters.add(&serde_json::from_str(root).unwrap(), &repair));
        assert_eq!(counters, Counters { degraded_reads: 10, hedged_reads: 2, remade_columns: 6 });
        let before = Counters { degraded_reads: 4, ..Counters::default() };
        assert_eq!(counters.since(&before).degraded_reads, 6);
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
