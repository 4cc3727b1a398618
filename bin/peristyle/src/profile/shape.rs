//! Which stages a path has, and in which order: data, for whoever counts and for whoever draws.

/// A path from one end of a command to the other.
pub struct PathShape {
    pub name: &'static str,
    /// The whole of it, measured by itself.
    pub total: &'static str,
    /// One after the other.
    pub stages: &'static [StageShape],
    /// What the stage `columns` consists of: side by side, or inside of each other.
    pub inside: &'static [&'static str],
    /// The one of the stages that ends with the slowest of its legs.
    pub columns: &'static str,
    /// Of each device's leg.
    pub queue: &'static str,
    pub service: &'static str,
    /// Of the leg of a device of another node, both and the network in one.
    pub remote: &'static str,
}

pub struct StageShape {
    pub stage: &'static str,
    /// Who is in it waits for somebody else: all of its requests are a queue.
    pub waits: bool,
}

const fn waits(stage: &'static str) -> StageShape {
    StageShape { stage, waits: true }
}
const fn works(stage: &'static str) -> StageShape {
    StageShape { stage, waits: false }
}

pub const PATHS: [PathShape; 2] = [READ, WRITE];

const READ: PathShape = PathShape {
    name: "read",
    total: "read.total",
    stages: &[waits("qos_wait"), works("read.lookup"), works("read.columns"), works("read.respond")],
    inside: &["read.column_read", "read.verify", "read.reconstruct"],
    columns: "read.columns",
    queue: "read.queue",
    service: "read.service",
    remote: "read.leg",
};

const WRITE: PathShape = PathShape {
    name: "write",
    total: "write.total",
    stages: &[
        works("receive"),
        waits("qos_wait"),
        waits("write.batch_wait"),
        waits("write.room_wait"),
        works("write.encode"),
        works("write.columns"),
        waits("write.commit_wait"),
        works("write.respond"),
    ],
    inside: &["write.append"],
    columns: "write.columns",
    queue: "append.queue",
    service: "append.service",
    remote: "append.leg",
};
