//! The store of one machine: a redb file. Every commit is durable when it returns.
//!
//! redb blocks, so calls run off the reactor through `rt::blocking`; a program without a reactor (offline tools,
//! tests) opens the store [`inline`](EmbeddedStore::inline) instead.

use crate::local::{Local, LocalWatch, Shared, lock};
use crate::meta::{ClusterStore, Item, LeaseId, MetaError, MetaStore, Op, Revision, Txn};
use peristyle_base::{Duration, Instant};
use redb::backends::InMemoryBackend;
use redb::{
    Database, DatabaseError, Durability, ReadableDatabase, ReadableTable, StorageBackend, StorageError,
    TableDefinition, TableError,
};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};

/// Key to (revision, value).
const ITEMS: TableDefinition<&str, (u64, &[u8])> = TableDefinition::new("items");
/// Keys that are under a lease. Leases are of this process, so that the next start deletes what it finds here.
const LEASED: TableDefinition<&str, ()> = TableDefinition::new("leased");
/// The store's own figures: format, revision, starts, whether it was closed cleanly, and the longest time (`lease_ms`) of a lease
/// that a key was ever under.
const ABOUT: TableDefinition<&str, u64> = TableDefinition::new("about");
const FORMAT: u64 = 1;
/// Memory for redb's pages: the whole store is a few MiB.
const CACHE_BYTES: usize = 8 << 20;

#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error(
        "{0} is in use: another peristyle process has it open. Stop that one first (or talk to it through its admin socket)"
    )]
    InUse(String),
    #[error(
        "{path} is damaged and could not be repaired: {why}. Restore it from a copy; the devices still hold all data"
    )]
    Damaged { path: String, why: String },
    #[error("{path} has store format {found}, this program knows {FORMAT}: start the version that wrote it")]
    Format { path: String, found: u64 },
    #[error("cannot open {path}: {why}. Check that its folder exists and that this user may write there")]
    Io { path: String, why: String },
}

/// Cheap to clone; all clones are the same store.
#[derive(Clone)]
pub struct EmbeddedStore {
    parts: Arc<Parts>,
    clock: Option<Arc<dyn Fn() -> Instant + Send + Sync>>,
    inline: bool,
    repaired: bool,
}

struct Parts {
    database: Database,
    shared: Mutex<Shared>,
    /// Held from before a change until watches know of it, so that they see changes in order.
    writing: Mutex<()>,
}

impl EmbeddedStore {
    /// Opens the file, or creates it. After an unclean stop the whole file is checked. Blocks: call it before
    /// the reactors start, or off them.
    pub fn open(path: &Path) -> Result<EmbeddedStore, OpenError> {
        let name = path.display().to_string();
        let fail = |e: DatabaseError| match e {
            DatabaseError::DatabaseAlreadyOpen => OpenError::InUse(name.clone()),
            DatabaseError::Storage(StorageError::Corrupted(why)) => {
                OpenError::Damaged { path: name.clone(), why }
            }
            DatabaseError::UpgradeRequired(found) => {
                OpenError::Format { path: name.clone(), found: found.into() }
            }
            other => OpenError::Io { path: name.clone(), why: other.to_string() },
        };
        let mut database = Database::builder().set_cache_size(CACHE_BYTES).create(path).map_err(fail)?;
        let io = |e: redb::Error| OpenError::Io { path: name.clone(), why: e.to_string() };
        let (format, clean) = about(&database).map_err(io)?;
        if format != FORMAT {
            return Err(OpenError::Format { path: name, found: format });
        }
        // redb repairs itself after a crash; the full check is for what it cannot know: a bad disk, a bug.
        let repaired = !clean && !database.check_integrity().map_err(fail)?;
        let (starts, longest) = begin(&database).map_err(io)?;
        delete_leased(&database).map_err(|e| OpenError::Io { path: name.clone(), why: e.to_string() })?;
        EmbeddedStore::of(database, starts, longest, repaired).map_err(io)
    }

