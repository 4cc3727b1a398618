//! Takeover and restart: raise the epoch, fence, read the checkpoint, replay headers, decide the tail, append
//! what is kept anew, and only then serve (DESIGN §6, §11).

use crate::columns::{ColumnFault, Columns, ListedSlot, SlotState};
use crate::commit::apply;
use crate::error::ShardError;
use crate::extent::{Extent, ExtentPhase};
use crate::frame::{Entry, FrameKind, Header, Layout, NotHeader};
use crate::replay::{Found, HeaderCopies, NoHeader, Replay, Verdict, decide};
use crate::shard::{Shard, ShardConfig};
use peristyle_base::{
    BLOCK_BYTES, COLUMN_BYTES, COLUMN_ROWS, ColumnPlace, DeviceId, ExtentId, NodeId, RowIndex, Seq, ShardId,
    SlotIndex, crc32c,
};
use peristyle_cluster::{ColumnPlaces, ShardRecord, ShardStore, StoreError, Version};
use peristyle_rt::{Buf, View, join_all};
use std::collections::BTreeMap;
use std::rc::Rc;

/// Why a shard cannot be served now. Nothing was decided: trying again later is right.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RecoverError {
    /// The control store failed, or somebody else took the shard.
    Store(StoreError),
    /// Too few columns of an unsealed extent answer: waiting, never guessing.
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
    /// Another owner fenced this one meanwhile.
    Fenced,
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
            RecoverError::NoSpace => f.write_str("no extent can be opened for the log's tail"),
            RecoverError::Fenced => f.write_str("another owner took the shard"),
        }
    }
}
impl core::error::Error for RecoverError {}

/// What a recovery found and did, for the log.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct RecoveryReport {
    pub extents: usize,
    pub scanned: usize,
    pub replayed: usize,
    pub tail_kept: usize,
    pub committed: Seq,
}

