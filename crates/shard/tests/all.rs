//! All tests of whole shards as one program: a shard is compiled for its columns and its store, which takes longer than the tests.

mod at_rest;
mod balance;
mod checkpoints;
mod collect;
mod extents;
mod foreseen;
mod geometry;
mod memory;
mod pool;
mod recovery;
mod repair;
mod resize;
mod samples;
mod scheme;
mod snapshots;
mod space;
