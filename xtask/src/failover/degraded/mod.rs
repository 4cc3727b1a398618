//! `cargo xtask degraded`: what a host gets of a development cluster of which one node is away, beside what it gets of all of them.

mod bench;
mod figures;

use super::cluster::{Cluster, Counters};
use super::{LIMIT, until_alive};
use crate::e2e::scratch::Scratch;
use crate::tools;
use anyhow::{Context, Result, ensure};
use bench::{Load, Measured, cores};
use clap::Args;
use figures::Figures;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// No column was made anew or moved for so long: it is measured.
const QUIET: Duration = Duration::from_secs(3);
/// Moves that even out use are not waited for any longer; they are counted.
const EVEN_LIMIT: Duration = Duration::from_secs(20);
/// Each look at the cluster takes two programs for each node.
const LOOK: Duration = Duration::from_millis(500);
/// The open loop begins this part of what the healthy cluster does in the closed one: a lone command costs more than one of many, so
/// that takes about half of the cores.
const RATE_SHARE: f64 = 0.15;
/// Below the limit of a queue; who is late waits, and that counts.
const OPEN_DEPTH: u32 = 100;

#[derive(Args, Debug, Clone)]
pub struct Options {
    /// With a node away, each between two with all of them.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Of each measurement; there are two in a turn.
    #[arg(long, default_value_t = 8)]
    seconds: u64,
    /// Commands in flight of the closed loop.
    #[arg(long, default_value_t = 32)]
    qd: u32,
    /// Commands a second of the open loop [default: 0.15 of what the healthy cluster does in the closed one].
    #[arg(long)]
    rate: Option<f64>,
    #[arg(long, default_value_t = 6)]
    nodes: u16,
    /// Of the cluster.
    #[arg(long, default_value = "4+2")]
    scheme: String,
    /// Of each node's device, a sparse file.
    #[arg(long, default_value = "2GiB")]
    device_size: String,
    /// Written from end to end first.
    #[arg(long, default_value = "512MiB")]
    volume_size: String,
    /// First of the cluster's ports.
    #[arg(long, default_value = "127.0.0.1:4420")]
    listen: String,
    /// The figures as one JSON document in the last line, in place of the table.
    #[arg(long)]
    json: bool,
}

/// What was measured with all nodes, or without one.
pub struct Turn {
    pub closed: Part,
    pub open: Part,
}

/// One loop of a turn.
pub struct Part {
    pub measured: Measured,
    /// What the nodes counted meanwhile.
    pub counted: Counters,
    /// Part of all cores' time that was in use, by whomever.
    pub cores: f64,
}

pub fn run(options: &Options) -> Result<ExitCode> {
    tools::build_daemon()?;
    let scratch = Scratch::new("degraded")?;
    let nodes = options.nodes.to_string();
    let volume = format!("degraded={}", options.volume_size);
    let shape = ["--nodes", &nodes, "--scheme", &options.scheme, "--device-size", &options.device_size];
    let rest = ["--volume", &volume, "--listen", &options.listen];
    let cluster = Cluster::start(scratch.path(), &[&shape[..], &rest[..]].concat())?;
    let figures = all_rounds(options, &cluster).with_context(|| cluster.words())?;
    match options.json {
        true => println!("{}", figures.json()),
        false => print!("{figures}"),
    }
    drop(cluster);
    scratch.passed();
    Ok(ExitCode::SUCCESS)
}

fn all_rounds(options: &Options, cluster: &Cluster) -> Result<Figures> {
    let mut load = Load::new(cluster, options.qd, options.seconds);
    load.fill()?;
    quiet(cluster, None)?;
    // Not counted: it tells the rate, and what was only just filled is sealed and cached behind it.
    let rate = load.closed()?.all.iops * RATE_SHARE;
    load.rate = options.rate.unwrap_or(rate.round());
    let mut figures = Figures::new(options.qd, load.rate, turn(&load, cluster, None)?);
    for round in 1..=options.rounds {
        let owner = cluster.owner()?;
        let away = victim(&cluster.numbers(), owner, round);
        cluster.order("kill", away)?;
        quiet(cluster, Some(away))?;
        let degraded = turn(&load, cluster, Some(away)).with_context(|| format!("without node {away}"))?;
        cluster.order("start", away)?;
        until_alive(cluster, away)?;
        quiet(cluster, None)?;
        let said = figures.add(away, degraded, turn(&load, cluster, None)?);
        if !options.json {
            println!("round {round:2}  {said}");
        }
    }
    Ok(figures)
}

/// Another one each round, never the owner: its absence is a failover, which `cargo xtask failover` measures.
fn victim(nodes: &[u32], owner: u32, round: u32) -> u32 {
    let others: Vec<u32> = nodes.iter().copied().filter(|&node| node != owner).collect();
    others[(round as usize - 1) % others.len()]
}

fn turn(load: &Load<'_>, cluster: &Cluster, away: Option<u32>) -> Result<Turn> {
    let part = |measure: &dyn Fn() -> Result<Measured>| {
        let (counters, busy) = (cluster.counters(away)?, cores()?);
        let measured = measure()?;
        let part = Part {
            measured,
            counted: cluster.counters(away)?.since(&counters),
            cores: cores()?.busy_since(&busy),
        };
        ensure!(
            away.is_none() || part.counted.degraded_reads > 0,
            "no read needed the node that is away: this measures nothing"
        );
        Ok(part)
    };
    Ok(Turn { closed: part(&|| load.closed())?, open: part(&|| load.open())? })
}

/// Waits until nothing is made anew or moved, and all nodes but the one that is away see who is there.
fn quiet(cluster: &Cluster, away: Option<u32>) -> Result<()> {
    let begun = Instant::now();
    let (mut since, mut changed) = (begun, None);
    loop {
        let now = cluster.at_rest(away);
        if now.is_none() || now != changed {
            (since, changed) = (Instant::now(), now);
        }
        if changed.is_some() && (since.elapsed() >= QUIET || begun.elapsed() >= EVEN_LIMIT) {
            return Ok(());
        }
        ensure!(begun.elapsed() < LIMIT, "the cluster is not at rest after {} s", LIMIT.as_secs());
        std::thread::sleep(LOOK);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nodes_that_go_take_turns_and_the_owner_never_goes() {
        let away: Vec<u32> = (1..=7).map(|round| victim(&[1, 2, 3, 4, 5, 6], 3, round)).collect();
        assert_eq!(away, [1, 2, 4, 5, 6, 1, 2]);
    }
}
