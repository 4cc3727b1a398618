//! Operations on files: their slots, their entries for the ring, and the lists of pieces that the kernel reads.

use super::driver::Driver;
use super::ops::{FileOp, PIECES_INLINE, State, Task};
use super::setup::REGISTERED_BYTES;
use crate::buf::{IOVEC_MAX, View};
use io_uring::types::{Fd, FsyncFlags};
use io_uring::{opcode, squeue};
use std::cell::{RefCell, UnsafeCell};
use std::future::poll_fn;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::task::Poll;

/// Long lists that are there from the start: as many as a shard's frames in flight need for their columns.
const LONG_LISTS: usize = 64;

fn long_list() -> Box<[libc::iovec]> {
    vec![NO_PIECE; IOVEC_MAX].into_boxed_slice()
}

/// Lists of pieces that the kernel reads: one short list beside each slot, and long lists that are used again.
pub(super) struct Pieces {
    inline: Box<[UnsafeCell<[libc::iovec; PIECES_INLINE]>]>,
    long: RefCell<Vec<Box<[libc::iovec]>>>,
    /// The long list that a slot uses.
    lent: RefCell<Vec<Option<Box<[libc::iovec]>>>>,
    messages: RefCell<Vec<Message>>,
}

/// What a vectored send points to, at a place of its own. Its memory is used again.
pub(super) struct Message(Box<libc::msghdr>);

impl Message {
    pub(super) fn set(&mut self, list: *const libc::iovec, count: usize) {
        self.0.msg_iov = list.cast_mut();
        self.0.msg_iovlen = count;
    }
    pub(super) fn as_ptr(&self) -> *const libc::msghdr {
        &*self.0
    }
}

impl Pieces {
    /// Bytes of each slot's share.
    pub(super) const SLOT_BYTES: usize =
        size_of::<[libc::iovec; PIECES_INLINE]>() + size_of::<Option<Box<[libc::iovec]>>>();

    pub(super) fn new(slots: usize) -> Pieces {
        Pieces {
            inline: (0..slots).map(|_| UnsafeCell::new([NO_PIECE; PIECES_INLINE])).collect(),
            long: RefCell::new((0..LONG_LISTS).map(|_| long_list()).collect()),
            lent: RefCell::new((0..slots).map(|_| None).collect()),
            messages: RefCell::default(),
        }
    }

    pub(super) fn message(&self) -> Message {
        // SAFETY: zero is a valid msghdr.
        self.messages.borrow_mut().pop().unwrap_or_else(|| Message(Box::new(unsafe { std::mem::zeroed() })))
    }
    pub(super) fn take_back(&self, message: Option<Message>) {
        self.messages.borrow_mut().extend(message);
    }
}

const NO_PIECE: libc::iovec = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };

impl Driver {
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

    pub(super) fn submit_file(&self, key: u64) {
        let entry = self.ops.with(key, |state| {
            let State::File(op) = state else { unreachable!("only file operations are submitted here") };
            self.file_entry(key, op)
        });
        self.push(entry.expect("a live operation").user_data(key));
    }

    /// The registered buffer that holds these bytes. Buffers of other reactors' pools are in none.
    pub(super) fn fixed_index(&self, at: *const u8, len: usize) -> Option<u16> {
        let at = at as usize;
        let range = self.fixed.as_ref().filter(|r| r.start <= at && at + len <= r.end)?;
        // Buffers do not straddle a GiB: it is a multiple of all their sizes, and the larger come first.
        Some(((at - range.start) / REGISTERED_BYTES) as u16)
    }

    /// The registered buffer that holds all the pieces.
    fn fixed_index_of_all(&self, pieces: &[View]) -> Option<u16> {
        let first = pieces.first()?;
        let index = self.fixed_index(first.as_ptr(), first.len())?;
        let same = |p: &View| self.fixed_index(p.as_ptr(), p.len()) == Some(index);
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
                let (rest, skip) = iov.after(done);
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
    pub(super) fn list_for(&self, key: u64, pieces: &[View], skip: usize) -> *const libc::iovec {
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

    pub(super) fn return_list(&self, key: u64) {
        let list = self.pieces.lent.borrow_mut()[super::ops::index_of(key)].take();
        if let Some(list) = list {
            self.pieces.long.borrow_mut().push(list);
        }
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
