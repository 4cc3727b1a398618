//! Connections that break the rules or off, on a whole target: what the machine's own table of malformed input cannot
//! see. Rows are those of that table.

use crate::rig::*;
use peristyle_bench::host::{Host, HostOptions, Queue};
use peristyle_node::target::CONNECTIONS_MAX;
use peristyle_rt::{Buf, Duration, StreamReader, StreamWriter};
use std::cell::Cell;
use std::rc::Rc;

#[test]
fn row_7_half_an_icreq_and_the_end_leaves_nothing() {
    let rig = Rig::new(20, 1);
    rig.world.handle().run_for(Duration::from_secs(1));
    let before = rig.free.borrow().clone();
    rig.run(|| async {
        let (mut reader, writer) = raw(&ic_req()[..64]).await;
        writer.shutdown();
        let (took, answer) = until_end(&mut reader).await;
        assert!(took < Duration::from_secs(1) && answer.is_empty());
    });
    rig.settle();
    assert_eq!(*rig.free.borrow(), before);
}

#[test]
fn row_8_a_slow_or_silent_connection_ends_at_the_set_up_timeout() {
    let rig = Rig::new(21, 1);
    rig.run(|| async {
        let (mut reader, _writer) = raw(&[]).await;
        let (took, answer) = until_end(&mut reader).await;
        assert!(took > Duration::from_secs(9) && took < Duration::from_secs(11) && answer.is_empty());
        let (mut reader, mut writer) = raw(&[]).await;
        peristyle_rt::spawn(async move {
            for byte in ic_req() {
                let piece = view(&[byte]).await;
                if writer.send(piece.into()).await.is_err() {
                    return;
                }
                peristyle_rt::sleep(Duration::from_secs(1)).await;
            }
        });
        let (took, answer) = until_end(&mut reader).await;
        assert!(took > Duration::from_secs(9) && took < Duration::from_secs(11) && answer.is_empty());
    });
    rig.settle();
}

#[test]
fn row_11_a_flood_of_silent_connections_is_capped_and_an_established_host_unaffected() {
    let rig = Rig::new(22, 1);
    let nodes = rig.node.clone();
    rig.run(move || {
        let nodes = nodes.clone();
        async move {
            let host = Host::connect(&addr(), &HostOptions::new(ALICE, NQN), 1).await.unwrap();
            let mut flood = Vec::new();
            for _ in 0..CONNECTIONS_MAX + 50 {
                flood.push(raw(&[]).await);
            }
            assert_eq!(nodes.borrow()[0].connections(), CONNECTIONS_MAX);
            let data = fill(524288, 3);
            host.io[0].write(1, 0, 128, view(&data).await).await.unwrap();
            let back = host.io[0].read(1, 0, 128, Buf::alloc(524288).await).await.unwrap();
            assert!(back[..] == data[..]);
            peristyle_rt::sleep(Duration::from_secs(11)).await;
            assert_eq!(nodes.borrow()[0].connections(), 2);
            host.close();
        }
    });
    rig.settle();
}

#[test]
fn rows_30_and_31_after_a_bad_pdu_nothing_is_executed_and_a_deaf_host_is_cut_off() {
    let rig = Rig::new(23, 1);
    rig.run(|| async {
        let (mut reader, mut writer) = raw(&ic_req()).await;
        let mut answer = Vec::new();
        while answer.len() < 128 {
            answer.extend_from_slice(&reader.recv().await.unwrap()); // it may come in pieces
        }
        assert_eq!((answer.len(), answer[0]), (128, 1));
        // A PDU of no known type, and in the same segment a capsule that would be answered.
        let mut bytes = vec![0x77, 0, 8, 0, 8, 0, 0, 0];
        let mut capsule = vec![0; 72];
        (capsule[0], capsule[2], capsule[4], capsule[8]) = (4, 72, 72, 0x18);
        bytes.extend_from_slice(&capsule);
        writer.send(view(&bytes).await.into()).await.unwrap();
        let (took, rest) = until_end(&mut reader).await;
        assert!(took > Duration::from_secs(9) && took < Duration::from_secs(31), "{took:?}");
        // One C2HTermReq, and not a word more.
        answer = rest;
        assert_eq!(answer[0], 3);
        assert_eq!(answer.len(), usize::from(answer[4]));
    });
    rig.settle();
}

/// An I/O queue by hand, connected as queue 1 of a controller.
struct RawQueue {
    reader: StreamReader,
    writer: StreamWriter,
}

