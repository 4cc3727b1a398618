//! `bench echo`: what the machine's sockets cost by themselves. Plain non-blocking sockets in a loop on two threads,
//! nothing of ours between: the floor.

use super::EchoOptions;
use crate::failure::Failure;
use crate::render::{json, table};
use peristyle_base::Histogram;
use serde_json::json;
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

/// A command capsule is 72 bytes, C2HData's header and a response 24 each; success comes with the data.
pub(super) const READ_4K: Shape = Shape { name: "read 4 KiB", request: 72, answer: 24 + 4096 };
const WRITE_4K: Shape = Shape { name: "write 4 KiB", request: 72 + 4096, answer: 24 };

pub fn command(options: &EchoOptions) -> Result<(), Failure> {
    let mut rows = Vec::new();
    for shape in [READ_4K, WRITE_4K] {
        let times = echo(shape, options.rounds, &options.cores).map_err(Failure::failed)?;
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

/// Round trip times in nanoseconds; the first tenth is not counted.
pub(super) fn echo(shape: Shape, rounds: u32, cores: &[usize]) -> io::Result<Histogram> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let addr = listener.local_addr()?;
    let (server_core, client_core) = (cores.first().copied(), cores.get(1).copied());
    let server = std::thread::spawn(move || serve(&listener, shape, server_core));
    let client = std::thread::spawn(move || ask(addr, shape, rounds, client_core));
    let times = client.join().map_err(|_| io::Error::other("the client panicked"))?;
    server.join().map_err(|_| io::Error::other("the server panicked"))??;
    times
}

fn serve(listener: &TcpListener, shape: Shape, core: Option<usize>) -> io::Result<()> {
    pin(core)?;
    let (mut stream, _) = listener.accept()?;
    let (mut request, answer) = (vec![0; shape.request], vec![1; shape.answer]);
    prepare(&stream)?;
    while read_all(&mut stream, &mut request)? {
        write_all(&mut stream, &answer)?;
    }
    Ok(())
}

fn ask(addr: SocketAddr, shape: Shape, rounds: u32, core: Option<usize>) -> io::Result<Histogram> {
    pin(core)?;
    let mut stream = TcpStream::connect(addr)?;
    prepare(&stream)?;
    let (request, mut answer) = (vec![1; shape.request], vec![0; shape.answer]);
    let (warm, mut times) = (rounds / 10, Histogram::default());
    for round in 0..rounds + warm {
        let start = Instant::now();
        write_all(&mut stream, &request)?;
        if !read_all(&mut stream, &mut answer)? {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        if round >= warm {
            times.record(start.elapsed().as_nanos() as u64);
        }
    }
    Ok(times)
}

fn pin(core: Option<usize>) -> io::Result<()> {
    match core {
        Some(core) if !peristyle_rt::pin_thread(core) => {
            Err(io::Error::other(format!("core {core} is not there for us")))
        }
        _ => Ok(()),
    }
}

fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_nonblocking(true)
}

/// False at the end of the stream.
fn read_all(stream: &mut TcpStream, buf: &mut [u8]) -> io::Result<bool> {
    let (mut filled, mut idle) = (0, 0);
    while filled < buf.len() {
        match stream.read(&mut buf[filled..]) {
            Ok(0) => return Ok(false),
            Ok(n) => filled += n,
            Err(e) if e.kind() == ErrorKind::WouldBlock => {
                idle += 1;
                // Where both sides share a core, somebody has to give way.
                if idle % SPINS == 0 {
                    std::thread::yield_now();
                }
            }
            Err(e) => return Err(e),
        }
    }
    Ok(true)
}

fn write_all(stream: &mut TcpStream, buf: &[u8]) -> io::Result<()> {
    let mut sent = 0;
    while sent < buf.len() {
        match stream.write(&buf[sent..]) {
            Ok(n) => sent += n,
            Err(e) if e.kind() == ErrorKind::WouldBlock => std::hint::spin_loop(),
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_echo_counts_every_round_trip_but_the_first_tenth() {
        for shape in [READ_4K, WRITE_4K] {
            let times = echo(shape, 50, &[]).unwrap();
            assert_eq!(times.count(), 50);
            assert!(times.quantile(0.5) > 0);
        }
    }
}
