//! Collection: when, how fast, and which extents. What a victim holds is moved in `relocate.rs`.
//!
//! Begins early and gently: below a first mark of free space each user block that is committed allows some blocks to be
//! moved, the more the less space is left, so that a level is found at which as much comes back as is used up. Only a pool
//! without room for users' extents is collected as fast as it can be.

use crate::ages::{Ages, Overwritten};
use crate::columns::{AllocClass, Columns};
use crate::extent::{Extent, ExtentPhase};
use crate::relocate::{Moving, room_for};
use crate::scheme::Foreign;
use crate::shard::{Shard, State};
use crate::stats::{CollectionFigures, CollectionState};
use crate::stream::{Classes, Stream, class_of};
use crate::victims::{MOVED_BLOCKS, Policy, Victim, choose, may_be_victim, share};
use peristyle_base::{COLUMN_ROWS, ExtentId, Instant, Scheme};
use peristyle_cluster::{ShardStore, extents_free};
use peristyle_rt::{Duration, Either, select, timeout};
use std::collections::HashMap;
use std::rc::Rc;

/// Victims that one look at all extents finds.
const BATCH: usize = 16;
/// Victims are moved together until they have so many live blocks: what the last frame of an extent's lacks is lost, and
/// costs a header.
const TOGETHER: usize = 16 * MOVED_BLOCKS;
/// Extents of a pool for each of these frames: a small pool has no time for so many victims at once.
const TOGETHER_SHARE: usize = 32;
/// Parts of a block in which moves are allowed.
const PARTS: u64 = 256;
/// Blocks that may be moved for one that a user writes, at most.
const RATE_MAX: u64 = 16;
/// Moves that may be saved up: time in which users wrote and there was nothing to collect is not made up for.
const OWED_MAX: u64 = 4 * MOVED_BLOCKS as u64 * PARTS;
/// Hot extents over which their usual life is averaged.
const LIVES: u64 = 16;
/// An extent that could not be collected is tried again after this time.
const SPARED_PERIOD: Duration = Duration::from_secs(30);
/// Time between two looks of a pool that waits for space, and while what is kept back for collection is used up.
const RETRY_PERIOD: Duration = Duration::from_millis(100);
const SPENT_PERIOD: Duration = Duration::from_millis(10);
/// Checkpoints that a pool without anything to collect takes for what is dead before it counts as full: each of them needs
/// some room itself.
const FUTILE_MAX: usize = 3;
/// A victim is left for another one after waiting for so long.
const ROOM_LIMIT: Duration = Duration::from_secs(10);

/// How fast a victim's blocks are moved.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Pace {
    /// As what users write allows.
    Allowed,
    /// At that of background work alone.
    Background,
    AtOnce,
}

/// What collection knows and plans.
#[derive(Default)]
pub(crate) struct Collect {
    /// Blocks that users have written: the clock by which blocks have an age.
    pub clock: u64,
    /// How long what dies soon usually lives. 0: not known yet.
    pub usual_life: u64,
    ages: Ages,
    /// Moves that users' writes have allowed, in parts of a block, and how much each of them does.
    owed: u64,
    rate: u64,
    /// It waits for the pace of work beside the I/O path.
    pub held_back: bool,
    /// There is nothing worth collecting, as of so many deaths.
    nothing_at: Option<u64>,
    /// Checkpoints that were taken since it cannot go on by itself, and did not make room.
    pub futile: usize,
    /// Collection waits for an extent; and there was no room for one.
    pub extent_wanted: bool,
    pub spent: bool,
    /// Blocks that the last checkpoint wrote, however little had changed.
    pub checkpoint_cost: u64,
    /// Room that checkpoints wait for before they are taken for it, in extents.
    pub worth: usize,
}

/// Space of a pool, in extents of its scheme.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Room {
    pub total: usize,
    /// Not allocated, and for users.
    pub free: usize,
    /// Ready for users' full frames.
    pub ready: usize,
    /// Without a block of volumes or of the map: they come back with the next checkpoint.
    pub dead: usize,
}

impl Room {
    /// Extents that collection keeps available at least, beside those that wait for a checkpoint.
    fn margin(&self, stock: usize) -> usize {
        stock + 1 + self.total / 256
    }

    /// Users will have used it up before long.
    pub fn is_pressing(&self, stock: usize) -> bool {
        self.free + self.ready <= 2 * self.margin(stock)
    }

    /// Room for users, now or behind the next checkpoint.
    pub fn users(&self) -> u64 {
        (self.free + self.ready + self.dead) as u64
    }

