//! The machines of a cluster's nodes, and what cuts them off from each other.

use super::register::Registers;
use crate::Outcome;
use peristyle_base::{DeviceId, Uuid};
use peristyle_column::{FormatOptions, Geometry, format};
use peristyle_rt::sim::{DiskConfig, DiskHandle, NodeHandle, World};
use peristyle_rt::{Device, Duration};

pub fn device_id(node: usize) -> DeviceId {
    Uuid([0xD0 + node as u8; 16])
}

/// So many machines in a network of this number, each with a formatted disk; nobody runs yet.
pub fn machines(
    world: &World,
    network: u8,
    cluster: Uuid,
    (nodes, shards, volatile_cache): (usize, usize, bool),
) -> (Vec<NodeHandle>, Vec<DiskHandle>) {
    let machines: Vec<NodeHandle> =
        (0..nodes).map(|i| world.add_node([10, 0, network, i as u8 + 1].into())).collect();
    let disk = DiskConfig { volatile_cache, ..DiskConfig::default() };
    let bytes = Geometry::bytes_for(64 + 64 * shards as u32);
    let disks: Vec<DiskHandle> = machines.iter().map(|m| m.add_disk("d", bytes, disk.clone())).collect();
    for (i, machine) in machines.iter().enumerate() {
        machine.start(vec![disks[i].spec()], move |spec| async move {
            let device = Device::open(&spec).await.expect("there");
            let options = FormatOptions { cluster, device: device_id(i), force: false };
            format(&device, options).await.expect("blank");
        });
        assert!(world.run_until(|| !machine.is_running(), Duration::from_secs(10)));
    }
    (machines, disks)
}

/// Which ways between a node and the others are cut.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cut {
    /// Nobody hears it, and it hears nobody.
    Off,
    /// It hears the others, and they do not hear it.
    Mute,
    /// They hear it, and it does not hear them.
    Deaf,
    /// One other node and it do not hear each other.
    Pair,
}

impl Cut {
    /// Of one of these machines, from now on or not any more.
    pub fn set(self, world: &World, machines: &[NodeHandle], node: usize, on: bool) {
        for other in (0..machines.len()).filter(|&other| other != node) {
            let (victim, peer) = (&machines[node], &machines[other]);
            match self {
                Cut::Off => world.partition(victim, peer, on),
                Cut::Mute => world.block(victim, peer, on),
                Cut::Deaf => world.block(peer, victim, on),
                Cut::Pair if other == (node + 1) % machines.len() => world.partition(victim, peer, on),
                Cut::Pair => {}
            }
        }
    }
}

/// What a world with such hosts has seen.
pub fn outcome(world: &World, registers: &Registers, faults: u64, crashes: u64) -> Outcome {
    assert_eq!(world.leaked_buffers(), 0, "buffers that nobody gave back");
    Outcome {
        trace: world.trace_hash(),
        simulated_nanos: world.now_nanos(),
        events: world.events(),
        crashes,
        faults,
        operations: registers.answered(),
        verified: registers.reads,
        ..Outcome::default()
    }
}
