//! The processes of a development cluster: nodes, and the store that they share.

use super::NAME;
use super::files::Layout;
use crate::cli::DevOptions;
use crate::client::Client;
use crate::failure::Failure;
use peristyle_control::api::Request;
use peristyle_control::{StoreAt, Token};
use std::fs::File;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A process that was asked to stop and does not is killed.
const STOP_LIMIT: Duration = Duration::from_secs(15);
const STORE_LIMIT: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(20);
/// A node that is asked how it does answers in this time, or does not.
pub const ASK_LIMIT: Duration = Duration::from_secs(1);

fn failed(what: &str, e: impl std::fmt::Display) -> Failure {
    Failure::failed(format!("{what}: {e}"))
}

/// Appends what a process says to a file.
fn logged(command: &mut Command, log: &Path) -> std::io::Result<Child> {
    let file = File::options().create(true).append(true).open(log)?;
    command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file).spawn()
}

/// This program.
fn program() -> Result<PathBuf, Failure> {
    std::env::current_exe().map_err(|e| failed("this program's path", e))
}

fn signal(pid: u32, name: &str) -> Result<(), Failure> {
    let status = Command::new("sh").arg("-c").arg(format!("kill -s {name} {pid}")).status();
    match status {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(Failure::failed(format!("kill -s {name} {pid}: {status}"))),
        Err(e) => Err(failed("sh", e)),
    }
}

/// Waits for the end of a process that was asked for it.
fn wait_or_kill(child: &mut Child) {
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

/// What all nodes share: etcd, if it is installed; else a process that serves the embedded store.
pub struct SharedStore {
    pub at: StoreAt,
    child: Option<Child>,
    log: PathBuf,
}

impl SharedStore {
    /// `token`: a cluster that is there keeps the store that it has.
    pub fn start(layout: &Layout, token: Option<&Token>, without_etcd: bool) -> Result<SharedStore, Failure> {
        let [clients, _] = layout.store_ports();
        let served = match token {
            Some(token) => matches!(token.store, StoreAt::Served(_)),
            None => without_etcd,
        };
        if !served {
            let (at, log) =
                (StoreAt::Etcd(vec![format!("127.0.0.1:{clients}")]), layout.dir.join("etcd.log"));
            // One that a former run has left is the same one.
            if is_healthy(clients) {
                return Ok(SharedStore { at, child: None, log });
            }
            match SharedStore::start_etcd(layout, &log) {
                Ok(child) => return SharedStore { at, child: Some(child), log }.wait(|| is_healthy(clients)),
                Err(e) if e.kind() == std::io::ErrorKind::NotFound && token.is_none() => {
                    let what = "etcd is not installed (Debian: etcd-server): the nodes share the embedded store of one process, \
                                which nothing replaces while it is away";
                    eprintln!("peristyle: {what}");
                }
                Err(e) => return Err(failed("etcd", e)),
            }
        }
        let (addr, log) = (SocketAddr::from(([127, 0, 0, 1], clients)), layout.dir.join("store.log"));
        if TcpStream::connect(addr).is_ok() {
            return Ok(SharedStore { at: StoreAt::Served(addr), child: None, log });
        }
        let mut command = Command::new(program()?);
        command.arg("serve-store").arg("--file").arg(layout.dir.join("store.redb"));
        command.args(["--listen", &addr.to_string(), "--name", NAME]);
        let child = logged(&mut command, &log).map_err(|e| failed("the store's process", e))?;
        let store = SharedStore { at: StoreAt::Served(addr), child: Some(child), log };
        store.wait(|| TcpStream::connect(addr).is_ok())
    }

    fn start_etcd(layout: &Layout, log: &Path) -> std::io::Result<Child> {
        let [clients, peers] = layout.store_ports().map(|port| format!("http://127.0.0.1:{port}"));
        let mut command = Command::new("etcd");
        command.args(["--name", NAME, "--data-dir"]).arg(layout.dir.join("etcd"));
        command.args(["--listen-client-urls", &clients, "--advertise-client-urls", &clients]);
        command.args(["--listen-peer-urls", &peers, "--initial-advertise-peer-urls", &peers]);
        command.args([
            "--initial-cluster",
            &format!("{NAME}={peers}"),
            "--logger",
            "zap",
            "--log-level",
            "warn",
        ]);
        command.args(["--auto-compaction-retention", "1h"]);
        for (variable, _) in std::env::vars_os() {
            if variable.to_string_lossy().starts_with("ETCD_") {
                command.env_remove(variable); // what a system's own etcd is told is not meant for this one
            }
        }
        logged(&mut command, log)
    }

    fn wait(mut self, is_ready: impl Fn() -> bool) -> Result<SharedStore, Failure> {
        let start = Instant::now();
        loop {
            let ended = self.child.as_mut().is_some_and(|c| !matches!(c.try_wait(), Ok(None)));
            if ended || start.elapsed() > STORE_LIMIT {
                return Err(Failure::failed(format!(
                    "the shared store does not start: see {}",
                    self.log.display()
                )));
            }
            if is_ready() {
                return Ok(self);
            }
            std::thread::sleep(PAUSE);
        }
    }

    pub fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = signal(child.id(), "TERM");
            wait_or_kill(&mut child);
        }
    }
}

impl Drop for SharedStore {
    fn drop(&mut self) {
        self.stop();
    }
}

fn is_healthy(port: u16) -> bool {
    let ask = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_read_timeout(Some(ASK_LIMIT))?;
        stream.write_all(b"GET /health HTTP/1.0\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    ask().is_ok_and(|answer| answer.contains("\"true\""))
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
