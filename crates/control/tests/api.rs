//! The admin protocol's lines.

use peristyle_base::stage::{Stage, StageSnapshot};
use peristyle_base::{Histogram, Instant, MIB, Uuid};
use peristyle_control::api::*;
use peristyle_control::desired::VolumeState;
use peristyle_control::{ControlError, MetaError};
use proptest::prelude::*;

fn requests() -> Vec<Request> {
    use Request::*;
    let name = || "demo".to_string();
    vec![
        Status,
        VolumeList,
        VolumeShow { name: name() },
        VolumeCreate { name: name(), bytes: MIB, lba_bytes: Some(512) },
        VolumeCreate { name: name(), bytes: MIB, lba_bytes: None },
        VolumeResize { name: name(), bytes: MIB, shrink: true, discard_data: true },
        VolumeDelete { name: name() },
        VolumeClone { snapshot: name(), name: name() },
        VolumeFlatten { name: name() },
        SnapshotList,
        SnapshotCreate { group: vec![(name(), name())] },
        SnapshotDelete { name: name() },
        SnapshotRollback { name: name() },
        SnapshotExport { name: name(), exported: true },
        DeviceList,
        Stats,
        Profile { page: 3 },
        Inject { device: "0".into(), fault: FaultKind::Stall, duration_ms: 5000 },
        Shutdown,
    ]
}

#[test]
fn requests_are_one_line_and_read_back() {
    for request in requests() {
        let line = encode_request(&request);
        assert_eq!(line.iter().filter(|&&b| b == b'\n').count(), 1);
        assert_eq!(decode_request(&line), Ok(request));
    }
}

