//! Blocks that their column does not give: reconstructed from the other columns of their row.
//!
//! A host's read waits for no device without limit. A read that is late is hedged: its blocks are reconstructed beside
//! it, and the first answer counts. Devices that are known to be away are left out; only when too few others answer
//! are they asked too, and waited for, a bounded time.

use crate::columns::{ColumnFault, Columns};
use crate::error::ShardError;
use crate::map::Ptr;
use crate::read::{Piece, SharedGather};
use crate::shard::Shard;
use peristyle_base::{
    BLOCK_BYTES, ColumnIndex, ColumnName, ColumnPlace, DeviceId, ExtentId, Instant, RowIndex, Scheme, crc32c,
};
use peristyle_cluster::ShardStore;
use peristyle_ec::{Code, ColumnSet};
use peristyle_rt::{Buf, Duration, Either, View, select, timeout};
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::task::Poll;

/// Blocks that are reconstructed for hosts at the same time, hedges included; further ones wait their turn.
pub(crate) const RECONSTRUCTIONS_MAX: usize = 64;
/// Blocks that wait at the same time for devices that may come back.
pub(crate) const INSISTING_MAX: usize = 64;
/// Pause before a device that failed is asked again.
const ASK_PERIOD: Duration = Duration::from_millis(100);
/// A device that takes longer than this in a recovery, or in work beside the I/O path, counts as away there.
pub(crate) const SILENCE_LIMIT: Duration = Duration::from_secs(1);

/// Who waits for a block.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Haste {
    /// A host: a device that is late is passed over, and when too few answer they are waited for, up to a limit.
    Host,
    /// A recovery, or work beside the I/O path: devices have more time, and the caller tries again later.
    Background,
}

/// What came of a read of a column.
pub(crate) enum Answer {
    /// The column answered, at this moment; nothing is verified.
    Column(Result<(), ColumnFault>, Buf, Instant),
    /// It was late: its blocks came from the others, verified, or cannot be had.
    Others(Result<Buf, ShardError>),
}

/// What a column gave for a row.
enum Source {
    /// Its bytes, or the knowledge that it is a hole.
    Given(Option<View>),
    /// Its device failed or does not answer: it may later.
    Away,
    Nothing,
}

/// One block, by its place.
#[derive(Clone, Copy)]
struct Wanted {
    extent: ExtentId,
    column: ColumnIndex,
    row: RowIndex,
    crc: u32,
}

