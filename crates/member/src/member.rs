//! A member that runs.

use crate::volumes::{SettleError, settle_volume, spec_of};
use crate::{describe, manager};
use peristyle_base::{NodeId, ShardId};
use peristyle_control::api::{ClusterInfo, HostsInfo, PathNode};
use peristyle_control::desired::{Change, Node, NodeState, State};
use peristyle_control::election::Manager;
use peristyle_control::presence::{self, Presence, stay_present};
use peristyle_control::{ClusterStore, Control, MetaError};
use peristyle_node::{LinkState, Node as ThisNode, ShardPhase};
use peristyle_rt::sync::{Notify, Semaphore};
use peristyle_rt::{Duration, Instant, join_all, select, sleep, spawn, timeout};
use peristyle_shard::RecoveryTimes;
use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::rc::Rc;

/// Time for the store to answer to what does not have to be done.
const STORE_LIMIT: Duration = Duration::from_secs(1);
/// What is to be here and is not, because a lease was lost, is tried again.
const LOOK_PERIOD: Duration = Duration::from_millis(500);
/// A node that stops waits so long for others to take its shards.
const LEAVE_LIMIT: Duration = Duration::from_secs(3);
/// It takes checkpoints before, so that they have little to read; not for ever.
const CHECKPOINT_LIMIT: Duration = Duration::from_secs(2);
/// It goes on to serve its devices for so long: whoever takes its shards recovers them with all their columns, and all that takes
/// frames is replaced by extents that are elsewhere.
const LINGER: Duration = Duration::from_secs(1);
/// Between two looks at which hosts are connected.
const HOSTS_PERIOD: Duration = Duration::from_secs(1);
/// A node that has not answered for so long is taken for dead.
pub const DEAD_AFTER: Duration = Duration::from_millis(400);

/// Hears what people may want to know.
pub type Voice = Rc<dyn Fn(String)>;

/// A member that runs, on its first reactor.
pub struct Member<S: ClusterStore + Clone + 'static> {
    pub me: NodeId,
    pub node: Rc<ThisNode>,
    pub control: Rc<Control<S>>,
    say: Voice,
    presence: Presence,
    /// The state is another.
    changed: Notify,
    /// Shards that it was told to own.
    owned: RefCell<BTreeSet<ShardId>>,
    /// As this node knows it.
    pub(crate) manager: RefCell<Option<Manager>>,
    /// Volumes change one after the other.
    turn: Rc<Semaphore>,
    started: Instant,
    /// What was granted to nodes that have left is over.
    settled_at: Cell<Instant>,
    pub(crate) leaving: Cell<bool>,
}

