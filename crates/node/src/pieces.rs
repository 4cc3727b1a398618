//! What one send is made of: heads in a buffer of their own, payload from where it lies.

use peristyle_rt::{IoVec, NetError, StreamWriter, View};

pub(crate) enum Piece {
    /// By its place among the heads.
    Head(usize, usize),
    Payload(View),
}

/// The sending half of some connection.
pub(crate) trait SendAll {
    /// Sends all bytes of all pieces. They may be used again when it returns.
    async fn send(&mut self, iov: IoVec) -> Result<(), NetError>;
}

impl SendAll for StreamWriter {
    async fn send(&mut self, iov: IoVec) -> Result<(), NetError> {
        StreamWriter::send(self, iov).await
    }
}

/// Sends all of it, in as few sends as it takes. False: the connection is lost.
pub(crate) async fn put(writer: &mut impl SendAll, heads: &View, pieces: &mut Vec<Piece>) -> bool {
    let mut iov = IoVec::new();
    for piece in pieces.drain(..) {
        iov.push(match piece {
            Piece::Head(from, to) => heads.slice(from..to),
            Piece::Payload(view) => view,
        });
        if iov.is_full() && writer.send(std::mem::take(&mut iov)).await.is_err() {
            return false;
        }
    }
    iov.is_empty() || writer.send(iov).await.is_ok()
}
