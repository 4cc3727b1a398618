//! `bench series`: every test that was asked for has a row, and a series goes on where it stopped. Nothing is timed.

mod daemon;

use daemon::{Daemon, run};
use serde_json::Value;

#[test]
fn a_series_goes_on_where_it_stopped() {
    let daemon = Daemon::tight();
    let target = format!("tcp://{}", daemon.ready["listen"].as_str().unwrap());
    let out = std::env::temp_dir().join(format!("peristyle-series-test-{}.json", std::process::id()));
    let _ = std::fs::remove_file(&out);
    let series = |only: &str| -> Vec<(String, u64)> {
        let fixed = ["bench", "series", "--quick", "--target", &target, "--label", "here", "--data", "32MiB"];
        let short = ["--probe", "20ms", "--runtime", "40ms", "--qd-max", "4", "--json", "--only", only];
        let said = run(&[&fixed[..], &short, &["--out", out.to_str().unwrap()]].concat());
        let document: Value = serde_json::from_str(&said).unwrap();
        assert_eq!(document["series"][0]["label"], "here");
        let rows = document["series"][0]["rows"].as_array().unwrap();
        assert!(rows.iter().all(|row| row["iops"].as_f64().unwrap() > 0.0), "{rows:?}");
        rows.iter()
            .map(|row| (row["test"].as_str().unwrap().to_owned(), row["mean_us"].as_f64().unwrap().to_bits()))
            .collect()
    };
    let first = series("semiread-4k,rand");
    let names: Vec<&str> = first.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names.len(), 15);
    assert!(names.contains(&"randwrite-1m") && names.contains(&"semiread-4k"), "{names:?}");
    let both = series("-64k");
    assert_eq!(&both[..15], &first, "what was there is not measured again");
    assert_eq!(both.len(), 15 + 4, "two of the six of 64 KiB were there");
    std::fs::remove_file(out).unwrap();
}
