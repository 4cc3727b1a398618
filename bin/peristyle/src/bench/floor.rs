//! `bench floor`: reads at depth 1 beside an echo of the same sizes over plain sockets, in turns.

use super::FloorOptions;
use super::echo::{READ_4K, echo, us};
use super::run::{Place, fill, find, measure, verdict};
use crate::failure::{Failure, Kind};
use crate::render::{json, table};
use peristyle_bench::host::Payload;
use peristyle_bench::load::{Length, Workload};
use peristyle_bench::session::{Digests, Session, SessionError};
use peristyle_rt::{Buf, RuntimeConfig, block_on};
use serde_json::json;
use std::time::Duration;

const BLOCK: u32 = 4096;
/// Places, evenly over the volume, that must have been written.
const LOOKS: u64 = 256;

/// One turn measures both, one after the other, so that a slow minute of the machine hits both.
pub fn command(options: &FloorOptions) -> Result<(), Failure> {
    let place = Place {
        nsids: options.volume.into_iter().collect(),
        cores: options.cores.get(1).copied().into_iter().collect(),
        ..Place::of(&options.target)
    };
    if options.fill {
        fill(&place, look(&place)?.0, "volume")?;
    }
    if !look(&place)?.1 {
        let text = "the volume has blocks that nobody has written: `--fill` writes it, what is on it is lost";
        return Err(Failure::failed(text));
    }
    let workload = reads(options.rounds);
    let (mut echoes, mut reads) = (Vec::new(), Vec::new());
    for _ in 0..options.turns {
        let times = echo(READ_4K, options.rounds, 1, &options.cores).map_err(Failure::failed)?;
        echoes.push(us(times.quantile(0.5)));
        let report = measure(&place, &workload)?;
        verdict(&report)?;
        reads.push(us(report.reads.latency.quantile(0.5)));
    }
    let ratios: Vec<f64> = reads.iter().zip(&echoes).map(|(read, echo)| read / echo).collect();
    let [echo, read, ratio] = [echoes.clone(), reads.clone(), ratios.clone()].map(median);
    if options.json {
        print!(
            "{}",
            json(&json!({"echo_p50_us": echo, "read_p50_us": read, "ratio": ratio,
                         "turns": {"echo_p50_us": echoes, "read_p50_us": reads, "ratio": ratios}}))
        );
    } else {
        let line = |name: &str, all: &[f64], median: f64| {
            let all: Vec<String> = all.iter().map(|v| format!("{v:.2}")).collect();
            vec![name.to_owned(), format!("{median:.2}"), all.join(" ")]
        };
        let lines = [
            line("echo 72 -> 4120 p50, us", &echoes, echo),
            line("read 4 KiB at depth 1 p50, us", &reads, read),
            line("ratio", &ratios, ratio),
        ];
        print!("{}", table(&["", "median", "turns"], &[1], lines));
    }
    match options.bar {
        Some(bar) if ratio > bar => Err(Failure::failed(format!("the ratio {ratio:.2} is above {bar:.2}"))),
        _ => Ok(()),
    }
}

/// The volume's bytes, and whether what was looked at had been written: of other blocks a target reads nothing, and
/// answers with zeros.
fn look(place: &Place) -> Result<(u64, bool), Failure> {
    let (place, addr) = (place.clone(), place.target.addr);
    block_on(RuntimeConfig::small(), async move {
        let session = Session::connect(&place.target, Digests::default()).await?;
        let namespace = find(&session, &place.nsids).await?[0];
        session.request_queues(1).await?;
        let queue = session.ticket().queue(1, 2).await?;
        let (blocks, mut is_written) = (namespace.bytes / u64::from(BLOCK), true);
        let mut buf = Buf::alloc(BLOCK as usize).await;
        for i in 0..LOOKS {
            let offset = blocks * i / LOOKS * u64::from(BLOCK);
            let answer = queue.command(namespace.read(offset, BLOCK), Payload::FromTarget(buf)).await?;
            buf = answer.data.expect("a command with a buffer keeps it");
            is_written &= answer.cqe.status().is_success() && buf.iter().any(|&byte| byte != 0);
        }
        queue.close();
        Ok((namespace.bytes, is_written))
    })
    .map_err(|error: SessionError| Failure::new(Kind::NoNode, format!("{addr}: {error}")))
}

/// So many reads of random blocks, one after the other.
fn reads(count: u32) -> Workload {
    Workload {
        block_bytes: BLOCK,
        length: Length::Count(u64::from(count)),
        warmup: Duration::from_millis(100),
        ..Workload::default()
    }
}

/// # Panics — of none.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
    }
}
