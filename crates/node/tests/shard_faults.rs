//! What a shard promises when the control store fails, the pool is full, devices go for good, or its process dies again
//! and again while it takes over. Each test stands for a fault that was found by reading or by simulation.

use crate::common::*;
use peristyle_base::{LayerId, ShardId};
use peristyle_cluster::Fault;
use peristyle_column::Geometry;
use peristyle_node::{Node, seeds};
use peristyle_rt::sim::Stop;
use peristyle_rt::{Duration, join_all};
use peristyle_shard::ShardError;
use std::cell::{Cell, RefCell};
use std::rc::Rc;

/// Writes 40 MiB and compares them.
async fn write_all(volume: &TestVolume, salt: u64) {
    for i in 0..80u64 {
        write(volume, i * MIB / 2, &fill(MIB as usize / 2, salt + i)).await.unwrap();
    }
}
async fn check_all(volume: &TestVolume, salt: u64) {
    for i in 0..80u64 {
        let data = read(volume, i * MIB / 2, MIB / 2).await.unwrap();
        assert!(data == fill(MIB as usize / 2, salt + i), "half MiB {i}");
    }
}

#[test]
fn devices_that_are_gone_for_good_take_nothing_with_them() {
    let mut rig = Rig::new(21, "4+2", 6, 1);
    rig.run(|node, volume| async move {
        write_all(&volume, 1).await;
        node.shard(ShardId(0)).unwrap().checkpoint().await.unwrap();
        peristyle_rt::sleep(Duration::from_secs(3)).await;
    });
    // Two of them leave the configuration: nobody reports them as away, they are just not there.
    let gone = rig.config.devices.split_off(4);
    for _ in 0..2 {
        rig.node.kill();
        rig.run(|_, volume| async move {
            check_all(&volume, 1).await;
            peristyle_rt::sleep(Duration::from_secs(5)).await;
            check_all(&volume, 1).await;
        });
    }
    // They come back, and two others go.
    rig.config.devices.extend(gone);
    rig.config.devices.drain(1..3);
    rig.node.kill();
    rig.run(|_, volume| async move {
        check_all(&volume, 1).await;
    });
}

#[test]
fn a_control_store_that_fails_for_a_while_costs_no_write() {
    let rig = Rig::new(22, "2+1", 4, 1);
    for round in 0..4u64 {
        let store = rig.store.clone();
        rig.run(move |node, volume| {
            let store = store.clone();
            async move {
                for fault in [
                    Fault::Unavailable,
                    Fault::UnknownLost,
                    Fault::UnknownApplied,
                    Fault::Conflict,
                    Fault::UnknownApplied,
                    Fault::Unavailable,
                ] {
                    store.inject(fault);
                }
                write_all(&volume, round * 100).await;
                node.shard(ShardId(0)).unwrap().checkpoint().await.unwrap();
                check_all(&volume, round * 100).await;
                assert_eq!(node.shard(ShardId(0)).unwrap().stopped(), None);
            }
        });
        rig.node.kill();
        rig.run(move |_, volume| async move { check_all(&volume, round * 100).await });
        rig.node.kill();
    }
}

#[test]
fn writes_that_wait_for_devices_keep_no_core_busy() {
    // Found by simulation: who waited for an extent and who could make none kept waking each other.
    let rig = Rig::new(29, "1+1", 2, 1);
    let (node, disk) = (rig.node.clone(), rig.node.disk("d0").unwrap());
    rig.run(move |_, volume| {
        let (node, disk) = (node.clone(), disk.clone());
        async move {
            write(&volume, 0, &fill(BLOCK as usize, 1)).await.unwrap();
            disk.update_faults(|faults| faults.write_error_ppm = 1_000_000);
            let done = Rc::new(Cell::new(None));
            let told = done.clone();
            peristyle_rt::spawn(async move {
                told.set(Some(write(&volume, 0, &fill(BLOCK as usize, 2)).await));
            });
            peristyle_rt::sleep(Duration::from_millis(500)).await;
            let before = node.events();
            peristyle_rt::sleep(Duration::from_secs(2)).await;
            let events = node.events() - before;
            assert!(events < 5_000, "{events} events in two seconds");
            assert_eq!(done.get(), None, "one of two devices cannot be written: the write waits");
            disk.update_faults(|faults| faults.write_error_ppm = 0);
            peristyle_rt::sleep(Duration::from_secs(5)).await;
            assert_eq!(done.get(), Some(Ok(())));
        }
    });
}