impl<C: Columns, S: ShardStore + 'static> Shard<C, S> {
    /// How long a host's read waits for one device before the others are asked, given the device's recent p99.
    pub(crate) fn read_limit(&self, p99_ns: u64) -> Duration {
        self.config.read_limit_min.max(Duration::from_nanos(p99_ns) * self.config.read_limit_p99s)
    }

    /// A column's read is late: the other columns are read as well, and the first answer counts.
    pub(crate) async fn hedge<R>(
        self: &Rc<Self>,
        ptr: Ptr,
        piece: Piece,
        gather: &SharedGather,
        read: Pin<&mut R>,
    ) -> Answer
    where
        R: Future<Output = (Result<(), ColumnFault>, Buf)>,
    {
        let started = peristyle_rt::now();
        {
            let stats = &mut self.state.borrow_mut().stats;
            stats.hedged_reads += 1;
            stats.reconstruct.enter(started);
        }
        let others = async {
            let mut buf = Buf::alloc(piece.count as usize * BLOCK_BYTES).await;
            self.rebuild_blocks(ptr, piece, u128::MAX, &mut buf, gather).await.map(|()| buf)
        };
        let first = select(read, std::pin::pin!(others)).await;
        let now = peristyle_rt::now();
        let stats = &mut self.state.borrow_mut().stats;
        match first {
            Either::Right(Ok(buf)) => {
                stats.hedges_won += 1;
                stats.reconstruct.leave(started, now);
                Answer::Others(Ok(buf))
            }
            Either::Right(Err(error)) => {
                stats.reconstruct.leave_failed(started, now);
                Answer::Others(Err(error))
            }
            Either::Left((result, buf)) => {
                stats.reconstruct.leave_failed(started, now);
                Answer::Column(result, buf, now)
            }
        }
    }

    /// Reconstructs the blocks of a piece whose bits are set in `bad`.
    pub(crate) async fn repair(
        self: &Rc<Self>,
        ptr: Ptr,
        piece: Piece,
        bad: u128,
        buf: &mut Buf,
        gather: &SharedGather,
        damaged: bool,
    ) -> Result<(), ShardError> {
        let started = peristyle_rt::now();
        {
            let stats = &mut self.state.borrow_mut().stats;
            stats.reconstruct.enter(started);
            match damaged {
                true => stats.damaged_blocks += bad.count_ones() as u64,
                false => stats.degraded_reads += 1,
            }
        }
        if damaged {
            self.suspect(ptr.extent(), ptr.column());
        }
        let result = self.rebuild_blocks(ptr, piece, bad, buf, gather).await;
        let now = peristyle_rt::now();
        let stats = &mut self.state.borrow_mut().stats;
        match result {
            Ok(()) => stats.reconstruct.leave(started, now),
            Err(_) => stats.reconstruct.leave_failed(started, now),
        }
        result
    }

    async fn rebuild_blocks(
        self: &Rc<Self>,
        ptr: Ptr,
        piece: Piece,
        bad: u128,
        buf: &mut Buf,
        gather: &SharedGather,
    ) -> Result<(), ShardError> {
        for i in (0..piece.count as usize).filter(|i| bad >> i & 1 == 1) {
            let crc = gather.0.borrow().crcs[piece.at as usize + i];
            let row = RowIndex(ptr.row().0 + i as u16);
            let wanted = Wanted { extent: ptr.extent(), column: ptr.column(), row, crc };
            let block = &mut buf[i * BLOCK_BYTES..(i + 1) * BLOCK_BYTES];
            self.reconstruct_block(wanted, Haste::Host, block).await?;
        }
        Ok(())
    }

    /// As [`reconstruct_block`](Self::reconstruct_block), for a recovery and for work beside the I/O path.
    pub(crate) async fn reconstruct(
        self: &Rc<Self>,
        extent: ExtentId,
        column: ColumnIndex,
        row: RowIndex,
        crc: u32,
    ) -> Result<Buf, ShardError> {
        let mut block = Buf::alloc(BLOCK_BYTES).await;
        self.reconstruct_into(extent, column, row, crc, &mut block).await?;
        Ok(block)
    }

    /// As [`reconstruct`](Self::reconstruct), for who has the block's memory.
    pub(crate) async fn reconstruct_into(
        self: &Rc<Self>,
        extent: ExtentId,
        column: ColumnIndex,
        row: RowIndex,
        crc: u32,
        block: &mut [u8],
    ) -> Result<(), ShardError> {
        // In memory of its own: a takeover is one future, and would hold several copies.
        Box::pin(self.reconstruct_block(Wanted { extent, column, row, crc }, Haste::Background, block)).await
    }

    /// As [`reconstruct`](Self::reconstruct), for who has the block's memory. Many may be at it and hold what they read
    /// before: the memory for the row is taken at once, and some is kept back for it.
    async fn reconstruct_block(
        self: &Rc<Self>,
        wanted: Wanted,
        haste: Haste,
        block: &mut [u8],
    ) -> Result<(), ShardError> {
        let column = wanted.column;
        let turn = match haste {
            Haste::Host => Some(self.reconstructions.acquire(1).await),
            Haste::Background => None,
        };
        let (code, scheme, missing) = {
            let state = &mut *self.state.borrow_mut();
            let extent = state.extents.get(wanted.extent).ok_or(ShardError::Unreadable)?;
            let (scheme, missing) = (extent.scheme, extent.missing);
            (Self::code(state, scheme), scheme, missing)
        };
        let mut set = RowSet::new(scheme);
        // Waited for here: an empty pool is no reason to call the block unreadable.
        let mut memory = self.kept().rows.alloc(scheme.width() * BLOCK_BYTES).await;
        let mut away = 1 << column.0;
        // Columns without their seal come last: what they give is believed only if the result has the checksum.
        let others = |seal_missed: u32| {
            (0..scheme.width()).filter(move |&c| c != column.0 as usize && missing >> c & 1 == seal_missed)
        };
        let mut others = others(0).chain(others(1));
        let mut asked: Vec<Reading<'_>> = Vec::with_capacity(scheme.width());
        loop {
            // As many at once as are missing, so a read takes as long as the slowest of them and not as all together. Once k are
            // there and the result is wrong, each further column widens the choice.
            let short = scheme.k().saturating_sub(set.have.0.count_ones() as usize).max(1);
            while asked.len() < short
                && let Some(c) = others.next()
            {
                asked.push(Box::pin(self.read_row(wanted, c, haste, memory.split_to(BLOCK_BYTES))));
            }
            if asked.is_empty() {
                break;
            }
            match next_answer(&mut asked).await {
                (c, Source::Given(bytes)) => {
                    set.add(c, bytes);
                    if set.solve(&code, &wanted, block) {
                        return Ok(());
                    }
                }
                (c, Source::Away) => away |= 1 << c,
                (_, Source::Nothing) => {}
            }
        }
        drop(turn);
        match haste {
            Haste::Host => Box::pin(self.insist(wanted, &code, set, block, away)).await,
            Haste::Background => Err(ShardError::Unreadable),
        }
    }

    /// One column's block of a row, with the column's number.
    async fn read_row(&self, wanted: Wanted, c: usize, haste: Haste, buf: Buf) -> (usize, Source) {
        let Some((place, name, hole)) = self.source(&wanted, c) else { return (c, Source::Nothing) };
        if hole {
            return (c, Source::Given(None));
        }
        if place.device.is_nil() {
            return (c, Source::Nothing);
        }
        let answer = match haste {
            Haste::Host if self.columns.is_away(place.device) => return (c, Source::Away),
            Haste::Host => {
                let limit = self.read_limit(self.reads.p99_ns(place.device));
                let answer = timeout(limit, self.columns.read(place, name, wanted.row, buf)).await;
                if answer.is_none() {
                    self.columns.report_late(place.device);
                }
                answer
            }
            Haste::Background if self.is_silent(place.device) => None,
            Haste::Background => {
                self.or_silent(place.device, self.columns.read(place, name, wanted.row, buf)).await
            }
        };
        let source = match answer {
            Some((Ok(()), buf)) => Source::Given(Some(buf.freeze())),
            Some((Err(ColumnFault::Device), _)) | None => Source::Away,
            Some(_) => Source::Nothing,
        };
        (c, source)
    }

    fn source(&self, wanted: &Wanted, c: usize) -> Option<(ColumnPlace, ColumnName, bool)> {
        let state = self.state.borrow();
        let extent = state.extents.get(wanted.extent)?;
        let hole = extent.is_hole(c, wanted.row.0) == Some(true);
        Some((extent.place(c), extent.name(self.id, c), hole))
    }

    /// Too few columns have answered. Those in `away` are asked for as long as a host may be kept waiting, the wanted
    /// one among them: their devices may come back. One request to each is in flight, whatever time passes.
    async fn insist(
        self: &Rc<Self>,
        wanted: Wanted,
        code: &Code,
        mut set: RowSet,
        block: &mut [u8],
        away: u32,
    ) -> Result<(), ShardError> {
        let work = async {
            let _turn = self.insisting.acquire(1).await;
            let columns = (0..Scheme::WIDTH_MAX).filter(|c| away >> c & 1 == 1);
            let mut asked: Vec<Asked<'_>> =
                columns.map(|c| Box::pin(self.ask(wanted, c)) as Asked<'_>).collect();
            while !asked.is_empty() {
                let Some((c, view)) = next_answer(&mut asked).await else { continue };
                if c == wanted.column.0 as usize {
                    if crc32c(&view) == wanted.crc {
                        block.copy_from_slice(&view);
                        return Ok(());
                    }
                    continue;
                }
                set.add(c, Some(view));
                if set.solve(code, &wanted, block) {
                    return Ok(());
                }
            }
            Err(ShardError::Unreadable)
        };
        let result = timeout(self.config.read_patience, work).await.unwrap_or(Err(ShardError::Unreadable));
        result.map_err(|error| self.stopped().map_or(error, |_| ShardError::Stopped))
    }

    /// Asks a column until its device answers; `None` when the device has not got it.
    async fn ask(&self, wanted: Wanted, c: usize) -> Option<(usize, View)> {
        while self.stopped().is_none() {
            let (place, name, _) = self.source(&wanted, c).filter(|s| !s.0.device.is_nil())?;
            let buf = Buf::alloc(BLOCK_BYTES).await;
            match self.columns.read(place, name, wanted.row, buf).await {
                (Ok(()), buf) => return Some((c, buf.freeze())),
                (Err(ColumnFault::Device), _) => peristyle_rt::sleep(ASK_PERIOD).await,
                _ => return None,
            }
        }
        None
    }

    /// A read in a recovery, or beside the I/O path. A device that does not answer in a good while is not asked again
    /// by this shard's recovery: it counts as away, as devices do that are not there at all.
    pub(crate) async fn read_or_give_up(
        &self,
        place: ColumnPlace,
        name: ColumnName,
        row: RowIndex,
        bytes: usize,
    ) -> Option<(Result<(), ColumnFault>, Buf)> {
        if self.is_silent(place.device) {
            return None;
        }
        let buf = Buf::alloc(bytes).await;
        self.or_silent(place.device, self.columns.read(place, name, row, buf)).await
    }

    pub(crate) fn is_silent(&self, device: DeviceId) -> bool {
        self.silent.borrow().contains(&device) || self.columns.is_away(device)
    }

    /// The answer to a request beside the I/O path; `None` when the device is silent.
    pub(crate) async fn or_silent<R: Future>(&self, device: DeviceId, request: R) -> Option<R::Output> {
        if self.columns.is_away(device) {
            return None; // it has been waited for already
        }
        // Passed on by address: a takeover is one future, and would hold several copies of each request's.
        let answer = timeout(SILENCE_LIMIT, Box::pin(request)).await;
        if answer.is_none() && !self.is_silent(device) {
            self.silent.borrow_mut().push(device);
            self.columns.report_bad(device, None);
        }
        answer
    }
}

