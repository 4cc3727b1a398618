//! The stock of ready extents, and the sealing of full extents: off the I/O path.

use crate::columns::{AllocClass, ColumnFault, Columns};
use crate::error::StopReason;
use crate::extent::{Extent, ExtentPhase, Width};
use crate::scheme::is_of;
use crate::shard::{Shard, State};
use peristyle_base::{ColumnName, ColumnPlace, DeviceId, ExtentId, Nonce, Scheme};
use peristyle_cluster::{ColumnPlaces, DeviceView, PlacementError, PoolView, ShardStore};
use peristyle_rt::sync::Semaphore;
use peristyle_rt::{Duration, join_all};
use std::pin::pin;
use std::rc::Rc;

/// An allocation that takes longer makes the device count as slow: a stalled one must not hold up the rest.
/// Longer than an append's limit, because a slot may have to be zeroed first.
const ALLOCATE_LIMIT: Duration = Duration::from_millis(250);
/// How often a device is looked at meanwhile.
const ALLOCATE_LOOKS: u32 = 25;
/// Tries to place one extent before the shard waits for something to change.
const PLACE_TRIES: usize = 4;
/// Pause between attempts while the pool is full.
const RETRY_PERIOD: Duration = Duration::from_millis(100);
/// The first pauses are shorter: what was in the way may have been found out and avoided by then.
const RETRY_MIN: Duration = Duration::from_millis(1);
/// Pause before a seal that failed is tried again, and how often.
const SEAL_RETRY: Duration = Duration::from_millis(500);
/// Making a column immutable, or free, takes this long at most before somebody else sees to it.
pub(crate) const SEAL_LIMIT: Duration = SEAL_RETRY.saturating_mul(4);
const SEAL_TRIES: usize = 3;
/// Extents that are sealed at the same time.
const SEALS_MAX: usize = 4;

const WIDTHS: [Width; 3] = [Width::Wide, Width::Narrow, Width::Reserve];

/// Extents that were made before they could be listed.
#[derive(Default)]
pub(crate) struct Made {
    extents: Vec<(Width, Extent)>,
    /// Devices that were bad before.
    bad_before: Vec<DeviceId>,
}

enum CreateError {
    /// No room in the pool: user writes are refused.
    Full,
    /// Devices failed or were slow, or too few are healthy: writes wait, and it is tried again.
    Later,
    Stopped,
}

/// Ready extents of each width in the smallest pool; larger ones keep a share of their space: the larger share until there are a few.
pub(crate) const STOCK_MIN: usize = 2;
const STOCK_FEW: usize = 4;
const STOCK_SHARE: usize = 128;
const STOCK_FEW_SHARE: usize = 32;

/// How many ready extents of each width one of so many shards keeps, in a pool of so many extents, when it may have `most`.
pub(crate) fn stock_of(most: usize, extents: usize, shards: usize) -> usize {
    let each = extents / shards.max(1);
    let few = (each / STOCK_FEW_SHARE).clamp(STOCK_MIN, STOCK_FEW);
    most.min((each / STOCK_SHARE).max(few))
}

