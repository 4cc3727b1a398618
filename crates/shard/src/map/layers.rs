//! Layers in chains. A volume is a writable layer on top of a chain; a snapshot names a frozen one. Making either is a
//! step of the table, whatever a volume holds. A layer that nobody names goes when nothing is built on it, and merges into
//! its child when that is the only one (`merge.rs`).

use super::{Away, Layer, Lookup, Map, MapFull, Missing, Ptr, REMAINS};
use peristyle_base::{ExtentId, LayerId};
use std::collections::BTreeMap;

/// Layers in one chain at most.
pub const CHAIN_MAX: usize = 256;
/// Layers of a shard at most, those included that have merged and are named by headers still.
pub const LAYERS_MAX: usize = 65_536;
/// Numbers from here on are those of layers that the shard makes; below are those of volumes and snapshots.
pub(super) const OWN_LAYERS: u32 = 1 << 31;

/// No layer has this number: for one that is not made yet, or is gone.
pub const NOBODY: LayerId = LayerId(u32::MAX - 1);

/// What a volume or a snapshot is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct View {
    pub layer: LayerId,
    /// A volume.
    pub writable: bool,
}

/// What a checkpoint says of layers beside their pages.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct LayerTable {
    /// Each layer's parent, and its live pointers.
    pub layers: Vec<(LayerId, Option<LayerId>, i64)>,
    pub views: Vec<(LayerId, View)>,
    pub aliases: Vec<(LayerId, LayerId)>,
    /// Which layer each page of the remains was of.
    pub origins: Vec<LayerId>,
    pub next_layer: u32,
    /// Live pointers of layers that are gone.
    pub freeing: i64,
}

/// What a volume or a snapshot takes, in blocks. Every live block is of one layer, and every layer of one of these, or of
/// nobody.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Usage {
    /// Its size.
    pub blocks: u64,
    /// Blocks of its own layer.
    pub own: u64,
    /// … if nothing else is built on that.
    pub unique: u64,
    /// Blocks of its chain that others use as well.
    pub shared: u64,
    /// Layers of its chain.
    pub depth: u32,
    pub writable: bool,
}

impl Map {
    /// Adds a volume; does nothing when it is there (replay).
    pub fn create_layer(&mut self, id: LayerId, blocks: u64) -> Result<(), MapFull> {
        if self.views.contains_key(&id) || self.layers.contains_key(&id) {
            return Ok(());
        }
        self.fits(id, blocks)?;
        self.layers.insert(id, Layer::new(blocks, None));
        self.views.insert(id, View { layer: id, writable: true });
        self.link_layers();
        Ok(())
    }

    /// Freezes a volume's layer as a snapshot, and opens layer `new` on top of it. Does nothing when there is no such
    /// volume, or the snapshot is there.
    pub fn take_snapshot(&mut self, volume: LayerId, snapshot: LayerId, new: LayerId) {
        let Some(&view) = self.views.get(&volume).filter(|view| view.writable) else { return };
        if self.views.contains_key(&snapshot) || !self.add_layer(new, view.layer) {
            return;
        }
        self.views.insert(snapshot, View { writable: false, ..view });
        self.views.insert(volume, View { layer: new, writable: true });
        self.link_layers();
    }

    /// Makes a volume on a snapshot.
    pub fn clone_snapshot(&mut self, volume: LayerId, snapshot: LayerId, new: LayerId) {
        let Some(&view) = self.views.get(&snapshot).filter(|view| !view.writable) else { return };
        if !self.views.contains_key(&volume) && self.add_layer(new, view.layer) {
            self.views.insert(volume, View { layer: new, writable: true });
            self.link_layers();
        }
    }

    /// A volume becomes what a snapshot is. What its own layer had goes.
    pub fn roll_back(&mut self, volume: LayerId, snapshot: LayerId, new: LayerId, mut old: impl FnMut(Ptr)) {
        let Some(&to) = self.views.get(&snapshot).filter(|view| !view.writable) else { return };
        let Some(&from) = self.views.get(&volume).filter(|view| view.writable) else { return };
        if self.add_layer(new, to.layer) {
            self.views.insert(volume, View { layer: new, writable: true });
            self.prune(from.layer, &mut old);
        }
    }

    /// A volume or a snapshot goes, and what only it needed.
    pub fn drop_layer(&mut self, id: LayerId, mut old: impl FnMut(Ptr)) {
        if let Some(view) = self.views.remove(&id) {
            self.prune(view.layer, &mut old);
        }
    }

