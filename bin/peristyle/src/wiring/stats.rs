//! The reactors' statistics as the tree that the admin protocol carries.

use peristyle_base::stage::{self, StageSnapshot};
use peristyle_base::units::COLUMN_BYTES;
use peristyle_base::{BLOCK_BYTES, DeviceId, Scheme};
use peristyle_column::{DeviceStats, WritePurpose};
use peristyle_control::api::{CollectionInfo, PAGE_DEVICES, ProfilePage, RawDevice, RawStage, StatsNode};
use peristyle_node::stats::{FrontSnapshot, LegSnapshot, ReactorStats, VolumeSnapshot};
use peristyle_node::{DeviceTable, RequestCounts, RequestKind};
use peristyle_shard::ShardSnapshot;
use std::collections::BTreeMap;

/// One tree over all reactors: stages add up, reactors are not shown apart.
pub fn tree(all: &[ReactorStats], volumes: &BTreeMap<u32, String>, devices: &DeviceTable) -> StatsNode {
    StatsNode::new("node")
        .child(front(all))
        .child(shards(all))
        .child(volume_nodes(all, volumes))
        .child(device_nodes(all, devices))
        .child(traffic_node(all))
        .child(reactor_nodes(all))
}

/// Messages to other nodes and from them, of the kinds that there have been.
fn traffic_node(all: &[ReactorStats]) -> StatsNode {
    let mut sums = RequestCounts::default();
    for reactor in all {
        sums.iter_mut().zip(&reactor.traffic).for_each(|(sum, more)| sum.add(more));
    }
    let mut node = StatsNode::new("other nodes");
    for (kind, count) in RequestKind::ALL.into_iter().zip(sums).filter(|(_, count)| count.requests > 0) {
        let figures = [
            ("requests", count.requests),
            ("request_bytes", count.request_bytes),
            ("answers", count.answers),
            ("answer_bytes", count.answer_bytes),
        ];
        for (figure, value) in figures {
            node = node.counter(&format!("{figure}.{}", kind.name()), value);
        }
    }
    node
}

fn reactor_nodes(all: &[ReactorStats]) -> StatsNode {
    let reactors = all.iter().enumerate();
    reactors.fold(StatsNode::new("reactors"), |node, (n, reactor)| {
        node.child(StatsNode::new(n.to_string()).counter("busy_ns", reactor.busy_ns))
    })
}

fn front_sum(all: &[ReactorStats]) -> FrontSnapshot {
    let mut sum = FrontSnapshot::default();
    for reactor in all {
        merge_stages(&mut sum.stages, &reactor.front.stages);
        sum.read_bytes += reactor.front.read_bytes;
        sum.write_bytes += reactor.front.write_bytes;
        sum.connections += reactor.front.connections;
    }
    sum
}

fn shard_sum(all: &[ReactorStats]) -> ShardSnapshot {
    let mut sum = ShardSnapshot::default();
    for (_, shard) in all.iter().flat_map(|r| &r.shards) {
        sum.merge(shard.clone());
    }
    sum
}

fn sorted_devices(all: &[ReactorStats]) -> Vec<&DeviceStats> {
    let mut devices: Vec<_> = all.iter().flat_map(|r| &r.devices).collect();
    devices.sort_by_key(|d| d.device);
    devices
}

fn device_name(device: DeviceId, table: &DeviceTable) -> String {
    table.get(device).map_or_else(|| device.to_string(), |s| s.path.clone())
}

/// Devices of other nodes, as all reactors together have reached them.
fn remote_legs(all: &[ReactorStats]) -> Vec<LegSnapshot> {
    let mut sums: BTreeMap<DeviceId, LegSnapshot> = BTreeMap::new();
    for leg in all.iter().flat_map(|r| &r.legs) {
        match sums.get_mut(&leg.device) {
            Some(sum) => {
                sum.append.merge(&leg.append);
                sum.read.merge(&leg.read);
            }
            None => drop(sums.insert(leg.device, leg.clone())),
        }
    }
    sums.into_values().collect()
}

