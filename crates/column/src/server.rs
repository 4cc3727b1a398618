//! The column server of one device: the state that its operations share, allocation, and what can be asked of it.
//! Appends and reads are in `data.rs`, fence, seal and free in `control.rs`, what becomes of
//! freed slots in `clearing.rs`, table writes in `pages.rs`.

use crate::clearing::Clearing;
use crate::error::ColumnError;
use crate::format::{Geometry, Label, SlotState};
use crate::ops::Ops;
use crate::pages::Pages;
use crate::slot::{Allocate, Candidate, Reserve, SlotInfo, SlotTable, Usage};
use crate::stats::{DeviceStats, Stats};
use peristyle_base::stage::Stage;
use peristyle_base::{COLUMN_BYTES, DeviceId, ExtentId, Instant, ShardId, SlotIndex};
use peristyle_rt::sync::{Notify, Permit, Semaphore};
use peristyle_rt::{Device, IoError, KeptBufs, now, spawn, try_now};
use std::cell::{Cell, RefCell};
use std::future::Future;
use std::rc::Rc;

/// Limits of one device's server. All memory that follows from them is taken when the device is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServerConfig {
    /// The device that is expected here; any other is refused.
    pub expect: Option<DeviceId>,
    /// Columns that can be open at once; each needs 2.2 KiB for its row checksums.
    pub open_columns: usize,
    /// Device writes for appends in flight; further appends wait in order of arrival.
    pub appends: usize,
    /// Appends to one slot that are queued or in flight.
    pub appends_per_slot: u16,
    /// Device reads in flight.
    pub reads: usize,
    /// Allocations, fences, seals and frees at work.
    pub controls: usize,
    /// What becomes of a freed slot's space below the device.
    pub discard: Discard,
    /// Check the data of each append against its CRCs before it is written.
    pub verify_appends: bool,
}

impl Default for ServerConfig {
    fn default() -> Self {
        ServerConfig {
            expect: None,
            open_columns: 1024,
            appends: 128,
            appends_per_slot: 32,
            reads: 256,
            controls: 64,
            discard: Discard::Auto,
            verify_appends: false,
        }
    }
}

/// Whether a freed slot's space goes back to the medium.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Discard {
    /// Slots are zeroed where that is cheap (holes are punched, the device has Write Zeroes), and discarded where the
    /// device says that it discards.
    #[default]
    Auto,
    /// As `Auto`, and discarded also where the device says nothing.
    On,
    /// Freed slots are left as they are, and zeros are written where zeros are needed.
    Off,
}

/// Serves the columns of one device, on the reactor that opened it. Clones are the same server.
#[derive(Clone)]
pub struct Server(pub(crate) Rc<Inner>);

pub(crate) struct Inner {
    pub device: Device,
    pub label: Label,
    pub config: ServerConfig,
    pub slots: RefCell<SlotTable>,
    pub pages: Pages,
    /// A block for the write of a page: what queued writes hold may come free only when a slot has been given out.
    pub kept: KeptBufs,
    pub ops: Ops,
    pub appends: Rc<Semaphore>,
    pub reads: Rc<Semaphore>,
    pub controls: Rc<Semaphore>,
    /// A device write to a slot has ended, an append was dismissed, or an exclusive operation is over.
    pub changed: Notify,
    /// A slot can be given out that could not be.
    pub cleared: Notify,
    /// What is done to freed slots; less once the device has failed to.
    pub clearing: Cell<Clearing>,
    /// A task clears those that were freed.
    pub clears: Cell<bool>,
    /// Slots on which a fence, seal or free is at work; at most `config.controls`.
    pub exclusive: RefCell<Vec<SlotIndex>>,
    pub stats: RefCell<Stats>,
}

impl Server {
    pub(crate) fn new(
        device: Device,
        label: Label,
        slots: SlotTable,
        config: ServerConfig,
        kept: KeptBufs,
    ) -> Server {
        let clearing = Clearing::of(config.discard, device.info());
        Server(Rc::new(Inner {
            device,
            label,
            config,
            slots: RefCell::new(slots),
            pages: Pages::new(label.geometry.table_pages),
            kept,
            ops: Ops::with_capacity(config.appends + config.controls),
            appends: Semaphore::new(config.appends.max(1)),
            reads: Semaphore::new(config.reads.max(1)),
            controls: Semaphore::new(config.controls.max(1)),
            changed: Notify::default(),
            cleared: Notify::default(),
            clearing: Cell::new(clearing),
            clears: Cell::new(false),
            exclusive: RefCell::new(Vec::with_capacity(config.controls)),
            stats: RefCell::new(Stats::default()),
        }))
    }

    pub fn id(&self) -> DeviceId {
        self.0.label.device
    }
    pub fn label(&self) -> &Label {
        &self.0.label
    }
    pub fn device(&self) -> &Device {
        &self.0.device
    }

    /// Columns of `shard`, in slot order: how an owner learns where its extents are.
    pub fn list(&self, shard: ShardId) -> Vec<SlotInfo> {
        self.0.slots.borrow().list(Some(shard))
    }
    pub fn list_all(&self) -> Vec<SlotInfo> {
        self.0.slots.borrow().list(None)
    }
    pub fn usage(&self) -> Usage {
        self.0.slots.borrow().usage()
    }
    pub fn damaged_slots(&self) -> Vec<SlotIndex> {
        self.0.slots.borrow().damaged().to_vec()
    }
    pub fn stats(&self, now: Instant) -> DeviceStats {
        self.0.stats.borrow().snapshot(self.id(), self.usage(), now)
    }

