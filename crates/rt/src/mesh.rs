//! Messages between the reactors of one process: one bounded single-producer single-consumer ring for each
//! ordered pair, no locks. A sleeping reactor is poked; a polling one finds the message in its next turn.

use crate::reactor::{self, Inbox, Reactor, ReactorId};
use crate::sync::Notify;
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::{Arc, OnceLock};

/// Wakes the target reactor's port; set when that port is attached to its reactor.
type Poke = Arc<OnceLock<Arc<dyn Inbox>>>;

/// One reactor's end of a mesh, before it is attached on its own thread. `Send`.
pub struct PortSeed<T> {
    me: ReactorId,
    out: Vec<(rtrb::Producer<T>, Poke)>,
    inbound: Vec<rtrb::Consumer<T>>,
    poke: Poke,
}

/// Rings of `capacity` messages between each two of `reactors`; one seed per reactor, in order. A reactor may
/// send to itself.
pub fn mesh<T: Send + 'static>(reactors: usize, capacity: usize) -> Vec<PortSeed<T>> {
    let pokes: Vec<Poke> = (0..reactors).map(|_| Poke::default()).collect();
    let mut seeds: Vec<PortSeed<T>> = (0..reactors)
        .map(|i| PortSeed {
            me: ReactorId(i as u16),
            out: Vec::new(),
            inbound: Vec::new(),
            poke: pokes[i].clone(),
        })
        .collect();
    for from in 0..reactors {
        for (to, poke) in pokes.iter().enumerate() {
            let (producer, consumer) = rtrb::RingBuffer::new(capacity);
            seeds[from].out.push((producer, poke.clone()));
            seeds[to].inbound.push(consumer);
        }
    }
    seeds
}

/// One reactor's end of a mesh. Clones are the same end.
pub struct Port<T> {
    inner: Rc<Inner<T>>,
}

impl<T> Clone for Port<T> {
    fn clone(&self) -> Self {
        Port { inner: self.inner.clone() }
    }
}

struct Inner<T> {
    me: ReactorId,
    out: Vec<(RefCell<rtrb::Producer<T>>, Poke)>,
    inbound: Vec<RefCell<rtrb::Consumer<T>>>,
    next: Cell<usize>,
    arrived: Notify,
}

impl<T: Send + 'static> PortSeed<T> {
    /// Attaches this end to the current reactor.
    pub fn attach(self) -> Port<T> {
        let inner = Rc::new(Inner {
            me: self.me,
            out: self.out.into_iter().map(|(p, poke)| (RefCell::new(p), poke)).collect(),
            inbound: self.inbound.into_iter().map(RefCell::new).collect(),
            next: Cell::new(0),
            arrived: Notify::default(),
        });
        let polled = Rc::downgrade(&inner);
        Reactor::current(|r| {
            r.pollers.borrow_mut().push(Rc::new(move || polled.upgrade().is_some_and(|inner| inner.poll())));
        });
        let _ = self.poke.set(reactor::inbox_of_current());
        Port { inner }
    }
}

impl<T> Inner<T> {
    /// Wakes who waits when something has arrived. Without anybody who waits it is no reason to stay awake:
    /// whoever comes to receive looks into the rings first.
    fn poll(&self) -> bool {
        let some = self.arrived.has_waiters() && self.inbound.iter().any(|ring| !ring.borrow().is_empty());
        if some {
            self.arrived.notify_all();
        }
        some
    }
}

impl<T: Send + 'static> Port<T> {
    pub fn me(&self) -> ReactorId {
        self.inner.me
    }
    pub fn reactors(&self) -> usize {
        self.inner.out.len()
    }
    /// Hands the message back when the ring is full.
    pub fn try_send(&self, to: ReactorId, message: T) -> Result<(), T> {
        let (ring, poke) = &self.inner.out[to.0 as usize];
        match ring.borrow_mut().push(message) {
            Ok(()) => {
                if let Some(inbox) = poke.get() {
                    inbox.poke();
                }
                Ok(())
            }
            Err(rtrb::PushError::Full(message)) => Err(message),
        }
    }
    /// Waits for room.
    pub async fn send(&self, to: ReactorId, mut message: T) {
        loop {
            match self.try_send(to, message) {
                Ok(()) => return,
                Err(back) => message = back,
            }
            crate::sleep(std::time::Duration::from_micros(5)).await;
        }
    }
    pub fn try_recv(&self) -> Option<(ReactorId, T)> {
        let count = self.inner.inbound.len();
        let start = self.inner.next.get();
        for step in 0..count {
            let from = (start + step) % count;
            if let Ok(message) = self.inner.inbound[from].borrow_mut().pop() {
                self.inner.next.set(from + 1);
                return Some((ReactorId(from as u16), message));
            }
        }
        None
    }
    /// The next message from anyone, fairly.
    pub async fn recv(&self) -> (ReactorId, T) {
        loop {
            if let Some(found) = self.try_recv() {
                return found;
            }
            self.inner.arrived.notified().await;
        }
    }
}
