//! Connections: how a reader receives and a writer sends.

use super::addr::{SockAddr, net_error, open_socket, pending_error, set_option};
use super::driver::Driver;
use super::receive::{End, Incoming};
use super::send::bound_unacknowledged;
use super::socket::Socket;
use crate::buf::{Buf, IoVec, KeptBufs, View};
use crate::net::{Addr, NetError};
use std::future::poll_fn;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::task::Poll;

/// The shared buffer for what calls receive, and how little of it may be left before it is replaced.
const ARRIVALS_BYTES: usize = 64 << 10;
const ARRIVALS_LEFT_MIN: usize = 16 << 10;
/// Whoever asks for so many bytes at once is better served by calls: they go straight to where they belong.
const LARGE_BYTES: usize = 16 << 10;
/// Receives without a large one between them, after which a connection receives by the ring again.
const CALLS_AFTER_LARGE: u32 = 64;

pub(crate) struct Stream {
    socket: Rc<Socket>,
}

impl Stream {
    pub(crate) async fn connect(driver: Rc<Driver>, addr: &Addr) -> Result<Stream, NetError> {
        let fd = open_socket(addr)?;
        let tcp = matches!(addr, Addr::Tcp(_));
        if tcp {
            set_option(&fd, libc::IPPROTO_TCP, libc::TCP_NODELAY)?;
        }
        let pending = match SockAddr::of(addr)?.connect(&fd) {
            Ok(()) => false,
            Err(libc::EINPROGRESS) => true,
            Err(errno) => return Err(net_error(errno)),
        };
        let socket = Socket::new(driver, fd, tcp);
        if pending {
            socket.writable.ready.set(false);
            socket.writable().await?;
            match pending_error(&socket.handle.fd)? {
                0 => {}
                errno => return Err(net_error(errno)),
            }
        }
        Ok(Stream { socket: Rc::new(socket) })
    }

    pub(super) fn accepted(driver: Rc<Driver>, fd: OwnedFd, tcp: bool) -> Result<Stream, NetError> {
        if tcp {
            set_option(&fd, libc::IPPROTO_TCP, libc::TCP_NODELAY)?;
        }
        Ok(Stream { socket: Rc::new(Socket::new(driver, fd, tcp)) })
    }

    pub(crate) fn split(self) -> (Reader, Writer) {
        let mode = if self.socket.driver.provided.is_there() { Mode::Ring } else { Mode::CallsOnly };
        let reader = Reader { socket: self.socket.clone(), incoming: Rc::default(), mode };
        (reader, Writer { socket: self.socket, torn: false, bounded: false })
    }
}

/// How the next bytes are received.
#[derive(Clone, Copy, PartialEq)]
enum Mode {
    /// The kernel brings them.
    Ring,
    /// The kernel brings them until it has stopped; then by calls.
    Leaving,
    /// We fetch them. So many receives later, by the ring.
    Calls(u32),
    /// The system, or the configuration, has no ring.
    CallsOnly,
}

pub(crate) struct Reader {
    socket: Rc<Socket>,
    incoming: Rc<Incoming>,
    mode: Mode,
}

impl Reader {
    /// `own`: memory for when the pool is empty.
    pub(crate) async fn recv(&mut self, own: Option<&KeptBufs>) -> Result<View, NetError> {
        self.count_receive();
        loop {
            if let Some(view) = self.socket.driver.take_arrived(&self.incoming) {
                return Ok(view);
            }
            match self.mode {
                Mode::Ring | Mode::Leaving => self.arrival().await?,
                Mode::Calls(_) | Mode::CallsOnly => {
                    if let Some(view) = self.call(own).await? {
                        return Ok(view);
                    }
                }
            }
        }
    }

    pub(crate) async fn recv_exact(&mut self, mut buf: Buf) -> (Result<(), NetError>, Buf) {
        if buf.len() >= LARGE_BYTES {
            self.prefer_calls();
        }
        let mut filled = 0;
        while filled < buf.len() {
            match self.fill(&mut buf[filled..]).await {
                Ok(n) => filled += n,
                Err(error) => return (Err(error), buf),
            }
        }
        (Ok(()), buf)
    }

