//! A report as a table and as JSON.

use super::{BUSY_SHARE_MAX, LATE_SHARE_MAX, STOLEN_SHARE_MAX, sparkline};
use crate::bench::machine;
use crate::render::table;
use peristyle_bench::load::Workload;
use peristyle_bench::pattern::{Moments, Placement};
use peristyle_bench::report::{Figures, Report};
use serde_json::{Value, json};
use std::time::Duration;

/// Whole seconds from which on it is said how they differ, and how many bars are shown of them.
const SECONDS_MIN: usize = 3;
const SECONDS_SHOWN: usize = 60;

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
    if report.others.latency.count() > 0 {
        rows.push(("other", report.others.clone()));
    }
    rows
}

pub fn text(report: &Report) -> String {
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
    out += &seconds(report);
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
    if report.stolen_share > STOLEN_SHARE_MAX {
        let percent = report.stolen_share * 100.0;
        out += &format!(
            "note: the hypervisor took {percent:.1} % of the cores' time: long latencies may be that\n"
        );
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

/// How the rate went, second by second; nothing of runs of a second or two.
fn seconds(report: &Report) -> String {
    let intervals = report.timeline.intervals();
    // The last one may have been cut.
    let whole = &intervals[..intervals.len().saturating_sub(1)];
    if whole.len() < SECONDS_MIN {
        return String::new();
    }
    let counts = || whole.iter().map(|interval| interval.count());
    let (least, most) = (counts().min().unwrap_or(0), counts().max().unwrap_or(0));
    let step = whole.len().div_ceil(SECONDS_SHOWN);
    let means =
        whole.chunks(step).map(|part| part.iter().map(|i| i.count() as f64).sum::<f64>() / part.len() as f64);
    format!("IOPS by the second, from {least} to {most}: {}\n", sparkline(means))
}

/// How far apart runs were; nothing of one.
pub fn repeats(reports: &[Report]) -> String {
    if reports.len() < 2 {
        return String::new();
    }
    let spread = |of: &dyn Fn(&Report) -> f64| {
        let mut values: Vec<f64> = reports.iter().map(of).collect();
        values.sort_by(f64::total_cmp);
        format!("{:.1} ({:.1} to {:.1})", values[values.len() / 2], values[0], values[values.len() - 1])
    };
    format!(
        "above is the run with the median rate of {}; medians and ranges: IOPS {}, mean {} us, p50 {} us, p99 {} us\n",
        reports.len(),
        spread(&|r| r.all().per_second(r.elapsed)),
        spread(&|r| r.all().latency.mean() / 1e3),
        spread(&|r| r.all().latency.quantile(0.5) as f64 / 1e3),
        spread(&|r| r.all().latency.quantile(0.99) as f64 / 1e3),
    )
}

/// The run in the middle with the machine that it ran on, and all of the runs in short.
pub fn repeated(workload: &Workload, middle: &Report, reports: &[Report]) -> Value {
    let mut out = document(workload, middle);
    let runs = reports.iter().map(|r| figures_json(&r.all(), r.elapsed));
    out["runs"] = runs.collect::<Vec<Value>>().into();
    out
}

pub fn document(workload: &Workload, report: &Report) -> Value {
    let mut out = figures(workload, report);
    out["machine"] = machine::describe();
    out
}

/// What makes two loads the same.
pub fn figures_identity(workload: &Workload) -> Value {
    json!({
        "block_bytes": workload.block_bytes,
        "pattern": workload.pattern.to_string(),
        "rate": workload.rate.map(|rate| rate.per_second),
        "arrival": workload.rate.map(|rate| if rate.poisson { "poisson" } else { "even" }),
        "read_share": workload.read_share,
        "depth": workload.depth,
        "jobs": workload.jobs,
        "contents": workload.contents.to_string(),
        "region": { "offset": workload.region.offset, "bytes": workload.region.bytes },
        "trace_requests": workload.replay.as_ref().map(|replay| replay.trace.requests.len()),
        "warmup_s": workload.warmup.as_secs_f64(),
        "header_digest": workload.digests.header,
        "data_digest": workload.digests.data,
        "verify": workload.verify,
        "seed": workload.seed,
    })
}

/// The same of a document that [`document`] made.
pub fn identity_of(document: &Value) -> Value {
    let known = figures_identity(&Workload::default());
    let keys = known.as_object().into_iter().flat_map(|map| map.keys());
    keys.map(|key| (key.clone(), document[key].clone())).collect::<serde_json::Map<_, _>>().into()
}

/// Load and figures.
pub fn figures(workload: &Workload, report: &Report) -> Value {
    let mut out = figures_identity(workload);
    let iops = report.timeline.intervals().iter().map(|interval| interval.count());
    let measured = json!({
        "unserved": workload.rate.map(|_| report.unserved),
        "late_share": workload.rate.map(|_| report.late_share()),
        "size_bytes": moments(&report.placement.size),
        "distance_bytes": moments(&report.placement.distance),
        "sequential_share": report.placement.sequential_share(),
        "iops_by_second": iops.collect::<Vec<u64>>(),
        "elapsed_s": report.elapsed.as_secs_f64(),
        "interrupted": report.interrupted,
        "errors": report.errors,
        "wrong_reads": report.mismatches,
        "generator_busy_share": report.busy_share,
        "generator_is_bottleneck": report.busy_share > BUSY_SHARE_MAX,
        "stolen_share": report.stolen_share,
    });
    for (key, value) in measured.as_object().into_iter().flatten() {
        out[key] = value.clone();
    }
    for (name, figures) in rows(report) {
        out[name] = figures_json(&figures, report.elapsed);
        out[name]["histogram_us"] = histogram_json(&figures);
    }
    out
}

fn moments(moments: &Moments) -> Value {
    json!({ "mean": moments.mean(), "variance": moments.variance() })
}

pub fn figures_json(figures: &Figures, elapsed: Duration) -> Value {
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

/// Each latency, and how many commands took that long; at most 1/32 too high.
fn histogram_json(figures: &Figures) -> Value {
    figures
        .latency
        .values()
        .map(|(nanos, count)| json!([nanos as f64 / 1e3, count]))
        .collect::<Vec<Value>>()
        .into()
}

#[cfg(test)]
mod tests {
    use super::super::tests::report;
    use super::*;
    use peristyle_bench::report::Kind;

    #[test]
    fn a_mixed_run_has_three_rows_and_a_busy_generator_is_told() {
        let said = text(&report(0.95));
        assert!(
            ["read", "write", "all", "p99.9", "may be its own limit"].iter().all(|w| said.contains(w)),
            "{said}"
        );
        assert!(!text(&report(0.5)).contains("its own limit"));
        let stolen = |stolen_share| text(&Report { stolen_share, ..report(0.5) });
        assert!(stolen(0.034).contains("took 3.4 %") && !stolen(0.01).contains("hypervisor"));
    }

    #[test]
    fn seconds_that_differ_are_seen() {
        let mut report = report(0.1);
        for (second, count) in [(1, 4), (2, 8), (3, 0), (4, 1)] {
            let at = Duration::from_millis(1000 * second + 1);
            for _ in 0..count {
                report.timeline.record(Kind::Read, at, 4096, 1000);
            }
        }
        report.timeline.finish(Duration::from_millis(4500));
        assert_eq!(seconds(&report), "IOPS by the second, from 0 to 8: ▃▄█▁\n");
    }

    #[test]
    fn runs_that_were_repeated_have_medians_and_ranges() {
        let of = |seconds| Report { elapsed: Duration::from_secs(seconds), ..report(0.1) };
        let runs = [of(1), of(3), of(2)];
        let said = repeats(&runs);
        assert!(said.contains("of 3") && said.contains("IOPS 1.5 (1.0 to 3.0)"), "{said}");
        let value = repeated(&Workload::default(), &runs[2], &runs);
        assert_eq!(value["runs"].as_array().unwrap().len(), 3);
        assert!(repeats(&runs[..1]).is_empty());
    }

    #[test]
    fn json_has_the_figures_by_name() {
        let workload = Workload { read_share: 70, ..Workload::default() };
        let value = document(&workload, &report(0.1));
        assert_eq!((value["read"]["count"].as_u64(), value["write"]["iops"].as_f64()), (Some(2), Some(1.0)));
        assert_eq!(value["write"]["max_us"].as_f64(), Some(30.0));
        assert_eq!(value["generator_is_bottleneck"], false);
        assert!(value["machine"]["cores"].as_u64().unwrap() > 0);
    }
}
