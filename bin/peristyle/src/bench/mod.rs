//! `peristyle bench`: load and crashes, against any NVMe/TCP target or a daemon of its own.

mod amplification;
mod beside;
mod collect;
pub(crate) mod compare;
mod crash;
mod daemon;
mod echo;
mod failover;
mod floor;
mod goals;
mod idle;
pub mod machine;
mod nodes;
mod pool;
mod raw;
mod record;
mod restart;
pub(crate) mod run;
mod series;
mod snapshots;

pub(crate) use run::read_text;
pub(crate) use series::unlike;

use crate::failure::Failure;
use clap::{Args, Subcommand, ValueEnum};
use peristyle_base::BLOCK_BYTES;
use peristyle_base::units::parse_bytes;
use peristyle_bench::load::IO_BYTES_MAX;
use peristyle_bench::pattern::Pattern;
use peristyle_bench::session::Target;
use peristyle_rt::PollMode;
use std::path::PathBuf;
use std::time::Duration;

#[derive(Subcommand, Debug)]
pub enum BenchCommand {
    Run(Box<run::RunOptions>),
    Series(Box<series::SeriesOptions>),
    Raw(RawOptions),
    Amplification(amplification::AmplificationOptions),
    Record(record::RecordOptions),
    Compare(compare::CompareOptions),
    Echo(EchoOptions),
    Floor(FloorOptions),
    Goals(goals::GoalsOptions),
    Idle(IdleOptions),
    Crash(CrashOptions),
    Failover(failover::FailoverOptions),
    Restart(RestartOptions),
    Collect(CollectOptions),
    Snapshots(SnapshotsOptions),
}

/// What devices and the network do by themselves: the floor under a volume's figures
///
/// Every combination of --rw, --bs and --qd is measured on each device (io_uring, O_DIRECT) and as an echo over TCP with as many
/// bytes as a command and its answer have.
#[derive(Args, Debug, Clone)]
#[command(after_help = "\
Writes destroy what is on a device: one that holds something is refused without --force.
Examples:
  peristyle bench raw --bs 4k,128k --qd 1,32
  peristyle bench raw --device /tmp/d0 --create 4GiB --fill --rw randread,randwrite")]
pub struct RawOptions {
    /// A block device, a file, or memory:SIZE; can be given several times
    #[arg(long, value_name = "PATH", value_parser = crate::cli::values::device_arg)]
    pub device: Vec<crate::cli::values::DeviceArg>,
    /// Make files that are not there, sparse, so large
    #[arg(long, value_name = "SIZE", value_parser = size64)]
    pub create: Option<u64>,
    /// Bytes at the front of each device that are used
    #[arg(long, default_value = "1TiB", value_name = "SIZE", value_parser = size64)]
    pub span: u64,
    /// Write all of that first, from front to back
    #[arg(long)]
    pub fill: bool,
    /// Write to a device that holds something
    #[arg(long)]
    pub force: bool,
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Rw::Randread])]
    pub rw: Vec<Rw>,
    #[arg(long, default_value = "4k", value_name = "SIZE,...", value_delimiter = ',', value_parser = raw_size)]
    pub bs: Vec<u32>,
    #[arg(long, default_value = "1,32", value_name = "N,...", value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub qd: Vec<u32>,
    /// Of each figure of a device
    #[arg(long, default_value = "1s", value_name = "TIME", value_parser = time)]
    pub runtime: Duration,
    /// Writes may be in a volatile cache when they are answered
    #[arg(long)]
    pub no_sync: bool,
    /// Devices only
    #[arg(long)]
    pub no_network: bool,
    /// Cores of the echo's two sides [default: not pinned]
    #[arg(long, value_delimiter = ',', value_name = "SERVER,CLIENT")]
    pub cores: Vec<usize>,
    #[arg(long)]
    pub json: bool,
}

/// The round trip of plain sockets on this machine: what no target can be faster than
#[derive(Args, Debug, Clone)]
pub struct EchoOptions {
    /// Round trips of each shape
    #[arg(long, default_value_t = 50_000, value_name = "N")]
    pub rounds: u32,
    /// Cores of the two sides [default: not pinned]
    #[arg(long, value_delimiter = ',', value_name = "SERVER,CLIENT")]
    pub cores: Vec<usize>,
    #[arg(long)]
    pub json: bool,
}

