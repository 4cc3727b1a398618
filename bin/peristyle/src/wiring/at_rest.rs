//! Tools for a pool that no node serves: the control store is read from a copy in memory, devices are opened to be read.

use super::offline::{check_device, progress_bar};
use super::{DeviceReport, FindingReport};
use crate::failure::Failure;
use peristyle_base::{DeviceId, ExtentId, ShardId};
use peristyle_cluster::ShardStore;
use peristyle_column::{Inspection, inspect};
use peristyle_control::desired::State;
use peristyle_control::{Control, EmbeddedStore, ShardRecords};
use peristyle_node::at_rest::{RestingDevice, RestingPool};
use peristyle_rt::{BufConfig, Device, IoError, RuntimeConfig};
use peristyle_shard::at_rest::{
    Depth, ExtentSlots, FrameAtRest, Resting, ShardCheck, check_frame, check_shard, extents_of, read_frames,
};
use peristyle_shard::frame::{Entry, FrameKind};
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;

/// What a pool at rest is found by.
#[derive(Clone, Debug)]
pub struct Source {
    pub state_file: PathBuf,
    /// Where its devices are; none: where the control store last saw them.
    pub devices: Vec<PathBuf>,
}

/// What `pool check` says.
#[derive(Serialize, Debug, Default)]
pub struct PoolCheck {
    pub pool: String,
    pub scheme: String,
    /// Data and parity were read, not headers alone.
    pub full: bool,
    pub devices: Vec<DeviceReport>,
    pub shards: Vec<ShardReport>,
    /// Of the pool as a whole.
    pub problems: Vec<String>,
}

#[derive(Serialize, Debug)]
pub struct ShardReport {
    pub shard: u32,
    pub epoch: u64,
    pub committed: u64,
    pub extents: u64,
    pub frames: u64,
    pub live_blocks: u64,
    pub map_blocks: u64,
    pub blocks_read: u64,
    pub dead_extents: u64,
    pub problems: Vec<FindingReport>,
    pub problems_total: u64,
}

impl PoolCheck {
    pub fn problems(&self) -> u64 {
        let devices: usize = self.devices.iter().map(|d| d.problems.len()).sum();
        let shards: u64 = self.shards.iter().map(|s| s.problems_total).sum();
        (self.problems.len() + devices) as u64 + shards
    }
}

/// What `pool dump-extent` says.
#[derive(Serialize, Debug)]
pub struct ExtentDump {
    pub shard: u32,
    pub extent: u64,
    pub scheme: String,
    pub sealed_rows: Option<u16>,
    pub slots: Vec<SlotDump>,
    pub frames: Vec<FrameDump>,
    /// Row behind the last frame, and whether the extent should go on there.
    pub end_row: u16,
    pub broken: bool,
}

#[derive(Serialize, Debug)]
pub struct SlotDump {
    pub column: usize,
    pub device: String,
    pub slot: u32,
    pub state: String,
    pub epoch: u64,
    pub rows: u16,
    /// It says of the extent what the others say.
    pub agrees: bool,
}

#[derive(Serialize, Debug)]
pub struct FrameDump {
    pub row: u16,
    pub rows: usize,
    pub kind: &'static str,
    pub seq: u64,
    pub epoch: u64,
    pub committed: u64,
    pub blocks: u16,
    pub entries: Vec<String>,
    /// Of each column that has to have the header.
    pub headers: Vec<String>,
    /// Blocks of data and parity that are not what they have to be.
    pub problems: Vec<String>,
}

fn run<T: 'static>(work: impl Future<Output = Result<T, Failure>> + 'static) -> Result<T, Failure> {
    // As many buffers as a recovery keeps for itself, and some to read with.
    let buffers = BufConfig { counts: [4096, 256, 128, 64, 32, 32], huge_pages: false };
    peristyle_rt::block_on(RuntimeConfig { buffers, ..RuntimeConfig::small() }, work)
}

async fn open_store(source: &Source) -> Result<(State, ShardRecords<EmbeddedStore>), Failure> {
    let name = source.state_file.display().to_string();
    let bytes = std::fs::read(&source.state_file).map_err(|e| Failure::failed(format!("{name}: {e}")))?;
    let store = EmbeddedStore::of_bytes(&name, &bytes).map_err(|e| Failure::failed(e.to_string()))?;
    let control = Control::open(store.clone()).await.map_err(Failure::from)?;
    let control = control.ok_or_else(|| Failure::failed(format!("{name} describes no store")))?;
    let state = control.state().clone();
    Ok((state, ShardRecords(store)))
}