    /// Keeps free slots back for `shard`; replaces what was kept back for it.
    pub fn set_reserve(&self, shard: ShardId, reserve: Reserve) {
        self.0.slots.borrow_mut().set_reserve(shard, reserve);
    }

    /// Gives a free slot to the column `a.name`; durable when it returns. Idempotent by name: asked again, it answers
    /// with the same slot.
    pub async fn allocate(&self, a: Allocate) -> Result<SlotIndex, ColumnError> {
        let turn = self.0.turn().await;
        turn.done(self.allocate_turn(&a).await)
    }

    async fn allocate_turn(&self, a: &Allocate) -> Result<SlotIndex, ColumnError> {
        let inner = &self.0;
        if a.name.column.0 as usize >= a.scheme.width() || a.name.extent > ExtentId::MAX {
            return inner.refuse(ColumnError::Invalid);
        }
        loop {
            if let Some(slot) = inner.find_allocated(a)? {
                inner.commit(slot).await?;
                return Ok(slot);
            }
            let candidate = inner.slots.borrow_mut().candidate(a.class, inner.can_zero());
            match candidate {
                Candidate::Take(slot) => {
                    inner.slots.borrow_mut().open(slot, a)?;
                    inner.pages.touch(slot);
                    // Where it cannot be had, the appends find out.
                    let _ = inner.device.reserve(inner.geometry().row_offset(slot, 0), COLUMN_BYTES).await;
                }
                Candidate::Zero(slot) => {
                    let zeroing = inner.zero_slot(slot);
                    // Whether it could be zeroed or not, the slot is free again: look once more. But where not even
                    // its entry could be written, the device fails, and would in the next attempt.
                    if let Err(error) = inner.ops.wait(zeroing).await
                        && inner.can_zero()
                    {
                        return Err(ColumnError::Device(error));
                    }
                }
                Candidate::Wait => inner.cleared.notified().await,
                Candidate::Full => return Err(ColumnError::Full),
            }
        }
    }
}

impl Inner {
    pub fn geometry(&self) -> &Geometry {
        &self.label.geometry
    }

    pub fn refuse<T>(&self, error: ColumnError) -> Result<T, ColumnError> {
        self.stats.borrow_mut().refused();
        Err(error)
    }

    fn find_allocated(&self, a: &Allocate) -> Result<Option<SlotIndex>, ColumnError> {
        let slots = self.slots.borrow();
        let Some(slot) = slots.find(&a.name, a.filling) else { return Ok(None) };
        let entry = slots.entry(slot);
        let wanted = if a.filling { SlotState::Filling } else { SlotState::Open };
        if entry.name != a.name || entry.scheme != Some(a.scheme) {
            return self.refuse(ColumnError::WrongName);
        }
        if let Err(error) = SlotTable::check_epoch(entry, a.epoch) {
            return self.refuse(error);
        }
        if entry.state != wanted {
            return self.refuse(ColumnError::Sealed);
        }
        if entry.fenced || a.epoch > entry.epoch {
            return self.refuse(ColumnError::NotOpener { have: entry.epoch });
        }
        Ok(Some(slot))
    }

    /// Waits for a place among the control operations.
    pub async fn turn(self: &Rc<Inner>) -> Turn {
        let timer = Timer::start(self, |s| &mut s.control);
        let permit = self.controls.acquire(1).await;
        Turn { timer, _permit: permit }
    }

    /// Runs a device operation in a task of its own, which ends even when nobody waits any more.
    /// `after` runs when the device has answered, before the one who waits hears of it.
    pub fn start(
        self: &Rc<Inner>,
        work: impl Future<Output = Result<(), IoError>> + 'static,
        after: impl FnOnce(&Rc<Inner>, Result<(), IoError>) + 'static,
    ) -> u32 {
        let op = self.ops.begin();
        let me = self.clone();
        spawn(async move {
            let answer = work.await;
            if answer.is_err() {
                me.stats.borrow_mut().device_error();
            }
            after(&me, answer);
            me.ops.finish(op, answer);
        });
        op
    }
}

/// A place among the control operations, and its time.
pub(crate) struct Turn {
    timer: Timer,
    _permit: Permit,
}

impl Turn {
    pub fn done<T>(self, answer: Result<T, ColumnError>) -> Result<T, ColumnError> {
        self.timer.done(answer.is_ok());
        answer
    }
}

/// One request's stay in a stage. Dropped undone, it counts as failed: its caller gave up.
pub(crate) struct Timer {
    inner: Rc<Inner>,
    stage: fn(&mut Stats) -> &mut Stage,
    at: Instant,
    ok: bool,
}

impl Timer {
    pub fn start(inner: &Rc<Inner>, stage: fn(&mut Stats) -> &mut Stage) -> Timer {
        let at = now();
        stage(&mut inner.stats.borrow_mut()).enter(at);
        Timer { inner: inner.clone(), stage, at, ok: false }
    }
    pub fn done(mut self, ok: bool) {
        self.ok = ok;
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        let mut stats = self.inner.stats.borrow_mut();
        let stage = (self.stage)(&mut stats);
        // The clock is out of reach when the reactor itself is being dropped; then nobody reads the figures.
        let now = try_now().unwrap_or(self.at);
        if self.ok { stage.leave(self.at, now) } else { stage.leave_failed(self.at, now) }
    }
}
