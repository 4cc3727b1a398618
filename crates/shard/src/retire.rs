//! Extents that are taken out of use with a checkpoint: those that would hold its mark back, and those that hold no
//! block at all.

use crate::columns::Columns;
use crate::extent::{Extent, ExtentPhase, Width};
use crate::shard::{Shard, State};
use peristyle_base::ExtentId;
use peristyle_cluster::ShardStore;
use peristyle_rt::join_all;
use std::rc::Rc;

/// Sealed extents without a block that a start leaves alone; with this many it has a checkpoint taken, which lets go
/// of them.
const EMPTY_MAX: usize = 4;

/// Below which number a checkpoint that begins now has ready and open extents replaced: they are so far behind that
/// the next one would have replay look at more than a few others for their sake. A shard that writes little keeps
/// what it has.
pub(crate) fn retire_below(state: &State, ready_extents: usize) -> ExtentId {
    // Twice as many as are in stock and in use: replacing them does not make others fall behind.
    let few = 4 * ready_extents as u64 + 4;
    ExtentId(state.next_extent.0.saturating_sub(few)).max(state.retire_below)
}

impl<C: Columns, S: ShardStore + 'static> Shard<C, S> {
    /// Whether there are old extents of a width, and younger ones to go on with. A full pool keeps what it has.
    pub(crate) fn can_retire(&self, width: Width) -> bool {
        let state = self.state.borrow();
        let (extents, below) = (&state.extents, state.retire_below);
        let ready = &extents.ready[width as usize];
        let old = extents.current[width as usize].iter().chain(ready).any(|&id| id < below);
        let go_on = match width {
            Width::Reserve => !state.full,
            Width::Wide | Width::Narrow => ready.iter().any(|&id| id >= below),
        };
        old && go_on
    }

    /// Takes no more frames for old extents: they are sealed, or given back when they never took one. The next
    /// checkpoint's mark is beyond them.
    pub(crate) fn retire(&self, width: Width) {
        if !self.can_retire(width) {
            return;
        }
        let state = &mut *self.state.borrow_mut();
        let below = state.retire_below;
        let ready = &mut state.extents.ready[width as usize];
        let mut old: Vec<ExtentId> = ready.iter().copied().filter(|&id| id < below).collect();
        ready.retain(|&id| id >= below);
        old.extend(state.extents.current[width as usize].filter(|&id| id < below));
        old.into_iter().for_each(|id| self.close(state, id));
    }

    /// Gives back sealed extents that never held a block: what each start leaves, because its first frame says only
    /// what was kept (invariant 6). Nothing can refer to such an extent or read it. Replay could, so it goes once a
    /// checkpoint whose mark is beyond it is durable (invariant 9, Free late).
    pub(crate) async fn give_back_empty(self: &Rc<Self>, mark: ExtentId) {
        let given: Vec<Extent> = {
            let state = &mut *self.state.borrow_mut();
            let ids: Vec<ExtentId> =
                state.extents.iter().filter(|e| e.id < mark && is_empty(e)).map(|e| e.id).collect();
            ids.into_iter().filter_map(|id| state.extents.remove(id)).collect()
        };
        join_all(given.iter().map(|extent| self.free_columns(extent))).await;
    }

    /// A shard that is started often and written little reaches no checkpoint by its log.
    pub(crate) async fn let_go_of_empty(&self) {
        let empty = self.state.borrow().extents.iter().filter(|e| is_empty(e)).count();
        if empty >= EMPTY_MAX {
            let _ = self.checkpoint().await; // tried again at the next start
        }
    }
}

/// Sealed on all columns, off the record, and without a block.
fn is_empty(e: &Extent) -> bool {
    let at_rest = e.phase == ExtentPhase::Sealed && e.missing == 0 && !e.completing;
    at_rest && e.empty && !e.in_record && !e.leftover
}