#[test]
fn a_layer_that_was_dropped_and_made_again_is_empty_after_a_restart_too() {
    let rig = Rig::new(23, "2+1", 4, 1);
    rig.run(|node, volume| async move {
        let shard = node.shard(ShardId(0)).unwrap();
        write(&volume, 5 * MIB, &fill(MIB as usize / 2, 1)).await.unwrap();
        shard.checkpoint().await.unwrap();
        volume.drop_layer().await.unwrap();
        volume.ensure_layer(64 * MIB / BLOCK).await.unwrap();
        write(&volume, 50 * MIB, &fill(4096, 2)).await.unwrap();
        shard.checkpoint().await.unwrap();
    });
    rig.node.kill();
    rig.run(|_, volume| async move {
        assert!(read(&volume, 5 * MIB, MIB / 2).await.unwrap().iter().all(|&b| b == 0));
        assert!(read(&volume, 50 * MIB, 4096).await.unwrap() == fill(4096, 2));
    });
}

#[test]
fn a_layer_has_one_size() {
    let rig = Rig::new(24, "1+1", 2, 1);
    rig.run(|node, _| async move {
        let shard = node.shard(ShardId(0)).unwrap();
        let (a, b) = (shard.ensure_layer(LayerId(9), 100), shard.ensure_layer(LayerId(9), 100));
        let both = join_all(vec![Box::pin(a), Box::pin(b)]).await;
        assert_eq!(both, [Ok(()), Ok(())]);
        assert_eq!(shard.ensure_layer(LayerId(9), 200).await, Err(ShardError::OutOfRange));
        assert_eq!(shard.ensure_layer(LayerId(10), u64::MAX / 2).await, Err(ShardError::MapFull));
    });
}

type Task = std::pin::Pin<Box<dyn Future<Output = Result<(), ShardError>>>>;

#[test]
fn a_partial_write_never_brings_back_what_a_whole_one_replaced() {
    let mut rig = Rig::new(25, "2+1", 3, 1);
    // Hardly any room: whole writes have to wait while partial ones read, merge and write.
    (rig.config.shard.pending_blocks_max, rig.config.shard.pending_commands_max) = (1, 1);
    rig.run(|_, volume| async move {
        for round in 0..150u64 {
            let mut tasks: Vec<Task> = Vec::new();
            for filler in 0..round % 4 {
                let volume = volume.clone();
                tasks.push(Box::pin(async move {
                    write(&volume, (10 + filler) * MIB, &fill(8192, filler)).await
                }));
            }
            let (whole, part) = (volume.clone(), volume.clone());
            let first = async move { write(&whole, 0, &fill(4096, 1000 + round)).await };
            let second = async move { write(&part, 512, &fill(512, 5000 + round)).await };
            match round % 2 {
                0 => (tasks.push(Box::pin(first)), tasks.push(Box::pin(second))),
                _ => (tasks.push(Box::pin(second)), tasks.push(Box::pin(first))),
            };
            assert!(join_all(tasks).await.iter().all(|r| r.is_ok()));
            let data = read(&volume, 0, 4096).await.unwrap();
            let expect = fill(4096, 1000 + round);
            assert!(data[..512] == expect[..512] && data[1024..] == expect[1024..], "round {round}");
            let part = data[512..1024] == fill(512, 5000 + round) || data[512..1024] == expect[512..1024];
            assert!(part, "round {round}");
        }
    });
}

#[test]
fn a_pool_that_is_overwritten_again_and_again_never_fills() {
    let rig = Rig::with_disks(26, "2+1", 3, Geometry::bytes_for(64), 1);
    rig.run(|_, volume| async move {
        write_all(&volume, 7).await;
        // 500 MiB in 256 MiB, of which 60 MiB live.
        for i in 0..1000u64 {
            write(&volume, 40 * MIB + i % 40 * MIB / 2, &fill(MIB as usize / 2, i)).await.unwrap();
        }
        check_all(&volume, 7).await;
    });
}

#[test]
fn a_full_pool_serves_reads_unmaps_and_restarts_and_gets_its_space_back() {
    let rig = Rig::with_disks(26, "2+1", 3, Geometry::bytes_for(20), 1);
    rig.run(|_, volume| async move {
        write_all(&volume, 7).await;
        let mut refused = None;
        for i in 0..1000u64 {
            if let Err(error) = write(&volume, 40 * MIB + i % 48 * MIB / 2, &fill(MIB as usize / 2, i)).await
            {
                refused = Some(error);
                break;
            }
        }
        assert_eq!(refused, Some(ShardError::NoSpace));
        check_all(&volume, 7).await;
    });
    for round in 0..3 {
        rig.node.kill();
        rig.run(move |node, volume| async move {
            check_all(&volume, 7).await;
            volume.zero(60 * MIB + round * BLOCK, BLOCK).await.unwrap();
            let refused = write(&volume, 50 * MIB, &fill(MIB as usize / 2, 1)).await;
            assert!(matches!(refused, Ok(()) | Err(ShardError::NoSpace)), "{refused:?}");
            if round == 2 {
                volume.zero(0, 64 * MIB).await.unwrap();
                node.shard(ShardId(0)).unwrap().checkpoint().await.unwrap();
            }
        });
    }
    rig.node.kill();
    rig.run(|_, volume| async move {
        peristyle_rt::sleep(Duration::from_secs(2)).await;
        write_all(&volume, 9).await;
        check_all(&volume, 9).await;
    });
}