    /// The first mark: with less room, collection begins.
    pub fn begins_below(&self, stock: usize, worth: usize) -> u64 {
        worth as u64 + 2 * self.margin(stock) as u64
    }

    /// Blocks to move for each block that a user writes, in parts. Nothing above the first mark; then more and more.
    fn rate(&self, stock: usize, worth: usize) -> u64 {
        let span = 2 * self.margin(stock) as u64;
        let used = self.begins_below(stock, worth).saturating_sub(self.users()).min(span);
        match span - used {
            0 => RATE_MAX * PARTS,
            left => (used * PARTS / left).min(RATE_MAX * PARTS),
        }
    }
}

impl Collect {
    /// A user frame with so many blocks was committed. True: enough is allowed for the next move.
    pub fn user_wrote(&mut self, blocks: usize, overwritten: Overwritten) -> bool {
        self.ages.overwritten(overwritten, self.clock);
        self.clock += blocks as u64;
        self.owed = (self.owed + blocks as u64 * self.rate).min(OWED_MAX);
        self.owed >= MOVED_BLOCKS as u64 * PARTS
    }

    /// What it does at this rate, for figures.
    pub fn doing(&self, state: &State, rate: u64) -> CollectionState {
        match rate {
            _ if state.short && !self.is_stuck() => CollectionState::InNeed,
            0 => CollectionState::Resting,
            _ if self.nothing_at == Some(state.extents.deaths) => CollectionState::Nothing,
            _ if self.held_back => CollectionState::HeldBack,
            _ => CollectionState::Running,
        }
    }

    /// Moves are being allowed.
    pub fn is_busy(&self) -> bool {
        self.rate > 0
    }

    /// Less than half of the way from the first mark to no room is gone: it may wait.
    pub fn is_gentle(&self) -> bool {
        self.rate < PARTS
    }

    /// It has not made use of what users' writes allow: the space that they take comes back too slowly.
    pub fn is_behind(&self) -> bool {
        self.rate > 0 && self.owed >= OWED_MAX && !self.is_stuck() && !self.held_back
    }

    /// It cannot go on by itself.
    pub fn is_stuck(&self) -> bool {
        self.nothing_at.is_some() || self.spent
    }

    /// A checkpoint was taken for the room behind it.
    pub fn took_checkpoint(&mut self) {
        self.futile += usize::from(self.is_stuck());
    }

    /// A hot extent is over.
    pub fn lived(&mut self, life: u64) {
        self.usual_life = match self.usual_life {
            0 => life,
            usual => (usual * (LIVES - 1) + life) / LIVES,
        };
    }
}

/// Ages by the order of extents: all that a restart leaves of them.
pub(crate) fn guess_births(state: &mut State, scheme: Scheme) {
    let blocks = (scheme.k() * COLUMN_ROWS as usize) as u64;
    state.collect.clock = state.next_extent.0 * blocks;
    state.extents.iter_mut().for_each(|e| {
        let at = e.id.0 * blocks;
        e.birth.add(1, at, at);
    });
    state.extents.count_dead();
}

