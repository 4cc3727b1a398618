//! The appender: builds frames of what is pending, encodes them, and sends their columns.

use crate::batching::Batching;
use crate::builder::Contents;
use crate::columns::{ColumnFault, Columns, WriteClass};
use crate::encode::{FrameMemory, crc_offset, encode_parity, fill_crcs};
use crate::error::ShardError;
use crate::frame::{FITTING_MIN, FRAME_BLOCKS_MAX, FrameKind, Header, Layout};
use crate::map::Lookup;
use crate::ops::OpId;
use crate::path::Place;
use crate::pick::is_usable;
use crate::shard::{Shard, State};
use crate::stream::{Stream, class_of};
use peristyle_base::{BLOCK_BYTES, ColumnName, ColumnPlace, Epoch, ExtentId, Instant, RowIndex, Scheme, Seq};
use peristyle_cluster::ShardStore;
use peristyle_rt::{Buf, Duration, IoVec, View, select};
use std::rc::Rc;

/// Rows that are encoded in one step of a frame that nobody waits for.
const ROWS_AT_ONCE: usize = 8;
/// Users' blocks wait for collection to catch up for so long at most.
const BEHIND_NS: u64 = 50_000_000;

enum Step {
    /// Append this frame (again).
    Append(u16),
    /// Build a new one.
    Build,
    /// Wait for work; for a while at most when a frame in flight decides.
    Wait(Option<Duration>),
    Stop,
}

/// What became of a frame's columns so far.
struct Sent {
    attempt: u32,
    started: Instant,
    /// Columns that have answered at once, and when.
    answered: [Option<Instant>; Scheme::WIDTH_MAX],
    /// There are others.
    under_way: bool,
}

/// What one column gets of a frame.
struct Piece {
    /// The frame, its attempt, and the column.
    at: (u16, u32, usize),
    place: ColumnPlace,
    name: ColumnName,
    epoch: Epoch,
    row: RowIndex,
    iov: IoVec,
    crcs: View,
    class: WriteClass,
}

impl Piece {
    /// When it was done, where nothing has to be waited for.
    fn try_append(&self, columns: &impl Columns, began: Instant) -> Option<Instant> {
        let Piece { at: _, place, name, epoch, row, iov, crcs, class } = self;
        columns.try_append(*place, *name, *epoch, *row, iov, crcs, *class, began)
    }

    async fn append(self, columns: &impl Columns) -> Result<(), ColumnFault> {
        let Piece { at: _, place, name, epoch, row, iov, crcs, class } = self;
        columns.append(place, name, epoch, row, iov, crcs, class).await
    }
}

