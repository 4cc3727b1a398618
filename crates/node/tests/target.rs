//! The NVMe/TCP target over simulated TCP, disks and reactors, driven by a real initiator.

use crate::rig::*;
use peristyle_bench::host::{Host, HostError, HostOptions, Queue};
use peristyle_node::target::COUNT_PERIOD;
use peristyle_nvme::host::HostClose;
use peristyle_nvme::wire::Status;
use peristyle_rt::{Buf, Duration};
use std::cell::Cell;
use std::rc::Rc;

/// What a host does with a namespace, from small to large, and what it must see.
async fn use_volumes(options: HostOptions) {
    let host = Host::connect(&addr(), &options, 2).await.unwrap();
    let identity = host.admin.identify(0, 1).await.unwrap();
    assert_eq!(u64::from_le_bytes(identity[..8].try_into().unwrap()), 64 * MIB / 4096);
    for (nsid, lba) in [(1u32, 4096usize), (2, 512)] {
        let mut at = 0;
        for (i, bytes) in [lba, 4096, 8192, 12288, 65536, 524288].into_iter().enumerate() {
            let (queue, blocks) = (&host.io[i % 2], (bytes / lba) as u32);
            let data = fill(bytes, i as u64 + 1);
            queue.write(nsid, at, blocks, view(&data).await).await.unwrap();
            let back = queue.read(nsid, at, blocks, Buf::alloc(bytes).await).await.unwrap();
            assert!(back[..] == data[..], "{bytes} bytes of namespace {nsid}");
            queue.compare(nsid, at, blocks, view(&data).await).await.unwrap();
            let other = fill(bytes, 77);
            let answer = queue.compare(nsid, at, blocks, view(&other).await).await;
            assert!(status(answer).is(Status::COMPARE_FAILURE));
            queue.verify(nsid, at, blocks).await.unwrap();
            let (first, second) = queue
                .compare_and_write(nsid, at, blocks, view(&other).await, view(&other).await)
                .await
                .unwrap();
            assert!(first.is(Status::COMPARE_FAILURE) && second.is(Status::ABORTED_FAILED_FUSED));
            let (first, second) = queue
                .compare_and_write(nsid, at, blocks, view(&data).await, view(&other).await)
                .await
                .unwrap();
            assert!(first.is_success() && second.is_success());
            let back = queue.read(nsid, at, blocks, Buf::alloc(bytes).await).await.unwrap();
            assert!(back[..] == other[..]);
            queue.flush(nsid).await.unwrap();
            queue.write_zeroes(nsid, at, blocks).await.unwrap();
            let back = queue.read(nsid, at, blocks, Buf::alloc(bytes).await).await.unwrap();
            assert!(back.iter().all(|b| *b == 0));
            queue.write(nsid, at, blocks, view(&data).await).await.unwrap();
            queue.deallocate(nsid, &[(at, blocks), (at, 1)]).await.unwrap();
            let back = queue.read(nsid, at, blocks, Buf::alloc(bytes).await).await.unwrap();
            assert!(back.iter().all(|b| *b == 0));
            at += u64::from(blocks);
        }
        let beyond = 64 * MIB / lba as u64;
        let answer = host.io[0].read(nsid, beyond, 1, Buf::alloc(lba).await).await;
        assert!(status(answer).is(Status::LBA_OUT_OF_RANGE));
    }
    host.io[0].flush(u32::MAX).await.unwrap();
    let answer = host.io[0].read(3, 0, 1, Buf::alloc(4096).await).await;
    assert!(status(answer).is(Status::INVALID_NAMESPACE_OR_FORMAT));
    host.close();
}

#[test]
fn a_host_reads_what_it_wrote_on_one_reactor_and_on_two_with_and_without_digests() {
    for (reactors, digests) in [(1, false), (1, true), (2, false), (2, true)] {
        let rig = Rig::new(1, reactors);
        rig.run(move || async move {
            let mut options = HostOptions::new(ALICE, NQN);
            (options.header_digest, options.data_digest) = (digests, digests);
            use_volumes(options).await;
        });
        rig.settle();
    }
}

#[test]
fn a_host_that_is_not_listed_is_refused() {
    let rig = Rig::new(2, 1);
    rig.run(|| async {
        let answer = Host::connect(&addr(), &HostOptions::new(MALLORY, NQN), 1).await;
        assert!(status(answer).is(Status::CONNECT_INVALID_HOST));
    });
    rig.settle();
}

