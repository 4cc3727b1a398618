//! One column of a sealed extent, made anew on a device: rebuilt from k others when it is lost, copied where it is sound
//! when it moves or is damaged. Every row that is used was checked against the checksums that its column keeps; what
//! cannot be checked is not used (invariant 8, Never unverified).
//!
//! The column is filled in a slot of its own, which nobody reads before it is sealed. A crash leaves that slot, and the
//! next start frees it; a crash behind the seal leaves two sealed copies, of which the next start frees one.

use crate::background::{AtWork, Work};
use crate::columns::{AllocClass, ColumnFault, Columns, Fate, WriteClass};
use crate::degraded::{RowSet, SILENCE_LIMIT};
use crate::encode::REMAKE_BYTES;
use crate::error::StopReason;
use crate::extent::{Extent, ExtentPhase};
use crate::repair::Why;
use crate::shard::Shard;
use peristyle_base::{
    BLOCK_BYTES, ColumnIndex, ColumnName, ColumnPlace, DeviceId, ExtentId, RowIndex, Scheme, crc32c,
};
use peristyle_cluster::{DeviceView, ShardStore};
use peristyle_ec::{Code, ColumnSet};
use peristyle_rt::{Buf, Duration, IoVec, join_all, timeout};
use std::cell::Cell;
use std::rc::Rc;

/// Making a slot free or immutable, or filling some of its rows, takes this long at most; then the device is left alone.
const WRITE_LIMIT: Duration = Duration::from_secs(5);

/// Slots that could not be freed and are remembered; others are found when their devices come back, or at a start.
const LEFT_BEHIND_MAX: usize = 1024;

/// Why a column was not made anew. It is tried again later.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Trouble {
    /// The extent was freed, or somebody else is at work on it.
    Gone,
    /// No device of another failure domain has room.
    NoRoom,
    /// Too few columns of a row can be read and are right.
    Unreadable,
    /// The device that the column was to go to failed.
    Device,
}

/// A sealed column to read from, with the checksums of its rows.
struct Source {
    column: usize,
    place: ColumnPlace,
    name: ColumnName,
    crcs: Vec<u32>,
}

impl Source {
    fn is_good(&self, row: u16, block: &[u8]) -> bool {
        self.crcs.get(row as usize).is_some_and(|&crc| crc == crc32c(block))
    }
}

/// What is known when the work begins.
struct Remake<'a> {
    id: ExtentId,
    column: usize,
    name: ColumnName,
    scheme: Scheme,
    code: Rc<Code>,
    rows: u16,
    /// The column as it was, if it is sealed and its device answers.
    old: Option<Source>,
    others: Vec<Source>,
    at_work: AtWork<'a>,
    works: Work,
    /// Rows of the column as it was that are not what they were.
    damaged_rows: Cell<u64>,
}

/// Nobody else works on the extent's columns meanwhile.
struct Exclusive<'a, C: Columns, S: ShardStore + 'static> {
    shard: &'a Shard<C, S>,
    id: ExtentId,
}

impl<C: Columns, S: ShardStore + 'static> Drop for Exclusive<'_, C, S> {
    fn drop(&mut self) {
        if let Some(extent) = self.shard.state.borrow_mut().extents.get_mut(self.id) {
            extent.completing = false;
        }
        self.shard.space.notify_all();
    }
}

