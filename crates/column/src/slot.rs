//! The slot table in memory: what each slot holds, which are free, what is known of open columns. Pure: it decides
//! and remembers, the server moves the bytes. Memory is taken once, when the device is opened.
//!
//! "The column server compares, always" (DESIGN §6): every transition begins with [`SlotTable::check`].

use crate::error::ColumnError;
use crate::format::{AllocClass, Entry, RowRange, RowSet, SlotState};
use crate::index::{NameIndex, key};
use peristyle_base::{COLUMN_ROWS, ColumnName, DeviceId, Epoch, RowIndex, Scheme, ShardId, SlotIndex};
use std::collections::VecDeque;

const NONE: u32 = u32::MAX;

/// Slots that a shard keeps back on this device (DESIGN §11: reserves are per shard and kept by the column servers
/// per allocation class). A class may take what is free beyond the reserves of the classes after it:
/// user < collection < meta < re-append.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Reserve {
    pub collection: u32,
    pub meta: u32,
    pub reappend: u32,
}

impl Reserve {
    /// Slots that must stay free after an allocation of `class`.
    fn floor(&self, class: AllocClass) -> u32 {
        match class {
            AllocClass::User => self.collection + self.meta + self.reappend,
            AllocClass::Collection => self.meta + self.reappend,
            AllocClass::Meta => self.reappend,
            AllocClass::Reappend => 0,
        }
    }
}

/// What an owner asks for when it wants a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allocate {
    pub name: ColumnName,
    pub scheme: Scheme,
    pub epoch: Epoch,
    pub class: AllocClass,
    /// The target of a rebuild or move: it cannot be read before it is sealed.
    pub filling: bool,
}

/// A column as the slot table knows it: what an owner that takes a shard up learns from all nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotInfo {
    pub device: DeviceId,
    pub slot: SlotIndex,
    pub name: ColumnName,
    pub scheme: Scheme,
    pub state: SlotState,
    pub fenced: bool,
    pub epoch: Epoch,
    /// Sealed: the rows of the column. Else: one past the last row known to be durable; a hint, 0 after a restart.
    pub rows: RowIndex,
    pub column_crc: u32,
}

/// How full the device is, in slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Usage {
    pub total: u32,
    pub free: u32,
    pub open: u32,
    pub sealed: u32,
    pub filling: u32,
    /// Neither copy of the entry could be read: never used.
    pub damaged: u32,
    /// Free slots that only the classes behind `User` may take, and those that only the ones behind `Collection` may.
    pub reserved: u32,
    pub kept: u32,
    /// Slots in use, by the class that they were given to.
    pub by_class: [u32; AllocClass::ALL.len()],
}

/// What only an open (or filling) column needs.
pub struct OpenColumn {
    pub crcs: [u32; COLUMN_ROWS as usize],
    /// Rows whose content (CRC) was fixed by an append, durable or not.
    pub accepted: RowSet,
    pub durable: RowSet,
    /// This process has seen every append since the slot was given out.
    pub complete: bool,
    /// One past the last durable row.
    pub rows_end: u16,
    /// Appends that are queued or being written.
    pub admitted: u16,
    /// Device writes to the slot in flight.
    pub writing: u16,
    /// A seal or free is at work.
    pub sealing: bool,
    /// A seal has begun to write; it may have been given up since.
    pub seal_begun: bool,
    /// The slot left this column behind; the memory is free when the last admitted append has gone.
    retired: bool,
}

impl OpenColumn {
    fn reset(&mut self, complete: bool) {
        self.crcs.fill(0);
        (self.accepted, self.durable) = (RowSet::default(), RowSet::default());
        (self.complete, self.rows_end) = (complete, 0);
        (self.admitted, self.writing) = (0, 0);
        (self.sealing, self.seal_begun, self.retired) = (false, false, false);
    }
    fn new() -> OpenColumn {
        OpenColumn {
            crcs: [0; COLUMN_ROWS as usize],
            accepted: RowSet::default(),
            durable: RowSet::default(),
            complete: false,
            rows_end: 0,
            admitted: 0,
            writing: 0,
            sealing: false,
            seal_begun: false,
            retired: false,
        }
    }
}

