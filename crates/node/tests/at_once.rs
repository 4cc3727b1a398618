//! Reads and appends of devices in memory, which are done without waiting, and the cases in which they are not.

use crate::common::*;
use peristyle_base::{LayerId, ShardId};
use peristyle_rt::device::until;
use peristyle_rt::{Buf, DeviceSpec, Duration, Fault};

fn in_memory(seed: u64, scheme: &str, devices: usize) -> Rig {
    let mut rig = Rig::new(seed, scheme, devices, 1);
    rig.config.devices.iter_mut().for_each(|d| d.spec = DeviceSpec::Memory { bytes: 256 * MIB });
    rig
}

async fn write(volume: &TestVolume, block: u64, data: &[u8]) {
    let mut buf = Buf::alloc(data.len()).await;
    buf.copy_from_slice(data);
    volume.write(block * BLOCK, buf.freeze()).await.unwrap();
}

async fn read(volume: &TestVolume, block: u64, count: u64) -> Vec<u8> {
    let pieces = volume.read(block * BLOCK, count * BLOCK).await.unwrap();
    pieces.to_vec()
}

/// What is read without waiting.
fn at_once(node: &TestNode, offset: u64, bytes: u64) -> Option<Vec<u8>> {
    let shard = node.shard(ShardId(0)).unwrap();
    shard.try_read(LayerId(1), offset, bytes, peristyle_rt::now()).map(|(view, _)| view.to_vec())
}

fn counter(node: &TestNode, name: &str) -> u64 {
    let stats = node.reactor_stats();
    stats.shards[0].1.counters.iter().find(|c| c.0 == name).unwrap().1
}

#[test]
fn what_lies_in_one_piece_in_memory_is_read_at_once_and_nothing_else_is() {
    in_memory(40, "2+1", 4).run(|node, volume| async move {
        let data = fill(8 * BLOCK as usize, 1);
        for (i, block) in data.chunks_exact(BLOCK as usize).enumerate() {
            write(&volume, i as u64, block).await;
        }
        for (i, block) in data.chunks_exact(BLOCK as usize).enumerate() {
            assert_eq!(at_once(&node, i as u64 * BLOCK, BLOCK).as_deref(), Some(block));
        }
        // One frame of eight blocks is four rows of two columns.
        write(&volume, 100, &data).await;
        assert_eq!(at_once(&node, 100 * BLOCK, 4 * BLOCK).as_deref(), Some(&data[..4 * BLOCK as usize]));
        assert_eq!(at_once(&node, 102 * BLOCK, 4 * BLOCK), None, "two pieces");
        assert_eq!(read(&volume, 102, 4).await, &data[2 * BLOCK as usize..6 * BLOCK as usize]);
        // Newer data counts, wherever it lies.
        let newer = fill(BLOCK as usize, 2);
        write(&volume, 101, &newer).await;
        assert_eq!(at_once(&node, 101 * BLOCK, BLOCK).as_deref(), Some(&newer[..]));
        assert_eq!(at_once(&node, 100 * BLOCK, 2 * BLOCK), None, "two pieces now");

        volume.zero(3 * BLOCK, BLOCK).await.unwrap();
        for (offset, bytes, why) in [
            (3 * BLOCK, BLOCK, "zeros"),
            (1000 * BLOCK, BLOCK, "never written"),
            (512, BLOCK, "not whole blocks"),
            (0, 512, "part of a block"),
            (64 * MIB - BLOCK, 2 * BLOCK, "beyond the end"),
            (u64::MAX - BLOCK + 1, BLOCK, "the last place there is"),
            (0, 0, "nothing"),
        ] {
            assert_eq!(at_once(&node, offset, bytes), None, "{why}");
        }
        node.stop();
        assert_eq!(at_once(&node, 0, BLOCK), None, "stopped");
    });
}

