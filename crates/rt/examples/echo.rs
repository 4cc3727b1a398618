//! What a round trip over loopback costs here: plain non-blocking sockets in a loop (the floor) against the
//! runtime, on the serving side alone and on both.
//!
//! `cargo run --release -p peristyle-rt --example echo [rounds]`

use peristyle_rt::{
    Addr, Buf, Listener, PollMode, RuntimeConfig, Stream, StreamReader, StreamWriter, View, block_on, now,
};
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc;

/// Bytes of a request and of its answer: a read command and its data, a write and its answer, both small.
const SHAPES: [(usize, usize); 4] = [(72, 72), (72, 4120), (4168, 24), (72, 131_096)];
const RUNS: usize = 5;
const CORES: [usize; 2] = [0, 1];

fn main() {
    let rounds = std::env::args().nth(1).and_then(|n| n.parse().ok()).unwrap_or(20_000);
    println!("round trip p50 in microseconds, best of {RUNS} runs of {rounds}");
    println!("{:>16} {:>10} {:>10} {:>10} {:>8}", "request/answer", "floor", "server", "both", "ratio");
    for (request, answer) in SHAPES {
        let rounds = if answer > 65536 { rounds / 5 } else { rounds };
        let [mut floor, mut server, mut both] = [f64::MAX; 3];
        for _ in 0..RUNS {
            floor = floor.min(p50(plain_client(plain_server(request, answer), request, answer, rounds)));
            server = server.min(p50(plain_client(our_server(request, answer), request, answer, rounds)));
            both = both.min(p50(our_client(our_server(request, answer), request, answer, rounds)));
        }
        let ratio = both / floor;
        println!(
            "{:>16} {floor:>10.2} {server:>10.2} {both:>10.2} {ratio:>8.2}",
            format!("{request}/{answer}")
        );
    }
}

fn p50(mut nanos: Vec<u64>) -> f64 {
    nanos.sort_unstable();
    nanos[nanos.len() / 2] as f64 / 1000.0
}

// ---- plain sockets ------------------------------------------------------------------------------------------

fn pin(core: usize) {
    let mut set = rustix::thread::CpuSet::new();
    set.set(core);
    let _ = rustix::thread::sched_setaffinity(None, &set);
}

/// False at the end of the stream.
fn read_all(stream: &mut TcpStream, buf: &mut [u8]) -> bool {
    let mut filled = 0;
    while filled < buf.len() {
        match stream.read(&mut buf[filled..]) {
            Ok(0) => return false,
            Ok(n) => filled += n,
            Err(e) if e.kind() == ErrorKind::WouldBlock => std::hint::spin_loop(),
            Err(_) => return false,
        }
    }
    true
}

fn write_all(stream: &mut TcpStream, buf: &[u8]) {
    let mut sent = 0;
    while sent < buf.len() {
        match stream.write(&buf[sent..]) {
            Ok(n) => sent += n,
            Err(e) if e.kind() == ErrorKind::WouldBlock => std::hint::spin_loop(),
            Err(e) => panic!("{e}"),
        }
    }
}

fn plain_server(request: usize, answer: usize) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let addr = listener.local_addr().expect("bound");
    std::thread::spawn(move || {
        pin(CORES[0]);
        let (mut stream, _) = listener.accept().expect("a connection");
        stream.set_nodelay(true).expect("set");
        stream.set_nonblocking(true).expect("set");
        let (mut input, output) = (vec![0; request], vec![1; answer]);
        while read_all(&mut stream, &mut input) {
            write_all(&mut stream, &output);
        }
    });
    addr
}

fn plain_client(addr: SocketAddr, request: usize, answer: usize, rounds: usize) -> Vec<u64> {
    let client = std::thread::spawn(move || {
        pin(CORES[1]);
        let mut stream = TcpStream::connect(addr).expect("it listens");
        stream.set_nodelay(true).expect("set");
        stream.set_nonblocking(true).expect("set");
        let (output, mut input) = (vec![1; request], vec![0; answer]);
        let round = |_| {
            let start = std::time::Instant::now();
            write_all(&mut stream, &output);
            assert!(read_all(&mut stream, &mut input), "closed early");
            start.elapsed().as_nanos() as u64
        };
        (0..rounds).map(round).collect()
    });
    client.join().expect("no panic")
}

// ---- the runtime --------------------------------------------------------------------------------------------

fn config() -> RuntimeConfig {
    RuntimeConfig { poll: PollMode::Busy, ..RuntimeConfig::small() }
}

/// Reads `bytes` bytes as they come; false at the end of the stream.
async fn take(reader: &mut StreamReader, bytes: usize) -> bool {
    let mut got = 0;
    while got < bytes {
        match reader.recv().await {
            Ok(view) if !view.is_empty() => got += view.len(),
            _ => return false,
        }
    }
    true
}

async fn give(writer: &mut StreamWriter, view: &View) {
    writer.send(view.clone().into()).await.expect("sent");
}

fn our_server(request: usize, answer: usize) -> SocketAddr {
    let (tell, addr) = mpsc::channel();
    std::thread::spawn(move || {
        pin(CORES[0]);
        block_on(config(), async move {
            let any = Addr::Tcp("127.0.0.1:0".parse().expect("an address"));
            let listener = Listener::bind(&any, false).await.expect("a free port");
            tell.send(listener.local_addr()).expect("somebody waits");
            let (mut reader, mut writer) = listener.accept().await.expect("a connection").split();
            let output = Buf::zeroed(answer).await.freeze();
            while take(&mut reader, request).await {
                give(&mut writer, &output).await;
            }
        });
    });
    match addr.recv().expect("it started") {
        Addr::Tcp(addr) => addr,
        Addr::Unix(_) => unreachable!("a TCP address was asked for"),
    }
}

fn our_client(addr: SocketAddr, request: usize, answer: usize, rounds: usize) -> Vec<u64> {
    let client = std::thread::spawn(move || {
        pin(CORES[1]);
        block_on(config(), async move {
            let (mut reader, mut writer) =
                Stream::connect(&Addr::Tcp(addr)).await.expect("it listens").split();
            let output = Buf::zeroed(request).await.freeze();
            let mut nanos = Vec::with_capacity(rounds);
            for _ in 0..rounds {
                let start = now();
                give(&mut writer, &output).await;
                if answer > 65536 {
                    let (result, _) = reader.recv_exact(Buf::alloc(answer).await).await;
                    result.expect("received");
                } else {
                    assert!(take(&mut reader, answer).await, "closed early");
                }
                nanos.push(now().nanos_since(start));
            }
            nanos
        })
    });
    client.join().expect("no panic")
}
