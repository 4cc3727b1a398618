//! A target over simulated TCP, disks and reactors, and a machine for its hosts.
#![allow(dead_code)] // each test file uses a part of it

use peristyle_base::{DeviceId, LayerId, NodeId, Scheme, ShardId, Uuid};
use peristyle_bench::host::HostError;
use peristyle_cluster::{DomainId, MemoryShardStore};
use peristyle_column::FormatOptions;
use peristyle_node::stats::ReactorStats;
use peristyle_node::{DeviceConfig, Node, NodeConfig, TargetConfig, VolumeSpec, seeds};
use peristyle_nvme::QpairLimits;
use peristyle_nvme::subsystem::Hosts;
use peristyle_nvme::wire::Status;
use peristyle_nvme::wire::fabrics::Nqn;
use peristyle_rt::sim::{DiskConfig, NodeHandle, World, WorldConfig};
use peristyle_rt::{
    Addr, Buf, Device, DeviceSpec, Duration, ReactorId, Stream, StreamReader, StreamWriter, View,
};
use peristyle_shard::ShardConfig;
use std::cell::{Cell, RefCell};
use std::rc::Rc;

pub const MIB: u64 = 1 << 20;
pub const NQN: &str = "nqn.2026-01.io.peristyle:pool";
pub const ALICE: &str = "nqn.2026-01.io.peristyle:alice";
pub const BOB: &str = "nqn.2026-01.io.peristyle:bob";
pub const MALLORY: &str = "nqn.2026-01.io.peristyle:mallory";

pub type Shared = Rc<Node<MemoryShardStore>>;

pub fn addr() -> Addr {
    Addr::Tcp("10.0.0.1:4420".parse().unwrap())
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
    }
}

pub struct Rig {
    pub world: World,
    pub target: NodeHandle,
    pub client: NodeHandle,
    pub config: NodeConfig,
    pub reactors: usize,
    /// The first reactor's node, once it serves.
    pub node: Rc<RefCell<Vec<Shared>>>,
    /// Free buffers of each reactor, as they were a moment ago.
    pub free: Rc<RefCell<Vec<[usize; 6]>>>,
    /// What the home reactor is to do next.
    pub order: Rc<Cell<Order>>,
    /// What each reactor counts, once it has seen its bit here.
    figures: Rc<RefCell<Vec<ReactorStats>>>,
    figures_wanted: Rc<Cell<u32>>,
}

/// A volume that is far larger than the disks.
pub const HUGE: u32 = 3;
pub const HUGE_BYTES: u64 = 32 << 30;

#[derive(Clone, Copy, PartialEq)]
pub enum Order {
    None,
    RemoveSecond,
    AddSecond,
    AddHuge,
    Stop,
}

impl Rig {
    /// A target that serves two volumes to Alice. With two reactors the shard lives on the second.
    pub fn new(seed: u64, reactors: usize) -> Rig {
        Rig::with(seed, reactors, 4, "2+1")
    }

    pub fn with(seed: u64, reactors: usize, disks: usize, scheme: &str) -> Rig {
        Rig::over(seed, reactors, disks, scheme, false)
    }

    /// As [`Rig::new`] on one reactor, over devices in memory.
    pub fn in_memory(seed: u64) -> Rig {
        Rig::over(seed, 1, 4, "2+1", true)
    }

