//! What `bench snapshots` found, and whether it is good enough.

use super::super::{SnapshotsOptions, floor};
use super::Reads;
use crate::failure::Failure;
use crate::render::{json, table};
use peristyle_base::BLOCK_BYTES;
use peristyle_base::hist::Histogram;
use peristyle_base::units::format_bytes;
use serde_json::{Value, json};
use std::time::Duration;

/// Reads without and with, turn by turn.
pub struct Compared {
    pub turns: Vec<(Reads, Reads)>,
}

pub struct Found {
    pub blocks: u64,
    pub deep: Compared,
    pub cloned: Option<Compared>,
    /// How long each took to make.
    pub snapshots: Vec<Duration>,
    pub clones: Vec<Duration>,
    pub wrong: u64,
    pub accounts: Accounts,
}

/// In blocks.
pub struct Accounts {
    /// Volumes and snapshots, and those of which unique and shared blocks are not what was written.
    pub of: usize,
    pub wrong: usize,
    /// Of all own layers, of layers that are nobody's, and of the pool.
    pub own: u64,
    pub nobodys: u64,
    pub live: u64,
    /// What the pool must hold.
    pub written: u64,
}

impl Accounts {
    fn add_up(&self) -> bool {
        self.wrong == 0 && self.own + self.nobodys == self.live && self.live == self.written
    }
}

fn sorted(mut values: Vec<f64>) -> Vec<f64> {
    values.sort_by(f64::total_cmp);
    values
}

/// 0 of none.
fn median(values: &[f64]) -> f64 {
    if values.is_empty() { 0.0 } else { floor::median(values.to_vec()) }
}

impl Compared {
    fn iops(&self) -> [Vec<f64>; 2] {
        let (one, other) = self.turns.iter().map(|(one, other)| (one.iops(), other.iops())).unzip();
        [one, other]
    }
    /// Of each turn, ascending.
    fn ratios(&self) -> Vec<f64> {
        sorted(self.turns.iter().map(|(one, other)| other.iops() / one.iops()).collect())
    }
    /// Percent by which reads are slower.
    fn slower(&self) -> f64 {
        100.0 * (1.0 - median(&self.ratios()))
    }
    fn wrong(&self) -> u64 {
        self.turns.iter().map(|(one, other)| one.wrong + other.wrong).sum()
    }

    fn line(name: String, reads: &[&Reads]) -> Vec<String> {
        let iops: Vec<f64> = reads.iter().map(|r| r.iops() / 1e3).collect();
        let mut latency = Histogram::default();
        reads.iter().for_each(|r| latency.merge(&r.latency));
        let us = |share: f64| format!("{:.1}", latency.quantile(share) as f64 / 1e3);
        let turns: Vec<String> = iops.iter().map(|v| format!("{v:.0}")).collect();
        let map_reads: u64 = reads.iter().map(|r| r.map_reads).sum();
        let count: u64 = reads.iter().map(|r| r.count).sum();
        vec![
            name,
            format!("{:.0}", median(&iops)),
            us(0.5),
            us(0.99),
            format!("{:.3}", map_reads as f64 / count.max(1) as f64),
            turns.join(" "),
        ]
    }
    fn lines(&self, names: [String; 2]) -> [Vec<String>; 2] {
        let (one, other): (Vec<_>, Vec<_>) = self.turns.iter().map(|(one, other)| (one, other)).unzip();
        let [first, second] = names;
        [Self::line(first, &one), Self::line(second, &other)]
    }
    fn said(&self) -> String {
        let ratios = self.ratios();
        let (least, most) = (ratios.first().unwrap_or(&0.0), ratios.last().unwrap_or(&0.0));
        format!("{:.3} ({least:.3} to {most:.3})", median(&ratios))
    }
    fn json(&self) -> Value {
        let [one, other] = self.iops();
        json!({"iops_without": one, "iops": other, "ratio": median(&self.ratios()), "ratios": self.ratios()})
    }
}

