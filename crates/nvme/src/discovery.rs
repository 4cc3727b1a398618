//! The discovery subsystem: which subsystems a host may use, and at which addresses. Base 3.1.3.3, 5.1.12.3.1.

use crate::subsystem::{ControllerModel, Subsystem};
use crate::wire::fabrics::{CNTLID_DYNAMIC, CNTLID_STATIC_ANY, Nqn};
use crate::wire::log_page::{DiscoveryEntry, DiscoveryHeader, Window};
use core::fmt::Write;
use core::net::{IpAddr, SocketAddr};
use zerocopy::little_endian::U16;
use zerocopy::{FromZeros, IntoBytes};

/// Addresses that the log can name.
pub const PORTALS_MAX: usize = 64;

/// One address at which hosts reach this target: what the log says, not what the process listens on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Portal {
    pub address: SocketAddr,
    /// PORTID, the same as long as the portal exists.
    pub id: u16,
    /// ASQSZ: entries of an admin queue, at least 32.
    pub admin_queue_entries: u16,
}

/// The parts of the discovery log that are not subsystems.
#[derive(Clone, Debug)]
pub struct Discovery {
    /// GENCTR.
    generation: u64,
    portals: Vec<Portal>,
}

impl Default for Discovery {
    fn default() -> Self {
        // A host takes 0 for a log that has never been filled.
        Discovery { generation: 1, portals: Vec::new() }
    }
}

impl Discovery {
    pub fn generation(&self) -> u64 {
        self.generation
    }
    pub fn portals(&self) -> &[Portal] {
        &self.portals
    }
    pub(crate) fn set_portals(&mut self, portals: Vec<Portal>) {
        self.portals = portals;
        self.portals.truncate(PORTALS_MAX);
    }
    /// The log has changed.
    pub(crate) fn advance(&mut self) {
        self.generation += 1;
    }
    pub(crate) fn log_bytes(&self, subsystems: &[Option<Subsystem>], host: &Nqn) -> u64 {
        let records = visible(subsystems, host).count() * self.portals.len();
        (size_of::<DiscoveryHeader>() + records * size_of::<DiscoveryEntry>()) as u64
    }
    /// Every subsystem that `host` may use, at every portal.
    pub(crate) fn put_log(&self, subsystems: &[Option<Subsystem>], host: &Nqn, window: &mut Window<'_>) {
        let records = visible(subsystems, host).count() * self.portals.len();
        window.put(DiscoveryHeader::new(self.generation, records as u64).as_bytes());
        for subsystem in visible(subsystems, host) {
            for portal in &self.portals {
                window.put(entry(subsystem, portal).as_bytes());
            }
        }
    }
}

/// A host learns nothing of subsystems that it may not use.
fn visible<'a>(subsystems: &'a [Option<Subsystem>], host: &'a Nqn) -> impl Iterator<Item = &'a Subsystem> {
    subsystems.iter().flatten().filter(|s| s.hosts.allows(host))
}

fn entry(subsystem: &Subsystem, portal: &Portal) -> DiscoveryEntry {
    let mut entry = DiscoveryEntry::new_zeroed();
    entry.trtype = 3;
    entry.adrfam = match portal.address.ip() {
        IpAddr::V4(_) => 1,
        IpAddr::V6(_) => 2,
    };
    entry.subtype = 2;
    entry.treq = 2 | 1 << 2; // No secure channel needed; flow control can be off.
    entry.portid = U16::new(portal.id);
    entry.cntlid = U16::new(match subsystem.model {
        ControllerModel::Dynamic => CNTLID_DYNAMIC,
        ControllerModel::Static => CNTLID_STATIC_ANY,
    });
    entry.asqsz = U16::new(portal.admin_queue_entries);
    put_text(&mut entry.trsvcid, format_args!("{}", portal.address.port()));
    entry.subnqn = subsystem.nqn.padded();
    put_text(&mut entry.traddr, format_args!("{}", portal.address.ip()));
    entry
}

/// Prints into an ASCII field, padded with NULs as hosts expect these two to be.
fn put_text(field: &mut [u8], text: core::fmt::Arguments<'_>) {
    struct Field<'a>(&'a mut [u8], usize);
    impl Write for Field<'_> {
        fn write_str(&mut self, s: &str) -> core::fmt::Result {
            let room = self.0.get_mut(self.1..self.1 + s.len()).ok_or(core::fmt::Error)?;
            room.copy_from_slice(s.as_bytes());
            self.1 += s.len();
            Ok(())
        }
    }
    // A port and an IP address are far shorter than their fields.
    let _ = Field(field, 0).write_fmt(text);
}
