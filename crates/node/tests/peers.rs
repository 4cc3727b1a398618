//! Nodes that serve each other columns: a shard on one of them, its columns on all, over a simulated network. Nodes are
//! killed, cut off, stopped and restarted under a host that writes and compares.

use crate::common::cluster::{Cluster, PORT, boot};
use crate::common::*;
use peristyle_base::{NodeId, ShardId, Uuid};
use peristyle_cluster::MemoryShardStore;
use peristyle_node::{Node, NodeConfig, PeerConfig, RequestCount, RequestKind, seeds};
use peristyle_rt::sim::{DiskHandle, NodeHandle};
use peristyle_rt::{Addr, Duration, Instant, Stream, join_all, timeout};
use peristyle_shard::RepairFigures;
use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;

const PIECES: u64 = 64;
/// Each write, and each read, of the host.
const PIECE: usize = 16 << 10;

#[derive(Clone)]
struct Fate {
    machine: NodeHandle,
    owner: NodeHandle,
    config: NodeConfig,
    reactors: usize,
    store: MemoryShardStore,
}

impl Fate {
    /// What happens to node `i` from within a story.
    fn of(cluster: &Cluster, i: usize) -> Fate {
        let (machine, config) = (cluster.machines[i].clone(), cluster.configs[i].clone());
        Fate {
            machine,
            owner: cluster.machines[0].clone(),
            config,
            reactors: cluster.reactors,
            store: cluster.store.clone(),
        }
    }
    fn kill(&self) {
        self.machine.kill();
    }
    fn boot(&self) {
        boot(&self.machine, &self.config, self.reactors, &self.store);
    }
    fn cut(&self, cut: bool) {
        self.machine.world().partition(&self.owner, &self.machine, cut);
    }
    /// Only what the node says is lost.
    fn mute(&self, mute: bool) {
        self.machine.world().block(&self.machine, &self.owner, mute);
    }
}

/// A host with one command at a time that knows what it has written.
#[derive(Clone, Default)]
struct Host {
    salts: Rc<RefCell<Vec<u64>>>,
    next: Rc<Cell<u64>>,
    longest: Rc<Cell<Duration>>,
}

impl Host {
    /// Writes and compares for so long.
    async fn work(&self, volume: &TestVolume, time: Duration) {
        let end = peristyle_rt::now().0 + time.as_nanos() as u64;
        self.salts.borrow_mut().resize(PIECES as usize, 0);
        self.longest.set(Duration::ZERO);
        while peristyle_rt::now() < Instant(end) {
            let (salt, started) = (self.next.get() + 1, peristyle_rt::now());
            self.next.set(salt);
            let at = salt * 31 % PIECES;
            write(volume, at * PIECE as u64, &fill(PIECE, salt)).await.expect("a write");
            self.salts.borrow_mut()[at as usize] = salt;
            self.compare(volume, salt * 17 % PIECES).await;
            self.longest.set(self.longest.get().max(peristyle_rt::now().since(started)));
            peristyle_rt::sleep(Duration::from_millis(1)).await;
        }
    }

    async fn compare(&self, volume: &TestVolume, at: u64) {
        let salt = self.salts.borrow()[at as usize];
        let data = read(volume, at * PIECE as u64, PIECE as u64).await.expect("a read");
        let expected = if salt == 0 { vec![0; PIECE] } else { fill(PIECE, salt) };
        assert!(data == expected, "piece {at} is not what was written last");
    }

    async fn compare_all(&self, volume: &TestVolume) {
        for at in 0..PIECES {
            self.compare(volume, at).await;
        }
    }
}

fn figures(node: &TestNode) -> RepairFigures {
    node.shard(ShardId(0)).unwrap().repair_figures(peristyle_rt::now())
}

/// Waits until no column is missing.
async fn whole_again(node: &TestNode) {
    for _ in 0..1200 {
        peristyle_rt::sleep(Duration::from_millis(250)).await;
        let now = figures(node);
        if now.lost_columns + now.away_columns == 0 && now.working_ns == 0 {
            return;
        }
    }
    panic!("never whole again: {:?}", figures(node));
}

