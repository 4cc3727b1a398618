//! The matrix as tables: counts, bytes, latencies, work.

use super::cell::{Cell, Side};
use crate::render::table;
use peristyle_bench::amplification::{
    Between, Code, Convention, Cost, between_nodes, classic_read, classic_write, log_read, log_write_alone,
    log_write_shared,
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
        out += &format!("{scheme}\n\n{}\n", devices(&of, unit));
        if of.iter().any(|cell| cell.nodes > 1) {
            out += &format!("{}\n", between(&of, unit));
        }
        out += &format!("{}\n{}\n", latencies(&of), work(&of));
    }
    let network = match cells.first().map_or(1, |cell| cell.nodes) {
        1 => "columns do not cross it, as they would between nodes".to_owned(),
        nodes => format!(
            "{nodes} nodes are processes of it. Messages between them: requests and\n\
             answers, counted by who asks, bytes with their heads; the others: extents that are made, sealed, freed. Least: columns lie evenly on all\n\
             nodes, so one of {nodes} is the owner's own. Watching: pings, probes and leases of all nodes, whatever hosts do"
        ),
    };
    out + &format!(
        "R, W: device requests per request; bytes: of devices per byte. In place: columns of {} KiB, parity by the old and the new data\n\
         (delta; with old data cached, m reads) or by the rest of the stripe (reconstruct). Log, least: a frame of its own at depth 1, a\n\
         share of a full one deeper. Neither has metadata, collection or repair in it; zeroing of fresh space is not counted.\n\
         Devices are files of this machine, the network is loopback; {network}.\n",
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
    if cell.nodes > 1 {
        let cost = |cost: Cost| {
            let of = between_least(cell, cost);
            json!({ "reads": of.reads, "appends": of.writes, "messages": of.messages(), "bytes": of.bytes })
        };
        row["least_between"] =
            json!({ "alone": cost(least(cell, &cell.alone)), "deep": cost(least(cell, &cell.deep)) });
        row["in_place_between"] =
            Convention::ALL.iter().map(|c| (c.name().to_owned(), cost(in_place(cell, unit, *c)))).collect();
    }
    row
}

