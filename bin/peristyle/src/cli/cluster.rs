//! Commands for a cluster of nodes.

use super::JsonOption;
use clap::{Args, Subcommand, ValueEnum};
use peristyle_base::Scheme;
use peristyle_control::StoreAt;
use peristyle_control::desired::FailureDomain;

#[derive(Subcommand, Debug)]
pub enum ClusterCommand {
    /// Make a new cluster in etcd, without nodes yet, and print the token that its nodes join with
    #[command(after_help = "\
The token goes into the section [cluster] of each node's configuration; then `peristyle node --config FILE` joins.
Example: peristyle cluster create main --store etcd:10.0.0.1:2379,10.0.0.2:2379,10.0.0.3:2379 --scheme 4+2")]
    Create(CreateOptions),
    /// Print the token of a cluster again, without its secret or with another one
    #[command(after_help = "\
A token's secret is kept nowhere but in the nodes' configurations. Nodes with different secrets do not speak with each
other: to give all of them another one while they run, see docs/operating.md, \"TLS between nodes\".
Example: peristyle cluster token main --store etcd:10.0.0.1:2379 --new-secret")]
    Token {
        /// The cluster's name
        name: String,
        /// Where its shared state is
        #[arg(long, value_name = "etcd:HOST:PORT,…")]
        store: StoreAt,
        /// Draw another secret, for the tokens of all nodes
        #[arg(long)]
        new_secret: bool,
    },
    /// Nodes, who is the manager, and who owns which shard, as a running node sees it
    #[command(after_help = "Example: peristyle cluster show --json")]
    Show(JsonOption),
}

#[derive(Args, Debug)]
pub struct CreateOptions {
    /// The cluster's name: its keys in etcd begin with /peristyle/NAME/
    pub name: String,
    /// Where its shared state is to be
    #[arg(long, value_name = "etcd:HOST:PORT,…")]
    pub store: StoreAt,
    /// k data and m parity columns: any m failure domains may be lost
    #[arg(long, default_value = "4+2", value_name = "K+M")]
    pub scheme: Scheme,
    /// What an extent has one column of at most
    #[arg(long, value_enum, default_value_t = DomainArg::Node)]
    pub failure_domain: DomainArg,
    /// Go on with fewer than m+1 failure domains, with less protection, instead of refusing writes
    #[arg(long)]
    pub continue_with_fewer: bool,
    /// Logs of the cluster, fixed for good, spread over the nodes; a volume lives in one
    #[arg(long, default_value_t = 16, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=64))]
    pub shards: u32,
    /// Name of the NVM subsystem [default: made from the cluster's UUID]
    #[arg(long, value_name = "NQN")]
    pub nqn: Option<String>,
    #[command(flatten)]
    pub json: JsonOption,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DomainArg {
    Device,
    Node,
    Rack,
    Zone,
}

impl From<DomainArg> for FailureDomain {
    fn from(arg: DomainArg) -> FailureDomain {
        match arg {
            DomainArg::Device => FailureDomain::Device,
            DomainArg::Node => FailureDomain::Node,
            DomainArg::Rack => FailureDomain::Rack,
            DomainArg::Zone => FailureDomain::Zone,
        }
    }
}
