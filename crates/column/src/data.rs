//! Appends and reads.

use crate::error::ColumnError;
use crate::format::{RowTable, SlotState};
use crate::server::{Inner, Server, Timer};
use crate::slot::{OpenId, SlotTable};
use crate::stats::WriteClass;
use peristyle_base::{
    BLOCK_BYTES, COLUMN_ROWS, ColumnName, Epoch, Instant, RowIndex, SlotIndex, crc::Crc32c, crc32c,
};
use peristyle_rt::{Buf, IoVec};
use std::rc::Rc;

/// What is known of the checksums of a column's rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RowCrcs {
    pub sealed: bool,
    /// One per row; of an open column `None` where this server has not seen the append become durable.
    pub crcs: Vec<Option<u32>>,
}

impl Server {
    /// Writes whole rows at `row`, durably. Idempotent: the same rows again are taken again. Each row has one content
    /// for ever: another CRC for a row that was appended is refused.
    ///
    /// Giving up on the future does not stop the device's write; fence, seal and free wait for it.
    #[allow(clippy::too_many_arguments)] // Each names one thing that is compared (DESIGN §6).
    pub async fn append(
        &self,
        slot: SlotIndex,
        name: &ColumnName,
        epoch: Epoch,
        row: RowIndex,
        data: IoVec,
        crcs: &[u32],
        class: WriteClass,
    ) -> Result<(), ColumnError> {
        let inner = &self.0;
        if data.bytes() != crcs.len() * BLOCK_BYTES {
            return inner.refuse(ColumnError::RowRange);
        }
        if inner.config.verify_appends
            && let Some(bad) = first_mismatch(&data, crcs)
        {
            return inner.refuse(ColumnError::CrcMismatch { row: RowIndex(row.0.saturating_add(bad)) });
        }
        let queued = Timer::start(inner, |s| &mut s.append_queue);
        let admitted = loop {
            let id = inner.compare(|slots| slots.check_append(slot, name, epoch, row, crcs))?;
            if inner.slots.borrow_mut().admit(id, inner.config.appends_per_slot.max(1)) {
                break Admitted { inner: inner.clone(), id };
            }
            inner.changed.notified().await;
        };
        let permit = inner.appends.acquire(1).await;
        queued.done(true);
        // While we waited, the column may have been fenced, sealed or freed: compare again, with no await from here to
        // the moment at which the write counts as in flight.
        let id = inner.compare(|slots| slots.check_append(slot, name, epoch, row, crcs))?;
        if id != admitted.id {
            return inner.refuse(ColumnError::WrongName);
        }
        if inner.slots.borrow().is_durable(id, row, crcs.len()) {
            return Ok(());
        }
        inner.slots.borrow_mut().begin_append(id, row, crcs);
        inner.stats.borrow_mut().wrote(class.into(), data.bytes() as u64);
        let served = Timer::start(inner, |s| &mut s.append_service);
        let (device, offset) = (inner.device.clone(), inner.geometry().row_offset(slot, row.0));
        let count = crcs.len() as u16;
        let work = async move { device.write(offset, data, true).await };
        let op = inner.start(work, move |me, answer| {
            me.slots.borrow_mut().end_append(id, row, count, answer.is_ok());
            served.done(answer.is_ok());
            drop(permit);
            drop(admitted);
        });
        inner.ops.wait(op).await.map_err(ColumnError::Device)
    }

