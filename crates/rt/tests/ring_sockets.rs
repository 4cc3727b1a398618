//! What the ring does for sockets by itself: connections accepted, bytes received into provided buffers, and sends
//! without a copy whose buffers come back late.

use peristyle_rt::buf::free_counts;
use peristyle_rt::{
    Addr, Buf, BufConfig, Duration, IoVec, Listener, NetError, Receive, RuntimeConfig, Stream, StreamReader,
    StreamWriter, View, ZeroCopy, block_on, join_all, memory_budget, random_below, random_u64, sleep, spawn,
};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::rc::Rc;

/// Class of 64 KiB.
const CLASS: usize = 2;

fn any_port() -> Addr {
    Addr::Tcp("127.0.0.1:0".parse().expect("an address"))
}

fn tcp(addr: Addr) -> SocketAddr {
    let Addr::Tcp(addr) = addr else { unreachable!("a TCP address was asked for") };
    addr
}

fn pattern(at: u64) -> u8 {
    (at % 251) as u8
}

/// Sends the stream's next `len` bytes.
async fn give(writer: &mut StreamWriter, at: u64, len: usize) -> Result<(), NetError> {
    let mut iov = IoVec::new();
    let mut done = 0;
    while done < len {
        let mut piece = Buf::alloc((len - done).min(64 << 10)).await;
        piece.iter_mut().enumerate().for_each(|(i, b)| *b = pattern(at + (done + i) as u64));
        done += piece.len();
        iov.push(piece.freeze());
    }
    writer.send(iov).await
}

fn check(bytes: &[u8], at: u64) {
    assert!(bytes.iter().enumerate().all(|(i, &b)| b == pattern(at + i as u64)), "at {at}");
}

/// Sends pieces of random sizes, most of them small.
async fn write_randomly(mut writer: StreamWriter, total: u64) {
    let mut at = 0;
    while at < total {
        let most = [100, 5_000, 40_000, 300_000][random_below(4) as usize];
        let len = (1 + random_below(most)).min(total - at);
        give(&mut writer, at, len as usize).await.expect("sent");
        at += len;
        if random_below(4) == 0 {
            peristyle_rt::yield_now().await;
        }
    }
}

/// Takes what comes, or fills buffers of random sizes, in turns that are random too; sometimes a wait is given up.
async fn read_randomly(reader: &mut StreamReader, total: u64) {
    let (mut at, mut calm) = (0, 0);
    let mut held: Vec<(u64, View)> = Vec::new();
    while at < total {
        calm = if calm == 0 { random_below(200) } else { calm - 1 };
        if calm == 0 {
            let len = (1 + random_below(200_000)).min(total - at);
            let (result, buf) = reader.recv_exact(Buf::alloc(len as usize).await).await;
            result.expect("received");
            check(&buf, at);
            at += len;
        } else {
            let view = match random_below(8) {
                0 => match peristyle_rt::select(reader.recv(), peristyle_rt::yield_now()).await {
                    peristyle_rt::Either::Left(view) => view,
                    peristyle_rt::Either::Right(()) => continue,
                },
                _ => reader.recv().await,
            };
            let view = view.expect("received");
            assert!(!view.is_empty(), "an early end");
            held.push((at, view.clone()));
            at += view.len() as u64;
        }
        // Some are kept for a while: their buffers must not be written again.
        if held.len() > 4 {
            held.drain(..).for_each(|(at, view)| check(&view, at));
        }
    }
    held.drain(..).for_each(|(at, view)| check(&view, at));
}

async fn pair() -> (Stream, Stream) {
    let listener = Listener::bind(&any_port(), false).await.expect("a free port");
    let client = Stream::connect(&listener.local_addr()).await.expect("it listens");
    (client, listener.accept().await.expect("a connection"))
}

