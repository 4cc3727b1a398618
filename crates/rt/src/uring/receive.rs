//! Receiving by the ring: a multishot receive per socket, into buffers that the reactor provides to the kernel.
//!
//! The kernel takes a buffer when bytes are there, so that idle connections hold none. Buffers come from the
//! reactor's pool, and what arrived is handed on as a view: the pool gets them back when the last view is
//! dropped, and the ring gets new ones. Where the kernel can (6.12), it gives one buffer out in parts.

use super::addr::net_error;
use super::driver::Driver;
use super::ops::{Handle, State};
use crate::buf::{Buf, CLASS_BYTES, Pool, View};
use crate::net::NetError;
use io_uring::types::{BufRingEntry, Fd};
use io_uring::{IoUring, cqueue, opcode};
use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::ptr::NonNull;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::task::Waker;

const GROUP: u16 = 0;
const ENTRIES: u16 = 16;
const BUFFER_BYTES: usize = 64 << 10;
/// What one socket may have received before anybody asked for it; more waits with the kernel.
const QUEUED_VIEWS_MAX: usize = 16;
const QUEUED_BYTES_MAX: usize = 256 << 10;
/// `IOU_PBUF_RING_INC`: the kernel gives out buffers in parts.
const INCREMENTAL: u16 = 2;
const LAYOUT: Layout = match Layout::from_size_align(4096, 4096) {
    Ok(layout) => layout,
    Err(_) => unreachable!(),
};
const _: () = assert!(ENTRIES as usize * size_of::<BufRingEntry>() <= LAYOUT.size());

/// The reactor's buffers that the kernel may take.
pub(super) struct Provided {
    ring: RefCell<Option<Ring>>,
    pool: Arc<Pool>,
    /// Buffers to provide.
    count: usize,
    /// Views that nobody has asked for yet, of all sockets, and how many there may be before the kernel gets
    /// no more buffers: slow readers do not eat the pool.
    queued: Cell<usize>,
    queued_max: usize,
}

struct Ring {
    entries: NonNull<BufRingEntry>,
    tail: u16,
    incremental: bool,
    bufs: [Option<Buf>; ENTRIES as usize],
    /// Entries without a buffer.
    empty: Vec<u16>,
}

impl Provided {
    /// None are provided when the kernel cannot take them.
    pub(super) fn new(uring: &IoUring, pool: &Arc<Pool>, wanted: bool) -> Provided {
        let class = CLASS_BYTES.iter().position(|&bytes| bytes == BUFFER_BYTES).expect("a size of buffers");
        let have = pool.config().counts[class];
        let count = if wanted { (have / 8).min(ENTRIES as usize) } else { 0 };
        let ring = if count > 0 { Ring::register(uring, count) } else { None };
        let count = if ring.is_some() { count } else { 0 };
        let (queued, queued_max) = (Cell::new(0), have / 4);
        let provided = Provided { ring: RefCell::new(ring), pool: pool.clone(), count, queued, queued_max };
        provided.refill();
        provided
    }

    /// How many buffers of which size are with the kernel.
    pub(super) fn budget(&self) -> (usize, usize) {
        (BUFFER_BYTES, self.count)
    }
    pub(super) fn is_there(&self) -> bool {
        self.count > 0
    }
    /// The kernel has a buffer left.
    fn has_some(&self) -> bool {
        self.ring.borrow().as_ref().is_some_and(|ring| ring.bufs.iter().any(Option::is_some))
    }

    /// The bytes of one completion.
    pub(super) fn take(&self, result: i32, flags: u32) -> Option<View> {
        let id = cqueue::buffer_select(flags)?;
        let view = self.ring.borrow_mut().as_mut()?.take(id, result, cqueue::buffer_more(flags));
        self.refill();
        view
    }

    fn refill(&self) {
        if let Some(ring) = &mut *self.ring.borrow_mut() {
            while self.queued.get() <= self.queued_max
                && let Some(&id) = ring.empty.last()
                && let Some(buf) = self.pool.alloc(BUFFER_BYTES)
            {
                ring.empty.pop();
                ring.bufs[id as usize] = Some(buf);
                ring.offer(id);
            }
        }
    }

    /// Takes all buffers back. The kernel receives nothing any more.
    pub(super) fn end(&self, uring: &IoUring) {
        if let Some(ring) = self.ring.borrow_mut().take() {
            let _ = uring.submitter().unregister_buf_ring(GROUP);
            drop(ring);
        }
    }
}

impl Ring {
    fn register(uring: &IoUring, count: usize) -> Option<Ring> {
        // SAFETY: the layout has a size.
        let Some(entries) = NonNull::new(unsafe { alloc_zeroed(LAYOUT) }) else { handle_alloc_error(LAYOUT) };
        let mut ring = Ring {
            entries: entries.cast(),
            tail: 0,
            incremental: false,
            bufs: [const { None }; ENTRIES as usize],
            empty: (0..count as u16).rev().collect(),
        };
        let at = ring.entries.as_ptr() as u64;
        // SAFETY: the page is ours, zeroed, and lives until the ring has been unregistered or is gone.
        let register =
            |flags| unsafe { uring.submitter().register_buf_ring_with_flags(at, ENTRIES, GROUP, flags) };
        ring.incremental = register(INCREMENTAL).is_ok();
        (ring.incremental || register(0).is_ok()).then_some(ring)
    }

