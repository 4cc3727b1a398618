//! `bench snapshots`: what reads cost deep below snapshots and in clones, and what it takes to make these; on a pool of
//! memory devices in this process.

mod contents;
mod report;

use super::SnapshotsOptions;
use super::pool::{Pool, random_view, runtime};
use crate::failure::Failure;
use crate::wiring::progress_bar;
use contents::{Contents, DEEP, IMAGE, PLAIN, clone, clone_number, draw, snapshot, stamp};
use indicatif::ProgressBar;
use peristyle_base::hist::Histogram;
use peristyle_base::{BLOCK_BYTES, LayerId};
use peristyle_bench::random::Random;
use peristyle_rt::{block_on, join_all, now};
use peristyle_shard::ShardConfig;
use report::{Compared, Found};
use std::cell::{Cell, RefCell};
use std::time::Duration;

const BLOCK: u64 = BLOCK_BYTES as u64;
/// Blocks of one command while volumes are filled, and commands in flight while something is written.
const FILL_BLOCKS: u64 = 120;
const WRITES: usize = 64;
/// Blocks of each volume, and of some snapshots and clones, that are looked at to see whether they hold what they must.
const LOOKS: usize = 1000;

/// Reads of one turn.
#[derive(Clone, Default)]
pub struct Reads {
    pub count: u64,
    pub took: Duration,
    pub latency: Histogram,
    /// Leaves and pages of the map that were read from devices meanwhile.
    pub map_reads: u64,
    pub wrong: u64,
}

impl Reads {
    pub fn iops(&self) -> f64 {
        self.count as f64 / self.took.as_secs_f64()
    }
}

struct Bench<'a> {
    options: &'a SnapshotsOptions,
    pool: Pool,
    contents: Contents,
    random: RefCell<Random>,
    bar: ProgressBar,
}

pub fn command(options: &SnapshotsOptions) -> Result<(), Failure> {
    let options = options.clone();
    block_on(runtime(), async move {
        let found = {
            let mut bench = Bench::new(&options).await?;
            let found = bench.run().await;
            bench.bar.finish_and_clear();
            found?
        };
        report::report(&options, &found)
    })
}

