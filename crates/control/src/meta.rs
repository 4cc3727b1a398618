//! The control store as this crate sees it: a small, ordered, transactional map, with watches and leases for a cluster.
//! Embedded on one machine, that of another process or etcd on a cluster, in memory in tests: all pass the same suite
//! (`tests/common/suite.rs`).

use peristyle_base::Duration;
use std::collections::BTreeSet;
use std::fmt;

pub const KEY_BYTES_MAX: usize = 256;
/// A shard's record (64 KiB) is the largest value.
pub const VALUE_BYTES_MAX: usize = 64 * 1024;
/// Compares and operations of one transaction (etcd's default limit is for each of them).
pub const OPS_MAX: usize = 128;
/// Keys and values of one transaction; etcd's default limit for a request is 1.5 MiB.
pub const TXN_BYTES_MAX: usize = 1 << 20;
/// Changes that a watch is behind by at most.
pub const WATCH_CHANGES_MAX: usize = 1024;

/// Which transaction wrote an item last; revisions of one store only grow.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub struct Revision(pub u64);

impl Revision {
    /// Compared with a key that must not exist.
    pub const ABSENT: Revision = Revision(0);
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Item {
    pub value: Vec<u8>,
    pub revision: Revision,
}

/// One that was granted; the store chooses the number.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct LeaseId(pub i64);

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Op {
    /// The key goes when its lease ends; a put without one takes it off the lease that it had.
    Put {
        key: String,
        value: Vec<u8>,
        lease: Option<LeaseId>,
    },
    Delete {
        key: String,
    },
}

impl Op {
    pub fn key(&self) -> &str {
        match self {
            Op::Put { key, .. } | Op::Delete { key } => key,
        }
    }
}

/// Operations that happen all together if every compared key is still at its revision, or not at all.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Txn {
    pub compares: Vec<(String, Revision)>,
    pub ops: Vec<Op>,
}

impl Txn {
    pub fn compare(mut self, key: impl Into<String>, revision: Revision) -> Txn {
        self.compares.push((key.into(), revision));
        self
    }
    pub fn put(mut self, key: impl Into<String>, value: impl Into<Vec<u8>>) -> Txn {
        self.ops.push(Op::Put { key: key.into(), value: value.into(), lease: None });
        self
    }
    pub fn put_leased(mut self, key: impl Into<String>, value: impl Into<Vec<u8>>, lease: LeaseId) -> Txn {
        self.ops.push(Op::Put { key: key.into(), value: value.into(), lease: Some(lease) });
        self
    }
    pub fn delete(mut self, key: impl Into<String>) -> Txn {
        self.ops.push(Op::Delete { key: key.into() });
        self
    }

    /// The leases that its puts name.
    pub(crate) fn leases(&self) -> impl Iterator<Item = LeaseId> {
        self.ops.iter().filter_map(|op| if let Op::Put { lease, .. } = op { *lease } else { None })
    }

    /// Refuses what no store takes.
    /// # Panics — when a key is put or deleted twice: which of them counts is for the caller to know.
    pub(crate) fn check(&self) -> Result<(), MetaError> {
        let keys = || self.compares.iter().map(|(key, _)| key.as_str()).chain(self.ops.iter().map(Op::key));
        let values =
            || self.ops.iter().map(|op| if let Op::Put { value, .. } = op { value.len() } else { 0 });
        let bytes = keys().map(str::len).sum::<usize>() + values().sum::<usize>();
        if self.compares.len() + self.ops.len() > OPS_MAX
            || bytes > TXN_BYTES_MAX
            || values().any(|bytes| bytes > VALUE_BYTES_MAX)
            || keys().any(|key| key.is_empty() || key.len() > KEY_BYTES_MAX)
        {
            return Err(MetaError::TooLarge);
        }
        let distinct: BTreeSet<_> = self.ops.iter().map(Op::key).collect();
        assert_eq!(distinct.len(), self.ops.len(), "a transaction changes a key once");
        Ok(())
    }
}

/// Why a call to the store did not do what it was asked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum MetaError {
    /// A compared key has changed since; nothing happened.
    Conflict { key: String },
    /// Nothing happened; try again later.
    Unavailable(String),
    /// It may have happened: read before you decide.
    Unknown(String),
    /// Beyond [`KEY_BYTES_MAX`], [`VALUE_BYTES_MAX`], [`OPS_MAX`] or [`TXN_BYTES_MAX`]; nothing happened.
    TooLarge,
    /// The lease has ended, and its keys are gone; nothing happened.
    NoLease,
}

