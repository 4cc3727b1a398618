//! Durable changes of the slot table. Writes of one page are serialised, and changes that wait for the same page
//! share its next write (group commit). A page goes to one copy, then to the other; `docs/disk-format.md` says why.

use crate::error::ColumnError;
use crate::format::{ENTRY_BYTES, Geometry, PAGE_ENTRIES};
use crate::server::Inner;
use crate::slot::SlotTable;
use crate::stats::WritePurpose;
use peristyle_base::{BLOCK_BYTES, DeviceId, SlotIndex};
use peristyle_rt::sync::Notify;
use peristyle_rt::{Buf, Device, IoError, IoVec, spawn};
use std::cell::RefCell;
use std::rc::Rc;

#[derive(Clone, Copy, Default)]
struct Page {
    /// Raised with every change in memory; `durable` is the one that both copies hold.
    version: u64,
    durable: u64,
    writing: bool,
    /// Writes that have ended.
    writes: u64,
    /// The last write that ended failed, with all changes up to this version.
    failed: Option<(u64, IoError)>,
    /// The copy to write first: never the only good one.
    first: u8,
}

pub(crate) struct Pages {
    pages: RefCell<Vec<Page>>,
    written: Notify,
}

fn page_of(slot: SlotIndex) -> u32 {
    slot.0 / PAGE_ENTRIES as u32
}

impl Pages {
    pub fn new(pages: u32) -> Pages {
        Pages { pages: RefCell::new(vec![Page::default(); pages as usize]), written: Notify::default() }
    }

    /// An entry of this slot's page has changed in memory.
    pub fn touch(&self, slot: SlotIndex) {
        self.pages.borrow_mut()[page_of(slot) as usize].version += 1;
    }
}

/// The bytes of page `page`. An entry of a damaged slot stays invalid.
pub(crate) fn encode_page(
    slots: &SlotTable,
    device: DeviceId,
    geometry: &Geometry,
    page: u32,
    out: &mut [u8],
) {
    out.fill(0);
    let first = page * PAGE_ENTRIES as u32;
    for (i, bytes) in out.chunks_exact_mut(ENTRY_BYTES).enumerate() {
        let slot = SlotIndex(first + i as u32);
        if (i as u32) < geometry.entries_in_page(page) && slots.damaged().binary_search(&slot).is_err() {
            slots.entry(slot).encode(device, slot, bytes);
        }
    }
}

/// Writes a page to both copies, `first` first. An error says which copy failed.
pub(crate) async fn write_both(
    device: &Device,
    geometry: &Geometry,
    page: u32,
    first: u8,
    bytes: Buf,
) -> Result<(), (u8, IoError)> {
    let view = bytes.freeze();
    for copy in [first, 1 - first] {
        let offset = geometry.page_offset(copy as usize, page);
        device.write(offset, IoVec::from(view.clone()), true).await.map_err(|e| (copy, e))?;
    }
    Ok(())
}

impl Inner {
    /// Returns when everything that the slot's page says in memory now is durable.
    pub async fn commit(self: &Rc<Inner>, slot: SlotIndex) -> Result<(), ColumnError> {
        self.commit_page(slot).await.map_err(ColumnError::Device)
    }

    pub async fn commit_page(self: &Rc<Inner>, slot: SlotIndex) -> Result<(), IoError> {
        let page = page_of(slot);
        let wanted = self.pages.pages.borrow()[page as usize].version;
        loop {
            let writes = {
                let state = &mut self.pages.pages.borrow_mut()[page as usize];
                if state.durable >= wanted {
                    return Ok(());
                }
                if !state.writing {
                    state.writing = true;
                    // In a task of its own: whoever waits may give up, the write goes on.
                    spawn(write_page(self.clone(), page));
                }
                state.writes
            };
            let ended = || self.pages.pages.borrow()[page as usize].writes != writes;
            self.pages.written.wait_until(ended).await;
            let state = self.pages.pages.borrow()[page as usize];
            if let Some((version, error)) = state.failed
                && version >= wanted
                && state.durable < wanted
            {
                return Err(error);
            }
        }
    }
}

async fn write_page(inner: Rc<Inner>, page: u32) {
    let mut bytes = inner.kept.alloc(BLOCK_BYTES).await;
    let (version, first) = {
        let state = inner.pages.pages.borrow()[page as usize];
        encode_page(&inner.slots.borrow(), inner.label.device, inner.geometry(), page, &mut bytes);
        (state.version, state.first)
    };
    for _ in 0..2 {
        inner.stats.borrow_mut().wrote(WritePurpose::Table, BLOCK_BYTES as u64);
    }
    let written = write_both(&inner.device, inner.geometry(), page, first, bytes).await;
    {
        let state = &mut inner.pages.pages.borrow_mut()[page as usize];
        state.writing = false;
        state.writes += 1;
        match written {
            Ok(()) => (state.durable, state.failed) = (version, None),
            Err((copy, error)) => {
                inner.stats.borrow_mut().device_error();
                // What this copy holds now is unknown, so it is the first to be written next time.
                (state.first, state.failed) = (copy, Some((version, error)));
            }
        }
    }
    inner.pages.written.notify_all();
}
