//! `bench compare`: two files of figures side by side, if they are of the same things.

use super::run::read_text;
use crate::failure::Failure;
use crate::render::{json, table};
use clap::Args;
use peristyle_bench::significance::permutation_p;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

const BYTES_MAX: u64 = 64 << 20;
/// What of a machine makes figures incomparable when it differs.
const MACHINE: [&str; 4] = ["cpu", "cores", "memory_bytes", "kernel"];
/// Figures that are compared, and whether more is better.
const FIGURES: [(&str, bool); 5] =
    [("iops", true), ("mean_us", false), ("p50_us", false), ("p99_us", false), ("echo_p50_us", false)];
/// Chance makes a difference as large as that in one of twenty.
const P_MAX: f64 = 0.05;

/// Two files of `bench run --repeat --json`, `bench record` or `bench series`, figure by figure, with what chance may have done
///
/// Refuses figures of different machines, loads or settings. A difference is marked where dealing out the runs of both at random would
/// make one as large in less than 5 % of the cases (an exact permutation test of the means; four runs of each are the least that can
/// reach it).
#[derive(Args, Debug, Clone)]
pub struct CompareOptions {
    #[arg(value_name = "BEFORE")]
    pub before: PathBuf,
    #[arg(value_name = "AFTER")]
    pub after: PathBuf,
    /// Parts of the machine that may differ: cpu, cores, memory_bytes, kernel
    #[arg(long, value_name = "FIELD,...", value_delimiter = ',', value_parser = MACHINE)]
    pub allow: Vec<String>,
    /// Fail when a figure is significantly worse by more than this
    #[arg(long, value_name = "PERCENT")]
    pub bar: Option<f64>,
    #[arg(long)]
    pub json: bool,
}

/// One thing that was measured, some times over.
#[derive(Debug)]
struct Entry {
    name: String,
    identity: Value,
    runs: Vec<Value>,
}

/// One figure of an entry, before and after.
#[derive(Debug, PartialEq)]
pub struct Line {
    pub name: String,
    pub figure: &'static str,
    pub before: f64,
    pub after: f64,
    /// Of chance; none where there are too few runs.
    pub p: Option<f64>,
    is_better: bool,
}

impl Line {
    pub fn change_percent(&self) -> f64 {
        (self.after / self.before.max(1e-9) - 1.0) * 100.0
    }
    pub fn is_significant(&self) -> bool {
        self.p.is_some_and(|p| p <= P_MAX)
    }
    pub fn mark(&self) -> &'static str {
        match (self.is_significant(), self.is_better) {
            (false, _) => "",
            (true, true) => "better",
            (true, false) => "worse",
        }
    }
}

pub fn command(options: &CompareOptions) -> Result<(), Failure> {
    let read = |path: &Path| -> Result<Value, Failure> {
        serde_json::from_str(&read_text(path, BYTES_MAX)?)
            .map_err(|e| Failure::usage(format!("{}: {e}", path.display())))
    };
    let (before, after) = (read(&options.before)?, read(&options.after)?);
    let lines = compare(&before, &after, &options.allow).map_err(Failure::usage)?;
    match options.json {
        true => print!("{}", json(&lines.iter().map(line_json).collect::<Vec<_>>())),
        false => print!("{}", text(&lines)),
    }
    let worse = |line: &&Line| {
        line.mark() == "worse" && options.bar.is_some_and(|bar| line.change_percent().abs() > bar)
    };
    match lines.iter().find(worse) {
        Some(line) => Err(Failure::failed(format!(
            "{}: {} is worse by {:.1} %",
            line.name,
            line.figure,
            line.change_percent().abs()
        ))),
        None => Ok(()),
    }
}

pub fn compare(before: &Value, after: &Value, allow: &[String]) -> Result<Vec<Line>, String> {
    for field in MACHINE.iter().filter(|field| !allow.iter().any(|allowed| allowed == *field)) {
        let (one, other) = (&before["machine"][field], &after["machine"][field]);
        if one != other || one.is_null() {
            return Err(format!(
                "the machines differ in {field} ({one}, {other}): figures of both cannot be compared"
            ));
        }
    }
    let (before, after) = (entries(before)?, entries(after)?);
    let mut lines = Vec::new();
    for old in &before {
        let Some(new) = after.iter().find(|new| new.name == old.name) else { continue };
        if old.identity != new.identity {
            return Err(format!(
                "{}: {} differs: not the same load",
                old.name,
                difference(&old.identity, &new.identity)
            ));
        }
        lines.extend(FIGURES.iter().filter_map(|(figure, more)| line(old, new, figure, *more)));
    }
    match lines.is_empty() {
        true => Err("the files have nothing in common".into()),
        false => Ok(lines),
    }
}

/// The first key whose values differ.
fn difference(one: &Value, other: &Value) -> String {
    let keys = [one, other].into_iter().filter_map(Value::as_object).flat_map(|map| map.keys());
    let differs = |key: &&String| one.get(key.as_str()) != other.get(key.as_str());
    keys.into_iter().find(differs).cloned().unwrap_or_default()
}

