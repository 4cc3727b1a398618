//! Identify. Base 5.1.13, NVM 4.1.5. Everything advertised here is kept elsewhere: see docs/nvme-coverage.md.

use super::{
    ABORTS_MAX, AERS_MAX, AdminOutcome, Controller, ControllerConfig, KEEP_ALIVE_GRANULARITY_MS, Scope,
    VERSION,
};
use crate::subsystem::{
    ANA_GROUPS_MAX, ControllerModel, LbaSize, NAMESPACES_MAX, NSID_ALL, Namespace, Subsystem,
    TEMPERATURE_WARNING_KELVIN, TRANSFER_BYTES_MAX,
};
use crate::wire::fabrics::DISCOVERY_NQN;
use crate::wire::feature::event_bit;
use crate::wire::identify::{
    CSI_NVM, IDENTIFY_BYTES, IdentifyCommand, IdentifyController, IdentifyControllerNvm, IdentifyNamespace,
    IdentifyNamespaceIndependent, ascii, cns, nidt, put_descriptor,
};
use crate::wire::{Sqe, Status};
use zerocopy::FromZeros;
use zerocopy::IntoBytes;
use zerocopy::little_endian::{U16, U32, U64};

/// CCTEMP: 80 °C.
const TEMPERATURE_CRITICAL_KELVIN: u16 = 353;

/// MDTS in units of 4 KiB pages, as a power of two.
const MDTS: u8 = (TRANSFER_BYTES_MAX / 4096).trailing_zeros() as u8;
const _: () = assert!(4096 << MDTS == TRANSFER_BYTES_MAX);

/// AWUN, AWUPF and ACWU hold for every format, so they count blocks of the largest one times 128: 512 KiB of
/// 4096-byte blocks, 64 KiB of 512-byte ones. NAWUN and friends tell the latter the whole truth. NVM 4.1.5.1.
const ATOMIC_BLOCKS: u16 = (TRANSFER_BYTES_MAX / 4096) as u16;

/// Compare (bit 0), Dataset Management (2), Write Zeroes (3), save and select fields (4), Verify (7).
const ONCS: u16 = 1 | 1 << 2 | 1 << 3 | 1 << 4 | 1 << 7;

/// SGLs without alignment rules (1:0 = 01b), longer than the data (18), offset address in capsules (20),
/// transport descriptor (21).
const SGLS: u32 = 1 | 1 << 18 | 1 << 20 | 1 << 21;

/// Notices that a controller of this kind can send: OAES, and what Set Features accepts.
pub(super) fn offered_events(scope: Scope<'_>) -> u32 {
    match scope {
        Scope::Io(_) => event_bit::NAMESPACE_ATTRIBUTE | event_bit::ANA_CHANGE,
        Scope::Discovery(..) => event_bit::DISCOVERY_CHANGE,
    }
}

/// The first `needed` bytes of `out`, if the host's SGL has room for them. Base 4.2.3.1.
pub(super) fn buffer<'a>(sqe: &Sqe, out: &'a mut [u8], needed: usize) -> Result<&'a mut [u8], Status> {
    if (sqe.sgl().length() as usize) < needed {
        return Err(Status::DATA_SGL_LENGTH_INVALID.with_dnr());
    }
    out.get_mut(..needed).ok_or(Status::INTERNAL_ERROR)
}

impl Controller {
    pub(super) fn identify(
        &self,
        config: &ControllerConfig,
        scope: Scope<'_>,
        sqe: &Sqe,
        out: &mut [u8],
    ) -> Result<AdminOutcome, Status> {
        let command = IdentifyCommand::parse(sqe);
        let page = self.page(config, scope, &command)?;
        buffer(sqe, out, IDENTIFY_BYTES)?.copy_from_slice(&page);
        Ok(AdminOutcome::data(IDENTIFY_BYTES))
    }

