//! Where extents end that nobody sealed: at a takeover, before anything is written.

use crate::columns::Columns;
use crate::extent::ExtentPhase;
use crate::find::Scan;
use crate::frame::{Entry, FrameKind, Header};
use crate::map::Ptr;
use crate::recover::RecoverError;
use crate::replay::{Found, Replay, Verdict};
use crate::shard::Shard;
use peristyle_base::{BLOCK_BYTES, ExtentId, Seq};
use peristyle_cluster::ShardStore;
use peristyle_rt::View;
use std::rc::Rc;

/// Blocks of one frame that are looked up in the map before its rows are read.
const LOOKS_MAX: usize = 4;

impl<C: Columns, S: ShardStore + 'static> Shard<C, S> {
    /// Rows of unsealed extents that stay: all before the first frame that is not known to be committed, less frames at the
    /// end that stand in no sequence and were never committed.
    pub(crate) async fn cut_extents(
        self: &Rc<Self>,
        replay: &Replay,
        scans: &[Scan],
        kept: &[(Seq, ExtentId)],
    ) -> Result<(), RecoverError> {
        for scan in scans {
            let sealed = self.state.borrow_mut().extents.at(scan.extent).phase == ExtentPhase::Sealed;
            if sealed || !scan.whole {
                continue;
            }
            let end = replay.cut_row(scan.extent, &scan.headers, scan.end);
            let cut = self.cut_trailing(scan, end).await?;
            let state = &mut *self.state.borrow_mut();
            let extent = state.extents.at(scan.extent);
            extent.committed_rows = cut;
            extent.next_row = cut;
            // Frames of the kept tail are read from here once more; their rows go when they have moved.
            if !kept.iter().any(|k| k.1 == scan.extent) {
                extent.frames.retain(|f| f.0 < cut);
            }
        }
        Ok(())
    }

    /// The same row, or that of the first of some frames at the end that stand in no sequence and were never committed:
    /// nothing points at such a frame, nor at one behind it, since an extent's frames commit in order.
    async fn cut_trailing(self: &Rc<Self>, scan: &Scan, end: u16) -> Result<u16, RecoverError> {
        let mut cut = end;
        let mut behind: Vec<Found> = Vec::new();
        let before = scan.headers.iter().zip(&scan.entries).filter(|(h, _)| h.first_row.0 < end);
        for (header, entries) in before.rev().take_while(|(h, _)| h.kind != FrameKind::User) {
            let found = Found { header: *header, entries: entries.clone() };
            if self.is_of_roots(&found) || self.is_known_committed(&found).await {
                break; // and all before it: nothing needs to be read
            }
            let mut data = Vec::with_capacity(header.blocks as usize);
            let verdict = self.examine(&found, Some(&mut data)).await;
            if verdict == Verdict::Unknown && !scan.replayed {
                return Ok(cut); // most of it was given back; if not, its blocks are verified one by one
            }
            if verdict == Verdict::Unknown {
                // A checkpoint may need it: what cannot be read now is no reason to give it up.
                let (extent, row) = (scan.extent, header.first_row.0);
                return Err(RecoverError::HeadersUnreadable { extent, row });
            }
            let whole = verdict == Verdict::Complete && self.is_whole(&found, &data).await;
            behind.push(found);
            if whole {
                continue;
            }
            // Damaged, partly away, or never committed.
            for found in behind.drain(..) {
                if self.is_referred_to(&found).await {
                    return Ok(cut);
                }
            }
            cut = header.first_row.0;
        }
        Ok(cut)
    }

    /// Every column answers that it has what the frame wrote there.
    async fn is_whole(&self, found: &Found, data: &[View]) -> bool {
        let layout = found.header.layout();
        let code = Self::code(&mut self.state.borrow_mut(), layout.scheme);
        let mut parity = vec![vec![0; layout.data_rows() * BLOCK_BYTES]; layout.scheme.m()];
        for r in 0..layout.data_rows() {
            let row = layout.first_row.0 + 1 + r as u16;
            let block = |c| layout.block_at(c, row).map(|i| &data[i][..]);
            let blocks: Vec<Option<&[u8]>> = (0..layout.scheme.k()).map(block).collect();
            let mut out: Vec<&mut [u8]> =
                parity.iter_mut().map(|p| &mut p[r * BLOCK_BYTES..][..BLOCK_BYTES]).collect();
            code.encode_sparse(&blocks, &mut out);
        }
        for column in 0..layout.scheme.width() {
            let Some((row, rows)) = layout.written(column) else { continue };
            let Some(bytes) = self.read_rows(found.header.extent, column, row, rows).await else {
                return false;
            };
            let (head, rest) = bytes.split_at(if layout.has_header(column) { BLOCK_BYTES } else { 0 });
            let is_header = |head| Header::decode(head, &found.header.nonce, &mut Vec::new()).is_ok();
            let is_there = match column.checked_sub(layout.scheme.k()) {
                Some(p) => rest == &parity[p][..],
                None => layout
                    .blocks_of(column)
                    .zip(rest.chunks(BLOCK_BYTES))
                    .all(|(i, there)| there == &data[i][..]),
            };
            if !is_there || !(head.is_empty() || is_header(head)) {
                return false;
            }
        }
        true
    }

    /// The durable checkpoint points at it without the map.
    fn is_of_roots(&self, found: &Found) -> bool {
        let state = self.state.borrow();
        places(found).any(|(_, ptr)| state.roots.has(ptr))
    }

    /// Whether the map or the checkpoint points at a block of the frame. True, too, when it cannot be told now.
    async fn is_referred_to(self: &Rc<Self>, found: &Found) -> bool {
        for (entry, ptr) in places(found) {
            if self.points_at(entry, ptr).await != Some(false) {
                return true;
            }
        }
        false
    }

    /// The map points at one of the first blocks of a frame that stands in no sequence. It does so by the checkpoint, since such frames are
    /// not replayed, and a checkpoint has what is committed. False: who knows.
    async fn is_known_committed(self: &Rc<Self>, found: &Found) -> bool {
        for (entry, ptr) in places(found).take(LOOKS_MAX) {
            if self.points_at(entry, ptr).await == Some(true) {
                return true;
            }
        }
        false
    }

    /// `None`: it cannot be told now.
    async fn points_at(self: &Rc<Self>, entry: &Entry, ptr: Ptr) -> Option<bool> {
        match *entry {
            Entry::Data { layer, block, .. } => {
                return self.holder_of(layer, block, ptr).await.ok().map(|holder| holder.is_some());
            }
            Entry::Map { layer, level: 0 | 1, first, .. } => {
                for away in self.map_blocks_of(layer, first) {
                    if self.map_homes(away).await?.contains(&ptr) {
                        return Some(true);
                    }
                }
            }
            _ => {}
        }
        let state = self.state.borrow();
        Some(state.roots.has(ptr) || state.map.retired().contains(&ptr))
    }
}

/// What a frame's blocks are, and what points at each of them if anything does.
fn places(found: &Found) -> impl Iterator<Item = (&Entry, Ptr)> {
    let (layout, extent) = (found.header.layout(), found.header.extent);
    let data = found.entries.iter().filter_map(|entry| Some((entry, entry.data_crc()?)));
    data.enumerate().map(move |(i, (entry, crc))| {
        let (column, row) = layout.place(i);
        (entry, Ptr::new(extent, column, row, crc))
    })
}
