//! The shard: one owner's state of one log, and the tasks that work on it.
//!
//! Everything runs on one reactor; state is borrowed for straight-line code only, never over an await.

use crate::background::{Pace, Quota};
use crate::bring::Bringing;
use crate::builder::{Contents, Effect, Pending, Queue, Scratch};
use crate::checkpoint::Roots;
use crate::collect::Collect;
use crate::columns::{AllocClass, Columns};
use crate::degraded::{INSISTING_MAX, RECONSTRUCTIONS_MAX};
use crate::encode::Kept;
use crate::error::{ShardError, StopReason};
use crate::extent::Extents;
use crate::frame::{FRAME_BLOCKS_MAX, FrameKind, Layout};
use crate::map::{Limits, Map};
use crate::ops::{OpId, Ops};
use crate::path::{Path, Place};
use crate::repair::Repair;
use crate::scheme::Converting;
use crate::space::{Readers, is_refusing};
use crate::stats::Stats;
use crate::stream::{Classes, Stream};
use crate::supply::STOCK_MIN;
use crate::victims::Policy;
use crate::volume::Locks;
use crate::watch::Reads;
use peristyle_base::{DeviceId, Epoch, ExtentId, Instant, NodeId, RowIndex, Scheme, Seq, ShardId};
use peristyle_cluster::lease::Lease;
use peristyle_cluster::{Placer, ShardRecord, ShardStore, TooFewPolicy, Version};
use peristyle_ec::Code;
use peristyle_rt::sync::{Notify, Semaphore};
use peristyle_rt::{Duration, View};
use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::rc::Rc;

/// Limits and settings of a shard.
#[derive(Clone, Debug)]
pub struct ShardConfig {
    pub scheme: Scheme,
    pub too_few: TooFewPolicy,
    /// Frames in flight at most.
    pub frames_in_flight_max: usize,
    /// Blocks that may wait for a frame before commands are held back.
    pub pending_blocks_max: usize,
    /// Commands that may wait for a frame.
    pub pending_commands_max: usize,
    /// Ready extents of each width that are kept in stock at most, as the size of the pool allows; refilled at half. While the
    /// control store is out of reach, writes go on as long as they last.
    pub ready_extents: usize,
    /// Shards that share the pool.
    pub shards: usize,
    /// Bytes of the map in memory at most.
    pub map_cache_bytes: u64,
    /// Bytes of log after which a checkpoint is taken.
    pub checkpoint_log_bytes: u64,
    /// A column append is given up after this long at least (DESIGN §11, "Slowness").
    pub append_limit_min: Duration,
    /// … or after this many times the device's p99.
    pub append_limit_p99s: u32,
    /// A column read is late, and the other columns are read as well, after this long at least.
    pub read_limit_min: Duration,
    /// … or after this many times the device's p99.
    pub read_limit_p99s: u32,
    /// How long a host's read waits when more columns than the scheme covers are out of reach.
    pub read_patience: Duration,
    /// Blocks of zeros that hosts write need no space.
    pub detect_zeroes: bool,
    /// Bytes per second that work beside the I/O path reads and writes: rebuild, rebalance, scrub, and collection as long as
    /// there is room. Shards share it.
    pub background: Pace,
    /// All columns are read, and what is damaged is repaired, once in this time.
    pub scrub_period: Duration,
    /// How collection chooses its victims.
    pub collection: Policy,
    /// Reads are served as long as it holds (invariant 7, Lease before read).
    pub lease: Lease,
}

impl ShardConfig {
    pub(crate) fn limits(&self) -> Limits {
        Limits::of(self.map_cache_bytes)
    }
    pub fn new(scheme: Scheme) -> ShardConfig {
        ShardConfig {
            scheme,
            too_few: TooFewPolicy::Refuse,
            frames_in_flight_max: 8,
            pending_blocks_max: 16 * 1024,
            pending_commands_max: 4096,
            ready_extents: 32,
            shards: 1,
            map_cache_bytes: 256 << 20,
            checkpoint_log_bytes: 1 << 30,
            append_limit_min: Duration::from_millis(20),
            append_limit_p99s: 10,
            read_limit_min: Duration::from_millis(10),
            read_limit_p99s: 8,
            read_patience: Duration::from_secs(10),
            detect_zeroes: true,
            background: Pace::new(512 << 20),
            scrub_period: Duration::from_secs(14 * 24 * 3600),
            collection: Policy::default(),
            lease: Lease::for_ever(),
        }
    }
}

