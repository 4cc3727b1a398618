//! What the admin socket answers.

use super::serve::ThisNode;
use super::{Plan, stats};
use peristyle_base::units::COLUMN_BYTES;
use peristyle_base::{BLOCK_BYTES, DeviceId, Scheme, ShardId};
use peristyle_cluster::{PoolView, Protection};
use peristyle_control::api::{
    ApiError, Code, DeviceInfo, ExtentCount, FaultKind, HostsInfo, PathNode, PoolInfo, ProfilePage, Request,
    Response, ShardInfo, Stats, Status, UsageInfo, VolumeInfo,
};
use peristyle_control::config::ListenAddr;
use peristyle_control::desired::{Change, Volume};
use peristyle_control::setup::VolumeWish;
use peristyle_control::{AdminHandler, AnyStore, Control, ControlError};
use peristyle_member::{Member, spec_of};
use peristyle_node::devices::SharedDevice;
use peristyle_node::{DeviceState, ShardPhase, Wish};
use peristyle_rt::sync::Semaphore;
use peristyle_rt::{Duration, Fault, Instant, ReactorId};
use peristyle_shard::Usage;
use peristyle_shard::stats::{KINDS, PHASES, SpaceFigures};
use peristyle_shard::{AllocClass, GROUP_MAX, ResizeError, ShardError};
use std::net::SocketAddr;
use std::path::Path;
use std::rc::Rc;

const NO_FAULTS: &str = "faults are injected into development stores only";

/// A volume's data.
type Handle = peristyle_node::Volume;

pub struct Admin {
    pub(super) node: Rc<ThisNode>,
    pub(super) control: Rc<Control<AnyStore>>,
    pub(super) plan: Plan,
    /// Where the node is one of several.
    pub(super) member: Option<Rc<Member<AnyStore>>>,
    fronts: Fronts,
    started: Instant,
    /// Volumes and devices change one after the other.
    turn: Rc<Semaphore>,
}

/// What it speaks for.
pub struct Parts {
    pub node: Rc<ThisNode>,
    pub control: Rc<Control<AnyStore>>,
    pub member: Option<Rc<Member<AnyStore>>>,
    pub turn: Rc<Semaphore>,
}

/// Where hosts reach it.
pub struct Fronts {
    pub listen: Vec<SocketAddr>,
    pub nbd: Vec<ListenAddr>,
}

/// State of a device in a word.
fn state_of(d: &SharedDevice) -> &'static str {
    match (d.wish(), d.state()) {
        (Wish::Failed, _) => "given-up",
        (Wish::Removed, _) => "removed",
        (_, DeviceState::Closed) => "missing",
        (_, DeviceState::Failed) => "failed",
        (Wish::Draining, _) => "draining",
        (Wish::Leaving, _) => "leaving",
        (Wish::Spared, _) => "maintenance",
        (Wish::Active, DeviceState::Healthy) => "healthy",
        (Wish::Active, DeviceState::Slow) => "slow",
    }
}

fn internal(e: ShardError) -> ApiError {
    let code = match e {
        ShardError::MapFull | ShardError::NoSpace => Code::LimitReached,
        ShardError::Stopped | ShardError::Changed => Code::Busy,
        _ => Code::Internal,
    };
    ApiError::new(code, e.to_string())
}

fn usage_info(u: Usage) -> UsageInfo {
    let bytes = |blocks: u64| blocks * BLOCK_BYTES as u64;
    UsageInfo {
        mapped_bytes: bytes(u.unique + u.shared),
        unique_bytes: bytes(u.unique),
        shared_bytes: bytes(u.shared),
        own_bytes: bytes(u.own),
        layers: u.depth,
    }
}

fn not_resized(error: ResizeError, name: &str, bytes: u64) -> ApiError {
    match error {
        ResizeError::Shard(e) => internal(e),
        ResizeError::DataBehind(last) => ApiError::new(
            Code::Invalid,
            format!(
                "the volume `{name}` has data up to byte {last}, behind a new end at {bytes}, and keeps its size: \
                 --discard-data gives up what is there"
            ),
        ),
    }
}

