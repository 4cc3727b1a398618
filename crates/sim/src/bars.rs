//! What is promised of a cluster's speed, measured in simulated time (`peristyle_sim::perf`).

use clap::{Args, Subcommand};
use peristyle_base::Scheme;
use peristyle_rt::Duration;
use peristyle_rt::sim::real_time;
use peristyle_sim::perf::{Figures, Setup, balance, measure};

/// Processor time of a poll, calibrated: a node's processor time for a command of a real cluster, divided by the polls of a
/// simulated one's ([`Figures::polls_per_command`]); crates/sim/README.md, "Speed", tells how.
const POLL_NS: u64 = 1200;
/// Commands in flight for each node.
const EACH: usize = 8;
/// Twice the nodes and twice the commands in flight do twice as much, times this at least, over all steps …
const SCALING_MIN: f64 = 0.95;
/// … up to so many nodes. Beyond, it is foretold from the steps before and shown.
const SCALING_NODES: usize = 16;
/// With a node away p99 is at most so many times what it is without.
const DEGRADED_MAX: f64 = 1.3;
/// No device's use is further from its share than this part of its capacity …
const UNEVEN_MAX: f64 = 0.02;
/// … and for that at most so many times as much moves as has to.
const MOVED_MAX: f64 = 1.1;

#[derive(Subcommand)]
pub enum Bar {
    /// 4 KiB random writes of 4, 8, 16 … nodes, with twice the commands in flight for twice the nodes
    Scaling(ScalingOptions),
    /// 70 % reads of a 4+2 cluster of six nodes, one of which is away, beside the same with all six
    Degraded(DegradedOptions),
    /// How even the devices of a cluster are used when it is filled, loses a node, and gets two of another size
    Balance(BalanceOptions),
}

#[derive(Args)]
pub struct ScalingOptions {
    /// Each at least k+m of the scheme, 64 at most; each twice the one before
    #[arg(long, value_delimiter = ',', default_values_t = [4, 8, 16, 32, 64])]
    nodes: Vec<usize>,
    #[arg(long, default_value = "2+2")]
    scheme: Scheme,
    #[command(flatten)]
    common: Common,
}

#[derive(Args)]
pub struct DegradedOptions {
    /// Commands in flight
    #[arg(long, default_value_t = 32)]
    in_flight: usize,
    #[command(flatten)]
    common: Common,
}

