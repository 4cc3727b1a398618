//! What `model curve` prints: plain functions from values to text and JSON.

use super::CurveOptions;
use super::curve::{BAR_LOAD, Changed, Curve, Row, Side};
use crate::bench::{Rw, machine};
use crate::render::table;
use clap::ValueEnum;
use peristyle_bench::model::curve::off_percent;
use serde_json::{Value, json};

/// Above this share of late commands the generator was not able to make an open loop.
const LATE_SHARE_MAX: f64 = 0.01;
/// Above this share of its time at work, the generator may be what is measured.
const BUSY_SHARE_MAX: f64 = 0.9;
/// Above this share of the time in pauses, the machine is what is measured.
const PAUSE_SHARE_MAX: f64 = 0.05;

pub fn name(rw: Rw) -> String {
    rw.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
}

pub fn text(curve: &Curve) -> String {
    let fit = &curve.fit;
    let mut out = format!(
        "{}: alone {:.1} us; generator {:.1} us a turn and {:.2} us a command (open loop {:.2} more), target {:.1} and {:.2}, network {:.1}, \
         pauses {:.2} % of the time\n",
        name(curve.rw),
        curve.alone_us,
        fit.host_turn_us,
        fit.host_request_us,
        fit.host_clock_us,
        fit.turn_us,
        fit.request_us,
        fit.network_us,
        fit.pauses.share() * 100.0
    );
    out += &costs(curve);
    if fit.pauses.share() > PAUSE_SHARE_MAX {
        out += "note: something else had the cores for a good part of the time: predictions are of such a machine, and rough\n";
    }
    out += "\nclosed loop, latency in microseconds, predicted / measured\n";
    out += &rows("depth", &curve.closed, |row| row.load.to_string());
    out += &format!("\nopen loop, percent of {:.0} commands/s\n", curve.knee.1);
    out += &rows("load", &curve.open, |row| format!("{} %", row.load));
    if curve.open.iter().any(|row| row.late_share > LATE_SHARE_MAX) {
        out += "note: more than 1 % of an open loop's commands began late: the target, the generator or the machine stopped\n";
    }
    if curve.open.iter().chain(&curve.closed).any(|row| row.generator_busy > BUSY_SHARE_MAX) {
        out +=
            "note: the generator was busy all the time at some loads: these figures may be its own limit\n";
    }
    let (depth, most) = curve.knee;
    out += &format!("\nknee predicted at depth {depth}, {most:.0} commands/s");
    if let Some((depth, most)) = curve.measured_knee {
        out += &format!("; measured at depth {depth}, {most:.0}");
    }
    if let Some((limit, most)) = curve.model.bottleneck() {
        out += &format!("; without end {limit} would let {most:.0} through");
    }
    out += "\n";
    for bar in curve.bars() {
        let verdict = if bar.holds() { "holds" } else { "missed" };
        out += &format!("{}: off by {:+.1} %, bar {:.0} %: {verdict}\n", bar.name, bar.off, bar.most);
    }
    out + &changes(curve) + "\n"
}

/// Parts of the reactors' time that have a name of their own.
fn costs(curve: &Curve) -> String {
    let reactors = &curve.model.stations[2];
    let visit = curve.model.route.iter().find(|visit| visit.station == 2);
    let named = reactors.turn.iter().skip(1).map(|turn| {
        let each = visit.and_then(|visit| visit.request.iter().find(|cost| cost.name == turn.name));
        format!("{} {:.2} + {:.2}", turn.name, turn.us, each.map_or(0.0, |cost| cost.us))
    });
    let mut named: Vec<String> = named.collect();
    if let Some(device) = curve.model.stations.get(3) {
        named.push(format!("{} devices beside them {:.1}", device.lanes.len(), device.turn_us()));
    }
    if named.is_empty() {
        String::new()
    } else {
        format!("of the target's, a turn + a command: {}\n", named.join(", "))
    }
}

