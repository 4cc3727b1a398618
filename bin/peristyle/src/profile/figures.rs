//! What two snapshots of the counters say of the time between them. Pure: no node, no clock.

use super::shape::{PATHS, PathShape};
use super::snapshot::{Snapshot, Stages};
use peristyle_base::stage::StageSnapshot;
use serde::Serialize;

/// Little's law may be off by so much before it is called broken, and needs so many requests and so long a time to be.
pub const LITTLE_ERROR_MAX: f64 = 0.05;
const LITTLE_COUNT_MIN: u64 = 100;
const LITTLE_SECONDS_MIN: f64 = 1.0;

/// All paths, over one time.
#[derive(Clone, Debug, Serialize)]
pub struct Profile {
    pub interval_s: f64,
    pub since_start: bool,
    /// False: the node was built to count nothing.
    pub counted: bool,
    pub paths: Vec<PathFigures>,
}

/// A path's stages and what they make of the whole. Times are microseconds.
#[derive(Clone, Debug, Serialize)]
pub struct PathFigures {
    pub path: &'static str,
    pub bytes_per_s: f64,
    /// From one end to the other, measured by itself.
    pub total: Row,
    /// One after the other.
    pub stages: Vec<Row>,
    /// All stages' `per_command_us`.
    pub sum_us: f64,
    /// What the sum leaves of the mean of the whole: time between stages. Less than nothing where stages count more than
    /// the path's commands have spent in them.
    pub between_us: f64,
    /// All stages' `variance_share`. They would add up to 1 if stages were independent of each other and left no time
    /// between them: the rest is their covariance (twice) and that time.
    pub variance_sum: f64,
    /// The stage that has the most of the variance.
    pub variance_most: Option<String>,
    /// What the columns' stage consists of.
    pub inside: Vec<Row>,
    /// The slowest leg of each command: the columns' stage, once more, to stand beside the devices'.
    pub slowest: Row,
    pub devices: Vec<DeviceLeg>,
    /// Devices of other nodes: the network, and what it took there.
    pub remote: Vec<RemoteLeg>,
}

#[derive(Clone, Debug, Serialize)]
pub struct DeviceLeg {
    pub device: String,
    pub queue: Row,
    pub service: Row,
}

#[derive(Clone, Debug, Serialize)]
pub struct RemoteLeg {
    pub device: String,
    pub leg: Row,
}

/// One stage over the time.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Row {
    pub stage: String,
    pub count: u64,
    pub errors: u64,
    /// That left, each second.
    pub rate: f64,
    pub in_flight_now: u64,
    /// Mean over the time, of the integral.
    pub in_flight: f64,
    /// Those of them that waited; unknown where queue and service are not apart.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queue: Option<f64>,
    /// Of those that came through it.
    pub mean_us: f64,
    /// Of the last three whole seconds.
    pub mean_3s_us: f64,
    pub p50_us: f64,
    pub p95_us: f64,
    pub p99_us: f64,
    #[serde(rename = "p99.9_us")]
    pub p99_9_us: f64,
    pub max_us: f64,
    /// Its part of the mean of the path's commands: those that did not come through it count with nothing.
    pub per_command_us: f64,
    /// … as a share of the whole's mean.
    pub share: f64,
    /// What is left of a command's way when it comes in here: the sum of the means of this stage and the later ones. Of
    /// means only: percentiles do not add up.
    pub remaining_us: f64,
    /// Variance of what commands spend here over that of the whole.
    pub variance_share: f64,
    /// How far in flight = rate x latency is off, corrected for those in flight at both ends.
    pub little_error: f64,
    /// False: it is off, and there was enough to see it.
    pub little_holds: bool,
}

impl Profile {
    /// What happened between two snapshots; without `before`, since the start. `None`: the node was started anew between them.
    pub fn between(before: Option<&Snapshot>, after: &Snapshot) -> Option<Profile> {
        let (none, interval_s) = (Snapshot::default(), after.uptime_ms as f64 / 1000.0);
        let (before, interval_s) = match before {
            None => (&none, interval_s),
            Some(b) if b.at_ns < after.at_ns && b.uptime_ms <= after.uptime_ms => {
                (b, (after.at_ns - b.at_ns) as f64 / 1e9)
            }
            Some(_) => return None,
        };
        let paths = PATHS.iter().map(|shape| path(shape, before, after, interval_s)).collect();
        let since_start = before.at_ns == 0;
        Some(Profile { interval_s, since_start, counted: after.counted, paths })
    }

    /// Stages whose counts contradict each other, with their path's or device's name.
    pub fn broken_laws(&self) -> Vec<String> {
        let of_path = |p: &PathFigures| {
            let own = p.stages.iter().chain(&p.inside).chain([&p.total]);
            let own = own.map(|row| (row, row.stage.clone()));
            let legs = p.devices.iter().flat_map(|d| {
                [&d.queue, &d.service].map(|row| (row, format!("{} of {}", row.stage, d.device)))
            });
            let remote = p.remote.iter().map(|d| (&d.leg, format!("{} of {}", d.leg.stage, d.device)));
            own.chain(legs)
                .chain(remote)
                .filter(|(row, _)| !row.little_holds)
                .map(|(_, name)| name)
                .collect::<Vec<_>>()
        };
        let mut all: Vec<String> = self.paths.iter().flat_map(of_path).collect();
        all.sort();
        all.dedup();
        all
    }
}

/// The difference of a stage; empty if the node has no such stage.
fn difference(name: &str, before: &Stages, after: &Stages) -> StageSnapshot {
    match (before.get(name), after.get(name)) {
        (Some(b), Some(a)) => a.minus(b),
        (None, Some(a)) => a.clone(),
        (_, None) => StageSnapshot::default(),
    }
}

