//! `bench run --job`: a fio job file. Jobs run at the same time, up to the next one that waits for those before it.

use super::options::{Format, RunOptions};
use super::{Place, fio, measure, measure_live, table, verdict};
use crate::failure::Failure;
use crate::render::json;
use peristyle_bench::jobfile::{self, Job};
use peristyle_bench::report::Report;
use serde_json::{Value, json};
use std::path::Path;

pub fn command(options: &RunOptions, place: &Place, path: &Path) -> Result<(), Failure> {
    let text = options.job_text(path)?;
    let file = jobfile::parse(&text, &options.workload())
        .map_err(|what| Failure::usage(format!("{}: {what}", path.display())))?;
    if !file.left_out.is_empty() {
        eprintln!("left out, without meaning here: {}", file.left_out.join(", "));
    }
    let groups = groups(&file.jobs);
    let cores = place.cores.len();
    if cores > 0 && groups.iter().any(|group| group.len() > cores) {
        return Err(Failure::usage("--cores: fewer than jobs that run at the same time"));
    }
    let mut reports = Vec::new();
    for group in groups {
        for report in at_once(place, group) {
            reports.push(report?);
        }
        if !reports.iter().all(|report| report.is_clean() && !report.interrupted) {
            break;
        }
    }
    print!("{}", shown(options.format(), &file.jobs, &reports));
    reports.iter().try_for_each(verdict)
}

/// Jobs that run together.
fn groups(jobs: &[Job]) -> Vec<&[Job]> {
    let mut groups = Vec::new();
    let mut first = 0;
    for (n, job) in jobs.iter().enumerate().skip(1) {
        if job.waits {
            groups.push(&jobs[first..n]);
            first = n;
        }
    }
    groups.push(&jobs[first..]);
    groups
}

/// Each job has reactors of its own; cores are dealt out one to each.
fn at_once(place: &Place, jobs: &[Job]) -> Vec<Result<Report, Failure>> {
    let place_of = |n: usize, job: &Job| Place {
        nsids: job.nsid.map_or_else(|| place.nsids.clone(), |nsid| vec![nsid]),
        cores: place.cores.get(n).copied().into_iter().collect(),
        reactors: if place.cores.is_empty() { place.reactors } else { 1 },
        ..place.clone()
    };
    if let [job] = jobs {
        return vec![measure_live(
            &Place { cores: place.cores.clone(), ..place_of(0, job) },
            &job.workload,
            &job.name,
        )];
    }
    std::thread::scope(|scope| {
        let threads: Vec<_> = jobs
            .iter()
            .enumerate()
            .map(|(n, job)| {
                let place = place_of(n, job);
                scope.spawn(move || measure(&place, &job.workload))
            })
            .collect();
        let ended = |result: std::thread::Result<_>| {
            result.unwrap_or_else(|_| Err(Failure::failed("a job's thread died")))
        };
        threads.into_iter().map(|thread| ended(thread.join())).collect()
    })
}

fn shown(format: Format, jobs: &[Job], reports: &[Report]) -> String {
    let both = jobs.iter().zip(reports);
    match format {
        Format::Fio => {
            let jobs: Vec<_> =
                both.map(|(job, report)| fio::Job::of(&job.name, &job.workload, report)).collect();
            fio::text(&jobs)
        }
        Format::Table => {
            both.map(|(job, report)| format!("{}\n{}\n", job.name, table::text(report))).collect()
        }
        Format::Json => {
            let jobs: Vec<Value> = both
                .map(|(job, report)| {
                    let mut value = table::figures(&job.workload, report);
                    value["name"] = job.name.clone().into();
                    value
                })
                .collect();
            json(&json!({ "machine": crate::bench::machine::describe(), "jobs": jobs }))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use peristyle_bench::load::Workload;

    #[test]
    fn a_job_that_waits_begins_a_group() {
        let text = "[a]\n[b]\n[c]\nstonewall\n[d]\n[e]\nstonewall\n";
        let file = jobfile::parse(text, &Workload::default()).unwrap();
        let names: Vec<Vec<&str>> =
            groups(&file.jobs).iter().map(|g| g.iter().map(|j| j.name.as_str()).collect()).collect();
        assert_eq!(names, [vec!["a", "b"], vec!["c", "d"], vec!["e"]]);
    }

    #[test]
    fn every_job_is_shown_in_every_format() {
        let file = jobfile::parse("[first]\n[second]\nrw=randwrite\n", &Workload::default()).unwrap();
        let reports = [super::super::tests::report(0.1), super::super::tests::report(0.1)];
        for format in [Format::Table, Format::Fio, Format::Json] {
            let said = shown(format, &file.jobs, &reports);
            assert!(said.contains("first") && said.contains("second"), "{said}");
        }
    }
}
