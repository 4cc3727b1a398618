//! From submission queue entry to typed I/O command: everything that can be refused is refused here, before a
//! buffer is taken. NVM 3.3; order of checks: opcode, fields, namespace, path, size, range, SGL.

use crate::subsystem::{NSID_ALL, NamespaceTable, NamespaceView, TRANSFER_BYTES_MAX};
use crate::wire::log_page::AnaState;
use crate::wire::opcode::{fctype, nvm};
use crate::wire::{Fuse, Sqe, Status, dsm};

/// Logical blocks of one command; its end is within the namespace.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LbaRange {
    pub slba: u64,
    pub blocks: u32,
}

impl LbaRange {
    /// Byte offset within the volume, and length.
    pub fn bytes(&self, ns: &NamespaceView) -> (u64, u64) {
        (self.slba << ns.lba_size.shift(), u64::from(self.blocks) << ns.lba_size.shift())
    }
}

/// A valid I/O command. Data of Write, Compare and Dataset Management is still to come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum IoCommand {
    Read {
        range: LbaRange,
        fua: bool,
    },
    Write {
        range: LbaRange,
        fua: bool,
    },
    Flush,
    WriteZeroes {
        range: LbaRange,
        fua: bool,
        deallocate: bool,
    },
    /// `ranges` definitions follow as data: see [`check_ranges`]. Without `deallocate` it is advice: nothing to do.
    DatasetManagement {
        ranges: u16,
        deallocate: bool,
    },
    Compare {
        range: LbaRange,
    },
    Verify {
        range: LbaRange,
    },
}

impl IoCommand {
    /// Bytes that move between host and controller.
    pub fn data_bytes(&self, ns: &NamespaceView) -> u32 {
        match self {
            IoCommand::Read { range, .. } | IoCommand::Write { range, .. } | IoCommand::Compare { range } => {
                range.blocks << ns.lba_size.shift()
            }
            IoCommand::DatasetManagement { ranges, .. } => u32::from(*ranges) * dsm::RANGE_BYTES as u32,
            IoCommand::Flush | IoCommand::WriteZeroes { .. } | IoCommand::Verify { .. } => 0,
        }
    }
}

/// The opcodes of I/O queues that this target executes.
pub const SUPPORTED: [u8; 8] = [
    nvm::FLUSH,
    nvm::WRITE,
    nvm::READ,
    nvm::COMPARE,
    nvm::WRITE_ZEROES,
    nvm::DATASET_MANAGEMENT,
    nvm::VERIFY,
    crate::wire::opcode::FABRICS,
];

/// CDW12 fields that ask for what is not there: command extensions 19:16, PRINFO 29:26. NVM 3.3.
/// A host that asks for protection information must not believe that it was checked.
const CDW12_EXTENSION: u32 = 0xf << 16;
const CDW12_PRINFO: u32 = 0xf << 26;
/// Write only: directive type 23:20.
const CDW12_DTYPE: u32 = 0xf << 20;
/// Write Zeroes: deallocate, bit 25.
const CDW12_DEAC: u32 = 1 << 25;

/// Decodes a command that is not fused. Says which namespace it is for; `None` only for Flush of all.
pub fn decode<'t>(
    sqe: &Sqe,
    table: &'t NamespaceTable,
) -> Result<(IoCommand, Option<&'t NamespaceView>), Status> {
    if !SUPPORTED.contains(&sqe.opcode()) || sqe.is_fabrics() {
        return Err(Status::INVALID_OPCODE.with_dnr());
    }
    if sqe.fuse() != Fuse::Normal {
        return Err(Status::INVALID_FIELD.with_dnr());
    }
    if sqe.opcode() == nvm::FLUSH && sqe.nsid() == NSID_ALL {
        return Ok((IoCommand::Flush, None)); // VWC bits 2:1 are 11b. Base 7.2.
    }
    let ns = table.get(sqe.nsid()).ok_or(Status::INVALID_NAMESPACE_OR_FORMAT.with_dnr())?;
    Ok((decode_for(sqe, ns)?, Some(ns)))
}