/// What of these requests to devices goes between nodes.
fn between_least(cell: &Cell, cost: Cost) -> Between {
    between_nodes(cost, cell.bytes, cell.nodes)
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

/// Messages between nodes, of a cluster.
fn between(cells: &[&Cell], unit: u32) -> String {
    let mut header = vec![
        "between nodes",
        "depth",
        "messages",
        "of them: asked",
        "others",
        "bytes",
        "log, least",
        "bytes",
    ];
    for convention in Convention::ALL {
        header.extend([convention.name(), "bytes"]);
    }
    header.extend(["over the host's bytes", "watching: messages/s"]);
    let mut lines = Vec::new();
    for cell in cells {
        for side in [&cell.alone, &cell.deep] {
            let Some(counted) = &side.between else { continue };
            let mut line = vec![cell.test.clone(), side.depth.to_string(), short(counted.messages)];
            line.push(format!("{}R+{}A", short(counted.reads), short(counted.appends)));
            line.extend([short(counted.others), format!("{:.2}", counted.bytes)]);
            let in_place = Convention::ALL.map(|convention| in_place(cell, unit, convention));
            for cost in [least(cell, side)].into_iter().chain(in_place) {
                let of = between_least(cell, cost);
                line.extend([short(of.messages()), format!("{:.2}", of.bytes)]);
            }
            line.push(format!("{:.2}", counted.bytes / side.network_bytes));
            line.push(format!("{:.0}", counted.watch_messages_s));
            lines.push(line);
        }
    }
    let right: Vec<usize> = (1..header.len()).collect();
    table(&header, &right, lines)
}

fn latencies(cells: &[&Cell]) -> String {
    let is_cluster = cells.iter().any(|cell| cell.echo_between.is_some());
    let mut header = vec!["latency, us", "mean", "p50", "p99", "p99.9", "device", "echo"];
    header.extend(is_cluster.then_some("echo between nodes"));
    let all = if is_cluster { "over all three: mean" } else { "over both: mean" };
    for floor in ["over device: mean", "over echo: mean", all] {
        header.extend([floor, "p50", "p99", "p99.9"]);
    }
    let lines = cells.iter().map(|cell| {
        let l = cell.alone.latency;
        let mut line = vec![cell.test.clone()];
        let between = cell.echo_between.map(|echo| echo.mean);
        let means = [l.mean, l.p50, l.p99, l.p99_9, cell.device.mean, cell.echo.mean];
        line.extend(means.into_iter().chain(between).map(|us| format!("{us:.1}")));
        for floor in [cell.device, cell.echo, cell.floor()] {
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
    use super::super::cell::tests::{cell, cell_of_six};
    use super::*;
    use peristyle_base::{
        ColumnIndex, ColumnName, ColumnPlace, Epoch, ExtentId, NodeId, Nonce, RowIndex, Scheme, ShardId,
        SlotIndex, Uuid,
    };
    use peristyle_bench::amplification::{ANSWER_HEAD, CHECKSUM, REQUEST_HEAD};
    use peristyle_cluster::WriteClass;
    use peristyle_cluster::peer::{
        Answer, Client, Credits, HEAD_BYTES_MAX, Hello, Payload, Request, Server, ServerEvent, Target,
        Welcome,
    };
    use peristyle_shard::frame::{Layout, goes_narrow};

    #[test]
    fn measured_stands_beside_what_is_least() {
        let said = text(&[cell(false), cell(true)], 64 << 10);
        for part in ["3R+3W", "2R+3W", "0R+3W", "0R+0.025W", "1.51", "6.00", "25 %", "1.50"] {
            assert!(said.contains(part), "{part} in\n{said}");
        }
    }

    #[test]
    fn of_a_cluster_messages_stand_beside_what_is_least() {
        let cells = [cell_of_six(false), cell_of_six(true)];
        let said = text(&cells, 64 << 10);
        // Measured 5.02 for a lone write; the least of a log 5, of an array in place 10.
        let lone = said.lines().filter(|line| line.trim_start().starts_with("randwrite-4k")).nth(2).unwrap();
        let figures: Vec<&str> = lone.split_whitespace().skip(1).collect();
        assert_eq!(
            figures[..9],
            ["1", "5.02", "0R+2.50A", "0.010", "5.07", "5", "5.07", "10", "5.13"],
            "{said}"
        );
        assert!(said.contains("echo between nodes") && said.contains("over all three"), "{said}");
        let row = row(&cells[1], 64 << 10);
        assert_eq!((&row["least_between"]["alone"]["messages"], &row["nodes"]), (&json!(5.0), &json!(6)));
        assert_eq!(row["in_place_between"]["delta"]["messages"], 10.0);
        let alone = text(&[cell(false), cell(true)], 64 << 10);
        assert!(!alone.contains("between nodes  ") && !alone.contains("echo between nodes"), "{alone}");
        assert!(super::row(&cell(true), 64 << 10)["least_between"].is_null());
    }

    #[test]
    fn heads_are_as_long_as_those_of_our_messages() {
        let (append, read) = heads_of_the_protocol();
        assert_eq!(append, [REQUEST_HEAD + 3 * CHECKSUM, ANSWER_HEAD]);
        assert_eq!(read, [REQUEST_HEAD, ANSWER_HEAD]);
    }

    /// Of an append of three rows, and of a read: the request's and the answer's.
    fn heads_of_the_protocol() -> ([u32; 2], [u32; 2]) {
        let mut out = [0; HEAD_BYTES_MAX];
        let hello = Hello { versions: (0, 0), cluster: Uuid::default(), from: NodeId(1), to: NodeId(2) };
        let credits = Credits { requests: 8, bytes: 1 << 20 };
        let offer = Welcome { version: 0, node: NodeId(2), boot: 1, reactors: 1, credits };
        let (mut client, mut server) = (Client::new(hello), Server::new(hello.cluster, offer));
        let bytes = client.hello(&mut out);
        server.handle_bytes(&out[..bytes]).unwrap();
        let Ok(Some(ServerEvent::Hello(hello))) = server.message() else { panic!("it was said") };
        server.taken();
        let (bytes, welcomed) = server.welcome(&hello, false, &mut out);
        welcomed.unwrap();
        client.handle_bytes(&out[..bytes]).unwrap();
        client.take().unwrap();
        let at = Target {
            place: ColumnPlace { device: Uuid::default(), slot: SlotIndex(0) },
            name: ColumnName {
                shard: ShardId(0),
                extent: ExtentId(1),
                column: ColumnIndex(0),
                nonce: Nonce([0; 16]),
            },
            epoch: Epoch(1),
        };
        let append = Request::Append { at, row: RowIndex(0), class: WriteClass::User, crcs: &[0; 12] };
        let read = Request::Read { at, row: RowIndex(0), rows: 3 };
        let rows = Payload { bytes: 3 * 4096, crc: 0 };
        let mut heads = |request: &Request<'_>, payload, answer: Answer| {
            let (_, head) = client.begin(request, payload, &mut out).unwrap();
            server.handle_bytes(&out[..head]).unwrap();
            let Ok(Some(ServerEvent::Request(asked))) = server.message() else { panic!("it was asked") };
            let ticket = asked.ticket;
            server.taken();
            let answer = server.answer(ticket, &answer, Payload::NONE, &mut out);
            [head as u32, answer as u32]
        };
        let read = heads(&read, Payload::NONE, Answer::Rows);
        (heads(&append, rows, Answer::Done), read)
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
