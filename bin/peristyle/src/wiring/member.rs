//! A node as one of several: it joins, follows what is asked of the cluster, and leaves in order.

use super::serve::{ThisNode, settle_volume, spec_of};
use super::store::{self, Opened};
use super::{Plan, manager, target};
use crate::failure::Failure;
use peristyle_base::{NodeId, ShardId, Uuid};
use peristyle_control::api::ClusterInfo;
use peristyle_control::config::ClusterConfig;
use peristyle_control::desired::{self, Change, NodeState, State};
use peristyle_control::election::Manager;
use peristyle_control::member::{self, GoesBy};
use peristyle_control::{
    AnyStore, Control, ControlError, EtcdConfig, EtcdStore, MetaError, ServedStore, StoreAt, Token,
};
use peristyle_node::{NodeConfig, ShardPhase};
use peristyle_rt::sync::{Notify, Semaphore};
use peristyle_rt::{Addr, Duration, Instant, RuntimeConfig, select, sleep, spawn, timeout};
use peristyle_shard::RecoveryTimes;
use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::path::Path;
use std::rc::Rc;

/// Who the node is: drawn at its first start.
const IDENTITY: &str = "node-uuid";
/// A store that is away is asked again.
const STORE_PAUSE: Duration = Duration::from_secs(1);
/// What is to be here and is not, because a lease was lost, is tried again.
const LOOK_PERIOD: Duration = Duration::from_millis(500);
/// A node that stops waits so long for others to take its shards.
const LEAVE_LIMIT: Duration = Duration::from_secs(3);
/// It takes checkpoints before, so that they have little to read; not for ever.
const CHECKPOINT_LIMIT: Duration = Duration::from_secs(2);
/// It goes on to serve its devices for so long: whoever takes its shards recovers them with all their columns.
const LINGER: Duration = Duration::from_millis(500);
/// A node that has not answered for so long is taken for dead.
pub const DEAD_AFTER: Duration = Duration::from_millis(400);

/// Opens the cluster's store and makes this node a member.
pub fn open(plan: &Plan, cluster: &ClusterConfig) -> Result<Opened, Failure> {
    let store = reach(&cluster.token)?;
    let (plan, cluster, shared) = (plan.clone(), cluster.clone(), store.clone());
    let node = peristyle_rt::block_on(RuntimeConfig::small(), async move {
        become_member(&plan, &cluster, shared).await
    });
    node.map(|(node, nqn, notes)| Opened { store, node, nqn, notes })
}

/// The store that a token names.
pub fn reach(token: &Token) -> Result<AnyStore, Failure> {
    match &token.store {
        StoreAt::Etcd(endpoints) => {
            let config = EtcdConfig::new(&token.name, endpoints.clone());
            EtcdStore::open(&config).map(AnyStore::Etcd).map_err(Failure::failed)
        }
        StoreAt::Served(addr) => Ok(AnyStore::Served(ServedStore::new(Addr::Tcp(*addr), &token.name))),
    }
}

fn identity(dir: &Path) -> Result<Uuid, Failure> {
    let file = dir.join(IDENTITY);
    let failed = |e: &dyn std::fmt::Display| Failure::failed(format!("{}: {e}", file.display()));
    match std::fs::read_to_string(&file) {
        Ok(text) => text.trim().parse().map_err(|_| failed(&"it holds no UUID")),
        Err(e) if e.kind() == ErrorKind::NotFound => {
            let uuid = store::random_uuid();
            // It is whole or not there.
            let draft = dir.join("node-uuid.new");
            let written =
                std::fs::write(&draft, format!("{uuid}\n")).and_then(|()| std::fs::rename(&draft, &file));
            written.map(|()| uuid).map_err(|e| failed(&e))
        }
        Err(e) => Err(failed(&e)),
    }
}

