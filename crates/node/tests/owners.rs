//! Who owns the shard: nodes take it from each other while they are killed, stopped and cut off, and hosts on all of them write and
//! read. No acknowledged write is lost, no read is stale, and somebody serves again when the faults are over.

use crate::common::cluster::Cluster;
use crate::common::*;
use peristyle_base::ShardId;
use peristyle_node::{Node, ShardPhase};
use peristyle_rt::sim::WorldHandle;
use peristyle_rt::{Duration, ReactorId, timeout};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

const SHARD: ShardId = ShardId(0);
/// Histories of the long test.
const SEEDS: u64 = 4;
/// Blocks that hosts use.
const BLOCKS: u64 = 8;
/// Hosts on each node: one writes, the others read.
const HOSTS: u64 = 6;
/// A host that is not answered asks for something else.
const PATIENCE: Duration = Duration::from_millis(30);

/// What one block may hold, told by those who write and read it. One writer at a time, any readers.
#[derive(Default)]
struct Register {
    /// Salts that may be there now; the first is the last that was acknowledged.
    now: Vec<u64>,
    /// Salts that have been possible at any time, by when they ceased to be: what a read may still bring that began before.
    past: BTreeMap<u64, u64>,
    writing: bool,
    reads: u64,
}

/// The hosts' common knowledge, and what they counted.
#[derive(Default)]
struct Checker {
    registers: Vec<Register>,
    next: u64,
    writes: u64,
    reads: u64,
    unsure: u64,
    /// Since when nobody was served, and the longest time.
    last_served: u64,
    longest_gap: u64,
}

impl Checker {
    fn new() -> Rc<RefCell<Checker>> {
        let registers = (0..BLOCKS).map(|_| Register { now: vec![0], ..Register::default() }).collect();
        Rc::new(RefCell::new(Checker { registers, ..Checker::default() }))
    }
    fn served(&mut self, now: u64) {
        self.longest_gap = self.longest_gap.max(now - self.last_served);
        self.last_served = now;
    }
    fn begin_write(&mut self, block: usize) -> Option<u64> {
        let register = &mut self.registers[block];
        if register.writing {
            return None;
        }
        self.next += 1;
        register.writing = true;
        register.now.push(self.next);
        Some(self.next)
    }
    fn end_write(&mut self, now: u64, block: usize, salt: u64, acknowledged: bool) {
        let register = &mut self.registers[block];
        register.writing = false;
        if acknowledged {
            let gone = std::mem::replace(&mut register.now, vec![salt]);
            register.past.extend(gone.into_iter().filter(|s| *s != salt).map(|s| (s, now)));
            self.writes += 1;
            self.served(now);
        } else {
            self.unsure += 1; // it may be there, now or once somebody has decided
        }
    }
    fn end_read(&mut self, began: u64, now: u64, block: usize, salt: u64, who: usize) {
        let register = &mut self.registers[block];
        register.reads += 1;
        let current = register.now.contains(&salt);
        let ceased = register.past.get(&salt).copied();
        assert!(
            current || ceased.is_some_and(|at| at >= began),
            "node {who} read {salt} of block {block} from {began} to {now}; it may hold {:?}, and ceased to hold {salt} at {ceased:?}",
            register.now,
        );
        self.reads += 1;
        self.served(now);
    }
}

/// What the test tells a node.
#[derive(Default)]
struct Orders {
    own: Cell<Option<bool>>,
    serves: Cell<bool>,
    /// For people.
    phase: RefCell<String>,
}

/// A cluster whose nodes all run a host, and may all own the shard.
struct World {
    cluster: Cluster,
    checker: Rc<RefCell<Checker>>,
    orders: Vec<Rc<Orders>>,
}

impl World {
    fn new(seed: u64, scheme: &str, nodes: usize, reactors: usize) -> World {
        let cluster = Cluster::with_owners(seed, scheme, nodes, reactors);
        World { cluster, checker: Checker::new(), orders: (0..nodes).map(|_| Rc::default()).collect() }
    }

