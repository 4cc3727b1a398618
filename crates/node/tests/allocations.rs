//! Reads and writes over NVMe/TCP take nothing from the system's allocator once all is warm: counted on io_uring, TCP
//! and files, with header and data digests, host and target in one reactor.
//!
//! What a shard does beside the I/O path may allocate (extents opened in advance, the record, seals, checkpoints). It
//! runs in tasks that count apart ([`alloc_count::background`]), so the claim is exact: everything else takes nothing,
//! extents that give way to the next included.
//!
//! [`alloc_count::background`]: peristyle_rt::alloc_count::background

use crate::common::{TestNode, files};
use peristyle_bench::host::{Host, Queue};
use peristyle_rt::alloc_count::{allocations, background_allocations};
use peristyle_rt::sync::{Event, Notify};
use peristyle_rt::{Buf, Duration, RuntimeConfig};
use std::cell::{Cell, RefCell};
use std::rc::Rc;

const BLOCKS: u64 = files::VOLUME_BYTES / 4096;
/// I/Os of one window, half of them reads.
const WINDOW: usize = 256;

/// A load of constant depth. Its tasks live as long as the test: a window is a number of I/Os that they may do.
struct Load {
    queue: Queue,
    /// I/Os of this window that are still to be begun, and those that have not ended.
    left: Cell<usize>,
    running: Cell<usize>,
    next: Cell<u64>,
    /// What each block was last filled with.
    filled: Rc<RefCell<Vec<u8>>>,
    go: Notify,
    done: Notify,
}

impl Load {
    fn start(queue: &Queue, filled: &Rc<RefCell<Vec<u8>>>, depth: usize) -> Rc<Load> {
        let load = Rc::new(Load {
            queue: queue.clone(),
            left: Cell::new(0),
            running: Cell::new(0),
            next: Cell::new(0),
            filled: filled.clone(),
            go: Notify::default(),
            done: Notify::default(),
        });
        for number in 0..depth {
            peristyle_rt::spawn(load.clone().worker(number));
        }
        load
    }

    async fn worker(self: Rc<Self>, number: usize) {
        loop {
            self.go.wait_until(|| self.left.get() > 0).await;
            self.left.set(self.left.get() - 1);
            let i = self.next.replace(self.next.get() + 1);
            // Blocks of one worker belong to it alone: what it reads is what it wrote.
            let block = (i * 7919 % (BLOCKS / 64)) * 64 + number as u64;
            self.one(i, block).await;
            self.running.set(self.running.get() - 1);
            if self.running.get() == 0 {
                self.done.notify_all();
            }
        }
    }

    /// One write or read of 4 KiB, verified.
    async fn one(&self, i: u64, block: u64) {
        let mut buf = Buf::alloc(4096).await;
        if i.is_multiple_of(2) {
            let byte = (i / 2) as u8;
            buf.fill(byte);
            self.queue.write(1, block, 1, buf.freeze()).await.unwrap();
            self.filled.borrow_mut()[block as usize] = byte;
        } else {
            let buf = self.queue.read(1, block, 1, buf).await.unwrap();
            let byte = self.filled.borrow()[block as usize];
            assert!(buf.iter().all(|b| *b == byte), "block {block}");
        }
    }

    /// What a window took from the allocator: on the I/O path, and beside it.
    async fn window(&self) -> (u64, u64) {
        let before = (allocations(), background_allocations());
        self.running.set(WINDOW);
        self.left.set(WINDOW);
        self.go.notify_all();
        self.done.wait_until(|| self.running.get() == 0).await;
        let all = allocations() - before.0;
        let background = background_allocations() - before.1;
        (all - background, background)
    }
}

fn columns_used(node: &TestNode) -> u32 {
    node.columns().servers().iter().map(|s| s.usage().sealed + s.usage().open).sum()
}

/// So many tasks of one size at once as never come again: their memory is kept.
async fn peak<const BYTES: usize>() {
    let gate = Event::default();
    for _ in 0..512 {
        let gate = gate.clone();
        peristyle_rt::spawn(async move {
            let memory = [0u8; BYTES];
            gate.wait().await;
            std::hint::black_box(&memory);
        });
    }
    peristyle_rt::yield_now().await;
    gate.set();
    peristyle_rt::sleep(Duration::from_millis(1)).await;
}

#[test]
fn nothing_is_allocated_in_steady_state_io() {
    peristyle_rt::block_on(RuntimeConfig::default(), async {
        let (node, addr) = files::start("allocations", 6, "4+2").await;
        let host = Host::connect(&addr, &files::host_options(true), 1).await.unwrap();
        // Every block exists: what follows writes over it.
        for block in (0..BLOCKS).step_by(128) {
            host.io[0].write(1, block, 128, Buf::zeroed(128 * 4096).await.freeze()).await.unwrap();
        }
        let filled = Rc::new(RefCell::new(vec![0; BLOCKS as usize]));
        peak::<128>().await;
        peak::<384>().await;
        peak::<896>().await;
        peak::<1920>().await;
        peak::<3968>().await;
        peak::<8064>().await;
        let warm = Load::start(&host.io[0], &filled, 64);
        for _ in 0..64 {
            warm.window().await;
        }
        for depth in [32, 1] {
            let load = Load::start(&host.io[0], &filled, depth);
            load.window().await;
            let (used, mut beside) = (columns_used(&node), 0);
            for window in 0..256 {
                let (path, background) = load.window().await;
                assert_eq!(path, 0, "allocations at depth {depth} in window {window} of {WINDOW} I/Os");
                beside += background;
            }
            assert!(columns_used(&node) > used, "no extent gave way to the next: the claim is too small");
            assert!(beside > 0, "what happens beside the I/O path was not counted");
        }
        host.close();
        node.stop();
    });
}
