//! Two of eight devices of different sizes are given up under fio, and two others rot: nothing is lost, and in the end
//! everything is where it should be.

use super::Size;
use super::daemon::{self, Daemon, Devices, Setup, free_port, store};
use super::files::Random;
use super::nbd_raw::{program, same};
use super::scratch::Scratch;
use crate::{cmd, tools};
use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const MIB: u64 = 1 << 20;
const BLOCK: u64 = 4096;
const LIMIT: Duration = Duration::from_secs(300);
/// The largest is less than a quarter of the others together, also when two of them are gone: with 2+2, more than that
/// cannot be used.
const DEVICES_MIB: [u64; 8] = [384, 416, 448, 480, 512, 544, 576, 608];
/// Farther than this from its share of the capacity no device's use may be, in percent.
const DEVIATION_MAX: f64 = 2.0;
/// Rows of a slot; slots lie at multiples of their size.
const SLOT_ROWS: u64 = 512;
/// Rows that are drawn on each of two devices; a byte is changed in those that lie in slots that hold something.
const FLIPS: usize = 400;

/// What is looked at of `peristyle pool balance --json`.
#[derive(Deserialize, Debug, Clone)]
struct Balance {
    devices: Vec<DeviceUse>,
    deviation_percent: f64,
    repair: Repair,
}

#[derive(Deserialize, Debug, Clone)]
struct DeviceUse {
    path: String,
    slots_used: u64,
}

#[derive(Deserialize, Debug, Clone)]
struct Repair {
    lost_columns: u64,
    draining_columns: u64,
    remade_columns: u64,
    moved_columns: u64,
    /// Told when a test fails.
    #[allow(dead_code)]
    failed_remakes: u64,
    damaged_rows: u64,
    scrub_left: u64,
    bytes_s: u64,
}

/// What is looked at of a device in `peristyle device check --json`.
#[derive(Deserialize)]
struct Checked {
    findings: Vec<Finding>,
}

#[derive(Deserialize)]
struct Finding {
    kind: String,
}

impl Balance {
    fn is_even(&self) -> bool {
        self.deviation_percent <= DEVIATION_MAX
    }
}

pub fn run(size: Size) -> Result<()> {
    let scratch = Scratch::new("repair")?;
    let paths = make_devices(scratch.path())?;
    let setup = Setup {
        dir: store(scratch.path()),
        devices: Devices::Paths(paths.clone()),
        scheme: "2+2",
        volumes: &["v=512M"],
        lba: "4096",
        port: free_port()?,
        nbd_port: free_port()?,
        advertise: None,
    };
    let uri = format!("nbd://127.0.0.1:{}/v", setup.nbd_port);
    let pool = Pool { store: &setup.dir };
    let mut daemon = Daemon::start(&setup)?;
    lose_two(&pool, [&paths[5], &paths[7]], &uri, scratch.path(), size)?;
    daemon.alive()?;

    // What was open is sealed by the next start: then all columns that hold something have checksums of their rows.
    daemon.kill()?;
    let mut daemon = Daemon::start(&setup)?;
    let (before, after) = (scratch.path().join("before"), scratch.path().join("after"));
    program("nbdcopy", &[&uri, &before.display().to_string()])?;
    std::thread::sleep(Duration::from_secs(3));
    // Under the daemon, which frees nothing while nobody writes: so what is damaged now is what there is to find.
    let copies = [scratch.path().join("copy-0"), scratch.path().join("copy-1")];
    for ((path, copy), seed) in paths.iter().zip(&copies).zip(1..) {
        rot(path, seed)?;
        std::fs::copy(path, copy)?;
    }
    let damaged = damaged_rows(&setup.dir, &copies)?;
    ensure!(damaged > 0, "no row that holds something was hit");
    program("nbdcopy", &[&uri, &after.display().to_string()])?;
    same(&before, &after)?;
    pool.command(&["pool", "scrub"])?;
    let scrubbed = pool.when(|now| now.repair.scrub_left == 0 && now.repair.lost_columns == 0)?;
    let found = scrubbed.repair.damaged_rows;
    ensure!(found == damaged, "{damaged} rows were damaged, and {found} were found");
    println!("{damaged} rows of two devices were damaged: every read was right, and a scrub repaired them");
    daemon.alive()?;
    daemon.kill()?;
    let left = damaged_rows(&setup.dir, &paths)?;
    ensure!(left == 0, "{left} rows are damaged after the scrub");

    let mut daemon = Daemon::start(&setup)?;
    join_and_leave(&pool, scratch.path(), &paths)?;
    program("nbdcopy", &[&uri, &after.display().to_string()])?;
    same(&before, &after)?;
    daemon.alive()?;
    scratch.passed();
    Ok(())
}

