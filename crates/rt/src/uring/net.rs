//! Sockets: non-blocking calls, and the ring's word on when to make them.

use super::driver::Driver;
use super::ops::Readiness;
use crate::buf::{Buf, IoVec, View};
use crate::net::{Addr, NetError};
use std::cell::Cell;
use std::future::poll_fn;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::task::Poll;

const BACKLOG: libc::c_int = 1024;
/// The shared buffer that received bytes go to, and how little of it may be left before it is replaced.
const ARRIVALS_BYTES: usize = 64 << 10;
const ARRIVALS_LEFT_MIN: usize = 16 << 10;
/// Calls that find their socket ready before the task lets others run.
const STREAK_MAX: u32 = 32;

fn os_error() -> i32 {
    io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO)
}

fn net_error(errno: i32) -> NetError {
    match errno {
        libc::ECONNRESET | libc::EPIPE | libc::ETIMEDOUT | libc::ENOTCONN | libc::ECONNABORTED => {
            NetError::Closed
        }
        libc::ECONNREFUSED | libc::ENOENT => NetError::Refused,
        libc::EADDRINUSE => NetError::AddrInUse,
        errno => NetError::Os(errno),
    }
}

/// A system call's result, or its errno.
fn checked(result: libc::c_int) -> Result<libc::c_int, NetError> {
    if result < 0 { Err(net_error(os_error())) } else { Ok(result) }
}

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

// ---- addresses and options ----------------------------------------------------------------------------------

fn open_socket(addr: &Addr) -> Result<OwnedFd, NetError> {
    let family = match addr {
        Addr::Tcp(SocketAddr::V4(_)) => libc::AF_INET,
        Addr::Tcp(SocketAddr::V6(_)) => libc::AF_INET6,
        Addr::Unix(_) => libc::AF_UNIX,
    };
    let kind = libc::SOCK_STREAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: no pointers; the result is checked.
    let fd = checked(unsafe { libc::socket(family, kind, 0) })?;
    // SAFETY: the descriptor was just made and is nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn set_option(fd: &OwnedFd, level: libc::c_int, name: libc::c_int) -> Result<(), NetError> {
    let on: libc::c_int = 1;
    // SAFETY: reads one c_int from a live local.
    checked(unsafe {
        libc::setsockopt(fd.as_raw_fd(), level, name, (&raw const on).cast(), size_of_val(&on) as u32)
    })?;
    Ok(())
}

fn pending_error(fd: &OwnedFd) -> Result<i32, NetError> {
    let mut error: libc::c_int = 0;
    let mut len = size_of_val(&error) as libc::socklen_t;
    // SAFETY: writes one c_int into a live local.
    checked(unsafe {
        libc::getsockopt(fd.as_raw_fd(), libc::SOL_SOCKET, libc::SO_ERROR, (&raw mut error).cast(), &mut len)
    })?;
    Ok(error)
}

/// An address as the kernel wants it.
enum SockAddr {
    V4(libc::sockaddr_in),
    V6(libc::sockaddr_in6),
    Unix(libc::sockaddr_un),
}

impl SockAddr {
    fn of(addr: &Addr) -> Result<SockAddr, NetError> {
        match addr {
            Addr::Tcp(SocketAddr::V4(v4)) => Ok(SockAddr::V4(libc::sockaddr_in {
                sin_family: libc::AF_INET as libc::sa_family_t,
                sin_port: v4.port().to_be(),
                sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(v4.ip().octets()) },
                sin_zero: [0; 8],
            })),
            Addr::Tcp(SocketAddr::V6(v6)) => Ok(SockAddr::V6(libc::sockaddr_in6 {
                sin6_family: libc::AF_INET6 as libc::sa_family_t,
                sin6_port: v6.port().to_be(),
                sin6_flowinfo: v6.flowinfo(),
                sin6_addr: libc::in6_addr { s6_addr: v6.ip().octets() },
                sin6_scope_id: v6.scope_id(),
            })),
            Addr::Unix(path) => {
                let bytes = path.as_os_str().as_bytes();
                // SAFETY: zero is a valid sockaddr_un.
                let mut name: libc::sockaddr_un = unsafe { std::mem::zeroed() };
                name.sun_family = libc::AF_UNIX as libc::sa_family_t;
                if bytes.len() >= name.sun_path.len() || bytes.contains(&0) {
                    return Err(NetError::Os(libc::ENAMETOOLONG));
                }
                for (to, from) in name.sun_path.iter_mut().zip(bytes) {
                    *to = *from as libc::c_char;
                }
                Ok(SockAddr::Unix(name))
            }
        }
    }

    fn parts(&self) -> (*const libc::sockaddr, libc::socklen_t) {
        match self {
            SockAddr::V4(a) => ((&raw const *a).cast(), size_of_val(a) as libc::socklen_t),
            SockAddr::V6(a) => ((&raw const *a).cast(), size_of_val(a) as libc::socklen_t),
            SockAddr::Unix(a) => ((&raw const *a).cast(), size_of_val(a) as libc::socklen_t),
        }
    }

    fn bind(&self, fd: &OwnedFd) -> Result<(), NetError> {
        let (at, len) = self.parts();
        // SAFETY: `at` is a live address of `len` bytes.
        checked(unsafe { libc::bind(fd.as_raw_fd(), at, len) })?;
        Ok(())
    }

    fn connect(&self, fd: &OwnedFd) -> Result<(), i32> {
        let (at, len) = self.parts();
        // SAFETY: `at` is a live address of `len` bytes.
        if unsafe { libc::connect(fd.as_raw_fd(), at, len) } < 0 { Err(os_error()) } else { Ok(()) }
    }
}

fn bound_to(fd: &OwnedFd) -> Result<SocketAddr, NetError> {
    // SAFETY: zero is a valid sockaddr_storage.
    let mut name: libc::sockaddr_storage = unsafe { std::mem::zeroed() };
    let mut len = size_of_val(&name) as libc::socklen_t;
    // SAFETY: writes at most `len` bytes into a live local.
    checked(unsafe { libc::getsockname(fd.as_raw_fd(), (&raw mut name).cast(), &mut len) })?;
    match name.ss_family as libc::c_int {
        libc::AF_INET => {
            // SAFETY: the family says that the storage, which is larger, holds a sockaddr_in.
            let v4 = unsafe { &*(&raw const name).cast::<libc::sockaddr_in>() };
            let ip = Ipv4Addr::from(v4.sin_addr.s_addr.to_ne_bytes());
            Ok(SocketAddr::V4(SocketAddrV4::new(ip, u16::from_be(v4.sin_port))))
        }
        libc::AF_INET6 => {
            // SAFETY: the family says that the storage, which is larger, holds a sockaddr_in6.
            let v6 = unsafe { &*(&raw const name).cast::<libc::sockaddr_in6>() };
            let ip = Ipv6Addr::from(v6.sin6_addr.s6_addr);
            let port = u16::from_be(v6.sin6_port);
            Ok(SocketAddr::V6(SocketAddrV6::new(ip, port, v6.sin6_flowinfo, v6.sin6_scope_id)))
        }
        _ => Err(NetError::Os(libc::EAFNOSUPPORT)),
    }
}

/// Removes the file of a Unix socket on which nobody listens. Somebody who does sees a connection that ends at
/// once.
fn remove_stale(addr: &Addr, path: &Path) -> Result<(), NetError> {
    let fd = open_socket(addr)?;
    match SockAddr::of(addr)?.connect(&fd) {
        Err(libc::ECONNREFUSED) => std::fs::remove_file(path).map_err(|_| NetError::AddrInUse),
        _ => Err(NetError::AddrInUse),
    }
}
