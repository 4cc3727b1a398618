//! One reactor: tasks, timers, buffers and a backend. The current one is a thread-local; in simulation many
//! reactors take turns on one thread.

use crate::buf::Pool;
use crate::sim;
use crate::task::Tasks;
use crate::timer::Timers;
use crate::uring;
use peristyle_base::Instant;
use std::cell::{Cell, RefCell};
use std::ptr::NonNull;
use std::rc::Rc;
use std::sync::{Arc, RwLock};

/// A reactor's number within its process (or simulated process).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ReactorId(pub u16);

#[derive(Clone)]
pub(crate) enum Backend {
    Uring(Rc<uring::Driver>),
    Sim(Rc<sim::Host>),
}

pub(crate) struct Reactor {
    /// Process-wide number that wakers carry.
    pub(crate) slot: u16,
    pub(crate) id: ReactorId,
    pub(crate) tasks: Tasks,
    pub(crate) timers: Timers,
    pub(crate) pool: Arc<Pool>,
    pub(crate) backend: Backend,
    rng: Cell<[u64; 4]>,
    /// Called once per turn; true when something was found (mesh ports).
    pub(crate) pollers: RefCell<Vec<Rc<dyn Fn() -> bool>>>,
    pub(crate) shutdown: crate::sync::Event,
    /// Time of turns that found something to do.
    pub(crate) busy_nanos: Cell<u64>,
}

/// How other threads reach a reactor: a bounded queue of wakers and a poke when it sleeps.
pub(crate) trait Inbox: Send + Sync {
    /// Wakes the task that `key` names.
    fn wake(&self, key: u64);
    /// Makes the reactor run a turn if it sleeps.
    fn poke(&self);
}

