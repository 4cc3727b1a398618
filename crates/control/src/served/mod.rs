//! The store of a cluster without etcd: one process has it and serves it to the others (`docs/store-protocol.md`).
//!
//! [`serve_store`] runs on a reactor of the process that has the store; a [`ServedStore`] is what the others have in its place. It
//! holds an address only, and each call connects from the reactor that makes it: so one value serves all reactors of a
//! process, and a call needs a reactor. The store is off the I/O path, where one more connection costs nothing that matters,
//! and one that is lost leaves one call in doubt.

mod answers;
mod client;
mod fields;
pub mod fuzz;
mod link;
mod server;
mod watch;
pub mod wire;

pub use client::ServedStore;
pub use server::serve_store;
pub use watch::ServedWatch;

use peristyle_base::Duration;

/// A call that has no answer after this has failed.
const CALL_LIMIT: Duration = Duration::from_secs(2);
/// A watch to which nothing happens is told so after this.
const SIGN_OF_LIFE: Duration = Duration::from_secs(5);
