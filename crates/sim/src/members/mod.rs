//! Members of a cluster as programs run them: nodes that join, follow the desired state, elect a manager, and leave in order, while they are
//! killed, lose power, are stopped, cut off from each other and from the control store, and while nobody reaches that.
//!
//! Nobody tells a node what to own: its manager does. Safety: hosts on all nodes see one history of every block
//! (`cluster::register`). Then liveness: with all faults over, every shard is served, no column is missing, and every block is read.

mod nodes;
mod store;

use crate::Outcome;
use crate::cluster::hosts::BLOCKS;
use crate::cluster::machines::{Cut, outcome};
use crate::node::world;
use nodes::Nodes;
use peristyle_base::Scheme;
use peristyle_rt::Duration;
use peristyle_rt::sim::{Rng, Stop, World};
use std::collections::BTreeSet;

/// What is drawn from a seed.
#[derive(Clone, Debug)]
pub struct Plan {
    pub nodes: usize,
    /// So many of them, the last ones, join while the others work.
    pub late: usize,
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
    /// Kinds of faults that this seed has; others it never has.
    kinds: Vec<Kind>,
    /// Nobody reaches the control store for a while, in some rounds.
    store_away: bool,
    /// So many nodes are taken out of the cluster, one or more in a round.
    removals: usize,
    /// The rack of each node, if they are the pool's failure domains.
    pub racks: Option<Vec<usize>>,
}

/// What befalls a node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Kill,
    Power,
    /// SIGSTOP: it goes on later as if no time had passed.
    Pause,
    /// Nobody hears it, and it hears nobody. It reaches the store.
    CutOff,
    /// It hears the others, and they do not hear it.
    Mute,
    /// They hear it, and it does not hear them.
    Deaf,
    /// One other node and it do not hear each other.
    Pair,
    /// It does not reach the control store.
    NoStore,
    /// It reaches neither nodes nor the store.
    Alone,
    /// It reaches neither the store nor one other node.
    HalfAlone,
    /// SIGTERM: it leaves in order, and is gone.
    End,
}

const KINDS: [Kind; 11] = [
    Kind::Kill,
    Kind::Power,
    Kind::Pause,
    Kind::CutOff,
    Kind::Mute,
    Kind::Deaf,
    Kind::Pair,
    Kind::NoStore,
    Kind::Alone,
    Kind::HalfAlone,
    Kind::End,
];

impl Kind {
    /// It leaves the node running.
    fn is_a_cut(self) -> bool {
        !matches!(self, Kind::Kill | Kind::Power | Kind::Pause | Kind::End)
    }
}

/// Longer than any takeover, return and repair may take once nothing is wrong any more.
const LIMIT: Duration = Duration::from_secs(60);
/// The world runs on for so long before nodes that have joined are started.
const STEP: Duration = Duration::from_millis(5);

impl Plan {
    pub fn draw(rng: &mut Rng) -> Plan {
        let (k, m) = *rng.pick(&[(1, 1), (1, 1), (1, 2), (2, 1), (2, 2), (4, 2)]);
        let width = usize::from(k + m);
        let late = *rng.pick(&[0, 0, 1, 2, 2]);
        // A majority has to be left when as many nodes as the scheme covers are away.
        let more = *rng.pick(&[0, 0, 0, 1, 4]);
        let nodes = width.max(2 * usize::from(m) + 1) + more + late;
        let mut kinds: Vec<Kind> = KINDS.into_iter().filter(|_| rng.coin()).collect();
        if kinds.is_empty() {
            kinds.push(*rng.pick(&KINDS));
        }
        let mut plan = Plan {
            nodes,
            late,
            scheme: Scheme::new(k, m).expect("a scheme"),
            reactors: *rng.pick(&[1, 1, 2]),
            shards: *rng.pick(&[1, 2, 3]),
            hosts: 2,
            rest_us: *rng.pick(&[10_000, 50_000]),
            rounds: rng.between(2, 4) as usize,
            volatile_cache: rng.coin(),
            checkpoint_log_bytes: *rng.pick(&[1 << 20, 64 << 20]),
            kinds,
            store_away: rng.coin(),
            racks: None,
            removals: if rng.coin() { 1 + rng.below(3) as usize } else { 0 }.min(more),
        };
        plan.racks = draw_racks(rng, width, nodes - late, nodes);
        plan
    }

    /// These nodes are in racks enough for the scheme.
    fn have_racks(&self, nodes: &[usize]) -> bool {
        let Some(racks) = &self.racks else { return true };
        nodes.iter().map(|node| racks[*node]).collect::<BTreeSet<_>>().len() >= self.scheme.width()
    }
}

