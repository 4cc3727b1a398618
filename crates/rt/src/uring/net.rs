//! Sockets: non-blocking calls, and the ring's word on when to make them.

use super::addr::{
    SockAddr, bound_to, checked, net_error, open_socket, os_error, pending_error, remove_stale, set_option,
};
use super::driver::Driver;
use super::ops::Readiness;
use crate::buf::{Buf, IoVec, View};
use crate::net::{Addr, NetError};
use std::cell::Cell;
use std::future::poll_fn;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::rc::Rc;
use std::task::Poll;

const BACKLOG: libc::c_int = 1024;
/// The shared buffer that received bytes go to, and how little of it may be left before it is replaced.
const ARRIVALS_BYTES: usize = 64 << 10;
const ARRIVALS_LEFT_MIN: usize = 16 << 10;
/// Calls that find their socket ready before the task lets others run.
const STREAK_MAX: u32 = 32;

/// A socket and its poll. The poll keeps the file open in the kernel, so closing shuts the connection down by
/// hand and does not rely on the last descriptor.
struct Socket {
    driver: Rc<Driver>,
    fd: OwnedFd,
    readiness: Rc<Readiness>,
    key: u64,
    streak: Cell<u32>,
}

impl Socket {
    fn new(driver: Rc<Driver>, fd: OwnedFd) -> Result<Socket, NetError> {
        let readiness = Readiness::new(fd.as_raw_fd());
        let key = driver.register(fd.as_raw_fd(), readiness.clone()).ok_or(NetError::Os(libc::ENFILE))?;
        Ok(Socket { driver, fd, readiness, key, streak: Cell::new(0) })
    }
    fn fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
    async fn readable(&self) {
        self.rest().await;
        poll_fn(|cx| {
            if self.readiness.readable.get() {
                return Poll::Ready(());
            }
            self.streak.set(0);
            self.readiness.reader.set(Some(cx.waker().clone()));
            Poll::Pending
        })
        .await
    }
    async fn writable(&self) {
        poll_fn(|cx| {
            if self.readiness.writable.get() {
                return Poll::Ready(());
            }
            self.readiness.writer.set(Some(cx.waker().clone()));
            Poll::Pending
        })
        .await
    }
    /// A socket that is always ready must not keep the others waiting.
    async fn rest(&self) {
        self.streak.set(self.streak.get() + 1);
        if self.streak.get() >= STREAK_MAX {
            self.streak.set(0);
            crate::yield_now().await;
        }
    }

    /// Receives into `into` what has arrived; `None` when nothing has.
    fn try_recv(&self, into: &mut [u8]) -> Result<Option<usize>, NetError> {
        loop {
            // SAFETY: writes at most `into.len()` bytes into `into`.
            let n =
                unsafe { libc::recv(self.fd(), into.as_mut_ptr().cast(), into.len(), libc::MSG_DONTWAIT) };
            if n >= 0 {
                // A short read has emptied the socket: what comes later brings another event. Except the end
                // of the stream, which may be queued already and then brings none.
                if (n as usize) < into.len() && !self.readiness.hangup.get() {
                    self.readiness.readable.set(false);
                }
                return Ok(Some(n as usize));
            }
            match os_error() {
                libc::EINTR => {}
                libc::EAGAIN if self.readiness.failed.get() => return Err(NetError::Closed),
                libc::EAGAIN => {
                    self.readiness.readable.set(false);
                    return Ok(None);
                }
                errno => return Err(net_error(errno)),
            }
        }
    }

    /// Sends what the socket takes of the pieces, without the first `skip` bytes; `None` when it takes nothing.
    fn try_send(&self, iov: &IoVec, mut skip: usize) -> Result<Option<usize>, NetError> {
        let mut list = self.driver.scratch.borrow_mut();
        list.clear();
        for piece in iov.pieces() {
            if skip >= piece.len() {
                skip -= piece.len();
                continue;
            }
            let rest = &piece[std::mem::take(&mut skip)..];
            list.push(libc::iovec { iov_base: rest.as_ptr().cast_mut().cast(), iov_len: rest.len() });
        }
        // SAFETY: zero is a valid msghdr.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_iov = list.as_mut_ptr();
        message.msg_iovlen = list.len();
        loop {
            // SAFETY: the message names a list of pieces that all live for the call and are only read.
            let n = unsafe { libc::sendmsg(self.fd(), &message, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) };
            if n >= 0 {
                return Ok(Some(n as usize));
            }
            match os_error() {
                libc::EINTR => {}
                libc::EAGAIN if self.readiness.failed.get() => return Err(NetError::Closed),
                libc::EAGAIN => {
                    self.readiness.writable.set(false);
                    return Ok(None);
                }
                errno => return Err(net_error(errno)),
            }
        }
    }

    fn shutdown(&self) {
        // SAFETY: no pointers. Fails when the connection is gone already, which is as good.
        unsafe { libc::shutdown(self.fd(), libc::SHUT_RDWR) };
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        self.driver.unregister(self.key);
        self.shutdown();
    }
}

pub(crate) struct Listener {
    socket: Socket,
    addr: Addr,
    /// Removes the file of a Unix socket at the end.
    file: Option<PathBuf>,
}

