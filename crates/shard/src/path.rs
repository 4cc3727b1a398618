//! Where a frame of users is in the path of writes, and the stages that its commands are counted in.

use crate::frame::FrameKind;
use crate::shard::Frame;
use crate::stats::Stats;
use peristyle_base::Instant;
use peristyle_base::stage::Stage;

/// What a frame's commands wait for. Frames that no command made are nowhere.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Place {
    Nowhere,
    /// An extent with room for it, and memory.
    Room,
    /// Header, parity and checksums.
    Encode,
    /// Its columns' answers.
    Columns,
    /// Every earlier frame.
    Commit,
}

/// A frame's place, since when, and for how many commands it counts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Path {
    pub place: Place,
    since: Instant,
    commands: u64,
}

impl Path {
    pub const NOWHERE: Path = Path { place: Place::Nowhere, since: Instant::ZERO, commands: 0 };
}

fn stage(stats: &mut Stats, place: Place) -> Option<&mut Stage> {
    match place {
        Place::Nowhere => None,
        Place::Room => Some(&mut stats.room_wait),
        Place::Encode => Some(&mut stats.encode),
        Place::Columns => Some(&mut stats.columns),
        Place::Commit => Some(&mut stats.commit_wait),
    }
}

impl Frame {
    /// Built of commands, at `now`.
    pub fn enter_path(&mut self, stats: &mut Stats, now: Instant) {
        assert!(self.kind == FrameKind::User && self.path.place == Place::Nowhere);
        self.path = Path { place: Place::Room, since: now, commands: self.contents.ops.len() as u64 };
        stats.room_wait.enter_many(now, self.path.commands);
    }

    /// From where it is to the next place; what is nowhere stays there.
    pub fn step_to(&mut self, next: Place, stats: &mut Stats, now: Instant) {
        let Path { place, since, commands } = self.path;
        if let Some(stage) = stage(stats, place) {
            stage.leave_many(since, now, commands);
            self.arrive(next, stats, now);
        }
    }

    /// As [`step_to`](Self::step_to), because what it waited for failed.
    pub fn fall_back_to(&mut self, next: Place, stats: &mut Stats, now: Instant) {
        let Path { place, since, commands } = self.path;
        if let Some(stage) = stage(stats, place) {
            stage.leave_failed_many(since, now, commands);
            self.arrive(next, stats, now);
        }
    }

    fn arrive(&mut self, next: Place, stats: &mut Stats, now: Instant) {
        (self.path.place, self.path.since) = (next, now);
        if let Some(stage) = stage(stats, next) {
            stage.enter_many(now, self.path.commands);
        }
    }
}
