//! Before the reactors start: the devices' labels, the control store, and what both make the node of.

use super::busy::when_free;
use super::{Plan, PlannedDevice, member};
use crate::failure::Failure;
use peristyle_base::{MIB, NodeId, Secret, Uuid};
use peristyle_column::{Discard, FormatError, FormatOptions, LabelError, OpenError, inspect};
use peristyle_control::desired::{Device as KnownDevice, DeviceState, Shard, State};
use peristyle_control::setup::{FoundDevice, Setup, VolumeWish, open_or_create};
use peristyle_control::{AnyStore, Control, EmbeddedStore};
use peristyle_member::{peer_config, peer_devices, wish_of};
use peristyle_node::{DeviceConfig, NodeConfig, PeersConfig};
use peristyle_rt::{Device, DeviceSpec, IoError, ReactorId, RuntimeConfig};
use peristyle_shard::{Pace, ShardConfig};
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::Path;

/// Bytes of log after which a shard of a cluster takes a checkpoint, at most.
const MEMBERS_LOG: u64 = 64 * MIB;

/// The store, opened, and the node that it describes.
pub struct Opened {
    pub store: AnyStore,
    pub node: NodeConfig,
    /// The subsystem's name.
    pub nqn: String,
    /// Devices that were formatted now, and other things worth a line.
    pub notes: Vec<String>,
}

impl Opened {
    /// Nothing that was acknowledged is lost without it; the next start is quicker.
    pub fn close(self) -> Result<(), Failure> {
        match self.store {
            AnyStore::Embedded(store) => store.close().map_err(|e| Failure::failed(e.to_string())),
            AnyStore::Etcd(_) | AnyStore::Served(_) => Ok(()),
        }
    }
}

/// Removes the state of a store whose devices were memory: what it describes is gone.
pub fn forget(state_file: &Path) -> Result<(), Failure> {
    match std::fs::remove_file(state_file) {
        Err(e) if e.kind() != ErrorKind::NotFound => {
            Err(Failure::failed(format!("{}: {e}", state_file.display())))
        }
        _ => Ok(()),
    }
}

pub fn spec_of(device: &PlannedDevice) -> DeviceSpec {
    if let Some(bytes) = device.memory {
        return DeviceSpec::Memory { bytes };
    }
    DeviceSpec::Path {
        path: device.path.clone(),
        create_bytes: device.create_bytes,
        write_cache: device.write_cache,
    }
}

/// Opens or creates everything that `plan` names.
pub fn open(plan: &Plan) -> Result<Opened, Failure> {
    if let Some(cluster) = &plan.cluster {
        return member::open(plan, cluster);
    }
    let (file, name) = (plan.state_file.clone(), plan.state_file.display().to_string());
    let store = peristyle_rt::block_on(RuntimeConfig::small(), async move {
        let is_busy = |e: &peristyle_control::OpenError| matches!(e, peristyle_control::OpenError::InUse(_));
        when_free(&name, &say, is_busy, || std::future::ready(EmbeddedStore::open(&file))).await
    });
    let store = store.map_err(|e| Failure::failed(e.to_string()))?;
    let mut notes = Vec::new();
    if store.was_repaired() {
        notes.push(format!("{} was damaged and has been repaired", plan.state_file.display()));
    }
    let (plan, shared) = (plan.clone(), AnyStore::Embedded(store.clone()));
    let node =
        peristyle_rt::block_on(RuntimeConfig::small(), async move { describe(&plan, shared, notes).await });
    node.map(|(node, nqn, notes)| Opened { store: AnyStore::Embedded(store), node, nqn, notes })
}

async fn describe(
    plan: &Plan,
    store: AnyStore,
    mut notes: Vec<String>,
) -> Result<(NodeConfig, String, Vec<String>), Failure> {
    let control = Control::open(store.clone()).await.map_err(Failure::from)?;
    let known = control.as_ref().map(|c| c.state().cluster.uuid);
    let (cluster, devices) = find_devices(plan, known, &mut notes).await?;
    let setup = Setup {
        nqn: plan.nqn.clone(),
        shards: plan.shards,
        pool_name: plan.pool_name.clone(),
        scheme: plan.scheme,
        too_few_domains: plan.too_few,
        devices,
        volumes: plan
            .volumes
            .iter()
            .map(|(name, bytes)| VolumeWish { name: name.clone(), bytes: *bytes, lba_bytes: plan.lba_bytes })
            .collect(),
        volumes_only_if_new: plan.default_volumes,
    };
    let control =
        open_or_create(store, &setup, cluster, peristyle_rt::fill_random).await.map_err(Failure::from)?;
    let node = node_config(plan, &control.state(), None);
    let nqn = control.state().cluster.nqn.clone();
    Ok((node, nqn, notes))
}

/// The plan's devices by their labels, and the cluster that they belong to; blank ones are formatted for it, if they may be.
pub(super) async fn find_devices(
    plan: &Plan,
    known: Option<Uuid>,
    notes: &mut Vec<String>,
) -> Result<(Uuid, Vec<FoundDevice>), Failure> {
    let mut found = Vec::new();
    let mut cluster = known;
    // Labelled devices first: they say which cluster a new store belongs to.
    let mut blank = Vec::new();
    for device in &plan.devices {
        if device.memory.is_some() {
            // Its reactor makes and formats it.
            found.push(found_device(device, random_uuid()));
            continue;
        }
        match label(device).await {
            Ok(Some((of, id))) => {
                let mine = *cluster.get_or_insert(of);
                if of != mine {
                    let path = device.path.display();
                    return Err(Failure::failed(format!(
                        "{path} belongs to cluster {of}, and this store is {mine}: give it another device, or format it"
                    )));
                }
                found.push(found_device(device, id));
            }
            Ok(None) => blank.push(device),
            Err(e) if known.is_some() => {
                notes.push(format!("{}: {e}; the store goes on without it", device.path.display()))
            }
            Err(e) => return Err(Failure::failed(format!("{}: {e}", device.path.display()))),
        }
    }
    let cluster = cluster.unwrap_or_else(random_uuid);
    for device in blank {
        let path = device.path.display();
        if !plan.format_blank {
            return Err(Failure::failed(format!(
                "{path} is not formatted: run `peristyle device format {path}` first"
            )));
        }
        let id = format(device, cluster, false).await.map_err(|e| Failure::failed(format!("{path}: {e}")))?;
        notes.push(format!("formatted {path} as {id}"));
        found.push(found_device(device, id));
    }
    Ok((cluster, found))
}

