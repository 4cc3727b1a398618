//! The store of one machine: a redb file. Every commit is durable when it returns.
//!
//! redb blocks, so calls run off the reactor through `rt::blocking`; a program without a reactor (offline tools,
//! tests) opens the store [`inline`](EmbeddedStore::inline) instead.

use crate::meta::{Item, MetaError, MetaStore, Op, Revision, Txn};
use redb::backends::InMemoryBackend;
use redb::{
    Database, DatabaseError, Durability, ReadableDatabase, ReadableTable, StorageBackend, StorageError,
    TableDefinition,
};
use std::path::Path;
use std::sync::Arc;

/// Key to (revision, value).
const ITEMS: TableDefinition<&str, (u64, &[u8])> = TableDefinition::new("items");
/// The store's own figures: format, revision, whether it was closed cleanly.
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
    database: Arc<Database>,
    inline: bool,
    repaired: bool,
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
        mark(&database, false).map_err(io)?;
        Ok(EmbeddedStore { database: Arc::new(database), inline: false, repaired })
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
        Ok(EmbeddedStore { database: Arc::new(database), inline: false, repaired: false })
    }

    /// Runs its calls where they are made, without a reactor.
    pub fn inline(mut self) -> EmbeddedStore {
        self.inline = true;
        self
    }

    /// Whether opening found damage and repaired it: to be told to the operator.
    pub fn was_repaired(&self) -> bool {
        self.repaired
    }

    /// Remembers that the stop was clean, so that the next start need not check the file. Blocks.
    pub fn close(self) -> Result<(), MetaError> {
        mark(&self.database, true).map_err(|e| MetaError::Unknown(e.to_string()))
    }

    async fn run<T: Send + 'static>(&self, f: impl FnOnce(&Database) -> T + Send + 'static) -> T {
        if self.inline {
            return f(&self.database);
        }
        let database = self.database.clone();
        peristyle_rt::blocking(move || f(&database)).await
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

fn mark(database: &Database, clean: bool) -> Result<(), redb::Error> {
    let txn = database.begin_write()?;
    txn.open_table(ABOUT)?.insert("clean", clean as u64)?;
    txn.commit()?;
    Ok(())
}

fn get(database: &Database, key: &str) -> Result<Option<Item>, redb::Error> {
    let table = database.begin_read()?.open_table(ITEMS)?;
    let item = table.get(key)?.map(|guard| item(guard.value()));
    Ok(item)
}

fn range(database: &Database, prefix: &str, limit: usize) -> Result<Vec<(String, Item)>, redb::Error> {
    let table = database.begin_read()?.open_table(ITEMS)?;
    let mut found = Vec::new();
    for entry in table.range(prefix..)? {
        let (key, value) = entry?;
        if found.len() == limit || !key.value().starts_with(prefix) {
            break;
        }
        found.push((key.value().to_owned(), item(value.value())));
    }
    Ok(found)
}

fn item((revision, value): (u64, &[u8])) -> Item {
    Item { value: value.to_vec(), revision: Revision(revision) }
}

fn commit(database: &Database, txn: &Txn) -> Result<Revision, MetaError> {
    let (write, revision) = prepare(database, txn)?;
    // From here on a failure says nothing about what is on the disk.
    write.commit().map_err(|e| MetaError::Unknown(e.to_string()))?;
    Ok(revision)
}

/// The redb transaction with everything in it that `txn` asks for; dropping it undoes all.
fn prepare(database: &Database, txn: &Txn) -> Result<(redb::WriteTransaction, Revision), MetaError> {
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
        let mut about = write.open_table(ABOUT).map_err(away)?;
        let last = about.get("revision").map_err(away)?.map_or(0, |guard| guard.value());
        revision = last + 1;
        about.insert("revision", revision).map_err(away)?;
        for op in &txn.ops {
            match op {
                Op::Put { key, value } => {
                    items.insert(key.as_str(), (revision, value.as_slice())).map_err(away)?;
                }
                Op::Delete { key } => {
                    items.remove(key.as_str()).map_err(away)?;
                }
            }
        }
    }
    Ok((write, Revision(revision)))
}

impl MetaStore for EmbeddedStore {
    async fn get(&self, key: &str) -> Result<Option<Item>, MetaError> {
        let key = key.to_owned();
        self.run(move |db| get(db, &key)).await.map_err(|e| MetaError::Unavailable(e.to_string()))
    }

    async fn range(&self, prefix: &str, limit: usize) -> Result<Vec<(String, Item)>, MetaError> {
        let prefix = prefix.to_owned();
        self.run(move |db| range(db, &prefix, limit)).await.map_err(|e| MetaError::Unavailable(e.to_string()))
    }

    async fn commit(&self, txn: Txn) -> Result<Revision, MetaError> {
        txn.check()?;
        self.run(move |db| commit(db, &txn)).await
    }
}
