//! The simulated backend: many reactors of many nodes, one thread, one seed.
//!
//! A [`World`] holds nodes (an address, a clock, disks, at most one running process each) and a queue of
//! events. Polling one task is an event, and so are a disk's completion, the arrival of a segment and a timer;
//! events of the same instant happen in an order drawn from the seed. So a run is a function of its seed,
//! [`WorldHandle::trace_hash`] proves it, and [`NodeHandle::stop_at_event`] crashes a node at each of them.
//!
//! Read first: [`run`] for tests of one process, [`World`] for more, [`Sweep`] for every crash of an operation.

mod cell;
mod crash;
mod disk;
mod handle;
mod host;
mod image;
mod net;
mod rng;
mod socket;
mod sweep;
mod world;

pub use crash::{CrashSpace, CrashState};
pub use disk::{Disk, DiskConfig, DiskFaults, DiskStats};
pub use handle::{DiskHandle, Env, NodeHandle, World, WorldHandle, real_time, run, run_with, thread_time};
pub use host::Host;
pub use image::Image;
pub use net::LinkConfig;
pub use rng::Rng;
pub use socket::{Listener, Reader, Stream, Writer};
pub use sweep::{Crash, Sweep, Swept};
pub use world::{Stop, WorldConfig};
