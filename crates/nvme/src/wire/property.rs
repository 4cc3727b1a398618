//! Controller properties, read and written by Property Get and Property Set. Base 3.1.4, Base 6.5 and 6.6.

use super::Sqe;

/// Offsets. Base 3.1.4 figure "Property Definition".
pub mod offset {
    /// Controller Capabilities, 8 bytes.
    pub const CAP: u32 = 0x00;
    /// Version, 4 bytes.
    pub const VS: u32 = 0x08;
    /// Controller Configuration, 4 bytes.
    pub const CC: u32 = 0x14;
    /// Controller Status, 4 bytes.
    pub const CSTS: u32 = 0x1c;
    /// NVM Subsystem Reset, 4 bytes.
    pub const NSSR: u32 = 0x20;
    /// Controller Ready Timeouts, 4 bytes.
    pub const CRTO: u32 = 0x68;
}

/// Controller Status bits. Base 3.1.4.6.
pub mod csts {
    pub const RDY: u32 = 1;
    /// Controller Fatal Status.
    pub const CFS: u32 = 1 << 1;
    /// Shutdown status 10b in bits 3:2: shutdown processing complete.
    pub const SHST_COMPLETE: u32 = 2 << 2;
}

/// Controller Configuration. Base 3.1.4.5.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Cc(pub u32);

impl Cc {
    pub fn enabled(self) -> bool {
        self.0 & 1 != 0
    }
    /// Bits 6:4, I/O command set selected.
    pub fn css(self) -> u8 {
        (self.0 >> 4) as u8 & 7
    }
    /// Bits 10:7, memory page size 2^(12+n).
    pub fn mps(self) -> u8 {
        (self.0 >> 7) as u8 & 15
    }
    /// Bits 13:11, arbitration mechanism.
    pub fn ams(self) -> u8 {
        (self.0 >> 11) as u8 & 7
    }
    /// Bits 15:14, shutdown notification: 1 normal, 2 abrupt.
    pub fn shn(self) -> u8 {
        (self.0 >> 14) as u8 & 3
    }
    /// Bits 19:16, I/O submission queue entry size 2^n.
    pub fn iosqes(self) -> u8 {
        (self.0 >> 16) as u8 & 15
    }
    /// Bits 23:20, I/O completion queue entry size 2^n.
    pub fn iocqes(self) -> u8 {
        (self.0 >> 20) as u8 & 15
    }
}

/// Property Get and Property Set. ATTRIB byte 40 bits 2:0, OFST bytes 47:44, VALUE bytes 55:48. Base 6.5, 6.6.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PropertyCommand {
    /// 4 or 8; `None` for a reserved size.
    pub bytes: Option<u8>,
    pub offset: u32,
    pub value: u64,
}

impl PropertyCommand {
    pub fn parse(sqe: &Sqe) -> PropertyCommand {
        PropertyCommand {
            bytes: match sqe.cdw10() & 7 {
                0 => Some(4),
                1 => Some(8),
                _ => None,
            },
            offset: sqe.cdw11(),
            value: u64::from(sqe.cdw12()) | u64::from(sqe.cdw13()) << 32,
        }
    }
}
