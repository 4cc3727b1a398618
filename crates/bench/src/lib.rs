//! Load, and the initiator that makes it: an NVMe/TCP host on `rt`.
//!
//! Read first: [`host::Queue`] (one connection), [`host::Host`] (an admin queue and its I/O queues).
#![forbid(unsafe_code)]

pub mod host;
