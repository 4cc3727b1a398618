//! Single extents, for people who ask about one.

use crate::LocalBoxed;
use crate::message::{Reply, Request};
use crate::reactor::Node;
use peristyle_base::{ExtentId, ShardId};
use peristyle_rt::ReactorId;
use peristyle_shard::ExtentFigures;

impl Node {
    pub(crate) fn extents_here(&self, id: ExtentId) -> Vec<(ShardId, ExtentFigures)> {
        let shards = self.shards.borrow();
        let mut found: Vec<_> =
            shards.values().filter_map(|shard| Some((shard.id(), shard.extent_figures(id)?))).collect();
        found.sort_by_key(|(shard, _)| *shard);
        found
    }

    /// The extents of this number: each shard that this node serves may have one.
    pub fn extents(&self, id: ExtentId) -> LocalBoxed<'_, Vec<(ShardId, ExtentFigures)>> {
        Box::pin(async move {
            let mut found = self.extents_here(id);
            for reactor in (0..self.reactors() as u16).map(ReactorId).filter(|&r| r != self.id()) {
                if let Reply::Extents(more) = self.bus.call(reactor, Request::Extents(id)).await {
                    found.extend(more);
                }
            }
            found
        })
    }
}
