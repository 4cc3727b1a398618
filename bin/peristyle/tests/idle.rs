//! A node that has nothing to do leaves the machine to others. CPU time is asked for, not the clock: other programs
//! do not disturb it.

mod daemon;

use daemon::{Daemon, PERISTYLE};
use std::process::Command;

#[test]
fn an_idle_node_with_a_host_connected_uses_less_than_a_hundredth_of_a_core() {
    let daemon = Daemon::start();
    let listen = daemon.ready["listen"].as_str().unwrap();
    let idle = Command::new(PERISTYLE)
        .args(["bench", "idle", "--bar", "1", "--runtime", "3s", "--pid"])
        .arg(daemon.ready["pid"].to_string())
        .args(["--target", &format!("tcp://{listen}")])
        .output()
        .unwrap();
    assert!(idle.status.success(), "{}", String::from_utf8_lossy(&idle.stderr));
}
