//! The control store as this crate sees it: a small, ordered, transactional map. Embedded on one machine; a
//! cluster's store (etcd) fits the same trait and must pass the same suite (`tests/stores.rs`).

use std::fmt;

pub const KEY_BYTES_MAX: usize = 256;
/// A shard's record (64 KiB) is the largest value.
pub const VALUE_BYTES_MAX: usize = 64 * 1024;
/// Compares and operations of one transaction (etcd's default limit).
pub const OPS_MAX: usize = 128;

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

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Op {
    Put { key: String, value: Vec<u8> },
    Delete { key: String },
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
        self.ops.push(Op::Put { key: key.into(), value: value.into() });
        self
    }
    pub fn delete(mut self, key: impl Into<String>) -> Txn {
        self.ops.push(Op::Delete { key: key.into() });
        self
    }

    /// Refuses what no store takes.
    pub(crate) fn check(&self) -> Result<(), MetaError> {
        let fits = |key: &str| !key.is_empty() && key.len() <= KEY_BYTES_MAX;
        let keys = self.compares.iter().map(|(key, _)| key).chain(self.ops.iter().map(|op| match op {
            Op::Put { key, .. } | Op::Delete { key } => key,
        }));
        let value = |op: &Op| matches!(op, Op::Put { value, .. } if value.len() > VALUE_BYTES_MAX);
        if self.compares.len() + self.ops.len() > OPS_MAX
            || self.ops.iter().any(value)
            || !keys.into_iter().all(|k| fits(k))
        {
            return Err(MetaError::TooLarge);
        }
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
    /// Beyond [`KEY_BYTES_MAX`], [`VALUE_BYTES_MAX`] or [`OPS_MAX`]; nothing happened.
    TooLarge,
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
