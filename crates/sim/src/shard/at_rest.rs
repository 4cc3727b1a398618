//! What is left of a crash, looked at by the offline tools before anybody takes it up: it is sound, and stays as it is.

use super::Plan;
use crate::node::device_id;
use peristyle_cluster::ShardRecord;
use peristyle_column::inspect;
use peristyle_node::at_rest::{RestingDevice, RestingPool};
use peristyle_rt::Device;
use peristyle_rt::sim::DiskHandle;
use peristyle_shard::at_rest::{Depth, check_shard};
use std::path::Path;
use std::rc::Rc;

/// # Panics — when the tools find a problem, or change anything.
pub async fn check(plan: Plan, record: ShardRecord, disks: Vec<DiskHandle>) {
    let before: Vec<_> = disks.iter().map(DiskHandle::image).collect();
    let (mut devices, mut slots) = (Vec::new(), Vec::new());
    for disk in &disks {
        let device = Device::open_to_read(Path::new(&disk.name())).await.expect("there");
        let inspection = inspect(&device).await;
        assert!(!inspection.findings.has_damage(), "at rest: {:?}", inspection.findings.list());
        let label = inspection.label.expect("was formatted");
        slots.push((disk.name(), inspection.columns.clone()));
        devices.push(RestingDevice { device, label, columns: inspection.columns });
    }
    let domains = (0..disks.len()).map(|i| (device_id(i), i as u32)).collect();
    let resting = Rc::new(RestingPool::new(domains, devices));
    let check = check_shard(resting, &record, plan.scheme, Depth::Data, |_, _| ()).await;
    assert!(
        check.problems.list().is_empty(),
        "at rest: {:?} of {record:?} in {slots:#?}",
        check.problems.list()
    );
    for (disk, before) in disks.iter().zip(&before) {
        assert_eq!(disk.image().first_difference(before), None, "a check only reads");
    }
}
