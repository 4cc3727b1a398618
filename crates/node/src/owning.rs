//! Shards that this node takes up, keeps as long as their leases hold, and gives away.

use crate::Node;
use crate::message::{Reply, Request};
use crate::reactor::ShardPhase;
use crate::target::HomeRequest;
use peristyle_base::ShardId;
use peristyle_cluster::ShardStore;
use peristyle_rt::{Duration, ReactorId};
use peristyle_shard::{Shard, StopReason};
use std::rc::Rc;
use std::sync::atomic::Ordering;

/// Pause between attempts to take a shard up.
const RETRY_PERIOD: Duration = Duration::from_millis(200);
/// How often a shard's lease is looked at when nobody reads.
const LOOK_PERIOD: Duration = Duration::from_millis(50);

impl<S: ShardStore + Clone + 'static> Node<S> {
    /// Has the node own a shard from now on, or not any more: when this returns, a shard that is given away is not served here, and
    /// another node can take it at once. False: it is not one of the pool's.
    pub async fn own(self: &Rc<Self>, shard: ShardId, own: bool) -> bool {
        match self.home_of(shard) {
            None => false,
            Some(home) if home == self.id() && own => self.own_here(shard),
            Some(home) if home == self.id() => {
                self.disown_here(shard).await;
                true
            }
            Some(home) => matches!(self.bus.call(home, Request::Own { shard, own }).await, Reply::Done(true)),
        }
    }

    /// Begins to take a shard up, unless that is under way, or done.
    pub(crate) fn own_here(self: &Rc<Self>, shard: ShardId) -> bool {
        let there = self.owned.borrow().contains(&shard);
        if !there {
            self.owned.borrow_mut().insert(shard);
            self.phases.borrow_mut().insert(shard, ShardPhase::Recovering(None));
            peristyle_rt::spawn(self.clone().take_up(shard));
        }
        true
    }

    pub(crate) async fn disown_here(self: &Rc<Self>, shard: ShardId) {
        self.owned.borrow_mut().remove(&shard);
        let Some(served) = self.shards.borrow_mut().remove(&shard) else { return };
        served.stop(StopReason::Shutdown);
        self.phases.borrow_mut().insert(shard, ShardPhase::Stopped(StopReason::Shutdown));
        self.shards_ready.fetch_sub(1, Ordering::Release);
        self.release(shard).await;
        self.tell_served(shard, false);
    }

    /// Hosts hear of it, in a while.
    fn tell_served(self: &Rc<Self>, shard: ShardId, served: bool) {
        if self.leases.is_alone() {
            return;
        }
        self.told.set(self.told.get() + 1);
        let (me, number) = (self.clone(), self.told.get());
        peristyle_rt::spawn(async move {
            me.ask_home(HomeRequest::Served { shard, served, number }).await;
        });
    }

    async fn release(&self, shard: ShardId) {
        if self.leases.is_alone() {
            return;
        }
        match self.id() {
            ReactorId(0) => self.peers.release(shard).await,
            _ => drop(self.bus.call(ReactorId(0), Request::Release { shard }).await),
        }
    }

    fn owns(&self, shard: ShardId) -> bool {
        !self.stopping.get() && self.owned.borrow().contains(&shard)
    }

    /// Takes a shard up, again and again until it serves: waiting, never guessing.
    async fn take_up(self: Rc<Self>, id: ShardId) {
        while self.owns(id) {
            let mut config = self.config.shard.clone();
            config.lease = self.leases.get(id);
            let (node, columns, store) = (self.config.node, self.columns.clone(), self.store.clone());
            match Shard::recover(id, node, config, columns, store).await {
                Ok((shard, _)) if !self.owns(id) => {
                    // It was given away meanwhile.
                    shard.stop(StopReason::Shutdown);
                    return self.release(id).await;
                }
                Ok((shard, report)) => {
                    self.phases.borrow_mut().insert(id, ShardPhase::Serving(report));
                    self.shards.borrow_mut().insert(id, shard.clone());
                    self.shards_ready.fetch_add(1, Ordering::Release);
                    self.tell_served(id, true);
                    return self.keep(id, shard).await;
                }
                Err(error) => {
                    self.phases.borrow_mut().insert(id, ShardPhase::Recovering(Some(error)));
                    // The next attempt has another epoch.
                    self.release(id).await;
                    peristyle_rt::sleep(RETRY_PERIOD).await;
                }
            }
        }
    }

    /// Lets go of a shard whose lease has run out, or that somebody else has taken.
    async fn keep(self: Rc<Self>, id: ShardId, shard: crate::reactor::NodeShard<S>) {
        if self.leases.is_alone() {
            return; // nobody else can take it
        }
        let reason = loop {
            peristyle_rt::sleep(LOOK_PERIOD).await;
            if let Some(reason) = shard.stopped() {
                break reason;
            }
            if !self.leases.get(id).holds(peristyle_rt::now()) {
                shard.stop(StopReason::LeaseLost);
                break StopReason::LeaseLost;
            }
        };
        if reason == StopReason::Shutdown {
            return; // whoever asked for it does the rest
        }
        let is_it = self.shards.borrow().get(&id).is_some_and(|s| Rc::ptr_eq(s, &shard));
        if is_it {
            self.owned.borrow_mut().remove(&id);
            self.shards.borrow_mut().remove(&id);
            self.phases.borrow_mut().insert(id, ShardPhase::Stopped(reason));
            self.shards_ready.fetch_sub(1, Ordering::Release);
            // Whoever has taken the shard need not wait for the lease.
            self.release(id).await;
            self.tell_served(id, false);
        }
    }
}