impl<C: Columns, S: ShardStore + 'static> Shard<C, S> {
    pub(crate) async fn run_supply(self: Rc<Self>) {
        peristyle_rt::spawn_background(self.clone().run_sealer());
        let mut pause = RETRY_MIN;
        loop {
            if self.stopped().is_some() {
                return;
            }
            let urgent = self.urgent.take();
            self.state.borrow_mut().stock =
                stock_of(self.config.ready_extents, self.room().total, self.config.shards);
            let (mut short, mut later) = (false, false);
            let as_of = self.state.borrow().given_back;
            for width in [Width::Wide, Width::Narrow] {
                let missing = self.missing(width, urgent);
                if missing > 0 {
                    self.state.borrow_mut().extents.died = true; // there may be less room than before
                    match self.refill(width, missing, AllocClass::User).await {
                        Ok(()) => {}
                        Err(CreateError::Full) => short = true,
                        Err(CreateError::Later) => later = true,
                        Err(CreateError::Stopped) => return,
                    }
                }
            }
            let (wanted, moved_wanted) = {
                let state = &mut *self.state.borrow_mut();
                (state.short, state.short_as_of) = (short, as_of);
                state.room_wanted &= short;
                self.judge(state);
                (state.reserve_wanted.take(), std::mem::take(&mut state.collect.extent_wanted))
            };
            if moved_wanted && self.state.borrow().extents.ready[Width::Moved as usize].is_empty() {
                let result = self.refill(Width::Moved, 1, AllocClass::Collection).await;
                self.state.borrow_mut().collect.spent = matches!(result, Err(CreateError::Full));
            }
            if let Some(class) = wanted
                && short
            {
                match self.refill(Width::Reserve, 1, class).await {
                    Ok(()) => self.state.borrow_mut().reserve_spent = false,
                    Err(CreateError::Full) => self.state.borrow_mut().reserve_spent = true,
                    Err(CreateError::Later) => {}
                    Err(CreateError::Stopped) => return,
                }
            }
            if short && self.wants_reserve_to_retire() {
                let _ = self.refill(Width::Reserve, 1, AllocClass::Meta).await; // tried again in the next round
            }
            WIDTHS.into_iter().for_each(|width| self.retire(width));
            self.space.notify_all();
            self.supplied.notify_all();
            self.collect.notify_all();
            if short || later {
                // Who waits for an extent asks again whenever it hears that there is none: without a pause the two
                // would keep a core busy with each other.
                peristyle_rt::sleep(RETRY_MIN).await;
                let reserve = || {
                    let state = self.state.borrow();
                    let reserve = state.reserve_wanted.is_some() && !state.reserve_spent;
                    let moved = state.collect.extent_wanted && !state.collect.spent;
                    state.stopped.is_some() || reserve || moved || state.may_be_short_no_more()
                };
                peristyle_rt::timeout(pause, self.supply_wanted.wait_until(reserve)).await;
                pause = (pause * 2).min(RETRY_PERIOD);
                continue;
            }
            pause = RETRY_MIN;
            let wanted = || {
                self.urgent.get()
                    || self.state.borrow().collect.extent_wanted
                    || self.stopped().is_some()
                    || [Width::Wide, Width::Narrow].into_iter().any(|w| self.missing(w, false) > 0)
                    || WIDTHS.into_iter().any(|w| self.can_retire(w))
            };
            self.supply_wanted.wait_until(wanted).await;
        }
    }

    /// How many ready extents to add: none above half of the stock.
    fn missing(&self, width: Width, urgent: bool) -> usize {
        let state = self.state.borrow();
        let narrow_is_wide = self.scheme().is_narrow();
        if narrow_is_wide && width == Width::Narrow {
            return 0;
        }
        // Those that are to be replaced do not count.
        let young = state.extents.ready[width as usize].iter().filter(|&&id| id >= state.retire_below);
        let (have, want) = (young.count(), state.stock);
        match have * 2 <= want {
            // In need, one extent is enough to go on with; the rest follows in the next round.
            true if urgent && have == 0 => 1,
            true => want - have,
            false => 0,
        }
    }

    /// Allocates extents and lists them in the open set; only then are they ready (invariant 1, One writer).
    pub(crate) async fn refill_now(&self) -> bool {
        let (made, result) = self.create_each(self.wanted_now(), AllocClass::User).await;
        let mut ok = self.list_made(made).await.is_ok() && result.is_ok();
        // A takeover goes on in a full pool too, from what is kept back for it.
        let none = self.state.borrow().extents.ready.iter().all(|r| r.is_empty());
        if none {
            ok = self.refill(Width::Reserve, 1, AllocClass::Reappend).await.is_ok();
        }
        self.state.borrow_mut().short = !ok || none;
        ok
    }

    /// Makes one extent of each width for a shard that is being taken, beside the rest of that: they are ready once the record lists
    /// them ([`list_ahead`](Self::list_ahead)). When the takeover fails, the next one finds them and gives them back.
    pub(crate) async fn create_ahead(&self) -> Made {
        let wanted = self.wanted_now();
        // The record is not written before it is known what the former owner has committed.
        if !self.has_reserved(wanted.len() * PLACE_TRIES) {
            return Made::default();
        }
        self.create_each(wanted, AllocClass::User).await.0
    }

    /// Widths of which there is too little to go on with.
    fn wanted_now(&self) -> Vec<Width> {
        [Width::Wide, Width::Narrow].into_iter().filter(|width| self.missing(*width, true) > 0).collect()
    }

    /// Decides among devices that are about as full.
    pub(crate) fn salt_of(&self, id: ExtentId) -> u64 {
        u64::from(self.id.0) << 48 | id.0
    }

    /// So many extents have numbers that the record has reserved.
    fn has_reserved(&self, extents: usize) -> bool {
        let state = self.state.borrow();
        state.next_extent.0 + extents as u64 <= state.record.next_extent.0
    }

    /// Says whether the shard can do with them for now.
    pub(crate) async fn list_ahead(&self, made: Made) -> bool {
        if made.extents.is_empty() || self.list_made(made).await.is_err() {
            return false;
        }
        let has_some = |width| !self.state.borrow().extents.ready[width as usize].is_empty();
        has_some(Width::Wide) && (has_some(Width::Narrow) || self.scheme().is_narrow())
    }

    async fn refill(&self, width: Width, count: usize, class: AllocClass) -> Result<(), CreateError> {
        let mut made = Vec::new();
        let mut result = Ok(());
        let bad_before = self.begin_creating();
        for _ in 0..count {
            match self.create_extent(width, class).await {
                Ok(extent) => made.push((width, extent)),
                Err(error) => {
                    result = Err(error);
                    break;
                }
            }
        }
        let none = made.is_empty();
        self.list_made(Made { extents: made, bad_before }).await?;
        match none || self.state.borrow().extents.ready[width as usize].is_empty() {
            true => result,
            false => Ok(()),
        }
    }

    /// One extent of each of these widths, at the same time.
    async fn create_each(&self, widths: Vec<Width>, class: AllocClass) -> (Made, Result<(), CreateError>) {
        let bad_before = self.begin_creating();
        let all = join_all(widths.iter().map(|&width| self.create_extent(width, class))).await;
        let (mut extents, mut result) = (Vec::new(), Ok(()));
        for (&width, extent) in widths.iter().zip(all) {
            match extent {
                Ok(extent) => extents.push((width, extent)),
                Err(error) => result = Err(error),
            }
        }
        (Made { extents, bad_before }, result)
    }

    /// Devices that are bad before extents are made.
    fn begin_creating(&self) -> Vec<DeviceId> {
        {
            let state = &mut *self.state.borrow_mut();
            state.creating = Some(state.next_extent);
        }
        self.bad_devices()
    }

    /// Extents that were made are ready once the record lists them.
    async fn list_made(&self, Made { extents: made, bad_before }: Made) -> Result<(), CreateError> {
        let ids: Vec<(Width, ExtentId)> = made.iter().map(|(width, e)| (*width, e.id)).collect();
        {
            let state = &mut *self.state.borrow_mut();
            // With too few failure domains a pool may make extents that are converted when there are more.
            state.converting.due |= made.iter().any(|(_, e)| !is_of(e.scheme, self.scheme()));
            made.into_iter().for_each(|(_, e)| state.extents.insert(e));
            state.creating = None;
        }
        if ids.is_empty() {
            return Ok(());
        }
        self.write_record(|_| {}).await.map_err(|_| CreateError::Stopped)?;
        // A device may have failed meanwhile: such an extent never takes a frame.
        let bad = self.bad_devices();
        let failed = |device| bad.contains(&device) && !bad_before.contains(&device);
        let state = &mut *self.state.borrow_mut();
        for (width, id) in ids {
            let extent = state.extents.at(id);
            if extent.phase == ExtentPhase::Ready && extent.places.iter().any(|p| failed(p.device)) {
                extent.phase = ExtentPhase::Closed;
            } else if extent.phase == ExtentPhase::Ready {
                state.extents.ready[width as usize].push_back(id);
            }
        }
        Ok(())
    }

    async fn create_extent(&self, width: Width, class: AllocClass) -> Result<Extent, CreateError> {
        for _ in 0..PLACE_TRIES {
            // Numbers are reserved in the record before they are used, so that none is used twice even when the
            // device that knows of it is away at the next start.
            if !self.has_reserved(1) && self.write_record(|_| {}).await.is_err() {
                return Err(CreateError::Stopped);
            }
            let (id, scheme, places) = {
                let state = &mut *self.state.borrow_mut();
                if state.stopped.is_some() {
                    return Err(CreateError::Stopped);
                }
                let id = state.next_extent;
                let (scheme, devices) = self.plan(state, width, class, id).map_err(|e| match e {
                    PlacementError::Full { .. } => CreateError::Full,
                    PlacementError::TooFew(_) => CreateError::Later,
                })?;
                // The number is used up whether or not the allocation succeeds (never twice).
                state.next_extent = id.next();
                (id, scheme, devices)
            };
            let mut nonce = Nonce::default();
            peristyle_rt::fill_random(&mut nonce.0);
            let epoch = self.epoch();
            let name = |column: usize| ColumnName {
                shard: self.id,
                extent: id,
                column: peristyle_base::ColumnIndex(column as u8),
                nonce,
            };
            let allocations = places.iter().enumerate().map(|(column, &device)| {
                let request = self.columns.allocate(device, name(column), scheme, epoch, class);
                // `None`: too slow, which is not the same as failed.
                async move { self.unless_away(device, request).await.map_or(Err(None), |r| r.map_err(Some)) }
            });
            let slots = join_all(allocations).await;
            let mut failed = false;
            let mut columns = Vec::with_capacity(slots.len());
            for (&device, slot) in places.iter().zip(&slots) {
                match slot {
                    Ok(slot) => columns.push(ColumnPlace { device, slot: *slot }),
                    Err(Some(ColumnFault::Fenced)) => {
                        self.stop(StopReason::Fenced);
                        return Err(CreateError::Stopped);
                    }
                    Err(fault) => {
                        failed = true;
                        if *fault != Some(ColumnFault::Full) {
                            self.columns.report_bad(device, *fault);
                            // It may give out a slot for which nobody waits any more.
                            self.state.borrow_mut().repair.recheck(device);
                        }
                    }
                }
            }
            if !failed && self.stopped().is_none() {
                let places = ColumnPlaces::new(&columns);
                let mut extent = Extent::new(id, scheme, nonce, epoch, places, ExtentPhase::Ready);
                extent.make_room(self.config.frames_in_flight_max);
                extent.aside = width == Width::Moved;
                Self::code(&mut self.state.borrow_mut(), scheme); // it is made here, not by the first frame
                return Ok(extent);
            }
            for (column, slot) in slots.iter().enumerate() {
                if let Ok(slot) = slot {
                    let place = ColumnPlace { device: places[column], slot: *slot };
                    self.free_slot(place, name(column), ALLOCATE_LIMIT).await;
                }
            }
        }
        Err(CreateError::Later)
    }

    /// The answer to an allocation, unless it takes too long. A device that is late is looked at: once it is known not
    /// to answer, it is not waited for, because writes may be waiting for the extent.
    async fn unless_away<R: Future>(&self, device: DeviceId, request: R) -> Option<R::Output> {
        let (started, away_before) = (peristyle_rt::now(), self.columns.is_away(device));
        let mut request = pin!(request);
        for _ in 0..ALLOCATE_LOOKS {
            let answer = peristyle_rt::timeout(ALLOCATE_LIMIT / ALLOCATE_LOOKS, request.as_mut()).await;
            if answer.is_some() {
                return answer;
            }
            if !away_before && self.columns.is_away(device) {
                return None;
            }
            if peristyle_rt::now().since(started) >= self.config.append_limit_min {
                self.columns.report_late(device);
            }
        }
        None
    }

    fn plan(
        &self,
        state: &mut State,
        width: Width,
        class: AllocClass,
        id: ExtentId,
    ) -> Result<(Scheme, Vec<DeviceId>), PlacementError> {
        let mut devices = Vec::new();
        self.columns.devices(class, &mut devices);
        let pool = self.pool(&devices);
        let mut chosen = [0; Scheme::WIDTH_MAX];
        let narrow = width == Width::Narrow;
        // Extent numbers have 48 bits.
        let salt = self.salt_of(id);
        let effective = pool.plan(&mut state.placer, narrow, salt, &mut chosen)?;
        let ids = chosen[..effective.scheme.width()].iter().map(|&i| devices[i].id).collect();
        Ok((effective.scheme, ids))
    }

    async fn run_sealer(self: Rc<Self>) {
        let turns = Semaphore::new(SEALS_MAX);
        loop {
            if self.stopped().is_some() {
                return;
            }
            if let Some(id) = self.next_to_seal() {
                let turn = turns.acquire(1).await;
                let me = self.clone();
                let used = {
                    let state = &mut *self.state.borrow_mut();
                    // Decided now: no frame is in flight and none will come.
                    let extent = state.extents.at(id);
                    extent.phase = ExtentPhase::Sealing;
                    extent.committed_rows > 0
                };
                peristyle_rt::spawn_background(async move {
                    match used {
                        true => me.seal_own(id).await,
                        false => me.discard(id).await,
                    }
                    drop(turn);
                });
                continue;
            }
            let ready = || self.stopped().is_some() || self.next_to_seal().is_some();
            peristyle_rt::timeout(SEAL_RETRY, self.supply_wanted.wait_until(ready)).await;
            if let Some(id) = self.next_to_complete() {
                self.state.borrow_mut().extents.at(id).completing = true;
                let (me, turn) = (self.clone(), turns.acquire(1).await);
                peristyle_rt::spawn_background(async move {
                    me.seal_own(id).await;
                    drop(turn);
                });
            }
        }
    }

    /// A sealed extent with a column that missed its seal and whose device answers again.
    fn next_to_complete(&self) -> Option<ExtentId> {
        let bad = self.bad_devices();
        let state = self.state.borrow();
        // The column server remembers the checksums of appends of this epoch only; older ones are settled at start.
        let epoch = state.record.epoch;
        let ready = |e: &&Extent| {
            let missed = |c: usize| e.missed_its_seal(c) && !bad.contains(&e.place(c).device);
            e.epoch == epoch
                && e.phase == ExtentPhase::Sealed
                && !e.completing
                && (0..e.scheme.width()).any(missed)
        };
        state.extents.iter().find(ready).map(|e| e.id)
    }

    pub(crate) fn pool<'a>(&self, devices: &'a [DeviceView]) -> PoolView<'a> {
        let (scheme, too_few) = (self.scheme(), self.config.too_few);
        PoolView { id: peristyle_base::PoolId(0), scheme, too_few, devices }
    }

    /// Devices that failed or stalled and have not come back. Those that are slow because all are can be asked.
    pub(crate) fn bad_devices(&self) -> Vec<DeviceId> {
        let mut devices = Vec::new();
        self.columns.devices(AllocClass::User, &mut devices);
        let shuns = self.pool(&devices).shuns();
        devices.iter().filter(|d| !d.healthy || shuns.shuns(d)).map(|d| d.id).collect()
    }

    fn next_to_seal(&self) -> Option<ExtentId> {
        let bad = self.bad_devices();
        let state = self.state.borrow();
        // An extent that was used is sealed when k of its columns can be; until then it waits for their devices.
        let can = |e: &Extent| {
            let columns = (0..e.scheme.width())
                .filter(|&c| e.lost >> c & 1 == 0 && !bad.contains(&e.place(c).device))
                .count();
            e.committed_rows == 0 || columns >= e.scheme.k()
        };
        let closed = |e: &&Extent| e.phase == ExtentPhase::Closed && e.in_flight.is_empty() && can(e);
        state.extents.iter().find(closed).map(|e| e.id)
    }

    /// Seals an extent of this epoch. Column servers have the checksums from the appends; one that has been restarted since
    /// has not, and is told them: what is committed is durable on every column.
    async fn seal_own(self: &Rc<Self>, id: ExtentId) {
        let lost = || self.state.borrow().extents.get(id).map_or(0, |e| e.lost);
        let before = lost();
        self.seal_columns(id, |_| Vec::new()).await;
        let refused = lost() & !before;
        if refused == 0 || self.stopped().is_some() {
            return;
        }
        self.hold_for_seal(id, true);
        match self.row_crcs(id).await {
            Some(crcs) => {
                self.state.borrow_mut().extents.at(id).lost &= !refused;
                self.seal_columns(id, |column| crcs[column].clone()).await;
            }
            None => self.hold_for_seal(id, false),
        }
    }

    /// Nobody else seals the extent, or collects it, meanwhile.
    fn hold_for_seal(&self, id: ExtentId, hold: bool) {
        let state = &mut *self.state.borrow_mut();
        let extent = state.extents.at(id);
        match extent.phase {
            ExtentPhase::Closed if hold => extent.phase = ExtentPhase::Sealing,
            ExtentPhase::Sealing if !hold => extent.phase = ExtentPhase::Closed,
            _ => extent.completing = hold,
        }
    }

    /// Seals every column at the extent's committed rows. `crcs` gives a column's row checksums, or nothing when
    /// the column server has them from the appends.
    pub(crate) async fn seal_columns(self: &Rc<Self>, id: ExtentId, crcs: impl Fn(usize) -> Vec<u32>) {
        let (name, places, rows, epoch, width, missing, lost, phase) = {
            let state = &mut *self.state.borrow_mut();
            let epoch = state.record.epoch;
            let e = state.extents.at(id);
            let name = e.name(self.id, 0);
            (name, e.places, e.committed_rows, epoch, e.scheme.width(), e.missing, e.lost, e.phase)
        };
        // A column that no device lists has no place; one on a bad device is sealed when that comes back.
        let bad = self.bad_devices();
        let now = |c: &usize| !places[*c].device.is_nil() && !bad.contains(&places[*c].device);
        let sealed_before = |c: &usize| phase == ExtentPhase::Sealed && missing >> c & 1 == 0;
        let now = |c: &usize| now(c) && lost >> c & 1 == 0;
        let mut unsealed: Vec<usize> = (0..width).filter(|c| now(c) && !sealed_before(c)).collect();
        let later: Vec<usize> = (0..width).filter(|c| !now(c) && !sealed_before(c)).collect();
        if phase == ExtentPhase::Sealed {
            // It may have been opened under an earlier epoch: only whoever fenced a column may seal it.
            let fences = unsealed.iter().map(|&c| {
                let name = ColumnName { column: peristyle_base::ColumnIndex(c as u8), ..name };
                peristyle_rt::timeout(SEAL_LIMIT, self.columns.fence(places[c], name, epoch))
            });
            join_all(fences).await;
        }
        for attempt in 0..SEAL_TRIES {
            if attempt > 0 {
                peristyle_rt::sleep(SEAL_RETRY).await;
            }
            let seals =
                unsealed.iter().map(|&column| {
                    let name = ColumnName { column: peristyle_base::ColumnIndex(column as u8), ..name };
                    let holes = self.state.borrow_mut().extents.at(id).holes(column);
                    let request = self.columns.seal(places[column], name, epoch, rows, holes, crcs(column));
                    async move {
                        peristyle_rt::timeout(SEAL_LIMIT, request).await.unwrap_or(Err(ColumnFault::Device))
                    }
                });
            let results = join_all(seals).await;
            // Refused: the column lacks rows, or is another one. Trying again changes nothing.
            for (&column, _) in unsealed.iter().zip(&results).filter(|(_, r)| is_lost(r)) {
                self.state.borrow_mut().extents.at(id).lost |= 1 << column;
            }
            if results.contains(&Err(ColumnFault::Fenced)) {
                self.stop(StopReason::Fenced);
                return;
            }
            let mut failed = results.iter().map(|r| r.is_err());
            unsealed.retain(|_| failed.next().expect("one each"));
            if results.iter().all(|r| r.is_ok() || is_lost(r)) || self.stopped().is_some() {
                break;
            }
        }
        unsealed.extend(later);
        self.sealed(id, &unsealed);
    }

    /// Takes note of a seal. Columns that could not be sealed are missing from now on: a rebuild's work.
    pub(crate) fn sealed(&self, id: ExtentId, unsealed: &[usize]) {
        let state = &mut *self.state.borrow_mut();
        let extent = state.extents.at(id);
        let (dead_before, gone_before) = (extent.is_dead(), extent.holds_nothing());
        extent.missing = unsealed.iter().fold(0, |set, c| set | 1 << c);
        extent.completing = false;
        extent.verified_at = peristyle_rt::now();
        // One of which nothing was committed needs no columns: those that are there say so. Most of it may have been given back, and it
        // would hold back the mark of every checkpoint for ever.
        if extent.committed_rows == 0 || extent.scheme.width() - unsealed.len() >= extent.scheme.k() {
            extent.phase = ExtentPhase::Sealed;
        } else if extent.phase == ExtentPhase::Sealing {
            extent.phase = ExtentPhase::Closed; // to be tried again
        }
        extent.empty = extent.empty || extent.holds_no_block();
        if extent.missing == 0 {
            extent.frames = Vec::new();
        }
        let (died, gone) = (extent.is_dead() && !dead_before, extent.holds_nothing() && !gone_before);
        state.extents.dead += usize::from(died);
        state.extents.gone += usize::from(gone);
        // It may have died before, or held back the mark of those that did.
        state.extents.died = true;
        self.space.notify_all();
    }
}

fn is_lost(result: &Result<(), ColumnFault>) -> bool {
    matches!(result, Err(ColumnFault::Refused | ColumnFault::Missing))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_pool_keeps_what_is_set_and_a_small_one_a_share_of_it() {
        assert_eq!(stock_of(32, 1 << 20, 1), 32);
        assert_eq!(stock_of(32, 1024, 1), 8);
        assert_eq!(stock_of(32, 1024, 2), 4, "shards share it");
        assert_eq!(stock_of(32, 1024, 8), 4);
        assert_eq!(stock_of(32, 1024, 12), 2);
        assert_eq!(stock_of(32, 0, 0), STOCK_MIN);
        assert_eq!(stock_of(1, 1 << 20, 1), 1);
    }
}
