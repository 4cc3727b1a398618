//! Where shard records live. The trait is here, `control` implements it on its store, the program wires it.

use crate::record::ShardRecord;
use core::cell::RefCell;
use core::fmt;
use core::pin::Pin;
use peristyle_base::ShardId;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

/// A record's revision; each successful put gives a new one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub struct Version(pub u64);

impl Version {
    /// Expected by the put that creates a record.
    pub const ABSENT: Version = Version(0);
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StoreError {
    /// The record is not at the expected version: another owner wrote it, or an earlier unknown put did happen.
    Conflict,
    /// Nothing happened; try again later.
    Unavailable,
    /// It may have happened, or may yet: load before you decide anything.
    Unknown,
    /// The record exceeds [`crate::RECORD_BYTES_MAX`]'s counts.
    TooLarge,
    /// What is stored is no record.
    Damaged,
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            StoreError::Conflict => "the shard's record was changed by somebody else",
            StoreError::Unavailable => "the control store is out of reach",
            StoreError::Unknown => "the control store did not say whether the record was written",
            StoreError::TooLarge => "the shard's record is too large",
            StoreError::Damaged => "the shard's record in the control store is damaged",
        })
    }
}
impl core::error::Error for StoreError {}

/// Loads and conditionally replaces shard records. A put that returns `Ok` is durable. Used generically, on one
/// reactor: futures need not be `Send`.
#[allow(async_fn_in_trait)]
pub trait ShardStore {
    async fn load(&self, shard: ShardId) -> Result<Option<(ShardRecord, Version)>, StoreError>;
    /// Replaces the record if it is still at `expected` ([`Version::ABSENT`] creates it) and the epoch does not
    /// fall.
    async fn put(
        &self,
        shard: ShardId,
        expected: Version,
        record: &ShardRecord,
    ) -> Result<Version, StoreError>;
}

/// What [`BoxedStore`] holds.
trait Boxed {
    fn load(&self, shard: ShardId) -> BoxedCall<'_, Option<(ShardRecord, Version)>>;
    fn put<'a>(
        &'a self,
        shard: ShardId,
        expected: Version,
        record: &'a ShardRecord,
    ) -> BoxedCall<'a, Version>;
}

type BoxedCall<'a, T> = Pin<Box<dyn Future<Output = Result<T, StoreError>> + 'a>>;

impl<S: ShardStore> Boxed for S {
    fn load(&self, shard: ShardId) -> BoxedCall<'_, Option<(ShardRecord, Version)>> {
        Box::pin(ShardStore::load(self, shard))
    }
    fn put<'a>(
        &'a self,
        shard: ShardId,
        expected: Version,
        record: &'a ShardRecord,
    ) -> BoxedCall<'a, Version> {
        Box::pin(ShardStore::put(self, shard, expected, record))
    }
}

/// A store of whichever kind. What keeps its records in this one is compiled once and not for each store; a call takes
/// memory from the system's allocator, which beside a write to the control store is nothing.
pub struct BoxedStore(Box<dyn Boxed>);

impl BoxedStore {
    pub fn new(store: impl ShardStore + 'static) -> BoxedStore {
        BoxedStore(Box::new(store))
    }
}

impl ShardStore for BoxedStore {
    async fn load(&self, shard: ShardId) -> Result<Option<(ShardRecord, Version)>, StoreError> {
        self.0.load(shard).await
    }
    async fn put(
        &self,
        shard: ShardId,
        expected: Version,
        record: &ShardRecord,
    ) -> Result<Version, StoreError> {
        self.0.put(shard, expected, record).await
    }
}

/// What the next call does instead of its work.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// Answers Conflict (a put; a load goes on as usual).
    Conflict,
    /// Answers Unavailable.
    Unavailable,
    /// A put happens and answers Unknown; a load answers Unavailable.
    UnknownApplied,
    /// A put does not happen and answers Unknown; a load answers Unavailable.
    UnknownLost,
}

/// A store in memory for tests and simulation. Clones share the records, so a "restarted" owner finds them.
#[derive(Clone, Default)]
pub struct MemoryShardStore(Rc<RefCell<Inner>>);

#[derive(Default)]
struct Inner {
    records: BTreeMap<ShardId, (Vec<u8>, Version)>,
    faults: VecDeque<Fault>,
    puts: u64,
}

impl MemoryShardStore {
    /// Queues a fault; each call (load or put) takes one.
    pub fn inject(&self, fault: Fault) {
        self.0.borrow_mut().faults.push_back(fault);
    }
    /// Forgets the faults that are still queued.
    pub fn clear_faults(&self) {
        self.0.borrow_mut().faults.clear();
    }
    /// Puts that took effect.
    pub fn puts(&self) -> u64 {
        self.0.borrow().puts
    }
    /// What is stored now, without faults.
    pub fn peek(&self, shard: ShardId) -> Option<(ShardRecord, Version)> {
        self.0.borrow().get(shard).expect("only encoded records are stored")
    }
}

impl Inner {
    fn get(&self, shard: ShardId) -> Result<Option<(ShardRecord, Version)>, StoreError> {
        let Some((bytes, version)) = self.records.get(&shard) else { return Ok(None) };
        let record = ShardRecord::decode(bytes).map_err(|_| StoreError::Damaged)?;
        Ok(Some((record, *version)))
    }

    fn put(
        &mut self,
        shard: ShardId,
        expected: Version,
        record: &ShardRecord,
    ) -> Result<Version, StoreError> {
        assert_eq!(shard, record.shard, "a record goes to its own shard");
        let mut bytes = Vec::with_capacity(record.encoded_bytes());
        record.encode(&mut bytes).map_err(|_| StoreError::TooLarge)?;
        let there = self.get(shard)?;
        let (epoch, version) = there.map_or((record.epoch, Version::ABSENT), |(r, v)| (r.epoch, v));
        if version != expected || record.epoch < epoch {
            return Err(StoreError::Conflict);
        }
        self.puts += 1;
        let version = Version(version.0 + 1);
        self.records.insert(shard, (bytes, version));
        Ok(version)
    }
}

impl ShardStore for MemoryShardStore {
    async fn load(&self, shard: ShardId) -> Result<Option<(ShardRecord, Version)>, StoreError> {
        let mut inner = self.0.borrow_mut();
        match inner.faults.pop_front() {
            None | Some(Fault::Conflict) => inner.get(shard),
            Some(_) => Err(StoreError::Unavailable),
        }
    }

    async fn put(
        &self,
        shard: ShardId,
        expected: Version,
        record: &ShardRecord,
    ) -> Result<Version, StoreError> {
        let mut inner = self.0.borrow_mut();
        match inner.faults.pop_front() {
            None => inner.put(shard, expected, record),
            Some(Fault::Conflict) => Err(StoreError::Conflict),
            Some(Fault::Unavailable) => Err(StoreError::Unavailable),
            Some(Fault::UnknownLost) => Err(StoreError::Unknown),
            Some(Fault::UnknownApplied) => {
                inner.put(shard, expected, record)?;
                Err(StoreError::Unknown)
            }
        }
    }
}
