//! Completion queue entry. Base 4.2.2 figure 96.

use super::{Cid, Status, get_u16, get_u32, put_u16, put_u32};

/// The 16 bytes. The phase tag (dword 3 bit 16) is always 0: message transports have none, Base 4.2.2.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(transparent)]
pub struct Cqe(pub [u8; Cqe::BYTES]);

const _: () = assert!(size_of::<Cqe>() == 16);

impl Cqe {
    pub const BYTES: usize = 16;

    /// SQID (bytes 11:10) stays 0: it is reserved over Fabrics, Base 4.2.2.
    pub fn new(cid: Cid, status: Status, dw0: u32, dw1: u32, sqhd: u16) -> Cqe {
        let mut cqe = [0; 16];
        put_u32(&mut cqe, 0, dw0);
        put_u32(&mut cqe, 4, dw1);
        put_u16(&mut cqe, 8, sqhd);
        put_u16(&mut cqe, 12, cid.0);
        put_u16(&mut cqe, 14, status.bits() << 1);
        Cqe(cqe)
    }
    /// Bytes 3:0, command specific.
    pub fn dw0(&self) -> u32 {
        get_u32(&self.0, 0)
    }
    /// Bytes 7:4, command specific.
    pub fn dw1(&self) -> u32 {
        get_u32(&self.0, 4)
    }
    /// Bytes 9:8, submission queue head pointer; FFFFh when flow control is disabled, Base 6.3.
    pub fn sqhd(&self) -> u16 {
        get_u16(&self.0, 8)
    }
    /// Bytes 13:12.
    pub fn cid(&self) -> Cid {
        Cid(get_u16(&self.0, 12))
    }
    /// Bytes 15:14 bits 15:1.
    pub fn status(&self) -> Status {
        Status::from_bits(get_u16(&self.0, 14) >> 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_where_the_figure_puts_them() {
        let cqe = Cqe::new(Cid(0x0102), Status::INVALID_FIELD.with_dnr(), 5, 6, 9);
        assert_eq!(cqe.0, [5, 0, 0, 0, 6, 0, 0, 0, 9, 0, 0, 0, 2, 1, 4, 0x80]);
        assert_eq!((cqe.dw0(), cqe.dw1(), cqe.sqhd(), cqe.cid()), (5, 6, 9, Cid(0x0102)));
        assert_eq!(cqe.status(), Status::INVALID_FIELD.with_dnr());
    }
}
