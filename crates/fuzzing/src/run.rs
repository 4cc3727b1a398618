//! The mutation loop: every target in turn on every core, until enough executions were made or one has failed.

use crate::mutate::{Random, mutate};
use crate::{Target, corpus};
use anyhow::{Context, Result, bail};
use std::fs;
use std::panic::{self, AssertUnwindSafe};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How much of what to run.
pub struct Plan {
    pub targets: Vec<Target>,
    pub executions: u64,
    pub seed: u64,
    pub workers: usize,
}

/// What one target did.
pub struct Report {
    pub name: &'static str,
    pub inputs: usize,
    pub executions: u64,
    pub elapsed: Duration,
}

/// An execution that takes longer than this is a hang; the slowest honest one takes microseconds.
const HANG: Duration = Duration::from_secs(20);

/// Runs the plan's targets one after the other; the first failure ends it and leaves its input in a file.
pub fn run(plan: &Plan, mut done: impl FnMut(&Report)) -> Result<()> {
    let weights: u64 = plan.targets.iter().map(|t| t.weight).sum();
    for target in &plan.targets {
        let share = (plan.executions * target.weight).div_ceil(weights);
        let inputs = corpus::read(target)?;
        let start = Instant::now();
        for input in &inputs {
            execute(target, input)?;
        }
        run_mutated(plan, target, &inputs, share)?;
        done(&Report {
            name: target.name,
            inputs: inputs.len(),
            executions: share,
            elapsed: start.elapsed(),
        });
    }
    Ok(())
}

/// What the workers of one target share.
struct Shared {
    failure: Mutex<Option<anyhow::Error>>,
    stop: AtomicBool,
    /// Executions begun, per worker: what the watchdog looks at.
    begun: Vec<AtomicU64>,
    running: AtomicU64,
}

fn run_mutated(plan: &Plan, target: &Target, inputs: &[Vec<u8>], executions: u64) -> Result<()> {
    let workers = plan.workers.max(1);
    let shared = Shared {
        failure: Mutex::new(None),
        stop: AtomicBool::new(false),
        begun: (0..workers).map(|_| AtomicU64::new(0)).collect(),
        running: AtomicU64::new(workers as u64),
    };
    std::thread::scope(|scope| {
        for worker in 0..workers {
            let shared = &shared;
            let mine = executions / workers as u64 + u64::from((worker as u64) < executions % workers as u64);
            scope.spawn(move || {
                work(plan.seed, worker, target, inputs, mine, shared);
                shared.running.fetch_sub(1, Ordering::Release);
            });
        }
        watch(plan.seed, target, &shared);
    });
    match shared.failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(error) => Err(error),
        None => Ok(()),
    }
}

fn work(seed: u64, worker: usize, target: &Target, inputs: &[Vec<u8>], executions: u64, shared: &Shared) {
    let mut random = Random::new(seed ^ (worker as u64 + 1).wrapping_mul(0xA076_1D64_78BD_642F));
    let mut input = Vec::new();
    for number in 0..executions {
        if shared.stop.load(Ordering::Relaxed) {
            return;
        }
        shared.begun[worker].store(number + 1, Ordering::Relaxed);
        mutate(&mut random, inputs, target.bytes_max, &mut input);
        if let Err(error) = execute(target, &input) {
            shared.failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
            shared.stop.store(true, Ordering::Relaxed);
        }
    }
}

/// Looks now and then whether the workers still begin executions. A hang cannot be stopped from outside, only said:
/// the process ends, naming what replays it.
fn watch(seed: u64, target: &Target, shared: &Shared) {
    let begun = || shared.begun.iter().map(|b| b.load(Ordering::Relaxed)).collect::<Vec<_>>();
    let (mut seen, mut since) = (begun(), Instant::now());
    while shared.running.load(Ordering::Acquire) > 0 {
        std::thread::sleep(Duration::from_millis(5));
        let now = begun();
        if now != seen {
            (seen, since) = (now, Instant::now());
        } else if since.elapsed() > HANG {
            eprintln!("{}: hangs with seed {seed} at executions {seen:?} of its workers", target.name);
            std::process::exit(1);
        }
    }
}

/// One execution. A panic becomes an error that names the file with the input.
pub fn execute(target: &Target, input: &[u8]) -> Result<()> {
    if panic::catch_unwind(AssertUnwindSafe(|| (target.run)(input))).is_ok() {
        return Ok(());
    }
    let path = keep(target, input)?;
    bail!("{}: panicked; replay: cargo xtask fuzz --target {0} --input {}", target.name, path.display())
}

fn keep(target: &Target, input: &[u8]) -> Result<PathBuf> {
    let folder = corpus::folder().join("artifacts").join(target.name);
    fs::create_dir_all(&folder)?;
    let hash = input
        .iter()
        .fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x100_0000_01b3));
    let path = folder.join(format!("{hash:016x}"));
    fs::write(&path, input).with_context(|| path.display().to_string())?;
    Ok(path)
}
