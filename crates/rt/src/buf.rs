//! Buffers: aligned memory from pools that are filled at start, and never from the system afterwards.
//!
//! A [`Buf`] is the only handle to its bytes and may be written; [`Buf::freeze`] makes it a [`View`], which may
//! be shared and sliced but not written. Both may be cut without copying, travel to other reactors, and give
//! their memory back to the pool of the reactor that it came from, whoever drops the last of them.

mod kept;
mod memory;

pub use kept::KeptBufs;
use memory::Memory;

use crate::reactor::{Inbox, Reactor};
use crate::sync::Notify;
use crossbeam_queue::ArrayQueue;
use std::cell::{Cell, RefCell, UnsafeCell};
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering, fence};
use std::sync::{Arc, OnceLock};

/// Sizes of buffers, smallest first. A request gets the smallest that fits and has one free.
pub const CLASS_BYTES: [usize; 6] = [4 << 10, 16 << 10, 64 << 10, 128 << 10, 512 << 10, 2 << 20];
const CLASSES: usize = CLASS_BYTES.len();
const PAGE: usize = 4096;

/// How many buffers of each size a reactor's pool has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BufConfig {
    pub counts: [usize; CLASSES],
    /// Take the memory from huge pages when the system has them.
    pub huge_pages: bool,
}

impl Default for BufConfig {
    fn default() -> Self {
        // 32 + 16 + 16 + 16 + 32 + 32 = 144 MiB.
        BufConfig { counts: [8192, 1024, 256, 128, 64, 16], huge_pages: true }
    }
}

impl BufConfig {
    /// A few MiB, for simulated nodes and tests.
    pub fn small() -> BufConfig {
        BufConfig { counts: [1024, 64, 32, 16, 24, 10], huge_pages: false }
    }
    pub fn total_bytes(&self) -> usize {
        self.counts.iter().zip(CLASS_BYTES).map(|(n, size)| n * size).sum()
    }
}

struct Chunk {
    refs: AtomicU32,
    pool: Cell<*const Pool>,
    base: NonNull<u8>,
    class: u8,
    index: u32,
    /// What it is kept back for; 0: none. Touched by the owning thread only.
    kept: Cell<u32>,
}

/// The memory of one reactor's buffers.
pub(crate) struct Pool {
    memory: Memory,
    config: BufConfig,
    chunks: UnsafeCell<Box<[Chunk]>>,
    /// Address of a thread-local of the owning thread: who may touch `local`.
    owner: usize,
    local: [RefCell<Vec<u32>>; CLASSES],
    /// What is kept back, by number less one.
    kept: RefCell<Vec<kept::Kept>>,
    /// Chunks dropped by other threads.
    remote: ArrayQueue<u32>,
    freed: Notify,
    /// Somebody waits for a buffer.
    starving: AtomicBool,
    /// Wakes the owner when it sleeps while it starves.
    bell: OnceLock<Arc<dyn Inbox>>,
}

// SAFETY: `local`, `kept`, `freed` and the chunks' `kept` are touched only by the owning thread (checked by token in `release`);
// everything else is immutable after creation or synchronised (`refs`, `remote`, `starving`, `bell`).
unsafe impl Send for Pool {}
// SAFETY: as above.
unsafe impl Sync for Pool {}

thread_local! {
    static TOKEN: u8 = const { 0 };
}

fn thread_token() -> usize {
    TOKEN.with(|t| t as *const u8 as usize)
}

impl Pool {
    /// Allocates all memory. Owned by the calling thread.
    pub(crate) fn new(config: BufConfig) -> Arc<Pool> {
        Pool::with_memory(config, Memory::allocate(config.total_bytes().max(PAGE), config.huge_pages))
    }
    /// As [`new`](Self::new), with pages that are found when they are used.
    pub(crate) fn reserved(config: BufConfig) -> Arc<Pool> {
        Pool::with_memory(config, Memory::reserve(config.total_bytes().max(PAGE)))
    }

