//! Whether every device is used as much as its capacity asks for, when many owners share them: filled, one node lost, two of another size
//! added. And how much moved for that.

use super::cluster::{self, device_id, ip, node_config};
use peristyle_base::{BLOCK_BYTES, Scheme, ShardId};
use peristyle_cluster::{DeviceView, MemoryShardStore, Plan, PlanDevice, deviations, plan};
use peristyle_column::Geometry;
use peristyle_node::{Node, ShardPhase, Volume, Wish, seeds};
use peristyle_rt::sim::{NodeHandle, World, WorldConfig};
use peristyle_rt::{Buf, Duration, View};
use peristyle_shard::{AllocClass, Columns};
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;

/// Slots of each device at first, and of those that come.
const SLOTS: u32 = 320;
const SLOTS_NEW: u32 = 400;
const NEW: usize = 2;
/// Of all slots so many hundredths are filled with data. What the shards have in stock comes to that, and what is kept back is a quarter.
const FILLED: u64 = 28;
/// Blocks of one write.
const WRITE_BLOCKS: u64 = 128;
/// It rests when nothing has been made anew or moved for so long …
const REST: Duration = Duration::from_secs(30);
/// … which it does within this time.
const LIMIT: Duration = Duration::from_secs(1800);

type ThisNode = Rc<Node>;

/// One state of rest.
#[derive(Clone, Debug)]
pub struct AtRest {
    pub what: &'static str,
    /// Of each device, by number of its node: slots, and how many are in use.
    pub devices: Vec<(usize, u32, u32)>,
    /// How far the use of the device that is furthest off is from its share, as a part of its capacity.
    pub furthest: f64,
    /// Columns made anew and moved since the rest before, and how many had to be.
    pub changed: u64,
    pub least: u64,
}

enum Word {
    Own(usize),
    Fill,
    GiveUp(usize),
    Meet(usize),
}

/// What a node is told, and what it says.
#[derive(Default)]
struct Desk {
    words: RefCell<VecDeque<Word>>,
    serves: Cell<usize>,
    filled: Cell<bool>,
    /// Columns that its shards have made anew or moved.
    changed: Cell<u64>,
    /// Something of its shards is missing.
    lacks: Cell<bool>,
    /// The pool's devices as it sees them.
    views: RefCell<Vec<DeviceView>>,
}

struct Pool {
    world: World,
    nodes: usize,
    scheme: Scheme,
    desks: Vec<Rc<Desk>>,
    machines: Vec<NodeHandle>,
    store: MemoryShardStore,
}

/// The states of rest of a cluster of so many nodes, each of which owns a shard.
///
/// # Panics — when it does not come to rest.
pub fn balance(seed: u64, nodes: usize, scheme: Scheme) -> Vec<AtRest> {
    let pool = Pool::start(seed, nodes, scheme);
    let all: Vec<usize> = (0..nodes).collect();
    all.iter().for_each(|&i| pool.say(i, Word::Fill));
    pool.run_until(|| pool.desks[..nodes].iter().all(|desk| desk.filled.get()));
    pool.rest();
    let mut rests = vec![pool.at_rest("filled", &all, 0, 0)];

    let lost = nodes - 1;
    let had = rests[0].devices[lost].2;
    let before = pool.changed();
    pool.machines[lost].kill();
    let mut left = all.clone();
    left.pop();
    left.iter().for_each(|&i| pool.say(i, Word::GiveUp(lost)));
    pool.say(0, Word::Own(lost));
    pool.run_until(|| pool.desks[0].serves.get() == 2);
    pool.rest();
    rests.push(pool.at_rest("one node lost", &left, pool.changed() - before, had.into()));

    let before = pool.changed();
    let least = pool.least(&rests[1].devices);
    let new: Vec<usize> = (nodes..nodes + NEW).collect();
    left.iter().for_each(|&i| new.iter().for_each(|&j| pool.say(i, Word::Meet(j))));
    let members: Vec<usize> = left.iter().chain(&new).copied().collect();
    new.iter().for_each(|&j| pool.boot(j, &members));
    pool.rest();
    rests.push(pool.at_rest("two nodes added", &members, pool.changed() - before, least.moved));
    rests
}

impl Pool {
    fn start(seed: u64, nodes: usize, scheme: Scheme) -> Pool {
        let config = WorldConfig { poll_ns: 0, ..WorldConfig::new(seed) };
        let world = World::new(config);
        let machines: Vec<NodeHandle> = (0..nodes + NEW).map(|i| world.add_node(ip(i))).collect();
        let desks = (0..nodes + NEW).map(|_| Rc::default()).collect();
        let pool = Pool { world, nodes, scheme, desks, machines, store: MemoryShardStore::default() };
        let members: Vec<usize> = (0..nodes).collect();
        members.iter().for_each(|&i| pool.boot(i, &members));
        members.iter().for_each(|&i| pool.say(i, Word::Own(i)));
        pool.run_until(|| pool.desks[..nodes].iter().all(|desk| desk.serves.get() == 1));
        pool
    }

    fn slots(&self, node: usize) -> u32 {
        if node < self.nodes { SLOTS } else { SLOTS_NEW }
    }

