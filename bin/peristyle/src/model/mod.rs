//! `peristyle model`: predictions, beside what is measured.

mod curve;
mod files;
mod profile;
mod queue;
mod show;
mod told;

use crate::bench::{Rw, size, time};
use crate::failure::Failure;
use clap::{Args, Subcommand};
use peristyle_bench::model::whatif::Change;
use peristyle_bench::session::Target;
use std::path::PathBuf;
use std::time::Duration;

#[derive(Subcommand, Debug)]
pub enum ModelCommand {
    Queue(QueueOptions),
    Curve(CurveOptions),
    Class(ClassOptions),
    Scaling(ScalingOptions),
}

/// One queue in closed form: M/M/1, M/M/c, and M/G/1 beside it
#[derive(Args, Debug)]
#[command(after_help = "\
Two cashiers, a customer a minute, a minute each: a customer is there for 1 1/3 minutes (80 s).
Examples:
  peristyle model queue --rate 1/min --service 60s --servers 2
  peristyle model queue --rate 200k/s --service 3.1us --cv2 0.2 --json")]
pub struct QueueOptions {
    /// What comes: a number per s, min or ms, such as 1/min or 200k/s
    #[arg(long, value_name = "N/UNIT", value_parser = queue::rate)]
    pub rate: f64,
    /// Mean time that a server needs for one: ns, us, ms, s or min
    #[arg(long, value_name = "TIME", value_parser = queue::service)]
    pub service: f64,
    /// They share one queue
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub servers: u32,
    /// Variance of the time of service over the square of its mean: with one server, the mean wait of M/G/1 as well
    #[arg(long, value_name = "RATIO")]
    pub cv2: Option<f64>,
    #[arg(long)]
    pub json: bool,
}

/// Latency against load of a target, predicted from a profile at light load, beside what is measured
///
/// The profile is commands one at a time and small bursts. Then a closed loop is predicted and measured at depths that double, and an
/// open loop at shares of the throughput predicted for the knee: the first depth that reaches 90 % of the most. docs/measuring.md
/// says what is assumed.
#[derive(Args, Debug, Clone)]
#[command(after_help = "\
Writes destroy what is on the volume; reads should be of one that was written. The target should poll (`--poll busy`), with a core of
its own, as should the generator.
What-if: NAME*FACTOR (a stage or station takes so many times as long), NAME+N and NAME-N (servers), NAME+20us (in each visit),
NAME:I*FACTOR (one of several). Stations are host (the generator), network, reactors, and device when --stages finds some
beside the reactors; stages are turn, request, and with --stages encode, lookup, verify, device_read, device_write.
Examples:
  peristyle model curve --target tcp://127.0.0.1:4420 --rw randread,randwrite --core 1
  peristyle model curve --target tcp://127.0.0.1:4420 --stages --what-if encode*0.7 --what-if network+20us --no-measure
  peristyle model curve --target tcp://127.0.0.1:4420 --rw randrw --what-if reactors+1 --bar --json")]
pub struct CurveOptions {
    /// tcp://IP:PORT, or tcp://IP:PORT/NQN; without an NQN, the first subsystem of the discovery log
    #[arg(long, value_name = "URL")]
    pub target: Target,
    /// Namespace [default: the first]
    #[arg(long, value_name = "NSID")]
    pub volume: Option<u32>,
    /// Workloads; each has a profile and a curve of its own
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Rw::Randread])]
    pub rw: Vec<Rw>,
    /// Reads of `randrw`, percent
    #[arg(long, default_value_t = 70, value_name = "PERCENT", value_parser = clap::value_parser!(u8).range(0..=100))]
    pub read_share: u8,
    /// Bytes of one command
    #[arg(long, default_value = "4k", value_name = "SIZE", value_parser = size)]
    pub bs: u32,
    /// The largest depth of the closed loop, and of commands in flight in the open one
    #[arg(long, default_value_t = 64, value_name = "N", value_parser = clap::value_parser!(u32).range(2..=1024))]
    pub qd: u32,
    /// Sizes of the profile's bursts
    #[arg(long, value_delimiter = ',', default_values_t = [1, 4, 16, 32], value_name = "N,...",
          value_parser = clap::value_parser!(u32).range(1..=256))]
    pub bursts: Vec<u32>,
    /// Loads of the open loop, percent of the throughput predicted for the knee
    #[arg(long, value_delimiter = ',', default_values_t = [10, 30, 50, 70, 80, 90], value_name = "PERCENT,...",
          value_parser = clap::value_parser!(u32).range(1..=99))]
    pub loads: Vec<u32>,
    /// How long each point is measured
    #[arg(long, default_value = "1s", value_name = "TIME", value_parser = time)]
    pub runtime: Duration,
    /// Nothing is asked for so long before each of them: real-time priority has a share of each second only
    #[arg(long, default_value = "0s", value_name = "TIME", value_parser = time)]
    pub rest: Duration,
    /// Core for the generator, which is one reactor [default: not pinned]
    #[arg(long, value_name = "CORE")]
    pub core: Option<usize>,
    /// Reactors of the target among which commands spread; one connection stays with one of them
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=256))]
    pub reactors: u32,
    /// Of the way there and back, which keeps nobody busy; what is not told here counts as the target's turn
    #[arg(long, default_value_t = 0.0, value_name = "US")]
    pub network_us: f64,
    /// Ask the node at --admin for its stages during the profile, so that they have names
    #[arg(long)]
    pub stages: bool,
    /// Requests that a device of the node works at, at the same time, when --stages finds some that are not memory
    #[arg(long, default_value_t = 32, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub device_depth: u32,
    /// Such as encode*0.7, reactors+1, network+20us or device:1*3; can be given several times, each by itself
    #[arg(long, value_name = "CHANGE")]
    pub what_if: Vec<Change>,
    /// Predict only
    #[arg(long)]
    pub no_measure: bool,
    /// Simulated commands of each point
    #[arg(long, default_value_t = 200_000, value_name = "N", value_parser = clap::value_parser!(u32).range(1000..=10_000_000))]
    pub requests: u32,
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Fail unless throughput at the knee is within 15 % of what is measured, and p99 at 70 % within 25 %
    #[arg(long, conflicts_with = "no_measure")]
    pub bar: bool,
    #[arg(long)]
    pub json: bool,
}

/// The most that a class of machines can do, from what a request costs and what the parts do by themselves
#[derive(Args, Debug)]
#[command(after_help = files::CLASS_HELP)]
pub struct ClassOptions {
    /// TOML file, as below; unknown keys are errors
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    #[arg(long)]
    pub json: bool,
}

/// Throughput of more nodes, reactors or connections than were measured, by the Universal Scalability Law
#[derive(Args, Debug)]
#[command(after_help = files::SCALING_HELP)]
pub struct ScalingOptions {
    /// TOML file, as below; unknown keys are errors
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// How many to predict; can be given several times
    #[arg(long = "at", value_name = "N", required = true, value_delimiter = ',')]
    pub at: Vec<f64>,
    #[arg(long)]
    pub json: bool,
}

pub fn model(command: ModelCommand, admin: Option<PathBuf>) -> Result<(), Failure> {
    match command {
        ModelCommand::Queue(options) => queue::command(&options),
        ModelCommand::Curve(options) => curve::command(&options, admin),
        ModelCommand::Class(options) => files::class(&options),
        ModelCommand::Scaling(options) => files::scaling(&options),
    }
}
