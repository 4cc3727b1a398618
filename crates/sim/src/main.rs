//! Runs simulations by seed, several at once. A failure prints the one command that replays it.
#![forbid(unsafe_code)]

mod bars;

use bars::Bar;
use clap::Parser;
use peristyle_rt::sim::{real_time, thread_time};
use peristyle_sim::operation::Tally;
use peristyle_sim::{Outcome, SCENARIOS, Scenario};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

/// Simulates Peristyle from seeds: crashes, torn writes, failing and lying disks, partitions.
#[derive(Parser)]
#[command(name = "peristyle-sim", args_conflicts_with_subcommands = true)]
struct Options {
    #[command(subcommand)]
    bar: Option<Bar>,
    /// Seeds of each scenario.
    #[arg(long, default_value_t = 10)]
    seeds: u64,
    /// The first of them.
    #[arg(long, default_value_t = 1)]
    first: u64,
    /// One seed only.
    #[arg(long)]
    seed: Option<u64>,
    /// Run the first N seeds of each scenario twice and compare the traces; without a number all of them.
    #[arg(long, value_name = "N", num_args = 0..=1, default_missing_value = "18446744073709551615")]
    replay: Option<u64>,
    /// One scenario only.
    #[arg(long)]
    scenario: Option<String>,
    /// Seeds that run at once; a seed runs on one thread.
    #[arg(long, default_value_t = thread::available_parallelism().map_or(1, usize::from))]
    jobs: usize,
    /// Fail when fewer crash states were seen.
    #[arg(long, value_name = "N", default_value_t = 0)]
    at_least_states: u64,
    /// Begin no further seed after one has failed.
    #[arg(long)]
    until_failure: bool,
    /// A line for each seed.
    #[arg(long)]
    verbose: bool,
}

/// What a seed has shown.
struct Run {
    scenario: usize,
    outcome: Option<Outcome>,
    cpu_seconds: f64,
}

/// Seeds of one scenario, or of all.
#[derive(Default)]
struct Sum {
    seeds: u64,
    failed: u64,
    outcome: Outcome,
    cpu_seconds: f64,
}

impl Sum {
    fn add(&mut self, run: &Run) {
        self.seeds += 1;
        self.cpu_seconds += run.cpu_seconds;
        match run.outcome {
            Some(outcome) => self.outcome = self.outcome.and(outcome),
            None => self.failed += 1,
        }
    }
    fn print(&self, name: &str) {
        println!("{name}: {} seeds, {} failed: {}", self.seeds, self.failed, self.outcome);
    }
    /// Of one core, and what is done in a second of it.
    fn print_speed(&self, name: &str) {
        let seconds = self.cpu_seconds.max(1e-9);
        println!(
            "  {name:8} {:9.1} {seconds:8.1} {:8.0}x {:10.0} {:10.0}",
            self.outcome.simulated_nanos as f64 / 1e9,
            self.outcome.simulated_nanos as f64 / 1e9 / seconds,
            self.outcome.states as f64 / seconds,
            self.outcome.events as f64 / seconds,
        );
    }
}

/// Crash states of each operation; false when one of them had none.
fn print_operations(chosen: &[&Scenario], tally: &Tally) -> bool {
    let mut complete = true;
    let operations = || chosen.iter().flat_map(|scenario| scenario.operations);
    if operations().next().is_some() {
        println!("\n  {:38} {:>12}", "power lost during", "crash states");
    }
    for operation in operations() {
        let states = tally.states(*operation);
        let missing = if states == 0 { "  MISSING" } else { "" };
        println!("  {:38} {states:12}{missing}", operation.name());
        complete &= states > 0;
    }
    complete
}

