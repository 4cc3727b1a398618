//! Members of an etcd cluster as processes of a test: on loopback, on ports that were free, in a folder that goes with the test.

use super::common::TempDir;
use peristyle_control::{EtcdConfig, EtcdStore};
use std::fs::File;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

const START: Duration = Duration::from_secs(60);

pub struct Etcd {
    folder: TempDir,
    members: Vec<Member>,
}

struct Member {
    clients: u16,
    peers: u16,
    process: Option<Child>,
}

impl Etcd {
    /// So many members, each of which answers.
    pub fn start(count: usize) -> Etcd {
        let ports = free_ports(2 * count);
        let members = ports.chunks(2).map(|p| Member { clients: p[0], peers: p[1], process: None }).collect();
        let mut etcd = Etcd { folder: TempDir::new(), members };
        (0..count).for_each(|member| etcd.restart(member));
        (0..count).for_each(|member| etcd.wait(member));
        etcd
    }

    /// A client for a cluster of this name. It knows all members.
    pub fn store(&self, cluster: &str) -> EtcdStore {
        let endpoints = self.members.iter().map(|m| format!("127.0.0.1:{}", m.clients)).collect();
        EtcdStore::open(&EtcdConfig::new(cluster, endpoints)).unwrap()
    }

    /// kill -9.
    pub fn kill(&mut self, member: usize) {
        let mut process = self.members[member].process.take().expect("it runs");
        process.kill().unwrap();
        process.wait().unwrap();
    }

    /// It goes on to exist and does nothing (`STOP`), or goes on (`CONT`).
    pub fn signal(&self, member: usize, signal: &str) {
        let process = self.members[member].process.as_ref().expect("it runs").id().to_string();
        assert!(Command::new("kill").args(["-s", signal, &process]).status().unwrap().success());
    }

    pub fn restart(&mut self, member: usize) {
        let name = |i: usize| format!("m{i}");
        let address = |port: u16| format!("http://127.0.0.1:{port}");
        let all = self.members.iter().enumerate().map(|(i, m)| format!("{}={}", name(i), address(m.peers)));
        let all = all.collect::<Vec<_>>().join(",");
        let Member { clients, peers, .. } = self.members[member];
        let log = File::options().create(true).append(true).open(self.log(member)).unwrap();
        let mut command = Command::new("etcd");
        command.arg("--name").arg(name(member));
        command.arg("--data-dir").arg(self.folder.0.join(name(member)));
        command.args([
            "--listen-client-urls",
            &address(clients),
            "--advertise-client-urls",
            &address(clients),
        ]);
        command.args([
            "--listen-peer-urls",
            &address(peers),
            "--initial-advertise-peer-urls",
            &address(peers),
        ]);
        command.args(["--initial-cluster", &all, "--logger", "zap", "--log-level", "warn"]);
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        // What a system's own etcd is told is not meant for these.
        for (variable, _) in std::env::vars_os() {
            if variable.to_string_lossy().starts_with("ETCD_") {
                command.env_remove(variable);
            }
        }
        let process = command.spawn().expect("`etcd` is there: cargo xtask test e2e-etcd installs it");
        self.members[member].process = Some(process);
    }

    /// Until the member says that it can read what the cluster has agreed on.
    pub fn wait(&mut self, member: usize) {
        let start = Instant::now();
        while !is_healthy(self.members[member].clients) {
            let process = self.members[member].process.as_mut().expect("it runs");
            let ended = process.try_wait().unwrap();
            if ended.is_some() || start.elapsed() > START {
                let log = std::fs::read_to_string(self.log(member)).unwrap_or_default();
                panic!("etcd does not start ({ended:?}):\n{log}");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn log(&self, member: usize) -> std::path::PathBuf {
        self.folder.0.join(format!("m{member}.log"))
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        for process in self.members.iter_mut().filter_map(|m| m.process.as_mut()) {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

fn is_healthy(port: u16) -> bool {
    let ask = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_read_timeout(Some(START))?;
        stream.write_all(b"GET /health HTTP/1.0\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    ask().is_ok_and(|answer| answer.contains("\"true\""))
}

/// Ports that nobody has now, below those that the system gives to connections: a member that is away for a while finds its
/// own free again.
fn free_ports(count: usize) -> Vec<u16> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let first = std::process::id().wrapping_mul(37);
    let all = std::iter::repeat_with(|| first.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)));
    let ports = all.take(10_000).map(|n| 20_000 + (n % 10_000) as u16);
    let found: Vec<_> =
        ports.filter(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok()).take(count).collect();
    assert_eq!(found.len(), count, "no port is free");
    found
}
