//! `bench record` and `bench compare`: what was kept is compared with itself, and not with something else.

use std::process::Command;

const PERISTYLE: &str = env!("CARGO_BIN_EXE_peristyle");

const LOADS: &str = "
[[store]]
name = \"small\"
scheme = \"1+1\"
memory = 2
device_size = \"256MiB\"
volume_size = \"16MiB\"

[[load]]
name = \"reads\"
rw = \"randread\"
qd = QD
";

#[test]
fn a_record_is_like_itself_and_unlike_one_of_another_load() {
    let root = std::env::temp_dir().join(format!("peristyle-record-test-{}", std::process::id()));
    let record = |folder: &str, depth: &str| {
        let out = root.join(folder);
        std::fs::create_dir_all(&out).unwrap();
        let loads = root.join("loads.toml");
        std::fs::write(&loads, LOADS.replace("QD", depth)).unwrap();
        let output = Command::new(PERISTYLE)
            .args(["bench", "record", "--repeat", "2", "--runtime", "30ms", "--out"])
            .arg(&out)
            .arg("--workloads")
            .arg(&loads)
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert!(String::from_utf8_lossy(&output.stdout).contains("small reads"));
        std::fs::read_dir(&out).unwrap().next().unwrap().unwrap().path()
    };
    let compare = |one, other| {
        let output = Command::new(PERISTYLE).args(["bench", "compare"]).args([one, other]).output().unwrap();
        let said = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8(said).unwrap())
    };
    let (one, two) = (record("one", "2"), record("two", "4"));
    let (code, said) = compare(&one, &one);
    assert!(code == Some(0) && said.contains("+0.0 %") && !said.contains("worse"), "{said}");
    let (code, said) = compare(&one, &two);
    assert!(code == Some(2) && said.contains("depth differs"), "{said}");
    let report = |options: &[&str]| {
        let output = Command::new(PERISTYLE).arg("report").arg(&one).args(options).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    assert!(report(&["--format", "markdown"]).contains("| small reads |"));
    let page = report(&["--before", one.to_str().unwrap()]);
    assert!(page.starts_with("<!doctype html>") && page.contains("What has changed"), "{page}");
    std::fs::remove_dir_all(root).unwrap();
}