    fn boot(&self, i: usize) {
        let orders = self.orders[i].clone();
        orders.own.set(None);
        orders.serves.set(false);
        let (checker, clock) = (self.checker.clone(), self.cluster.world.handle());
        let seeds =
            peristyle_node::seeds(&self.cluster.configs[i], self.cluster.reactors, &self.cluster.store);
        self.cluster.machines[i].start(seeds, move |seed| {
            let (orders, checker, clock) = (orders.clone(), checker.clone(), clock.clone());
            async move {
                let node = Node::start(seed, false).await;
                if node.id() == ReactorId(0) {
                    for host in 0..HOSTS {
                        let (node, checker, clock) = (node.clone(), checker.clone(), clock.clone());
                        peristyle_rt::spawn(run_host(node, checker, clock, i, host));
                    }
                    follow(node, orders).await;
                }
                peristyle_rt::shutdown_requested().await;
            }
        });
    }

    fn tell(&self, i: usize, own: bool) {
        self.orders[i].own.set(Some(own));
    }

    fn run(&self, time: Duration) {
        self.cluster.world.handle().run_for(time);
    }

    /// Waits until hosts are served again, telling `i` to take the shard as often as it lets go of it.
    fn until_served(&self, i: usize, limit: Duration) {
        let served = || self.checker.borrow().writes + self.checker.borrow().reads;
        let (before, world) = (served(), self.cluster.world.handle());
        let begun = world.now_nanos();
        while served() < before + 50 {
            let waited = world.now_nanos() - begun;
            let phase = &self.orders[i].phase;
            assert!(waited < limit.as_nanos() as u64, "nobody serves; node {i} is {}", phase.borrow());
            if !self.orders[i].serves.get() {
                self.tell(i, true);
            }
            self.run(Duration::from_millis(20));
        }
    }
}

/// Does what it is told, and tells whether the shard is served here.
async fn follow(node: TestNode, orders: Rc<Orders>) {
    loop {
        if let Some(own) = orders.own.take() {
            assert!(node.own(SHARD, own).await);
        }
        let phases = node.shard_phases();
        let serving =
            |p: &(ShardId, ShardPhase)| matches!(p.1, ShardPhase::Serving(_) | ShardPhase::Recovering(_));
        orders.serves.set(phases.iter().any(serving));
        *orders.phase.borrow_mut() = format!("{phases:?}, {:?}", node.peers().states());
        peristyle_rt::sleep(Duration::from_millis(5)).await;
    }
}

/// A write of which nobody has said yet how it ended. Whoever is killed never does.
struct Write {
    checker: Rc<RefCell<Checker>>,
    clock: WorldHandle,
    block: usize,
    salt: u64,
    over: bool,
}

impl Write {
    fn end(&mut self, acknowledged: bool) {
        self.over = true;
        let now = self.clock.now_nanos();
        self.checker.borrow_mut().end_write(now, self.block, self.salt, acknowledged);
    }
}

impl Drop for Write {
    fn drop(&mut self) {
        if !self.over {
            self.end(false);
        }
    }
}

/// A block names its writer's salt and is full of it.
fn block_of(salt: u64) -> Vec<u8> {
    match salt {
        0 => vec![0; BLOCK as usize],
        _ => [&salt.to_le_bytes()[..], &fill(BLOCK as usize - 8, salt)].concat(),
    }
}

/// One command at a time to the node's own volume, as long as it is served.
async fn run_host(node: TestNode, checker: Rc<RefCell<Checker>>, clock: WorldHandle, who: usize, host: u64) {
    let volume = node.volume(&spec()).unwrap();
    let mut made = false;
    loop {
        peristyle_rt::sleep(Duration::from_micros(300 + 700 * host)).await;
        if !made {
            made = volume.ensure_layer(64 * MIB / BLOCK).await.is_ok();
            continue;
        }
        let block = peristyle_rt::random_below(BLOCKS) as usize;
        let offset = block as u64 * BLOCK;
        if host == 0 {
            if !matches!(timeout(PATIENCE, read(&volume, offset, BLOCK)).await, Some(Ok(_))) {
                continue; // it is served elsewhere
            }
            let Some(salt) = checker.borrow_mut().begin_write(block) else { continue };
            let (checker, clock) = (checker.clone(), clock.clone());
            let mut ended = Write { checker, clock, block, salt, over: false };
            let written = write(&volume, offset, &block_of(salt)).await;
            ended.end(written.is_ok());
        } else {
            let began = clock.now_nanos();
            let Some(Ok(data)) = timeout(PATIENCE, read(&volume, offset, BLOCK)).await else { continue };
            let salt = u64::from_le_bytes(data[..8].try_into().unwrap());
            assert!(data == block_of(salt), "a block is one write's");
            checker.borrow_mut().end_read(began, clock.now_nanos(), block, salt, who);
        }
    }
}

