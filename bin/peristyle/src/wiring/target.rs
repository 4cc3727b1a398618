//! The NVMe/TCP target's part of the wiring.

use super::Plan;
use super::serve::ThisNode;
use crate::failure::Failure;
use peristyle_node::VolumeSpec;
use std::net::SocketAddr;
use std::rc::Rc;

pub async fn start(
    _node: &Rc<ThisNode>,
    _plan: &Plan,
    _volumes: &[VolumeSpec],
    _nqn: &str,
) -> Result<Vec<SocketAddr>, Failure> {
    Ok(Vec::new())
}
pub async fn add(_node: &Rc<ThisNode>, _spec: &VolumeSpec) {}
pub async fn remove(_node: &Rc<ThisNode>, _nsid: u32) {}
pub async fn stop(_node: &Rc<ThisNode>) {}
