//! One node with simulated devices: hosts in its own process write, read and compare, while it is killed, loses
//! power, and up to m of its devices fail, stall, crawl, vanish or lie.
//!
//! Safety first: a read never shows what the model does not allow, and nothing acknowledged is lost. Then liveness:
//! with all passing faults over, the node serves again and all of the volume is read and compared.

use crate::Outcome;
use crate::model::{Habits, Model, SECTOR, fill};
use peristyle_base::{LayerId, NodeId, Scheme, ShardId, Uuid};
use peristyle_cluster::{DomainId, Fault, MemoryShardStore, ShardRecord, ShardStore, Version};
use peristyle_column::{FormatOptions, Geometry, format};
use peristyle_node::{DeviceConfig, Node, NodeConfig, ShardPhase, Volume, VolumeSpec, Wish, seeds};
use peristyle_rt::sim::{
    CrashState, DiskConfig, DiskFaults, DiskHandle, NodeHandle, Rng, Stop, World, WorldConfig,
};
use peristyle_rt::{Buf, BufConfig, Device, Duration, IoVec, ReactorId};
use peristyle_shard::{ShardConfig, ShardError};
use std::cell::{Cell, RefCell};
use std::net::Ipv4Addr;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

const CLUSTER: Uuid = Uuid([0xC1; 16]);
/// Longer than any recovery may take once nothing is wrong any more.
pub const READY_LIMIT: Duration = Duration::from_secs(60);

/// What is drawn from a seed.
#[derive(Clone, Debug)]
pub struct Plan {
    pub scheme: Scheme,
    pub devices: usize,
    pub reactors: usize,
    /// Each on another reactor, as far as there are any, with the same devices and a volume of its own.
    pub shards: usize,
    pub slots: u32,
    pub volume_bytes: u64,
    pub hosts: usize,
    pub rounds: usize,
    pub operations_per_round: u64,
    /// A host's pause after an operation, at most.
    pub rest_us: u64,
    /// Calls of the control store that go wrong in one round, at most.
    pub store_faults: u64,
    pub volatile_cache: bool,
    pub checkpoint_log_bytes: u64,
    /// Devices that may be faulty: at most m.
    pub faulty: Vec<usize>,
    /// They lie (lost, misdirected and flipped writes, latent errors); else they only fail for a while.
    pub lying: bool,
    /// See [`DiskConfig::at_once_ppm`].
    pub at_once_ppm: u32,
    /// Disks do not zero ranges by themselves: freed slots are discarded.
    pub discards: bool,
    pub habits: Habits,
}

/// How often disks answer at once: never, now and then, always.
pub(crate) const AT_ONCE_PPM: [u32; 4] = [0, 0, 300_000, 1_000_000];

impl Plan {
    pub fn draw(rng: &mut Rng) -> Plan {
        let (k, m) = *rng.pick(&[(4, 2), (4, 2), (4, 2), (2, 2), (2, 1), (1, 1), (3, 1), (1, 2)]);
        let scheme = Scheme::new(k, m).expect("a scheme");
        let devices = scheme.width() + rng.below(3) as usize;
        let volume_bytes = *rng.pick(&[1u64 << 20, 4 << 20, 8 << 20]);
        let mut faulty: Vec<usize> =
            (0..rng.below(u64::from(m) + 1)).map(|_| rng.below(devices as u64) as usize).collect();
        faulty.sort_unstable();
        faulty.dedup();
        let shards = *rng.pick(&[1, 1, 2, 3]);
        Plan {
            scheme,
            devices,
            reactors: *rng.pick(&[1, 1, 2, 3]),
            shards,
            slots: 40 + 40 * shards as u32,
            volume_bytes,
            hosts: *rng.pick(&[1, 4, 16]),
            rounds: rng.between(3, 6) as usize,
            operations_per_round: *rng.pick(&[50, 150, 300]),
            rest_us: *rng.pick(&[0, 1_000, 50_000, 200_000]),
            store_faults: *rng.pick(&[0, 0, 2, 5]),
            volatile_cache: rng.coin(),
            checkpoint_log_bytes: *rng.pick(&[1 << 18, 1 << 20, 1 << 30]),
            faulty,
            lying: rng.coin(),
            habits: Habits::draw(rng, volume_bytes / SECTOR),
            at_once_ppm: *rng.pick(&AT_ONCE_PPM),
            discards: rng.below(4) == 0,
        }
    }