impl Admin {
    pub fn new(parts: Parts, plan: Plan, fronts: Fronts) -> Admin {
        let Parts { node, control, member, turn } = parts;
        Admin { node, control, plan, member, fronts, started: peristyle_rt::now(), turn }
    }

    /// The volume's data, if its shard is served here.
    fn handle(&self, volume: &Volume) -> Result<Handle, ApiError> {
        if let Some(owner) = self.member.as_ref().and_then(|member| member.elsewhere(volume.shard)) {
            let who = owner.map_or("no node".into(), |node| format!("node {node}"));
            let why = format!("the volume `{}` is served by {who}: give the command there", volume.name);
            return Err(ApiError::new(Code::Busy, why));
        }
        self.node.volume(&spec_of(volume)).ok_or_else(|| internal(ShardError::Stopped))
    }

    fn find(&self, name: &str) -> Result<Volume, ApiError> {
        let found = self.control.state().volume(name).cloned();
        found.ok_or_else(|| ApiError::new(Code::NotFound, format!("no volume `{name}`")))
    }

    async fn create(&self, name: String, bytes: u64, lba_bytes: Option<u32>) -> Result<Response, ApiError> {
        let _turn = self.turn.acquire(1).await;
        let wish =
            VolumeWish { name: name.clone(), bytes, lba_bytes: lba_bytes.unwrap_or(self.plan.lba_bytes) };
        self.control.apply(&Change::CreateVolume(wish.spec(peristyle_rt::fill_random))).await?;
        let volume = self.find(&name)?;
        let spec = spec_of(&volume);
        if let Err(e) = super::target::put(&self.node, &spec).await {
            // Nobody has seen the volume: take it back, so that the name is free.
            self.control.apply(&Change::BeginDelete { name }).await?;
            self.control.apply(&Change::FinishDelete { volume: volume.id }).await?;
            return Err(internal(e));
        }
        self.publish_exports();
        Ok(Response::Volume(VolumeInfo::from(&volume)))
    }

    /// The layer first, then the store, then hosts: a node that dies in between starts with the size that the store
    /// has, and gives the layer that size. Nobody has written behind a larger end that hosts did not know.
    async fn resize(
        &self,
        name: String,
        bytes: u64,
        shrink: bool,
        discard_data: bool,
    ) -> Result<Response, ApiError> {
        let _turn = self.turn.acquire(1).await;
        let before = self.find(&name)?;
        let change = Change::ResizeVolume { name: name.clone(), bytes, shrink };
        // What the store would refuse is refused before anything is done.
        self.control.state().clone().apply(&change)?;
        let handle = self.handle(&before)?;
        let resized = handle.resize_layer(bytes / BLOCK_BYTES as u64, discard_data).await;
        resized.map_err(|e| not_resized(e, &name, bytes))?;
        if let Err(e) = self.control.apply(&change).await {
            // Known not to have happened: hosts keep the size that they know. Else the next start decides.
            let same = |v: &Volume| v.bytes == before.bytes;
            if self.control.refresh().await.is_ok() && self.find(&name).is_ok_and(|v| same(&v)) {
                _ = handle.resize_layer(before.bytes / BLOCK_BYTES as u64, false).await;
            }
            return Err(e.into());
        }
        let volume = self.find(&name)?;
        super::target::put(&self.node, &spec_of(&volume)).await.map_err(internal)?;
        self.publish_exports();
        Ok(Response::Volume(VolumeInfo::from(&volume)))
    }

