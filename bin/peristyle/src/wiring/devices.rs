//! Devices that join, leave, are given up and replaced while the node runs.

use super::admin::Admin;
use super::{PlannedDevice, store};
use peristyle_base::units::COLUMN_BYTES;
use peristyle_base::{DeviceId, NodeId, Scheme};
use peristyle_cluster::lease::majority;
use peristyle_cluster::{DeviceView, DomainId, Shuns, deviations, usable_domains};
use peristyle_column::Discard;
use peristyle_control::api::{
    ApiError, BalanceInfo, Code, DeviceBalance, MAINTENANCE_MAX_S, RepairInfo, Response,
};
use peristyle_control::desired::{Change, Device as KnownDevice, DeviceState, State};
use peristyle_control::member::{self, device_of};
use peristyle_control::setup::{POOL, own_domain};
use peristyle_control::{ControlError, MetaError};
use peristyle_node::devices::SharedDevice;
use peristyle_node::{DeviceConfig, Wish};
use peristyle_rt::device::WriteCache;
use peristyle_rt::{Duration, ReactorId};
use peristyle_shard::{AllocClass, RepairFigures};
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::rc::Rc;

/// How often devices that are to leave are looked at.
const LEAVE_PERIOD: Duration = Duration::from_secs(1);
/// Looks at which a device must have been empty before it goes: something may just be on its way to it.
const EMPTY_LOOKS: u32 = 3;
/// Attempts at a change to a state that others change meanwhile.
const LOOKS_MAX: u32 = 8;

pub(super) fn refuse(why: String) -> ApiError {
    ApiError::new(Code::Invalid, why)
}

impl Admin {
    pub(super) fn scheme(&self) -> Scheme {
        self.control.state().pools.get(&POOL).map_or(self.plan.scheme, |pool| pool.scheme)
    }

    pub(super) fn views(&self) -> Vec<DeviceView> {
        self.node.devices().all().map(|d| d.view(AllocClass::User)).collect()
    }

    async fn set_state(&self, device: DeviceId, state: DeviceState) -> Result<Response, ApiError> {
        let now = self.control.apply(&Change::SetDeviceState { device, state }).await?;
        self.told(device, &now);
        Ok(Response::Done)
    }

    /// The node does as the state says of a device.
    fn told(&self, device: DeviceId, state: &State) {
        let wish = state.devices.get(&device).map(|d| peristyle_member::wish_of(state, d));
        wish.into_iter().for_each(|wish| self.node.set_wish(device, wish));
    }

    /// A device joins: durably in the store first, then all reactors use it.
    pub(super) async fn add_device(
        &self,
        path: String,
        domain: Option<u32>,
        format: bool,
    ) -> Result<DeviceId, ApiError> {
        let node = self.plan.node_id();
        let here = |d: &&KnownDevice| d.path == path && d.node == node;
        let known = self.control.state().devices.values().find(here).cloned();
        if let Some(known) = known.filter(|d| matches!(d.state, DeviceState::Active | DeviceState::Draining))
        {
            return Err(ApiError::new(Code::Exists, format!("{path} is the device {} already", known.id)));
        }
        let planned = PlannedDevice {
            path: PathBuf::from(&path),
            memory: None,
            create_bytes: None,
            write_cache: if self.plan.development { WriteCache::Protected } else { WriteCache::Auto },
            discard: Discard::Auto,
            domain,
        };
        let failed = |e: String| refuse(format!("{path}: {e}"));
        let cluster = self.control.state().cluster.uuid;
        let id = match store::label(&planned).await.map_err(failed)? {
            None => store::format(&planned, cluster, false).await.map_err(failed)?,
            Some(_) if format => store::format(&planned, cluster, true).await.map_err(failed)?,
            Some((of, _)) if of != cluster => {
                return Err(refuse(format!(
                    "{path} belongs to cluster {of}: --format makes it a blank device"
                )));
            }
            Some((_, id)) if self.is_gone_or_here(id) => {
                return Err(refuse(format!(
                    "{path} is {id}, which was given up; what it has may be old: --format makes it a blank device"
                )));
            }
            Some((_, id)) => id,
        };
        let known = self.control.state().devices.get(&id).map(|d| d.domain);
        let domain = domain.or(known).unwrap_or_else(|| own_domain(&self.control));
        self.enter(id, path.clone(), domain).await?;
        let home = ReactorId((self.node.devices().all().count() % self.node.reactors()) as u16);
        let spec = store::spec_of(&planned);
        let counts_for = self.control.state().devices.get(&id).map(|d| self.control.state().domain_of(d));
        let (discard, domain) = (planned.discard, counts_for.unwrap_or(DomainId(domain)));
        let config = DeviceConfig { id, spec, discard, domain, home, wish: Wish::Active };
        let opened = self.node.add_device(config).await;
        opened.map_err(|e| {
            failed(format!("{e}; it belongs to the pool, and is opened as soon as it can be"))
        })?;
        Ok(id)
    }

