//! `cargo xtask test`: the list of steps. A step is one line of [`STEPS`].

use crate::packages::{self, Needs};
use crate::summary::{Outcome, Row, Summary};
use crate::{cmd, e2e, failover, tidy, tools};
use anyhow::{Result, bail};
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// One line of the table that `cargo xtask test` works through.
struct Step {
    name: &'static str,
    /// Debian packages beside Rust; installed as root, else named.
    needs: &'static [&'static [Needs]],
    run: fn() -> Result<()>,
}

const SHORT: e2e::Size = e2e::Size { short: true };

const NOTHING: &[&[Needs]] = &[];

const fn needs(program: &'static str, package: &'static str) -> Needs {
    Needs { program, package }
}

const NBD_RAW: &[Needs] =
    &[needs("nbdcopy", "libnbd-bin"), needs("qemu-img", "qemu-utils"), needs("fio", "fio")];

const NBD_FS: &[Needs] = &[
    needs("nbdfuse", "libnbd-bin"),
    needs("fusermount3", "fuse3"),
    needs("losetup", "mount"),
    needs("mkfs.ext4", "e2fsprogs"),
    needs("mkfs.xfs", "xfsprogs"),
    needs("fio", "fio"),
];

/// The guest brings its own programs; these make and boot it.
const KERNEL_HOST: &[Needs] = &[
    needs("qemu-system-x86_64", "qemu-system-x86"),
    needs("cpio", "cpio"),
    needs("zstd", "zstd"),
    needs("lz4", "lz4"),
    needs("xz", "xz-utils"),
    needs("objcopy", "binutils"),
];

const ETCD: &[Needs] = &[needs("etcd", "etcd-server")];

const BROWSER: &[Needs] = &[needs("chromium", "chromium")];

const STEPS: &[Step] = &[
    Step { name: "fmt", needs: NOTHING, run: fmt },
    Step { name: "clippy", needs: NOTHING, run: clippy },
    Step { name: "tidy", needs: NOTHING, run: tidy::check },
    Step { name: "unit", needs: NOTHING, run: unit },
    Step { name: "sim", needs: NOTHING, run: sim },
    Step { name: "bench-ec", needs: NOTHING, run: tools::bench_ec },
    Step { name: "crash", needs: NOTHING, run: crash },
    Step { name: "bench-restart", needs: NOTHING, run: restart },
    Step { name: "e2e-etcd", needs: &[ETCD], run: etcd },
    Step { name: "e2e-nbd-raw", needs: &[NBD_RAW], run: || e2e::run(&e2e::Test::NbdRaw(SHORT)) },
    Step { name: "e2e-repair", needs: &[NBD_RAW], run: || e2e::run(&e2e::Test::Repair(SHORT)) },
    Step { name: "e2e-report", needs: &[BROWSER], run: || e2e::run(&e2e::Test::Report) },
    Step { name: "e2e-nbd-fs", needs: &[NBD_FS], run: || e2e::run(&e2e::Test::NbdFs(SHORT)) },
    Step { name: "e2e-kernel-host", needs: &[KERNEL_HOST], run: || e2e::run(&e2e::Test::KernelHost(SHORT)) },
    Step {
        name: "e2e-kernel-cluster",
        needs: &[KERNEL_HOST, ETCD],
        run: || e2e::run(&e2e::Test::KernelCluster(SHORT)),
    },
    Step {
        name: "e2e-kernel-forward",
        needs: &[KERNEL_HOST, ETCD],
        run: || e2e::run(&e2e::Test::KernelForward(SHORT)),
    },
    Step {
        name: "store-away",
        needs: &[ETCD],
        run: || failover::store_away::run(&failover::store_away::Options::short()),
    },
    Step {
        name: "e2e-kernel-space",
        needs: &[KERNEL_HOST],
        run: || e2e::run(&e2e::Test::KernelSpace(SHORT)),
    },
    Step { name: "fuzz", needs: NOTHING, run: fuzz },
];

const fn minutes(n: u64) -> Duration {
    Duration::from_secs(60 * n)
}

fn fmt() -> Result<()> {
    cmd::run(&mut cmd::cargo(&["fmt", "--all", "--check"]), minutes(2))
}

