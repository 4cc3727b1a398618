//! Sending without a copy: the kernel sends from our buffers, and says when it has let go of them.
//!
//! Each send has two completions. The first tells how much was taken; the second comes when the peer has
//! acknowledged it (or the connection is gone), and only then the slot lets the buffers go. Where the system
//! copies all the same (loopback, devices without scatter-gather) it says so with the second, and the socket goes
//! back to plain calls: pinning pages is dearer than copying few bytes.

use super::driver::Driver;
use super::file_ops::Message;
use super::ops::{Handle, Next, State};
use crate::buf::IoVec;
use io_uring::types::Fd;
use io_uring::{cqueue, opcode, squeue};
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, Waker};

/// Zero-copy sends of one reactor at a time; what is above is copied.
const SENDS_MAX: usize = 1024;
/// `IORING_SEND_ZC_REPORT_USAGE` and `IORING_NOTIF_USAGE_ZC_COPIED`.
const REPORT_USAGE: u16 = 8;
const COPIED: u32 = 1 << 31;
/// Times that the kernel may ask to try again before that counts as an error.
const ATTEMPTS_MAX: u32 = 1000;
/// A connection whose peer acknowledges nothing for so long is over: its buffers must not be gone for hours.
const UNACKNOWLEDGED_MAX_MS: libc::c_int = 30_000;

/// When sends leave without a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ZeroCopy {
    Never,
    /// Sends of at least so many bytes, until the system reports for a connection that it copies anyway.
    From(usize),
    /// Also where the system copies anyway: for tests and measurements.
    Always(usize),
}

pub(super) struct SendOp {
    handle: Rc<Handle>,
    iov: IoVec,
    message: Option<Message>,
    done: usize,
    attempts: u32,
    /// Notifications that are still to come.
    unreleased: u32,
    /// 0 or an errno.
    result: Option<i32>,
    waker: Option<Waker>,
    /// Nobody waits for the result any more.
    taken: bool,
    /// The socket's choice is not changed by what the system reports.
    forced: bool,
}

impl SendOp {
    pub(super) fn handle_completion(&mut self, result: i32, flags: u32) -> Next {
        if cqueue::notif(flags) {
            self.unreleased -= 1;
            if result as u32 & COPIED != 0 && !self.forced {
                self.handle.zero_copy.set(false);
            }
            return self.next();
        }
        self.unreleased += u32::from(cqueue::more(flags));
        if matches!(-result, libc::EINTR | libc::EAGAIN) && self.attempts < ATTEMPTS_MAX {
            self.attempts += 1;
            return Next::Resubmit;
        }
        match result {
            errno if errno < 0 => self.result = Some(-errno),
            sent => {
                self.done += sent as usize;
                if sent > 0 && self.done < self.iov.bytes() {
                    return Next::Resubmit;
                }
                self.result = Some(if self.done == self.iov.bytes() { 0 } else { libc::EPIPE });
            }
        }
        self.next()
    }

    fn next(&mut self) -> Next {
        match self.result {
            Some(_) if self.taken && self.unreleased == 0 => Next::Free,
            Some(_) => Next::Wake(self.waker.take()),
            None => Next::Nothing,
        }
    }

    /// The connection is given up, so that the kernel lets the buffers go.
    pub(super) fn abort(&self) {
        let nowhere = libc::sockaddr { sa_family: libc::AF_UNSPEC as libc::sa_family_t, sa_data: [0; 14] };
        // SAFETY: reads one live address. Dissolves the connection and drops what is queued.
        unsafe { libc::connect(self.handle.fd(), &nowhere, size_of_val(&nowhere) as libc::socklen_t) };
    }
}

/// How a zero-copy send ended: how much was sent, and why not more.
pub(super) struct Sent {
    pub(super) bytes: usize,
    pub(super) errno: i32,
}

