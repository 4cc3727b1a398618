//! Requests in flight. A request is one or several **parts**, each at most as long as the layers below take at
//! once; each part has a slot, and the slots of a request are chained, the first is its head.

use super::{Extent, Request, Tag};
use crate::wire::Errno;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum SlotState {
    Free,
    /// Part of a write whose data has not begun to come.
    Queued,
    /// The driver's buffer; the data stands in the socket.
    BufferWait,
    /// Data from the client.
    Receiving,
    /// The layers above.
    Executing,
    /// The request's other parts, then the transmit queue.
    Done,
}

/// Most extents that one BLOCK_STATUS tells. It may tell less than was asked for.
pub const EXTENTS_MAX: usize = 16;

#[derive(Clone)]
pub(super) struct Slot {
    pub generation: u16,
    pub state: SlotState,
    /// Of this part, within the export.
    pub offset: u64,
    pub len: u32,
    /// First slot of the request.
    pub head: u16,
    /// The next part's slot.
    pub next: Option<u16>,
    /// It ended with an error, or was never executed.
    pub failed: bool,
    // What follows belongs to the head.
    pub request: Request,
    /// Parts that have not ended.
    pub parts_left: u16,
    /// The first error of any part.
    pub error: Option<Errno>,
    pub extents: [Extent; EXTENTS_MAX],
    pub extent_count: u8,
}

impl Slot {
    fn empty() -> Slot {
        Slot {
            generation: 0,
            state: SlotState::Free,
            offset: 0,
            len: 0,
            head: 0,
            next: None,
            failed: false,
            request: Request::default(),
            parts_left: 0,
            error: None,
            extents: [Extent::default(); EXTENTS_MAX],
            extent_count: 0,
        }
    }
}

pub(super) struct Slots {
    slots: Vec<Slot>,
    free: Vec<u16>,
}

impl Slots {
    pub fn none() -> Slots {
        Slots { slots: Vec::new(), free: Vec::new() }
    }
    pub fn new(count: usize) -> Slots {
        assert!((1..=u16::MAX as usize).contains(&count), "the slots have 16-bit numbers");
        Slots { slots: vec![Slot::empty(); count], free: (0..count as u16).rev().collect() }
    }

    /// Slots for a request, chained: one, or one per part that ends at a multiple of `part_bytes`. `None` when
    /// there are too few.
    pub fn take(&mut self, request: Request, part_bytes: Option<u32>) -> Option<u16> {
        let part_of = |offset: u64| part_bytes.map_or(0, |bytes| offset / u64::from(bytes));
        let last = request.offset.wrapping_add(u64::from(request.length)).wrapping_sub(1);
        let parts = (part_of(last) - part_of(request.offset)) as usize + 1;
        if self.free.len() < parts {
            return None;
        }
        let head = *self.free.last()?;
        let (mut offset, mut left, mut previous) = (request.offset, request.length, None::<u16>);
        for _ in 0..parts {
            let index = self.free.pop().expect("counted above");
            let room = part_bytes.map_or(u32::MAX, |bytes| bytes - (offset % u64::from(bytes)) as u32);
            let len = left.min(room);
            let slot = self.get_mut(index);
            *slot = Slot {
                generation: slot.generation.wrapping_add(1),
                state: SlotState::Queued,
                offset,
                len,
                head,
                ..Slot::empty()
            };
            if let Some(previous) = previous.replace(index) {
                self.get_mut(previous).next = Some(index);
            }
            (offset, left) = (offset.wrapping_add(u64::from(len)), left - len);
        }
        let slot = self.get_mut(head);
        (slot.request, slot.parts_left) = (request, parts as u16);
        Some(head)
    }

    /// Frees one slot of a request and says which is the next.
    pub fn release(&mut self, index: u16) -> Option<u16> {
        let slot = self.get_mut(index);
        assert!(slot.state != SlotState::Free, "a part ends once");
        slot.state = SlotState::Free;
        let next = slot.next.take();
        self.free.push(index);
        next
    }

    pub fn in_use(&self) -> usize {
        self.slots.len() - self.free.len()
    }
    pub fn get(&self, index: u16) -> &Slot {
        &self.slots[usize::from(index)]
    }
    pub fn get_mut(&mut self, index: u16) -> &mut Slot {
        &mut self.slots[usize::from(index)]
    }
    pub fn head_of(&mut self, index: u16) -> &mut Slot {
        let head = self.get(index).head;
        self.get_mut(head)
    }
    pub fn tag(&self, index: u16) -> Tag {
        Tag { index, generation: self.get(index).generation }
    }
    /// The slot of a tag that is still the present one.
    pub fn find(&self, tag: Tag) -> Option<u16> {
        let slot = self.slots.get(tag.index())?;
        (slot.generation == tag.generation && slot.state != SlotState::Free).then_some(tag.index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_cut_into_parts_that_cover_it_in_order() {
        let mut slots = Slots::new(4);
        let request = Request { offset: 1000, length: 2500, ..Request::default() };
        let head = slots.take(request, Some(1024)).unwrap();
        let (mut parts, mut at) = (Vec::new(), Some(head));
        while let Some(index) = at {
            let slot = slots.get(index);
            assert_eq!(slot.head, head);
            parts.push((slot.offset, slot.len));
            at = slot.next;
        }
        assert_eq!(parts, [(1000, 24), (1024, 1024), (2048, 1024), (3072, 428)]);
        assert!(slots.take(request, None).is_none(), "all slots are in use");
        assert_eq!(slots.in_use(), 4);
    }

    #[test]
    fn a_tag_of_the_last_request_in_a_slot_is_not_the_next_ones() {
        let mut slots = Slots::new(1);
        let index = slots.take(Request::default(), None).unwrap();
        let old = slots.tag(index);
        slots.release(index);
        assert_eq!(slots.find(old), None);
        let index = slots.take(Request::default(), None).unwrap();
        assert_eq!(slots.find(old), None);
        assert_eq!(slots.find(slots.tag(index)), Some(index));
    }
}