    /// It was given up, or is one of this node's: only another node's device can move here.
    fn is_gone_or_here(&self, id: DeviceId) -> bool {
        let serves = |s: DeviceState| matches!(s, DeviceState::Active | DeviceState::Draining);
        let state = self.control.state();
        state.devices.get(&id).is_some_and(|d| !serves(d.state) || d.node == self.plan.node_id())
    }

    /// Into the store: as a new device, or as one that has moved to this node.
    async fn enter(&self, id: DeviceId, path: String, domain: u32) -> Result<(), ApiError> {
        let node = self.plan.node_id();
        let change = match self.control.state().devices.contains_key(&id) {
            true => Change::SetDevice { device: id, node, path, domain },
            false => Change::AddDevice(device_of(node, id, path, domain)),
        };
        self.control.apply(&change).await?;
        Ok(())
    }

    /// How many devices do not serve now, or were given up and are not rebuilt yet.
    fn missing(&self, but: DeviceId, figures: &RepairFigures) -> usize {
        let serves = |d: &DeviceView| d.healthy;
        let away = self.node.devices().all().zip(self.views()).filter(|(d, view)| {
            d.id != but && !serves(view) && (d.wish().serves() || figures.lost_columns > 0)
        });
        away.count()
    }

    pub(super) async fn fail_device(&self, device: &str, force: bool) -> Result<Response, ApiError> {
        let (id, m) = (self.device(device)?, self.scheme().m());
        let missing = self.missing(id, &self.repair().await);
        if missing + 1 > m && !force {
            return Err(refuse(format!(
                "{missing} devices are missing already, and {} survives the loss of {m}: data that only this one \
                 has would be lost. Wait for the rebuild (`peristyle pool show`), or say --force",
                self.scheme()
            )));
        }
        self.set_state(id, DeviceState::Failed).await
    }

    pub(super) async fn remove_device(&self, device: &str) -> Result<Response, ApiError> {
        let id = self.device(device)?;
        let shared = self.node.devices().get(id).expect("found a moment ago");
        if shared.wish() == Wish::Failed {
            let figures = self.repair().await;
            return match figures.lost_columns {
                0 => self.set_state(id, DeviceState::Removed).await,
                n => Err(ApiError::new(
                    Code::Busy,
                    format!("{n} columns are still to be rebuilt: wait for them"),
                )),
            };
        }
        let state =
            self.empty(&[id], &Change::SetDeviceState { device: id, state: DeviceState::Draining }).await?;
        self.told(id, &state);
        Ok(Response::Done)
    }

    /// A node is emptied, or not any more: its shards and its columns go to others.
    pub(super) async fn drain_node(&self, node: u32, draining: bool) -> Result<Response, ApiError> {
        self.in_cluster()?;
        let node = NodeId(node);
        let devices: Vec<DeviceId> = {
            let state = self.control.state();
            let serves = |s: DeviceState| matches!(s, DeviceState::Active | DeviceState::Draining);
            let of = state.devices.values().filter(|d| d.node == Some(node) && serves(d.state));
            of.map(|d| d.id).collect()
        };
        let change = Change::DrainNode { node, draining };
        match draining && !devices.is_empty() {
            true => self.empty(&devices, &change).await?,
            false => self.control.apply(&change).await?,
        };
        Ok(Response::Done)
    }

    /// A node that does not run, and that was emptied or whose devices are given up, is no member any more.
    pub(super) async fn remove_node(&self, node: u32) -> Result<Response, ApiError> {
        self.in_cluster()?;
        let node = NodeId(node);
        let of_node: Vec<DeviceId> = {
            let state = self.control.state();
            state.devices.values().filter(|d| d.node == Some(node)).map(|d| d.id).collect()
        };
        // As its node has told last.
        let is_empty = |d: &SharedDevice| d.slots() > 0 && d.usage().1 == 0;
        let emptied: Vec<DeviceId> =
            of_node.into_iter().filter(|id| self.node.devices().get(*id).is_some_and(is_empty)).collect();
        member::remove(&self.control, node, &emptied).await?;
        Ok(Response::Done)
    }

