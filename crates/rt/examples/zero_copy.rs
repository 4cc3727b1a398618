//! What a send costs its thread with and without a copy, by size: the measurement behind `uring/send.rs`.
//!
//! A plain client takes everything as it comes. Loopback copies in both cases, so the difference is what sending
//! without a copy costs beside the copy: pinning, two completions instead of one call, and the notification. It is
//! worth it where copying the bytes takes longer than that, on a device that does not copy.
//!
//! `cargo run --release -p peristyle-rt --example zero_copy [MiB per run]`

use peristyle_rt::{
    Addr, Buf, IoVec, Listener, PollMode, RuntimeConfig, StreamWriter, View, ZeroCopy, block_on, pin_thread,
};
use std::io::Read;
use std::net::TcpStream;
use std::sync::mpsc;

const SIZES: [usize; 9] =
    [4 << 10, 8 << 10, 16 << 10, 32 << 10, 64 << 10, 128 << 10, 256 << 10, 512 << 10, 1 << 20];
const RUNS: usize = 9;

fn main() {
    let bytes = std::env::args().nth(1).and_then(|n| n.parse().ok()).unwrap_or(64) << 20;
    println!("CPU time of the sending thread per send in microseconds, medians of {RUNS} runs in turns");
    println!("{:>8} {:>10} {:>10} {:>12} {:>10}", "bytes", "copied", "zero-copy", "difference", "memcpy");
    for size in SIZES {
        let mut times = [Vec::new(), Vec::new(), Vec::new()];
        for _ in 0..RUNS {
            times[0].push(run(ZeroCopy::Never, size, bytes / size));
            times[1].push(run(ZeroCopy::Always(1), size, bytes / size));
            times[2].push(copy(size, bytes / size));
        }
        let [copied, without, memcpy] = times.map(|mut t| {
            t.sort_by(f64::total_cmp);
            t[t.len() / 2]
        });
        println!("{size:>8} {copied:>10.2} {without:>10.2} {:>12.2} {memcpy:>10.2}", without - copied);
    }
}

/// Copies from memory that is not in the caches into a place that is.
fn copy(size: usize, count: usize) -> f64 {
    let (from, mut to) = (vec![1u8; 64 << 20], vec![0u8; size]);
    let since = cpu_micros();
    for i in 0..count {
        let at = i * size % (from.len() - size + 1);
        to.copy_from_slice(&from[at..at + size]);
        std::hint::black_box(&mut to);
    }
    (cpu_micros() - since) / count as f64
}

fn cpu_micros() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    time.tv_sec as f64 * 1e6 + time.tv_nsec as f64 / 1e3
}

fn run(zero_copy: ZeroCopy, size: usize, count: usize) -> f64 {
    let (tell, addr) = mpsc::channel();
    let sender = std::thread::spawn(move || {
        pin_thread(0);
        let config = RuntimeConfig { poll: PollMode::Sleep, zero_copy, ..RuntimeConfig::default() };
        block_on(config, async move {
            let any = Addr::Tcp("127.0.0.1:0".parse().expect("an address"));
            let listener = Listener::bind(&any, false).await.expect("a free port");
            tell.send(listener.local_addr()).expect("somebody waits");
            let (_reader, mut writer) = listener.accept().await.expect("a connection").split();
            let mut pieces = Vec::new();
            for _ in 0..64 {
                pieces.push(Buf::zeroed(size.min(64 << 10)).await.freeze());
            }
            send(&mut writer, &pieces, size, 64).await;
            let since = cpu_micros();
            send(&mut writer, &pieces, size, count).await;
            (cpu_micros() - since) / count as f64
        })
    });
    let Addr::Tcp(addr) = addr.recv().expect("it started") else { unreachable!("TCP was asked for") };
    pin_thread(1);
    let mut stream = TcpStream::connect(addr).expect("it listens");
    let mut sink = vec![0; 1 << 20];
    while stream.read(&mut sink).is_ok_and(|n| n > 0) {}
    sender.join().expect("no panic")
}

/// Sends of a header and payload, as answers are.
async fn send(writer: &mut StreamWriter, pieces: &[View], size: usize, count: usize) {
    for i in 0..count {
        let mut iov = IoVec::new();
        iov.push(pieces[i % 64].slice(0..24));
        (0..size.div_ceil(64 << 10)).for_each(|j| iov.push(pieces[(i + j + 1) % 64].clone()));
        writer.send(iov).await.expect("sent");
    }
}
