//! `bench collect`: what collection costs, in device bytes per user byte, on a pool of memory devices in this process.

use super::floor::median;
use super::pool::{Pool, extent_blocks, random_view, runtime};
use super::{Choice, CollectOptions, Distribution};
use crate::failure::Failure;
use crate::render::{json, table};
use peristyle_base::hist::Histogram;
use peristyle_base::{BLOCK_BYTES, COLUMN_ROWS, LayerId, Scheme};
use peristyle_bench::random::Random;
use peristyle_column::WritePurpose;
use peristyle_rt::{block_on, join_all, now, sleep_until};
use peristyle_shard::{Policy, ShardConfig};
use serde_json::json;
use std::cell::{Cell, RefCell};
use std::time::Duration;

const LAYER: LayerId = LayerId(1);
/// Blocks of one command while the pool is filled.
const FILL_BLOCKS: u64 = 120;
/// p99s in a second, of writes at a fixed rate: their median leaves out when the machine was away.
const WINDOWS_S: u64 = 4;
/// Looks at where the pool's space is, while its capacity is written once.
const SAMPLES: u64 = 256;

/// What was written, and how long users waited.
#[derive(Clone)]
struct Measured {
    user_bytes: u64,
    device_bytes: [u64; WritePurpose::ALL.len()],
    victims: u64,
    victim_share: f64,
    latency: Histogram,
    /// p99 of each quarter of a second.
    windows: Vec<f64>,
    /// Users' blocks of each frame, on average; those that were overwritten while they waited are not among them.
    frame_blocks: f64,
    absorbed: f64,
    /// Blocks that checkpoints wrote for each that users wrote: leaves, pages, lists of changes, roots.
    map: [f64; 4],
    checkpoints: u64,
    /// Space that holds nothing, by [`IDLE`]: shares of the capacity, on average.
    idle: [f64; IDLE.len()],
}

/// Space that cannot hold users' blocks just now: nobody's, ready, rest of open extents, waiting for a checkpoint, extents
/// with blocks of the map only.
const IDLE: [&str; 5] = ["free", "ready", "open", "dead", "map"];
const MAP: [&str; 4] = ["checkpoint_leaves", "checkpoint_pages", "checkpoint_changes", "checkpoint_roots"];

impl Measured {
    /// Slots are zeroed by a command without data; what memory does for it is shown, and not counted.
    fn written(&self) -> u64 {
        let counted = |p: &WritePurpose| *p != WritePurpose::Zero;
        WritePurpose::ALL
            .iter()
            .zip(self.device_bytes)
            .filter(|(p, _)| counted(p))
            .map(|(_, bytes)| bytes)
            .sum()
    }
    fn ratio(&self) -> f64 {
        self.written() as f64 / self.user_bytes as f64
    }
    /// `None`: there was no fixed rate.
    fn usual_p99_us(&self) -> Option<f64> {
        (!self.windows.is_empty()).then(|| median(self.windows.clone()))
    }
}

pub fn command(options: &CollectOptions) -> Result<(), Failure> {
    let options = options.clone();
    block_on(runtime(), async move {
        let config = ShardConfig {
            ready_extents: options.ready,
            map_cache_bytes: 256 << 20,
            collection: match options.policy {
                Choice::CostBenefit => Policy::CostBenefit,
                Choice::OneStream => Policy::OneStream,
                Choice::Greedy => Policy::Greedy,
            },
            ..ShardConfig::new(options.scheme)
        };
        let pool = Pool::new(options.device_size, config).await;
        let volume = pool.capacity * u64::from(options.fill) / 100;
        let blocks = Blocks::new(options.distribution, volume);
        pool.shard.ensure_layer(LAYER, pool.capacity).await.map_err(Failure::failed)?;
        // Latency of a pool that has room: its first writes, into space that nobody has used.
        let empty = match options.rate {
            0 => None,
            rate => Some(run(&pool, &options, &blocks, volume / 8, rate).await),
        };
        fill(&pool, volume).await;
        let mut parts = Vec::new();
        for _ in 0..options.times {
            parts.push(run(&pool, &options, &blocks, pool.capacity, options.rate).await);
        }
        pool.shard.check_counts().await.map_err(Failure::failed)?;
        report(&options, &pool, volume, &parts, empty)
    })
}

impl Pool {
    fn device_bytes(&self) -> [u64; WritePurpose::ALL.len()] {
        let mut sum = [0; WritePurpose::ALL.len()];
        for server in self.columns.servers() {
            let stats = server.stats(now());
            sum.iter_mut().zip(&stats.writes).for_each(|(sum, writes)| *sum += writes.bytes);
        }
        sum
    }

