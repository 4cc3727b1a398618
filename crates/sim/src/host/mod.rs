//! A node with an NVMe/TCP target, and hosts on machines of their own: they write, read, compare and swap over
//! simulated TCP while connections are reset, links are cut, blocked one way or crawl, the node is killed or loses
//! power, hosts are killed, the control store does not answer, and up to m devices are bad.
//!
//! Safety first: no host ever reads what the model does not allow; what was acknowledged is there; of what was not,
//! all or nothing. Then liveness: with everything whole again every host connects, finds out what became of its
//! unanswered writes, completes its operations, and all volumes are read and compared.

mod chaos;
mod client;
mod commands;

use crate::Outcome;
use crate::model::{Habits, Model, SECTOR};
use crate::node::{self, Machine, READY_LIMIT, shard_of, world};
use chaos::Chaos;
use client::{Client, Disk, Duty};
use peristyle_base::{LayerId, Uuid};
use peristyle_node::{Node, TargetConfig, VolumeSpec, seeds};
use peristyle_nvme::QpairLimits;
use peristyle_nvme::subsystem::Hosts;
use peristyle_nvme::wire::fabrics::Nqn;
use peristyle_rt::sim::{Rng, Stop, World};
use peristyle_rt::{Addr, Duration, ReactorId};
use std::rc::Rc;

const NQN: &str = "nqn.2026-01.io.peristyle:simulated";

/// How one host works.
#[derive(Clone, Debug)]
pub struct Manner {
    pub queues: u16,
    /// Commands in flight.
    pub depth: usize,
    pub digests: (bool, bool),
    pub keep_alive_ms: u32,
    pub in_capsule_bytes: u32,
    /// Operations without a pause at most.
    pub burst: u64,
    /// The pause after that at most.
    pub rest_ms: u64,
}

/// What is drawn from a seed.
#[derive(Clone, Debug)]
pub struct Plan {
    pub machine: node::Plan,
    /// The reactor that owns the first shard; the others follow.
    pub shard_home: usize,
    /// Bytes, and bytes of a logical block.
    pub volumes: Vec<(u64, u32)>,
    pub hosts: Vec<Manner>,
    /// Cuts, resets and slow links of one round at most.
    pub network_faults: u64,
    /// Answers of the control store that go wrong in one round at most.
    pub store_faults: u64,
}

impl Plan {
    fn draw(rng: &mut Rng) -> Plan {
        let mut machine = node::Plan::draw(rng);
        machine.reactors = *rng.pick(&[1, 1, 2]);
        machine.rounds = rng.between(2, 4) as usize;
        machine.operations_per_round = *rng.pick(&[20, 60, 150]);
        let count = rng.between(1, 3);
        let volumes: Vec<(u64, u32)> =
            (0..count).map(|_| (*rng.pick(&[1 << 20, 4 << 20, 8 << 20]), *rng.pick(&[512, 4096]))).collect();
        if rng.below(6) == 0 {
            machine.slots = 40; // The pool may run full.
        }
        let draw_manner = |rng: &mut Rng| Manner {
            queues: rng.between(1, 3) as u16,
            depth: *rng.pick(&[1, 4, 8]),
            digests: (rng.coin(), rng.coin()),
            keep_alive_ms: *rng.pick(&[1000, 3000, 5000]),
            in_capsule_bytes: *rng.pick(&[0, 4096, 8192]),
            burst: *rng.pick(&[1, 8, 64]),
            rest_ms: *rng.pick(&[1, 200, 4000]),
        };
        let hosts = (0..rng.between(1, 4)).map(|_| draw_manner(rng)).collect();
        Plan {
            shard_home: rng.below(machine.reactors as u64) as usize,
            machine,
            volumes,
            hosts,
            network_faults: *rng.pick(&[0, 2, 6]),
            store_faults: *rng.pick(&[0, 0, 3]),
        }
    }
}

fn generator(seed: u64) -> Rng {
    Rng::new(seed ^ 0x4057)
}

/// What the seed means.
pub fn plan(seed: u64) -> Plan {
    Plan::draw(&mut generator(seed))
}

/// The machines: one with the target, one for each host.
pub struct Rig {
    pub plan: Plan,
    pub world: World,
    pub target: Machine,
    pub clients: Vec<Rc<Client>>,
}

impl Rig {
    fn new(seed: u64, plan: Plan, rng: &mut Rng) -> Rig {
        let world = world(seed);
        let target = Machine::new(&world, plan.machine.clone(), seed);
        let disks: Rc<[Disk]> = (plan.volumes.iter().zip(1..))
            .map(|(&(bytes, lba_bytes), nsid)| {
                let mut habits = Habits::draw(rng, bytes / SECTOR);
                if lba_bytes == 4096 {
                    habits.partial = 0;
                }
                Disk { nsid, lba_sectors: u64::from(lba_bytes) / SECTOR, model: Model::new(bytes), habits }
            })
            .collect();
        let client = |(manner, at): (&Manner, u8)| {
            let node = world.add_node([10, 0, 1, at].into());
            Rc::new(Client::new(node, target.node.clone(), manner.clone(), disks.clone()))
        };
        let clients = plan.hosts.iter().zip(1..).map(client).collect();
        Rig { plan, world, target, clients }
    }

