//! NVMe over TCP without I/O: wire formats, the target's and the host's machines for one connection,
//! and the controller that executes admin commands. Nothing here has a socket, clock, thread or `async`.
//!
//! Read first: [`qpair::Qpair`] (the target's side of one connection), [`host::HostQpair`] (the host's),
//! [`registry::Registry`] (what all connections share), [`io_command::decode`], [`wire::Sqe`], [`wire::Status`].
#![forbid(unsafe_code)]

pub mod association;
pub mod controller;
pub mod discovery;
pub mod fuzz;
pub mod host;
pub mod inventory;
pub mod io_command;
pub mod qpair;
pub mod registry;
pub mod subsystem;
pub mod wire;

mod framing;
mod tag;

pub use host::HostQpair;
pub use qpair::{Qpair, QpairLimits};
pub use tag::Tag;
pub use wire::{Cqe, Sgl, Sqe, Status};