    /// The store first: whatever is cut short, a start takes a snapshot that was never taken off the list, and makes a
    /// clone that is not there.
    async fn snapshot(&self, group: Vec<(String, String)>) -> Result<Response, ApiError> {
        let _turn = self.turn.acquire(1).await;
        let volumes: Vec<Volume> = group.iter().map(|g| self.find(&g.0)).collect::<Result<_, _>>()?;
        if volumes.is_empty() || volumes.len() > GROUP_MAX {
            return Err(ApiError::new(Code::Invalid, format!("1 to {GROUP_MAX} volumes have one snapshot")));
        }
        if volumes.iter().any(|v| v.shard != volumes[0].shard) {
            let why = "the volumes are on several shards: only those of one shard have one point in time";
            return Err(ApiError::new(Code::Invalid, why));
        }
        let handle = self.handle(&volumes[0])?;
        let wish = |name: &String| VolumeWish { name: name.clone(), bytes: 0, lba_bytes: 0 };
        let wishes = group.iter().map(|(of, name)| (of.clone(), wish(name).spec(peristyle_rt::fill_random)));
        self.control.apply(&Change::CreateSnapshots(wishes.collect())).await?;
        let snapshots: Vec<Volume> = group.iter().map(|g| self.find(&g.1)).collect::<Result<_, _>>()?;
        let layers = volumes.iter().zip(&snapshots).map(|(of, snapshot)| (of.layer, snapshot.layer));
        if let Err(e) = handle.snapshot(layers.collect()).await {
            for snapshot in &snapshots {
                self.forget(snapshot, e).await?;
            }
            return Err(internal(e));
        }
        Ok(Response::Volumes { volumes: snapshots.iter().map(VolumeInfo::from).collect() })
    }

    /// What was not made is taken off the store again. If it may have been made, the next start decides.
    async fn forget(&self, volume: &Volume, error: ShardError) -> Result<(), ApiError> {
        if error != ShardError::Stopped {
            self.control.apply(&Change::BeginDelete { name: volume.name.clone() }).await?;
            self.control.apply(&Change::FinishDelete { volume: volume.id }).await?;
        }
        Ok(())
    }

    async fn clone_snapshot(&self, snapshot: String, name: String) -> Result<Response, ApiError> {
        let _turn = self.turn.acquire(1).await;
        let of = self.find(&snapshot)?;
        let handle = self.handle(&of)?;
        let wish = VolumeWish { name: name.clone(), bytes: 0, lba_bytes: 0 };
        let spec = wish.spec(peristyle_rt::fill_random);
        self.control.apply(&Change::CloneSnapshot { snapshot, spec }).await?;
        let volume = self.find(&name)?;
        let handle = self.node.volume(&spec_of(&volume)).unwrap_or(handle);
        let spec = spec_of(&volume);
        if let Err(e) = handle.clone_of(of.layer).await {
            self.forget(&volume, e).await?;
            return Err(internal(e));
        }
        super::target::put(&self.node, &spec).await.map_err(internal)?;
        self.publish_exports();
        Ok(Response::Volume(self.info(&volume).await?))
    }

    async fn roll_back(&self, name: String) -> Result<Response, ApiError> {
        let _turn = self.turn.acquire(1).await;
        let snapshot = self.find(&name)?;
        let of = snapshot.snapshot_of.as_deref();
        let not_one = || ApiError::new(Code::Invalid, format!("`{name}` is no snapshot"));
        let volume = self.find(of.ok_or_else(not_one)?)?;
        let handle = self.handle(&volume)?;
        let resize = |bytes| Change::ResizeVolume { name: volume.name.clone(), bytes, shrink: true };
        // In between the store has the larger of both sizes: a start that finds that gives it to the layer, and never has
        // to cut data off.
        if volume.bytes < snapshot.bytes {
            self.control.apply(&resize(snapshot.bytes)).await?;
        }
        match handle.roll_back(snapshot.layer).await {
            Ok(()) => {}
            Err(e) => {
                // If it may have happened, the next start decides.
                if volume.bytes < snapshot.bytes && e != ShardError::Stopped {
                    self.control.apply(&resize(volume.bytes)).await?;
                }
                return Err(internal(e));
            }
        }
        if volume.bytes > snapshot.bytes {
            self.control.apply(&resize(snapshot.bytes)).await?;
        }
        if volume.bytes != snapshot.bytes {
            super::target::put(&self.node, &spec_of(&self.find(&volume.name)?)).await.map_err(internal)?;
            self.publish_exports();
        }
        Ok(Response::Done)
    }

