//! Get Features and Set Features: the commands' fields and the identifiers. Base 5.1.11 and 5.1.25.

use super::Sqe;

/// Feature identifiers. Base 5.1.25 figure "Set Features – Feature Identifiers".
pub mod fid {
    pub const ARBITRATION: u8 = 0x01;
    pub const POWER_MANAGEMENT: u8 = 0x02;
    pub const LBA_RANGE_TYPE: u8 = 0x03;
    pub const TEMPERATURE_THRESHOLD: u8 = 0x04;
    pub const ERROR_RECOVERY: u8 = 0x05;
    pub const VOLATILE_WRITE_CACHE: u8 = 0x06;
    pub const NUMBER_OF_QUEUES: u8 = 0x07;
    pub const INTERRUPT_COALESCING: u8 = 0x08;
    pub const INTERRUPT_VECTOR: u8 = 0x09;
    pub const WRITE_ATOMICITY_NORMAL: u8 = 0x0a;
    pub const ASYNC_EVENT_CONFIG: u8 = 0x0b;
    pub const TIMESTAMP: u8 = 0x0e;
    pub const KEEP_ALIVE_TIMER: u8 = 0x0f;
    pub const HOST_BEHAVIOR: u8 = 0x16;
    pub const HOST_IDENTIFIER: u8 = 0x81;
}

/// CDW10 10:08 of Get Features. Base 5.1.11.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Select {
    Current,
    Default,
    Saved,
    Capabilities,
    Reserved,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GetFeatures {
    pub fid: u8,
    pub select: Select,
    pub cdw11: u32,
    pub nsid: u32,
}

impl GetFeatures {
    pub fn parse(sqe: &Sqe) -> GetFeatures {
        GetFeatures {
            fid: sqe.cdw10() as u8,
            select: match sqe.cdw10() >> 8 & 7 {
                0 => Select::Current,
                1 => Select::Default,
                2 => Select::Saved,
                3 => Select::Capabilities,
                _ => Select::Reserved,
            },
            cdw11: sqe.cdw11(),
            nsid: sqe.nsid(),
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SetFeatures {
    pub fid: u8,
    /// CDW10 31: keep the value over resets and power cycles.
    pub save: bool,
    pub cdw11: u32,
    pub nsid: u32,
}

impl SetFeatures {
    pub fn parse(sqe: &Sqe) -> SetFeatures {
        SetFeatures {
            fid: sqe.cdw10() as u8,
            save: sqe.cdw10() & 1 << 31 != 0,
            cdw11: sqe.cdw11(),
            nsid: sqe.nsid(),
        }
    }
}

/// Capabilities in dword 0 when Select is Capabilities. Base 5.1.11.
pub mod capability {
    pub const SAVEABLE: u32 = 1;
    pub const NAMESPACE_SPECIFIC: u32 = 1 << 1;
    pub const CHANGEABLE: u32 = 1 << 2;
}

/// Bits of Asynchronous Event Configuration that can be set here. Base 5.1.25.1.5. They are the bits of OAES, too.
pub mod event_bit {
    /// SMART / health critical warnings, 07:00.
    pub const SMART_MASK: u32 = 0x1f;
    pub const NAMESPACE_ATTRIBUTE: u32 = 1 << 8;
    pub const ANA_CHANGE: u32 = 1 << 11;
    pub const DISCOVERY_CHANGE: u32 = 1 << 31;
}
