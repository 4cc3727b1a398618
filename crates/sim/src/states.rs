//! One node with sound devices: at events all over its boot and its hosts' writes, the states that a loss of power
//! there may leave on all disks together; each is recovered from, some are crashed again during that.

use crate::Outcome;
use crate::model::{Habits, SECTOR};
use crate::node::{Machine, Plan, READY_LIMIT, world};
use peristyle_rt::Duration;
use peristyle_rt::sim::{CrashState, DiskHandle, Rng, Stop};

/// Moments of one run that are looked at, and states of each.
const MOMENTS: u64 = 24;
const STATES: usize = 6;

/// What the seed means.
pub fn plan(seed: u64) -> (Plan, u64) {
    let mut rng = Rng::new(seed ^ 0x57A7E5);
    let volume_bytes = 1 << 20;
    let plan = Plan {
        faulty: Vec::new(),
        rest_us: 0,
        store_faults: 0,
        volume_bytes,
        habits: Habits::draw(&mut rng, volume_bytes / SECTOR),
        hosts: *rng.pick(&[1, 4, 8]),
        checkpoint_log_bytes: *rng.pick(&[1 << 16, 1 << 18]),
        ..Plan::draw(&mut rng)
    };
    (plan, rng.between(20, 80))
}

/// Runs one seed.
pub fn run(seed: u64) -> Outcome {
    let (plan, operations) = plan(seed);
    let mut rng = Rng::new(seed ^ 0xC2A5);
    // Once to learn how many changes there are, once more to stop at some of them.
    let changes = walk(seed, &plan, operations, 1, |_, _| {}).0;
    let every = changes / MOMENTS + 1;
    let mut outcome = Outcome::default();
    let mut moment = 0;
    let (_, whole) = walk(seed, &plan, operations, every, |machine, space| {
        moment += 1;
        for state in space {
            outcome = outcome.and(recover(machine, state, seed ^ moment << 20, &mut rng));
        }
    });
    outcome.and(whole)
}

/// One run of the machine; `look` gets what may be on its disks at every `every`-th change of that.
fn walk(
    seed: u64,
    plan: &Plan,
    operations: u64,
    every: u64,
    mut look: impl FnMut(&Machine, Vec<CrashState>),
) -> (u64, Outcome) {
    let world = world(seed);
    let machine = Machine::new(&world, plan.clone(), seed);
    let boot = machine.boot(operations, false);
    let (mut last, mut seen) = (0, 0);
    while !boot.is_done() {
        assert!(world.step(), "hosts wait for ever");
        let changes: u64 = machine.disks.iter().map(DiskHandle::changes).sum();
        if changes != last {
            last = changes;
            seen += 1;
            if seen % every == 0 {
                let space = world.crash_space(&machine.disks, Stop::Power);
                look(&machine, space.states(STATES, seed ^ seen).collect());
            }
        }
    }
    machine.stop(Stop::Kill);
    let outcome = Outcome {
        trace: world.trace_hash(),
        simulated_nanos: world.now_nanos(),
        events: world.events(),
        operations: machine.acknowledged(),
        verified: machine.verified(),
        ..Outcome::default()
    };
    (seen, outcome)
}

/// A machine with these disks comes up and has all that was acknowledged, also when its power fails again.
fn recover(crashed: &Machine, state: CrashState, seed: u64, rng: &mut Rng) -> Outcome {
    let world = world(seed);
    let machine = crashed.revive(&world, state, seed);
    let mut crashes = 1;
    for _ in 0..rng.below(3) {
        machine.node.stop_at_event(machine.node.events() + rng.between(1, 2_000), Stop::Power);
        let boot = machine.boot(0, false);
        world.run_until(|| boot.is_done() || !machine.node.is_running(), Duration::from_secs(5));
        machine.stop(Stop::Power);
        crashes += 1;
    }
    machine.node.stop_at_event(u64::MAX, Stop::Power);
    let boot = machine.boot(5, true);
    let done = world.run_until(|| boot.is_done(), READY_LIMIT);
    assert!(done, "recovery does not end: {:?}", boot.phase());
    machine.stop(Stop::Kill);
    assert_eq!(world.leaked_buffers(), 0, "buffers that nobody gave back");
    Outcome {
        trace: world.trace_hash(),
        simulated_nanos: world.now_nanos(),
        events: world.events(),
        crashes,
        states: 1,
        tally: Default::default(),
        faults: 0,
        operations: machine.acknowledged(),
        verified: machine.verified(),
    }
}
