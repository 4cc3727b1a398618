//! TCP and Unix-domain streams. A connection is split into a reader and a writer, each used by one task.

use crate::buf::{Buf, IoVec, KeptBufs, View};
use crate::reactor::{BackendKind, backend_kind};
use crate::{sim, uring};
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;

/// Where to listen or connect. In simulation each node has an IPv4 address.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Addr {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

impl fmt::Display for Addr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Addr::Tcp(addr) => addr.fmt(f),
            Addr::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NetError {
    /// The peer closed or reset the connection, or it timed out.
    Closed,
    Refused,
    AddrInUse,
    Os(i32),
}

impl fmt::Display for NetError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NetError::Closed => f.write_str("the connection was closed"),
            NetError::Refused => f.write_str("the connection was refused"),
            NetError::AddrInUse => f.write_str("the address is in use"),
            NetError::Os(errno) => write!(f, "{}", std::io::Error::from_raw_os_error(*errno)),
        }
    }
}
impl std::error::Error for NetError {}

enum ListenerKind {
    Uring(uring::Listener),
    Sim(sim::Listener),
}

/// A bound, listening socket.
pub struct Listener {
    kind: ListenerKind,
}

impl Listener {
    /// Binds and listens. A stale Unix socket file is replaced.
    /// With `shared`, several reactors may bind the same TCP address and the system spreads connections over them.
    pub async fn bind(addr: &Addr, shared: bool) -> Result<Listener, NetError> {
        let kind = match backend_kind() {
            BackendKind::Uring(driver) => ListenerKind::Uring(uring::Listener::bind(driver, addr, shared)?),
            BackendKind::Sim(host) => ListenerKind::Sim(sim::Listener::bind(host, addr, shared)?),
        };
        Ok(Listener { kind })
    }
    pub async fn accept(&self) -> Result<Stream, NetError> {
        let kind = match &self.kind {
            ListenerKind::Uring(listener) => StreamKind::Uring(listener.accept().await?),
            ListenerKind::Sim(listener) => StreamKind::Sim(listener.accept().await?),
        };
        Ok(Stream { kind })
    }
    /// With the port that the system chose when port 0 was asked for.
    pub fn local_addr(&self) -> Addr {
        match &self.kind {
            ListenerKind::Uring(listener) => listener.local_addr(),
            ListenerKind::Sim(listener) => listener.local_addr(),
        }
    }
}

enum StreamKind {
    Uring(uring::Stream),
    Sim(sim::Stream),
}

/// One connection.
pub struct Stream {
    kind: StreamKind,
}

impl Stream {
    pub async fn connect(addr: &Addr) -> Result<Stream, NetError> {
        let kind = match backend_kind() {
            BackendKind::Uring(driver) => StreamKind::Uring(uring::Stream::connect(driver, addr).await?),
            BackendKind::Sim(host) => StreamKind::Sim(sim::Stream::connect(host, addr).await?),
        };
        Ok(Stream { kind })
    }
    /// The two halves. The connection closes when both are dropped; [`StreamWriter::shutdown`] wakes the reader.
    pub fn split(self) -> (StreamReader, StreamWriter) {
        match self.kind {
            StreamKind::Uring(stream) => {
                let (r, w) = stream.split();
                (StreamReader::new(ReaderKind::Uring(r)), StreamWriter { kind: WriterKind::Uring(w) })
            }
            StreamKind::Sim(stream) => {
                let (r, w) = stream.split();
                (StreamReader::new(ReaderKind::Sim(r)), StreamWriter { kind: WriterKind::Sim(w) })
            }
        }
    }
}

enum ReaderKind {
    Uring(uring::Reader),
    Sim(sim::Reader),
}

/// The receiving half.
pub struct StreamReader {
    kind: ReaderKind,
    /// For what arrives while the pool is empty.
    own: Option<KeptBufs>,
}

impl StreamReader {
    fn new(kind: ReaderKind) -> StreamReader {
        StreamReader { kind, own: None }
    }
    /// Keeps back so many bytes for what arrives here, so that it can be received while the pool is empty: for connections
    /// on which answers come that others wait for with all the memory there is. Waits until the pool has them. Of use when each
    /// view is dropped before the wait for anything but the next.
    pub async fn keep(&mut self, bytes: usize) {
        self.own = Some(KeptBufs::take(1, bytes).await);
    }
    /// The next bytes as they have arrived (multishot receive into provided buffers). Empty at the end of the
    /// stream. While the caller holds many views, the connection's window closes: that is the backpressure.
    pub async fn recv(&mut self) -> Result<View, NetError> {
        match &mut self.kind {
            ReaderKind::Uring(reader) => reader.recv(self.own.as_ref()).await,
            ReaderKind::Sim(reader) => reader.recv(self.own.as_ref()).await,
        }
    }
    /// Fills `buf` with the next bytes of the stream, without an intermediate copy where the bytes have not
    /// arrived yet. Worth it for large payload only. [`NetError::Closed`] when the stream ends before.
    pub async fn recv_exact(&mut self, buf: Buf) -> (Result<(), NetError>, Buf) {
        match &mut self.kind {
            ReaderKind::Uring(reader) => reader.recv_exact(buf).await,
            ReaderKind::Sim(reader) => reader.recv_exact(buf).await,
        }
    }
}

enum WriterKind {
    Uring(uring::Writer),
    Sim(sim::Writer),
}

/// The sending half.
pub struct StreamWriter {
    kind: WriterKind,
}

impl StreamWriter {
    /// Sends all bytes of all pieces. Returns when the system has taken them (the pieces may be reused then).
    pub async fn send(&mut self, iov: IoVec) -> Result<(), NetError> {
        match &mut self.kind {
            WriterKind::Uring(writer) => writer.send(iov).await,
            WriterKind::Sim(writer) => writer.send(iov).await,
        }
    }
    /// Ends the connection in both directions: the peer sees the end of the stream after what was sent.
    pub fn shutdown(&self) {
        match &self.kind {
            WriterKind::Uring(writer) => writer.shutdown(),
            WriterKind::Sim(writer) => writer.shutdown(),
        }
    }
}