    /// A volume's own layer has all that it shows: it needs no parent.
    pub fn part(&mut self, volume: LayerId, mut old: impl FnMut(Ptr)) {
        let Some(view) = self.views.get(&volume).filter(|view| view.writable) else { return };
        let parent = self.layers.get_mut(&view.layer).and_then(|layer| layer.parent.take());
        if let Some(parent) = parent {
            self.prune(parent, &mut old);
        }
    }

    /// A layer has merged: nothing is in it, nor in the last checkpoint's. Headers may name it still.
    pub fn end_merge(&mut self, id: LayerId) {
        let Some(&into) = self.merging.get(&id).filter(|_| self.is_bare(id)) else { return };
        let gone = self.layers.remove(&id).expect("what merges is there");
        let child = self.layers.get_mut(&into).expect("a child is there");
        (child.parent, child.live) = (gone.parent, child.live + gone.live);
        self.origins.iter_mut().filter(|of| **of == id).for_each(|of| *of = into);
        self.aliases.values_mut().filter(|alias| alias.0 == id).for_each(|alias| alias.0 = into);
        self.aliases.insert(id, (into, None));
        self.forget_layer(id);
        self.link_layers();
    }

    fn add_layer(&mut self, id: LayerId, parent: LayerId) -> bool {
        let Some(blocks) = self.layers.get(&parent).map(|l| l.blocks) else { return false };
        if self.layers.contains_key(&id) || id == REMAINS {
            return false;
        }
        self.next_layer = self.next_layer.max(id.0 + 1);
        self.layers.insert(id, Layer::new(blocks, Some(parent)));
        true
    }

    /// Layers that nobody names and nothing is built on go, from this one down.
    fn prune(&mut self, mut id: LayerId, old: &mut impl FnMut(Ptr)) {
        self.link_layers();
        while let Some(layer) = self.layers.get(&id).filter(|l| !l.named && l.children == 0) {
            let parent = layer.parent;
            self.remove_layer(id, &mut *old);
            self.forget_layer(id);
            self.link_layers();
            match parent {
                Some(parent) => id = parent,
                None => break,
            }
        }
    }

    /// Who is built on what, who has a name, and who merges: after a change of the table.
    pub(super) fn link_layers(&mut self) {
        self.layers.values_mut().for_each(|layer| (layer.children, layer.named) = (0, false));
        let mut child_of: BTreeMap<LayerId, LayerId> = BTreeMap::new();
        let parents: Vec<_> = self.layers.iter().filter_map(|(id, l)| Some((*id, l.parent?))).collect();
        for (id, parent) in parents {
            child_of.insert(parent, id);
            if let Some(parent) = self.layers.get_mut(&parent) {
                parent.children += 1;
            }
        }
        for view in self.views.values() {
            if let Some(layer) = self.layers.get_mut(&view.layer) {
                layer.named = true;
            }
        }
        self.merging.clear();
        let merges = |l: &Layer| !l.named && l.children == 1;
        let merging = self.layers.iter().filter(|(id, layer)| **id != REMAINS && merges(layer));
        self.merging.extend(merging.map(|(id, _)| (*id, child_of[id])));
    }

