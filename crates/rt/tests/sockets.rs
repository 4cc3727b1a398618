//! Sockets over loopback on io_uring reactors.

use peristyle_rt::{
    Addr, Buf, Duration, IoVec, Listener, NetError, Receive, RuntimeConfig, Stream, StreamReader,
    StreamWriter, ZeroCopy, block_on, sleep, spawn,
};

/// Runs a test in every way in which sockets receive and send.
fn in_each_way<F: Future<Output = ()> + 'static>(test: impl Fn() -> F) {
    for receive in [Receive::Ring, Receive::Calls] {
        for zero_copy in [ZeroCopy::Never, ZeroCopy::From(4096), ZeroCopy::Always(1)] {
            block_on(RuntimeConfig { receive, zero_copy, ..RuntimeConfig::small() }, test());
        }
    }
}

fn any_port() -> Addr {
    Addr::Tcp("127.0.0.1:0".parse().expect("an address"))
}

/// The byte at a position of the test stream: 251 is prime, so that no shift by a buffer's size goes unseen.
fn pattern(at: usize) -> u8 {
    (at % 251) as u8
}

async fn pair() -> ((StreamReader, StreamWriter), (StreamReader, StreamWriter)) {
    let listener = Listener::bind(&any_port(), false).await.expect("a free port");
    let client = Stream::connect(&listener.local_addr()).await.expect("it listens");
    let server = listener.accept().await.expect("a connection");
    (client.split(), server.split())
}

fn bytes_of(from: usize, len: usize) -> IoVec {
    let mut iov = IoVec::new();
    let mut at = from;
    while at < from + len {
        let piece = (from + len - at).min(64 << 10);
        let mut buf = Buf::try_alloc(piece).expect("a free buffer");
        buf.iter_mut().enumerate().for_each(|(i, b)| *b = pattern(at + i));
        iov.push(buf.freeze());
        at += piece;
    }
    iov
}

#[test]
fn every_size_from_one_byte_to_one_mebibyte_arrives_intact() {
    in_each_way(|| async {
        let ((_client_r, mut client_w), (mut server_r, _server_w)) = pair().await;
        let sizes = [1, 2, 72, 511, 4096, 4097, 16 << 10, 65_537, 131_072, 1 << 20];
        spawn(async move {
            let mut at = 0;
            for size in sizes {
                client_w.send(bytes_of(at, size)).await.expect("sent");
                at += size;
            }
            client_w.shutdown();
        });
        let mut at = 0;
        loop {
            let view = server_r.recv().await.expect("received");
            if view.is_empty() {
                break;
            }
            assert!(view.iter().enumerate().all(|(i, &b)| b == pattern(at + i)));
            at += view.len();
        }
        assert_eq!(at, sizes.iter().sum::<usize>());
    });
}

#[test]
fn nobody_listens_is_refused_and_a_second_listener_is_in_use() {
    in_each_way(|| async {
        let listener = Listener::bind(&any_port(), false).await.expect("a free port");
        let addr = listener.local_addr();
        assert_eq!(Listener::bind(&addr, false).await.err(), Some(NetError::AddrInUse));
        drop(listener);
        assert_eq!(Stream::connect(&addr).await.err(), Some(NetError::Refused));
    });
}

#[test]
fn receiving_into_a_buffer_and_as_it_comes_can_be_mixed() {
    in_each_way(|| async {
        let ((_client_r, mut client_w), (mut server_r, _server_w)) = pair().await;
        // A header, then payload: as a command with its data arrives.
        let messages = [(8, 0), (72, 4096), (24, 131_072), (100, 1), (16, 65_536), (128, 1 << 20)];
        spawn(async move {
            let mut at = 0;
            for (header, payload) in messages {
                client_w.send(bytes_of(at, header + payload)).await.expect("sent");
                at += header + payload;
            }
            client_w.shutdown();
        });
        let mut at = 0;
        let mut rest: Option<peristyle_rt::View> = None;
        for (header, payload) in messages {
            for (wanted, large) in [(header, false), (payload, true)] {
                let mut left = wanted;
                while left > 0 {
                    if rest.as_ref().is_none_or(|r| r.is_empty()) && large {
                        let (result, buf) = server_r.recv_exact(Buf::alloc(left).await).await;
                        result.expect("received");
                        assert!(buf.iter().enumerate().all(|(i, &b)| b == pattern(at + i)));
                        at += left;
                        left = 0;
                        continue;
                    }
                    let mut view = match rest.take() {
                        Some(view) if !view.is_empty() => view,
                        _ => server_r.recv().await.expect("received"),
                    };
                    let take = view.len().min(left);
                    assert!(view[..take].iter().enumerate().all(|(i, &b)| b == pattern(at + i)));
                    at += take;
                    left -= take;
                    view.advance(take);
                    rest = Some(view);
                }
            }
        }
        assert!(server_r.recv().await.expect("the end").is_empty());
        let (result, _) = server_r.recv_exact(Buf::alloc(1).await).await;
        assert_eq!(result, Err(NetError::Closed));
    });
}

#[test]
fn a_hundred_connections_echo_at_once() {
    in_each_way(|| async {
        let listener = Listener::bind(&any_port(), false).await.expect("a free port");
        let addr = listener.local_addr();
        spawn(async move {
            loop {
                let (mut r, mut w) = listener.accept().await.expect("a connection").split();
                spawn(async move {
                    while let Ok(view) = r.recv().await
                        && !view.is_empty()
                    {
                        w.send(view.into()).await.expect("echoed");
                    }
                });
            }
        });
        let clients = (0..100).map(|i| {
            let addr = addr.clone();
            async move {
                let (mut r, mut w) = Stream::connect(&addr).await.expect("it listens").split();
                for round in 0..20 {
                    let len = 1 + (i * 37 + round * 101) % 5000;
                    w.send(bytes_of(round, len)).await.expect("sent");
                    let (result, buf) = r.recv_exact(Buf::alloc(len).await).await;
                    result.expect("echoed");
                    assert!(buf.iter().enumerate().all(|(at, &b)| b == pattern(round + at)));
                }
            }
        });
        peristyle_rt::join_all(clients).await;
    });
}

