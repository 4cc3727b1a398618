//! Every sealed column's rows are read and checked against the checksums that it keeps, at a set pace, those first that
//! were not looked at for longest. What is damaged is made anew.

use crate::background::{AtWork, Work};
use crate::columns::{ColumnFault, Columns};
use crate::degraded::SILENCE_LIMIT;
use crate::encode::REMAKE_BYTES;
use crate::extent::Extent;
use crate::repair::is_candidate;
use crate::shard::{Shard, State};
use peristyle_base::{BLOCK_BYTES, ColumnName, ColumnPlace, Epoch, ExtentId, Instant, RowIndex, crc32c};
use peristyle_cluster::ShardStore;
use peristyle_rt::{Buf, Duration, timeout};
use std::rc::Rc;

/// Extents that one look finds: each look goes over all of them.
const BATCH: usize = 64;
/// Rows that are read at once.
const ROWS: u16 = 32;
/// Between two looks at how many there are.
const PAUSE_MAX: Duration = Duration::from_secs(60);

const _: () = assert!(ROWS as usize * BLOCK_BYTES <= REMAKE_BYTES);

/// What a look at a column tells.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Verdict {
    Sound,
    Damaged {
        rows: u64,
    },
    /// Its device does not answer, or it is not what it was a moment ago.
    Unknown,
}

/// The order of those of which a start knows no time: another one at each start, so that none comes always last however
/// short the shard runs.
fn turn_of(id: ExtentId, epoch: Epoch) -> u64 {
    (id.0 ^ epoch.0.rotate_right(20)).wrapping_mul(0x9E37_79B9_7F4A_7C15)
}

