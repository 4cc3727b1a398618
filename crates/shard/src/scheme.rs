//! The pool's scheme may change while the shard runs (DESIGN §6): from then on new extents have the new one, what takes frames is
//! replaced, and collection converts the others at the pace of background work, as long as there is plenty of room.

use crate::columns::{AllocClass, Columns};
use crate::encode::Kept;
use crate::extent::{Extent, Width};
use crate::shard::Shard;
use crate::stream::{Stream, class_of};
use crate::victims::{Policy, may_be_victim};
use peristyle_base::{ExtentId, Scheme};
use peristyle_cluster::ShardStore;
use peristyle_rt::Duration;
use std::rc::Rc;

/// How often is looked whether the pool has another scheme.
const LOOK_PERIOD: Duration = Duration::from_millis(100);
/// Time between two looks for extents of other schemes, and between two checkpoints that let go of them: that grows.
const CONVERT_PERIOD: Duration = Duration::from_secs(1);
const CONVERT_PERIOD_MAX: Duration = Duration::from_secs(60);
/// Extents that one look finds.
const BATCH: usize = 64;

/// Whether a pool of this scheme makes extents like that: its own, narrow ones, and those with a smaller k of times in which
/// failure domains were away.
pub(crate) fn is_of(scheme: Scheme, pool: Scheme) -> bool {
    scheme.m() == pool.m() && scheme.k() <= pool.k()
}

/// What there is to convert.
pub(crate) struct Converting {
    /// There may be something.
    pub due: bool,
    batch: Vec<ExtentId>,
    period: Duration,
}

impl Converting {
    /// At the start nobody knows.
    pub fn new() -> Converting {
        Converting { due: true, batch: Vec::new(), period: CONVERT_PERIOD }
    }
}

/// What is next of that.
pub(crate) enum Foreign {
    Extent(ExtentId),
    /// The others hold nothing any more: a checkpoint lets go of them.
    Empty,
}

