//! `peristyle`: the node daemon, a development store in one command, offline tools, and the client of a running
//! node's admin socket.
#![forbid(unsafe_code)]

mod bench;
mod cli;
mod client;
mod cluster;
mod devcluster;
mod failure;
mod model;
mod offline;
mod online;
mod profile;
mod render;
mod report;
mod top;
mod wiring;

use clap::Parser;
use cli::{Cli, Command};
use failure::Failure;
use std::process::ExitCode;

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("peristyle: {failure}");
            ExitCode::from(failure.exit_code())
        }
    }
}

fn run(cli: Cli) -> Result<(), Failure> {
    let admin = cli.admin;
    match cli.command {
        Command::Dev(options) => offline::dev(options, admin),
        Command::Node(options) => offline::node(options, admin),
        Command::Cluster(command) => cluster::cluster(command, admin),
        Command::Host(command) => online::host(command, admin),
        Command::Device(command) => offline::or_online_device(command, admin),
        Command::Volume(command) => online::volume(command, admin),
        Command::Snapshot(command) => online::snapshot(command, admin),
        Command::Pool(command) => offline::or_online_pool(command, admin),
        Command::Extent(command) => online::extent(command, admin),
        Command::Status(options) => online::status(options, admin),
        Command::Stats(options) => online::stats(options, admin),
        Command::Profile(options) => profile::profile(options, admin),
        Command::Top(options) => top::top(options, admin),
        Command::Inject(options) => online::inject(options, admin),
        Command::Bench(command) => bench::bench(command),
        Command::Model(command) => model::model(command, admin),
        Command::Report(options) => report::command(&options),
        Command::ServeStore { file, listen, name } => wiring::serve_store(&file, listen, &name),
        Command::Stop => online::stop(admin),
    }
}
