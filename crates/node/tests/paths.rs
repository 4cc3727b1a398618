//! A host with a path to every node, as native multipath has them: it asks the node whose path is optimized, and goes to another
//! when that node says so or is not there. Nodes are killed, stopped and told to hand the shard over; the host sees no error.

use crate::common::cluster::Cluster;
use crate::common::*;
use peristyle_base::ShardId;
use peristyle_bench::host::{Host, HostError, HostOptions};
use peristyle_node::{Node, ShardPhase};
use peristyle_nvme::subsystem::Hosts;
use peristyle_nvme::wire::Status;
use peristyle_nvme::wire::log_page::{AnaState, lid};
use peristyle_rt::sim::{NodeHandle, WorldHandle};
use peristyle_rt::{Addr, Duration, timeout};
use std::cell::{Cell, RefCell};
use std::rc::Rc;

const SHARD: ShardId = ShardId(0);
const PORT: u16 = 4420;
/// Asynchronous event configuration: ANA change notices.
const ANA_EVENTS: (u8, u32) = (0x0b, 1 << 11);
/// Pieces that the host writes and reads, of two blocks each.
const PIECES: u64 = 32;

/// What the test tells a node, and what it hears.
#[derive(Default)]
struct Orders {
    own: Cell<Option<bool>>,
    serves: Cell<bool>,
}

/// Three nodes that all export the volume; whoever is told to owns its shard.
struct Story {
    cluster: Cluster,
    orders: Vec<Rc<Orders>>,
    client: NodeHandle,
    host: Rc<Paths>,
}

impl Story {
    fn new(seed: u64, reactors: usize) -> Story {
        let cluster = Cluster::with_owners(seed, "1+1", 3, reactors);
        let client = cluster.world.handle().add_node([10, 0, 9, 9].into());
        let host = Rc::new(Paths::new(cluster.world.handle()));
        Story { cluster, orders: (0..3).map(|_| Rc::default()).collect(), client, host }
    }

    fn boot(&self, i: usize) {
        let orders = self.orders[i].clone();
        orders.own.set(None);
        orders.serves.set(false);
        let seeds =
            peristyle_node::seeds(&self.cluster.configs[i], self.cluster.reactors, &self.cluster.store);
        self.cluster.machines[i].start(seeds, move |seed| {
            let orders = orders.clone();
            async move {
                let node = Node::start(seed, false).await;
                let volumes = vec![spec()];
                node.start_target(target_config(addr(i), Hosts::Any, volumes)).await.unwrap();
                let is_serving = |p: &(ShardId, ShardPhase)| matches!(p.1, ShardPhase::Serving(_));
                loop {
                    // Each reactor looks; the one whose shard it is has it.
                    if let Some(own) = orders.own.take() {
                        assert!(node.own(SHARD, own).await);
                    }
                    if node.home_of(SHARD) == Some(node.id()) {
                        orders.serves.set(node.shard_phases().iter().any(is_serving));
                    }
                    peristyle_rt::sleep(Duration::from_millis(2)).await;
                }
            }
        });
    }

    fn begin(&self) {
        (0..3).for_each(|i| self.boot(i));
        let host = self.host.clone();
        self.client.start(vec![()], move |()| host.clone().run());
    }

    fn run(&self, time: Duration) {
        self.cluster.world.handle().run_for(time);
    }

    /// Has the node own the shard, and waits until the host has been served so often from then on.
    fn hand_to(&self, i: usize, commands: u64) {
        let before = self.host.served.get();
        for _ in 0..5000 {
            if !self.orders[i].serves.get() {
                self.orders[i].own.set(Some(true));
            }
            self.run(Duration::from_millis(2));
            if self.orders[i].serves.get() && self.host.served.get() >= before + commands {
                return;
            }
        }
        panic!("node {i} does not serve: {:?}", self.host.states.borrow());
    }

    /// The longest time without an answer since this was last asked.
    fn stall(&self) -> Duration {
        Duration::from_nanos(self.host.longest.take())
    }
}

fn addr(i: usize) -> Addr {
    Addr::Tcp(([10, 0, 0, i as u8 + 1], PORT).into())
}

/// The host's paths: a controller on each node, and the state of the volume's group there.
struct Paths {
    clock: WorldHandle,
    hosts: RefCell<[Option<Rc<Host>>; 3]>,
    states: RefCell<[Option<AnaState>; 3]>,
    /// Controller identifiers that were given, by node.
    cntlids: RefCell<Vec<(usize, u16)>>,
    /// Change notices that came.
    notices: Cell<u64>,
    served: Cell<u64>,
    last: Cell<u64>,
    longest: Cell<u64>,
}

impl Paths {
    fn new(clock: WorldHandle) -> Paths {
        Paths {
            clock,
            hosts: RefCell::default(),
            states: RefCell::default(),
            cntlids: RefCell::default(),
            notices: Cell::new(0),
            served: Cell::new(0),
            last: Cell::new(0),
            longest: Cell::new(0),
        }
    }

