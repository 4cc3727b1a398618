//! A TLS connection over a stream of `rt`.

use super::identity::PeerName;
use super::session::{Over, Session};
use peristyle_rt::{Buf, IoVec, NetError, StreamReader, StreamWriter};
use std::cell::RefCell;
use std::rc::Rc;

/// Plain bytes of one record (RFC 8446, section 5.1), and what sealing adds to them at most.
const RECORD_BYTES: usize = 16 << 10;
const RECORD_MORE: usize = 256;
/// Sealed bytes of one send.
const OUT_BYTES: usize = 64 << 10;

impl From<Over> for NetError {
    fn from(_: Over) -> NetError {
        NetError::Closed
    }
}

/// The receiving half.
pub struct TlsReader {
    reader: StreamReader,
    session: Rc<RefCell<Session>>,
    plain: Vec<u8>,
    at: usize,
}

impl TlsReader {
    /// What has come and was not used yet.
    pub fn bytes(&self) -> &[u8] {
        &self.plain[self.at..]
    }
    pub fn used(&mut self, bytes: usize) {
        self.at += bytes;
    }
    /// Waits until there is something.
    pub async fn more(&mut self) -> Result<(), NetError> {
        while self.bytes().is_empty() {
            self.plain.clear();
            self.at = 0;
            self.session.borrow_mut().take_plain(&mut self.plain);
            if self.plain.is_empty() {
                let view = self.reader.recv().await?;
                if view.is_empty() {
                    return Err(NetError::Closed);
                }
                let session = &mut *self.session.borrow_mut();
                session.received(&view);
                let result = session.advance();
                session.take_plain(&mut self.plain);
                // What came before an end counts.
                if self.plain.is_empty() {
                    result?;
                }
            }
        }
        Ok(())
    }
}

/// The sending half.
pub struct TlsWriter {
    writer: StreamWriter,
    session: Rc<RefCell<Session>>,
    /// Pieces that make a record together.
    staged: Vec<u8>,
    out: Option<Buf>,
    at: usize,
}

impl TlsWriter {
    /// Sends all bytes of all pieces.
    pub async fn send(&mut self, iov: IoVec) -> Result<(), NetError> {
        for piece in iov.pieces() {
            let mut rest = &piece[..];
            while !rest.is_empty() {
                let whole = self.staged.is_empty() && rest.len() >= RECORD_BYTES;
                let (now, later) = rest.split_at(rest.len().min(RECORD_BYTES - self.staged.len()));
                rest = later;
                if whole {
                    self.seal(Some(now)).await?;
                    continue;
                }
                self.staged.extend_from_slice(now);
                if self.staged.len() == RECORD_BYTES {
                    self.seal(None).await?;
                }
            }
        }
        if !self.staged.is_empty() {
            self.seal(None).await?;
        }
        self.flush().await
    }

    pub fn shutdown(&self) {
        self.writer.shutdown();
    }

    /// Seals these bytes, or what is staged, behind what is to be sent.
    async fn seal(&mut self, bytes: Option<&[u8]>) -> Result<(), NetError> {
        loop {
            if OUT_BYTES - self.at < RECORD_BYTES + RECORD_MORE {
                self.flush().await?;
            }
            let out = match &mut self.out {
                Some(out) => out,
                None => self.out.insert(Buf::alloc(OUT_BYTES).await),
            };
            let session = &mut *self.session.borrow_mut();
            // What TLS itself has to say has its place in the order: new keys count from there on.
            session.advance()?;
            let own = session.outgoing();
            if own.is_empty() {
                let bytes = bytes.unwrap_or(&self.staged);
                self.at += session.seal(bytes, &mut out[self.at..])?;
                self.staged.clear();
                return Ok(());
            }
            let some = own.len().min(OUT_BYTES - self.at);
            out[self.at..self.at + some].copy_from_slice(&own[..some]);
            self.at += some;
            own.drain(..some);
        }
    }

    async fn flush(&mut self) -> Result<(), NetError> {
        let Some(out) = self.out.take() else { return Ok(()) };
        let out = out.freeze();
        let bytes = std::mem::take(&mut self.at);
        if bytes > 0 {
            self.writer.send(IoVec::from(out.slice(0..bytes))).await?;
        }
        self.out = out.try_unfreeze().ok();
        Ok(())
    }
}

/// Makes a connection of a stream: who is at its other end is known then.
pub(super) async fn handshake(
    (mut reader, mut writer): (StreamReader, StreamWriter),
    mut session: Session,
) -> Result<(TlsReader, TlsWriter, PeerName), NetError> {
    loop {
        let result = session.advance();
        // An alert tells the other end what is wrong.
        send_own(&mut writer, session.outgoing()).await?;
        result?;
        if !session.is_handshaking() {
            break;
        }
        let view = reader.recv().await?;
        if view.is_empty() {
            return Err(NetError::Closed);
        }
        session.received(&view);
    }
    let peer = session.peer().ok_or(NetError::Closed)?;
    let session = Rc::new(RefCell::new(session));
    let out = Some(Buf::alloc(OUT_BYTES).await);
    let staged = Vec::with_capacity(RECORD_BYTES);
    let reader = TlsReader { reader, session: session.clone(), plain: Vec::new(), at: 0 };
    Ok((reader, TlsWriter { writer, session, staged, out, at: 0 }, peer))
}

async fn send_own(writer: &mut StreamWriter, own: &mut Vec<u8>) -> Result<(), NetError> {
    if own.is_empty() {
        return Ok(());
    }
    let mut buf = Buf::alloc(own.len()).await;
    buf.copy_from_slice(own);
    own.clear();
    writer.send(IoVec::from(buf.freeze())).await
}