    pub(crate) fn disk_config(&self) -> DiskConfig {
        let Plan { volatile_cache, at_once_ppm, discards, .. } = *self;
        DiskConfig { volatile_cache, at_once_ppm, cheap_zeroes: !discards, ..DiskConfig::default() }
    }
}

pub(crate) fn device_id(index: usize) -> Uuid {
    Uuid([0xD0 + index as u8; 16])
}

/// The shard that has the volume of this number, counted from 0.
pub(crate) fn shard_of(volume: usize, shards: usize) -> ShardId {
    ShardId(1 + (volume % shards) as u32)
}

fn volume_spec(plan: &Plan, volume: usize) -> VolumeSpec {
    VolumeSpec {
        name: format!("v{volume}"),
        nsid: 1 + volume as u32,
        uuid: Uuid([1 + volume as u8; 16]),
        nguid: [1 + volume as u8; 16],
        bytes: plan.volume_bytes,
        lba_bytes: 512,
        shard: shard_of(volume, plan.shards),
        layer: LayerId(1 + volume as u32),
        read_only: false,
    }
}

/// A machine with its disks, the control store beside it, and what its hosts know.
pub struct Machine {
    pub plan: Plan,
    pub node: NodeHandle,
    pub disks: Vec<DiskHandle>,
    pub store: MemoryShardStore,
    /// One for each volume.
    pub models: Vec<Model>,
    seed: u64,
    rounds: Cell<u64>,
}

/// How a boot is doing.
#[derive(Clone, Default)]
pub struct Boot(Rc<BootState>);

#[derive(Default)]
struct BootState {
    ready: Cell<bool>,
    done: Cell<bool>,
    refused: RefCell<Option<ShardError>>,
    /// What the node says of its shard.
    phase: RefCell<Option<ShardPhase>>,
}

impl Boot {
    pub fn is_ready(&self) -> bool {
        self.0.ready.get()
    }
    pub fn is_done(&self) -> bool {
        self.0.done.get()
    }
    pub fn phase(&self) -> Option<ShardPhase> {
        *self.0.phase.borrow()
    }
    /// The first error that a host was told of.
    pub fn refused(&self) -> Option<ShardError> {
        *self.0.refused.borrow()
    }
}

/// A control store that holds this.
pub(crate) fn store_of<'a>(records: impl IntoIterator<Item = &'a ShardRecord>) -> MemoryShardStore {
    let store = MemoryShardStore::default();
    for record in records {
        let mut put = std::pin::pin!(store.put(record.shard, Version::ABSENT, record));
        let answer = put.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        assert!(matches!(answer, Poll::Ready(Ok(_))), "a store in memory answers at once");
    }
    store
}

pub fn world(seed: u64) -> World {
    let buffers = BufConfig { counts: [2048, 128, 64, 16, 32, 8], huge_pages: false };
    World::new(WorldConfig { buffers, ..WorldConfig::new(seed) })
}

impl Machine {
    /// Formats the disks.
    pub fn new(world: &World, plan: Plan, seed: u64) -> Machine {
        let node = world.add_node(Ipv4Addr::new(10, 0, 0, 1));
        let config = plan.disk_config();
        let bytes = Geometry::bytes_for(plan.slots);
        let add = |i: usize| node.add_disk(&format!("d{i}"), bytes, config.clone());
        let disks: Vec<DiskHandle> = (0..plan.devices).map(add).collect();
        let specs = disks.iter().map(DiskHandle::spec).collect::<Vec<_>>();
        node.start(vec![specs], |specs| async move {
            for (i, spec) in specs.iter().enumerate() {
                let device = Device::open(spec).await.expect("there");
                let options = FormatOptions { cluster: CLUSTER, device: device_id(i), force: false };
                format(&device, options).await.expect("blank");
            }
        });
        assert!(world.run_until(|| !node.is_running(), Duration::from_secs(10)));
        let models = (0..plan.shards).map(|_| Model::new(plan.volume_bytes)).collect();
        let store = MemoryShardStore::default();
        Machine { plan, node, disks, store, models, seed, rounds: Cell::new(0) }
    }

