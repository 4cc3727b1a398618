//! A store in memory, for tests and simulation. Clones share what is stored: it outlives a "crashed" node.

use crate::meta::{Item, MetaError, MetaStore, Op, Revision, Txn};
use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

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
pub struct MemoryStore(Rc<RefCell<Inner>>);

#[derive(Default)]
struct Inner {
    items: BTreeMap<String, Item>,
    revision: u64,
    /// What the next calls do; `None` is "as usual".
    faults: VecDeque<Option<MetaFault>>,
}

impl MemoryStore {
    /// Queues a fault; each call takes one.
    pub fn inject(&self, fault: MetaFault) {
        self.0.borrow_mut().faults.push_back(Some(fault));
    }
    /// Lets one call pass before the faults that are queued after this.
    pub fn inject_none(&self) {
        self.0.borrow_mut().faults.push_back(None);
    }
    /// Forgets the faults that are still queued.
    pub fn clear_faults(&self) {
        self.0.borrow_mut().faults.clear();
    }
}

impl Inner {
    fn read_fault(&mut self) -> Result<(), MetaError> {
        match self.faults.pop_front().flatten() {
            None => Ok(()),
            Some(_) => Err(MetaError::Unavailable("injected".into())),
        }
    }

    fn commit(&mut self, txn: Txn) -> Result<Revision, MetaError> {
        for (key, expected) in &txn.compares {
            if self.items.get(key).map_or(Revision::ABSENT, |i| i.revision) != *expected {
                return Err(MetaError::Conflict { key: key.clone() });
            }
        }
        self.revision += 1;
        let revision = Revision(self.revision);
        for op in txn.ops {
            match op {
                Op::Put { key, value } => self.items.insert(key, Item { value, revision }),
                Op::Delete { key } => self.items.remove(&key),
            };
        }
        Ok(revision)
    }
}

impl MetaStore for MemoryStore {
    async fn get(&self, key: &str) -> Result<Option<Item>, MetaError> {
        let mut inner = self.0.borrow_mut();
        inner.read_fault()?;
        Ok(inner.items.get(key).cloned())
    }

    async fn range(&self, prefix: &str, limit: usize) -> Result<Vec<(String, Item)>, MetaError> {
        let mut inner = self.0.borrow_mut();
        inner.read_fault()?;
        let from = inner.items.range(prefix.to_owned()..).take_while(|(key, _)| key.starts_with(prefix));
        Ok(from.take(limit).map(|(key, item)| (key.clone(), item.clone())).collect())
    }

    async fn commit(&self, txn: Txn) -> Result<Revision, MetaError> {
        txn.check()?;
        let mut inner = self.0.borrow_mut();
        match inner.faults.pop_front().flatten() {
            None => inner.commit(txn),
            Some(MetaFault::Unavailable) => Err(MetaError::Unavailable("injected".into())),
            Some(MetaFault::UnknownLost) => Err(MetaError::Unknown("injected".into())),
            Some(MetaFault::UnknownApplied) => {
                inner.commit(txn)?;
                Err(MetaError::Unknown("injected".into()))
            }
        }
    }
}