/// The headers of one extent, in row order.
struct Scan {
    extent: ExtentId,
    headers: Vec<Header>,
    /// Entries of checkpoint frames; those of user frames are in the replay.
    entries: Vec<Vec<Entry>>,
    end: u16,
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
        let shard = Shard::new(id, node, config, columns, store);
        let result = shard.clone().run_recovery().await;
        if result.is_err() {
            shard.stop(crate::error::StopReason::Shutdown);
        }
        result.map(|report| (shard, report))
    }

    async fn run_recovery(self: Rc<Self>) -> Result<RecoveryReport, RecoverError> {
        let record = self.raise_epoch().await?;
        let mut report = RecoveryReport::default();
        self.find_extents(&record).await?;
        let from = record.checkpoint.as_ref().map_or(Seq(0), |c| c.seq);
        let mark = record.checkpoint.as_ref().map_or(ExtentId(0), |c| c.mark);
        let mut replay = Replay::new(from, record.committed);
        let ids: Vec<ExtentId> = {
            let state = self.state.borrow();
            // Behind the mark, or a column of it missed its seal and has to get it now.
            // An unsealed one before the mark was sealed where we cannot look now: its headers say what it holds.
            let unsealed = |e: &&Extent| e.phase == ExtentPhase::Old;
            let looked_at = |e: &&Extent| !e.leftover && (e.id >= mark || unsealed(e) || e.seal_is_due());
            let mut ids: Vec<_> = state.extents.iter().filter(looked_at).map(|e| e.id).collect();
            ids.sort_unstable();
            report.extents = state.extents.len();
            ids
        };
        report.scanned = ids.len();
        let mut scans = Vec::new();
        for id in ids {
            scans.push(self.scan(id, &mut replay).await?);
        }
        if let Some(checkpoint) = &record.checkpoint {
            self.load_checkpoint(checkpoint).await.map_err(RecoverError::Checkpoint)?;
        }
        report.replayed = self.replay_committed(&replay)?;
        let kept = self.decide_tail(&replay).await?;
        report.tail_kept = kept.len();
        report.committed = replay.committed();
        self.cut_extents(&replay, &scans, &kept).await;
        if !self.refill_now().await && self.state.borrow().extents.ready.iter().all(|r| r.is_empty()) {
            return Err(RecoverError::NoSpace);
        }
        self.start_tasks();
        self.append_kept(&replay, &kept).await?;
        self.state.borrow_mut().recovering = false;
        self.write_record(|_| {}).await.map_err(|_| RecoverError::Fenced)?;
        peristyle_rt::spawn(self.clone().settle_old_extents());
        Ok(report)
    }

    /// Step 1: epoch + 1, in a transaction. Whoever comes second gets a conflict.
    async fn raise_epoch(&self) -> Result<ShardRecord, RecoverError> {
        let loaded = self.store.load(self.id).await.map_err(RecoverError::Store)?;
        let (mut record, version) = loaded.unwrap_or_else(|| {
            (ShardRecord { shard: self.id, next_extent: ExtentId(1), ..Default::default() }, Version::ABSENT)
        });
        record.epoch = record.epoch.next();
        record.owner = self.node;
        let version = self.store.put(self.id, version, &record).await.map_err(RecoverError::Store)?;
        let state = &mut *self.state.borrow_mut();
        state.version = version;
        state.next_extent = record.next_extent;
        state.record = record.clone();
        Ok(record)
    }

    /// Steps 3 and 4: learn where the columns are, and fence those of unsealed extents.
    async fn find_extents(&self, record: &ShardRecord) -> Result<(), RecoverError> {
        let mut extents: BTreeMap<ExtentId, Extent> = BTreeMap::new();
        let mut sealed: BTreeMap<ExtentId, u32> = BTreeMap::new();
        let nobody = ColumnPlace { device: DeviceId::default(), slot: SlotIndex(0) };
        let new_extent = |id, scheme: peristyle_base::Scheme, nonce, epoch| {
            let places = ColumnPlaces::new(&vec![nobody; scheme.width()]);
            let mut extent = Extent::new(id, scheme, nonce, epoch, places, ExtentPhase::Old);
            extent.missing = (1 << scheme.width()) - 1;
            extent
        };
        for open in &record.open_set {
            let mut extent = new_extent(open.extent, open.scheme, open.nonce, open.epoch);
            extent.in_record = true;
            // Missing until they are listed; their places are known all the same, and are written back as such.
            extent.places = open.columns;
            extents.insert(open.extent, extent);
        }
        let lists = self.columns.list(self.id).await;
        let answered: Vec<DeviceId> =
            lists.iter().filter(|(_, list)| list.is_ok()).map(|(device, _)| *device).collect();
        let devices_away = lists.iter().filter(|(_, list)| list.is_err()).count();
        for slot in lists.into_iter().filter_map(|(_, list)| list.ok()).flatten() {
            let ListedSlot { place, name, scheme, state, epoch, rows } = slot;
            if state == SlotState::Filling || name.column.0 as usize >= scheme.width() {
                continue;
            }
            let extent = extents
                .entry(name.extent)
                .or_insert_with(|| new_extent(name.extent, scheme, name.nonce, epoch));
            // A slot that says otherwise than its extent's other columns belongs to a number that was given up.
            if extent.nonce != name.nonce || extent.scheme != scheme {
                continue;
            }
            let column = name.column.0 as usize;
            let mut places: Vec<ColumnPlace> = extent.places.to_vec();
            places[column] = place;
            extent.places = ColumnPlaces::new(&places);
            extent.missing &= !(1 << column);
            if state == SlotState::Sealed {
                extent.phase = ExtentPhase::Sealed;
                extent.committed_rows = rows;
                extent.next_row = rows;
                *sealed.entry(name.extent).or_default() |= 1 << column;
            }
        }
        // A device that answers and does not list a recorded column has lost it, and may give its slot to another:
        // the column gets a slot that no device has.
        for extent in extents.values_mut().filter(|e| e.in_record) {
            let mut places: Vec<ColumnPlace> = extent.places.to_vec();
            let lost = |c: &usize| extent.missing >> c & 1 == 1 && answered.contains(&places[*c].device);
            for column in (0..extent.scheme.width()).filter(lost).collect::<Vec<_>>() {
                places[column].slot = SlotIndex(u32::MAX - (extent.id.0 & 0x00FF_FFFF) as u32);
            }
            extent.places = ColumnPlaces::new(&places);
        }
        // Columns of a sealed extent that came back without their seal count as missing (DESIGN §6).
        for (id, columns) in &sealed {
            let extent = extents.get_mut(id).expect("just seen");
            extent.missing |= ((1 << extent.scheme.width()) - 1) & !columns;
        }
        for extent in extents.values_mut() {
            // More columns without a slot than devices that did not answer: it was being given back, or its
            // allocation never finished. A live extent keeps all its slots.
            let unplaced = extent.places.iter().filter(|p| p.device.is_nil()).count();
            extent.leftover = !extent.in_record && unplaced > devices_away;
        }
        for extent in extents.values_mut().filter(|e| e.phase == ExtentPhase::Old && !e.leftover) {
            self.fence(extent, record).await?;
        }
        let state = &mut *self.state.borrow_mut();
        state.extents.reserve(extents.len() + 1024);
        for (id, extent) in extents {
            state.next_extent = state.next_extent.max(id.next());
            state.extents.insert(extent);
        }
        Ok(())
    }

    /// Fences every reachable column; at least one header column must confirm, else the shard waits.
    async fn fence(&self, extent: &mut Extent, record: &ShardRecord) -> Result<(), RecoverError> {
        let epoch = record.epoch;
        let reachable: Vec<usize> =
            (0..extent.scheme.width()).filter(|c| extent.missing >> c & 1 == 0).collect();
        let fences =
            reachable.iter().map(|&c| self.columns.fence(extent.place(c), extent.name(self.id, c), epoch));
        let results = join_all(fences).await;
        let mut confirmed = false;
        for (&column, result) in reachable.iter().zip(&results) {
            match result {
                Ok(()) => confirmed |= column == 0 || column >= extent.scheme.k(),
                Err(ColumnFault::Fenced) => return Err(RecoverError::Fenced),
                Err(_) => extent.missing |= 1 << column,
            }
        }
        // Extents that never reached the open set hold nothing that was acknowledged (invariant 1).
        if !confirmed && extent.in_record {
            return Err(RecoverError::ExtentAway { extent: extent.id });
        }
        Ok(())
    }

    /// Step 6, first half: the headers of one extent, from column 0 and, where that has none, from the parity
    /// columns. Adds what it finds to the replay and to the extent's frames.
    async fn scan(&self, id: ExtentId, replay: &mut Replay) -> Result<Scan, RecoverError> {
        let (nonce, phase, rows) = {
            let state = &mut *self.state.borrow_mut();
            let e = state.extents.at(id);
            (e.nonce, e.phase, e.committed_rows)
        };
        let limit = if phase == ExtentPhase::Sealed { rows } else { COLUMN_ROWS };
        let first = self.read_rows(id, 0, 0, limit).await;
        let mut scan = Scan { extent: id, headers: Vec::new(), entries: Vec::new(), end: limit };
        let mut row = 0;
        let mut entries: Vec<Entry> = Vec::new();
        while row < limit {
            let mut copies = HeaderCopies::default();
            let header = self.header_at(id, row, first.as_deref(), &nonce, &mut entries, &mut copies).await;
            let Some(header) = header else {
                if phase == ExtentPhase::Sealed || copies.meaning() == NoHeader::Wait {
                    return Err(RecoverError::HeadersUnreadable { extent: id, row });
                }
                scan.end = row;
                break;
            };
            row = header.layout().end_row();
            scan.headers.push(header);
            let found = Found { header, entries: std::mem::take(&mut entries) };
            scan.entries.push(if header.kind == FrameKind::User {
                Vec::new()
            } else {
                found.entries.clone()
            });
            replay.add(found);
        }
        let state = &mut *self.state.borrow_mut();
        let extent = state.extents.at(id);
        if phase != ExtentPhase::Sealed || extent.seal_is_due() {
            extent.frames = scan.headers.iter().map(|h| (h.first_row.0, h.blocks)).collect();
        }
        if phase != ExtentPhase::Sealed {
            extent.committed_rows = scan.end.min(row);
            extent.next_row = extent.committed_rows;
            scan.end = extent.committed_rows;
        }
        Ok(scan)
    }

    async fn read_rows(&self, id: ExtentId, column: usize, row: u16, rows: u16) -> Option<View> {
        if rows == 0 {
            return None;
        }
        let (place, name, missing) = {
            let state = &mut *self.state.borrow_mut();
            let e = state.extents.at(id);
            (e.place(column), e.name(self.id, column), e.missing >> column & 1 == 1)
        };
        if missing && place.device.is_nil() {
            return None;
        }
        debug_assert!(rows as u64 * BLOCK_BYTES as u64 <= COLUMN_BYTES);
        let buf = Buf::alloc(rows as usize * BLOCK_BYTES).await;
        let (result, buf) = self.columns.read(place, name, RowIndex(row), buf).await;
        result.is_ok().then(|| buf.freeze())
    }

    /// A valid copy of the header at a row, or what the copies say instead.
    async fn header_at(
        &self,
        id: ExtentId,
        row: u16,
        first: Option<&[u8]>,
        nonce: &peristyle_base::Nonce,
        entries: &mut Vec<Entry>,
        copies: &mut HeaderCopies,
    ) -> Option<Header> {
        let scheme = self.state.borrow_mut().extents.at(id).scheme;
        for column in std::iter::once(0).chain(scheme.k()..scheme.width()) {
            let single;
            let block = match (column, first) {
                (0, Some(bytes)) => Some(&bytes[row as usize * BLOCK_BYTES..][..BLOCK_BYTES]),
                _ => {
                    single = self.read_rows(id, column, row, 1).await;
                    single.as_deref()
                }
            };
            let Some(block) = block else {
                copies.unreadable += 1;
                continue;
            };
            match Header::decode(block, nonce, entries) {
                Ok(h)
                    if h.extent == id && h.shard == self.id && h.first_row.0 == row && h.scheme == scheme =>
                {
                    return Some(h);
                }
                Ok(_) => {
                    entries.clear();
                    copies.damaged += 1;
                }
                Err(NotHeader::Damaged) => copies.damaged += 1,
                Err(NotHeader::Absent) => copies.absent += 1,
            }
        }
        None
    }

    fn replay_committed(&self, replay: &Replay) -> Result<usize, RecoverError> {
        let frames = replay
            .committed_frames()
            .map_err(|gap| RecoverError::LogIncomplete { missing: gap.missing, committed: gap.committed })?;
        let state = &mut *self.state.borrow_mut();
        for found in &frames {
            apply(&mut state.map, found.header.extent, &found.header.layout(), &found.entries);
        }
        state.committed = replay.committed();
        state.next_seq = state.committed.next();
        Ok(frames.len())
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
    async fn examine(self: &Rc<Self>, found: &Found, mut out: Option<&mut Vec<View>>) -> Verdict {
        let layout = found.header.layout();
        let mut lacking = false;
        let first_data = found.entries.len() - layout.blocks as usize;
        for column in 0..layout.scheme.k() {
            let blocks = layout.blocks_of(column);
            if blocks.is_empty() {
                continue;
            }
            let (_, row) = layout.place(blocks.start);
            let bytes = self.read_rows(found.header.extent, column, row.0, blocks.len() as u16).await;
            for (offset, i) in blocks.enumerate() {
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

    /// Rows of unsealed extents that stay: all before the first frame that is not known to be committed, less
    /// checkpoint frames at the end that were never finished.
    async fn cut_extents(self: &Rc<Self>, replay: &Replay, scans: &[Scan], kept: &[(Seq, ExtentId)]) {
        for scan in scans {
            if self.state.borrow_mut().extents.at(scan.extent).phase == ExtentPhase::Sealed {
                continue;
            }
            let mut cut = replay.cut_row(scan.extent, &scan.headers, scan.end);
            let first_cut = cut;
            let before = scan.headers.iter().zip(&scan.entries).filter(|(h, _)| h.first_row.0 < first_cut);
            let trailing = before.rev().take_while(|(h, _)| h.kind != FrameKind::User);
            for (header, entries) in trailing {
                let found = Found { header: *header, entries: entries.clone() };
                if self.examine(&found, None).await != Verdict::Complete {
                    cut = header.first_row.0;
                }
            }
            let state = &mut *self.state.borrow_mut();
            let extent = state.extents.at(scan.extent);
            extent.committed_rows = cut;
            extent.next_row = cut;
            // Frames of the kept tail are read from here once more; their rows go when they have moved.
            if !kept.iter().any(|k| k.1 == scan.extent) {
                extent.frames.retain(|f| f.0 < cut);
            }
        }
    }

    /// Appends the kept tail anew, in order, then one empty frame: its header records the cut before anything
    /// is served (invariant 6, Decide once).
    async fn append_kept(
        self: &Rc<Self>,
        replay: &Replay,
        kept: &[(Seq, ExtentId)],
    ) -> Result<(), RecoverError> {
        for &(seq, extent) in kept {
            let found =
                replay.candidates(seq).find(|f| f.header.extent == extent).expect("decided a moment ago");
            let mut data = Vec::with_capacity(found.header.blocks as usize);
            if self.examine(found, Some(&mut data)).await != Verdict::Complete {
                return Err(RecoverError::TailUndecided { seq });
            }
            self.append_decided(seq, found.entries.clone(), data).await?;
        }
        let boundary = self.state.borrow().next_seq;
        self.append_decided(boundary, Vec::new(), Vec::new()).await?;
        let state = &mut *self.state.borrow_mut();
        for extent in state.extents.iter_mut().filter(|e| e.phase == ExtentPhase::Old) {
            extent.frames.retain(|f| f.0 < extent.committed_rows);
        }
        Ok(())
    }

    async fn append_decided(
        self: &Rc<Self>,
        seq: Seq,
        entries: Vec<Entry>,
        data: Vec<View>,
    ) -> Result<(), RecoverError> {
        let op = {
            let state = &mut *self.state.borrow_mut();
            assert_eq!(seq, state.next_seq, "the tail is appended in order");
            state.next_seq = seq.next();
            let index = Self::frame_slot(state, FrameKind::User, seq).expect("one frame at a time");
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
        self.ops.wait(op).await.map_err(|_| RecoverError::Fenced)
    }
}
