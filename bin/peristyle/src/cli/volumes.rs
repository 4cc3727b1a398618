//! Commands for volumes and snapshots.

use super::JsonOption;
use super::values::{lba, pair, size};
use clap::Subcommand;

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
