//! Debian's kernel under QEMU that reaches one of three nodes, and never the one that owns its volume: its commands are handed on, also
//! when the owner is killed.

use super::Size;
use super::dev_cluster::DevCluster;
use super::kernel_cluster::{MIB, boot, end};
use super::kernel_host::lab;
use super::scratch::Scratch;
use anyhow::{Result, ensure};
use std::time::Duration;

const NODES: u16 = 3;
/// The guest writes for so long before its owner goes, and while it is away.
const WRITING: Duration = Duration::from_secs(4);

pub fn run(size: Size) -> Result<()> {
    let (rounds, limit) = if size.short { (1, 200) } else { (10, 1200) };
    let lab = lab()?;
    let scratch = Scratch::new("kernel-forward")?;
    let options = ["--device-size", "1G", "--scheme", "1+1", "--volume", "demo=256M", "--forward"];
    let cluster = DevCluster::start(&scratch.path().join("cluster"), NODES, "10.0.2.2", &options)?;
    let reached = &cluster.ready.nodes[0];
    // Others own what there is as long as it is in maintenance.
    cluster.tell(reached, &["node", "maintain", &reached.node.to_string(), "--for", "2h"])?;
    let mut bytes = cluster.ready.volumes[0].bytes;
    boot(&lab, scratch.path(), (&cluster, &[reached]), (rounds, limit), |round| {
        std::thread::sleep(WRITING);
        let owner = cluster.owner("demo")?.node;
        ensure!(owner != reached.node, "the guest reaches the owner");
        cluster.order("kill", owner)?;
        std::thread::sleep(WRITING);
        cluster.order("start", owner)?;
        let took = cluster.wait_sound()?;
        println!(
            "round {round}: node {owner}, which owned the volume, was killed, and sound again {took:.1?} after its start"
        );
        bytes += MIB;
        cluster.resize("demo", bytes)
    })?;
    end(cluster, scratch)
}
