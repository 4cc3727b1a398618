//! `cargo xtask store-away`: a development cluster under load whose control store is killed, and comes back much later.

use super::cluster::Cluster;
use super::load::{Load, Phase};
use super::{LIMIT, PERIOD, RUNNING, until_alive};
use crate::e2e::scratch::Scratch;
use crate::tools;
use anyhow::{Result, ensure};
use clap::Args;
use std::time::{Duration, Instant};

/// Reads and writes are counted in pieces of so long. In none of them may there be no read.
const PIECE: Duration = Duration::from_secs(2);
const BLOCK_BYTES: f64 = 4096.0;
const MIB: f64 = 1024.0 * 1024.0;

#[derive(Args, Debug, Clone)]
pub struct Options {
    /// For how long the store is away, seconds.
    #[arg(long, default_value_t = 600)]
    seconds: u64,
    #[arg(long, default_value_t = 3)]
    nodes: u16,
    #[arg(long, default_value = "1+1")]
    scheme: String,
    /// Of each node's device, a sparse file.
    #[arg(long, default_value = "64GiB")]
    device_size: String,
    /// Of each write, from its end to the beginning of the next.
    #[arg(long, default_value = "0ms")]
    pause: String,
    /// First of the cluster's ports.
    #[arg(long, default_value = "127.0.0.1:12420")]
    listen: String,
}

impl Options {
    /// The size that fits into CI.
    pub fn short() -> Options {
        let [scheme, device_size, pause] = ["1+1", "1GiB", "0ms"].map(String::from);
        Options { seconds: 10, nodes: 3, scheme, device_size, pause, listen: "127.0.0.1:12420".into() }
    }
}

pub fn run(options: &Options) -> Result<()> {
    tools::build_daemon()?;
    let scratch = Scratch::new("store-away")?;
    let nodes = options.nodes.to_string();
    let shape = ["--nodes", &nodes, "--scheme", &options.scheme, "--device-size", &options.device_size];
    let rest = ["--volume", "writes=256MiB", "--volume", "reads=256MiB", "--listen", &options.listen];
    let cluster = Cluster::start(scratch.path(), &[&shape[..], &rest[..]].concat())?;
    let writes = ["--reads", "0", "--qd", "8", "--pause", &options.pause, "--give-up", "1440m"];
    let mut writes = Load::start(scratch.path(), &cluster.ready, 0, &writes)?;
    let mut reads = Load::start(scratch.path(), &cluster.ready, 1, &["--reads", "100", "--pause", "1ms"])?;
    writes.until_running(0, RUNNING)?;
    reads.until_running(0, RUNNING)?;
    writes.mark("away")?;
    cluster.order_store("kill-store")?;
    let away = away(options, &mut writes, &mut reads)?;
    println!("the store was away for {} s: {away}", options.seconds);
    cluster.order_store("start-store")?;
    let back = Instant::now();
    writes.mark("back")?;
    writes.until_running(0, RUNNING)?;
    println!("writes went on {:.1?} after the store's start", back.elapsed());
    after(&cluster, &mut reads)?;
    for (name, load) in [("writes", writes), ("reads", reads)] {
        let told = load.end()?;
        println!(
            "{name}: {} commands, {} errors, {} violations",
            told.completed, told.errors, told.violations
        );
        ensure!(told.errors + told.violations == 0, "{name}: {}", told.told.join("; "));
    }
    drop(cluster);
    scratch.passed();
    Ok(())
}

/// What went on without the store.
struct Away {
    /// The last piece in which a write was acknowledged, from the beginning, and all that were.
    wrote_for: Duration,
    writes: u64,
    reads: u64,
    longest_read_ms: f64,
}

impl std::fmt::Display for Away {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mib = self.writes as f64 * BLOCK_BYTES / MIB;
        write!(f, "writes went on for {:.0?} ({} of 4 KiB, {mib:.0} MiB); ", self.wrote_for, self.writes)?;
        write!(f, "{} reads, the longest {:.1} ms", self.reads, self.longest_read_ms)
    }
}

fn away(options: &Options, writes: &mut Load, reads: &mut Load) -> Result<Away> {
    let begun = Instant::now();
    let mut away = Away { wrote_for: Duration::ZERO, writes: 0, reads: 0, longest_read_ms: 0.0 };
    reads.mark("away")?;
    while begun.elapsed() < Duration::from_secs(options.seconds) {
        std::thread::sleep(PIECE);
        let (read, since) = (reads.status()?.completed, begun.elapsed());
        ensure!(read > away.reads, "reads have stopped, {since:.0?} after the store was killed");
        away.reads = read;
        let written = writes.status()?.completed;
        if written > away.writes {
            (away.writes, away.wrote_for) = (written, since);
        }
    }
    let read: Phase = reads.mark("back")?;
    away.longest_read_ms = read.longest_command_ms;
    ensure!(away.writes > RUNNING, "without the store no write was acknowledged");
    Ok(away)
}

/// The cluster is one again: it notices that an owner stops, and somebody else serves.
fn after(cluster: &Cluster, reads: &mut Load) -> Result<()> {
    let owner = cluster.owner()?;
    cluster.order("kill", owner)?;
    let until = Instant::now() + LIMIT;
    while cluster.owner()? == owner {
        ensure!(Instant::now() < until, "nobody took the shard of node {owner}, which was killed");
        std::thread::sleep(PERIOD);
    }
    cluster.order("start", owner)?;
    until_alive(cluster, owner)?;
    let before = reads.status()?.completed;
    reads.until_running(before, RUNNING)
}
