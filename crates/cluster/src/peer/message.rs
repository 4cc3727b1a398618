//! What nodes say to each other.

use crate::column::{AllocClass, ColumnFault, WriteClass};
use crate::lease::Claimed;
use crate::pass::Want;
use peristyle_base::{ColumnName, ColumnPlace, DeviceId, Epoch, LayerId, NodeId, RowIndex, Scheme};
use peristyle_base::{ShardId, SlotIndex, Uuid};

/// The first message of a client.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Hello {
    /// Oldest and newest version that it speaks.
    pub versions: (u16, u16),
    pub cluster: Uuid,
    pub from: NodeId,
    /// Whom it means to reach: an address may have gone to another node.
    pub to: NodeId,
}

/// The server's word on a Hello that it takes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Welcome {
    /// The newest version that both speak.
    pub version: u16,
    pub node: NodeId,
    /// Drawn when the server's process started: whoever knows another one knows that it has restarted.
    pub boot: u64,
    /// Reactors of the node, each with a port of its own.
    pub reactors: u16,
    pub credits: Credits,
}

/// What may be in flight on one connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Credits {
    /// Requests, 1 to [`super::REQUESTS_MAX`].
    pub requests: u16,
    /// Payload of requests, in bytes; one request is always let through.
    pub bytes: u32,
}

/// Why a Hello is not taken; the server closes after it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Refusal {
    /// No version is spoken by both.
    Version = 1,
    /// Another cluster's node.
    Cluster = 2,
    /// This is not the node that was meant.
    Node = 3,
    /// As many connections as it takes are there.
    Busy = 4,
}

impl Refusal {
    pub(super) const ALL: [Refusal; 4] = [Refusal::Version, Refusal::Cluster, Refusal::Node, Refusal::Busy];
}

impl core::fmt::Display for Refusal {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Refusal::Version => "no version of the peer protocol is spoken by both nodes",
            Refusal::Cluster => "it is a node of another cluster",
            Refusal::Node => "another node has this address",
            Refusal::Busy => "it has as many connections as it takes",
        })
    }
}

/// A column as a request names it. All of it is compared with what the slot holds.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Target {
    pub place: ColumnPlace,
    pub name: ColumnName,
    /// 0 where no epoch is compared: reads.
    pub epoch: Epoch,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Request<'a> {
    /// Takes a free slot. The place's slot is 0.
    Allocate {
        at: Target,
        scheme: Scheme,
        class: AllocClass,
        filling: bool,
    },
    /// Payload: whole rows, [`super::APPEND_ROWS_MAX`] at most. `crcs`: their checksums, 4 bytes each, little-endian.
    Append {
        at: Target,
        row: RowIndex,
        class: WriteClass,
        crcs: &'a [u8],
    },
    Fence {
        at: Target,
    },
    /// Answered with `rows` rows of payload.
    Read {
        at: Target,
        row: RowIndex,
        rows: u16,
    },
    /// `holes`: first row and number of rows, ascending. `crcs`: one per row, or none.
    Seal {
        at: Target,
        rows: u16,
        holes: Vec<(u16, u16)>,
        crcs: Vec<u32>,
    },
    Free {
        at: Target,
    },
    /// Answered with a payload of list entries, from slot `from` on, as many as fit into `bytes`.
    List {
        device: DeviceId,
        shard: ShardId,
        from: SlotIndex,
        bytes: u32,
    },
    RowCrcs {
        at: Target,
    },
    /// Answered with a payload of the node's devices, as many as fit into `bytes`.
    Ping {
        bytes: u32,
    },
    /// Reads a block of the device, to find out whether it answers.
    Probe {
        device: DeviceId,
    },
    /// The node that asks has taken the shard under the epoch in the control store, and wants to be taken for its owner.
    Claim {
        shard: ShardId,
        epoch: Epoch,
    },
    /// The node that asks renews its leases, of [`super::RENEWALS_MAX`] shards at most.
    Renew {
        shards: Vec<(ShardId, Epoch)>,
    },
    /// The node that asks has stopped serving the shard.
    Release {
        shard: ShardId,
        epoch: Epoch,
    },
    /// The node that asks wants to hand on what hosts send it for shards that the asked node owns; [`super::WANTS_MAX`] wants at most. From
    /// version 2 on.
    Passes {
        wants: Vec<Want>,
    },
    /// A command of a host, under a pass. Payload: what is written or compared; of both at once, what is expected stands before what is
    /// written. From version 2 on.
    Forward {
        pass: u64,
        shard: ShardId,
        layer: LayerId,
        command: Forwarded,
        /// Bytes of the volume, multiples of 512.
        offset: u64,
        bytes: u64,
    },
}

