//! Streams: what is expected to die at the same time is appended to the same extents. Pure.
//!
//! Each stream has one extent that takes its frames now, and takes the next one from a stock of ready extents that it may
//! share with others. A user frame stays with its stream when it is appended anew: numbers grow within a stream.

use crate::extent::Width;

/// Classes of users' blocks at most, by how long the version lived that they replace.
pub const USER_CLASSES_MAX: usize = 3;
/// Classes of moved blocks at most, by their age.
pub const MOVED_CLASSES_MAX: usize = 5;

/// Where a frame is appended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stream {
    /// Full enough frames of users' blocks of one class.
    User(u8),
    /// Frames that would leave too many holes in a wide extent.
    Narrow,
    /// What must go on while the pool is full.
    Reserve,
    /// Checkpoints: what one of them replaces dies together.
    Checkpoint,
    /// Blocks that collection moves, of one class.
    Moved(u8),
}

impl Stream {
    pub const COUNT: usize = USER_CLASSES_MAX + 3 + MOVED_CLASSES_MAX;

    pub fn index(self) -> usize {
        match self {
            Stream::User(class) => class as usize,
            Stream::Narrow => USER_CLASSES_MAX,
            Stream::Reserve => USER_CLASSES_MAX + 1,
            Stream::Checkpoint => USER_CLASSES_MAX + 2,
            Stream::Moved(class) => USER_CLASSES_MAX + 3 + class as usize,
        }
    }

    /// The stock that its extents come from.
    pub fn width(self) -> Width {
        match self {
            Stream::User(_) | Stream::Checkpoint => Width::Wide,
            Stream::Narrow => Width::Narrow,
            Stream::Reserve => Width::Reserve,
            Stream::Moved(_) => Width::Moved,
        }
    }

    /// No user frame is ever appended to its extents: replay does without them.
    pub fn is_aside(self) -> bool {
        matches!(self, Stream::Checkpoint | Stream::Moved(_))
    }

    pub fn users() -> impl Iterator<Item = Stream> {
        (0..USER_CLASSES_MAX as u8).map(Stream::User)
    }

    pub fn moved() -> impl Iterator<Item = Stream> {
        (0..MOVED_CLASSES_MAX as u8).map(Stream::Moved)
    }

    /// Streams of a stock whose extents replay looks at.
    pub fn of_log(width: Width) -> impl Iterator<Item = Stream> {
        Stream::users().chain([Stream::Narrow, Stream::Reserve]).filter(move |s| s.width() == width)
    }
}

/// How many streams a shard uses. Each has an extent that is half empty: a small pool has room for few.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Classes {
    pub user: u8,
    pub moved: u8,
    /// Checkpoints have extents of their own.
    pub checkpoints_apart: bool,
}

impl Classes {
    /// For a pool that has room for so many extents.
    pub fn of_pool(extents: usize) -> Classes {
        let (user, moved) = match extents {
            0..96 => (1, 1),
            96..160 => (1, 3),
            160..768 => (3, 3),
            _ => (3, 5),
        };
        Classes { user, moved, checkpoints_apart: extents >= 96 }
    }

    /// Everything that users write together, and everything that is moved.
    pub fn one_each(self) -> Classes {
        Classes { user: 1, moved: 1, ..self }
    }
}

/// The class of something of this age among so many, given how long what dies soon usually lives: each class reaches four
/// times as far as the one before.
pub fn class_of(age: u64, usual: u64, classes: u8) -> u8 {
    let mut limit = usual.max(1);
    (0..classes.saturating_sub(1))
        .find(|_| {
            let within = age < limit;
            limit = limit.saturating_mul(4);
            within
        })
        .unwrap_or(classes.saturating_sub(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_stream_has_a_place_of_its_own() {
        let all = Stream::users()
            .chain([Stream::Narrow, Stream::Reserve, Stream::Checkpoint])
            .chain(Stream::moved());
        let places: Vec<usize> = all.map(Stream::index).collect();
        assert_eq!(places, (0..Stream::COUNT).collect::<Vec<_>>());
    }

    #[test]
    fn each_class_reaches_four_times_as_far() {
        let classes = [0, 99, 100, 399, 400, 1600, 6400, u64::MAX].map(|age| class_of(age, 100, 5));
        assert_eq!(classes, [0, 0, 1, 1, 2, 3, 4, 4]);
        assert_eq!(class_of(7, 100, 1), 0);
        assert_eq!(class_of(u64::MAX, 0, 2), 1);
    }
}
