//! What would move if devices came or went; and another scheme for a pool.

use super::admin::Admin;
use super::devices::refuse;
use peristyle_base::units::{COLUMN_BYTES, format_bytes};
use peristyle_base::{DeviceId, NodeId, Scheme};
use peristyle_cluster::{DomainId, PlanDevice, Shuns, plan, usable_domains};
use peristyle_column::Geometry;
use peristyle_control::ControlError;
use peristyle_control::api::{ApiError, Code, DeviceInfo, PlanInfo, PlannedUse, Response};
use peristyle_control::desired::{Change, State};
use peristyle_control::setup::POOL;
use peristyle_node::devices::reserve;

/// Share of the space that a pool may take after a change of its scheme.
const ROOM_SHARE: (u64, u64) = (9, 10);
/// Devices that a plan may add.
const ADDED_MAX: usize = 1024;

impl Admin {
    /// `add`: failure domains of their own, with the sizes of their devices in bytes.
    pub(super) fn plan_pool(
        &self,
        add: &[Vec<u64>],
        remove_devices: &[String],
        remove_nodes: &[u32],
    ) -> Result<PlanInfo, ApiError> {
        if add.iter().map(Vec::len).sum::<usize>() > ADDED_MAX {
            return Err(ApiError::new(
                Code::Invalid,
                format!("more than {ADDED_MAX} devices are not planned"),
            ));
        }
        let going: Vec<DeviceId> = remove_devices.iter().map(|d| self.device(d)).collect::<Result<_, _>>()?;
        for &node in remove_nodes {
            if !self.control.state().nodes.contains_key(&NodeId(node)) {
                return Err(ApiError::new(Code::NotFound, format!("there is no node {node}")));
            }
        }
        let (mut devices, mut uses) = (Vec::new(), Vec::new());
        for (device, info) in self.node.devices().all().zip(self.device_infos()) {
            let DeviceInfo { path, node, slots_total, slots_used, .. } = info;
            let is_gone = !device.wish().serves() && slots_used == 0;
            let goes = going.contains(&device.id) || node.is_some_and(|node| remove_nodes.contains(&node));
            let stays = !goes && device.wish().serves() && !device.is_draining();
            if is_gone {
                continue;
            }
            devices.push(PlanDevice { domain: device.domain(), slots_total, slots_used, stays });
            let fate = if stays { "stays" } else { "goes" };
            uses.push((path, node, fate));
        }
        let shards = self.control.state().shards.len() as u32;
        for (number, sizes) in add.iter().enumerate() {
            for &bytes in sizes {
                let slots = Geometry::of(bytes).map_or(0, |geometry| geometry.slots);
                let kept = reserve(slots, shards as usize);
                let each = kept.collection + kept.meta + kept.reappend;
                let slots_total = slots.saturating_sub(each * shards);
                // A number that no other domain has.
                let domain = DomainId(u32::MAX - number as u32);
                devices.push(PlanDevice { domain, slots_total, slots_used: 0, stays: true });
                uses.push((format!("new {}", number + 1), None, "comes"));
            }
        }
        Ok(self.plan_info(&devices, uses))
    }

    /// The pool has another scheme from now on.
    pub(super) async fn set_scheme(&self, text: &str, force: bool) -> Result<Response, ApiError> {
        let alone = |_| {
            refuse(
                "a node that is alone goes by pool.scheme of its configuration: change that, and restart it"
                    .into(),
            )
        };
        self.in_cluster().map_err(alone)?;
        let scheme: Scheme =
            text.parse().map_err(|_| refuse(format!("`{text}` is no scheme: write K+M, as 4+2")))?;
        let check = |state: &State| {
            let pool = state.pools.get(&POOL).ok_or(ControlError::NoPool)?;
            match pool.scheme == scheme {
                true => Err(refuse(format!("the pool's scheme is {scheme}"))),
                false if force => Ok(()),
                false => self.check_scheme(pool.scheme, scheme),
            }
        };
        let too_few_domains =
            self.control.state().pools.get(&POOL).ok_or(ControlError::NoPool)?.too_few_domains;
        self.apply_checked(&Change::SetPool { pool: POOL, scheme, too_few_domains }, check).await?;
        Ok(Response::Done)
    }

    /// There are failure domains for the whole scheme, and room for what is there.
    fn check_scheme(&self, now: Scheme, then: Scheme) -> Result<(), ApiError> {
        let views = self.views();
        let domains = usable_domains(&views, Shuns::Nobody);
        if domains < then.width() {
            return Err(refuse(format!(
                "{then} needs {} failure domains and there are {domains}: with --force what is written gets a smaller k",
                then.width()
            )));
        }
        let each = |scheme: Scheme| scheme.width() as f64 / scheme.k() as f64;
        let used: u64 = views.iter().map(|d| u64::from(d.slots_used)).sum();
        let total: u64 = views.iter().map(|d| u64::from(d.slots_total)).sum();
        let needed = (used as f64 * each(then) / each(now)) as u64;
        if needed * ROOM_SHARE.1 > total * ROOM_SHARE.0 {
            return Err(refuse(format!(
                "what is there would take {} with {then}, of {}: add devices first; with --force, what finds no room stays {now}",
                format_bytes(needed * COLUMN_BYTES),
                format_bytes(total * COLUMN_BYTES)
            )));
        }
        Ok(())
    }

    fn plan_info(&self, devices: &[PlanDevice], uses: Vec<(String, Option<u32>, &str)>) -> PlanInfo {
        let scheme = self.scheme();
        let plan = plan(devices, scheme);
        let capacity = |which: &dyn Fn(&str, &PlanDevice) -> bool| -> u64 {
            let of = devices.iter().zip(&uses).filter(|(d, (_, _, fate))| which(fate, d));
            of.map(|(d, _)| u64::from(d.slots_total)).sum::<u64>() * COLUMN_BYTES
        };
        let (now, then) = (capacity(&|fate, _| fate != "comes"), capacity(&|_, d| d.stays));
        // Every node moves columns at its own pace; what comes is written by those that own the shards.
        let nodes = self.control.state().nodes.len().max(1) as u64;
        let moved_bytes = plan.moved * COLUMN_BYTES;
        let planned =
            |((device, goal), (path, node, fate)): ((&PlanDevice, &u64), (String, Option<u32>, &str))| {
                PlannedUse {
                    path,
                    node,
                    fate: fate.into(),
                    bytes: u64::from(device.slots_total) * COLUMN_BYTES,
                    used_bytes: u64::from(device.slots_used) * COLUMN_BYTES,
                    planned_bytes: goal * COLUMN_BYTES,
                }
            };
        PlanInfo {
            scheme: scheme.to_string(),
            domains: plan.domains,
            devices: devices.iter().zip(&plan.goals).zip(uses.clone()).map(planned).collect(),
            moved_bytes,
            left_over_bytes: plan.left_over * COLUMN_BYTES,
            seconds_at_least: moved_bytes.div_ceil((self.plan.background_bytes_s * nodes).max(1)),
            capacity_bytes: now,
            planned_capacity_bytes: then,
        }
    }
}
