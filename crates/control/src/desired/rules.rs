//! What may be asked for, and what an operator is told otherwise.

use crate::meta::MetaError;
use peristyle_base::units::format_bytes;
use peristyle_base::{BLOCK_BYTES, LayerId, MIB, TIB};

pub const POOLS_MAX: usize = 1; // one per machine, until volumes name their pool
pub const DEVICES_MAX: usize = peristyle_cluster::DEVICES_MAX;
pub const SHARDS_MAX: usize = 64;
pub const VOLUMES_MAX: usize = 1024;
pub const NAME_BYTES_MAX: usize = 63;
/// NVMe Base 2.0c §4.5: an NQN is at most 223 bytes long.
pub const NQN_BYTES_MAX: usize = 223;
pub const VOLUME_BYTES_MIN: u64 = MIB;
pub const VOLUME_BYTES_MAX: u64 = 256 * TIB;
pub const LBA_BYTES_DEFAULT: u32 = 4096;
/// 0 means "no layer" in tools and logs.
pub const LAYER_FIRST: LayerId = LayerId(1);

/// Numbers of volumes' layers end below this.
pub(super) const LAYERS_END: u32 = 1 << 31;

/// A request that cannot be granted, in words for whoever asked.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ControlError {
    #[error(
        "`{0}` is not a name: use 1 to {NAME_BYTES_MAX} letters, digits, `-`, `_` or `.`, starting with a letter or digit"
    )]
    BadName(String),
    #[error(
        "`{0}` is not an NVMe qualified name: write nqn.YYYY-MM.reversed.domain:something, at most {NQN_BYTES_MAX} bytes"
    )]
    BadNqn(String),
    #[error(
        "a volume's size must be a multiple of {BLOCK_BYTES} bytes: {bytes} is not; the next larger one that is: {next}"
    )]
    UnevenSize { bytes: u64, next: u64 },
    #[error("a volume has {min} to {max}: {size} is outside", min = format_bytes(VOLUME_BYTES_MIN),
        max = format_bytes(VOLUME_BYTES_MAX), size = format_bytes(*.0))]
    SizeOutOfRange(u64),
    #[error("the volume `{name}` has {bytes} bytes, more than {wanted}: --shrink allows a smaller size")]
    WouldShrink { name: String, bytes: u64, wanted: u64 },
    #[error("a logical block has 4096 or 512 bytes, not {0}")]
    BadLba(u32),
    #[error("there is already a {kind} `{name}`: choose another name, or delete it first")]
    Exists { kind: &'static str, name: String },
    #[error("there is no {kind} `{name}`; `peristyle {kind} list` shows what there is")]
    NotFound { kind: &'static str, name: String },
    #[error("the volume `{0}` is being deleted")]
    Deleting(String),
    #[error("the volume `{0}` is not being deleted, so its deletion cannot be finished")]
    NotDeleting(String),
    #[error("there are {max} {kind}s, and more are not supported: delete one first")]
    TooMany { kind: &'static str, max: usize },
    #[error("the identity {0} is taken: nothing else may have the same")]
    IdentityTaken(String),
    #[error("the device {0} was given up, and what it has may be old: format it and add it as a new one")]
    DeviceGone(String),
    #[error("{0} is no number of a node: they are 1 to {max}", max = super::NODES_MAX)]
    BadNode(u32),
    #[error(
        "the number {0} belongs to another node: take one that is free (`peristyle cluster show`), or give this node the \
         folder that it had (`node.data_dir`)"
    )]
    NodeTaken(u32),
    #[error(
        "the device {0} of that node is in use: empty it with `node drain`, or give it up with `device fail`"
    )]
    DeviceInUse(String),
    #[error("node {0} runs: stop it first")]
    NodeRuns(u32),
    #[error("node {0} was removed, and its number is free when all others have heard of it: they must run")]
    NodeLeaving(u32),
    #[error("of {all} nodes {left} would be left, fewer than the {needed} that decide")]
    TooFewNodes { all: usize, left: usize, needed: usize },
    #[error("no shard to put the volume on: the store was never completed; create it anew")]
    NoShards,
    #[error("a shard's pool does not exist: create the pool first")]
    NoPool,
    #[error("`{0}` is a snapshot, which never changes: make a clone of it")]
    IsSnapshot(String),
    #[error("`{0}` is no snapshot; `peristyle snapshot list` shows what there is")]
    NotSnapshot(String),
    #[error("the volume `{0}` has snapshots: delete them first")]
    HasSnapshots(String),
    #[error("layer numbers are used up")]
    LayersUsedUp,
    #[error(
        "`{key}` in the control store cannot be read: {why}. It was written by a newer version, or is damaged"
    )]
    Unreadable { key: String, why: String },
    #[error("{0} is already initialised")]
    AlreadyThere(&'static str),
    #[error(transparent)]
    Store(#[from] MetaError),
}

pub fn check_name(name: &str) -> Result<(), ControlError> {
    let first = name.bytes().next().is_some_and(|c| c.is_ascii_alphanumeric());
    let rest = name.bytes().all(|c| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_' | b'.'));
    if first && rest && name.len() <= NAME_BYTES_MAX {
        Ok(())
    } else {
        Err(ControlError::BadName(name.into()))
    }
}

/// NVMe Base 2.0c §4.5: `nqn.` year `-` month `.` reversed domain `:` rest; UTF-8 without NUL.
pub fn check_nqn(nqn: &str) -> Result<(), ControlError> {
    let shape = || {
        let (date, rest) = nqn.strip_prefix("nqn.")?.split_once('.')?;
        let (year, month) = date.split_once('-')?;
        let digits = |s: &str, n| s.len() == n && s.bytes().all(|c| c.is_ascii_digit());
        let month_is_one = digits(month, 2) && (1..=12).contains(&month.parse::<u8>().ok()?);
        let (domain, name) = rest.split_once(':')?;
        let plain = nqn.chars().all(|c| !c.is_control() && c != ' ');
        (digits(year, 4) && month_is_one && !domain.is_empty() && !name.is_empty() && plain).then_some(())
    };
    if nqn.len() <= NQN_BYTES_MAX && shape().is_some() {
        Ok(())
    } else {
        Err(ControlError::BadNqn(nqn.into()))
    }
}

pub fn check_volume_bytes(bytes: u64) -> Result<(), ControlError> {
    if !(VOLUME_BYTES_MIN..=VOLUME_BYTES_MAX).contains(&bytes) {
        return Err(ControlError::SizeOutOfRange(bytes));
    }
    // A multiple of 4096 is one of 512 too, whatever the volume's LBA.
    if !bytes.is_multiple_of(BLOCK_BYTES as u64) {
        return Err(ControlError::UnevenSize { bytes, next: bytes.next_multiple_of(BLOCK_BYTES as u64) });
    }
    Ok(())
}

pub(super) fn check_lba(lba_bytes: u32) -> Result<(), ControlError> {
    if matches!(lba_bytes, 512 | 4096) { Ok(()) } else { Err(ControlError::BadLba(lba_bytes)) }
}
