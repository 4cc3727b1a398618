//! What can be done to a development cluster while it runs.

use clap::{Args, Subcommand};
use std::path::PathBuf;

#[derive(Subcommand, Debug)]
pub enum DevOrder {
    /// kill -9 a node of a running development cluster
    Kill(DevNodeArg),
    /// Start a node that does not run
    Start(DevNodeArg),
    /// Stop a node's process in its tracks (SIGSTOP): it thinks later that no time has passed
    Stop(DevNodeArg),
    /// Let a stopped process go on (SIGCONT)
    Cont(DevNodeArg),
    /// End a node in order (SIGTERM): its shards go to others first
    End(DevNodeArg),
}

#[derive(Args, Debug)]
pub struct DevNodeArg {
    /// The node's number
    pub node: u16,
    /// Folder of the cluster
    #[arg(long, default_value = "./peristyle-dev", value_name = "PATH")]
    pub dir: PathBuf,
}

impl DevOrder {
    pub fn as_words(&self) -> (&'static str, &DevNodeArg) {
        match self {
            DevOrder::Kill(at) => ("kill", at),
            DevOrder::Start(at) => ("start", at),
            DevOrder::Stop(at) => ("stop", at),
            DevOrder::Cont(at) => ("cont", at),
            DevOrder::End(at) => ("end", at),
        }
    }
}
