//! Which node is the manager: the one whose name is in the key `manager`, under a lease that it keeps alive.
//!
//! Two things keep a former manager from doing harm. It stops by its own clock before its lease can have ended. And what it
//! writes names the revision of its key ([`Mandate::fence`]), so that the store refuses it when the clock was wrong, or when a
//! leader of etcd that was deposed and did not know it took its renewal: the store alone decides, time only spares conflicts.

use crate::meta::{ClusterStore, Item, LeaseId, MetaError, ReadAnew, Revision, Txn, Watch};
use peristyle_base::{Duration, Instant};
use peristyle_rt::{now, sleep_until};

/// The manager's name is here.
pub const MANAGER: &str = "manager";
/// A mandate is renewed when so much of it is over.
const RENEW_AT: u32 = 3;
/// Clocks differ by at most one in this many.
const DRIFT: u32 = 100;
/// Between two attempts when the store is out of reach.
const PAUSE: Duration = Duration::from_millis(100);

/// The right to act as the manager, while [`Mandate::holds`].
#[derive(Clone, Debug)]
pub struct Mandate {
    lease: LeaseId,
    revision: Revision,
    ttl: Duration,
    /// Counted from when the renewal was asked for.
    until: Instant,
}

/// Waits until there is no manager and makes this node the one. Errors of the store are waited out. A node that was the manager
/// and was started again waits for its own former lease.
pub async fn campaign<S: ClusterStore>(store: &S, name: &str, ttl: Duration) -> Mandate {
    loop {
        match attempt(store, name, ttl).await {
            Ok(Some(mandate)) => return mandate,
            // Another one has it, or nobody any more.
            Ok(None) => {}
            Err(_) => sleep_until(now() + PAUSE).await,
        }
    }
}

/// `None`: there was a manager, and there is a change now.
async fn attempt<S: ClusterStore>(
    store: &S,
    name: &str,
    ttl: Duration,
) -> Result<Option<Mandate>, MetaError> {
    let (there, revision) = holder(store).await?;
    if there.is_some() {
        let mut watch = store.watch(MANAGER, revision);
        while watch.next().await.is_ok_and(|change| change.key != MANAGER) {}
        return Ok(None);
    }
    let asked = now();
    let lease = store.grant(ttl).await?;
    let txn = Txn::default().compare(MANAGER, Revision::ABSENT).put_leased(MANAGER, name, lease);
    match store.commit(txn).await {
        Ok(revision) => Ok(Some(Mandate { lease, revision, ttl, until: asked + usable(ttl) })),
        Err(e) => {
            // When it has happened all the same, the key goes with the lease.
            let _ = store.revoke(lease).await;
            if matches!(e, MetaError::Conflict { .. }) { Ok(None) } else { Err(e) }
        }
    }
}

/// Who the manager is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Manager {
    pub name: String,
    /// Of its election.
    pub revision: Revision,
}

/// The manager, and the revision at which that was so.
async fn holder<S: ClusterStore>(store: &S) -> Result<(Option<Manager>, Revision), MetaError> {
    let (items, revision) = store.list(MANAGER, 1).await?;
    let there = items.into_iter().find(|(key, _)| key == MANAGER);
    let manager = |item: Item| Manager { name: text(item.value), revision: item.revision };
    Ok((there.map(|(_, item)| manager(item)), revision))
}

/// Ends the mandate of a manager that nobody hears of any more, before its lease does: another can be elected at once. If it lives
/// all the same, the store refuses what it writes under its mandate. A conflict: it is not that manager's any more.
pub async fn depose<S: ClusterStore>(store: &S, manager: &Manager) -> Result<(), MetaError> {
    let txn = Txn::default().compare(MANAGER, manager.revision).delete(MANAGER);
    store.commit(txn).await.map(drop)
}

fn text(name: Vec<u8>) -> String {
    String::from_utf8_lossy(&name).into_owned()
}

/// The part of a lease's time that has not passed by any clock.
fn usable(ttl: Duration) -> Duration {
    ttl - ttl / DRIFT
}

impl Mandate {
    /// Whether this node is the manager, by its own clock.
    pub fn holds(&self) -> bool {
        now() < self.until
    }

    /// A transaction that happens only under this mandate.
    pub fn fence(&self, txn: Txn) -> Txn {
        txn.compare(MANAGER, self.revision)
    }

    /// Asks for more time, once. After [`MetaError::NoLease`] the mandate has ended; after another error it has not, yet.
    pub async fn renew<S: ClusterStore>(&mut self, store: &S) -> Result<(), MetaError> {
        let asked = now();
        match store.keep_alive(self.lease).await {
            Ok(()) if self.holds() => {
                self.until = asked + usable(self.ttl);
                Ok(())
            }
            // Too late: what has ended does not begin again.
            Ok(()) | Err(MetaError::NoLease) => {
                self.until = Instant::ZERO;
                Err(MetaError::NoLease)
            }
            Err(e) => Err(e),
        }
    }

    /// Renews the mandate for as long as the store lets it, and returns when it has ended: at its time, whatever the store
    /// does meanwhile.
    pub async fn keep<S: ClusterStore>(&mut self, store: &S) {
        while self.holds() {
            let last = self.until;
            // Renewing takes as long as the store does; the mandate ends at its time.
            let renewed = async {
                sleep_until(renewal_of(last, self.ttl)).await;
                while !matches!(self.renew(store).await, Ok(()) | Err(MetaError::NoLease)) {
                    sleep_until(now() + PAUSE).await;
                }
            };
            peristyle_rt::select(renewed, sleep_until(last)).await;
        }
    }

    /// Gives the mandate back: another node can have it at once.
    pub async fn resign<S: ClusterStore>(self, store: &S) -> Result<(), MetaError> {
        store.revoke(self.lease).await
    }
}

/// When a mandate that lasts until then is renewed.
fn renewal_of(until: Instant, ttl: Duration) -> Instant {
    let rest = usable(ttl) - ttl / RENEW_AT;
    Instant(until.nanos().saturating_sub(rest.as_nanos() as u64))
}

/// Follows who is the manager.
pub struct Observer<S: ClusterStore> {
    store: S,
    watch: Option<S::Watch>,
}

/// Begins with who is the manager now.
pub fn observe<S: ClusterStore>(store: S) -> Observer<S> {
    Observer { store, watch: None }
}

impl<S: ClusterStore> Observer<S> {
    /// The manager, now and then with each change; `None` while there is none. An error is that of a read: ask again.
    pub async fn next(&mut self) -> Result<Option<Manager>, MetaError> {
        loop {
            let Some(watch) = &mut self.watch else {
                let (there, revision) = holder(&self.store).await?;
                self.watch = Some(self.store.watch(MANAGER, revision));
                return Ok(there);
            };
            match watch.next().await {
                Ok(change) if change.key == MANAGER => {
                    let revision = change.revision;
                    return Ok(change.value.map(|name| Manager { name: text(name), revision }));
                }
                Ok(_) => {}
                Err(ReadAnew) => self.watch = None,
            }
        }
    }
}
