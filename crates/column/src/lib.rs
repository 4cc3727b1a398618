//! One device: label, slot table, columns. Obeys epochs, does not choose them; knows nothing of frames.
//!
//! Read first: `docs/disk-format.md`, [`Server`], `slot.rs` ([`slot::SlotTable`]).
#![forbid(unsafe_code)]

mod control;
mod data;
pub mod error;
pub mod format;
mod index;
mod ops;
mod pages;
mod server;
pub mod slot;
mod stats;
mod tools;

pub use control::{Fenced, Seal, ZERO_ROW_CRC};
pub use data::RowCrcs;
pub use error::{ColumnError, FormatError, LabelError, OpenError};
pub use format::{AllocClass, Geometry, Label, RowRange, RowSet, RowTable, SlotState};
pub use server::{Discard, Server, ServerConfig};
pub use slot::{Allocate, Reserve, SlotInfo, Usage};
pub use stats::{Counter, DeviceStats, WriteClass, WritePurpose};
pub use tools::{CheckReport, FormatOptions, Inspection, check, format, inspect};
