//! `bench crash`: a daemon of its own, killed at random moments, and what it has kept.

use super::CrashOptions;
use super::daemon::{DEVICES, Daemon, Spawn};
use super::run::find;
use crate::failure::Failure;
use crate::render::json;
use peristyle_bench::crash::{Crash, CrashPlan, Round};
use peristyle_bench::random::Random;
use peristyle_rt::{BufConfig, RuntimeConfig};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The daemon dies after a time in this range, milliseconds.
const DELAY_MS: std::ops::Range<u64> = 5..1500;
/// Share of the devices' raw space that may be written before a new store is made: space is not collected yet.
const STORE_SHARE: u64 = 4;

pub fn command(options: &CrashOptions) -> Result<(), Failure> {
    let seed = options.seed.unwrap_or_else(drawn_seed);
    let (root, own) = match &options.dir {
        Some(dir) => (dir.clone(), false),
        None => (std::env::temp_dir().join(format!("peristyle-crash-{}", std::process::id())), true),
    };
    std::fs::create_dir_all(&root).map_err(Failure::failed)?;
    let (inner, dir) = (options.clone(), root.clone());
    let config = RuntimeConfig { buffers: buffers(options), ..RuntimeConfig::default() };
    let result = peristyle_rt::block_on(config, async move { rounds(&inner, seed, &dir).await });
    let failed = result?;
    if own && failed == 0 {
        let _ = std::fs::remove_dir_all(&root);
    }
    match failed {
        0 => Ok(()),
        n => Err(Failure::failed(format!(
            "{n} rounds failed; seed {seed}; the store and the daemon's words are in {}",
            root.display()
        ))),
    }
}

fn drawn_seed() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    std::collections::hash_map::RandomState::new().build_hasher().finish()
}

/// A buffer of the largest write for each in flight, and as many for what is read back.
fn buffers(options: &CrashOptions) -> BufConfig {
    let in_flight = usize::from(options.connections) * options.qd as usize;
    let counts = BufConfig::small().counts;
    BufConfig { counts: counts.map(|n| n + in_flight), huge_pages: false }
}

impl From<&CrashOptions> for Spawn {
    fn from(options: &CrashOptions) -> Spawn {
        Spawn {
            device_bytes: options.device_size,
            memory: None,
            scheme: options.scheme,
            volume: ("crash", options.volume_size),
            more: Vec::new(),
        }
    }
}

/// A store and what it must hold.
struct Store {
    dir: PathBuf,
    crash: Option<Crash>,
    bytes: u64,
    full: bool,
}

impl Store {
    fn new(root: &Path, number: u32) -> Store {
        Store { dir: root.join(format!("store-{number}")), crash: None, bytes: 0, full: false }
    }
}

async fn rounds(options: &CrashOptions, seed: u64, root: &Path) -> Result<u32, Failure> {
    let mut random = Random::new(seed);
    let (mut store, mut stores) = (Store::new(root, 0), 1);
    let budget = options.device_size * DEVICES / STORE_SHARE;
    let (mut passed, mut failed) = (0, 0);
    for number in 1..=options.rounds {
        if store.bytes > budget || store.full {
            let _ = std::fs::remove_dir_all(&store.dir);
            store = Store::new(root, stores);
            stores += 1;
        }
        let delay = DELAY_MS.start + random.below(DELAY_MS.end - DELAY_MS.start);
        let done = one_round(options, seed, &mut store, Duration::from_millis(delay)).await?;
        failed += u32::from(!done.round.passed());
        passed += u32::from(done.round.passed());
        report(options, number, &done);
        if !done.round.passed() {
            break;
        }
    }
    if options.json {
        print!("{}", json(&json!({"passed": passed, "failed": failed, "seed": seed, "stores": stores})));
    } else {
        println!("{passed} passed, {failed} failed (seed {seed}, {stores} stores)");
    }
    Ok(failed)
}

struct Done {
    round: Round,
    killed_after: Duration,
    recovery: Duration,
}

/// Starts, writes, kills; starts again, reads everything back, kills again (a crash without writes).
async fn one_round(
    options: &CrashOptions,
    seed: u64,
    store: &mut Store,
    delay: Duration,
) -> Result<Done, Failure> {
    let (mut daemon, _) = Daemon::start(&options.into(), &store.dir).await?;
    let session = daemon.session().await?;
    if store.crash.is_none() {
        let namespace = find(&session, &[]).await.map_err(Failure::failed)?[0];
        let plan = CrashPlan { seed, connections: options.connections, depth: options.qd };
        store.crash = Some(Crash::new(plan, namespace).map_err(Failure::usage)?);
    }
    let crash = store.crash.as_mut().expect("just made");
    let round_bytes = options.device_size * DEVICES / STORE_SHARE;
    let start = Instant::now();
    let written = crash.write(&session, delay, round_bytes, || daemon.kill()).await;
    let (mut round, killed_after) = (written.map_err(Failure::failed)?, start.elapsed());
    daemon.ended()?;
    drop(session);
    store.bytes += round.bytes_acknowledged;
    store.full = round.full;
    let (mut daemon, recovery) = Daemon::start(&options.into(), &store.dir).await?;
    let session = daemon.session().await?;
    crash.verify(&session, &mut round).await.map_err(Failure::failed)?;
    daemon.kill();
    daemon.ended()?;
    Ok(Done { round, killed_after, recovery })
}

fn report(options: &CrashOptions, number: u32, done: &Done) {
    let Done { round, killed_after, recovery } = done;
    if options.json {
        let told: Vec<Value> = round.told.iter().map(|v| v.to_string().into()).collect();
        let line = json!({
            "round": number, "passed": round.passed(), "writes_acknowledged": round.writes_acknowledged,
            "bytes_acknowledged": round.bytes_acknowledged, "reads_checked": round.reads_checked,
            "in_flight": round.in_flight, "in_flight_whole": round.in_flight_whole,
            "in_flight_absent": round.in_flight_absent, "blocks_checked": round.blocks_checked,
            "killed_after_ms": killed_after.as_millis() as u64, "recovery_ms": recovery.as_millis() as u64,
            "full": round.full, "violations": round.violations, "told": told,
        });
        print!("{}", json(&line));
        return;
    }
    println!(
        "round {number:3}  killed after {:4} ms  {:6} writes acknowledged  in flight {:3} ({} whole, {} absent)  \
         recovered in {} ms  {}",
        killed_after.as_millis(),
        round.writes_acknowledged,
        round.in_flight,
        round.in_flight_whole,
        round.in_flight_absent,
        recovery.as_millis(),
        if round.passed() {
            if round.full { "ok, full" } else { "ok" }.to_owned()
        } else {
            format!("{} VIOLATIONS", round.violations)
        }
    );
    round.told.iter().for_each(|violation| println!("  {violation}"));
}
