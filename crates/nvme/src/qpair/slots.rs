//! The commands of one queue pair: a fixed table, a free list, and the set of CIDs in use.

use super::{Completion, FuseRole};
use crate::tag::Tag;
use crate::wire::{Cid, Sqe, Status};

/// TTAG keeps the slot's index in the low bits and a generation of 1..=30 above, so that neither 0000h
/// nor FFFFh is ever a valid tag and a tag of the slot's last command is known to be stale.
const TTAG_INDEX_BITS: u32 = 11;
const TTAG_GENERATIONS: u16 = 30;
/// Most commands one queue pair can hold, limited by the bits of a TTAG.
pub const SLOTS_MAX: usize = (1 << TTAG_INDEX_BITS) - 1;

/// What a command waits for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum SlotState {
    Free,
    /// The driver's buffer: in-capsule data stands in the socket, or no R2T is sent yet.
    BufferWait,
    /// The R2T's turn in the transmit queue.
    R2tQueued,
    /// Data from the host.
    Receiving,
    /// The other half of the fused pair.
    FuseWait,
    /// The layers above.
    Executing,
    /// The transmit queue.
    Responding,
}

#[derive(Clone, Copy)]
pub(super) struct Slot {
    pub generation: u16,
    pub state: SlotState,
    pub sqe: Sqe,
    /// Bytes from the host, or the most it takes.
    pub data_len: u32,
    /// The data comes in the capsule rather than by R2T.
    pub in_capsule: bool,
    /// Bytes from the host that are there.
    pub received: u32,
    /// TTAG of the R2T, 0 when there was none.
    pub ttag: u16,
    /// The driver was asked for a buffer and has not been told what becomes of it.
    pub buffer_asked: bool,
    /// Its CID is marked in use by this slot (a duplicate's is not).
    pub owns_cid: bool,
    /// Set when reception failed; answered once the data is through.
    pub failed: Option<Status>,
    pub fuse: FuseRole,
    pub completion: Completion,
    /// C2H bytes of the answer, and those already handed out.
    pub send_len: u32,
    pub sent: u32,
}

impl Slot {
    fn empty() -> Slot {
        Slot {
            generation: 0,
            state: SlotState::Free,
            sqe: Sqe::default(),
            data_len: 0,
            in_capsule: false,
            received: 0,
            ttag: 0,
            buffer_asked: false,
            owns_cid: false,
            failed: None,
            fuse: FuseRole::Alone,
            completion: Completion::default(),
            send_len: 0,
            sent: 0,
        }
    }
}

/// One bit per CID, 8 KiB once connected: finding a duplicate costs one load however deep the queue is.
/// Empty until Connect, when there are few slots to look through and perhaps thousands of idle connections.
struct CidSet(Vec<u64>);

const CID_WORDS: usize = (u16::MAX as usize + 1) / 64;

impl CidSet {
    fn insert(&mut self, cid: Cid) -> bool {
        let (word, bit) = (usize::from(cid.0 >> 6), 1u64 << (cid.0 & 63));
        let fresh = self.0[word] & bit == 0;
        self.0[word] |= bit;
        fresh
    }
    fn remove(&mut self, cid: Cid) {
        if let Some(word) = self.0.get_mut(usize::from(cid.0 >> 6)) {
            *word &= !(1u64 << (cid.0 & 63));
        }
    }
}

pub(super) struct Slots {
    slots: Vec<Slot>,
    free: Vec<u16>,
    cids: CidSet,
}

