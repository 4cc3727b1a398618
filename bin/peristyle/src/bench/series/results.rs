//! What a series has found so far: one JSON file, written anew after each test.

use super::options::Settings;
use crate::bench::machine;
use crate::bench::run::sparkline;
use crate::failure::Failure;
use crate::render::{json, table};
use peristyle_base::Histogram;
use peristyle_base::units::format_bytes;
use peristyle_bench::report::Report;
use peristyle_bench::series::{Search, Test};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::path::{Path, PathBuf};

const FORMAT: u32 = 1;

/// One test's figures: medians over its runs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Row {
    pub test: String,
    pub depth: u32,
    /// No depth that was tried was too deep.
    pub is_limited: bool,
    pub iops: f64,
    /// 10^9 bytes a second.
    pub gb_s: f64,
    pub mean_us: f64,
    pub p50_us: f64,
    pub p95_us: f64,
    pub p99_us: f64,
    pub p99_9_us: f64,
    pub runs: Vec<Run>,
    /// Latencies at depth 1.
    pub base_mean_us: f64,
    pub base_p99_us: f64,
    /// Of a plain echo with as many bytes, in the same minute.
    pub echo_mean_us: f64,
    pub echo_p99_us: f64,
    /// The generator's own share of time at work: above 0.9 the figures may be its limit.
    pub generator_busy: f64,
}

/// One run at the depth that was found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Run {
    pub iops: f64,
    pub mean_us: f64,
    pub p50_us: f64,
    pub p99_us: f64,
}

impl Run {
    fn of(report: &Report) -> Run {
        let all = report.all();
        let us = |share| all.latency.quantile(share) as f64 / 1e3;
        let (iops, mean_us) = (all.per_second(report.elapsed), all.latency.mean() / 1e3);
        Run { iops, mean_us, p50_us: us(0.5), p99_us: us(0.99) }
    }
}

