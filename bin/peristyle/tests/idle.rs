//! A node that has nothing to do leaves the machine to others. CPU time is asked for, not the clock: other programs
//! do not disturb it.

mod daemon;

use daemon::{Daemon, run};

#[test]
fn an_idle_node_with_a_host_connected_uses_less_than_a_hundredth_of_a_core() {
    let daemon = Daemon::start();
    let listen = daemon.ready["listen"].as_str().unwrap();
    let pid = daemon.ready["pid"].to_string();
    let target = format!("tcp://{listen}");
    run(&["bench", "idle", "--bar", "1", "--runtime", "3s", "--pid", &pid, "--target", &target]);
}
