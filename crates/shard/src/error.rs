//! Why a request to a shard failed. Closed and copyable: the target maps each to one NVMe status.

/// What a command is told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ShardError {
    /// The pool has no free slots for user writes (invariant "Full is an error, not a loss").
    NoSpace,
    /// More columns are damaged or away than the scheme covers: the block cannot be read now.
    Unreadable,
    /// Compare found a difference.
    Different,
    /// Beyond the end of the volume, or the volume is gone.
    OutOfRange,
    /// The shard does not serve (any more): it stopped, or another owner took it.
    Stopped,
    /// The map's memory (`map_cache_bytes`) does not cover another volume of that size.
    MapFull,
    /// A snapshot does not change.
    ReadOnly,
    /// There is no such volume or snapshot, or there is one already.
    NoSuchLayer,
    /// Something else happened to the volume meanwhile.
    Changed,
}

impl core::fmt::Display for ShardError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            ShardError::NoSpace => "the pool is full",
            ShardError::Unreadable => "more columns are lost than the scheme covers",
            ShardError::Different => "the compared data differs",
            ShardError::OutOfRange => "beyond the end of the volume",
            ShardError::Stopped => "the shard does not serve",
            ShardError::MapFull => "map_cache_bytes does not cover another volume of that size",
            ShardError::ReadOnly => "a snapshot is not written",
            ShardError::NoSuchLayer => "the shard has no such volume or snapshot, or has one already",
            ShardError::Changed => "the volume got another layer meanwhile",
        })
    }
}
impl core::error::Error for ShardError {}

/// Why a layer keeps its size.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ResizeError {
    Shard(ShardError),
    /// Data lies behind the new end, and nobody said that it may go. Its last byte.
    DataBehind(u64),
}

impl From<ShardError> for ResizeError {
    fn from(e: ShardError) -> ResizeError {
        ResizeError::Shard(e)
    }
}

impl core::fmt::Display for ResizeError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            ResizeError::Shard(e) => e.fmt(f),
            ResizeError::DataBehind(byte) => write!(f, "there is data behind the end, up to byte {byte}"),
        }
    }
}
impl core::error::Error for ResizeError {}

/// Why a shard stopped serving.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StopReason {
    /// A higher epoch owns the shard.
    Fenced,
    /// The lease has run out, or a majority has taken another owner.
    LeaseLost,
    /// The program asked for it.
    Shutdown,
}
