//! Running other programs: where the workspace is, a time limit for each child, and a plain error for each failure.

use anyhow::{Context, Result, bail};
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// The root of the workspace: the folder above this crate.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lies in the workspace").to_path_buf()
}

/// Where cargo puts what it builds.
pub fn target() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(folder) => root().join(folder),
        None => root().join("target"),
    }
}

/// Whether this is a run without a person: nothing may be skipped then.
pub fn ci() -> bool {
    std::env::var_os("CI").is_some_and(|v| !v.is_empty() && v != "false" && v != "0")
}

/// `cargo` with these arguments, in the root of the workspace.
pub fn cargo(args: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root()).args(args);
    // What `cargo xtask` set for itself must not leak into the cargo that it starts.
    for (name, _) in std::env::vars_os() {
        let leaks =
            name.to_str().is_some_and(|n| n.starts_with("CARGO_PKG_") || n.starts_with("CARGO_MANIFEST_"));
        if leaks {
            command.env_remove(name);
        }
    }
    command
}

/// Runs a command to its end, with its output going where ours goes; an error unless it succeeds within `limit`.
pub fn run(command: &mut Command, limit: Duration) -> Result<()> {
    let what = describe(command);
    println!("$ {what}");
    command.stdin(Stdio::null());
    // In a group of its own a hanging child can be ended with all that it started. With a person at the
    // terminal it stays in ours, so that Ctrl-C reaches it.
    let grouped = ci();
    if grouped {
        command.process_group(0);
    }
    let mut child = command.spawn().with_context(|| format!("cannot start: {what}"))?;
    let status = wait(&mut child, limit, grouped)?;
    match status {
        Some(status) if status.success() => Ok(()),
        Some(status) => bail!("{what}: {status}"),
        None => bail!("{what}: not finished after {} s", limit.as_secs()),
    }
}

/// The same for a program that talks much: its output is shown only when it fails.
pub fn run_quietly(command: &mut Command, log: &Path, limit: Duration) -> Result<()> {
    let file = File::create(log).with_context(|| log.display().to_string())?;
    let result = run(command.stdout(file.try_clone()?).stderr(file), limit);
    if result.is_err() {
        print!("{}", std::fs::read_to_string(log).unwrap_or_default());
    }
    result
}

/// Both outputs of a program whose failure is an answer, too; `None` unless it ends within `limit`.
pub fn answer(command: &mut Command, log: &Path, limit: Duration) -> Result<Option<(ExitStatus, String)>> {
    let file = File::create(log).with_context(|| log.display().to_string())?;
    let mut child = command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file).spawn()?;
    let status = wait(&mut child, limit, false)?;
    let text = String::from_utf8_lossy(&std::fs::read(log)?).into_owned();
    Ok(status.map(|status| (status, text)))
}

/// Reads a child's output to its end, so that it never waits for us; everything goes to the log.
pub fn follow(child: &mut Child, mut log: File) -> mpsc::Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    let output = child.stdout.take().expect("its output is piped");
    std::thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            writeln!(log, "{line}").ok();
            sender.send(line).ok();
        }
    });
    receiver
}

/// `None` when the limit has passed; the child is gone then.
fn wait(child: &mut Child, limit: Duration, grouped: bool) -> Result<Option<ExitStatus>> {
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if start.elapsed() > limit {
            if grouped {
                let group = format!("-{}", child.id());
                Command::new("kill").args(["-9", "--", &group]).status()?;
            } else {
                child.kill()?;
            }
            child.wait()?;
            return Ok(None);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn describe(command: &Command) -> String {
    let program = Path::new(command.get_program()).file_name().unwrap_or(command.get_program());
    let mut words = vec![program.to_string_lossy().into_owned()];
    words.extend(command.get_args().map(|a| a.to_string_lossy().into_owned()));
    words.join(" ")
}

/// Whether a program of this name is on the path (or in the folders that only root has on it).
pub fn have(program: &str) -> bool {
    let path = std::env::var("PATH").unwrap_or_default();
    path.split(':').chain(["/usr/sbin", "/sbin"]).any(|folder| Path::new(folder).join(program).is_file())
}

/// Whether we run as root, by asking `id`: std has no call for it.
pub fn is_root() -> bool {
    Command::new("id").arg("-u").output().is_ok_and(|o| o.stdout.trim_ascii() == b"0")
}
