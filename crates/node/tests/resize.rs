//! A volume changes its size under its hosts: they hear of it, see it without connecting again, and every reactor
//! agrees; NBD clients find out when they connect again.

use crate::common::nbd::Client;
use crate::rig::*;
use peristyle_bench::host::{Host, HostOptions};
use peristyle_nbd::wire::cmd;
use peristyle_node::{NbdConfig, VolumeSpec};
use peristyle_nvme::wire::Status;
use peristyle_rt::{Addr, Buf, Duration, timeout};
use peristyle_shard::ResizeError;
use std::cell::{Cell, RefCell};
use std::rc::Rc;

/// Set Features 0Bh, Asynchronous Event Configuration: namespace attribute notices (bit 8).
const EVENTS: (u8, u32) = (0x0b, 1 << 8);
/// Dword 0 of the completion: a notice (2) of changed namespaces (0), to be read in log page 4.
const NAMESPACES_CHANGED: u32 = 4 << 16 | 2;
const DISCARD: bool = true;
const KEEP: bool = false;

type Resized = Rc<Cell<Option<Result<(), ResizeError>>>>;

/// A host that listens, and whoever gives its volume another size.
struct Story {
    host: Host,
    order: Rc<Cell<Order>>,
    resized: Resized,
}

impl Story {
    async fn new(order: Rc<Cell<Order>>, resized: Resized) -> Story {
        let host = Host::connect(&addr(), &HostOptions::new(ALICE, NQN), 2).await.unwrap();
        host.admin.set_feature(EVENTS.0, EVENTS.1).await.unwrap();
        Story { host, order, resized }
    }

    async fn resize(&self, mib: u64, discard: bool) -> Result<(), ResizeError> {
        self.order.set(Order::Resize(mib * MIB, discard));
        loop {
            peristyle_rt::sleep(Duration::from_millis(1)).await;
            if let Some(result) = self.resized.take() {
                return result;
            }
        }
    }

    /// The host hears of it, and what Identify says of the size in blocks from then on.
    async fn hear(&self) -> u64 {
        let event = timeout(Duration::from_secs(1), self.host.admin.next_event()).await;
        assert_eq!(event, Some(Ok(NAMESPACES_CHANGED)));
        let log = self.host.admin.log_page(4, 4096).await.unwrap();
        assert_eq!(log[..8], [1, 0, 0, 0, 0, 0, 0, 0]);
        self.blocks().await
    }

    async fn blocks(&self) -> u64 {
        let id = self.host.admin.identify(0, 1).await.unwrap();
        let [nsze, ncap] = [0, 8].map(|at| u64::from_le_bytes(id[at..at + 8].try_into().unwrap()));
        assert_eq!(nsze, ncap);
        nsze
    }

    async fn write(&self, queue: usize, block: u64, salt: u64) -> Status {
        status(self.host.io[queue].write(1, block, 1, view(&fill(4096, salt)).await).await)
    }

    async fn expect(&self, block: u64, content: &[u8]) {
        for queue in &self.host.io {
            let back = queue.read(1, block, 1, Buf::alloc(4096).await).await.unwrap();
            assert!(back[..] == *content, "block {block}");
        }
    }

    /// On every queue the end is where Identify says.
    async fn ends_at(&self, end: u64) {
        for queue in &self.host.io {
            queue.flush(1).await.unwrap();
            queue.read(1, end - 1, 1, Buf::alloc(4096).await).await.unwrap();
            queue.write_zeroes(1, end - 1, 1).await.unwrap();
            let beyond = [
                status(queue.read(1, end - 1, 2, Buf::alloc(8192).await).await),
                status(queue.write(1, end, 1, view(&[1; 4096]).await).await),
                status(queue.write_zeroes(1, end, 1).await),
                status(queue.deallocate(1, &[(end, 1)]).await),
                status(queue.verify(1, end, 1).await),
            ];
            assert!(beyond.iter().all(|s| s.is(Status::LBA_OUT_OF_RANGE)), "{beyond:?}");
        }
    }
}

