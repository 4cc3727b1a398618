//! Fence, seal and free. Each has its slot to itself, waits until no device write to it is in flight, and is durable
//! when it is confirmed (DESIGN §11).

use crate::error::ColumnError;
use crate::format::{RowRange, RowSet, RowTable, SlotState, column_crc};
use crate::server::{Inner, Server};
use crate::slot::{OpenId, SlotTable};
use crate::stats::WritePurpose;
use peristyle_base::{BLOCK_BYTES, COLUMN_ROWS, ColumnName, Epoch, RowIndex, SlotIndex};
use peristyle_rt::alloc_count::background;
use peristyle_rt::{Buf, IoError, IoVec};
use std::future::Future;
use std::rc::Rc;

/// CRC32C of a row of zeros: what a hole reads as.
pub const ZERO_ROW_CRC: u32 = 0x98f9_4189;

/// The answer to a fence: from now on no append with a lower epoch succeeds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fenced {
    pub state: SlotState,
    pub epoch: Epoch,
    /// Sealed: the column's rows. Else one past the last row that this process has seen become durable.
    pub rows: RowIndex,
    /// This process has seen every append since the slot was given out, so `rows` is exact.
    pub complete: bool,
}

/// What an owner decides about a column for ever.
#[derive(Clone, Copy, Debug)]
pub struct Seal<'a> {
    pub rows: RowIndex,
    /// Rows below `rows` that no frame wrote: they read as zeros from now on.
    pub holes: &'a [RowRange],
    /// One CRC for each row below `rows` (those of holes are not looked at), or `None`: those of the appends, if this
    /// server has seen them all.
    pub crcs: Option<&'a [u32]>,
}

impl Server {
    /// Refuses every epoch below `epoch` for ever, restarts included, and every further append if that raised it.
    pub async fn fence(
        &self,
        slot: SlotIndex,
        name: &ColumnName,
        epoch: Epoch,
    ) -> Result<Fenced, ColumnError> {
        let turn = self.0.turn().await;
        turn.done(self.fence_turn(slot, name, epoch).await)
    }

    async fn fence_turn(
        &self,
        slot: SlotIndex,
        name: &ColumnName,
        epoch: Epoch,
    ) -> Result<Fenced, ColumnError> {
        let inner = &self.0;
        let _exclusive = inner.exclusive(slot).await;
        inner.compare(|slots| SlotTable::check_epoch(slots.check(slot, name)?, epoch))?;
        if inner.slots.borrow_mut().fence(slot, epoch) {
            inner.pages.touch(slot);
        }
        inner.idle(slot).await;
        inner.commit(slot).await?;
        inner.compare(|slots| {
            let entry = slots.check(slot, name)?;
            let column = slots.open_id(slot).map(|id| slots.column(id));
            Ok(Fenced {
                state: entry.state,
                epoch: entry.epoch,
                rows: column.map_or(entry.rows, |c| RowIndex(c.rows_end)),
                complete: column.is_none_or(|c| c.complete),
            })
        })
    }

    /// Fixes the column's rows for ever. Idempotent: the same seal again is confirmed again. The epoch must be that of
    /// the slot: a new owner fences first.
    pub async fn seal(
        &self,
        slot: SlotIndex,
        name: &ColumnName,
        epoch: Epoch,
        seal: Seal<'_>,
    ) -> Result<(), ColumnError> {
        let turn = self.0.turn().await;
        turn.done(self.seal_turn(slot, name, epoch, seal).await)
    }