/// What a host asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Forwarded {
    /// Answered with a payload of so many bytes.
    Read,
    Write,
    Zero,
    Compare,
    CompareAndWrite,
    Verify,
    Flush,
}

impl Forwarded {
    /// Payload of a command about so many bytes.
    pub fn payload_bytes(self, bytes: u64) -> u64 {
        match self {
            Forwarded::Write | Forwarded::Compare => bytes,
            Forwarded::CompareAndWrite => 2 * bytes,
            Forwarded::Read | Forwarded::Zero | Forwarded::Verify | Forwarded::Flush => 0,
        }
    }
    /// Data goes to the host or comes from it.
    pub(super) fn moves_data(self) -> bool {
        self == Forwarded::Read || self.payload_bytes(1) > 0
    }
}

/// Why a forwarded command was not done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NotDone {
    /// It came under no pass that holds: nothing of it was, or will be, done.
    NoPass,
    /// The shard is not served here, or not any more: it may be done or not.
    Stopped,
    NoSpace,
    Unreadable,
    Different,
    OutOfRange,
    ReadOnly,
    MapFull,
    NoSuchLayer,
    Changed,
}

impl Request<'_> {
    /// Payload of its answer, at most.
    pub(super) fn answer_bytes_max(&self) -> u32 {
        match self {
            Request::Read { rows, .. } => u32::from(*rows) * peristyle_base::BLOCK_BYTES as u32,
            Request::List { bytes, .. } | Request::Ping { bytes } => *bytes,
            Request::Forward { command: Forwarded::Read, bytes, .. } => *bytes as u32,
            _ => 0,
        }
    }

    /// The first version of the protocol that has it.
    pub fn version(&self) -> u16 {
        match self {
            Request::Passes { .. } | Request::Forward { .. } => 2,
            _ => 1,
        }
    }
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Answer {
    /// It was not done.
    Failed(ColumnFault),
    /// Append, fence, seal, free, probe, release.
    Done,
    /// Allocate.
    Slot(SlotIndex),
    /// Read. The payload is what was asked for.
    Rows,
    /// List. `next`: where to go on, if there is more.
    Listed {
        next: Option<SlotIndex>,
    },
    RowCrcs(Vec<u32>),
    /// Ping.
    Pong,
    Claimed(Claimed),
    /// Renew. In the order of the shards: whether the lease was granted.
    Renewed(Vec<bool>),
    /// Passes. In the order of the wants: the pass's number, 0 for none, 1 where it was only asked and would be granted.
    Passes(Vec<u64>),
    /// Forward. Of a read that was done the payload is what was asked for.
    Forwarded(Result<(), NotDone>),
}

/// One device of a node, as a Ping's answer tells of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DeviceReport {
    pub device: DeviceId,
    /// The reactor that serves it.
    pub reactor: u16,
    pub state: PeerDeviceState,
    pub slots_total: u32,
    pub slots_used: u32,
    /// Free slots that are kept back from user data, and of these, from what collection moves.
    pub slots_reserved: u32,
    pub slots_kept: u32,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum PeerDeviceState {
    /// Not there.
    Closed = 0,
    Healthy = 1,
    Slow = 2,
    Failed = 3,
}
