//! Simulated disks: what reads see, what is stable, what is in flight, and faults.

use super::cell::Answer;
use super::crash::CrashSpace;
use super::host::Host;
use super::image::{Image, PAGE_BYTES, Page, PageBytes, SECTORS_PER_PAGE, is_same, page_bytes};
use super::rng::Rng;
use super::world::{Event, Shared};
use crate::buf::{Buf, IoVec};
use crate::device::{DeviceInfo, DeviceKind, IoError, WriteCache};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::rc::Rc;

mod discard;

/// How a disk behaves while it is healthy. Latencies are without queueing; transfers share `bytes_per_us`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskConfig {
    /// Completed writes stay in a cache that power loss empties, unless they are durable or flushed.
    pub volatile_cache: bool,
    pub read_ns: u64,
    pub write_ns: u64,
    pub flush_ns: u64,
    pub discard_ns: u64,
    pub bytes_per_us: u64,
    /// Of requests that ask for it, in parts per million: answered where they are asked, as memory does. Only while nothing is
    /// wrong with the disk.
    pub at_once_ppm: u32,
    /// Ranges are zeroed cheaply and for good; else the disk only discards.
    pub cheap_zeroes: bool,
}

impl Default for DiskConfig {
    fn default() -> Self {
        // A datacenter NVMe SSD: 70 us reads, 15 us writes into its cache, 3 GB/s. Discards take longer.
        DiskConfig {
            volatile_cache: true,
            read_ns: 70_000,
            write_ns: 15_000,
            flush_ns: 50_000,
            discard_ns: 500_000,
            bytes_per_us: 3000,
            at_once_ppm: 0,
            cheap_zeroes: true,
        }
    }
}

/// What is wrong with a disk. Probabilities are per operation, in parts per million.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DiskFaults {
    /// World time until which every operation fails with EIO (writes may have happened, wholly or torn).
    pub fail_until: u64,
    /// World time until which nothing completes.
    pub stall_until: u64,
    /// Latency is multiplied by this (0 and 1: healthy).
    pub slow: u64,
    /// Not there any more: everything fails, opening too.
    pub gone: bool,
    /// Writes are refused.
    pub full: bool,
    pub read_error_ppm: u32,
    pub write_error_ppm: u32,
    pub discard_error_ppm: u32,
    /// The write is acknowledged and does nothing.
    pub lost_write_ppm: u32,
    /// The write is acknowledged and lands elsewhere on the disk.
    pub misdirected_write_ppm: u32,
    /// The write is acknowledged and one of its bits is wrong.
    pub flipped_write_ppm: u32,
    /// The read returns one wrong bit; the disk is sound.
    pub flipped_read_ppm: u32,
}

/// What a disk has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskStats {
    pub reads: u64,
    pub writes: u64,
    pub flushes: u64,
    pub bytes_read: u64,
    pub bytes_written: u64,
    pub discards: u64,
    pub bytes_discarded: u64,
    /// Operations that a fault touched.
    pub faults: u64,
}

struct Version {
    /// Position in the order of completion.
    order: u64,
    write: u64,
    page: Page,
}

enum Kind {
    Read {
        buf: Buf,
        answer: Rc<Answer<(Result<(), IoError>, Buf)>>,
    },
    Write {
        pages: Vec<Page>,
        held: Option<IoVec>,
        durable: bool,
        answer: Rc<Answer<Result<(), IoError>>>,
    },
    /// With what the pages happen to hold from then on.
    Discard {
        pages: Vec<Page>,
        answer: Rc<Answer<Result<(), IoError>>>,
    },
    Flush {
        up_to: u64,
        answer: Rc<Answer<Result<(), IoError>>>,
    },
}

impl Kind {
    /// What it changes, when it is a write of a kind.
    fn pages(&self) -> Option<&[Page]> {
        match self {
            Kind::Write { pages, .. } | Kind::Discard { pages, .. } => Some(pages),
            Kind::Read { .. } | Kind::Flush { .. } => None,
        }
    }
}

struct Operation {
    node: u32,
    offset: u64,
    kind: Kind,
}