impl<S: ClusterStore + Clone + 'static> Member<S> {
    /// `turn`: volumes are changed one after the other, by whomever.
    pub fn start(
        me: NodeId,
        node: Rc<ThisNode>,
        control: Rc<Control<S>>,
        turn: Rc<Semaphore>,
        say: Voice,
    ) -> Rc<Member<S>> {
        let member = Rc::new(Member {
            me,
            node,
            control,
            say,
            presence: Presence::default(),
            changed: Notify::default(),
            owned: RefCell::default(),
            manager: RefCell::default(),
            turn,
            started: peristyle_rt::now(),
            settled_at: Cell::new(Instant(0)),
            leaving: Cell::new(false),
        });
        spawn(member.clone().follow_store());
        spawn(member.clone().follow_state());
        spawn(member.clone().follow_volumes());
        spawn({
            let member = member.clone();
            async move { stay_present(member.control.store(), me, &member.presence).await }
        });
        spawn(member.clone().follow_hosts());
        manager::start(&member);
        member
    }

    /// Whether the node answers this one, or is this one. Shortly after the start nobody is taken for dead.
    pub fn is_alive(&self, node: NodeId) -> bool {
        let now = peristyle_rt::now();
        let heard = self.node.last_heard(node).unwrap_or(self.started);
        node == self.me || now.since(heard) < DEAD_AFTER
    }

    /// The cluster, as this node sees it.
    pub fn info(&self) -> ClusterInfo {
        let manager = self.manager.borrow().as_ref().and_then(|m| manager::node_of(&m.name));
        let (alive, serves) = (|id| self.is_alive(id), |shard| self.node.serves(shard));
        let columns = |device| self.node.devices().get(device).map_or(0, |d| u64::from(d.usage().1));
        let mut info = ClusterInfo::of(&self.control.state(), self.me, manager, alive, serves, columns);
        for (node, link) in self.node.peers().states().into_iter().filter(|(_, link)| *link != LinkState::Up)
        {
            let told = info.nodes.iter_mut().find(|told| told.node == node.0);
            told.into_iter().for_each(|told| told.link = Some(link.to_string()));
        }
        info
    }

    /// Hosts of the whole cluster, as all nodes have said in the store; this one says what is so now.
    pub async fn hosts(&self) -> Result<HostsInfo, MetaError> {
        let said = timeout(STORE_LIMIT, presence::hosts(self.control.store())).await;
        let mut seen = said.unwrap_or(Err(MetaError::Unavailable("it does not answer".into())))?;
        seen.retain(|(node, _)| *node != self.me);
        seen.push((self.me, describe::hosts_here(self.node.hosts_seen())));
        seen.sort_unstable_by_key(|(node, _)| *node);
        let state = self.control.state();
        let path = |n: &Node| PathNode {
            node: n.id.0,
            alive: n.state == NodeState::Active && self.is_alive(n.id),
            portals: n.portals.iter().map(|p| p.to_string()).collect(),
        };
        Ok(HostsInfo::of(state.members().map(path).collect(), &seen))
    }

    /// Tells the others who is connected.
    async fn follow_hosts(self: Rc<Self>) {
        loop {
            self.presence.set_hosts(describe::hosts_here(self.node.hosts_seen()));
            sleep(HOSTS_PERIOD).await;
        }
    }

    /// The node that is to own a shard, if it is another.
    pub fn elsewhere(&self, shard: ShardId) -> Option<Option<NodeId>> {
        if self.node.serves(shard) {
            return None;
        }
        Some(self.control.state().shards.get(&shard).and_then(|s| s.owner))
    }

    /// Keeps the state up to date. A store that is slow is waited for: reading it anew is never given up half-way.
    async fn follow_store(self: Rc<Self>) {
        let mut follower = self.control.follow();
        loop {
            self.control.changed(&mut follower).await;
            self.changed.notify_all();
        }
    }

    fn generation(&self) -> u64 {
        self.control.state().cluster.generation
    }

    /// Until the state is another than that of a generation, but not for long.
    async fn look_again(&self, seen: u64) {
        timeout(LOOK_PERIOD, self.changed.wait_until(|| self.generation() != seen)).await;
    }

    async fn follow_state(self: Rc<Self>) {
        loop {
            let state = self.control.state().clone();
            self.meet_nodes(&state);
            self.meet_devices(&state);
            // From here on majorities are those of this membership, and nothing holds that was granted to nodes that have left it.
            if peristyle_rt::now() >= self.settled_at.get() && self.is_member(&state, self.me) {
                self.presence.set_membership(state.cluster.membership);
            }
            self.own_shards(&state).await;
            self.look_again(state.cluster.generation).await;
            // Another may have been asked to own what this node has lost.
            if state.owned_by(self.me).any(|shard| !self.node.serves(shard)) {
                timeout(STORE_LIMIT, self.control.refresh()).await;
            }
        }
    }

    fn is_member(&self, state: &State, node: NodeId) -> bool {
        state.members().any(|n| n.id == node)
    }

    fn meet_nodes(&self, state: &State) {
        let others = state.members().filter(|n| n.id != self.me);
        others.for_each(|n| self.node.add_peer(describe::peer_config(n)));
        for gone in self.node.peer_nodes().into_iter().filter(|id| !self.is_member(state, *id)) {
            let over = self.node.remove_peer(gone);
            self.settled_at.set(self.settled_at.get().max(over));
        }
        let forgotten = |id: &NodeId| !state.nodes.contains_key(id);
        self.node.leaving_peers().into_iter().filter(forgotten).for_each(|id| self.node.forget_peer(id));
        if !self.is_member(state, self.me) && !self.leaving.replace(true) {
            (self.say)(
                "this node was removed from the cluster: it serves nothing any more, and can be stopped"
                    .into(),
            );
        }
        self.node.set_portals(describe::portals(self.me, state));
        self.node.set_owners(state.shards.values().filter_map(|shard| Some((shard.id, shard.owner?))));
    }

    fn meet_devices(&self, state: &State) {
        if let Some(pool) = state.pools.values().next() {
            self.node.set_scheme(pool.scheme);
        }
        for device in describe::peer_devices(state, self.me) {
            self.node.add_peer_device(&device);
        }
        for device in state.devices.values() {
            self.node.set_wish(device.id, describe::wish_of(state, device));
            self.node.set_domain(device.id, state.domain_of(device));
        }
    }

    async fn own_shards(self: &Rc<Self>, state: &State) {
        let wanted: BTreeSet<ShardId> =
            if self.leaving.get() { BTreeSet::new() } else { state.owned_by(self.me).collect() };
        let before = self.owned.replace(wanted.clone());
        join_all(wanted.iter().map(|&shard| self.node.own(shard, true))).await;
        // Each takes as long as what is in flight; none waits for another.
        for &shard in before.difference(&wanted) {
            spawn(self.clone().hand_over(shard));
        }
    }

    async fn hand_over(self: Rc<Self>, shard: ShardId) {
        self.node.until_claimed(shard).await;
        // It may have been given back meanwhile.
        if !self.owned.borrow().contains(&shard) {
            self.node.own(shard, false).await;
        }
    }

    /// Exports what hosts are to see; of the shards that are served here, makes and drops layers.
    async fn follow_volumes(self: Rc<Self>) {
        let mut done = None;
        let (mut told, mut said) = (Vec::new(), Vec::new());
        loop {
            self.tell_of_shards(&mut told).await;
            let now = (self.generation(), self.node.served_shards());
            let seen = now.0;
            if done.as_ref() != Some(&now) {
                let failed: Vec<String> =
                    self.settle_volumes().await.iter().map(ToString::to_string).collect();
                if failed.is_empty() {
                    done = Some(now);
                }
                // Once each: it is tried again all the time.
                failed.iter().filter(|line| !said.contains(*line)).for_each(|line| (self.say)(line.clone()));
                said = failed;
            }
            self.look_again(seen).await;
        }
    }

    /// Says which shards this node serves from now on, and what it took.
    async fn tell_of_shards(&self, told: &mut Vec<(ShardId, u64)>) {
        let served = self.node.served_shards();
        if *told == served {
            return;
        }
        let before = std::mem::replace(told, served);
        for (shard, _, phase) in self.node.all_phases().await {
            let is_new = told.iter().any(|s| s.0 == shard && !before.contains(s));
            if let (true, ShardPhase::Serving(report)) = (is_new, phase) {
                let RecoveryTimes { epoch, claim, find, log, tail } = report.times;
                let foreseen = match (report.foreseen, report.frames_foreseen) {
                    (true, frames) => format!(", its checkpoint and {frames} frames of its log read before"),
                    (false, 0) => String::new(),
                    (false, frames) => format!(", {frames} frames of its log read before"),
                };
                let ms = |time: Duration| time.as_secs_f64() * 1000.0;
                (self.say)(format!(
                    "serves shard {shard}: raised its epoch in {:.1} ms, was accepted in {:.1} ms, found its {} extents in {:.1} ms, looked at {} and read {} of them, with {} frames, in {:.1} ms{foreseen}, appended its tail of {} in {:.1} ms",
                    ms(epoch),
                    ms(claim),
                    report.extents,
                    ms(find),
                    report.looked_at,
                    report.scanned,
                    report.replayed,
                    ms(log),
                    report.tail_kept,
                    ms(tail)
                ));
            }
        }
    }

    /// What could not be done, for which other volumes do not wait.
    async fn settle_volumes(&self) -> Vec<SettleError> {
        let mut failed = Vec::new();
        let _turn = self.turn.acquire(1).await;
        let state = self.control.state().clone();
        let exported = self.node.exported();
        let active: Vec<_> = state.active_volumes().map(spec_of).collect();
        for gone in exported.iter().filter(|e| active.iter().all(|a| a.nsid != e.nsid)) {
            self.node.remove_volume(gone.nsid).await;
        }
        for volume in state.volumes.values().filter(|v| self.node.serves(v.shard)) {
            failed.extend(settle_volume(&self.node, &self.control, volume).await.err());
        }
        for spec in active.iter().filter(|a| !exported.contains(a)) {
            let put = self.node.add_volume(spec.clone()).await;
            failed.extend(put.err().map(|error| SettleError::shard(spec, error.into())));
        }
        self.node.set_exports(active);
        failed
    }

    /// Gives the shards to others while this node still serves, then stops owning any.
    pub async fn leave(&self) {
        if self.has_heirs() {
            timeout(CHECKPOINT_LIMIT, self.node.checkpoint_all()).await;
        }
        let change = Change::SetNodeState { node: self.me, state: NodeState::Stopping };
        let told = timeout(STORE_LIMIT, self.control.apply(&change)).await;
        if matches!(told, Some(Ok(_))) {
            let moved = async {
                while self.has_heirs() && (self.owns_any() || self.serves_any()) {
                    sleep(Duration::from_millis(10)).await;
                }
            };
            select(moved, sleep(LEAVE_LIMIT)).await;
        }
        self.leaving.set(true);
        // Also those that are on their way: who takes one waits for nothing once its lease has been given back.
        let shards: Vec<ShardId> = self.control.state().shards.keys().copied().collect();
        for shard in shards {
            timeout(STORE_LIMIT, self.node.own(shard, false)).await;
        }
        if self.has_heirs() {
            sleep(LINGER).await;
        }
    }

    /// Nodes that can take its shards; when all stop at once there are none.
    fn has_heirs(&self) -> bool {
        let state = self.control.state();
        state.nodes.values().any(|n| n.id != self.me && n.may_own() && self.is_alive(n.id))
    }

    fn owns_any(&self) -> bool {
        self.control.state().owned_by(self.me).next().is_some()
    }

    fn serves_any(&self) -> bool {
        !self.node.served_shards().is_empty()
    }
}
