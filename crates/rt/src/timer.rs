//! Timers of one reactor: a binary heap of deadlines. A dropped [`Sleep`] leaves its entry, which fires at nobody
//! and is swept out when there are many.

use crate::reactor::Reactor;
use peristyle_base::{Duration, Instant};
use std::cell::{Cell, RefCell};
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

pub(crate) struct Timers {
    heap: RefCell<BinaryHeap<Reverse<(Instant, u64, u32)>>>,
    slots: RefCell<Vec<Option<(u64, Waker)>>>,
    free: RefCell<Vec<u32>>,
    order: Cell<u64>,
}

/// Entries of dropped sleeps that are not worth a sweep.
const STALE_MIN: usize = 2048;

fn is_current(slots: &[Option<(u64, Waker)>], slot: u32, order: u64) -> bool {
    matches!(slots[slot as usize], Some((o, _)) if o == order)
}

impl Timers {
    pub(crate) fn new() -> Timers {
        Timers {
            heap: RefCell::new(BinaryHeap::with_capacity(4096)),
            slots: RefCell::new(Vec::with_capacity(4096)),
            free: RefCell::new(Vec::with_capacity(4096)),
            order: Cell::new(0),
        }
    }

    pub(crate) fn insert(&self, at: Instant, waker: Waker) -> (u32, u64) {
        let order = self.order.get();
        self.order.set(order + 1);
        let mut slots = self.slots.borrow_mut();
        let slot = self.free.borrow_mut().pop().unwrap_or_else(|| {
            slots.push(None);
            slots.len() as u32 - 1
        });
        slots[slot as usize] = Some((order, waker));
        let alive = slots.len() - self.free.borrow().len();
        let mut heap = self.heap.borrow_mut();
        heap.push(Reverse((at, order, slot)));
        // Dropped sleeps (deadlines that were met) leave their entries behind. Sweep when most are such, so
        // that the heap stays within a constant factor of the timers that are alive.
        if heap.len() > STALE_MIN + 2 * alive {
            heap.retain(|Reverse((_, order, slot))| is_current(&slots, *slot, *order));
        }
        (slot, order)
    }

    fn update(&self, slot: u32, order: u64, waker: &Waker) {
        if let Some((o, w)) = &mut self.slots.borrow_mut()[slot as usize]
            && *o == order
        {
            w.clone_from(waker);
        }
    }

    pub(crate) fn cancel(&self, slot: u32, order: u64) {
        let mut slots = self.slots.borrow_mut();
        if is_current(&slots, slot, order) {
            slots[slot as usize] = None;
            self.free.borrow_mut().push(slot);
        }
    }

    /// When the earliest timer is due.
    pub(crate) fn next(&self) -> Option<Instant> {
        let mut heap = self.heap.borrow_mut();
        let slots = self.slots.borrow();
        while let Some(Reverse((at, order, slot))) = heap.peek().copied() {
            if is_current(&slots, slot, order) {
                return Some(at);
            }
            heap.pop();
        }
        None
    }

    /// Wakes whoever waits for an instant up to `now`. True when somebody was woken.
    pub(crate) fn fire(&self, now: Instant) -> bool {
        let mut fired = false;
        loop {
            let waker = {
                let mut heap = self.heap.borrow_mut();
                match heap.peek() {
                    Some(Reverse((at, _, _))) if *at <= now => {}
                    _ => return fired,
                }
                let Reverse((_, order, slot)) = heap.pop().expect("just seen");
                let mut slots = self.slots.borrow_mut();
                if !is_current(&slots, slot, order) {
                    continue;
                }
                self.free.borrow_mut().push(slot);
                slots[slot as usize].take().expect("just seen").1
            };
            fired = true;
            waker.wake();
        }
    }

    #[cfg(test)]
    pub(crate) fn entries(&self) -> usize {
        self.heap.borrow().len()
    }

    pub(crate) fn clear(&self) {
        self.heap.borrow_mut().clear();
        self.slots.borrow_mut().clear();
        self.free.borrow_mut().clear();
    }
}

/// Completes at an instant of the current reactor's clock.
pub struct Sleep {
    at: Instant,
    key: Option<(u32, u64)>,
}

impl Future for Sleep {
    type Output = ();
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        Reactor::current(|reactor| {
            if reactor.now() >= self.at {
                return Poll::Ready(());
            }
            match self.key {
                Some((slot, order)) => reactor.timers.update(slot, order, cx.waker()),
                None => self.key = Some(reactor.timers.insert(self.at, cx.waker().clone())),
            }
            Poll::Pending
        })
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let Some((slot, order)) = self.key {
            Reactor::try_current(|reactor| {
                if (slot as usize) < reactor.timers.slots.borrow().len() {
                    reactor.timers.cancel(slot, order);
                }
            });
        }
    }
}

pub fn sleep_until(at: Instant) -> Sleep {
    Sleep { at, key: None }
}

pub fn sleep(duration: Duration) -> Sleep {
    sleep_until(crate::now() + duration)
}
