//! What the stores of one process have in common: leases by a clock, and the last changes, for watches.

use crate::meta::{LeaseId, MetaError, Op, ReadAnew, Revision, Txn, WATCH_CHANGES_MAX, Watch, WatchChange};
use peristyle_base::{Duration, Instant};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::future::poll_fn;
use std::sync::{Mutex, MutexGuard};
use std::task::{Poll, Waker};

/// Values of the changes that are kept for watches.
const HISTORY_BYTES_MAX: usize = 4 << 20;
/// Leases at the same time: a cluster has one or two of each node.
const LEASES_MAX: usize = 4096;
/// A lease that could not be ended is tried again after this.
const AGAIN: Duration = Duration::from_millis(10);

/// Leases and changes of one store. Locked for moments only, never while anything is written.
#[derive(Default)]
pub struct Shared {
    pub leases: Leases,
    history: History,
    /// Rises with everything that a watch may wait for.
    version: u64,
    watches: u64,
    /// By the watch's number.
    waiting: BTreeMap<u64, Waker>,
}

impl Shared {
    /// Of a store that has this revision, and changes that nobody has kept. Its leases have numbers above `lease`, and none is
    /// granted for a while.
    pub fn at(revision: Revision, lease: i64, none_for: Duration) -> Shared {
        let history = History { floor: revision, ..History::default() };
        let leases = Leases { last: lease, none_for, ..Leases::default() };
        Shared { leases, history, ..Shared::default() }
    }

    pub fn grant(&mut self, now: Instant, ttl: Duration) -> Result<LeaseId, MetaError> {
        let id = self.leases.grant(now, ttl)?;
        self.moved(); // it may end before any other
        Ok(id)
    }

    /// The transaction has happened.
    pub fn applied(&mut self, txn: Txn, revision: Revision) {
        for op in txn.ops {
            let change = match op {
                Op::Put { key, value, lease } => {
                    self.leases.attach(&key, lease);
                    WatchChange { key, value: Some(value), revision }
                }
                Op::Delete { key } => {
                    self.leases.attach(&key, None);
                    WatchChange { key, value: None, revision }
                }
            };
            self.history.push(change);
        }
        self.moved();
    }

    /// Nobody knows whether a transaction that would have this revision has happened: watches cannot tell.
    pub fn lost(&mut self, revision: Revision) {
        self.history.lose(revision);
        self.moved();
    }

    fn moved(&mut self) {
        self.version += 1;
        std::mem::take(&mut self.waiting).into_values().for_each(Waker::wake);
    }
}

/// What a watch needs of its store.
#[allow(async_fn_in_trait)] // one reactor
pub trait Local {
    fn shared(&self) -> MutexGuard<'_, Shared>;
    fn now(&self) -> Instant;
    /// Ends the leases whose time is over.
    async fn end_leases(&self) -> Result<(), MetaError>;
}

pub(crate) fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().expect("no panic while held")
}

#[derive(Default)]
pub struct Leases {
    last: i64,
    /// None is granted for so long from when the first is asked for.
    none_for: Duration,
    asked: Option<Instant>,
    held: BTreeMap<LeaseId, Held>,
    of_key: BTreeMap<String, LeaseId>,
}

struct Held {
    ttl: Duration,
    until: Instant,
    /// Its keys are being deleted: it cannot be kept alive any more, or its holder would believe that they are there.
    ending: bool,
    keys: BTreeSet<String>,
}

impl Leases {
    fn grant(&mut self, now: Instant, ttl: Duration) -> Result<LeaseId, MetaError> {
        if self.held.len() == LEASES_MAX {
            return Err(MetaError::Unavailable(format!("it has {LEASES_MAX} leases")));
        }
        if now < *self.asked.get_or_insert(now) + self.none_for {
            let why = "it was started anew, and leases of before may still be believed in";
            return Err(MetaError::Unavailable(why.into()));
        }
        self.last += 1;
        let held = Held { ttl, until: now + ttl, ending: false, keys: BTreeSet::new() };
        self.held.insert(LeaseId(self.last), held);
        Ok(LeaseId(self.last))
    }

    pub fn keep_alive(&mut self, now: Instant, id: LeaseId) -> Result<(), MetaError> {
        let held = self.held.get_mut(&id).filter(|held| held.holds(now)).ok_or(MetaError::NoLease)?;
        held.until = now + held.ttl;
        Ok(())
    }

    /// Whether the leases that a transaction names can be put under.
    pub fn check(&self, now: Instant, txn: &Txn) -> Result<(), MetaError> {
        let holds = |id: LeaseId| self.held.get(&id).is_some_and(|held| held.holds(now));
        if txn.leases().all(holds) { Ok(()) } else { Err(MetaError::NoLease) }
    }

    /// The longest time of those that a transaction names.
    pub fn longest(&self, txn: &Txn) -> Duration {
        txn.leases().filter_map(|id| self.held.get(&id)).map(|held| held.ttl).max().unwrap_or_default()
    }

    fn attach(&mut self, key: &str, lease: Option<LeaseId>) {
        if let Some(before) = self.of_key.remove(key)
            && let Some(held) = self.held.get_mut(&before)
        {
            held.keys.remove(key);
        }
        if let Some(lease) = lease
            && let Some(held) = self.held.get_mut(&lease)
        {
            held.keys.insert(key.to_owned());
            self.of_key.insert(key.to_owned(), lease);
        }
    }

    /// No key is under a lease.
    pub fn has_no_keys(&self) -> bool {
        self.of_key.is_empty()
    }

