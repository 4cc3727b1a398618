//! Status field of a completion. Base 4.2.3 (figures 99 to 104), NVM 3.1.2.2, Base 6.3 to 6.5 for Fabrics.

use core::fmt;

/// Bits 15:1 of completion dword 3's upper half, without the phase tag: SC 7:0, SCT 10:8, CRD 12:11,
/// M 13, DNR 14. Base 4.2.3 figure 99.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Status(u16);

const DNR: u16 = 1 << 14;
const MORE: u16 = 1 << 13;

/// Status code types, Base figure 100.
pub mod sct {
    pub const GENERIC: u8 = 0;
    pub const COMMAND_SPECIFIC: u8 = 1;
    pub const MEDIA: u8 = 2;
    pub const PATH: u8 = 3;
    pub const VENDOR: u8 = 7;
}

impl Status {
    pub const fn new(sct: u8, sc: u8) -> Status {
        Status(sc as u16 | ((sct & 7) as u16) << 8)
    }
    const fn generic(sc: u8) -> Status {
        Status::new(sct::GENERIC, sc)
    }
    const fn specific(sc: u8) -> Status {
        Status::new(sct::COMMAND_SPECIFIC, sc)
    }
    const fn media(sc: u8) -> Status {
        Status::new(sct::MEDIA, sc)
    }
    const fn path(sc: u8) -> Status {
        Status::new(sct::PATH, sc)
    }
    /// From the 15 bits of the status field (phase tag already removed).
    pub const fn from_bits(bits: u16) -> Status {
        Status(bits & 0x7fff)
    }
    pub const fn bits(self) -> u16 {
        self.0
    }
    pub const fn sc(self) -> u8 {
        self.0 as u8
    }
    pub const fn sct(self) -> u8 {
        (self.0 >> 8) as u8 & 7
    }
    /// Command retry delay index, Base figure 99 CRD.
    pub const fn crd(self) -> u8 {
        (self.0 >> 11) as u8 & 3
    }
    /// Do not retry: the same command sent again would fail again.
    pub const fn dnr(self) -> bool {
        self.0 & DNR != 0
    }
    /// More information is in the error log page.
    pub const fn more(self) -> bool {
        self.0 & MORE != 0
    }
    #[must_use]
    pub const fn with_dnr(self) -> Status {
        Status(self.0 | DNR)
    }
    #[must_use]
    pub const fn with_more(self) -> Status {
        Status(self.0 | MORE)
    }
    pub const fn is_success(self) -> bool {
        self.0 & 0x7ff == 0
    }
    /// Same type and code, whatever DNR, M and CRD say.
    pub const fn is(self, other: Status) -> bool {
        self.0 & 0x7ff == other.0 & 0x7ff
    }
}

