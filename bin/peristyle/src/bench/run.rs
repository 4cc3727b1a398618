//! `bench run`: reactors that make the load, one report of all.

use super::RunOptions;
use crate::failure::{Failure, Kind};
use crate::render::{json, table};
use peristyle_bench::load::{Gate, Part, Workload, drive};
use peristyle_bench::pattern::{Moments, Placement};
use peristyle_bench::report::{Figures, Report};
use peristyle_bench::session::{Namespace, Session, SessionError, Target};
use peristyle_rt::{PollMode, RuntimeConfig};
use serde_json::{Value, json};
use std::sync::mpsc;
use std::time::Duration;

/// Above this share of late commands, an open loop was none.
const LATE_SHARE_MAX: f64 = 0.01;
/// Above this share of its time at work, the generator may be what is measured.
const BUSY_SHARE_MAX: f64 = 0.9;

/// Where and on what the load is made.
#[derive(Clone, Debug)]
pub struct Place {
    pub target: Target,
    pub nsid: Option<u32>,
    pub reactors: u16,
    pub cores: Vec<usize>,
    pub poll: PollMode,
}

impl From<&RunOptions> for Place {
    fn from(options: &RunOptions) -> Place {
        let cores = options.cores.clone();
        Place {
            target: options.target.clone(),
            nsid: options.volume,
            reactors: if cores.is_empty() { options.reactors } else { cores.len() as u16 },
            cores,
            poll: options.poll.into(),
        }
    }
}

pub fn command(options: &RunOptions) -> Result<(), Failure> {
    let (place, workload) = (Place::from(options), options.workload());
    let report = measure(&place, &workload)?;
    if options.json {
        print!("{}", json(&document(&workload, &report)));
    } else {
        print!("{}", text(&report));
    }
    verdict(&report)
}

pub fn verdict(report: &Report) -> Result<(), Failure> {
    match (&report.lost, report.mismatches, report.errors) {
        (Some(error), ..) => Err(Failure::failed(error)),
        (None, 0, 0) => Ok(()),
        (None, wrong, errors) => {
            Err(Failure::failed(format!("{wrong} reads were wrong, {errors} commands failed")))
        }
    }
}

enum Problem {
    Session(SessionError),
    Workload(String),
}

/// Runs the load to its end.
pub fn measure(place: &Place, workload: &Workload) -> Result<Report, Failure> {
    let reactors = place.reactors.min(workload.jobs);
    let gate = Gate::new(reactors);
    let (tell, hear) = mpsc::channel();
    let seeds = (0..reactors)
        .map(|index| {
            let part = Part { index, of: reactors, gate: gate.clone() };
            (part, place.clone(), workload.clone(), tell.clone())
        })
        .collect();
    drop(tell);
    let config = RuntimeConfig {
        reactors: reactors as usize,
        cores: (!place.cores.is_empty()).then(|| place.cores.clone()),
        poll: place.poll,
        buffers: workload.buffers(),
        ..RuntimeConfig::default()
    };
    peristyle_rt::run(config, seeds, |(part, place, workload, tell)| async move {
        let result = one_reactor(&place, &workload, &part).await;
        if result.is_err() {
            part.gate.give_up();
        }
        // Whoever asked waits for it below.
        let _ = tell.send(result);
    })
    .map_err(Failure::failed)?;
    let mut whole: Option<Report> = None;
    for result in hear {
        let report = result.map_err(|problem| match problem {
            Problem::Session(error) => Failure::new(Kind::NoNode, format!("{}: {error}", place.target.addr)),
            Problem::Workload(text) => Failure::usage(text),
        })?;
        match &mut whole {
            Some(whole) => whole.merge(&report),
            none => *none = Some(report),
        }
    }
    whole.ok_or_else(|| Failure::failed("no reactor has measured"))
}

async fn one_reactor(place: &Place, workload: &Workload, part: &Part) -> Result<Report, Problem> {
    let session = Session::connect(&place.target, workload.digests).await.map_err(Problem::Session)?;
    let namespace = find(&session, place.nsid).await.map_err(Problem::Session)?;
    workload.check(&namespace, &session).map_err(Problem::Workload)?;
    drive(&session, namespace, workload, part).await.map_err(Problem::Session)
}

pub async fn find(session: &Session, nsid: Option<u32>) -> Result<Namespace, SessionError> {
    match nsid {
        Some(nsid) => session.namespace(nsid).await,
        None => session.first_namespace().await,
    }
}

fn rows(report: &Report) -> Vec<(&'static str, Figures)> {
    let mut rows = Vec::new();
    let (reads, writes) = (report.reads.latency.count(), report.writes.latency.count());
    if reads > 0 || writes == 0 {
        rows.push(("read", report.reads.clone()));
    }
    if writes > 0 {
        rows.push(("write", report.writes.clone()));
    }
    if rows.len() == 2 {
        rows.push(("all", report.all()));
    }
    rows
}

