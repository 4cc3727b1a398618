//! What happens to a device before and beside its service: format, open, inspect, check.

use crate::error::{FormatError, LabelError, OpenError};
use crate::format::{
    BLANK_BYTES, ENTRY_BYTES, Entry, Geometry, Label, PAGE_ENTRIES, RowTable, SlotState, encode_format_marker,
};
use crate::pages::{encode_page, write_both};
use crate::server::{Server, ServerConfig};
use crate::slot::{SlotInfo, SlotTable, Usage};
use peristyle_base::{BLOCK_BYTES, COLUMN_BYTES, DeviceId, RowIndex, SlotIndex, Uuid, crc32c};
use peristyle_rt::{Buf, Device, IoError, IoVec, KeptBufs};

/// Bytes read or written at once by the tools.
const CHUNK_BYTES: u64 = 64 << 10;
const BLOCK: u64 = BLOCK_BYTES as u64;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FormatOptions {
    pub cluster: Uuid,
    /// The new identity of the device: random, never used before.
    pub device: DeviceId,
    /// Overwrite whatever is there.
    pub force: bool,
}

/// Makes a device one of the cluster's. Refuses one that holds anything, unless forced. After a crash the device is
/// what it was, blank, or formatted; never half of it: the label comes last.
pub async fn format(device: &Device, options: FormatOptions) -> Result<Label, FormatError> {
    let geometry = Geometry::of(device.bytes()).ok_or(FormatError::TooSmall)?;
    if !options.force {
        refuse_unless_blank(device).await?;
    }
    let label = Label { cluster: options.cluster, device: options.device, generation: 1, geometry };
    // The old labels go first, or a crash would leave them over a new table.
    write_block(device, geometry.label_offset(1), |_| {}).await?;
    write_block(device, 0, |block| encode_format_marker(options.cluster, block)).await?;
    for copy in 0..2 {
        write_empty_table(device, &label, copy).await?;
    }
    for copy in [1, 0] {
        write_label(device, &label, copy).await?;
    }
    Ok(label)
}

async fn write_empty_table(device: &Device, label: &Label, copy: usize) -> Result<(), IoError> {
    let g = &label.geometry;
    let pages_per_chunk = (CHUNK_BYTES / BLOCK) as u32;
    let mut page = 0;
    while page < g.table_pages {
        let pages = pages_per_chunk.min(g.table_pages - page);
        let mut chunk = Buf::zeroed(pages as usize * BLOCK_BYTES).await;
        let first = page * PAGE_ENTRIES as u32;
        let slots = (g.slots - first).min(pages * PAGE_ENTRIES as u32);
        for (slot, bytes) in (first..first + slots).zip(chunk.chunks_exact_mut(ENTRY_BYTES)) {
            Entry { version: 1, ..Entry::default() }.encode(label.device, SlotIndex(slot), bytes);
        }
        device.write(g.page_offset(copy, page), chunk.freeze().into(), false).await?;
        page += pages;
    }
    device.flush().await
}

async fn write_block(device: &Device, offset: u64, fill: impl FnOnce(&mut [u8])) -> Result<(), IoError> {
    let mut block = Buf::zeroed(BLOCK_BYTES).await;
    fill(&mut block);
    device.write(offset, IoVec::from(block.freeze()), true).await
}

async fn write_label(device: &Device, label: &Label, copy: usize) -> Result<(), IoError> {
    write_block(device, label.geometry.label_offset(copy), |block| label.encode(copy, block)).await
}

async fn refuse_unless_blank(device: &Device) -> Result<(), FormatError> {
    let labels = read_labels(device).await;
    if let Some(label) = labels.iter().find_map(|l| l.as_ref().ok()) {
        return Err(FormatError::Labelled { cluster: label.cluster, device: label.device });
    }
    if labels[0] == Err(LabelError::Formatting) {
        return Ok(());
    }
    let end = device.bytes() / BLOCK * BLOCK;
    let tail = end.saturating_sub(BLANK_BYTES).max(BLANK_BYTES.min(end));
    for (from, to) in [(0, BLANK_BYTES.min(end)), (tail, end)] {
        let mut offset = from;
        while offset < to {
            let bytes = CHUNK_BYTES.min(to - offset);
            let chunk = read(device, offset, bytes).await?;
            let is_blank = chunk.chunks(BLOCK_BYTES).all(|block| block.iter().fold(0, |sum, b| sum | b) == 0);
            if !is_blank && let Some(at) = chunk.iter().position(|&b| b != 0) {
                return Err(FormatError::NotBlank { offset: offset + at as u64 });
            }
            offset += bytes;
        }
    }
    Ok(())
}

async fn read(device: &Device, offset: u64, bytes: u64) -> Result<Buf, IoError> {
    let buf = Buf::alloc(bytes as usize).await;
    let (answer, buf) = device.read(offset, buf).await;
    answer.map(|()| buf)
}

