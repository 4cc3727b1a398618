//! A watch over one stream after the other: what was told is remembered, and the next stream begins behind it.

use super::client::Client;
use super::messages::{Event, WatchCreateRequest, WatchRequest, WatchResponse};
use super::{Keys, Shared};
use crate::meta::{ReadAnew, Revision, Watch, WatchChange};
use peristyle_base::Duration;
use peristyle_rt::{Either, select};
use std::sync::Arc;
use tokio::sync::mpsc;
use tokio_stream::StreamExt;

/// Between two streams that failed.
const PAUSE: Duration = Duration::from_millis(100);

/// A watch of etcd.
pub struct EtcdWatch {
    changes: mpsc::Receiver<WatchChange>,
    /// The client runs as long as somebody has it.
    shared: Arc<Shared>,
}

impl EtcdWatch {
    pub(super) fn new(shared: Arc<Shared>, changes: mpsc::Receiver<WatchChange>) -> EtcdWatch {
        EtcdWatch { changes, shared }
    }
}

impl Watch for EtcdWatch {
    async fn next(&mut self) -> Result<WatchChange, ReadAnew> {
        let next = if self.shared.inline { self.changes.blocking_recv() } else { self.changes.recv().await };
        // The task that sends ends only when it has missed something.
        next.ok_or(ReadAnew)
    }
}

/// Why a stream has ended.
enum End {
    /// Another may go on where it was.
    Broken,
    /// Nobody waits for more, or there is something that cannot be told any more.
    Done,
}

/// Follows the keys below a prefix until nobody wants to know, or a change is missed: the channel was full, or it was compacted.
/// The revision of an etcd only rises, so that what a stream repeats is known by it.
pub(super) async fn follow(
    client: Arc<Client>,
    keys: Keys,
    prefix: String,
    from: Revision,
    changes: mpsc::Sender<WatchChange>,
) {
    let mut follower = Follower { keys, prefix, from, changes };
    loop {
        if let End::Done = follower.stream(&client).await {
            return;
        }
        let pause = tokio::time::sleep(PAUSE);
        if let Either::Left(()) = select(follower.changes.closed(), pause).await {
            return;
        }
    }
}

struct Follower {
    keys: Keys,
    prefix: String,
    /// All changes up to this revision were told.
    from: Revision,
    changes: mpsc::Sender<WatchChange>,
}

impl Follower {
    async fn stream(&mut self, client: &Client) -> End {
        let (key, range_end) = self.keys.range(&self.prefix);
        // From what was told last, so that etcd notices when what comes next is compacted: a deletion in the very revision that it
        // was compacted at may be gone, and a stream from there would not say so.
        let start_revision = self.from.0.max(1) as i64;
        let create = Some(WatchCreateRequest { key, range_end, start_revision });
        // The stream of requests stays open: its end would be that of the watch.
        let requests = tokio_stream::once(WatchRequest { create }).chain(tokio_stream::pending());
        let opened = client.open::<_, WatchResponse>("/etcdserverpb.Watch/Watch", requests).await;
        let Ok((mut answers, member)) = opened else { return End::Broken };
        loop {
            let answer = match select(self.changes.closed(), answers.message()).await {
                Either::Left(()) => return End::Done,
                Either::Right(answer) => answer,
            };
            match answer {
                Ok(Some(answer)) if answer.compact_revision != 0 => return End::Done,
                Ok(Some(answer)) if !answer.canceled => {
                    if let Err(end) = self.tell(answer) {
                        return end;
                    }
                }
                // More at once than is taken: what comes next time is no less.
                Err(status) if status.code() == tonic::Code::OutOfRange => return End::Done,
                _ => {
                    client.leave(member);
                    return End::Broken;
                }
            }
        }
    }

    /// An answer has all changes of its revisions.
    fn tell(&mut self, answer: WatchResponse) -> Result<(), End> {
        let last = answer.events.last().and_then(|event| event.kv.as_ref()).map(|kv| kv.mod_revision);
        for event in answer.events {
            // A key of somebody else's, below our prefix.
            let Some(change) = self.change(event) else { continue };
            if change.revision <= self.from {
                continue;
            }
            self.changes.try_send(change).map_err(|_| End::Done)?;
        }
        if let Some(last) = last {
            self.from = self.from.max(Revision(last as u64));
        }
        Ok(())
    }

    fn change(&self, event: Event) -> Option<WatchChange> {
        let kv = event.kv?;
        let key = self.keys.of(kv.key)?;
        let value = (event.kind == Event::PUT).then_some(kv.value);
        Some(WatchChange { key, value, revision: Revision(kv.mod_revision as u64) })
    }
}
