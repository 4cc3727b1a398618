//! One path: a controller that is connected again and again, and what its ANA log says.

use super::Paths;
use super::ana::{self, Group, View};
use crate::host::{Host, HostError, Queue};
use peristyle_nvme::wire::feature::fid;
use peristyle_nvme::wire::log_page::lid;
use peristyle_rt::sync::Notify;
use peristyle_rt::{Addr, Duration, select, sleep, timeout};
use std::cell::{Cell, RefCell};
use std::rc::Rc;

/// Asynchronous event configuration: ANA change notices. Base 5.1.25.1.8.
const ANA_NOTICES: u32 = 1 << 11;
/// The log is asked for with buffers of these sizes, until it fits: the last has room for a thousand groups and ten
/// thousand namespaces.
const LOG_BYTES: [u32; 3] = [4 << 10, 16 << 10, 64 << 10];
/// Between two looks at the log, however often it changes.
const LOOK_PAUSE: Duration = Duration::from_millis(1);
/// After so long without a notice the log is read anyway: a path that is silent is found before a command needs it.
const LOOK_PERIOD: Duration = Duration::from_secs(1);

/// A controller that is connected.
pub(super) struct Link {
    pub host: Host,
    pub view: RefCell<View>,
    /// The log has changed, or a command was refused.
    is_stale: Cell<bool>,
    stale: Notify,
}

impl Link {
    fn new(host: Host) -> Link {
        Link { host, view: RefCell::default(), is_stale: Cell::new(false), stale: Notify::default() }
    }

    pub fn look_again(&self) {
        self.is_stale.set(true);
        self.stale.notify_all();
    }

    /// The I/O queue with the fewest commands in flight.
    pub fn queue(&self) -> &Queue {
        self.host.io.iter().min_by_key(|queue| queue.in_flight()).expect("a path has an I/O queue")
    }

    /// All groups, by the log.
    async fn groups(&self) -> Option<Vec<Group>> {
        for bytes in LOG_BYTES {
            let log = self.host.admin.log_page(lid::ANA, bytes).await.ok()?;
            if let Some(groups) = ana::parse(&log) {
                return Some(groups);
            }
        }
        None
    }

    /// Waits for what makes another look at the log worth its while.
    async fn until_stale(&self) {
        let stale = self.stale.wait_until(|| self.is_stale.get());
        let ended = self.host.admin.closed();
        timeout(LOOK_PERIOD, select(stale, ended)).await;
        self.is_stale.set(false);
    }
}

/// Where a controller is, and the one that is there now.
pub(super) struct Path {
    pub portal: Addr,
    link: RefCell<Option<Rc<Link>>>,
}

impl Path {
    pub fn new(portal: Addr) -> Path {
        Path { portal, link: RefCell::default() }
    }
    pub fn link(&self) -> Option<Rc<Link>> {
        self.link.borrow().clone()
    }
}

impl Paths {
    /// Connects to a portal again and again, until the host is closed.
    pub(super) async fn keep_path(self: Rc<Self>, at: usize) {
        let options = &self.options;
        while !self.closed.is_set() {
            let connect = Host::connect(&self.paths[at].portal, &options.host, options.io_queues);
            if let Some(Ok(host)) = timeout(options.connect_limit, connect).await {
                let link = Rc::new(Link::new(host));
                self.keep_link(at, &link).await;
                self.lose(at, &link);
            }
            select(self.closed.wait(), sleep(options.connect_pause)).await;
        }
    }

    /// Reads the log whenever there is a reason, until the connection ends or says nothing any more.
    async fn keep_link(self: &Rc<Self>, at: usize, link: &Rc<Link>) {
        let limit = self.options.answer_limit;
        let admin = &link.host.admin;
        let configure = admin.set_feature(fid::ASYNC_EVENT_CONFIG, ANA_NOTICES);
        if !matches!(timeout(limit, configure).await, Some(Ok(()))) {
            return;
        }
        peristyle_rt::spawn(self.clone().hear(link.clone()));
        while admin.is_open() && !self.closed.is_set() {
            let Some(Some(groups)) = timeout(limit, link.groups()).await else { return };
            self.looks.set(self.looks.get() + 1);
            link.view.borrow_mut().apply(self.looks.get(), groups);
            if admin.is_open() {
                self.paths[at].link.borrow_mut().get_or_insert_with(|| link.clone());
            }
            self.changed.notify_all();
            sleep(LOOK_PAUSE).await;
            link.until_stale().await;
        }
    }

    /// Every notice makes the log worth another look; the target sends the next one when it was read.
    async fn hear(self: Rc<Self>, link: Rc<Link>) {
        while link.host.admin.next_event().await.is_ok() {
            self.notices.set(self.notices.get() + 1);
            link.look_again();
        }
    }

    /// The connections end, and what is in flight on them goes to other paths.
    pub(super) fn lose(&self, at: usize, link: &Rc<Link>) {
        let mut present = self.paths[at].link.borrow_mut();
        if present.as_ref().is_some_and(|present| Rc::ptr_eq(present, link)) {
            *present = None;
        }
        drop(present);
        link.host.close();
        self.changed.notify_all();
    }

    /// Asks the controllers that are connected, one after the other, until one gives a good answer.
    pub(super) async fn ask<T>(
        &self,
        question: impl AsyncFn(&Queue) -> Result<T, HostError>,
    ) -> Result<T, HostError> {
        let mut why = HostError::Net(peristyle_rt::NetError::Closed);
        for (at, path) in self.paths.iter().enumerate() {
            let Some(link) = path.link() else { continue };
            match timeout(self.options.answer_limit, question(&link.host.admin)).await {
                Some(Ok(answer)) => return Ok(answer),
                Some(Err(error)) => why = error,
                None => self.lose(at, &link),
            }
        }
        Err(why)
    }
}
