//! Statistics of one shard's stages (DESIGN §9). Owned by its reactor; a snapshot is a copy.

use crate::frame::FrameKind;
use crate::repair::RepairFigures;
use peristyle_base::stage::{Stage, StageSnapshot};
use peristyle_base::{Instant, RecentSums};

/// Stages of writes and reads, and counters of frames. Those of a write count its frame's time once for each command in
/// it, so that what each command spends adds up; frames beside the user sequence are not in them.
#[derive(Clone, Default)]
pub struct Stats {
    pub batch_wait: Stage,
    /// Built, and waiting for an extent's room and for memory.
    pub room_wait: Stage,
    pub encode: Stage,
    /// From the first column's append to the last one's answer: the slowest leg.
    pub columns: Stage,
    /// Each column's append by itself, of all frames.
    pub append: Stage,
    pub commit_wait: Stage,
    pub lookup: Stage,
    /// All of a read's columns, side by side, until the last one is verified or made from others: the slowest leg.
    pub read_columns: Stage,
    /// Each column's read by itself.
    pub column_read: Stage,
    pub verify: Stage,
    pub reconstruct: Stage,
    pub frames: u64,
    /// Device bytes of all frames, by [`crate::frame::FrameKind`].
    pub frame_bytes: [u64; 3],
    pub frame_blocks: u64,
    pub narrow_frames: u64,
    pub user_blocks: u64,
    /// Blocks that users wrote, and that need no space because they are zeros.
    pub zero_blocks: u64,
    /// Extents that were collected, and the share of their space that was alive, in millionths, over all of them.
    pub victims: u64,
    pub victim_shares: u64,
    /// Blocks that collection moved.
    pub moved_blocks: u64,
    pub moved_lately: RecentSums<1>,
    /// Blocks that checkpoints wrote: leaves, pages, lists of changes, roots.
    pub map_blocks: [u64; 4],
    pub reappended: u64,
    pub abandoned: u64,
    pub checkpoints: u64,
    /// Leaves and pages of the map that were read back.
    pub map_reads: u64,
    /// Checkpoints for the room behind them.
    pub early_checkpoints: u64,
    /// Extents that were freed while the shard ran.
    pub freed_extents: u64,
    /// Extents that the counts called unused and a header did not.
    pub unused_kept: u64,
    pub damaged_blocks: u64,
    /// Pieces whose column was out of reach.
    pub degraded_reads: u64,
    /// Pieces whose column was late, so that the others were read as well, and those for which that was quicker.
    pub hedged_reads: u64,
    pub hedges_won: u64,
}

/// Phases of an extent's life, and kinds of extents, as the figures count them.
pub const PHASES: [&str; 4] = ["ready", "open", "closed", "sealed"];
pub const KINDS: [&str; 3] = ["wide", "narrow", "other"];

/// What a shard has of the pool. A few of these figures are sums over its extents: not for the I/O path.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct SpaceFigures {
    /// Blocks of volumes that hold data.
    pub live_blocks: u64,
    /// Blocks of the map that checkpoints refer to.
    pub map_blocks: u64,
    /// Data blocks of extents behind which nothing is, or not any more; headers and holes count.
    pub dead_blocks: u64,
    /// By [`PHASES`] and [`KINDS`].
    pub extents: [[u64; KINDS.len()]; PHASES.len()],
    /// Extents that hold nothing, and wait for a checkpoint or to be freed.
    pub waiting_extents: u64,
    /// … of these: extents that hold blocks of the map.
    pub map_extents: u64,
    /// Extents of a scheme that the pool does not make: what they hold is converted.
    pub foreign_extents: u64,
    /// Rows of open extents that nothing was appended to.
    pub open_rows: u64,
    /// Extents that were freed while the shard ran.
    pub freed_extents: u64,
}

impl SpaceFigures {
    pub fn add(&mut self, other: &SpaceFigures) {
        self.live_blocks += other.live_blocks;
        self.map_blocks += other.map_blocks;
        self.dead_blocks += other.dead_blocks;
        let mine = self.extents.iter_mut().flatten();
        mine.zip(other.extents.iter().flatten()).for_each(|(mine, more)| *mine += more);
        self.waiting_extents += other.waiting_extents;
        self.map_extents += other.map_extents;
        self.foreign_extents += other.foreign_extents;
        self.open_rows += other.open_rows;
        self.freed_extents += other.freed_extents;
    }
}

/// What collection does at a moment; of several shards the last of these counts.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum CollectionState {
    #[default]
    Off,
    /// There is room enough.
    Resting,
    /// No extent is worth it.
    Nothing,
    /// There is room enough for it to wait for its part of the background pace.
    HeldBack,
    /// As what users write allows.
    Running,
    /// There is no room for users' extents: as fast as it goes.
    InNeed,
}

impl CollectionState {
    pub fn name(self) -> &'static str {
        match self {
            CollectionState::Off => "off",
            CollectionState::Resting => "resting",
            CollectionState::Nothing => "nothing to collect",
            CollectionState::HeldBack => "held back",
            CollectionState::Running => "running",
            CollectionState::InNeed => "in need",
        }
    }
}

