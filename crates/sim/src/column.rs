//! One device under its column server: every crash state of every operation, and of the recovery from it.
//!
//! Promises: what was confirmed is there, what was not is there wholly or not at all, nothing else is there, no
//! slot is lost, and holes of sealed columns are zeros whatever the slot held before.

use crate::Outcome;
use crate::operation::{Operation, UnderWay};
use peristyle_base::{
    BLOCK_BYTES, COLUMN_ROWS, ColumnIndex, ColumnName, Epoch, ExtentId, Nonce, RowIndex, Scheme, ShardId,
    SlotIndex, Uuid, crc32c,
};
use peristyle_column::{
    AllocClass, Allocate, ColumnError, FormatOptions, Geometry, OpenError, RowRange, Seal, Server,
    ServerConfig, SlotState, WriteClass, format,
};
use peristyle_rt::sim::{
    Crash, CrashState, DiskConfig, DiskHandle, Image, Rng, Stop, Sweep, Swept, WorldConfig, run_with,
};
use peristyle_rt::{Buf, BufConfig, Device, Duration, IoVec};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

const CLUSTER: Uuid = Uuid([0xC1; 16]);
const DEVICE: Uuid = Uuid([0xDE; 16]);
/// As many as columns live at the same time when none is given back.
const SLOTS: u32 = 6;
/// Columns that are written at the same time.
const WORKERS: u64 = 2;
/// Columns that each worker takes through their life.
/// Slots that nobody wants are cleared by then.
const AT_LEISURE: Duration = Duration::from_secs(1);
const LIVES: u64 = 3;

/// Appends to one column, and rows of each; behind each there may be a hole of one row.
const APPENDS_MAX: u64 = 3;
const APPEND_ROWS_MAX: u16 = 3;
/// No column is longer.
const ROWS_MAX: u16 = APPENDS_MAX as u16 * (APPEND_ROWS_MAX + 1);

fn server_config() -> ServerConfig {
    ServerConfig { open_columns: 8, appends: 8, reads: 8, controls: 4, ..ServerConfig::default() }
}

fn world_config(seed: u64) -> WorldConfig {
    let buffers = BufConfig { counts: [256, 8, 8, 2, 2, 2], huge_pages: false };
    WorldConfig { buffers, ..WorldConfig::new(seed) }
}

/// One column's state, as far as it outlives a crash.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Shape {
    Absent,
    Open { epoch: Epoch },
    Sealed { epoch: Epoch, rows: u16 },
}

/// What must be known of one column after a crash.
#[derive(Clone, Debug)]
struct Expected {
    name: ColumnName,
    shape: Shape,
    /// What an unconfirmed operation may have made of it.
    pending: Option<Shape>,
    /// Rows whose append was confirmed.
    rows: BTreeMap<u16, u64>,
    holes: Vec<RowRange>,
}

/// All columns, and what is being done to them.
#[derive(Clone, Default)]
struct Model {
    columns: Rc<RefCell<Vec<Expected>>>,
    /// Grows with everything that is promised.
    promised: Rc<Cell<u64>>,
    under_way: UnderWay,
}

impl Model {
    /// Changes when other states are allowed than before.
    fn promise(&self) -> u64 {
        self.promised.get() << 16 | u64::from(self.under_way.bits())
    }
    fn change(&self, index: usize, change: impl FnOnce(&mut Expected)) {
        change(&mut self.columns.borrow_mut()[index]);
        self.promised.set(self.promised.get() + 1);
    }
}

fn name_of(extent: u64) -> ColumnName {
    let mut nonce = [7; 16];
    nonce[..8].copy_from_slice(&extent.to_le_bytes());
    ColumnName { shard: ShardId(1), extent: ExtentId(extent), column: ColumnIndex(0), nonce: Nonce(nonce) }
}

fn fill_row(tag: u64, row: &mut [u8]) {
    let mut rng = Rng::new(tag);
    row.as_chunks_mut::<8>().0.iter_mut().for_each(|word| *word = rng.next_u64().to_le_bytes());
}

