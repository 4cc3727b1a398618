//! Scenarios by name, and what one run of one has seen.

use crate::operation::{Operation, Tally};
use peristyle_rt::sim::Swept;
use std::fmt;

/// What one seed of one scenario has seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Hash over every event of every world: equal when the seed is run again.
    pub trace: u64,
    pub simulated_nanos: u64,
    pub events: u64,
    /// Processes that were killed or lost their power.
    pub crashes: u64,
    /// Different contents of the disks after a crash that were recovered from.
    pub states: u64,
    /// The same by what was under way, as far as that is known.
    pub tally: Tally,
    /// What went wrong on purpose: operations of disks, cuts of the network, answers of the control store.
    pub faults: u64,
    /// Operations of hosts, or of whoever plays their part, that were answered.
    pub operations: u64,
    /// Reads that were compared with the model.
    pub verified: u64,
}

impl Outcome {
    /// Both, one after the other.
    pub fn and(self, other: Outcome) -> Outcome {
        Outcome {
            trace: self.trace.rotate_left(9).wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ other.trace,
            simulated_nanos: self.simulated_nanos + other.simulated_nanos,
            events: self.events + other.events,
            crashes: self.crashes + other.crashes,
            states: self.states + other.states,
            tally: self.tally.and(other.tally),
            faults: self.faults + other.faults,
            operations: self.operations + other.operations,
            verified: self.verified + other.verified,
        }
    }
}

impl From<Swept> for Outcome {
    fn from(swept: Swept) -> Outcome {
        let Swept { crashes, states, simulated_nanos, events, trace } = swept;
        Outcome { trace, simulated_nanos, events, crashes, states, ..Outcome::default() }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} crashes, {} crash states, {} faults, {} operations, {} verified, {} events, {:.3} s simulated, trace {:016x}",
            self.crashes,
            self.states,
            self.faults,
            self.operations,
            self.verified,
            self.events,
            self.simulated_nanos as f64 / 1e9,
            self.trace,
        )
    }
}

/// One kind of simulation.
pub struct Scenario {
    pub name: &'static str,
    pub about: &'static str,
    /// What is drawn from a seed before anything runs.
    pub plan: fn(u64) -> String,
    /// Each of them has to have crash states, or the run fails.
    pub operations: &'static [Operation],
    /// Runs one seed.
    /// # Panics — when a promise is broken.
    pub run: fn(u64) -> Outcome,
}

pub static SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "column",
        about: "one device: every crash state of format, allocate, append, fence, seal, free and of opening again",
        plan: |_| String::from("the same for every seed but for rows, epochs and interleaving"),
        operations: Operation::OF_COLUMNS,
        run: crate::column::run,
    },
    Scenario {
        name: "shard",
        about: "one shard over its devices and the control store: crash states of all that takes several steps",
        plan: |seed| format!("{:?}", crate::shard::plan(seed)),
        operations: Operation::OF_SHARDS,
        run: crate::shard::run,
    },
    Scenario {
        name: "node",
        about: "one node, hosts in its process: crashes at any event, up to m devices failing, stalling or lying",
        plan: |seed| format!("{:?}", crate::node::plan(seed)),
        operations: &[],
        run: crate::node::run,
    },
    Scenario {
        name: "states",
        about: "one node: states that a loss of power may leave on all its disks together, and during recovery too",
        plan: |seed| format!("{:?}", crate::states::plan(seed)),
        operations: &[],
        run: crate::states::run,
    },
    Scenario {
        name: "host",
        about: "hosts over NVMe/TCP on machines of their own: resets, partitions, crashes, bad devices, a full pool",
        plan: |seed| format!("{:?}", crate::host::plan(seed)),
        operations: &[],
        run: crate::host::run,
    },
    Scenario {
        name: "cluster",
        about: "nodes that take shards over from each other: killed, stopped, cut off, relieved; one history for all hosts",
        plan: |seed| format!("{:?}", crate::cluster::plan(seed)),
        operations: &[],
        run: crate::cluster::run,
    },
    Scenario {
        name: "members",
        about: "members of a cluster as programs run them: they join, elect a manager that gives out shards, and leave in order",
        plan: |seed| format!("{:?}", crate::members::plan(seed)),
        operations: &[],
        run: crate::members::run,
    },
    Scenario {
        name: "forward",
        about: "hosts on machines of their own that nodes hand commands on for, while ways are cut, nodes sleep and shards move",
        plan: |seed| format!("{:?}", crate::forward::plan(seed)),
        operations: &[],
        run: crate::forward::run,
    },
];
