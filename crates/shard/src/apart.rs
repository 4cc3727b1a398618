//! Columns that share a failure domain with another one of their extent. None is placed so; but labels of nodes change, and devices are
//! plugged in elsewhere. One of them goes to a domain that has none of the extent, if there is one with room.

use crate::columns::{AllocClass, Columns, Fate};
use crate::commit::discard_ready;
use crate::extent::Extent;
use crate::repair::Fates;
use crate::shard::Shard;
use peristyle_base::Scheme;
use peristyle_cluster::{DeviceView, DomainId, ShardStore};

/// The pool's failure domains at one moment.
pub(crate) struct Domains<'a> {
    devices: &'a [DeviceView],
    /// Some have several devices. Otherwise no two columns can share one.
    some_shared: bool,
    /// Those that have room and take columns.
    with_room: Vec<DomainId>,
}

/// Those of one extent.
#[derive(Default)]
pub(crate) struct Crowd {
    /// Beyond one for each domain.
    pub columns: u64,
    /// The one that can go elsewhere.
    pub leaves: Option<usize>,
}

impl Domains<'_> {
    pub fn of(devices: &[DeviceView]) -> Domains<'_> {
        let distinct = |mut all: Vec<DomainId>| {
            all.sort_unstable();
            all.dedup();
            all
        };
        let all = distinct(devices.iter().map(|d| d.domain).collect());
        let room = devices.iter().filter(|d| d.takes_columns() && d.slots_free() > 0 && !d.away);
        let with_room = distinct(room.map(|d| d.domain).collect());
        Domains { devices, some_shared: all.len() < devices.len(), with_room }
    }

    pub fn crowd(&self, e: &Extent, fates: &Fates) -> Crowd {
        if !self.some_shared {
            return Crowd::default();
        }
        // What a lost device has will be elsewhere.
        let domain = |c: usize| {
            let device = e.place(c).device;
            let there = self.devices.iter().find(|d| d.id == device);
            there.filter(|_| fates.of(device) != Fate::Lost).map(|d| d.domain)
        };
        // Each look comes by here for every extent: nothing is allocated.
        let mut domains = [None; Scheme::WIDTH_MAX];
        let domains = &mut domains[..e.scheme.width()];
        domains.iter_mut().enumerate().for_each(|(c, of)| *of = domain(c));
        let shared = |c: &usize| domains[*c].is_some() && domains[..*c].contains(&domains[*c]);
        let columns = (0..domains.len()).filter(shared).count();
        if columns == 0 || !self.with_room.iter().any(|d| !domains.contains(&Some(*d))) {
            return Crowd { columns: columns as u64, leaves: None };
        }
        let among_others =
            |c: &usize| domains[*c].is_some() && domains.iter().filter(|d| **d == domains[*c]).count() > 1;
        let is_sound = |c: &usize| e.missing >> *c & 1 == 0 && fates.of(e.place(*c).device) == Fate::Here;
        let leaves = (0..domains.len()).rev().filter(among_others).find(is_sound);
        Crowd { columns: columns as u64, leaves }
    }
}

impl<C: Columns, S: ShardStore + 'static> Shard<C, S> {
    /// Extents whose columns could be apart take no more frames: they are sealed, so that one of the columns can go.
    pub(crate) fn close_crowded(&self) {
        let mut devices = Vec::new();
        self.columns.devices(AllocClass::User, &mut devices);
        let (domains, fates) = (Domains::of(&devices), self.fates());
        if !domains.some_shared {
            return;
        }
        let is_crowded = |e: &Extent| domains.crowd(e, &fates).leaves.is_some();
        let state = &mut *self.state.borrow_mut();
        let extents = &state.extents;
        let ready = extents.ready.iter().flatten().copied();
        let mut filling = ready.chain(extents.all_current().into_iter().flatten());
        if !filling.any(|id| extents.get(id).is_some_and(is_crowded)) {
            return;
        }
        discard_ready(state, is_crowded);
        for id in state.extents.all_current().into_iter().flatten() {
            if state.extents.get(id).is_some_and(is_crowded) {
                self.close(state, id);
            }
        }
        self.supply_wanted.notify_all();
    }
}
