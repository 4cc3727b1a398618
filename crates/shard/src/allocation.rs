//! Which parts of a range hold data.

use crate::columns::Columns;
use crate::error::ShardError;
use crate::map::Run;
use crate::shard::Shard;
use peristyle_base::{BLOCK_BYTES, LayerId};
use peristyle_cluster::ShardStore;
use std::rc::Rc;

impl<C: Columns, S: ShardStore + 'static> Shard<C, S> {
    /// The first runs of a range of bytes, counted from the block that `offset` lies in; see [`crate::map::Map::runs`].
    /// What was never written, zeroed or trimmed holds no data and reads as zeros.
    pub async fn allocation(
        self: &Rc<Self>,
        layer: LayerId,
        offset: u64,
        bytes: u64,
        runs_max: usize,
    ) -> Result<Vec<Run>, ShardError> {
        let block = offset / BLOCK_BYTES as u64;
        let end = offset.checked_add(bytes).ok_or(ShardError::OutOfRange)?.div_ceil(BLOCK_BYTES as u64);
        loop {
            let runs = {
                let state = &mut *self.state.borrow_mut();
                if state.stopped.is_some() {
                    return Err(ShardError::Stopped);
                }
                let layer = state.map.view(layer).ok_or(ShardError::OutOfRange)?.layer;
                match state.map.layer_blocks(layer) {
                    Some(blocks) if block < end && end <= blocks => {
                        state.map.runs(layer, block, end - block, runs_max)
                    }
                    _ => return Err(ShardError::OutOfRange),
                }
            };
            match runs {
                Ok(runs) => return Ok(runs),
                Err(away) => self.bring(away).await?,
            }
        }
    }
}
