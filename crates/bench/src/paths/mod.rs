//! A host with a path to every node of a cluster, as native multipath has them: a command goes to the node where its namespace's
//! ANA group is optimized, and to another when that one says so, when its connection ends, or when it is silent.
//!
//! A write whose outcome is not known is repeated. On another path this is safe: a node serves a shard only when the one that
//! had it before can do nothing to it any more. On the same path, whose node was merely slow, nothing keeps the first copy
//! from being done behind the second one, and behind what is written then: [`Done::may_come_again`].
//!
//! Read first: [`Paths::run`].

mod ana;
mod path;

pub use ana::Group;

use crate::host::{HostError, HostOptions, Queue};
use crate::session::{Namespace, SessionError};
use path::{Link, Path};
use peristyle_nvme::wire::log_page::AnaState;
use peristyle_nvme::wire::{Status, get_u32, identify};
use peristyle_rt::sync::{Event, Notify};
use peristyle_rt::{Addr, Buf, Duration, Instant, View, now, sleep, timeout};
use std::cell::{Cell, RefCell};
use std::rc::Rc;

/// Paths of one host: a bit of a word for each.
pub const PATHS_MAX: usize = 64;
/// Between two rounds of questions that nobody could answer.
const ASK_PAUSE: Duration = Duration::from_millis(20);
/// ANAGRPID in Identify Namespace. NVM 4.1.5.1.
const ANAGRPID_AT: usize = 92;

/// To whom paths lead, and when one is given up.
#[derive(Clone, Debug)]
pub struct PathsOptions {
    /// Host and subsystem, the same on all paths.
    pub host: HostOptions,
    /// One of each node; 1 to [`PATHS_MAX`].
    pub portals: Vec<Addr>,
    /// I/O queues of each controller, at least one.
    pub io_queues: u16,
    /// A path that does not answer a command within this is given up, and connected anew.
    pub answer_limit: Duration,
    /// For all connections of a controller.
    pub connect_limit: Duration,
    /// Before a node is tried again.
    pub connect_pause: Duration,
    /// A command that no path has taken after this fails.
    pub give_up: Duration,
}

impl PathsOptions {
    pub fn new(host: HostOptions, portals: Vec<Addr>) -> PathsOptions {
        PathsOptions {
            host,
            portals,
            io_queues: 1,
            answer_limit: Duration::from_millis(500),
            connect_limit: Duration::from_secs(1),
            connect_pause: Duration::from_millis(20),
            give_up: Duration::from_secs(60),
        }
    }
}

/// Why a command was not done, as far as the host knows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PathError {
    /// The target's answer, on whichever path.
    Status(Status),
    /// For so long no path took it.
    NoPath(Duration),
}

impl std::fmt::Display for PathError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            PathError::Status(status) => write!(f, "the command failed: {status:?}"),
            PathError::NoPath(waited) => write!(f, "no path took the command for {waited:?}"),
        }
    }
}
impl std::error::Error for PathError {}

/// A command that was done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Done<T> {
    pub value: T,
    /// The portal of the path that did it, by its place in the list.
    pub path: usize,
    /// Times that it was sent.
    pub tries: u32,
    /// An earlier try of unknown outcome was on the same path: nothing keeps its node from doing that one later.
    pub may_come_again: bool,
}

/// A host with its paths. What runs commands has a clone of the pointer.
pub struct Paths {
    options: PathsOptions,
    paths: Vec<Path>,
    /// A path may be usable that was not before.
    changed: Notify,
    closed: Event,
    /// Logs that were read, over all paths.
    looks: Cell<u64>,
    notices: Cell<u64>,
    /// Groups by namespace, as Identify told them.
    identified: RefCell<Vec<(u32, u32)>>,
}

impl Paths {
    /// Begins to connect, and goes on with it until [`Paths::close`].
    /// # Panics — when there is no portal or more than [`PATHS_MAX`], or no I/O queue: the caller has checked that.
    pub fn start(options: PathsOptions) -> Rc<Paths> {
        assert!((1..=PATHS_MAX).contains(&options.portals.len()), "1 to {PATHS_MAX} portals");
        assert!(options.io_queues > 0, "an I/O queue");
        let paths = Rc::new(Paths {
            paths: options.portals.iter().cloned().map(Path::new).collect(),
            options,
            changed: Notify::default(),
            closed: Event::default(),
            looks: Cell::new(0),
            notices: Cell::new(0),
            identified: RefCell::default(),
        });
        for at in 0..paths.paths.len() {
            peristyle_rt::spawn(paths.clone().keep_path(at));
        }
        paths
    }

    /// Ends all connections; commands in flight find no path any more.
    pub fn close(&self) {
        self.closed.set();
        for (at, path) in self.paths.iter().enumerate() {
            if let Some(link) = path.link() {
                self.lose(at, &link);
            }
        }
        self.changed.notify_all();
    }

