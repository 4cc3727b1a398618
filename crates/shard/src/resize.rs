//! A layer becomes larger or smaller while it is used.

use crate::builder::Effect;
use crate::columns::Columns;
use crate::error::{ResizeError, ShardError};
use crate::frame::Entry;
use crate::shard::Shard;
use peristyle_base::{BLOCK_BYTES, LayerId};
use peristyle_cluster::ShardStore;

impl<C: Columns, S: ShardStore + 'static> Shard<C, S> {
    /// Gives a layer another size, durably: one event of the log, which a crash leaves done or not begun. What a
    /// larger layer gains reads as zeros. A smaller one is refused while data lies behind its end, unless `discard`
    /// says that it may go; it goes with the same event, and never comes back. Commands that arrive meanwhile for what
    /// may go wait, and find the layer as it is then.
    pub async fn resize_layer(&self, layer: LayerId, blocks: u64, discard: bool) -> Result<(), ResizeError> {
        // One event of layers at a time: whether memory covers it must be known before it is logged.
        let _turn = self.layer_turn.acquire(1).await;
        let there = self.state.borrow().map.layer_blocks(layer).ok_or(ShardError::OutOfRange)?;
        let event = Effect::Event(Entry::LayerResized { layer, blocks });
        if blocks > there {
            self.state.borrow().map.fits(layer, blocks).map_err(|_| ShardError::MapFull)?;
            self.commit(event).await?;
        } else if blocks < there {
            let _behind = self.lock(layer, blocks, there - blocks).await;
            self.settled(layer, blocks, there - blocks).await?;
            if !discard && let Some(last) = self.state.borrow().map.last_data(layer, blocks) {
                return Err(ResizeError::DataBehind((last + 1) * BLOCK_BYTES as u64 - 1));
            }
            self.commit(event).await?;
        }
        Ok(())
    }
}
