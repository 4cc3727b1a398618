//! One node over simulated disks.
#![allow(dead_code)] // each test file uses a part of it

pub mod nbd;

use peristyle_base::{DeviceId, LayerId, NodeId, Scheme, ShardId, Uuid};
use peristyle_cluster::{DomainId, MemoryShardStore};
use peristyle_column::FormatOptions;
use peristyle_node::{DeviceConfig, Node, NodeConfig, Volume, VolumeSpec, seeds};
use peristyle_rt::sim::{DiskConfig, DiskHandle, World, WorldConfig};
use peristyle_rt::{Device, DeviceSpec, Duration, ReactorId};
use peristyle_shard::ShardConfig;
use std::cell::RefCell;
use std::rc::Rc;

pub const MIB: u64 = 1 << 20;

pub fn device_id(i: usize) -> DeviceId {
    Uuid::from_random([i as u8 + 1; 16])
}

/// The volume of every story: 64 MiB.
pub fn spec() -> VolumeSpec {
    VolumeSpec {
        name: "v".into(),
        nsid: 1,
        uuid: Uuid::default(),
        nguid: [0; 16],
        bytes: 64 * MIB,
        lba_bytes: 4096,
        shard: ShardId(0),
        layer: LayerId(1),
    }
}

pub struct Rig {
    pub world: World,
    pub node: peristyle_rt::sim::NodeHandle,
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
        let (mut devices, mut handles) = (Vec::new(), Vec::new());
        for i in 0..disks {
            let disk = node.add_disk(&format!("d{i}"), bytes, DiskConfig::default());
            devices.push(DeviceConfig {
                id: device_id(i),
                spec: disk.spec(),
                domain: DomainId(i as u32),
                home: ReactorId((i % reactors) as u16),
            });
            handles.push(disk);
        }
        let scheme: Scheme = scheme.parse().unwrap();
        let config = NodeConfig {
            node: NodeId(0),
            cluster: Uuid::from_random([9; 16]),
            devices,
            shards: vec![(ShardId(0), ReactorId(reactors as u16 - 1))],
            shard: ShardConfig::new(scheme),
            development: true,
        };
        let store = MemoryShardStore::default();
        let rig = Rig { world, node, config, store, reactors, disks: handles };
        rig.format();
        rig
    }

    fn format(&self) {
        let specs: Vec<(DeviceId, DeviceSpec)> =
            self.config.devices.iter().map(|d| (d.id, d.spec.clone())).collect();
        let cluster = self.config.cluster;
        let done = Rc::new(RefCell::new(false));
        let flag = done.clone();
        self.node.start(vec![()], move |()| {
            let (specs, flag) = (specs.clone(), flag.clone());
            async move {
                for (device, spec) in specs {
                    let disk = Device::open(&spec).await.unwrap();
                    peristyle_column::format(&disk, FormatOptions { cluster, device, force: false })
                        .await
                        .unwrap();
                }
                *flag.borrow_mut() = true;
            }
        });
        assert!(self.world.handle().run_until(|| *done.borrow(), Duration::from_secs(60)));
        self.node.kill();
    }

    /// Boots the node and runs `story` on its first reactor with a volume of 64 MiB.
    pub fn run<F, Fut>(&self, story: F)
    where
        F: Fn(Rc<Node<MemoryShardStore>>, Volume<MemoryShardStore>) -> Fut + Clone + 'static,
        Fut: Future<Output = ()> + 'static,
    {
        let done = Rc::new(RefCell::new(false));
        let flag = done.clone();
        self.node.start(seeds(&self.config, self.reactors, &self.store), move |seed| {
            let (story, flag) = (story.clone(), flag.clone());
            async move {
                let node = Node::start(seed, true).await;
                if node.id() == ReactorId(0) {
                    let spec = spec();
                    let volume = node.volume(&spec).unwrap();
                    volume.ensure_layer(64 * MIB / 4096).await.unwrap();
                    story(node.clone(), volume).await;
                    *flag.borrow_mut() = true;
                }
                peristyle_rt::shutdown_requested().await;
            }
        });
        assert!(
            self.world.handle().run_until(|| *done.borrow(), Duration::from_secs(600)),
            "the story did not end"
        );
    }
}

pub fn fill(len: usize, salt: u64) -> Vec<u8> {
    let mut x = salt.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    (0..len)
        .map(|_| {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            x as u8
        })
        .collect()
}