/// Waits until as many buffers are free as `before`, but for one.
async fn until_all_are_back(before: [usize; 6]) {
    for _ in 0..500 {
        let missing: usize = before.iter().zip(free_counts()).map(|(b, a)| b.saturating_sub(a)).sum();
        if missing <= 1 {
            return;
        }
        sleep(Duration::from_millis(10)).await;
    }
    panic!("buffers are missing: {before:?}, {:?}", free_counts());
}

#[test]
fn random_pieces_read_in_random_ways_are_the_stream_that_was_sent() {
    for receive in [Receive::Ring, Receive::Calls] {
        for zero_copy in [ZeroCopy::Never, ZeroCopy::Always(1000)] {
            // Eight writers hold up to five buffers while they take another, eight readers as many views: with fewer
            // than all of that they would wait for each other.
            let buffers = BufConfig { counts: [1024, 64, 160, 16, 16, 6], huge_pages: false };
            block_on(RuntimeConfig { receive, zero_copy, buffers, ..RuntimeConfig::default() }, async {
                const TOTAL: u64 = 16 << 20;
                let before = free_counts();
                let connections = (0..4).map(|_| async {
                    let (client, server) = pair().await;
                    let (mut there, writer) = client.split();
                    let (mut here, answer) = server.split();
                    spawn(write_randomly(writer, TOTAL));
                    spawn(async move { write_randomly(answer, TOTAL / 4).await });
                    let back = async move { read_randomly(&mut there, TOTAL / 4).await };
                    join_all([
                        Box::pin(back) as std::pin::Pin<Box<dyn Future<Output = ()>>>,
                        Box::pin(async move { read_randomly(&mut here, TOTAL).await }),
                    ])
                    .await;
                });
                join_all(connections).await;
                until_all_are_back(before).await;
            });
        }
    }
}

/// A pool whose receive ring has one buffer.
fn scarce() -> RuntimeConfig {
    let buffers = BufConfig { counts: [512, 32, 8, 0, 0, 0], huge_pages: false };
    RuntimeConfig { buffers, zero_copy: ZeroCopy::Never, ..RuntimeConfig::small() }
}

#[test]
fn a_ring_without_buffers_loses_nothing_and_goes_on_when_they_are_back() {
    block_on(scarce(), async {
        assert_eq!(memory_budget().receive, (64 << 10, 1));
        const CONNECTIONS: usize = 32;
        const BYTES: u64 = 300_000;
        let before = free_counts();
        let listener = Listener::bind(&any_port(), false).await.expect("a free port");
        let addr = tcp(listener.local_addr());
        let peer = std::thread::spawn(move || {
            let mut streams: Vec<_> =
                (0..CONNECTIONS).map(|_| TcpStream::connect(addr).expect("it listens")).collect();
            let bytes: Vec<u8> = (0..BYTES).map(pattern).collect();
            for chunk in bytes.chunks(10_000) {
                streams.iter_mut().for_each(|s| s.write_all(chunk).expect("sent"));
            }
        });
        let readers = (0..CONNECTIONS).map(|_| async {
            let (mut reader, _writer) = listener.accept().await.expect("a connection").split();
            let mut at = 0;
            loop {
                let view = reader.recv().await.expect("received");
                if view.is_empty() {
                    break;
                }
                check(&view, at);
                at += view.len() as u64;
                // Some are kept over a sleep, and the pool runs dry. (Whoever keeps them while waiting for more could
                // wait for ever.)
                if random_below(2) == 0 {
                    sleep(Duration::from_micros(random_below(300))).await;
                }
                drop(view);
            }
            assert_eq!(at, BYTES);
        });
        join_all(readers).await;
        peer.join().expect("all sent");
        until_all_are_back(before).await;
        // The ring has its buffer again, and uses it: the shared one of calls is not touched.
        let (client, server) = pair().await;
        let (mut reader, mut writer) = (server.split().0, client.split().1);
        give(&mut writer, 0, 100).await.expect("sent");
        check(&reader.recv().await.expect("received"), 0);
    });
}

