//! `bench snapshots`, so small that it takes seconds: what is read is what was written, and accounts add up. Nothing is timed.

use serde_json::Value;
use std::process::{Command, Output};

fn bench(options: &[&str]) -> Output {
    let small = ["bench", "snapshots", "--device-size", "128MiB", "--runtime", "50ms"];
    Command::new(env!("CARGO_BIN_EXE_peristyle")).args(small).args(options).output().unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8([&output.stdout[..], &output.stderr[..]].concat()).unwrap()
}

#[test]
fn snapshots_and_clones_hold_what_they_must_and_take_what_was_written() {
    let out = bench(&["--volume-size", "8MiB", "--deep", "64", "--clones", "50", "--turns", "1", "--json"]);
    assert!(out.status.success(), "{}", said(&out));
    let found: Value = serde_json::from_slice(&out.stdout).unwrap();
    let accounts = &found["accounts"];
    // 2 volumes of 2048 blocks, 40 blocks behind each snapshot, 16 of each clone.
    assert_eq!(accounts["live_blocks"], 2 * 2048 + 64 * 40 + 50 * 16, "{found}");
    assert_eq!(accounts["volumes_and_snapshots"], 2 + 64 + 1 + 50, "{found}");
    assert!(accounts["add_up"] == true && found["wrong_reads"] == 0, "{found}");
    assert!(found["deep"]["ratio"].as_f64() > Some(0.0) && found["clone_create"]["count"] == 50, "{found}");
}

#[test]
fn a_missed_bar_and_a_pool_that_is_too_small_are_failures() {
    let out =
        bench(&["--volume-size", "8MiB", "--deep", "2", "--clones", "0", "--turns", "1", "--bar=-1000"]);
    assert!(!out.status.success() && said(&out).contains("slower"), "{}", said(&out));
    let out = bench(&["--volume-size", "1GiB"]);
    assert!(out.status.code() == Some(2) && said(&out).contains("--device-size"), "{}", said(&out));
}
