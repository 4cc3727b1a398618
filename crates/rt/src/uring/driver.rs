//! The ring of one reactor: submitting, completing, sleeping and being woken.

use super::ops::{FileOp, Next, Ops, PIECES_INLINE, Readiness, State, Task};
use crate::buf::{Buf, IOVEC_MAX, Pool};
use crate::reactor::{Inbox, Reactor};
use crossbeam_queue::ArrayQueue;
use io_uring::types::{Fd, FsyncFlags, SubmitArgs, Timespec};
use io_uring::{IoUring, cqueue, opcode, squeue};
use peristyle_base::{Duration, Instant};
use std::cell::{RefCell, UnsafeCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::sync::{Arc, Mutex};
use std::task::Poll;

/// Operations of one reactor at most: device operations in flight and open sockets.
const OPS_MAX: usize = 8192;
/// Of these, device operations: the rest is for sockets, however busy the devices are.
const FILE_OPS_MAX: usize = 4096;
const SQ_ENTRIES: u32 = 1024;
/// Each socket's poll may complete several times between two turns. More than that is kept by the kernel.
const CQ_ENTRIES: u32 = 16384;
const CQE_BATCH: usize = 64;
/// Wakers that other threads may queue before they take the slow way.
const INBOX_MAX: usize = 4096;
/// The kernel registers at most this much as one buffer.
const REGISTERED_BYTES: usize = 1 << 30;
/// Completions that nobody waits for carry this.
const NOBODY: u64 = u64::MAX;

/// What other threads see of a reactor.
pub(super) struct Shared {
    wakes: ArrayQueue<u64>,
    /// Used when `wakes` is full, so that no wake-up is ever lost.
    more: Mutex<Vec<u64>>,
    /// `more` holds something.
    spilled: AtomicBool,
    sleeping: AtomicBool,
    event: OwnedFd,
}

impl Shared {
    pub(super) fn new() -> io::Result<Arc<Shared>> {
        // SAFETY: eventfd takes no pointers; the result is checked.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor was just created and is nobody else's.
        let event = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Arc::new(Shared {
            wakes: ArrayQueue::new(INBOX_MAX),
            more: Mutex::default(),
            spilled: AtomicBool::new(false),
            sleeping: AtomicBool::new(false),
            event,
        }))
    }
    pub(super) fn event_fd(&self) -> RawFd {
        self.event.as_raw_fd()
    }
    pub(super) fn ring_bell(&self) {
        let one = 1u64;
        // SAFETY: writes eight bytes from a live local. A full counter (EAGAIN) has woken the reactor already.
        unsafe { libc::write(self.event.as_raw_fd(), (&raw const one).cast(), 8) };
    }
    fn is_empty(&self) -> bool {
        self.wakes.is_empty() && !self.spilled.load(Ordering::Acquire)
    }
}

impl Inbox for Shared {
    fn wake(&self, key: u64) {
        if let Err(key) = self.wakes.push(key) {
            self.more.lock().expect("no panic while held").push(key);
            self.spilled.store(true, Ordering::Release);
        }
        self.poke();
    }

    /// No wake-up is lost. The caller has published something P (a waker, a message in a ring) and then reads
    /// `sleeping`; the reactor writes `sleeping` and then looks for P. A SeqCst fence stands between the two
    /// on each side, so one of them sees the other's write: either we see `sleeping` and ring the bell, or
    /// the reactor sees P and does not sleep. The bell is an eventfd that the reactor's ring polls: rung
    /// between the reactor's check and its wait, it ends the wait at once. Whoever swaps `sleeping` to false
    /// is the only one to ring; the reactor is awake then until it announces its sleep anew.
    fn poke(&self) {
        fence(Ordering::SeqCst);
        if self.sleeping.load(Ordering::Relaxed) && self.sleeping.swap(false, Ordering::Relaxed) {
            self.ring_bell();
        }
    }
}

/// Long lists that are there from the start: as many as a shard's frames in flight need for their columns.
const LONG_LISTS: usize = 64;

fn long_list() -> Box<[libc::iovec]> {
    vec![NO_PIECE; IOVEC_MAX].into_boxed_slice()
}

