//! One shard, its devices and the control store, without a node around them: at every event of its life the states
//! that a loss of power may leave, with what was under way by name. Each is recovered from, compared and written to;
//! some lose their power again during that recovery, and some are taken up with devices away before.
//!
//! The life: a first start, writes, checkpoints, extents that fill and are sealed, snapshots and clones and what becomes
//! of them, a device that fails for a while, and a takeover while the owner before, who does not know of it, goes on writing.

mod at_rest;
mod family;
mod life;
mod volumes;
mod watch;
mod window;

use crate::Outcome;
use crate::node::store_of;
use crate::operation::Operation;
use family::Family;
use life::{LAYER, Owner, Rig};
use peristyle_base::Scheme;
use peristyle_cluster::{MemoryShardStore, ShardRecord};
use peristyle_column::Geometry;
use peristyle_rt::sim::{CrashState, DiskConfig, DiskHandle, Image, Rng, Stop, Sweep, WorldConfig, run_with};
use peristyle_rt::{BufConfig, Duration};
use std::cell::RefCell;
use std::rc::Rc;
use watch::Watch;

/// States of one crash, and how many of them are drawn.
const STATES: usize = 48;
const DRAWN: usize = 1;
/// Of so many states one loses its power again while it is recovered from.
const AGAIN_EVERY: u64 = 100;
/// Of so many states one is taken up with devices away first.
const AWAY_EVERY: u64 = 4;
/// Of these, each so many is looked at by the offline tools first.
const CHECK_EVERY: u64 = 3;
/// Of so many states with snapshots one has one more thing happen to these.
const CHANGE_EVERY: u64 = 3;

/// What is drawn from a seed.
#[derive(Clone, Debug)]
pub struct Plan {
    pub scheme: Scheme,
    pub devices: usize,
    pub slots: u32,
    pub volume_bytes: u64,
    pub ready_extents: usize,
    pub volatile_cache: bool,
    /// The device that fails for a while. There are m+1 without it: with fewer, writes wait until it is back.
    pub failing: Option<usize>,
    /// The control store takes so long that an extent is full and sealed before the next one is ready.
    pub slow_store: bool,
    /// See [`DiskConfig::at_once_ppm`].
    pub at_once_ppm: u32,
    /// Disks do not zero ranges by themselves: freed slots are discarded.
    pub discards: bool,
}

impl Plan {
    fn disk_config(&self) -> DiskConfig {
        let Plan { volatile_cache, at_once_ppm, discards, .. } = *self;
        DiskConfig { volatile_cache, at_once_ppm, cheap_zeroes: !discards, ..DiskConfig::default() }
    }
}

/// What the seed means.
pub fn plan(seed: u64) -> Plan {
    let mut rng = Rng::new(seed ^ 0x5A4D);
    let (k, m) = *rng.pick(&[(2, 1), (2, 1), (1, 1), (1, 2), (2, 2)]);
    let scheme = Scheme::new(k, m).expect("a scheme");
    let devices = scheme.width() + rng.below(2) as usize;
    Plan {
        scheme,
        devices,
        slots: 48,
        volume_bytes: 1 << 20,
        ready_extents: rng.between(1, 2) as usize,
        volatile_cache: rng.coin(),
        failing: rng
            .coin()
            .then(|| rng.below(devices as u64) as usize)
            .filter(|_| devices - 1 > usize::from(m)),
        slow_store: rng.coin(),
        at_once_ppm: *rng.pick(&crate::node::AT_ONCE_PPM),
        discards: rng.below(4) == 0,
    }
}

fn world_config(seed: u64) -> WorldConfig {
    let buffers = BufConfig { counts: [1024, 64, 32, 8, 16, 8], huge_pages: false };
    WorldConfig { buffers, ..WorldConfig::new(seed) }
}

/// What is left of a moment: the disks, the record, and what hosts know.
struct Remains {
    disks: CrashState,
    record: Option<ShardRecord>,
    family: Family,
}

struct Sweeper {
    seed: u64,
    plan: Plan,
    outcome: Outcome,
    recovered: u64,
}

/// Runs one seed.
pub fn run(seed: u64) -> Outcome {
    let plan = plan(seed);
    let mut sweeper = Sweeper { seed, plan, outcome: Outcome::default(), recovered: 0 };
    for mut remains in sweeper.sweep_life() {
        sweeper.recovered += 1;
        if sweeper.recovered % AGAIN_EVERY == 0 {
            for again in sweeper.sweep_recovery(&remains) {
                sweeper.recover(again);
            }
        }
        if sweeper.recovered % AWAY_EVERY == 0 {
            remains = sweeper.recover_with_devices_away(remains);
        }
        sweeper.recover(remains);
    }
    sweeper.outcome
}

impl Sweeper {
    fn sweep(&self, disks: Vec<Image>, salt: u64) -> Sweep {
        let config = self.plan.disk_config();
        Sweep {
            world: world_config(self.seed ^ salt),
            disks: disks.into_iter().map(|image| (image, config.clone())).collect(),
            how: Stop::Power,
            states_per_crash: STATES,
            drawn_per_crash: DRAWN,
            ..Sweep::new(0, Vec::new())
        }
    }

    fn rig(&self, family: Family, store: MemoryShardStore) -> Rig {
        let half_a_put = Duration::from_micros(if self.plan.slow_store { 3_000 } else { 150 });
        let watch = Watch { half_a_put, ..Watch::default() };
        let (plan, model) = (self.plan.clone(), family.model(LAYER));
        Rig { plan, seed: self.seed, model, family: Rc::new(RefCell::new(family)), store, watch }
    }

