//! Reads, writes and frames take nothing from the system's allocator once all is warm: counted on io_uring with files,
//! on a volume.
//!
//! What a shard does besides I/O (extents opened in advance, closed and sealed, checkpoints) may allocate. So I/Os
//! are counted in short windows, half reads and half writes, and those in which slots changed hands are left out.
//! Some of that work shows in no counter (an extent that gives way to the next); hence the statement is: whole windows
//! allocate nothing, and all of them together less than once in 40 I/Os. One allocation per read, per write or per
//! frame would be at least as many in every window.

use peristyle_base::{DeviceId, LayerId, NodeId, ShardId, Uuid};
use peristyle_cluster::{DomainId, MemoryShardStore};
use peristyle_column::FormatOptions;
use peristyle_node::{DeviceConfig, Node, NodeConfig, Volume, VolumeSpec, seeds};
use peristyle_rt::alloc_count::{CountingAllocator, allocations};
use peristyle_rt::device::WriteCache;
use peristyle_rt::sync::Notify;
use peristyle_rt::{Buf, Device, DeviceSpec, ReactorId, RuntimeConfig};
use peristyle_shard::ShardConfig;
use std::cell::Cell;
use std::rc::Rc;

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

const MIB: u64 = 1 << 20;
const VOLUME_BYTES: u64 = 32 * MIB;
const WINDOW: usize = 64;

type TestNode = Rc<Node<MemoryShardStore>>;

async fn start(folder: &str) -> (TestNode, Volume<MemoryShardStore>) {
    let folder = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join(folder);
    std::fs::create_dir_all(&folder).unwrap();
    let cluster = Uuid::from_random([9; 16]);
    let mut devices = Vec::new();
    for i in 0..4u32 {
        let id: DeviceId = Uuid::from_random([i as u8 + 1; 16]);
        let path = folder.join(format!("device-{i}"));
        let spec = DeviceSpec::Path { path, create_bytes: Some(2 << 30), write_cache: WriteCache::Protected };
        let disk = Device::open(&spec).await.unwrap();
        let options = FormatOptions { cluster, device: id, force: true };
        peristyle_column::format(&disk, options).await.unwrap();
        devices.push(DeviceConfig { id, spec, domain: DomainId(i), home: ReactorId(0) });
    }
    let shards = vec![(ShardId(0), ReactorId(0))];
    let shard = ShardConfig { ready_extents: 8, ..ShardConfig::new("2+1".parse().unwrap()) };
    let config = NodeConfig { node: NodeId(0), cluster, devices, shards, shard, development: false };
    let node = Node::start(seeds(&config, 1, &MemoryShardStore::default()).remove(0), true).await;
    let volume = node.volume(&spec()).unwrap();
    volume.ensure_layer(VOLUME_BYTES / 4096).await.unwrap();
    (node, volume)
}

fn spec() -> VolumeSpec {
    VolumeSpec {
        name: "v".into(),
        nsid: 1,
        uuid: Uuid::default(),
        nguid: [0; 16],
        bytes: VOLUME_BYTES,
        lba_bytes: 4096,
        shard: ShardId(0),
        layer: LayerId(1),
    }
}

/// What tells that the shard did more than I/O: slots that changed hands, checkpoints, frames sent anew.
fn background(node: &TestNode) -> Vec<u64> {
    let mut all = Vec::new();
    for server in node.columns().servers() {
        let usage = server.usage();
        all.extend([usage.free, usage.open, usage.sealed].map(u64::from));
    }
    let now = peristyle_rt::now();
    let shard = node.shard(ShardId(0)).unwrap().stats_snapshot(now);
    all.extend(
        shard.counters.iter().filter(|c| c.0 == "checkpoints" || c.0 == "reappended_frames").map(|c| c.1),
    );
    all
}

/// One write or read of 4 KiB, verified.
async fn one(volume: &Volume<MemoryShardStore>, i: usize, write: bool) {
    let offset = (i * 7919) as u64 % (VOLUME_BYTES / 4096) * 4096;
    if write {
        let mut buf = Buf::alloc(4096).await;
        buf.fill(i as u8);
        let result = volume.write(offset, buf.freeze()).await;
        assert_eq!(result, Ok(()), "write {i}");
    } else {
        let data = volume.read(offset, 4096).await.unwrap();
        assert_eq!(data.bytes(), 4096);
    }
}

/// Allocations of a window of I/Os with `depth` in flight.
async fn window(volume: &Volume<MemoryShardStore>, depth: usize, round: usize) -> u64 {
    let before = allocations();
    let shared = Rc::new((Cell::new(0), Cell::new(depth), Notify::default()));
    let own = allocations() - before;
    for _ in 0..depth {
        let (volume, shared) = (volume.clone(), shared.clone());
        peristyle_rt::spawn(async move {
            while shared.0.get() < WINDOW {
                let i = shared.0.replace(shared.0.get() + 1);
                // Each place is written in one round and read in another.
                one(&volume, round / 2 * WINDOW + i, (i + round) % 2 == 0).await;
            }
            shared.1.set(shared.1.get() - 1);
            shared.2.notify_all();
        });
    }
    shared.2.wait_until(|| shared.1.get() == 0).await;
    // Its list of waiters is the only other thing that this function itself makes.
    let waiters = 1;
    (allocations() - before).saturating_sub(own + waiters)
}

#[test]
fn no_read_write_or_frame_allocates_once_all_is_warm() {
    peristyle_rt::block_on(RuntimeConfig::default(), async {
        let (node, volume) = start("allocations").await;
        for round in 0..64 {
            window(&volume, 32, round).await;
        }
        for depth in [1, 32] {
            let (mut quiet, mut counts) = (0, Vec::new());
            for round in 0..64 {
                let before = background(&node);
                let count = window(&volume, depth, round).await;
                if background(&node) == before {
                    quiet += 1;
                    counts.push(count);
                }
            }
            assert!(quiet >= 8, "only {quiet} of 64 windows are without background work");
            let silent = counts.iter().filter(|&&n| n == 0).count();
            assert!(4 * silent >= quiet, "allocations per {WINDOW} I/Os at depth {depth}: {counts:?}");
            let few = counts.iter().sum::<u64>() * 40 < (quiet * WINDOW) as u64;
            assert!(few, "allocations per {WINDOW} I/Os at depth {depth}: {counts:?}");
        }
        node.stop();
    });
}
