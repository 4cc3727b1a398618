//! `bench echo`: what the machine's sockets cost by themselves. Plain non-blocking sockets in a loop on two threads,
//! nothing of ours between: the floor.

use super::EchoOptions;
use crate::failure::Failure;
use crate::render::{json, table};
use peristyle_base::Histogram;
use serde_json::json;
use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Instant;

/// Fruitless looks at a socket, far more than a round trip has, before others may use the core.
const SPINS: u32 = 1000;

/// Bytes of a request and of its answer on the wire of NVMe/TCP, without digests.
#[derive(Clone, Copy)]
pub(super) struct Shape {
    name: &'static str,
    request: usize,
    answer: usize,
}

impl Shape {
    /// A read or a write of so many bytes. A command capsule is 72 bytes, C2HData's header and a response 24 each; success
    /// comes with the data.
    pub const fn of(write: bool, bytes: u32) -> Shape {
        let bytes = bytes as usize;
        match write {
            false => Shape { name: "read", request: 72, answer: 24 + bytes },
            true => Shape { name: "write", request: 72 + bytes, answer: 24 },
        }
    }
}

pub(super) const READ_4K: Shape = Shape { name: "read 4 KiB", ..Shape::of(false, 4096) };
const WRITE_4K: Shape = Shape { name: "write 4 KiB", ..Shape::of(true, 4096) };

pub fn command(options: &EchoOptions) -> Result<(), Failure> {
    let mut rows = Vec::new();
    for shape in [READ_4K, WRITE_4K] {
        let times = echo(shape, options.rounds, 1, &options.cores).map_err(Failure::failed)?;
        rows.push((shape, times));
    }
    if options.json {
        let shape = |(s, h): &(Shape, Histogram)| {
            json!({"shape": s.name, "request_bytes": s.request, "answer_bytes": s.answer,
                   "p50_us": us(h.quantile(0.5)), "p99_us": us(h.quantile(0.99)), "p99.9_us": us(h.quantile(0.999))})
        };
        print!("{}", json(&rows.iter().map(shape).collect::<Vec<_>>()));
        return Ok(());
    }
    let lines = rows.iter().map(|(shape, h)| {
        let sizes = format!("{} -> {}", shape.request, shape.answer);
        let [p50, p99, p999] = [0.5, 0.99, 0.999].map(|share| format!("{:.2}", us(h.quantile(share))));
        vec![shape.name.to_owned(), sizes, format!("{:.2}", h.mean() / 1000.0), p50, p99, p999]
    });
    print!("{}", table(&["round trip", "bytes", "mean", "p50", "p99", "p99.9"], &[2, 3, 4, 5], lines));
    println!("plain sockets on two threads, microseconds");
    Ok(())
}

pub(super) fn us(nanos: u64) -> f64 {
    nanos as f64 / 1000.0
}

/// Round trip times in nanoseconds, `depth` requests on their way; the first tenth is not counted.
pub(super) fn echo(shape: Shape, rounds: u32, depth: u32, cores: &[usize]) -> io::Result<Histogram> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let addr = listener.local_addr()?;
    let (server_core, client_core) = (cores.first().copied(), cores.get(1).copied());
    let server = std::thread::spawn(move || serve(&listener, shape, server_core));
    let client = std::thread::spawn(move || ask(addr, shape, (rounds, depth), client_core));
    let times = client.join().map_err(|_| io::Error::other("the client panicked"))?;
    server.join().map_err(|_| io::Error::other("the server panicked"))??;
    times
}

fn serve(listener: &TcpListener, shape: Shape, core: Option<usize>) -> io::Result<()> {
    pin(core)?;
    let mut pipe = Pipe::new(listener.accept()?.0, shape.request.max(shape.answer))?;
    let (mut got, mut owed) = (0, 0);
    loop {
        match pipe.receive()? {
            Some(0) => return Ok(()),
            received => got += received.unwrap_or(0),
        }
        owed += got / shape.request * shape.answer;
        got %= shape.request;
        owed -= pipe.send(owed)?;
    }
}

fn ask(
    addr: SocketAddr,
    shape: Shape,
    (rounds, depth): (u32, u32),
    core: Option<usize>,
) -> io::Result<Histogram> {
    pin(core)?;
    let mut pipe = Pipe::new(TcpStream::connect(addr)?, shape.request.max(shape.answer))?;
    let (warm, mut times) = (rounds / 10, Histogram::default());
    let mut under_way: VecDeque<Instant> = VecDeque::with_capacity(depth as usize);
    let (mut begun, mut ended, mut got, mut to_send) = (0, 0, 0, 0);
    while ended < rounds + warm {
        while begun < rounds + warm && under_way.len() < depth as usize {
            under_way.push_back(Instant::now());
            begun += 1;
            to_send += shape.request;
        }
        to_send -= pipe.send(to_send)?;
        match pipe.receive()? {
            Some(0) => return Err(ErrorKind::UnexpectedEof.into()),
            received => got += received.unwrap_or(0),
        }
        while got >= shape.answer {
            got -= shape.answer;
            let start = under_way.pop_front().ok_or_else(|| io::Error::other("nobody asked for that"))?;
            if ended >= warm {
                times.record(start.elapsed().as_nanos() as u64);
            }
            ended += 1;
        }
    }
    Ok(times)
}

/// A socket that is looked at again and again.
struct Pipe {
    stream: TcpStream,
    buf: Vec<u8>,
    idle: u32,
}

impl Pipe {
    /// At most so many bytes are sent or received at once.
    fn new(stream: TcpStream, bytes: usize) -> io::Result<Pipe> {
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        Ok(Pipe { stream, buf: vec![1; bytes], idle: 0 })
    }
    /// 0 at the end of the stream, nothing when there is nothing.
    fn receive(&mut self) -> io::Result<Option<usize>> {
        match self.stream.read(&mut self.buf) {
            Ok(n) => Ok(Some(n)),
            Err(e) if e.kind() == ErrorKind::WouldBlock => {
                self.idle += 1;
                // Where both sides share a core, somebody has to give way.
                if self.idle.is_multiple_of(SPINS) {
                    std::thread::yield_now();
                }
                Ok(None)
            }
            Err(e) => Err(e),
        }
    }
    /// Bytes that were taken.
    fn send(&mut self, bytes: usize) -> io::Result<usize> {
        if bytes == 0 {
            return Ok(0);
        }
        match self.stream.write(&self.buf[..bytes.min(self.buf.len())]) {
            Err(e) if e.kind() == ErrorKind::WouldBlock => Ok(0),
            sent => sent,
        }
    }
}

fn pin(core: Option<usize>) -> io::Result<()> {
    match core {
        Some(core) if !peristyle_rt::pin_thread(core) => {
            Err(io::Error::other(format!("core {core} is not there for us")))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_echo_counts_every_round_trip_but_the_first_tenth() {
        for (shape, depth) in [(READ_4K, 1), (WRITE_4K, 1), (READ_4K, 8), (Shape::of(true, 1 << 20), 4)] {
            let times = echo(shape, 50, depth, &[]).unwrap();
            assert_eq!(times.count(), 50);
            assert!(times.quantile(0.5) > 0);
        }
    }
}
