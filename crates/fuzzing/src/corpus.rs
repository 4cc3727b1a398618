//! The committed inputs: `fuzz/corpus/<target>/<any name>`.

use crate::Target;
use anyhow::{Context, Result, ensure};
use std::fs;
use std::path::{Path, PathBuf};

/// `fuzz/` of this repository.
pub fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz")
}

/// Every committed input of a target, in the order of names, so that a seed means the same everywhere.
pub fn read(target: &Target) -> Result<Vec<Vec<u8>>> {
    let folder = folder().join("corpus").join(target.name);
    let entries = fs::read_dir(&folder).with_context(|| folder.display().to_string())?;
    let mut paths = entries.map(|e| Ok(e?.path())).collect::<Result<Vec<_>>>()?;
    paths.sort();
    let mut inputs = Vec::with_capacity(paths.len());
    for path in paths {
        let mut input = fs::read(&path).with_context(|| path.display().to_string())?;
        input.truncate(target.bytes_max);
        inputs.push(input);
    }
    ensure!(!inputs.is_empty(), "{} holds no input", folder.display());
    Ok(inputs)
}

/// Writes `seed-NNN` for each input that our own encoders give a target.
pub fn write_seeds(target: &Target) -> Result<()> {
    let folder = folder().join("corpus").join(target.name);
    fs::create_dir_all(&folder)?;
    for (index, seed) in (target.seeds)().into_iter().enumerate() {
        let path = folder.join(format!("seed-{index:03}"));
        fs::write(&path, seed).with_context(|| path.display().to_string())?;
    }
    Ok(())
}
