//! A profile at light load: commands one at a time, and small bursts.

use super::CurveOptions;
use super::told::{self, Told};
use crate::bench::Rw;
use crate::bench::run::{Place, find, measure, verdict};
use crate::client::Client;
use crate::failure::{Failure, Kind};
use peristyle_bench::burst::{Bursts, Seen};
use peristyle_bench::load::{Length, Rate, Workload};
use peristyle_bench::model::fit::{Burst, Profile};
use peristyle_bench::report::Report;
use peristyle_bench::session::{Digests, Session, SessionError};
use peristyle_rt::{RuntimeConfig, block_on};
use std::time::Duration;

/// Quantiles of a lone command's latency that are kept.
const QUANTILES: u32 = 4000;
/// Between two bursts: what is behind the last answer is done, and a target that sleeps when it is idle is still awake.
const GAP: Duration = Duration::from_micros(10);
const WARMUP: Duration = Duration::from_millis(100);
/// The rate of the profile's open loop, beside that of lone commands.
const OPEN_SHARE: f64 = 0.1;
/// All sizes are measured so often, in turns: a slow moment of the machine hits all of them.
const ROUNDS: u32 = 5;
/// Commands of the bursts of one size in one round.
const BURST_COMMANDS: u32 = 10_000;
const BURSTS_MIN: u32 = 300;

/// Of data that one side of a connection receives at once: a buffer of the ring.
const RECEIVED_AT_ONCE: u32 = 64 << 10;
/// What goes with the data of a command, about: headers, an entry.
const PDU_BYTES: u32 = 40;

/// Bursts of one size in all rounds; of the target's work, one figure a round.
#[derive(Clone, Default)]
struct OfSize {
    seen: Seen,
    target_us: Vec<f64>,
}

/// Who measures, and what.
pub struct Measurer<'a> {
    pub options: &'a CurveOptions,
    pub rw: Rw,
}

impl Measurer<'_> {
    fn place(&self) -> Place {
        Place {
            nsids: self.options.volume.into_iter().collect(),
            cores: self.options.core.into_iter().collect(),
            ..Place::of(&self.options.target)
        }
    }

    /// A closed loop of this depth, or an open one at this rate per second with as many in flight at most.
    pub fn load(&self, depth: u32, rate: Option<f64>) -> Result<Report, Failure> {
        let (pattern, read_share) = self.rw.meaning(self.options.read_share);
        let workload = Workload {
            block_bytes: self.options.bs,
            pattern,
            rate: rate.map(|per_second| Rate { per_second, poisson: true }),
            read_share,
            depth,
            length: Length::Time(self.options.runtime),
            warmup: WARMUP,
            seed: self.options.seed,
            ..Workload::default()
        };
        std::thread::sleep(self.options.rest);
        let report = measure(&self.place(), &workload)?;
        verdict(&report)?;
        Ok(report)
    }

    fn burst(&self, size: u32) -> Result<Seen, Failure> {
        let (pattern, read_share) = self.rw.meaning(self.options.read_share);
        let bursts = Bursts {
            size,
            count: (BURST_COMMANDS / size).max(BURSTS_MIN),
            gap: GAP,
            block_bytes: self.options.bs,
            pattern,
            read_share,
            seed: self.options.seed,
        };
        std::thread::sleep(self.options.rest);
        let (place, addr) = (self.place(), self.options.target.addr);
        let config = RuntimeConfig {
            cores: (!place.cores.is_empty()).then(|| place.cores.clone()),
            poll: place.poll,
            buffers: bursts.buffers(),
            ..RuntimeConfig::small()
        };
        let seen = block_on(config, async move {
            let session = Session::connect(&place.target, Digests::default()).await?;
            let volumes = find(&session, &place.nsids).await?;
            bursts.run(&session, volumes[0]).await
        });
        let seen = seen.map_err(|e: SessionError| Failure::new(Kind::NoNode, format!("{addr}: {e}")))?;
        match seen.errors {
            0 => Ok(seen),
            errors => Err(Failure::failed(format!("{errors} commands failed"))),
        }
    }

    /// The whole profile. `node` tells of the target's stages.
    pub fn profile(&self, node: Option<&mut Client>) -> Result<(Profile, Report), Failure> {
        let mut told = node.map(|node| Told::new(node, self.options)).transpose()?;
        let alone = self.load(1, None)?;
        let all = alone.all().latency;
        let all_mean = all.mean();
        if all.count() == 0 {
            return Err(Failure::failed("no command has ended: give it more --runtime"));
        }
        let mut target_us = 0.0;
        if let Some(told) = &mut told {
            // Those of the warm-up were work as well.
            let warm = WARMUP.as_secs_f64() / alone.elapsed.as_secs_f64().max(1e-9);
            let commands = all.count() as f64 * (1.0 + warm);
            target_us = told.alone(commands as u64)? / commands;
        }
        let mut alone_us: Vec<f64> = (0..QUANTILES)
            .map(|n| all.quantile((f64::from(n) + 0.5) / f64::from(QUANTILES)) as f64 / 1000.0)
            .collect();
        // A histogram's quantiles are up to 3 % too high, its mean is right.
        let high = alone_us.iter().sum::<f64>() / f64::from(QUANTILES) / (all.mean() / 1000.0);
        alone_us.iter_mut().for_each(|us| *us /= high);
        let mut all = vec![OfSize::default(); self.options.bursts.len()];
        for n in 0..ROUNDS as usize * all.len() {
            let n = n % all.len();
            let (size, all) = (self.options.bursts[n], &mut all[n]);
            if let Some(told) = &mut told {
                told.begin()?;
            }
            let seen = self.burst(size)?;
            if let Some(told) = &mut told {
                let busy_us = told.bursts(size, seen.last_us.len())?;
                all.target_us.push(busy_us / f64::from(seen.made.max(1)));
            }
            all.seen.last_us.extend(seen.last_us);
            all.seen.host_us.extend(seen.host_us);
        }
        let bursts = self.options.bursts.iter().zip(all);
        let bursts = bursts.map(|(&size, all)| Burst {
            size,
            last_us: median(all.seen.last_us),
            host_us: median(all.seen.host_us),
            target_us: median(all.target_us),
        });
        // So slow that a command seldom meets another.
        let rate = OPEN_SHARE * 1e9 / all_mean;
        let open = self.load(self.options.qd, Some(rate))?;
        let open_commands = open.all().latency.count().max(1) as f64;
        let profile = Profile {
            alone_us,
            open_host_us: open.busy_share * open.elapsed.as_secs_f64() * 1e6 / open_commands,
            bursts: bursts.collect(),
            network_us: self.options.network_us,
            target_us,
            group: (RECEIVED_AT_ONCE / (self.options.bs + PDU_BYTES)).max(1),
            writes: f64::from(100 - self.rw.meaning(self.options.read_share).1) / 100.0,
            reactors: self.options.reactors as usize,
            named: told.as_ref().map(told::Told::named).unwrap_or_default(),
            devices: told.and_then(|told| told.devices()),
        };
        Ok((profile, alone))
    }
}

/// 0 of none.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}