    /// The whole life, and what a crash at each of its events may leave.
    fn sweep_life(&mut self) -> Vec<Remains> {
        let rig = self.rig(Family::new(self.plan.volume_bytes), MemoryShardStore::default());
        let disks = vec![Image::new(Geometry::bytes_for(self.plan.slots)); self.plan.devices];
        let formatted = {
            let sweep = self.sweep(disks, 1);
            let sweep = Sweep { drawn_per_crash: 0, ..sweep };
            sweep.run(|_, disks| async move { life::format_all(&disks).await }, || 0, |_| {}).1
        };
        let (living, mut remains) = (rig.clone(), Vec::new());
        let (swept, _) = self.sweep(formatted, 2).run(
            |_, disks| living.live(disks),
            || rig.promise(),
            |crash| {
                self.outcome.tally.add(rig.watch.under_way.bits());
                remains.push(rig.remains(crash.disks));
            },
        );
        self.outcome = self.outcome.and(swept.into());
        self.outcome.operations += rig.family.borrow().acknowledged();
        self.outcome.verified += rig.family.borrow().verified();
        remains
    }

    /// The recovery of one of these, and what a crash at each of its events may leave.
    fn sweep_recovery(&mut self, from: &Remains) -> Vec<Remains> {
        let rig = self.rig(from.family.crashed_copy(), store_of(from.record.as_ref()));
        let (recovering, mut again) = (rig.clone(), Vec::new());
        let (swept, _) = self.sweep(from.disks.clone(), 3 ^ self.recovered << 8).run(
            |_, disks| async move {
                let _step = recovering.watch.under_way.begin(Operation::RecoveryAgain);
                let owner = Owner::take(&recovering, &disks).await;
                owner.settle_old().await;
            },
            || rig.promise(),
            |crash| {
                self.outcome.tally.add(rig.watch.under_way.bits());
                again.push(rig.remains(crash.disks));
            },
        );
        self.outcome = self.outcome.and(swept.into());
        again
    }

    /// A process that finds only some of the devices comes up or waits, and then it is gone: it must not have guessed.
    fn recover_with_devices_away(&mut self, remains: Remains) -> Remains {
        let rig = self.rig(remains.family, store_of(remains.record.as_ref()));
        let mut rng = Rng::new(self.seed ^ self.recovered << 20);
        let mut away = vec![rng.below(self.plan.devices as u64) as usize];
        away.extend((0..self.plan.devices).filter(|i| *i != away[0] && rng.coin()).collect::<Vec<_>>());
        let living = rig.clone();
        let disks = self.in_world(5, remains.disks, move |disks| async move {
            life::take_up_with_devices_away(&living, &disks, &away).await;
            disks.iter().map(DiskHandle::image).collect::<CrashState>()
        });
        self.outcome.verified += rig.family.borrow().verified();
        rig.remains(&disks)
    }

    /// A process that finds this comes up, has all that was promised, and works.
    fn recover(&mut self, remains: Remains) {
        self.check_at_rest(&remains);
        let rig = self.rig(remains.family, store_of(remains.record.as_ref()));
        let (family, count) = (rig.family.clone(), self.recovered);
        self.in_world(4, remains.disks, move |disks| async move {
            let owner = Owner::take(&rig, &disks).await;
            owner.decide().await;
            owner.compare_all().await;
            let mut rng = Rng::new(rig.seed ^ count);
            owner.write_some(&mut rng, 3).await;
            if rig.family.borrow().held.len() > 1 && count.is_multiple_of(CHANGE_EVERY) {
                owner.write_everywhere(&mut rng).await;
                Box::pin(owner.change_once_more(&mut rng)).await;
            }
            owner.compare_all().await;
        });
        self.outcome.operations += family.borrow().acknowledged();
        self.outcome.verified += family.borrow().verified();
    }

    /// A device that failed lacks what was written meanwhile: without one, nothing may be wrong at rest.
    fn check_at_rest(&mut self, remains: &Remains) {
        let due = self.plan.failing.is_none() && self.recovered.is_multiple_of(CHECK_EVERY);
        if let Some(record) = remains.record.clone().filter(|_| due) {
            let plan = self.plan.clone();
            self.in_world(6, remains.disks.clone(), move |disks| at_rest::check(plan, record, disks));
        }
    }

    /// One more process, in a world of its own.
    fn in_world<T, F, Fut>(&mut self, salt: u64, images: CrashState, life: F) -> T
    where
        F: FnOnce(Vec<DiskHandle>) -> Fut + 'static,
        Fut: Future<Output = T> + 'static,
        T: 'static,
    {
        let config = self.plan.disk_config();
        let (value, seen) = run_with(world_config(self.seed ^ salt ^ self.recovered << 8), move |env| {
            let add = |(i, image)| env.node.add_disk_image(&format!("d{i}"), image, config.clone());
            let future = life(images.into_iter().enumerate().map(add).collect());
            async move {
                let value = future.await;
                let seen = Outcome {
                    trace: env.world.trace_hash(),
                    simulated_nanos: env.world.now_nanos(),
                    events: env.world.events(),
                    crashes: 1,
                    ..Outcome::default()
                };
                (value, seen)
            }
        });
        self.outcome = self.outcome.and(seen);
        value
    }
}
