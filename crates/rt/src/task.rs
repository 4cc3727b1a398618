//! Tasks: futures of one reactor, polled in the order in which they were woken.
//!
//! Those beside the I/O path ([`spawn_background`]) have a queue of their own. In each turn they go last, and for a moment
//! only: then the reactor looks at its devices and sockets again, so that a command waits for one of their steps at most,
//! however many of them are ready. Their steps have to be short.
//!
//! Memory of finished tasks is kept by size class and used again, so that spawning one task per command
//! allocates nothing once the reactor is warm. A waker is a number (reactor slot, task index, generation):
//! waking a finished task does nothing, and waking from another thread goes through that reactor's inbox.

use crate::alloc_count::background;
use crate::reactor::{self, Reactor};
use peristyle_base::{Duration, Instant};
use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::Future;
use std::mem::ManuallyDrop;
use std::pin::Pin;
use std::ptr::NonNull;
use std::task::{Context, Poll, RawWaker, RawWakerVTable, Waker};

/// Size classes of task memory: 256 B, 512 B, … 64 KiB. A larger future is refused at compile time of nobody,
/// but at spawn by assertion: it means that a buffer lives in a future that should live in the pool.
const CLASS_MIN_BITS: u32 = 8;
const CLASSES: usize = 9;
const TASK_ALIGN: usize = 64;
/// Tasks of one reactor at most.
const TASKS_MAX: usize = 1 << 20;
/// Background tasks go on for so long in a turn, or for half as long as the others did, up to a limit, since these may have
/// been interrupted: no new one begins after it.
const BACKGROUND_SLICE: Duration = Duration::from_micros(10);
const BACKGROUND_SLICE_MAX: Duration = Duration::from_micros(500);
/// A step that has lasted for so long ends at the next [`breathe`].
const STEP_MAX: Duration = Duration::from_micros(10);

const INDEX_BITS: u32 = 22;
const GENERATION_BITS: u32 = 28;

struct VTable {
    poll: unsafe fn(NonNull<Header>, &mut Context<'_>) -> Poll<()>,
    drop: unsafe fn(NonNull<Header>),
}

#[repr(C)]
struct Header {
    vtable: &'static VTable,
    class: u8,
    next_free: Cell<Option<NonNull<Header>>>,
}

#[repr(C)]
struct Raw<F> {
    header: Header,
    future: ManuallyDrop<F>,
}

#[derive(Clone, Copy, PartialEq)]
enum State {
    Free,
    Idle,
    Queued,
    Running,
    /// Woken while it was running: runs again.
    RunningWoken,
    /// Aborted while it was running: dropped when its poll returns.
    RunningAborted,
}

struct Entry {
    task: Option<NonNull<Header>>,
    generation: u32,
    state: State,
    class: Class,
    next_free: u32,
}

/// Which queue a task waits in.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Class {
    Foreground,
    Background,
}

const NONE: u32 = u32::MAX;

/// All tasks of one reactor.
pub(crate) struct Tasks {
    entries: RefCell<Vec<Entry>>,
    free: Cell<u32>,
    /// By [`Class`].
    queues: [RefCell<VecDeque<u32>>; 2],
    memory: [Cell<Option<NonNull<Header>>>; CLASSES],
    turn_end: Waiting,
    /// When the background task that runs began its step; in others, the turn.
    began: Cell<Instant>,
    alive: Cell<usize>,
}

impl Tasks {
    pub(crate) fn new() -> Tasks {
        Tasks {
            entries: RefCell::new(Vec::with_capacity(1024)),
            free: Cell::new(NONE),
            queues: [4096, 256].map(|ready| RefCell::new(VecDeque::with_capacity(ready))),
            memory: Default::default(),
            turn_end: Waiting::new(),
            began: Cell::new(Instant::ZERO),
            alive: Cell::new(0),
        }
    }

    pub(crate) fn alive(&self) -> usize {
        self.alive.get()
    }

    fn class_of(size: usize) -> usize {
        let bits = usize::BITS - (size - 1).leading_zeros();
        (bits.max(CLASS_MIN_BITS) - CLASS_MIN_BITS) as usize
    }

    fn layout(class: usize) -> Layout {
        Layout::from_size_align(1 << (CLASS_MIN_BITS as usize + class), TASK_ALIGN).expect("a power of two")
    }

    fn take_memory(&self, class: usize) -> NonNull<Header> {
        if let Some(free) = self.memory[class].get() {
            // SAFETY: what is on the free list is a block of this class that nobody else refers to; its
            // header was left initialised when it was put there.
            self.memory[class].set(unsafe { free.as_ref().next_free.take() });
            return free;
        }
        let layout = Self::layout(class);
        // SAFETY: the layout has a non-zero size.
        let block = unsafe { alloc(layout) };
        NonNull::new(block.cast()).unwrap_or_else(|| handle_alloc_error(layout))
    }

