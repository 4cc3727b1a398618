//! Random and mutated input through the fuzzers' entry points, in every test run.
//!
//! `PERISTYLE_FUZZ_RUNS` sets the number of inputs per entry point.

use peristyle_nvme::{host, qpair};

/// SplitMix64: a seed gives the same inputs for ever.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }
    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit.max(1) as u64) as usize
    }
    fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.next() as u8).collect()
    }
}

fn runs() -> usize {
    std::env::var("PERISTYLE_FUZZ_RUNS").ok().and_then(|runs| runs.parse().ok()).unwrap_or(10_000)
}

/// A few changes of the kinds that break parsers: bits, lengths, cuts, repetitions, glue.
fn mutate(random: &mut Random, seeds: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = seeds[random.below(seeds.len())].clone();
    for _ in 0..=random.below(4) {
        let at = random.below(bytes.len());
        match random.below(7) {
            0 => bytes[at] ^= 1 << random.below(8),
            1 => bytes[at] = random.next() as u8,
            2 => bytes[at] = [0, 1, 0x7f, 0x80, 0xff][random.below(5)],
            3 => bytes.truncate(at.max(1)),
            // Headers are near the front.
            4 => {
                let near = random.below(bytes.len().min(200));
                bytes[near] ^= random.next() as u8;
            }
            5 => {
                let tail = bytes[at..].to_vec();
                bytes.extend(tail.into_iter().take(512));
            }
            _ => {
                let other = &seeds[random.below(seeds.len())];
                bytes.extend_from_slice(&other[1..]);
            }
        }
    }
    bytes
}

fn hammer(seed: u64, seeds: &[Vec<u8>], entry: fn(&[u8])) {
    for bytes in seeds {
        entry(bytes);
    }
    let mut random = Random(seed);
    for run in 0..runs() {
        let bytes = if run % 4 == 0 {
            let len = random.below(600);
            random.bytes(len)
        } else {
            mutate(&mut random, seeds)
        };
        entry(&bytes);
    }
}

#[test]
fn random_streams_to_a_target_end_in_at_most_one_term_request() {
    hammer(1, &qpair::fuzz::seeds(), qpair::fuzz::stream);
}

#[test]
fn random_pdus_to_a_target_end_in_at_most_one_term_request() {
    let mut random = Random(2);
    let seeds: Vec<Vec<u8>> = (0..64).map(|_| random.bytes(257)).collect();
    hammer(3, &seeds, qpair::fuzz::pdus);
}

#[test]
fn random_submission_entries_are_answered_or_executed() {
    let mut random = Random(4);
    let seeds: Vec<Vec<u8>> = (0..64)
        .map(|_| {
            let mut sqe = random.bytes(128);
            for entry in sqe.chunks_mut(64) {
                entry[0] = [0, 1, 2, 5, 9, 0x7f][entry[0] as usize % 6];
                entry[1] = 0x40 | entry[1] & 3;
                entry[39] = [0x01, 0x5a][entry[39] as usize % 2];
                entry[33..36].fill(0);
            }
            sqe
        })
        .collect();
    hammer(5, &seeds, qpair::fuzz::sqe);
}

#[test]
fn random_streams_to_a_host_never_leave_a_commands_buffer() {
    hammer(6, &host::fuzz::seeds(), host::fuzz::stream);
}
