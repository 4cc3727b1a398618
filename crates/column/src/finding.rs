//! What tools have to say of a device: one value for each thing that is wrong, with where it is.

use crate::error::{LabelError, OpenError};
use crate::format::{self, RowTableFault};
use peristyle_base::{DeviceId, RowIndex, SlotIndex};
use std::fmt;

/// Findings that a report keeps; further ones are counted only.
pub const FINDINGS_MAX: usize = 1024;

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// What a crash leaves behind, and the next start puts right.
    Note,
    Damage,
}

/// Why a copy of an entry cannot be trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryFault {
    /// Zeros: it was never written, or it was wiped.
    Blank,
    /// A good entry of another slot: a write went astray.
    OtherSlot(SlotIndex),
    /// Its checksum is wrong, or it says what cannot be. An entry of another device looks like that, too.
    Garbled,
}

impl EntryFault {
    pub(crate) fn of(device: DeviceId, bytes: &[u8]) -> EntryFault {
        match format::slot_of_entry(device, bytes) {
            _ if bytes.iter().all(|&b| b == 0) => EntryFault::Blank,
            Some(slot) => EntryFault::OtherSlot(slot),
            None => EntryFault::Garbled,
        }
    }
}

/// One thing that is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finding {
    /// The device cannot be served.
    NotServed(OpenError),
    /// One copy of the label; the other is good.
    LabelCopy {
        copy: usize,
        error: LabelError,
    },
    /// Both copies of the label are good, and one of them was missed by a rewrite.
    LabelOlder {
        copy: usize,
    },
    PageUnreadable {
        copy: usize,
        page: u32,
    },
    /// One copy of the page was not written yet when the process ended.
    PageOlder {
        page: u32,
        copy: usize,
    },
    /// Each copy of the page has newer entries than the other: one of them has gone back to an earlier state.
    PagesCross {
        page: u32,
    },
    EntryDamaged {
        slot: SlotIndex,
        copy: usize,
        fault: EntryFault,
    },
    /// Both copies are good, have the same version, and say different things.
    EntriesDisagree {
        slot: SlotIndex,
    },
    /// Neither copy of the entry is good: what the slot holds is not known.
    SlotLost {
        slot: SlotIndex,
    },
    /// Two slots hold the same column, or two columns of one extent: one of them is not where it belongs.
    SlotsClash {
        slot: SlotIndex,
        other: SlotIndex,
    },
    RowTableUnreadable {
        slot: SlotIndex,
    },
    /// `rows_agree`: the rows' own checksums, taken together, are what the entry says, so that the rows are sound.
    RowTableDamaged {
        slot: SlotIndex,
        fault: RowTableFault,
        rows_agree: bool,
    },
    RowUnreadable {
        slot: SlotIndex,
        row: RowIndex,
    },
    RowDamaged {
        slot: SlotIndex,
        row: RowIndex,
    },
    HoleNotZero {
        slot: SlotIndex,
        row: RowIndex,
    },
    /// A free slot whose entry says that it reads as zeros does not: a hole in its next column would not be one.
    FreeSlotNotZero {
        slot: SlotIndex,
        row: RowIndex,
    },
}

impl Finding {
    pub fn severity(&self) -> Severity {
        match self {
            Finding::LabelOlder { .. } | Finding::PageOlder { .. } => Severity::Note,
            _ => Severity::Damage,
        }
    }

