//! `peristyle-fuzzing`: what `cargo xtask fuzz` runs.
#![forbid(unsafe_code)]

use anyhow::{Context, Result, bail};
use clap::Parser;
use peristyle_fuzzing::run::{self, Plan};
use peristyle_fuzzing::{TARGETS, corpus, target};
use std::path::PathBuf;
use std::time::Instant;

/// Runs the fuzz targets over mutations of their committed corpora.
#[derive(Parser)]
struct Cli {
    /// Executions in all, shared by the targets according to their weights.
    #[arg(long, default_value_t = 10_000_000)]
    executions: u64,
    /// What every input is drawn from.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Only this target; may be given several times.
    #[arg(long)]
    target: Vec<String>,
    /// Run one target on this one input, and nothing else.
    #[arg(long, requires = "target")]
    input: Option<PathBuf>,
    /// Write the inputs that begin each corpus, made by our own encoders, and leave.
    #[arg(long)]
    seed_corpus: bool,
    /// Print the names of the targets and leave.
    #[arg(long)]
    list: bool,
}

fn main() -> Result<()> {
    let cli = Cli::parse();
    let mut targets = Vec::new();
    for name in &cli.target {
        targets.push(*target(name).with_context(|| format!("no target {name}; --list names them"))?);
    }
    if targets.is_empty() {
        targets = TARGETS.to_vec();
    }
    if cli.list {
        targets.iter().for_each(|t| println!("{}", t.name));
        return Ok(());
    }
    if cli.seed_corpus {
        return targets.iter().try_for_each(corpus::write_seeds);
    }
    if let Some(path) = cli.input {
        let [one] = &targets[..] else { bail!("--input goes with exactly one --target") };
        let input = std::fs::read(&path).with_context(|| path.display().to_string())?;
        (one.run)(&input);
        println!("{}: {} bytes read without harm", one.name, input.len());
        return Ok(());
    }
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    let plan = Plan { targets, executions: cli.executions, seed: cli.seed, workers };
    let start = Instant::now();
    let mut executions = 0;
    run::run(&plan, |report| {
        let rate = report.executions as f64 / report.elapsed.as_secs_f64();
        println!(
            "{:24} {:4} inputs {:10} executions {rate:9.0}/s",
            report.name, report.inputs, report.executions
        );
        executions += report.executions;
    })?;
    let seconds = start.elapsed().as_secs_f64();
    println!(
        "{executions} executions in {seconds:.1} s on {workers} cores: {:.0}/s, no failure",
        executions as f64 / seconds
    );
    Ok(())
}
