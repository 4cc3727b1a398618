//! One scheme and pattern: what was measured of it.

use super::AmplificationOptions;
use crate::bench::beside;
use crate::bench::daemon::Daemon;
use crate::bench::echo::{Shape, echo};
use crate::bench::run::{Place, measure, measure_some, verdict};
use crate::client::Client;
use crate::failure::Failure;
use peristyle_base::{Histogram, Scheme};
use peristyle_bench::load::{Length, Workload};
use peristyle_bench::report::Report;
use peristyle_bench::series::Test;
use peristyle_control::api::{Request, Response, StatsNode};
use serde::Serialize;
use std::path::Path;
use std::time::Duration;

const ECHO_ROUNDS: u32 = 4000;
/// The p99 of a deeper run may be so many times the least that was seen.
const P99_FACTOR: f64 = 2.0;

#[derive(Serialize, Clone, Debug)]
pub struct Cell {
    pub scheme: String,
    #[serde(skip)]
    pub code: (u32, u32),
    pub test: String,
    pub write: bool,
    pub bytes: u32,
    pub alone: Side,
    pub deep: Side,
    /// A request of as many bytes to a device by itself, at depth 1; a write is durable as a column's is.
    pub device: Latency,
    /// As many bytes over TCP and back.
    pub echo: Latency,
    /// Of target and generator, of the latency at depth 1.
    pub cpu_share: f64,
    /// Clock rate as the system tells it; on a virtual machine that may be nominal.
    pub ghz: Option<f64>,
}

/// One depth. Counts are per request of the host, bytes per byte of it.
#[derive(Serialize, Clone, Debug, Default)]
pub struct Side {
    pub depth: u32,
    pub requests: u64,
    pub iops: f64,
    pub device_reads: f64,
    pub device_writes: f64,
    pub device_read_bytes: f64,
    pub device_write_bytes: f64,
    /// NVMe/TCP PDUs, both ways.
    pub pdus: f64,
    pub network_bytes: f64,
    pub latency: Latency,
    /// Core-seconds of work per million requests.
    pub target_core_s: f64,
    pub generator_core_s: f64,
}

/// Microseconds.
#[derive(Serialize, Clone, Copy, Debug, Default)]
pub struct Latency {
    pub mean: f64,
    pub p50: f64,
    pub p99: f64,
    pub p99_9: f64,
}

impl Latency {
    fn of(histogram: &Histogram) -> Latency {
        let us = |share| histogram.quantile(share) as f64 / 1e3;
        Latency { mean: histogram.mean() / 1e3, p50: us(0.5), p99: us(0.99), p99_9: us(0.999) }
    }
    /// Figure by figure.
    pub fn over(&self, floor: &Latency) -> [f64; 4] {
        let ratio = |mine: f64, theirs: f64| mine / theirs.max(1e-3);
        [
            ratio(self.mean, floor.mean),
            ratio(self.p50, floor.p50),
            ratio(self.p99, floor.p99),
            ratio(self.p99_9, floor.p99_9),
        ]
    }
    /// One behind the other. Of quantiles it is a bound from above.
    pub fn plus(&self, other: &Latency) -> Latency {
        Latency {
            mean: self.mean + other.mean,
            p50: self.p50 + other.p50,
            p99: self.p99 + other.p99,
            p99_9: self.p99_9 + other.p99_9,
        }
    }
}

/// What the node has counted so far.
#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    reads: u64,
    read_bytes: u64,
    writes: u64,
    write_bytes: u64,
    busy_ns: u64,
}

fn parts<'a>(root: &'a StatsNode, name: &'a str) -> impl Iterator<Item = &'a StatsNode> {
    root.children.iter().filter(move |node| node.name == name).flat_map(|node| &node.children)
}

impl Counts {
    fn of(root: &StatsNode) -> Counts {
        let mut counts = Counts::default();
        for (name, value) in parts(root, "devices").flat_map(|device| &device.counters) {
            match name.as_str() {
                "reads" => counts.reads += value,
                "read_bytes" => counts.read_bytes += value,
                // Slots are zeroed before they are used, in the background; it is no write of a host's data.
                name if name.ends_with(".zero") || name.ends_with(".label") => {}
                name if name.starts_with("writes.") => counts.writes += value,
                name if name.starts_with("write_bytes.") => counts.write_bytes += value,
                _ => {}
            }
        }
        let busy = parts(root, "reactors").filter_map(|reactor| reactor.counters.get("busy_ns"));
        counts.busy_ns = busy.sum();
        counts
    }

    fn ask(daemon: &Daemon) -> Result<Counts, Failure> {
        match Client::connect(Some(daemon.admin.clone()))?.call(&Request::Stats)? {
            Response::Stats(stats) => Ok(Counts::of(&stats.root)),
            _ => Err(Failure::failed("the node answered something else than statistics")),
        }
    }
}

