//! Which extent takes a frame: that of its stream, or what is left of others while the pool is short; and who is refused when
//! it is full.

use crate::append::older_waits;
use crate::columns::{AllocClass, Columns};
use crate::error::ShardError;
use crate::extent::{ExtentPhase, Width};
use crate::frame::{FrameKind, Layout, goes_narrow};
use crate::shard::{Shard, State};
use crate::stream::Stream;
use peristyle_base::{COLUMN_ROWS, ExtentId, RowIndex, Scheme};
use peristyle_cluster::ShardStore;
use std::rc::Rc;

impl<C: Columns, S: ShardStore + 'static> Shard<C, S> {
    /// The extent that takes the frame next; waits for one when none is ready.
    pub(crate) async fn find_extent(self: &Rc<Self>, index: u16) -> Option<(ExtentId, Scheme, u32)> {
        enum Found {
            Extent((ExtentId, Scheme, u32)),
            OlderFirst,
            Nothing,
            Wait,
        }
        loop {
            let found = {
                let state = &mut *self.state.borrow_mut();
                if state.stopped.is_some() {
                    Found::Nothing
                } else if older_waits(state, index) {
                    Found::OlderFirst
                } else if let Some(found) = self.pick_extent(state, index) {
                    Found::Extent(found)
                } else if refusable(state, index) {
                    self.refuse_full(state, index);
                    Found::Nothing
                } else {
                    if state.short && must_go_on(&state.frames[index as usize]) {
                        let meta = state.frames[index as usize].kind != FrameKind::User;
                        state.reserve_wanted =
                            Some(if meta { AllocClass::Meta } else { AllocClass::Reappend });
                    }
                    Found::Wait
                }
            };
            match found {
                Found::Extent(found) => return Some(found),
                Found::Nothing => return None,
                Found::OlderFirst => {
                    self.put_back(index);
                    return None;
                }
                Found::Wait => {
                    self.urgent.set(true);
                    self.supply_wanted.notify_all();
                    self.supplied.notified().await;
                }
            }
        }
    }

    fn pick_extent(&self, state: &mut State, index: u16) -> Option<(ExtentId, Scheme, u32)> {
        let stream = self.stream_of(state, index);
        if let Some(found) = self.pick_of(state, index, stream) {
            return Some(found);
        }
        if state.frames[index as usize].kind == FrameKind::Relocation {
            return Stream::moved().find_map(|s| self.pick_of(state, index, s));
        }
        let must_go_on = must_go_on(&state.frames[index as usize]);
        if !state.store_away && (!state.short || !(must_go_on || state.full)) {
            return None;
        }
        // What is left of the other streams is used up before anything is refused or the reserve is touched, and before writes
        // wait for the control store.
        let others = Stream::users().chain([Stream::Narrow]).chain(must_go_on.then_some(Stream::Reserve));
        others.into_iter().find_map(|s| self.pick_of(state, index, s))
    }

    /// Where a frame belongs.
    fn stream_of(&self, state: &State, index: u16) -> Stream {
        let frame = &state.frames[index as usize];
        let class = frame.contents.class;
        match (frame.stream, frame.kind) {
            (Some(stream), _) => stream,
            (None, FrameKind::Relocation) => Stream::Moved(class),
            (None, FrameKind::Meta) if state.classes.checkpoints_apart => Stream::Checkpoint,
            (None, FrameKind::Meta) => Stream::User(0),
            (None, FrameKind::User) => {
                let narrow = !self.scheme().is_narrow()
                    && goes_narrow(frame.contents.data.len(), self.current_scheme(state));
                if narrow { Stream::Narrow } else { Stream::User(class) }
            }
        }
    }

    fn pick_of(&self, state: &mut State, index: u16, stream: Stream) -> Option<(ExtentId, Scheme, u32)> {
        let frame = &state.frames[index as usize];
        // Of several copies under one epoch the one in the highest extent counts: it has to be the last one.
        let least = if frame.kind == FrameKind::User { frame.extent.next() } else { ExtentId(0) };
        let (attempt, users) = (frame.attempt, frame.kind == FrameKind::User);
        if let Some(id) = state.extents.current(stream)
            && id >= least
        {
            if is_usable(state, index, id) {
                state.frames[index as usize].stream = Some(stream);
                return Some((id, state.extents.at(id).scheme, attempt));
            }
            self.close(state, id);
        }
        let width = stream.width();
        // The last one is for checkpoints, which would take narrow ones: twice the space, of a pool that has none.
        let kept = users && width == Width::Wide && state.short && !state.full;
        let ready = &mut state.extents.ready[width as usize];
        if kept && ready.len() <= 1 && state.classes.checkpoints_apart {
            return None;
        }
        let at = ready.iter().position(|&id| id >= least)?;
        let id = ready.remove(at).expect("just seen");
        if let Some(before) = state.extents.current(stream) {
            self.close(state, before);
        }
        let extent = state.extents.at(id);
        assert!(
            extent.in_record,
            "invariant 1, One writer: only extents of the recorded open set take frames"
        );
        extent.phase = ExtentPhase::Open;
        (extent.aside, extent.hot) = (stream.is_aside(), stream == Stream::User(0));
        let scheme = extent.scheme;
        state.extents.set_current(stream, id);
        state.frames[index as usize].stream = Some(stream);
        if state.extents.ready[width as usize].len() <= state.stock / 2 {
            self.supply_wanted.notify_all();
        }
        Some((id, scheme, attempt))
    }

    /// Scheme of the wide extents in use now: the pool's, or what too few healthy devices leave of it.
    fn current_scheme(&self, state: &State) -> Scheme {
        let current = Stream::users().find_map(|s| state.extents.current(s));
        let next = state.extents.ready[Width::Wide as usize].front().copied();
        let extent = current.or(next).and_then(|id| state.extents.get(id));
        extent.map_or(self.scheme(), |e| e.scheme)
    }

    /// Takes no more frames for an extent; it is sealed when what is in flight has been decided.
    pub(crate) fn close(&self, state: &mut State, id: ExtentId) {
        state.extents.leave(id);
        let extent = state.extents.at(id);
        if matches!(extent.phase, ExtentPhase::Open | ExtentPhase::Ready) {
            extent.phase = ExtentPhase::Closed;
        }
        self.supply_wanted.notify_all();
    }

    fn refuse_full(&self, state: &mut State, index: u16) {
        if state.frames[index as usize].kind != FrameKind::User {
            let frame = &mut state.frames[index as usize];
            frame.busy = false;
            frame.attempt += 1;
            frame.contents.clear_data();
            let now = peristyle_rt::now();
            let refuse = |(op, _)| self.ops.complete(op, Err(ShardError::NoSpace), now);
            frame.contents.ops.drain(..).for_each(refuse);
            return;
        }
        // The frame never reached an extent, so its number can be given again only if none came after it.
        let frame = &mut state.frames[index as usize];
        if frame.seq.next() != state.next_seq {
            return;
        }
        state.next_seq = frame.seq;
        frame.busy = false;
        frame.attempt += 1;
        frame.contents.data.clear();
        let mut ops = std::mem::take(&mut frame.contents.ops);
        state.order.retain(|&i| i != index);
        let now = peristyle_rt::now();
        ops.drain(..).for_each(|(op, _)| self.ops.complete(op, Err(ShardError::NoSpace), now));
        state.frames[index as usize].contents.ops = ops;
        self.progress.notify_all();
        self.work.notify_all();
    }
}