    async fn export(&self, name: String, exported: bool) -> Result<Response, ApiError> {
        let _turn = self.turn.acquire(1).await;
        self.control.apply(&Change::ExportSnapshot { name: name.clone(), exported }).await?;
        let snapshot = self.find(&name)?;
        match exported {
            true => super::target::put(&self.node, &spec_of(&snapshot)).await.map_err(internal)?,
            false => super::target::remove(&self.node, snapshot.id.0).await,
        }
        self.publish_exports();
        Ok(Response::Volume(self.info(&snapshot).await?))
    }

    /// Others may change meanwhile: it takes as long as there is to copy.
    async fn flatten(&self, name: String) -> Result<Response, ApiError> {
        let volume = self.find(&name)?;
        if volume.snapshot_of.is_some() {
            return Err(ApiError::new(Code::Invalid, format!("`{name}` is a snapshot, which never changes")));
        }
        let handle = self.handle(&volume)?;
        handle.flatten().await.map_err(internal)?;
        Ok(Response::Volume(self.info(&volume).await?))
    }

    /// With what it takes.
    async fn info(&self, volume: &Volume) -> Result<VolumeInfo, ApiError> {
        // What another node serves only that node can tell.
        if self.member.as_ref().is_some_and(|member| member.elsewhere(volume.shard).is_some()) {
            return Ok(VolumeInfo::from(volume));
        }
        let usage = self.handle(volume)?.usage().await.map_err(internal)?;
        Ok(VolumeInfo { usage: usage.map(usage_info), ..VolumeInfo::from(volume) })
    }

    async fn snapshots(&self) -> Result<Response, ApiError> {
        let snapshots: Vec<Volume> =
            self.control.state().volumes.values().filter(|v| v.snapshot_of.is_some()).cloned().collect();
        let mut volumes = Vec::with_capacity(snapshots.len());
        for snapshot in &snapshots {
            volumes.push(self.info(snapshot).await?);
        }
        Ok(Response::Volumes { volumes })
    }

    async fn delete(&self, name: String, is_snapshot: bool) -> Result<Response, ApiError> {
        let _turn = self.turn.acquire(1).await;
        let volume = self.find(&name)?;
        if volume.snapshot_of.is_some() != is_snapshot {
            let (is, command) = if is_snapshot { ("a volume", "volume") } else { ("a snapshot", "snapshot") };
            let why = format!("`{name}` is {is}: `peristyle {command} delete` deletes it");
            return Err(ApiError::new(Code::Invalid, why));
        }
        self.control.apply(&Change::BeginDelete { name }).await?;
        // Hosts lose it before its blocks go.
        super::target::remove(&self.node, volume.id.0).await;
        self.publish_exports();
        if self.member.as_ref().is_some_and(|member| member.elsewhere(volume.shard).is_some()) {
            return Ok(Response::Done); // the node that serves it does the rest
        }
        if let Some(handle) = self.node.volume(&spec_of(&volume)) {
            handle.drop_layer().await.map_err(internal)?;
        }
        self.control.apply(&Change::FinishDelete { volume: volume.id }).await?;
        Ok(Response::Done)
    }

    fn publish_exports(&self) {
        let specs: Vec<_> = self.control.state().active_volumes().map(spec_of).collect();
        self.node.set_exports(specs);
    }

    pub(super) fn device_infos(&self) -> Vec<DeviceInfo> {
        let devices = self.node.devices().all();
        let state = self.control.state();
        devices
            .map(|d| {
                let (slots_total, slots_used) = d.usage();
                let server = self.node.columns().server(d.id);
                let info = server.as_ref().map(|s| s.device().info().clone());
                let known = state.devices.get(&d.id);
                DeviceInfo {
                    uuid: d.id.to_string(),
                    node: known.and_then(|k| k.node).map(|node| node.0),
                    // Another node's is known from the store.
                    path: known.filter(|_| d.is_peers()).map_or_else(|| d.path.clone(), |k| k.path.clone()),
                    domain: d.domain().0,
                    state: state_of(d).into(),
                    slots_total,
                    slots_used,
                    bytes: info.as_ref().map_or(slots_total as u64 * COLUMN_BYTES, |i| i.bytes),
                    write_cache: match info {
                        Some(i) if i.volatile_cache => "volatile",
                        Some(_) => "protected",
                        None => "",
                    }
                    .into(),
                }
            })
            .collect()
    }

