//! Which way to receive is cheapest when one request is under way: made by hand, without the runtime
//! (`docs/measuring.md` has the runtime's own figures).
//!
//! One plain client, three servers made by hand on the same ring options as the runtime's, each polling:
//! * `poll`: multishot poll, then plain recv and send calls (the runtime with `Receive::Calls`);
//! * `multishot`: multishot receive into provided buffers, plain send calls (with `Receive::Ring`);
//! * `all ring`: multishot receive, and sends through the ring.
//!
//! `cargo run --release -p peristyle-rt --example receive_paths [rounds]`

use io_uring::types::{BufRingEntry, Fd};
use io_uring::{IoUring, cqueue, opcode, squeue};
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU16, Ordering};

const SHAPES: [(usize, usize); 4] = [(72, 72), (72, 4120), (4168, 24), (72, 131_096)];
const RUNS: usize = 5;
const BUFFERS: u16 = 64;
const BUFFER_BYTES: usize = 16 << 10;
const RECV: u64 = 1;
const SEND: u64 = 2;

#[derive(Clone, Copy, PartialEq)]
enum Way {
    Poll,
    Multishot,
    AllRing,
}

fn main() {
    let rounds = std::env::args().nth(1).and_then(|n| n.parse().ok()).unwrap_or(20_000);
    println!("round trip p50 in microseconds, best of {RUNS} runs of {rounds}");
    println!("{:>16} {:>10} {:>10} {:>10}", "request/answer", "poll", "multishot", "all ring");
    for (request, answer) in SHAPES {
        let rounds = if answer > 65536 { rounds / 5 } else { rounds };
        let mut best = [f64::MAX; 3];
        for _ in 0..RUNS {
            for (best, way) in best.iter_mut().zip([Way::Poll, Way::Multishot, Way::AllRing]) {
                *best = best.min(p50(client(server(way, request, answer), request, answer, rounds)));
            }
        }
        let [poll, multishot, ring] = best;
        println!("{:>16} {poll:>10.2} {multishot:>10.2} {ring:>10.2}", format!("{request}/{answer}"));
    }
}

fn p50(mut nanos: Vec<u64>) -> f64 {
    nanos.sort_unstable();
    nanos[nanos.len() / 2] as f64 / 1000.0
}

fn pin(core: usize) {
    let mut set = rustix::thread::CpuSet::new();
    set.set(core);
    let _ = rustix::thread::sched_setaffinity(None, &set);
}

fn client(addr: SocketAddr, request: usize, answer: usize, rounds: usize) -> Vec<u64> {
    pin(1);
    let mut stream = TcpStream::connect(addr).expect("it listens");
    stream.set_nodelay(true).expect("set");
    stream.set_nonblocking(true).expect("set");
    let (output, mut input) = (vec![1; request], vec![0; answer]);
    let round = |_| {
        let start = std::time::Instant::now();
        write_all(&mut stream, &output);
        let mut got = 0;
        while got < answer {
            match stream.read(&mut input[got..]) {
                Ok(n) => got += n,
                Err(e) if e.kind() == ErrorKind::WouldBlock => std::hint::spin_loop(),
                Err(e) => panic!("{e}"),
            }
        }
        start.elapsed().as_nanos() as u64
    };
    (0..rounds).map(round).collect()
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

/// Buffers that the kernel takes from by itself.
struct Provided {
    ring: *mut BufRingEntry,
    memory: Vec<u8>,
    tail: u16,
}

impl Provided {
    fn new(ring: &IoUring) -> Provided {
        let layout = std::alloc::Layout::from_size_align(4096, 4096).expect("valid");
        // SAFETY: the layout has a size; the memory is never freed, the example's process is short.
        let entries = unsafe { std::alloc::alloc_zeroed(layout) }.cast::<BufRingEntry>();
        // SAFETY: the ring of entries lives as long as the process.
        unsafe { ring.submitter().register_buf_ring_with_flags(entries as u64, BUFFERS, 0, 0) }
            .expect("registered");
        let mut provided =
            Provided { ring: entries, memory: vec![0; BUFFERS as usize * BUFFER_BYTES], tail: 0 };
        (0..BUFFERS).for_each(|id| provided.give(id));
        provided
    }
    fn give(&mut self, id: u16) {
        // SAFETY: the index is within the ring, and the kernel reads an entry only once the tail covers it.
        unsafe {
            let entry = &mut *self.ring.add((self.tail % BUFFERS) as usize);
            entry.set_addr(self.memory.as_mut_ptr().add(id as usize * BUFFER_BYTES) as u64);
            entry.set_len(BUFFER_BYTES as u32);
            entry.set_bid(id);
            self.tail = self.tail.wrapping_add(1);
            let tail = BufRingEntry::tail(self.ring).cast::<AtomicU16>();
            (*tail).store(self.tail, Ordering::Release);
        }
    }
}

fn push(ring: &mut IoUring, entry: squeue::Entry) {
    // SAFETY: all that the entries of this example name lives as long as the ring.
    unsafe { ring.submission().push(&entry) }.expect("room");
}

fn server(way: Way, request: usize, answer: usize) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let addr = listener.local_addr().expect("bound");
    std::thread::spawn(move || {
        pin(0);
        let (stream, _) = listener.accept().expect("a connection");
        stream.set_nodelay(true).expect("set");
        stream.set_nonblocking(true).expect("set");
        serve(way, stream, request, &vec![1; answer]);
    });
    addr
}

fn serve(way: Way, mut stream: TcpStream, request: usize, output: &[u8]) {
    let mut ring = IoUring::builder()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_taskrun_flag()
        .build(64)
        .expect("a ring");
    let fd = Fd(stream.as_raw_fd());
    let mut provided = Provided::new(&ring);
    let events = (libc::POLLIN | libc::POLLRDHUP) as u32;
    match way {
        Way::Poll => push(&mut ring, opcode::PollAdd::new(fd, events).multi(true).build().user_data(RECV)),
        _ => push(&mut ring, opcode::RecvMulti::new(fd, 0).build().user_data(RECV)),
    }
    let (mut got, mut input) = (0, vec![0; 65536]);
    loop {
        let sq = ring.submission();
        let needed = !sq.is_empty() || sq.taskrun();
        drop(sq);
        if needed {
            ring.submit().expect("entered");
        }
        let Some(cqe) = ring.completion().next() else {
            std::hint::spin_loop();
            continue;
        };
        if cqe.user_data() == SEND {
            assert_eq!(cqe.result(), output.len() as i32, "sent whole");
            continue;
        }
        got += match way {
            Way::Poll => match stream.read(&mut input) {
                Ok(0) => return,
                Ok(n) => n,
                Err(_) => 0,
            },
            _ if cqe.result() <= 0 => return,
            _ => {
                provided.give(cqueue::buffer_select(cqe.flags()).expect("a provided buffer"));
                assert!(cqueue::more(cqe.flags()), "buffers are given back at once");
                cqe.result() as usize
            }
        };
        if got == request {
            got = 0;
            if way == Way::AllRing {
                let send =
                    opcode::Send::new(fd, output.as_ptr(), output.len() as u32).flags(libc::MSG_WAITALL);
                push(&mut ring, send.build().user_data(SEND));
            } else {
                write_all(&mut stream, output);
            }
        }
    }
}
