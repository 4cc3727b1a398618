//! The desired state in a store. Keys: `cluster`, `node/<id>`, `pool/<id>`, `device/<uuid>`, `shard/<id>`, `volume/<id>`.
//!
//! Every change is one transaction that compares and rewrites `cluster`, whose generation rises: changes are
//! serial, and of two programs that change at once one sees a conflict.

use super::rules::{ControlError, LAYER_FIRST, check_nqn};
use super::{Change, Cluster, FORMAT, State};
use crate::meta::{ClusterStore, MetaError, MetaStore, ReadAnew, Revision, Txn, Watch};
use peristyle_base::{Duration, Uuid, VolumeId};
use serde::{Serialize, de::DeserializeOwned};
use std::cell::{Ref, RefCell};
use std::collections::BTreeMap;

/// How often a change is tried when others change at the same time.
const ATTEMPTS: usize = 4;
/// More items than any state has: pools, devices, shards and volumes have limits of their own.
const RANGE_MAX: usize = 4096;
const CLUSTER: &str = "cluster";
/// Between two attempts when the store is out of reach.
const PAUSE: Duration = Duration::from_millis(100);

/// The desired state, and the store that keeps it.
pub struct Control<S> {
    store: S,
    known: RefCell<Known>,
}

struct Known {
    state: State,
    /// Of the key `cluster`.
    revision: Revision,
}

impl<S: MetaStore> Control<S> {
    /// What the store holds; `None` when it holds nothing yet.
    pub async fn open(store: S) -> Result<Option<Control<S>>, ControlError> {
        let known = load(&store).await?;
        Ok(known.map(|known| Control { store, known: RefCell::new(known) }))
    }

    /// Makes an empty state in an empty store.
    pub async fn create(store: S, uuid: Uuid, nqn: &str) -> Result<Control<S>, ControlError> {
        check_nqn(nqn)?;
        let (next_volume, next_layer, nqn) = (VolumeId(1), LAYER_FIRST, nqn.to_owned());
        let cluster =
            Cluster { format: FORMAT, uuid, nqn, generation: 1, next_volume, next_layer, membership: 0 };
        let txn = Txn::default().compare(CLUSTER, Revision::ABSENT).put(CLUSTER, json(&cluster));
        let revision = match store.commit(txn).await {
            Ok(revision) => revision,
            Err(MetaError::Conflict { .. }) => return Err(ControlError::AlreadyThere("the control store")),
            Err(e) => return Err(e.into()),
        };
        let (nodes, pools, devices, shards, volumes) = Default::default();
        let state = State { cluster, nodes, pools, devices, shards, volumes };
        Ok(Control { store, known: RefCell::new(Known { state, revision }) })
    }

    /// The state as last read or written. Do not hold the borrow over an `await`.
    pub fn state(&self) -> Ref<'_, State> {
        Ref::map(self.known.borrow(), |known| &known.state)
    }

    pub fn store(&self) -> &S {
        &self.store
    }

    /// Makes one change durably and returns the state after it. When the store does not say whether the change
    /// happened, it is looked up: an error means that it did not, unless it is [`MetaError::Unknown`].
    pub async fn apply(&self, change: &Change) -> Result<State, ControlError> {
        for _ in 0..ATTEMPTS {
            match self.attempt(change, |txn| txn).await {
                Err(error) if is_moved(&error) => {}
                result => return result,
            }
        }
        Err(moved())
    }

    /// As [`Control::apply`], but to the state that was looked at and no other, and if what `guard` adds to the transaction holds too;
    /// else a conflict names what has changed.
    pub async fn apply_if(
        &self,
        change: &Change,
        looked_at: &State,
        guard: impl Fn(Txn) -> Txn,
    ) -> Result<State, ControlError> {
        if self.known.borrow().state.cluster.generation != looked_at.cluster.generation {
            return Err(moved());
        }
        self.attempt(change, guard).await
    }

    /// On the state as it is known; a conflict when that is not the state any more, and it has been read anew.
    async fn attempt(&self, change: &Change, guard: impl Fn(Txn) -> Txn) -> Result<State, ControlError> {
        let (before, revision) = {
            let known = self.known.borrow();
            (known.state.clone(), known.revision)
        };
        let mut after = before.clone();
        if let Err(refused) = after.apply(change) {
            // What we know may be old: what is refused must be refused by what is there now.
            return Err(if self.refresh().await? { moved() } else { refused });
        }
        match self.store.commit(guard(difference(&before, &after, revision))).await {
            Ok(revision) => {
                self.learn(Known { state: after.clone(), revision });
                Ok(after)
            }
            Err(MetaError::Conflict { key }) if key == CLUSTER => {
                self.refresh().await?;
                Err(moved())
            }
            Err(MetaError::Unknown(_)) => {
                self.refresh().await?;
                if self.known.borrow().state == after { Ok(after) } else { Err(moved()) }
            }
            Err(e) => Err(e.into()),
        }
    }

    /// Reads the state anew; says whether it is newer than what was known.
    pub async fn refresh(&self) -> Result<bool, ControlError> {
        let unreadable = || ControlError::Unreadable { key: CLUSTER.into(), why: "it is gone".into() };
        let fresh = load(&self.store).await?.ok_or_else(unreadable)?;
        Ok(self.learn(fresh))
    }

    /// Two tasks may load and change at once: an older state never takes the place of a newer one.
    fn learn(&self, fresh: Known) -> bool {
        let mut known = self.known.borrow_mut();
        let newer = fresh.revision > known.revision;
        if newer {
            *known = fresh;
        }
        newer
    }
}

