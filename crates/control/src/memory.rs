//! A store in memory, for tests and simulation. Clones share what is stored: it outlives a "crashed" node.

use crate::local::{Local, LocalWatch, Shared, lock};
use crate::meta::{ClusterStore, Item, LeaseId, MetaError, MetaStore, Op, Revision, Txn};
use peristyle_base::{Duration, Instant};
use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::sync::{Mutex, MutexGuard};

/// What the next call does instead of its work.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MetaFault {
    Unavailable,
    /// A commit happens and answers Unknown; a read answers Unavailable.
    UnknownApplied,
    /// A commit does not happen and answers Unknown; a read answers Unavailable.
    UnknownLost,
}

#[derive(Clone, Default)]
pub struct MemoryStore(Rc<Parts>);

#[derive(Default)]
struct Parts {
    inner: RefCell<Inner>,
    shared: Mutex<Shared>,
    /// That leases end by.
    clock: Option<Box<dyn Fn() -> Instant>>,
}

#[derive(Default)]
struct Inner {
    items: BTreeMap<String, Item>,
    revision: u64,
    /// What the next calls do; `None` is "as usual".
    faults: VecDeque<Option<MetaFault>>,
}

impl MemoryStore {
    /// Its leases end by this clock: where the nodes of a simulation have clocks that differ, the store needs its own.
    /// Otherwise it is that of the reactor where a call is made; where there is none, no lease ends by itself.
    pub fn with_clock(clock: impl Fn() -> Instant + 'static) -> MemoryStore {
        MemoryStore(Rc::new(Parts { clock: Some(Box::new(clock)), ..Parts::default() }))
    }
    /// Queues a fault; each call takes one.
    pub fn inject(&self, fault: MetaFault) {
        self.0.inner.borrow_mut().faults.push_back(Some(fault));
    }
    /// Lets one call pass before the faults that are queued after this.
    pub fn inject_none(&self) {
        self.0.inner.borrow_mut().faults.push_back(None);
    }
    /// Forgets the faults that are still queued.
    pub fn clear_faults(&self) {
        self.0.inner.borrow_mut().faults.clear();
    }
}

impl Inner {
    fn next_fault(&mut self) -> Option<MetaFault> {
        self.faults.pop_front().flatten()
    }

    fn range(&self, prefix: &str, limit: usize) -> Vec<(String, Item)> {
        let from = self.items.range(prefix.to_owned()..).take_while(|(key, _)| key.starts_with(prefix));
        from.take(limit).map(|(key, item)| (key.clone(), item.clone())).collect()
    }

    /// Deletions of what is not there go out of `txn`: they change nothing.
    fn apply(&mut self, txn: &mut Txn) -> Revision {
        self.revision += 1;
        let revision = Revision(self.revision);
        txn.ops.retain(|op| match op {
            Op::Put { key, value, .. } => {
                self.items.insert(key.clone(), Item { value: value.clone(), revision });
                true
            }
            Op::Delete { key } => self.items.remove(key).is_some(),
        });
        revision
    }
}

impl Parts {
    fn commit(&self, mut txn: Txn) -> Result<Revision, MetaError> {
        let mut inner = self.inner.borrow_mut();
        for (key, expected) in &txn.compares {
            if inner.items.get(key).map_or(Revision::ABSENT, |i| i.revision) != *expected {
                return Err(MetaError::Conflict { key: key.clone() });
            }
        }
        lock(&self.shared).leases.check(self.now(), &txn)?;
        let revision = inner.apply(&mut txn);
        lock(&self.shared).applied(txn, revision);
        Ok(revision)
    }

    fn now(&self) -> Instant {
        match &self.clock {
            Some(clock) => clock(),
            None => peristyle_rt::try_now().unwrap_or(Instant::ZERO),
        }
    }

    fn end(&self, lease: LeaseId) {
        let Some(mut txn) = lock(&self.shared).leases.end(lease) else { return };
        if !txn.ops.is_empty() {
            let revision = self.inner.borrow_mut().apply(&mut txn);
            lock(&self.shared).applied(txn, revision);
        }
        lock(&self.shared).leases.ended(lease);
    }

    fn end_due(&self) {
        let due = lock(&self.shared).leases.due(self.now());
        due.into_iter().for_each(|lease| self.end(lease));
    }

    /// A read, or the fault that is due.
    fn read<T>(&self, read: impl FnOnce(&Inner) -> T) -> Result<T, MetaError> {
        self.end_due();
        let mut inner = self.inner.borrow_mut();
        match inner.next_fault() {
            None => Ok(read(&inner)),
            Some(_) => Err(MetaError::Unavailable("injected".into())),
        }
    }

    /// A change, or the fault that is due.
    fn change<T>(&self, change: impl FnOnce(&Parts) -> Result<T, MetaError>) -> Result<T, MetaError> {
        self.end_due();
        let fault = self.inner.borrow_mut().next_fault();
        match fault {
            None => change(self),
            Some(MetaFault::Unavailable) => Err(MetaError::Unavailable("injected".into())),
            Some(MetaFault::UnknownLost) => Err(MetaError::Unknown("injected".into())),
            Some(MetaFault::UnknownApplied) => {
                change(self)?;
                Err(MetaError::Unknown("injected".into()))
            }
        }
    }
}

impl MetaStore for MemoryStore {
    async fn get(&self, key: &str) -> Result<Option<Item>, MetaError> {
        self.0.read(|inner| inner.items.get(key).cloned())
    }

    async fn range(&self, prefix: &str, limit: usize) -> Result<Vec<(String, Item)>, MetaError> {
        self.0.read(|inner| inner.range(prefix, limit))
    }

    async fn commit(&self, txn: Txn) -> Result<Revision, MetaError> {
        txn.check()?;
        self.0.change(|parts| parts.commit(txn))
    }
}

impl ClusterStore for MemoryStore {
    type Watch = LocalWatch<MemoryStore>;

    async fn list(&self, prefix: &str, limit: usize) -> Result<(Vec<(String, Item)>, Revision), MetaError> {
        self.0.read(|inner| (inner.range(prefix, limit), Revision(inner.revision)))
    }

    fn watch(&self, prefix: &str, from: Revision) -> LocalWatch<MemoryStore> {
        LocalWatch::new(self.clone(), prefix, from)
    }

    async fn grant(&self, ttl: Duration) -> Result<LeaseId, MetaError> {
        self.0.change(|parts| lock(&parts.shared).grant(parts.now(), ttl))
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<(), MetaError> {
        self.0.change(|parts| lock(&parts.shared).leases.keep_alive(parts.now(), lease))
    }

    async fn revoke(&self, lease: LeaseId) -> Result<(), MetaError> {
        self.0.change(|parts| {
            parts.end(lease);
            Ok(())
        })
    }
}

impl Local for MemoryStore {
    fn shared(&self) -> MutexGuard<'_, Shared> {
        lock(&self.0.shared)
    }
    fn now(&self) -> Instant {
        self.0.now()
    }
    async fn end_leases(&self) -> Result<(), MetaError> {
        self.0.end_due();
        Ok(())
    }
}
