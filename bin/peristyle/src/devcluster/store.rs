//! What the nodes of a development cluster share: etcd, if it is installed; else a process that serves the embedded store.

use super::NAME;
use super::files::Layout;
use super::processes::{ASK_LIMIT, PAUSE, failed, logged, program, signal, wait_or_kill};
use crate::failure::Failure;
use peristyle_control::{StoreAt, Token};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

const START_LIMIT: Duration = Duration::from_secs(30);

pub struct SharedStore {
    pub at: StoreAt,
    /// Of clients, and of its peers.
    ports: [u16; 2],
    dir: PathBuf,
    /// `None`: it does not run, or a former run has left it.
    child: Option<Child>,
}

impl SharedStore {
    /// `token`: a cluster that is there keeps the store that it has.
    pub fn start(layout: &Layout, token: Option<&Token>, without_etcd: bool) -> Result<SharedStore, Failure> {
        let ports = layout.store_ports();
        let etcd = StoreAt::Etcd(vec![format!("127.0.0.1:{}", ports[0])]);
        let served = StoreAt::Served(SocketAddr::from(([127, 0, 0, 1], ports[0])));
        let at = match token {
            Some(token) => token.store.clone(),
            None if without_etcd => served,
            None if is_installed() => etcd,
            None => {
                eprintln!(
                    "peristyle: etcd is not installed (Debian: etcd-server): the nodes share the embedded store of one process, \
                     and nothing stands in for it while it is away"
                );
                served
            }
        };
        let mut store = SharedStore { at, ports, dir: layout.dir.clone(), child: None };
        // One that a former run has left is the same one.
        if !store.is_ready() {
            store.launch()?;
        }
        Ok(store)
    }

    /// Starts its process, and waits until it answers.
    pub fn launch(&mut self) -> Result<(), Failure> {
        if self.child.is_some() {
            return Err(Failure::failed("the shared store runs"));
        }
        let (mut command, name) = match self.at {
            StoreAt::Etcd(_) => (self.etcd(), "etcd"),
            StoreAt::Served(addr) => (self.served(addr)?, "store"),
        };
        let log = self.dir.join(format!("{name}.log"));
        self.child = Some(logged(&mut command, &log).map_err(|e| failed(name, e))?);
        let start = Instant::now();
        loop {
            let ended = self.child.as_mut().is_some_and(|c| !matches!(c.try_wait(), Ok(None)));
            if ended || start.elapsed() > START_LIMIT {
                self.stop();
                let told = format!("the shared store does not start: see {}", log.display());
                return Err(Failure::failed(told));
            }
            if self.is_ready() {
                return Ok(());
            }
            std::thread::sleep(PAUSE);
        }
    }

    fn etcd(&self) -> Command {
        let [clients, peers] = self.ports.map(|port| format!("http://127.0.0.1:{port}"));
        let mut command = Command::new("etcd");
        command.args(["--name", NAME, "--data-dir"]).arg(self.dir.join("etcd"));
        command.args(["--listen-client-urls", &clients, "--advertise-client-urls", &clients]);
        command.args(["--listen-peer-urls", &peers, "--initial-advertise-peer-urls", &peers]);
        command.args(["--initial-cluster", &format!("{NAME}={peers}"), "--logger", "zap"]);
        command.args(["--log-level", "warn", "--auto-compaction-retention", "1h"]);
        for (variable, _) in std::env::vars_os() {
            if variable.to_string_lossy().starts_with("ETCD_") {
                command.env_remove(variable); // what a system's own etcd is told is not meant for this one
            }
        }
        command
    }

    fn served(&self, addr: SocketAddr) -> Result<Command, Failure> {
        let mut command = Command::new(program()?);
        command.arg("serve-store").arg("--file").arg(self.dir.join("store.redb"));
        command.args(["--listen", &addr.to_string(), "--name", NAME]);
        Ok(command)
    }

    fn is_ready(&self) -> bool {
        match self.at {
            StoreAt::Etcd(_) => is_healthy(self.ports[0]),
            StoreAt::Served(addr) => TcpStream::connect(addr).is_ok(),
        }
    }

    /// kill -9.
    pub fn kill(&mut self) -> Result<(), Failure> {
        let missing = || Failure::failed("the shared store does not run here");
        let mut child = self.child.take().ok_or_else(missing)?;
        child.kill().and_then(|()| child.wait()).map(drop).map_err(|e| failed("kill", e))
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

fn is_installed() -> bool {
    Command::new("etcd").arg("--version").output().is_ok()
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
