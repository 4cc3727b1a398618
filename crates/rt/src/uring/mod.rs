//! The io_uring backend: one thread per reactor, one ring per thread.
//!
//! Devices go through the ring. So do connections that are accepted, bytes that are received (`receive.rs`), and large
//! sends to peers that are not on this machine (`send.rs`). Small sends, and connections that carry large payload
//! to us, use plain non-blocking calls: the crate's README has the measurements.

mod accept;
mod addr;
mod blocking;
mod clock;
mod driver;
mod file;
mod file_ops;
mod inbox;
mod net;
mod ops;
mod receive;
mod run;
mod send;
mod setup;
mod signals;
mod socket;

pub(crate) use accept::Listener;
pub(crate) use driver::{Driver, DriverMemory};
pub use file::free_bytes;
pub(crate) use file::{Access, File};
pub(crate) use net::{Reader, Stream, Writer};
pub use run::{PollMode, Receive, RuntimeConfig, RuntimeError, block_on, pin_thread, request_shutdown, run};
pub use send::ZeroCopy;
pub(crate) use setup::{expect_write, populate};
pub use signals::StopSignals;
