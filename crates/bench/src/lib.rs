//! Load, and the initiator that makes it: an NVMe/TCP host on `rt`.
//!
//! Read first: [`host::Queue`] (one connection), [`session::Session`] (a subsystem found by its address),
//! [`load::drive`] (load at a depth or a rate), [`pattern`] (which places it goes to), [`crash`] (writes of which a crash may leave all or nothing).
#![forbid(unsafe_code)]

pub mod amplification;
pub mod burst;
pub mod contents;
pub mod crash;
pub mod failover;
pub mod host;
pub mod jobfile;
pub mod load;
pub mod model;
pub mod paths;
pub mod pattern;
pub mod random;
pub mod raw;
pub mod report;
pub mod series;
pub mod session;
pub mod significance;
pub mod stamp;
pub mod timeline;
pub mod trace;