    async fn seal_turn(
        &self,
        slot: SlotIndex,
        name: &ColumnName,
        epoch: Epoch,
        seal: Seal<'_>,
    ) -> Result<(), ColumnError> {
        let inner = &self.0;
        let _exclusive = inner.exclusive(slot).await;
        let holes = match hole_set(&seal) {
            Ok(holes) => holes,
            Err(error) => return inner.refuse(error),
        };
        let Some(id) = inner.compare(|slots| check_seal(slots, slot, name, epoch, &seal, &holes))? else {
            return inner.commit(slot).await; // sealed already, the same way
        };
        let _sealing = Sealing::start(inner, slot, id);
        inner.idle(slot).await;
        let mut block = Buf::alloc(BLOCK_BYTES).await;
        let crc = inner.compare(|slots| {
            let table = row_table(slots, slot, id, &seal, holes)?;
            table.encode(inner.label.device, slot, &mut block);
            Ok(table.column_crc())
        })?;
        // A seal that has begun is never followed by an append, which its zeros could overtake.
        inner.slots.borrow_mut().begin_seal(id, &holes);
        let needs_zeros = |hole: &RowRange| inner.slots.borrow().hole_needs_zeros(slot, *hole);
        let unwritten: Vec<RowRange> = seal.holes.iter().filter(|hole| needs_zeros(hole)).copied().collect();
        if !unwritten.is_empty() {
            let me = inner.clone();
            let fill = background(async move { me.fill_holes(slot, &unwritten).await });
            inner.write_slot(id, fill).await?;
        }
        inner.stats.borrow_mut().wrote(WritePurpose::Seal, BLOCK_BYTES as u64);
        let (device, offset) = (inner.device.clone(), inner.geometry().checksum_block_offset(slot));
        let iov = IoVec::from(block.freeze());
        inner.write_slot(id, async move { device.write(offset, iov, true).await }).await?;
        inner.slots.borrow_mut().seal(slot, seal.rows, crc);
        inner.pages.touch(slot);
        inner.commit(slot).await
    }

    /// Gives the slot back. Idempotent by name: a slot that does not hold the column (any more) is as wanted.
    pub async fn free(&self, slot: SlotIndex, name: &ColumnName, epoch: Epoch) -> Result<(), ColumnError> {
        let turn = self.0.turn().await;
        turn.done(self.free_turn(slot, name, epoch).await)
    }

    async fn free_turn(&self, slot: SlotIndex, name: &ColumnName, epoch: Epoch) -> Result<(), ColumnError> {
        let inner = &self.0;
        if slot.0 >= inner.geometry().slots {
            return inner.refuse(ColumnError::NotFound);
        }
        let _exclusive = inner.exclusive(slot).await;
        if inner.slots.borrow().check(slot, name).is_err() {
            return inner.commit(slot).await;
        }
        inner.compare(|slots| SlotTable::check_epoch(slots.check(slot, name)?, epoch))?;
        let open = inner.slots.borrow().open_id(slot);
        let _sealing = open.map(|id| Sealing::start(inner, slot, id));
        inner.idle(slot).await;
        inner.slots.borrow_mut().free(slot);
        inner.pages.touch(slot);
        let given_back = inner.give_back(slot);
        inner.commit(slot).await?;
        // The column is gone, durably.
        let _ = inner.ops.wait(given_back).await;
        Ok(())
    }
}

impl Inner {
    /// Waits until no other fence, seal or free is at work on the slot.
    async fn exclusive(self: &Rc<Inner>, slot: SlotIndex) -> Exclusive {
        let is_free = || !self.exclusive.borrow().contains(&slot);
        self.changed.wait_until(is_free).await;
        self.exclusive.borrow_mut().push(slot);
        Exclusive { inner: self.clone(), slot }
    }

    /// Waits until no device write to the slot is in flight.
    async fn idle(&self, slot: SlotIndex) {
        self.changed.wait_until(|| self.slots.borrow().writing(slot) == 0).await;
    }

    /// A write to an open column's slot that is not an append, counted as in flight until the device answers.
    async fn write_slot(
        self: &Rc<Inner>,
        id: OpenId,
        work: impl Future<Output = Result<(), IoError>> + 'static,
    ) -> Result<(), ColumnError> {
        self.slots.borrow_mut().column_mut(id).writing += 1;
        let op = self.start(work, move |me, _| {
            me.slots.borrow_mut().column_mut(id).writing -= 1;
            me.changed.notify_all();
        });
        self.ops.wait(op).await.map_err(ColumnError::Device)
    }
}

struct Exclusive {
    inner: Rc<Inner>,
    slot: SlotIndex,
}

impl Drop for Exclusive {
    fn drop(&mut self) {
        self.inner.exclusive.borrow_mut().retain(|s| *s != self.slot);
        self.inner.changed.notify_all();
    }
}

