//! What `bench series` is asked for, and what of it makes figures comparable.

use crate::bench::{size64, time};
use clap::Args;
use peristyle_base::Scheme;
use peristyle_bench::session::Target;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::time::Duration;

/// A decimal hundred, as disks are sold.
const DATA: u64 = 100_000_000_000;
const QUICK_DATA: u64 = 1 << 30;

/// 42 tests, {read, write} x {random, semi-random, sequential} x {4K to 1M}, each at the depth that keeps latency low
///
/// The depth of a test is the highest at which mean, p99 and p99.5 stay within 1.5 times those of depth 1. The data set is written
/// from end to end first, and part of it again at random. What was measured is kept in --out after each test: started again, the
/// series goes on behind it.
#[derive(Args, Debug, Clone)]
#[command(after_help = "\
Writes destroy what is on the volume of --target.
Examples:
  peristyle bench series --quick
  peristyle bench series --scheme 4+2 --data 20GiB --dir /mnt/nvme --out 4+2.json
  peristyle bench series --target tcp://10.0.0.1:4420 --label spdk-raid1 --data 50GiB
  peristyle bench series --plan bench/series.toml
  peristyle bench series --plan bench/series.toml --class vm-2core-file --nodes 1 --scheme 4+2")]
pub struct SeriesOptions {
    /// A volume of this target, in place of a store of its own for each scheme
    #[arg(long, value_name = "URL")]
    pub target: Option<Target>,
    /// Namespace of the target [default: the first]
    #[arg(long, value_name = "NSID", requires = "target")]
    pub volume: Option<u32>,
    /// What results of the target are called [default: its address]
    #[arg(long, value_name = "NAME", requires = "target")]
    pub label: Option<String>,
    /// Schemes of its own stores, one after the other
    #[arg(long, default_value = "1+1,2+2,4+2", value_name = "K+M,...", value_delimiter = ',')]
    pub scheme: Vec<Scheme>,
    /// Folder for its own stores, six sparse files each [default: the system's temporary folder]
    #[arg(long, value_name = "PATH")]
    pub dir: Option<PathBuf>,
    /// Bytes of the data set; less where there is no room for it, which is said [default: 100GB, with --quick 1GiB]
    #[arg(long, value_name = "SIZE", value_parser = size64)]
    pub data: Option<u64>,
    /// Short probes and runs: five minutes for a scheme
    #[arg(long)]
    pub quick: bool,
    /// Only tests whose name has one of these in it, such as randread or -4k
    #[arg(long, value_name = "TEXT,...", allow_hyphen_values = true, value_delimiter = ',')]
    pub only: Vec<String>,
    /// The largest depth that is tried
    #[arg(long, default_value_t = 256, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub qd_max: u32,
    /// Of each run at the depth that was found [default: 5s, with --quick 1s]
    #[arg(long, value_name = "TIME", value_parser = time)]
    pub runtime: Option<Duration>,
    /// Of each look at a depth [default: 2s, with --quick 300ms]
    #[arg(long, value_name = "TIME", value_parser = time)]
    pub probe: Option<Duration>,
    /// Runs at the depth that was found; medians count [default: 3, with --quick 1]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=99))]
    pub repeat: Option<u32>,
    /// The data set is there already: it is neither written nor overwritten first
    #[arg(long, requires = "target")]
    pub prepared: bool,
    /// Cores of target (a store of its own) and generator [default: not pinned]
    #[arg(long, value_delimiter = ',', value_name = "TARGET,GENERATOR")]
    pub cores: Vec<usize>,
    /// Where results are kept
    #[arg(long, default_value = "series.json", value_name = "FILE", conflicts_with = "plan")]
    pub out: PathBuf,
    /// Forget what --out has
    #[arg(long)]
    pub again: bool,
    /// A plan of hardware classes, nodes and schemes: lists its series, or runs the one of --class, --nodes and --scheme
    #[arg(long, value_name = "FILE")]
    pub plan: Option<PathBuf>,
    #[arg(long, value_name = "NAME", requires = "plan")]
    pub class: Option<String>,
    #[arg(long, default_value_t = 1, value_name = "N", requires = "plan")]
    pub nodes: u32,
    /// A line for each test that is done
    #[arg(long)]
    pub say: bool,
    #[arg(long)]
    pub json: bool,
}

/// What results are compared by: those of other settings are of another series.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    pub data_bytes: u64,
    pub churn_percent: u32,
    pub qd_max: u32,
    pub runtime_s: f64,
    pub probe_s: f64,
    pub repeat: u32,
    /// Measurements of depth 1.
    pub base_turns: usize,
    /// How exactly the depth is looked for, a share of it.
    pub resolution: f64,
}

impl Settings {
    pub fn runtime(&self) -> Duration {
        Duration::from_secs_f64(self.runtime_s)
    }
    pub fn probe(&self) -> Duration {
        Duration::from_secs_f64(self.probe_s)
    }
}

impl SeriesOptions {
    pub fn data(&self) -> u64 {
        self.data.unwrap_or(if self.quick { QUICK_DATA } else { DATA })
    }
    pub fn label(&self) -> String {
        let address = || self.target.as_ref().map_or(String::new(), |target| target.addr.to_string());
        self.label.clone().unwrap_or_else(address)
    }
    pub fn wants(&self, name: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|part| name.contains(part))
    }
    pub fn daemon_options(&self) -> Vec<String> {
        let core = self
            .cores
            .first()
            .map(|core| ["--reactors", "1", "--cores", &core.to_string()].map(String::from));
        core.into_iter().flatten().collect()
    }
    pub fn settings(&self, data_bytes: u64) -> Settings {
        let or = |time: Option<Duration>, full, quick| {
            super::seconds(time.unwrap_or(Duration::from_millis(if self.quick { quick } else { full })))
        };
        Settings {
            data_bytes,
            churn_percent: if self.quick { 5 } else { 20 },
            qd_max: self.qd_max,
            runtime_s: or(self.runtime, 5000, 1000),
            probe_s: or(self.probe, 2000, 300),
            repeat: self.repeat.unwrap_or(if self.quick { 1 } else { 3 }),
            base_turns: if self.quick { 1 } else { 3 },
            resolution: if self.quick { 0.25 } else { 0.0 },
        }
    }
}
