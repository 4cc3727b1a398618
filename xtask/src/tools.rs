//! The programs that `cargo xtask` builds and runs with the options it was given.

use crate::cmd;
use anyhow::Result;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

/// What is fuzzed, simulated and attached to real clients is one build: optimised, with every check.
const PROFILE: &str = "checked";
const HOURS: Duration = Duration::from_secs(24 * 3600);

/// `cargo xtask fuzz`: the mutation loop of `crates/fuzzing`.
pub fn fuzz(options: &[String]) -> Result<()> {
    run("peristyle-fuzzing", options)
}

/// `cargo xtask sim`: the simulator's program, optimised, with every check.
pub fn sim(options: &[String]) -> Result<()> {
    run("peristyle-sim", options)
}

fn run(program: &str, options: &[String]) -> Result<()> {
    build(program)?;
    let program = cmd::target().join(PROFILE).join(program);
    cmd::run(Command::new(program).current_dir(cmd::root()).args(options), HOURS)
}

/// Builds one of the workspace's programs as the tests have: with the features that all of the workspace want of its libraries. With
/// those that this one package wants (`--package`) most of it would be compiled once more.
fn build(program: &str) -> Result<()> {
    let arguments = ["build", "--quiet", "--profile", PROFILE, "--workspace", "--bin", program];
    cmd::run(&mut cmd::cargo(&arguments), Duration::from_secs(1800))
}

/// The figures of `crates/ec`, in short.
pub fn bench_ec() -> Result<()> {
    let arguments = ["bench", "--quiet", "--package", "peristyle-ec", "--bench", "ec", "--", "--quick"];
    cmd::run(&mut cmd::cargo(&arguments), HOURS)
}

/// `cargo xtask crash`: kill -9 under verifying writers, by the daemon's own program.
pub fn crash(options: &[String]) -> Result<()> {
    build_daemon()?;
    cmd::run(Command::new(daemon()).args(["bench", "crash"]).args(options), HOURS)
}

/// Starts after kill -9, with so much data, by the daemon's own program.
pub fn restart(options: &[&str]) -> Result<()> {
    build_daemon()?;
    cmd::run(Command::new(daemon()).args(["bench", "restart"]).args(options), HOURS)
}

/// The program that is tested; `PERISTYLE_BIN` names another one.
pub fn daemon() -> PathBuf {
    match std::env::var_os("PERISTYLE_BIN") {
        Some(path) => path.into(),
        None => cmd::target().join(PROFILE).join("peristyle"),
    }
}

pub fn build_daemon() -> Result<()> {
    if std::env::var_os("PERISTYLE_BIN").is_some() {
        return Ok(());
    }
    build("peristyle")
}
