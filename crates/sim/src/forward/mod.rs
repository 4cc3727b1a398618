//! Hosts that reach a shard's owner over other nodes: ways between hosts and nodes and between nodes are cut, nodes sleep, die and come back, and
//! shards move, while hosts give up ways that are silent and repeat their commands elsewhere at once.
//!
//! Safety: all hosts see one history of every block; nothing that a host sent on a way that it gave up comes behind what it wrote later. Then
//! liveness: a host that reaches one node, which is not the owner, is served.

mod hosts;

use crate::Outcome;
use crate::cluster::hosts::BLOCKS;
use crate::cluster::nodes::Nodes;
use crate::cluster::{Plan as ClusterPlan, machines};
use crate::node::world;
use hosts::{Done, Host};
use peristyle_base::Scheme;
use peristyle_rt::Duration;
use peristyle_rt::sim::{NodeHandle, Rng, World};
use std::rc::Rc;

/// What is drawn from a seed.
#[derive(Clone, Debug)]
pub struct Plan {
    nodes: usize,
    scheme: (u8, u8),
    reactors: usize,
    shards: usize,
    hosts: usize,
    /// Commands in flight of each host.
    depth: usize,
    answer_limit_ms: u64,
    rest_us: u64,
    steps: usize,
    /// Milliseconds between two of them, at most.
    step_ms: u64,
    kinds: Vec<Kind>,
}

/// What befalls whom.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    /// A host and a node do not hear each other.
    Cut,
    /// One of them does not hear the other.
    CutOneWay,
    /// A node sleeps: it goes on later as if no time had passed.
    Sleep,
    /// Two nodes do not hear each other.
    CutNodes,
    Kill,
    /// The connections between a host and a node are reset.
    Reset,
    /// A shard goes to another node.
    Move,
}

const KINDS: [Kind; 7] =
    [Kind::Cut, Kind::CutOneWay, Kind::Sleep, Kind::CutNodes, Kind::Kill, Kind::Reset, Kind::Move];

/// Longer than anything may take once nothing is wrong any more.
const LIMIT: Duration = Duration::from_secs(60);

pub fn plan(seed: u64) -> Plan {
    let mut rng = Rng::new(seed ^ 0xF0A4_A4D5);
    let mut kinds: Vec<Kind> = KINDS.into_iter().filter(|_| rng.coin()).collect();
    // Without it nothing is handed on.
    kinds.push(Kind::Cut);
    Plan {
        nodes: 3 + rng.below(2) as usize,
        scheme: *rng.pick(&[(1, 1), (2, 1)]),
        reactors: *rng.pick(&[1, 1, 2]),
        shards: *rng.pick(&[1, 1, 2]),
        hosts: rng.between(1, 3) as usize,
        depth: rng.between(1, 4) as usize,
        answer_limit_ms: *rng.pick(&[60, 150, 400]),
        rest_us: *rng.pick(&[300, 2_000, 10_000]),
        steps: rng.between(20, 60) as usize,
        step_ms: *rng.pick(&[100, 400, 1500]),
        kinds,
    }
}

pub fn run(seed: u64) -> Outcome {
    let world = world(seed);
    let plan = plan(seed);
    let scheme = Scheme::new(plan.scheme.0, plan.scheme.1).expect("a scheme");
    let nodes = Nodes::new(&world, &ClusterPlan::exporting(plan.nodes, scheme, plan.reactors, plan.shards));
    let machines = (0..plan.hosts).map(|h| world.add_node([10, 0, 3, h as u8 + 1].into())).collect();
    let done = (0..plan.hosts).map(|_| Rc::default()).collect();
    let (cuts, asleep) = (vec![false; plan.hosts * plan.nodes], vec![0; plan.nodes]);
    let rng = world.rng();
    let dead = vec![false; plan.nodes];
    Story { world, nodes, machines, done, rng, cuts, asleep, dead, apart: None, faults: 0, crashes: 0, plan }
        .live()
}

