//! Takeover and restart: raise the epoch, fence, read the checkpoint, replay headers, decide the tail, append
//! what is kept anew, and only then serve (DESIGN §6, §11).

use crate::collect::guess_births;
use crate::columns::{Columns, Fate};
use crate::commit::apply;
use crate::encode::Kept;
use crate::error::ShardError;
use crate::extent::{Extent, ExtentPhase};
use crate::find::Scan;
use crate::foresee::Foreseen;
use crate::frame::{Entry, FrameKind, Header, Layout};
use crate::map::MapFull;
use crate::ops::OpId;
use crate::record::EXTENTS_RESERVED;
use crate::replay::{Found, Replay, Verdict, decide};
use crate::shard::{Shard, ShardConfig, State};
use crate::supply::Made;
use peristyle_base::{BLOCK_BYTES, ExtentId, NodeId, Seq, ShardId, crc32c};
use peristyle_cluster::{ShardRecord, ShardStore, StoreError, Version};
use peristyle_rt::{Duration, Either, View, join, join_all, select, timeout};
use std::collections::{HashSet, VecDeque};
use std::pin::pin;
use std::rc::Rc;

/// While the former owner still serves, its checkpoint and its log are read for so long at most.
const FORESEE_LIMIT: Duration = Duration::from_millis(200);
/// A frame of the kept tail that takes longer than this is left to the next takeover: devices may be back by then.
const APPEND_LIMIT: Duration = Duration::from_secs(10);

/// Blocks of frames that a takeover reads from several columns, or appends, at the same time: it holds the memory of one part while
/// it waits for the next.
const FEW_BLOCKS: usize = 64;

/// Why a shard cannot be served now. Nothing was decided: trying again later is right.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RecoverError {
    /// The control store failed, or somebody else took the shard.
    Store(StoreError),
    /// Too few columns of an unsealed extent answer, or no column of one that the map points at: waiting, never guessing.
    ExtentAway { extent: ExtentId },
    /// The headers of an extent cannot be read at a row.
    HeadersUnreadable { extent: ExtentId, row: u16 },
    /// Frames that were committed are not found.
    LogIncomplete { missing: Seq, committed: Seq },
    /// A tail frame can be neither kept nor dropped while columns are away.
    TailUndecided { seq: Seq },
    /// The checkpoint cannot be read.
    Checkpoint(ShardError),
    /// No extent could be opened for the tail.
    NoSpace,
    /// The log's tail cannot be appended anew while too few devices answer.
    TailNotAppended { seq: Seq },
    /// Another owner fenced this one meanwhile.
    Fenced,
    /// No majority of the cluster's nodes takes this node for the owner.
    NotAccepted,
}

impl core::fmt::Display for RecoverError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            RecoverError::Store(e) => write!(f, "{e}"),
            RecoverError::ExtentAway { extent } => write!(f, "too few columns of extent {extent} answer"),
            RecoverError::HeadersUnreadable { extent, row } => {
                write!(f, "no copy of the header at row {row} of extent {extent} can be read")
            }
            RecoverError::LogIncomplete { missing, committed } => {
                write!(f, "frame {missing} is missing although {committed} is known to be committed")
            }
            RecoverError::TailUndecided { seq } => {
                write!(f, "frame {seq} cannot be decided while columns are away")
            }
            RecoverError::Checkpoint(e) => write!(f, "the checkpoint cannot be read: {e}"),
            RecoverError::TailNotAppended { seq } => {
                write!(f, "frame {seq} cannot be appended while too few devices answer")
            }
            RecoverError::NoSpace => f.write_str("no extent can be opened for the log's tail"),
            RecoverError::NotAccepted => {
                f.write_str("no majority of the cluster's nodes takes this one for the shard's owner")
            }
            RecoverError::Fenced => f.write_str("another owner took the shard"),
        }
    }
}
impl core::error::Error for RecoverError {}

/// What a recovery found and did, for the log.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct RecoveryReport {
    pub extents: usize,
    /// Of which it was looked whether the log behind the checkpoint is in them; and those in which it may be, which were read.
    pub looked_at: usize,
    pub scanned: usize,
    pub replayed: usize,
    pub tail_kept: usize,
    pub committed: Seq,
    /// The checkpoint was read before the shard was owned; and so many frames of the log.
    pub foreseen: bool,
    pub frames_foreseen: usize,
    pub times: RecoveryTimes,
}

