//! Runs simulations by seed. A failure prints the one command that replays it.
#![forbid(unsafe_code)]

use clap::Parser;
use peristyle_sim::{Outcome, SCENARIOS, Scenario};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;

/// Simulates Peristyle from seeds: crashes, torn writes, failing and lying disks, partitions.
#[derive(Parser)]
#[command(name = "peristyle-sim")]
struct Options {
    /// Seeds of each scenario.
    #[arg(long, default_value_t = 10)]
    seeds: u64,
    /// The first of them.
    #[arg(long, default_value_t = 1)]
    first: u64,
    /// One seed only.
    #[arg(long)]
    seed: Option<u64>,
    /// Run each seed twice and compare the traces.
    #[arg(long)]
    replay: bool,
    /// One scenario only.
    #[arg(long)]
    scenario: Option<String>,
    /// A line for each seed.
    #[arg(long)]
    verbose: bool,
}

fn main() -> ExitCode {
    let options = Options::parse();
    let chosen: Vec<&Scenario> =
        SCENARIOS.iter().filter(|s| options.scenario.as_deref().is_none_or(|name| name == s.name)).collect();
    if chosen.is_empty() {
        eprintln!("There are these scenarios:");
        SCENARIOS.iter().for_each(|s| eprintln!("  {:10} {}", s.name, s.about));
        return ExitCode::from(2);
    }
    let seeds = match options.seed {
        Some(seed) => seed..seed + 1,
        None => options.first..options.first + options.seeds,
    };
    let mut failed = 0;
    for scenario in chosen {
        let started = peristyle_rt::sim::real_time();
        let mut sum = Outcome::default();
        for seed in seeds.clone() {
            if options.seed.is_some() {
                println!("{} {seed}: {}", scenario.name, (scenario.plan)(seed));
            }
            match run_one(scenario, seed, options.replay) {
                Some(outcome) => {
                    if options.verbose {
                        println!("{} {seed}: {outcome}", scenario.name);
                    }
                    sum = sum.and(outcome);
                }
                None => {
                    failed += 1;
                    println!("{} {seed}: {}", scenario.name, (scenario.plan)(seed));
                    println!(
                        "{} {seed}: FAILED; again: cargo run -p peristyle-sim -- --scenario {} --seed {seed} --verbose",
                        scenario.name, scenario.name
                    );
                }
            }
        }
        let real = (peristyle_rt::sim::real_time() - started).as_secs_f64();
        let speed = sum.simulated_nanos as f64 / 1e9 / real;
        println!(
            "{}: {} seeds: {sum}; {real:.1} s, {speed:.0}x real time",
            scenario.name,
            seeds.end - seeds.start
        );
    }
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// `None` when the seed fails, or does not do the same twice.
fn run_one(scenario: &Scenario, seed: u64, replay: bool) -> Option<Outcome> {
    let run = || catch_unwind(AssertUnwindSafe(|| (scenario.run)(seed))).ok();
    let first = run()?;
    if replay && run() != Some(first) {
        eprintln!("seed {seed} does not replay: another trace the second time");
        return None;
    }
    Some(first)
}