fn scheme() -> Scheme {
    Scheme::new(2, 1).expect("a scheme")
}

/// Runs one seed: formats a device, then sweeps the lives of some columns on it.
pub fn run(seed: u64) -> Outcome {
    let mut sweeper = Sweeper { seed, outcome: Outcome::default(), checked: 0, nested: 0 };
    let formatted = sweeper.sweep_format();
    sweeper.sweep_lives(formatted);
    sweeper.outcome
}

struct Sweeper {
    seed: u64,
    outcome: Outcome,
    checked: u64,
    nested: u64,
}

impl Sweeper {
    fn sweep(&self, disks: CrashState, salt: u64, states_per_crash: usize) -> Sweep {
        let world = world_config(self.seed ^ salt);
        let mut sweep = Sweep { world, states_per_crash, how: Stop::Power, ..Sweep::new(0, disks) };
        sweep.disks.iter_mut().for_each(|(_, config)| *config = self.disk_config());
        sweep
    }

    /// The disk of every fourth seed does not zero ranges by itself: freed slots are discarded.
    fn disk_config(&self) -> DiskConfig {
        DiskConfig { cheap_zeroes: !self.seed.is_multiple_of(4), ..DiskConfig::default() }
    }

    fn count(&mut self, swept: Swept) {
        self.outcome = self.outcome.and(swept.into());
    }

    /// A device that holds other data is formatted by force. After a crash it opens empty, or not at all and can
    /// be formatted again.
    fn sweep_format(&mut self) -> Image {
        let mut rng = Rng::new(self.seed);
        let mut before = Image::new(Geometry::bytes_for(SLOTS));
        let mut noise = [0; 8192];
        for page in 0..before.pages() {
            if rng.below(4) == 0 {
                noise.iter_mut().for_each(|byte| *byte = rng.next_u64() as u8);
                before.write(page * 4096, &noise[..4096]);
            }
        }
        let options = FormatOptions { cluster: CLUSTER, device: DEVICE, force: true };
        let sweep = self.sweep(vec![before], 1, 64);
        let mut states = Vec::new();
        let (swept, mut last) = sweep.run(
            |_, disks| async move {
                let device = Device::open(&disks[0].spec()).await.expect("there");
                format(&device, options).await.expect("sound and large enough");
            },
            || 0,
            |crash| states.push((crash.finished, crash.disks.clone())),
        );
        self.count(swept);
        states.iter().for_each(|_| self.outcome.tally.add(1 << Operation::Format as u32));
        for (finished, state) in states {
            let opened = self.in_world(2, state, move |disks| async move {
                let device = Device::open(&disks[0].spec()).await.expect("there");
                let first = Server::open(device.clone(), CLUSTER, server_config()).await;
                match first {
                    Ok(server) => Some(server),
                    Err(OpenError::NoLabel(_)) => {
                        format(&device, options).await.expect("can be formatted again");
                        assert!(!finished, "a device that was formatted opens");
                        Server::open(device, CLUSTER, server_config()).await.ok()
                    }
                    Err(error) => panic!("seed-drawn state after a crashed format: {error}"),
                }
                .map(|server| (server.list_all().len(), server.usage().free, server.damaged_slots().len()))
            });
            assert_eq!(opened, Some((0, SLOTS, 0)));
        }
        last.pop().expect("one disk")
    }

    fn in_world<T, F, Fut>(&mut self, salt: u64, state: CrashState, f: F) -> T
    where
        F: FnOnce(Vec<DiskHandle>) -> Fut + 'static,
        Fut: Future<Output = T> + 'static,
        T: 'static,
    {
        let seen = Rc::new(RefCell::new(Outcome::default()));
        let report = seen.clone();
        let config = self.disk_config();
        let value = run_with(world_config(self.seed ^ salt ^ self.checked << 8), move |env| {
            let add = |(i, image)| env.node.add_disk_image(&format!("d{i}"), image, config.clone());
            let disks: Vec<DiskHandle> = state.into_iter().enumerate().map(add).collect();
            let future = f(disks);
            async move {
                let value = future.await;
                *report.borrow_mut() = Outcome {
                    trace: env.world.trace_hash(),
                    simulated_nanos: env.world.now_nanos(),
                    events: env.world.events(),
                    ..Outcome::default()
                };
                value
            }
        });
        self.checked += 1;
        self.outcome = self.outcome.and(*seen.borrow());
        value
    }

