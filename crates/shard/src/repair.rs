//! Which columns are made anew, and where: those that are lost, damaged, or on a device that is to leave, the most
//! endangered extents first, then those that share a failure domain; when there are none, sound ones that even out the use of devices.

use crate::apart::Domains;
use crate::columns::{AllocClass, Columns, Fate, SEEN_AFTER};
use crate::extent::{Extent, ExtentPhase};
use crate::remake::Trouble;
use crate::scrub::scrub_left;
use crate::shard::{Shard, State};
use peristyle_base::{ColumnIndex, ColumnName, ColumnPlace, DeviceId, Epoch, ExtentId, Instant};
use peristyle_cluster::{DeviceView, ShardStore, best_move, is_uneven, least_gain};
use peristyle_rt::sync::Semaphore;
use peristyle_rt::{Duration, timeout};
use std::collections::BTreeSet;
use std::rc::Rc;

/// Columns of a shard that are made anew at the same time.
const REMAKES_MAX: usize = 4;
/// Columns that one look at the extents finds at most.
const JOBS_MAX: usize = 256;
/// Moves that one look finds at most: what is known of the devices' use should not be old.
const MOVES_MAX: usize = 16;
/// Time between two looks while there is nothing to do.
const LOOK_PERIOD: Duration = Duration::from_secs(1);
/// Pause before a column whose remake failed is tried again, and an extent that could not be sealed.
pub(crate) const RETRY_PERIOD: Duration = Duration::from_secs(5);
/// Freed extents that are remembered for the sake of devices that have not told what they have.
const LET_GO_MAX: usize = 4096;
/// Time after which a device is asked what it has that was to be freed: what it was slow at is done by then.
const RECHECK_PERIOD: Duration = Duration::from_secs(5);

/// Why a column is made anew.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Why {
    /// No device has it, or not as it must be.
    Lost,
    /// Rows of it are not what they were.
    Damaged,
    /// A read says that rows of it may not be what they were.
    Suspected,
    /// Its device is to leave.
    Drain,
    /// Another column of its extent is in the same failure domain.
    Crowded,
    /// Its device is fuller than others.
    Balance,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Job {
    pub extent: ExtentId,
    pub column: usize,
    pub why: Why,
    pub to: Option<DeviceId>,
}

/// What repair has done, and has to do. A copy is handed out.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct RepairFigures {
    /// Columns to make anew: their extents are missing them, or they are damaged.
    pub lost_columns: u64,
    /// Columns that are not there, and may come back with their devices.
    pub away_columns: u64,
    /// Columns on devices that are to leave.
    pub draining_columns: u64,
    /// Columns that share a failure domain with another one of their extent, beyond one for each domain.
    pub crowded_columns: u64,
    /// Columns that were rebuilt or repaired, and those that moved to another device.
    pub remade_columns: u64,
    pub moved_columns: u64,
    /// Bytes that were written for that, and since the present work began.
    pub remade_bytes: u64,
    pub remade_bytes_now: u64,
    /// How long the present work has been going on; zero when there is none.
    pub working_ns: u64,
    /// Attempts that failed; they are made again.
    pub failed_remakes: u64,
    /// Slots of what was freed, or made anew elsewhere, that came back with their devices.
    pub leftovers_freed: u64,
    /// Columns that came back with their devices.
    pub adopted_columns: u64,
    /// Rows and columns that were found damaged, and columns that were read for that.
    pub damaged_rows: u64,
    pub damaged_columns: u64,
    pub scrubbed_columns: u64,
    /// Extents that a scrub that was asked for has yet to read.
    pub scrub_left: u64,
    /// The longest time for which columns have not been verified.
    pub unverified_ns: u64,
}

