//! Seeded simulations of whole shards, nodes and hosts, the promises that they check, and how to replay one.
//!
//! A [`Scenario`] takes a seed, draws everything from it (sizes, workload, faults, when to crash), panics when a
//! promise is broken, and says how much it has seen. `peristyle-sim` runs many seeds of each.
#![forbid(unsafe_code)]

pub mod cluster;
pub mod column;
pub mod forward;
pub mod host;
pub mod members;
pub mod model;
pub mod node;
pub mod operation;
pub mod perf;
mod report;
pub mod shard;
pub mod states;

pub use report::{Outcome, SCENARIOS, Scenario};