    /// A copy of a file's bytes, in memory: to look at a store without changing it. A file that was not closed is repaired
    /// in the copy.
    pub fn of_bytes(name: &str, bytes: &[u8]) -> Result<EmbeddedStore, OpenError> {
        let io = |why: String| OpenError::Io { path: name.to_owned(), why };
        let backend = InMemoryBackend::new();
        let filled = backend.set_len(bytes.len() as u64).and_then(|()| backend.write(0, bytes));
        filled.map_err(|e| io(e.to_string()))?;
        let opened = Database::builder().set_cache_size(CACHE_BYTES).create_with_backend(backend);
        let database =
            opened.map_err(|e| OpenError::Damaged { path: name.to_owned(), why: e.to_string() })?;
        let (format, _) = about(&database).map_err(|e| io(e.to_string()))?;
        if format != FORMAT {
            return Err(OpenError::Format { path: name.to_owned(), found: format });
        }
        EmbeddedStore::of(database, 0, Duration::ZERO, false).map_err(|e| io(e.to_string()))
    }

    /// Others may have held leases when the process before ended. They must not take another's for theirs, so that each start has numbers
    /// of its own; and nobody can have what was under them before they have given up believing in it, by their clocks.
    fn of(
        database: Database,
        starts: u32,
        longest: Duration,
        repaired: bool,
    ) -> Result<EmbeddedStore, redb::Error> {
        let lease = i64::from(starts & i32::MAX as u32) << 32;
        let shared = Mutex::new(Shared::at(revision(&database)?, lease, longest));
        let parts = Arc::new(Parts { database, shared, writing: Mutex::new(()) });
        Ok(EmbeddedStore { parts, clock: None, inline: false, repaired })
    }

    /// Runs its calls where they are made, without a reactor.
    pub fn inline(mut self) -> EmbeddedStore {
        self.inline = true;
        self
    }

    /// Leases end by this clock, and not by that of the reactor where a call is made. Where there is neither, no lease ends
    /// by itself.
    pub fn with_clock(mut self, clock: impl Fn() -> Instant + Send + Sync + 'static) -> EmbeddedStore {
        self.clock = Some(Arc::new(clock));
        self
    }

    /// Whether opening found damage and repaired it: to be told to the operator.
    pub fn was_repaired(&self) -> bool {
        self.repaired
    }

    /// Remembers that the stop was clean, so that the next start need not check the file. Blocks.
    pub fn close(self) -> Result<(), MetaError> {
        close(&self.parts.database).map_err(|e| MetaError::Unknown(e.to_string()))
    }

    async fn run<T: Send + 'static>(&self, f: impl FnOnce(&Parts) -> T + Send + 'static) -> T {
        if self.inline {
            return f(&self.parts);
        }
        let parts = self.parts.clone();
        peristyle_rt::blocking(move || f(&parts)).await
    }

    /// Reads what is there when leases whose time is over have ended.
    async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Database) -> Result<T, redb::Error> + Send + 'static,
    ) -> Result<T, MetaError> {
        let now = Local::now(self);
        self.run(move |parts| {
            parts.end_due(now)?;
            read(&parts.database).map_err(|e| MetaError::Unavailable(e.to_string()))
        })
        .await
    }
}

impl Parts {
    fn commit(&self, txn: Txn, now: Instant) -> Result<Revision, MetaError> {
        self.end_due(now)?;
        let _writing = self.writing.lock().expect("no panic while held");
        self.write(txn, Some(now))
    }

    /// Only while `writing` is held. Ends of leases (`now` is `None`) name no lease.
    fn write(&self, mut txn: Txn, now: Option<Instant>) -> Result<Revision, MetaError> {
        let (leases, leased) = {
            let Shared { leases, .. } = &*lock(&self.shared);
            let leased = txn.leases().next().is_some() || !leases.has_no_keys();
            let longest = leases.longest(&txn);
            (now.map_or(Ok(()), |now| leases.check(now, &txn)), leased.then_some(longest))
        };
        let (write, revision) = prepare(&self.database, &mut txn, leases, leased)?;
        if let Err(e) = write.commit() {
            // This says nothing about what is on the disk.
            lock(&self.shared).lost(revision);
            return Err(MetaError::Unknown(e.to_string()));
        }
        lock(&self.shared).applied(txn, revision);
        Ok(revision)
    }

    fn end_due(&self, now: Instant) -> Result<(), MetaError> {
        if !lock(&self.shared).leases.is_due(now) {
            return Ok(());
        }
        let _writing = self.writing.lock().expect("no panic while held");
        let due = lock(&self.shared).leases.due(now);
        due.into_iter().try_for_each(|lease| self.end(lease))
    }

