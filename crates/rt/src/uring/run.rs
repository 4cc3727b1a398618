//! Starting reactors and running their turns.

use super::driver::Driver;
use super::inbox::Shared;
use super::send::ZeroCopy;
use super::signals;
use crate::buf::{BufConfig, Pool};
use crate::reactor::{Backend, Inbox, Reactor, ReactorId, release_slot, reserve_slot};
use peristyle_base::{Duration, Instant};
use std::cell::Cell;
use std::future::Future;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

/// Sends below this are copied: measured, see docs/measuring.md.
const ZERO_COPY_MIN_BYTES: usize = 256 << 10;
/// Tasks polled in one turn before the ring is looked at again.
const TURN_TASKS_MAX: usize = 256;

/// What a reactor does when it finds nothing to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum PollMode {
    /// Looks again at once, for ever: the lowest latency, one core each.
    Busy,
    /// Looks again for [`RuntimeConfig::spin`] after the last activity, then sleeps.
    #[default]
    Adaptive,
    /// Sleeps at once.
    Sleep,
}

/// How sockets receive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Receive {
    /// By a multishot receive into buffers that the reactor provides, and by calls where large payload is
    /// expected: each connection as its reader asks.
    #[default]
    Ring,
    /// By calls only, when a multishot poll has said that something is there.
    Calls,
}

#[derive(Clone, Debug)]
pub struct RuntimeConfig {
    pub reactors: usize,
    /// The core of each reactor, in order; unpinned when `None`.
    pub cores: Option<Vec<usize>>,
    pub poll: PollMode,
    /// How long [`PollMode::Adaptive`] looks before it sleeps.
    pub spin: Duration,
    /// Buffers of each reactor.
    pub buffers: BufConfig,
    pub receive: Receive,
    /// From 256 KiB on unless said otherwise.
    pub zero_copy: ZeroCopy,
    /// SIGINT and SIGTERM complete [`shutdown_requested`](crate::shutdown_requested); a second one kills.
    pub signals: bool,
}

impl Default for RuntimeConfig {
    fn default() -> Self {
        RuntimeConfig {
            reactors: 1,
            cores: None,
            poll: PollMode::default(),
            spin: Duration::from_micros(50),
            buffers: BufConfig::default(),
            receive: Receive::default(),
            zero_copy: ZeroCopy::From(ZERO_COPY_MIN_BYTES),
            signals: false,
        }
    }
}

impl RuntimeConfig {
    /// One reactor with few buffers that leaves the core alone when it waits: for tests and tools.
    pub fn small() -> RuntimeConfig {
        RuntimeConfig { buffers: BufConfig::small(), ..RuntimeConfig::default() }
    }
}

#[derive(Debug)]
pub enum RuntimeError {
    /// A reactor's ring or thread could not be made (errno).
    Start { reactor: usize, error: io::Error },
    /// A reactor could not be pinned to this core.
    Pin { reactor: usize, core: usize },
    /// A task of this reactor panicked.
    Panicked { reactor: usize },
}

impl std::fmt::Display for RuntimeError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            RuntimeError::Start { reactor, error } => write!(f, "reactor {reactor} could not start: {error}"),
            RuntimeError::Pin { reactor, core } => {
                write!(f, "reactor {reactor} could not be pinned to core {core}")
            }
            RuntimeError::Panicked { reactor } => write!(f, "a task of reactor {reactor} panicked"),
        }
    }
}
impl std::error::Error for RuntimeError {}

/// What the reactors of one runtime share.
struct Runtime {
    /// Main futures that have not ended, and which have.
    running: AtomicUsize,
    ended: Vec<AtomicBool>,
    stop: AtomicBool,
    inboxes: Vec<OnceLock<Arc<Shared>>>,
    signals: bool,
}

impl Runtime {
    fn new(reactors: usize, signals: bool) -> Arc<Runtime> {
        Arc::new(Runtime {
            running: AtomicUsize::new(reactors),
            ended: (0..reactors).map(|_| AtomicBool::new(false)).collect(),
            stop: AtomicBool::new(false),
            inboxes: (0..reactors).map(|_| OnceLock::new()).collect(),
            signals,
        })
    }
    fn stop_asked(&self) -> bool {
        self.stop.load(Ordering::Relaxed) || (self.signals && signals::asked())
    }
    fn ask_to_stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
        self.poke_all();
    }
    /// Also called for a reactor that panicked or never started; counts once.
    fn main_ended(&self, reactor: usize) {
        if self.ended[reactor].swap(true, Ordering::AcqRel) {
            return;
        }
        if self.running.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.poke_all();
        }
    }
    fn poke_all(&self) {
        self.inboxes.iter().filter_map(OnceLock::get).for_each(|inbox| inbox.poke());
    }
    fn all_ended(&self) -> bool {
        self.running.load(Ordering::Acquire) == 0
    }
}

thread_local! {
    static RUNTIME: std::cell::RefCell<Option<Arc<Runtime>>> = const { std::cell::RefCell::new(None) };
}

