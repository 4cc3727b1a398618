//! Load, and the initiator that makes it: an NVMe/TCP host on `rt`.
//!
//! Read first: [`host::Queue`] (one connection), [`session::Session`] (a subsystem found by its address),
//! [`load::drive`] (closed-loop load), [`crash`] (writes of which a crash may leave all or nothing).
#![forbid(unsafe_code)]

pub mod crash;
pub mod host;
pub mod load;
pub mod random;
pub mod report;
pub mod session;
pub mod stamp;
