//! Associations, one by one, for whoever decides what each host reaches here: their hosts, an ANA state of their own, their end.

use crate::controller::EventKind;
use crate::registry::{ControllerRef, Ending, Registry, SubsystemId, close_queues};
use crate::wire::log_page::AnaState;

/// A host's controller of a subsystem.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AssociationSeen {
    pub controller: ControllerRef,
    /// Host identifier. Base 3.1.1.
    pub host: [u8; 16],
}

impl Registry {
    /// The subsystem's associations with I/O queues: as many as there are controllers at most.
    pub fn associations_of(&self, id: SubsystemId) -> impl Iterator<Item = AssociationSeen> + '_ {
        self.slots()
            .filter(move |(_, a)| a.subsystem == Some(id) && a.controller.has_io_queues)
            .map(|(controller, a)| AssociationSeen { controller, host: *a.controller.hostid() })
    }

    /// The group's state as this controller's log tells it, whatever the subsystem's is; `None`: the subsystem's again. The host is told.
    pub fn set_association_state(&mut self, controller: ControllerRef, group: u32, state: Option<AnaState>) {
        if let Some(association) = self.association_mut(controller)
            && association.controller.set_ana_state(group, state)
        {
            association.controller.notify(EventKind::AnaChange);
        }
    }

    /// All connections of the association are closed. It is forgotten at once.
    pub fn close_association(&mut self, controller: ControllerRef) {
        if let Some(mut association) = self.take_association(controller) {
            close_queues(&mut association.queues, Ending::Withdrawn, self.events_mut());
        }
    }
}
