//! A device of a real node stalls, and later another one fails, while a host reads and writes at depth 32: the host is
//! told of no error, its commands go on, and what it reads is what it wrote. Commands are counted, not timed: in every
//! half second some end. The one bound on time is far from what a command takes, and far from what the stall would cost.

mod daemon;

use daemon::Daemon;
use peristyle_bench::host::{Host, HostOptions, Queue};
use peristyle_rt::{Addr, Buf, BufConfig, Duration, Instant, RuntimeConfig};
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;

const WORKERS: u64 = 32;
/// Blocks of each worker: its alone.
const BLOCKS: u64 = 256;
/// Half seconds of the load: before, during the stall, and after; then with a device that fails.
const BEFORE: usize = 4;
const STALLED: usize = 10;
const AFTER: usize = 4;
const FAILED: usize = 6;
const SLOT: Duration = Duration::from_millis(500);
const LONGEST: Duration = Duration::from_secs(2);

/// What the host sees.
struct Load {
    queue: Queue,
    stop: Cell<bool>,
    ended: Cell<u64>,
    longest: Cell<Duration>,
    /// What each block was last filled with.
    filled: RefCell<Vec<u8>>,
    running: Cell<u64>,
}

impl Load {
    async fn worker(self: Rc<Self>, worker: u64) {
        for i in 0u64.. {
            if self.stop.get() {
                break;
            }
            let block = worker * BLOCKS + i * 37 % BLOCKS;
            let started = peristyle_rt::now();
            if i < BLOCKS || i.is_multiple_of(4) {
                self.write(block, i as u8).await;
            } else {
                self.read(block).await;
            }
            self.took(started);
            // The space of what is overwritten is not collected yet.
            peristyle_rt::sleep(Duration::from_millis(8)).await;
        }
        self.running.set(self.running.get() - 1);
    }

    async fn write(&self, block: u64, byte: u8) {
        let mut buf = Buf::alloc(4096).await;
        buf.fill(byte);
        self.queue.write(1, block, 1, buf.freeze()).await.expect("a write");
        self.filled.borrow_mut()[block as usize] = byte;
    }

    async fn read(&self, block: u64) {
        let buf = self.queue.read(1, block, 1, Buf::alloc(4096).await).await.expect("a read");
        let byte = self.filled.borrow()[block as usize];
        assert!(buf.iter().all(|b| *b == byte), "block {block}");
    }

    fn took(&self, started: Instant) {
        self.ended.set(self.ended.get() + 1);
        self.longest.set(self.longest.get().max(peristyle_rt::now().since(started)));
    }

    /// Commands that ended in each of so many half seconds.
    async fn watch(&self, slots: usize) -> Vec<u64> {
        let mut ended = Vec::new();
        for _ in 0..slots {
            let before = self.ended.get();
            peristyle_rt::sleep(SLOT).await;
            ended.push(self.ended.get() - before);
        }
        ended
    }
}

/// The program is asked on another thread: the host's reactor goes on.
async fn ask(daemon: &Arc<Daemon>, args: &'static [&'static str]) -> String {
    let daemon = daemon.clone();
    peristyle_rt::blocking(move || daemon.ask(args)).await
}

async fn story(daemon: Arc<Daemon>) {
    let addr = Addr::Tcp(daemon.ready["listen"].as_str().unwrap().parse().unwrap());
    let nqn = daemon.ready["nqn"].as_str().unwrap();
    let host =
        Host::connect(&addr, &HostOptions::new("nqn.2026-01.io.peristyle:alice", nqn), 1).await.unwrap();
    let load = Rc::new(Load {
        queue: host.io[0].clone(),
        stop: Cell::new(false),
        ended: Cell::new(0),
        longest: Cell::new(Duration::ZERO),
        filled: RefCell::new(vec![0; (WORKERS * BLOCKS) as usize]),
        running: Cell::new(WORKERS),
    });
    for worker in 0..WORKERS {
        peristyle_rt::spawn(load.clone().worker(worker));
    }
    let mut ended = load.watch(BEFORE).await;
    ask(&daemon, &["inject", "device-3", "stall", "--for", "5s"]).await;
    ended.extend(load.watch(STALLED + AFTER).await);
    ask(&daemon, &["inject", "device-1", "fail", "--for", "1h"]).await;
    ended.extend(load.watch(FAILED).await);
    load.stop.set(true);
    while load.running.get() > 0 {
        peristyle_rt::sleep(Duration::from_millis(5)).await;
    }
    for block in 0..WORKERS * BLOCKS {
        load.read(block).await;
    }
    assert!(ended.iter().all(|n| *n > 0), "commands that ended in each half second: {ended:?}");
    assert!(load.longest.get() < LONGEST, "{:?}; {ended:?}", load.longest.get());
    let stats = ask(&daemon, &["stats", "--json"]).await;
    assert!(stats.contains("hedged_reads") && stats.contains("hedges_won"), "{stats}");
    let devices = ask(&daemon, &["device", "list", "--json"]).await;
    assert!(devices.contains("\"failed\""), "{devices}");
    host.close();
}

#[test]
fn a_stalling_and_a_failing_device_of_a_real_node_cost_hosts_no_error_and_no_stall() {
    let config = RuntimeConfig { buffers: BufConfig::small(), ..RuntimeConfig::default() };
    peristyle_rt::block_on(config, async { story(Arc::new(Daemon::on_files())).await });
}
