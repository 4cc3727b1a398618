//! Devices: files and block devices over io_uring (O_DIRECT), memory, and simulated disks, behind one type.
//!
//! A write that returns has reached stable media: write-through (RWF_DSYNC / FUA) or a shared flush when the
//! device's cache is volatile, nothing more when it is protected. A dropped future does not cancel its
//! operation: the buffers stay with the operation until the device has answered.

use crate::buf::{Buf, IoVec};
use crate::memory::Memory;
use crate::sync::Notify;
use crate::{Instant, sim, uring};
use peristyle_base::Duration;
use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::rc::Rc;

/// What to open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeviceSpec {
    /// A file or a block device; a file is created with `create_bytes` when it is missing. In simulation the
    /// path is the name of a disk of the simulated node.
    Path { path: PathBuf, create_bytes: Option<u64>, write_cache: WriteCache },
    /// Memory of this process, taken when it is opened: lost with it.
    Memory { bytes: u64 },
}

/// Whether completed writes may sit in a volatile cache of the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum WriteCache {
    /// Ask the device; a file counts as volatile.
    #[default]
    Auto,
    /// The operator promises that completed writes survive power loss (or does not care: development).
    Protected,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceKind {
    File,
    Block,
    Memory,
    Simulated,
}

#[derive(Clone, Debug)]
pub struct DeviceInfo {
    pub kind: DeviceKind,
    /// As opened, for people.
    pub name: String,
    pub bytes: u64,
    /// Writes need write-through or a flush to be durable.
    pub volatile_cache: bool,
    /// [`Device::write_zeroes`] is cheap and leaves zeros that survive power loss once flushed.
    pub cheap_zeroes: bool,
    /// It says that [`Device::discard`] does something.
    pub discards: bool,
}

/// Why an operation on a device failed. The caller treats all but `Full` and `OutOfRange` as the device's fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IoError {
    /// The device or its driver reported an error (errno).
    Os(i32),
    /// Fewer bytes than asked for.
    Short,
    /// Beyond the end, or not aligned to blocks.
    OutOfRange,
    /// The file system below has no space left.
    Full,
    /// The device is gone.
    Gone,
    NotFound,
    /// Another process has it open.
    Busy,
    /// The kind of device cannot do that.
    Unsupported,
    /// It was opened to be read.
    ReadOnly,
}

impl std::fmt::Display for IoError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            IoError::Os(errno) => write!(f, "{}", std::io::Error::from_raw_os_error(*errno)),
            IoError::Short => f.write_str("fewer bytes were transferred than asked for"),
            IoError::OutOfRange => f.write_str("beyond the end of the device, or not aligned to 4096 bytes"),
            IoError::Full => f.write_str("no space left below the device"),
            IoError::Gone => f.write_str("the device is gone"),
            IoError::NotFound => f.write_str("no such device or file"),
            IoError::Busy => f.write_str("in use by another process"),
            IoError::Unsupported => f.write_str("not supported by this kind of device"),
            IoError::ReadOnly => f.write_str("opened for reading only"),
        }
    }
}
impl std::error::Error for IoError {}

/// A fault that a test asks for (`peristyle inject` in development mode).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    None,
    /// Every operation fails with EIO until the instant.
    FailUntil(Instant),
    /// Every operation hangs until the instant, then goes on.
    StallUntil(Instant),
}

enum Kind {
    Uring(uring::File),
    Sim(sim::Disk),
    Memory(Memory),
}

/// One open device. Clones are the same device; used on the reactor that opened it only.
#[derive(Clone)]
pub struct Device {
    inner: Rc<Inner>,
}

struct Inner {
    kind: Kind,
    info: DeviceInfo,
    read_only: bool,
    fault: Cell<Fault>,
    fault_changed: Notify,
}

