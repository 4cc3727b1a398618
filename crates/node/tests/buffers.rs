//! Work that holds buffers while it needs more never waits for ever: what it takes to go on is kept back.

use crate::common::cluster::Cluster;
use crate::common::{MIB, Rig, device_id, fill, write};
use peristyle_base::{RowIndex, ShardId};
use peristyle_node::{Node, seeds};
use peristyle_rt::{Buf, Duration, View, spawn, timeout};
use peristyle_shard::Columns;
use std::cell::Cell;
use std::rc::Rc;

/// Long for what the stories ask, short for a wait without end.
const LIMIT: Duration = Duration::from_secs(60);

/// Every buffer that the pool has left, smallest first.
fn all_buffers() -> Vec<Buf> {
    let sizes = [4 << 10, 16 << 10, 64 << 10, 128 << 10, 512 << 10, 2 << 20];
    sizes.iter().flat_map(|&bytes| std::iter::from_fn(move || Buf::try_alloc(bytes))).collect()
}

fn payload(mut buf: Buf, bytes: usize, salt: u64) -> View {
    buf.truncate(bytes);
    buf.copy_from_slice(&fill(bytes, salt));
    buf.freeze()
}

/// Small writes and ragged ones, whose payload is everything that the pool has and does not come back before they are
/// done.
fn queued_writes_that_hold_every_buffer_end(scheme: &str, ragged: bool) {
    let rig = Rig::new(31, scheme, 6, 1);
    rig.run(move |_, volume| async move {
        let done = Rc::new(Cell::new(0));
        let held = Rc::new(all_buffers().into_iter().map(Buf::freeze).collect::<Vec<_>>());
        let (mut writes, mut at) = (0, 0u64);
        for view in held.iter() {
            let bytes = view.len().min(128 << 10) - if ragged { 512 } else { 0 };
            let (volume, done, mine, held) =
                (volume.clone(), done.clone(), view.slice(0..bytes), held.clone());
            let offset = at % (60 * MIB);
            at += 132 << 10;
            writes += 1;
            spawn(async move {
                volume.write(offset, mine).await.unwrap();
                done.set(done.get() + 1);
                drop(held);
            });
        }
        let all = async {
            while done.get() < writes {
                peristyle_rt::sleep(Duration::from_millis(1)).await;
            }
        };
        let ended = timeout(LIMIT, all).await.is_some();
        assert!(ended, "{} of {writes} writes ended", done.get());
    });
}

#[test]
fn queued_writes_that_hold_every_buffer_of_the_pool_are_written() {
    queued_writes_that_hold_every_buffer_end("4+2", false);
    queued_writes_that_hold_every_buffer_end("1+1", false);
}

#[test]
fn partial_writes_that_hold_every_buffer_of_the_pool_are_written() {
    queued_writes_that_hold_every_buffer_end("4+2", true);
}

#[test]
fn a_device_that_hangs_while_the_pool_is_empty_holds_up_nothing() {
    let rig = Rig::new(32, "4+2", 7, 1);
    rig.run(move |node, volume| async move {
        let held = all_buffers();
        let mut views: Vec<View> = Vec::new();
        for (i, buf) in held.into_iter().enumerate() {
            views.push(payload(buf, 4096, i as u64));
        }
        let until = peristyle_rt::device::until(Duration::from_secs(3600));
        let done = Rc::new(Cell::new(0));
        for round in 0..2 {
            assert!(node.inject(device_id(round), peristyle_rt::Fault::StallUntil(until)).await);
            for (i, view) in views.iter().take(400).enumerate() {
                let (volume, view, done) = (volume.clone(), view.clone(), done.clone());
                spawn(async move {
                    volume.write(i as u64 * 4096, view).await.unwrap();
                    done.set(done.get() + 1);
                });
            }
            let all = async {
                while done.get() < 400 * (round + 1) {
                    peristyle_rt::sleep(Duration::from_millis(1)).await;
                }
            };
            let ended = timeout(LIMIT, all).await.is_some();
            assert!(ended, "round {round}: {} writes ended", done.get());
        }
    });
}

/// A read of blocks that were written one by one and are reconstructed, when its own memory is the pool's last.
#[test]
fn a_degraded_read_that_has_the_last_memory_of_the_pool_ends() {
    let rig = Rig::new(33, "4+2", 6, 1);
    rig.run(move |node, volume| async move {
        for block in (0..128u64).map(|b| b * 37 % 128) {
            let view = payload(Buf::alloc(4096).await, 4096, block);
            volume.write(block * 4096, view).await.unwrap();
        }
        let until = peristyle_rt::device::until(Duration::from_secs(3600));
        for d in [0, 3] {
            assert!(node.inject(device_id(d), peristyle_rt::Fault::FailUntil(until)).await);
        }
        let last = Buf::try_alloc(512 << 10).unwrap();
        let _held = all_buffers();
        drop(last);
        let data = timeout(LIMIT, volume.read(0, 512 << 10)).await.expect("ends").unwrap();
        let mut blocks = data.pieces().iter().flat_map(|p| p.chunks_exact(4096));
        for block in 0..128 {
            assert!(blocks.next().unwrap() == fill(4096, block), "block {block}");
        }
    });
}

/// Whoever reads a column of another node, or asks what it has, holds memory until it is answered. When all do, somebody has to have
/// some for the answer.
#[test]
fn a_node_whose_memory_is_all_in_use_answers_others() {
    let cluster = Cluster::new(34, "1+1", 2, 1);
    cluster.machines[1].start(seeds(&cluster.configs[1], 1, &cluster.store), |seed| async move {
        let node = Node::start(seed, true).await;
        peristyle_rt::sleep(Duration::from_secs(1)).await; // connections have theirs
        let _held = all_buffers();
        peristyle_rt::shutdown_requested().await;
        node.stop();
    });
    cluster.run(|node, volume| async move {
        peristyle_rt::sleep(Duration::from_secs(2)).await;
        write(&volume, 0, &fill(512 << 10, 1)).await.unwrap();
        let list = timeout(LIMIT, node.columns().list_device(device_id(1), ShardId(0))).await;
        let list = list.expect("a list ends").unwrap();
        assert!(!list.is_empty());
        for listed in list {
            for bytes in [4 << 10, 64 << 10, 2 << 20] {
                let buf = Buf::alloc(bytes).await;
                let read = node.columns().read(listed.place, listed.name, RowIndex(0), buf);
                let (result, buf) = timeout(LIMIT, read).await.expect("a read ends");
                assert_eq!((result, buf.len()), (Ok(()), bytes));
            }
        }
        assert!(!node.devices().is_away(device_id(1)), "its pings are answered");
    });
}
