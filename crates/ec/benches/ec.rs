//! GB/s of encode, decode and CRC32C beside memcpy of the same bytes, interleaved in one run.
//!
//! `cargo bench -p peristyle-ec`, or with `-- --quick` for a look. All figures are 1e9 bytes of source data per
//! second of this thread's CPU time (other programs disturb it less than the wall clock), the working set in cache
//! as far as it fits (encode right after receive). Each cell is the median of short batches; memcpy moves as many
//! bytes as the cell's code reads, in batches between them.

use peristyle_base::{ColumnIndex, Scheme, crc32c};
use peristyle_ec::{Code, ColumnSet, Path};
use std::hint::black_box;
use std::time::Duration;

const SCHEMES: [(u8, u8); 4] = [(1, 1), (2, 2), (4, 2), (8, 3)];
const COLUMN_BYTES: [usize; 4] = [4 << 10, 16 << 10, 64 << 10, 1 << 20];

/// How long to measure: batches per cell and the length of each.
#[derive(Clone, Copy)]
struct Effort {
    batches: usize,
    batch: Duration,
}

fn main() {
    let quick = std::env::args().any(|argument| argument == "--quick");
    let effort = match quick {
        true => Effort { batches: 3, batch: Duration::from_micros(700) },
        false => Effort { batches: 11, batch: Duration::from_millis(4) },
    };
    let paths: Vec<Path> = Path::ALL.into_iter().filter(|path| path.is_available()).collect();
    let begin = cpu_time();
    for (k, m) in SCHEMES {
        let scheme = Scheme::new(k, m).expect("a scheme in range");
        println!("\n{scheme}: GB/s of source data (share of memcpy of the same bytes), by column size");
        print!("{:<22}", "");
        COLUMN_BYTES.iter().for_each(|bytes| print!("{:>17}", format!("{} KiB", bytes >> 10)));
        println!();
        let rows: Vec<Vec<Cell>> =
            COLUMN_BYTES.iter().map(|&bytes| column(scheme, bytes, &paths, effort)).collect();
        for (row, first) in rows[0].iter().enumerate() {
            print!("{:<22}", first.name);
            rows.iter()
                .for_each(|cells| print!("{:>10.1} {:>5.0}%", cells[row].rate, cells[row].share * 100.0));
            println!();
        }
    }
    checksums(effort);
    println!("\nwhole run: {:.1} s of CPU time", (cpu_time() - begin).as_secs_f64());
}

struct Cell {
    name: String,
    rate: f64,
    /// Of memcpy of the same bytes.
    share: f64,
}

type Work<'a> = Box<dyn FnMut() + 'a>;

/// All cells of one scheme and column size.
fn column(scheme: Scheme, bytes: usize, paths: &[Path], effort: Effort) -> Vec<Cell> {
    let extent = Extent::new(scheme, bytes);
    let mut cells = Vec::new();
    for &path in paths {
        let code = Code::with_path(scheme, path).expect("an available path");
        let mut works: Vec<(&str, Work)> = vec![("encode", extent.encode(code.clone()))];
        works.push(("decode 1 (P there)", extent.decode(code.clone(), &[0])));
        if scheme.m() >= 2 {
            works.push(("decode 1 (P gone)", extent.decode(code.clone(), &[0, scheme.k() as u8])));
            works.push(("decode 2", extent.decode(code.clone(), &[0, 1])));
        }
        for (name, mut work) in works {
            let (rate, copy) = measure(scheme.k() * bytes, effort, &mut *work, &mut *extent.copy());
            cells.push(Cell { name: format!("{} {name}", path.name()), rate, share: rate / copy });
        }
    }
    cells
}

/// Columns in one piece of memory, each starting on a 4 KiB boundary, as the pools have them.
struct Extent {
    scheme: Scheme,
    bytes: usize,
    memory: Vec<u8>,
    start: usize,
}

fn aligned(bytes: usize) -> (Vec<u8>, usize) {
    let memory: Vec<u8> = (0..bytes + 4096).map(|i| (i * 7 + (i >> 8) * 13) as u8).collect();
    let start = memory.as_ptr().align_offset(4096);
    (memory, start)
}

