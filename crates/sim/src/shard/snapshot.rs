//! A snapshot in the life of a shard: at every crash it is there with all that it had, or not at all while nobody was told;
//! and what volumes and snapshots hold adds up to all live blocks.

use super::life::{LAYER, Owner, join_two};
use crate::model::{Model, SECTOR};
use crate::node::flat;
use crate::operation::Operation;
use peristyle_base::LayerId;
use peristyle_rt::Duration;
use peristyle_rt::sim::Rng;

const SNAPSHOT: LayerId = LayerId(2);
const CLONE: LayerId = LayerId(3);
/// Sectors of one read.
const READ: u64 = 1024;

/// What is known of the snapshot.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Phase {
    /// It was asked for.
    Asked,
    Taken,
    /// Its deletion was asked for.
    Deleting,
}

/// The snapshot: what the volume held when it was asked for.
pub struct Frozen {
    pub phase: Phase,
    model: Model,
}

impl Frozen {
    pub fn crashed_copy(&self) -> Frozen {
        Frozen { phase: self.phase, model: self.model.crashed_copy() }
    }
}

impl Owner {
    fn set_snapshot(&self, frozen: Option<Frozen>) {
        *self.rig.frozen.borrow_mut() = frozen;
    }

    fn set_phase(&self, phase: Phase) {
        self.rig.frozen.borrow_mut().as_mut().expect("there is one").phase = phase;
    }

    /// Hosts go on meanwhile, and while the snapshot's layer merges into the volume's.
    pub async fn take_snapshot_and_delete_it(&self, rng: &mut Rng) {
        let _step = self.rig.watch.under_way.begin(Operation::Snapshot);
        let model = self.rig.model.crashed_copy();
        self.set_snapshot(Some(Frozen { phase: Phase::Asked, model }));
        self.shard.snapshot(&[(LAYER, SNAPSHOT)]).await.expect("there is room");
        self.set_phase(Phase::Taken);
        self.write_some(rng, 3).await;
        self.shard.clone_snapshot(CLONE, SNAPSHOT).await.expect("there is room");
        self.compare_snapshot().await;
        self.shard.drop_layer(CLONE).await.expect("it is there");
        self.set_phase(Phase::Deleting);
        self.shard.drop_layer(SNAPSHOT).await.expect("it is there");
        self.set_snapshot(None);
        join_two(self.write_some(&mut rng.fork(), 3), self.merged()).await;
    }

    async fn merged(&self) {
        while !self.shard.is_at_rest() {
            peristyle_rt::sleep(Duration::from_micros(50)).await;
        }
    }

    /// The snapshot, and a clone if there is one, hold what they must, and each live block is somebody's.
    pub async fn compare_snapshot(&self) {
        let accounts = self.shard.accounts();
        let own: u64 = accounts.usage.iter().map(|(_, usage)| usage.own).sum();
        assert_eq!(own + accounts.nobodys, accounts.live, "accounts: {accounts:?}");
        let Some(phase) = self.rig.frozen.borrow().as_ref().map(|frozen| frozen.phase) else {
            assert!(self.shard.usage(SNAPSHOT).is_none(), "a snapshot of nobody's, or one that was deleted");
            return;
        };
        if self.shard.usage(SNAPSHOT).is_none() {
            assert!(phase != Phase::Taken, "a snapshot is lost");
            return self.set_snapshot(None);
        }
        for layer in [SNAPSHOT, CLONE].into_iter().filter(|layer| self.shard.usage(*layer).is_some()) {
            self.compare_with_frozen(layer).await;
        }
    }

    async fn compare_with_frozen(&self, layer: LayerId) {
        let model = self.rig.frozen.borrow().as_ref().expect("just seen").model.crashed_copy();
        for first in (0..model.sectors()).step_by(READ as usize) {
            let count = READ.min(model.sectors() - first);
            let id = model.begin_read(first, count);
            let data = self.shard.read(layer, first * SECTOR, count * SECTOR).await;
            let data = flat(&data.unwrap_or_else(|error| panic!("all devices are sound: {error}")));
            model.end_read(id, &data).unwrap_or_else(|wrong| panic!("{layer:?} of a snapshot: {wrong}"));
        }
    }
}
