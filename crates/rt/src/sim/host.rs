//! One simulated reactor's side of the backend: its clock, its inbox, its buffers.

use super::cell::Answer;
use super::world::{Event, Shared};
use crate::buf::{BufConfig, Pool};
use crate::reactor::{self, Backend, Inbox, Target};
use peristyle_base::Instant;
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;

/// One simulated reactor's backend.
pub struct Host {
    pub(crate) shared: Rc<Shared>,
    pub(crate) id: u32,
    pub(crate) node: u32,
    pub(super) woken: Cell<bool>,
    pub(super) poked: Cell<bool>,
    pub(super) main_done: Cell<bool>,
}

impl Host {
    pub(super) fn new(shared: Rc<Shared>, id: u32, node: u32) -> Host {
        let [woken, poked, main_done] = [const { Cell::new(false) }; 3];
        Host { shared, id, node, woken, poked, main_done }
    }
    pub(crate) fn now(&self) -> Instant {
        let core = self.shared.core.borrow();
        Instant(core.nodes[self.node as usize].local(core.now))
    }
    pub(crate) fn wall_nanos(&self) -> u64 {
        1_790_000_000_000_000_000 + self.shared.core.borrow().now
    }
    pub(crate) async fn blocking<T: Send + 'static>(&self, f: impl FnOnce() -> T + Send + 'static) -> T {
        let value = f();
        let answer = Answer::new();
        {
            let mut core = self.shared.core.borrow_mut();
            let nanos = core.config.blocking_ns;
            let delay = core.rng.latency(nanos);
            core.push_in(delay, Event::Answer(answer.clone()));
        }
        answer.wait().await;
        value
    }
    pub(crate) fn inbox(&self) -> Arc<dyn Inbox> {
        let core = self.shared.core.borrow();
        let slot = core.hosts[self.id as usize].reactor.as_ref().map_or(u16::MAX, |r| r.slot);
        Arc::new(LocalInbox { slot, host: self.id })
    }
    /// One of its tasks has become ready.
    pub(crate) fn notice(&self) {
        if !self.woken.replace(true) {
            self.shared.woken.borrow_mut().push(self.id);
        }
    }
}

/// Reaches a simulated reactor of this thread by its slot.
struct LocalInbox {
    slot: u16,
    host: u32,
}

impl Inbox for LocalInbox {
    fn wake(&self, key: u64) {
        crate::task::wake_key(key);
    }
    fn poke(&self) {
        reactor::with_slot(self.slot, |target| {
            if let Target::Local(reactor) = target
                && let Backend::Sim(host) = &reactor.backend
                && host.id == self.host
            {
                host.poked.set(true);
                host.notice();
            }
        });
    }
}

thread_local! {
    /// Pools whose buffers are all back, for the next process of the same shape.
    static POOLS: RefCell<Vec<(BufConfig, Arc<Pool>)>> = const { RefCell::new(Vec::new()) };
}

pub(super) fn take_pool(config: BufConfig) -> Arc<Pool> {
    let found = POOLS.with_borrow_mut(|pools| {
        let at = pools.iter().position(|(c, _)| *c == config)?;
        Some(pools.swap_remove(at).1)
    });
    found.unwrap_or_else(|| Pool::reserved(config))
}

/// Keeps the pool for later use; returns how many of its buffers are still out.
pub(super) fn give_pool(config: BufConfig, pool: Arc<Pool>) -> usize {
    pool.collect_remote();
    let free: usize = pool.free_counts().iter().sum();
    let missing = config.counts.iter().sum::<usize>() - free;
    if missing == 0 {
        POOLS.with_borrow_mut(|pools| {
            if pools.len() < 64 {
                pools.push((config, pool));
            }
        });
    }
    missing
}