#[test]
fn the_words_on_the_wire_stay_what_they_are() {
    let line = |r| String::from_utf8(encode_request(&r)).unwrap();
    let create = Request::VolumeCreate { name: "demo".into(), bytes: 4096, lba_bytes: None };
    assert_eq!(
        line(create),
        "{\"version\":1,\"request\":{\"op\":\"volume-create\",\"name\":\"demo\",\"bytes\":4096,\"lba_bytes\":null}}\n"
    );
    let short = br#"{"version":1,"request":{"op":"volume-resize","name":"demo","bytes":4096}}"#;
    let resize =
        Request::VolumeResize { name: "demo".into(), bytes: 4096, shrink: false, discard_data: false };
    assert_eq!(decode_request(short), Ok(resize), "what is not said is not allowed");
    let inject = Request::Inject { device: "3".into(), fault: FaultKind::Fail, duration_ms: 1 };
    assert!(line(inject).contains(r#""op":"inject","device":"3","fault":"fail","duration_ms":1"#));
    let done = encode_response(&Ok(Response::Done));
    assert_eq!(done, b"{\"version\":1,\"ok\":{\"kind\":\"done\"}}\n");
    let error = encode_response(&Err(ApiError::new(Code::NotFound, "no")));
    assert_eq!(error, b"{\"version\":1,\"error\":{\"code\":\"not-found\",\"message\":\"no\"}}\n");
}

fn volume() -> VolumeInfo {
    VolumeInfo {
        name: "demo".into(),
        nsid: 1,
        uuid: Uuid([1; 16]).to_string(),
        nguid: "02".repeat(16),
        bytes: MIB,
        lba_bytes: 4096,
        shard: 0,
        state: VolumeState::Active,
        snapshot_of: None,
        usage: None,
    }
}

#[test]
fn responses_and_errors_read_back() {
    let mut stage = Stage::default();
    for i in 0..100 {
        stage.enter(Instant(i * 1000));
        stage.leave(Instant(i * 1000), Instant(i * 1000 + 500));
    }
    let snapshot = stage.snapshot(Instant(100_000));
    let device = StatsNode::new("device 0").stage("write", &snapshot).counter("bytes", 7);
    let stats =
        Stats { uptime_ms: 5, root: StatsNode::new("node").stage("receive", &snapshot).child(device) };
    for response in [
        Ok(Response::Volume(volume())),
        Ok(Response::Volumes { volumes: vec![volume(), volume()] }),
        Ok(Response::Devices { devices: vec![] }),
        Ok(Response::Pool(PoolInfo { name: "main".into(), live_blocks: 7, ..PoolInfo::default() })),
        Ok(Response::Stats(stats)),
        Ok(Response::Done),
        Err(ApiError::new(Code::Busy, "later")),
    ] {
        assert_eq!(decode_response(&encode_response(&response)), response);
    }
}

#[test]
fn a_stage_is_told_in_microseconds() {
    let mut stage = Stage::default();
    stage.enter(Instant(0));
    stage.leave(Instant(0), Instant(2_000));
    stage.enter(Instant(2_000));
    stage.leave_failed(Instant(2_000), Instant(6_000));
    let s = StageStats::new("append", &stage.snapshot(Instant(10_000)));
    assert_eq!((s.count, s.errors, s.in_flight, s.mean_us, s.max_us), (2, 1, 0, 3.0, 4.0));
    assert!(s.p50_us >= 2.0 && s.p50_us < 2.1 && s.p99_9_us == 4.0 && s.little_error < 1e-9);
    let json = serde_json::to_value(&s).unwrap();
    assert!(json.get("p99.5_us").is_some() && json.get("p99.9_us").is_some());
}

#[test]
fn a_stage_travels_with_its_histogram() {
    let mut stage = Stage::default();
    // One after the other: the last of them takes 25 ms.
    for i in 0..5000u64 {
        stage.pass(Instant(i * 30_000_000), Instant(i * 30_000_000 + i * i));
    }
    stage.enter_many(Instant(160_000_000_000), 3);
    let before = stage.snapshot(Instant(160_010_000_000));
    let raw = RawStage::new("append", &before);
    let text = serde_json::to_vec(&raw).unwrap();
    let again: RawStage = serde_json::from_slice(&text).unwrap();
    assert_eq!(again, raw);
    let s = again.snapshot().unwrap();
    assert_eq!((s.completed, s.in_flight, s.age_ns), (5000, 3, 30_000_000));
    assert_eq!((s.in_flight_area, s.elapsed_ns), (before.in_flight_area, before.elapsed_ns));
    assert_eq!((s.latency.mean(), s.latency.variance()), (before.latency.mean(), before.latency.variance()));
    assert_eq!(s.latency.quantile(0.99), before.latency.quantile(0.99));
    assert!(s.little_error() < 1e-9);
    for bad in [
        RawStage { buckets: vec![1], ..raw.clone() },
        RawStage { buckets: vec![1 << 40, 1], ..raw.clone() },
        RawStage { area_ns: "-1".into(), ..raw.clone() },
    ] {
        assert!(bad.snapshot().is_none());
    }
}

#[test]
fn the_fullest_page_of_a_profile_is_shorter_than_the_longest_line() {
    let full =
        Histogram::from_buckets((0..1920).map(|i| (i, 1_000_000_000_000_000)), (u128::MAX, u128::MAX, 9));
    let stage =
        StageSnapshot { in_flight_area: u128::MAX, latency: full.unwrap(), ..StageSnapshot::default() };
    assert!(Histogram::from_buckets([(1920, 1)], (0, 0, 0)).is_none(), "there are no more buckets");
    let stages: Vec<RawStage> = (0..24).map(|_| RawStage::new("write.commit_wait", &stage)).collect();
    let device = RawDevice { name: "d".repeat(200), stages: stages[..5].to_vec() };
    for page in [
        ProfilePage { stages, ..ProfilePage::default() },
        ProfilePage { devices: vec![device; PAGE_DEVICES], ..ProfilePage::default() },
    ] {
        let line = encode_response(&Ok(Response::Profile(page.clone())));
        assert!(line.len() < LINE_BYTES_MAX, "{}", line.len());
        assert_eq!(decode_response(&line), Ok(Response::Profile(page)));
    }
}

#[test]
fn what_is_no_request_is_refused_in_words() {
    for (line, word) in [
        ("", "EOF"),
        ("hello", "expected"),
        ("{}", "missing field"),
        (r#"{"version":2,"request":{"op":"status"}}"#, "version 2"),
        (r#"{"version":1,"request":{"op":"explode"}}"#, "unknown variant"),
        (r#"{"version":1,"request":{"op":"volume-show"}}"#, "missing field `name`"),
        (r#"{"version":1,"request":{"op":"volume-show","name":"a","force":true}}"#, "unknown field `force`"),
        (r#"{"version":1,"request":{"op":"volume-create","name":"a","bytes":-1}}"#, "invalid value"),
    ] {
        let error = decode_request(line.as_bytes()).unwrap_err();
        assert!(error.code == Code::BadRequest && error.message.contains(word), "{line}: {error}");
    }
}

#[test]
fn an_answer_that_is_too_long_becomes_an_error() {
    let volumes = vec![VolumeInfo { name: "x".repeat(LINE_BYTES_MAX), ..volume() }];
    let bytes = encode_response(&Ok(Response::Volumes { volumes }));
    assert!(bytes.len() < 1000);
    assert_eq!(decode_response(&bytes).unwrap_err().code, Code::Internal);
}

#[test]
fn the_longest_list_of_volumes_fits_into_a_line() {
    let longest = VolumeInfo {
        name: "n".repeat(63),
        nsid: 1024,
        bytes: u64::MAX,
        shard: 63,
        state: VolumeState::Deleting,
        snapshot_of: Some("x".repeat(63)),
        usage: None,
        ..volume()
    };
    let response = Ok(Response::Volumes { volumes: vec![longest; 1024] });
    assert_eq!(decode_response(&encode_response(&response)), response);
}

#[test]
fn errors_of_the_desired_state_keep_their_words() {
    let error = ControlError::Exists { kind: "volume", name: "a".into() };
    let api: ApiError = error.clone().into();
    assert_eq!((api.code, api.message), (Code::Exists, error.to_string()));
    assert_eq!(ApiError::from(ControlError::BadLba(3)).code, Code::Invalid);
    assert_eq!(ApiError::from(ControlError::from(MetaError::Unknown(String::new()))).code, Code::Unknown);
}

#[test]
fn a_line_at_the_limit_passes_and_one_byte_more_does_not() {
    let mut lines = Lines::default();
    lines.push(&vec![b'x'; LINE_BYTES_MAX]);
    assert_eq!(lines.next_line(), Ok(None));
    lines.push(b"\n");
    assert_eq!(lines.next_line().unwrap().unwrap().len(), LINE_BYTES_MAX);
    lines.push(&vec![b'x'; LINE_BYTES_MAX + 1]);
    assert_eq!(lines.next_line(), Err(LineTooLong));
}

proptest! {
    #[test]
    fn lines_are_found_however_the_stream_is_cut(text in "[a-c\n]{0,60}", cuts in prop::collection::vec(1usize..9, 1..30)) {
        let (mut lines, mut found, mut rest, mut cuts) = (Lines::default(), Vec::new(), text.as_bytes(), cuts.iter().cycle());
        while !rest.is_empty() {
            let (now, later) = rest.split_at((*cuts.next().unwrap()).min(rest.len()));
            lines.push(now);
            while let Some(line) = lines.next_line().unwrap() {
                found.push(String::from_utf8(line).unwrap());
            }
            rest = later;
        }
        let mut want: Vec<String> = text.split('\n').map(String::from).collect();
        want.pop(); // what follows the last newline is no line yet
        prop_assert_eq!(found, want);
    }

    #[test]
    fn no_line_makes_the_decoders_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = (decode_request(&bytes), decode_response(&bytes));
    }
}
