//! What is drawn, on a terminal of memory.

use super::model::Model;
use super::view::draw;
use crate::cli::FocusArg;
use crate::profile::Snapshot;
use peristyle_base::Instant;
use peristyle_base::stage::Stage;
use ratatui::Terminal;
use ratatui::backend::TestBackend;

/// After `seconds` of 2000 writes and 4000 reads each, of one device here and one of another node.
fn snapshot(seconds: u64) -> Snapshot {
    let (mut write, mut read, mut wait) = (Stage::default(), Stage::default(), Stage::default());
    for i in 0..seconds * 4000 {
        let at = 1_000_000_000 + i * 250_000;
        read.pass(Instant(at), Instant(at + 20_000));
        if i % 2 == 0 {
            write.pass(Instant(at), Instant(at + 80_000));
            wait.pass(Instant(at), Instant(at + 30_000));
        }
    }
    let now = (seconds + 1) * 1_000_000_000;
    let named = |name: &str, stage: &Stage| (name.to_string(), stage.snapshot(Instant(now)));
    let device = [named("append.service", &write), named("read.service", &read)].into();
    let other = [named("append.leg", &write), named("read.leg", &read)].into();
    Snapshot {
        at_ns: now,
        uptime_ms: seconds * 1000,
        counted: true,
        read_bytes: seconds * 4000 * 4096,
        write_bytes: seconds * 2000 * 4096,
        stages: [
            named("read.total", &read),
            named("write.total", &write),
            named("write.batch_wait", &wait),
            named("write.columns", &wait),
        ]
        .into(),
        devices: vec![("/store/device-7".into(), device), ("node 3 0190c3a4-22".into(), other)],
    }
}

fn drawn(model: &Model, width: u16, height: u16) -> String {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| draw(frame, model)).unwrap();
    let buffer = terminal.backend().buffer();
    let line =
        |y| (0..width).map(|x| buffer[(x, y)].symbol()).collect::<String>().trim_end().to_owned() + "\n";
    (0..height).map(line).collect()
}

#[test]
fn both_paths_their_stages_and_the_devices_are_on_the_screen() {
    let mut model = Model::new(FocusArg::Both);
    assert!(drawn(&model, 120, 40).contains("waiting for the second look"));
    model.take(snapshot(1));
    model.take(snapshot(2));
    let text = drawn(&model, 120, 46);
    for words in [
        "peristyle up 2 s",
        "read 4000/s",
        "write 2000/s",
        "16.4 MB/s",
        "8.2 MB/s",
        "p99 80.0",
        "write.batch_wait",
        "read.columns",
        "between stages",
        "end to end",
        "device-7",
        "slowest of each",
        "those of other nodes",
        "█",
    ] {
        assert!(text.contains(words), "{words}:\n{text}");
    }
    let wait = text.lines().find(|line| line.starts_with("write.batch_wait")).unwrap();
    let cells: Vec<&str> = wait.split_whitespace().collect();
    assert_eq!(&cells[1..5], ["2000", "0.06", "0.06", "30.0"], "{wait}");
    let other = text.lines().find(|line| line.starts_with("node 3")).unwrap();
    let cells: Vec<&str> = other.split_whitespace().skip(3).collect();
    assert_eq!(cells, ["2000", "80.0", "80.0", "4000", "20.0", "20.0"], "{other}");
}

#[test]
fn a_node_that_is_alone_has_no_other_nodes_devices() {
    let mut model = Model::new(FocusArg::Both);
    for second in 1..=2 {
        let mut alone = snapshot(second);
        alone.devices.truncate(1);
        model.take(alone);
    }
    let text = drawn(&model, 120, 46);
    assert!(text.contains("device-7") && !text.contains("other nodes"), "{text}");
}

#[test]
fn one_path_alone_leaves_the_other_out_and_a_held_picture_says_so() {
    let mut model = Model::new(FocusArg::Write);
    (1..=2).for_each(|second| model.take(snapshot(second)));
    model.paused = true;
    let text = drawn(&model, 120, 30);
    assert!(text.contains("HELD") && text.contains("write.commit_wait"), "{text}");
    assert!(!text.contains("read.lookup"), "{text}");
}

#[test]
fn a_stage_that_counts_wrong_is_named_and_a_small_terminal_is_no_panic() {
    let mut model = Model::new(FocusArg::Both);
    model.take(snapshot(1));
    let mut wrong = snapshot(2);
    wrong.stages.get_mut("write.batch_wait").unwrap().in_flight_area *= 3;
    model.take(wrong);
    assert!(drawn(&model, 120, 40).contains("Little's law is off: write.batch_wait"));
    for (width, height) in [(1, 1), (10, 3), (40, 12), (79, 24), (300, 100)] {
        drawn(&model, width, height);
    }
}