    /// Some of the next bytes, perhaps none yet.
    async fn fill(&mut self, into: &mut [u8]) -> Result<usize, NetError> {
        let driver = &self.socket.driver;
        if let Some(mut view) = driver.take_arrived(&self.incoming) {
            let n = view.len().min(into.len());
            into[..n].copy_from_slice(&view[..n]);
            view.advance(n);
            if !view.is_empty() {
                driver.put_back(&self.incoming, view);
            }
            return Ok(n);
        }
        if let Mode::Ring | Mode::Leaving = self.mode {
            self.arrival().await?;
            return Ok(0);
        }
        self.socket.readable().await?;
        match self.socket.try_recv(into)? {
            Some(0) => Err(NetError::Closed),
            received => Ok(received.unwrap_or(0)),
        }
    }

    /// One call, into the buffer that all sockets share.
    async fn call(&mut self, own: Option<&KeptBufs>) -> Result<Option<View>, NetError> {
        self.socket.readable().await?;
        // What is too short is given up before the wait for another: those who wait would have all buffers.
        let left = self.socket.driver.arrivals.borrow_mut().take().filter(|b| b.len() >= ARRIVALS_LEFT_MIN);
        let mut arrivals = match (left, own) {
            (Some(buf), _) => buf,
            (None, Some(own)) => own.alloc_up_to(ARRIVALS_BYTES).await,
            (None, None) => Buf::alloc(ARRIVALS_BYTES).await,
        };
        // What is kept back for one socket is not for all.
        let shared = arrivals.len() >= ARRIVALS_LEFT_MIN;
        let received = self.socket.try_recv(&mut arrivals);
        let front = received.map(|n| n.map(|n| arrivals.split_to(n).freeze()));
        if shared {
            *self.socket.driver.arrivals.borrow_mut() = Some(arrivals);
        }
        front
    }

    /// Waits until the kernel has brought something, or until it has stopped and the mode has changed.
    async fn arrival(&mut self) -> Result<(), NetError> {
        if !self.incoming.is_armed() {
            match self.incoming.end.get() {
                Some(End::Failed(error)) => return Err(error),
                // Calls find the end of the stream again, or wait for the pool to have a buffer.
                Some(End::Eof) => self.mode = Mode::Calls(CALLS_AFTER_LARGE),
                Some(End::Starved) if !self.socket.driver.provides() => {
                    self.mode = Mode::Calls(CALLS_AFTER_LARGE);
                }
                _ if self.mode == Mode::Leaving => self.mode = Mode::Calls(CALLS_AFTER_LARGE),
                _ => self.socket.driver.arm_receive(&self.socket.handle, &self.incoming)?,
            }
            if let Mode::Calls(_) = self.mode {
                self.incoming.end.set(None);
                self.socket.readable.ready.set(true);
                return Ok(());
            }
        }
        poll_fn(|cx| {
            if self.incoming.has_some() || !self.incoming.is_armed() {
                return Poll::Ready(Ok(()));
            }
            self.incoming.waker.set(Some(cx.waker().clone()));
            Poll::Pending
        })
        .await
    }

    /// Large payload is asked for: what the kernel has not brought yet is fetched to where it belongs.
    fn prefer_calls(&mut self) {
        match self.mode {
            Mode::Ring => {
                self.mode = Mode::Leaving;
                self.socket.driver.pause_receive(&self.incoming);
            }
            Mode::Calls(_) => self.mode = Mode::Calls(CALLS_AFTER_LARGE),
            Mode::Leaving | Mode::CallsOnly => {}
        }
    }

    /// When nothing large has been asked for a while, the kernel brings the bytes again.
    fn count_receive(&mut self) {
        self.mode = match self.mode {
            Mode::Calls(0) => {
                self.socket.forget(&self.socket.readable);
                Mode::Ring
            }
            Mode::Calls(left) => Mode::Calls(left - 1),
            mode => mode,
        }
    }
}

impl Drop for Reader {
    /// What the kernel still brings goes back to the pool.
    fn drop(&mut self) {
        let driver = &self.socket.driver;
        if let Some(key) = self.incoming.key.take() {
            driver.detach(key);
        }
        while driver.take_arrived(&self.incoming).is_some() {}
    }
}

pub(crate) struct Writer {
    socket: Rc<Socket>,
    /// A send was dropped in its middle: the stream ends inside a message and can carry no other.
    torn: bool,
    /// The time for which the peer may acknowledge nothing has a limit.
    bounded: bool,
}