    /// Volumes and snapshots.
    pub fn views(&self) -> impl Iterator<Item = (LayerId, View)> + '_ {
        self.views.iter().map(|(id, view)| (*id, *view))
    }
    pub fn view(&self, id: LayerId) -> Option<View> {
        self.views.get(&id).copied()
    }
    /// Size of a volume or a snapshot.
    pub fn view_blocks(&self, id: LayerId) -> Option<u64> {
        self.layer_blocks(self.views.get(&id)?.layer)
    }
    /// A number for a layer, which was never given out.
    pub fn new_layer(&mut self) -> LayerId {
        self.next_layer += 1;
        LayerId(self.next_layer - 1)
    }
    pub fn parent(&self, layer: LayerId) -> Option<LayerId> {
        self.layers.get(&layer)?.parent
    }
    /// Layers of a chain, from its top down.
    pub fn chain(&self, top: LayerId) -> impl Iterator<Item = LayerId> + '_ {
        std::iter::successors(Some(top).filter(|id| self.layers.contains_key(id)), |id| self.parent(*id))
    }
    /// There is room in the table, and in the memory, for so many more layers like this one.
    pub fn fits_more(&self, layer: LayerId, more: usize) -> Result<(), MapFull> {
        let blocks = self.layer_blocks(layer).unwrap_or(0);
        let room = self.layers.len() + self.aliases.len() + more <= LAYERS_MAX;
        match room && self.chain(layer).count() < CHAIN_MAX {
            true => self.fits(NOBODY, blocks.saturating_mul(more as u64)),
            false => Err(MapFull),
        }
    }

    /// Where the blocks of a layer go, or went.
    pub fn successor(&self, layer: LayerId) -> Option<LayerId> {
        self.merging.get(&layer).copied().or_else(|| self.aliases.get(&layer).map(|alias| alias.0))
    }
    /// All [successors](Self::successor).
    pub fn all_successors(&self) -> BTreeMap<LayerId, LayerId> {
        let aliases = self.aliases.iter().map(|(from, alias)| (*from, alias.0));
        aliases.chain(self.merging.iter().map(|(from, into)| (*from, *into))).collect()
    }
    /// A layer, and those that its blocks may be of by now.
    pub fn successors(&self, layer: LayerId) -> impl Iterator<Item = LayerId> + '_ {
        std::iter::successors(Some(layer), |layer| self.successor(*layer))
    }

    /// The layer that points at a place: the one that a header names, or one that it has merged into.
    pub fn holder(&self, layer: LayerId, block: u64, ptr: Ptr) -> Option<LayerId> {
        self.successors(layer).find(|layer| self.lookup(*layer, block) == Lookup::Data(ptr))
    }

    /// A leaf that has to be read before it can be said who [holds](Self::holder) a block that a header of this layer
    /// has. With `counted`, one whose earlier contents are not counted yet as well.
    pub fn missing_holder(&self, layer: LayerId, block: u64, counted: bool) -> Option<Away> {
        let is_missing = |layer: &LayerId| {
            let uncounted = counted && !self.is_counted(*layer, block);
            let away = Away::of(*layer, block);
            (uncounted || self.lookup(*layer, block) == Lookup::Away)
                && self.missing(away) != Missing::Nothing
        };
        self.successors(layer).find(is_missing).map(|layer| Away::of(layer, block))
    }

    /// What a volume or a snapshot takes.
    pub fn usage(&self, id: LayerId) -> Option<Usage> {
        let view = self.view(id)?;
        let layer = &self.layers[&view.layer];
        let total: i64 = self.chain(view.layer).map(|layer| self.layers[&layer].live).sum();
        // Layers on their way into this one are of it already.
        let joins = |layer: &LayerId| self.merging.contains_key(layer);
        let joining = self.chain(view.layer).skip(1).take_while(joins);
        let own = layer.live + joining.map(|layer| self.layers[&layer].live).sum::<i64>();
        let unique = if layer.children == 0 { own } else { 0 };
        Some(Usage {
            blocks: layer.blocks,
            own: own.max(0) as u64,
            unique: unique.max(0) as u64,
            shared: (total - unique).max(0) as u64,
            depth: self.chain(view.layer).count() as u32,
            writable: view.writable,
        })
    }

    /// Live blocks of layers that no volume and no snapshot is: those that have several children, and those that are gone
    /// and not counted yet.
    pub fn nobodys_blocks(&self) -> u64 {
        let named = |id: &LayerId| self.successors(*id).last().is_some_and(|l| self.layers[&l].named);
        let unnamed = self.layers.iter().filter(|(id, _)| **id != REMAINS && !named(id));
        (unnamed.map(|(_, layer)| layer.live).sum::<i64>() + self.freeing).max(0) as u64
    }

    /// For checks, while nothing merges and all is counted: whether layers count what they hold.
    pub fn compare_live(&self, held: &BTreeMap<LayerId, i64>) -> Result<(), String> {
        let there = |id| held.get(id).copied().unwrap_or(0);
        let wrong = self.layers.iter().find(|(id, layer)| **id != REMAINS && layer.live != there(id));
        match wrong {
            Some((id, layer)) => Err(format!("{id:?} has {} blocks and counts {}", there(id), layer.live)),
            None if self.freeing != 0 => Err(format!("{} blocks are of layers that are gone", self.freeing)),
            None => Ok(()),
        }
    }

    /// As it is now, for a checkpoint.
    pub(super) fn table(&self) -> LayerTable {
        LayerTable {
            layers: self.layers.iter().map(|(id, layer)| (*id, layer.parent, layer.live)).collect(),
            views: self.views().collect(),
            aliases: self.aliases.iter().map(|(from, alias)| (*from, alias.0)).collect(),
            origins: self.origins.clone(),
            next_layer: self.next_layer,
            freeing: self.freeing,
        }
    }

    /// Aliases end when no extent is left whose headers may name their layers. `first` is the lowest extent that there
    /// is, `next` the lowest that there will be; while blocks are `moving` their frames may name any layer.
    pub fn end_aliases(&mut self, first: ExtentId, next: ExtentId, moving: bool) {
        self.aliases.retain(|_, (_, until)| until.is_none_or(|until| first < until));
        if !moving {
            self.aliases.values_mut().for_each(|alias| _ = alias.1.get_or_insert(next));
        }
    }
}
