//! TLS 1.3 between nodes: who has the secret of the cluster's token is a node of it, and which one its certificate says.
//!
//! A certificate authority is derived from the secret, so that every node has the same one, and nothing is kept anywhere. Each
//! process makes itself a key and a certificate when it starts. `rustls` does what is TLS in it, without I/O; bytes
//! come and go through `rt` ([`stream`]).

mod identity;
mod session;
mod stream;

pub use identity::{Tls, TlsError};
pub(super) use stream::{TlsReader, TlsWriter};

use crate::pieces::SendAll;
use peristyle_base::NodeId;
use peristyle_rt::{IoVec, NetError, Stream, StreamReader, StreamWriter, View};
use session::Session;
use std::fmt;
use std::sync::Arc;

/// The first byte of a TLS connection: a record of the handshake (RFC 8446, section 5.1). A Hello of the peer protocol begins with 1.
const HANDSHAKE_RECORD: u8 = 22;
/// Kept back by each connection, for what arrives.
const ARRIVALS_BYTES: usize = 4 << 10;

/// What connections between nodes are.
#[derive(Clone, Default)]
pub enum Security {
    #[default]
    Plain,
    /// Either, and no protection: on the way from one to the other, node by node.
    Either(Arc<Tls>),
    Tls(Arc<Tls>),
}

impl fmt::Display for Security {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Security::Plain => "without TLS",
            Security::Either(_) => "with TLS or without",
            Security::Tls(_) => "with TLS",
        })
    }
}

impl fmt::Debug for Security {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The receiving half of a connection.
pub(super) enum Reader {
    Plain {
        reader: StreamReader,
        /// Bytes that have come and were not used yet.
        first: Option<View>,
    },
    Tls(Box<TlsReader>),
}

/// The sending half.
pub(super) enum Writer {
    Plain(StreamWriter),
    Tls(Box<TlsWriter>),
}

/// One connection, and who is at its other end.
pub(super) struct Secured {
    pub reader: Reader,
    pub writer: Writer,
    pub who: Who,
}

/// Who is at the other end, as far as TLS says.
pub(super) enum Who {
    /// Nobody says: it is whom it says it is.
    Anybody,
    /// Its certificate.
    Certified(identity::PeerName),
}

impl SendAll for Writer {
    async fn send(&mut self, iov: IoVec) -> Result<(), NetError> {
        match self {
            Writer::Plain(writer) => writer.send(iov).await,
            Writer::Tls(writer) => writer.send(iov).await,
        }
    }
}

impl Writer {
    pub fn shutdown(&self) {
        match self {
            Writer::Plain(writer) => writer.shutdown(),
            Writer::Tls(writer) => writer.shutdown(),
        }
    }
}

impl Who {
    pub fn may_be(&self, node: NodeId) -> bool {
        match self {
            Who::Anybody => true,
            Who::Certified(name) => name.is(node),
        }
    }
}

impl Secured {
    fn plain((reader, writer): (StreamReader, StreamWriter), first: Option<View>) -> Secured {
        let reader = Reader::Plain { reader, first };
        Secured { reader, writer: Writer::Plain(writer), who: Who::Anybody }
    }

    async fn tls(halves: (StreamReader, StreamWriter), session: Session) -> Result<Secured, NetError> {
        let (reader, writer, who) = stream::handshake(halves, session).await?;
        let (reader, writer) = (Reader::Tls(Box::new(reader)), Writer::Tls(Box::new(writer)));
        Ok(Secured { reader, writer, who: Who::Certified(who) })
    }
}

impl Security {
    /// Whether the first connection to another node is tried with TLS.
    pub fn prefers_tls(&self) -> bool {
        !matches!(self, Security::Plain)
    }

    /// Both are spoken.
    pub fn is_either(&self) -> bool {
        matches!(self, Security::Either(_))
    }

    /// The asking end of a connection to a node.
    pub(super) async fn connect(
        &self,
        stream: Stream,
        to: NodeId,
        with_tls: bool,
    ) -> Result<Secured, NetError> {
        let halves = halves(stream).await;
        match self {
            Security::Either(tls) | Security::Tls(tls) if with_tls => {
                Secured::tls(halves, tls.client(to)).await
            }
            _ => Ok(Secured::plain(halves, None)),
        }
    }

    /// The asked end.
    pub(super) async fn accept(&self, stream: Stream) -> Result<Secured, NetError> {
        let (mut reader, writer) = halves(stream).await;
        match self {
            Security::Plain => Ok(Secured::plain((reader, writer), None)),
            Security::Tls(tls) => Secured::tls((reader, writer), tls.server()).await,
            Security::Either(tls) => {
                let first = reader.recv().await?;
                if first.first() == Some(&HANDSHAKE_RECORD) {
                    let mut session = tls.server();
                    session.received(&first);
                    drop(first);
                    return Secured::tls((reader, writer), session).await;
                }
                Ok(Secured::plain((reader, writer), (!first.is_empty()).then_some(first)))
            }
        }
    }
}

/// Both halves; what arrives can be received while all other memory waits for it.
async fn halves(stream: Stream) -> (StreamReader, StreamWriter) {
    let (mut reader, writer) = stream.split();
    reader.keep(ARRIVALS_BYTES).await;
    (reader, writer)
}