/// One frame on its way.
pub(crate) struct Frame {
    pub busy: bool,
    /// Raised whenever the frame is appended anew: completions of an earlier attempt are late and ignored.
    pub attempt: u32,
    pub kind: FrameKind,
    pub seq: Seq,
    pub contents: Contents,
    pub extent: ExtentId,
    pub layout: Layout,
    pub header: Option<View>,
    /// Columns that have not answered: bit per column.
    pub waiting: u32,
    /// Those of them to which nothing was sent yet.
    pub unsent: u32,
    pub durable: bool,
    pub reappended: bool,
    /// Its current attempt uses memory that is kept back for when the pool is empty.
    pub on_kept: bool,
    /// The stream it was sent to first. It stays there, and never goes to an extent with a lower number: of several
    /// copies under one epoch replay takes the one in the highest extent.
    pub stream: Option<Stream>,
    /// When its columns were sent.
    pub started: Instant,
    /// What the commands that made it wait for.
    pub path: Path,
}

impl Frame {
    /// The slot is a new frame's, which was not sent anywhere.
    pub fn begin(&mut self, kind: FrameKind, seq: Seq) {
        (self.busy, self.kind, self.seq) = (true, kind, seq);
        (self.durable, self.reappended, self.on_kept, self.stream) = (false, false, false, None);
        self.path = Path::NOWHERE;
        self.extent = ExtentId(0);
    }

    fn new() -> Frame {
        Frame {
            busy: false,
            attempt: 0,
            kind: FrameKind::User,
            seq: Seq(0),
            contents: Contents::with_room(),
            extent: ExtentId(0),
            layout: Layout { scheme: Scheme::new(1, 0).expect("valid"), first_row: RowIndex(0), blocks: 0 },
            header: None,
            waiting: 0,
            unsent: 0,
            durable: false,
            reappended: false,
            on_kept: false,
            stream: None,
            started: Instant::ZERO,
            path: Path::NOWHERE,
        }
    }
}

pub(crate) struct State {
    pub record: ShardRecord,
    pub version: Version,
    /// What this epoch's takeover kept; goes into every header.
    pub cut: Seq,
    pub map: Map,
    pub extents: Extents,
    pub queue: Queue,
    pub scratch: Scratch,
    pub frames: Vec<Frame>,
    /// User frames in flight or waiting to be appended anew, by sequence number.
    pub order: VecDeque<u16>,
    /// User frames to append: anew after a failure, and the kept tail at takeover.
    pub to_append: VecDeque<u16>,
    /// Frames of checkpoints and of collection to append. They have an appender of their own: a user frame may wait
    /// for the space that they give back.
    pub aside: VecDeque<u16>,
    pub next_seq: Seq,
    /// Number of the next extent; below the record's, which reserves some ahead.
    pub next_extent: ExtentId,
    /// Extents from this number on are being allocated and may not be in `extents` yet.
    pub creating: Option<ExtentId>,
    /// The tail of the former owner is not decided and re-appended yet.
    pub recovering: bool,
    /// What earlier epochs left is sealed, or given back.
    pub settled: bool,
    /// What the last checkpoint holds beside leaves and pages.
    pub roots: Roots,
    /// Extents that are to be freed: nothing refers to them any more.
    pub freeable: Vec<ExtentId>,
    /// … and those that are being freed or given back.
    pub freeing: usize,
    /// Times that extents were given back, and as of which of them the pool was found short.
    pub given_back: u64,
    pub short_as_of: u64,
    /// What could be freed lies behind extents that take frames.
    pub room_wanted: bool,
    /// Checkpoint frames that are done: where they went.
    pub meta_done: Vec<(OpId, ExtentId, Layout)>,
    pub committed: Seq,
    pub stopped: Option<StopReason>,
    /// The pool has no room for user extents: what must go on has the reserve, and collection does all it can.
    pub short: bool,
    /// And there is nothing to collect: new writes are refused until something is freed.
    pub full: bool,
    /// How many streams there is room for.
    pub classes: Classes,
    /// Ready extents of each width that are kept in stock: what is set, as far as the pool is large enough.
    pub stock: usize,
    /// The control store does not take the record: no ready extents will come.
    pub store_away: bool,
    pub collect: Collect,
    pub converting: Converting,
    /// A frame that must not be refused waits for an extent of the reserve.
    pub reserve_wanted: Option<AllocClass>,
    /// The reserve has nothing to give any more.
    pub reserve_spent: bool,
    pub log_bytes_since_checkpoint: u64,
    /// Checkpoints that were asked for, one number each.
    pub checkpoint_asked: u64,
    /// The last number that a checkpoint answers, and how that went.
    pub checkpoint_done: (u64, Result<(), ShardError>),
    /// Ready and open extents below this number are replaced, so that they do not hold the mark back.
    pub retire_below: ExtentId,
    /// Latency of recent frames, for the second-frame rule.
    pub frame_latency_ns: u64,
    /// Blocks that were recently pending or in flight at once; decays with every frame.
    pub expected_blocks: usize,
    pub codes: HashMap<Scheme, Rc<Code>>,
    pub placer: Placer,
    pub abandoned_at: HashMap<DeviceId, Instant>,
    pub locks: Locks,
    pub stats: Stats,
    pub repair: Repair,
}

