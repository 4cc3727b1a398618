//! The matrix as tables: counts, bytes, latencies, work.

use super::cell::{Cell, Side};
use crate::render::table;
use peristyle_bench::amplification::{
    Code, Convention, Cost, classic_read, classic_write, log_read, log_write_alone, log_write_shared,
};
use serde_json::{Value, json};

/// A command capsule, and one PDU of data and status or of status alone: what every target and host need. Bytes of both headers.
const NETWORK_PDUS: f64 = 2.0;
const NETWORK_BYTES: f64 = 72.0 + 24.0;

pub fn text(cells: &[Cell], unit: u32) -> String {
    let mut out = String::new();
    let mut schemes: Vec<&str> = cells.iter().map(|cell| cell.scheme.as_str()).collect();
    schemes.dedup();
    for scheme in schemes {
        let of: Vec<&Cell> = cells.iter().filter(|cell| cell.scheme == scheme).collect();
        out += &format!("{scheme}\n\n{}\n{}\n{}\n", devices(&of, unit), latencies(&of), work(&of));
    }
    out + &format!(
        "R, W: device requests per request; bytes: of devices per byte. In place: columns of {} KiB, parity by the old and the new data\n\
         (delta; with old data cached, m reads) or by the rest of the stripe (reconstruct). Log, least: a frame of its own at depth 1, a\n\
         share of a full one deeper. Neither has metadata, collection or repair in it; zeroing of fresh space is not counted.\n\
         Devices are files of this machine, the network is loopback; columns do not cross it, as they would between nodes.\n",
        unit >> 10
    )
}

/// A cell as JSON, with the least of both designs.
pub fn row(cell: &Cell, unit: u32) -> Value {
    let cost = |cost: Cost| json!({ "reads": cost.reads, "writes": cost.writes, "bytes": cost.read_bytes + cost.write_bytes });
    let mut row = json!(cell);
    row["least"] = json!({ "alone": cost(least(cell, &cell.alone)), "deep": cost(least(cell, &cell.deep)) });
    row["in_place"] =
        Convention::ALL.iter().map(|c| (c.name().to_owned(), cost(in_place(cell, unit, *c)))).collect();
    row
}

fn rw(cost: &Cost) -> String {
    format!("{}R+{}W", short(cost.reads), short(cost.writes))
}

fn bytes(cost: &Cost) -> String {
    format!("{:.2}", cost.read_bytes + cost.write_bytes)
}

/// 3, 0.19, 0.025.
fn short(value: f64) -> String {
    match value {
        v if (v - v.round()).abs() < 5e-4 => format!("{v:.0}"),
        v if v >= 0.1 => format!("{v:.2}"),
        v => format!("{v:.3}"),
    }
}

fn measured(side: &Side) -> Cost {
    Cost {
        reads: side.device_reads,
        writes: side.device_writes,
        read_bytes: side.device_read_bytes,
        write_bytes: side.device_write_bytes,
    }
}

/// The log's least at a depth.
pub fn least(cell: &Cell, side: &Side) -> Cost {
    let code = Code { k: cell.code.0, m: cell.code.1 };
    match (cell.write, side.depth) {
        (false, _) => log_read(),
        (true, 1) => log_write_alone(code, cell.bytes),
        // What is larger than its share of a frame gains nothing by others.
        (true, _) => {
            let (alone, shared) = (log_write_alone(code, cell.bytes), log_write_shared(code, cell.bytes));
            if shared.write_bytes <= alone.write_bytes { shared } else { alone }
        }
    }
}

pub fn in_place(cell: &Cell, unit: u32, convention: Convention) -> Cost {
    let code = Code { k: cell.code.0, m: cell.code.1 };
    match cell.write {
        true => classic_write(code, cell.bytes, unit, convention),
        false => classic_read(cell.bytes, unit),
    }
}

