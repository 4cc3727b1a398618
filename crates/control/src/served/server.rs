//! The process that has the store: what it lets others do with it, and how much of it.

use super::SIGN_OF_LIFE;
use super::link::{Link, Lost};
use super::wire::{
    Answer, BATCH_CHANGES_MAX, HELLO_BYTES_MAX, Hello, Message, PAGE_BYTES, REQUEST_BYTES_MAX, Request,
    VERSION, VERSION_MIN, Violation, entry_bytes, page_of,
};
use crate::meta::{ClusterStore, Item, MetaError, ReadAnew, Revision, Watch, WatchChange};
use peristyle_base::Duration;
use peristyle_rt::sync::{Event, Notify, Permit, Semaphore};
use peristyle_rt::{Either, Listener, NetError, Stream, select, sleep, timeout};
use std::cell::Cell;
use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;

/// Connections at the same time; more are closed at once.
const CONNECTIONS_MAX: usize = 512;
/// Those of watches: they leave room for calls.
const WATCHES_MAX: usize = 384;
/// Requests that the store has at the same time, and how many of them may be lists, whose answers take memory.
const CALLS_MAX: usize = 64;
const LISTS_MAX: usize = 4;
/// For which a request waits: less than a call has, so that its sender hears that it was not done.
const WAIT_LIMIT: Duration = Duration::from_secs(1);
/// Requests above this size, and how many of them may come at the same time.
const LARGE_BYTES: usize = 64 << 10;
const LARGE_MAX: usize = 16;
/// Whoever has not said all of what comes next by then is cut off.
const REQUEST_LIMIT: Duration = Duration::from_secs(2);
/// Whoever has not taken an answer by then is cut off.
const ANSWER_LIMIT: Duration = Duration::from_secs(4);
/// A watch that does not ask for more may be one whose process is gone.
const MORE_LIMIT: Duration = Duration::from_secs(60);
/// Pause when the system takes no connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves the store to processes that call the cluster by its name, until `stop`. Then it takes no more requests, and returns when those
/// that it has are answered. When it is dropped instead, its connections end in the same way, and nobody waits for them.
pub async fn serve_store<S: ClusterStore + 'static>(
    listener: Listener,
    cluster: String,
    store: S,
    stop: Event,
) {
    let service = Rc::new(Service::new(cluster, store));
    let ending = Ending(service.over.clone());
    loop {
        match select(stop.wait(), listener.accept()).await {
            Either::Left(()) => break,
            Either::Right(Ok(stream)) => service.take(stream),
            Either::Right(Err(NetError::Closed)) => {} // it went away before we took it
            Either::Right(Err(_)) => sleep(ACCEPT_PAUSE).await,
        }
    }
    drop((listener, ending));
    service.left.wait_until(|| service.connections.get() == 0).await;
}

struct Ending(Event);

impl Drop for Ending {
    fn drop(&mut self) {
        self.0.set();
    }
}

/// What all connections have in common.
struct Service<S> {
    store: S,
    cluster: String,
    /// No more requests.
    over: Event,
    connections: Cell<usize>,
    left: Notify,
    watches: Rc<Semaphore>,
    calls: Rc<Semaphore>,
    lists: Rc<Semaphore>,
    large: Rc<Semaphore>,
}

impl<S: ClusterStore + 'static> Service<S> {
    fn new(cluster: String, store: S) -> Service<S> {
        Service {
            store,
            cluster,
            over: Event::default(),
            connections: Cell::new(0),
            left: Notify::default(),
            watches: Semaphore::new(WATCHES_MAX),
            calls: Semaphore::new(CALLS_MAX),
            lists: Semaphore::new(LISTS_MAX),
            large: Semaphore::new(LARGE_MAX),
        }
    }

    fn take(self: &Rc<Self>, stream: Stream) {
        if self.connections.get() == CONNECTIONS_MAX {
            return; // dropping it closes it
        }
        self.connections.set(self.connections.get() + 1);
        let session = Session { link: Link::new(stream), large: None, service: self.clone() };
        peristyle_rt::spawn(session.run());
    }
}

/// One connection. It counts until it is dropped.
struct Session<S> {
    link: Link,
    /// While a large request is read and carried out.
    large: Option<Permit>,
    service: Rc<Service<S>>,
}