#[test]
fn a_shard_writes_and_reads_columns_of_other_nodes_and_they_outlive_every_process() {
    for (nodes, scheme, reactors) in [(2, "1+1", 1), (3, "1+2", 2), (6, "4+2", 1), (4, "2+1", 2)] {
        let cluster = Cluster::new(nodes as u64, scheme, nodes, reactors);
        let host = Host::default();
        for _ in 0..2 {
            let known = host.clone();
            cluster.run(move |node, volume| {
                let host = known.clone();
                async move {
                    assert_eq!(node.peers().states().len(), nodes - 1);
                    host.salts.borrow_mut().resize(PIECES as usize, 0);
                    host.compare_all(&volume).await;
                    host.work(&volume, Duration::from_millis(500)).await;
                    host.compare_all(&volume).await;
                }
            });
            cluster.machines.iter().for_each(NodeHandle::kill);
        }
        let used = |disk: &DiskHandle| disk.stats().writes > 100;
        assert!(cluster.disks.iter().all(used), "{scheme}: every node has columns");
    }
}

/// Restarted at another port: the owner, which was told, finds it and its columns there.
/// Heads of the protocol: of an append with its rows' checksums, of a read, of an answer.
const APPEND_HEAD: u64 = 84;
const READ_HEAD: u64 = 84;
const ANSWER_HEAD: u64 = 24;

#[test]
fn every_message_between_nodes_is_counted_once_with_its_bytes_and_by_kind() {
    let cluster = Cluster::new(9, "1+1", 2, 2);
    cluster.run(|node, volume| async move {
        // One that makes extents, and has connections come about.
        write(&volume, 0, &fill(4096, 0)).await.unwrap();
        let counts = || async {
            let all = node.all_stats().await;
            let of = |kind: RequestKind| {
                let mut sum = RequestCount::default();
                all.iter().for_each(|reactor| sum.add(&reactor.traffic[kind as usize]));
                sum
            };
            let [append, read, ping] =
                [RequestKind::AppendUser, RequestKind::Read, RequestKind::Ping].map(of);
            (append, read, ping, all.iter().map(|reactor| reactor.legs.clone()).collect::<Vec<_>>())
        };
        let before = counts().await;
        for i in 0..40 {
            write(&volume, i * 4096, &fill(4096, i)).await.unwrap();
        }
        let (append, ..) = counts().await;
        // A mirror has one of its two copies on the other node: a frame's header and its block, and a checksum of each.
        assert_eq!(append.requests - before.0.requests, 40);
        assert_eq!(append.answers - before.0.answers, 40);
        assert_eq!(append.request_bytes - before.0.request_bytes, 40 * (2 * 4096 + APPEND_HEAD + 2 * 4));
        assert_eq!(append.answer_bytes - before.0.answer_bytes, 40 * ANSWER_HEAD);
        for i in 0..40 {
            assert!(read(&volume, i * 4096, 4096).await.unwrap() == fill(4096, i));
        }
        let (_, reads, ping, legs) = counts().await;
        let asked = reads.requests - before.1.requests;
        let leg: u64 = legs.iter().flatten().map(|leg| leg.read.completed).sum();
        assert!((1..=40).contains(&asked), "{asked} of 40 blocks lie on the other node");
        assert_eq!((leg, reads.answers), (reads.requests, reads.requests));
        assert_eq!(reads.request_bytes, reads.requests * READ_HEAD);
        assert_eq!(reads.answer_bytes, reads.answers * (4096 + ANSWER_HEAD));
        assert!(ping.requests > 0 && ping.answers > 0, "{ping:?}");
    });
}

