//! A cluster: nodes that own shards in turn, over each other's devices, while they are killed, lose power, are stopped and cut off from
//! each other in one direction or both, and while somebody who is mistaken has another node take a shard that is served.
//!
//! Safety: hosts on all nodes see one history of every block (`register`), whatever happens. Then liveness: with all faults over, somebody serves
//! every shard again, no column is missing, and every block is read.

pub(crate) mod hosts;
pub(crate) mod machines;
pub(crate) mod nodes;
pub mod register;

use crate::Outcome;
use crate::node::world;
use hosts::BLOCKS;
use machines::Cut;
use nodes::Nodes;
use peristyle_base::Scheme;
use peristyle_rt::Duration;
use peristyle_rt::sim::{Rng, Stop, World};

/// What is drawn from a seed.
#[derive(Clone, Debug)]
pub struct Plan {
    pub nodes: usize,
    pub scheme: Scheme,
    pub reactors: usize,
    pub shards: usize,
    /// On each node, for each shard; the first of them writes.
    pub hosts: u64,
    /// A host's pause after a command, on average.
    pub rest_us: u64,
    pub rounds: usize,
    pub volatile_cache: bool,
    pub checkpoint_log_bytes: u64,
    /// Nodes are targets for hosts on machines of their own, and hand on what is another's.
    pub exports: bool,
    /// Kinds of faults that this seed has; others it never has.
    kinds: Vec<Kind>,
}

/// What befalls a node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Kill,
    Power,
    /// SIGSTOP: it goes on later as if no time had passed.
    Pause,
    /// Nobody hears it, and it hears nobody.
    CutOff,
    /// It hears the others, and they do not hear it.
    Mute,
    /// They hear it, and it does not hear them.
    Deaf,
    /// One other node and it do not hear each other.
    Pair,
    /// Its connections are reset.
    Reset,
    /// Nothing: somebody else is told to take its shards.
    Rival,
}

const KINDS: [Kind; 9] = [
    Kind::Kill,
    Kind::Power,
    Kind::Pause,
    Kind::CutOff,
    Kind::Mute,
    Kind::Deaf,
    Kind::Pair,
    Kind::Reset,
    Kind::Rival,
];

/// Longer than any takeover, return and repair may take once nothing is wrong any more.
const LIMIT: Duration = Duration::from_secs(60);

impl Plan {
    pub fn draw(rng: &mut Rng) -> Plan {
        let (k, m) = *rng.pick(&[(1, 1), (1, 2), (2, 1), (2, 2), (4, 2), (3, 1)]);
        let width = usize::from(k + m);
        // A majority has to be left when as many nodes as the scheme covers are away.
        let nodes = (width + rng.below(2) as usize).max(2 * usize::from(m) + 1);
        let mut kinds: Vec<Kind> = KINDS.into_iter().filter(|_| rng.coin()).collect();
        if kinds.is_empty() {
            kinds.push(*rng.pick(&KINDS));
        }
        Plan {
            nodes,
            scheme: Scheme::new(k, m).expect("a scheme"),
            reactors: *rng.pick(&[1, 1, 2]),
            shards: *rng.pick(&[1, 1, 2, 3]),
            hosts: rng.between(2, 3),
            rest_us: *rng.pick(&[2_000, 10_000, 50_000]),
            rounds: rng.between(2, 6) as usize,
            volatile_cache: rng.coin(),
            checkpoint_log_bytes: *rng.pick(&[1 << 20, 4 << 20, 1 << 30]),
            exports: false,
            kinds,
        }
    }
}

impl Plan {
    /// Of nodes without hosts inside, which nothing befalls by itself.
    pub(crate) fn exporting(nodes: usize, scheme: Scheme, reactors: usize, shards: usize) -> Plan {
        Plan {
            nodes,
            scheme,
            reactors,
            shards,
            hosts: 0,
            rest_us: 0,
            rounds: 0,
            volatile_cache: false,
            checkpoint_log_bytes: 4 << 20,
            exports: true,
            kinds: Vec::new(),
        }
    }
}

pub fn plan(seed: u64) -> Plan {
    Plan::draw(&mut Rng::new(seed ^ 0xC105_7E12))
}

pub fn run(seed: u64) -> Outcome {
    let world = world(seed);
    let plan = plan(seed);
    let cluster =
        Cluster { nodes: Nodes::new(&world, &plan), rng: world.rng(), world, plan, faults: 0, crashes: 0 };
    cluster.live()
}

struct Cluster {
    nodes: Nodes,
    world: World,
    rng: Rng,
    plan: Plan,
    faults: u64,
    crashes: u64,
}

