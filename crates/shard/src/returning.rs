//! Devices that come back: what of their columns is still wanted is taken up, what is not is freed.

use crate::columns::{Columns, Fate, ListedSlot, SlotState};
use crate::commit::discard_ready;
use crate::degraded::SILENCE_LIMIT;
use crate::extent::ExtentPhase;
use crate::repair::Fates;
use crate::shard::{Shard, State};
use peristyle_base::{ColumnName, ColumnPlace, DeviceId, ExtentId};
use peristyle_cluster::ShardStore;
use peristyle_rt::timeout;
use std::collections::HashSet;
use std::rc::Rc;

/// What becomes of a slot of a device that came back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Claim {
    /// It is in use, or nothing is known of it.
    Leave,
    /// Somebody is at work on the extent: its slots are looked at again.
    Later,
    /// A column that nobody else has.
    Adopt,
    /// What it holds was freed, or is elsewhere.
    Free,
}

impl<C: Columns, S: ShardStore + 'static> Shard<C, S> {
    /// Looks at what devices have that were away at the last look, or did not tell when they were asked, and at those that may
    /// have slots which nobody needs.
    pub(crate) async fn welcome_devices(self: &Rc<Self>) {
        let fates = self.fates();
        let back: Vec<DeviceId> = {
            let repair = &self.state.borrow().repair;
            let known = Fates(repair.known.clone());
            let new = |device| !known.of(device).serves() || repair.unlisted.contains(&device);
            fates.0.iter().filter(|(device, fate)| fate.serves() && new(*device)).map(|d| d.0).collect()
        };
        let here = |device| fates.of(device).serves();
        let due = self.state.borrow_mut().repair.take_rechecks(here);
        // What is open is sealed, so that it can be made anew elsewhere, also when nobody writes any more.
        for (device, _) in fates.0.iter().filter(|d| matches!(d.1, Fate::Draining | Fate::Lost)) {
            self.leave(*device);
        }
        self.state.borrow_mut().repair.known = fates.0;
        for &device in &back {
            self.silent.borrow_mut().retain(|d| *d != device);
            if !self.welcome(device).await {
                self.ask_again(device);
            }
        }
        for device in due.into_iter().filter(|device| !back.contains(device)) {
            if !self.welcome(device).await {
                self.state.borrow_mut().repair.recheck(device);
            }
        }
    }

    /// False: it has to be asked again.
    async fn welcome(self: &Rc<Self>, device: DeviceId) -> bool {
        let list = timeout(SILENCE_LIMIT, self.columns.list_device(device, self.id)).await;
        self.state.borrow_mut().repair.unlisted.retain(|d| *d != device);
        let Some(Ok(slots)) = list else { return false };
        self.doubt_absent(device, &slots);
        let (mut unsettled, mut done) = (false, true);
        for slot in slots {
            let claim = claim(&self.state.borrow(), &slot);
            match claim {
                Claim::Leave => {}
                Claim::Later => done = false,
                Claim::Adopt => {
                    let old = adopt(&mut self.state.borrow_mut(), &slot);
                    unsettled |= old && self.fence_again(&slot).await;
                }
                Claim::Free => self.free_leftover(slot.place, slot.name).await,
            }
        }
        if unsettled {
            // What could not be sealed without this device may be now.
            self.clone().settle_old_extents().await;
        }
        done
    }

    pub(crate) async fn free_leftover(&self, place: ColumnPlace, name: ColumnName) {
        if self.free_slot(place, name, SILENCE_LIMIT).await {
            self.state.borrow_mut().repair.figures.leftovers_freed += 1;
        }
    }

    /// Sealed columns that the device had, and does not list: it came back with an older content. They are looked at, for
    /// some may have been made there since it told.
    fn doubt_absent(&self, device: DeviceId, slots: &[ListedSlot]) {
        let sealed = slots.iter().filter(|s| s.state == SlotState::Sealed);
        let sealed: HashSet<(ExtentId, usize)> =
            sealed.map(|s| (s.name.extent, s.name.column.0 as usize)).collect();
        let state = &mut *self.state.borrow_mut();
        for e in state.extents.iter_mut().filter(|e| e.phase == ExtentPhase::Sealed) {
            let known = |c: &usize| e.place(*c).device == device && e.sealed_columns() >> c & 1 == 1;
            let absent = (0..e.scheme.width()).filter(known).filter(|&c| !sealed.contains(&(e.id, c)));
            e.suspected |= absent.fold(0, |set, c| set | 1 << c);
        }
    }

    fn ask_again(&self, device: DeviceId) {
        let unlisted = &mut self.state.borrow_mut().repair.unlisted;
        if !unlisted.contains(&device) {
            unlisted.push(device);
        }
    }

    /// A column of an extent that a start could not seal: only whoever fenced it may.
    async fn fence_again(&self, slot: &ListedSlot) -> bool {
        let fence = self.columns.fence(slot.place, slot.name, self.epoch());
        let fenced = timeout(SILENCE_LIMIT, fence).await == Some(Ok(()));
        if let Some(e) = self.state.borrow_mut().extents.get_mut(slot.name.extent) {
            e.missing &= !(u32::from(fenced) << slot.name.column.0);
        }
        fenced
    }

    /// No more frames go to extents with a column on a device that is to leave, or is lost.
    fn leave(&self, device: DeviceId) {
        let state = &mut *self.state.borrow_mut();
        discard_ready(state, |e| e.is_on(device));
        for id in state.extents.all_current().into_iter().flatten() {
            if state.extents.get(id).is_some_and(|e| e.is_on(device)) {
                self.close(state, id);
            }
        }
        self.supply_wanted.notify_all();
    }
}