/// What collection does and has done since the start.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct CollectionFigures {
    pub state: CollectionState,
    /// Blocks that it may move for a thousand that users write.
    pub pace: u64,
    pub moved_blocks: u64,
    /// Of the last 3 s.
    pub moved_blocks_s: u64,
    /// Extents that it took, and the share of their space that was alive, in millionths, over all of them.
    pub victims: u64,
    pub victim_shares: u64,
    /// Extents of the pool's scheme that there is room for: free, ready, or dead and behind the next checkpoint.
    pub room: u64,
    /// It begins with less room than this.
    pub begins_below: u64,
}

impl CollectionFigures {
    /// Those of another shard. Of the room, those of the shard that is nearest to having to collect.
    pub fn add(&mut self, other: &CollectionFigures) {
        self.state = self.state.max(other.state);
        self.pace = self.pace.max(other.pace);
        self.moved_blocks += other.moved_blocks;
        self.moved_blocks_s += other.moved_blocks_s;
        self.victims += other.victims;
        self.victim_shares += other.victim_shares;
        let left = |f: &CollectionFigures| f.room as i64 - f.begins_below as i64;
        if left(other) < left(self) {
            (self.room, self.begins_below) = (other.room, other.begins_below);
        }
    }

    /// The share of the space of collected extents that was alive, on average.
    pub fn live_share(&self) -> Option<f64> {
        (self.victims > 0).then(|| self.victim_shares as f64 / 1e6 / self.victims as f64)
    }
}

/// A copy of the figures at one moment.
#[derive(Clone, Default)]
pub struct ShardSnapshot {
    pub space: SpaceFigures,
    pub repair: RepairFigures,
    pub collection: CollectionFigures,
    pub stages: Vec<(&'static str, StageSnapshot)>,
    pub counters: Vec<(&'static str, u64)>,
}

impl Stats {
    pub fn snapshot(&self, now: Instant) -> ShardSnapshot {
        let stages: [(&'static str, &Stage); 11] = [
            ("write.batch_wait", &self.batch_wait),
            ("write.room_wait", &self.room_wait),
            ("write.encode", &self.encode),
            ("write.columns", &self.columns),
            ("write.append", &self.append),
            ("write.commit_wait", &self.commit_wait),
            ("read.lookup", &self.lookup),
            ("read.columns", &self.read_columns),
            ("read.column_read", &self.column_read),
            ("read.verify", &self.verify),
            ("read.reconstruct", &self.reconstruct),
        ];
        ShardSnapshot {
            space: SpaceFigures::default(),
            repair: RepairFigures::default(),
            collection: CollectionFigures::default(),
            stages: stages.into_iter().map(|(name, stage)| (name, stage.snapshot(now))).collect(),
            counters: vec![
                ("frames", self.frames),
                ("frame_blocks", self.frame_blocks),
                ("narrow_frames", self.narrow_frames),
                ("user_blocks", self.user_blocks),
                ("zero_blocks", self.zero_blocks),
                ("user_bytes", self.frame_bytes[FrameKind::User as usize]),
                ("checkpoint_bytes", self.frame_bytes[FrameKind::Meta as usize]),
                ("moved_bytes", self.frame_bytes[FrameKind::Relocation as usize]),
                ("victims", self.victims),
                ("victim_shares", self.victim_shares),
                ("moved_blocks", self.moved_blocks),
                ("reappended_frames", self.reappended),
                ("abandoned_extents", self.abandoned),
                ("checkpoints", self.checkpoints),
                ("checkpoint_leaves", self.map_blocks[0]),
                ("checkpoint_pages", self.map_blocks[1]),
                ("checkpoint_changes", self.map_blocks[2]),
                ("checkpoint_roots", self.map_blocks[3]),
                ("map_reads", self.map_reads),
                ("early_checkpoints", self.early_checkpoints),
                ("freed_extents", self.freed_extents),
                ("unused_kept", self.unused_kept),
                ("damaged_blocks", self.damaged_blocks),
                ("degraded_reads", self.degraded_reads),
                ("hedged_reads", self.hedged_reads),
                ("hedges_won", self.hedges_won),
            ],
        }
    }
}

impl ShardSnapshot {
    pub fn merge(&mut self, other: ShardSnapshot) {
        if self.stages.is_empty() {
            *self = other;
            return;
        }
        self.space.add(&other.space);
        self.repair.add(&other.repair);
        self.collection.add(&other.collection);
        for ((_, mine), (_, theirs)) in self.stages.iter_mut().zip(&other.stages) {
            mine.merge(theirs);
        }
        for ((_, mine), (_, theirs)) in self.counters.iter_mut().zip(&other.counters) {
            *mine += theirs;
        }
    }
}

impl<C: crate::Columns, S: peristyle_cluster::ShardStore + 'static> crate::Shard<C, S> {
    /// A copy of this shard's figures.
    pub fn stats_snapshot(&self, now: Instant) -> ShardSnapshot {
        let snapshot = self.state.borrow().stats.snapshot(now);
        ShardSnapshot {
            space: self.space_figures(),
            repair: self.repair_figures(now),
            collection: self.collection_figures(now),
            ..snapshot
        }
    }
}