/// While a column is being sealed or freed, appends to it are refused.
struct Sealing {
    inner: Rc<Inner>,
    slot: SlotIndex,
    id: OpenId,
}

impl Sealing {
    fn start(inner: &Rc<Inner>, slot: SlotIndex, id: OpenId) -> Sealing {
        inner.slots.borrow_mut().column_mut(id).sealing = true;
        Sealing { inner: inner.clone(), slot, id }
    }
}

impl Drop for Sealing {
    fn drop(&mut self) {
        let mut slots = self.inner.slots.borrow_mut();
        if slots.open_id(self.slot) == Some(self.id) {
            slots.column_mut(self.id).sealing = false;
        }
    }
}

fn hole_set(seal: &Seal<'_>) -> Result<RowSet, ColumnError> {
    let rows = seal.rows.0;
    let mut holes = RowSet::default();
    if rows > COLUMN_ROWS || seal.crcs.is_some_and(|crcs| crcs.len() < rows as usize) {
        return Err(ColumnError::RowRange);
    }
    for hole in seal.holes {
        if hole.end() > rows as u32 {
            return Err(ColumnError::RowRange);
        }
        hole.rows().for_each(|row| holes.insert(row));
    }
    Ok(holes)
}

/// The CRC of row `row`, as the seal states it.
fn stated_crc(seal: &Seal<'_>, holes: &RowSet, row: usize) -> Option<u32> {
    if holes.contains(row) { Some(ZERO_ROW_CRC) } else { seal.crcs.map(|crcs| crcs[row]) }
}

/// `None`: sealed already, in just this way.
fn check_seal(
    slots: &SlotTable,
    slot: SlotIndex,
    name: &ColumnName,
    epoch: Epoch,
    seal: &Seal<'_>,
    holes: &RowSet,
) -> Result<Option<OpenId>, ColumnError> {
    let entry = slots.check(slot, name)?;
    SlotTable::check_epoch(entry, epoch)?;
    if entry.state == SlotState::Sealed {
        let rows = seal.rows.0 as usize;
        let crc = seal.crcs.map(|_| {
            let stated: Vec<u32> = (0..rows).filter_map(|row| stated_crc(seal, holes, row)).collect();
            column_crc(&stated)
        });
        let same = entry.rows == seal.rows && crc.is_none_or(|crc| crc == entry.column_crc);
        return if same { Ok(None) } else { Err(ColumnError::Sealed) };
    }
    if epoch > entry.epoch {
        return Err(ColumnError::NotOpener { have: entry.epoch });
    }
    Ok(Some(slots.open_id(slot).expect("open and filling slots have one")))
}

/// The checksums to keep. What was appended and what the seal states must agree: a lost write is never blessed.
fn row_table(
    slots: &SlotTable,
    slot: SlotIndex,
    id: OpenId,
    seal: &Seal<'_>,
    holes: RowSet,
) -> Result<RowTable, ColumnError> {
    let column = slots.column(id);
    let entry = slots.entry(slot);
    // The target of a rebuild becomes readable only if this process has seen every row of it become durable.
    let must_have_seen = column.complete || entry.state == SlotState::Filling;
    let mut crcs = [0; COLUMN_ROWS as usize];
    for (row, crc) in crcs.iter_mut().enumerate().take(seal.rows.0 as usize) {
        let index = RowIndex(row as u16);
        let stated = stated_crc(seal, &holes, row);
        if holes.contains(row) {
            *crc = ZERO_ROW_CRC;
            continue;
        }
        if must_have_seen && !column.durable.contains(row) {
            return Err(ColumnError::RowMissing { row: index });
        }
        let appended = column.accepted.contains(row).then_some(column.crcs[row]);
        if let (Some(stated), Some(appended)) = (stated, appended)
            && stated != appended
        {
            return Err(ColumnError::CrcMismatch { row: index });
        }
        *crc = stated.or(appended).ok_or(ColumnError::CrcUnknown { row: index })?;
    }
    Ok(RowTable { name: entry.name, rows: seal.rows, holes, crcs })
}
