//! What can be done to a development cluster while it runs.

use clap::{Args, Subcommand};
use std::path::{Path, PathBuf};

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
    /// Cut the network between two nodes: neither hears the other, until `heal` or the next start of one of them
    Cut(DevPairArg),
    /// Let two nodes hear each other again
    Heal(DevPairArg),
    /// kill -9 the store that the nodes share: hosts go on
    KillStore(DevDirArg),
    /// Start the store that the nodes share
    StartStore(DevDirArg),
}

#[derive(Args, Debug)]
pub struct DevDirArg {
    /// Folder of the cluster
    #[arg(long, default_value = "./peristyle-dev", value_name = "PATH")]
    pub dir: PathBuf,
}

#[derive(Args, Debug)]
pub struct DevNodeArg {
    /// The node's number
    pub node: u16,
    #[command(flatten)]
    pub at: DevDirArg,
}

#[derive(Args, Debug)]
pub struct DevPairArg {
    /// A node's number
    pub node: u16,
    /// Another one's
    pub other: u16,
    /// Only this way: the second does not hear the first
    #[arg(long)]
    pub one_way: bool,
    #[command(flatten)]
    pub at: DevDirArg,
}

impl DevOrder {
    /// What the cluster is told, and where it is.
    pub fn as_line(&self) -> (String, &Path) {
        let of_node = |word: &str, of: &DevNodeArg| format!("{word} {}", of.node);
        let of_pair = |word: &str, of: &DevPairArg| {
            let one_way = if of.one_way { " one-way" } else { "" };
            format!("{word} {} {}{one_way}", of.node, of.other)
        };
        match self {
            DevOrder::Cut(of) => (of_pair("cut", of), &of.at.dir),
            DevOrder::Heal(of) => (of_pair("heal", of), &of.at.dir),
            DevOrder::Kill(of) => (of_node("kill", of), &of.at.dir),
            DevOrder::Start(of) => (of_node("start", of), &of.at.dir),
            DevOrder::Stop(of) => (of_node("stop", of), &of.at.dir),
            DevOrder::Cont(of) => (of_node("cont", of), &of.at.dir),
            DevOrder::End(of) => (of_node("end", of), &of.at.dir),
            DevOrder::KillStore(at) => ("kill-store".into(), &at.dir),
            DevOrder::StartStore(at) => ("start-store".into(), &at.dir),
        }
    }
}