type Asked<'a> = Pin<Box<dyn Future<Output = Option<(usize, View)>> + 'a>>;
type Reading<'a> = Pin<Box<dyn Future<Output = (usize, Source)> + 'a>>;

/// Waits for one of the answers, and takes it out.
async fn next_answer<T>(asked: &mut Vec<Pin<Box<dyn Future<Output = T> + '_>>>) -> T {
    poll_fn(|cx| {
        for i in 0..asked.len() {
            if let Poll::Ready(answer) = asked[i].as_mut().poll(cx) {
                drop(asked.swap_remove(i));
                return Poll::Ready(answer);
            }
        }
        Poll::Pending
    })
    .await
}

/// Blocks of one row of an extent.
pub(crate) struct RowSet {
    scheme: Scheme,
    have: ColumnSet,
    /// `None` in a column that `have` contains: a hole, zeros.
    blocks: [Option<View>; Scheme::WIDTH_MAX],
}

impl RowSet {
    pub fn new(scheme: Scheme) -> RowSet {
        RowSet { scheme, have: ColumnSet(0), blocks: [const { None }; Scheme::WIDTH_MAX] }
    }

    /// Without bytes it is a hole.
    pub fn add(&mut self, column: usize, block: Option<View>) {
        self.have = self.have.with(ColumnIndex(column as u8));
        self.blocks[column] = block;
    }

