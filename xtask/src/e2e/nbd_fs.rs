//! ext4 and xfs of this machine's own kernel on a volume: NBD export, `nbdfuse`, loop device, file system.

use super::Size;
use super::daemon::{Daemon, Devices, Setup, free_port, store};
use super::files::{self, Pages};
use super::scratch::Scratch;
use crate::cmd;
use anyhow::{Context, Result, bail, ensure};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const MINUTE: Duration = Duration::from_secs(60);
const SEED: u64 = 20_000;
/// As many random operations as the issue asks for; they take seconds, so the short run does them too.
const OPERATIONS: u64 = 20_000;
/// Syncs of the page writer before the daemon is killed under it.
const SYNCS_BEFORE_KILL: usize = 20;

pub fn run(size: Size) -> Result<()> {
    ensure!(cmd::is_root(), "loop devices and mounts need root");
    let scratch = Scratch::new("nbd-fs")?;
    let setup = Setup {
        dir: store(scratch.path()),
        devices: Devices::Files("1G"),
        scheme: "4+2",
        volumes: &["ext4=1G", "xfs=1G"],
        lba: "4096",
        port: free_port()?,
        nbd_port: free_port()?,
        advertise: None,
    };
    let tree = scratch.folder("tree")?;
    files::make_tree(&tree, SEED)?;
    let repository = cmd::root();
    files::copy_tree(&repository.join("xtask"), &tree.join("xtask"))?;
    files::copy_tree(&repository.join("crates"), &tree.join("crates"))?;

    for kind in ["ext4", "xfs"] {
        println!("-- {kind}");
        through_a_crash(&setup, scratch.path(), kind, &tree, size).with_context(|| kind.to_owned())?;
    }
    scratch.passed();
    Ok(())
}

fn through_a_crash(setup: &Setup, scratch: &Path, kind: &str, tree: &Path, size: Size) -> Result<()> {
    let daemon = Daemon::start(setup)?;
    let bytes = daemon.volume(kind)?.bytes;
    let attached = Attached::new(scratch, setup.nbd_port, kind, bytes)?;
    run_program(&[
        &format!("mkfs.{kind}"),
        "-q",
        if kind == "ext4" { "-F" } else { "-f" },
        &attached.device,
    ])?;
    let mounted = Mounted::new(&attached, scratch, kind)?;

    let copied = files::copy_tree(tree, &mounted.path.join("tree"))?;
    let exercised = files::exercise(&mounted.path, SEED, OPERATIONS)?;
    // Without this the kernel would answer from its memory, not from the volume.
    fs::write("/proc/sys/vm/drop_caches", "3")?;
    exercised.compare()?;
    files::compare_trees(tree, &mounted.path.join("tree"))?;
    println!("{copied} files copied, {OPERATIONS} random operations agree with their model");
    fio(&mounted.path.join("fio"), &scratch.join("fio.log"), if size.short { "32m" } else { "256m" })?;
    let pages = Pages::create(mounted.path.join("pages"))?;
    run_program(&["sync", "--file-system", &mounted.path.display().to_string()])?;

    let pages = kill_under_writer(daemon, pages)?;
    println!("the daemon was killed with -9 under a writer after {SYNCS_BEFORE_KILL} syncs");
    // Nothing can be written back any more: the file system notices, and lets go.
    drop(mounted);
    drop(attached);

    let daemon = Daemon::start(setup)?;
    let attached = Attached::new(scratch, setup.nbd_port, kind, daemon.volume(kind)?.bytes)?;
    // Mounting replays the file system's own journal, as after any loss of power.
    let mounted = Mounted::new(&attached, scratch, kind)?;
    files::compare_trees(tree, &mounted.path.join("tree"))?;
    exercised.compare()?;
    pages.check()?;
    mounted.unmount()?;
    check_file_system(kind, &attached.device)?;
    println!("tree equal, {kind} clean, every synced page there");
    attached.detach()
}

