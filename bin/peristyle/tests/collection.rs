//! What collection costs, on devices so small that it takes seconds. Bytes are counted, nothing is timed. What whole
//! pools reach is in docs/measuring.md; here the fixed costs of 128 slots count as well, and a tenth of tolerance.

mod daemon;

use daemon::{Daemon, run};
use serde_json::Value;
use std::process::Command;

fn bytes_within(bar: &str, options: &[&str]) {
    let small = ["bench", "collect", "--device-size", "256MiB", "--times", "2", "--bar", bar];
    let out = Command::new(env!("CARGO_BIN_EXE_peristyle")).args(small).args(options).output().unwrap();
    let (said, why) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success(), "{said}{why}");
    assert!(said.contains("of the capacity no blocks can lie in"), "{said}");
}

#[test]
fn uniform_overwrites_of_a_small_pool_cost_few_device_bytes() {
    bytes_within("2.75", &["--fill", "60"]);
}

#[test]
fn skewed_overwrites_of_a_small_pool_cost_few_device_bytes() {
    bytes_within("2.75", &["--fill", "70", "--distribution", "zipf"]);
}

#[test]
fn pool_show_tells_what_collection_does_and_what_it_costs() {
    let daemon = Daemon::tight();
    let collection = || -> Value {
        let pool: Value = serde_json::from_str(&daemon.ask(&["pool", "show", "--json"])).unwrap();
        pool["collection"].clone()
    };
    let before = collection();
    assert!(before["state"] == "resting" && before["write_amplification"].is_null(), "{before}");
    assert!(before["room_bytes"].as_u64() > before["begins_below_bytes"].as_u64(), "{before}");
    let listen = format!("tcp://{}", daemon.ready["listen"].as_str().unwrap());
    let load = |rw: &str, more: &[&str]| {
        run(&[&["bench", "run", "--target", &listen, "--warmup", "0s", "--rw", rw], more].concat())
    };
    load("write", &["--bs", "128k", "--qd", "4", "--count", "1024"]);
    load("randwrite", &["--qd", "64", "--count", "100000"]);
    let after = collection();
    let number = |key: &str| after[key].as_f64().unwrap_or_else(|| panic!("{key}: {after}"));
    assert_eq!(number("user_bytes"), (128 << 20) as f64 + 100_000.0 * 4096.0);
    assert!(number("extents") > 10.0 && number("moved_bytes") > 1e6, "{after}");
    assert_eq!(number("moved_bytes"), 4096.0 * number("moved_blocks"));
    assert!((0.01..0.99).contains(&number("live_share")), "{after}");
    // 2+1: half as much again for parity, and headers.
    assert!(number("collection_bytes") > 1.5 * number("moved_bytes"), "{after}");
    assert!(
        number("device_bytes") > 1.5 * number("user_bytes") * 0.8 + number("collection_bytes"),
        "{after}"
    );
    assert!((number("write_amplification") - number("device_bytes") / number("user_bytes")).abs() < 1e-9);
    // It may have caught up by now.
    let rests = after["state"] == "resting" && number("room_bytes") >= number("begins_below_bytes");
    let works = ["running", "held back", "in need", "nothing to collect"];
    assert!(rests || works.contains(&after["state"].as_str().unwrap()), "{after}");
    let text = daemon.ask(&["pool", "show"]);
    assert!(
        text.contains("collection begins below") && text.contains("device bytes for each byte"),
        "{text}"
    );
}