    fn with_memory(config: BufConfig, memory: Memory) -> Arc<Pool> {
        let mut chunks = Vec::with_capacity(config.counts.iter().sum());
        let mut offset = 0;
        // Largest first, so that every chunk is aligned to its size up to a page at least.
        for class in (0..CLASSES).rev() {
            for _ in 0..config.counts[class] {
                // SAFETY: offset + size stays within `total`, which is the sum over all chunks.
                let base = unsafe { memory.base().add(offset) };
                let index = chunks.len() as u32;
                chunks.push(Chunk {
                    refs: AtomicU32::new(0),
                    pool: Cell::new(std::ptr::null()),
                    base,
                    class: class as u8,
                    index,
                    kept: Cell::new(0),
                });
                offset += CLASS_BYTES[class];
            }
        }
        let count = chunks.len();
        let pool = Arc::new(Pool {
            memory,
            config,
            chunks: UnsafeCell::new(chunks.into_boxed_slice()),
            owner: thread_token(),
            local: std::array::from_fn(|class| RefCell::new(Vec::with_capacity(config.counts[class]))),
            kept: RefCell::default(),
            remote: ArrayQueue::new(count.max(1)),
            freed: Notify::default(),
            starving: AtomicBool::new(false),
            bell: OnceLock::new(),
        });
        for chunk in pool.chunks() {
            chunk.pool.set(Arc::as_ptr(&pool));
            pool.local[chunk.class as usize].borrow_mut().push(chunk.index);
        }
        pool
    }

    fn chunks(&self) -> &[Chunk] {
        // SAFETY: the box is never replaced after creation; chunks have interior mutability where needed.
        unsafe { &*self.chunks.get() }
    }

    /// The whole memory, for registration with the kernel.
    pub(crate) fn memory(&self) -> (NonNull<u8>, usize) {
        (self.memory.base(), self.memory.bytes())
    }
    pub(crate) fn config(&self) -> BufConfig {
        self.config
    }
    pub(crate) fn is_huge(&self) -> bool {
        self.memory.is_huge()
    }

    pub(crate) fn alloc(self: &Arc<Self>, bytes: usize) -> Option<Buf> {
        debug_assert_eq!(self.owner, thread_token(), "a pool is its reactor's alone");
        let first = CLASS_BYTES.iter().position(|&size| size >= bytes)?;
        let index = self.pop(first).or_else(|| {
            self.collect_remote();
            self.pop(first)
        })?;
        Some(self.hand_out(index, bytes))
    }

    fn hand_out(self: &Arc<Self>, index: u32, bytes: usize) -> Buf {
        let chunk = &self.chunks()[index as usize];
        chunk.refs.store(1, Ordering::Relaxed);
        // The pool lives as long as any chunk is out: the count is given back in `release`.
        std::mem::forget(self.clone());
        Buf { chunk: NonNull::from(chunk), offset: 0, len: bytes as u32 }
    }

    fn put(&self, index: u32) {
        let chunk = &self.chunks()[index as usize];
        match chunk.kept.get() {
            0 => self.local[chunk.class as usize].borrow_mut().push(index),
            number => self.kept.borrow_mut()[number as usize - 1].free.push(index),
        }
    }

    /// Waits until a buffer has come back.
    pub(crate) async fn starved(&self) {
        self.starve();
        self.freed.notified().await;
    }

    fn pop(&self, first: usize) -> Option<u32> {
        // A request for a small buffer does not eat the large ones beyond the next two sizes.
        self.local[first..(first + 3).min(CLASSES)].iter().find_map(|list| list.borrow_mut().pop())
    }

    pub(crate) fn collect_remote(&self) {
        while let Some(index) = self.remote.pop() {
            self.put(index);
            self.notify();
        }
    }

    fn notify(&self) {
        if self.is_starving() {
            self.starving.store(false, Ordering::Relaxed);
            self.freed.notify_all();
        }
    }

    pub(crate) fn is_starving(&self) -> bool {
        self.starving.load(Ordering::Relaxed)
    }

    /// Announces that a buffer is missing. The fence pairs with the one in `release`: a thread that gives one
    /// back sees that we starve and rings the bell, or we see what it gave back (the reactor looks again at
    /// the end of the turn).
    fn starve(&self) {
        self.starving.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    /// How other threads wake the owner.
    pub(crate) fn set_bell(&self, bell: Arc<dyn Inbox>) {
        let _ = self.bell.set(bell);
    }

    pub(crate) fn free_counts(&self) -> [usize; CLASSES] {
        std::array::from_fn(|class| self.local[class].borrow().len())
    }
}

fn release(chunk: NonNull<Chunk>) {
    // SAFETY: the caller held a reference, so the chunk and its pool are alive.
    let c = unsafe { chunk.as_ref() };
    if c.refs.fetch_sub(1, Ordering::Release) != 1 {
        return;
    }
    fence(Ordering::Acquire);
    let (pool, index) = (c.pool.get(), c.index);
    // SAFETY: the chunk was out, so it holds one count of the pool (taken in `alloc`), which becomes ours.
    let pool = unsafe { Arc::from_raw(pool) };
    if pool.owner == thread_token() {
        pool.put(index);
        pool.notify();
    } else {
        pool.remote.push(index).expect("as large as the number of chunks");
        fence(Ordering::SeqCst);
        if pool.is_starving()
            && let Some(bell) = pool.bell.get()
        {
            bell.poke();
        }
    }
}

/// The only handle to a range of bytes in a pool. Starts 4096-aligned; cut pieces start where they were cut.
pub struct Buf {
    chunk: NonNull<Chunk>,
    offset: u32,
    len: u32,
}

// SAFETY: a Buf is the only handle to its range; the chunk's count is atomic.
unsafe impl Send for Buf {}

impl Buf {
    /// A buffer of `bytes` (contents: whatever was there), or `None` when the pool has none that fits now.
    pub fn try_alloc(bytes: usize) -> Option<Buf> {
        Reactor::current(|reactor| reactor.pool.alloc(bytes))
    }

