//! What is wrong with a shard at rest.

use super::CopyState;
use crate::recover::RecoverError;
use peristyle_base::{DeviceId, ExtentId, LayerId};
use std::fmt;

/// Problems that a report keeps; further ones are counted only.
pub const PROBLEMS_MAX: usize = 1024;

/// One invariant that does not hold.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Problem {
    /// A start would wait, for ever unless something comes back.
    NotRecoverable(RecoverError),
    /// A device of the pool is not there, or cannot be read.
    DeviceAway {
        device: DeviceId,
    },
    /// A slot of a device that is not of the pool.
    ForeignDevice {
        device: DeviceId,
        extent: ExtentId,
    },
    /// Two slots say that they hold the same column.
    ColumnTwice {
        extent: ExtentId,
        column: usize,
    },
    /// A slot says of its extent what the others do not: scheme, nonce, or a column that there cannot be.
    SlotDisagrees {
        extent: ExtentId,
        column: usize,
    },
    /// Two columns fail together.
    SameDomain {
        extent: ExtentId,
        columns: [usize; 2],
    },
    /// A column was sealed without rows that are referred to, and that other columns of its extent have.
    RowsDisagree {
        extent: ExtentId,
        column: usize,
    },
    /// The extent has a number that was never given out.
    BeyondTheRecord {
        extent: ExtentId,
    },
    /// The record's open set has a column that its device does not have.
    RecordedColumnGone {
        extent: ExtentId,
        column: usize,
    },
    /// Something refers to the extent, and this column of it is nowhere: it has to be rebuilt.
    ColumnLost {
        extent: ExtentId,
        column: usize,
    },
    /// Something refers to blocks of an extent of which fewer columns are left than it takes to read them.
    ExtentLost {
        extent: ExtentId,
        blocks: u64,
    },
    /// A sealed extent's frames end before its rows do: no copy of the header there is good.
    LogBroken {
        extent: ExtentId,
        row: u16,
    },
    HeaderCopy {
        extent: ExtentId,
        column: usize,
        row: u16,
        state: CopyState,
    },
    /// The map points at a place of which the frame's header says something else.
    MapDisagrees {
        layer: LayerId,
        block: u64,
        extent: ExtentId,
        column: usize,
        row: u16,
    },
    /// The checkpoint, with the log applied, counts other numbers of blocks than the map has.
    CountsDisagree {
        extent: ExtentId,
    },
    /// The checkpoint refers to a block of the map, or a layer's remains to one of data,
    /// of which the frame's header says something else.
    CheckpointDisagrees {
        extent: ExtentId,
        column: usize,
        row: u16,
    },
    BlockUnreadable {
        extent: ExtentId,
        column: usize,
        row: u16,
    },
    BlockDamaged {
        extent: ExtentId,
        column: usize,
        row: u16,
    },
    /// The parity is not that of the data, which is good.
    ParityDamaged {
        extent: ExtentId,
        column: usize,
        row: u16,
    },
}

impl Problem {
    /// A name for scripts.
    pub fn kind(&self) -> &'static str {
        match self {
            Problem::NotRecoverable(_) => "not-recoverable",
            Problem::DeviceAway { .. } => "device-away",
            Problem::ForeignDevice { .. } => "foreign-device",
            Problem::ColumnTwice { .. } => "column-twice",
            Problem::SlotDisagrees { .. } => "slot-disagrees",
            Problem::SameDomain { .. } => "same-domain",
            Problem::RowsDisagree { .. } => "rows-disagree",
            Problem::BeyondTheRecord { .. } => "beyond-the-record",
            Problem::RecordedColumnGone { .. } => "recorded-column-gone",
            Problem::ColumnLost { .. } => "column-lost",
            Problem::ExtentLost { .. } => "extent-lost",
            Problem::LogBroken { .. } => "log-broken",
            Problem::HeaderCopy { .. } => "header-copy",
            Problem::MapDisagrees { .. } => "map-disagrees",
            Problem::CountsDisagree { .. } => "counts-disagree",
            Problem::CheckpointDisagrees { .. } => "checkpoint-disagrees",
            Problem::BlockUnreadable { .. } => "block-unreadable",
            Problem::BlockDamaged { .. } => "block-damaged",
            Problem::ParityDamaged { .. } => "parity-damaged",
        }
    }
}

