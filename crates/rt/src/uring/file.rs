//! Files and block devices: O_DIRECT, through the ring.

use super::driver::Driver;
use super::ops::{SHORT, Task};
use crate::buf::{Buf, IoVec};
use crate::device::{DeviceInfo, DeviceKind, IoError, WriteCache};
use crate::sync::Notify;
use std::cell::Cell;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

/// Bytes that the file system of `path` has room for.
pub fn free_bytes(path: &Path) -> io::Result<u64> {
    let stat = rustix::fs::statvfs(path)?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

fn io_error(errno: i32) -> IoError {
    match errno {
        SHORT => IoError::Short,
        libc::ENOSPC | libc::EDQUOT => IoError::Full,
        libc::ENODEV | libc::ENXIO | libc::ESHUTDOWN => IoError::Gone,
        libc::ENOENT => IoError::NotFound,
        libc::EBUSY | libc::EWOULDBLOCK => IoError::Busy,
        libc::EOPNOTSUPP => IoError::Unsupported,
        errno => IoError::Os(errno),
    }
}

fn of_io(error: io::Error) -> IoError {
    io_error(error.raw_os_error().unwrap_or(libc::EIO))
}

/// What a file is opened for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Access {
    Read,
    /// A missing file is created with this size.
    Write {
        create_bytes: Option<u64>,
    },
}

/// One open file or block device.
pub(crate) struct File {
    inner: Rc<Inner>,
}

struct Inner {
    driver: Rc<Driver>,
    fd: Rc<OwnedFd>,
    volatile: bool,
    /// A single durable write is written through instead of flushed.
    through: bool,
    /// Durable writes in flight.
    durable: Cell<usize>,
    /// A flush failed. The system may have forgotten what it could not write, and a later flush that succeeds
    /// would say nothing of it: so nothing succeeds any more, until the device is opened and recovered anew.
    broken: Cell<bool>,
    flush: Flush,
    /// Of block devices that discard.
    discard: Option<Discard>,
}

/// Flushes are numbered. A caller is served by the first one that starts after its call.
#[derive(Default)]
struct Flush {
    started: Cell<u64>,
    finished: Cell<u64>,
    wanted: Cell<u64>,
    running: Cell<bool>,
    changed: Notify,
}

impl File {
    pub(crate) async fn open(
        driver: Rc<Driver>,
        path: &Path,
        access: Access,
        cache: WriteCache,
    ) -> Result<(File, DeviceInfo), IoError> {
        let path: PathBuf = path.into();
        let (fd, info, discard) = super::blocking::run(move || {
            let (fd, info) = open(&path, access, cache)?;
            let discard = (info.kind == DeviceKind::Block).then(|| Discard::of(&fd)).transpose()?;
            Ok((fd, info, discard))
        })
        .await?;
        let inner = Inner {
            driver,
            fd: Rc::new(fd),
            volatile: info.volatile_cache,
            through: info.kind == DeviceKind::Block,
            durable: Cell::new(0),
            broken: Cell::new(false),
            flush: Flush::default(),
            discard,
        };
        Ok((File { inner: Rc::new(inner) }, info))
    }

    pub(crate) async fn read(&self, offset: u64, buf: Buf) -> (Result<(), IoError>, Buf) {
        let (result, task) = self.inner.run(Task::Read { buf, offset }).await;
        let Task::Read { buf, .. } = task else { unreachable!("the task comes back as it went") };
        (result, buf)
    }

    /// Durable writes are written plainly and share a flush. Only on a block device, one that is alone is written
    /// through (FUA). On a file that would take a kernel worker's turn, for which a busy machine waited 8 to 12 ms
    /// where the flush took 0.2 to 0.4 ms.
    pub(crate) async fn write(&self, offset: u64, iov: IoVec, durable: bool) -> Result<(), IoError> {
        let inner = &self.inner;
        if iov.is_empty() {
            return Ok(());
        }
        if !durable || !inner.volatile {
            return inner.run(Task::Write { iov, offset, flags: 0 }).await.0;
        }
        let _count = Count::enter(&inner.durable);
        if inner.through && inner.durable.get() == 1 {
            let result = inner.run(Task::Write { iov, offset, flags: libc::RWF_DSYNC }).await.0;
            if matches!(result, Err(error) if error != IoError::Full) {
                inner.broken.set(true);
            }
            return result;
        }
        inner.run(Task::Write { iov, offset, flags: 0 }).await.0?;
        self.flush().await
    }

    pub(crate) async fn flush(&self) -> Result<(), IoError> {
        let inner = &self.inner;
        if !inner.volatile {
            return if inner.broken.get() { Err(IoError::Gone) } else { Ok(()) };
        }
        let flush = &inner.flush;
        let mine = flush.started.get() + 1;
        flush.wanted.set(mine);
        if !flush.running.replace(true) {
            // A task of its own: it goes on when the caller who started it is dropped.
            crate::spawn(run_flushes(inner.clone()));
        }
        flush.changed.wait_until(|| flush.finished.get() >= mine).await;
        if inner.broken.get() { Err(IoError::Gone) } else { Ok(()) }
    }

