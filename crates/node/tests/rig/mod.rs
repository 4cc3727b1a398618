//! A target over simulated TCP, disks and reactors, and a machine for its hosts.
#![allow(dead_code)] // each test file uses a part of it

pub use crate::common::{ALICE, MIB, NQN, fill, view, volume};

use crate::common::{TestNode, device_id, format, node_config, run_story, target_config};
use peristyle_bench::host::HostError;
use peristyle_cluster::MemoryShardStore;
use peristyle_node::stats::ReactorStats;
use peristyle_node::{Node, NodeConfig, VolumeSpec, seeds};
use peristyle_nvme::subsystem::Hosts;
use peristyle_nvme::wire::Status;
use peristyle_nvme::wire::fabrics::Nqn;
use peristyle_rt::sim::{DiskConfig, NodeHandle, World, WorldConfig};
use peristyle_rt::{Addr, DeviceSpec, Duration, Fault, ReactorId, Stream, StreamReader, StreamWriter};
use peristyle_shard::{ResizeError, ShardConfig};
use std::cell::{Cell, RefCell};
use std::rc::Rc;

pub const BOB: &str = "nqn.2026-01.io.peristyle:bob";
pub const MALLORY: &str = "nqn.2026-01.io.peristyle:mallory";

pub fn addr() -> Addr {
    Addr::Tcp("10.0.0.1:4420".parse().unwrap())
}

pub struct Rig {
    pub world: World,
    pub target: NodeHandle,
    pub client: NodeHandle,
    pub config: NodeConfig,
    pub reactors: usize,
    /// The first reactor's node, once it serves.
    pub node: Rc<RefCell<Vec<TestNode>>>,
    /// Free buffers of each reactor, as they were a moment ago.
    pub free: Rc<RefCell<Vec<[usize; 6]>>>,
    /// What the home reactor is to do next.
    pub order: Rc<Cell<Order>>,
    /// What the control store would know of the first volume.
    pub first: Rc<RefCell<VolumeSpec>>,
    /// What became of the last [`Order::Resize`].
    pub resized: Rc<Cell<Option<Result<(), ResizeError>>>>,
    store: MemoryShardStore,
    /// What each reactor counts, once it has seen its bit here.
    figures: Rc<RefCell<Vec<ReactorStats>>>,
    figures_wanted: Rc<Cell<u32>>,
}

/// A volume that is far larger than the disks.
pub const HUGE: u32 = 3;
pub const HUGE_BYTES: u64 = 32 << 30;

#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Order {
    None,
    RemoveSecond,
    AddSecond,
    AddHuge,
    /// The first volume, to so many bytes; what lies behind may go.
    Resize(u64, bool),
    /// No device answers for so long.
    Stall(Duration),
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
        let device = |i| match in_memory {
            true => DeviceSpec::Memory { bytes: 256 * MIB },
            false => target.add_disk(&format!("d{i}"), 256 * MIB, DiskConfig::default()).spec(),
        };
        let shard = ShardConfig::new(scheme.parse().unwrap());
        let config = node_config((0..disks).map(device), reactors, shard);
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
            first: Rc::new(RefCell::new(volume(1, 4096))),
            resized: Rc::default(),
            store: MemoryShardStore::default(),
            figures: Rc::default(),
            figures_wanted: Rc::default(),
        };
        rig.format();
        rig.start();
        rig
    }

    pub fn format(&self) {
        run_story(&self.world, &self.target, vec![self.config.clone()], format);
        self.target.kill();
    }

    pub fn start(&self) {
        let (nodes, free, order) = (self.node.clone(), self.free.clone(), self.order.clone());
        let (figures, wanted) = (self.figures.clone(), self.figures_wanted.clone());
        let (first, resized) = (self.first.clone(), self.resized.clone());
        let disks = self.config.devices.len();
        self.target.start(seeds(&self.config, self.reactors, &self.store), move |seed| {
            let (nodes, free, order) = (nodes.clone(), free.clone(), order.clone());
            let (figures, wanted) = (figures.clone(), wanted.clone());
            let (first, resized) = (first.clone(), resized.clone());
            async move {
                let node = Node::start(seed, true).await;
                let hosts = Hosts::Listed(vec![Nqn::new(ALICE).unwrap(), Nqn::new(BOB).unwrap()]);
                let known = first.borrow().clone();
                if node.id() == ReactorId(0) {
                    node.volume(&known).unwrap().settle_layer(known.bytes / 4096).await.unwrap();
                }
                let config = target_config(addr(), hosts, vec![known, volume(2, 512)]);
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
                        match order.replace(Order::None) {
                            Order::Resize(bytes, discard) => {
                                resized.set(Some(resize(&node, &first, bytes, discard).await));
                            }
                            Order::Stall(time) => {
                                let until = peristyle_rt::device::until(time);
                                for device in 0..disks {
                                    assert!(node.inject(device_id(device), Fault::StallUntil(until)).await);
                                }
                            }
                            order => obey(&node, order).await,
                        }
                    }
                }
            }
        });
        let all = self.reactors;
        let nodes = self.node.clone();
        assert!(self.world.handle().run_until(move || nodes.borrow().len() == all, Duration::from_secs(60)));
    }

    /// kill -9, and a start.
    pub fn restart(&self) {
        self.target.kill();
        self.node.borrow_mut().clear();
        self.start();
    }

    /// Runs `story` on the client's machine.
    pub fn run<F, Fut>(&self, story: F)
    where
        F: Fn() -> Fut + Clone + 'static,
        Fut: Future<Output = ()> + 'static,
    {
        run_story(&self.world, &self.client, vec![()], move |()| story());
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

/// As the program does: the layer, what is known of it, the hosts.
async fn resize(
    node: &TestNode,
    first: &RefCell<VolumeSpec>,
    bytes: u64,
    discard: bool,
) -> Result<(), ResizeError> {
    let spec = VolumeSpec { bytes, ..first.borrow().clone() };
    node.volume(&spec).unwrap().resize_layer(bytes / 4096, discard).await?;
    peristyle_rt::sleep(Duration::from_micros(200)).await;
    *first.borrow_mut() = spec.clone();
    Ok(node.add_volume(spec).await?)
}

pub async fn obey(node: &TestNode, order: Order) {
    match order {
        Order::None | Order::Resize(..) | Order::Stall(_) => {}
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