/// Random 4 KiB reads at queue depth 1 beside a plain echo of the same sizes, in turns
///
/// Needs an idle machine with two cores, and a daemon that sleeps when idle (`--poll adaptive`).
#[derive(Args, Debug, Clone)]
pub struct FloorOptions {
    #[arg(long, value_name = "URL")]
    pub target: Target,
    #[arg(long, value_name = "NSID")]
    pub volume: Option<u32>,
    /// Turns; the medians count
    #[arg(long, default_value_t = 5, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=99))]
    pub turns: u32,
    #[arg(long, default_value_t = 50_000, value_name = "N")]
    pub rounds: u32,
    #[arg(long, value_delimiter = ',', value_name = "SERVER,CLIENT")]
    pub cores: Vec<usize>,
    /// Write the whole volume first; what is on it is lost. Without it, a volume that was not written is refused
    #[arg(long)]
    pub fill: bool,
    /// Fail when the reads' median is more than so many times the echo's
    #[arg(long, value_name = "RATIO")]
    pub bar: Option<f64>,
    #[arg(long)]
    pub json: bool,
}

/// The share of a core that a process uses while nobody asks it for anything
#[derive(Args, Debug, Clone)]
pub struct IdleOptions {
    /// As `peristyle dev --json` tells it
    #[arg(long, value_name = "PID")]
    pub pid: u32,
    #[arg(long, default_value = "20s", value_name = "TIME", value_parser = time)]
    pub runtime: Duration,
    /// Meanwhile a host is connected here, and does nothing but keep its connections alive
    #[arg(long, value_name = "URL")]
    pub target: Option<Target>,
    /// Fail when it uses more
    #[arg(long, value_name = "PERCENT")]
    pub bar: Option<f64>,
    #[arg(long)]
    pub json: bool,
}

/// Kill a daemon in the middle of writes, start it again, and look what it has kept
///
/// Every acknowledged write must be there, every other wholly or not at all, up to 512 KiB.
#[derive(Args, Debug, Clone)]
pub struct CrashOptions {
    #[arg(long, default_value_t = 50, value_name = "N")]
    pub rounds: u32,
    /// Of writes and of the moments of death [default: drawn]
    #[arg(long)]
    pub seed: Option<u64>,
    /// Folder for the store [default: a new one under the system's temporary folder]
    #[arg(long, value_name = "PATH")]
    pub dir: Option<PathBuf>,
    #[arg(long, default_value = "256MiB", value_name = "SIZE", value_parser = size64)]
    pub volume_size: u64,
    /// Of each of the 6 devices, which are sparse files
    #[arg(long, default_value = "4GiB", value_name = "SIZE", value_parser = size64)]
    pub device_size: u64,
    #[arg(long, default_value = "4+2", value_name = "K+M")]
    pub scheme: peristyle_base::Scheme,
    #[arg(long, default_value_t = 4, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=16))]
    pub connections: u16,
    /// Writes in flight of each connection
    #[arg(long, default_value_t = 8, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=64))]
    pub qd: u32,
    /// One JSON document per round and one at the end
    #[arg(long)]
    pub json: bool,
}

/// How long a daemon takes from its start until it serves, after kill -9, beside how much data there is
///
/// Each size gets a store of its own, which is filled from end to end, and then overwritten in part at random.
#[derive(Args, Debug, Clone)]
pub struct RestartOptions {
    /// Bytes of data
    #[arg(long, default_value = "1GiB,10GiB,40GiB", value_name = "SIZE,...", value_delimiter = ',', value_parser = size64)]
    pub sizes: Vec<u64>,
    /// Starts of each
    #[arg(long, default_value_t = 3, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100))]
    pub starts: u32,
    /// MiB that are written at random behind the fill: what a start has to replay
    #[arg(long, default_value_t = 512, value_name = "MIB")]
    pub churn: u32,
    #[arg(long, default_value = "4+2", value_name = "K+M")]
    pub scheme: peristyle_base::Scheme,
    /// Folder for the stores [default: a new one under the system's temporary folder]
    #[arg(long, value_name = "PATH")]
    pub dir: Option<PathBuf>,
    /// Fail when a start takes longer
    #[arg(long, value_name = "TIME", value_parser = time)]
    pub bar: Option<Duration>,
    #[arg(long)]
    pub json: bool,
}