impl RepairFigures {
    /// Those of several shards, which work at the same time.
    pub fn add(&mut self, other: &RepairFigures) {
        self.lost_columns += other.lost_columns;
        self.away_columns += other.away_columns;
        self.draining_columns += other.draining_columns;
        self.crowded_columns += other.crowded_columns;
        self.remade_columns += other.remade_columns;
        self.moved_columns += other.moved_columns;
        self.remade_bytes += other.remade_bytes;
        if other.working_ns > 0 {
            self.remade_bytes_now += other.remade_bytes_now;
        }
        self.working_ns = self.working_ns.max(other.working_ns);
        self.failed_remakes += other.failed_remakes;
        self.leftovers_freed += other.leftovers_freed;
        self.adopted_columns += other.adopted_columns;
        self.damaged_rows += other.damaged_rows;
        self.damaged_columns += other.damaged_columns;
        self.scrubbed_columns += other.scrubbed_columns;
        self.scrub_left += other.scrub_left;
        self.unverified_ns = self.unverified_ns.max(other.unverified_ns);
    }

    /// Bytes per second of columns that are being made anew; 0 when none is.
    pub fn bytes_s(&self) -> u64 {
        match self.working_ns {
            0 => 0,
            ns => (u128::from(self.remade_bytes_now) * 1_000_000_000 / u128::from(ns)) as u64,
        }
    }
}

/// What a shard knows of its columns' repair.
#[derive(Default)]
pub(crate) struct Repair {
    pub figures: RepairFigures,
    /// When the shard was taken up.
    pub since: Instant,
    /// When the present work began.
    pub began: Option<Instant>,
    /// Slots that a start found and nobody needs: columns that were being filled, and second copies.
    pub left_behind: Vec<(ColumnPlace, ColumnName)>,
    /// Devices whose columns are not all known: they did not answer when they were asked.
    pub unlisted: Vec<DeviceId>,
    /// Devices that did not answer the start: they may have extents that nobody else has, and of which nothing is known.
    pub unknown: Vec<DeviceId>,
    /// Extents that were freed although such a device may have a column of theirs: it is freed when the device tells of it.
    pub let_go: BTreeSet<ExtentId>,
    /// Devices that may have slots which nobody needs: one that was to be freed while the device was slow, or that it gave
    /// out when nobody waited for it any more. One entry each at most.
    pub rechecks: Vec<Recheck>,
    /// What was verified before is to be read again now.
    pub scrub_asked: Instant,
    /// What was known of the devices at the last look.
    pub known: Vec<(DeviceId, Fate)>,
}

/// A device is to be asked for slots that nobody needs.
pub(crate) struct Recheck {
    device: DeviceId,
    due: Instant,
    /// More were left there meanwhile: the device may be at work on them when it is asked.
    again: bool,
}

impl Repair {
    /// Remembers a freed extent of which a device may have a column that has not told. False: there are too many such.
    pub fn remember(&mut self, id: ExtentId) -> bool {
        let known = self.let_go.contains(&id) || self.let_go.len() < LET_GO_MAX;
        if known {
            self.let_go.insert(id);
        }
        known
    }

    /// A column of a freed extent stays on its device for now.
    pub fn leave_behind(&mut self, id: ExtentId, device: DeviceId) {
        if self.unknown.contains(&device) {
            self.remember(id); // one that is not remembered is found by the next start
        }
        self.recheck(device);
    }

    /// A device may have a slot that nobody needs.
    pub fn recheck(&mut self, device: DeviceId) {
        if device.is_nil() {
            return;
        }
        match self.rechecks.iter_mut().find(|recheck| recheck.device == device) {
            Some(recheck) => recheck.again = true,
            None => {
                let due = peristyle_rt::now() + RECHECK_PERIOD;
                self.rechecks.push(Recheck { device, due, again: false });
            }
        }
    }

    /// Devices that are to be asked now. Those that do not serve are asked when they come back, or never.
    pub fn take_rechecks(&mut self, serves: impl Fn(DeviceId) -> bool) -> Vec<DeviceId> {
        let now = peristyle_rt::now();
        let mut due = Vec::new();
        self.rechecks.retain_mut(|recheck| {
            if serves(recheck.device) && recheck.due > now {
                return true;
            }
            due.extend(serves(recheck.device).then_some(recheck.device));
            recheck.due = now + RECHECK_PERIOD;
            serves(recheck.device) && std::mem::take(&mut recheck.again)
        });
        due
    }
}

