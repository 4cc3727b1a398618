//! A node that has nothing to do leaves the machine to others. CPU time is asked for, not the clock: other programs
//! do not disturb it.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

const PERISTYLE: &str = env!("CARGO_BIN_EXE_peristyle");

struct Daemon {
    child: Child,
    dir: PathBuf,
    /// What `--json` says when it is ready.
    ready: serde_json::Value,
}

impl Daemon {
    fn start() -> Daemon {
        let dir = std::env::temp_dir().join(format!("peristyle-idle-{}", std::process::id()));
        let mut child = Command::new(PERISTYLE)
            .args(["dev", "--scheme", "1+1", "--device", "memory:64MiB", "--device", "memory:64MiB"])
            .args(["--volume", "ram=16MiB", "--listen", "127.0.0.1:0", "--reactors", "1", "--json", "--dir"])
            .arg(&dir)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        Daemon { child, dir, ready: serde_json::from_str(&line).unwrap() }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

#[test]
fn an_idle_node_with_a_host_connected_uses_less_than_a_hundredth_of_a_core() {
    let daemon = Daemon::start();
    let listen = daemon.ready["listen"].as_str().unwrap();
    let idle = Command::new(PERISTYLE)
        .args(["bench", "idle", "--bar", "1", "--runtime", "3s", "--pid"])
        .arg(daemon.ready["pid"].to_string())
        .args(["--target", &format!("tcp://{listen}")])
        .output()
        .unwrap();
    assert!(idle.status.success(), "{}", String::from_utf8_lossy(&idle.stderr));
}
