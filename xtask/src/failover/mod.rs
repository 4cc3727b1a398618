//! `cargo xtask failover`: a development cluster whose volume loses its owner again and again, under a load that judges every read.

mod cluster;
pub mod degraded;
mod figures;
mod load;
pub mod store_away;

use crate::e2e::scratch::Scratch;
use crate::tools;
use anyhow::{Context, Result, ensure};
use clap::Args;
use cluster::Cluster;
use figures::{Figures, Kind};
use load::Load;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// How long an owner is stopped.
const STOP: Duration = Duration::from_secs(3);
/// One of so many rounds stops the owner.
const STOP_ONE_IN: u32 = 3;
/// One of so many of the rest ends it in order.
const END_ONE_IN: u32 = 4;
/// What goes on behind a failover belongs to it for so long.
const AFTERMATH: Duration = Duration::from_secs(2);
/// From when a node is back until the next round.
const SETTLE: Duration = Duration::from_secs(4);
/// A cluster that does not get so far in this time has failed.
const LIMIT: Duration = Duration::from_secs(60);
const PERIOD: Duration = Duration::from_millis(50);
/// Commands, beside those that were in flight, that have to end before the load counts as running (again).
const RUNNING: u64 = 50;

#[derive(Args, Debug, Clone)]
pub struct Options {
    #[arg(long, default_value_t = 12)]
    rounds: u32,
    /// What every round does to the owner; without it, every third stops it, every fourth of the rest ends it, the others kill it.
    #[arg(long)]
    only: Option<Kind>,
    #[arg(long, default_value_t = 6)]
    nodes: u16,
    /// Commands in flight.
    #[arg(long, default_value_t = 1)]
    qd: u32,
    /// Of each command in flight, from its end to the beginning of the next: the machine has all nodes on it.
    #[arg(long, default_value = "0ms")]
    pause: String,
    /// Of the cluster.
    #[arg(long, default_value = "4+2")]
    scheme: String,
    /// Of each node's device, a sparse file.
    #[arg(long, default_value = "1GiB")]
    device_size: String,
    #[arg(long, default_value = "512MiB")]
    volume_size: String,
    /// First of the cluster's ports.
    #[arg(long, default_value = "127.0.0.1:4420")]
    listen: String,
}

pub fn run(options: &Options) -> Result<ExitCode> {
    tools::build_daemon()?;
    let scratch = Scratch::new("failover")?;
    let (nodes, depth) = (options.nodes.to_string(), options.qd.to_string());
    let volume = format!("failover={}", options.volume_size);
    let shape = ["--nodes", &nodes, "--scheme", &options.scheme, "--device-size", &options.device_size];
    let rest = ["--volume", &volume, "--listen", &options.listen];
    let cluster = Cluster::start(scratch.path(), &[&shape[..], &rest[..]].concat())?;
    let load = ["--qd", &depth, "--pause", &options.pause];
    let mut load = Load::start(scratch.path(), &cluster.ready, 0, &load)?;
    let running = RUNNING + u64::from(options.qd);
    load.until_running(0, running)?;
    let mut figures = Figures::default();
    for round in 1..=options.rounds {
        one_round(round, options.only, &cluster, &mut load, &mut figures, running)
            .with_context(|| format!("round {round}; {}", cluster.words()))?;
    }
    let summary = load.end()?;
    print!("{figures}");
    println!("{} commands, {} errors, {} violations", summary.completed, summary.errors, summary.violations);
    summary.told.iter().for_each(|line| println!("  {line}"));
    drop(cluster);
    if summary.errors + summary.violations > 0 {
        return Ok(ExitCode::FAILURE);
    }
    scratch.passed();
    Ok(ExitCode::SUCCESS)
}

/// The owner goes, another one serves, it comes back.
fn one_round(
    round: u32,
    only: Option<Kind>,
    cluster: &Cluster,
    load: &mut Load,
    figures: &mut Figures,
    running: u64,
) -> Result<()> {
    let owner = cluster.owner()?;
    let kind = only.unwrap_or(match round {
        n if n.is_multiple_of(STOP_ONE_IN) => Kind::Stop,
        n if n.is_multiple_of(END_ONE_IN) => Kind::End,
        _ => Kind::Kill,
    });
    load.mark(&format!("{kind} {round}"))?;
    match kind {
        Kind::Stop => {
            cluster.order("stop", owner)?;
            std::thread::sleep(STOP);
            cluster.order("cont", owner)?;
        }
        Kind::End => cluster.order("end", owner)?,
        _ => cluster.order("kill", owner)?,
    }
    let done = load.status()?.completed;
    load.until_running(done, running)?;
    std::thread::sleep(AFTERMATH);
    let phase = load.mark(&format!("return {round}"))?;
    println!("round {round:3}  {kind:6} node {owner}: {phase}");
    figures.add(kind, &phase);
    if kind != Kind::Stop {
        cluster.order("start", owner)?;
    }
    until_alive(cluster, owner)?;
    std::thread::sleep(SETTLE);
    let phase = load.mark("quiet")?;
    println!("           return node {owner}: {phase}");
    figures.add(Kind::Return, &phase);
    Ok(())
}

fn until_alive(cluster: &Cluster, node: u32) -> Result<()> {
    let until = Instant::now() + LIMIT;
    while !cluster.all_see(node) {
        ensure!(Instant::now() < until, "node {node} is not back after {} s", LIMIT.as_secs());
        std::thread::sleep(PERIOD);
    }
    Ok(())
}
