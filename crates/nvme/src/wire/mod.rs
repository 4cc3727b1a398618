//! What is on the wire, one file per thing, a specification section per field.
//!
//! "Base" is NVM Express Base Specification 2.1, "NVM" the NVM Command Set Specification 1.1, "TCP" the
//! NVMe over TCP Transport Specification 1.1. All integers are little-endian; all offsets are bytes.

pub mod cqe;
pub mod digest;
pub mod dsm;
pub mod fabrics;
pub mod feature;
pub mod identify;
pub mod log_page;
pub mod opcode;
pub mod pdu;
pub mod property;
pub mod sgl;
pub mod sqe;
pub mod status;

pub use cqe::Cqe;
pub use sgl::{Sgl, SglKind};
pub use sqe::{Cid, Fuse, Sqe};
pub use status::Status;

/// The `u16` at `at`. The callers' offsets are constants within fixed-size arrays.
pub fn get_u16(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}
pub fn get_u32(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}
pub fn get_u64(bytes: &[u8], at: usize) -> u64 {
    u64::from(get_u32(bytes, at)) | u64::from(get_u32(bytes, at + 4)) << 32
}
pub fn put_u16(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_le_bytes());
}
pub fn put_u32(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
}
pub fn put_u64(bytes: &mut [u8], at: usize, value: u64) {
    bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
}
