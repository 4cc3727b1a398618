//! Header and data digests: CRC32C, little-endian, right behind what they cover. TCP 3.3.1.1.

use peristyle_base::crc::{Crc32c, crc32c};

pub const DIGEST_BYTES: usize = 4;

/// Appends the digest of `out[..len]` when `on`; returns the new length.
pub fn append(out: &mut [u8], len: usize, on: bool) -> usize {
    if !on {
        return len;
    }
    let digest = crc32c(&out[..len]);
    out[len..len + DIGEST_BYTES].copy_from_slice(&digest.to_le_bytes());
    len + DIGEST_BYTES
}

/// The trailer of a PDU whose payload is these segments.
pub fn data_digest<'a>(segments: impl IntoIterator<Item = &'a [u8]>) -> [u8; DIGEST_BYTES] {
    let mut running = Crc32c::default();
    for segment in segments {
        running.update(segment);
    }
    running.finish().to_le_bytes()
}
