//! Identify: the command's fields and the data structures that answer it. Base 5.1.13, NVM 4.1.5.
//!
//! Each structure is its bytes: all fields little-endian, no padding, sizes and offsets asserted.

use super::Sqe;
use core::mem::offset_of;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Bytes of every Identify data structure. Base 5.1.13.
pub const IDENTIFY_BYTES: usize = 4096;

/// Controller or Namespace Structure, CDW10 07:00. Base 5.1.13 figure "Identify – CNS Values".
pub mod cns {
    pub const NAMESPACE: u8 = 0x00;
    pub const CONTROLLER: u8 = 0x01;
    pub const ACTIVE_NAMESPACES: u8 = 0x02;
    pub const NAMESPACE_DESCRIPTORS: u8 = 0x03;
    pub const NVM_SETS: u8 = 0x04;
    pub const IOCS_NAMESPACE: u8 = 0x05;
    pub const IOCS_CONTROLLER: u8 = 0x06;
    pub const IOCS_ACTIVE_NAMESPACES: u8 = 0x07;
    pub const NAMESPACE_INDEPENDENT: u8 = 0x08;
    pub const ALLOCATED_NAMESPACES: u8 = 0x10;
    pub const ALLOCATED_NAMESPACE: u8 = 0x11;
    pub const COMMAND_SETS: u8 = 0x1c;
}

/// I/O Command Set Identifier of the NVM command set. Base 3.1.3.3 figure "I/O Command Set Identifiers".
pub const CSI_NVM: u8 = 0;

/// The Identify command. Base 5.1.13 figures of CDW10, CDW11 and CDW14.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct IdentifyCommand {
    /// CDW10 07:00.
    pub cns: u8,
    /// CDW10 31:16, Controller Identifier.
    pub cntid: u16,
    /// CDW11 15:00, CNS specific identifier.
    pub cnssid: u16,
    /// CDW11 31:24, Command Set Identifier.
    pub csi: u8,
    /// CDW14 06:00.
    pub uuid_index: u8,
    pub nsid: u32,
}

impl IdentifyCommand {
    pub fn parse(sqe: &Sqe) -> IdentifyCommand {
        IdentifyCommand {
            cns: sqe.cdw10() as u8,
            cntid: (sqe.cdw10() >> 16) as u16,
            cnssid: sqe.cdw11() as u16,
            csi: (sqe.cdw11() >> 24) as u8,
            uuid_index: sqe.cdw14() as u8 & 0x7f,
            nsid: sqe.nsid(),
        }
    }
}

