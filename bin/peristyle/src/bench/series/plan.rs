//! A plan of series: hardware classes, numbers of nodes, schemes; and which of them have results.

use super::SeriesOptions;
use super::record_path;
use super::results::Results;
use crate::bench::run::read_text;
use crate::failure::Failure;
use crate::render::{json, table};
use peristyle_base::Scheme;
use peristyle_bench::series::tests;
use serde::Deserialize;
use serde_json::json;
use std::path::{Path, PathBuf};

const PLAN_BYTES_MAX: u64 = 1 << 20;

#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields)]
struct Plan {
    nodes: Vec<u32>,
    schemes: Vec<String>,
    class: Vec<Class>,
}

/// Machines that figures are compared on.
#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields)]
struct Class {
    name: String,
    about: String,
}

impl Plan {
    fn read(path: &Path) -> Result<Plan, Failure> {
        let bad = |what: &dyn std::fmt::Display| Failure::usage(format!("{}: {what}", path.display()));
        let plan: Plan = toml::from_str(&read_text(path, PLAN_BYTES_MAX)?).map_err(|e| bad(&e))?;
        if let Some(scheme) = plan.schemes.iter().find(|scheme| scheme.parse::<Scheme>().is_err()) {
            return Err(bad(&format!("'{scheme}' is no scheme")));
        }
        // A class is a folder's name.
        let is_name =
            |name: &str| !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        match plan.class.iter().find(|class| !is_name(&class.name)) {
            Some(class) => Err(bad(&format!("'{}': a class has letters, digits and '-'", class.name))),
            None => Ok(plan),
        }
    }
}

/// Every series of the plan, and how many of its tests have results.
pub fn list(options: &SeriesOptions) -> Result<(), Failure> {
    let path = options.plan.as_deref().expect("asked for");
    let plan = Plan::read(path)?;
    let (mut lines, mut cells) = (Vec::new(), Vec::new());
    for class in &plan.class {
        for nodes in &plan.nodes {
            for scheme in &plan.schemes {
                let record = record_path(path, &class.name, *nodes, scheme);
                let done = done(&record)?;
                lines.push(vec![
                    class.name.clone(),
                    nodes.to_string(),
                    scheme.clone(),
                    format!("{done} of 42"),
                    class.about.clone(),
                ]);
                cells.push(json!({"class": class.name, "nodes": nodes, "scheme": scheme, "tests_done": done, "record": record}));
            }
        }
    }
    debug_assert_eq!(tests().count(), 42);
    match options.json {
        true => print!("{}", json(&cells)),
        false => print!("{}", table(&["class", "nodes", "scheme", "tests", ""], &[1, 3], lines)),
    }
    Ok(())
}

/// Results are of the machines of that class, not of this one.
fn done(record: &Path) -> Result<usize, Failure> {
    if !record.exists() {
        return Ok(0);
    }
    Ok(Results::of_any_machine(record)?.all().iter().map(|series| series.rows.len()).max().unwrap_or(0))
}

/// Where the results of the series that was asked for lie.
pub fn cell(path: &Path, options: &SeriesOptions) -> Result<PathBuf, Failure> {
    let plan = Plan::read(path)?;
    let class = options.class.as_deref().expect("asked for");
    if !plan.class.iter().any(|known| known.name == class) {
        let names: Vec<&str> = plan.class.iter().map(|class| class.name.as_str()).collect();
        return Err(Failure::usage(format!("--class {class}: the plan has {}", names.join(", "))));
    }
    let [scheme] = options.scheme[..] else {
        return Err(Failure::usage("--class: a series has one --scheme"));
    };
    if !plan.schemes.contains(&scheme.to_string()) || !plan.nodes.contains(&options.nodes) {
        return Err(Failure::usage(format!(
            "the plan has no series of {} nodes and {scheme}",
            options.nodes
        )));
    }
    if options.nodes > 1 && options.target.is_none() {
        return Err(Failure::usage("--nodes: a store of its own has one node; give the cluster's --target"));
    }
    Ok(record_path(path, class, options.nodes, &scheme.to_string()))
}

#[cfg(test)]
mod tests_of_plans {
    use super::*;

    #[test]
    fn the_plan_that_comes_with_the_source_has_36_series() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../bench/series.toml");
        let plan = Plan::read(&path).unwrap();
        assert_eq!(plan.class.len() * plan.nodes.len() * plan.schemes.len(), 36);
    }

    #[test]
    fn a_plan_with_mistakes_is_refused() {
        let path = std::env::temp_dir().join(format!("peristyle-plan-{}.toml", std::process::id()));
        for (text, said) in [
            ("nodes = [1]", "missing field"),
            ("nodes = [1]\nschemes = [\"4\"]\nclass = []", "'4' is no scheme"),
            ("nodes = [1]\nschemes = []\n[[class]]\nname = \"../x\"\nabout = \"\"", "letters, digits"),
            ("nodes = [1]\nschemes = []\nclass = []\nmore = 1", "unknown field"),
        ] {
            std::fs::write(&path, text).unwrap();
            let error = Plan::read(&path).unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
        }
        std::fs::remove_file(path).unwrap();
    }
}
