//! `peristyle profile` of a real node under load: every stage counts, and what the stages say agrees with the whole.

mod daemon;

use daemon::{Daemon, PERISTYLE, run};
use serde_json::Value;
use std::process::{Child, Command, Stdio};

/// No stage is off by so much when it counts right, unless requests are stuck.
const LITTLE_ERROR_MAX: f64 = 0.2;

fn load(daemon: &Daemon, rw: &str, depth: &str) -> Child {
    let target = format!("tcp://{}", daemon.ready["listen"].as_str().unwrap());
    let load = ["bench", "run", "--target", &target, "--qd", depth, "--rw", rw, "--runtime", "60s"];
    Command::new(PERISTYLE).args(load).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

fn number(row: &Value, key: &str) -> f64 {
    row[key].as_f64().unwrap_or_else(|| panic!("no {key} in {row}"))
}

fn rows<'a>(path: &'a Value, key: &str) -> Vec<&'a Value> {
    path[key].as_array().unwrap().iter().collect()
}

/// All rows of a path, but for what happens only when a column is late or away.
fn all_rows(path: &Value) -> Vec<&Value> {
    let legs = rows(path, "devices").into_iter().flat_map(|d| [&d["queue"], &d["service"]]);
    let inside = rows(path, "inside").into_iter().filter(|row| row["stage"] != "read.reconstruct");
    rows(path, "stages").into_iter().chain(inside).chain(legs).chain([&path["total"]]).collect()
}

fn is_lawful(profile: &Value) -> bool {
    let all = rows(profile, "paths").into_iter().flat_map(all_rows);
    all.into_iter().all(|row| number(row, "little_error") < LITTLE_ERROR_MAX)
}

/// Of a few seconds of load. A machine that stands still at the end of them leaves requests that are stuck: then once more.
fn profile_of(daemon: &Daemon) -> Value {
    for _ in 0..4 {
        let said = daemon.ask(&["profile", "--interval", "4s", "--json"]);
        let profile = serde_json::from_str(&said).unwrap();
        if is_lawful(&profile) {
            return profile;
        }
        eprintln!("{said}");
    }
    panic!("Little's law is off in every profile");
}

fn check_path(path: &Value) {
    let name = path["path"].as_str().unwrap();
    let stages = rows(path, "stages");
    for row in all_rows(path) {
        assert!(row["count"].as_u64().unwrap() > 0, "{name}: nothing came through {row}");
    }
    let parts: f64 = stages.iter().map(|row| number(row, "per_command_us")).sum();
    let total = number(&path["total"], "mean_us");
    let near = |a: f64, b: f64| (a - b).abs() <= 1e-6 * total;
    assert!(near(parts, number(path, "sum_us")) && near(parts + number(path, "between_us"), total), "{path}");
    assert!(near(number(stages[0], "remaining_us"), parts), "{path}");
    // Nearly all of the way is in some stage, and none is counted twice.
    assert!(number(path, "between_us").abs() < 0.5 * total, "{path}");
}

#[test]
fn every_stage_of_a_loaded_node_counts_and_the_stages_add_up() {
    let daemon = Daemon::on_files();
    // Reads of what was never written ask no device.
    let target = format!("tcp://{}", daemon.ready["listen"].as_str().unwrap());
    let fill = ["--rw", "write", "--bs", "128k", "--count", "512", "--warmup", "0s"];
    run(&[&["bench", "run", "--target", &target][..], &fill].concat());
    let mut loads = ["randwrite", "randread"].map(|rw| load(&daemon, rw, "8"));
    let profile = profile_of(&daemon);
    let text = daemon.ask(&["profile", "--since-start"]);
    for load in &mut loads {
        load.kill().unwrap();
        load.wait().unwrap();
    }
    assert!(profile["counted"] == true && profile["since_start"] == false);
    let paths = rows(&profile, "paths");
    assert_eq!(paths.iter().map(|p| &p["path"]).collect::<Vec<_>>(), ["read", "write"]);
    paths.iter().for_each(|path| {
        check_path(path);
        assert_eq!(path["devices"].as_array().unwrap().len(), 6);
    });
    let columns = rows(paths[1], "stages").into_iter().find(|row| row["stage"] == "write.columns");
    assert_eq!(columns, Some(&paths[1]["slowest"]));
    for words in [
        "write.batch_wait",
        "read.columns",
        "between stages",
        "end to end",
        "slowest of each command",
        "Little's law",
    ] {
        assert!(text.contains(words), "{words}: {text}");
    }
}