impl Listener {
    pub(crate) fn bind(driver: Rc<Driver>, addr: &Addr, shared: bool) -> Result<Listener, NetError> {
        let fd = open_socket(addr)?;
        if let Addr::Tcp(_) = addr {
            set_option(&fd, libc::SOL_SOCKET, libc::SO_REUSEADDR)?;
            if shared {
                set_option(&fd, libc::SOL_SOCKET, libc::SO_REUSEPORT)?;
            }
        }
        let name = SockAddr::of(addr)?;
        match name.bind(&fd) {
            Err(NetError::AddrInUse) => {
                let Addr::Unix(path) = addr else { return Err(NetError::AddrInUse) };
                remove_stale(addr, path)?;
                name.bind(&fd)?;
            }
            other => other?,
        }
        if let Addr::Unix(path) = addr {
            // Before anybody can connect: the file would have whatever mode the umask leaves.
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))
                .map_err(|e| net_error(e.raw_os_error().unwrap_or(libc::EIO)))?;
        }
        // SAFETY: no pointers.
        checked(unsafe { libc::listen(fd.as_raw_fd(), BACKLOG) })?;
        let addr = match addr {
            Addr::Tcp(_) => Addr::Tcp(bound_to(&fd)?),
            unix => unix.clone(),
        };
        let file = match &addr {
            Addr::Unix(path) => Some(path.clone()),
            Addr::Tcp(_) => None,
        };
        Ok(Listener { socket: Socket::new(driver, fd)?, addr, file })
    }

    pub(crate) async fn accept(&self) -> Result<Stream, NetError> {
        loop {
            let changed = self.socket.readiness.changed.notified();
            let flags = libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
            let (none, no_len) = (std::ptr::null_mut(), std::ptr::null_mut());
            // SAFETY: the peer's address is not asked for; the result is checked.
            let fd = unsafe { libc::accept4(self.socket.fd(), none, no_len, flags) };
            if fd >= 0 {
                // SAFETY: the descriptor was just made and is nobody else's.
                let fd = unsafe { OwnedFd::from_raw_fd(fd) };
                if let Addr::Tcp(_) = self.addr {
                    set_option(&fd, libc::IPPROTO_TCP, libc::TCP_NODELAY)?;
                }
                return Ok(Stream { socket: Rc::new(Socket::new(self.socket.driver.clone(), fd)?) });
            }
            match os_error() {
                libc::EAGAIN => changed.await,
                // The connection was gone before we took it: take the next one.
                libc::EINTR | libc::ECONNABORTED => {}
                errno => return Err(net_error(errno)),
            }
        }
    }

    pub(crate) fn local_addr(&self) -> Addr {
        self.addr.clone()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Some(path) = &self.file {
            let _ = std::fs::remove_file(path);
        }
    }
}

pub(crate) struct Stream {
    socket: Rc<Socket>,
}

impl Stream {
    pub(crate) async fn connect(driver: Rc<Driver>, addr: &Addr) -> Result<Stream, NetError> {
        let fd = open_socket(addr)?;
        if let Addr::Tcp(_) = addr {
            set_option(&fd, libc::IPPROTO_TCP, libc::TCP_NODELAY)?;
        }
        let pending = match SockAddr::of(addr)?.connect(&fd) {
            Ok(()) => false,
            Err(libc::EINPROGRESS) => true,
            Err(errno) => return Err(net_error(errno)),
        };
        let socket = Socket::new(driver, fd)?;
        if pending {
            socket.readiness.writable.set(false);
            socket.writable().await;
            match pending_error(&socket.fd)? {
                0 => {}
                errno => return Err(net_error(errno)),
            }
        }
        Ok(Stream { socket: Rc::new(socket) })
    }

    pub(crate) fn split(self) -> (Reader, Writer) {
        (Reader { socket: self.socket.clone() }, Writer { socket: self.socket, torn: false })
    }
}

pub(crate) struct Reader {
    socket: Rc<Socket>,
}

impl Reader {
    pub(crate) async fn recv(&mut self) -> Result<View, NetError> {
        loop {
            self.socket.readable().await;
            let arrivals = self.socket.driver.arrivals.borrow_mut().take();
            let mut arrivals = match arrivals {
                Some(buf) if buf.len() >= ARRIVALS_LEFT_MIN => buf,
                _ => Buf::alloc(ARRIVALS_BYTES).await,
            };
            let received = self.socket.try_recv(&mut arrivals);
            let front = match received {
                Ok(Some(n)) => Ok(Some(arrivals.split_to(n).freeze())),
                Ok(None) => Ok(None),
                Err(error) => Err(error),
            };
            *self.socket.driver.arrivals.borrow_mut() = Some(arrivals);
            if let Some(view) = front? {
                return Ok(view);
            }
        }
    }

    pub(crate) async fn recv_exact(&mut self, mut buf: Buf) -> (Result<(), NetError>, Buf) {
        let mut filled = 0;
        while filled < buf.len() {
            self.socket.readable().await;
            match self.socket.try_recv(&mut buf[filled..]) {
                Ok(Some(0)) => return (Err(NetError::Closed), buf),
                Ok(Some(n)) => filled += n,
                Ok(None) => {}
                Err(error) => return (Err(error), buf),
            }
        }
        (Ok(()), buf)
    }
}

pub(crate) struct Writer {
    socket: Rc<Socket>,
    /// A send was dropped in its middle: the stream ends inside a message and can carry no other.
    torn: bool,
}

impl Writer {
    pub(crate) async fn send(&mut self, iov: IoVec) -> Result<(), NetError> {
        if self.torn {
            return Err(NetError::Closed);
        }
        let mut sent = 0;
        while sent < iov.bytes() {
            match self.socket.try_send(&iov, sent) {
                Ok(Some(n)) => sent += n,
                Ok(None) => {
                    self.torn = sent > 0;
                    self.socket.writable().await;
                    self.torn = false;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    pub(crate) fn shutdown(&self) {
        self.socket.shutdown();
    }
}
