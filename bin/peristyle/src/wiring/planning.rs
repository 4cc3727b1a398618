//! What would move if devices came or went.

use super::admin::Admin;
use peristyle_base::units::COLUMN_BYTES;
use peristyle_base::{DeviceId, NodeId};
use peristyle_cluster::{DomainId, PlanDevice, plan};
use peristyle_column::Geometry;
use peristyle_control::api::{ApiError, Code, DeviceInfo, PlanInfo, PlannedUse};
use peristyle_node::devices::reserve;

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
            devices.push(PlanDevice { domain: device.domain, slots_total, slots_used, stays });
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