    pub(crate) fn spawn<F>(&self, slot: u16, class: Class, future: F) -> TaskHandle
    where
        F: Future<Output = ()> + 'static,
    {
        const { assert!(align_of::<Raw<F>>() <= TASK_ALIGN) };
        let size = Self::class_of(size_of::<Raw<F>>());
        assert!(size < CLASSES, "a future of {} bytes: keep its buffers in the pool", size_of::<F>());
        let memory = self.take_memory(size);
        let vtable = const { &VTable { poll: poll_raw::<F>, drop: drop_raw::<F> } };
        let header = Header { vtable, class: size as u8, next_free: Cell::new(None) };
        // SAFETY: the block is at least as large and as aligned as Raw<F> (asserted), and exclusively ours.
        unsafe { memory.cast::<Raw<F>>().write(Raw { header, future: ManuallyDrop::new(future) }) };
        let mut entries = self.entries.borrow_mut();
        let index = match self.free.get() {
            NONE => {
                assert!(entries.len() < TASKS_MAX, "too many tasks on one reactor");
                let state = State::Free;
                entries.push(Entry { task: None, generation: 0, state, class, next_free: NONE });
                entries.len() as u32 - 1
            }
            index => {
                self.free.set(entries[index as usize].next_free);
                index
            }
        };
        let entry = &mut entries[index as usize];
        entry.task = Some(memory);
        (entry.state, entry.class) = (State::Queued, class);
        self.alive.set(self.alive.get() + 1);
        let key = pack(slot, index, entry.generation);
        drop(entries);
        self.queue(class).borrow_mut().push_back(index);
        TaskHandle { key }
    }

    pub(crate) fn wake(&self, index: u32, generation: u32) {
        let mut entries = self.entries.borrow_mut();
        let Some(entry) = entries.get_mut(index as usize) else { return };
        if entry.generation != generation {
            return;
        }
        match entry.state {
            State::Idle => {
                entry.state = State::Queued;
                self.queue(entry.class).borrow_mut().push_back(index);
            }
            State::Running => entry.state = State::RunningWoken,
            _ => {}
        }
    }

    fn abort(&self, index: u32, generation: u32) {
        let task = {
            let mut entries = self.entries.borrow_mut();
            let Some(entry) = entries.get_mut(index as usize) else { return };
            if entry.generation != generation {
                return;
            }
            match entry.state {
                State::Free | State::RunningAborted => return,
                State::Running | State::RunningWoken => {
                    entry.state = State::RunningAborted;
                    return;
                }
                State::Idle | State::Queued => self.release(entry, index),
            }
        };
        self.destroy(task);
    }

    fn is_alive(&self, index: u32, generation: u32) -> bool {
        self.entries
            .borrow()
            .get(index as usize)
            .is_some_and(|e| e.generation == generation && e.state != State::Free)
    }

    /// Frees the entry; the caller then destroys the task with no borrow held.
    fn release(&self, entry: &mut Entry, index: u32) -> NonNull<Header> {
        entry.state = State::Free;
        entry.generation = (entry.generation + 1) & ((1 << GENERATION_BITS) - 1);
        entry.next_free = self.free.get();
        self.free.set(index);
        self.alive.set(self.alive.get() - 1);
        entry.task.take().expect("a task that is not free has memory")
    }

    fn destroy(&self, task: NonNull<Header>) {
        // SAFETY: the entry has been freed, so nobody polls or drops this task again; the header stays
        // initialised after the future inside the block is dropped.
        unsafe {
            (task.as_ref().vtable.drop)(task);
            let class = task.as_ref().class as usize;
            task.as_ref().next_free.set(self.memory[class].replace(Some(task)));
        }
    }

    /// Polls queued tasks, at most `budget` of them, and those that wait for the end of the turn, until nothing is ready;
    /// then background tasks for a moment, one at least, so that they have their share of a reactor that is never idle. True
    /// when something is ready still.
    pub(crate) fn run(&self, slot: u16, mut budget: usize, now: impl Fn() -> Instant) -> bool {
        let began = now();
        self.began.set(began);
        self.run_foreground(slot, &mut budget);
        if self.queue(Class::Background).borrow().is_empty() {
            return self.has_ready();
        }
        self.began.set(now());
        let share = self.began.get().since(began) / 2;
        let until = self.began.get() + share.clamp(BACKGROUND_SLICE, BACKGROUND_SLICE_MAX);
        while self.poll_next(slot, Class::Background) {
            // What it has woken does not wait for the next one.
            self.run_foreground(slot, &mut budget);
            self.began.set(now());
            if self.began.get() >= until {
                break;
            }
        }
        self.has_ready()
    }