/// Index of an [`OpenColumn`].
pub type OpenId = u32;

/// Where the next slot comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Candidate {
    Take(SlotIndex),
    /// Zero it first and give it back with [`SlotTable::cleared`]; then ask again.
    Zero(SlotIndex),
    /// Every free slot is being zeroed, or its entry written: wait.
    Wait,
    Full,
}

pub struct SlotTable {
    device: DeviceId,
    entries: Vec<Entry>,
    /// Slot → open column.
    open_of: Vec<u32>,
    open: Vec<OpenColumn>,
    open_free: Vec<OpenId>,
    index: NameIndex,
    /// Free slots that read as zeros; others; and those of the latter that were freed lately and are to be cleared, the oldest first.
    clean: Vec<u32>,
    plain: Vec<u32>,
    uncleared: VecDeque<u32>,
    /// Free slots that nobody gets at the moment: their entry is being written, or they are being cleared.
    held: u32,
    damaged: Vec<SlotIndex>,
    reserves: Vec<(ShardId, Reserve)>,
    reserve: Reserve,
    usage: Usage,
}

/// Memory of a table of so many slots, without the open columns'.
pub fn memory_bytes(slots: u64) -> u64 {
    // An entry; its open column; two cells or four of the index; its place in each list of free ones.
    slots * (size_of::<Entry>() as u64 + 4 + 16 + 12)
}

impl SlotTable {
    /// `entries`: one per slot, `None` where neither copy was valid. `open_max`: open columns at most; more when more
    /// are open already.
    pub fn new(device: DeviceId, entries: Vec<Option<Entry>>, open_max: usize) -> SlotTable {
        let slots = entries.len() as u32;
        let is_open =
            |e: &Option<Entry>| e.is_some_and(|e| matches!(e.state, SlotState::Open | SlotState::Filling));
        // No more than there are slots, and room for all that are open already.
        let open_max = open_max.min(entries.len()).max(entries.iter().filter(|e| is_open(e)).count());
        let mut table = SlotTable {
            device,
            open_of: vec![NONE; entries.len()],
            open: (0..open_max).map(|_| OpenColumn::new()).collect(),
            open_free: (0..open_max as u32).rev().collect(),
            index: NameIndex::new(slots),
            clean: Vec::with_capacity(entries.len()),
            plain: Vec::with_capacity(entries.len()),
            uncleared: VecDeque::with_capacity(entries.len()),
            held: 0,
            damaged: Vec::new(),
            reserves: Vec::new(),
            reserve: Reserve::default(),
            usage: Usage { total: slots, ..Usage::default() },
            entries: entries.iter().map(|e| e.unwrap_or_default()).collect(),
        };
        // From the back, so that the lowest slot is taken first.
        for (slot, entry) in entries.iter().enumerate().rev() {
            table.load(slot as u32, entry);
        }
        table.damaged.reverse();
        table
    }

    fn load(&mut self, slot: u32, entry: &Option<Entry>) {
        let Some(entry) = entry else {
            self.damaged.push(SlotIndex(slot));
            self.usage.damaged += 1;
            return;
        };
        self.count(entry, true);
        match entry.state {
            SlotState::Free if entry.zeroed => self.clean.push(slot),
            SlotState::Free => self.plain.push(slot),
            SlotState::Open | SlotState::Filling => {
                let id = self.open_free.pop().expect("the pool was sized for all that are open");
                self.open[id as usize].reset(false);
                self.open_of[slot as usize] = id;
                self.index.insert(key(&entry.name), SlotIndex(slot));
            }
            SlotState::Sealed => self.index.insert(key(&entry.name), SlotIndex(slot)),
        }
    }

    fn count(&mut self, entry: &Entry, add: bool) {
        let change = |n: &mut u32| if add { *n += 1 } else { *n -= 1 };
        match entry.state {
            SlotState::Free => change(&mut self.usage.free),
            SlotState::Open => change(&mut self.usage.open),
            SlotState::Sealed => change(&mut self.usage.sealed),
            SlotState::Filling => change(&mut self.usage.filling),
        }
        if entry.state != SlotState::Free {
            change(&mut self.usage.by_class[entry.class as usize]);
        }
    }

