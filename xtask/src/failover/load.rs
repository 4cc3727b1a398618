//! `peristyle bench failover` as a child: a line in, a line of JSON out.

use super::cluster::Ready;
use super::{LIMIT, PERIOD};
use crate::{cmd, tools};
use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use std::fmt;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::Receiver;
use std::time::Instant;

/// Longer than any number of rounds takes: the end is said.
const DURATION: &str = "1440m";

/// A phase that has ended.
#[derive(Deserialize, Debug)]
pub struct Phase {
    pub completed: u64,
    pub longest_stall_ms: f64,
    pub longest_command_ms: f64,
    pub errors: u64,
    pub violations: u64,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Phase { completed, longest_stall_ms, longest_command_ms, errors, violations } = self;
        write!(
            f,
            "{longest_stall_ms:7.1} ms without an answer, the longest command {longest_command_ms:7.1} ms"
        )?;
        write!(f, ", {completed} commands, {errors} errors, {violations} violations")
    }
}

#[derive(Deserialize, Debug)]
pub struct Status {
    pub completed: u64,
    /// What each node says of the volume.
    pub paths: Vec<String>,
}

#[derive(Deserialize, Debug)]
pub struct Summary {
    pub completed: u64,
    pub errors: u64,
    pub violations: u64,
    pub told: Vec<String>,
}

pub struct Load {
    child: Child,
    lines: Receiver<String>,
    log: PathBuf,
}

impl Load {
    /// On the volume of this number, with options of `peristyle bench failover`.
    pub fn start(scratch: &Path, ready: &Ready, volume: usize, options: &[&str]) -> Result<Load> {
        let log = scratch.join(format!("load-{volume}.log"));
        let volume = ready.volumes.get(volume).context("there is no such volume")?;
        let mut command = Command::new(tools::daemon());
        command.args(["bench", "failover", "--json", "--duration", DURATION, "--nqn", &ready.nqn]);
        command.args(["--nsid", &volume.nsid.to_string()]).args(options);
        command.arg("--portal").args(ready.nodes.iter().map(|node| &node.listen));
        let file = File::create(&log)?;
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(file.try_clone()?);
        let mut child = command.spawn().context("cannot start the load")?;
        let lines = cmd::follow(&mut child, file);
        Ok(Load { child, lines, log })
    }

    fn say(&mut self, line: &str) -> Result<()> {
        let input = self.child.stdin.as_mut().expect("its input is piped");
        writeln!(input, "{line}").with_context(|| self.words())
    }

    fn hear<T: DeserializeOwned>(&mut self) -> Result<T> {
        let line = self.lines.recv_timeout(LIMIT).with_context(|| self.words())?;
        serde_json::from_str(&line).with_context(|| format!("the load says: {line}"))
    }

    /// What it said, for whoever wants to know why it says nothing.
    fn words(&self) -> String {
        let said = std::fs::read_to_string(&self.log).unwrap_or_default();
        format!("the load does not answer; it said:\n{said}")
    }

    pub fn status(&mut self) -> Result<Status> {
        self.say("status")?;
        self.hear()
    }

    /// Ends a phase and begins another.
    pub fn mark(&mut self, next: &str) -> Result<Phase> {
        self.say(&format!("mark {next}"))?;
        self.hear()
    }

    /// Waits until so many more commands of the phase are done than were before.
    pub fn until_running(&mut self, before: u64, more: u64) -> Result<()> {
        let until = Instant::now() + LIMIT;
        loop {
            let status = self.status()?;
            if status.completed >= before + more {
                return Ok(());
            }
            let paths = status.paths.join(", ");
            ensure!(
                Instant::now() < until,
                "no command ends any more, for {} s; paths: {paths}",
                LIMIT.as_secs()
            );
            std::thread::sleep(PERIOD);
        }
    }

    /// The last phase is of no interest.
    pub fn end(mut self) -> Result<Summary> {
        self.say("end")?;
        self.hear::<Phase>()?;
        let summary = self.hear()?;
        // Its exit code says what the summary says.
        self.child.wait()?;
        Ok(summary)
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loads_lines_are_read() {
        let phase: Phase = serde_json::from_str(
            r#"{"name":"kill 1","depth":1,"completed":7,"errors":0,"violations":1,"longest_stall_ms":612.5,
                "longest_command_ms":613.25,"bucket_ms":50,"buckets":[7],"bucket_longest_ms":[1.5]}"#,
        )
        .unwrap();
        assert!(phase.to_string().starts_with("  612.5 ms without an answer"), "{phase}");
        let summary: Summary = serde_json::from_str(
            r#"{"depth":1,"phases":3,"completed":9,"errors":0,"violations":1,"longest_stall_ms":1.0,
                "longest_command_ms":2.0,"told":["block 1: ..."]}"#,
        )
        .unwrap();
        assert_eq!((summary.completed, summary.violations, summary.told.len()), (9, 1, 1));
    }
}
