//! What is printed: tables, JSON, the lines that tell how to attach. Plain functions from values to text.

mod at_rest;
mod cluster;
mod extents;
mod hosts;
mod profile;
mod ready;
mod stats;
mod tables;

pub use at_rest::{extents, pool_check};
pub use cluster::cluster;
pub use extents::why;
pub use hosts::hosts;
pub use profile::{percent, profile};
pub use ready::{Rates, Ready, ReadyVolume, StatusLine};
pub use stats::{microseconds, stats};
pub use tables::{balance, device_reports, devices, plan, pool, snapshots, status, volume, volumes};

use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;

/// A table without frames: columns are apart, `right` ones (by index) aligned to the right.
pub fn table(header: &[&str], right: &[usize], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(header.iter().copied());
    for row in rows {
        table.add_row(row);
    }
    for &index in right {
        if let Some(column) = table.column_mut(index) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    let text = table.to_string();
    text.lines().map(|line| line.trim_end().to_owned() + "\n").collect()
}

/// One JSON document on one line.
pub fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("plain data always serialises") + "\n"
}