    /// A node may be away for a while: its shards go to others, and what it holds is not rebuilt meanwhile.
    pub(super) async fn maintain_node(
        &self,
        node: u32,
        seconds: u32,
        force: bool,
    ) -> Result<Response, ApiError> {
        let member = self.in_cluster()?;
        if seconds == 0 || seconds > MAINTENANCE_MAX_S {
            return Err(refuse(format!("maintenance takes 1 s to {MAINTENANCE_MAX_S} s")));
        }
        let (node, lost) = (NodeId(node), self.repair().await.lost_columns);
        let change = Change::MaintainNode { node, seconds: Some(seconds) };
        let check = |state: &State| match force || !state.nodes.contains_key(&node) {
            true => Ok(()),
            false if lost > 0 => {
                Err(refuse(format!("{lost} columns are still to be rebuilt: wait for them, or use --force")))
            }
            false => self.check_redundancy_without(node, state, |id| member.is_alive(id)),
        };
        self.apply_checked(&change, check).await?;
        Ok(Response::Done)
    }

    /// Nodes enough to decide, and columns enough to read everything, are there while a node is away.
    fn check_redundancy_without(
        &self,
        node: NodeId,
        state: &State,
        alive: impl Fn(NodeId) -> bool,
    ) -> Result<(), ApiError> {
        let away = |id: NodeId| id == node || state.nodes.get(&id).is_some_and(|n| n.maintenance.is_some());
        let left = state.members().filter(|n| !away(n.id) && alive(n.id)).count();
        let (needed, all) = (majority(state.nodes.len()), state.nodes.len());
        if left < needed {
            return Err(refuse(format!(
                "{left} of {all} nodes would be left, and with fewer than {needed} nobody may own a shard: wait for those that \
                 are away, or use --force"
            )));
        }
        // Nothing is lost of those that are given up: the caller has looked.
        let counts = |d: &&KnownDevice| matches!(d.state, DeviceState::Active | DeviceState::Draining);
        let is_away = |d: &&KnownDevice| {
            let known = self.node.devices().get(d.id);
            d.node.is_some_and(away) || known.is_none_or(|known| !known.is_served() || known.is_bad())
        };
        let gone: BTreeSet<DomainId> =
            state.devices.values().filter(counts).filter(is_away).map(|d| state.domain_of(d)).collect();
        let scheme = self.scheme();
        if gone.len() > scheme.m() {
            return Err(refuse(format!(
                "{} failure domains would be away, and {scheme} covers {}: wait for those that are away, or use --force",
                gone.len(),
                scheme.m()
            )));
        }
        Ok(())
    }

    /// Has devices emptied, if the others have room.
    async fn empty(&self, ids: &[DeviceId], change: &Change) -> Result<State, ApiError> {
        self.apply_checked(change, |state| self.check_room_without(ids, state)).await
    }

    /// Changes the state that was looked at: nodes that are asked for as much at the same time do not both take the same room.
    pub(super) async fn apply_checked(
        &self,
        change: &Change,
        check: impl Fn(&State) -> Result<(), ApiError>,
    ) -> Result<State, ApiError> {
        for _ in 0..LOOKS_MAX {
            let state = self.control.state().clone();
            check(&state)?;
            match self.control.apply_if(change, &state, |txn| txn).await {
                Err(ControlError::Store(MetaError::Conflict { .. })) => {}
                changed => return Ok(changed?),
            }
        }
        Err(ApiError::new(Code::Busy, "the cluster's state changes all the time: try again"))
    }

    /// What devices hold has somewhere to go.
    fn check_room_without(&self, ids: &[DeviceId], state: &State) -> Result<(), ApiError> {
        let leaves = |id: &DeviceId| {
            let wish = state.devices.get(id).map(|d| peristyle_member::wish_of(state, d));
            ids.contains(id) || wish.is_some_and(|wish| wish != Wish::Active)
        };
        let mut views = self.views();
        views.iter_mut().filter(|d| leaves(&d.id)).for_each(|d| d.draining = true);
        let (domains, scheme) = (usable_domains(&views, Shuns::Nobody), self.scheme());
        if domains < scheme.width() {
            return Err(refuse(format!(
                "{domains} failure domains would be left, and {scheme} needs {}: add a device first, or give what leaves \
                 up with `device fail`, and new data gets a smaller k",
                scheme.width()
            )));
        }
        let free: u64 = views.iter().filter(|d| d.takes_columns()).map(|d| u64::from(d.slots_free())).sum();
        let used = views.iter().filter(|d| ids.contains(&d.id)).map(|d| u64::from(d.slots_used)).sum::<u64>();
        if free < used {
            let (used, free) = (used * COLUMN_BYTES, free * COLUMN_BYTES);
            return Err(refuse(format!(
                "the others have {} free, and what leaves holds {}: add a device first",
                peristyle_base::units::format_bytes(free),
                peristyle_base::units::format_bytes(used)
            )));
        }
        Ok(())
    }