    /// Boots the node with its target.
    fn boot(&self) {
        let mut config = self.target.config();
        let (shards, reactors) = (self.plan.machine.shards, self.plan.machine.reactors);
        let home = |i: usize| ReactorId(((self.plan.shard_home + i) % reactors) as u16);
        config.shards = (0..shards).map(|i| (shard_of(i, shards), home(i))).collect();
        let volumes = (self.plan.volumes.iter().zip(1..))
            .map(|(&(bytes, lba_bytes), nsid)| VolumeSpec {
                name: format!("v{nsid}"),
                nsid,
                uuid: Uuid([nsid as u8; 16]),
                nguid: [nsid as u8; 16],
                bytes,
                lba_bytes,
                shard: shard_of(nsid as usize - 1, shards),
                layer: LayerId(nsid),
                read_only: false,
            })
            .collect();
        let target = TargetConfig {
            listen: Addr::Tcp("10.0.0.1:4420".parse().expect("an address")),
            portals: Vec::new(),
            nqn: Nqn::new(NQN).expect("a name"),
            serial: "1".into(),
            hosts: Hosts::Any,
            volumes,
            limits: QpairLimits::default(),
            forwards: false,
        };
        self.target.node.start(
            seeds(&config, config_reactors(&self.plan), &self.target.store),
            move |seed| {
                let target = target.clone();
                async move {
                    let node = Node::start(seed, false).await;
                    node.start_target(target).await.expect("the port is free");
                    std::future::pending::<()>().await;
                }
            },
        );
    }

    fn boot_if_down(&self) {
        if !self.target.node.is_running() {
            self.boot();
        }
    }

    fn idle(&self) -> bool {
        self.clients.iter().all(|c| !c.node.is_running())
    }

    /// Every host that is not running starts, with work of its own to do.
    fn start_hosts(&self, operations: u64, duty: Duty) {
        for client in self.clients.iter().filter(|c| !c.node.is_running()) {
            client.start(operations.div_ceil(self.clients.len() as u64), duty);
        }
    }

    /// Hosts at work while things go wrong; ends when all have done their part, or after a while.
    fn round(&self, chaos: &mut Chaos, hurt: bool, rng: &mut Rng) -> u64 {
        let plan = &self.plan.machine;
        if hurt {
            self.target.hurt(rng, self.world.now_nanos());
        }
        let how = if rng.coin() { Stop::Kill } else { Stop::Power };
        if rng.below(3) > 0 {
            // Early crashes hit recovery itself, and hosts that come back.
            let within = *rng.pick(&[300, 3_000, 30_000]);
            self.target.node.stop_at_event(self.target.node.events() + rng.between(1, within), how);
        }
        self.boot_if_down();
        let duty = if rng.coin() { Duty::Patient } else { Duty::Impatient };
        self.start_hosts(plan.operations_per_round, duty);
        chaos.begin(self, rng);
        let running = || self.target.node.is_running();
        self.world.run_until(|| self.idle() || !running(), Duration::from_secs(20));
        if !running() {
            // Hosts try to come back to a node that is not there.
            self.world.run_for(Duration::from_millis(rng.below(4000)));
        }
        if rng.coin() {
            self.target.node.stop(how);
        }
        if rng.below(4) == 0 {
            rng.pick(&self.clients).node.stop(if rng.coin() { Stop::Kill } else { Stop::Power });
        }
        self.target.node.stop_at_event(u64::MAX, how);
        1
    }

    /// Nothing is wrong any more: all hosts must come to their end.
    fn live(&self, duty: Duty, operations: u64) {
        self.clients.iter().for_each(|c| c.hurry());
        self.start_hosts(operations, duty);
        let done = self.world.run_until(|| self.idle(), 2 * READY_LIMIT);
        let waiting =
            || self.clients.iter().filter(|c| c.node.is_running()).map(|c| c.state()).collect::<Vec<_>>();
        assert!(done, "nothing is wrong any more, and hosts wait for ever: {:?}", waiting());
        let gone = self.world.run_until(|| self.world.connection_count() == 0, READY_LIMIT);
        assert!(gone, "all hosts have left, and {} connections stay", self.world.connection_count());
    }
}

fn config_reactors(plan: &Plan) -> usize {
    plan.machine.reactors
}

/// Runs one seed.
pub fn run(seed: u64) -> Outcome {
    let mut rng = generator(seed);
    let plan = Plan::draw(&mut rng);
    let rig = Rig::new(seed, plan, &mut rng);
    let mut chaos = Chaos::default();
    let mut crashes = 0;
    for round in 0..rig.plan.machine.rounds {
        crashes += rig.round(&mut chaos, round > 0, &mut rng);
    }
    chaos.end(&rig);
    rig.target.heal();
    rig.target.store.clear_faults();
    if rng.coin() {
        rig.target.node.stop(Stop::Kill);
        crashes += 1;
    }
    // A shard that gave up because of the control store stays down until its node starts again.
    if rig.plan.store_faults > 0 {
        rig.target.node.stop(Stop::Power);
    }
    rig.boot_if_down();
    rig.live(Duty::Patient, rig.plan.machine.operations_per_round);
    // Those that were impatient until now find out, too.
    rig.live(Duty::Patient, 0);
    let open: usize = rig.clients.iter().map(|c| c.orphans()).sum();
    assert_eq!(open, 0, "hosts that were all right have writes of which nobody knows the end");
    rig.clients[0].start(0, Duty::Verify);
    rig.live(Duty::Patient, 0);
    rig.target.node.stop(Stop::Kill);
    assert_eq!(rig.world.leaked_buffers(), 0, "buffers that nobody gave back");
    let models = || rig.clients[0].disks().iter().map(|d| &d.model);
    Outcome {
        trace: rig.world.trace_hash(),
        simulated_nanos: rig.world.now_nanos(),
        events: rig.world.events(),
        crashes: crashes + 1,
        states: 0,
        tally: Default::default(),
        faults: rig.target.disk_faults() + chaos.count(),
        operations: models().map(Model::acknowledged).sum(),
        verified: models().map(Model::verified).sum(),
    }
}
