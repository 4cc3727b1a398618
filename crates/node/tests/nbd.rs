//! Volumes over NBD, from negotiation to the end of the connection, in simulation.

use crate::common::nbd::Client;
use crate::common::{MIB, Rig, TestNode, fill, spec};
use peristyle_nbd::testing::go_data;
use peristyle_nbd::wire::{cmd, cmd_flags, opt, rep};
use peristyle_node::{NbdConfig, VolumeSpec};
use peristyle_rt::{Addr, Duration};

/// Runs a story against a node that listens and exports the volume; then everything is given back.
fn with_server<F, Fut>(seed: u64, reactors: usize, story: F)
where
    F: Fn(TestNode, Addr) -> Fut + Clone + 'static,
    Fut: Future<Output = ()> + 'static,
{
    Rig::new(seed, "2+1", 4, reactors).run(move |node, _| {
        let story = story.clone();
        async move {
            node.set_exports([spec()]);
            let config = NbdConfig::new(vec![Addr::Tcp("10.0.0.1:10809".parse().unwrap())]);
            let addr = node.start_nbd(config).await.unwrap().remove(0);
            story(node.clone(), addr).await;
            node.stop_nbd().await;
            assert_eq!(node.nbd.connections(), 0);
            let front = node.reactor_stats().front;
            assert_eq!(front.connections, 0);
            assert!(front.stages.iter().all(|(_, stage)| stage.in_flight == 0));
        }
    });
}

/// Buffers come back when what the shard does in the background has ended too.
async fn settled() -> usize {
    peristyle_rt::sleep(Duration::from_secs(3)).await;
    let classes = peristyle_rt::buf::free_counts().into_iter().zip(peristyle_rt::buf::CLASS_BYTES);
    classes.map(|(count, bytes)| count * bytes).sum()
}

#[test]
fn what_a_client_writes_it_reads_back() {
    for reactors in [1, 2] {
        with_server(21, reactors, |_, addr| async move {
            let (mut client, bytes) = Client::open(&addr, "v1").await;
            assert_eq!(bytes, 64 * MIB);
            for (i, len) in
                [512, 4096, 12288, 65536, 524288, 1536 * 1024, 1536 * 1024 + 512].into_iter().enumerate()
            {
                let offset = i as u64 * 4 * MIB + 512;
                assert_eq!(client.write(offset, &fill(len, i as u64)).await, 0);
                assert!(client.read(offset, len as u32).await.unwrap() == fill(len, i as u64), "{len} bytes");
            }
            assert_eq!(client.run(cmd::FLUSH, 0, 0, &[]).await, 0);
            assert_eq!(client.read(60 * MIB, 8192).await.unwrap(), vec![0; 8192]);
        });
    }
}

#[test]
fn trimmed_and_zeroed_ranges_read_as_zeros() {
    with_server(22, 1, |_, addr| async move {
        let (mut client, _) = Client::open(&addr, "").await;
        let data = fill(64 * 1024, 3);
        assert_eq!(client.write(0, &data).await, 0);
        assert_eq!(client.run(cmd::TRIM, 4096, 8192, &[]).await, 0);
        assert_eq!(client.run(cmd::WRITE_ZEROES, 20480 + 512, 1024, &[]).await, 0);
        assert_eq!(client.run(cmd::WRITE_ZEROES, 32 * MIB, 32 * MIB as u32, &[]).await, 0);
        let mut expect = data;
        expect[4096..12288].fill(0);
        expect[20992..22016].fill(0);
        assert!(client.read(0, 64 * 1024).await.unwrap() == expect);
    });
}

const DATA: u32 = 0;
const HOLE: u32 = 3; // a hole that reads as zeros

