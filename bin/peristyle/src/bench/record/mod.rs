//! `bench record`: a set of figures of one machine and one build, to be kept and compared.

mod workloads;

use super::daemon::{Daemon, Spawn, one_reactor};
use super::echo::{Shape, echo};
use super::run::{Place, figures_identity, fill, measure_live, verdict};
use super::{machine, time};
use crate::failure::Failure;
use crate::render::{json, table};
use clap::Args;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use workloads::{Load, Store};

pub const FORMAT: u64 = 1;
const ECHO_ROUNDS: u32 = 5000;

/// Measures the canonical loads on stores of its own, and keeps the figures with the machine and the commit
///
/// Every load runs once in each round, beside an echo of the same sizes. `bench compare` tells two records apart.
#[derive(Args, Debug, Clone)]
#[command(after_help = "\
Examples:
  peristyle bench record --cores 0,1 --out bench/record/vm-2core-file
  peristyle bench record --workloads mine.toml --repeat 9 --json")]
pub struct RecordOptions {
    /// Folder for a file named by date and commit [default: nothing is kept]
    #[arg(long, value_name = "PATH")]
    pub out: Option<PathBuf>,
    /// Stores and loads, as in bench/workloads/canonical.toml [default: that]
    #[arg(long, value_name = "FILE")]
    pub workloads: Option<PathBuf>,
    /// Rounds
    #[arg(long, default_value_t = 5, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=99))]
    pub repeat: u32,
    /// Of each load in each round
    #[arg(long, default_value = "1s", value_name = "TIME", value_parser = time)]
    pub runtime: Duration,
    /// Cores of target and generator [default: not pinned]
    #[arg(long, value_delimiter = ',', value_name = "TARGET,GENERATOR")]
    pub cores: Vec<usize>,
    #[arg(long)]
    pub json: bool,
}

/// One load or echo: its runs, one after the other.
struct Entry {
    name: String,
    identity: Value,
    runs: Vec<BTreeMap<&'static str, f64>>,
}

pub fn command(options: &RecordOptions) -> Result<(), Failure> {
    let (stores, loads) = workloads::read(options.workloads.as_deref(), options.runtime)?;
    let mut entries = Vec::new();
    for store in &stores {
        entries.extend(of_store(options, store, &loads)?);
    }
    let document = json!({
        "format": FORMAT,
        "kind": "record",
        "machine": machine::describe(),
        "commit": commit(),
        "entries": entries.iter().map(Entry::json).collect::<Vec<Value>>(),
    });
    if let Some(folder) = &options.out {
        let path = keep(folder, &document)?;
        eprintln!("kept in {}", path.display());
    }
    match options.json {
        true => print!("{}", json(&document)),
        false => print!("{}", text(&entries)),
    }
    Ok(())
}

fn of_store(options: &RecordOptions, store: &Store, loads: &[Load]) -> Result<Vec<Entry>, Failure> {
    let dir = std::env::temp_dir().join(format!("peristyle-record-{}-{}", std::process::id(), store.scheme));
    let spawn = Spawn {
        device_bytes: store.device_bytes,
        memory: store.memory,
        scheme: store.scheme,
        volume: ("record", store.volume_bytes),
        more: one_reactor(&options.cores),
    };
    let daemon = Daemon::spawn(&spawn, &dir)?;
    let place =
        Place { cores: options.cores.get(1).copied().into_iter().collect(), ..Place::of(&daemon.target) };
    fill(&place, store.volume_bytes, &store.name)?;
    let mut entries: Vec<Entry> = loads.iter().map(|load| Entry::of(store, load)).collect();
    for round in 1..=options.repeat {
        for (load, entry) in loads.iter().zip(&mut entries) {
            let what = format!("{} ({round} of {})", entry.name, options.repeat);
            entry.runs.push(run(options, &place, load, &what)?);
        }
    }
    drop(daemon);
    // The figures are there; a store that is left can be removed by hand.
    let _ = std::fs::remove_dir_all(&dir);
    Ok(entries)
}