impl Extent {
    fn new(scheme: Scheme, bytes: usize) -> Extent {
        let (memory, start) = aligned(bytes * scheme.width());
        Extent { scheme, bytes, memory, start }
    }
    fn columns(&self) -> Vec<&[u8]> {
        self.memory[self.start..].chunks_exact(self.bytes).take(self.scheme.width()).collect()
    }

    fn encode(&self, code: Code) -> Work<'_> {
        let data = self.columns()[..self.scheme.k()].to_vec();
        let (mut parity, start) = aligned(self.bytes * self.scheme.m());
        let bytes = self.bytes;
        Box::new(move || {
            let mut chunks = parity[start..].chunks_exact_mut(bytes);
            let mut out: [&mut [u8]; 4] = core::array::from_fn(|_| chunks.next().unwrap_or_default());
            code.encode(black_box(&data), &mut out[..code.scheme().m()]);
            black_box(&mut out);
        })
    }

    fn decode(&self, code: Code, lost: &[u8]) -> Work<'_> {
        let lost: ColumnSet = lost.iter().map(|&column| ColumnIndex(column)).collect();
        // Where a parity is gone too, only the data column is wanted.
        let wanted: ColumnSet = lost.iter().filter(|c| (c.0 as usize) < self.scheme.k()).collect();
        let plan = code.plan(wanted, ColumnSet::all(self.scheme).without(lost)).expect("at most m are lost");
        let columns = self.columns();
        let sources: Vec<_> = plan.sources().iter().map(|c| Some(columns[c.0 as usize])).collect();
        let (mut memory, start) = aligned(self.bytes * plan.targets().len());
        let bytes = self.bytes;
        Box::new(move || {
            let mut chunks = memory[start..].chunks_exact_mut(bytes);
            let mut out: [&mut [u8]; 4] = core::array::from_fn(|_| chunks.next().unwrap_or_default());
            code.reconstruct(black_box(&plan), black_box(&sources), &mut out[..plan.targets().len()]);
            black_box(&mut out);
        })
    }

    /// memcpy of the k columns.
    fn copy(&self) -> Work<'_> {
        let source = &self.memory[self.start..][..self.bytes * self.scheme.k()];
        let (mut memory, start) = aligned(source.len());
        Box::new(move || memory[start..][..source.len()].copy_from_slice(black_box(source)))
    }
}

/// Median GB/s of `work` and of `other`, batch by batch in turn, so that both meet the same machine.
fn measure(bytes: usize, effort: Effort, work: &mut dyn FnMut(), other: &mut dyn FnMut()) -> (f64, f64) {
    let works = [calls_per_batch(work, effort.batch), calls_per_batch(other, effort.batch)];
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..effort.batches {
        ours.push((bytes * works[0]) as f64 / batch(work, works[0]).as_nanos() as f64);
        theirs.push((bytes * works[1]) as f64 / batch(other, works[1]).as_nanos() as f64);
    }
    (median(ours), median(theirs))
}

fn batch(work: &mut dyn FnMut(), calls: usize) -> Duration {
    let begin = cpu_time();
    (0..calls).for_each(|_| work());
    (cpu_time() - begin).max(Duration::from_nanos(1))
}

/// Of this thread.
fn cpu_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

fn calls_per_batch(work: &mut dyn FnMut(), length: Duration) -> usize {
    batch(work, 1); // page faults
    let mut calls = 1;
    loop {
        let took = batch(work, calls);
        if took * 4 >= length {
            return (calls as f64 * length.as_secs_f64() / took.as_secs_f64()).ceil() as usize;
        }
        calls *= 4;
    }
}

fn median(mut rates: Vec<f64>) -> f64 {
    rates.sort_by(f64::total_cmp);
    rates[rates.len() / 2]
}

fn checksums(effort: Effort) {
    println!("\nCRC32C: GB/s (share of memcpy of the same bytes)");
    for bytes in [512, 4 << 10, 64 << 10, 1 << 20] {
        let one = Extent::new(Scheme::new(1, 0).expect("a scheme in range"), bytes);
        let source = one.columns()[0];
        let mut work = || {
            black_box(crc32c(black_box(source)));
        };
        let (rate, copy) = measure(bytes, effort, &mut work, &mut *one.copy());
        println!("{:<22}{rate:>10.1} {:>5.0}%", format!("{bytes} bytes"), rate / copy * 100.0);
    }
}
