//! Stores and loads of a record, from TOML.

use crate::bench::Rw;
use crate::bench::run::read_text;
use crate::failure::Failure;
use clap::ValueEnum;
use peristyle_base::Scheme;
use peristyle_base::units::parse_bytes;
use peristyle_bench::load::{Length, Workload};
use peristyle_bench::pattern::Pattern;
use serde::Deserialize;
use std::path::Path;
use std::time::Duration;

const CANONICAL: &str = include_str!("../../../../../bench/workloads/canonical.toml");
const BYTES_MAX: u64 = 1 << 20;

#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields)]
struct File {
    store: Vec<StoreText>,
    load: Vec<LoadText>,
}

#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields)]
struct StoreText {
    name: String,
    scheme: String,
    memory: Option<usize>,
    device_size: String,
    volume_size: String,
}

#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields)]
struct LoadText {
    name: String,
    rw: String,
    bs: Option<String>,
    qd: Option<u32>,
    jobs: Option<u16>,
    read_share: Option<u8>,
    pattern: Option<String>,
}

#[derive(Clone, Debug)]
pub struct Store {
    pub name: String,
    pub scheme: Scheme,
    /// Devices in memory; six files without.
    pub memory: Option<usize>,
    pub device_bytes: u64,
    pub volume_bytes: u64,
}

#[derive(Clone, Debug)]
pub struct Load {
    pub name: String,
    pub workload: Workload,
}

/// Those of the file, or the canonical ones.
pub fn read(path: Option<&Path>, runtime: Duration) -> Result<(Vec<Store>, Vec<Load>), Failure> {
    let (text, name) = match path {
        Some(path) => (read_text(path, BYTES_MAX)?, path.display().to_string()),
        None => (CANONICAL.to_owned(), "the canonical loads".to_owned()),
    };
    parse(&text, runtime).map_err(|what| Failure::usage(format!("{name}: {what}")))
}

fn parse(text: &str, runtime: Duration) -> Result<(Vec<Store>, Vec<Load>), String> {
    let file: File = toml::from_str(text).map_err(|e| e.to_string())?;
    if file.store.is_empty() || file.load.is_empty() {
        return Err("a [[store]] and a [[load]] at least".into());
    }
    let stores: Result<_, String> = file.store.into_iter().map(StoreText::store).collect();
    let loads: Result<_, String> = file.load.into_iter().map(|load| load.load(runtime)).collect();
    Ok((stores?, loads?))
}

fn bytes(text: &str) -> Result<u64, String> {
    parse_bytes(text).ok_or_else(|| format!("'{text}' is no size"))
}

impl StoreText {
    fn store(self) -> Result<Store, String> {
        let scheme: Scheme = self.scheme.parse().map_err(|e| format!("{}: {e}", self.name))?;
        let (device_bytes, volume_bytes) = (bytes(&self.device_size)?, bytes(&self.volume_size)?);
        Ok(Store { name: self.name, scheme, memory: self.memory, device_bytes, volume_bytes })
    }
}

impl LoadText {
    fn load(self, runtime: Duration) -> Result<Load, String> {
        let rw = Rw::from_str(&self.rw, false).map_err(|e| format!("{}: {e}", self.name))?;
        let (pattern, read_share) = rw.meaning(self.read_share.unwrap_or(70));
        let pattern: Pattern = self.pattern.map_or(Ok(pattern), |text| text.parse())?;
        let bs = self.bs.map_or(Ok(4096), |text| bytes(&text))?;
        let workload = Workload {
            block_bytes: u32::try_from(bs).map_err(|_| format!("{}: bs is too large", self.name))?,
            pattern,
            read_share,
            depth: self.qd.unwrap_or(1),
            jobs: self.jobs.unwrap_or(1),
            length: Length::Time(runtime),
            warmup: runtime / 10,
            ..Workload::default()
        };
        Ok(Load { name: self.name, workload })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_canonical_loads_are_read() {
        let (stores, loads) = read(None, Duration::from_secs(1)).unwrap();
        assert_eq!((stores.len(), loads.len()), (2, 7));
        assert_eq!((stores[0].memory, stores[1].memory), (Some(2), None));
        let mixed = loads.iter().find(|load| load.name == "mixed-4k-32").unwrap();
        assert_eq!((mixed.workload.read_share, mixed.workload.depth), (70, 32));
    }

    #[test]
    fn mistakes_are_named() {
        let store =
            "[[store]]\nname = \"a\"\nscheme = \"1+1\"\ndevice_size = \"1GiB\"\nvolume_size = \"1MiB\"\n";
        for (text, said) in [
            ("", "missing field"),
            ("store = []\nload = []", "at least"),
            (&format!("{store}[[load]]\nname = \"b\"\nrw = \"trim\""), "b: "),
            (&format!("{store}[[load]]\nname = \"b\"\nrw = \"read\"\nbs = \"x\""), "'x' is no size"),
            (&format!("{store}[[load]]\nname = \"b\"\nrw = \"read\"\ndepth = 4"), "unknown field"),
        ] {
            let error = parse(text, Duration::from_secs(1)).unwrap_err();
            assert!(error.contains(said), "{text}: {error}");
        }
    }
}
