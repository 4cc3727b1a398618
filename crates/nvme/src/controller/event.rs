//! Asynchronous events. Base 5.1.2: the host leaves requests with the controller, which completes one per event;
//! after that an event of the same kind stays quiet until the host has read its log page.

use super::AERS_MAX;
use crate::wire::log_page::lid;
use crate::wire::{Cid, Status};

/// What happened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EventKind {
    /// A namespace came, went, or has other attributes.
    NamespaceAttribute { nsid: u32 },
    /// The state of an ANA group changed.
    AnaChange,
    /// The discovery log changed.
    DiscoveryChange,
    /// This bit of the critical warnings, 0..4, has been raised.
    Health { warning: u8 },
}

impl EventKind {
    const fn bit(self) -> u8 {
        match self {
            EventKind::NamespaceAttribute { .. } => 1,
            EventKind::AnaChange => 2,
            EventKind::DiscoveryChange => 4,
            // Spare; temperature; reliability and read only, which are one event.
            EventKind::Health { warning: 0 } => 8,
            EventKind::Health { warning: 1 } => 16,
            EventKind::Health { .. } => 32,
        }
    }
}

/// Type 02:00 (2: notice), information 15:08, log page 23:16. Base 5.1.2 figures of dword 0 and of notices.
const fn notice(information: u8, log_page: u8) -> u32 {
    2 | (information as u32) << 8 | (log_page as u32) << 16
}

/// Type 1: SMART / health status. Information 0 reliability, 1 temperature, 2 spare. Base 5.1.2.
const fn health(information: u8) -> u32 {
    1 | (information as u32) << 8 | (lid::SMART as u32) << 16
}

/// Event of each bit, in the order in which they are told.
const EVENTS: [(u8, u32); 6] = [
    (1, notice(0x00, lid::CHANGED_NAMESPACES)),
    (2, notice(0x03, lid::ANA)),
    (4, notice(0xf0, lid::DISCOVERY)),
    (8, health(2)),
    (16, health(1)),
    (32, health(0)),
];

/// Requests that wait and events that are due. An event is one bit however often it happens: the log page has the
/// details, so nothing here can grow.
#[derive(Clone, Debug, Default)]
pub(super) struct Events {
    requests: [Cid; AERS_MAX],
    waiting: usize,
    /// Aborted requests that are still to be completed.
    aborted: [Cid; AERS_MAX],
    aborts: usize,
    due: u8,
    /// Told, and the log page not yet read.
    masked: u8,
}

impl Events {
    /// Takes an Asynchronous Event Request. Base 5.1.2: more than AERL at once are refused.
    pub fn push(&mut self, cid: Cid) -> Result<(), Status> {
        if self.waiting == AERS_MAX {
            return Err(Status::AER_LIMIT_EXCEEDED.with_dnr());
        }
        self.requests[self.waiting] = cid;
        self.waiting += 1;
        Ok(())
    }
    /// Takes a waiting request back; says whether there was one.
    pub fn abort(&mut self, cid: Cid) -> bool {
        let Some(at) = self.requests[..self.waiting].iter().position(|c| *c == cid) else { return false };
        if self.aborts == AERS_MAX {
            return false;
        }
        self.requests.copy_within(at + 1..self.waiting, at);
        self.waiting -= 1;
        self.aborted[self.aborts] = cid;
        self.aborts += 1;
        true
    }
    pub fn raise(&mut self, event: EventKind) {
        self.due |= event.bit();
    }
    /// The log page of these events was read with RAE 0.
    pub fn clear(&mut self, log_page: u8) {
        for (bit, dw0) in EVENTS {
            if (dw0 >> 16) as u8 == log_page {
                self.masked &= !bit;
            }
        }
    }
    pub fn poll(&mut self) -> Option<(Cid, Status, u32)> {
        if self.aborts > 0 {
            let cid = self.aborted[0];
            self.aborted.copy_within(1..self.aborts, 0);
            self.aborts -= 1;
            return Some((cid, Status::ABORT_REQUESTED, 0));
        }
        if self.waiting == 0 {
            return None;
        }
        let (bit, dw0) = EVENTS.into_iter().find(|(bit, _)| self.due & !self.masked & bit != 0)?;
        self.due &= !bit;
        self.masked |= bit;
        let cid = self.requests[0];
        self.requests.copy_within(1..self.waiting, 0);
        self.waiting -= 1;
        Some((cid, Status::SUCCESS, dw0))
    }
}
