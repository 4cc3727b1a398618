//! `bench run`: reactors that make the load, one report of all.

mod beside;
mod fio;
mod hdr;
mod interrupt;
mod jobs;
mod live;
mod options;
mod table;

pub use live::sparkline;
pub use options::{RunOptions, read_text};
pub use table::{figures_identity, identity_of};

use crate::bench::machine::CoreTime;
use crate::failure::{Failure, Kind};
use crate::render::json;
use interrupt::Interrupt;
use live::Live;
use options::Format;
use peristyle_bench::load::{Gate, Length, Part, Region, Workload, drive};
use peristyle_bench::pattern::Pattern;
use peristyle_bench::report::Report;
use peristyle_bench::session::{Namespace, Session, SessionError, Target};
use peristyle_rt::{PollMode, RuntimeConfig, block_on};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, mpsc};

/// Above this share of late commands, an open loop was none.
const LATE_SHARE_MAX: f64 = 0.01;
/// Above this share of its time at work, the generator may be what is measured.
const BUSY_SHARE_MAX: f64 = 0.9;
/// Above this share of stolen time, the machine may be what is measured.
const STOLEN_SHARE_MAX: f64 = 0.01;
const PAGE: u32 = 4096;

/// Where and on what the load is made.
#[derive(Clone, Debug)]
pub struct Place {
    pub target: Target,
    /// Of the volumes; none: the first.
    pub nsids: Vec<u32>,
    pub reactors: u16,
    pub cores: Vec<usize>,
    pub poll: PollMode,
    /// Once it is set, no more commands begin.
    pub end: Arc<AtomicBool>,
}

impl Place {
    /// The first volume, by one reactor that is not pinned.
    pub fn of(target: &Target) -> Place {
        Place {
            target: target.clone(),
            nsids: Vec::new(),
            reactors: 1,
            cores: Vec::new(),
            poll: PollMode::Busy,
            end: Arc::default(),
        }
    }
    fn volumes(&self) -> usize {
        self.nsids.len().max(1)
    }
}

pub fn command(options: &RunOptions) -> Result<(), Failure> {
    let interrupt = Interrupt::watch();
    let place = Place { end: interrupt.flag(), ..options.place() };
    if let Some(path) = &options.job {
        return jobs::command(options, &place, path);
    }
    let workload = match &options.trace {
        Some(path) => options.replay(path, look(&place)?.volume_bytes)?,
        None => options.workload(),
    };
    let mut reports = Vec::new();
    for turn in 1..=options.repeat {
        let what = if options.repeat > 1 { format!("{turn} of {}", options.repeat) } else { String::new() };
        let report = measure_live(&place, &workload, &what)?;
        let goes_on = report.is_clean() && !report.interrupted;
        reports.push(report);
        if !goes_on {
            break;
        }
    }
    // Part of a run is not compared with whole ones.
    let part = reports.pop_if(|last| last.interrupted);
    if reports.is_empty() {
        reports.extend(part.clone());
    }
    let middle = &reports[middle(&reports)];
    if let Some(path) = &options.hdr {
        hdr::write(path, middle)?;
    }
    print!(
        "{}",
        match options.format() {
            Format::Table => table::text(middle) + &table::repeats(&reports),
            Format::Fio => fio::text(&[fio::Job::of("run", &workload, middle)]),
            Format::Json => json(&table::repeated(&workload, middle, &reports)),
        }
    );
    part.iter().chain(reports.last()).try_for_each(verdict)
}

/// Which run has the median rate; the last one, if something was wrong in it.
fn middle(reports: &[Report]) -> usize {
    let rate = |i: &usize| reports[*i].all().per_second(reports[*i].elapsed);
    let mut order: Vec<usize> = (0..reports.len()).collect();
    if reports.last().is_some_and(|last| !last.is_clean()) {
        return reports.len() - 1;
    }
    order.sort_by(|a, b| rate(a).total_cmp(&rate(b)));
    order[order.len() / 2]
}

pub fn verdict(report: &Report) -> Result<(), Failure> {
    match (&report.lost, report.mismatches, report.errors) {
        (Some(error), ..) => Err(Failure::failed(error)),
        (None, 0, 0) if report.interrupted => {
            let seconds = report.elapsed.as_secs_f64();
            Err(Failure::failed(format!(
                "interrupted: the run ended after {seconds:.2} s of what was asked for"
            )))
        }
        (None, 0, 0) => Ok(()),
        (None, wrong, errors) => {
            let first =
                report.first_error.map(|status| format!("; the first: {status:?}")).unwrap_or_default();
            let at = report
                .first_mismatch
                .map(|at| format!("; the first wrong one at byte {at}"))
                .unwrap_or_default();
            Err(Failure::failed(format!("{wrong} reads were wrong, {errors} commands failed{first}{at}")))
        }
    }
}

enum Problem {
    Session(SessionError),
    Workload(String),
}

/// Runs the load to its end.
pub fn measure(place: &Place, workload: &Workload) -> Result<Report, Failure> {
    measure_behind(place, workload, &Gate::until(parts(place, workload), place.end.clone()))
}

/// The same, and shows how it goes on a terminal.
pub fn measure_live(place: &Place, workload: &Workload, what: &str) -> Result<Report, Failure> {
    let gate = Gate::until(parts(place, workload), place.end.clone());
    let _live = Live::watch(what, &gate, workload);
    measure_behind(place, workload, &gate)
}

