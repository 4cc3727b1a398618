//! One scheme and pattern: what was measured of it.

use super::AmplificationOptions;
use super::store::{Counts, Messages, Store};
use crate::bench::beside;
use crate::bench::echo::{Shape, echo};
use crate::bench::run::{Place, measure, measure_some, verdict};
use crate::failure::Failure;
use peristyle_base::{Histogram, Scheme};
use peristyle_bench::amplification::{Code, log_write_alone};
use peristyle_bench::load::{Length, Workload};
use peristyle_bench::report::Report;
use peristyle_bench::series::Test;
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

const ECHO_ROUNDS: u32 = 4000;
/// The p99 of a deeper run may be so many times the least that was seen.
const P99_FACTOR: f64 = 2.0;

#[derive(Serialize, Clone, Debug)]
pub struct Cell {
    pub scheme: String,
    #[serde(skip)]
    pub code: (u32, u32),
    /// Of the cluster, with one device each; 1: a node by itself.
    pub nodes: u32,
    pub test: String,
    pub write: bool,
    pub bytes: u32,
    pub alone: Side,
    pub deep: Side,
    /// A request of as many bytes to a device by itself, at depth 1; a write is durable as a column's is.
    pub device: Latency,
    /// As many bytes over TCP and back.
    pub echo: Latency,
    /// As many as a column has, over TCP to another node and back.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub echo_between: Option<Latency>,
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
    /// Of a cluster.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub between: Option<BetweenNodes>,
    pub latency: Latency,
    /// Core-seconds of work per million requests.
    pub target_core_s: f64,
    pub generator_core_s: f64,
}

/// What goes between nodes for a request of the host, and beside it.
#[derive(Serialize, Clone, Debug, Default)]
pub struct BetweenNodes {
    /// Requests that read columns, that append to them, and the others to columns (extents that are made, sealed, freed).
    pub reads: f64,
    pub appends: f64,
    pub others: f64,
    /// All of these, and their answers.
    pub messages: f64,
    /// Of these messages, per byte of the host.
    pub bytes: f64,
    /// … by the kind of the request, messages per request and bytes per byte.
    pub kinds: BTreeMap<String, KindOfMessage>,
    /// Pings, probes and leases, whatever hosts do: messages and bytes of all nodes each second.
    pub watch_messages_s: f64,
    pub watch_bytes_s: f64,
}

#[derive(Serialize, Clone, Copy, Debug, Default)]
pub struct KindOfMessage {
    pub messages: f64,
    pub bytes: f64,
}

/// Kinds of requests that have nothing to do with what hosts do.
const WATCH: [&str; 4] = ["ping", "probe", "lease", "pass"];

impl BetweenNodes {
    fn of(since: &BTreeMap<String, Messages>, requests: f64, bytes: f64, seconds: f64) -> BetweenNodes {
        let mut sum = BetweenNodes::default();
        for (kind, messages) in since {
            let both = (messages.requests + messages.answers) as f64;
            if WATCH.contains(&kind.as_str()) {
                sum.watch_messages_s += both / seconds;
                sum.watch_bytes_s += messages.bytes as f64 / seconds;
                continue;
            }
            let asked = match kind.as_str() {
                "read" => &mut sum.reads,
                kind if kind.starts_with("append") => &mut sum.appends,
                _ => &mut sum.others,
            };
            *asked += messages.requests as f64 / requests;
            let its = KindOfMessage { messages: both / requests, bytes: messages.bytes as f64 / bytes };
            sum.messages += its.messages;
            sum.bytes += its.bytes;
            sum.kinds.insert(kind.clone(), its);
        }
        sum
    }
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

impl Cell {
    /// Devices and the network by themselves, one behind the other.
    pub fn floor(&self) -> Latency {
        let one = self.device.plus(&self.echo);
        self.echo_between.map_or(one, |between| one.plus(&between))
    }