    /// Another machine with these disks, a copy of the control store, and hosts that know what those of this one
    /// knew, and nothing of the end of what was under way.
    pub fn revive(&self, world: &World, disks: CrashState, seed: u64) -> Machine {
        let node = world.add_node(Ipv4Addr::new(10, 0, 0, 1));
        let config = self.plan.disk_config();
        let add = |(i, image)| node.add_disk_image(&format!("d{i}"), image, config.clone());
        let disks: Vec<DiskHandle> = disks.into_iter().enumerate().map(add).collect();
        let record = |shard| self.store.peek(shard_of(shard, self.plan.shards)).map(|(record, _)| record);
        let records: Vec<ShardRecord> = (0..self.plan.shards).filter_map(record).collect();
        let (store, models) = (store_of(&records), self.models.iter().map(Model::crashed_copy).collect());
        Machine { plan: self.plan.clone(), node, disks, store, models, seed, rounds: Cell::new(0) }
    }

    pub(crate) fn config(&self) -> NodeConfig {
        let devices = (self.disks.iter().enumerate())
            .map(|(i, disk)| DeviceConfig {
                id: device_id(i),
                spec: disk.spec(),
                domain: DomainId(i as u32),
                home: ReactorId((i % self.plan.reactors) as u16),
                wish: Wish::Active,
                discard: peristyle_column::Discard::Auto,
            })
            .collect();
        let shard = ShardConfig {
            ready_extents: 2,
            checkpoint_log_bytes: self.plan.checkpoint_log_bytes,
            map_cache_bytes: 16 << 20,
            ..ShardConfig::new(self.plan.scheme)
        };
        let home = |shard| ReactorId((shard % self.plan.reactors) as u16);
        let shards = (0..self.plan.shards).map(|i| (shard_of(i, self.plan.shards), home(i))).collect();
        NodeConfig {
            node: NodeId(1),
            cluster: CLUSTER,
            devices,
            peers: Default::default(),
            peer_devices: Vec::new(),
            shards,
            peer_shards: Vec::new(),
            shard,
            // Devices that are pulled for longer are rebuilt, and come back with what they had.
            rebuild_after: Duration::from_millis(500),
            development: false,
        }
    }

    /// Boots the node with hosts in its process. When it serves, what was left open is decided, with `all` the
    /// whole volume is compared, and then the hosts do `operations` together.
    pub fn boot(&self, operations: u64, all: bool) -> Boot {
        let boot = Boot::default();
        self.rounds.set(self.rounds.get() + 1);
        let salt = self.seed ^ self.rounds.get() << 32;
        let left = Rc::new(Cell::new(operations));
        let hosts_done = Rc::new(Cell::new(0));
        let seeds = seeds(&self.config(), self.plan.reactors, &self.store);
        let (status, models, plan) = (boot.clone(), self.models.clone(), self.plan.clone());
        self.node.start(seeds, move |seed| {
            let (status, models, plan) = (status.clone(), models.clone(), plan.clone());
            let (left, hosts_done) = (left.clone(), hosts_done.clone());
            async move {
                let node = Node::start(seed, false).await;
                while !node.is_ready() {
                    if let Some((_, phase)) = node.shard_phases().first() {
                        *status.0.phase.borrow_mut() = Some(*phase);
                    }
                    peristyle_rt::sleep(Duration::from_millis(1)).await;
                }
                let volume = |i| node.volume(&volume_spec(&plan, i)).expect("its shard has a home");
                let volumes: Vec<_> = (0..).map(volume).zip(models).collect();
                if node.id() == ReactorId(0) {
                    for (volume, model) in &volumes {
                        settle(volume, model, &plan, all).await;
                    }
                    status.0.ready.set(true);
                }
                while !status.is_ready() {
                    peristyle_rt::sleep(Duration::from_millis(1)).await;
                }
                for _ in (0..plan.hosts).filter(|h| h % node.reactors() == usize::from(node.id().0)) {
                    let host = Host {
                        volumes: volumes.clone(),
                        habits: plan.habits,
                        rest_us: plan.rest_us,
                        left: left.clone(),
                        boot: status.clone(),
                    };
                    let (status, hosts_done, hosts) = (status.clone(), hosts_done.clone(), plan.hosts);
                    peristyle_rt::spawn(async move {
                        host.work(Rng::new(salt ^ peristyle_rt::random_u64())).await;
                        hosts_done.set(hosts_done.get() + 1);
                        status.0.done.set(hosts_done.get() == hosts);
                    });
                }
                std::future::pending::<()>().await;
            }
        });
        boot
    }

