//! `bench series`: the 42 tests over a prepared data set, scheme by scheme, and what came out so far on disk.

mod options;
mod plan;
mod results;

pub use options::SeriesOptions;
pub use results::unlike;

use super::daemon::{Daemon, Spawn};
use super::echo::{Shape, echo};
use super::run::{FILL_BYTES, Look, Place, fill, look, measure, measure_live, verdict};
use crate::failure::Failure;
use options::Settings;
use peristyle_base::Scheme;
use peristyle_base::units::format_bytes;
use peristyle_bench::load::{Length, Region, Workload, depth_max};
use peristyle_bench::pattern::Pattern;
use peristyle_bench::report::Report;
use peristyle_bench::series::{Sample, Search, Test, tests};
use peristyle_rt::PollMode;
use peristyle_rt::uring::free_bytes;
use results::{Results, Row};
use std::path::{Path, PathBuf};
use std::time::Duration;

const CHURN_DEPTH: u32 = 32;
/// Round trips of an echo beside each size.
const ECHO_ROUNDS: u32 = 2000;
/// A data set of a store of our own takes no more than this share of what its file system has free.
const FREE_SHARE: u64 = 2;
/// What a run that saw no command end becomes, and how often.
const LONGER_FACTOR: u32 = 4;
const LONGER_TURNS: u32 = 5;
/// Requests of one depth of the largest size need a place each.
const DATA_MIN: u64 = 128 << 20;

pub fn command(options: &SeriesOptions) -> Result<(), Failure> {
    if options.plan.is_some() && options.class.is_none() {
        return plan::list(options);
    }
    let path = match &options.plan {
        Some(plan) => plan::cell(plan, options)?,
        None => options.out.clone(),
    };
    let tests: Vec<Test> = tests().filter(|test| options.wants(&test.to_string())).collect();
    if tests.is_empty() {
        return Err(Failure::usage("--only: no test has such a name"));
    }
    let mut results = Results::open(&path, options.again)?;
    match &options.target {
        Some(_) => {
            let place = options.place();
            let data = options.data().min(look(&place)?.volume_bytes);
            one(options, &place, &options.label(), data, &tests, &mut results)?;
        }
        None => {
            for scheme in &options.scheme {
                own(options, *scheme, &tests, &mut results)?;
            }
        }
    }
    print!("{}", results.shown(options.json));
    Ok(())
}

/// A series on a store of its own, which goes afterwards.
fn own(
    options: &SeriesOptions,
    scheme: Scheme,
    tests: &[Test],
    results: &mut Results,
) -> Result<(), Failure> {
    let root = options.dir.clone().unwrap_or_else(std::env::temp_dir);
    std::fs::create_dir_all(&root).map_err(Failure::failed)?;
    let free = free_bytes(&root).map_err(Failure::failed)?;
    let data = options.data().min(data_within(free / FREE_SHARE, scheme));
    let dir = root.join(format!("peristyle-series-{}-{scheme}", std::process::id()));
    let spawn = Spawn {
        device_bytes: device_bytes(data, scheme),
        memory: None,
        scheme,
        volume: ("series", data),
        more: options.daemon_options(),
    };
    let daemon = Daemon::spawn(&spawn, &dir)?;
    let place = Place { target: daemon.target.clone(), ..options.place() };
    let result = one(options, &place, &scheme.to_string(), data, tests, results);
    drop(daemon);
    // What is left of it can be removed by hand; the figures are there.
    let _ = std::fs::remove_dir_all(&dir);
    result
}

/// Of each device: half as much again as the data needs, for headers, what is overwritten, and room to collect.
fn device_bytes(data: u64, scheme: Scheme) -> u64 {
    let raw = data / 2 * 3 / scheme.k() as u64 * scheme.width() as u64;
    (raw / super::daemon::DEVICES).next_multiple_of(1 << 20) + (512 << 20)
}

/// The data set whose devices have so many bytes together.
fn data_within(bytes: u64, scheme: Scheme) -> u64 {
    let devices = bytes.saturating_sub(super::daemon::DEVICES * (513 << 20));
    (devices / 3 * 2 / scheme.width() as u64 * scheme.k() as u64).max(DATA_MIN) / FILL_BYTES as u64
        * u64::from(FILL_BYTES)
}

