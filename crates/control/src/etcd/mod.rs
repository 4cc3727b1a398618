//! The store of a cluster: etcd, over gRPC.
//!
//! The client runs on a thread of its own. A call from a reactor hands its work over and waits for the answer as for any other
//! event, so that it holds up neither the reactor nor the threads of `rt::blocking`; a program without a reactor opens the
//! store [`inline`](EtcdStore::inline).

mod client;
mod messages;
mod watch;

use crate::meta::{ClusterStore, Item, LeaseId, MetaError, MetaStore, Op, Revision, Txn, WATCH_CHANGES_MAX};
use client::{Client, Failure};
use messages::*;
use peristyle_base::Duration;
use std::sync::Arc;
use tokio::runtime::{Builder, Handle};
use tokio::sync::{mpsc, oneshot};
pub use watch::EtcdWatch;

/// A call that has no answer after this has failed.
const DEADLINE: Duration = Duration::from_secs(2);

/// Where a cluster's etcd is.
#[derive(Clone, Debug)]
pub struct EtcdConfig {
    /// Addresses of members, as `10.0.0.1:2379`. The first that answers is asked.
    pub endpoints: Vec<String>,
    /// Every key begins with it: an etcd may serve others, too.
    pub prefix: String,
    /// Of one call, whichever members it asks.
    pub deadline: Duration,
}

impl EtcdConfig {
    pub fn new(cluster: &str, endpoints: Vec<String>) -> EtcdConfig {
        EtcdConfig { endpoints, prefix: format!("/peristyle/{cluster}/"), deadline: DEADLINE }
    }
}

/// Cheap to clone; all clones are the same client.
#[derive(Clone)]
pub struct EtcdStore {
    shared: Arc<Shared>,
}

/// What the store and its watches have in common.
#[derive(Clone)]
struct Shared {
    runtime: Handle,
    client: Arc<Client>,
    keys: Keys,
    inline: bool,
    /// The client's thread ends when nobody holds this any more.
    _running: Arc<oneshot::Sender<()>>,
}

impl EtcdStore {
    /// Starts the client, which connects with the first call. Called before threads are pinned: its thread inherits their cores.
    pub fn open(config: &EtcdConfig) -> Result<EtcdStore, String> {
        if config.prefix.is_empty() {
            return Err("the prefix of the keys in etcd is empty".into());
        }
        let failed = |e: std::io::Error| format!("the client of etcd cannot be started: {e}");
        let runtime = Builder::new_current_thread().enable_io().enable_time().build().map_err(failed)?;
        let handle = runtime.handle().clone();
        let client = {
            let _inside = handle.enter();
            Arc::new(Client::new(config)?)
        };
        let (running, stopped) = oneshot::channel();
        let thread = std::thread::Builder::new().name("etcd".into());
        thread.spawn(move || drop(runtime.block_on(stopped))).map_err(failed)?;
        let keys = Keys(Arc::from(config.prefix.as_str()));
        let shared = Shared { runtime: handle, client, keys, inline: false, _running: Arc::new(running) };
        Ok(EtcdStore { shared: Arc::new(shared) })
    }

    /// Waits for its calls where they are made, without a reactor.
    pub fn inline(self) -> EtcdStore {
        EtcdStore { shared: Arc::new(Shared { inline: true, ..(*self.shared).clone() }) }
    }

    /// Forgets the changes before a revision, as etcd does by itself when it is told to (`--auto-compaction-retention`).
    pub async fn compact(&self, revision: Revision) -> Result<(), MetaError> {
        let request = CompactionRequest { revision: revision.0 as i64 };
        self.call(|client| async move {
            let answer = client.tell::<_, CompactionResponse>("/etcdserverpb.KV/Compact", request).await;
            answer.map(drop).map_err(Failure::of_write)
        })
        .await
    }

    /// Does the work on the client's thread. It goes on when nobody waits for it any more: what was sent cannot be called back.
    async fn call<T, W>(&self, work: impl FnOnce(Arc<Client>) -> W) -> Result<T, MetaError>
    where
        T: Send + 'static,
        W: Future<Output = Result<T, MetaError>> + Send + 'static,
    {
        let (answer, answered) = oneshot::channel();
        let work = work(self.shared.client.clone());
        self.shared.runtime.spawn(async move { drop(answer.send(work.await)) });
        let result = if self.shared.inline { answered.blocking_recv() } else { answered.await };
        result.unwrap_or_else(|_| Err(MetaError::Unknown("the client of etcd has stopped".into())))
    }

    async fn read(&self, request: RangeRequest) -> Result<(Vec<(String, Item)>, Revision), MetaError> {
        let keys = self.shared.keys.clone();
        self.call(|client| async move {
            let answer = client.ask::<_, RangeResponse>("/etcdserverpb.KV/Range", request).await;
            let answer = answer.map_err(Failure::of_read)?;
            let items = answer.kvs.into_iter().map(|kv| {
                let revision = Revision(kv.mod_revision as u64);
                Some((keys.of(kv.key)?, Item { value: kv.value, revision }))
            });
            let items: Option<Vec<_>> = items.collect();
            let (Some(items), Some(header)) = (items, answer.header) else {
                return Err(MetaError::Unavailable("an answer that is not etcd's".into()));
            };
            Ok((items, Revision(header.revision as u64)))
        })
        .await
    }
}

impl MetaStore for EtcdStore {
    async fn get(&self, key: &str) -> Result<Option<Item>, MetaError> {
        let key = self.shared.keys.key(key);
        let (items, _) = self.read(RangeRequest { key, ..RangeRequest::default() }).await?;
        Ok(items.into_iter().next().map(|(_, item)| item))
    }

