//! Changes of the desired state, as a plain function from one state to the next.

use super::rules::*;
use super::{Device, DeviceState, Node, NodeState, Pool, Shard, State, Volume, VolumeState};
use peristyle_base::{DeviceId, NodeId, PoolId, Scheme, ShardId, Uuid, VolumeId};
use peristyle_cluster::TooFewPolicy;

/// What an operator can ask for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Change {
    /// A node is new, or starts again, perhaps with other addresses and labels. It votes from now on.
    JoinNode(Node),
    SetNodeState {
        node: NodeId,
        state: NodeState,
    },
    /// It is to be emptied, or not any more: that ends its maintenance, too.
    DrainNode {
        node: NodeId,
        draining: bool,
    },
    /// It leaves, and nobody grants it anything. Its devices have left; so do those that `emptied` names, on which nothing is.
    RemoveNode {
        node: NodeId,
        emptied: Vec<DeviceId>,
    },
    /// All others have heard of the nodes that have left: majorities are those of the others.
    ForgetNodes,
    /// It may be away for so many seconds, and nothing is rebuilt for it; or it is as others again.
    MaintainNode {
        node: NodeId,
        seconds: Option<u32>,
    },
    /// So many seconds have passed for the nodes that are in maintenance.
    CountMaintenance {
        seconds: u32,
    },
    /// Shards, and the nodes that are to own them.
    SetOwners(Vec<(ShardId, NodeId)>),
    CreatePool(Pool),
    /// New extents follow at once, old ones are converted by collection.
    SetPool {
        pool: PoolId,
        scheme: Scheme,
        too_few_domains: TooFewPolicy,
    },
    AddDevice(Device),
    /// It was found at another path or node, or belongs to another failure domain.
    SetDevice {
        device: DeviceId,
        node: Option<NodeId>,
        path: String,
        domain: u32,
    },
    /// It is to leave, is given up, or is gone. None of that is taken back, but that it is to leave.
    SetDeviceState {
        device: DeviceId,
        state: DeviceState,
    },
    /// Shards are numbered on from those that exist; reactors take them in turn.
    AddShards {
        pool: PoolId,
        count: usize,
    },
    CreateVolume(VolumeSpec),
    /// Snapshots of volumes of one shard, each with its volume's name; their layers are made next.
    CreateSnapshots(Vec<(String, VolumeSpec)>),
    /// A volume on a snapshot; its layer is made next.
    CloneSnapshot {
        snapshot: String,
        spec: VolumeSpec,
    },
    /// Whether hosts see a snapshot.
    ExportSnapshot {
        name: String,
        exported: bool,
    },
    /// Its layer has that size already.
    ResizeVolume {
        name: String,
        bytes: u64,
        /// It may become smaller.
        shrink: bool,
    },
    /// From now on no host sees it; its name is free again when the deletion is finished.
    BeginDelete {
        name: String,
    },
    /// The shard has forgotten it.
    FinishDelete {
        volume: VolumeId,
    },
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct VolumeSpec {
    pub name: String,
    pub bytes: u64,
    /// 4096 or 512.
    pub lba_bytes: u32,
    /// Random, chosen by the caller: nothing here draws numbers.
    pub uuid: Uuid,
    pub nguid: Uuid,
}

impl State {
    /// Makes one change and raises the generation; on an error nothing is changed.
    pub fn apply(&mut self, change: &Change) -> Result<(), ControlError> {
        match change {
            Change::JoinNode(node) => self.join_node(node)?,
            Change::SetNodeState { node, state } => self.set_node_state(*node, *state)?,
            Change::DrainNode { node, draining } => self.drain_node(*node, *draining)?,
            Change::RemoveNode { node, emptied } => self.remove_node(*node, emptied)?,
            Change::ForgetNodes => self.forget_nodes(),
            Change::MaintainNode { node, seconds } => self.maintain_node(*node, *seconds)?,
            Change::CountMaintenance { seconds } => self.count_maintenance(*seconds),
            Change::SetOwners(owners) => self.set_owners(owners)?,
            Change::CreatePool(pool) => self.create_pool(pool)?,
            Change::SetPool { pool, scheme, too_few_domains } => {
                let there = self.pools.get_mut(pool).ok_or(ControlError::NoPool)?;
                (there.scheme, there.too_few_domains) = (*scheme, *too_few_domains);
            }
            Change::AddDevice(device) => self.add_device(device)?,
            Change::SetDevice { device, node, path, domain } => {
                let missing = ControlError::NotFound { kind: "device", name: device.to_string() };
                let there = self.devices.get_mut(device).ok_or(missing)?;
                (there.node, there.path, there.domain) = (*node, path.clone(), *domain);
            }
            Change::SetDeviceState { device, state } => self.set_device_state(*device, *state)?,
            Change::AddShards { pool, count } => self.add_shards(*pool, *count)?,
            Change::CreateVolume(spec) => self.create_volume(spec)?,
            Change::CreateSnapshots(group) => {
                // All of them or none.
                let mut after = self.clone();
                group.iter().try_for_each(|(volume, spec)| after.create_snapshot(volume, spec))?;
                *self = after;
            }
            Change::CloneSnapshot { snapshot, spec } => self.clone_snapshot(snapshot, spec)?,
            Change::ExportSnapshot { name, exported } => {
                self.snapshot_mut(name)?.state =
                    if *exported { VolumeState::Active } else { VolumeState::Kept };
            }
            Change::ResizeVolume { name, bytes, shrink } => self.resize_volume(name, *bytes, *shrink)?,
            Change::BeginDelete { name } => self.begin_delete(name)?,
            Change::FinishDelete { volume } => self.finish_delete(*volume)?,
        }
        self.cluster.generation += 1;
        Ok(())
    }