    /// Starts a node with a new device; it knows the members.
    fn boot(&self, i: usize, members: &[usize]) {
        let disk = cluster::formatted(&self.world, &self.machines[i], i, Geometry::bytes_for(self.slots(i)));
        let others: Vec<usize> = members.iter().copied().filter(|&j| j != i).collect();
        let config = node_config(i, &others, &disk, (self.scheme, self.nodes));
        let blocks = self.blocks();
        let desk = self.desks[i].clone();
        self.machines[i].start(seeds(&config, 1, &self.store), move |seed| {
            let desk = desk.clone();
            async move { serve(Node::start(seed, false).await, desk, blocks).await }
        });
    }

    /// Blocks that each shard's volume is filled with.
    fn blocks(&self) -> u64 {
        let columns = u64::from(SLOTS) * self.nodes as u64 * FILLED / 100;
        let extents = columns / self.scheme.width() as u64 / self.nodes as u64;
        // A frame's header takes a row of them.
        let rows = u64::from(peristyle_base::COLUMN_ROWS) * 31 / 32;
        (extents * rows * self.scheme.k() as u64).next_multiple_of(WRITE_BLOCKS)
    }

    fn say(&self, node: usize, word: Word) {
        self.desks[node].words.borrow_mut().push_back(word);
    }

    fn run_until(&self, done: impl FnMut() -> bool) {
        assert!(self.world.run_until(done, LIMIT), "it does not come that far in simulated {LIMIT:?}");
    }

    fn changed(&self) -> u64 {
        self.desks.iter().map(|desk| desk.changed.get()).sum()
    }

    /// Until nothing is missing, and nothing has changed for a while.
    fn rest(&self) {
        let mut waited = Duration::ZERO;
        loop {
            let before = self.changed();
            self.world.run_for(REST);
            waited += REST;
            let lacks = self.desks.iter().any(|desk| desk.lacks.get());
            if self.changed() == before && !lacks {
                return;
            }
            assert!(waited < LIMIT, "it does not come to rest in simulated {LIMIT:?}");
        }
    }

    fn at_rest(&self, what: &'static str, members: &[usize], changed: u64, least: u64) -> AtRest {
        let views = self.desks[0].views.borrow();
        let of = |&i: &usize| {
            views.iter().find(|view| view.id == device_id(i)).copied().expect("a member's device")
        };
        let devices: Vec<DeviceView> = members.iter().map(of).collect();
        let furthest = deviations(&devices).map(f64::abs).fold(0.0, f64::max);
        let devices = members.iter().zip(&devices).map(|(&i, d)| (i, d.slots_total, d.slots_used)).collect();
        AtRest { what, devices, furthest, changed, least }
    }

    /// What has to move when the new devices come.
    fn least(&self, devices: &[(usize, u32, u32)]) -> Plan {
        let device = |i: usize, slots_total, slots_used| PlanDevice {
            domain: cluster::domain(i),
            slots_total,
            slots_used,
            stays: true,
        };
        let there = devices.iter().map(|&(i, total, used)| device(i, total, used));
        let new = (self.nodes..self.nodes + NEW).map(|i| device(i, SLOTS_NEW, 0));
        plan(&there.chain(new).collect::<Vec<_>>(), self.scheme)
    }
}

async fn serve(node: ThisNode, desk: Rc<Desk>, blocks: u64) {
    loop {
        let word = desk.words.borrow_mut().pop_front();
        match word {
            Some(Word::Own(shard)) => assert!(node.own(ShardId(shard as u32), true).await),
            Some(Word::Fill) => {
                fill(&node, blocks).await;
                desk.filled.set(true);
            }
            Some(Word::GiveUp(lost)) => node.set_wish(device_id(lost), Wish::Failed),
            Some(Word::Meet(new)) => {
                node.add_peer(cluster::peer(new));
                assert!(node.add_peer_device(&cluster::peer_device(new)));
            }
            None => {}
        }
        report(&node, &desk);
        peristyle_rt::sleep(Duration::from_millis(50)).await;
    }
}

fn report(node: &ThisNode, desk: &Desk) {
    let now = peristyle_rt::now();
    let serving = |(shard, phase): (ShardId, ShardPhase)| {
        matches!(phase, ShardPhase::Serving(_)).then(|| node.shard(shard)).flatten()
    };
    let (mut serves, mut changed, mut lacks) = (0, 0, false);
    for shard in node.shard_phases().into_iter().filter_map(serving) {
        let figures = shard.repair_figures(now);
        serves += 1;
        changed += figures.remade_columns + figures.moved_columns;
        lacks |= figures.lost_columns + figures.away_columns + figures.working_ns > 0;
    }
    desk.serves.set(serves);
    desk.changed.set(changed);
    desk.lacks.set(lacks);
    let mut views = desk.views.borrow_mut();
    views.clear();
    node.columns().devices(AllocClass::User, &mut views);
}

/// Writes each volume of the node's shards once.
async fn fill(node: &ThisNode, blocks: u64) {
    for (shard, _) in node.shard_phases() {
        let spec = cluster::volume(shard.0 as usize);
        let volume: Volume = node.volume(&spec).expect("a shard of the pool");
        volume.ensure_layer(blocks).await.expect("it fits");
        for first in (0..blocks).step_by(WRITE_BLOCKS as usize) {
            let data = contents(u64::from(shard.0) << 32 | first).await;
            volume.write(first * BLOCK_BYTES as u64, data).await.expect("there is room");
        }
    }
}

async fn contents(salt: u64) -> View {
    let mut buf = Buf::alloc(WRITE_BLOCKS as usize * BLOCK_BYTES).await;
    crate::model::fill(salt | 1 << 63, 0, &mut buf);
    buf.freeze()
}
