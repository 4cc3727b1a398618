//! Devices that stall and fail while hosts read and write at depth 32: no host is told of an error, and nothing waits
//! for a device. More devices away than the scheme covers: reads wait, then fail with the right word, and never give
//! wrong bytes. Times are the simulated world's.

use crate::common::*;
use peristyle_base::ShardId;
use peristyle_rt::sim::DiskFaults;
use peristyle_rt::{Duration, Fault, Instant, join_all};
use peristyle_shard::ShardError;
use std::cell::{Cell, RefCell};
use std::pin::Pin;
use std::rc::Rc;

const WRITERS: u64 = 32;
/// Each writer's part of the volume.
const PART: u64 = 2 * MIB;
const PLACES: usize = 64;
/// The load before anything is wrong.
const WARM: Duration = Duration::from_secs(2);
const STALL: Duration = Duration::from_secs(5);
/// What a command may take beyond what is normal (a few milliseconds).
const LONGEST: Duration = Duration::from_millis(100);

/// Sizes that are written: narrow frames, wide frames, and the longest.
fn bytes_of(i: u64) -> usize {
    [4096, 8192, 16_384, 4096, 32_768][i as usize % 5]
}

/// What hosts see of a load.
#[derive(Default)]
struct Seen {
    longest: Cell<Duration>,
    reads: Cell<u64>,
    writes: Cell<u64>,
    /// Salt of each writer's last write at each of its places.
    written: RefCell<Vec<[u64; PLACES]>>,
}

impl Seen {
    fn took(&self, since: Instant) {
        self.longest.set(self.longest.get().max(peristyle_rt::now().since(since)));
    }
}

/// 32 hosts, each with one command at a time, until `end`: a write every 20 ms, and between them reads, verified.
async fn load(volume: &TestVolume, seen: &Rc<Seen>, end: Instant) {
    seen.written.borrow_mut().resize(WRITERS as usize, [0; PLACES]);
    let hosts = (0..WRITERS).map(|host| {
        let (volume, seen) = (volume.clone(), seen.clone());
        async move {
            // Not all at once: there is a write, and there are reads, at any time.
            peristyle_rt::sleep(Duration::from_micros(625 * host)).await;
            for i in (host..).step_by(WRITERS as usize) {
                let (place, salt) = (i / WRITERS % PLACES as u64, i + 1 | peristyle_rt::now().0 << 20);
                let started = peristyle_rt::now();
                if started >= end {
                    break;
                }
                write(&volume, at(host, place), &fill(bytes_of(place), salt)).await.expect("a write");
                seen.took(started);
                seen.writes.set(seen.writes.get() + 1);
                seen.written.borrow_mut()[host as usize][place as usize] = salt;
                for place in (0..PLACES as u64).cycle().skip(i as usize * 7 % PLACES) {
                    if peristyle_rt::now().since(started) > Duration::from_millis(20) {
                        break;
                    }
                    let started = peristyle_rt::now();
                    compare(&volume, &seen, host, place).await;
                    seen.took(started);
                    seen.reads.set(seen.reads.get() + 1);
                    peristyle_rt::sleep(Duration::from_millis(3)).await;
                }
            }
        }
    });
    join_all(hosts).await;
}

fn at(host: u64, place: u64) -> u64 {
    host * PART + place * (PART / PLACES as u64)
}

/// What was written there is read.
async fn compare(volume: &TestVolume, seen: &Seen, host: u64, place: u64) {
    let salt = seen.written.borrow()[host as usize][place as usize];
    let bytes = bytes_of(place);
    let data = read(volume, at(host, place), bytes as u64).await.expect("a read");
    let expect = if salt == 0 { vec![0; bytes] } else { fill(bytes, salt) };
    assert!(data == expect, "host {host}, place {place}");
}

/// All that the load wrote, as it wrote it.
async fn check(volume: &TestVolume, seen: &Seen) {
    for host in 0..WRITERS {
        for place in 0..PLACES as u64 {
            compare(volume, seen, host, place).await;
        }
    }
}

async fn inject(node: &TestNode, device: usize, fault: Fault) {
    assert!(node.inject(device_id(device), fault).await);
}

