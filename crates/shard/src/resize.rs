//! A layer becomes larger or smaller while it is used.

use crate::builder::Effect;
use crate::columns::Columns;
use crate::error::{ResizeError, ShardError};
use crate::frame::Entry;
use crate::shard::Shard;
use peristyle_base::{BLOCK_BYTES, LayerId};
use peristyle_cluster::ShardStore;
use std::rc::Rc;

impl<C: Columns, S: ShardStore + 'static> Shard<C, S> {
    /// Gives a layer another size, durably: one event of the log, which a crash leaves done or not begun. What a
    /// larger layer gains reads as zeros. A smaller one is refused while data lies behind its end, unless `discard`
    /// says that it may go; it goes with the same event, and never comes back. Commands that arrive meanwhile for what
    /// may go wait, and find the layer as it is then.
    pub async fn resize_layer(
        self: &Rc<Self>,
        layer: LayerId,
        blocks: u64,
        discard: bool,
    ) -> Result<(), ResizeError> {
        // One event of layers at a time: whether memory covers it must be known before it is logged.
        let _turn = self.layer_turn.acquire(1).await;
        let there = self.state.borrow().map.view_blocks(layer).ok_or(ShardError::OutOfRange)?;
        let view = self.state.borrow().map.view(layer).expect("just seen");
        if !view.writable {
            return Err(ShardError::ReadOnly.into());
        }
        let head = view.layer;
        let event = Effect::Event(Entry::LayerResized { layer: head, blocks });
        if blocks > there {
            self.state.borrow().map.fits(head, blocks).map_err(|_| ShardError::MapFull)?;
            let _ = self.bring_edges(head, there, blocks - there).await;
            self.commit(event).await?;
        } else if blocks < there {
            let _behind = self.lock(layer, blocks, there - blocks).await;
            self.settled(layer, blocks, there - blocks).await?;
            if !discard && let Some(last) = self.last_data(head, blocks, there).await? {
                return Err(ResizeError::DataBehind((last + 1) * BLOCK_BYTES as u64 - 1));
            }
            let _ = self.bring_edges(head, blocks, there - blocks).await;
            self.commit(event).await?;
        }
        Ok(())
    }

    /// The last block that holds data, from `from` on and before `below`.
    async fn last_data(
        self: &Rc<Self>,
        layer: LayerId,
        from: u64,
        mut below: u64,
    ) -> Result<Option<u64>, ShardError> {
        loop {
            let found = self.state.borrow_mut().map.last_found(layer, from, &mut below);
            let away = match found {
                Ok(Some(last)) => return Ok(last),
                // There may be more to look at than one step should.
                Ok(None) => {
                    peristyle_rt::end_of_turn().await;
                    continue;
                }
                Err(away) => away,
            };
            self.bring(away).await?;
        }
    }
}
