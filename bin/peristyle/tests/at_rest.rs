//! `peristyle pool check`, `pool dump-extent` and `device check` of a store that was killed: what they say, that they find
//! damage and name it, and that they change nothing.

mod daemon;

use daemon::{Daemon, PERISTYLE};
use peristyle_base::{SlotIndex, crc32c};
use peristyle_column::Geometry;
use serde_json::Value;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

const DEVICE_BYTES: u64 = 1 << 30;
/// No slot behind this is taken.
const USED_BYTES: u64 = 192 << 20;

fn tool(dir: &Path, args: &[&str]) -> (i32, Value, String) {
    let output = Command::new(PERISTYLE).args(args).arg("--dir").arg(dir).arg("--json").output().unwrap();
    let json = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
    (output.status.code().unwrap(), json, String::from_utf8(output.stderr).unwrap())
}

/// The files that make the store, and what the parts of them hold that are in use.
fn contents(dir: &Path) -> Vec<(PathBuf, u64, u32)> {
    let names = (0..6).map(|i| format!("device-{i}")).chain(["state.redb".into()]);
    let contents = names.map(|name| {
        let path = dir.join(name);
        let (file, length) = (File::open(&path).unwrap(), path.metadata().unwrap().len());
        let (mut sum, mut at, mut chunk) = (0u32, 0, vec![0; 1 << 20]);
        while at < length.min(USED_BYTES) {
            let n = file.read_at(&mut chunk, at).unwrap();
            sum = sum.rotate_left(1) ^ crc32c(&chunk[..n]);
            at += n as u64;
        }
        (path, length, sum)
    });
    contents.collect()
}

fn kinds(check: &Value) -> Vec<&str> {
    let shards = check["shards"].as_array().unwrap().iter();
    let problems = shards.flat_map(|s| s["problems"].as_array().unwrap());
    problems.map(|p| p["kind"].as_str().unwrap()).collect()
}

/// An extent whose second frame has data in column 0: its number, the device and slot of that, and the row.
fn find_block(dir: &Path) -> (u64, String, u32, u64) {
    for extent in 1..200 {
        let (code, dumps, _) = tool(dir, &["pool", "dump-extent", &extent.to_string()]);
        for dump in dumps.as_array().into_iter().flatten() {
            assert_eq!(code, 0);
            let frames = dump["frames"].as_array().unwrap();
            if dump["scheme"] == "4+2" && frames.len() > 1 && frames[1]["blocks"].as_u64() > Some(4) {
                let slot = dump["slots"].as_array().unwrap().iter().find(|s| s["column"] == 0).unwrap();
                let row = frames[1]["row"].as_u64().unwrap() + 1;
                let device = slot["device"].as_str().unwrap().to_owned();
                return (extent, device, slot["slot"].as_u64().unwrap() as u32, row);
            }
        }
    }
    panic!("no frame was written to a wide extent");
}

#[test]
fn a_store_that_was_killed_is_sound_and_damage_to_it_is_found_and_nothing_is_changed() {
    let mut daemon = Daemon::on_files();
    let dir = daemon.dir().to_owned();
    let target = format!("tcp://{}", daemon.ready["listen"].as_str().unwrap());
    for (rw, size, count) in [("write", "128k", "300"), ("randwrite", "4k", "500")] {
        let load =
            ["bench", "run", "--target", &target, "--rw", rw, "--bs", size, "--count", count, "--qd", "8"];
        daemon::run(&[&load[..], &["--warmup", "1ms", "--poll", "sleep"]].concat());
    }
    let (code, _, said) = tool(&dir, &["pool", "check"]);
    assert!(code == 1 && said.contains("in use"), "{code}: {said}");
    daemon.kill();

    let before = contents(&dir);
    let (code, fast, said) = tool(&dir, &["pool", "check"]);
    assert_eq!((code, kinds(&fast)), (0, vec![]), "{said}");
    let (code, full, said) = tool(&dir, &["pool", "check", "--full"]);
    assert_eq!((code, kinds(&full)), (0, vec![]), "{said}");
    let sum =
        |key: &str| full["shards"].as_array().unwrap().iter().map(|s| s[key].as_u64().unwrap()).sum::<u64>();
    assert!(sum("live_blocks") > 5000 && sum("blocks_read") > sum("live_blocks"), "{full}");
    let (extent, device, slot, row) = find_block(&dir);
    assert_eq!(contents(&dir), before, "the tools only read");

    let offset = Geometry::of(DEVICE_BYTES).unwrap().row_offset(SlotIndex(slot), row as u16);
    let file = OpenOptions::new().read(true).write(true).open(&device).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset + 100).unwrap();
    file.write_all_at(&[byte[0] ^ 1], offset + 100).unwrap();
    let (code, full, _) = tool(&dir, &["pool", "check", "--full"]);
    assert_eq!((code, kinds(&full)), (7, vec!["block-damaged"]));
    let (_, dump, _) = tool(&dir, &["pool", "dump-extent", &extent.to_string()]);
    let told = format!("extent {extent}, column 0, row {row}: its checksum is wrong");
    assert!(dump.to_string().contains(&told), "{told}");

    let label = OpenOptions::new().write(true).open(&device).unwrap();
    label.write_all_at(&[0; 4096], 0).unwrap();
    let output = Command::new(PERISTYLE).args(["device", "check", &device, "--json"]).output().unwrap();
    assert_eq!(output.status.code(), Some(7));
    assert!(String::from_utf8(output.stdout).unwrap().contains("label-copy"));
    let (code, _, said) = tool(&dir, &["pool", "dump-extent", "999999"]);
    assert!(code == 4 && said.contains("999999"), "{code}: {said}");
    daemon.again();
}
