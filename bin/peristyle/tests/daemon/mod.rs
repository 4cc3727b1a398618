//! Development stores on one reactor, for tests that look at the program from outside.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

pub const PERISTYLE: &str = env!("CARGO_BIN_EXE_peristyle");

pub struct Daemon {
    child: Child,
    args: Vec<String>,
    dir: PathBuf,
    /// What `--json` says when it is ready.
    pub ready: serde_json::Value,
}

impl Daemon {
    /// 1+1 in memory, with a volume of 16 MiB, which small writes do not fill.
    #[allow(dead_code)] // Not every test asks for this one.
    pub fn start() -> Daemon {
        let devices = ["--device", "memory:256MiB"].repeat(2);
        Self::with("1+1", &devices, "ram=16MiB")
    }

    /// 2+1 in memory, so small that its volume of 128 MiB is soon collected.
    #[allow(dead_code)]
    pub fn tight() -> Daemon {
        let devices = ["--device", "memory:256MiB"].repeat(3);
        Self::with("2+1", &devices, "v=128MiB")
    }

    /// 4+2 over six files, with a volume of 64 MiB.
    #[allow(dead_code)]
    pub fn on_files() -> Daemon {
        Self::with("4+2", &["--devices", "6", "--device-size", "1GiB"], "v=64MiB")
    }

    fn with(scheme: &str, devices: &[&str], volume: &str) -> Daemon {
        let dir = std::env::temp_dir().join(format!("peristyle-test-{}", std::process::id()));
        let mut args: Vec<String> = ["dev", "--scheme", scheme, "--volume", volume].map(String::from).into();
        args.extend(devices.iter().map(|arg| arg.to_string()));
        args.extend(["--listen", "127.0.0.1:0", "--reactors", "1", "--json", "--dir"].map(String::from));
        args.push(dir.display().to_string());
        let (child, ready) = start(&args);
        Daemon { child, args, dir, ready }
    }

    /// Where its store is.
    #[allow(dead_code)]
    pub fn dir(&self) -> &std::path::Path {
        &self.dir
    }

    /// kill -9.
    #[allow(dead_code)]
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Starts it again as it was started.
    #[allow(dead_code)]
    pub fn again(&mut self) {
        (self.child, self.ready) = start(&self.args);
    }

    /// What the program says of this node.
    #[allow(dead_code)]
    pub fn ask(&self, args: &[&str]) -> String {
        run(&[&["--admin", self.ready["admin"].as_str().unwrap()], args].concat())
    }

    /// The program's exit code and what it says, of what may end badly.
    #[allow(dead_code)]
    pub fn try_to(&self, args: &[&str]) -> (Option<i32>, String) {
        let admin = ["--admin", self.ready["admin"].as_str().unwrap()];
        let output = Command::new(PERISTYLE).args(admin).args(args).output().unwrap();
        let said = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8(said).unwrap())
    }
}

fn start(args: &[String]) -> (Child, serde_json::Value) {
    let mut child = Command::new(PERISTYLE).args(args).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    (child, serde_json::from_str(&line).unwrap())
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