fn claim(state: &State, slot: &ListedSlot) -> Claim {
    let (id, column) = (slot.name.extent, slot.name.column.0 as usize);
    let Some(e) = state.extents.get(id) else {
        // It may be being allocated, or leaves the record before its columns go.
        let new = id >= state.creating.unwrap_or(state.next_extent);
        let listed = state.record.open_set.iter().any(|o| o.extent == id);
        // The map may point at it, if nobody was there to tell of it.
        let unknown = state.repair.unknown.contains(&slot.place.device) && !state.repair.let_go.contains(&id);
        return if new || listed || unknown { Claim::Leave } else { Claim::Free };
    };
    if column >= e.scheme.width() || e.nonce != slot.name.nonce || e.scheme != slot.scheme {
        return Claim::Leave;
    }
    let missing = e.missing >> column & 1 == 1;
    // First of all: what the device told may be old by now, and this slot may have become the column's place since.
    if e.place(column) == slot.place {
        // It was sealed, and the answer was lost.
        let sealed = slot.state == SlotState::Sealed && fits(e.phase, e.committed_rows, slot.rows);
        return if missing && sealed && !e.completing { Claim::Adopt } else { Claim::Leave };
    }
    match slot.state {
        // It is being filled now, or the attempt failed while the device was away.
        SlotState::Filling if e.completing => Claim::Later,
        SlotState::Filling => Claim::Free,
        _ if e.completing => Claim::Later,
        _ if !missing => Claim::Free,
        SlotState::Sealed if fits(e.phase, e.committed_rows, slot.rows) => Claim::Adopt,
        // Read block by block until it is made anew.
        SlotState::Open if e.place(column).device.is_nil() => Claim::Adopt,
        _ => Claim::Leave,
    }
}

/// A sealed column has all rows that its extent has.
fn fits(phase: ExtentPhase, committed_rows: u16, rows: u16) -> bool {
    phase == ExtentPhase::Sealed && rows >= committed_rows
}

/// True: its extent is not sealed yet.
fn adopt(state: &mut State, slot: &ListedSlot) -> bool {
    let column = slot.name.column.0 as usize;
    let e = state.extents.at(slot.name.extent);
    e.set_place(column, slot.place);
    match slot.state {
        SlotState::Sealed => {
            e.missing &= !(1 << column);
            e.lost &= !(1 << column);
        }
        // Its rows' checksums are not known: nobody can seal it.
        _ if e.phase == ExtentPhase::Sealed => e.lost |= 1 << column,
        _ => {}
    }
    let old = e.phase == ExtentPhase::Old;
    state.repair.figures.adopted_columns += 1;
    old
}
