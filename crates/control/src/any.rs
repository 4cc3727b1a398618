//! One of the stores, chosen by the configuration.

use crate::embedded::EmbeddedStore;
use crate::etcd::{EtcdStore, EtcdWatch};
use crate::meta::{
    ClusterStore, Item, LeaseId, MetaError, MetaStore, ReadAnew, Revision, Txn, Watch, WatchChange,
};
use crate::served::{ServedStore, ServedWatch};
use peristyle_base::Duration;

/// The store of a node, whichever it is. Cheap to clone; to be used as what it is one of.
#[derive(Clone)]
pub enum AnyStore {
    /// In this process.
    Embedded(EmbeddedStore),
    /// In another process of a development cluster.
    Served(ServedStore),
    Etcd(EtcdStore),
}

/// A watch of an [`AnyStore`].
pub enum AnyWatch {
    Embedded(<EmbeddedStore as ClusterStore>::Watch),
    Served(ServedWatch),
    Etcd(EtcdWatch),
}

/// Does the same with whichever store it is.
macro_rules! with {
    ($any:expr, $store:ident => $call:expr) => {
        match $any {
            AnyStore::Embedded($store) => $call,
            AnyStore::Served($store) => $call,
            AnyStore::Etcd($store) => $call,
        }
    };
}

impl MetaStore for AnyStore {
    async fn get(&self, key: &str) -> Result<Option<Item>, MetaError> {
        with!(self, store => store.get(key).await)
    }
    async fn range(&self, prefix: &str, limit: usize) -> Result<Vec<(String, Item)>, MetaError> {
        with!(self, store => store.range(prefix, limit).await)
    }
    async fn commit(&self, txn: Txn) -> Result<Revision, MetaError> {
        with!(self, store => store.commit(txn).await)
    }
}

impl ClusterStore for AnyStore {
    type Watch = AnyWatch;

    async fn list(&self, prefix: &str, limit: usize) -> Result<(Vec<(String, Item)>, Revision), MetaError> {
        with!(self, store => store.list(prefix, limit).await)
    }
    fn watch(&self, prefix: &str, from: Revision) -> AnyWatch {
        match self {
            AnyStore::Embedded(store) => AnyWatch::Embedded(store.watch(prefix, from)),
            AnyStore::Served(store) => AnyWatch::Served(store.watch(prefix, from)),
            AnyStore::Etcd(store) => AnyWatch::Etcd(store.watch(prefix, from)),
        }
    }
    async fn grant(&self, ttl: Duration) -> Result<LeaseId, MetaError> {
        with!(self, store => store.grant(ttl).await)
    }
    async fn keep_alive(&self, lease: LeaseId) -> Result<(), MetaError> {
        with!(self, store => store.keep_alive(lease).await)
    }
    async fn revoke(&self, lease: LeaseId) -> Result<(), MetaError> {
        with!(self, store => store.revoke(lease).await)
    }
}

impl Watch for AnyWatch {
    async fn next(&mut self) -> Result<WatchChange, ReadAnew> {
        match self {
            AnyWatch::Embedded(watch) => watch.next().await,
            AnyWatch::Served(watch) => watch.next().await,
            AnyWatch::Etcd(watch) => watch.next().await,
        }
    }
}