/// A capsule with data in it: the command's SGL is an offset.
fn capsule(mut sqe: [u8; 64], data: &[u8]) -> Vec<u8> {
    sqe[1] = 0x40;
    sqe[32..36].copy_from_slice(&(data.len() as u32).to_le_bytes());
    sqe[39] = 1;
    let bytes = 72 + data.len();
    let mut pdu = vec![4, 0, 72, if data.is_empty() { 0 } else { 72 }];
    pdu.extend((bytes as u32).to_le_bytes());
    pdu.extend(sqe);
    pdu.extend(data);
    pdu
}

fn write_sqe(cid: u16, slba: u64, blocks: u16) -> [u8; 64] {
    let mut sqe = [0; 64];
    sqe[0] = 1;
    sqe[2..4].copy_from_slice(&cid.to_le_bytes());
    sqe[4] = 1;
    sqe[40..48].copy_from_slice(&slba.to_le_bytes());
    sqe[48..50].copy_from_slice(&(blocks - 1).to_le_bytes());
    sqe
}

/// A Write whose data the target asks for.
fn large_write(cid: u16, slba: u64, blocks: u16) -> Vec<u8> {
    let mut pdu = capsule(write_sqe(cid, slba, blocks), &[]);
    pdu[8 + 32..8 + 36].copy_from_slice(&(u32::from(blocks) * 4096).to_le_bytes());
    pdu[8 + 39] = 0x5a;
    pdu
}

impl RawQueue {
    async fn connect(options: &HostOptions, cntlid: u16) -> RawQueue {
        let (reader, writer) = raw(&ic_req()).await;
        let mut queue = RawQueue { reader, writer };
        assert_eq!(queue.take(128).await[0], 1);
        let mut sqe = [0; 64];
        (sqe[0], sqe[4], sqe[42], sqe[44]) = (0x7f, 1, 1, 31);
        let mut data = vec![0; 1024];
        data[..16].copy_from_slice(&options.host_id);
        data[16..18].copy_from_slice(&cntlid.to_le_bytes());
        data[256..256 + options.subsystem_nqn.len()].copy_from_slice(options.subsystem_nqn.as_bytes());
        data[512..512 + options.host_nqn.len()].copy_from_slice(options.host_nqn.as_bytes());
        queue.send(&capsule(sqe, &data)).await;
        let answer = queue.take(24).await;
        assert_eq!((answer[0], &answer[22..24]), (5, &[0, 0][..]), "Connect succeeded");
        queue
    }
    /// The next so many bytes, and nothing that follows them.
    async fn take(&mut self, bytes: usize) -> Vec<u8> {
        let mut all = Vec::new();
        while all.len() < bytes {
            let some = self.reader.recv().await.unwrap();
            assert!(!some.is_empty(), "the connection ended after {all:x?}");
            all.extend_from_slice(&some);
        }
        assert_eq!(all.len(), bytes, "{all:x?}");
        all
    }
    async fn send(&mut self, bytes: &[u8]) {
        // A piece at a time: a view is one buffer.
        for piece in bytes.chunks(64 << 10) {
            self.writer.send(view(piece).await.into()).await.unwrap();
        }
    }
}

#[test]
fn row_30_a_write_behind_a_bad_pdu_in_the_same_segment_is_not_executed() {
    let rig = Rig::new(24, 1);
    rig.run(|| async {
        let options = HostOptions::new(ALICE, NQN);
        let bob = Host::connect(&addr(), &HostOptions::new(BOB, NQN), 1).await.unwrap();
        let old = fill(4096, 1);
        for block in 0..4 {
            bob.io[0].write(1, block, 1, view(&old).await).await.unwrap();
        }
        let admin = Queue::connect(&addr(), &options, 0, 0).await.unwrap();
        let mut queue = RawQueue::connect(&options, admin.cntlid()).await;
        // Such a capsule alone is executed.
        let new = fill(4096, 2);
        queue.send(&capsule(write_sqe(7, 0, 1), &new)).await;
        let answer = queue.take(24).await;
        assert_eq!((answer[0], answer[20], &answer[22..24]), (5, 7, &[0, 0][..]));
        // No type 77h; a header length that no capsule has; an answer, which only targets send.
        let bad: [[u8; 8]; 3] =
            [[0x77, 0, 8, 0, 8, 0, 0, 0], [4, 0, 71, 0, 72, 0, 0, 0], [5, 0, 24, 0, 24, 0, 0, 0]];
        for (at, header) in bad.into_iter().enumerate() {
            let block = at as u64 + 1;
            let mut bytes = header.to_vec();
            bytes.extend(capsule(write_sqe(8, block, 1), &new));
            queue.send(&bytes).await;
            let (_, answer) = until_end(&mut queue.reader).await;
            // One C2HTermReq, and not a word more.
            assert_eq!((answer[0], answer.len()), (3, usize::from(answer[4])));
            queue = RawQueue::connect(&options, admin.cntlid()).await;
            let back = bob.io[0].read(1, block, 1, Buf::alloc(4096).await).await.unwrap();
            assert!(back[..] == old[..], "the Write behind {header:x?} was executed");
        }
        let back = bob.io[0].read(1, 0, 1, Buf::alloc(4096).await).await.unwrap();
        assert!(back[..] == new[..]);
        queue.writer.shutdown();
        admin.close();
        bob.close();
    });
    rig.settle();
}

