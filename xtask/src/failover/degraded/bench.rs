//! `peristyle bench run` on the node that owns the volume, and how much the cores had to do meanwhile.

use crate::failover::cluster::Cluster;
use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use std::time::Duration;

/// Before each measurement, under the same load.
const WARMUP_S: u64 = 1;
/// A load has one path: where its node gives the shard up for a moment, as on a machine that has too much to do, it is told so, and
/// begins anew, at most so often. A status of this type says that it is the path's, not the command's.
const TRIES: u32 = 4;
const OF_THE_PATH: &str = "sct 3h";
/// Longer than a measurement, or filling the volume, by so much: something is wrong.
const SPARE: Duration = Duration::from_secs(120);

/// What is needed of `bench run --json`.
#[derive(Deserialize, Debug)]
pub struct Measured {
    pub read: Commands,
    pub write: Commands,
    pub all: Commands,
    pub generator_busy_share: f64,
    /// Of an open loop: the part of its commands that began late.
    pub late_share: Option<f64>,
}

#[derive(Deserialize, Debug)]
pub struct Commands {
    pub count: u64,
    pub iops: f64,
    pub p50_us: f64,
    pub p99_us: f64,
}

pub struct Load<'a> {
    cluster: &'a Cluster,
    depth: u32,
    seconds: u64,
    /// Commands a second of the open loop.
    pub rate: f64,
}

impl Load<'_> {
    pub fn new(cluster: &Cluster, depth: u32, seconds: u64) -> Load<'_> {
        Load { cluster, depth, seconds, rate: 0.0 }
    }

    /// The volume is written from end to end.
    pub fn fill(&self) -> Result<()> {
        let bytes = self.cluster.volume()?.bytes.to_string();
        self.run(&["--rw", "write", "--bs", "128k", "--qd", "8", "--warmup", "0s", "--bytes", &bytes])
            .map(drop)
    }

    pub fn closed(&self) -> Result<Measured> {
        self.mix(&["--qd", &self.depth.to_string()])
    }

    pub fn open(&self) -> Result<Measured> {
        self.mix(&["--qd", &super::OPEN_DEPTH.to_string(), "--rate", &self.rate.to_string()])
    }

    fn mix(&self, how: &[&str]) -> Result<Measured> {
        let (runtime, warmup) = (format!("{}s", self.seconds), format!("{WARMUP_S}s"));
        let what = ["--rw", "randrw", "--read-share", "70", "--runtime", &runtime, "--warmup", &warmup];
        let said = self.run(&[&what[..], how].concat())?;
        parse(&said).with_context(|| said)
    }

    /// Fails when a command does.
    fn run(&self, options: &[&str]) -> Result<String> {
        for _ in 1..TRIES {
            match self.run_once(options) {
                Err(error) if format!("{error:#}").contains(OF_THE_PATH) => eprintln!("once more: {error:#}"),
                said => return said,
            }
            std::thread::sleep(Duration::from_secs(2));
        }
        self.run_once(options)
    }

    fn run_once(&self, options: &[&str]) -> Result<String> {
        let (ready, owner) = (&self.cluster.ready, self.cluster.owner()?);
        let node = ready.nodes.iter().find(|node| node.node == owner).context("a node that is not there")?;
        let target = format!("tcp://{}/{}", node.listen, ready.nqn);
        let nsid = self.cluster.volume()?.nsid.to_string();
        // It shares the cores with the nodes: it does not look for work while there is none.
        let place = ["bench", "run", "--json", "--poll", "sleep", "--target", &target, "--volume", &nsid];
        self.cluster.ask(&[&place[..], options].concat(), Duration::from_secs(self.seconds) + SPARE)
    }
}

fn parse(said: &str) -> Result<Measured> {
    let measured: Measured = serde_json::from_str(said)?;
    ensure!(measured.read.count > 0 && measured.write.count > 0, "no command ended");
    Ok(measured)
}

/// Time of all cores, in whichever unit the system counts it.
#[derive(Debug, PartialEq)]
pub struct Cores {
    idle: u64,
    all: u64,
}

pub fn cores() -> Result<Cores> {
    parse_cores(&std::fs::read_to_string("/proc/stat")?).context("/proc/stat")
}

/// `cpu user nice system idle iowait irq softirq steal ...`: what guests take is among `user`.
fn parse_cores(stat: &str) -> Option<Cores> {
    let line = stat.lines().next()?.strip_prefix("cpu ")?;
    let times: Vec<u64> = line.split_whitespace().take(8).map_while(|word| word.parse().ok()).collect();
    Some(Cores { idle: times.get(3)? + times.get(4)?, all: times.iter().sum() })
}

impl Cores {
    /// The part of the time since then that was in use.
    pub fn busy_since(&self, before: &Cores) -> f64 {
        let all = self.all.saturating_sub(before.all).max(1) as f64;
        1.0 - self.idle.saturating_sub(before.idle) as f64 / all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_measured_is_read_and_a_run_without_commands_is_none() {
        let text = |writes: u32| {
            let figures = |count: u32| {
                format!(
                    r#"{{"count":{count},"iops":7.0,"mean_us":5.5,"p50_us":5.0,"p99_us":9.0,"p99.5_us":9.5}}"#
                )
            };
            format!(
                r#"{{"block_bytes":4096,"late_share":null,"generator_busy_share":0.25,"read":{},"write":{},"all":{}}}"#,
                figures(7),
                figures(writes),
                figures(7 + writes)
            )
        };
        let measured = parse(&text(3)).unwrap();
        assert_eq!((measured.all.count, measured.write.p99_us, measured.late_share), (10, 9.0, None));
        assert!(parse(&text(0)).is_err());
    }

    #[test]
    fn waiting_for_a_disk_is_not_work() {
        let at = |stat| parse_cores(stat).unwrap();
        let before = at("cpu  10 0 10 60 20 0 0 0 5 0\ncpu0 1 1 1 1\n");
        assert_eq!(before, Cores { idle: 80, all: 100 });
        assert_eq!(at("cpu  60 0 30 80 30 0 0 0 5 0\n").busy_since(&before), 0.7);
        assert_eq!(parse_cores("intr 5"), None);
    }
}
