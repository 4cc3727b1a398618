//! `cargo xtask`: the only build tool beside cargo. `cargo xtask --help` lists what it does.
#![forbid(unsafe_code)]

mod cmd;
mod e2e;
mod failover;
mod packages;
mod planted;
mod steps;
mod summary;
mod tidy;
mod tools;

use anyhow::Result;
use clap::{Parser, Subcommand};
use std::process::ExitCode;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Checks, tests and measures Peristyle", disable_version_flag = true)]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Run every check and test of the project, in order, and print a table of them.
    ///
    /// Installs the Debian packages that a step needs when run as root, names them otherwise. With CI=true in the
    /// environment a missing package is a failure, otherwise that step is skipped, loudly.
    Test {
        /// Run only the steps whose name contains one of these words.
        only: Vec<String>,
        /// List the steps and leave.
        #[arg(long)]
        list: bool,
    },
    /// Check what the compiler does not: the import table, unsafe code, use of std, sizes, documents.
    Tidy,
    /// Run the fuzz targets over mutations of their committed corpora; `--help` after `--` prints the options.
    Fuzz {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        options: Vec<String>,
    },
    /// Simulate crashes, torn writes and failing disks from seeds.
    Sim {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        options: Vec<String>,
    },
    /// Plant known bugs in a copy of the tree, one after the other: the simulator has to find each of them. Long.
    Planted {
        /// Only those whose name contains one of these words.
        only: Vec<String>,
    },
    /// Kill a daemon with -9 under verifying writers, again and again: `--rounds N`, `--seed N`.
    Crash {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        options: Vec<String>,
    },
    /// Kill and stop the node that owns a volume of a development cluster, again and again, under a load that judges every read.
    ///
    /// Every third round stops it for 3 s. At the end: how long hosts got no answer, by cause. Fails when a read was wrong.
    Failover(failover::Options),
    /// Throughput and latency of a development cluster without one of its nodes, beside those with all of them, in turns.
    ///
    /// 70 % reads, 4 KiB at random, at the node that owns the volume; another one is killed, nothing is rebuilt, and it comes
    /// back. In a closed loop all nodes and the load compete for the same cores, so that compares work per command; an open loop
    /// at a rate that leaves cores idle compares latency. Ratios are of turns that follow each other. With TMPDIR=/dev/shm devices are
    /// in memory, and a disk that others use as well is left out. Fails when a command does, not by time.
    Degraded(failover::degraded::Options),
    /// Take the control store of a development cluster away under load, for a time: reads never stop, writes go on while ready
    /// extents last, nothing is lost, and all goes on by itself when it is back.
    StoreAway(failover::store_away::Options),
    /// The daemon as its users see it, through clients that are not ours.
    E2e {
        #[command(subcommand)]
        test: e2e::Test,
    },
}

fn main() -> ExitCode {
    match run(Cli::parse().task) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(task: Task) -> Result<ExitCode> {
    match task {
        Task::Test { only, list } => steps::test(&only, list),
        Task::Tidy => tidy::run(),
        Task::Fuzz { options } => tools::fuzz(&options).map(|()| ExitCode::SUCCESS),
        Task::Sim { options } => tools::sim(&options).map(|()| ExitCode::SUCCESS),
        Task::Planted { only } => planted::run(&only).map(|()| ExitCode::SUCCESS),
        Task::Crash { options } => tools::crash(&options).map(|()| ExitCode::SUCCESS),
        Task::Failover(options) => failover::run(&options),
        Task::Degraded(options) => failover::degraded::run(&options),
        Task::StoreAway(options) => failover::store_away::run(&options).map(|()| ExitCode::SUCCESS),
        Task::E2e { test } => e2e::run(&test).map(|()| ExitCode::SUCCESS),
    }
}
