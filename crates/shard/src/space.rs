//! Space comes back while the shard runs: extents that hold nothing any more are freed behind a checkpoint (invariant 9,
//! Free late), which is taken early when the pool needs the room. Bounded, and beside the I/O path.

use crate::checkpoint::replay_mark;
use crate::columns::Columns;
use crate::degraded::SILENCE_LIMIT;
use crate::extent::{Extent, ExtentPhase, Width};
use crate::frame::{Entry, Header, Layout};
use crate::map::{Away, Lookup, Ptr};
use crate::scheme::is_of;
use crate::shard::{Shard, State};
use crate::stats::SpaceFigures;
use peristyle_base::{
    BLOCK_BYTES, COLUMN_ROWS, ColumnName, ColumnPlace, ExtentId, Instant, LayerId, RowIndex,
};
use peristyle_cluster::ShardStore;
use peristyle_rt::sync::Notify;
use peristyle_rt::{Buf, Duration, join_all, timeout};
use std::cell::Cell;
use std::rc::Rc;

/// Extents that are freed at the same time.
const FREES_MAX: usize = 4;
/// The pool is low on room when this share of its slots, or less, is free.
const LOW_SHARE: usize = 8;
/// Time between two looks at what could be freed, and until the next one while nothing asks for it.
const LOOK_MIN: Duration = Duration::from_millis(100);
const LOOK_PERIOD: Duration = Duration::from_secs(2);
/// Time between two looks while collection goes on.
const LOOK_BUSY: Duration = Duration::from_millis(5);
/// Time between two checkpoints that are taken for the room behind them.
const EARLY_PERIOD: Duration = Duration::from_secs(1);
/// Map blocks that one checkpoint moves out of extents that hold nothing else, and the share of an extent that may be
/// such: one that is full of map blocks stays.
const MOVED_MAX: usize = 4096;
const MOVED_SHARE: u32 = 2;

/// Reads under way. Two counters take turns, so that one can wait for those that began before a moment.
#[derive(Default)]
pub(crate) struct Readers {
    turn: Cell<usize>,
    counts: [Cell<u32>; 2],
    ended: Notify,
    /// One waits at a time.
    waiting: Cell<bool>,
}

/// One read, as long as it lives.
pub(crate) struct Reading<'a> {
    readers: &'a Readers,
    turn: usize,
}

impl Readers {
    pub fn enter(&self) -> Reading<'_> {
        let turn = self.turn.get();
        self.counts[turn].set(self.counts[turn].get() + 1);
        Reading { readers: self, turn }
    }

    /// Waits for the reads that have begun.
    pub async fn wait_for_earlier(&self) {
        self.ended.wait_until(|| !self.waiting.replace(true)).await;
        let turn = self.turn.get();
        self.turn.set(1 - turn);
        self.ended.wait_until(|| self.counts[turn].get() == 0).await;
        self.waiting.set(false);
        self.ended.notify_all();
    }
}

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        let count = &self.readers.counts[self.turn];
        count.set(count.get() - 1);
        if count.get() == 0 && self.readers.turn.get() != self.turn {
            self.readers.ended.notify_all();
        }
    }
}

/// What an extent's headers say of it.
#[derive(PartialEq, Eq)]
enum Contents {
    Unused,
    /// The map points at it, whatever the counts say.
    Used,
    /// Not all of it can be read now.
    Unknown,
}

/// Sealed extents before a checkpoint's mark that its map does not point at. Asked when the checkpoint begins: what dies
/// later is in it.
pub(crate) fn unused(state: &State, mark: ExtentId) -> Vec<ExtentId> {
    let mut ids: Vec<ExtentId> =
        state.extents.iter().filter(|e| e.id < mark && e.is_dead()).map(|e| e.id).collect();
    ids.sort_unstable();
    ids
}