    pub(crate) async fn write_zeroes(&self, offset: u64, bytes: u64) -> Result<(), IoError> {
        if bytes == 0 {
            return Ok(());
        }
        let keep = libc::FALLOC_FL_KEEP_SIZE;
        let punch = Task::Fallocate { mode: libc::FALLOC_FL_PUNCH_HOLE | keep, offset, bytes };
        match self.inner.run(punch).await.0 {
            Err(IoError::Unsupported) => {
                let zero = Task::Fallocate { mode: libc::FALLOC_FL_ZERO_RANGE | keep, offset, bytes };
                self.inner.run(zero).await.0
            }
            other => other,
        }
    }

    /// A block device has its space.
    pub(crate) async fn reserve(&self, offset: u64, bytes: u64) -> Result<(), IoError> {
        if self.inner.discard.is_some() || bytes == 0 {
            return Ok(());
        }
        self.inner.run(Task::Fallocate { mode: libc::FALLOC_FL_KEEP_SIZE, offset, bytes }).await.0
    }

    /// Holes are punched into a file; a block device has its own command, which may take a while.
    pub(crate) async fn discard(&self, offset: u64, bytes: u64) -> Result<(), IoError> {
        if bytes == 0 {
            return Ok(());
        }
        match &self.inner.discard {
            Some(discard) => discard.run(offset, bytes).await,
            None => {
                let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
                self.inner.run(Task::Fallocate { mode, offset, bytes }).await.0
            }
        }
    }
}

/// BLKDISCARD is a call that blocks; the ring has it from Linux 6.12 on only, and punching a hole into a block device is
/// a request for zeros.
struct Discard {
    lane: super::blocking::Lane,
    /// Kept by each call while it runs: a device that hangs stays locked until it has answered.
    fd: Arc<OwnedFd>,
}

impl Discard {
    fn of(fd: &OwnedFd) -> Result<Discard, IoError> {
        let lane = super::blocking::Lane::start("discard").map_err(of_io)?;
        Ok(Discard { lane, fd: Arc::new(fd.try_clone().map_err(of_io)?) })
    }

    async fn run(&self, offset: u64, bytes: u64) -> Result<(), IoError> {
        const BLKDISCARD: libc::Ioctl = 0x1277;
        let fd = self.fd.clone();
        let call = move || {
            let range = [offset, bytes];
            // SAFETY: the call reads two u64 from a live local.
            match unsafe { libc::ioctl(fd.as_raw_fd(), BLKDISCARD, range.as_ptr()) } {
                0 => Ok(()),
                _ => Err(of_io(io::Error::last_os_error())),
            }
        };
        self.lane.run(call).await
    }
}

impl Inner {
    async fn run(&self, task: Task) -> (Result<(), IoError>, Task) {
        if self.broken.get() {
            return (Err(IoError::Gone), task);
        }
        let (errno, task) = self.driver.run_file(self.fd.clone(), task).await;
        (if errno == 0 { Ok(()) } else { Err(io_error(errno)) }, task)
    }
}

/// Flushes for as long as somebody wants one that has not started yet.
async fn run_flushes(inner: Rc<Inner>) {
    let flush = &inner.flush;
    while flush.wanted.get() > flush.started.get() {
        flush.started.set(flush.started.get() + 1);
        if inner.run(Task::Sync).await.0.is_err() {
            inner.broken.set(true);
        }
        flush.finished.set(flush.started.get());
        flush.changed.notify_all();
    }
    flush.running.set(false);
}

/// Counts for as long as it lives.
struct Count<'a>(&'a Cell<usize>);

impl<'a> Count<'a> {
    fn enter(cell: &'a Cell<usize>) -> Count<'a> {
        cell.set(cell.get() + 1);
        Count(cell)
    }
}
impl Drop for Count<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

// ---- opening: on a blocking thread --------------------------------------------------------------------------

fn open(path: &Path, access: Access, cache: WriteCache) -> Result<(OwnedFd, DeviceInfo), IoError> {
    let (writes, create_bytes, lock) = match access {
        Access::Read => (false, None, libc::LOCK_SH),
        Access::Write { create_bytes } => (true, create_bytes, libc::LOCK_EX),
    };
    let before = fs::metadata(path);
    let block = before.as_ref().is_ok_and(|m| m.file_type().is_block_device());
    if before.as_ref().is_ok_and(|m| !m.is_file() && !block) {
        return Err(IoError::Unsupported);
    }
    let open = |direct: libc::c_int| {
        // On a block device O_EXCL refuses one that is mounted or claimed. Who only looks claims nothing.
        let exclusive = if block && writes { libc::O_EXCL } else { 0 };
        fs::OpenOptions::new()
            .read(true)
            .write(writes)
            .create(create_bytes.is_some() && !block)
            .custom_flags(direct | exclusive)
            .open(path)
    };
    // Some file systems have no O_DIRECT; they will do for development.
    let file = match open(libc::O_DIRECT) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => open(0),
        other => other,
    };
    let file = file.map_err(of_io)?;
    // SAFETY: no pointers.
    if unsafe { libc::flock(file.as_raw_fd(), lock | libc::LOCK_NB) } < 0 {
        return Err(of_io(io::Error::last_os_error()));
    }
    let mut info = if block { block_info(path, &file)? } else { file_info(path, &file, create_bytes)? };
    if cache == WriteCache::Protected {
        info.volatile_cache = false;
    }
    Ok((file.into(), info))
}