    pub fn measure(
        options: &AmplificationOptions,
        store: &Store,
        scheme: Scheme,
        test: Test,
        dir: &Path,
    ) -> Result<Cell, Failure> {
        let base =
            Workload { length: Length::Time(options.runtime), warmup: Duration::ZERO, ..Workload::default() };
        let what = format!("{scheme} {test}");
        let place = &store.place(options)?;
        let pattern = test.workload(&base, 1).pattern;
        let device = beside::file(&dir.join("floor"), test.write, test.bytes, pattern, options.runtime)?;
        let round_trip = echo(Shape::of(test.write, test.bytes), ECHO_ROUNDS, 1, &options.cores);
        let round_trip = round_trip.map_err(Failure::failed)?;
        let code = Code { k: scheme.k() as u32, m: scheme.m() as u32 };
        let between = options.nodes.map(|_| echo_between(options, test, code)).transpose()?;
        let alone = side(store, place, &test.workload(&base, 1), &what)?;
        let depth = match options.qd {
            Some(depth) => depth.min(test.depth_max(depth)),
            None => depth_within(options, place, test, &base, alone.latency.p99)?,
        };
        let deep = side(store, place, &test.workload(&base, depth), &what)?;
        let work_us = alone.target_core_s + alone.generator_core_s;
        let mhz = crate::bench::machine::describe()["mhz"].as_f64();
        Ok(Cell {
            scheme: scheme.to_string(),
            code: (code.k, code.m),
            nodes: options.nodes.map_or(1, u32::from),
            test: test.to_string(),
            write: test.write,
            bytes: test.bytes,
            // Core-seconds per million are microseconds per request.
            cpu_share: work_us / alone.latency.mean.max(1e-3),
            alone,
            deep,
            device: Latency::of(&device),
            echo: Latency::of(&round_trip),
            echo_between: between,
            ghz: mhz.map(|mhz| mhz / 1e3),
        })
    }
}

/// A read of a column, or the largest append of a write that is alone.
fn echo_between(options: &AmplificationOptions, test: Test, code: Code) -> Result<Latency, Failure> {
    let cost = log_write_alone(code, test.bytes);
    let column = cost.write_bytes * f64::from(test.bytes) / cost.writes;
    let bytes = if test.write { column.ceil() as u32 } else { test.bytes };
    let times = echo(Shape::of(test.write, bytes), ECHO_ROUNDS, 1, &options.cores);
    Ok(Latency::of(&times.map_err(Failure::failed)?))
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

fn side(store: &Store, place: &Place, workload: &Workload, what: &str) -> Result<Side, Failure> {
    let (before, start) = (store.counts()?, Instant::now());
    let report = measure_some(place, workload, &format!("{what} depth {}", workload.depth))?;
    let after = store.counts()?;
    let side = Side::of(workload.depth, &report, &before, &after);
    let all = report.all();
    let between = |since: &BTreeMap<String, Messages>| {
        let seconds = start.elapsed().as_secs_f64();
        BetweenNodes::of(since, all.latency.count() as f64, all.bytes as f64, seconds)
    };
    let is_cluster = matches!(store, Store::Many(_));
    Ok(Side { between: is_cluster.then(|| between(&after.between_since(&before))), ..side })
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
            between: None,
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
            nodes: 1,
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
            echo_between: None,
            cpu_share: 0.25,
            ghz: Some(2.5),
        }
    }

    /// The same of six nodes.
    pub fn cell_of_six(write: bool) -> Cell {
        let mut cell = Cell { nodes: 6, echo_between: Some(cell(false).echo), ..cell(write) };
        let kind = if write { "append user" } else { "read" };
        let since = [
            (kind.to_owned(), Messages { requests: 250, answers: 250, bytes: 2_077_000 }),
            ("seal".to_owned(), Messages { requests: 1, answers: 1, bytes: 124 }),
            ("ping".to_owned(), Messages { requests: 30, answers: 30, bytes: 6000 }),
        ];
        cell.alone.between = Some(BetweenNodes::of(&since.into(), 100.0, 409_600.0, 0.5));
        cell.deep.between = cell.alone.between.clone();
        cell
    }

    #[test]
    fn counts_are_per_request() {
        let counts = Counts { writes: 8, write_bytes: 16384, busy_ns: 4_000_000, ..Counts::default() };
        let mut report = Report { elapsed: Duration::from_secs(1), ..Report::default() };
        for _ in 0..4 {
            report.record(peristyle_bench::report::Kind::Write, 4096, 1000, Default::default());
        }
        let side = Side::of(1, &report, &Counts::default(), &counts);
        assert_eq!((side.device_writes, side.device_write_bytes, side.target_core_s), (2.0, 1.0, 1000.0));
    }

    #[test]
    fn what_goes_between_nodes_for_hosts_is_apart_from_what_always_goes() {
        let between = cell_of_six(true).alone.between.unwrap();
        assert_eq!((between.reads, between.appends, between.others), (0.0, 2.5, 0.01));
        assert_eq!(between.messages, 5.02);
        assert!((between.bytes - 2_077_124.0 / 409_600.0).abs() < 1e-9);
        assert_eq!((between.watch_messages_s, between.watch_bytes_s), (120.0, 12000.0));
        assert_eq!(between.kinds.keys().collect::<Vec<_>>(), ["append user", "seal"]);
    }

    #[test]
    fn latencies_are_compared_figure_by_figure() {
        let cell = cell(true);
        assert_eq!(cell.alone.latency.over(&cell.device.plus(&cell.echo)), [1.5; 4]);
    }
}