#[test]
fn connections_that_say_nothing_hold_no_buffer() {
    block_on(RuntimeConfig::small(), async {
        let before = free_counts();
        let mut kept = Vec::new();
        for i in 0..200 {
            let (client, server) = pair().await;
            let ((mut client_r, mut client_w), (mut server_r, mut server_w)) =
                (client.split(), server.split());
            // Both have received by the ring, and wait for more.
            client_w.send(Buf::zeroed(100 + i).await.freeze().into()).await.expect("sent");
            assert_eq!(server_r.recv().await.expect("received").len(), 100 + i);
            server_w.send(Buf::zeroed(10).await.freeze().into()).await.expect("sent");
            assert_eq!(client_r.recv().await.expect("received").len(), 10);
            for mut reader in [client_r, server_r] {
                spawn(async move { assert!(reader.recv().await.is_ok_and(|end| end.is_empty())) });
            }
            kept.push((client_w, server_w));
        }
        sleep(Duration::from_millis(5)).await;
        let missing: usize = before.iter().zip(free_counts()).map(|(b, a)| b.saturating_sub(a)).sum();
        assert!(missing <= 1, "{before:?} {:?}", free_counts());
        kept.iter().for_each(|(w, _)| w.shutdown());
        sleep(Duration::from_millis(20)).await;
    });
}

#[test]
fn a_reader_that_does_not_read_stops_its_writer_and_nobody_else() {
    block_on(RuntimeConfig { zero_copy: ZeroCopy::Never, ..RuntimeConfig::small() }, async {
        let before = free_counts()[CLASS];
        let mut slow = Vec::new();
        for _ in 0..8 {
            let (client, server) = pair().await;
            let (mut reader, _) = server.split();
            let mut writer = client.split().1;
            give(&mut writer, 0, 10).await.expect("sent");
            check(&reader.recv().await.expect("received"), 0);
            spawn(async move {
                let chunk = Buf::zeroed(64 << 10).await.freeze();
                while writer.send(chunk.clone().into()).await.is_ok() {}
            });
            // Armed, and then nobody asks.
            peristyle_rt::select(reader.recv(), sleep(Duration::from_millis(1))).await;
            slow.push(reader);
        }
        sleep(Duration::from_millis(50)).await;
        // Views of what has arrived are kept by at most a quarter of these buffers, and the ring has refilled.
        assert!(before - free_counts()[CLASS] <= 8 + 8 + 8 + 1, "{before} {}", free_counts()[CLASS]);
        let (client, server) = pair().await;
        spawn(write_randomly(client.split().1, 4 << 20));
        read_randomly(&mut server.split().0, 4 << 20).await;
    });
}

#[test]
fn a_reader_dropped_with_data_on_its_way_gives_every_buffer_back() {
    for zero_copy in [ZeroCopy::Never, ZeroCopy::Always(1000)] {
        block_on(RuntimeConfig { zero_copy, ..RuntimeConfig::small() }, async {
            let before = free_counts();
            for round in 0..60 {
                let (client, server) = pair().await;
                let (mut reader, mut answer) = server.split();
                let mut writer = client.split().1;
                spawn(async move {
                    for _ in 0..20 {
                        if give(&mut writer, 0, 30_000).await.is_err() {
                            return;
                        }
                    }
                });
                if round % 2 == 0 {
                    reader.recv().await.expect("received");
                }
                match round % 3 {
                    // In the wait for the ring to stop, before large payload.
                    0 => {
                        let large = reader.recv_exact(Buf::alloc(1 << 20).await);
                        peristyle_rt::select(large, peristyle_rt::yield_now()).await;
                    }
                    1 => drop(peristyle_rt::select(reader.recv(), peristyle_rt::yield_now()).await),
                    _ => {}
                }
                // The writing half may live on.
                drop(reader);
                if round % 4 == 0 {
                    let _ = answer.send(Buf::zeroed(100).await.freeze().into()).await;
                }
            }
            until_all_are_back(before).await;
        });
    }
}