    pub fn is_due(&self, now: Instant) -> bool {
        self.held.values().any(|held| !held.holds(now))
    }

    /// Those whose time is over.
    pub fn due(&self, now: Instant) -> Vec<LeaseId> {
        self.held.iter().filter(|(_, held)| !held.holds(now)).map(|(id, _)| *id).collect()
    }

    /// From now on nothing is put under it and nobody keeps it alive; what has to be deleted before [`Leases::ended`].
    pub fn end(&mut self, id: LeaseId) -> Option<Txn> {
        let held = self.held.get_mut(&id)?;
        held.ending = true;
        Some(held.keys.iter().fold(Txn::default(), |txn, key| txn.delete(key.clone())))
    }

    pub fn ended(&mut self, id: LeaseId) {
        for key in self.held.remove(&id).into_iter().flat_map(|held| held.keys) {
            self.of_key.remove(&key);
        }
    }

    fn next_end(&self) -> Option<Instant> {
        self.held.values().map(|held| held.until).min()
    }
}

impl Held {
    fn holds(&self, now: Instant) -> bool {
        !self.ending && now < self.until
    }
}

/// The last changes, numbered.
#[derive(Default)]
struct History {
    changes: VecDeque<WatchChange>,
    bytes: usize,
    /// The number of the first that is there.
    first: u64,
    /// Changes up to this revision are not all there.
    floor: Revision,
}

impl History {
    fn push(&mut self, change: WatchChange) {
        self.bytes += bytes(&change);
        self.changes.push_back(change);
        while self.changes.len() > WATCH_CHANGES_MAX || self.bytes > HISTORY_BYTES_MAX {
            let gone = self.changes.pop_front().expect("one was pushed");
            self.bytes -= bytes(&gone);
            self.first += 1;
            self.floor = gone.revision;
        }
    }

    fn lose(&mut self, revision: Revision) {
        // One more than there were, so that a watch that had read them all notices, too.
        self.first += self.changes.len() as u64 + 1;
        self.changes.clear();
        self.bytes = 0;
        self.floor = revision;
    }

    /// The number of the first change after a revision.
    fn after(&self, from: Revision) -> Result<u64, ReadAnew> {
        if from < self.floor {
            return Err(ReadAnew);
        }
        Ok(self.first + self.changes.partition_point(|change| change.revision <= from) as u64)
    }

    /// The first change below `prefix` from a number on, and the number after it.
    fn find(&self, from: u64, prefix: &str) -> Result<(Option<&WatchChange>, u64), ReadAnew> {
        let skip = from.checked_sub(self.first).ok_or(ReadAnew)? as usize;
        let mut rest = self.changes.iter().enumerate().skip(skip);
        match rest.find(|(_, change)| change.key.starts_with(prefix)) {
            Some((at, change)) => Ok((Some(change), self.first + at as u64 + 1)),
            None => Ok((None, self.first + self.changes.len() as u64)),
        }
    }
}

fn bytes(change: &WatchChange) -> usize {
    change.value.as_ref().map_or(0, Vec::len)
}

/// A watch of a store of this process.
pub struct LocalWatch<S: Local> {
    store: S,
    number: u64,
    prefix: String,
    from: Revision,
    /// The number of the change to look at next.
    at: Result<u64, ReadAnew>,
}

impl<S: Local> LocalWatch<S> {
    pub(crate) fn new(store: S, prefix: &str, from: Revision) -> LocalWatch<S> {
        let (number, at) = {
            let mut shared = store.shared();
            shared.watches += 1;
            (shared.watches, shared.history.after(from))
        };
        LocalWatch { store, number, prefix: prefix.to_owned(), from, at }
    }

    /// The next change if there is one, else the version of what was looked at, and when a lease ends.
    fn look(&mut self) -> Result<Found, ReadAnew> {
        let shared = self.store.shared();
        loop {
            let found = shared.history.find(self.at?, &self.prefix);
            self.at = found.map(|(_, next)| next);
            match found? {
                (Some(change), _) if change.revision > self.from => return Ok(Found::Change(change.clone())),
                (Some(_), _) => {} // it was in what `from` is the revision of
                (None, _) => return Ok(Found::Nothing(shared.version, shared.leases.next_end())),
            }
        }
    }

    async fn moved(&self, version: u64) {
        poll_fn(|cx| {
            let mut shared = self.store.shared();
            if shared.version != version {
                return Poll::Ready(());
            }
            shared.waiting.insert(self.number, cx.waker().clone());
            Poll::Pending
        })
        .await
    }
}

enum Found {
    Change(WatchChange),
    Nothing(u64, Option<Instant>),
}

impl<S: Local> Watch for LocalWatch<S> {
    async fn next(&mut self) -> Result<WatchChange, ReadAnew> {
        loop {
            // What cannot be ended now is ended later.
            let _ = self.store.end_leases().await;
            let (version, until) = match self.look()? {
                Found::Change(change) => return Ok(change),
                Found::Nothing(version, until) => (version, until),
            };
            match until.filter(|_| peristyle_rt::try_now().is_some()) {
                // Nobody else may look at the store when the lease ends.
                Some(until) => {
                    let wait = until.since(self.store.now()).max(AGAIN);
                    peristyle_rt::timeout(wait, self.moved(version)).await;
                }
                None => self.moved(version).await,
            }
        }
    }
}

impl<S: Local> Drop for LocalWatch<S> {
    fn drop(&mut self) {
        self.store.shared().waiting.remove(&self.number);
    }
}
