//! `peristyle profile`: what each stage of reads and writes did between two looks at its counters.

mod figures;
mod shape;
mod snapshot;
#[cfg(test)]
mod tests;

pub use figures::{PathFigures, Profile, Row};
pub use snapshot::Snapshot;

use crate::bench::machine;
use crate::cli::ProfileOptions;
use crate::client::Client;
use crate::failure::Failure;
use crate::online::print;
use crate::render;
use serde_json::Value;
use std::path::PathBuf;

pub fn profile(options: ProfileOptions, admin: Option<PathBuf>) -> Result<(), Failure> {
    let mut client = Client::connect(admin)?;
    let before = match options.since_start {
        true => None,
        false => {
            let before = Snapshot::fetch(&mut client)?;
            std::thread::sleep(options.interval);
            Some(before)
        }
    };
    let after = Snapshot::fetch(&mut client)?;
    let anew = || Failure::failed("the node was started anew meanwhile; ask again");
    let profile = Profile::between(before.as_ref(), &after).ok_or_else(anew)?;
    print(&if options.json { render::json(&document(&profile)?) } else { render::profile(&profile) });
    Ok(())
}

/// The figures and the machine that they were asked for on, which is the node's: its admin socket is local.
fn document(profile: &Profile) -> Result<Value, Failure> {
    let mut document = serde_json::to_value(profile).map_err(|e| Failure::failed(e.to_string()))?;
    document["machine"] = machine::describe();
    Ok(document)
}