#[test]
fn a_reset_is_told_after_what_came_before_it() {
    block_on(RuntimeConfig::small(), async {
        let listener = Listener::bind(&any_port(), false).await.expect("a free port");
        let addr = tcp(listener.local_addr());
        let peer = std::thread::spawn(move || {
            let mut stream = TcpStream::connect(addr).expect("it listens");
            stream.write_all(&[7; 1000]).expect("sent");
            // A byte of the other side that nobody reads turns the end into a reset.
            stream.peek(&mut [0; 1]).expect("it has come");
        });
        let (mut reader, mut writer) = listener.accept().await.expect("a connection").split();
        assert_eq!(reader.recv().await.expect("received").len(), 1000);
        writer.send(Buf::zeroed(1).await.freeze().into()).await.expect("sent");
        assert_eq!(reader.recv().await.map(|v| v.len()), Err(NetError::Closed));
        assert_eq!(reader.recv().await.map(|v| v.len()), Err(NetError::Closed));
        peer.join().expect("it ended");
    });
}

#[test]
fn connections_are_accepted_in_bursts_and_those_not_taken_are_closed_with_the_listener() {
    block_on(RuntimeConfig::small(), async {
        let listener = Rc::new(Listener::bind(&any_port(), false).await.expect("a free port"));
        let addr = tcp(listener.local_addr());
        for taken in [300, 5] {
            let peer = std::thread::spawn(move || -> Vec<TcpStream> {
                (0..300).map(|_| TcpStream::connect(addr).expect("it listens")).collect()
            });
            while !peer.is_finished() {
                sleep(Duration::from_millis(1)).await;
            }
            let mut clients = peer.join().expect("all connected");
            // Two tasks share the listener.
            let other = listener.clone();
            let more = async move {
                for _ in 0..taken / 5 {
                    other.accept().await.expect("a connection");
                }
            };
            let (streams, ()) = {
                let mut streams = Vec::new();
                let mine = async {
                    for _ in 0..taken - taken / 5 {
                        streams.push(listener.accept().await.expect("a connection"));
                    }
                };
                join_all([Box::pin(mine) as std::pin::Pin<Box<dyn Future<Output = ()>>>, Box::pin(more)])
                    .await;
                (streams, ())
            };
            drop(streams);
            if taken == 5 {
                drop(listener);
                sleep(Duration::from_millis(20)).await;
                for client in &mut clients {
                    assert!(matches!(client.read(&mut [0; 1]), Ok(0) | Err(_)), "it is closed");
                }
                assert!(TcpStream::connect(addr).is_err(), "nobody listens");
                return;
            }
        }
    });
}

/// Sends to a peer that does not read leave their buffers with the kernel.
#[test]
fn buffers_sent_without_a_copy_are_kept_until_the_kernel_lets_them_go() {
    // More than the kernel takes of a connection that nobody reads.
    let buffers = BufConfig { counts: [512, 64, 512, 0, 0, 0], huge_pages: false };
    let config = RuntimeConfig { zero_copy: ZeroCopy::Always(1), buffers, ..RuntimeConfig::small() };
    block_on(config, async {
        let peer = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let addr = Addr::Tcp(peer.local_addr().expect("bound"));
        let before = free_counts();
        let (_reader, mut writer) = Stream::connect(&addr).await.expect("it listens").split();
        let (mut other, _) = peer.accept().expect("a connection");
        let mut sent = 0;
        // Until the send does not end: then it is dropped.
        while let peristyle_rt::Either::Left(result) =
            peristyle_rt::select(give(&mut writer, sent, 600_000), sleep(Duration::from_millis(100))).await
        {
            result.expect("sent");
            sent += 600_000;
        }
        assert_eq!(give(&mut writer, 0, 10).await, Err(NetError::Closed), "it stopped inside of a message");
        let held: usize = before.iter().zip(free_counts()).map(|(b, a)| b.saturating_sub(a)).sum();
        assert!(held > 1, "the kernel has none of them: {before:?} {:?}", free_counts());
        // Whoever gets buffers now gets others: what the peer reads is what was sent.
        let others: Vec<_> = std::iter::from_fn(|| Buf::try_alloc(64 << 10)).collect();
        let others = others.into_iter().map(|mut buf| buf.fill(0xFF)).count();
        assert!(others > 0);
        let reading = std::thread::spawn(move || {
            let mut at = 0;
            let mut bytes = vec![0; 100_000];
            while at < sent + 600_000 {
                let n = other.read(&mut bytes).expect("read");
                assert!(n > 0, "the end comes early, at {at}");
                check(&bytes[..n], at);
                at += n as u64;
            }
        });
        while !reading.is_finished() {
            sleep(Duration::from_millis(1)).await;
        }
        reading.join().expect("all was right");
        until_all_are_back(before).await;
    });
}

