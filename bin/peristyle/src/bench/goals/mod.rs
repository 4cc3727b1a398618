//! `bench goals`: what the project wants of one node, beside the floors of the same minutes.

mod goal;

use super::daemon::{DEVICES, Daemon, Spawn, one_reactor};
use super::echo::{Shape, echo};
use super::run::{Place, fill, measure_some};
use super::{beside, machine, size64, time};
use crate::failure::Failure;
use crate::render::json;
use clap::Args;
use goal::{Goal, Reads, Writes};
use peristyle_base::{Histogram, Scheme};
use peristyle_bench::load::{Length, Workload};
use peristyle_bench::model::curve;
use peristyle_bench::pattern::Pattern;
use peristyle_bench::session::Digests;
use serde_json::json;
use std::path::{Path, PathBuf};
use std::time::Duration;

const BLOCK: u32 = 4096;
const MEMORY_DEVICES: usize = 2;
const DEEP: u32 = 32;
const ECHO_ROUNDS: u32 = 20_000;

/// The goals of one node, each beside its floor: IOPS per core, latency at depth 1, the tail, digests, erasure-coded writes
///
/// Two stores of its own, one after the other: 1+1 on devices in memory for reads, 4+2 on six files for writes. One reactor. Each turn
/// measures floors and figures one after the other, so that a slow minute hits both; medians of the turns count.
#[derive(Args, Debug, Clone)]
#[command(after_help = "\
Examples:
  peristyle bench goals --cores 0,1
  peristyle bench goals --cores 0,1 --turns 9 --json")]
pub struct GoalsOptions {
    #[arg(long, default_value_t = 5, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=99))]
    pub turns: u32,
    /// Of each figure in each turn
    #[arg(long, default_value = "500ms", value_name = "TIME", value_parser = time)]
    pub runtime: Duration,
    /// Bytes of each volume, which is written from end to end first
    #[arg(long, default_value = "512MiB", value_name = "SIZE", value_parser = size64)]
    pub data: u64,
    /// Folder for the stores [default: the system's temporary folder]
    #[arg(long, value_name = "PATH")]
    pub dir: Option<PathBuf>,
    /// Cores of target and generator [default: not pinned]
    #[arg(long, value_delimiter = ',', value_name = "TARGET,GENERATOR")]
    pub cores: Vec<usize>,
    /// Fail when a goal is missed
    #[arg(long)]
    pub bar: bool,
    #[arg(long)]
    pub json: bool,
}

pub fn command(options: &GoalsOptions) -> Result<(), Failure> {
    let root = options.dir.clone().unwrap_or_else(std::env::temp_dir);
    let dir = root.join(format!("peristyle-goals-{}", std::process::id()));
    std::fs::create_dir_all(&dir).map_err(Failure::failed)?;
    let before = machine::CoreTime::now();
    let turns = of_memory(options, &dir).and_then(|reads| Ok((reads, of_files(options, &dir)?)));
    // The figures are there; a store that is left can be removed by hand.
    let _ = std::fs::remove_dir_all(&dir);
    let ((knee, reads), writes) = turns?;
    let goals = goal::all(&reads, &writes, knee);
    let stolen_share = machine::CoreTime::now().stolen_share_since(before);
    if options.json {
        let goals: Vec<_> = goals.iter().map(Goal::json).collect();
        let machine = machine::describe();
        let document =
            json!({ "machine": machine, "stolen_share": stolen_share, "knee_depth": knee, "goals": goals });
        print!("{}", json(&document));
    } else {
        print!("{}", goal::text(&goals, knee));
        println!("the hypervisor took {:.1} % of the cores' time", stolen_share * 100.0);
    }
    let missed: Vec<&str> =
        goals.iter().filter(|goal| !goal.is_met()).map(|goal| goal.name.as_str()).collect();
    match options.bar && !missed.is_empty() {
        true => Err(Failure::failed(format!("missed: {}", missed.join("; ")))),
        false => Ok(()),
    }
}