    /// Devices that were not given up.
    fn serving(&self) -> impl Iterator<Item = &SharedDevice> {
        self.node.devices().all().filter(|d| d.wish().serves())
    }

    async fn pool(&self) -> PoolInfo {
        let all = self.node.all_stats().await;
        let mut space = SpaceFigures::default();
        all.iter().flat_map(|reactor| &reactor.shards).for_each(|(_, shard)| space.add(&shard.space));
        let usage = self.serving().map(|d| d.usage());
        let (slots_total, slots_used) =
            usage.fold((0, 0), |sum, (total, used)| (sum.0 + u64::from(total), sum.1 + u64::from(used)));
        let by_phase = PHASES.iter().zip(space.extents);
        let extents = by_phase.flat_map(|(phase, kinds)| {
            KINDS.iter().zip(kinds).map(move |(kind, extents)| (phase, kind, extents))
        });
        let count = |(phase, kind, extents): (&&str, &&str, u64)| ExtentCount {
            phase: phase.to_string(),
            kind: kind.to_string(),
            extents,
        };
        let repair = self.repair_info().await;
        let state = self.control.state();
        let pool = state.pools.values().next();
        let scheme = pool.map_or(self.plan.scheme, |p| p.scheme);
        PoolInfo {
            name: pool.map_or(self.plan.pool_name.clone(), |p| p.name.clone()),
            scheme: scheme.to_string(),
            slots_total,
            slots_used,
            slots_free: slots_total.saturating_sub(slots_used),
            capacity_bytes: slots_total * COLUMN_BYTES,
            used_bytes: slots_used * COLUMN_BYTES,
            live_blocks: space.live_blocks,
            map_blocks: space.map_blocks,
            dead_blocks: space.dead_blocks,
            extents: extents.filter(|e| e.2 > 0).map(count).collect(),
            waiting_extents: space.waiting_extents,
            extents_to_convert: space.foreign_extents,
            freed_extents: space.freed_extents,
            discarded_bytes: all.iter().flat_map(|r| &r.devices).map(|d| d.discarded_bytes).sum(),
            repair,
            collection: super::stats::collection(&all, scheme),
        }
    }

    /// By UUID, path, name (the end of the path), or number in `device list`.
    pub(super) fn device(&self, text: &str) -> Result<DeviceId, ApiError> {
        let devices: Vec<&SharedDevice> = self.node.devices().all().collect();
        let by_number = text.parse::<usize>().ok().and_then(|n| devices.get(n).copied());
        let exact = || devices.iter().copied().find(|d| d.path == text || d.id.to_string() == text);
        let named = |d: &&&SharedDevice| Path::new(&d.path).file_name().is_some_and(|name| name == text);
        // A name that two devices share (of different folders) names neither.
        let by_name =
            || devices.iter().find(named).copied().filter(|_| devices.iter().filter(named).count() == 1);
        let found = by_number.or_else(exact).or_else(by_name);
        found.map(|d| d.id).ok_or_else(|| ApiError::new(Code::NotFound, format!("no device `{text}`")))
    }

    async fn inject(&self, device: &str, fault: FaultKind, duration_ms: u64) -> Result<Response, ApiError> {
        if !self.plan.development {
            return Err(ApiError::new(Code::NotAllowed, NO_FAULTS));
        }
        let device = self.device(device)?;
        let until = peristyle_rt::now() + Duration::from_millis(duration_ms);
        let fault = match fault {
            FaultKind::Fail => Fault::FailUntil(until),
            FaultKind::Stall => Fault::StallUntil(until),
        };
        match self.node.inject(device, fault).await {
            true => Ok(Response::Done),
            false => Err(ApiError::new(Code::NotFound, "the device is not open")),
        }
    }