fn clippy() -> Result<()> {
    // In the profile of the tests: macros and build scripts are compiled once for both.
    let args =
        ["clippy", "--profile", "checked", "--workspace", "--all-targets", "--quiet", "--", "-D", "warnings"];
    cmd::run(&mut cmd::cargo(&args), minutes(15))
}

/// As the simulator and the clients' tests are built: everything is compiled once, and what takes its time runs faster.
fn unit() -> Result<()> {
    let args = ["test", "--profile", "checked", "--workspace", "--no-fail-fast"];
    cmd::run(&mut cmd::cargo(&args), minutes(30))
}

/// The control store on Debian's etcd, which the tests start and kill. Of the whole workspace, so that what `unit` has built is
/// what runs; all tests at once, since they wait more than they work.
fn etcd() -> Result<()> {
    let threads = ["--", "--ignored", "--test-threads", "8"];
    let args = [&["test", "--profile", "checked", "--workspace", "--test", "etcd"][..], &threads].concat();
    cmd::run(&mut cmd::cargo(&args), minutes(10))
}

/// A share of what `cargo xtask sim --seeds 200` does; the first seeds twice, with the same trace both times.
fn sim() -> Result<()> {
    let options = ["--seeds", "16", "--replay", "3", "--at-least-states", "10000"];
    tools::sim(&options.map(String::from))?;
    // In simulated time: the same on every machine.
    tools::sim(&["scaling", "--nodes", "4,8,16", "--ms", "40"].map(String::from))?;
    tools::sim(&["degraded", "--ms", "40"].map(String::from))?;
    tools::sim(&["balance".to_string()])
}

/// A share of the fifty rounds of `cargo xtask crash`.
fn crash() -> Result<()> {
    tools::crash(&["--rounds".into(), "12".into()])
}

/// Starts after kill -9 with two amounts of data: that they work is asked, not how long they take.
fn restart() -> Result<()> {
    tools::restart(&["--sizes", "64MiB,256MiB", "--starts", "1", "--churn", "32"])
}

/// Ten million executions, as in every run before a change lands.
fn fuzz() -> Result<()> {
    tools::fuzz(&["--executions".into(), "10000000".into()])
}

/// Runs the steps in order, goes on after a failure, and prints the table at the end.
pub fn test(only: &[String], list: bool) -> Result<ExitCode> {
    let chosen: Vec<_> = STEPS
        .iter()
        .filter(|s| only.is_empty() || only.iter().any(|o| s.name.contains(o.as_str())))
        .collect();
    if chosen.is_empty() {
        bail!("no step is called like that; `cargo xtask test --list` names them");
    }
    if list {
        for step in chosen {
            println!("{}", step.name);
        }
        return Ok(ExitCode::SUCCESS);
    }
    let mut summary = Summary::default();
    for step in chosen {
        println!("\n==== {} ====", step.name);
        let start = Instant::now();
        let outcome = attempt(step);
        match &outcome {
            Outcome::Passed => println!("---- {}: passed", step.name),
            Outcome::Skipped(why) => println!("---- {}: SKIPPED: {why}", step.name),
            Outcome::Failed(why) => println!("---- {}: FAILED: {why}", step.name),
        }
        summary.push(Row { name: step.name, outcome, elapsed: start.elapsed() });
    }
    print!("\n{summary}");
    Ok(if summary.failed() == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn attempt(step: &Step) -> Outcome {
    let missing = match packages::provide(&step.needs.concat()) {
        Ok(missing) => missing,
        Err(error) => return Outcome::Failed(format!("{error:#}")),
    };
    if !missing.is_empty() {
        let why = format!("needs the Debian packages {} (as root: apt-get install them)", missing.join(" "));
        return if cmd::ci() { Outcome::Failed(why) } else { Outcome::Skipped(why) };
    }
    match (step.run)() {
        Ok(()) => Outcome::Passed,
        Err(error) => Outcome::Failed(format!("{error:#}")),
    }
}

#[cfg(test)]
mod tests {
    use super::STEPS;

    #[test]
    fn every_step_has_a_name_of_its_own() {
        let mut names: Vec<_> = STEPS.iter().map(|s| s.name).collect();
        names.sort_unstable();
        let before = names.len();
        names.dedup();
        assert_eq!(names.len(), before);
    }
}
