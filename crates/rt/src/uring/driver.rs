//! The ring of one reactor: submitting, completing, sleeping and being woken.

use super::accept::{Accepting, accepted};
use super::clock::{Clock, system_nanos};
use super::file_ops::Pieces;
use super::inbox::Shared;
use super::ops::{Handle, Next, Ops, Readiness, State};
use super::receive::{Incoming, Provided};
use super::run::{Receive, RuntimeConfig};
use super::send::ZeroCopy;
use super::setup::{CQ_ENTRIES, SQ_ENTRIES, build_ring, register_pool};
use crate::buf::{Buf, IOVEC_MAX, Pool};
use crate::net::NetError;
use crate::reactor::{Inbox, Reactor};
use io_uring::types::{Fd, SubmitArgs, Timespec};
use io_uring::{IoUring, cqueue, opcode, squeue};
use peristyle_base::{Duration, Instant};
use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::mem::MaybeUninit;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Waker;

/// Operations of one reactor at most: device operations in flight and open sockets.
const OPS_MAX: usize = 8192;
/// Of these, device operations: the rest is for sockets, however busy the devices are.
const FILE_OPS_MAX: usize = 4096;
const CQE_BATCH: usize = 64;
/// At the end of a reactor: how long sends may wait for their peers, and how often that is looked at.
const DRAIN_PATIENCE: Duration = Duration::from_millis(500);
const DRAIN_STEP: Duration = Duration::from_millis(20);
/// Completions that nobody waits for carry this.
const NOBODY: u64 = u64::MAX;

/// What the driver's memory is spent on.
#[derive(Default)]
pub(crate) struct DriverMemory {
    pub(crate) ring_bytes: usize,
    /// The table of operations.
    pub(crate) operations_bytes: usize,
    /// The pool is known to the kernel.
    pub(crate) registered: bool,
    /// Size and number of the pool's buffers that lie ready for what sockets receive.
    pub(crate) receive: (usize, usize),
}

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
    pub(super) provided: Provided,
    pub(super) zero_copy: ZeroCopy,
    /// Where bytes go that are received by calls: one buffer for all sockets of the reactor, since each call
    /// ends at once. Idle sockets hold no memory.
    pub(super) arrivals: RefCell<Option<Buf>>,
    pub(super) scratch: RefCell<Vec<libc::iovec>>,
    clock: Clock,
}

