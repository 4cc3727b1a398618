//! A node as one of several: it follows what is asked of the cluster, serves what it is to own, and leaves in order; and it stands ready
//! to be the manager, which decides who is to own what. Runs on the node's first reactor, in the simulator as in a program.
#![forbid(unsafe_code)]

mod describe;
mod manager;
mod member;
mod volumes;

pub use describe::{enter, hosts_here, peer_config, peer_devices, portals, portals_of, wish_of};
pub use member::{DEAD_AFTER, Member, Voice};
pub use volumes::{SettleError, settle_volume, spec_of};
