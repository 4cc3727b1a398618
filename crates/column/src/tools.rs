//! What happens to a device before and beside its service: format, open, inspect. `check.rs` looks at all of it.

use crate::error::{FormatError, LabelError, OpenError};
use crate::finding::Findings;
use crate::format::{
    BLANK_BYTES, ENTRY_BYTES, Entry, Geometry, Label, PAGE_ENTRIES, SlotState, encode_format_marker,
};
use crate::pages::{encode_page, write_both};
use crate::server::{Server, ServerConfig};
use crate::slot::{SlotInfo, SlotTable, Usage};
use crate::table::read_table;
use peristyle_base::{BLOCK_BYTES, DeviceId, SlotIndex, Uuid};
use peristyle_rt::{Buf, Device, IoError, IoVec, KeptBufs};

/// Bytes read or written at once by the tools.
pub(crate) const CHUNK_BYTES: u64 = 64 << 10;
pub(crate) const BLOCK: u64 = BLOCK_BYTES as u64;

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

pub(crate) async fn read(device: &Device, offset: u64, bytes: u64) -> Result<Buf, IoError> {
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
    /// What the two copies of the slot table have against each other.
    pub findings: Findings,
    /// Free slots whose entry says that they read as zeros.
    pub zeroed_slots: Vec<SlotIndex>,
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
        findings: Findings::default(),
        zeroed_slots: Vec::new(),
    };
    if let Ok(label) = &report.label {
        let table = read_table(device, label).await;
        let slots = SlotTable::new(label.device, table.entries, 0);
        report.usage = slots.usage();
        report.columns = slots.list(None);
        report.damaged_slots = slots.damaged().to_vec();
        report.differing_pages = table.differing.iter().map(|(page, _)| *page).collect();
        report.unreadable_pages = table.unreadable_pages;
        report.findings = table.findings;
        let is_zeroed = |slot: &SlotIndex| {
            let entry = slots.entry(*slot);
            entry.state == SlotState::Free && entry.zeroed
        };
        report.zeroed_slots = (0..slots.slots()).map(SlotIndex).filter(is_zeroed).collect();
    }
    report
}