#[test]
fn a_host_that_falls_silent_loses_its_connections() {
    let rig = Rig::new(3, 2);
    rig.run(|| async {
        let mut options = HostOptions::new(ALICE, NQN);
        options.keep_alive_ms = 2000;
        let alive = Host::connect(&addr(), &options, 1).await.unwrap();
        peristyle_rt::sleep(Duration::from_secs(10)).await;
        assert!(alive.admin.is_open() && alive.io[0].is_open());
        let silent = Queue::connect(&addr(), &options, 0, 0).await.unwrap();
        silent.closed().await;
        assert!(alive.admin.is_open());
    });
    rig.settle();
}

#[test]
fn a_host_that_leaves_in_the_middle_takes_no_buffer_with_it() {
    for reactors in [1, 2] {
        let rig = Rig::new(4, reactors);
        let mut before = Vec::new();
        for round in 0..20u64 {
            rig.run(move || async move {
                let options = HostOptions::new(ALICE, NQN);
                let host = Rc::new(Host::connect(&addr(), &options, 2).await.unwrap());
                for i in 0..12u64 {
                    let host = host.clone();
                    peristyle_rt::spawn(async move {
                        let bytes = [4096usize, 131072, 524288][i as usize % 3];
                        let blocks = bytes as u32 / 4096;
                        let queue = &host.io[i as usize % 2];
                        let data = view(&fill(bytes, i)).await;
                        let _ = queue.write(1, i * 128, blocks, data).await;
                        let _ = queue.read(1, i * 128, blocks, Buf::alloc(bytes).await).await;
                    });
                }
                peristyle_rt::sleep(Duration::from_micros(50 + round * 97)).await;
                host.close();
            });
            rig.settle();
            if round == 4 {
                before = rig.free.borrow().clone();
            }
        }
        assert_eq!(*rig.free.borrow(), before, "a buffer is missing or too many");
    }
}

/// Its last write may still come: until it cannot any more, no Connect of that host is accepted, and none waits for ever.
#[test]
fn a_host_whose_last_command_is_stuck_hears_that_it_is_to_come_again() {
    for reactors in [1, 2] {
        let rig = Rig::new(12, reactors);
        let order = rig.order.clone();
        rig.run(move || {
            let order = order.clone();
            async move {
                let options = HostOptions::new(ALICE, NQN);
                let host = Rc::new(Host::connect(&addr(), &options, 1).await.unwrap());
                host.io[0].write(1, 0, 1, view(&fill(4096, 1)).await).await.unwrap();
                order.set(Order::Stall(Duration::from_secs(20)));
                peristyle_rt::sleep(Duration::from_millis(50)).await;
                let stuck = host.clone();
                peristyle_rt::spawn(async move {
                    let _ = stuck.io[0].write(1, 0, 1, view(&fill(4096, 2)).await).await;
                });
                peristyle_rt::sleep(Duration::from_millis(50)).await;
                host.close();
                peristyle_rt::sleep(Duration::from_millis(50)).await;
                let (started, mut refused) = (peristyle_rt::now(), 0);
                let again = loop {
                    match Host::connect(&addr(), &options, 1).await {
                        Ok(host) => break host,
                        answer => assert!(status(answer).is(Status::CONTROLLER_BUSY)),
                    }
                    refused += 1;
                    assert!(peristyle_rt::now().since(started) < Duration::from_secs(60), "never again");
                };
                assert!(refused >= 1, "the old write was not waited for");
                again.io[0].write(1, 0, 1, view(&fill(4096, 3)).await).await.unwrap();
                peristyle_rt::sleep(Duration::from_secs(5)).await;
                let back = again.io[0].read(1, 0, 1, Buf::alloc(4096).await).await.unwrap();
                assert!(back[..] == fill(4096, 3)[..], "an old write came after a new one");
                again.close();
            }
        });
        rig.settle();
    }
}

/// Set Features 0Bh, Asynchronous Event Configuration: namespace attribute notices (bit 8).
const EVENTS: (u8, u32) = (0x0b, 1 << 8);
/// Dword 0 of the completion: a notice (2) of changed namespaces (0), to be read in log page 4.
const NAMESPACES_CHANGED: u32 = 4 << 16 | 2;