/// Operations that a crash took away, with their buffers.
pub(crate) struct Lost {
    _operations: BTreeMap<u64, Operation>,
}

pub(crate) struct DiskState {
    pub(crate) node: u32,
    pub(crate) name: String,
    config: DiskConfig,
    pub(crate) faults: DiskFaults,
    pub(crate) latent: BTreeSet<u64>,
    pub(crate) stats: DiskStats,
    /// What reads see: all completed writes.
    pub(crate) current: Image,
    /// What power loss cannot take.
    stable: Image,
    unflushed: BTreeMap<u64, Vec<Version>>,
    operations: BTreeMap<u64, Operation>,
    next: u64,
    completed: u64,
    busy_until: u64,
    pub(crate) changes: u64,
    /// Host that has it open, and how many handles.
    opened_by: Option<u32>,
    rng: Rng,
}

impl DiskState {
    pub(crate) fn new(node: u32, name: &str, image: Image, config: DiskConfig, rng: Rng) -> DiskState {
        DiskState {
            node,
            name: name.to_string(),
            config,
            faults: DiskFaults::default(),
            latent: BTreeSet::new(),
            stats: DiskStats::default(),
            stable: image.clone(),
            current: image,
            unflushed: BTreeMap::new(),
            operations: BTreeMap::new(),
            next: 1,
            completed: 0,
            busy_until: 0,
            changes: 0,
            opened_by: None,
            rng,
        }
    }

    /// Accepts an operation; returns its number and when it completes.
    fn submit(&mut self, now: u64, node: u32, offset: u64, kind: Kind) -> (u64, u64) {
        let (latency, bytes) = match &kind {
            Kind::Read { buf, .. } => (self.config.read_ns, buf.len()),
            Kind::Write { pages, .. } => {
                self.changes += 1;
                let stored = pages.iter().flatten().count();
                (self.config.write_ns, stored * PAGE_BYTES)
            }
            Kind::Discard { .. } => {
                self.changes += 1;
                (self.config.discard_ns, 0)
            }
            Kind::Flush { .. } => (self.config.flush_ns, 0),
        };
        let slow = self.faults.slow.max(1);
        self.busy_until =
            self.busy_until.max(now) + bytes as u64 * 1000 * slow / self.config.bytes_per_us.max(1);
        let at = self.busy_until + self.rng.latency(latency * slow);
        let number = self.next;
        self.next += 1;
        self.operations.insert(number, Operation { node, offset, kind });
        (number, at)
    }

    /// Node whose operation this is; none when a crash has taken it away.
    pub(crate) fn operation_node(&self, number: u64) -> Option<u32> {
        self.operations.get(&number).map(|operation| operation.node)
    }

    /// Carries the operation out. Its waiter is woken; what the caller gets back is dropped after all borrows.
    pub(crate) fn complete(&mut self, now: u64, number: u64) {
        let Some(Operation { offset, kind, .. }) = self.operations.remove(&number) else { return };
        match kind {
            Kind::Read { mut buf, answer } => {
                let result = self.read(now, offset, &mut buf);
                answer.fill((result, buf));
            }
            Kind::Write { pages, held, durable, answer } => {
                let result = self.write(now, number, offset, pages, durable);
                drop(held);
                answer.fill(result);
            }
            Kind::Discard { pages, answer } => answer.fill(self.discard(now, number, offset, pages)),
            Kind::Flush { up_to, answer } => answer.fill(self.flush(now, up_to)),
        }
    }

    fn answers_at_once(&mut self, now: u64) -> bool {
        let healed = DiskFaults {
            fail_until: self.faults.fail_until * u64::from(self.faults.fail_until > now),
            stall_until: self.faults.stall_until * u64::from(self.faults.stall_until > now),
            ..self.faults.clone()
        };
        self.rng.ppm(self.config.at_once_ppm) && healed == DiskFaults::default()
    }

    fn broken(&mut self, now: u64, error_ppm: u32) -> Result<(), IoError> {
        if self.faults.gone {
            return Err(IoError::Gone);
        }
        if now < self.faults.fail_until || self.rng.ppm(error_ppm) {
            self.stats.faults += 1;
            return Err(IoError::Os(libc::EIO));
        }
        Ok(())
    }

