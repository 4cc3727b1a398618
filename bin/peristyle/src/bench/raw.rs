//! `bench raw`: what devices and the network do by themselves, in the sizes and depths that a volume's figures are compared with.

use super::echo::{Shape, echo};
use super::{RawOptions, Rw};
use crate::cli::values::DeviceArg;
use crate::failure::Failure;
use crate::render::{json, table};
use peristyle_base::units::format_bytes;
use peristyle_bench::load::Length;
use peristyle_bench::pattern::Pattern;
use peristyle_bench::raw::{RawLoad, measure};
use peristyle_bench::report::Figures;
use peristyle_rt::device::WriteCache;
use peristyle_rt::{Buf, Device, DeviceKind, DeviceSpec, RuntimeConfig, block_on};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// Front of a device that is looked at before anything is written, and zeroed afterwards: labels and file systems begin there.
const FRONT: u64 = 1 << 20;
/// What one write of `--fill` has.
const FILL_BYTES: u32 = 128 << 10;
const FILL_DEPTH: u32 = 8;
/// Round trips of an echo at each size, and bytes of all of them at most.
const ROUNDS: u32 = 20_000;
const ECHO_BYTES: u64 = 2 << 30;

/// One figure.
struct Row {
    path: String,
    what: &'static str,
    bytes: u32,
    depth: u32,
    per_second: f64,
    figures: Figures,
}

pub fn command(options: &RawOptions) -> Result<(), Failure> {
    if options.rw.contains(&Rw::Randrw) {
        return Err(Failure::usage(
            "--rw: reads and writes have floors of their own; give randread,randwrite",
        ));
    }
    let mut rows = Vec::new();
    let mut notes = Vec::new();
    for device in &options.device {
        let (measured, note) = of_device(device, options)?;
        rows.extend(measured);
        notes.push(note);
    }
    if !options.no_network {
        rows.extend(of_network(options)?);
        notes.push("tcp: an echo over loopback, a thread on each side".to_owned());
    }
    if options.json {
        let rows: Vec<Value> = rows.iter().map(row_json).collect();
        print!("{}", json(&json!({ "rows": rows, "notes": notes })));
        return Ok(());
    }
    let header = ["", "", "bytes", "depth", "IOPS", "MB/s", "mean", "p50", "p95", "p99", "p99.9", "max"];
    let right: Vec<usize> = (2..header.len()).collect();
    let lines = rows.iter().map(|row| {
        let mut line =
            vec![row.path.clone(), row.what.to_owned(), row.bytes.to_string(), row.depth.to_string()];
        line.push(format!("{:.0}", row.per_second));
        line.push(format!("{:.1}", row.per_second * f64::from(row.bytes) / 1e6));
        let shown = ["mean", "p50", "p95", "p99", "p99.9", "max"];
        let latency = row.figures.latency_us().into_iter().filter(|(name, _)| shown.contains(name));
        line.extend(latency.map(|(_, us)| format!("{us:.1}")));
        line
    });
    print!("{}", table(&header, &right, lines));
    println!("latency in microseconds");
    notes.iter().for_each(|note| println!("{note}"));
    Ok(())
}

fn row_json(row: &Row) -> Value {
    let mut value = json!({
        "path": row.path,
        "what": row.what,
        "block_bytes": row.bytes,
        "depth": row.depth,
        "count": row.figures.latency.count(),
        "iops": row.per_second,
        "bytes_per_s": row.per_second * f64::from(row.bytes),
    });
    for (name, us) in row.figures.latency_us() {
        value[format!("{name}_us")] = us.into();
    }
    value
}