#[test]
fn hosts_hear_of_volumes_that_go_and_come() {
    for reactors in [1, 2] {
        let rig = Rig::new(5, reactors);
        let order = rig.order.clone();
        rig.run(move || {
            let order = order.clone();
            async move {
                let host = Host::connect(&addr(), &HostOptions::new(ALICE, NQN), 2).await.unwrap();
                let deaf = Host::connect(&addr(), &HostOptions::new(ALICE, NQN), 1).await.unwrap();
                let unheard = Rc::new(Cell::new(true));
                let (queue, flag) = (deaf.admin.clone(), unheard.clone());
                peristyle_rt::spawn(async move { flag.set(queue.next_event().await.is_err()) });
                host.admin.set_feature(EVENTS.0, EVENTS.1).await.unwrap();
                let data = fill(4096, 5);
                host.io[0].write(2, 8, 8, view(&data).await).await.unwrap();
                for (next, expected) in [
                    (Order::RemoveSecond, Status::INVALID_NAMESPACE_OR_FORMAT),
                    (Order::AddSecond, Status::SUCCESS),
                ] {
                    order.set(next);
                    let event = peristyle_rt::timeout(Duration::from_secs(1), host.admin.next_event()).await;
                    assert_eq!(event, Some(Ok(NAMESPACES_CHANGED)));
                    // Whoever has been told sees it at once, on every queue.
                    for queue in &host.io {
                        assert!(status(queue.flush(2).await).is(expected));
                    }
                    let log = host.admin.log_page(4, 4096).await.unwrap();
                    assert_eq!(log[..8], [2, 0, 0, 0, 0, 0, 0, 0]);
                    // Reading it clears it.
                    let log = host.admin.log_page(4, 4096).await.unwrap();
                    assert!(log.iter().all(|b| *b == 0));
                }
                let back = host.io[1].read(2, 8, 8, Buf::alloc(4096).await).await.unwrap();
                assert!(back[..] == data[..]);
                assert!(unheard.get() && deaf.admin.in_flight() == 1, "an event that nobody asked for");
                deaf.close();
                host.close();
            }
        });
        rig.settle();
    }
}

fn u128_at(log: &[u8], at: usize) -> u128 {
    u128::from_le_bytes(log[at..at + 16].try_into().unwrap())
}

#[test]
fn the_smart_log_counts_what_hosts_read_and_wrote_and_the_error_log_tells_what_failed() {
    for reactors in [1, 2] {
        let rig = Rig::new(8, reactors);
        rig.run(move || async move {
            let host = Host::connect(&addr(), &HostOptions::new(ALICE, NQN), 2).await.unwrap();
            for i in 0..20u64 {
                let queue = &host.io[i as usize % 2];
                queue.write(1, i * 128, 128, view(&fill(524288, i)).await).await.unwrap();
                if i < 10 {
                    queue.read(1, i * 128, 128, Buf::alloc(524288).await).await.unwrap();
                }
            }
            let beyond = 64 * MIB / 4096;
            let answer = host.io[1].read(1, beyond, 1, Buf::alloc(4096).await).await;
            assert!(status(answer).is(Status::LBA_OUT_OF_RANGE));
            peristyle_rt::sleep(COUNT_PERIOD * 2).await;
            let smart = host.admin.log_page(2, 512).await.unwrap();
            // Thousands of 512 bytes, rounded up.
            assert_eq!(u128_at(&smart, 32), (10 * 1024u128).div_ceil(1000), "data units read");
            assert_eq!(u128_at(&smart, 48), (20 * 1024u128).div_ceil(1000), "data units written");
            assert_eq!((u128_at(&smart, 64), u128_at(&smart, 80)), (10, 20), "commands");
            assert_eq!(u128_at(&smart, 160), 0, "media errors");
            assert_eq!(u128_at(&smart, 176), 1, "error log entries");
            let errors = host.admin.log_page(1, 128).await.unwrap();
            assert_eq!(errors[..8], 1u64.to_le_bytes());
            assert_eq!(errors[8..10], 2u16.to_le_bytes(), "submission queue");
            let told = u16::from_le_bytes(errors[12..14].try_into().unwrap()) >> 1;
            assert_eq!(told & 0x7ff, Status::LBA_OUT_OF_RANGE.bits() & 0x7ff);
            assert_eq!(errors[16..24], beyond.to_le_bytes());
            assert_eq!(errors[24..28], 1u32.to_le_bytes());
            host.close();
        });
        rig.settle();
    }
}

