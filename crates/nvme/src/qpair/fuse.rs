//! Compare and Write as one command. Base 3.4.2, NVM 2.1.5: First is followed by Second in the same queue.

use super::{Completion, Pending, Qpair, SlotState};
use crate::wire::{Fuse, Status, opcode};

/// A command's place in a fused pair.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum FuseRole {
    Alone,
    /// The first half, with its second once that has come.
    First(Option<u16>),
    Second(u16),
}

impl Qpair {
    /// Finds the new command's place in a pair. An error is the new command's own status.
    pub(super) fn fuse(&mut self, index: u16) -> Result<(), Status> {
        let fuse = self.slots.get(index).sqe.fuse();
        let first = self.fuse_first.take();
        match (fuse, first) {
            (Fuse::Normal, None) => Ok(()),
            (Fuse::Normal, Some(first)) => {
                self.lose_partner(first);
                Ok(())
            }
            (Fuse::First, first) => {
                if let Some(first) = first {
                    self.lose_partner(first);
                }
                // Compare and Write is the only fused operation there is. NVM 2.1.5.
                if self.qid == 0 || self.slots.get(index).sqe.opcode() != opcode::nvm::COMPARE {
                    return Err(Status::INVALID_FIELD.with_dnr());
                }
                self.slots.get_mut(index).fuse = FuseRole::First(None);
                self.fuse_first = Some(index);
                Ok(())
            }
            (Fuse::Second, None) => Err(Status::ABORTED_MISSING_FUSED),
            (Fuse::Second, Some(first)) => {
                self.slots.get_mut(index).fuse = FuseRole::Second(first);
                self.slots.get_mut(first).fuse = FuseRole::First(Some(index));
                let write = self.slots.get(index).sqe.opcode() == opcode::nvm::WRITE;
                if write { Ok(()) } else { Err(Status::INVALID_FIELD.with_dnr()) }
            }
            (Fuse::Reserved, first) => {
                if let Some(first) = first {
                    self.lose_partner(first);
                }
                Err(Status::INVALID_FIELD.with_dnr())
            }
        }
    }

    /// The command after `first` was not its second half.
    pub(super) fn lose_partner(&mut self, first: u16) {
        let slot = self.slots.get_mut(first);
        slot.failed.get_or_insert(Status::ABORTED_MISSING_FUSED);
        slot.fuse = FuseRole::Alone;
        if slot.state == SlotState::FuseWait {
            self.deliver(first);
        }
    }

    /// A command's data is complete, or it has failed and no more data comes.
    pub(super) fn received(&mut self, index: u16) {
        let (first, second) = match self.slots.get(index).fuse {
            FuseRole::Alone => return self.deliver(index),
            FuseRole::First(None) => {
                self.slots.get_mut(index).state = SlotState::FuseWait;
                return;
            }
            FuseRole::First(Some(second)) => (index, second),
            FuseRole::Second(first) => (first, index),
        };
        self.slots.get_mut(index).state = SlotState::FuseWait;
        let other = if index == first { second } else { first };
        if self.slots.get(other).state != SlotState::FuseWait {
            return;
        }
        if self.slots.get(first).failed.is_none() && self.slots.get(second).failed.is_none() {
            for half in [first, second] {
                let slot = self.slots.get_mut(half);
                slot.state = SlotState::Executing;
                slot.buffer_asked = false;
            }
            self.push_action(Pending::Fused(self.slots.tag(first), self.slots.tag(second)));
            return;
        }
        for half in [first, second] {
            self.slots.get_mut(half).failed.get_or_insert(Status::ABORTED_FAILED_FUSED);
            self.deliver(half);
        }
    }

    /// Hands a command up, or answers it when its reception failed.
    pub(super) fn deliver(&mut self, index: u16) {
        let tag = self.slots.tag(index);
        let slot = self.slots.get_mut(index);
        let Some(status) = slot.failed else {
            slot.state = SlotState::Executing;
            slot.buffer_asked = false;
            let connect = slot.sqe.is_fabrics() && slot.sqe.fctype() == opcode::fctype::CONNECT;
            return self.push_action(if connect { Pending::Connect(tag) } else { Pending::Execute(tag) });
        };
        if slot.buffer_asked {
            self.push_action(Pending::Release(tag));
        }
        self.stats.refused += 1;
        let dw0 = self.slots.get(index).completion.dw0;
        self.respond(index, Completion { status, dw0, dw1: 0 });
    }
}
