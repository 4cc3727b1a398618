//! What a cluster decides, as plain functions: where columns go, which scheme a damaged pool can still hold,
//! and what a shard's record in the control store says. No I/O, no clock, no randomness.
//!
//! Read first: [`Placer::place`], [`effective_scheme`], [`ShardRecord`].
#![forbid(unsafe_code)]

mod balance;
mod bytes;
mod codec;
mod column;
pub mod lease;
pub mod pass;
pub mod peer;
mod place;
mod plan;
mod pool;
mod record;
mod store;

pub use balance::{Move, best_move, deviations, is_uneven, least_gain, target};
pub use codec::{RecordError, fuzz_record};
pub use column::{AllocClass, ColumnFault, ListedSlot, SlotState, WriteClass};
pub use place::{DomainUse, PlacementError, Placer, Standing, standings};
pub use plan::{Plan, PlanDevice, plan};
pub use pool::{
    DEVICES_MAX, DeviceView, DomainId, Effective, PoolView, Protection, Shuns, TooFewDomains, TooFewPolicy,
    effective_scheme, extents_free, usable_domains,
};
pub use record::{
    BlockPlace, CheckpointPtr, ColumnPlaces, ExtentState, OPEN_EXTENTS_MAX, OpenExtent, RECORD_BYTES_MAX,
    ROOT_BLOCKS_MAX, ShardRecord,
};
pub use store::{BoxedStore, Fault, MemoryShardStore, ShardStore, StoreError, Version};
