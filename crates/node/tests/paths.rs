//! A host with a path to every node, as native multipath has them: it asks the node whose path is optimized, and goes to another
//! when that node says so or is not there. Nodes are killed, stopped and told to hand the shard over; the host sees no error.

use crate::common::owners::{NODES, Owners};
use crate::common::*;
use peristyle_bench::paths::{Done, PathError, Paths};
use peristyle_nvme::wire::log_page::AnaState;
use peristyle_rt::Duration;
use std::cell::{Cell, RefCell};
use std::rc::Rc;

/// Pieces that the host writes and reads, of two blocks each.
const PIECES: u64 = 32;

/// The host of this test, and how it is served.
struct Story {
    owners: Owners,
    served: Rc<Served>,
    /// Controllers that were seen, by node.
    cntlids: RefCell<Vec<(usize, u16)>>,
}

#[derive(Default)]
struct Served {
    commands: Cell<u64>,
    last: Cell<u64>,
    longest: Cell<u64>,
    /// Commands of which an earlier try may be done later.
    may_come_again: Cell<u64>,
}

impl Served {
    /// The value of a command, of which the host sees no error.
    fn value<T>(&self, result: Result<Done<T>, PathError>) -> T {
        let now = peristyle_rt::now().nanos();
        self.longest.set(self.longest.get().max(now - self.last.replace(now)));
        self.commands.set(self.commands.get() + 1);
        let done = result.unwrap_or_else(|error| panic!("the host is told of an error: {error}"));
        self.may_come_again.set(self.may_come_again.get() + u64::from(done.may_come_again));
        done.value
    }
}

impl Story {
    fn new(seed: u64, reactors: usize) -> Story {
        Story { owners: Owners::new(seed, reactors), served: Rc::default(), cntlids: RefCell::default() }
    }

    fn begin(&self) {
        let served = self.served.clone();
        self.owners.begin(move |paths| write_and_read(paths, served.clone()));
    }

    /// Has the node own the shard, and waits until the host has been served so often from then on.
    fn hand_to(&self, i: usize, commands: u64) {
        let before = self.served.commands.get();
        self.owners.hand_to(i, || {
            self.look_at_controllers();
            self.served.commands.get() >= before + commands
        });
        let group = self.owners.paths().groups(i);
        assert!(group.len() == 1 && group[0].group == 1 && group[0].nsids == [1], "{group:?}");
    }

    fn look_at_controllers(&self) {
        let mut seen = self.cntlids.borrow_mut();
        for at in (0..NODES).filter_map(|i| Some((i, self.owners.paths().cntlid(i)?))) {
            if !seen.contains(&at) {
                seen.push(at);
            }
        }
    }

    /// The longest time without an answer since this was last asked.
    fn stall(&self) -> Duration {
        Duration::from_nanos(self.served.longest.take())
    }
}

/// Pieces all over the volume, each written anew with other bytes, and read as they were written last.
async fn write_and_read(paths: Rc<Paths>, served: Rc<Served>) {
    let mut salts = [0; PIECES as usize];
    served.last.set(peristyle_rt::now().nanos());
    for salt in 1u64.. {
        let (at, other) = (salt * 7 % PIECES, salt * 11 % PIECES);
        let data = view(&fill(8192, salt)).await;
        served.value(paths.write((1, at * 2, 2), &data).await);
        salts[at as usize] = salt;
        let data = served.value(paths.read((1, other * 2, 2), async || buffer().await).await);
        let expected = match salts[other as usize] {
            0 => vec![0; 8192],
            salt => fill(8192, salt),
        };
        assert!(data[..] == expected, "piece {other} is not what was written last");
    }
}

async fn buffer() -> peristyle_rt::Buf {
    peristyle_rt::Buf::alloc(8192).await
}

#[test]
fn a_host_with_all_paths_follows_the_shard_and_hears_of_every_change() {
    for reactors in [1, 2] {
        let story = Story::new(31, reactors);
        story.begin();
        story.hand_to(0, 100);
        story.stall();
        for round in 0..6 {
            let (from, to) = (round % 3, (round + 1) % 3);
            story.owners.orders[from].own.set(Some(false));
            story.owners.run(Duration::from_millis(2));
            story.hand_to(to, 100);
            let states: Vec<_> = (0..NODES).map(|i| story.owners.paths().state(i, 1)).collect();
            assert_eq!(states[to], Some(AnaState::Optimized));
            assert!(
                (0..NODES).filter(|&i| i != to).all(|i| states[i] == Some(AnaState::Inaccessible)),
                "{states:?}"
            );
        }
        let notices = story.owners.paths().notices();
        assert!(notices >= 12, "{notices}");
        let stall = story.stall();
        assert!(stall < Duration::from_millis(500), "a planned hand-over took {stall:?}");
        let ids = story.cntlids.borrow();
        assert!(ids.len() >= NODES, "{ids:?}");
        assert!(
            ids.iter().all(|(node, id)| ids.iter().all(|(n, other)| n == node || other != id)),
            "{ids:?}"
        );
    }
}

#[test]
fn a_host_with_all_paths_outlives_owners_that_are_killed_and_stopped() {
    let story = Story::new(32, 1);
    story.begin();
    let mut owner = 0;
    story.hand_to(owner, 100);
    for round in 0..6 {
        let next = (owner + 1) % 3;
        match round % 2 {
            0 => story.owners.cluster.machines[owner].kill(),
            _ => story.owners.cluster.machines[owner].pause(Duration::from_secs(3)),
        }
        story.owners.run(Duration::from_millis(500));
        story.hand_to(next, 200);
        if round % 2 == 0 {
            story.owners.boot(owner);
        }
        // It is rebuilt, or has come back.
        story.owners.run(Duration::from_secs(4));
        let stall = story.stall();
        println!("round {round}: {stall:?} without an answer");
        assert!(stall < Duration::from_secs(1), "{stall:?} without an answer");
        owner = next;
    }
}

#[test]
fn a_command_that_is_repeated_where_its_outcome_is_unknown_says_so() {
    let story = Story::new(33, 1);
    story.begin();
    story.hand_to(0, 100);
    // No other node takes over: nothing fences what was sent to this one before.
    story.owners.cluster.machines[0].pause(Duration::from_millis(540));
    story.owners.run(Duration::from_millis(540));
    story.hand_to(0, 100);
    assert_eq!(story.served.may_come_again.get(), 1);
    story.owners.cluster.machines[0].pause(Duration::from_secs(3));
    story.owners.run(Duration::from_millis(500));
    story.hand_to(1, 200);
    assert_eq!(story.served.may_come_again.get(), 1);
}
