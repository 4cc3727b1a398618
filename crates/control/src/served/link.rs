//! One connection, as both of its ends use it.

use super::wire::{Message, Messages, Violation};
use peristyle_rt::{Buf, IoVec, NetError, Stream, StreamReader, StreamWriter};
use std::cell::Cell;

/// A message is sent in pieces of this size.
const PIECE_BYTES: usize = 16 << 10;

/// Why nothing more comes.
#[derive(Debug)]
pub(super) enum Lost {
    Ended(NetError),
    Broken(Violation),
}

impl From<NetError> for Lost {
    fn from(error: NetError) -> Lost {
        Lost::Ended(error)
    }
}
impl From<Violation> for Lost {
    fn from(violation: Violation) -> Lost {
        Lost::Broken(violation)
    }
}

pub(super) struct Link {
    reader: StreamReader,
    writer: StreamWriter,
    messages: Messages,
}

impl Link {
    pub fn new(stream: Stream) -> Link {
        let (reader, writer) = stream.split();
        Link { reader, writer, messages: Messages::default() }
    }

    /// The next message. Dropping the future loses nothing.
    pub async fn receive(&mut self, bytes_max: usize) -> Result<Message, Lost> {
        loop {
            if let Some(message) = self.messages.take(bytes_max)? {
                return Ok(message);
            }
            self.more().await?;
        }
    }

    /// How long the next message is. Waits until that is known; dropping the future loses nothing.
    pub async fn announced(&mut self, bytes_max: usize) -> Result<usize, Lost> {
        loop {
            match self.messages.coming() {
                Some(length) if length > bytes_max => return Err(Lost::Broken(Violation::Length)),
                Some(length) => return Ok(length),
                None => self.more().await?,
            }
        }
    }

    async fn more(&mut self) -> Result<(), Lost> {
        let bytes = self.reader.recv().await?;
        if bytes.is_empty() {
            return Err(Lost::Ended(NetError::Closed));
        }
        self.messages.push(&bytes);
        Ok(())
    }

    pub async fn send(&mut self, message: &[u8]) -> Result<(), NetError> {
        self.send_and_tell(message, &Cell::default()).await
    }

    /// Sets `whole` before the last bytes are sent: while it is not, the other end certainly cannot have understood.
    pub async fn send_and_tell(&mut self, message: &[u8], whole: &Cell<bool>) -> Result<(), NetError> {
        let pieces = message.chunks(PIECE_BYTES);
        let last = pieces.len() - 1;
        for (i, piece) in pieces.enumerate() {
            let mut buf = Buf::alloc(piece.len()).await;
            buf.copy_from_slice(piece);
            whole.set(whole.get() || i == last);
            self.writer.send(IoVec::from(buf.freeze())).await?;
        }
        Ok(())
    }
}
