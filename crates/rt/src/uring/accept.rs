//! Listening: one multishot accept brings all connections.

use super::addr::{SockAddr, bound_to, checked, net_error, open_socket, remove_stale, set_option};
use super::driver::Driver;
use super::net::Stream;
use super::ops::{Handle, State};
use crate::net::{Addr, NetError};
use crate::sync::Notify;
use io_uring::opcode;
use io_uring::types::Fd;
use peristyle_base::Duration;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::rc::Rc;

/// Connections that the system keeps before they are accepted.
const BACKLOG: libc::c_int = 1024;
/// Accepted ones that nobody has taken, before the kernel is told to stop. What it accepts until it has
/// stopped is in `BACKLOG`, which bounds the whole.
const ACCEPTED_MAX: usize = 64;
/// When the process or the system is out of descriptors or memory.
const PAUSE: Duration = Duration::from_millis(50);

/// Connections that have been accepted.
#[derive(Default)]
pub(super) struct Accepting {
    queue: RefCell<VecDeque<OwnedFd>>,
    error: Cell<Option<i32>>,
    key: Cell<Option<u64>>,
    pausing: Cell<bool>,
    /// Several tasks may wait.
    changed: Notify,
}

impl Driver {
    fn arm_accept(&self, handle: &Rc<Handle>, accepting: &Rc<Accepting>) -> Result<(), NetError> {
        let state = State::Accept(handle.clone(), Some(accepting.clone()));
        let key = self.ops.insert(state).map_err(|_| NetError::Os(libc::ENFILE))?;
        accepting.key.set(Some(key));
        let flags = libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
        self.push(opcode::AcceptMulti::new(Fd(handle.fd())).flags(flags).build().user_data(key));
        Ok(())
    }

    pub(super) fn handle_accepted(&self, accepting: &Accepting, result: i32, more: bool) {
        if let Some(fd) = accepted(result) {
            accepting.queue.borrow_mut().push_back(fd);
        } else if result != -libc::ECANCELED {
            accepting.error.set(Some(-result));
        }
        if !more {
            accepting.key.set(None);
            accepting.pausing.set(false);
        } else if accepting.queue.borrow().len() >= ACCEPTED_MAX
            && let Some(key) = accepting.key.get()
            && !accepting.pausing.replace(true)
        {
            self.cancel(key);
        }
        accepting.changed.notify_all();
    }
}

/// The descriptor that a completion brings; the one who drops it closes it.
pub(super) fn accepted(result: i32) -> Option<OwnedFd> {
    // SAFETY: an accept that succeeded made the descriptor, and this completion is the only one to tell of it.
    (result >= 0).then(|| unsafe { OwnedFd::from_raw_fd(result) })
}

pub(crate) struct Listener {
    driver: Rc<Driver>,
    handle: Rc<Handle>,
    accepting: Rc<Accepting>,
    addr: Addr,
    /// Removes the file of a Unix socket at the end.
    file: Option<PathBuf>,
}

impl Listener {
    pub(crate) fn bind(driver: Rc<Driver>, addr: &Addr, shared: bool) -> Result<Listener, NetError> {
        let fd = open_socket(addr)?;
        if let Addr::Tcp(_) = addr {
            set_option(&fd, libc::SOL_SOCKET, libc::SO_REUSEADDR)?;
            if shared {
                set_option(&fd, libc::SOL_SOCKET, libc::SO_REUSEPORT)?;
            }
        }
        let name = SockAddr::of(addr)?;
        match name.bind(&fd) {
            Err(NetError::AddrInUse) => {
                let Addr::Unix(path) = addr else { return Err(NetError::AddrInUse) };
                remove_stale(addr, path)?;
                name.bind(&fd)?;
            }
            other => other?,
        }
        if let Addr::Unix(path) = addr {
            // Before anybody can connect: the file would have whatever mode the umask leaves.
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))
                .map_err(|e| net_error(e.raw_os_error().unwrap_or(libc::EIO)))?;
        }
        // SAFETY: no pointers.
        checked(unsafe { libc::listen(fd.as_raw_fd(), BACKLOG) })?;
        let (addr, file) = match addr {
            Addr::Tcp(_) => (Addr::Tcp(bound_to(&fd)?), None),
            Addr::Unix(path) => (addr.clone(), Some(path.clone())),
        };
        let tcp = matches!(addr, Addr::Tcp(_));
        let handle = Rc::new(Handle { fd, tcp, zero_copy: Cell::new(false) });
        Ok(Listener { driver, handle, accepting: Rc::default(), addr, file })
    }

    pub(crate) async fn accept(&self) -> Result<Stream, NetError> {
        let accepting = &self.accepting;
        loop {
            let fd = accepting.queue.borrow_mut().pop_front();
            if let Some(fd) = fd {
                return Stream::accepted(self.driver.clone(), fd, self.handle.tcp);
            }
            match accepting.error.take() {
                None | Some(libc::EINTR | libc::EAGAIN) => {}
                // The connection was gone before we took it: take the next one.
                Some(libc::ECONNABORTED) => {}
                Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM) => {
                    crate::sleep(PAUSE).await;
                    // Another task may have armed the accept meanwhile, and its connection may be ours.
                    continue;
                }
                Some(errno) => return Err(net_error(errno)),
            }
            let changed = accepting.changed.notified();
            if accepting.key.get().is_none() {
                self.driver.arm_accept(&self.handle, accepting)?;
            }
            changed.await;
        }
    }

    pub(crate) fn local_addr(&self) -> Addr {
        self.addr.clone()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Some(key) = self.accepting.key.get() {
            self.driver.detach(key);
        }
        // SAFETY: no pointers. Whoever connects from now on is refused, although the descriptor lives until
        // the kernel has ended the accept.
        unsafe { libc::shutdown(self.handle.fd(), libc::SHUT_RDWR) };
        if let Some(path) = &self.file {
            let _ = std::fs::remove_file(path);
        }
    }
}