#[test]
fn a_node_that_comes_back_at_another_address_serves_its_columns_there() {
    for reactors in [1, 2] {
        let cluster = Cluster::new(14, "1+1", 3, reactors);
        let mut moved = Fate::of(&cluster, 1);
        let addr = SocketAddr::from(([10, 0, 0, 2], PORT + 100));
        moved.config.peers.listen = Some(addr);
        let moved = Rc::new(moved);
        // As the first reactor hears from the node; its shard may be on another.
        let lacks = |node: &TestNode| {
            let device = node.devices().get(device_id(1)).unwrap();
            !device.is_open() || device.is_bad()
        };
        cluster.run(move |node, volume| {
            let moved = moved.clone();
            async move {
                let host = Host::default();
                host.work(&volume, Duration::from_millis(300)).await;
                moved.kill();
                peristyle_rt::sleep(Duration::from_secs(1)).await;
                moved.boot();
                peristyle_rt::sleep(Duration::from_secs(2)).await;
                assert!(lacks(&node), "nobody has said where it is");
                node.add_peer(PeerConfig { node: NodeId(2), addr, is_member: true });
                peristyle_rt::sleep(Duration::from_secs(3)).await;
                assert!(!lacks(&node));
                host.work(&volume, Duration::from_millis(300)).await;
                host.compare_all(&volume).await;
                // It leaves, and comes again.
                node.remove_peer(NodeId(2));
                assert_eq!((node.peer_nodes(), node.leaving_peers()), (vec![NodeId(3)], vec![NodeId(2)]));
                peristyle_rt::sleep(Duration::from_secs(1)).await;
                assert!(lacks(&node), "its devices are away");
                node.forget_peer(NodeId(2));
                node.add_peer(PeerConfig { node: NodeId(2), addr, is_member: true });
                assert_eq!((node.peer_nodes(), node.leaving_peers()), (vec![NodeId(2), NodeId(3)], vec![]));
                peristyle_rt::sleep(Duration::from_secs(3)).await;
                assert!(!lacks(&node));
                host.compare_all(&volume).await;
            }
        });
    }
}

#[test]
fn up_to_m_nodes_are_killed_at_a_time_and_no_command_fails() {
    let cluster = Cluster::new(11, "4+2", 7, 1);
    let fates: Vec<_> = (0..7).map(|i| Fate::of(&cluster, i)).collect();
    cluster.run(move |node, volume| {
        let fates = fates.clone();
        async move {
            let host = Host::default();
            host.work(&volume, Duration::from_secs(1)).await;
            for (a, b) in [(1, 2), (3, 6), (4, 5)] {
                fates[a].kill();
                fates[b].kill();
                host.work(&volume, Duration::from_secs(2)).await;
                // A node that has died is found out by a refused connection, or within a ping's time.
                assert!(host.longest.get() < Duration::from_secs(1), "{:?}", host.longest.get());
                host.compare_all(&volume).await;
                fates[a].boot();
                fates[b].boot();
                host.work(&volume, Duration::from_secs(1)).await;
                whole_again(&node).await;
                host.compare_all(&volume).await;
            }
        }
    });
}

#[test]
fn a_node_that_does_not_come_back_is_rebuilt_on_the_others_and_its_return_does_no_harm() {
    let cluster = Cluster::new(12, "2+1", 5, 1);
    let fate = Fate::of(&cluster, 3);
    cluster.run(move |node, volume| {
        let fate = fate.clone();
        async move {
            let host = Host::default();
            host.work(&volume, Duration::from_secs(2)).await;
            fate.kill();
            host.work(&volume, Duration::from_secs(6)).await;
            whole_again(&node).await;
            assert!(figures(&node).remade_columns > 0);
            // Now another may go at once: nothing was left on one copy.
            fate.boot();
            host.work(&volume, Duration::from_secs(3)).await;
            whole_again(&node).await;
            host.compare_all(&volume).await;
        }
    });
}

#[test]
fn nodes_that_are_cut_off_or_not_heard_cost_a_moment_and_nothing_is_lost() {
    let cluster = Cluster::new(13, "2+2", 5, 1);
    let fates: Vec<_> = (0..5).map(|i| Fate::of(&cluster, i)).collect();
    cluster.run(move |node, volume| {
        let fates = fates.clone();
        async move {
            let host = Host::default();
            host.work(&volume, Duration::from_secs(1)).await;
            for round in 0..4 {
                let (a, b) = (&fates[1 + round % 4], &fates[1 + (round + 2) % 4]);
                a.cut(true);
                b.mute(true);
                host.work(&volume, Duration::from_secs(2)).await;
                assert!(host.longest.get() < Duration::from_secs(1), "{:?}", host.longest.get());
                a.cut(false);
                b.mute(false);
                host.work(&volume, Duration::from_secs(1)).await;
                whole_again(&node).await;
                host.compare_all(&volume).await;
            }
        }
    });
}