impl Driver {
    pub(super) fn new(
        shared: Arc<Shared>,
        pool: &Arc<Pool>,
        config: &RuntimeConfig,
    ) -> io::Result<Rc<Driver>> {
        let ring = build_ring()?;
        let mut probe = io_uring::Probe::new();
        let vectored_fixed = ring.submitter().register_probe(&mut probe).is_ok()
            && probe.is_supported(opcode::WritevFixed::CODE)
            && probe.is_supported(opcode::ReadvFixed::CODE);
        let driver = Rc::new(Driver {
            fixed: register_pool(&ring, pool),
            provided: Provided::new(&ring, pool, config.receive == Receive::Ring),
            zero_copy: config.zero_copy,
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
        driver.arm_wake(key);
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

    pub(crate) fn memory(&self) -> DriverMemory {
        DriverMemory {
            ring_bytes: SQ_ENTRIES as usize * (64 + 4) + CQ_ENTRIES as usize * 16,
            operations_bytes: OPS_MAX * (size_of::<super::ops::Slot>() + Pieces::SLOT_BYTES),
            registered: self.fixed.is_some(),
            receive: self.provided.budget(),
        }
    }

    // ---- operations -------------------------------------------------------------------------------------

    fn arm_wake(&self, key: u64) {
        let poll = opcode::PollAdd::new(Fd(self.shared.event_fd()), libc::POLLIN as u32).multi(true);
        self.push(poll.build().user_data(key));
    }

    /// Asks for the kernel's word on a socket's readiness, from now on. Fails when the table is full: more
    /// sockets than the reactor is made for.
    pub(super) fn arm_poll(&self, handle: &Rc<Handle>, readiness: &Rc<Readiness>) -> Result<(), NetError> {
        let state = State::Poll(handle.clone(), Some(readiness.clone()));
        let key = self.ops.insert(state).map_err(|_| NetError::Os(libc::ENFILE))?;
        readiness.key.set(Some(key));
        let poll = opcode::PollAdd::new(Fd(handle.fd()), readiness.events as u32).multi(true);
        self.push(poll.build().user_data(key));
        Ok(())
    }

    /// Ends a multishot operation that nobody wants to hear of any more; its slot stays until the last word.
    pub(super) fn detach(&self, key: u64) {
        let was = self.ops.with(key, |state| match state {
            State::Poll(_, to) => to.take().is_some(),
            State::Receive(_, to) => to.take().is_some(),
            State::Accept(_, to) => to.take().is_some(),
            _ => false,
        });
        if was == Some(true) {
            self.cancel(key);
        }
    }

    /// Asks the kernel to stop; the operation itself says when it has. (Not PollRemove: that one fails when
    /// the poll is just about to complete.)
    pub(super) fn cancel(&self, key: u64) {
        self.push(opcode::AsyncCancel::new(key).build().user_data(NOBODY));
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
            Arrived(Rc<Incoming>),
            Accepted(Rc<Accepting>),
            /// Of an operation that nobody wants to hear of.
            Unheard {
                accepts: bool,
            },
            Wake,
            File(Next),
            Send(Next),
        }
        let more = cqueue::more(flags);
        // Whoever it is for, or nobody: the buffer's account is kept.
        let arrived = self.provided.take(result, flags);
        let act = self.ops.with(key, |state| match state {
            State::Poll(_, Some(readiness)) => Act::Events(readiness.clone()),
            State::Receive(_, Some(incoming)) => Act::Arrived(incoming.clone()),
            State::Accept(_, Some(accepting)) => Act::Accepted(accepting.clone()),
            State::Poll(..) | State::Receive(..) => Act::Unheard { accepts: false },
            State::Accept(..) => Act::Unheard { accepts: true },
            State::Wake => Act::Wake,
            State::File(op) => Act::File(op.handle_completion(result)),
            State::Send(op) => Act::Send(op.handle_completion(result, flags)),
            State::Free { .. } => unreachable!("a key does not name a free slot"),
        });
        let Some(act) = act else { return };
        let multishot =
            matches!(act, Act::Events(_) | Act::Arrived(_) | Act::Accepted(_) | Act::Unheard { .. });
        match act {
            Act::Events(readiness) => readiness.handle_events(result, more),
            Act::Arrived(incoming) => self.handle_arrival(&incoming, arrived, result, more),
            Act::Accepted(accepting) => self.handle_accepted(&accepting, result, more),
            Act::Unheard { accepts } => drop(if accepts { accepted(result) } else { None }),
            Act::Wake => {
                self.shared.clear_bell();
                if !more {
                    self.arm_wake(key);
                }
            }
            Act::File(next) => self.follow_file(key, next),
            Act::Send(next) => self.follow_send(key, next),
        }
        if multishot && !more {
            drop(self.ops.remove(key));
        }
    }

    fn follow_file(&self, key: u64, next: Next) {
        match next {
            Next::Resubmit => self.submit_file(key),
            Next::Wake(waker) => {
                self.return_list(key);
                waker.into_iter().for_each(Waker::wake);
            }
            Next::Free => {
                self.return_list(key);
                drop(self.ops.remove(key));
            }
            Next::Nothing => {}
        }
    }

    fn follow_send(&self, key: u64, next: Next) {
        match next {
            Next::Resubmit => self.submit_send(key),
            Next::Wake(waker) => waker.into_iter().for_each(Waker::wake),
            Next::Free => self.end_send(key),
            Next::Nothing => {}
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

    /// Ends everything and waits until the kernel holds no buffer any more. Called when no task is left.
    pub(super) fn drain(&self) {
        for key in self.ops.keys() {
            let file = self.ops.with(key, |state| matches!(state, State::File(_)));
            // A write that was begun is not cut short.
            if file == Some(false) {
                self.cancel(key);
            }
        }
        let patient_until = self.now() + DRAIN_PATIENCE;
        while self.ops.used.get() > 0 {
            self.enter_if_needed();
            let limit = Timespec::new().nsec(DRAIN_STEP.subsec_nanos());
            let args = SubmitArgs::new().timespec(&limit);
            self.check(self.ring.borrow().submitter().submit_with_args(1, &args));
            self.reap();
            if self.now() > patient_until {
                self.abort_sends();
            }
        }
        self.provided.end(&self.ring.borrow());
        self.arrivals.borrow_mut().take();
    }

    /// Sends that a silent peer does not acknowledge would keep their buffers.
    fn abort_sends(&self) {
        for key in self.ops.keys() {
            self.ops.with(key, |state| {
                if let State::Send(op) = state {
                    op.abort();
                }
            });
        }
    }
}
