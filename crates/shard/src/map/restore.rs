//! What a restart puts back of a checkpoint.

use super::{Layer, LayerTable, Logged, Map, MapFull, PAGE_BLOCKS, PageAt, REMAINS, Slot, View, pages_of};
use crate::map::changes::Change;
use peristyle_base::LayerId;

impl Map {
    /// A layer, with its pages where the checkpoint has them.
    pub fn restore_layer(
        &mut self,
        id: LayerId,
        blocks: u64,
        pages: &[(u32, PageAt)],
    ) -> Result<(), MapFull> {
        if id != REMAINS {
            self.fits(id, blocks)?;
        }
        let mut slots = vec![Slot::Absent; pages_of(blocks)];
        for &(number, at) in pages {
            if let Some(slot) = slots.get_mut(number as usize) {
                *slot = match at {
                    PageAt::Zero => Slot::Zero,
                    PageAt::Home(home) => Slot::Home(home),
                    PageAt::Written(_) => unreachable!("a checkpoint that was read has written its pages"),
                };
            }
        }
        let blocks = if id == REMAINS { slots.len() as u64 * PAGE_BLOCKS } else { blocks };
        self.layers.insert(id, Layer { pages: slots, ..Layer::new(blocks, None) });
        Ok(())
    }

    /// What a checkpoint says of its layers beside their pages, once they are there, and with that how many pointers count
    /// as live. `None`: it is older than snapshots, and its layers are volumes. [`Map::restore_live`] gets what they hold.
    pub fn restore_table(&mut self, table: Option<&LayerTable>) {
        let Some(table) = table else {
            let ids: Vec<LayerId> = self.layers.keys().copied().filter(|id| *id != REMAINS).collect();
            self.views = ids.iter().map(|&layer| (layer, View { layer, writable: true })).collect();
            self.origins = vec![REMAINS; self.layers[&REMAINS].pages.len()];
            self.link_layers();
            return;
        };
        for &(id, parent, live) in &table.layers {
            if let Some(layer) = self.layers.get_mut(&id) {
                (layer.parent, layer.live) = (parent, live);
            }
        }
        self.views = table.views.iter().copied().collect();
        self.aliases = table.aliases.iter().map(|&(from, to)| (from, (to, None))).collect();
        self.origins.clone_from(&table.origins);
        self.origins.resize(self.layers[&REMAINS].pages.len(), REMAINS);
        (self.next_layer, self.freeing) = (table.next_layer, table.freeing);
        self.mapped =
            (self.layers.values().map(|layer| layer.live).sum::<i64>() + self.freeing).max(0) as u64;
        self.link_layers();
    }

    /// Something that checkpoints have listed, in their order. What lies in no page of its layer is not
    /// looked at. What lies behind its end is: the leaf in which it ends has a block.
    pub fn restore_change(&mut self, logged: &Logged) {
        match *logged {
            Logged::Void { layer, leaf, count } => {
                let count = if count == u32::MAX { u64::MAX } else { count.into() };
                for leaf in self.changes.leaves(layer, leaf, count) {
                    self.changes.take((layer, leaf), |_| {});
                }
            }
            Logged::Set { layer, block, ptr, counted } => {
                if self.layers.get(&layer).is_none_or(|l| block / PAGE_BLOCKS >= l.pages.len() as u64) {
                    return;
                }
                let (key, slot) = ((layer, block / super::LEAF), (block % super::LEAF) as u8);
                // Of several the last one counts, as a whole.
                let change = Change { ptr, slot, counted, fresh: false };
                self.changes.replace(key, change);
            }
        }
    }

    /// One more pointer of a block's layer counts as live: for checkpoints that have no counts of layers.
    pub fn restore_live(&mut self, layer: LayerId, block: u64) {
        self.tally((layer, block / super::LEAF), 1);
    }

    /// For tests and the simulator: no leaf and no page that can be read back is in memory.
    pub fn forget_what_can_be_read(&mut self) {
        self.leaves.iter().for_each(|leaf| leaf.used.set(false));
        for leaf in 0..self.leaves.len() {
            if self.can_go(leaf) {
                self.evict_leaf(leaf as u32);
            }
        }
        for at in 0..self.pages.len() {
            if self.page_can_go(at) {
                self.evict_page(at as u32);
            }
        }
    }
}