impl<C: Columns, S: ShardStore + 'static> Shard<C, S> {
    pub fn space_figures(&self) -> SpaceFigures {
        let state = self.state.borrow();
        let mut figures = SpaceFigures {
            live_blocks: state.map.mapped_blocks(),
            freed_extents: state.stats.freed_extents,
            ..SpaceFigures::default()
        };
        for e in state.extents.iter().filter(|e| !e.leftover) {
            let (phase, rows) = match e.phase {
                ExtentPhase::Ready => (0, 0),
                ExtentPhase::Open => (1, e.next_row),
                ExtentPhase::Closed | ExtentPhase::Sealing | ExtentPhase::Old => (2, e.committed_rows),
                ExtentPhase::Sealed => (3, e.committed_rows),
            };
            let kind = match e.scheme {
                scheme if scheme == self.scheme() => 0,
                scheme if scheme.is_narrow() => 1,
                _ => 2,
            };
            figures.extents[phase][kind] += 1;
            figures.map_blocks += u64::from(e.meta);
            let blocks = e.scheme.k() as u64 * u64::from(rows);
            figures.dead_blocks += blocks.saturating_sub(u64::from(e.live + e.meta));
            figures.waiting_extents += u64::from(e.is_dead());
            figures.foreign_extents += u64::from(!is_of(e.scheme, self.wanted_scheme()));
            figures.map_extents += u64::from(e.is_dead() && e.meta > 0);
            let open = e.phase == ExtentPhase::Open;
            figures.open_rows += if open { u64::from(COLUMN_ROWS - e.next_row) } else { 0 };
        }
        figures
    }

    /// For tests: as if an extent's live blocks had not been counted.
    pub fn miscount(&self, extent: ExtentId) {
        let extents = &mut self.state.borrow_mut().extents;
        extents.at(extent).live = 0;
        extents.count_dead();
    }

    /// A checkpoint is durable: what it did not point at when it began, and has no block of the map, is not needed.
    pub(crate) fn let_go(&self, unused: Vec<ExtentId>) {
        let state = &mut *self.state.borrow_mut();
        let free = |id: &ExtentId| state.extents.get(*id).is_some_and(may_free);
        let new: Vec<ExtentId> =
            unused.into_iter().filter(|id| free(id) && !state.freeable.contains(id)).collect();
        state.freeable.extend(new);
        self.space.notify_all();
    }

    /// Frees what checkpoints let go of, and has them taken early while the pool is low on room.
    pub(crate) async fn run_space(self: Rc<Self>) {
        let (mut looking, mut early_at) = (false, Instant::ZERO);
        let free = |state: &State| state.stopped.is_some() || (state.settled && !state.freeable.is_empty());
        let any = |state: &State| free(state) || (state.settled && state.extents.died);
        loop {
            let wanted = self.space.wait_until(|| any(&self.state.borrow()));
            match looking {
                true => drop(timeout(LOOK_PERIOD, wanted).await),
                false => wanted.await,
            }
            if self.stopped().is_some() {
                return;
            }
            self.free_all().await;
            looking = self.look(&mut early_at).await;
            let pause = match self.state.borrow().collect.is_busy() {
                true => LOOK_BUSY,
                false => LOOK_MIN,
            };
            timeout(pause, self.space.wait_until(|| free(&self.state.borrow()))).await;
        }
    }

    async fn free_all(self: &Rc<Self>) {
        loop {
            let ids: Vec<ExtentId> = {
                let state = &mut *self.state.borrow_mut();
                let count = state.freeable.len().min(FREES_MAX);
                state.freeing += count;
                state.freeable.drain(..count).collect()
            };
            if ids.is_empty() || self.stopped().is_some() {
                return;
            }
            // Nobody finds them in the map any more; who found them before may still be reading.
            self.readers.wait_for_earlier().await;
            let count = ids.len();
            let gone: Vec<Option<Extent>> = join_all(ids.into_iter().map(|id| self.let_extent_go(id))).await;
            // Slots of a device that are freed at once share a write of its slot table.
            join_all(gone.iter().flatten().map(|extent| self.free_columns(extent))).await;
            self.state.borrow_mut().were_given_back(count);
            self.supply_wanted.notify_all();
            self.collect.notify_all();
        }
    }

    /// The extent, which nobody finds any more, if it is not needed.
    async fn let_extent_go(self: &Rc<Self>, id: ExtentId) -> Option<Extent> {
        let contents = self.contents(id).await;
        {
            let state = &mut *self.state.borrow_mut();
            state.stats.unused_kept += u64::from(contents == Contents::Used);
            if contents != Contents::Unused || !state.extents.get(id).is_some_and(may_free) {
                return None;
            }
            state.extents.at(id).completing = true; // nobody seals its columns from here on
        }
        if !self.free_unsealed(id).await {
            self.state.borrow_mut().extents.at(id).completing = false;
            return None;
        }
        let state = &mut *self.state.borrow_mut();
        state.stats.freed_extents += 1;
        let extent = state.extents.remove(id).expect("only this task frees what is sealed");
        if extent.hot {
            state.collect.lived(state.collect.clock.saturating_sub(extent.birth.mean()));
        }
        state.collect.spent = false;
        if extent.birth.is_known() {
            state.collect.futile = 0; // more came back than what the checkpoint before had written
        }
        Some(extent)
    }

    /// Columns without their seal go first. One that is left alone looks like a part of the log at the next start, which knows by
    /// the checkpoint's mark that it is none. What devices have that are away now is freed when they tell of it.
    async fn free_unsealed(&self, id: ExtentId) -> bool {
        let (unsealed, epoch) = {
            let state = &mut *self.state.borrow_mut();
            let (e, epoch) = (state.extents.at(id), state.record.epoch);
            let missing = (0..e.scheme.width()).filter(|c| e.missing >> c & 1 == 1);
            let columns: Vec<_> = missing.map(|c| (e.place(c), e.name(self.id, c))).collect();
            // More than those that are gone for good: a device that is away may have one.
            let unplaced = columns.iter().filter(|(place, _)| place.device.is_nil()).count();
            if unplaced > e.columns_gone as usize && !state.repair.remember(id) {
                return false;
            }
            (columns, epoch)
        };
        let placed = unsealed.into_iter().filter(|(place, _)| !place.device.is_nil());
        let frees = placed.map(|(place, name)| async move {
            if self.columns.is_away(place.device) {
                self.state.borrow_mut().repair.leave_behind(id, place.device);
                return true;
            }
            timeout(SILENCE_LIMIT, self.columns.free(place, name, epoch)).await == Some(Ok(()))
        });
        join_all(frees).await.into_iter().all(|freed| freed)
    }

    /// Counts are hints: every entry of the extent's headers is looked up before it goes (DESIGN §11).
    async fn contents(self: &Rc<Self>, id: ExtentId) -> Contents {
        let mut contents = Contents::Unused;
        let whole = self.each_header(id, async |_, entries| {
            for entry in entries {
                match self.is_used(entry, id).await {
                    Some(false) => {}
                    Some(true) => contents = Contents::Used,
                    None => contents = Contents::Unknown,
                }
                if contents != Contents::Unused {
                    return false;
                }
                peristyle_rt::breathe().await;
            }
            true
        });
        match whole.await {
            true => contents,
            false if contents == Contents::Used => contents,
            false => Contents::Unknown,
        }
    }

    /// Whether an entry's block in an extent is needed. `None`: that cannot be told now.
    async fn is_used(self: &Rc<Self>, entry: &Entry, id: ExtentId) -> Option<bool> {
        match *entry {
            Entry::Data { layer, block, .. } => loop {
                let missing = {
                    let map = &self.state.borrow().map;
                    // A header names the layer that the block was of when it was written.
                    let here =
                        |layer| matches!(map.lookup(layer, block), Lookup::Data(ptr) if ptr.extent() == id);
                    match map.missing_holder(layer, block, false) {
                        None => return Some(map.successors(layer).any(here)),
                        Some(away) => away,
                    }
                };
                self.bring(missing).await.ok()?;
            },
            Entry::Map { layer, level: 0 | 1, first, .. } => {
                if !self.state.borrow().map.all_counted() {
                    return None; // it may be one of those that wait to be counted
                }
                for away in self.map_blocks_of(layer, first) {
                    if self.map_homes(away).await?.iter().any(|home| home.extent() == id) {
                        return Some(true);
                    }
                }
                // A merge may have moved it meanwhile: from one that was not looked at yet to one that was.
                if self.state.borrow().map.is_merging() { None } else { Some(false) }
            }
            Entry::Map { .. } => Some(self.state.borrow().roots.any_in(id)),
            _ => Some(false),
        }
    }

    /// The leaves that a map block may be by now of which a header names the layer.
    pub(crate) fn map_blocks_of(&self, layer: LayerId, first: u64) -> Vec<Away> {
        let state = self.state.borrow();
        state.map.successors(layer).map(|layer| Away::of(layer, first)).collect()
    }

    /// Where checkpoints have put a page, and one of its leaves.
    pub(crate) async fn map_homes(self: &Rc<Self>, away: Away) -> Option<[Ptr; 2]> {
        loop {
            let homes = self.state.borrow().map.homes(away);
            match homes {
                Some(homes) => return Some(homes),
                None => self.bring_page(away).await.ok()?,
            }
        }
    }

    /// Hands out the layout and the entries of each frame of an extent, as long as `each` says so. False when it did not
    /// always, or a header cannot be read now.
    pub(crate) async fn each_header(
        &self,
        id: ExtentId,
        mut each: impl AsyncFnMut(&Layout, &[Entry]) -> bool,
    ) -> bool {
        let Some((rows, copies)) = self.header_copies(id) else { return false };
        let (mut row, mut entries) = (0, Vec::new());
        while row < rows {
            let Some(header) = self.sealed_header(&copies, row, &mut entries).await else { return false };
            let layout = header.layout();
            if !each(&layout, &entries).await {
                return false;
            }
            row = layout.end_row();
            // Devices that answer at once leave no other pause: commands go first.
            peristyle_rt::breathe().await;
        }
        true
    }

    /// Extents that hold some map blocks and nothing else would stay for these: the checkpoint that begins now writes
    /// them anew.
    pub(crate) async fn move_map_blocks(self: &Rc<Self>) {
        let few = |e: &Extent| {
            let share = e.scheme.k() as u32 * COLUMN_ROWS as u32 / MOVED_SHARE;
            e.meta > 0 && (e.victim || e.meta <= share)
        };
        let mut from: Vec<ExtentId> = {
            let state = self.state.borrow();
            state.extents.iter().filter(|e| e.is_dead() && few(e)).map(|e| e.id).collect()
        };
        from.sort_unstable();
        let mut moved = 0;
        for id in from {
            if self.state.borrow().roots.lists_in(id) {
                self.state.borrow_mut().map.list_all();
            }
            self.each_header(id, async |_, entries| {
                for entry in entries {
                    if let Entry::Map { layer, level: 0 | 1, first, .. } = *entry {
                        for away in self.map_blocks_of(layer, first) {
                            moved += self.move_map_block(away, id).await as usize;
                        }
                    }
                }
                moved < MOVED_MAX
            })
            .await;
        }
    }

    /// True when a leaf, or its page, lies in the extent, and will lie elsewhere with the next checkpoint.
    async fn move_map_block(self: &Rc<Self>, away: Away, id: ExtentId) -> bool {
        if !self.state.borrow().map.can_take_more() {
            return false;
        }
        let Some([page, leaf]) = self.map_homes(away).await else { return false };
        if page.extent() == id {
            self.state.borrow_mut().map.rewrite_page(away);
        }
        if leaf.extent() == id && self.bring(away).await.is_ok() {
            self.state.borrow_mut().map.rewrite_leaf(away);
        }
        page.extent() == id || leaf.extent() == id
    }

    /// Rows of an extent, and its sealed columns that hold headers.
    fn header_copies(&self, id: ExtentId) -> Option<(u16, Vec<(ColumnPlace, ColumnName)>)> {
        let state = self.state.borrow();
        let e = state.extents.get(id)?;
        let sealed = (0..e.scheme.width()).filter(|c| (e.header_columns() & !e.missing) >> c & 1 == 1);
        Some((e.committed_rows, sealed.map(|c| (e.place(c), e.name(self.id, c))).collect()))
    }

    /// The header at a row, from any sealed column that has it.
    async fn sealed_header(
        &self,
        copies: &[(ColumnPlace, ColumnName)],
        row: u16,
        entries: &mut Vec<Entry>,
    ) -> Option<Header> {
        for &(place, name) in copies.iter().filter(|copy| !self.columns.is_away(copy.0.device)) {
            entries.clear();
            let buf = Buf::alloc(BLOCK_BYTES).await;
            let read = self.columns.read(place, name, RowIndex(row), buf);
            if let Some((Ok(()), buf)) = timeout(SILENCE_LIMIT, read).await
                && let Ok(header) = Header::decode(&buf, &name.nonce, entries)
                && (header.extent, header.first_row.0) == (name.extent, row)
            {
                return Some(header);
            }
        }
        None
    }

    /// While the pool is low on room, sees to it that a checkpoint is behind what could be freed. True: look again.
    async fn look(&self, early_at: &mut Instant) -> bool {
        let room = self.room();
        let (short, stuck, dead, worth) = {
            let state = &mut *self.state.borrow_mut();
            state.extents.died = false;
            let stuck = state.short && state.collect.is_stuck();
            (state.short, stuck, state.extents.dead, state.collect.worth.max(state.stock))
        };
        if !short && room.free * LOW_SHARE > room.total {
            // Others may take what room there is.
            return dead > 0;
        }
        if dead == 0 {
            return false;
        }
        // While collection goes on, a checkpoint waits for what makes it worth what it writes; not for ever: nothing comes of
        // moves that devices do not answer.
        let now = peristyle_rt::now();
        let need = stuck || (short && now.since(*early_at) >= EARLY_PERIOD);
        let worth = if need { 1 } else { worth };
        let due = {
            let state = &mut *self.state.borrow_mut();
            let mark = replay_mark(state);
            // Extents with blocks of the map take one that writes these anew: for those alone only a pool that cannot go on.
            let dead =
                |e: &&Extent| (e.holds_nothing() || (need && e.is_dead())) && !state.freeable.contains(&e.id);
            let (mut behind, mut held_back, mut last) = (0, 0, ExtentId(0));
            for e in state.extents.iter().filter(dead) {
                *(if e.id < mark { &mut behind } else { &mut held_back }) += 1;
                last = last.max(e.id);
            }
            // An extent that takes frames holds the mark back: others take its place.
            if held_back >= if short { worth } else { 2 * worth } && behind < worth {
                state.retire_below = state.retire_below.max(last.next());
                state.room_wanted = true;
                self.supply_wanted.notify_all();
            }
            if behind == 0 && held_back == 0 {
                return false;
            }
            let pressing = (short && !state.full) || room.is_pressing(state.stock);
            behind >= worth && (pressing || now.since(*early_at) >= EARLY_PERIOD)
        };
        if due {
            *early_at = now;
            self.state.borrow_mut().stats.early_checkpoints += 1;
            if self.checkpoint().await.is_ok() {
                self.state.borrow_mut().collect.took_checkpoint();
            }
        }
        true
    }
}

impl State {
    /// So many extents, whose freeing had begun, take no space any more: the pool may be short no longer.
    pub(crate) fn were_given_back(&mut self, count: usize) {
        self.freeing -= count;
        self.given_back += 1;
    }

    /// Extents were given back since the pool was found short.
    pub(crate) fn may_be_short_no_more(&self) -> bool {
        self.given_back != self.short_as_of
    }
}

/// Nothing refers to it, and nobody is at work on it.
fn may_free(e: &Extent) -> bool {
    e.is_dead() && e.meta == 0 && !e.in_record && !e.completing
}

/// The pool has no room for users' extents, and the stock is used up.
pub(crate) fn is_spent(state: &State) -> bool {
    let spent = |w: Width| state.extents.ready[w as usize].is_empty();
    state.short && spent(Width::Wide) && spent(Width::Narrow)
}

/// User writes are refused: there is nothing to collect either.
pub(crate) fn is_refusing(state: &State) -> bool {
    state.full && is_spent(state)
}
