//! A host with paths to all nodes, on a machine of its own. It gives up a path that is silent, and repeats elsewhere at once.

use crate::cluster::hosts::{BLOCKS, content};
use crate::cluster::nodes::{NQN, portal};
use crate::cluster::register::Registers;
use peristyle_base::BLOCK_BYTES;
use peristyle_bench::host::HostOptions;
use peristyle_bench::paths::{Paths, PathsOptions};
use peristyle_nvme::wire::log_page::AnaState;
use peristyle_rt::sim::WorldHandle;
use peristyle_rt::{Buf, Duration, Instant, now, sleep};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

/// A write that may come again over the path that did it the second time keeps its block for so long: nothing of the first try is left
/// anywhere then.
const QUIET: Duration = Duration::from_secs(20);

/// What a host has done, for the world.
#[derive(Default)]
pub struct Done {
    pub commands: Cell<u64>,
    /// Over a path that was non-optimized.
    pub handed_on: Cell<u64>,
}

#[derive(Clone)]
pub struct Host {
    pub number: usize,
    /// Hosts; each writes blocks of its own, and reads all.
    pub hosts: usize,
    pub nodes: usize,
    pub shards: usize,
    pub depth: usize,
    pub answer_limit: Duration,
    pub rest_us: u64,
    pub registers: Rc<RefCell<Registers>>,
    pub clock: WorldHandle,
    pub done: Rc<Done>,
}

impl Host {
    pub async fn run(self) {
        let name = format!("nqn.2026-01.io.peristyle:host-{}", self.number);
        let host = HostOptions { keep_alive_ms: 1000, entries: 16, ..HostOptions::new(&name, NQN) };
        let paths = Paths::start(PathsOptions {
            answer_limit: self.answer_limit,
            give_up: Duration::from_secs(3600),
            ..PathsOptions::new(host, (0..self.nodes).map(portal).collect())
        });
        let quiet = Rc::default();
        for _ in 1..self.depth {
            peristyle_rt::spawn(self.clone().work(paths.clone(), Rc::clone(&quiet)));
        }
        self.work(paths, quiet).await;
    }

    async fn work(self, paths: Rc<Paths>, quiet: Rc<RefCell<BTreeMap<usize, Instant>>>) {
        loop {
            sleep(Duration::from_micros(100 + peristyle_rt::random_below(2 * self.rest_us + 1))).await;
            let register = peristyle_rt::random_below((BLOCKS * self.shards) as u64) as usize;
            let rests = quiet.borrow().get(&register).is_some_and(|until| now() < *until);
            if register % self.hosts == self.number && !rests && peristyle_rt::random_below(3) > 0 {
                if self.write(&paths, register).await {
                    quiet.borrow_mut().insert(register, now() + QUIET);
                }
            } else {
                self.read(&paths, register).await;
            }
        }
    }

    /// Namespace, and the block as a command says it.
    fn place(register: usize) -> (u32, u64, u32) {
        (1 + (register / BLOCKS) as u32, (register % BLOCKS) as u64, 1)
    }

    /// Says whether it may come again.
    async fn write(&self, paths: &Paths, register: usize) -> bool {
        let begun = self.registers.borrow_mut().begin_write(register);
        let Some(salt) = begun else { return false };
        let mut buf = Buf::alloc(BLOCK_BYTES).await;
        buf.copy_from_slice(&content(salt));
        let done = paths.write(Self::place(register), &buf.freeze()).await.expect("it waits for ever");
        self.registers.borrow_mut().end_write(self.clock.now_nanos(), register, salt, true);
        self.count(paths, done.path, register);
        done.may_come_again
    }

    async fn read(&self, paths: &Paths, register: usize) {
        let began = self.clock.now_nanos();
        let buffer = async || Buf::alloc(BLOCK_BYTES).await;
        let done = paths.read(Self::place(register), buffer).await.expect("it waits for ever");
        let salt = u64::from_le_bytes(done.value[..8].try_into().expect("8 bytes"));
        assert!(done.value[..] == content(salt)[..], "a block is one write's, and whole");
        let now = self.clock.now_nanos();
        self.registers.borrow_mut().end_read(began, now, register, salt, self.number);
        self.count(paths, done.path, register);
    }

    fn count(&self, paths: &Paths, path: usize, register: usize) {
        self.done.commands.set(self.done.commands.get() + 1);
        if paths.state(path, Self::place(register).0) == Some(AnaState::NonOptimized) {
            self.done.handed_on.set(self.done.handed_on.get() + 1);
        }
    }
}
