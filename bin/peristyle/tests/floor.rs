//! `bench floor` measures reads of a device: not of blocks that no device has.

mod daemon;

use daemon::{Daemon, PERISTYLE};
use std::process::{Command, Output};

fn floor(daemon: &Daemon, options: &[&str]) -> Output {
    let target = format!("tcp://{}", daemon.ready["listen"].as_str().unwrap());
    let fixed = ["bench", "floor", "--rounds", "100", "--turns", "3", "--json", "--target", &target];
    Command::new(PERISTYLE).args(fixed).args(options).output().unwrap()
}

#[test]
fn a_floor_is_measured_on_a_volume_that_was_written_only() {
    let daemon = Daemon::start();
    let refused = floor(&daemon, &[]);
    assert!(!refused.status.success() && refused.stdout.is_empty());
    assert!(String::from_utf8_lossy(&refused.stderr).contains("--fill"));
    for options in [&["--fill"][..], &[]] {
        let measured = floor(&daemon, options);
        assert!(measured.status.success(), "{}", String::from_utf8_lossy(&measured.stderr));
        let figures: serde_json::Value = serde_json::from_slice(&measured.stdout).unwrap();
        assert!(figures["ratio"].as_f64().unwrap() > 0.0);
    }
}
