//! `bench crash`: a daemon of its own, killed at random moments, and what it has kept.

use super::CrashOptions;
use super::run::find;
use crate::failure::Failure;
use crate::render::json;
use peristyle_bench::crash::{Crash, CrashPlan, Round};
use peristyle_bench::random::Random;
use peristyle_bench::session::{Digests, Session, Target};
use peristyle_rt::{BufConfig, RuntimeConfig};
use serde_json::{Value, json};
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

const DEVICES: u64 = 6;
/// The daemon dies after a time in this range, milliseconds.
const DELAY_MS: std::ops::Range<u64> = 5..1500;
/// A daemon that has not become ready by then has failed to recover.
const READY_TIMEOUT: Duration = Duration::from_secs(60);
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
    let (mut daemon, _) = Daemon::start(options, &store.dir).await?;
    let session = daemon.session().await?;
    if store.crash.is_none() {
        let namespace = find(&session, None).await.map_err(Failure::failed)?;
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
    let (mut daemon, recovery) = Daemon::start(options, &store.dir).await?;
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

/// `peristyle dev` of this same program.
struct Daemon {
    child: Child,
    target: Target,
}

impl Daemon {
    /// Starts it off the reactor and waits until it serves; how long that took.
    async fn start(options: &CrashOptions, dir: &Path) -> Result<(Daemon, Duration), Failure> {
        let (options, dir) = (options.clone(), dir.to_owned());
        peristyle_rt::blocking(move || {
            let start = Instant::now();
            let daemon = Daemon::spawn(&options, &dir)?;
            Ok((daemon, start.elapsed()))
        })
        .await
    }

    fn spawn(options: &CrashOptions, dir: &Path) -> Result<Daemon, Failure> {
        let program = std::env::current_exe().map_err(Failure::failed)?;
        let log = dir.with_extension("log");
        let errors = File::options().create(true).append(true).open(&log).map_err(Failure::failed)?;
        let mut command = Command::new(program);
        command.args(["dev", "--json", "--listen", "127.0.0.1:0", "--dir"]).arg(dir);
        command.args(["--devices", &DEVICES.to_string()]);
        command.args(["--device-size", &options.device_size.to_string()]);
        command.args(["--scheme", &options.scheme.to_string()]);
        command.args(["--volume", &format!("crash={}", options.volume_size)]);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(errors);
        let mut child = command.spawn().map_err(Failure::failed)?;
        match ready(&mut child) {
            Some(target) => Ok(Daemon { child, target }),
            None => {
                let _ = child.kill();
                let _ = child.wait();
                let said = std::fs::read_to_string(&log).unwrap_or_default();
                Err(Failure::failed(format!("the daemon did not become ready; it said:\n{said}")))
            }
        }
    }

    async fn session(&self) -> Result<Session, Failure> {
        Session::connect(&self.target, Digests { header: true, data: true }).await.map_err(Failure::failed)
    }

    /// kill -9. A daemon that has ended by itself is found by [`Daemon::ended`].
    fn kill(&mut self) {
        let _ = self.child.kill();
    }

    fn ended(&mut self) -> Result<(), Failure> {
        use std::os::unix::process::ExitStatusExt;
        let status = self.child.wait().map_err(Failure::failed)?;
        match status.signal() {
            Some(9) => Ok(()),
            _ => Err(Failure::failed(format!("the daemon ended by itself: {status}"))),
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Reads the child's output up to the ready line; a thread reads the rest, so that it never waits for us.
fn ready(child: &mut Child) -> Option<Target> {
    let output = child.stdout.take()?;
    let (tell, hear) = mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            if let Some(target) = parse(&line) {
                // The only reader may have given up already.
                let _ = tell.send(target);
            }
        }
    });
    hear.recv_timeout(READY_TIMEOUT).ok()
}

fn parse(line: &str) -> Option<Target> {
    let value: Value = serde_json::from_str(line).ok()?;
    if value["ready"] != true {
        return None;
    }
    let addr: SocketAddr = value["listen"].as_str()?.parse().ok()?;
    Some(Target { addr, nqn: Some(value["nqn"].as_str()?.to_owned()) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ready_line_names_the_target() {
        let target = parse(r#"{"ready":true,"listen":"127.0.0.1:7","nqn":"nqn.a"}"#).unwrap();
        assert_eq!((target.addr.port(), target.nqn.as_deref()), (7, Some("nqn.a")));
        for other in ["", "starting", "{}", r#"{"ready":false}"#] {
            assert!(parse(other).is_none(), "{other}");
        }
    }
}