/// With enough of them for the scheme from the beginning, and nodes that share one if there are more.
fn draw_racks(rng: &mut Rng, least: usize, first: usize, nodes: usize) -> Option<Vec<usize>> {
    let racks = rng.between(least as u64, first as u64);
    let rack = |i: usize| if i < racks as usize { i } else { rng.below(racks) as usize };
    let all: Vec<usize> = (0..nodes).map(rack).collect();
    rng.coin().then_some(all)
}

pub fn plan(seed: u64) -> Plan {
    Plan::draw(&mut Rng::new(seed ^ 0x3E3B_E125))
}

pub fn run(seed: u64) -> Outcome {
    let world = world(seed);
    let plan = plan(seed);
    let (nodes, rng, removed) = (Nodes::new(&world, &plan), world.rng(), Vec::new());
    let members = Members { nodes, rng, world, plan, removed, faults: 0, crashes: 0 };
    members.live()
}

struct Members {
    nodes: Nodes,
    world: World,
    rng: Rng,
    plan: Plan,
    /// Nodes that are no members any more.
    removed: Vec<usize>,
    faults: u64,
    crashes: u64,
}

impl Members {
    fn live(mut self) -> Outcome {
        let first = self.plan.nodes - self.plan.late;
        (0..first).for_each(|i| self.nodes.boot(i));
        self.until_sound();
        for round in 0..self.plan.rounds {
            let there = if round == 0 { first } else { self.plan.nodes };
            let leaving = if round == 0 { Vec::new() } else { self.remove_some() };
            let struck = self.strike(there, leaving.len());
            if round == 0 {
                self.run_for(1000);
                (first..self.plan.nodes).for_each(|i| self.nodes.boot(i));
            }
            self.run_for(5000);
            self.leave_without_store();
            // Cuts first: a node that has just started reads the state before it can leave.
            struck.iter().rev().for_each(|&(node, kind)| self.heal(node, kind, there));
            self.see_off(&leaving);
            self.run_for(1000);
            self.until_sound();
        }
        self.read_all();
        outcome(&self.world, &self.nodes.registers.borrow(), self.faults, self.crashes)
    }

    fn run_for(&mut self, most_ms: u64) {
        let until = self.world.now_nanos() + self.rng.below(most_ms) * 1_000_000;
        while self.world.now_nanos() < until {
            self.world.run_for(STEP);
            self.nodes.tend();
        }
    }

    /// False when that takes too long.
    fn run_until(&self, done: impl Fn() -> bool) -> bool {
        let until = self.world.now_nanos() + LIMIT.as_nanos() as u64;
        while !done() {
            self.world.run_for(STEP);
            self.nodes.tend();
            if self.world.now_nanos() > until {
                return false;
            }
        }
        true
    }

    /// Takes up to m nodes out of the cluster, one right after the other: killed ones, and such as do not reach the store, go on, and do not know it.
    fn remove_some(&mut self) -> Vec<usize> {
        let left = (self.plan.removals - self.removed.len()).min(self.plan.scheme.m());
        if left == 0 {
            return Vec::new();
        }
        let mut members: Vec<usize> = (0..self.plan.nodes).filter(|i| !self.removed.contains(i)).collect();
        let count = self.rng.below(left as u64 + 1) as usize;
        let mut leaving = Vec::new();
        for _ in 0..count {
            let node = members.swap_remove(self.rng.below(members.len() as u64) as usize);
            if !self.plan.have_racks(&members) {
                members.push(node);
                continue;
            }
            let kind = if self.rng.coin() { Kind::Kill } else { Kind::NoStore };
            self.befall(node, kind, self.plan.nodes);
            leaving.push(node);
        }
        self.removed.extend(&leaving);
        self.nodes.remove(&leaving);
        leaving
    }

    /// Nodes are out of the cluster in the end; they hear of it then, or end.
    fn see_off(&mut self, leaving: &[usize]) {
        assert!(self.run_until(|| !self.nodes.operator.is_running()), "nodes {leaving:?} are not removed");
        self.run_for(2000);
        for &node in leaving {
            match self.rng.coin() {
                true => self.nodes.reach[node].cut_off.set(false),
                false => self.nodes.kill(node),
            }
        }
    }

