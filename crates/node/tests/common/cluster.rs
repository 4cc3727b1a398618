//! Several nodes over a simulated network.

use super::*;
use peristyle_node::{PeerConfig, PeerDevice, PeersConfig};
use std::net::SocketAddr;

pub const PORT: u16 = 7400;

/// Nodes with devices, and one shard on all of them.
pub struct Cluster {
    pub world: World,
    pub machines: Vec<NodeHandle>,
    pub configs: Vec<NodeConfig>,
    pub disks: Vec<DiskHandle>,
    pub store: MemoryShardStore,
    pub reactors: usize,
}

impl Cluster {
    /// One device per node, each a failure domain. The first node owns the shard; the others have devices only.
    pub fn new(seed: u64, scheme: &str, nodes: usize, reactors: usize) -> Cluster {
        Self::of(seed, scheme, nodes, reactors, false)
    }

    /// Every node may own the shard, and none does yet.
    pub fn with_owners(seed: u64, scheme: &str, nodes: usize, reactors: usize) -> Cluster {
        Self::of(seed, scheme, nodes, reactors, true)
    }

    fn of(seed: u64, scheme: &str, nodes: usize, reactors: usize, owners: bool) -> Cluster {
        let world = World::new(WorldConfig::new(seed));
        let ip = |i: usize| [10, 0, 0, i as u8 + 1];
        let addr = |i: usize| SocketAddr::from((ip(i), PORT));
        let machines: Vec<_> = (0..nodes).map(|i| world.handle().add_node(ip(i).into())).collect();
        let disks: Vec<_> =
            machines.iter().map(|m| m.add_disk("d", 512 * MIB, DiskConfig::default())).collect();
        let shard = ShardConfig::new(scheme.parse().unwrap());
        let configs = (0..nodes).map(|i| {
            let mut config = node_config([disks[i].spec()], reactors, shard.clone());
            config.node = NodeId(i as u32 + 1);
            config.devices[0].id = device_id(i);
            config.devices[0].domain = DomainId(i as u32);
            // Not the reactor of the shard, where there are several.
            config.devices[0].home = ReactorId((i % reactors) as u16);
            config.rebuild_after = Duration::from_secs(5);
            let others = (0..nodes).filter(|&j| j != i);
            let peers = others.clone().map(|j| PeerConfig {
                node: NodeId(j as u32 + 1),
                addr: addr(j),
                is_member: true,
            });
            config.peers =
                PeersConfig { listen: Some(addr(i)), peers: peers.collect(), ..Default::default() };
            if i == 0 || owners {
                config.peer_devices = others.map(peer_device).collect();
            }
            if i > 0 || owners {
                config.peer_shards = std::mem::take(&mut config.shards);
            }
            config
        });
        let configs: Vec<_> = configs.collect();
        for (machine, config) in machines.iter().zip(&configs) {
            run_story(&world, machine, vec![config.clone()], format);
            machine.kill();
        }
        Cluster { world, machines, configs, disks, store: MemoryShardStore::default(), reactors }
    }

    /// Boots a node that has devices only.
    pub fn boot(&self, i: usize) {
        boot(&self.machines[i], &self.configs[i], self.reactors, &self.store);
    }

    /// Boots all nodes and runs `story` on the owner with a volume of 64 MiB.
    pub fn run<F, Fut>(&self, story: F)
    where
        F: Fn(TestNode, TestVolume) -> Fut + Clone + 'static,
        Fut: Future<Output = ()> + 'static,
    {
        let others = (1..self.machines.len()).filter(|&i| !self.machines[i].is_running());
        others.for_each(|i| self.boot(i));
        let done = Rc::new(Cell::new(false));
        let flag = done.clone();
        self.machines[0].start(seeds(&self.configs[0], self.reactors, &self.store), move |seed| {
            let (story, flag) = (story.clone(), flag.clone());
            async move {
                let node = Node::start(seed, true).await;
                if node.id() == ReactorId(0) {
                    let volume = node.volume(&spec()).unwrap();
                    volume.ensure_layer(64 * MIB / BLOCK).await.unwrap();
                    story(node.clone(), volume).await;
                    flag.set(true);
                }
                peristyle_rt::shutdown_requested().await;
            }
        });
        let ended = self.world.handle().run_until(|| done.get(), Duration::from_secs(900));
        assert!(ended, "the story did not end");
    }
}

fn peer_device(i: usize) -> PeerDevice {
    PeerDevice {
        id: device_id(i),
        node: NodeId(i as u32 + 1),
        domain: DomainId(i as u32),
        wish: Wish::Active,
    }
}

pub fn boot(machine: &NodeHandle, config: &NodeConfig, reactors: usize, store: &MemoryShardStore) {
    machine.start(seeds(config, reactors, store), |seed| async move {
        let node = Node::start(seed, true).await;
        assert_eq!(node.peer_error(), None);
        peristyle_rt::shutdown_requested().await;
        node.stop();
    });
}
