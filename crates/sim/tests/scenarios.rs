//! A few seeds of every scenario, each twice.

use peristyle_sim::SCENARIOS;

#[test]
fn every_scenario_keeps_its_promises_and_replays_exactly() {
    for scenario in SCENARIOS {
        for seed in [1, 2] {
            let first = (scenario.run)(seed);
            let wrong = first.crashes + first.faults;
            assert!(first.verified > 0 && wrong > 0, "{} {seed} checks nothing", scenario.name);
            assert_eq!(first, (scenario.run)(seed), "{} {seed}", scenario.name);
        }
    }
}