impl<'a> Bench<'a> {
    async fn new(options: &'a SnapshotsOptions) -> Result<Bench<'a>, Failure> {
        let config = ShardConfig { map_cache_bytes: options.map_cache, ..ShardConfig::new(options.scheme) };
        let pool = Pool::new(options.device_size, config).await;
        let blocks = options.volume_size / BLOCK;
        let round = options.round(blocks);
        let clones = options.clones as u64 * options.clone_writes.min(blocks);
        pool.expect_room(2 * blocks + round * options.deep as u64 + clones)?;
        let steps = 2 * blocks + 2 * round * options.deep as u64 + clones;
        let bar = progress_bar("snapshots");
        bar.set_length(steps + 1000 * 2 * (2 * u64::from(options.turns) + 2));
        let contents = Contents::new(blocks, random_view(1).await);
        Ok(Bench { options, pool, contents, random: RefCell::new(Random::new(1)), bar })
    }

    async fn run(&mut self) -> Result<Found, Failure> {
        self.fill().await?;
        let (mut snapshots, mut clones) = (Vec::new(), Vec::new());
        for number in 0..self.options.deep {
            snapshots.push(timed(self.pool.shard.snapshot(&[(DEEP, snapshot(number))])).await?);
            self.overwrite().await?;
        }
        let blocks = self.contents.blocks;
        let deep = self.compare(|_| PLAIN, |_| DEEP).await?;
        self.pool.shard.snapshot(&[(PLAIN, IMAGE)]).await.map_err(Failure::failed)?;
        let number = |n| clone(n, self.options.deep);
        for n in 0..self.options.clones {
            clones.push(timed(self.pool.shard.clone_snapshot(number(n), IMAGE)).await?);
        }
        for n in 0..self.options.clones {
            let own = draw(&mut self.random.borrow_mut(), blocks, self.options.clone_writes);
            self.write(&[number(n)], &own, clone_number(n)).await?;
            self.contents.clones.push(own);
        }
        let all = self.options.clones as u64;
        let cloned = match all {
            0 => None,
            _ => Some(self.compare(|_| PLAIN, |random| number(random.below(all) as usize)).await?),
        };
        let wrong = self.look().await?;
        let accounts = self.accounts();
        self.pool.shard.check_counts().await.map_err(Failure::failed)?;
        Ok(Found { blocks, deep, cloned, snapshots, clones, wrong, accounts })
    }

    async fn fill(&self) -> Result<(), Failure> {
        let shard = &self.pool.shard;
        for volume in [PLAIN, DEEP] {
            shard.ensure_layer(volume, self.contents.blocks).await.map_err(Failure::failed)?;
        }
        let next = Cell::new(0);
        let worker = |_| async {
            while next.get() < self.contents.blocks {
                let at = next.replace(next.get() + FILL_BLOCKS);
                let count = FILL_BLOCKS.min(self.contents.blocks - at);
                let data = self.contents.data(at, count, 0).await;
                for volume in [PLAIN, DEEP] {
                    shard.write(volume, at * BLOCK, data.clone()).await.map_err(Failure::failed)?;
                }
                self.bar.inc(2 * count);
            }
            Ok(())
        };
        join_all((0..8).map(worker)).await.into_iter().collect()
    }

    /// The same blocks of both volumes get the same data.
    async fn overwrite(&mut self) -> Result<(), Failure> {
        let blocks = self.contents.blocks;
        let round = draw(&mut self.random.borrow_mut(), blocks, self.options.round(blocks));
        self.write(&[PLAIN, DEEP], &round, self.contents.rounds.len() as u64 + 1).await?;
        self.contents.rounds.push(round);
        Ok(())
    }

    async fn write(&self, volumes: &[LayerId], blocks: &[u64], number: u64) -> Result<(), Failure> {
        let next = Cell::new(0);
        let worker = |_| async {
            while let Some(&block) = blocks.get(next.replace(next.get() + 1)) {
                let data = self.contents.data(block, 1, number).await;
                for &volume in volumes {
                    let write = self.pool.shard.write(volume, block * BLOCK, data.clone());
                    write.await.map_err(Failure::failed)?;
                }
                self.bar.inc(volumes.len() as u64);
            }
            Ok(())
        };
        join_all((0..WRITES).map(worker)).await.into_iter().collect()
    }

    /// Both in turns, so that a slow minute of the machine hits both; each goes first as often as the other.
    async fn compare(
        &self,
        one: impl Fn(&mut Random) -> LayerId,
        other: impl Fn(&mut Random) -> LayerId,
    ) -> Result<Compared, Failure> {
        let mut turns = Vec::new();
        // The first turn warms up.
        for turn in 0..=u64::from(self.options.turns) {
            let both = match turn % 2 {
                0 => {
                    let one = self.reads(&one, turn).await?;
                    (one, self.reads(&other, turn).await?)
                }
                _ => {
                    let other = self.reads(&other, turn).await?;
                    (self.reads(&one, turn).await?, other)
                }
            };
            if turn > 0 {
                turns.push(both);
            }
        }
        Ok(Compared { turns })
    }

    /// Random blocks, so many at a time, in the way that hosts' reads go.
    async fn reads(&self, volume: &impl Fn(&mut Random) -> LayerId, seed: u64) -> Result<Reads, Failure> {
        let (shard, blocks) = (&self.pool.shard, self.contents.blocks);
        let reads = RefCell::new(Reads::default());
        let map_reads = self.pool.counter("map_reads");
        let (began, runtime) = (now(), self.options.runtime);
        let worker = |worker: u64| {
            let reads = &reads;
            async move {
                let mut random = Random::of_worker(seed, worker);
                loop {
                    let started = now();
                    if started.since(began) >= runtime {
                        return Ok(());
                    }
                    let (volume, block) = (volume(&mut random), random.below(blocks));
                    let found = match shard.try_read(volume, block * BLOCK, BLOCK, started) {
                        Some((view, _)) => stamp(&view).0,
                        None => {
                            let read = shard.read(volume, block * BLOCK, BLOCK).await;
                            let read = read.map_err(Failure::failed)?;
                            read.pieces().first().map_or(u64::MAX, |piece| stamp(piece).0)
                        }
                    };
                    let ended = now();
                    {
                        let reads = &mut *reads.borrow_mut();
                        reads.latency.record(ended.nanos_since(started));
                        reads.count += 1;
                        reads.wrong += u64::from(found != block);
                    }
                    peristyle_rt::yield_now().await;
                }
            }
        };
        let workers = join_all((0..u64::from(self.options.qd)).map(worker)).await;
        workers.into_iter().collect::<Result<(), Failure>>()?;
        self.bar.inc(1000);
        let map_reads = self.pool.counter("map_reads") - map_reads;
        Ok(Reads { took: now().since(began), map_reads, ..reads.into_inner() })
    }

    /// Blocks that are not what they must be, of those that are looked at.
    async fn look(&self) -> Result<u64, Failure> {
        let (contents, options) = (&self.contents, self.options);
        let mut wrong = 0;
        for _ in 0..LOOKS {
            let (block, at, n) = {
                let random = &mut *self.random.borrow_mut();
                let below = |random: &mut Random, bound: usize| random.below(bound.max(1) as u64) as usize;
                (random.below(contents.blocks), below(random, options.deep), below(random, options.clones))
            };
            let now = contents.write_after(options.deep, block);
            let mut expected = vec![(PLAIN, now), (DEEP, now), (IMAGE, now)];
            if options.deep > 0 {
                expected.push((snapshot(at), contents.write_after(at, block)));
            }
            if options.clones > 0 {
                expected.push((clone(n, options.deep), contents.clone_write(n, block)));
            }
            for (volume, write) in expected {
                let read =
                    self.pool.shard.read(volume, block * BLOCK, BLOCK).await.map_err(Failure::failed)?;
                let is_it = read.pieces().first().is_some_and(|piece| contents.is(piece, block, write));
                wrong += u64::from(!is_it);
            }
        }
        Ok(wrong)
    }

    /// What the shard says that everybody takes, beside what was written.
    fn accounts(&self) -> report::Accounts {
        let (accounts, contents) = (self.pool.shard.accounts(), &self.contents);
        let deep = self.options.deep;
        // All that a volume or snapshot and what it is built on must hold.
        let mapped = |id: LayerId| match id {
            PLAIN | IMAGE => contents.blocks,
            DEEP => contents.blocks + contents.overwritten(deep),
            id if id.0 < clone(0, deep).0 => {
                contents.blocks + contents.overwritten((id.0 - snapshot(0).0) as usize)
            }
            id => contents.blocks + contents.clones[(id.0 - clone(0, deep).0) as usize].len() as u64,
        };
        let wrong = accounts.usage.iter().filter(|(id, usage)| usage.unique + usage.shared != mapped(*id));
        report::Accounts {
            of: accounts.usage.len(),
            wrong: wrong.count(),
            own: accounts.usage.iter().map(|(_, usage)| usage.own).sum(),
            nobodys: accounts.nobodys,
            live: accounts.live,
            written: contents.live(),
        }
    }
}

/// How long it takes.
async fn timed<E: std::fmt::Display>(done: impl Future<Output = Result<(), E>>) -> Result<Duration, Failure> {
    let began = now();
    done.await.map_err(Failure::failed)?;
    Ok(now().since(began))
}
