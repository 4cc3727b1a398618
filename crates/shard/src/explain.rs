//! One extent for people: what it is, where its columns are, and how each of them does.

use crate::columns::Columns;
use crate::extent::{Extent, ExtentPhase};
use crate::scheme::is_of;
use crate::shard::Shard;
use peristyle_base::{ColumnPlace, Epoch, ExtentId, Scheme};
use peristyle_cluster::ShardStore;

/// One extent at one moment.
#[derive(Clone, Debug)]
pub struct ExtentFigures {
    pub id: ExtentId,
    pub scheme: Scheme,
    /// "ready", "open", "closed" or "sealed".
    pub phase: &'static str,
    /// Under which it was opened.
    pub epoch: Epoch,
    /// That frames have taken.
    pub rows: u16,
    /// Blocks of volumes, and of the map, that lie in it.
    pub live_blocks: u32,
    pub map_blocks: u32,
    /// What it held has been moved, or is being moved, elsewhere.
    pub moving: bool,
    /// The pool makes extents like this.
    pub of_pool: bool,
    pub columns: Vec<ColumnFigures>,
}

#[derive(Clone, Debug)]
pub struct ColumnFigures {
    /// Of no device: none is known to have it.
    pub place: ColumnPlace,
    /// "filling", "sealed", "to be sealed", "damaged", "to be made anew" or "gone".
    pub state: &'static str,
}

impl Extent {
    fn figures(&self, pool: Scheme) -> ExtentFigures {
        let rows = if self.phase == ExtentPhase::Sealed { self.committed_rows } else { self.next_row };
        ExtentFigures {
            id: self.id,
            scheme: self.scheme,
            phase: match self.phase {
                ExtentPhase::Ready => "ready",
                ExtentPhase::Open => "open",
                ExtentPhase::Closed | ExtentPhase::Sealing | ExtentPhase::Old => "closed",
                ExtentPhase::Sealed => "sealed",
            },
            epoch: self.epoch,
            rows,
            live_blocks: self.live,
            map_blocks: self.meta,
            moving: self.victim,
            of_pool: is_of(self.scheme, pool),
            columns: (0..self.scheme.width()).map(|c| self.column_figures(c)).collect(),
        }
    }

    fn column_figures(&self, column: usize) -> ColumnFigures {
        let is = |bits: u32| bits >> column & 1 == 1;
        let place = self.place(column);
        let state = match self.phase {
            _ if is(self.lost) => "to be made anew",
            _ if place.device.is_nil() => "gone",
            ExtentPhase::Sealed if is(self.damaged) => "damaged",
            ExtentPhase::Sealed if is(self.missing) => "to be sealed",
            ExtentPhase::Sealed => "sealed",
            ExtentPhase::Ready | ExtentPhase::Open => "filling",
            ExtentPhase::Closed | ExtentPhase::Sealing | ExtentPhase::Old => "to be sealed",
        };
        ColumnFigures { place, state }
    }
}

impl<C: Columns, S: ShardStore + 'static> Shard<C, S> {
    /// All that there are.
    pub fn extent_ids(&self) -> Vec<ExtentId> {
        self.state.borrow().extents.iter().map(|e| e.id).collect()
    }

    pub fn extent_figures(&self, id: ExtentId) -> Option<ExtentFigures> {
        Some(self.state.borrow().extents.get(id)?.figures(self.wanted_scheme()))
    }
}