    async fn run(self: Rc<Self>) {
        for i in 0..3 {
            peristyle_rt::spawn(self.clone().keep_path(i));
        }
        let mut salts = [0; PIECES as usize];
        for salt in 1u64.. {
            let (at, other) = (salt * 7 % PIECES, salt * 11 % PIECES);
            self.until_done(async |host: &Host| {
                host.io[0].write(1, at * 2, 2, view(&fill(8192, salt)).await).await
            })
            .await;
            salts[at as usize] = salt;
            let data = self
                .until_done(async |host: &Host| host.io[0].read(1, other * 2, 2, buffer().await).await)
                .await;
            let expected = match salts[other as usize] {
                0 => vec![0; 8192],
                salt => fill(8192, salt),
            };
            assert!(data[..] == expected, "piece {other} is not what was written last");
        }
    }

    /// One command, on whichever path takes it.
    async fn until_done<T>(&self, command: impl AsyncFn(&Host) -> Result<T, HostError>) -> T {
        loop {
            let optimized = (0..3).find(|&i| self.states.borrow()[i] == Some(AnaState::Optimized));
            let host = optimized.and_then(|i| Some((i, self.hosts.borrow()[i].clone()?)));
            let Some((i, host)) = host else {
                peristyle_rt::sleep(Duration::from_micros(500)).await;
                continue;
            };
            // A host gives a path up when it is silent, by its keep alive; this one is quicker.
            match timeout(Duration::from_millis(500), command(&host)).await {
                Some(Ok(value)) => {
                    let now = self.clock.now_nanos();
                    self.longest.set(self.longest.get().max(now - self.last.replace(now)));
                    self.served.set(self.served.get() + 1);
                    return value;
                }
                Some(Err(HostError::Status(status))) => {
                    let path =
                        [Status::ANA_INACCESSIBLE, Status::ANA_TRANSITION].iter().any(|s| status.is(*s));
                    assert!(path, "the host is told of an error: {status:?}");
                    self.states.borrow_mut()[i] = self.read_state(&host).await;
                    peristyle_rt::sleep(Duration::from_millis(1)).await;
                }
                _ => self.lose(i, &host),
            }
        }
    }

    fn lose(&self, i: usize, host: &Rc<Host>) {
        let mut hosts = self.hosts.borrow_mut();
        if hosts[i].as_ref().is_some_and(|h| Rc::ptr_eq(h, host)) {
            hosts[i] = None;
            self.states.borrow_mut()[i] = None;
        }
        host.close();
    }

    /// Connects to a node again and again, and reads what its notices are about.
    async fn keep_path(self: Rc<Self>, i: usize) {
        loop {
            peristyle_rt::sleep(Duration::from_millis(20)).await;
            let (addr, options) = (addr(i), HostOptions::new(ALICE, NQN));
            let connect = Host::connect(&addr, &options, 1);
            let Some(Ok(host)) = timeout(Duration::from_secs(1), connect).await else { continue };
            let host = Rc::new(host);
            self.cntlids.borrow_mut().push((i, host.admin.cntlid()));
            self.hosts.borrow_mut()[i] = Some(host.clone());
            let configured = host.admin.set_feature(ANA_EVENTS.0, ANA_EVENTS.1).await;
            while configured.is_ok() && host.admin.is_open() {
                self.states.borrow_mut()[i] = self.read_state(&host).await;
                match host.admin.next_event().await {
                    Ok(_) => self.notices.set(self.notices.get() + 1),
                    Err(_) => break,
                }
            }
            self.lose(i, &host);
        }
    }

    /// The state of the volume's group, from the log (Base 5.1.12.1.13).
    async fn read_state(&self, host: &Host) -> Option<AnaState> {
        let log = timeout(Duration::from_millis(500), host.admin.log_page(lid::ANA, 16 + 36)).await?.ok()?;
        assert_eq!((log[8], log[16], log[20], log[48]), (1, 1, 1, 1), "one group, with one namespace");
        let all = [AnaState::Optimized, AnaState::NonOptimized, AnaState::Inaccessible, AnaState::Change];
        all.into_iter().find(|state| *state as u8 == log[32] & 0xf)
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
            story.orders[from].own.set(Some(false));
            story.run(Duration::from_millis(2));
            story.hand_to(to, 100);
            let states = story.host.states.borrow();
            assert_eq!(states[to], Some(AnaState::Optimized));
            assert!(
                (0..3).filter(|&i| i != to).all(|i| states[i] == Some(AnaState::Inaccessible)),
                "{states:?}"
            );
        }
        assert!(story.host.notices.get() >= 12, "{}", story.host.notices.get());
        let stall = story.stall();
        assert!(stall < Duration::from_millis(500), "a planned hand-over took {stall:?}");
        let ids = story.host.cntlids.borrow();
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
            0 => story.cluster.machines[owner].kill(),
            _ => story.cluster.machines[owner].pause(Duration::from_secs(3)),
        }
        story.run(Duration::from_millis(500));
        story.hand_to(next, 200);
        if round % 2 == 0 {
            story.boot(owner);
        }
        // It is rebuilt, or has come back.
        story.run(Duration::from_secs(4));
        let stall = story.stall();
        println!("round {round}: {stall:?} without an answer");
        assert!(stall < Duration::from_secs(1), "{stall:?} without an answer");
        owner = next;
    }
}