impl Writer {
    pub(crate) async fn send(&mut self, iov: IoVec) -> Result<(), NetError> {
        if self.torn {
            return Err(NetError::Closed);
        }
        let mut sent = 0;
        if self.socket.driver.goes_without_copy(&self.socket.handle, iov.bytes()) {
            sent = self.send_without_copy(&iov).await?;
        }
        while sent < iov.bytes() {
            match self.socket.try_send(&iov, sent) {
                Ok(Some(n)) => sent += n,
                Ok(None) => {
                    self.torn = sent > 0;
                    self.socket.writable().await?;
                    self.torn = false;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Says how much was sent. What is left, where the system has no means to do it so, can be copied.
    async fn send_without_copy(&mut self, iov: &IoVec) -> Result<usize, NetError> {
        if !std::mem::replace(&mut self.bounded, true) {
            bound_unacknowledged(&self.socket.handle);
        }
        self.torn = true;
        let sent = self.socket.driver.send_without_copy(&self.socket.handle, iov).await;
        self.torn = false;
        match sent.errno {
            0 => Ok(sent.bytes),
            libc::ENOMEM | libc::ENOBUFS => Ok(sent.bytes),
            libc::EINVAL | libc::EOPNOTSUPP => {
                self.socket.handle.zero_copy.set(false);
                Ok(sent.bytes)
            }
            errno => Err(net_error(errno)),
        }
    }

    pub(crate) fn shutdown(&self) {
        self.socket.shutdown();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::uring::{Listener, Receive, RuntimeConfig, ZeroCopy, block_on};

    fn modes(config: RuntimeConfig, test: impl AsyncFnOnce(Reader, Writer) + 'static) {
        block_on(config, async {
            let crate::reactor::BackendKind::Uring(driver) = crate::reactor::backend_kind() else {
                unreachable!()
            };
            let any = Addr::Tcp("127.0.0.1:0".parse().expect("an address"));
            let listener = Listener::bind(driver.clone(), &any, false).expect("a free port");
            let client = Stream::connect(driver, &listener.local_addr()).await.expect("it listens");
            let (reader, _answers) = listener.accept().await.expect("a connection").split();
            let (_, writer) = client.split();
            test(reader, writer).await;
        });
    }

    async fn send(writer: &mut Writer, bytes: usize) {
        writer.send(Buf::zeroed(bytes).await.freeze().into()).await.expect("sent");
    }

    #[test]
    fn a_connection_leaves_the_ring_for_large_payload_and_comes_back() {
        modes(RuntimeConfig::small(), async |mut reader, mut writer| {
            for _ in 0..2 {
                send(&mut writer, 72).await;
                assert_eq!(reader.recv(None).await.expect("received").len(), 72);
                assert!(reader.mode == Mode::Ring);
                send(&mut writer, 100_000).await;
                reader.recv_exact(Buf::alloc(100_000).await).await.0.expect("received");
                for left in (0..CALLS_AFTER_LARGE).rev() {
                    send(&mut writer, 72).await;
                    assert_eq!(reader.recv(None).await.expect("received").len(), 72);
                    assert!(matches!(reader.mode, Mode::Calls(_) | Mode::Leaving), "{left} left");
                }
                for _ in 0..2 {
                    send(&mut writer, 72).await;
                    assert_eq!(reader.recv(None).await.expect("received").len(), 72);
                }
                assert!(reader.mode == Mode::Ring);
                // Small buffers are no reason to leave it.
                send(&mut writer, LARGE_BYTES - 1).await;
                reader.recv_exact(Buf::alloc(LARGE_BYTES - 1).await).await.0.expect("received");
                assert!(reader.mode == Mode::Ring);
            }
        });
    }

    #[test]
    fn the_configuration_can_do_without_the_ring() {
        let config = RuntimeConfig { receive: Receive::Calls, ..RuntimeConfig::small() };
        modes(config, async |mut reader, mut writer| {
            for _ in 0..200 {
                send(&mut writer, 72).await;
                assert_eq!(reader.recv(None).await.expect("received").len(), 72);
                assert!(reader.mode == Mode::CallsOnly && !reader.incoming.is_armed());
            }
        });
    }

    #[test]
    fn a_connection_on_which_the_system_copies_is_told_so_once() {
        let config = RuntimeConfig { zero_copy: ZeroCopy::From(1000), ..RuntimeConfig::small() };
        modes(config, async |mut reader, mut writer| {
            assert!(writer.socket.driver.goes_without_copy(&writer.socket.handle, 1000));
            assert!(!writer.socket.driver.goes_without_copy(&writer.socket.handle, 999));
            send(&mut writer, 1000).await;
            assert_eq!(reader.recv(None).await.expect("received").len(), 1000);
            crate::sleep(std::time::Duration::from_millis(20)).await;
            assert!(!writer.socket.driver.goes_without_copy(&writer.socket.handle, 1000), "loopback copies");
        });
    }
}
