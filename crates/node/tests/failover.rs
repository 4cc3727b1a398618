//! What a host sees of a failover, under load: owners are killed, stopped and told to hand the shard over while blocks are read
//! and written, and each read is judged.

use crate::common::owners::{NODES, Owners, addr};
use crate::common::*;
use peristyle_bench::failover::{BUCKET, Failover, Phase, Plan, Violation};
use peristyle_bench::host::{Host, HostOptions};
use peristyle_bench::paths::Paths;
use peristyle_rt::{Buf, Duration};
use std::cell::{Cell, RefCell};
use std::rc::Rc;

/// Small disks would be full before a node that is stopped has come back.
const PAUSE: Duration = Duration::from_millis(2);

/// What the test tells the host, and what it hears.
#[derive(Default)]
struct Load {
    failover: RefCell<Option<Rc<Failover>>>,
    mark: Cell<Option<&'static str>>,
    /// In the phase that goes on.
    completed: Cell<u64>,
    done: RefCell<Vec<Phase>>,
}

impl Load {
    async fn run(self: Rc<Self>, paths: Rc<Paths>, plan: Plan) {
        let failover = Failover::start(paths, plan, "start").await.unwrap();
        *self.failover.borrow_mut() = Some(failover.clone());
        loop {
            peristyle_rt::sleep(Duration::from_millis(1)).await;
            if let Some(name) = self.mark.take() {
                failover.mark(name).unwrap();
                let ended = failover.record().phases().iter().rev().nth(1).unwrap().clone();
                self.done.borrow_mut().push(ended);
            }
            self.completed.set(failover.record().phases().last().unwrap().completed);
        }
    }

    fn violations(&self) -> Vec<Violation> {
        self.failover.borrow().as_ref().unwrap().registers().told().to_vec()
    }
}

struct Story {
    owners: Owners,
    load: Rc<Load>,
}

impl Story {
    /// The first node owns the shard, and the load runs.
    fn begin(seed: u64, depth: u32, blocks: u64) -> Story {
        let story = Story { owners: Owners::new(seed, 1), load: Rc::default() };
        let (load, plan) =
            (story.load.clone(), Plan { seed, nsid: 1, depth, pause: PAUSE, read_share: 50, blocks });
        story.owners.begin(move |paths| load.clone().run(paths, plan));
        story.serve(0);
        story.mark("owner 0");
        story
    }

    /// Has the node own the shard, and waits until the host has been served from then on.
    fn serve(&self, node: usize) {
        let before = self.load.completed.get();
        self.owners.hand_to(node, || self.load.completed.get() >= before + 200);
    }

    /// Ends a phase, which is returned.
    fn mark(&self, next: &'static str) -> Phase {
        self.load.mark.set(Some(next));
        self.owners.run(Duration::from_millis(5));
        assert!(self.load.mark.take().is_none(), "the host does not run");
        self.load.done.borrow().last().unwrap().clone()
    }

    /// The stall that a host saw since the mark before, of which it was told by nothing else.
    fn stall(&self, what: &'static str) -> Duration {
        let phase = self.mark(what);
        assert_eq!((phase.errors, phase.violations), (0, 0), "{:?}", self.load.violations());
        assert!(phase.completed > 200, "{phase:?}");
        println!("{what}: {:?}, the longest command {:?}", phase.longest_stall, phase.longest_command);
        let empty = phase.buckets.iter().filter(|bucket| bucket.completed == 0).count() as u32;
        assert!(
            BUCKET * empty <= phase.longest_stall,
            "more than one stall: {empty} intervals without a command"
        );
        phase.longest_stall
    }
}

#[test]
fn a_host_under_load_reads_what_it_wrote_whatever_happens_to_the_owner() {
    for (seed, depth) in [(41, 1), (42, 32)] {
        let story = Story::begin(seed, depth, 256);
        let machines = &story.owners.cluster.machines;

        machines[0].kill();
        story.owners.run(Duration::from_millis(500));
        story.serve(1);
        let stall = story.stall("killed");
        assert!(stall > Duration::from_millis(300) && stall < Duration::from_secs(1), "{stall:?}");
        story.owners.boot(0);
        story.owners.run(Duration::from_secs(3));

        machines[1].pause(Duration::from_secs(3));
        story.owners.run(Duration::from_millis(500));
        story.serve(2);
        // The former owner comes back, with all that had been sent to it.
        story.owners.run(Duration::from_secs(4));
        let stall = story.stall("paused");
        assert!(stall > Duration::from_millis(300) && stall < Duration::from_secs(1), "{stall:?}");

        story.owners.orders[2].own.set(Some(false));
        story.owners.run(Duration::from_millis(2));
        story.serve(0);
        let stall = story.stall("handed over");
        assert!(stall < Duration::from_millis(500), "{stall:?}");
    }
}

/// The next owner reads what it can before it claims the shard, and the owner serves until then.
#[test]
fn an_owner_that_hands_over_serves_until_the_next_one_has_read_its_checkpoint() {
    for (seed, depth) in [(44, 1), (45, 32)] {
        let story = Story::begin(seed, depth, 256);
        let orders = &story.owners.orders;
        for (from, to) in [(0, 1), (1, 2), (2, 0)] {
            orders[from].hand_over.set(true);
            story.owners.run(Duration::from_millis(30));
            story.serve(to);
            let stall = story.stall("handed over");
            assert!(orders[to].foreseen.get() && !orders[from].serves.get());
            assert!(stall < Duration::from_millis(60), "{stall:?}");
        }
        // Nobody comes: it goes all the same, and can be asked back.
        orders[0].hand_over.set(true);
        story.owners.run(Duration::from_millis(900));
        assert!(orders[0].serves.get());
        story.owners.run(Duration::from_millis(400));
        assert!(!orders[0].serves.get());
        story.serve(0);
    }
}

/// Reads a block, and writes the same contents back when the host has long written others.
async fn bring_back(block: u64) {
    for i in (0..NODES).cycle() {
        let (addr, options) = (addr(i), HostOptions::new("nqn.2026-01.io.peristyle:mallory", NQN));
        let Ok(host) = Host::connect(&addr, &options, 1).await else { continue };
        let old = host.io[0].read(1, block, 1, Buf::alloc(4096).await).await;
        peristyle_rt::sleep(Duration::from_millis(20)).await;
        if let Ok(old) = old {
            let _ = host.io[0].write(1, block, 1, old.freeze()).await;
        }
        host.close();
    }
}

#[test]
fn a_block_that_is_as_it_was_before_is_noticed() {
    let story = Story::begin(43, 4, 16);
    assert_eq!(story.load.violations(), []);
    let mallory = story.owners.cluster.world.handle().add_node([10, 0, 9, 10].into());
    mallory.start(vec![3], bring_back);
    story.owners.run(Duration::from_secs(1));
    let violations = story.load.violations();
    assert!(matches!(violations[..], [Violation::Stale { block: 3, .. }, ..]), "{violations:?}");
    let counted = story.mark("after").violations;
    assert!(counted >= violations.len() as u64, "{counted}");
}
