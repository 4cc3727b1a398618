//! Which parts of a range hold data.

use crate::columns::Columns;
use crate::error::ShardError;
use crate::map::Run;
use crate::shard::Shard;
use peristyle_base::{BLOCK_BYTES, LayerId};
use peristyle_cluster::ShardStore;

impl<C: Columns, S: ShardStore + 'static> Shard<C, S> {
    /// The first runs of a range of bytes, counted from the block that `offset` lies in; see [`crate::map::Map::runs`].
    /// What was never written, zeroed or trimmed holds no data and reads as zeros.
    pub fn allocation(
        &self,
        layer: LayerId,
        offset: u64,
        bytes: u64,
        runs_max: usize,
    ) -> Result<Vec<Run>, ShardError> {
        let state = self.state.borrow();
        if state.stopped.is_some() {
            return Err(ShardError::Stopped);
        }
        let block = offset / BLOCK_BYTES as u64;
        let end = offset.checked_add(bytes).ok_or(ShardError::OutOfRange)?.div_ceil(BLOCK_BYTES as u64);
        match state.map.layer_blocks(layer) {
            Some(blocks) if block < end && end <= blocks => {
                Ok(state.map.runs(layer, block, end - block, runs_max))
            }
            _ => Err(ShardError::OutOfRange),
        }
    }
}
