//! What collection costs, on devices so small that it takes seconds. Bytes are counted, nothing is timed. What whole
//! pools reach is in docs/measuring.md; here the fixed costs of 128 slots count as well, and a tenth of tolerance.

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