impl Slots {
    pub fn new(count: usize) -> Slots {
        let mut slots = Slots { slots: Vec::new(), free: Vec::new(), cids: CidSet(Vec::new()) };
        slots.grow(count);
        slots
    }
    /// Called at creation and when Connect has told the queue's size, never in between.
    pub fn grow(&mut self, count: usize) {
        let count = count.min(SLOTS_MAX);
        let old = self.slots.len();
        if count > old {
            self.slots.resize(count, Slot::empty());
            self.free.reserve(count - self.free.len());
            // Low indexes first: a shallow queue stays within few cache lines.
            let given = std::mem::take(&mut self.free);
            self.free = Vec::with_capacity(count);
            self.free.extend((old..count).rev().map(|index| index as u16));
            self.free.extend(given);
        }
    }
    /// The queue is in use from now on.
    pub fn index_cids(&mut self) {
        if self.cids.0.is_empty() {
            self.cids.0.resize(CID_WORDS, 0);
            for slot in self.slots.iter().filter(|slot| slot.state != SlotState::Free && slot.owns_cid) {
                self.cids.insert(slot.sqe.cid());
            }
        }
    }
    pub fn count(&self) -> usize {
        self.slots.len()
    }
    pub fn in_use(&self) -> usize {
        self.slots.len() - self.free.len()
    }
    /// `None` when all are in use. The second value says whether the CID was free.
    pub fn take(&mut self, sqe: &Sqe) -> Option<(u16, bool)> {
        let index = self.free.pop()?;
        let fresh = if self.cids.0.is_empty() {
            self.find_cid(sqe.cid()).is_none()
        } else {
            self.cids.insert(sqe.cid())
        };
        let slot = &mut self.slots[usize::from(index)];
        let generation = slot.generation.wrapping_add(1);
        *slot = Slot { generation, sqe: *sqe, owns_cid: fresh, ..Slot::empty() };
        Some((index, fresh))
    }
    pub fn release(&mut self, index: u16) {
        let slot = &mut self.slots[usize::from(index)];
        assert!(slot.state != SlotState::Free, "a command ends once");
        slot.state = SlotState::Free;
        if slot.owns_cid {
            self.cids.remove(slot.sqe.cid());
        }
        self.free.push(index);
    }
    pub fn get(&self, index: u16) -> &Slot {
        &self.slots[usize::from(index)]
    }
    pub fn get_mut(&mut self, index: u16) -> &mut Slot {
        &mut self.slots[usize::from(index)]
    }
    pub fn tag(&self, index: u16) -> Tag {
        Tag::new(index, self.get(index).generation)
    }
    /// The slot of a tag that is still the present one.
    pub fn find(&self, tag: Tag) -> Option<u16> {
        let slot = self.slots.get(tag.index())?;
        let live = slot.generation == tag.generation() && slot.state != SlotState::Free;
        live.then_some(tag.index() as u16)
    }
    pub fn find_cid(&self, cid: Cid) -> Option<Tag> {
        let index =
            self.slots.iter().position(|s| s.state != SlotState::Free && s.owns_cid && s.sqe.cid() == cid)?;
        Some(self.tag(index as u16))
    }
    pub fn new_ttag(&self, index: u16) -> u16 {
        let generation = self.get(index).generation % TTAG_GENERATIONS + 1;
        generation << TTAG_INDEX_BITS | index
    }
    /// The live slot whose R2T carried `ttag`. The host names it: nothing is taken for granted.
    pub fn find_ttag(&self, ttag: u16) -> Option<u16> {
        let index = ttag & ((1 << TTAG_INDEX_BITS) - 1);
        let slot = self.slots.get(usize::from(index))?;
        (ttag != 0 && slot.state != SlotState::Free && slot.ttag == ttag).then_some(index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_of_the_last_command_in_a_slot_is_not_the_next_ones() {
        let mut slots = Slots::new(1);
        let sqe = Sqe::new(2, Cid(5));
        let (index, fresh) = slots.take(&sqe).unwrap();
        assert!(fresh);
        slots.get_mut(index).state = SlotState::Executing;
        let old = slots.tag(index);
        assert_eq!(slots.find(old), Some(0));
        assert!(slots.take(&sqe).is_none());
        slots.release(index);
        assert_eq!(slots.find(old), None);
        let (index, fresh) = slots.take(&sqe).unwrap();
        assert!(fresh, "the CID is free again");
        slots.get_mut(index).state = SlotState::Executing;
        assert_eq!(slots.find(old), None);
        assert_eq!(slots.find_cid(Cid(5)), Some(slots.tag(index)));
    }

    #[test]
    fn no_transfer_tag_is_zero_or_all_ones() {
        let mut slots = Slots::new(SLOTS_MAX + 10);
        assert_eq!(slots.count(), SLOTS_MAX);
        for generation in 0..100 {
            for index in [0, 1, (SLOTS_MAX - 1) as u16] {
                slots.get_mut(index).generation = generation;
                let ttag = slots.new_ttag(index);
                assert!(ttag != 0 && ttag != 0xffff);
                assert_eq!(ttag & 0x7ff, index);
            }
        }
    }
}