impl<C: Columns, S: ShardStore + 'static> Shard<C, S> {
    /// The pool's scheme, as far as this shard goes by it.
    pub(crate) fn scheme(&self) -> Scheme {
        self.scheme.get()
    }

    /// The pool's scheme, which the shard goes by in a moment.
    pub(crate) fn wanted_scheme(&self) -> Scheme {
        self.columns.pool_scheme().unwrap_or(self.config.scheme)
    }

    /// Buffers that are kept back for this shard.
    pub(crate) fn kept(&self) -> Rc<Kept> {
        self.kept.borrow().clone()
    }

    pub(crate) async fn run_following_scheme(self: Rc<Self>) {
        while self.stopped().is_none() {
            peristyle_rt::sleep(LOOK_PERIOD).await;
            let wanted = self.wanted_scheme();
            if wanted != self.scheme() && self.has_memory_for(wanted) {
                self.adopt(wanted);
            }
            // Also what was made while there were too few failure domains for the pool's own.
            let due = self.leaving_scheme.get() || self.state.borrow().converting.due;
            if due && self.gets_its_scheme() {
                self.leave_scheme();
            }
        }
    }

    /// More columns may hang with more parity: more memory has to be kept back for when they do.
    fn has_memory_for(&self, scheme: Scheme) -> bool {
        if scheme.m() <= self.kept().m {
            return true;
        }
        Kept::try_take(scheme.m()).is_some_and(|more| {
            self.kept.replace(Rc::new(more));
            true
        })
    }

    fn adopt(&self, scheme: Scheme) {
        self.scheme.set(scheme);
        self.leaving_scheme.set(true);
        let state = &mut *self.state.borrow_mut();
        state.retire_below = state.retire_below.max(state.next_extent);
        state.converting = Converting::new();
        self.supply_wanted.notify_all();
        self.collect.notify_all();
    }

    /// What replay looks at is replaced as old extents are (`retire.rs`); what it does not look at, and what is not used any more, is
    /// closed here.
    fn leave_scheme(&self) {
        let pool = self.scheme();
        let state = &mut *self.state.borrow_mut();
        let extents = &state.extents;
        let foreign = |id: &ExtentId| extents.get(*id).is_some_and(|e| !is_of(e.scheme, pool));
        let ready = |width: Width| extents.ready[width as usize].iter().copied();
        let current = |stream: Stream| extents.current(stream);
        let aside = Stream::moved().chain([Stream::Checkpoint]).filter_map(current);
        let aside = ready(Width::Moved).chain(aside).filter(foreign);
        // A narrow pool has no narrow extents beside its own: nothing would fill these, and they would hold marks back.
        let narrow = ready(Width::Narrow).chain(current(Stream::Narrow)).filter(|_| pool.is_narrow());
        let old: Vec<ExtentId> = aside.chain(narrow).collect();
        state.extents.ready.iter_mut().for_each(|ready| ready.retain(|id| !old.contains(id)));
        old.into_iter().for_each(|id| self.close(state, id));
        let extents = &state.extents;
        let in_use =
            extents.ready.iter().flatten().copied().chain(extents.all_current().into_iter().flatten());
        let last = in_use.filter(|id| extents.get(*id).is_some_and(|e| !is_of(e.scheme, pool))).max();
        // One that is being made now may still have the old scheme.
        self.leaving_scheme.set(last.is_some() || state.creating.is_some());
        state.retire_below = state.retire_below.max(last.map_or(ExtentId(0), ExtentId::next));
        self.supply_wanted.notify_all();
    }

    /// Waits until there is something to convert, and the time is good for it.
    pub(crate) async fn foreign(&self, spared: impl Fn(ExtentId) -> bool) -> Foreign {
        loop {
            let found = self.next_foreign(&spared);
            if let Some(Foreign::Extent(id)) = found {
                return Foreign::Extent(id);
            }
            let period = self.state.borrow().converting.period;
            peristyle_rt::sleep(period).await;
            if found.is_some() {
                return Foreign::Empty;
            }
        }
    }

    fn next_foreign(&self, spared: &impl Fn(ExtentId) -> bool) -> Option<Foreign> {
        let pool = self.scheme();
        if !self.state.borrow().converting.due || !self.may_convert() {
            return None;
        }
        let state = &mut *self.state.borrow_mut();
        let is_next = |e: &Extent| !is_of(e.scheme, pool) && may_be_victim(e) && !spared(e.id);
        while let Some(id) = state.converting.batch.pop() {
            if state.extents.get(id).is_some_and(is_next) {
                return Some(Foreign::Extent(id));
            }
        }
        let (mut others, mut empty, mut batch) = (false, false, Vec::new());
        for e in state.extents.iter_mut().filter(|e| !is_of(e.scheme, pool) && !e.leftover) {
            others = true;
            if is_next(e) && batch.len() < BATCH {
                batch.push(e.id);
            }
            if e.is_dead() {
                // Blocks of the map that it has are written anew with the next checkpoint.
                e.victim |= e.meta > 0;
                empty = true;
            }
        }
        batch.sort_unstable_by(|a, b| b.cmp(a)); // the oldest first
        let first = batch.pop();
        let converting = &mut state.converting;
        (converting.due, converting.batch) = (others, batch);
        match first {
            Some(id) => {
                converting.period = CONVERT_PERIOD;
                Some(Foreign::Extent(id))
            }
            None => {
                converting.period = (converting.period * 2).min(CONVERT_PERIOD_MAX);
                empty.then_some(Foreign::Empty)
            }
        }
    }

    /// Collection has nothing to do for want of room, and what is converted gets the pool's protection: with too few failure domains it
    /// might get less.
    fn may_convert(&self) -> bool {
        let resting = {
            let state = self.state.borrow();
            state.settled && !state.short && !state.collect.is_busy()
        };
        resting && self.config.collection != Policy::Off && self.gets_its_scheme()
    }

    /// There are failure domains enough for what the pool promises.
    fn gets_its_scheme(&self) -> bool {
        let mut devices = Vec::new();
        self.columns.devices(AllocClass::User, &mut devices);
        let pool = self.pool(&devices);
        pool.effective().is_ok_and(|now| is_of(now.scheme, pool.scheme))
    }

    /// The class of what an extent holds, once it is moved.
    pub(crate) fn class_of_moved(&self, id: ExtentId) -> u8 {
        let state = self.state.borrow();
        let birth = state.extents.get(id).map_or(0, |e| e.birth.mean());
        let age = state.collect.clock.saturating_sub(birth);
        class_of(age, state.collect.usual_life, state.classes.moved)
    }
}
