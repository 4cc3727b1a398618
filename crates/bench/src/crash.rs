//! Writes across a crash: which of them must be there afterwards, and which may be there wholly or not at all.
//!
//! Each worker owns a region of the volume and has one write in flight in it, so that it knows exactly what the
//! region may hold. What was read back once is settled: a write that was found absent must not appear later.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::rc::Rc;

use peristyle_base::{BLOCK_BYTES, Duration};
use peristyle_nvme::wire::Status;
use peristyle_rt::{Buf, join_all};

use crate::host::{HostError, Payload, Queue};
use crate::random::Random;
use crate::session::{Namespace, Session, SessionError};
use crate::stamp::{Found, Stamp};

/// Blocks of the largest write: 512 KiB, what a write command does atomically.
const WRITE_BLOCKS_MAX: u64 = 128;
/// One of so many commands is a read that is checked at once.
const READ_ONE_IN: u64 = 8;
/// A connection whose target was killed ends within this.
const END_TIMEOUT: Duration = Duration::from_secs(20);
/// Between two looks at how much has been written.
const LOOK: Duration = Duration::from_millis(2);
/// Violations that are told in words.
const TOLD_MAX: usize = 10;

/// How the writers work.
#[derive(Clone, Copy, Debug)]
pub struct CrashPlan {
    pub seed: u64,
    pub connections: u16,
    /// Writes in flight of each connection.
    pub depth: u32,
}

/// A promise that was broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Violation {
    /// A block is not what was last acknowledged, nor what was in flight.
    Lost { block: u64, acknowledged: u64, found: u64 },
    /// Some blocks of one write are there and others are not.
    Torn { block: u64, write: u64 },
    /// A block that no write of this test made, or that belongs elsewhere.
    Garbage { block: u64, found: Found },
    /// The target answered a command with an error.
    Refused { block: u64, status: Status },
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Violation::Lost { block, acknowledged, found } => {
                write!(f, "block {block}: write {acknowledged} was acknowledged, write {found} is there")
            }
            Violation::Torn { block, write } => {
                write!(f, "block {block}: write {write} is there only in part")
            }
            Violation::Garbage { block, found } => write!(f, "block {block} is nobody's: {found:?}"),
            Violation::Refused { block, status } => write!(f, "block {block}: answered with {status:?}"),
        }
    }
}

/// A write whose answer has not come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Flight {
    /// Within the region.
    start: u64,
    blocks: u64,
    write: u64,
}

/// What a crash did to a write in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    Whole,
    Absent,
}

/// The blocks of one worker. Writes are numbered from 1; 0 is a block that was never written.
struct Region {
    seed: u64,
    first: u64,
    acknowledged: Vec<u64>,
    flight: Option<Flight>,
    writes: u64,
}

impl Region {
    fn new(seed: u64, first: u64, blocks: u64) -> Region {
        Region { seed, first, acknowledged: vec![0; blocks as usize], flight: None, writes: 0 }
    }
    fn blocks(&self) -> u64 {
        self.acknowledged.len() as u64
    }
    fn begin(&mut self, start: u64, blocks: u64) -> Flight {
        assert!(self.flight.is_none() && start + blocks <= self.blocks());
        self.writes += 1;
        let flight = Flight { start, blocks, write: self.writes };
        self.flight = Some(flight);
        flight
    }
    fn acknowledge(&mut self) {
        let Some(Flight { start, blocks, write }) = self.flight.take() else { return };
        self.acknowledged[start as usize..(start + blocks) as usize].fill(write);
    }
    fn fill(&self, flight: Flight, out: &mut [u8]) {
        for (n, block) in out.chunks_exact_mut(BLOCK_BYTES).enumerate() {
            let at = self.first + flight.start + n as u64;
            Stamp { seed: self.seed, block: at, write: flight.write }.fill(block);
        }
    }
    /// The number of the write that block `index` shows.
    fn read(&self, index: u64, block: &[u8]) -> Result<u64, Violation> {
        let at = self.first + index;
        match Stamp::find(block) {
            Found::Zeros => Ok(0),
            Found::Stamp(s) if (s.seed, s.block) == (self.seed, at) && s.write > 0 => Ok(s.write),
            found => Err(Violation::Garbage { block: at, found }),
        }
    }