impl<C: Columns, S: ShardStore + 'static> Shard<C, S> {
    /// Makes a column anew and has it read from there. `to`: a device that was chosen; without one, the emptiest.
    pub(crate) async fn remake(
        &self,
        id: ExtentId,
        column: usize,
        why: Why,
        to: Option<DeviceId>,
    ) -> Result<u64, Trouble> {
        let _exclusive = self.begin(id)?;
        let works = if why == Why::Balance { Work::Rebalance } else { Work::Rebuild };
        let remake = self.look_at(id, column, works).await?;
        let to = self.target(id, column, to).ok_or(Trouble::NoRoom)?;
        let place = self.open_filling(&remake, to).await?;
        if let Err(trouble) = self.fill(&remake, place).await {
            self.give_back(place, remake.name).await;
            return Err(trouble);
        }
        self.switch(&remake, place).await;
        Ok(u64::from(remake.rows) * BLOCK_BYTES as u64)
    }

    fn begin(&self, id: ExtentId) -> Result<Exclusive<'_, C, S>, Trouble> {
        let state = &mut *self.state.borrow_mut();
        let free = |e: &Extent| e.phase == ExtentPhase::Sealed && !e.leftover && !e.completing;
        let extent = state.extents.get_mut(id).filter(|e| free(e)).ok_or(Trouble::Gone)?;
        extent.completing = true;
        Ok(Exclusive { shard: self, id })
    }

    /// Which columns there are to read from, and what their rows must be.
    async fn look_at(&self, id: ExtentId, column: usize, works: Work) -> Result<Remake<'_>, Trouble> {
        let (name, scheme, committed, sealed, code) = {
            let state = &mut *self.state.borrow_mut();
            let e = state.extents.get(id).ok_or(Trouble::Gone)?;
            let sealed: Vec<_> = (0..e.scheme.width())
                .filter(|c| e.sealed_columns() >> c & 1 == 1)
                .map(|c| (c, e.place(c), e.name(self.id, c)))
                .collect();
            let (name, scheme, rows) = (e.name(self.id, column), e.scheme, e.committed_rows);
            (name, scheme, rows, sealed, Self::code(state, scheme))
        };
        let reachable = sealed.into_iter().filter(|s| self.is_reachable(s.1.device));
        let tables = reachable.map(|(column, place, name)| async move {
            let answer = timeout(SILENCE_LIMIT, self.columns.row_crcs(place, name)).await;
            Some(Source { column, place, name, crcs: answer?.ok()? })
        });
        let mut sources: Vec<Source> = join_all(tables).await.into_iter().flatten().collect();
        // Frames that were given up may have been sealed on one column and not on the others: they are void.
        let rows = sources.iter().map(|s| s.crcs.len() as u16).min().unwrap_or(0).min(committed);
        let old = sources.iter().position(|s| s.column == column).map(|at| sources.remove(at));
        // An extent of which a start kept no row has columns of none, and nothing of them needs to be read.
        let unknown = rows == 0 || (old.is_none() && sources.len() < scheme.k());
        if committed > 0 && unknown {
            return Err(Trouble::Unreadable);
        }
        let at_work = self.quota.begin(works);
        Ok(Remake {
            id,
            column,
            name,
            scheme,
            code,
            rows,
            old,
            others: sources,
            at_work,
            works,
            damaged_rows: Cell::new(0),
        })
    }

    /// The device for the column: in a failure domain that none of the extent's other columns is in.
    fn target(&self, id: ExtentId, column: usize, chosen: Option<DeviceId>) -> Option<DeviceId> {
        let mut devices: Vec<DeviceView> = Vec::new();
        self.columns.devices(AllocClass::User, &mut devices);
        let fates = self.fates();
        let state = self.state.borrow();
        let extent = state.extents.get(id)?;
        let others: Vec<DeviceId> = (0..extent.scheme.width())
            .filter(|&c| c != column)
            .map(|c| extent.place(c).device)
            // What a lost device has will be elsewhere.
            .filter(|&device| fates.of(device) != Fate::Lost)
            .collect();
        let taken: Vec<_> = devices.iter().filter(|d| others.contains(&d.id)).map(|d| d.domain).collect();
        if let Some(chosen) = chosen {
            let fits = |d: &&DeviceView| d.id == chosen && d.takes_columns() && d.slots_free() > 0;
            return devices.iter().find(fits).filter(|d| !taken.contains(&d.domain)).map(|d| d.id);
        }
        let target = peristyle_cluster::target(&devices, |domain| taken.contains(&domain), self.salt_of(id));
        target.map(|i| devices[i].id)
    }

    async fn open_filling(&self, r: &Remake<'_>, device: DeviceId) -> Result<ColumnPlace, Trouble> {
        let allocate = self.columns.allocate_filling(device, r.name, r.scheme, self.epoch());
        match timeout(WRITE_LIMIT, allocate).await {
            Some(Ok(slot)) => Ok(ColumnPlace { device, slot }),
            Some(Err(ColumnFault::Full)) => Err(Trouble::NoRoom),
            Some(Err(ColumnFault::Fenced)) => {
                self.stop(StopReason::Fenced);
                Err(Trouble::Gone)
            }
            _ => Err(Trouble::Device),
        }
    }

    /// Writes all rows and seals them. Rows of zeros are holes, as those that no frame wrote are.
    async fn fill(&self, r: &Remake<'_>, place: ColumnPlace) -> Result<(), Trouble> {
        let mut crcs = Vec::with_capacity(r.rows as usize);
        let mut holes = Vec::new();
        while (crcs.len() as u16) < r.rows {
            let row = crcs.len() as u16;
            let count = r.rows_at_once().min(r.rows - row);
            let read = if r.old.is_some() { 1 } else { r.scheme.k() as u64 };
            r.at_work.take((read + 1) * u64::from(count) * BLOCK_BYTES as u64).await;
            if self.stopped().is_some() {
                return Err(Trouble::Gone);
            }
            let (block, table) = self.rows_of(r, row, count).await?;
            crcs.extend(block.chunks_exact(BLOCK_BYTES).map(crc32c));
            self.append_rows(r, place, row, (block, table, &crcs[row as usize..]), &mut holes).await?;
        }
        let seal = self.columns.seal(place, r.name, self.epoch(), r.rows, holes, crcs);
        self.written(timeout(WRITE_LIMIT, seal).await, place)
    }

    /// Appends rows behind those that are there, and adds to the holes. What a row holds decides, never its checksum: the
    /// parity of blocks that each end with a CRC32C of their own has the one of zeros.
    async fn append_rows(
        &self,
        r: &Remake<'_>,
        place: ColumnPlace,
        first: u16,
        (rows, mut table, crcs): (Buf, Buf, &[u32]),
        holes: &mut Vec<(u16, u16)>,
    ) -> Result<(), Trouble> {
        table.chunks_exact_mut(4).zip(crcs).for_each(|(out, crc)| out.copy_from_slice(&crc.to_le_bytes()));
        let (table, rows) = (table.freeze(), rows.freeze());
        let is_zero = |i: usize| rows[i * BLOCK_BYTES..][..BLOCK_BYTES].iter().all(|&b| b == 0);
        let mut at = 0;
        while at < crcs.len() {
            let hole = is_zero(at);
            let end = (at + 1..crcs.len()).find(|&i| is_zero(i) != hole).unwrap_or(crcs.len());
            let row = first + at as u16;
            let range = std::mem::replace(&mut at, end)..end;
            if hole {
                add_hole(holes, row, range.len() as u16);
                continue;
            }
            let data = IoVec::from(rows.slice(range.start * BLOCK_BYTES..range.end * BLOCK_BYTES));
            let crcs = table.slice(range.start * 4..range.end * 4);
            let append = self.columns.append(
                place,
                r.name,
                self.epoch(),
                RowIndex(row),
                data,
                crcs,
                WriteClass::Repair,
            );
            self.written(timeout(WRITE_LIMIT, append).await, place)?;
        }
        Ok(())
    }

    fn written(&self, answer: Option<Result<(), ColumnFault>>, place: ColumnPlace) -> Result<(), Trouble> {
        match answer {
            Some(Ok(())) => Ok(()),
            Some(Err(ColumnFault::Fenced)) => {
                self.stop(StopReason::Fenced);
                Err(Trouble::Gone)
            }
            Some(Err(ColumnFault::Device)) | None => {
                self.columns.report_bad(place.device, answer.and_then(Result::err));
                Err(Trouble::Device)
            }
            Some(Err(_)) => Err(Trouble::Device),
        }
    }

    /// Some rows of the column, each right: from the column as it was, else from k others. With them comes memory for
    /// their checksums.
    async fn rows_of(&self, r: &Remake<'_>, row: u16, count: u16) -> Result<(Buf, Buf), Trouble> {
        let mut memory = self.kept().remake.alloc(REMAKE_BYTES).await;
        // Whole blocks, because devices want their buffers aligned.
        let table = memory.split_to(BLOCK_BYTES);
        let mut out = memory.split_to(count as usize * BLOCK_BYTES);
        let all = u128::MAX >> (128 - count);
        let mut bad = all;
        if let Some(old) = &r.old {
            (out, bad) = self.read_checked(old, row, out).await?;
            if bad != all {
                r.damaged_rows.set(r.damaged_rows.get() + u64::from(bad.count_ones()));
            }
        }
        if bad == all && r.others.len() >= r.scheme.k() {
            let reads = r.others[..r.scheme.k()].iter().map(|source| {
                let buf = memory.split_to(count as usize * BLOCK_BYTES);
                self.read_checked(source, row, buf)
            });
            let reads: Vec<(Buf, u128)> = join_all(reads).await.into_iter().collect::<Result<_, _>>()?;
            bad = reads.iter().fold(0, |bad, read| bad | read.1);
            r.decode(&reads, &mut out);
            bad |= r.differing(row, &out);
        }
        drop(memory);
        for i in (0..count).filter(|i| bad >> i & 1 == 1) {
            let block = &mut out[i as usize * BLOCK_BYTES..][..BLOCK_BYTES];
            self.make_row(r, row + i, block).await?;
        }
        Ok((out, table))
    }

    /// Reads rows of a column; a bit for each that is not what it should be. A device that does not answer ends the
    /// attempt: the next one does without it.
    async fn read_checked(&self, source: &Source, row: u16, buf: Buf) -> Result<(Buf, u128), Trouble> {
        let all = u128::MAX >> (128 - buf.len() / BLOCK_BYTES);
        let read = self.columns.read(source.place, source.name, RowIndex(row), buf);
        let Some((answer, buf)) = timeout(SILENCE_LIMIT, read).await else {
            self.columns.report_late(source.place.device);
            return Err(Trouble::Unreadable);
        };
        let blocks = buf.chunks_exact(BLOCK_BYTES).enumerate();
        let bad = blocks.filter(|(i, block)| !source.is_good(row + *i as u16, block));
        let bad = bad.fold(0, |set, (i, _)| set | 1 << i);
        Ok((buf, if answer.is_ok() { bad } else { all }))
    }

    /// One row, from any k columns that are right in it: in each row other columns may be damaged.
    async fn make_row(&self, r: &Remake<'_>, row: u16, out: &mut [u8]) -> Result<(), Trouble> {
        r.at_work.take((r.scheme.k() * BLOCK_BYTES) as u64).await;
        let mut memory = self.kept().rows.alloc(Scheme::WIDTH_MAX * BLOCK_BYTES).await;
        let mut set = RowSet::new(r.scheme);
        for source in &r.others {
            let (buf, bad) = self.read_checked(source, row, memory.split_to(BLOCK_BYTES)).await?;
            if bad != 0 {
                continue;
            }
            set.add(source.column, Some(buf.freeze()));
            let right = |block: &[u8]| r.old.as_ref().is_none_or(|old| old.is_good(row, block));
            if set.solve_for(&r.code, ColumnIndex(r.column as u8), out, right) {
                return Ok(());
            }
        }
        Err(Trouble::Unreadable)
    }

    /// The column is read from its new place from now on; the old one is given back when nobody reads it any more.
    async fn switch(&self, r: &Remake<'_>, place: ColumnPlace) {
        let old = {
            let state = &mut *self.state.borrow_mut();
            let extent = state.extents.at(r.id);
            let (old, bit) = (extent.place(r.column), 1 << r.column);
            let known = extent.damaged & bit != 0;
            extent.set_place(r.column, place);
            for set in [&mut extent.missing, &mut extent.lost, &mut extent.damaged, &mut extent.suspected] {
                *set &= !bit;
            }
            if extent.missing == 0 {
                extent.frames = Vec::new();
            }
            let figures = &mut state.repair.figures;
            // Nobody has looked at it since: it is found and repaired at once.
            if !known && r.damaged_rows.get() > 0 {
                figures.damaged_rows += r.damaged_rows.get();
                figures.damaged_columns += 1;
            }
            match r.works {
                Work::Rebalance => figures.moved_columns += 1,
                _ => figures.remade_columns += 1,
            }
            old
        };
        self.readers.wait_for_earlier().await;
        match self.is_reachable(old.device) {
            true => self.give_back(old, r.name).await,
            // A device that does not answer now keeps a leftover, which is found when it does.
            false => self.state.borrow_mut().repair.recheck(old.device),
        }
    }

    async fn give_back(&self, place: ColumnPlace, name: ColumnName) {
        let freed = timeout(WRITE_LIMIT, self.columns.free(place, name, self.epoch())).await;
        if freed != Some(Ok(())) {
            let repair = &mut self.state.borrow_mut().repair;
            match repair.left_behind.len() < LEFT_BEHIND_MAX {
                true => repair.left_behind.push((place, name)),
                false => repair.recheck(place.device),
            }
        }
    }
}