    pub(super) async fn replace_device(
        &self,
        device: &str,
        path: String,
        format: bool,
    ) -> Result<Response, ApiError> {
        let old = self.device(device)?;
        let domain = self.control.state().devices.get(&old).map(|d| d.domain);
        let serves = self.views().iter().any(|d| d.id == old && d.healthy);
        self.add_device(path, domain, format).await?;
        let state = if serves { DeviceState::Draining } else { DeviceState::Failed };
        if self.node.devices().get(old).is_some_and(|d| d.wish().serves()) {
            return self.set_state(old, state).await;
        }
        Ok(Response::Done)
    }

    pub(super) async fn keep_device(&self, device: &str) -> Result<Response, ApiError> {
        let id = self.device(device)?;
        self.set_state(id, DeviceState::Active).await
    }

    async fn repair(&self) -> RepairFigures {
        let mut sum = RepairFigures::default();
        let all = self.node.all_stats().await;
        all.iter().flat_map(|reactor| &reactor.shards).for_each(|(_, shard)| sum.add(&shard.repair));
        sum
    }

    pub(super) async fn repair_info(&self) -> RepairInfo {
        let sum = self.repair().await;
        let (bytes_s, left) = (sum.bytes_s(), (sum.lost_columns + sum.draining_columns) * COLUMN_BYTES);
        RepairInfo {
            lost_columns: sum.lost_columns,
            away_columns: sum.away_columns,
            draining_columns: sum.draining_columns,
            crowded_columns: sum.crowded_columns,
            remade_columns: sum.remade_columns,
            moved_columns: sum.moved_columns,
            adopted_columns: sum.adopted_columns,
            leftovers_freed: sum.leftovers_freed,
            failed_remakes: sum.failed_remakes,
            bytes_s,
            remaining_s: left.checked_div(bytes_s).filter(|_| left > 0),
            damaged_rows: sum.damaged_rows,
            damaged_columns: sum.damaged_columns,
            scrubbed_columns: sum.scrubbed_columns,
            scrub_left: sum.scrub_left,
            unverified_s: sum.unverified_ns / 1_000_000_000,
        }
    }

    pub(super) async fn balance(&self) -> BalanceInfo {
        let views = self.views();
        let serving = || views.iter().filter(|d| d.takes_columns());
        let used: u64 = serving().map(|d| u64::from(d.slots_used)).sum();
        let total: u64 = serving().map(|d| u64::from(d.slots_total)).sum();
        let infos = self.device_infos();
        let row = |((view, deviation), info): ((&DeviceView, f64), _)| {
            let info: peristyle_control::api::DeviceInfo = info;
            let share = u64::from(view.slots_total) * used / total.max(1);
            DeviceBalance {
                path: info.path,
                state: info.state,
                slots_total: view.slots_total,
                slots_used: view.slots_used,
                slots_share: if view.takes_columns() { share as u32 } else { 0 },
                deviation_percent: deviation * 100.0,
            }
        };
        let devices: Vec<DeviceBalance> = views.iter().zip(deviations(&views)).zip(infos).map(row).collect();
        let worst = devices.iter().map(|d| d.deviation_percent.abs()).fold(0.0, f64::max);
        BalanceInfo { devices, deviation_percent: worst, repair: self.repair_info().await }
    }

    /// Devices that were to leave, and have nothing any more, leave.
    pub(super) async fn watch_leaving(self: Rc<Self>) {
        let mut empty: Vec<(DeviceId, u32)> = Vec::new();
        loop {
            peristyle_rt::sleep(LEAVE_PERIOD).await;
            let is_empty = |d: &&SharedDevice| d.is_draining() && d.usage().1 == 0 && !d.is_peers();
            // Those of a node that is emptied stay.
            let was_asked = |id: &DeviceId| {
                let state = self.control.state();
                state.devices.get(id).is_some_and(|d| d.state == DeviceState::Draining)
            };
            let empty_now = self.node.devices().all().filter(is_empty).map(|d| d.id);
            let leaving: Vec<DeviceId> = empty_now.filter(was_asked).collect();
            empty.retain(|(id, _)| leaving.contains(id));
            for id in leaving {
                match empty.iter_mut().find(|e| e.0 == id) {
                    Some((_, looks)) if *looks >= EMPTY_LOOKS => {
                        let _ = self.set_state(id, DeviceState::Removed).await; // tried again in a second
                    }
                    Some((_, looks)) => *looks += 1,
                    None => empty.push((id, 1)),
                }
            }
        }
    }
}