impl<C: Columns, S: ShardStore + 'static> Shard<C, S> {
    pub(crate) async fn run_scrub(self: Rc<Self>) {
        let ready = || self.stopped().is_some() || self.state.borrow().settled;
        self.space.wait_until(ready).await;
        let mut began = peristyle_rt::now();
        while self.stopped().is_none() {
            let (oldest, count) = self.oldest();
            if oldest.is_empty() {
                timeout(PAUSE_MAX, self.scrub_wanted.notified()).await;
            }
            let each = self.config.scrub_period / count.max(1) as u32;
            for (id, verified_at) in oldest {
                self.wait_for_turn(began + each, verified_at).await;
                if self.stopped().is_some() {
                    return;
                }
                began = peristyle_rt::now();
                self.scrub_extent(id).await;
            }
        }
    }

    /// One extent's turn comes after the other's at the pace that reads all of them in time, or as soon as it is asked
    /// for.
    async fn wait_for_turn(&self, due: Instant, verified_at: Instant) {
        while self.stopped().is_none() && verified_at >= self.state.borrow().repair.scrub_asked {
            let left = due.since(peristyle_rt::now());
            if left.is_zero() {
                return;
            }
            timeout(left.min(PAUSE_MAX), self.scrub_wanted.notified()).await;
        }
    }

    /// Sealed extents, those first that were not verified for longest, and how many there are in all.
    fn oldest(&self) -> (Vec<(ExtentId, Instant)>, usize) {
        let state = self.state.borrow();
        let mut all: Vec<(ExtentId, Instant)> =
            state.extents.iter().filter(|e| is_candidate(e)).map(|e| (e.id, e.verified_at)).collect();
        let (count, epoch) = (all.len(), state.record.epoch);
        all.sort_unstable_by_key(|&(id, at)| (at, turn_of(id, epoch)));
        all.truncate(BATCH);
        (all, count)
    }

    /// Has every column read that was not since this moment, at the quota's pace.
    pub fn scrub_now(&self) {
        self.state.borrow_mut().repair.scrub_asked = peristyle_rt::now();
        self.scrub_wanted.notify_all();
    }

    /// Whether everything that [`scrub_now`](Self::scrub_now) asked for was read.
    pub fn is_scrubbed(&self) -> bool {
        let state = self.state.borrow();
        state.settled && scrub_left(&state) == 0
    }

    async fn scrub_extent(&self, id: ExtentId) {
        let began = peristyle_rt::now();
        let sealed: Vec<usize> = {
            let state = self.state.borrow();
            let Some(e) = state.extents.get(id).filter(|e| is_candidate(e)) else { return };
            (0..e.scheme.width()).filter(|c| e.sealed_columns() >> c & 1 == 1).collect()
        };
        for column in sealed {
            let at_work = self.quota.begin(Work::Scrub);
            self.check_column(id, column, &at_work).await;
        }
        if let Some(e) = self.state.borrow_mut().extents.get_mut(id) {
            // A column that could not be read now is lost, or away: that is a rebuild's business.
            e.verified_at = began;
        }
    }

    /// A column that gave a read something wrong: is it damaged?
    pub(crate) async fn check_suspect(&self, id: ExtentId, column: usize) {
        let at_work = self.quota.begin(Work::Rebuild);
        let verdict = self.check_column(id, column, &at_work).await;
        let retry_at = peristyle_rt::now() + SILENCE_LIMIT;
        if let Some(e) = self.state.borrow_mut().extents.get_mut(id) {
            match verdict {
                Verdict::Unknown => e.remake_at = retry_at,
                _ => e.suspected &= !(1 << column),
            }
        }
    }

    async fn check_column(&self, id: ExtentId, column: usize, at_work: &AtWork<'_>) -> Verdict {
        let there = |e: &&Extent| is_candidate(e) && e.sealed_columns() >> column & 1 == 1;
        let found = {
            let state = self.state.borrow();
            let extent = state.extents.get(id).filter(there);
            extent.map(|e| (e.place(column), e.name(self.id, column), e.committed_rows))
        };
        let Some((place, name, rows)) = found else { return Verdict::Unknown };
        let verdict = self.verify_rows(place, name, rows, at_work).await;
        let state = &mut *self.state.borrow_mut();
        state.repair.figures.scrubbed_columns += u64::from(verdict != Verdict::Unknown);
        if let Verdict::Damaged { rows } = verdict
            && let Some(e) = state.extents.get_mut(id)
            // It may have been made anew meanwhile.
            && e.place(column) == place
            && e.damaged >> column & 1 == 0
        {
            e.damaged |= 1 << column;
            state.repair.figures.damaged_rows += rows;
            state.repair.figures.damaged_columns += 1;
            self.repair_wanted.notify_all();
        }
        verdict
    }

    async fn verify_rows(
        &self,
        place: ColumnPlace,
        name: ColumnName,
        rows: u16,
        at_work: &AtWork<'_>,
    ) -> Verdict {
        if !self.is_reachable(place.device) {
            return Verdict::Unknown;
        }
        at_work.take(BLOCK_BYTES as u64).await;
        let crcs = match timeout(SILENCE_LIMIT, self.columns.row_crcs(place, name)).await {
            Some(Ok(crcs)) => crcs,
            // The checksums themselves are damaged, or the device has got an older content: nothing of the column can be
            // told to be sound.
            Some(Err(ColumnFault::Refused | ColumnFault::Missing)) => return Verdict::Damaged { rows: 0 },
            _ => return Verdict::Unknown,
        };
        let (mut row, mut damaged) = (0, 0);
        while row < rows.min(crcs.len() as u16) {
            let count = ROWS.min(rows - row);
            at_work.take(u64::from(count) * BLOCK_BYTES as u64).await;
            match self.count_damaged(place, name, row, count, &crcs).await {
                Some(found) => damaged += found,
                None => return Verdict::Unknown,
            }
            row += count;
        }
        match damaged {
            0 => Verdict::Sound,
            rows => Verdict::Damaged { rows },
        }
    }

    async fn count_damaged(
        &self,
        place: ColumnPlace,
        name: ColumnName,
        row: u16,
        count: u16,
        crcs: &[u32],
    ) -> Option<u64> {
        let buf = self.kept().remake.alloc(count as usize * BLOCK_BYTES).await;
        match timeout(SILENCE_LIMIT, self.columns.read(place, name, RowIndex(row), buf)).await? {
            (Ok(()), buf) => {
                let blocks = buf.chunks_exact(BLOCK_BYTES).zip(&crcs[row as usize..]);
                Some(blocks.filter(|(block, crc)| crc32c(block) != **crc).count() as u64)
            }
            // The device cannot read some of them; one that cannot read anything is away soon, and rebuilt.
            (Err(ColumnFault::Device), buf) => self.count_unreadable(place, name, row, buf, crcs).await,
            (Err(_), _) => None,
        }
    }

    /// Row by row, where the device could not give several.
    async fn count_unreadable(
        &self,
        place: ColumnPlace,
        name: ColumnName,
        row: u16,
        buf: Buf,
        crcs: &[u32],
    ) -> Option<u64> {
        let count = buf.len() / BLOCK_BYTES;
        drop(buf);
        let (mut damaged, mut failed) = (0, 0);
        for row in row..row + count as u16 {
            let buf = self.kept().remake.alloc(BLOCK_BYTES).await;
            match timeout(SILENCE_LIMIT, self.columns.read(place, name, RowIndex(row), buf)).await? {
                (Ok(()), buf) => damaged += u64::from(crc32c(&buf) != crcs[row as usize]),
                (Err(ColumnFault::Device), _) => failed += 1,
                (Err(_), _) => return None,
            }
        }
        // A device that gives nothing is not damaged in some rows: it is away.
        (failed < count as u64).then_some(damaged + failed)
    }
}

/// Extents that a scrub which was asked for has yet to read.
pub(crate) fn scrub_left(state: &State) -> usize {
    let asked = state.repair.scrub_asked;
    state.extents.iter().filter(|e| is_candidate(e) && e.verified_at < asked).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_is_last_at_one_start_is_among_the_first_at_others() {
        let place = |id: u64, epoch: u64| {
            let before =
                |other: &u64| turn_of(ExtentId(*other), Epoch(epoch)) < turn_of(ExtentId(id), Epoch(epoch));
            (0..500).filter(before).count()
        };
        for id in [0, 7, 250, 499] {
            let places: Vec<usize> = (1..=40).map(|epoch| place(id, epoch)).collect();
            let early = places.iter().filter(|place| **place < 100).count();
            assert!((2..=16).contains(&early), "{id}: {places:?}");
        }
    }
}
