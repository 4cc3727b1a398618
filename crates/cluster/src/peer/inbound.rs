//! Cuts the stream into heads and payloads, whatever the segments are, and checks both checksums.

use super::wire::{COMMON_BYTES, CRC_BYTES, Common};
use super::{HEAD_BYTES_MAX, Violation};
use peristyle_base::crc::Crc32c;
use peristyle_base::crc32c;

/// What is to be done with the stream next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Input {
    /// Bytes go to `handle_bytes`, which can use `max` of them; more is no harm.
    Head { max: usize },
    /// A message is there: take it first.
    Message,
    /// The next `bytes` belong to the payload of the message that was taken last, and to `handle_payload`.
    Payload { bytes: u32 },
}

enum State {
    Head,
    /// The head is there and its checksum is right.
    There(Common),
    Payload {
        left: u32,
        crc: u32,
    },
}

pub(super) struct Inbound {
    head: Box<[u8; HEAD_BYTES_MAX]>,
    filled: usize,
    /// Of the payload so far.
    running: Crc32c,
    state: State,
}

impl Inbound {
    pub fn new() -> Inbound {
        Inbound {
            head: Box::new([0; HEAD_BYTES_MAX]),
            filled: 0,
            running: Crc32c::default(),
            state: State::Head,
        }
    }

    pub fn next(&self) -> Input {
        match &self.state {
            State::Head => Input::Head { max: self.wanted() - self.filled },
            State::There(_) => Input::Message,
            State::Payload { left, .. } => Input::Payload { bytes: *left },
        }
    }

    /// Bytes of the head, as far as is known.
    fn wanted(&self) -> usize {
        match self.filled < COMMON_BYTES {
            true => COMMON_BYTES,
            false => usize::from(u16::from_le_bytes([self.head[2], self.head[3]])),
        }
    }

    /// Says how many bytes were used: all up to the end of a head.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<usize, Violation> {
        let mut used = 0;
        while let State::Head = self.state {
            let take = (self.wanted() - self.filled).min(bytes.len() - used);
            self.head[self.filled..self.filled + take].copy_from_slice(&bytes[used..used + take]);
            (self.filled, used) = (self.filled + take, used + take);
            let Some(first) = self.head.first_chunk::<COMMON_BYTES>().filter(|_| self.filled >= COMMON_BYTES)
            else {
                break;
            };
            let common = Common::decode(first)?;
            if self.filled == common.head_bytes {
                let (body, crc) = self.head[..self.filled].split_at(self.filled - CRC_BYTES);
                if crc32c(body).to_le_bytes() != crc {
                    return Err(Violation::HeadChecksum);
                }
                self.state = State::There(common);
            } else if used == bytes.len() {
                break;
            }
        }
        Ok(used)
    }

    /// The head that is there, and its fields.
    pub fn message(&self) -> Option<(Common, &[u8])> {
        match &self.state {
            State::There(common) => Some((*common, &self.head[COMMON_BYTES..common.head_bytes - CRC_BYTES])),
            _ => None,
        }
    }

    /// The message was taken; its payload comes next, or another head.
    pub fn taken(&mut self) {
        if let State::There(common) = &self.state {
            self.state = match common.payload.bytes {
                0 => State::Head,
                left => State::Payload { left, crc: common.payload.crc },
            };
            (self.filled, self.running) = (0, Crc32c::default());
        }
    }

    /// Payload, as far as it has come. True: that was all of it.
    ///
    /// # Panics — with more bytes than [`Input::Payload`] said.
    pub fn payload(&mut self, bytes: &[u8]) -> Result<bool, Violation> {
        let State::Payload { left, crc } = &mut self.state else {
            assert!(bytes.is_empty(), "no payload is expected");
            return Ok(false);
        };
        assert!(bytes.len() <= *left as usize, "more than the payload");
        self.running.update(bytes);
        *left -= bytes.len() as u32;
        if *left > 0 {
            return Ok(false);
        }
        if self.running.finish() != *crc {
            return Err(Violation::PayloadChecksum);
        }
        self.state = State::Head;
        Ok(true)
    }
}