#[test]
fn every_node_restarts_in_turn_faster_than_anybody_looks_and_every_extent_can_still_be_sealed() {
    let cluster = Cluster::new(14, "2+1", 4, 1);
    let fates: Vec<_> = (0..4).map(|i| Fate::of(&cluster, i)).collect();
    cluster.run(move |node, volume| {
        let fates = fates.clone();
        async move {
            let host = Host::default();
            host.work(&volume, Duration::from_millis(500)).await;
            for fate in &fates[1..] {
                // Nothing is in flight: nobody notices by a failed append.
                fate.kill();
                peristyle_rt::sleep(Duration::from_millis(20)).await;
                fate.boot();
                peristyle_rt::sleep(Duration::from_secs(4)).await;
            }
            // What knows checksums of rows that a process before it took is sealed now, or never.
            for _ in 0..3 {
                host.work(&volume, Duration::from_secs(5)).await;
                node.shard(ShardId(0)).unwrap().checkpoint().await.unwrap();
            }
            whole_again(&node).await;
            host.compare_all(&volume).await;
            let space = node.shard(ShardId(0)).unwrap().stats_snapshot(peristyle_rt::now()).space;
            assert_eq!(space.extents[2], [0; 3], "closed, and never sealed");
        }
    });
}

#[test]
fn all_nodes_are_killed_at_once_under_load_and_what_was_acknowledged_is_there() {
    let cluster = Cluster::new(15, "2+1", 4, 2);
    let host = Host::default();
    for round in 0..4 {
        let known = host.clone();
        cluster.run(move |_, volume| {
            let host = known.clone();
            async move {
                host.salts.borrow_mut().resize(PIECES as usize, 0);
                host.compare_all(&volume).await;
                host.work(&volume, Duration::from_millis(300 + 77 * round)).await;
            }
        });
        cluster.machines.iter().for_each(NodeHandle::kill);
    }
}

#[test]
fn a_node_of_another_cluster_is_not_spoken_to() {
    let mut cluster = Cluster::new(16, "1+1", 2, 1);
    cluster.configs[1].cluster = Uuid::from_random([8; 16]);
    let config = cluster.configs[1].clone();
    run_story(&cluster.world, &cluster.machines[1], vec![config], format);
    cluster.machines[1].kill();
    cluster.boot(1);
    let seen = Rc::new(RefCell::new(String::new()));
    let told = seen.clone();
    cluster.machines[0].start(seeds(&cluster.configs[0], 1, &cluster.store), move |seed| {
        let told = told.clone();
        async move {
            let node = Node::start(seed, false).await;
            peristyle_rt::sleep(Duration::from_secs(2)).await;
            assert!(!node.is_ready());
            *told.borrow_mut() = node.peers().states()[0].1.to_string();
        }
    });
    cluster.world.handle().run_until(|| !seen.borrow().is_empty(), Duration::from_secs(10));
    assert!(seen.borrow().contains("another cluster"), "{}", seen.borrow());
}

/// Sends bytes to a node's peer port; says whether the node has ended the connection in five seconds.
async fn is_cut_off(bytes: &[u8]) -> bool {
    let addr = Addr::Tcp(SocketAddr::from(([10, 0, 0, 1], PORT)));
    let (mut reader, mut writer) = Stream::connect(&addr).await.unwrap().split();
    if !bytes.is_empty() {
        writer.send(view(bytes).await.into()).await.unwrap();
    }
    let end = async { while reader.recv().await.is_ok_and(|view| !view.is_empty()) {} };
    timeout(Duration::from_secs(5), end).await.is_some()
}

#[test]
fn strangers_at_the_peer_port_are_cut_off_and_others_are_served_all_the_same() {
    let cluster = Cluster::new(17, "1+1", 2, 1);
    let stranger = cluster.world.handle().add_node([10, 0, 9, 9].into());
    cluster.run(move |_, volume| {
        let stranger = stranger.clone();
        async move {
            let done = Rc::new(Cell::new(false));
            let flag = done.clone();
            stranger.start(vec![()], move |()| {
                let flag = flag.clone();
                async move {
                    assert!(is_cut_off(&[]).await, "silence");
                    assert!(is_cut_off(&[7; 100]).await, "noise");
                    assert!(is_cut_off(b"GET / HTTP/1.1\r\n\r\n").await, "another protocol");
                    // More connections than are taken: the silent ones go, and make room again.
                    let many = join_all((0..80).map(|_| is_cut_off(&[]))).await;
                    assert!(many.into_iter().all(|cut| cut));
                    flag.set(true);
                }
            });
            let host = Host::default();
            while !done.get() {
                host.work(&volume, Duration::from_millis(100)).await;
            }
            host.compare_all(&volume).await;
        }
    });
}
