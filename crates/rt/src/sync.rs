//! Waiting between tasks of one reactor. Nothing here is shared between threads.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, Waker};

/// Wakes all waiters each time it is notified. Waiters re-check their condition.
#[derive(Default)]
pub struct Notify {
    generation: Cell<u64>,
    waiters: RefCell<Vec<Waker>>,
}

impl Notify {
    pub fn notify_all(&self) {
        self.generation.set(self.generation.get() + 1);
        // Woken tasks run later, so nobody pushes while we drain.
        self.waiters.borrow_mut().drain(..).for_each(Waker::wake);
    }
    /// Waits for the next notification after this call.
    pub async fn notified(&self) {
        let seen = self.generation.get();
        poll_fn(|cx| {
            if self.generation.get() != seen {
                return Poll::Ready(());
            }
            self.waiters.borrow_mut().push(cx.waker().clone());
            Poll::Pending
        })
        .await
    }
    /// Waits until `condition` holds; it is checked now and after each notification.
    pub async fn wait_until(&self, mut condition: impl FnMut() -> bool) {
        while !condition() {
            self.notified().await;
        }
    }
}

/// Happens once; whoever waits before or after is let through. Clones are the same event.
#[derive(Clone, Default)]
pub struct Event(Rc<(Cell<bool>, Notify)>);

impl Event {
    pub fn set(&self) {
        self.0.0.set(true);
        self.0.1.notify_all();
    }
    pub fn is_set(&self) -> bool {
        self.0.0.get()
    }
    pub async fn wait(&self) {
        self.0.1.wait_until(|| self.0.0.get()).await
    }
}

/// Bounded first-in first-out queue between tasks of one reactor.
pub struct Queue<T> {
    items: RefCell<VecDeque<T>>,
    capacity: usize,
    pushed: Notify,
    popped: Notify,
    closed: Cell<bool>,
}

impl<T> Queue<T> {
    pub fn new(capacity: usize) -> Queue<T> {
        Queue {
            items: RefCell::new(VecDeque::with_capacity(capacity.min(4096))),
            capacity,
            pushed: Notify::default(),
            popped: Notify::default(),
            closed: Cell::new(false),
        }
    }
    /// Hands the item back when the queue is full or closed.
    pub fn try_push(&self, item: T) -> Result<(), T> {
        if self.closed.get() || self.items.borrow().len() >= self.capacity {
            return Err(item);
        }
        self.items.borrow_mut().push_back(item);
        self.pushed.notify_all();
        Ok(())
    }
    /// Waits for room; hands the item back when the queue is closed.
    pub async fn push(&self, mut item: T) -> Result<(), T> {
        loop {
            match self.try_push(item) {
                Ok(()) => return Ok(()),
                Err(back) if self.closed.get() => return Err(back),
                Err(back) => item = back,
            }
            self.popped.notified().await;
        }
    }
    pub fn try_pop(&self) -> Option<T> {
        let item = self.items.borrow_mut().pop_front();
        if item.is_some() {
            self.popped.notify_all();
        }
        item
    }
    /// `None` once the queue is closed and empty.
    pub async fn pop(&self) -> Option<T> {
        loop {
            if let Some(item) = self.try_pop() {
                return Some(item);
            }
            if self.closed.get() {
                return None;
            }
            self.pushed.notified().await;
        }
    }
    pub fn close(&self) {
        self.closed.set(true);
        self.pushed.notify_all();
        self.popped.notify_all();
    }
    pub fn len(&self) -> usize {
        self.items.borrow().len()
    }
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Counted permits; waiters are served in order of arrival.
pub struct Semaphore {
    permits: Cell<usize>,
    next: Cell<u64>,
    /// Tickets of those who wait, in order; one that gives up takes its ticket out.
    tickets: RefCell<VecDeque<u64>>,
    changed: Notify,
}

/// Gives its permits back when dropped.
pub struct Permit {
    semaphore: Rc<Semaphore>,
    count: usize,
}

impl Semaphore {
    pub fn new(permits: usize) -> Rc<Semaphore> {
        Rc::new(Semaphore {
            permits: Cell::new(permits),
            next: Cell::new(0),
            tickets: RefCell::new(VecDeque::with_capacity(64)),
            changed: Notify::default(),
        })
    }
    pub fn available(&self) -> usize {
        self.permits.get()
    }
    pub fn try_acquire(self: &Rc<Self>, count: usize) -> Option<Permit> {
        if !self.tickets.borrow().is_empty() || self.permits.get() < count {
            return None;
        }
        Some(self.take(count))
    }
    fn take(self: &Rc<Self>, count: usize) -> Permit {
        self.permits.set(self.permits.get() - count);
        Permit { semaphore: self.clone(), count }
    }
    pub async fn acquire(self: &Rc<Self>, count: usize) -> Permit {
        if let Some(permit) = self.try_acquire(count) {
            return permit;
        }
        struct Ticket<'a>(&'a Semaphore, u64);
        impl Drop for Ticket<'_> {
            fn drop(&mut self) {
                self.0.tickets.borrow_mut().retain(|&t| t != self.1);
                self.0.changed.notify_all();
            }
        }
        let number = self.next.replace(self.next.get() + 1);
        self.tickets.borrow_mut().push_back(number);
        let ticket = Ticket(self, number);
        let first = || self.tickets.borrow().front() == Some(&number);
        self.changed.wait_until(|| first() && self.permits.get() >= count).await;
        let permit = self.take(count);
        drop(ticket);
        permit
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.semaphore.permits.set(self.semaphore.permits.get() + self.count);
        self.semaphore.changed.notify_all();
    }
}