    /// Extents, by [`IDLE`]. Narrow ones take half of the space or less.
    fn idle(&self) -> [f64; IDLE.len()] {
        let servers = self.columns.servers();
        let free: u32 = servers.iter().map(|s| s.usage().free.saturating_sub(s.usage().reserved)).sum();
        let space = self.shard.stats_snapshot(now()).space;
        let [wide, narrow, shrunk] = space.extents[0].map(|n| n as f64);
        let width = |scheme: Scheme| scheme.width() as f64 / self.scheme.width() as f64;
        [
            f64::from(free) / self.scheme.width() as f64,
            wide + shrunk + narrow * width(self.scheme.narrow()),
            space.open_rows as f64 / f64::from(COLUMN_ROWS),
            (space.waiting_extents - space.map_extents) as f64,
            space.map_extents as f64,
        ]
    }
}

async fn fill(pool: &Pool, volume: u64) {
    let data = random_view(FILL_BLOCKS as usize).await;
    let next = Cell::new(0);
    let worker = |_| async {
        while next.get() < volume {
            let at = next.replace(next.get() + FILL_BLOCKS);
            let blocks = FILL_BLOCKS.min(volume - at);
            let view = data.slice(0..blocks as usize * BLOCK_BYTES);
            pool.shard.write(LAYER, at * BLOCK_BYTES as u64, view).await.expect("there is room");
        }
    };
    join_all((0..8).map(worker)).await;
}

/// Writes so many single blocks; `rate`: so many a second, or as fast as it goes.
async fn run(pool: &Pool, options: &CollectOptions, blocks: &Blocks, count: u64, rate: u64) -> Measured {
    let data = random_view(1).await;
    let names = ["victims", "victim_shares", "frames", "frame_blocks", "checkpoints"];
    let counters = || (names.map(|n| pool.counter(n)), MAP.map(|n| pool.counter(n)), pool.device_bytes());
    let before = counters();
    let idle = RefCell::new(Vec::with_capacity(2 * SAMPLES as usize));
    let (left, latency) = (Cell::new(count), RefCell::new(Histogram::default()));
    let (window, windows) = (RefCell::new(Histogram::default()), RefCell::new(Vec::new()));
    let began = now();
    let worker = |_| async {
        while left.get() > 0 {
            let number = count - left.replace(left.get() - 1);
            let started = match (number * 1_000_000_000).checked_div(rate) {
                None => now(),
                // It waits from when it should have begun.
                Some(at) => {
                    let due = began + Duration::from_nanos(at);
                    sleep_until(due).await;
                    due
                }
            };
            let offset = blocks.next() * BLOCK_BYTES as u64;
            pool.shard.write(LAYER, offset, data.clone()).await.expect("collection makes room");
            let took = now().nanos_since(started);
            latency.borrow_mut().record(took);
            if rate > 0 {
                window.borrow_mut().record(took);
                if window.borrow().count() == rate / WINDOWS_S {
                    windows.borrow_mut().push(p99_us(&window.take()));
                }
            }
            if number.is_multiple_of((count / SAMPLES).max(1)) {
                idle.borrow_mut().push(pool.idle());
            }
        }
    };
    join_all((0..options.qd).map(worker)).await;
    let after = counters();
    let [victims, shares, frames, frame_blocks, checkpoints] =
        std::array::from_fn(|i| after.0[i] - before.0[i]);
    let idle = idle.into_inner();
    let extents = pool.capacity as f64 / extent_blocks(pool.scheme) as f64;
    Measured {
        user_bytes: count * BLOCK_BYTES as u64,
        device_bytes: std::array::from_fn(|i| after.2[i] - before.2[i]),
        victims,
        victim_share: shares as f64 / 1e6 / victims.max(1) as f64,
        latency: latency.into_inner(),
        windows: windows.into_inner(),
        frame_blocks: frame_blocks as f64 / frames.max(1) as f64,
        absorbed: 1.0 - frame_blocks as f64 / count as f64,
        map: std::array::from_fn(|i| (after.1[i] - before.1[i]) as f64 / count as f64),
        checkpoints,
        idle: std::array::from_fn(|i| idle.iter().map(|x| x[i]).sum::<f64>() / idle.len() as f64 / extents),
    }
}

fn p99_us(latency: &Histogram) -> f64 {
    latency.quantile(0.99) as f64 / 1e3
}

/// Which block is written next.
struct Blocks {
    random: RefCell<Random>,
    count: u64,
    /// Sums of 1/i^0.99; empty for uniform.
    ranks: Vec<f64>,
    /// Each rank's block: the ranks are dealt out at random.
    order: Vec<u32>,
}

impl Blocks {
    fn new(distribution: Distribution, count: u64) -> Blocks {
        let mut random = Random::new(1);
        let (mut ranks, mut order) = (Vec::new(), Vec::new());
        if distribution == Distribution::Zipf {
            let mut sum = 0.0;
            ranks = (1..=count)
                .map(|rank| {
                    sum += (rank as f64).powf(-0.99);
                    sum
                })
                .collect();
            order = (0..count as u32).collect();
            for i in (1..order.len()).rev() {
                order.swap(i, (random.next_u64() % (i as u64 + 1)) as usize);
            }
        }
        Blocks { random: RefCell::new(random), count, ranks, order }
    }