struct Story {
    world: World,
    nodes: Nodes,
    /// Of hosts.
    machines: Vec<NodeHandle>,
    done: Vec<Rc<Done>>,
    rng: Rng,
    /// By host and node: something between them is cut.
    cuts: Vec<bool>,
    /// Until when each node sleeps, at most.
    asleep: Vec<u64>,
    dead: Vec<bool>,
    /// Two nodes between which something is cut.
    apart: Option<(usize, usize)>,
    faults: u64,
    crashes: u64,
    plan: Plan,
}

impl Story {
    fn live(mut self) -> Outcome {
        (0..self.plan.nodes).for_each(|i| self.nodes.boot(i));
        self.until_sound();
        (0..self.plan.hosts).for_each(|h| self.start_host(h));
        self.until_all_are_served();
        for _ in 0..self.plan.steps {
            self.step();
            self.remind();
            let ms = 1 + self.rng.below(self.plan.step_ms);
            self.world.run_for(Duration::from_millis(ms));
        }
        self.heal();
        self.until_sound();
        self.until_all_are_served();
        self.leave_one_way_each();
        self.until_all_are_served();
        self.heal();
        self.until_all_are_served();
        let outcome =
            machines::outcome(&self.world, &self.nodes.registers.borrow(), self.faults, self.crashes);
        let handed_on: u64 = self.done.iter().map(|done| done.handed_on.get()).sum();
        assert!(handed_on > 0, "nothing was handed on");
        outcome
    }

    fn start_host(&self, number: usize) {
        let host = Host {
            number,
            hosts: self.plan.hosts,
            nodes: self.plan.nodes,
            shards: self.plan.shards,
            depth: self.plan.depth,
            answer_limit: Duration::from_millis(self.plan.answer_limit_ms),
            rest_us: self.plan.rest_us,
            registers: self.nodes.registers.clone(),
            clock: self.world.handle(),
            done: self.done[number].clone(),
        };
        self.machines[number].start(vec![()], move |()| host.clone().run());
    }

    fn owner(&self, shard: usize) -> usize {
        self.nodes.owners.borrow()[shard]
    }

    fn any_node(&mut self) -> usize {
        self.rng.below(self.plan.nodes as u64) as usize
    }

    /// Owners are struck more often than others.
    fn victim(&mut self) -> usize {
        let shard = self.rng.below(self.plan.shards as u64) as usize;
        if self.rng.coin() { self.owner(shard) } else { self.any_node() }
    }

    /// One node at a time is away: as many as the schemes cover.
    fn is_anybody_away(&self) -> bool {
        let now = self.world.now_nanos();
        self.dead.contains(&true) || self.asleep.iter().any(|until| *until > now)
    }

    fn step(&mut self) {
        self.faults += 1;
        let kind = *self.rng.pick(&self.plan.kinds.clone());
        let (node, host) = (self.victim(), self.rng.below(self.plan.hosts as u64) as usize);
        let (h, n) = (self.machines[host].clone(), self.nodes.machines[node].clone());
        match kind {
            Kind::Cut | Kind::CutOneWay => {
                let at = host * self.plan.nodes + node;
                let on = !self.cuts[at];
                match kind {
                    Kind::CutOneWay if on && self.rng.coin() => self.world.block(&h, &n, true),
                    Kind::CutOneWay if on => self.world.block(&n, &h, true),
                    _ => self.world.partition(&h, &n, on),
                }
                self.cuts[at] = on;
            }
            Kind::Reset => self.world.reset_connections(&h, &n),
            Kind::Sleep if !self.is_anybody_away() => {
                let ms = 50 + self.rng.below(3000);
                n.pause(Duration::from_millis(ms));
                self.asleep[node] = self.world.now_nanos() + ms * 1_000_000;
            }
            Kind::CutNodes => match self.apart.take() {
                Some(pair) => self.part(pair, false),
                None => {
                    let other =
                        (node + 1 + self.rng.below(self.plan.nodes as u64 - 1) as usize) % self.plan.nodes;
                    self.part((node, other), true);
                    self.apart = Some((node, other));
                }
            },
            Kind::Kill if !self.is_anybody_away() => {
                n.kill();
                self.dead[node] = true;
                self.crashes += 1;
            }
            Kind::Kill => self.raise(),
            Kind::Move => self.move_one(),
            Kind::Sleep => {}
        }
    }

