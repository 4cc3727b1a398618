//! What each kind of file becomes on a page.

use super::charts::{self, Bars, Line};
use super::page::Page;
use super::{curves, stages};
use crate::bench::compare;
use peristyle_base::units::format_bytes;
use serde_json::Value;

pub fn machine(page: &mut Page, machine: &Value) {
    let text = |key: &str| machine[key].as_str().unwrap_or("unknown").to_owned();
    let kind = if machine["virtual"] == true { "a virtual machine" } else { "a machine" };
    let memory = machine["memory_bytes"].as_u64().map_or("unknown".into(), format_bytes);
    page.text(format!(
        "Measured on {kind} with {} cores ({}), {memory} of memory, Linux {}; load average at the time: {}. \
         Figures of one machine say little of another; ratios measured together say more.",
        machine["cores"],
        text("cpu"),
        text("kernel"),
        machine["load_1min"],
    ));
}

/// Whether the file is of a kind that is known.
pub fn document(page: &mut Page, document: &Value) -> bool {
    if document["series"].is_array() {
        items(&document["series"]).for_each(|series| self::series(page, series));
    } else if document["cells"].is_array() {
        amplification(page, document);
    } else if document["kind"] == "record" {
        record(page, document);
    } else if document["curves"].is_array() {
        items(&document["curves"]).for_each(|curve| curves::curve(page, document, curve));
    } else if document["paths"].is_array() {
        items(&document["paths"]).for_each(|path| stages::path(page, document, path));
    } else if document["runs"].is_array() && document["block_bytes"].is_u64() {
        run(page, document);
    } else {
        return false;
    }
    true
}

