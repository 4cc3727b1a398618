//! Get Log Page: the command's fields and the pages. Base 5.1.12, discovery: Base 5.1.12.3.1.

use super::Sqe;
use core::mem::offset_of;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Log page identifiers. Base 5.1.12 figure "Get Log Page – Log Page Identifiers".
pub mod lid {
    pub const SUPPORTED_LOG_PAGES: u8 = 0x00;
    pub const ERROR_INFORMATION: u8 = 0x01;
    pub const SMART: u8 = 0x02;
    pub const FIRMWARE_SLOT: u8 = 0x03;
    pub const CHANGED_NAMESPACES: u8 = 0x04;
    pub const COMMAND_EFFECTS: u8 = 0x05;
    pub const ANA: u8 = 0x0c;
    pub const FEATURE_EFFECTS: u8 = 0x12;
    pub const DISCOVERY: u8 = 0x70;
}

/// The Get Log Page command. Base 5.1.12 figures of CDW10 to CDW14.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GetLogPage {
    /// CDW10 07:00.
    pub lid: u8,
    /// CDW10 14:08, log specific.
    pub lsp: u8,
    /// CDW10 15: reading does not clear the asynchronous event.
    pub rae: bool,
    /// NUMDU:NUMDL as bytes (zero's based dwords on the wire): 4 to 16 GiB.
    pub bytes: u64,
    /// CDW11 31:16, log specific identifier.
    pub lsi: u16,
    /// LPOU:LPOL.
    pub offset: u64,
    /// CDW14 23: the offset counts entries, not bytes.
    pub offset_is_index: bool,
    /// CDW14 31:24.
    pub csi: u8,
    pub nsid: u32,
}

impl GetLogPage {
    pub fn parse(sqe: &Sqe) -> GetLogPage {
        let numd = u64::from(sqe.cdw10() >> 16) | u64::from(sqe.cdw11() & 0xffff) << 16;
        GetLogPage {
            lid: sqe.cdw10() as u8,
            lsp: (sqe.cdw10() >> 8) as u8 & 0x7f,
            rae: sqe.cdw10() & 1 << 15 != 0,
            bytes: (numd + 1) * 4,
            lsi: (sqe.cdw11() >> 16) as u16,
            offset: u64::from(sqe.cdw12()) | u64::from(sqe.cdw13()) << 32,
            offset_is_index: sqe.cdw14() & 1 << 23 != 0,
            csi: (sqe.cdw14() >> 24) as u8,
            nsid: sqe.nsid(),
        }
    }
}

/// One entry of the Error Information log (01h). Base 5.1.12.1.2.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct ErrorEntry {
    /// 07:00 number of this error, from 1; 0 marks an unused entry.
    pub error_count: U64,
    pub sqid: U16,
    pub cid: U16,
    /// 13:12 status field with the phase tag in bit 0.
    pub status_field: U16,
    /// 15:14 byte 7:0 and bit 10:8 of the parameter at fault; FFFFh when none.
    pub parameter_error_location: U16,
    pub lba: U64,
    pub nsid: U32,
    pub vendor_log: u8,
    /// 29 transport type: 3 TCP.
    pub trtype: u8,
    pub csi: u8,
    pub opcode: u8,
    pub command_specific: U64,
    pub transport_specific: U16,
    _42: [u8; 21],
    /// 63 log page version: 1 = fields 31:30 are valid.
    pub version: u8,
}

const _: () = assert!(size_of::<ErrorEntry>() == 64);

/// SMART / Health Information (02h). Base 5.1.12.1.3.
#[derive(Clone, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct SmartLog {
    /// 00 bit 0 spare below threshold, 1 temperature, 2 reliability, 3 media read only.
    pub critical_warning: u8,
    /// 02:01 kelvins.
    pub composite_temperature: U16,
    /// 03 to 05: percentages.
    pub available_spare: u8,
    pub available_spare_threshold: u8,
    pub percentage_used: u8,
    pub endurance_group_warning: u8,
    _7: [u8; 25],
    /// 47:32, 63:48: thousands of 512-byte units, rounded up.
    pub data_units_read: [u8; 16],
    pub data_units_written: [u8; 16],
    pub host_read_commands: [u8; 16],
    pub host_write_commands: [u8; 16],
    /// 111:96 minutes.
    pub controller_busy_time: [u8; 16],
    pub power_cycles: [u8; 16],
    pub power_on_hours: [u8; 16],
    pub unsafe_shutdowns: [u8; 16],
    pub media_errors: [u8; 16],
    pub error_log_entries: [u8; 16],
    _192: [u8; 320],
}

const _: () = assert!(size_of::<SmartLog>() == 512);
const _: () = assert!(offset_of!(SmartLog, data_units_read) == 32);
const _: () = assert!(offset_of!(SmartLog, error_log_entries) == 176);

/// Firmware Slot Information (03h). Base 5.1.12.1.4.
#[derive(Clone, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct FirmwareSlotLog {
    /// 00 active firmware: slot 2:0.
    pub afi: u8,
    _1: [u8; 7],
    /// 63:08 revision of each slot.
    pub frs: [[u8; 8]; 7],
    _64: [u8; 448],
}

const _: () = assert!(size_of::<FirmwareSlotLog>() == 512);

/// Entries of the Changed Attached Namespace List (04h). Base 5.1.12.1.5.
pub const CHANGED_NAMESPACES_MAX: usize = 1024;

/// Bytes of the Supported Log Pages page (00h): 256 dwords. Base 5.1.12.1.1.
pub const SUPPORTED_LOG_PAGES_BYTES: u64 = 1024;
/// Bytes of Commands Supported and Effects (05h): 256 admin, 256 I/O dwords, reserved. Base 5.1.12.1.6.
pub const COMMAND_EFFECTS_BYTES: u64 = 4096;
/// Bytes of Feature Identifiers Supported and Effects (12h): 256 dwords. Base 5.1.12.1.18.
pub const FEATURE_EFFECTS_BYTES: u64 = 1024;

