//! A look at everything: for counts that no checkpoint has, and for checks.

use super::{Away, Block256, FANOUT, LEAF, Lookup, Map, Ptr, Slot};
use peristyle_base::LayerId;

/// A page as a walk finds it.
pub enum Walk {
    Nothing,
    /// To be read: [`Map::children`] of what it holds follow from its bytes.
    Home(Ptr),
    /// Where it was written, and where its leaves were.
    Here(Ptr, Box<Block256>),
}

impl Map {
    /// All layers with the number of their pages, the remains included.
    pub fn all_layers(&self) -> Vec<(LayerId, u32)> {
        self.layers.iter().map(|(&id, layer)| (id, layer.pages.len() as u32)).collect()
    }

    pub fn walk_page(&self, layer: LayerId, number: u32) -> Walk {
        let slot = self.layers.get(&layer).and_then(|l| l.pages.get(number as usize)).copied();
        match slot.unwrap_or_default() {
            Slot::Home(home) => Walk::Home(home),
            Slot::At(at) => {
                let page = &self.pages[at as usize];
                Walk::Here(page.home, page.children.clone())
            }
            Slot::Absent | Slot::Zero
                if self.changes.leaves(layer, number as u64 * LEAF, LEAF).is_empty() =>
            {
                Walk::Nothing
            }
            Slot::Absent | Slot::Zero => Walk::Here(Ptr::ABSENT, Box::new([Ptr::ABSENT; FANOUT])),
        }
    }

    /// The leaf has to be read to know its pointers; its block is at `home`.
    pub fn walk_needs(&self, away: Away, home: Ptr) -> bool {
        matches!(home.lookup(), Lookup::Data(_)) && self.resident(away.layer, away.leaf).is_none()
    }

    /// Every pointer of a leaf that counts as live, with its block: those included that were replaced and are not
    /// counted yet. `base` is what its block holds; a leaf in memory needs none.
    pub fn live_pointers(&self, away: Away, base: Option<&Block256>, mut each: impl FnMut(u64, Ptr)) {
        let first = away.leaf * LEAF;
        let mut live = |slot: usize, ptr: Ptr| {
            if let Lookup::Data(ptr) = ptr.lookup() {
                each(first + slot as u64, ptr);
            }
        };
        if let Some(leaf) = self.resident(away.layer, away.leaf) {
            self.leaf(leaf).iter().enumerate().for_each(|(slot, ptr)| live(slot, *ptr));
            return;
        }
        let mut replaced = [false; FANOUT];
        self.changes.of((away.layer, away.leaf), |change| {
            live(change.slot as usize, change.ptr);
            replaced[change.slot as usize] = change.counted;
        });
        for (slot, ptr) in base.into_iter().flatten().enumerate().filter(|(slot, _)| !replaced[*slot]) {
            live(slot, *ptr);
        }
    }

    /// Map blocks that the tree refers to no more, and the durable checkpoint may.
    pub fn retired(&self) -> &[Ptr] {
        &self.retired
    }
}