/// Identify Controller data structure (CNS 01h). Base 5.1.13.2.1.
#[derive(Clone, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct IdentifyController {
    /// 01:00 PCI vendor, 03:02 subsystem vendor: 0 where there is no PCI function.
    pub vid: U16,
    pub ssvid: U16,
    /// 23:04 serial number, ASCII, padded with spaces.
    pub sn: [u8; 20],
    /// 63:24 model number, ASCII.
    pub mn: [u8; 40],
    /// 71:64 firmware revision, ASCII.
    pub fr: [u8; 8],
    /// 72 recommended arbitration burst.
    pub rab: u8,
    /// 75:73 IEEE OUI.
    pub ieee: [u8; 3],
    /// 76 multi-path and sharing: bit 0 ports, 1 controllers, 3 ANA.
    pub cmic: u8,
    /// 77 maximum data transfer size, 2^n × CAP.MPSMIN.
    pub mdts: u8,
    /// 79:78
    pub cntlid: U16,
    /// 83:80 version.
    pub ver: U32,
    pub rtd3r: U32,
    pub rtd3e: U32,
    /// 95:92 optional asynchronous events supported.
    pub oaes: U32,
    /// 99:96 controller attributes.
    pub ctratt: U32,
    _100: [u8; 11],
    /// 111 controller type: 1 I/O, 2 discovery, 3 administrative.
    pub cntrltype: u8,
    /// 127:112 FRU GUID.
    pub fguid: [u8; 16],
    /// 133:128 command retry delay times, units of 100 ms.
    pub crdt: [U16; 3],
    _134: [u8; 122],
    /// 257:256 optional admin commands.
    pub oacs: U16,
    /// 258 abort command limit, zero's based.
    pub acl: u8,
    /// 259 asynchronous event request limit, zero's based.
    pub aerl: u8,
    /// 260 firmware updates: bit 0 slot 1 read only, 3:1 slots.
    pub frmw: u8,
    /// 261 log page attributes.
    pub lpa: u8,
    /// 262 error log page entries, zero's based.
    pub elpe: u8,
    /// 263 number of power states, zero's based.
    pub npss: u8,
    pub avscc: u8,
    pub apsta: u8,
    /// 267:266 and 269:268, kelvins.
    pub wctemp: U16,
    pub cctemp: U16,
    _270: [u8; 50],
    /// 321:320 keep alive support: granularity in units of 100 ms.
    pub kas: U16,
    _322: [u8; 20],
    /// 342 ANA transition time, seconds.
    pub anatt: u8,
    /// 343 ANA capabilities.
    pub anacap: u8,
    /// 347:344 largest ANA group identifier.
    pub anagrpmax: U32,
    /// 351:348 number of ANA groups.
    pub nanagrpid: U32,
    _352: [u8; 160],
    /// 512 submission queue entry size: required 3:0, maximum 7:4.
    pub sqes: u8,
    /// 513
    pub cqes: u8,
    /// 515:514 maximum outstanding commands of a queue.
    pub maxcmd: U16,
    /// 519:516 largest namespace identifier.
    pub nn: U32,
    /// 521:520 optional NVM commands.
    pub oncs: U16,
    /// 523:522 fused operations: bit 0 compare and write.
    pub fuses: U16,
    /// 524
    pub fna: u8,
    /// 525 volatile write cache: bit 0 present, 2:1 flush with NSID FFFFFFFFh.
    pub vwc: u8,
    /// 527:526 atomic write unit normal, 529:528 power fail; zero's based blocks.
    pub awun: U16,
    pub awupf: U16,
    /// 530
    pub icsvscc: u8,
    /// 531
    pub nwpc: u8,
    /// 533:532 atomic compare and write unit.
    pub acwu: U16,
    /// 535:534 copy descriptor formats.
    pub cdfs: U16,
    /// 539:536 SGL support.
    pub sgls: U32,
    /// 543:540 maximum number of allowed namespaces.
    pub mnan: U32,
    _544: [u8; 224],
    /// 1023:768 NQN of the subsystem, UTF-8, NUL terminated.
    pub subnqn: [u8; 256],
    _1024: [u8; 768],
    /// 1795:1792 I/O capsule: command, in units of 16 bytes.
    pub ioccsz: U32,
    /// 1799:1796 I/O capsule: response, in units of 16 bytes.
    pub iorcsz: U32,
    /// 1801:1800 in-capsule data offset, in units of 16 bytes.
    pub icdoff: U16,
    /// 1802 Fabrics controller attributes: bit 0 set = static controller model.
    pub fcatt: u8,
    /// 1803 maximum SGL data block descriptors.
    pub msdbd: u8,
    /// 1805:1804 optional Fabrics commands: bit 0 Disconnect.
    pub ofcs: U16,
    /// 1806 discovery controller type.
    pub dctype: u8,
    _1807: [u8; 241],
    /// 3071:2048 power state descriptors.
    pub psd: [[u8; 32]; 32],
    _3072: [u8; 1024],
}

const _: () = assert!(size_of::<IdentifyController>() == IDENTIFY_BYTES);
const _: () = assert!(offset_of!(IdentifyController, oaes) == 92);
const _: () = assert!(offset_of!(IdentifyController, cntrltype) == 111);
const _: () = assert!(offset_of!(IdentifyController, oacs) == 256);
const _: () = assert!(offset_of!(IdentifyController, kas) == 320);
const _: () = assert!(offset_of!(IdentifyController, anagrpmax) == 344);
const _: () = assert!(offset_of!(IdentifyController, sqes) == 512);
const _: () = assert!(offset_of!(IdentifyController, mnan) == 540);
const _: () = assert!(offset_of!(IdentifyController, subnqn) == 768);
const _: () = assert!(offset_of!(IdentifyController, ioccsz) == 1792);
const _: () = assert!(offset_of!(IdentifyController, psd) == 2048);

/// LBA format descriptor. NVM 4.1.5.1: metadata size 15:00, LBA data size 23:16 (2^n), relative performance 25:24.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct LbaFormat {
    pub ms: U16,
    pub lbads: u8,
    pub rp: u8,
}