    /// Waits until the pool has one: this is the backpressure on whoever receives.
    /// # Panics — when `bytes` is above the largest size: a mistake of the caller.
    pub async fn alloc(bytes: usize) -> Buf {
        assert!(bytes <= CLASS_BYTES[CLASSES - 1], "no buffer has {bytes} bytes");
        loop {
            let pool = match Reactor::current(|reactor| {
                reactor.pool.alloc(bytes).ok_or_else(|| reactor.pool.clone())
            }) {
                Ok(buf) => return buf,
                Err(pool) => pool,
            };
            pool.starved().await;
        }
    }

    /// A buffer filled with zeros.
    pub async fn zeroed(bytes: usize) -> Buf {
        let mut buf = Buf::alloc(bytes).await;
        buf.fill(0);
        buf
    }

    /// Cuts off the first `at` bytes; `self` keeps the rest. Both are the only handles to their parts.
    pub fn split_to(&mut self, at: usize) -> Buf {
        assert!(at <= self.len as usize);
        let front = Buf { chunk: self.chunk, offset: self.offset, len: at as u32 };
        // SAFETY: we hold a reference, so the chunk is alive.
        unsafe { self.chunk.as_ref() }.refs.fetch_add(1, Ordering::Relaxed);
        self.offset += at as u32;
        self.len -= at as u32;
        front
    }

    /// Takes back a part that was cut off right behind this one.
    /// # Panics — when `next` does not follow in the same buffer.
    pub fn unsplit(&mut self, next: Buf) {
        assert!(
            self.chunk == next.chunk && self.offset + self.len == next.offset,
            "parts of one buffer, in their order"
        );
        self.len += next.len;
    }

    /// Keeps the first `len` bytes.
    pub fn truncate(&mut self, len: usize) {
        assert!(len <= self.len as usize);
        self.len = len as u32;
    }

    /// Gives up writing; the bytes can now be shared.
    pub fn freeze(self) -> View {
        let view = View { chunk: self.chunk, offset: self.offset, len: self.len };
        std::mem::forget(self);
        view
    }
}

impl Deref for Buf {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: the range lies in the chunk (cut only from a whole one) and nobody else writes it.
        unsafe {
            std::slice::from_raw_parts(
                self.chunk.as_ref().base.as_ptr().add(self.offset as usize),
                self.len as usize,
            )
        }
    }
}
impl DerefMut for Buf {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and we are the only handle.
        unsafe {
            std::slice::from_raw_parts_mut(
                self.chunk.as_ref().base.as_ptr().add(self.offset as usize),
                self.len as usize,
            )
        }
    }
}
impl Drop for Buf {
    fn drop(&mut self) {
        release(self.chunk);
    }
}

/// A shared, immutable range of bytes in a pool. Cloning and slicing copy nothing.
pub struct View {
    chunk: NonNull<Chunk>,
    offset: u32,
    len: u32,
}

// SAFETY: the bytes are immutable while any View lives; the chunk's count is atomic.
unsafe impl Send for View {}
// SAFETY: as above.
unsafe impl Sync for View {}

impl View {
    pub fn slice(&self, range: std::ops::Range<usize>) -> View {
        assert!(range.start <= range.end && range.end <= self.len as usize);
        let mut view = self.clone();
        view.offset += range.start as u32;
        view.len = (range.end - range.start) as u32;
        view
    }
    /// Drops the first `n` bytes.
    pub fn advance(&mut self, n: usize) {
        assert!(n <= self.len as usize);
        self.offset += n as u32;
        self.len -= n as u32;
    }
    /// The buffer back for writing, if nobody else sees any part of it.
    pub fn try_unfreeze(self) -> Result<Buf, View> {
        // SAFETY: we hold a reference, so the chunk is alive.
        if unsafe { self.chunk.as_ref() }.refs.load(Ordering::Acquire) != 1 {
            return Err(self);
        }
        let buf = Buf { chunk: self.chunk, offset: self.offset, len: self.len };
        std::mem::forget(self);
        Ok(buf)
    }
    /// When `next` follows this view in the same buffer, grows over it: fewer pieces in a vectored write.
    pub fn try_join(&mut self, next: &View) -> bool {
        if self.chunk != next.chunk || self.offset + self.len != next.offset {
            return false;
        }
        self.len += next.len;
        true
    }
}