    /// Judges all blocks of the region, given as the writes they show. What is there is the truth from now on.
    fn settle(&mut self, shown: &[u64], violations: &mut Vec<Violation>) -> Option<Fate> {
        let flight = self.flight.take();
        let range = flight.map_or(0..0, |f| f.start..f.start + f.blocks);
        let new = flight.map_or(0, |f| f.write);
        let there = range.clone().filter(|&i| shown[i as usize] == new).count() as u64;
        if there > 0 && there < range.end - range.start {
            violations.push(Violation::Torn { block: self.first + range.start, write: new });
        }
        for (index, (&found, acknowledged)) in shown.iter().zip(&mut self.acknowledged).enumerate() {
            let of_flight = range.contains(&(index as u64)) && found == new;
            if found != *acknowledged && !of_flight {
                let block = self.first + index as u64;
                violations.push(Violation::Lost { block, acknowledged: *acknowledged, found });
            }
            *acknowledged = found;
        }
        flight.map(|_| if there > 0 { Fate::Whole } else { Fate::Absent })
    }
}

/// What one round has seen.
#[derive(Clone, Debug, Default)]
pub struct Round {
    pub writes_acknowledged: u64,
    pub bytes_acknowledged: u64,
    pub reads_checked: u64,
    pub in_flight: u64,
    pub in_flight_whole: u64,
    pub in_flight_absent: u64,
    pub blocks_checked: u64,
    pub violations: u64,
    /// The target had no room for a write: an answer that breaks no promise.
    pub full: bool,
    /// The first of them.
    pub told: Vec<Violation>,
}

/// The model of the whole volume, kept over all rounds.
pub struct Crash {
    plan: CrashPlan,
    namespace: Namespace,
    regions: Vec<Rc<RefCell<Region>>>,
    rounds: u64,
}

impl Crash {
    /// Says in words when the volume does not fit the plan.
    pub fn new(plan: CrashPlan, namespace: Namespace) -> Result<Crash, String> {
        let workers = u64::from(plan.connections) * u64::from(plan.depth);
        let blocks = namespace.bytes / BLOCK_BYTES as u64 / workers;
        if blocks < WRITE_BLOCKS_MAX {
            return Err(format!("the volume needs {WRITE_BLOCKS_MAX} blocks for each of {workers} writers"));
        }
        let region = |w| Rc::new(RefCell::new(Region::new(plan.seed, w * blocks, blocks)));
        Ok(Crash { plan, namespace, regions: (0..workers).map(region).collect(), rounds: 0 })
    }

    /// Writes for `time`, or until `bytes` are acknowledged, then calls `kill`, and waits until all connections
    /// have noticed.
    pub async fn write(
        &mut self,
        session: &Session,
        time: Duration,
        bytes: u64,
        kill: impl FnOnce(),
    ) -> Result<Round, SessionError> {
        self.rounds += 1;
        let round = Rc::new(RefCell::new(Round::default()));
        let queues = self.queues(session).await?;
        let stop = Rc::new(Cell::new(false));
        let mut handles = Vec::new();
        for (n, region) in self.regions.iter().enumerate() {
            let writer = Writer {
                queue: queues[n % queues.len()].clone(),
                namespace: self.namespace,
                region: region.clone(),
                round: round.clone(),
                random: Random::of_worker(self.plan.seed ^ self.rounds << 32, n as u64),
                stop: stop.clone(),
            };
            handles.push(peristyle_rt::spawn(writer.run()));
        }
        let until = peristyle_rt::now() + time;
        while round.borrow().bytes_acknowledged < bytes && !round.borrow().full && peristyle_rt::now() < until
        {
            let left = until.since(peristyle_rt::now());
            peristyle_rt::sleep(left.min(LOOK)).await;
        }
        kill();
        stop.set(true);
        let ends = join_all(queues.iter().map(Queue::closed));
        if peristyle_rt::timeout(END_TIMEOUT, ends).await.is_none() {
            queues.iter().for_each(Queue::close);
        }
        while handles.iter().any(|h| !h.is_finished()) {
            peristyle_rt::yield_now().await;
        }
        let mut round = round.take();
        round.in_flight = self.regions.iter().filter(|r| r.borrow().flight.is_some()).count() as u64;
        Ok(round)
    }