    /// Up to m of these nodes, or some fewer, and what befalls each: one thing, or two at the same time.
    fn strike(&mut self, there: usize, fewer: usize) -> Vec<(usize, Kind)> {
        let most = self.plan.scheme.m() - fewer;
        let count = if most == 0 { 0 } else { 1 + self.rng.below(most as u64) as usize };
        let mut others: Vec<usize> = (0..there).filter(|i| !self.removed.contains(i)).collect();
        let mut victims = if count > 0 { self.one_rack(&mut others) } else { Vec::new() };
        let count = count - usize::from(!victims.is_empty());
        while others.len() > count {
            others.remove(self.rng.below(others.len() as u64) as usize);
        }
        victims.append(&mut others);
        let mut struck: Vec<(usize, Kind)> = Vec::new();
        for node in victims {
            let first = *self.rng.pick(&self.plan.kinds);
            let second = *self.rng.pick(&self.plan.kinds);
            struck.push((node, first));
            if second != first && second.is_a_cut() {
                struck.push((node, second));
            }
        }
        for &(node, kind) in &struck {
            self.befall(node, kind, there);
        }
        struck
    }

    /// Now and then all that are in the rack of one of these nodes, which are taken out.
    fn one_rack(&mut self, nodes: &mut Vec<usize>) -> Vec<usize> {
        let Some(racks) = self.plan.racks.clone().filter(|_| self.rng.coin()) else { return Vec::new() };
        let rack = racks[*self.rng.pick(nodes)];
        nodes.extract_if(.., |node| racks[*node] == rack).collect()
    }

    fn befall(&mut self, node: usize, kind: Kind, there: usize) {
        self.faults += 1;
        let victim = &self.nodes.machines[node];
        match kind {
            Kind::Kill => victim.kill(),
            Kind::Power => victim.stop(Stop::Power),
            Kind::Pause => victim.pause(Duration::from_millis(200 + self.rng.below(4000))),
            Kind::End => self.nodes.seen[node].leave.set(true),
            _ => self.cut(node, kind, there, true),
        }
        self.crashes += u64::from(matches!(kind, Kind::Kill | Kind::Power));
    }

    fn heal(&mut self, node: usize, kind: Kind, there: usize) {
        match kind {
            Kind::Kill | Kind::Power => self.nodes.boot(node),
            Kind::Pause => {}
            Kind::End => {
                let left = || self.nodes.seen[node].left.get();
                assert!(self.run_until(left), "node {node} does not leave");
                self.nodes.machines[node].kill();
                self.nodes.boot(node);
            }
            _ => self.cut(node, kind, there, false),
        }
    }

    fn cut(&self, node: usize, kind: Kind, there: usize, on: bool) {
        let machines = &self.nodes.machines;
        if matches!(kind, Kind::NoStore | Kind::Alone | Kind::HalfAlone) {
            self.nodes.reach[node].cut_off.set(on);
        }
        let cut = match kind {
            Kind::CutOff | Kind::Alone => Cut::Off,
            Kind::Mute => Cut::Mute,
            Kind::Deaf => Cut::Deaf,
            Kind::Pair | Kind::HalfAlone => Cut::Pair,
            _ => return,
        };
        cut.set(&self.world, &machines[..there], node, on);
    }

    /// Now and then nobody reaches the store, in the middle of whatever goes on.
    fn leave_without_store(&mut self) {
        if !self.plan.store_away || self.rng.coin() {
            return;
        }
        self.faults += 1;
        let away = self.nodes.reach[0].store_away.clone();
        away.set(true);
        self.run_for(5000);
        away.set(false);
    }

    /// Every shard is served, and has all its columns.
    fn until_sound(&mut self) {
        let sound = |shard: usize| self.nodes.seen.iter().any(|seen| seen.whole[shard].get());
        // Who was stopped does not know yet what it has lost.
        self.world.run_for(Duration::from_millis(100));
        if self.run_until(|| self.nodes.tend() && (0..self.plan.shards).all(sound)) {
            return;
        }
        for (node, seen) in self.nodes.seen.iter().enumerate() {
            eprintln!("node {node}: {:?}", seen.phases.borrow());
        }
        panic!("nothing is wrong any more, and not every shard is sound");
    }

    /// Hosts read on until each block has been read so often that none was missed.
    fn read_all(&mut self) {
        let wanted = self.nodes.registers.borrow().reads + 20 * (BLOCKS * self.plan.shards) as u64;
        let enough = {
            let registers = self.nodes.registers.clone();
            move || registers.borrow().reads >= wanted
        };
        assert!(self.run_until(enough), "hosts are not served");
    }
}
