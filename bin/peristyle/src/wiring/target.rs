//! The NVMe/TCP target's part of the wiring.

use super::Plan;
use super::busy::{in_use, when_free};
use super::serve::ThisNode;
use crate::failure::Failure;
use peristyle_control::config;
use peristyle_member::portals_of;
use peristyle_node::VolumeSpec;
use peristyle_node::target::TargetConfig;
use peristyle_nvme::QpairLimits;
use peristyle_nvme::subsystem::Hosts;
use peristyle_nvme::wire::fabrics::Nqn;
use peristyle_rt::Addr;
use peristyle_shard::ShardError;
use std::net::SocketAddr;
use std::rc::Rc;

fn nqn(text: &str) -> Result<Nqn, Failure> {
    Nqn::new(text).ok_or_else(|| Failure::usage(format!("`{text}` is not an NQN")))
}

/// What one address of the plan means.
fn config(
    plan: &Plan,
    listen: SocketAddr,
    volumes: &[VolumeSpec],
    name: &str,
) -> Result<TargetConfig, Failure> {
    let name = nqn(name)?;
    let hosts = match &plan.hosts {
        config::Hosts::Any => Hosts::Any,
        config::Hosts::Only(list) => Hosts::Listed(list.iter().map(|h| nqn(h)).collect::<Result<_, _>>()?),
    };
    Ok(TargetConfig {
        listen: Addr::Tcp(listen),
        portals: portals_of(plan.portals(), 0),
        serial: serial(&name),
        nqn: name,
        hosts,
        volumes: volumes.to_vec(),
        limits: QpairLimits::default(),
        forwards: plan.forward,
    })
}

/// Twenty characters that stay the same as long as the subsystem's name does.
fn serial(nqn: &Nqn) -> String {
    let text = nqn.to_string();
    let tail: Vec<char> = text.chars().filter(char::is_ascii_alphanumeric).rev().take(20).collect();
    tail.into_iter().rev().collect()
}

/// Starts this reactor's part of the target on every address; returns the addresses as bound.
pub async fn start(
    node: &Rc<ThisNode>,
    plan: &Plan,
    volumes: &[VolumeSpec],
    nqn: &str,
    say: &impl Fn(String),
) -> Result<Vec<SocketAddr>, Failure> {
    let mut bound = Vec::new();
    for &listen in &plan.listen {
        if listen.port() == 0 && plan.reactors > 1 {
            return Err(Failure::usage(format!("{listen}: several reactors need a port that is not 0")));
        }
        let config = config(plan, listen, volumes, nqn)?;
        let what = format!("NVMe/TCP on {listen}");
        match when_free(&what, say, in_use, || node.start_target(config.clone())).await {
            Ok(Addr::Tcp(addr)) => bound.push(addr),
            Ok(Addr::Unix(_)) => {}
            Err(e) => return Err(Failure::failed(format!("{what}: {e}"))),
        }
    }
    Ok(bound)
}

/// A volume that was created while the node runs, or has another size now: hosts hear of it.
pub async fn put(node: &Rc<ThisNode>, spec: &VolumeSpec) -> Result<(), ShardError> {
    node.add_volume(spec.clone()).await
}

/// A volume that is being deleted: hosts lose it.
pub async fn remove(node: &Rc<ThisNode>, nsid: u32) {
    node.remove_volume(nsid).await;
}

/// What is in flight is answered, then connections close.
pub async fn stop(node: &Rc<ThisNode>) {
    node.stop_target().await;
}
