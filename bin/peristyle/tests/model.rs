//! `peristyle model`: what it says of queues and files, and that a curve is predicted and measured of a real node. Nothing is timed.

mod daemon;

use daemon::{Daemon, PERISTYLE};
use serde_json::Value;
use std::process::{Command, Output};

fn model(options: &[&str]) -> Output {
    Command::new(PERISTYLE).arg("model").args(options).output().unwrap()
}

fn said(options: &[&str]) -> Value {
    let out = model(options);
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    serde_json::from_slice(&out.stdout).unwrap()
}

#[test]
fn two_cashiers_take_a_minute_and_a_third_and_one_is_too_few() {
    let shop = ["queue", "--rate", "1/min", "--service", "60s", "--json", "--servers"];
    let two = said(&[&shop[..], &["2"]].concat());
    assert!((two["mean_in_system_s"].as_f64().unwrap() - 80.0).abs() < 1e-9, "{two}");
    let one = model(&[&shop[..], &["1"]].concat());
    assert_eq!(one.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&one.stderr).contains("overloaded"));
}

#[test]
fn files_of_a_class_and_of_measured_points_are_answered() {
    let dir = std::env::temp_dir().join(format!("peristyle-model-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let file = |name: &str, text: &str| {
        let path = dir.join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let request = "[request]\nuser_bytes = 4096\ndevice_ios = 0.2\ndevice_bytes_per_byte = 1.6\n\
                   network_bytes_per_byte = 1.5\ncore_us = 4\n";
    let class = "[class]\nnodes = 2\ndevices = 6\ndevice_iops = 5e5\ndevice_bytes_per_s = 2e9\n\
                 network_bytes_per_s = 12.5e9\ncores = 2\ncore_speed = 1\n";
    let answer = said(&["class", "--json", &file("class.toml", &format!("{request}{class}"))]);
    assert_eq!((answer["iops"].as_f64(), answer["binds"].as_str()), (Some(1e6), Some("cores")));
    let typo = model(&["class", &file("typo.toml", &format!("{request}{class}core = 2\n"))]);
    assert_eq!(typo.status.code(), Some(2));
    let points = |ns: &[u32]| {
        let points: Vec<String> =
            ns.iter().map(|n| format!("{{ n = {n}, throughput = {}e3 }}", n * 100)).collect();
        format!("points = [{}]", points.join(", "))
    };
    let answer = said(&["scaling", "--json", "--at", "16", &file("four.toml", &points(&[1, 2, 4, 8]))]);
    assert!((answer["predicted"][0]["throughput"].as_f64().unwrap() / 1.6e6 - 1.0).abs() < 1e-6, "{answer}");
    let few = model(&["scaling", "--at", "16", &file("three.toml", &points(&[1, 2, 4]))]);
    assert!(String::from_utf8_lossy(&few.stderr).contains("at least 4"), "{few:?}");
    std::fs::remove_dir_all(&dir).unwrap();
}

/// A slow moment of the machine may leave no slope to fit; that is said, and tried again.
#[test]
fn a_curve_of_a_real_node_has_both_sides_and_what_if() {
    let daemon = Daemon::start();
    let [listen, admin] = ["listen", "admin"].map(|key| daemon.ready[key].as_str().unwrap());
    let target = format!("tcp://{listen}");
    let options = [
        "--admin",
        admin,
        "curve",
        "--target",
        &target,
        "--rw",
        "randread",
        "--stages",
        "--json",
        "--qd",
        "4",
        "--bursts",
        "1,8,64",
        "--loads",
        "10,70",
        "--requests",
        "2000",
        "--runtime",
        "50ms",
        "--what-if",
        "lookup*0.7",
        "--what-if",
        "reactors+1",
    ];
    let answer = (0..10).find_map(|_| {
        let out = model(&options);
        let why = String::from_utf8_lossy(&out.stderr).into_owned();
        assert!(out.status.success() || why.contains("too noisy"), "{why}");
        serde_json::from_slice::<Value>(&out.stdout).ok()
    });
    let answer = answer.expect("one of ten profiles can be fitted");
    let curve = &answer["curves"][0];
    assert_eq!(curve["closed"].as_array().unwrap().len(), 3);
    for row in curve["closed"].as_array().unwrap() {
        assert!(
            row["predicted"]["iops"].as_f64() > Some(0.0) && row["measured"]["p99_us"].as_f64() > Some(0.0)
        );
    }
    assert!(curve["knee"]["measured"]["iops"].as_f64() > Some(0.0));
    assert_eq!(curve["what_if"][1]["change"], "lookup*0.7");
    let wrong = model(&["curve", "--target", &target, "--what-if", "encode"]);
    assert_eq!(wrong.status.code(), Some(2));
}