    /// Only while `writing` is held.
    fn end(&self, lease: LeaseId) -> Result<(), MetaError> {
        let Some(txn) = lock(&self.shared).leases.end(lease) else { return Ok(()) };
        if !txn.ops.is_empty() {
            self.write(txn, None)?;
        }
        lock(&self.shared).leases.ended(lease);
        Ok(())
    }
}

/// The file's format, and whether it was closed cleanly; a new file gets both.
fn about(database: &Database) -> Result<(u64, bool), redb::Error> {
    let txn = database.begin_write()?;
    let (format, clean);
    {
        let mut table = txn.open_table(ABOUT)?;
        let there = table.get("format")?.map(|v| v.value());
        clean = table.get("clean")?.is_none_or(|v| v.value() == 1);
        format = match there {
            Some(format) => format,
            None => {
                table.insert("format", FORMAT)?;
                FORMAT
            }
        };
        txn.open_table(ITEMS)?;
    }
    txn.commit()?;
    Ok((format, clean))
}

/// The number of this start, and the longest time of leases so far. The file is not clean from now on.
fn begin(database: &Database) -> Result<(u32, Duration), redb::Error> {
    let txn = database.begin_write()?;
    let (starts, longest);
    {
        let mut about = txn.open_table(ABOUT)?;
        longest = about.get("lease_ms")?.map_or(0, |guard| guard.value());
        starts = about.get("starts")?.map_or(0, |guard| guard.value()) + 1;
        about.insert("starts", starts)?;
        about.insert("clean", 0)?;
    }
    txn.commit()?;
    Ok((starts as u32, Duration::from_millis(longest)))
}

fn close(database: &Database) -> Result<(), redb::Error> {
    let txn = database.begin_write()?;
    txn.open_table(ABOUT)?.insert("clean", 1)?;
    txn.commit()?;
    Ok(())
}

fn get(database: &Database, key: &str) -> Result<Option<Item>, redb::Error> {
    let table = database.begin_read()?.open_table(ITEMS)?;
    let item = table.get(key)?.map(|guard| item(guard.value()));
    Ok(item)
}

fn list(
    database: &Database,
    prefix: &str,
    limit: usize,
) -> Result<(Vec<(String, Item)>, Revision), redb::Error> {
    let read = database.begin_read()?;
    let revision = read.open_table(ABOUT)?.get("revision")?.map_or(0, |guard| guard.value());
    let mut found = Vec::new();
    for entry in read.open_table(ITEMS)?.range(prefix..)? {
        let (key, value) = entry?;
        if found.len() == limit || !key.value().starts_with(prefix) {
            break;
        }
        found.push((key.value().to_owned(), item(value.value())));
    }
    Ok((found, Revision(revision)))
}

fn item((revision, value): (u64, &[u8])) -> Item {
    Item { value: value.to_vec(), revision: Revision(revision) }
}

/// That of the last change.
fn revision(database: &Database) -> Result<Revision, redb::Error> {
    let table = database.begin_read()?.open_table(ABOUT)?;
    let revision = table.get("revision")?.map_or(0, |guard| guard.value());
    Ok(Revision(revision))
}

/// What was under leases of a process that is no more.
fn delete_leased(database: &Database) -> Result<(), MetaError> {
    let keys = leased(database).map_err(|e| MetaError::Unavailable(e.to_string()))?;
    if keys.is_empty() {
        return Ok(());
    }
    let mut txn = keys.into_iter().fold(Txn::default(), |txn, key| txn.delete(key));
    let (write, _) = prepare(database, &mut txn, Ok(()), Some(Duration::ZERO))?;
    write.commit().map_err(|e| MetaError::Unknown(e.to_string()))
}

fn leased(database: &Database) -> Result<Vec<String>, redb::Error> {
    let table = match database.begin_read()?.open_table(LEASED) {
        Err(TableError::TableDoesNotExist(_)) => return Ok(Vec::new()),
        table => table?,
    };
    let mut keys = Vec::new();
    for entry in table.iter()? {
        keys.push(entry?.0.value().to_owned());
    }
    Ok(keys)
}