fn leg_name(leg: &LegSnapshot) -> String {
    match leg.node {
        Some(node) => format!("node {node} {}", leg.device),
        None => leg.device.to_string(),
    }
}

fn leg_stages(leg: &LegSnapshot) -> [(&'static str, &StageSnapshot); 2] {
    [("append.leg", &leg.append), ("read.leg", &leg.read)]
}

fn device_stages(d: &DeviceStats) -> [(&'static str, &StageSnapshot); 5] {
    [
        ("append.queue", &d.append_queue),
        ("append.service", &d.append_service),
        ("read.queue", &d.read_queue),
        ("read.service", &d.read_service),
        ("control", &d.control),
    ]
}

/// A page of what `peristyle profile` asks; who asks fills in the moment.
pub fn profile(all: &[ReactorStats], table: &DeviceTable, page: u32) -> ProfilePage {
    let remote = remote_legs(all);
    let here = sorted_devices(all).into_iter();
    let here = here.map(|d| (device_name(d.device, table), device_stages(d).to_vec()));
    let devices: Vec<_> =
        here.chain(remote.iter().map(|leg| (leg_name(leg), leg_stages(leg).to_vec()))).collect();
    let pages = 1 + devices.len().div_ceil(PAGE_DEVICES) as u32;
    let mut answer = ProfilePage { counted: stage::COUNTED, pages, ..ProfilePage::default() };
    let Some(chunk) = page.checked_sub(1) else {
        let front = front_sum(all);
        (answer.read_bytes, answer.write_bytes) = (front.read_bytes, front.write_bytes);
        let shards = shard_sum(all).stages;
        answer.stages = front.stages.iter().chain(&shards).map(|(name, s)| RawStage::new(name, s)).collect();
        return answer;
    };
    let raw = |(name, stages): &(String, Vec<(&str, &StageSnapshot)>)| RawDevice {
        name: name.clone(),
        stages: stages.iter().map(|(name, s)| RawStage::new(name, s)).collect(),
    };
    answer.devices =
        devices.chunks(PAGE_DEVICES).nth(chunk as usize).unwrap_or_default().iter().map(raw).collect();
    answer
}

fn front(all: &[ReactorStats]) -> StatsNode {
    let sum = front_sum(all);
    let mut node = StatsNode::new("front")
        .counter("read_bytes", sum.read_bytes)
        .counter("write_bytes", sum.write_bytes)
        .counter("connections", sum.connections);
    for (name, stage) in &sum.stages {
        node = node.stage(name, stage);
    }
    node
}

fn merge_stages(sum: &mut Vec<(&'static str, StageSnapshot)>, more: &[(&'static str, StageSnapshot)]) {
    if sum.is_empty() {
        *sum = more.to_vec();
        return;
    }
    for ((_, mine), (_, theirs)) in sum.iter_mut().zip(more) {
        mine.merge(theirs);
    }
}

fn shards(all: &[ReactorStats]) -> StatsNode {
    let sum = shard_sum(all);
    let mut node = StatsNode::new("shards");
    for (name, stage) in &sum.stages {
        node = node.stage(name, stage);
    }
    for (name, value) in &sum.counters {
        node = node.counter(name, *value);
    }
    let r = &sum.repair;
    for (name, value) in [
        ("repair.lost_columns", r.lost_columns),
        ("repair.away_columns", r.away_columns),
        ("repair.draining_columns", r.draining_columns),
        ("repair.crowded_columns", r.crowded_columns),
        ("repair.remade_columns", r.remade_columns),
        ("repair.moved_columns", r.moved_columns),
        ("repair.remade_bytes", r.remade_bytes),
        ("repair.failed_remakes", r.failed_remakes),
        ("scrub.columns", r.scrubbed_columns),
        ("scrub.damaged_rows", r.damaged_rows),
        ("scrub.left_extents", r.scrub_left),
        ("scrub.unverified_s", r.unverified_ns / 1_000_000_000),
        ("collection.pace_permille", sum.collection.pace),
        ("collection.room_extents", sum.collection.room),
        ("collection.begins_below_extents", sum.collection.begins_below),
    ] {
        node = node.counter(name, value);
    }
    node
}

/// What collection does, and what everything costs.
pub fn collection(all: &[ReactorStats], scheme: Scheme) -> CollectionInfo {
    let shards = all.iter().flat_map(|r| &r.shards).map(|(_, shard)| shard.collection);
    let figures = shards.reduce(|mut sum, shard| {
        sum.add(&shard);
        sum
    });
    let figures = figures.unwrap_or_default();
    let written = |counts: fn(WritePurpose) -> bool| -> u64 {
        let devices = all.iter().flat_map(|r| &r.devices);
        let purposes = WritePurpose::ALL.into_iter().filter(|p| counts(*p));
        purposes.map(|p| devices.clone().map(|d| d.written(p).bytes).sum::<u64>()).sum()
    };
    let user_bytes: u64 = all.iter().map(|r| r.front.write_bytes).sum();
    // Devices zero slots without data.
    let device_bytes = written(|p| p != WritePurpose::Zero);
    let extent_bytes = scheme.width() as u64 * COLUMN_BYTES;
    CollectionInfo {
        state: figures.state.name().into(),
        pace: figures.pace as f64 / 1000.0,
        moved_blocks: figures.moved_blocks,
        moved_bytes: figures.moved_blocks * BLOCK_BYTES as u64,
        moved_bytes_s: figures.moved_blocks_s * BLOCK_BYTES as u64,
        extents: figures.victims,
        live_share: figures.live_share(),
        user_bytes,
        device_bytes,
        collection_bytes: written(|p| p == WritePurpose::AppendCollection),
        write_amplification: (user_bytes > 0).then(|| device_bytes as f64 / user_bytes as f64),
        room_bytes: figures.room * extent_bytes,
        begins_below_bytes: figures.begins_below * extent_bytes,
    }
}

fn volume_nodes(all: &[ReactorStats], names: &BTreeMap<u32, String>) -> StatsNode {
    let mut sums: BTreeMap<u32, VolumeSnapshot> = BTreeMap::new();
    for (nsid, volume) in all.iter().flat_map(|r| &r.volumes) {
        let sum = sums.entry(*nsid).or_default();
        sum.read.merge(&volume.read);
        sum.write.merge(&volume.write);
        sum.read_bytes += volume.read_bytes;
        sum.write_bytes += volume.write_bytes;
    }
    let mut node = StatsNode::new("volumes");
    for (nsid, v) in sums {
        let name = names.get(&nsid).cloned().unwrap_or_else(|| format!("namespace {nsid}"));
        node = node.child(
            StatsNode::new(name)
                .stage("read", &v.read)
                .stage("write", &v.write)
                .counter("read_bytes", v.read_bytes)
                .counter("write_bytes", v.write_bytes),
        );
    }
    node
}

fn device_nodes(all: &[ReactorStats], table: &DeviceTable) -> StatsNode {
    let mut node = StatsNode::new("devices");
    for d in sorted_devices(all) {
        let mut child = StatsNode::new(device_name(d.device, table));
        for (name, stage) in device_stages(d) {
            child = child.stage(name, stage);
        }
        child = child
            .counter("reads", d.reads.ops)
            .counter("read_bytes", d.reads.bytes)
            .counter("flushes", d.flushes)
            .counter("discards", d.discards.ops)
            .counter("discarded_bytes", d.discarded_bytes)
            .counter("refused", d.refused)
            .counter("errors", d.device_errors)
            .counter("used_bytes", (d.usage.total - d.usage.free) as u64 * COLUMN_BYTES);
        for purpose in WritePurpose::ALL {
            let count = d.written(purpose);
            child = child
                .counter(&format!("writes.{}", purpose.name()), count.ops)
                .counter(&format!("write_bytes.{}", purpose.name()), count.bytes);
        }
        node = node.child(child);
    }
    node
}