/// What collection costs: overwrites 4 KiB of a pool of memory devices in this process
///
/// The pool is filled to a share of what users can store, then written several times over. Device bytes of all purposes are
/// counted.
#[derive(Args, Debug, Clone)]
pub struct CollectOptions {
    /// Of each of the k+m devices
    #[arg(long, default_value = "1GiB", value_name = "SIZE", value_parser = size64)]
    pub device_size: u64,
    #[arg(long, default_value = "4+2", value_name = "K+M")]
    pub scheme: peristyle_base::Scheme,
    /// Share of the pool's capacity that the volume has, percent
    #[arg(long, default_value_t = 80, value_name = "PERCENT", value_parser = clap::value_parser!(u8).range(1..=95))]
    pub fill: u8,
    /// How often the pool's capacity is written
    #[arg(long, default_value_t = 5, value_name = "N")]
    pub times: u32,
    #[arg(long, value_enum, default_value_t = Distribution::Uniform)]
    pub distribution: Distribution,
    #[arg(long, value_enum, default_value_t = Choice::CostBenefit)]
    pub policy: Choice,
    /// Writes in flight
    #[arg(long, default_value_t = 512, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub qd: u32,
    /// Writes per second; 0: as fast as it goes. With a rate, an empty pool is measured as well
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub rate: u64,
    /// Ready extents in stock
    #[arg(long, default_value_t = 2, value_name = "N")]
    pub ready: usize,
    /// Fail above so many device bytes per user byte
    #[arg(long, value_name = "RATIO")]
    pub bar: Option<f64>,
    #[arg(long)]
    pub json: bool,
}

/// What snapshots and clones cost: reads beside those of a volume without, and the time to make them
///
/// On a pool of memory devices in this process. Two volumes get the same writes, one of them with a snapshot before each round of
/// overwrites; then the other one's snapshot is cloned. Reads are measured in turns. Fails when a block is not what it must
/// be, or when what volumes and snapshots take does not add up to the pool's live blocks.
#[derive(Args, Debug, Clone)]
#[command(after_help = "\
Examples:
  peristyle bench snapshots --bar 10 --snapshot-bar 10ms
  peristyle bench snapshots --volume-size 64MiB --deep 16 --clones 0 --json")]
pub struct SnapshotsOptions {
    /// Of each of the k+m devices
    #[arg(long, default_value = "1GiB", value_name = "SIZE", value_parser = size64)]
    pub device_size: u64,
    #[arg(long, default_value = "4+2", value_name = "K+M")]
    pub scheme: peristyle_base::Scheme,
    #[arg(long, default_value = "512MiB", value_name = "SIZE", value_parser = size64)]
    pub volume_size: u64,
    /// Snapshots of the one volume
    #[arg(long, default_value_t = 64, value_name = "N", value_parser = count(254))]
    pub deep: usize,
    /// Blocks that are overwritten after each, percent
    #[arg(long, default_value_t = 2.0, value_name = "PERCENT")]
    pub overwrite: f64,
    /// Clones of one image
    #[arg(long, default_value_t = 1000, value_name = "N", value_parser = count(10_000))]
    pub clones: usize,
    /// Blocks that are written to each clone
    #[arg(long, default_value_t = 16, value_name = "N")]
    pub clone_writes: u64,
    /// Reads in flight
    #[arg(long, default_value_t = 32, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub qd: u32,
    /// How long each turn of reads takes
    #[arg(long, default_value = "200ms", value_name = "TIME", value_parser = time)]
    pub runtime: Duration,
    /// Turns; the medians count
    #[arg(long, default_value_t = 25, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=99))]
    pub turns: u32,
    /// Of the map in memory, at most
    #[arg(long, default_value = "256MiB", value_name = "SIZE", value_parser = size64)]
    pub map_cache: u64,
    /// Fail when reads deep below snapshots are slower by more than this
    #[arg(long, value_name = "PERCENT")]
    pub bar: Option<f64>,
    /// Fail when reads of clones are slower by more than this
    #[arg(long, value_name = "PERCENT")]
    pub clone_bar: Option<f64>,
    /// Fail when making a snapshot takes longer
    #[arg(long, value_name = "TIME", value_parser = time)]
    pub snapshot_bar: Option<Duration>,
    #[arg(long)]
    pub json: bool,
}

