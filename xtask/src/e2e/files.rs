//! Work for a file system: a tree with known contents, random operations on a file with a model beside it, and
//! writes of which we know what a crash may have left of them.

use anyhow::{Context, Result, bail, ensure};
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// SplitMix64: enough for drawing test operations, the same everywhere for one seed.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number below `limit`.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit.max(1)
    }

    pub fn bytes(&mut self, length: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(length + 8);
        while bytes.len() < length {
            bytes.extend_from_slice(&self.next().to_le_bytes());
        }
        bytes.truncate(length);
        bytes
    }
}

/// Copies a folder of files and folders; other kinds are left out.
pub fn copy_tree(from: &Path, to: &Path) -> Result<usize> {
    fs::create_dir_all(to)?;
    let mut files = 0;
    for entry in fs::read_dir(from).with_context(|| from.display().to_string())? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            files += copy_tree(&entry.path(), &target)?;
        } else if entry.file_type()?.is_file() {
            fs::copy(entry.path(), &target).with_context(|| target.display().to_string())?;
            files += 1;
        }
    }
    Ok(files)
}

/// Every file of `from` is in `to` with the same bytes.
pub fn compare_trees(from: &Path, to: &Path) -> Result<()> {
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let other = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            compare_trees(&entry.path(), &other)?;
        } else if entry.file_type()?.is_file() {
            let here = fs::read(entry.path())?;
            let there = fs::read(&other).with_context(|| other.display().to_string())?;
            ensure!(here == there, "{} differs from its original", other.display());
        }
    }
    Ok(())
}

/// Writes a tree of random files: many small ones and some large.
pub fn make_tree(root: &Path, seed: u64) -> Result<()> {
    let mut random = Random(seed);
    for index in 0..300 {
        let folder = root.join(format!("d{}/e{}", index % 7, index % 3));
        fs::create_dir_all(&folder)?;
        let length = if index % 50 == 0 { 4 << 20 } else { random.below(40_000) };
        fs::write(folder.join(format!("f{index}")), random.bytes(length as usize))?;
    }
    Ok(())
}

const LARGEST_FILE: u64 = 1 << 20;

/// Random reads, writes, truncations, syncs, renames and reopenings of one file, each compared with a model in
/// memory: what `fsx` does, without mappings. The file is synced at the end.
pub fn exercise(folder: &Path, seed: u64, operations: u64) -> Result<Model> {
    let mut test = Exercise::new(folder, seed)?;
    for number in 0..operations {
        test.step(number).with_context(|| format!("operation {number} of seed {seed}"))?;
    }
    test.file.sync_all()?;
    let model = Model { path: test.path, bytes: test.model };
    model.compare()?;
    Ok(model)
}

/// A file and what must be in it.
pub struct Model {
    path: PathBuf,
    bytes: Vec<u8>,
}

impl Model {
    pub fn compare(&self) -> Result<()> {
        ensure!(fs::read(&self.path)? == self.bytes, "{} differs from its model", self.path.display());
        Ok(())
    }
}

struct Exercise {
    path: PathBuf,
    file: File,
    model: Vec<u8>,
    random: Random,
}

impl Exercise {
    fn new(folder: &Path, seed: u64) -> Result<Self> {
        let path = folder.join("exercised");
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&path)?;
        Ok(Self { path, file, model: Vec::new(), random: Random(seed) })
    }

    fn step(&mut self, number: u64) -> Result<()> {
        let at = self.random.below(LARGEST_FILE);
        let length = self.random.below(64 << 10).min(LARGEST_FILE - at) as usize;
        match self.random.below(100) {
            0..40 => self.write(at as usize, length)?,
            40..80 => self.read(at as usize, length)?,
            80..88 => self.truncate(at)?,
            88..93 => self.file.sync_data()?,
            93..95 => self.file.sync_all()?,
            95..98 => self.file = OpenOptions::new().read(true).write(true).open(&self.path)?,
            _ => self.rename(number)?,
        }
        Ok(())
    }

    fn write(&mut self, at: usize, length: usize) -> Result<()> {
        let bytes = self.random.bytes(length);
        self.file.write_all_at(&bytes, at as u64)?;
        if length > 0 {
            self.model.resize(self.model.len().max(at + length), 0);
            self.model[at..at + length].copy_from_slice(&bytes);
        }
        Ok(())
    }

    fn read(&mut self, at: usize, length: usize) -> Result<()> {
        let end = (at + length).min(self.model.len());
        let expected = self.model.get(at..end).unwrap_or(&[]);
        let mut bytes = vec![0; expected.len()];
        self.file.read_exact_at(&mut bytes, at as u64)?;
        ensure!(bytes == expected, "{} bytes at {at} differ", bytes.len());
        Ok(())
    }

    fn truncate(&mut self, length: u64) -> Result<()> {
        self.file.set_len(length)?;
        self.model.resize(length as usize, 0);
        Ok(())
    }

    fn rename(&mut self, number: u64) -> Result<()> {
        let path = self.path.with_file_name(format!("exercised-{number}"));
        fs::rename(&self.path, &path)?;
        self.path = path;
        Ok(())
    }
}

