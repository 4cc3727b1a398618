//! `bench failover` as a driver uses it: lines go in, lines of JSON come out. Counts, no times.

mod daemon;

use daemon::{Daemon, PERISTYLE};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Lines, Write};
use std::process::{Child, ChildStdout, Command, Stdio};

/// The program, with its standard input and output.
struct Driven {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Driven {
    fn start(portals: &[&str], nqn: &str, more: &[&str]) -> Driven {
        let mut command = Command::new(PERISTYLE);
        command.args(["bench", "failover", "--json", "--nqn", nqn, "--portal"]).args(portals).args(more);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Driven { child, lines }
    }
    fn say(&mut self, line: &str) {
        writeln!(self.child.stdin.as_mut().unwrap(), "{line}").unwrap();
    }
    fn hear(&mut self) -> Value {
        serde_json::from_str(&self.lines.next().expect("it has ended").unwrap()).unwrap()
    }
    /// Asks until so many commands of the phase are done.
    fn until_completed(&mut self, count: u64) -> Value {
        loop {
            self.say("status");
            let status = self.hear();
            if status["completed"].as_u64().unwrap() >= count {
                return status;
            }
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    }
}

impl Drop for Driven {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn phases_are_told_between_marks_or_at_the_end_and_a_path_that_is_not_there_matters_to_nobody() {
    let daemon = Daemon::start();
    let text = |key: &str| daemon.ready[key].as_str().unwrap();
    with_marks(text("listen"), text("nqn"));
    at_the_end(text("listen"), text("nqn"));
}

fn with_marks(portal: &str, nqn: &str) {
    let mut driven =
        Driven::start(&["127.0.0.1:1", portal], nqn, &["--qd", "4", "--duration", "10m", "--seed", "1"]);
    let status = driven.until_completed(500);
    assert_eq!(
        (&status["status"], &status["paths"]),
        (&"start".into(), &json!(["not connected", "optimized"]))
    );
    driven.say("mark second one");
    let first = driven.hear();
    assert_eq!((&first["name"], &first["depth"]), (&"start".into(), &4.into()));
    let buckets = first["buckets"].as_array().unwrap();
    let counted: u64 = buckets.iter().map(|count| count.as_u64().unwrap()).sum();
    assert!(counted >= 500 && first["completed"] == counted, "{first}");
    assert_eq!(buckets.len(), first["bucket_longest_ms"].as_array().unwrap().len());
    assert!(first["longest_stall_ms"].as_f64().unwrap() > 0.0);
    assert_eq!(driven.until_completed(100)["status"], "second one");
    driven.say("end");
    let (second, all) = (driven.hear(), driven.hear());
    assert_eq!(second["name"], "second one");
    let sum = counted + second["completed"].as_u64().unwrap();
    assert_eq!((&all["completed"], &all["violations"]), (&sum.into(), &0.into()));
    assert!(driven.child.wait().unwrap().success());
}

/// Without anybody who says anything each depth has its time, and a line of a table.
fn at_the_end(portal: &str, nqn: &str) {
    let load = ["bench", "failover", "--portal", portal, "--nqn", nqn];
    let said = daemon::run(&[&load[..], &["--qd", "1,8", "--duration", "200ms", "--size", "1MiB"]].concat());
    let rows: Vec<Vec<&str>> = said.lines().skip(1).map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows.len(), 2, "{said}");
    for (row, depth) in rows.iter().zip(["1", "8"]) {
        assert_eq!((row[0], row[1], row[row.len() - 1]), (depth, "start", "0"), "{said}");
        assert!(row[2].parse::<u64>().unwrap() > 0, "{said}");
    }
}
