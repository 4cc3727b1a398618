//! One socket: plain non-blocking calls, and the kernel's word on when they are worth making.

use super::addr::{net_error, os_error};
use super::driver::Driver;
use super::ops::{Handle, Readiness};
use crate::buf::IoVec;
use crate::net::NetError;
use std::cell::Cell;
use std::future::poll_fn;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::task::Poll;

/// Calls that find their socket ready before the task lets others run.
const STREAK_MAX: u32 = 32;

/// What both halves of a connection share. Polls are armed when a call has found nothing.
pub(super) struct Socket {
    pub(super) driver: Rc<Driver>,
    pub(super) handle: Rc<Handle>,
    pub(super) readable: Rc<Readiness>,
    pub(super) writable: Rc<Readiness>,
    streak: Cell<u32>,
}

impl Socket {
    pub(super) fn new(driver: Rc<Driver>, fd: OwnedFd, tcp: bool) -> Socket {
        Socket {
            driver,
            handle: Rc::new(Handle { fd, tcp, zero_copy: Cell::new(tcp) }),
            readable: Readiness::new(libc::POLLIN | libc::POLLRDHUP),
            writable: Readiness::new(libc::POLLOUT),
            streak: Cell::new(0),
        }
    }

    pub(super) async fn readable(&self) -> Result<(), NetError> {
        self.rest().await;
        self.ready(&self.readable).await
    }
    pub(super) async fn writable(&self) -> Result<(), NetError> {
        self.ready(&self.writable).await
    }
    async fn ready(&self, readiness: &Rc<Readiness>) -> Result<(), NetError> {
        poll_fn(|cx| {
            if readiness.ready.get() {
                return Poll::Ready(Ok(()));
            }
            if readiness.key.get().is_none()
                && let Err(error) = self.driver.arm_poll(&self.handle, readiness)
            {
                return Poll::Ready(Err(error));
            }
            self.streak.set(0);
            readiness.waker.set(Some(cx.waker().clone()));
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

    /// Nobody asks for readiness any more.
    pub(super) fn forget(&self, readiness: &Readiness) {
        if let Some(key) = readiness.key.take() {
            self.driver.detach(key);
        }
    }

    /// Receives into `into` what has arrived; `None` when nothing has.
    pub(super) fn try_recv(&self, into: &mut [u8]) -> Result<Option<usize>, NetError> {
        loop {
            let (fd, at) = (self.handle.fd(), into.as_mut_ptr().cast());
            // SAFETY: writes at most `into.len()` bytes into `into`.
            let n = unsafe { libc::recv(fd, at, into.len(), libc::MSG_DONTWAIT) };
            if n >= 0 {
                // A short read has emptied the socket: what comes later brings another event. Except the end
                // of the stream, which may be queued already and then brings none.
                if (n as usize) < into.len() && !self.readable.hangup.get() {
                    self.readable.ready.set(false);
                }
                return Ok(Some(n as usize));
            }
            match os_error() {
                libc::EINTR => {}
                libc::EAGAIN if self.readable.failed.get() => return Err(NetError::Closed),
                libc::EAGAIN => {
                    self.readable.ready.set(false);
                    return Ok(None);
                }
                errno => return Err(net_error(errno)),
            }
        }
    }

    /// Sends what the socket takes of the pieces, without the first `done` bytes; `None` when it takes nothing.
    pub(super) fn try_send(&self, iov: &IoVec, done: usize) -> Result<Option<usize>, NetError> {
        let mut list = self.driver.scratch.borrow_mut();
        list.clear();
        let (pieces, mut skip) = iov.after(done);
        for piece in pieces {
            let rest = &piece[std::mem::take(&mut skip)..];
            list.push(libc::iovec { iov_base: rest.as_ptr().cast_mut().cast(), iov_len: rest.len() });
        }
        // SAFETY: zero is a valid msghdr.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_iov = list.as_mut_ptr();
        message.msg_iovlen = list.len();
        loop {
            let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
            // SAFETY: the message names a list of pieces that all live for the call and are only read.
            let n = unsafe { libc::sendmsg(self.handle.fd(), &message, flags) };
            if n >= 0 {
                return Ok(Some(n as usize));
            }
            match os_error() {
                libc::EINTR => {}
                libc::EAGAIN if self.writable.failed.get() => return Err(NetError::Closed),
                libc::EAGAIN => {
                    self.writable.ready.set(false);
                    return Ok(None);
                }
                errno => return Err(net_error(errno)),
            }
        }
    }

    pub(super) fn shutdown(&self) {
        // SAFETY: no pointers. Fails when the connection is gone already, which is as good.
        unsafe { libc::shutdown(self.handle.fd(), libc::SHUT_RDWR) };
    }
}

impl Drop for Socket {
    /// The descriptor itself lives until the kernel's last word on what still names it.
    fn drop(&mut self) {
        self.forget(&self.readable);
        self.forget(&self.writable);
        self.shutdown();
    }
}
