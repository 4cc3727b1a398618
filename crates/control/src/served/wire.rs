//! The messages of the store's protocol and their bytes (`docs/store-protocol.md`). What is read is checked here: whoever
//! gets a [`Request`] can hand it to a store.

pub use super::fields::{LENGTH_BYTES, Message, Messages, Violation};
use super::fields::{Reader, Writer};
use crate::meta::{Item, LeaseId, MetaError, OPS_MAX, Op, Revision, TXN_BYTES_MAX, Txn, WatchChange};
use std::collections::BTreeSet;

/// The newest version of the protocol that this program speaks, and the oldest.
pub const VERSION: u16 = 1;
pub const VERSION_MIN: u16 = 1;

/// Of a cluster's name.
pub const CLUSTER_BYTES_MAX: usize = 255;
/// Longest messages, without the length before them.
pub const HELLO_BYTES_MAX: usize = 1024;
pub const REQUEST_BYTES_MAX: usize = TXN_BYTES_MAX + 4096;
pub const ANSWER_BYTES_MAX: usize = 512 << 10;
/// A page, or changes, end when they have so many bytes: with one more item they are an answer still.
pub const PAGE_BYTES: usize = 256 << 10;
/// Changes of one answer.
pub const BATCH_CHANGES_MAX: usize = 64;

const MAGIC: [u8; 8] = *b"PERISTOR";
/// What an operation, or a compare, takes beside its key and value.
const ENTRY_BYTES_MAX: usize = 16;
const _: () = assert!(OPS_MAX * ENTRY_BYTES_MAX + 16 <= REQUEST_BYTES_MAX - TXN_BYTES_MAX);

/// Kinds of messages.
mod kind {
    pub const HELLO: u8 = 1;
    pub const WELCOME: u8 = 2;
    pub const REFUSED: u8 = 3;
    pub const GET: u8 = 0x10;
    pub const LIST: u8 = 0x11;
    pub const COMMIT: u8 = 0x12;
    pub const GRANT: u8 = 0x13;
    pub const KEEP_ALIVE: u8 = 0x14;
    pub const REVOKE: u8 = 0x15;
    pub const WATCH: u8 = 0x16;
    pub const MORE: u8 = 0x17;
    pub const FAILED: u8 = 0x80;
    pub const ITEM: u8 = 0x90;
    pub const PAGE: u8 = 0x91;
    pub const COMMITTED: u8 = 0x92;
    pub const GRANTED: u8 = 0x93;
    pub const DONE: u8 = 0x94;
    pub const CHANGES: u8 = 0x96;
    pub const READ_ANEW: u8 = 0x97;
}

/// The first message of a connection.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Hello {
    /// The oldest and the newest version that the client speaks.
    pub versions: (u16, u16),
    pub cluster: String,
}

impl Hello {
    pub fn encode(&self) -> Vec<u8> {
        let mut w = Writer::new(kind::HELLO);
        w.put(&MAGIC).u16(self.versions.0).u16(self.versions.1).text(&self.cluster);
        w.finish()
    }

    /// What a newer Hello has behind its fields is passed over.
    pub fn decode(message: &Message) -> Result<Hello, Violation> {
        if message.kind != kind::HELLO {
            return Err(Violation::Kind(message.kind));
        }
        let mut r = Reader(&message.body);
        if r.array()? != MAGIC {
            return Err(Violation::Field("magic"));
        }
        let versions = (r.u16()?, r.u16()?);
        if versions.0 > versions.1 {
            return Err(Violation::Field("versions"));
        }
        Ok(Hello { versions, cluster: r.text(CLUSTER_BYTES_MAX, "cluster")? })
    }
}

/// What a client asks for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Request {
    Get {
        key: String,
    },
    List {
        prefix: String,
        limit: u32,
    },
    Commit(Txn),
    Grant {
        ttl_ms: u32,
    },
    KeepAlive(LeaseId),
    Revoke(LeaseId),
    /// The connection is that of this watch from now on.
    Watch {
        prefix: String,
        from: Revision,
    },
    /// The next changes of the watch.
    More,
}