/// The same, of which no command may fail and at least one must end.
pub fn measure_some(place: &Place, workload: &Workload, what: &str) -> Result<Report, Failure> {
    let report = measure_live(place, workload, what)?;
    verdict(&report)?;
    match report.all().latency.count() {
        0 => Err(Failure::failed(format!("{what}: no command ended; give --runtime more"))),
        _ => Ok(report),
    }
}

/// What one command of [`fill`] writes.
pub const FILL_BYTES: u32 = 128 << 10;

/// Writes so many bytes at the front of the volume, once from end to end.
pub fn fill(place: &Place, bytes: u64, what: &str) -> Result<(), Failure> {
    let workload = Workload {
        block_bytes: FILL_BYTES,
        pattern: Pattern::Sequential,
        read_share: 0,
        depth: 8,
        length: Length::Count(bytes / u64::from(FILL_BYTES)),
        region: Region { offset: 0, bytes },
        ..Workload::default()
    };
    verdict(&measure_live(place, &workload, &format!("{what} filling"))?)
}

fn parts(place: &Place, workload: &Workload) -> u16 {
    place.reactors.min(workload.jobs.saturating_mul(place.volumes() as u16)).max(1)
}

fn measure_behind(place: &Place, workload: &Workload, gate: &Arc<Gate>) -> Result<Report, Failure> {
    let reactors = parts(place, workload);
    let (tell, hear) = mpsc::channel();
    let seeds = (0..reactors)
        .map(|index| {
            let part = Part { index, of: reactors, gate: gate.clone() };
            (part, place.clone(), workload.clone(), tell.clone())
        })
        .collect();
    drop(tell);
    // One page is what every target takes.
    let part_bytes = if workload.block_bytes > PAGE { look(place)?.transfer_bytes_max } else { PAGE };
    let config = RuntimeConfig {
        reactors: reactors as usize,
        cores: (!place.cores.is_empty()).then(|| place.cores[..usize::from(reactors)].to_vec()),
        poll: place.poll,
        buffers: workload.buffers(place.volumes(), part_bytes),
        ..RuntimeConfig::default()
    };
    let before = CoreTime::now();
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
    let mut whole = whole.ok_or_else(|| Failure::failed("no reactor has measured"))?;
    whole.stolen_share = CoreTime::now().stolen_share_since(before);
    Ok(whole)
}

async fn one_reactor(place: &Place, workload: &Workload, part: &Part) -> Result<Report, Problem> {
    let session = Session::connect(&place.target, workload.digests).await.map_err(Problem::Session)?;
    let volumes = find(&session, &place.nsids).await.map_err(Problem::Session)?;
    for volume in &volumes {
        workload.check(volume, &session).map_err(Problem::Workload)?;
    }
    drive(&session, &volumes, workload, part).await.map_err(Problem::Session)
}

/// These namespaces, or the first.
pub async fn find(session: &Session, nsids: &[u32]) -> Result<Vec<Namespace>, SessionError> {
    if nsids.is_empty() {
        return Ok(vec![session.first_namespace().await?]);
    }
    let mut found = Vec::new();
    for nsid in nsids {
        found.push(session.namespace(*nsid).await?);
    }
    Ok(found)
}

/// What has to be known of target and volumes before a load is made.
pub struct Look {
    /// Of the smallest volume.
    pub volume_bytes: u64,
    /// Of one command, at most.
    pub transfer_bytes_max: u32,
    /// Of one queue.
    pub entries_max: u32,
}

pub fn look(place: &Place) -> Result<Look, Failure> {
    let (place, addr) = (place.clone(), place.target.addr);
    block_on(RuntimeConfig::small(), async move {
        let session = Session::connect(&place.target, Default::default()).await?;
        let volumes = find(&session, &place.nsids).await?;
        let volume_bytes = volumes.iter().map(|volume| volume.bytes).min().unwrap_or(0);
        let Session { transfer_bytes_max, entries_max, .. } = session;
        Ok(Look { volume_bytes, transfer_bytes_max, entries_max })
    })
    .map_err(|error: SessionError| Failure::new(Kind::NoNode, format!("{addr}: {error}")))
}

#[cfg(test)]
pub use tests::report as sample_report;

#[cfg(test)]
mod tests {
    use super::*;
    use peristyle_base::Duration;
    use peristyle_bench::report;

    /// Two reads and a write in a second.
    pub fn report(busy_share: f64) -> Report {
        let mut report = Report { elapsed: Duration::from_secs(1), busy_share, ..Report::default() };
        let (read, write) = (report::Kind::Read, report::Kind::Write);
        for (kind, nanos) in [(read, 10_000), (read, 20_000), (write, 30_000)] {
            report.record(kind, 4096, nanos, Default::default());
            report.timeline.record(kind, Duration::ZERO, 4096, nanos);
        }
        report.timeline.finish(report.elapsed);
        report
    }

    #[test]
    fn errors_and_wrong_reads_fail_the_command() {
        assert!(verdict(&report(0.1)).is_ok());
        let mut wrong = report(0.1);
        wrong.mismatch(4096);
        let said = verdict(&wrong).unwrap_err().to_string();
        assert!(said.contains("1 reads were wrong") && said.contains("at byte 4096"), "{said}");
    }

    #[test]
    fn the_run_in_the_middle_is_shown() {
        let of = |seconds| Report { elapsed: Duration::from_secs(seconds), ..report(0.1) };
        assert_eq!(middle(&[of(3), of(1), of(2)]), 2);
        assert_eq!(middle(&[of(3)]), 0);
    }
}
