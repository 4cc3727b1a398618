//! Addresses and options, as the kernel wants them.

use crate::net::{Addr, NetError};
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

pub(super) fn os_error() -> i32 {
    io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO)
}

pub(super) fn net_error(errno: i32) -> NetError {
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
pub(super) fn checked(result: libc::c_int) -> Result<libc::c_int, NetError> {
    if result < 0 { Err(net_error(os_error())) } else { Ok(result) }
}

pub(super) fn open_socket(addr: &Addr) -> Result<OwnedFd, NetError> {
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

pub(super) fn set_option(fd: &OwnedFd, level: libc::c_int, name: libc::c_int) -> Result<(), NetError> {
    let on: libc::c_int = 1;
    // SAFETY: reads one c_int from a live local.
    checked(unsafe {
        libc::setsockopt(fd.as_raw_fd(), level, name, (&raw const on).cast(), size_of_val(&on) as u32)
    })?;
    Ok(())
}

pub(super) fn pending_error(fd: &OwnedFd) -> Result<i32, NetError> {
    let mut error: libc::c_int = 0;
    let mut len = size_of_val(&error) as libc::socklen_t;
    // SAFETY: writes one c_int into a live local.
    checked(unsafe {
        libc::getsockopt(fd.as_raw_fd(), libc::SOL_SOCKET, libc::SO_ERROR, (&raw mut error).cast(), &mut len)
    })?;
    Ok(error)
}

/// An address as the kernel wants it.
pub(super) enum SockAddr {
    V4(libc::sockaddr_in),
    V6(libc::sockaddr_in6),
    Unix(libc::sockaddr_un),
}

impl SockAddr {
    pub(super) fn of(addr: &Addr) -> Result<SockAddr, NetError> {
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

    pub(super) fn bind(&self, fd: &OwnedFd) -> Result<(), NetError> {
        let (at, len) = self.parts();
        // SAFETY: `at` is a live address of `len` bytes.
        checked(unsafe { libc::bind(fd.as_raw_fd(), at, len) })?;
        Ok(())
    }

    pub(super) fn connect(&self, fd: &OwnedFd) -> Result<(), i32> {
        let (at, len) = self.parts();
        // SAFETY: `at` is a live address of `len` bytes.
        if unsafe { libc::connect(fd.as_raw_fd(), at, len) } < 0 { Err(os_error()) } else { Ok(()) }
    }
}

pub(super) fn bound_to(fd: &OwnedFd) -> Result<SocketAddr, NetError> {
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
pub(super) fn remove_stale(addr: &Addr, path: &Path) -> Result<(), NetError> {
    let fd = open_socket(addr)?;
    match SockAddr::of(addr)?.connect(&fd) {
        Err(libc::ECONNREFUSED) => std::fs::remove_file(path).map_err(|_| NetError::AddrInUse),
        _ => Err(NetError::AddrInUse),
    }
}
