//! Submission queue entry. Base 4.2.1 (figures 92, 93); Fabrics commands: Base 6.

use super::opcode;
use super::{Sgl, get_u16, get_u32, get_u64, put_u16, put_u32, put_u64};

/// Command identifier, chosen by the host, unique among a queue's outstanding commands.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Cid(pub u16);

/// CDW0 bits 9:8. Base figure 92.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fuse {
    Normal,
    First,
    Second,
    Reserved,
}

/// The 64 bytes as received; every field is read where the specification puts it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(transparent)]
pub struct Sqe(pub [u8; Sqe::BYTES]);

const _: () = assert!(size_of::<Sqe>() == 64);

impl Default for Sqe {
    fn default() -> Self {
        Sqe([0; Sqe::BYTES])
    }
}

impl Sqe {
    pub const BYTES: usize = 64;
    /// CDW0 PSDT 01b: data by SGL, metadata pointer is an address. Fabrics hosts send this one.
    pub const PSDT_SGL: u8 = 1;

    /// A command with PSDT 01b, as every command on a message transport has. Base figure 92 PSDT.
    pub fn new(opcode: u8, cid: Cid) -> Sqe {
        let mut sqe = Sqe::default();
        sqe.0[0] = opcode;
        sqe.0[1] = Sqe::PSDT_SGL << 6;
        put_u16(&mut sqe.0, 2, cid.0);
        sqe
    }
    pub fn fabrics(fctype: u8, cid: Cid) -> Sqe {
        let mut sqe = Sqe::new(opcode::FABRICS, cid);
        sqe.0[4] = fctype;
        sqe
    }
    /// CDW0 bits 7:0.
    pub fn opcode(&self) -> u8 {
        self.0[0]
    }
    /// CDW0 bits 9:8.
    pub fn fuse(&self) -> Fuse {
        match self.0[1] & 3 {
            0 => Fuse::Normal,
            1 => Fuse::First,
            2 => Fuse::Second,
            _ => Fuse::Reserved,
        }
    }
    /// CDW0 bits 15:14: 0 PRP, 1 SGL, 2 SGL with metadata SGL, 3 reserved.
    pub fn psdt(&self) -> u8 {
        self.0[1] >> 6
    }
    /// CDW0 bits 31:16.
    pub fn cid(&self) -> Cid {
        Cid(get_u16(&self.0, 2))
    }
    pub fn is_fabrics(&self) -> bool {
        self.opcode() == opcode::FABRICS
    }
    /// Byte 4 of a Fabrics command: its type. Base 6 figure 540.
    pub fn fctype(&self) -> u8 {
        self.0[4]
    }
    /// Direction of the data, from the opcode or a Fabrics command's type.
    pub fn transfer(&self) -> opcode::Transfer {
        opcode::Transfer::of(if self.is_fabrics() { self.fctype() } else { self.opcode() })
    }
    /// Dword 1.
    pub fn nsid(&self) -> u32 {
        self.cdw(1)
    }
    /// Dwords 4 and 5.
    pub fn mptr(&self) -> u64 {
        get_u64(&self.0, 16)
    }
    /// Bytes 39:24, the data pointer: SGL1. Base figure 93 DPTR.
    pub fn sgl(&self) -> Sgl {
        let mut sgl = [0; 16];
        sgl.copy_from_slice(&self.0[24..40]);
        Sgl(sgl)
    }
    /// Dword `n` of 0..=15.
    pub fn cdw(&self, n: usize) -> u32 {
        get_u32(&self.0, n * 4)
    }
    pub fn cdw2(&self) -> u32 {
        self.cdw(2)
    }
    pub fn cdw3(&self) -> u32 {
        self.cdw(3)
    }
    pub fn cdw10(&self) -> u32 {
        self.cdw(10)
    }
    pub fn cdw11(&self) -> u32 {
        self.cdw(11)
    }
    pub fn cdw12(&self) -> u32 {
        self.cdw(12)
    }
    pub fn cdw13(&self) -> u32 {
        self.cdw(13)
    }
    pub fn cdw14(&self) -> u32 {
        self.cdw(14)
    }
    pub fn cdw15(&self) -> u32 {
        self.cdw(15)
    }
    /// Dwords 10 and 11 as one number: the SLBA of NVM commands. NVM 3.2.
    pub fn slba(&self) -> u64 {
        get_u64(&self.0, 40)
    }
    /// Dword 12 bits 15:0 as a count (zero's based on the wire). NVM 3.2.
    pub fn blocks(&self) -> u32 {
        (self.cdw12() & 0xffff) + 1
    }
    /// Dword 12 bit 30, Force Unit Access. NVM 3.2.6.
    pub fn fua(&self) -> bool {
        self.cdw12() & 1 << 30 != 0
    }

    pub fn set_cid(&mut self, cid: Cid) {
        put_u16(&mut self.0, 2, cid.0);
    }
    pub fn set_fuse(&mut self, fuse: Fuse) {
        self.0[1] = self.0[1] & !3 | fuse as u8;
    }
    pub fn set_psdt(&mut self, psdt: u8) {
        self.0[1] = self.0[1] & 0x3f | psdt << 6;
    }
    pub fn set_nsid(&mut self, nsid: u32) {
        self.set_cdw(1, nsid);
    }
    pub fn set_sgl(&mut self, sgl: Sgl) {
        self.0[24..40].copy_from_slice(&sgl.0);
    }
    pub fn set_cdw(&mut self, n: usize, value: u32) {
        put_u32(&mut self.0, n * 4, value);
    }
    /// `blocks` is a count of 1..=65536.
    pub fn set_lbas(&mut self, slba: u64, blocks: u32) {
        put_u64(&mut self.0, 40, slba);
        put_u16(&mut self.0, 48, blocks.wrapping_sub(1) as u16);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_where_the_figure_puts_them() {
        let mut sqe = Sqe::new(opcode::nvm::WRITE, Cid(0x1234));
        sqe.set_fuse(Fuse::Second);
        sqe.set_nsid(7);
        sqe.set_lbas(0x0102_0304_0506_0708, 65536);
        sqe.set_cdw(15, 0xdead_beef);
        sqe.set_sgl(Sgl::transport(4096));
        assert_eq!(sqe.0[..8], [0x01, 0x42, 0x34, 0x12, 7, 0, 0, 0]);
        assert_eq!(sqe.0[32..40], [0, 0x10, 0, 0, 0, 0, 0, 0x5a]);
        assert_eq!(sqe.0[40..50], [8, 7, 6, 5, 4, 3, 2, 1, 0xff, 0xff]);
        assert_eq!((sqe.fuse(), sqe.psdt(), sqe.cid()), (Fuse::Second, 1, Cid(0x1234)));
        assert_eq!((sqe.slba(), sqe.blocks(), sqe.cdw15()), (0x0102_0304_0506_0708, 65536, 0xdead_beef));
        assert_eq!(sqe.sgl().length(), 4096);
    }
}
