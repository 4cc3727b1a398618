//! The command line.

use clap::{Args, Parser, Subcommand, ValueEnum};
use peristyle_base::Scheme;
use peristyle_base::units::parse_bytes;
use peristyle_control::api::FaultKind;
use peristyle_control::config::{ListenAddr, Poll};
use peristyle_control::desired::check_name;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

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
    /// What a running node is and how it does
    Status(JsonOption),
    Stats(StatsOptions),
    Inject(InjectOptions),
    /// Measure a target, and crash a daemon of its own
    #[command(subcommand)]
    Bench(crate::bench::BenchCommand),
    /// Stop a running node cleanly
    Stop,
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
  peristyle dev --nbd --json")]
pub struct DevOptions {
    /// Folder of the store
    #[arg(long, default_value = "./peristyle-dev", value_name = "PATH")]
    pub dir: PathBuf,
    /// How many file-backed devices
    #[arg(long, default_value_t = 6, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=64))]
    pub devices: u16,
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

/// Run a node as a configuration file says
#[derive(Args, Debug)]
#[command(after_help = "The commented sample is deploy/peristyle.toml; unknown keys are errors.")]
pub struct NodeOptions {
    /// TOML file
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
    /// Check the file, say what is wrong or doubtful, and stop
    #[arg(long)]
    pub check: bool,
}

#[derive(Subcommand, Debug)]
pub enum PoolCommand {
    /// Capacity, live and dead blocks, extents by phase and kind, what waits to be freed
    #[command(after_help = "Example: peristyle pool show --json")]
    Show(JsonOption),
    /// How even the use of the devices is, and what moves
    #[command(after_help = "\
A device's share is what it would hold if all were as full as the pool; columns move while one is more than 1.5 % of its
capacity off. One that is larger than 1/(k+m) of the pool cannot have its share: an extent has one column on it.
Example: peristyle pool balance --json")]
    Balance(JsonOption),
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

#[derive(Subcommand, Debug)]
pub enum SnapshotCommand {
    /// Take a snapshot of a volume, or of several at one point
    ///
    /// It takes no space until the volume changes, and no time however large that is. Volumes that are snapshotted together
    /// must be on one shard; `volume show` names it.
    #[command(after_help = "\
Two volumes at the same point:
  peristyle snapshot create db=db-1 log=log-1")]
    Create {
        /// VOLUME=SNAPSHOT
        #[arg(required = true, value_name = "VOLUME=SNAPSHOT", value_parser = pair)]
        group: Vec<(String, String)>,
        #[command(flatten)]
        json: JsonOption,
    },
    List(JsonOption),
    Show {
        name: String,
        #[command(flatten)]
        json: JsonOption,
    },
    /// Delete a snapshot; what its volume and others need of it stays
    Delete {
        name: String,
    },
    /// Make a volume what it was; what was written since is lost
    ///
    /// The volume gets the snapshot's size, too. Hosts should not use it meanwhile: what they have cached is of the volume as
    /// it was.
    #[command(after_help = "Example: peristyle snapshot rollback db-monday --yes")]
    Rollback {
        name: String,
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
    /// Let hosts see a snapshot, as a volume that cannot be written
    Export {
        name: String,
        #[command(flatten)]
        json: JsonOption,
    },
    /// Hide an exported snapshot from hosts
    Unexport {
        name: String,
        #[command(flatten)]
        json: JsonOption,
    },
}

/// `VOLUME=SNAPSHOT`.
fn pair(text: &str) -> Result<(String, String), String> {
    let (volume, snapshot) = text
        .split_once('=')
        .ok_or_else(|| format!("`{text}`: write VOLUME=SNAPSHOT, such as db=db-monday"))?;
    check_name(snapshot).map_err(|e| e.to_string())?;
    Ok((volume.into(), snapshot.into()))
}

#[derive(Subcommand, Debug)]
pub enum VolumeCommand {
    List(JsonOption),
    /// Create a volume; hosts that are connected see it at once
    #[command(after_help = "Example: peristyle volume create db 64GiB")]
    Create {
        name: String,
        /// Such as 512MiB or 1TiB; a multiple of 4096
        #[arg(value_parser = size)]
        size: u64,
        /// Logical block size, 4096 or 512 [default: the node's]
        #[arg(long, value_name = "BYTES", value_parser = lba)]
        lba: Option<u32>,
        #[command(flatten)]
        json: JsonOption,
    },
    /// Give a volume another size; hosts that are connected by NVMe/TCP see it at once
    ///
    /// A larger volume reads as zeros behind its former end. A smaller one needs --shrink, and --discard-data too if
    /// there is data behind the new end: make the file system smaller first. NBD clients see the new size when they
    /// connect again. When it is not known whether it happened, the same command again makes it so.
    #[command(after_help = "\
Examples:
  peristyle volume resize db 128GiB
  resize2fs /dev/nvme1n1                  then, in the host
  peristyle volume resize db 32GiB --shrink
  peristyle volume resize scratch 1GiB --shrink --discard-data")]
    Resize {
        name: String,
        /// The new size, such as 512MiB or 1TiB; a multiple of 4096
        #[arg(value_parser = size)]
        size: u64,
        /// A size below the present one is meant
        #[arg(long)]
        shrink: bool,
        /// Give up data behind the new end, for good
        #[arg(long, requires = "shrink")]
        discard_data: bool,
        #[command(flatten)]
        json: JsonOption,
    },
    /// Make a volume of a snapshot: it is written at once, and shares what it does not change
    #[command(after_help = "Example: peristyle volume clone db-monday db-test")]
    Clone {
        snapshot: String,
        name: String,
        #[command(flatten)]
        json: JsonOption,
    },
    /// Copy what a volume shares with others, so that it depends on nothing; it can be used meanwhile
    Flatten {
        name: String,
        #[command(flatten)]
        json: JsonOption,
    },
    /// Delete a volume and what is on it
    Delete {
        name: String,
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
    Show {
        name: String,
        #[command(flatten)]
        json: JsonOption,
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

/// `NAME=SIZE`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeArg {
    pub name: String,
    pub bytes: u64,
}

fn size(text: &str) -> Result<u64, String> {
    parse_bytes(text).ok_or_else(|| format!("`{text}` is not a size: write 512MiB, 4G or a number of bytes"))
}

fn device_size(text: &str) -> Result<u64, String> {
    match size(text)? {
        bytes if bytes >= 64 << 20 => Ok(bytes),
        _ => Err("a device needs 64MiB at least".into()),
    }
}

/// What stands for a device of a development store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeviceArg {
    Path(PathBuf),
    Memory(u64),
}

fn device_arg(text: &str) -> Result<DeviceArg, String> {
    match text.strip_prefix("memory:") {
        Some(bytes) => Ok(DeviceArg::Memory(device_size(bytes)?)),
        None => Ok(DeviceArg::Path(text.into())),
    }
}

fn volume_arg(text: &str) -> Result<VolumeArg, String> {
    let (name, bytes) =
        text.split_once('=').ok_or_else(|| format!("`{text}`: write NAME=SIZE, such as demo=4GiB"))?;
    check_name(name).map_err(|e| e.to_string())?;
    Ok(VolumeArg { name: name.into(), bytes: size(bytes)? })
}

fn lba(text: &str) -> Result<u32, String> {
    match text {
        "4096" => Ok(4096),
        "512" => Ok(512),
        _ => Err("4096 or 512".into()),
    }
}

fn duration(text: &str) -> Result<Duration, String> {
    let bad = || format!("`{text}` is not a time: write 500ms, 5s or 2m, at most 1h");
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| bad())?;
    let factor = match unit {
        "ms" => 1,
        "s" | "" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err(bad()),
    };
    match number.checked_mul(factor) {
        Some(ms) if (1..=3_600_000).contains(&ms) => Ok(Duration::from_millis(ms)),
        _ => Err(bad()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn parse(line: &str) -> Result<Cli, String> {
        Cli::try_parse_from(line.split_whitespace()).map_err(|e| e.to_string())
    }

    fn dev(line: &str) -> DevOptions {
        match parse(line).unwrap().command {
            Command::Dev(options) => options,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_command_line_is_well_made() {
        Cli::command().debug_assert();
    }

    #[test]
    fn dev_needs_no_options() {
        let d = dev("peristyle dev");
        assert_eq!((d.devices, d.device_size, d.scheme.to_string().as_str()), (6, 4 << 30, "4+2"));
        assert_eq!(
            (d.listen.to_string().as_str(), d.lba, d.poll),
            ("127.0.0.1:4420", 4096, PollArg::Adaptive)
        );
        assert!(d.volumes.is_empty() && d.nbd.is_none() && d.advertise.is_none() && !d.json);
    }

    #[test]
    fn dev_takes_what_its_help_shows() {
        let d = dev(
            "peristyle dev --devices 4 --scheme 2+1 --device-size 1GiB --volume a=512MiB --volume b=1GiB --nbd --json",
        );
        assert_eq!(d.volumes[1], VolumeArg { name: "b".into(), bytes: 1 << 30 });
        assert_eq!(d.nbd.unwrap().to_string(), "127.0.0.1:10809");
        let d = dev(
            "peristyle dev --device /dev/a --device /dev/b --nbd unix:/tmp/nbd.sock --lba 512 --poll busy",
        );
        assert_eq!((d.device_list.len(), d.lba, Poll::from(d.poll)), (2, 512, Poll::Busy));
        assert_eq!(d.nbd, Some(ListenAddr::Unix("/tmp/nbd.sock".into())));
    }

    #[test]
    fn every_example_in_the_help_parses() {
        let mut command = Cli::command();
        let mut examples = Vec::new();
        command.build();
        for sub in command.get_subcommands().flat_map(|c| c.get_subcommands().chain([c])) {
            let help = sub.get_after_help().map(|h| h.to_string()).unwrap_or_default();
            let lines = help.lines().map(|l| l.trim().trim_start_matches("Example: ").to_owned());
            examples.extend(lines.filter(|l| l.starts_with("peristyle ")));
        }
        assert!(examples.len() >= 9, "{examples:?}");
        for example in examples {
            let line = example.split('|').next().unwrap();
            parse(line).unwrap_or_else(|e| panic!("{line}: {e}"));
        }
    }

    #[test]
    fn mistakes_are_answered_with_what_to_write() {
        for (line, word) in [
            ("dev --scheme 17+1", "k in 1..=16"),
            ("dev --volume demo", "NAME=SIZE"),
            ("dev --volume a/b=1G", "not a name"),
            ("dev --volume a=big", "512MiB"),
            ("dev --device /dev/a --devices 3", "cannot be used with"),
            ("dev --lba 1024", "4096 or 512"),
            ("dev --devices 0", "1..=64"),
            ("dev --device-size 1M", "64MiB"),
            ("dev --listen localhost", "invalid"),
            ("dev --nbd localhost", "IP:PORT"),
            ("node", "--config"),
            ("volume resize a", "<SIZE>"),
            ("volume resize a big", "512MiB"),
            ("volume resize a 1G --discard-data", "--shrink"),
            ("device format", "<PATH>"),
            ("inject 1 stall --for 5x", "500ms"),
            ("inject 1 stall --for 2h", "at most 1h"),
            ("inject 1 burn", "stall"),
            ("stats --watch 0", "1..=3600"),
        ] {
            let error = parse(&format!("peristyle {line}")).unwrap_err();
            assert!(error.contains(word), "{line}: {error}");
        }
    }

    #[test]
    fn times_have_units() {
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("5s"), Ok(Duration::from_secs(5)));
        assert_eq!(duration("1h"), Ok(Duration::from_secs(3600)));
        for bad in ["", "s", "0s", "99999999999999999999s", "-1s", "61m"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }
}
