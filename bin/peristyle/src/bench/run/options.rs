//! What `bench run` is asked for.

use super::Place;
use crate::bench::{Arrival, Digest, Polling, Rw, size, size64, time};
use crate::failure::Failure;
use clap::{Args, ValueEnum};
use peristyle_bench::contents::Contents;
use peristyle_bench::load::{Length, Rate, Region, Replay, Workload};
use peristyle_bench::pattern::Pattern;
use peristyle_bench::session::{Digests, Target};
use peristyle_bench::trace::Trace;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// A trace file may have so many bytes.
const TRACE_BYTES_MAX: u64 = 2 << 30;
/// A job file.
const JOB_BYTES_MAX: u64 = 1 << 20;

/// Load on volumes of any NVMe/TCP target: a closed loop, an open one with a rate, a fio job file or a trace
#[derive(Args, Debug, Clone)]
#[command(after_help = "\
Writes destroy what is on the volume.
SIGINT (Ctrl-C) and SIGTERM end the run early: what was measured until then is printed, and the command fails. A second one ends it at once.
Examples:
  peristyle bench run --target tcp://127.0.0.1:4420 --rw randread --qd 32
  peristyle bench run --target tcp://127.0.0.1:4420 --rw randrw --read-share 70 --qd 32 --jobs 2 --verify
  peristyle bench run --target tcp://127.0.0.1:4420 --rw write --bs 128k --qd 8 --digest header,data --json
  peristyle bench run --target tcp://127.0.0.1:4420 --rw randwrite --pattern zipf:0.99 --rate 20000 --qd 128
  peristyle bench run --target tcp://127.0.0.1:4420 --rw randread --pattern semi:0.7,64MiB --qd 8 --repeat 5
  peristyle bench run --target tcp://127.0.0.1:4420 --volume 1,2,3 --rw write --bs 1m --bytes 10GiB --contents compressible:50
  peristyle bench run --target tcp://127.0.0.1:4420 --job nightly.fio --format fio
  peristyle bench run --target tcp://127.0.0.1:4420 --trace monday.txt --speed 2 --qd 64 --hdr monday.hlog")]