impl Request {
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Request::Get { key } => message(kind::GET, |w| w.text(key)),
            Request::List { prefix, limit } => message(kind::LIST, |w| w.text(prefix).u32(*limit)),
            Request::Commit(txn) => message(kind::COMMIT, |w| write_txn(w, txn)),
            Request::Grant { ttl_ms } => message(kind::GRANT, |w| w.u32(*ttl_ms)),
            Request::KeepAlive(lease) => message(kind::KEEP_ALIVE, |w| write_lease(w, *lease)),
            Request::Revoke(lease) => message(kind::REVOKE, |w| write_lease(w, *lease)),
            Request::Watch { prefix, from } => message(kind::WATCH, |w| w.text(prefix).u64(from.0)),
            Request::More => message(kind::MORE, |w| w),
        }
    }

    pub fn decode(message: &Message) -> Result<Request, Violation> {
        let mut r = Reader(&message.body);
        let request = match message.kind {
            kind::GET => Request::Get { key: r.key()? },
            kind::LIST => Request::List { prefix: r.prefix()?, limit: r.u32()? },
            kind::COMMIT => Request::Commit(read_txn(&mut r)?),
            kind::GRANT => Request::Grant { ttl_ms: r.u32()? },
            kind::KEEP_ALIVE => Request::KeepAlive(read_lease(&mut r)?),
            kind::REVOKE => Request::Revoke(read_lease(&mut r)?),
            kind::WATCH => Request::Watch { prefix: r.prefix()?, from: Revision(r.u64()?) },
            kind::MORE => Request::More,
            kind => return Err(Violation::Kind(kind)),
        };
        r.end()?;
        Ok(request)
    }
}

/// What a server says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Answer {
    Welcome {
        version: u16,
    },
    /// In words; nothing happened, and the connection ends.
    Refused(String),
    Failed(MetaError),
    Item(Option<Item>),
    Page {
        last: bool,
        revision: Revision,
        items: Vec<(String, Item)>,
    },
    Committed(Revision),
    Granted(LeaseId),
    Done,
    Changes(Vec<WatchChange>),
    ReadAnew,
}

impl Answer {
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Answer::Welcome { version } => message(kind::WELCOME, |w| w.u16(*version)),
            Answer::Refused(words) => message(kind::REFUSED, |w| w.words(words)),
            Answer::Failed(error) => message(kind::FAILED, |w| write_error(w, error)),
            Answer::Item(None) => message(kind::ITEM, |w| w.u8(0)),
            Answer::Item(Some(item)) => message(kind::ITEM, |w| write_item(w.u8(1), item)),
            Answer::Page { last, revision, items } => message(kind::PAGE, |w| {
                let w = w.u8(u8::from(*last)).u64(revision.0).u16(items.len() as u16);
                items.iter().fold(w, |w, (key, item)| write_item(w.text(key), item))
            }),
            Answer::Committed(revision) => message(kind::COMMITTED, |w| w.u64(revision.0)),
            Answer::Granted(lease) => message(kind::GRANTED, |w| write_lease(w, *lease)),
            Answer::Done => message(kind::DONE, |w| w),
            Answer::Changes(changes) => {
                message(kind::CHANGES, |w| changes.iter().fold(w.u16(changes.len() as u16), write_change))
            }
            Answer::ReadAnew => message(kind::READ_ANEW, |w| w),
        }
    }

    pub fn decode(message: &Message) -> Result<Answer, Violation> {
        let mut r = Reader(&message.body);
        let answer = match message.kind {
            kind::WELCOME => Answer::Welcome { version: r.u16()? },
            kind::REFUSED => Answer::Refused(r.words()?),
            kind::FAILED => Answer::Failed(read_error(&mut r)?),
            kind::ITEM => Answer::Item(if r.flag("there")? { Some(read_item(&mut r)?) } else { None }),
            kind::PAGE => read_page(&mut r)?,
            kind::COMMITTED => Answer::Committed(read_revision(&mut r)?),
            kind::GRANTED => Answer::Granted(read_lease(&mut r)?),
            kind::DONE => Answer::Done,
            kind::CHANGES => Answer::Changes(read_changes(&mut r)?),
            kind::READ_ANEW => Answer::ReadAnew,
            kind => return Err(Violation::Kind(kind)),
        };
        r.end()?;
        Ok(answer)
    }
}

/// How many of the first items make one page.
pub fn page_of(items: &[(String, Item)]) -> usize {
    let mut bytes = 0;
    let fits = |(key, item): &&(String, Item)| {
        let room = bytes < PAGE_BYTES;
        bytes += entry_bytes(key, Some(&item.value));
        room
    };
    items.iter().take_while(fits).count()
}

/// What a change, or an item, takes in an answer at most.
pub fn entry_bytes(key: &str, value: Option<&Vec<u8>>) -> usize {
    key.len() + value.map_or(0, Vec::len) + ENTRY_BYTES_MAX
}

fn message(kind: u8, fields: impl FnOnce(&mut Writer) -> &mut Writer) -> Vec<u8> {
    let mut w = Writer::new(kind);
    fields(&mut w);
    w.finish()
}

