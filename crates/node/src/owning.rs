//! Shards that this node takes up, keeps as long as their leases hold, and gives away.

use crate::LocalBoxed;
use crate::Node;
use crate::columns::NodeColumns;
use crate::message::{Reply, Request};
use crate::reactor::{NodeShard, ShardPhase};
use crate::target::HomeRequest;
use peristyle_base::{NodeId, ShardId};
use peristyle_cluster::BoxedStore;
use peristyle_rt::{Duration, ReactorId, timeout};
use peristyle_shard::{RecoverError, RecoveryReport, Shard, ShardConfig, StopReason};
use std::rc::Rc;
use std::sync::atomic::Ordering;

/// Pause between attempts to take a shard up.
const RETRY_PERIOD: Duration = Duration::from_millis(200);
/// Whoever is to own a shard claims it within this time after its owner has heard of that.
const CLAIM_WAIT: Duration = Duration::from_secs(1);
/// How often a shard's lease is looked at when nobody reads.
const LOOK_PERIOD: Duration = Duration::from_millis(50);

impl NodeColumns {
    /// Takes a shard up on these columns, without a node around them: see [`Shard::recover`].
    pub fn take_up(
        self: &Rc<Self>,
        id: ShardId,
        node: NodeId,
        config: ShardConfig,
        store: BoxedStore,
    ) -> LocalBoxed<'static, Result<(NodeShard, RecoveryReport), RecoverError>> {
        Box::pin(Shard::recover(id, node, config, self.clone(), Rc::new(store)))
    }
}

impl Node {
    /// Has the node own a shard from now on, or not any more: when this returns, a shard that is given away is not served here, and
    /// another node can take it at once. False: it is not one of the pool's.
    pub fn own(self: &Rc<Self>, shard: ShardId, own: bool) -> LocalBoxed<'_, bool> {
        Box::pin(async move {
            match self.home_of(shard) {
                None => false,
                Some(home) if home == self.id() && own => self.own_here(shard),
                Some(home) if home == self.id() => {
                    self.disown_here(shard).await;
                    true
                }
                Some(home) => {
                    matches!(self.bus.call(home, Request::Own { shard, own }).await, Reply::Done(true))
                }
            }
        })
    }

    /// Goes on to serve a shard that another node is to own until that claims it, which by then has read what it could without; not
    /// for ever. On the first reactor.
    pub async fn until_claimed(&self, shard: ShardId) {
        timeout(CLAIM_WAIT, self.peers.claimed_by_another(shard)).await;
    }

    /// Begins to take a shard up, unless that is under way, or done.
    pub(crate) fn own_here(self: &Rc<Self>, shard: ShardId) -> bool {
        self.owned.borrow_mut().insert(shard);
        // One task has all of a shard's time here, from taking it up to giving its lease back.
        if self.taking.borrow_mut().insert(shard) {
            self.phases.borrow_mut().insert(shard, ShardPhase::Recovering(None));
            peristyle_rt::spawn(self.clone().take_up(shard));
        }
        true
    }

    /// Returns when the shard is not served here, and its lease was given back.
    pub(crate) async fn disown_here(self: &Rc<Self>, shard: ShardId) {
        self.owned.borrow_mut().remove(&shard);
        if let Some(served) = self.shard(shard) {
            served.stop(StopReason::Shutdown);
        }
        if self.leases.is_alone() {
            return; // there is nobody to give it to
        }
        self.owning.notify_all();
        let is_over = || !self.taking.borrow().contains(&shard) || self.owned.borrow().contains(&shard);
        self.owning.wait_until(is_over).await;
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

    /// Takes a shard up, again and again until it serves: waiting, never guessing. Keeps it until it is given away or lost.
    async fn take_up(self: Rc<Self>, id: ShardId) {
        while self.owns(id) {
            let mut config = self.config.shard.clone();
            config.lease = self.leases.get(id);
            let (node, columns, store) = (self.config.node, self.columns.clone(), self.store.clone());
            match Shard::recover(id, node, config, columns, store).await {
                Ok((shard, report)) if self.owns(id) => self.serve_until_over(id, shard, report).await,
                // It was given away meanwhile.
                Ok((shard, _)) => shard.stop(StopReason::Shutdown),
                Err(error) => {
                    self.phases.borrow_mut().insert(id, ShardPhase::Recovering(Some(error)));
                }
            }
            // Whoever is next need not wait for the lease; nor need this node, whose next attempt has another epoch.
            self.release(id).await;
            if self.owns(id) {
                timeout(RETRY_PERIOD, self.owning.notified()).await;
            }
        }
        if let Some(phase @ ShardPhase::Recovering(_)) = self.phases.borrow_mut().get_mut(&id) {
            *phase = ShardPhase::Stopped(StopReason::Shutdown);
        }
        self.taking.borrow_mut().remove(&id);
        self.owning.notify_all();
    }

    async fn serve_until_over(self: &Rc<Self>, id: ShardId, shard: NodeShard, report: RecoveryReport) {
        self.phases.borrow_mut().insert(id, ShardPhase::Serving(report));
        self.shards.borrow_mut().insert(id, shard.clone());
        self.shards_ready.fetch_add(1, Ordering::Release);
        if self.leases.is_alone() {
            return std::future::pending().await; // nobody can take it
        }
        self.tell_served(id, true);
        let reason = self.keep(id, &shard).await;
        self.shards.borrow_mut().remove(&id);
        self.phases.borrow_mut().insert(id, ShardPhase::Stopped(reason));
        self.shards_ready.fetch_sub(1, Ordering::Release);
        if reason != StopReason::Shutdown {
            // Somebody else has it, or will: it is taken again when that is asked for.
            self.owned.borrow_mut().remove(&id);
        }
        self.tell_served(id, false);
    }

    /// Returns when the shard has stopped, or its lease has run out.
    async fn keep(&self, id: ShardId, shard: &Shard<NodeColumns, BoxedStore>) -> StopReason {
        loop {
            if let Some(reason) = shard.stopped() {
                return reason;
            }
            if !self.leases.get(id).holds(peristyle_rt::now()) {
                shard.stop(StopReason::LeaseLost);
                continue;
            }
            timeout(LOOK_PERIOD, self.owning.notified()).await;
        }
    }
}