    async fn status(&self) -> Status {
        let shards = self.shards().await;
        let mut views = Vec::new();
        views.extend(self.serving().map(|d| d.view(AllocClass::User)));
        let state = self.control.state();
        let pool = state.pools.values().next();
        let (scheme, too_few): (Scheme, _) =
            pool.map_or((self.plan.scheme, self.plan.too_few), |p| (p.scheme, p.too_few_domains));
        let view = PoolView { id: peristyle_base::PoolId(0), scheme, too_few, devices: &views };
        let (effective, protection) = match view.effective() {
            Ok(e) => (
                e.scheme.to_string(),
                match e.protection {
                    Protection::Full => "full",
                    Protection::FewerData => "fewer-data",
                    Protection::Reduced => "reduced",
                },
            ),
            Err(_) => ("none".into(), "none"),
        };
        let slots = |f: fn((u32, u32)) -> u32| self.serving().map(|d| f(d.usage()) as u64).sum::<u64>();
        Status {
            version: env!("CARGO_PKG_VERSION").into(),
            pid: std::process::id(),
            uptime_ms: peristyle_rt::now().since(self.started).as_millis() as u64,
            nqn: state.cluster.nqn.clone(),
            cluster: state.cluster.uuid.to_string(),
            generation: state.cluster.generation,
            scheme: scheme.to_string(),
            effective_scheme: effective,
            protection: protection.into(),
            listen: self.fronts.listen.iter().map(|a| a.to_string()).collect(),
            nbd: self.fronts.nbd.iter().map(|a| a.to_string()).collect(),
            reactors: self.node.reactors() as u32,
            shards,
            connections: self.node.reactor_stats().front.connections as u32,
            devices: views.len() as u32,
            devices_healthy: views.iter().filter(|v| v.healthy && !v.avoid).count() as u32,
            capacity_bytes: slots(|u| u.0) * COLUMN_BYTES,
            used_bytes: slots(|u| u.1) * COLUMN_BYTES,
        }
    }

    /// Hosts, and to which nodes they are connected.
    async fn hosts(&self) -> Result<HostsInfo, ApiError> {
        if let Some(member) = &self.member {
            return Ok(member.hosts().await.map_err(ControlError::from)?);
        }
        let (node, here) = (self.node.config().node, peristyle_member::hosts_here(self.node.hosts_seen()));
        let portals = self.fronts.listen.iter().map(|a| a.to_string()).collect();
        Ok(HostsInfo::of(vec![PathNode { node: node.0, alive: true, portals }], &[(node, here)]))
    }

    /// Shards that this node serves, or is to serve.
    async fn shards(&self) -> Vec<ShardInfo> {
        let wanted: Vec<ShardId> = match &self.member {
            Some(member) => self.control.state().owned_by(member.me).collect(),
            None => self.node.config().shards.iter().map(|s| s.0).collect(),
        };
        let phases = self.node.all_phases().await;
        let served = |phase: &ShardPhase| matches!(phase, ShardPhase::Serving(_) | ShardPhase::Recovering(_));
        let shown = phases.into_iter().filter(|(id, _, phase)| wanted.contains(id) || served(phase));
        let info = |(id, reactor, phase): (ShardId, ReactorId, ShardPhase)| ShardInfo {
            id: id.0,
            reactor: reactor.0.into(),
            epoch: self.node.shard(id).map_or(0, |s| s.epoch().0),
            state: match phase {
                ShardPhase::Recovering(Some(e)) => e.to_string(),
                ShardPhase::Recovering(None) => "recovering".into(),
                ShardPhase::Stopped(_) => "stopped".into(),
                ShardPhase::Serving(_) => "serving".into(),
            },
        };
        shown.map(info).collect()
    }
}

impl Admin {
    /// What only a node of several can be asked.
    pub(super) fn in_cluster(&self) -> Result<&Rc<Member<AnyStore>>, ApiError> {
        let alone = || ApiError::new(Code::NotAllowed, "this node is alone: it is in no cluster");
        self.member.as_ref().ok_or_else(alone)
    }
}

