//! What one turn has to send, gathered into one vectored send.

use peristyle_nbd::{TRANSMIT_BYTES_MIN, Transmit};
use peristyle_rt::buf::IOVEC_MAX;
use peristyle_rt::sync::Permit;
use peristyle_rt::{Buf, IoVec, View};

/// Memory for the headers of one batch.
const HEADERS_BYTES: usize = 4096;
/// A batch is closed when it has so many bytes; answers to later requests shall not wait for a long one.
const BATCH_BYTES_MAX: usize = 2 << 20;
/// Most pieces of one part: one for each block it touches, and its header.
const PART_PIECES_MAX: usize = 512 / 4 + 2;

/// Data of a read part, and the buffers it is allowed to hold.
pub(super) struct Answer {
    pub data: IoVec,
    pub _permit: Permit,
}

struct Entry {
    header_end: usize,
    answer: Option<Answer>,
}

/// Gathers answers. Its memory is used again for each batch.
pub(super) struct Outbox {
    headers: Option<Buf>,
    sent: Option<View>,
    used: usize,
    pieces: usize,
    bytes: usize,
    entries: Vec<Entry>,
}

impl Outbox {
    pub async fn new() -> Outbox {
        let headers = Some(Buf::alloc(HEADERS_BYTES).await);
        Outbox { headers, sent: None, used: 0, pieces: 0, bytes: 0, entries: Vec::with_capacity(64) }
    }

    /// Room for the next header, unless the batch is full.
    pub fn room(&mut self) -> Option<&mut [u8]> {
        let full = self.used + TRANSMIT_BYTES_MIN > HEADERS_BYTES
            || self.pieces + PART_PIECES_MAX > IOVEC_MAX
            || self.bytes >= BATCH_BYTES_MAX;
        let headers = self.headers.as_mut().expect("a batch begins with memory for its headers");
        (!full).then(|| &mut headers[self.used..])
    }

    /// The header was written to [`Self::room`]; this is what follows it.
    pub fn push(&mut self, transmit: Transmit, answer: Option<Answer>) {
        self.used += transmit.header;
        self.bytes += transmit.header;
        self.pieces += 1;
        if let Some(answer) = &answer {
            self.bytes += answer.data.bytes();
            self.pieces += answer.data.pieces().len();
        }
        self.entries.push(Entry { header_end: self.used, answer });
    }

    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// The batch, to be sent.
    pub fn take(&mut self) -> IoVec {
        let headers = self.headers.take().expect("a batch begins with memory for its headers").freeze();
        let (mut iov, mut start) = (IoVec::new(), 0);
        for entry in &self.entries {
            iov.push(headers.slice(start..entry.header_end));
            start = entry.header_end;
            if let Some(answer) = &entry.answer {
                answer.data.pieces().iter().for_each(|piece| iov.push(piece.clone()));
            }
        }
        self.sent = Some(headers);
        iov
    }

    /// The batch is on its way, or lost: the buffers of its answers are free.
    pub async fn clear(&mut self) {
        self.entries.clear();
        (self.used, self.pieces, self.bytes) = (0, 0, 0);
        if let Some(sent) = self.sent.take() {
            self.headers = sent.try_unfreeze().ok();
        }
        if self.headers.is_none() {
            self.headers = Some(Buf::alloc(HEADERS_BYTES).await);
        }
    }
}
