//! What arrives over one connection.

use super::tls::Reader;
use peristyle_cluster::peer::Violation;
use peristyle_rt::Buf;

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
    reader: Reader,
}

impl Incoming {
    pub fn new(reader: Reader) -> Incoming {
        Incoming { reader }
    }

    /// Hands bytes to `feed`, which says how many it used.
    pub async fn feed(&mut self, feed: impl FnOnce(&[u8]) -> Result<usize, Violation>) -> Result<(), Lost> {
        self.more().await?;
        let used = feed(self.bytes())?;
        self.used(used);
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
            if let Reader::Plain { reader, first: None } = &mut self.reader
                && buf.len() - at >= DIRECT_BYTES
            {
                let mut front = buf.split_to(at);
                let (result, rest) = reader.recv_exact(buf).await;
                result.map_err(|_| Lost::Ended)?;
                check(&rest)?;
                front.unsplit(rest);
                return Ok(front);
            }
            self.more().await?;
            let bytes = self.bytes();
            let n = bytes.len().min(buf.len() - at);
            buf[at..at + n].copy_from_slice(&bytes[..n]);
            check(&bytes[..n])?;
            self.used(n);
            at += n;
        }
        Ok(buf)
    }

    /// Bytes that have come and were not used yet.
    fn bytes(&self) -> &[u8] {
        match &self.reader {
            Reader::Plain { first, .. } => first.as_deref().unwrap_or_default(),
            Reader::Tls(reader) => reader.bytes(),
        }
    }

    fn used(&mut self, bytes: usize) {
        match &mut self.reader {
            Reader::Plain { first, .. } => {
                first.iter_mut().for_each(|view| view.advance(bytes));
                first.take_if(|view| view.is_empty());
            }
            Reader::Tls(reader) => reader.used(bytes),
        }
    }

    /// Waits until there are some.
    async fn more(&mut self) -> Result<(), Lost> {
        match &mut self.reader {
            Reader::Plain { first: Some(_), .. } => Ok(()),
            Reader::Plain { reader, first } => match reader.recv().await {
                Ok(view) if !view.is_empty() => {
                    *first = Some(view);
                    Ok(())
                }
                _ => Err(Lost::Ended),
            },
            Reader::Tls(reader) => reader.more().await.map_err(|_| Lost::Ended),
        }
    }
}
