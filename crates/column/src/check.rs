//! Looks at all of a device: labels, slot table, row checksums, rows, holes, and slots that are said to be zeros. Writes
//! nothing.

use crate::control::ZERO_ROW_CRC;
use crate::finding::{Finding, Findings};
use crate::format::{Entry, Label, RowTable, SlotState, column_crc};
use crate::slot::SlotInfo;
use crate::tools::{BLOCK, CHUNK_BYTES, Inspection, inspect, read};
use peristyle_base::{BLOCK_BYTES, COLUMN_BYTES, COLUMN_ROWS, RowIndex, SlotIndex, crc32c};
use peristyle_rt::{Buf, Device};
use std::collections::HashMap;

const CHUNK_ROWS: u16 = (CHUNK_BYTES / BLOCK) as u16;
const _: () = assert!(COLUMN_BYTES.is_multiple_of(CHUNK_BYTES));

/// The result of reading a whole device.
#[derive(Clone, Debug)]
pub struct CheckReport {
    pub inspection: Inspection,
    pub columns_checked: u64,
    pub rows_checked: u64,
    pub findings: Findings,
}

impl CheckReport {
    /// Nothing is wrong. Copies that merely differ (a crash) are not damage.
    pub fn is_clean(&self) -> bool {
        !self.findings.has_damage()
    }
}

/// Reads everything that has a checksum or has to be zeros. `progress` gets slots done and slots to do.
pub async fn check(device: &Device, mut progress: impl FnMut(u64, u64)) -> CheckReport {
    let inspection = inspect(device).await;
    let findings = inspection.findings.clone();
    let mut report = CheckReport { inspection, columns_checked: 0, rows_checked: 0, findings };
    check_labels(&mut report);
    let Ok(label) = report.inspection.label else { return report };
    check_names(&mut report);
    let sealed = report.inspection.columns.iter().filter(|c| c.state == SlotState::Sealed);
    let (sealed, zeroed): (Vec<SlotInfo>, _) =
        (sealed.copied().collect(), report.inspection.zeroed_slots.clone());
    let all = (sealed.len() + zeroed.len()) as u64;
    let mut done = 0;
    for column in &sealed {
        progress(done, all);
        check_column(device, &label, column, &mut report).await;
        done += 1;
    }
    for slot in zeroed {
        progress(done, all);
        check_zeroed(device, &label, slot, &mut report).await;
        done += 1;
    }
    progress(done, all);
    report
}

fn check_labels(report: &mut CheckReport) {
    let Inspection { label, labels, .. } = &report.inspection;
    let label = match label {
        Ok(label) => label,
        Err(error) => return report.findings.add(Finding::NotServed(*error)),
    };
    for (copy, found) in labels.iter().enumerate() {
        match found {
            Err(error) => report.findings.add(Finding::LabelCopy { copy, error: *error }),
            Ok(found) if found.generation < label.generation => {
                report.findings.add(Finding::LabelOlder { copy });
            }
            Ok(_) => {}
        }
    }
}

/// A device has one column of an extent at most: they lie in different failure domains.
fn check_names(report: &mut CheckReport) {
    let mut seen = HashMap::new();
    for column in &report.inspection.columns {
        let extent = (column.name.shard, column.name.extent);
        if let Some(&other) = seen.get(&extent) {
            report.findings.add(Finding::SlotsClash { slot: column.slot, other });
        } else {
            seen.insert(extent, column.slot);
        }
    }
}

async fn check_column(device: &Device, label: &Label, column: &SlotInfo, report: &mut CheckReport) {
    let slot = column.slot;
    let entry = Entry {
        state: column.state,
        name: column.name,
        rows: column.rows,
        column_crc: column.column_crc,
        ..Entry::default()
    };
    report.columns_checked += 1;
    let block = read(device, label.geometry.checksum_block_offset(slot), BLOCK).await;
    let table = block.ok().map(|block| RowTable::examine(label.device, slot, &entry, &block));
    let crcs = read_crcs(device, label, slot, column.rows.0).await;
    report.rows_checked += crcs.len() as u64;
    match table {
        None => report.findings.add(Finding::RowTableUnreadable { slot }),
        Some(Err(fault)) => {
            let known: Vec<u32> = crcs.iter().copied().flatten().collect();
            let rows_agree = known.len() == crcs.len() && column_crc(&known) == entry.column_crc;
            report.findings.add(Finding::RowTableDamaged { slot, fault, rows_agree });
        }
        Some(Ok(table)) => compare_rows(slot, &table, &crcs, &mut report.findings),
    }
}

/// The checksum of each row as it is read; `None` where that fails.
async fn read_crcs(device: &Device, label: &Label, slot: SlotIndex, rows: u16) -> Vec<Option<u32>> {
    let mut crcs = Vec::with_capacity(rows as usize);
    for_each_row(device, label, slot, rows, |_, row| {
        crcs.push(row.map(crc32c));
        true
    })
    .await;
    crcs
}

fn compare_rows(slot: SlotIndex, table: &RowTable, crcs: &[Option<u32>], findings: &mut Findings) {
    for (index, crc) in crcs.iter().enumerate() {
        let row = RowIndex(index as u16);
        let is_hole = table.holes.contains(index);
        match crc {
            None => findings.add(Finding::RowUnreadable { slot, row }),
            Some(crc) if is_hole && (*crc, table.crcs[index]) != (ZERO_ROW_CRC, ZERO_ROW_CRC) => {
                findings.add(Finding::HoleNotZero { slot, row });
            }
            Some(crc) if *crc != table.crcs[index] => findings.add(Finding::RowDamaged { slot, row }),
            Some(_) => {}
        }
    }
}

/// The first row that is not zeros is enough to know.
async fn check_zeroed(device: &Device, label: &Label, slot: SlotIndex, report: &mut CheckReport) {
    let mut found = None;
    for_each_row(device, label, slot, COLUMN_ROWS, |row, bytes| {
        let is_zero = bytes.is_some_and(|bytes| bytes.iter().fold(0, |sum, b| sum | b) == 0);
        found = (!is_zero).then_some(row);
        is_zero
    })
    .await;
    if let Some(row) = found {
        report.findings.add(Finding::FreeSlotNotZero { slot, row });
    }
}

/// Calls `each` with every row, or `None` where it cannot be read, until it returns false.
async fn for_each_row(
    device: &Device,
    label: &Label,
    slot: SlotIndex,
    rows: u16,
    mut each: impl FnMut(RowIndex, Option<&[u8]>) -> bool,
) {
    let g = &label.geometry;
    let mut first = 0;
    while first < rows {
        let count = (rows - first).min(CHUNK_ROWS);
        let chunk = read(device, g.row_offset(slot, first), count as u64 * BLOCK).await.ok();
        for row in first..first + count {
            // One bad sector fails the whole chunk: look at each row alone.
            let alone: Option<Buf>;
            let bytes = match &chunk {
                Some(chunk) => Some(&chunk[(row - first) as usize * BLOCK_BYTES..][..BLOCK_BYTES]),
                None => {
                    alone = read(device, g.row_offset(slot, row), BLOCK).await.ok();
                    alone.as_deref()
                }
            };
            if !each(RowIndex(row), bytes) {
                return;
            }
        }
        first += count;
    }
}
