//! Images in and out of a volume by programs that speak NBD themselves: nbdcopy, qemu-img, fio.

use super::Size;
use super::daemon::{Daemon, Devices, Setup, free_port, store};
use super::files::Random;
use super::scratch::Scratch;
use crate::cmd;
use anyhow::{Result, ensure};
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

const MIB: u64 = 1 << 20;
const LIMIT: Duration = Duration::from_secs(300);

pub fn run(size: Size) -> Result<()> {
    let scratch = Scratch::new("nbd-raw")?;
    let setup = Setup {
        dir: store(scratch.path()),
        devices: Devices::Files("1G"),
        scheme: "4+2",
        volumes: &["raw=256M"],
        lba: "4096",
        port: free_port()?,
        nbd_port: free_port()?,
        advertise: None,
    };
    let mut daemon = Daemon::start(&setup)?;
    let uri = format!("nbd://127.0.0.1:{}/raw", setup.nbd_port);
    let bytes = daemon.volume("raw")?.bytes;
    let image = scratch.path().join("image");
    make_image(&image, bytes, 1)?;
    let path = |name: &str| scratch.path().join(name).display().to_string();

    // nbdcopy with several connections and requests, there and back.
    program("nbdcopy", &["--connections=4", &path("image"), &uri])?;
    program("nbdcopy", &[&uri, &path("back")])?;
    same(&image, &scratch.path().join("back"))?;
    println!("nbdcopy: {} MiB there and back, equal", bytes / MIB);

    daemon.alive()?;
    daemon.kill()?;
    let mut daemon = Daemon::start(&setup)?;
    program("nbdcopy", &[&uri, &path("after")])?;
    same(&image, &scratch.path().join("after"))?;
    println!("nbdcopy: equal after kill -9 and a restart");

    make_image(&image, bytes, 2)?;
    program("qemu-img", &["convert", "-n", "-f", "raw", "-O", "raw", &path("image"), &uri])?;
    program("qemu-img", &["convert", "-f", "raw", "-O", "qcow2", &uri, &path("back.qcow2")])?;
    program("qemu-img", &["compare", "-f", "raw", "-F", "qcow2", &path("image"), &path("back.qcow2")])?;
    program("nbdinfo", &["--map", "--totals", &uri])?;
    holes(&uri, &image)?;

    let mut fio = Command::new("fio");
    fio.args(["--name=verify", "--ioengine=nbd", &format!("--uri={uri}"), "--size=64m"]);
    fio.arg(if size.short { "--io_size=64m" } else { "--io_size=512m" });
    fio.args(["--rw=randwrite", "--bsrange=4k-512k", "--iodepth=32"]);
    fio.args(["--verify=crc32c", "--verify_fatal=1", "--do_verify=1", "--verify_state_save=0"]);
    cmd::run_quietly(&mut fio, &scratch.path().join("fio.log"), LIMIT)?;
    println!("fio: random writes through its own NBD engine verified");
    daemon.alive()?;
    scratch.passed();
    Ok(())
}

/// Random megabytes with holes between.
fn make_image(path: &Path, bytes: u64, seed: u64) -> Result<()> {
    let mut random = Random(seed);
    let file = File::create(path)?;
    file.set_len(bytes)?;
    for at in (0..bytes).step_by(MIB as usize) {
        if random.below(3) > 0 {
            let length = random.below(MIB.min(bytes - at)) as usize;
            file.write_all_at(&random.bytes(length), at)?;
        }
    }
    Ok(())
}

pub fn same(one: &Path, other: &Path) -> Result<()> {
    let (mut a, mut b) = (File::open(one)?, File::open(other)?);
    ensure!(a.metadata()?.len() == b.metadata()?.len(), "{} has another length", other.display());
    let (mut left, mut right) = (vec![0; MIB as usize], vec![0; MIB as usize]);
    let mut at = 0;
    loop {
        let length = a.read(&mut left)?;
        if length == 0 {
            return Ok(());
        }
        b.read_exact(&mut right[..length])?;
        ensure!(left[..length] == right[..length], "{} differs in the MiB at {at}", other.display());
        at += length;
    }
}

/// What a trim has emptied is a hole to clients, and only that: a copy leaves it out.
fn holes(uri: &str, image: &Path) -> Result<()> {
    let map = |what: &str| -> Result<u64> {
        let output = Command::new("nbdinfo").args(["--map", "--totals", uri]).output()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let bytes = text
            .lines()
            .filter(|line| line.ends_with(what))
            .filter_map(|line| line.split_whitespace().next());
        Ok(bytes.filter_map(|bytes| bytes.parse::<u64>().ok()).sum())
    };
    let (data, before) = (map("data")?, map("hole,zero")?);
    ensure!(
        data > 0 && before > 0 && data + before == image.metadata()?.len(),
        "{data} of data, {before} of holes"
    );
    program("qemu-io", &["-f", "raw", "-c", "discard 16M 64M", uri])?;
    let after = map("hole,zero")?;
    ensure!(after >= 64 * MIB && map("data")? < data, "{after} of holes after a trim of 64 MiB");
    println!("nbdinfo: {} MiB of holes, {} MiB after a trim", before / MIB, after / MIB);
    Ok(())
}

pub fn program(name: &str, arguments: &[&str]) -> Result<()> {
    cmd::run(Command::new(name).args(arguments), LIMIT)
}