fn path(shape: &PathShape, before: &Snapshot, after: &Snapshot, seconds: f64) -> PathFigures {
    let stage = |name: &str| difference(name, &before.stages, &after.stages);
    let total = stage(shape.total);
    let devices = legs(shape, before, after, seconds);
    let mut stages: Vec<Row> = shape
        .stages
        .iter()
        .map(|s| {
            let mut row = part_of(&total, s.stage, &stage(s.stage), seconds);
            row.queue = Some(if s.waits { row.in_flight } else { 0.0 });
            if s.stage == shape.columns {
                row.queue = Some(devices.iter().map(|d| d.queue.in_flight).sum());
            }
            row
        })
        .collect();
    let mut remaining = 0.0;
    for row in stages.iter_mut().rev() {
        remaining += row.per_command_us;
        row.remaining_us = remaining;
    }
    let mut whole = part_of(&total, shape.total, &total, seconds);
    whole.remaining_us = whole.mean_us;
    whole.queue = Some(stages.iter().filter_map(|row| row.queue).sum());
    let most = stages.iter().max_by(|a, b| a.variance_share.total_cmp(&b.variance_share));
    let bytes = |s: &Snapshot| if shape.name == "read" { s.read_bytes } else { s.write_bytes };
    PathFigures {
        path: shape.name,
        bytes_per_s: per_second(bytes(after).saturating_sub(bytes(before)) as f64, seconds),
        sum_us: remaining,
        between_us: whole.mean_us - remaining,
        variance_sum: stages.iter().map(|row| row.variance_share).sum(),
        variance_most: most.filter(|row| row.variance_share > 0.0).map(|row| row.stage.clone()),
        inside: shape.inside.iter().map(|name| part_of(&total, name, &stage(name), seconds)).collect(),
        slowest: stages.iter().find(|row| row.stage == shape.columns).cloned().unwrap_or_default(),
        total: whole,
        stages,
        devices,
        remote: remote_legs(shape, before, after, seconds),
    }
}

fn legs(shape: &PathShape, before: &Snapshot, after: &Snapshot, seconds: f64) -> Vec<DeviceLeg> {
    let leg = |device: &(String, Stages)| {
        let row = |stage: &str| device_row(stage, device, before, seconds);
        let mut queue = row(shape.queue);
        queue.queue = Some(queue.in_flight);
        DeviceLeg { device: device.0.clone(), queue, service: Row { queue: Some(0.0), ..row(shape.service) } }
    };
    devices(shape, after, false).map(leg).collect()
}

fn remote_legs(shape: &PathShape, before: &Snapshot, after: &Snapshot, seconds: f64) -> Vec<RemoteLeg> {
    let leg = |device: &(String, Stages)| RemoteLeg {
        device: device.0.clone(),
        leg: device_row(shape.remote, device, before, seconds),
    };
    devices(shape, after, true).map(leg).collect()
}

/// This node's devices, or those of other nodes.
fn devices<'a>(
    shape: &'a PathShape,
    after: &'a Snapshot,
    remote: bool,
) -> impl Iterator<Item = &'a (String, Stages)> {
    after.devices.iter().filter(move |(_, stages)| stages.contains_key(shape.remote) == remote)
}

fn device_row(stage: &str, (name, now): &(String, Stages), before: &Snapshot, seconds: f64) -> Row {
    let none = Stages::new();
    let then = before.devices.iter().find(|(n, _)| n == name).map_or(&none, |(_, stages)| stages);
    row(stage, &difference(stage, then, now), seconds)
}

fn per_second(amount: f64, seconds: f64) -> f64 {
    if seconds > 0.0 { amount / seconds } else { 0.0 }
}

/// What a stage says by itself.
fn row(name: &str, s: &StageSnapshot, seconds: f64) -> Row {
    let us = |ns: u64| ns as f64 / 1000.0;
    let quantile = |share| us(s.latency.quantile(share));
    let little_error = s.little_error();
    let enough = s.completed >= LITTLE_COUNT_MIN && seconds >= LITTLE_SECONDS_MIN;
    Row {
        stage: name.into(),
        count: s.completed,
        errors: s.errors,
        rate: per_second(s.completed as f64, seconds),
        in_flight_now: s.in_flight,
        in_flight: per_second(s.in_flight_area as f64 / 1e9, seconds),
        mean_us: s.latency.mean() / 1000.0,
        mean_3s_us: s.mean_3s_ns() / 1000.0,
        p50_us: quantile(0.5),
        p95_us: quantile(0.95),
        p99_us: quantile(0.99),
        p99_9_us: quantile(0.999),
        max_us: us(s.latency.max()),
        little_error,
        little_holds: little_error <= LITTLE_ERROR_MAX || !enough,
        ..Row::default()
    }
}

/// A stage as a part of the whole path. Who does not come through it spends nothing there; a stage that others use as well
/// (more came through it than the path has commands) takes each of its own as long as all.
fn part_of(total: &StageSnapshot, name: &str, s: &StageSnapshot, seconds: f64) -> Row {
    let commands = total.completed.max(s.completed).max(1) as f64;
    let mean_ns = s.latency.sum() as f64 / commands;
    let variance = (s.latency.squares() as f64 / commands - mean_ns * mean_ns).max(0.0);
    let share = |part: f64, whole: f64| if total.completed > 0 && whole > 0.0 { part / whole } else { 0.0 };
    Row {
        per_command_us: if total.completed > 0 { mean_ns / 1000.0 } else { 0.0 },
        share: share(mean_ns, total.latency.mean()),
        variance_share: share(variance, total.latency.variance()),
        ..row(name, s, seconds)
    }
}
