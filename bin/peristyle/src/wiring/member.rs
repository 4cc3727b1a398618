//! A node joins its cluster: the store, its identity, its devices.

use super::Plan;
use super::store::{self, Opened};
use crate::failure::Failure;
use peristyle_base::{NodeId, Uuid};
use peristyle_control::config::{ClusterConfig, PeerTls};
use peristyle_control::desired::{self, NodeState};
use peristyle_control::{
    AnyStore, Control, ControlError, EtcdConfig, EtcdStore, MetaError, ServedStore, StoreAt, Token,
};
use peristyle_node::{NodeConfig, Security, Tls};
use peristyle_rt::{Addr, Duration, RuntimeConfig, sleep};
use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;

/// Who the node is: drawn at its first start.
const IDENTITY: &str = "node-uuid";
/// A store that is away is asked again.
const STORE_PAUSE: Duration = Duration::from_secs(1);

/// Opens the cluster's store and makes this node a member.
pub fn open(plan: &Plan, cluster: &ClusterConfig) -> Result<Opened, Failure> {
    let store = reach(&cluster.token)?;
    let (plan, cluster, shared) = (plan.clone(), cluster.clone(), store.clone());
    let node = peristyle_rt::block_on(RuntimeConfig::small(), async move {
        become_member(&plan, &cluster, shared).await
    });
    node.map(|(node, nqn, notes)| Opened { store, node, nqn, notes })
}

/// The store that a token names.
pub fn reach(token: &Token) -> Result<AnyStore, Failure> {
    match &token.store {
        StoreAt::Etcd(endpoints) => {
            let config = EtcdConfig::new(&token.name, endpoints.clone());
            EtcdStore::open(&config).map(AnyStore::Etcd).map_err(Failure::failed)
        }
        StoreAt::Served(addr) => Ok(AnyStore::Served(ServedStore::new(Addr::Tcp(*addr), &token.name))),
    }
}

fn identity(dir: &Path) -> Result<Uuid, Failure> {
    let file = dir.join(IDENTITY);
    let failed = |e: &dyn std::fmt::Display| Failure::failed(format!("{}: {e}", file.display()));
    match std::fs::read_to_string(&file) {
        Ok(text) => text.trim().parse().map_err(|_| failed(&"it holds no UUID")),
        Err(e) if e.kind() == ErrorKind::NotFound => {
            let uuid = store::random_uuid();
            // It is whole or not there.
            let draft = dir.join("node-uuid.new");
            let written =
                std::fs::write(&draft, format!("{uuid}\n")).and_then(|()| std::fs::rename(&draft, &file));
            written.map(|()| uuid).map_err(|e| failed(&e))
        }
        Err(e) => Err(failed(&e)),
    }
}

/// The cluster's state, once the store answers.
async fn open_control(token: &Token, store: AnyStore) -> Result<Control<AnyStore>, Failure> {
    let mut told = false;
    loop {
        match Control::open(store.clone()).await {
            Ok(Some(control)) if control.state().cluster.uuid == token.cluster => return Ok(control),
            Ok(Some(control)) => {
                let there = control.state().cluster.uuid;
                return Err(Failure::failed(format!(
                    "the cluster `{}` at {} is {there}, and the token is of {}",
                    token.name, token.store, token.cluster
                )));
            }
            Ok(None) => {
                return Err(Failure::failed(format!(
                    "there is no cluster `{}` at {}: `peristyle cluster create` makes one, and prints its token",
                    token.name, token.store
                )));
            }
            Err(ControlError::Store(e @ (MetaError::Unavailable(_) | MetaError::Unknown(_)))) => {
                if !std::mem::replace(&mut told, true) {
                    store::say(format!("{e}: waiting for it"));
                }
                sleep(STORE_PAUSE).await;
            }
            Err(e) => return Err(e.into()),
        }
    }
}

async fn become_member(
    plan: &Plan,
    cluster: &ClusterConfig,
    store: AnyStore,
) -> Result<(NodeConfig, String, Vec<String>), Failure> {
    let uuid = identity(&plan.data_dir)?;
    let control = open_control(&cluster.token, store).await?;
    let mut notes = Vec::new();
    let (_, found) = store::find_devices(plan, Some(cluster.token.cluster), &mut notes).await?;
    let me = NodeId(cluster.node);
    let node = desired::Node {
        id: me,
        uuid,
        peers: cluster.listen,
        portals: plan.portals(),
        rack: cluster.rack.clone(),
        zone: cluster.zone.clone(),
        state: NodeState::Active,
        draining: false,
        maintenance: None,
    };
    let waits = |absent: NodeId| {
        store::say(format!(
            "waits for node {absent}: a node joins while all others run and know of each other"
        ))
    };
    peristyle_member::enter(&control, &node, &found, waits).await?;
    let state = control.state().clone();
    let mut config = store::node_config(plan, &state, Some((me, cluster.listen)));
    config.peers.security = security(cluster)?;
    Ok((config, state.cluster.nqn, notes))
}

/// What connections to other nodes are.
fn security(cluster: &ClusterConfig) -> Result<Security, Failure> {
    let Some(secret) = &cluster.token.secret else { return Ok(Security::Plain) };
    let tls = || Tls::new(secret, cluster.token.cluster, NodeId(cluster.node)).map(Arc::new);
    match cluster.peer_tls() {
        PeerTls::Off => Ok(Security::Plain),
        PeerTls::Optional => tls().map(Security::Either),
        PeerTls::On | PeerTls::Auto => tls().map(Security::Tls),
    }
    .map_err(Failure::failed)
}
