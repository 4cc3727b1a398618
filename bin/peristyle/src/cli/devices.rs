//! Commands for pools and their devices.

use super::JsonOption;
use super::values::{Sizes, device_sizes};
use clap::{Args, Subcommand};
use peristyle_base::Scheme;
use std::path::PathBuf;

#[derive(Subcommand, Debug)]
pub enum PoolCommand {
    /// Capacity, live and dead blocks, extents by phase and kind, what waits to be freed, collection and repair
    #[command(after_help = "Example: peristyle pool show --json")]
    Show(JsonOption),
    /// How even the use of the devices is, and what moves
    #[command(after_help = "\
A device's share is what it would hold if all were as full as the pool; columns move while one is more than 1.5 % of its
capacity off. One that is larger than 1/(k+m) of the pool cannot have its share: an extent has one column on it.
Example: peristyle pool balance --json")]
    Balance(JsonOption),
    /// What would move if nodes or devices came or went; nothing does
    #[command(after_help = "\
Each device gets its share of all columns by its capacity, and no failure domain more than one column of each extent.
Examples:
  peristyle pool plan --add-node 4TB,4TB
  peristyle pool plan --remove-node 2 --add-node 7.6TB --json")]
    Plan(PlanOptions),
    /// Give the pool of a cluster another scheme, while it is used
    ///
    /// New data is written with it at once, on all nodes. What is there is converted in the background, as long as there is plenty of
    /// room: `pool show` on each node tells how many extents are left. Until then each has the protection that it was written with.
    #[command(after_help = "Example: peristyle pool set --scheme 4+2")]
    Set {
        /// k data and m parity columns
        #[arg(long, value_name = "K+M")]
        scheme: Scheme,
        /// Also with too few failure domains for it, or too little room for what is there
        #[arg(long)]
        force: bool,
    },
    /// Read all columns now, and repair what is damaged; `pool show` tells how far it is
    Scrub,
    /// Check all that can be checked of a pool that no node serves
    ///
    /// Slots, headers, checkpoint and log against each other and against the control store, which is read from a copy;
    /// with --full all data and parity, too. Writes nothing. Exit code 7 if anything is wrong.
    #[command(after_help = "\
Examples:
  peristyle pool check --dir ./peristyle-dev --full
  peristyle pool check --config /etc/peristyle.toml --json")]
    Check {
        #[command(flatten)]
        store: StoreOptions,
        /// Read all data and parity, not headers alone
        #[arg(long)]
        full: bool,
        #[command(flatten)]
        json: JsonOption,
    },
    /// Show one extent of a pool that no node serves: slots, frames, entries, and which columns agree
    #[command(after_help = "Example: peristyle pool dump-extent 17 --dir ./peristyle-dev")]
    DumpExtent {
        /// The extent's number
        extent: u64,
        /// Of this shard only; several may have an extent of this number
        #[arg(long)]
        shard: Option<u32>,
        #[command(flatten)]
        store: StoreOptions,
        #[command(flatten)]
        json: JsonOption,
    },
}

#[derive(Subcommand, Debug)]
pub enum ExtentCommand {
    /// Which devices have an extent's columns, how these do, and how each failure domain stands in the order of placement
    ///
    /// Columns go to the emptiest failure domains for their size, one to each. Where one was put is not kept; what is told is how that looks
    /// now. Ask the node that serves the shard.
    #[command(after_help = "Example: peristyle extent why 17 --shard 3")]
    Why {
        /// The extent's number
        extent: u64,
        /// Of this shard only; several may have an extent of this number
        #[arg(long)]
        shard: Option<u32>,
        #[command(flatten)]
        json: JsonOption,
    },
}

/// What comes and what goes
#[derive(Args, Debug)]
pub struct PlanOptions {
    /// A node, or another failure domain, with devices of these sizes; once for each
    #[arg(long = "add-node", value_name = "SIZE,…", value_parser = device_sizes)]
    pub add_nodes: Vec<Sizes>,
    /// A device leaves: UUID, path, or number in `device list`; once for each
    #[arg(long = "remove-device", value_name = "DEVICE")]
    pub remove_devices: Vec<String>,
    /// All devices of a node leave; once for each
    #[arg(long = "remove-node", value_name = "NODE")]
    pub remove_nodes: Vec<u32>,
    #[command(flatten)]
    pub json: JsonOption,
}

/// Which pool an offline tool looks at
#[derive(Args, Debug)]
pub struct StoreOptions {
    /// Folder of a development store
    #[arg(long, default_value = "./peristyle-dev", value_name = "PATH", conflicts_with = "config")]
    pub dir: PathBuf,
    /// Configuration of a node
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Where the pool's devices are, if not where the store last saw them; once for each
    #[arg(long = "device", value_name = "PATH")]
    pub devices: Vec<PathBuf>,
}

#[derive(Subcommand, Debug)]
pub enum DeviceCommand {
    /// Make devices ready for a node; what is on them is lost
    #[command(after_help = "Example: peristyle device format /dev/disk/by-id/nvme-example-1")]
    Format {
        #[arg(required = true, value_name = "PATH")]
        paths: Vec<PathBuf>,
        /// Format also what holds a Peristyle label, a file system or a partition table
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        json: JsonOption,
    },
    /// Show a device's label and what its slots hold; the node must not be running
    Inspect {
        #[arg(required = true, value_name = "PATH")]
        paths: Vec<PathBuf>,
        #[command(flatten)]
        json: JsonOption,
    },
    /// Check all that is on devices: labels, slot tables, checksums, holes; the node must not be running
    ///
    /// Writes nothing. Exit code 7 if anything is damaged. What a crash leaves behind is a note, not damage.
    #[command(after_help = "Example: peristyle device check /dev/disk/by-id/nvme-example-1 --json")]
    Check {
        #[arg(required = true, value_name = "PATH")]
        paths: Vec<PathBuf>,
        #[command(flatten)]
        json: JsonOption,
    },
    /// The devices of a running node
    List(JsonOption),
    /// Add a device to a running node; a blank one is formatted. Data moves to it until use is even
    #[command(after_help = "Example: peristyle device add /dev/disk/by-id/nvme-example-7")]
    Add {
        path: PathBuf,
        /// What it fails together with [default: a failure domain of its own]
        #[arg(long, value_name = "N")]
        domain: Option<u32>,
        /// Format it though it has been used before; what is on it is lost
        #[arg(long)]
        format: bool,
    },
    /// Give a device up: nothing is read from it any more, and what it had is rebuilt on the others
    Fail {
        /// UUID, path, or number in `device list`
        device: String,
        /// Also when more devices are missing then than the scheme survives
        #[arg(long)]
        force: bool,
    },
    /// Move a device's data to the others; when nothing is left on it, it leaves
    #[command(
        after_help = "`peristyle pool show` tells how far it is; `peristyle device keep` takes it back."
    )]
    Remove {
        /// UUID, path, or number in `device list`
        device: String,
    },
    /// Keep a device that was to leave
    Keep {
        /// UUID, path, or number in `device list`
        device: String,
    },
    /// Add a device in place of another: one that does not serve is given up, any other leaves when its data has moved
    #[command(after_help = "Example: peristyle device replace 3 /dev/disk/by-id/nvme-example-7")]
    Replace {
        /// UUID, path, or number in `device list`
        device: String,
        /// The new one; it is in the failure domain of the old one
        path: PathBuf,
        /// Format it though it has been used before; what is on it is lost
        #[arg(long)]
        format: bool,
    },
}
