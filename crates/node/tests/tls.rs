//! Nodes that speak TLS with each other, over a simulated network: who is let in, and that nothing else changes.

use crate::common::cluster::{Cluster, PORT};
use crate::common::*;
use peristyle_base::{NodeId, Secret};
use peristyle_node::{Security, Tls};
use peristyle_rt::sim::NodeHandle;
use peristyle_rt::{Addr, Buf, Duration, IoVec, Stream, timeout};
use std::rc::Rc;
use std::sync::Arc;

const SECRET: u8 = 1;

fn tls(cluster: &Cluster, secret: u8, node: u32) -> Arc<Tls> {
    let uuid = cluster.configs[0].cluster;
    Arc::new(Tls::new(&Secret([secret; 32]), uuid, NodeId(node)).unwrap())
}

/// All nodes speak TLS, each as what it is.
fn secure(cluster: &mut Cluster) {
    for i in 0..cluster.configs.len() {
        let tls = tls(cluster, SECRET, i as u32 + 1);
        cluster.configs[i].peers.security = Security::Tls(tls);
    }
}

/// Writes pieces of these sizes and compares them.
async fn use_it(volume: &TestVolume, salt: u64) {
    let sizes = [4096, 8192, 16 << 10, 20 << 10, 64 << 10, 256 << 10, 512 << 10];
    for (i, size) in (0u64..).zip(sizes) {
        let at = i * (1 << 20);
        write(volume, at, &fill(size, salt + i)).await.expect("a write");
        assert!(read(volume, at, size as u64).await.expect("a read") == fill(size, salt + i), "{size}");
    }
}

#[test]
fn a_shard_writes_and_reads_columns_over_tls_and_they_outlive_every_process() {
    for (nodes, scheme, reactors) in [(2, "1+1", 1), (3, "1+2", 2), (6, "4+2", 1)] {
        let mut cluster = Cluster::new(40 + nodes as u64, scheme, nodes, reactors);
        secure(&mut cluster);
        for round in 0..2 {
            cluster.run(move |node, volume| async move {
                use_it(&volume, round * 100).await;
                for (peer, state) in node.peers().states() {
                    assert_eq!(state.to_string(), "up", "node {peer}");
                }
            });
            cluster.machines.iter().for_each(NodeHandle::kill);
        }
    }
}

/// What the owner thinks of the second of two nodes, which is as `make` says.
fn state_with(make: impl Fn(&Cluster) -> [Security; 2]) -> String {
    let mut cluster = Cluster::new(50, "1+1", 3, 1);
    secure(&mut cluster);
    let [mine, its] = make(&cluster);
    cluster.configs[0].peers.security = mine.clone();
    cluster.configs[1].peers.security = its;
    // The third one goes along with the owner, which so can serve.
    cluster.configs[2].peers.security = match mine {
        Security::Tls(_) => Security::Tls(tls(&cluster, SECRET, 3)),
        Security::Either(_) | Security::Plain => Security::Plain,
    };
    let told = Rc::new(std::cell::RefCell::new(String::new()));
    let tell = told.clone();
    cluster.run(move |node, volume| {
        let tell = tell.clone();
        async move {
            // Something is asked of all of them, whoever answers.
            timeout(Duration::from_secs(5), write(&volume, 0, &fill(4096, 1))).await;
            let states = node.peers().states();
            *tell.borrow_mut() = states.iter().find(|s| s.0 == NodeId(2)).unwrap().1.to_string();
        }
    });
    told.take()
}

#[test]
fn who_has_another_secret_or_is_another_node_than_it_says_is_not_let_in() {
    let mine = |c: &Cluster| Security::Tls(tls(c, SECRET, 1));
    let not_secured = "no TLS with it: it uses none, or its token has another secret";
    assert_eq!(state_with(|c| [mine(c), Security::Tls(tls(c, SECRET, 2))]), "up");
    assert_eq!(state_with(|c| [mine(c), Security::Tls(tls(c, 2, 2))]), not_secured);
    assert_eq!(state_with(|c| [mine(c), Security::Tls(tls(c, SECRET, 3))]), not_secured);
    assert_eq!(state_with(|c| [mine(c), Security::Plain]), not_secured);
    // The server asks as well: this one has a good certificate, of another node than it says.
    let impostor = |c: &Cluster| Security::Either(tls(c, SECRET, 3));
    let state = state_with(|c| [impostor(c), Security::Tls(tls(c, SECRET, 2))]);
    assert!([not_secured, "the connection was lost"].contains(&&*state), "{state}");
    let plain = state_with(|c| [Security::Plain, Security::Tls(tls(c, SECRET, 2))]);
    assert_eq!(plain, "the connection was lost");
}

#[test]
fn on_the_way_to_tls_either_is_spoken_with_either() {
    let either = |c: &Cluster, secret, node| Security::Either(tls(c, secret, node));
    let up = [
        state_with(|c| [either(c, SECRET, 1), Security::Plain]),
        state_with(|c| [either(c, SECRET, 1), Security::Tls(tls(c, SECRET, 2))]),
        state_with(|c| [either(c, SECRET, 1), either(c, SECRET, 2)]),
        state_with(|c| [either(c, SECRET, 1), either(c, 2, 2)]),
        state_with(|c| [Security::Plain, either(c, SECRET, 2)]),
        state_with(|c| [Security::Tls(tls(c, SECRET, 1)), either(c, SECRET, 2)]),
    ];
    assert_eq!(up, ["up"; 6]);
}

#[test]
fn whoever_sends_something_else_or_nothing_is_cut_off_and_the_others_are_served() {
    let mut cluster = Cluster::new(60, "1+1", 2, 1);
    secure(&mut cluster);
    let stranger = cluster.world.handle().add_node([10, 0, 0, 99].into());
    cluster.boot(1);
    let done = Rc::new(std::cell::Cell::new(0));
    let count = done.clone();
    stranger.start(vec![()], move |()| {
        let count = count.clone();
        async move {
            // A Hello of the peer protocol, a handshake record that never ends, nothing.
            for bytes in [vec![1; 300], [vec![22, 3, 1, 0x40, 0], vec![0; 2000]].concat(), vec![]] {
                let addr = Addr::Tcp(([10, 0, 0, 2], PORT).into());
                let stream = loop {
                    match Stream::connect(&addr).await {
                        Ok(stream) => break stream,
                        Err(_) => peristyle_rt::sleep(Duration::from_millis(10)).await, // it starts
                    }
                };
                let (mut reader, mut writer) = stream.split();
                if !bytes.is_empty() {
                    let mut buf = Buf::alloc(bytes.len()).await;
                    buf.copy_from_slice(&bytes);
                    writer.send(IoVec::from(buf.freeze())).await.unwrap();
                }
                let end = async { while reader.recv().await.is_ok_and(|view| !view.is_empty()) {} };
                timeout(Duration::from_secs(5), end).await.expect("it is cut off");
                count.set(count.get() + 1);
            }
        }
    });
    cluster.run(move |_, volume| {
        let done = done.clone();
        async move {
            while done.get() < 3 {
                use_it(&volume, done.get()).await;
                peristyle_rt::sleep(Duration::from_millis(100)).await;
            }
        }
    });
}
