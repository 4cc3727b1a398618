//! One node's shards over simulated disks, without a network: writes, reads, restarts, losses.

use crate::common::*;
use peristyle_base::ShardId;
use peristyle_rt::Duration;
use std::cell::RefCell;
use std::rc::Rc;

#[test]
fn what_was_written_is_read_also_after_kill_and_power_loss() {
    for reactors in [1, 2] {
        let rig = Rig::new(7, "4+2", 6, reactors);
        rig.run(|_, volume| async move {
            for i in 0..40u64 {
                let bytes = [4096, 8192, 65536, 524288][i as usize % 4];
                write(&volume, i * MIB, &fill(bytes, i)).await.unwrap();
            }
            write(&volume, 512, &fill(1024, 99)).await.unwrap();
            volume.zero(2 * MIB, 4096).await.unwrap();
        });
        for round in 0..3 {
            match round {
                0 => rig.node.kill(),
                _ => rig.node.power_off(),
            }
            rig.run(|_, volume| async move {
                for i in 1..40u64 {
                    let bytes = [4096, 8192, 65536, 524288][i as usize % 4];
                    let mut expect = fill(bytes, i);
                    if i == 2 {
                        expect[..4096].fill(0);
                    }
                    assert!(read(&volume, i * MIB, bytes as u64).await.unwrap() == expect, "block {i}");
                }
                let first = read(&volume, 0, 4096).await.unwrap();
                let mut expect = fill(4096, 0);
                expect[512..1536].copy_from_slice(&fill(1024, 99));
                assert!(first == expect);
                assert_eq!(read(&volume, 50 * MIB, 4096).await.unwrap(), vec![0; 4096]);
            });
        }
    }
}

#[test]
fn a_checkpoint_shortens_replay_and_loses_nothing() {
    let rig = Rig::new(8, "2+1", 4, 1);
    rig.run(|node, volume| async move {
        let shard = node.shard(ShardId(0)).unwrap();
        for round in 0..4u64 {
            for i in 0..300u64 {
                write(&volume, (i * 7919 % 16000) * 4096, &fill(4096, round * 1000 + i)).await.unwrap();
            }
            volume.zero((round * 10 + 1) * MIB, 3 * MIB).await.unwrap();
            shard.checkpoint().await.unwrap();
        }
        write(&volume, 0, &fill(4096, 5)).await.unwrap();
    });
    let before = Rc::new(RefCell::new(Vec::new()));
    for round in 0..3 {
        rig.node.kill();
        let before = before.clone();
        rig.run(move |node, volume| {
            let before = before.clone();
            async move {
                let mut all = Vec::new();
                for i in 0..128 {
                    all.extend(read(&volume, i * 524288, 524288).await.unwrap());
                }
                assert!(all[..4096] == fill(4096, 5));
                if round == 0 {
                    *before.borrow_mut() = all;
                } else {
                    assert!(*before.borrow() == all, "round {round}");
                }
                if round == 1 {
                    node.shard(ShardId(0)).unwrap().checkpoint().await.unwrap();
                }
            }
        });
    }
}

#[test]
fn any_two_devices_may_be_away_and_reads_are_right() {
    let rig = Rig::new(9, "4+2", 6, 1);
    rig.run(|_, volume| async move {
        for i in 0..64u64 {
            write(&volume, i * MIB, &fill(4096 * (1 + i as usize % 40), i)).await.unwrap();
        }
    });
    for (a, b) in [(0, 1), (2, 5), (3, 4), (1, 5)] {
        rig.node.kill();
        rig.run(move |node, volume| async move {
            for d in [a, b] {
                let until = peristyle_rt::device::until(Duration::from_secs(3600));
                assert!(node.inject(device_id(d), peristyle_rt::Fault::FailUntil(until)).await);
            }
            for i in 0..64u64 {
                let bytes = 4096 * (1 + i as usize % 40);
                assert!(read(&volume, i * MIB, bytes as u64).await.unwrap() == fill(bytes, i), "block {i}");
            }
        });
    }
}

#[test]
fn a_failing_and_a_stalling_device_cost_no_write_and_no_protection() {
    for stall in [false, true] {
        let rig = Rig::new(10, "4+2", 6, 1);
        rig.run(move |node, volume| async move {
            for i in 0..50u64 {
                write(&volume, i * MIB, &fill(4096 * (1 + i as usize % 9), i)).await.unwrap();
            }
            let until = peristyle_rt::device::until(Duration::from_secs(5));
            let fault = if stall {
                peristyle_rt::Fault::StallUntil(until)
            } else {
                peristyle_rt::Fault::FailUntil(until)
            };
            assert!(node.inject(device_id(3), fault).await);
            let started = peristyle_rt::now();
            let mut longest = Duration::ZERO;
            let mut i = 0;
            while peristyle_rt::now().since(started) < Duration::from_secs(4) {
                let before = peristyle_rt::now();
                write(&volume, i % 50 * MIB, &fill(4096 * (1 + i as usize % 9), 100 + i)).await.unwrap();
                longest = longest.max(peristyle_rt::now().since(before));
                peristyle_rt::sleep(Duration::from_millis(3)).await;
                i += 1;
            }
            assert!(longest < Duration::from_millis(100), "{longest:?}");
            // What was written meanwhile survives two further losses.
            for d in [0, 5] {
                let until = peristyle_rt::device::until(Duration::from_secs(3600));
                assert!(node.inject(device_id(d), peristyle_rt::Fault::FailUntil(until)).await);
            }
            for n in i.saturating_sub(50)..i {
                let bytes = 4096 * (1 + n as usize % 9);
                assert!(
                    read(&volume, n % 50 * MIB, bytes as u64).await.unwrap() == fill(bytes, 100 + n),
                    "write {n}"
                );
            }
        });
    }
}

#[test]
fn when_all_devices_stall_at_once_writes_wait_and_none_is_refused() {
    let rig = Rig::new(11, "4+2", 6, 1);
    rig.run(move |node, volume| async move {
        for round in 0..4u64 {
            let until = peristyle_rt::device::until(Duration::from_secs(2));
            for d in 0..6 {
                assert!(node.inject(device_id(d), peristyle_rt::Fault::StallUntil(until)).await);
            }
            let writes = (0..48u64).map(|i| {
                let volume = &volume;
                async move { write(volume, i * MIB, &fill(512 << 10, round * 100 + i)).await }
            });
            for result in peristyle_rt::join_all(writes).await {
                assert_eq!(result, Ok(()), "round {round}");
            }
        }
        for i in 0..48u64 {
            assert!(
                read(&volume, i * MIB, 512 << 10).await.unwrap() == fill(512 << 10, 300 + i),
                "write {i}"
            );
        }
    });
}
