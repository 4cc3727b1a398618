//! `peristyle top`: what becomes of the terminal.

mod daemon;

use daemon::{Daemon, PERISTYLE};
use std::process::{Command, Stdio};
use std::time::Duration;

#[test]
fn top_without_a_terminal_says_what_to_ask_instead() {
    let output = Command::new(PERISTYLE).args(["--admin", "/nonexistent", "top"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("peristyle profile"));
}

/// In a terminal of its own (`script`), which its output goes to.
#[test]
fn top_gives_the_terminal_back_when_it_is_told_to_stop() {
    const ENTER: &str = "\x1b[?1049h";
    const LEAVE: &str = "\x1b[?1049l";
    let daemon = Daemon::start();
    let at = |name: &str| daemon.dir().join(name);
    let (pid, out) = (at("top.pid"), at("top.out"));
    let admin = daemon.ready["admin"].as_str().unwrap();
    let inside =
        format!("stty rows 40 cols 120; echo $$ > {}; exec {PERISTYLE} --admin {admin} top", pid.display());
    let mut script = Command::new("script")
        .args(["--quiet", "--return", "--flush", "--command", &inside])
        .arg(&out)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let said = || String::from_utf8_lossy(&std::fs::read(&out).unwrap_or_default()).into_owned();
    while !said().contains(ENTER) {
        assert_eq!(script.try_wait().unwrap(), None, "{}", said());
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(!said().contains(LEAVE));
    let pid = std::fs::read_to_string(pid).unwrap();
    assert!(Command::new("kill").args(["-TERM", pid.trim()]).status().unwrap().success());
    let status = script.wait().unwrap();
    assert!(status.success() && said().contains(LEAVE), "{status}: {}", said());
}