fn file_info(path: &Path, file: &fs::File, create_bytes: Option<u64>) -> Result<DeviceInfo, IoError> {
    let mut bytes = file.metadata().map_err(of_io)?.len();
    // Empty: just created, or a creation that a crash cut short.
    if let (0, Some(wanted)) = (bytes, create_bytes) {
        file.set_len(wanted).map_err(of_io)?;
        file.sync_all().map_err(of_io)?;
        let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        fs::File::open(folder).and_then(|f| f.sync_all()).map_err(of_io)?;
        bytes = wanted;
    }
    Ok(DeviceInfo {
        kind: DeviceKind::File,
        name: path.display().to_string(),
        bytes: bytes / 4096 * 4096,
        volatile_cache: true,
        cheap_zeroes: true,
        discards: true,
    })
}

fn block_info(path: &Path, file: &fs::File) -> Result<DeviceInfo, IoError> {
    const BLKGETSIZE64: libc::Ioctl = 0x8008_1272;
    const BLKSSZGET: libc::Ioctl = 0x1268;
    let (mut bytes, mut sector) = (0u64, 0 as libc::c_int);
    // SAFETY: the first writes one u64, the second one c_int, each into a live local.
    let failed = unsafe {
        libc::ioctl(file.as_raw_fd(), BLKGETSIZE64, &raw mut bytes) < 0
            || libc::ioctl(file.as_raw_fd(), BLKSSZGET, &raw mut sector) < 0
    };
    if failed {
        return Err(of_io(io::Error::last_os_error()));
    }
    if !(512..=4096).contains(&sector) {
        return Err(IoError::Unsupported);
    }
    let device = file.metadata().map_err(of_io)?.rdev();
    let queue = |name: &str| {
        let at = format!("/sys/dev/block/{}:{}", libc::major(device), libc::minor(device));
        // A partition has its queue one level up.
        fs::read_to_string(format!("{at}/queue/{name}"))
            .or_else(|_| fs::read_to_string(format!("{at}/../queue/{name}")))
            .unwrap_or_default()
    };
    let is_positive = |name| queue(name).trim().parse::<u64>().is_ok_and(|n| n > 0);
    Ok(DeviceInfo {
        kind: DeviceKind::Block,
        name: path.display().to_string(),
        bytes: bytes / 4096 * 4096,
        // Unless the device says that its cache does not matter, it does.
        volatile_cache: queue("write_cache").trim() != "write through",
        cheap_zeroes: is_positive("write_zeroes_max_bytes"),
        discards: is_positive("discard_max_bytes"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reactor::{BackendKind, backend_kind};
    use crate::{RuntimeConfig, block_on, join_all};

    /// A descriptor that can be read but not flushed: as a device whose flush fails.
    fn unflushable() -> File {
        let BackendKind::Uring(driver) = backend_kind() else { unreachable!("the test runs on io_uring") };
        let (pipe, _) = rustix::pipe::pipe().expect("a pipe");
        File {
            inner: Rc::new(Inner {
                driver,
                fd: Rc::new(pipe),
                volatile: true,
                through: false,
                durable: Cell::new(0),
                broken: Cell::new(false),
                flush: Flush::default(),
                discard: None,
            }),
        }
    }

    #[test]
    #[cfg_attr(miri, ignore)]
    fn after_a_flush_that_failed_nothing_succeeds_any_more() {
        block_on(RuntimeConfig::small(), async {
            let file = Rc::new(unflushable());
            let flushes = (0..3).map(|_| {
                let file = file.clone();
                async move { file.flush().await }
            });
            assert_eq!(join_all(flushes).await, [Err(IoError::Gone); 3]);
            assert_eq!(file.flush().await, Err(IoError::Gone));
            let write = file.write(0, Buf::zeroed(4096).await.freeze().into(), false).await;
            assert_eq!(write, Err(IoError::Gone));
            assert_eq!(file.read(0, Buf::alloc(4096).await).await.0, Err(IoError::Gone));
        });
    }

    #[test]
    #[cfg_attr(miri, ignore)]
    fn callers_that_come_while_a_flush_runs_share_the_next_one() {
        block_on(RuntimeConfig::small(), async {
            let file = Rc::new(unflushable());
            let first = file.clone();
            crate::spawn(async move { assert!(first.flush().await.is_err()) });
            // The caller's turn, then that of the task which flushes.
            crate::yield_now().await;
            crate::yield_now().await;
            let flushes = (0..10).map(|_| {
                let file = file.clone();
                async move { assert!(file.flush().await.is_err()) }
            });
            join_all(flushes).await;
            assert_eq!(file.inner.flush.started.get(), 2);
        });
    }
}
