//! Cuts a byte stream into PDUs, whatever the segments are: common header, rest of the header with its
//! digest, padding, data, data digest. It knows lengths only; both machines decide what they mean.

use peristyle_base::crc::{Crc32c, crc32c};

use crate::wire::digest::DIGEST_BYTES;
use crate::wire::get_u32;
use crate::wire::pdu::{COMMON_BYTES, HEADER_BYTES_MAX};

/// What [`Framer::feed`] stopped for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Event {
    /// The input is used up.
    More,
    /// Eight bytes are there: answer with [`Framer::want_header`].
    Common,
    /// The header is there and its digest, if any, is right: answer with [`Framer::want_body`].
    Header,
    /// The digest behind the header is not the header's.
    HeaderDigestWrong { received: u32 },
    /// Data comes next, to be placed by the driver.
    Data,
    /// The PDU is over.
    End { digest_right: bool },
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Common,
    /// Up to `hlen`, then the digest if there is one.
    Header {
        hlen: usize,
        digest: bool,
    },
    Pad,
    Data,
    Digest,
    /// Body bytes that nobody wants.
    Skip,
}

/// What follows a header.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Body {
    pub pad: u32,
    pub data: u32,
    pub digest: bool,
}

pub(crate) struct Framer {
    state: State,
    header: [u8; HEADER_BYTES_MAX + DIGEST_BYTES],
    filled: usize,
    body: Body,
    /// Bytes left in the present state (Pad, Data, Skip).
    left: u32,
    trailer: [u8; DIGEST_BYTES],
    running: Option<Crc32c>,
}

impl Framer {
    pub fn new() -> Framer {
        Framer {
            state: State::Common,
            header: [0; HEADER_BYTES_MAX + DIGEST_BYTES],
            filled: 0,
            body: Body::default(),
            left: 0,
            trailer: [0; DIGEST_BYTES],
            running: None,
        }
    }
    /// What has arrived of the present header, its digest not included.
    pub fn header(&self) -> &[u8] {
        let hlen = match self.state {
            State::Common => COMMON_BYTES,
            State::Header { hlen, .. } => hlen,
            _ => HEADER_BYTES_MAX,
        };
        &self.header[..self.filled.min(hlen)]
    }
    /// Bytes of the stream that the framer itself would take now; 0 when data comes next.
    pub fn wanted(&self) -> usize {
        match self.state {
            State::Common => COMMON_BYTES - self.filled,
            State::Header { hlen, digest } => hlen + if digest { DIGEST_BYTES } else { 0 } - self.filled,
            State::Pad | State::Skip => self.left as usize,
            State::Digest => DIGEST_BYTES - self.filled,
            State::Data => 0,
        }
    }
    /// Data bytes that the driver places next.
    pub fn data_left(&self) -> u32 {
        if self.state == State::Data { self.left } else { 0 }
    }
    /// Position within the PDU's data of the next byte.
    pub fn data_done(&self) -> u32 {
        self.body.data - self.left
    }

    /// `hlen` is between the common header's and [`HEADER_BYTES_MAX`]: the caller has checked it.
    pub fn want_header(&mut self, hlen: usize, digest: bool) {
        assert!((COMMON_BYTES..=HEADER_BYTES_MAX).contains(&hlen), "the length was checked");
        self.state = State::Header { hlen, digest };
    }
    /// The header was understood; `Body::default()` when nothing follows it.
    pub fn want_body(&mut self, body: Body) {
        self.body = body;
        self.left = body.pad;
        self.state = State::Pad;
        self.running = body.digest.then(Crc32c::default);
    }
    /// The header was understood; these bytes behind it are thrown away.
    pub fn skip(&mut self, bytes: u32) {
        self.body = Body::default();
        self.left = bytes;
        self.state = State::Skip;
        self.running = None;
    }
    /// Nobody wants the body any more, whatever is left of it.
    pub fn skip_body(&mut self) {
        let trailer = if self.body.digest { DIGEST_BYTES as u32 } else { 0 };
        let left = match self.state {
            State::Pad => self.left + self.body.data,
            State::Data => self.left,
            _ => return,
        };
        self.skip(left + trailer);
    }
    /// The next byte starts a PDU.
    pub fn next(&mut self) {
        self.state = State::Common;
        self.filled = 0;
    }

    /// Takes bytes from the front of `input` until something must be decided.
    pub fn feed(&mut self, input: &mut &[u8]) -> Event {
        loop {
            match self.state {
                State::Common => {
                    if !self.fill(input, COMMON_BYTES) {
                        return Event::More;
                    }
                    return Event::Common;
                }
                State::Header { hlen, digest } => {
                    let total = hlen + if digest { DIGEST_BYTES } else { 0 };
                    if !self.fill(input, total) {
                        return Event::More;
                    }
                    let received = get_u32(&self.header, hlen.min(HEADER_BYTES_MAX));
                    if digest && received != crc32c(&self.header[..hlen]) {
                        return Event::HeaderDigestWrong { received };
                    }
                    return Event::Header;
                }
                State::Pad => {
                    if !self.swallow(input) {
                        return Event::More;
                    }
                    self.left = self.body.data;
                    self.state = State::Data;
                }
                State::Skip => {
                    if !self.swallow(input) {
                        return Event::More;
                    }
                    return Event::End { digest_right: true };
                }
                State::Data if self.left > 0 => return Event::Data,
                State::Data if !self.body.digest => return Event::End { digest_right: true },
                State::Data => {
                    self.filled = 0;
                    self.state = State::Digest;
                }
                State::Digest => {
                    let take = (DIGEST_BYTES - self.filled).min(input.len());
                    self.trailer[self.filled..self.filled + take].copy_from_slice(&input[..take]);
                    *input = &input[take..];
                    self.filled += take;
                    if self.filled < DIGEST_BYTES {
                        return Event::More;
                    }
                    let computed = self.running.take().map(|crc| crc.finish());
                    return Event::End { digest_right: computed == Some(u32::from_le_bytes(self.trailer)) };
                }
            }
        }
    }

    /// The driver has placed these bytes of the stream; at most [`Self::data_left`] of them.
    pub fn placed(&mut self, bytes: &[u8]) {
        assert!(
            self.state == State::Data && bytes.len() as u64 <= u64::from(self.left),
            "more than was wanted"
        );
        if let Some(running) = &mut self.running {
            running.update(bytes);
        }
        self.left -= bytes.len() as u32;
    }

    fn fill(&mut self, input: &mut &[u8], total: usize) -> bool {
        let take = (total - self.filled).min(input.len());
        self.header[self.filled..self.filled + take].copy_from_slice(&input[..take]);
        *input = &input[take..];
        self.filled += take;
        self.filled == total
    }
    fn swallow(&mut self, input: &mut &[u8]) -> bool {
        let take = input.len().min(self.left as usize);
        *input = &input[take..];
        self.left -= take as u32;
        self.left == 0
    }
}
