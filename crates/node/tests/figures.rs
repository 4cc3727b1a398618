//! What a node says about itself, after hosts have used it: figures that must be exact.

use crate::rig::*;
use peristyle_base::stage::StageSnapshot;
use peristyle_bench::host::{Host, HostOptions};
use peristyle_column::{Counter, DeviceStats, WritePurpose};
use peristyle_node::stats::ReactorStats;
use peristyle_rt::{Buf, Duration};
use std::rc::Rc;

/// Several hosts' worth of commands at once: all kinds, all sizes, some that fail.
async fn load(host: Rc<Host>, number: u64) {
    let queue = &host.io[number as usize % host.io.len()];
    for i in 0..12u64 {
        let bytes = [4096usize, 8192, 65536, 262144, 524288][(number + i) as usize % 5];
        let (at, blocks) = (number * 256, (bytes / 4096) as u32);
        queue.write(1, at, blocks, view(&fill(bytes, i)).await).await.unwrap();
        queue.read(1, at, blocks, Buf::alloc(bytes).await).await.unwrap();
        match i % 4 {
            0 => queue.flush(1).await.unwrap(),
            1 => queue.write_zeroes(1, at, 4).await.unwrap(),
            2 => assert!(queue.compare(1, at, 1, view(&fill(4096, 99)).await).await.is_err()),
            _ => assert!(queue.read(1, 1 << 40, 1, Buf::alloc(4096).await).await.is_err()),
        }
    }
}

fn stages(stats: &ReactorStats) -> Vec<(String, &StageSnapshot)> {
    let mut all = Vec::new();
    all.extend(stats.front.stages.iter().map(|(name, s)| (format!("front {name}"), s)));
    for (id, volume) in &stats.volumes {
        all.extend([
            (format!("volume {id} read"), &volume.read),
            (format!("volume {id} write"), &volume.write),
        ]);
    }
    for (_, shard) in &stats.shards {
        all.extend(shard.stages.iter().map(|(name, s)| (format!("shard {name}"), s)));
    }
    for d in &stats.devices {
        let of_device = [
            ("append queue", &d.append_queue),
            ("append service", &d.append_service),
            ("read queue", &d.read_queue),
            ("read service", &d.read_service),
            ("control", &d.control),
        ];
        all.extend(of_device.map(|(name, s)| (format!("device {} {name}", d.device), s)));
    }
    all
}

#[test]
fn littles_law_holds_in_every_stage_of_a_node() {
    for rig in [Rig::new(30, 1), Rig::new(30, 2), Rig::in_memory(30)] {
        rig.run(|| async {
            let host = Rc::new(Host::connect(&addr(), &HostOptions::new(ALICE, NQN), 4).await.unwrap());
            let tasks = Rc::new((std::cell::Cell::new(32), peristyle_rt::sync::Notify::default()));
            for number in 0..32 {
                let (host, tasks) = (host.clone(), tasks.clone());
                peristyle_rt::spawn(async move {
                    load(host, number).await;
                    tasks.0.set(tasks.0.get() - 1);
                    tasks.1.notify_all();
                });
            }
            tasks.1.wait_until(|| tasks.0.get() == 0).await;
            host.close();
        });
        rig.settle();
        let all = rig.stats();
        let mut passed = std::collections::BTreeMap::<String, u64>::new();
        for (name, stage) in all.iter().flat_map(stages) {
            assert_eq!(stage.in_flight, 0, "{name}");
            assert!(stage.little_error() < 1e-6, "{name}: {}", stage.little_error());
            *passed.entry(name).or_default() += stage.completed;
        }
        // Every command went through every stage that is its own.
        let (each, commands) = (32 * 12u64, 32 * 12 * 3);
        assert_eq!(passed["front write"], each);
        assert_eq!(passed["volume 1 write"], each);
        assert_eq!(passed["volume 1 read"], each);
        assert_eq!(passed["front other"], 3 * each / 4, "flush, write zeroes and compare");
        assert_eq!(
            passed["front receive"],
            each + each / 4 + 5,
            "commands with data, and five times Connect"
        );
        assert_eq!(passed["front qos_wait"], commands);
        for name in ["front write.total", "front write.respond"] {
            assert_eq!(passed[name], each, "{name}");
        }
        for name in ["front read.total", "front read.respond"] {
            assert_eq!(passed[name], each + each / 4, "{name}: those that failed, too");
        }
        // Whatever changes the map goes the whole way, and is counted as often as there are commands.
        for name in ["room_wait", "encode", "columns", "commit_wait"] {
            assert_eq!(passed[&format!("shard write.{name}")], passed["shard write.batch_wait"], "{name}");
        }
        for name in ["shard write.append", "shard write.commit_wait", "shard read.column_read"] {
            assert!(passed[name] > 0, "{name}");
        }
    }
}

