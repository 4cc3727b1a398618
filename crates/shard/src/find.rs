//! The first half of a takeover: where the shard's columns are, who is fenced, and which headers they hold.

use crate::columns::{ColumnFault, Columns, ListedSlot, SlotState};
use crate::extent::{Extent, ExtentPhase};
use crate::foresee::ForeseenLog;
use crate::frame::{Entry, FRAME_BLOCKS_MAX, FrameKind, Header, NotHeader, has_nonce};
use crate::recover::RecoverError;
use crate::replay::{Found, HeaderCopies, NoHeader, Replay};
use crate::shard::Shard;
use peristyle_base::{
    BLOCK_BYTES, COLUMN_BYTES, COLUMN_ROWS, ColumnPlace, DeviceId, ExtentId, Nonce, RowIndex, Scheme, Seq,
    ShardId, SlotIndex,
};
use peristyle_cluster::{ColumnPlaces, ShardRecord, ShardStore};
use peristyle_rt::{View, join_all};
use std::collections::{BTreeMap, HashSet};

/// Extents that are fenced, or looked at, at the same time.
const TOGETHER: usize = 16;

/// The headers of one extent, in row order.
pub(crate) struct Scan {
    pub extent: ExtentId,
    pub headers: Vec<Header>,
    /// Entries of checkpoint frames; those of user frames are in the replay.
    pub entries: Vec<Vec<Entry>>,
    pub end: u16,
    /// Every header up to the end of the log was read.
    pub whole: bool,
    /// The log behind the checkpoint may have frames in it.
    pub replayed: bool,
}

impl Scan {
    /// The next frame.
    fn take(&mut self, found: Found, replay: &mut Replay) {
        self.headers.push(found.header);
        self.entries.push(match found.header.kind {
            FrameKind::User => Vec::new(),
            _ => found.entries.clone(),
        });
        match self.replayed {
            true => replay.add(found),
            false => replay.hear(&found.header),
        }
    }

    /// The row behind the last frame.
    fn read_to(&self) -> u16 {
        self.headers.last().map_or(0, |header| header.layout().end_row())
    }
}

/// Rows at the end of a sealed extent in which its last frame's header is looked for at first.
pub(crate) const LAST_ROWS: u16 = 8;
/// Rows of an unsealed extent that are read at first: many were in use for moments only.
const FIRST_ROWS: u16 = 64;

/// What the last rows of a sealed extent say of its last frame.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Last {
    User(Seq),
    /// It begins before these rows.
    NotThere,
    /// It is no user's, or cannot be read.
    Unknown,
}

/// What every header of an extent says of it.
pub(crate) struct Whose {
    pub shard: ShardId,
    pub extent: ExtentId,
    pub nonce: Nonce,
    pub scheme: Scheme,
}

impl Whose {
    /// The header of the frame that begins at a row, from the block there; its entries go behind what is in `entries`.
    pub fn header(&self, block: &[u8], row: u16, entries: &mut Vec<Entry>) -> Result<Header, NotHeader> {
        let before = entries.len();
        let header = Header::decode(block, &self.nonce, entries)?;
        let same = (header.shard, header.extent, header.scheme) == (self.shard, self.extent, self.scheme);
        if same && header.first_row.0 == row {
            return Ok(header);
        }
        entries.truncate(before);
        Err(NotHeader::Damaged)
    }

    /// What rows from `first` to the end of a sealed extent, of a column with headers, say of its last frame: users' frames stand in an
    /// extent in the order of their numbers.
    pub fn last_in(&self, rows: &[u8], first: u16) -> Last {
        let blocks: Vec<(u16, &[u8])> = (first..).zip(rows.chunks_exact(BLOCK_BYTES)).collect();
        let last = blocks.into_iter().rfind(|(_, block)| has_nonce(block, &self.nonce));
        let Some((row, block)) = last else { return Last::NotThere };
        match self.header(block, row, &mut Vec::new()) {
            Ok(h) if h.kind == FrameKind::User => Last::User(h.seq),
            _ => Last::Unknown,
        }
    }
}

/// Columns that have the header of every frame.
pub(crate) fn header_columns(scheme: Scheme) -> impl Iterator<Item = usize> {
    std::iter::once(0).chain(scheme.k()..scheme.width())
}

/// Rows of one column, read in one piece.
pub(crate) struct Ahead {
    pub column: usize,
    pub row: u16,
    pub view: View,
}

