//! What becomes of a slot that was freed: it is zeroed, or discarded, some time, unless somebody needs it before; and the
//! zeros that a seal has to write.
//!
//! Clearing is work that nobody waits for, and that devices do slowly: a file system has a journal for it, and a drive its own
//! tables. In a pool that is nearly full every slot that is freed is wanted again at once, and clearing each of them
//! first made writes wait. So a device clears few at a time, one after the other, and slots that were not cleared yet are
//! given out when there are no others.

use crate::format::RowRange;
use crate::server::{Discard, Inner};
use crate::stats::WritePurpose;
use peristyle_base::{BLOCK_BYTES, COLUMN_BYTES, SlotIndex};
use peristyle_rt::alloc_count::background;
use peristyle_rt::{Buf, DeviceInfo, Duration, IoError, IoVec, View, join_all, sleep, spawn_background};
use std::rc::{Rc, Weak};

/// Pause between slots, or some of them, that are cleared.
const PERIOD: Duration = Duration::from_millis(500);
/// One of so many that wait, one at least, is cleared after each pause: much that was freed at once is cleared soon.
const SHARE: usize = 64;
/// Zeros that are written at once share one buffer of this size.
const ZERO_BYTES: usize = 16 * BLOCK_BYTES;
/// Holes that are filled at the same time.
const HOLES_MAX: usize = 8;

/// What is done to a slot that is free.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Clearing {
    /// It reads as zeros from then on, guaranteed.
    Zero,
    Discard,
    Leave,
}

impl Clearing {
    pub fn of(wish: Discard, device: &DeviceInfo) -> Clearing {
        match wish {
            Discard::Off => Clearing::Leave,
            _ if device.cheap_zeroes => Clearing::Zero,
            Discard::Auto if !device.discards => Clearing::Leave,
            _ => Clearing::Discard,
        }
    }
}

impl Inner {
    pub fn can_zero(&self) -> bool {
        self.clearing.get() == Clearing::Zero
    }

    /// A slot was freed: it can be given out when its entry says so durably. Ends also when nobody waits for it.
    pub fn give_back(self: &Rc<Inner>, slot: SlotIndex) -> u32 {
        let me = self.clone();
        self.start(background(async move { me.commit_page(slot).await }), move |me, _| {
            let clear = me.clearing.get() != Clearing::Leave;
            me.slots.borrow_mut().freed(slot, clear);
            me.cleared.notify_all();
            if clear && !me.clears.replace(true) {
                spawn_background(clear_at_leisure(Rc::downgrade(me)));
            }
        })
    }

    /// Zeroes a free slot that is wanted. Until that is done nobody else gets it.
    pub fn zero_slot(self: &Rc<Inner>, slot: SlotIndex) -> u32 {
        let me = self.clone();
        // Work beside the I/O path: it may allocate.
        let work = background(async move {
            me.clear(slot, Clearing::Zero).await?;
            me.stats.borrow_mut().flushed();
            me.device.flush().await
        });
        self.start(work, move |me, answer| {
            me.note_failure(answer);
            me.slots.borrow_mut().cleared(slot, answer.is_ok());
            me.cleared.notify_all();
        })
    }

    /// A device that could not clear a slot has shown that it is no use.
    fn note_failure(&self, answer: Result<(), IoError>) {
        if answer.is_err() {
            self.clearing.set(Clearing::Leave);
        }
    }

    /// Durable, where it zeroes, after a flush.
    pub async fn clear(&self, slot: SlotIndex, how: Clearing) -> Result<(), IoError> {
        let offset = self.geometry().row_offset(slot, 0);
        match how {
            Clearing::Zero => {
                self.stats.borrow_mut().wrote(WritePurpose::Zero, COLUMN_BYTES);
                self.device.write_zeroes(offset, COLUMN_BYTES).await
            }
            Clearing::Discard => {
                self.device.discard(offset, COLUMN_BYTES).await?;
                self.stats.borrow_mut().discarded(COLUMN_BYTES);
                Ok(())
            }
            Clearing::Leave => Ok(()),
        }
    }