/// What becomes of the devices, at one moment.
pub(crate) struct Fates(pub Vec<(DeviceId, Fate)>);

impl Fates {
    /// A device that is not of the pool any more is lost.
    pub fn of(&self, device: DeviceId) -> Fate {
        self.0.iter().find(|d| d.0 == device).map_or(Fate::Lost, |d| d.1)
    }
    fn any_away(&self) -> bool {
        self.0.iter().any(|d| d.1 == Fate::Away)
    }
}

impl<C: Columns, S: ShardStore + 'static> Shard<C, S> {
    pub(crate) fn fates(&self) -> Fates {
        let mut fates = Vec::new();
        self.columns.fates(&mut fates);
        Fates(fates)
    }

    /// Its columns can be read and freed now.
    pub(crate) fn is_reachable(&self, device: DeviceId) -> bool {
        self.is_reachable_by(&self.fates(), device)
    }

    pub(crate) fn is_reachable_by(&self, fates: &Fates, device: DeviceId) -> bool {
        !device.is_nil() && fates.of(device).serves() && !self.columns.is_away(device)
    }

    pub(crate) async fn run_repair(self: Rc<Self>) {
        let ready = || self.stopped().is_some() || self.state.borrow().settled;
        self.space.wait_until(ready).await;
        self.state.borrow_mut().repair.known = self.fates().0;
        let (turns, mut moving) = (Semaphore::new(REMAKES_MAX), false);
        while self.stopped().is_none() {
            self.welcome_devices().await;
            self.settle_again().await;
            self.close_crowded();
            self.free_left_behind().await;
            let mut jobs = self.find_jobs(moving);
            moving = jobs.first().is_some_and(|job| job.why == Why::Balance);
            let sharers = self.columns.sharers();
            if moving && sharers > 1 {
                // Others see the same unevenness and move columns for it as well, and nobody sees at once what the others did: each
                // does its part of half of it, and looks again when all have heard. Otherwise columns would go to and fro for ever.
                jobs.truncate(part_of(jobs.len(), 2 * sharers));
            }
            self.note_work(!jobs.is_empty());
            if jobs.is_empty() {
                let wanted = self.repair_wanted.notified();
                timeout(LOOK_PERIOD, wanted).await;
                continue;
            }
            for job in jobs {
                let turn = turns.acquire(1).await;
                let me = self.clone();
                peristyle_rt::spawn_background(async move {
                    me.carry_out(job).await;
                    drop(turn);
                });
            }
            drop(turns.acquire(REMAKES_MAX).await);
            if moving && self.columns.sees_late() {
                timeout(SEEN_AFTER, self.repair_wanted.notified()).await;
            }
        }
    }

    async fn carry_out(&self, job: Job) {
        if self.stopped().is_some() {
            return;
        }
        if job.why == Why::Suspected {
            self.check_suspect(job.extent, job.column).await;
            return;
        }
        let result = self.remake(job.extent, job.column, job.why, job.to).await;
        let state = &mut *self.state.borrow_mut();
        match result {
            Ok(bytes) => {
                state.repair.figures.remade_bytes += bytes;
                state.repair.figures.remade_bytes_now += bytes;
            }
            Err(trouble) => {
                state.repair.figures.failed_remakes += u64::from(trouble != Trouble::Gone);
                if let Some(extent) = state.extents.get_mut(job.extent) {
                    extent.remake_at = peristyle_rt::now() + RETRY_PERIOD;
                }
                // The few devices that it may go to are full, however much room there is: what is dead makes some.
                if trouble == Trouble::NoRoom && state.extents.iter().any(Extent::is_dead) {
                    state.checkpoint_asked = state.checkpoint_asked.max(state.checkpoint_done.0 + 1);
                    self.progress.notify_all();
                }
            }
        }
    }

    fn note_work(&self, any: bool) {
        let repair = &mut self.state.borrow_mut().repair;
        match (any, repair.began) {
            (true, None) => {
                repair.began = Some(peristyle_rt::now());
                repair.figures.remade_bytes_now = 0;
            }
            (false, Some(_)) => repair.began = None,
            _ => {}
        }
    }

    /// What is to be done next, the most urgent first: an extent that lacks more columns before one that lacks fewer.
    fn find_jobs(&self, moving: bool) -> Vec<Job> {
        let (fates, now) = (self.fates(), peristyle_rt::now());
        let mut devices: Vec<DeviceView> = Vec::new();
        self.columns.devices(AllocClass::User, &mut devices);
        let state = &mut *self.state.borrow_mut();
        let unsure = fates.any_away() || state.repair.unlisted.iter().any(|&d| fates.of(d) != Fate::Lost);
        let epoch = state.record.epoch;
        let mut jobs: Vec<(u32, Job)> = Vec::new();
        let domains = Domains::of(&devices);
        let (mut lost, mut draining, mut away, mut crowded) = (0, 0, 0, 0);
        for e in state.extents.iter().filter(|e| is_candidate(e)) {
            let due = |c: usize| Some((c, why_due(e, c, &fates, unsure, epoch)?));
            let due: Vec<(usize, Why)> = (0..e.scheme.width()).filter_map(due).collect();
            lost += due.iter().filter(|d| matches!(d.1, Why::Lost | Why::Damaged)).count() as u64;
            let is_away = |c: &usize| {
                let device = e.place(*c).device;
                (device.is_nil() && unsure) || (!device.is_nil() && fates.of(device) == Fate::Away)
            };
            away += (0..e.scheme.width()).filter(is_away).count() as u64;
            draining += due.iter().filter(|d| d.1 == Why::Drain).count() as u64;
            let crowd = domains.crowd(e, &fates);
            crowded += crowd.columns;
            let leaves = crowd.leaves.map(|column| (column, Why::Crowded));
            let Some((column, why)) = due.iter().copied().chain(leaves).min_by_key(|d| d.1) else { continue };
            if !e.completing && e.remake_at <= now {
                let lacks = e.scheme.m() as u32 - due.len().min(e.scheme.m()) as u32;
                let rank = if why <= Why::Damaged { lacks } else { 64 + why as u32 };
                jobs.push((rank, Job { extent: e.id, column, why, to: None }));
            }
        }
        let figures = &mut state.repair.figures;
        (figures.lost_columns, figures.draining_columns, figures.away_columns) = (lost, draining, away);
        figures.crowded_columns = crowded;
        jobs.sort_unstable_by_key(|(rank, job)| (*rank, job.extent));
        jobs.truncate(JOBS_MAX);
        if jobs.is_empty() && !unsure {
            let most = MOVES_MAX * self.columns.sharers();
            return find_moves(state, &mut devices, &fates, moving, now, most);
        }
        jobs.into_iter().map(|(_, job)| job).collect()
    }

    /// What becomes of devices has changed: it is looked at now.
    pub fn look_after_devices(&self) {
        self.repair_wanted.notify_all();
    }

    /// A read got something else from a column than it should have.
    pub(crate) fn suspect(&self, id: ExtentId, column: ColumnIndex) {
        let state = &mut *self.state.borrow_mut();
        if let Some(e) = state.extents.get_mut(id).filter(|e| e.phase == ExtentPhase::Sealed) {
            e.suspected |= e.sealed_columns() & 1 << column.0;
        }
        self.repair_wanted.notify_all();
    }

    async fn free_left_behind(&self) {
        let left_behind = std::mem::take(&mut self.state.borrow_mut().repair.left_behind);
        for (place, name) in left_behind {
            // It may have become the column's place: a slot is freed and given again under the same name.
            let used = {
                let state = self.state.borrow();
                let extent = state.extents.get(name.extent);
                extent.is_some_and(|e| e.completing || e.place(name.column.0 as usize) == place)
            };
            if used || self.stopped().is_some() {
                continue;
            }
            self.free_leftover(place, name).await;
        }
    }

    /// A copy of the figures, complete.
    pub fn repair_figures(&self, now: Instant) -> RepairFigures {
        let state = self.state.borrow();
        let oldest = state.extents.iter().filter(|e| is_candidate(e)).map(|e| e.verified_at).min();
        RepairFigures {
            working_ns: state.repair.began.map_or(0, |began| now.nanos_since(began)),
            scrub_left: scrub_left(&state) as u64,
            // When they were verified before a start is not known: their age counts from there.
            unverified_ns: oldest.map_or(0, |at| now.nanos_since(at.max(state.repair.since))),
            ..state.repair.figures
        }
    }
}