fn rows(first: &str, rows: &[Row], load: impl Fn(&Row) -> String) -> String {
    let header = [first, "IOPS", "", "off, %", "mean", "", "p50", "", "p99", "", "off, %"];
    let lines = rows.iter().map(|row| {
        let figure = |side: &Option<Side>, of: fn(&Side) -> f64, digits: usize| {
            side.as_ref().map_or(String::new(), |side| format!("{:.digits$}", of(side)))
        };
        let off = |of: fn(&Side) -> f64| match (&row.predicted, &row.measured) {
            (Some(p), Some(m)) => format!("{:+.0}", off_percent(of(p), of(m))),
            _ => String::new(),
        };
        let both = |of: fn(&Side) -> f64, digits| {
            let predicted = match &row.predicted {
                None => "overload".to_owned(),
                predicted => figure(predicted, of, digits),
            };
            [predicted, figure(&row.measured, of, digits)]
        };
        let mut line = vec![load(row)];
        line.extend(both(|side| side.throughput, 0));
        line.push(off(|side| side.throughput));
        line.extend(both(|side| side.mean_us, 1));
        line.extend(both(|side| side.p50_us, 1));
        line.extend(both(|side| side.p99_us, 1));
        line.push(off(|side| side.p99_us));
        line
    });
    table(&header, &(0..header.len()).collect::<Vec<_>>(), lines)
}

fn changes(curve: &Curve) -> String {
    if curve.changes.is_empty() {
        return String::new();
    }
    let header = ["what if", "knee, IOPS", "depth", "mean, us", "p50", "p99", "limit", "IOPS"];
    let lines = curve.changes.iter().map(|changed| {
        let us = |of: fn(&Side) -> f64| match &changed.at_load {
            Some(side) => format!("{:.1}", of(side)),
            None => "overload".to_owned(),
        };
        let (limit, most) = match &changed.limit {
            Some((name, most)) => (name.clone(), format!("{most:.0}")),
            None => ("none".to_owned(), String::new()),
        };
        let (depth, knee) = changed.knee;
        vec![
            if changed.change.is_empty() { "as it is".to_owned() } else { changed.change.clone() },
            format!("{knee:.0}"),
            depth.to_string(),
            us(|side| side.mean_us),
            us(|side| side.p50_us),
            us(|side| side.p99_us),
            limit,
            most,
        ]
    });
    let rate = curve.rate(BAR_LOAD);
    format!("\nlatency at {rate:.0} commands/s\n{}", table(&header, &[1, 2, 3, 4, 5, 7], lines))
}

pub fn document(options: &CurveOptions, curves: &[Curve]) -> Value {
    let curves: Vec<Value> = curves.iter().map(curve_json).collect();
    json!({
        "machine": machine::describe(),
        "block_bytes": options.bs,
        "requests": options.requests,
        "seed": options.seed,
        "curves": curves,
    })
}

fn curve_json(curve: &Curve) -> Value {
    let fit = &curve.fit;
    let bursts = curve.bursts.iter();
    let bursts = bursts.map(
        |b| json!({"size": b.size, "last_us": b.last_us, "host_us": b.host_us, "target_us": b.target_us}),
    );
    let knee = |(depth, throughput): (u32, f64)| json!({"depth": depth, "iops": throughput});
    let bars = curve.bars().into_iter().map(
        |bar| json!({"name": bar.name, "off_percent": bar.off, "bar_percent": bar.most, "holds": bar.holds()}),
    );
    json!({
        "rw": name(curve.rw),
        "alone_us": curve.alone_us,
        "bursts": bursts.collect::<Vec<_>>(),
        "host_turn_us": fit.host_turn_us,
        "host_request_us": fit.host_request_us,
        "host_clock_us": fit.host_clock_us,
        "turn_us": fit.turn_us,
        "request_us": fit.request_us,
        "network_us": fit.network_us,
        "pause_share": fit.pauses.share(),
        "knee": {"predicted": knee(curve.knee), "measured": curve.measured_knee.map(knee)},
        "closed": curve.closed.iter().map(|row| row_json("depth", row)).collect::<Vec<_>>(),
        "open": curve.open.iter().map(|row| row_json("load_percent", row)).collect::<Vec<_>>(),
        "bars": bars.collect::<Vec<_>>(),
        "what_if": curve.changes.iter().map(change_json).collect::<Vec<_>>(),
    })
}

fn row_json(load: &str, row: &Row) -> Value {
    json!({
        load: row.load,
        "predicted": row.predicted.map(side_json),
        "measured": row.measured.map(side_json),
        "late_share": row.late_share,
        "generator_busy_share": row.generator_busy,
    })
}

fn side_json(side: Side) -> Value {
    json!({"iops": side.throughput, "mean_us": side.mean_us, "p50_us": side.p50_us, "p99_us": side.p99_us})
}

fn change_json(changed: &Changed) -> Value {
    json!({
        "change": changed.change,
        "knee": {"depth": changed.knee.0, "iops": changed.knee.1},
        "at_load": changed.at_load.map(side_json),
        "limit": changed.limit.as_ref().map(|(name, most)| json!({"station": name, "iops": most})),
    })
}