impl Ahead {
    fn end(&self) -> u16 {
        self.row + (self.view.len() / BLOCK_BYTES) as u16
    }
    pub fn block(&self, row: u16) -> Option<&[u8]> {
        let at = row.checked_sub(self.row)? as usize * BLOCK_BYTES;
        self.view.get(at..at + BLOCK_BYTES)
    }
}

impl<C: Columns, S: ShardStore + 'static> Shard<C, S> {
    /// Steps 3 and 4: learn where the columns are, and fence those of unsealed extents.
    pub(crate) async fn find_extents(&self, record: &ShardRecord) -> Result<(), RecoverError> {
        let mut extents: BTreeMap<ExtentId, Extent> = BTreeMap::new();
        let mut sealed: BTreeMap<ExtentId, u32> = BTreeMap::new();
        let mut left_behind = Vec::new();
        let nobody = ColumnPlace { device: DeviceId::default(), slot: SlotIndex(0) };
        let new_extent = |id, scheme: Scheme, nonce, epoch| {
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
        let silent = lists.iter().filter(|(_, list)| list.is_err()).map(|(device, _)| *device);
        let silent: Vec<DeviceId> = silent.collect();
        {
            let repair = &mut self.state.borrow_mut().repair;
            (repair.unlisted, repair.unknown) = (silent.clone(), silent);
        }
        let devices_away = lists.iter().filter(|(_, list)| list.is_err()).count();
        for slot in lists.into_iter().filter_map(|(_, list)| list.ok()).flatten() {
            let ListedSlot { place, name, scheme, state, epoch, rows } = slot;
            if name.column.0 as usize >= scheme.width() {
                continue;
            }
            if state == SlotState::Filling {
                left_behind.push((place, name));
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
            let sealed_columns = sealed.entry(name.extent).or_default();
            // A column that was made anew, or moved, and of which the owner did not free the old slot.
            if extent.missing >> column & 1 == 0 {
                let stays = state == SlotState::Sealed && *sealed_columns >> column & 1 == 0;
                left_behind.push(if stays { (extent.place(column), name) } else { (place, name) });
                if !stays {
                    continue;
                }
            }
            extent.set_place(column, place);
            extent.missing &= !(1 << column);
            if state == SlotState::Sealed {
                // Where columns disagree, what is beyond the shortest is void: it was given up before it was committed.
                let rows = if *sealed_columns == 0 { rows } else { rows.min(extent.committed_rows) };
                extent.phase = ExtentPhase::Sealed;
                extent.committed_rows = rows;
                extent.next_row = rows;
                *sealed_columns |= 1 << column;
            }
        }
        sealed.retain(|_, columns| *columns != 0);
        self.state.borrow_mut().repair.left_behind = left_behind;
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
            // More columns without a slot than devices that did not answer: it was being given back, its
            // allocation never finished, or a device is gone for good. What it is, the map will tell.
            let unplaced = extent.places.iter().filter(|p| p.device.is_nil()).count();
            extent.suspect = unplaced > devices_away;
            extent.columns_gone = unplaced.saturating_sub(devices_away) as u8;
        }
        let mut unsealed: Vec<&mut Extent> =
            extents.values_mut().filter(|e| e.phase == ExtentPhase::Old).collect();
        for some in unsealed.chunks_mut(TOGETHER) {
            let fences = some.iter_mut().map(|extent| self.fence(extent, record));
            join_all(fences).await.into_iter().collect::<Result<(), _>>()?;
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
        let silent = |c: &usize| self.is_silent(extent.place(*c).device);
        extent.missing |= (0..extent.scheme.width()).filter(silent).fold(0, |set, c| set | 1 << c);
        let reachable: Vec<usize> =
            (0..extent.scheme.width()).filter(|c| extent.missing >> c & 1 == 0).collect();
        let fences = reachable.iter().map(|&c| {
            let (place, name) = (extent.place(c), extent.name(self.id, c));
            async move {
                let fence = self.columns.fence(place, name, epoch);
                self.or_silent(place.device, fence).await.unwrap_or(Err(ColumnFault::Device))
            }
        });
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
    /// columns. Adds what it finds to the replay and to the extent's frames. `ended`: there is no more than what was foreseen.
    pub(crate) async fn scan(
        &self,
        id: ExtentId,
        mark: ExtentId,
        replay: &mut Replay,
        foreseen: &mut ForeseenLog,
        ended: bool,
    ) -> Result<Scan, RecoverError> {
        let (nonce, phase, rows, replayed, needed) = {
            let state = &mut *self.state.borrow_mut();
            let e = state.extents.at(id);
            // Replay does without what lies before the mark; and there is no use in waiting for columns that no
            // device has. If a committed frame was among them, the log has a gap, and that is found out.
            let replayed = e.in_record || e.id >= mark;
            (e.nonce, e.phase, e.committed_rows, replayed, e.in_record || (replayed && !e.suspect))
        };
        let limit = if phase == ExtentPhase::Sealed { rows } else { COLUMN_ROWS };
        let (headers, entries) = (Vec::new(), Vec::new());
        let mut scan = Scan { extent: id, headers, entries, end: limit, whole: true, replayed };
        for found in foreseen.take_beginning(id, nonce, limit) {
            scan.take(found, replay);
        }
        let mut row = scan.read_to();
        let mut entries: Vec<Entry> = Vec::new();
        let (mut ahead, mut first) = (None, true);
        while row < limit && !ended {
            if first || ahead.as_ref().is_some_and(|ahead: &Ahead| row >= ahead.end()) {
                // Whoever holds one large buffer and waits for another may wait for ever.
                drop(ahead.take());
                ahead = self.read_ahead(id, row, limit, first).await;
                first = false;
            }
            let mut copies = HeaderCopies::default();
            let header = self.header_at(id, row, ahead.as_ref(), &mut entries, &mut copies).await;
            let Some(header) = header else {
                if phase != ExtentPhase::Sealed && copies.meaning() == NoHeader::End {
                    scan.end = row;
                    break;
                }
                if needed {
                    return Err(RecoverError::HeadersUnreadable { extent: id, row });
                }
                scan.whole = false;
                return Ok(scan);
            };
            scan.take(Found { header, entries: std::mem::take(&mut entries) }, replay);
            row = scan.read_to();
        }
        let state = &mut *self.state.borrow_mut();
        let extent = state.extents.at(id);
        if phase != ExtentPhase::Sealed || extent.seal_is_due() {
            extent.frames = scan.headers.iter().map(|h| (h.first_row.0, h.blocks)).collect();
        }
        if phase == ExtentPhase::Sealed {
            extent.empty = scan.headers.iter().all(|h| h.blocks == 0);
        } else {
            extent.committed_rows = scan.end.min(row);
            extent.next_row = extent.committed_rows;
            scan.end = extent.committed_rows;
        }
        Ok(scan)
    }

    /// Of these extents the unsealed ones in which nothing follows what was foreseen: most of what an owner leaves behind was in stock,
    /// and nobody has written to it. Holds a block of each column that it looks at, and waits for nothing else meanwhile.
    pub(crate) async fn ended(&self, ids: &[ExtentId], foreseen: &ForeseenLog) -> HashSet<ExtentId> {
        let unsealed: Vec<(ExtentId, u16)> = {
            let state = self.state.borrow();
            let unsealed = ids.iter().filter_map(|id| state.extents.get(*id));
            let unsealed = unsealed.filter(|e| e.phase == ExtentPhase::Old);
            unsealed.map(|e| (e.id, foreseen.rows_of(e.id, e.nonce))).collect()
        };
        let mut ended = HashSet::new();
        for some in unsealed.chunks(TOGETHER) {
            let looks = join_all(some.iter().map(|&(id, row)| self.ends_at(id, row))).await;
            ended.extend(some.iter().zip(looks).filter(|(_, ends)| *ends).map(|((id, _), _)| *id));
        }
        ended
    }

    /// No header of an unsealed extent is at a row, and none was committed there.
    async fn ends_at(&self, id: ExtentId, row: u16) -> bool {
        if row >= COLUMN_ROWS {
            return true;
        }
        let Whose { nonce, scheme, .. } = self.whose(id);
        let look = async |column| Some(has_nonce(&self.read_rows(id, column, row, 1).await?, &nonce));
        let looks = join_all(header_columns(scheme).map(look)).await;
        let (mut copies, mut is_there) = (HeaderCopies::default(), false);
        for look in looks {
            match look {
                Some(true) => is_there = true,
                Some(false) => copies.absent += 1,
                None => copies.unreadable += 1,
            }
        }
        !is_there && copies.meaning() == NoHeader::End
    }

    /// Of these extents the sealed ones of which the checkpoint up to this number has all frames.
    pub(crate) async fn covered(
        &self,
        ids: &[ExtentId],
        from: Seq,
        foreseen: &ForeseenLog,
    ) -> HashSet<ExtentId> {
        let (mut known, mut unknown) = (Vec::new(), Vec::new());
        {
            let state = self.state.borrow();
            let is_plain = |e: &&Extent| {
                e.phase == ExtentPhase::Sealed && !e.suspect && !e.in_record && !e.seal_is_due()
            };
            for e in ids.iter().filter_map(|id| state.extents.get(*id)).filter(is_plain) {
                match foreseen.last_of(e.id, e.nonce, e.committed_rows) {
                    Some(last) => known.push((e.id, last)),
                    None => unknown.push(e.id),
                }
            }
        }
        for some in unknown.chunks(TOGETHER) {
            let mut last = join_all(some.iter().map(|&id| self.last_frame(id, LAST_ROWS))).await;
            for (&id, last) in some.iter().zip(&mut last).filter(|(_, last)| **last == Last::NotThere) {
                // Of large buffers only one is held at a time.
                *last = self.last_frame(id, self.longest_frame(id)).await;
            }
            let user = |(&id, last)| if let Last::User(seq) = last { Some((id, seq)) } else { None };
            known.extend(some.iter().zip(last).filter_map(user));
        }
        // The cuts of epochs that they tell of are in the checkpoint's own frames too, which no checkpoint covers.
        known.into_iter().filter(|(_, last)| *last <= from).map(|(id, _)| id).collect()
    }

    /// Rows that have the last frame's header in them, however long that frame is.
    fn longest_frame(&self, id: ExtentId) -> u16 {
        let k = self.state.borrow_mut().extents.at(id).scheme.k();
        (FRAME_BLOCKS_MAX / k + 2) as u16
    }

    /// A sealed extent's last frame, whose header is looked for in so many of its last rows.
    async fn last_frame(&self, id: ExtentId, last: u16) -> Last {
        let rows = self.state.borrow_mut().extents.at(id).committed_rows;
        let first = rows.saturating_sub(last);
        match self.read_header_column(id, first, rows - first).await {
            Some(read) => self.whose(id).last_in(&read.view, first),
            None => Last::Unknown,
        }
    }

    fn whose(&self, id: ExtentId) -> Whose {
        let state = &mut *self.state.borrow_mut();
        let e = state.extents.at(id);
        Whose { shard: self.id, extent: id, nonce: e.nonce, scheme: e.scheme }
    }

    /// Rows to read ahead, a good part of a column: row by row would take a round trip for each frame, and who reads all of what hardly
    /// anybody has written to waits for nothing.
    async fn read_ahead(&self, id: ExtentId, row: u16, limit: u16, first: bool) -> Option<Ahead> {
        let sealed = self.state.borrow_mut().extents.at(id).phase == ExtentPhase::Sealed;
        let rows = if first && !sealed { FIRST_ROWS.min(limit - row) } else { limit - row };
        self.read_header_column(id, row, rows).await
    }

    /// Rows of the first column with headers that can be read.
    async fn read_header_column(&self, id: ExtentId, row: u16, rows: u16) -> Option<Ahead> {
        let scheme = self.state.borrow_mut().extents.at(id).scheme;
        for column in header_columns(scheme) {
            if let Some(view) = self.read_rows(id, column, row, rows).await {
                return Some(Ahead { column, row, view });
            }
        }
        None
    }

    pub(crate) async fn read_rows(&self, id: ExtentId, column: usize, row: u16, rows: u16) -> Option<View> {
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
        let bytes = rows as usize * BLOCK_BYTES;
        match self.read_or_give_up(place, name, RowIndex(row), bytes).await {
            Some((Ok(()), buf)) => Some(buf.freeze()),
            _ => None,
        }
    }

    /// A valid copy of the header at a row, or what the copies say instead.
    async fn header_at(
        &self,
        id: ExtentId,
        row: u16,
        ahead: Option<&Ahead>,
        entries: &mut Vec<Entry>,
        copies: &mut HeaderCopies,
    ) -> Option<Header> {
        let whose = self.whose(id);
        for column in header_columns(whose.scheme) {
            let single;
            let read = ahead.filter(|ahead| ahead.column == column).and_then(|ahead| ahead.block(row));
            let block = match read {
                Some(block) => Some(block),
                None => {
                    single = self.read_rows(id, column, row, 1).await;
                    single.as_deref()
                }
            };
            let Some(block) = block else {
                copies.unreadable += 1;
                continue;
            };
            match whose.header(block, row, entries) {
                Ok(header) => return Some(header),
                Err(NotHeader::Damaged) => copies.damaged += 1,
                Err(NotHeader::Absent) => copies.absent += 1,
            }
        }
        None
    }
}