    fn run_foreground(&self, slot: u16, budget: &mut usize) {
        loop {
            while *budget > 0 && self.poll_next(slot, Class::Foreground) {
                *budget -= 1;
            }
            if *budget == 0 || self.turn_end.is_empty() {
                return;
            }
            self.turn_end.wake_all();
        }
    }

    /// Polls one task, of this class if there is one: a turn of the simulator.
    pub(crate) fn run_one(&self, slot: u16, first: Class) {
        if first == Class::Background && self.poll_next(slot, first) {
            return;
        }
        if self.queue(Class::Foreground).borrow().is_empty() {
            self.turn_end.wake_all();
        }
        let _ = self.poll_next(slot, Class::Foreground) || self.poll_next(slot, Class::Background);
    }

    pub(crate) fn has_ready(&self) -> bool {
        let queued = self.queues.iter().any(|queue| !queue.borrow().is_empty());
        queued || !self.turn_end.is_empty()
    }

    fn queue(&self, class: Class) -> &RefCell<VecDeque<u32>> {
        &self.queues[class as usize]
    }

    /// False: none is queued.
    fn poll_next(&self, slot: u16, class: Class) -> bool {
        let next = self.queue(class).borrow_mut().pop_front();
        next.inspect(|index| self.poll_one(slot, *index)).is_some()
    }

    fn poll_one(&self, slot: u16, index: u32) {
        let (task, generation) = {
            let mut entries = self.entries.borrow_mut();
            let entry = &mut entries[index as usize];
            if entry.state != State::Queued {
                return; // aborted, and perhaps the entry was given to another task that queued itself anew
            }
            entry.state = State::Running;
            (entry.task.expect("a queued task has memory"), entry.generation)
        };
        let waker = make_waker(pack(slot, index, generation));
        // SAFETY: the entry is Running, so nobody else polls or drops the task meanwhile.
        let ready = unsafe { (task.as_ref().vtable.poll)(task, &mut Context::from_waker(&waker)) }.is_ready();
        let done = {
            let mut entries = self.entries.borrow_mut();
            let entry = &mut entries[index as usize];
            match entry.state {
                _ if ready => Some(self.release(entry, index)),
                State::RunningAborted => Some(self.release(entry, index)),
                State::RunningWoken => {
                    entry.state = State::Queued;
                    self.queue(entry.class).borrow_mut().push_back(index);
                    None
                }
                _ => {
                    entry.state = State::Idle;
                    None
                }
            }
        };
        if let Some(task) = done {
            self.destroy(task);
        }
    }

    /// Drops every task (a simulated crash, or the end of the reactor).
    pub(crate) fn clear(&self) {
        self.turn_end.wakers.borrow_mut().clear();
        let count = self.entries.borrow().len();
        for index in 0..count as u32 {
            let generation = self.entries.borrow()[index as usize].generation;
            self.abort(index, generation);
        }
        self.queues.iter().for_each(|queue| queue.borrow_mut().clear());
    }
}

impl Drop for Tasks {
    fn drop(&mut self) {
        self.clear();
        for (class, list) in self.memory.iter().enumerate() {
            while let Some(block) = list.get() {
                // SAFETY: blocks on the free list are ours alone and were allocated with this class's layout.
                unsafe {
                    list.set(block.as_ref().next_free.take());
                    dealloc(block.as_ptr().cast(), Self::layout(class));
                }
            }
        }
    }
}

unsafe fn poll_raw<F: Future<Output = ()>>(task: NonNull<Header>, cx: &mut Context<'_>) -> Poll<()> {
    // SAFETY: the caller has exclusive access and the block holds a Raw<F>; it does not move until it is
    // dropped in place, so pinning holds.
    unsafe { Pin::new_unchecked(&mut *(*task.cast::<Raw<F>>().as_ptr()).future).poll(cx) }
}

unsafe fn drop_raw<F>(task: NonNull<Header>) {
    // SAFETY: called once, by the owner of the block, which holds a Raw<F>.
    unsafe { ManuallyDrop::drop(&mut (*task.cast::<Raw<F>>().as_ptr()).future) }
}

fn pack(slot: u16, index: u32, generation: u32) -> u64 {
    debug_assert!(slot < 1 << (64 - INDEX_BITS - GENERATION_BITS));
    (slot as u64) << (INDEX_BITS + GENERATION_BITS) | (index as u64) << GENERATION_BITS | generation as u64
}