    /// As [`append`](Self::append), begun at `started`, where nothing has to be waited for. Says when it was done. `None`,
    /// and nothing was written or counted: the device does not answer at once, or something is wrong, which `append` will
    /// tell.
    #[allow(clippy::too_many_arguments)] // As `append`.
    pub fn try_append(
        &self,
        slot: SlotIndex,
        name: &ColumnName,
        epoch: Epoch,
        row: RowIndex,
        data: &IoVec,
        crcs: &[u32],
        class: WriteClass,
        started: Instant,
    ) -> Option<Instant> {
        let inner = &self.0;
        let verify = inner.config.verify_appends;
        if data.bytes() != crcs.len() * BLOCK_BYTES || verify && first_mismatch(data, crcs).is_some() {
            return None;
        }
        let slots = &mut *inner.slots.borrow_mut();
        let id = slots.check_append(slot, name, epoch, row, crcs).ok()?;
        let _permit = inner.appends.try_acquire(1)?;
        if !slots.has_room(id, inner.config.appends_per_slot.max(1)) || slots.is_durable(id, row, crcs.len())
        {
            return None;
        }
        inner.device.try_write(inner.geometry().row_offset(slot, row.0), data)?;
        slots.begin_append(id, row, crcs);
        slots.end_append(id, row, crcs.len() as u16, true);
        let done = peristyle_rt::now();
        let stats = &mut *inner.stats.borrow_mut();
        stats.wrote(class.into(), data.bytes() as u64);
        stats.appended_at_once();
        stats.append_queue.pass(started, started);
        stats.append_service.pass(started, done);
        Some(done)
    }

    /// Fills `buf` with whole rows from `row`. Nothing is verified: the caller has the checksums.
    pub async fn read(
        &self,
        slot: SlotIndex,
        name: &ColumnName,
        row: RowIndex,
        buf: Buf,
    ) -> (Result<(), ColumnError>, Buf) {
        let inner = &self.0;
        let bytes = buf.len();
        if let Err(error) = inner.compare(|slots| check_read(slots, slot, name, row, bytes)) {
            return (Err(error), buf);
        }
        let queued = Timer::start(inner, |s| &mut s.read_queue);
        let _permit = inner.reads.acquire(1).await;
        queued.done(true);
        inner.stats.borrow_mut().read(bytes as u64);
        let served = Timer::start(inner, |s| &mut s.read_service);
        let (answer, buf) = inner.device.read(inner.geometry().row_offset(slot, row.0), buf).await;
        served.done(answer.is_ok());
        if let Err(error) = answer {
            inner.stats.borrow_mut().device_error();
            return (Err(error.into()), buf);
        }
        // The slot may have been freed and given again in the meantime.
        (inner.compare(|slots| check_read(slots, slot, name, row, bytes)), buf)
    }

    /// As [`read`](Self::read), begun at `started`, where nothing has to be waited for. Says when it was done. `None`, and
    /// nothing was counted: the device does not answer at once, or something is wrong, which `read` will tell.
    pub fn try_read(
        &self,
        slot: SlotIndex,
        name: &ColumnName,
        row: RowIndex,
        into: &mut [u8],
        started: Instant,
    ) -> Option<Instant> {
        let inner = &self.0;
        check_read(&inner.slots.borrow(), slot, name, row, into.len()).ok()?;
        let _permit = inner.reads.try_acquire(1)?;
        inner.device.try_read(inner.geometry().row_offset(slot, row.0), into)?;
        let done = peristyle_rt::now();
        let stats = &mut *inner.stats.borrow_mut();
        stats.read(into.len() as u64);
        stats.read_queue.pass(started, started);
        stats.read_service.pass(started, done);
        Some(done)
    }

    /// As [`read`](Self::read), of a sealed column, each row checked against the checksums kept at seal.
    pub async fn read_verified(
        &self,
        slot: SlotIndex,
        name: &ColumnName,
        row: RowIndex,
        buf: Buf,
    ) -> (Result<(), ColumnError>, Buf) {
        let table = match self.row_table(slot, name).await {
            Ok(table) => table,
            Err(error) => return (Err(error), buf),
        };
        let (answer, buf) = self.read(slot, name, row, buf).await;
        if answer.is_err() {
            return (answer, buf);
        }
        let rows = (row.0..).zip(buf.chunks_exact(BLOCK_BYTES));
        let bad = rows.into_iter().find(|(r, bytes)| crc32c(bytes) != table.crcs[*r as usize]);
        match bad {
            Some((row, _)) => (Err(ColumnError::CrcMismatch { row: RowIndex(row) }), buf),
            None => (Ok(()), buf),
        }
    }

