//! What an operator asked for, kept durably: pools, devices, volumes, shards. Also the node's configuration
//! and the protocol of its admin socket. No data path: when this crate's store is away, I/O goes on.
//!
//! Read first: [`MetaStore`], [`Control`] with [`Change`], [`config::Config`], [`api::Request`].
#![forbid(unsafe_code)]

mod any;
pub mod api;
pub mod config;
pub mod desired;
pub mod election;
mod embedded;
mod etcd;
mod local;
pub mod manager;
pub mod member;
mod memory;
mod meta;
pub mod presence;
mod records;
mod serial;
pub mod served;
mod server;
pub mod setup;
mod token;

pub use any::{AnyStore, AnyWatch};
pub use desired::{Change, Control, ControlError, State, VolumeSpec};
pub use embedded::{EmbeddedStore, OpenError};
pub use etcd::{EtcdConfig, EtcdStore, EtcdWatch};
pub use memory::{MemoryStore, MetaFault};
pub use meta::{
    ClusterStore, Item, KEY_BYTES_MAX, LeaseId, MetaError, MetaStore, OPS_MAX, Op, ReadAnew, Revision,
    TXN_BYTES_MAX, Txn, VALUE_BYTES_MAX, WATCH_CHANGES_MAX, Watch, WatchChange,
};
pub use records::ShardRecords;
pub use served::{ServedStore, ServedWatch, serve_store};
pub use server::{AdminHandler, serve_admin};
pub use token::{StoreAt, Token};
