//! One node over simulated disks, and what every story about nodes needs.
#![allow(dead_code)] // each test file uses a part of it

pub mod cluster;
pub mod files;
pub mod nbd;
pub mod owners;

use peristyle_base::{DeviceId, LayerId, NodeId, ShardId, Uuid};
use peristyle_cluster::{DomainId, MemoryShardStore};
use peristyle_column::FormatOptions;
use peristyle_node::{DeviceConfig, Node, NodeConfig, TargetConfig, Volume, VolumeSpec, Wish, seeds};
use peristyle_nvme::QpairLimits;
use peristyle_nvme::subsystem::Hosts;
use peristyle_nvme::wire::fabrics::Nqn;
use peristyle_rt::sim::{DiskConfig, DiskHandle, NodeHandle, World, WorldConfig};
use peristyle_rt::{Addr, Buf, Device, DeviceSpec, Duration, ReactorId, View};
use peristyle_shard::{ShardConfig, ShardError};
use std::cell::Cell;
use std::rc::Rc;

pub type TestNode = Rc<Node>;
pub type TestVolume = Volume;

pub const MIB: u64 = 1 << 20;
pub const BLOCK: u64 = 4096;
pub const NQN: &str = "nqn.2026-01.io.peristyle:pool";
pub const ALICE: &str = "nqn.2026-01.io.peristyle:alice";

pub fn device_id(i: usize) -> DeviceId {
    Uuid::from_random([i as u8 + 1; 16])
}

/// The first volume: 64 MiB.
pub fn spec() -> VolumeSpec {
    volume(1, 4096)
}

pub fn volume(nsid: u32, lba_bytes: u32) -> VolumeSpec {
    VolumeSpec {
        name: format!("v{nsid}"),
        nsid,
        uuid: Uuid::from_random([nsid as u8; 16]),
        nguid: [nsid as u8; 16],
        bytes: 64 * MIB,
        lba_bytes,
        shard: ShardId(0),
        layer: LayerId(nsid),
        read_only: false,
    }
}

/// Each device a domain of its own, spread over the reactors; the one shard lives on the last of them.
pub fn node_config(
    devices: impl IntoIterator<Item = DeviceSpec>,
    reactors: usize,
    shard: ShardConfig,
) -> NodeConfig {
    let device = |(i, spec)| DeviceConfig {
        id: device_id(i),
        spec,
        domain: DomainId(i as u32),
        home: ReactorId((i % reactors) as u16),
        wish: Wish::Active,
        discard: peristyle_column::Discard::Auto,
    };
    NodeConfig {
        node: NodeId(0),
        cluster: Uuid::from_random([9; 16]),
        devices: devices.into_iter().enumerate().map(device).collect(),
        peers: Default::default(),
        peer_devices: Vec::new(),
        peer_shards: Vec::new(),
        shards: vec![(ShardId(0), ReactorId(reactors as u16 - 1))],
        shard,
        rebuild_after: Duration::from_secs(300),
        development: true,
    }
}

pub fn target_config(listen: Addr, hosts: Hosts, volumes: Vec<VolumeSpec>) -> TargetConfig {
    TargetConfig {
        listen,
        portals: Vec::new(),
        nqn: Nqn::new(NQN).unwrap(),
        serial: "0123456789".into(),
        hosts,
        volumes,
        limits: QpairLimits::default(),
        forwards: false,
    }
}

/// Whatever was on the devices is gone.
pub async fn format(config: NodeConfig) {
    for DeviceConfig { id, spec, .. } in config.devices {
        let disk = Device::open(&spec).await.unwrap();
        let options = FormatOptions { cluster: config.cluster, device: id, force: true };
        peristyle_column::format(&disk, options).await.unwrap();
    }
}

/// Runs `story` with each of the seeds on a reactor of the machine until the first has ended.
pub fn run_story<T, F, Fut>(world: &World, machine: &NodeHandle, seeds: Vec<T>, story: F)
where
    T: Send + 'static,
    F: Fn(T) -> Fut + Clone + 'static,
    Fut: Future<Output = ()> + 'static,
{
    let done = Rc::new(Cell::new(false));
    let flag = done.clone();
    machine.start(seeds, move |seed| {
        let (story, flag) = (story.clone(), flag.clone());
        async move {
            story(seed).await;
            flag.set(true);
        }
    });
    assert!(world.handle().run_until(|| done.get(), Duration::from_secs(600)), "the story did not end");
}

pub struct Rig {
    pub world: World,
    pub node: NodeHandle,
    pub config: NodeConfig,
    pub store: MemoryShardStore,
    pub reactors: usize,
    pub disks: Vec<DiskHandle>,
}

impl Rig {
    pub fn new(seed: u64, scheme: &str, disks: usize, reactors: usize) -> Rig {
        Rig::with_disks(seed, scheme, disks, 256 * MIB, reactors)
    }

    pub fn with_disks(seed: u64, scheme: &str, disks: usize, bytes: u64, reactors: usize) -> Rig {
        let world = World::new(WorldConfig::new(seed));
        let node = world.handle().add_node([10, 0, 0, 1].into());
        let disks: Vec<_> =
            (0..disks).map(|i| node.add_disk(&format!("d{i}"), bytes, DiskConfig::default())).collect();
        let shard = ShardConfig::new(scheme.parse().unwrap());
        let config = node_config(disks.iter().map(DiskHandle::spec), reactors, shard);
        run_story(&world, &node, vec![config.clone()], format);
        node.kill();
        Rig { world, node, config, store: MemoryShardStore::default(), reactors, disks }
    }

    /// Boots the node and runs `story` on its first reactor with a volume of 64 MiB.
    pub fn run<F, Fut>(&self, story: F)
    where
        F: Fn(TestNode, TestVolume) -> Fut + Clone + 'static,
        Fut: Future<Output = ()> + 'static,
    {
        let seeds = seeds(&self.config, self.reactors, &self.store);
        let done = Rc::new(Cell::new(false));
        let flag = done.clone();
        self.node.start(seeds, move |seed| {
            let (story, flag) = (story.clone(), flag.clone());
            async move {
                let node = Node::start(seed, true).await;
                if node.id() == ReactorId(0) {
                    let spec = spec();
                    let volume = node.volume(&spec).unwrap();
                    volume.ensure_layer(64 * MIB / BLOCK).await.unwrap();
                    story(node.clone(), volume).await;
                    flag.set(true);
                }
                peristyle_rt::shutdown_requested().await;
            }
        });
        assert!(
            self.world.handle().run_until(|| done.get(), Duration::from_secs(600)),
            "the story did not end"
        );
    }
}

pub fn fill(len: usize, salt: u64) -> Vec<u8> {
    let mut x = salt.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut data = vec![0; len];
    for word in data.chunks_mut(8) {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        word.copy_from_slice(&x.to_le_bytes()[..word.len()]);
    }
    data
}

pub async fn view(data: &[u8]) -> View {
    let mut buf = Buf::alloc(data.len()).await;
    buf.copy_from_slice(data);
    buf.freeze()
}

pub async fn write(volume: &TestVolume, offset: u64, data: &[u8]) -> Result<(), ShardError> {
    volume.write(offset, view(data).await).await
}

pub async fn read(volume: &TestVolume, offset: u64, bytes: u64) -> Result<Vec<u8>, ShardError> {
    let pieces = volume.read(offset, bytes).await?;
    Ok(pieces.to_vec())
}