/// Both copies. The last block's place follows from the first copy, if there is one: the device may have grown.
async fn read_labels(device: &Device) -> [Result<Label, LabelError>; 2] {
    let end = device.bytes() / BLOCK * BLOCK;
    if end < 2 * BLOCK {
        return [Err(LabelError::Foreign); 2];
    }
    let first = read_label(device, 0, 0).await;
    let last = first.as_ref().map_or(end - BLOCK, |label| label.geometry.label_offset(1));
    [first, read_label(device, 1, last).await]
}

async fn read_label(device: &Device, copy: usize, offset: u64) -> Result<Label, LabelError> {
    let block = read(device, offset, BLOCK).await.map_err(LabelError::Device)?;
    Label::decode(copy, &block)
}

/// The label that counts.
fn choose_label(device: &Device, labels: &[Result<Label, LabelError>; 2]) -> Result<Label, OpenError> {
    let label = match labels {
        [Ok(a), Ok(b)] if (a.cluster, a.device, a.geometry) != (b.cluster, b.device, b.geometry) => {
            return Err(OpenError::LabelsDisagree);
        }
        [Ok(a), Ok(b)] => {
            if a.generation >= b.generation {
                a
            } else {
                b
            }
        }
        [Ok(label), Err(_)] | [Err(_), Ok(label)] => label,
        [Err(a), Err(b)] => return Err(OpenError::NoLabel([*a, *b])),
    };
    if device.bytes() < label.geometry.device_bytes {
        return Err(OpenError::Shrunk { was: label.geometry.device_bytes, is: device.bytes() });
    }
    Ok(*label)
}

/// The slot table as both copies tell it together.
struct Table {
    entries: Vec<Option<Entry>>,
    /// Pages whose copies differ or are damaged, and the copy that is worse (to be written first).
    differing: Vec<(u32, u8)>,
    unreadable_pages: [u32; 2],
}

async fn read_table(device: &Device, label: &Label) -> Table {
    let g = &label.geometry;
    let mut table = Table {
        entries: Vec::with_capacity(g.slots as usize),
        differing: Vec::new(),
        unreadable_pages: [0; 2],
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
        (0..2).for_each(|copy| self.unreadable_pages[copy] += bad[copy]);
        for i in 0..label.geometry.entries_in_page(page) {
            let slot = SlotIndex(page * PAGE_ENTRIES as u32 + i);
            let at = i as usize * ENTRY_BYTES;
            let [a, b] = copies.map(|copy| Entry::decode(label.device, slot, &copy?[at..at + ENTRY_BYTES]));
            let entry = match (a, b) {
                (Some(a), Some(b)) => {
                    bad[0] += (a.version < b.version) as u32;
                    bad[1] += (b.version < a.version) as u32;
                    Some(if a.version >= b.version { a } else { b })
                }
                _ => {
                    bad[0] += (a.is_none() && b.is_some()) as u32;
                    bad[1] += (b.is_none() && a.is_some()) as u32;
                    a.or(b)
                }
            };
            self.entries.push(entry);
        }
        if bad != [0, 0] {
            self.differing.push((page, (bad[1] > bad[0]) as u8));
        }
    }
}

impl Server {
    /// Opens a formatted device of `cluster`. Copies that differ are made equal before anything is served.
    pub async fn open(device: Device, cluster: Uuid, config: ServerConfig) -> Result<Server, OpenError> {
        let labels = read_labels(&device).await;
        let label = choose_label(&device, &labels)?;
        if label.cluster != cluster {
            return Err(OpenError::ForeignCluster { found: label.cluster });
        }
        if config.expect.is_some_and(|expected| expected != label.device) {
            return Err(OpenError::WrongDevice { found: label.device });
        }
        let table = read_table(&device, &label).await;
        let slots = SlotTable::new(label.device, table.entries, config.open_columns);
        for (page, worse) in &table.differing {
            let mut bytes = Buf::alloc(BLOCK_BYTES).await;
            encode_page(&slots, label.device, &label.geometry, *page, &mut bytes);
            let written = write_both(&device, &label.geometry, *page, *worse, bytes).await;
            written.map_err(|(_, error)| OpenError::Device(error))?;
        }
        let mut repaired = table.differing.len() as u64;
        for copy in 0..2 {
            if labels[copy] != Ok(label) {
                write_label(&device, &label, copy).await?;
                repaired += 1;
            }
        }
        let kept = KeptBufs::take(1, BLOCK_BYTES).await;
        let server = Server::new(device, label, slots, config, kept);
        server.0.stats.borrow_mut().repaired(repaired);
        Ok(server)
    }
}

/// What a device says about itself, without changing it.
#[derive(Clone, Debug)]
pub struct Inspection {
    pub labels: [Result<Label, LabelError>; 2],
    pub label: Result<Label, OpenError>,
    /// Empty when there is no label.
    pub usage: Usage,
    pub columns: Vec<SlotInfo>,
    pub damaged_slots: Vec<SlotIndex>,
    /// Table pages whose copies differ: repaired when the device is opened.
    pub differing_pages: Vec<u32>,
    pub unreadable_pages: [u32; 2],
}