fn decode_for(sqe: &Sqe, ns: &NamespaceView) -> Result<IoCommand, Status> {
    refuse_by_path(ns)?;
    match sqe.opcode() {
        nvm::FLUSH => Ok(IoCommand::Flush),
        nvm::READ => Ok(IoCommand::Read { range: transfer(sqe, ns, 0)?, fua: sqe.fua() }),
        nvm::WRITE => {
            refuse_read_only(ns)?;
            Ok(IoCommand::Write { range: transfer(sqe, ns, CDW12_DTYPE)?, fua: sqe.fua() })
        }
        nvm::COMPARE => Ok(IoCommand::Compare { range: transfer(sqe, ns, 0)? }),
        nvm::VERIFY => {
            refuse_fields(sqe, 0)?;
            // VSL is MDTS: NVM 4.1.5.3.
            refuse_large(sqe.blocks(), ns)?;
            Ok(IoCommand::Verify { range: in_range(sqe, ns)? })
        }
        nvm::WRITE_ZEROES => {
            refuse_read_only(ns)?;
            refuse_fields(sqe, 0)?;
            let deallocate = sqe.cdw12() & CDW12_DEAC != 0;
            Ok(IoCommand::WriteZeroes { range: in_range(sqe, ns)?, fua: sqe.fua(), deallocate })
        }
        nvm::DATASET_MANAGEMENT => {
            let (ranges, deallocate) = (dsm::ranges(sqe), dsm::deallocate(sqe));
            if deallocate {
                refuse_read_only(ns)?;
            }
            check_sgl(sqe, (ranges * dsm::RANGE_BYTES) as u32)?;
            Ok(IoCommand::DatasetManagement { ranges: ranges as u16, deallocate })
        }
        _ => Err(Status::INVALID_OPCODE.with_dnr()),
    }
}

/// Base 8.1.1.4: commands to a group that this path does not serve. No DNR: the host tries another path.
fn refuse_by_path(ns: &NamespaceView) -> Result<(), Status> {
    match ns.ana {
        AnaState::Optimized | AnaState::NonOptimized => Ok(()),
        AnaState::Inaccessible => Err(Status::ANA_INACCESSIBLE),
        AnaState::PersistentLoss => Err(Status::ANA_PERSISTENT_LOSS),
        AnaState::Change => Err(Status::ANA_TRANSITION),
    }
}

/// Base 8.1.15: a write protected namespace.
fn refuse_read_only(ns: &NamespaceView) -> Result<(), Status> {
    if ns.read_only { Err(Status::NAMESPACE_WRITE_PROTECTED.with_dnr()) } else { Ok(()) }
}

fn refuse_fields(sqe: &Sqe, more: u32) -> Result<(), Status> {
    if sqe.cdw12() & (CDW12_EXTENSION | CDW12_PRINFO | more) != 0 {
        return Err(Status::INVALID_FIELD.with_dnr());
    }
    Ok(())
}

/// Base 5.1.13.2.1 MDTS: a transfer above it is an Invalid Field.
fn refuse_large(blocks: u32, ns: &NamespaceView) -> Result<(), Status> {
    if blocks > TRANSFER_BYTES_MAX >> ns.lba_size.shift() {
        return Err(Status::INVALID_FIELD.with_dnr());
    }
    Ok(())
}

/// NVM 3.1.2.2 LBA Out of Range; nothing wraps at 2^64.
fn in_range(sqe: &Sqe, ns: &NamespaceView) -> Result<LbaRange, Status> {
    let range = LbaRange { slba: sqe.slba(), blocks: sqe.blocks() };
    if !fits(range.slba, range.blocks, ns) {
        return Err(Status::LBA_OUT_OF_RANGE.with_dnr());
    }
    Ok(range)
}

fn fits(slba: u64, blocks: u32, ns: &NamespaceView) -> bool {
    slba.checked_add(u64::from(blocks)).is_some_and(|end| end <= ns.lbas)
}

/// The checks that Read, Write and Compare share.
fn transfer(sqe: &Sqe, ns: &NamespaceView, more_fields: u32) -> Result<LbaRange, Status> {
    refuse_fields(sqe, more_fields)?;
    refuse_large(sqe.blocks(), ns)?;
    let range = in_range(sqe, ns)?;
    check_sgl(sqe, range.blocks << ns.lba_size.shift())?;
    Ok(range)
}