impl<S> Drop for Session<S> {
    fn drop(&mut self) {
        self.service.connections.set(self.service.connections.get() - 1);
        self.service.left.notify_all();
    }
}

/// Why a connection ends.
enum End {
    /// The other end has gone, is too slow, or there is nothing more to say.
    Over,
    /// It is told why.
    Refused(String),
}

impl From<Violation> for End {
    fn from(violation: Violation) -> End {
        End::Refused(violation.to_string())
    }
}

impl From<Lost> for End {
    fn from(lost: Lost) -> End {
        match lost {
            Lost::Ended(_) => End::Over,
            Lost::Broken(violation) => violation.into(),
        }
    }
}

impl<S: ClusterStore + 'static> Session<S> {
    async fn run(mut self) {
        // However a connection ends, nobody else needs to know.
        let Err(end) = self.converse().await;
        if let End::Refused(words) = end {
            let _ = self.answer(&Answer::Refused(words)).await;
        }
    }

    async fn converse(&mut self) -> Result<std::convert::Infallible, End> {
        self.greet().await?;
        loop {
            match Request::decode(&self.request().await?)? {
                Request::Watch { prefix, from } => return self.watch(&prefix, from).await,
                Request::List { prefix, limit } => self.list(&prefix, limit as usize).await?,
                request => {
                    let answer = self.carry_out(request).await;
                    self.answer(&answer?).await?;
                }
            }
            self.large = None;
        }
    }

    async fn greet(&mut self) -> Result<(), End> {
        let message = self.receive(REQUEST_LIMIT, HELLO_BYTES_MAX).await?;
        let Hello { versions: (oldest, newest), cluster } = Hello::decode(&message)?;
        if oldest > VERSION || newest < VERSION_MIN {
            return Err(End::Refused(format!(
                "this process speaks version {VERSION_MIN} to {VERSION} of the store's protocol, and not {oldest} to {newest}: \
                 start the same version of peristyle everywhere"
            )));
        }
        if cluster != self.service.cluster {
            let ours = &self.service.cluster;
            return Err(End::Refused(format!(
                "this is the store of the cluster `{ours}`, and not of `{cluster}`"
            )));
        }
        self.answer(&Answer::Welcome { version: newest.min(VERSION) }).await
    }

    /// A message that comes in time, unless the end comes first.
    async fn receive(&mut self, limit: Duration, bytes_max: usize) -> Result<Message, End> {
        let received = timeout(limit, self.link.receive(bytes_max));
        match select(self.service.over.wait(), received).await {
            Either::Right(Some(message)) => Ok(message?),
            Either::Right(None) | Either::Left(()) => Err(End::Over),
        }
    }

    /// The next request. Of large ones only so many are read at the same time.
    async fn request(&mut self) -> Result<Message, End> {
        let service = self.service.clone();
        let request = async {
            if self.link.announced(REQUEST_BYTES_MAX).await? > LARGE_BYTES {
                self.large = Some(service.large.acquire(1).await);
            }
            self.link.receive(REQUEST_BYTES_MAX).await
        };
        match select(service.over.wait(), timeout(REQUEST_LIMIT, request)).await {
            Either::Right(Some(message)) => Ok(message?),
            Either::Right(None) | Either::Left(()) => Err(End::Over),
        }
    }

    async fn answer(&mut self, answer: &Answer) -> Result<(), End> {
        let sent = timeout(ANSWER_LIMIT, self.link.send(&answer.encode())).await;
        sent.and_then(Result::ok).ok_or(End::Over)
    }

    async fn carry_out(&self, request: Request) -> Result<Answer, End> {
        let store = &self.service.store;
        let Some(_call) = timeout(WAIT_LIMIT, self.service.calls.acquire(1)).await else {
            return Ok(Answer::Failed(busy()));
        };
        let answer = match request {
            Request::Get { key } => store.get(&key).await.map(Answer::Item),
            Request::Commit(txn) => store.commit(txn).await.map(Answer::Committed),
            Request::Grant { ttl_ms } => {
                let ttl = Duration::from_millis(ttl_ms.into());
                store.grant(ttl).await.map(Answer::Granted)
            }
            Request::KeepAlive(lease) => store.keep_alive(lease).await.map(|()| Answer::Done),
            Request::Revoke(lease) => store.revoke(lease).await.map(|()| Answer::Done),
            Request::List { .. } | Request::Watch { .. } | Request::More => {
                return Err(End::Refused("there is no watch on this connection".into()));
            }
        };
        Ok(answer.unwrap_or_else(Answer::Failed))
    }

    /// All of one moment, page by page.
    async fn list(&mut self, prefix: &str, limit: usize) -> Result<(), End> {
        let service = self.service.clone();
        let Some(_list) = timeout(WAIT_LIMIT, service.lists.acquire(1)).await else {
            return self.answer(&Answer::Failed(busy())).await;
        };
        match service.store.list(prefix, limit).await {
            Ok((items, revision)) => {
                let sent = timeout(ANSWER_LIMIT, self.pages(items, revision)).await;
                sent.unwrap_or(Err(End::Over))
            }
            Err(error) => self.answer(&Answer::Failed(error)).await,
        }
    }

    async fn pages(&mut self, mut items: Vec<(String, Item)>, revision: Revision) -> Result<(), End> {
        loop {
            let rest = items.split_off(page_of(&items));
            let last = rest.is_empty();
            self.answer(&Answer::Page { last, revision, items }).await?;
            if last {
                return Ok(());
            }
            items = rest;
        }
    }

    /// The connection is that of a watch: each time it is asked for more, there are changes or a sign of life.
    async fn watch(&mut self, prefix: &str, from: Revision) -> Result<std::convert::Infallible, End> {
        let service = self.service.clone();
        let Some(_watch) = service.watches.try_acquire(1) else {
            return Err(End::Refused("too many watches".into()));
        };
        match service.store.list(prefix, 0).await {
            // It knows a future that this store does not have: it watched another one before.
            Ok((_, now)) if now < from => return self.read_anew().await,
            Ok(_) => {}
            Err(error) => {
                self.answer(&Answer::Failed(error)).await?;
                return Err(End::Over);
            }
        }
        let mut watch = service.store.watch(prefix, from);
        loop {
            match self.while_quiet(gather(&mut watch)).await? {
                Ok(changes) => self.answer(&Answer::Changes(changes)).await?,
                Err(ReadAnew) => return self.read_anew().await,
            }
            match Request::decode(&self.receive(MORE_LIMIT, HELLO_BYTES_MAX).await?)? {
                Request::More => {}
                _ => return Err(End::Refused("this connection is that of a watch".into())),
            }
        }
    }

    async fn read_anew(&mut self) -> Result<std::convert::Infallible, End> {
        self.answer(&Answer::ReadAnew).await?;
        Err(End::Over)
    }

    /// Waits for something while the other end has nothing to say; when it goes, or speaks all the same, that is the end.
    async fn while_quiet<T>(&mut self, future: impl Future<Output = T>) -> Result<T, End> {
        let said = select(self.service.over.wait(), self.link.announced(HELLO_BYTES_MAX));
        match select(said, future).await {
            Either::Right(value) => Ok(value),
            Either::Left(Either::Left(())) => Err(End::Over),
            Either::Left(Either::Right(said)) => {
                said?;
                Err(End::Refused("the changes that were asked for have not come yet".into()))
            }
        }
    }
}

fn busy() -> MetaError {
    MetaError::Unavailable("too much is asked of it".into())
}

/// The next change, if one comes soon, and those that are there behind it.
async fn gather(watch: &mut impl Watch) -> Result<Vec<WatchChange>, ReadAnew> {
    let mut changes = Vec::new();
    let Some(first) = timeout(SIGN_OF_LIFE, watch.next()).await else { return Ok(changes) };
    changes.push(first?);
    let mut bytes = 0;
    loop {
        let last = changes.last().expect("one was pushed");
        bytes += entry_bytes(&last.key, last.value.as_ref());
        if changes.len() == BATCH_CHANGES_MAX || bytes >= PAGE_BYTES {
            return Ok(changes);
        }
        match if_ready(watch.next()).await {
            Some(Ok(change)) => changes.push(change),
            // An end is told when these have been taken.
            Some(Err(ReadAnew)) | None => return Ok(changes),
        }
    }
}

/// What a future has at once.
async fn if_ready<T>(future: impl Future<Output = T>) -> Option<T> {
    let mut future = pin!(future);
    poll_fn(|cx| match future.as_mut().poll(cx) {
        Poll::Ready(value) => Poll::Ready(Some(value)),
        Poll::Pending => Poll::Ready(None),
    })
    .await
}