    /// A name for scripts.
    pub fn kind(&self) -> &'static str {
        match self {
            Finding::NotServed(_) => "not-served",
            Finding::LabelCopy { .. } => "label-copy",
            Finding::LabelOlder { .. } => "label-older",
            Finding::PageUnreadable { .. } => "page-unreadable",
            Finding::PageOlder { .. } => "page-older",
            Finding::PagesCross { .. } => "pages-cross",
            Finding::EntryDamaged { .. } => "entry-damaged",
            Finding::EntriesDisagree { .. } => "entries-disagree",
            Finding::SlotLost { .. } => "slot-lost",
            Finding::SlotsClash { .. } => "slots-clash",
            Finding::RowTableUnreadable { .. } => "row-table-unreadable",
            Finding::RowTableDamaged { .. } => "row-table-damaged",
            Finding::RowUnreadable { .. } => "row-unreadable",
            Finding::RowDamaged { .. } => "row-damaged",
            Finding::HoleNotZero { .. } => "hole-not-zero",
            Finding::FreeSlotNotZero { .. } => "free-slot-not-zero",
        }
    }

    pub fn slot(&self) -> Option<SlotIndex> {
        match *self {
            Finding::EntryDamaged { slot, .. }
            | Finding::EntriesDisagree { slot }
            | Finding::SlotLost { slot }
            | Finding::SlotsClash { slot, .. }
            | Finding::RowTableUnreadable { slot }
            | Finding::RowTableDamaged { slot, .. }
            | Finding::RowUnreadable { slot, .. }
            | Finding::RowDamaged { slot, .. }
            | Finding::HoleNotZero { slot, .. }
            | Finding::FreeSlotNotZero { slot, .. } => Some(slot),
            _ => None,
        }
    }
}

impl fmt::Display for EntryFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            EntryFault::Blank => f.write_str("zeros"),
            EntryFault::OtherSlot(slot) => write!(f, "an entry of slot {slot}"),
            EntryFault::Garbled => f.write_str("damaged"),
        }
    }
}

impl fmt::Display for RowTableFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            RowTableFault::Garbled => "damaged",
            RowTableFault::OtherColumn => "those of another column",
            RowTableFault::OtherRows => "those of another number of rows",
            RowTableFault::OtherCrc => "not those that the entry was sealed with",
        })
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Finding::NotServed(error) => write!(f, "{error}"),
            Finding::LabelCopy { copy, error } => write!(f, "label copy {copy}: {error}"),
            Finding::LabelOlder { copy } => write!(f, "label copy {copy}: older than the other"),
            Finding::PageUnreadable { copy, page } => {
                write!(f, "slot table copy {copy}, page {page}: cannot be read")
            }
            Finding::PageOlder { page, copy } => {
                write!(f, "slot table copy {copy}, page {page}: older than the other copy")
            }
            Finding::PagesCross { page } => {
                write!(f, "slot table page {page}: each copy is newer than the other in places")
            }
            Finding::EntryDamaged { slot, copy, fault } => {
                write!(f, "slot {slot}: its entry in copy {copy} is {fault}")
            }
            Finding::EntriesDisagree { slot } => {
                write!(f, "slot {slot}: the copies of its entry say different things")
            }
            Finding::SlotLost { slot } => write!(f, "slot {slot}: both copies of its entry are damaged"),
            Finding::SlotsClash { slot, other } => {
                write!(f, "slot {slot}: it holds a column of the same extent as slot {other}")
            }
            Finding::RowTableUnreadable { slot } => {
                write!(f, "slot {slot}: its row checksums cannot be read")
            }
            Finding::RowTableDamaged { slot, fault, rows_agree } => {
                let rows = if *rows_agree { "sound" } else { "damaged, too, or not those of this column" };
                write!(f, "slot {slot}: its row checksums are {fault}; its rows are {rows}")
            }
            Finding::RowUnreadable { slot, row } => write!(f, "slot {slot}, row {row}: cannot be read"),
            Finding::RowDamaged { slot, row } => write!(f, "slot {slot}, row {row}: its checksum is wrong"),
            Finding::HoleNotZero { slot, row } => {
                write!(f, "slot {slot}, row {row}: a hole that is not zero")
            }
            Finding::FreeSlotNotZero { slot, row } => {
                write!(f, "slot {slot}, row {row}: not zero, and the slot counts as free and zeroed")
            }
        }
    }
}

/// The first [`FINDINGS_MAX`] things that are wrong, and how many there are.
#[derive(Clone, Debug, Default)]
pub struct Findings {
    list: Vec<Finding>,
    total: u64,
    damaged: bool,
}

impl Findings {
    pub(crate) fn add(&mut self, finding: Finding) {
        self.total += 1;
        self.damaged |= finding.severity() == Severity::Damage;
        if self.list.len() < FINDINGS_MAX {
            self.list.push(finding);
        }
    }
    /// In the order in which they were found.
    pub fn list(&self) -> &[Finding] {
        &self.list
    }
    pub fn total(&self) -> u64 {
        self.total
    }
    pub fn has_damage(&self) -> bool {
        self.damaged
    }
}
