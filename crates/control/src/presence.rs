//! What a running node says of itself in the store, under a lease: it is gone soon after the node.

use crate::desired::NODES_MAX;
use crate::meta::{ClusterStore, Item, LeaseId, MetaError, Txn, VALUE_BYTES_MAX};
use peristyle_base::{Duration, NodeId};
use peristyle_rt::{select, sleep, sync::Notify};
use serde::{Deserialize, Serialize};
use std::cell::{Cell, RefCell};

/// A node that does not run is no member soon after this.
const LEASE: Duration = Duration::from_secs(3);
/// Between two attempts.
const PAUSE: Duration = Duration::from_millis(100);
pub(crate) const MEMBERS: &str = "member/";
const HOSTS: &str = "hosts/";

/// That it runs.
#[derive(Serialize, Deserialize)]
pub(crate) struct Member {
    /// The membership that it goes by.
    pub membership: u64,
}

/// A host that has connected to a node.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct HostHere {
    pub nqn: String,
    /// Host Identifier, as hexadecimal digits.
    pub id: String,
    pub controllers: u16,
    pub io_queues: u16,
}

/// What the node has to say at the moment.
#[derive(Default)]
pub struct Presence {
    membership: Cell<u64>,
    hosts: RefCell<Vec<HostHere>>,
    /// Of the hosts.
    version: Cell<u64>,
    changed: Notify,
}

/// Which of it the store has.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Said {
    membership: u64,
    hosts: u64,
}

impl Presence {
    /// The membership that the node goes by: all that depends on it has been done before.
    pub fn set_membership(&self, membership: u64) {
        if self.membership.replace(membership) != membership {
            self.changed.notify_all();
        }
    }

    /// Who has connected to the node.
    pub fn set_hosts(&self, hosts: Vec<HostHere>) {
        if *self.hosts.borrow() != hosts {
            *self.hosts.borrow_mut() = hosts;
            self.version.set(self.version.get() + 1);
            self.changed.notify_all();
        }
    }

    fn now(&self) -> Said {
        Said { membership: self.membership.get(), hosts: self.version.get() }
    }

    /// All of it, or what is not said yet.
    fn txn(&self, node: NodeId, said: Option<Said>, lease: LeaseId) -> Txn {
        let (now, mut txn) = (self.now(), Txn::default());
        if said.is_none_or(|said| said.membership != now.membership) {
            let member = Member { membership: now.membership };
            let value = serde_json::to_vec(&member).expect("plain data");
            txn = txn.put_leased(member_key(node), value, lease);
        }
        if said.map_or(0, |said| said.hosts) != now.hosts {
            txn = txn.put_leased(format!("{HOSTS}{}", node.0), value_of(&self.hosts.borrow()), lease);
        }
        txn
    }
}

/// As many of the hosts as a value has room for: some two hundred with the longest names.
fn value_of(hosts: &[HostHere]) -> Vec<u8> {
    let value = serde_json::to_vec(hosts).expect("plain data");
    if value.len() <= VALUE_BYTES_MAX { value } else { value_of(&hosts[..hosts.len() / 2]) }
}

pub(crate) fn member_key(node: NodeId) -> String {
    format!("{MEMBERS}{}", node.0)
}

/// Says that the node runs, and what it has to say, for as long as it is polled. A store that is away is waited for.
pub async fn stay_present<S: ClusterStore>(store: &S, node: NodeId, presence: &Presence) {
    loop {
        let Ok(lease) = store.grant(LEASE).await else {
            sleep(PAUSE).await;
            continue;
        };
        let mut said = None;
        loop {
            let now = presence.now();
            let written = match said {
                Some(last) if last == now => Ok(()),
                _ => store.commit(presence.txn(node, said, lease)).await.map(drop),
            };
            // Each time: who has something to say all the time runs, too.
            let kept = match written {
                Ok(()) => store.keep_alive(lease).await,
                failed => failed,
            };
            match kept {
                Ok(()) => said = Some(now),
                Err(MetaError::NoLease) => break,
                Err(_) => {
                    // It may or may not have happened: all of it is said again.
                    said = None;
                    sleep(PAUSE).await;
                    continue;
                }
            }
            select(presence.changed.notified(), sleep(LEASE / 3)).await;
        }
    }
}

/// Hosts of every node that says so. What a node says that cannot be read is nothing.
pub async fn hosts<S: ClusterStore>(store: &S) -> Result<Vec<(NodeId, Vec<HostHere>)>, MetaError> {
    let said = store.range(HOSTS, NODES_MAX).await?;
    let of = |(key, item): (String, Item)| {
        let node = NodeId(key.strip_prefix(HOSTS)?.parse().ok()?);
        Some((node, serde_json::from_slice(&item.value).ok()?))
    };
    Ok(said.into_iter().filter_map(of).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_never_keep_a_node_from_saying_that_it_runs() {
        let host = |i: u16| HostHere {
            nqn: format!("{i}{}", "\"".repeat(220)),
            id: "0".repeat(32),
            controllers: i,
            io_queues: 1,
        };
        let hosts: Vec<HostHere> = (0..256).map(host).collect();
        let value = value_of(&hosts);
        assert!(value.len() <= VALUE_BYTES_MAX);
        let told: Vec<HostHere> = serde_json::from_slice(&value).unwrap();
        assert!(!told.is_empty() && hosts.starts_with(&told));
        assert_eq!(value_of(&[]), b"[]");
    }
}
