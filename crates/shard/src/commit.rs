//! Commits in log order, and what happens when a column fails or stalls: abandon the extent, append anew.

use crate::ages::Overwritten;
use crate::columns::{AllocClass, ColumnFault, Columns};
use crate::error::ShardError;
use crate::extent::{Extent, ExtentPhase, Extents};
use crate::frame::{Entry, FrameKind, Layout};
use crate::map::{Lookup, Map, MapFull, Ptr};
use crate::path::Place;
use crate::relocate::apply_moved;
use crate::shard::{Shard, State};
use peristyle_base::{DeviceId, ExtentId, Instant};
use peristyle_cluster::ShardStore;
use peristyle_rt::Duration;
use std::rc::Rc;

/// How often columns in flight are looked at for stalls.
const WATCH_PERIOD: Duration = Duration::from_millis(4);
/// Where all are late, an append may take so many times as long as otherwise.
const ALL_LATE: u32 = 10;
/// At most one abandonment per device in this time (DESIGN §11, "Slowness").
const ABANDON_PERIOD: Duration = Duration::from_secs(1);

impl<C: Columns, S: ShardStore + 'static> Shard<C, S> {
    /// Commits whatever can be: user frames in sequence order (invariant 3, In order), each the first in its
    /// extent, so that what is committed is a prefix of the log and of every extent.
    pub(crate) fn advance(self: &Rc<Self>, now: Instant) {
        let mut any = false;
        loop {
            let state = &mut *self.state.borrow_mut();
            let Some(index) = next_finished(state) else { break };
            any = true;
            self.finish(state, index, now);
        }
        if any {
            let (died, short) = {
                let state = self.state.borrow();
                (state.extents.died, state.short)
            };
            if died {
                self.space.notify_all();
            }
            if short {
                self.collect.notify_all();
            }
            self.progress.notify_all();
            self.work.notify_all();
        }
    }

    fn finish(&self, state: &mut State, index: u16, now: Instant) {
        let State { frames, extents, map, stats, .. } = state;
        let frame = &mut frames[index as usize];
        assert!(frame.durable && frame.waiting == 0, "invariant 2, All or nothing");
        let extent = extents.at(frame.extent);
        assert_eq!(extent.in_flight.pop_front(), Some(index));
        extent.committed_rows = frame.layout.end_row();
        if extent.phase == ExtentPhase::Closed && extent.in_flight.is_empty() {
            self.supply_wanted.notify_all();
        }
        if frame.kind == FrameKind::User {
            assert_eq!(frame.seq, state.committed.next(), "invariant 3, In order");
            state.committed = frame.seq;
            let (live, overwritten) =
                apply(map, extents, frame.extent, &frame.layout, &frame.contents.entries)
                    .expect("a layer's size was checked before its event was accepted");
            state.queue.committed(&frame.contents.entries);
            let now = state.collect.clock;
            extents.at(frame.extent).birth.add(live as u64, now, now);
            if state.collect.user_wrote(frame.contents.data.len(), overwritten) {
                self.collect.notify_all();
            }
            assert_eq!(state.order.pop_front(), Some(index));
        }
        if frame.kind == FrameKind::Relocation {
            let moved = apply_moved(map, extents, frame, state.collect.clock) as u64;
            stats.moved_lately.tick(peristyle_rt::now(), || [stats.moved_blocks]);
            stats.moved_blocks += moved;
        }
        if frame.kind == FrameKind::Meta
            && let Some(&(op, _)) = frame.contents.ops.first()
        {
            state.meta_done.push((op, frame.extent, frame.layout));
        }
        frame.step_to(Place::Nowhere, stats, now);
        frame.busy = false;
        frame.header = None;
        frame.contents.clear_data();
        frame.contents.ops.drain(..).for_each(|(op, _)| self.ops.complete(op, Ok(()), now));
    }

    /// A column of an extent failed or stalled: gives up that extent, and every other unsealed one that appends
    /// to the same device, so that one slow disk costs one bounded time and not one per extent.
    pub(crate) fn abandon(self: &Rc<Self>, id: ExtentId, column: usize, fault: Option<ColumnFault>) {
        let device = {
            let state = &mut *self.state.borrow_mut();
            let Some(extent) = state.extents.get(id) else { return };
            if !matches!(extent.phase, ExtentPhase::Open | ExtentPhase::Closed) {
                return;
            }
            let device = extent.place(column).device;
            let of_device = |e: &&Extent| e.places.iter().any(|p| p.device == device);
            let appending = |e: &&Extent| e.phase == ExtentPhase::Open || !e.in_flight.is_empty();
            let ids: Vec<ExtentId> =
                state.extents.iter().filter(of_device).filter(appending).map(|e| e.id).collect();
            for id in ids {
                let column = state.extents.at(id).places.iter().position(|p| p.device == device);
                self.give_up(state, id, column.expect("just filtered"));
            }
            state.abandoned_at.insert(device, peristyle_rt::now());
            discard_ready(state, |e| e.is_on(device));
            device
        };
        self.columns.report_bad(device, fault);
        self.urgent.set(true);
        self.supply_wanted.notify_all();
        self.work.notify_all();
        self.supplied.notify_all();
    }

    /// Gives an extent up at its committed rows: nothing more is appended to it, and every frame of it that is
    /// not committed goes to a new extent, with the same sequence number and entries (DESIGN §11).
    fn give_up(&self, state: &mut State, id: ExtentId, column: usize) {
        self.close(state, id);
        let extent = state.extents.at(id);
        extent.missing |= 1 << column;
        extent.frames.retain(|f| f.0 < extent.committed_rows);
        extent.next_row = extent.committed_rows;
        let again: Vec<u16> = extent.in_flight.drain(..).collect();
        let now = peristyle_rt::now();
        for &index in &again {
            let frame = &mut state.frames[index as usize];
            frame.fall_back_to(Place::Room, &mut state.stats, now);
            frame.attempt += 1;
            (frame.durable, frame.waiting, frame.unsent) = (false, 0, 0);
            (frame.reappended, frame.on_kept) = (true, false);
            frame.started = now;
        }
        state.stats.abandoned += 1;
        state.stats.reappended += again.len() as u64;
        let (users, aside): (Vec<u16>, Vec<u16>) =
            again.into_iter().partition(|i| state.frames[*i as usize].kind == FrameKind::User);
        state.aside.extend(aside);
        state.to_append.extend(users);
        let frames = &state.frames;
        state.to_append.make_contiguous().sort_by_key(|i| frames[*i as usize].seq);
    }

    /// Gives up columns that take too long, and tells readers that theirs does.
    pub(crate) async fn run_watchdog(self: Rc<Self>) {
        let mut overslept = false;
        loop {
            self.sent
                .wait_until(|| {
                    let state = self.state.borrow();
                    state.stopped.is_some() || self.reads.any() || state.frames.iter().any(|f| f.busy)
                })
                .await;
            if self.stopped().is_some() {
                return;
            }
            let due = peristyle_rt::now() + WATCH_PERIOD;
            peristyle_rt::sleep_until(due).await;
            let now = peristyle_rt::now();
            // Who woke up late himself first hears what the devices have answered meanwhile.
            overslept = now >= due + WATCH_PERIOD && !overslept;
            if overslept {
                continue;
            }
            let limit = |p99_ns| self.read_limit(p99_ns);
            self.reads.flag_late(now, self.config.read_limit_min, limit, |d| self.columns.report_late(d));
            while let Some((extent, column)) = self.stalled_column() {
                self.abandon(extent, column, None);
            }
        }
    }

    /// A column that takes so long that its extent is given up. Where more devices are late than a scheme can do without, doing it
    /// all again would be no quicker: then only one that takes much longer still is given up.
    fn stalled_column(&self) -> Option<(ExtentId, usize)> {
        let late = self.late_columns(1);
        if late.is_empty() {
            return None;
        }
        let mut devices = Vec::new();
        self.columns.devices(AllocClass::User, &mut devices);
        for device in devices.iter_mut().filter(|d| late.iter().any(|l| l.2 == d.id)) {
            device.avoid = true;
        }
        let shuns = self.pool(&devices).shuns();
        let stands_out =
            |id: &DeviceId| devices.iter().find(|d| d.id == *id).is_none_or(|d| !d.healthy || shuns.shuns(d));
        let found = late
            .iter()
            .find(|(_, _, device)| stands_out(device))
            .map(|&(extent, column, _)| (extent, column));
        found.or_else(|| self.late_columns(ALL_LATE).first().map(|&(extent, column, _)| (extent, column)))
    }

    /// Columns of frames that have taken so many times the longest that one may take, and were not given up a moment ago.
    fn late_columns(&self, times: u32) -> Vec<(ExtentId, usize, DeviceId)> {
        let state = self.state.borrow();
        let (now, mut late) = (peristyle_rt::now(), Vec::new());
        for frame in state.frames.iter().filter(|f| f.busy && f.waiting != 0) {
            if now.since(frame.started) < self.config.append_limit_min * times {
                continue;
            }
            let Some(extent) = state.extents.get(frame.extent) else { continue };
            let sent = frame.waiting & !frame.unsent;
            for column in (0..frame.layout.scheme.width()).filter(|c| sent >> c & 1 == 1) {
                let device = extent.place(column).device;
                let p99 = Duration::from_nanos(self.columns.append_p99_ns(device));
                let limit = self.config.append_limit_min.max(p99 * self.config.append_limit_p99s);
                let recently = |at: &Instant| now.since(*at) < ABANDON_PERIOD;
                let was_given_up = state.abandoned_at.get(&device).is_some_and(recently);
                if now.since(frame.started) >= limit * times && !was_given_up {
                    late.push((frame.extent, column, device));
                }
            }
        }
        late
    }

    /// Waits until no accepted effect touches the range: then the map has the newest accepted version.
    pub(crate) async fn settled(
        &self,
        layer: peristyle_base::LayerId,
        block: u64,
        count: u64,
    ) -> Result<(), ShardError> {
        loop {
            {
                let state = self.state.borrow();
                if state.stopped.is_some() {
                    return Err(ShardError::Stopped);
                }
                let head = state.map.view(layer).map_or(layer, |view| view.layer);
                let in_flight = state.order.iter().any(|&i| {
                    state.frames[i as usize].contents.entries.iter().any(|entry| match *entry {
                        Entry::Data { layer: l, block: b, .. } => {
                            l == head && b >= block && b < block + count
                        }
                        Entry::Zero { layer: l, block: b, count: n } => {
                            l == head && crate::builder::overlap(b, n as u64, block, count)
                        }
                        _ => false,
                    })
                });
                let changes = state.queue.changes_layer(layer);
                if !in_flight && !changes && !state.queue.touches(layer, block, count) {
                    return Ok(());
                }
            }
            self.progress.notified().await;
        }
    }
}

