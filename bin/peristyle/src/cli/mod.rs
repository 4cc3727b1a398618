//! The command line.

mod cluster;
mod dev;
mod devices;
mod hosts;
#[cfg(test)]
mod tests;
pub(crate) mod values;
mod volumes;

pub use cluster::{ClusterCommand, CreateOptions};
pub use dev::DevOrder;
pub use devices::{DeviceCommand, ExtentCommand, PlanOptions, PoolCommand, StoreOptions};
pub use hosts::HostCommand;
pub use values::{DeviceArg, VolumeArg};
pub use volumes::{SnapshotCommand, VolumeCommand};

use clap::{Args, Parser, Subcommand, ValueEnum};
use peristyle_base::Scheme;
use peristyle_control::api::FaultKind;
use peristyle_control::config::{ListenAddr, Poll};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;
use values::{device_arg, device_size, duration, lba, maintenance, volume_arg};

const AFTER: &str = "\
Start here:
  peristyle dev                                   a store in ./peristyle-dev, a volume, NVMe/TCP on 127.0.0.1:4420
  nvme connect -t tcp -a 127.0.0.1 -s 4420 -n …   as `dev` prints it; then use /dev/nvmeXn1

Exit codes: 0 done, 1 failed, 2 wrong command line or value, 3 no node answers, 4 not found,
5 exists already, 6 unknown whether it happened, 7 damage was found.";

/// Erasure-coded block storage that hosts attach with the NVMe/TCP initiator they already have.
#[derive(Parser, Debug)]
#[command(name = "peristyle", version, after_help = AFTER, max_term_width = 100)]
pub struct Cli {
    /// Admin socket of the node to talk to [default: ./peristyle-dev/admin.sock if it is there, else
    /// /run/peristyle/admin.sock]
    #[arg(long, global = true, value_name = "PATH", env = "PERISTYLE_ADMIN")]
    pub admin: Option<PathBuf>,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Subcommand, Debug)]
pub enum Command {
    Dev(DevOptions),
    Node(NodeOptions),
    /// Make a cluster of nodes, and look at one
    #[command(subcommand)]
    Cluster(ClusterCommand),
    /// Hosts that are connected, and the paths that they have
    #[command(subcommand)]
    Host(HostCommand),
    /// Prepare and look at devices
    #[command(subcommand)]
    Device(DeviceCommand),
    /// List, create, resize, clone and delete volumes of a running node
    #[command(subcommand)]
    Volume(VolumeCommand),
    /// Take, list, delete, export and return to snapshots of a running node's volumes
    #[command(subcommand)]
    Snapshot(SnapshotCommand),
    /// How the space of a running node's pool is used
    #[command(subcommand)]
    Pool(PoolCommand),
    /// Single extents of the shards that a running node serves
    #[command(subcommand)]
    Extent(ExtentCommand),
    /// What a running node is and how it does
    Status(JsonOption),
    Stats(StatsOptions),
    Profile(ProfileOptions),
    Top(TopOptions),
    Inject(InjectOptions),
    /// Measure a target, and crash a daemon of its own
    #[command(subcommand)]
    Bench(crate::bench::BenchCommand),
    /// Predict latency and throughput: queues, a target's curve, a class of machines, scaling
    #[command(subcommand)]
    Model(crate::model::ModelCommand),
    Report(crate::report::ReportOptions),
    /// Stop a running node cleanly
    Stop,
    /// The shared store of a development cluster without etcd
    #[command(hide = true)]
    ServeStore {
        #[arg(long)]
        file: PathBuf,
        #[arg(long)]
        listen: SocketAddr,
        #[arg(long)]
        name: String,
    },
}

#[derive(Args, Debug)]
pub struct JsonOption {
    /// One JSON document instead of a table
    #[arg(long)]
    pub json: bool,
}

/// Run a development store: create it or open it again, serve it, print how to attach
///
/// Files that stand for devices are sparse. Everything lives in --dir; started again with the same --dir, the same
/// data is served. Durable against a crash of the process, not of the machine: use `node` for that.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  peristyle dev
  peristyle dev --devices 4 --scheme 2+1 --device-size 1GiB --volume a=512MiB --volume b=1GiB
  peristyle dev --device /dev/nvme1n1 --device /dev/nvme2n1 --device /dev/nvme3n1 --scheme 1+2
  peristyle dev --listen 0.0.0.0:4420 --advertise 192.0.2.10:4420
  peristyle dev --device memory:1GiB --device memory:1GiB --scheme 1+1 --volume ram=512MiB
  peristyle dev --nbd --json
  peristyle dev --nodes 6 --dir ./peristyle-cluster
  peristyle dev --nodes 6 --racks 3 --scheme 2+1
  peristyle dev kill 3 --dir ./peristyle-cluster
  peristyle dev cut 1 2 --one-way --dir ./peristyle-cluster")]
