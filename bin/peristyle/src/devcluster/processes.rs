//! The processes of a development cluster: its nodes, and what it takes to start and end one.

use super::files::Layout;
use crate::cli::DevOptions;
use crate::client::Client;
use crate::failure::Failure;
use peristyle_control::Token;
use peristyle_control::api::Request;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A process that was asked to stop and does not is killed.
const STOP_LIMIT: Duration = Duration::from_secs(15);
pub(super) const PAUSE: Duration = Duration::from_millis(20);
/// A node that is asked how it does answers in this time, or does not.
pub const ASK_LIMIT: Duration = Duration::from_secs(1);

pub(super) fn failed(what: &str, e: impl std::fmt::Display) -> Failure {
    Failure::failed(format!("{what}: {e}"))
}

/// Appends what a process says to a file.
pub(super) fn logged(command: &mut Command, log: &Path) -> std::io::Result<Child> {
    let file = File::options().create(true).append(true).open(log)?;
    command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file).spawn()
}

/// This program.
pub(super) fn program() -> Result<PathBuf, Failure> {
    std::env::current_exe().map_err(|e| failed("this program's path", e))
}

pub(super) fn signal(pid: u32, name: &str) -> Result<(), Failure> {
    let status = Command::new("sh").arg("-c").arg(format!("kill -s {name} {pid}")).status();
    match status {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(Failure::failed(format!("kill -s {name} {pid}: {status}"))),
        Err(e) => Err(failed("sh", e)),
    }
}

/// Waits for the end of a process that was asked for it.
pub(super) fn wait_or_kill(child: &mut Child) {
    let start = Instant::now();
    while matches!(child.try_wait(), Ok(None)) {
        if start.elapsed() > STOP_LIMIT {
            let _ = child.kill();
            let _ = child.wait();
            return;
        }
        std::thread::sleep(PAUSE);
    }
}

/// One node's process, which may not run.
pub struct Node {
    pub number: u16,
    pub dir: PathBuf,
    pub admin: PathBuf,
    config: PathBuf,
    device_bytes: u64,
    child: Option<Child>,
    /// By SIGSTOP.
    pub stopped: bool,
}

impl Node {
    pub fn new(layout: &Layout, number: u16, token: &Token, options: &DevOptions) -> Result<Node, Failure> {
        let config = layout.write_config(number, token)?;
        let (dir, admin) = (layout.node_dir(number), layout.admin(number));
        let device_bytes = options.device_size;
        let node = Node { number, dir, admin, config, device_bytes, child: None, stopped: false };
        // One that a former run has left would keep the devices.
        if let Ok(mut left) = Client::connect_within(Some(node.admin.clone()), ASK_LIMIT) {
            let _ = left.call(&Request::Shutdown);
            let start = Instant::now();
            while node.admin.exists() && start.elapsed() < STOP_LIMIT {
                std::thread::sleep(PAUSE);
            }
        }
        Ok(node)
    }

    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }
    /// It runs, and is not stopped.
    pub fn answers(&self) -> bool {
        self.child.is_some() && !self.stopped
    }
    pub fn state(&self) -> &'static str {
        match (&self.child, self.stopped) {
            (None, _) => "not running",
            (_, true) => "stopped",
            _ => "running",
        }
    }

    pub fn start(&mut self) -> Result<(), Failure> {
        if self.child.is_some() {
            return Err(Failure::failed(format!("node {} runs", self.number)));
        }
        let mut command = Command::new(program()?);
        command.arg("node").arg("--config").arg(&self.config);
        command.args(["--development", &self.device_bytes.to_string(), "--json"]);
        let child = logged(&mut command, &self.dir.join("log")).map_err(|e| failed("a node's process", e))?;
        (self.child, self.stopped) = (Some(child), false);
        Ok(())
    }

    /// kill -9.
    pub fn kill(&mut self) -> Result<(), Failure> {
        let mut child = self.child.take().ok_or_else(|| self.not_running())?;
        self.stopped = false;
        child.kill().and_then(|()| child.wait()).map(drop).map_err(|e| failed("kill", e))
    }

    /// SIGSTOP, or SIGCONT.
    pub fn set_stopped(&mut self, stopped: bool) -> Result<(), Failure> {
        let pid = self.pid().ok_or_else(|| self.not_running())?;
        signal(pid, if stopped { "STOP" } else { "CONT" })?;
        self.stopped = stopped;
        Ok(())
    }

    /// SIGTERM; returns when it has ended.
    pub fn end(&mut self) -> Result<(), Failure> {
        self.pid().ok_or_else(|| self.not_running())?;
        self.ask_to_stop();
        self.wait_or_kill();
        Ok(())
    }

    fn not_running(&self) -> Failure {
        Failure::failed(format!("node {} does not run", self.number))
    }

    /// Says so, once, when it has ended and nobody asked for that.
    pub fn has_ended(&mut self) -> Option<String> {
        let status = self.child.as_mut()?.try_wait().ok().flatten()?;
        self.child = None;
        Some(format!("node {} has ended: {status}; see {}", self.number, self.dir.join("log").display()))
    }

    pub fn ask_to_stop(&mut self) {
        if let Some(pid) = self.pid() {
            if self.stopped {
                let _ = self.set_stopped(false);
            }
            let _ = signal(pid, "TERM");
        }
    }

    pub fn wait_or_kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            wait_or_kill(&mut child);
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if self.child.is_some() {
            let _ = self.kill();
        }
    }
}
