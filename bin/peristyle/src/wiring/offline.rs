//! Tools for devices that no node has open.

use super::{DeviceReport, FindingReport, PlannedDevice, store};
use crate::failure::Failure;
use peristyle_base::Uuid;
use peristyle_column::{Discard, Findings, FormatOptions, Inspection, LabelError, OpenError, Severity};
use peristyle_rt::device::WriteCache;
use peristyle_rt::{Device, RuntimeConfig};
use std::io::IsTerminal;
use std::path::{Path, PathBuf};

async fn open(path: &Path) -> Result<Device, Failure> {
    let planned = PlannedDevice {
        memory: None,
        path: path.to_owned(),
        create_bytes: None,
        write_cache: WriteCache::Auto,
        discard: Discard::Auto,
        domain: None,
    };
    let spec = store::spec_of(&planned);
    Device::open(&spec).await.map_err(|e| Failure::failed(format!("{}: {e}", path.display())))
}

fn report(path: &Path, bytes: u64, i: &Inspection) -> DeviceReport {
    let mut report = DeviceReport { path: path.to_owned(), bytes, ..DeviceReport::default() };
    match &i.label {
        Ok(label) => {
            (report.uuid, report.cluster) = (label.device.to_string(), label.cluster.to_string());
            report.format = peristyle_column::format::FORMAT_VERSION;
        }
        Err(OpenError::NoLabel([LabelError::Blank, LabelError::Blank])) => {
            report.problems.push("not formatted".into())
        }
        Err(e) => report.problems.push(e.to_string()),
    }
    if i.label.is_ok() {
        for (copy, label) in i.labels.iter().enumerate() {
            if let Err(e) = label {
                report.problems.push(format!("label copy {copy}: {e}"));
            }
        }
    }
    report.slots_total = i.usage.total;
    (report.slots_free, report.slots_open) = (i.usage.free, i.usage.open);
    (report.slots_sealed, report.slots_filling) = (i.usage.sealed, i.usage.filling);
    report.problems.extend(
        i.damaged_slots.iter().map(|slot| format!("slot {slot}: both copies of its entry are damaged")),
    );
    for (copy, pages) in i.unreadable_pages.iter().enumerate().filter(|(_, n)| **n > 0) {
        report.problems.push(format!("slot table copy {copy}: {pages} pages cannot be read"));
    }
    report
}

fn run<F, Fut>(paths: &[PathBuf], work: F) -> Result<Vec<DeviceReport>, Failure>
where
    F: Fn(PathBuf) -> Fut + 'static,
    Fut: Future<Output = Result<DeviceReport, Failure>>,
{
    let paths = paths.to_vec();
    peristyle_rt::block_on(RuntimeConfig::small(), async move {
        let mut reports = Vec::new();
        for path in paths {
            reports.push(work(path).await?);
        }
        Ok(reports)
    })
}

/// Formats devices as those of one new cluster.
pub fn device_format(paths: &[PathBuf], force: bool) -> Result<Vec<DeviceReport>, Failure> {
    let cluster = std::cell::Cell::new(None);
    run(paths, move |path| {
        let uuid = || {
            let mut bytes = [0; 16];
            peristyle_rt::fill_random(&mut bytes);
            Uuid::from_random(bytes)
        };
        let of = cluster.get().unwrap_or_else(uuid);
        cluster.set(Some(of));
        async move {
            let device = open(&path).await?;
            let options = FormatOptions { cluster: of, device: uuid(), force };
            peristyle_column::format(&device, options)
                .await
                .map_err(|e| Failure::failed(format!("{}: {e}", path.display())))?;
            Ok(report(&path, device.bytes(), &peristyle_column::inspect(&device).await))
        }
    })
}

/// To look at it only: nothing is written, whatever happens.
pub async fn open_to_read(path: &Path) -> Result<Device, String> {
    Device::open_to_read(path).await.map_err(|e| format!("{}: {e}", path.display()))
}

pub fn device_inspect(paths: &[PathBuf]) -> Result<Vec<DeviceReport>, Failure> {
    run(paths, |path| async move {
        let device = open_to_read(&path).await.map_err(Failure::failed)?;
        Ok(report(&path, device.bytes(), &peristyle_column::inspect(&device).await))
    })
}

/// Reads everything on the devices that can be checked. Writes nothing.
pub fn device_check(paths: &[PathBuf]) -> Result<Vec<DeviceReport>, Failure> {
    run(paths, |path| async move {
        // One that cannot be looked at is a finding: the others are checked all the same.
        let device = match open_to_read(&path).await {
            Ok(device) => device,
            Err(problem) => {
                return Ok(DeviceReport { path, problems: vec![problem], ..DeviceReport::default() });
            }
        };
        Ok(check_device(&path, &device, true).await.0)
    })
}

/// `full`: rows are read, not the tables alone. With it comes what the tables say.
pub async fn check_device(path: &Path, device: &Device, full: bool) -> (DeviceReport, Inspection) {
    if !full {
        let inspection = peristyle_column::inspect(device).await;
        let mut report = report(path, device.bytes(), &inspection);
        add_findings(&mut report, &inspection.findings);
        return (report, inspection);
    }
    let bar = progress_bar(&path.display().to_string());
    let checked = peristyle_column::check(device, |done, all| {
        bar.set_length(all);
        bar.set_position(done);
    })
    .await;
    bar.finish_and_clear();
    let mut report = report(path, device.bytes(), &checked.inspection);
    (report.columns_checked, report.rows_checked) = (checked.columns_checked, checked.rows_checked);
    report.problems.clear();
    add_findings(&mut report, &checked.findings);
    (report, checked.inspection)
}

fn add_findings(report: &mut DeviceReport, findings: &Findings) {
    for finding in findings.list() {
        let told = finding.to_string();
        match finding.severity() {
            Severity::Damage if !report.problems.contains(&told) => report.problems.push(told),
            Severity::Damage => {}
            Severity::Note => report.notes.push(told),
        }
    }
    let more = findings.total() - findings.list().len() as u64;
    if more > 0 {
        report.problems.push(format!("and {more} more"));
    }
    report.findings = findings.list().iter().map(FindingReport::of).collect();
}

/// On a terminal only: in a log it is noise.
pub fn progress_bar(what: &str) -> indicatif::ProgressBar {
    match std::io::stderr().is_terminal() {
        true => indicatif::ProgressBar::new(0).with_message(what.to_owned()),
        false => indicatif::ProgressBar::hidden(),
    }
}