    fn next(&self) -> u64 {
        let unit = self.random.borrow_mut().unit();
        match self.ranks.last() {
            None => (unit * self.count as f64) as u64,
            Some(sum) => {
                let rank = self.ranks.partition_point(|s| *s < unit * sum);
                self.order[rank.min(self.order.len() - 1)] as u64
            }
        }
    }
}

/// Device bytes per user byte of greedy cleaning under uniform writes at this utilisation, headers left out.
fn analytic_limit(utilisation: f64, scheme: Scheme) -> f64 {
    let (mut low, mut high) = (1e-9, 1.0 - 1e-9);
    for _ in 0..100 {
        let v: f64 = (low + high) / 2.0;
        match (v - 1.0) / v.ln() < utilisation {
            true => low = v,
            false => high = v,
        }
    }
    scheme.width() as f64 / scheme.k() as f64 / (1.0 - low)
}

/// Why it is what it is.
fn explain(m: &Measured, utilisation: f64, scheme: Scheme) {
    let list = |names: &[&str], values: Vec<String>| {
        names.iter().zip(values).map(|(n, v)| format!("{n} {v}")).collect::<Vec<_>>().join(", ")
    };
    println!(
        "users' frames have {:.0} blocks; {:.1} % of the blocks were overwritten while they waited for one",
        m.frame_blocks,
        100.0 * m.absorbed
    );
    println!(
        "{} checkpoints; blocks of the map for each of users: {}",
        m.checkpoints,
        list(&["leaves", "pages", "changes", "roots"], m.map.map(|v| format!("{v:.4}")).into())
    );
    let idle: f64 = m.idle.iter().sum();
    println!(
        "of the capacity no blocks can lie in {:.1} %: {}",
        100.0 * idle,
        list(&IDLE, m.idle.map(|v| format!("{:.2}", 100.0 * v)).into())
    );
    let real = utilisation / (1.0 - idle);
    println!(
        "so {:.1} % of the rest is full; greedy cleaning of uniform writes there has {:.3}",
        100.0 * real,
        analytic_limit(real, scheme)
    );
}

fn report(
    options: &CollectOptions,
    pool: &Pool,
    volume: u64,
    parts: &[Measured],
    empty: Option<Measured>,
) -> Result<(), Failure> {
    let limit = analytic_limit(volume as f64 / pool.capacity as f64, options.scheme);
    let user: u64 = parts.iter().map(|p| p.user_bytes).sum();
    let device: u64 = parts.iter().map(Measured::written).sum();
    let total = device as f64 / user as f64;
    let last = parts.last().expect("once at least");
    if options.json {
        let parts: Vec<_> = parts
            .iter()
            .map(|p| {
                json!({"ratio": p.ratio(), "victims": p.victims, "victim_share": p.victim_share,
                "p99_us": p99_us(&p.latency), "usual_p99_us": p.usual_p99_us(),
                "frame_blocks": p.frame_blocks, "idle": p.idle, "map": p.map})
            })
            .collect();
        let all = empty.as_ref().map(|m| p99_us(&m.latency));
        let usual = empty.as_ref().and_then(Measured::usual_p99_us);
        let out = json!({"device_bytes_per_user_byte": total, "limit": limit, "parts": parts,
            "empty_p99_us": all, "empty_usual_p99_us": usual});
        print!("{}", json(&out));
    } else {
        let line = |name: String, m: &Measured| {
            let mut line = vec![name, format!("{:.2}", m.ratio())];
            line.extend(m.device_bytes.iter().map(|b| format!("{:.3}", *b as f64 / m.user_bytes as f64)));
            let usual = m.usual_p99_us().map_or("-".to_owned(), |us| format!("{us:.0}"));
            line.extend([m.victims.to_string(), format!("{:.3}", m.victim_share)]);
            line.extend([format!("{:.0}", p99_us(&m.latency)), usual]);
            line
        };
        let mut lines: Vec<_> =
            parts.iter().enumerate().map(|(i, m)| line(format!("capacity, time {}", i + 1), m)).collect();
        lines.extend(empty.iter().map(|m| line("empty".to_owned(), m)));
        let mut names = vec!["", "device/user"];
        names.extend(WritePurpose::ALL.iter().map(|p| p.name()));
        names.extend(["victims", "live share", "p99 us", "usual"]);
        print!("{}", table(&names, &[1], lines));
        if let Some((beside, empty)) = last.usual_p99_us().zip(empty.and_then(|m| m.usual_p99_us())) {
            println!(
                "p99 beside collection {:.2} times that of the empty pool (medians of each quarter of a second's)",
                beside / empty
            );
        }
        explain(last, volume as f64 / pool.capacity as f64, options.scheme);
        println!("device bytes per user byte {total:.3}; greedy cleaning of uniform writes has {limit:.3}");
    }
    match options.bar {
        Some(bar) if total > bar => Err(Failure::failed(format!("{total:.3} is above {bar:.3}"))),
        _ => Ok(()),
    }
}
