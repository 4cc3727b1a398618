//! Extents that are taken out of use: with a checkpoint, because they would hold its mark back, or because they never took a
//! frame; and what becomes of their columns.

use crate::columns::{Columns, Fate};
use crate::extent::{Extent, ExtentPhase, Width};
use crate::shard::{Shard, State};
use crate::stream::Stream;
use crate::supply::SEAL_LIMIT;
use peristyle_base::{ColumnName, ColumnPlace, DeviceId, ExtentId};
use peristyle_cluster::ShardStore;
use peristyle_rt::{Duration, join_all, timeout};
use std::rc::Rc;

/// Sealed extents that never had a block, and those of which no block is alive, that a start leaves alone; with as many it has a
/// checkpoint taken, which lets go of them.
const EMPTY_MAX: usize = 4;
const DEAD_MAX: usize = 32;

/// How often is looked whether devices are about to be away.
const LEAVING_PERIOD: Duration = Duration::from_millis(100);

/// Below which number a checkpoint that begins now has ready and open extents replaced: they are so far behind that
/// the next one would have replay look at more than a few others for their sake. A shard that writes little keeps
/// what it has.
pub(crate) fn retire_below(state: &State) -> ExtentId {
    // Twice as many as are in stock and in use: replacing them does not make others fall behind. Those between them that
    // collection has filled cost replay nothing, and who closes one half empty gives space away.
    let few = 4 * state.stock as u64 + 4 + state.extents.len() as u64 / 16;
    ExtentId(state.next_extent.0.saturating_sub(few)).max(state.retire_below)
}

impl<C: Columns, S: ShardStore + 'static> Shard<C, S> {
    /// Whether there are old extents of a width, and younger ones to go on with. A full pool keeps what it has, unless
    /// they hold back what could be freed: then one of the reserve takes the place of all.
    pub(crate) fn can_retire(&self, width: Width) -> bool {
        let state = self.state.borrow();
        let (extents, below) = (&state.extents, state.retire_below);
        let ready = &extents.ready[width as usize];
        let current = Stream::of_log(width).filter_map(|s| extents.current(s));
        let old = current.chain(ready.iter().copied()).any(|id| id < below);
        let has_young = |w: Width| extents.ready[w as usize].iter().any(|&id| id >= below);
        let on_reserve = state.room_wanted && has_young(Width::Reserve);
        // What a full pool has of one kind serves for the other.
        let on_other =
            state.room_wanted && state.short && (has_young(Width::Wide) || has_young(Width::Narrow));
        let go_on = match width {
            Width::Reserve => !state.short || on_reserve,
            Width::Moved => false,
            Width::Wide | Width::Narrow => has_young(width) || on_other || on_reserve,
        };
        old && go_on
    }

    /// Devices that are about to be away: all that takes frames is replaced by extents without them, while it still can be sealed, so
    /// that no write waits when they go.
    pub(crate) async fn run_stepping_aside(self: Rc<Self>) {
        let (mut fates, mut leaving) = (Vec::new(), Vec::new());
        while self.stopped().is_none() {
            peristyle_rt::sleep(LEAVING_PERIOD).await;
            fates.clear();
            self.columns.fates(&mut fates);
            let is_leaving = |device: DeviceId| fates.contains(&(device, Fate::Leaving));
            leaving.retain(|&device| is_leaving(device));
            let known = leaving.len();
            let all = fates.iter().map(|f| f.0).filter(|&device| is_leaving(device));
            let new: Vec<DeviceId> = all.filter(|device| !leaving.contains(device)).collect();
            leaving.extend(new);
            if leaving.len() > known {
                let state = &mut *self.state.borrow_mut();
                state.retire_below = state.retire_below.max(state.next_extent);
                self.supply_wanted.notify_all();
            }
        }
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
        old.extend(Stream::of_log(width).filter_map(|s| state.extents.current(s)).filter(|&id| id < below));
        old.into_iter().for_each(|id| self.close(state, id));
    }

    /// A full pool whose extents in use hold back what could be freed: an extent of the reserve is needed to close them.
    pub(crate) fn wants_reserve_to_retire(&self) -> bool {
        let state = self.state.borrow();
        let below = state.retire_below;
        let young = state.extents.ready[Width::Reserve as usize].iter().any(|&id| id >= below);
        let old = |width: Width| {
            let current = Stream::of_log(width).filter_map(|s| state.extents.current(s));
            current.chain(state.extents.ready[width as usize].iter().copied()).any(|id| id < below)
        };
        let old = [Width::Wide, Width::Narrow, Width::Reserve].into_iter().any(old);
        state.room_wanted && state.short && old && !young
    }

    /// Gives back an extent that never took a committed frame. It leaves the open set first.
    pub(crate) async fn discard(self: &Rc<Self>, id: ExtentId) {
        let Some(extent) = self.state.borrow_mut().extents.remove(id) else { return };
        self.state.borrow_mut().freeing += 1;
        // Also when it is not in the record: one that lists it may be on its way to the store right now.
        if self.write_record(|_| {}).await.is_ok() {
            self.free_columns(&extent).await;
        }
        self.state.borrow_mut().were_given_back(1);
        self.supply_wanted.notify_all();
    }

    pub(crate) async fn free_columns(&self, extent: &Extent) {
        let bad = self.bad_devices();
        // A device that is slow or away is not waited for: it is asked for what it has left when it is not any more.
        let frees = (0..extent.scheme.width()).filter(|&c| !extent.place(c).device.is_nil()).map(|column| {
            let (place, name) = (extent.place(column), extent.name(self.id, column));
            let is_bad = bad.contains(&place.device);
            async move {
                match is_bad {
                    true => self.state.borrow_mut().repair.leave_behind(extent.id, place.device),
                    false => drop(self.free_slot(place, name, SEAL_LIMIT).await),
                }
            }
        });
        join_all(frees).await;
    }

    /// Whether the device says that the slot is free, in time. If not, it is asked later what it has left.
    pub(crate) async fn free_slot(&self, place: ColumnPlace, name: ColumnName, limit: Duration) -> bool {
        let freed = timeout(limit, self.columns.free(place, name, self.epoch())).await == Some(Ok(()));
        if !freed {
            self.state.borrow_mut().repair.leave_behind(name.extent, place.device);
        }
        freed
    }

    /// A shard that is started often, or goes from node to node, and is written little reaches no checkpoint by its log.
    pub(crate) async fn let_go_of_empty(&self) {
        let (empty, dead) = {
            let state = self.state.borrow();
            let count = |what: fn(&Extent) -> bool| state.extents.iter().filter(|e| what(e)).count();
            (count(is_empty), count(Extent::is_dead))
        };
        if empty >= EMPTY_MAX || dead >= DEAD_MAX {
            let _ = self.checkpoint().await; // tried again at the next start
        }
    }
}

/// Sealed on all columns, off the record, and without a block.
fn is_empty(e: &Extent) -> bool {
    let at_rest = e.phase == ExtentPhase::Sealed && e.missing == 0 && !e.completing;
    at_rest && e.empty && !e.in_record && !e.leftover
}