    async fn queues(&self, session: &Session) -> Result<Vec<Queue>, SessionError> {
        session.request_queues(self.plan.connections).await?;
        let mut queues = Vec::new();
        for qid in 1..=self.plan.connections {
            queues.push(session.ticket().queue(qid, self.plan.depth).await?);
        }
        Ok(queues)
    }

    /// Reads everything back and judges it.
    pub async fn verify(&mut self, session: &Session, round: &mut Round) -> Result<(), SessionError> {
        let queues = self.queues(session).await?;
        let each = self.regions.iter().enumerate().map(|(n, region)| {
            let (queue, namespace) = (queues[n % queues.len()].clone(), self.namespace);
            async move { verify_region(&queue, namespace, region).await }
        });
        let results = join_all(each).await;
        queues.iter().for_each(Queue::close);
        for result in results {
            let (violations, fate, blocks) = result?;
            round.blocks_checked += blocks;
            match fate {
                Some(Fate::Whole) => round.in_flight_whole += 1,
                Some(Fate::Absent) => round.in_flight_absent += 1,
                None => {}
            }
            violations.into_iter().for_each(|v| round.violation(v));
        }
        Ok(())
    }
}

impl Round {
    fn violation(&mut self, violation: Violation) {
        self.violations += 1;
        if self.told.len() < TOLD_MAX {
            self.told.push(violation);
        }
    }
    pub fn passed(&self) -> bool {
        self.violations == 0
    }
}

type Verified = (Vec<Violation>, Option<Fate>, u64);

async fn verify_region(
    queue: &Queue,
    namespace: Namespace,
    region: &RefCell<Region>,
) -> Result<Verified, HostError> {
    let (mut violations, blocks, first) = (Vec::new(), region.borrow().blocks(), region.borrow().first);
    let mut shown = Vec::with_capacity(blocks as usize);
    let mut at = 0;
    while at < blocks {
        let count = WRITE_BLOCKS_MAX.min(blocks - at);
        let (status, buf) = read(queue, namespace, first + at, count).await?;
        let region = region.borrow();
        for (n, block) in buf.chunks_exact(BLOCK_BYTES).enumerate() {
            let index = at + n as u64;
            let found = if status.is_success() {
                region.read(index, block)
            } else {
                Err(Violation::Refused { block: first + index, status })
            };
            // What cannot be judged counts once and stands as it was.
            shown.push(found.unwrap_or_else(|violation| {
                violations.push(violation);
                region.acknowledged[index as usize]
            }));
        }
        at += count;
    }
    let fate = region.borrow_mut().settle(&shown, &mut violations);
    Ok((violations, fate, blocks))
}

async fn read(
    queue: &Queue,
    namespace: Namespace,
    block: u64,
    count: u64,
) -> Result<(Status, Buf), HostError> {
    let bytes = count as usize * BLOCK_BYTES;
    let sqe = namespace.read(block * BLOCK_BYTES as u64, bytes as u32);
    let answer = queue.command(sqe, Payload::FromTarget(Buf::alloc(bytes).await)).await?;
    Ok((answer.status(), answer.data.expect("a command with a buffer keeps it")))
}

/// Writes one region until the connection ends.
struct Writer {
    queue: Queue,
    namespace: Namespace,
    region: Rc<RefCell<Region>>,
    round: Rc<RefCell<Round>>,
    random: Random,
    stop: Rc<Cell<bool>>,
}

impl Writer {
    async fn run(mut self) {
        while !self.stop.get() {
            let step =
                if self.random.below(READ_ONE_IN) == 0 { self.read().await } else { self.write().await };
            if step.is_err() {
                return;
            }
        }
    }

    /// Small writes are as likely as large ones: the size is drawn by its power of two, then any up to it.
    fn draw(&mut self) -> (u64, u64) {
        let most = 1 << self.random.below(u64::from(WRITE_BLOCKS_MAX.ilog2()) + 1);
        let blocks = if self.random.below(2) == 0 { most } else { 1 + self.random.below(most) };
        let start = self.random.below(self.region.borrow().blocks() - blocks + 1);
        (start, blocks)
    }

