//! One shard, its devices and the control store, without a node around them: at every event of its life the states
//! that a loss of power may leave, with what was under way by name. Each is recovered from, compared and written to;
//! some lose their power again during that recovery.
//!
//! The life: a first start, writes, checkpoints, extents that fill and are sealed, a device that fails for a while,
//! and a takeover while the owner before, who does not know of it, goes on writing.

mod life;
mod watch;

use crate::Outcome;
use crate::model::Model;
use crate::node::store_of;
use crate::operation::Operation;
use life::{Owner, Rig};
use peristyle_base::Scheme;
use peristyle_cluster::{MemoryShardStore, ShardRecord};
use peristyle_column::Geometry;
use peristyle_rt::BufConfig;
use peristyle_rt::sim::{CrashState, DiskConfig, Image, Rng, Stop, Sweep, WorldConfig, run_with};
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use watch::Watch;

/// States of one crash, and how many of them are drawn.
const STATES: usize = 48;
const DRAWN: usize = 1;
/// Of so many states one loses its power again while it is recovered from.
const AGAIN_EVERY: u64 = 100;

/// What is drawn from a seed.
#[derive(Clone, Debug)]
pub struct Plan {
    pub scheme: Scheme,
    pub devices: usize,
    pub slots: u32,
    pub volume_bytes: u64,
    pub ready_extents: usize,
    pub volatile_cache: bool,
    /// The device that fails for a while.
    pub failing: Option<usize>,
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
        failing: rng.coin().then(|| rng.below(devices as u64) as usize),
    }
}

fn world_config(seed: u64) -> WorldConfig {
    let buffers = BufConfig { counts: [1024, 64, 32, 8, 16, 3], huge_pages: false };
    WorldConfig { buffers, ..WorldConfig::new(seed) }
}

/// What is left of a moment: the disks, the record, and what hosts know.
struct Remains {
    disks: CrashState,
    record: Option<ShardRecord>,
    model: Model,
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
    for remains in sweeper.sweep_life() {
        sweeper.recovered += 1;
        if sweeper.recovered % AGAIN_EVERY == 0 {
            for again in sweeper.sweep_recovery(&remains) {
                sweeper.recover(again);
            }
        }
        sweeper.recover(remains);
    }
    sweeper.outcome
}

impl Sweeper {
    fn sweep(&self, disks: Vec<Image>, salt: u64) -> Sweep {
        let config = DiskConfig { volatile_cache: self.plan.volatile_cache, ..DiskConfig::default() };
        Sweep {
            world: world_config(self.seed ^ salt),
            disks: disks.into_iter().map(|image| (image, config.clone())).collect(),
            how: Stop::Power,
            states_per_crash: STATES,
            drawn_per_crash: DRAWN,
            ..Sweep::new(0, Vec::new())
        }
    }

    fn rig(&self, model: Model, store: MemoryShardStore) -> Rig {
        Rig { plan: self.plan.clone(), seed: self.seed, model, store, watch: Watch::default() }
    }

    /// The whole life, and what a crash at each of its events may leave.
    fn sweep_life(&mut self) -> Vec<Remains> {
        let rig = self.rig(Model::new(self.plan.volume_bytes), MemoryShardStore::default());
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
        self.outcome.operations += rig.model.acknowledged();
        self.outcome.verified += rig.model.verified();
        remains
    }

    /// The recovery of one of these, and what a crash at each of its events may leave.
    fn sweep_recovery(&mut self, from: &Remains) -> Vec<Remains> {
        let rig = self.rig(from.model.crashed_copy(), store_of(from.record.as_ref()));
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

    /// A process that finds this comes up, has all that was promised, and works.
    fn recover(&mut self, remains: Remains) {
        let rig = self.rig(remains.model, store_of(remains.record.as_ref()));
        let seen = Rc::new(RefCell::new(Outcome::default()));
        let (report, model) = (seen.clone(), rig.model.clone());
        let count = Cell::new(self.recovered);
        run_with(world_config(self.seed ^ 4 ^ self.recovered << 8), move |env| {
            let config = DiskConfig { volatile_cache: rig.plan.volatile_cache, ..DiskConfig::default() };
            let add = |(i, image)| env.node.add_disk_image(&format!("d{i}"), image, config.clone());
            let disks: Vec<_> = remains.disks.into_iter().enumerate().map(add).collect();
            async move {
                let owner = Owner::take(&rig, &disks).await;
                owner.decide().await;
                owner.compare_all().await;
                owner.write_some(&mut Rng::new(rig.seed ^ count.get()), 3).await;
                owner.compare_all().await;
                *report.borrow_mut() = Outcome {
                    trace: env.world.trace_hash(),
                    simulated_nanos: env.world.now_nanos(),
                    events: env.world.events(),
                    crashes: 1,
                    ..Outcome::default()
                };
            }
        });
        let seen = Outcome { operations: model.acknowledged(), verified: model.verified(), ..*seen.borrow() };
        self.outcome = self.outcome.and(seen);
    }
}
