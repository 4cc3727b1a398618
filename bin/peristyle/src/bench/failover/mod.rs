//! `bench failover`: what a host with a path to every node sees while somebody else does things to the nodes.

mod orders;
mod told;

use super::{size64, time};
use crate::failure::{Failure, Kind};
use crate::render::json;
use clap::Args;
use orders::{Order, Orders};
use peristyle_base::BLOCK_BYTES;
use peristyle_bench::failover::{BLOCKS_MAX, Failover, Plan};
use peristyle_bench::host::HostOptions;
use peristyle_bench::paths::{PATHS_MAX, Paths, PathsOptions};
use peristyle_bench::session::host_nqn;
use peristyle_rt::{Addr, BufConfig, RuntimeConfig};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;
use told::Run;

/// Between two looks at what standard input says.
const LOOK: Duration = Duration::from_millis(2);

/// How long a host with a path to every node gets no answer while nodes fail, and whether it ever reads what is wrong
///
/// Random blocks of 4 KiB are read and written in a closed loop, each on the path that is optimized for the volume; every read is
/// judged. WHAT IS ON THE VOLUME IS LOST. Nothing is done to the nodes: whoever does that tells this program by lines on its
/// standard input.
#[derive(Args, Debug, Clone)]
#[command(after_help = "\
Lines on standard input, when that is no terminal:
  mark NAME  ends a phase, which is told as one line of JSON, and begins another one
  status     tells how it goes, as one line of JSON
  end        ends it all, before --duration; so does the end of standard input behind any other line
Examples:
  peristyle bench failover --portal 127.0.0.1:4421 127.0.0.1:4422 127.0.0.1:4423 --nqn NQN --qd 1,32
  (sleep 2; echo mark kill; peristyle dev kill 2 --dir D; sleep 3; echo end) | peristyle bench failover ... --json")]
pub struct FailoverOptions {
    /// Where hosts reach the nodes, one of each
    #[arg(long, required = true, num_args = 1.., value_delimiter = ',', value_name = "ADDR:PORT")]
    pub portal: Vec<SocketAddr>,
    /// Of the subsystem, the same at all nodes
    #[arg(long)]
    pub nqn: String,
    /// The volume, whose contents are lost
    #[arg(long, default_value_t = 1)]
    pub nsid: u32,
    /// Commands in flight; one run after the other
    #[arg(long, default_value = "1", value_name = "N,...", value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub qd: Vec<u32>,
    /// Share of reads, percent
    #[arg(long, default_value_t = 50, value_name = "PERCENT", value_parser = clap::value_parser!(u8).range(0..=100))]
    pub reads: u8,
    /// Of each of the commands in flight, from its end to the beginning of the next
    #[arg(long, default_value = "0ms", value_name = "TIME", value_parser = time)]
    pub pause: Duration,
    /// At the front of the volume, that are used [default: all, 4 GiB at most]
    #[arg(long, value_name = "SIZE", value_parser = size64)]
    pub size: Option<u64>,
    /// Of each run
    #[arg(long, default_value = "10s", value_name = "TIME", value_parser = time)]
    pub duration: Duration,
    /// A path that gives no answer for so long is given up
    #[arg(long, default_value = "500ms", value_name = "TIME", value_parser = time)]
    pub limit: Duration,
    /// A command that no path takes for so long fails
    #[arg(long, default_value = "60s", value_name = "TIME", value_parser = time)]
    pub give_up: Duration,
    /// Of places and contents [default: drawn]
    #[arg(long)]
    pub seed: Option<u64>,
    #[arg(long)]
    pub json: bool,
}

pub fn command(options: &FailoverOptions) -> Result<(), Failure> {
    if options.portal.len() > PATHS_MAX {
        return Err(Failure::usage(format!("--portal: {PATHS_MAX} at most")));
    }
    let deepest = options.qd.iter().copied().max().unwrap_or(1) as usize;
    let mut buffers = BufConfig::small();
    buffers.counts[0] += 4 * deepest;
    let inner = options.clone();
    let config = RuntimeConfig { buffers, ..RuntimeConfig::small() };
    let runs = peristyle_rt::block_on(config, async move { all(&inner).await })?;
    match options.json {
        true => runs.iter().for_each(|run| print!("{}", json(&run.summary()))),
        false => print!("{}", told::text(&runs)),
    }
    verdict(&runs)
}

/// All depths, one after the other, unless standard input ends it before.
async fn all(options: &FailoverOptions) -> Result<Vec<Run>, Failure> {
    let mut orders = Orders::listen();
    let mut runs = Vec::new();
    for &depth in &options.qd {
        runs.push(one(options, depth, &mut orders).await?);
        if orders.ended() {
            break;
        }
    }
    Ok(runs)
}

async fn one(options: &FailoverOptions, depth: u32, orders: &mut Orders) -> Result<Run, Failure> {
    let paths = connect(options, depth);
    let plan = Plan {
        seed: options.seed.unwrap_or_else(peristyle_rt::random_u64) ^ u64::from(depth) << 48,
        nsid: options.nsid,
        depth,
        pause: options.pause,
        read_share: options.reads,
        blocks: options.size.map_or(BLOCKS_MAX, |bytes| bytes / BLOCK_BYTES as u64),
    };
    let started = Failover::start(paths.clone(), plan, "start").await;
    let failover = started.map_err(|e| Failure::new(Kind::NoNode, format!("{}: {e}", options.nqn)))?;
    let until = peristyle_rt::now() + options.duration;
    while peristyle_rt::now() < until && !orders.ended() {
        match orders.next() {
            Some(Order::Mark(name)) => mark(&failover, &name, depth)?,
            Some(Order::Status) => print!("{}", json(&told::status(&failover, depth))),
            Some(Order::End) => break,
            None => peristyle_rt::sleep(LOOK).await,
        }
    }
    let record = failover.record().phases().to_vec();
    failover.stop().await;
    paths.close();
    let run = Run::new(depth, record, &failover);
    if options.json {
        print!("{}", json(&told::phase(run.last(), depth)));
    }
    Ok(run)
}

fn connect(options: &FailoverOptions, depth: u32) -> Rc<Paths> {
    // One command fewer than entries can be in flight.
    let host = HostOptions { entries: depth + 1, ..HostOptions::new(&host_nqn(), &options.nqn) };
    let portals = options.portal.iter().map(|addr| Addr::Tcp(*addr)).collect();
    Paths::start(PathsOptions {
        answer_limit: options.limit,
        give_up: options.give_up,
        ..PathsOptions::new(host, portals)
    })
}

fn mark(failover: &Failover, name: &str, depth: u32) -> Result<(), Failure> {
    failover.mark(name).ok_or_else(|| Failure::failed("too many marks"))?;
    let record = failover.record();
    let ended = record.phases().iter().rev().nth(1).expect("a mark has ended one");
    print!("{}", json(&told::phase(ended, depth)));
    Ok(())
}

fn verdict(runs: &[Run]) -> Result<(), Failure> {
    let violations: u64 = runs.iter().map(|run| run.violations).sum();
    let errors: u64 = runs.iter().map(Run::errors).sum();
    match (violations, errors) {
        (0, 0) => Ok(()),
        (0, errors) => {
            let first = runs.iter().find_map(Run::first_told).unwrap_or_default();
            Err(Failure::failed(format!("{errors} commands failed; the first: {first}")))
        }
        (wrong, _) => {
            Err(Failure::new(Kind::Damage, format!("{wrong} reads returned what must not be there")))
        }
    }
}