fn run(
    options: &RecordOptions,
    place: &Place,
    load: &Load,
    what: &str,
) -> Result<BTreeMap<&'static str, f64>, Failure> {
    let w = &load.workload;
    let shape = Shape::of(w.read_share < 50, w.block_bytes);
    let floor = echo(shape, ECHO_ROUNDS, 1, &options.cores).map_err(Failure::failed)?;
    let report = measure_live(place, w, what)?;
    verdict(&report)?;
    let all = report.all();
    let us = |share| all.latency.quantile(share) as f64 / 1e3;
    let commands = all.latency.count().max(1) as f64;
    Ok(BTreeMap::from([
        ("iops", all.per_second(report.elapsed)),
        ("mean_us", all.latency.mean() / 1e3),
        ("p50_us", us(0.5)),
        ("p99_us", us(0.99)),
        ("p99_9_us", us(0.999)),
        ("echo_p50_us", floor.quantile(0.5) as f64 / 1e3),
        ("generator_us", report.busy.as_nanos() as f64 / 1e3 / commands),
    ]))
}

impl Entry {
    fn of(store: &Store, load: &Load) -> Entry {
        let mut identity = figures_identity(&load.workload);
        identity["scheme"] = store.scheme.to_string().into();
        identity["memory_devices"] = store.memory.into();
        identity["device_bytes"] = store.device_bytes.into();
        identity["volume_bytes"] = store.volume_bytes.into();
        Entry { name: format!("{} {}", store.name, load.name), identity, runs: Vec::new() }
    }
    fn json(&self) -> Value {
        json!({ "name": self.name, "identity": self.identity, "runs": self.runs })
    }
    /// Least, median and most.
    fn range(&self, figure: &str) -> [f64; 3] {
        let mut values: Vec<f64> = self.runs.iter().map(|run| run[figure]).collect();
        values.sort_by(f64::total_cmp);
        [values[0], values[values.len() / 2], values[values.len() - 1]]
    }
}

fn text(entries: &[Entry]) -> String {
    let header = ["", "IOPS", "least", "most", "p50", "p99", "p99.9", "echo p50", "of echo"];
    let right: Vec<usize> = (1..header.len()).collect();
    let lines = entries.iter().map(|entry| {
        let [least, iops, most] = entry.range("iops");
        let mut line = vec![entry.name.clone()];
        line.extend([iops, least, most].map(|n| format!("{n:.0}")));
        let times = ["p50_us", "p99_us", "p99_9_us", "echo_p50_us"].map(|figure| entry.range(figure)[1]);
        line.extend(times.map(|us| format!("{us:.1}")));
        line.push(format!("{:.2}", times[0] / times[3].max(1e-3)));
        line
    });
    table(&header, &right, lines) + "medians of the rounds, latency in microseconds\n"
}

/// The commit of the folder that this runs in, and whether it was changed since; unknown outside of a repository.
fn commit() -> String {
    let git = |args: &[&str]| {
        let output = Command::new("git").args(args).output().ok().filter(|output| output.status.success())?;
        Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    match git(&["rev-parse", "--short=10", "HEAD"]) {
        None => "unknown".into(),
        Some(commit) => match git(&["status", "--porcelain", "--untracked-files=no"]).as_deref() {
            Some("") => commit,
            _ => commit + "-changed",
        },
    }
}

fn keep(folder: &Path, document: &Value) -> Result<PathBuf, Failure> {
    let unix = document["machine"]["unix_time"].as_u64().unwrap_or(0);
    let name = format!("{}-{}.json", date(unix), document["commit"].as_str().unwrap_or("unknown"));
    let path = folder.join(name);
    let failed = |e: std::io::Error| Failure::failed(format!("{}: {e}", path.display()));
    std::fs::create_dir_all(folder).map_err(failed)?;
    let text = serde_json::to_string_pretty(document).expect("plain data") + "\n";
    std::fs::write(&path, text).map_err(failed)?;
    Ok(path)
}

/// YYYY-MM-DD, UTC. Howard Hinnant, "chrono-compatible low-level date algorithms".
fn date(unix: u64) -> String {
    let z = unix / 86_400 + 719_468;
    let (era, day_of_era) = (z / 146_097, z % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let mp = (5 * day_of_year + 2) / 153;
    let (day, month) = (day_of_year - (153 * mp + 2) / 5 + 1, if mp < 10 { mp + 3 } else { mp - 9 });
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        for (unix, text) in [
            (0, "1970-01-01"),
            (951_782_400, "2000-02-29"),
            (1_795_910_400, "2026-11-29"),
            (4_107_542_400, "2100-03-01"),
        ] {
            assert_eq!(date(unix), text);
        }
    }
}