impl AdminHandler for Admin {
    async fn handle(&self, request: Request) -> Result<Response, ApiError> {
        Ok(match request {
            Request::Status => Response::Status(self.status().await),
            Request::ClusterShow => Response::Cluster(self.in_cluster()?.info()),
            Request::HostShow => Response::Hosts(self.hosts().await?),
            Request::NodeDrain { node, draining } => {
                let _turn = self.turn.acquire(1).await;
                return self.drain_node(node, draining).await;
            }
            Request::NodeRemove { node } => {
                let _turn = self.turn.acquire(1).await;
                return self.remove_node(node).await;
            }
            Request::NodeMaintain { node, seconds, force } => {
                let _turn = self.turn.acquire(1).await;
                return self.maintain_node(node, seconds, force).await;
            }
            Request::VolumeList => Response::Volumes { volumes: self.control.state().volume_infos() },
            Request::VolumeShow { name } => {
                let volume = self.find(&name)?;
                Response::Volume(self.info(&volume).await?)
            }
            Request::VolumeCreate { name, bytes, lba_bytes } => {
                return self.create(name, bytes, lba_bytes).await;
            }
            Request::VolumeResize { name, bytes, shrink, discard_data } => {
                return self.resize(name, bytes, shrink, discard_data).await;
            }
            Request::VolumeDelete { name } => return self.delete(name, false).await,
            Request::VolumeClone { snapshot, name } => return self.clone_snapshot(snapshot, name).await,
            Request::VolumeFlatten { name } => return self.flatten(name).await,
            Request::SnapshotList => return self.snapshots().await,
            Request::SnapshotCreate { group } => return self.snapshot(group).await,
            Request::SnapshotDelete { name } => return self.delete(name, true).await,
            Request::SnapshotRollback { name } => return self.roll_back(name).await,
            Request::SnapshotExport { name, exported } => return self.export(name, exported).await,
            Request::PoolShow => Response::Pool(self.pool().await),
            Request::PoolBalance => Response::Balance(self.balance().await),
            Request::PoolPlan { add, remove_devices, remove_nodes } => {
                return self.plan_pool(&add, &remove_devices, &remove_nodes).map(Response::Plan);
            }
            Request::Hear { node, heard } => match self.node.set_heard(peristyle_base::NodeId(node), heard) {
                true => Response::Done,
                false => return Err(ApiError::new(Code::NotAllowed, NO_FAULTS)),
            },
            Request::ExtentWhy { extent, shard } => return self.extent_why(extent, shard).await,
            Request::PoolSet { scheme, force } => return self.set_scheme(&scheme, force).await,
            Request::PoolScrub => {
                self.node.scrub_now().await;
                Response::Done
            }
            Request::DeviceAdd { path, domain, format } => {
                let _turn = self.turn.acquire(1).await;
                self.add_device(path, domain, format).await?;
                Response::Devices { devices: self.device_infos() }
            }
            Request::DeviceFail { device, force } => {
                let _turn = self.turn.acquire(1).await;
                return self.fail_device(&device, force).await;
            }
            Request::DeviceRemove { device } => {
                let _turn = self.turn.acquire(1).await;
                return self.remove_device(&device).await;
            }
            Request::DeviceReplace { device, path, format } => {
                let _turn = self.turn.acquire(1).await;
                return self.replace_device(&device, path, format).await;
            }
            Request::DeviceKeep { device } => {
                let _turn = self.turn.acquire(1).await;
                return self.keep_device(&device).await;
            }
            Request::DeviceList => Response::Devices { devices: self.device_infos() },
            Request::Stats => {
                let names = self.control.state().volumes.values().map(|v| (v.id.0, v.name.clone())).collect();
                let all = self.node.all_stats().await;
                let root = stats::tree(&all, &names, self.node.devices());
                let uptime_ms = peristyle_rt::now().since(self.started).as_millis() as u64;
                Response::Stats(Stats { uptime_ms, root })
            }
            Request::Profile { page } => {
                let all = self.node.all_stats().await;
                let now = peristyle_rt::now();
                Response::Profile(ProfilePage {
                    at_ns: now.0,
                    uptime_ms: now.since(self.started).as_millis() as u64,
                    ..stats::profile(&all, self.node.devices(), page)
                })
            }
            Request::Inject { device, fault, duration_ms } => {
                return self.inject(&device, fault, duration_ms).await;
            }
            Request::Shutdown => {
                peristyle_rt::request_shutdown();
                Response::Done
            }
        })
    }
}