#[command(args_conflicts_with_subcommands = true)]
pub struct DevOptions {
    #[command(subcommand)]
    pub order: Option<DevOrder>,
    /// A cluster of so many node processes, with etcd, instead of one node; ports from --listen on
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=32))]
    pub nodes: Option<u16>,
    /// Keep what the nodes share in the embedded store of one more process, also where etcd is installed
    #[arg(long, requires = "nodes")]
    pub without_etcd: bool,
    /// Of the nodes, which are in them by turns: no two columns of an extent are in one rack
    #[arg(long, requires = "nodes", value_name = "N", value_parser = clap::value_parser!(u16).range(1..=32))]
    pub racks: Option<u16>,
    /// Have the nodes speak TLS with each other, as they do by themselves on a network
    #[arg(long, requires = "nodes")]
    pub tls: bool,
    /// Have nodes hand on commands of hosts that do not reach the owner of a volume
    #[arg(long, requires = "nodes")]
    pub forward: bool,
    /// Folder of the store
    #[arg(long, default_value = "./peristyle-dev", value_name = "PATH")]
    pub dir: PathBuf,
    /// How many file-backed devices [default: 6; of each node of a cluster: 1]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=64))]
    pub devices: Option<u16>,
    /// Size of each file-backed device [at least 64MiB]
    #[arg(long, default_value = "4GiB", value_name = "SIZE", value_parser = device_size)]
    pub device_size: u64,
    /// A block device or file to use instead, repeated, formatted if it is blank; or memory:SIZE, gone at the end
    #[arg(long = "device", value_name = "PATH", conflicts_with_all = ["devices", "device_size"], value_parser = device_arg)]
    pub device_list: Vec<DeviceArg>,
    /// k data and m parity columns: any m devices may be lost
    #[arg(long, default_value = "4+2", value_name = "K+M")]
    pub scheme: Scheme,
    /// A volume to create if it is not there, repeated [default for a new store: demo=4GiB]
    #[arg(long = "volume", value_name = "NAME=SIZE", value_parser = volume_arg)]
    pub volumes: Vec<VolumeArg>,
    /// Logical block size of volumes that are created
    #[arg(long, default_value = "4096", value_name = "BYTES", value_parser = lba)]
    pub lba: u32,
    /// Where NVMe/TCP listens
    #[arg(long, default_value = "127.0.0.1:4420", value_name = "ADDR:PORT")]
    pub listen: SocketAddr,
    /// What the discovery log says, when hosts reach the node by another address
    #[arg(long, value_name = "ADDR:PORT")]
    pub advertise: Option<SocketAddr>,
    /// Serve NBD too, at ADDR:PORT or unix:/path [without a value: 127.0.0.1:10809]
    #[arg(long, value_name = "ADDR", num_args = 0..=1, default_missing_value = "127.0.0.1:10809")]
    pub nbd: Option<ListenAddr>,
    /// Reactors (threads); 0 is one per core
    #[arg(long, default_value_t = 0, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=256))]
    pub reactors: u32,
    /// Cores to pin them to, such as 0,2; one for each reactor [default: not pinned]
    #[arg(long, value_delimiter = ',', value_name = "CORES")]
    pub cores: Vec<u32>,
    /// What a reactor does when there is nothing to do
    #[arg(long, value_enum, default_value_t = PollArg::Adaptive)]
    pub poll: PollArg,
    /// Print one JSON line when ready, and no status line
    #[arg(long)]
    pub json: bool,
}

impl DevOptions {
    /// File-backed devices of a node that is alone.
    pub fn devices_alone(&self) -> u16 {
        self.devices.unwrap_or(6)
    }
    /// … and of one of several.
    pub fn devices_of_node(&self) -> u16 {
        self.devices.unwrap_or(1)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum PollArg {
    /// Poll always: shortest latency, a whole core per reactor
    Busy,
    /// Poll while there is work and a little longer, then sleep
    Adaptive,
    /// Sleep at once
    Sleep,
}

impl From<PollArg> for Poll {
    fn from(arg: PollArg) -> Poll {
        match arg {
            PollArg::Busy => Poll::Busy,
            PollArg::Adaptive => Poll::Adaptive,
            PollArg::Sleep => Poll::Sleep,
        }
    }
}

/// Run a node as a configuration file says; or empty a node of a cluster
#[derive(Args, Debug)]
#[command(
    after_help = "The commented sample is deploy/peristyle.toml; unknown keys are errors.",
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true
)]
pub struct NodeOptions {
    #[command(subcommand)]
    pub order: Option<NodeOrder>,
    /// TOML file
    #[arg(long, value_name = "FILE", required = true)]
    pub config: Option<PathBuf>,
    /// Check the file, say what is wrong or doubtful, and stop
    #[arg(long)]
    pub check: bool,
    /// Print one JSON line when ready
    #[arg(long)]
    pub json: bool,
    /// Of a development cluster: make missing files of this size, format blank ones, allow faults to be injected
    #[arg(long, hide = true, value_name = "SIZE", value_parser = device_size)]
    pub development: Option<u64>,
}

