//! `bench goals` measures each goal beside its floor, on stores that it makes and removes.

use serde_json::Value;
use std::process::Command;

#[test]
fn each_goal_is_measured_beside_its_floor() {
    let dir = std::env::temp_dir().join(format!("peristyle-goals-test-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_peristyle"))
        .args(["bench", "goals", "--turns", "2", "--runtime", "200ms", "--data", "16MiB", "--json", "--dir"])
        .arg(&dir)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let document: Value = serde_json::from_slice(&output.stdout).unwrap();
    let goals = document["goals"].as_array().unwrap();
    assert_eq!(goals.len(), 5);
    for goal in goals {
        let ratios = goal["ratios"].as_array().unwrap();
        assert!(ratios.len() == 2 && ratios.iter().all(|ratio| ratio.as_f64().unwrap() > 0.0), "{goal}");
        let (median, [least, most]) =
            (goal["median"].as_f64().unwrap(), ["at_least", "at_most"].map(|bar| goal[bar].as_f64()));
        assert_eq!(
            goal["met"],
            least.is_none_or(|bar| median >= bar) && most.is_none_or(|bar| median <= bar)
        );
    }
    assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 0, "the stores are removed");
    std::fs::remove_dir(dir).unwrap();
}
