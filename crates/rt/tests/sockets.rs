//! Sockets over loopback on io_uring reactors.

use peristyle_rt::{
    Addr, Buf, IoVec, Listener, NetError, RuntimeConfig, Stream, StreamReader, StreamWriter, block_on, spawn,
};

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
    block_on(RuntimeConfig::small(), async {
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
    block_on(RuntimeConfig::small(), async {
        let listener = Listener::bind(&any_port(), false).await.expect("a free port");
        let addr = listener.local_addr();
        assert_eq!(Listener::bind(&addr, false).await.err(), Some(NetError::AddrInUse));
        drop(listener);
        assert_eq!(Stream::connect(&addr).await.err(), Some(NetError::Refused));
    });
}
