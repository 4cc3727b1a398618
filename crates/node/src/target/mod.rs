//! The NVMe/TCP target: connections on every reactor, controllers on one.

use crate::reactor::Node;
use peristyle_cluster::ShardStore;
use std::rc::Rc;

/// What a connection asks of the home reactor.
pub enum HomeRequest {}
/// What the home reactor answers.
pub enum HomeReply {}

/// What this reactor's part of the target knows.
#[derive(Default)]
pub struct TargetState {}

impl<S: ShardStore + Clone + 'static> Node<S> {
    pub(crate) async fn serve_home(self: &Rc<Self>, request: HomeRequest) -> HomeReply {
        match request {}
    }
}