/// The cluster's state, once the store answers.
async fn open_control(token: &Token, store: AnyStore) -> Result<Control<AnyStore>, Failure> {
    let mut told = false;
    loop {
        match Control::open(store.clone()).await {
            Ok(Some(control)) if control.state().cluster.uuid == token.cluster => return Ok(control),
            Ok(Some(control)) => {
                let there = control.state().cluster.uuid;
                return Err(Failure::failed(format!(
                    "the cluster `{}` at {} is {there}, and the token is of {}",
                    token.name, token.store, token.cluster
                )));
            }
            Ok(None) => {
                return Err(Failure::failed(format!(
                    "there is no cluster `{}` at {}: `peristyle cluster create` makes one, and prints its token",
                    token.name, token.store
                )));
            }
            Err(ControlError::Store(e @ (MetaError::Unavailable(_) | MetaError::Unknown(_)))) => {
                if !std::mem::replace(&mut told, true) {
                    store::say(format!("{e}: waiting for it"));
                }
                sleep(STORE_PAUSE).await;
            }
            Err(e) => return Err(e.into()),
        }
    }
}

async fn become_member(
    plan: &Plan,
    cluster: &ClusterConfig,
    store: AnyStore,
) -> Result<(NodeConfig, String, Vec<String>), Failure> {
    let uuid = identity(&plan.data_dir)?;
    let control = open_control(&cluster.token, store).await?;
    let mut notes = Vec::new();
    let (_, found) = store::find_devices(plan, Some(cluster.token.cluster), &mut notes).await?;
    let me = NodeId(cluster.node);
    let node = desired::Node {
        id: me,
        uuid,
        peers: cluster.listen,
        portals: plan.portals(),
        rack: cluster.rack.clone(),
        zone: cluster.zone.clone(),
        state: NodeState::Active,
    };
    let waits = |absent: NodeId| {
        store::say(format!(
            "waits for node {absent}: a node joins while all others run and know of each other"
        ))
    };
    member::join(&control, &node, waits).await?;
    // Others that start at the same time change the same state.
    while let Err(error) = member::bring_devices(&control, me, &found).await {
        match error {
            ControlError::Store(MetaError::Conflict { .. }) => {
                sleep(Duration::from_millis(5 + peristyle_rt::random_u64() % 45)).await;
            }
            other => return Err(other.into()),
        }
    }
    let state = control.state().clone();
    Ok((store::node_config(plan, &state, Some((me, cluster.listen))), state.cluster.nqn, notes))
}

/// A member that runs, on its first reactor.
pub struct Member {
    pub me: NodeId,
    pub node: Rc<ThisNode>,
    pub control: Rc<Control<AnyStore>>,
    goes_by: GoesBy,
    /// The state is another.
    changed: Notify,
    /// Shards that it was told to own.
    owned: RefCell<BTreeSet<ShardId>>,
    /// As this node knows it.
    pub manager: RefCell<Option<Manager>>,
    /// Volumes change one after the other.
    turn: Rc<Semaphore>,
    started: Instant,
    pub(super) leaving: Cell<bool>,
}

