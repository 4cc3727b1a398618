//! The store of another process: calls, and what a failure says about what happened.

use super::CALL_LIMIT;
use super::answers::Pages;
use super::link::{Link, Lost};
use super::watch::ServedWatch;
use super::wire::{ANSWER_BYTES_MAX, Answer, CLUSTER_BYTES_MAX, Hello, Request, VERSION, VERSION_MIN};
use crate::meta::{ClusterStore, Item, KEY_BYTES_MAX, LeaseId, MetaError, MetaStore, Revision, Txn};
use peristyle_base::Duration;
use peristyle_rt::{Addr, Stream, now, sleep, timeout};
use std::cell::Cell;
use std::sync::Arc;

/// Before a read is repeated.
const PAUSE: Duration = Duration::from_millis(50);
/// How often a read is tried; what changes something is tried once.
const READS: usize = 2;
const NOT_THE_STORES: &str = "an answer that is not the store's";

/// The store that another process serves. Cheap to clone, the same for all reactors of a process, and to be used on a
/// reactor only.
///
/// Leases are the serving process's: when it restarts they have ended. So may watches have ([`ReadAnew`](crate::ReadAnew)).
#[derive(Clone, Debug)]
pub struct ServedStore {
    at: Arc<At>,
}

#[derive(Debug)]
struct At {
    addr: Addr,
    cluster: String,
}

/// Why a call has no answer.
enum Failure {
    /// The server has not had all of it, or says that it did nothing.
    NotDone(String),
    /// It may have happened.
    Lost(String),
}

impl Failure {
    fn of(sent: bool, why: String) -> Failure {
        if sent { Failure::Lost(why) } else { Failure::NotDone(why) }
    }

    /// What a call that changes nothing says to its caller.
    fn of_read(self) -> MetaError {
        let (Failure::NotDone(why) | Failure::Lost(why)) = self;
        MetaError::Unavailable(why)
    }

    /// The same of one that may have changed something.
    fn of_write(self) -> MetaError {
        match self {
            Failure::NotDone(why) => MetaError::Unavailable(why),
            Failure::Lost(why) => MetaError::Unknown(why),
        }
    }
}

/// The next answer, or why there is none.
pub(super) async fn answer(link: &mut Link) -> Result<Answer, String> {
    let message = link.receive(ANSWER_BYTES_MAX).await.map_err(|lost| match lost {
        Lost::Ended(error) => error.to_string(),
        Lost::Broken(violation) => violation.to_string(),
    })?;
    Answer::decode(&message).map_err(|violation| violation.to_string())
}

impl ServedStore {
    /// What is served at this address, for the cluster of this name. Nothing is connected to yet.
    pub fn new(addr: Addr, cluster: &str) -> ServedStore {
        ServedStore { at: Arc::new(At { addr, cluster: cluster.to_owned() }) }
    }

    /// A connection that was welcomed, or why there is none.
    pub(super) async fn connect(&self) -> Result<Link, String> {
        let At { addr, cluster } = &*self.at;
        if cluster.len() > CLUSTER_BYTES_MAX {
            return Err(format!("a cluster's name has at most {CLUSTER_BYTES_MAX} bytes"));
        }
        let here = |why: String| format!("{addr}: {why}");
        let stream = Stream::connect(addr).await.map_err(|e| here(e.to_string()))?;
        let mut link = Link::new(stream);
        let hello = Hello { versions: (VERSION_MIN, VERSION), cluster: cluster.clone() };
        link.send(&hello.encode()).await.map_err(|e| here(e.to_string()))?;
        match answer(&mut link).await.map_err(here)? {
            Answer::Welcome { version: VERSION_MIN..=VERSION } => Ok(link),
            Answer::Refused(words) => Err(here(words)),
            _ => Err(here("what listens there does not speak the store's protocol as we do".into())),
        }
    }

    /// A connection on which the request was sent. `sent` says whether it may have arrived.
    async fn begin(&self, request: &Request, sent: &Cell<bool>) -> Result<Link, Failure> {
        let mut link = self.connect().await.map_err(Failure::NotDone)?;
        let result = link.send_and_tell(&request.encode(), sent).await;
        result.map_err(|e| Failure::of(sent.get(), e.to_string()))?;
        Ok(link)
    }

    async fn attempt(&self, request: &Request, sent: &Cell<bool>) -> Result<Answer, Failure> {
        let mut link = self.begin(request, sent).await?;
        match answer(&mut link).await {
            Ok(Answer::Refused(words)) => Err(Failure::NotDone(words)),
            answer => answer.map_err(Failure::Lost),
        }
    }

    async fn attempt_list(
        &self,
        request: &Request,
        mut pages: Pages,
        sent: &Cell<bool>,
    ) -> Result<Listed, Failure> {
        let mut link = self.begin(request, sent).await?;
        loop {
            match answer(&mut link).await.map_err(Failure::Lost)? {
                Answer::Page { last, revision, items } => {
                    pages.add(revision, items).map_err(|v| Failure::Lost(v.to_string()))?;
                    if last {
                        return Ok(Ok(pages.whole()));
                    }
                }
                Answer::Failed(error) => return Ok(Err(error)),
                Answer::Refused(words) => return Err(Failure::NotDone(words)),
                _ => return Err(Failure::Lost(NOT_THE_STORES.into())),
            }
        }
    }