pub(crate) enum Target<'a> {
    Local(&'a Rc<Reactor>),
    Remote(&'a dyn Inbox),
    Gone,
}

const SLOTS_MAX: usize = 4096;

static INBOXES: RwLock<Vec<Option<Arc<dyn Inbox>>>> = RwLock::new(Vec::new());
/// Slots that simulated reactors use: any thread may use the same numbers, they never cross threads.
const SIM_SLOT_FIRST: usize = 1024;

thread_local! {
    static CURRENT: Cell<Option<NonNull<Reactor>>> = const { Cell::new(None) };
    static LOCAL: RefCell<Vec<Option<Rc<Reactor>>>> = const { RefCell::new(Vec::new()) };
}

pub(crate) fn with_slot<R>(slot: u16, f: impl FnOnce(Target<'_>) -> R) -> R {
    let local = LOCAL.with(|local| match local.try_borrow() {
        Ok(local) => local.get(slot as usize).and_then(Option::clone),
        Err(_) => None,
    });
    if let Some(reactor) = local {
        return f(Target::Local(&reactor));
    }
    let inbox = INBOXES.read().expect("no panic while held").get(slot as usize).and_then(Option::clone);
    match inbox {
        Some(inbox) => f(Target::Remote(&*inbox)),
        None => f(Target::Gone),
    }
}

/// Reserves a process-wide slot for a reactor on its own thread, reachable from other threads by `inbox`.
pub(crate) fn reserve_slot(inbox: Arc<dyn Inbox>) -> u16 {
    let mut inboxes = INBOXES.write().expect("no panic while held");
    let free = inboxes.iter().position(Option::is_none).unwrap_or(inboxes.len());
    assert!(free < SIM_SLOT_FIRST, "too many reactors in one process");
    if free == inboxes.len() {
        inboxes.push(None);
    }
    inboxes[free] = Some(inbox);
    free as u16
}

pub(crate) fn release_slot(slot: u16) {
    INBOXES.write().expect("no panic while held")[slot as usize] = None;
}

/// The lowest slot for simulated reactors that is free on this thread.
pub(crate) fn reserve_local_slot() -> u16 {
    LOCAL.with(|local| {
        let local = local.borrow();
        let slot = (SIM_SLOT_FIRST..SLOTS_MAX).find(|&s| local.get(s).is_none_or(Option::is_none));
        slot.expect("too many simulated reactors") as u16
    })
}

impl Reactor {
    pub(crate) fn new(slot: u16, id: ReactorId, pool: Arc<Pool>, backend: Backend, seed: u64) -> Rc<Reactor> {
        Rc::new(Reactor {
            slot,
            id,
            tasks: Tasks::new(),
            timers: Timers::new(),
            pool,
            backend,
            rng: Cell::new(seed_state(seed)),
            pollers: RefCell::new(Vec::new()),
            shutdown: crate::sync::Event::default(),
            busy_nanos: Cell::new(0),
        })
    }

    /// Makes the reactor known to wakers on this thread.
    pub(crate) fn register(self: &Rc<Self>) {
        LOCAL.with(|local| {
            let mut local = local.borrow_mut();
            if local.len() <= self.slot as usize {
                local.resize(self.slot as usize + 1, None);
            }
            local[self.slot as usize] = Some(self.clone());
        });
    }

    pub(crate) fn unregister(&self) {
        let me = LOCAL.with(|local| local.borrow_mut().get_mut(self.slot as usize).and_then(Option::take));
        drop(me);
    }

    /// Runs `f` with this reactor as the current one.
    pub(crate) fn enter<R>(self: &Rc<Self>, f: impl FnOnce() -> R) -> R {
        struct Restore(Option<NonNull<Reactor>>);
        impl Drop for Restore {
            fn drop(&mut self) {
                CURRENT.set(self.0);
            }
        }
        let _restore = Restore(CURRENT.replace(Some(NonNull::from(&**self))));
        f()
    }

    /// The reactor whose task is running.
    /// # Panics — outside of a reactor: a mistake of the caller.
    pub(crate) fn current<R>(f: impl FnOnce(&Reactor) -> R) -> R {
        Self::try_current(f).expect("called outside of a reactor")
    }

    pub(crate) fn try_current<R>(f: impl FnOnce(&Reactor) -> R) -> Option<R> {
        let current = CURRENT.get()?;
        // SAFETY: `enter` holds the Rc for as long as CURRENT is set to it, and restores on every way out.
        Some(f(unsafe { current.as_ref() }))
    }

    pub(crate) fn now(&self) -> Instant {
        match &self.backend {
            Backend::Uring(driver) => driver.now(),
            Backend::Sim(host) => host.now(),
        }
    }

    /// xoshiro256++ (Blackman, Vigna 2019): fast, and the same on every machine for one seed.
    pub(crate) fn random(&self) -> u64 {
        let [mut a, mut b, mut c, mut d] = self.rng.get();
        let result = a.wrapping_add(d).rotate_left(23).wrapping_add(a);
        let t = b << 17;
        c ^= a;
        d ^= b;
        b ^= c;
        a ^= d;
        c ^= t;
        d = d.rotate_left(45);
        self.rng.set([a, b, c, d]);
        result
    }
}

fn seed_state(seed: u64) -> [u64; 4] {
    let mut x = seed;
    std::array::from_fn(|_| {
        x = x.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (x ^ x >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ z >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ z >> 31
    })
}

pub(crate) use Backend as BackendKind;

/// The current reactor's backend.
pub(crate) fn backend_kind() -> Backend {
    Reactor::current(|reactor| reactor.backend.clone())
}

pub(crate) fn inbox_of_current() -> Arc<dyn Inbox> {
    Reactor::current(|reactor| match &reactor.backend {
        Backend::Uring(driver) => driver.inbox(),
        Backend::Sim(host) => host.inbox(),
    })
}

/// The current reactor's monotonic clock.
pub fn now() -> Instant {
    Reactor::current(Reactor::now)
}

/// As [`now`], also where there may be no reactor any more: in a `Drop`.
pub fn try_now() -> Option<Instant> {
    Reactor::try_current(Reactor::now)
}

/// Wall clock, nanoseconds since 1970: for people's eyes only, never for decisions.
pub fn wall_nanos() -> u64 {
    Reactor::current(|reactor| match &reactor.backend {
        Backend::Uring(driver) => driver.wall_nanos(),
        Backend::Sim(host) => host.wall_nanos(),
    })
}

/// Time in which the current reactor had something to do since its start: beside the clock, its load. Polling
/// without a find does not count. Zero in simulation, where work takes no time.
pub fn busy_nanos() -> u64 {
    Reactor::current(|reactor| reactor.busy_nanos.get())
}

pub fn reactor_id() -> ReactorId {
    Reactor::current(|reactor| reactor.id)
}

/// A pseudo-random number from the reactor's generator: seeded by the operating system, or by the simulator.
pub fn random_u64() -> u64 {
    Reactor::current(Reactor::random)
}

/// Uniform in 0..bound.
/// # Panics — when `bound` is zero.
pub fn random_below(bound: u64) -> u64 {
    assert!(bound > 0);
    ((random_u64() as u128 * bound as u128) >> 64) as u64
}

/// Fills `bytes` with random bytes fit for secrets (nonces): from the operating system, or the simulator's seed.
pub fn fill_random(bytes: &mut [u8]) {
    Reactor::current(|reactor| match &reactor.backend {
        Backend::Uring(driver) => driver.fill_random(bytes),
        Backend::Sim(_) => {
            for chunk in bytes.chunks_mut(8) {
                chunk.copy_from_slice(&reactor.random().to_le_bytes()[..chunk.len()]);
            }
        }
    })
}

/// Runs a blocking closure (an embedded database's commit) off the reactor and returns its result. In
/// simulation it runs at once, and the result arrives after simulated time.
pub async fn blocking<T: Send + 'static>(f: impl FnOnce() -> T + Send + 'static) -> T {
    match backend_kind() {
        BackendKind::Uring(driver) => driver.blocking(f).await,
        BackendKind::Sim(host) => host.blocking(f).await,
    }
}

/// Completes when the process is asked to stop (SIGINT, SIGTERM, or the runtime's own stop).
pub async fn shutdown_requested() {
    let event = Reactor::current(|reactor| reactor.shutdown.clone());
    event.wait().await
}
