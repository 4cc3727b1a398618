//! How fast a cluster is in simulated time: what each node's processor, devices and links take is what the world says, and the code that runs
//! is the one that ships. Nothing fails, or one node is away; nothing is checked but that every command succeeds.
//!
//! Each node has one reactor, one device and one shard with a volume, which it owns. Hosts are machines of their own beside them, over
//! NVMe/TCP; each has its share of the commands in flight, and draws the volume of each command from some.

mod balance;
mod cluster;
mod hosts;

pub use balance::{AtRest, balance};
use cluster::Cluster;
use peristyle_base::{Histogram, Scheme};
use peristyle_rt::Duration;

/// What is measured.
#[derive(Clone, Debug)]
pub struct Setup {
    pub seed: u64,
    pub nodes: usize,
    pub scheme: Scheme,
    /// 4 KiB commands, over all hosts, of which there are as many as nodes.
    pub in_flight: usize,
    /// Percent of the commands that read.
    pub read_share: u64,
    /// Processor time of one task's poll: see [`crate::perf::Figures::polls_per_command`].
    pub poll_ns: u64,
    /// One node goes when the volumes are filled: its shard is another's, and what its device had is not rebuilt.
    pub one_away: bool,
    pub time: Duration,
}

/// What came out.
#[derive(Clone, Default)]
pub struct Figures {
    pub commands: u64,
    pub seconds: f64,
    /// Nanoseconds.
    pub reads: Histogram,
    pub writes: Histogram,
    /// Of all nodes' reactors, hosts' not among them.
    pub polls: u64,
    /// Part of the time in which the busiest node's reactor polled.
    pub busiest: f64,
}

impl Figures {
    pub fn per_second(&self) -> f64 {
        self.commands as f64 / self.seconds
    }
    pub fn polls_per_command(&self) -> f64 {
        self.polls as f64 / self.commands.max(1) as f64
    }
    /// Of reads and writes together.
    pub fn all(&self) -> Histogram {
        let mut all = self.reads.clone();
        all.merge(&self.writes);
        all
    }
}

/// # Panics — when a command fails, or the cluster does not serve.
pub fn measure(setup: &Setup) -> Figures {
    let mut cluster = Cluster::start(setup);
    let hosts = hosts::Hosts::start(&cluster, setup);
    cluster.run_until(|| hosts.are_ready());
    if setup.one_away {
        cluster.lose_one();
    }
    // What was filled is sealed, and every host is at work.
    hosts.begin(&cluster);
    cluster.run_for(setup.time / 2);
    hosts.reset();
    let (before, began) = (cluster.turns(), cluster.now_nanos());
    cluster.run_for(setup.time);
    let seconds = (cluster.now_nanos() - began) as f64 / 1e9;
    let turns: Vec<u64> = cluster.turns().iter().zip(&before).map(|(now, then)| now - then).collect();
    let busiest = turns.iter().max().copied().unwrap_or_default() as f64 * setup.poll_ns as f64 / 1e9;
    let (reads, writes) = hosts.taken();
    Figures {
        commands: reads.count() + writes.count(),
        seconds,
        reads,
        writes,
        polls: turns.iter().sum(),
        busiest: busiest / seconds,
    }
}
