//! Debian's kernel under QEMU attaches a volume, before and after the daemon was killed. The guest's side is
//! `tests/e2e/lab/kernel-host.sh`.

use super::Size;
use super::daemon::{Daemon, Devices, Setup, free_port, store};
use super::scratch::Scratch;
use super::space::SPACE;
use crate::{cmd, tools};
use anyhow::{Result, bail, ensure};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

/// What the guest prints when it wants the daemon killed and started again, with fio waiting for its answers.
const KILL: &str = "KILL";
/// What it prints before the arguments of `peristyle volume resize demo`.
const RESIZE: &str = "RESIZE ";

/// The lab's folder, the guest in it built.
pub fn lab() -> Result<PathBuf> {
    let lab = cmd::root().join("tests/e2e/lab");
    cmd::run(&mut Command::new(lab.join("build-guest")), Duration::from_secs(300))?;
    Ok(lab)
}

pub fn run(size: Size) -> Result<()> {
    let lab = lab()?;
    let scratch = Scratch::new("kernel-host")?;
    let port = free_port()?;
    let mut setup = Setup {
        dir: store(scratch.path()),
        devices: Devices::Files("1G"),
        scheme: "4+2",
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
    guest.boot("first", &["-o".into(), out.display().to_string()], |asked| {
        match asked.strip_prefix(RESIZE) {
            Some(arguments) => resize(&setup.dir, arguments),
            None => bail!("the first guest asks for {asked}"),
        }
    })?;
    let identifiers = std::fs::read_to_string(out.join("identifiers"))?;
    for uuid in &uuids {
        ensure!(identifiers.contains(uuid), "the host sees no volume with UUID {uuid}:\n{identifiers}");
    }
    daemon.alive()?;
    daemon.kill()?;
    println!("the daemon was killed with -9");

    // The second start adds a volume of 512-byte blocks, for the small writes.
    (setup.volumes, setup.lba) = (&["demo=1G", "sectors=512M"], "512");
    let daemon = Daemon::start(&setup)?;
    let kept = |uuid| daemon.ready.volumes.iter().any(|v| &v.uuid == uuid);
    ensure!(uuids.iter().all(kept), "UUIDs changed: {:?}", daemon.ready.volumes);
    let mut daemon = Some(daemon);
    guest.boot("second", &["-a".into(), format!("{}:/lab/job/before", out.display())], |asked| {
        ensure!(asked == KILL, "the second guest asks for {asked}");
        if let Some(daemon) = daemon.take() {
            daemon.kill()?;
        }
        daemon = Some(Daemon::start(&setup)?);
        println!("the daemon was killed with -9 under fio, and started again");
        Ok(())
    })?;
    ensure!(daemon.is_some_and(|mut d| d.alive().is_ok()), "the daemon ended by itself");
    scratch.passed();
    Ok(())
}

pub fn resize(store: &Path, arguments: &str) -> Result<()> {
    let mut command = Command::new(tools::daemon());
    command.arg("--admin").arg(store.join("admin.sock")).args(["volume", "resize", "demo"]);
    cmd::run(command.args(arguments.split(' ')), Duration::from_secs(30))
}

pub struct Guest<'a> {
    pub lab: &'a Path,
    pub scratch: &'a Path,
    pub port: u16,
    pub nqn: String,
    pub size: Size,
}

impl Guest<'_> {
    /// Boots the guest for one phase of its script. `serve` is called with what the script asks for.
    pub fn boot(
        &self,
        phase: &str,
        options: &[String],
        mut serve: impl FnMut(&str) -> Result<()>,
    ) -> Result<()> {
        let limit = if self.size.short { 300 } else { 900 };
        let (fio_size, kills) = if self.size.short { ("12m", "1") } else { ("96m", "5") };
        let mut command = Command::new(self.lab.join("boot-guest"));
        // Eight processors, because the kernel opens no more I/O queues than it has processors.
        command.args(["-c", "8", "-t", &limit.to_string()]);
        command.arg("-l").arg(self.scratch.join(format!("{phase}.console")));
        command.args(options).arg(self.lab.join("kernel-host.sh"));
        command.args([phase, &self.port.to_string(), &self.nqn, fio_size, kills]);
        println!("$ boot-guest kernel-host.sh {phase}");
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
        let output = child.stdout.take().expect("its output is piped");
        // boot-guest keeps the time limit itself, and closes its output when it ends.
        let mut result = Ok(());
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            println!("{line}");
            let asks = line == KILL || line.starts_with(RESIZE) || line.starts_with(SPACE);
            if asks && result.is_ok() {
                result = serve(&line);
            }
        }
        let status = child.wait()?;
        result?;
        ensure!(status.success(), "phase {phase} in the guest: {status}");
        Ok(())
    }
}