#[test]
fn a_shard_is_handed_over_and_taken_over_and_hosts_see_one_history() {
    let world = World::new(21, "2+1", 4, 1);
    (0..4).for_each(|i| world.boot(i));
    world.until_served(0, Duration::from_secs(5));
    for round in 0..6 {
        // Given away: the next takes it without waiting for a lease.
        let (from, to) = (round % 4, (round + 1) % 4);
        world.tell(from, false);
        world.run(Duration::from_millis(10));
        world.until_served(to, Duration::from_secs(5));
        world.run(Duration::from_millis(300));
    }
    let owner = 6 % 4;
    world.cluster.machines[owner].kill();
    world.until_served(3, Duration::from_secs(5));
    world.boot(owner);
    world.run(Duration::from_secs(1));
    let checker = world.checker.borrow();
    assert!(checker.writes > 1000 && checker.reads > 2000, "{} {}", checker.writes, checker.reads);
}

/// What befalls the owner.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Fault {
    Kill,
    /// SIGSTOP: it goes on later as if no time had passed.
    Pause,
    /// Nobody hears it, and it hears nobody.
    CutOff,
    /// It hears the others, and they do not hear it.
    Mute,
    /// They hear it, and it does not hear them.
    Deaf,
    /// Nothing at all: somebody else wants the shard.
    Rival,
}

const FAULTS: [Fault; 6] = [Fault::Kill, Fault::Pause, Fault::CutOff, Fault::Mute, Fault::Deaf, Fault::Rival];

fn strike(world: &World, owner: usize, fault: Fault, on: bool, pause: u64) {
    let (handle, machines) = (world.cluster.world.handle(), &world.cluster.machines);
    let victim = &machines[owner];
    for other in machines.iter().enumerate().filter(|(i, _)| *i != owner).map(|(_, m)| m) {
        match fault {
            Fault::CutOff => handle.partition(victim, other, on),
            Fault::Mute => handle.block(victim, other, on),
            Fault::Deaf => handle.block(other, victim, on),
            Fault::Kill | Fault::Pause | Fault::Rival => {}
        }
    }
    match (fault, on) {
        (Fault::Kill, true) => victim.kill(),
        (Fault::Kill, false) => world.boot(owner),
        (Fault::Pause, true) => victim.pause(Duration::from_millis(pause)),
        _ => {}
    }
}

#[test]
fn whatever_befalls_the_owner_another_takes_over_and_no_read_is_stale() {
    for seed in 0..SEEDS {
        let (nodes, scheme) = [(3, "1+1"), (4, "2+1"), (5, "2+2")][seed as usize % 3];
        let world = World::new(100 + seed, scheme, nodes, 1 + seed as usize % 2);
        let mut rng = world.cluster.world.handle().rng();
        (0..nodes).for_each(|i| world.boot(i));
        let mut owner = 0;
        world.until_served(owner, Duration::from_secs(10));
        for _ in 0..6 {
            let fault = *rng.pick(&FAULTS);
            let next = (owner + 1 + rng.below(nodes as u64 - 1) as usize) % nodes;
            println!("history {seed}: {fault:?} befalls {owner}, {next} is next"); // shown when it fails
            strike(&world, owner, fault, true, 500 + rng.below(3500));
            // The manager finds out sooner or later, or is mistaken.
            world.run(Duration::from_millis(rng.below(1200)));
            world.until_served(next, Duration::from_secs(20));
            world.run(Duration::from_millis(rng.below(1000)));
            strike(&world, owner, fault, false, 0);
            world.run(Duration::from_millis(rng.below(1500)));
            owner = next;
            world.until_served(owner, Duration::from_secs(20));
        }
        let checker = world.checker.borrow();
        assert!(checker.writes > 300 && checker.reads > 300, "{} {}", checker.writes, checker.reads);
    }
}
