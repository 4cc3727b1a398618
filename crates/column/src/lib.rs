//! One device: label, slot table, columns. Obeys epochs, does not choose them; knows nothing of frames.
//!
//! Read first: `docs/disk-format.md`, [`Server`], `slot.rs` ([`slot::SlotTable`]).
#![forbid(unsafe_code)]

mod check;
mod clearing;
mod control;
mod data;
pub mod error;
pub mod finding;
pub mod format;
mod index;
mod ops;
mod pages;
mod server;
pub mod slot;
mod stats;
mod table;
mod tools;

pub use check::{CheckReport, check};
pub use control::{Fenced, Seal, ZERO_ROW_CRC};
pub use data::RowCrcs;
pub use error::{ColumnError, FormatError, LabelError, OpenError};
pub use finding::{EntryFault, Finding, Findings, Severity};
pub use format::{AllocClass, Geometry, Label, RowRange, RowSet, RowTable, SlotState};
pub use server::{Discard, Server, ServerConfig};
pub use slot::{Allocate, Reserve, SlotInfo, Usage};
pub use stats::{Counter, DeviceStats, WriteClass, WritePurpose};
pub use tools::{FormatOptions, Inspection, format, inspect};