/// Generic command status, Base 4.2.3.1 figure 101.
impl Status {
    pub const SUCCESS: Status = Status::generic(0x00);
    pub const INVALID_OPCODE: Status = Status::generic(0x01);
    pub const INVALID_FIELD: Status = Status::generic(0x02);
    pub const COMMAND_ID_CONFLICT: Status = Status::generic(0x03);
    pub const DATA_TRANSFER_ERROR: Status = Status::generic(0x04);
    pub const ABORTED_POWER_LOSS: Status = Status::generic(0x05);
    pub const INTERNAL_ERROR: Status = Status::generic(0x06);
    pub const ABORT_REQUESTED: Status = Status::generic(0x07);
    pub const ABORTED_SQ_DELETION: Status = Status::generic(0x08);
    pub const ABORTED_FAILED_FUSED: Status = Status::generic(0x09);
    pub const ABORTED_MISSING_FUSED: Status = Status::generic(0x0a);
    pub const INVALID_NAMESPACE_OR_FORMAT: Status = Status::generic(0x0b);
    pub const COMMAND_SEQUENCE_ERROR: Status = Status::generic(0x0c);
    pub const INVALID_SGL_SEGMENT_DESCRIPTOR: Status = Status::generic(0x0d);
    pub const INVALID_SGL_DESCRIPTOR_COUNT: Status = Status::generic(0x0e);
    pub const DATA_SGL_LENGTH_INVALID: Status = Status::generic(0x0f);
    pub const METADATA_SGL_LENGTH_INVALID: Status = Status::generic(0x10);
    pub const SGL_DESCRIPTOR_TYPE_INVALID: Status = Status::generic(0x11);
    pub const PRP_OFFSET_INVALID: Status = Status::generic(0x13);
    pub const ATOMIC_WRITE_UNIT_EXCEEDED: Status = Status::generic(0x14);
    pub const OPERATION_DENIED: Status = Status::generic(0x15);
    pub const SGL_OFFSET_INVALID: Status = Status::generic(0x16);
    pub const HOST_ID_INCONSISTENT_FORMAT: Status = Status::generic(0x18);
    pub const KEEP_ALIVE_TIMER_EXPIRED: Status = Status::generic(0x19);
    pub const KEEP_ALIVE_TIMEOUT_INVALID: Status = Status::generic(0x1a);
    pub const ABORTED_PREEMPT: Status = Status::generic(0x1b);
    pub const SANITIZE_FAILED: Status = Status::generic(0x1c);
    pub const SANITIZE_IN_PROGRESS: Status = Status::generic(0x1d);
    pub const SGL_GRANULARITY_INVALID: Status = Status::generic(0x1e);
    pub const NAMESPACE_WRITE_PROTECTED: Status = Status::generic(0x20);
    pub const COMMAND_INTERRUPTED: Status = Status::generic(0x21);
    /// Also: the data digest of a command's data was wrong. TCP 3.5.
    pub const TRANSIENT_TRANSPORT_ERROR: Status = Status::generic(0x22);
    pub const PROHIBITED_BY_LOCKDOWN: Status = Status::generic(0x23);
    pub const ADMIN_MEDIA_NOT_READY: Status = Status::generic(0x24);
}

/// Generic command status of the I/O command sets, Base figure 101 (80h to BFh).
impl Status {
    pub const LBA_OUT_OF_RANGE: Status = Status::generic(0x80);
    pub const CAPACITY_EXCEEDED: Status = Status::generic(0x81);
    pub const NAMESPACE_NOT_READY: Status = Status::generic(0x82);
    pub const RESERVATION_CONFLICT: Status = Status::generic(0x83);
    pub const FORMAT_IN_PROGRESS: Status = Status::generic(0x84);
}

/// Command specific status, Base 4.2.3.2 figure 102.
impl Status {
    pub const COMPLETION_QUEUE_INVALID: Status = Status::specific(0x00);
    pub const INVALID_QUEUE_IDENTIFIER: Status = Status::specific(0x01);
    pub const INVALID_QUEUE_SIZE: Status = Status::specific(0x02);
    pub const ABORT_LIMIT_EXCEEDED: Status = Status::specific(0x03);
    pub const AER_LIMIT_EXCEEDED: Status = Status::specific(0x05);
    pub const INVALID_FIRMWARE_SLOT: Status = Status::specific(0x06);
    pub const INVALID_FIRMWARE_IMAGE: Status = Status::specific(0x07);
    pub const INVALID_INTERRUPT_VECTOR: Status = Status::specific(0x08);
    pub const INVALID_LOG_PAGE: Status = Status::specific(0x09);
    pub const INVALID_FORMAT: Status = Status::specific(0x0a);
    pub const INVALID_QUEUE_DELETION: Status = Status::specific(0x0c);
    pub const FEATURE_NOT_SAVEABLE: Status = Status::specific(0x0d);
    pub const FEATURE_NOT_CHANGEABLE: Status = Status::specific(0x0e);
    pub const FEATURE_NOT_NAMESPACE_SPECIFIC: Status = Status::specific(0x0f);
    pub const OVERLAPPING_RANGE: Status = Status::specific(0x14);
    pub const NAMESPACE_INSUFFICIENT_CAPACITY: Status = Status::specific(0x15);
    pub const NAMESPACE_ID_UNAVAILABLE: Status = Status::specific(0x16);
    pub const NAMESPACE_ALREADY_ATTACHED: Status = Status::specific(0x18);
    pub const NAMESPACE_IS_PRIVATE: Status = Status::specific(0x19);
    pub const NAMESPACE_NOT_ATTACHED: Status = Status::specific(0x1a);
    pub const CONTROLLER_LIST_INVALID: Status = Status::specific(0x1c);
    pub const ANA_GROUP_ID_INVALID: Status = Status::specific(0x24);
    pub const ANA_ATTACH_FAILED: Status = Status::specific(0x25);
}