    /// A call that changes nothing.
    async fn ask(&self, request: Request) -> Result<Answer, MetaError> {
        let answer = within_limit(READS, async |sent| self.attempt(&request, sent).await).await;
        match answer.map_err(Failure::of_read)? {
            Answer::Failed(error) => Err(error),
            answer => Ok(answer),
        }
    }

    /// A call that is sent once: when it is not known whether it arrived, it is not repeated.
    async fn tell(&self, request: Request) -> Result<Answer, MetaError> {
        let answer = within_limit(1, async |sent| self.attempt(&request, sent).await).await;
        match answer.map_err(Failure::of_write)? {
            Answer::Failed(error) => Err(error),
            answer => Ok(answer),
        }
    }
}

/// What a list is, or the store's own word that there is none.
type Listed = Result<(Vec<(String, Item)>, Revision), MetaError>;

/// So many attempts, all of them within the time of one call.
async fn within_limit<T>(
    attempts: usize,
    attempt: impl AsyncFn(&Cell<bool>) -> Result<T, Failure>,
) -> Result<T, Failure> {
    let until = now() + CALL_LIMIT;
    for left in (0..attempts).rev() {
        let sent = Cell::new(false);
        let failure = match timeout(until.since(now()), attempt(&sent)).await {
            Some(Ok(answer)) => return Ok(answer),
            Some(Err(failure)) => failure,
            None => Failure::of(sent.get(), "no answer in time".into()),
        };
        if left == 0 || now() + PAUSE >= until {
            return Err(failure);
        }
        sleep(PAUSE).await;
    }
    unreachable!("there is an attempt")
}

fn unexpected_of_read() -> MetaError {
    Failure::Lost(NOT_THE_STORES.into()).of_read()
}

fn unexpected_of_write() -> MetaError {
    Failure::Lost(NOT_THE_STORES.into()).of_write()
}

impl MetaStore for ServedStore {
    async fn get(&self, key: &str) -> Result<Option<Item>, MetaError> {
        if key.is_empty() || key.len() > KEY_BYTES_MAX {
            return Ok(None); // no store has it
        }
        match self.ask(Request::Get { key: key.to_owned() }).await? {
            Answer::Item(item) => Ok(item),
            _ => Err(unexpected_of_read()),
        }
    }

    async fn range(&self, prefix: &str, limit: usize) -> Result<Vec<(String, Item)>, MetaError> {
        Ok(self.list(prefix, limit).await?.0)
    }

    async fn commit(&self, txn: Txn) -> Result<Revision, MetaError> {
        txn.check()?;
        let compared: Vec<_> = txn.compares.iter().map(|(key, _)| key.clone()).collect();
        match self.tell(Request::Commit(txn)).await {
            Ok(Answer::Committed(revision)) => Ok(revision),
            Err(MetaError::Conflict { key }) if !compared.contains(&key) => Err(unexpected_of_write()),
            Err(error) => Err(error),
            Ok(_) => Err(unexpected_of_write()),
        }
    }
}

impl ClusterStore for ServedStore {
    type Watch = ServedWatch;

    async fn list(&self, prefix: &str, limit: usize) -> Result<(Vec<(String, Item)>, Revision), MetaError> {
        // Nothing has such a long key; the revision is asked for all the same.
        let (prefix, limit) = if prefix.len() > KEY_BYTES_MAX { ("", 0) } else { (prefix, limit) };
        let limit = u32::try_from(limit).unwrap_or(u32::MAX);
        let request = Request::List { prefix: prefix.to_owned(), limit };
        let attempt =
            async |sent: &Cell<bool>| self.attempt_list(&request, Pages::new(prefix, limit), sent).await;
        within_limit(READS, attempt).await.map_err(Failure::of_read)?
    }

    fn watch(&self, prefix: &str, from: Revision) -> ServedWatch {
        ServedWatch::new(self.clone(), prefix, from)
    }

    async fn grant(&self, ttl: Duration) -> Result<LeaseId, MetaError> {
        let Ok(ttl_ms) = u32::try_from(ttl.as_nanos().div_ceil(1_000_000)) else {
            return Err(MetaError::Unavailable("a lease lasts 49 days at most".into()));
        };
        match self.tell(Request::Grant { ttl_ms }).await? {
            Answer::Granted(lease) => Ok(lease),
            _ => Err(unexpected_of_write()),
        }
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<(), MetaError> {
        match self.tell(Request::KeepAlive(lease)).await? {
            Answer::Done => Ok(()),
            _ => Err(unexpected_of_write()),
        }
    }

    async fn revoke(&self, lease: LeaseId) -> Result<(), MetaError> {
        match self.tell(Request::Revoke(lease)).await? {
            Answer::Done => Ok(()),
            _ => Err(unexpected_of_write()),
        }
    }
}
