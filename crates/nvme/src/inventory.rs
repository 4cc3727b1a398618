//! Which hosts are connected: what an operator compares with the paths that there should be.

use crate::registry::Registry;
use crate::wire::fabrics::Nqn;

/// A host that has controllers of NVM subsystems here. Base 3.1.1: a host is what has one Host NQN and one Host Identifier.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HostSeen {
    pub nqn: Nqn,
    pub id: [u8; 16],
    pub controllers: u16,
    /// Over all its controllers; none while they connect, or when it only administers.
    pub io_queues: u16,
}

impl Registry {
    /// Hosts, in the order of their names and identifiers: as many as there are controllers at most. Those that only ask for the discovery
    /// log are none.
    pub fn hosts(&self) -> Vec<HostSeen> {
        let mut hosts: Vec<HostSeen> = Vec::new();
        for (_, association) in self.associations().filter(|(_, a)| a.subsystem.is_some()) {
            let (nqn, id) = (association.controller.hostnqn(), association.controller.hostid());
            let queues = association.queues.iter().skip(1).flatten().count() as u16;
            match hosts.iter_mut().find(|host| host.nqn == *nqn && host.id == *id) {
                Some(host) => {
                    host.controllers += 1;
                    host.io_queues += queues;
                }
                None => hosts.push(HostSeen { nqn: *nqn, id: *id, controllers: 1, io_queues: queues }),
            }
        }
        hosts.sort_unstable_by(|a, b| (a.nqn.as_str(), a.id).cmp(&(b.nqn.as_str(), b.id)));
        hosts
    }
}