    /// Shows the kernel a buffer.
    fn offer(&mut self, id: u16) {
        let buf = self.bufs[id as usize].as_mut().expect("there is a buffer to offer");
        // SAFETY: the index lies within the page, and the kernel reads an entry only once the tail covers it.
        // It never has more than ENTRIES buffers, so that no entry that it may still read is written.
        unsafe {
            let entry = &mut *self.entries.as_ptr().add((self.tail % ENTRIES) as usize);
            entry.set_addr(buf.as_mut_ptr() as u64);
            entry.set_len(buf.len() as u32);
            entry.set_bid(id);
            self.tail = self.tail.wrapping_add(1);
            let tail = BufRingEntry::tail(self.entries.as_ptr()).cast::<AtomicU16>();
            (*tail).store(self.tail, Ordering::Release);
        }
    }

    fn take(&mut self, id: u16, result: i32, rest_stays: bool) -> Option<View> {
        if result <= 0 {
            // Nothing is in it. Where buffers are given out in parts, no part has been; otherwise it is ours again.
            if !self.incremental {
                self.offer(id);
            }
            return None;
        }
        let slot = &mut self.bufs[id as usize];
        let len = result as usize;
        if rest_stays {
            return Some(slot.as_mut().expect("the kernel has it").split_to(len).freeze());
        }
        let mut buf = slot.take().expect("the kernel had it");
        buf.truncate(len);
        self.empty.push(id);
        Some(buf.freeze())
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout. The kernel has pinned the page if it still knows it.
        unsafe { dealloc(self.entries.as_ptr().cast(), LAYOUT) };
    }
}

/// What a multishot receive has brought to one socket.
#[derive(Default)]
pub(super) struct Incoming {
    queue: RefCell<VecDeque<View>>,
    bytes: Cell<usize>,
    /// The receive's slot, while the kernel may bring more.
    pub(super) key: Cell<Option<u64>>,
    /// The kernel has been told to stop.
    pausing: Cell<bool>,
    /// Why it stopped, if that matters.
    pub(super) end: Cell<Option<End>>,
    pub(super) waker: Cell<Option<Waker>>,
}

#[derive(Clone, Copy, PartialEq)]
pub(super) enum End {
    /// The end of the stream.
    Eof,
    /// The kernel found no buffer.
    Starved,
    Failed(NetError),
}

impl Incoming {
    /// The kernel will bring something, or say that it does not.
    pub(super) fn is_armed(&self) -> bool {
        self.key.get().is_some()
    }
    pub(super) fn has_some(&self) -> bool {
        !self.queue.borrow().is_empty()
    }
    fn is_full(&self) -> bool {
        self.bytes.get() >= QUEUED_BYTES_MAX || self.queue.borrow().len() >= QUEUED_VIEWS_MAX
    }

    fn handle_end(&self, result: i32) {
        self.key.set(None);
        self.pausing.set(false);
        self.end.set(match -result {
            0 => Some(End::Eof),
            libc::ENOBUFS => Some(End::Starved),
            // We told it to stop, or it stopped between two pieces: nothing was lost.
            libc::ECANCELED | libc::EINTR | libc::EAGAIN => None,
            errno if errno > 0 => Some(End::Failed(net_error(errno))),
            _ => None,
        });
    }
}

impl Driver {
    /// Has the kernel receive whatever comes, from now on.
    pub(super) fn arm_receive(&self, handle: &Rc<Handle>, incoming: &Rc<Incoming>) -> Result<(), NetError> {
        let state = State::Receive(handle.clone(), Some(incoming.clone()));
        let key = self.ops.insert(state).map_err(|_| NetError::Os(libc::ENFILE))?;
        incoming.key.set(Some(key));
        incoming.end.set(None);
        self.push(opcode::RecvMulti::new(Fd(handle.fd()), GROUP).build().user_data(key));
        Ok(())
    }

    /// Whether a receive that starved may try again.
    pub(super) fn provides(&self) -> bool {
        self.provided.refill();
        self.provided.has_some()
    }

    /// Stops the kernel; what it brings until it has stopped is queued.
    pub(super) fn pause_receive(&self, incoming: &Incoming) {
        if let Some(key) = incoming.key.get()
            && !incoming.pausing.replace(true)
        {
            self.cancel(key);
        }
    }

    pub(super) fn handle_arrival(&self, incoming: &Incoming, arrived: Option<View>, result: i32, more: bool) {
        if let Some(view) = arrived {
            incoming.bytes.set(incoming.bytes.get() + view.len());
            incoming.queue.borrow_mut().push_back(view);
            self.provided.queued.set(self.provided.queued.get() + 1);
        }
        if !more {
            incoming.handle_end(result);
        } else if incoming.is_full() {
            self.pause_receive(incoming);
        }
        if let Some(waker) = incoming.waker.take() {
            waker.wake();
        }
    }

    /// The next bytes that have arrived.
    pub(super) fn take_arrived(&self, incoming: &Incoming) -> Option<View> {
        let view = incoming.queue.borrow_mut().pop_front()?;
        incoming.bytes.set(incoming.bytes.get() - view.len());
        let queued = self.provided.queued.get() - 1;
        self.provided.queued.set(queued);
        if queued == self.provided.queued_max {
            self.provided.refill();
        }
        Some(view)
    }

    /// Puts back what is left of the bytes taken last.
    pub(super) fn put_back(&self, incoming: &Incoming, rest: View) {
        incoming.bytes.set(incoming.bytes.get() + rest.len());
        incoming.queue.borrow_mut().push_front(rest);
        self.provided.queued.set(self.provided.queued.get() + 1);
    }
}