pub struct RunOptions {
    /// tcp://IP:PORT, or tcp://IP:PORT/NQN; without an NQN, the first subsystem of the discovery log
    #[arg(long, value_name = "URL")]
    pub target: Target,
    /// Namespaces [default: the first]
    #[arg(long, value_name = "NSID,...", value_delimiter = ',')]
    pub volume: Vec<u32>,
    /// Bytes of one command
    #[arg(long, default_value = "4k", value_name = "SIZE", value_parser = size)]
    pub bs: u32,
    #[arg(long, value_enum, default_value_t = Rw::Randread)]
    pub rw: Rw,
    /// Which places, in place of what --rw says of that: `random`, `sequential`; `semi:P`, with probability P the place behind
    /// the last one, else anywhere, or with `semi:P,MEAN` so far away on average; `zipf:THETA`; `hot:SPACE/LOAD`, so many
    /// percent of the requests to the first SPACE percent of the volume
    #[arg(long, value_name = "PATTERN")]
    pub pattern: Option<Pattern>,
    /// Reads of `randrw`, percent
    #[arg(long, default_value_t = 70, value_name = "PERCENT", value_parser = clap::value_parser!(u8).range(0..=100))]
    pub read_share: u8,
    /// First byte of each volume that is used
    #[arg(long, default_value = "0", value_name = "SIZE", value_parser = size64)]
    pub offset: u64,
    /// Bytes of each volume that are used [default: all]
    #[arg(long, value_name = "SIZE", value_parser = size64)]
    pub size: Option<u64>,
    /// Commands in flight of each job
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub qd: u32,
    /// Commands per second over all jobs, each at a moment of its own: latency counts from then on, also when it has to wait
    /// because --qd of its job are in flight [default: none, a command begins when another ends]
    #[arg(long, value_name = "N")]
    pub rate: Option<f64>,
    /// When commands of --rate begin
    #[arg(long, value_enum, default_value_t = Arrival::Poisson, requires = "rate")]
    pub arrival: Arrival,
    /// Connections (I/O queues) of each volume
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=128))]
    pub jobs: u16,
    /// How long to measure
    #[arg(long, default_value = "5s", value_name = "TIME", value_parser = time, group = "length")]
    pub runtime: Duration,
    /// Measure so many commands instead
    #[arg(long, value_name = "N", group = "length")]
    pub count: Option<u64>,
    /// Measure so many bytes instead
    #[arg(long, value_name = "SIZE", value_parser = size64, group = "length")]
    pub bytes: Option<u64>,
    /// Load before measuring
    #[arg(long, default_value = "1s", value_name = "TIME", value_parser = time)]
    pub warmup: Duration,
    /// Measure so often; the table shows the run in the middle, and how far apart they were
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=99))]
    pub repeat: u32,
    /// What is written: `random`, `zero`, `compressible:PERCENT`
    #[arg(long, default_value = "random", value_name = "CONTENTS", conflicts_with = "verify")]
    pub contents: Contents,
    /// Digests to ask for
    #[arg(long, value_delimiter = ',', value_name = "header,data")]
    pub digest: Vec<Digest>,
    /// Write blocks that say what they are, and compare what is read
    #[arg(long)]
    pub verify: bool,
    /// Of places and contents
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Replay a trace, lines of `SECONDS R|W|D|F OFFSET BYTES`, in place of --rw, --bs and --rate
    #[arg(long, value_name = "FILE", conflicts_with_all = ["rw", "bs", "pattern", "rate", "read_share", "verify", "length", "offset", "size"])]
    pub trace: Option<PathBuf>,
    /// So many times as fast as the trace was recorded; `max`: a command begins when another ends
    #[arg(long, default_value = "1", value_name = "FACTOR", value_parser = speed, requires = "trace")]
    pub speed: Speed,
    /// Take the trace's offsets modulo the volume's size
    #[arg(long, requires = "trace")]
    pub wrap: bool,
    /// Do what a fio job file says (its common part); what stands on the command line counts where the file says nothing
    #[arg(long, value_name = "FILE", conflicts_with_all = ["trace", "repeat", "rw", "bs", "pattern", "rate", "length", "hdr"])]
    pub job: Option<PathBuf>,
    /// Threads that make the load
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=64))]
    pub reactors: u16,
    /// Cores to pin them to, such as 1,3 [default: not pinned]
    #[arg(long, value_delimiter = ',', value_name = "CORES")]
    pub cores: Vec<usize>,
    /// What a thread does while it waits
    #[arg(long, value_enum, default_value_t = Polling::Busy)]
    pub poll: Polling,
    /// Write latencies second by second as an HDR histogram log (version 1.3), in nanoseconds
    #[arg(long, value_name = "FILE")]
    pub hdr: Option<PathBuf>,
    #[arg(long, value_enum, default_value_t = Format::Table)]
    pub format: Format,
    /// The same as --format json
    #[arg(long)]
    pub json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    Table,
    /// As fio writes it
    Fio,
    /// One JSON document
    Json,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Speed(Option<f64>);

fn speed(text: &str) -> Result<Speed, String> {
    let number = || text.parse().ok().filter(|n| (1e-3..=1e6).contains(n)).map(|n| Speed(Some(n)));
    match text {
        "max" => Ok(Speed(None)),
        _ => number().ok_or_else(|| format!("'{text}': a factor from 0.001 to 1000000, or max")),
    }
}

/// A text file of bounded size.
pub fn read_text(path: &Path, bytes_max: u64) -> Result<String, Failure> {
    let failed = |what: &dyn std::fmt::Display| Failure::usage(format!("{}: {what}", path.display()));
    let bytes = std::fs::metadata(path).map_err(|e| failed(&e))?.len();
    if bytes > bytes_max {
        return Err(failed(&format!("{bytes} bytes are more than {bytes_max}")));
    }
    std::fs::read_to_string(path).map_err(|e| failed(&e))
}

impl RunOptions {
    pub fn format(&self) -> Format {
        if self.json { Format::Json } else { self.format }
    }

    pub fn place(&self) -> Place {
        let cores = self.cores.clone();
        Place {
            target: self.target.clone(),
            nsids: self.volume.clone(),
            reactors: if cores.is_empty() { self.reactors } else { cores.len() as u16 },
            cores,
            poll: self.poll.into(),
            end: Arc::default(),
        }
    }

    /// What the command line asks for, without trace or job file.
    pub fn workload(&self) -> Workload {
        let (pattern, read_share) = self.rw.meaning(self.read_share);
        let poisson = self.arrival == Arrival::Poisson;
        let count = self.bytes.map(|bytes| bytes.div_ceil(u64::from(self.bs.max(1)))).or(self.count);
        Workload {
            block_bytes: self.bs,
            pattern: self.pattern.unwrap_or(pattern),
            read_share,
            depth: self.qd,
            rate: self.rate.map(|per_second| Rate { per_second, poisson }),
            jobs: self.jobs,
            length: count.map_or(Length::Time(self.runtime), Length::Count),
            warmup: self.warmup,
            region: Region { offset: self.offset, bytes: self.size.unwrap_or(u64::MAX) },
            contents: self.contents,
            verify: self.verify,
            seed: self.seed,
            digests: Digests {
                header: self.digest.contains(&Digest::Header),
                data: self.digest.contains(&Digest::Data),
            },
            replay: None,
        }
    }