impl fmt::Display for CopyState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            CopyState::Good => "good",
            CopyState::Differs => "another header",
            CopyState::Damaged => "damaged",
            CopyState::Absent => "absent",
            CopyState::Unreadable => "unreadable",
            CopyState::NoColumn => "no column",
        })
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Problem::NotRecoverable(error) => write!(f, "a start would wait: {error}"),
            Problem::DeviceAway { device } => write!(f, "device {device} is not there"),
            Problem::ForeignDevice { device, extent } => {
                write!(f, "extent {extent} has a column on device {device}, which is not of the pool")
            }
            Problem::ColumnTwice { extent, column } => {
                write!(f, "extent {extent}, column {column}: two slots hold it")
            }
            Problem::SlotDisagrees { extent, column } => {
                write!(
                    f,
                    "extent {extent}, column {column}: its slot says otherwise than the extent's others"
                )
            }
            Problem::SameDomain { extent, columns: [a, b] } => {
                write!(f, "extent {extent}: columns {a} and {b} are in one failure domain")
            }
            Problem::RowsDisagree { extent, column } => {
                write!(f, "extent {extent}, column {column}: sealed without rows that are referred to")
            }
            Problem::BeyondTheRecord { extent } => {
                write!(f, "extent {extent}: its number was never given out")
            }
            Problem::RecordedColumnGone { extent, column } => {
                write!(
                    f,
                    "extent {extent}, column {column}: in the record's open set, and its device has it not"
                )
            }
            Problem::ColumnLost { extent, column } => {
                write!(f, "extent {extent}, column {column}: no device has it")
            }
            Problem::ExtentLost { extent, blocks } => {
                write!(f, "extent {extent}: too few columns are left, and {blocks} blocks are needed")
            }
            Problem::LogBroken { extent, row } => {
                write!(f, "extent {extent}, row {row}: no copy of the header is good")
            }
            Problem::HeaderCopy { extent, column, row, state } => {
                write!(f, "extent {extent}, column {column}, row {row}: the header is {state}")
            }
            Problem::MapDisagrees { layer, block, extent, column, row } => {
                let place = format!("extent {extent}, column {column}, row {row}");
                write!(f, "layer {layer}, block {block}: the map says {place}; the header there does not")
            }
            Problem::CountsDisagree { extent } => {
                write!(f, "extent {extent}: the checkpoint counts other numbers of blocks than the map has")
            }
            Problem::CheckpointDisagrees { extent, column, row } => {
                let place = format!("extent {extent}, column {column}, row {row}");
                write!(f, "the checkpoint has a map block at {place}; the header there does not")
            }
            Problem::BlockUnreadable { extent, column, row } => {
                write!(f, "extent {extent}, column {column}, row {row}: cannot be read")
            }
            Problem::BlockDamaged { extent, column, row } => {
                write!(f, "extent {extent}, column {column}, row {row}: its checksum is wrong")
            }
            Problem::ParityDamaged { extent, column, row } => {
                write!(f, "extent {extent}, column {column}, row {row}: not the parity of the data")
            }
        }
    }
}

/// The first [`PROBLEMS_MAX`] of them, and how many there are.
#[derive(Clone, Debug, Default)]
pub struct Problems {
    list: Vec<Problem>,
    total: u64,
}

impl Problems {
    pub(super) fn add(&mut self, problem: Problem) {
        self.total += 1;
        if self.list.len() < PROBLEMS_MAX {
            self.list.push(problem);
        }
    }
    pub fn list(&self) -> &[Problem] {
        &self.list
    }
    pub fn total(&self) -> u64 {
        self.total
    }
}