/// Opens what can be opened. A device that somebody serves ends it: what is being written cannot be checked.
async fn open_devices(
    paths: &[PathBuf],
    problems: &mut Vec<String>,
) -> Result<Vec<(PathBuf, Device)>, Failure> {
    let mut devices = Vec::new();
    for path in paths {
        match Device::open_to_read(path).await {
            Ok(device) => devices.push((path.clone(), device)),
            Err(IoError::Busy) => {
                let path = path.display();
                return Err(Failure::failed(format!("{path} is in use: stop the node first")));
            }
            Err(error) => problems.push(format!("{}: {error}", path.display())),
        }
    }
    Ok(devices)
}

fn paths_of(source: &Source, state: &State) -> Vec<PathBuf> {
    if !source.devices.is_empty() {
        return source.devices.clone();
    }
    let mut paths: Vec<PathBuf> = state.devices.values().map(|d| d.path.clone().into()).collect();
    paths.sort();
    paths
}

/// A device as its tables say; `None`: they are not of any pool.
fn resting(device: &Device, inspection: Inspection) -> Option<RestingDevice> {
    let label = inspection.label.ok()?;
    Some(RestingDevice { device: device.clone(), label, columns: inspection.columns })
}

/// Checks everything of a pool that can be checked at rest. Writes nothing.
pub fn pool_check(source: &Source, full: bool) -> Result<PoolCheck, Failure> {
    let source = source.clone();
    run(async move {
        let (state, records) = open_store(&source).await?;
        let pool = state.pools.values().next().ok_or_else(|| Failure::failed("the store has no pool"))?;
        let mut report = PoolCheck {
            pool: pool.name.clone(),
            scheme: pool.scheme.to_string(),
            full,
            ..PoolCheck::default()
        };
        let devices = open_devices(&paths_of(&source, &state), &mut report.problems).await?;
        let mut found = Vec::new();
        for (path, device) in &devices {
            let (checked, inspection) = check_device(path, device, full).await;
            report.devices.push(checked);
            found.extend(resting(device, inspection));
        }
        let domains = state.devices.values().map(|d| (d.id, state.domain_of(d).0)).collect();
        let resting = Rc::new(RestingPool::new(domains, found));
        for shard in resting.shards().into_iter().filter(|shard| !state.shards.contains_key(shard)) {
            report
                .problems
                .push(format!("slots hold columns of shard {shard}, which the store does not have"));
        }
        for &shard in state.shards.keys() {
            let loaded = records.load(shard).await;
            let record = match loaded {
                Ok(Some((record, _))) => record,
                Ok(None)
                    if resting.list(shard).await.iter().all(|(_, l)| l.as_ref().is_ok_and(Vec::is_empty)) =>
                {
                    continue; // never taken up
                }
                Ok(None) => {
                    report.problems.push(format!("shard {shard} has columns and no record"));
                    continue;
                }
                Err(error) => {
                    report.problems.push(format!("shard {shard}: {error}"));
                    continue;
                }
            };
            let bar = progress_bar(&format!("shard {shard}"));
            let depth = if full { Depth::Data } else { Depth::Headers };
            let checked = check_shard(resting.clone(), &record, pool.scheme, depth, |done, all| {
                bar.set_length(all);
                bar.set_position(done);
            })
            .await;
            bar.finish_and_clear();
            report.shards.push(shard_report(shard, record.epoch.0, &checked));
        }
        Ok(report)
    })
}

fn shard_report(shard: ShardId, epoch: u64, check: &ShardCheck) -> ShardReport {
    let problem = |p: &peristyle_shard::at_rest::Problem| FindingReport {
        kind: p.kind(),
        damage: true,
        slot: None,
        text: p.to_string(),
    };
    ShardReport {
        shard: shard.0,
        epoch,
        committed: check.committed.0,
        extents: check.extents,
        frames: check.frames,
        live_blocks: check.live_blocks,
        map_blocks: check.map_blocks,
        blocks_read: check.blocks_read,
        dead_extents: check.dead_extents,
        problems: check.problems.list().iter().map(problem).collect(),
        problems_total: check.problems.total(),
    }
}

