//! The ring of one reactor: submitting, completing, sleeping and being woken.

use super::clock::{Clock, system_nanos};
use super::file_ops::Pieces;
use super::inbox::Shared;
use super::ops::{Next, Ops, Readiness, State};
use super::setup::{CQ_ENTRIES, SQ_ENTRIES, build_ring, register_pool};
use crate::buf::{Buf, IOVEC_MAX, Pool};
use crate::reactor::{Inbox, Reactor};
use io_uring::types::{Fd, SubmitArgs, Timespec};
use io_uring::{IoUring, cqueue, opcode, squeue};
use peristyle_base::{Duration, Instant};
use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::RawFd;
use std::rc::Rc;
use std::sync::Arc;

/// Operations of one reactor at most: device operations in flight and open sockets.
const OPS_MAX: usize = 8192;
/// Of these, device operations: the rest is for sockets, however busy the devices are.
const FILE_OPS_MAX: usize = 4096;
const CQE_BATCH: usize = 64;
/// Completions that nobody waits for carry this.
const NOBODY: u64 = u64::MAX;

pub struct Driver {
    ring: RefCell<IoUring>,
    pub(super) ops: Ops,
    pub(super) pieces: Pieces,
    /// Entries that found the submission queue full.
    backlog: RefCell<VecDeque<squeue::Entry>>,
    pub(super) shared: Arc<Shared>,
    /// The pool's memory, when the kernel has it registered: each GiB is one registered buffer.
    pub(super) fixed: Option<std::ops::Range<usize>>,
    pub(super) vectored_fixed: bool,
    /// Where received bytes go: one buffer for all sockets of the reactor, since each call to receive ends at
    /// once. Idle sockets hold no memory.
    pub(super) arrivals: RefCell<Option<Buf>>,
    pub(super) scratch: RefCell<Vec<libc::iovec>>,
    clock: Clock,
}

impl Driver {
    pub(super) fn new(shared: Arc<Shared>, pool: &Pool) -> io::Result<Rc<Driver>> {
        let ring = build_ring()?;
        let mut probe = io_uring::Probe::new();
        let vectored_fixed = ring.submitter().register_probe(&mut probe).is_ok()
            && probe.is_supported(opcode::WritevFixed::CODE)
            && probe.is_supported(opcode::ReadvFixed::CODE);
        let driver = Rc::new(Driver {
            fixed: register_pool(&ring, pool),
            ring: RefCell::new(ring),
            ops: Ops::new(OPS_MAX, FILE_OPS_MAX),
            pieces: Pieces::new(OPS_MAX),
            backlog: RefCell::new(VecDeque::with_capacity(64)),
            shared,
            vectored_fixed,
            arrivals: RefCell::new(None),
            scratch: RefCell::new(Vec::with_capacity(IOVEC_MAX)),
            clock: Clock::new(),
        });
        let key = driver.ops.insert(State::Wake).ok().expect("the table is empty");
        driver.arm_poll(driver.shared.event_fd(), key);
        Ok(driver)
    }