    /// Makes `out` the wanted block, from whichever k columns give the right checksum. At most C(k+m-1, k) tries.
    fn solve(&self, code: &Code, wanted: &Wanted, out: &mut [u8]) -> bool {
        self.solve_for(code, wanted.column, out, |out| crc32c(out) == wanted.crc)
    }

    /// As [`solve`](Self::solve), for who judges the result otherwise.
    pub fn solve_for(
        &self,
        code: &Code,
        column: ColumnIndex,
        out: &mut [u8],
        good: impl Fn(&[u8]) -> bool,
    ) -> bool {
        let (k, all) = (self.scheme.k(), self.have.0);
        let mut subset = all;
        // Subsets of `all`, largest first; those with exactly k columns are tried.
        loop {
            if subset.count_ones() as usize == k
                && let Ok(plan) = code.plan(ColumnSet::default().with(column), ColumnSet(subset))
            {
                let mut sources: [Option<&[u8]>; Scheme::K_MAX as usize] = [None; Scheme::K_MAX as usize];
                for (slot, c) in sources.iter_mut().zip(plan.sources()) {
                    *slot = self.blocks[c.0 as usize].as_deref();
                }
                code.reconstruct(&plan, &sources[..plan.sources().len()], &mut [&mut out[..]]);
                if good(out) {
                    return true;
                }
            }
            if subset == 0 {
                return false;
            }
            subset = (subset - 1) & all;
        }
    }
}
