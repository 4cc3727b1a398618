//! Debian's kernel under QEMU, with native multipath to all six nodes of a 4+2 cluster, two of which are killed at a time; and
//! whose scheme is changed. The guest's side is `tests/e2e/lab/kernel-cluster.sh`.

use super::Size;
use super::dev_cluster::{DevCluster, Node};
use super::kernel_host::lab;
use super::scratch::Scratch;
use anyhow::{Context, Result, ensure};
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

const NODES: u16 = 6;
/// What the guest prints before the number of a round.
const ROUND: &str = "ROUND ";
/// Killed nodes stay away for so long.
const AWAY: Duration = Duration::from_secs(4);
pub const MIB: u64 = 1 << 20;

pub fn run(size: Size) -> Result<()> {
    let (rounds, limit) = if size.short { (2, 300) } else { (10, 1800) };
    let lab = lab()?;
    let scratch = Scratch::new("kernel-cluster")?;
    let options = ["--device-size", "1G", "--scheme", "4+2", "--volume", "demo=256M"];
    let cluster = DevCluster::start(&scratch.path().join("cluster"), NODES, "10.0.2.2", &options)?;
    let mut bytes = cluster.ready.volumes[0].bytes;
    let all: Vec<&Node> = cluster.ready.nodes.iter().collect();
    boot(&lab, scratch.path(), (&cluster, &all), (rounds + 1, limit), |round| {
        match round {
            round if round <= rounds => kill_two(&cluster, round)?,
            _ => change_scheme(&cluster)?,
        }
        bytes += MIB;
        cluster.resize("demo", bytes)
    })?;
    end(cluster, scratch)
}

/// To another scheme and back, under the load.
fn change_scheme(cluster: &DevCluster) -> Result<()> {
    for scheme in ["1+1", "4+2"] {
        let took = cluster.convert(scheme)?;
        println!("all that there is was converted to {scheme} in {took:.1?}");
    }
    Ok(())
}

/// Whoever serves the volume, and another, a different one each time; back they come, and get what they have missed.
fn kill_two(cluster: &DevCluster, round: u16) -> Result<()> {
    let owner = cluster.owner("demo")?.node;
    let other = (owner + round % (NODES - 1)) % NODES + 1;
    // Its kernel comes back to nodes that were away.
    cluster.wait_paths()?;
    std::thread::sleep(Duration::from_secs(1));
    for node in [owner, other] {
        cluster.order("kill", node)?;
    }
    std::thread::sleep(AWAY);
    for node in [owner, other] {
        cluster.order("start", node)?;
    }
    let took = cluster.wait_sound()?;
    println!(
        "round {round}: nodes {owner} and {other} were killed, and sound again {took:.1?} after their start"
    );
    Ok(())
}

pub fn end(mut cluster: DevCluster, scratch: Scratch) -> Result<()> {
    cluster.alive()?;
    cluster.stop()?;
    scratch.passed();
    Ok(())
}

/// Boots the guest, which connects to these nodes; each round that it begins is heard of, and over when the volume is a MiB larger.
pub fn boot(
    lab: &Path,
    scratch: &Path,
    (cluster, nodes): (&DevCluster, &[&Node]),
    (rounds, limit): (u16, u32),
    mut begun: impl FnMut(u16) -> Result<()>,
) -> Result<()> {
    let mut command = Command::new(lab.join("boot-guest"));
    command.args(["-c", "2", "-t", &limit.to_string(), "-l"]).arg(scratch.join("console"));
    command.arg(lab.join("kernel-cluster.sh")).args([&cluster.ready.nqn, &rounds.to_string()]);
    for node in nodes {
        command.arg(node.port()?.to_string());
    }
    println!("$ boot-guest kernel-cluster.sh");
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
    let output = child.stdout.take().context("its output is piped")?;
    let mut result = Ok(());
    for line in BufReader::new(output).lines().map_while(Result::ok) {
        println!("{line}");
        if let (Ok(()), Some(round)) = (&result, line.strip_prefix(ROUND)) {
            result = round.parse().map_err(Into::into).and_then(&mut begun);
        }
    }
    let status = child.wait()?;
    result?;
    ensure!(status.success(), "in the guest: {status}");
    Ok(())
}