    fn page(
        &self,
        config: &ControllerConfig,
        scope: Scope<'_>,
        command: &IdentifyCommand,
    ) -> Result<[u8; IDENTIFY_BYTES], Status> {
        let invalid = Err(Status::INVALID_FIELD.with_dnr());
        let subsystem = match (scope, command.cns) {
            (_, cns::CONTROLLER) => return Ok(self.controller_page(config, scope)),
            (Scope::Discovery(..), _) => return invalid, // Base 3.1.3.3: CNS 01h alone.
            (Scope::Io(subsystem), _) => subsystem,
        };
        let needs_csi =
            matches!(command.cns, cns::IOCS_NAMESPACE | cns::IOCS_CONTROLLER | cns::IOCS_ACTIVE_NAMESPACES);
        if needs_csi && command.csi != CSI_NVM {
            return invalid;
        }
        match command.cns {
            cns::NAMESPACE => namespace_or_zeroes(subsystem, command.nsid, namespace_page),
            cns::NAMESPACE_INDEPENDENT => namespace_or_zeroes(subsystem, command.nsid, independent_page),
            // LBSTM, PIC, ELBAF: no metadata, so all zero. NVM 4.1.5.2.
            cns::IOCS_NAMESPACE => namespace_or_zeroes(subsystem, command.nsid, |_| [0; IDENTIFY_BYTES]),
            cns::ACTIVE_NAMESPACES | cns::IOCS_ACTIVE_NAMESPACES => active_page(subsystem, command.nsid),
            cns::NAMESPACE_DESCRIPTORS => descriptors_page(subsystem, command.nsid),
            cns::IOCS_CONTROLLER => Ok(controller_nvm_page()),
            cns::COMMAND_SETS if command.cntid == u16::MAX || command.cntid == self.cntlid => {
                let mut page = [0; IDENTIFY_BYTES];
                page[0] = 1; // Combination 0: the NVM command set. Base 5.1.13.2.19.
                Ok(page)
            }
            _ => invalid,
        }
    }

    fn controller_page(&self, config: &ControllerConfig, scope: Scope<'_>) -> [u8; IDENTIFY_BYTES] {
        let mut id = IdentifyController::new_zeroed();
        id.mn = ascii(config.model);
        id.fr = ascii(config.firmware);
        id.mdts = MDTS;
        id.cntlid = U16::new(self.cntlid);
        id.ver = U32::new(VERSION);
        id.oaes = U32::new(offered_events(scope));
        id.ctratt = U32::new(1); // Host identifiers of 128 bits.
        id.acl = ABORTS_MAX as u8 - 1;
        id.aerl = AERS_MAX as u8 - 1;
        id.elpe = super::log::ERRORS_MAX as u8 - 1;
        id.kas = U16::new((KEEP_ALIVE_GRANULARITY_MS / 100) as u16);
        id.maxcmd = U16::new(config.queue_entries_max);
        id.sgls = U32::new(SGLS);
        match scope {
            Scope::Io(subsystem) => io_controller(&mut id, config, subsystem),
            Scope::Discovery(..) => {
                id.sn = ascii("discovery");
                id.cntrltype = 2;
                id.dctype = 1; // Direct discovery controller.
                id.lpa = 1 << 2; // Log page offsets.
                id.subnqn[..DISCOVERY_NQN.len()].copy_from_slice(DISCOVERY_NQN.as_bytes());
            }
        }
        zerocopy::transmute!(id)
    }
}

fn io_controller(id: &mut IdentifyController, config: &ControllerConfig, subsystem: &Subsystem) {
    id.sn = subsystem.serial;
    id.cmic = u8::from(config.several_ports) | 1 << 1 | 1 << 3;
    id.cntrltype = 1;
    id.frmw = 1 | 1 << 1; // One slot, read only.
    // Bit 1 command effects, 2 offsets, 5 the pages 00h, 12h and 13h.
    id.lpa = 1 << 1 | 1 << 2 | 1 << 5;
    id.wctemp = U16::new(TEMPERATURE_WARNING_KELVIN);
    id.cctemp = U16::new(TEMPERATURE_CRITICAL_KELVIN);
    id.anatt = 10;
    id.anacap = 0x1f; // All five states; a namespace may move to another group.
    id.anagrpmax = U32::new(ANA_GROUPS_MAX);
    id.nanagrpid = U32::new(ANA_GROUPS_MAX);
    id.sqes = 0x66;
    id.cqes = 0x44;
    id.nn = U32::new(NAMESPACES_MAX);
    id.mnan = U32::new(NAMESPACES_MAX);
    id.oncs = U16::new(ONCS);
    id.fuses = U16::new(1);
    id.vwc = 3 << 1; // No volatile write cache; Flush takes NSID FFFFFFFFh.
    id.awun = U16::new(ATOMIC_BLOCKS - 1);
    id.awupf = U16::new(ATOMIC_BLOCKS - 1);
    id.acwu = U16::new(ATOMIC_BLOCKS - 1);
    id.subnqn = subsystem.nqn.padded();
    id.ioccsz = U32::new((64 + config.in_capsule_bytes) / 16);
    id.iorcsz = U32::new(1);
    id.fcatt = u8::from(subsystem.model == ControllerModel::Static);
    id.msdbd = 1;
    id.ofcs = U16::new(1);
}

