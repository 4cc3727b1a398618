//! Commands for hosts that use a node or a cluster.

use super::JsonOption;
use clap::Subcommand;

#[derive(Subcommand, Debug)]
pub enum HostCommand {
    /// Hosts that are connected, and to which nodes; warns of those that lack a path to a node that is alive
    #[command(after_help = "\
A host has a path to a node when it has a controller there. In a cluster every host should have one to every node: without it, volumes
that go to that node are out of its reach. What is missing is said at the end; the exit code is 0 all the same.
Example: peristyle host show --json")]
    Show {
        /// Only the host with this NQN
        nqn: Option<String>,
        #[command(flatten)]
        json: JsonOption,
    },
}