/// The redb transaction with everything in it that `txn` asks for; dropping it undoes all. `leases` is whether those that it
/// names hold, `leased` their longest time, if it has to do with leases at all.
/// Deletions of what is not there go out of `txn`: they change nothing.
fn prepare(
    database: &Database,
    txn: &mut Txn,
    leases: Result<(), MetaError>,
    leased: Option<Duration>,
) -> Result<(redb::WriteTransaction, Revision), MetaError> {
    fn away(e: impl Into<redb::Error>) -> MetaError {
        MetaError::Unavailable(e.into().to_string())
    }
    let mut write = database.begin_write().map_err(away)?;
    write.set_durability(Durability::Immediate).map_err(away)?;
    let revision;
    {
        let mut items = write.open_table(ITEMS).map_err(away)?;
        for (key, expected) in &txn.compares {
            let there = items.get(key.as_str()).map_err(away)?.map_or(0, |guard| guard.value().0);
            if there != expected.0 {
                return Err(MetaError::Conflict { key: key.clone() });
            }
        }
        leases?;
        let mut about = write.open_table(ABOUT).map_err(away)?;
        let last = about.get("revision").map_err(away)?.map_or(0, |guard| guard.value());
        revision = last + 1;
        about.insert("revision", revision).map_err(away)?;
        let mut absent = Vec::new();
        for op in &txn.ops {
            match op {
                Op::Put { key, value, .. } => {
                    items.insert(key.as_str(), (revision, value.as_slice())).map_err(away)?;
                }
                Op::Delete { key } => {
                    if items.remove(key.as_str()).map_err(away)?.is_none() {
                        absent.push(key.clone());
                    }
                }
            }
        }
        txn.ops.retain(|op| !absent.iter().any(|key| key == op.key()));
    }
    if let Some(longest) = leased {
        let mut about = write.open_table(ABOUT).map_err(away)?;
        let before = about.get("lease_ms").map_err(away)?.map_or(0, |guard| guard.value());
        let longest = longest.as_nanos().div_ceil(1_000_000) as u64;
        about.insert("lease_ms", longest.max(before)).map_err(away)?;
        let mut under = write.open_table(LEASED).map_err(away)?;
        for op in &txn.ops {
            match op {
                Op::Put { key, lease: Some(_), .. } => under.insert(key.as_str(), ()).map_err(away)?,
                _ => under.remove(op.key()).map_err(away)?,
            };
        }
    }
    Ok((write, Revision(revision)))
}

impl MetaStore for EmbeddedStore {
    async fn get(&self, key: &str) -> Result<Option<Item>, MetaError> {
        let key = key.to_owned();
        self.read(move |db| get(db, &key)).await
    }

    async fn range(&self, prefix: &str, limit: usize) -> Result<Vec<(String, Item)>, MetaError> {
        Ok(self.list(prefix, limit).await?.0)
    }

    async fn commit(&self, txn: Txn) -> Result<Revision, MetaError> {
        txn.check()?;
        let now = Local::now(self);
        self.run(move |parts| parts.commit(txn, now)).await
    }
}

impl ClusterStore for EmbeddedStore {
    type Watch = LocalWatch<EmbeddedStore>;

    async fn list(&self, prefix: &str, limit: usize) -> Result<(Vec<(String, Item)>, Revision), MetaError> {
        let prefix = prefix.to_owned();
        self.read(move |db| list(db, &prefix, limit)).await
    }

    fn watch(&self, prefix: &str, from: Revision) -> LocalWatch<EmbeddedStore> {
        LocalWatch::new(self.clone(), prefix, from)
    }

    async fn grant(&self, ttl: Duration) -> Result<LeaseId, MetaError> {
        lock(&self.parts.shared).grant(Local::now(self), ttl)
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<(), MetaError> {
        lock(&self.parts.shared).leases.keep_alive(Local::now(self), lease)
    }

    async fn revoke(&self, lease: LeaseId) -> Result<(), MetaError> {
        self.run(move |parts| {
            let _writing = parts.writing.lock().expect("no panic while held");
            parts.end(lease)
        })
        .await
    }
}

impl Local for EmbeddedStore {
    fn shared(&self) -> MutexGuard<'_, Shared> {
        lock(&self.parts.shared)
    }
    fn now(&self) -> Instant {
        match &self.clock {
            Some(clock) => clock(),
            None => peristyle_rt::try_now().unwrap_or(Instant::ZERO),
        }
    }
    async fn end_leases(&self) -> Result<(), MetaError> {
        let now = Local::now(self);
        if !self.shared().leases.is_due(now) {
            return Ok(());
        }
        self.run(move |parts| parts.end_due(now)).await
    }
}