/// How a connection breaks off.
#[derive(Clone, Copy, PartialEq, Debug)]
enum End {
    Fin,
    Rst,
}

/// One connection that sends `bytes` of a Write's data, in the capsule or on request, and breaks off.
fn break_off(rig: &Rig, requested: bool, bytes: usize, end: End) {
    let (sent, ended) = (Rc::new(Cell::new(false)), Rc::new(Cell::new(false)));
    let flags = (sent.clone(), ended.clone());
    rig.client.start(vec![()], move |()| {
        let (sent, ended) = flags.clone();
        async move {
            let options = HostOptions::new(ALICE, NQN);
            let admin = Queue::connect(&addr(), &options, 0, 0).await.unwrap();
            let mut queue = RawQueue::connect(&options, admin.cntlid()).await;
            let new = fill(131072, 2);
            if requested {
                queue.send(&large_write(9, 8, 32)).await;
                let r2t = queue.take(24).await;
                assert_eq!(r2t[0], 9);
                let mut pdu = vec![6, 4, 24, 24];
                pdu.extend((24 + 131072u32).to_le_bytes());
                pdu.extend(&r2t[8..12]);
                pdu.extend(0u32.to_le_bytes());
                pdu.extend(131072u32.to_le_bytes());
                pdu.extend([0; 4]);
                pdu.extend(&new);
                queue.send(&pdu[..24 + bytes]).await;
            } else {
                let pdu = capsule(write_sqe(9, 8, 2), &new[..8192]);
                queue.send(&pdu[..72 + bytes]).await;
            }
            if end == End::Fin {
                queue.writer.shutdown();
            } else {
                // What was sent arrives before the world resets the connection.
                peristyle_rt::sleep(Duration::from_millis(10)).await;
            }
            sent.set(true);
            let (_, answer) = until_end(&mut queue.reader).await;
            assert!(answer.is_empty(), "{bytes} bytes of data and an answer: {answer:x?}");
            admin.close();
            ended.set(true);
        }
    });
    let world = rig.world.handle();
    assert!(world.run_until(|| sent.get(), Duration::from_secs(10)));
    if end == End::Rst {
        world.reset_connections(&rig.client, &rig.target);
    }
    assert!(world.run_until(|| ended.get(), Duration::from_secs(10)), "{requested} {bytes} {end:?}");
    rig.client.kill();
    rig.settle();
}

#[test]
fn row_32_a_connection_that_breaks_off_inside_a_writes_data_leaves_nothing_and_is_not_answered() {
    for end in [End::Fin, End::Rst] {
        let rig = Rig::new(25, 1);
        let old = fill(131072, 1);
        let written = old.clone();
        rig.run(move || {
            let old = written.clone();
            async move {
                let host = Host::connect(&addr(), &HostOptions::new(ALICE, NQN), 1).await.unwrap();
                host.io[0].write(1, 8, 32, view(&old).await).await.unwrap();
                host.close();
            }
        });
        rig.settle();
        // The first round takes what is kept for ever (spare headers, say).
        break_off(&rig, false, 4096, end);
        break_off(&rig, true, 4096, end);
        let before = rig.free.borrow().clone();
        for bytes in [0, 1, 4095, 4096, 8191] {
            break_off(&rig, false, bytes, end);
        }
        for bytes in [0, 1, 4096, 65535, 65536, 131071] {
            break_off(&rig, true, bytes, end);
        }
        assert_eq!(*rig.free.borrow(), before, "buffers");
        let stats = rig.stats().remove(0);
        for (name, stage) in &stats.front.stages {
            assert_eq!(stage.in_flight, 0, "{name}");
        }
        let received = &stats.front.stages.iter().find(|s| s.0 == "receive").unwrap().1;
        // Of each round the two Connects, and what the first host did; of the Writes that broke off, none.
        assert_eq!(received.completed - received.errors, 13 * 2 + 3);
        rig.run(move || {
            let old = old.clone();
            async move {
                let host = Host::connect(&addr(), &HostOptions::new(ALICE, NQN), 1).await.unwrap();
                let back = host.io[0].read(1, 8, 32, Buf::alloc(131072).await).await.unwrap();
                assert!(back[..] == old[..], "part of a Write that was given up is there");
                host.close();
            }
        });
        rig.settle();
    }
}
