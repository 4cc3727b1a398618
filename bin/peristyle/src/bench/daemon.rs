//! `peristyle dev` of this same program, started and killed by measurements and crash tests.

use crate::failure::Failure;
use peristyle_base::Scheme;
use peristyle_bench::session::{Digests, Session, Target};
use serde_json::Value;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

pub const DEVICES: u64 = 6;
/// A daemon that has not become ready by then has failed to recover.
const READY_TIMEOUT: Duration = Duration::from_secs(60);

/// What it is started with; its devices are sparse files, or so many in memory.
#[derive(Clone, Debug)]
pub struct Spawn {
    pub device_bytes: u64,
    pub memory: Option<usize>,
    pub scheme: Scheme,
    /// Name and bytes.
    pub volume: (&'static str, u64),
    /// Further options of `peristyle dev`.
    pub more: Vec<String>,
}

/// Options of a store with one reactor, on the first of these cores if there is one.
pub fn one_reactor(cores: &[usize]) -> Vec<String> {
    let core = cores.first().map(|core| ["--cores".into(), core.to_string()]);
    ["--reactors".into(), "1".into()].into_iter().chain(core.into_iter().flatten()).collect()
}

/// `peristyle dev` of this same program.
pub struct Daemon {
    child: Child,
    pub target: Target,
    /// Its admin socket.
    pub admin: PathBuf,
}

impl Daemon {
    /// Starts it off the reactor and waits until it serves; how long that took.
    pub async fn start(options: &Spawn, dir: &Path) -> Result<(Daemon, Duration), Failure> {
        let (options, dir) = (options.clone(), dir.to_owned());
        peristyle_rt::blocking(move || {
            let start = Instant::now();
            let daemon = Daemon::spawn(&options, &dir)?;
            Ok((daemon, start.elapsed()))
        })
        .await
    }

    pub fn spawn(options: &Spawn, dir: &Path) -> Result<Daemon, Failure> {
        let program = std::env::current_exe().map_err(Failure::failed)?;
        let log = dir.with_extension("log");
        let errors = File::options().create(true).append(true).open(&log).map_err(Failure::failed)?;
        let mut command = Command::new(program);
        command.args(["dev", "--json", "--listen", "127.0.0.1:0", "--dir"]).arg(dir);
        match options.memory {
            None => {
                command.args(["--devices", &DEVICES.to_string()]);
                command.args(["--device-size", &options.device_bytes.to_string()]);
            }
            Some(count) => {
                let device = format!("memory:{}", options.device_bytes);
                command.args(["--device", device.as_str()].repeat(count));
            }
        }
        command.args(["--scheme", &options.scheme.to_string()]);
        command.args(["--volume", &format!("{}={}", options.volume.0, options.volume.1)]);
        command.args(&options.more);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(errors);
        let mut child = command.spawn().map_err(Failure::failed)?;
        match ready(&mut child, READY_TIMEOUT, parse) {
            Some((target, admin)) => Ok(Daemon { child, target, admin }),
            None => {
                let _ = child.kill();
                let _ = child.wait();
                let said = std::fs::read_to_string(&log).unwrap_or_default();
                Err(Failure::failed(format!("the daemon did not become ready; it said:\n{said}")))
            }
        }
    }

    pub async fn session(&self) -> Result<Session, Failure> {
        Session::connect(&self.target, Digests { header: true, data: true }).await.map_err(Failure::failed)
    }

    /// kill -9. A daemon that has ended by itself is found by [`Daemon::ended`].
    pub fn kill(&mut self) {
        let _ = self.child.kill();
    }

    pub fn ended(&mut self) -> Result<(), Failure> {
        use std::os::unix::process::ExitStatusExt;
        let status = self.child.wait().map_err(Failure::failed)?;
        match status.signal() {
            Some(9) => Ok(()),
            _ => Err(Failure::failed(format!("the daemon ended by itself: {status}"))),
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Reads the child's output up to the ready line; a thread reads the rest, so that it never waits for us.
pub(super) fn ready<T: Send + 'static>(
    child: &mut Child,
    limit: Duration,
    parse: fn(&str) -> Option<T>,
) -> Option<T> {
    let output = child.stdout.take()?;
    let (tell, hear) = mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            if let Some(found) = parse(&line) {
                // The only reader may have given up already.
                let _ = tell.send(found);
            }
        }
    });
    hear.recv_timeout(limit).ok()
}

fn parse(line: &str) -> Option<(Target, PathBuf)> {
    let value: Value = serde_json::from_str(line).ok()?;
    if value["ready"] != true {
        return None;
    }
    let addr: SocketAddr = value["listen"].as_str()?.parse().ok()?;
    let target = Target { addr, nqn: Some(value["nqn"].as_str()?.to_owned()) };
    Some((target, value["admin"].as_str()?.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ready_line_names_the_target() {
        let line = r#"{"ready":true,"listen":"127.0.0.1:7","nqn":"nqn.a","admin":"/a"}"#;
        let (target, admin) = parse(line).unwrap();
        assert_eq!(admin, Path::new("/a"));
        assert_eq!((target.addr.port(), target.nqn.as_deref()), (7, Some("nqn.a")));
        for other in ["", "starting", "{}", r#"{"ready":false}"#] {
            assert!(parse(other).is_none(), "{other}");
        }
    }
}
