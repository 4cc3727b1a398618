//! What goes wrong between the machines, and with the control store.

use super::Rig;
use crate::node::draw_store_fault;
use peristyle_rt::Duration;
use peristyle_rt::sim::{LinkConfig, NodeHandle, Rng, WorldHandle};
use std::cell::Cell;
use std::rc::Rc;

/// Faults of the network come at any time within this.
const SPANS_MS: [u64; 3] = [20, 500, 5_000];

#[derive(Default)]
pub struct Chaos {
    count: Rc<Cell<u64>>,
    /// What was planned before the last round's end does not happen any more.
    over: Rc<Cell<bool>>,
}

/// One thing that goes wrong on the way between two machines.
#[derive(Clone, Copy)]
enum Cut {
    Reset,
    Both,
    ToTarget,
    FromTarget,
    Slow,
}

impl Cut {
    fn begin(self, world: &WorldHandle, host: &NodeHandle, target: &NodeHandle) {
        match self {
            Cut::Reset => world.reset_connections(host, target),
            Cut::Both => world.partition(host, target, true),
            Cut::ToTarget => world.block(host, target, true),
            Cut::FromTarget => world.block(target, host, true),
            Cut::Slow => {
                let link = LinkConfig { latency_ns: 3_000_000, bytes_per_us: 5, ..LinkConfig::default() };
                world.set_link(host, target, link.clone());
                world.set_link(target, host, link);
            }
        }
    }
}

fn mend(world: &WorldHandle, host: &NodeHandle, target: &NodeHandle) {
    world.partition(host, target, false);
    world.set_link(host, target, LinkConfig::default());
    world.set_link(target, host, LinkConfig::default());
}

impl Chaos {
    /// Faults so far.
    pub fn count(&self) -> u64 {
        self.count.get()
    }

    /// Plans the next round's faults.
    pub fn begin(&mut self, rig: &Rig, rng: &mut Rng) {
        for _ in 0..rng.below(rig.plan.network_faults + 1) {
            let cut =
                *rng.pick(&[Cut::Reset, Cut::Reset, Cut::Both, Cut::ToTarget, Cut::FromTarget, Cut::Slow]);
            let (host, target) = (rng.pick(&rig.clients).node.clone(), rig.target.node.clone());
            let begin = Duration::from_millis(rng.below(*rng.clone().pick(&SPANS_MS)));
            let end = begin + Duration::from_millis(rng.between(1, 9_000));
            let (world, over, count) = (rig.world.handle(), self.over.clone(), self.count.clone());
            let (host_too, target_too, world_too) = (host.clone(), target.clone(), world.clone());
            rig.world.after(begin, move || {
                if !over.get() {
                    count.set(count.get() + 1);
                    cut.begin(&world, &host, &target);
                }
            });
            rig.world.after(end, move || mend(&world_too, &host_too, &target_too));
        }
        for _ in 0..rng.below(rig.plan.store_faults + 1) {
            let fault = draw_store_fault(rng);
            let (store, over, count) = (rig.target.store.clone(), self.over.clone(), self.count.clone());
            rig.world.after(Duration::from_millis(rng.below(2_000)), move || {
                if !over.get() {
                    count.set(count.get() + 1);
                    store.inject(fault);
                }
            });
        }
    }

    /// Everything is whole again, and stays so.
    pub fn end(&self, rig: &Rig) {
        self.over.set(true);
        for client in &rig.clients {
            mend(&rig.world, &client.node, &rig.target.node);
        }
    }
}
