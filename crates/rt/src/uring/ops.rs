//! The table of operations that the kernel works on. An operation owns what the kernel refers to (buffers,
//! lists of pieces, the file) until its last completion, whether or not anybody still waits for it.

use super::accept::Accepting;
use super::receive::Incoming;
use super::send::SendOp;
use crate::buf::{Buf, IoVec};
use crate::sync::Notify;
use std::cell::{Cell, RefCell};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::rc::Rc;
use std::task::Waker;

/// A socket's descriptor. The slots that name it in the ring hold it: its number must not become another
/// file's while the kernel may still look it up. Closing therefore shuts the connection down by hand.
pub(super) struct Handle {
    pub(super) fd: OwnedFd,
    pub(super) tcp: bool,
    /// Large sends may leave without a copy.
    pub(super) zero_copy: Cell<bool>,
}

impl Handle {
    pub(super) fn fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

/// Whether a socket can be read, or written, as far as the kernel has told: said by a multishot poll, which is
/// armed when somebody first waits, and denied by whoever finds the socket empty or full.
pub(super) struct Readiness {
    pub(super) events: libc::c_short,
    /// Ready until found otherwise: the first call tries.
    pub(super) ready: Cell<bool>,
    /// The end of the stream is queued behind the data: a short read does not mean that nothing is left.
    pub(super) hangup: Cell<bool>,
    /// The poll itself failed; the socket is of no use any more.
    pub(super) failed: Cell<bool>,
    pub(super) waker: Cell<Option<Waker>>,
    /// The poll's slot.
    pub(super) key: Cell<Option<u64>>,
}

impl Readiness {
    pub(super) fn new(events: libc::c_short) -> Rc<Readiness> {
        Rc::new(Readiness {
            events,
            ready: Cell::new(true),
            hangup: Cell::new(false),
            failed: Cell::new(false),
            waker: Cell::new(None),
            key: Cell::new(None),
        })
    }

