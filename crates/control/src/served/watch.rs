//! A watch over one connection after the other: what has come is remembered, and the next connection goes on behind it.

use super::answers::{Astray, Follower};
use super::client::{ServedStore, answer};
use super::link::Link;
use super::wire::{Answer, Request};
use super::{CALL_LIMIT, SIGN_OF_LIFE};
use crate::meta::{KEY_BYTES_MAX, ReadAnew, Revision, Watch, WatchChange};
use peristyle_base::Duration;
use peristyle_rt::{sleep, timeout};
use std::collections::VecDeque;
use std::pin::Pin;

/// Between two connections that failed.
const PAUSE: Duration = Duration::from_millis(100);

/// A watch of the store of another process. It asks when it is read, so that what it is behind by is with the store, which has
/// a limit for it; only the changes of one answer are here.
pub struct ServedWatch {
    /// Those that have come and were not told.
    changes: VecDeque<WatchChange>,
    /// Brings the next. It stays when a wait for it is given up. `None`: there are no more.
    step: Option<Step>,
}

type Step = Pin<Box<dyn Future<Output = Option<(Vec<WatchChange>, State)>>>>;

/// What one step hands to the next.
struct State {
    store: ServedStore,
    follower: Follower,
    /// Where the server waits for being asked for more.
    link: Option<Link>,
}

/// Why there are no changes.
enum End {
    /// Another connection may go on.
    Broken,
    /// Some are no longer to be had.
    Missed,
}

impl ServedWatch {
    pub(super) fn new(store: ServedStore, prefix: &str, from: Revision) -> ServedWatch {
        let step: Step = if prefix.len() > KEY_BYTES_MAX {
            Box::pin(std::future::pending()) // no key is that long
        } else {
            Box::pin(State { store, follower: Follower::new(prefix, from), link: None }.step())
        };
        ServedWatch { changes: VecDeque::new(), step: Some(step) }
    }
}

impl Watch for ServedWatch {
    async fn next(&mut self) -> Result<WatchChange, ReadAnew> {
        loop {
            if let Some(change) = self.changes.pop_front() {
                return Ok(change);
            }
            let came = self.step.as_mut().ok_or(ReadAnew)?.as_mut().await;
            self.step = None;
            if let Some((changes, state)) = came {
                self.changes = changes.into();
                self.step = Some(Box::pin(state.step()));
            }
        }
    }
}

impl State {
    /// Some changes; `None` when there are none any more that follow on what was told.
    async fn step(mut self) -> Option<(Vec<WatchChange>, State)> {
        loop {
            match self.fetch().await {
                Ok(changes) if changes.is_empty() => {} // a sign of life, or what had come before
                Ok(changes) => return Some((changes, self)),
                Err(End::Missed) => return None,
                Err(End::Broken) => sleep(PAUSE).await,
            }
        }
    }

    async fn fetch(&mut self) -> Result<Vec<WatchChange>, End> {
        let (mut link, request) = match self.link.take() {
            Some(link) => (link, Request::More),
            None => {
                let link = timeout(CALL_LIMIT, self.store.connect()).await;
                (link.and_then(Result::ok).ok_or(End::Broken)?, self.follower.resume())
            }
        };
        let sent = timeout(CALL_LIMIT, link.send(&request.encode())).await;
        sent.and_then(Result::ok).ok_or(End::Broken)?;
        match timeout(SIGN_OF_LIFE + CALL_LIMIT, answer(&mut link)).await {
            Some(Ok(Answer::Changes(changes))) => {
                let new = self.follower.take(changes).map_err(|astray| match astray {
                    Astray::Lost => End::Missed,
                    Astray::Broken(_) => End::Broken,
                })?;
                self.link = Some(link);
                Ok(new)
            }
            Some(Ok(Answer::ReadAnew)) => Err(End::Missed),
            _ => Err(End::Broken),
        }
    }
}