impl Member {
    pub fn start(
        me: NodeId,
        node: Rc<ThisNode>,
        control: Rc<Control<AnyStore>>,
        turn: Rc<Semaphore>,
    ) -> Rc<Member> {
        let member = Rc::new(Member {
            me,
            node,
            control,
            goes_by: GoesBy::default(),
            changed: Notify::default(),
            owned: RefCell::default(),
            manager: RefCell::default(),
            turn,
            started: peristyle_rt::now(),
            leaving: Cell::new(false),
        });
        spawn(member.clone().follow_store());
        spawn(member.clone().follow_state());
        spawn(member.clone().follow_volumes());
        spawn({
            let member = member.clone();
            async move { member::stay_present(member.control.store(), me, &member.goes_by).await }
        });
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
        ClusterInfo::of(&self.control.state(), self.me, manager, alive, serves)
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
            // From here on majorities are those of this membership.
            self.goes_by.set(state.cluster.membership);
            self.own_shards(&state).await;
            self.look_again(state.cluster.generation).await;
            // Another may have been asked to own what this node has lost.
            if state.owned_by(self.me).any(|shard| !self.node.serves(shard)) {
                timeout(STORE_PAUSE, self.control.refresh()).await;
            }
        }
    }

    fn meet_nodes(&self, state: &State) {
        let others = state.nodes.values().filter(|n| n.id != self.me);
        others.for_each(|n| self.node.add_peer(store::peer_config(n)));
        self.node.set_portals(target::portals(self.me, state));
    }

    fn meet_devices(&self, state: &State) {
        for device in store::peer_devices(state, self.me) {
            self.node.add_peer_device(&device);
        }
        for device in state.devices.values() {
            self.node.set_wish(device.id, store::wish_of(device.state));
        }
    }

    async fn own_shards(&self, state: &State) {
        let wanted: BTreeSet<ShardId> =
            if self.leaving.get() { BTreeSet::new() } else { state.owned_by(self.me).collect() };
        let before = self.owned.replace(wanted.clone());
        for &shard in &wanted {
            self.node.own(shard, true).await;
        }
        // Each takes as long as what is in flight; none waits for another.
        for &shard in before.difference(&wanted) {
            let node = self.node.clone();
            spawn(async move {
                node.own(shard, false).await;
            });
        }
    }

    /// Exports what hosts are to see; of the shards that are served here, makes and drops layers.
    async fn follow_volumes(self: Rc<Self>) {
        let mut done = None;
        let mut told = Vec::new();
        loop {
            self.tell_of_shards(&mut told).await;
            let now = (self.generation(), self.node.served_shards());
            let seen = now.0;
            if done.as_ref() != Some(&now) && self.settle_volumes().await.is_ok() {
                done = Some(now);
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
                let RecoveryTimes { epoch, claim, log, tail } = report.times;
                let ms = |time: Duration| time.as_secs_f64() * 1000.0;
                store::say(format!(
                    "serves shard {shard}: raised its epoch in {:.1} ms, was accepted in {:.1} ms, read the log of {} of its {} extents in {:.1} ms, appended its tail in {:.1} ms",
                    ms(epoch),
                    ms(claim),
                    report.scanned,
                    report.extents,
                    ms(log),
                    ms(tail)
                ));
            }
        }
    }

    async fn settle_volumes(&self) -> Result<(), Failure> {
        let _turn = self.turn.acquire(1).await;
        let state = self.control.state().clone();
        let exported = self.node.exported();
        let active: Vec<_> = state.active_volumes().map(spec_of).collect();
        for gone in exported.iter().filter(|e| active.iter().all(|a| a.nsid != e.nsid)) {
            target::remove(&self.node, gone.nsid).await;
        }
        for volume in state.volumes.values().filter(|v| self.node.serves(v.shard)) {
            settle_volume(&self.node, &self.control, volume).await?;
        }
        for spec in active.iter().filter(|a| !exported.contains(a)) {
            let put = target::put(&self.node, spec).await;
            put.map_err(|e| Failure::failed(format!("volume {}: {e}", spec.name)))?;
        }
        self.node.set_exports(active);
        Ok(())
    }

    /// Gives the shards to others while this node still serves, then stops owning any.
    pub async fn leave(&self) {
        if self.has_heirs() {
            timeout(CHECKPOINT_LIMIT, self.node.checkpoint_all()).await;
        }
        let change = Change::SetNodeState { node: self.me, state: NodeState::Stopping };
        let told = timeout(STORE_PAUSE, self.control.apply(&change)).await;
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
            timeout(STORE_PAUSE, self.node.own(shard, false)).await;
        }
        if self.has_heirs() {
            sleep(LINGER).await;
        }
    }

    /// Nodes that can take its shards; when all stop at once there are none.
    fn has_heirs(&self) -> bool {
        let state = self.control.state();
        state.nodes.values().any(|n| n.id != self.me && n.state == NodeState::Active && self.is_alive(n.id))
    }

    fn owns_any(&self) -> bool {
        self.control.state().owned_by(self.me).next().is_some()
    }

    fn serves_any(&self) -> bool {
        !self.node.served_shards().is_empty()
    }
}
