//! The words in which columns are asked for, on a reactor, between reactors and between nodes.

use peristyle_base::{ColumnName, ColumnPlace, Epoch, Scheme};

/// Why a column did not do what was asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ColumnFault {
    /// A higher epoch has fenced the column: this owner has been replaced and must stop.
    Fenced,
    /// The slot holds something else, or nothing: a leftover request, or a device that came back changed.
    Missing,
    /// The column is sealed, or the rows are outside of it.
    Refused,
    /// No slot of this allocation class is free.
    Full,
    /// The device failed the request or is not there.
    Device,
}

impl core::fmt::Display for ColumnFault {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            ColumnFault::Fenced => "fenced by a higher epoch",
            ColumnFault::Missing => "the slot does not hold this column",
            ColumnFault::Refused => "refused in the column's state",
            ColumnFault::Full => "no free slot",
            ColumnFault::Device => "the device failed",
        })
    }
}

/// What an append is for: device writes are counted by it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum WriteClass {
    /// Frames of user writes.
    User,
    /// Checkpoints.
    Meta,
    /// Frames that were appended before: after a failed column, and the tail at takeover.
    Reappend,
    /// Columns that are made anew.
    Repair,
    /// Blocks that collection moves.
    Collection,
}

/// What a slot is taken for. The classes behind `User` may take slots that are kept back from it (invariant 11,
/// Full is an error, not a loss).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum AllocClass {
    /// New data.
    User,
    /// What collection moves, so that it can always go on.
    Collection,
    /// Checkpoints, when the pool is full.
    Meta,
    /// Re-appended frames, unmaps and events, when the pool is full.
    Reappend,
}

/// State of a listed slot.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SlotState {
    Open,
    Sealed,
    /// Target of a rebuild: never read.
    Filling,
}

/// One slot of this shard, as a device lists it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ListedSlot {
    pub place: ColumnPlace,
    pub name: ColumnName,
    pub scheme: Scheme,
    pub state: SlotState,
    pub epoch: Epoch,
    /// Rows of a sealed column; of an open one nothing is promised.
    pub rows: u16,
}