#[test]
fn block_status_tells_what_holds_data_wherever_the_shard_lives() {
    for reactors in [1, 2] {
        with_server(31, reactors, |_, addr| async move {
            let mut client = Client::open_with_status(&addr, "v1").await;
            let all = 64 * MIB as u32;
            assert_eq!(client.status(0, 0, all).await.unwrap(), [(all, HOLE)]);
            assert_eq!(client.write(4096, &fill(3 * 4096, 1)).await, 0);
            assert_eq!(client.write(33 * MIB, &fill(512, 2)).await, 0);
            let behind = 33 * MIB as u32 + 4096;
            let written = [
                (4096, HOLE),
                (3 * 4096, DATA),
                (33 * MIB as u32 - 4 * 4096, HOLE),
                (4096, DATA),
                (all - behind, HOLE),
            ];
            assert_eq!(client.status(0, 0, all).await.unwrap(), written);
            // What was trimmed or zeroed holds nothing any more.
            assert_eq!(client.run(cmd::TRIM, 8192, 4096, &[]).await, 0);
            assert_eq!(client.run(cmd::WRITE_ZEROES, 33 * MIB, 8192, &[]).await, 0);
            let trimmed = [(4096, HOLE), (4096, DATA), (4096, HOLE), (4096, DATA), (all - 16384, HOLE)];
            assert_eq!(client.status(0, 0, all).await.unwrap(), trimmed);
            // From the middle of a block, to the middle of one; and one extent where one will do.
            let part = client.status(0, 4096 + 512, 8192).await.unwrap();
            assert_eq!(part, [(3584, DATA), (4096, HOLE), (512, DATA)]);
            assert_eq!(client.status(cmd_flags::REQ_ONE, 512, 8192).await.unwrap(), [(3584, HOLE)]);
            assert_eq!(client.status(0, 64 * MIB - 512, 512).await.unwrap(), [(512, HOLE)]);
            assert_eq!(client.status(0, 64 * MIB, 512).await, Err(22)); // EINVAL
        });
    }
}

#[test]
fn a_block_status_of_many_pieces_tells_the_first_and_the_client_asks_again() {
    with_server(32, 1, |_, addr| async move {
        let mut client = Client::open_with_status(&addr, "v1").await;
        for i in 0..40u64 {
            assert_eq!(client.write(i * 8192, &fill(4096, i)).await, 0);
        }
        let mut at = 0;
        let mut extents = Vec::new();
        while at < 40 * 8192 {
            let more = client.status(0, at, (40 * 8192 - at) as u32).await.unwrap();
            assert!((1..=16).contains(&more.len()));
            at += more.iter().map(|e| u64::from(e.0)).sum::<u64>();
            extents.extend(more);
        }
        assert_eq!(extents.len(), 80);
        assert!(extents.iter().enumerate().all(|(i, e)| *e == (4096, [DATA, HOLE][i % 2])));
    });
}

#[test]
fn many_requests_in_flight_are_all_answered() {
    with_server(23, 2, |node, addr| async move {
        let (mut client, _) = Client::open(&addr, "v1").await;
        for i in 0..200u64 {
            client.ask(cmd::WRITE, i, i * 8192, 8192, &fill(8192, i)).await;
        }
        let mut seen = [false; 200];
        for _ in 0..200 {
            let (cookie, error) = client.reply().await.unwrap();
            assert!(error == 0 && !std::mem::replace(&mut seen[cookie as usize], true));
        }
        for i in 0..200u64 {
            client.ask(cmd::READ, i, i * 8192, 8192, &[]).await;
        }
        for _ in 0..200 {
            let (cookie, error) = client.reply().await.unwrap();
            assert!(error == 0 && client.take(8192).await.unwrap() == fill(8192, cookie));
        }
        let stats = node.reactor_stats();
        assert_eq!((stats.front.read_bytes, stats.front.write_bytes), (200 * 8192, 200 * 8192));
        let volume = &stats.volumes[&1];
        assert_eq!((volume.read.completed, volume.write.completed), (200, 200));
    });
}

#[test]
fn more_than_all_buffers_in_flight_is_served_in_turn() {
    with_server(30, 1, |_, addr| async move {
        let mut clients = Vec::new();
        for _ in 0..4 {
            clients.push(Client::open(&addr, "v1").await.0);
        }
        for (kind, len) in [(cmd::WRITE, 256 * 1024), (cmd::READ, 256 * 1024), (cmd::READ, 2 << 20)] {
            let tasks =
                std::mem::take(&mut clients).into_iter().enumerate().map(|(n, mut client)| async move {
                    let base = n as u64 * 16 * MIB;
                    let count = 16 * MIB / len as u64;
                    for i in 0..count {
                        let data = if kind == cmd::WRITE { fill(len, base + i) } else { Vec::new() };
                        client.ask(kind, i, base + i * len as u64, len as u32, &data).await;
                    }
                    for _ in 0..count {
                        assert_eq!(client.reply().await.unwrap().1, 0);
                        if kind == cmd::READ {
                            client.take(len).await.unwrap();
                        }
                    }
                    client
                });
            clients = peristyle_rt::join_all(tasks).await;
        }
    });
}

