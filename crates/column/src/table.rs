//! The slot table as both copies tell it together.

use crate::finding::{EntryFault, Finding, Findings};
use crate::format::{ENTRY_BYTES, Entry, Geometry, Label, PAGE_ENTRIES};
use crate::tools::{BLOCK, CHUNK_BYTES, read};
use peristyle_base::{BLOCK_BYTES, SlotIndex};
use peristyle_rt::{Buf, Device};

pub(crate) struct Table {
    pub entries: Vec<Option<Entry>>,
    /// Pages whose copies differ or are damaged, and the copy that is worse (to be written first).
    pub differing: Vec<(u32, u8)>,
    pub unreadable_pages: [u32; 2],
    /// For tools: what is wrong with which copy.
    pub findings: Findings,
}

pub(crate) async fn read_table(device: &Device, label: &Label) -> Table {
    let g = &label.geometry;
    let mut table = Table {
        entries: Vec::with_capacity(g.slots as usize),
        differing: Vec::new(),
        unreadable_pages: [0; 2],
        findings: Findings::default(),
    };
    let mut first = 0;
    while first < g.table_pages {
        let pages = ((CHUNK_BYTES / BLOCK) as u32).min(g.table_pages - first);
        let copies =
            [read_pages(device, g, 0, first, pages).await, read_pages(device, g, 1, first, pages).await];
        for i in 0..pages {
            let of_copy = |copy: usize| {
                let (bytes, unreadable) = &copies[copy];
                let at = i as usize * BLOCK_BYTES;
                (unreadable >> i & 1 == 0).then(|| &bytes[at..at + BLOCK_BYTES])
            };
            table.add_page(label, first + i, [of_copy(0), of_copy(1)]);
        }
        first += pages;
    }
    table
}

/// Some pages of one copy, and a bit for each that cannot be read.
async fn read_pages(device: &Device, g: &Geometry, copy: usize, first: u32, pages: u32) -> (Buf, u32) {
    let bytes = pages as usize * BLOCK_BYTES;
    if let Ok(chunk) = read(device, g.page_offset(copy, first), bytes as u64).await {
        return (chunk, 0);
    }
    // One bad sector fails the whole chunk: look at each page alone.
    let (mut chunk, mut unreadable) = (Buf::zeroed(bytes).await, 0);
    for i in 0..pages {
        match read(device, g.page_offset(copy, first + i), BLOCK).await {
            Ok(page) => chunk[i as usize * BLOCK_BYTES..][..BLOCK_BYTES].copy_from_slice(&page),
            Err(_) => unreadable |= 1 << i,
        }
    }
    (chunk, unreadable)
}

impl Table {
    /// Takes each entry from the copy in which it is valid and newer.
    fn add_page(&mut self, label: &Label, page: u32, copies: [Option<&[u8]>; 2]) {
        let mut bad = copies.map(|copy| copy.is_none() as u32);
        for copy in (0..2).filter(|&copy| copies[copy].is_none()) {
            self.unreadable_pages[copy] += 1;
            self.findings.add(Finding::PageUnreadable { copy, page });
        }
        let mut newer = [false; 2];
        for i in 0..label.geometry.entries_in_page(page) {
            let slot = SlotIndex(page * PAGE_ENTRIES as u32 + i);
            let at = i as usize * ENTRY_BYTES;
            let bytes = copies.map(|copy| copy.map(|page| &page[at..at + ENTRY_BYTES]));
            let [a, b] = bytes.map(|bytes| Entry::decode(label.device, slot, bytes?));
            let entry = match (a, b) {
                (Some(a), Some(b)) => {
                    bad[0] += (a.version < b.version) as u32;
                    bad[1] += (b.version < a.version) as u32;
                    newer = [newer[0] | (a.version > b.version), newer[1] | (b.version > a.version)];
                    if a.version == b.version && a != b {
                        self.findings.add(Finding::EntriesDisagree { slot });
                    }
                    Some(if a.version >= b.version { a } else { b })
                }
                _ => {
                    bad[0] += (a.is_none() && b.is_some()) as u32;
                    bad[1] += (b.is_none() && a.is_some()) as u32;
                    self.tell_of_damage(label, slot, bytes, [a, b]);
                    a.or(b)
                }
            };
            self.entries.push(entry);
        }
        match newer {
            [false, false] => {}
            [true, true] => self.findings.add(Finding::PagesCross { page }),
            [_, second] => self.findings.add(Finding::PageOlder { page, copy: !second as usize }),
        }
        if bad != [0, 0] {
            self.differing.push((page, (bad[1] > bad[0]) as u8));
        }
    }

    fn tell_of_damage(
        &mut self,
        label: &Label,
        slot: SlotIndex,
        bytes: [Option<&[u8]>; 2],
        entries: [Option<Entry>; 2],
    ) {
        for (copy, bytes) in bytes.iter().enumerate().filter(|(copy, _)| entries[*copy].is_none()) {
            if let Some(bytes) = bytes {
                let fault = EntryFault::of(label.device, bytes);
                self.findings.add(Finding::EntryDamaged { slot, copy, fault });
            }
        }
        if entries == [None, None] {
            self.findings.add(Finding::SlotLost { slot });
        }
    }
}
