//! `bench run` as a user asks for it: several volumes, contents, traces, fio's job files, histogram logs. Counts, no times.

mod daemon;

use daemon::{Daemon, PERISTYLE, run};
use serde_json::Value;
use std::path::PathBuf;
use std::process::{Command, Stdio};

fn file(name: &str, text: &str) -> PathBuf {
    let path = std::env::temp_dir().join(format!("peristyle-load-{}-{name}", std::process::id()));
    std::fs::write(&path, text).unwrap();
    path
}

/// The report as JSON.
fn load(daemon: &Daemon, options: &[&str]) -> Value {
    let target = format!("tcp://{}", daemon.ready["listen"].as_str().unwrap());
    let fixed = ["bench", "run", "--target", &target, "--json"];
    serde_json::from_str(&run(&[&fixed, options].concat())).unwrap()
}

fn count(report: &Value, kind: &str) -> u64 {
    report[kind]["count"].as_u64().unwrap_or(0)
}

#[test]
fn loads_come_from_options_traces_and_job_files() {
    let daemon = Daemon::tight();
    daemon.ask(&["volume", "create", "second", "16MiB"]);
    volumes_and_lengths(&daemon);
    zeros_take_no_space(&daemon);
    traces(&daemon);
    job_files(&daemon);
    an_interruption(&daemon);
}

fn volumes_and_lengths(daemon: &Daemon) {
    // More than the target takes at once: several commands, one request.
    let large = load(daemon, &["--rw", "randrw", "--bs", "1MiB", "--count", "20", "--qd", "2", "--verify"]);
    assert_eq!((count(&large, "all"), large["wrong_reads"].as_u64()), (20, Some(0)));
    let hdr = file("hdr", "");
    let both =
        ["--volume", "1,2", "--rw", "randrw", "--qd", "4", "--bytes", "16MiB", "--warmup", "0s", "--verify"];
    let log = ["--repeat", "3", "--hdr", hdr.to_str().unwrap()];
    let report = load(daemon, &[&both[..], &log].concat());
    assert_eq!(count(&report, "all"), 4096);
    assert_eq!(report["runs"].as_array().unwrap().len(), 3);
    assert_eq!(report["size_bytes"]["variance"].as_f64(), Some(0.0));
    let by_second: u64 =
        report["iops_by_second"].as_array().unwrap().iter().map(|n| n.as_u64().unwrap()).sum();
    assert_eq!(by_second, 4096);
    let log = std::fs::read_to_string(&hdr).unwrap();
    assert!(log.contains("Tag=read,0.000") && log.contains("Tag=write,0.000"), "{log}");
    std::fs::remove_file(hdr).unwrap();
}

fn zeros_take_no_space(daemon: &Daemon) {
    let mapped = || {
        let shown: Value =
            serde_json::from_str(&daemon.ask(&["volume", "show", "second", "--json"])).unwrap();
        shown["usage"]["mapped_bytes"].as_u64().unwrap()
    };
    let region = ["--volume", "2", "--rw", "write", "--bs", "64k", "--offset", "8MiB", "--size", "4MiB"];
    let once = ["--bytes", "4MiB", "--warmup", "0s"];
    let fill = |contents| load(daemon, &[&region[..], &once, &["--contents", contents]].concat());
    fill("compressible:50");
    let before = mapped();
    assert_eq!(count(&fill("zero"), "write"), 64);
    assert_eq!(before - mapped(), 4 << 20, "exactly the region");
}

fn traces(daemon: &Daemon) {
    let trace =
        file("trace", "0 W 0 64k\n0.01 R 4k 8k # inside\n0.02 F\n0.03 D 1MiB 1MiB\n0.04 R 200MiB 4k\n");
    let path = trace.to_str().unwrap();
    let report = load(daemon, &["--trace", path, "--wrap", "--qd", "2"]);
    assert_eq!([count(&report, "read"), count(&report, "write"), count(&report, "other")], [2, 1, 2]);
    let fast = load(daemon, &["--trace", path, "--wrap", "--speed", "max"]);
    assert_eq!(count(&fast, "read"), 2);
    let target = format!("tcp://{}", daemon.ready["listen"].as_str().unwrap());
    let (code, said) = daemon.try_to(&["bench", "run", "--target", &target, "--trace", path]);
    assert!(code != Some(0) && said.contains("behind the volume's end"), "{said}");
    std::fs::remove_file(trace).unwrap();
}

fn job_files(daemon: &Daemon) {
    let text = "[global]\nioengine=libaio\nbs=8k\n[a]\nrw=randwrite\nnumber_ios=100\nfilename=/dev/nvme0n2\n\
                [b]\nrw=randread\nnumber_ios=50\nnumjobs=2\n[c]\nstonewall\nrw=read\nsize=1m\n";
    let job = file("job", text);
    let report = load(daemon, &["--job", job.to_str().unwrap(), "--warmup", "0s"]);
    let of = |n: usize| &report["jobs"][n];
    assert_eq!([of(0), of(1), of(2)].map(|job| job["name"].as_str().unwrap()), ["a", "b", "c"]);
    assert_eq!([count(of(0), "write"), count(of(1), "read"), count(of(2), "read")], [100, 100, 128]);
    assert_eq!(of(2)["block_bytes"], 8192);
    std::fs::remove_file(job).unwrap();
}

fn an_interruption(daemon: &Daemon) {
    let target = format!("tcp://{}", daemon.ready["listen"].as_str().unwrap());
    let run = ["bench", "run", "--target", &target, "--runtime", "600s", "--warmup", "0s", "--json"];
    let mut command = Command::new(PERISTYLE);
    command.args(run).args(["--repeat", "2"]);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    std::thread::sleep(std::time::Duration::from_secs(2));
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    let ended = child.wait_with_output().unwrap();
    let said = String::from_utf8(ended.stderr).unwrap();
    assert!(ended.status.code() == Some(1) && said.contains("interrupted"), "{:?}: {said}", ended.status);
    let report: Value = serde_json::from_slice(&ended.stdout).unwrap();
    assert!(report["interrupted"] == true && count(&report, "read") > 0, "{report}");
    assert_eq!(report["runs"].as_array().unwrap().len(), 1);
}
