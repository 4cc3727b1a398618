//! SIGINT and SIGTERM ask the runtime to stop; a second one of them ends the process at once.

use std::os::fd::RawFd;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};

const REACTORS_MAX: usize = 64;

static ASKED: AtomicBool = AtomicBool::new(false);
/// Bells of the reactors that want to know. A handler may only do what is safe at any moment: it stores a flag
/// and writes to descriptors.
static BELLS: [AtomicI32; REACTORS_MAX] = [const { AtomicI32::new(-1) }; REACTORS_MAX];

extern "C" fn handle(_signal: libc::c_int) {
    ASKED.store(true, Ordering::SeqCst);
    // SAFETY: reads the thread's errno, which the interrupted code must find unchanged.
    let errno = unsafe { *libc::__errno_location() };
    for bell in &BELLS {
        let fd = bell.load(Ordering::SeqCst);
        if fd >= 0 {
            let one = 1u64;
            // SAFETY: write is safe in a handler and reads eight bytes of a live local.
            unsafe { libc::write(fd, (&raw const one).cast(), 8) };
        }
    }
    // SAFETY: as above.
    unsafe { *libc::__errno_location() = errno };
}

/// Handles the two signals until dropped.
pub(super) struct Handling {
    before: [(libc::c_int, libc::sigaction); 2],
}

impl Handling {
    pub(super) fn start() -> Handling {
        ASKED.store(false, Ordering::SeqCst);
        let before = [libc::SIGINT, libc::SIGTERM].map(|signal| {
            // SAFETY: zero is a valid sigaction; the handler above does only what a handler may do; both
            // pointers are to live locals.
            unsafe {
                let mut action: libc::sigaction = std::mem::zeroed();
                action.sa_sigaction = handle as *const () as usize;
                action.sa_flags = libc::SA_RESTART | libc::SA_RESETHAND;
                let mut before: libc::sigaction = std::mem::zeroed();
                libc::sigaction(signal, &action, &mut before);
                (signal, before)
            }
        });
        Handling { before }
    }
}

impl Drop for Handling {
    fn drop(&mut self) {
        for (signal, before) in &self.before {
            // SAFETY: restores what was there before.
            unsafe { libc::sigaction(*signal, before, std::ptr::null_mut()) };
        }
    }
}

/// For programs without a reactor: SIGINT and SIGTERM are told, and end nothing, until this is dropped. A second one of
/// them ends the process.
pub struct StopSignals(#[expect(dead_code, reason = "held")] Handling);

impl StopSignals {
    pub fn watch() -> StopSignals {
        StopSignals(Handling::start())
    }
    /// One has come.
    pub fn asked(&self) -> bool {
        asked()
    }
}

pub(super) fn asked() -> bool {
    ASKED.load(Ordering::Relaxed)
}

/// Rings the bell `fd` at each signal until dropped; drop it before the descriptor.
pub(super) struct Bell(usize);

impl Bell {
    pub(super) fn hang(fd: RawFd) -> Option<Bell> {
        let place = BELLS
            .iter()
            .position(|bell| bell.compare_exchange(-1, fd, Ordering::SeqCst, Ordering::SeqCst).is_ok())?;
        Some(Bell(place))
    }
}

impl Drop for Bell {
    fn drop(&mut self) {
        BELLS[self.0].store(-1, Ordering::SeqCst);
    }
}