/// Base 5.1.13.1: an NSID that cannot exist is refused, one that is not active reads as zeroes. FFFFFFFFh would ask
/// for what all namespaces share, which needs Namespace Management.
fn namespace_or_zeroes(
    subsystem: &Subsystem,
    nsid: u32,
    page: impl Fn(&Namespace) -> [u8; IDENTIFY_BYTES],
) -> Result<[u8; IDENTIFY_BYTES], Status> {
    if nsid == 0 || nsid > NAMESPACES_MAX {
        return Err(Status::INVALID_NAMESPACE_OR_FORMAT.with_dnr());
    }
    Ok(subsystem.namespace(nsid).map_or([0; IDENTIFY_BYTES], page))
}

/// Bit 0 thin: a full pool answers Capacity Exceeded. 1: NAWUN. 3: identifiers never used twice. 4: OPTPERF.
const NSFEAT: u8 = 1 | 1 << 1 | 1 << 3 | 1 << 4;

/// NOWS: as much as a full frame of a usual wide extent likes at once.
const OPTIMAL_WRITE_BYTES: u32 = 64 * 1024;

fn namespace_page(ns: &Namespace) -> [u8; IDENTIFY_BYTES] {
    let mut id = IdentifyNamespace::new_zeroed();
    let atomic = U16::new((TRANSFER_BYTES_MAX >> ns.lba_size.shift()) as u16 - 1);
    let page = U16::new((LbaSize::B4096.bytes() >> ns.lba_size.shift()) as u16 - 1);
    id.nsze = U64::new(ns.lbas);
    id.ncap = U64::new(ns.lbas);
    id.nuse = U64::new(ns.lbas_used.min(ns.lbas));
    id.nsfeat = NSFEAT;
    id.nmic = 1;
    id.dlfeat = 1 | 1 << 3; // Deallocated blocks read as zeroes; Write Zeroes can deallocate.
    (id.nawun, id.nawupf, id.nacwu) = (atomic, atomic, atomic);
    // Whole blocks of 4096 bytes avoid a read-modify-write.
    (id.npwg, id.npwa, id.npdg, id.npda) = (page, page, page, page);
    id.nows = U16::new((OPTIMAL_WRITE_BYTES >> ns.lba_size.shift()) as u16 - 1);
    id.anagrpid = U32::new(ns.ana_group);
    id.nsattr = u8::from(ns.read_only);
    id.nguid = ns.nguid;
    id.lbaf[0].lbads = ns.lba_size.shift();
    zerocopy::transmute!(id)
}

fn independent_page(ns: &Namespace) -> [u8; IDENTIFY_BYTES] {
    let mut id = IdentifyNamespaceIndependent::new_zeroed();
    id.nsfeat = 1 << 3; // Identifiers never used twice.
    id.nmic = 1;
    id.anagrpid = U32::new(ns.ana_group);
    id.nsattr = u8::from(ns.read_only);
    id.nstat = 1;
    zerocopy::transmute!(id)
}

fn controller_nvm_page() -> [u8; IDENTIFY_BYTES] {
    let mut id = IdentifyControllerNvm::new_zeroed();
    id.vsl = MDTS;
    zerocopy::transmute!(id)
}

/// Up to 1024 active NSIDs above `after`. Base 5.1.13.2.2.
fn active_page(subsystem: &Subsystem, after: u32) -> Result<[u8; IDENTIFY_BYTES], Status> {
    if after >= NSID_ALL - 1 {
        return Err(Status::INVALID_NAMESPACE_OR_FORMAT.with_dnr());
    }
    let mut page = [0; IDENTIFY_BYTES];
    let active = subsystem.namespaces().iter().map(|n| n.nsid).filter(|nsid| *nsid > after);
    for (entry, nsid) in page.chunks_exact_mut(4).zip(active) {
        entry.copy_from_slice(&nsid.to_le_bytes());
    }
    Ok(page)
}

/// NGUID and UUID where there are some, and the command set. Base 5.1.13.2.3.
fn descriptors_page(subsystem: &Subsystem, nsid: u32) -> Result<[u8; IDENTIFY_BYTES], Status> {
    let ns = subsystem.namespace(nsid).ok_or(Status::INVALID_NAMESPACE_OR_FORMAT.with_dnr())?;
    let (mut page, mut at) = ([0; IDENTIFY_BYTES], 0);
    if ns.nguid != [0; 16] {
        at = put_descriptor(&mut page, at, nidt::NGUID, &ns.nguid);
    }
    if !ns.uuid.is_nil() {
        at = put_descriptor(&mut page, at, nidt::UUID, ns.uuid.0.as_bytes());
    }
    put_descriptor(&mut page, at, nidt::CSI, &[CSI_NVM]);
    Ok(page)
}