    /// A namespace as Identify tells it on whichever path is there first. Its ANA group is remembered.
    pub async fn namespace(&self, nsid: u32) -> Result<Namespace, SessionError> {
        let deadline = now() + self.options.give_up;
        loop {
            let identify = async |admin: &Queue| admin.identify(identify::cns::NAMESPACE, nsid).await;
            match self.ask(identify).await {
                Ok(page) => {
                    self.remember(nsid, get_u32(&page, ANAGRPID_AT));
                    return Namespace::of_page(nsid, &page);
                }
                Err(error) if now() >= deadline || matches!(error, HostError::Status(_)) => {
                    return Err(error.into());
                }
                Err(_) => sleep(ASK_PAUSE).await,
            }
        }
    }

    fn remember(&self, nsid: u32, group: u32) {
        let mut identified = self.identified.borrow_mut();
        match identified.iter_mut().find(|known| known.0 == nsid) {
            Some(known) => known.1 = group,
            None => identified.push((nsid, group)),
        }
    }

    fn identified(&self, nsid: u32) -> Option<u32> {
        self.identified.borrow().iter().find(|known| known.0 == nsid).map(|known| known.1)
    }

    /// Runs one command for a namespace on the path that is best for it, and on others until one has done it. It is called
    /// anew for each try. A status that is not about the path is the answer.
    pub async fn run<T>(
        &self,
        nsid: u32,
        command: impl AsyncFn(&Queue) -> Result<T, HostError>,
    ) -> Result<Done<T>, PathError> {
        let began = now();
        // Paths on which a try may have been done or may be done still.
        let mut in_doubt = 0u64;
        for tries in 1.. {
            let Some((path, link)) = self.choose(nsid, began + self.options.give_up).await else { break };
            match timeout(self.options.answer_limit, command(link.queue())).await {
                Some(Ok(value)) => {
                    let may_come_again = in_doubt & 1 << path != 0;
                    return Ok(Done { value, path, tries, may_come_again });
                }
                Some(Err(HostError::Status(status))) if is_of_the_path(status) => {
                    link.view.borrow_mut().refuse(nsid, self.identified(nsid));
                    link.look_again();
                }
                Some(Err(HostError::Status(status))) => return Err(PathError::Status(status)),
                Some(Err(_)) | None => {
                    in_doubt |= 1 << path;
                    self.lose(path, &link);
                }
            }
        }
        Err(PathError::NoPath(now().since(began)))
    }

    /// Waits until a path may take commands for the namespace; `None` when that takes too long.
    async fn choose(&self, nsid: u32, until: Instant) -> Option<(usize, Rc<Link>)> {
        while now() < until && !self.closed.is_set() {
            if let Some(found) = self.best(nsid) {
                return Some(found);
            }
            timeout(until.since(now()), self.changed.notified()).await;
        }
        None
    }

    fn best(&self, nsid: u32) -> Option<(usize, Rc<Link>)> {
        let identified = self.identified(nsid);
        let links = self.paths.iter().enumerate().filter_map(|(at, path)| Some((at, path.link()?)));
        let ranked = links.filter_map(|(at, link)| {
            let rank = link.view.borrow().rank(nsid, identified)?;
            Some((rank, at, link))
        });
        ranked.max_by_key(|(rank, ..)| *rank).map(|(_, at, link)| (at, link))
    }

    /// Fills a buffer, a whole number of logical blocks, that `buffer` hands out for each try.
    pub async fn read(
        &self,
        (nsid, slba, blocks): (u32, u64, u32),
        buffer: impl AsyncFn() -> Buf,
    ) -> Result<Done<Buf>, PathError> {
        self.run(nsid, async |queue: &Queue| queue.read(nsid, slba, blocks, buffer().await).await).await
    }

    /// Writes the same data until a path says that it has.
    pub async fn write(
        &self,
        (nsid, slba, blocks): (u32, u64, u32),
        data: &View,
    ) -> Result<Done<()>, PathError> {
        self.run(nsid, async |queue: &Queue| queue.write(nsid, slba, blocks, data.clone()).await).await
    }

    /// Paths that there are, connected or not.
    pub fn count(&self) -> usize {
        self.paths.len()
    }

    /// The state of the namespace's group on a path, as the log said it last; `None` when it is not connected, or has no
    /// such namespace.
    pub fn state(&self, path: usize, nsid: u32) -> Option<AnaState> {
        let link = self.paths[path].link()?;
        link.view.borrow().state(nsid, self.identified(nsid))
    }

    /// All groups that a path's log told of; empty when it is not connected.
    pub fn groups(&self, path: usize) -> Vec<Group> {
        let link = self.paths[path].link();
        link.map_or(Vec::new(), |link| link.view.borrow().groups().cloned().collect())
    }

    /// The controller at the end of a path.
    pub fn cntlid(&self, path: usize) -> Option<u16> {
        self.paths[path].link().map(|link| link.host.admin.cntlid())
    }

    /// Change notices that came, on all paths.
    pub fn notices(&self) -> u64 {
        self.notices.get()
    }
}

/// Another path may do what this one refuses. Base 8.1.1.4.
fn is_of_the_path(status: Status) -> bool {
    [Status::ANA_INACCESSIBLE, Status::ANA_TRANSITION, Status::ANA_PERSISTENT_LOSS]
        .iter()
        .any(|s| status.is(*s))
}