/// Header of the Asymmetric Namespace Access log (0Ch). Base 5.1.12.1.13.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct AnaHeader {
    pub change_count: U64,
    /// 09:08 number of group descriptors.
    pub groups: U16,
    _10: [u8; 6],
}

const _: () = assert!(size_of::<AnaHeader>() == 16);

impl AnaHeader {
    pub fn new(change_count: u64, groups: u16) -> AnaHeader {
        AnaHeader { change_count: U64::new(change_count), groups: U16::new(groups), _10: [0; 6] }
    }
}

/// One ANA group, followed by `nsids` namespace identifiers in ascending order. Base 5.1.12.1.13.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct AnaGroupDescriptor {
    pub group: U32,
    pub nsids: U32,
    pub change_count: U64,
    /// 16 bits 3:0.
    pub state: u8,
    _17: [u8; 15],
}

const _: () = assert!(size_of::<AnaGroupDescriptor>() == 32);

impl AnaGroupDescriptor {
    pub fn new(group: u32, nsids: u32, change_count: u64, state: AnaState) -> AnaGroupDescriptor {
        AnaGroupDescriptor {
            group: U32::new(group),
            nsids: U32::new(nsids),
            change_count: U64::new(change_count),
            state: state as u8,
            _17: [0; 15],
        }
    }
}

/// Asymmetric namespace access state of a group. Base 8.1.1.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(u8)]
pub enum AnaState {
    #[default]
    Optimized = 0x1,
    NonOptimized = 0x2,
    Inaccessible = 0x3,
    PersistentLoss = 0x4,
    Change = 0xf,
}

impl AnaState {
    /// From bits 3:0 of a descriptor's byte 16; `None` where they are reserved.
    pub fn from_bits(bits: u8) -> Option<AnaState> {
        use AnaState::*;
        let all = [Optimized, NonOptimized, Inaccessible, PersistentLoss, Change];
        all.into_iter().find(|state| *state as u8 == bits & 0xf)
    }
}

/// Header of the Discovery log (70h). Base 5.1.12.3.1.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct DiscoveryHeader {
    /// 07:00 GENCTR, raised whenever the log changes.
    pub generation: U64,
    /// 15:08 NUMREC.
    pub records: U64,
    /// 17:16 RECFMT, 0.
    pub record_format: U16,
    _18: [u8; 1006],
}

const _: () = assert!(size_of::<DiscoveryHeader>() == 1024);

impl DiscoveryHeader {
    pub fn new(generation: u64, records: u64) -> DiscoveryHeader {
        DiscoveryHeader {
            generation: U64::new(generation),
            records: U64::new(records),
            record_format: U16::new(0),
            _18: [0; 1006],
        }
    }
}

/// One record of the Discovery log. Base 5.1.12.3.1; TSAS of TCP: TCP 3.7.
#[derive(Clone, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct DiscoveryEntry {
    /// 00 transport type: 3 TCP.
    pub trtype: u8,
    /// 01 address family: 1 IPv4, 2 IPv6.
    pub adrfam: u8,
    /// 02 subsystem type: 1 referral, 2 NVM subsystem, 3 this discovery subsystem.
    pub subtype: u8,
    /// 03 transport requirements: 1:0 secure channel (0 not specified, 2 not required), 2 SQ flow control may be off.
    pub treq: u8,
    pub portid: U16,
    /// 07:06 FFFFh dynamic controller model, FFFEh static.
    pub cntlid: U16,
    /// 09:08 admin submission queue size, at least 32.
    pub asqsz: U16,
    /// 11:10 entry flags.
    pub eflags: U16,
    _12: [u8; 20],
    /// 63:32 transport service identifier: the TCP port in ASCII.
    pub trsvcid: [u8; 32],
    _64: [u8; 192],
    /// 511:256
    pub subnqn: [u8; 256],
    /// 767:512 transport address in ASCII.
    pub traddr: [u8; 256],
    /// 1023:768 transport specific: byte 0 SECTYPE, 0 none.
    pub tsas: [u8; 256],
}

const _: () = assert!(size_of::<DiscoveryEntry>() == 1024);
const _: () = assert!(offset_of!(DiscoveryEntry, trsvcid) == 32);
const _: () = assert!(offset_of!(DiscoveryEntry, subnqn) == 256);
const _: () = assert!(offset_of!(DiscoveryEntry, tsas) == 768);

/// A log page written front to back, of which only the bytes from `offset` on land in `out`.
///
/// The page itself is never built: what lies outside the window costs a subtraction.
pub struct Window<'a> {
    out: &'a mut [u8],
    offset: u64,
    at: u64,
}

impl<'a> Window<'a> {
    /// `out` is zeroed: what the page does not reach reads as zero, never as old memory.
    pub fn new(out: &'a mut [u8], offset: u64) -> Window<'a> {
        out.fill(0);
        Window { out, offset, at: 0 }
    }
    /// Appends bytes to the page.
    pub fn put(&mut self, bytes: &[u8]) {
        let (start, end) = (self.at, self.at + bytes.len() as u64);
        self.at = end;
        let (from, to) = (start.max(self.offset), end.min(self.offset + self.out.len() as u64));
        if from < to {
            let piece = &bytes[(from - start) as usize..(to - start) as usize];
            let at = (from - self.offset) as usize;
            self.out[at..at + piece.len()].copy_from_slice(piece);
        }
    }
    pub fn put_u32(&mut self, value: u32) {
        self.put(&value.to_le_bytes());
    }
}
