//! Volumes over NBD: listeners, the table of exports, and the connections of this reactor.

mod outbox;
mod session;

use crate::LocalBoxed;
use crate::reactor::Node;
use crate::volume::VolumeSpec;
use peristyle_nbd::Limits;
use peristyle_rt::buf::CLASS_BYTES;
use peristyle_rt::sync::{Event, Notify, Permit, Semaphore};
use peristyle_rt::{Addr, Duration, Either, Listener, NetError, select};
use session::Session;
use std::cell::{Cell, OnceCell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

/// What parts in flight may hold of the reactor's buffers: one third of each size, the rest is the shards' and the
/// other front ends'. Otherwise writes that wait could hold the very buffers that the shard needs to serve them.
/// By size, since a shard that needs a large buffer is not helped by many small ones.
const BUDGET_SHARE: usize = 3;
/// Pause after an accept that failed (no file descriptors left, say).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How one reactor serves NBD.
#[derive(Clone, Debug)]
pub struct NbdConfig {
    pub listen: Vec<Addr>,
    /// Other reactors bind the same TCP addresses; the system spreads connections over them.
    pub shared: bool,
    /// Connections of this reactor at most; further ones are closed at once.
    pub connections_max: usize,
    /// `payload_bytes_max` is lowered to what the reactor's buffers allow.
    pub limits: Limits,
}

impl NbdConfig {
    pub fn new(listen: Vec<Addr>) -> NbdConfig {
        NbdConfig { listen, shared: false, connections_max: 64, limits: Limits::default() }
    }
}

/// A connection, as the rest of the reactor knows it.
#[derive(Default)]
pub(super) struct Link {
    /// It is closed, or shall answer what is in flight and then close.
    pub over: Event,
    pub spec: RefCell<Option<Rc<VolumeSpec>>>,
}

/// What this reactor's part of the NBD server knows.
#[derive(Default)]
pub struct NbdState {
    exports: RefCell<BTreeMap<String, Rc<VolumeSpec>>>,
    links: RefCell<BTreeMap<u64, Rc<Link>>>,
    next_link: Cell<u64>,
    left: Notify,
    stopping: Event,
    budget: OnceCell<Budget>,
}

impl NbdState {
    /// By name; `""` is the volume with the lowest namespace ID.
    fn find(&self, name: &str) -> Option<Rc<VolumeSpec>> {
        let exports = self.exports.borrow();
        match name {
            "" => exports.values().min_by_key(|spec| spec.nsid).cloned(),
            _ => exports.get(name).cloned(),
        }
    }
    pub fn connections(&self) -> usize {
        self.links.borrow().len()
    }
    fn enter(&self) -> (u64, Rc<Link>) {
        let id = self.next_link.replace(self.next_link.get() + 1);
        let link = Rc::new(Link::default());
        self.links.borrow_mut().insert(id, link.clone());
        (id, link)
    }
    fn leave(&self, id: u64) {
        self.links.borrow_mut().remove(&id);
        self.left.notify_all();
    }
}

/// Permits for buffers, by size class.
#[derive(Clone)]
pub(super) struct Budget(Rc<[Rc<Semaphore>]>);

impl Budget {
    /// Made when the reactor begins to listen, while its buffers are free.
    fn of_free_buffers() -> Budget {
        let free = peristyle_rt::buf::free_counts();
        Budget(free.into_iter().map(|count| Semaphore::new(count / BUDGET_SHARE)).collect())
    }
    fn class(bytes: usize) -> usize {
        CLASS_BYTES.iter().position(|&class| class >= bytes).expect("a part fits a buffer")
    }
    /// The right to hold a buffer of so many bytes, in order of arrival.
    pub async fn acquire(&self, bytes: usize) -> Permit {
        self.0[Self::class(bytes)].acquire(1).await
    }
    /// One request must fit as a whole, for its answer begins when all its parts have been read; and one that
    /// begins within a part has one part more.
    fn request_bytes_max(&self, part_bytes: u32) -> u64 {
        let parts = self.0[Self::class(part_bytes as usize)].available().saturating_sub(1);
        parts as u64 * u64::from(part_bytes)
    }
}

impl Node {
    /// The volumes that this reactor exports from now on. Connections to one that is gone, or is another now, are
    /// answered what is in flight and closed. One that has only another size keeps its connections: the protocol has no
    /// word for it, so they know the old size until they connect again.
    pub fn set_exports(&self, specs: impl IntoIterator<Item = VolumeSpec>) {
        let mut exports = self.nbd.exports.borrow_mut();
        *exports = specs.into_iter().map(|spec| (spec.name.clone(), Rc::new(spec))).collect();
        for link in self.nbd.links.borrow().values() {
            let is_it =
                |was: &VolumeSpec, now: &VolumeSpec| VolumeSpec { bytes: now.bytes, ..was.clone() } == *now;
            let gone = |was: &Rc<VolumeSpec>| exports.get(&was.name).is_none_or(|now| !is_it(was, now));
            if link.spec.borrow().as_ref().is_some_and(gone) {
                link.over.set();
            }
        }
    }

    /// Listens, and returns where: the ports that the system chose take the place of port 0.
    pub fn start_nbd(self: &Rc<Self>, config: NbdConfig) -> LocalBoxed<'_, Result<Vec<Addr>, NetError>> {
        Box::pin(async move {
            let budget = self.nbd.budget.get_or_init(Budget::of_free_buffers).clone();
            let mut limits = config.limits;
            let bytes_max = budget.request_bytes_max(limits.part_bytes_max);
            assert!(bytes_max > 0, "the reactor has too few buffers for a part");
            limits.payload_bytes_max = u64::from(limits.payload_bytes_max).min(bytes_max) as u32;
            let mut listeners = Vec::new();
            for addr in &config.listen {
                let shared = config.shared && matches!(addr, Addr::Tcp(_));
                listeners.push(Listener::bind(addr, shared).await?);
            }
            let addrs = listeners.iter().map(Listener::local_addr).collect();
            for listener in listeners {
                let accept =
                    self.clone().accept_nbd(listener, config.connections_max, limits, budget.clone());
                peristyle_rt::spawn(accept);
            }
            Ok(addrs)
        })
    }

    async fn accept_nbd(
        self: Rc<Self>,
        listener: Listener,
        connections_max: usize,
        limits: Limits,
        budget: Budget,
    ) {
        let stopping = self.nbd.stopping.clone();
        loop {
            let stream = match select(stopping.wait(), listener.accept()).await {
                Either::Left(()) => return,
                Either::Right(Ok(stream)) => stream,
                Either::Right(Err(_)) => {
                    peristyle_rt::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            if self.nbd.connections() < connections_max {
                let (id, link) = self.nbd.enter();
                let session = Session::new(self.clone(), link, limits, budget.clone());
                peristyle_rt::spawn(session.serve(id, stream));
            }
        }
    }

    /// Accepts no more, answers what is in flight, and returns when all connections of this reactor are closed. To
    /// be called before [`Node::stop`].
    pub async fn stop_nbd(&self) {
        self.nbd.stopping.set();
        self.nbd.links.borrow().values().for_each(|link| link.over.set());
        self.nbd.left.wait_until(|| self.nbd.links.borrow().is_empty()).await;
    }
}