/// A store that is filled, and where its load is made.
fn store(
    options: &GoalsOptions,
    dir: &Path,
    memory: Option<usize>,
    scheme: Scheme,
) -> Result<(Daemon, Place), Failure> {
    let devices = memory.map_or(DEVICES, |count| count as u64);
    let raw = options.data * 3 / scheme.k() as u64 * scheme.width() as u64;
    let spawn = Spawn {
        device_bytes: (raw / devices).next_multiple_of(1 << 20) + (256 << 20),
        memory,
        scheme,
        volume: ("goals", options.data),
        more: one_reactor(&options.cores),
    };
    let daemon = Daemon::spawn(&spawn, &dir.join(format!("store-{scheme}")))?;
    let place =
        Place { cores: options.cores.get(1).copied().into_iter().collect(), ..Place::of(&daemon.target) };
    fill(&place, options.data, &scheme.to_string())?;
    Ok((daemon, place))
}

fn load(options: &GoalsOptions, read_share: u8, depth: u32) -> Workload {
    Workload {
        block_bytes: BLOCK,
        read_share,
        depth,
        length: Length::Time(options.runtime),
        warmup: options.runtime / 10,
        ..Workload::default()
    }
}

fn round_trips(options: &GoalsOptions, write: bool) -> Result<Histogram, Failure> {
    echo(Shape::of(write, BLOCK), ECHO_ROUNDS, 1, &options.cores).map_err(Failure::failed)
}

/// Reads of devices in memory: the knee, and the turns.
fn of_memory(options: &GoalsOptions, dir: &Path) -> Result<(u32, Vec<Reads>), Failure> {
    let (_daemon, place) = store(options, dir, Some(MEMORY_DEVICES), "1+1".parse().expect("a scheme"))?;
    let knee = knee(options, &place)?;
    let mut turns = Vec::new();
    for turn in 1..=options.turns {
        let what = |name: &str| format!("{name} ({turn} of {})", options.turns);
        let echo = round_trips(options, false)?;
        let alone = measure_some(&place, &load(options, 100, 1), &what("reads, depth 1"))?;
        let below = measure_some(&place, &load(options, 100, knee / 2), &what("reads below the knee"))?;
        let deep = load(options, 100, DEEP);
        let digested = Workload { digests: Digests { header: true, data: true }, ..deep.clone() };
        let deep = measure_some(&place, &deep, &what("reads, depth 32"))?;
        let digested = measure_some(&place, &digested, &what("reads with digests"))?;
        turns.push(Reads { echo, alone, below, deep, digested });
    }
    Ok((knee, turns))
}

/// Of reads; at least 2, so that there is a depth below it.
fn knee(options: &GoalsOptions, place: &Place) -> Result<u32, Failure> {
    let mut closed = Vec::new();
    for depth in curve::depths(DEEP) {
        let report = measure_some(place, &load(options, 100, depth), &format!("reads, depth {depth}"))?;
        closed.push((depth, report.all().per_second(report.elapsed)));
    }
    let (depth, _) = curve::knee(&closed).expect("commands have ended at each depth");
    Ok(depth.max(2))
}

/// Writes to 4+2 on files, one at a time.
fn of_files(options: &GoalsOptions, dir: &Path) -> Result<Vec<Writes>, Failure> {
    let (_daemon, place) = store(options, dir, None, "4+2".parse().expect("a scheme"))?;
    let mut turns = Vec::new();
    for turn in 1..=options.turns {
        let echo = round_trips(options, true)?;
        let floor = |bytes, pattern| beside::file(&dir.join("floor"), true, bytes, pattern, options.runtime);
        let device = floor(BLOCK, Pattern::Random)?;
        let append = floor(2 * BLOCK, Pattern::Sequential)?;
        let what = format!("writes, depth 1 ({turn} of {})", options.turns);
        let writes = measure_some(&place, &load(options, 0, 1), &what)?;
        turns.push(Writes { echo, device, append, writes });
    }
    Ok(turns)
}