fn write_txn<'a>(w: &'a mut Writer, txn: &Txn) -> &'a mut Writer {
    w.u16(txn.compares.len() as u16).u16(txn.ops.len() as u16);
    let w = txn.compares.iter().fold(w, |w, (key, revision)| w.text(key).u64(revision.0));
    txn.ops.iter().fold(w, |w, op| match op {
        Op::Delete { key } => w.u8(0).text(key),
        Op::Put { key, value, lease: None } => w.u8(1).text(key).value(value),
        Op::Put { key, value, lease: Some(lease) } => write_lease(w.u8(2).text(key).value(value), *lease),
    })
}

fn read_txn(r: &mut Reader) -> Result<Txn, Violation> {
    let (compares, ops) = (r.u16()?, r.u16()?);
    if usize::from(compares) + usize::from(ops) > OPS_MAX {
        return Err(Violation::Field("operations"));
    }
    let mut txn = Txn::default();
    for _ in 0..compares {
        txn.compares.push((r.key()?, Revision(r.u64()?)));
    }
    for _ in 0..ops {
        let (kind, key) = (r.u8()?, r.key()?);
        txn.ops.push(match kind {
            0 => Op::Delete { key },
            1 => Op::Put { key, value: r.value()?, lease: None },
            2 => Op::Put { key, value: r.value()?, lease: Some(read_lease(r)?) },
            _ => return Err(Violation::Field("operation")),
        });
    }
    let distinct: BTreeSet<_> = txn.ops.iter().map(Op::key).collect();
    if distinct.len() < txn.ops.len() {
        return Err(Violation::Field("key"));
    }
    Ok(txn)
}

fn write_lease(w: &mut Writer, lease: LeaseId) -> &mut Writer {
    w.u64(lease.0 as u64)
}

fn read_lease(r: &mut Reader) -> Result<LeaseId, Violation> {
    Ok(LeaseId(r.u64()? as i64))
}

fn write_item<'a>(w: &'a mut Writer, item: &Item) -> &'a mut Writer {
    w.u64(item.revision.0).value(&item.value)
}

fn read_item(r: &mut Reader) -> Result<Item, Violation> {
    let revision = read_revision(r)?;
    Ok(Item { value: r.value()?, revision })
}

/// Of something that is, or was, there.
fn read_revision(r: &mut Reader) -> Result<Revision, Violation> {
    match r.u64()? {
        0 => Err(Violation::Field("revision")),
        n => Ok(Revision(n)),
    }
}

fn read_page(r: &mut Reader) -> Result<Answer, Violation> {
    let (last, revision, count) = (r.flag("last")?, Revision(r.u64()?), r.u16()?);
    let mut items: Vec<(String, Item)> = Vec::new();
    for _ in 0..count {
        let (key, item) = (r.key()?, read_item(r)?);
        if items.last().is_some_and(|(before, _)| *before >= key) {
            return Err(Violation::Field("key"));
        }
        items.push((key, item));
    }
    if items.is_empty() && !last {
        return Err(Violation::Field("items"));
    }
    Ok(Answer::Page { last, revision, items })
}

fn write_change<'a>(w: &'a mut Writer, change: &WatchChange) -> &'a mut Writer {
    let w = w.text(&change.key).u8(u8::from(change.value.is_some())).u64(change.revision.0);
    match &change.value {
        Some(value) => w.value(value),
        None => w,
    }
}

fn read_changes(r: &mut Reader) -> Result<Vec<WatchChange>, Violation> {
    let count = usize::from(r.u16()?);
    if count > BATCH_CHANGES_MAX {
        return Err(Violation::Field("changes"));
    }
    let mut changes: Vec<WatchChange> = Vec::with_capacity(count);
    for _ in 0..count {
        let (key, put, revision) = (r.key()?, r.flag("put")?, read_revision(r)?);
        if changes.last().is_some_and(|before| before.revision > revision) {
            return Err(Violation::Field("revision"));
        }
        let value = if put { Some(r.value()?) } else { None };
        changes.push(WatchChange { key, value, revision });
    }
    Ok(changes)
}

fn write_error<'a>(w: &'a mut Writer, error: &MetaError) -> &'a mut Writer {
    match error {
        MetaError::Conflict { key } => w.u8(1).text(key),
        MetaError::Unavailable(why) => w.u8(2).words(why),
        MetaError::Unknown(why) => w.u8(3).words(why),
        MetaError::TooLarge => w.u8(4),
        MetaError::NoLease => w.u8(5),
    }
}

fn read_error(r: &mut Reader) -> Result<MetaError, Violation> {
    Ok(match r.u8()? {
        1 => MetaError::Conflict { key: r.key()? },
        2 => MetaError::Unavailable(r.words()?),
        3 => MetaError::Unknown(r.words()?),
        4 => MetaError::TooLarge,
        5 => MetaError::NoLease,
        _ => return Err(Violation::Field("error")),
    })
}