impl fmt::Display for MetaError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            MetaError::Conflict { key } => {
                write!(f, "`{key}` was changed by somebody else at the same time; try again")
            }
            MetaError::Unavailable(why) => write!(f, "the control store is out of reach: {why}"),
            MetaError::Unknown(why) => {
                write!(
                    f,
                    "the control store did not say whether the change happened ({why}); look before trying again"
                )
            }
            MetaError::TooLarge => f.write_str("too much for one transaction of the control store"),
            MetaError::NoLease => f.write_str("the lease in the control store has ended"),
        }
    }
}
impl std::error::Error for MetaError {}

/// Whatever a commit acknowledged is durable and is seen by every later read. Used generically, on one reactor:
/// futures need not be `Send`.
#[allow(async_fn_in_trait)]
pub trait MetaStore {
    async fn get(&self, key: &str) -> Result<Option<Item>, MetaError>;
    /// Up to `limit` items whose keys start with `prefix`, in order of their keys, all of one moment.
    async fn range(&self, prefix: &str, limit: usize) -> Result<Vec<(String, Item)>, MetaError>;
    /// All or nothing. The revision is that of every item that was put.
    async fn commit(&self, txn: Txn) -> Result<Revision, MetaError>;
}

/// One key that was put or deleted.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct WatchChange {
    pub key: String,
    /// `None`: it was deleted, or its lease has ended.
    pub value: Option<Vec<u8>>,
    pub revision: Revision,
}

/// The watch has ended, because changes that it did not tell are no longer to be had: read everything anew, and watch
/// from the revision of that.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ReadAnew;

impl fmt::Display for ReadAnew {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("changes of the control store were missed: read it anew")
    }
}
impl std::error::Error for ReadAnew {}

/// What [`ClusterStore::watch`] gives.
#[allow(async_fn_in_trait)]
pub trait Watch {
    /// The next change; waits for it as long as it takes, also while the store is out of reach. Dropping the future loses
    /// nothing. After an error there are only errors.
    async fn next(&mut self) -> Result<WatchChange, ReadAnew>;
}

/// What a cluster needs beside: changes as they happen, and keys that go with whoever wrote them.
#[allow(async_fn_in_trait)]
pub trait ClusterStore: MetaStore {
    type Watch: Watch;

    /// As [`MetaStore::range`], with the revision of that moment: a watch from there misses nothing.
    async fn list(&self, prefix: &str, limit: usize) -> Result<(Vec<(String, Item)>, Revision), MetaError>;
    /// Every change after `from` to keys that start with `prefix`, once, in order of revisions. A watch that is not read ends
    /// when it is [`WATCH_CHANGES_MAX`] changes behind.
    fn watch(&self, prefix: &str, from: Revision) -> Self::Watch;
    /// A lease ends when it was not kept alive for `ttl`: not before, and soon after it. What was put under it is deleted then.
    /// No other lease ever has its number.
    async fn grant(&self, ttl: Duration) -> Result<LeaseId, MetaError>;
    /// Begins the lease's time anew.
    async fn keep_alive(&self, lease: LeaseId) -> Result<(), MetaError>;
    /// Ends the lease. That it had ended before is no error.
    async fn revoke(&self, lease: LeaseId) -> Result<(), MetaError>;
}

/// Stores can be shared: between the desired state and the shards' records, for example.
impl<S: MetaStore> MetaStore for std::rc::Rc<S> {
    async fn get(&self, key: &str) -> Result<Option<Item>, MetaError> {
        (**self).get(key).await
    }
    async fn range(&self, prefix: &str, limit: usize) -> Result<Vec<(String, Item)>, MetaError> {
        (**self).range(prefix, limit).await
    }
    async fn commit(&self, txn: Txn) -> Result<Revision, MetaError> {
        (**self).commit(txn).await
    }
}

impl<S: ClusterStore> ClusterStore for std::rc::Rc<S> {
    type Watch = S::Watch;

    async fn list(&self, prefix: &str, limit: usize) -> Result<(Vec<(String, Item)>, Revision), MetaError> {
        (**self).list(prefix, limit).await
    }
    fn watch(&self, prefix: &str, from: Revision) -> S::Watch {
        (**self).watch(prefix, from)
    }
    async fn grant(&self, ttl: Duration) -> Result<LeaseId, MetaError> {
        (**self).grant(ttl).await
    }
    async fn keep_alive(&self, lease: LeaseId) -> Result<(), MetaError> {
        (**self).keep_alive(lease).await
    }
    async fn revoke(&self, lease: LeaseId) -> Result<(), MetaError> {
        (**self).revoke(lease).await
    }
}
