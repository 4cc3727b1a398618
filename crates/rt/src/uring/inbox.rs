//! How other threads reach a reactor: a queue of wakers, and a bell for when it sleeps.

use crate::reactor::Inbox;
use crossbeam_queue::ArrayQueue;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::sync::{Arc, Mutex};

/// Wakers that other threads may queue before they take the slow way.
const INBOX_MAX: usize = 4096;

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
    /// Empties the bell, so that it does not count up for ever.
    pub(super) fn clear_bell(&self) {
        let mut count = 0u64;
        // SAFETY: reads eight bytes into a live local; the descriptor does not block.
        unsafe { libc::read(self.event.as_raw_fd(), (&raw mut count).cast(), 8) };
    }
    pub(super) fn is_empty(&self) -> bool {
        self.wakes.is_empty() && !self.spilled.load(Ordering::Acquire)
    }

    /// Announces that the reactor is about to sleep: what it looks at after this call, a poke is heard for.
    pub(super) fn announce_sleep(&self) {
        self.sleeping.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }
    pub(super) fn announce_waking(&self) {
        self.sleeping.store(false, Ordering::Relaxed);
    }

    /// Wakes the tasks that other threads have asked to wake. True when there was one.
    pub(super) fn drain(&self) -> bool {
        let mut some = false;
        while let Some(key) = self.wakes.pop() {
            crate::task::wake_key(key);
            some = true;
        }
        // Cleared before the look, so that whoever spills after the look is seen next time.
        if self.spilled.load(Ordering::Relaxed) && self.spilled.swap(false, Ordering::Acquire) {
            let keys = std::mem::take(&mut *self.more.lock().expect("no panic while held"));
            some |= !keys.is_empty();
            keys.into_iter().for_each(crate::task::wake_key);
        }
        some
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

#[cfg(test)]
mod tests {
    use super::*;

    fn rings(shared: &Shared) -> u64 {
        let mut count = 0u64;
        // SAFETY: reads eight bytes into a live local; the descriptor does not block.
        let n = unsafe { libc::read(shared.event_fd(), (&raw mut count).cast(), 8) };
        if n == 8 { count } else { 0 }
    }

    #[test]
    fn the_bell_rings_once_for_one_sleep_and_never_for_a_reactor_that_is_awake() {
        let shared = Shared::new().expect("an eventfd");
        (0..10).for_each(|_| shared.poke());
        assert_eq!(rings(&shared), 0, "awake: no system call");
        shared.announce_sleep();
        (0..10).for_each(|_| shared.poke());
        assert_eq!(rings(&shared), 1);
        shared.announce_sleep();
        shared.announce_waking();
        shared.poke();
        assert_eq!(rings(&shared), 0);
    }
}
