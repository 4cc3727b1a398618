//! The figures of planted counters.

use super::figures::*;
use super::snapshot::{Snapshot, Stages};
use peristyle_base::Instant;
use peristyle_base::stage::{Stage, StageSnapshot};

const US: u64 = 1000;

/// A node whose writes take the same way again and again: the stages of each, in microseconds, one after the other.
struct Planted {
    stages: Vec<(&'static str, Stage)>,
    device: [(&'static str, Stage); 2],
    total: Stage,
    now: u64,
}

const NAMES: [&str; 4] = ["write.batch_wait", "write.columns", "write.commit_wait", "write.respond"];

impl Planted {
    fn new() -> Planted {
        Planted {
            stages: NAMES.map(|name| (name, Stage::default())).into(),
            device: ["append.queue", "append.service"].map(|name| (name, Stage::default())),
            total: Stage::default(),
            now: 1_000_000 * US,
        }
    }

    /// One write, `lost` microseconds of which no stage counts.
    fn write(&mut self, spends: [u64; 4], lost: u64) {
        let began = self.now;
        self.total.enter(Instant(began));
        for ((_, stage), us) in self.stages.iter_mut().zip(spends) {
            stage.pass(Instant(self.now), Instant(self.now + us * US));
            self.now += us * US;
        }
        let queued = began + spends[1] * US / 4;
        self.device[0].1.pass(Instant(began), Instant(queued));
        self.device[1].1.pass(Instant(queued), Instant(began + spends[1] * US));
        self.now += lost * US;
        self.total.leave(Instant(began), Instant(self.now));
    }

    fn snapshot(&self) -> Snapshot {
        let at = Instant(self.now);
        let mut stages: Stages = self.stages.iter().map(|(n, s)| (n.to_string(), s.snapshot(at))).collect();
        stages.insert("write.total".into(), self.total.snapshot(at));
        let device = self.device.iter().map(|(n, s)| (n.to_string(), s.snapshot(at))).collect();
        Snapshot {
            at_ns: self.now,
            uptime_ms: self.now / 1_000_000,
            counted: true,
            stages,
            devices: vec![("d0".into(), device)],
            ..Snapshot::default()
        }
    }
}

fn write_path(before: Option<&Snapshot>, after: &Snapshot) -> PathFigures {
    Profile::between(before, after).unwrap().paths.remove(1)
}

fn stage<'a>(path: &'a PathFigures, name: &str) -> &'a Row {
    path.stages.iter().find(|row| row.stage == name).unwrap()
}

#[test]
fn only_what_happened_between_the_two_looks_counts() {
    let mut node = Planted::new();
    (0..1000).for_each(|_| node.write([5000, 5000, 5000, 5000], 0));
    let before = node.snapshot();
    (0..20_000).for_each(|_| node.write([10, 50, 5, 15], 20));
    let after = node.snapshot();
    let path = write_path(Some(&before), &after);
    assert_eq!(
        (path.total.count, path.total.mean_us, path.sum_us, path.between_us),
        (20_000, 100.0, 80.0, 20.0)
    );
    assert_eq!((path.total.rate.round(), path.total.in_flight), (10_000.0, 1.0));
    let columns = stage(&path, "write.columns");
    assert_eq!((columns.count, columns.mean_us, columns.in_flight, columns.share), (20_000, 50.0, 0.5, 0.5));
    assert!(columns.max_us < 52.0 && columns.p99_9_us < 52.0, "nothing of the 5 ms before");
    let remaining = NAMES.map(|name| stage(&path, name).remaining_us);
    assert_eq!(remaining, [80.0, 70.0, 20.0, 15.0]);
    assert_eq!(path.slowest.mean_us, 50.0);
    let all = write_path(None, &after);
    assert!(all.total.count == 21_000 && all.total.mean_us > 1000.0);
}

#[test]
fn waiting_is_told_from_work_and_queue_from_service() {
    let mut node = Planted::new();
    let before = node.snapshot();
    (0..20_000).for_each(|_| node.write([10, 40, 30, 20], 0));
    let path = write_path(Some(&before), &node.snapshot());
    let queue = |name: &str| (stage(&path, name).queue.unwrap() * 1000.0).round();
    assert_eq!(["write.batch_wait", "write.commit_wait", "write.respond"].map(queue), [100.0, 300.0, 0.0]);
    assert_eq!(queue("write.columns"), 100.0, "at the device's queue");
    let leg = &path.devices[0];
    assert_eq!((leg.device.as_str(), leg.queue.mean_us, leg.service.mean_us), ("d0", 10.0, 30.0));
    assert_eq!((path.total.queue.unwrap() * 1000.0).round(), 500.0);
}

#[test]
fn a_device_of_another_node_has_one_leg_with_the_network_in_it() {
    let mut node = Planted::new();
    let before = node.snapshot();
    (0..2000).for_each(|_| node.write([10, 400, 30, 20], 0));
    let (began, mut leg, mut after) = (1_000_000 * US, Stage::default(), node.snapshot());
    for i in 0..2000 {
        leg.pass(Instant(began + i * 460 * US), Instant(began + (i * 460 + 200) * US));
    }
    let stages = [("append.leg".into(), leg.snapshot(Instant(node.now)))].into();
    after.devices.push(("node 2 d9".into(), stages));
    let path = write_path(Some(&before), &after);
    assert_eq!(path.devices.len(), 1);
    let [remote] = &path.remote[..] else { panic!("{:?}", path.remote) };
    assert_eq!((remote.device.as_str(), remote.leg.count, remote.leg.mean_us), ("node 2 d9", 2000, 200.0));
    assert!(remote.leg.little_holds, "{}", remote.leg.little_error);
}

#[test]
fn the_stage_that_varies_is_found_and_the_rest_is_said() {
    let mut node = Planted::new();
    let before = node.snapshot();
    // Independent: every combination of a wait of 10 or 90 and of columns of 40 or 60 comes as often.
    for i in 0..20_000u64 {
        node.write([10 + 80 * (i % 2), 40 + 20 * (i / 2 % 2), 5, 5], 0);
    }
    let path = write_path(Some(&before), &node.snapshot());
    assert_eq!(path.variance_most.as_deref(), Some("write.batch_wait"));
    let shares = ["write.batch_wait", "write.columns", "write.commit_wait"]
        .map(|name| stage(&path, name).variance_share);
    assert!((shares[0] - 1600.0 / 1700.0).abs() < 1e-6 && (shares[1] - 100.0 / 1700.0).abs() < 1e-6);
    assert!(shares[2] < 1e-6 && (path.variance_sum - 1.0).abs() < 1e-6);
    // Together: what one takes longer, the other does as well.
    let before = node.snapshot();
    (0..20_000u64).for_each(|i| node.write([10 + 80 * (i % 2), 10 + 80 * (i % 2), 5, 5], 0));
    let path = write_path(Some(&before), &node.snapshot());
    assert!((path.variance_sum - 0.5).abs() < 1e-6, "{}: the other half is covariance", path.variance_sum);
}

#[test]
fn a_stage_that_few_come_through_weighs_as_little_as_it_adds() {
    let mut node = Planted::new();
    let before = node.snapshot();
    for i in 0..10_000 {
        if i % 10 == 0 {
            node.write([100, 50, 0, 0], 0);
            continue;
        }
        let began = node.now;
        node.total.enter(Instant(began));
        node.now += 50 * US;
        node.stages[1].1.pass(Instant(began), Instant(node.now));
        node.total.leave(Instant(began), Instant(node.now));
    }
    let path = write_path(Some(&before), &node.snapshot());
    let wait = stage(&path, "write.batch_wait");
    assert_eq!((wait.count, wait.mean_us, wait.per_command_us), (1000, 100.0, 10.0));
    assert_eq!((path.total.mean_us, path.sum_us, path.between_us), (60.0, 60.0, 0.0));
    assert!((wait.variance_share - 1.0).abs() < 1e-6);
}

#[test]
fn littles_law_holds_and_a_planted_wrong_area_is_named() {
    let mut node = Planted::new();
    let before = node.snapshot();
    (0..20_000).for_each(|_| node.write([10, 50, 5, 15], 20));
    let after = node.snapshot();
    let profile = Profile::between(Some(&before), &after).unwrap();
    assert!(profile.broken_laws().is_empty() && profile.paths[1].total.little_error < 1e-9);
    for (off, broken) in [(0.97, false), (0.9, true), (1.1, true), (0.0, true)] {
        let mut wrong = after.clone();
        let s: &mut StageSnapshot = wrong.stages.get_mut("write.columns").unwrap();
        s.in_flight_area = (s.in_flight_area as f64 * off) as u128;
        let profile = Profile::between(Some(&before), &wrong).unwrap();
        let names: &[&str] = if broken { &["write.columns"] } else { &[] };
        assert_eq!(profile.broken_laws(), names, "{off}");
    }
    let mut wrong = after.clone();
    wrong.devices[0].1.get_mut("append.service").unwrap().in_flight_area /= 2;
    assert_eq!(Profile::between(Some(&before), &wrong).unwrap().broken_laws(), ["append.service of d0"]);
}

#[test]
fn too_little_is_no_proof_and_a_node_that_was_started_anew_has_no_difference() {
    let mut node = Planted::new();
    let before = node.snapshot();
    (0..50).for_each(|_| node.write([10_000, 10_000, 10_000, 10_000], 0));
    let mut few = node.snapshot();
    few.stages.get_mut("write.columns").unwrap().in_flight_area /= 2;
    assert!(Profile::between(Some(&before), &few).unwrap().broken_laws().is_empty());
    assert!(Profile::between(Some(&few), &before).is_none());
    let nothing = Profile::between(Some(&few), &Snapshot { at_ns: few.at_ns + 1, ..few.clone() }).unwrap();
    let total = &nothing.paths[1].total;
    assert_eq!((total.count, total.mean_us, total.share, total.little_error), (0, 0.0, 0.0, 0.0));
}