    fn part(&self, (one, other): (usize, usize), on: bool) {
        self.world.partition(&self.nodes.machines[one], &self.nodes.machines[other], on);
    }

    fn raise(&mut self) {
        for node in (0..self.plan.nodes).filter(|&node| self.dead[node]) {
            self.nodes.boot(node);
        }
        self.dead.fill(false);
    }

    fn move_one(&mut self) {
        let shard = self.rng.below(self.plan.shards as u64) as usize;
        let (before, next) = (self.owner(shard), self.any_node());
        if next != before && !self.dead[next] {
            self.nodes.tell(before, shard, false);
            self.nodes.tell(next, shard, true);
            self.nodes.owners.borrow_mut()[shard] = next;
        }
    }

    /// Whoever is to own a shard and does not serve it is told again; the shard of one that is dead is another's.
    fn remind(&mut self) {
        for shard in 0..self.plan.shards {
            if self.dead[self.owner(shard)] {
                let next = self.any_node();
                self.nodes.owners.borrow_mut()[shard] = next;
            }
            let owner = self.owner(shard);
            if !self.dead[owner] && !self.nodes.orders[owner][shard].serves.get() {
                self.nodes.tell(owner, shard, true);
            }
        }
    }

    fn heal(&mut self) {
        for host in 0..self.plan.hosts {
            for node in 0..self.plan.nodes {
                self.world.partition(&self.machines[host], &self.nodes.machines[node], false);
            }
        }
        self.cuts.fill(false);
        let apart = self.apart.take();
        apart.into_iter().for_each(|pair| self.part(pair, false));
        self.raise();
    }

    /// Each host reaches one node, and that does not own its shards, if there is one that owns none.
    fn leave_one_way_each(&mut self) {
        for host in 0..self.plan.hosts {
            let owners = self.nodes.owners.borrow().clone();
            let others: Vec<usize> = (0..self.plan.nodes).filter(|n| !owners.contains(n)).collect();
            let left = *self.rng.pick(&others);
            for node in (0..self.plan.nodes).filter(|&node| node != left) {
                self.world.partition(&self.machines[host], &self.nodes.machines[node], true);
            }
        }
    }

    fn wait(&mut self, what: &str, is_so: impl Fn(&Story) -> bool) {
        let begun = self.world.now_nanos();
        while !is_so(self) {
            if self.world.now_nanos() - begun > LIMIT.as_nanos() as u64 {
                for (node, orders) in self.nodes.orders.iter().enumerate() {
                    for (shard, order) in orders.iter().enumerate() {
                        let owner = self.owner(shard);
                        eprintln!("shard {shard} of {owner}, on node {node}: {}", order.phase.borrow());
                    }
                }
                panic!("nothing is wrong any more, and {what}");
            }
            self.remind();
            self.world.run_for(Duration::from_millis(20));
        }
    }

    fn until_sound(&mut self) {
        self.wait("not every shard is sound", |story| {
            (0..story.plan.shards).all(|s| story.nodes.orders[story.owner(s)][s].whole.get())
        });
    }

    /// Every host does so many commands that it has used every block.
    fn until_all_are_served(&mut self) {
        let enough = (4 * BLOCKS * self.plan.shards) as u64;
        let wanted: Vec<u64> = self.done.iter().map(|done| done.commands.get() + enough).collect();
        self.wait("a host is not served", |story| {
            story.done.iter().zip(&wanted).all(|(done, wanted)| done.commands.get() >= *wanted)
        });
    }
}
