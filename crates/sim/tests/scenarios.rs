//! A seed of every scenario, twice. `peristyle-sim` runs more of them.

use peristyle_sim::{SCENARIOS, Scenario};
use std::sync::atomic::{AtomicUsize, Ordering};

fn keeps_its_promises_and_replays_exactly(scenario: &Scenario, seed: u64) {
    let first = (scenario.run)(seed);
    let wrong = first.crashes + first.faults;
    assert!(first.verified > 0 && wrong > 0, "{} {seed} checks nothing", scenario.name);
    assert_eq!(first, (scenario.run)(seed), "{} {seed}", scenario.name);
}

#[test]
fn every_scenario_keeps_its_promises_and_replays_exactly() {
    let next = AtomicUsize::new(0);
    let work = || {
        while let Some(scenario) = SCENARIOS.get(next.fetch_add(1, Ordering::Relaxed)) {
            keeps_its_promises_and_replays_exactly(scenario, 1);
        }
    };
    std::thread::scope(|threads| {
        let workers: Vec<_> = (0..2).map(|_| threads.spawn(work)).collect();
        workers.into_iter().for_each(|worker| worker.join().expect("a scenario failed"));
    });
}