    pub fn stop(&self, how: Stop) {
        self.node.stop(how);
        self.models.iter().for_each(Model::lose_hosts);
    }

    pub fn acknowledged(&self) -> u64 {
        self.models.iter().map(Model::acknowledged).sum()
    }
    pub fn verified(&self) -> u64 {
        self.models.iter().map(Model::verified).sum()
    }

    /// Operations that a fault touched.
    pub fn disk_faults(&self) -> u64 {
        self.disks.iter().map(|disk| disk.stats().faults).sum()
    }

    pub fn heal(&self) {
        for disk in &self.disks {
            disk.set_faults(DiskFaults::default());
        }
    }

    /// Makes the devices that may be faulty so, each in its own way.
    pub fn hurt(&self, rng: &mut Rng, now: u64) {
        for &index in &self.plan.faulty {
            let mut faults = DiskFaults::default();
            if self.plan.lying {
                let ppm = *rng.pick(&[1_000, 20_000, 200_000]);
                match rng.below(5) {
                    0 => faults.lost_write_ppm = ppm,
                    1 => faults.misdirected_write_ppm = ppm,
                    2 => faults.flipped_write_ppm = ppm,
                    3 => faults.flipped_read_ppm = ppm,
                    _ => self.disks[index]
                        .add_latent_error(rng.below(self.disks[index].bytes()) / 4096 * 4096, 1 << 20),
                }
            } else {
                match rng.below(7) {
                    0 => faults.fail_until = now + rng.below(2_000_000_000),
                    1 => faults.stall_until = now + rng.below(2_000_000_000),
                    2 => faults.slow = rng.between(2, 2000),
                    3 => faults.gone = true,
                    4 => faults.write_error_ppm = 50_000,
                    5 => faults.read_error_ppm = 50_000,
                    _ => {}
                }
            }
            self.disks[index].set_faults(faults);
        }
    }
}

/// One host's work.
struct Host {
    volumes: Vec<(Volume, Model)>,
    habits: Habits,
    rest_us: u64,
    /// Operations that all hosts have to do yet.
    left: Rc<Cell<u64>>,
    boot: Boot,
}

impl Host {
    async fn work(self, mut rng: Rng) {
        while self.left.get() > 0 {
            self.left.set(self.left.get() - 1);
            let (volume, model) = rng.pick(&self.volumes);
            let (first, count) = self.habits.range(&mut rng);
            let what = rng.below(100);
            if what < self.habits.reads {
                self.read(volume, model, first, count).await;
            } else {
                let zero = what < self.habits.reads + self.habits.zeroes;
                self.write(volume, model, first, count, zero).await;
            }
            if self.rest_us > 0 {
                peristyle_rt::sleep(Duration::from_micros(rng.below(self.rest_us))).await;
            }
        }
    }

    fn told(&self, error: ShardError) {
        assert!(
            matches!(error, ShardError::NoSpace | ShardError::Stopped),
            "with at most m devices bad no host may be told: {error}"
        );
        self.boot.0.refused.borrow_mut().get_or_insert(error);
    }

    async fn read(&self, volume: &Volume, model: &Model, first: u64, count: u64) {
        let id = model.begin_read(first, count);
        match volume.read(first * SECTOR, count * SECTOR).await {
            Ok(data) => {
                let same = model.end_read(id, &flat(&data));
                same.unwrap_or_else(|wrong| panic!("a read of {count} sectors at {first}: {wrong}"));
            }
            Err(error) => {
                model.drop_read(id);
                self.told(error);
            }
        }
    }

    async fn write(&self, volume: &Volume, model: &Model, first: u64, count: u64, zero: bool) {
        let Some((id, tag)) = model.begin_write(first, count, zero) else {
            return peristyle_rt::sleep(Duration::from_micros(50)).await;
        };
        let answer = if zero {
            volume.zero(first * SECTOR, count * SECTOR).await
        } else {
            let mut buf = Buf::alloc((count * SECTOR) as usize).await;
            fill(tag, first, &mut buf);
            volume.write(first * SECTOR, buf.freeze()).await
        };
        match answer {
            Ok(()) => model.acknowledge(id),
            Err(error) => {
                model.orphan(id);
                self.told(error);
            }
        }
    }
}

