//! What is left of earlier epochs: unsealed extents are sealed at their decided rows, unused ones given back.

use crate::columns::Columns;
use crate::extent::{Extent, ExtentPhase};
use crate::frame::{Header, Layout};
use crate::recover::RecoverError;
use crate::shard::Shard;
use peristyle_base::{BLOCK_BYTES, ColumnIndex, ExtentId, RowIndex, crc32c};
use peristyle_cluster::ShardStore;
use peristyle_rt::Buf;
use std::rc::Rc;

/// Unused extents that a takeover tolerates until it serves.
const PILE: usize = 16;

impl<C: Columns, S: ShardStore + 'static> Shard<C, S> {
    pub(crate) async fn settle_old_extents(self: Rc<Self>) {
        let old: Vec<(ExtentId, bool)> = {
            let state = self.state.borrow();
            let epoch = state.record.epoch;
            let due = |e: &&Extent| {
                e.epoch != epoch
                    && !e.completing
                    && (e.phase == ExtentPhase::Old || e.leftover || e.seal_is_due())
            };
            state
                .extents
                .iter()
                .filter(due)
                .map(|e| (e.id, (e.committed_rows > 0 || e.empty) && !e.leftover))
                .collect()
        };
        for (id, used) in old {
            if self.stopped().is_some() {
                return;
            }
            match used {
                true => self.seal_old(id).await,
                false => self.free_unused(id).await,
            }
        }
        self.state.borrow_mut().settled = true;
        self.space.notify_all();
        self.let_go_of_empty().await;
    }

    /// Takeovers that were cut short again and again leave many extents that were never used: they are given back
    /// before more are allocated, or the pool would fill up. They leave the open set first.
    pub(crate) async fn free_pile(&self) -> Result<(), RecoverError> {
        let unused: Vec<ExtentId> =
            self.state.borrow().extents.iter().filter(|e| e.leftover).map(|e| e.id).collect();
        if unused.len() >= PILE {
            self.write_record(|_| {}).await.map_err(|_| RecoverError::Fenced)?;
            for id in unused {
                self.free_unused(id).await;
            }
        }
        Ok(())
    }

    /// Seals with checksums that come from the headers and from encoding verified data, never from what a
    /// parity column happens to hold: a lost or misdirected write is not blessed by reading it back.
    async fn seal_old(self: &Rc<Self>, id: ExtentId) {
        match self.state.borrow_mut().extents.get_mut(id).filter(|e| !e.completing) {
            Some(extent) => extent.completing = true,
            None => return,
        }
        match self.row_crcs(id).await {
            Some(crcs) => self.seal_columns(id, |column| crcs[column].clone()).await,
            None => self.state.borrow_mut().extents.at(id).completing = false,
        }
    }

    /// An extent that was allocated and holds nothing: it left the open set with the last record.
    async fn free_unused(&self, id: ExtentId) {
        let (extent, epoch) = {
            let state = &mut *self.state.borrow_mut();
            // What something refers to, or may refer to, is never given back.
            if state.extents.get(id).is_none_or(|e| !e.leftover) {
                return;
            }
            let epoch = state.record.epoch;
            (state.extents.remove(id).expect("just seen"), epoch)
        };
        for column in (0..extent.scheme.width()).filter(|c| !extent.place(*c).device.is_nil()) {
            let (place, name) = (extent.place(column), extent.name(self.id, column));
            // A device that does not answer keeps a leftover: it is asked for those when it does.
            let freed = match self.is_silent(place.device) {
                true => None,
                false => self.or_silent(place.device, self.columns.free(place, name, epoch)).await,
            };
            if freed != Some(Ok(())) {
                self.state.borrow_mut().repair.recheck(place.device);
            }
        }
    }

    /// CRC32C of every row of every column. `None` when something of the extent cannot be read or rebuilt now:
    /// it stays unsealed, and its blocks are verified one by one.
    pub(crate) async fn row_crcs(self: &Rc<Self>, id: ExtentId) -> Option<Vec<Vec<u32>>> {
        let (code, scheme, rows, frames, nonce) = {
            let state = &mut *self.state.borrow_mut();
            let e = state.extents.at(id);
            let found = (e.scheme, e.committed_rows, e.frames.clone(), e.nonce);
            (Self::code(state, found.0), found.0, found.1, found.2, found.3)
        };
        let zero = crc32c(&[0; BLOCK_BYTES]);
        let mut crcs = vec![vec![zero; rows as usize]; scheme.width()];
        for (first, blocks) in frames.into_iter().filter(|f| f.0 < rows) {
            let layout = Layout { scheme, first_row: RowIndex(first), blocks };
            let (header_crc, data_crcs) = self.verified_header(id, &layout, &nonce).await?;
            for column in (0..scheme.width()).filter(|&c| layout.has_header(c)) {
                crcs[column][first as usize] = header_crc;
            }
            for r in 0..layout.data_rows() as u16 {
                let row = first + 1 + r;
                let mut data: Vec<Option<Buf>> = Vec::with_capacity(scheme.k());
                for (column, crcs) in crcs.iter_mut().enumerate().take(scheme.k()) {
                    let Some(i) = layout.block_at(column, row) else {
                        data.push(None);
                        continue;
                    };
                    crcs[row as usize] = data_crcs[i];
                    data.push(Some(self.verified_block(id, column, row, data_crcs[i]).await?));
                }
                let sources: Vec<Option<&[u8]>> = data.iter().map(|b| b.as_deref()).collect();
                let mut parity = vec![[0u8; BLOCK_BYTES]; scheme.m()];
                let mut out: Vec<&mut [u8]> = parity.iter_mut().map(|p| &mut p[..]).collect();
                code.encode_sparse(&sources, &mut out);
                for (p, bytes) in parity.iter().enumerate() {
                    crcs[scheme.k() + p][row as usize] = crc32c(bytes);
                }
            }
        }
        Some(crcs)
    }

    /// Checksum of a frame's header block and of its data blocks, from any valid copy.
    async fn verified_header(
        &self,
        id: ExtentId,
        layout: &Layout,
        nonce: &peristyle_base::Nonce,
    ) -> Option<(u32, Vec<u32>)> {
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

    async fn verified_block(self: &Rc<Self>, id: ExtentId, column: usize, row: u16, crc: u32) -> Option<Buf> {
        let (place, name) = {
            let state = &mut *self.state.borrow_mut();
            let e = state.extents.at(id);
            (e.place(column), e.name(self.id, column))
        };
        if !place.device.is_nil() {
            let answer = self.read_or_give_up(place, name, RowIndex(row), BLOCK_BYTES).await;
            if let Some((Ok(()), buf)) = answer
                && crc32c(&buf) == crc
            {
                return Some(buf);
            }
        }
        let column = ColumnIndex(column as u8);
        self.reconstruct(id, column, RowIndex(row), crc).await.ok()
    }
}