fn text(report: &Report) -> String {
    let header = ["", "IOPS", "MB/s", "mean", "p50", "p90", "p95", "p99", "p99.5", "p99.9", "max"];
    let right: Vec<usize> = (1..header.len()).collect();
    let lines = rows(report).into_iter().map(|(name, figures)| {
        let mut row = vec![name.to_owned(), format!("{:.0}", figures.per_second(report.elapsed))];
        row.push(format!("{:.1}", figures.bytes_per_second(report.elapsed) / 1e6));
        row.extend(figures.latency_us().map(|(_, us)| format!("{us:.1}")));
        row
    });
    let mut out = table(&header, &right, lines);
    out += &format!(
        "{:.2} s, latency in microseconds; {} errors, {} wrong reads; the generator had work {:.0} % of the time\n",
        report.elapsed.as_secs_f64(),
        report.errors,
        report.mismatches,
        report.busy_share * 100.0
    );
    out += &placement(&report.placement);
    if report.due > 0 {
        let (share, unserved) = (report.late_share() * 100.0, report.unserved);
        out += &format!("{share:.2} % of the commands began late, {unserved} of them not before the end\n");
    }
    if report.late_share() > LATE_SHARE_MAX {
        out += "note: latency counts from when a command should have begun; it waited for others: use more --qd, --jobs or --reactors, or less --rate\n";
    }
    if let Some(status) = report.first_error {
        out += &format!("first error: {status:?}\n");
    }
    if let Some(offset) = report.first_mismatch {
        out += &format!("first wrong read: at byte {offset}\n");
    }
    if report.busy_share > BUSY_SHARE_MAX {
        out += "note: the generator was busy all the time: these figures may be its own limit; use more --reactors\n";
    }
    out
}

/// In bytes, with the standard deviation: a variance says little to a reader.
fn placement(placement: &Placement) -> String {
    let Placement { size, distance, .. } = placement;
    format!(
        "requests of {:.0} bytes (deviation {:.0}), {:.0} bytes apart (deviation {:.0}), {:.1} % of them sequential\n",
        size.mean(),
        size.variance().sqrt(),
        distance.mean(),
        distance.variance().sqrt(),
        placement.sequential_share() * 100.0
    )
}

pub fn document(workload: &Workload, report: &Report) -> Value {
    let mut out = json!({
        "block_bytes": workload.block_bytes,
        "pattern": workload.pattern.to_string(),
        "rate": workload.rate.map(|rate| rate.per_second),
        "arrival": workload.rate.map(|rate| if rate.poisson { "poisson" } else { "even" }),
        "unserved": workload.rate.map(|_| report.unserved),
        "late_share": workload.rate.map(|_| report.late_share()),
        "read_share": workload.read_share,
        "depth": workload.depth,
        "jobs": workload.jobs,
        "header_digest": workload.digests.header,
        "data_digest": workload.digests.data,
        "verify": workload.verify,
        "seed": workload.seed,
        "size_bytes": moments(&report.placement.size),
        "distance_bytes": moments(&report.placement.distance),
        "sequential_share": report.placement.sequential_share(),
        "elapsed_s": report.elapsed.as_secs_f64(),
        "errors": report.errors,
        "wrong_reads": report.mismatches,
        "generator_busy_share": report.busy_share,
        "generator_is_bottleneck": report.busy_share > BUSY_SHARE_MAX,
    });
    for (name, figures) in rows(report) {
        out[name] = figures_json(&figures, report.elapsed);
    }
    out
}

fn moments(moments: &Moments) -> Value {
    json!({ "mean": moments.mean(), "variance": moments.variance() })
}

fn figures_json(figures: &Figures, elapsed: Duration) -> Value {
    let mut out = json!({
        "count": figures.latency.count(),
        "iops": figures.per_second(elapsed),
        "bytes_per_s": figures.bytes_per_second(elapsed),
    });
    for (name, us) in figures.latency_us() {
        out[format!("{name}_us")] = us.into();
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use peristyle_bench::load::Length;
    use peristyle_bench::pattern::Pattern;
    use peristyle_bench::session::Digests;

    fn report(busy_share: f64) -> Report {
        let mut report = Report { elapsed: Duration::from_secs(1), busy_share, ..Report::default() };
        for (read, nanos) in [(true, 10_000), (true, 20_000), (false, 30_000)] {
            report.record(read, 4096, nanos, Default::default());
        }
        report
    }

    #[test]
    fn a_mixed_run_has_three_rows_and_a_busy_generator_is_told() {
        let said = text(&report(0.95));
        assert!(
            ["read", "write", "all", "p99.9", "may be its own limit"].iter().all(|w| said.contains(w)),
            "{said}"
        );
        assert!(!text(&report(0.5)).contains("its own limit"));
    }

    #[test]
    fn json_has_the_figures_by_name() {
        let workload = Workload {
            block_bytes: 4096,
            pattern: Pattern::Random,
            read_share: 70,
            depth: 1,
            rate: None,
            jobs: 1,
            length: Length::Count(3),
            warmup: Duration::ZERO,
            verify: false,
            seed: 1,
            digests: Digests::default(),
        };
        let value = document(&workload, &report(0.1));
        assert_eq!((value["read"]["count"].as_u64(), value["write"]["iops"].as_f64()), (Some(2), Some(1.0)));
        assert_eq!(value["write"]["max_us"].as_f64(), Some(30.0));
        assert_eq!(value["generator_is_bottleneck"], false);
    }

    #[test]
    fn errors_and_wrong_reads_fail_the_command() {
        assert!(verdict(&report(0.1)).is_ok());
        let mut wrong = report(0.1);
        wrong.mismatch(4096);
        assert!(verdict(&wrong).unwrap_err().to_string().contains("1 reads were wrong"));
    }
}
