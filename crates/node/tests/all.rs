//! All tests of whole nodes as one program: what they have in common is compiled once.

mod allocations;
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

/// Counts apart for each thread: a test sees what its own reactor takes.
#[global_allocator]
static ALLOCATOR: peristyle_rt::alloc_count::CountingAllocator = peristyle_rt::alloc_count::CountingAllocator;
