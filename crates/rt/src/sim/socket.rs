//! Simulated sockets: what tasks hold of the network.

use super::host::Host;
use super::net::{ListenerState, NetEvent, SEGMENT_MAX, ip_of};
use super::world::Event;
use crate::buf::{Buf, IoVec, KeptBufs, View};
use crate::net::{Addr, NetError};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::Poll;

/// Appends the next `n` bytes of `iov` from (piece, offset) on to `into`.
pub(super) fn take_front(iov: &IoVec, at: &mut (usize, usize), mut n: usize, into: &mut Vec<u8>) {
    while n > 0 {
        let piece = &iov.pieces()[at.0];
        let take = n.min(piece.len() - at.1);
        into.extend_from_slice(&piece[at.1..at.1 + take]);
        n -= take;
        at.1 += take;
        if at.1 == piece.len() {
            *at = (at.0 + 1, 0);
        }
    }
}

/// A listening simulated socket.
pub struct Listener {
    host: Rc<Host>,
    id: u64,
    addr: Addr,
}

impl Listener {
    pub(crate) fn bind(host: Rc<Host>, addr: &Addr, shared: bool) -> Result<Listener, NetError> {
        let mut core = host.shared.core.borrow_mut();
        let mut addr = addr.clone();
        if let Addr::Tcp(tcp) = &mut addr {
            let ip = ip_of(tcp).ok_or(NetError::Os(libc::EADDRNOTAVAIL))?;
            if !ip.is_unspecified() && !ip.is_loopback() && ip != core.nodes[host.node as usize].ip {
                return Err(NetError::Os(libc::EADDRNOTAVAIL));
            }
            if tcp.port() == 0 {
                tcp.set_port(core.net.next_port);
                core.net.next_port = core.net.next_port.checked_add(1).unwrap_or(40_000);
            }
        }
        let taken = |(node, l): &(u32, ListenerState)| {
            *node == host.node && l.addr == addr && !(l.shared && shared) && matches!(addr, Addr::Tcp(_))
        };
        if core.net.listeners.values().any(taken) {
            return Err(NetError::AddrInUse);
        }
        let id = core.net.next;
        core.net.next += 1;
        let state = ListenerState { addr: addr.clone(), shared, backlog: VecDeque::new(), waker: None };
        core.net.listeners.insert(id, (host.node, state));
        drop(core);
        Ok(Listener { host, id, addr })
    }

    pub(crate) async fn accept(&self) -> Result<Stream, NetError> {
        poll_fn(|cx| {
            let mut core = self.host.shared.core.borrow_mut();
            let Some((_, state)) = core.net.listeners.get_mut(&self.id) else {
                return Poll::Ready(Err(NetError::Closed));
            };
            match state.backlog.pop_front() {
                Some(conn) => Poll::Ready(Ok(Stream::new(self.host.clone(), conn, 1))),
                None => {
                    state.waker = Some(cx.waker().clone());
                    Poll::Pending
                }
            }
        })
        .await
    }

    pub(crate) fn local_addr(&self) -> Addr {
        self.addr.clone()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let mut core = self.host.shared.core.borrow_mut();
        if let Some((_, state)) = core.net.listeners.remove(&self.id) {
            state.backlog.into_iter().for_each(|conn| core.forsake(conn));
        }
    }
}

/// One end of a simulated connection.
pub struct Stream {
    reader: Reader,
    writer: Writer,
}

impl Stream {
    fn new(host: Rc<Host>, conn: u64, end: usize) -> Stream {
        let half = |host| Half { host, conn, end };
        Stream { reader: Reader { half: half(host.clone()) }, writer: Writer { half: half(host) } }
    }

    pub(crate) async fn connect(host: Rc<Host>, addr: &Addr) -> Result<Stream, NetError> {
        let (conn, answer) = host.shared.core.borrow_mut().connect(host.node, addr);
        // Dropped while it waits, or refused: both halves close.
        let stream = Stream::new(host, conn, 0);
        answer.wait().await?;
        Ok(stream)
    }

    pub(crate) fn split(self) -> (Reader, Writer) {
        (self.reader, self.writer)
    }
}

struct Half {
    host: Rc<Host>,
    conn: u64,
    end: usize,
}

impl Drop for Half {
    fn drop(&mut self) {
        self.host.shared.core.borrow_mut().drop_half(self.conn, self.end);
    }
}

pub struct Reader {
    half: Half,
}