#[test]
fn a_slow_reader_stops_the_writer_and_a_reader_that_returns_lets_it_go_on() {
    in_each_way(|| async {
        let ((_client_r, mut client_w), (mut server_r, _server_w)) = pair().await;
        let written = std::rc::Rc::new(std::cell::Cell::new(0usize));
        let count = written.clone();
        const CHUNK: usize = 128 << 10;
        const TOTAL: usize = 64 << 20;
        spawn(async move {
            let chunk = bytes_of(0, CHUNK);
            while count.get() < TOTAL {
                client_w.send(chunk.clone()).await.expect("sent");
                count.set(count.get() + CHUNK);
            }
        });
        let mut before = usize::MAX;
        while before != written.get() {
            before = written.get();
            peristyle_rt::sleep(peristyle_rt::Duration::from_millis(20)).await;
        }
        assert!(before < TOTAL, "the sockets' buffers are finite");
        let mut got = 0;
        while got < TOTAL {
            got += server_r.recv().await.expect("received").len();
        }
        assert_eq!(got, TOTAL);
    });
}

#[test]
fn a_peer_that_resets_in_the_middle_closes_both_halves() {
    in_each_way(|| async {
        let ((client_r, mut client_w), (mut server_r, mut server_w)) = pair().await;
        client_w.send(bytes_of(0, 100)).await.expect("sent");
        server_w.send(bytes_of(0, 100)).await.expect("sent");
        peristyle_rt::yield_now().await;
        // Closing with bytes unread is what makes the system send a reset.
        drop((client_r, client_w));
        let mut end = server_r.recv().await;
        while let Ok(view) = &end
            && !view.is_empty()
        {
            end = server_r.recv().await;
        }
        assert!(matches!(end, Err(NetError::Closed)) || end.is_ok_and(|v| v.is_empty()));
        let broken = loop {
            if let Err(error) = server_w.send(bytes_of(0, 4096)).await {
                break error;
            }
            peristyle_rt::yield_now().await;
        };
        assert_eq!(broken, NetError::Closed);
    });
}

#[test]
fn a_reader_that_waits_is_woken_by_its_own_writers_shutdown() {
    in_each_way(|| async {
        let ((mut client_r, client_w), (mut server_r, _server_w)) = pair().await;
        let ended = peristyle_rt::sync::Event::default();
        let tell = ended.clone();
        spawn(async move {
            assert!(client_r.recv().await.expect("the end").is_empty());
            tell.set();
        });
        peristyle_rt::end_of_turn().await;
        client_w.shutdown();
        ended.wait().await;
        assert!(server_r.recv().await.expect("the end").is_empty());
    });
}

#[test]
fn a_receive_that_is_dropped_loses_no_bytes() {
    in_each_way(|| async {
        let ((_client_r, mut client_w), (mut server_r, _server_w)) = pair().await;
        for _ in 0..100 {
            peristyle_rt::select(server_r.recv(), peristyle_rt::yield_now()).await;
        }
        client_w.send(bytes_of(0, 10)).await.expect("sent");
        assert_eq!(server_r.recv().await.expect("received").len(), 10);
    });
}

#[test]
fn a_unix_socket_echoes_replaces_a_stale_file_and_respects_a_live_one() {
    let path = std::path::PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("s{}", std::process::id()));
    let addr = Addr::Unix(path.clone());
    // A listener that died without removing its file.
    let _ = std::fs::remove_file(&path);
    drop(std::os::unix::net::UnixListener::bind(&path).expect("bound"));
    assert!(path.exists());
    block_on(RuntimeConfig::small(), async move {
        let listener = Listener::bind(&addr, false).await.expect("the stale file is replaced");
        assert_eq!(Listener::bind(&addr, false).await.err(), Some(NetError::AddrInUse));
        // The question whether somebody listens is a connection that ends at once.
        let (mut asked, _) = listener.accept().await.expect("a connection").split();
        assert!(asked.recv().await.expect("the end").is_empty());
        let (mut client_r, mut client_w) = Stream::connect(&addr).await.expect("it listens").split();
        let (mut r, mut w) = listener.accept().await.expect("a connection").split();
        client_w.send(bytes_of(0, 1000)).await.expect("sent");
        w.send(r.recv().await.expect("received").into()).await.expect("echoed");
        assert_eq!(client_r.recv().await.expect("received").len(), 1000);
        drop(listener);
        assert_eq!(Stream::connect(&addr).await.err(), Some(NetError::Refused));
    });
    assert!(!path.exists());
}

#[test]
fn buffers_of_received_bytes_all_come_back() {
    in_each_way(|| async {
        let before = peristyle_rt::buf::free_counts();
        for _ in 0..3 {
            let ((client_r, mut client_w), (mut server_r, server_w)) = pair().await;
            client_w.send(bytes_of(0, 100_000)).await.expect("sent");
            let mut got = 0;
            while got < 100_000 {
                got += server_r.recv().await.expect("received").len();
            }
            drop((client_r, client_w, server_r, server_w));
        }
        // What was sent without a copy comes back when the peer has acknowledged it.
        sleep(Duration::from_millis(10)).await;
        let after = peristyle_rt::buf::free_counts();
        let missing: usize = before.iter().zip(after).map(|(b, a)| b - a).sum();
        assert!(missing <= 1, "only the buffer that the next bytes go to: {before:?} {after:?}");
    });
}