fn unpack(key: u64) -> (u16, u32, u32) {
    (
        (key >> (INDEX_BITS + GENERATION_BITS)) as u16,
        (key >> GENERATION_BITS) as u32 & ((1 << INDEX_BITS) - 1),
        key as u32 & ((1 << GENERATION_BITS) - 1),
    )
}

static WAKER: RawWakerVTable = RawWakerVTable::new(
    |data| RawWaker::new(data, &WAKER),
    |data| wake_key(data as usize as u64),
    |data| wake_key(data as usize as u64),
    |_| {},
);

fn make_waker(key: u64) -> Waker {
    // SAFETY: the data is a plain number, the functions above keep no reference and may run on any thread.
    unsafe { Waker::from_raw(RawWaker::new(key as usize as *const (), &WAKER)) }
}

/// Wakes the task that `key` names, on whatever thread its reactor runs.
pub(crate) fn wake_key(key: u64) {
    let (slot, index, generation) = unpack(key);
    reactor::with_slot(slot, |target| match target {
        reactor::Target::Local(reactor) => {
            reactor.tasks.wake(index, generation);
            if let reactor::Backend::Sim(host) = &reactor.backend {
                host.notice();
            }
        }
        reactor::Target::Remote(inbox) => inbox.wake(key),
        reactor::Target::Gone => {}
    });
}

/// A task that was spawned. Dropping the handle leaves the task running.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TaskHandle {
    key: u64,
}

impl TaskHandle {
    /// Drops the task's future now (at the latest when its current poll returns). Must be called on its reactor.
    pub fn abort(self) {
        let (slot, index, generation) = unpack(self.key);
        reactor::with_slot(slot, |target| {
            if let reactor::Target::Local(reactor) = target {
                reactor.tasks.abort(index, generation);
            }
        });
    }
    pub fn is_finished(self) -> bool {
        let (slot, index, generation) = unpack(self.key);
        reactor::with_slot(slot, |target| match target {
            reactor::Target::Local(reactor) => !reactor.tasks.is_alive(index, generation),
            _ => true,
        })
    }
}

/// Tasks that wait for the end of the turn.
struct Waiting {
    wakers: RefCell<Vec<Waker>>,
    /// Memory for those that come while the others are woken.
    spare: RefCell<Vec<Waker>>,
}

impl Waiting {
    fn new() -> Waiting {
        Waiting { wakers: RefCell::new(Vec::with_capacity(64)), spare: RefCell::new(Vec::with_capacity(64)) }
    }
    fn is_empty(&self) -> bool {
        self.wakers.borrow().is_empty()
    }
    fn wake_all(&self) {
        if self.is_empty() {
            return;
        }
        let mut woken = self.wakers.replace(self.spare.take());
        woken.drain(..).for_each(Waker::wake);
        self.spare.replace(woken);
    }
}

/// Runs `future` on the current reactor.
pub fn spawn<F: Future<Output = ()> + 'static>(future: F) -> TaskHandle {
    Reactor::current(|reactor| reactor.tasks.spawn(reactor.slot, Class::Foreground, future))
}

/// Runs work that is not on the I/O path: it waits for all that is ready on the reactor, and what it allocates counts apart
/// ([`background`]). Its steps between awaits should be short, 20 us or so, for a command that comes in waits for one.
pub fn spawn_background<F: Future<Output = ()> + 'static>(future: F) -> TaskHandle {
    Reactor::current(|reactor| reactor.tasks.spawn(reactor.slot, Class::Background, background(future)))
}

/// Lets every other task that is ready run first.
pub async fn yield_now() {
    let mut yielded = false;
    std::future::poll_fn(|cx| {
        if std::mem::replace(&mut yielded, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await
}

/// Pauses a task whose step lasts for too long: everything that is ready goes first. Who has much to do that nobody waits
/// for asks for this between two pieces of it. In the simulator, where steps take no time, now and then.
pub async fn breathe() {
    let is_long = |reactor: &Reactor| match reactor.backend {
        reactor::Backend::Uring(_) => reactor.now().since(reactor.tasks.began.get()) >= STEP_MAX,
        reactor::Backend::Sim(_) => reactor.random().is_multiple_of(8),
    };
    if Reactor::current(is_long) {
        yield_now().await;
    }
}

/// Waits until nothing else is ready on this reactor in this turn: all bytes that have arrived are handled.
/// This is what makes batching natural: whoever batches asks for the end of the turn, not for a timer.
pub async fn end_of_turn() {
    let mut waited = false;
    std::future::poll_fn(|cx| {
        if std::mem::replace(&mut waited, true) {
            return Poll::Ready(());
        }
        Reactor::current(|reactor| reactor.tasks.turn_end.wakers.borrow_mut().push(cx.waker().clone()));
        Poll::Pending
    })
    .await
}