    fn create_pool(&mut self, pool: &Pool) -> Result<(), ControlError> {
        check_name(&pool.name)?;
        if self.pools.contains_key(&pool.id) || self.pools.values().any(|p| p.name == pool.name) {
            return Err(ControlError::Exists { kind: "pool", name: pool.name.clone() });
        }
        if self.pools.len() >= POOLS_MAX {
            return Err(ControlError::TooMany { kind: "pool", max: POOLS_MAX });
        }
        self.pools.insert(pool.id, pool.clone());
        Ok(())
    }

    fn add_device(&mut self, device: &Device) -> Result<(), ControlError> {
        if !self.pools.contains_key(&device.pool) {
            return Err(ControlError::NoPool);
        }
        if device.id.is_nil() || self.devices.contains_key(&device.id) {
            return Err(ControlError::IdentityTaken(device.id.to_string()));
        }
        if self.devices.len() >= DEVICES_MAX {
            return Err(ControlError::TooMany { kind: "device", max: DEVICES_MAX });
        }
        self.devices.insert(device.id, device.clone());
        Ok(())
    }

    fn set_device_state(&mut self, device: DeviceId, state: DeviceState) -> Result<(), ControlError> {
        let missing = ControlError::NotFound { kind: "device", name: device.to_string() };
        let there = self.devices.get_mut(&device).ok_or(missing)?;
        let gone = |state| matches!(state, DeviceState::Failed | DeviceState::Removed);
        // What it has may be old by now: it comes back as a new device or not at all.
        if gone(there.state) && !gone(state) {
            return Err(ControlError::DeviceGone(device.to_string()));
        }
        there.state = state;
        Ok(())
    }

    fn add_shards(&mut self, pool: PoolId, count: usize) -> Result<(), ControlError> {
        if !self.pools.contains_key(&pool) {
            return Err(ControlError::NoPool);
        }
        if self.shards.len() + count > SHARDS_MAX {
            return Err(ControlError::TooMany { kind: "shard", max: SHARDS_MAX });
        }
        let first = self.shards.keys().next_back().map_or(0, |last| last.0 + 1);
        for id in first..first + count as u32 {
            self.shards.insert(ShardId(id), Shard { id: ShardId(id), pool, reactor: id, owner: None });
        }
        Ok(())
    }

    fn create_volume(&mut self, spec: &VolumeSpec) -> Result<(), ControlError> {
        let shard = self.emptiest_shard();
        self.insert_volume(spec, shard, |_| ())
    }

    /// On the shard of its volume, and as large and hidden.
    fn create_snapshot(&mut self, volume: &str, spec: &VolumeSpec) -> Result<(), ControlError> {
        let of = self.active_mut(volume)?.clone();
        if of.snapshot_of.is_some() {
            return Err(ControlError::IsSnapshot(volume.into()));
        }
        let spec = VolumeSpec { bytes: of.bytes, lba_bytes: of.lba_bytes, ..spec.clone() };
        self.insert_volume(&spec, Some(of.shard), |v| {
            (v.state, v.snapshot_of) = (VolumeState::Kept, Some(volume.into()));
        })
    }

    fn clone_snapshot(&mut self, snapshot: &str, spec: &VolumeSpec) -> Result<(), ControlError> {
        let of = self.snapshot_mut(snapshot)?.clone();
        let spec = VolumeSpec { bytes: of.bytes, lba_bytes: of.lba_bytes, ..spec.clone() };
        self.insert_volume(&spec, Some(of.shard), |v| v.cloned_from = Some(of.layer.0))
    }

