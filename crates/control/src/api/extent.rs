//! What is told of one extent: where its columns are, and why there.

use serde::{Deserialize, Serialize};

#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct ExtentInfo {
    pub shard: u32,
    pub extent: u64,
    pub scheme: String,
    /// Why it has this scheme.
    pub scheme_because: String,
    /// "ready", "open", "closed" or "sealed".
    pub phase: String,
    pub epoch: u64,
    pub rows: u16,
    pub live_blocks: u32,
    pub map_blocks: u32,
    /// Collection moves what it holds, or has moved it: a checkpoint lets go of it.
    pub moving: bool,
    pub columns: Vec<ExtentColumn>,
    /// Failure domains that have no column of it, those first that placement would take first now.
    pub others: Vec<ExtentDomain>,
    /// No failure domain has two columns.
    pub apart: bool,
}

#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct ExtentColumn {
    pub column: u32,
    /// "data" or "parity".
    pub part: String,
    /// "filling", "sealed", "to be sealed", "damaged", "to be made anew" or "gone".
    pub state: String,
    /// `None`: no device is known to have it.
    pub device: Option<String>,
    pub slot: Option<u32>,
    pub domain: Option<ExtentDomain>,
}

/// A failure domain, as placement sees it now.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct ExtentDomain {
    /// "node 3", "rack r1", "zone a" or a device's path.
    pub name: String,
    /// Which of all it would take for a new extent, 1 first; `None`: it takes none.
    pub rank: Option<u32>,
    /// Percent of the slots for users that are used.
    pub used_percent: f64,
    /// "takes columns", "slow", "full", "is to leave" or "away".
    pub standing: String,
}