    /// The only way an entry changes.
    fn set(&mut self, slot: SlotIndex, mut entry: Entry) {
        let old = self.entries[slot.0 as usize];
        entry.version = old.version + 1;
        self.count(&old, false);
        self.count(&entry, true);
        self.entries[slot.0 as usize] = entry;
    }

    pub fn slots(&self) -> u32 {
        self.entries.len() as u32
    }
    pub fn usage(&self) -> Usage {
        let floor = |class| self.reserve.floor(class).min(self.usage.free);
        Usage { reserved: floor(AllocClass::User), kept: floor(AllocClass::Collection), ..self.usage }
    }
    /// In order.
    pub fn damaged(&self) -> &[SlotIndex] {
        &self.damaged
    }
    pub fn entry(&self, slot: SlotIndex) -> &Entry {
        &self.entries[slot.0 as usize]
    }

    pub fn set_reserve(&mut self, shard: ShardId, reserve: Reserve) {
        match self.reserves.iter_mut().find(|(s, _)| *s == shard) {
            Some((_, old)) => *old = reserve,
            None => self.reserves.push((shard, reserve)),
        }
        self.reserve = self.reserves.iter().fold(Reserve::default(), |sum, (_, r)| Reserve {
            collection: sum.collection + r.collection,
            meta: sum.meta + r.meta,
            reappend: sum.reappend + r.reappend,
        });
    }

    fn info(&self, slot: SlotIndex) -> SlotInfo {
        let entry = self.entry(slot);
        let rows = match self.open_id(slot) {
            Some(id) => RowIndex(self.open[id as usize].rows_end),
            None => entry.rows,
        };
        SlotInfo {
            device: self.device,
            slot,
            name: entry.name,
            scheme: entry.scheme.expect("a slot in use has a scheme"),
            state: entry.state,
            fenced: entry.fenced,
            epoch: entry.epoch,
            rows,
            column_crc: entry.column_crc,
        }
    }

    /// Columns of one shard (or of all), in slot order.
    pub fn list(&self, shard: Option<ShardId>) -> Vec<SlotInfo> {
        let wanted = |e: &Entry| e.state != SlotState::Free && shard.is_none_or(|s| s == e.name.shard);
        let slots = self.entries.iter().enumerate().filter(|(_, e)| wanted(e));
        slots.map(|(slot, _)| self.info(SlotIndex(slot as u32))).collect()
    }

    /// The comparison that every request passes: the slot holds exactly what the request names.
    pub fn check(&self, slot: SlotIndex, name: &ColumnName) -> Result<&Entry, ColumnError> {
        let entry = self.entries.get(slot.0 as usize).ok_or(ColumnError::NotFound)?;
        match entry.state {
            SlotState::Free => Err(ColumnError::NotFound),
            _ if entry.name == *name => Ok(entry),
            _ => Err(ColumnError::WrongName),
        }
    }

    pub fn check_epoch(entry: &Entry, epoch: Epoch) -> Result<(), ColumnError> {
        if epoch < entry.epoch { Err(ColumnError::Stale { have: entry.epoch }) } else { Ok(()) }
    }

    /// The slot of a column; with `filling`, only one that is being filled. A column may have two on one device, while it
    /// is made anew there.
    pub fn find(&self, name: &ColumnName, filling: bool) -> Option<SlotIndex> {
        let wanted = |e: &Entry| key(&e.name) == key(name) && (!filling || e.state == SlotState::Filling);
        self.index.find(key(name), |slot| wanted(&self.entries[slot as usize]))
    }

    // Allocation

    /// Picks a free slot for `class`. `can_zero`: the device zeroes cheaply, so slots are zeroed before use; but not those that were
    /// freed lately: a pool that is nearly full uses them again at once, and would do little else than clear them.
    pub fn candidate(&mut self, class: AllocClass, can_zero: bool) -> Candidate {
        if self.usage.free <= self.reserve.floor(class) {
            return Candidate::Full;
        }
        if let Some(slot) = self.clean.pop() {
            return Candidate::Take(SlotIndex(slot));
        }
        match self.plain.pop() {
            Some(slot) if can_zero => {
                self.held += 1;
                return Candidate::Zero(SlotIndex(slot));
            }
            Some(slot) => return Candidate::Take(SlotIndex(slot)),
            None => {}
        }
        match self.uncleared.pop_back() {
            Some(slot) => Candidate::Take(SlotIndex(slot)),
            None if self.held > 0 => Candidate::Wait,
            None => Candidate::Full,
        }
    }

