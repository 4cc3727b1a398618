//! What a frame is made of beside its data: header, checksums, parity, and the memory for them.

use crate::frame::{FRAME_BLOCKS_MAX, Layout};
use crate::victims::MOVED_BLOCKS;
use peristyle_base::{BLOCK_BYTES, RowIndex, Scheme, crc32c};
use peristyle_rt::{Buf, KeptBufs, View};

/// Memory that is kept back on each reactor, so that whoever holds buffers while it waits for more never waits for
/// ever (shared by the reactor's shards).
pub(crate) struct Kept {
    /// Parity columns of the schemes that it is enough for.
    pub m: usize,
    /// For one attempt at a time, and for what m devices that hang hold of attempts that were given up.
    pub frames: KeptBufs,
    /// A row of an extent, to reconstruct a block of it; and those that m devices that hang hold.
    pub rows: KeptBufs,
    /// The blocks that collection moves next.
    pub collection: KeptBufs,
    /// The blocks of one command that has to read while it holds its payload.
    pub commands: KeptBufs,
    /// A block of the map, for a read that needs it to know where its data is.
    pub map: KeptBufs,
    /// Some rows of a column that is made anew, and of those that it is made from.
    pub remake: KeptBufs,
}

/// Memory for making a column anew, some rows at a time.
pub(crate) const REMAKE_BYTES: usize = 512 << 10;

/// What is shared is shared by shards whose schemes have as many parity columns.
const FRAMES: [&str; Scheme::M_MAX as usize + 1] =
    ["frames 0", "frames 1", "frames 2", "frames 3", "frames 4"];
const ROWS: [&str; Scheme::M_MAX as usize + 1] = ["rows 0", "rows 1", "rows 2", "rows 3", "rows 4"];
const MAP: [&str; Scheme::M_MAX as usize + 1] = ["map 0", "map 1", "map 2", "map 3", "map 4"];

/// Bytes of the largest frame's memory with so many parity columns. k shrinks when too few devices are left, and another scheme may
/// have a smaller one; parity grows with that.
fn frame_bytes(m: usize) -> usize {
    let most = |k: u8| FrameMemory::bytes(Scheme::new(k, m as u8).expect("a valid scheme"), FRAME_BLOCKS_MAX);
    (1..=Scheme::K_MAX).map(most).max().expect("k is at least 1")
}

impl Kept {
    pub async fn take(scheme: Scheme) -> Kept {
        let m = scheme.m();
        Kept {
            m,
            frames: KeptBufs::share(FRAMES[m], m + 1, frame_bytes(m)).await,
            rows: KeptBufs::share(ROWS[m], m + 1, Scheme::WIDTH_MAX * BLOCK_BYTES).await,
            collection: KeptBufs::share("collection", 1, MOVED_BLOCKS * BLOCK_BYTES).await,
            commands: KeptBufs::share("commands", 1, (FRAME_BLOCKS_MAX + 2) * BLOCK_BYTES).await,
            map: KeptBufs::share(MAP[m], m + 1, BLOCK_BYTES).await,
            remake: KeptBufs::share("remake", 1, REMAKE_BYTES).await,
        }
    }

    /// As [`take`](Self::take), without waiting; `None` when there is not enough memory now.
    pub fn try_take(m: usize) -> Option<Kept> {
        Some(Kept {
            m,
            frames: KeptBufs::try_share(FRAMES[m], m + 1, frame_bytes(m))?,
            rows: KeptBufs::try_share(ROWS[m], m + 1, Scheme::WIDTH_MAX * BLOCK_BYTES)?,
            collection: KeptBufs::try_share("collection", 1, MOVED_BLOCKS * BLOCK_BYTES)?,
            commands: KeptBufs::try_share("commands", 1, (FRAME_BLOCKS_MAX + 2) * BLOCK_BYTES)?,
            map: KeptBufs::try_share(MAP[m], m + 1, BLOCK_BYTES)?,
            remake: KeptBufs::try_share("remake", 1, REMAKE_BYTES)?,
        })
    }
}

/// Memory for one attempt of one frame, taken as one buffer before anything is decided.
pub(crate) struct FrameMemory {
    pub header: Buf,
    /// One CRC32C per row and column.
    pub crcs: Buf,
    pub parity: [Option<Buf>; Scheme::M_MAX as usize],
    /// Data rows of which the parity and its checksums are there.
    pub encoded: usize,
}