    /// Columns live and die while every crash is looked at.
    fn sweep_lives(&mut self, formatted: Image) {
        let model = Model::default();
        let sweep = self.sweep(vec![formatted], 3, 48);
        let seed = self.seed;
        let working = model.clone();
        let mut states: Vec<(CrashState, Vec<Expected>)> = Vec::new();
        let (swept, _) = sweep.run(
            |_, disks| live(seed, disks, working),
            || model.promise(),
            |crash: Crash<'_>| {
                self.outcome.tally.add(model.under_way.bits());
                states.push((crash.disks.clone(), model.columns.borrow().clone()));
            },
        );
        self.count(swept);
        for (state, expected) in states {
            self.check(state, expected);
        }
    }

    /// Opens the device as a crash has left it, and compares. Now and then crashes while opening, too.
    fn check(&mut self, state: CrashState, expected: Vec<Expected>) {
        let follow_up = self.checked.is_multiple_of(16);
        if self.checked.is_multiple_of(24) && self.nested < 40 {
            self.nested += 1;
            let sweep = self.sweep(state.clone(), 5 ^ self.checked << 8, 16);
            let mut again = Vec::new();
            let (swept, _) = sweep.run(
                |_, disks| async move {
                    let device = Device::open(&disks[0].spec()).await.expect("there");
                    Server::open(device, CLUSTER, server_config()).await.expect("opens");
                },
                || 0,
                |crash| again.push(crash.disks.clone()),
            );
            self.count(swept);
            for state in again {
                let expected = expected.clone();
                let verified = self.in_world(6, state, move |disks| verify(disks, expected, false));
                self.outcome.verified += verified;
            }
        }
        let verified = self.in_world(4, state, move |disks| verify(disks, expected, follow_up));
        self.outcome.verified += verified;
    }
}

/// Takes columns through their lives, several at once; the model follows.
async fn live(seed: u64, disks: Vec<DiskHandle>, model: Model) {
    let device = Device::open(&disks[0].spec()).await.expect("there");
    let server = Server::open(device, CLUSTER, server_config()).await.expect("was formatted");
    let workers = (0..WORKERS).map(|worker| {
        let (server, model) = (server.clone(), model.clone());
        async move {
            let mut rng = Rng::new(seed ^ worker << 32 ^ 0x11FE);
            for life in 0..LIVES {
                one_life(&server, &model, &mut rng, 1 + worker + WORKERS * life).await;
            }
        }
    });
    peristyle_rt::join_all(workers).await;
}

/// One column and the model of it.
struct Column<'a> {
    server: &'a Server,
    model: &'a Model,
    index: usize,
    name: ColumnName,
    slot: SlotIndex,
    epoch: Epoch,
}

impl Column<'_> {
    /// Does something to the column that makes it `pending`: that is promised once it is confirmed.
    async fn step<T>(&self, operation: Operation, pending: Shape, work: impl Future<Output = T>) -> T {
        self.model.change(self.index, |column| column.pending = Some(pending));
        let step = self.model.under_way.begin(operation);
        let value = work.await;
        drop(step);
        self.model.change(self.index, |column| {
            column.shape = column.pending.take().expect("an operation was under way");
        });
        value
    }

    async fn append(&self, rng: &mut Rng, row: u16, count: u16) {
        let mut buf = Buf::alloc(usize::from(count) * BLOCK_BYTES).await;
        let tags: Vec<u64> = (0..count).map(|_| rng.next_u64()).collect();
        for (bytes, tag) in buf.chunks_exact_mut(BLOCK_BYTES).zip(&tags) {
            fill_row(*tag, bytes);
        }
        let crcs: Vec<u32> = buf.chunks_exact(BLOCK_BYTES).map(crc32c).collect();
        let iov = IoVec::from(buf.freeze());
        let class = WriteClass::User;
        let step = self.model.under_way.begin(Operation::Append);
        self.server
            .append(self.slot, &self.name, self.epoch, RowIndex(row), iov, &crcs, class)
            .await
            .expect("a sound device");
        drop(step);
        self.model.change(self.index, |column| column.rows.extend((row..).zip(tags)));
    }
}