    pub(crate) fn now(&self) -> Instant {
        self.clock.now()
    }
    pub(crate) fn wall_nanos(&self) -> u64 {
        system_nanos(libc::CLOCK_REALTIME)
    }
    pub(crate) fn inbox(&self) -> Arc<dyn Inbox> {
        self.shared.clone()
    }
    pub(crate) fn fill_random(&self, bytes: &mut [u8]) {
        let mut filled = 0;
        while filled < bytes.len() {
            let rest = &mut bytes[filled..];
            // SAFETY: writes at most `rest.len()` bytes into `rest`.
            let n = unsafe { libc::getrandom(rest.as_mut_ptr().cast(), rest.len(), 0) };
            assert!(
                n > 0 || io::Error::last_os_error().kind() == io::ErrorKind::Interrupted,
                "no randomness"
            );
            filled += n.max(0) as usize;
        }
    }
    pub(crate) async fn blocking<T: Send + 'static>(&self, f: impl FnOnce() -> T + Send + 'static) -> T {
        super::blocking::run(f).await
    }

    /// Bytes of the rings and of the table of operations, and whether the pool is registered.
    pub(crate) fn memory(&self) -> (usize, usize, bool) {
        let rings = SQ_ENTRIES as usize * (64 + 4) + CQ_ENTRIES as usize * 16;
        (rings, OPS_MAX * (size_of::<super::ops::Slot>() + Pieces::SLOT_BYTES), self.fixed.is_some())
    }

    // ---- operations -------------------------------------------------------------------------------------

    /// Asks for events of `fd` until the slot is freed.
    fn arm_poll(&self, fd: RawFd, key: u64) {
        let events =
            libc::POLLIN | libc::POLLRDHUP | if fd == self.shared.event_fd() { 0 } else { libc::POLLOUT };
        let entry = opcode::PollAdd::new(Fd(fd), events as u32).multi(true).build().user_data(key);
        self.push(entry);
    }

    /// `None` when the table is full: more sockets than the reactor is made for.
    pub(super) fn register(&self, fd: RawFd, readiness: Rc<Readiness>) -> Option<u64> {
        let key = self.ops.insert(State::Poll(Some(readiness))).ok()?;
        self.arm_poll(fd, key);
        Some(key)
    }

    /// Ends the poll; its slot stays until the kernel's last word.
    pub(super) fn unregister(&self, key: u64) {
        let readiness = self.ops.with(key, |state| match state {
            State::Poll(readiness) => readiness.take(),
            _ => None,
        });
        if readiness.is_some() {
            // Not PollRemove: that one fails when the poll is just about to complete.
            self.push(opcode::AsyncCancel::new(key).build().user_data(NOBODY));
        }
    }

    /// Queues an entry for the next entry into the kernel.
    pub(super) fn push(&self, entry: squeue::Entry) {
        let mut backlog = self.backlog.borrow_mut();
        if !backlog.is_empty() || !self.try_push(&entry) {
            backlog.push_back(entry);
        }
    }

    fn try_push(&self, entry: &squeue::Entry) -> bool {
        let mut ring = self.ring.borrow_mut();
        // SAFETY: what the entry points to is owned by its slot until the last completion (see `ops`).
        if unsafe { ring.submission().push(entry) }.is_ok() {
            return true;
        }
        let _ = ring.submit();
        // SAFETY: as above.
        unsafe { ring.submission().push(entry) }.is_ok()
    }

    // ---- the turn ---------------------------------------------------------------------------------------

    /// Hands over what is queued and runs the kernel's deferred work, if there is any of either.
    pub(super) fn enter_if_needed(&self) {
        while let Some(entry) = self.backlog.borrow_mut().pop_front() {
            if !self.try_push(&entry) {
                self.backlog.borrow_mut().push_front(entry);
                break;
            }
        }
        let mut ring = self.ring.borrow_mut();
        let needed = {
            let sq = ring.submission();
            !sq.is_empty() || sq.taskrun() || sq.cq_overflow()
        };
        if needed {
            self.check(ring.submit());
        }
    }

    /// An interrupted or busy kernel is asked again next turn; anything else is a mistake of ours.
    fn check(&self, result: io::Result<usize>) {
        match result.map_err(|e| e.raw_os_error()) {
            Ok(_) => {}
            Err(Some(libc::EINTR | libc::EAGAIN | libc::EBUSY | libc::ETIME)) => {}
            Err(errno) => panic!("io_uring_enter failed with errno {errno:?}"),
        }
    }

    /// Handles all completions. True when there was one.
    pub(super) fn reap(&self) -> bool {
        let mut some = false;
        loop {
            let mut batch = [const { MaybeUninit::<cqueue::Entry>::uninit() }; CQE_BATCH];
            let mut ring = self.ring.borrow_mut();
            let batch = ring.completion().fill(&mut batch);
            drop(ring);
            for cqe in batch.iter() {
                some = true;
                self.complete(cqe.user_data(), cqe.result(), cqe.flags());
            }
            if batch.len() < CQE_BATCH {
                return some;
            }
        }
    }

    fn complete(&self, key: u64, result: i32, flags: u32) {
        enum Act {
            Events(Rc<Readiness>),
            Rearm(RawFd),
            Resubmit,
            Wake(Option<std::task::Waker>),
            Free,
            Nothing,
        }
        let more = cqueue::more(flags);
        let act = self.ops.with(key, |state| match state {
            State::Poll(Some(readiness)) => Act::Events(readiness.clone()),
            State::Poll(None) if more => Act::Nothing,
            State::Poll(None) => Act::Free,
            State::Free { .. } => Act::Nothing,
            State::Wake => {
                self.shared.clear_bell();
                if more { Act::Nothing } else { Act::Rearm(self.shared.event_fd()) }
            }
            State::File(op) => match op.handle_completion(result) {
                Next::Resubmit => Act::Resubmit,
                Next::Finish if op.orphan => Act::Free,
                Next::Finish => Act::Wake(op.waker.take()),
            },
        });
        match act {
            None | Some(Act::Nothing) => {}
            Some(Act::Events(readiness)) => {
                readiness.handle_events(result);
                // The kernel ends a multishot poll when it finds no room for a completion: ask anew.
                if !more && result >= 0 {
                    self.arm_poll(readiness.fd, key);
                } else if !more {
                    drop(self.ops.remove(key));
                }
            }
            Some(Act::Rearm(fd)) => self.arm_poll(fd, key),
            Some(Act::Resubmit) => self.submit_file(key),
            Some(Act::Wake(waker)) => {
                self.return_list(key);
                if let Some(waker) = waker {
                    waker.wake();
                }
            }
            Some(Act::Free) => {
                self.return_list(key);
                drop(self.ops.remove(key));
            }
        }
    }

    /// Sleeps until a completion, a poke or `limit`, unless something is found to do after the sleep was
    /// announced (see `poke`).
    pub(super) fn sleep(&self, reactor: &Reactor, limit: Option<Duration>, stop: &dyn Fn() -> bool) {
        self.shared.announce_sleep();
        let mut busy = stop() || !self.shared.is_empty();
        for poller in reactor.pollers.borrow().iter() {
            busy |= poller();
        }
        if reactor.pool.is_starving() {
            reactor.pool.collect_remote();
        }
        let ring = self.ring.borrow();
        if !busy && !reactor.tasks.has_ready() && self.backlog.borrow().is_empty() {
            let result = match limit {
                Some(limit) => {
                    let limit = Timespec::new().sec(limit.as_secs()).nsec(limit.subsec_nanos());
                    ring.submitter().submit_with_args(1, &SubmitArgs::new().timespec(&limit))
                }
                None => ring.submitter().submit_and_wait(1),
            };
            self.check(result);
        }
        self.shared.announce_waking();
    }

    /// Waits for every operation that holds a buffer. Called when no task is left.
    pub(super) fn drain(&self) {
        while self.ops.files.get() > 0 {
            self.enter_if_needed();
            let _ = self.ring.borrow().submitter().submit_and_wait(1);
            self.reap();
        }
        self.enter_if_needed();
        self.reap();
        self.arrivals.borrow_mut().take();
    }
}