impl Reader {
    /// Bytes that can be read now; 0 at the end of the stream.
    async fn readable(&self) -> Result<usize, NetError> {
        poll_fn(|cx| {
            let mut core = self.half.host.shared.core.borrow_mut();
            let Some(c) = core.net.conns.get_mut(&self.half.conn) else {
                return Poll::Ready(Err(NetError::Closed));
            };
            if c.ends[self.half.end].reset {
                return Poll::Ready(Err(NetError::Closed));
            }
            let shut = c.ends[self.half.end].shut;
            let pipe = &mut c.pipes[1 - self.half.end];
            match pipe.arrived.front() {
                Some((data, read)) => Poll::Ready(Ok(data.len() - read)),
                None if pipe.ended || shut => Poll::Ready(Ok(0)),
                None => {
                    pipe.reader = Some(cx.waker().clone());
                    Poll::Pending
                }
            }
        })
        .await
    }

    /// Copies what has arrived, up to the length of `into`.
    fn take(&self, into: &mut [u8]) -> usize {
        let mut core = self.half.host.shared.core.borrow_mut();
        let core = &mut *core;
        let dir = 1 - self.half.end;
        let Some(c) = core.net.conns.get_mut(&self.half.conn) else { return 0 };
        let pipe = &mut c.pipes[dir];
        let mut done = 0;
        while done < into.len() {
            let Some((data, read)) = pipe.arrived.front_mut() else { break };
            let n = (data.len() - *read).min(into.len() - done);
            into[done..done + n].copy_from_slice(&data[*read..*read + n]);
            *read += n;
            done += n;
            if *read == data.len() {
                let (mut data, _) = pipe.arrived.pop_front().expect("seen");
                data.clear();
                if core.net.spare.len() < 256 {
                    core.net.spare.push(data);
                }
            }
        }
        pipe.held -= done;
        if pipe.writer.is_some() && done > 0 {
            let (reader, writer) = (c.ends[1 - dir].node, c.ends[dir].node);
            let delay = core.link_latency(reader, writer);
            core.push_in(delay, Event::Net(NetEvent::Window { conn: self.half.conn, dir }));
        }
        done
    }

    /// `own`: memory for when the pool is empty.
    pub(crate) async fn recv(&mut self, own: Option<&KeptBufs>) -> Result<View, NetError> {
        let bytes = self.readable().await?.min(SEGMENT_MAX);
        let mut buf = match own {
            Some(own) => own.alloc_up_to(bytes).await,
            None => Buf::alloc(bytes).await,
        };
        // A reset may have come while we waited for a buffer: then this reads nothing, and so does the caller next.
        let read = self.take(&mut buf);
        if read == 0 && bytes > 0 {
            return Err(NetError::Closed);
        }
        buf.truncate(read);
        Ok(buf.freeze())
    }

    pub(crate) async fn recv_exact(&mut self, mut buf: Buf) -> (Result<(), NetError>, Buf) {
        let mut done = 0;
        while done < buf.len() {
            match self.readable().await {
                Ok(0) => return (Err(NetError::Closed), buf),
                Ok(_) => done += self.take(&mut buf[done..]),
                Err(error) => return (Err(error), buf),
            }
        }
        (Ok(()), buf)
    }
}

pub struct Writer {
    half: Half,
}

impl Writer {
    pub(crate) async fn send(&mut self, iov: IoVec) -> Result<(), NetError> {
        let (conn, end) = (self.half.conn, self.half.end);
        let mut at = (0, 0);
        let mut left = iov.bytes();
        poll_fn(|cx| {
            let mut core = self.half.host.shared.core.borrow_mut();
            let Some(c) = core.net.conns.get_mut(&conn) else { return Poll::Ready(Err(NetError::Closed)) };
            if c.ends[end].reset || c.ends[end].shut {
                return Poll::Ready(Err(NetError::Closed));
            }
            let pipe = &mut c.pipes[end];
            let n = left.min(pipe.window.saturating_sub(pipe.held));
            left -= n;
            if left > 0 {
                pipe.writer = Some(cx.waker().clone());
            }
            if n > 0 {
                core.send_segments(conn, end, &iov, &mut at, n);
            }
            if left == 0 { Poll::Ready(Ok(())) } else { Poll::Pending }
        })
        .await
    }

    pub(crate) fn shutdown(&self) {
        self.half.host.shared.core.borrow_mut().shut(self.half.conn, self.half.end);
    }
}