async fn one_life(server: &Server, model: &Model, rng: &mut Rng, extent: u64) {
    let (name, epoch) = (name_of(extent), Epoch(rng.between(1, 3)));
    let index = model.columns.borrow().len();
    let newborn =
        Expected { name, shape: Shape::Absent, pending: None, rows: BTreeMap::new(), holes: Vec::new() };
    model.columns.borrow_mut().push(newborn);
    let wanted = Allocate { name, scheme: scheme(), epoch, class: AllocClass::User, filling: false };
    let mut column = Column { server, model, index, name, slot: SlotIndex(0), epoch };
    let allocated = column.step(Operation::Allocate, Shape::Open { epoch }, server.allocate(wanted)).await;
    let slot = allocated.expect("there is room");
    column.slot = slot;
    let mut row = 0;
    let mut holes = Vec::new();
    for _ in 0..rng.between(1, APPENDS_MAX) {
        let count = rng.between(1, u64::from(APPEND_ROWS_MAX)) as u16;
        column.append(rng, row, count).await;
        row += count;
        if rng.coin() {
            holes.push(RowRange::new(row, 1));
            row += 1;
        }
    }
    if rng.coin() {
        column.epoch = Epoch(epoch.0 + rng.between(1, 2));
        let fenced = Shape::Open { epoch: column.epoch };
        let fence = server.fence(slot, &name, column.epoch);
        column.step(Operation::Fence, fenced, fence).await.expect("a higher epoch");
    }
    if rng.below(4) > 0 {
        model.change(index, |column| column.holes = holes.clone());
        let sealed = Shape::Sealed { epoch: column.epoch, rows: row };
        let seal = Seal { rows: RowIndex(row), holes: &holes, crcs: None };
        let seal = server.seal(slot, &name, column.epoch, seal);
        column.step(Operation::Seal, sealed, seal).await.expect("all appends were seen");
    }
    if rng.below(3) > 0 {
        let free = server.free(slot, &name, column.epoch);
        column.step(Operation::Free, Shape::Absent, free).await.expect("it is ours");
        // Either somebody wants the slot now, or it is cleared.
        if rng.coin() {
            peristyle_rt::sleep(AT_LEISURE).await;
        }
    }
}

/// Opens the device and compares what is there with what must be. Returns how many rows were compared.
async fn verify(disks: Vec<DiskHandle>, expected: Vec<Expected>, follow_up: bool) -> u64 {
    let device = Device::open(&disks[0].spec()).await.expect("there");
    let server = Server::open(device, CLUSTER, server_config()).await.expect("opens after any crash");
    assert_eq!(server.damaged_slots(), []);
    let there = server.list_all();
    let mut rows = 0;
    let mut found = 0;
    for column in &expected {
        let info = there.iter().find(|info| info.name == column.name);
        let shape = match info {
            None => Shape::Absent,
            Some(info) if info.state == SlotState::Sealed => {
                Shape::Sealed { epoch: info.epoch, rows: info.rows.0 }
            }
            Some(info) => Shape::Open { epoch: info.epoch },
        };
        assert!(
            shape == column.shape || Some(&shape) == column.pending.as_ref(),
            "column {:?} is {shape:?}: confirmed {:?}, under way {:?}",
            column.name.extent,
            column.shape,
            column.pending
        );
        if let Some(info) = info {
            found += 1;
            rows += verify_rows(&server, info.slot, column, &shape).await;
            if follow_up && info.state == SlotState::Open {
                rows += seal_after_crash(&server, info.slot, column, info.epoch.next()).await;
            }
        }
    }
    assert_eq!(there.len(), found, "a column that nobody asked for");
    assert_eq!(server.usage().free + found as u32, SLOTS, "a slot is lost");
    if follow_up {
        fill_up(&server, found as u32).await;
    }
    rows
}