/// Its columns are what they will be for as long as it lives.
pub(crate) fn is_candidate(e: &Extent) -> bool {
    e.phase == ExtentPhase::Sealed && !e.leftover
}

/// Whether a column has to be made anew. `unsure`: columns that nobody has may come back with their devices.
fn why_due(e: &Extent, column: usize, fates: &Fates, unsure: bool, epoch: Epoch) -> Option<Why> {
    let (place, bit) = (e.place(column), 1 << column);
    if place.device.is_nil() {
        return (!unsure).then_some(Why::Lost);
    }
    match fates.of(place.device) {
        Fate::Lost => Some(Why::Lost),
        Fate::Away => None,
        // One that missed its seal gets it from whoever remembers its rows' checksums.
        Fate::Here | Fate::Draining | Fate::Leaving if e.missing & bit != 0 => {
            (e.lost & bit != 0 || e.epoch != epoch).then_some(Why::Lost)
        }
        Fate::Here | Fate::Draining | Fate::Leaving if e.damaged & bit != 0 => Some(Why::Damaged),
        Fate::Here | Fate::Draining | Fate::Leaving if e.suspected & bit != 0 => Some(Why::Suspected),
        Fate::Draining => Some(Why::Drain),
        Fate::Here | Fate::Leaving => None,
    }
}