/// Everything that is known of one extent. Several shards may have one of this number. Writes nothing.
pub fn dump_extent(source: &Source, extent: u64, shard: Option<u32>) -> Result<Vec<ExtentDump>, Failure> {
    let source = source.clone();
    run(async move {
        let paths = match source.devices.is_empty() {
            true => paths_of(&source, &open_store(&source).await?.0),
            false => source.devices.clone(),
        };
        let mut problems = Vec::new();
        let devices = open_devices(&paths, &mut problems).await?;
        problems.iter().for_each(|problem| eprintln!("peristyle: {problem}"));
        let (mut found, mut names) = (Vec::new(), BTreeMap::new());
        for (path, device) in &devices {
            if let Some(device) = resting(device, inspect(device).await) {
                names.insert(device.label.device, path.display().to_string());
                found.push(device);
            }
        }
        let pool = RestingPool::new(BTreeMap::new(), found);
        let mut dumps = Vec::new();
        for id in pool.shards().into_iter().filter(|id| shard.is_none_or(|wanted| id.0 == wanted)) {
            let extents = extents_of(id, &pool.list(id).await);
            if let Some(slots) = extents.get(&ExtentId(extent)) {
                dumps.push(dump(&pool, slots, &names).await);
            }
        }
        match dumps.is_empty() {
            true => Err(Failure::new(
                crate::failure::Kind::NotFound,
                format!("no slot of {} devices holds a column of extent {extent}", devices.len()),
            )),
            false => Ok(dumps),
        }
    })
}

async fn dump(pool: &RestingPool, extent: &ExtentSlots, names: &BTreeMap<DeviceId, String>) -> ExtentDump {
    let slot = |agrees: bool| {
        move |s: &peristyle_shard::ListedSlot| SlotDump {
            column: s.name.column.0 as usize,
            device: names.get(&s.place.device).cloned().unwrap_or_default(),
            slot: s.place.slot.0,
            state: format!("{:?}", s.state).to_lowercase(),
            epoch: s.epoch.0,
            rows: s.rows,
            agrees,
        }
    };
    let good = extent.columns.iter().flatten().map(slot(true));
    let slots = good.chain(extent.strays.iter().map(slot(false))).collect();
    let frames = read_frames(pool, extent).await;
    let mut dumps = Vec::new();
    for frame in &frames.list {
        let problems = check_frame(pool, extent, frame).await;
        dumps.push(frame_dump(frame, problems.list().iter().map(|p| p.to_string()).collect()));
    }
    ExtentDump {
        shard: extent.shard.0,
        extent: extent.id.0,
        scheme: extent.scheme.to_string(),
        sealed_rows: extent.sealed_rows(),
        slots,
        frames: dumps,
        end_row: frames.end,
        broken: frames.broken,
    }
}

fn frame_dump(frame: &FrameAtRest, problems: Vec<String>) -> FrameDump {
    let header = &frame.header;
    FrameDump {
        row: header.first_row.0,
        rows: header.layout().rows(),
        kind: match header.kind {
            FrameKind::User => "user",
            FrameKind::Meta => "checkpoint",
            FrameKind::Relocation => "relocation",
        },
        seq: header.seq.0,
        epoch: header.epoch.0,
        committed: header.committed.0,
        blocks: header.blocks,
        entries: frame.entries.iter().map(entry).collect(),
        headers: frame.copies.iter().map(|(column, state)| format!("column {column}: {state}")).collect(),
        problems,
    }
}

fn entry(entry: &Entry) -> String {
    match entry {
        Entry::Data { layer, block, crc } => format!("layer {layer} block {block} crc {crc:08x}"),
        Entry::Zero { layer, block, count } => format!("layer {layer} zeros {block} and {} more", count - 1),
        Entry::LayerCreated { layer, blocks } => format!("layer {layer} created, {blocks} blocks"),
        Entry::LayerDropped { layer } => format!("layer {layer} dropped"),
        Entry::LayerResized { layer, blocks } => format!("layer {layer} resized, {blocks} blocks"),
        Entry::SnapshotTaken { volume, snapshot, new } => {
            format!("snapshot {snapshot} of volume {volume}, which has layer {new} now")
        }
        Entry::SnapshotCloned { volume, snapshot, new } => {
            format!("volume {volume} made on snapshot {snapshot}, as layer {new}")
        }
        Entry::RolledBack { volume, snapshot, new } => {
            format!("volume {volume} rolled back to snapshot {snapshot}, as layer {new}")
        }
        Entry::LayerMerged { layer } => format!("layer {layer} merged into its child"),
        Entry::LayerParted { volume } => format!("volume {volume} has no ancestors any more"),
        Entry::Map { layer, level, first, crc } => {
            format!("layer {layer} map level {level} from {first} crc {crc:08x}")
        }
    }
}

/// The state file of a store in this folder.
pub fn state_file_in(dir: &Path) -> PathBuf {
    dir.join("state.redb")
}