/// All figures of one device, and what it is.
fn of_device(device: &DeviceArg, options: &RawOptions) -> Result<(Vec<Row>, String), Failure> {
    let loads = loads(options);
    let largest =
        loads.iter().map(|(_, load)| (load.block_bytes, load.depth)).chain([(FILL_BYTES, FILL_DEPTH)]);
    let mut config = RuntimeConfig::small();
    for (block_bytes, depth) in largest {
        let needed = RawLoad { block_bytes, depth, ..template(options) }.buffers();
        config.buffers.counts.iter_mut().zip(needed.counts).for_each(|(have, need)| *have = need.max(*have));
    }
    let spec = match device {
        DeviceArg::Memory(bytes) => DeviceSpec::Memory { bytes: *bytes },
        DeviceArg::Path(path) => DeviceSpec::Path {
            path: path.clone(),
            create_bytes: options.create,
            write_cache: WriteCache::Auto,
        },
    };
    let options = options.clone();
    let name = match device {
        DeviceArg::Memory(_) => "memory".to_owned(),
        DeviceArg::Path(path) => path.display().to_string(),
    };
    let path = name.clone();
    block_on(config, async move {
        let changes = options.fill || loads.iter().any(|(_, load)| load.write);
        let device = open(&spec, changes, options.force).await?;
        if options.fill {
            let bytes = device.bytes().min(options.span) / u64::from(FILL_BYTES);
            let fill = RawLoad {
                block_bytes: FILL_BYTES,
                depth: FILL_DEPTH,
                pattern: Pattern::Sequential,
                write: true,
                length: Length::Count(bytes),
                warmup: Duration::ZERO,
                ..template(&options)
            };
            measure(&device, fill).await.map_err(|e| e.to_string())?;
        }
        let mut rows = Vec::new();
        for (what, load) in loads {
            let report = measure(&device, load).await.map_err(|e| e.to_string())?;
            let (figures, path) = (report.all(), path.clone());
            let per_second = figures.per_second(report.elapsed);
            rows.push(Row { path, what, bytes: load.block_bytes, depth: load.depth, per_second, figures });
        }
        if changes {
            // Blank again, for the next run, and for `device format`.
            device.write_zeroes(0, FRONT.min(device.bytes())).await.map_err(|e| e.to_string())?;
        }
        Ok((rows, described(&device, options.fill)))
    })
    .map_err(|error: String| Failure::failed(format!("{name}: {error}")))
}

/// Every combination that was asked for, one after the other.
fn loads(options: &RawOptions) -> Vec<(&'static str, RawLoad)> {
    let mut loads = Vec::new();
    for rw in &options.rw {
        let (what, pattern, write) = match rw {
            Rw::Randread => ("random read", Pattern::Random, false),
            Rw::Randwrite => ("random write", Pattern::Random, true),
            Rw::Read => ("sequential read", Pattern::Sequential, false),
            Rw::Write => ("sequential write", Pattern::Sequential, true),
            Rw::Randrw => continue, // refused
        };
        for &block_bytes in &options.bs {
            for &depth in &options.qd {
                loads.push((what, RawLoad { block_bytes, depth, pattern, write, ..template(options) }));
            }
        }
    }
    loads
}

fn template(options: &RawOptions) -> RawLoad {
    RawLoad {
        block_bytes: 4096,
        pattern: Pattern::Random,
        write: false,
        durable: !options.no_sync,
        depth: 1,
        length: Length::Time(options.runtime),
        warmup: options.runtime / 10,
        span: options.span,
        seed: 1,
    }
}

/// Opens it. What holds something is not written to, unless that is wished.
async fn open(spec: &DeviceSpec, changes: bool, force: bool) -> Result<Device, String> {
    let path = match spec {
        DeviceSpec::Path { path, create_bytes: None, .. } if !changes => Some(path),
        _ => None,
    };
    let device = match path {
        Some(path) => Device::open_to_read(path).await,
        None => Device::open(spec).await,
    }
    .map_err(|e| e.to_string())?;
    if changes && !force {
        let (result, front) = device.read(0, Buf::alloc(FRONT.min(device.bytes()) as usize).await).await;
        result.map_err(|e| e.to_string())?;
        if front.iter().any(|&byte| byte != 0) {
            return Err("it holds something, which writes destroy: --force writes all the same".into());
        }
    }
    Ok(device)
}