/// The state is another one than that which was looked at.
fn moved() -> ControlError {
    MetaError::Conflict { key: CLUSTER.into() }.into()
}

fn is_moved(error: &ControlError) -> bool {
    matches!(error, ControlError::Store(MetaError::Conflict { key }) if key == CLUSTER)
}

/// Follows a state that others change as well.
pub struct Follower<S: ClusterStore> {
    watch: Option<S::Watch>,
    /// Of the state that was told of last.
    seen: Revision,
    /// Of the last change that was heard of; it may not have been read yet.
    heard: Revision,
}

impl<S: ClusterStore> Control<S> {
    /// Begins behind what is known now.
    pub fn follow(&self) -> Follower<S> {
        let seen = self.known.borrow().revision;
        Follower { watch: None, seen, heard: seen }
    }

    /// Returns when [`Control::state`] has another state than `follower` has seen. A store that is away is waited for. Dropping the
    /// future loses nothing.
    pub async fn changed(&self, follower: &mut Follower<S>) {
        loop {
            let known = self.known.borrow().revision;
            if known > follower.seen {
                follower.seen = known;
                return;
            }
            if follower.heard > known {
                self.reread().await;
                continue;
            }
            match &mut follower.watch {
                Some(watch) => match watch.next().await {
                    Ok(change) => follower.heard = change.revision,
                    Err(ReadAnew) => follower.watch = None,
                },
                None => {
                    self.reread().await;
                    let known = self.known.borrow().revision;
                    follower.watch = Some(self.store.watch(CLUSTER, known));
                }
            }
        }
    }

    async fn reread(&self) {
        while self.refresh().await.is_err() {
            peristyle_rt::sleep(PAUSE).await;
        }
    }
}

/// The transaction that turns one state into the other.
fn difference(before: &State, after: &State, revision: Revision) -> Txn {
    let mut txn = Txn::default().compare(CLUSTER, revision).put(CLUSTER, json(&after.cluster));
    txn = entries(txn, "node", &before.nodes, &after.nodes);
    txn = entries(txn, "pool", &before.pools, &after.pools);
    txn = entries(txn, "device", &before.devices, &after.devices);
    txn = entries(txn, "shard", &before.shards, &after.shards);
    entries(txn, "volume", &before.volumes, &after.volumes)
}

fn entries<K: Ord + ToString, V: PartialEq + Serialize>(
    mut txn: Txn,
    kind: &str,
    before: &BTreeMap<K, V>,
    after: &BTreeMap<K, V>,
) -> Txn {
    for (id, value) in after.iter().filter(|(id, value)| before.get(id) != Some(value)) {
        txn = txn.put(format!("{kind}/{}", id.to_string()), json(value));
    }
    for id in before.keys().filter(|id| !after.contains_key(id)) {
        txn = txn.delete(format!("{kind}/{}", id.to_string()));
    }
    txn
}

/// Reads everything at one generation: when the generation moved meanwhile, once more.
async fn load<S: MetaStore>(store: &S) -> Result<Option<Known>, ControlError> {
    for _ in 0..ATTEMPTS {
        let Some(item) = store.get(CLUSTER).await? else { return Ok(None) };
        let cluster: Cluster = parse(CLUSTER, &item.value)?;
        if cluster.format != FORMAT {
            let why = format!("it has format {}, this program knows {FORMAT}", cluster.format);
            return Err(ControlError::Unreadable { key: CLUSTER.into(), why });
        }
        let nodes = all(store, "node/", |n: &super::Node| n.id).await?;
        let pools = all(store, "pool/", |p: &super::Pool| p.id).await?;
        let devices = all(store, "device/", |d: &super::Device| d.id).await?;
        let shards = all(store, "shard/", |s: &super::Shard| s.id).await?;
        let volumes = all(store, "volume/", |v: &super::Volume| v.id).await?;
        let again = store.get(CLUSTER).await?.map(|i| i.revision);
        if again == Some(item.revision) {
            let state = State { cluster, nodes, pools, devices, shards, volumes };
            return Ok(Some(Known { state, revision: item.revision }));
        }
    }
    Err(MetaError::Conflict { key: CLUSTER.into() }.into())
}

async fn all<S: MetaStore, K: Ord + ToString, V: DeserializeOwned>(
    store: &S,
    prefix: &str,
    id: impl Fn(&V) -> K,
) -> Result<BTreeMap<K, V>, ControlError> {
    let mut out = BTreeMap::new();
    for (key, item) in store.range(prefix, RANGE_MAX).await? {
        let value: V = parse(&key, &item.value)?;
        let id = id(&value);
        if key.strip_prefix(prefix) != Some(&id.to_string()) {
            return Err(ControlError::Unreadable { key, why: format!("it names {}", id.to_string()) });
        }
        out.insert(id, value);
    }
    Ok(out)
}

fn json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("plain data always serialises")
}

fn parse<T: DeserializeOwned>(key: &str, bytes: &[u8]) -> Result<T, ControlError> {
    serde_json::from_slice(bytes)
        .map_err(|e| ControlError::Unreadable { key: key.into(), why: e.to_string() })
}