/// What is done to a node of a cluster, by whichever node is asked.
#[derive(Subcommand, Debug, Clone, Copy)]
pub enum NodeOrder {
    /// Empty a node: its shards and all columns of its devices go to others, while it goes on to serve what it still has
    ///
    /// It stays a member, and votes. `cluster show` tells how many columns are left; a restart changes nothing about it.
    Drain {
        /// The node's number
        node: u32,
    },
    /// Let a node be away for a while, to restart, upgrade or repair it: nothing is rebuilt for it meanwhile
    ///
    /// Its shards go to others, and writes keep off its devices; what they hold stays and is read while it runs. `node keep` ends it, or the
    /// time does: what is away then is rebuilt elsewhere. Refused when the nodes that are left could not decide, or when data would depend on one
    /// more failure domain than the scheme covers.
    Maintain {
        /// The node's number
        node: u32,
        /// From now on; 30 days at most
        #[arg(long = "for", value_name = "TIME", default_value = "1h", value_parser = maintenance)]
        seconds: u32,
        /// Even when that leaves too few nodes or failure domains: volumes may stand still
        #[arg(long)]
        force: bool,
    },
    /// Take a node out of the cluster for good: it does not vote any more
    ///
    /// It must have ended, some seconds ago, and a majority must be left. Empty it first with `node drain`, or, if its disks are lost, give them up
    /// with `device fail`. Its number is free, and its vote does not count any more, when all other nodes run and have heard of it.
    Remove {
        /// The node's number
        node: u32,
    },
    /// Use a node again that was to be emptied, or was in maintenance
    Keep {
        /// The node's number
        node: u32,
    },
}

/// Figures of a running node, per stage, volume and device
#[derive(Args, Debug)]
#[command(after_help = "\
Times are microseconds. `little` is how far in flight = rate x latency is off: near 0 when a stage counts right.
Examples:
  peristyle stats --watch
  peristyle stats --json | jq '.root.stages[] | {name, p99: .\"p99_us\"}'")]
pub struct StatsOptions {
    /// One JSON document instead of tables
    #[arg(long)]
    pub json: bool,
    /// Again every SECONDS until stopped [without a value: 1]
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "1",
          value_parser = clap::value_parser!(u32).range(1..=3600))]
    pub watch: Option<u32>,
}

/// Where reads and writes of a running node spend their time, stage by stage
#[derive(Args, Debug)]
#[command(after_help = "\
Times are microseconds. Two looks at the counters, --interval apart, and what happened between them.
`per cmd` is a stage's part of the mean from end to end, `to end` that of it and all later stages; `variance` its share of the
whole's variance; `queue` those of `in flight` that wait; `little` how far in flight = rate x latency is off (! above 5 %).
Examples:
  peristyle profile
  peristyle profile --interval 30s
  peristyle profile --since-start --json | jq '.paths[] | {path, most: .variance_most}'")]
pub struct ProfileOptions {
    /// Time between the two looks, such as 500ms or 5s
    #[arg(long, default_value = "5s", value_name = "TIME", value_parser = duration)]
    pub interval: Duration,
    /// All since the node's start instead, at once
    #[arg(long, conflicts_with = "interval")]
    pub since_start: bool,
    /// One JSON document instead of tables
    #[arg(long)]
    pub json: bool,
}

/// The same, drawn anew each second on a terminal
#[derive(Args, Debug)]
#[command(after_help = "\
Keys: q or ctrl-C ends, r shows reads, w writes, b both, p holds the picture.
Example: peristyle top --focus write")]
pub struct TopOptions {
    /// Which path to begin with
    #[arg(long, value_enum, default_value_t = FocusArg::Both)]
    pub focus: FocusArg,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum FocusArg {
    Both,
    Read,
    Write,
}

/// Make a device of a development node misbehave for a while
#[derive(Args, Debug)]
#[command(after_help = "Example: peristyle inject device-2 stall --for 5s")]
pub struct InjectOptions {
    /// Number, path, name (the end of the path) or UUID as in `peristyle device list`
    pub device: String,
    #[arg(value_enum)]
    pub fault: FaultArg,
    /// Such as 500ms or 5s, at most 1h
    #[arg(long = "for", value_name = "TIME", default_value = "5s", value_parser = duration)]
    pub duration: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum FaultArg {
    /// Every operation answers an I/O error
    Fail,
    /// No operation answers until the time is over
    Stall,
}

impl From<FaultArg> for FaultKind {
    fn from(arg: FaultArg) -> FaultKind {
        match arg {
            FaultArg::Fail => FaultKind::Fail,
            FaultArg::Stall => FaultKind::Stall,
        }
    }
}