/// Base 4.2.3.1 Data SGL Length Invalid: too short. Longer is fine (SGLS bit 18), up to MDTS: hosts send 4 KiB of
/// ranges whatever NR says.
fn check_sgl(sqe: &Sqe, needed: u32) -> Result<(), Status> {
    let there = sqe.sgl().length();
    if there > TRANSFER_BYTES_MAX {
        return Err(Status::INVALID_FIELD.with_dnr());
    }
    if there < needed {
        return Err(Status::DATA_SGL_LENGTH_INVALID.with_dnr());
    }
    Ok(())
}

/// Checks the ranges of a Dataset Management command when its data is there; read them with
/// [`dsm::parse_ranges`] on the same first `ranges` definitions. All or none: one range past the end refuses the
/// command before anything is deallocated. NVM 3.3.3.
pub fn check_ranges(data: &[u8], ranges: u16, ns: &NamespaceView) -> Result<(), Status> {
    let needed = usize::from(ranges) * dsm::RANGE_BYTES;
    let data = data.get(..needed).ok_or(Status::DATA_SGL_LENGTH_INVALID.with_dnr())?;
    if dsm::parse_ranges(data).any(|r| !fits(r.slba, r.blocks, ns)) {
        return Err(Status::LBA_OUT_OF_RANGE.with_dnr());
    }
    Ok(())
}

/// What a Fabrics command on a connected I/O queue leads to. Base 6.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum IoQueueFabrics {
    /// Answer with success, then delete the queue. Base 6.4.
    Disconnect,
    Refuse(Status),
}

pub fn fabrics_on_io_queue(sqe: &Sqe) -> IoQueueFabrics {
    IoQueueFabrics::Refuse(match sqe.fctype() {
        fctype::DISCONNECT if sqe.cdw10() as u16 == 0 => return IoQueueFabrics::Disconnect,
        fctype::DISCONNECT => Status::INCOMPATIBLE_FORMAT.with_dnr(), // RECFMT, Base 6.4.
        fctype::CONNECT => Status::COMMAND_SEQUENCE_ERROR.with_dnr(), // Base 6.3.
        fctype::PROPERTY_GET | fctype::PROPERTY_SET => Status::INVALID_FIELD.with_dnr(), // Base 6 figure 541 note 3.
        _ => Status::INVALID_OPCODE.with_dnr(),
    })
}

/// A valid Compare and Write.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CompareWrite {
    pub range: LbaRange,
    pub fua: bool,
}

/// Decodes both halves of a fused pair, which the queue pair has put together; on failure says the status of each, first and second. Base 3.4.2, NVM 3.3.1.
pub fn decode_compare_write<'t>(
    first: &Sqe,
    second: &Sqe,
    table: &'t NamespaceTable,
) -> Result<(CompareWrite, &'t NamespaceView), (Status, Status)> {
    const OTHER: Status = Status::ABORTED_FAILED_FUSED;
    let invalid = Status::INVALID_FIELD.with_dnr();
    if first.opcode() != nvm::COMPARE || second.opcode() != nvm::WRITE {
        return Err((invalid, invalid)); // FUSES offers this one pair.
    }
    let no_namespace = Status::INVALID_NAMESPACE_OR_FORMAT.with_dnr();
    let ns = table.get(first.nsid()).ok_or((no_namespace, OTHER))?;
    let compare = decode_for(first, ns).map_err(|status| (status, OTHER))?;
    if second.nsid() != first.nsid() {
        return Err((OTHER, invalid));
    }
    match (compare, decode_for(second, ns).map_err(|status| (OTHER, status))?) {
        // ACWU and NACWU are MDTS, so Atomic Write Unit Exceeded cannot happen.
        (IoCommand::Compare { range: a }, IoCommand::Write { range, fua }) if a == range => {
            Ok((CompareWrite { range, fua }, ns))
        }
        _ => Err((invalid, invalid)), // The same range, or neither. NVM 3.3.1.
    }
}