#[test]
fn what_lies_on_disks_is_waited_for() {
    Rig::new(41, "2+1", 4, 1).run(|node, volume| async move {
        let data = fill(BLOCK as usize, 1);
        write(&volume, 0, &data).await;
        assert_eq!(at_once(&node, 0, BLOCK), None);
        assert_eq!(read(&volume, 0, 1).await, data);
    });
}

#[test]
fn memory_that_fails_or_holds_other_bytes_is_never_believed() {
    in_memory(42, "2+1", 4).run(|node, volume| async move {
        // Two blocks and their parity, on three devices.
        let both = fill(2 * BLOCK as usize, 1);
        let data = both[..BLOCK as usize].to_vec();
        write(&volume, 7, &both).await;
        for device in node.columns().servers() {
            device.device().inject(Fault::FailUntil(until(Duration::from_secs(1))));
            assert!(at_once(&node, 7 * BLOCK, BLOCK).is_none_or(|there| there == data));
            assert_eq!(read(&volume, 7, 1).await, data);
            device.device().inject(Fault::None);
        }
        assert_eq!(counter(&node, "degraded_reads"), 1, "the block lies on one of them");

        assert_eq!(at_once(&node, 7 * BLOCK, BLOCK).as_ref(), Some(&data));
        for server in node.columns().servers() {
            for offset in (0..server.device().bytes()).step_by(BLOCK as usize) {
                let (_, mut buf) = server.device().read(offset, Buf::alloc(BLOCK as usize).await).await;
                if buf[..] == data[..] {
                    buf[100] ^= 4;
                    server.device().write(offset, buf.freeze().into(), true).await.unwrap();
                }
            }
        }
        assert_eq!(at_once(&node, 7 * BLOCK, BLOCK), None);
        assert_eq!(read(&volume, 7, 1).await, data);
        assert_eq!(counter(&node, "damaged_blocks"), 1);
    });
}

/// Appends that the devices have answered without a task, of all.
fn appends(node: &TestNode) -> (u64, u64) {
    let now = peristyle_rt::now();
    let all: Vec<_> = node.columns().servers().iter().map(|s| s.stats(now)).collect();
    (all.iter().map(|s| s.at_once).sum(), all.iter().map(|s| s.appended().ops).sum())
}

#[test]
fn appends_to_memory_wait_for_nothing_and_to_disks_they_do() {
    in_memory(43, "2+1", 4).run(|node, volume| async move {
        let data = fill(8 * BLOCK as usize, 1);
        let before = appends(&node);
        write(&volume, 0, &data).await;
        let after = appends(&node);
        assert_eq!((after.0 - before.0, after.1 - before.1), (3, 3), "one for each column");
        assert_eq!(read(&volume, 0, 8).await, data);
    });
    Rig::new(44, "2+1", 4, 1).run(|node, volume| async move {
        write(&volume, 0, &fill(BLOCK as usize, 1)).await;
        assert_eq!(appends(&node).0, 0);
    });
}

#[test]
fn a_frame_whose_memory_fails_goes_elsewhere_as_a_whole() {
    in_memory(45, "2+1", 4).run(|node, volume| async move {
        let (mut data, mut reappended) = (Vec::new(), 0);
        for (i, server) in node.columns().servers().iter().enumerate() {
            server.device().inject(Fault::FailUntil(until(Duration::from_secs(100))));
            data.push(fill(4 * BLOCK as usize, i as u64 + 1));
            write(&volume, 10 * i as u64, data.last().unwrap()).await;
            server.device().inject(Fault::None);
            // Whichever device fails next, the others are in use again.
            peristyle_rt::sleep(Duration::from_secs(5)).await;
            reappended = counter(&node, "reappended_frames");
        }
        assert!(reappended > 0, "three of four devices have a column of each frame");
        for (i, data) in data.iter().enumerate() {
            assert_eq!(&read(&volume, 10 * i as u64, 4).await, data);
        }
    });
}
