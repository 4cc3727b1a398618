//! All stages of a node at one moment, as the admin socket tells them.

use crate::client::Client;
use crate::failure::Failure;
use peristyle_base::stage::StageSnapshot;
use peristyle_control::api::{ProfilePage, RawStage, Request, Response};
use std::collections::BTreeMap;

pub type Stages = BTreeMap<String, StageSnapshot>;

/// Copies of counters that only grow: two of them have a difference.
#[derive(Clone, Default)]
pub struct Snapshot {
    pub at_ns: u64,
    pub uptime_ms: u64,
    pub counted: bool,
    pub read_bytes: u64,
    pub write_bytes: u64,
    pub stages: Stages,
    /// In the order of their names.
    pub devices: Vec<(String, Stages)>,
}

impl Snapshot {
    pub fn fetch(client: &mut Client) -> Result<Snapshot, Failure> {
        let first = ask(client, 0)?;
        let mut snapshot = Snapshot {
            at_ns: first.at_ns,
            uptime_ms: first.uptime_ms,
            counted: first.counted,
            read_bytes: first.read_bytes,
            write_bytes: first.write_bytes,
            stages: stages(&first.stages)?,
            devices: Vec::new(),
        };
        for page in 1..first.pages {
            for device in ask(client, page)?.devices {
                snapshot.devices.push((device.name, stages(&device.stages)?));
            }
        }
        snapshot.devices.sort_by(|a, b| a.0.cmp(&b.0));
        Ok(snapshot)
    }
}

fn ask(client: &mut Client, page: u32) -> Result<ProfilePage, Failure> {
    match client.call(&Request::Profile { page })? {
        Response::Profile(page) => Ok(page),
        _ => Err(Failure::failed("the node gave an answer to another question")),
    }
}

fn stages(raw: &[RawStage]) -> Result<Stages, Failure> {
    let stage = |raw: &RawStage| {
        let bad = || Failure::failed(format!("the node's counters of {} cannot be read", raw.name));
        raw.snapshot().map(|s| (raw.name.clone(), s)).ok_or_else(bad)
    };
    raw.iter().map(stage).collect()
}