#[test]
fn requests_outside_of_the_export_or_of_its_blocks_are_refused_and_the_next_is_served() {
    with_server(24, 1, |_, addr| async move {
        let (mut client, _) = Client::open(&addr, "v1").await;
        assert_eq!(client.write(64 * MIB, &fill(512, 1)).await, 28); // ENOSPC
        assert_eq!(client.read(64 * MIB - 512, 1024).await, Err(22)); // EINVAL
        assert_eq!(client.read(100, 512).await, Err(22));
        assert_eq!(client.run(99, 0, 512, &[]).await, 22);
        assert_eq!(client.write(0, &fill(512, 1)).await, 0);
    });
}

#[test]
fn an_unknown_export_is_refused_and_a_known_one_may_follow() {
    with_server(25, 1, |_, addr| async move {
        let mut client = Client::connect(&addr).await;
        client.send(&3u32.to_be_bytes()).await;
        assert_eq!(client.say(opt::GO, &go_data("nobody", &[])).await.0, rep::ERR_UNKNOWN);
        let (kind, listed) = client.say(opt::LIST, &[]).await;
        assert_eq!((kind, &listed[4..]), (rep::SERVER, &b"v1"[..]));
        assert_eq!(client.option_reply().await.0, rep::ACK);
        assert_eq!(client.say(opt::GO, &go_data("v1", &[])).await.0, rep::INFO);
    });
}

#[test]
fn clients_that_vanish_in_the_middle_leave_no_buffer_behind() {
    with_server(26, 1, |node, addr| async move {
        assert_eq!(Client::open(&addr, "v1").await.0.write(0, &fill(4096, 1)).await, 0);
        let before = settled().await;
        for cut in [0, 1, 100, 20_000, 70_000, 300_000, 600_000] {
            let (mut client, _) = Client::open(&addr, "v1").await;
            for i in 0..8 {
                client.ask(cmd::READ, i, i * MIB, 256 * 1024, &[]).await;
                client.ask(cmd::WRITE, 10 + i, 16 * MIB, 4096, &fill(4096, i)).await;
            }
            client.ask(cmd::WRITE, 99, 0, MIB as u32, &fill(cut, 1)).await;
            drop(client);
        }
        let after = settled().await;
        assert_eq!(node.nbd.connections(), 0);
        assert!(after >= before, "{} bytes of buffers are gone", before - after);
    });
}

#[test]
fn a_stop_answers_what_is_in_flight_and_closes() {
    with_server(27, 1, |node, addr| async move {
        let (mut client, _) = Client::open(&addr, "v1").await;
        client.ask(cmd::WRITE, 5, 0, 65536, &fill(65536, 5)).await;
        // Half of a second write stands in the socket: it is not answered.
        client.ask(cmd::WRITE, 6, MIB, 65536, &fill(1000, 6)).await;
        while node.stats.borrow().write_total.snapshot(peristyle_rt::now()).in_flight == 0 {
            peristyle_rt::sleep(Duration::from_micros(5)).await;
        }
        node.stop_nbd().await;
        assert_eq!(client.reply().await, Some((5, 0)));
        assert_eq!(client.reply().await, None);
    });
}

#[test]
fn a_volume_that_is_removed_takes_its_connections_along() {
    with_server(28, 1, |node, addr| async move {
        let other = VolumeSpec { name: "w".into(), nsid: 2, ..spec() };
        node.set_exports([spec(), other.clone()]);
        let (mut gone, _) = Client::open(&addr, "v1").await;
        let (mut stays, _) = Client::open(&addr, "w").await;
        node.set_exports([other]);
        assert_eq!(gone.reply().await, None);
        assert_eq!(stays.write(0, &fill(4096, 1)).await, 0);
        let (_, bytes) = Client::open(&addr, "").await;
        assert_eq!(bytes, 64 * MIB);
    });
}

#[test]
fn connections_above_the_limit_and_silent_ones_are_closed() {
    Rig::new(29, "2+1", 4, 1).run(|node, _| async move {
        node.set_exports([spec()]);
        let listen = vec![Addr::Tcp("10.0.0.1:10809".parse().unwrap())];
        let config = NbdConfig { connections_max: 2, ..NbdConfig::new(listen.clone()) };
        node.start_nbd(config).await.unwrap();
        let (mut first, _) = Client::open(&listen[0], "v1").await;
        let mut silent = Client::connect(&listen[0]).await;
        let (mut reader, _writer) = peristyle_rt::Stream::connect(&listen[0]).await.unwrap().split();
        assert!(reader.recv().await.map_or(true, |view| view.is_empty()), "a third is closed");
        // Negotiation has a time limit, an open export has none.
        assert_eq!(silent.take(1).await, None);
        assert_eq!(first.write(0, &fill(512, 1)).await, 0);
        node.stop_nbd().await;
    });
}