fn one(
    options: &SeriesOptions,
    place: &Place,
    label: &str,
    data: u64,
    tests: &[Test],
    results: &mut Results,
) -> Result<(), Failure> {
    let settings = options.settings(data);
    let asked = options.data();
    if data < asked {
        eprintln!(
            "{label}: a data set of {} in place of {}: there is no room for more",
            format_bytes(data),
            format_bytes(asked)
        );
    }
    let series = results.series(label, &settings)?;
    let left: Vec<Test> = tests.iter().copied().filter(|test| !series.has(*test)).collect();
    if left.is_empty() {
        eprintln!("{label}: all {} tests are there", tests.len());
        return Ok(());
    }
    if !options.prepared {
        prepare(place, label, &settings)?;
    }
    let target = look(place)?;
    for (n, test) in left.iter().enumerate() {
        let what = format!("{label} {test} ({} of {})", n + 1, left.len());
        let row = measured(place, &target, *test, &settings, &options.cores, &what)?;
        if options.say {
            eprintln!("{what}: depth {}, {:.0} IOPS, mean {:.1} us", row.depth, row.iops, row.mean_us);
        }
        results.add(label, row)?;
    }
    Ok(())
}

/// Writes the data set from end to end, and then part of it again at random.
fn prepare(place: &Place, label: &str, settings: &Settings) -> Result<(), Failure> {
    fill(place, settings.data_bytes, label)?;
    let count = settings.data_bytes / 4096 * u64::from(settings.churn_percent) / 100;
    if count == 0 {
        return Ok(());
    }
    let churn = Workload {
        block_bytes: 4096,
        pattern: Pattern::Random,
        depth: CHURN_DEPTH,
        read_share: 0,
        length: Length::Count(count),
        region: Region { offset: 0, bytes: settings.data_bytes },
        ..Workload::default()
    };
    verdict(&measure_live(place, &churn, &format!("{label} overwriting"))?)
}

/// Looks for the depth, then measures at it.
fn measured(
    place: &Place,
    target: &Look,
    test: Test,
    settings: &Settings,
    cores: &[usize],
    what: &str,
) -> Result<Row, Failure> {
    let probe = settings.probe();
    let base = Workload {
        warmup: probe / 5,
        length: Length::Time(probe),
        region: Region { offset: 0, bytes: settings.data_bytes },
        ..Workload::default()
    };
    let most = settings.qd_max.min(depth_max(test.bytes, target.transfer_bytes_max, target.entries_max));
    let mut search = Search::new(test.depth_max(most), settings.base_turns, settings.resolution);
    while let Some(depth) = search.next() {
        let report = run(place, &test.workload(&base, depth), "")?;
        search.handle(depth, Sample::of(&report.all()));
    }
    let length = Length::Time(settings.runtime());
    let workload = Workload { length, ..test.workload(&base, search.depth()) };
    let mut reports = Vec::new();
    for _ in 0..settings.repeat {
        reports.push(run(place, &workload, what)?);
    }
    let floor = echo(Shape::of(test.write, test.bytes), ECHO_ROUNDS, 1, cores).map_err(Failure::failed)?;
    Ok(Row::new(test, &search, &reports, &floor))
}

/// Once, or again for longer where no command ended: one figure at least.
fn run(place: &Place, workload: &Workload, live: &str) -> Result<Report, Failure> {
    let mut workload = workload.clone();
    for _ in 0..LONGER_TURNS {
        let report =
            if live.is_empty() { measure(place, &workload)? } else { measure_live(place, &workload, live)? };
        verdict(&report)?;
        if report.all().latency.count() > 0 {
            return Ok(report);
        }
        if let Length::Time(time) = &mut workload.length {
            *time *= LONGER_FACTOR;
        }
    }
    Err(Failure::failed("no command ended in time: give --probe and --runtime more"))
}

impl SeriesOptions {
    fn place(&self) -> Place {
        let cores: Vec<usize> = self.cores.get(1).copied().into_iter().collect();
        let target = self.target.clone().unwrap_or_else(|| "tcp://127.0.0.1:0".parse().expect("an address"));
        Place { nsids: self.volume.into_iter().collect(), cores, poll: PollMode::Busy, ..Place::of(&target) }
    }
}

/// Where results of a class lie.
fn record_path(plan: &Path, class: &str, nodes: u32, scheme: &str) -> PathBuf {
    let folder = plan.parent().unwrap_or(Path::new(".")).join("record").join(class);
    folder.join(format!("series-{nodes}n-{scheme}.json"))
}

fn seconds(time: Duration) -> f64 {
    time.as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_data_set_fits_where_it_is_put() {
        for scheme in ["1+1", "2+2", "4+2"] {
            let scheme: Scheme = scheme.parse().unwrap();
            let free = 40u64 << 30;
            let data = data_within(free, scheme);
            let devices = device_bytes(data, scheme) * super::super::daemon::DEVICES;
            assert!(devices <= free && devices > free / 10 * 9, "{scheme}: {devices}");
            assert_eq!(data % u64::from(FILL_BYTES), 0);
        }
    }
}