/// What a recovery's parts took, one after the other.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct RecoveryTimes {
    /// The epoch is raised in the control store.
    pub epoch: Duration,
    /// A majority accepts the owner; the former one's lease runs out.
    pub claim: Duration,
    /// All nodes tell what they have, and columns are fenced.
    pub find: Duration,
    /// Headers are read, and the map is made.
    pub log: Duration,
    /// What was in flight is appended anew.
    pub tail: Duration,
}

/// What a recovery knows before it changes anything but epochs.
pub(crate) struct Rebuilt {
    pub replay: Replay,
    pub scans: Vec<Scan>,
    /// Frames of the tail that are kept, and the extent of each.
    pub kept: Vec<(Seq, ExtentId)>,
    /// The checkpoint's map points at blocks of this extent, and no device tells of it.
    pub absent: Option<ExtentId>,
    pub report: RecoveryReport,
}

impl<C: Columns, S: ShardStore + 'static> Shard<C, S> {
    /// Takes the shard over under the next epoch and serves it. On an error nothing was decided.
    pub async fn recover(
        id: ShardId,
        node: NodeId,
        config: ShardConfig,
        columns: Rc<C>,
        store: Rc<S>,
    ) -> Result<(Rc<Self>, RecoveryReport), RecoverError> {
        let kept = Kept::take(columns.pool_scheme().unwrap_or(config.scheme)).await;
        let shard = Shard::new(id, node, config, columns, store, kept);
        let result = shard.clone().run_recovery().await;
        if result.is_err() {
            shard.stop(crate::error::StopReason::Shutdown);
        }
        result.map(|report| (shard, report))
    }

    async fn run_recovery(self: Rc<Self>) -> Result<RecoveryReport, RecoverError> {
        let mut loaded = self.store.load(self.id).await.map_err(RecoverError::Store)?;
        let mut foreseen = Box::new(Foreseen::default());
        if let Some((record, _)) = loaded.as_ref().filter(|(record, _)| self.is_served(record)) {
            let read = Box::pin(foreseen.read(record, &*self.columns, self.config.limits()));
            timeout(FORESEE_LIMIT, read).await;
            // Its owner has gone on.
            loaded = self.store.load(self.id).await.map_err(RecoverError::Store)?;
        }
        // Of an owner that serves still, and so once: a takeover that fails leaves what it has made to the next one.
        let is_handed_over = foreseen.checkpoint.is_some();
        let began = peristyle_rt::now();
        let record = self.raise_epoch(loaded).await?;
        let raised = peristyle_rt::now();
        self.claim(&record, &mut foreseen).await?;
        let claimed = peristyle_rt::now();
        self.find_extents(&record).await?;
        let listed = peristyle_rt::now();
        let early = async { if is_handed_over { self.create_ahead().await } else { Made::default() } };
        let (rebuilt, ahead) = join(Box::pin(self.rebuild(&record, foreseen)), early).await;
        let Rebuilt { replay, scans, kept, absent, mut report } = rebuilt?;
        let rebuilt = peristyle_rt::now();
        if let Some(extent) = absent.filter(|_| self.may_come_back()) {
            return Err(RecoverError::ExtentAway { extent });
        }
        self.cut_extents(&replay, &scans, &kept).await?;
        self.find_leftovers(&record, &scans);
        guess_births(&mut self.state.borrow_mut(), self.scheme());
        self.free_pile().await?;
        let is_supplied = self.list_ahead(ahead).await || self.refill_now().await;
        if !is_supplied && self.state.borrow().extents.ready.iter().all(|r| r.is_empty()) {
            return Err(RecoverError::NoSpace);
        }
        self.start_tasks();
        self.append_kept(&replay, &kept).await?;
        self.state.borrow_mut().recovering = false;
        self.progress.notify_all(); // layers that merge go on
        peristyle_rt::spawn_background(self.clone().settle_old_extents());
        report.times = RecoveryTimes {
            epoch: raised.since(began),
            claim: claimed.since(raised),
            find: listed.since(claimed),
            log: rebuilt.since(listed),
            tail: peristyle_rt::now().since(rebuilt),
        };
        Ok(report)
    }

    /// Another node owns the shard and answers: it may serve until this one claims the shard, which can read what it needs before.
    fn is_served(&self, record: &ShardRecord) -> bool {
        record.owner != self.node && self.columns.answers(record.owner)
    }

    /// Has a majority accept this node, and reads checkpoint and log meanwhile unless that was done.
    async fn claim(&self, record: &ShardRecord, foreseen: &mut Foreseen) -> Result<(), RecoverError> {
        let mut claim = pin!(self.columns.claim(self.id, record.epoch));
        let accepted = match foreseen.checkpoint {
            Some(_) => claim.await,
            None => {
                let read = Box::pin(foreseen.read(record, &*self.columns, self.config.limits()));
                match select(claim.as_mut(), read).await {
                    Either::Left(accepted) => accepted,
                    Either::Right(()) => claim.await,
                }
            }
        };
        accepted.then_some(()).ok_or(RecoverError::NotAccepted)
    }

    /// Devices that did not tell what they have are not given up.
    fn may_come_back(&self) -> bool {
        let fates = self.fates();
        self.state.borrow().repair.unknown.iter().any(|&device| fates.of(device) != Fate::Lost)
    }

    /// Makes the map of the checkpoint and the log of the extents that were found: what is committed, and which of the tail is kept.
    /// Writes nothing.
    pub(crate) async fn rebuild(
        self: &Rc<Self>,
        record: &ShardRecord,
        foreseen: Box<Foreseen>,
    ) -> Result<Rebuilt, RecoverError> {
        let mut report = RecoveryReport::default();
        let Foreseen { checkpoint: foreseen, mut log } = *foreseen;
        let foreseen = foreseen.filter(|f| record.checkpoint.as_ref().is_some_and(|c| f.is_of(c)));
        (report.foreseen, report.frames_foreseen) = (foreseen.is_some(), log.frames());
        let from = record.checkpoint.as_ref().map_or(Seq(0), |c| c.seq);
        let mark = record.checkpoint.as_ref().map_or(ExtentId(0), |c| c.mark);
        let mut replay = Replay::new(from, record.committed);
        let ids: Vec<ExtentId> = {
            let state = self.state.borrow();
            // Behind the mark, or a column of it missed its seal and has to get it now.
            let looked_at = |e: &&Extent| e.id >= mark || e.phase == ExtentPhase::Old || e.seal_is_due();
            let mut ids: Vec<_> = state.extents.iter().filter(looked_at).map(|e| e.id).collect();
            ids.sort_unstable();
            (report.extents, report.looked_at) = (state.extents.len(), ids.len());
            ids
        };
        let mut scans = Vec::new();
        let looks = join(self.ended(&ids, &log), self.covered(&ids, from, &log));
        let (ended, covered) = Box::pin(looks).await;
        // One after the other: whoever holds one large buffer and waits for another may wait for ever.
        for id in ids {
            if covered.contains(&id) {
                continue;
            }
            let ended = ended.contains(&id);
            scans.push(self.scan(id, mark, &mut replay, &mut log, ended).await?);
            report.scanned += usize::from(!ended);
        }
        let absent = match &record.checkpoint {
            Some(checkpoint) => {
                let loaded = self.load_checkpoint(checkpoint, foreseen).await;
                loaded.map_err(RecoverError::Checkpoint)?
            }
            None => None,
        };
        self.choose_copies(&mut replay).await?;
        report.replayed = self.replay_committed(&replay).await?;
        let kept = self.decide_tail(&replay).await?;
        report.tail_kept = kept.len();
        report.committed = replay.committed();
        Ok(Rebuilt { replay, scans, kept, absent, report })
    }

    /// Step 1: epoch + 1, in a transaction. Whoever comes second gets a conflict.
    async fn raise_epoch(&self, loaded: Option<(ShardRecord, Version)>) -> Result<ShardRecord, RecoverError> {
        let (mut record, version) = loaded.unwrap_or_else(|| {
            (ShardRecord { shard: self.id, next_extent: ExtentId(1), ..Default::default() }, Version::ABSENT)
        });
        record.epoch = record.epoch.next();
        record.owner = self.node;
        // The former owner may have used all that were reserved.
        let next_extent = record.next_extent;
        record.next_extent = ExtentId(next_extent.0 + EXTENTS_RESERVED);
        let version = self.store.put(self.id, version, &record).await.map_err(RecoverError::Store)?;
        let state = &mut *self.state.borrow_mut();
        state.version = version;
        state.next_extent = next_extent;
        state.record = record.clone();
        Ok(record)
    }

    /// Which copy counts of each committed frame that was found several times: the newest complete one.
    async fn choose_copies(self: &Rc<Self>, replay: &mut Replay) -> Result<(), RecoverError> {
        for seq in replay.contested() {
            let (mut chosen, mut unknown) = (None, false);
            for found in replay.candidates(seq) {
                match self.examine(found, None).await {
                    Verdict::Complete => {
                        chosen = Some(found.header.extent);
                        break;
                    }
                    Verdict::Unknown => unknown = true,
                    Verdict::NeverCommitted => {}
                }
            }
            match chosen {
                Some(extent) => replay.choose(seq, extent),
                None if replay.is_in_checkpoint(seq) => {}
                None if unknown => return Err(RecoverError::TailUndecided { seq }),
                None => {
                    let committed = replay.committed();
                    return Err(RecoverError::LogIncomplete { missing: seq, committed });
                }
            }
        }
        Ok(())
    }

    /// Extents that neither the map nor the checkpoint refers to, and that replay does not need: they hold no frame,
    /// or lie before the mark with nothing alive in them. A column that is not there proves nothing by itself: its
    /// device may have been replaced.
    fn find_leftovers(&self, record: &ShardRecord, scans: &[Scan]) {
        let state = &mut *self.state.borrow_mut();
        let mark = record.checkpoint.as_ref().map_or(ExtentId(0), |c| c.mark);
        let holding: HashSet<ExtentId> =
            scans.iter().filter(|s| !s.headers.is_empty()).map(|s| s.extent).collect();
        let suspect = |e: &Extent| {
            let unused = e.phase == ExtentPhase::Old && e.committed_rows == 0;
            let replayed = e.id >= mark || e.in_record;
            !replayed || ((unused || (e.suspect && !e.in_record)) && !holding.contains(&e.id))
        };
        // Its frames were dropped, or are appended anew elsewhere: nothing of it stays.
        let whole: HashSet<ExtentId> = scans.iter().filter(|s| s.whole).map(|s| s.extent).collect();
        let void = |e: &Extent| {
            e.phase == ExtentPhase::Old
                && e.committed_rows == 0
                && whole.contains(&e.id)
                && holding.contains(&e.id)
        };
        // The blocks have been counted a moment ago.
        let referred = |e: &Extent| e.live > 0 || e.meta > 0;
        for extent in state.extents.iter_mut().filter(|e| suspect(e)) {
            extent.leftover = !referred(extent);
        }
        for extent in state.extents.iter_mut().filter(|e| void(e) && !e.leftover) {
            extent.empty = !referred(extent);
        }
    }

    async fn replay_committed(self: &Rc<Self>, replay: &Replay) -> Result<usize, RecoverError> {
        let frames = replay
            .committed_frames()
            .map_err(|gap| RecoverError::LogIncomplete { missing: gap.missing, committed: gap.committed })?;
        for found in &frames {
            let layout = found.header.layout();
            self.bring_for(&found.entries).await;
            let state = &mut *self.state.borrow_mut();
            let State { map, extents, .. } = state;
            apply(map, extents, found.header.extent, &layout, &found.entries)
                .map_err(|MapFull| RecoverError::Checkpoint(ShardError::MapFull))?;
            // What had to be replayed counts as log: a shard that is restarted often checkpoints all the same.
            state.log_bytes_since_checkpoint += (layout.device_blocks() * BLOCK_BYTES) as u64;
        }
        let state = &mut *self.state.borrow_mut();
        state.committed = replay.committed();
        state.next_seq = state.committed.next();
        Ok(frames.len())
    }

    /// Ranges make fewer changes where what they cover in part is in memory.
    async fn bring_for(self: &Rc<Self>, entries: &[Entry]) {
        for entry in entries {
            let (layer, block, count) = match *entry {
                Entry::Zero { layer, block, count } => (layer, block, u64::from(count)),
                Entry::LayerResized { layer, blocks } => {
                    let there = self.state.borrow().map.layer_blocks(layer).unwrap_or(blocks);
                    (layer, there.min(blocks), there.abs_diff(blocks))
                }
                _ => continue,
            };
            let _ = self.bring_edges(layer, block, count).await;
        }
    }

    /// Step 7: which frames behind the committed ones are kept. They end at the first that is dropped.
    async fn decide_tail(self: &Rc<Self>, replay: &Replay) -> Result<Vec<(Seq, ExtentId)>, RecoverError> {
        let mut kept = Vec::new();
        let mut seq = replay.committed().next();
        loop {
            let mut verdicts = Vec::new();
            let mut complete = None;
            for found in replay.candidates(seq) {
                let verdict = self.examine(found, None).await;
                verdicts.push(verdict);
                if verdict == Verdict::Complete {
                    complete = Some(found.header.extent);
                    break;
                }
            }
            match decide(&verdicts) {
                Verdict::Complete => kept.push((seq, complete.expect("one was complete"))),
                Verdict::NeverCommitted => break,
                Verdict::Unknown => return Err(RecoverError::TailUndecided { seq }),
            }
            seq = seq.next();
        }
        // Invariant 6, Decide once: the cut goes into every header of this epoch.
        self.state.borrow_mut().cut = kept.last().map_or(replay.committed(), |k| k.0);
        Ok(kept)
    }

    /// Reads every data block of a copy, reconstructing what is damaged; with `out`, keeps the blocks.
    pub(crate) async fn examine(self: &Rc<Self>, found: &Found, mut out: Option<&mut Vec<View>>) -> Verdict {
        let layout = found.header.layout();
        let mut lacking = false;
        let first_data = found.entries.len() - layout.blocks as usize;
        let mut read = VecDeque::new();
        for column in 0..layout.scheme.k() {
            if read.is_empty() {
                let few = layout.blocks as usize <= FEW_BLOCKS;
                let some = column..if few { layout.scheme.k() } else { column + 1 };
                read = join_all(some.map(|c| self.read_data(found, &layout, c))).await.into();
            }
            let bytes = read.pop_front().expect("one for each column");
            for (offset, i) in layout.blocks_of(column).enumerate() {
                let crc = found.entries[first_data + i].data_crc().expect("data entries come last");
                let block = bytes.as_ref().map(|b| b.slice(offset * BLOCK_BYTES..(offset + 1) * BLOCK_BYTES));
                let good = block.filter(|b| crc32c(b) == crc);
                lacking |= good.is_none() && bytes.is_some();
                let good = match good {
                    Some(block) => block,
                    None => {
                        let (column, row) = layout.place(i);
                        match self.reconstruct(found.header.extent, column, row, crc).await {
                            Ok(block) => block.freeze(),
                            Err(_) => return self.undecodable(&layout, found, lacking).await,
                        }
                    }
                };
                if let Some(out) = out.as_deref_mut() {
                    out.push(good);
                }
            }
        }
        Verdict::Complete
    }

    /// The blocks of a frame in one column, as they are there.
    async fn read_data(&self, found: &Found, layout: &Layout, column: usize) -> Option<View> {
        let blocks = layout.blocks_of(column);
        if blocks.is_empty() {
            return None;
        }
        let (_, row) = layout.place(blocks.start);
        self.read_rows(found.header.extent, column, row.0, blocks.len() as u16).await
    }

    /// A frame that cannot be decoded was never committed if a column that had to hold a piece answers that it
    /// does not.
    async fn undecodable(&self, layout: &Layout, found: &Found, mut lacking: bool) -> Verdict {
        let first_data = found.entries.len() - layout.blocks as usize;
        for column in 0..layout.scheme.width() {
            if lacking {
                break;
            }
            let Some((row, rows)) = layout.written(column) else { continue };
            let Some(bytes) = self.read_rows(found.header.extent, column, row, rows).await else { continue };
            if layout.has_header(column) {
                let nonce = found.header.nonce;
                lacking |= Header::decode(&bytes[..BLOCK_BYTES], &nonce, &mut Vec::new()).is_err();
            }
            if column < layout.scheme.k() {
                let skip = layout.has_header(column) as usize;
                lacking |= layout.blocks_of(column).enumerate().any(|(r, i)| {
                    let at = (skip + r) * BLOCK_BYTES;
                    Some(crc32c(&bytes[at..at + BLOCK_BYTES])) != found.entries[first_data + i].data_crc()
                });
            }
        }
        // An extent is given back only when nothing of it was committed, column by column; a stop in the middle leaves
        // some. More columns gone than can be lost together with their devices prove that it was this.
        let gone =
            self.state.borrow().extents.get(found.header.extent).map_or(0, |e| e.columns_gone as usize);
        lacking |= gone > layout.scheme.m();
        // Parity has no checksum in the header; data rows that are readable and right with parity readable and
        // too few of them good leave only parity to be wrong: then it does not hold its piece.
        let readable = self.readable_columns(layout, found).await;
        if lacking || readable >= layout.scheme.k() { Verdict::NeverCommitted } else { Verdict::Unknown }
    }

    async fn readable_columns(&self, layout: &Layout, found: &Found) -> usize {
        let mut readable = 0;
        for column in 0..layout.scheme.width() {
            match layout.written(column) {
                Some((row, rows)) => {
                    readable +=
                        self.read_rows(found.header.extent, column, row, rows).await.is_some() as usize;
                }
                None => readable += 1, // all holes: known without reading
            }
        }
        readable
    }

    /// Appends the kept tail anew, in order, then one empty frame: its header records the cut before anything
    /// is served (invariant 6, Decide once).
    async fn append_kept(
        self: &Rc<Self>,
        replay: &Replay,
        kept: &[(Seq, ExtentId)],
    ) -> Result<(), RecoverError> {
        // Small frames are on their way together; the memory of large ones is needed one by one.
        let (mut sent, mut blocks) = (VecDeque::new(), 0);
        for &(seq, extent) in kept {
            let found =
                replay.candidates(seq).find(|f| f.header.extent == extent).expect("decided a moment ago");
            let more = found.header.blocks as usize;
            while blocks + more > FEW_BLOCKS || sent.len() >= self.config.frames_in_flight_max {
                let Some((op, seq, less)) = sent.pop_front() else { break };
                self.until_appended(op, seq).await?;
                blocks -= less;
            }
            let mut data = Vec::with_capacity(more);
            if self.examine(found, Some(&mut data)).await != Verdict::Complete {
                return Err(RecoverError::TailUndecided { seq });
            }
            sent.push_back((self.append_decided(seq, found.entries.clone(), data), seq, more));
            blocks += more;
        }
        let boundary = self.state.borrow().next_seq;
        sent.push_back((self.append_decided(boundary, Vec::new(), Vec::new()), boundary, 0));
        for (op, seq, _) in sent {
            self.until_appended(op, seq).await?;
        }
        let state = &mut *self.state.borrow_mut();
        for extent in state.extents.iter_mut().filter(|e| e.phase == ExtentPhase::Old) {
            extent.frames.retain(|f| f.0 < extent.committed_rows);
        }
        Ok(())
    }

    fn append_decided(&self, seq: Seq, entries: Vec<Entry>, data: Vec<View>) -> OpId {
        let op = {
            let state = &mut *self.state.borrow_mut();
            assert_eq!(seq, state.next_seq, "the tail is appended in order");
            state.next_seq = seq.next();
            let index = Self::frame_slot(state, FrameKind::User, seq).expect("nothing else is appended yet");
            let op = self.ops.start();
            let frame = &mut state.frames[index as usize];
            frame.contents.entries.extend(entries);
            frame.contents.data.extend(data);
            frame.contents.ops.push((op, peristyle_rt::now()));
            frame.reappended = true;
            state.order.push_back(index);
            state.to_append.push_back(index);
            op
        };
        self.work.notify_all();
        op
    }

    async fn until_appended(&self, op: OpId, seq: Seq) -> Result<(), RecoverError> {
        match timeout(APPEND_LIMIT, self.ops.wait(op)).await {
            Some(result) => result.map_err(|_| RecoverError::Fenced),
            None => Err(RecoverError::TailNotAppended { seq }),
        }
    }
}