    fn snapshot_mut(&mut self, name: &str) -> Result<&mut Volume, ControlError> {
        match self.active_mut(name)? {
            v if v.snapshot_of.is_none() => Err(ControlError::NotSnapshot(name.into())),
            v => Ok(v),
        }
    }

    fn insert_volume(
        &mut self,
        spec: &VolumeSpec,
        shard: Option<ShardId>,
        also: impl FnOnce(&mut Volume),
    ) -> Result<(), ControlError> {
        check_name(&spec.name)?;
        check_lba(spec.lba_bytes)?;
        check_volume_bytes(spec.bytes)?;
        match self.volume(&spec.name) {
            Some(v) if v.state == VolumeState::Deleting => {
                return Err(ControlError::Deleting(v.name.clone()));
            }
            Some(v) => return Err(ControlError::Exists { kind: "volume", name: v.name.clone() }),
            None => {}
        }
        for identity in [spec.uuid, spec.nguid] {
            let taken = self.volumes.values().any(|v| v.uuid == identity || v.nguid == identity);
            if taken || identity.is_nil() || spec.uuid == spec.nguid {
                return Err(ControlError::IdentityTaken(identity.to_string()));
            }
        }
        if self.volumes.len() >= VOLUMES_MAX {
            return Err(ControlError::TooMany { kind: "volume", max: VOLUMES_MAX });
        }
        let shard = shard.ok_or(ControlError::NoShards)?;
        let (id, layer) = (self.free_volume_id(), self.cluster.next_layer);
        // The rest is for the shard's own use: layers under snapshots, map blocks and the like.
        if layer.0 >= LAYERS_END {
            return Err(ControlError::LayersUsedUp);
        }
        self.cluster.next_volume = VolumeId(id.0 % VOLUMES_MAX as u32 + 1);
        self.cluster.next_layer = layer.next();
        let VolumeSpec { name, bytes, lba_bytes, uuid, nguid } = spec.clone();
        let state = VolumeState::Active;
        let (snapshot_of, cloned_from) = (None, None);
        let mut volume =
            Volume { id, name, uuid, nguid, bytes, lba_bytes, shard, layer, state, snapshot_of, cloned_from };
        also(&mut volume);
        self.volumes.insert(id, volume);
        Ok(())
    }

    /// The first unused id from `next_volume` on, round 1..=VOLUMES_MAX. There is one: the count was checked.
    fn free_volume_id(&self) -> VolumeId {
        let start = self.cluster.next_volume.0.clamp(1, VOLUMES_MAX as u32);
        let turn = (start..=VOLUMES_MAX as u32).chain(1..start).map(VolumeId);
        turn.into_iter().find(|id| !self.volumes.contains_key(id)).expect("fewer than VOLUMES_MAX volumes")
    }

    /// The shard with the fewest volume bytes; of equals the first.
    fn emptiest_shard(&self) -> Option<ShardId> {
        let bytes = |shard| self.volumes.values().filter(|v| v.shard == shard).map(|v| v.bytes).sum::<u64>();
        self.shards.keys().copied().min_by_key(|&shard| (bytes(shard), shard))
    }

    fn active_mut(&mut self, name: &str) -> Result<&mut Volume, ControlError> {
        let missing = ControlError::NotFound { kind: "volume", name: name.into() };
        match self.volumes.values_mut().find(|v| v.name == name).ok_or(missing)? {
            v if v.state == VolumeState::Deleting => Err(ControlError::Deleting(name.into())),
            v => Ok(v),
        }
    }

    fn resize_volume(&mut self, name: &str, bytes: u64, shrink: bool) -> Result<(), ControlError> {
        let volume = self.active_mut(name)?;
        if volume.snapshot_of.is_some() {
            return Err(ControlError::IsSnapshot(name.into()));
        }
        check_volume_bytes(bytes)?;
        if bytes < volume.bytes && !shrink {
            return Err(ControlError::WouldShrink { name: name.into(), bytes: volume.bytes, wanted: bytes });
        }
        volume.bytes = bytes;
        Ok(())
    }

    fn begin_delete(&mut self, name: &str) -> Result<(), ControlError> {
        if self.snapshots_of(name).next().is_some() {
            return Err(ControlError::HasSnapshots(name.into()));
        }
        let volume = self.active_mut(name)?;
        volume.state = VolumeState::Deleting;
        Ok(())
    }

    fn finish_delete(&mut self, volume: VolumeId) -> Result<(), ControlError> {
        let missing = ControlError::NotFound { kind: "volume", name: volume.to_string() };
        let there = self.volumes.get(&volume).ok_or(missing)?;
        if there.state != VolumeState::Deleting {
            return Err(ControlError::NotDeleting(there.name.clone()));
        }
        self.volumes.remove(&volume);
        Ok(())
    }
}