    fn read(&mut self, now: u64, offset: u64, buf: &mut [u8]) -> Result<(), IoError> {
        self.stats.reads += 1;
        self.stats.bytes_read += buf.len() as u64;
        self.broken(now, self.faults.read_error_ppm)?;
        let (first, pages) = (offset / PAGE_BYTES as u64, (buf.len() / PAGE_BYTES) as u64);
        if self.latent.range(first..first + pages).next().is_some() {
            self.stats.faults += 1;
            return Err(IoError::Os(libc::EIO));
        }
        for (number, into) in (first..).zip(buf.chunks_exact_mut(PAGE_BYTES)) {
            into.copy_from_slice(page_bytes(self.current.page(number)));
        }
        if self.rng.ppm(self.faults.flipped_read_ppm) {
            self.stats.faults += 1;
            let at = self.rng.below(buf.len() as u64) as usize;
            buf[at] ^= 1 << self.rng.below(8);
        }
        Ok(())
    }

    fn write(
        &mut self,
        now: u64,
        number: u64,
        offset: u64,
        mut pages: Vec<Page>,
        durable: bool,
    ) -> Result<(), IoError> {
        self.changes += 1;
        self.stats.writes += 1;
        self.stats.bytes_written += (pages.len() * PAGE_BYTES) as u64;
        let mut first = offset / PAGE_BYTES as u64;
        if self.faults.full {
            return Err(IoError::Full);
        }
        if let Err(error) = self.broken(now, self.faults.write_error_ppm) {
            if error != IoError::Gone {
                self.tear(number, first, &pages);
            }
            return Err(error);
        }
        if self.rng.ppm(self.faults.lost_write_ppm) {
            self.stats.faults += 1;
            return Ok(());
        }
        if self.rng.ppm(self.faults.misdirected_write_ppm) {
            self.stats.faults += 1;
            first = self.rng.below(self.current.pages() - pages.len() as u64 + 1);
        }
        if self.rng.ppm(self.faults.flipped_write_ppm) {
            self.stats.faults += 1;
            let index = self.rng.below(pages.len() as u64) as usize;
            let mut flipped = *page_bytes(&pages[index]);
            flipped[self.rng.below(PAGE_BYTES as u64) as usize] ^= 1 << self.rng.below(8);
            pages[index] = Some(PageBytes::new(flipped));
        }
        for (page_number, page) in (first..).zip(pages) {
            self.apply(number, page_number, page, durable);
        }
        Ok(())
    }

    fn apply(&mut self, write: u64, number: u64, page: Page, durable: bool) {
        self.latent.remove(&number);
        self.completed += 1;
        if !self.unflushed.contains_key(&number) && is_same(&page, self.stable.page(number)) {
            return; // as it was, whatever becomes of this write: most slots that are zeroed hold zeros
        }
        if durable || !self.config.volatile_cache {
            self.unflushed.remove(&number);
            self.stable.set_page(number, page.clone());
        } else {
            let version = Version { order: self.completed, write, page: page.clone() };
            self.unflushed.entry(number).or_default().push(version);
        }
        self.current.set_page(number, page);
    }

    /// A failed write: any of its sectors may have been written.
    fn tear(&mut self, write: u64, first: u64, pages: &[Page]) {
        let mode = self.rng.below(3);
        for (number, page) in (first..).zip(pages) {
            let mut torn = *page_bytes(self.current.page(number));
            for sector in 0..SECTORS_PER_PAGE {
                if mode == 1 || mode == 2 && self.rng.coin() {
                    let range = sector * 512..sector * 512 + 512;
                    torn[range.clone()].copy_from_slice(&page_bytes(page)[range]);
                }
            }
            if mode > 0 {
                self.apply(write, number, Some(PageBytes::new(torn)), false);
            }
        }
    }

