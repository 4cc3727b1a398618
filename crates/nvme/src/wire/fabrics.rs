//! Fabrics commands: Connect and its data, Disconnect. Base 6.3 and 6.4.

use super::Sqe;
use core::mem::offset_of;
use zerocopy::little_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// NQN of the discovery subsystem that every host knows. Base 4.7.
pub const DISCOVERY_NQN: &str = "nqn.2014-08.org.nvmexpress.discovery";

/// Longest NQN, without the NUL. Base 4.7.
pub const NQN_BYTES_MAX: usize = 223;

/// CNTLID of Connect: any controller of the dynamic model; of the static model. Base 6.3.
pub const CNTLID_DYNAMIC: u16 = 0xffff;
pub const CNTLID_STATIC_ANY: u16 = 0xfffe;
/// FFF0h to FFFFh never name a controller. Base 6.3, Base 5.1.13.2.1 CNTLID.
pub const CNTLID_MAX: u16 = 0xffef;

/// Submission queue entry of Connect. Base 6.3.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ConnectCommand {
    /// Bytes 41:40, record format, 0.
    pub recfmt: u16,
    /// Bytes 43:42, queue identifier; 0 is the admin queue.
    pub qid: u16,
    /// Bytes 45:44, queue entries, zero's based on the wire and here.
    pub sqsize: u16,
    /// Byte 46: 1:0 priority, 2 flow control off, 3 individual deletion of I/O queues, 4 PEWR.
    pub cattr: u8,
    /// Bytes 51:48, keep alive timeout in milliseconds; admin queue only.
    pub kato_ms: u32,
}

impl ConnectCommand {
    pub fn parse(sqe: &Sqe) -> ConnectCommand {
        ConnectCommand {
            recfmt: sqe.cdw10() as u16,
            qid: (sqe.cdw10() >> 16) as u16,
            sqsize: sqe.cdw11() as u16,
            cattr: (sqe.cdw11() >> 16) as u8,
            kato_ms: sqe.cdw12(),
        }
    }
    pub fn flow_control_disabled(&self) -> bool {
        self.cattr & 4 != 0
    }
}

/// Offsets within the Connect command or its data, as CQE dword 0 reports them (IPO). Base 6.3.
pub mod ipo {
    pub const SGL_LENGTH: u16 = 32;
    pub const QID: u16 = 42;
    pub const SQSIZE: u16 = 44;
    pub const CATTR: u16 = 46;
    pub const HOSTID: u16 = 0;
    pub const CNTLID: u16 = 16;
    pub const SUBNQN: u16 = 256;
    pub const HOSTNQN: u16 = 512;
}

/// Dword 0 of a Connect refused with Connect Invalid Parameters: IPO 15:00, IATTR bit 16 set when the offset is
/// within the data, clear when it is within the command. Base 6.3.
pub const fn invalid_in_data(ipo: u16) -> u32 {
    ipo as u32 | 1 << 16
}
pub const fn invalid_in_command(ipo: u16) -> u32 {
    ipo as u32
}

/// Connect data. Base 6.3.
#[derive(Clone, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct ConnectData {
    /// 15:00 host identifier.
    pub hostid: [u8; 16],
    /// 17:16
    pub cntlid: U16,
    _18: [u8; 238],
    /// 511:256 and 767:512, UTF-8, NUL terminated.
    pub subnqn: [u8; 256],
    pub hostnqn: [u8; 256],
    _768: [u8; 256],
}

/// Whether the data of a Connect names the discovery subsystem. Base 4.7.
pub fn is_for_discovery(data: &[u8]) -> bool {
    let data = ConnectData::ref_from_prefix(data).ok();
    data.and_then(|(data, _)| Nqn::from_field(&data.subnqn)).is_some_and(|nqn| nqn.as_str() == DISCOVERY_NQN)
}

const _: () = assert!(size_of::<ConnectData>() == 1024);
const _: () = assert!(offset_of!(ConnectData, subnqn) == 256);
const _: () = assert!(offset_of!(ConnectData, hostnqn) == 512);

impl ConnectData {
    pub const BYTES: usize = 1024;

    /// What a host sends.
    pub fn new(hostid: [u8; 16], cntlid: u16, subnqn: &Nqn, hostnqn: &Nqn) -> ConnectData {
        ConnectData {
            hostid,
            cntlid: U16::new(cntlid),
            _18: [0; 238],
            subnqn: subnqn.padded(),
            hostnqn: hostnqn.padded(),
            _768: [0; 256],
        }
    }
}

/// A valid NVMe Qualified Name: 1 to 223 bytes in one of the two formats of Base 4.7.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Nqn {
    len: u8,
    bytes: [u8; NQN_BYTES_MAX],
}

impl Nqn {
    /// `None` unless `text` is `nqn.yyyy-mm.<reverse domain>[:<name>]` (which covers the UUID form).
    pub fn new(text: &str) -> Option<Nqn> {
        let b = text.as_bytes();
        let digits = |range: core::ops::Range<usize>| b[range].iter().all(u8::is_ascii_digit);
        let fits = (13..=NQN_BYTES_MAX).contains(&b.len());
        if !fits
            || !text.starts_with("nqn.")
            || !digits(4..8)
            || b[8] != b'-'
            || !digits(9..11)
            || b[11] != b'.'
        {
            return None;
        }
        if b[12] == b':' || b.iter().any(|c| *c < 0x21 || *c == 0x7f) {
            return None;
        }
        let mut bytes = [0; NQN_BYTES_MAX];
        bytes[..b.len()].copy_from_slice(b);
        Some(Nqn { len: b.len() as u8, bytes })
    }
    /// From a NUL-terminated field of 256 bytes; the NUL must be within the first 224. Base 4.7, CVE-2023-6121.
    pub fn from_field(field: &[u8; 256]) -> Option<Nqn> {
        let end = field.iter().take(NQN_BYTES_MAX + 1).position(|b| *b == 0)?;
        Nqn::new(core::str::from_utf8(&field[..end]).ok()?)
    }
    pub fn as_str(&self) -> &str {
        core::str::from_utf8(&self.bytes[..usize::from(self.len)]).unwrap_or("")
    }
    /// As a field of 256 bytes, filled up with NULs.
    pub fn padded(&self) -> [u8; 256] {
        let mut field = [0; 256];
        field[..NQN_BYTES_MAX].copy_from_slice(&self.bytes);
        field
    }
}

impl core::fmt::Debug for Nqn {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(self.as_str())
    }
}
impl core::fmt::Display for Nqn {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(self.as_str())
    }
}
