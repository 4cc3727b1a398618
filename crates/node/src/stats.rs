//! Statistics of one reactor, as a copy that travels by message.

use crate::peer::RequestCounts;
use peristyle_base::stage::{Stage, StageSnapshot};
use peristyle_base::{DeviceId, Instant, NodeId, ShardId};
use peristyle_column::DeviceStats;
use peristyle_shard::ShardSnapshot;
use std::collections::BTreeMap;

/// Stages of the front ends: from the first byte of a command to the last of its answer.
#[derive(Clone, Default)]
pub struct FrontStats {
    /// Buffer and data of a command that has some.
    pub receive: Stage,
    pub qos_wait: Stage,
    /// From being heard of, data to come, to the answer's last byte being with the system. NBD: its execution.
    pub read_total: Stage,
    pub write_total: Stage,
    /// Execution of what neither reads nor writes; that of reads and writes is the volumes'.
    pub other: Stage,
    /// From the answer being ready to its last byte being with the system.
    pub read_respond: Stage,
    pub write_respond: Stage,
    /// … of other commands, and of NBD's.
    pub respond: Stage,
    pub read_bytes: u64,
    pub write_bytes: u64,
    pub connections: u64,
}

impl FrontStats {
    /// `volumes`: those of the same reactor.
    pub fn snapshot<'a>(
        &self,
        now: Instant,
        volumes: impl Iterator<Item = &'a VolumeSnapshot>,
    ) -> FrontSnapshot {
        let (mut read, mut write) = (StageSnapshot::default(), StageSnapshot::default());
        for volume in volumes {
            read.merge(&volume.read);
            write.merge(&volume.write);
        }
        FrontSnapshot {
            stages: vec![
                ("receive", self.receive.snapshot(now)),
                ("qos_wait", self.qos_wait.snapshot(now)),
                ("read", read),
                ("write", write),
                ("other", self.other.snapshot(now)),
                ("read.respond", self.read_respond.snapshot(now)),
                ("write.respond", self.write_respond.snapshot(now)),
                ("respond", self.respond.snapshot(now)),
                ("read.total", self.read_total.snapshot(now)),
                ("write.total", self.write_total.snapshot(now)),
            ],
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

/// Appends to a device of another node and reads from it, from being asked to being answered: the network, and what it took there.
#[derive(Clone, Default)]
pub struct Leg {
    pub append: Stage,
    pub read: Stage,
}

#[derive(Clone)]
pub struct LegSnapshot {
    pub device: DeviceId,
    /// Whose it is; `None` when it has moved here meanwhile.
    pub node: Option<NodeId>,
    pub append: StageSnapshot,
    pub read: StageSnapshot,
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

/// Reads or writes since the start.
#[derive(Clone, Copy, Default)]
pub struct DirectionTotals {
    pub completed: u64,
    pub bytes: u64,
    /// How long they took, all together, nanoseconds.
    pub latency_ns: u128,
}

impl DirectionTotals {
    fn add(&mut self, stage: &Stage, bytes: u64) {
        let (completed, latency_ns) = stage.left();
        self.completed += completed;
        self.bytes += bytes;
        self.latency_ns += latency_ns;
    }
}

/// What can be told every second without a copy of everything.
#[derive(Clone, Copy, Default)]
pub struct IoTotals {
    pub reads: DirectionTotals,
    pub writes: DirectionTotals,
    pub connections: u64,
}

impl IoTotals {
    pub fn add_volume(&mut self, volume: &VolumeStats) {
        self.reads.add(&volume.read, volume.read_bytes);
        self.writes.add(&volume.write, volume.write_bytes);
    }

    pub fn merge(&mut self, other: &IoTotals) {
        let pairs = [(&mut self.reads, &other.reads), (&mut self.writes, &other.writes)];
        for (mine, theirs) in pairs {
            mine.completed += theirs.completed;
            mine.bytes += theirs.bytes;
            mine.latency_ns += theirs.latency_ns;
        }
        self.connections += other.connections;
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
    /// Devices of other nodes that were asked, in the order of their identifiers.
    pub legs: Vec<LegSnapshot>,
    /// Messages to other nodes and from them.
    pub traffic: RequestCounts,
    /// Time of turns that found something to do, nanoseconds.
    pub busy_ns: u64,
    pub buffers_free: [usize; 6],
}