impl Device {
    pub async fn open(spec: &DeviceSpec) -> Result<Device, IoError> {
        let (kind, info) = match spec {
            DeviceSpec::Memory { bytes } => {
                let info = DeviceInfo {
                    kind: DeviceKind::Memory,
                    name: "memory".into(),
                    bytes: *bytes,
                    volatile_cache: false,
                    cheap_zeroes: true,
                    discards: true,
                };
                (Kind::Memory(Memory::new(*bytes).await), info)
            }
            DeviceSpec::Path { path, create_bytes, write_cache } => match crate::reactor::backend_kind() {
                crate::reactor::BackendKind::Uring(driver) => {
                    let access = uring::Access::Write { create_bytes: *create_bytes };
                    let (file, info) = uring::File::open(driver, path, access, *write_cache).await?;
                    (Kind::Uring(file), info)
                }
                crate::reactor::BackendKind::Sim(host) => {
                    let (disk, info) = sim::Disk::open(host, path, *create_bytes, *write_cache).await?;
                    (Kind::Sim(disk), info)
                }
            },
        };
        Ok(Device::new(kind, info, false))
    }

    /// Opens a file or a block device that is there, to look at it: nothing that is asked of it can change it, and several
    /// may look at the same time. Refused while somebody has it open to write.
    pub async fn open_to_read(path: &Path) -> Result<Device, IoError> {
        let cache = WriteCache::Auto;
        let (kind, info) = match crate::reactor::backend_kind() {
            crate::reactor::BackendKind::Uring(driver) => {
                let (file, info) = uring::File::open(driver, path, uring::Access::Read, cache).await?;
                (Kind::Uring(file), info)
            }
            crate::reactor::BackendKind::Sim(host) => {
                let (disk, info) = sim::Disk::open(host, path, None, cache).await?;
                (Kind::Sim(disk), info)
            }
        };
        Ok(Device::new(kind, info, true))
    }

    fn new(kind: Kind, info: DeviceInfo, read_only: bool) -> Device {
        let (fault, fault_changed) = (Cell::new(Fault::None), Notify::default());
        Device { inner: Rc::new(Inner { kind, info, read_only, fault, fault_changed }) }
    }

    pub fn info(&self) -> &DeviceInfo {
        &self.inner.info
    }
    pub fn bytes(&self) -> u64 {
        self.inner.info.bytes
    }

    /// Makes operations fail or hang from now on.
    pub fn inject(&self, fault: Fault) {
        self.inner.fault.set(fault);
        self.inner.fault_changed.notify_all();
    }

    async fn pass_fault(&self) -> Result<(), IoError> {
        loop {
            match self.inner.fault.get() {
                Fault::None => return Ok(()),
                Fault::FailUntil(at) if crate::now() < at => return Err(IoError::Os(libc::EIO)),
                Fault::StallUntil(at) if crate::now() < at => {
                    let left = at.since(crate::now());
                    crate::timeout(left, self.inner.fault_changed.notified()).await;
                }
                _ => self.inner.fault.set(Fault::None),
            }
        }
    }

    fn check(&self, offset: u64, bytes: u64) -> Result<(), IoError> {
        let end = offset.checked_add(bytes).ok_or(IoError::OutOfRange)?;
        if end > self.inner.info.bytes || !offset.is_multiple_of(4096) || !bytes.is_multiple_of(4096) {
            return Err(IoError::OutOfRange);
        }
        Ok(())
    }

    fn check_write(&self, offset: u64, bytes: u64) -> Result<(), IoError> {
        if self.inner.read_only { Err(IoError::ReadOnly) } else { self.check(offset, bytes) }
    }

    /// Fills `buf` from `offset`. Offset and length are multiples of 4096.
    pub async fn read(&self, offset: u64, mut buf: Buf) -> (Result<(), IoError>, Buf) {
        if let Err(error) = self.check(offset, buf.len() as u64) {
            return (Err(error), buf);
        }
        if self.inner.fault.get() != Fault::None
            && let Err(error) = self.pass_fault().await
        {
            return (Err(error), buf);
        }
        match &self.inner.kind {
            Kind::Uring(file) => file.read(offset, buf).await,
            Kind::Sim(disk) => disk.read(offset, buf).await,
            Kind::Memory(memory) => {
                memory.read(offset, &mut buf);
                (Ok(()), buf)
            }
        }
    }