    fn flush(&mut self, now: u64, up_to: u64) -> Result<(), IoError> {
        self.changes += 1;
        self.stats.flushes += 1;
        self.broken(now, self.faults.write_error_ppm)?;
        let stable = &mut self.stable;
        self.unflushed.retain(|&number, versions| {
            let flushed = versions.iter().take_while(|v| v.order <= up_to).count();
            if let Some(last) = versions.drain(..flushed).next_back() {
                stable.set_page(number, last.page);
            }
            !versions.is_empty()
        });
        Ok(())
    }

    /// Adds what a crash at this moment may leave: of writes in flight, and on power loss of unflushed ones too.
    pub(crate) fn add_to(&self, space: &mut CrashSpace, power: bool) {
        let mut open: BTreeMap<u64, Vec<(Page, u64)>> = BTreeMap::new();
        if power {
            for (&number, versions) in &self.unflushed {
                open.insert(number, versions.iter().map(|v| (v.page.clone(), v.write)).collect());
            }
        }
        for (&write, operation) in &self.operations {
            if let Some(pages) = operation.kind.pages() {
                for (number, page) in (operation.offset / PAGE_BYTES as u64..).zip(pages) {
                    open.entry(number).or_default().push((page.clone(), write));
                }
            }
        }
        let base = if power { self.stable.clone() } else { self.current.clone() };
        space.add_disk(base, &open.into_iter().collect::<Vec<_>>());
    }

    /// Loses what is in flight, and becomes one of the states that a crash at this moment may leave. Returns
    /// buffers that were in flight, for the caller to drop once nothing is borrowed.
    pub(crate) fn crash(&mut self, power: bool) -> Lost {
        let mut space = CrashSpace::default();
        self.add_to(&mut space, power);
        let image = space.draw(&mut self.rng).pop().expect("one disk");
        self.changes += 1;
        self.opened_by = None;
        if power {
            self.set_image(image);
        } else {
            if self.config.volatile_cache {
                self.make_unflushed(&image);
            } else {
                self.stable = image.clone();
            }
            self.current = image;
        }
        Lost { _operations: std::mem::take(&mut self.operations) }
    }

    /// Pages that in-flight writes changed become unflushed versions.
    fn make_unflushed(&mut self, image: &Image) {
        for (&write, operation) in &self.operations {
            let Some(pages) = operation.kind.pages() else { continue };
            let first = operation.offset / PAGE_BYTES as u64;
            for number in first..first + pages.len() as u64 {
                self.completed += 1;
                let version = Version { order: self.completed, write, page: image.page(number).clone() };
                self.unflushed.entry(number).or_default().push(version);
            }
        }
    }

    /// Replaces the contents, all of them stable.
    pub(crate) fn set_image(&mut self, image: Image) {
        self.changes += 1;
        self.unflushed.clear();
        self.stable = image.clone();
        self.current = image;
    }

    /// Changes contents behind the back of whoever uses the disk, stable at once.
    pub(crate) fn plant(&mut self, change: impl Fn(&mut Image)) {
        self.changes += 1;
        change(&mut self.stable);
        change(&mut self.current);
    }
}

/// An open simulated disk.
pub struct Disk {
    host: Rc<Host>,
    disk: u32,
}

impl Disk {
    pub(crate) async fn open(
        host: Rc<Host>,
        path: &Path,
        create: Option<u64>,
        cache: WriteCache,
    ) -> Result<(Disk, DeviceInfo), IoError> {
        let name = path.to_string_lossy().into_owned();
        let mut core = host.shared.core.borrow_mut();
        let disk = match core.find_disk(host.node, &name) {
            Some(disk) => disk,
            None => {
                let bytes = create.ok_or(IoError::NotFound)?;
                let config = core.config.disk.clone();
                core.add_disk(host.node, &name, Image::new(bytes), config)
            }
        };
        let state = &mut core.disks[disk as usize];
        if state.faults.gone {
            return Err(IoError::Gone);
        }
        if state.opened_by.is_some() {
            return Err(IoError::Busy);
        }
        state.opened_by = Some(host.id);
        let info = DeviceInfo {
            kind: DeviceKind::Simulated,
            name,
            bytes: state.current.bytes(),
            volatile_cache: cache == WriteCache::Auto && state.config.volatile_cache,
            cheap_zeroes: state.config.cheap_zeroes,
            discards: true,
        };
        drop(core);
        Ok((Disk { host, disk }, info))
    }