/// Command specific status of Fabrics commands, Base 4.2.3.2 figure 103 (SC 80h to BFh there).
impl Status {
    pub const INCOMPATIBLE_FORMAT: Status = Status::specific(0x80);
    pub const CONTROLLER_BUSY: Status = Status::specific(0x81);
    pub const CONNECT_INVALID_PARAMETERS: Status = Status::specific(0x82);
    pub const CONNECT_RESTART_DISCOVERY: Status = Status::specific(0x83);
    pub const CONNECT_INVALID_HOST: Status = Status::specific(0x84);
    pub const INVALID_QUEUE_TYPE: Status = Status::specific(0x85);
    pub const DISCOVER_RESTART: Status = Status::specific(0x90);
    pub const AUTHENTICATION_REQUIRED: Status = Status::specific(0x91);
}

/// Command specific status of the NVM command set, NVM 3.1.2.2.
impl Status {
    pub const CONFLICTING_ATTRIBUTES: Status = Status::specific(0x80);
    pub const INVALID_PROTECTION_INFORMATION: Status = Status::specific(0x81);
    pub const WRITE_TO_READ_ONLY_RANGE: Status = Status::specific(0x82);
    pub const COMMAND_SIZE_LIMIT_EXCEEDED: Status = Status::specific(0x83);
}

/// Media and data integrity errors, Base 4.2.3.3 figure 104 and NVM 3.1.2.3.
impl Status {
    pub const WRITE_FAULT: Status = Status::media(0x80);
    pub const UNRECOVERED_READ_ERROR: Status = Status::media(0x81);
    pub const GUARD_CHECK_ERROR: Status = Status::media(0x82);
    pub const APPLICATION_TAG_CHECK_ERROR: Status = Status::media(0x83);
    pub const REFERENCE_TAG_CHECK_ERROR: Status = Status::media(0x84);
    pub const COMPARE_FAILURE: Status = Status::media(0x85);
    pub const ACCESS_DENIED: Status = Status::media(0x86);
    pub const DEALLOCATED_OR_UNWRITTEN: Status = Status::media(0x87);
}

/// Path related status, Base 4.2.3.4.
impl Status {
    pub const INTERNAL_PATH_ERROR: Status = Status::path(0x00);
    pub const ANA_PERSISTENT_LOSS: Status = Status::path(0x01);
    pub const ANA_INACCESSIBLE: Status = Status::path(0x02);
    pub const ANA_TRANSITION: Status = Status::path(0x03);
    pub const CONTROLLER_PATHING_ERROR: Status = Status::path(0x60);
    pub const HOST_PATHING_ERROR: Status = Status::path(0x70);
    pub const ABORTED_BY_HOST: Status = Status::path(0x71);
}

impl fmt::Debug for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sct {:x}h sc {:02x}h", self.sct(), self.sc())?;
        if self.dnr() {
            f.write_str(" dnr")?;
        }
        if self.more() {
            f.write_str(" more")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn type_code_and_flags_are_where_the_figure_puts_them() {
        let status = Status::UNRECOVERED_READ_ERROR.with_dnr().with_more();
        assert_eq!(status.bits(), 0b0110_0010_1000_0001);
        assert_eq!((status.sct(), status.sc(), status.dnr(), status.more()), (2, 0x81, true, true));
        assert!(status.is(Status::UNRECOVERED_READ_ERROR));
        assert!(!status.is_success());
        assert!(Status::SUCCESS.with_dnr().is_success());
    }
}
