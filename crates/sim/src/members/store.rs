//! The control store as the nodes reach it: over a network that takes time, fails, and loses answers.

use peristyle_base::Duration;
use peristyle_control::{
    ClusterStore, Item, LeaseId, MemoryStore, MetaError, MetaStore, ReadAnew, Revision, Txn, Watch,
    WatchChange,
};
use peristyle_rt::sleep;
use std::cell::Cell;
use std::rc::Rc;

/// One way to the store and back takes so long at least, and at most twice that.
const WAY: Duration = Duration::from_micros(300);
/// A client that hears nothing gives up.
const PATIENCE: Duration = Duration::from_millis(500);
/// How often a watch that hears nothing tries again.
const WATCH_PAUSE: Duration = Duration::from_millis(20);

/// Who can reach the store.
#[derive(Clone, Default)]
pub struct Reach {
    /// It is away from everybody.
    pub store_away: Rc<Cell<bool>>,
    /// It is away from this node.
    pub cut_off: Rc<Cell<bool>>,
}

impl Reach {
    fn is_broken(&self) -> bool {
        self.store_away.get() || self.cut_off.get()
    }
}

/// Clones reach the same store the same way.
#[derive(Clone)]
pub struct FarStore {
    store: MemoryStore,
    reach: Reach,
}

impl FarStore {
    pub fn new(store: MemoryStore, reach: Reach) -> FarStore {
        FarStore { store, reach }
    }

    async fn way(&self) -> Result<(), ()> {
        sleep(WAY + Duration::from_nanos(peristyle_rt::random_below(WAY.as_nanos() as u64))).await;
        if self.reach.is_broken() {
            sleep(PATIENCE).await;
            return Err(());
        }
        Ok(())
    }

    /// A request that does not arrive changes nothing; of one whose answer is lost nobody knows.
    async fn ask<T>(&self, request: impl Future<Output = Result<T, MetaError>>) -> Result<T, MetaError> {
        self.way().await.map_err(|()| MetaError::Unavailable("not reached".into()))?;
        let answer = request.await;
        self.way().await.map_err(|()| MetaError::Unknown("no answer".into()))?;
        answer
    }

    /// The same of what changes nothing.
    async fn look<T>(&self, request: impl Future<Output = Result<T, MetaError>>) -> Result<T, MetaError> {
        self.ask(request).await.map_err(|error| match error {
            MetaError::Unknown(why) => MetaError::Unavailable(why),
            other => other,
        })
    }
}

impl MetaStore for FarStore {
    async fn get(&self, key: &str) -> Result<Option<Item>, MetaError> {
        self.look(self.store.get(key)).await
    }
    async fn range(&self, prefix: &str, limit: usize) -> Result<Vec<(String, Item)>, MetaError> {
        self.look(self.store.range(prefix, limit)).await
    }
    async fn commit(&self, txn: Txn) -> Result<Revision, MetaError> {
        self.ask(self.store.commit(txn)).await
    }
}

impl ClusterStore for FarStore {
    type Watch = FarWatch;

    async fn list(&self, prefix: &str, limit: usize) -> Result<(Vec<(String, Item)>, Revision), MetaError> {
        self.look(self.store.list(prefix, limit)).await
    }
    fn watch(&self, prefix: &str, from: Revision) -> FarWatch {
        FarWatch { inner: self.store.watch(prefix, from), reach: self.reach.clone(), heard: None }
    }
    async fn grant(&self, ttl: Duration) -> Result<LeaseId, MetaError> {
        self.ask(self.store.grant(ttl)).await
    }
    async fn keep_alive(&self, lease: LeaseId) -> Result<(), MetaError> {
        self.ask(self.store.keep_alive(lease)).await
    }
    async fn revoke(&self, lease: LeaseId) -> Result<(), MetaError> {
        self.ask(self.store.revoke(lease)).await
    }
}

/// Tells late what happened while it could not be reached.
pub struct FarWatch {
    inner: <MemoryStore as ClusterStore>::Watch,
    reach: Reach,
    /// It has happened, and was not told yet.
    heard: Option<Result<WatchChange, ReadAnew>>,
}

impl Watch for FarWatch {
    async fn next(&mut self) -> Result<WatchChange, ReadAnew> {
        if self.heard.is_none() {
            self.heard = Some(self.inner.next().await);
        }
        sleep(WAY).await;
        while self.reach.is_broken() {
            sleep(WATCH_PAUSE).await;
        }
        self.heard.take().expect("just heard")
    }
}