fn main() -> ExitCode {
    let options = Options::parse();
    if let Some(bar) = &options.bar {
        return if bar.run() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    }
    let chosen: Vec<&Scenario> =
        SCENARIOS.iter().filter(|s| options.scenario.as_deref().is_none_or(|name| name == s.name)).collect();
    if chosen.is_empty() {
        eprintln!("There are these scenarios:");
        SCENARIOS.iter().for_each(|s| eprintln!("  {:10} {}", s.name, s.about));
        return ExitCode::from(2);
    }
    let started = real_time();
    let runs = run_all(&options, &chosen);
    let mut total = Sum::default();
    let mut sums: Vec<Sum> = chosen.iter().map(|_| Sum::default()).collect();
    for run in &runs {
        sums[run.scenario].add(run);
        total.add(run);
    }
    let named = || chosen.iter().map(|s| s.name).zip(&sums).chain([("all", &total)]);
    named().for_each(|(name, sum)| sum.print(name));
    println!("\n  seconds: simulated   a core's   factor   states/s   events/s");
    named().for_each(|(name, sum)| sum.print_speed(name));
    let complete = print_operations(&chosen, &total.outcome.tally);
    println!("\n{:.1} s on the clock, {} at once", (real_time() - started).as_secs_f64(), options.jobs);
    if total.outcome.states < options.at_least_states {
        println!("FAILED: {} crash states are to be seen", options.at_least_states);
        return ExitCode::FAILURE;
    }
    // One seed does not draw everything.
    if !complete && options.seed.is_none() && total.failed == 0 {
        println!("FAILED: an operation had no crash states");
        return ExitCode::FAILURE;
    }
    if total.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Every chosen scenario with every seed, in that order, whoever ran it.
fn run_all(options: &Options, chosen: &[&Scenario]) -> Vec<Run> {
    let (first, count) = options.seed.map_or((options.first, options.seeds), |seed| (seed, 1));
    let work: Vec<(usize, u64)> =
        (first..first + count).flat_map(|seed| (0..chosen.len()).map(move |at| (at, seed))).collect();
    let (next, failed) = (AtomicUsize::new(0), AtomicBool::new(false));
    let worker = || {
        let mut runs = Vec::new();
        while let Some(&(at, seed)) = work.get(next.fetch_add(1, Ordering::Relaxed)) {
            if options.until_failure && failed.load(Ordering::Relaxed) {
                break;
            }
            let twice = options.replay.is_some_and(|n| seed - first < n);
            let began = thread_time();
            let outcome = run_one(chosen[at], seed, twice);
            let halves = if twice { 2.0 } else { 1.0 };
            let cpu_seconds = (thread_time() - began).as_secs_f64() / halves;
            failed.fetch_or(outcome.is_none(), Ordering::Relaxed);
            tell(options, chosen[at], seed, outcome);
            runs.push((seed, Run { scenario: at, outcome, cpu_seconds }));
        }
        runs
    };
    let mut runs: Vec<(u64, Run)> = thread::scope(|scope| {
        let workers: Vec<_> = (0..options.jobs.max(1)).map(|_| scope.spawn(worker)).collect();
        workers.into_iter().flat_map(|w| w.join().expect("panics of seeds are caught")).collect()
    });
    runs.sort_by_key(|(seed, run)| (run.scenario, *seed));
    runs.into_iter().map(|(_, run)| run).collect()
}

fn tell(options: &Options, scenario: &Scenario, seed: u64, outcome: Option<Outcome>) {
    let name = scenario.name;
    if options.seed.is_some() || outcome.is_none() {
        println!("{name} {seed}: {}", (scenario.plan)(seed));
    }
    match outcome {
        Some(outcome) if options.verbose => println!("{name} {seed}: {outcome}"),
        Some(_) => {}
        None => println!(
            "{name} {seed}: FAILED; again: cargo xtask sim --scenario {name} --seed {seed} --verbose"
        ),
    }
}

/// `None` when the seed fails, or does not do the same twice.
fn run_one(scenario: &Scenario, seed: u64, twice: bool) -> Option<Outcome> {
    let run = || catch_unwind(AssertUnwindSafe(|| (scenario.run)(seed))).ok();
    let first = run()?;
    if twice {
        let second = run()?;
        if second != first {
            eprintln!("seed {seed} does not replay:\n  {first}\n  {second}");
            return None;
        }
    }
    Some(first)
}