/// Holes are runs of rows, in order.
fn add_hole(holes: &mut Vec<(u16, u16)>, row: u16, count: u16) {
    match holes.last_mut() {
        Some(last) if last.0 + last.1 == row => last.1 += count,
        _ => holes.push((row, count)),
    }
}

impl Remake<'_> {
    /// So many rows fit into the memory, of the column itself and of those that it is made from.
    fn rows_at_once(&self) -> u16 {
        // One block less, for the checksums.
        (((REMAKE_BYTES / BLOCK_BYTES) - 1) / (self.scheme.k() + 1)) as u16
    }

    /// The column's rows, from those of the first k others.
    fn decode(&self, reads: &[(Buf, u128)], out: &mut [u8]) {
        let others = &self.others[..self.scheme.k()];
        let have: ColumnSet = others.iter().map(|s| ColumnIndex(s.column as u8)).collect();
        let wanted = ColumnSet::default().with(ColumnIndex(self.column as u8));
        let plan = self.code.plan(wanted, have).expect("any k columns give the others");
        let mut sources: [Option<&[u8]>; Scheme::K_MAX as usize] = [None; Scheme::K_MAX as usize];
        for (slot, column) in sources.iter_mut().zip(plan.sources()) {
            let at = others.iter().position(|s| s.column == column.0 as usize).expect("one of them");
            *slot = Some(&reads[at].0);
        }
        self.code.reconstruct(&plan, &sources[..plan.sources().len()], &mut [&mut out[..]]);
    }

    /// Rows that are not what the column itself says of them, where it can say so.
    fn differing(&self, row: u16, out: &[u8]) -> u128 {
        let Some(old) = &self.old else { return 0 };
        let blocks = out.chunks_exact(BLOCK_BYTES).enumerate();
        blocks.filter(|(i, b)| !old.is_good(row + *i as u16, b)).fold(0, |set, (i, _)| set | 1 << i)
    }
}
