//! The store of a cluster without etcd: one process has it and serves it to the others (`docs/store-protocol.md`).

mod answers;
mod fields;
pub mod fuzz;
pub mod wire;