impl<C: Columns, S: ShardStore + 'static> Shard<C, S> {
    pub(crate) async fn run_collection(self: Rc<Self>) {
        let (mut batch, mut spared) = (Vec::new(), HashMap::new());
        loop {
            // Of the moment in which it is asked: an idle shard waits here for long.
            let is_spared = |id| spared.get(&id).is_some_and(|until| *until > peristyle_rt::now());
            let next = select(self.allowed(MOVED_BLOCKS), self.foreign(is_spared)).await;
            if self.stopped().is_some() {
                return;
            }
            if let Either::Right(foreign) = next {
                self.convert(foreign, &mut spared).await;
                continue;
            }
            let (class, victims) = self.next_victims(&mut batch, &spared);
            if victims.is_empty() {
                self.nothing_to_collect();
                // Whatever dies may be worth it.
                timeout(RETRY_PERIOD, self.collect.notified()).await;
                continue;
            }
            self.found_something();
            let left = self.collect_extents(&victims, class, Pace::Allowed).await;
            self.spare(&mut spared, left);
        }
    }

    /// What could not be collected is not tried again for a while.
    fn spare(&self, spared: &mut HashMap<ExtentId, Instant>, left: Vec<ExtentId>) {
        let now = peristyle_rt::now();
        spared.retain(|_, until| *until > now);
        spared.extend(left.into_iter().map(|id| (id, now + SPARED_PERIOD)));
        self.space.notify_all();
    }

    /// Moves what lies in an extent of another scheme than the pool's, or lets go of those that are empty.
    async fn convert(self: &Rc<Self>, foreign: Foreign, spared: &mut HashMap<ExtentId, Instant>) {
        match foreign {
            Foreign::Extent(id) => {
                let left = self.collect_extents(&[id], self.class_of_moved(id), Pace::Background).await;
                self.spare(spared, left);
            }
            Foreign::Empty => {
                let _ = self.checkpoint().await; // if it fails, the next one does it
                timeout(SPARED_PERIOD, self.space.notified()).await;
            }
        }
    }

    /// Waits until so many blocks may be moved.
    pub(crate) async fn allowed(&self, blocks: usize) {
        let due = || {
            let state = &mut *self.state.borrow_mut();
            let need = state.stopped.is_some() || (state.short && state.settled);
            let parts = blocks as u64 * PARTS;
            let enough = state.settled && state.collect.owed >= parts;
            state.collect.owed -= if enough { parts } else { 0 };
            enough || need
        };
        let go = || {
            let go = due();
            self.work.notify_all(); // users' frames may have waited
            go
        };
        loop {
            self.assess();
            if go() {
                return;
            }
            self.collect.notified().await;
        }
    }

    /// Looks at how much room there is: how fast is collected, and in how many streams.
    pub(crate) fn assess(&self) {
        let room = self.room();
        let state = &mut *self.state.borrow_mut();
        let classes = Classes::of_pool(room.total);
        let classes = match self.config.collection {
            Policy::CostBenefit if !state.collect.ages.are_alike() => classes,
            _ => classes.one_each(),
        };
        if classes != state.classes {
            state.classes = classes;
            // Nothing will fill what the others have begun.
            let unused = Stream::users().skip(classes.user as usize);
            let unused = unused.chain(Stream::moved().skip(classes.moved as usize));
            let ids: Vec<ExtentId> = unused.filter_map(|s| state.extents.current(s)).collect();
            ids.into_iter().for_each(|id| self.close(state, id));
        }
        (state.collect.worth, state.collect.rate) = self.worth_and_rate(room, state.stock, &state.collect);
    }

    /// Room that checkpoints wait for, in extents, and how fast is collected.
    fn worth_and_rate(&self, room: Room, stock: usize, collect: &Collect) -> (usize, u64) {
        let worth = worth(room, collect.checkpoint_cost, self.scheme(), stock);
        let rate = match self.config.collection {
            Policy::Off => 0,
            _ => room.rate(stock, worth),
        };
        (worth, rate)
    }

    /// Of the room that there is now, not of that at the last look.
    pub(crate) fn collection_figures(&self, now: Instant) -> CollectionFigures {
        let room = self.room();
        let state = self.state.borrow();
        let (stats, collect) = (&state.stats, &state.collect);
        let (worth, rate) = self.worth_and_rate(room, state.stock, collect);
        CollectionFigures {
            state: match self.config.collection {
                Policy::Off => CollectionState::Off,
                _ => collect.doing(&state, rate),
            },
            pace: rate * 1000 / PARTS,
            moved_blocks: stats.moved_blocks,
            moved_blocks_s: stats.moved_lately.per_second(now, [stats.moved_blocks])[0],
            victims: stats.victims,
            victim_shares: stats.victim_shares,
            room: room.users(),
            begins_below: room.begins_below(state.stock, worth),
        }
    }

    pub(crate) fn room(&self) -> Room {
        let mut devices = Vec::new();
        self.columns.devices(AllocClass::User, &mut devices);
        let width = self.scheme().width();
        let state = self.state.borrow();
        Room {
            total: devices.iter().map(|d| d.slots_total as usize).sum::<usize>() / width,
            free: extents_free(&devices, width),
            ready: state.extents.ready[crate::extent::Width::Wide as usize].len(),
            dead: state.extents.gone,
        }
    }

    /// The best victims, and the class that all of them are of: so many that their blocks make full frames.
    fn next_victims(
        &self,
        batch: &mut Vec<Victim>,
        spared: &HashMap<ExtentId, Instant>,
    ) -> (u8, Vec<ExtentId>) {
        let now = peristyle_rt::now();
        let together = TOGETHER.min(self.room().total / TOGETHER_SHARE * MOVED_BLOCKS).max(1);
        let state = &mut *self.state.borrow_mut();
        let (mut class, mut blocks, mut victims) = (0, 0, Vec::with_capacity(BATCH));
        if self.config.collection == Policy::Off {
            return (class, victims);
        }
        let of_class = |state: &State, e: &Extent| {
            let age = state.collect.clock.saturating_sub(e.birth.mean());
            class_of(age, state.collect.usual_life, state.classes.moved)
        };
        loop {
            while blocks < together
                && let Some(victim) = batch.pop()
            {
                // It may have died or have been freed since the look.
                let Some(e) = state.extents.get(victim.id).filter(|e| may_be_victim(e)) else { continue };
                let its = of_class(state, e);
                if !victims.is_empty() && its != class {
                    batch.push(victim);
                    break;
                }
                class = its;
                blocks += e.live as usize;
                victims.push(victim.id);
            }
            let unchanged = state.collect.nothing_at == Some(state.extents.deaths);
            if !victims.is_empty() || (unchanged && spared.is_empty()) {
                return (class, victims);
            }
            let spared = |id| spared.get(&id).is_some_and(|until| *until > now);
            let clock = state.collect.clock;
            state.collect.ages.compare(state.extents.iter(), clock);
            let how = (self.scheme(), self.config.collection, clock);
            *batch = choose(state.extents.iter(), how, spared, BATCH);
            if batch.is_empty() {
                return (class, victims);
            }
        }
    }

    fn nothing_to_collect(&self) {
        let state = &mut *self.state.borrow_mut();
        let deaths = Some(state.extents.deaths);
        if state.collect.nothing_at != deaths {
            (state.collect.nothing_at, state.collect.futile) = (deaths, 0);
        }
        self.judge(state);
    }

    fn found_something(&self) {
        let state = &mut *self.state.borrow_mut();
        (state.collect.nothing_at, state.collect.futile) = (None, 0);
        self.judge(state);
    }

    /// Whether the pool is full: it has no room, and none can be made.
    pub(crate) fn judge(&self, state: &mut State) {
        // What earlier epochs left is given back first; and those that were taken out of use without a frame in them in a moment.
        let unused = |e: &Extent| e.phase == ExtentPhase::Closed && e.committed_rows == 0;
        let hope = || {
            !state.settled
                || state.freeing > 0
                || state.may_be_short_no_more()
                || !state.freeable.is_empty()
                || (state.extents.dead > 0 && state.collect.futile < FUTILE_MAX)
                || state.extents.iter().any(unused)
        };
        let full = state.short && state.collect.is_stuck() && !hope();
        if full != state.full {
            state.full = full;
            self.supplied.notify_all();
        }
    }

    /// For tests and the simulator: seals what takes frames, and moves what is alive in some extent, worth it or not. False:
    /// there was nothing, or it could not be moved.
    pub async fn collect_any(self: &Rc<Self>) -> bool {
        {
            let state = &mut *self.state.borrow_mut();
            for id in state.extents.all_current().into_iter().flatten() {
                self.close(state, id);
            }
        }
        for _ in 0..100 {
            let victim = self.state.borrow().extents.iter().filter(|e| may_be_victim(e)).map(|e| e.id).min();
            match victim {
                Some(id) => return self.collect_extents(&[id], 0, Pace::AtOnce).await.is_empty(),
                None => peristyle_rt::sleep(SPENT_PERIOD / 100).await,
            }
        }
        false
    }

    /// Moves everything that is alive in some extents, one after the other, so that they can be freed behind the next
    /// checkpoint: each is empty when its own blocks have been moved. Returns those of which some could not be moved.
    async fn collect_extents(self: &Rc<Self>, ids: &[ExtentId], class: u8, pace: Pace) -> Vec<ExtentId> {
        // Devices that did not answer some time ago are asked once more.
        self.silent.borrow_mut().clear();
        let (mut victims, mut live) = (Vec::with_capacity(ids.len()), Vec::new());
        for &id in ids.iter().filter(|id| self.begin_victim(**id)) {
            let blocks = self.live_blocks(id).await;
            victims.push((id, blocks.is_some()));
            live.extend(blocks.into_iter().flatten());
        }
        let moved = self.move_all(&live, pace, class).await;
        victims.retain(|&(id, readable)| !self.end_victim(id, moved && readable));
        victims.into_iter().map(|(id, _)| id).collect()
    }

    /// False: it is none any more.
    fn begin_victim(&self, id: ExtentId) -> bool {
        let state = &mut *self.state.borrow_mut();
        let Some(e) = state.extents.get_mut(id).filter(|e| may_be_victim(e)) else { return false };
        e.victim = true;
        if std::mem::take(&mut e.hot) {
            state.collect.lived(state.collect.clock.saturating_sub(e.birth.mean()));
        }
        state.stats.victims += 1;
        state.stats.victim_shares += (share(e, self.scheme()) * 1e6) as u64;
        true
    }

    /// Whether nothing is left in it.
    fn end_victim(&self, id: ExtentId, moved: bool) -> bool {
        let state = &mut *self.state.borrow_mut();
        match state.extents.get_mut(id) {
            Some(e) => {
                // A block of which the map was not in memory at the commit is where it was.
                e.victim = moved && e.live == 0;
                e.victim
            }
            None => true,
        }
    }

    async fn move_all(self: &Rc<Self>, live: &[Moving], pace: Pace, class: u8) -> bool {
        let mut left = live;
        while !left.is_empty() {
            let blocks = left.len().min(MOVED_BLOCKS);
            if left.len() < live.len() && pace == Pace::Allowed {
                self.allowed(blocks).await;
            }
            if pace != Pace::AtOnce {
                self.pay_for_moves(blocks).await;
            }
            let Some(count) = self.room_to_move(class, blocks).await else { return false };
            let (blocks, rest) = left.split_at(count);
            if self.stopped().is_some() || !self.move_blocks(blocks, class).await {
                return false;
            }
            left = rest;
        }
        true
    }

    /// Waits for an extent that takes moved blocks, so many at most. `None`: there is no room for one.
    async fn room_to_move(&self, class: u8, blocks: usize) -> Option<usize> {
        let asked = peristyle_rt::now();
        loop {
            let spent = {
                let state = &mut *self.state.borrow_mut();
                if state.stopped.is_some() || peristyle_rt::now().since(asked) > ROOM_LIMIT {
                    return None;
                }
                if let Some(count) = room_for(state, class, blocks) {
                    return Some(count);
                }
                state.collect.extent_wanted = true;
                self.judge(state);
                state.collect.spent
            };
            self.supply_wanted.notify_all();
            self.space.notify_all();
            match spent {
                // Checkpoints and frees come first.
                true => peristyle_rt::sleep(SPENT_PERIOD).await,
                false => drop(timeout(RETRY_PERIOD, self.supplied.notified()).await),
            }
        }
    }
}