/// Asks all reactors of the current runtime to stop, as a signal does.
pub fn request_shutdown() {
    RUNTIME.with(|runtime| {
        if let Some(runtime) = &*runtime.borrow() {
            runtime.ask_to_stop();
        }
    });
}

/// Runs `config.reactors` reactors, each on its own thread, the i-th with `start(seeds[i])`. Returns when all
/// of these futures have ended; other tasks are dropped then.
/// # Panics — when there are not as many seeds as reactors, or fewer cores.
pub fn run<S, F, Fut>(config: RuntimeConfig, seeds: Vec<S>, start: F) -> Result<(), RuntimeError>
where
    S: Send + 'static,
    F: Fn(S) -> Fut + Send + Sync + Clone + 'static,
    Fut: Future<Output = ()> + 'static,
{
    assert_eq!(seeds.len(), config.reactors, "one seed for each reactor");
    assert!(config.cores.as_ref().is_none_or(|c| c.len() >= config.reactors), "one core for each reactor");
    super::blocking::start();
    let _signals = config.signals.then(signals::Handling::start);
    let reactors = config.reactors;
    let runtime = Runtime::new(reactors, config.signals);
    let mut threads = Vec::new();
    let mut result = Ok(());
    for (i, seed) in seeds.into_iter().enumerate() {
        let (config, shared, start) = (config.clone(), runtime.clone(), start.clone());
        let body = move || {
            let result = run_thread(i, &config, &shared, move || start(seed));
            if result.is_err() {
                shared.main_ended(i);
                shared.ask_to_stop();
            }
            result
        };
        match std::thread::Builder::new().name(format!("reactor-{i}")).spawn(body) {
            Ok(thread) => threads.push(thread),
            Err(error) => {
                // Those that never start have ended.
                (i..reactors).for_each(|i| runtime.main_ended(i));
                runtime.ask_to_stop();
                result = Err(RuntimeError::Start { reactor: i, error });
                break;
            }
        }
    }
    for (reactor, thread) in threads.into_iter().enumerate() {
        let ended = thread.join().unwrap_or(Err(RuntimeError::Panicked { reactor }));
        result = result.and(ended);
    }
    result
}

fn run_thread<Fut: Future<Output = ()> + 'static>(
    i: usize,
    config: &RuntimeConfig,
    runtime: &Arc<Runtime>,
    start: impl FnOnce() -> Fut,
) -> Result<(), RuntimeError> {
    if let Some(cores) = &config.cores {
        pin(cores[i]).ok_or(RuntimeError::Pin { reactor: i, core: cores[i] })?;
    }
    let thread =
        Thread::start(i, config, runtime).map_err(|error| RuntimeError::Start { reactor: i, error })?;
    let turns = catch_unwind(AssertUnwindSafe(|| {
        thread.reactor.enter(|| {
            let ended = runtime.clone();
            let main = start();
            crate::spawn(async move {
                main.await;
                ended.main_ended(i);
            });
            thread.run_until(|| runtime.all_ended());
        })
    }));
    match turns {
        Ok(()) => Ok(()),
        Err(_) => Err(RuntimeError::Panicked { reactor: i }),
    }
}

/// Runs one future on a reactor of its own on this thread, and returns its result.
/// # Panics — when the system refuses a ring, or inside of another reactor.
pub fn block_on<T: 'static>(config: RuntimeConfig, future: impl Future<Output = T> + 'static) -> T {
    let _signals = config.signals.then(signals::Handling::start);
    assert!(Reactor::try_current(|_| ()).is_none(), "block_on inside of a reactor");
    super::blocking::start();
    let runtime = Runtime::new(1, config.signals);
    let thread = Thread::start(0, &config, &runtime).expect("io_uring is available");
    let result: Rc<Cell<Option<T>>> = Rc::default();
    let (into, ended) = (result.clone(), runtime.clone());
    thread.reactor.enter(|| {
        crate::spawn(async move {
            into.set(Some(future.await));
            ended.main_ended(0);
        });
        thread.run_until(|| runtime.all_ended());
    });
    drop(thread);
    result.take().expect("the future has ended")
}

/// Pins the calling thread to a core; false when the system refuses.
pub fn pin_thread(core: usize) -> bool {
    pin(core).is_some()
}

fn pin(core: usize) -> Option<()> {
    let mut set = rustix::thread::CpuSet::new();
    if core >= rustix::thread::CpuSet::MAX_CPU {
        return None;
    }
    set.set(core);
    rustix::thread::sched_setaffinity(None, &set).ok()
}

/// What comes after a turn.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Next {
    Turn,
    /// There was nothing to do; there may be soon.
    Look,
    Sleep,
}

/// When a reactor looks again, and when it sleeps.
struct Pace {
    poll: PollMode,
    spin: Duration,
    /// When the last turn that had something to do ended.
    active_at: Instant,
    /// When the last turn began, if it had something to do.
    busy_since: Option<Instant>,
}

impl Pace {
    fn new(poll: PollMode, spin: Duration) -> Pace {
        Pace { poll, spin, active_at: Instant::ZERO, busy_since: None }
    }

