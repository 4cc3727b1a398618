//! What a host sees of a failover: random blocks are read and written over all paths, whatever happens to the nodes, and every
//! read is judged.
//!
//! Read first: [`Failover`], [`Record`] (how long nothing was done), [`Registers`] (what a read may return).

mod record;
mod register;

pub use record::{BUCKET, Bucket, Mark, Phase, Record};
pub use register::{Reading, Registers, Violation, Writing};

use crate::paths::{Done, PathError, Paths};
use crate::random::Random;
use crate::session::{Namespace, SessionError};
use peristyle_base::BLOCK_BYTES;
use peristyle_nvme::wire::log_page::AnaState;
use peristyle_rt::sync::Notify;
use peristyle_rt::{Buf, Duration, Instant, now, sleep};
use std::cell::{Cell, Ref, RefCell};
use std::rc::Rc;

/// Blocks that one run uses at most: the memory of a register for each.
pub const BLOCKS_MAX: u64 = 1 << 20;
/// A write that may come again ([`Done::may_come_again`]), or that failed, has its block for itself for so long: a node that runs
/// has read all that was sent to it by then, and until then the same contents can only be written once more.
const QUIET: Duration = Duration::from_secs(5);
/// Blocks that are drawn to find one that may be written; then it is a read.
const DRAWS: u32 = 8;
/// After a command that failed.
const ERROR_PAUSE: Duration = Duration::from_millis(10);
/// Errors that are told in words.
const TOLD_MAX: usize = 10;

/// What is done to the namespace. Its contents are lost.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    pub seed: u64,
    pub nsid: u32,
    /// Commands in flight.
    pub depth: u32,
    /// Of each of them, from its end to the beginning of the next.
    pub pause: Duration,
    /// Reads, percent.
    pub read_share: u8,
    /// Of the namespace, from its front on; as many as it has when that is fewer, and [`BLOCKS_MAX`] at most.
    pub blocks: u64,
}

/// A closed loop that runs until it is stopped.
pub struct Failover {
    paths: Rc<Paths>,
    plan: Plan,
    namespace: Namespace,
    registers: RefCell<Registers>,
    record: RefCell<Record>,
    errors: RefCell<Vec<PathError>>,
    stopping: Cell<bool>,
    running: Cell<u32>,
    ended: Notify,
}

impl Failover {
    /// Asks for the namespace, and begins with a phase of this name.
    pub async fn start(paths: Rc<Paths>, plan: Plan, phase: &str) -> Result<Rc<Failover>, SessionError> {
        let namespace = paths.namespace(plan.nsid).await?;
        if !(BLOCK_BYTES as u32).is_multiple_of(namespace.lba_bytes) {
            return Err(SessionError::Answer("the namespace's logical blocks are larger than 4 KiB"));
        }
        let blocks = (namespace.bytes / BLOCK_BYTES as u64).min(plan.blocks).min(BLOCKS_MAX);
        if blocks < 2 * u64::from(plan.depth) {
            return Err(SessionError::Answer(
                "the namespace has fewer than two blocks for each command in flight",
            ));
        }
        let failover = Rc::new(Failover {
            paths,
            plan,
            namespace,
            // Not the seed: what an earlier run with the same one has left is not this one's.
            registers: RefCell::new(Registers::new(peristyle_rt::random_u64(), blocks)),
            record: RefCell::new(Record::new(phase, now())),
            errors: RefCell::default(),
            stopping: Cell::new(false),
            running: Cell::new(plan.depth),
            ended: Notify::default(),
        });
        for worker in 0..plan.depth {
            peristyle_rt::spawn(failover.clone().work(worker));
        }
        Ok(failover)
    }

    /// Waits until all commands have ended; no new one begins.
    pub async fn stop(&self) {
        self.stopping.set(true);
        self.ended.wait_until(|| self.running.get() == 0).await;
    }

