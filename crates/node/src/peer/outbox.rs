//! What leaves over one connection: heads in a buffer of their own, payload from where it lies. All that is ready in a
//! turn leaves in one send.

use super::tls::Writer;
use crate::pieces::{Piece, put};
use peristyle_base::crc::Crc32c;
use peristyle_cluster::peer::{HEAD_BYTES_MAX, Payload};
use peristyle_rt::sync::{Event, Notify};
use peristyle_rt::{Buf, Either, IoVec, select};
use std::cell::RefCell;

/// Heads of one send.
const HEADS_BYTES: usize = 16 << 10;
/// Payload of one send, more or less.
const SEND_BYTES: usize = 2 << 20;

/// What a head says of the payload behind it.
pub(super) fn described(payload: Option<&IoVec>) -> Payload {
    let Some(payload) = payload.filter(|payload| !payload.is_empty()) else { return Payload::NONE };
    let mut crc = Crc32c::default();
    payload.pieces().iter().for_each(|piece| crc.update(piece));
    Payload { bytes: payload.bytes() as u32, crc: crc.finish() }
}

struct Filling {
    heads: Buf,
    at: usize,
    bytes: usize,
    pieces: Vec<Piece>,
}

impl Filling {
    fn has_room(&self) -> bool {
        self.heads.len() - self.at >= HEAD_BYTES_MAX && self.bytes < SEND_BYTES
    }
}

pub(super) struct Outbox {
    filling: RefCell<Filling>,
    /// There is something to send.
    kick: Notify,
    /// There is room again, or the connection is over.
    pub room: Notify,
    pub closed: Event,
}

impl Outbox {
    pub async fn new() -> Outbox {
        let filling =
            Filling { heads: Buf::alloc(HEADS_BYTES).await, at: 0, bytes: 0, pieces: Vec::with_capacity(64) };
        Outbox {
            filling: RefCell::new(filling),
            kick: Notify::default(),
            room: Notify::default(),
            closed: Event::default(),
        }
    }

    /// Queues a message whose head `write` writes, saying how long it is. `None`: there is no room now, and nothing was
    /// written; see [`room`](Self::room).
    pub fn push<T>(
        &self,
        payload: Option<&IoVec>,
        write: impl FnOnce(&mut [u8]) -> Option<(usize, T)>,
    ) -> Option<T> {
        let filling = &mut *self.filling.borrow_mut();
        if !filling.has_room() {
            return None;
        }
        let (bytes, value) = write(&mut filling.heads[filling.at..])?;
        filling.pieces.push(Piece::Head(filling.at, filling.at + bytes));
        filling.at += bytes;
        if let Some(payload) = payload {
            filling.bytes += payload.bytes();
            filling.pieces.extend(payload.pieces().iter().cloned().map(Piece::Payload));
        }
        self.kick.notify_all();
        Some(value)
    }

    /// Waits until a message may have room; at once when the connection is over.
    pub async fn has_room(&self) {
        self.room.wait_until(|| self.closed.is_set() || self.filling.borrow().has_room()).await;
    }

    pub fn close(&self) {
        self.closed.set();
        self.kick.notify_all();
        self.room.notify_all();
    }

    /// Sends until the connection is over; ends it when it cannot send.
    pub async fn run(&self, mut writer: Writer) {
        let mut spare = Buf::alloc(HEADS_BYTES).await;
        let mut pieces = Vec::with_capacity(64);
        loop {
            self.kick.wait_until(|| self.closed.is_set() || !self.filling.borrow().pieces.is_empty()).await;
            peristyle_rt::end_of_turn().await;
            if self.closed.is_set() {
                break;
            }
            let heads = {
                let filling = &mut *self.filling.borrow_mut();
                std::mem::swap(&mut filling.pieces, &mut pieces);
                (filling.at, filling.bytes) = (0, 0);
                std::mem::replace(&mut filling.heads, spare)
            };
            self.room.notify_all();
            let heads = heads.freeze();
            let sent = select(self.closed.wait(), put(&mut writer, &heads, &mut pieces)).await;
            pieces.clear();
            if !matches!(sent, Either::Right(true)) {
                break;
            }
            spare = match heads.try_unfreeze() {
                Ok(heads) => heads,
                Err(_) => Buf::alloc(HEADS_BYTES).await,
            };
        }
        self.close();
        // Wakes the receiver; the connection ends when both halves are gone.
        writer.shutdown();
    }
}