    /// As [`read`](Self::read), of a device that answers at once: memory, and simulated disks as they are told to. `None`:
    /// it has to be waited for, or fails.
    pub fn try_read(&self, offset: u64, into: &mut [u8]) -> Option<()> {
        self.check(offset, into.len() as u64).ok()?;
        if self.inner.fault.get() != Fault::None {
            return None;
        }
        match &self.inner.kind {
            Kind::Uring(_) => return None,
            Kind::Sim(disk) => disk.try_read(offset, into)?,
            Kind::Memory(memory) => memory.read(offset, into),
        }
        Some(())
    }

    /// Writes all pieces at `offset`, durably when `durable` (see the module). Offset and sum of lengths are
    /// multiples of 4096; every piece's address and length are multiples of 512 at least.
    pub async fn write(&self, offset: u64, iov: IoVec, durable: bool) -> Result<(), IoError> {
        self.check_write(offset, iov.bytes() as u64)?;
        if self.inner.fault.get() != Fault::None {
            self.pass_fault().await?;
        }
        match &self.inner.kind {
            Kind::Uring(file) => file.write(offset, iov, durable).await,
            Kind::Sim(disk) => disk.write(offset, iov, durable).await,
            Kind::Memory(memory) => {
                memory.write(offset, &iov);
                Ok(())
            }
        }
    }

    /// As [`write`](Self::write), durably, of a device that answers at once. `None`, and nothing was written: it has to be
    /// waited for, or fails.
    pub fn try_write(&self, offset: u64, iov: &IoVec) -> Option<()> {
        self.check_write(offset, iov.bytes() as u64).ok()?;
        if self.inner.fault.get() != Fault::None {
            return None;
        }
        match &self.inner.kind {
            Kind::Uring(_) => return None,
            Kind::Sim(disk) => disk.try_write(offset, iov)?,
            Kind::Memory(memory) => memory.write(offset, iov),
        }
        Some(())
    }

    /// Makes every write that has completed durable. Concurrent flushes are shared.
    pub async fn flush(&self) -> Result<(), IoError> {
        if self.inner.fault.get() != Fault::None {
            self.pass_fault().await?;
        }
        match &self.inner.kind {
            Kind::Uring(file) => file.flush().await,
            Kind::Sim(disk) => disk.flush().await,
            Kind::Memory(_) => Ok(()),
        }
    }

    /// Afterwards the range reads as zeros (punch hole, or the block device's own Write Zeroes); durable after a
    /// [`flush`](Self::flush).
    pub async fn write_zeroes(&self, offset: u64, bytes: u64) -> Result<(), IoError> {
        self.check_write(offset, bytes)?;
        if self.inner.fault.get() != Fault::None {
            self.pass_fault().await?;
        }
        match &self.inner.kind {
            Kind::Uring(file) => file.write_zeroes(offset, bytes).await,
            Kind::Sim(disk) => disk.write_zeroes(offset, bytes).await,
            Kind::Memory(memory) => {
                memory.zero(offset, bytes);
                Ok(())
            }
        }
    }

    /// Takes space of the file system for the range, so that writes to it need not ask for it one by one. What it holds
    /// stays, and holes of a file still read as zeros. Of other devices nothing is asked.
    pub async fn reserve(&self, offset: u64, bytes: u64) -> Result<(), IoError> {
        self.check_write(offset, bytes)?;
        match &self.inner.kind {
            Kind::Uring(file) => file.reserve(offset, bytes).await,
            Kind::Sim(_) | Kind::Memory(_) => Ok(()),
        }
    }

    /// Tells the device that nothing in the range is wanted any more. From then on it may read as anything, also as
    /// something else each time, until it is written: nobody may conclude zeros from it.
    pub async fn discard(&self, offset: u64, bytes: u64) -> Result<(), IoError> {
        self.check_write(offset, bytes)?;
        if self.inner.fault.get() != Fault::None {
            self.pass_fault().await?;
        }
        match &self.inner.kind {
            Kind::Uring(file) => file.discard(offset, bytes).await,
            Kind::Sim(disk) => disk.discard(offset, bytes).await,
            Kind::Memory(memory) => {
                memory.zero(offset, bytes);
                Ok(())
            }
        }
    }
}

/// How long a fault lasts from now, as an instant.
pub fn until(duration: Duration) -> Instant {
    crate::now() + duration
}