/// A frame that is durable and whose turn it is.
fn next_finished(state: &State) -> Option<u16> {
    let first = |index: u16| {
        let frame = &state.frames[index as usize];
        frame.durable && state.extents.get(frame.extent).and_then(|e| e.in_flight.front()) == Some(&index)
    };
    if let Some(&index) = state.order.front()
        && first(index)
    {
        return Some(index);
    }
    let meta = |f: &crate::shard::Frame| f.busy && f.kind != FrameKind::User;
    (0..state.frames.len() as u16).find(|&i| meta(&state.frames[i as usize]) && first(i))
}

/// Takes a committed frame into the map and the extents' counts, and tells how many of its blocks the map points at now, and
/// what these took the place of. Replay uses the same.
pub(crate) fn apply(
    map: &mut Map,
    extents: &mut Extents,
    extent: ExtentId,
    layout: &Layout,
    entries: &[Entry],
) -> Result<(u32, Overwritten), MapFull> {
    let (mut data, mut live, mut overwritten) = (0, 0, Overwritten::default());
    for entry in entries {
        match *entry {
            Entry::Data { layer, block, crc } => {
                let (column, row) = layout.place(data);
                data += 1;
                let old = map.set(layer, block, Ptr::new(extent, column, row, crc));
                live += u32::from(old.is_some());
                if let Some(Lookup::Data(old)) = old
                    && let Some(birth) = extents.bury(old)
                {
                    overwritten.add(birth.mean());
                }
            }
            Entry::Zero { layer, block, count } => {
                map.zero(layer, block, count as u64, |ptr| extents.drop_live(ptr))
            }
            Entry::LayerCreated { layer, blocks } => map.create_layer(layer, blocks)?,
            Entry::LayerDropped { layer } => map.drop_layer(layer, |ptr| extents.drop_live(ptr)),
            Entry::SnapshotTaken { volume, snapshot, new } => map.take_snapshot(volume, snapshot, new),
            Entry::SnapshotCloned { volume, snapshot, new } => map.clone_snapshot(volume, snapshot, new),
            Entry::RolledBack { volume, snapshot, new } => {
                map.roll_back(volume, snapshot, new, |ptr| extents.drop_live(ptr))
            }
            Entry::LayerMerged { layer } => map.end_merge(layer),
            Entry::LayerParted { volume } => map.part(volume, |ptr| extents.drop_live(ptr)),
            Entry::LayerResized { layer, blocks } => {
                map.resize_layer(layer, blocks, |ptr| extents.drop_live(ptr))?
            }
            Entry::Map { .. } => data += 1,
        }
    }
    extents.add_live(extent, live);
    Ok((live, overwritten))
}

/// Ready extents that nobody should use any more are taken out of the stock.
pub(crate) fn discard_ready(state: &mut State, is_unfit: impl Fn(&Extent) -> bool) {
    for width in 0..state.extents.ready.len() {
        let ready = std::mem::take(&mut state.extents.ready[width]);
        for id in ready {
            let extent = state.extents.at(id);
            match is_unfit(extent) {
                true => extent.phase = ExtentPhase::Closed,
                false => state.extents.ready[width].push_back(id),
            }
        }
    }
}