/// One part in `parts` of so many, on average.
fn part_of(many: usize, parts: usize) -> usize {
    let rest = (many % parts) as u64;
    many / parts + usize::from(peristyle_rt::random_below(parts as u64) < rest)
}

/// Moves that even out the use of devices, `most` at most.
fn find_moves(
    state: &State,
    devices: &mut [DeviceView],
    fates: &Fates,
    moving: bool,
    now: Instant,
    most: usize,
) -> Vec<Job> {
    if !is_uneven(devices, moving) {
        return Vec::new();
    }
    let least = least_gain(devices);
    let jobs = moves_of(state, &mut devices.to_vec(), fates, now, (least, most));
    match jobs.is_empty() {
        // No extent can do more for the devices that are furthest off.
        true => moves_of(state, devices, fates, now, (0.0, most)),
        false => jobs,
    }
}

/// Of at least so much gain each.
fn moves_of(
    state: &State,
    devices: &mut [DeviceView],
    fates: &Fates,
    now: Instant,
    (least, most): (f64, usize),
) -> Vec<Job> {
    let mut jobs = Vec::new();
    let mut candidates: Vec<&Extent> = state
        .extents
        .iter()
        .filter(|e| is_candidate(e) && !e.completing && e.remake_at <= now && e.missing == 0)
        .collect();
    candidates.sort_unstable_by_key(|e| e.id);
    for e in candidates {
        let index = |c: usize| {
            let device = e.place(c).device;
            devices.iter().position(|d| d.id == device && fates.of(device) == Fate::Here)
        };
        let columns: Vec<Option<usize>> = (0..e.scheme.width()).map(index).collect();
        let taken: Vec<_> = columns.iter().flatten().map(|&i| devices[i].domain).collect();
        let Some(found) = best_move(devices, &columns, &taken, least) else { continue };
        let from = columns[found.column].expect("it is on a device");
        devices[from].slots_used -= 1;
        devices[found.to].slots_used += 1;
        let to = Some(devices[found.to].id);
        jobs.push(Job { extent: e.id, column: found.column, why: Why::Balance, to });
        if jobs.len() == most {
            break;
        }
    }
    jobs
}