fn ms(times: &[Duration]) -> Vec<f64> {
    times.iter().map(|time| time.as_secs_f64() * 1e3).collect()
}

pub fn report(options: &SnapshotsOptions, found: &Found) -> Result<(), Failure> {
    let longest = |times: &[Duration]| times.iter().max().copied().unwrap_or_default();
    let a = &found.accounts;
    if options.json {
        let made = |times: &[Duration]| json!({"count": times.len(), "median_ms": median(&ms(times)), "max_ms": longest(times).as_secs_f64() * 1e3});
        let out = json!({
            "volume_bytes": found.blocks * BLOCK_BYTES as u64,
            "deep": found.deep.json(),
            "clones_of_one_image": found.cloned.as_ref().map(Compared::json),
            "snapshot_create": made(&found.snapshots),
            "clone_create": made(&found.clones),
            "accounts": {"volumes_and_snapshots": a.of, "wrong": a.wrong, "own_blocks": a.own, "nobodys_blocks": a.nobodys,
                         "live_blocks": a.live, "written_blocks": a.written, "add_up": a.add_up()},
            "wrong_reads": found.wrong,
        });
        print!("{}", json(&out));
    } else {
        let mut lines: Vec<Vec<String>> =
            found.deep.lines(["no snapshots".into(), format!("{} snapshots deep", options.deep)]).into();
        if let Some(cloned) = &found.cloned {
            lines.extend(
                cloned.lines(["the image's volume".into(), format!("{} clones of it", options.clones)]),
            );
        }
        let header = ["", "kIOPS", "p50 us", "p99 us", "map reads", "each turn"];
        print!("{}", table(&header, &[1, 2, 3, 4], lines));
        println!(
            "volumes of {}, random reads of 4 KiB, {} in flight, {} turns; beside none, medians of the turns:",
            format_bytes(found.blocks * BLOCK_BYTES as u64),
            options.qd,
            options.turns
        );
        println!("  {} snapshots deep {}", options.deep, found.deep.said());
        if let Some(cloned) = &found.cloned {
            println!("  {} clones {}", options.clones, cloned.said());
        }
        for (what, times) in [("snapshot", &found.snapshots), ("clone", &found.clones)] {
            if !times.is_empty() {
                let (all, each) = (times.iter().sum::<Duration>(), median(&ms(times)));
                let most = longest(times).as_secs_f64() * 1e3;
                println!(
                    "making a {what} takes {each:.3} ms, {most:.3} at most; {} took {:.1} ms",
                    times.len(),
                    all.as_secs_f64() * 1e3
                );
            }
        }
        println!(
            "{} volumes and snapshots have {} blocks of their own, layers that are nobody's {}: {} live blocks, of {} written; \
             unique and shared blocks are wrong for {}",
            a.of, a.own, a.nobodys, a.live, a.written, a.wrong
        );
    }
    judge(options, found)
}

fn judge(options: &SnapshotsOptions, found: &Found) -> Result<(), Failure> {
    let compared = [Some(&found.deep), found.cloned.as_ref()];
    let wrong = found.wrong + compared.iter().flatten().map(|c| c.wrong()).sum::<u64>();
    if wrong > 0 {
        return Err(Failure::failed(format!("{wrong} blocks were not what they must be")));
    }
    if !found.accounts.add_up() {
        return Err(Failure::failed("the accounts of volumes and snapshots do not add up"));
    }
    if let (Some(bar), Some(longest)) = (options.snapshot_bar, found.snapshots.iter().max())
        && *longest > bar
    {
        return Err(Failure::failed(format!("a snapshot took {longest:?}, more than {bar:?}")));
    }
    let bars = [("deep below snapshots", options.bar), ("of clones", options.clone_bar)];
    for (compared, (what, bar)) in compared.into_iter().zip(bars) {
        let slower = compared.map_or(0.0, Compared::slower);
        if bar.is_some_and(|bar| slower > bar) {
            return Err(Failure::failed(format!("reads {what} are {slower:.1} % slower")));
        }
    }
    Ok(())
}
