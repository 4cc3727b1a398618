//! Development stores on one reactor, for tests that look at the program from outside.

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
    /// 1+1 in memory, with a volume of 16 MiB.
    #[allow(dead_code)] // Not every test asks for this one.
    pub fn start() -> Daemon {
        let devices = ["--device", "memory:64MiB", "--device", "memory:64MiB"];
        Self::with("1+1", &devices, "ram=16MiB")
    }

    /// 4+2 over six files, with a volume of 64 MiB.
    #[allow(dead_code)]
    pub fn on_files() -> Daemon {
        Self::with("4+2", &["--devices", "6", "--device-size", "1GiB"], "v=64MiB")
    }

    fn with(scheme: &str, devices: &[&str], volume: &str) -> Daemon {
        let dir = std::env::temp_dir().join(format!("peristyle-test-{}", std::process::id()));
        let mut child = Command::new(PERISTYLE)
            .args(["dev", "--scheme", scheme, "--volume", volume])
            .args(devices)
            .args(["--listen", "127.0.0.1:0", "--reactors", "1", "--json", "--dir"])
            .arg(&dir)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        Daemon { child, dir, ready: serde_json::from_str(&line).unwrap() }
    }

    /// What the program says of this node.
    #[allow(dead_code)]
    pub fn ask(&self, args: &[&str]) -> String {
        run(&[&["--admin", self.ready["admin"].as_str().unwrap()], args].concat())
    }
}

/// What the program says, which ends well.
#[allow(dead_code)]
pub fn run(args: &[&str]) -> String {
    let output = Command::new(PERISTYLE).args(args).output().unwrap();
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}