pub(super) fn items(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

pub(super) fn number(value: &Value, key: &str) -> f64 {
    value[key].as_f64().unwrap_or(0.0)
}

pub(super) fn name(value: &Value, key: &str) -> String {
    value[key].as_str().unwrap_or("").to_owned()
}

pub fn changes(page: &mut Page, lines: &[compare::Line]) {
    page.heading("What has changed");
    let marked = lines.iter().filter(|line| line.is_significant()).count();
    page.text(format!(
        "Before and after, medians of the runs. {marked} of {} figures differ by more than chance explains: dealing the runs out at \
         random would make such a difference in less than 5 % of the cases. Of twenty figures that did not change, one is \
         marked all the same.",
        lines.len()
    ));
    let rows = lines.iter().map(|line| {
        let p = line.p.map_or("too few runs".into(), |p| format!("{p:.3}"));
        let change = format!("{:+.1} %", line.change_percent());
        vec![
            line.name.clone(),
            line.figure.into(),
            charts::short(line.before),
            charts::short(line.after),
            change,
            p,
            line.mark().into(),
        ]
    });
    page.table(&["", "figure", "before", "after", "change", "p", ""], rows.collect());
}

/// Latency and throughput of the 42 tests against the size of a request.
fn series(page: &mut Page, series: &Value) {
    page.heading(format!("Series: {}", name(series, "label")));
    page.text(format!(
        "Each test ran on {} of data at the highest depth (commands on their way at once) at which its mean, p99 and p99.5 latency stay \
         within 1.5 times those of one command at a time. p99 is the latency that 99 of 100 commands do not exceed; a + marks the \
         largest depth that was tried.",
        format_bytes(series["settings"]["data_bytes"].as_u64().unwrap_or(0))
    ));
    for (key, what) in [("gb_s", "GB/s"), ("p99_us", "p99 latency, us")] {
        let lines = orders(series, key);
        if let Some(svg) = charts::log_log(&lines, "bytes of a request", what) {
            page.chart(svg, format!("{what} by the size of a request; both axes are logarithmic"));
        }
    }
    let rows = items(&series["rows"]).map(|row| {
        let deeper = if row["is_limited"] == true { "+" } else { "" };
        let mut cells = vec![name(row, "test"), format!("{}{deeper}", row["depth"])];
        cells.push(charts::short(number(row, "iops")));
        let figures =
            ["gb_s", "mean_us", "p50_us", "p95_us", "p99_us", "p99_9_us", "base_mean_us", "echo_mean_us"];
        cells.extend(figures.map(|key| format!("{:.2}", number(row, key))));
        cells
    });
    page.table(
        &[
            "test",
            "depth",
            "IOPS",
            "GB/s",
            "mean, us",
            "p50",
            "p95",
            "p99",
            "p99.9",
            "mean at depth 1",
            "echo",
        ],
        rows.collect(),
    );
    page.text("Echo is the time that plain TCP sockets need on this machine to send as many bytes back and forth: nothing over TCP is faster.");
}

/// A line for each order and direction.
fn orders(series: &Value, key: &str) -> Vec<Line> {
    let mut lines: Vec<Line> = Vec::new();
    for row in items(&series["rows"]) {
        let test = name(row, "test");
        let Some((order, size)) = test.rsplit_once('-') else { continue };
        let bytes = peristyle_base::units::parse_bytes(size).unwrap_or(0) as f64;
        let point = (bytes, number(row, key));
        match lines.iter_mut().find(|line| line.name == order) {
            Some(line) => line.points.push(point),
            None => {
                let colour = lines.len();
                lines.push(Line { name: order.into(), colour, points: vec![point], is_dashed: false });
            }
        }
    }
    lines
}

/// Requests and bytes below, with the analytic minima.
fn amplification(page: &mut Page, document: &Value) {
    let mut schemes: Vec<String> = items(&document["cells"]).map(|cell| name(cell, "scheme")).collect();
    schemes.dedup();
    for scheme in schemes {
        let cells: Vec<&Value> =
            items(&document["cells"]).filter(|cell| cell["scheme"] == scheme.as_str()).collect();
        page.heading(format!("Amplification: {scheme}"));
        page.text(
            "What one request of a host becomes below: requests and bytes at the devices, beside the least that this design can need \
             (a log that appends), and the least of an array that writes in place, which reads old data and parity first. \
             Alone is one command at a time; deep is the largest depth at which p99 stays within twice its least.",
        );
        let writes: Vec<&&Value> = cells.iter().filter(|cell| cell["write"] == true).collect();
        let of =
            |side: &str, key: &str| writes.iter().map(|cell| number(&cell[side], key)).collect::<Vec<f64>>();
        let least = |side: &str| {
            writes.iter().map(|cell| number(&cell["least"][side], "bytes")).collect::<Vec<f64>>()
        };
        let bars = Bars {
            categories: writes.iter().map(|cell| name(cell, "test")).collect(),
            groups: vec![
                ("alone".into(), of("alone", "device_write_bytes")),
                ("deep".into(), of("deep", "device_write_bytes")),
                (
                    "in place, least (delta)".into(),
                    writes.iter().map(|cell| number(&cell["in_place"]["delta"], "bytes")).collect(),
                ),
            ],
            least: vec![least("alone"), least("deep")],
        };
        if let Some(svg) = charts::bars(&bars, "device bytes per byte") {
            page.chart(svg, "Device bytes per byte written; a dark line is the least of this design");
        }
        cells.iter().filter(|cell| is_small(cell)).for_each(|cell| where_time_goes(page, cell));
        page.table(
            &COUNTS,
            cells.iter().flat_map(|cell| [counts(cell, "alone"), counts(cell, "deep")]).collect(),
        );
        between_nodes(page, &cells);
        page.table(&LATENCIES, cells.iter().map(|cell| latency(cell)).collect());
    }
}

/// What goes between nodes, of a cluster.
fn between_nodes(page: &mut Page, cells: &[&Value]) {
    let sides = cells.iter().flat_map(|cell| [(cell, "alone"), (cell, "deep")]);
    let rows: Vec<_> = sides
        .filter(|(cell, side)| cell[*side]["between"].is_object())
        .map(|(cell, side)| between(cell, side))
        .collect();
    let Some(cell) = cells.first().filter(|_| !rows.is_empty()) else { return };
    page.text(format!(
        "What one request of a host has {} nodes say to each other: a request for each column that is another node's, and its answer, \
         beside the least of both designs when columns lie evenly on all nodes.",
        cell["nodes"]
    ));
    page.table(&BETWEEN, rows);
}

const BETWEEN: [&str; 9] = [
    "between nodes",
    "",
    "depth",
    "messages",
    "least of a log",
    "least in place",
    "bytes per byte",
    "least of a log",
    "least in place",
];

fn between(cell: &Value, side: &str) -> Vec<String> {
    let counted = &cell[side]["between"];
    let mut cells = vec![name(cell, "test"), side.into(), cell[side]["depth"].to_string()];
    for key in ["messages", "bytes"] {
        let least = [&cell["least_between"][side], &cell["in_place_between"]["delta"]];
        cells.extend([counted].into_iter().chain(least).map(|of| format!("{:.2}", number(of, key))));
    }
    cells
}

/// Random and of 4 KiB: what databases do.
fn is_small(cell: &Value) -> bool {
    cell["bytes"] == 4096 && name(cell, "test").starts_with("rand")
}

/// The mean of a lone request, as far as the floors explain it.
fn where_time_goes(page: &mut Page, cell: &Value) {
    let mean = number(&cell["alone"]["latency"], "mean");
    let (echo, device) = (number(&cell["echo"], "mean"), number(&cell["device"], "mean"));
    // Of a node that is alone: nothing.
    let between = number(&cell["echo_between"], "mean");
    let floor = echo + between + device;
    let pieces = [
        ("TCP by itself", 0.0, echo),
        ("TCP between nodes", echo, between),
        ("device by itself", echo + between, device),
        ("the rest", floor, mean - floor),
    ];
    let pieces: Vec<_> =
        pieces.into_iter().filter(|p| p.2 > 0.0).map(|(n, from, us)| (n.to_owned(), from, us)).collect();
    if let Some(svg) = charts::waterfall(&pieces, "microseconds") {
        page.chart(
            svg,
            format!("Where the mean time of one {} goes, {mean:.1} us in all", name(cell, "test")),
        );
    }
}

const COUNTS: [&str; 10] = [
    "test",
    "",
    "depth",
    "device reads",
    "device writes",
    "device bytes per byte",
    "least of a log",
    "least in place",
    "PDUs",
    "target core-s per million",
];

fn counts(cell: &Value, side: &str) -> Vec<String> {
    let s = &cell[side];
    let bytes = number(s, "device_read_bytes") + number(s, "device_write_bytes");
    let figures = [
        number(s, "device_reads"),
        number(s, "device_writes"),
        bytes,
        number(&cell["least"][side], "bytes"),
        number(&cell["in_place"]["delta"], "bytes"),
        number(s, "pdus"),
        number(s, "target_core_s"),
    ];
    let mut cells = vec![name(cell, "test"), side.into(), s["depth"].to_string()];
    cells.extend(figures.map(|value| format!("{value:.2}")));
    cells
}

const LATENCIES: [&str; 9] = [
    "test, depth 1",
    "mean, us",
    "p99",
    "device, mean",
    "echo, mean",
    "over device",
    "over echo",
    "over all",
    "CPU's share",
];

fn latency(cell: &Value) -> Vec<String> {
    let mean = number(&cell["alone"]["latency"], "mean");
    let (device, echo) = (number(&cell["device"], "mean"), number(&cell["echo"], "mean"));
    let between = number(&cell["echo_between"], "mean");
    let ratio = |floor: f64| format!("{:.2}", mean / floor.max(1e-3));
    let mut cells = vec![name(cell, "test")];
    cells.extend([mean, number(&cell["alone"]["latency"], "p99"), device, echo].map(|us| format!("{us:.1}")));
    cells.extend([ratio(device), ratio(echo), ratio(device + echo + between)]);
    cells.push(format!("{:.0} %", number(cell, "cpu_share") * 100.0));
    cells
}

fn record(page: &mut Page, document: &Value) {
    page.heading(format!("Record of commit {}", name(document, "commit")));
    page.text(
        "Each load ran once in every round, beside a plain TCP echo of the same sizes. Medians of the rounds; the range shows how much \
         this machine varies by itself.",
    );
    let rows = items(&document["entries"]).map(|entry| {
        let sorted = |key: &str| {
            let mut values: Vec<f64> = items(&entry["runs"]).map(|run| number(run, key)).collect();
            values.sort_by(f64::total_cmp);
            values
        };
        let median = |key: &str| sorted(key).get(sorted(key).len() / 2).copied().unwrap_or(0.0);
        let rates = sorted("iops");
        let ends = [rates.first(), rates.last()].map(|rate| charts::short(rate.copied().unwrap_or(0.0)));
        let mut cells = vec![name(entry, "name"), charts::short(median("iops")), ends.join(" to ")];
        cells
            .extend(["p50_us", "p99_us", "p99_9_us", "echo_p50_us"].map(|key| format!("{:.1}", median(key))));
        cells
    });
    page.table(&["load", "IOPS", "range", "p50, us", "p99", "p99.9", "echo p50"], rows.collect());
}

fn run(page: &mut Page, document: &Value) {
    page.heading("A load");
    page.text(format!(
        "Requests of {} bytes, {}, {} % of them reads, {} on their way at once on each of {} connections.",
        document["block_bytes"],
        name(document, "pattern"),
        document["read_share"],
        document["depth"],
        document["jobs"]
    ));
    let lines: Vec<Line> = ["read", "write"]
        .into_iter()
        .enumerate()
        .filter(|(_, kind)| document[kind]["count"].as_u64().unwrap_or(0) > 0)
        .map(|(colour, kind)| Line {
            name: kind.into(),
            colour,
            points: tail(&document[kind]),
            is_dashed: false,
        })
        .collect();
    if let Some(svg) = charts::log_log(&lines, "latency, us", "share of the commands that take longer") {
        page.chart(svg, "How many commands take longer than so long; both axes are logarithmic");
    }
    let rows = ["read", "write", "all"].into_iter().filter(|kind| document[kind].is_object()).map(|kind| {
        let figures = &document[kind];
        let mut cells = vec![kind.to_owned(), charts::short(number(figures, "iops"))];
        let keys = ["mean_us", "p50_us", "p90_us", "p95_us", "p99_us", "p99.9_us", "max_us"];
        cells.extend(keys.map(|key| format!("{:.1}", number(figures, key))));
        cells
    });
    page.table(&["", "IOPS", "mean, us", "p50", "p90", "p95", "p99", "p99.9", "max"], rows.collect());
}

/// From the histogram: each latency, and the share of what takes longer.
fn tail(figures: &Value) -> Vec<(f64, f64)> {
    let count = number(figures, "count").max(1.0);
    let mut left = count;
    let mut points = Vec::new();
    for bucket in items(&figures["histogram_us"]) {
        left -= bucket[1].as_f64().unwrap_or(0.0);
        points.push((bucket[0].as_f64().unwrap_or(0.0), left / count));
    }
    points
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn every_kind_of_file_becomes_a_section() {
        let row = json!({"test": "randread-4k", "depth": 4, "is_limited": true, "iops": 50_000.0, "gb_s": 0.2, "p99_us": 90.0});
        let more = json!({"test": "randread-8k", "depth": 4, "iops": 40_000.0, "gb_s": 0.3, "p99_us": 99.0});
        let series =
            json!({"series": [{"label": "4+2", "settings": {"data_bytes": 1 << 30}, "rows": [row, more]}]});
        let side =
            json!({"depth": 1, "device_writes": 3.0, "device_write_bytes": 6.0, "latency": {"mean": 60.0}});
        let cell = json!({"scheme": "4+2", "test": "randwrite-4k", "write": true, "bytes": 4096, "alone": side, "deep": side,
            "least": {"alone": {"bytes": 6.0}, "deep": {"bytes": 1.5}}, "in_place": {"delta": {"bytes": 6.0}}, "device": {"mean": 20.0}, "echo": {"mean": 10.0}});
        let mut of_six = cell.clone();
        of_six["nodes"] = 6.into();
        of_six["alone"]["between"] = json!({"messages": 5.02, "bytes": 5.08});
        of_six["least_between"]["alone"] = json!({"messages": 5.0, "bytes": 5.07});
        of_six["in_place_between"]["delta"] = json!({"messages": 10.0, "bytes": 5.13});
        let of_six = json!({"cells": [of_six]});
        let amplification = json!({"cells": [cell]});
        let record = json!({"kind": "record", "commit": "abc", "entries": [{"name": "x", "runs": [{"iops": 5.0}, {"iops": 7.0}]}]});
        let figures = json!({"count": 4, "iops": 4.0, "histogram_us": [[10.0, 3], [20.0, 1]]});
        let run = json!({"runs": [], "block_bytes": 4096, "pattern": "random", "read": figures});
        let six = "| randwrite-4k | alone | 1 | 5.02 | 5.00 | 10.00 | 5.08 | 5.07 | 5.13 |";
        for (document, said) in
            [(series, "4+"), (amplification, "2.00"), (of_six, six), (record, "5 to 7"), (run, "A load")]
        {
            let mut page = Page::new("t");
            assert!(super::document(&mut page, &document));
            let text = page.markdown();
            assert!(text.contains(said), "{said} in {text}");
        }
        assert!(!super::document(&mut Page::new("t"), &json!({"a": 1})));
    }

    #[test]
    fn a_tail_ends_with_nothing() {
        let figures = json!({"count": 4, "histogram_us": [[10.0, 3], [20.0, 1]]});
        assert_eq!(tail(&figures), [(10.0, 0.25), (20.0, 0.0)]);
    }
}