/// A file of pages that a writer overwrites until the storage under it fails. A page says who wrote it: its number
/// and a version. Versions only grow, and one that was synced is there after a crash, or a later one.
pub struct Pages {
    path: PathBuf,
    /// Version that a sync has confirmed, per page.
    synced: Vec<u64>,
    /// Version written last, per page.
    written: Vec<u64>,
}

const PAGE: usize = 4096;
const PAGES: usize = 1024;

impl Pages {
    pub fn create(path: PathBuf) -> Result<Self> {
        let file = File::create(&path)?;
        for index in 0..PAGES {
            file.write_all_at(&page(index, 0), (index * PAGE) as u64)?;
        }
        file.sync_all()?;
        Ok(Self { path, synced: vec![0; PAGES], written: vec![0; PAGES] })
    }

    /// Writes and syncs until something fails; calls `synced` after each sync that succeeded.
    pub fn write_until_failure(&mut self, seed: u64, mut synced: impl FnMut()) -> Result<()> {
        let mut random = Random(seed);
        let file = OpenOptions::new().write(true).open(&self.path)?;
        loop {
            for _ in 0..random.below(32) {
                let index = random.below(PAGES as u64) as usize;
                let version = self.written[index] + 1;
                self.written[index] = version;
                if file.write_all_at(&page(index, version), (index * PAGE) as u64).is_err() {
                    return Ok(());
                }
            }
            if file.sync_data().is_err() {
                return Ok(());
            }
            self.synced.clone_from(&self.written);
            synced();
        }
    }

    /// After the crash: every page is whole, its own, and of a version between the last synced and the last written.
    pub fn check(&self) -> Result<()> {
        let bytes = fs::read(&self.path)?;
        ensure!(bytes.len() == PAGES * PAGE, "{} bytes long after the crash", bytes.len());
        for (index, found) in bytes.chunks_exact(PAGE).enumerate() {
            let version = u64::from_le_bytes(found[8..16].try_into().expect("eight bytes"));
            if found != page(index, version) {
                bail!("page {index} is torn, or not its own");
            }
            ensure!(
                version >= self.synced[index],
                "page {index}: version {} was synced, {version} is there",
                self.synced[index]
            );
            ensure!(version <= self.written[index], "page {index}: version {version} was never written");
        }
        Ok(())
    }
}

fn page(index: usize, version: u64) -> Vec<u8> {
    let mut page = (index as u64).to_le_bytes().to_vec();
    page.extend_from_slice(&version.to_le_bytes());
    page.extend(Random((index as u64) << 32 | version).bytes(PAGE - 16));
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_operations_agree_with_their_model_on_this_machines_file_system() {
        let folder = std::env::temp_dir().join(format!("peristyle-files-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        exercise(&folder, 1, 500).unwrap();
        let mut pages = Pages::create(folder.join("pages")).unwrap();
        pages.check().unwrap();
        // A page that somebody else's bytes have reached is found.
        let file = OpenOptions::new().write(true).open(folder.join("pages")).unwrap();
        file.write_all_at(&page(3, 0), 7 * PAGE as u64).unwrap();
        assert!(pages.check().is_err());
        // So is a synced version that went back.
        file.write_all_at(&page(7, 0), 7 * PAGE as u64).unwrap();
        pages.check().unwrap();
        pages.synced[7] = 1;
        assert!(pages.check().is_err());
        fs::remove_dir_all(&folder).unwrap();
    }
}