pub(crate) fn flat(data: &IoVec) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(data.bytes());
    data.pieces().iter().for_each(|piece| bytes.extend_from_slice(piece));
    bytes
}

/// Decides what was left open, and with `all` compares everything, unless the shard gives up meanwhile.
async fn settle(volume: &Volume, model: &Model, plan: &Plan, all: bool) {
    let ready = volume.ensure_layer(plan.volume_bytes.div_ceil(4096)).await;
    assert!(matches!(ready, Ok(()) | Err(ShardError::Stopped | ShardError::NoSpace)), "{ready:?}");
    for (id, first, count) in model.orphans() {
        let Some(data) = read_again(volume, first, count).await else { return };
        model.decide(id, &data).unwrap_or_else(|wrong| panic!("after a crash: {wrong}"));
    }
    if !all {
        return;
    }
    let sectors = model.sectors();
    for first in (0..sectors).step_by(256) {
        let count = 256.min(sectors - first);
        let id = model.begin_read(first, count);
        let Some(data) = read_again(volume, first, count).await else { return model.drop_read(id) };
        model.end_read(id, &data).unwrap_or_else(|wrong| panic!("at rest: {wrong}"));
    }
}

async fn read_again(volume: &Volume, first: u64, count: u64) -> Option<Vec<u8>> {
    match volume.read(first * SECTOR, count * SECTOR).await {
        Ok(data) => Some(flat(&data)),
        Err(ShardError::Stopped) => None,
        Err(error) => panic!("with at most m devices bad, reading {count} sectors at {first}: {error}"),
    }
}

/// One call of the control store that goes wrong.
pub fn draw_store_fault(rng: &mut Rng) -> Fault {
    use Fault::{Conflict, Unavailable, UnknownApplied, UnknownLost};
    *rng.pick(&[Unavailable, Unavailable, UnknownApplied, UnknownLost, Conflict])
}

fn generator(seed: u64) -> Rng {
    Rng::new(seed ^ 0x0DE5)
}

/// What the seed means.
pub fn plan(seed: u64) -> Plan {
    Plan::draw(&mut generator(seed))
}

/// Runs one seed.
pub fn run(seed: u64) -> Outcome {
    let mut rng = generator(seed);
    let plan = Plan::draw(&mut rng);
    let world = world(seed);
    let machine = Machine::new(&world, plan.clone(), seed);
    let (mut crashes, mut store_faults) = (0, 0);
    for round in 0..plan.rounds {
        if round > 0 {
            machine.hurt(&mut rng, world.now_nanos());
        }
        let how = if rng.coin() { Stop::Kill } else { Stop::Power };
        if rng.below(3) > 0 {
            // Early crashes hit recovery itself.
            let within = *rng.pick(&[300, 3_000, 30_000]);
            machine.node.stop_at_event(machine.node.events() + rng.between(1, within), how);
        }
        for _ in 0..rng.below(plan.store_faults + 1) {
            store_faults += 1;
            let (store, fault) = (machine.store.clone(), draw_store_fault(&mut rng));
            world.after(Duration::from_millis(rng.below(100)), move || store.inject(fault));
        }
        let boot = machine.boot(plan.operations_per_round, round == 0);
        world.run_until(|| boot.is_done() || !machine.node.is_running(), Duration::from_secs(5));
        machine.stop(how);
        crashes += 1;
    }
    // What is still to come of the control store's faults comes now.
    world.run_for(Duration::from_millis(100));
    machine.heal();
    machine.store.clear_faults();
    machine.node.stop_at_event(u64::MAX, Stop::Kill);
    let boot = machine.boot(plan.operations_per_round, true);
    let ready = world.run_until(|| boot.is_ready(), READY_LIMIT);
    assert!(ready, "nothing is wrong any more, and it does not serve: {:?}", boot.phase());
    let done = world.run_until(|| boot.is_done(), READY_LIMIT);
    assert!(done, "nothing is wrong any more, and hosts wait for ever");
    machine.stop(Stop::Kill);
    assert_eq!(world.leaked_buffers(), 0, "buffers that nobody gave back");
    Outcome {
        trace: world.trace_hash(),
        simulated_nanos: world.now_nanos(),
        events: world.events(),
        crashes: crashes + 1,
        states: 0,
        tally: Default::default(),
        faults: machine.disk_faults() + store_faults,
        operations: machine.acknowledged(),
        verified: machine.verified(),
    }
}