    fn over(seed: u64, reactors: usize, disks: usize, scheme: &str, in_memory: bool) -> Rig {
        let world = World::new(WorldConfig::new(seed));
        let target = world.handle().add_node([10, 0, 0, 1].into());
        let client = world.handle().add_node([10, 0, 0, 2].into());
        let mut devices = Vec::new();
        for i in 0..disks {
            let disk = target.add_disk(&format!("d{i}"), 256 * MIB, DiskConfig::default());
            devices.push(DeviceConfig {
                id: Uuid::from_random([i as u8 + 1; 16]),
                spec: if in_memory { DeviceSpec::Memory { bytes: 256 * MIB } } else { disk.spec() },
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
        let free = Rc::new(RefCell::new(vec![[0; 6]; reactors]));
        let order = Rc::new(Cell::new(Order::None));
        let rig = Rig {
            world,
            target,
            client,
            config,
            reactors,
            node: Rc::default(),
            free,
            order,
            figures: Rc::default(),
            figures_wanted: Rc::default(),
        };
        rig.format();
        rig.start();
        rig
    }

    pub fn format(&self) {
        let specs: Vec<(DeviceId, _)> = self.config.devices.iter().map(|d| (d.id, d.spec.clone())).collect();
        let cluster = self.config.cluster;
        let done = Rc::new(Cell::new(false));
        let flag = done.clone();
        self.target.start(vec![()], move |()| {
            let (specs, flag) = (specs.clone(), flag.clone());
            async move {
                for (device, spec) in specs {
                    let disk = Device::open(&spec).await.unwrap();
                    let options = FormatOptions { cluster, device, force: false };
                    peristyle_column::format(&disk, options).await.unwrap();
                }
                flag.set(true);
            }
        });
        assert!(self.world.handle().run_until(|| done.get(), Duration::from_secs(60)));
        self.target.kill();
    }

    pub fn start(&self) {
        let (nodes, free, order) = (self.node.clone(), self.free.clone(), self.order.clone());
        let (figures, wanted) = (self.figures.clone(), self.figures_wanted.clone());
        self.target.start(seeds(&self.config, self.reactors, &MemoryShardStore::default()), move |seed| {
            let (nodes, free, order) = (nodes.clone(), free.clone(), order.clone());
            let (figures, wanted) = (figures.clone(), wanted.clone());
            async move {
                let node = Node::start(seed, true).await;
                let config = TargetConfig {
                    listen: addr(),
                    portals: Vec::new(),
                    nqn: Nqn::new(NQN).unwrap(),
                    serial: "0123456789".into(),
                    hosts: Hosts::Listed(vec![Nqn::new(ALICE).unwrap(), Nqn::new(BOB).unwrap()]),
                    volumes: vec![volume(1, 4096), volume(2, 512)],
                    limits: QpairLimits::default(),
                };
                node.start_target(config).await.unwrap();
                nodes.borrow_mut().push(node.clone());
                loop {
                    peristyle_rt::sleep(Duration::from_millis(5)).await;
                    free.borrow_mut()[usize::from(node.id().0)] = peristyle_rt::buf::free_counts();
                    let mine = 1 << node.id().0;
                    if wanted.get() & mine != 0 {
                        wanted.set(wanted.get() & !mine);
                        figures.borrow_mut().push(node.reactor_stats());
                    }
                    if node.id() == ReactorId(0) {
                        obey(&node, order.replace(Order::None)).await;
                    }
                }
            }
        });
        let all = self.reactors;
        let nodes = self.node.clone();
        assert!(self.world.handle().run_until(move || nodes.borrow().len() == all, Duration::from_secs(60)));
    }

    /// Runs `story` on the client's machine.
    pub fn run<F, Fut>(&self, story: F)
    where
        F: Fn() -> Fut + Clone + 'static,
        Fut: Future<Output = ()> + 'static,
    {
        let done = Rc::new(Cell::new(false));
        let flag = done.clone();
        self.client.start(vec![()], move |()| {
            let (story, flag) = (story.clone(), flag.clone());
            async move {
                story().await;
                flag.set(true);
            }
        });
        assert!(
            self.world.handle().run_until(|| done.get(), Duration::from_secs(600)),
            "the story did not end"
        );
        self.client.kill();
    }

    pub fn connections(&self) -> usize {
        self.node.borrow().iter().map(|n| n.connections()).sum()
    }

    /// What each reactor counts.
    pub fn stats(&self) -> Vec<ReactorStats> {
        self.figures_wanted.set((1 << self.reactors) - 1);
        let wanted = || self.figures_wanted.get() != 0;
        assert!(self.world.handle().run_until(|| !wanted(), Duration::from_secs(1)));
        self.figures.take()
    }

    /// Lets everything settle until no connection is left.
    pub fn settle(&self) {
        assert!(self.world.handle().run_until(|| self.connections() == 0, Duration::from_secs(60)));
        self.world.handle().run_for(Duration::from_secs(1));
    }
}

pub async fn obey(node: &Shared, order: Order) {
    match order {
        Order::None => {}
        Order::RemoveSecond => assert!(node.remove_volume(2).await),
        Order::AddSecond => node.add_volume(volume(2, 512)).await.unwrap(),
        Order::AddHuge => {
            let huge = VolumeSpec { bytes: HUGE_BYTES, ..volume(HUGE, 4096) };
            node.add_volume(huge).await.unwrap();
        }
        Order::Stop => node.stop_target().await,
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.node.borrow_mut().clear();
    }
}

pub fn fill(len: usize, salt: u64) -> Vec<u8> {
    let mut x = salt.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        x as u8
    };
    (0..len).map(|_| next()).collect()
}

pub async fn view(data: &[u8]) -> View {
    let mut buf = Buf::alloc(data.len()).await;
    buf.copy_from_slice(data);
    buf.freeze()
}

pub fn status<T>(result: Result<T, HostError>) -> Status {
    match result {
        Ok(_) => Status::SUCCESS,
        Err(HostError::Status(status)) => status,
        Err(other) => panic!("{other}"),
    }
}

/// Bytes of a connection, by hand.
pub async fn raw(bytes: &[u8]) -> (StreamReader, StreamWriter) {
    let (reader, mut writer) = Stream::connect(&addr()).await.unwrap().split();
    if !bytes.is_empty() {
        writer.send(view(bytes).await.into()).await.unwrap();
    }
    (reader, writer)
}

pub fn ic_req() -> Vec<u8> {
    let mut pdu = vec![0; 128];
    (pdu[2], pdu[4]) = (128, 128);
    pdu
}

/// Reads until the target ends the connection; says how long that took and what came.
pub async fn until_end(reader: &mut StreamReader) -> (Duration, Vec<u8>) {
    let (started, mut all) = (peristyle_rt::now(), Vec::new());
    while let Ok(bytes) = reader.recv().await {
        if bytes.is_empty() {
            break;
        }
        all.extend_from_slice(&bytes);
    }
    (peristyle_rt::now().since(started), all)
}