fn counter(node: &TestNode, name: &str) -> u64 {
    let snapshot = node.shard(ShardId(0)).expect("here").stats_snapshot(peristyle_rt::now());
    snapshot.counters.iter().find(|c| c.0 == name).expect("a counter").1
}

fn forever() -> Fault {
    Fault::FailUntil(peristyle_rt::device::until(Duration::from_secs(36_000)))
}

/// The longest command, reads and writes before the faults.
type Before = (Duration, u64, u64);

/// Runs the load with some devices stalling or failing after a while; then two others are lost.
fn story(seed: u64, reactors: usize, bad: &'static [usize], stall: bool, lost: [usize; 2]) {
    let rig = Rig::with_disks(seed, "4+2", 6, 512 * MIB, reactors);
    rig.run(move |node, volume| async move {
        let seen = Rc::new(Seen::default());
        let until = peristyle_rt::device::until(WARM + STALL);
        let faults = async {
            // Long enough for data on every device.
            peristyle_rt::sleep(WARM).await;
            for &device in bad {
                let fault = if stall { Fault::StallUntil(until) } else { Fault::FailUntil(until) };
                inject(&node, device, fault).await;
            }
            (seen.longest.take(), seen.reads.get(), seen.writes.get())
        };
        let faults: Pin<Box<dyn Future<Output = Before>>> = Box::pin(faults);
        let load = Box::pin(async {
            load(&volume, &seen, until + Duration::from_millis(500)).await;
            Before::default()
        });
        let (normal, reads, writes) = join_all([faults, load]).await[0];
        let done = (seen.reads.get() - reads, seen.writes.get() - writes);
        assert!(done.0 > 20_000 && done.1 > 5_000, "it stood still: {done:?}");
        assert!(seen.longest.get() <= normal + LONGEST, "{:?}, normally {normal:?}", seen.longest.get());
        if stall && reactors == 1 {
            let (hedged, won) = (counter(&node, "hedged_reads"), counter(&node, "hedges_won"));
            assert!(hedged > 0 && won > 0 && won <= hedged, "{won} of {hedged}");
            // Known to be away, it is not waited for again by each read.
            assert!(hedged < 500, "{hedged} reads waited until they were late");
        }
        for device in lost {
            inject(&node, device, forever()).await;
        }
        check(&volume, &seen).await;
    });
}

#[test]
fn a_device_that_stalls_under_load_costs_no_error_and_no_wait() {
    story(31, 1, &[3], true, [0, 5]);
    story(32, 2, &[2], true, [3, 4]);
}

#[test]
fn two_devices_that_stall_under_load_cost_no_error_and_no_wait() {
    story(33, 1, &[1, 4], true, [0, 2]);
}

#[test]
fn a_device_that_fails_under_load_costs_no_error_and_no_wait() {
    story(34, 1, &[0], false, [1, 2]);
}

/// 48 blocks, one write each, then one byte of each is looked at.
async fn write_blocks(volume: &TestVolume, salt: u64) {
    for i in 0..48u64 {
        write(volume, i * MIB, &fill(bytes_of(i), salt + i)).await.expect("a write");
    }
}

#[test]
fn reads_beyond_the_scheme_wait_for_devices_to_come_back_and_are_right_then() {
    for stall in [true, false] {
        let rig = Rig::new(35, "4+2", 6, 1);
        rig.run(move |node, volume| async move {
            write_blocks(&volume, 1).await;
            let until = peristyle_rt::device::until(Duration::from_secs(4));
            for device in 0..3 {
                let fault = if stall { Fault::StallUntil(until) } else { Fault::FailUntil(until) };
                inject(&node, device, fault).await;
            }
            let reads = (0..48u64).map(|i| {
                let volume = &volume;
                async move {
                    let data = read(volume, i * MIB, bytes_of(i) as u64).await.expect("a read");
                    assert!(data == fill(bytes_of(i), 1 + i), "block {i}");
                }
            });
            join_all(reads).await;
            let waited = peristyle_rt::now().since(until);
            assert!(peristyle_rt::now() > until, "some of it needs a device that was away");
            assert!(waited < Duration::from_secs(1), "{waited:?} after the devices came back");
        });
    }
}