fn found_device(device: &PlannedDevice, id: Uuid) -> FoundDevice {
    FoundDevice { id, path: device.path.display().to_string(), domain: device.domain }
}

pub(super) fn say(note: String) {
    eprintln!("peristyle: {note}");
}

/// For a new cluster, or all nodes of one.
pub fn random_secret() -> Secret {
    let mut bytes = [0; 32];
    peristyle_rt::fill_random(&mut bytes);
    Secret(bytes)
}

pub(super) fn random_uuid() -> Uuid {
    let mut bytes = [0; 16];
    peristyle_rt::fill_random(&mut bytes);
    Uuid::from_random(bytes)
}

/// Cluster and identity of a device; `None` when it is blank.
pub(super) async fn label(device: &PlannedDevice) -> Result<Option<(Uuid, Uuid)>, String> {
    let (spec, path) = (spec_of(device), device.path.display().to_string());
    let is_busy = |e: &IoError| *e == IoError::Busy;
    let device = when_free(&path, &say, is_busy, || Device::open(&spec)).await.map_err(|e| e.to_string())?;
    match inspect(&device).await.label {
        Ok(label) => Ok(Some((label.cluster, label.device))),
        Err(OpenError::NoLabel([LabelError::Blank, LabelError::Blank])) => Ok(None),
        Err(e) => Err(e.to_string()),
    }
}

pub(super) async fn format(device: &PlannedDevice, cluster: Uuid, force: bool) -> Result<Uuid, String> {
    let device = Device::open(&spec_of(device)).await.map_err(|e| e.to_string())?;
    let options = FormatOptions { cluster, device: random_uuid(), force };
    match peristyle_column::format(&device, options).await {
        Ok(label) => Ok(label.device),
        Err(FormatError::NotBlank { .. }) => {
            Err("it holds something that is not ours: format it with `peristyle device format --force`"
                .into())
        }
        Err(e) => Err(e.to_string()),
    }
}

/// The node that the desired state and the plan describe. Devices and shards are spread over the reactors. `member`: which node of a
/// cluster it is; shards are given to it while it runs.
pub(super) fn node_config(plan: &Plan, state: &State, member: Option<(NodeId, SocketAddr)>) -> NodeConfig {
    let me = member.map(|m| m.0);
    let mine = state.devices.values().filter(|d| d.node == me && d.state != DeviceState::Removed);
    let devices = mine.enumerate().map(|(i, d)| device_config(plan, state, d, i)).collect();
    let pool = state.pools.values().next();
    let home = |s: &Shard| (s.id, ReactorId((s.reactor as usize % plan.reactors) as u16));
    let shards: Vec<_> = state.shards.values().map(home).collect();
    let mut shard = ShardConfig::new(pool.map_or(plan.scheme, |p| p.scheme));
    shard.too_few = pool.map_or(plan.too_few, |p| p.too_few_domains);
    shard.detect_zeroes = plan.detect_zeroes;
    shard.checkpoint_log_bytes = match me {
        None => plan.checkpoint_log,
        // Hosts wait while it is read by whoever takes the shard over.
        Some(_) => plan.checkpoint_log.min(MEMBERS_LOG),
    };
    shard.shards = shards.len().max(1);
    shard.map_cache_bytes = plan.map_cache / shard.shards as u64;
    shard.background = Pace::new(plan.background_bytes_s);
    shard.scrub_period = plan.scrub_period;
    let (shards, peer_shards) = if me.is_some() { (Vec::new(), shards) } else { (shards, Vec::new()) };
    let peers = state.nodes.values().filter(|n| Some(n.id) != me).map(peer_config).collect();
    NodeConfig {
        node: me.unwrap_or_default(),
        cluster: state.cluster.uuid,
        devices,
        peers: PeersConfig { listen: member.map(|m| m.1), peers, ..PeersConfig::default() },
        peer_devices: me.map_or(Vec::new(), |me| peer_devices(state, me).collect()),
        shards,
        peer_shards,
        shard,
        rebuild_after: plan.rebuild_after,
        development: plan.development,
    }
}

fn device_config(plan: &Plan, state: &State, d: &KnownDevice, number: usize) -> DeviceConfig {
    let planned = plan.devices.iter().find(|p| p.path.display().to_string() == d.path);
    let spec = planned.map(spec_of).unwrap_or_else(|| DeviceSpec::Path {
        path: d.path.clone().into(),
        create_bytes: None,
        write_cache: Default::default(),
    });
    // A known device that is gone must not come back as a new, blank file.
    let spec = match spec {
        DeviceSpec::Path { path, write_cache, .. } => {
            DeviceSpec::Path { path, create_bytes: None, write_cache }
        }
        memory => memory,
    };
    DeviceConfig {
        id: d.id,
        spec,
        discard: planned.map_or(Discard::Auto, |p| p.discard),
        domain: state.domain_of(d),
        home: ReactorId((number % plan.reactors) as u16),
        wish: wish_of(state, d),
    }
}