    /// An error status leaves the write in flight: what it has done is not known. The writer ends then.
    async fn write(&mut self) -> Result<(), ()> {
        let (start, blocks) = self.draw();
        let mut buf = Buf::alloc(blocks as usize * BLOCK_BYTES).await;
        let first = self.region.borrow().first;
        {
            let mut region = self.region.borrow_mut();
            let flight = region.begin(start, blocks);
            region.fill(flight, &mut buf);
        }
        let bytes = buf.len() as u64;
        let sqe = self.namespace.write((first + start) * BLOCK_BYTES as u64, bytes as u32);
        let answer = self.queue.command(sqe, Payload::ToTarget(buf.freeze())).await.map_err(drop)?;
        let mut round = self.round.borrow_mut();
        if answer.status().is(Status::CAPACITY_EXCEEDED) {
            round.full = true;
            return Err(());
        }
        if !answer.status().is_success() {
            round.violation(Violation::Refused { block: first + start, status: answer.status() });
            return Err(());
        }
        self.region.borrow_mut().acknowledge();
        round.writes_acknowledged += 1;
        round.bytes_acknowledged += bytes;
        Ok(())
    }

    async fn read(&mut self) -> Result<(), ()> {
        let (start, blocks) = self.draw();
        let first = self.region.borrow().first;
        let (status, buf) = read(&self.queue, self.namespace, first + start, blocks).await.map_err(drop)?;
        let (region, mut round) = (self.region.borrow(), self.round.borrow_mut());
        if !status.is_success() {
            round.violation(Violation::Refused { block: first + start, status });
            return Err(());
        }
        round.reads_checked += 1;
        for (index, block) in (start..).zip(buf.chunks_exact(BLOCK_BYTES)) {
            let acknowledged = region.acknowledged[index as usize];
            match region.read(index, block) {
                Ok(found) if found == acknowledged => {}
                Ok(found) => round.violation(Violation::Lost { block: first + index, acknowledged, found }),
                Err(violation) => round.violation(violation),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn region() -> Region {
        let mut region = Region::new(1, 100, 8);
        region.begin(0, 6);
        region.acknowledge();
        region
    }

    fn settle(region: &mut Region, shown: [u64; 8]) -> (Option<Fate>, Vec<Violation>) {
        let mut violations = Vec::new();
        let fate = region.settle(&shown, &mut violations);
        (fate, violations)
    }

    #[test]
    fn a_write_in_flight_may_be_there_wholly_or_not_at_all() {
        for (shown, fate) in
            [([1, 1, 2, 2, 2, 1, 0, 0], Fate::Whole), ([1, 1, 1, 1, 1, 1, 0, 0], Fate::Absent)]
        {
            let mut r = region();
            r.begin(2, 3);
            assert_eq!(settle(&mut r, shown), (Some(fate), vec![]));
        }
    }

    #[test]
    fn a_part_of_a_write_is_torn() {
        let mut r = region();
        r.begin(2, 3);
        let (_, violations) = settle(&mut r, [1, 1, 2, 1, 2, 1, 0, 0]);
        assert_eq!(violations, vec![Violation::Torn { block: 102, write: 2 }]);
    }

    #[test]
    fn an_acknowledged_write_that_is_gone_is_lost() {
        let (_, violations) = settle(&mut region(), [1, 1, 1, 1, 1, 0, 0, 0]);
        assert_eq!(violations, vec![Violation::Lost { block: 105, acknowledged: 1, found: 0 }]);
    }

    #[test]
    fn what_was_found_absent_must_not_appear_later() {
        let mut r = region();
        r.begin(6, 1);
        assert_eq!(settle(&mut r, [1, 1, 1, 1, 1, 1, 0, 0]).0, Some(Fate::Absent));
        let (_, violations) = settle(&mut r, [1, 1, 1, 1, 1, 1, 2, 0]);
        assert_eq!(violations, vec![Violation::Lost { block: 106, acknowledged: 0, found: 2 }]);
    }

    #[test]
    fn blocks_of_another_place_or_another_test_are_nobodys() {
        let mut r = region();
        let flight = r.begin(0, 1);
        let mut block = vec![0; BLOCK_BYTES];
        r.fill(flight, &mut block);
        assert_eq!(r.read(0, &block), Ok(2));
        assert!(matches!(r.read(1, &block), Err(Violation::Garbage { block: 101, .. })));
        assert!(matches!(Region::new(2, 100, 8).read(0, &block), Err(Violation::Garbage { .. })));
    }
}