    /// Whatever the event, the socket is worth a try. A poll that has ended is armed again when that finds nothing.
    pub(super) fn handle_events(&self, result: i32, more: bool) {
        const ENDS: i32 = (libc::POLLERR | libc::POLLHUP | libc::POLLRDHUP) as i32;
        if result < 0 {
            self.failed.set(true);
        }
        if result < 0 || result & ENDS != 0 {
            self.hangup.set(true);
        }
        if !more {
            self.key.set(None);
        }
        self.ready.set(true);
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

/// What the kernel is asked to do with a file.
pub(super) enum Task {
    Read { buf: Buf, offset: u64 },
    Write { iov: IoVec, offset: u64, flags: i32 },
    Sync,
    Fallocate { mode: i32, offset: u64, bytes: u64 },
}

impl Task {
    pub(super) fn bytes(&self) -> usize {
        match self {
            Task::Read { buf, .. } => buf.len(),
            Task::Write { iov, .. } => iov.bytes(),
            Task::Sync | Task::Fallocate { .. } => 0,
        }
    }
}

/// One operation on a file.
pub(super) struct FileOp {
    pub(super) file: Rc<OwnedFd>,
    pub(super) task: Task,
    /// Bytes that earlier, short completions transferred.
    pub(super) done: usize,
    pub(super) attempts: u32,
    /// 0 or an errno, or [`SHORT`].
    pub(super) result: Option<i32>,
    pub(super) waker: Option<Waker>,
    /// Nobody waits any more.
    pub(super) orphan: bool,
}

/// The device transferred nothing although something was left to transfer.
pub(super) const SHORT: i32 = i32::MAX;
/// Times that the kernel may ask to try again before that counts as an error.
const ATTEMPTS_MAX: u32 = 1000;

/// What to do after a completion.
pub(super) enum Next {
    Resubmit,
    Wake(Option<Waker>),
    /// Nobody waits, and the kernel holds nothing any more.
    Free,
    Nothing,
}

impl FileOp {
    pub(super) fn new(file: Rc<OwnedFd>, task: Task) -> FileOp {
        FileOp { file, task, done: 0, attempts: 0, result: None, waker: None, orphan: false }
    }
    pub(super) fn fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
    pub(super) fn handle_completion(&mut self, result: i32) -> Next {
        if result == -libc::EINTR || result == -libc::EAGAIN {
            self.attempts += 1;
            if self.attempts < ATTEMPTS_MAX {
                return Next::Resubmit;
            }
        }
        let total = self.task.bytes();
        self.result = Some(match result {
            error if error < 0 => -error,
            _ if total == 0 => 0,
            0 => SHORT,
            moved => {
                self.done += moved as usize;
                if self.done < total {
                    return Next::Resubmit;
                }
                0
            }
        });
        if self.orphan { Next::Free } else { Next::Wake(self.waker.take()) }
    }
}

#[expect(dead_code, reason = "handles are only held, as long as the kernel may look their descriptors up")]
pub(super) enum State {
    Free {
        next: u32,
    },
    /// The poll of the reactor's own eventfd.
    Wake,
    /// A multishot poll, receive or accept; `None` after nobody wants to hear of it any more, until its last word.
    Poll(Rc<Handle>, Option<Rc<Readiness>>),
    Receive(Rc<Handle>, Option<Rc<Incoming>>),
    Accept(Rc<Handle>, Option<Rc<Accepting>>),
    Send(SendOp),
    File(FileOp),
}

pub(super) struct Slot {
    pub(super) generation: u32,
    pub(super) state: State,
}

/// Pieces that fit beside a slot; longer lists are taken from `Ops::lists`.
pub(super) const PIECES_INLINE: usize = 8;

/// The table. Its size is fixed: whoever finds it full waits.
pub(super) struct Ops {
    slots: RefCell<Box<[Slot]>>,
    free: Cell<u32>,
    /// Operations on files.
    files: Cell<usize>,
    files_max: usize,
    /// Zero-copy sends.
    pub(super) sends: Cell<usize>,
    /// All slots in use but the reactor's own.
    pub(super) used: Cell<usize>,
    pub(super) freed: Notify,
}

const NONE: u32 = u32::MAX;

impl Ops {
    pub(super) fn new(count: usize, files_max: usize) -> Ops {
        let next = |i: usize| if i + 1 == count { NONE } else { i as u32 + 1 };
        let slots =
            (0..count).map(|i| Slot { generation: 0, state: State::Free { next: next(i) } }).collect();
        Ops {
            slots: RefCell::new(slots),
            free: Cell::new(0),
            files: Cell::new(0),
            files_max,
            sends: Cell::new(0),
            used: Cell::new(0),
            freed: Notify::default(),
        }
    }

    /// Hands the state back when the table is full.
    pub(super) fn insert(&self, state: State) -> Result<u64, State> {
        let index = self.free.get();
        if index == NONE || (matches!(state, State::File(_)) && self.files.get() == self.files_max) {
            return Err(state);
        }
        self.count(&state, 1);
        let mut slots = self.slots.borrow_mut();
        let slot = &mut slots[index as usize];
        let State::Free { next } = slot.state else { unreachable!("the free list holds free slots") };
        self.free.set(next);
        slot.state = state;
        Ok(key_of(index, slot.generation))
    }

    /// `None` when the key is stale.
    pub(super) fn with<R>(&self, key: u64, f: impl FnOnce(&mut State) -> R) -> Option<R> {
        let mut slots = self.slots.borrow_mut();
        let slot = slots.get_mut(index_of(key)).filter(|s| s.generation == (key >> 32) as u32)?;
        if matches!(slot.state, State::Free { .. }) {
            return None;
        }
        Some(f(&mut slot.state))
    }

    /// Frees the slot and returns what it held, to be dropped with no borrow held.
    pub(super) fn remove(&self, key: u64) -> Option<State> {
        let state = {
            let mut slots = self.slots.borrow_mut();
            let slot = slots.get_mut(index_of(key)).filter(|s| s.generation == (key >> 32) as u32)?;
            if matches!(slot.state, State::Free { .. }) {
                return None;
            }
            slot.generation = slot.generation.wrapping_add(1);
            let state = std::mem::replace(&mut slot.state, State::Free { next: self.free.get() });
            self.free.set(index_of(key) as u32);
            state
        };
        self.count(&state, -1);
        self.freed.notify_all();
        Some(state)
    }

    fn count(&self, state: &State, change: isize) {
        let add = |count: &Cell<usize>| count.set(count.get().wrapping_add_signed(change));
        match state {
            State::Free { .. } | State::Wake => return,
            State::File(_) => add(&self.files),
            State::Send(_) => add(&self.sends),
            State::Poll(..) | State::Receive(..) | State::Accept(..) => {}
        }
        add(&self.used);
    }

    /// The keys of these slots.
    pub(super) fn keys(&self) -> Vec<u64> {
        let slots = self.slots.borrow();
        let used = slots.iter().enumerate();
        let used = used.filter(|(_, slot)| !matches!(slot.state, State::Free { .. } | State::Wake));
        used.map(|(i, slot)| key_of(i as u32, slot.generation)).collect()
    }
}

pub(super) fn index_of(key: u64) -> usize {
    key as u32 as usize
}

fn key_of(index: u32, generation: u32) -> u64 {
    (generation as u64) << 32 | index as u64
}
