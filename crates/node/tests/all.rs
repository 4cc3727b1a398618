//! All tests of whole nodes as one program, but for the one that counts allocations: a node is compiled for its store,
//! which takes longer than the tests.

mod at_once;
mod buffers;
mod common;
mod export;
mod failover;
mod figures;
mod hostile;
mod nbd;
mod paths;
mod peers;
mod repair;
mod resize;
mod rig;
mod shard;
mod shard_faults;
mod sockets;
mod stalls;
mod target;
mod tls;