/// One shard of this process. Clones of the `Rc` are the same shard.
pub struct Shard<C: Columns, S: ShardStore> {
    pub(crate) id: ShardId,
    pub(crate) node: NodeId,
    pub(crate) config: ShardConfig,
    pub(crate) columns: Rc<C>,
    pub(crate) store: Rc<S>,
    pub(crate) state: RefCell<State>,
    pub(crate) ops: Ops,
    /// The pool's scheme, and whether extents of another one still take frames (`scheme.rs`).
    pub(crate) scheme: Cell<Scheme>,
    pub(crate) leaving_scheme: Cell<bool>,
    pub(crate) kept: RefCell<Rc<Kept>>,
    /// There is something to append.
    pub(crate) work: Notify,
    /// A frame's columns were sent, or a column is read: the watchdog looks at them from now on.
    pub(crate) sent: Notify,
    /// A frame was committed, a checkpoint was asked for or is over, or the shard stopped.
    pub(crate) progress: Notify,
    /// Ready extents were added, or the pool was found full.
    pub(crate) supplied: Notify,
    /// Stock is low, something waits to be sealed.
    pub(crate) supply_wanted: Notify,
    /// An extent died, or can be freed; or what earlier epochs left is settled.
    pub(crate) space: Notify,
    /// Moves are allowed, space was given out or given back, or what there is to collect has changed.
    pub(crate) collect: Notify,
    pub(crate) urgent: Cell<bool>,
    /// Relocation frames that are being made, or are on their way.
    pub(crate) moves: Cell<u32>,
    /// One is being written.
    pub(crate) checkpointing: Cell<bool>,
    /// The map has no room for more changes before a checkpoint has written some.
    pub(crate) crowded: Cell<bool>,
    /// Reads of hosts, from the look at the map on.
    pub(crate) readers: Readers,
    /// Column reads under way.
    pub(crate) reads: Reads,
    /// Map blocks that are being read.
    pub(crate) bringing: Bringing,
    /// Blocks that are being reconstructed for hosts, and those that wait for devices.
    pub(crate) reconstructions: Rc<Semaphore>,
    pub(crate) insisting: Rc<Semaphore>,
    /// Devices that did not answer a recovery, or work beside the I/O path.
    pub(crate) silent: RefCell<Vec<DeviceId>>,
    /// One writer of the control store's record at a time.
    pub(crate) record_turn: Rc<Semaphore>,
    /// Layers are made and dropped one at a time.
    pub(crate) layer_turn: Rc<Semaphore>,
    /// The pace of work beside the I/O path.
    pub(crate) quota: Quota,
    /// A column was found damaged, or may be.
    pub(crate) repair_wanted: Notify,
    /// All columns are to be read now.
    pub(crate) scrub_wanted: Notify,
}