/// Frames that a full pool takes all the same: what was appended before, checkpoints, and those without data, which
/// give space back.
fn must_go_on(frame: &crate::shard::Frame) -> bool {
    match frame.kind {
        FrameKind::User => frame.reappended || frame.contents.data.is_empty(),
        FrameKind::Meta => true,
        FrameKind::Relocation => false,
    }
}

/// Whether a frame that has found no extent is given up: what collection moves (it is where it was, and collection tries
/// again), in a full pool user data, and once the reserve is spent everything that can still be given up.
fn refusable(state: &State, index: u16) -> bool {
    let frame = &state.frames[index as usize];
    let committing = frame.kind == FrameKind::User && frame.reappended;
    match frame.kind {
        FrameKind::Relocation => true,
        _ => {
            (state.full && !must_go_on(frame))
                || (state.short && state.reserve_spent && !committing && must_go_on(frame))
        }
    }
}

/// Whether the extent takes the frame: open, long enough, and holding no younger user frame in flight (rows of
/// an extent commit in order).
pub(crate) fn is_usable(state: &State, index: u16, id: ExtentId) -> bool {
    let frame = &state.frames[index as usize];
    let Some(extent) = state.extents.get(id) else { return false };
    let layout = Layout {
        scheme: extent.scheme,
        first_row: RowIndex(extent.next_row),
        blocks: frame.contents.data.len() as u16,
    };
    let younger = extent.in_flight.iter().any(|&i| {
        let other = &state.frames[i as usize];
        other.kind == FrameKind::User && frame.kind == FrameKind::User && other.seq > frame.seq
    });
    extent.phase == ExtentPhase::Open
        && !younger
        && extent.next_row as usize + layout.rows() <= COLUMN_ROWS as usize
}
