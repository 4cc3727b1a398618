//! All tests of the control plane as one program, but for those that start etcd: linking a program takes longer than what is in it.

mod common;
#[path = "common/raw.rs"]
mod raw;
#[path = "common/served.rs"]
mod rig;
#[path = "common/suite.rs"]
mod suite;

mod api;
mod cluster;
mod config;
mod desired;
mod election;
mod reactor;
mod served;
mod served_faults;
mod served_limits;
mod served_strangers;
mod setup;
mod store_protocol;
mod stores;
