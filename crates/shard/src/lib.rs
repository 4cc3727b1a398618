//! One log: frames, the map, checkpoints, recovery. See README.md for the way through it.
#![forbid(unsafe_code)]

mod allocation;
mod append;
pub mod at_rest;
mod batching;
mod bring;
pub mod builder;
pub mod checkpoint;
mod collect;
pub mod columns;
mod commit;
mod degraded;
mod encode;
mod error;
pub mod extent;
mod find;
pub mod frame;
pub mod map;
mod ops;
mod read;
mod read_at_once;
mod recover;
mod relocate;
pub mod replay;
mod resize;
mod retire;
mod settle;
mod shard;
mod space;
pub mod stats;
mod stream;
mod supply;
mod victims;
mod volume;
mod watch;

pub use columns::{AllocClass, ColumnFault, Columns, ListedSlot, SlotState, WriteClass};
pub use error::{ResizeError, ShardError, StopReason};
pub use ops::Told;
pub use read::READ_BLOCKS_MAX;
pub use recover::{RecoverError, RecoveryReport};
pub use shard::{Shard, ShardConfig};
pub use stats::ShardSnapshot;
pub use victims::Policy;