/// Extents that have to be dead before a checkpoint is taken for their sake. What it writes however little has changed is
/// worth it for many only; the share of space that waits costs as much again, so that the best is where both are equal. What
/// changed has to be written some time: that does not count.
fn worth(room: Room, checkpoint_blocks: u64, scheme: Scheme, stock: usize) -> usize {
    let extent = (scheme.k() * COLUMN_ROWS as usize) as f64;
    let best = 0.6 * (room.total as f64 * checkpoint_blocks as f64 / extent).sqrt();
    (best as usize).clamp(stock.max(room.total / 128), room.total / 16 + stock)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn room(free: usize, dead: usize) -> Room {
        Room { total: 512, free, ready: 2, dead }
    }

    #[test]
    fn collection_begins_early_and_gently_and_gets_faster_as_space_gets_less() {
        let rates: Vec<u64> = (0..60).rev().map(|free| room(free, 0).rate(2, 10)).collect();
        assert_eq!(rates[0], 0, "much is free");
        assert!(rates.is_sorted(), "{rates:?}");
        assert_eq!(*rates.last().unwrap(), RATE_MAX * PARTS);
        let first = rates.iter().find(|r| **r > 0).unwrap();
        assert!(*first < PARTS / 8, "{first} parts of {PARTS} to begin with");
    }

    #[test]
    fn what_waits_for_a_checkpoint_counts_as_room() {
        assert_eq!(room(10, 10).rate(2, 10), room(20, 0).rate(2, 10));
    }

    #[test]
    fn moves_are_allowed_by_what_users_write_and_not_saved_up_without_limit() {
        let mut collect = Collect { rate: PARTS / 2, ..Collect::default() };
        assert!(!collect.user_wrote(MOVED_BLOCKS, Overwritten::default()));
        assert!(collect.user_wrote(MOVED_BLOCKS, Overwritten::default()));
        assert!((0..100).all(|_| collect.user_wrote(MOVED_BLOCKS, Overwritten::default())));
        assert_eq!(collect.owed, OWED_MAX);
        assert_eq!(collect.clock, 102 * MOVED_BLOCKS as u64);
    }

    #[test]
    fn the_usual_life_follows_what_was_seen_lately() {
        let mut collect = Collect::default();
        collect.lived(1000);
        assert_eq!(collect.usual_life, 1000);
        (0..100).for_each(|_| collect.lived(2000));
        assert!((1900..=2000).contains(&collect.usual_life));
    }
}
