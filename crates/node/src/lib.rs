//! One machine: devices, shards, front ends and other machines' devices, wired on reactors. No policy of its own.
#![forbid(unsafe_code)]

pub mod at_rest;
mod bus;
pub mod columns;
mod config;
pub mod devices;
mod extents;
mod joining;
pub mod message;
pub mod nbd;
mod opening;
mod owning;
pub mod peer;
mod pieces;
mod probe;
pub mod qos;
mod reactor;
pub mod stats;
pub mod target;
pub mod volume;

pub use config::{DeviceConfig, NodeConfig, NodeSeed, PeerDevice, seeds};
pub use devices::{DeviceState, DeviceTable, Wish};
pub use nbd::NbdConfig;
pub use peer::{
    LinkState, PeerConfig, PeersConfig, RequestCount, RequestCounts, RequestKind, Security, Tls, TlsError,
};
pub use reactor::{DeviceOpenError, LocalBoxed, Node, NodeShard, ShardPhase};
pub use target::TargetConfig;
pub use volume::{Volume, VolumeSpec};
