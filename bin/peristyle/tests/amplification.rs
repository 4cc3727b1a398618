//! What 4 KiB random writes at depth 32 cost the devices of a real node, as `peristyle stats` tells it. Writes and bytes
//! are counted, not timed. (A write alone: `crates/node/tests/figures.rs`.)

mod daemon;

use daemon::{Daemon, run};
use serde_json::Value;
use std::sync::Mutex;

const WRITES: u64 = 8000;
/// How many writes share a frame depends on how busy the machine is, and settles for a node: the median of so many
/// nodes counts.
const RUNS: usize = 9;

/// How many writes share a frame depends on what else runs: not these tests beside each other.
static ALONE: Mutex<()> = Mutex::new(());

/// Device writes of frames, and their bytes, over all devices; slot tables, seals and zeroing are counted apart.
fn appended(stats: &Value) -> (u64, u64) {
    let groups = stats["root"]["children"].as_array().unwrap();
    let devices = groups.iter().find(|group| group["name"] == "devices").expect("there are devices");
    let sum = |prefix: &str| {
        let of = |device: &Value| -> u64 {
            let counters = device["counters"].as_object().unwrap();
            counters
                .iter()
                .filter(|(name, _)| name.starts_with(prefix))
                .map(|(_, n)| n.as_u64().unwrap())
                .sum()
        };
        devices["children"].as_array().unwrap().iter().map(of).sum()
    };
    (sum("writes.append"), sum("write_bytes.append"))
}

#[test]
fn random_writes_at_depth_32_share_frames() {
    let _alone = ALONE.lock();
    let count = WRITES.to_string();
    let (mut ops, mut bytes) = (Vec::new(), Vec::new());
    for _ in 0..RUNS {
        let daemon = Daemon::on_files();
        let listen = format!("tcp://{}", daemon.ready["listen"].as_str().unwrap());
        let stats = || appended(&serde_json::from_str(&daemon.ask(&["stats", "--json"])).unwrap());
        let before = stats();
        run(&[
            "bench",
            "run",
            "--target",
            &listen,
            "--rw",
            "randwrite",
            "--qd",
            "32",
            "--count",
            &count,
            "--warmup",
            "0s",
        ]);
        let after = stats();
        ops.push((after.0 - before.0) as f64 / WRITES as f64);
        bytes.push((after.1 - before.1) as f64 / (WRITES * 4096) as f64);
    }
    let median = |mut runs: Vec<f64>| {
        runs.sort_by(f64::total_cmp);
        runs[RUNS / 2]
    };
    let (ops, bytes) = (median(ops), median(bytes));
    assert!((0.1..=0.35).contains(&ops), "{ops:.3} device writes per write");
    assert!((1.5..=1.7).contains(&bytes), "{bytes:.3} device bytes per byte");
}

/// Looks at the matrix at most: in 40 ms a busy machine may do few writes, beside all that a node has to do anyway.
const LOOKS: usize = 4;

#[test]
fn the_matrix_counts_what_a_request_costs() {
    let mut writes = Vec::new();
    for _ in 0..LOOKS {
        let said = run(&[
            "bench",
            "amplification",
            "--scheme",
            "4+2",
            "--bs",
            "4k",
            "--data",
            "16MiB",
            "--runtime",
            "40ms",
            "--qd-max",
            "4",
            "--json",
        ]);
        let document: Value = serde_json::from_str(&said).unwrap();
        let cells = document["cells"].as_array().unwrap();
        assert_eq!(cells.len(), 6);
        let cell = |test: &str| cells.iter().find(|cell| cell["test"] == test).unwrap();
        let alone = |test: &str, what: &str| cell(test)["alone"][what].as_f64().unwrap();
        assert_eq!(alone("randwrite-4k", "pdus"), 2.0);
        let reads = alone("randread-4k", "device_reads");
        assert!((0.9..=1.1).contains(&reads), "{reads}");
        assert!(alone("randread-4k", "target_core_s") > 0.0);
        assert!(cells.iter().all(|cell| cell["device"]["mean"].as_f64().unwrap() > 0.0));
        // Checkpoints and slot tables are in it, and weigh more the shorter a run is.
        writes.push(alone("randwrite-4k", "device_writes"));
        assert!(writes.iter().all(|writes| *writes >= 3.0), "{writes:?}");
        if writes.last().is_some_and(|writes| *writes < 6.0) {
            return;
        }
    }
    panic!("device writes for each write: {writes:?}");
}

/// Of each of the three nodes' columns one is the owner's own: a write that is alone has two messages to the others and two back, with a
/// header and a block of 4 KiB in each append. A busy machine may have a column late, and asked for again.
#[test]
fn what_goes_between_nodes_is_counted_beside_the_least() {
    let _alone = ALONE.lock();
    let mut seen = Vec::new();
    for _ in 0..LOOKS {
        let said = run(&[
            "bench",
            "amplification",
            "--nodes",
            "3",
            "--scheme",
            "1+2",
            "--bs",
            "4k",
            "--data",
            "8MiB",
            "--runtime",
            "100ms",
            "--qd",
            "4",
            "--json",
        ]);
        let document: Value = serde_json::from_str(&said).unwrap();
        assert_eq!(document["nodes"], 3);
        let cells = document["cells"].as_array().unwrap();
        let cell = |test: &str| cells.iter().find(|cell| cell["test"] == test).unwrap();
        let number = |value: &Value| value.as_f64().unwrap();
        let least = &cell("randwrite-4k")["least_between"]["alone"];
        let bytes = 2.0 * (2.0 * 4096.0 + 84.0 + 2.0 * 4.0 + 24.0) / 4096.0;
        assert_eq!(number(&least["messages"]), 4.0);
        assert!((number(&least["bytes"]) - bytes).abs() < 1e-9, "{least}");
        assert_eq!(number(&cell("randwrite-4k")["in_place_between"]["delta"]["messages"]), 8.0);
        assert!(cells.iter().all(|cell| number(&cell["alone"]["between"]["watch_messages_s"]) > 0.0));
        let between = |test: &str| &cell(test)["alone"]["between"];
        let user = &between("randwrite-4k")["kinds"]["append user"];
        let reads = number(&between("randread-4k")["reads"]);
        let is_so = |what: &str, wanted: f64| (number(&user[what]) - wanted).abs() < 1e-9;
        seen.push((user.clone(), reads));
        if is_so("messages", 4.0) && is_so("bytes", bytes) && reads <= 1.0 {
            return;
        }
    }
    panic!("appends of a lone write, reads of a lone read: {seen:?}");
}
