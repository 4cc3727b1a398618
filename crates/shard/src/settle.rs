//! What is left of earlier epochs: unsealed extents are sealed at their decided rows, unused ones given back.

use crate::columns::Columns;
use crate::extent::{Extent, ExtentPhase};
use crate::recover::RecoverError;
use crate::repair::RETRY_PERIOD;
use crate::shard::Shard;
use crate::supply::stock_of;
use peristyle_base::{ColumnName, ColumnPlace, ExtentId};
use peristyle_cluster::ShardStore;
use peristyle_rt::join_all;
use std::rc::Rc;

/// Stocks of unused extents that a takeover tolerates until it serves: one owner leaves two, one of each width, and little else.
const PILE_STOCKS: usize = 4;
/// Unused extents that are given back at the same time: slots of a device that are freed at once share a write of its slot table.
const TOGETHER: usize = 16;

impl<C: Columns, S: ShardStore + 'static> Shard<C, S> {
    /// Once the record does not list them any more: nothing is given back before.
    pub(crate) async fn settle_old_extents(self: Rc<Self>) {
        if self.write_record(|_| {}).await.is_err() {
            return;
        }
        self.find_given_back();
        // What gives room first, for it is at once: a full pool has no other.
        self.free_all_unused(self.leftovers()).await;
        let old: Vec<ExtentId> = {
            let state = self.state.borrow();
            let epoch = state.record.epoch;
            let unsealed = |e: &Extent| {
                let used = e.committed_rows > 0 || e.empty;
                used && !e.leftover && (e.phase == ExtentPhase::Old || e.seal_is_due())
            };
            let due = |e: &&Extent| e.epoch != epoch && !e.completing && unsealed(e);
            state.extents.iter().filter(due).map(|e| e.id).collect()
        };
        for id in old {
            if self.stopped().is_some() {
                return;
            }
            self.seal_old(id).await;
        }
        self.state.borrow_mut().settled = true;
        self.space.notify_all();
        self.let_go_of_empty().await;
    }

    /// Unsealed extents that lack more columns than can have been lost with their devices were being given back: nothing of them was needed,
    /// and nobody can seal what is left, which would hold back the mark of every checkpoint for ever.
    fn find_given_back(&self) {
        let state = &mut *self.state.borrow_mut();
        let (epoch, untold) = (state.record.epoch, state.repair.unlisted.len());
        for e in state.extents.iter_mut().filter(|e| e.phase == ExtentPhase::Old && e.epoch != epoch) {
            let unplaced = e.places.iter().filter(|place| place.device.is_nil()).count();
            let given_back = unplaced > untold + e.scheme.m() && !e.in_record && !e.completing;
            e.leftover |= given_back && e.live == 0 && e.meta == 0;
        }
    }

    /// Takeovers that were cut short again and again leave many extents that were never used: they are given back
    /// before more are allocated, or the pool would fill up; and so is what the former owner left in a pool that has room for nothing
    /// else. They leave the open set first.
    pub(crate) async fn free_pile(&self) -> Result<(), RecoverError> {
        let (unused, room) = (self.leftovers(), self.room());
        let stock = stock_of(self.config.ready_extents, room.total, self.config.shards);
        if unused.len() >= PILE_STOCKS * stock || (room.free < stock && !unused.is_empty()) {
            self.write_record(|_| {}).await.map_err(|_| RecoverError::Fenced)?;
            self.free_all_unused(unused).await;
        }
        Ok(())
    }

    fn leftovers(&self) -> Vec<ExtentId> {
        self.state.borrow().extents.iter().filter(|e| e.leftover).map(|e| e.id).collect()
    }

    async fn free_all_unused(&self, ids: Vec<ExtentId>) {
        for some in ids.chunks(TOGETHER) {
            if self.stopped().is_some() {
                return;
            }
            join_all(some.iter().map(|&id| self.free_unused(id))).await;
            self.supply_wanted.notify_all();
        }
    }

    /// Seals with checksums that come from the headers and from encoding verified data, never from what a
    /// parity column happens to hold: a lost or misdirected write is not blessed by reading it back.
    async fn seal_old(self: &Rc<Self>, id: ExtentId) {
        match self.state.borrow_mut().extents.get_mut(id).filter(|e| !e.completing) {
            Some(extent) => extent.completing = true,
            None => return,
        }
        match self.row_crcs(id).await {
            Some(crcs) => self.seal_columns(id, |column| crcs[column].clone()).await,
            None => self.state.borrow_mut().extents.at(id).completing = false,
        }
        if let Some(extent) = self.state.borrow_mut().extents.get_mut(id) {
            extent.remake_at = peristyle_rt::now() + RETRY_PERIOD;
        }
    }

    /// Extents of earlier epochs that could not be sealed, because their devices were slow or did not answer, although none of
    /// them went away: they are tried again when enough of their columns can be had. Until then nothing of them can be made anew.
    pub(crate) async fn settle_again(self: &Rc<Self>) {
        let due = self.unsealed_old();
        if !due.is_empty() {
            // Devices that did not answer some time ago are asked once more.
            self.silent.borrow_mut().clear();
        }
        for id in due {
            if self.stopped().is_some() {
                return;
            }
            self.fence_unfenced(id).await;
            self.seal_old(id).await;
        }
    }

    /// Those that are due, and of which k columns are on devices that can be asked.
    fn unsealed_old(&self) -> Vec<ExtentId> {
        let (fates, now) = (self.fates(), peristyle_rt::now());
        let state = self.state.borrow();
        let old = |e: &&Extent| e.phase == ExtentPhase::Old && e.epoch != state.record.epoch;
        let used = |e: &&Extent| !e.leftover && (e.committed_rows > 0 || e.empty);
        let due = |e: &&Extent| !e.completing && e.remake_at <= now;
        let at_hand = |e: &&Extent| {
            let here = e.places.iter().filter(|p| self.is_reachable_by(&fates, p.device)).count();
            here >= e.scheme.k()
        };
        let all = state.extents.iter().filter(old).filter(used).filter(due);
        all.filter(at_hand).map(|e| e.id).collect()
    }

    /// Columns of an unsealed extent that a takeover could not fence, or that refused a seal since: only whoever fenced one may
    /// seal it.
    async fn fence_unfenced(&self, id: ExtentId) {
        let (columns, epoch) = {
            let state = self.state.borrow();
            let Some(e) = state.extents.get(id) else { return };
            let unfenced = |c: &usize| (e.missing | e.lost) >> c & 1 == 1;
            let all = (0..e.scheme.width()).filter(unfenced);
            let columns: Vec<_> = all.map(|c| (c, e.place(c), e.name(self.id, c))).collect();
            (columns, state.record.epoch)
        };
        let can_be_asked = |c: &(usize, ColumnPlace, ColumnName)| self.is_reachable(c.1.device);
        join_all(columns.into_iter().filter(can_be_asked).map(|(column, place, name)| async move {
            let fence = self.columns.fence(place, name, epoch);
            if self.or_silent(place.device, fence).await == Some(Ok(()))
                && let Some(e) = self.state.borrow_mut().extents.get_mut(id)
            {
                e.missing &= !(1 << column);
                e.lost &= !(1 << column);
            }
        }))
        .await;
    }

    /// An extent that was allocated and holds nothing: it left the open set with the last record.
    async fn free_unused(&self, id: ExtentId) {
        let (extent, epoch) = {
            let state = &mut *self.state.borrow_mut();
            // What something refers to, or may refer to, is never given back.
            if state.extents.get(id).is_none_or(|e| !e.leftover) {
                return;
            }
            let extent = state.extents.remove(id).expect("just seen");
            let unplaced = extent.places.iter().filter(|p| p.device.is_nil()).count();
            if unplaced > extent.columns_gone as usize {
                state.repair.remember(id); // one that is forgotten is found by the next start
            }
            (extent, state.record.epoch)
        };
        let columns = (0..extent.scheme.width()).filter(|&c| !extent.place(c).device.is_nil());
        join_all(columns.map(|column| {
            let (place, name) = (extent.place(column), extent.name(self.id, column));
            async move {
                // A device that does not answer keeps a leftover: it is asked for those when it does.
                let freed = match self.is_silent(place.device) {
                    true => None,
                    false => self.or_silent(place.device, self.columns.free(place, name, epoch)).await,
                };
                if freed != Some(Ok(())) {
                    self.state.borrow_mut().repair.leave_behind(id, place.device);
                }
            }
        }))
        .await;
    }
}
