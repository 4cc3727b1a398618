//! Waiting between tasks of one reactor. Nothing here is shared between threads.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

/// Wakes all waiters each time it is notified, in the order in which they came. Waiters re-check their condition.
#[derive(Default)]
pub struct Notify {
    generation: Cell<u64>,
    next: Cell<u64>,
    /// By number, which grows: in order of arrival. A wait that is dropped takes its entry out, so that
    /// waiting again and again for what never comes does not fill the memory.
    waiters: RefCell<Vec<(u64, Waker)>>,
}

impl Notify {
    pub fn notify_all(&self) {
        self.generation.set(self.generation.get() + 1);
        // Woken tasks run later, so nobody pushes while we drain.
        self.waiters.borrow_mut().drain(..).for_each(|(_, waker)| waker.wake());
    }
    pub fn has_waiters(&self) -> bool {
        !self.waiters.borrow().is_empty()
    }
    /// Waits for the next notification after this call.
    pub fn notified(&self) -> Notified<'_> {
        Notified { notify: self, seen: self.generation.get(), entry: None }
    }
    /// Waits until `condition` holds; it is checked now and after each notification.
    pub async fn wait_until(&self, mut condition: impl FnMut() -> bool) {
        while !condition() {
            self.notified().await;
        }
    }
}

/// What [`Notify::notified`] returns.
pub struct Notified<'a> {
    notify: &'a Notify,
    seen: u64,
    entry: Option<u64>,
}

impl Notified<'_> {
    fn place(&self, waiters: &[(u64, Waker)]) -> Option<usize> {
        self.entry.and_then(|number| waiters.binary_search_by_key(&number, |w| w.0).ok())
    }
}

impl Future for Notified<'_> {
    type Output = ();
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if self.notify.generation.get() != self.seen {
            return Poll::Ready(());
        }
        let mut waiters = self.notify.waiters.borrow_mut();
        match self.place(&waiters) {
            Some(place) => waiters[place].1.clone_from(cx.waker()),
            None => {
                let number = self.notify.next.get();
                self.notify.next.set(number + 1);
                waiters.push((number, cx.waker().clone()));
                self.entry = Some(number);
            }
        }
        Poll::Pending
    }
}

impl Drop for Notified<'_> {
    fn drop(&mut self) {
        if self.entry.is_some() && self.notify.generation.get() == self.seen {
            let mut waiters = self.notify.waiters.borrow_mut();
            if let Some(place) = self.place(&waiters) {
                waiters.remove(place);
            }
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

/// Counted permits; waiters are served in order of arrival, so that a large request is not overtaken for ever.
pub struct Semaphore {
    permits: Cell<usize>,
    next: Cell<u64>,
    /// By number, which grows. Only the first may take permits, and only it is woken.
    waiters: RefCell<VecDeque<Waiter>>,
}

struct Waiter {
    number: u64,
    count: usize,
    waker: Waker,
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
            waiters: RefCell::new(VecDeque::with_capacity(64)),
        })
    }
    pub fn available(&self) -> usize {
        self.permits.get()
    }
    pub fn try_acquire(self: &Rc<Self>, count: usize) -> Option<Permit> {
        if !self.waiters.borrow().is_empty() || self.permits.get() < count {
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
        let mut place = Place { semaphore: self, number: None };
        poll_fn(|cx| place.poll(count, cx)).await
    }
    fn wake_first(&self) {
        if let Some(first) = self.waiters.borrow().front()
            && first.count <= self.permits.get()
        {
            first.waker.wake_by_ref();
        }
    }
}

/// A place in the queue of a semaphore.
struct Place<'a> {
    semaphore: &'a Rc<Semaphore>,
    number: Option<u64>,
}

impl Place<'_> {
    fn poll(&mut self, count: usize, cx: &mut Context<'_>) -> Poll<Permit> {
        let semaphore = self.semaphore;
        let mut waiters = semaphore.waiters.borrow_mut();
        let Some(number) = self.number else {
            let number = semaphore.next.replace(semaphore.next.get() + 1);
            self.number = Some(number);
            waiters.push_back(Waiter { number, count, waker: cx.waker().clone() });
            return Poll::Pending;
        };
        if waiters.front().is_some_and(|w| w.number == number) && semaphore.permits.get() >= count {
            waiters.pop_front();
            drop(waiters);
            self.number = None;
            let permit = semaphore.take(count);
            semaphore.wake_first();
            return Poll::Ready(permit);
        }
        let place = waiters.binary_search_by_key(&number, |w| w.number).expect("waiting since it was pushed");
        waiters[place].waker.clone_from(cx.waker());
        Poll::Pending
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let Some(number) = self.number else { return };
        let mut waiters = self.semaphore.waiters.borrow_mut();
        if let Ok(place) = waiters.binary_search_by_key(&number, |w| w.number) {
            waiters.remove(place);
        }
        drop(waiters);
        // Whoever comes after us may be first now.
        self.semaphore.wake_first();
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.semaphore.permits.set(self.semaphore.permits.get() + self.count);
        self.semaphore.wake_first();
    }
}