#[test]
fn a_reactor_ends_although_a_peer_never_acknowledges_what_was_sent_without_a_copy() {
    let peer = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let addr = Addr::Tcp(peer.local_addr().expect("bound"));
    let config = RuntimeConfig { zero_copy: ZeroCopy::Always(1), ..RuntimeConfig::small() };
    let started = std::time::Instant::now();
    let writer = block_on(config, async move {
        let (_reader, mut writer) = Stream::connect(&addr).await.expect("it listens").split();
        while let peristyle_rt::Either::Left(result) =
            peristyle_rt::select(give(&mut writer, 0, 600_000), sleep(Duration::from_millis(50))).await
        {
            result.expect("sent");
        }
        random_u64()
    });
    let _ = writer;
    assert!(started.elapsed().as_secs() < 5, "{:?}", started.elapsed());
    drop(peer);
}

#[test]
#[ignore = "the next test runs it in a process of its own"]
fn child_with_few_descriptors() {
    block_on(RuntimeConfig::small(), async {
        let listener = Listener::bind(&any_port(), false).await.expect("a free port");
        println!("port {}", tcp(listener.local_addr()).port());
        let used = std::fs::read_dir("/proc/self/fd").expect("listed").count() as u64;
        let limit = libc::rlimit { rlim_cur: used + 10, rlim_max: used + 10 };
        // SAFETY: reads one live rlimit.
        assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) }, 0);
        loop {
            let (mut reader, mut writer) = listener.accept().await.expect("sooner or later").split();
            spawn(async move {
                while let Ok(view) = reader.recv().await
                    && !view.is_empty()
                {
                    writer.send(view.into()).await.expect("echoed");
                }
            });
        }
    });
}

#[test]
fn a_listener_without_descriptors_waits_for_some_and_goes_on() {
    let mut child = Command::new(std::env::current_exe().expect("this program"))
        .args(["child_with_few_descriptors", "--exact", "--ignored", "--nocapture"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("started");
    let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines().map_while(Result::ok);
    let port = lines.find_map(|line| line.split_once("port ").and_then(|(_, port)| port.parse::<u16>().ok()));
    let addr = ("127.0.0.1", port.expect("it listens"));
    let mut streams: Vec<_> = (0..30).map(|_| TcpStream::connect(addr).expect("in the backlog")).collect();
    let echoes = |stream: &mut TcpStream, wait| {
        stream.set_read_timeout(Some(std::time::Duration::from_millis(wait))).expect("set");
        stream.write_all(&[7]).is_ok() && stream.read(&mut [0]).is_ok_and(|n| n == 1)
    };
    assert!(echoes(&mut streams[0], 5000) && !echoes(&mut streams[29], 200), "there is no room for the last");
    // The last one gets both echoes once the others are gone.
    let mut last = streams.pop().expect("thirty");
    drop(streams);
    assert!(echoes(&mut last, 5000));
    child.kill().expect("it still runs");
    child.wait().expect("it ended");
}
