//! One node's shards over simulated disks, without a network: writes, reads, restarts, losses.

use peristyle_base::{DeviceId, LayerId, NodeId, Scheme, ShardId, Uuid};
use peristyle_cluster::{DomainId, MemoryShardStore};
use peristyle_column::FormatOptions;
use peristyle_node::{DeviceConfig, Node, NodeConfig, Volume, VolumeSpec, seeds};
use peristyle_rt::sim::{DiskConfig, World, WorldConfig};
use peristyle_rt::{Buf, Device, DeviceSpec, Duration, ReactorId};
use peristyle_shard::{ShardConfig, ShardError};
use std::cell::RefCell;
use std::rc::Rc;

const MIB: u64 = 1 << 20;

fn device_id(i: usize) -> DeviceId {
    Uuid::from_random([i as u8 + 1; 16])
}

struct Rig {
    world: World,
    node: peristyle_rt::sim::NodeHandle,
    config: NodeConfig,
    store: MemoryShardStore,
    reactors: usize,
}

impl Rig {
    fn new(seed: u64, scheme: &str, disks: usize, reactors: usize) -> Rig {
        let world = World::new(WorldConfig::new(seed));
        let node = world.handle().add_node([10, 0, 0, 1].into());
        let mut devices = Vec::new();
        for i in 0..disks {
            let disk = node.add_disk(&format!("d{i}"), 256 * MIB, DiskConfig::default());
            devices.push(DeviceConfig {
                id: device_id(i),
                spec: disk.spec(),
                domain: DomainId(i as u32),
                home: ReactorId((i % reactors) as u16),
            });
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
        let rig = Rig { world, node, config, store: MemoryShardStore::default(), reactors };
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
    fn run<F, Fut>(&self, story: F)
    where
        F: Fn(Rc<Node<MemoryShardStore>>, Volume<MemoryShardStore>) -> Fut + Clone + 'static,
        Fut: Future<Output = ()> + 'static,
    {
        let done = Rc::new(RefCell::new(false));
        let flag = done.clone();
        self.node.start(seeds(&self.config, self.reactors, &self.store), move |seed| {
            let (story, flag) = (story.clone(), flag.clone());
            async move {
                let node = Node::start(seed, false).await;
                let mut waited = 0;
                while !node.is_ready() {
                    peristyle_rt::sleep(Duration::from_millis(10)).await;
                    waited += 1;
                    assert!(waited < 3000, "not ready: {:?}", node.shard_phases());
                }
                if node.id() == ReactorId(0) {
                    let spec = VolumeSpec {
                        name: "v".into(),
                        nsid: 1,
                        uuid: Uuid::default(),
                        nguid: [0; 16],
                        bytes: 64 * MIB,
                        lba_bytes: 4096,
                        shard: ShardId(0),
                        layer: LayerId(1),
                    };
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

fn fill(len: usize, salt: u64) -> Vec<u8> {
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

async fn write(volume: &Volume<MemoryShardStore>, offset: u64, data: &[u8]) -> Result<(), ShardError> {
    let mut buf = Buf::alloc(data.len()).await;
    buf.copy_from_slice(data);
    volume.write(offset, buf.freeze()).await
}

async fn read(volume: &Volume<MemoryShardStore>, offset: u64, bytes: u64) -> Result<Vec<u8>, ShardError> {
    let pieces = volume.read(offset, bytes).await?;
    Ok(pieces.pieces().iter().flat_map(|p| p.to_vec()).collect())
}

#[test]
fn what_was_written_is_read_also_after_kill_and_power_loss() {
    for reactors in [1, 2] {
        let rig = Rig::new(7, "4+2", 6, reactors);
        rig.run(|_, volume| async move {
            for i in 0..40u64 {
                let bytes = [4096, 8192, 65536, 524288][i as usize % 4];
                write(&volume, i * MIB, &fill(bytes, i)).await.unwrap();
            }
            write(&volume, 512, &fill(1024, 99)).await.unwrap();
            volume.zero(2 * MIB, 4096).await.unwrap();
        });
        for round in 0..3 {
            match round {
                0 => rig.node.kill(),
                _ => rig.node.power_off(),
            }
            rig.run(|_, volume| async move {
                for i in 1..40u64 {
                    let bytes = [4096, 8192, 65536, 524288][i as usize % 4];
                    let mut expect = fill(bytes, i);
                    if i == 2 {
                        expect[..4096].fill(0);
                    }
                    assert!(read(&volume, i * MIB, bytes as u64).await.unwrap() == expect, "block {i}");
                }
                let first = read(&volume, 0, 4096).await.unwrap();
                let mut expect = fill(4096, 0);
                expect[512..1536].copy_from_slice(&fill(1024, 99));
                assert!(first == expect);
                assert_eq!(read(&volume, 50 * MIB, 4096).await.unwrap(), vec![0; 4096]);
            });
        }
    }
}

#[test]
fn a_checkpoint_shortens_replay_and_loses_nothing() {
    let rig = Rig::new(8, "2+1", 4, 1);
    rig.run(|node, volume| async move {
        let shard = node.shard(ShardId(0)).unwrap();
        for round in 0..4u64 {
            for i in 0..300u64 {
                write(&volume, (i * 7919 % 16000) * 4096, &fill(4096, round * 1000 + i)).await.unwrap();
            }
            volume.zero((round * 10 + 1) * MIB, 3 * MIB).await.unwrap();
            shard.checkpoint().await.unwrap();
        }
        write(&volume, 0, &fill(4096, 5)).await.unwrap();
    });
    let before = Rc::new(RefCell::new(Vec::new()));
    for round in 0..3 {
        rig.node.kill();
        let before = before.clone();
        rig.run(move |node, volume| {
            let before = before.clone();
            async move {
                let mut all = Vec::new();
                for i in 0..128 {
                    all.extend(read(&volume, i * 524288, 524288).await.unwrap());
                }
                assert!(all[..4096] == fill(4096, 5));
                if round == 0 {
                    *before.borrow_mut() = all;
                } else {
                    assert!(*before.borrow() == all, "round {round}");
                }
                if round == 1 {
                    node.shard(ShardId(0)).unwrap().checkpoint().await.unwrap();
                }
            }
        });
    }
}

#[test]
fn any_two_devices_may_be_away_and_reads_are_right() {
    let rig = Rig::new(9, "4+2", 6, 1);
    rig.run(|_, volume| async move {
        for i in 0..64u64 {
            write(&volume, i * MIB, &fill(4096 * (1 + i as usize % 40), i)).await.unwrap();
        }
    });
    for (a, b) in [(0, 1), (2, 5), (3, 4), (1, 5)] {
        rig.run_again(move |node, volume| async move {
            for d in [a, b] {
                let until = peristyle_rt::device::until(Duration::from_secs(3600));
                assert!(node.inject(device_id(d), peristyle_rt::Fault::FailUntil(until)).await);
            }
            for i in 0..64u64 {
                let bytes = 4096 * (1 + i as usize % 40);
                assert!(read(&volume, i * MIB, bytes as u64).await.unwrap() == fill(bytes, i), "block {i}");
            }
        });
    }
}

#[test]
fn a_failing_and_a_stalling_device_cost_no_write_and_no_protection() {
    for stall in [false, true] {
        let rig = Rig::new(10, "4+2", 6, 1);
        rig.run(move |node, volume| async move {
            for i in 0..50u64 {
                write(&volume, i * MIB, &fill(4096 * (1 + i as usize % 9), i)).await.unwrap();
            }
            let until = peristyle_rt::device::until(Duration::from_secs(5));
            let fault = if stall {
                peristyle_rt::Fault::StallUntil(until)
            } else {
                peristyle_rt::Fault::FailUntil(until)
            };
            assert!(node.inject(device_id(3), fault).await);
            let started = peristyle_rt::now();
            let mut longest = Duration::ZERO;
            let mut i = 0;
            while peristyle_rt::now().since(started) < Duration::from_secs(4) {
                let before = peristyle_rt::now();
                write(&volume, i % 50 * MIB, &fill(4096 * (1 + i as usize % 9), 100 + i)).await.unwrap();
                longest = longest.max(peristyle_rt::now().since(before));
                peristyle_rt::sleep(Duration::from_millis(3)).await;
                i += 1;
            }
            assert!(longest < Duration::from_millis(100), "{longest:?}");
            // What was written meanwhile survives two further losses.
            for d in [0, 5] {
                let until = peristyle_rt::device::until(Duration::from_secs(3600));
                assert!(node.inject(device_id(d), peristyle_rt::Fault::FailUntil(until)).await);
            }
            for n in i.saturating_sub(50)..i {
                let bytes = 4096 * (1 + n as usize % 9);
                assert!(
                    read(&volume, n % 50 * MIB, bytes as u64).await.unwrap() == fill(bytes, 100 + n),
                    "write {n}"
                );
            }
        });
    }
}

#[test]
fn when_all_devices_stall_at_once_writes_wait_and_none_is_refused() {
    let rig = Rig::new(11, "4+2", 6, 1);
    rig.run(move |node, volume| async move {
        for round in 0..4u64 {
            let until = peristyle_rt::device::until(Duration::from_secs(2));
            for d in 0..6 {
                assert!(node.inject(device_id(d), peristyle_rt::Fault::StallUntil(until)).await);
            }
            let writes = (0..48u64).map(|i| {
                let volume = &volume;
                async move { write(volume, i * MIB, &fill(512 << 10, round * 100 + i)).await }
            });
            for result in peristyle_rt::join_all(writes).await {
                assert_eq!(result, Ok(()), "round {round}");
            }
        }
        for i in 0..48u64 {
            assert!(
                read(&volume, i * MIB, 512 << 10).await.unwrap() == fill(512 << 10, 300 + i),
                "write {i}"
            );
        }
    });
}

impl Rig {
    fn run_again<F, Fut>(&self, story: F)
    where
        F: Fn(Rc<Node<MemoryShardStore>>, Volume<MemoryShardStore>) -> Fut + Clone + 'static,
        Fut: Future<Output = ()> + 'static,
    {
        self.node.kill();
        self.run(story);
    }
}