#[test]
fn reads_beyond_the_scheme_fail_with_the_right_word_after_a_bounded_time_and_writes_go_on() {
    for stall in [true, false] {
        let rig = Rig::new(36, "4+2", 6, 1);
        rig.run(move |node, volume| async move {
            write_blocks(&volume, 1).await;
            let until = peristyle_rt::device::until(Duration::from_secs(60));
            for device in 0..3 {
                let fault = if stall { Fault::StallUntil(until) } else { Fault::FailUntil(until) };
                inject(&node, device, fault).await;
            }
            let started = peristyle_rt::now();
            let results = join_all((0..48u64).map(|i| read(&volume, i * MIB, bytes_of(i) as u64))).await;
            let took = peristyle_rt::now().since(started);
            let mut failed = 0;
            for (i, result) in (0..48u64).zip(results) {
                match result {
                    Ok(data) => assert!(data == fill(bytes_of(i), 1 + i), "block {i}"),
                    Err(error) => {
                        assert_eq!(error, ShardError::Unreadable, "block {i}");
                        failed += 1;
                    }
                }
            }
            assert!(failed > 0, "three of six devices are away, and nothing is");
            assert!(took < Duration::from_secs(30), "{took:?}");
            // Three devices are enough for two copies more of what is new, whatever is lost.
            let started = peristyle_rt::now();
            write_blocks(&volume, 1000).await;
            for i in 0..48u64 {
                let data = read(&volume, i * MIB, bytes_of(i) as u64).await.expect("a read of what is new");
                assert!(data == fill(bytes_of(i), 1000 + i), "block {i}");
            }
            let took = peristyle_rt::now().since(started);
            assert!(took < Duration::from_secs(2), "new data does not wait for the devices: {took:?}");
            assert_eq!(node.shard(ShardId(0)).unwrap().stopped(), None);
        });
    }
}

#[test]
fn with_too_few_devices_for_new_data_writes_wait_and_go_on_when_devices_come_back() {
    let rig = Rig::new(37, "4+2", 6, 1);
    rig.run(|node, volume| async move {
        write_blocks(&volume, 1).await;
        let until = peristyle_rt::device::until(Duration::from_secs(5));
        for device in 0..4 {
            inject(&node, device, Fault::FailUntil(until)).await;
        }
        let writes = (0..48u64).map(|i| {
            let volume = &volume;
            async move { write(volume, i * MIB, &fill(bytes_of(i), 500 + i)).await }
        });
        assert!(join_all(writes).await.iter().all(Result::is_ok));
        assert!(peristyle_rt::now() > until, "two devices cannot hold data that survives two losses");
        for device in [0, 1] {
            inject(&node, device, forever()).await;
        }
        for i in 0..48u64 {
            let data = read(&volume, i * MIB, bytes_of(i) as u64).await.expect("a read");
            assert!(data == fill(bytes_of(i), 500 + i), "block {i}");
        }
    });
}

#[test]
fn a_takeover_goes_on_without_devices_that_do_not_answer() {
    let rig = Rig::new(38, "4+2", 6, 1);
    rig.run(|_, volume| async move { write_blocks(&volume, 1).await });
    // From the start, and from some moment of opening, fencing and reading on.
    for (round, micros) in [0, 300, 1_000, 2_000, 4_000, 8_000, 16_000].into_iter().enumerate() {
        rig.node.kill();
        let stalled = [round % 6, (round + 1) % 6];
        let disks = stalled.map(|i| rig.disks[i].clone());
        rig.world.after(Duration::from_micros(micros), move || {
            for disk in &disks {
                disk.set_faults(DiskFaults { stall_until: 36_000_000_000_000, ..DiskFaults::default() });
            }
        });
        let before = rig.world.now_nanos();
        let salt = if round == 0 { 1 } else { 1000 * round as u64 };
        rig.run(move |_, volume| async move {
            for i in 0..48u64 {
                let data = read(&volume, i * MIB, bytes_of(i) as u64).await.expect("a read");
                assert!(data == fill(bytes_of(i), salt + i), "round {round}, block {i}");
            }
            write_blocks(&volume, 1000 * (round as u64 + 1)).await;
        });
        let took = Duration::from_nanos(rig.world.now_nanos() - before);
        assert!(took < Duration::from_secs(30), "round {round}: {took:?}");
        rig.node.kill();
        stalled.iter().for_each(|&i| rig.disks[i].set_faults(DiskFaults::default()));
    }
}
