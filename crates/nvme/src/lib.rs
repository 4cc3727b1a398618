//! NVMe over TCP without I/O: wire formats, the target's and the host's machines for one connection,
//! and the controller that executes admin commands. Nothing here has a socket, clock, thread or `async`.
//!
//! Read first: [`wire::Sqe`], [`wire::Status`].
#![forbid(unsafe_code)]

pub mod controller;
pub mod wire;

pub use wire::{Cqe, Sgl, Sqe, Status};