impl Driver {
    /// Whether a send of so many bytes on this socket goes without a copy.
    pub(super) fn goes_without_copy(&self, handle: &Handle, bytes: usize) -> bool {
        let (ZeroCopy::From(min) | ZeroCopy::Always(min)) = self.zero_copy else { return false };
        bytes >= min && handle.zero_copy.get() && self.ops.sends.get() < SENDS_MAX
    }

    /// Sends all, and returns when the kernel has taken it. Dropping the future does not stop the send: the
    /// slot keeps the buffers and goes on until the end or until the socket is shut down.
    pub(super) async fn send_without_copy(self: &Rc<Self>, handle: &Rc<Handle>, iov: &IoVec) -> Sent {
        let op = SendOp {
            handle: handle.clone(),
            iov: iov.clone(),
            message: None,
            done: 0,
            attempts: 0,
            unreleased: 0,
            result: None,
            waker: None,
            taken: false,
            forced: matches!(self.zero_copy, ZeroCopy::Always(_)),
        };
        let Ok(key) = self.ops.insert(State::Send(op)) else {
            return Sent { bytes: 0, errno: libc::ENOBUFS };
        };
        self.submit_send(key);
        let _guard = Guard { driver: self, key };
        poll_fn(|cx| {
            let sent = self.ops.with(key, |state| {
                let State::Send(op) = state else { unreachable!("the slot is ours until it is taken") };
                if op.result.is_none() {
                    op.waker = Some(cx.waker().clone());
                }
                op.result.map(|errno| Sent { bytes: op.done, errno })
            });
            sent.expect("the slot is ours until it is taken").map_or(Poll::Pending, Poll::Ready)
        })
        .await
    }

    pub(super) fn submit_send(&self, key: u64) {
        let entry = self.ops.with(key, |state| {
            let State::Send(op) = state else { unreachable!("only sends are submitted here") };
            self.send_entry(key, op)
        });
        self.push(entry.expect("a live send").user_data(key));
    }

    fn send_entry(&self, key: u64, op: &mut SendOp) -> squeue::Entry {
        let flags = libc::MSG_NOSIGNAL | libc::MSG_WAITALL;
        let fd = Fd(op.handle.fd());
        let (pieces, skip) = op.iov.after(op.done);
        if let [one] = pieces {
            let rest = &one[skip..];
            return opcode::SendZc::new(fd, rest.as_ptr(), rest.len() as u32)
                .buf_index(self.fixed_index(rest.as_ptr(), rest.len()))
                .zc_flags(REPORT_USAGE)
                .flags(flags)
                .build();
        }
        let list = self.list_for(key, pieces, skip);
        let message = op.message.get_or_insert_with(|| self.pieces.message());
        message.set(list, pieces.len());
        opcode::SendMsgZc::new(fd, message.as_ptr()).ioprio(REPORT_USAGE).flags(flags as u32).build()
    }

    /// The kernel has let go of everything, and nobody waits.
    pub(super) fn end_send(&self, key: u64) {
        self.return_list(key);
        let state = self.ops.remove(key);
        if let Some(State::Send(mut op)) = state {
            self.pieces.take_back(op.message.take());
        }
    }
}

struct Guard<'a> {
    driver: &'a Driver,
    key: u64,
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        let over = self.driver.ops.with(self.key, |state| {
            let State::Send(op) = state else { return false };
            op.taken = true;
            op.waker = None;
            op.result.is_some() && op.unreleased == 0
        });
        if over == Some(true) {
            self.driver.end_send(self.key);
        }
    }
}

/// The buffers of this socket's sends are not kept for ever when the peer has gone silent.
pub(super) fn bound_unacknowledged(handle: &Handle) {
    let limit = UNACKNOWLEDGED_MAX_MS;
    // SAFETY: reads one c_int from a live local. A system that refuses keeps its own limit.
    unsafe {
        libc::setsockopt(
            handle.fd(),
            libc::IPPROTO_TCP,
            libc::TCP_USER_TIMEOUT,
            (&raw const limit).cast(),
            size_of_val(&limit) as libc::socklen_t,
        )
    };
}