    /// Clears some of the slots that have waited longest; those that are zeroed share a flush.
    async fn clear_some(&self) {
        let how = self.clearing.get();
        let some = self.slots.borrow().uncleared().div_ceil(SHARE);
        let (mut slots, mut answer) = (Vec::with_capacity(some), Ok(()));
        while slots.len() < some && answer.is_ok() {
            let Some(slot) = self.slots.borrow_mut().next_uncleared() else { break };
            slots.push(slot);
            answer = self.clear(slot, how).await;
        }
        if how == Clearing::Zero && answer.is_ok() {
            self.stats.borrow_mut().flushed();
            answer = self.device.flush().await;
        }
        if answer.is_err() {
            self.stats.borrow_mut().device_error();
        } else {
            self.stats.borrow_mut().returned(slots.len() as u64 * COLUMN_BYTES);
        }
        self.note_failure(answer);
        // A discard promises nothing about what is read afterwards (DESIGN §11, "Columns and slots").
        let zeroed = how == Clearing::Zero && answer.is_ok();
        slots.into_iter().for_each(|slot| self.slots.borrow_mut().cleared(slot, zeroed));
        self.cleared.notify_all();
    }

    /// Writes zeros, durably, into rows that no frame wrote.
    pub async fn fill_holes(&self, slot: SlotIndex, holes: &[RowRange]) -> Result<(), IoError> {
        let Some(most) = holes.iter().map(|hole| hole.count as usize * BLOCK_BYTES).max() else {
            return Ok(());
        };
        let blank = Buf::zeroed(ZERO_BYTES.min(most)).await.freeze();
        for some in holes.chunks(HOLES_MAX) {
            let writes = some.iter().map(|hole| {
                let (offset, bytes) =
                    (self.geometry().row_offset(slot, hole.first.0), hole.count as usize * BLOCK_BYTES);
                self.stats.borrow_mut().wrote(WritePurpose::Zero, bytes as u64);
                self.device.write(offset, repeated(&blank, bytes), false)
            });
            join_all(writes).await.into_iter().collect::<Result<(), _>>()?;
        }
        self.stats.borrow_mut().flushed();
        self.device.flush().await
    }
}

fn repeated(blank: &View, bytes: usize) -> IoVec {
    let mut iov = IoVec::new();
    while iov.bytes() < bytes {
        iov.push(blank.slice(0..blank.len().min(bytes - iov.bytes())));
    }
    iov
}

/// Clears what was freed until nothing waits, or the server is closed.
async fn clear_at_leisure(server: Weak<Inner>) {
    loop {
        sleep(PERIOD).await;
        let Some(inner) = server.upgrade() else { return };
        if inner.clearing.get() == Clearing::Leave || inner.slots.borrow().uncleared() == 0 {
            inner.clears.set(false);
            return;
        }
        inner.clear_some().await;
    }
}

#[cfg(test)]
mod tests {
    use super::Clearing;
    use crate::Discard as Wish;
    use peristyle_rt::{DeviceInfo, DeviceKind};

    #[test]
    fn a_slot_is_cleared_by_the_best_that_the_device_can_and_the_operator_wants() {
        use Clearing::*;
        for (wish, cheap_zeroes, discards, expected) in [
            (Wish::Auto, true, true, Zero),
            (Wish::Auto, true, false, Zero),
            (Wish::Auto, false, true, Discard),
            (Wish::Auto, false, false, Leave),
            (Wish::On, true, true, Zero),
            (Wish::On, false, true, Discard),
            (Wish::On, false, false, Discard),
            (Wish::Off, true, true, Leave),
            (Wish::Off, false, true, Leave),
        ] {
            let (kind, name) = (DeviceKind::Block, String::new());
            let device = DeviceInfo { kind, name, bytes: 0, volatile_cache: true, cheap_zeroes, discards };
            assert_eq!(Clearing::of(wish, &device), expected, "{wish:?} {cheap_zeroes} {discards}");
        }
    }
}
