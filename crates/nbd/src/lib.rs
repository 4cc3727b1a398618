//! The server's side of the NBD protocol, sans-IO: fixed newstyle negotiation and the transmission phase with
//! simple and structured replies.
//!
//! Read first: [`Connection`] (the machine and its contract with the driver), [`Command`] (what it asks to be
//! executed), [`Fatal`] (how a client breaks the protocol).
//!
//! "Protocol" in comments is `doc/proto.md` of the NetworkBlockDevice/nbd project, by section name.
#![forbid(unsafe_code)]

pub mod conn;
#[doc(hidden)]
pub mod testing;
pub mod wire;

pub use conn::{
    Action, Buffer, CloseReason, Command, Connection, EXTENTS_MAX, Export, Extent, Fatal, Found, Input,
    Limits, Lookup, Payload, Request, StaleTag, Stats, TRANSMIT_BYTES_MIN, Tag, Transmit,
};
pub use wire::Errno;