/// Lists of pieces that the kernel reads: one short list beside each slot, and long lists that are used again.
struct Pieces {
    inline: Box<[UnsafeCell<[libc::iovec; PIECES_INLINE]>]>,
    long: RefCell<Vec<Box<[libc::iovec]>>>,
    /// The long list that a slot uses.
    lent: RefCell<Vec<Option<Box<[libc::iovec]>>>>,
}

const NO_PIECE: libc::iovec = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };

pub struct Driver {
    ring: RefCell<IoUring>,
    pub(super) ops: Ops,
    pieces: Pieces,
    /// Entries that found the submission queue full.
    backlog: RefCell<VecDeque<squeue::Entry>>,
    pub(super) shared: Arc<Shared>,
    /// The pool's memory, when the kernel has it registered: each GiB is one registered buffer.
    fixed: Option<std::ops::Range<usize>>,
    vectored_fixed: bool,
    /// Where received bytes go: one buffer for all sockets of the reactor, since each call to receive ends at
    /// once. Idle sockets hold no memory.
    pub(super) arrivals: RefCell<Option<Buf>>,
    pub(super) scratch: RefCell<Vec<libc::iovec>>,
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
            pieces: Pieces {
                inline: (0..OPS_MAX).map(|_| UnsafeCell::new([NO_PIECE; PIECES_INLINE])).collect(),
                long: RefCell::new((0..LONG_LISTS).map(|_| long_list()).collect()),
                lent: RefCell::new((0..OPS_MAX).map(|_| None).collect()),
            },
            backlog: RefCell::new(VecDeque::with_capacity(64)),
            shared,
            vectored_fixed,
            arrivals: RefCell::new(None),
            scratch: RefCell::new(Vec::with_capacity(IOVEC_MAX)),
        });
        let key = driver.ops.insert(State::Wake).ok().expect("the table is empty");
        driver.arm_poll(driver.shared.event_fd(), key);
        Ok(driver)
    }

    pub(crate) fn now(&self) -> Instant {
        monotonic_now()
    }
    pub(crate) fn wall_nanos(&self) -> u64 {
        clock(libc::CLOCK_REALTIME)
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
        let piece = size_of::<[libc::iovec; PIECES_INLINE]>() + size_of::<Option<Box<[libc::iovec]>>>();
        (rings, OPS_MAX * (size_of::<super::ops::Slot>() + piece), self.fixed.is_some())
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

    /// Runs one operation on a file. The task comes back with the result: 0, an errno or `SHORT`.
    pub(super) async fn run_file(self: &Rc<Self>, file: Rc<OwnedFd>, task: Task) -> (i32, Task) {
        let mut state = State::File(FileOp::new(file, task));
        let key = loop {
            match self.ops.insert(state) {
                Ok(key) => break key,
                Err(back) => state = back,
            }
            self.ops.freed.notified().await;
        };
        self.submit_file(key);
        let mut guard = FileGuard { driver: self, key: Some(key) };
        poll_fn(|cx| {
            let finished = self.ops.with(key, |state| {
                let State::File(op) = state else { unreachable!("the slot is ours until we remove it") };
                if op.result.is_none() {
                    op.waker = Some(cx.waker().clone());
                }
                op.result.is_some()
            });
            if finished.expect("the slot is ours until we remove it") {
                Poll::Ready(())
            } else {
                Poll::Pending
            }
        })
        .await;
        guard.key = None;
        let Some(State::File(op)) = self.ops.remove(key) else { unreachable!("just seen") };
        (op.result.expect("finished"), op.task)
    }

    fn submit_file(&self, key: u64) {
        let entry = self.ops.with(key, |state| {
            let State::File(op) = state else { unreachable!("only file operations are submitted here") };
            self.file_entry(key, op)
        });
        self.push(entry.expect("a live operation").user_data(key));
    }

    /// The registered buffer that holds these bytes. Buffers of other reactors' pools are in none.
    fn fixed_index(&self, at: *const u8, len: usize) -> Option<u16> {
        let at = at as usize;
        let range = self.fixed.as_ref().filter(|r| r.start <= at && at + len <= r.end)?;
        // Buffers do not straddle a GiB: it is a multiple of all their sizes, and the larger come first.
        Some(((at - range.start) / REGISTERED_BYTES) as u16)
    }

    /// The registered buffer that holds all the pieces.
    fn fixed_index_of_all(&self, pieces: &[crate::buf::View]) -> Option<u16> {
        let first = pieces.first()?;
        let index = self.fixed_index(first.as_ptr(), first.len())?;
        let same = |p: &crate::buf::View| self.fixed_index(p.as_ptr(), p.len()) == Some(index);
        (self.vectored_fixed && pieces.iter().all(same)).then_some(index)
    }

    fn file_entry(&self, key: u64, op: &mut FileOp) -> squeue::Entry {
        let (fd, done) = (Fd(op.fd()), op.done);
        match &mut op.task {
            Task::Read { buf, offset } => {
                let (rest, offset) = (&mut buf[done..], *offset + done as u64);
                let (at, len) = (rest.as_mut_ptr(), rest.len() as u32);
                match self.fixed_index(at, len as usize) {
                    Some(index) => opcode::ReadFixed::new(fd, at, len, index).offset(offset).build(),
                    None => opcode::Read::new(fd, at, len).offset(offset).build(),
                }
            }
            Task::Write { iov, offset, flags } => {
                let (offset, flags) = (*offset + done as u64, *flags);
                let mut rest = iov.pieces();
                let mut skip = done;
                while let Some(first) = rest.first()
                    && skip >= first.len()
                {
                    skip -= first.len();
                    rest = &rest[1..];
                }
                if let [one] = rest {
                    let (at, len) = (one[skip..].as_ptr(), (one.len() - skip) as u32);
                    return match self.fixed_index(at, len as usize) {
                        Some(index) => {
                            opcode::WriteFixed::new(fd, at, len, index).offset(offset).rw_flags(flags).build()
                        }
                        None => opcode::Write::new(fd, at, len).offset(offset).rw_flags(flags).build(),
                    };
                }
                let (list, count) = (self.list_for(key, rest, skip), rest.len() as u32);
                match self.fixed_index_of_all(rest) {
                    Some(index) => opcode::WritevFixed::new(fd, list, count, index)
                        .offset(offset)
                        .rw_flags(flags)
                        .build(),
                    None => opcode::Writev::new(fd, list, count).offset(offset).rw_flags(flags).build(),
                }
            }
            Task::Sync => opcode::Fsync::new(fd).flags(FsyncFlags::DATASYNC).build(),
            Task::Fallocate { mode, offset, bytes } => {
                opcode::Fallocate::new(fd, *bytes).offset(*offset).mode(*mode).build()
            }
        }
    }

    /// Writes the list of pieces, the first of them without `skip` bytes, to where it stays until the
    /// operation's slot is freed.
    fn list_for(&self, key: u64, pieces: &[crate::buf::View], skip: usize) -> *const libc::iovec {
        let index = super::ops::index_of(key);
        let mut lent = self.pieces.lent.borrow_mut();
        let list: *mut libc::iovec = if pieces.len() <= PIECES_INLINE {
            self.pieces.inline[index].get().cast()
        } else {
            let list = lent[index].get_or_insert_with(|| {
                let spare = self.pieces.long.borrow_mut().pop();
                spare.unwrap_or_else(long_list)
            });
            list.as_mut_ptr()
        };
        let mut skip = skip;
        for (i, piece) in pieces.iter().enumerate() {
            let rest = &piece[skip..];
            skip = 0;
            let entry = libc::iovec { iov_base: rest.as_ptr().cast_mut().cast(), iov_len: rest.len() };
            // SAFETY: the list has room for IOVEC_MAX (or PIECES_INLINE) entries, which bounds the pieces, and
            // belongs to this slot; the kernel has copied an earlier version of it when it was submitted.
            unsafe { list.add(i).write(entry) };
        }
        list
    }

    fn return_list(&self, key: u64) {
        let list = self.pieces.lent.borrow_mut()[super::ops::index_of(key)].take();
        if let Some(list) = list {
            self.pieces.long.borrow_mut().push(list);
        }
    }

    /// Queues an entry for the next entry into the kernel.
    fn push(&self, entry: squeue::Entry) {
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
                self.clear_bell();
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

    /// Wakes the tasks that other threads have asked to wake. True when there was one.
    pub(super) fn drain_inbox(&self) -> bool {
        let mut some = false;
        while let Some(key) = self.shared.wakes.pop() {
            crate::task::wake_key(key);
            some = true;
        }
        // Cleared before the look, so that whoever spills after the look is seen next time.
        if self.shared.spilled.load(Ordering::Relaxed) && self.shared.spilled.swap(false, Ordering::Acquire) {
            let keys = std::mem::take(&mut *self.shared.more.lock().expect("no panic while held"));
            some |= !keys.is_empty();
            keys.into_iter().for_each(crate::task::wake_key);
        }
        some
    }

    /// Sleeps until a completion, a poke or `limit`, unless something is found to do after the sleep was
    /// announced (see `poke`).
    pub(super) fn sleep(&self, reactor: &Reactor, limit: Option<Duration>, stop: &dyn Fn() -> bool) {
        self.shared.sleeping.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
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
        self.shared.sleeping.store(false, Ordering::Relaxed);
    }

    /// Empties the bell, so that it does not count up for ever.
    fn clear_bell(&self) {
        let mut count = 0u64;
        // SAFETY: reads eight bytes into a live local; the descriptor does not block.
        unsafe { libc::read(self.shared.event_fd(), (&raw mut count).cast(), 8) };
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

struct FileGuard<'a> {
    driver: &'a Rc<Driver>,
    key: Option<u64>,
}

impl Drop for FileGuard<'_> {
    /// The future was dropped. The operation goes on, and keeps its buffers until the kernel has answered.
    fn drop(&mut self) {
        let Some(key) = self.key else { return };
        let finished = self.driver.ops.with(key, |state| {
            let State::File(op) = state else { return false };
            op.orphan = true;
            op.waker = None;
            op.result.is_some()
        });
        if finished == Some(true) {
            drop(self.driver.ops.remove(key));
        }
    }
}

fn build_ring() -> io::Result<IoUring> {
    let best = |b: &mut io_uring::Builder| {
        b.setup_single_issuer().setup_defer_taskrun().setup_taskrun_flag();
    };
    let good = |b: &mut io_uring::Builder| {
        b.setup_coop_taskrun().setup_taskrun_flag();
    };
    let plain = |_: &mut io_uring::Builder| {};
    let mut last = None;
    for options in [&best as &dyn Fn(&mut io_uring::Builder), &good, &plain] {
        let mut builder = IoUring::builder();
        builder.setup_cqsize(CQ_ENTRIES).setup_submit_all();
        options(&mut builder);
        match builder.build(SQ_ENTRIES) {
            Ok(ring) if !ring.params().is_feature_ext_arg() || !ring.params().is_feature_nodrop() => {
                return Err(io::Error::from_raw_os_error(libc::ENOSYS));
            }
            Ok(ring) => return Ok(ring),
            Err(error) => last = Some(error),
        }
    }
    Err(last.expect("three attempts were made"))
}

/// Registers the pool's memory, so that the kernel need not pin pages for each operation. Refused where
/// RLIMIT_MEMLOCK is too small: then operations name plain memory.
fn register_pool(ring: &IoUring, pool: &Pool) -> Option<std::ops::Range<usize>> {
    let (memory, bytes) = pool.memory();
    let parts = (0..bytes).step_by(REGISTERED_BYTES);
    let list: Vec<libc::iovec> = parts
        .map(|at| libc::iovec {
            iov_base: memory.as_ptr().wrapping_add(at).cast(),
            iov_len: REGISTERED_BYTES.min(bytes - at),
        })
        .collect();
    // SAFETY: the range is the pool's mapped memory. The kernel holds its pages until the ring is gone, and
    // touches them only for operations that own their buffers.
    unsafe { ring.submitter().register_buffers(&list) }.ok()?;
    let start = memory.as_ptr() as usize;
    Some(start..start + bytes)
}

/// Asks for huge pages under memory that is used at random. Advice: what the system makes of it does not matter.
pub(crate) fn advise_huge_pages(memory: &[u8]) {
    let skip = memory.as_ptr().align_offset(4096).min(memory.len());
    let whole = &memory[skip..];
    // SAFETY: the range is a live allocation, from a page's start on, and this advice changes no contents.
    unsafe { libc::madvise(whole.as_ptr().cast_mut().cast(), whole.len(), libc::MADV_HUGEPAGE) };
}

fn clock(id: libc::clockid_t) -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes one timespec into a live local; these clocks always exist.
    unsafe { libc::clock_gettime(id, &mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

pub(super) fn monotonic_now() -> Instant {
    Instant(clock(libc::CLOCK_MONOTONIC))
}