impl Cell {
    pub fn measure(
        options: &AmplificationOptions,
        daemon: &Daemon,
        place: &Place,
        scheme: Scheme,
        test: Test,
        dir: &Path,
    ) -> Result<Cell, Failure> {
        let base =
            Workload { length: Length::Time(options.runtime), warmup: Duration::ZERO, ..Workload::default() };
        let what = format!("{scheme} {test}");
        let pattern = test.workload(&base, 1).pattern;
        let device = beside::file(&dir.join("floor"), test.write, test.bytes, pattern, options.runtime)?;
        let round_trip = echo(Shape::of(test.write, test.bytes), ECHO_ROUNDS, 1, &options.cores);
        let round_trip = round_trip.map_err(Failure::failed)?;
        let alone = side(daemon, place, &test.workload(&base, 1), &what)?;
        let depth = depth_within(options, place, test, &base, alone.latency.p99)?;
        let deep = side(daemon, place, &test.workload(&base, depth), &what)?;
        let work_us = alone.target_core_s + alone.generator_core_s;
        let mhz = crate::bench::machine::describe()["mhz"].as_f64();
        Ok(Cell {
            scheme: scheme.to_string(),
            code: (scheme.k() as u32, scheme.m() as u32),
            test: test.to_string(),
            write: test.write,
            bytes: test.bytes,
            // Core-seconds per million are microseconds per request.
            cpu_share: work_us / alone.latency.mean.max(1e-3),
            alone,
            deep,
            device: Latency::of(&device),
            echo: Latency::of(&round_trip),
            ghz: mhz.map(|mhz| mhz / 1e3),
        })
    }
}

/// The largest depth, by doubling, at which the p99 stays within twice the least.
fn depth_within(
    options: &AmplificationOptions,
    place: &Place,
    test: Test,
    base: &Workload,
    p99_alone: f64,
) -> Result<u32, Failure> {
    let probe = Workload { length: Length::Time(options.runtime / 4), ..base.clone() };
    let (mut good, mut least) = (1, p99_alone);
    let most = test.depth_max(options.qd_max);
    while good < most {
        let depth = (good * 2).min(most);
        let report = measure(place, &test.workload(&probe, depth))?;
        verdict(&report)?;
        let p99 = Latency::of(&report.all().latency).p99;
        least = least.min(p99);
        if p99 > P99_FACTOR * least {
            break;
        }
        good = depth;
    }
    Ok(good)
}

fn side(daemon: &Daemon, place: &Place, workload: &Workload, what: &str) -> Result<Side, Failure> {
    let before = Counts::ask(daemon)?;
    let report = measure_some(place, workload, &format!("{what} depth {}", workload.depth))?;
    let after = Counts::ask(daemon)?;
    Ok(Side::of(workload.depth, &report, &before, &after))
}

impl Side {
    fn of(depth: u32, report: &Report, before: &Counts, after: &Counts) -> Side {
        let all = report.all();
        let (requests, bytes) = (all.latency.count() as f64, all.bytes as f64);
        let traffic = report.traffic;
        Side {
            depth,
            requests: all.latency.count(),
            iops: all.per_second(report.elapsed),
            device_reads: (after.reads - before.reads) as f64 / requests,
            device_writes: (after.writes - before.writes) as f64 / requests,
            device_read_bytes: (after.read_bytes - before.read_bytes) as f64 / bytes,
            device_write_bytes: (after.write_bytes - before.write_bytes) as f64 / bytes,
            pdus: (traffic.sent_pdus + traffic.received_pdus) as f64 / requests,
            network_bytes: (traffic.sent_bytes + traffic.received_bytes) as f64 / bytes,
            latency: Latency::of(&all.latency),
            target_core_s: (after.busy_ns - before.busy_ns) as f64 / 1e3 / requests,
            generator_core_s: report.busy.as_nanos() as f64 / 1e3 / requests,
        }
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use peristyle_base::Duration;

    pub fn cell(write: bool) -> Cell {
        let side = Side {
            depth: 1,
            requests: 100,
            iops: 1000.0,
            device_writes: 3.0,
            device_write_bytes: 6.0,
            ..Side::default()
        };
        let latency = |us| Latency { mean: us, p50: us, p99: us, p99_9: us };
        Cell {
            scheme: "4+2".into(),
            code: (4, 2),
            test: if write { "randwrite-4k" } else { "randread-4k" }.into(),
            write,
            bytes: 4096,
            alone: Side { latency: latency(60.0), ..side.clone() },
            deep: Side {
                depth: 32,
                latency: latency(90.0),
                device_writes: 0.2,
                device_write_bytes: 1.6,
                ..side
            },
            device: latency(30.0),
            echo: latency(10.0),
            cpu_share: 0.25,
            ghz: Some(2.5),
        }
    }

    #[test]
    fn counts_are_of_all_devices_without_zeroing_and_per_request() {
        let device = |name: &str| {
            StatsNode::new(name)
                .counter("reads", 5)
                .counter("read_bytes", 5 * 4096)
                .counter("writes.append user", 3)
                .counter("writes.slot table", 1)
                .counter("writes.zero", 100)
                .counter("write_bytes.append user", 8192)
                .counter("write_bytes.zero", 1 << 30)
        };
        let devices = StatsNode::new("devices").child(device("a")).child(device("b"));
        let reactors = StatsNode::new("reactors").child(StatsNode::new("0").counter("busy_ns", 4_000_000));
        let counts = Counts::of(&StatsNode::new("node").child(devices).child(reactors));
        assert_eq!((counts.reads, counts.writes, counts.write_bytes), (10, 8, 16384));
        let mut report = Report { elapsed: Duration::from_secs(1), ..Report::default() };
        for _ in 0..4 {
            report.record(peristyle_bench::report::Kind::Write, 4096, 1000, Default::default());
        }
        let side = Side::of(1, &report, &Counts::default(), &counts);
        assert_eq!((side.device_writes, side.device_write_bytes, side.target_core_s), (2.0, 1.0, 1000.0));
    }

    #[test]
    fn latencies_are_compared_figure_by_figure() {
        let cell = cell(true);
        assert_eq!(cell.alone.latency.over(&cell.device.plus(&cell.echo)), [1.5; 4]);
    }
}