impl FrameMemory {
    fn layout(scheme: Scheme, blocks: usize) -> Layout {
        Layout { scheme, first_row: RowIndex(0), blocks: blocks as u16 }
    }

    /// What a frame of so many blocks needs.
    pub fn bytes(scheme: Scheme, blocks: usize) -> usize {
        let layout = Self::layout(scheme, blocks);
        let parity = if scheme.is_narrow() { 0 } else { scheme.m() * layout.data_rows() };
        (1 + parity) * BLOCK_BYTES + scheme.width() * layout.rows() * 4
    }

    pub fn cut(mut memory: Buf, scheme: Scheme, blocks: usize) -> FrameMemory {
        let layout = Self::layout(scheme, blocks);
        let header = memory.split_to(BLOCK_BYTES);
        let mut parity = [const { None }; Scheme::M_MAX as usize];
        if !scheme.is_narrow() && blocks > 0 {
            let bytes = layout.data_rows() * BLOCK_BYTES;
            parity.iter_mut().take(scheme.m()).for_each(|p| *p = Some(memory.split_to(bytes)));
        }
        FrameMemory { header, crcs: memory, parity, encoded: 0 }
    }
}

/// Parity of a frame's next rows, so many at most, and its checksums. Row by row, so that each row's blocks are still in the
/// cache. It does not matter where in an extent the frame will be. True: all of it is there.
pub(crate) fn encode_parity(
    code: &peristyle_ec::Code,
    scheme: Scheme,
    data: &[View],
    memory: &mut FrameMemory,
    rows: usize,
) -> bool {
    let layout = FrameMemory::layout(scheme, data.len());
    let (k, m) = (scheme.k(), scheme.m());
    if scheme.is_narrow() || m == 0 || data.is_empty() {
        return true;
    }
    let first = memory.encoded;
    memory.encoded = layout.data_rows().min(first.saturating_add(rows));
    for r in first..memory.encoded {
        let mut row: [Option<&[u8]>; Scheme::K_MAX as usize] = [None; Scheme::K_MAX as usize];
        for (c, slot) in row.iter_mut().enumerate().take(k) {
            *slot = layout.block_at(c, layout.first_row.0 + 1 + r as u16).map(|i| &data[i][..]);
        }
        let mut out: [&mut [u8]; Scheme::M_MAX as usize] = [&mut [], &mut [], &mut [], &mut []];
        for (slot, p) in out.iter_mut().zip(memory.parity.iter_mut()).take(m) {
            *slot = &mut p.as_mut().expect("allocated")[r * BLOCK_BYTES..(r + 1) * BLOCK_BYTES];
        }
        code.encode_sparse(&row[..k], &mut out[..m]);
        for (p, block) in out[..m].iter().enumerate() {
            put_crc(&mut memory.crcs, &layout, k + p, 1 + r, crc32c(block));
        }
    }
    memory.encoded == layout.data_rows()
}

fn put_crc(crcs: &mut [u8], layout: &Layout, column: usize, row: usize, crc: u32) {
    let at = crc_offset(layout, column) + row * 4;
    crcs[at..at + 4].copy_from_slice(&crc.to_le_bytes());
}

/// Byte offset of a column's checksums: `rows` of them per column, counted from the frame's first row.
pub(crate) fn crc_offset(layout: &Layout, column: usize) -> usize {
    column * layout.rows() * 4
}

/// Checksums of everything but wide frames' parity.
pub(crate) fn fill_crcs(
    layout: &Layout,
    header: &[u8],
    contents: &crate::builder::Contents,
    crcs: &mut [u8],
) {
    let header_crc = crc32c(header);
    let data_entries = contents.entries.len() - contents.data.len();
    let data_crc = |i: usize| contents.entries[data_entries + i].data_crc().expect("data entries come last");
    for column in 0..layout.scheme.width() {
        let mut put = |row: usize, crc: u32| put_crc(crcs, layout, column, row, crc);
        if layout.has_header(column) {
            put(0, header_crc);
        }
        if column < layout.scheme.k() {
            layout.blocks_of(column).enumerate().for_each(|(r, i)| put(1 + r, data_crc(i)));
        } else if layout.scheme.is_narrow() {
            (0..contents.data.len()).for_each(|i| put(1 + i, data_crc(i)));
        }
    }
}