impl<C: Columns, S: ShardStore + 'static> Shard<C, S> {
    pub(crate) async fn run_appender(self: Rc<Self>) {
        loop {
            let step = self.next_step();
            match step {
                Step::Stop => return,
                Step::Append(frame) => self.append(frame).await,
                Step::Build => {
                    // Natural batching: everything that has arrived by the end of this turn shares the frame.
                    peristyle_rt::end_of_turn().await;
                    if let Some(frame) = self.build_frame() {
                        self.append(frame).await;
                    }
                }
                Step::Wait(None) => self.work.notified().await,
                Step::Wait(Some(limit)) => {
                    peristyle_rt::timeout(limit, self.work.notified()).await;
                }
            }
        }
    }

    /// Appends what does not stand in the user sequence.
    pub(crate) async fn run_aside(self: Rc<Self>) {
        loop {
            let next = {
                let state = &mut *self.state.borrow_mut();
                if state.stopped.is_some() {
                    return;
                }
                state.aside.pop_front()
            };
            match next {
                Some(frame) => self.append(frame).await,
                None => self.work.notified().await,
            }
        }
    }

    fn next_step(&self) -> Step {
        let state = &mut *self.state.borrow_mut();
        if state.stopped.is_some() {
            return Step::Stop;
        }
        if let Some(frame) = state.to_append.pop_front() {
            return Step::Append(frame);
        }
        if state.queue.is_empty() {
            return Step::Wait(None);
        }
        let now = peristyle_rt::now();
        let (mut frames, mut blocks, mut oldest) = (0, 0, now);
        for frame in state.order.iter().map(|&i| &state.frames[i as usize]).filter(|f| !f.durable) {
            frames += 1;
            blocks += frame.contents.data.len().max(1);
            oldest = oldest.min(frame.started);
        }
        if state.order.len() >= self.config.frames_in_flight_max {
            return Step::Wait(None);
        }
        // Who writes faster than space comes back is slowed down early and evenly, not stopped when there is none.
        let waited = state.queue.oldest().map_or(0, |since| now.nanos_since(since));
        if state.collect.is_behind() && waited < BEHIND_NS {
            return Step::Wait(Some(Duration::from_nanos(BEHIND_NS - waited)));
        }
        if state.queue.left_over() > 0 {
            return Step::Build;
        }
        let batching = Batching {
            pending: state.queue.blocks().max(1),
            pending_ns: waited,
            in_flight_frames: frames,
            in_flight_blocks: blocks,
            running_ns: now.nanos_since(oldest),
            usual_ns: state.frame_latency_ns,
            expected: state.expected_blocks,
        };
        match batching.wait_ns() {
            0 => Step::Build,
            u64::MAX => Step::Wait(None),
            ns => Step::Wait(Some(Duration::from_nanos(ns))),
        }
    }

    /// Makes a frame of what is pending. `None` when nothing is (any more), or no frame slot is free.
    fn build_frame(&self) -> Option<u16> {
        let state = &mut *self.state.borrow_mut();
        if state.queue.is_empty() || state.stopped.is_some() {
            return None;
        }
        let index = free_frame(state)?;
        let (class, commands) = self.sort_queue(state);
        let fitting = self.fitting(state, class);
        let in_flight: usize =
            state.order.iter().map(|&i| state.frames[i as usize].contents.data.len()).sum();
        let outstanding = in_flight + state.queue.blocks();
        state.expected_blocks = outstanding.max(state.expected_blocks - state.expected_blocks.div_ceil(16));
        let seq = state.next_seq;
        state.next_seq = seq.next();
        let frame = &mut state.frames[index as usize];
        let head = |volume| state.map.view(volume).map(|view| view.layer);
        state.queue.take(&mut state.scratch, &mut frame.contents, (commands, fitting), head);
        frame.contents.class = class;
        frame.begin(FrameKind::User, seq);
        frame.started = peristyle_rt::now();
        let now = frame.started;
        for &(_, since) in &frame.contents.ops {
            state.stats.batch_wait.leave(since, now);
        }
        frame.enter_path(&mut state.stats, now);
        state.stats.frames += 1;
        state.stats.frame_blocks += frame.contents.data.len() as u64;
        state.stats.user_blocks += frame.contents.data.len() as u64;
        state.stats.zero_blocks += frame.contents.zeroes as u64;
        state.order.push_back(index);
        Some(index)
    }

    /// Which class of commands the next frame takes, and how many of them: `usize::MAX` for all. Blocks that replace what
    /// lived long will live long (SepBIT); the age of what they replace is that of its extent.
    fn sort_queue(&self, state: &mut State) -> (u8, usize) {
        let State { queue, scratch, map, extents, collect, classes, .. } = state;
        if classes.user == 1 || collect.usual_life == 0 {
            return (0, usize::MAX);
        }
        let head = |volume| map.view(volume).map_or(volume, |view| view.layer);
        let class_of = |layer, block| match map.lookup(head(layer), block) {
            Lookup::Data(ptr) => {
                let birth = extents.get(ptr.extent()).map_or(0, |e| e.birth.mean());
                class_of(collect.clock.saturating_sub(birth), collect.usual_life, classes.user)
            }
            // Nothing is known of what is not in memory: a user's frame waits for no read.
            Lookup::Zero | Lookup::Absent | Lookup::Away => classes.user - 1,
        };
        queue.sort_by_class(scratch, FRAME_BLOCKS_MAX, class_of)
    }

    /// Blocks that the next frame of users should have at most: what the extent in use has room for, unless that is little.
    fn fitting(&self, state: &State, class: u8) -> usize {
        let current = state.extents.current(Stream::User(class)).and_then(|id| state.extents.get(id));
        let fitting = current.map_or(FRAME_BLOCKS_MAX, |e| e.blocks_left());
        if fitting < FITTING_MIN { FRAME_BLOCKS_MAX } else { fitting.min(FRAME_BLOCKS_MAX) }
    }

    /// Takes a slot for a frame that is not built from the queue (recovery, checkpoints).
    pub(crate) fn frame_slot(state: &mut State, kind: FrameKind, seq: Seq) -> Option<u16> {
        let index = free_frame(state)?;
        let frame = &mut state.frames[index as usize];
        frame.begin(kind, seq);
        frame.started = peristyle_rt::now();
        frame.contents.clear();
        Some(index)
    }

    /// Appends a frame that does not stand in the user sequence, with what `fill` gives it, as soon as a slot is free.
    /// Returns when it is committed.
    pub(crate) async fn append_aside(
        &self,
        kind: FrameKind,
        mut fill: impl FnMut(&mut Contents),
    ) -> Result<OpId, ShardError> {
        let op = loop {
            {
                let state = &mut *self.state.borrow_mut();
                if state.stopped.is_some() {
                    return Err(ShardError::Stopped);
                }
                if let Some(index) = Self::frame_slot(state, kind, Seq(0)) {
                    let op = self.ops.start();
                    let frame = &mut state.frames[index as usize];
                    fill(&mut frame.contents);
                    frame.contents.ops.push((op, frame.started));
                    state.aside.push_back(index);
                    break op;
                }
            }
            self.progress.notified().await;
        };
        self.work.notify_all();
        self.ops.wait(op).await.map(|()| op)
    }

    /// Gives a frame its rows in an extent and sends its columns. Returns once they are on their way, or when
    /// the frame has been put back because an older one has to go first.
    async fn append(self: &Rc<Self>, index: u16) {
        let Some((extent, scheme, attempt)) = self.find_extent(index).await else { return };
        let Some(mut memory) = self.frame_memory(index, scheme).await else { return };
        while !self.encode_aside(index, attempt, scheme, &mut memory) {
            peristyle_rt::yield_now().await;
        }
        // Awaits are places where the world changes: the extent may have been abandoned, an older frame may
        // have come back. Look again; the memory serves the next attempt of nobody.
        let ready = {
            let state = &mut *self.state.borrow_mut();
            let frame = &state.frames[index as usize];
            if state.stopped.is_some() || frame.attempt != attempt {
                return;
            }
            is_usable(state, index, extent)
        };
        if !ready {
            drop(memory);
            self.state.borrow_mut().frames[index as usize].on_kept = false;
            self.put_back(index);
            return;
        }
        self.send(index, extent, memory);
    }

    /// Some of the parity of a frame that does not stand in the user sequence, so that commands do not wait for all of it.
    /// True: nothing is left to do before it is sent.
    fn encode_aside(&self, index: u16, attempt: u32, scheme: Scheme, memory: &mut FrameMemory) -> bool {
        let state = &mut *self.state.borrow_mut();
        let frame = &state.frames[index as usize];
        if frame.kind == FrameKind::User || state.stopped.is_some() || frame.attempt != attempt {
            return true;
        }
        let code = Self::code(state, scheme);
        encode_parity(&code, scheme, &state.frames[index as usize].contents.data, memory, ROWS_AT_ONCE)
    }

    /// Memory for a frame's header and parity. Payload of queued writes may have all of the pool: then frames go on one at
    /// a time with what is kept back. `None`: an older frame has come back meanwhile and goes first.
    async fn frame_memory(&self, index: u16, scheme: Scheme) -> Option<FrameMemory> {
        let n = self.state.borrow().frames[index as usize].contents.data.len();
        let bytes = FrameMemory::bytes(scheme, n);
        loop {
            if let Some(buf) = Buf::try_alloc(bytes) {
                return Some(FrameMemory::cut(buf, scheme, n));
            }
            {
                let state = &mut *self.state.borrow_mut();
                // What an older frame holds comes back only when it has been appended anew.
                if state.stopped.is_some() || older_waits(state, index) {
                    break;
                }
                if !state.frames.iter().any(|f| f.busy && f.on_kept)
                    && let Some(buf) = self.kept().frames.try_take(bytes)
                {
                    state.frames[index as usize].on_kept = true;
                    return Some(FrameMemory::cut(buf, scheme, n));
                }
            }
            select(self.kept().frames.changed(), self.work.notified()).await;
        }
        self.put_back(index);
        None
    }

    /// Queues a frame for another try, in order.
    pub(crate) fn put_back(&self, index: u16) {
        let State { frames, to_append, aside, .. } = &mut *self.state.borrow_mut();
        if frames[index as usize].kind != FrameKind::User {
            aside.push_front(index);
        } else {
            let mine = frames[index as usize].seq;
            let younger = to_append.iter().position(|&i| frames[i as usize].seq > mine);
            to_append.insert(younger.unwrap_or(to_append.len()), index);
        }
        self.work.notify_all();
    }

    /// Assigns rows, writes header and parity, and appends to each column. No await: columns that answer at once have
    /// answered when it returns, unless nobody is in a hurry.
    fn send(self: &Rc<Self>, index: u16, id: ExtentId, memory: FrameMemory) {
        let Sent { attempt, started, answered, under_way } = self.send_columns(index, id, memory);
        for (column, at) in answered.iter().enumerate() {
            if let Some(at) = *at {
                self.column_done(index, attempt, column, (started, at), Ok(()));
            }
        }
        if under_way {
            self.sent.notify_all();
        }
    }

    fn send_columns(self: &Rc<Self>, index: u16, id: ExtentId, mut memory: FrameMemory) -> Sent {
        let state = &mut *self.state.borrow_mut();
        let now = peristyle_rt::now();
        let code = Self::code(state, state.extents.get(id).expect("checked").scheme);
        let (epoch, committed, cut) = (state.record.epoch, state.committed, state.cut);
        let frame = &mut state.frames[index as usize];
        frame.step_to(Place::Encode, &mut state.stats, now);
        let extent = state.extents.at(id);
        assert_eq!(extent.epoch, epoch, "extents of a lower epoch are never appended to");
        let n = frame.contents.data.len();
        let layout = Layout { scheme: extent.scheme, first_row: RowIndex(extent.next_row), blocks: n as u16 };
        extent.next_row = layout.end_row();
        extent.frames.push((layout.first_row.0, n as u16));
        extent.in_flight.push_back(index);
        let header = Header {
            kind: frame.kind,
            nonce: extent.nonce,
            shard: self.id,
            epoch,
            extent: id,
            seq: frame.seq,
            committed,
            cut,
            first_row: layout.first_row,
            scheme: layout.scheme,
            blocks: n as u16,
            entries: frame.contents.entries.len() as u16,
        };
        encode_parity(&code, layout.scheme, &frame.contents.data, &mut memory, usize::MAX);
        let FrameMemory { header: mut header_buf, mut crcs, parity, .. } = memory;
        header.encode(frame.contents.entries.iter(), &mut header_buf);
        fill_crcs(&layout, &header_buf, &frame.contents, &mut crcs);
        let header_view = header_buf.freeze();
        let crcs = crcs.freeze();
        let parity = parity.map(|p| p.map(Buf::freeze));
        frame.extent = id;
        frame.layout = layout;
        frame.header = Some(header_view.clone());
        frame.durable = false;
        (frame.waiting, frame.unsent) = (0, 0);
        let done = peristyle_rt::now();
        frame.started = done;
        let class = match (frame.kind, frame.reappended) {
            (FrameKind::Meta, _) => WriteClass::Meta,
            (FrameKind::Relocation, _) => WriteClass::Collection,
            (_, true) => WriteClass::Reappend,
            (_, false) => WriteClass::User,
        };
        if layout.scheme.is_narrow() && frame.kind == FrameKind::User {
            state.stats.narrow_frames += 1;
        }
        frame.step_to(Place::Columns, &mut state.stats, done);
        let bytes = (layout.device_blocks() * BLOCK_BYTES) as u64;
        if frame.kind == FrameKind::User {
            // What replay would have to look at.
            state.log_bytes_since_checkpoint += bytes;
        }
        state.stats.frame_bytes[frame.kind as usize] += bytes;
        let attempt = frame.attempt;
        let mut sent = Sent { attempt, started: done, answered: [None; Scheme::WIDTH_MAX], under_way: false };
        let mut since = done;
        for column in 0..layout.scheme.width() {
            let Some((row, rows)) = layout.written(column) else { continue };
            frame.waiting |= 1 << column;
            let mut iov = IoVec::new();
            if layout.has_header(column) {
                iov.push(header_view.clone());
            }
            match column.checked_sub(layout.scheme.k()) {
                None => {
                    frame.contents.data[layout.blocks_of(column)].iter().for_each(|v| iov.push(v.clone()))
                }
                Some(_) if layout.scheme.is_narrow() => {
                    frame.contents.data.iter().for_each(|v| iov.push(v.clone()))
                }
                Some(p) => {
                    if let Some(view) = &parity[p] {
                        iov.push(view.clone());
                    }
                }
            }
            let at = crc_offset(&layout, column) + (row - layout.first_row.0) as usize * 4;
            let crcs = crcs.slice(at..at + rows as usize * 4);
            let piece = Piece {
                at: (index, attempt, column),
                place: extent.place(column),
                name: extent.name(self.id, column),
                epoch,
                row: RowIndex(row),
                iov,
                crcs,
                class,
            };
            if frame.kind != FrameKind::User {
                // Each column is a step of its own.
                sent.under_way = true;
                frame.unsent |= 1 << column;
                peristyle_rt::spawn_background(self.clone().append_column_aside(piece));
                continue;
            }
            state.stats.append.enter(done);
            if let Some(at) = piece.try_append(&*self.columns, since) {
                (sent.answered[column], since) = (Some(at), at);
                continue;
            }
            sent.under_way = true;
            peristyle_rt::spawn(self.clone().append_column(piece, done));
        }
        sent
    }

    async fn append_column(self: Rc<Self>, piece: Piece, began: Instant) {
        let (index, attempt, column) = piece.at;
        let result = piece.append(&*self.columns).await;
        self.column_done(index, attempt, column, (began, peristyle_rt::now()), result);
    }

    async fn append_column_aside(self: Rc<Self>, piece: Piece) {
        let (index, attempt, column) = piece.at;
        let Some(began) = self.begin_column(index, attempt, column) else { return };
        match piece.try_append(&*self.columns, began) {
            Some(at) => self.column_done(index, attempt, column, (began, at), Ok(())),
            None => self.append_column(piece, began).await,
        }
    }

    /// A column's turn of a frame that does not stand in the user sequence; its device has time from now on. `None`: the
    /// attempt was given up.
    fn begin_column(&self, index: u16, attempt: u32, column: usize) -> Option<Instant> {
        let state = &mut *self.state.borrow_mut();
        let frame = &mut state.frames[index as usize];
        if state.stopped.is_some() || !frame.busy || frame.attempt != attempt {
            return None;
        }
        let now = peristyle_rt::now();
        frame.unsent &= !(1 << column);
        frame.started = now;
        state.stats.append.enter(now);
        Some(now)
    }

    /// One column of one frame has answered.
    fn column_done(
        self: &Rc<Self>,
        index: u16,
        attempt: u32,
        column: usize,
        (started, now): (Instant, Instant),
        result: Result<(), ColumnFault>,
    ) {
        let mut failed = None;
        {
            let state = &mut *self.state.borrow_mut();
            match result {
                Ok(()) => state.stats.append.leave(started, now),
                Err(_) => state.stats.append.leave_failed(started, now),
            }
            let frame = &mut state.frames[index as usize];
            if state.stopped.is_some() || !frame.busy || frame.attempt != attempt {
                return; // a late answer of an attempt that was given up
            }
            match result {
                Ok(()) => {
                    frame.waiting &= !(1 << column);
                    if frame.waiting == 0 {
                        frame.durable = true;
                        frame.step_to(Place::Commit, &mut state.stats, now);
                    }
                    if frame.waiting == 0 && frame.kind == FrameKind::User {
                        let took = now.nanos_since(frame.started);
                        // A moving median: one step towards each sample.
                        let step = (state.frame_latency_ns / 16).max(1000);
                        match took > state.frame_latency_ns {
                            true => state.frame_latency_ns += step.min(took - state.frame_latency_ns),
                            false => state.frame_latency_ns -= step.min(state.frame_latency_ns - took),
                        }
                    }
                }
                Err(fault) => failed = Some((frame.extent, fault)),
            }
        }
        match failed {
            None => self.advance(now),
            Some((_, ColumnFault::Fenced)) => self.stop(crate::error::StopReason::Fenced),
            Some((extent, fault)) => self.abandon(extent, column, Some(fault)),
        }
    }
}

fn free_frame(state: &State) -> Option<u16> {
    state.frames.iter().position(|f| !f.busy).map(|i| i as u16)
}

/// Whether an older user frame has to be appended anew: it goes first, or it could never commit before this one.
pub(crate) fn older_waits(state: &State, index: u16) -> bool {
    let (kind, seq) = (state.frames[index as usize].kind, state.frames[index as usize].seq);
    let older = |f: &crate::shard::Frame| f.kind == FrameKind::User && f.seq < seq;
    kind == FrameKind::User && state.to_append.iter().any(|&i| older(&state.frames[i as usize]))
}