    /// A turn begins. For how many nanoseconds the one before was at work.
    fn begin(&mut self, now: Instant) -> u64 {
        self.busy_since.take().map_or(0, |since| {
            self.active_at = now;
            now.nanos_since(since)
        })
    }

    /// The turn that began at `now` has ended. How long it took, if it had something to do, is not known before the next.
    fn end(&mut self, now: Instant, active: bool) -> Next {
        if active {
            self.busy_since = Some(now);
            return Next::Turn;
        }
        match self.poll {
            PollMode::Busy => Next::Look,
            PollMode::Adaptive if now.since(self.active_at) < self.spin => Next::Look,
            PollMode::Adaptive | PollMode::Sleep => Next::Sleep,
        }
    }
}

/// A reactor on its thread. Dropping it drops its tasks and waits for what the kernel still works on.
struct Thread {
    reactor: Rc<Reactor>,
    driver: Rc<Driver>,
    runtime: Arc<Runtime>,
    poll: PollMode,
    spin: Duration,
    _bell: Option<signals::Bell>,
}

impl Thread {
    fn start(i: usize, config: &RuntimeConfig, runtime: &Arc<Runtime>) -> io::Result<Thread> {
        let shared = Shared::new()?;
        let bell = config.signals.then(|| signals::Bell::hang(shared.event_fd())).flatten();
        let pool = Pool::new(config.buffers);
        pool.set_bell(shared.clone());
        let driver = Driver::new(shared.clone(), &pool, config)?;
        let _ = runtime.inboxes[i].set(shared.clone());
        let mut seed = [0; 8];
        driver.fill_random(&mut seed);
        let slot = reserve_slot(shared);
        let backend = Backend::Uring(driver.clone());
        let reactor = Reactor::new(slot, ReactorId(i as u16), pool, backend, u64::from_ne_bytes(seed));
        reactor.register();
        RUNTIME.set(Some(runtime.clone()));
        Ok(Thread {
            reactor,
            driver,
            runtime: runtime.clone(),
            poll: config.poll,
            spin: config.spin,
            _bell: bell,
        })
    }

    fn run_until(&self, ended: impl Fn() -> bool) {
        let (reactor, driver) = (&*self.reactor, &*self.driver);
        let mut pace = Pace::new(self.poll, self.spin);
        while !ended() {
            let mut active = driver.reap();
            active |= driver.shared.drain();
            if self.runtime.stop_asked() && !reactor.shutdown.is_set() {
                reactor.shutdown.set();
            }
            let now = driver.now();
            reactor.busy_nanos.set(reactor.busy_nanos.get() + pace.begin(now));
            active |= reactor.timers.fire(now);
            for poller in reactor.pollers.borrow().iter() {
                active |= poller();
            }
            if reactor.pool.is_starving() {
                reactor.pool.collect_remote();
            }
            active |= reactor.tasks.has_ready();
            let more = reactor.tasks.run(reactor.slot, TURN_TASKS_MAX, || driver.now());
            driver.enter_if_needed();
            match pace.end(now, active || more) {
                Next::Turn => {}
                Next::Look => std::hint::spin_loop(),
                Next::Sleep => self.sleep(now, &ended),
            }
        }
    }

    fn sleep(&self, now: Instant, ended: &dyn Fn() -> bool) {
        let reactor = &*self.reactor;
        let limit = reactor.timers.next().map(|at| at.since(now));
        let stop = || ended() || (self.runtime.stop_asked() && !reactor.shutdown.is_set());
        self.driver.sleep(reactor, limit, &stop);
    }
}

impl Drop for Thread {
    fn drop(&mut self) {
        // Futures that are dropped may close sockets and cancel timers: they need their reactor.
        self.reactor.enter(|| {
            self.reactor.tasks.clear();
            self.driver.drain();
        });
        self.reactor.pollers.borrow_mut().clear();
        self.reactor.timers.clear();
        self.reactor.unregister();
        release_slot(self.reactor.slot);
        RUNTIME.set(None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reactor_looks_for_as_long_behind_a_long_turn_as_behind_a_short_one() {
        let at = |us: u64| Instant(us * 1000);
        let mut pace = Pace::new(PollMode::Adaptive, Duration::from_micros(50));
        assert_eq!((pace.begin(at(1000)), pace.end(at(1000), true)), (0, Next::Turn));
        // The turn took 80 us, longer than it looks again: from its end on counts.
        assert_eq!((pace.begin(at(1080)), pace.end(at(1080), false)), (80_000, Next::Look));
        assert_eq!((pace.begin(at(1129)), pace.end(at(1129), false)), (0, Next::Look));
        assert_eq!((pace.begin(at(1130)), pace.end(at(1130), false)), (0, Next::Sleep));
        for (poll, next) in [(PollMode::Busy, Next::Look), (PollMode::Sleep, Next::Sleep)] {
            assert_eq!(Pace::new(poll, Duration::from_micros(50)).end(at(1), false), next);
        }
    }
}