/// What a reader of the figures has to know of a device.
fn described(device: &Device, filled: bool) -> String {
    let info = device.info();
    let kind = match info.kind {
        DeviceKind::File => "a file, through the file system (O_DIRECT)",
        DeviceKind::Block => "a block device (O_DIRECT)",
        DeviceKind::Memory => "memory of this process",
        DeviceKind::Simulated => "simulated",
    };
    let cache = if info.volatile_cache { "; writes are flushed" } else { "" };
    let holes = match info.kind {
        DeviceKind::File if !filled => {
            "; what was never written is read without the medium: --fill writes it first"
        }
        _ => "",
    };
    format!("{}: {kind}, {}{cache}{holes}", info.name, format_bytes(info.bytes))
}

/// An echo of each size at each depth: as many bytes as a command and its answer have.
fn of_network(options: &RawOptions) -> Result<Vec<Row>, Failure> {
    let mut rows = Vec::new();
    for write in [false, true] {
        if !options.rw.iter().any(|rw| matches!(rw, Rw::Randwrite | Rw::Write) == write) {
            continue;
        }
        for &bytes in &options.bs {
            for &depth in &options.qd {
                let rounds = (ECHO_BYTES / u64::from(bytes)).min(u64::from(ROUNDS)) as u32;
                let began = Instant::now();
                let latency =
                    echo(Shape::of(write, bytes), rounds, depth, &options.cores).map_err(Failure::failed)?;
                // The first tenth is not counted, but takes its time.
                let elapsed = began.elapsed().as_secs_f64() / 1.1;
                let what = if write { "echo of a write" } else { "echo of a read" };
                let figures = Figures { bytes: u64::from(bytes) * latency.count(), latency };
                let per_second = f64::from(rounds) / elapsed;
                rows.push(Row { path: "tcp".into(), what, bytes, depth, per_second, figures });
            }
        }
    }
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::BenchCommand;
    use crate::cli::{Cli, Command};
    use clap::Parser;

    fn options(line: &str) -> RawOptions {
        let line = format!("peristyle bench raw {line} --runtime 20ms --qd 1,4");
        match Cli::try_parse_from(line.split_whitespace()).unwrap().command {
            Command::Bench(BenchCommand::Raw(options)) => options,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn every_size_depth_and_kind_has_a_row() {
        let options = options("--device memory:64MiB --rw randread,write --bs 4k,64k");
        let (rows, note) = of_device(&options.device[0], &options).unwrap();
        let of: Vec<_> = rows.iter().map(|row| (row.what, row.bytes, row.depth)).collect();
        let (read, write) = ("random read", "sequential write");
        let expected = [read, write]
            .into_iter()
            .flat_map(|what| [(what, 4096, 1), (what, 4096, 4), (what, 65536, 1), (what, 65536, 4)]);
        assert!(expected.eq(of) && note.contains("memory"), "{note}");
        assert!(rows.iter().all(|row| row.per_second > 0.0 && row.figures.latency.count() > 0));
    }

    #[test]
    fn a_mixed_load_has_no_floor() {
        let refused = command(&options("--no-network --rw randrw")).unwrap_err();
        assert!(refused.to_string().contains("randread,randwrite"), "{refused}");
    }

    #[test]
    fn what_holds_something_is_not_written_and_what_was_written_is_blank_again() {
        let path = std::env::temp_dir().join(format!("peristyle-bench-raw-{}", std::process::id()));
        let run = |more: &str| {
            let options =
                options(&format!("--device {} --create 64MiB --rw randwrite --bs 4k {more}", path.display()));
            of_device(&options.device[0], &options)
        };
        run("").unwrap();
        run("").unwrap();
        std::fs::write(&path, vec![7; 64 << 20]).unwrap();
        assert!(run("").err().unwrap().to_string().contains("--force"));
        assert!(std::fs::read(&path).unwrap().iter().all(|&byte| byte == 7), "nothing was written");
        run("--force").unwrap();
        std::fs::remove_file(path).unwrap();
    }
}
