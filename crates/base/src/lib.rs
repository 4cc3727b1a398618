//! Words, units and counters that every other crate shares. No I/O, no clock, no domain logic.
//!
//! Read first: [`ids`] (what the log and the columns are named by), [`Scheme`], [`Instant`].
#![forbid(unsafe_code)]

pub mod crc;
pub mod hist;
pub mod ids;
pub mod recent;
pub mod secret;
pub mod stage;
pub mod time;
pub mod units;

pub use crc::crc32c;
pub use hist::Histogram;
pub use ids::{
    ColumnIndex, ColumnName, ColumnPlace, DeviceId, Epoch, ExtentId, LayerId, NodeId, Nonce, PoolId,
    RowIndex, Scheme, Seq, ShardId, SlotIndex, Uuid, VolumeId,
};
pub use recent::{RecentP99, RecentSums};
pub use secret::Secret;
pub use time::{Duration, Instant};
pub use units::{BLOCK_BYTES, COLUMN_BYTES, COLUMN_ROWS, GIB, KIB, MIB, TIB};
