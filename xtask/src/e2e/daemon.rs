//! `peristyle dev` as a child: started, asked for its ready line, killed without warning.

use crate::{cmd, tools};
use anyhow::{Context, Result, anyhow, bail, ensure};
use serde::Deserialize;
use std::fs::File;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

/// An answer takes this long at most; the machine may be busy with other things.
const ASK_LIMIT: Duration = Duration::from_secs(30);

/// What `peristyle dev --json` prints on one line once hosts can connect.
#[derive(Deserialize, Debug)]
pub struct Ready {
    pub ready: bool,
    pub nqn: String,
    pub volumes: Vec<Volume>,
}

#[derive(Deserialize, Debug)]
pub struct Volume {
    pub name: String,
    pub bytes: u64,
    pub uuid: String,
}

/// What a test's daemon stores on.
pub enum Devices {
    /// Six files of this size.
    Files(&'static str),
    /// Six devices in memory: nothing outlives the daemon, and none of them is ever slow.
    Memory(&'static str),
    /// Files that are there.
    Paths(Vec<PathBuf>),
}

/// How a test wants its daemon.
pub struct Setup {
    pub dir: PathBuf,
    pub devices: Devices,
    pub scheme: &'static str,
    /// `NAME=SIZE`
    pub volumes: &'static [&'static str],
    /// Logical block size of volumes that this start creates.
    pub lba: &'static str,
    pub port: u16,
    pub nbd_port: u16,
    /// How hosts reach the node, when that is not how it listens.
    pub advertise: Option<String>,
}

pub struct Daemon {
    child: Child,
    pub ready: Ready,
}

/// A port that is free now. Nobody else on this machine is likely to take it before the daemon does.
pub fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

impl Daemon {
    /// Starts `peristyle dev` and waits until it is ready.
    pub fn start(setup: &Setup) -> Result<Self> {
        let mut command = Command::new(tools::daemon());
        command.arg("dev").arg("--dir").arg(&setup.dir).arg("--json");
        match &setup.devices {
            Devices::Memory(size) => (0..6).for_each(|_| {
                command.args(["--device", &format!("memory:{size}")]);
            }),
            Devices::Files(size) => {
                command.args(["--devices", "6", "--device-size", size]);
            }
            Devices::Paths(paths) => paths.iter().for_each(|path| {
                command.arg("--device").arg(path);
            }),
        }
        command.args(["--scheme", setup.scheme]);
        command.args(["--listen", &format!("127.0.0.1:{}", setup.port)]);
        command.args(["--nbd", &format!("127.0.0.1:{}", setup.nbd_port)]);
        command.args(["--lba", setup.lba]);
        for volume in setup.volumes {
            command.args(["--volume", volume]);
        }
        if let Some(address) = &setup.advertise {
            command.args(["--advertise", address]);
        }
        let log = setup.dir.with_extension("log");
        let errors = File::options().create(true).append(true).open(&log)?;
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(errors.try_clone()?);
        let mut child =
            command.spawn().with_context(|| format!("cannot start {}", tools::daemon().display()))?;
        let lines = cmd::follow(&mut child, errors);
        match ready(&lines) {
            Ok(ready) => Ok(Self { child, ready }),
            Err(error) => {
                child.kill().ok();
                child.wait().ok();
                let said = std::fs::read_to_string(&log).unwrap_or_default();
                Err(error.context(format!("the daemon did not become ready; it said:\n{said}")))
            }
        }
    }

    /// `kill -9`: no chance to write anything more.
    pub fn kill(mut self) -> Result<()> {
        self.alive()?;
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// An error if the daemon has ended by itself.
    pub fn alive(&mut self) -> Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => bail!("the daemon ended by itself: {status}"),
        }
    }

    pub fn volume(&self, name: &str) -> Result<&Volume> {
        self.ready
            .volumes
            .iter()
            .find(|v| v.name == name)
            .ok_or_else(|| anyhow!("no volume {name} in the ready line"))
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// What the program answers, asked of the daemon that serves this store; an error if it ends badly.
pub fn ask(store: &Path, arguments: &[&str]) -> Result<String> {
    let mut command = Command::new(tools::daemon());
    command.arg("--admin").arg(store.join("admin.sock")).args(arguments);
    let what = arguments.join(" ");
    let said = cmd::answer(&mut command, &store.with_extension("said"), ASK_LIMIT)?;
    let (status, text) = said.with_context(|| format!("no answer to {what}"))?;
    ensure!(status.success(), "{what}: {status}: {text}");
    Ok(text)
}

fn ready(lines: &mpsc::Receiver<String>) -> Result<Ready> {
    loop {
        let line = lines.recv_timeout(Duration::from_secs(60)).context("no ready line")?;
        if let Some(ready) = parse(&line) {
            return Ok(ready);
        }
    }
}

fn parse(line: &str) -> Option<Ready> {
    serde_json::from_str::<Ready>(line).ok().filter(|r| r.ready)
}

/// The folder of a test's device files, beside which its log lies.
pub fn store(scratch: &Path) -> PathBuf {
    scratch.join("store")
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn the_ready_line_is_found_among_others() {
        assert!(parse("Peristyle 0.1.0").is_none());
        let line = r#"{"ready":true,"nqn":"nqn.2024-01.x:y","listen":"127.0.0.1:4420","nbd":null,"admin":"/run/a","pid":7,
            "volumes":[{"name":"demo","nsid":1,"bytes":4294967296,"uuid":"5b3f6f2e-0000-4000-8000-000000000001"}]}"#;
        let ready = parse(line).unwrap();
        assert_eq!((ready.nqn.as_str(), ready.volumes[0].bytes), ("nqn.2024-01.x:y", 4 << 30));
    }
}