    /// With the trace, if there is one. `volume_bytes` is what the smallest volume has.
    pub fn replay(&self, path: &Path, volume_bytes: u64) -> Result<Workload, Failure> {
        let text = read_text(path, TRACE_BYTES_MAX)?;
        let mut trace =
            Trace::parse(&text).map_err(|what| Failure::usage(format!("{}: {what}", path.display())))?;
        if self.wrap {
            trace.wrap(volume_bytes);
        }
        Ok(Workload {
            block_bytes: trace.bytes_max(),
            length: Length::Count(trace.requests.len() as u64),
            warmup: Duration::ZERO,
            replay: Some(Arc::new(Replay { trace, speed: self.speed.0 })),
            ..self.workload()
        })
    }

    pub fn job_text(&self, path: &Path) -> Result<String, Failure> {
        read_text(path, JOB_BYTES_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::BenchCommand;
    use crate::cli::{Cli, Command};
    use clap::Parser;

    fn options(line: &str) -> RunOptions {
        let line = format!("peristyle bench run --target tcp://127.0.0.1:4420 {line}");
        match Cli::try_parse_from(line.split_whitespace()).unwrap().command {
            Command::Bench(BenchCommand::Run(options)) => *options,
            other => panic!("{other:?}"),
        }
    }
    fn run(line: &str) -> Workload {
        options(line).workload()
    }

    #[test]
    fn the_pattern_and_the_length_come_from_the_command_line() {
        let w = run("--rw randrw --bs 16k --qd 32 --jobs 2 --runtime 500ms --digest header,data --verify");
        assert_eq!((w.pattern, w.rate), (Pattern::Random, None));
        assert_eq!((w.read_share, w.block_bytes, w.depth, w.jobs), (70, 16 << 10, 32, 2));
        assert_eq!(w.length, Length::Time(Duration::from_millis(500)));
        assert!(w.verify && w.digests == Digests { header: true, data: true });
        let w = run("--rw write --count 100");
        assert_eq!((w.pattern, w.read_share, w.length), (Pattern::Sequential, 0, Length::Count(100)));
        let w = run("--rw write --pattern zipf:0.9 --rate 5000 --arrival even --bytes 10001 --bs 4k");
        assert_eq!((w.pattern, w.read_share, w.length), (Pattern::Zipf { theta: 0.9 }, 0, Length::Count(3)));
        assert_eq!(w.rate, Some(Rate { per_second: 5000.0, poisson: false }));
        let w = run("--offset 1MiB --size 64MiB --contents compressible:30");
        assert_eq!(w.region, Region { offset: 1 << 20, bytes: 64 << 20 });
        assert_eq!(w.contents, Contents::Compressible(30));
        assert_eq!(options("--volume 1,3").place().nsids, [1, 3]);
    }

    #[test]
    fn a_trace_is_as_long_as_it_is() {
        let path = std::env::temp_dir().join(format!("peristyle-trace-{}", std::process::id()));
        std::fs::write(&path, "0 R 0 4k\n0.1 W 1MiB 64k\n").unwrap();
        let line = format!("--trace {} --wrap --speed 2", path.display());
        let w = options(&line).replay(&path, 256 << 10).unwrap();
        assert_eq!((w.block_bytes, w.length, w.warmup), (64 << 10, Length::Count(2), Duration::ZERO));
        let replay = w.replay.unwrap();
        assert_eq!((replay.speed, replay.trace.requests[1].offset), (Some(2.0), 0));
        std::fs::write(&path, "0 R 0\n").unwrap();
        let error = options(&line).replay(&path, 1 << 20).unwrap_err().to_string();
        assert!(error.contains("line 1: the length is missing"), "{error}");
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn wrong_values_are_answered() {
        for line in [
            "--bs 5x",
            "--qd 0",
            "--runtime 5y",
            "--digest all",
            "--count 1 --runtime 1s",
            "--count 1 --bytes 1k",
            "--pattern zip",
            "--arrival even",
            "--contents x",
            "--contents zero --verify",
            "--trace a --rw read",
            "--trace a --speed 0",
            "--speed 2",
            "--job a --trace b",
        ] {
            let line = format!("peristyle bench run --target tcp://127.0.0.1:4420 {line}");
            assert!(Cli::try_parse_from(line.split_whitespace()).is_err(), "{line}");
        }
    }
}
