//! Debian's kernel under QEMU attaches a volume, before and after the daemon was killed. The guest's side is
//! `tests/e2e/lab/kernel-host.sh`.

use super::Size;
use super::daemon::{Daemon, Setup, free_port, store};
use super::scratch::Scratch;
use crate::cmd;
use anyhow::{Result, ensure};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

pub fn run(size: Size) -> Result<()> {
    let lab = cmd::root().join("tests/e2e/lab");
    cmd::run(&mut Command::new(lab.join("build-guest")), Duration::from_secs(300))?;

    let scratch = Scratch::new("kernel-host")?;
    let port = free_port()?;
    let mut setup = Setup {
        dir: store(scratch.path()),
        device_size: "1G",
        volumes: &["demo=1G"],
        lba: "4096",
        port,
        nbd_port: free_port()?,
        advertise: Some(format!("10.0.2.2:{port}")),
    };
    let out = scratch.folder("out")?;

    let mut daemon = Daemon::start(&setup)?;
    let uuids: Vec<_> = daemon.ready.volumes.iter().map(|v| v.uuid.clone()).collect();
    let guest = Guest { lab: &lab, scratch: scratch.path(), port, nqn: daemon.ready.nqn.clone(), size };
    guest.boot("first", &["-o".into(), out.display().to_string()])?;
    let identifiers = std::fs::read_to_string(out.join("identifiers"))?;
    for uuid in &uuids {
        ensure!(identifiers.contains(uuid), "the host sees no volume with UUID {uuid}:\n{identifiers}");
    }
    daemon.alive()?;
    daemon.kill()?;
    println!("the daemon was killed with -9");

    // The second start adds a volume of 512-byte blocks, for the small writes.
    (setup.volumes, setup.lba) = (&["demo=1G", "sectors=512M"], "512");
    let mut daemon = Daemon::start(&setup)?;
    let kept = |uuid| daemon.ready.volumes.iter().any(|v| &v.uuid == uuid);
    ensure!(uuids.iter().all(kept), "UUIDs changed: {:?}", daemon.ready.volumes);
    guest.boot("second", &["-a".into(), format!("{}:/lab/job/before", out.display())])?;
    daemon.alive()?;
    scratch.passed();
    Ok(())
}

struct Guest<'a> {
    lab: &'a Path,
    scratch: &'a Path,
    port: u16,
    nqn: String,
    size: Size,
}

impl Guest<'_> {
    fn boot(&self, phase: &str, options: &[String]) -> Result<()> {
        let limit = if self.size.short { 300 } else { 900 };
        let fio_size = if self.size.short { "12m" } else { "96m" };
        let mut command = Command::new(self.lab.join("boot-guest"));
        // Eight processors, because the kernel opens no more I/O queues than it has processors.
        command.args(["-c", "8", "-t", &limit.to_string()]);
        command.arg("-l").arg(self.scratch.join(format!("{phase}.console")));
        command.args(options).arg(self.lab.join("kernel-host.sh"));
        command.args([phase, &self.port.to_string(), &self.nqn, fio_size]);
        cmd::run(&mut command, Duration::from_secs(limit + 30))
    }
}
