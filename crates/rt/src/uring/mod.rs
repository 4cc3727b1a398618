//! The io_uring backend: one thread per reactor, one ring per thread.
//!
//! Devices go through the ring. Sockets are read and written by plain non-blocking calls, and the ring tells
//! when they are ready (one multishot poll per socket, for its whole life): measured against multishot receive
//! with provided buffers in the crate's README.

mod addr;
mod blocking;
mod clock;
mod driver;
mod file;
mod file_ops;
mod inbox;
mod net;
mod ops;
mod run;
mod setup;
mod signals;

pub(crate) use driver::Driver;
pub(crate) use file::File;
pub(crate) use net::{Listener, Reader, Stream, Writer};
pub use run::{PollMode, RuntimeConfig, RuntimeError, block_on, pin_thread, request_shutdown, run};
pub(crate) use setup::populate;