#[test]
fn a_host_hears_of_a_new_size_and_uses_it_without_connecting_again() {
    for reactors in [1, 2] {
        let rig = Rig::new(40, reactors);
        let (order, resized) = (rig.order.clone(), rig.resized.clone());
        rig.run(move || {
            let (order, resized) = (order.clone(), resized.clone());
            async move {
                let story = Story::new(order, resized).await;
                assert_eq!(story.blocks().await, 16384);
                assert!(story.write(0, 16384, 1).await.is(Status::LBA_OUT_OF_RANGE));
                story.resize(96, KEEP).await.unwrap();
                assert_eq!(story.hear().await, 24576);
                story.ends_at(24576).await;
                story.expect(16384, &[0; 4096]).await;
                assert!(story.write(0, 16384, 1).await.is_success());
                assert!(story.write(1, 20000, 2).await.is_success());
                // Refused: nobody hears of anything.
                let refused = story.resize(64, KEEP).await;
                assert_eq!(refused, Err(ResizeError::DataBehind(20001 * 4096 - 1)));
                story.expect(20000, &fill(4096, 2)).await;
                assert_eq!(story.host.admin.in_flight(), 0);
                story.resize(80, DISCARD).await.unwrap();
                assert_eq!(story.hear().await, 20480);
                story.resize(65, DISCARD).await.unwrap();
                assert_eq!(story.hear().await, 16640);
                story.ends_at(16640).await;
                story.expect(16384, &fill(4096, 1)).await;
                story.resize(128, KEEP).await.unwrap();
                assert_eq!(story.hear().await, 32768);
                story.expect(20000, &[0; 4096]).await;
                assert!(story.write(1, 32000, 3).await.is_success());
                story.host.close();
            }
        });
        rig.settle();
        rig.restart();
        let (order, resized) = (rig.order.clone(), rig.resized.clone());
        rig.run(move || {
            let (order, resized) = (order.clone(), resized.clone());
            async move {
                let story = Story::new(order, resized).await;
                assert_eq!(story.blocks().await, 32768);
                story.expect(16384, &fill(4096, 1)).await;
                story.expect(20000, &[0; 4096]).await;
                story.expect(32000, &fill(4096, 3)).await;
                story.ends_at(32768).await;
                story.host.close();
            }
        });
    }
}

#[test]
fn commands_under_way_while_a_volume_shrinks_and_grows_are_done_or_out_of_range() {
    for reactors in [1, 2] {
        let rig = Rig::new(41, reactors);
        let (order, resized) = (rig.order.clone(), rig.resized.clone());
        rig.run(move || {
            let (order, resized) = (order.clone(), resized.clone());
            async move {
                let story = Rc::new(Story::new(order, resized).await);
                let (stop, refused) = (Rc::new(Cell::new(false)), Rc::new(Cell::new(0u64)));
                // What each block was last answered for; each writer has blocks of its own.
                let answered = Rc::new(RefCell::new(vec![None; 16384]));
                let running = Rc::new(Cell::new(8));
                for writer in 0..8u64 {
                    let (story, stop, refused) = (story.clone(), stop.clone(), refused.clone());
                    let (answered, running) = (answered.clone(), running.clone());
                    peristyle_rt::spawn(async move {
                        for salt in 1u64.. {
                            let block = salt * 1237 % 2048 * 8 + writer;
                            let told = story.write(writer as usize % 2, block, salt).await;
                            assert!(told.is_success() || told.is(Status::LBA_OUT_OF_RANGE), "{told:?}");
                            match told.is_success() {
                                true => answered.borrow_mut()[block as usize] = Some(salt),
                                false => refused.set(refused.get() + 1),
                            }
                            assert!(block >= 8192 || told.is_success(), "block {block} is always there");
                            if stop.get() {
                                break;
                            }
                        }
                        running.set(running.get() - 1);
                    });
                }
                for _ in 0..4 {
                    peristyle_rt::sleep(Duration::from_millis(20)).await;
                    story.resize(32, DISCARD).await.unwrap();
                    assert_eq!(story.hear().await, 8192);
                    // Nothing behind the end is answered as done from here on.
                    answered.borrow_mut()[8192..].fill(None);
                    let before = refused.get();
                    peristyle_rt::sleep(Duration::from_millis(5)).await;
                    assert!(refused.get() > before && answered.borrow()[8192..].iter().all(Option::is_none));
                    story.resize(64, KEEP).await.unwrap();
                    assert_eq!(story.hear().await, 16384);
                }
                peristyle_rt::sleep(Duration::from_millis(20)).await;
                stop.set(true);
                while running.get() > 0 {
                    peristyle_rt::sleep(Duration::from_millis(1)).await;
                }
                let answered = answered.borrow().clone();
                assert!(answered[8192..].iter().flatten().count() > 10);
                for (block, salt) in answered.into_iter().enumerate() {
                    story.expect(block as u64, &salt.map_or(vec![0; 4096], |salt| fill(4096, salt))).await;
                }
                story.host.close();
            }
        });
    }
}