impl Clone for View {
    fn clone(&self) -> View {
        // SAFETY: we hold a reference, so the chunk is alive.
        unsafe { self.chunk.as_ref() }.refs.fetch_add(1, Ordering::Relaxed);
        View { chunk: self.chunk, offset: self.offset, len: self.len }
    }
}
impl Deref for View {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: the range lies in the chunk, and nobody writes while a View lives.
        unsafe {
            std::slice::from_raw_parts(
                self.chunk.as_ref().base.as_ptr().add(self.offset as usize),
                self.len as usize,
            )
        }
    }
}
impl Drop for View {
    fn drop(&mut self) {
        release(self.chunk);
    }
}
impl std::fmt::Debug for View {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "View({} bytes)", self.len)
    }
}
impl std::fmt::Debug for Buf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Buf({} bytes)", self.len)
    }
}

/// Pieces of one vectored write or send, in order. The list's memory is used again.
pub struct IoVec {
    views: Vec<View>,
    bytes: usize,
}

/// Pieces of one vectored operation at most (the kernel's IOV_MAX is 1024).
pub const IOVEC_MAX: usize = 512;

thread_local! {
    static SPARE: RefCell<Vec<Vec<View>>> = const { RefCell::new(Vec::new()) };
}

impl IoVec {
    pub fn new() -> IoVec {
        let views = SPARE.with(|s| s.borrow_mut().pop()).unwrap_or_else(|| Vec::with_capacity(IOVEC_MAX));
        IoVec { views, bytes: 0 }
    }
    /// Appends a piece, joined to the last one when it follows it in memory.
    /// # Panics — above [`IOVEC_MAX`] pieces: the caller bounds its frames and batches.
    pub fn push(&mut self, view: View) {
        if view.is_empty() {
            return;
        }
        self.bytes += view.len();
        if let Some(last) = self.views.last_mut()
            && last.try_join(&view)
        {
            return;
        }
        assert!(self.views.len() < IOVEC_MAX, "too many pieces in one vectored operation");
        self.views.push(view);
    }
    pub fn bytes(&self) -> usize {
        self.bytes
    }
    pub fn pieces(&self) -> &[View] {
        &self.views
    }
    /// A copy of all bytes, in memory of the system's allocator: for whoever compares.
    pub fn to_vec(&self) -> Vec<u8> {
        let mut all = Vec::with_capacity(self.bytes);
        self.views.iter().for_each(|view| all.extend_from_slice(view));
        all
    }
    /// The pieces that hold what follows the first `done` bytes, and how much of the first of them is done.
    pub(crate) fn after(&self, mut done: usize) -> (&[View], usize) {
        let mut rest = &self.views[..];
        while let Some(first) = rest.first()
            && done >= first.len()
        {
            done -= first.len();
            rest = &rest[1..];
        }
        (rest, done)
    }
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }
    pub fn is_full(&self) -> bool {
        self.views.len() == IOVEC_MAX
    }
    pub fn clear(&mut self) {
        self.views.clear();
        self.bytes = 0;
    }
}

impl Default for IoVec {
    fn default() -> Self {
        IoVec::new()
    }
}
impl Clone for IoVec {
    fn clone(&self) -> IoVec {
        let mut copy = IoVec::new();
        copy.views.extend(self.views.iter().cloned());
        copy.bytes = self.bytes;
        copy
    }
}
impl From<View> for IoVec {
    fn from(view: View) -> IoVec {
        let mut iov = IoVec::new();
        iov.push(view);
        iov
    }
}
impl Drop for IoVec {
    fn drop(&mut self) {
        let mut views = std::mem::take(&mut self.views);
        views.clear();
        // A thread that is ending may have lost its spare list; then the memory goes back to the system.
        let _ = SPARE.try_with(|s| {
            let mut spare = s.borrow_mut();
            if spare.len() < 1024 {
                spare.push(views);
            }
        });
    }
}

/// Free buffers of each size of the current reactor's pool: for statistics and leak checks.
pub fn free_counts() -> [usize; CLASSES] {
    Reactor::current(|reactor| {
        reactor.pool.collect_remote();
        reactor.pool.free_counts()
    })
}
