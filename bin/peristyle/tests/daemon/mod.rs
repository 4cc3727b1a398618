//! A development store in memory, on one reactor, with a volume of 16 MiB.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

pub const PERISTYLE: &str = env!("CARGO_BIN_EXE_peristyle");

pub struct Daemon {
    child: Child,
    dir: PathBuf,
    /// What `--json` says when it is ready.
    pub ready: serde_json::Value,
}

impl Daemon {
    pub fn start() -> Daemon {
        let dir = std::env::temp_dir().join(format!("peristyle-test-{}", std::process::id()));
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