/// Reads labels and slot table. Writes nothing; the device need not be ours.
pub async fn inspect(device: &Device) -> Inspection {
    let labels = read_labels(device).await;
    let label = choose_label(device, &labels);
    let mut report = Inspection {
        labels,
        label,
        usage: Usage::default(),
        columns: Vec::new(),
        damaged_slots: Vec::new(),
        differing_pages: Vec::new(),
        unreadable_pages: [0; 2],
    };
    if let Ok(label) = &report.label {
        let table = read_table(device, label).await;
        let slots = SlotTable::new(label.device, table.entries, 0);
        report.usage = slots.usage();
        report.columns = slots.list(None);
        report.damaged_slots = slots.damaged().to_vec();
        report.differing_pages = table.differing.iter().map(|(page, _)| *page).collect();
        report.unreadable_pages = table.unreadable_pages;
    }
    report
}

/// Damaged rows that a report names one by one; further ones are counted only.
pub const REPORTED_ROWS_MAX: usize = 1024;

/// The result of reading a whole device.
#[derive(Clone, Debug)]
pub struct CheckReport {
    pub inspection: Inspection,
    pub columns_checked: u64,
    pub rows_checked: u64,
    pub rows_bad: u64,
    /// The first [`REPORTED_ROWS_MAX`] of them: unreadable, or not what their checksum says.
    pub bad_rows: Vec<(SlotIndex, RowIndex)>,
    /// Sealed columns whose kept checksums are unreadable or damaged.
    pub bad_checksum_blocks: Vec<SlotIndex>,
}

impl CheckReport {
    /// Nothing is wrong. Copies that merely differ (a crash) are not damage.
    pub fn is_clean(&self) -> bool {
        self.inspection.label.is_ok()
            && self.inspection.labels.iter().all(|l| l.is_ok())
            && self.inspection.damaged_slots.is_empty()
            && self.inspection.unreadable_pages == [0, 0]
            && self.rows_bad == 0
            && self.bad_checksum_blocks.is_empty()
    }
}

/// Reads every row of every sealed column and compares it with its checksum. Writes nothing. `progress` gets columns
/// done and columns to do.
pub async fn check(device: &Device, mut progress: impl FnMut(u64, u64)) -> CheckReport {
    let inspection = inspect(device).await;
    let mut report = CheckReport {
        inspection,
        columns_checked: 0,
        rows_checked: 0,
        rows_bad: 0,
        bad_rows: Vec::new(),
        bad_checksum_blocks: Vec::new(),
    };
    let Ok(label) = report.inspection.label else { return report };
    let sealed = report.inspection.columns.iter().filter(|c| c.state == SlotState::Sealed);
    let sealed: Vec<SlotInfo> = sealed.copied().collect();
    for (done, column) in sealed.iter().enumerate() {
        progress(done as u64, sealed.len() as u64);
        check_column(device, &label, column, &mut report).await;
    }
    progress(sealed.len() as u64, sealed.len() as u64);
    report
}

async fn check_column(device: &Device, label: &Label, column: &SlotInfo, report: &mut CheckReport) {
    let (g, slot) = (&label.geometry, column.slot);
    let entry = Entry {
        state: column.state,
        name: column.name,
        rows: column.rows,
        column_crc: column.column_crc,
        ..Entry::default()
    };
    report.columns_checked += 1;
    let block = read(device, g.checksum_block_offset(slot), BLOCK).await;
    let table = block.ok().and_then(|b| RowTable::decode(label.device, slot, &entry, &b));
    let Some(table) = table else {
        report.bad_checksum_blocks.push(slot);
        return;
    };
    let mut row = 0;
    while row < column.rows.0 {
        let rows = (column.rows.0 - row).min((CHUNK_BYTES / BLOCK) as u16);
        let chunk = read(device, g.row_offset(slot, row), rows as u64 * BLOCK).await;
        for r in row..row + rows {
            let good = match &chunk {
                Ok(chunk) => {
                    let at = (r - row) as usize * BLOCK_BYTES;
                    crc32c(&chunk[at..at + BLOCK_BYTES]) == table.crcs[r as usize]
                }
                // One bad sector fails the whole chunk: look at each row alone.
                Err(_) => {
                    let block = read(device, g.row_offset(slot, r), BLOCK).await;
                    block.is_ok_and(|b| crc32c(&b) == table.crcs[r as usize])
                }
            };
            report.rows_checked += 1;
            if !good {
                report.rows_bad += 1;
                if report.bad_rows.len() < REPORTED_ROWS_MAX {
                    report.bad_rows.push((slot, RowIndex(r)));
                }
            }
        }
        row += rows;
    }
}

const _: () = assert!(COLUMN_BYTES.is_multiple_of(CHUNK_BYTES));