    async fn range(&self, prefix: &str, limit: usize) -> Result<Vec<(String, Item)>, MetaError> {
        Ok(self.list(prefix, limit).await?.0)
    }

    async fn commit(&self, txn: Txn) -> Result<Revision, MetaError> {
        txn.check()?;
        let request = self.shared.keys.request(&txn);
        let compares = txn.compares;
        self.call(|client| async move {
            let answer = client.tell::<_, TxnResponse>("/etcdserverpb.KV/Txn", request).await;
            outcome(answer.map_err(Failure::of_write)?, compares)
        })
        .await
    }
}

impl ClusterStore for EtcdStore {
    type Watch = EtcdWatch;

    async fn list(&self, prefix: &str, limit: usize) -> Result<(Vec<(String, Item)>, Revision), MetaError> {
        let (key, range_end) = self.shared.keys.range(prefix);
        // No limit is 0 in etcd.
        let request = RangeRequest { key, range_end, limit: limit.max(1) as i64, keys_only: false };
        let (mut items, revision) = self.read(request).await?;
        items.truncate(limit);
        Ok((items, revision))
    }

    fn watch(&self, prefix: &str, from: Revision) -> EtcdWatch {
        let (sender, receiver) = mpsc::channel(WATCH_CHANGES_MAX);
        let Shared { client, keys, runtime, .. } = (*self.shared).clone();
        runtime.spawn(watch::follow(client, keys, prefix.to_owned(), from, sender));
        EtcdWatch::new(self.shared.clone(), receiver)
    }

    async fn grant(&self, ttl: Duration) -> Result<LeaseId, MetaError> {
        let request = LeaseGrantRequest { ttl: ttl.as_millis().div_ceil(1000) as i64 };
        self.call(|client| async move {
            let answer =
                client.tell::<_, LeaseGrantResponse>("/etcdserverpb.Lease/LeaseGrant", request).await;
            let answer = answer.map_err(Failure::of_write)?;
            if answer.error.is_empty() {
                Ok(LeaseId(answer.id))
            } else {
                Err(MetaError::Unknown(answer.error))
            }
        })
        .await
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<(), MetaError> {
        self.call(|client| async move {
            let seconds = client.keep_alive(lease.0).await.map_err(Failure::of_write)?;
            if seconds > 0 { Ok(()) } else { Err(MetaError::NoLease) }
        })
        .await
    }

    async fn revoke(&self, lease: LeaseId) -> Result<(), MetaError> {
        let request = LeaseRevokeRequest { id: lease.0 };
        self.call(|client| async move {
            let answer =
                client.ask::<_, LeaseRevokeResponse>("/etcdserverpb.Lease/LeaseRevoke", request).await;
            match answer.map_err(Failure::of_write) {
                Ok(_) | Err(MetaError::NoLease) => Ok(()),
                Err(e) => Err(e),
            }
        })
        .await
    }
}

/// What a transaction's answer says. Where it did not succeed, the compared keys were read in the same transaction.
fn outcome(answer: TxnResponse, compares: Vec<(String, Revision)>) -> Result<Revision, MetaError> {
    if answer.succeeded {
        let header =
            answer.header.ok_or_else(|| MetaError::Unknown("an answer that is not etcd's".into()))?;
        return Ok(Revision(header.revision as u64));
    }
    let there = answer.responses.into_iter().map(|response| {
        let kv = response.range.and_then(|range| range.kvs.into_iter().next());
        Revision(kv.map_or(0, |kv| kv.mod_revision as u64))
    });
    let changed = compares.into_iter().zip(there).find(|((_, expected), there)| expected != there);
    match changed {
        Some(((key, _), _)) => Err(MetaError::Conflict { key }),
        None => Err(MetaError::Unknown("etcd did not say which key had changed".into())),
    }
}

/// How keys are called in etcd: behind the prefix.
#[derive(Clone)]
struct Keys(Arc<str>);

impl Keys {
    fn key(&self, key: &str) -> Vec<u8> {
        [self.0.as_bytes(), key.as_bytes()].concat()
    }

    /// `None`: it is none of ours.
    fn of(&self, key: Vec<u8>) -> Option<String> {
        String::from_utf8(key).ok()?.strip_prefix(&*self.0).map(str::to_owned)
    }

    /// The first key below a prefix, and the first behind it.
    fn range(&self, prefix: &str) -> (Vec<u8>, Vec<u8>) {
        let first = self.key(prefix);
        let mut end = first.clone();
        // No byte of UTF-8 is 0xFF.
        *end.last_mut().expect("the prefix of all keys is not empty") += 1;
        (first, end)
    }

    fn request(&self, txn: &Txn) -> TxnRequest {
        let compare = |(key, revision): &(String, Revision)| Compare {
            result: 0,
            target: Compare::TARGET_MOD,
            key: self.key(key),
            mod_revision: Some(revision.0 as i64),
        };
        let read = |(key, _): &(String, Revision)| RequestOp {
            range: Some(RangeRequest { key: self.key(key), keys_only: true, ..RangeRequest::default() }),
            ..RequestOp::default()
        };
        let change = |op: &Op| match op {
            Op::Put { key, value, lease } => RequestOp {
                put: Some(PutRequest {
                    key: self.key(key),
                    value: value.clone(),
                    lease: lease.map_or(0, |lease| lease.0),
                }),
                ..RequestOp::default()
            },
            Op::Delete { key } => RequestOp {
                delete_range: Some(DeleteRangeRequest { key: self.key(key) }),
                ..RequestOp::default()
            },
        };
        TxnRequest {
            compare: txn.compares.iter().map(compare).collect(),
            success: txn.ops.iter().map(change).collect(),
            failure: txn.compares.iter().map(read).collect(),
        }
    }
}
