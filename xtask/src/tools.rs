//! The programs that `cargo xtask` builds and runs with the options it was given.

use crate::cmd;
use anyhow::Result;
use std::time::Duration;

const HOURS: Duration = Duration::from_secs(24 * 3600);

/// `cargo xtask fuzz`: the mutation loop of `crates/fuzzing`.
pub fn fuzz(options: &[String]) -> Result<()> {
    let mut command =
        cmd::cargo(&["run", "--quiet", "--profile", "fuzzing", "--package", "peristyle-fuzzing", "--"]);
    cmd::run(command.args(options), HOURS)
}

/// `cargo xtask sim`: the simulator's program, optimised, with every check; the profile is the fuzzers'.
pub fn sim(options: &[String]) -> Result<()> {
    let mut command =
        cmd::cargo(&["run", "--quiet", "--profile", "fuzzing", "--package", "peristyle-sim", "--"]);
    cmd::run(command.args(options), HOURS)
}

/// The figures of `crates/ec`, in short.
pub fn bench_ec() -> Result<()> {
    let arguments = ["bench", "--quiet", "--package", "peristyle-ec", "--bench", "ec", "--", "--quick"];
    cmd::run(&mut cmd::cargo(&arguments), HOURS)
}