fn sum(stats: &[ReactorStats], of: impl Fn(&DeviceStats) -> Counter) -> (u64, u64) {
    let counters = stats.iter().flat_map(|r| &r.devices).map(of);
    counters.fold((0, 0), |sum, c| (sum.0 + c.ops, sum.1 + c.bytes))
}

#[test]
fn a_write_alone_is_m_plus_one_device_writes_and_no_read() {
    for reactors in [1, 2] {
        let rig = Rig::with(31, reactors, 6, "4+2");
        const WRITES: u64 = 500;
        let before = rig.stats();
        rig.run(|| async {
            let host = Host::connect(&addr(), &HostOptions::new(ALICE, NQN), 1).await.unwrap();
            for i in 0..WRITES {
                let block = i * 7919 % 4096;
                host.io[0].write(1, block, 1, view(&fill(4096, i)).await).await.unwrap();
            }
            host.close();
        });
        rig.settle();
        let after = rig.stats();
        let user = |d: &DeviceStats| d.written(WritePurpose::AppendUser);
        let (before_ops, before_bytes) = sum(&before, user);
        let (ops, bytes) = sum(&after, user);
        assert_eq!(ops - before_ops, 3 * WRITES, "m + 1 of 4+2");
        // Each of them is a header and the block.
        assert_eq!(bytes - before_bytes, 3 * WRITES * 2 * 4096);
        assert_eq!(sum(&after, |d| d.reads), sum(&before, |d| d.reads), "reads");
        for purpose in [WritePurpose::AppendCollection, WritePurpose::AppendRepair] {
            let of = |d: &DeviceStats| d.written(purpose);
            assert_eq!(sum(&after, of), sum(&before, of), "{purpose:?}");
        }
    }
}

#[test]
fn the_stages_of_a_write_add_up_to_the_whole() {
    for depth in [1, 16] {
        let rig = Rig::with(33, 1, 6, "4+2");
        let of = |rig: &Rig| -> std::collections::BTreeMap<String, StageSnapshot> {
            rig.stats().iter().flat_map(stages).map(|(name, s)| (name, s.clone())).collect()
        };
        let before = of(&rig);
        rig.run(move || async move {
            let host = Rc::new(Host::connect(&addr(), &HostOptions::new(ALICE, NQN), 1).await.unwrap());
            for round in 0..50u64 {
                let writes =
                    (0..depth).map(|i| {
                        let host = host.clone();
                        async move {
                            host.io[0].write(1, i * 64 + round % 64, 1, view(&fill(4096, i)).await).await
                        }
                    });
                peristyle_rt::join_all(writes).await.into_iter().for_each(|written| written.unwrap());
            }
            host.close();
        });
        rig.settle();
        let after = of(&rig);
        let spent = |name: &str| after[name].minus(&before[name]).latency.sum() as f64;
        let shard = ["batch_wait", "room_wait", "encode", "columns", "commit_wait"];
        let front = ["front receive", "front qos_wait", "front write.respond"];
        let parts: f64 = shard.iter().map(|name| spent(&format!("shard write.{name}"))).sum();
        let parts = parts + front.into_iter().map(spent).sum::<f64>();
        let whole = spent("front write.total");
        assert!((0.95..1.05).contains(&(parts / whole)), "depth {depth}: {parts} of {whole} ns");
    }
}

#[test]
fn all_of_a_large_volume_is_deallocated_or_zeroed_at_once() {
    let rig = Rig::new(32, 2);
    rig.order.set(Order::AddHuge);
    rig.run(|| async {
        let host = Rc::new(Host::connect(&addr(), &HostOptions::new(ALICE, NQN), 1).await.unwrap());
        let blocks = HUGE_BYTES / 4096;
        peristyle_rt::timeout(Duration::from_secs(1), async {
            while host.io[0].flush(HUGE).await.is_err() {
                peristyle_rt::sleep(Duration::from_millis(1)).await;
            }
        })
        .await
        .expect("the volume appears");
        let queue = &host.io[0];
        let marks = [0, 1, 131071, blocks / 2, blocks - 1];
        for round in 0..2 {
            for block in marks {
                queue.write(HUGE, block, 1, view(&fill(4096, block)).await).await.unwrap();
            }
            let started = peristyle_rt::now();
            if round == 0 {
                // The largest command there is: 256 ranges.
                let piece = blocks / 256;
                let ranges: Vec<(u64, u32)> = (0..256).map(|i| (i * piece, piece as u32)).collect();
                queue.deallocate(HUGE, &ranges).await.unwrap();
            } else {
                for at in (0..blocks).step_by(65536) {
                    queue.write_zeroes(HUGE, at, 65536).await.unwrap();
                }
            }
            assert!(peristyle_rt::now().since(started) < Duration::from_secs(5));
            for block in marks {
                let back = queue.read(HUGE, block, 1, Buf::alloc(4096).await).await.unwrap();
                assert!(back.iter().all(|b| *b == 0), "block {block}");
            }
        }
        host.close();
    });
    rig.settle();
}