/// A device joins, one is replaced, one leaves, and one is kept after all: each time use is even in the end.
fn join_and_leave(pool: &Pool<'_>, folder: &Path, paths: &[PathBuf]) -> Result<()> {
    let new = [600, 400].map(|mib: u64| (folder.join(format!("new-{mib}")), mib));
    for (path, mib) in &new {
        File::create(path)?.set_len(mib * MIB)?;
    }
    let name = |path: &Path| path.display().to_string();
    pool.command(&["device", "add", &name(&new[0].0)])?;
    let moved = pool.when(|now| now.repair.moved_columns > 0 && now.is_even())?.repair.moved_columns;
    pool.command(&["device", "replace", &name(&paths[1]), &name(&new[1].0)])?;
    pool.until_gone(&paths[1])?;
    pool.command(&["device", "remove", &name(&paths[2])])?;
    pool.until_gone(&paths[2])?;
    pool.command(&["device", "remove", &name(&paths[3])])?;
    pool.command(&["device", "keep", &name(&paths[3])])?;
    let now = pool.when(|now| now.repair.draining_columns == 0 && now.is_even())?;
    println!(
        "a device joined, another was replaced and a third left, {moved} columns moved to the first: no device is farther \
         than {:.1} % from its share",
        now.deviation_percent
    );
    Ok(())
}

fn make_devices(folder: &Path) -> Result<Vec<PathBuf>> {
    let make = |(i, mib): (usize, u64)| {
        let path = folder.join(format!("device-{i}"));
        File::create(&path)?.set_len(mib * MIB)?;
        Ok(path)
    };
    DEVICES_MIB.into_iter().enumerate().map(make).collect()
}

/// fio writes and compares while two devices are given up, one after the other; afterwards use is even.
fn lose_two(pool: &Pool<'_>, lost: [&Path; 2], uri: &str, folder: &Path, size: Size) -> Result<()> {
    let mut fio = Running(fio(uri, &folder.join("fio.log"), size)?);
    for path in lost {
        let device = path.display().to_string();
        std::thread::sleep(Duration::from_secs(3));
        ensure!(fio.0.try_wait()?.is_none(), "fio is done before device {device} is given up");
        pool.command(&["device", "fail", &device])?;
    }
    let (mut fastest, until) = (0, Instant::now() + LIMIT);
    let status = loop {
        fastest = fastest.max(pool.balance()?.repair.bytes_s);
        match fio.0.try_wait()? {
            Some(status) => break status,
            None => ensure!(Instant::now() < until, "fio does not end"),
        }
        std::thread::sleep(Duration::from_millis(100));
    };
    ensure!(status.success(), "fio: {status}; what it said: {}", folder.join("fio.log").display());
    let even = |now: &Balance| now.repair.lost_columns + now.repair.draining_columns == 0 && now.is_even();
    let now = pool.when(even)?;
    ensure!(now.repair.remade_columns > 0, "nothing was rebuilt: {now:?}");
    println!(
        "two of eight devices given up under fio: no error, {} columns rebuilt, at {} MiB/s beside fio at the most, and {} \
         moved; no device is farther than {:.1} % from its share",
        now.repair.remade_columns,
        fastest / MIB,
        now.repair.moved_columns,
        now.deviation_percent
    );
    Ok(())
}

