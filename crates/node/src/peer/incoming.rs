//! What arrives over one connection.

use peristyle_cluster::peer::Violation;
use peristyle_rt::{Buf, StreamReader, View};

/// Payload of which at least so much is to come goes straight into its buffer.
const DIRECT_BYTES: usize = 32 << 10;

/// Why nothing more is read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Lost {
    /// The other end has gone.
    Ended,
    /// It broke the protocol.
    Broken(Violation),
}

impl From<Violation> for Lost {
    fn from(violation: Violation) -> Lost {
        Lost::Broken(violation)
    }
}

pub(super) struct Incoming {
    reader: StreamReader,
    /// Bytes that have come and were not used yet.
    chunk: Option<View>,
}

impl Incoming {
    pub fn new(reader: StreamReader) -> Incoming {
        Incoming { reader, chunk: None }
    }

    /// Hands bytes to `feed`, which says how many it used.
    pub async fn feed(&mut self, feed: impl FnOnce(&[u8]) -> Result<usize, Violation>) -> Result<(), Lost> {
        let mut chunk = self.next_chunk().await?;
        let used = feed(&chunk)?;
        chunk.advance(used);
        self.keep(chunk);
        Ok(())
    }

    /// Fills the buffer with what comes next, and shows it to `check` as it comes.
    pub async fn fill(
        &mut self,
        mut buf: Buf,
        mut check: impl FnMut(&[u8]) -> Result<(), Violation>,
    ) -> Result<Buf, Lost> {
        let mut at = 0;
        while at < buf.len() {
            if self.chunk.is_none() && buf.len() - at >= DIRECT_BYTES {
                let mut front = buf.split_to(at);
                let (result, rest) = self.reader.recv_exact(buf).await;
                result.map_err(|_| Lost::Ended)?;
                check(&rest)?;
                front.unsplit(rest);
                return Ok(front);
            }
            let mut chunk = self.next_chunk().await?;
            let n = chunk.len().min(buf.len() - at);
            buf[at..at + n].copy_from_slice(&chunk[..n]);
            check(&chunk[..n])?;
            chunk.advance(n);
            self.keep(chunk);
            at += n;
        }
        Ok(buf)
    }

    async fn next_chunk(&mut self) -> Result<View, Lost> {
        if let Some(chunk) = self.chunk.take() {
            return Ok(chunk);
        }
        match self.reader.recv().await {
            Ok(view) if !view.is_empty() => Ok(view),
            _ => Err(Lost::Ended),
        }
    }

    fn keep(&mut self, chunk: View) {
        self.chunk = (!chunk.is_empty()).then_some(chunk);
    }
}