fn line(old: &Entry, new: &Entry, figure: &'static str, more_is_better: bool) -> Option<Line> {
    let values =
        |entry: &Entry| -> Vec<f64> { entry.runs.iter().filter_map(|run| run[figure].as_f64()).collect() };
    let (one, other) = (values(old), values(new));
    let median = |mut values: Vec<f64>| -> Option<f64> {
        values.sort_by(f64::total_cmp);
        values.get(values.len() / 2).copied()
    };
    let p = permutation_p(&one, &other);
    let (before, after) = (median(one)?, median(other)?);
    Some(Line {
        name: old.name.clone(),
        figure,
        before,
        after,
        p,
        is_better: (after > before) == more_is_better,
    })
}

/// What was measured in a file, whichever command wrote it.
fn entries(document: &Value) -> Result<Vec<Entry>, String> {
    let array = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let text = |value: &Value| value.as_str().unwrap_or("").to_owned();
    if document["kind"] == "record" {
        let entry = |e: &Value| Entry {
            name: text(&e["name"]),
            identity: e["identity"].clone(),
            runs: array(&e["runs"]),
        };
        return Ok(array(&document["entries"]).iter().map(entry).collect());
    }
    if document["series"].is_array() {
        let mut all = Vec::new();
        for series in array(&document["series"]) {
            for row in array(&series["rows"]) {
                let name = format!("{} {}", text(&series["label"]), text(&row["test"]));
                all.push(Entry { name, identity: series["settings"].clone(), runs: array(&row["runs"]) });
            }
        }
        return Ok(all);
    }
    if document["runs"].is_array() && document["block_bytes"].is_u64() {
        let identity = super::run::identity_of(document);
        return Ok(vec![Entry { name: "run".into(), identity, runs: array(&document["runs"]) }]);
    }
    Err("a file of `bench run --json`, `bench record` or `bench series` is needed".into())
}

fn text(lines: &[Line]) -> String {
    let header = ["", "", "before", "after", "change", "p", ""];
    let rows = lines.iter().map(|line| {
        vec![
            line.name.clone(),
            line.figure.into(),
            format!("{:.1}", line.before),
            format!("{:.1}", line.after),
            format!("{:+.1} %", line.change_percent()),
            line.p.map_or("too few".into(), |p| format!("{p:.3}")),
            line.mark().into(),
        ]
    });
    table(&header, &[2, 3, 4, 5], rows) + "medians; p: how often chance alone makes such a difference\n"
}

pub fn line_json(line: &Line) -> Value {
    json!({
        "name": line.name,
        "figure": line.figure,
        "before": line.before,
        "after": line.after,
        "change_percent": line.change_percent(),
        "p": line.p,
        "significant": line.is_significant(),
        "better": line.is_better,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn document(cpu: &str, depth: u32, iops: &[f64]) -> Value {
        let runs: Vec<Value> = iops.iter().map(|iops| json!({"iops": iops, "p50_us": 1e6 / iops})).collect();
        json!({
            "kind": "record",
            "machine": {"cpu": cpu, "cores": 2, "memory_bytes": 1, "kernel": "6"},
            "entries": [{"name": "a", "identity": {"block_bytes": 4096, "depth": depth}, "runs": runs}],
        })
    }

    #[test]
    fn what_is_significant_is_marked() {
        let (old, new) = (
            document("x", 1, &[100.0, 101.0, 102.0, 103.0]),
            document("x", 1, &[120.0, 121.0, 122.0, 123.0]),
        );
        let lines = compare(&old, &new, &[]).unwrap();
        let marks: Vec<_> = lines.iter().map(|line| (line.figure, line.mark())).collect();
        assert_eq!(marks, [("iops", "better"), ("p50_us", "better")]);
        assert!((lines[0].change_percent() - 19.6).abs() < 0.1);
        assert!(compare(&new, &old, &[]).unwrap().iter().all(|line| line.mark() == "worse"));
        assert!(compare(&old, &old, &[]).unwrap().iter().all(|line| line.mark().is_empty()));
        assert!(text(&lines).contains("+19.6 %"));
    }

    #[test]
    fn unlike_things_are_refused_and_told_apart() {
        let old = document("x", 1, &[1.0]);
        let refused = |new: &Value, allow: &[&str]| {
            let allow: Vec<String> = allow.iter().map(|field| field.to_string()).collect();
            compare(&old, new, &allow).err()
        };
        assert!(refused(&document("y", 1, &[1.0]), &[]).unwrap().contains("differ in cpu"));
        assert_eq!(refused(&document("y", 1, &[1.0]), &["cpu"]), None);
        assert!(refused(&document("x", 2, &[1.0]), &[]).unwrap().contains("depth differs"));
        let mut other = document("x", 1, &[1.0]);
        other["entries"][0]["name"] = "b".into();
        assert!(refused(&other, &[]).unwrap().contains("nothing in common"));
        assert!(refused(&json!({"machine": old["machine"]}), &[]).unwrap().contains("is needed"));
        assert!(refused(&json!({}), &[]).unwrap().contains("differ in cpu"));
    }
}