fn fio(uri: &str, log: &Path, size: Size) -> Result<Child> {
    let log = File::create(log)?;
    let mut fio = Command::new("fio");
    fio.args(["--name=verify", "--ioengine=nbd", &format!("--uri={uri}"), "--size=384m"]);
    // So slow that it is still at it when the devices go, however fast the machine is.
    fio.args(["--rw=randwrite", "--bsrange=4k-128k", "--iodepth=16", "--rate=,32m"]);
    fio.arg(if size.short { "--io_size=384m" } else { "--io_size=2g" });
    fio.args(["--verify=crc32c", "--verify_fatal=1", "--do_verify=1", "--verify_state_save=0"]);
    fio.args(["--verify_backlog=256"]);
    fio.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    fio.spawn().context("cannot start fio")
}

/// Ended with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// Changes a byte in each of many rows all over the slots of a device that hold something. In a free slot it would be no
/// damage yet, and become some where a repair puts a column there that has a hole at this row.
fn rot(path: &Path, seed: u64) -> Result<()> {
    let file = File::options().read(true).write(true).open(path)?;
    let rows = file.metadata()?.len() / BLOCK;
    let mut slot = vec![0; (SLOT_ROWS * BLOCK) as usize];
    let mut holds = Vec::new();
    for at in 0..rows / SLOT_ROWS {
        file.read_exact_at(&mut slot, at * SLOT_ROWS * BLOCK)?;
        holds.push(slot.iter().any(|byte| *byte != 0));
    }
    let mut random = Random(seed);
    // The tables and labels in front and at the end have their own tests.
    let front = 4096.min(rows / 8);
    let mut hit = BTreeSet::new();
    while hit.len() < FLIPS {
        hit.insert(front + random.below(rows - front - 16));
    }
    let in_use = |row: &u64| holds.get((row / SLOT_ROWS) as usize).is_some_and(|holds| *holds);
    for row in hit.into_iter().filter(in_use) {
        let at = row * BLOCK + random.below(BLOCK);
        let mut byte = [0];
        file.read_exact_at(&mut byte, at)?;
        file.write_all_at(&[byte[0] ^ 1 << random.below(8)], at)?;
    }
    Ok(())
}

/// Rows of sealed columns that are not what they were, as the offline check finds them.
fn damaged_rows(store: &Path, paths: &[PathBuf]) -> Result<u64> {
    let mut command = Command::new(tools::daemon());
    command.args(["device", "check", "--json"]).args(paths);
    // It ends badly when it finds something.
    let said = cmd::answer(&mut command, &store.with_extension("checked"), LIMIT)?;
    let (_, text) = said.context("device check does not end")?;
    // It is followed by the verdict.
    let json = text.lines().next().context("device check says nothing")?;
    let reports: Vec<Checked> = serde_json::from_str(json).context("device check")?;
    let findings = reports.iter().flat_map(|report| &report.findings);
    // A row that no frame wrote is zeros, and has to stay so: parity is made with it.
    let is_row = |finding: &&Finding| matches!(finding.kind.as_str(), "row-damaged" | "hole-not-zero");
    Ok(findings.filter(is_row).count() as u64)
}

/// The daemon's pool, by its own commands.
struct Pool<'a> {
    store: &'a Path,
}

impl Pool<'_> {
    fn command(&self, arguments: &[&str]) -> Result<String> {
        daemon::ask(self.store, arguments)
    }

    fn balance(&self) -> Result<Balance> {
        let text = self.command(&["pool", "balance", "--json"])?;
        serde_json::from_str(&text).with_context(|| format!("pool balance: {text}"))
    }

    /// Waits until a device that was to leave serves nothing any more.
    fn until_gone(&self, path: &Path) -> Result<()> {
        let path = path.display().to_string();
        let is_there = |now: &Balance| now.devices.iter().any(|d| d.path == path && d.slots_used > 0);
        self.when(|now| !is_there(now)).map(drop)
    }

    fn when(&self, wanted: impl Fn(&Balance) -> bool) -> Result<Balance> {
        let until = Instant::now() + LIMIT;
        loop {
            let now = self.balance()?;
            if wanted(&now) {
                return Ok(now);
            }
            ensure!(Instant::now() < until, "the pool stays like this: {now:?}");
            std::thread::sleep(Duration::from_millis(200));
        }
    }
}
