//! The sender of a connection: all that is ready in a turn leaves in one send, payload from where it lies.

use super::conn::{Conn, Sending};
use crate::pieces::{Piece, put};
use peristyle_nvme::qpair::TRANSMIT_HEADER_BYTES;
use peristyle_nvme::wire::digest::{DIGEST_BYTES, data_digest};
use peristyle_rt::sync::Permit;
use peristyle_rt::{Buf, Either, IoVec, StreamWriter, View, select};
use std::rc::Rc;

/// The headers of one send.
const HEADER_BUF_BYTES: usize = 4096;
/// Payload of one send, more or less.
const SEND_BYTES: usize = 1 << 20;

/// One send's worth of PDUs. Its memory is used again.
#[derive(Default)]
pub(super) struct Batch {
    pieces: Vec<Piece>,
    /// The answers that end with this send.
    sending: Vec<Sending>,
    permits: Vec<Permit>,
}

impl Conn {
    pub(super) async fn send(self: Rc<Self>, mut writer: StreamWriter) {
        let mut kept = None;
        let mut batch = Batch::default();
        while !self.closed.is_set() {
            self.kick.wait_until(|| self.kicked.get() || self.closed.is_set()).await;
            peristyle_rt::end_of_turn().await;
            self.kicked.set(false);
            let mut header = match kept.take() {
                Some(header) => header,
                None => Buf::alloc(HEADER_BUF_BYTES).await,
            };
            while !self.closed.is_set() && self.gather(&mut header, &mut batch) {
                let headers = header.freeze();
                let sent = select(self.closed.wait(), put(&mut writer, &headers, &mut batch.pieces)).await;
                let sent = matches!(sent, Either::Right(true));
                self.settle(&mut batch, sent);
                header = match headers.try_unfreeze() {
                    Ok(header) => header,
                    Err(_) => Buf::alloc(HEADER_BUF_BYTES).await,
                };
                if !sent {
                    self.lost();
                }
            }
            // Whoever has not connected yet holds no memory while it is silent.
            kept = self.connected.get().map(|_| header);
            self.close_when_idle();
        }
        // Wakes the receiver; the connection ends when both halves are gone.
        writer.shutdown();
    }

    /// Takes PDUs from the machine as long as there is room.
    fn gather(&self, header: &mut Buf, batch: &mut Batch) -> bool {
        batch.pieces.clear();
        let mut qpair = self.qpair.borrow_mut();
        let mut slots = self.slots.borrow_mut();
        let (mut at, mut bytes) = (0, 0);
        while header.len() - at >= TRANSMIT_HEADER_BYTES + DIGEST_BYTES && bytes < SEND_BYTES {
            let Some(transmit) = qpair.poll_transmit(&mut header[at..]) else { break };
            batch.pieces.push(Piece::Head(at, at + transmit.header));
            at += transmit.header;
            if let Some(payload) = transmit.payload {
                let first = batch.pieces.len();
                if let Some(reply) = slots.of(payload.tag).and_then(|s| s.reply.as_ref()) {
                    let (offset, len) = (payload.offset as usize, payload.len as usize);
                    cut(&reply.pieces, offset, len, |view| batch.pieces.push(Piece::Payload(view)));
                }
                bytes += payload.len as usize;
                if transmit.digest {
                    let digest = digest_of(&batch.pieces[first..]);
                    header[at..at + DIGEST_BYTES].copy_from_slice(&digest);
                    batch.pieces.push(Piece::Head(at, at + DIGEST_BYTES));
                    at += DIGEST_BYTES;
                }
            }
            if let Some(slot) = transmit.done.and_then(|tag| slots.of(tag)) {
                batch.sending.extend(Sending::take(slot));
                batch.permits.extend(slot.reply.take().and_then(|r| r.permit));
            }
        }
        !batch.pieces.is_empty()
    }

    /// The bytes are with the system, or the connection is lost.
    fn settle(&self, batch: &mut Batch, sent: bool) {
        let now = peristyle_rt::now();
        let stats = &mut *self.node.stats.borrow_mut();
        batch.sending.drain(..).for_each(|answer| answer.settle(stats, now, sent));
        batch.permits.clear();
        batch.pieces.clear();
    }
}

fn digest_of(pieces: &[Piece]) -> [u8; DIGEST_BYTES] {
    data_digest(pieces.iter().filter_map(|piece| match piece {
        Piece::Payload(view) => Some(&view[..]),
        Piece::Head(..) => None,
    }))
}

/// Views of `len` bytes from `offset` on.
fn cut(iov: &IoVec, mut offset: usize, mut len: usize, mut take: impl FnMut(View)) {
    for view in iov.pieces() {
        if len == 0 {
            return;
        }
        if offset >= view.len() {
            offset -= view.len();
            continue;
        }
        let n = len.min(view.len() - offset);
        take(view.slice(offset..offset + n));
        (offset, len) = (0, len - n);
    }
}
