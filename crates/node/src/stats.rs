//! Statistics of one reactor, as a copy that travels by message.

use peristyle_base::stage::{Stage, StageSnapshot};
use peristyle_base::{Instant, ShardId};
use peristyle_column::DeviceStats;
use peristyle_shard::ShardSnapshot;
use std::collections::BTreeMap;

/// Stages of the front ends: from the first byte of a command to the last of its answer.
#[derive(Clone, Default)]
pub struct FrontStats {
    pub receive: Stage,
    pub qos_wait: Stage,
    pub read: Stage,
    pub write: Stage,
    pub other: Stage,
    pub respond: Stage,
    pub read_bytes: u64,
    pub write_bytes: u64,
    pub connections: u64,
}

impl FrontStats {
    pub fn snapshot(&self, now: Instant) -> FrontSnapshot {
        FrontSnapshot {
            stages: [
                ("receive", &self.receive),
                ("qos_wait", &self.qos_wait),
                ("read", &self.read),
                ("write", &self.write),
                ("other", &self.other),
                ("respond", &self.respond),
            ]
            .into_iter()
            .map(|(name, stage)| (name, stage.snapshot(now)))
            .collect(),
            read_bytes: self.read_bytes,
            write_bytes: self.write_bytes,
            connections: self.connections,
        }
    }
}

#[derive(Clone, Default)]
pub struct FrontSnapshot {
    pub stages: Vec<(&'static str, StageSnapshot)>,
    pub read_bytes: u64,
    pub write_bytes: u64,
    pub connections: u64,
}

/// End-to-end figures of one volume on one reactor.
#[derive(Clone, Default)]
pub struct VolumeStats {
    pub read: Stage,
    pub write: Stage,
    pub read_bytes: u64,
    pub write_bytes: u64,
}

#[derive(Clone, Default)]
pub struct VolumeSnapshot {
    pub read: StageSnapshot,
    pub write: StageSnapshot,
    pub read_bytes: u64,
    pub write_bytes: u64,
}

impl VolumeStats {
    pub fn snapshot(&self, now: Instant) -> VolumeSnapshot {
        VolumeSnapshot {
            read: self.read.snapshot(now),
            write: self.write.snapshot(now),
            read_bytes: self.read_bytes,
            write_bytes: self.write_bytes,
        }
    }
}

/// Everything that one reactor counts.
#[derive(Default)]
pub struct ReactorStats {
    pub front: FrontSnapshot,
    /// By namespace ID.
    pub volumes: BTreeMap<u32, VolumeSnapshot>,
    pub shards: Vec<(ShardId, ShardSnapshot)>,
    pub devices: Vec<DeviceStats>,
    /// Time of turns that found something to do, nanoseconds.
    pub busy_ns: u64,
    pub buffers_free: [usize; 6],
}
