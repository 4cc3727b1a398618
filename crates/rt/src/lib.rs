//! The only crate that knows the operating system: tasks, time, timers, randomness, TCP, devices,
//! cross-reactor messages and aligned buffers.
//!
//! One API, two backends, chosen when a reactor is made:
//! * [`uring`]: one pinned thread per reactor on io_uring;
//! * [`sim`]: many reactors of many nodes in one thread, with simulated time and faults, from one seed.
//!
//! Free functions ([`now`], [`spawn`], [`sleep`], …) act on the reactor whose task is running. Nothing above
//! this crate may call std's clock, threads, sockets, files or a random generator: `cargo xtask tidy` checks.
//!
//! Read first: [`spawn`] and `task.rs`, [`Buf`] and `buf.rs`, [`Device`], [`Stream`].

pub mod alloc_count;
mod budget;
pub mod buf;
pub mod device;
mod join;
mod memory;
pub mod mesh;
pub mod net;
mod reactor;
pub mod sim;
pub mod sync;
mod task;
#[cfg(test)]
mod tests;
mod timer;
pub mod uring;

pub use budget::{MemoryBudget, memory_budget};
pub use buf::{Buf, BufConfig, IoVec, KeptBufs, View};
pub use device::{Device, DeviceInfo, DeviceKind, DeviceSpec, Fault, IoError};
pub use join::{Either, join, join_all, select, timeout};
pub use mesh::{Port, mesh};
pub use net::{Addr, Listener, NetError, Stream, StreamReader, StreamWriter};
pub use peristyle_base::{Duration, Instant};
pub use reactor::{
    ReactorId, blocking, busy_nanos, fill_random, now, random_below, random_u64, reactor_id,
    shutdown_requested, try_now, wall_nanos,
};
pub use task::{TaskHandle, spawn, spawn_background};
pub use task::{breathe, end_of_turn, yield_now};
pub use timer::{Sleep, sleep, sleep_until};
pub use uring::{
    PollMode, Receive, RuntimeConfig, RuntimeError, StopSignals, ZeroCopy, block_on, pin_thread,
    request_shutdown, run,
};
