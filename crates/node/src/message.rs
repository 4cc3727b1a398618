//! What reactors of one node ask each other.

use crate::bus::Bus;
use crate::volume::{VolumeAnswer, VolumeRequest};
use peristyle_base::{ColumnName, DeviceId, Epoch, ExtentId, LayerId, RowIndex, Scheme, ShardId, SlotIndex};
use peristyle_rt::{Buf, IoVec, View};
use peristyle_shard::{AllocClass, ColumnFault, ExtentFigures, ListedSlot, WriteClass};

pub type NodeBus = Bus<Request, Reply>;

pub enum Request {
    /// To the reactor that serves the device.
    Column { device: DeviceId, request: ColumnRequest },
    /// To the reactor that owns the shard.
    Volume { shard: ShardId, layer: LayerId, request: VolumeRequest },
    /// To every reactor: its statistics.
    Stats,
    /// To every reactor: its shards take checkpoints.
    Checkpoint,
    /// To every reactor: its shards, and what they are doing.
    Phases,
    /// To every reactor: how much it has read and written.
    Totals,
    /// To every reactor: the extents of this number that its shards have.
    Extents(ExtentId),
    /// To every reactor: its shards read everything, and repair what is damaged.
    Scrub,
    /// To every reactor: one device's fault (development mode).
    Inject { device: DeviceId, fault: peristyle_rt::Fault },
    /// To the reactor that serves the device: somebody waits for it longer than usual.
    Check { device: DeviceId },
    /// To the reactor that is to serve a device which is new: it opens it.
    Open(Box<crate::DeviceConfig>),
    /// To the first reactor: a majority of the cluster's nodes is to take this one for the shard's owner.
    Claim { shard: ShardId, epoch: Epoch },
    /// To the first reactor: the shard is not served here any more.
    Release { shard: ShardId },
    /// To the reactor that is to own the shard, if another node does not; or that is to stop.
    Own { shard: ShardId, own: bool },
    /// To the home reactor of the target: connections and admin commands.
    Target(crate::target::HomeRequest),
}

pub enum Reply {
    Column(ColumnAnswer),
    Volume(VolumeAnswer),
    Stats(Box<crate::stats::ReactorStats>),
    Totals(crate::stats::IoTotals),
    Phases(Vec<(ShardId, crate::ShardPhase)>),
    Extents(Vec<(ShardId, ExtentFigures)>),
    Done(bool),
    Opened(Result<(), crate::DeviceOpenError>),
    Target(crate::target::HomeReply),
}

pub enum ColumnRequest {
    Allocate {
        name: ColumnName,
        scheme: Scheme,
        epoch: Epoch,
        class: AllocClass,
        /// For a column that is made anew.
        filling: bool,
    },
    Append {
        slot: SlotIndex,
        name: ColumnName,
        epoch: Epoch,
        row: RowIndex,
        data: IoVec,
        crcs: View,
        class: WriteClass,
    },
    Fence {
        slot: SlotIndex,
        name: ColumnName,
        epoch: Epoch,
    },
    Read {
        slot: SlotIndex,
        name: ColumnName,
        row: RowIndex,
        buf: Buf,
    },
    Seal {
        slot: SlotIndex,
        name: ColumnName,
        epoch: Epoch,
        rows: u16,
        holes: Vec<(u16, u16)>,
        crcs: Vec<u32>,
    },
    Free {
        slot: SlotIndex,
        name: ColumnName,
        epoch: Epoch,
    },
    List {
        shard: ShardId,
    },
    /// The checksums that a sealed column keeps.
    RowCrcs {
        slot: SlotIndex,
        name: ColumnName,
    },
}

impl ColumnRequest {
    /// The answer when it cannot be asked for.
    pub(crate) fn failed(self, fault: ColumnFault) -> ColumnAnswer {
        match self {
            ColumnRequest::Read { buf, .. } => ColumnAnswer::Read(Err(fault), buf),
            _ => ColumnAnswer::Done(Err(fault)),
        }
    }
}

pub enum ColumnAnswer {
    Slot(Result<SlotIndex, ColumnFault>),
    Done(Result<(), ColumnFault>),
    Read(Result<(), ColumnFault>, Buf),
    List(Result<Vec<ListedSlot>, ColumnFault>),
    Crcs(Result<Vec<u32>, ColumnFault>),
}
