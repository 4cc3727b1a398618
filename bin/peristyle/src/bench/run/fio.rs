//! A report in the words of fio, for eyes and scripts that are used to them.

use peristyle_bench::load::Workload;
use peristyle_bench::pattern::Pattern;
use peristyle_bench::report::{Figures, Report};
use std::fmt::Write;

const PERCENTILES: [f64; 17] =
    [1.0, 5.0, 10.0, 20.0, 30.0, 40.0, 50.0, 60.0, 70.0, 80.0, 90.0, 95.0, 99.0, 99.5, 99.9, 99.95, 99.99];

/// One job with its figures.
pub struct Job<'a> {
    name: &'a str,
    workload: &'a Workload,
    report: &'a Report,
}

impl<'a> Job<'a> {
    pub fn of(name: &'a str, workload: &'a Workload, report: &'a Report) -> Job<'a> {
        Job { name, workload, report }
    }

    fn rw(&self) -> &'static str {
        match (self.workload.pattern == Pattern::Sequential, self.workload.read_share) {
            _ if self.workload.replay.is_some() => "replay",
            (true, 100) => "read",
            (true, 0) => "write",
            (true, _) => "rw",
            (false, 100) => "randread",
            (false, 0) => "randwrite",
            (false, _) => "randrw",
        }
    }
}

/// All jobs, each with its own figures.
pub fn text(jobs: &[Job]) -> String {
    let mut out = String::new();
    for job in jobs {
        let w = job.workload;
        let _ = writeln!(
            out,
            "{}: (g=0): rw={}, bs={}, ioengine=nvme-tcp, iodepth={}, numjobs={}",
            job.name,
            job.rw(),
            w.block_bytes,
            w.depth,
            w.jobs
        );
    }
    for job in jobs {
        let report = job.report;
        let errors = report.errors + report.mismatches;
        let _ = writeln!(out, "\n{}: (groupid=0, jobs={}): err={errors:2}", job.name, job.workload.jobs);
        for (name, figures) in [("read", &report.reads), ("write", &report.writes), ("other", &report.others)]
        {
            if figures.latency.count() > 0 {
                out += &kind(name, figures, report);
            }
        }
    }
    out
}

fn kind(name: &str, figures: &Figures, report: &Report) -> String {
    let (rate, bytes) = (figures.per_second(report.elapsed), figures.bytes_per_second(report.elapsed));
    let mib = |bytes: f64| bytes / f64::from(1 << 20);
    let mut out = format!(
        "  {name:>5}: IOPS={}, BW={:.1}MiB/s ({:.1}MB/s)({:.1}MiB/{}msec)\n",
        thousands(rate),
        mib(bytes),
        bytes / 1e6,
        mib(figures.bytes as f64),
        report.elapsed.as_millis()
    );
    let l = &figures.latency;
    let us = |nanos: f64| nanos / 1e3;
    let least = l.values().next().map_or(0, |(value, _)| value);
    let _ = writeln!(
        out,
        "     lat (usec): min={:.1}, max={:.1}, avg={:.2}, stdev={:.2}",
        us(least as f64),
        us(l.max() as f64),
        us(l.mean()),
        us(l.variance().sqrt())
    );
    out += "     lat percentiles (usec):\n";
    for three in PERCENTILES.chunks(3) {
        let cells: Vec<String> = three
            .iter()
            .map(|percent| format!("{percent:5.2}th=[{:5.0}]", us(l.quantile(percent / 100.0) as f64)))
            .collect();
        let _ = writeln!(out, "      | {}", cells.join(", "));
    }
    out
}

/// 1234, 52.4k, 1.2M.
fn thousands(value: f64) -> String {
    match value {
        v if v < 10_000.0 => format!("{v:.0}"),
        v if v < 1e6 => format!("{:.1}k", v / 1e3),
        v => format!("{:.2}M", v / 1e6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mixed_job_has_both_blocks() {
        let (workload, report) =
            (Workload { read_share: 70, ..Workload::default() }, super::super::tests::report(0.1));
        let said = text(&[Job::of("pages", &workload, &report)]);
        for part in [
            "pages: (g=0): rw=randrw, bs=4096",
            "   read: IOPS=2, BW=0.0MiB/s",
            "  write: IOPS=1",
            "max=30.0, avg=30.00, stdev=0.00",
            "50.00th=[   10]",
            "99.99th=[   20]",
        ] {
            assert!(said.contains(part), "{part} in {said}");
        }
    }
}