impl Cluster {
    fn live(mut self) -> Outcome {
        (0..self.plan.nodes).for_each(|i| self.nodes.boot(i));
        let mut owners: Vec<usize> = (0..self.plan.shards).map(|s| s % self.plan.nodes).collect();
        self.until_sound(&owners);
        for _ in 0..self.plan.rounds {
            let struck = self.strike();
            // The manager finds out sooner or later, or is mistaken; a second one may think otherwise.
            self.run_for(1500);
            for owner in owners.iter_mut().filter(|owner| struck.iter().any(|s| s.0 == **owner)) {
                *owner = self.another(&struck);
            }
            for _ in 0..self.rng.below(40) {
                self.remind(&owners);
                self.run_for(100);
            }
            struck.iter().for_each(|&(node, kind)| self.heal(node, kind));
            self.run_for(1000);
            self.until_sound(&owners);
            self.plan_moves(&mut owners);
        }
        self.until_sound(&owners);
        self.read_all();
        machines::outcome(&self.world, &self.nodes.registers.borrow(), self.faults, self.crashes)
    }

    fn run_for(&mut self, most_ms: u64) {
        self.world.run_for(Duration::from_millis(self.rng.below(most_ms)));
    }

    /// Up to m nodes, and what befalls each.
    fn strike(&mut self) -> Vec<(usize, Kind)> {
        let count = 1 + self.rng.below(self.plan.scheme.m() as u64) as usize;
        let mut struck: Vec<(usize, Kind)> = Vec::new();
        while struck.len() < count {
            let node = self.rng.below(self.plan.nodes as u64) as usize;
            if struck.iter().all(|s| s.0 != node) {
                struck.push((node, *self.rng.pick(&self.plan.kinds)));
            }
        }
        for &(node, kind) in &struck {
            self.befall(node, kind);
        }
        struck
    }

    fn befall(&mut self, node: usize, kind: Kind) {
        self.faults += 1;
        let victim = &self.nodes.machines[node];
        match kind {
            Kind::Kill => victim.kill(),
            Kind::Power => victim.stop(Stop::Power),
            Kind::Pause => victim.pause(Duration::from_millis(200 + self.rng.below(4000))),
            _ => self.cut(node, kind, true),
        }
        self.crashes += u64::from(matches!(kind, Kind::Kill | Kind::Power));
    }

    fn heal(&mut self, node: usize, kind: Kind) {
        match kind {
            Kind::Kill | Kind::Power => self.nodes.boot(node),
            Kind::Pause => {}
            _ => self.cut(node, kind, false),
        }
    }

    fn cut(&self, node: usize, kind: Kind, on: bool) {
        let machines = &self.nodes.machines;
        let cut = match kind {
            Kind::CutOff => Cut::Off,
            Kind::Mute => Cut::Mute,
            Kind::Deaf => Cut::Deaf,
            Kind::Pair => Cut::Pair,
            Kind::Reset if on => {
                let others = machines.iter().enumerate().filter(|(other, _)| *other != node);
                return others.for_each(|(_, peer)| self.world.reset_connections(&machines[node], peer));
            }
            _ => return,
        };
        cut.set(&self.world, machines, node, on);
    }

    /// A node that nothing has befallen.
    fn another(&mut self, struck: &[(usize, Kind)]) -> usize {
        loop {
            let node = self.rng.below(self.plan.nodes as u64) as usize;
            if struck.iter().all(|s| s.0 != node) {
                return node;
            }
        }
    }

    /// Owners that do not serve are told again.
    fn remind(&self, owners: &[usize]) {
        for (shard, &owner) in owners.iter().enumerate() {
            if !self.nodes.orders[owner][shard].serves.get() {
                self.nodes.tell(owner, shard, true);
            }
        }
    }

    /// Every shard is served by its owner, and has all its columns.
    fn until_sound(&mut self, owners: &[usize]) {
        let begun = self.world.now_nanos();
        let is_whole = |s: usize| self.nodes.orders[owners[s]][s].whole.get();
        while !(0..self.plan.shards).all(is_whole) {
            let waited = self.world.now_nanos() - begun;
            if waited > LIMIT.as_nanos() as u64 {
                for (shard, &owner) in owners.iter().enumerate() {
                    let phase = self.nodes.orders[owner][shard].phase.borrow();
                    eprintln!("shard {shard} on node {owner}: {phase}");
                }
                panic!("nothing is wrong any more, and not every shard is sound");
            }
            self.remind(owners);
            self.world.run_for(Duration::from_millis(20));
        }
    }

    /// Now and then a shard is handed over, without need.
    fn plan_moves(&mut self, owners: &mut [usize]) {
        for (shard, owner) in owners.iter_mut().enumerate() {
            if self.rng.coin() {
                let next = self.rng.below(self.plan.nodes as u64) as usize;
                self.nodes.tell(*owner, shard, next == *owner);
                *owner = next;
            }
        }
    }

    /// Hosts read on until each block has been read so often that none was missed.
    fn read_all(&mut self) {
        let reads = |cluster: &Cluster| cluster.nodes.registers.borrow().reads;
        let wanted = reads(self) + 20 * (BLOCKS * self.plan.shards) as u64;
        let enough = {
            let registers = self.nodes.registers.clone();
            move || registers.borrow().reads >= wanted
        };
        assert!(self.world.run_until(enough, LIMIT), "hosts are not served");
    }
}
