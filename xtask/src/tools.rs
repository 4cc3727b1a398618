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
