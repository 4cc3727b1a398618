//! SGL descriptors. Base 4.3.2; NVMe/TCP uses Data Block and Transport Data Block ones only, TCP 3.3.2.

use super::{get_u32, get_u64, put_u32, put_u64};

/// One 16-byte descriptor. Base 4.3.2 figure 117.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(transparent)]
pub struct Sgl(pub [u8; 16]);

const _: () = assert!(size_of::<Sgl>() == 16);

/// Descriptor type and sub type as far as a message transport cares.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SglKind {
    /// Type 0h, sub type 1h (Offset): the data is in the capsule. Base 4.3.2 figures 119 to 121.
    InCapsule,
    /// Type 5h, sub type Ah (Transport): the transport moves the data. TCP 3.3.2.
    Transport,
    /// Type 0h, sub type 0h (Address): memory addresses mean nothing to a message transport.
    Address,
    /// Keyed, segment, bit bucket, metadata, vendor specific and reserved ones.
    Other,
}

impl Sgl {
    pub const TYPE_IN_CAPSULE: u8 = 0x01;
    pub const TYPE_TRANSPORT: u8 = 0x5a;

    pub fn in_capsule(bytes: u32) -> Sgl {
        Sgl::new(Sgl::TYPE_IN_CAPSULE, 0, bytes)
    }
    pub fn transport(bytes: u32) -> Sgl {
        Sgl::new(Sgl::TYPE_TRANSPORT, 0, bytes)
    }
    pub fn new(identifier: u8, address: u64, bytes: u32) -> Sgl {
        let mut sgl = [0; 16];
        put_u64(&mut sgl, 0, address);
        put_u32(&mut sgl, 8, bytes);
        sgl[15] = identifier;
        Sgl(sgl)
    }
    /// Bytes 7:0: the address, or the offset within the capsule.
    pub fn address(&self) -> u64 {
        get_u64(&self.0, 0)
    }
    /// Bytes 11:8.
    pub fn length(&self) -> u32 {
        get_u32(&self.0, 8)
    }
    /// Byte 15: type in bits 7:4, sub type in bits 3:0.
    pub fn identifier(&self) -> u8 {
        self.0[15]
    }
    pub fn kind(&self) -> SglKind {
        match self.identifier() {
            Sgl::TYPE_IN_CAPSULE => SglKind::InCapsule,
            Sgl::TYPE_TRANSPORT => SglKind::Transport,
            0x00 => SglKind::Address,
            _ => SglKind::Other,
        }
    }
}