impl Row {
    pub fn new(test: Test, search: &Search, reports: &[Report], echo: &Histogram) -> Row {
        let sorted = |of: &dyn Fn(&Report) -> f64| {
            let mut values: Vec<f64> = reports.iter().map(of).collect();
            values.sort_by(f64::total_cmp);
            values
        };
        let median = |of: &dyn Fn(&Report) -> f64| sorted(of)[reports.len() / 2];
        let quantile = |share: f64| median(&|r| r.all().latency.quantile(share) as f64 / 1e3);
        let rates = sorted(&|r| r.all().per_second(r.elapsed));
        Row {
            test: test.to_string(),
            depth: search.depth(),
            is_limited: search.is_limited(),
            iops: rates[rates.len() / 2],
            gb_s: rates[rates.len() / 2] * f64::from(test.bytes) / 1e9,
            mean_us: median(&|r| r.all().latency.mean() / 1e3),
            p50_us: quantile(0.5),
            p95_us: quantile(0.95),
            p99_us: quantile(0.99),
            p99_9_us: quantile(0.999),
            runs: reports.iter().map(Run::of).collect(),
            base_mean_us: search.base().mean / 1e3,
            base_p99_us: search.base().p99 / 1e3,
            echo_mean_us: echo.mean() / 1e3,
            echo_p99_us: echo.quantile(0.99) as f64 / 1e3,
            generator_busy: median(&|r| r.busy_share),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Series {
    /// The scheme, or the target's name.
    pub label: String,
    pub settings: Settings,
    pub rows: Vec<Row>,
}

impl Series {
    pub fn has(&self, test: Test) -> bool {
        let name = test.to_string();
        self.rows.iter().any(|row| row.test == name)
    }
}

#[derive(Serialize, Deserialize)]
struct Document {
    format: u32,
    machine: Value,
    series: Vec<Series>,
}

pub struct Results {
    path: PathBuf,
    document: Document,
}

impl Results {
    /// What the file has; nothing, if it is not there or is to be forgotten. Results of another machine are refused.
    pub fn open(path: &Path, forget: bool) -> Result<Results, Failure> {
        let machine = machine::describe();
        if forget || !path.exists() {
            let document = Document { format: FORMAT, machine, series: Vec::new() };
            return Ok(Results { path: path.to_owned(), document });
        }
        let found = Self::of_any_machine(path)?;
        match unlike(&found.document.machine, &machine) {
            true => Err(Failure::failed(format!(
                "{}: results of another machine; --again forgets it",
                path.display()
            ))),
            false => Ok(found),
        }
    }

    pub fn of_any_machine(path: &Path) -> Result<Results, Failure> {
        let bad = |what: &dyn std::fmt::Display| {
            Failure::failed(format!("{}: {what}; --again forgets it", path.display()))
        };
        let bytes = std::fs::read(path).map_err(|e| bad(&e))?;
        let document: Document = serde_json::from_slice(&bytes).map_err(|e| bad(&e))?;
        match document.format {
            FORMAT => Ok(Results { path: path.to_owned(), document }),
            other => Err(bad(&format!("results of format {other}, not {FORMAT}"))),
        }
    }

    /// The one of this name, new if there is none.
    pub fn series(&mut self, label: &str, settings: &Settings) -> Result<&Series, Failure> {
        let all = &mut self.document.series;
        let at = all.iter().position(|series| series.label == label).unwrap_or_else(|| {
            all.push(Series { label: label.into(), settings: settings.clone(), rows: Vec::new() });
            all.len() - 1
        });
        match all[at].settings == *settings {
            true => Ok(&all[at]),
            false => Err(Failure::usage(format!(
                "{} has results of {label} with other settings ({:?}); take another --out, or --again",
                self.path.display(),
                all[at].settings
            ))),
        }
    }

    /// Keeps a row, on disk as well.
    pub fn add(&mut self, label: &str, row: Row) -> Result<(), Failure> {
        let series = self.document.series.iter_mut().find(|series| series.label == label);
        series.expect("asked for before").rows.push(row);
        let failed = |e: std::io::Error| Failure::failed(format!("{}: {e}", self.path.display()));
        if let Some(folder) = self.path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            std::fs::create_dir_all(folder).map_err(failed)?;
        }
        let new = self.path.with_extension("new");
        let text = serde_json::to_string_pretty(&self.document).expect("plain data") + "\n";
        std::fs::write(&new, text).map_err(failed)?;
        std::fs::rename(&new, &self.path).map_err(failed)
    }

    pub fn all(&self) -> &[Series] {
        &self.document.series
    }

    pub fn shown(&self, as_json: bool) -> String {
        match as_json {
            true => json(&self.document),
            false => self.document.series.iter().map(text).collect(),
        }
    }
}

/// Whether figures of the two cannot stand in one table.
pub fn unlike(one: &Value, other: &Value) -> bool {
    ["cpu", "cores", "kernel", "memory_bytes"].iter().any(|key| one[key] != other[key])
}

fn text(series: &Series) -> String {
    let header =
        ["test", "depth", "IOPS", "GB/s", "mean", "p50", "p95", "p99", "p99.9", "depth 1", "echo", "of echo"];
    let right: Vec<usize> = (1..header.len()).collect();
    let lines = series.rows.iter().map(|row| {
        let deeper = if row.is_limited { "+" } else { "" };
        let mut line = vec![row.test.clone(), format!("{}{deeper}", row.depth), format!("{:.0}", row.iops)];
        line.push(format!("{:.2}", row.gb_s));
        let times = [
            row.mean_us,
            row.p50_us,
            row.p95_us,
            row.p99_us,
            row.p99_9_us,
            row.base_mean_us,
            row.echo_mean_us,
        ];
        line.extend(times.map(|us| format!("{us:.1}")));
        line.push(format!("{:.2}", row.base_mean_us / row.echo_mean_us.max(1e-3)));
        line
    });
    let mut out = format!(
        "{}: {} of data, {} x {} s at the depth that was found (+: the largest that was tried), latency in microseconds\n",
        series.label,
        format_bytes(series.settings.data_bytes),
        series.settings.repeat,
        series.settings.runtime_s
    );
    out += &table(&header, &right, lines);
    let busy = series.rows.iter().filter(|row| row.generator_busy > 0.9).map(|row| row.test.as_str());
    let busy: Vec<&str> = busy.collect();
    if !busy.is_empty() {
        out += &format!(
            "the generator was busy all the time, and may be what was measured: {}\n",
            busy.join(", ")
        );
    }
    let rates = series.rows.iter().map(|row| row.gb_s);
    out + &format!("GB/s: {}\n\n", sparkline(rates))
}

#[cfg(test)]
mod tests {
    use super::*;
    use peristyle_bench::series::{Sample, tests};

    fn settings(data_bytes: u64) -> Settings {
        let (runtime_s, probe_s) = (1.0, 0.3);
        Settings {
            data_bytes,
            churn_percent: 5,
            qd_max: 8,
            runtime_s,
            probe_s,
            repeat: 1,
            base_turns: 1,
            resolution: 0.25,
        }
    }

    fn row(test: Test) -> Row {
        let mut search = Search::new(1, 1, 0.0);
        search.handle(1, Sample { mean: 10_000.0, p99: 20_000.0, p99_5: 20_000.0 });
        let mut echo = Histogram::default();
        echo.record(5000);
        Row::new(test, &search, &[super::super::super::run::sample_report(0.1)], &echo)
    }

    #[test]
    fn what_was_measured_is_there_after_a_restart_and_other_settings_are_refused() {
        let path = std::env::temp_dir().join(format!("peristyle-series-{}.json", std::process::id()));
        let _ = std::fs::remove_file(&path);
        let all: Vec<Test> = tests().collect();
        let mut results = Results::open(&path, false).unwrap();
        assert!(!results.series("4+2", &settings(1)).unwrap().has(all[0]));
        results.add("4+2", row(all[0])).unwrap();
        let mut again = Results::open(&path, false).unwrap();
        let series = again.series("4+2", &settings(1)).unwrap();
        assert!(series.has(all[0]) && !series.has(all[1]));
        let error = again.series("4+2", &settings(2)).unwrap_err().to_string();
        assert!(error.contains("other settings"), "{error}");
        assert!(again.series("1+1", &settings(2)).is_ok());
        let said = again.shown(false);
        assert!(said.contains("randread-4k") && said.contains("2.00"), "{said}");
        assert!(Results::open(&path, true).unwrap().all().is_empty());
        std::fs::write(&path, "{").unwrap();
        assert!(Results::open(&path, false).err().unwrap().to_string().contains("--again"));
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn another_machine_is_unlike() {
        let here = machine::describe();
        let mut other = here.clone();
        other["load_1min"] = 7.into();
        assert!(!unlike(&here, &other));
        other["cpu"] = "another".into();
        assert!(unlike(&here, &other));
    }
}
