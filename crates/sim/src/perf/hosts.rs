//! The hosts: closed loops over NVMe/TCP.

use super::Setup;
use super::cluster::{BLOCKS, Cluster, NQN, portal};
use peristyle_base::{BLOCK_BYTES, Histogram};
use peristyle_bench::host::{Host, HostOptions, Queue};
use peristyle_rt::sim::{NodeHandle, Rng};
use peristyle_rt::{Buf, Duration, View, now};
use std::cell::{Cell, RefCell};
use std::net::Ipv4Addr;
use std::rc::Rc;

/// Volumes that one host uses: its own and those behind it.
const VOLUMES: usize = 4;
/// Blocks of a write that fills a volume.
const FILL: u64 = 64;

/// What all hosts have in common.
#[derive(Default)]
struct Shared {
    ready: Cell<usize>,
    /// The node that serves each volume from the beginning on; none before that.
    owners: RefCell<Vec<usize>>,
    reads: RefCell<Histogram>,
    writes: RefCell<Histogram>,
}

pub struct Hosts {
    shared: Rc<Shared>,
    machines: Vec<NodeHandle>,
}

impl Hosts {
    pub fn start(cluster: &Cluster, setup: &Setup) -> Hosts {
        let shared = Rc::<Shared>::default();
        let count = setup.nodes;
        let machines: Vec<NodeHandle> =
            (0..count).map(|i| cluster.world.add_node(Ipv4Addr::new(10, 0, 2, i as u8 + 1))).collect();
        for (i, machine) in machines.iter().enumerate() {
            // As even as it gets.
            let depth = setup.in_flight / count + usize::from(i < setup.in_flight % count);
            let volumes = (0..VOLUMES.min(count)).map(|v| (i + v) % count);
            let volumes: Vec<(usize, usize)> = volumes.map(|v| (v, cluster.owners[v])).collect();
            let work =
                Work { volumes, depth, read_share: setup.read_share, seed: setup.seed ^ (i as u64) << 8 };
            let shared = shared.clone();
            machine.start(vec![()], move |()| work.clone().run(shared.clone()));
        }
        Hosts { shared, machines }
    }

    pub fn are_ready(&self) -> bool {
        self.shared.ready.get() == self.machines.len()
    }
    pub fn begin(&self, cluster: &Cluster) {
        self.shared.owners.borrow_mut().clone_from(&cluster.owners);
    }
    /// What was measured so far does not count.
    pub fn reset(&self) {
        self.shared.reads.borrow_mut().clear();
        self.shared.writes.borrow_mut().clear();
    }
    /// Latencies of reads and of writes, nanoseconds.
    pub fn taken(&self) -> (Histogram, Histogram) {
        (self.shared.reads.borrow().clone(), self.shared.writes.borrow().clone())
    }
}

#[derive(Clone)]
struct Work {
    /// Each with the node that serves it at first. The first is filled by this host.
    volumes: Vec<(usize, usize)>,
    depth: usize,
    read_share: u64,
    seed: u64,
}

impl Work {
    async fn run(self, shared: Rc<Shared>) {
        let mut queues = Vec::new();
        for &(volume, node) in &self.volumes {
            queues.push((volume as u32 + 1, self.connect(node).await));
        }
        let data = {
            let mut buf = Buf::alloc(FILL as usize * BLOCK_BYTES).await;
            crate::model::fill(self.seed | 1, 0, &mut buf);
            buf.freeze()
        };
        for block in (0..BLOCKS).step_by(FILL as usize) {
            let (nsid, host) = &queues[0];
            host.io[0].write(*nsid, block, FILL as u32, data.clone()).await.expect("it is filled");
        }
        shared.ready.set(shared.ready.get() + 1);
        while shared.owners.borrow().is_empty() {
            peristyle_rt::sleep(Duration::from_millis(1)).await;
        }
        for (&(volume, node), queue) in self.volumes.iter().zip(&mut queues) {
            let owner = shared.owners.borrow()[volume];
            if owner != node {
                queue.1 = self.connect(owner).await;
            }
        }
        let queues: Rc<Vec<(u32, Host)>> = Rc::new(queues);
        for slot in 0..self.depth {
            let (queues, shared, data) = (queues.clone(), shared.clone(), data.slice(0..BLOCK_BYTES));
            let rng = Rng::new(self.seed ^ (slot as u64 + 1) << 32);
            peristyle_rt::spawn(one_after_another(queues, shared, data, rng, self.read_share));
        }
        std::future::pending::<()>().await;
    }

    async fn connect(&self, node: usize) -> Host {
        let name = format!("nqn.2026-01.io.peristyle:host-{}", self.volumes[0].0);
        let options = HostOptions { entries: 64, ..HostOptions::new(&name, NQN) };
        Host::connect(&portal(node), &options, 1).await.expect("the node serves")
    }
}

async fn one_after_another(
    queues: Rc<Vec<(u32, Host)>>,
    shared: Rc<Shared>,
    data: View,
    mut rng: Rng,
    read_share: u64,
) {
    loop {
        let (nsid, host) = &queues[rng.below(queues.len() as u64) as usize];
        let queue: &Queue = &host.io[0];
        let (block, started) = (rng.below(BLOCKS), now());
        if rng.below(100) < read_share {
            let buf = Buf::alloc(BLOCK_BYTES).await;
            queue.read(*nsid, block, 1, buf).await.expect("a read");
            shared.reads.borrow_mut().record(now().nanos_since(started));
        } else {
            queue.write(*nsid, block, 1, data.clone()).await.expect("a write");
            shared.writes.borrow_mut().record(now().nanos_since(started));
        }
    }
}