    /// The answer to [`Candidate::Zero`], and what has become of a slot that was to be cleared. The flag reaches the disk with the entry's
    /// next change; until then a restart only forgets it.
    pub fn cleared(&mut self, slot: SlotIndex, zeroed: bool) {
        self.held -= 1;
        let entry = Entry { zeroed, ..*self.entry(slot) };
        assert_eq!(entry.state, SlotState::Free);
        self.set(slot, entry);
        if zeroed { self.clean.push(slot.0) } else { self.plain.push(slot.0) }
    }

    /// That a slot is [`free`](Self::free) has been written, or could not be. It is cleared some time, if `clear`.
    pub fn freed(&mut self, slot: SlotIndex, clear: bool) {
        self.held -= 1;
        if clear { self.uncleared.push_back(slot.0) } else { self.plain.push(slot.0) }
    }

    /// Slots to clear.
    pub fn uncleared(&self) -> usize {
        self.uncleared.len()
    }
    /// The one that has waited longest; [`cleared`](Self::cleared) gives it back.
    pub fn next_uncleared(&mut self) -> Option<SlotIndex> {
        let slot = self.uncleared.pop_front()?;
        self.held += 1;
        Some(SlotIndex(slot))
    }

    /// Gives `slot`, which [`candidate`](Self::candidate) took, to a column.
    pub fn open(&mut self, slot: SlotIndex, a: &Allocate) -> Result<(), ColumnError> {
        let free = *self.entry(slot);
        assert_eq!(free.state, SlotState::Free);
        let Some(id) = self.open_free.pop() else {
            if free.zeroed {
                self.clean.push(slot.0)
            } else {
                self.plain.push(slot.0)
            }
            return Err(ColumnError::TooManyOpen);
        };
        self.open[id as usize].reset(true);
        self.open_of[slot.0 as usize] = id;
        let state = if a.filling { SlotState::Filling } else { SlotState::Open };
        let entry = Entry {
            state,
            zeroed: free.zeroed,
            fenced: false,
            class: a.class,
            name: a.name,
            scheme: Some(a.scheme),
            epoch: a.epoch,
            ..Entry::default()
        };
        self.set(slot, entry);
        self.index.insert(key(&a.name), slot);
        Ok(())
    }

    // Open columns

    pub fn open_id(&self, slot: SlotIndex) -> Option<OpenId> {
        let id = self.open_of[slot.0 as usize];
        (id != NONE).then_some(id)
    }
    pub fn column(&self, id: OpenId) -> &OpenColumn {
        &self.open[id as usize]
    }
    pub fn column_mut(&mut self, id: OpenId) -> &mut OpenColumn {
        &mut self.open[id as usize]
    }
    /// Device writes to the slot that are in flight.
    pub fn writing(&self, slot: SlotIndex) -> u16 {
        self.open_id(slot).map_or(0, |id| self.column(id).writing)
    }

    /// Everything that an append must satisfy but a free place in the queue.
    pub fn check_append(
        &self,
        slot: SlotIndex,
        name: &ColumnName,
        epoch: Epoch,
        row: RowIndex,
        crcs: &[u32],
    ) -> Result<OpenId, ColumnError> {
        let entry = self.check(slot, name)?;
        Self::check_epoch(entry, epoch)?;
        if entry.state == SlotState::Sealed {
            return Err(ColumnError::Sealed);
        }
        if epoch > entry.epoch || entry.fenced {
            return Err(ColumnError::NotOpener { have: entry.epoch });
        }
        let id = self.open_id(slot).expect("open and filling slots have one");
        let column = self.column(id);
        if column.sealing || column.seal_begun {
            return Err(ColumnError::Sealed);
        }
        let first = row.0 as usize;
        if crcs.is_empty() || first + crcs.len() > COLUMN_ROWS as usize {
            return Err(ColumnError::RowRange);
        }
        for (i, crc) in crcs.iter().enumerate() {
            if column.accepted.contains(first + i) && column.crcs[first + i] != *crc {
                return Err(ColumnError::RowTaken { row: RowIndex((first + i) as u16) });
            }
        }
        Ok(id)
    }