    /// Begins another phase; `None` when there were too many.
    pub fn mark(&self, name: &str) -> Option<Mark> {
        self.record.borrow_mut().mark(name, now())
    }
    /// The phases so far, the last one as long as it is now.
    pub fn record(&self) -> Ref<'_, Record> {
        self.record.borrow_mut().look(now());
        self.record.borrow()
    }
    pub fn longest_stall_since(&self, mark: Mark) -> Duration {
        self.record.borrow().longest_stall_since(mark, now())
    }
    pub fn longest_command_since(&self, mark: Mark) -> Duration {
        self.record.borrow().longest_command_since(mark)
    }
    /// What was read, and must not have been: how often, and the first of them.
    pub fn registers(&self) -> Ref<'_, Registers> {
        self.registers.borrow()
    }
    /// Of each path, what it says of the namespace; `None` when it is not connected.
    pub fn states(&self) -> impl Iterator<Item = Option<AnaState>> + '_ {
        (0..self.paths.count()).map(|path| self.paths.state(path, self.plan.nsid))
    }
    /// The first errors that a host was told of.
    pub fn errors(&self) -> Ref<'_, Vec<PathError>> {
        self.errors.borrow()
    }

    /// Keeps one command in flight.
    async fn work(self: Rc<Self>, worker: u32) {
        let mut random = Random::of_worker(self.plan.seed, u64::from(worker));
        let spare = Cell::new(None);
        while !self.stopping.get() {
            let reads = random.below(100) < u64::from(self.plan.read_share);
            let began = now();
            let result = match if reads { None } else { self.take(&mut random).await } {
                Some((writing, data)) => self.write(writing, data).await,
                None => self.read(&mut random, &spare).await,
            };
            match result {
                Ok(()) => self.record.borrow_mut().completed(began, now()),
                Err(error) => self.fail(error).await,
            }
            if !self.plan.pause.is_zero() {
                sleep(self.plan.pause).await;
            }
        }
        self.running.set(self.running.get() - 1);
        self.ended.notify_all();
    }

    /// A block that may be written, and its new contents.
    async fn take(&self, random: &mut Random) -> Option<(Writing, Buf)> {
        let mut data = Buf::alloc(BLOCK_BYTES).await;
        let mut registers = self.registers.borrow_mut();
        let blocks = registers.blocks();
        let writing =
            (0..DRAWS).find_map(|_| registers.begin_write(random.below(blocks), now(), &mut data))?;
        Some((writing, data))
    }

    async fn write(&self, writing: Writing, data: Buf) -> Result<(), PathError> {
        let result = self.paths.write(self.place(writing.block), &data.freeze()).await;
        let mut registers = self.registers.borrow_mut();
        let is_over = matches!(result, Ok(Done { may_come_again: false, .. }));
        if result.is_ok() {
            registers.acknowledged(&writing);
        }
        registers.end_write(writing, if is_over { Instant::ZERO } else { now() + QUIET });
        result.map(drop)
    }

    async fn read(&self, random: &mut Random, spare: &Cell<Option<Buf>>) -> Result<(), PathError> {
        let reading = {
            let registers = self.registers.borrow();
            registers.begin_read(random.below(registers.blocks()))
        };
        let buffer = async || match spare.take() {
            Some(buf) => buf,
            None => Buf::alloc(BLOCK_BYTES).await,
        };
        let data = self.paths.read(self.place(reading.block), buffer).await?.value;
        let mut registers = self.registers.borrow_mut();
        let before = registers.violations();
        registers.end_read(reading, &data);
        self.record.borrow_mut().violated(registers.violations() - before);
        spare.set(Some(data));
        Ok(())
    }

    /// A block as a command says it: namespace, first logical block, logical blocks.
    fn place(&self, block: u64) -> (u32, u64, u32) {
        let lbas = BLOCK_BYTES as u32 / self.namespace.lba_bytes;
        (self.plan.nsid, block * u64::from(lbas), lbas)
    }

    async fn fail(&self, error: PathError) {
        self.record.borrow_mut().failed();
        {
            let mut errors = self.errors.borrow_mut();
            if errors.len() < TOLD_MAX {
                errors.push(error);
            }
        }
        sleep(ERROR_PAUSE).await;
    }
}
