//! Dataset Management: the command's fields and its ranges. NVM 3.3.3.

use super::{Sqe, get_u32, get_u64};

/// Bytes of one range definition. NVM 3.3.3.
pub const RANGE_BYTES: usize = 16;
/// Ranges of one command: NR is one byte, zero's based.
pub const RANGES_MAX: usize = 256;

/// One range: context attributes 03:00 (advice, ignored), length 07:04, starting LBA 15:08.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DsmRange {
    pub slba: u64,
    pub blocks: u32,
}

/// CDW10 07:00 as a count.
pub fn ranges(sqe: &Sqe) -> usize {
    (sqe.cdw10() as usize & 0xff) + 1
}
/// CDW11 bit 2, Attribute – Deallocate. The other attributes are advice.
pub fn deallocate(sqe: &Sqe) -> bool {
    sqe.cdw11() & 4 != 0
}

/// The ranges in `data`; a piece shorter than a range is left out.
pub fn parse_ranges(data: &[u8]) -> impl Iterator<Item = DsmRange> + '_ {
    data.chunks_exact(RANGE_BYTES)
        .take(RANGES_MAX)
        .map(|r| DsmRange { slba: get_u64(r, 8), blocks: get_u32(r, 4) })
}