    /// The checksums of a sealed column's rows, from the device; of an open one, as far as they are known.
    pub async fn row_crcs(&self, slot: SlotIndex, name: &ColumnName) -> Result<RowCrcs, ColumnError> {
        if let Some(open) = self.0.compare(|slots| {
            slots.check(slot, name)?;
            Ok(slots.open_id(slot).map(|id| {
                let column = slots.column(id);
                let known = |r: usize| column.durable.contains(r).then_some(column.crcs[r]);
                (0..column.rows_end as usize).map(known).collect()
            }))
        })? {
            return Ok(RowCrcs { sealed: false, crcs: open });
        }
        let table = self.row_table(slot, name).await?;
        let crcs = table.crcs[..table.rows.0 as usize].iter().map(|&crc| Some(crc)).collect();
        Ok(RowCrcs { sealed: true, crcs })
    }

    /// What was kept at seal: rows, holes, checksums.
    pub async fn row_table(&self, slot: SlotIndex, name: &ColumnName) -> Result<Box<RowTable>, ColumnError> {
        let inner = &self.0;
        let sealed = |slots: &SlotTable| match slots.check(slot, name)? {
            entry if entry.state == SlotState::Sealed => Ok(*entry),
            _ => Err(ColumnError::NotSealed),
        };
        let entry = inner.compare(sealed)?;
        let block = Buf::alloc(BLOCK_BYTES).await;
        inner.stats.borrow_mut().read(BLOCK_BYTES as u64);
        let (answer, block) = inner.device.read(inner.geometry().checksum_block_offset(slot), block).await;
        if let Err(error) = answer {
            inner.stats.borrow_mut().device_error();
            return Err(error.into());
        }
        inner.compare(sealed)?;
        let table = RowTable::decode(inner.label.device, slot, &entry, &block);
        table.map(Box::new).ok_or(ColumnError::CrcTableDamaged)
    }
}

impl Inner {
    /// Asks the table and counts a refusal.
    pub fn compare<T>(
        &self,
        question: impl FnOnce(&SlotTable) -> Result<T, ColumnError>,
    ) -> Result<T, ColumnError> {
        let answer = question(&self.slots.borrow());
        if answer.is_err() {
            self.stats.borrow_mut().refused();
        }
        answer
    }
}

fn check_read(
    slots: &SlotTable,
    slot: SlotIndex,
    name: &ColumnName,
    row: RowIndex,
    bytes: usize,
) -> Result<(), ColumnError> {
    let entry = slots.check(slot, name)?;
    let rows = match entry.state {
        SlotState::Filling => return Err(ColumnError::Filling),
        SlotState::Sealed => entry.rows.0,
        _ => COLUMN_ROWS,
    };
    let whole = bytes > 0 && bytes.is_multiple_of(BLOCK_BYTES);
    if !whole || row.0 as usize + bytes / BLOCK_BYTES > rows as usize {
        return Err(ColumnError::RowRange);
    }
    Ok(())
}

/// The first row of `data`, counted from its start, that does not have its CRC.
fn first_mismatch(data: &IoVec, crcs: &[u32]) -> Option<u16> {
    let (mut crc, mut have, mut row) = (Crc32c::default(), 0, 0);
    for piece in data.pieces() {
        let mut rest = &piece[..];
        while !rest.is_empty() {
            let (now, later) = rest.split_at(rest.len().min(BLOCK_BYTES - have));
            crc.update(now);
            (have, rest) = (have + now.len(), later);
            if have == BLOCK_BYTES {
                if crc.finish() != crcs[row] {
                    return Some(row as u16);
                }
                (crc, have, row) = (Crc32c::default(), 0, row + 1);
            }
        }
    }
    None
}

/// A place among a column's appends.
struct Admitted {
    inner: Rc<Inner>,
    id: OpenId,
}

impl Drop for Admitted {
    fn drop(&mut self) {
        self.inner.slots.borrow_mut().dismiss(self.id);
        self.inner.changed.notify_all();
    }
}