async fn verify_rows(server: &Server, slot: SlotIndex, column: &Expected, shape: &Shape) -> u64 {
    let mut wanted = vec![0; BLOCK_BYTES];
    for (&row, &tag) in &column.rows {
        let buf = Buf::alloc(BLOCK_BYTES).await;
        let (answer, buf) = match shape {
            Shape::Sealed { .. } => server.read_verified(slot, &column.name, RowIndex(row), buf).await,
            _ => server.read(slot, &column.name, RowIndex(row), buf).await,
        };
        answer.expect("a sound device");
        fill_row(tag, &mut wanted);
        assert!(buf[..] == wanted[..], "row {row} of {:?} is not what was appended", column.name.extent);
    }
    if matches!(shape, Shape::Sealed { .. }) {
        for hole in &column.holes {
            let buf = Buf::alloc(BLOCK_BYTES).await;
            let (answer, buf) = server.read_verified(slot, &column.name, hole.first, buf).await;
            answer.expect("a hole has the checksum of zeros");
            assert!(buf.iter().all(|byte| *byte == 0));
        }
    }
    column.rows.len() as u64
}

/// Seals an open column as the owner after a crash may: nothing stays but confirmed rows, and all others are holes,
/// whatever unconfirmed appends have left in them.
async fn seal_after_crash(server: &Server, slot: SlotIndex, column: &Expected, epoch: Epoch) -> u64 {
    let mut column = column.clone();
    let (mut crcs, mut bytes) = (Vec::new(), vec![0; BLOCK_BYTES]);
    column.holes.clear();
    for row in 0..ROWS_MAX {
        match column.rows.get(&row) {
            Some(&tag) => fill_row(tag, &mut bytes),
            None => column.holes.push(RowRange::new(row, 1)),
        }
        crcs.push(crc32c(&bytes));
    }
    server.fence(slot, &column.name, epoch).await.expect("a higher epoch");
    let seal = Seal { rows: RowIndex(ROWS_MAX), holes: &column.holes, crcs: Some(&crcs) };
    server.seal(slot, &column.name, epoch, seal).await.expect("only this owner is left");
    verify_rows(server, slot, &column, &Shape::Sealed { epoch, rows: ROWS_MAX }).await
}

/// Gives every free slot to a new column that has a hole before its only row: the hole must read as zeros.
async fn fill_up(server: &Server, used: u32) {
    for extra in 0..SLOTS - used {
        let (name, epoch) = (name_of(1000 + u64::from(extra)), Epoch(9));
        let wanted = Allocate { name, scheme: scheme(), epoch, class: AllocClass::User, filling: false };
        let slot = server.allocate(wanted).await.expect("a free slot can be given");
        let mut buf = Buf::alloc(BLOCK_BYTES).await;
        fill_row(77, &mut buf);
        let crc = crc32c(&buf);
        let last = RowIndex(COLUMN_ROWS - 1);
        let iov = IoVec::from(buf.freeze());
        server.append(slot, &name, epoch, last, iov, &[crc], WriteClass::User).await.expect("a sound device");
        let holes = [RowRange::new(0, COLUMN_ROWS - 1)];
        let seal = Seal { rows: RowIndex(COLUMN_ROWS), holes: &holes, crcs: None };
        server.seal(slot, &name, epoch, seal).await.expect("a sound device");
        for row in [0, 1, 2, 5, 100, COLUMN_ROWS - 2] {
            let buf = Buf::alloc(BLOCK_BYTES).await;
            let (answer, buf) = server.read_verified(slot, &name, RowIndex(row), buf).await;
            answer.expect("a hole has the checksum of zeros");
            assert!(buf.iter().all(|byte| *byte == 0), "the slot's former row {row} shows through a hole");
        }
    }
    let one_more = Allocate {
        name: name_of(2000),
        scheme: scheme(),
        epoch: Epoch(9),
        class: AllocClass::User,
        filling: false,
    };
    assert_eq!(server.allocate(one_more).await, Err(ColumnError::Full));
}