impl<C: Columns, S: ShardStore + 'static> Shard<C, S> {
    pub(crate) fn new(
        id: ShardId,
        node: NodeId,
        config: ShardConfig,
        columns: Rc<C>,
        store: Rc<S>,
        kept: Kept,
    ) -> Rc<Self> {
        let ops = Ops::with_room(config.pending_commands_max);
        let frames = (0..config.frames_in_flight_max + 4).map(|_| Frame::new()).collect();
        let state = State {
            record: ShardRecord::default(),
            version: Version(0),
            cut: Seq(0),
            map: Map::new(config.limits()),
            extents: Extents::default(),
            queue: Queue::with_room(config.pending_commands_max),
            scratch: Scratch::with_room(config.detect_zeroes),
            frames,
            order: VecDeque::with_capacity(64),
            to_append: VecDeque::with_capacity(64),
            aside: VecDeque::with_capacity(64),
            next_seq: Seq(1),
            next_extent: ExtentId(1),
            creating: None,
            recovering: true,
            settled: false,
            roots: Roots::default(),
            freeable: Vec::new(),
            freeing: 0,
            given_back: 0,
            short_as_of: 0,
            room_wanted: false,
            meta_done: Vec::with_capacity(16),
            committed: Seq(0),
            stopped: None,
            short: false,
            full: false,
            classes: Classes::of_pool(0),
            stock: config.ready_extents.min(STOCK_MIN),
            store_away: false,
            collect: Collect::default(),
            converting: Converting::new(),
            reserve_wanted: None,
            reserve_spent: false,
            log_bytes_since_checkpoint: 0,
            checkpoint_asked: 0,
            checkpoint_done: (0, Ok(())),
            retire_below: ExtentId(0),
            frame_latency_ns: 0,
            expected_blocks: 0,
            codes: HashMap::new(),
            placer: Placer::default(),
            abandoned_at: HashMap::new(),
            locks: Locks::default(),
            stats: Stats::default(),
            repair: Repair { since: peristyle_rt::now(), ..Repair::default() },
        };
        let quota = Quota::new(config.background.clone());
        let scheme = columns.pool_scheme().unwrap_or(config.scheme);
        Rc::new(Shard {
            id,
            node,
            config,
            columns,
            store,
            state: RefCell::new(state),
            ops,
            scheme: Cell::new(scheme),
            leaving_scheme: Cell::new(false),
            kept: RefCell::new(Rc::new(kept)),
            work: Notify::default(),
            sent: Notify::default(),
            progress: Notify::default(),
            supplied: Notify::default(),
            supply_wanted: Notify::default(),
            space: Notify::default(),
            collect: Notify::default(),
            urgent: Cell::new(false),
            moves: Cell::new(0),
            checkpointing: Cell::new(false),
            crowded: Cell::new(false),
            readers: Readers::default(),
            reads: Reads::default(),
            bringing: Bringing::default(),
            reconstructions: Semaphore::new(RECONSTRUCTIONS_MAX),
            insisting: Semaphore::new(INSISTING_MAX),
            silent: RefCell::default(),
            record_turn: Semaphore::new(1),
            layer_turn: Semaphore::new(1),
            quota,
            repair_wanted: Notify::default(),
            scrub_wanted: Notify::default(),
        })
    }

    /// Starts the tasks that append, supply and watch. Called once, by recovery.
    pub(crate) fn start_tasks(self: &Rc<Self>) {
        peristyle_rt::spawn(self.clone().run_appender());
        peristyle_rt::spawn_background(self.clone().run_aside());
        peristyle_rt::spawn(self.clone().run_watchdog());
        // Work beside the I/O path: it may allocate.
        peristyle_rt::spawn_background(self.clone().run_supply());
        peristyle_rt::spawn_background(self.clone().run_stepping_aside());
        peristyle_rt::spawn_background(self.clone().run_following_scheme());
        peristyle_rt::spawn_background(self.clone().run_checkpoints());
        peristyle_rt::spawn_background(self.clone().run_space());
        peristyle_rt::spawn_background(self.clone().run_remains());
        peristyle_rt::spawn_background(self.clone().run_repair());
        peristyle_rt::spawn_background(self.clone().run_scrub());
        peristyle_rt::spawn_background(self.clone().run_merges());
        peristyle_rt::spawn_background(self.clone().run_collection());
    }

    pub fn id(&self) -> ShardId {
        self.id
    }
    pub fn epoch(&self) -> Epoch {
        self.state.borrow().record.epoch
    }
    pub fn committed(&self) -> Seq {
        self.state.borrow().committed
    }
    pub fn stopped(&self) -> Option<StopReason> {
        self.state.borrow().stopped
    }

    /// The lease holds; else the shard stops.
    pub(crate) fn may_read(&self, now: Instant) -> bool {
        let holds = self.config.lease.holds(now);
        if !holds {
            self.stop(StopReason::LeaseLost);
        }
        holds
    }

    /// Stops serving: commands that wait fail with [`ShardError::Stopped`]. What was acknowledged is durable.
    pub fn stop(&self, reason: StopReason) {
        let mut failed: Vec<OpId> = Vec::new();
        let now = peristyle_rt::now();
        {
            let state = &mut *self.state.borrow_mut();
            if state.stopped.is_some() {
                return;
            }
            state.stopped = Some(reason);
            for pending in state.queue.drain() {
                state.stats.batch_wait.leave_failed(pending.since, now);
                failed.push(pending.op);
            }
            for frame in state.frames.iter_mut().filter(|f| f.busy) {
                failed.extend(frame.contents.ops.drain(..).map(|(op, _)| op));
                frame.fall_back_to(Place::Nowhere, &mut state.stats, now);
                frame.attempt += 1;
            }
        }
        failed.into_iter().for_each(|op| self.ops.complete(op, Err(ShardError::Stopped), now));
        self.work.notify_all();
        self.sent.notify_all();
        self.progress.notify_all();
        self.supplied.notify_all();
        self.supply_wanted.notify_all();
        self.space.notify_all();
        self.repair_wanted.notify_all();
        self.scrub_wanted.notify_all();
        self.collect.notify_all();
    }

    /// Accepts an effect and waits for its commit.
    pub(crate) async fn commit(&self, effect: Effect) -> Result<(), ShardError> {
        let op = self.accept(effect).await?;
        self.ops.wait(op).await
    }

    /// Accepts an effect: from here on it has its place in the order. Waits while too much is pending.
    pub(crate) async fn accept(&self, mut effect: Effect) -> Result<OpId, ShardError> {
        loop {
            match self.try_accept(effect)? {
                Ok(op) => return Ok(op),
                Err(back) => effect = back,
            }
            self.progress.notified().await;
        }
    }

    /// Accepts an effect, or hands it back because too much is pending.
    pub(crate) fn try_accept(&self, effect: Effect) -> Result<Result<OpId, Effect>, ShardError> {
        let state = &mut *self.state.borrow_mut();
        if !self.has_room(state, &effect)? {
            return Ok(Err(effect));
        }
        let op = self.ops.start();
        self.enqueue(state, Pending { effect, op, since: peristyle_rt::now(), class: None });
        Ok(Ok(op))
    }

    /// Whether an effect need not wait before it is accepted. Fails when it cannot be accepted at all.
    pub(crate) fn has_room(&self, state: &State, effect: &Effect) -> Result<bool, ShardError> {
        if state.stopped.is_some() {
            return Err(ShardError::Stopped);
        }
        if matches!(effect, Effect::Write { .. }) && is_refusing(state) {
            return Err(ShardError::NoSpace);
        }
        let full = state.queue.blocks() >= self.config.pending_blocks_max
            || state.queue.len() >= self.config.pending_commands_max;
        // What is accepted needs room in the map; a checkpoint makes some.
        let in_flight = self.config.frames_in_flight_max * FRAME_BLOCKS_MAX;
        let crowded = state.map.is_crowded(state.queue.blocks() + in_flight);
        if crowded && !self.crowded.replace(true) {
            self.progress.notify_all();
        }
        Ok(!full && !crowded)
    }

    pub(crate) fn enqueue(&self, state: &mut State, pending: Pending) {
        state.stats.batch_wait.enter(pending.since);
        state.queue.push(pending);
        self.work.notify_all();
    }

    pub(crate) fn code(state: &mut State, scheme: Scheme) -> Rc<Code> {
        state.codes.entry(scheme).or_insert_with(|| Rc::new(Code::new(scheme))).clone()
    }
}