/// Versions of one writer's blocks: what was answered, and what was begun.
#[derive(Clone, Copy, Default)]
struct Versions {
    answered: u64,
    begun: u64,
}

const SIZES: [u64; 6] = [1, 2, 5, 9, 17, 128];

fn stamp(version: u64, writer: usize, blocks: u64) -> Vec<u8> {
    let mut data = fill((blocks * BLOCK) as usize, version * 10 + writer as u64);
    data.chunks_exact_mut(BLOCK as usize).for_each(|b| b[..8].copy_from_slice(&version.to_le_bytes()));
    data
}

async fn writer(volume: TestVolume, writer: usize, all: Rc<RefCell<[Versions; 6]>>) {
    loop {
        let version = all.borrow()[writer].begun + 1;
        all.borrow_mut()[writer].begun = version;
        if write(&volume, writer as u64 * MIB, &stamp(version, writer, SIZES[writer])).await.is_err() {
            return;
        }
        all.borrow_mut()[writer].answered = version;
    }
}

async fn compare(volume: &TestVolume, all: &RefCell<[Versions; 6]>) {
    for writer in 0..SIZES.len() {
        let Versions { answered, begun } = all.borrow()[writer];
        let data = read(volume, writer as u64 * MIB, SIZES[writer] * BLOCK).await.unwrap();
        let version = u64::from_le_bytes(data[..8].try_into().unwrap());
        assert!((answered..=begun).contains(&version), "writer {writer}: {version} of {answered}..={begun}");
        let whole = match version {
            0 => vec![0; data.len()],
            version => stamp(version, writer, SIZES[writer]),
        };
        assert!(data == whole, "writer {writer}: version {version} is there in part");
        all.borrow_mut()[writer] = Versions { answered: version, begun };
    }
}

#[test]
fn crashes_within_recovery_within_recovery_lose_nothing_and_tear_nothing() {
    for (scheme, disks, how) in [("4+2", 6, Stop::Power), ("2+1", 4, Stop::Kill)] {
        let mut rig = Rig::new(27, scheme, disks, 1);
        rig.config.shard.ready_extents = 1;
        rig.config.shard.checkpoint_log_bytes = 3 << 20;
        let all = Rc::new(RefCell::new([Versions::default(); 6]));
        for round in 0..5u64 {
            // The load, cut off at some event; then takeovers, each cut off a little later than the one before.
            let steps = [
                2_000 + round * 977 % 4_000,
                200 + round * 61 % 700,
                300 + round * 89 % 900,
                250 + round * 31,
            ];
            for step in steps {
                rig.node.stop_at_event(rig.node.events() + step, how);
                let versions = all.clone();
                rig.node.start(seeds(&rig.config, 1, &rig.store), move |seed| {
                    let versions = versions.clone();
                    async move {
                        let node = Node::start(seed, true).await;
                        let volume = node.volume(&spec()).unwrap();
                        volume.ensure_layer(64 * MIB / BLOCK).await.unwrap();
                        compare(&volume, &versions).await;
                        for w in 0..SIZES.len() {
                            peristyle_rt::spawn(writer(volume.clone(), w, versions.clone()));
                        }
                        std::future::pending::<()>().await;
                    }
                });
                let stopped = rig.world.run_until(|| !rig.node.is_running(), Duration::from_secs(60));
                assert!(stopped, "{scheme} round {round}: nothing happens any more");
            }
        }
        rig.node.stop_at_event(u64::MAX, how);
        let versions = all.clone();
        rig.run(move |_, volume| {
            let versions = versions.clone();
            async move { compare(&volume, &versions).await }
        });
        assert!(all.borrow().iter().all(|v| v.answered > 10), "the load hardly ran");
    }
}

#[test]
fn littles_law_holds_for_every_stage() {
    let rig = Rig::new(28, "4+2", 6, 1);
    rig.run(|node, volume| async move {
        let tasks = (0..16u64).map(|w| {
            let volume = volume.clone();
            async move {
                for i in 0..40 {
                    let offset = (w * 40 + i) * 64 * 1024 % (60 * MIB);
                    write(&volume, offset, &fill(4096 << (i % 4), i)).await.unwrap();
                    read(&volume, offset, 4096).await.unwrap();
                }
            }
        });
        join_all(tasks).await;
        let snapshot = node.shard(ShardId(0)).unwrap().stats_snapshot(peristyle_rt::now());
        for (name, stage) in &snapshot.stages {
            assert_eq!(stage.in_flight, 0, "{name}");
            assert!(stage.little_error() < 1e-6, "{name}: {}", stage.little_error());
        }
        let passed = |name| snapshot.stages.iter().find(|s| s.0 == name).unwrap().1.completed;
        assert_eq!(passed("write.batch_wait"), 16 * 40 + 1, "every write and the event that made the layer");
        assert!(passed("read.column_read") >= 16 * 40 && passed("write.append") > 100);
    });
}