/// Identify Namespace data structure of the NVM command set (CNS 00h). NVM 4.1.5.1.
#[derive(Clone, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct IdentifyNamespace {
    /// 07:00 size, 15:08 capacity, 23:16 utilization, in logical blocks.
    pub nsze: U64,
    pub ncap: U64,
    pub nuse: U64,
    /// 24 features: bit 0 thin provisioning, 1 NAWUN and friends, 3 identifiers never reused, 4 OPTPERF.
    pub nsfeat: u8,
    /// 25 number of LBA formats, zero's based.
    pub nlbaf: u8,
    /// 26 formatted LBA size: index 3:0.
    pub flbas: u8,
    /// 27 metadata, 28 and 29 end-to-end data protection.
    pub mc: u8,
    pub dpc: u8,
    pub dps: u8,
    /// 30 multi-path and sharing: bit 0 shared.
    pub nmic: u8,
    /// 31 reservations.
    pub rescap: u8,
    /// 32
    pub fpi: u8,
    /// 33 deallocate: 2:0 what reads return, 3 DEAC of Write Zeroes.
    pub dlfeat: u8,
    /// 39:34 atomic write units, zero's based.
    pub nawun: U16,
    pub nawupf: U16,
    pub nacwu: U16,
    /// 45:40 atomic boundaries: none.
    pub nabsn: U16,
    pub nabo: U16,
    pub nabspf: U16,
    /// 47:46 optimal I/O boundary.
    pub noiob: U16,
    /// 63:48
    pub nvmcap: [u8; 16],
    /// 73:64 preferred granularity and alignment of writes and deallocates, optimal write size; zero's based.
    pub npwg: U16,
    pub npwa: U16,
    pub npdg: U16,
    pub npda: U16,
    pub nows: U16,
    /// 80:74 limits of Copy.
    pub mssrl: U16,
    pub mcl: U32,
    pub msrc: u8,
    _81: [u8; 11],
    /// 95:92
    pub anagrpid: U32,
    _96: [u8; 3],
    /// 99 attributes: bit 0 write protected.
    pub nsattr: u8,
    /// 101:100, 103:102
    pub nvmsetid: U16,
    pub endgid: U16,
    /// 119:104
    pub nguid: [u8; 16],
    /// 127:120
    pub eui64: [u8; 8],
    /// 383:128
    pub lbaf: [LbaFormat; 64],
    _384: [u8; 3712],
}

const _: () = assert!(size_of::<IdentifyNamespace>() == IDENTIFY_BYTES);
const _: () = assert!(offset_of!(IdentifyNamespace, nawun) == 34);
const _: () = assert!(offset_of!(IdentifyNamespace, npwg) == 64);
const _: () = assert!(offset_of!(IdentifyNamespace, anagrpid) == 92);
const _: () = assert!(offset_of!(IdentifyNamespace, nguid) == 104);
const _: () = assert!(offset_of!(IdentifyNamespace, lbaf) == 128);

/// I/O command set independent Identify Namespace data structure (CNS 08h). Base 5.1.13.2.8.
#[derive(Clone, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct IdentifyNamespaceIndependent {
    pub nsfeat: u8,
    pub nmic: u8,
    pub rescap: u8,
    pub fpi: u8,
    /// 07:04
    pub anagrpid: U32,
    /// 08
    pub nsattr: u8,
    _9: u8,
    pub nvmsetid: U16,
    pub endgid: U16,
    /// 14 status: bit 0 ready.
    pub nstat: u8,
    _15: [u8; 4081],
}

const _: () = assert!(size_of::<IdentifyNamespaceIndependent>() == IDENTIFY_BYTES);
const _: () = assert!(offset_of!(IdentifyNamespaceIndependent, nstat) == 14);

/// NVM command set specific Identify Controller data structure (CNS 06h, CSI 00h). NVM 4.1.5.3.
#[derive(Clone, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct IdentifyControllerNvm {
    /// 00 to 02: size limits of Verify, Write Zeroes, Write Uncorrectable; 2^n × CAP.MPSMIN, 0 none.
    pub vsl: u8,
    pub wzsl: u8,
    pub wusl: u8,
    /// 03 ranges, 07:04 blocks a range, 15:08 blocks in all, of Dataset Management; 0 no limit.
    pub dmrl: u8,
    pub dmrsl: U32,
    pub dmsl: U64,
    _16: [u8; 4080],
}

const _: () = assert!(size_of::<IdentifyControllerNvm>() == IDENTIFY_BYTES);

/// Appends one Namespace Identification Descriptor (CNS 03h): NIDT, NIDL, two reserved bytes, NID.
/// Base 5.1.13.2.3. Returns the offset behind it.
pub fn put_descriptor(out: &mut [u8; IDENTIFY_BYTES], at: usize, nidt: u8, nid: &[u8]) -> usize {
    let end = at + 4 + nid.len();
    out[at] = nidt;
    out[at + 1] = nid.len() as u8;
    out[at + 4..end].copy_from_slice(nid);
    end
}

/// Namespace Identifier Types of the descriptors. Base 5.1.13.2.3.
pub mod nidt {
    pub const EUI64: u8 = 1;
    pub const NGUID: u8 = 2;
    pub const UUID: u8 = 3;
    pub const CSI: u8 = 4;
}

/// Copies `text` and fills the rest with spaces: ASCII fields of Identify. Base 1.4.2.
pub fn ascii<const N: usize>(text: &str) -> [u8; N] {
    let mut out = [b' '; N];
    for (to, from) in out.iter_mut().zip(text.bytes()) {
        *to = if (0x20..0x7f).contains(&from) { from } else { b'?' };
    }
    out
}
