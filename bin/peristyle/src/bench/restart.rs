//! `bench restart`: how long a start takes after kill -9, beside how much data there is.

use super::RestartOptions;
use super::daemon::{DEVICES, Daemon, Spawn};
use super::run::{Place, measure, verdict};
use crate::failure::Failure;
use crate::render::{json, table};
use peristyle_bench::load::{Length, Workload};
use peristyle_bench::pattern::Pattern;
use peristyle_rt::PollMode;
use serde_json::json;
use std::path::Path;
use std::time::{Duration, Instant};

/// What one command writes when the volume is filled, and random writes after it.
const FILL_BYTES: u32 = 512 << 10;
const BLOCK: u32 = 4096;
/// Columns of the plot.
const PLOT: usize = 40;

/// One amount of data.
struct Row {
    bytes: u64,
    starts: Vec<Duration>,
}

impl Row {
    fn median(&self) -> Duration {
        let mut starts = self.starts.clone();
        starts.sort_unstable();
        starts[starts.len() / 2]
    }
}

pub fn command(options: &RestartOptions) -> Result<(), Failure> {
    let root = match &options.dir {
        Some(dir) => dir.clone(),
        None => std::env::temp_dir().join(format!("peristyle-restart-{}", std::process::id())),
    };
    std::fs::create_dir_all(&root).map_err(Failure::failed)?;
    let rows: Result<Vec<Row>, Failure> =
        options.sizes.iter().map(|&bytes| row(options, bytes, &root)).collect();
    let rows = rows?;
    if options.dir.is_none() {
        let _ = std::fs::remove_dir_all(&root);
    }
    report(options, &rows);
    let longest = rows.iter().flat_map(|row| &row.starts).max().copied().unwrap_or_default();
    match options.bar {
        Some(bar) if longest > bar => Err(Failure::failed(format!(
            "a start took {} ms, more than {} ms",
            longest.as_millis(),
            bar.as_millis()
        ))),
        _ => Ok(()),
    }
}

/// Fills a volume of a store of its own, writes at random until nothing of the map is as it was filled, kills and starts.
fn row(options: &RestartOptions, bytes: u64, root: &Path) -> Result<Row, Failure> {
    let dir = root.join(format!("store-{bytes}"));
    let scheme = options.scheme;
    // Half as much again, for headers and what is overwritten meanwhile.
    let raw =
        bytes * 3 / 2 * scheme.width() as u64 / scheme.k() as u64 + (u64::from(options.churn) + 1024 << 20);
    let spawn = Spawn {
        device_bytes: (raw / DEVICES).next_multiple_of(1 << 20) + (64 << 20),
        memory: None,
        scheme,
        volume: ("restart", bytes),
        more: Vec::new(),
    };
    let start = Instant::now();
    let mut daemon = Daemon::spawn(&spawn, &dir)?;
    eprintln!("{} GiB: writing", bytes >> 30);
    write(&daemon, false, FILL_BYTES, bytes / u64::from(FILL_BYTES))?;
    write(&daemon, true, BLOCK, u64::from(options.churn) << 8)?;
    eprintln!("{} GiB: written in {} s", bytes >> 30, start.elapsed().as_secs());
    let mut starts = Vec::new();
    for _ in 0..options.starts {
        daemon.kill();
        daemon.ended()?;
        let start = Instant::now();
        daemon = Daemon::spawn(&spawn, &dir)?;
        starts.push(start.elapsed());
        // What the start found is not all that the next one finds.
        write(&daemon, true, BLOCK, 1000)?;
    }
    daemon.kill();
    daemon.ended()?;
    std::fs::remove_dir_all(&dir).map_err(Failure::failed)?;
    Ok(Row { bytes, starts })
}

fn write(daemon: &Daemon, random: bool, block_bytes: u32, count: u64) -> Result<(), Failure> {
    let place = Place { poll: PollMode::Adaptive, ..Place::of(&daemon.target) };
    let workload = Workload {
        block_bytes,
        pattern: if random { Pattern::Random } else { Pattern::Sequential },
        read_share: 0,
        depth: if random { 32 } else { 8 },
        length: Length::Count(count),
        ..Workload::default()
    };
    verdict(&measure(&place, &workload)?)
}

fn report(options: &RestartOptions, rows: &[Row]) {
    let ms = |time: &Duration| time.as_secs_f64() * 1e3;
    if options.json {
        let rows: Vec<_> = rows
            .iter()
            .map(|row| {
                let starts: Vec<f64> = row.starts.iter().map(ms).collect();
                json!({"bytes": row.bytes, "start_ms": starts, "median_ms": ms(&row.median())})
            })
            .collect();
        print!("{}", json(&json!({"scheme": options.scheme.to_string(), "rows": rows})));
        return;
    }
    let longest = rows.iter().map(|row| ms(&row.median())).fold(1.0, f64::max);
    let lines = rows.iter().map(|row| {
        let starts: Vec<String> = row.starts.iter().map(|start| format!("{:.0}", ms(start))).collect();
        let bar = "#".repeat((ms(&row.median()) / longest * PLOT as f64).round() as usize);
        let gib = format!("{:.1}", row.bytes as f64 / (1u64 << 30) as f64);
        vec![gib, format!("{:.0}", ms(&row.median())), bar, starts.join(" ")]
    });
    print!("{}", table(&["GiB written", "ms to ready", "", "starts"], &[0, 1], lines));
}