impl SnapshotsOptions {
    /// Blocks that one round overwrites.
    fn round(&self, blocks: u64) -> u64 {
        (blocks as f64 * self.overwrite.clamp(0.0, 100.0) / 100.0) as u64
    }
}

/// Which block is written next
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Distribution {
    Uniform,
    /// With the exponent 0.99
    Zipf,
}

/// How collection chooses; the last two are there to be compared with the first
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Choice {
    CostBenefit,
    OneStream,
    Greedy,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Rw {
    Randread,
    Randwrite,
    Randrw,
    Read,
    Write,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Arrival {
    /// Independent of each other
    Poisson,
    /// At equal distances
    Even,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Digest {
    Header,
    Data,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Polling {
    Busy,
    Adaptive,
    Sleep,
}

impl From<Polling> for PollMode {
    fn from(polling: Polling) -> PollMode {
        match polling {
            Polling::Busy => PollMode::Busy,
            Polling::Adaptive => PollMode::Adaptive,
            Polling::Sleep => PollMode::Sleep,
        }
    }
}

impl Rw {
    /// Places, and reads in percent, which are `mixed` where both are asked for.
    pub fn meaning(self, mixed: u8) -> (Pattern, u8) {
        match self {
            Rw::Randread => (Pattern::Random, 100),
            Rw::Randwrite => (Pattern::Random, 0),
            Rw::Randrw => (Pattern::Random, mixed),
            Rw::Read => (Pattern::Sequential, 100),
            Rw::Write => (Pattern::Sequential, 0),
        }
    }
}

/// A number up to this one.
fn count(most: usize) -> impl Fn(&str) -> Result<usize, String> + Clone {
    move |text| text.parse().ok().filter(|n| *n <= most).ok_or_else(|| format!("write a number up to {most}"))
}

fn size64(text: &str) -> Result<u64, String> {
    parse_bytes(text).ok_or_else(|| format!("`{text}` is not a size: write 4k, 128KiB or a number of bytes"))
}

pub(crate) fn size(text: &str) -> Result<u32, String> {
    size64(text)?.try_into().map_err(|_| format!("`{text}` is too large"))
}

fn raw_size(text: &str) -> Result<u32, String> {
    let fits = |bytes: &u32| *bytes > 0 && *bytes <= IO_BYTES_MAX && bytes.is_multiple_of(BLOCK_BYTES as u32);
    size(text).ok().filter(fits).ok_or_else(|| format!("`{text}`: a multiple of 4096, 1 MiB at most"))
}

pub(crate) fn time(text: &str) -> Result<Duration, String> {
    let bad = || format!("`{text}` is not a time: write 500ms, 5s or 2m");
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let factor = match unit {
        "ms" => 1,
        "s" | "" => 1000,
        "m" => 60_000,
        _ => return Err(bad()),
    };
    let number: u64 = number.parse().map_err(|_| bad())?;
    number.checked_mul(factor).filter(|&ms| ms <= 86_400_000).map(Duration::from_millis).ok_or_else(bad)
}

pub fn bench(command: BenchCommand) -> Result<(), Failure> {
    match command {
        BenchCommand::Run(options) => run::command(&options),
        BenchCommand::Series(options) => series::command(&options),
        BenchCommand::Raw(options) => raw::command(&options),
        BenchCommand::Amplification(options) => amplification::command(&options),
        BenchCommand::Record(options) => record::command(&options),
        BenchCommand::Compare(options) => compare::command(&options),
        BenchCommand::Echo(options) => echo::command(&options),
        BenchCommand::Floor(options) => floor::command(&options),
        BenchCommand::Goals(options) => goals::command(&options),
        BenchCommand::Collect(options) => collect::command(&options),
        BenchCommand::Snapshots(options) => snapshots::command(&options),
        BenchCommand::Idle(options) => idle::command(&options),
        BenchCommand::Crash(options) => crash::command(&options),
        BenchCommand::Failover(options) => failover::command(&options),
        BenchCommand::Restart(options) => restart::command(&options),
    }
}