/// Kills the daemon in the middle of a writer's work and returns what the writer knows.
fn kill_under_writer(daemon: Daemon, mut pages: Pages) -> Result<Pages> {
    let (sender, receiver) = std::sync::mpsc::channel();
    let writer = std::thread::spawn(move || -> Result<Pages> {
        pages.write_until_failure(SEED, || {
            sender.send(()).ok();
        })?;
        Ok(pages)
    });
    for _ in 0..SYNCS_BEFORE_KILL {
        receiver.recv_timeout(2 * MINUTE).context("the writer got no sync through")?;
    }
    daemon.kill()?;
    match writer.join() {
        Ok(pages) => pages,
        Err(_) => bail!("the writer panicked"),
    }
}

fn check_file_system(kind: &str, device: &str) -> Result<()> {
    match kind {
        "ext4" => run_program(&["e2fsck", "-fn", device]),
        _ => run_program(&["xfs_repair", "-n", device]),
    }
}

fn fio(file: &Path, log: &Path, size: &str) -> Result<()> {
    let mut fio = Command::new("fio");
    fio.arg("--name=verify").arg(format!("--filename={}", file.display())).arg(format!("--size={size}"));
    fio.args(["--rw=randwrite", "--bsrange=4k-256k", "--ioengine=libaio", "--direct=1", "--iodepth=32"]);
    fio.args(["--verify=crc32c", "--verify_fatal=1", "--do_verify=1", "--verify_state_save=0"]);
    cmd::run_quietly(&mut fio, log, 5 * MINUTE)
}

fn run_program(words: &[&str]) -> Result<()> {
    cmd::run(Command::new(words[0]).args(&words[1..]), 5 * MINUTE)
}

/// A volume as a block device of this machine: `nbdfuse` shows the export as a file, a loop device sits on it.
struct Attached {
    folder: PathBuf,
    device: String,
}

impl Attached {
    fn new(scratch: &Path, port: u16, export: &str, bytes: u64) -> Result<Self> {
        let folder = scratch.join(format!("fuse-{export}"));
        fs::create_dir_all(&folder)?;
        let file = folder.join("disk");
        // It ends when the folder is unmounted. Once the daemon is killed it has much to say, as it should.
        let log = File::options().create(true).append(true).open(scratch.join("nbdfuse.log"))?;
        let mut nbdfuse = Command::new("nbdfuse");
        nbdfuse.arg(&file).arg(format!("nbd://127.0.0.1:{port}/{export}"));
        nbdfuse.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        nbdfuse.spawn().context("cannot start nbdfuse")?;
        let mut attached = Self { folder, device: String::new() };
        let end = Instant::now() + MINUTE;
        while fs::metadata(&file).map(|m| m.len()).ok() != Some(bytes) {
            ensure!(Instant::now() < end, "nbdfuse shows no file of {bytes} bytes at {}", file.display());
            std::thread::sleep(Duration::from_millis(20));
        }
        let output = Command::new("losetup").args(["--find", "--show"]).arg(&file).output()?;
        ensure!(output.status.success(), "losetup: {}", String::from_utf8_lossy(&output.stderr));
        attached.device = String::from_utf8(output.stdout)?.trim().to_owned();
        Ok(attached)
    }

    fn detach(mut self) -> Result<()> {
        let (device, folder) = (std::mem::take(&mut self.device), self.folder.display().to_string());
        run_program(&["losetup", "--detach", &device])?;
        run_program(&["fusermount3", "-u", &folder])
    }
}

/// After a failure: as much as goes.
impl Drop for Attached {
    fn drop(&mut self) {
        if !self.device.is_empty() {
            Command::new("losetup").args(["--detach", &self.device]).status().ok();
            Command::new("fusermount3").args(["-u", "-z"]).arg(&self.folder).status().ok();
        }
    }
}

struct Mounted {
    path: PathBuf,
}

impl Mounted {
    fn new(attached: &Attached, scratch: &Path, kind: &str) -> Result<Self> {
        let path = scratch.join(format!("mount-{kind}"));
        fs::create_dir_all(&path)?;
        run_program(&["mount", "-t", kind, &attached.device, &path.display().to_string()])?;
        Ok(Self { path })
    }

    fn unmount(self) -> Result<()> {
        let path = self.path.display().to_string();
        std::mem::forget(self);
        run_program(&["umount", &path])
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        Command::new("umount").arg(&self.path).status().ok();
    }
}