    fn submit(&self, offset: u64, kind: impl FnOnce(&mut DiskState) -> Kind) {
        let shared: &Shared = &self.host.shared;
        let mut core = shared.core.borrow_mut();
        let now = core.now;
        let state = &mut core.disks[self.disk as usize];
        let kind = kind(state);
        let (number, at) = state.submit(now, self.host.node, offset, kind);
        core.push_at(at, Event::Disk { disk: self.disk, number });
        core.mix(0x00D1_5C00 ^ offset ^ u64::from(self.disk) << 48);
    }

    pub(crate) async fn read(&self, offset: u64, buf: Buf) -> (Result<(), IoError>, Buf) {
        let answer = Answer::new();
        self.submit(offset, |_| Kind::Read { buf, answer: answer.clone() });
        answer.wait().await
    }

    pub(crate) async fn write(&self, offset: u64, iov: IoVec, durable: bool) -> Result<(), IoError> {
        let answer = Answer::new();
        let pages = gather(&iov);
        let sum = iov.pieces().iter().fold(0, |sum, piece| sum << 1 ^ peristyle_base::crc::crc32c(piece));
        self.host.shared.core.borrow_mut().mix(u64::from(sum));
        self.submit(offset, |_| Kind::Write { pages, held: Some(iov), durable, answer: answer.clone() });
        answer.wait().await
    }

    pub(crate) fn try_read(&self, offset: u64, into: &mut [u8]) -> Option<()> {
        let mut core = self.host.shared.core.borrow_mut();
        let now = core.now;
        let state = &mut core.disks[self.disk as usize];
        (state.answers_at_once(now) && state.read(now, offset, into).is_ok()).then_some(())
    }

    pub(crate) fn try_write(&self, offset: u64, iov: &IoVec) -> Option<()> {
        let mut core = self.host.shared.core.borrow_mut();
        let now = core.now;
        let state = &mut core.disks[self.disk as usize];
        if !state.answers_at_once(now) {
            return None;
        }
        let number = state.next;
        state.next += 1;
        state.write(now, number, offset, gather(iov), true).expect("nothing is wrong with it");
        core.mix(0x00A7_01CE ^ offset ^ u64::from(self.disk) << 48);
        Some(())
    }

    pub(crate) async fn flush(&self) -> Result<(), IoError> {
        let answer = Answer::new();
        self.submit(0, |state| Kind::Flush { up_to: state.completed, answer: answer.clone() });
        answer.wait().await
    }

    pub(crate) async fn write_zeroes(&self, offset: u64, bytes: u64) -> Result<(), IoError> {
        let answer = Answer::new();
        let pages = vec![None; bytes as usize / PAGE_BYTES];
        self.submit(offset, |_| Kind::Write { pages, held: None, durable: false, answer: answer.clone() });
        answer.wait().await
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if let Ok(mut core) = self.host.shared.core.try_borrow_mut() {
            let state = &mut core.disks[self.disk as usize];
            if state.opened_by == Some(self.host.id) {
                state.opened_by = None;
            }
        }
    }
}

/// The pieces as pages.
fn gather(iov: &IoVec) -> Vec<Page> {
    let mut pages = Vec::with_capacity(iov.bytes() / PAGE_BYTES);
    let mut page = [0; PAGE_BYTES];
    let mut filled = 0;
    for piece in iov.pieces() {
        let mut rest: &[u8] = piece;
        while !rest.is_empty() {
            if filled == 0 && rest.len() >= PAGE_BYTES {
                let (whole, after) = rest.split_at(PAGE_BYTES);
                pages.push(Some(PageBytes::new(whole.try_into().expect("a page"))));
                rest = after;
                continue;
            }
            let n = (PAGE_BYTES - filled).min(rest.len());
            page[filled..filled + n].copy_from_slice(&rest[..n]);
            filled += n;
            rest = &rest[n..];
            if filled == PAGE_BYTES {
                pages.push(Some(PageBytes::new(page)));
                filled = 0;
            }
        }
    }
    pages
}