#[test]
fn no_host_reaches_into_another_hosts_controller() {
    let rig = Rig::new(9, 2);
    rig.run(|| async {
        let alice = Host::connect(&addr(), &HostOptions::new(ALICE, NQN), 1).await.unwrap();
        alice.io[0].write(1, 0, 1, view(&fill(4096, 1)).await).await.unwrap();
        // Bob is listed, and knows all of Alice's numbers.
        let bob = Host::connect(&addr(), &HostOptions::new(BOB, NQN), 1).await.unwrap();
        let disguises = [
            HostOptions::new(BOB, NQN),
            HostOptions { host_id: HostOptions::new(ALICE, NQN).host_id, ..HostOptions::new(BOB, NQN) },
            HostOptions { host_id: HostOptions::new(BOB, NQN).host_id, ..HostOptions::new(ALICE, NQN) },
        ];
        for disguise in disguises {
            for qid in [1, 2] {
                let answer = Queue::connect(&addr(), &disguise, qid, alice.admin.cntlid()).await;
                assert!(status(answer).is(Status::CONNECT_INVALID_PARAMETERS));
            }
        }
        // Neither of them has noticed, and the place is still Alice's.
        let mut alice = alice;
        alice.add_queue().await.unwrap();
        let back = alice.io[1].read(1, 0, 1, Buf::alloc(4096).await).await.unwrap();
        assert!(back[..] == fill(4096, 1)[..]);
        bob.io[0].flush(1).await.unwrap();
        alice.close();
        bob.close();
    });
    rig.settle();
}

#[test]
fn a_target_that_stops_answers_what_is_in_flight_and_closes() {
    let rig = Rig::new(7, 1);
    let order = rig.order.clone();
    rig.run(move || {
        let order = order.clone();
        async move {
            let host = Host::connect(&addr(), &HostOptions::new(ALICE, NQN), 1).await.unwrap();
            order.set(Order::Stop);
            let mut written = 0;
            while host.io[0].write(1, written, 128, view(&fill(524288, 1)).await).await.is_ok() {
                written += 128;
            }
            host.io[0].closed().await;
            host.admin.closed().await;
            assert!(Host::connect(&addr(), &HostOptions::new(ALICE, NQN), 1).await.is_err());
        }
    });
    assert_eq!(rig.connections(), 0);
}

#[test]
fn a_queue_without_its_admin_queue_is_closed() {
    let rig = Rig::new(6, 2);
    rig.run(|| async {
        let host = Host::connect(&addr(), &HostOptions::new(ALICE, NQN), 2).await.unwrap();
        host.admin.close();
        for queue in &host.io {
            queue.closed().await;
            let answer = queue.flush(1).await;
            assert!(matches!(answer, Err(HostError::Closed(HostClose::PeerClosed))), "{answer:?}");
        }
    });
    rig.settle();
}

#[test]
fn space_comes_back_while_the_node_runs_when_hosts_zero_or_deallocate() {
    let rig = Rig::new(31, 1);
    rig.order.set(Order::AddHuge);
    rig.world.handle().run_for(Duration::from_millis(100));
    rig.run(|| async {
        let host = Host::connect(&addr(), &HostOptions::new(ALICE, NQN), 1).await.unwrap();
        let queue = &host.io[0];
        for round in 0..3u64 {
            // 512 KiB at once, until the pool is full: 1 GiB of devices is less than 683 MiB of data.
            let (mut end, data) = (0, view(&fill(128 * 4096, round)).await);
            let refused = loop {
                match queue.write(HUGE, end, 128, data.clone()).await {
                    Ok(()) => end += 128,
                    Err(error) => break status::<()>(Err(error)),
                }
            };
            assert!(refused.is(Status::CAPACITY_EXCEEDED));
            assert!(end * 4096 > 400 * MIB, "round {round}: {end} blocks");
            match round {
                0 => queue.deallocate(HUGE, &[(0, end as u32)]).await.unwrap(),
                _ => {
                    for at in (0..end).step_by(65536) {
                        queue.write_zeroes(HUGE, at, 65536).await.unwrap();
                    }
                }
            }
            peristyle_rt::sleep(Duration::from_secs(5)).await;
        }
        host.close();
    });
    rig.settle();
    let space = rig.stats()[0].shards[0].1.space;
    assert!(space.freed_extents > 100 && space.live_blocks == 0, "{space:?}");
}