#[derive(Args)]
pub struct BalanceOptions {
    /// Each owns a shard
    #[arg(long, default_value_t = 8)]
    nodes: usize,
    #[arg(long, default_value = "4+2")]
    scheme: Scheme,
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

#[derive(Args)]
struct Common {
    /// Simulated milliseconds that are measured
    #[arg(long, default_value_t = 50)]
    ms: u64,
    /// Processor time of a poll
    #[arg(long, default_value_t = POLL_NS)]
    poll_ns: u64,
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

impl Bar {
    /// Whether what is promised was met.
    pub fn run(&self) -> bool {
        match self {
            Bar::Scaling(options) => scaling(options),
            Bar::Degraded(options) => degraded(options),
            Bar::Balance(options) => even(options),
        }
    }
}

fn us(nanos: u64) -> f64 {
    nanos as f64 / 1e3
}

fn scaling(options: &ScalingOptions) -> bool {
    println!(
        "4 KiB random writes, {}, simulated with {} ns of processor for a poll",
        options.scheme, options.common.poll_ns
    );
    println!(
        "{:>5} {:>9} {:>11} {:>9} {:>9} {:>7} {:>7} {:>11} {:>11} {:>6}",
        "nodes",
        "in flight",
        "commands/s",
        "mean us",
        "p99 us",
        "polls",
        "busiest",
        "coefficient",
        "foretold/s",
        "s"
    );
    let (mut before, mut steps): (Option<(usize, f64)>, Vec<f64>) = (None, Vec::new());
    for &nodes in &options.nodes {
        let started = real_time();
        let setup = Setup {
            seed: options.common.seed,
            nodes,
            scheme: options.scheme,
            in_flight: EACH * nodes,
            read_share: 0,
            poll_ns: options.common.poll_ns,
            one_away: false,
            time: Duration::from_millis(options.common.ms),
        };
        let figures = measure(&setup);
        let rate = figures.per_second();
        // Of twice the nodes; several steps at once count as so many.
        let coefficient = before.map(|(n, was)| {
            let doublings = (nodes as f64 / n as f64).log2();
            (rate / was / doublings.exp2()).powf(1.0 / doublings)
        });
        let foretold = before.filter(|_| nodes > SCALING_NODES).map(|(n, was)| {
            let step = steps.iter().sum::<f64>() / steps.len().max(1) as f64;
            was * (step * 2.0).powf((nodes as f64 / n as f64).log2())
        });
        let or_dash =
            |value: Option<f64>, digits: usize| value.map_or("-".into(), |v| format!("{v:.digits$}"));
        println!(
            "{nodes:5} {:9} {rate:11.0} {:9.1} {:9.1} {:7.1} {:6.1}% {:>11} {:>11} {:6.1}",
            setup.in_flight,
            figures.writes.mean() / 1e3,
            us(figures.writes.quantile(0.99)),
            figures.polls_per_command(),
            100.0 * figures.busiest,
            or_dash(coefficient, 3),
            or_dash(foretold, 0),
            (real_time() - started).as_secs_f64()
        );
        if nodes <= SCALING_NODES {
            steps.extend(coefficient);
        }
        before = Some((nodes, rate));
    }
    let overall = steps.iter().map(|step| step.ln()).sum::<f64>() / steps.len().max(1) as f64;
    let good = steps.is_empty() || overall.exp() >= SCALING_MIN;
    println!("scaling coefficient, of each doubling up to {SCALING_NODES} nodes: {:.3}", overall.exp());
    println!(
        "{}: twice the nodes are to do at least {SCALING_MIN} of twice as much, up to {SCALING_NODES}",
        verdict(good)
    );
    good
}

fn degraded(options: &DegradedOptions) -> bool {
    let run = |one_away: bool| -> Figures {
        measure(&Setup {
            seed: options.common.seed,
            nodes: 6,
            scheme: "4+2".parse().expect("a scheme"),
            in_flight: options.in_flight,
            read_share: 70,
            poll_ns: options.common.poll_ns,
            one_away,
            time: Duration::from_millis(options.common.ms),
        })
    };
    let (healthy, degraded) = (run(false), run(true));
    println!(
        "4 KiB, 70 % reads, 4+2 on six nodes, {} in flight, simulated with {} ns of processor for a poll",
        options.in_flight, options.common.poll_ns
    );
    println!(
        "{:>10} {:>11} {:>11} {:>11} {:>12} {:>12} {:>8}",
        "", "commands/s", "mean us", "p99 us", "read p99 us", "write p99 us", "busiest"
    );
    for (name, figures) in [("all six", &healthy), ("one away", &degraded)] {
        let all = figures.all();
        println!(
            "{name:>10} {:11.0} {:11.1} {:11.1} {:12.1} {:12.1} {:7.1}%",
            figures.per_second(),
            all.mean() / 1e3,
            us(all.quantile(0.99)),
            us(figures.reads.quantile(0.99)),
            us(figures.writes.quantile(0.99)),
            100.0 * figures.busiest
        );
    }
    let ratio = |of: &dyn Fn(&Figures) -> f64| of(&degraded) / of(&healthy);
    let p99 = ratio(&|f| f.all().quantile(0.99) as f64);
    println!(
        "{:>10} {:11.3} {:11.3} {p99:11.3}",
        "ratio",
        ratio(&Figures::per_second),
        ratio(&|f| f.all().mean())
    );
    let good = p99 <= DEGRADED_MAX;
    println!("{}: p99 is to be at most {DEGRADED_MAX} times the healthy cluster's", verdict(good));
    good
}

fn even(options: &BalanceOptions) -> bool {
    println!("{} nodes that own a shard each, {}", options.nodes, options.scheme);
    println!("{:>16} {:>9} {:>8} {:>9} {:>6}  in use", "", "furthest", "changed", "had to be", "ratio");
    let (mut furthest, mut moved): (f64, f64) = (0.0, 0.0);
    for rest in balance(options.seed, options.nodes, options.scheme) {
        let ratio = rest.changed as f64 / rest.least.max(1) as f64;
        let used = |&(_, total, used): &(usize, u32, u32)| format!("{used}/{total}");
        println!(
            "{:>16} {:8.2}% {:8} {:9} {ratio:6.2}  {}",
            rest.what,
            100.0 * rest.furthest,
            rest.changed,
            rest.least,
            rest.devices.iter().map(used).collect::<Vec<_>>().join(" ")
        );
        (furthest, moved) = (furthest.max(rest.furthest), moved.max(ratio));
    }
    let good = furthest <= UNEVEN_MAX && moved <= MOVED_MAX;
    println!(
        "{}: each within {:.0} % of its share, and at most {MOVED_MAX} times of what has to moves",
        verdict(good),
        100.0 * UNEVEN_MAX
    );
    good
}

fn verdict(good: bool) -> &'static str {
    if good { "met" } else { "MISSED" }
}