    /// One more append waits or writes; `false` when the column has `limit` of them already.
    pub fn admit(&mut self, id: OpenId, limit: u16) -> bool {
        let room = self.has_room(id, limit);
        self.column_mut(id).admitted += room as u16;
        room
    }
    pub fn has_room(&self, id: OpenId, limit: u16) -> bool {
        self.column(id).admitted < limit
    }
    pub fn dismiss(&mut self, id: OpenId) {
        let column = self.column_mut(id);
        column.admitted -= 1;
        if column.retired && column.admitted == 0 {
            self.open_free.push(id);
        }
    }

    /// All rows of this append are durable already.
    pub fn is_durable(&self, id: OpenId, row: RowIndex, count: usize) -> bool {
        let first = row.0 as usize;
        (first..first + count).all(|r| self.column(id).durable.contains(r))
    }

    pub fn begin_append(&mut self, id: OpenId, row: RowIndex, crcs: &[u32]) {
        let column = self.column_mut(id);
        column.writing += 1;
        for (r, crc) in (row.0 as usize..).zip(crcs) {
            column.accepted.insert(r);
            column.crcs[r] = *crc;
        }
    }
    /// The device has answered.
    pub fn end_append(&mut self, id: OpenId, row: RowIndex, count: u16, durable: bool) {
        let column = self.column_mut(id);
        column.writing -= 1;
        if durable {
            (row.0..row.0 + count).for_each(|r| column.durable.insert(r as usize));
            column.rows_end = column.rows_end.max(row.0 + count);
        }
    }

    fn release(&mut self, slot: SlotIndex) {
        let id = std::mem::replace(&mut self.open_of[slot.0 as usize], NONE);
        if id == NONE {
            return;
        }
        let column = self.column_mut(id);
        assert_eq!(column.writing, 0, "a column's memory outlives every write to its slot");
        column.retired = true;
        if column.admitted == 0 {
            self.open_free.push(id);
        }
    }

    // Transitions of a slot in use

    /// Raises the slot's epoch. True when that changed anything.
    pub fn fence(&mut self, slot: SlotIndex, epoch: Epoch) -> bool {
        let old = *self.entry(slot);
        if epoch <= old.epoch {
            return false;
        }
        let fenced = old.fenced || old.state != SlotState::Sealed;
        self.set(slot, Entry { epoch, fenced, ..old });
        true
    }

    /// The seal's own writes begin: from here on only a seal or a free may follow, and what lay in the holes is gone.
    pub fn begin_seal(&mut self, id: OpenId, holes: &RowSet) {
        let column = self.column_mut(id);
        column.seal_begun = true;
        for (durable, hole) in column.durable.0.iter_mut().zip(holes.0) {
            *durable &= !hole;
        }
    }

    pub fn seal(&mut self, slot: SlotIndex, rows: RowIndex, column_crc: u32) {
        let old = *self.entry(slot);
        self.release(slot);
        self.set(slot, Entry { state: SlotState::Sealed, rows, column_crc, ..old });
    }

    /// The slot is free, but not to be given out before [`freed`](Self::freed).
    pub fn free(&mut self, slot: SlotIndex) {
        let name = self.entry(slot).name;
        let entries = &self.entries;
        self.index.remove(key(&name), slot, |s| key(&entries[s as usize].name));
        self.release(slot);
        self.held += 1;
        self.set(slot, Entry::default());
    }

    /// Whether the content of a hole has to be written at seal: only a slot that was zeroed, and in which this
    /// process knows that the rows were never touched, may leave it out.
    pub fn hole_needs_zeros(&self, slot: SlotIndex, hole: RowRange) -> bool {
        let Some(id) = self.open_id(slot) else { return true };
        let column = self.column(id);
        !self.entry(slot).zeroed || !column.complete || hole.rows().any(|r| column.accepted.contains(r))
    }
}
