//! Checksums of an extent's rows from what is known to be right: headers, and data that has the checksums in them.

use crate::columns::Columns;
use crate::frame::{Header, Layout};
use crate::shard::Shard;
use peristyle_base::{BLOCK_BYTES, ColumnIndex, ExtentId, Nonce, RowIndex, Scheme, crc32c};
use peristyle_cluster::ShardStore;
use peristyle_rt::{Buf, View, join_all};
use std::collections::HashMap;
use std::rc::Rc;

/// Of all data columns together is read so much at once.
const PIECE_BYTES: usize = 128 << 10;

/// Some data rows of a frame, verified.
struct Rows {
    layout: Layout,
    first: u16,
    /// What was read of each column: as many of the rows as it has.
    read: Vec<Option<View>>,
    /// Blocks that had to be reconstructed.
    mended: HashMap<(usize, u16), Buf>,
}

impl Rows {
    /// `None`: the column has a hole there.
    fn block(&self, column: usize, row: u16) -> Option<&[u8]> {
        self.layout.block_at(column, row)?;
        match self.mended.get(&(column, row)) {
            Some(block) => Some(block),
            None => block_of(self.read[column].as_ref()?, row - self.first),
        }
    }
}

fn block_of(view: &View, row: u16) -> Option<&[u8]> {
    let at = usize::from(row) * BLOCK_BYTES;
    view.get(at..at + BLOCK_BYTES)
}

impl<C: Columns, S: ShardStore + 'static> Shard<C, S> {
    /// CRC32C of every row of every column. `None` when something of the extent cannot be read or rebuilt now:
    /// it stays unsealed, and its blocks are verified one by one.
    pub(crate) async fn row_crcs(self: &Rc<Self>, id: ExtentId) -> Option<Vec<Vec<u32>>> {
        let (scheme, rows, frames, nonce) = {
            let state = &mut *self.state.borrow_mut();
            let e = state.extents.at(id);
            (e.scheme, e.committed_rows, e.frames.clone(), e.nonce)
        };
        let zero = crc32c(&[0; BLOCK_BYTES]);
        let mut crcs = vec![vec![zero; rows as usize]; scheme.width()];
        for (first, blocks) in frames.into_iter().filter(|f| f.0 < rows) {
            let layout = Layout { scheme, first_row: RowIndex(first), blocks };
            let (header_crc, data_crcs) = self.verified_header(id, &layout, &nonce).await?;
            for column in (0..scheme.width()).filter(|&c| layout.has_header(c)) {
                crcs[column][first as usize] = header_crc;
            }
            let mut row = first + 1;
            while row < layout.end_row() {
                let count = rows_at_once(scheme).min(layout.end_row() - row);
                let read = self.verified_rows(id, layout, row, count, &data_crcs).await?;
                self.crcs_of(&read, count, &data_crcs, &mut crcs);
                row += count;
            }
        }
        Some(crcs)
    }

    /// Enters the checksums of rows: of data as the header has them, of parity as it has to be.
    fn crcs_of(&self, rows: &Rows, count: u16, data_crcs: &[u32], crcs: &mut [Vec<u32>]) {
        let scheme = rows.layout.scheme;
        let code = Self::code(&mut self.state.borrow_mut(), scheme);
        let mut parity = vec![[0u8; BLOCK_BYTES]; scheme.m()];
        for row in rows.first..rows.first + count {
            let sources: Vec<Option<&[u8]>> = (0..scheme.k()).map(|column| rows.block(column, row)).collect();
            for column in 0..scheme.k() {
                if let Some(i) = rows.layout.block_at(column, row) {
                    crcs[column][usize::from(row)] = data_crcs[i];
                }
            }
            let mut out: Vec<&mut [u8]> = parity.iter_mut().map(|p| &mut p[..]).collect();
            code.encode_sparse(&sources, &mut out);
            for (p, bytes) in parity.iter().enumerate() {
                crcs[scheme.k() + p][usize::from(row)] = crc32c(bytes);
            }
        }
    }

    /// Data rows of a frame, of all columns at the same time; what is wrong or missing is reconstructed.
    async fn verified_rows(
        self: &Rc<Self>,
        id: ExtentId,
        layout: Layout,
        first: u16,
        count: u16,
        data_crcs: &[u32],
    ) -> Option<Rows> {
        let k = layout.scheme.k();
        let of_column = |c: usize| (0..count).take_while(|r| layout.block_at(c, first + r).is_some()).count();
        // Whoever holds buffers and waits for more may wait for ever: one for all columns.
        let mut buf = Buf::alloc((0..k).map(|c| of_column(c) * BLOCK_BYTES).sum()).await;
        let reads: Vec<_> = (0..k).map(|c| (c, buf.split_to(of_column(c) * BLOCK_BYTES))).collect();
        drop(buf);
        let read =
            join_all(reads.into_iter().map(|(c, buf)| self.read_of_column(id, c, RowIndex(first), buf)))
                .await;
        let mut rows = Rows { layout, first, read, mended: HashMap::new() };
        for column in 0..k {
            for row in first..first + count {
                let Some(i) = layout.block_at(column, row) else { break };
                if rows.block(column, row).is_some_and(|block| crc32c(block) == data_crcs[i]) {
                    continue;
                }
                let block =
                    self.reconstruct(id, ColumnIndex(column as u8), RowIndex(row), data_crcs[i]).await;
                rows.mended.insert((column, row), block.ok()?);
            }
        }
        Some(rows)
    }

    async fn read_of_column(&self, id: ExtentId, column: usize, row: RowIndex, buf: Buf) -> Option<View> {
        let (place, name) = {
            let state = &mut *self.state.borrow_mut();
            let e = state.extents.at(id);
            (e.place(column), e.name(self.id, column))
        };
        if buf.is_empty() || place.device.is_nil() || self.is_silent(place.device) {
            return None;
        }
        match self.or_silent(place.device, self.columns.read(place, name, row, buf)).await {
            Some((Ok(()), buf)) => Some(buf.freeze()),
            _ => None,
        }
    }

    /// Checksum of a frame's header block and of its data blocks, from any valid copy.
    async fn verified_header(&self, id: ExtentId, layout: &Layout, nonce: &Nonce) -> Option<(u32, Vec<u32>)> {
        for column in (0..layout.scheme.width()).filter(|&c| layout.has_header(c)) {
            let (place, name) = {
                let state = &mut *self.state.borrow_mut();
                let e = state.extents.at(id);
                (e.place(column), e.name(self.id, column))
            };
            if place.device.is_nil() {
                continue;
            }
            let answer = self.read_or_give_up(place, name, layout.first_row, BLOCK_BYTES).await;
            let mut entries = Vec::new();
            if let Some((Ok(()), buf)) = answer
                && Header::decode(&buf, nonce, &mut entries).is_ok_and(|h| h.layout() == *layout)
            {
                return Some((crc32c(&buf), entries.iter().filter_map(|e| e.data_crc()).collect()));
            }
        }
        None
    }
}

fn rows_at_once(scheme: Scheme) -> u16 {
    (PIECE_BYTES / (scheme.k() * BLOCK_BYTES)).max(1) as u16
}