#[test]
fn a_kill_in_the_middle_of_a_resize_leaves_the_old_size_or_the_new_one() {
    let mut seen = [0; 4];
    for moment in 0..24u64 {
        let rig = Rig::new(42 + moment, 2);
        for (which, (mib, discard)) in [(96, KEEP), (32, DISCARD)].into_iter().enumerate() {
            let before = rig.first.borrow().bytes;
            rig.order.set(Order::Resize(mib * MIB, discard));
            let begun = || rig.order.get() == Order::None;
            assert!(rig.world.handle().run_until(begun, Duration::from_secs(1)));
            rig.world.handle().run_for(Duration::from_micros(moment * 30));
            rig.restart();
            let known = rig.first.borrow().bytes;
            assert!(known == before || known == mib * MIB);
            seen[2 * which + usize::from(known == before)] += 1;
            rig.resized.set(None);
            let (order, resized) = (rig.order.clone(), rig.resized.clone());
            rig.run(move || {
                let (order, resized) = (order.clone(), resized.clone());
                async move {
                    let story = Story::new(order, resized).await;
                    assert_eq!(story.blocks().await, known / 4096);
                    story.ends_at(known / 4096).await;
                    assert!(story.write(1, known / 4096 - 1, 5).await.is_success());
                    story.host.close();
                }
            });
            rig.settle();
        }
    }
    assert!(seen.iter().all(|n| *n > 1), "{seen:?}");
}

const ENOSPC: u32 = 28;
const EINVAL: u32 = 22;

#[test]
fn an_nbd_client_keeps_the_size_that_it_knows_until_it_connects_again() {
    for reactors in [1, 2] {
        crate::common::Rig::new(43, "2+1", 4, reactors).run(|node, volume| async move {
            let sized = |mib: u64| VolumeSpec { bytes: mib * MIB, ..crate::common::spec() };
            node.set_exports([sized(64)]);
            let listen = vec![Addr::Tcp("10.0.0.1:10809".parse().unwrap())];
            let addr = node.start_nbd(NbdConfig::new(listen)).await.unwrap().remove(0);
            let (mut old, _) = Client::open(&addr, "v1").await;
            let mut status = Client::open_with_status(&addr, "v1").await;

            volume.resize_layer(96 * MIB / 4096, KEEP).await.unwrap();
            node.set_exports([sized(96)]);
            assert_eq!(old.write(64 * MIB, &fill(4096, 1)).await, ENOSPC);
            assert_eq!(old.write(63 * MIB, &fill(4096, 1)).await, 0);
            let (mut new, bytes) = Client::open(&addr, "v1").await;
            assert_eq!(bytes, 96 * MIB);
            assert_eq!(new.write(80 * MIB, &fill(4096, 2)).await, 0);

            volume.resize_layer(32 * MIB / 4096, DISCARD).await.unwrap();
            node.set_exports([sized(32)]);
            for (client, at) in [(&mut old, 63 * MIB), (&mut new, 80 * MIB)] {
                assert_eq!(client.write(at, &fill(4096, 3)).await, ENOSPC);
                assert_eq!(
                    client.write(32 * MIB - 4096, &fill(8192, 3)).await,
                    ENOSPC,
                    "part of it is behind"
                );
                assert_eq!(client.run(cmd::WRITE_ZEROES, at, 4096, &[]).await, ENOSPC);
                assert_eq!(client.run(cmd::TRIM, at, 4096, &[]).await, EINVAL);
                assert_eq!(client.read(at, 4096).await, Err(EINVAL));
                assert_eq!(client.write(32 * MIB - 4096, &fill(4096, 4)).await, 0);
                assert_eq!(client.read(32 * MIB - 4096, 4096).await.unwrap(), fill(4096, 4));
            }
            assert_eq!(status.status(0, 63 * MIB, 4096).await, Err(EINVAL));
            assert_eq!(Client::open(&addr, "v1").await.1, 32 * MIB);

            volume.resize_layer(64 * MIB / 4096, KEEP).await.unwrap();
            node.set_exports([sized(64)]);
            assert_eq!(old.read(63 * MIB, 4096).await.unwrap(), vec![0; 4096], "cut off is gone");
            assert_eq!(node.nbd.connections(), 3, "none of them was closed but the one that left");
            node.stop_nbd().await;
        });
    }
}
