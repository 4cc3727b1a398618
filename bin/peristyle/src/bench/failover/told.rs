//! Phases as JSON and as a table.

use crate::render::table;
use peristyle_bench::failover::{BUCKET, Failover, Phase};
use peristyle_nvme::wire::log_page::AnaState;
use serde_json::{Value, json};
use std::time::Duration;

/// One depth, when it is over.
pub struct Run {
    depth: u32,
    phases: Vec<Phase>,
    pub violations: u64,
    /// The first wrong reads and errors, in words.
    told: Vec<String>,
}

impl Run {
    /// The phases as they were when it was told to end: commands that end behind that are of no matter to them.
    pub fn new(depth: u32, phases: Vec<Phase>, failover: &Failover) -> Run {
        let registers = failover.registers();
        let violations = registers.told().iter().map(ToString::to_string);
        let told = violations.chain(failover.errors().iter().map(ToString::to_string)).collect();
        Run { depth, phases, violations: registers.violations(), told }
    }
    pub fn last(&self) -> &Phase {
        self.phases.last().expect("there is always one")
    }
    pub fn errors(&self) -> u64 {
        self.phases.iter().map(|phase| phase.errors).sum()
    }
    /// The first wrong read, or else the first error.
    pub fn first_told(&self) -> Option<&str> {
        self.told.first().map(String::as_str)
    }
    /// One line for the whole run.
    pub fn summary(&self) -> Value {
        let longest = |of: fn(&Phase) -> Duration| self.phases.iter().map(of).max().unwrap_or_default();
        json!({
            "depth": self.depth,
            "phases": self.phases.len(),
            "completed": self.phases.iter().map(|phase| phase.completed).sum::<u64>(),
            "errors": self.errors(),
            "violations": self.violations,
            "longest_stall_ms": ms(longest(|phase| phase.longest_stall)),
            "longest_command_ms": ms(longest(|phase| phase.longest_command)),
            "told": self.told,
        })
    }
}

/// Milliseconds, to the microsecond.
fn ms(time: Duration) -> f64 {
    time.as_micros() as f64 / 1e3
}

/// A phase that has ended.
pub fn phase(phase: &Phase, depth: u32) -> Value {
    json!({
        "name": phase.name,
        "depth": depth,
        "completed": phase.completed,
        "errors": phase.errors,
        "violations": phase.violations,
        "longest_stall_ms": ms(phase.longest_stall),
        "longest_command_ms": ms(phase.longest_command),
        "bucket_ms": BUCKET.as_millis() as u64,
        "buckets": phase.buckets.iter().map(|bucket| bucket.completed).collect::<Vec<u32>>(),
        "bucket_longest_ms": phase.buckets.iter().map(|bucket| ms(bucket.longest_command)).collect::<Vec<f64>>(),
    })
}

/// The phase that goes on, and what each path says of the volume.
pub fn status(failover: &Failover, depth: u32) -> Value {
    let record = failover.record();
    let phase = record.phases().last().expect("there is always one");
    let paths: Vec<&str> = failover.states().map(state).collect();
    json!({
        "status": phase.name,
        "depth": depth,
        "completed": phase.completed,
        "errors": phase.errors,
        "violations": phase.violations,
        "silent_ms": ms(record.silent(peristyle_rt::now())),
        "longest_stall_ms": ms(phase.longest_stall),
        "paths": paths,
    })
}

fn state(state: Option<AnaState>) -> &'static str {
    match state {
        None => "not connected",
        Some(AnaState::Optimized) => "optimized",
        Some(AnaState::NonOptimized) => "non-optimized",
        Some(AnaState::Inaccessible) => "inaccessible",
        Some(AnaState::PersistentLoss) => "persistent-loss",
        Some(AnaState::Change) => "change",
    }
}

pub fn text(runs: &[Run]) -> String {
    let header = ["depth", "phase", "commands", "longest stall", "longest command", "errors", "wrong reads"];
    let rows = runs.iter().flat_map(|run| {
        run.phases.iter().map(|phase| {
            vec![
                run.depth.to_string(),
                phase.name.clone(),
                phase.completed.to_string(),
                format!("{:.1} ms", ms(phase.longest_stall)),
                format!("{:.1} ms", ms(phase.longest_command)),
                phase.errors.to_string(),
                phase.violations.to_string(),
            ]
        })
    });
    let told = runs.iter().flat_map(|run| run.told.iter().map(|line| format!("  {line}\n")));
    table(&header, &[0, 2, 3, 4, 5, 6], rows) + &told.collect::<String>()
}
