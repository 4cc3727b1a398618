//! A shard that nobody serves, looked at without changing anything: its extents frame by frame, and all that must hold
//! between the control store's record, the checkpoint, the log, and the columns.

mod check;
mod frames;
mod problem;
mod read_only;

pub use check::{Depth, ShardCheck, check_frame, check_shard};
pub use frames::{CopyState, ExtentSlots, FrameAtRest, Frames, extents_of, read_frames};
pub use problem::{Problem, Problems};

use crate::columns::{ColumnFault, ListedSlot};
use peristyle_base::{ColumnName, ColumnPlace, DeviceId, RowIndex, ShardId};
use peristyle_rt::Buf;

/// Devices that no node has open.
pub trait Resting: 'static {
    /// Slots of the shard, device by device; a device that is not there is listed with its error.
    fn list(
        &self,
        shard: ShardId,
    ) -> impl Future<Output = Vec<(DeviceId, Result<Vec<ListedSlot>, ColumnFault>)>>;

    /// Fills `buf` with whole rows from `row` on. Nothing is verified.
    fn read(
        &self,
        place: ColumnPlace,
        name: ColumnName,
        row: RowIndex,
        buf: Buf,
    ) -> impl Future<Output = (Result<(), ColumnFault>, Buf)>;

    /// What the device fails together with; `None` when it is not one of the pool's.
    fn domain(&self, device: DeviceId) -> Option<u32>;
}