fn devices(cells: &[&Cell], unit: u32) -> String {
    let mut header = vec!["devices", "depth", "measured", "bytes", "log, least", "bytes"];
    for convention in Convention::ALL {
        header.extend([convention.name(), "bytes"]);
    }
    header.extend(["PDUs", "least", "network bytes", "least"]);
    let mut lines = Vec::new();
    for cell in cells {
        for side in [&cell.alone, &cell.deep] {
            let mut line = vec![cell.test.clone(), side.depth.to_string()];
            for cost in [measured(side), least(cell, side)] {
                line.extend([rw(&cost), bytes(&cost)]);
            }
            for convention in Convention::ALL {
                let cost = in_place(cell, unit, convention);
                line.extend([rw(&cost), bytes(&cost)]);
            }
            let least_bytes = 1.0 + NETWORK_BYTES / f64::from(cell.bytes);
            line.extend([short(side.pdus), short(NETWORK_PDUS)]);
            line.extend([side.network_bytes, least_bytes].map(|bytes| format!("{bytes:.3}")));
            lines.push(line);
        }
    }
    let right: Vec<usize> = (1..header.len()).collect();
    table(&header, &right, lines)
}

fn latencies(cells: &[&Cell]) -> String {
    let header = [
        "latency, us",
        "mean",
        "p50",
        "p99",
        "p99.9",
        "device",
        "echo",
        "over device: mean",
        "p50",
        "p99",
        "p99.9",
        "over echo: mean",
        "p50",
        "p99",
        "p99.9",
        "over both: mean",
        "p50",
        "p99",
        "p99.9",
    ];
    let lines = cells.iter().map(|cell| {
        let l = cell.alone.latency;
        let mut line = vec![cell.test.clone()];
        line.extend(
            [l.mean, l.p50, l.p99, l.p99_9, cell.device.mean, cell.echo.mean].map(|us| format!("{us:.1}")),
        );
        for floor in [cell.device, cell.echo, cell.device.plus(&cell.echo)] {
            line.extend(l.over(&floor).map(|ratio| format!("{ratio:.2}")));
        }
        line
    });
    let right: Vec<usize> = (1..header.len()).collect();
    table(&header, &right, lines)
}

fn work(cells: &[&Cell]) -> String {
    let header = [
        "work",
        "depth",
        "IOPS",
        "p99, us",
        "target: core-s per million",
        "GHz-s per million",
        "generator: core-s",
        "CPU of latency, depth 1",
    ];
    let lines = cells.iter().map(|cell| {
        let side = &cell.deep;
        let ghz_s =
            cell.ghz.map_or_else(|| "unknown clock".into(), |ghz| format!("{:.2}", side.target_core_s * ghz));
        vec![
            cell.test.clone(),
            side.depth.to_string(),
            format!("{:.0}", side.iops),
            format!("{:.1}", side.latency.p99),
            format!("{:.2}", side.target_core_s),
            ghz_s,
            format!("{:.2}", side.generator_core_s),
            format!("{:.0} %", cell.cpu_share * 100.0),
        ]
    });
    let right: Vec<usize> = (1..header.len()).collect();
    table(&header, &right, lines)
}

#[cfg(test)]
mod tests {
    use super::super::cell::tests::cell;
    use super::*;
    use peristyle_base::{RowIndex, Scheme};
    use peristyle_shard::frame::{Layout, goes_narrow};

    #[test]
    fn measured_stands_beside_what_is_least() {
        let said = text(&[cell(false), cell(true)], 64 << 10);
        for part in ["3R+3W", "2R+3W", "0R+3W", "0R+0.025W", "1.51", "6.00", "25 %", "1.50"] {
            assert!(said.contains(part), "{part} in\n{said}");
        }
    }

    #[test]
    fn the_least_of_a_log_is_what_our_frames_take() {
        for (k, m) in [(1u8, 1u8), (2, 2), (4, 2)] {
            let (scheme, code) = (Scheme::new(k, m).unwrap(), Code { k: k.into(), m: m.into() });
            for blocks in [1u16, 2, 3, 5, 16, 128, 240] {
                let scheme = if goes_narrow(blocks.into(), scheme) { scheme.narrow() } else { scheme };
                let frame = Layout { scheme, first_row: RowIndex(0), blocks };
                let least = log_write_alone(code, u32::from(blocks) * 4096);
                assert_eq!((least.write_bytes * f64::from(blocks)).round() as usize, frame.device_blocks());
                let columns = (0..scheme.width()).filter(|column| frame.written(*column).is_some()).count();
                assert_eq!(least.writes as usize, columns, "{scheme} {blocks}");
            }
        }
    }
}
